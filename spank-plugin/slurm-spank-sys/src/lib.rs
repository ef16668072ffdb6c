//! The part of Slurm's SPANK interface that the plugin uses.
//!
//! Hand-written from the documented interface (`slurm/spank.h`, the same from 20.11 on): no headers, no libclang. The
//! functions are undefined symbols that srun, sbatch, salloc, slurmd and slurmstepd provide. Everything unsafe of the plugin
//! is in this crate; what it exports is safe to call from a SPANK callback.

use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::{UnwindSafe, catch_unwind};

/// Slurm's opaque handle.
#[repr(C)]
#[derive(Debug)]
pub struct Handle {
    _opaque: [u8; 0],
}

/// What a callback returns when all is well.
pub const SUCCESS: c_int = 0;
/// What a callback returns to refuse.
pub const ERROR: c_int = -1;

/// Exit code of a process that ends because the plugin could not do what the job needs.
const FAILED: c_int = 125;

/// An option, as Slurm reads it.
#[repr(C)]
struct RawOption {
    name: *const c_char,
    arginfo: *const c_char,
    usage: *const c_char,
    has_arg: c_int,
    val: c_int,
    cb: Option<OptionCallback>,
}

/// What Slurm calls for each use of an option.
pub type OptionCallback =
    unsafe extern "C" fn(val: c_int, optarg: *const c_char, remote: c_int) -> c_int;

/// Number of the item `S_JOB_STEPID`.
const S_JOB_STEPID: c_int = 3;
/// Number of the item `S_JOB_ARGV`.
const S_JOB_ARGV: c_int = 9;

/// The steps that are not srun's: the script of sbatch, and the shell of salloc.
const BATCH_SCRIPT: u32 = 0xffff_fffb;
const INTERACTIVE: u32 = 0xffff_fffa;

unsafe extern "C" {
    fn spank_context() -> c_int;
    fn spank_option_register(spank: *mut Handle, option: *mut RawOption) -> c_int;
    fn spank_get_item(spank: *mut Handle, item: c_int, ...) -> c_int;
    fn spank_getenv(
        spank: *mut Handle,
        name: *const c_char,
        buffer: *mut c_char,
        length: c_int,
    ) -> c_int;
    fn spank_setenv(
        spank: *mut Handle,
        name: *const c_char,
        value: *const c_char,
        overwrite: c_int,
    ) -> c_int;
    fn slurm_error(format: *const c_char, ...);
    fn slurm_xstrdup(text: *const c_char) -> *mut c_char;
    /// The C library's: where the options that getopt has read end.
    static optind: c_int;
}

/// Where a callback runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// srun.
    Local,
    /// slurmstepd.
    Remote,
    /// sbatch or salloc.
    Allocator,
    /// Anything else: slurmd, prologs.
    Other,
}

/// Where this process runs.
#[must_use]
pub fn context() -> Context {
    // SAFETY: no arguments; Slurm provides the function wherever it loads plugins.
    match unsafe { spank_context() } {
        1 => Context::Local,
        2 => Context::Remote,
        3 => Context::Allocator,
        _ => Context::Other,
    }
}

/// The words of this command that Slurm has read as options, once it has.
#[must_use]
pub fn options() -> Vec<OsString> {
    // SAFETY: a number of the C library's; srun reads its options in the thread that calls its plugins.
    let end = unsafe { optind };
    let options = usize::try_from(end).unwrap_or(0).saturating_sub(1);
    std::env::args_os().skip(1).take(options).collect()
}

/// Prints a line by Slurm's own log.
pub fn error(text: &str) {
    let text = CString::new(text).unwrap_or_default();
    // SAFETY: the format takes exactly one string, and both are terminated.
    unsafe { slurm_error(c"%s".as_ptr(), text.as_ptr()) };
}

/// An option of the command line with an argument that may be left out.
#[derive(Debug)]
pub struct OptionSpec {
    /// Its name, without dashes.
    pub name: &'static CStr,
    /// The argument's name in the help text.
    pub argument: &'static CStr,
    /// The help text.
    pub usage: &'static CStr,
    /// What Slurm calls for each use.
    pub callback: OptionCallback,
}

