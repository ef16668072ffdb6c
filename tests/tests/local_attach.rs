//! Connections to the daemon: what is said there that is no word of the protocol is refused, and the end of one is not the end
//! of a process.
//!
//! The test runs itself again as the programs inside the runtime (`child`).

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dragon::{Channel, ChannelOptions, Code, Deadline, Descriptor, Lock, Session};
use dragon_protocol::attach::{HELLO_MAGIC, ROLE_CLIENT, ROLE_INSPECT};
use dragon_protocol::control::{ClientReply, NO_REQUEST, Numbered};
use dragon_protocol::{PROTOCOL_VERSION, frame};
use dragon_tests::child;
use dragon_tests::local::{finish, pause};

const ROLE: &str = "DRAGON_TEST_ATTACH";
const WHAT: &str = "DRAGON_TEST_WHAT";

/// Runs this test as the head of a runtime; returns what came on standard error.
fn head(role: &str) -> String {
    let done = finish(child::head(&[]).env(ROLE, role).spawn().unwrap());
    assert_eq!(done.code, Some(0), "{done:?}");
    done.err
}

#[test]
fn a_process_that_closes_its_descriptors_keeps_what_it_holds() {
    let err = head("closes");
    assert!(
        err.contains("runs on without its connection to the runtime"),
        "{err}"
    );
}

#[test]
fn a_process_that_becomes_another_program_is_recovered() {
    let err = head("becomes");
    assert!(!err.contains("runs on without"), "{err}");
}

#[test]
fn what_is_no_word_of_the_protocol_is_refused_and_the_daemon_lives_on() {
    head("says nonsense");
}

/// A program in the runtime; nothing when the test runs in the ordinary way.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    match role.as_str() {
        "closes" => closes(),
        "closed" => closed(),
        "becomes" => becomes(),
        "other program" => other_program(),
        "says nonsense" => says_nonsense(),
        "asks nonsense" => asks_nonsense(),
        other => panic!("{other}"),
    }
}

/// Another process of the node with a role; returns when it has the lock.
fn start(role: &str, what: &[Descriptor]) -> Child {
    let words: Vec<String> = what.iter().map(ToString::to_string).collect();
    let mut child = child::command()
        .env(ROLE, role)
        .env(WHAT, words.join(" "))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.as_mut().unwrap());
    assert!(out.lines().any(|line| line.unwrap() == "holds"));
    child
}

fn what() -> Vec<Descriptor> {
    let words = std::env::var(WHAT).unwrap();
    words.split(' ').map(|word| word.parse().unwrap()).collect()
}

/// Connections to the daemon.
fn connections() -> usize {
    let name = format!("@{}", std::env::var("DRAGON_RUNTIME").unwrap());
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    sockets.lines().filter(|line| line.ends_with(&name)).count()
}

fn until(what: &str, happened: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if happened() {
            return;
        }
        pause(Duration::from_millis(1));
    }
    panic!("not within its time: {what}");
}

fn signal(name: &str, to: &Child) {
    let done = Command::new("kill")
        .args([name, &to.id().to_string()])
        .status()
        .unwrap();
    assert!(done.success());
}

fn closes() {
    let member = Session::attach().unwrap();
    let lock = Lock::create(0).unwrap();
    let (to, from) = (
        Channel::create(&ChannelOptions::default()).unwrap(),
        Channel::create(&ChannelOptions::default()).unwrap(),
    );
    let what = [lock.descriptor(), to.descriptor(), from.descriptor()];
    let others = connections();
    let mut holder = start("closed", &what);
    // A wait of the kernel that is under way keeps the closed socket open; being stopped ends it.
    signal("-STOP", &holder);
    until("it is stopped", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", holder.id())).unwrap();
        stat.contains(") T ")
    });
    signal("-CONT", &holder);
    until("the daemon notices", || connections() == others);
    // A turn of the daemon's loop: what it had to do with the end of the connection is done.
    member.stats().unwrap();
    assert_eq!(
        lock.acquire(Deadline::Now).unwrap_err().code(),
        dragon::Code::Empty
    );
    for n in 0..3 {
        to.send(&[n], 0, Deadline::Never).unwrap();
        let answer = from.receive(Deadline::Never).unwrap().to_vec();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.contains("has closed descriptor"), "{answer}");
    }
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(lock.acquire(Deadline::Never).unwrap().owner_died);
}

