//! Locks, events and semaphores.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use pyo3::IntoPyObjectExt as _;
use pyo3::exceptions::{PyAssertionError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::api::{self, Api, DESCRIPTOR, FULL, INVALID_ARGUMENT, NEVER, NOT_OWNER, OK, Object};
use crate::error::{check, error, released_too_often};
use crate::handle::{Handle, Kind};
use crate::wait::{block_timeout, is_too_early, timeout, wait};

macro_rules! kind {
    ($kind:ident, $name:literal, $attach:ident, $close:ident, $descriptor:ident, $export:ident) => {
        #[derive(Debug)]
        pub(crate) struct $kind;

        impl $crate::handle::Kind for $kind {
            const NAME: &'static str = $name;
            fn attach(
                api: &$crate::api::Api,
            ) -> unsafe extern "C" fn(*const u8, i32, *mut $crate::api::Object) -> i32 {
                api.$attach
            }
            fn close(api: &$crate::api::Api) -> unsafe extern "C" fn($crate::api::Object) -> i32 {
                api.$close
            }
            fn descriptor(
                api: &$crate::api::Api,
            ) -> unsafe extern "C" fn($crate::api::Object, *mut u8) -> i32 {
                api.$descriptor
            }
            fn export(
                api: &$crate::api::Api,
            ) -> unsafe extern "C" fn($crate::api::Object, *mut u8) -> i32 {
                api.$export
            }
        }
    };
}

pub(crate) use kind;

kind!(
    LockKind,
    "Lock",
    dragon_lock_attach,
    dragon_lock_close,
    dragon_lock_descriptor,
    dragon_lock_export
);
kind!(
    EventKind,
    "Event",
    dragon_event_attach,
    dragon_event_close,
    dragon_event_descriptor,
    dragon_event_export
);
kind!(
    SemaphoreKind,
    "Semaphore",
    dragon_semaphore_attach,
    dragon_semaphore_close,
    dragon_semaphore_descriptor,
    dragon_semaphore_export
);

/// A handle by its descriptor, or a new object.
pub(crate) fn open<K: Kind>(
    py: Python<'_>,
    descriptor: Option<&[u8]>,
    adopt: bool,
    create: impl FnOnce(&Api, *mut Object) -> i32,
) -> PyResult<Handle<K>> {
    if let Some(descriptor) = descriptor {
        return Handle::attach(py, descriptor, adopt);
    }
    let api = api::api()?;
    let mut object = std::ptr::null_mut();
    check(py, api, create(api, &raw mut object))?;
    Ok(Handle::new(object, true))
}

/// A number that differs between the threads of a process.
fn this_thread() -> u64 {
    // SAFETY: it has no preconditions.
    let thread = unsafe { libc::pthread_self() };
    // On every platform that we build for it is an address or a number of at most that width.
    thread as u64
}

/// A lock; recursive or not.
///
/// `owner` and `count` say what this process knows: which of its threads has the lock, and how often. They change only
/// while the interpreter lock is held.
///
/// It has no subclasses: the interpreter finds the methods of an object sooner whose class is the one that defines them.
#[pyclass(frozen, weakref, module = "dragon._native")]
#[derive(Debug)]
pub(crate) struct Lock {
    handle: Handle<LockKind>,
    recursive: bool,
    owner: AtomicU64,
    count: AtomicU32,
}

#[pymethods]
impl Lock {
    #[new]
    #[pyo3(signature = (recursive=false, descriptor=None, adopt=false))]
    fn new(
        py: Python<'_>,
        recursive: bool,
        descriptor: Option<&[u8]>,
        adopt: bool,
    ) -> PyResult<Self> {
        let handle = open(py, descriptor, adopt, |api, object| {
            // SAFETY: the result is writable.
            unsafe { (api.dragon_lock_create)(0, object) }
        })?;
        Ok(Self {
            handle,
            recursive,
            owner: AtomicU64::new(0),
            count: AtomicU32::new(0),
        })
    }

    /// A handle from a descriptor. `adopt`: take over the reference that `export` counted.
    #[classmethod]
    #[pyo3(signature = (descriptor, adopt=false, recursive=false))]
    fn attach<'py>(
        cls: &Bound<'py, PyType>,
        descriptor: &[u8],
        adopt: bool,
        recursive: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        cls.call1((recursive, descriptor, adopt))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let lock = slf.get();
        let how = (lock.export(slf.py())?, true, lock.recursive);
        (slf.get_type().getattr("attach")?, how).into_bound_py_any(slf.py())
    }

    fn __repr__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let module = slf.py().import("dragon.mp.synchronize")?;
        module.call_method1("describe", (slf, slf.get().recursive))
    }

    /// What the standard library looks into is the lock itself.
    #[getter]
    fn _semlock<'a, 'py>(slf: &'a Bound<'py, Self>) -> &'a Bound<'py, Self> {
        slf
    }

    /// Takes the lock; false when it did not become free in time.
    #[pyo3(signature = (block=true, timeout=None))]
    fn acquire(
        &self,
        py: Python<'_>,
        block: bool,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        self.take(py, block_timeout(block, timeout)?)
    }

    /// Gives the lock back.
    pub(crate) fn release(&self, py: Python<'_>) -> PyResult<()> {
        if self.recursive {
            if !self._is_mine() {
                return Err(PyAssertionError::new_err(
                    "attempt to release recursive lock not owned by thread",
                ));
            }
            let count = self.count.load(Relaxed);
            if count > 1 {
                self.count.store(count - 1, Relaxed);
                return Ok(());
            }
        }
        let api = api::api()?;
        self.count.store(0, Relaxed);
        self.owner.store(0, Relaxed);
        let any = i32::from(!self.recursive);
        let code = self.handle.call(py, |open| {
            // SAFETY: the object is open.
            unsafe { (api.dragon_lock_release)(open.object(), any) }
        })?;
        match code {
            OK => Ok(()),
            NOT_OWNER => Err(released_too_often()),
            code => Err(error(py, api, code)),
        }
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.take(py, NEVER)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.release(py)
    }

    /// Whether the calling thread has it.
    fn _is_mine(&self) -> bool {
        self.count.load(Relaxed) > 0 && self.owner.load(Relaxed) == this_thread()
    }

    /// How often this process has it.
    fn _count(&self) -> u32 {
        self.count.load(Relaxed)
    }

    /// 1 when it is free.
    fn _get_value(&self, py: Python<'_>) -> PyResult<u32> {
        Ok(u32::from(!self._is_zero(py)?))
    }

    /// Whether somebody has it, found out by taking it.
    fn _is_zero(&self, py: Python<'_>) -> PyResult<bool> {
        if self.count.load(Relaxed) > 0 {
            return Ok(true);
        }
        let free = self.take(py, api::TRY)?;
        if free {
            self.release(py)?;
        }
        Ok(!free)
    }

    /// Its name, which keeps nothing alive.
    #[getter]
    fn descriptor(&self, py: Python<'_>) -> PyResult<[u8; DESCRIPTOR]> {
        self.handle.descriptor(py)
    }

    /// Its name, with a reference in transit for whoever attaches with `adopt`.
    fn export(&self, py: Python<'_>) -> PyResult<[u8; DESCRIPTOR]> {
        self.handle.export(py)
    }

    /// Gives the handle back.
    fn close(&self) {
        self.handle.close();
    }
}

