//! Handles that go on working in a forked child.
//!
//! ```text
//! parent      Handle { object, session of the parent }
//! child             after_fork → Handle { object, session of the child }
//! grandchild                           after_fork → Handle { … }
//! ```
//! A child finds that the first handle's session is inherited and takes the next one, which it makes by attaching to the
//! same descriptor at the first use. The way to the object is a test of one byte and no lock.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use dragon_protocol::Descriptor;
use dragon_shmem::Member;

use crate::error::{Error, Result};
use crate::session::Session;

/// An object of the layers below that a descriptor leads to.
pub(crate) trait Object: Sized {
    /// A handle on the object that `descriptor` names. `adopt`: take over a reference in transit.
    fn attach(member: &Arc<Member>, descriptor: Descriptor, adopt: bool) -> Result<Self>;
    /// The object's name.
    fn descriptor(&self) -> Descriptor;
    /// Waits from now on as a parent's handle does.
    fn wait_as(&self, _parent: &Self) {}
}

/// An object, as long as this handle lives.
pub(crate) struct Handle<T: Object> {
    object: ManuallyDrop<T>,
    descriptor: Descriptor,
    session: &'static Session,
    /// This handle's successor in a forked child, from a box; null until it is needed.
    after_fork: AtomicPtr<Self>,
}

impl<T: Object> Handle<T> {
    /// A handle on what `make` creates.
    pub(crate) fn create(make: impl FnOnce(&Arc<Member>) -> Result<T>) -> Result<Self> {
        Self::make(Session::attach_or_start()?, make)
    }

    /// A handle on what `descriptor` names.
    pub(crate) fn attach(descriptor: Descriptor, adopt: bool) -> Result<Self> {
        let session = Session::attach_or_start()?;
        if descriptor.runtime != session.runtime() {
            return Err(Error::InvalidArgument(format!(
                "'{descriptor}' is of runtime {}, this process belongs to runtime {}",
                descriptor.runtime,
                session.runtime()
            )));
        }
        Self::make(session, |member| T::attach(member, descriptor, adopt))
    }

    fn make(
        session: &'static Session,
        make: impl FnOnce(&Arc<Member>) -> Result<T>,
    ) -> Result<Self> {
        session.enter()?;
        match session.member().and_then(|member| make(&member)) {
            Ok(object) => Ok(Self {
                descriptor: object.descriptor(),
                object: ManuallyDrop::new(object),
                session,
                after_fork: AtomicPtr::new(ptr::null_mut()),
            }),
            Err(error) => {
                session.leave();
                Err(error)
            }
        }
    }

    /// The object, to be used by this process.
    #[inline]
    pub(crate) fn get(&self) -> Result<&T> {
        self.get_with_session().map(|(object, _)| object)
    }

    /// The object and the session that it belongs to in this process.
    #[inline]
    pub(crate) fn get_with_session(&self) -> Result<(&T, &'static Session)> {
        if self.session.is_forked() {
            self.successor()?.get_with_session()
        } else {
            Ok((&self.object, self.session))
        }
    }

    pub(crate) fn descriptor(&self) -> Descriptor {
        self.descriptor
    }

    /// This handle's successor in a forked child.
    #[cold]
    fn successor(&self) -> Result<&Self> {
        let mut next = self.after_fork.load(Ordering::Acquire);
        if next.is_null() {
            let made = Self::attach(self.descriptor, false)?;
            made.object.wait_as(&self.object);
            let made = Box::into_raw(Box::new(made));
            next = match self.after_fork.compare_exchange(
                ptr::null_mut(),
                made,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => made,
                Err(first) => {
                    // SAFETY: it came from `Box::into_raw` above, and nobody else has seen it.
                    drop(unsafe { Box::from_raw(made) });
                    first
                }
            };
        }
        // SAFETY: not null, from `Box::into_raw`, and freed only with self.
        Ok(unsafe { &*next })
    }
}

impl<T: Object> Drop for Handle<T> {
    fn drop(&mut self) {
        let next = *self.after_fork.get_mut();
        if !next.is_null() {
            // SAFETY: from `Box::into_raw`, and self is the only owner.
            drop(unsafe { Box::from_raw(next) });
        }
        // In a forked child the reference is the parent's, who gives it back.
        if !self.session.is_forked() {
            // SAFETY: dropped here once, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.object) };
            self.session.leave();
        }
    }
}

impl<T: Object> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.descriptor)
    }
}
