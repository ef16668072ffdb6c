//! When this process has no file descriptor left: who waits for one, and who says that one may be free.
//!
//! A listener whose connections cannot be accepted stays readable for ever. It turns them away with its [`Spare`]
//! descriptor; when another thread was quicker and took that, it stops listening and leaves word here. The kernel tells nobody
//! that a descriptor was closed, so whoever closes some says so: it costs one load while nobody waits.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use std::fs::File;
use std::sync::{Mutex, PoisonError};

/// Calls `wake` once, as soon as a descriptor of this process may be free. The caller has to try once more after this
/// call: one may have been closed before it.
pub fn when_free(wake: impl FnOnce() + Send + 'static) {
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.push(Box::new(wake));
    ANYBODY.store(true, Ordering::SeqCst);
}

/// The caller has closed descriptors.
pub fn freed() {
    if !ANYBODY.load(Ordering::SeqCst) {
        return;
    }
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    ANYBODY.store(false, Ordering::SeqCst);
    let wakers = core::mem::take(&mut *waiting);
    drop(waiting);
    for wake in wakers {
        wake();
    }
}

/// Says when it is dropped that descriptors are [`freed`]: to be declared so that it goes after them.
#[derive(Debug)]
pub struct Frees;

impl Drop for Frees {
    fn drop(&mut self) {
        freed();
    }
}

type Waker = Box<dyn FnOnce() + Send>;

static WAITING: Mutex<Vec<Waker>> = Mutex::new(Vec::new());
/// Whether somebody waits.
static ANYBODY: AtomicBool = AtomicBool::new(false);

/// A descriptor that is given away for a moment when the process has none left, so that a connection can be accepted and
/// closed.
pub struct Spare(Option<File>);

impl Spare {
    /// Takes one, if there is one.
    #[must_use]
    pub fn take() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Gives it away for as long as `turn_away` runs. False: it could not be had again.
    pub fn without<T>(&mut self, turn_away: impl FnOnce() -> T) -> bool {
        self.0 = None;
        drop(turn_away());
        self.regain()
    }

    /// Takes it again where it was lost. False: there is none.
    pub fn regain(&mut self) -> bool {
        if self.0.is_none() {
            *self = Self::take();
        }
        self.0.is_some()
    }
}

impl fmt::Debug for Spare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Spare").field(&self.0.is_some()).finish()
    }
}
