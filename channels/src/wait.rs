//! Waiting for a change: spin a little where that can help, then sleep on a futex; and waking, which costs nothing while
//! nobody sleeps.
//!
//! Who waits counts itself in, reads the sequence, looks again, and sleeps while the sequence stays. Who changes something
//! looks whether anybody is counted in, and only then raises the sequence and wakes. Between each one's write and its look
//! at the other's lies a SeqCst fence, so at least one of them sees what the other wrote (Dekker's argument): either the
//! waiter sees the change, or the changer sees the waiter.
//!
//! One change wakes one sleeper. A sleeper that was woken in vain (another sender's cell in front of the change was not yet
//! published), that took only the first of several messages, or whose time was up, *passes on*: when it leaves and there is
//! still something to be had, it wakes the next.

use dragon_shmem::control::NodeWords;
use dragon_shmem::sync::{AtomicU32, Ordering, fence, spin_loop};
use dragon_shmem::thread::Intent;
use dragon_shmem::{Deadline, WaitResult, clock};

/// What a watcher counts among the waiters. It waits for a state of the object that others may not care for, and takes
/// nothing; since a wake-up that it got in another's place would be lost, each change wakes all when there is one.
const WATCHER: u32 = 1 << 16;

/// In the sequence word: how many wake-ups there were since a waiter looked last.
const COMING: u32 = 0xf;
/// What a change adds to the sequence word.
const CHANGE: u32 = COMING + 1;
/// Most of them that one word counts.
const MOST_COMING: u32 = 8;

/// The word that sleepers sleep on, and how many there are.
#[derive(Debug, Default)]
#[repr(C)]
pub struct WaitWord {
    /// `sequence 28 | coming 4`.
    sequence: AtomicU32,
    waiters: AtomicU32,
    #[cfg(loom)]
    model: model::Futex,
}

// SAFETY: repr(C), only atomics.
#[cfg(not(loom))]
unsafe impl dragon_shmem::region::Shared for WaitWord {}

impl WaitWord {
    /// Wakes up to `count` sleepers if there are any, and all when watchers are among them. The change that they wait for,
    /// and a SeqCst fence, come before.
    #[inline]
    pub fn wake_sleepers(&self, count: u32) {
        let waiters = self.waiters.load(Ordering::Relaxed);
        if waiters != 0 {
            self.wake(if waiters < WATCHER { count } else { u32::MAX });
        }
    }

    /// As [`WaitWord::wake_sleepers`] with one, for changes that come faster than sleepers wake up: wakes nobody after
    /// `enough` wake-ups since a waiter looked last. One of those that were woken has still to look then: it finds this
    /// change too, and passes on.
    #[inline]
    pub fn wake_one_of(&self, enough: impl FnOnce() -> u32) {
        let waiters = self.waiters.load(Ordering::Relaxed);
        if waiters != 0 {
            self.wake_unless_coming(waiters, enough());
        }
    }

    #[cold]
    fn wake_unless_coming(&self, waiters: u32, enough: u32) {
        if waiters >= WATCHER {
            return self.wake(u32::MAX);
        }
        let coming = self.sequence.load(Ordering::Relaxed) & COMING;
        if coming >= enough.clamp(1, MOST_COMING) {
            return;
        }
        // Release as in `wake`.
        self.sequence.fetch_add(CHANGE + 1, Ordering::Release);
        self.futex_wake(1);
    }

    /// What a waiter does before it looks: from now on nobody relies on wake-ups from before. Returns the word.
    fn begin_look(&self) -> u32 {
        // Acquire pairs with the Release of `wake`.
        let word = self.sequence.load(Ordering::Acquire);
        if word & COMING == 0 {
            return word;
        }
        self.sequence.fetch_and(!COMING, Ordering::AcqRel) & !COMING
    }

    /// How many sleep here, or are about to: those that want something of which each gets one, and watchers.
    #[must_use]
    pub fn waiters(&self) -> (u32, u32) {
        let waiters = self.waiters.load(Ordering::Relaxed);
        (waiters % WATCHER, waiters / WATCHER)
    }

