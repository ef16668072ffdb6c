/*
 * Stands in for libpbs.so.0 where PBS is not installed, so that the way into a job of PBS is tried in every run of the
 * tests: its task manager, tm(3), as far as Dragon uses it. All nodes are this machine, and a task is a process that is the
 * leader of a session, as under PBS. The tests on an installed PBS say whether PBS does the same.
 *
 * DRAGON_TEST_TM_NODES: how many nodes there are. DRAGON_TEST_TM_HOLD: a FIFO that the task on the last one opens first.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SUCCESS = 0, ESYSTEM = 17000, EBADENVIRONMENT = 17005, ENOTFOUND = 17006 };
/* Numbers of nodes are anything but 0, 1, 2. */
enum { FIRST_NODE = 100 };

static int events;
/* It has started or listed tasks: others it does not know, as under PBS. */
static int knows;
/* What the event that is asked for last is about. */
static pid_t awaited;
static int *status_of_it;

static int nodes(void)
{
    const char *number = getenv("DRAGON_TEST_TM_NODES");
    return number ? atoi(number) : 0;
}

int tm_init(void *info, void *roots)
{
    (void)info;
    memset(roots, 0, 5 * sizeof(int));
    return getenv("PBS_TASKNUM") ? SUCCESS : EBADENVIRONMENT;
}

int tm_nodeinfo(int **list, int *count)
{
    *count = nodes();
    *list = malloc((*count + 1) * sizeof(int));
    for (int node = 0; node < *count; node++)
        (*list)[node] = FIRST_NODE + node;
    return SUCCESS;
}

static void task(char **words, char **environment, int last)
{
    sigset_t blocked;
    const char *hold = getenv("DRAGON_TEST_TM_HOLD");

    setsid();
    if (hold && last)
        (void)!open(hold, O_RDONLY | O_CLOEXEC);
    /* Hooks of a site leave these blocked in what they start. */
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGCHLD);
    sigaddset(&blocked, SIGHUP);
    sigprocmask(SIG_SETMASK, &blocked, NULL);
    execve(words[0], words, environment);
    _exit(254);
}

int tm_spawn(int count, char **words, char **environment, int node, unsigned *id, int *event)
{
    pid_t pid;

    if (count < 1 || node < FIRST_NODE || node >= FIRST_NODE + nodes())
        return ENOTFOUND;
    pid = fork();
    if (pid == 0)
        task(words, environment, node == FIRST_NODE + nodes() - 1);
    if (pid < 0)
        return ESYSTEM;
    knows = 1;
    *id = pid;
    *event = ++events;
    return SUCCESS;
}

int tm_obit(unsigned id, int *status, int *event)
{
    awaited = id;
    status_of_it = status;
    *event = ++events;
    return SUCCESS;
}

int tm_taskinfo(int node, unsigned *tasks, int room, int *count, int *event)
{
    (void)tasks;
    (void)room;
    if (node < FIRST_NODE || node >= FIRST_NODE + nodes())
        return ENOTFOUND;
    knows = 1;
    *count = 0;
    *event = ++events;
    return SUCCESS;
}

int tm_kill(unsigned id, int number, int *event)
{
    *event = ++events;
    return knows && kill(id, number) == 0 ? SUCCESS : ENOTFOUND;
}

int tm_poll(int wanted, int *event, int wait, int *error)
{
    int status;

    (void)wanted;
    (void)wait;
    *event = events;
    *error = SUCCESS;
    if (!awaited)
        return SUCCESS;
    if (waitpid(awaited, &status, 0) != awaited)
        return ESYSTEM;
    *status_of_it = WIFSIGNALED(status) ? 256 + WTERMSIG(status) : WEXITSTATUS(status);
    awaited = 0;
    return SUCCESS;
}

int tm_finalize(void)
{
    return SUCCESS;
}