fn closed() {
    let what = what();
    let session = Session::attach().unwrap();
    let lock = Lock::attach(what[0], false).unwrap();
    let from = Channel::attach(what[1], false).unwrap();
    let to = Channel::attach(what[2], false).unwrap();
    lock.acquire(Deadline::Never).unwrap();
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        if fs::read_link(format!("/proc/self/fd/{fd}")).is_ok() {
            // SAFETY: what was opened under the number gets errors from now on; that is what is tested.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    println!("\nholds");
    while from.receive(Deadline::Never).is_ok() {
        let error = session.nodes().unwrap_err().to_string();
        to.send(error.as_bytes(), 0, Deadline::Never).unwrap();
    }
}

fn becomes() {
    let lock = Lock::create(0).unwrap();
    let mut holder = start("other program", &[lock.descriptor()]);
    assert!(lock.acquire(Deadline::Never).unwrap().owner_died);
    assert_eq!(holder.try_wait().unwrap(), None, "it lives on");
    holder.kill().unwrap();
    holder.wait().unwrap();
}

fn other_program() {
    let lock = Lock::attach(what()[0], false).unwrap();
    lock.acquire(Deadline::Never).unwrap();
    println!("\nholds");
    let error: std::io::Error = Command::new("sleep").arg("1000").exec();
    panic!("{error}");
}

/// What a client says first.
fn hello(protocol: u16, role: u16) -> Vec<u8> {
    let numbers = [protocol.to_le_bytes(), role.to_le_bytes()].concat();
    [&HELLO_MAGIC[..], &numbers, &[0; 12]].concat()
}

/// Says something to the daemon; returns the connection.
fn say(bytes: &[u8]) -> UnixStream {
    let name = std::env::var("DRAGON_RUNTIME").unwrap();
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let mut stream = UnixStream::connect_addr(&address).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// Status and body of the daemon's first reply.
fn reply(stream: &mut UnixStream) -> (Code, Vec<u8>) {
    let mut head = [0; 24];
    stream.read_exact(&mut head).unwrap();
    let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
    let mut body = vec![0; number(20) as usize];
    stream.read_exact(&mut body).unwrap();
    (Code::from_i32(number(16).cast_signed()), body)
}

fn assert_ended(mut stream: UnixStream) {
    // What it left unread makes the end an error.
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
}

fn says_nonsense() {
    let member = Session::attach().unwrap();
    let right = hello(PROTOCOL_VERSION, ROLE_CLIENT);
    let mut wrong = right.clone();
    wrong[7] = b'9';
    let other_version = hello(PROTOCOL_VERSION + 1, ROLE_CLIENT);
    let cases: [(&[u8], Code, &str); 6] = [
        (
            b"GET / HTTP/1.1\r\n\r\n",
            Code::InvalidArgument,
            "\"GET / HT\"",
        ),
        (b"?", Code::InvalidArgument, "\"?\""),
        (&wrong, Code::InvalidArgument, "\"DRGNATT9\""),
        (&right[..10], Code::InvalidArgument, "10 bytes came"),
        (&other_version, Code::VersionMismatch, "release"),
        (
            &hello(PROTOCOL_VERSION, 77),
            Code::Unsupported,
            "unknown role 77",
        ),
    ];
    for (bytes, code, words) in cases {
        let mut stream = say(bytes);
        if bytes == &right[..10] {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        let (found, text) = reply(&mut stream);
        let text = String::from_utf8(text).unwrap();
        assert!(found == code && text.contains(words), "{found:?}: {text}");
        assert_ended(stream);
        member.nodes().unwrap();
    }
    // One that has a slot is recovered at its end.
    let mut child = start("asks nonsense", &[]);
    assert!(child.wait().unwrap().success());
    // Who goes without a word, or in the middle of one, is nobody's business.
    drop(say(b""));
    drop(say(&right[..3]));
    member.nodes().unwrap();
}

/// A process that attaches, and then asks for what nobody can read.
fn asks_nonsense() {
    let requests = [
        (u32::MAX.to_le_bytes().to_vec(), "exceeds the limit"),
        (
            [&4_u32.to_le_bytes()[..], &[0xff; 4]].concat(),
            "cannot be decoded",
        ),
    ];
    for role in [ROLE_CLIENT, ROLE_INSPECT] {
        for (request, words) in &requests {
            let mut stream = say(&hello(PROTOCOL_VERSION, role));
            assert_eq!(reply(&mut stream).0, Code::Ok);
            stream.write_all(request).unwrap();
            let mut length = [0; 4];
            stream.read_exact(&mut length).unwrap();
            let mut body = vec![0; frame::body_length(length).unwrap()];
            stream.read_exact(&mut body).unwrap();
            let said: Numbered<ClientReply> = frame::decode(&body).unwrap();
            let (NO_REQUEST, ClientReply::Failed(code, text)) = said else {
                panic!("it was answered");
            };
            assert!(
                code == Code::InvalidArgument && text.contains(words),
                "{code:?}: {text}"
            );
            assert_ended(stream);
        }
    }
    println!("\nholds");
}
