//! Processes of the runtime, and how they are started.

use std::ffi::CString;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::api::{self, Api, BY_POLICY, Bytes, DESCRIPTOR, OK, Object, SpawnRequest, SpawnResult};
use crate::channel::Channel;
use crate::error::{check, error};
use crate::handle::{Handle, Kind};
use crate::wait::{is_too_early, timeout, wait};

#[derive(Debug)]
pub(crate) struct ProcessKind;

impl Kind for ProcessKind {
    const NAME: &'static str = "Process";
    fn attach(api: &Api) -> unsafe extern "C" fn(*const u8, i32, *mut Object) -> i32 {
        api.dragon_process_attach
    }
    fn close(api: &Api) -> unsafe extern "C" fn(Object) -> i32 {
        api.dragon_process_close
    }
    fn descriptor(api: &Api) -> unsafe extern "C" fn(Object, *mut u8) -> i32 {
        api.dragon_process_descriptor
    }
    fn export(api: &Api) -> unsafe extern "C" fn(Object, *mut u8) -> i32 {
        api.dragon_process_export
    }
}

/// A process that the runtime started.
#[pyclass(frozen, module = "dragon._native")]
#[derive(Debug)]
pub(crate) struct Process {
    handle: Handle<ProcessKind>,
}

#[pymethods]
impl Process {
    /// A handle from a descriptor. `adopt`: take over the reference that `export` counted.
    #[staticmethod]
    #[pyo3(signature = (descriptor, adopt=false))]
    fn attach(py: Python<'_>, descriptor: &[u8], adopt: bool) -> PyResult<Self> {
        Ok(Self {
            handle: Handle::attach(py, descriptor, adopt)?,
        })
    }

    /// Waits for its end; its status as `waitpid` gives it, or None when it still ran at the end of the time.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Option<i32>> {
        let api = api::api()?;
        let mut status = 0;
        let code = wait(py, &self.handle, self::timeout(timeout)?, |open, left| {
            // SAFETY: the object is open and the result is writable.
            unsafe { (api.dragon_process_wait)(open.object(), left, &raw mut status) }
        })?;
        if is_too_early(code) {
            return Ok(None);
        }
        check(py, api, code)?;
        Ok(Some(status))
    }

    /// Sends it a signal.
    fn signal(&self, py: Python<'_>, number: i32) -> PyResult<()> {
        let api = api::api()?;
        let code = self.handle.using(py, |open| {
            // SAFETY: the object is open.
            unsafe { (api.dragon_process_signal)(open.object(), number) }
        })?;
        check(py, api, code)
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

    /// Whether it runs on this node.
    fn is_local(&self) -> bool {
        self.handle.is_local()
    }

    /// Gives the handle back.
    fn close(&self) {
        self.handle.close();
    }
}

/// A process and its pid, or the exception that says why there is none.
#[derive(IntoPyObject)]
pub(crate) enum Started<'py> {
    #[pyo3(transparent)]
    Running((Process, u32)),
    #[pyo3(transparent)]
    Failed(Bound<'py, PyAny>),
}

/// What workers run in: the path of an interpreter, its options, and what it is to import before it forks them.
#[derive(FromPyObject)]
pub(crate) struct Interpreter<'py>(
    Bound<'py, PyBytes>,
    Vec<Bound<'py, PyBytes>>,
    Bound<'py, PyBytes>,
);

/// Starts a Python worker with this process's environment and directory. `node` None: where the policy says.
/// `notify` gets a notice of its end. `with_creator`: it is killed when this process has ended.
#[pyfunction]
#[pyo3(signature = (interpreter, payload, node=None, notify=None, with_creator=false))]
pub(crate) fn spawn_python(
    py: Python<'_>,
    interpreter: Interpreter<'_>,
    payload: &[u8],
    node: Option<i32>,
    notify: Option<&Bound<'_, Channel>>,
    with_creator: bool,
) -> PyResult<(Process, u32)> {
    let results = start(py, &interpreter, &[payload], &[node], notify, with_creator)?;
    match results.as_slice() {
        [result] if result.code == OK => process(py, result),
        [result] => Err(error(py, api::api()?, result.code)),
        _ => unreachable!("one request has one result"),
    }
}

