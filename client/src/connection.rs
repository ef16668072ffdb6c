//! The control socket of an attached process: any number of requests under way, and a thread that notices its end.
//!
//! # Who reads
//! Each request has a number, and the daemon answers in any order, so a thread whose answer takes long keeps no other from
//! its own. There is no thread for reading: of those that wait for answers one reads, and hands each answer to the thread
//! that waits for it. When it has its own, it leaves, and another one of those that still wait reads on.
//!
//! # Forks
//! A forked child inherits the descriptor but not the conversation. It never takes the locks below (another thread of its
//! parent may have held them at the fork); it only closes its copy.

mod reader;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use dragon_protocol::control::{ClientReply, ClientRequest, NO_REQUEST};
use dragon_protocol::frame;
use dragon_shmem::Deadline;
use dragon_shmem::futex::{self, WaitResult};
use rustix::net::Shutdown;

use self::reader::Reader;
use crate::attach::send_all;
use crate::error::{Error, Result};

/// The daemon has not answered yet; the end of the connection is its refusal.
const JOINING: u32 = 0;
/// The process is attached; the end of the connection is that of the runtime.
const MEMBER: u32 = 1;
/// The process has left: the end of the connection is expected.
const LEFT: u32 = 2;
/// The connection ended before the process was attached.
const REFUSED: u32 = 3;

/// Why a process that has left cannot ask any more.
const DETACHED: &str = "this process has detached";

/// What the end of a connection means for the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was not attached yet. Whoever attaches learns it, and reads what the daemon said.
    Refused,
    /// It has left.
    Left,
    /// The runtime is gone.
    Unexpectedly,
}

/// The control socket.
#[derive(Debug)]
pub(crate) struct Connection {
    /// -1 once this process has closed it: a forked child, the watcher at its end, or the drop.
    socket: AtomicI32,
    /// Device and inode of the socket: a program that closes all its descriptors may have another file under the number.
    identity: Option<(u64, u64)>,
    /// [`JOINING`], [`MEMBER`], [`LEFT`] or [`REFUSED`].
    state: AtomicU32,
    /// Held while a request is written, so that requests do not mix.
    writing: Mutex<()>,
    talk: Mutex<Talk>,
    /// Told when the reader is back.
    reader_back: Condvar,
}

/// Who waits for what.
#[derive(Debug)]
struct Talk {
    /// Why nobody can ask any more.
    broken: Option<String>,
    /// Number of the last request.
    last: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// `None` while a thread reads.
    reader: Option<Reader>,
}

/// A thread that waits for an answer.
#[derive(Debug)]
struct Waiting {
    answer: Option<Answer>,
    /// Changes when the thread is to look again.
    word: Arc<AtomicU32>,
}

/// An answer, and the descriptors that came with it.
type Answer = (ClientReply, Vec<OwnedFd>);

impl Waiting {
    fn wake(&self) {
        self.word.fetch_add(1, Ordering::Relaxed);
        futex::wake(&self.word, 1);
    }
}

impl Talk {
    /// An answer has come. Nobody waits for one whose number is unknown.
    fn deliver(&mut self, number: u64, answer: Answer) {
        if let (NO_REQUEST, (ClientReply::Failed(_, why), _)) = (number, &answer) {
            return self.break_off(why);
        }
        if let Some(waiting) = self.waiting.get_mut(&number) {
            waiting.answer = Some(answer);
            waiting.wake();
        }
    }

    /// Half a conversation cannot be continued: all who wait learn it. The first reason counts.
    fn break_off(&mut self, why: &str) {
        self.broken.get_or_insert_with(|| why.to_owned());
        self.waiting.values().for_each(Waiting::wake);
    }

    /// Whoever has its answer does not read on: another one does.
    fn hand_over(&self) {
        let mut waiting = self.waiting.values();
        if self.reader.is_some()
            && let Some(next) = waiting.find(|waiting| waiting.answer.is_none())
        {
            next.wake();
        }
    }
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Arc<Self> {
        Arc::new(Self {
            identity: identity(socket.as_fd()),
            socket: AtomicI32::new(socket.into_raw_fd()),
            state: AtomicU32::new(JOINING),
            writing: Mutex::default(),
            talk: Mutex::new(Talk {
                broken: None,
                last: NO_REQUEST,
                waiting: BTreeMap::new(),
                reader: Some(Reader::default()),
            }),
            reader_back: Condvar::new(),
        })
    }

