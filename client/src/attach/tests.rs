//! Refusals, by a server that says what a daemon would say, or should not.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use dragon_protocol::RELEASE;
use dragon_protocol::attach::release_text;

use super::*;

/// Listens under a name of its own and answers one client with `answer`.
struct Server {
    name: String,
    thread: JoinHandle<Vec<u8>>,
}

impl Server {
    fn answering(answer: Vec<u8>) -> Self {
        Self::listening(answer, |address| UnixListener::bind_addr(address).unwrap())
    }

    fn listening(answer: Vec<u8>, listen: impl FnOnce(&SocketAddr) -> UnixListener) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dragon-client-test/{}/{count}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let listener = listen(&address);
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut hello = Vec::new();
            let length = size_of::<AttachHello>() as u64;
            Read::by_ref(&mut stream)
                .take(length)
                .read_to_end(&mut hello)
                .unwrap();
            // A client that does not trust the server has hung up.
            if !hello.is_empty() {
                stream.write_all(&answer).unwrap();
            }
            hello
        });
        Self { name, thread }
    }

    /// The client's error, and its hello.
    fn refuses(self) -> (Error, AttachHello) {
        let error = attach(OsStr::new(&self.name)).unwrap_err();
        let hello = self.thread.join().unwrap();
        (error, AttachHello::read_from_bytes(&hello).unwrap())
    }
}

fn attach(name: &OsStr) -> Result<Admission> {
    admission(call(name)?.as_fd(), name)
}

fn reply(status: Code, body: &[u8]) -> AttachReply {
    AttachReply {
        magic: REPLY_MAGIC,
        protocol: PROTOCOL_VERSION.into(),
        descriptors: 0.into(),
        release: release_bytes(),
        status: status.to_i32().cast_unsigned().into(),
        body: u32::try_from(body.len()).unwrap().into(),
    }
}

fn bytes(reply: AttachReply, body: &[u8]) -> Vec<u8> {
    [reply.as_bytes(), body].concat()
}

#[test]
fn the_hello_is_the_frozen_one() {
    let (_, hello) = Server::answering(bytes(reply(Code::Refused, b"no"), b"no")).refuses();
    assert_eq!(hello.magic, *b"DRGNATT1");
    assert_eq!(hello.protocol.get(), PROTOCOL_VERSION);
    assert_eq!(hello.role.get(), ROLE_CLIENT);
    assert_eq!(release_text(hello.release), RELEASE);
}

#[test]
fn a_daemon_of_another_release_is_named_with_ours() {
    let text = b"whatever that release says";
    let mut answer = reply(Code::VersionMismatch, text);
    answer.protocol = (PROTOCOL_VERSION + 1).into();
    answer.release = [9, 8, 7, 0];
    let (error, _) = Server::answering(bytes(answer, text)).refuses();
    assert_eq!(error.code(), Code::VersionMismatch);
    let text = error.to_string();
    assert!(text.contains("9.8.7") && text.contains(RELEASE), "{text}");
}

#[test]
fn a_protocol_that_the_daemon_would_accept_is_refused_by_the_client_too() {
    let mut answer = reply(Code::Ok, b"");
    answer.protocol = (PROTOCOL_VERSION + 1).into();
    let (error, _) = Server::answering(bytes(answer, b"")).refuses();
    assert_eq!(error.code(), Code::VersionMismatch);
    // Two builds of one release: what differs is named.
    let text = error.to_string();
    let (ours, theirs) = (PROTOCOL_VERSION, PROTOCOL_VERSION + 1);
    assert!(
        text.contains(&format!("(protocol {ours})"))
            && text.contains(&format!("(protocol {theirs})")),
        "{text}"
    );
}

#[test]
fn a_refusal_keeps_code_and_sentence() {
    let text = "all 8192 slots of the node are in use".as_bytes();
    let (error, _) = Server::answering(bytes(reply(Code::TableFull, text), text)).refuses();
    assert_eq!(error.code(), Code::TableFull);
    assert_eq!(error.to_string().as_bytes(), text);
}

