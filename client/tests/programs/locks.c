/* Locks, conditions and semaphores between processes: who holds what, and what a killed process leaves. */
#include "check.h"

#include <pthread.h>
#include <sys/mman.h>

#define MILLISECOND 1000000

static int told[2];
static dragon_lock *lock;
static dragon_condition *condition;
static dragon_semaphore *semaphore;
/* What the lock protects. */
static struct {
    int32_t there, taken;
} *shared;

/* Recursive locks */

static void take_twice_and_die(void)
{
    OK(dragon_lock_acquire(lock, DRAGON_NEVER, NULL));
    OK(dragon_lock_acquire(lock, DRAGON_TRY, NULL));
    tell_and_wait(told);
}

static void *not_the_owner(void *ignored)
{
    (void)ignored;
    EXPECT(DRAGON_EMPTY, dragon_lock_acquire(lock, DRAGON_TRY, NULL));
    EXPECT(DRAGON_TIMEOUT, dragon_lock_acquire(lock, MILLISECOND, NULL));
    EXPECT(DRAGON_NOT_OWNER, dragon_lock_release(lock, 1));
    return NULL;
}

static void not_the_owner_either(void)
{
    not_the_owner(NULL);
}

static void recursive_locks(void)
{
    pthread_t thread;
    int32_t died = 7;
    OK(dragon_lock_create_recursive(0, &lock));
    OK(dragon_lock_acquire(lock, DRAGON_NEVER, &died));
    TRUE(died == 0);
    OK(dragon_lock_acquire(lock, DRAGON_TRY, NULL));
    OK(dragon_lock_release(lock, 0));
    TRUE(pthread_create(&thread, NULL, not_the_owner, NULL) == 0 && pthread_join(thread, NULL) == 0);
    reap(child_that(not_the_owner_either));
    OK(dragon_lock_release(lock, 0));
    EXPECT(DRAGON_NOT_OWNER, dragon_lock_release(lock, 0));

    /* A plain lock is its process's. A killed owner's lock comes to the next one, whatever its depth. */
    kill_when_told(child_that(take_twice_and_die), told);
    OK(dragon_lock_acquire(lock, DRAGON_NEVER, &died));
    TRUE(died == 1);
    OK(dragon_lock_release(lock, 0));
    EXPECT(DRAGON_NOT_OWNER, dragon_lock_release(lock, 0));
    OK(dragon_lock_acquire(lock, DRAGON_TRY, &died));
    TRUE(died == 0);
    OK(dragon_lock_release(lock, 0));
    OK(dragon_lock_close(lock));
}

/* Conditions */

static void take_one(void)
{
    OK(dragon_lock_acquire(lock, DRAGON_NEVER, NULL));
    while (shared->there == 0)
        OK(dragon_condition_wait(condition, lock, DRAGON_NEVER, NULL));
    shared->there--;
    shared->taken++;
    OK(dragon_lock_release(lock, 0));
}

static void wait_twice_deep(void)
{
    OK(dragon_lock_acquire(lock, DRAGON_NEVER, NULL));
    take_one();
    OK(dragon_lock_release(lock, 0));
    EXPECT(DRAGON_NOT_OWNER, dragon_lock_release(lock, 0));
}

static uint32_t waiting(void)
{
    uint32_t count = 99;
    OK(dragon_condition_waiting(condition, &count));
    return count;
}

static void bring(int32_t count)
{
    uint32_t woken = 99;
    OK(dragon_lock_acquire(lock, DRAGON_NEVER, NULL));
    shared->there += count;
    OK(dragon_condition_notify(condition, (uint32_t)count, &woken));
    TRUE(woken == (uint32_t)count);
    OK(dragon_lock_release(lock, 0));
}

static void wait_and_die(void)
{
    OK(dragon_lock_acquire(lock, DRAGON_NEVER, NULL));
    OK(dragon_condition_wait(condition, lock, DRAGON_NEVER, NULL));
}

static void hold_and_die(void)
{
    OK(dragon_lock_acquire(lock, DRAGON_NEVER, NULL));
    tell_and_wait(told);
}

static void find_a_dead_owner(void)
{
    int32_t died = 7;
    OK(dragon_lock_acquire(lock, DRAGON_NEVER, NULL));
    OK(dragon_condition_wait(condition, lock, DRAGON_NEVER, &died));
    TRUE(died == 1);
    OK(dragon_lock_release(lock, 0));
}

