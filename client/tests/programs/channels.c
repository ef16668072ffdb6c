/* What channels can do beyond sending and receiving one by one, between processes. */
#include "check.h"

#include <sys/mman.h>
#include <sys/time.h>

#define MILLISECOND 1000000

static dragon_channel *channel;
static int told[2];
/* How many signals a child has had. */
static int *signals;

static dragon_channel_info info(void)
{
    dragon_channel_info found = {.size = sizeof found};
    OK(dragon_channel_get_info(channel, &found));
    return found;
}

static void drain(uint32_t count)
{
    while (count-- > 0) {
        dragon_message message;
        OK(dragon_channel_receive(channel, DRAGON_NEVER, &message));
        OK(dragon_message_release(&message));
    }
}

static void peeking(void)
{
    dragon_message first, again;
    char large[1000];
    channel = new_channel(4, 64);
    EXPECT(DRAGON_EMPTY, dragon_channel_peek(channel, DRAGON_TRY, &first));
    EXPECT(DRAGON_TIMEOUT, dragon_channel_peek(channel, MILLISECOND, &first));
    memset(large, 'p', sizeof large);
    dragon_bytes part = {large, sizeof large};
    OK(dragon_channel_send(channel, &part, 1, 9, DRAGON_TRY));
    OK(dragon_channel_peek(channel, DRAGON_TRY, &first));
    OK(dragon_channel_receive(channel, DRAGON_TRY, &again));
    TRUE(first.length == sizeof large && first.hint == 9 && first.data != again.data);
    TRUE(memcmp(first.data, again.data, sizeof large) == 0);
    OK(dragon_message_release(&again));
    /* A copy: it stays when the message has gone. */
    TRUE(memcmp(first.data, large, sizeof large) == 0);
    OK(dragon_message_release(&first));
    OK(dragon_channel_close(channel));
}

static void many_at_once(void)
{
    dragon_bytes outgoing[6] = {{"a", 1}, {"bb", 2}, {"", 0}, {"dddd", 4}, {"e", 1}, {"f", 1}};
    uint64_t hints[6] = {10, 11, 12, 13, 14, 15};
    dragon_message incoming[6];
    char large[5000] = "large";
    size_t count = 99;
    channel = new_channel(4, 64);
    EXPECT(DRAGON_EMPTY, dragon_channel_receive_many(channel, DRAGON_TRY, incoming, 6, &count));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_channel_receive_many(channel, DRAGON_TRY, incoming, 0, &count));
    OK(dragon_channel_send_many(channel, outgoing, hints, 6, DRAGON_TRY, &count));
    TRUE(count == 4);
    EXPECT(DRAGON_FULL, dragon_channel_send_many(channel, outgoing + 4, hints + 4, 2, DRAGON_TRY, &count));
    OK(dragon_channel_receive_many(channel, DRAGON_TRY, incoming, 3, &count));
    TRUE(count == 3);
    for (size_t i = 0; i < count; i++) {
        TRUE(incoming[i].length == outgoing[i].length && incoming[i].hint == hints[i]);
        TRUE(memcmp(incoming[i].data, outgoing[i].data, incoming[i].length) == 0);
        OK(dragon_message_release(&incoming[i]));
    }
    /* Without hints, and one by reference in the middle. */
    outgoing[0] = (dragon_bytes){large, sizeof large};
    OK(dragon_channel_send_many(channel, outgoing, NULL, 2, DRAGON_TRY, &count));
    TRUE(count == 2);
    OK(dragon_channel_receive_many(channel, DRAGON_NEVER, incoming, 6, &count));
    TRUE(count == 3 && incoming[0].hint == 13 && incoming[1].hint == 0 && incoming[1].length == sizeof large);
    TRUE(memcmp(incoming[1].data, large, sizeof large) == 0);
    for (size_t i = 0; i < count; i++)
        OK(dragon_message_release(&incoming[i]));
    OK(dragon_channel_send_many(channel, NULL, NULL, 0, DRAGON_TRY, &count));
    TRUE(count == 0);
    OK(dragon_channel_close(channel));
}

static void into_memory(void)
{
    char buffer[8];
    dragon_received received;
    channel = new_channel(4, 64);
    EXPECT(DRAGON_EMPTY, dragon_channel_receive_into(channel, buffer, sizeof buffer, DRAGON_TRY, &received));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_channel_receive_into(channel, NULL, 8, DRAGON_TRY, &received));
    send_text(channel, "eight...", 1);
    send_text(channel, "nine.....", 2);
    OK(dragon_channel_receive_into(channel, buffer, sizeof buffer, DRAGON_TRY, &received));
    TRUE(received.length == 8 && received.hint == 1 && received.traced == 0 && memcmp(buffer, "eight...", 8) == 0);
    EXPECT(DRAGON_TOO_LARGE, dragon_channel_receive_into(channel, buffer, sizeof buffer, DRAGON_TRY, &received));
    TRUE(strstr(dragon_last_error(), "9 bytes") != NULL);
    expect_text(channel, "nine.....", 2);
    OK(dragon_channel_close(channel));
}