/// More than is read at once.
#[test]
fn a_long_refusal_comes_whole() {
    let text = "too long to be read at once; ".repeat(100);
    let text = text.as_bytes();
    let (error, _) = Server::answering(bytes(reply(Code::TableFull, text), text)).refuses();
    assert_eq!(error.to_string().as_bytes(), text);
}

#[test]
fn more_than_was_announced_is_refused() {
    let (error, _) = Server::answering(bytes(reply(Code::Refused, b"no"), b"no, never")).refuses();
    let text = error.to_string();
    assert!(
        text.contains("9 bytes") && text.contains("announces 2"),
        "{text}"
    );
}

#[test]
fn another_service_on_the_socket_is_not_taken_for_a_runtime() {
    let (error, _) = Server::answering(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()).refuses();
    assert_eq!(error.code(), Code::Refused);
    assert!(
        error.to_string().contains("not a dragon runtime"),
        "{error}"
    );
}

#[test]
fn a_server_that_hangs_up_is_gone() {
    for answer in [Vec::new(), bytes(reply(Code::Ok, b"abc"), b"a")] {
        let (error, _) = Server::answering(answer).refuses();
        assert_eq!(error.code(), Code::RuntimeGone, "{error}");
    }
}

#[test]
fn nonsense_is_refused() {
    let mut endless = reply(Code::Ok, b"");
    endless.body = u32::MAX.into();
    let mut descriptors = reply(Code::Ok, b"");
    descriptors.descriptors = 3.into();
    let empty = [0; 1];
    for answer in [
        bytes(endless, b""),
        bytes(descriptors, b""),
        bytes(reply(Code::Ok, &empty), &empty),
    ] {
        let (error, _) = Server::answering(answer).refuses();
        assert_eq!(error.code(), Code::Corrupt, "{error}");
    }
}

#[test]
fn regions_without_descriptors_are_refused() {
    use dragon_protocol::attach::{Region, RegionKind};
    use dragon_protocol::{NodeIndex, RuntimeId, SlotId};
    let attached = Attached {
        runtime: RuntimeId(1),
        node: NodeIndex::FIRST,
        slot: Some(SlotId {
            index: 1,
            generation: 1,
        }),
        regions: vec![Region {
            kind: RegionKind::Control,
            size: 4096,
        }],
    };
    let mut frame = Vec::new();
    frame::encode(&attached, &mut frame).unwrap();
    let body = &frame[4..];
    let (error, _) = Server::answering(bytes(reply(Code::Ok, body), body)).refuses();
    assert!(
        error
            .to_string()
            .contains("0 descriptors came, 0 were announced and 1 regions listed"),
        "{error}"
    );
}

#[test]
fn another_users_socket_is_not_spoken_to() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can listen as another user");
        return;
    }
    // The kernel remembers who called listen, and credentials are a thread's own below the C library.
    let listen = |address: &SocketAddr| {
        let address = address.clone();
        let listening = thread::spawn(move || {
            let (keep, nobody) = (u32::MAX, NOBODY);
            // SAFETY: plain numbers; the thread ends before anything else could depend on its user.
            let status = unsafe { libc::syscall(libc::SYS_setresuid, keep, nobody, keep) };
            assert_eq!(status, 0);
            UnixListener::bind_addr(&address).unwrap()
        });
        listening.join().unwrap()
    };
    let server = Server::listening(Vec::new(), listen);
    let name = server.name.clone();
    let error = attach(OsStr::new(&name)).unwrap_err();
    assert_eq!(error.code(), Code::Refused);
    assert!(error.to_string().contains("user 65534"), "{error}");
    let said = server.thread.join().unwrap();
    assert!(said.is_empty(), "{said:?}");
}

#[test]
fn nobody_listens() {
    let name = format!("dragon-client-test/{}/nobody", std::process::id());
    let error = attach(OsStr::new(&name)).unwrap_err();
    assert_eq!(error.code(), Code::RuntimeGone);
    assert!(error.to_string().contains(&name), "{error}");
}

#[test]
fn a_name_that_no_socket_can_have() {
    let error = attach(OsStr::new(&"x".repeat(108))).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let text = error.to_string();
    assert!(text.contains("108") && text.contains("107"), "{text}");
}