static void find_it_destroyed(void)
{
    OK(dragon_lock_acquire(lock, DRAGON_NEVER, NULL));
    EXPECT(DRAGON_DESTROYED, dragon_condition_wait(condition, lock, DRAGON_NEVER, NULL));
    OK(dragon_lock_release(lock, 0)); /* it has the lock again */
}

static void do_nothing(int number)
{
    (void)number;
}

static void signal_the_parent(void)
{
    for (;;) {
        TRUE(kill(getppid(), SIGUSR1) == 0);
        usleep(5000);
    }
}

/* Goes on as often as *context says. */
static int32_t hear(void *context)
{
    int *left = context;
    return --*left < 0;
}

/* A wait goes on until on_signal ends it, and has the lock then. */
static void signals_in_a_wait(void)
{
    struct sigaction action = {.sa_handler = do_nothing};
    int left = 2;
    OK(dragon_condition_create(0, 0, &condition));
    OK(dragon_lock_create(0, &lock));
    TRUE(sigaction(SIGUSR1, &action, NULL) == 0);
    pid_t child = child_that(signal_the_parent);
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_condition_wait_through_signals(condition, lock, DRAGON_NEVER, NULL, &left, NULL));
    EXPECT(DRAGON_NOT_OWNER, dragon_condition_wait_through_signals(condition, lock, DRAGON_NEVER, hear, &left, NULL));
    OK(dragon_lock_acquire(lock, DRAGON_NEVER, NULL));
    EXPECT(DRAGON_INTERRUPTED, dragon_condition_wait_through_signals(condition, lock, DRAGON_NEVER, hear, &left, NULL));
    TRUE(left < 0 && waiting() == 0);
    OK(dragon_lock_release(lock, 0));
    kill_child(child);
    OK(dragon_lock_close(lock));
    OK(dragon_condition_close(condition));
}

static void conditions(int recursive)
{
    dragon_condition *none = NULL;
    pid_t children[3];
    uint32_t woken = 99;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_condition_create(65537, 0, &none));
    TRUE(strstr(dragon_last_error(), "65537") != NULL);
    OK(dragon_condition_create(3, 0, &condition));
    OK(recursive ? dragon_lock_create_recursive(0, &lock) : dragon_lock_create(0, &lock));
    EXPECT(DRAGON_NOT_OWNER, dragon_condition_wait(condition, lock, DRAGON_NEVER, NULL));
    OK(dragon_condition_notify(condition, DRAGON_ALL, &woken));
    TRUE(woken == 0 && waiting() == 0);

    shared->there = shared->taken = 0;
    for (int i = 0; i < 3; i++)
        children[i] = child_that(recursive ? wait_twice_deep : take_one);
    UNTIL(waiting() == 3);
    OK(dragon_lock_acquire(lock, DRAGON_NEVER, NULL));
    EXPECT(DRAGON_TABLE_FULL, dragon_condition_wait(condition, lock, DRAGON_NEVER, NULL));
    TRUE(strstr(dragon_last_error(), "3") != NULL);
    OK(dragon_lock_release(lock, 0));
    bring(1);
    UNTIL(waiting() == 2);
    bring(2);
    for (int i = 0; i < 3; i++)
        reap(children[i]);
    TRUE(shared->there == 0 && shared->taken == 3 && waiting() == 0);

    /* Nobody notifies: the lock is the caller's again. */
    OK(dragon_lock_acquire(lock, DRAGON_NEVER, NULL));
    EXPECT(DRAGON_EMPTY, dragon_condition_wait(condition, lock, DRAGON_TRY, NULL));
    EXPECT(DRAGON_TIMEOUT, dragon_condition_wait(condition, lock, MILLISECOND, NULL));
    OK(dragon_lock_release(lock, 0));

    /* A waiter that is killed takes no notification away. */
    pid_t victim = child_that(wait_and_die);
    UNTIL(waiting() == 1);
    children[0] = child_that(take_one);
    UNTIL(waiting() == 2);
    kill_child(victim);
    UNTIL(waiting() == 1);
    bring(1);
    reap(children[0]);
    TRUE(shared->taken == 4);

    /* Nor does one that was notified already. */
    victim = child_that(wait_and_die);
    UNTIL(waiting() == 1);
    children[0] = child_that(take_one);
    UNTIL(waiting() == 2);
    stop_child(victim);
    bring(1);
    kill_child(victim);
    reap(children[0]);
    TRUE(shared->taken == 5);

    /* The lock's owner is killed: a waiter that takes the lock again is told. */
    children[0] = child_that(find_a_dead_owner);
    UNTIL(waiting() == 1);
    victim = child_that(hold_and_die);
    char byte;
    TRUE(read(told[0], &byte, 1) == 1);
    OK(dragon_condition_notify(condition, 1, NULL));
    kill_child(victim);
    reap(children[0]);

    children[0] = child_that(find_it_destroyed);
    UNTIL(waiting() == 1);
    OK(dragon_condition_destroy(condition));
    reap(children[0]);
    OK(dragon_condition_close(condition));
    OK(dragon_lock_close(lock));
}

