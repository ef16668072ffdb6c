//! Error numbers of the library as the exceptions of `dragon._errors`.

use std::ffi::CStr;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::api::{self, Api};

/// The exception for a call of this thread that has just ended with `code`.
pub(crate) fn error(py: Python<'_>, api: &Api, code: i32) -> PyErr {
    // SAFETY: the function has no preconditions.
    let text = unsafe { (api.dragon_last_error)() };
    let text = if text.is_null() {
        String::new()
    } else {
        // SAFETY: a NUL-terminated string that is valid until this thread's next failed call.
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned()
    };
    let exception = py
        .import("dragon._errors")
        .and_then(|errors| errors.call_method1("exception", (code, text)));
    match exception {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// `Ok` when a call ended well, else its exception.
pub(crate) fn check(py: Python<'_>, api: &Api, code: i32) -> PyResult<()> {
    if code == api::OK {
        Ok(())
    } else {
        Err(error(py, api, code))
    }
}

/// The exception of the standard library's locks for a release without an acquire.
pub(crate) fn released_too_often() -> PyErr {
    PyValueError::new_err("semaphore or lock released too many times")
}
