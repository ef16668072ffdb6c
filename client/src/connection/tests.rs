use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use dragon_protocol::Code;
use dragon_protocol::control::Numbered;

use super::*;

fn pair() -> (Arc<Connection>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let connection = Connection::new(ours.into());
    assert!(connection.attached());
    (connection, theirs)
}

#[test]
fn what_the_end_means_depends_on_how_far_it_came() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let refused = Connection::new(ours.into());
    assert_eq!(refused.ended(), Ended::Refused);
    assert!(!refused.attached(), "the watcher has gone");
    assert_eq!(refused.ended(), Ended::Refused);
    let (connection, _theirs) = pair();
    assert_eq!(connection.ended(), Ended::Unexpectedly);
    connection.leave();
    assert_eq!(connection.ended(), Ended::Left);
}

fn read_request(peer: &mut UnixStream) -> Numbered<ClientRequest> {
    let mut head = [0; 4];
    peer.read_exact(&mut head).unwrap();
    let mut body = vec![0; frame::request_length(head).unwrap()];
    peer.read_exact(&mut body).unwrap();
    frame::decode(&body).unwrap()
}

fn answer(peer: &mut UnixStream, number: u64, answer: &ClientReply) {
    let mut bytes = Vec::new();
    frame::encode(&(number, answer), &mut bytes).unwrap();
    peer.write_all(&bytes).unwrap();
}

/// A request that tells its asker, and the answer that is for it.
fn trim(bytes: u64) -> (ClientRequest, ClientReply) {
    (
        ClientRequest::Commit { pool: 0, bytes },
        ClientReply::Trimmed(bytes),
    )
}

fn answer_to(request: &ClientRequest) -> ClientReply {
    let ClientRequest::Commit { bytes, .. } = request else {
        panic!("{request:?}");
    };
    ClientReply::Trimmed(*bytes)
}

#[test]
fn a_refused_request_keeps_the_daemons_sentence() {
    let (connection, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let (number, asked) = read_request(&mut peer);
        let refusal = ClientReply::Failed(Code::OutOfMemory, "pool 0: 1 GiB asked".to_owned());
        answer(&mut peer, number, &refusal);
        asked
    });
    let error = connection.request(&trim(1 << 30).0).unwrap_err();
    assert_eq!(error.code(), Code::OutOfMemory);
    assert_eq!(error.to_string(), "pool 0: 1 GiB asked");
    assert!(matches!(
        daemon.join().unwrap(),
        ClientRequest::Commit { pool: 0, .. }
    ));
}

#[test]
fn a_request_that_waits_keeps_no_other_from_its_answer() {
    let (connection, mut peer) = pair();
    thread::scope(|scope| {
        let first = scope.spawn(|| connection.request(&ClientRequest::Stats).unwrap());
        let (waits, _) = read_request(&mut peer);
        for bytes in 1..4 {
            let (request, expected) = trim(bytes);
            let connection = &connection;
            let second = scope.spawn(move || connection.request(&request).unwrap());
            let (number, asked) = read_request(&mut peer);
            answer(&mut peer, number, &answer_to(&asked));
            assert_eq!(second.join().unwrap(), expected);
            assert!(!first.is_finished());
        }
        answer(&mut peer, waits, &ClientReply::Done);
        assert_eq!(first.join().unwrap(), ClientReply::Done);
    });
}

#[test]
fn each_thread_gets_its_own_answer_in_whatever_order_they_come() {
    const THREADS: u64 = 6;
    const ROUNDS: u64 = 200;
    let (connection, mut peer) = pair();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let connection = &connection;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let (request, expected) = trim(thread << 32 | round);
                    assert_eq!(connection.request(&request).unwrap(), expected);
                }
            });
        }
        // A thread asks again when it has its answer: each that is not at its end has one request under way.
        let (mut open, mut asking) = (Vec::new(), THREADS);
        while asking > 0 {
            while (open.len() as u64) < asking {
                open.push(read_request(&mut peer));
            }
            for _ in 0..open.len().div_ceil(2) {
                let (number, asked) = open.swap_remove(open.len() / 2);
                let expected = answer_to(&asked);
                let ClientReply::Trimmed(bytes) = expected else {
                    panic!("{expected:?}");
                };
                asking -= u64::from(bytes & u64::from(u32::MAX) == ROUNDS - 1);
                answer(&mut peer, number, &expected);
            }
        }
    });
}

#[test]
fn a_number_that_nobody_asked_with_is_passed_over_and_none_at_all_is_the_end() {
    let (connection, mut peer) = pair();
    thread::scope(|scope| {
        let asks = scope.spawn(|| connection.request(&ClientRequest::Stats));
        let (number, _) = read_request(&mut peer);
        answer(&mut peer, number + 7, &ClientReply::Trimmed(7));
        answer(&mut peer, number, &ClientReply::Done);
        assert_eq!(asks.join().unwrap().unwrap(), ClientReply::Done);
        let asks = scope.spawn(|| connection.request(&ClientRequest::Stats));
        read_request(&mut peer);
        let why = ClientReply::Failed(Code::InvalidArgument, "nonsense".to_owned());
        answer(&mut peer, NO_REQUEST, &why);
        let error = asks.join().unwrap().unwrap_err();
        assert_eq!(error.code(), Code::RuntimeGone);
        assert!(error.to_string().contains("nonsense"), "{error}");
    });
}

