//! Tests of the lock's words.

use super::*;

/// A lock outside shared memory.
#[derive(Debug)]
struct Alone {
    word: FutexWord,
    holder: AtomicU64,
    recursive: bool,
}

impl Alone {
    fn new(recursive: bool) -> Self {
        Self {
            word: FutexWord::default(),
            holder: AtomicU64::new(0),
            recursive,
        }
    }

    fn words(&self) -> Words<'_> {
        Words {
            word: &self.word,
            holder: &self.holder,
            recursive: self.recursive,
        }
    }

    #[cfg(loom)]
    fn acquire(&self, who: Who) -> Acquired {
        let words = self.words();
        match words.try_acquire(who, 0) {
            Some(acquired) => acquired,
            None => words.sleep_for(who, Deadline::Never, || Ok(())).unwrap(),
        }
    }
}

const fn who(slot: u32, thread: u32) -> Who {
    Who { slot, thread }
}

#[cfg(not(loom))]
mod plain {
    use super::*;

    #[test]
    fn a_recursive_lock_belongs_to_the_thread() {
        let lock = Alone::new(true);
        let words = lock.words();
        assert!(words.try_acquire(who(3, 1), 0).is_some());
        assert!(words.try_acquire(who(3, 1), 0).is_some());
        assert!(words.try_acquire(who(3, 2), 0).is_none(), "another thread");
        assert!(words.try_acquire(who(4, 1), 0).is_none(), "another process");
        assert_eq!(words.release(who(3, 2), false), Released::NotOwner);
        assert_eq!(words.release(who(4, 1), true), Released::NotOwner);
        assert_eq!(words.release(who(3, 1), false), Released::Kept);
        assert_eq!(words.release(who(3, 1), false), Released::Freed);
        assert_eq!(words.release(who(3, 1), false), Released::NotOwner);
    }

    #[test]
    fn a_dead_owners_depth_goes_with_it() {
        let lock = Alone::new(true);
        let words = lock.words();
        for _ in 0..3 {
            words.try_acquire(who(3, 1), 0).unwrap();
        }
        assert!(!words.hand_on(4));
        assert!(words.hand_on(3));
        assert!(words.try_acquire(who(4, 1), 0).unwrap().owner_died);
        assert!(!words.try_acquire(who(4, 1), 0).unwrap().owner_died);
        assert_eq!(words.depth(), 2);
    }

    #[test]
    fn the_deepest_acquisition_fails() {
        let lock = Alone::new(true);
        let words = lock.words();
        words.try_acquire(who(0, 1), 0).unwrap();
        words.set_depth(who(0, 1), u32::MAX);
        assert!(words.try_acquire(who(0, 1), 0).is_none());
    }
}

#[cfg(loom)]
mod models {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(model);
    }

    struct Guarded {
        lock: Alone,
        value: UnsafeCell<u32>,
    }

    // SAFETY: loom checks that the value is accessed by one thread at a time.
    unsafe impl Sync for Guarded {}
    // SAFETY: as above.
    unsafe impl Send for Guarded {}

    fn raise(shared: &Guarded, who: Who) {
        shared.lock.acquire(who);
        shared.value.with_mut(|value| {
            // SAFETY: the lock is held.
            unsafe { *value += 1 };
        });
        assert_eq!(shared.lock.words().release(who, false), Released::Freed);
    }

    /// Three threads pass the lock on: one at a time, and none sleeps for ever (that would be a deadlock of the model).
    #[test]
    fn loom_the_lock_is_handed_over() {
        check(2, || {
            let shared = Arc::new(Guarded {
                lock: Alone::new(false),
                value: UnsafeCell::new(0),
            });
            let others = [1, 2].map(|n| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || raise(&shared, who(n, n)))
            });
            raise(&shared, who(3, 3));
            for other in others {
                other.join().unwrap();
            }
            shared.lock.acquire(who(4, 4));
            // SAFETY: the lock is held.
            assert_eq!(shared.value.with(|value| unsafe { *value }), 3);
        });
    }

    /// Two threads of one process and a recursive lock: neither takes the other for itself.
    #[test]
    fn loom_recursion_within_a_process() {
        check(3, || {
            let shared = Arc::new(Guarded {
                lock: Alone::new(true),
                value: UnsafeCell::new(0),
            });
            let work = |shared: &Guarded, me: Who| {
                shared.lock.acquire(me);
                shared.lock.acquire(me);
                shared.value.with_mut(|value| {
                    // SAFETY: the lock is held.
                    unsafe { *value += 1 };
                });
                assert_eq!(shared.lock.words().release(me, false), Released::Kept);
                assert_eq!(shared.lock.words().release(me, false), Released::Freed);
            };
            let theirs = Arc::clone(&shared);
            let other = thread::spawn(move || work(&theirs, who(1, 2)));
            work(&shared, who(1, 1));
            other.join().unwrap();
        });
    }

    /// The owner dies while one sleeps and another comes: both get the lock, and exactly one is told.
    #[test]
    fn loom_a_dead_owners_lock_is_handed_on() {
        check(3, || {
            let lock = Arc::new(Alone::new(false));
            lock.acquire(who(9, 9));
            let others = [1, 2].map(|n| {
                let lock = Arc::clone(&lock);
                thread::spawn(move || {
                    let told = lock.acquire(who(n, n)).owner_died;
                    lock.words().release(who(n, n), false);
                    told
                })
            });
            assert!(lock.words().hand_on(9));
            lock.words().wake_everyone(true);
            let told = others.map(|other| u32::from(other.join().unwrap()));
            assert_eq!(told.iter().sum::<u32>(), 1);
        });
    }
}
