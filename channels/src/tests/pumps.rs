//! Streams as file descriptors.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use super::streams::{endpoint, is_whole, pair};
use crate::fixture::Node;
use crate::{Deadline, Endpoint, Error, recover};

#[test]
fn children_read_and_write_streams_as_files() {
    let node = Node::new();
    let before = node.used();
    let endpoint = endpoint(&node, 3, 1);
    // What is written to the first stream goes through `sort` into the second one.
    let (mut lines, to_sort) = pair(&endpoint);
    let (sorted, mut result) = pair(&endpoint);
    let (input, feeding) = to_sort.into_fd().unwrap();
    let (output, draining) = sorted.into_fd().unwrap();
    let mut sort = Command::new("sort")
        .env("LC_ALL", "C")
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .spawn()
        .unwrap();
    let mut expected = Vec::new();
    for n in (0..20_000_u64).rev() {
        let line = format!("{:06}\n", n.wrapping_mul(7_919) % 20_000);
        lines.send(line.as_bytes(), n, Deadline::Never).unwrap();
        expected.push(line);
    }
    lines.close(Deadline::Never).unwrap();
    let mut got = Vec::new();
    let end = loop {
        match result.receive(Deadline::Never) {
            Ok(chunk) => got.extend(chunk.into_vec()),
            Err(end) => break end,
        }
    };
    assert_eq!(end, Error::EndOfStream(endpoint.id()));
    expected.sort();
    assert_eq!(got, expected.concat().into_bytes());
    assert!(sort.wait().unwrap().success());
    assert_eq!(feeding.join(), Ok(140_000));
    assert_eq!(draining.join(), Ok(140_000));
    drop((lines, result));
    is_whole(&node, endpoint, before);
}

#[test]
fn a_pump_tells_how_it_ended() {
    let node = Node::new();
    let endpoint = endpoint(&node, 3, 1);
    // The reader goes away: the pump ends, and the sender is told.
    let (mut sender, receiver) = pair(&endpoint);
    let (fd, pump) = receiver.into_fd().unwrap();
    let mut head = Command::new("head")
        .args(["-c", "5"])
        .stdin(Stdio::from(fd))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let refused = loop {
        if let Err(error) = sender.send(b"hello\n", 0, Deadline::Never) {
            break error;
        }
    };
    assert_eq!(refused, Error::PeerClosed(endpoint.id()));
    let mut said = String::new();
    head.stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    head.wait().unwrap();
    assert_eq!(said, "hello");
    let error = pump.join().unwrap_err();
    assert!(error.to_string().contains("send"), "{error}");
    // The sender breaks off: the reader sees an end, the pump knows better.
    let (mut sender, receiver) = pair(&endpoint);
    let (fd, pump) = receiver.into_fd().unwrap();
    sender.send(b"a part", 0, Deadline::Never).unwrap();
    sender.abort().unwrap();
    let mut got = String::new();
    std::fs::File::from(fd).read_to_string(&mut got).unwrap();
    assert_eq!(got, "a part");
    assert_eq!(pump.join(), Err(Error::PeerDied(endpoint.id())));
    // The receiver goes away: the pump of the sender ends, and so does who writes.
    let (sender, receiver) = pair(&endpoint);
    let (fd, pump) = sender.into_fd().unwrap();
    drop(receiver);
    let mut file = std::fs::File::from(fd);
    while file.write_all(&[0; 4_096]).is_ok() {}
    assert_eq!(pump.join(), Err(Error::PeerClosed(endpoint.id())));
}

/// The descriptor has nothing to say: how the conversation ended is noticed all the same.
#[test]
fn a_silent_descriptor_hides_no_end() {
    let node = Node::new();
    let before = node.used();
    for kept in [0, 3] {
        let endpoint = endpoint(&node, 3, kept);
        // The receiver closes.
        let (sender, receiver) = pair(&endpoint);
        let (fd, pump) = sender.into_fd().unwrap();
        receiver.close().unwrap();
        assert_eq!(pump.join(), Err(Error::PeerClosed(endpoint.id())));
        // A process that another test forked meanwhile may hold the pump's end for a moment.
        let mut file = std::fs::File::from(fd);
        let refused = loop {
            match file.write_all(b"late") {
                Ok(()) => std::thread::yield_now(),
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused.kind(), std::io::ErrorKind::BrokenPipe);
        // It has received something before, and what waits behind that is lost with it.
        let (sender, mut receiver) = pair(&endpoint);
        let (fd, pump) = sender.into_fd().unwrap();
        let mut file = std::fs::File::from(fd);
        file.write_all(b"one").unwrap();
        assert_eq!(
            receiver.receive(Deadline::Never).unwrap().into_vec(),
            b"one"
        );
        file.write_all(&[2; 1_000]).unwrap();
        assert!(receiver.poll(Deadline::Never).unwrap());
        drop(receiver);
        assert_eq!(pump.join(), Err(Error::PeerClosed(endpoint.id())));
        // Its process dies.
        let dying = node.member();
        let theirs = Endpoint::attach(&dying, &endpoint.descriptor(), false).unwrap();
        let sender = endpoint.open_send(Deadline::Now).unwrap();
        let receiver = theirs.accept(Deadline::Now).unwrap();
        let _ = std::mem::ManuallyDrop::new((theirs, receiver));
        let (_fd, pump) = sender.into_fd().unwrap();
        recover(&node.daemon, dying.slot()).unwrap();
        assert_eq!(pump.join(), Err(Error::PeerDied(endpoint.id())));
        // Nobody has accepted it, and the endpoint goes.
        is_whole(&node, endpoint, before);
        let endpoint = self::endpoint(&node, 3, kept);
        let sender = endpoint.open_send(Deadline::Now).unwrap();
        let (_fd, pump) = sender.into_fd().unwrap();
        endpoint.destroy().unwrap();
        assert_eq!(pump.join(), Err(Error::Destroyed(endpoint.id())));
        drop(endpoint);
        assert_eq!(node.used(), before);
    }
}

/// A pump that ends in good order leaves nobody behind who waits for its receiver.
#[test]
fn a_pump_that_ends_leaves_no_lookout() {
    let node = Node::new();
    let before = node.used();
    let endpoint = endpoint(&node, 3, 0);
    for _ in 0..50 {
        let (sender, mut receiver) = pair(&endpoint);
        let (fd, pump) = sender.into_fd().unwrap();
        drop(fd);
        let end = receiver.receive(Deadline::Never).unwrap_err();
        assert_eq!(end, Error::EndOfStream(endpoint.id()));
        assert_eq!(pump.join(), Ok(0));
    }
    is_whole(&node, endpoint, before);
}

#[test]
fn a_process_killed_with_a_silent_pump() {
    let node = Node::new();
    let before = node.used();
    let endpoint = endpoint(&node, 3, 1);
    let child = node.spawn("stream-silent", &[endpoint.export().unwrap().to_string()]);
    let mut receiver = endpoint.accept(Deadline::Never).unwrap();
    child.kill(&node);
    let end = receiver.receive(Deadline::Never).unwrap_err();
    assert_eq!(end, Error::PeerDied(endpoint.id()));
    drop(receiver);
    is_whole(&node, endpoint, before);
}