/// Starts workers with one request; for each a process and its pid, or the exception that says why not.
#[pyfunction]
#[pyo3(signature = (interpreter, payloads, nodes, notify=None, with_creator=false))]
pub(crate) fn spawn_python_many<'py>(
    py: Python<'py>,
    interpreter: Interpreter<'py>,
    payloads: Vec<Bound<'py, PyBytes>>,
    nodes: Vec<Option<i32>>,
    notify: Option<&Bound<'py, Channel>>,
    with_creator: bool,
) -> PyResult<Vec<Started<'py>>> {
    let api = api::api()?;
    let payloads: Vec<&[u8]> = payloads.iter().map(|payload| payload.as_bytes()).collect();
    let results = start(py, &interpreter, &payloads, &nodes, notify, with_creator)?;
    results
        .iter()
        .map(|result| {
            Ok(if result.code == OK {
                Started::Running(process(py, result)?)
            } else {
                // The text is of the last one that failed; the kind is each one's own.
                Started::Failed(
                    error(py, api, result.code)
                        .into_value(py)
                        .into_bound(py)
                        .into_any(),
                )
            })
        })
        .collect()
}

fn process(py: Python<'_>, result: &SpawnResult) -> PyResult<(Process, u32)> {
    let remote = Handle::<ProcessKind>::new(result.process, false);
    let descriptor = remote.descriptor(py)?;
    let node = u32::from_le_bytes([descriptor[4], descriptor[5], descriptor[6], descriptor[7]]);
    let local = node == crate::runtime::runtime_info(py)?.node;
    Ok((
        Process {
            handle: remote.with_place(local),
        },
        result.pid,
    ))
}

/// Pointers to what the caller holds, on their way to the library.
struct Requests(Vec<SpawnRequest>, Vec<SpawnResult>);

// SAFETY: what the pointers lead to does not change and is held by the caller until the call is over.
unsafe impl Send for Requests {}

fn start(
    py: Python<'_>,
    interpreter: &Interpreter<'_>,
    payloads: &[&[u8]],
    nodes: &[Option<i32>],
    notify: Option<&Bound<'_, Channel>>,
    with_creator: bool,
) -> PyResult<Vec<SpawnResult>> {
    let api = api::api()?;
    let Interpreter(path, options, preload) = interpreter;
    let path = CString::new(path.as_bytes())
        .map_err(|_| PyValueError::new_err("the path of an interpreter has no NUL in it"))?;
    if payloads.len() != nodes.len() {
        return Err(PyValueError::new_err(format!(
            "{} payloads for {} nodes",
            payloads.len(),
            nodes.len()
        )));
    }
    let options: Vec<_> = options
        .iter()
        .map(|option| Bytes::new(option.as_bytes()))
        .collect();
    let request = |payload: &[u8], node: Option<i32>, notify: Object| SpawnRequest {
        size: size_of::<SpawnRequest>(),
        node: node.unwrap_or(BY_POLICY),
        output: 0,
        argv: options.as_ptr(),
        argc: options.len(),
        interpreter: path.as_ptr(),
        preload: Bytes::new(preload.as_bytes()),
        payload: Bytes::new(payload),
        environment: std::ptr::null(),
        directory: std::ptr::null(),
        notify,
        lives: with_creator.into(),
    };
    let failed = SpawnResult {
        code: api::INTERRUPTED,
        pid: 0,
        process: std::ptr::null_mut(),
    };
    let notify_object = match notify {
        Some(channel) => channel.get().handle().get()?.object(),
        None => std::ptr::null_mut(),
    };
    let requests = payloads
        .iter()
        .zip(nodes)
        .map(|(payload, node)| request(payload, *node, notify_object))
        .collect();
    let mut requests = Requests(requests, vec![failed; payloads.len()]);
    let call = || {
        let Requests(requests, results) = &mut requests;
        // SAFETY: both lists have the length that is given; everything the requests point to lives until after the call.
        unsafe { (api.dragon_spawn_many)(requests.as_ptr(), requests.len(), results.as_mut_ptr()) }
    };
    // The results say how each ended.
    match notify {
        Some(channel) => {
            let requests_call = call;
            channel.get().handle().using(py, |_| {
                let mut call = requests_call;
                call()
            })?
        }
        None => py.detach(call),
    };
    Ok(requests.1)
}
