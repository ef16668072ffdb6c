/* Makes a channel, sends a message to itself, and prints what came.
 *
 *     cc ping.c -I.. -L../../../target/release -ldragon -o ping
 *     dragon ./ping
 */
#include <dragon.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int32_t code, const char *what)
{
    if (code != DRAGON_OK) {
        fprintf(stderr, "%s: %s (code %d)\n", what, dragon_last_error(), (int)code);
        exit(1);
    }
}

int main(void)
{
    dragon_runtime runtime;
    check(dragon_attach(), "attach");
    check(dragon_runtime_info(&runtime), "runtime");
    printf("node %u of %u, dragon %s\n", (unsigned)runtime.node, (unsigned)runtime.nodes, dragon_version());

    dragon_channel *channel = NULL;
    check(dragon_channel_create(NULL, &channel), "create");

    uint8_t descriptor[DRAGON_DESCRIPTOR_BYTES];
    char name[DRAGON_DESCRIPTOR_TEXT];
    check(dragon_channel_descriptor(channel, descriptor), "descriptor");
    check(dragon_descriptor_text(descriptor, name, sizeof name), "text");
    printf("channel %s\n", name);

    const char text[] = "ping";
    dragon_bytes part = {text, strlen(text)};
    check(dragon_channel_send(channel, &part, 1, 7, DRAGON_NEVER), "send");

    dragon_message message;
    check(dragon_channel_receive(channel, DRAGON_NEVER, &message), "receive");
    printf("%.*s, hint %u\n", (int)message.length, (const char *)message.data, (unsigned)message.hint);
    check(dragon_message_release(&message), "release");

    int32_t empty = dragon_channel_receive(channel, DRAGON_TRY, &message);
    printf("then: %s\n", dragon_code_text(empty));

    check(dragon_channel_close(channel), "close");
    check(dragon_detach(), "detach");
    return 0;
}
