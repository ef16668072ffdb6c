//! Warm Python interpreters that fork workers.
//!
//! One zygote per interpreter and search path. It imports what workers need, stays single-threaded, and forks on order:
//! the worker is forked as a child of the daemon itself (`CLONE_PARENT`), which reads its status. Where workers ask for more
//! to be imported, as the program's main module, the zygote forks another one for them in the same way.
//!
//! ```text
//! daemon → zygote   u32 length; u32 0: worker, 1: zygote; then u32 pairs, (u32 n, bytes) × 2 each; u32 n, directory;
//!                   u32 n, payload; u32 n, settings
//!                   [by SCM_RIGHTS with the first byte: stdin (of a zygote: its socket), stdout, stderr]
//! zygote → daemon   i32 pid, or a negative error number
//! ```
//! All numbers are little-endian. End of file ends the zygote.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use dragon_protocol::process::Settings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::attach::send_with_fds;
use crate::forker::{Fork, Forker, Source, limit};
use crate::inherited::Inherited;
use crate::journal;
use crate::services::Event;

/// Variables that decide what an interpreter imports, or that libraries read when they are imported: workers that differ in
/// one need another zygote.
const DECISIVE: [&[u8]; 11] = [
    b"PYTHONPATH",
    b"PYTHONHOME",
    b"VIRTUAL_ENV",
    b"LD_LIBRARY_PATH",
    b"LD_PRELOAD",
    b"OMP_NUM_THREADS",
    b"OPENBLAS_NUM_THREADS",
    b"MKL_NUM_THREADS",
    b"CUDA_VISIBLE_DEVICES",
    b"HIP_VISIBLE_DEVICES",
    b"ROCR_VISIBLE_DEVICES",
];

/// Variables that an interpreter takes for options, which it then names when it asks for workers, in this order.
const AS_OPTIONS: [(&[u8], &[u8]); 3] = [
    (b"PYTHONDONTWRITEBYTECODE", b"-B"),
    (b"PYTHONNOUSERSITE", b"-s"),
    (b"PYTHONSAFEPATH", b"-P"),
];

/// Without the working directory in the path: a file there must not pass for a module. Workers see the options that were asked
/// for, and `-P` is none of them. What is imported lives as long as the interpreter: nothing of it is worth looking for garbage.
const RUN: &str = "import gc, sys; collects = gc.isenabled(); gc.disable(); sys.flags.safe_path or sys.path.pop(0); from dragon._zygote import main; main(collects)";

/// Which zygote serves a worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    interpreter: Vec<u8>,
    options: Vec<Vec<u8>>,
    preload: Vec<u8>,
    decisive: Vec<Option<Vec<u8>>>,
}

impl Key {
    /// The key of an interpreter with these options in an environment, that imports nothing but what all workers need.
    #[must_use]
    pub fn new(
        interpreter: Vec<u8>,
        options: Vec<Vec<u8>>,
        environment: &[(Vec<u8>, Vec<u8>)],
    ) -> Self {
        let value = |name: &[u8]| {
            environment
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, v)| v.clone())
        };
        Self {
            interpreter,
            options,
            preload: Vec::new(),
            decisive: DECISIVE.iter().map(|name| value(name)).collect(),
        }
    }

    /// The key that a program without options of its own will ask for. Where it names one that is not foreseen here, its zygote
    /// starts when it asks.
    #[must_use]
    pub fn foreseen(interpreter: Vec<u8>, environment: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let is_set = |name: &[u8]| environment.iter().any(|(n, v)| n == name && !v.is_empty());
        let options = AS_OPTIONS.into_iter().filter(|(name, _)| is_set(name));
        let options = options.map(|(_, option)| option.to_vec()).collect();
        Self::new(interpreter, options, environment)
    }

    /// The key of the zygote that imports this, too.
    #[must_use]
    pub fn with(&self, preload: &[u8]) -> Self {
        Self {
            preload: preload.to_vec(),
            ..self.clone()
        }
    }
}

/// The warm interpreters of a node, at most `MOST`: the one that has had no order for the longest time ends for another.
#[derive(Debug, Default)]
pub struct Zygotes {
    all: HashMap<Key, (Zygote, u64)>,
    /// How often one was used.
    uses: u64,
}

