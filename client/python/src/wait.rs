//! Timeouts, signals, and the interpreter lock around waits.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::api::{EMPTY, FULL, INTERRUPTED, NEVER, OnSignal, TIMEOUT, TRY};
use crate::handle::{Handle, Kind, Open};

/// Nanoseconds from a timeout of Python: seconds, or None for ever. Negative ones are over already.
pub(crate) fn timeout(seconds: Option<&Bound<'_, PyAny>>) -> PyResult<i64> {
    let Some(seconds) = seconds else {
        return Ok(NEVER);
    };
    let seconds: f64 = seconds
        .extract()
        .map_err(|_| PyTypeError::new_err("a timeout is a number of seconds, or None"))?;
    if seconds.is_nan() {
        return Err(PyValueError::new_err(
            "a timeout is a number of seconds, not NaN",
        ));
    }
    /// Some 100 years.
    const LONGEST: f64 = 3e9;
    Ok(if seconds <= 0.0 {
        TRY
    } else if seconds > LONGEST {
        NEVER
    } else {
        i64::try_from(Duration::from_secs_f64(seconds).as_nanos()).unwrap_or(NEVER)
    })
}

/// The timeout of `acquire(block, timeout)` and its like.
pub(crate) fn block_timeout(block: bool, seconds: Option<&Bound<'_, PyAny>>) -> PyResult<i64> {
    if block { timeout(seconds) } else { Ok(TRY) }
}

/// Whether a code says that the time was over before there was anything to do.
pub(crate) fn is_too_early(code: i32) -> bool {
    matches!(code, TIMEOUT | EMPTY | FULL)
}

/// Calls a waiting function of the library; its code, which is never `INTERRUPTED`.
pub(crate) fn wait<K: Kind>(
    py: Python<'_>,
    handle: &Handle<K>,
    timeout: i64,
    mut call: impl FnMut(Open, i64) -> i32 + Send,
) -> PyResult<i32> {
    if handle.is_local() {
        let code = call(handle.get()?, TRY);
        let unfinished = code == INTERRUPTED || is_too_early(code) && timeout != TRY;
        if !unfinished {
            return Ok(code);
        }
    }
    let deadline = u64::try_from(timeout)
        .ok()
        .and_then(|nanoseconds| Instant::now().checked_add(Duration::from_nanos(nanoseconds)));
    let mut left = timeout;
    loop {
        let code = handle.using(py, |open| call(open, left))?;
        if code != INTERRUPTED {
            return Ok(code);
        }
        py.check_signals()?;
        if let Some(deadline) = deadline {
            let rest = deadline.saturating_duration_since(Instant::now());
            left = i64::try_from(rest.as_nanos()).unwrap_or(NEVER);
        }
    }
}

/// Calls a function of the library that waits through signals: Python's handlers run in the middle of the wait, and one that
/// raises ends it. The function's code, and what was raised.
pub(crate) fn through_signals(
    py: Python<'_>,
    call: impl FnOnce(OnSignal, *mut c_void) -> i32 + Send,
) -> (i32, Option<PyErr>) {
    let mut raised: Option<PyErr> = None;
    let context = (&raw mut raised).expose_provenance();
    let code = py.detach(|| {
        let code = call(hear, std::ptr::with_exposed_provenance_mut(context));
        stay_out_of_an_ending_interpreter();
        code
    });
    (code, raised)
}

/// What the library calls at a signal; `context` is where an exception goes.
unsafe extern "C" fn hear(context: *mut c_void) -> c_int {
    stay_out_of_an_ending_interpreter();
    let Err(error) = Python::attach(|py| py.check_signals()) else {
        return 0;
    };
    // SAFETY: `through_signals` lends it, to this thread alone, until the call is over.
    let raised = unsafe { &mut *context.cast::<Option<PyErr>>() };
    raised.get_or_insert(error);
    1
}

/// Comes back at once, except in a thread that has lost its interpreter: that one never does.
///
/// CPython before 3.14 ends a thread that takes the interpreter lock in an ending interpreter by unwinding its stack,
/// which Rust frames do not survive. The process ends soon, and the thread with it.
pub(crate) fn stay_out_of_an_ending_interpreter() {
    static IS_FINALIZING: OnceLock<Option<unsafe extern "C" fn() -> c_int>> = OnceLock::new();
    let is_finalizing = IS_FINALIZING.get_or_init(|| {
        [c"Py_IsFinalizing", c"_Py_IsFinalizing"]
            .into_iter()
            .find_map(|name| {
                // SAFETY: the name is NUL-terminated; the handle is one of the two that need no library.
                let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
                // SAFETY: under both names CPython has a function of this type; a null pointer reads as None.
                unsafe { std::mem::transmute(symbol) }
            })
    });
    let Some(is_finalizing) = is_finalizing else {
        return;
    };
    // SAFETY: it reads an atomic word and needs no interpreter lock.
    let ending = unsafe { is_finalizing() } != 0;
    if ending && !is_main_thread() {
        loop {
            // SAFETY: it has no preconditions.
            unsafe { libc::pause() };
        }
    }
}

fn is_main_thread() -> bool {
    // SAFETY: it has no preconditions.
    let thread = unsafe { libc::gettid() };
    u32::try_from(thread) == Ok(std::process::id())
}
