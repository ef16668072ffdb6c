/* What the programs of the client's tests share. */
#include <dragon.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXPECT(code, call)                                                                                   \
    do {                                                                                                     \
        int32_t got_ = (call);                                                                               \
        if (got_ != (code)) {                                                                                \
            fprintf(stderr, "line %d: %s gave %d: %s\n", __LINE__, #call, (int)got_, dragon_last_error());   \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)
#define OK(call) EXPECT(DRAGON_OK, call)
#define TRUE(what)                                                                                           \
    do {                                                                                                     \
        if (!(what)) {                                                                                       \
            fprintf(stderr, "line %d: %s does not hold\n", __LINE__, #what);                                 \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

static inline dragon_channel *new_channel(uint32_t capacity, uint32_t block)
{
    dragon_channel_options options = {.size = sizeof options, .capacity = capacity, .block = block};
    dragon_channel *channel = NULL;
    OK(dragon_channel_create(&options, &channel));
    return channel;
}

static inline void send_text(dragon_channel *channel, const char *text, uint64_t hint)
{
    dragon_bytes part = {text, strlen(text)};
    OK(dragon_channel_send(channel, &part, 1, hint, DRAGON_NEVER));
}

static inline void expect_text(dragon_channel *channel, const char *text, uint64_t hint)
{
    dragon_message message;
    OK(dragon_channel_receive(channel, DRAGON_NEVER, &message));
    TRUE(message.length == strlen(text) && memcmp(message.data, text, message.length) == 0);
    TRUE(message.hint == hint);
    OK(dragon_message_release(&message));
    OK(dragon_message_release(&message)); /* does nothing */
}

/* Waits for a child that must end well. */
static inline void reap(pid_t child)
{
    int status = 0;
    TRUE(waitpid(child, &status, 0) == child);
    TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
