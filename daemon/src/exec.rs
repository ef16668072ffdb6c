//! A new process without a copy of this one.
//!
//! The child borrows the daemon's memory until it has become its program (`CLONE_VM | CLONE_VFORK`, as `posix_spawn` does it),
//! so that a start costs the same whatever the daemon has mapped. Unlike `posix_spawn` it does all that a managed process needs
//! before its first instruction: its end with the daemon's, its group, its limits, its CPUs.
//!
//! The calling thread sleeps until the program runs or the start has failed, and so the result is known at once.

#![expect(
    unsafe_code,
    reason = "what happens between clone and exec has no safe form"
)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use rustix::fs::Mode;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustix::thread::CpuSet;

use crate::parent_death::raise_badness;

/// Bytes of the stack on which children run until they have become their programs: what happens there needs a few hundred.
const STACK: usize = 64 << 10;
/// Signals have the numbers from 1 to this one.
const LAST_SIGNAL: c_int = 64;
/// Exit code of a child that did not become its program. Nobody sees it: the error is told in another way.
const FAILED: c_int = 127;

/// What a child becomes, and what it is given. Descriptors are numbered 3 or more.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    pub(crate) path: &'a CStr,
    pub(crate) arguments: &'a [CString],
    pub(crate) environment: &'a [CString],
    pub(crate) directory: Option<&'a CStr>,
    /// Standard input, output and error; `None`: this process's own.
    pub(crate) stdio: [Option<BorrowedFd<'a>>; 3],
    /// What else it is given, under the same numbers.
    pub(crate) inherited: &'a [BorrowedFd<'a>],
    pub(crate) own_group: bool,
    pub(crate) umask: Option<u32>,
    pub(crate) nice: Option<i32>,
    pub(crate) limits: &'a [(Resource, Rlimit)],
    pub(crate) cpus: Option<&'a CpuSet>,
}

/// Why a child did not become its program.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) step: Step,
    pub(crate) error: io::Error,
}

/// What a child does before it is its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Step {
    Clone,
    Parent,
    Group,
    Directory,
    Nice,
    Cpus,
    /// The limit at this place of the list.
    Limits,
    Stdio,
    Execute,
}

impl Step {
    const ALL: [Self; 9] = [
        Self::Clone,
        Self::Parent,
        Self::Group,
        Self::Directory,
        Self::Nice,
        Self::Cpus,
        Self::Limits,
        Self::Stdio,
        Self::Execute,
    ];
}

/// What the thread that starts all processes keeps from one start to the next. It blocks all signals for good: none of them
/// may run a handler of the daemon in a child that still has the daemon's memory.
pub(crate) struct Starter {
    stack: Vec<u8>,
    /// Signals for which this process has a handler.
    handled: Vec<c_int>,
    parent: Pid,
}

impl fmt::Debug for Starter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Starter").finish_non_exhaustive()
    }
}

impl Starter {
    /// For the calling thread, which blocks all signals from here on. Handlers that this process installs later would not
    /// be known.
    pub(crate) fn new() -> Self {
        set_mask(libc::SIG_SETMASK, true);
        Self {
            stack: vec![0; STACK],
            handled: (1..=LAST_SIGNAL)
                .filter(|signal| has_handler(*signal))
                .collect(),
            parent: rustix::process::getpid(),
        }
    }

    /// Starts a process; its pid. It ends when the calling thread does.
    pub(crate) fn start(&mut self, image: &Image<'_>) -> Result<u32, Failed> {
        let arguments = pointers(image.arguments);
        let environment = pointers(image.environment);
        let child = Child {
            image,
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
            handled: &self.handled,
            parent: self.parent,
            step: AtomicU32::new(0),
            errno: AtomicI32::new(0),
        };
        // Stacks grow downwards, and begin at a multiple of 16.
        let top = self.stack.as_mut_ptr_range().end;
        let top = top.map_addr(|address| address & !15).cast::<c_void>();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let argument = (&raw const child).cast_mut().cast::<c_void>();
        // SAFETY: the child runs on a stack of its own, with `child` and all it refers to alive and unchanged: this thread
        // sleeps until the child has executed its program or ended. It makes system calls only.
        let pid = unsafe { libc::clone(become_program, top, flags, argument) };
        if pid < 0 {
            return Err(Failed {
                step: Step::Clone,
                error: io::Error::last_os_error(),
            });
        }
        let errno = child.errno.load(Ordering::Relaxed);
        if errno == 0 {
            return Ok(pid.cast_unsigned());
        }
        // The event loop, which reaps what it does not know as well, may have been quicker.
        let _ = rustix::process::waitpid(Pid::from_raw(pid), rustix::process::WaitOptions::empty());
        let step = child.step.load(Ordering::Relaxed) as usize;
        Err(Failed {
            step: Step::ALL.get(step).copied().unwrap_or(Step::Execute),
            error: io::Error::from_raw_os_error(errno),
        })
    }
}