impl Lock {
    /// Takes the lock; false when it did not become free in time.
    pub(crate) fn take(&self, py: Python<'_>, timeout: i64) -> PyResult<bool> {
        let me = this_thread();
        let count = self.count.load(Relaxed);
        if self.recursive && count > 0 && self.owner.load(Relaxed) == me {
            self.count.store(count + 1, Relaxed);
            return Ok(true);
        }
        let api = api::api()?;
        let mut owner_died = 0;
        let code = wait(py, &self.handle, timeout, |open, left| {
            // SAFETY: the object is open and the result is writable.
            unsafe { (api.dragon_lock_acquire)(open.object(), left, &raw mut owner_died) }
        })?;
        if is_too_early(code) {
            return Ok(false);
        }
        check(py, api, code)?;
        self.owner.store(me, Relaxed);
        self.count.store(1, Relaxed);
        warn_if(py, owner_died)?;
        Ok(true)
    }

    pub(crate) fn handle(&self) -> &Handle<LockKind> {
        &self.handle
    }

    /// Forgets that the calling thread has the lock, for a condition that gives it up; `None` when it has not.
    pub(crate) fn put_aside(&self) -> Option<PutAside> {
        self._is_mine().then(|| {
            let count = self.count.swap(0, Relaxed);
            let owner = self.owner.swap(0, Relaxed);
            PutAside { owner, count }
        })
    }