    /// Raises the sequence and wakes up to `count` sleepers.
    #[cold]
    pub fn wake(&self, count: u32) {
        // Release: who sees the new sequence sees the change.
        if count == u32::MAX {
            // Some may have died before they looked; all who live look now.
            let _ = self
                .sequence
                .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| {
                    Some((word & !COMING).wrapping_add(CHANGE))
                });
        } else {
            self.sequence.fetch_add(CHANGE, Ordering::Release);
        }
        self.futex_wake(count);
    }

    /// Counts a dead sleeper out.
    pub fn forget_waiter(&self) {
        self.forget(1);
    }

    /// Counts a dead watcher out.
    pub fn forget_watcher(&self) {
        self.forget(WATCHER);
    }

    fn forget(&self, count: u32) {
        let _ = self
            .waiters
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| {
                n.checked_sub(count)
            });
    }

    /// Empties the word of a new object.
    pub fn reset(&self) {
        self.sequence.store(0, Ordering::Relaxed);
        self.waiters.store(0, Ordering::Relaxed);
    }

    #[cfg(not(loom))]
    fn futex_wait(&self, sequence: u32, deadline: Deadline) -> WaitResult {
        dragon_shmem::futex::wait(&self.sequence, sequence, deadline)
    }

    #[cfg(not(loom))]
    fn futex_wake(&self, count: u32) {
        dragon_shmem::futex::wake(&self.sequence, count);
    }

    #[cfg(loom)]
    fn futex_wait(&self, sequence: u32, _: Deadline) -> WaitResult {
        self.model.wait(&self.sequence, sequence)
    }

    #[cfg(loom)]
    fn futex_wake(&self, count: u32) {
        self.model.wake(count);
    }
}

/// Why a wait ended without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The deadline passed.
    Timeout,
    /// A signal handler ran.
    Interrupted,
}

impl From<Ended> for crate::Error {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Timeout => Self::Timeout,
            Ended::Interrupted => Self::Interrupted,
        }
    }
}

/// Marks in the step of an intent: in which counts a thread is, should it die.
pub mod mark {
    /// Among the waiters of the object's first wait word (channels: readable).
    pub const FIRST: u32 = 1;
    /// Among the waiters of a channel's second wait word (writable).
    pub const SECOND: u32 = 2;
    /// Among the node's spinners.
    pub const SPINNER: u32 = 4;
    /// With one of the other places: as a watcher.
    pub const WATCHER: u32 = 8;
    /// Among the waiters of a channel's third wait word (those that wait for its end).
    pub const THIRD: u32 = 16;
}

/// Sleeps until `attempt` gives something. `counted` is told when the caller is among the waiters and when it is not any
/// more; `more` says whether there is still something for another waiter when this one leaves.
///
/// # Errors
/// What `attempt` fails with, or the end of the wait.
pub fn sleep_until<T, E: From<Ended>>(
    word: &WaitWord,
    deadline: Deadline,
    counted: impl Fn(bool),
    attempt: impl FnMut() -> Result<Option<T>, E>,
    more: impl FnOnce() -> bool,
) -> Result<T, E> {
    sleep(word, 1, deadline, counted, attempt, more)
}

/// As [`sleep_until`], for a state that the caller does not change and that others may not wait for: a watcher.
///
/// # Errors
/// As [`sleep_until`].
pub fn watch_until<T, E: From<Ended>>(
    word: &WaitWord,
    deadline: Deadline,
    counted: impl Fn(bool),
    attempt: impl FnMut() -> Result<Option<T>, E>,
) -> Result<T, E> {
    sleep(word, WATCHER, deadline, counted, attempt, || false)
}

fn sleep<T, E: From<Ended>>(
    word: &WaitWord,
    count: u32,
    deadline: Deadline,
    counted: impl Fn(bool),
    mut attempt: impl FnMut() -> Result<Option<T>, E>,
    more: impl FnOnce() -> bool,
) -> Result<T, E> {
    // The mark comes after the count and goes before it: who dies in between leaves a count too high, which costs a system
    // call now and then, and never one too low, which would cost a wake-up.
    word.waiters.fetch_add(count, Ordering::SeqCst);
    counted(true);
    let result = loop {
        // Before the attempt: a change after it makes the sleep short. Before the fence: whoever wakes nobody since others are
        // on their way sees the word of before, so its change is seen by the attempt.
        let sequence = word.begin_look();
        // Pairs with the fence between a change and the look at the waiters.
        fence(Ordering::SeqCst);
        match attempt() {
            Ok(None) => {}
            Ok(Some(value)) => break Ok(value),
            Err(error) => break Err(error),
        }
        match word.futex_wait(sequence, deadline) {
            WaitResult::Woken | WaitResult::Changed => {}
            WaitResult::TimedOut => break Err(Ended::Timeout.into()),
            WaitResult::Interrupted => break Err(Ended::Interrupted.into()),
        }
    };
    counted(false);
    word.waiters.fetch_sub(count, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    if word.waiters.load(Ordering::Relaxed) != 0 && more() {
        word.wake_sleepers(1);
    }
    result
}

/// How a handle waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum WaitMode {
    /// Spin as long as that has paid lately, then sleep. Never spins while as many threads of the node spin as it has CPUs.
    #[default]
    Adaptive = 0,
    /// Never sleep: the shortest time to an answer, at the price of a CPU. A signal handler does not end such a wait.
    Spin = 1,
    /// Sleep at once: a wait costs a system call and nothing else.
    Sleep = 2,
}

