/* Memory: made, described, shared with a child, read and written within its bounds, gone with its last user. */
#include "check.h"

int main(void)
{
    dragon_memory *memory = NULL, *same = NULL;
    uint8_t descriptor[DRAGON_DESCRIPTOR_BYTES];
    char back[5] = {0};
    void *data = NULL;
    uint64_t length = 0;

    OK(dragon_memory_create(7, "a long table", 12, &memory));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_memory_create(7, "another", 7, &same));
    OK(dragon_memory_data(memory, &data, &length));
    TRUE(length == 12 && memcmp(data, "a long table", 12) == 0);
    OK(dragon_memory_write(memory, 2, "wide", 4));
    TRUE(memcmp(data, "a wide table", 12) == 0);
    OK(dragon_memory_read(memory, 2, back, 4));
    TRUE(strcmp(back, "wide") == 0);
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_memory_read(memory, 9, back, 4));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_memory_write(memory, UINT64_MAX, "x", 1));

    /* A child by the descriptor, and by the handle that it inherits. */
    OK(dragon_memory_export(memory, descriptor));
    pid_t child = fork();
    if (child == 0) {
        OK(dragon_memory_write(memory, 0, "A", 1));
        OK(dragon_memory_attach(descriptor, 1, &same));
        OK(dragon_memory_write(same, 11, "E", 1));
        OK(dragon_memory_close(same));
        OK(dragon_memory_close(memory)); /* what a child holds when it exits goes a moment later */
        _exit(0);
    }
    reap(child);
    TRUE(memcmp(data, "A wide tablE", 12) == 0);

    /* Without contents it is zeros, also where the block was used before. */
    static char used[100000];
    memset(used, 'x', sizeof used);
    OK(dragon_memory_create(8, used, sizeof used, &same));
    OK(dragon_memory_close(same));
    OK(dragon_memory_create(8, NULL, sizeof used, &same));
    OK(dragon_memory_read(same, 0, used, sizeof used));
    for (size_t at = 0; at < sizeof used; at++)
        TRUE(used[at] == 0);
    OK(dragon_memory_close(same));

    /* It lives as long as somebody has it. */
    OK(dragon_memory_attach(descriptor, 0, &same));
    OK(dragon_memory_close(memory));
    OK(dragon_memory_read(same, 0, back, 4));
    TRUE(memcmp(back, "A wi", 4) == 0);
    OK(dragon_memory_close(same));
    EXPECT(DRAGON_NO_SUCH_OBJECT, dragon_memory_attach(descriptor, 0, &same));
    return 0;
}
