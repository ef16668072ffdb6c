//! Started by a program that had no runtime when it first needed one: `libdragon` is the launcher, by a socket pair on
//! standard input (`client/src/start.rs` says what is spoken there).
//!
//! The daemon must not be the program's child, which may wait for any child of its own. So the process that `libdragon`
//! starts ([`hand_over`]) starts the daemon and ends. The runtime ends when the program does, unless processes that it was
//! forked into use it still.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::process::Command;

use anyhow::{Context, Result};
use dragon_protocol::NodeIndex;
use dragon_protocol::key::JobKey;
use rustix::io::FdFlags;
use rustix::net::SendFlags;
use rustix::net::sockopt::socket_peercred;
use tokio::sync::mpsc;

use super::task::Shape;
use super::{Job, Manager};
use crate::config::{Config, keys};
use crate::readable::{end_of, readable};
use crate::services::Event;

/// The word with which `libdragon` starts this program.
pub const HAND_OVER: &str = "--for-client";
/// The word with which that one starts the daemon.
pub const DAEMON: &str = "--for-client-daemon";

/// Starts the daemon as nobody's child.
///
/// # Errors
/// When it cannot be started.
pub fn hand_over() -> Result<()> {
    leave_descriptors().context("cannot look at the open files")?;
    let own = std::env::current_exe()?;
    Command::new(own).arg(DAEMON).spawn()?;
    Ok(())
}

/// What the program has open is not for the daemon.
#[expect(
    unsafe_code,
    reason = "descriptors that were inherited have no owner here"
)]
fn leave_descriptors() -> io::Result<()> {
    let numbers = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for number in numbers.filter(|number| *number > 2).collect::<Vec<_>>() {
        // SAFETY: the number is used for this one call, which fails when nothing is open under it any more.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC);
    }
    Ok(())
}

/// Makes up a job of one node.
///
/// # Errors
/// When standard input is no socket pair, or a setting makes no sense: the program is told that too.
pub fn read() -> Result<Job> {
    job().inspect_err(|error| answer('-', &format!("{error:#}")))
}

fn job() -> Result<Job> {
    let owner = owner()?;
    let config = Config::load(&[])?;
    let mut key = [0; 32];
    getrandom::fill(&mut key).context("no random numbers from the kernel")?;
    Ok(Job {
        key: JobKey::new(key),
        name: owner.to_string(),
        node: NodeIndex::FIRST,
        hosts: vec!["127.0.0.1".to_owned()],
        ports: config.ports(),
        fanout: 1,
        bring_up: super::launcher::BRING_UP,
        program: Vec::new(),
        shape: Shape::Head,
        pool: config.number(&keys::POOL).unwrap_or(0),
        environment: Vec::new(),
        forward_output: false,
        siblings: 0,
        cpus: None,
        network: config.network(),
        config,
        manager: Manager::Client { owner },
    })
}

/// The process that made the socket pair.
fn owner() -> Result<u32> {
    let peer = socket_peercred(rustix::stdio::stdin()).context(
        "standard input is no socket: this way only libdragon starts dragond; type dragon --help",
    )?;
    Ok(peer.pid.as_raw_nonzero().get().cast_unsigned())
}

/// Tells the program where the runtime listens.
pub fn is_up(socket: &str) {
    answer('+', socket);
}

/// Tells the program that it need not wait: others use the runtime.
pub fn stays() {
    // It may be gone.
    let _ = rustix::net::send(rustix::stdio::stdin(), b"s", SendFlags::NOSIGNAL);
}

fn answer(how: char, text: &str) {
    let line = format!("{how}{}\n", text.replace('\n', " "));
    // A program that is gone is noticed otherwise.
    let _ = rustix::net::send(rustix::stdio::stdin(), line.as_bytes(), SendFlags::NOSIGNAL);
}

/// Reports the end of the program: it says so itself, or it is gone.
///
/// # Errors
/// When it cannot be watched.
pub fn follow(owner: u32, events: &mpsc::Sender<Event>) -> Result<()> {
    let stdin = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::io::ioctl_fionbio(&stdin, true)?;
    let said = readable(stdin)?;
    let events = events.clone();
    let end = end_of(owner);
    tokio::spawn(async move {
        let gone = async {
            // Without it the program is gone already.
            if let Ok(end) = &end {
                drop(end.readable().await);
            }
        };
        let says = async {
            loop {
                let Ok(mut ready) = said.readable().await else {
                    return;
                };
                match ready.try_io(|said| Ok(rustix::io::read(said, &mut [0; 1])?)) {
                    // A program that closes its descriptors lives on: its end is noticed.
                    Ok(Ok(0)) => std::future::pending().await,
                    Ok(_) => return,
                    Err(_) => {}
                }
            }
        };
        tokio::select! {
            () = gone => {}
            () = says => {}
        }
        let _ = events.send(Event::OwnerLeft).await;
    });
    Ok(())
}

/// Whether a process descends from this one: one that the runtime started.
#[must_use]
pub fn is_descendant(pid: u32) -> bool {
    let own = std::process::id();
    let mut pid = pid;
    // Whatever ended meanwhile is nobody's ancestor; the kernel has no circles, but pids are used again.
    for _ in 0..1000 {
        let Some(parent) = parent_of(pid) else {
            return false;
        };
        if parent == own {
            return true;
        }
        pid = parent;
    }
    false
}

/// The process that started another one, or adopted it.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    word_of(pid, 1)?.parse().ok()
}

/// Whether a process is stopped, by SIGSTOP or the like.
pub(crate) fn is_stopped(pid: u32) -> bool {
    word_of(pid, 0).is_some_and(|state| state == "T")
}

/// What the kernel says of a process behind its name.
fn word_of(pid: u32, position: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses, and may hold any character.
    let rest = stat.rsplit_once(')')?.1;
    rest.split_whitespace().nth(position).map(str::to_owned)
}