    /// The condition has taken the lock again.
    pub(crate) fn take_up(&self, PutAside { owner, count }: PutAside) {
        self.owner.store(owner, Relaxed);
        self.count.store(count, Relaxed);
    }
}

/// Who had a lock, and how often.
#[derive(Debug)]
pub(crate) struct PutAside {
    owner: u64,
    count: u32,
}

/// Warns when a lock's last owner died while it held it.
pub(crate) fn warn_if(py: Python<'_>, owner_died: i32) -> PyResult<()> {
    if owner_died != 0 {
        py.import("dragon._errors")?.call_method0("owner_died")?;
    }
    Ok(())
}

/// A flag to wait for.
#[pyclass(frozen, subclass, module = "dragon._native")]
#[derive(Debug)]
pub(crate) struct Event {
    handle: Handle<EventKind>,
}

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (descriptor=None, adopt=false))]
    fn new(py: Python<'_>, descriptor: Option<&[u8]>, adopt: bool) -> PyResult<Self> {
        let handle = open(py, descriptor, adopt, |api, object| {
            // SAFETY: the result is writable.
            unsafe { (api.dragon_event_create)(0, object) }
        })?;
        Ok(Self { handle })
    }

    /// A handle from a descriptor. `adopt`: take over the reference that `export` counted.
    #[classmethod]
    #[pyo3(signature = (descriptor, adopt=false))]
    fn attach<'py>(
        cls: &Bound<'py, PyType>,
        descriptor: &[u8],
        adopt: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let new = cls.py().get_type::<Self>().getattr("__new__")?;
        new.call1((cls, descriptor, adopt))
    }

    /// Sets the flag and wakes all who wait.
    fn set(&self, py: Python<'_>) -> PyResult<()> {
        let api = api::api()?;
        let code = self.handle.call(py, |open| {
            // SAFETY: the object is open.
            unsafe { (api.dragon_event_set)(open.object()) }
        })?;
        check(py, api, code)
    }

    /// Takes the flag back.
    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        let api = api::api()?;
        let code = self.handle.call(py, |open| {
            // SAFETY: the object is open.
            unsafe { (api.dragon_event_clear)(open.object()) }
        })?;
        check(py, api, code)
    }

    /// Whether the flag is set.
    fn is_set(&self, py: Python<'_>) -> PyResult<bool> {
        let api = api::api()?;
        let (code, set) = self.handle.call(py, |open| {
            let mut set = 0;
            // SAFETY: the object is open and the result is writable.
            let code = unsafe { (api.dragon_event_is_set)(open.object(), &raw mut set) };
            (code, set)
        })?;
        check(py, api, code)?;
        Ok(set != 0)
    }

    /// Waits for the flag; false when it was not set in time.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        let api = api::api()?;
        let code = wait(py, &self.handle, self::timeout(timeout)?, |open, left| {
            // SAFETY: the object is open.
            unsafe { (api.dragon_event_wait)(open.object(), left) }
        })?;
        if is_too_early(code) {
            return Ok(false);
        }
        check(py, api, code)?;
        Ok(true)
    }

    /// Its name, which keeps nothing alive.
    #[getter]
    fn descriptor(&self, py: Python<'_>) -> PyResult<[u8; DESCRIPTOR]> {
        self.handle.descriptor(py)
    }

    /// Its name, with a reference in transit for whoever attaches with `adopt`.
    fn export(&self, py: Python<'_>) -> PyResult<[u8; DESCRIPTOR]> {
        self.handle.export(py)
    }

    /// Gives the handle back.
    fn close(&self) {
        self.handle.close();
    }
}

/// A counter that cannot go below zero.
///
/// Without subclasses, as [`Lock`].
#[pyclass(frozen, weakref, module = "dragon._native")]
#[derive(Debug)]
pub(crate) struct Semaphore {
    handle: Handle<SemaphoreKind>,
    bounded: bool,
}

