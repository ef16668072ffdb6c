//! Names that stand for objects, in all processes of the runtime.

use std::ffi::CString;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::api::{self, DESCRIPTOR, NamedValue};
use crate::error::check;

/// Lasts until somebody takes the name back.
const UNTIL_UNPUBLISHED: i32 = 0;

/// Lets a name stand for the object that a descriptor names. Raises `NameTakenError` when it stands for something already.
#[pyfunction]
pub(crate) fn publish(py: Python<'_>, name: &str, descriptor: [u8; DESCRIPTOR]) -> PyResult<()> {
    let api = api::api()?;
    let name = c_string(name)?;
    let code = py.detach(|| {
        // SAFETY: name and descriptor are readable.
        unsafe { (api.dragon_name_publish)(name.as_ptr(), descriptor.as_ptr(), UNTIL_UNPUBLISHED) }
    });
    check(py, api, code)
}

/// The descriptor that a name stands for. Raises `NoSuchNameError` when it stands for nothing.
#[pyfunction]
pub(crate) fn lookup(py: Python<'_>, name: &str) -> PyResult<[u8; DESCRIPTOR]> {
    let api = api::api()?;
    let name = c_string(name)?;
    let mut value = NamedValue::default();
    let code = py.detach(|| {
        let (value, nothing) = (&raw mut value, std::ptr::null_mut());
        // SAFETY: the name is readable and the result is writable; there is no room for bytes.
        unsafe { (api.dragon_name_lookup)(name.as_ptr(), value, nothing, 0) }
    });
    check(py, api, code)?;
    Ok(value.descriptor)
}

/// Takes a name back.
#[pyfunction]
pub(crate) fn unpublish(py: Python<'_>, name: &str) -> PyResult<()> {
    let api = api::api()?;
    let name = c_string(name)?;
    let code = py.detach(|| {
        // SAFETY: the name is readable.
        unsafe { (api.dragon_name_unpublish)(name.as_ptr()) }
    });
    check(py, api, code)
}

fn c_string(name: &str) -> PyResult<CString> {
    CString::new(name).map_err(|_| PyValueError::new_err("a name has no NUL in it"))
}