    /// Asks the daemon, and waits for its answer. Signals do not end the wait: the answer may carry a reference that
    /// would be lost.
    pub(crate) fn request(&self, request: &ClientRequest) -> Result<ClientReply> {
        self.request_with_descriptors(request)
            .map(|(reply, _)| reply)
    }

    /// As [`Connection::request`], with the descriptors that come with the answer.
    pub(crate) fn request_with_descriptors(&self, request: &ClientRequest) -> Result<Answer> {
        self.converse(request, false)
    }

    /// As [`Connection::request`], for starts that may wait for CPUs and GPUs: after a signal they wait no longer, and the
    /// answer says so.
    pub(crate) fn request_until_signal(&self, request: &ClientRequest) -> Result<ClientReply> {
        self.converse(request, true).map(|(reply, _)| reply)
    }

    fn converse(&self, request: &ClientRequest, cancels: bool) -> Result<Answer> {
        let (number, word) = self.begin()?;
        let answer = self
            .say(number, request)
            .and_then(|()| self.answer(number, &word, cancels))
            .inspect_err(|_| {
                let mut talk = lock(&self.talk);
                talk.waiting.remove(&number);
                // It may have been this thread's turn to read.
                talk.hand_over();
            });
        match answer? {
            (ClientReply::Failed(code, text), _) => Err(Error::Daemon { code, text }),
            answer => Ok(answer),
        }
    }

    /// A number for a request of this thread.
    fn begin(&self) -> Result<(u64, Arc<AtomicU32>)> {
        let mut talk = lock(&self.talk);
        if let Some(why) = &talk.broken {
            return Err(Error::RuntimeGone(why.clone()));
        }
        talk.last += 1;
        let (number, word) = (talk.last, Arc::new(AtomicU32::new(0)));
        let waiting = Waiting {
            answer: None,
            word: Arc::clone(&word),
        };
        talk.waiting.insert(number, waiting);
        Ok((number, word))
    }

    fn say(&self, number: u64, request: &ClientRequest) -> Result<()> {
        let mut bytes = Vec::new();
        frame::encode_request(&(number, request), &mut bytes)?;
        let _turn = lock(&self.writing);
        let said = self.usable().and_then(|socket| send_all(socket, &bytes));
        said.inspect_err(|error| lock(&self.talk).break_off(&why(error)))
    }

    /// Waits until the answer to a request is there, and reads what comes while no other thread does.
    fn answer(&self, number: u64, word: &AtomicU32, mut cancels: bool) -> Result<Answer> {
        let mut talk = lock(&self.talk);
        loop {
            let seen = word.load(Ordering::Relaxed);
            let waiting = talk.waiting.get_mut(&number);
            if let Some(answer) = waiting.and_then(|waiting| waiting.answer.take()) {
                talk.waiting.remove(&number);
                talk.hand_over();
                return Ok(answer);
            }
            if let Some(why) = talk.broken.clone() {
                return Err(Error::RuntimeGone(why));
            }
            let reader = talk.reader.take();
            drop(talk);
            let waited = match reader {
                None => Ok(futex::wait(word, seen, Deadline::Never)),
                Some(reader) => self.read(reader),
            };
            if waited? == WaitResult::Interrupted && cancels {
                cancels = false;
                // If it cannot be said, the answer will not come either.
                let _ = self.say(NO_REQUEST, &ClientRequest::Cancel(number));
            }
            talk = lock(&self.talk);
        }
    }