/// Whether the other side says something within a moment.
fn comes(peer: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let moment = Timespec {
        tv_sec: 0,
        tv_nsec: 5_000_000,
    };
    poll(&mut [PollFd::new(peer, PollFlags::IN)], Some(&moment)).unwrap() > 0
}

extern "C" fn nothing(_: i32) {}

/// A start that waits is cancelled by a signal, whether its thread reads or another one does; another request is not.
#[test]
fn a_signal_cancels_a_start_that_waits() {
    // SAFETY: all zeros is an action without flags, so that waits are not taken up again.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
    // SAFETY: the handler does nothing, and nobody wants the old one.
    unsafe { libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut()) };
    let (connection, mut peer) = pair();
    thread::scope(|scope| {
        let mut ask = |cancels: bool| {
            let (connection, (told, hears)) = (&connection, std::sync::mpsc::channel());
            let asks = scope.spawn(move || {
                // SAFETY: a plain number.
                told.send(unsafe { libc::pthread_self() }).unwrap();
                match cancels {
                    true => connection.request_until_signal(&ClientRequest::Stats),
                    false => connection.request(&ClientRequest::Stats),
                }
            });
            let (number, _) = read_request(&mut peer);
            (number, hears.recv().unwrap(), asks)
        };
        let threads = [ask(false), ask(true), ask(true), ask(false)];
        let mut cancelled = Vec::new();
        while cancelled.len() < 2 {
            for (_, thread, _) in &threads {
                // A signal that comes before the thread sleeps is too early: hence again and again.
                // SAFETY: the thread waits for its answer, which is not sent yet.
                unsafe { libc::pthread_kill(*thread, libc::SIGUSR2) };
            }
            if comes(&peer) {
                let (number, request) = read_request(&mut peer);
                assert_eq!(number, NO_REQUEST);
                cancelled.push(request);
            }
        }
        let numbers = [threads[1].0, threads[2].0].map(ClientRequest::Cancel);
        assert!(numbers.iter().all(|number| cancelled.contains(number)));
        for (number, _, asks) in threads {
            answer(&mut peer, number, &ClientReply::Trimmed(number));
            assert_eq!(asks.join().unwrap().unwrap(), ClientReply::Trimmed(number));
        }
    });
}

#[test]
fn leaving_ends_the_wait_of_other_threads() {
    let (connection, mut peer) = pair();
    thread::scope(|scope| {
        let asks = [(); 2].map(|()| scope.spawn(|| connection.request(&ClientRequest::Stats)));
        read_request(&mut peer);
        read_request(&mut peer);
        assert!(connection.leave());
        connection.close_unused();
        for asks in asks {
            let error = asks.join().unwrap().unwrap_err();
            assert_eq!(error.code(), Code::RuntimeGone);
        }
    });
}

#[test]
fn after_the_end_of_the_daemon_every_request_fails_at_once() {
    let (connection, peer) = pair();
    drop(peer);
    for _ in 0..2 {
        let error = connection.request(&ClientRequest::Nodes).unwrap_err();
        assert_eq!(error.code(), Code::RuntimeGone);
    }
}

#[test]
fn a_descriptor_that_the_program_closed_is_never_used_again() {
    let (connection, _peer) = pair();
    let fd = connection.socket().unwrap().as_raw_fd();
    let (other, mut heard) = UnixStream::pair().unwrap();
    // SAFETY: plain numbers; the descriptor is the connection's, which must notice that it is another file's now.
    assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), fd) }, fd);
    drop(other);
    let error = connection.request(&ClientRequest::Nodes).unwrap_err();
    assert_eq!(error.code(), Code::RuntimeGone);
    assert!(error.to_string().contains("closed descriptor"), "{error}");
    assert!(!connection.leave());
    drop(connection);
    // Nothing was said, and the other file is still open.
    heard.set_nonblocking(true).unwrap();
    let silent = heard.read(&mut [0; 1]).unwrap_err();
    assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock);
    // SAFETY: the descriptor is this test's since `dup2`.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

#[test]
fn after_leaving_the_peer_sees_the_end() {
    let (connection, mut peer) = pair();
    assert!(connection.leave());
    assert_eq!(read_request(&mut peer), (NO_REQUEST, ClientRequest::Leave));
    assert_eq!(peer.read(&mut [0; 1]).unwrap(), 0);
    let error = connection.request(&ClientRequest::Nodes).unwrap_err();
    assert_eq!(error.code(), Code::RuntimeGone);
    connection.close();
    connection.close();
    assert!(connection.socket().is_none());
}
