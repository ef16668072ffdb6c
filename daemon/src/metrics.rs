//! The node's numbers for a monitoring system: the text form of Prometheus, by HTTP on a TCP port or a unix socket.
//!
//! Off unless asked for. Whoever reaches the port can read: there are only numbers, names of pools and of the job. Bounded
//! for strangers: so many conversations at once, each with a deadline and a largest request; and a survey is made at most
//! once in `FRESH`, however often somebody asks.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dragon_protocol::inspect::{NodeStatus, PoolRow};
use dragon_transport::descriptors::Frees;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};

use crate::adapter::Job;
use crate::listener::Listener;
use crate::services::Event;
use crate::survey::View;

/// Conversations at once.
const MOST: usize = 8;
/// For how long one may last.
const LIMIT: Duration = Duration::from_secs(5);
/// The longest head of a request.
const LONGEST: usize = 8 << 10;
/// A survey is used again for so long.
const FRESH: Duration = Duration::from_secs(1);

/// Where numbers are told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Checks the text of the setting.
///
/// # Errors
/// A sentence that says what is wanted.
pub fn check(text: &str) -> Result<(), String> {
    parse(text).map(drop)
}

fn parse(text: &str) -> Result<Place, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = PathBuf::from(path);
        return match path.is_absolute() {
            true => Ok(Place::Unix(path)),
            false => Err(format!("'{text}': the path of a unix socket begins with /")),
        };
    }
    // A port alone is one of this machine.
    let address = text.strip_prefix(':').unwrap_or(text);
    let address = match address.parse::<u16>() {
        Ok(port) => Ok(SocketAddr::from(([127, 0, 0, 1], port))),
        Err(_) => text.parse(),
    };
    address.map(Place::Tcp).map_err(|_| {
        format!("'{text}' is neither ADDRESS:PORT (0.0.0.0:9100), nor PORT (of this machine alone), nor unix:/PATH")
    })
}

/// A place where numbers are told, as long as this value lives.
#[derive(Debug)]
pub struct Metrics {
    /// Where: as the setting has it, with the port that was obtained.
    pub place: String,
    file: Option<PathBuf>,
}

