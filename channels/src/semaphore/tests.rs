//! Tests of a semaphore's words.

use super::owned::{Head, Record};
use super::*;

/// A semaphore outside shared memory.
#[derive(Debug, Default)]
struct Alone {
    word: AtomicU64,
    many: AtomicU64,
    units: WaitWord,
    zero: WaitWord,
    most: u32,
    head: Head,
    records: Vec<Record>,
}

impl Alone {
    fn new(value: u32, most: u32, records: usize) -> Self {
        Self {
            word: AtomicU64::new(value.into()),
            most,
            records: (0..records).map(|_| Record::default()).collect(),
            ..Self::default()
        }
    }

    fn words(&self) -> Words<'_> {
        let owned = Owned {
            word: &self.word,
            head: &self.head,
            records: &self.records,
        };
        Words {
            word: &self.word,
            many: &self.many,
            units: &self.units,
            zero: &self.zero,
            most: self.most,
            owned: (!self.records.is_empty()).then_some(owned),
        }
    }
}

#[cfg(not(loom))]
mod plain {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_taken_all_or_none() {
        let semaphore = Alone::new(3, 5, 0);
        let words = semaphore.words();
        assert_eq!(words.try_acquire(0, 4).unwrap(), None);
        assert_eq!(words.try_acquire(0, 2).unwrap(), Some(1));
        assert_eq!(words.give(5), Err(1));
        words.give(4).unwrap();
        assert_eq!(words.value(), 5);
        assert_eq!(words.zeros(), 0);
        assert_eq!(words.try_acquire(0, 5).unwrap(), Some(0));
        assert_eq!(words.zeros(), 1);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Take(u32, u32),
        Give(u32, u32),
        Die(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let who = 0..4_u32;
        prop_oneof![
            (who.clone(), 1..4_u32).prop_map(|(slot, units)| Step::Take(slot, units)),
            (who.clone(), 1..4_u32).prop_map(|(slot, units)| Step::Give(slot, units)),
            who.prop_map(Step::Die),
        ]
    }

    proptest! {
        #[test]
        fn owned_units_against_an_oracle(
            value in 0..6_u32,
            steps in proptest::collection::vec(step(), 1..80),
        ) {
            let semaphore = Alone::new(value, 6, 6 + 4);
            let words = semaphore.words();
            let owned = words.owned.unwrap();
            let mut oracle = value;
            let mut held: HashMap<u32, u32> = HashMap::new();
            for step in steps {
                match step {
                    Step::Take(slot, units) => {
                        let left = oracle.checked_sub(units);
                        prop_assert_eq!(words.try_acquire(slot, units).unwrap(), left);
                        if let Some(left) = left {
                            oracle = left;
                            *held.entry(slot).or_default() += units;
                        }
                    }
                    Step::Give(slot, units) => {
                        let has = held.entry(slot).or_default();
                        let can = *has >= units;
                        prop_assert_eq!(owned.give(slot, units).unwrap(), can);
                        if can {
                            *has -= units;
                            oracle += units;
                        }
                    }
                    Step::Die(slot) => {
                        let had = held.remove(&slot).unwrap_or(0);
                        prop_assert_eq!(owned.recover(slot), had);
                        oracle += had;
                    }
                }
                prop_assert_eq!(words.value(), oracle);
                for (slot, units) in &held {
                    prop_assert_eq!(owned.holds(*slot), *units != 0);
                }
            }
        }
    }

    /// Threads of several processes at once: no unit is lost or made.
    #[test]
    fn owned_units_are_kept_under_contention() {
        let semaphore = Alone::new(5, 5, 5 + 8);
        std::thread::scope(|scope| {
            for slot in 0..4 {
                let words = semaphore.words();
                scope.spawn(move || {
                    let owned = words.owned.unwrap();
                    for n in 0..20_000_u32 {
                        let units = 1 + n % 3;
                        if words.try_acquire(slot, units).unwrap().is_some() {
                            for _ in 1..units {
                                assert!(owned.give(slot, 1).unwrap());
                            }
                            if n % 5 == 0 {
                                assert_eq!(owned.recover(slot), 1);
                            } else {
                                assert!(owned.give(slot, 1).unwrap());
                            }
                        }
                    }
                    assert!(!owned.holds(slot));
                });
            }
        });
        assert_eq!(semaphore.words().value(), 5);
    }
}

#[cfg(loom)]
mod models {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::wait::sleep_until;

    fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(model);
    }

    impl Alone {
        fn acquire(&self, slot: u32, units: u32) {
            let words = self.words();
            if units > 1 {
                self.many.store(1, Ordering::SeqCst);
            }
            let take = || Ok::<_, Error>(words.try_acquire(slot, units)?.map(drop));
            let more = || words.value() != 0;
            if take().unwrap().is_none() {
                sleep_until(&self.units, Deadline::Never, |_| {}, take, more).unwrap();
            }
        }

