//! Tests of conditions and of the seats under them.

use crate::seat::{Seat, Seats, SeatsHead};

/// Seats outside shared memory.
#[derive(Debug)]
struct Alone {
    head: SeatsHead,
    seats: Vec<Seat>,
}

impl Alone {
    fn new(count: usize) -> Self {
        Self {
            head: SeatsHead::default(),
            seats: (0..count).map(|_| Seat::default()).collect(),
        }
    }

    fn seats(&self) -> Seats<'_> {
        Seats {
            head: &self.head,
            seats: &self.seats,
        }
    }
}

#[cfg(not(loom))]
mod plain {
    use crate::seat::{ALL, Look};
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::local::LocalNode;
    use crate::{Acquired, Condition, ConditionOptions, Deadline, Error, Lock, local};

    #[test]
    fn the_longest_waiter_is_woken_first() {
        let alone = Alone::new(4);
        let seats = alone.seats();
        let [a, b, c] = [1, 2, 3].map(|slot| seats.sit(slot).unwrap());
        assert_eq!(seats.withdraw(a).unwrap(), None);
        let d = seats.sit(4).unwrap();
        assert_eq!(d, a, "the lowest free seat");
        assert_eq!(seats.give(seats.limit(), 1, 7, |_| {}), 1);
        assert_eq!(seats.look(b).unwrap(), Look::Given(7));
        let limit = seats.limit();
        let late = seats.sit(5).unwrap();
        assert_eq!(seats.give(limit, ALL, 8, |_| {}), 2, "not who came later");
        for seat in [c, d] {
            assert_eq!(seats.look(seat).unwrap(), Look::Given(8));
        }
        assert_eq!(seats.look(late).unwrap(), Look::Waiting);
        assert!(seats.sit(6).is_err(), "all seats are taken");
        assert_eq!(seats.withdraw(b).unwrap(), Some(7));
        seats.stand(b).unwrap();
        assert_eq!(seats.sit(6).unwrap(), b);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Sit(u32),
        Give(u32),
        Leave(usize),
        Die(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..4_u32).prop_map(Step::Sit),
            (1..4_u32).prop_map(Step::Give),
            (0..8_usize).prop_map(Step::Leave),
            (1..4_u32).prop_map(Step::Die),
        ]
    }

    proptest! {
        #[test]
        fn seats_against_an_oracle(steps in proptest::collection::vec(step(), 1..100)) {
            let alone = Alone::new(6);
            let seats = alone.seats();
            // Seat, slot, woken; in the order in which they came.
            let mut oracle: Vec<(u32, u32, bool)> = Vec::new();
            for step in steps {
                match step {
                    Step::Sit(slot) => match seats.sit(slot) {
                        Ok(seat) => oracle.push((seat, slot, false)),
                        Err(_) => prop_assert_eq!(oracle.len(), 6),
                    },
                    Step::Give(count) => {
                        let mut left = count;
                        for place in oracle.iter_mut().filter(|place| !place.2) {
                            if left > 0 {
                                place.2 = true;
                                left -= 1;
                            }
                        }
                        prop_assert_eq!(seats.give(seats.limit(), count, 1, |_| {}), count - left);
                    }
                    Step::Leave(n) => if n < oracle.len() {
                        let (seat, _, woken) = oracle.remove(n);
                        prop_assert_eq!(seats.withdraw(seat).unwrap(), woken.then_some(1));
                        if woken {
                            seats.stand(seat).unwrap();
                        }
                    },
                    Step::Die(slot) => {
                        let lost = oracle.iter().filter(|place| place.1 == slot && place.2).count();
                        oracle.retain(|place| place.1 != slot);
                        let mut given = 0;
                        seats.recover(slot, |_| given += 1);
                        prop_assert_eq!(given, lost);
                    }
                }
                let waiting = oracle.iter().filter(|place| !place.2).count();
                prop_assert_eq!(seats.waiting() as usize, waiting);
                prop_assert_eq!(seats.is_given(1), oracle.iter().any(|place| place.2));
            }
        }
    }

    fn pair() -> (Lock, Condition) {
        let member = local::member().unwrap();
        (
            Lock::create_recursive(&member, 0).unwrap(),
            Condition::create(&member, &ConditionOptions::default()).unwrap(),
        )
    }

    #[test]
    fn a_wait_needs_the_lock_and_gives_it_back_whatever_happens() {
        let (lock, condition) = pair();
        let not_owner = Err(Error::NotOwner(lock.id()));
        assert_eq!(condition.wait(&lock, Deadline::Never), not_owner);
        lock.acquire(Deadline::Now).unwrap();
        lock.acquire(Deadline::Now).unwrap();
        assert_eq!(condition.wait(&lock, Deadline::Now), Err(Error::Empty));
        let soon = Deadline::after(1_000_000);
        assert_eq!(condition.wait(&lock, soon), Err(Error::Timeout));
        thread::scope(|scope| {
            let destroyer = scope.spawn(|| {
                lock.acquire(Deadline::Never).unwrap();
                condition.destroy().unwrap();
                lock.release(false).unwrap();
            });
            let waited = condition.wait(&lock, Deadline::Never);
            assert!(matches!(waited, Err(Error::Destroyed(_))), "{waited:?}");
            destroyer.join().unwrap();
        });
        lock.release(false).unwrap();
        lock.release(false).unwrap();
        let deep = lock.release(false);
        assert_eq!(
            deep,
            Err(Error::NotOwner(lock.id())),
            "its depth is what it was"
        );
    }

    /// A bounded buffer with two conditions: everything arrives, and everybody ends.
    /// The lock's owner dies while one waits whose time is up then.
    #[test]
    fn who_takes_the_lock_from_the_dead_is_told() {
        let node = LocalNode::new().unwrap();
        let [ours, theirs] = [(); 2].map(|()| node.member().unwrap());
        let lock = Lock::create(&ours, 0).unwrap();
        let condition = Condition::create(&ours, &ConditionOptions::default()).unwrap();
        let their_lock = Lock::attach(&theirs, &lock.descriptor(), false).unwrap();
        let died = Acquired { owner_died: true };
        for through_signals in [false, true] {
            lock.acquire(Deadline::Now).unwrap();
            let wait = || {
                let soon = Deadline::after(1_000_000);
                if !through_signals {
                    return (condition.wait(&lock, soon), None);
                }
                let mut taken = None;
                let woken = condition.wait_through_signals(&lock, soon, || true, &mut taken);
                (woken, taken)
            };
            thread::scope(|scope| {
                let waiter = scope.spawn(wait);
                their_lock.acquire(Deadline::Never).unwrap();
                while condition.waiting().unwrap() != 0 {
                    thread::yield_now();
                }
                // What recovery does to the lock of a dead process.
                let entry = ours.control().entry(lock.id()).unwrap();
                let words = crate::lock::words(entry);
                assert!(words.hand_on(theirs.slot().index));
                words.wake_everyone(true);
                let told = match through_signals {
                    false => (Ok(died), None),
                    true => (Err(Error::Timeout), Some(died)),
                };
                assert_eq!(waiter.join().unwrap(), told);
            });
            lock.release(false).unwrap();
        }
    }

    #[test]
    fn whether_the_caller_has_the_lock_is_told() {
        let (lock, condition) = pair();
        let mut taken = None;
        let mut wait = || {
            let woken = condition.wait_through_signals(&lock, Deadline::Now, || true, &mut taken);
            (woken, taken)
        };
        let owner_died = false;
        let not_owner = Err(Error::NotOwner(lock.id()));
        assert_eq!(wait(), (not_owner, None));
        lock.acquire(Deadline::Now).unwrap();
        let has_it = Some(Acquired { owner_died });
        assert_eq!(wait(), (Err(Error::Empty), has_it));
        condition.destroy().unwrap();
        let destroyed = Err(Error::Destroyed(condition.id()));
        assert_eq!(wait(), (destroyed, has_it), "it was never given up");
        lock.release(false).unwrap();
    }

    #[test]
    fn producers_and_consumers() {
        const EACH: u32 = 300;
        let member = local::member().unwrap();
        let lock = Lock::create(&member, 0).unwrap();
        let options = ConditionOptions::default();
        let filled = Condition::create(&member, &options).unwrap();
        let emptied = Condition::create(&member, &options).unwrap();
        let (level, taken) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for n in 0..6 {
                let (lock, filled, emptied) = (&lock, &filled, &emptied);
                let (level, taken) = (&level, &taken);
                scope.spawn(move || {
                    for _ in 0..EACH {
                        lock_for(lock, || {
                            if n % 2 == 0 {
                                while level.load(Ordering::Relaxed) == 2 {
                                    emptied.wait(lock, Deadline::Never).unwrap();
                                }
                                level.fetch_add(1, Ordering::Relaxed);
                                filled.notify_one().unwrap();
                            } else {
                                while level.load(Ordering::Relaxed) == 0 {
                                    filled.wait(lock, Deadline::Never).unwrap();
                                }
                                level.fetch_sub(1, Ordering::Relaxed);
                                taken.fetch_add(1, Ordering::Relaxed);
                                emptied.notify_one().unwrap();
                            }
                        });
                    }
                });
            }
        });
        assert_eq!(taken.into_inner(), 3 * EACH);
    }

    fn lock_for(lock: &Lock, work: impl FnOnce()) {
        lock.acquire(Deadline::Never).unwrap();
        work();
        lock.release(false).unwrap();
    }

    #[test]
    fn notify_all_wakes_all_who_wait() {
        let (lock, condition) = pair();
        let (go, waiting) = (AtomicBool::new(false), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| {
                    lock_for(&lock, || {
                        waiting.fetch_add(1, Ordering::Relaxed);
                        while !go.load(Ordering::Relaxed) {
                            condition.wait(&lock, Deadline::Never).unwrap();
                        }
                    });
                });
            }
            loop {
                lock.acquire(Deadline::Never).unwrap();
                if waiting.load(Ordering::Relaxed) == 5 {
                    break;
                }
                lock.release(false).unwrap();
                thread::yield_now();
            }
            go.store(true, Ordering::Relaxed);
            assert_eq!(condition.notify_all().unwrap(), 5);
            lock.release(false).unwrap();
        });
        assert_eq!(condition.notify_one().unwrap(), 0);
    }
}

