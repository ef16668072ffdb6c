//! A runtime of one node for a program that was started without one: `python prog.py`, `./a.out`.
//!
//! The first operation that needs a runtime starts `dragond`, which says by a socket pair where it listens:
//!
//! ```text
//! daemon → process   '+', the name of the attach socket, newline; or '-', why there is none, newline
//! process → daemon   'x': the process is at its end
//! daemon → process   's': others use the runtime, it stays; or the end of file: it is gone
//! ```
//!
//! The daemon is no child of the program, which may wait for any child of its own: what is started first hands over and
//! ends at once. The runtime goes with the program (the daemon watches it), unless others have joined it meanwhile. At
//! its end the process waits for that, so that whoever waits for the process finds nothing of it.

use std::env;
use std::ffi::{CStr, OsStr, OsString};
use std::fmt::Write as _;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use rustix::net::SendFlags;

use crate::allocation;
use crate::attach;
use crate::error::{Error, Result};
use crate::session::Session;

/// The name of the program.
const DAEMON: &str = "dragond";
/// The longest answer: a name, or a sentence.
const ANSWER: usize = 4096;

/// What this process, or one that it was forked from, has started. Never freed: there is one in a process, rarely two.
static STARTED: AtomicPtr<Started> = AtomicPtr::new(ptr::null_mut());

struct Started {
    /// The process that started it.
    pid: i32,
    /// Name of the attach socket.
    name: OsString,
    /// The socket pair, and which it is: a program that closes all descriptors may have another file under the number.
    socket: OwnedFd,
    identity: Option<(u64, u64)>,
}

/// Connects to the runtime of this process: the one that the environment names, or one that was started before. With
/// `start`, one is started where there is none.
pub(crate) fn connect(start: bool) -> Result<(OsString, OwnedFd)> {
    if let Some(name) = allocation::named() {
        match allocation::call(name) {
            Err(Error::NobodyListens { name, .. }) if start => eprintln!(
                "dragon: DRAGON_RUNTIME names the attach socket @{name}, where nobody listens: that runtime has ended. A runtime of this process's own is used; unset DRAGON_RUNTIME to be rid of this notice",
            ),
            called => return called,
        }
    }
    if let Some(started) = started() {
        match attach::call(&started.name) {
            // It went with the process that this one was forked from.
            Err(Error::NobodyListens { .. }) if start => {}
            called => return Ok((started.name.clone(), called?)),
        }
    }
    if !start {
        return Err(Error::NoRuntime);
    }
    let name = one_node_runtime()?;
    let socket = attach::call(&name)?;
    Ok((name, socket))
}

fn started() -> Option<&'static Started> {
    // SAFETY: the pointer is null, or came from a box that is never freed; Acquire pairs with the Release of the store.
    unsafe { STARTED.load(Ordering::Acquire).as_ref() }
}

/// A daemon that was started and has not answered yet: a signal ended the wait, and the next attempt goes on with it.
struct Starting {
    /// The process that started it.
    pid: i32,
    /// Its program.
    daemon: PathBuf,
    socket: UnixStream,
    identity: Option<(u64, u64)>,
    /// What it has answered so far.
    answer: Vec<u8>,
}

/// What this process has begun to start; null: nothing. Used under the lock under which processes attach.
static STARTING: AtomicPtr<Starting> = AtomicPtr::new(ptr::null_mut());

