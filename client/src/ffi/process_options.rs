//! With what a process starts, beside its request.

use std::ffi::{OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use dragon_protocol::process::{LimitKind, Lives, Policy};

use super::function::{Wanted, functions};
use super::spawn::DragonSpawnRequest;
use super::{check_size, many, text};
use crate::error::{Error, Result};
use crate::objects::Process;
use crate::spawn::Spawn;
use crate::stdio::Stdio;

/// `DRAGON_UNLIMITED`.
const UNLIMITED: u64 = u64::MAX;

/// `dragon_limit`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonLimit {
    /// Of what.
    pub kind: u32,
    /// 0.
    pub reserved: u32,
    /// The limit that counts.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// `dragon_process_options`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonProcessOptions {
    /// Size of this structure.
    pub size: usize,
    /// How it is placed.
    pub policy: i32,
    /// File mode creation mask, or -1.
    pub umask: i32,
    /// Added to its nice value.
    pub nice: i32,
    /// When it ends without being told.
    pub lives: i32,
    /// Name of a host, or null.
    pub host: *const c_char,
    /// CPUs to reserve.
    pub cpus: u32,
    /// GPUs to reserve.
    pub gpus: u32,
    /// CPUs to reserve by number, or null.
    pub cpu_set: *const u32,
    /// How many.
    pub cpu_count: usize,
    /// NUMA node of the CPUs, or -1.
    pub numa_node: i32,
    /// How output is written.
    pub output: i32,
    /// Nanoseconds to wait for CPUs and GPUs.
    pub resource_timeout: u64,
    /// File to read, or null.
    pub input_file: *const c_char,
    /// File for standard output, or null.
    pub output_file: *const c_char,
    /// File for standard error, or null.
    pub error_file: *const c_char,
    /// Resource limits.
    pub limits: *const DragonLimit,
    /// How many.
    pub limit_count: usize,
}

impl DragonProcessOptions {
    /// # Safety
    /// The pointers are what the header says.
    unsafe fn apply(&self, mut spawn: Spawn) -> Result<Spawn> {
        check_size::<Self>("dragon_process_options", self.size)?;
        let policy = match self.policy {
            0 => None,
            1 => Some(Policy::RoundRobin),
            2 => Some(Policy::Block),
            3 => Some(Policy::Packed),
            4 => Some(Policy::Local),
            5 => Some(Policy::Remote),
            other => return Err(unknown("policy", other, "DRAGON_POLICY_... (0 to 5)")),
        };
        if let Some(policy) = policy {
            spawn = spawn.policy(policy);
        }
        if !self.host.is_null() {
            // SAFETY: the caller's promise.
            let host = unsafe { text(self.host, "host") }?;
            spawn = spawn.host(host.to_string_lossy());
        }
        if let Ok(umask) = u32::try_from(self.umask) {
            spawn = spawn.umask(umask);
        }
        if self.nice != 0 {
            spawn = spawn.nice(self.nice);
        }
        spawn = match self.lives {
            0 => spawn,
            1 => spawn.lives(Lives::WithCreator),
            other => return Err(unknown("lives", other, LIVES)),
        };
        // SAFETY: the caller's promise.
        let limits = unsafe { many(self.limits, self.limit_count, "limits") }?;
        for limit in limits {
            let kind = u8::try_from(limit.kind).ok().and_then(LimitKind::from_u8);
            let kind = kind.ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "limit {} is none of DRAGON_LIMIT_... (0 to 8)",
                    limit.kind
                ))
            })?;
            let value = |limit: u64| (limit != UNLIMITED).then_some(limit);
            spawn = spawn.limit(kind, value(limit.soft), value(limit.hard));
        }
        // SAFETY: the caller's promise.
        spawn = unsafe { self.reserve(spawn) }?;
        // SAFETY: the caller's promise.
        unsafe { self.files(spawn) }
    }

    /// # Safety
    /// As [`Self::apply`].
    unsafe fn reserve(&self, mut spawn: Spawn) -> Result<Spawn> {
        // SAFETY: the caller's promise.
        let cpus = unsafe { many(self.cpu_set, self.cpu_count, "cpu_set") }?;
        if !cpus.is_empty() {
            spawn = spawn.cpu_set(cpus.iter().copied());
        } else if let Ok(node) = u32::try_from(self.numa_node) {
            spawn = spawn.numa_node(node, self.cpus);
        } else if self.cpus != 0 {
            spawn = spawn.cpus(self.cpus);
        }
        if self.gpus != 0 {
            spawn = spawn.gpus(self.gpus);
        }
        if self.resource_timeout != 0 {
            spawn = spawn.wait_for_resources(Duration::from_nanos(self.resource_timeout));
        }
        Ok(spawn)
    }

    /// # Safety
    /// As [`Self::apply`].
    unsafe fn files(&self, mut spawn: Spawn) -> Result<Spawn> {
        let append = match self.output & 3 {
            0 => false,
            1 => true,
            _ => {
                let allowed = "DRAGON_OUTPUT_APPEND (1) and DRAGON_OUTPUT_MERGE (4)";
                return Err(unknown("output", self.output, allowed));
            }
        };
        let path = |pointer: *const c_char, what| -> Result<Option<PathBuf>> {
            if pointer.is_null() {
                return Ok(None);
            }
            // SAFETY: the caller's promise.
            let file = unsafe { text(pointer, what) }?;
            Ok(Some(PathBuf::from(OsStr::from_bytes(file.to_bytes()))))
        };
        let written = |path| match append {
            true => Stdio::Append(path),
            false => Stdio::File(path),
        };
        if let Some(file) = path(self.input_file, "input_file")? {
            spawn = spawn.stdin(Stdio::File(file));
        }
        if let Some(file) = path(self.output_file, "output_file")? {
            spawn = spawn.stdout(written(file));
        }
        if let Some(file) = path(self.error_file, "error_file")? {
            spawn = spawn.stderr(written(file));
        } else if self.output & 4 != 0 {
            spawn = spawn.stderr(Stdio::Merge);
        }
        Ok(spawn)
    }
}

/// What `lives` may be.
pub(super) const LIVES: &str = "DRAGON_LIVES_... (0 or 1)";

pub(super) fn unknown(what: &str, value: i32, allowed: &str) -> Error {
    Error::InvalidArgument(format!("{what} {value} is none of {allowed}"))
}

functions! {
    fn dragon_spawn_with(
        request: &DragonSpawnRequest,
        options: Option<&DragonProcessOptions>,
        process: Wanted<*mut Process>,
        pid: Wanted<u32>,
    ) {
        // SAFETY: the caller's promise.
        let mut spawn = unsafe { request.read() }?;
        if let Some(options) = options {
            // SAFETY: the caller's promise.
            spawn = unsafe { options.apply(spawn) }?;
        }
        let child = spawn.start()?;
        pid.put(child.pid);
        process.give(child.process);
        Ok(())
    }
}