#[cfg(loom)]
mod models {
    use dragon_shmem::Deadline;
    use dragon_shmem::sync::{AtomicU32, AtomicU64, Ordering};
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::lock::{Who, Words};
    use crate::sleep::FutexWord;

    fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(model);
    }

    struct Shared {
        word: FutexWord,
        holder: AtomicU64,
        alone: Alone,
        ready: AtomicU32,
    }

    impl Shared {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                word: FutexWord::default(),
                holder: AtomicU64::new(0),
                alone: Alone::new(2),
                ready: AtomicU32::new(0),
            })
        }

        fn lock(&self, slot: u32) {
            let words = self.words();
            if words.try_acquire(who(slot), 0).is_none() {
                words
                    .sleep_for(who(slot), Deadline::Never, || Ok(()))
                    .unwrap();
            }
        }

        fn unlock(&self, slot: u32) {
            self.words().release(who(slot), false);
        }

        fn words(&self) -> Words<'_> {
            Words {
                word: &self.word,
                holder: &self.holder,
                recursive: false,
            }
        }

        /// As `Condition::wait`.
        fn wait(&self, slot: u32) {
            let seats = self.alone.seats();
            let seat = seats.sit(slot).unwrap();
            self.unlock(slot);
            seats.wait(seat, Deadline::Never, || Ok(())).unwrap();
            self.lock(slot);
            seats.stand(seat).unwrap();
        }

        fn take(&self, slot: u32) {
            self.lock(slot);
            while self.ready.load(Ordering::Relaxed) == 0 {
                self.wait(slot);
            }
            let left = self.ready.load(Ordering::Relaxed) - 1;
            self.ready.store(left, Ordering::Relaxed);
            self.unlock(slot);
        }

        fn give(&self, slot: u32, count: u32) {
            self.lock(slot);
            let ready = self.ready.load(Ordering::Relaxed);
            self.ready.store(ready + 1, Ordering::Relaxed);
            let seats = self.alone.seats();
            seats.give(seats.limit(), count, 1, |_| {});
            self.unlock(slot);
        }
    }

    const fn who(slot: u32) -> Who {
        Who { slot, thread: 0 }
    }

    /// One waits, one notifies: between giving the lock up and going to sleep nothing is lost.
    #[test]
    fn loom_a_conditions_wake_up_is_not_lost() {
        check(3, || {
            let shared = Shared::new();
            let theirs = Arc::clone(&shared);
            let taker = thread::spawn(move || theirs.take(1));
            shared.give(2, 1);
            taker.join().unwrap();
        });
    }

    /// Two wait, and each notification is for one of them.
    #[test]
    fn loom_each_notification_wakes_another() {
        check(2, || {
            let shared = Shared::new();
            let takers = [1, 2].map(|slot| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.take(slot))
            });
            shared.give(3, 1);
            shared.give(3, 1);
            for taker in takers {
                taker.join().unwrap();
            }
        });
    }

    /// The one who was notified dies with its notification; recovery passes it on.
    #[test]
    fn loom_a_dead_waiters_notification_is_passed_on() {
        check(3, || {
            let shared = Shared::new();
            let seats = shared.alone.seats();
            // The dead one came first.
            seats.sit(9).unwrap();
            let theirs = Arc::clone(&shared);
            let taker = thread::spawn(move || theirs.take(1));
            shared.give(2, 1);
            let mut left = 0;
            seats.recover(9, |_| left += 1);
            seats.give(seats.limit(), left, 1, |_| {});
            taker.join().unwrap();
        });
    }

    /// One is notified by a process that dies before it wakes the sleeper.
    #[test]
    fn loom_who_was_notified_by_a_dead_process_is_woken() {
        check(3, || {
            let alone = Arc::new(Alone::new(2));
            let seat = alone.seats().sit(1).unwrap();
            let theirs = Arc::clone(&alone);
            let waiter =
                thread::spawn(move || theirs.seats().wait(seat, Deadline::Never, || Ok(())));
            alone.seats().give_and_die(seat);
            alone.seats().recover(9, |_| {});
            waiter.join().unwrap().unwrap();
        });
    }

    /// Whoever is told that its time is up while it is being woken has one or the other, and the notification is not gone.
    #[test]
    fn loom_a_wait_that_is_given_up_keeps_what_it_was_given() {
        check(3, || {
            let alone = Arc::new(Alone::new(2));
            let seat = alone.seats().sit(1).unwrap();
            let theirs = Arc::clone(&alone);
            let giver = thread::spawn(move || {
                let seats = theirs.seats();
                seats.give(seats.limit(), 1, 5, |_| {})
            });
            let kept = alone.seats().withdraw(seat).unwrap();
            assert_eq!(giver.join().unwrap(), u32::from(kept.is_some()));
        });
    }

    /// Destroying ends a wait that has begun or begins.
    #[test]
    fn loom_the_end_wakes_who_sits() {
        check(3, || {
            let alone = Arc::new(Alone::new(1));
            let gone = Arc::new(AtomicU32::new(0));
            let (theirs, ended) = (Arc::clone(&alone), Arc::clone(&gone));
            let waiter = thread::spawn(move || {
                let seats = theirs.seats();
                let seat = seats.sit(1).unwrap();
                let alive = || match ended.load(Ordering::Acquire) {
                    0 => Ok(()),
                    _ => Err(crate::Error::Timeout),
                };
                seats.wait(seat, Deadline::Never, alive)
            });
            gone.store(1, Ordering::Release);
            alone.seats().end();
            assert!(waiter.join().unwrap().is_err());
            assert_eq!(alone.seats().waiting(), 0);
        });
    }
}
