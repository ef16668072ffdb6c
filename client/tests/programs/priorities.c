/* Queues with priorities between processes: the order, the room of each level, and receivers that are killed. */
#include "check.h"

#define MILLISECOND 1000000
#define LEVELS 3
#define EACH 200

static dragon_priority_queue *queue;
static int told[2];

static void send_at(uint32_t level, const char *text, uint64_t hint)
{
    dragon_bytes parts[] = {{text, 1}, {text + 1, strlen(text) - 1}};
    OK(dragon_priority_queue_send(queue, level, parts, 2, hint, DRAGON_NEVER));
}

static void expect_at(uint32_t level, const char *text, uint64_t hint)
{
    dragon_message message;
    uint32_t found = 99;
    OK(dragon_priority_queue_receive(queue, DRAGON_NEVER, &message, &found));
    TRUE(found == level && message.hint == hint);
    TRUE(message.length == strlen(text) && memcmp(message.data, text, message.length) == 0);
    OK(dragon_message_release(&message));
}

static dragon_priority_queue_info info(void)
{
    dragon_priority_queue_info found = {.size = sizeof found};
    OK(dragon_priority_queue_get_info(queue, &found));
    return found;
}

static void by_itself(void)
{
    dragon_priority_queue_options options = {.size = sizeof options, .levels = LEVELS, .capacity = 2, .block = 64};
    dragon_priority_queue *other = NULL;
    dragon_message message;
    dragon_bytes part = {"x", 1};
    uint32_t level = 99;
    uint64_t count = 99;

    OK(dragon_priority_queue_create(NULL, &other));
    OK(dragon_priority_queue_close(other));
    options.levels = DRAGON_PRIORITY_LEVELS + 1;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_priority_queue_create(&options, &other));
    TRUE(strstr(dragon_last_error(), "65") != NULL && strstr(dragon_last_error(), "64") != NULL);
    options.levels = LEVELS;
    options.size = 1;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_priority_queue_create(&options, &other));
    options.size = sizeof options;
    OK(dragon_priority_queue_create(&options, &queue));

    EXPECT(DRAGON_EMPTY, dragon_priority_queue_receive(queue, DRAGON_TRY, &message, &level));
    EXPECT(DRAGON_TIMEOUT, dragon_priority_queue_peek(queue, MILLISECOND, &message, NULL));
    OK(dragon_priority_queue_poll(queue, DRAGON_TRY, &count));
    TRUE(count == 0);
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_priority_queue_send(queue, LEVELS, &part, 1, 0, DRAGON_TRY));
    send_at(2, "later", 1);
    send_at(1, "soon", 2);
    send_at(2, "much later", 3);
    send_at(0, "now", 4);
    EXPECT(DRAGON_FULL, dragon_priority_queue_send(queue, 2, &part, 1, 0, DRAGON_TRY));
    EXPECT(DRAGON_TIMEOUT, dragon_priority_queue_send(queue, 2, &part, 1, 0, MILLISECOND));
    dragon_priority_queue_info found = info();
    TRUE(found.levels == LEVELS && found.capacity == 2 && found.block == 64 && found.bytes > 0);
    TRUE(found.messages[0] == 1 && found.messages[1] == 1 && found.messages[2] == 2 && found.messages[3] == 0);
    OK(dragon_priority_queue_poll(queue, DRAGON_NEVER, &count));
    TRUE(count == 4);
    OK(dragon_priority_queue_peek(queue, DRAGON_TRY, &message, &level));
    TRUE(level == 0 && message.hint == 4);
    OK(dragon_message_release(&message));
    expect_at(0, "now", 4);
    expect_at(1, "soon", 2);
    expect_at(2, "later", 1);
    expect_at(2, "much later", 3);
}

static void blocks(void)
{
    dragon_pool *pool = NULL;
    dragon_pool_block *block = NULL;
    dragon_message message;
    uint32_t level = 99;
    void *data = NULL;
    OK(dragon_pool_create(NULL, &pool));
    OK(dragon_pool_alloc(pool, 100000, &block));
    OK(dragon_pool_block_data(block, &data, NULL));
    memset(data, 'b', 100000);
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_priority_queue_send_block(queue, LEVELS, &block, 0, DRAGON_TRY));
    TRUE(block != NULL);
    OK(dragon_priority_queue_send_block(queue, 1, &block, 7, DRAGON_TRY));
    TRUE(block == NULL);
    OK(dragon_priority_queue_receive(queue, DRAGON_TRY, &message, &level));
    TRUE(level == 1 && message.hint == 7 && message.length == 100000 && ((const char *)message.data)[99999] == 'b');
    OK(dragon_message_release(&message));
    OK(dragon_pool_close(pool));
}

static void send_many(void)
{
    for (uint64_t i = 0; i < EACH; i++)
        for (uint32_t level = LEVELS; level-- > 0;)
            send_at(level, "one of many", (uint64_t)getpid() << 32 | i);
}

/* Two senders; within a level, what each of them sent comes in its order. */
static void between_processes(void)
{
    pid_t senders[] = {child_that(send_many), child_that(send_many)};
    uint32_t next[2][LEVELS] = {{0}};
    for (int i = 0; i < 2 * LEVELS * EACH; i++) {
        dragon_message message;
        uint32_t level = 99;
        OK(dragon_priority_queue_receive(queue, DRAGON_NEVER, &message, &level));
        int sender = message.hint >> 32 == (uint64_t)senders[1];
        TRUE(level < LEVELS && (uint32_t)message.hint == next[sender][level]);
        next[sender][level]++;
        OK(dragon_message_release(&message));
    }
    reap(senders[0]);
    reap(senders[1]);
    TRUE(info().messages[0] + info().messages[1] + info().messages[2] == 0);
}

static void await_one(void)
{
    expect_at(1, "for whoever is left", 5);
}

static void hold_one(void)
{
    dragon_message message;
    OK(dragon_priority_queue_receive(queue, DRAGON_NEVER, &message, NULL));
    TRUE(message.length == 100000);
    tell_and_wait(told);
}

static void killed_receivers(void)
{
    char *large = calloc(1, 100000);
    dragon_bytes part = {large, 100000};
    OK(dragon_priority_queue_send(queue, 0, &part, 1, 0, DRAGON_TRY));
    kill_when_told(child_that(hold_one), told);
    free(large);

    OK(dragon_priority_queue_set_wait_mode(queue, DRAGON_WAIT_SLEEP));
    pid_t victim = child_that(await_one), other = child_that(await_one);
    UNTIL(info().receivers_waiting == 2);
    kill_child(victim);
    send_at(1, "for whoever is left", 5);
    reap(other);
}

static void find_it_destroyed(void)
{
    dragon_message message;
    EXPECT(DRAGON_DESTROYED, dragon_priority_queue_receive(queue, DRAGON_NEVER, &message, NULL));
}

int main(void)
{
    dragon_priority_queue *same = NULL;
    uint8_t descriptor[32];
    alarm(300);
    TRUE(pipe(told) == 0);
    by_itself();
    blocks();
    between_processes();
    killed_receivers();
    OK(dragon_priority_queue_export(queue, descriptor));
    OK(dragon_priority_queue_attach(descriptor, 1, &same));
    UNTIL(info().receivers_waiting == 0);
    pid_t waiter = child_that(find_it_destroyed);
    UNTIL(info().receivers_waiting == 1);
    OK(dragon_priority_queue_destroy(same));
    reap(waiter);
    OK(dragon_priority_queue_close(same));
    OK(dragon_priority_queue_close(queue));
    OK(dragon_detach());
    return 0;
}
