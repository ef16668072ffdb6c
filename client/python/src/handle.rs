//! A handle of the library that Python threads share and may close while one of them waits.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::api::{self, Api, DESCRIPTOR, Object};
use crate::error::check;

/// What differs between the kinds of objects.
pub(crate) trait Kind {
    const NAME: &'static str;
    fn attach(api: &Api) -> unsafe extern "C" fn(*const u8, i32, *mut Object) -> i32;
    fn close(api: &Api) -> unsafe extern "C" fn(Object) -> i32;
    fn descriptor(api: &Api) -> unsafe extern "C" fn(Object, *mut u8) -> i32;
    fn export(api: &Api) -> unsafe extern "C" fn(Object, *mut u8) -> i32;
}

/// An open handle, or one that was closed.
///
/// All fields change only while the interpreter lock is held, so relaxed atomics will do.
#[derive(Debug)]
pub(crate) struct Handle<K: Kind> {
    object: AtomicUsize,
    /// Threads that use it without the interpreter lock.
    users: AtomicU32,
    closing: AtomicBool,
    local: bool,
    kind: std::marker::PhantomData<fn() -> K>,
}

/// An object as a number, so that it can go where the interpreter lock is not held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open(usize);

impl Open {
    pub(crate) fn object(self) -> Object {
        std::ptr::with_exposed_provenance_mut(self.0)
    }
}

impl<K: Kind> Handle<K> {
    /// Takes over an object that the library has just given out.
    pub(crate) fn new(object: Object, local: bool) -> Self {
        Self {
            object: AtomicUsize::new(object.expose_provenance()),
            users: AtomicU32::new(0),
            closing: AtomicBool::new(false),
            local,
            kind: std::marker::PhantomData,
        }
    }

    /// Makes a handle from a descriptor.
    pub(crate) fn attach(py: Python<'_>, descriptor: &[u8], adopt: bool) -> PyResult<Self> {
        let api = api::api()?;
        if descriptor.len() != DESCRIPTOR {
            return Err(PyValueError::new_err(format!(
                "a descriptor has {DESCRIPTOR} bytes, this has {}",
                descriptor.len()
            )));
        }
        let mut object = std::ptr::null_mut();
        let attach = K::attach(api);
        // SAFETY: the descriptor has its 32 bytes and the result is writable.
        let code = unsafe { attach(descriptor.as_ptr(), adopt.into(), &raw mut object) };
        check(py, api, code)?;
        let node = u32::from_le_bytes([descriptor[4], descriptor[5], descriptor[6], descriptor[7]]);
        Ok(Self::new(
            object,
            node == crate::runtime::runtime_info(py)?.node,
        ))
    }

    /// The same handle, with what has been found out about its place.
    pub(crate) fn with_place(mut self, local: bool) -> Self {
        self.local = local;
        self
    }

    /// Whether the object lies on this node.
    pub(crate) fn is_local(&self) -> bool {
        self.local
    }

    /// The object, unless it was closed. Without [`Handle::using`] it is only valid while the interpreter lock is held.
    pub(crate) fn get(&self) -> PyResult<Open> {
        let object = self.object.load(Relaxed);
        if object == 0 || self.closing.load(Relaxed) {
            return Err(PyValueError::new_err(format!("this {} is closed", K::NAME)));
        }
        Ok(Open(object))
    }

    /// Does something without the interpreter lock; the object stays open meanwhile.
    pub(crate) fn using<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(Open) -> T + Send,
    ) -> PyResult<T> {
        let (open, _use) = self.keep_open()?;
        Ok(py.detach(|| {
            let result = work(open);
            crate::wait::stay_out_of_an_ending_interpreter();
            result
        }))
    }

    /// The object, which stays open as long as what comes with it lives. That ends with the interpreter lock held.
    pub(crate) fn keep_open(&self) -> PyResult<(Open, Use<'_, K>)> {
        let open = self.get()?;
        self.users.store(self.users.load(Relaxed) + 1, Relaxed);
        Ok((open, Use(self)))
    }

    /// Does something that does not wait: at once where the object lies on this node, else without the interpreter lock.
    pub(crate) fn call<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(Open) -> T + Send,
    ) -> PyResult<T> {
        if self.local {
            Ok(work(self.get()?))
        } else {
            self.using(py, work)
        }
    }

    /// Closes the handle, at the latest when the last thread that waits with it comes back.
    pub(crate) fn close(&self) {
        if self.users.load(Relaxed) == 0 {
            self.close_now();
        } else {
            self.closing.store(true, Relaxed);
        }
    }

    fn close_now(&self) {
        let object = self.object.swap(0, Relaxed);
        if object == 0 {
            return;
        }
        if let Some(api) = api::loaded() {
            let close = K::close(api);
            // SAFETY: the object is open, nobody uses it, and nobody finds it any more.
            unsafe { close(Open(object).object()) };
        }
    }

    pub(crate) fn descriptor(&self, py: Python<'_>) -> PyResult<[u8; DESCRIPTOR]> {
        let api = api::api()?;
        self.describe(py, api, K::descriptor(api))
    }

    /// The descriptor, with a reference in transit for whoever attaches with `adopt`.
    pub(crate) fn export(&self, py: Python<'_>) -> PyResult<[u8; DESCRIPTOR]> {
        let api = api::api()?;
        self.describe(py, api, K::export(api))
    }

    fn describe(
        &self,
        py: Python<'_>,
        api: &Api,
        call: unsafe extern "C" fn(Object, *mut u8) -> i32,
    ) -> PyResult<[u8; DESCRIPTOR]> {
        let mut descriptor = [0; DESCRIPTOR];
        // SAFETY: the object is open while the interpreter lock is held; the result has room for a descriptor.
        let code = unsafe { call(self.get()?.object(), descriptor.as_mut_ptr()) };
        check(py, api, code)?;
        Ok(descriptor)
    }
}

/// A thread that uses a handle without the interpreter lock.
#[derive(Debug)]
pub(crate) struct Use<'a, K: Kind>(&'a Handle<K>);

impl<K: Kind> Drop for Use<'_, K> {
    fn drop(&mut self) {
        let users = self.0.users.load(Relaxed) - 1;
        self.0.users.store(users, Relaxed);
        if users == 0 && self.0.closing.load(Relaxed) {
            self.0.close_now();
        }
    }
}

impl<K: Kind> Drop for Handle<K> {
    fn drop(&mut self) {
        self.close_now();
    }
}