/// How a handle waits, and what it has learnt about spinning: how long it is worth while.
#[derive(Debug)]
pub struct Spin {
    mode: AtomicU32,
    /// Nanoseconds for the next wait.
    budget: AtomicU32,
    /// How often in a row spinning was in vain.
    misses: AtomicU32,
}

/// Rounds of a wait without a record.
const BRIEF_ROUNDS: u32 = 64;
/// Rounds that cost less than telling others that one spins.
const FREE_ROUNDS: u32 = 1024;
/// Rounds between two looks at the clock.
const ROUNDS_PER_LOOK: u32 = 32;
/// Rounds of [`WaitMode::Spin`] after which others get the CPU, when there are more spinners than CPUs.
const ROUNDS_PER_TURN: u32 = 1024;
const LEAST: u32 = 2_000;
/// About what a wake-up across cores costs: spinning longer than that cannot pay.
const MOST: u32 = 50_000;
/// After so many misses most waits go to sleep at once.
const PATIENCE: u32 = 4;
/// One in so many of them tries again.
const PROBE: u32 = 16;
/// Nanoseconds for such a try: the other side may be asleep as well, and answers only after a wake-up across cores and its
/// work. A shorter try would always fail, and two that could spin for each other would go on waking each other.
const PROBE_BUDGET: u32 = 2 * MOST;
/// Nanoseconds after which a spinner lets others have the CPU now and then: the one it waits for may need this very one.
const BEFORE_YIELD: u64 = 4_000;

impl Default for Spin {
    fn default() -> Self {
        Self {
            mode: AtomicU32::new(WaitMode::Adaptive as u32),
            budget: AtomicU32::new(LEAST),
            misses: AtomicU32::new(0),
        }
    }
}

impl Spin {
    /// How the handle waits.
    #[inline]
    #[must_use]
    pub fn mode(&self) -> WaitMode {
        match self.mode.load(Ordering::Relaxed) {
            1 => WaitMode::Spin,
            2 => WaitMode::Sleep,
            _ => WaitMode::Adaptive,
        }
    }

    /// Sets how the handle waits; it counts for waits that begin from now on.
    pub fn set_mode(&self, mode: WaitMode) {
        self.mode.store(mode as u32, Ordering::Relaxed);
    }

    /// Spins until `ready`, for about as long as a spinning partner takes to answer: for waits without a record. What such a
    /// wait needs beforehand, and what its end costs, counts as much as the answer.
    #[inline]
    pub(crate) fn briefly(&self, words: &NodeWords, mut ready: impl FnMut() -> bool) -> bool {
        let cpus = words.cpus.load(Ordering::Relaxed);
        if self.mode() == WaitMode::Sleep
            || cpus < 2
            || self.misses.load(Ordering::Relaxed) != 0
            || words.spinners.load(Ordering::Relaxed) >= cpus
        {
            return false;
        }
        for _ in 0..BRIEF_ROUNDS {
            if ready() {
                return true;
            }
            spin_loop();
        }
        false
    }

