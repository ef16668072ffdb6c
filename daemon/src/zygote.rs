//! Warm Python interpreters that fork workers.
//!
//! One zygote per interpreter and search path. It imports what workers need, stays single-threaded, and forks on order:
//! the worker is forked as a child of the daemon itself (`CLONE_PARENT`), which reads its status.
//!
//! ```text
//! daemon → zygote   u32 length; then u32 pairs, (u32 n, bytes) × 2 each; u32 n, directory; u32 n, payload; u32 n, settings
//!                   [stdin, stdout, stderr of the worker by SCM_RIGHTS with the first byte]
//! zygote → daemon   i32 pid, or a negative error number
//! ```
//! All numbers are little-endian. End of file ends the zygote.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream as StdStream;

use dragon_protocol::process::Settings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::attach::send_with_fds;
use crate::forker::{Fork, Forker, Source, limit};
use crate::services::Event;

/// Variables that decide what an interpreter imports: workers that differ in one need another zygote.
const DECISIVE: [&[u8]; 5] = [
    b"PYTHONPATH",
    b"PYTHONHOME",
    b"VIRTUAL_ENV",
    b"LD_LIBRARY_PATH",
    b"LD_PRELOAD",
];

/// Which zygote serves a worker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    interpreter: Vec<u8>,
    search: Vec<Option<Vec<u8>>>,
}

impl Key {
    /// The key of an interpreter in an environment.
    #[must_use]
    pub fn new(interpreter: &[u8], environment: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let value = |name: &[u8]| {
            environment
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, v)| v.clone())
        };
        Self {
            interpreter: interpreter.to_vec(),
            search: DECISIVE.iter().map(|name| value(name)).collect(),
        }
    }
}

/// A worker to be forked.
#[derive(Debug)]
pub struct Order {
    /// The number of its start, under which [`Event::Started`] tells its pid, or why there is none.
    pub number: u64,
    /// Its environment.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Its working directory.
    pub directory: Vec<u8>,
    /// What it unpickles.
    pub payload: Vec<u8>,
    /// Its standard input, output and error: set when it is ordered.
    pub stdio: Option<[OwnedFd; 3]>,
    /// What else it starts with.
    pub settings: Settings,
    /// The CPUs that it is bound to; none: those of the zygote.
    pub cpus: Vec<u32>,
}

/// Handle of a zygote. Dropping it ends the zygote; what is still ordered fails.
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
        interpreter: &[u8],
        environment: &[(Vec<u8>, Vec<u8>)],
        errors: Source,
    ) -> io::Result<Self> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let string = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let words = vec![
            string(interpreter),
            // Without the working directory in the path: a file there must not pass for a module.
            "-P".into(),
            "-m".into(),
            "dragon._zygote".into(),
            "0".into(),
        ];
        let fork = Fork {
            words,
            look_up: false,
            environment: environment.to_vec(),
            directory: None,
            stdio: [Source::Fd(theirs.into()), Source::Null, errors],
            own_group: true,
            settings: Settings::default(),
            cpus: Vec::new(),
        };
        forker.start_process(None, fork);
        let (orders, inbox) = mpsc::unbounded_channel();
        let (read, write) = UnixStream::from_std(ours)?.into_split();
        tokio::spawn(serve(inbox, events.clone(), read, write));
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

async fn report(events: &mpsc::Sender<Event>, number: u64, result: Result<u32, String>) {
    let _ = events.send(Event::Started(number, result)).await;
}

async fn serve(
    mut inbox: mpsc::UnboundedReceiver<Order>,
    events: mpsc::Sender<Event>,
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
) {
    // Orders are sent without waiting for answers, which come in the same order.
    let mut waiting: VecDeque<u64> = VecDeque::new();
    let mut answer = [0; 4];
    let mut filled = 0;
    let failure = loop {
        tokio::select! {
            order = inbox.recv() => {
                let Some(order) = order else { break "the runtime is ending".to_owned() };
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
                    let number = i32::from_le_bytes(answer);
                    let result = u32::try_from(number)
                        .map_err(|_| io::Error::from_raw_os_error(number.wrapping_neg()).to_string());
                    if let Some(number) = waiting.pop_front() { report(&events, number, result).await; }
                }
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
