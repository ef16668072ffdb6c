/* Every kind of object that one process alone can use, and every kind of bad argument. */
#include "check.h"

#define MILLISECOND 1000000

static void channel_that_grows(void)
{
    dragon_channel_options options = {.size = sizeof options, .capacity = 2, .limit = 100};
    dragon_channel *channel = NULL;
    uint64_t count, capacity;
    OK(dragon_channel_create(&options, &channel));
    for (int i = 0; i < 100; i++)
        send_text(channel, "x", i);
    OK(dragon_channel_attributes(channel, &count, &capacity));
    TRUE(count == 100 && capacity == 100);
    dragon_bytes part = {"y", 1};
    EXPECT(DRAGON_FULL, dragon_channel_send(channel, &part, 1, 0, DRAGON_TRY));
    TRUE(strstr(dragon_last_error(), "100 of 100 messages") != NULL);
    EXPECT(DRAGON_TIMEOUT, dragon_channel_send(channel, &part, 1, 0, MILLISECOND));
    for (int i = 0; i < 100; i++)
        expect_text(channel, "x", i);
    OK(dragon_channel_close(channel));
}

static void channels(void)
{
    dragon_channel *channel = NULL, *same = NULL;
    uint8_t descriptor[32], parsed[32];
    char text[DRAGON_DESCRIPTOR_TEXT];
    uint64_t count, capacity;
    dragon_message message;

    dragon_channel_options options = {.size = sizeof options, .user = 42, .capacity = 4, .block = 64};
    OK(dragon_channel_create(&options, &channel));
    OK(dragon_channel_export(channel, descriptor));
    OK(dragon_descriptor_text(descriptor, text, sizeof text));
    OK(dragon_descriptor_parse(text, parsed));
    TRUE(memcmp(descriptor, parsed, 32) == 0);
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_descriptor_text(descriptor, text, 10));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_descriptor_parse("dragon1:x", parsed));
    OK(dragon_channel_attach(descriptor, 1, &same));

    /* Parts, many parts, and more than travels inline. */
    dragon_bytes parts[20];
    for (int i = 0; i < 20; i++)
        parts[i] = (dragon_bytes){"ab", 2};
    OK(dragon_channel_send(channel, parts, 3, 1, DRAGON_NEVER));
    OK(dragon_channel_send(channel, parts, 20, 2, DRAGON_TRY));
    OK(dragon_channel_send(channel, NULL, 0, 3, DRAGON_TRY));
    char *large = malloc(3 << 20);
    memset(large, 'x', 3 << 20);
    dragon_bytes part = {large, 3 << 20};
    OK(dragon_channel_send(channel, &part, 1, 4, DRAGON_TRY));
    EXPECT(DRAGON_FULL, dragon_channel_send(channel, parts, 1, 0, DRAGON_TRY));
    EXPECT(DRAGON_TIMEOUT, dragon_channel_send(channel, parts, 1, 0, MILLISECOND));
    OK(dragon_channel_attributes(same, &count, &capacity));
    TRUE(count == 4 && capacity == 4);
    OK(dragon_channel_poll(same, DRAGON_NEVER, &count));
    TRUE(count == 4);
    expect_text(same, "ababab", 1);
    expect_text(same, "abababababababababababababababababababab", 2);
    expect_text(same, "", 3);
    OK(dragon_channel_receive(same, DRAGON_NEVER, &message));
    TRUE(message.length == 3 << 20 && memcmp(message.data, large, message.length) == 0 && message.hint == 4);
    dragon_message moved = message;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_detach());
    OK(dragon_message_release(&moved));
    free(large);
    EXPECT(DRAGON_EMPTY, dragon_channel_receive(channel, DRAGON_TRY, &message));
    EXPECT(DRAGON_TIMEOUT, dragon_channel_receive(channel, MILLISECOND, &message));
    OK(dragon_channel_poll(channel, DRAGON_TRY, &count));
    TRUE(count == 0);

    /* Bad arguments. */
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_channel_receive(channel, -2, &message));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_channel_receive(NULL, DRAGON_TRY, &message));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_channel_receive(channel, DRAGON_TRY, NULL));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_channel_send(channel, NULL, 1, 0, DRAGON_TRY));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_channel_close(NULL));
    dragon_channel_options wrong = {.size = sizeof wrong, .capacity = UINT32_MAX};
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_channel_create(&wrong, &same));
    TRUE(strstr(dragon_last_error(), "4294967295") != NULL);
    wrong = (dragon_channel_options){.size = 8};
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_channel_create(&wrong, &same));
    TRUE(strstr(dragon_last_error(), "dragon_channel_options.size is 8") != NULL);
    dragon_lock *lock = NULL;
    EXPECT(DRAGON_WRONG_KIND, dragon_lock_attach(descriptor, 0, &lock));
    descriptor[0] = 9;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_channel_attach(descriptor, 0, &same));
    descriptor[0] = 1;
    descriptor[16] ^= 1;
    int32_t code = dragon_channel_attach(descriptor, 0, &same);
    TRUE(code != DRAGON_OK && strstr(dragon_last_error(), "runtime") != NULL);
    descriptor[16] ^= 1;

    OK(dragon_channel_destroy(same));
    EXPECT(DRAGON_DESTROYED, dragon_channel_receive(channel, DRAGON_NEVER, &message));
    OK(dragon_channel_close(same));
    OK(dragon_channel_close(channel));
    EXPECT(DRAGON_NO_SUCH_OBJECT, dragon_channel_attach(descriptor, 0, &same));
}