    /// Spins until `ready`, or until it is not worth while any more, but not beyond the deadline. True when `ready`.
    #[inline]
    pub fn until(
        &self,
        words: &NodeWords,
        intent: &Intent,
        deadline: Deadline,
        mut ready: impl FnMut() -> bool,
    ) -> bool {
        let cpus = words.cpus.load(Ordering::Relaxed);
        let misses = self.misses.load(Ordering::Relaxed);
        match self.mode() {
            WaitMode::Sleep => return false,
            WaitMode::Spin => return until_deadline(words, intent, cpus, deadline, ready),
            WaitMode::Adaptive => {}
        }
        if cpus < 2
            || misses >= PATIENCE && !misses.is_multiple_of(PROBE)
            || words.spinners.load(Ordering::Relaxed) >= cpus
        {
            self.misses.store(misses.wrapping_add(1), Ordering::Relaxed);
            return false;
        }
        for round in 0..FREE_ROUNDS {
            if ready() {
                if misses != 0 {
                    self.misses.store(0, Ordering::Relaxed);
                }
                return true;
            }
            if round % ROUNDS_PER_LOOK == ROUNDS_PER_LOOK - 1 && deadline.passed() {
                return false;
            }
            spin_loop();
        }
        self.longer(words, intent, cpus, deadline, ready)
    }

    #[cold]
    fn longer(
        &self,
        words: &NodeWords,
        intent: &Intent,
        cpus: u32,
        deadline: Deadline,
        mut ready: impl FnMut() -> bool,
    ) -> bool {
        let budget = self.budget.load(Ordering::Relaxed);
        let probing = self.misses.load(Ordering::Relaxed) >= PATIENCE;
        let limit = if probing { PROBE_BUDGET } else { budget };
        let mut found = false;
        counted_as_spinner(words, intent, |spinners| {
            if spinners >= cpus {
                return;
            }
            let start = clock::now();
            let mut end = start.saturating_add(limit.into());
            let mut turn = start + BEFORE_YIELD;
            if let Deadline::At(time) = deadline {
                end = end.min(time);
            }
            loop {
                let now = clock::now();
                if found || now >= end {
                    break;
                }
                if now >= turn {
                    rustix::thread::sched_yield();
                    turn = now + BEFORE_YIELD;
                }
                found = (0..ROUNDS_PER_LOOK).any(|_| {
                    let found = ready();
                    if !found {
                        spin_loop();
                    }
                    found
                });
            }
        });
        if found {
            self.misses.store(0, Ordering::Relaxed);
            self.budget
                .store(budget.saturating_mul(2).min(MOST), Ordering::Relaxed);
        } else {
            self.misses.fetch_add(1, Ordering::Relaxed);
            self.budget
                .store((budget / 2).max(LEAST), Ordering::Relaxed);
        }
        found
    }
}

/// [`WaitMode::Spin`]: until `ready` or the deadline.
fn until_deadline(
    words: &NodeWords,
    intent: &Intent,
    cpus: u32,
    deadline: Deadline,
    mut ready: impl FnMut() -> bool,
) -> bool {
    for _ in 0..FREE_ROUNDS {
        if ready() {
            return true;
        }
        spin_loop();
    }
    let mut found = false;
    counted_as_spinner(words, intent, |_| {
        let mut round = 0_u32;
        while !found {
            found = ready();
            round = round.wrapping_add(1);
            if round.is_multiple_of(ROUNDS_PER_LOOK) && deadline.passed() {
                break;
            }
            if round.is_multiple_of(ROUNDS_PER_TURN)
                && words.spinners.load(Ordering::Relaxed) >= cpus.max(1)
            {
                // Whoever would end this wait may need the CPU.
                rustix::thread::sched_yield();
            }
            spin_loop();
        }
    });
    found
}

/// Runs `spin` with the number of others that spin, while this thread is counted as one.
fn counted_as_spinner(words: &NodeWords, intent: &Intent, spin: impl FnOnce(u32)) {
    // The mark comes before the count and goes after it, the other way round than for sleepers: who dies in between makes
    // the count too low, which is mended when it reaches 0; a count too high would stay, and forbid spinning.
    intent.step(mark::SPINNER);
    spin(words.spinners.fetch_add(1, Ordering::AcqRel));
    forget_spinner(words);
    intent.step(0);
}

/// A SeqCst fence right after an atomic read-modify-write. On x86 the locked instruction of that was a full fence already;
/// only the compiler has to be told.
#[inline]
pub(crate) fn fence_after_rmw() {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(any(not(target_arch = "x86_64"), loom))]
    fence(Ordering::SeqCst);
}

/// Counts a spinner out.
pub(crate) fn forget_spinner(words: &NodeWords) {
    let _ = words
        .spinners
        .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| n.checked_sub(1));
}

#[cfg(loom)]
pub(crate) mod model;
