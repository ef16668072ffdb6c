//! Shared memory of another node: read and written from here, within its bounds, and kept by whoever refers to it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod rig;

use dragon_channels::pool::PIECE;
use dragon_channels::{Error, SharedMemory};
use dragon_protocol::Code;
use rig::{Node, on_each, pattern, until};

fn made(node: &Node, number: u64, contents: &[u8]) -> SharedMemory {
    SharedMemory::create(&node.client(), Default::default(), number, contents).unwrap()
}

fn seen_by(node: &Node, memory: &SharedMemory) -> SharedMemory {
    SharedMemory::attach(&node.client(), &memory.descriptor(), false).unwrap()
}

#[test]
fn what_one_node_writes_the_other_reads() {
    on_each(2, |nodes| {
        for size in [1, 256, 4096, 4097, 100_000, 2 * PIECE + 1] {
            let size = usize::try_from(size).unwrap();
            let memory = made(&nodes[1], size as u64, &pattern(size, 1));
            let there = seen_by(&nodes[0], &memory);
            assert_eq!(there.len(), memory.len());
            assert!(there.bytes().unwrap().is_none() && memory.bytes().unwrap().is_some());
            let mut bytes = vec![0; size];
            there.read(0, &mut bytes).unwrap();
            assert!(bytes == pattern(size, 1), "{size}");

            let middle = size / 3;
            let part = pattern(size - middle, 2);
            there.write(middle as u64, &part).unwrap();
            memory.read(0, &mut bytes).unwrap();
            assert!(bytes[..middle] == pattern(size, 1)[..middle], "{size}");
            assert!(bytes[middle..] == part, "{size}");
        }
    });
}

#[test]
fn nothing_beyond_its_end_is_read_or_written() {
    on_each(2, |nodes| {
        let memory = made(&nodes[1], 7, &[1; 100]);
        for seen in [&memory, &seen_by(&nodes[0], &memory)] {
            let mut bytes = [0; 11];
            for at in [90, 100, u64::MAX] {
                let refused = [seen.read(at, &mut bytes), seen.write(at, &bytes)];
                for error in refused.map(Result::unwrap_err) {
                    assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
                }
            }
            seen.read(89, &mut bytes).unwrap();
            assert_eq!(bytes, [1; 11]);
        }
    });
}

#[test]
fn a_process_of_another_node_keeps_it() {
    on_each(2, |nodes| {
        let before = nodes[1].blocks();
        let memory = made(&nodes[1], 7, b"kept");
        let there = seen_by(&nodes[0], &memory);
        drop(memory);
        let mut bytes = [0; 4];
        there.read(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"kept");
        drop(there);
        until("the memory is free", || nodes[1].blocks() == before);
    });
}

#[test]
fn what_was_destroyed_is_used_by_nobody() {
    on_each(2, |nodes| {
        let memory = made(&nodes[1], 7, b"gone");
        let there = seen_by(&nodes[0], &memory);
        memory.destroy().unwrap();
        let error = there.read(0, &mut [0; 4]).unwrap_err();
        assert_eq!(error.code(), Code::Destroyed, "{error}");
    });
}
