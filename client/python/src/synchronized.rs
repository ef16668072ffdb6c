//! A value that is only looked at and changed under its lock.

use pyo3::intern;
use pyo3::prelude::*;

use crate::api::NEVER;
use crate::sync::Lock;

/// What has the attribute `value`, each access to which is made with the lock held.
///
/// It is the part of `multiprocessing.sharedctypes.Synchronized` that programs use most: without it each access is a function
/// of Python that calls three others.
#[pyclass(frozen, subclass, module = "dragon._native")]
#[derive(Debug)]
pub(crate) struct Synchronized {
    object: Py<PyAny>,
    lock: Py<Lock>,
}

#[pymethods]
impl Synchronized {
    /// `more` is for subclasses that are made with more arguments.
    #[new]
    #[pyo3(signature = (object, lock, *more))]
    fn new(object: Py<PyAny>, lock: Py<Lock>, more: &Bound<'_, PyAny>) -> Self {
        let _ = more;
        Self { object, lock }
    }

    /// The value at this moment.
    #[getter]
    fn value<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.locked(py, |object| object.getattr(intern!(py, "value")))
    }

    #[setter]
    fn set_value(&self, py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.locked(py, |object| object.setattr(intern!(py, "value"), value))
    }
}

impl Synchronized {
    fn locked<'py, T>(
        &self,
        py: Python<'py>,
        access: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<T>,
    ) -> PyResult<T> {
        let lock = self.lock.get();
        lock.take(py, NEVER)?;
        let result = access(self.object.bind(py));
        lock.release(py)?;
        result
    }
}