/// A list of C strings as `execve` wants it.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let all = strings.iter().map(|string| string.as_ptr());
    all.chain([ptr::null()]).collect()
}

/// What a child needs.
struct Child<'a> {
    image: &'a Image<'a>,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    handled: &'a [c_int],
    parent: Pid,
    /// The step that failed, and why.
    step: AtomicU32,
    errno: AtomicI32,
}

/// The whole life of a child until it is its program. It shares the memory of the daemon: no allocation, no lock, no panic.
extern "C" fn become_program(child: *mut c_void) -> c_int {
    // SAFETY: `Starter::start` passes a `Child` that lives until this function is left.
    let child = unsafe { &*child.cast::<Child<'_>>() };
    let (step, errno) = match child.prepare() {
        Ok(()) => (Step::Execute, child.execute()),
        Err((step, error)) => (step, error.raw_os_error()),
    };
    child.step.store(step as u32, Ordering::Relaxed);
    child.errno.store(errno, Ordering::Relaxed);
    // SAFETY: ends the child alone, at once, without anything that an ordinary exit does in memory that is not its own.
    unsafe { libc::_exit(FAILED) }
}

impl Child<'_> {
    fn prepare(&self) -> Result<(), (Step, rustix::io::Errno)> {
        let image = self.image;
        let at = |step| move |error| (step, error);
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(at(Step::Parent))?;
        // The parent may have died before the line above took effect.
        if rustix::process::getppid() != Some(self.parent) {
            return Err((Step::Parent, rustix::io::Errno::SRCH));
        }
        if image.own_group {
            rustix::process::setpgid(None, None).map_err(at(Step::Group))?;
        }
        if let Some(directory) = image.directory {
            rustix::process::chdir(directory).map_err(at(Step::Directory))?;
        }
        if let Some(umask) = image.umask {
            rustix::process::umask(Mode::from_raw_mode(umask));
        }
        if let Some(cpus) = image.cpus {
            rustix::thread::sched_setaffinity(None, cpus).map_err(at(Step::Cpus))?;
        }
        // Before the first instruction of the program. Where /proc is not mounted it stays as it is.
        let _ = raise_badness();
        for (number, source) in (0..).zip(image.stdio) {
            if let Some(source) = source {
                duplicate(source.as_raw_fd(), number).map_err(at(Step::Stdio))?;
            }
        }
        for descriptor in image.inherited {
            // The child's own table of descriptors, since CLONE_FILES was not asked for.
            fcntl_setfd(descriptor, FdFlags::empty()).map_err(at(Step::Stdio))?;
        }
        // Last: what comes before must not suffer from them.
        if let Some(nice) = image.nice {
            rustix::process::nice(nice).map_err(at(Step::Nice))?;
        }
        for (resource, limit) in image.limits {
            rustix::process::setrlimit(*resource, *limit).map_err(at(Step::Limits))?;
        }
        self.handled.iter().for_each(|signal| set_default(*signal));
        // The standard library of the daemon ignores it; programs expect that nobody does.
        set_default(libc::SIGPIPE);
        // The daemon itself rather hears that a file would be too large.
        set_default(libc::SIGXFSZ);
        set_mask(libc::SIG_SETMASK, false);
        Ok(())
    }

    /// Returns only when the program cannot be executed.
    fn execute(&self) -> i32 {
        // SAFETY: a path and two lists that end with null, all alive.
        unsafe { libc::execve(self.image.path.as_ptr(), self.arguments, self.environment) };
        io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::ENOEXEC)
    }
}

/// Makes `number` a duplicate of `source` that the program inherits.
fn duplicate(source: RawFd, number: RawFd) -> rustix::io::Result<()> {
    // SAFETY: takes numbers, and changes the table of the child alone: CLONE_FILES was not asked for.
    let result = unsafe { libc::dup2(source, number) };
    match result {
        0.. => Ok(()),
        _ => Err(
            rustix::io::Errno::from_io_error(&io::Error::last_os_error())
                .unwrap_or(rustix::io::Errno::BADF),
        ),
    }
}

/// Blocks all signals for the calling thread, or none.
fn set_mask(how: c_int, block: bool) {
    // SAFETY: a set of signals is a plain array of bits, for which all zeros is a value.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    if block {
        // SAFETY: a set that this function owns.
        unsafe { libc::sigfillset(&raw mut set) };
    }
    // SAFETY: a set that was initialised; nothing is written back.
    unsafe { libc::sigprocmask(how, &raw const set, ptr::null_mut()) };
}