impl Starting {
    /// What the last attempt has left.
    fn left() -> Option<Self> {
        let left = STARTING.swap(ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: the pointer is null or came from a box in `keep`, and the swap made this the only place that knows it.
        let starting = (!left.is_null()).then(|| unsafe { Box::from_raw(left) })?;
        if identity(starting.socket.as_fd()) != starting.identity {
            // The program has closed its descriptors, and may have another file under the number.
            let _ = starting.socket.into_raw_fd();
            return None;
        }
        // A forked child starts one of its own.
        (starting.pid == own_pid()).then_some(*starting)
    }

    fn keep(self) {
        STARTING.store(Box::into_raw(Box::new(self)), Ordering::Release);
    }

    fn begin() -> Result<Self> {
        let daemon = find()?;
        let (ours, theirs) =
            UnixStream::pair().map_err(|error| Error::system("socketpair", error))?;
        let mut command = Command::new(&daemon);
        command
            .arg("--for-client")
            .env_remove(dragon_protocol::env::RUNTIME)
            .stdin(OwnedFd::from(theirs))
            // An interrupt from the terminal is for the program.
            .process_group(0);
        let mut first = command
            .spawn()
            .map_err(|error| not_started(&daemon, error.to_string()))?;
        // Its end of the pair.
        drop(command);
        // It ends at once. A program that ignores its children has it reaped by the kernel.
        let _ = first.wait();
        Ok(Self {
            pid: own_pid(),
            daemon,
            identity: identity(ours.as_fd()),
            socket: ours,
            answer: Vec::new(),
        })
    }

    /// Waits for the answer, one line. A signal ends the wait.
    fn answered(&mut self) -> Result<()> {
        let mut byte = [0];
        while self.answer.len() < ANSWER {
            match self.socket.read(&mut byte) {
                Ok(0) => {
                    self.answer.clear();
                    break;
                }
                Ok(_) if byte[0] == b'\n' => break,
                Ok(_) => self.answer.push(byte[0]),
                Err(error) => return Err(Error::system("the answer of dragond", error)),
            }
        }
        Ok(())
    }
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

fn not_started(daemon: &Path, why: String) -> Error {
    Error::NotStarted {
        daemon: daemon.display().to_string(),
        why,
    }
}

/// Starts a runtime; returns the name of its attach socket. The caller holds the lock under which processes attach, and tries
/// again after a signal.
fn one_node_runtime() -> Result<OsString> {
    let mut starting = match Starting::left() {
        Some(starting) => starting,
        None => Starting::begin()?,
    };
    match starting.answered() {
        Err(Error::Interrupted) => {
            starting.keep();
            return Err(Error::Interrupted);
        }
        answered => answered?,
    }
    let not_started = |why| not_started(&starting.daemon, why);
    let name = match starting.answer.split_first() {
        Some((b'+', name)) => OsString::from_vec(name.to_vec()),
        Some((b'-', why)) => return Err(not_started(String::from_utf8_lossy(why).into_owned())),
        _ => {
            return Err(not_started(
                "it ended at once; its last words are above".to_owned(),
            ));
        }
    };
    let started = Started {
        pid: starting.pid,
        name: name.clone(),
        identity: starting.identity,
        socket: starting.socket.into(),
    };
    STARTED.store(Box::into_raw(Box::new(started)), Ordering::Release);
    Ok(name)
}

/// The daemon: the one that DRAGON_DAEMON names, the one that was installed with this library, or the one on PATH.
fn find() -> Result<PathBuf> {
    if let Some(named) = env::var_os(dragon_protocol::env::DAEMON).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(named);
        return if is_executable(&path) {
            Ok(path)
        } else {
            Err(Error::NoDaemon(format!(
                "DRAGON_DAEMON names {}, which is no program",
                path.display()
            )))
        };
    }
    let library = library().unwrap_or_default();
    let trust = Trust::of(&library);
    let mut passed_over = String::new();
    for path in installed(&library).filter(|path| is_executable(path)) {
        match trust.objection(&path) {
            None => return Ok(path),
            Some(why) => {
                // Writing to a String does not fail.
                let _ = write!(passed_over, " ({} is passed over: {why})", path.display());
            }
        }
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join(DAEMON));
    on_path
        .into_iter()
        .find(|path| is_executable(path))
        .ok_or_else(|| {
            Error::NoDaemon(format!(
                "dragond is neither where it is installed with {}{passed_over} nor on PATH",
                library.display()
            ))
        })
}

/// Where the daemon lies that was installed or built with a library.
fn installed(library: &Path) -> impl Iterator<Item = PathBuf> {
    let folder = library.parent().unwrap_or(Path::new(""));
    let name = |above| folder.ancestors().nth(above)?.file_name()?.to_str();
    let is_lib = |above| matches!(name(above), Some("lib" | "lib64"));
    let above = |count| folder.ancestors().nth(count);
    let is_package = matches!(name(1), Some("site-packages" | "dist-packages"));
    // In the order: lib; lib/python3.11/site-packages/dragon; pip install --target; lib/x86_64-linux-gnu.
    let prefix = if is_lib(0) {
        above(1)
    } else if is_package && is_lib(3) {
        above(4)
    } else if name(0) == Some("dragon") {
        above(1)
    } else if is_lib(1) {
        above(2)
    } else {
        None
    };
    // A program of a build of this repository, which has the library in it.
    let build = above(1).filter(|_| matches!(name(0), Some("deps" | "examples")));
    let beside = [Some(folder.to_owned()), build.map(Path::to_owned)];
    let bin = prefix.map(|prefix| prefix.join("bin"));
    let folders = beside.into_iter().chain([bin]).flatten();
    folders.map(|folder| folder.join(DAEMON))
}

/// Whose files are as good as this library, whose code runs in this process anyway.
struct Trust {
    users: [u32; 3],
    groups: [u32; 2],
}

impl Trust {
    fn of(library: &Path) -> Self {
        let own = rustix::process::geteuid().as_raw();
        let owner = std::fs::metadata(library).map_or(own, |meta| meta.uid());
        Self {
            users: [0, own, owner],
            groups: [0, rustix::process::getegid().as_raw()],
        }
    }

