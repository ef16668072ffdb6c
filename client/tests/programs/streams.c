/* Sets and streams, between processes and with programs that know of neither. */
#include "check.h"

static void sets(void)
{
    dragon_set *set = NULL;
    dragon_channel *channel = NULL;
    dragon_event *event = NULL;
    uint8_t descriptor[32];
    uint64_t of_channel = 0, of_event = 0;
    dragon_ready ready[4];
    size_t count = 9;

    OK(dragon_set_create(2, 7, &set));
    channel = new_channel(1, 0);
    OK(dragon_event_create(0, &event));
    OK(dragon_channel_descriptor(channel, descriptor));
    OK(dragon_set_add(set, descriptor, DRAGON_READABLE | DRAGON_WRITABLE, 11, &of_channel));
    OK(dragon_event_descriptor(event, descriptor));
    OK(dragon_set_add(set, descriptor, DRAGON_READABLE, 12, &of_event));
    EXPECT(DRAGON_TABLE_FULL, dragon_set_add(set, descriptor, DRAGON_READABLE, 13, NULL));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_set_wait(set, DRAGON_TRY, NULL, 0, &count));
    OK(dragon_set_wait(set, DRAGON_NEVER, ready, 4, &count));
    TRUE(count == 1 && ready[0].token == 11 && ready[0].ready == DRAGON_WRITABLE && ready[0].member == of_channel);
    send_text(channel, "x", 1);
    OK(dragon_event_set(event));
    OK(dragon_set_wait(set, DRAGON_TRY, ready, 4, &count));
    TRUE(count == 2 && ready[0].ready == DRAGON_READABLE && ready[1].token == 12);
    OK(dragon_set_remove(set, of_event));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_set_remove(set, of_event));
    expect_text(channel, "x", 1);
    OK(dragon_channel_close(channel));
    OK(dragon_set_wait(set, DRAGON_TRY, ready, 4, &count));
    TRUE(count == 1 && ready[0].ready == DRAGON_GONE);
    OK(dragon_set_remove(set, ready[0].member));
    EXPECT(DRAGON_EMPTY, dragon_set_wait(set, DRAGON_TRY, ready, 4, &count));
    EXPECT(DRAGON_TIMEOUT, dragon_set_wait(set, 1000000, ready, 4, &count));
    OK(dragon_event_close(event));
    OK(dragon_set_close(set));
}

static void chunks(void)
{
    dragon_endpoint *endpoint = NULL;
    dragon_endpoint_options options = {.size = sizeof options, .streams = 1, .capacity = 4, .block = 64};
    dragon_stream_sender *sender = NULL;
    dragon_stream_receiver *receiver = NULL;
    dragon_message message;
    char buffer[4];
    size_t length = 0;
    uint64_t argument = 0;
    int32_t last = 7, chunk = 7;

    OK(dragon_endpoint_create(&options, &endpoint));
    EXPECT(DRAGON_EMPTY, dragon_endpoint_accept(endpoint, DRAGON_TRY, &receiver));
    OK(dragon_endpoint_open_send(endpoint, DRAGON_NEVER, &sender));
    dragon_stream_sender *second = NULL;
    EXPECT(DRAGON_FULL, dragon_endpoint_open_send(endpoint, DRAGON_TRY, &second));
    OK(dragon_endpoint_accept(endpoint, DRAGON_NEVER, &receiver));
    OK(dragon_stream_send(sender, "first", 5, 1, DRAGON_NEVER));
    OK(dragon_stream_send(sender, "second", 6, 2, DRAGON_TRY));
    OK(dragon_stream_send(sender, NULL, 0, 3, DRAGON_TRY));
    OK(dragon_stream_poll(receiver, DRAGON_TRY, &chunk));
    TRUE(chunk == 1);
    OK(dragon_stream_receive(receiver, DRAGON_NEVER, &message));
    TRUE(message.length == 5 && message.hint == 1 && memcmp(message.data, "first", 5) == 0);
    OK(dragon_message_release(&message));
    OK(dragon_stream_receive_into(receiver, buffer, 4, DRAGON_NEVER, &length, &argument, &last));
    TRUE(length == 4 && argument == 2 && last == 0);
    OK(dragon_stream_receive_into(receiver, buffer, 4, DRAGON_NEVER, &length, NULL, &last));
    TRUE(length == 2 && last == 1 && memcmp(buffer, "nd", 2) == 0);
    OK(dragon_stream_sender_finish(sender, DRAGON_TRY));
    OK(dragon_stream_sender_close(sender));
    OK(dragon_stream_receive(receiver, DRAGON_NEVER, &message));
    TRUE(message.length == 0 && message.hint == 3);
    OK(dragon_message_release(&message));
    OK(dragon_stream_poll(receiver, DRAGON_NEVER, &chunk));
    TRUE(chunk == 0);
    EXPECT(DRAGON_END_OF_STREAM, dragon_stream_receive(receiver, DRAGON_NEVER, &message));
    OK(dragon_stream_receiver_close(receiver));

    /* A receiver that closes first, and a sender that breaks off. */
    OK(dragon_endpoint_open_send(endpoint, DRAGON_TRY, &sender));
    OK(dragon_endpoint_accept(endpoint, DRAGON_TRY, &receiver));
    OK(dragon_stream_receiver_close(receiver));
    EXPECT(DRAGON_PEER_CLOSED, dragon_stream_send(sender, "x", 1, 0, DRAGON_NEVER));
    OK(dragon_stream_sender_close(sender));
    OK(dragon_endpoint_open_send(endpoint, DRAGON_TRY, &sender));
    OK(dragon_endpoint_accept(endpoint, DRAGON_TRY, &receiver));
    OK(dragon_stream_sender_abort(&sender));
    TRUE(sender == NULL);
    EXPECT(DRAGON_PEER_DIED, dragon_stream_receive(receiver, DRAGON_NEVER, &message));
    OK(dragon_stream_receiver_close(receiver));
    OK(dragon_endpoint_close(endpoint));
    options.size = 1;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_endpoint_create(&options, &endpoint));
}