static void receive_when_told(void)
{
    char byte;
    TRUE(read(told[0], &byte, 1) == 1);
    expect_text(channel, "confirm", 3);
}

static void count_signals(int number)
{
    (void)number;
    __atomic_fetch_add(signals, 1, __ATOMIC_RELAXED);
}

/* What was sent is not sent again: the wait for its receipt outlives signals. */
static void confirmed_through_signals(void)
{
    dragon_bytes part = {"once", 4};
    dragon_send_options options = {.size = sizeof options, .returns = DRAGON_RETURN_RECEIVED};
    struct sigaction action = {.sa_handler = count_signals};
    struct itimerval often = {.it_interval = {.tv_usec = 5000}, .it_value = {.tv_usec = 5000}};
    TRUE(info().messages == 0);
    TRUE(sigaction(SIGALRM, &action, NULL) == 0);
    TRUE(setitimer(ITIMER_REAL, &often, NULL) == 0);
    OK(dragon_channel_send_with(channel, &part, 1, &options, DRAGON_NEVER));
}

static void receipts_and_traces(void)
{
    uint8_t id[16] = "0123456789abcde", got[16];
    dragon_bytes parts[] = {{"con", 3}, {"firm", 4}};
    dragon_send_options options = {.size = sizeof options, .hint = 3, .returns = DRAGON_RETURN_RECEIVED};
    dragon_message message;
    dragon_received received;
    char buffer[8];
    int32_t traced = 9;
    channel = new_channel(4, 64);
    options.size++;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_channel_send_with(channel, parts, 2, &options, DRAGON_NEVER));
    TRUE(strstr(dragon_last_error(), "sizeof(dragon_send_options)") != NULL);
    options.size--;
    options.returns = 4;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_channel_send_with(channel, parts, 2, &options, DRAGON_NEVER));
    TRUE(strstr(dragon_last_error(), "DRAGON_RETURN_RECEIVED") != NULL);
    options.returns = DRAGON_RETURN_RECEIVED;

    /* No receipt in time: the message is there all the same. */
    EXPECT(DRAGON_TIMEOUT, dragon_channel_send_with(channel, parts, 2, &options, MILLISECOND));
    expect_text(channel, "confirm", 3);
    pid_t receiver = child_that(receive_when_told);
    TRUE(write(told[1], "x", 1) == 1);
    OK(dragon_channel_send_with(channel, parts, 2, &options, DRAGON_NEVER));
    TRUE(info().messages == 0);
    reap(receiver);

    pid_t sender = child_that(confirmed_through_signals);
    UNTIL(info().watchers == 1 || has_ended(sender));
    int before = __atomic_load_n(signals, __ATOMIC_RELAXED);
    UNTIL(__atomic_load_n(signals, __ATOMIC_RELAXED) >= before + 3 || has_ended(sender));
    expect_text(channel, "once", 0);
    reap(sender);
    TRUE(info().messages == 0);

    for (int32_t returns = DRAGON_RETURN_DEPOSITED; returns <= DRAGON_RETURN_BUFFERED; returns++) {
        options.returns = returns;
        OK(dragon_channel_send_with(channel, parts, 2, &options, DRAGON_TRY));
        expect_text(channel, "confirm", 3);
    }
    options.trace = id;
    OK(dragon_channel_send_with(channel, parts, 2, &options, DRAGON_TRY));
    OK(dragon_channel_send_with(channel, parts, 2, &options, DRAGON_TRY));
    send_text(channel, "no trace", 0);
    OK(dragon_channel_receive(channel, DRAGON_TRY, &message));
    OK(dragon_message_trace(&message, got, &traced));
    TRUE(traced == 1 && memcmp(got, id, 16) == 0);
    OK(dragon_message_release(&message));
    OK(dragon_channel_receive_into(channel, buffer, sizeof buffer, DRAGON_TRY, &received));
    TRUE(received.traced == 1 && memcmp(received.trace, id, 16) == 0);
    OK(dragon_channel_receive(channel, DRAGON_TRY, &message));
    OK(dragon_message_trace(&message, got, &traced));
    TRUE(traced == 0);
    OK(dragon_message_release(&message));
    OK(dragon_message_trace(&message, got, &traced));
    TRUE(traced == 0);
    OK(dragon_channel_close(channel));
}

static void await_room(void)
{
    uint64_t count = 99;
    OK(dragon_channel_poll_for(channel, DRAGON_POLL_WRITABLE, DRAGON_NEVER, &count));
    TRUE(count < 2);
}

static void await_nothing(void)
{
    uint64_t count = 99;
    OK(dragon_channel_poll_for(channel, DRAGON_POLL_EMPTY, DRAGON_NEVER, &count));
    TRUE(count == 0);
}

static void await_the_end(void)
{
    OK(dragon_channel_poll_for(channel, DRAGON_POLL_CLOSED, DRAGON_NEVER, NULL));
}

static void await_a_message(void)
{
    dragon_message message;
    OK(dragon_channel_receive(channel, DRAGON_NEVER, &message));
    OK(dragon_message_release(&message));
}

