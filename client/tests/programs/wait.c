/* Waits for ever in a receive, and says so before. */
#include "check.h"

#include <signal.h>

static void on_signal(int number)
{
    (void)number;
}

int main(int argc, char **argv)
{
    dragon_channel *channel = NULL;
    dragon_message message;
    (void)argv;
    channel = new_channel(1, 0);
    if (argc > 1) {
        /* A handler interrupts the wait; the alarm is for the thread that waits. */
        struct sigaction action = {.sa_handler = on_signal};
        TRUE(sigaction(SIGALRM, &action, NULL) == 0);
        alarm(1);
        EXPECT(DRAGON_INTERRUPTED, dragon_channel_receive(channel, DRAGON_NEVER, &message));
        return 0;
    }
    printf("waiting\n");
    fflush(stdout);
    dragon_channel_receive(channel, DRAGON_NEVER, &message);
    return 0;
}
