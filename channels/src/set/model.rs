//! Models of subscriptions, over the code that ships. Run by `RUSTFLAGS="--cfg loom" cargo test -p dragon-channels
//! --release --lib loom`.

use std::ops::ControlFlow;

use dragon_shmem::Deadline;
use dragon_shmem::sync::{AtomicU32, AtomicU64, Ordering, fence};
use loom::sync::Arc;
use loom::thread;

use super::Interest;
use super::flags::{self, Flags};
use super::subscribers::{Places, SUBSCRIBED, Subscriber, enter, leave, tell_each};
use crate::error::Result;
use crate::wait::{Ended, WaitWord, sleep_until};

/// A set of two members that lie in different words, and one object with units that can be taken.
#[derive(Default)]
struct Words {
    watch: AtomicU32,
    places: [AtomicU64; 2],
    flags: [AtomicU64; 2],
    summary: AtomicU64,
    wait: WaitWord,
    units: AtomicU32,
}

impl Flags for Words {
    fn words(&self) -> usize {
        2
    }

    fn word(&self, n: usize) -> &AtomicU64 {
        &self.flags[n]
    }

    fn summary(&self, _: usize) -> &AtomicU64 {
        &self.summary
    }

    fn wait(&self) -> &WaitWord {
        &self.wait
    }
}

impl Places for Words {
    fn watch(&self) -> &AtomicU32 {
        &self.watch
    }

    fn each<B>(&self, mut visit: impl FnMut(&AtomicU64) -> ControlFlow<B>) -> Option<B> {
        for place in &self.places {
            if let ControlFlow::Break(value) = visit(place) {
                return Some(value);
            }
        }
        None
    }

    fn grow(&self, _: u64) -> Result<()> {
        unreachable!("the model's places are enough")
    }
}

/// A member in the second word.
const MEMBER: u32 = 64;

fn subscriber(member: u32) -> u64 {
    let subscriber = Subscriber {
        record: 0,
        generation: 1,
        member,
        interest: Interest::READABLE,
    };
    subscriber.word()
}

impl Words {
    /// What `Set::add` does once the member is in the table.
    fn add(&self, member: u32) {
        enter(self, subscriber(member), |_| false).unwrap();
        fence(Ordering::SeqCst);
        flags::announce(self, member, false);
    }

    /// What whoever changes the object does.
    fn give(&self) {
        self.units.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if self.watch.load(Ordering::Relaxed) & SUBSCRIBED != 0 {
            tell_each(self, |subscriber| {
                flags::announce(self, subscriber.member, false);
                true
            });
        }
    }

    /// What `Set::wait` does, and then a try to take a unit.
    fn take(&self) {
        loop {
            let left = std::cell::Cell::new(false);
            let attempt = || -> Result<_, Ended> {
                let mut at = 0;
                while let Some(n) = flags::next(self, at) {
                    at = n + 1;
                    let state = || (self.units.load(Ordering::Acquire) != 0).then_some(());
                    if flags::look(self, n, state, |_| {}, || left.set(true)).is_some() {
                        return Ok(Some(()));
                    }
                }
                Ok(None)
            };
            sleep_until(&self.wait, Deadline::Never, |_| {}, attempt, || false).unwrap();
            if left.get() {
                fence(Ordering::SeqCst);
                self.wait.wake_sleepers(1);
            }
            let take = |n: u32| n.checked_sub(1);
            if self
                .units
                .fetch_update(Ordering::AcqRel, Ordering::Relaxed, take)
                .is_ok()
            {
                return;
            }
        }
    }
}

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// An object is added while it changes: the waiter hears of it, by the flag that the add raises or by the changer's.
/// A lost change is a deadlock of the model.
#[test]
fn loom_a_change_during_an_add_is_seen() {
    check(3, || {
        let words = Arc::new(Words::default());
        let theirs = Arc::clone(&words);
        let changer = thread::spawn(move || theirs.give());
        words.add(MEMBER);
        words.take();
        changer.join().unwrap();
    });
}

/// Two changes, and a waiter that lowers the flag between them or with them.
#[test]
fn loom_no_change_is_lost() {
    check(2, || {
        let words = Arc::new(Words::default());
        words.add(MEMBER);
        let changers = [(); 2].map(|()| {
            let theirs = Arc::clone(&words);
            thread::spawn(move || theirs.give())
        });
        words.take();
        words.take();
        for changer in changers {
            changer.join().unwrap();
        }
    });
}