/// The handle and arguments of a callback.
#[derive(Debug)]
pub struct Spank<'a> {
    handle: *mut Handle,
    arguments: Vec<&'a CStr>,
    _life: PhantomData<&'a Handle>,
}

impl<'a> Spank<'a> {
    /// The plugin's arguments in plugstack.conf.
    #[must_use]
    pub fn arguments(&self) -> &[&'a CStr] {
        &self.arguments
    }

    /// Registers an option; false when Slurm refuses.
    #[must_use]
    pub fn register(&self, option: &OptionSpec) -> bool {
        let mut raw = RawOption {
            name: option.name.as_ptr(),
            arginfo: option.argument.as_ptr(),
            usage: option.usage.as_ptr(),
            has_arg: 2,
            val: 0,
            cb: Some(option.callback),
        };
        // SAFETY: Slurm copies the structure; its strings live for ever.
        unsafe { spank_option_register(self.handle, &raw mut raw) == SUCCESS }
    }

    /// How many words the job's program and its arguments are. In srun, once the job is known.
    #[must_use]
    pub fn program_words(&self) -> usize {
        self.words().map_or(0, |(count, _)| count)
    }

    /// Whether the step is a batch script or an interactive shell. In srun and in slurmstepd, once the step is known.
    #[must_use]
    pub fn is_script_or_shell(&self) -> bool {
        let mut step: u32 = 0;
        // SAFETY: this item takes a number of 32 bits by address.
        let found = unsafe { spank_get_item(self.handle, S_JOB_STEPID, &raw mut step) };
        found == SUCCESS && matches!(step, BATCH_SCRIPT | INTERACTIVE)
    }

    /// A variable of the step's environment, of at most 4095 bytes. In slurmstepd.
    #[must_use]
    pub fn task_environment(&self, name: &CStr) -> Option<CString> {
        let mut buffer = [0_u8; 4096];
        // SAFETY: Slurm's own handle, a terminated name, and a buffer of the length that is said.
        let found =
            unsafe { spank_getenv(self.handle, name.as_ptr(), buffer.as_mut_ptr().cast(), 4096) };
        let value = CStr::from_bytes_until_nul(&buffer).ok()?;
        (found == SUCCESS).then(|| value.to_owned())
    }

    /// Sets a variable of the step's environment. In slurmstepd, before its tasks execute their program.
    #[must_use]
    pub fn set_task_environment(&self, name: &CStr, value: &CStr) -> bool {
        // SAFETY: Slurm's own handle, and two terminated strings, which it copies.
        unsafe { spank_setenv(self.handle, name.as_ptr(), value.as_ptr(), 1) == SUCCESS }
    }

    /// The job's program. In srun, once the job is known, and in a task before it executes its program.
    #[must_use]
    pub fn program(&self) -> Option<CString> {
        let first = self.program_place()?;
        // SAFETY: the array has at least one element.
        let first = unsafe { first.read() };
        // SAFETY: a terminated string of Slurm's, or null.
        (!first.is_null()).then(|| unsafe { CStr::from_ptr(first) }.to_owned())
    }

    /// Puts `program` in the place of the job's program and returns what stood there. In srun, once the job is known, and in
    /// a task before it executes its program.
    #[must_use]
    pub fn replace_program(&self, program: &CStr) -> Option<CString> {
        let before = self.program()?;
        let first = self.program_place()?;
        // With --bcast, srun (from 23.02 on) frees the first string by its own allocator afterwards: so it comes from there.
        // SAFETY: a terminated string, which Slurm copies.
        let copy = unsafe { slurm_xstrdup(program.as_ptr()) };
        if copy.is_null() {
            return None;
        }
        // SAFETY: the array has at least one element, and it is Slurm's own, writable one.
        unsafe { first.write(copy) };
        Some(before)
    }

    /// Where the job's words begin, of which there is at least one.
    fn program_place(&self) -> Option<*mut *mut c_char> {
        let (count, words) = self.words()?;
        (count > 0 && !words.is_null()).then_some(words)
    }

    /// The job's program and its arguments.
    fn words(&self) -> Option<(usize, *mut *mut c_char)> {
        let (mut count, mut words): (c_int, *mut *mut c_char) = (0, std::ptr::null_mut());
        // SAFETY: this item takes an int and an array of strings, both by address.
        let found =
            unsafe { spank_get_item(self.handle, S_JOB_ARGV, &raw mut count, &raw mut words) };
        (found == SUCCESS).then_some((usize::try_from(count).unwrap_or(0), words))
    }
}

