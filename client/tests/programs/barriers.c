/* Barriers between processes: rounds, numbers, everything that breaks one, and what makes it whole. */
#include "check.h"

#include <sys/mman.h>

#define MILLISECOND 1000000
#define MOST_ROUNDS 200

static dragon_barrier *barrier;
static int many = MOST_ROUNDS;
/* By round, which numbers were given. */
static uint32_t *given;

static uint32_t waiting(void)
{
    uint32_t count = 99;
    OK(dragon_barrier_state(barrier, NULL, &count, NULL));
    return count;
}

static int32_t broken(void)
{
    int32_t why = 99;
    OK(dragon_barrier_state(barrier, NULL, NULL, &why));
    return why;
}

static void pass_many(void)
{
    uint32_t number = 99;
    for (int i = 0; i < many; i++) {
        OK(dragon_barrier_wait(barrier, DRAGON_NEVER, &number));
        TRUE(number < 3);
        __atomic_fetch_add(&given[i], 1u << 8 * number, __ATOMIC_RELAXED);
    }
}

/* In each round, every party gets another number. */
static void rounds(void)
{
    memset(given, 0, MOST_ROUNDS * sizeof *given);
    pid_t children[] = {child_that(pass_many), child_that(pass_many)};
    pass_many();
    reap(children[0]);
    reap(children[1]);
    for (int i = 0; i < many; i++)
        TRUE(given[i] == 0x010101);
}

static void wait_modes(void)
{
    /* More parties than CPUs that never sleep pass slowly. */
    many = 5;
    for (int32_t mode = DRAGON_WAIT_ADAPTIVE; mode <= DRAGON_WAIT_SLEEP; mode++) {
        OK(dragon_barrier_set_wait_mode(barrier, mode));
        rounds();
    }
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_barrier_set_wait_mode(barrier, 3));
    TRUE(strstr(dragon_last_error(), "DRAGON_WAIT_SLEEP") != NULL);
    OK(dragon_barrier_set_wait_mode(barrier, DRAGON_WAIT_ADAPTIVE));
    many = MOST_ROUNDS;
}

static void find_it_broken(const char *why)
{
    EXPECT(DRAGON_BROKEN, dragon_barrier_wait(barrier, DRAGON_NEVER, NULL));
    if (strstr(dragon_last_error(), why) == NULL) {
        fprintf(stderr, "%s\n", dragon_last_error());
        exit(1);
    }
}

static void find_it_aborted(void)
{
    find_it_broken("aborted");
}

static void find_a_dead_party(void)
{
    find_it_broken("died");
}

static void find_a_late_party(void)
{
    find_it_broken("time");
}

static void find_it_reset(void)
{
    find_it_broken("reset");
}

static void wait_for_ever(void)
{
    OK(dragon_barrier_wait(barrier, DRAGON_NEVER, NULL));
}

static void make_whole(void)
{
    OK(dragon_barrier_reset(barrier));
    UNTIL(waiting() == 0);
    TRUE(broken() == DRAGON_WHOLE);
    rounds();
}

static void breaking(void)
{
    pid_t waiter = child_that(find_it_aborted);
    UNTIL(waiting() == 1);
    OK(dragon_barrier_abort(barrier));
    reap(waiter);
    TRUE(broken() == DRAGON_BROKEN_BY_ABORT);
    find_it_broken("aborted");
    make_whole();

    waiter = child_that(find_a_late_party);
    UNTIL(waiting() == 1);
    EXPECT(DRAGON_TIMEOUT, dragon_barrier_wait(barrier, MILLISECOND, NULL));
    reap(waiter);
    TRUE(broken() == DRAGON_BROKEN_BY_TIMEOUT);
    make_whole();

    waiter = child_that(find_it_reset);
    UNTIL(waiting() == 1);
    OK(dragon_barrier_reset(barrier));
    reap(waiter);
    TRUE(broken() == DRAGON_WHOLE);

    waiter = child_that(find_a_dead_party);
    UNTIL(waiting() == 1);
    pid_t victim = child_that(wait_for_ever);
    UNTIL(waiting() == 2);
    kill_child(victim);
    reap(waiter);
    TRUE(broken() == DRAGON_BROKEN_BY_DEATH);
    find_it_broken("died");
    make_whole();

    /* A party that dies after all were there breaks nothing. */
    victim = child_that(wait_for_ever);
    UNTIL(waiting() == 1);
    stop_child(victim);
    waiter = child_that(wait_for_ever);
    OK(dragon_barrier_wait(barrier, DRAGON_NEVER, NULL));
    reap(waiter);
    kill_child(victim);
    rounds();
    TRUE(broken() == DRAGON_WHOLE);
}