    /// Why a program may be another user's.
    fn objection(&self, program: &Path) -> Option<String> {
        let folder = program.parent()?;
        [program, folder].into_iter().find_map(|path| {
            let meta = match std::fs::metadata(path) {
                Ok(meta) => meta,
                Err(error) => return Some(error.to_string()),
            };
            let path = path.display();
            let (user, group, mode) = (meta.uid(), meta.gid(), meta.mode() & 0o7777);
            if !self.users.contains(&user) {
                return Some(format!("{path} belongs to user {user}"));
            }
            let by_group = mode & 0o020 != 0 && !self.groups.contains(&group);
            (mode & 0o002 != 0 || by_group)
                .then(|| format!("others can write to {path} (mode {mode:o})"))
        })
    }
}

fn is_executable(path: &Path) -> bool {
    let meta = std::fs::metadata(path);
    meta.is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The file that this library was loaded from; a program that has it built in is that file itself.
fn library() -> Option<PathBuf> {
    // SAFETY: all zeros is a value of this type: null pointers.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    let inside: *const () = (find as fn() -> Result<PathBuf>) as *const ();
    // SAFETY: the address is one of this library, and the result is writable.
    let found = unsafe { libc::dladdr(inside.cast(), &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's name of a file that is loaded ends with a NUL and stays.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    std::fs::canonicalize(OsStr::from_bytes(name.to_bytes())).ok()
}

/// Runs at the end of the process, after the handlers that the program has registered.
#[used]
// SAFETY: the section holds pointers to functions of this type, which the loader calls at the end.
#[unsafe(link_section = ".fini_array")]
static AT_END: extern "C" fn() = at_end;

/// Tells the daemon that the process which started it is at its end, and waits until it is gone too. A signal ends the wait.
extern "C" fn at_end() {
    let own = own_pid();
    let Some(started) = started().filter(|started| started.pid == own) else {
        return;
    };
    let socket = started.socket.as_fd();
    if identity(socket) != started.identity {
        return;
    }
    if let Some(session) = Session::current() {
        session.expect_end();
    }
    let told = rustix::net::send(socket, b"x", SendFlags::NOSIGNAL);
    if told.is_ok() {
        // The end of file, a byte that says that the runtime stays, or an interrupt.
        let _ = rustix::io::read(socket, &mut [0; 1]);
    }
}

/// Device and inode of an open file.
fn identity(fd: BorrowedFd<'_>) -> Option<(u64, u64)> {
    let stat = rustix::fs::fstat(fd).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_a_file() {
        assert!(library().unwrap().is_file());
    }

    #[test]
    fn an_answer_is_one_line_or_nothing() {
        use std::io::Write;
        for (said, expected) in [
            ("+dragon/x\nmore", "+dragon/x"),
            ("", ""),
            ("+unfinished", ""),
        ] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(said.as_bytes()).unwrap();
            drop(theirs);
            let mut starting = Starting {
                pid: own_pid(),
                daemon: PathBuf::new(),
                identity: identity(ours.as_fd()),
                socket: ours,
                answer: Vec::new(),
            };
            starting.answered().unwrap();
            assert_eq!(starting.answer, expected.as_bytes());
        }
    }

    #[test]
    fn the_daemon_is_looked_for_where_it_is_installed_and_nowhere_else() {
        let of = |library: &str| -> Vec<String> {
            let found = installed(Path::new(library));
            found.map(|path| path.display().to_string()).collect()
        };
        let cases: [(&str, &[&str]); 7] = [
            (
                "/opt/dragon/lib/libdragon.so.1",
                &["/opt/dragon/lib/dragond", "/opt/dragon/bin/dragond"],
            ),
            (
                "/usr/lib/x86_64-linux-gnu/libdragon.so.1",
                &["/usr/lib/x86_64-linux-gnu/dragond", "/usr/bin/dragond"],
            ),
            (
                "/v/lib/python3.11/site-packages/dragon/_native.so",
                &[
                    "/v/lib/python3.11/site-packages/dragon/dragond",
                    "/v/bin/dragond",
                ],
            ),
            (
                "/t/dragon/_native.so",
                &["/t/dragon/dragond", "/t/bin/dragond"],
            ),
            (
                "/r/target/release/deps/test-1",
                &[
                    "/r/target/release/deps/dragond",
                    "/r/target/release/dragond",
                ],
            ),
            ("/scratch/me/a.out", &["/scratch/me/dragond"]),
            ("/scratch/me/x/y/a.out", &["/scratch/me/x/y/dragond"]),
        ];
        for (library, expected) in cases {
            assert_eq!(of(library), expected, "{library}");
        }
    }

    #[test]
    fn a_program_that_others_can_replace_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join(DAEMON);
        std::fs::write(&program, "").unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let owner = std::fs::metadata(&program).unwrap();
        let (user, group) = (owner.uid(), owner.gid());
        let trust = |user, group| Trust {
            users: [user; 3],
            groups: [group; 2],
        };
        mode(folder.path(), 0o770);
        mode(&program, 0o775);
        assert_eq!(trust(user, group).objection(&program), None);
        let why = trust(user + 1, group).objection(&program).unwrap();
        assert!(why.contains(&format!("belongs to user {user}")), "{why}");
        let why = trust(user, group + 1).objection(&program).unwrap();
        assert!(why.contains("(mode 775)"), "{why}");
        mode(&program, 0o755);
        let why = trust(user, group + 1).objection(&program).unwrap();
        assert!(why.contains("(mode 770)"), "{why}");
        mode(folder.path(), 0o1777);
        let why = trust(user, group).objection(&program).unwrap();
        assert!(why.contains("(mode 1777)"), "{why}");
    }
}
