//! Sets: one wait for several objects.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::api::{self, DESCRIPTOR, READABLE, Ready, WRITABLE};
use crate::error::check;
use crate::handle::Handle;
use crate::sync::kind;
use crate::wait::{is_too_early, timeout, wait};

/// Members that one wait reports at most; the next one reports others.
const AT_ONCE: usize = 64;

kind!(
    SetKind,
    "Set",
    dragon_set_attach,
    dragon_set_close,
    dragon_set_descriptor,
    dragon_set_export
);

/// Objects of any node that are waited for together.
#[pyclass(frozen, module = "dragon._native")]
#[derive(Debug)]
pub(crate) struct Set {
    handle: Handle<SetKind>,
}

#[pymethods]
impl Set {
    #[new]
    fn new(py: Python<'_>, capacity: u32) -> PyResult<Self> {
        let api = api::api()?;
        let mut object = std::ptr::null_mut();
        // SAFETY: the result is writable.
        let code = unsafe { (api.dragon_set_create)(capacity, 0, &raw mut object) };
        check(py, api, code)?;
        Ok(Self {
            handle: Handle::new(object, true),
        })
    }

    /// Adds the object that a descriptor names: a channel, an event, a semaphore or a process. The set does not keep it alive.
    /// `token` comes back when there is a message, the event is set, there is a unit, the process has ended, or the object
    /// is gone or lost. `writable`: when there is room in the channel, instead.
    #[pyo3(signature = (descriptor, token, writable=false))]
    fn add(&self, py: Python<'_>, descriptor: &[u8], token: u64, writable: bool) -> PyResult<()> {
        let api = api::api()?;
        let descriptor: &[u8; DESCRIPTOR] = descriptor
            .try_into()
            .map_err(|_| PyValueError::new_err(format!("a descriptor has {DESCRIPTOR} bytes")))?;
        let interest = if writable { WRITABLE } else { READABLE };
        let code = self.handle.using(py, |open| {
            let member = std::ptr::null_mut();
            // SAFETY: the object is open, the descriptor has its bytes, and the place is not asked for.
            unsafe {
                (api.dragon_set_add)(open.object(), descriptor.as_ptr(), interest, token, member)
            }
        })?;
        check(py, api, code)
    }

    /// Waits until members are ready; their tokens, none when no member was ready in time.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<u64>> {
        let api = api::api()?;
        let mut ready = [Ready::default(); AT_ONCE];
        let mut count = 0;
        let code = wait(py, &self.handle, self::timeout(timeout)?, |open, left| {
            let (ready, count) = (ready.as_mut_ptr(), &raw mut count);
            // SAFETY: the object is open, and the results are writable.
            unsafe { (api.dragon_set_wait)(open.object(), left, ready, AT_ONCE, count) }
        })?;
        if is_too_early(code) {
            return Ok(Vec::new());
        }
        check(py, api, code)?;
        Ok(ready
            .iter()
            .take(count)
            .map(|member| member.token)
            .collect())
    }

    /// Gives the handle back.
    fn close(&self) {
        self.handle.close();
    }
}
