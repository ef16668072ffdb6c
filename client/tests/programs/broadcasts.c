/* Broadcasts between processes: one, some and all of those who wait, with and without a payload. */
#include "check.h"

#define MILLISECOND 1000000
#define LONG_BYTES 100000

static dragon_broadcast *broadcast;

static void expect_payload(size_t length, char byte)
{
    dragon_message message;
    OK(dragon_broadcast_wait(broadcast, DRAGON_NEVER, &message));
    TRUE(message.length == length);
    for (size_t i = 0; i < length; i++)
        TRUE(((const char *)message.data)[i] == byte);
    OK(dragon_message_release(&message));
}

static void get_nothing(void)
{
    expect_payload(0, 0);
}

static void get_a_short_one(void)
{
    expect_payload(10, 's');
}

static void get_a_long_one(void)
{
    expect_payload(LONG_BYTES, 'l');
}

static void find_it_destroyed(void)
{
    dragon_message message;
    EXPECT(DRAGON_DESTROYED, dragon_broadcast_wait(broadcast, DRAGON_NEVER, &message));
}

static uint32_t waiting(void)
{
    uint32_t count = 99;
    OK(dragon_broadcast_waiting(broadcast, &count));
    return count;
}

static uint32_t trigger(uint32_t count, uint32_t after, const void *payload, size_t length)
{
    uint32_t woken = 99;
    OK(dragon_broadcast_trigger(broadcast, count, after, payload, length, DRAGON_NEVER, &woken));
    return woken;
}

static void one_some_all(const char *bytes, size_t length, void (*get)(void))
{
    pid_t children[4];
    for (int i = 0; i < 4; i++)
        children[i] = child_that(get);
    TRUE(trigger(1, 4, bytes, length) == 1);
    TRUE(waiting() == 3);
    TRUE(trigger(2, 0, bytes, length) == 2);
    TRUE(trigger(DRAGON_ALL, 1, bytes, length) == 1);
    TRUE(trigger(DRAGON_ALL, 0, bytes, length) == 0);
    for (int i = 0; i < 4; i++)
        reap(children[i]);
}

/* Two payloads that nobody reads are all that the broadcast can have, until one of their readers is killed. */
static void payloads_on_their_way(const char *text)
{
    pid_t children[3];
    for (uint32_t i = 0; i < 3; i++) {
        children[i] = child_that(get_a_long_one);
        UNTIL(waiting() == i + 1);
        stop_child(children[i]);
    }
    TRUE(trigger(1, 0, text, LONG_BYTES) == 1);
    TRUE(trigger(1, 0, text, LONG_BYTES) == 1);
    EXPECT(DRAGON_FULL, dragon_broadcast_trigger(broadcast, 1, 0, text, LONG_BYTES, DRAGON_TRY, NULL));
    EXPECT(DRAGON_TIMEOUT, dragon_broadcast_trigger(broadcast, 1, 0, text, LONG_BYTES, MILLISECOND, NULL));
    TRUE(waiting() == 1);
    kill_child(children[0]);
    TRUE(trigger(1, 0, text, LONG_BYTES) == 1);
    for (int i = 1; i < 3; i++) {
        TRUE(kill(children[i], SIGCONT) == 0);
        reap(children[i]);
    }
}

int main(void)
{
    dragon_broadcast_options options = {.size = sizeof options, .waiters = 4, .inline_bytes = 64};
    dragon_broadcast *same = NULL;
    dragon_message message;
    uint8_t descriptor[32];
    uint32_t woken = 99;
    char *text = malloc(LONG_BYTES);
    alarm(300);

    OK(dragon_broadcast_create(NULL, &same));
    OK(dragon_broadcast_close(same));
    options.size--;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_broadcast_create(&options, &same));
    TRUE(strstr(dragon_last_error(), "sizeof(dragon_broadcast_options)") != NULL);
    options.size++;
    options.payloads = 256;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_broadcast_create(&options, &same));
    TRUE(strstr(dragon_last_error(), "255") != NULL);
    options.payloads = 2;
    OK(dragon_broadcast_create(&options, &broadcast));

    EXPECT(DRAGON_EMPTY, dragon_broadcast_wait(broadcast, DRAGON_TRY, &message));
    EXPECT(DRAGON_TIMEOUT, dragon_broadcast_wait(broadcast, MILLISECOND, &message));
    EXPECT(DRAGON_EMPTY, dragon_broadcast_trigger(broadcast, 1, 1, NULL, 0, DRAGON_TRY, &woken));
    EXPECT(DRAGON_TIMEOUT, dragon_broadcast_trigger(broadcast, 1, 1, NULL, 0, MILLISECOND, NULL));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_broadcast_trigger(broadcast, 1, 5, NULL, 0, DRAGON_TRY, NULL));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_broadcast_trigger(broadcast, 1, 0, NULL, 1, DRAGON_TRY, NULL));
    OK(dragon_broadcast_trigger(broadcast, DRAGON_ALL, 0, "nobody", 6, DRAGON_TRY, NULL));

    one_some_all(NULL, 0, get_nothing);
    memset(text, 's', 10);
    one_some_all(text, 10, get_a_short_one);
    memset(text, 'l', LONG_BYTES);
    one_some_all(text, LONG_BYTES, get_a_long_one);

    /* A waiter that is killed frees its place, and hears nothing. */
    pid_t victim = child_that(get_nothing);
    UNTIL(waiting() == 1);
    pid_t other = child_that(get_a_long_one);
    UNTIL(waiting() == 2);
    kill_child(victim);
    UNTIL(waiting() == 1);
    TRUE(trigger(DRAGON_ALL, 0, text, LONG_BYTES) == 1);
    reap(other);
    payloads_on_their_way(text);
    free(text);

    OK(dragon_broadcast_export(broadcast, descriptor));
    OK(dragon_broadcast_attach(descriptor, 1, &same));
    other = child_that(find_it_destroyed);
    UNTIL(waiting() == 1);
    OK(dragon_broadcast_destroy(same));
    reap(other);
    OK(dragon_broadcast_close(same));
    OK(dragon_broadcast_close(broadcast));
    OK(dragon_detach());
    return 0;
}
