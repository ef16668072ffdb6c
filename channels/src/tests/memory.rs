//! Memory by its number, used by processes that are killed.

use dragon_shmem::pool::tag::PoolTag;
use proptest::prelude::RngExt as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::fixture::{Node, Role, pause};
use crate::{Error, SharedMemory};

/// So few that processes meet.
const NUMBERS: u64 = 3;
const DEFAULT: PoolTag = PoolTag::DEFAULT;

pub(super) fn play(name: &str, role: &Role) -> bool {
    if name != "share-memory" {
        return false;
    }
    // Words: a number of its own. Creates, finds and gives back, for ever.
    let mut kept: Vec<SharedMemory> = Vec::new();
    for n in role.number(0).. {
        let number = n % NUMBERS;
        let found = if n % 2 == 0 {
            SharedMemory::create(&role.member, DEFAULT, number, &contents(number))
        } else {
            SharedMemory::find(&role.member, DEFAULT, number)
        };
        match found {
            Ok(memory) => {
                is_whole(&memory, number);
                kept.push(memory);
            }
            Err(Error::Memory(
                dragon_shmem::Error::AlreadyExists { .. }
                | dragon_shmem::Error::NoSuchMemory { .. },
            )) => {}
            Err(error) => panic!("{error}"),
        }
        if kept.len() > 2 {
            kept.clear();
        }
    }
    true
}

fn contents(number: u64) -> Vec<u8> {
    // One of them is an extent.
    let length = [100, 3_000, 100_000][usize::try_from(number).unwrap()];
    vec![number.to_le_bytes()[0] ^ 0xa5; length]
}

fn is_whole(memory: &SharedMemory, number: u64) {
    let expected = contents(number);
    let mut bytes = vec![0; expected.len()];
    assert_eq!(memory.len(), expected.len() as u64);
    memory.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, expected, "memory {number}");
}

#[test]
fn processes_killed_with_memory_that_others_find() {
    let node = Node::new();
    let before = node.used();
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut next = 0;
    let mut spawn = || {
        next += 1;
        node.spawn("share-memory", &[next.to_string()])
    };
    let mut processes = vec![spawn(), spawn(), spawn()];
    for _ in 0..40 {
        // Moments of chance, long enough for a process to have started.
        pause(random.random_range(5_000_000..25_000_000));
        let which = random.random_range(0..processes.len());
        processes.swap_remove(which).kill(&node);
        processes.push(spawn());
    }
    for process in processes {
        process.kill(&node);
    }
    assert_eq!(node.used(), before, "bytes are left");
    let member = node.member();
    for number in 0..NUMBERS {
        let none = SharedMemory::find(&member, DEFAULT, number).unwrap_err();
        let memory = SharedMemory::create(&member, DEFAULT, number, &contents(number));
        assert!(
            matches!(
                none,
                Error::Memory(dragon_shmem::Error::NoSuchMemory { .. })
            ),
            "{none}"
        );
        is_whole(&memory.unwrap(), number);
    }
    assert_eq!(node.used(), before);
}