fn has_handler(signal: c_int) -> bool {
    ![None, Some(libc::SIG_DFL), Some(libc::SIG_IGN)].contains(&action(signal))
}

/// Whether a signal is ignored.
pub(crate) fn is_ignored(signal: c_int) -> bool {
    action(signal) == Some(libc::SIG_IGN)
}

/// What a signal does; `None` for a number that is none of a signal.
fn action(signal: c_int) -> Option<libc::sighandler_t> {
    // SAFETY: an action consists of numbers and a set, for which all zeros is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only reads the action of a signal into memory that this function owns; a wrong number is an error.
    let known = unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) } == 0;
    known.then_some(action.sa_sigaction)
}

/// Has a signal do nothing.
pub(crate) fn ignore(signal: c_int) {
    // SAFETY: as in `set_default`, but for what it does: SIG_IGN.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = libc::SIG_IGN;
    // SAFETY: the table of this process; the action is a valid one.
    unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
}

/// Has a signal do what it does by default.
pub(crate) fn set_default(signal: c_int) {
    // SAFETY: an action consists of numbers and a set, for which all zeros is a value: SIG_DFL, no flags, an empty set.
    let action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the child's own table of actions, since CLONE_SIGHAND was not asked for.
    unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::io::Read;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn strings(words: &[&str]) -> Vec<CString> {
        words
            .iter()
            .map(|word| CString::new(*word).unwrap())
            .collect()
    }

    /// What a shell's script printed that was started so, and its status.
    fn run(change: impl FnOnce(&mut Image<'_>), script: &str) -> (String, i32) {
        run_with(&[], change, script)
    }

    /// The same for one that is given descriptors.
    fn run_with(
        inherited: &[BorrowedFd<'_>],
        change: impl FnOnce(&mut Image<'_>),
        script: &str,
    ) -> (String, i32) {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let theirs = OwnedFd::from(theirs);
        let arguments = strings(&["sh", "-c", script]);
        let environment = strings(&["A=1"]);
        let mut image = Image {
            path: c"/bin/sh",
            arguments: &arguments,
            environment: &environment,
            directory: None,
            stdio: [None, Some(theirs.as_fd()), Some(theirs.as_fd())],
            inherited,
            own_group: true,
            umask: None,
            nice: None,
            limits: &[],
            cpus: None,
        };
        change(&mut image);
        let pid = Starter::new().start(&image).unwrap();
        drop(theirs);
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        let pid = Pid::from_raw(pid.cast_signed());
        let waited = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
        (text, waited.unwrap().unwrap().1.as_raw())
    }

    #[test]
    fn a_child_has_what_it_was_given_and_nothing_of_the_daemons_signals() {
        let (text, status) = run(
            |image| {
                image.directory = Some(c"/usr");
                image.umask = Some(0o27);
                image.nice = Some(3);
                image.limits = &[(
                    Resource::Core,
                    Rlimit {
                        current: Some(4096),
                        maximum: Some(8192),
                    },
                )];
            },
            "echo $A $(pwd) $(umask) $(ulimit -c) $(nice); grep -E 'Sig(Blk|Ign)' /proc/self/status; exit 3",
        );
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("1 /usr 0027 8 "), "{text}");
        assert!(lines[1].ends_with("\t0000000000000000"), "{text}");
        let ignored = lines[2].rsplit('\t').next().unwrap();
        let ignored = u64::from_str_radix(ignored, 16).unwrap();
        assert_eq!(ignored >> (libc::SIGPIPE - 1) & 1, 0, "{text}");
        assert_eq!(status >> 8, 3);
    }

    #[test]
    fn a_child_has_the_descriptors_that_it_was_given_and_no_other() {
        let (reader, _writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let list = format!("ls /proc/self/fd/{}", reader.as_raw_fd());
        let (text, status) = run(|_| {}, &list);
        assert_ne!(status, 0, "{text}");
        let (text, status) = run_with(&[reader.as_fd()], |_| {}, &list);
        assert_eq!(status, 0, "{text}");
    }

    #[test]
    fn what_fails_says_at_which_step() {
        let start = |path, directory| {
            let image = Image {
                path,
                arguments: &[],
                environment: &[],
                directory,
                stdio: [None; 3],
                inherited: &[],
                own_group: true,
                umask: None,
                nice: None,
                limits: &[],
                cpus: None,
            };
            let failed = Starter::new().start(&image).unwrap_err();
            (failed.step, failed.error.kind())
        };
        let missing = (Step::Execute, io::ErrorKind::NotFound);
        assert_eq!(start(c"/no/such/program", None), missing);
        let missing = (Step::Directory, io::ErrorKind::NotFound);
        assert_eq!(start(c"/bin/true", Some(c"/no/such/directory")), missing);
    }
}
