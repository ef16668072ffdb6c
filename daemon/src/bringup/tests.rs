use std::time::Duration;

use dragon_protocol::NodeIndex;
use dragon_protocol::handshake::{ANSWER, Connector, HELLO, Role};
use dragon_protocol::key::JobKey;
use dragon_transport::strangers::HALF_OPEN;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::accept;
use crate::link;
use crate::listener::Listener;
use crate::services::Event;

/// A test that hangs is ended by this; nothing is ever expected to take this long.
const WATCHDOG: Duration = Duration::from_secs(60);

fn key() -> JobKey {
    JobKey::new([0x5a; 32])
}

fn node(n: u32) -> NodeIndex {
    NodeIndex::new(n).unwrap()
}

/// Runs a test beside the listener of node 0.
fn beside_listener<F: Future>(test: impl FnOnce(u16, mpsc::Receiver<Event>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let listener = Listener::turning_away(listener.into_std().unwrap().into(), "test").unwrap();
        let (events, accepted) = mpsc::channel(8);
        tokio::spawn(accept(key(), NodeIndex::FIRST, listener, events));
        let test = tokio::time::timeout(WATCHDOG, test(port, accepted));
        assert!(test.await.is_ok(), "the test hangs");
    });
}

async fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).await.unwrap()
}

/// Reads to the end; a reset counts as one.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    bytes
}

async fn from(accepted: &mut mpsc::Receiver<Event>) -> NodeIndex {
    match accepted.recv().await {
        Some(Event::Accepted(node, _)) => node,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flood_of_silent_connections_keeps_no_daemon_out() {
    beside_listener(|port, mut accepted| async move {
        let mut flood = Vec::new();
        // More than one source may have.
        for _ in 0..HALF_OPEN / 4 + 50 {
            flood.push(connect(port).await);
        }
        let stream = link::connect(&key(), node(3), NodeIndex::FIRST, "127.0.0.1", port).await;
        assert_eq!(from(&mut accepted).await, node(3));
        // The oldest went for it without waiting for their time to be over.
        for stream in flood.iter_mut().take(50) {
            assert_eq!(rest(stream).await, b"");
        }
        drop(stream);
    });
}

#[test]
fn noise_is_closed_and_others_are_not_disturbed() {
    beside_listener(|port, mut accepted| async move {
        let mut friend = link::connect(&key(), node(1), NodeIndex::FIRST, "127.0.0.1", port)
            .await
            .unwrap();
        let Some(Event::Accepted(_, mut stream)) = accepted.recv().await else {
            panic!("nobody")
        };
        for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 300], &[0xff; 100_000]] {
            let mut stranger = connect(port).await;
            let _ = stranger.write_all(noise).await;
            let _ = stranger.write_all(&[b'x'; HELLO]).await;
            assert_eq!(rest(&mut stranger).await, b"");
        }
        friend.write_all(b"still here").await.unwrap();
        let mut bytes = [0; 10];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"still here");
    });
}

#[test]
fn a_wrong_key_gets_no_further() {
    beside_listener(|port, mut accepted| async move {
        let wrong = JobKey::new([1; 32]);
        let connector =
            Connector::new(&wrong, Role::Control, node(1), NodeIndex::FIRST, 1, [9; 32]);
        let mut stream = connect(port).await;
        stream.write_all(&connector.hello()).await.unwrap();
        let mut answer = [0; ANSWER];
        stream.read_exact(&mut answer).await.unwrap();
        assert!(connector.answer(&answer, 1).is_err());
        let _ = stream.write_all(&[7; 32]).await;
        assert_eq!(rest(&mut stream).await, b"");
        assert!(accepted.try_recv().is_err());
    });
}

#[test]
fn another_release_is_told_so() {
    beside_listener(|port, _accepted| async move {
        let connector =
            Connector::new(&key(), Role::Control, node(1), NodeIndex::FIRST, 1, [9; 32]);
        let mut hello = connector.hello();
        hello[8] ^= 0x55;
        let mut stream = connect(port).await;
        stream.write_all(&hello).await.unwrap();
        let answer = rest(&mut stream).await;
        // The own release, and no proof.
        assert_eq!(answer.len(), HELLO);
        assert_eq!(answer[..8], hello[..8]);
        // A node in another role, or that means another node, learns the same.
        let other = link::connect(&key(), node(1), node(2), "127.0.0.1", port).await;
        let error = format!("{:#}", other.unwrap_err());
        assert!(error.contains("node 0 speaks to node 1"), "{error}");
    });
}
