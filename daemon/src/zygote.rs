//! Warm Python interpreters that fork workers.
//!
//! One zygote per interpreter and search path. It imports what workers need, stays single-threaded, and forks on order:
//! the worker is forked as a child of the daemon itself (`CLONE_PARENT`), which reads its status.
//!
//! ```text
//! daemon → zygote   u32 length; then u32 pairs, (u32 n, bytes) × 2 each; u32 n, directory; u32 n, payload
//!                   [stdin, stdout, stderr of the worker by SCM_RIGHTS with the first byte]
//! zygote → daemon   i32 pid, or a negative error number
//! ```
//! All numbers are little-endian. End of file ends the zygote.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream as StdStream;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use crate::attach::send_with_fds;
use crate::forker::{Fork, Forker, null};

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
    /// Its environment.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Its working directory.
    pub directory: Vec<u8>,
    /// What it unpickles.
    pub payload: Vec<u8>,
    /// Its standard input, output and error.
    pub stdio: [OwnedFd; 3],
    /// Where its pid goes, or why there is none.
    pub reply: oneshot::Sender<io::Result<u32>>,
}

/// Handle of a zygote. Dropping it ends the zygote; what is still ordered fails.
#[derive(Debug)]
pub struct Zygote {
    orders: mpsc::UnboundedSender<Order>,
}

impl Zygote {
    /// Starts a zygote. Its pid, or why it did not start, comes through the second value. `errors` is its standard error.
    ///
    /// # Errors
    /// When the socket pair cannot be made.
    pub fn start(
        forker: &Forker,
        interpreter: &[u8],
        environment: &[(Vec<u8>, Vec<u8>)],
        errors: Option<OwnedFd>,
    ) -> io::Result<(Self, oneshot::Receiver<io::Result<u32>>)> {
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
        let started = forker.start_process(Fork {
            words,
            environment: environment
                .iter()
                .map(|(name, value)| (string(name), string(value)))
                .collect(),
            directory: None,
            stdio: [Some(theirs.into()), Some(null()?), errors],
            own_group: true,
        });
        let (orders, inbox) = mpsc::unbounded_channel();
        let (read, write) = UnixStream::from_std(ours)?.into_split();
        tokio::spawn(serve(inbox, read, write));
        Ok((Self { orders }, started))
    }

    /// Orders a worker. When the zygote is gone the order comes back.
    ///
    /// # Errors
    /// The order, when the zygote is gone.
    pub fn order(&self, order: Order) -> Result<(), Order> {
        self.orders.send(order).map_err(|refused| refused.0)
    }
}

async fn serve(
    mut inbox: mpsc::UnboundedReceiver<Order>,
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
) {
    // Orders are sent without waiting for answers, which come in the same order.
    let mut waiting: VecDeque<oneshot::Sender<io::Result<u32>>> = VecDeque::new();
    let mut answer = [0; 4];
    let mut filled = 0;
    let failure = loop {
        tokio::select! {
            order = inbox.recv() => {
                let Some(order) = order else { break io::Error::other("the runtime is ending") };
                let bytes = encode(&order);
                let fds = [order.stdio[0].as_fd(), order.stdio[1].as_fd(), order.stdio[2].as_fd()];
                let sent = send_with_fds(write.as_ref(), &bytes, &fds).await;
                waiting.push_back(order.reply);
                let rest = match sent { Ok(n) => write.write_all(&bytes[n..]).await, Err(error) => Err(error) };
                if let Err(error) = rest { break error; }
            }
            read = read.read(&mut answer[filled..]) => {
                match read {
                    Ok(0) => break io::Error::other("the warm interpreter ended; is the package 'dragon' installed for it?"),
                    Ok(n) => filled += n,
                    Err(error) => break error,
                }
                if filled == answer.len() {
                    filled = 0;
                    let number = i32::from_le_bytes(answer);
                    let result = u32::try_from(number).map_err(|_| io::Error::from_raw_os_error(number.wrapping_neg()));
                    if let Some(reply) = waiting.pop_front() { let _ = reply.send(result); }
                }
            }
        }
    };
    inbox.close();
    let queued = std::iter::from_fn(|| inbox.try_recv().ok()).map(|order| order.reply);
    for reply in waiting.into_iter().chain(queued) {
        let _ = reply.send(Err(io::Error::new(failure.kind(), failure.to_string())));
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
    let body = length(out.len() - 4);
    out[..4].copy_from_slice(&body);
    out
}

/// A request was read from a frame of at most 64 MiB, so every length in it fits 32 bits.
fn length(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}
