//! Channels, and the messages that come out of them.

use std::ffi::c_int;

use pyo3::exceptions::{PyEOFError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PySequence};

use crate::api::{self, Api, Bytes, ChannelOptions, DESCRIPTOR, OK, Object, RawMessage, TRY};
use crate::error::{check, error};
use crate::handle::{Handle, Kind};
use crate::wait::{is_too_early, timeout, wait};

/// Messages up to here become Python bytes; larger ones are leased, so that nothing is copied.
const LEASE: usize = 64 * 1024;
/// The hint of the message that says: there is nothing more.
const END: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct ChannelKind;

impl Kind for ChannelKind {
    const NAME: &'static str = "Channel";
    fn attach(api: &Api) -> unsafe extern "C" fn(*const u8, i32, *mut Object) -> i32 {
        api.dragon_channel_attach
    }
    fn close(api: &Api) -> unsafe extern "C" fn(Object) -> i32 {
        api.dragon_channel_close
    }
    fn descriptor(api: &Api) -> unsafe extern "C" fn(Object, *mut u8) -> i32 {
        api.dragon_channel_descriptor
    }
    fn export(api: &Api) -> unsafe extern "C" fn(Object, *mut u8) -> i32 {
        api.dragon_channel_export
    }
}

/// What pickle asks for: a function and its arguments.
type Reduced<'py> = (Bound<'py, PyAny>, ([u8; DESCRIPTOR], bool));

/// A first-in-first-out channel. With a limit it grows up to so many messages.
#[pyclass(frozen, module = "dragon._native")]
#[derive(Debug)]
pub(crate) struct Channel {
    handle: Handle<ChannelKind>,
}

#[pymethods]
impl Channel {
    #[new]
    #[pyo3(signature = (capacity=256, block=192, user=0, limit=0))]
    fn new(py: Python<'_>, capacity: u32, block: u32, user: u64, limit: u32) -> PyResult<Self> {
        let api = api::api()?;
        let mut object = std::ptr::null_mut();
        let options = ChannelOptions {
            size: size_of::<ChannelOptions>(),
            user,
            capacity,
            block,
            limit,
            reserved: 0,
        };
        // SAFETY: the options are readable, the result is writable.
        let code = unsafe { (api.dragon_channel_create)(&raw const options, &raw mut object) };
        check(py, api, code)?;
        Ok(Self {
            handle: Handle::new(object, true),
        })
    }

    /// A handle from a descriptor. `adopt`: take over the reference that `export` counted.
    #[staticmethod]
    #[pyo3(signature = (descriptor, adopt=false))]
    fn attach(py: Python<'_>, descriptor: &[u8], adopt: bool) -> PyResult<Self> {
        Ok(Self {
            handle: Handle::attach(py, descriptor, adopt)?,
        })
    }

    /// Sends a message. False when there was no room in time.
    #[pyo3(signature = (data, hint=0, timeout=None))]
    fn send(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        hint: u64,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let timeout = self::timeout(timeout)?;
        let view = View::of(data)?;
        self.send_views(py, &[view], hint, timeout)
    }

    /// Sends pieces as one message. False when there was no room in time.
    #[pyo3(signature = (parts, hint=0, timeout=None))]
    fn send_parts(
        &self,
        py: Python<'_>,
        parts: &Bound<'_, PySequence>,
        hint: u64,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let timeout = self::timeout(timeout)?;
        let mut views = Vec::with_capacity(parts.len()?);
        for part in parts.try_iter()? {
            views.push(View::of(&part?)?);
        }
        self.send_views(py, &views, hint, timeout)
    }

    /// Marks the end of the stream, unless there is no room.
    fn send_end(&self, py: Python<'_>) -> PyResult<bool> {
        self.send_views(py, &[], END, TRY)
    }

