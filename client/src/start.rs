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
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use rustix::net::SendFlags;

use crate::attach;
use crate::error::{Error, Result};
use crate::session::Session;

/// The name of the program.
const DAEMON: &str = "dragond";
/// The longest answer: a name, or a sentence.
const ANSWER: usize = 4096;
/// As many folders above the library's are searched: `lib/python3.11/site-packages/dragon` lies four below that of `bin`.
const ABOVE: usize = 5;

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
    let named = env::var_os(dragon_protocol::env::RUNTIME).filter(|name| !name.is_empty());
    if let Some(name) = named {
        match attach::call(&name) {
            Err(Error::NobodyListens { .. }) if start => eprintln!(
                "dragon: DRAGON_RUNTIME names the attach socket @{}, where nobody listens: that runtime has ended. A runtime of this process's own is used; unset DRAGON_RUNTIME to be rid of this notice",
                name.display()
            ),
            called => return Ok((name, called?)),
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

/// Starts a runtime; returns the name of its attach socket. The caller holds the lock under which processes attach.
fn one_node_runtime() -> Result<OsString> {
    let daemon = find()?;
    let (ours, theirs) = UnixStream::pair().map_err(|error| Error::system("socketpair", error))?;
    let mut command = Command::new(&daemon);
    command
        .arg("--for-client")
        .env_remove(dragon_protocol::env::RUNTIME)
        .stdin(OwnedFd::from(theirs))
        // An interrupt from the terminal is for the program.
        .process_group(0);
    let not_started = |why: String| Error::NotStarted {
        daemon: daemon.display().to_string(),
        why,
    };
    let mut first = command
        .spawn()
        .map_err(|error| not_started(error.to_string()))?;
    // Its end of the pair.
    drop(command);
    // It ends at once. A program that ignores its children has it reaped by the kernel.
    let _ = first.wait();
    let answer = read_answer(&ours)?;
    let name = match answer.split_first() {
        Some((b'+', name)) => OsString::from_vec(name.to_vec()),
        Some((b'-', why)) => return Err(not_started(String::from_utf8_lossy(why).into_owned())),
        _ => {
            return Err(not_started(
                "it ended at once; its last words are above".to_owned(),
            ));
        }
    };
    let socket = OwnedFd::from(ours);
    let started = Started {
        pid: rustix::process::getpid().as_raw_nonzero().get(),
        name: name.clone(),
        identity: identity(socket.as_fd()),
        socket,
    };
    STARTED.store(Box::into_raw(Box::new(started)), Ordering::Release);
    Ok(name)
}

/// One line. A signal ends the wait, and with it the daemon, which finds the socket closed.
fn read_answer(mut socket: &UnixStream) -> Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut byte = [0];
    while answer.len() < ANSWER {
        match socket.read(&mut byte) {
            Ok(0) => return Ok(Vec::new()),
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) => answer.push(byte[0]),
            Err(error) => return Err(Error::system("the answer of dragond", error)),
        }
    }
    Ok(answer)
}

/// The daemon: the one that DRAGON_DAEMON names, the one that belongs to this library, or the one on PATH.
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
    let library = library();
    let folders = library
        .iter()
        .flat_map(|library| library.ancestors().skip(1));
    let beside = folders
        .take(ABOVE)
        .flat_map(|folder| [folder.join(DAEMON), folder.join("bin").join(DAEMON)]);
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join(DAEMON));
    let found = beside.chain(on_path).find(|path| is_executable(path));
    found.ok_or_else(|| {
        let library = library.unwrap_or_default();
        Error::NoDaemon(format!(
            "dragond is neither beside {} nor on PATH",
            library.display()
        ))
    })
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
    let own = rustix::process::getpid().as_raw_nonzero().get();
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
            assert_eq!(read_answer(&ours).unwrap(), expected.as_bytes());
        }
    }
}