static void find_it_destroyed(void)
{
    EXPECT(DRAGON_DESTROYED, dragon_barrier_wait(barrier, DRAGON_NEVER, NULL));
}

static int32_t go_on(void *context)
{
    (void)context;
    return 0;
}

/* One party acts, and the others go on when it has. */
static void actions(void)
{
    dragon_barrier *alone = NULL;
    uint32_t number = 99;
    uint64_t turn = 0;
    int32_t why = 99;
    OK(dragon_barrier_create_with_action(1, 0, &alone));
    OK(dragon_barrier_wait_through_signals(alone, DRAGON_NEVER, go_on, NULL, &number, &turn));
    TRUE(number == 0 && turn != 0);
    OK(dragon_barrier_acted(alone, turn, 1));
    EXPECT(DRAGON_NOT_OWNER, dragon_barrier_acted(alone, turn, 1));
    OK(dragon_barrier_wait(alone, DRAGON_NEVER, NULL));
    OK(dragon_barrier_wait_through_signals(alone, DRAGON_NEVER, go_on, NULL, NULL, &turn));
    OK(dragon_barrier_acted(alone, turn, 0));
    OK(dragon_barrier_state(alone, NULL, NULL, &why));
    TRUE(why == DRAGON_BROKEN_BY_ABORT);
    EXPECT(DRAGON_BROKEN, dragon_barrier_wait_through_signals(alone, DRAGON_NEVER, go_on, NULL, NULL, &turn));
    OK(dragon_barrier_close(alone));
}

int main(void)
{
    dragon_barrier *none = NULL;
    dragon_event *event = NULL;
    uint32_t parties = 0;
    uint8_t descriptor[32];
    alarm(300);
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_barrier_create(0, 0, &none));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_barrier_create(65537, 0, &none));
    TRUE(strstr(dragon_last_error(), "65537") != NULL && strstr(dragon_last_error(), "65536") != NULL);
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_barrier_create(1, 0, NULL));
    given = mmap(NULL, MOST_ROUNDS * sizeof *given, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    TRUE(given != MAP_FAILED);
    OK(dragon_barrier_create(3, 0, &barrier));
    OK(dragon_barrier_state(barrier, &parties, NULL, NULL));
    TRUE(parties == 3 && waiting() == 0 && broken() == DRAGON_WHOLE);
    EXPECT(DRAGON_EMPTY, dragon_barrier_wait(barrier, DRAGON_TRY, NULL));
    TRUE(waiting() == 0 && broken() == DRAGON_WHOLE);
    wait_modes();
    breaking();
    actions();

    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_barrier_wait(barrier, -2, NULL));
    EXPECT(DRAGON_INVALID_ARGUMENT, dragon_barrier_abort(NULL));
    TRUE(strstr(dragon_last_error(), "barrier") != NULL);
    OK(dragon_barrier_descriptor(barrier, descriptor));
    EXPECT(DRAGON_WRONG_KIND, dragon_event_attach(descriptor, 0, &event));
    OK(dragon_barrier_export(barrier, descriptor));
    OK(dragon_barrier_attach(descriptor, 1, &none));
    pid_t waiter = child_that(find_it_destroyed);
    UNTIL(waiting() == 1);
    OK(dragon_barrier_destroy(none));
    reap(waiter);
    EXPECT(DRAGON_DESTROYED, dragon_barrier_state(barrier, NULL, NULL, NULL));
    OK(dragon_barrier_close(none));
    OK(dragon_barrier_close(barrier));
    OK(dragon_detach());
    return 0;
}