static void states(void)
{
    uint64_t count = 99;
    channel = new_channel(2, 64);
    OK(dragon_channel_poll_for(channel, DRAGON_POLL_EMPTY, DRAGON_TRY, &count));
    OK(dragon_channel_poll_for(channel, DRAGON_POLL_WRITABLE, DRAGON_TRY, NULL));
    EXPECT(DRAGON_EMPTY, dragon_channel_poll_for(channel, DRAGON_POLL_READABLE, DRAGON_TRY, &count));
    EXPECT(DRAGON_EMPTY, dragon_channel_poll_for(channel, DRAGON_POLL_FULL, DRAGON_TRY, &count));
    EXPECT(DRAGON_TIMEOUT, dragon_channel_poll_for(channel, DRAGON_POLL_CLOSED, MILLISECOND, &count));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_channel_poll_for(channel, 5, DRAGON_TRY, &count));
    TRUE(strstr(dragon_last_error(), "DRAGON_POLL_CLOSED") != NULL);
    send_text(channel, "1", 1);
    send_text(channel, "2", 2);
    OK(dragon_channel_poll_for(channel, DRAGON_POLL_FULL, DRAGON_TRY, &count));
    TRUE(count == 2);

    /* A sleeper for a state is killed; the others are woken all the same. */
    pid_t victim = child_that(await_nothing), room = child_that(await_room), nothing = child_that(await_nothing);
    UNTIL(info().watchers + info().senders_waiting == 3);
    kill_child(victim);
    drain(1);
    reap(room);
    drain(1);
    reap(nothing);

    pid_t receiver = child_that(await_a_message);
    UNTIL(info().receivers_waiting == 1);
    dragon_channel_info found = info();
    TRUE(found.messages == 0 && found.capacity == 2 && found.block == 64 && found.bytes >= 128);
    TRUE(found.segments == 1 && found.grows == 0);
    send_text(channel, "3", 3);
    reap(receiver);
    found.size = 0;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_channel_get_info(channel, &found));

    pid_t end = child_that(await_the_end);
    UNTIL(info().watchers == 1);
    OK(dragon_channel_destroy(channel));
    reap(end);
    OK(dragon_channel_poll_for(channel, DRAGON_POLL_CLOSED, DRAGON_TRY, NULL));
    EXPECT(DRAGON_DESTROYED, dragon_channel_poll_for(channel, DRAGON_POLL_EMPTY, DRAGON_TRY, NULL));
    OK(dragon_channel_close(channel));
}

static void on_signal(int number)
{
    (void)number;
}

/* Signals end a sleep, but not the wait of a handle that only spins. */
static void spin_through_signals(void)
{
    dragon_message message;
    struct sigaction action = {.sa_handler = on_signal};
    struct itimerval often = {.it_interval = {.tv_usec = 5000}, .it_value = {.tv_usec = 5000}};
    TRUE(info().messages == 0); /* attached before the first signal, which could interrupt that too */
    TRUE(sigaction(SIGALRM, &action, NULL) == 0);
    TRUE(setitimer(ITIMER_REAL, &often, NULL) == 0);
    EXPECT(DRAGON_TIMEOUT, dragon_channel_receive(channel, 100 * MILLISECOND, &message));
    OK(dragon_channel_set_wait_mode(channel, DRAGON_WAIT_SLEEP));
    EXPECT(DRAGON_INTERRUPTED, dragon_channel_receive(channel, DRAGON_NEVER, &message));
}

static void children_wait_as_their_parent(void)
{
    channel = new_channel(2, 64);
    OK(dragon_channel_set_wait_mode(channel, DRAGON_WAIT_SPIN));
    reap(child_that(spin_through_signals));
    OK(dragon_channel_close(channel));
}

static void growing(void)
{
    dragon_channel_options options = {.size = sizeof options, .capacity = 2, .block = 64, .limit = 50};
    OK(dragon_channel_create(&options, &channel));
    for (uint64_t i = 0; i < 50; i++)
        send_text(channel, "more", i);
    dragon_bytes one = {"x", 1};
    EXPECT(DRAGON_FULL, dragon_channel_send(channel, &one, 1, 0, DRAGON_TRY));
    TRUE(strstr(dragon_last_error(), "50 of 50") != NULL);
    dragon_channel_info found = info();
    TRUE(found.messages == 50 && found.capacity == 50 && found.grows == 1 && found.segments > 1);
    for (uint64_t i = 0; i < 50; i++)
        expect_text(channel, "more", i);
    OK(dragon_channel_close(channel));
    options.limit = 1;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_channel_create(&options, &channel));
}

int main(void)
{
    alarm(300);
    TRUE(pipe(told) == 0);
    signals = mmap(NULL, sizeof *signals, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    TRUE(signals != MAP_FAILED);
    peeking();
    many_at_once();
    into_memory();
    receipts_and_traces();
    states();
    children_wait_as_their_parent();
    growing();
    OK(dragon_detach());
    return 0;
}
