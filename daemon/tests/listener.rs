//! A listener while the process has no descriptor left. The limit is the process's, so one test does it all.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::future::{Future, poll_fn};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use dragon_daemon::listener::Listener;
use dragon_transport::descriptors;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A test that hangs is ended by this; nothing is ever expected to take this long.
const WATCHDOG: Duration = Duration::from_secs(60);

#[test]
fn without_a_descriptor_a_listener_sleeps_until_one_is_free() {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(async {
        for make in [Listener::patient, Listener::turning_away] {
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = socket.local_addr().unwrap().port();
            let mut listener = make(socket.into(), "test").unwrap();
            let _first = connect(port);
            sleeps(&mut listener).await;
            descriptors::freed();
            accepts(&mut listener).await;
            // Nobody says that one is free; the next connection shows it.
            let _second = connect(port);
            sleeps(&mut listener).await;
            let _third = connect(port);
            accepts(&mut listener).await;
            accepts(&mut listener).await;
            // And it is as it was.
            let _fourth = connect(port);
            accepts(&mut listener).await;
        }
    });
}

fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).unwrap()
}

/// A connection waits that cannot be accepted, and the listener waits too: it is looked at a few times, not as often as the
/// time allows.
async fn sleeps(listener: &mut Listener) {
    let limit = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..limit
    };
    setrlimit(Resource::Nofile, none).unwrap();
    let mut looks = 0;
    let mut accept = pin!(listener.accept());
    let counted = poll_fn(|context| {
        looks += 1;
        match accept.as_mut().poll(context) {
            Poll::Ready(accepted) => panic!("{accepted:?} without a descriptor"),
            Poll::Pending => Poll::<()>::Pending,
        }
    });
    let waited = tokio::time::timeout(Duration::from_millis(200), counted).await;
    assert!(waited.is_err());
    assert!(looks < 10, "{looks} looks with nothing to be done");
    setrlimit(Resource::Nofile, limit).unwrap();
}

async fn accepts(listener: &mut Listener) -> OwnedFd {
    let accepted = tokio::time::timeout(WATCHDOG, listener.accept()).await;
    accepted.expect("a connection waits for ever").unwrap().0
}
