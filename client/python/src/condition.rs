//! Conditions.

use pyo3::exceptions::PyAssertionError;
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::api::{self, DESCRIPTOR};
use crate::error::check;
use crate::handle::Handle;
use crate::sync::{Lock, kind, open};
use crate::wait::{is_too_early, through_signals, timeout};

kind!(
    ConditionKind,
    "Condition",
    dragon_condition_attach,
    dragon_condition_close,
    dragon_condition_descriptor,
    dragon_condition_export
);

/// What waits for a notification, with a lock that it gives up meanwhile.
#[pyclass(frozen, module = "dragon._native")]
#[derive(Debug)]
pub(crate) struct Condition {
    handle: Handle<ConditionKind>,
}

#[pymethods]
impl Condition {
    /// `waiters`: how many threads can wait at once.
    #[new]
    #[pyo3(signature = (waiters=0, descriptor=None, adopt=false))]
    fn new(py: Python<'_>, waiters: u32, descriptor: Option<&[u8]>, adopt: bool) -> PyResult<Self> {
        let handle = open(py, descriptor, adopt, |api, object| {
            // SAFETY: the result is writable.
            unsafe { (api.dragon_condition_create)(waiters, 0, object) }
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
        cls.call1((0, descriptor, adopt))
    }

    /// Gives the lock up, waits for a notification, and takes the lock again, unless that was destroyed or its node is lost; false when
    /// none came in time.
    ///
    /// Python's handlers of signals run in the middle of the wait. The exception of one comes when the lock was taken again.
    #[pyo3(signature = (lock, timeout=None))]
    fn wait(
        &self,
        py: Python<'_>,
        lock: &Lock,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let api = api::api()?;
        let timeout = self::timeout(timeout)?;
        let (open, _use) = self.handle.keep_open()?;
        let (their_lock, _use) = lock.handle().keep_open()?;
        let Some(put_aside) = lock.put_aside() else {
            return Err(PyAssertionError::new_err(
                "must acquire() condition before using wait()",
            ));
        };
        // Stays so where the lock was not taken again.
        let mut owner_died = -1;
        let died = (&raw mut owner_died).expose_provenance();
        let (code, raised) = through_signals(py, |on_signal, context| {
            // SAFETY: both objects are open, the function takes the context, and the result is writable.
            unsafe {
                (api.dragon_condition_wait_through_signals)(
                    open.object(),
                    their_lock.object(),
                    timeout,
                    on_signal,
                    context,
                    std::ptr::with_exposed_provenance_mut(died),
                )
            }
        });
        let has_it = owner_died >= 0;
        if has_it {
            lock.take_up(put_aside);
        }
        if let Some(raised) = raised {
            return Err(raised);
        }
        if has_it {
            crate::sync::warn_if(py, owner_died)?;
        }
        if is_too_early(code) {
            return Ok(false);
        }
        check(py, api, code)?;
        Ok(true)
    }

    /// Wakes up to `n` of those who wait, all if it is not given; how many.
    #[pyo3(signature = (n=None))]
    fn notify(&self, py: Python<'_>, n: Option<u32>) -> PyResult<u32> {
        let api = api::api()?;
        let (code, woken) = self.handle.call(py, |open| {
            let mut woken = 0;
            // SAFETY: the object is open and the result is writable.
            let code = unsafe {
                (api.dragon_condition_notify)(open.object(), n.unwrap_or(api::ALL), &raw mut woken)
            };
            (code, woken)
        })?;
        check(py, api, code)?;
        Ok(woken)
    }

    /// How many wait.
    fn waiting(&self, py: Python<'_>) -> PyResult<u32> {
        let api = api::api()?;
        let (code, waiting) = self.handle.call(py, |open| {
            let mut waiting = 0;
            // SAFETY: the object is open and the result is writable.
            let code = unsafe { (api.dragon_condition_waiting)(open.object(), &raw mut waiting) };
            (code, waiting)
        })?;
        check(py, api, code)?;
        Ok(waiting)
    }

    /// Its name, with a reference in transit for whoever attaches with `adopt`.
    fn export(&self, py: Python<'_>) -> PyResult<[u8; DESCRIPTOR]> {
        self.handle.export(py)
    }
}