/// Two waiters at one set: each gets its unit.
#[test]
fn loom_two_waiters() {
    check(2, || {
        let words = Arc::new(Words::default());
        words.add(MEMBER);
        let waiters = [(); 2].map(|()| {
            let theirs = Arc::clone(&words);
            thread::spawn(move || theirs.take())
        });
        words.give();
        words.give();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

/// The last one leaves while another enters: the object's mark stays.
#[test]
fn loom_the_mark_stays_while_anybody_is_there() {
    check(3, || {
        let words = Arc::new(Words::default());
        enter(&*words, subscriber(0), |_| false).unwrap();
        let theirs = Arc::clone(&words);
        let other = thread::spawn(move || enter(&*theirs, subscriber(1), |_| false).unwrap());
        leave(&*words, subscriber(0));
        other.join().unwrap();
        assert_ne!(words.watch.load(Ordering::Acquire) & SUBSCRIBED, 0);
        let places = words.places.each_ref().map(|p| p.load(Ordering::Acquire));
        assert!(places.contains(&subscriber(1)));
    });
}

/// One raises what another lowers: a flag that is up is found.
#[test]
fn loom_a_raised_flag_is_found() {
    check(3, || {
        let words = Arc::new(Words::default());
        flags::raise(&*words, MEMBER, false);
        let theirs = Arc::clone(&words);
        let other = thread::spawn(move || flags::raise(&*theirs, MEMBER + 1, false));
        flags::lower(&*words, MEMBER);
        other.join().unwrap();
        assert_eq!(flags::next(&*words, 0), Some(MEMBER + 1));
    });
}

/// Somebody leaves the object while it is added to another set, and changes: the mark is not away in between.
#[test]
fn loom_a_change_while_another_leaves_is_seen() {
    check(3, || {
        let words = Arc::new(Words::default());
        enter(&*words, subscriber(0), |_| false).unwrap();
        let theirs = Arc::clone(&words);
        let leaver = thread::spawn(move || leave(&*theirs, subscriber(0)));
        words.add(MEMBER);
        let theirs = Arc::clone(&words);
        let changer = thread::spawn(move || theirs.give());
        words.take();
        leaver.join().unwrap();
        changer.join().unwrap();
    });
}

/// One who only looks lowers a flag while another of the same word goes up, and a waiter comes by.
#[test]
fn loom_who_only_looks_hides_no_flag() {
    check(3, || {
        let words = Arc::new(Words::default());
        words.add(MEMBER);
        flags::lower(&*words, MEMBER);
        flags::raise(&*words, MEMBER + 1, false);
        let theirs = Arc::clone(&words);
        let looker = thread::spawn(move || {
            let left = std::cell::Cell::new(false);
            flags::look(
                &*theirs,
                MEMBER + 1,
                || None::<()>,
                |_| {},
                || left.set(true),
            );
            if left.get() {
                fence(Ordering::SeqCst);
                theirs.wait.wake_sleepers(1);
            }
        });
        let theirs = Arc::clone(&words);
        let changer = thread::spawn(move || theirs.give());
        words.take();
        looker.join().unwrap();
        changer.join().unwrap();
    });
}

/// When no flag is up, a waiter that spins hears of none, whatever the summary says.
#[test]
fn loom_nothing_is_up_when_no_flag_is() {
    check(3, || {
        let words = Arc::new(Words::default());
        let theirs = Arc::clone(&words);
        let other = thread::spawn(move || flags::raise(&*theirs, MEMBER, false));
        flags::lower(&*words, MEMBER);
        other.join().unwrap();
        let up = words.flags[1].load(Ordering::Acquire) != 0;
        assert_eq!(flags::any(&*words), up);
        assert_eq!(flags::next(&*words, 0), up.then_some(MEMBER));
    });
}

/// Whoever lowers a flag may be stopped anywhere in it: another flag of the same word that is up can be seen at any moment.
#[test]
fn loom_who_is_stopped_while_lowering_hides_no_flag() {
    check(3, || {
        let words = Arc::new(Words::default());
        flags::raise(&*words, MEMBER, false);
        let theirs = Arc::clone(&words);
        let other = thread::spawn(move || flags::lower(&*theirs, MEMBER));
        flags::raise(&*words, MEMBER + 1, false);
        // The other one has begun or not, has ended or not.
        assert!(flags::any(&*words));
        assert!(flags::next(&*words, 0).is_some());
        other.join().unwrap();
        assert_eq!(flags::next(&*words, 0), Some(MEMBER + 1));
    });
}