/* Semaphores */

static void take_two_and_die(void)
{
    OK(dragon_semaphore_acquire_many(semaphore, 2, DRAGON_NEVER));
    tell_and_wait(told);
}

static void take_all(void)
{
    OK(dragon_semaphore_acquire_many(semaphore, 3, DRAGON_NEVER));
    OK(dragon_semaphore_release(semaphore, 3));
}

static void give_what_it_has_not(void)
{
    EXPECT(DRAGON_NOT_OWNER, dragon_semaphore_release(semaphore, 1));
}

static void await_zero(void)
{
    TRUE(write(told[1], "x", 1) == 1);
    OK(dragon_semaphore_wait_zero(semaphore, DRAGON_NEVER));
}

static uint32_t value(void)
{
    uint32_t units = 99;
    OK(dragon_semaphore_value(semaphore, &units));
    return units;
}

static void owned_units(void)
{
    dragon_semaphore *none = NULL;
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_semaphore_create_owned(4, 3, 0, &none));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_semaphore_create_owned(0, 65472, 0, &none));
    TRUE(strstr(dragon_last_error(), "65471") != NULL);
    OK(dragon_semaphore_create_owned(3, 3, 0, &semaphore));
    EXPECT(DRAGON_NOT_OWNER, dragon_semaphore_release(semaphore, 1));
    OK(dragon_semaphore_acquire(semaphore, DRAGON_NEVER));
    reap(child_that(give_what_it_has_not));
    kill_when_told(child_that(take_two_and_die), told);
    /* What the dead process had comes back, and nothing else. */
    OK(dragon_semaphore_acquire_many(semaphore, 2, DRAGON_NEVER));
    TRUE(value() == 0);
    EXPECT(DRAGON_EMPTY, dragon_semaphore_acquire(semaphore, DRAGON_TRY));
    pid_t waiter = child_that(take_all);
    OK(dragon_semaphore_release(semaphore, 3));
    reap(waiter);
    TRUE(value() == 3);
    OK(dragon_semaphore_close(semaphore));
}

static void several_units(void)
{
    OK(dragon_semaphore_create(3, 5, 0, &semaphore));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_semaphore_acquire_many(semaphore, 0, DRAGON_TRY));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_semaphore_acquire_many(semaphore, 6, DRAGON_TRY));
    EXPECT(DRAGON_EMPTY, dragon_semaphore_acquire_many(semaphore, 4, DRAGON_TRY));
    EXPECT(DRAGON_TIMEOUT, dragon_semaphore_acquire_many(semaphore, 4, MILLISECOND));
    TRUE(value() == 3);
    EXPECT(DRAGON_EMPTY, dragon_semaphore_wait_zero(semaphore, DRAGON_TRY));
    pid_t waiter = child_that(await_zero);
    char byte;
    TRUE(read(told[0], &byte, 1) == 1);
    OK(dragon_semaphore_acquire_many(semaphore, 3, DRAGON_TRY));
    OK(dragon_semaphore_wait_zero(semaphore, DRAGON_TRY));
    reap(waiter);
    OK(dragon_semaphore_release(semaphore, 5));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_semaphore_release(semaphore, 1));
    TRUE(strstr(dragon_last_error(), "at most 5") != NULL);
    /* Without owners, a dead process's units are gone. */
    kill_when_told(child_that(take_two_and_die), told);
    TRUE(value() == 3);
    OK(dragon_semaphore_close(semaphore));
}

int main(void)
{
    alarm(300);
    TRUE(pipe(told) == 0);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    TRUE(shared != MAP_FAILED);
    recursive_locks();
    conditions(0);
    conditions(1);
    signals_in_a_wait();
    owned_units();
    several_units();
    OK(dragon_detach());
    return 0;
}