static void locks(void)
{
    dragon_lock *lock = NULL;
    int32_t died = 7;
    OK(dragon_lock_create(0, &lock));
    OK(dragon_lock_acquire(lock, DRAGON_TRY, &died));
    TRUE(died == 0);
    EXPECT(DRAGON_EMPTY, dragon_lock_acquire(lock, DRAGON_TRY, NULL));
    EXPECT(DRAGON_TIMEOUT, dragon_lock_acquire(lock, MILLISECOND, NULL));
    OK(dragon_lock_release(lock, 0));
    EXPECT(DRAGON_NOT_OWNER, dragon_lock_release(lock, 1));
    OK(dragon_lock_close(lock));
}

static void events(void)
{
    dragon_event *event = NULL;
    int32_t set = 7;
    OK(dragon_event_create(0, &event));
    EXPECT(DRAGON_EMPTY, dragon_event_wait(event, DRAGON_TRY));
    OK(dragon_event_set(event));
    OK(dragon_event_wait(event, DRAGON_NEVER));
    OK(dragon_event_is_set(event, &set));
    TRUE(set == 1);
    OK(dragon_event_clear(event));
    OK(dragon_event_is_set(event, &set));
    TRUE(set == 0);
    OK(dragon_event_close(event));
}

static void semaphores(void)
{
    dragon_semaphore *semaphore = NULL;
    uint32_t value = 7;
    OK(dragon_semaphore_create(1, 2, 0, &semaphore));
    OK(dragon_semaphore_acquire(semaphore, DRAGON_NEVER));
    EXPECT(DRAGON_EMPTY, dragon_semaphore_acquire(semaphore, DRAGON_TRY));
    OK(dragon_semaphore_release(semaphore, 2));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_semaphore_release(semaphore, 1));
    OK(dragon_semaphore_value(semaphore, &value));
    TRUE(value == 2);
    OK(dragon_semaphore_close(semaphore));
}

static void requests(void)
{
    dragon_runtime runtime;
    dragon_node node;
    size_t count = 0;
    OK(dragon_runtime_info(&runtime));
    TRUE(runtime.nodes == 1 && runtime.cpus == 2 && runtime.slot != 0);
    OK(dragon_nodes(NULL, 0, &count));
    TRUE(count == 1);
    OK(dragon_nodes(&node, 1, &count));
    TRUE(strcmp(node.host, "small") == 0 && node.memory == 1 << 30);
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_nodes(NULL, 1, &count));

    dragon_spawn_request spawn;
    memset(&spawn, 0, sizeof spawn);
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_spawn(&spawn, NULL, NULL));
    TRUE(strstr(dragon_last_error(), "sizeof") != NULL);
    spawn.size = sizeof spawn;
    spawn.node = DRAGON_BY_POLICY;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_spawn(&spawn, NULL, NULL));
    dragon_bytes argv[] = {{"true", 4}};
    spawn.argv = argv;
    spawn.argc = 1;
    const char *const environment[] = {"A=b=c", "wrong", NULL};
    spawn.environment = environment;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_spawn(&spawn, NULL, NULL));
    TRUE(strstr(dragon_last_error(), "'wrong'") != NULL);
    const char *const right[] = {"A=b=c", NULL};
    spawn.environment = right;
    spawn.directory = "/tmp";
    dragon_spawn_result results[2];
    dragon_spawn_request both[] = {spawn, spawn};
    /* This runtime starts no processes; it says what it was asked. */
    EXPECT(DRAGON_UNSUPPORTED, dragon_spawn_many(both, 2, results));
    TRUE(results[1].code == DRAGON_UNSUPPORTED && results[1].process == NULL);
    printf("%s\n", dragon_last_error());
}

int main(void)
{
    TRUE(dragon_last_error()[0] == 0);
    TRUE(!dragon_is_attached());
    channels();
    channel_that_grows();
    TRUE(dragon_is_attached());
    locks();
    events();
    semaphores();
    requests();
    OK(dragon_detach());
    TRUE(!dragon_is_attached());
    OK(dragon_detach());
    /* A second membership works as the first one. */
    channels();
    OK(dragon_detach());
    return 0;
}