    /// Waits for one answer, whoever it is for.
    fn read(&self, mut reader: Reader) -> Result<WaitResult> {
        let read = self.usable().and_then(|socket| reader.read(socket));
        let mut talk = lock(&self.talk);
        talk.reader = Some(reader);
        self.reader_back.notify_all();
        match read {
            Ok(((number, reply), descriptors)) => talk.deliver(number, (reply, descriptors)),
            Err(Error::Interrupted) => return Ok(WaitResult::Interrupted),
            // The process has left: that is the reason.
            Err(_) if talk.broken.is_some() => {}
            Err(error) => {
                talk.break_off(&why(&error));
                return Err(error);
            }
        }
        Ok(WaitResult::Woken)
    }

    fn usable(&self) -> Result<BorrowedFd<'_>> {
        let socket = self
            .socket()
            .ok_or_else(|| Error::RuntimeGone(DETACHED.to_owned()))?;
        if self.is_ours(socket) {
            return Ok(socket);
        }
        Err(Error::RuntimeGone(format!(
            "this process has closed descriptor {}, its connection to the daemon, which is needed to start processes and to get more memory; leave it open (closefrom, os.closerange)",
            socket.as_raw_fd()
        )))
    }

    /// The socket, unless this process has closed it.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.socket.load(Ordering::Acquire);
        // SAFETY: the descriptor is open until `close`, which only the watcher calls by `close_unused`, a forked child on
        // its own copy, which it never uses otherwise, and the drop.
        (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Whether the descriptor still is the one that this connection was made with.
    pub(crate) fn is_ours(&self, socket: BorrowedFd<'_>) -> bool {
        identity(socket) == self.identity
    }

    /// The daemon has answered, and the process is about to be attached. False when the connection has ended meanwhile.
    pub(crate) fn attached(&self) -> bool {
        self.pass(JOINING, MEMBER).is_ok()
    }

    /// The connection has ended: what that means.
    pub(crate) fn ended(&self) -> Ended {
        match self.pass(JOINING, REFUSED) {
            Ok(_) | Err(REFUSED) => Ended::Refused,
            Err(LEFT) => Ended::Left,
            Err(_) => Ended::Unexpectedly,
        }
    }

    /// The process is at its end: that of the connection means nothing any more.
    pub(crate) fn expect_end(&self) {
        let _ = self.pass(MEMBER, LEFT);
    }

    fn pass(&self, from: u32, to: u32) -> std::result::Result<u32, u32> {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
    }

    /// Ends the connection in good order; the watcher closes it. Later requests fail. False when the program has closed the
    /// descriptor: then the watcher learns nothing.
    pub(crate) fn leave(&self) -> bool {
        let _turn = lock(&self.writing);
        lock(&self.talk).break_off(DETACHED);
        self.state.store(LEFT, Ordering::Release);
        let Some(socket) = self.socket().filter(|socket| self.is_ours(*socket)) else {
            return false;
        };
        // When one of them fails the peer is gone, which is what we want.
        let mut bytes = Vec::new();
        let _ = frame::encode(&(NO_REQUEST, ClientRequest::Leave), &mut bytes)
            .map_err(Error::from)
            .and_then(|()| send_all(socket, &bytes));
        // It also ends the wait of a thread that reads.
        let _ = rustix::net::shutdown(socket, Shutdown::Both);
        true
    }

    /// As [`Connection::close`], after [`Connection::leave`]: when no thread uses the socket any more, nor will.
    pub(crate) fn close_unused(&self) {
        let _turn = lock(&self.writing);
        let talk = lock(&self.talk);
        let read = self
            .reader_back
            .wait_while(talk, |talk| talk.reader.is_none());
        drop(read);
        self.close();
    }

    /// Closes this process's copy of the socket, once.
    pub(crate) fn close(&self) {
        let ours = self.socket().is_some_and(|socket| self.is_ours(socket));
        let fd = self.socket.swap(-1, Ordering::AcqRel);
        if fd >= 0 && ours {
            // SAFETY: the swap made this the only place that still knows the descriptor.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

/// An error as the reason of later ones.
fn why(error: &Error) -> String {
    match error {
        Error::RuntimeGone(why) => why.clone(),
        other => other.to_string(),
    }
}

// A thread that panicked left what is locked here consistent: each change is a single step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Device and inode of an open file.
fn identity(fd: BorrowedFd<'_>) -> Option<(u64, u64)> {
    let stat = rustix::fs::fstat(fd).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