    /// Receives a message as bytes; None when none came in time. Raises EOFError at the end of the stream.
    #[pyo3(signature = (timeout=None))]
    fn receive<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let message = self.next(py, self::timeout(timeout)?)?;
        Ok(message.map(|message| PyBytes::new(py, message.bytes())))
    }

    /// The same, as a leased `Message` where that saves copying much.
    #[pyo3(signature = (timeout=None))]
    fn receive_object<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.next(py, self::timeout(timeout)?)?
            .map(|message| message.into_python(py))
            .transpose()
    }

    /// The same, together with the message's hint.
    #[pyo3(signature = (timeout=None))]
    fn receive_tagged<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<(u64, Bound<'py, PyAny>)>> {
        self.next(py, self::timeout(timeout)?)?
            .map(|message| Ok((message.raw.hint, message.into_python(py)?)))
            .transpose()
    }

    /// Waits until there is something to receive; how many messages there are.
    #[pyo3(signature = (timeout=None))]
    fn poll(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
        let api = api::api()?;
        let mut count = 0;
        let result = &raw mut count;
        let result = result.expose_provenance();
        let code = wait(py, &self.handle, self::timeout(timeout)?, |open, left| {
            let result = std::ptr::with_exposed_provenance_mut(result);
            // SAFETY: the object is open and the result is writable.
            let code = unsafe { (api.dragon_channel_poll)(open.object(), left, result) };
            // SAFETY: the result is still there.
            let nothing = code == OK && unsafe { *result } == 0;
            if nothing { api::EMPTY } else { code }
        })?;
        if is_too_early(code) {
            return Ok(0);
        }
        check(py, api, code)?;
        Ok(count)
    }

    /// How many messages are in it, and how many it can hold.
    fn attributes(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        let api = api::api()?;
        let (code, count, capacity) = self.handle.call(py, |open| {
            let (mut count, mut capacity) = (0, 0);
            // SAFETY: the object is open and the results are writable.
            let code = unsafe {
                (api.dragon_channel_attributes)(open.object(), &raw mut count, &raw mut capacity)
            };
            (code, count, capacity)
        })?;
        check(py, api, code)?;
        Ok((count, capacity))
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

    /// Fails all operations on it, of everybody, from now on.
    fn destroy(&self, py: Python<'_>) -> PyResult<()> {
        let api = api::api()?;
        let code = self.handle.using(py, |open| {
            // SAFETY: the object is open.
            unsafe { (api.dragon_channel_destroy)(open.object()) }
        })?;
        check(py, api, code)
    }

    /// Whether it lies on this node.
    fn is_local(&self) -> bool {
        self.handle.is_local()
    }

    /// Gives the handle back.
    fn close(&self) {
        self.handle.close();
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Reduced<'py>> {
        let attach = py.get_type::<Self>().getattr("attach")?;
        Ok((attach, (self.handle.export(py)?, true)))
    }
}

impl Channel {
    /// The handle, for a request that names this channel.
    pub(crate) fn handle(&self) -> &Handle<ChannelKind> {
        &self.handle
    }

    fn send_views(
        &self,
        py: Python<'_>,
        views: &[View],
        hint: u64,
        timeout: i64,
    ) -> PyResult<bool> {
        let api = api::api()?;
        let code = if let [view] = views {
            self.send_parts_of(py, api, &Parts(&[view.bytes()]), hint, timeout)
        } else {
            let parts: Vec<Bytes> = views.iter().map(View::bytes).collect();
            self.send_parts_of(py, api, &Parts(&parts), hint, timeout)
        }?;
        if code == OK {
            return Ok(true);
        }
        if is_too_early(code) {
            return Ok(false);
        }
        Err(error(py, api, code))
    }

    fn send_parts_of(
        &self,
        py: Python<'_>,
        api: &Api,
        parts: &Parts<'_>,
        hint: u64,
        timeout: i64,
    ) -> PyResult<i32> {
        wait(py, &self.handle, timeout, |open, left| {
            let parts = parts.list();
            // SAFETY: the object is open; the views that the parts come from are held by the caller.
            unsafe {
                (api.dragon_channel_send)(open.object(), parts.as_ptr(), parts.len(), hint, left)
            }
        })
    }