        fn release(&self, units: u32) {
            let words = self.words();
            words.give(units).unwrap();
            words.wake(units);
        }

        fn wait_zero(&self, start: u32) {
            let words = self.words();
            let happened =
                || Ok::<_, Error>((words.value() == 0 || words.zeros() != start).then_some(()));
            if happened().unwrap().is_none() {
                let none = || false;
                sleep_until(&self.zero, Deadline::Never, |_| {}, happened, none).unwrap();
            }
        }
    }

    /// One waits for two units and one for one, and they come one by one: nobody sleeps on while there is enough.
    #[test]
    fn loom_a_semaphores_waiters_of_different_size() {
        check(2, || {
            let semaphore = Arc::new(Alone::new(0, 3, 0));
            let takers = [2, 1].map(|units| {
                let semaphore = Arc::clone(&semaphore);
                thread::spawn(move || semaphore.acquire(0, units))
            });
            semaphore.release(1);
            semaphore.release(2);
            for taker in takers {
                taker.join().unwrap();
            }
            assert_eq!(semaphore.words().value(), 0);
        });
    }

    /// A waiter for zero notices it, though the unit is given back at once.
    #[test]
    fn loom_a_semaphores_zero_is_noticed() {
        check(3, || {
            let semaphore = Arc::new(Alone::new(1, 1, 0));
            let theirs = Arc::clone(&semaphore);
            let start = semaphore.words().zeros();
            let taker = thread::spawn(move || {
                theirs.acquire(0, 1);
                theirs.release(1);
            });
            semaphore.wait_zero(start);
            taker.join().unwrap();
        });
    }

    fn takes_one(semaphore: &Alone, slot: u32) -> bool {
        semaphore.words().try_acquire(slot, 1).unwrap().is_some()
    }

    fn gives_one(semaphore: &Alone, slot: u32) {
        assert!(semaphore.words().owned.unwrap().give(slot, 1).unwrap());
    }

    /// Who has how many units, and how many are left.
    fn is_left(semaphore: &Alone, units: u32, holders: [bool; 2]) {
        let words = semaphore.words();
        let owned = words.owned.unwrap();
        assert_eq!(words.value(), units);
        assert_eq!([owned.holds(1), owned.holds(2)], holders);
    }

    /// Two processes want the only owned unit: whoever meets the other's change half-way finishes it.
    #[test]
    fn loom_an_owned_unit_is_taken_once() {
        check(3, || {
            let semaphore = Arc::new(Alone::new(1, 1, 2));
            let theirs = Arc::clone(&semaphore);
            let other = thread::spawn(move || takes_one(&theirs, 1));
            let mine = takes_one(&semaphore, 2);
            let theirs = other.join().unwrap();
            assert!(mine != theirs, "one of the two has it");
            is_left(&semaphore, 0, [theirs, mine]);
        });
    }

    /// One process gives its unit while another takes one: whoever meets the other's change half-way finishes it.
    #[test]
    fn loom_owned_units_are_given_and_taken() {
        check(3, || {
            let semaphore = Arc::new(Alone::new(1, 1, 2));
            assert!(takes_one(&semaphore, 1));
            let theirs = Arc::clone(&semaphore);
            let other = thread::spawn(move || gives_one(&theirs, 1));
            let mine = takes_one(&semaphore, 2);
            other.join().unwrap();
            is_left(&semaphore, u32::from(!mine), [false, mine]);
        });
    }

    /// Who helps may have been stopped while the record was given back and taken anew: he changes nothing of the new one.
    #[test]
    fn loom_who_helps_late_changes_no_later_step() {
        check(2, || {
            let semaphore = Arc::new(Alone::new(1, 1, 2));
            let theirs = Arc::clone(&semaphore);
            let other = thread::spawn(move || {
                if takes_one(&theirs, 1) {
                    gives_one(&theirs, 1);
                }
                takes_one(&theirs, 1)
            });
            let mine = takes_one(&semaphore, 2);
            let theirs = other.join().unwrap();
            is_left(&semaphore, u32::from(!mine && !theirs), [theirs, mine]);
        });
    }

    /// Both take and give: nothing is left, and nobody has anything.
    #[test]
    fn loom_owned_units_are_kept() {
        check(2, || {
            let semaphore = Arc::new(Alone::new(1, 1, 2));
            let work = |semaphore: &Alone, slot| {
                if takes_one(semaphore, slot) {
                    gives_one(semaphore, slot);
                }
            };
            let theirs = Arc::clone(&semaphore);
            let other = thread::spawn(move || work(&theirs, 1));
            work(&semaphore, 2);
            other.join().unwrap();
            is_left(&semaphore, 1, [false, false]);
        });
    }
}
