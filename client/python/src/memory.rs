//! Memory that processes share.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::api::{self, Bytes, DESCRIPTOR};
use crate::channel::View;
use crate::error::check;
use crate::handle::Handle;
use crate::sync::kind;

kind!(
    MemoryKind,
    "Memory",
    dragon_memory_attach,
    dragon_memory_close,
    dragon_memory_descriptor,
    dragon_memory_export
);

/// Bytes that lie on one node, mapped by the processes there; those of other nodes copy to and from them.
#[pyclass(frozen, module = "dragon._native")]
#[derive(Debug)]
pub(crate) struct Memory {
    handle: Handle<MemoryKind>,
    /// Null when they lie on another node.
    data: AtomicUsize,
    length: usize,
    /// Python objects that refer to them.
    views: AtomicUsize,
}

#[pymethods]
impl Memory {
    /// Makes memory that is all zeros. `user`: a number that no other memory of the node has.
    #[new]
    fn new(py: Python<'_>, length: usize, user: u64) -> PyResult<Self> {
        let api = api::api()?;
        let mut object = std::ptr::null_mut();
        let zeros = std::ptr::null();
        // SAFETY: without contents it is zeros; the result is writable.
        let code = unsafe { (api.dragon_memory_create)(user, zeros, length, &raw mut object) };
        check(py, api, code)?;
        Self::of(py, Handle::new(object, true))
    }

    /// A handle from a descriptor. `adopt`: take over the reference that `export` counted.
    #[staticmethod]
    #[pyo3(signature = (descriptor, adopt=false))]
    fn attach(py: Python<'_>, descriptor: &[u8], adopt: bool) -> PyResult<Self> {
        Self::of(py, Handle::attach(py, descriptor, adopt)?)
    }

    /// Copies bytes out.
    fn read<'py>(&self, py: Python<'py>, at: u64, length: usize) -> PyResult<Bound<'py, PyBytes>> {
        let api = api::api()?;
        let mut bytes = vec![0_u8; length];
        let code = self.handle.call(py, |open| {
            let to = bytes.as_mut_ptr().cast();
            // SAFETY: the object is open, and the result has room for so many bytes.
            unsafe { (api.dragon_memory_read)(open.object(), at, to, length) }
        })?;
        check(py, api, code)?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Copies bytes in.
    fn write(&self, py: Python<'_>, at: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let api = api::api()?;
        let view = View::of(data)?;
        let bytes = Readable(view.bytes());
        let code = self.handle.call(py, |open| {
            let Bytes { data, length } = bytes.get();
            // SAFETY: the object is open; the caller holds the view of the bytes.
            unsafe { (api.dragon_memory_write)(open.object(), at, data, length) }
        })?;
        check(py, api, code)
    }

    fn __len__(&self) -> usize {
        self.length
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

    /// Whether it lies on this node: then it has a buffer.
    fn is_local(&self) -> bool {
        self.handle.is_local()
    }

    /// Gives the handle back; refused while something refers to the bytes.
    fn close(&self) -> PyResult<()> {
        match self.views.load(Relaxed) {
            0 => {
                self.data.store(0, Relaxed);
                self.handle.close();
                Ok(())
            }
            views => Err(PyBufferError::new_err(format!(
                "{views} objects refer to this memory: release them before it is closed"
            ))),
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "the form that the slot has")]
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let this = slf.get();
        this.handle.get()?;
        let data: *mut c_void = std::ptr::with_exposed_provenance_mut(this.data.load(Relaxed));
        if data.is_null() {
            return Err(PyBufferError::new_err(
                "this memory lies on another node, and cannot be mapped here: read and write it",
            ));
        }
        let length = ffi::Py_ssize_t::try_from(this.length).unwrap_or(ffi::Py_ssize_t::MAX);
        const WRITABLE: c_int = 0;
        // SAFETY: the interpreter gives a view to fill; the bytes stay as long as this object is open, which it is as long
        // as there are views.
        let filled =
            unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), data, length, WRITABLE, flags) };
        if filled != 0 {
            return Err(PyErr::fetch(slf.py()));
        }
        this.views.fetch_add(1, Relaxed);
        Ok(())
    }

    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.views.fetch_sub(1, Relaxed);
    }
}

impl Memory {
    fn of(py: Python<'_>, handle: Handle<MemoryKind>) -> PyResult<Self> {
        let api = api::api()?;
        let (mut data, mut length) = (std::ptr::null_mut(), 0);
        let object = handle.get()?.object();
        // SAFETY: the object is open and the results are writable.
        let code = unsafe { (api.dragon_memory_data)(object, &raw mut data, &raw mut length) };
        check(py, api, code)?;
        Ok(Self {
            handle,
            data: AtomicUsize::new(data.expose_provenance()),
            length: usize::try_from(length).unwrap_or(usize::MAX),
            views: AtomicUsize::new(0),
        })
    }
}

/// Bytes on their way to the library.
struct Readable(Bytes);

impl Readable {
    fn get(&self) -> Bytes {
        self.0
    }
}

// SAFETY: the pointer leads to bytes that a view holds, which any thread may read.
unsafe impl Sync for Readable {}
