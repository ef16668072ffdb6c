/* Names of the runtime and the store of a node: the program starts itself on the second node, where it uses what was
 * published on the first. */
#include "check.h"

static void look_for(const char *name, dragon_value *value)
{
    OK(dragon_name_wait(name, DRAGON_NEVER, value, NULL, 0));
    TRUE(value->is_object);
}

/* What the second node sees. */
static int finds(void)
{
    dragon_runtime runtime;
    dragon_value value;
    dragon_process *process = NULL;
    dragon_channel *channel = NULL;
    dragon_key names[2];
    char bytes[8] = "";
    size_t count = 0;
    int32_t status = 0;

    OK(dragon_runtime_info(&runtime));
    TRUE(runtime.node == 1);
    EXPECT(DRAGON_NO_SUCH_NAME, dragon_kv_get("key", 3, bytes, sizeof bytes, &count));
    look_for("process", &value);
    OK(dragon_process_attach(value.descriptor, 0, &process));
    OK(dragon_process_signal(process, 15));
    OK(dragon_process_wait(process, DRAGON_NEVER, &status));
    TRUE(status == 15);
    OK(dragon_process_close(process));
    /* What does not fit says how long it is. */
    EXPECT(DRAGON_TOO_LARGE, dragon_name_lookup("bytes", &value, bytes, 3));
    TRUE(!value.is_object && value.length == 5);
    OK(dragon_name_lookup("bytes", &value, bytes, sizeof bytes));
    TRUE(value.length == 5 && memcmp(bytes, "a\0b\0c", 5) == 0);
    EXPECT(DRAGON_NAME_TAKEN, dragon_name_publish_bytes("bytes", "", 0, DRAGON_UNTIL_UNPUBLISHED));
    OK(dragon_name_list("", names, 2, &count));
    TRUE(count == 3);
    TRUE(strcmp((const char *)names[0].bytes, "bytes") == 0 && names[0].length == 5);
    TRUE(strcmp((const char *)names[1].bytes, "channel") == 0);
    OK(dragon_name_publish_bytes("fleeting", "", 0, DRAGON_WITH_PUBLISHER));
    look_for("channel", &value);
    OK(dragon_channel_attach(value.descriptor, 0, &channel));
    send_text(channel, "found", 0);
    OK(dragon_channel_close(channel));
    return 0;
}

static dragon_process *start(int32_t node, const char *program, const char *argument)
{
    dragon_bytes argv[2] = {{program, strlen(program)}, {argument, strlen(argument)}};
    dragon_spawn_request request = {.size = sizeof request, .node = node, .argv = argv, .argc = 2};
    dragon_process *process = NULL;
    OK(dragon_spawn(&request, &process, NULL));
    return process;
}

int main(int argc, char **argv)
{
    uint8_t descriptor[32];
    dragon_value value;
    dragon_process *sleeps = NULL, *other = NULL;
    dragon_channel *channel = NULL;
    char bytes[8] = "";
    size_t length = 0;
    int32_t status = -1;

    if (argc == 2)
        return finds();
    EXPECT(DRAGON_NO_SUCH_NAME, dragon_name_lookup("process", &value, NULL, 0));
    EXPECT(DRAGON_NO_SUCH_NAME, dragon_name_wait("process", DRAGON_TRY, &value, NULL, 0));
    EXPECT(DRAGON_TIMEOUT, dragon_name_wait("process", 1000000, &value, NULL, 0));
    EXPECT(DRAGON_NO_SUCH_NAME, dragon_name_unpublish("process"));
    channel = new_channel(4, 256);
    OK(dragon_channel_descriptor(channel, descriptor));
    OK(dragon_name_publish("channel", descriptor, DRAGON_UNTIL_UNPUBLISHED));
    OK(dragon_name_publish_bytes("bytes", "a\0b\0c", 5, DRAGON_UNTIL_UNPUBLISHED));
    OK(dragon_kv_put("key", 3, "value", 5));
    other = start(1, argv[0], "finds");
    /* The other one waits for this name. */
    sleeps = start(0, "sleep", "1000");
    OK(dragon_process_descriptor(sleeps, descriptor));
    OK(dragon_name_publish("process", descriptor, DRAGON_UNTIL_UNPUBLISHED));

    expect_text(channel, "found", 0);
    OK(dragon_process_wait(other, DRAGON_NEVER, &status));
    TRUE(status == 0);
    OK(dragon_process_wait(sleeps, DRAGON_NEVER, &status));
    TRUE(status == 15);
    OK(dragon_process_close(other));
    OK(dragon_process_close(sleeps));
    OK(dragon_name_unpublish("process"));
    EXPECT(DRAGON_NO_SUCH_NAME, dragon_name_lookup("process", &value, NULL, 0));

    OK(dragon_kv_wait("key", 3, DRAGON_NEVER, bytes, sizeof bytes, &length));
    TRUE(length == 5 && memcmp(bytes, "value", 5) == 0);
    EXPECT(DRAGON_CHANGED, dragon_kv_compare_and_set("key", 3, "other", 5, "new", 3));
    OK(dragon_kv_compare_and_set("key", 3, "value", 5, "new", 3));
    OK(dragon_kv_list("k", 1, NULL, 0, &length));
    TRUE(length == 1);
    OK(dragon_kv_delete("key", 3));
    EXPECT(DRAGON_NO_SUCH_NAME, dragon_kv_get("key", 3, bytes, sizeof bytes, &length));
    OK(dragon_channel_close(channel));
    printf("all of it\n");
    return 0;
}