/// Sets a variable of srun's own environment, which reaches all tasks.
#[must_use]
pub fn set_environment(name: &CStr, value: &CStr) -> bool {
    // SAFETY: two terminated strings; srun calls plugins from its one thread at this point.
    unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 1) == 0 }
}

/// Fills a buffer with random bytes of the kernel's.
#[must_use]
pub fn random(buffer: &mut [u8]) -> bool {
    // SAFETY: the buffer is valid for its length.
    let filled = unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    usize::try_from(filled).is_ok_and(|filled| filled == buffer.len())
}

/// Waits for the end of a child; false when it has not ended within so many milliseconds.
#[must_use]
pub fn ends_within(child: u32, limit_ms: c_int) -> bool {
    // SAFETY: takes numbers, and makes a descriptor of its own, which closes on exec.
    let made = unsafe { libc::syscall(libc::SYS_pidfd_open, child, 0) };
    let Ok(made) = c_int::try_from(made) else {
        return false;
    };
    if made < 0 {
        return false;
    }
    // SAFETY: just made, and nobody else's.
    let end = unsafe { OwnedFd::from_raw_fd(made) };
    let mut waited = libc::pollfd {
        fd: end.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure, as said.
    unsafe { libc::poll(&raw mut waited, 1, limit_ms) == 1 }
}

/// Runs the body of a callback: a panic becomes an error and never crosses into Slurm.
///
/// # Safety
/// `handle`, `count` and `words` are what Slurm passed to the callback.
pub unsafe fn callback(
    handle: *mut Handle,
    count: c_int,
    words: *mut *mut c_char,
    body: impl FnOnce(&Spank<'_>) -> bool + UnwindSafe,
) -> c_int {
    let run = move || {
        let count = usize::try_from(count).unwrap_or(0);
        let word = |n: usize| {
            // SAFETY: Slurm passes an array of `count` strings.
            let place = unsafe { words.add(n) };
            // SAFETY: its elements are initialised.
            let word = unsafe { place.read() };
            // SAFETY: each is terminated, and lives as long as the callback runs.
            (!word.is_null()).then(|| unsafe { CStr::from_ptr(word) })
        };
        let arguments = if words.is_null() {
            Vec::new()
        } else {
            (0..count).filter_map(word).collect()
        };
        body(&Spank {
            handle,
            arguments,
            _life: PhantomData,
        })
    };
    match catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(true) => SUCCESS,
        Ok(false) => ERROR,
        Err(_) => {
            error("dragon: internal error in the plugin");
            ERROR
        }
    }
}

/// Does what the job cannot do without, or ends this process with a sentence: plugins are optional, and Slurm would go on after
/// an error of one.
pub fn or_end(what: impl FnOnce() -> Result<(), String> + UnwindSafe) {
    let done = catch_unwind(what);
    let why = match done {
        Ok(Ok(())) => return,
        Ok(Err(why)) => why,
        Err(_) => "internal error in the plugin".to_owned(),
    };
    error(&format!("dragon: {why}"));
    // SAFETY: takes a number. What Slurm has for its own exit is not for a task that did not become its program.
    unsafe { libc::_exit(FAILED) }
}

/// Runs the body of an option's callback likewise. At most 4096 bytes of the argument are looked at.
///
/// # Safety
/// `argument` is what Slurm passed to the callback: null, or a terminated string.
pub unsafe fn option_callback(
    argument: *const c_char,
    body: impl FnOnce(Option<&OsStr>) -> bool + UnwindSafe,
) -> c_int {
    let run = move || {
        let bytes = (!argument.is_null()).then(|| {
            // SAFETY: the string is terminated; strnlen stops at the limit.
            let length = unsafe { libc::strnlen(argument, 4096) };
            // SAFETY: `length` bytes were just seen there.
            unsafe { std::slice::from_raw_parts(argument.cast::<u8>(), length) }
        });
        body(bytes.map(OsStr::from_bytes))
    };
    match catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(true) => SUCCESS,
        _ => ERROR,
    }
}
