/* What the programs of the client's tests share. */
#include <dragon.h>

#include <sched.h>
#include <signal.h>
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

/* Another process brings it about; the caller sets an alarm() that ends a program that waits in vain. */
#define UNTIL(what)                                                                                          \
    do {                                                                                                     \
        while (!(what))                                                                                      \
            sched_yield();                                                                                   \
    } while (0)

/* A child that does something with its parent's handles and ends well. */
static inline pid_t child_that(void (*does)(void))
{
    pid_t pid = fork();
    TRUE(pid >= 0);
    if (pid == 0) {
        does();
        exit(0);
    }
    return pid;
}

/* Whether a child has ended, which is still to be reaped. */
static inline int has_ended(pid_t pid)
{
    siginfo_t info = {0};
    TRUE(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0);
    return info.si_pid == pid;
}

/* Kills a child wherever it is. */
static inline void kill_child(pid_t pid)
{
    int status = 0;
    TRUE(kill(pid, SIGKILL) == 0);
    TRUE(waitpid(pid, &status, 0) == pid);
    TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* Stops a child wherever it is: what happens to it from now on, it does not notice. */
static inline void stop_child(pid_t pid)
{
    int status = 0;
    TRUE(kill(pid, SIGSTOP) == 0);
    TRUE(waitpid(pid, &status, WUNTRACED) == pid);
    TRUE(WIFSTOPPED(status));
}

/* Kills a child when it has written a byte to the pipe. */
static inline void kill_when_told(pid_t pid, const int told[2])
{
    char byte;
    TRUE(read(told[0], &byte, 1) == 1);
    kill_child(pid);
}

/* In such a child: tells, and waits for its end. */
static inline void tell_and_wait(const int told[2])
{
    TRUE(write(told[1], "x", 1) == 1);
    for (;;)
        pause();
}