impl Drop for Metrics {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Listens where the setting says. Nodes of one machine have one place each: their number is added to the port, or to the
/// path behind a dot.
///
/// # Errors
/// When the place is taken, or makes no sense.
pub fn listen(text: &str, job: &Job, events: &mpsc::Sender<Event>) -> Result<Option<Metrics>> {
    if text.is_empty() {
        return Ok(None);
    }
    let number = if job.all_here() { job.node.get() } else { 0 };
    let place = parse(text).map_err(anyhow::Error::msg)?;
    let failed = |shown: &dyn std::fmt::Display| format!("metrics: cannot listen on {shown}");
    let source = Arc::new(Source {
        events: events.clone(),
        latest: Mutex::new(None),
        turns: Semaphore::new(MOST),
    });
    match place {
        Place::Tcp(mut address) => {
            if address.port() != 0 {
                let port = u32::from(address.port()) + number;
                let port = u16::try_from(port).with_context(|| failed(&port))?;
                address.set_port(port);
            }
            let listener =
                std::net::TcpListener::bind(address).with_context(|| failed(&address))?;
            let place = listener.local_addr()?.to_string();
            let listener = Listener::patient(listener.into(), "metrics")?;
            tokio::spawn(source.serve(listener, |stream| TcpStream::from_std(stream.into())));
            Ok(Some(Metrics { place, file: None }))
        }
        Place::Unix(mut path) => {
            if number > 0 {
                path.as_mut_os_string().push(format!(".{number}"));
            }
            let listener = bind(&path).with_context(|| failed(&path.display()))?;
            let listener = Listener::patient(listener.into(), "metrics")?;
            tokio::spawn(source.serve(listener, |stream| UnixStream::from_std(stream.into())));
            Ok(Some(Metrics {
                place: format!("unix:{}", path.display()),
                file: Some(path),
            }))
        }
    }
}

/// A socket that only this user can connect to. One that a killed daemon left there is replaced.
fn bind(path: &Path) -> Result<UnixListener> {
    let left = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if left {
        if StdStream::connect(path).is_ok() {
            bail!("somebody listens there already");
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// What the conversations share.
struct Source {
    events: mpsc::Sender<Event>,
    /// The latest text, and when it was made. Who waits for the lock waits for a survey that he can use.
    latest: Mutex<Option<(Instant, Arc<str>)>>,
    turns: Semaphore,
}

impl Source {
    /// Answers whoever connects.
    async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self: Arc<Self>,
        mut listener: Listener,
        stream_of: fn(OwnedFd) -> io::Result<S>,
    ) {
        loop {
            let accepted = listener.accept().await;
            match accepted.and_then(|(socket, _)| stream_of(socket)) {
                Ok(stream) => self.clone().converse(stream),
                Err(error) => tracing::warn!("metrics: a connection was not accepted: {error}"),
            }
        }
    }

    /// Answers one request. When too many are under way, or at the deadline, the connection is closed.
    fn converse(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        tokio::spawn(async move {
            let _frees = Frees;
            let mut stream = stream;
            let Ok(_turn) = self.turns.try_acquire() else {
                return;
            };
            let exchange = async {
                let answer = match read_head(&mut stream).await? {
                    Request::Numbers => match self.text().await {
                        Some(text) => response("200 OK", &text),
                        None => response("503 Service Unavailable", "the runtime is ending\n"),
                    },
                    Request::Other => response("404 Not Found", "the numbers are at /metrics\n"),
                    Request::Nonsense => {
                        response("400 Bad Request", "GET /metrics HTTP/1.1 is wanted\n")
                    }
                };
                stream.write_all(answer.as_bytes()).await?;
                stream.shutdown().await
            };
            if !matches!(tokio::time::timeout(LIMIT, exchange).await, Ok(Ok(()))) {
                tracing::debug!("metrics: a connection was not answered");
            }
        });
    }

    async fn text(&self) -> Option<Arc<str>> {
        let mut latest = self.latest.lock().await;
        if let Some((at, text)) = latest.as_ref()
            && at.elapsed() < FRESH
        {
            return Some(text.clone());
        }
        let (reply, view) = oneshot::channel();
        self.events.send(Event::View(reply)).await.ok()?;
        let view: View = view.await.ok()?;
        let made = tokio::task::spawn_blocking(move || text_of(&view.status(), &view.pools().rows));
        let text: Arc<str> = made.await.ok()?.into();
        *latest = Some((Instant::now(), text.clone()));
        Some(text)
    }
}

enum Request {
    Numbers,
    Other,
    Nonsense,
}

/// Reads the head of a request.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Request> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() >= LONGEST || stream.read_buf(&mut head).await? == 0 {
            return Ok(Request::Nonsense);
        }
    }
    let text = String::from_utf8_lossy(&head);
    let mut words = text.lines().next().unwrap_or_default().split(' ');
    let (method, path, version) = (words.next(), words.next(), words.next());
    let path = path.map(|path| path.split('?').next().unwrap_or_default());
    Ok(match (method, path, version) {
        (Some("GET"), Some("/metrics" | "/"), Some(v)) if v.starts_with("HTTP/1.") => {
            Request::Numbers
        }
        (Some("GET"), Some(_), Some(v)) if v.starts_with("HTTP/1.") => Request::Other,
        _ => Request::Nonsense,
    })
}