/// As many interpreters stay warm, each with some ten megabytes. Who starts workers with ever other search paths gains nothing
/// by more.
const MOST: usize = 8;

impl Zygotes {
    /// One that takes orders.
    pub fn live(&mut self, key: &Key) -> Option<&Zygote> {
        let (zygote, used) = self.all.get_mut(key)?;
        self.uses += 1;
        *used = self.uses;
        zygote.is_live().then_some(&*zygote)
    }

    /// One more, or one in the place of one that has ended.
    pub fn insert(&mut self, key: Key, zygote: Zygote) {
        self.uses += 1;
        self.all.insert(key, (zygote, self.uses));
        if self.all.len() > MOST {
            self.all.retain(|_, (zygote, _)| zygote.is_live());
        }
        while self.all.len() > MOST {
            let oldest = self.all.iter().min_by_key(|(_, (_, used))| *used);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else {
                return;
            };
            self.all.remove(&key);
        }
    }

    /// Ends all.
    pub fn clear(&mut self) {
        self.all.clear();
    }
}

/// A worker to be forked, or another zygote.
#[derive(Debug)]
pub struct Order {
    /// The number of its start, under which [`Event::Started`] tells its pid, or why there is none. None: a zygote, of which
    /// nobody is told.
    pub number: Option<u64>,
    /// Its environment.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Its working directory.
    pub directory: Vec<u8>,
    /// What it unpickles: what to do, or, of a zygote, what to import.
    pub payload: Vec<u8>,
    /// Its standard input, output and error: set when it is ordered.
    pub stdio: Option<[OwnedFd; 3]>,
    /// What else it starts with.
    pub settings: Settings,
    /// The CPUs that it is bound to; none: those of the zygote.
    pub cpus: Vec<u32>,
}

/// Handle of a zygote. Dropping it ends the zygote when it has forked what was ordered.
#[derive(Clone, Debug)]
pub struct Zygote {
    orders: mpsc::UnboundedSender<Order>,
    events: mpsc::Sender<Event>,
}

impl Zygote {
    /// Starts a zygote. `errors` is its standard error.
    ///
    /// # Errors
    /// When the socket pair cannot be made.
    pub fn start(
        forker: &Forker,
        events: &mpsc::Sender<Event>,
        key: &Key,
        environment: &[(Vec<u8>, Vec<u8>)],
        errors: Source,
    ) -> io::Result<Self> {
        let (ours, theirs) = StdStream::pair()?;
        let interpreter = std::iter::once(&key.interpreter);
        let words = interpreter.chain(&key.options).cloned();
        let mut words: Vec<_> = words.map(OsString::from_vec).collect();
        words.extend(["-c", RUN, "0"].map(OsString::from));
        let fork = Fork {
            words,
            look_up: false,
            environment: environment.to_vec(),
            directory: None,
            stdio: [Source::Fd(theirs.into()), Source::Null, errors],
            own_group: true,
            settings: Settings::default(),
            cpus: Vec::new(),
            inherited: Inherited::default(),
        };
        forker.start_process(None, fork);
        Self::behind(ours, key, events)
    }

    /// Has this zygote fork another one that imports what its key says, in the environment and directory of a worker. It
    /// prints to `outputs` until it is ready, its errors later too.
    ///
    /// # Errors
    /// When the socket pair cannot be made.
    pub fn fork(
        &self,
        key: &Key,
        environment: &[(Vec<u8>, Vec<u8>)],
        directory: &[u8],
        outputs: [OwnedFd; 2],
    ) -> io::Result<Self> {
        let (ours, theirs) = StdStream::pair()?;
        let [output, errors] = outputs;
        self.order(Order {
            number: None,
            environment: environment.to_vec(),
            directory: directory.to_vec(),
            payload: key.preload.clone(),
            stdio: Some([theirs.into(), output, errors]),
            settings: Settings::default(),
            cpus: Vec::new(),
        });
        Self::behind(ours, key, &self.events)
    }