/* A forked child sends, the parent receives; then a child dies in the middle. */
static void processes(void)
{
    dragon_endpoint *endpoint = NULL;
    dragon_stream_receiver *receiver = NULL;
    dragon_message message;
    OK(dragon_endpoint_create(NULL, &endpoint));
    pid_t child = fork();
    if (child == 0) {
        dragon_stream_sender *sender = NULL;
        OK(dragon_endpoint_open_send(endpoint, DRAGON_NEVER, &sender));
        for (uint64_t n = 0; n < 1000; n++)
            OK(dragon_stream_send(sender, &n, sizeof n, n, DRAGON_NEVER));
        OK(dragon_stream_sender_close(sender));
        _exit(0);
    }
    OK(dragon_endpoint_accept(endpoint, DRAGON_NEVER, &receiver));
    for (uint64_t n = 0; n < 1000; n++) {
        OK(dragon_stream_receive(receiver, DRAGON_NEVER, &message));
        TRUE(message.hint == n && message.length == sizeof n && memcmp(message.data, &n, sizeof n) == 0);
        OK(dragon_message_release(&message));
    }
    EXPECT(DRAGON_END_OF_STREAM, dragon_stream_receive(receiver, DRAGON_NEVER, &message));
    OK(dragon_stream_receiver_close(receiver));
    reap(child);
    OK(dragon_endpoint_close(endpoint));
}

/* What is written to a stream goes through cat into another one. */
static void files(void)
{
    dragon_endpoint *endpoint = NULL;
    dragon_stream_sender *in = NULL, *out = NULL;
    dragon_stream_receiver *from = NULL, *result = NULL;
    dragon_pump *feeding = NULL, *draining = NULL;
    int32_t input = -1, output = -1;
    uint64_t fed = 0, drained = 0;
    OK(dragon_endpoint_create(NULL, &endpoint));
    OK(dragon_endpoint_open_send(endpoint, DRAGON_NEVER, &in));
    OK(dragon_endpoint_accept(endpoint, DRAGON_NEVER, &from));
    OK(dragon_endpoint_open_send(endpoint, DRAGON_NEVER, &out));
    OK(dragon_endpoint_accept(endpoint, DRAGON_NEVER, &result));
    OK(dragon_stream_receiver_into_fd(&from, &input, &feeding));
    OK(dragon_stream_sender_into_fd(&out, &output, &draining));
    TRUE(from == NULL && out == NULL);
    pid_t child = fork();
    if (child == 0) {
        TRUE(dup2(input, 0) == 0 && dup2(output, 1) == 1);
        execlp("cat", "cat", (char *)NULL);
        _exit(127);
    }
    close(input);
    close(output);
    OK(dragon_stream_send(in, "through cat", 11, 0, DRAGON_NEVER));
    OK(dragon_stream_sender_close(in));
    char got[32];
    size_t all = 0, length = 0;
    int32_t code;
    while ((code = dragon_stream_receive_into(result, got + all, sizeof got - all, DRAGON_NEVER, &length, NULL, NULL)) == DRAGON_OK)
        all += length;
    TRUE(code == DRAGON_END_OF_STREAM && all == 11 && memcmp(got, "through cat", 11) == 0);
    OK(dragon_pump_join(&feeding, &fed));
    OK(dragon_pump_join(&draining, &drained));
    TRUE(fed == 11 && drained == 11 && feeding == NULL);
    reap(child);
    OK(dragon_stream_receiver_close(result));
    OK(dragon_endpoint_close(endpoint));
}

int main(void)
{
    sets();
    chunks();
    processes();
    files();
    OK(dragon_detach());
    return 0;
}
