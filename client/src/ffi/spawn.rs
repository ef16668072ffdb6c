//! Starting processes.

use std::ffi::{CStr, OsStr, OsString, c_char};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::ptr;

use dragon_protocol::NodeIndex;
use dragon_protocol::process::Lives;

use super::channel::DragonBytes;
use super::function::{Wanted, functions};
use super::process_options::{LIVES, unknown};
use super::{check_size, guard, last_error, many, refer, text};
use crate::error::{Error, Result};
use crate::objects::{Channel, Process};
use crate::spawn::{Child, Spawn};
use crate::stdio::Stdio;

/// `DRAGON_BY_POLICY`.
const BY_POLICY: i32 = -1;

/// `dragon_spawn_request`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonSpawnRequest {
    /// Size of this structure.
    pub size: usize,
    /// Index of the node, or -1.
    pub node: i32,
    /// 0: to the output of the job. 1: nowhere.
    pub output: i32,
    /// An executable and its arguments, or options of the interpreter.
    pub argv: *const DragonBytes,
    /// How many.
    pub argc: usize,
    /// A Python worker instead.
    pub interpreter: *const c_char,
    /// What the interpreter imports once for all workers that ask for the same.
    pub preload: DragonBytes,
    /// What the worker unpickles.
    pub payload: DragonBytes,
    /// `NAME=value` strings and a final null, or null.
    pub environment: *const *const c_char,
    /// Working directory, or null.
    pub directory: *const c_char,
    /// A channel, or null.
    pub notify: *const Channel,
    /// 0: until the runtime ends. 1: until its creator ends.
    pub lives: i32,
}

/// `dragon_spawn_result`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DragonSpawnResult {
    /// How it ended.
    pub code: i32,
    /// Process id on the process's node.
    pub pid: u32,
    /// Handle, or null.
    pub process: *mut Process,
}

impl DragonSpawnRequest {
    /// # Safety
    /// The pointers are what the header says.
    pub(super) unsafe fn read(&self) -> Result<Spawn> {
        check_size::<Self>("dragon_spawn_request", self.size)?;
        // SAFETY: the caller's promise.
        let mut spawn = unsafe { self.program() }?;
        if self.node != BY_POLICY {
            let node = u32::try_from(self.node).ok().and_then(NodeIndex::new);
            spawn = spawn.node(node.ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "node {} is neither the index of a node nor DRAGON_BY_POLICY (-1)",
                    self.node
                ))
            })?);
        }
        spawn = match self.output {
            0 => spawn,
            1 => spawn.stdout(Stdio::Null).stderr(Stdio::Null),
            other => {
                return Err(Error::InvalidArgument(format!(
                    "output {other} is neither DRAGON_OUTPUT_FORWARD (0) nor DRAGON_OUTPUT_NULL (1)"
                )));
            }
        };
        if !self.environment.is_null() {
            // SAFETY: the caller's promise.
            spawn = spawn.environment(unsafe { environment(self.environment) }?);
        }
        if !self.directory.is_null() {
            // SAFETY: the caller's promise.
            spawn = spawn.directory(os(unsafe { text(self.directory, "directory") }?));
        }
        if !self.notify.is_null() {
            // SAFETY: the caller's promise.
            spawn = spawn.notify(unsafe { refer(self.notify, "notify") }?);
        }
        match self.lives {
            0 => Ok(spawn),
            1 => Ok(spawn.lives(Lives::WithCreator)),
            other => Err(unknown("lives", other, LIVES)),
        }
    }

    /// # Safety
    /// As [`Self::read`].
    unsafe fn program(&self) -> Result<Spawn> {
        // SAFETY: the caller's promise.
        let words = unsafe { many(self.argv, self.argc, "argv") }?;
        let (mut spawn, arguments) = if self.interpreter.is_null() {
            let Some((program, arguments)) = words.split_first() else {
                return Err(Error::InvalidArgument(
                    "neither argv nor interpreter says what to start".to_owned(),
                ));
            };
            // SAFETY: the caller's promise.
            let program = OsStr::from_bytes(unsafe { program.get() }?);
            (Spawn::program(program), arguments)
        } else {
            // SAFETY: the caller's promise.
            let interpreter = unsafe { text(self.interpreter, "interpreter") }?;
            // SAFETY: the caller's promise.
            let payload = unsafe { self.payload.get() }?;
            // SAFETY: the caller's promise.
            let preload = unsafe { self.preload.get() }?;
            let spawn = Spawn::python(os(interpreter), payload.to_vec());
            (spawn.preload(preload.to_vec()), words)
        };
        for argument in arguments {
            // SAFETY: the caller's promise.
            spawn = spawn.arg(OsStr::from_bytes(unsafe { argument.get() }?));
        }
        Ok(spawn)
    }
}

