//! The runtime, its nodes, and what a process of it needs from the system.

use std::ffi::{CStr, c_char};
use std::io;
use std::sync::OnceLock;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::api::{self, RawNode, RawStat, RuntimeInfo};
use crate::error::check;

/// The release of this package.
#[pyfunction]
pub(crate) fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Loads the library without attaching, so that a process forked from this one need not.
#[pyfunction]
pub(crate) fn warm_up() -> PyResult<()> {
    api::api().map(|_| ())
}

/// Attaches this process to the runtime now.
#[pyfunction]
pub(crate) fn attach(py: Python<'_>) -> PyResult<()> {
    let api = api::api()?;
    // SAFETY: it has no preconditions.
    let code = py.detach(|| unsafe { (api.dragon_attach)() });
    check(py, api, code)
}

/// Whether this process is attached.
#[pyfunction]
pub(crate) fn is_attached() -> PyResult<bool> {
    let api = api::api()?;
    // SAFETY: it has no preconditions.
    Ok(unsafe { (api.dragon_is_attached)() } == 1)
}

/// This process's place, read once: it does not change as long as the process runs.
pub(crate) fn runtime_info(py: Python<'_>) -> PyResult<&'static RuntimeInfo> {
    static INFO: OnceLock<RuntimeInfo> = OnceLock::new();
    if let Some(info) = INFO.get() {
        return Ok(info);
    }
    let info = read_info(py)?;
    Ok(INFO.get_or_init(|| info))
}

fn read_info(py: Python<'_>) -> PyResult<RuntimeInfo> {
    let api = api::api()?;
    let mut info = RuntimeInfo::default();
    // SAFETY: the result is writable.
    let code = py.detach(|| unsafe { (api.dragon_runtime_info)(&raw mut info) });
    check(py, api, code)?;
    Ok(info)
}

/// The runtime, and this process's place in it.
#[pyfunction]
pub(crate) fn info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = read_info(py)?;
    let dict = PyDict::new(py);
    dict.set_item("runtime", format!("{:016x}", info.runtime))?;
    dict.set_item("node", info.node)?;
    dict.set_item("nodes", info.nodes)?;
    dict.set_item("cpus", info.cpus)?;
    dict.set_item("global_services", info.global_services)?;
    dict.set_item("slot", (info.slot, info.slot_generation))?;
    Ok(dict)
}

/// Index, host, CPUs and memory of each node.
#[pyfunction]
pub(crate) fn nodes(py: Python<'_>) -> PyResult<Vec<(u32, String, u32, u64)>> {
    let api = api::api()?;
    let list = read_list(py, RawNode::EMPTY, |entries, capacity, count| {
        // SAFETY: there is room for as many entries as `capacity` says.
        unsafe { (api.dragon_nodes)(entries, capacity, count) }
    })?;
    Ok(list
        .iter()
        .map(|node| (node.node, text(&node.host), node.cpus, node.memory))
        .collect())
}

/// What this node's daemon has counted.
#[pyfunction]
pub(crate) fn stats(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let api = api::api()?;
    let list = read_list(py, RawStat::EMPTY, |entries, capacity, count| {
        // SAFETY: there is room for as many entries as `capacity` says.
        unsafe { (api.dragon_stats)(entries, capacity, count) }
    })?;
    let dict = PyDict::new(py);
    for stat in &list {
        dict.set_item(text(&stat.name), stat.value)?;
    }
    Ok(dict)
}

/// Reads a list of a length that is known only afterwards.
fn read_list<T: Copy + Send>(
    py: Python<'_>,
    empty: T,
    call: impl Fn(*mut T, usize, *mut usize) -> i32 + Send + Sync,
) -> PyResult<Vec<T>> {
    let api = api::api()?;
    let mut list = vec![empty; 64];
    loop {
        let mut count = 0;
        let code = py.detach(|| call(list.as_mut_ptr(), list.len(), &raw mut count));
        check(py, api, code)?;
        if count <= list.len() {
            list.truncate(count);
            return Ok(list);
        }
        list.resize(count, empty);
    }
}

fn text(field: &[c_char]) -> String {
    // SAFETY: any byte is a character and any character a byte; the length is the same.
    let bytes = unsafe { std::slice::from_raw_parts(field.as_ptr().cast::<u8>(), field.len()) };
    CStr::from_bytes_until_nul(bytes)
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// From here on the end of the parent sends this process a signal.
#[pyfunction]
pub(crate) fn set_parent_death_signal(signal: i32) -> PyResult<()> {
    // SAFETY: it changes nothing but this process's signal.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error().into())
    }
}
