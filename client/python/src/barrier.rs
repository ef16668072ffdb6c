//! Barriers.

use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::api::{self, Api, BROKEN, DESCRIPTOR, Object, TIMEOUT, TRY};
use crate::error::check;
use crate::handle::Handle;
use crate::sync::{kind, open};
use crate::wait::{through_signals, timeout};

kind!(
    BarrierKind,
    "Barrier",
    dragon_barrier_attach,
    dragon_barrier_close,
    dragon_barrier_descriptor,
    dragon_barrier_export
);

/// Where a fixed number of parties wait for each other.
#[pyclass(frozen, module = "dragon._native")]
#[derive(Debug)]
pub(crate) struct Barrier {
    handle: Handle<BarrierKind>,
}

#[pymethods]
impl Barrier {
    /// `action`: one party acts before the others go on.
    #[new]
    #[pyo3(signature = (parties, action=false, descriptor=None, adopt=false))]
    fn new(
        py: Python<'_>,
        parties: u32,
        action: bool,
        descriptor: Option<&[u8]>,
        adopt: bool,
    ) -> PyResult<Self> {
        let handle = open(py, descriptor, adopt, |api, object| {
            let create = if action {
                api.dragon_barrier_create_with_action
            } else {
                api.dragon_barrier_create
            };
            // SAFETY: the result is writable.
            unsafe { create(parties, 0, object) }
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
        cls.call1((0, false, descriptor, adopt))
    }

    /// Waits for all parties: the party's number; `None` when the barrier is broken, or was broken since this party's time was up.
    /// The party whose turn it is calls `action`. It is called from here, since between the end of a call and a `try` of Python a
    /// signal's handler can raise, and the others would wait for a turn that nobody has.
    #[pyo3(signature = (timeout=None, action=None))]
    fn wait(
        &self,
        py: Python<'_>,
        timeout: Option<&Bound<'_, PyAny>>,
        action: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<u32>> {
        let Some((number, turn)) = self.arrive(py, timeout)? else {
            return Ok(None);
        };
        if turn == 0 {
            return Ok(Some(number));
        }
        let acted = action.map_or(Ok(()), |action| action.call0().map(drop));
        let is_whole = self.acted(py, turn, acted.is_ok());
        acted?;
        Ok(is_whole?.then_some(number))
    }

    /// Breaks it.
    fn abort(&self, py: Python<'_>) -> PyResult<()> {
        self.change(py, |api| api.dragon_barrier_abort)
    }

    /// Makes it whole again.
    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        self.change(py, |api| api.dragon_barrier_reset)
    }

    /// How many parties it is for, how many wait, and a number that says why it is broken, or 0.
    fn state(&self, py: Python<'_>) -> PyResult<(u32, u32, i32)> {
        let api = api::api()?;
        let (code, state) = self.handle.call(py, |open| {
            let (mut parties, mut waiting, mut broken) = (0, 0, 0);
            // SAFETY: the object is open and the results are writable.
            let code = unsafe {
                (api.dragon_barrier_state)(
                    open.object(),
                    &raw mut parties,
                    &raw mut waiting,
                    &raw mut broken,
                )
            };
            (code, (parties, waiting, broken))
        })?;
        check(py, api, code)?;
        Ok(state)
    }

    /// Its name, with a reference in transit for whoever attaches with `adopt`.
    fn export(&self, py: Python<'_>) -> PyResult<[u8; DESCRIPTOR]> {
        self.handle.export(py)
    }
}

impl Barrier {
    /// The party's number, and its turn to act, which is 0 for all but one; `None` as for [`Barrier::wait`].
    fn arrive(
        &self,
        py: Python<'_>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<(u32, u64)>> {
        /// The shortest time to wait: a try would break nothing.
        const SHORTEST: i64 = 1;
        let api = api::api()?;
        let timeout = match self::timeout(timeout)? {
            TRY => SHORTEST,
            timeout => timeout,
        };
        let (open, _use) = self.handle.keep_open()?;
        let mut passed = (0, 0);
        let number = (&raw mut passed.0).expose_provenance();
        let turn = (&raw mut passed.1).expose_provenance();
        let (code, raised) = through_signals(py, |on_signal, context| {
            // SAFETY: the object is open, the function takes the context, and the results are writable.
            unsafe {
                (api.dragon_barrier_wait_through_signals)(
                    open.object(),
                    timeout,
                    on_signal,
                    context,
                    std::ptr::with_exposed_provenance_mut(number),
                    std::ptr::with_exposed_provenance_mut(turn),
                )
            }
        });
        if let Some(raised) = raised {
            if passed.1 != 0 {
                // All had come by then, and wait for this one to act, which it never will.
                self.acted(py, passed.1, false)?;
            }
            return Err(raised);
        }
        if matches!(code, BROKEN | TIMEOUT) {
            return Ok(None);
        }
        check(py, api, code)?;
        Ok(Some(passed))
    }

    /// The party whose turn it was has acted, or failed; false when the barrier was broken meanwhile.
    fn acted(&self, py: Python<'_>, turn: u64, done: bool) -> PyResult<bool> {
        let api = api::api()?;
        let code = self.handle.call(py, |open| {
            // SAFETY: the object is open.
            unsafe { (api.dragon_barrier_acted)(open.object(), turn, done.into()) }
        })?;
        if code == BROKEN {
            return Ok(false);
        }
        check(py, api, code)?;
        Ok(true)
    }

    fn change(
        &self,
        py: Python<'_>,
        what: impl FnOnce(&Api) -> unsafe extern "C" fn(Object) -> i32,
    ) -> PyResult<()> {
        let api = api::api()?;
        let change = what(api);
        let code = self.handle.call(py, |open| {
            // SAFETY: the object is open.
            unsafe { change(open.object()) }
        })?;
        check(py, api, code)
    }
}