fn os(text: &CStr) -> &OsStr {
    OsStr::from_bytes(text.to_bytes())
}

/// # Safety
/// An array of strings with a final null.
unsafe fn environment(mut next: *const *const c_char) -> Result<Vec<(OsString, OsString)>> {
    let mut variables = Vec::new();
    loop {
        // SAFETY: up to and including the final null, all entries are there.
        let entry = unsafe { next.read() };
        if entry.is_null() {
            return Ok(variables);
        }
        // SAFETY: the caller's promise.
        let entry = unsafe { CStr::from_ptr(entry) }.to_bytes();
        let Some(equals) = entry.iter().position(|&byte| byte == b'=') else {
            return Err(Error::InvalidArgument(format!(
                "'{}' in environment is not of the form NAME=value",
                String::from_utf8_lossy(entry)
            )));
        };
        variables.push((
            OsString::from_vec(entry[..equals].to_vec()),
            OsString::from_vec(entry[equals + 1..].to_vec()),
        ));
        // SAFETY: this entry was not the last one.
        next = unsafe { next.add(1) };
    }
}

functions! {
    fn dragon_spawn(request: &DragonSpawnRequest, process: Wanted<*mut Process>, pid: Wanted<u32>) {
        // SAFETY: the caller's promise.
        let child = unsafe { request.read() }?.start()?;
        pid.put(child.pid);
        process.give(child.process);
        Ok(())
    }
}

/// See `dragon.h`.
///
/// # Safety
/// As the module's parent says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dragon_spawn_many(
    requests: *const DragonSpawnRequest,
    count: usize,
    results: *mut DragonSpawnResult,
) -> i32 {
    let mut first_failure = 0;
    let outcome = guard(|| {
        if count != 0 && results.is_null() {
            return Err(super::null("results"));
        }
        let put = |index: usize, result| {
            // SAFETY: the caller's array has room for one result for each request.
            let place = unsafe { results.add(index) };
            // SAFETY: as above.
            unsafe { place.write(result) };
        };
        // SAFETY: the caller's promise.
        let requests = unsafe { many(requests, count, "requests") }?;
        let started = requests
            .iter()
            // SAFETY: the caller's promise.
            .map(|request| unsafe { request.read() })
            .collect::<Result<_>>()
            .and_then(Spawn::start_all);
        let started = started.inspect_err(|error| {
            let code = error.code().to_i32();
            (0..count).for_each(|index| put(index, DragonSpawnResult::failed(code)));
        })?;
        for (index, result) in started.into_iter().enumerate() {
            put(
                index,
                match result {
                    Ok(Child { process, pid, .. }) => DragonSpawnResult {
                        code: 0,
                        pid,
                        process: Box::into_raw(Box::new(process)),
                    },
                    Err(error) => {
                        let code = error.code().to_i32();
                        if first_failure == 0 {
                            first_failure = last_error::set(error);
                        }
                        DragonSpawnResult::failed(code)
                    }
                },
            );
        }
        Ok(())
    });
    if outcome == 0 { first_failure } else { outcome }
}

impl DragonSpawnResult {
    fn failed(code: i32) -> Self {
        Self {
            code,
            pid: 0,
            process: ptr::null_mut(),
        }
    }
}
