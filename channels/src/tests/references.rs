//! Processes that take, give and count references are killed at random moments: in the end every count is what the living
//! have, and the pool is as empty as before.

use proptest::prelude::RngExt as _;
use proptest::test_runner::TestRng;

use crate::fixture::{Node, Role};
use crate::{Channel, ChannelOptions, Deadline, Event, create_channel};

const KILLS: u32 = 120;
const LARGE: usize = 1_000;

/// Words: event, channel. Makes handles and drops them for ever.
pub(super) fn play(role: &Role) {
    let member = &role.member;
    let (event, channel) = (role.descriptor(0), role.descriptor(1));
    loop {
        let shared = Channel::attach(member, &channel, false).unwrap();
        let again = Event::attach(member, &event, false).unwrap();
        // A descriptor that is taken back at once, as by who sends one to itself.
        let exported = again.export().unwrap();
        drop(again);
        drop(Event::attach(member, &exported, true).unwrap());
        // An object that goes with messages in it.
        let options = ChannelOptions {
            capacity: 4,
            block: 64,
            user: 1,
            ..ChannelOptions::default()
        };
        let own = create_channel(member, &options).unwrap();
        own.send(&[1; LARGE], 1, Deadline::Now).unwrap();
        own.send(&[2; 100_000], 1, Deadline::Now).unwrap();
        let theirs = own.export().unwrap();
        drop(own);
        let own = Channel::attach(member, &theirs, true).unwrap();
        drop(own.receive(Deadline::Now).unwrap());
        drop(own);
        // Messages that others free, and that free others' blocks.
        let _ = shared.send(&[3; LARGE], 0, Deadline::Now);
        let _ = shared.receive(Deadline::Now);
    }
}

#[test]
fn references_are_exact_whoever_is_killed_when() {
    let node = Node::new();
    let member = node.member();
    let event = Event::create(&member, 0).unwrap();
    let channel = create_channel(&member, &ChannelOptions::default()).unwrap();
    let before = node.used();
    let words = [
        event.descriptor().to_string(),
        channel.descriptor().to_string(),
    ];
    let mut random = TestRng::from_seed(
        proptest::test_runner::RngAlgorithm::ChaCha,
        &dragon_shmem::clock::now().to_le_bytes().repeat(4),
    );
    let start = || node.spawn("references", &words);
    let mut children = [start(), start(), start()].map(Some);
    for _ in 0..KILLS {
        let word = dragon_shmem::sync::AtomicU32::new(0);
        let moment = Deadline::after(random.random_range(0..12_000_000));
        let _ = dragon_shmem::futex::wait(&word, 0, moment);
        let victim = random.random_range(0..children.len());
        children[victim].take().unwrap().kill(&node);
        children[victim] = Some(start());
    }
    for child in children.into_iter().flatten() {
        child.kill(&node);
    }
    // What was exported and lost with the process that had it in its hands stays until the object is destroyed.
    let entry = node.control.entry(event.id()).unwrap();
    assert_eq!(entry.references() - entry.in_transit(), 1);
    let entry = node.control.entry(channel.id()).unwrap();
    assert_eq!((entry.references(), entry.in_transit()), (1, 0));
    while channel.receive(Deadline::Now).is_ok() {}
    for index in 0..dragon_shmem::control::MAX_OBJECTS {
        let entry = node.control.object(index).unwrap();
        let (state, kind, generation, _) = entry.read();
        if generation == 0 {
            break;
        }
        let lost = state == dragon_shmem::object::State::Alive
            && entry.user.load(dragon_shmem::sync::Ordering::Relaxed) == 1;
        if lost {
            assert_eq!((entry.references(), entry.in_transit()), (1, 1));
            let id = dragon_protocol::ObjectId {
                node: node.control.node(),
                kind: dragon_protocol::ObjectKind::from_u8(kind).unwrap(),
                index,
                generation,
            };
            let descriptor = dragon_protocol::Descriptor {
                object: id,
                user: 0,
                runtime: node.control.runtime(),
            };
            drop(Channel::attach(&member, &descriptor, true).unwrap());
        }
    }
    assert_eq!(node.used(), before);
}
