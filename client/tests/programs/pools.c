/* Pools: made, described, shared with a child, filled, destroyed. */
#include "check.h"

static void fill(dragon_pool_block *block, unsigned char byte)
{
    void *data = NULL;
    uint64_t length = 0;
    OK(dragon_pool_block_data(block, &data, &length));
    memset(data, byte, length);
}

static void expect_filled(dragon_channel *channel, size_t length, unsigned char byte)
{
    dragon_message message;
    OK(dragon_channel_receive(channel, DRAGON_NEVER, &message));
    TRUE(message.length == length);
    for (size_t i = 0; i < length; i++)
        TRUE(((const unsigned char *)message.data)[i] == byte);
    OK(dragon_message_release(&message));
}

int main(void)
{
    dragon_pool_options options = {.size = sizeof options, .limit = 32 << 20, .user = 5, .numa_node = -1, .name = "images"};
    dragon_pool *pool = NULL, *other = NULL;
    dragon_channel *channel = NULL;
    dragon_pool_block *block = NULL, *kept = NULL;
    dragon_pool_stats stats;
    uint8_t descriptor[DRAGON_DESCRIPTOR_BYTES];

    OK(dragon_pool_create(&options, &pool));
    OK(dragon_pool_get_stats(pool, &stats));
    TRUE(stats.limit == 32 << 20 && stats.used == 0 && stats.blocks == 0 && stats.committed == 0);
    channel = new_channel(16, 64);

    /* In this process. */
    OK(dragon_pool_alloc(pool, 3 << 20, &block));
    fill(block, 7);
    OK(dragon_pool_get_stats(pool, &stats));
    TRUE(stats.used >= 3 << 20 && stats.blocks == 1 && stats.committed >= stats.used);
    OK(dragon_pool_block_send(&block, channel, 1, DRAGON_TRY));
    TRUE(block == NULL);
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_pool_block_send(&block, channel, 1, DRAGON_TRY));
    expect_filled(channel, 3 << 20, 7);
    OK(dragon_pool_get_stats(pool, &stats));
    TRUE(stats.blocks == 0);

    /* Copied, filled, hashed and compared. */
    unsigned char word[4] = {1, 2, 3, 4}, back[4] = {0}, hashes[2][32];
    int32_t order = 7;
    uint32_t node = 7;
    OK(dragon_pool_alloc(pool, 100, &block));
    OK(dragon_pool_alloc(pool, 50, &kept));
    OK(dragon_pool_block_node(block, &node));
    TRUE(node == 0);
    OK(dragon_pool_block_fill(block, 0, 100, 9));
    OK(dragon_pool_block_write(block, 10, word, 4));
    OK(dragon_pool_block_copy(kept, 0, block, 8, 50));
    OK(dragon_pool_block_copy(kept, 4, kept, 2, 4)); /* overlapping */
    OK(dragon_pool_block_read(kept, 4, back, 4));
    TRUE(memcmp(word, back, 4) == 0);
    OK(dragon_pool_block_compare(kept, 4, block, 10, 4, &order));
    TRUE(order == 0);
    OK(dragon_pool_block_compare(kept, 4, block, 9, 4, &order));
    TRUE(order == -1);
    OK(dragon_pool_block_hash(kept, 4, 4, hashes[0]));
    OK(dragon_pool_block_hash(block, 10, 4, hashes[1]));
    TRUE(memcmp(hashes[0], hashes[1], 32) == 0);
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_pool_block_copy(kept, 1, block, 0, 50));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_pool_block_read(kept, 0, NULL, 4));
    OK(dragon_pool_block_free(block));
    OK(dragon_pool_block_free(kept));
    block = kept = NULL;

    /* What does not fit is told with its numbers. */
    EXPECT(DRAGON_OUT_OF_MEMORY, dragon_pool_alloc(pool, 33 << 20, &block));
    TRUE(strstr(dragon_last_error(), "'images'") != NULL && strstr(dragon_last_error(), "34603008") != NULL);

    /* A child has the parent's handles; its messages outlive it. */
    pid_t child = fork();
    if (child == 0) {
        OK(dragon_pool_alloc(pool, 100000, &kept)); /* goes with this process */
        OK(dragon_pool_alloc(pool, 100000, &block));
        fill(block, 9);
        OK(dragon_pool_block_send(&block, channel, 2, DRAGON_NEVER));
        _exit(0);
    }
    reap(child);
    expect_filled(channel, 100000, 9);

    /* A descriptor leads to the pool, and to nothing else. */
    OK(dragon_pool_export(pool, descriptor));
    OK(dragon_pool_attach(descriptor, 1, &other));
    OK(dragon_pool_alloc(other, 64, &block));
    OK(dragon_pool_block_free(block));
    dragon_lock *lock = NULL;
    EXPECT(DRAGON_WRONG_KIND, dragon_lock_attach(descriptor, 0, &lock));
    OK(dragon_channel_descriptor(channel, descriptor));
    dragon_pool *none = NULL;
    EXPECT(DRAGON_WRONG_KIND, dragon_pool_attach(descriptor, 0, &none));

    /* Options out of their range. */
    options.minimum_block = 100;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_pool_create(&options, &none));
    options.minimum_block = 0;
    options.numa_node = 999;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_pool_create(&options, &none));
    options.numa_node = -1;
    options.size = 1;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_pool_create(&options, &none));
    TRUE(none == NULL);

    OK(dragon_pool_destroy(pool));
    EXPECT(DRAGON_DESTROYED, dragon_pool_alloc(other, 64, &block));
    OK(dragon_pool_descriptor(pool, descriptor));
    EXPECT(DRAGON_DESTROYED, dragon_pool_attach(descriptor, 0, &none));
    OK(dragon_pool_close(pool));
    OK(dragon_pool_close(other));
    /* Gone as soon as the daemon knows that nobody has it any more: a child that has just ended counts until then. */
    int32_t gone = dragon_pool_attach(descriptor, 0, &none);
    TRUE(gone == DRAGON_NO_SUCH_OBJECT || gone == DRAGON_DESTROYED);
    OK(dragon_pool_trim(NULL));
    OK(dragon_channel_close(channel));
    return 0;
}
