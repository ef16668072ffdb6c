//! The library and the runtime.

use std::ffi::{CString, c_char};
use std::sync::LazyLock;

use dragon_protocol::{Code, RELEASE};

use super::function::{Out, functions};
use super::{fill, guard, list};
use crate::session::Session;

/// `dragon_runtime`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonRuntime {
    /// The runtime's id.
    pub runtime: u64,
    /// This process's node.
    pub node: u32,
    /// How many nodes.
    pub nodes: u32,
    /// CPUs granted, on all nodes together.
    pub cpus: u32,
    /// The node that runs global services.
    pub global_services: u32,
    /// This process's slot on its node.
    pub slot: u32,
    /// Generation of the slot.
    pub slot_generation: u32,
}

/// `dragon_node`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonNode {
    /// Its index.
    pub node: u32,
    /// CPUs granted.
    pub cpus: u32,
    /// Bytes granted.
    pub memory: u64,
    /// Process id of its daemon.
    pub pid: u32,
    /// Host name, NUL-terminated.
    pub host: [c_char; 260],
    /// Address, NUL-terminated.
    pub address: [c_char; 64],
}

/// `dragon_stat`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonStat {
    /// Name of the counter, NUL-terminated.
    pub name: [c_char; 56],
    /// Its value.
    pub value: u64,
}

/// See `dragon.h`.
#[unsafe(no_mangle)]
pub extern "C" fn dragon_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    const _: () = assert!(VERSION.len() == RELEASE.len() + 1);
    VERSION.as_ptr().cast()
}

/// See `dragon.h`.
#[unsafe(no_mangle)]
pub extern "C" fn dragon_code_text(code: i32) -> *const c_char {
    const CODES: i32 = 64;
    static TEXTS: LazyLock<Vec<CString>> = LazyLock::new(|| {
        let text = |code| match Code::from_i32(code) {
            Code::Corrupt if code != Code::Corrupt.to_i32() => "a code of a later release",
            code => code.text(),
        };
        (0..=CODES)
            .map(|code| CString::new(text(code)).unwrap_or_default())
            .collect()
    });
    let index = usize::try_from(code.clamp(0, CODES)).unwrap_or(0);
    let known = if code < 0 {
        TEXTS.last()
    } else {
        TEXTS.get(index)
    };
    known.map_or(c"".as_ptr(), |text| text.as_ptr())
}

/// See `dragon.h`.
#[unsafe(no_mangle)]
pub extern "C" fn dragon_attach() -> i32 {
    guard(|| Session::attach_or_start().map(drop))
}

/// See `dragon.h`.
#[unsafe(no_mangle)]
pub extern "C" fn dragon_is_attached() -> i32 {
    Session::current().is_some().into()
}

/// See `dragon.h`.
#[unsafe(no_mangle)]
pub extern "C" fn dragon_detach() -> i32 {
    guard(Session::detach)
}

functions! {
    fn dragon_runtime_info(info: Out<DragonRuntime>) {
        let session = Session::attach_or_start()?;
        let membership = session.nodes()?;
        info.put(DragonRuntime {
            runtime: session.runtime().0,
            node: session.node().get(),
            nodes: u32::try_from(membership.nodes.len()).unwrap_or(u32::MAX),
            cpus: membership
                .nodes
                .iter()
                .fold(0, |sum: u32, node| sum.saturating_add(node.cpus)),
            global_services: membership.global_services.get(),
            slot: session.slot().index,
            slot_generation: session.slot().generation,
        });
        Ok(())
    }

    fn dragon_nodes(nodes: *mut DragonNode, capacity: usize, count: Out<usize>) {
        let membership = Session::attach_or_start()?.nodes()?;
        let all = membership.nodes.iter().map(|node| {
            let mut shown = DragonNode {
                node: node.node.get(),
                cpus: node.cpus,
                memory: node.memory,
                pid: node.pid,
                host: [0; 260],
                address: [0; 64],
            };
            fill(&mut shown.host, &node.host);
            fill(&mut shown.address, &node.address);
            shown
        });
        // SAFETY: the caller's promise.
        unsafe { list(all, nodes, capacity, count) }
    }

    fn dragon_stats(stats: *mut DragonStat, capacity: usize, count: Out<usize>) {
        let counted = Session::attach_or_start()?.stats()?;
        let all = counted.iter().map(|(name, value)| {
            let mut shown = DragonStat {
                name: [0; 56],
                value: *value,
            };
            fill(&mut shown.name, name);
            shown
        });
        // SAFETY: the caller's promise.
        unsafe { list(all, stats, capacity, count) }
    }
}