    /// The zygote at the other end of a socket.
    fn behind(socket: StdStream, key: &Key, events: &mpsc::Sender<Event>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let (orders, inbox) = mpsc::unbounded_channel();
        let (read, write) = UnixStream::from_std(socket)?.into_split();
        let name = String::from_utf8_lossy(&key.interpreter).into_owned();
        tokio::spawn(serve(name, inbox, events.clone(), read, write));
        let events = events.clone();
        Ok(Self { orders, events })
    }

    /// Whether it takes orders.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.orders.is_closed()
    }

    /// Orders a worker.
    pub fn order(&self, order: Order) {
        if let Err(refused) = self.orders.send(order) {
            let events = self.events.clone();
            let number = refused.0.number;
            tokio::spawn(async move { report(&events, number, Err(GONE.to_owned())).await });
        }
    }
}

const GONE: &str = "the warm interpreter ended; is the package 'dragon' installed for it?";

async fn report(events: &mpsc::Sender<Event>, number: Option<u64>, result: Result<u32, String>) {
    if let Some(number) = number {
        let _ = events.send(Event::Started(number, result)).await;
    }
}

/// An interpreter that gives no answer for so long is told of, once.
const PATIENCE: Duration = Duration::from_secs(60);

async fn serve(
    name: String,
    mut inbox: mpsc::UnboundedReceiver<Order>,
    events: mpsc::Sender<Event>,
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
) {
    // Orders are sent without waiting for answers, which come in the same order.
    let mut waiting: VecDeque<Option<u64>> = VecDeque::new();
    let mut answer = [0; 4];
    let mut filled = 0;
    let (mut open, mut said) = (true, false);
    // When something was heard of it, or it had nothing to say.
    let mut since = Instant::now();
    let failure = loop {
        tokio::select! {
            order = inbox.recv(), if open => {
                let Some(order) = order else {
                    // It reads to the end, and answers all that it has read.
                    open = false;
                    let _ = write.shutdown().await;
                    continue;
                };
                if waiting.is_empty() {
                    since = Instant::now();
                }
                let bytes = encode(&order);
                let fds: Vec<_> = order.stdio.iter().flatten().map(AsFd::as_fd).collect();
                let sent = send_with_fds(write.as_ref(), &bytes, &fds).await;
                waiting.push_back(order.number);
                let rest = match sent { Ok(n) => write.write_all(&bytes[n..]).await, Err(error) => Err(error) };
                if let Err(error) = rest { break error.to_string(); }
            }
            read = read.read(&mut answer[filled..]) => {
                match read {
                    Ok(0) => break GONE.to_owned(),
                    Ok(n) => filled += n,
                    Err(error) => break error.to_string(),
                }
                if filled == answer.len() {
                    filled = 0;
                    since = Instant::now();
                    let number = i32::from_le_bytes(answer);
                    let result = u32::try_from(number)
                        .map_err(|_| io::Error::from_raw_os_error(number.wrapping_neg()).to_string());
                    if let Some(number) = waiting.pop_front() { report(&events, number, result).await; }
                }
            }
            () = tokio::time::sleep_until(since + PATIENCE), if !waiting.is_empty() && !said => {
                said = true;
                journal::say(&format!("{} starts of workers have waited {} s for the warm interpreter {name}; does it hang in an import, or is its file system slow?", waiting.len(), PATIENCE.as_secs()));
            }
        }
    };
    inbox.close();
    let queued = std::iter::from_fn(|| inbox.try_recv().ok()).map(|order| order.number);
    for number in waiting.into_iter().chain(queued) {
        report(&events, number, Err(failure.clone())).await;
    }
}

fn encode(order: &Order) -> Vec<u8> {
    fn field(out: &mut Vec<u8>, bytes: &[u8]) {
        out.extend_from_slice(&length(bytes.len()));
        out.extend_from_slice(bytes);
    }
    let mut out = vec![0; 4];
    out.extend_from_slice(&length(usize::from(order.number.is_none())));
    out.extend_from_slice(&length(order.environment.len()));
    for (name, value) in &order.environment {
        field(&mut out, name);
        field(&mut out, value);
    }
    field(&mut out, &order.directory);
    field(&mut out, &order.payload);
    field(&mut out, settings(order).as_bytes());
    let body = length(out.len() - 4);
    out[..4].copy_from_slice(&body);
    out
}