fn response(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The text of a node.
fn text_of(status: &NodeStatus, pools: &[PoolRow]) -> String {
    let mut page = Page {
        text: String::new(),
        node: status.node.to_string(),
    };
    page.gauge(
        "nodes_up",
        "Nodes of the runtime that are up.",
        status.nodes_up.into(),
    );
    page.gauge(
        "nodes_down",
        "Nodes of the runtime that are lost.",
        status.nodes_down.len() as u64,
    );
    page.gauge(
        "membership_epoch",
        "The epoch in which who is up was agreed on.",
        status.epoch,
    );
    page.gauge("uptime_seconds", "Since the daemon began.", status.uptime_s);
    page.gauge("cpus", "CPUs granted on the node.", status.cpus.into());
    page.gauge(
        "memory_bytes",
        "Memory granted on the node.",
        status.memory_bytes,
    );
    page.gauge(
        "daemon_resident_bytes",
        "Memory of the daemon itself.",
        status.daemon_rss_bytes,
    );
    let processes = [
        ("managed", status.processes),
        ("attached", status.attached),
        ("remote", status.proxies),
    ];
    let processes = processes.map(|(role, n)| (vec![("role", role.to_owned())], u64::from(n)));
    page.family("processes", "gauge", "Processes that the runtime started, that are attached, and of other nodes that hold something here.", &processes);
    let objects = status.objects.iter();
    let objects: Vec<_> = objects
        .map(|(kind, n)| (vec![("kind", kind.clone())], u64::from(*n)))
        .collect();
    page.family("objects", "gauge", "Objects of the node.", &objects);
    let pools_of = |value: OfPool| -> Vec<Sample> {
        let labels =
            |pool: &PoolRow| vec![("pool", pool.pool.to_string()), ("name", pool.name.clone())];
        pools
            .iter()
            .map(|pool| (labels(pool), value(pool)))
            .collect()
    };
    let families: [(&str, &str, OfPool); 5] = [
        ("pool_limit_bytes", "Limit of a pool.", |pool| {
            pool.limit_bytes
        }),
        (
            "pool_committed_bytes",
            "Memory that a pool has taken from the system.",
            |pool| pool.committed_bytes,
        ),
        (
            "pool_used_bytes",
            "Bytes in allocated blocks of a pool.",
            |pool| pool.used_bytes,
        ),
        (
            "pool_peak_bytes",
            "Never less than the most that was used of a pool at once.",
            |pool| pool.peak_bytes,
        ),
        ("pool_blocks", "Allocated blocks of a pool.", |pool| {
            pool.blocks
        }),
    ];
    for (name, help, value) in families {
        page.family(name, "gauge", help, &pools_of(value));
    }
    page.counter(
        "messages_sent_total",
        "Messages of the node's processes to its channels.",
        status.local_sent,
    );
    page.counter(
        "messages_received_total",
        "Messages of the node's processes from its channels.",
        status.local_received,
    );
    page.counter(
        "remote_requests_total",
        "Requests of the node's processes to other nodes.",
        status.remote_requests,
    );
    page.counter(
        "recoveries_total",
        "Dead processes that were recovered.",
        status.recoveries,
    );
    page.counter(
        "control_requests_total",
        "Requests to the daemon.",
        status.control_requests,
    );
    let transport = &status.transport;
    page.counter(
        "transport_requests_sent_total",
        "Requests to other nodes that left.",
        transport.requests_sent,
    );
    page.counter(
        "transport_requests_received_total",
        "Requests of other nodes that came.",
        transport.requests_received,
    );
    page.counter(
        "transport_messages_sent_total",
        "Messages to other nodes that left.",
        transport.messages_sent,
    );
    page.counter(
        "transport_messages_received_total",
        "Messages of other nodes that came.",
        transport.messages_received,
    );
    page.counter(
        "transport_messages_lost_total",
        "Messages that were lost.",
        transport.messages_lost,
    );
    page.gauge(
        "transport_requests_pending",
        "Requests to other nodes under way.",
        transport.requests_pending,
    );
    page.gauge(
        "transport_requests_parked",
        "Requests of other nodes that wait here.",
        transport.requests_parked,
    );
    let peers_of = |value: fn(&dragon_protocol::inspect::PeerStatus) -> u64| -> Vec<Sample> {
        let peers = status.peers.iter();
        let labels = |peer: u32| vec![("peer", peer.to_string())];
        peers.map(|peer| (labels(peer.peer), value(peer))).collect()
    };
    page.family(
        "peer_sent_bytes_total",
        "counter",
        "Bytes to another node.",
        &peers_of(|peer| peer.bytes_sent),
    );
    page.family(
        "peer_received_bytes_total",
        "counter",
        "Bytes from another node.",
        &peers_of(|peer| peer.bytes_received),
    );
    page.family(
        "peer_reconnects_total",
        "counter",
        "Connections with another node that were made again.",
        &peers_of(|peer| peer.reconnects),
    );
    page.family(
        "peer_queued_bytes",
        "gauge",
        "Bytes that wait to be sent to another node.",
        &peers_of(|peer| peer.queued_bytes),
    );
    page.text
}

/// A number of a pool.
type OfPool = fn(&PoolRow) -> u64;

/// Labels beside the node, and the value.
type Sample = (Vec<(&'static str, String)>, u64);

struct Page {
    text: String,
    node: String,
}

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help, &[(Vec::new(), value)]);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help, &[(Vec::new(), value)]);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str, samples: &[Sample]) {
        if samples.is_empty() {
            return;
        }
        // Writing into a string never fails.
        let _ = writeln!(
            self.text,
            "# HELP dragon_{name} {help}\n# TYPE dragon_{name} {kind}"
        );
        for (labels, value) in samples {
            let _ = write!(self.text, "dragon_{name}{{node=\"{}\"", self.node);
            for (label, value) in labels {
                let _ = write!(self.text, ",{label}=\"{}\"", escaped(value));
            }
            let _ = writeln!(self.text, "}} {value}");
        }
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let tcp = |text: &str| Ok(Place::Tcp(text.parse().unwrap()));
        assert_eq!(parse("9100"), tcp("127.0.0.1:9100"));
        assert_eq!(parse(":9100"), tcp("127.0.0.1:9100"));
        assert_eq!(parse("0.0.0.0:1"), tcp("0.0.0.0:1"));
        assert_eq!(parse("[::1]:1"), tcp("[::1]:1"));
        assert_eq!(parse("unix:/run/x"), Ok(Place::Unix("/run/x".into())));
        for bad in ["", "unix:x", "localhost", "1.2.3.4", "70000"] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(&format!("'{bad}'")), "{error}");
        }
    }
}