#[pymethods]
impl Semaphore {
    /// `owned`: what a process took and did not give back is given back when it ends, however it ends. `bounded`: it is called
    /// `BoundedSemaphore`.
    #[new]
    #[pyo3(signature = (value=1, max=0x7fff_ffff, descriptor=None, adopt=false, owned=false, bounded=false))]
    fn new(
        py: Python<'_>,
        value: u32,
        max: u32,
        descriptor: Option<&[u8]>,
        adopt: bool,
        owned: bool,
        bounded: bool,
    ) -> PyResult<Self> {
        let handle = open(py, descriptor, adopt, |api, object| {
            let create = if owned {
                api.dragon_semaphore_create_owned
            } else {
                api.dragon_semaphore_create
            };
            // SAFETY: the result is writable.
            unsafe { create(value, max, 0, object) }
        })?;
        Ok(Self { handle, bounded })
    }

    /// A handle from a descriptor. `adopt`: take over the reference that `export` counted.
    #[classmethod]
    #[pyo3(signature = (descriptor, adopt=false, bounded=false))]
    fn attach<'py>(
        cls: &Bound<'py, PyType>,
        descriptor: &[u8],
        adopt: bool,
        bounded: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        cls.call1((0, 0, descriptor, adopt, false, bounded))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let semaphore = slf.get();
        let how = (semaphore.export(slf.py())?, true, semaphore.bounded);
        (slf.get_type().getattr("attach")?, how).into_bound_py_any(slf.py())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let name = if self.bounded {
            "BoundedSemaphore"
        } else {
            "Semaphore"
        };
        Ok(format!("<{name}(value={})>", self.value(py)?))
    }

    /// What the standard library looks into is the semaphore itself.
    #[getter]
    fn _semlock<'a, 'py>(slf: &'a Bound<'py, Self>) -> &'a Bound<'py, Self> {
        slf
    }

    /// The counter's present value.
    fn get_value(&self, py: Python<'_>) -> PyResult<u32> {
        self.value(py)
    }

    fn _get_value(&self, py: Python<'_>) -> PyResult<u32> {
        self.value(py)
    }

    fn _is_zero(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.value(py)? == 0)
    }

    /// Takes one unit; false when there was none in time.
    #[pyo3(signature = (block=true, timeout=None))]
    fn acquire(
        &self,
        py: Python<'_>,
        block: bool,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        self.take(py, block_timeout(block, timeout)?)
    }

    /// Gives `n` units.
    #[pyo3(signature = (n=1))]
    fn release(&self, py: Python<'_>, n: u32) -> PyResult<()> {
        if n == 0 {
            return Err(PyTypeError::new_err("a semaphore is released by 1 or more"));
        }
        let api = api::api()?;
        let code = self.handle.call(py, |open| {
            // SAFETY: the object is open.
            unsafe { (api.dragon_semaphore_release)(open.object(), n) }
        })?;
        match code {
            OK => Ok(()),
            FULL | INVALID_ARGUMENT => Err(released_too_often()),
            code => Err(error(py, api, code)),
        }
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.take(py, NEVER)
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.release(py, 1)
    }

    /// The counter's present value.
    fn value(&self, py: Python<'_>) -> PyResult<u32> {
        let api = api::api()?;
        let (code, value) = self.handle.call(py, |open| {
            let mut value = 0;
            // SAFETY: the object is open and the result is writable.
            let code = unsafe { (api.dragon_semaphore_value)(open.object(), &raw mut value) };
            (code, value)
        })?;
        check(py, api, code)?;
        Ok(value)
    }

    /// Its name, which keeps nothing alive.
    #[getter]
    fn descriptor(&self, py: Python<'_>) -> PyResult<[u8; DESCRIPTOR]> {
        self.handle.descriptor(py)
    }

    /// Its name, with a reference in transit for whoever attaches with `adopt`.
    fn export(&self, py: Python<'_>) -> PyResult<[u8; DESCRIPTOR]> {
        self.handle.export(py)
    }

    /// Gives the handle back.
    fn close(&self) {
        self.handle.close();
    }
}

impl Semaphore {
    fn take(&self, py: Python<'_>, timeout: i64) -> PyResult<bool> {
        let api = api::api()?;
        let code = wait(py, &self.handle, timeout, |open, left| {
            // SAFETY: the object is open.
            unsafe { (api.dragon_semaphore_acquire)(open.object(), left) }
        })?;
        if is_too_early(code) {
            return Ok(false);
        }
        check(py, api, code)?;
        Ok(true)
    }
}
