/* Children and grandchildren made by fork() use their parent's handles. */
#include "check.h"

#include <pthread.h>

static dragon_channel *there, *back;

static uint32_t slot(void)
{
    dragon_runtime runtime;
    OK(dragon_runtime_info(&runtime));
    return runtime.slot;
}

static void grandchild(uint32_t parents)
{
    TRUE(!dragon_is_attached());
    send_text(back, "from the grandchild", 3);
    TRUE(slot() != parents);
    OK(dragon_channel_close(there));
    OK(dragon_channel_close(back));
    OK(dragon_detach());
}

static void child(uint32_t parents, dragon_message *inherited)
{
    TRUE(!dragon_is_attached());
    TRUE(inherited->length == 1 << 20 && ((const char *)inherited->data)[99] == 'y');
    OK(dragon_message_release(inherited));
    expect_text(there, "to the child", 1);
    uint32_t own = slot();
    TRUE(own != parents);
    pid_t pid = fork();
    if (pid == 0) {
        grandchild(own);
        exit(0);
    }
    reap(pid);
    send_text(back, "from the child", 2);
    OK(dragon_channel_close(there));
    OK(dragon_channel_close(back));
    OK(dragon_detach());
}

static void *many_forks(void *ignored)
{
    (void)ignored;
    for (int i = 0; i < 20; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            /* Ends without ever using the library, or after one use. */
            if (i % 2)
                send_text(back, "many", 4);
            _exit(0);
        }
        reap(pid);
    }
    return NULL;
}

int main(void)
{
    there = new_channel(8, 64);
    back = new_channel(8, 64);
    char *large = malloc(1 << 20);
    memset(large, 'y', 1 << 20);
    dragon_bytes part = {large, 1 << 20};
    OK(dragon_channel_send(there, &part, 1, 0, DRAGON_NEVER));
    dragon_message held;
    OK(dragon_channel_receive(there, DRAGON_NEVER, &held));
    send_text(there, "to the child", 1);

    uint32_t parents = slot();
    pid_t pid = fork();
    if (pid == 0) {
        child(parents, &held);
        exit(0);
    }
    expect_text(back, "from the grandchild", 3);
    expect_text(back, "from the child", 2);
    reap(pid);

    /* The child's end took nothing from us. */
    TRUE(((const char *)held.data)[99] == 'y');
    OK(dragon_message_release(&held));
    send_text(there, "once more", 5);
    expect_text(there, "once more", 5);

    /* Forks while other threads are inside the library. */
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        TRUE(pthread_create(&threads[i], NULL, many_forks, NULL) == 0);
    for (int i = 0; i < 20; i++)
        expect_text(back, "many", 4);
    for (int i = 0; i < 2; i++)
        TRUE(pthread_join(threads[i], NULL) == 0);

    OK(dragon_channel_close(there));
    OK(dragon_channel_close(back));
    OK(dragon_detach());
    return 0;
}