    fn next(&self, py: Python<'_>, timeout: i64) -> PyResult<Option<Received>> {
        let api = api::api()?;
        let mut message = Received {
            raw: RawMessage::empty(),
        };
        let code = wait(py, &self.handle, timeout, |open, left| {
            // The whole of it, which is Send, and not its field.
            let message = &mut message;
            // SAFETY: the object is open and the result is writable.
            unsafe { (api.dragon_channel_receive)(open.object(), left, &raw mut message.raw) }
        })?;
        if is_too_early(code) {
            return Ok(None);
        }
        check(py, api, code)?;
        if message.raw.hint == END {
            return Err(PyEOFError::new_err(()));
        }
        Ok(Some(message))
    }
}

/// Parts of a message on their way to the library.
struct Parts<'a>(&'a [Bytes]);

impl Parts<'_> {
    fn list(&self) -> &[Bytes] {
        self.0
    }
}

// SAFETY: the pointers lead to bytes that the views hold, which any thread may read.
unsafe impl Sync for Parts<'_> {}

/// A message that was received and not yet released.
#[derive(Debug)]
struct Received {
    raw: RawMessage,
}

// SAFETY: a message belongs to the process, not to the thread that received it.
unsafe impl Send for Received {}
// SAFETY: it is only read while it is shared.
unsafe impl Sync for Received {}

impl Received {
    fn bytes(&self) -> &[u8] {
        if self.raw.length == 0 {
            return &[];
        }
        // SAFETY: the library gives `length` bytes that are this process's alone until the message is released.
        unsafe { std::slice::from_raw_parts(self.raw.data.cast(), self.raw.length) }
    }

    fn into_python(self, py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        if self.raw.length <= LEASE {
            return Ok(PyBytes::new(py, self.bytes()).into_any());
        }
        Ok(Bound::new(py, Message(self))?.into_any())
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some(api) = api::loaded() {
            // SAFETY: it was received, or is still zero.
            unsafe { (api.dragon_message_release)(&raw mut self.raw) };
        }
    }
}

/// A received message that lies where it was sent to. Its bytes are released with the last view of them.
#[pyclass(frozen, module = "dragon._native")]
#[derive(Debug)]
pub(crate) struct Message(Received);

#[pymethods]
impl Message {
    /// The number that was sent with it.
    #[getter]
    fn hint(&self) -> u64 {
        self.0.raw.hint
    }

    fn __len__(&self) -> usize {
        self.0.raw.length
    }

    #[expect(clippy::needless_pass_by_value, reason = "the form that the slot has")]
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let raw = &slf.get().0.raw;
        let length = ffi::Py_ssize_t::try_from(raw.length).unwrap_or(ffi::Py_ssize_t::MAX);
        /// Writable: the bytes are this process's alone.
        const READ_ONLY: c_int = 0;
        // SAFETY: the interpreter gives a view to fill; the bytes live as long as this object, which the view holds.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                raw.data.cast_mut(),
                length,
                READ_ONLY,
                flags,
            )
        };
        if filled == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}

/// Bytes of a Python object, held as long as this lives.
pub(crate) struct View {
    buffer: Option<Box<ffi::Py_buffer>>,
    bytes: Bytes,
}

impl View {
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        // The caller of the method that this is for holds the object.
        if let Ok(bytes) = object.cast_exact::<PyBytes>() {
            return Ok(Self {
                buffer: None,
                bytes: Bytes::new(bytes.as_bytes()),
            });
        }
        let mut buffer = Box::new(ffi::Py_buffer::new());
        // SAFETY: the object is one, and the result is writable.
        let code = unsafe {
            ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut *buffer, ffi::PyBUF_SIMPLE)
        };
        if code != 0 {
            let cause = PyErr::fetch(object.py());
            let text = format!(
                "a message is made of bytes or something like it, not of {}",
                object.get_type().name()?
            );
            let error = PyTypeError::new_err(text);
            error.set_cause(object.py(), Some(cause));
            return Err(error);
        }
        let bytes = Bytes {
            data: buffer.buf,
            length: usize::try_from(buffer.len).unwrap_or_default(),
        };
        Ok(Self {
            buffer: Some(buffer),
            bytes,
        })
    }

    pub(crate) fn bytes(&self) -> Bytes {
        self.bytes
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(buffer) = &mut self.buffer {
            // SAFETY: it was filled by PyObject_GetBuffer, and views only live while the interpreter lock is held.
            unsafe { ffi::PyBuffer_Release(&raw mut **buffer) };
        }
    }
}