/// What a worker does to itself before it begins, as words: `umask=23 nice=5 cpus=0,1 limit=7:1024:4096`.
fn settings(order: &Order) -> String {
    let mut words = String::new();
    let settings = &order.settings;
    // Writing to a String does not fail.
    if let Some(umask) = settings.umask {
        let _ = write!(words, "umask={umask} ");
    }
    if !order.cpus.is_empty() {
        let cpus: Vec<_> = order.cpus.iter().map(u32::to_string).collect();
        let _ = write!(words, "cpus={} ", cpus.join(","));
    }
    if let Some(nice) = settings.nice {
        let _ = write!(words, "nice={nice} ");
    }
    for (resource, limits) in settings.limits.iter().map(limit) {
        let [soft, hard] = [limits.current, limits.maximum]
            .map(|limit| limit.map_or_else(|| "-1".to_owned(), |limit| limit.to_string()));
        let _ = write!(words, "limit={}:{soft}:{hard} ", resource as u32);
    }
    words
}

/// A request was read from a frame of at most 64 MiB, so every length in it fits 32 bits.
fn length(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        let path = (b"PYTHONPATH".to_vec(), n.to_string().into_bytes());
        Key::new(b"python3".to_vec(), Vec::new(), &[path])
    }

    /// A zygote without a process, and where its orders come.
    fn zygote() -> (Zygote, mpsc::UnboundedReceiver<Order>) {
        let (orders, inbox) = mpsc::unbounded_channel();
        let (events, _) = mpsc::channel(1);
        (Zygote { orders, events }, inbox)
    }

    #[test]
    fn the_interpreter_that_was_used_least_lately_ends() {
        let most = u32::try_from(MOST).unwrap();
        let mut zygotes = Zygotes::default();
        let mut inboxes = Vec::new();
        for n in 0..most {
            let (one, inbox) = zygote();
            zygotes.insert(key(n), one);
            inboxes.push(inbox);
        }
        assert!(zygotes.live(&key(0)).is_some());
        let (one, _inbox) = zygote();
        zygotes.insert(key(most), one);
        assert!(zygotes.live(&key(1)).is_none());
        assert!(
            (0..=most)
                .filter(|n| *n != 1)
                .all(|n| zygotes.live(&key(n)).is_some())
        );
        // Its inbox says that no order will come.
        assert!(inboxes.remove(1).blocking_recv().is_none());
        // One that has ended makes room, and is not used.
        drop(inboxes.remove(2));
        assert!(zygotes.live(&key(3)).is_none());
        let (one, _inbox) = zygote();
        zygotes.insert(key(most + 1), one);
        assert_eq!(zygotes.all.len(), MOST);
        assert!(zygotes.live(&key(0)).is_some());
    }

    #[tokio::test]
    async fn what_was_ordered_before_the_end_is_started() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (read, write) = ours.into_split();
        let (orders, inbox) = mpsc::unbounded_channel();
        let (events, mut told) = mpsc::channel(8);
        tokio::spawn(serve(
            "python3".to_owned(),
            inbox,
            events.clone(),
            read,
            write,
        ));
        let zygote = Zygote { orders, events };
        for number in 1..=2 {
            zygote.order(Order {
                number: Some(number),
                environment: Vec::new(),
                directory: Vec::new(),
                payload: Vec::new(),
                stdio: None,
                settings: Settings::default(),
                cpus: Vec::new(),
            });
        }
        drop(zygote);
        let (mut read, mut write) = theirs.into_split();
        let mut all = Vec::new();
        read.read_to_end(&mut all).await.unwrap();
        assert!(!all.is_empty());
        for pid in [77_i32, 78] {
            write.write_all(&pid.to_le_bytes()).await.unwrap();
        }
        drop(write);
        for (number, pid) in [(1, 77), (2, 78)] {
            let event = told.recv().await.unwrap();
            assert!(
                matches!(event, Event::Started(n, Ok(p)) if n == number && p == pid),
                "{event:?}"
            );
        }
        assert!(told.recv().await.is_none());
    }
}
