//! Blocks of pools beside the default one, in messages and in the hands of processes that die.

use std::sync::Arc;

use dragon_protocol::{Descriptor, NodeIndex, ObjectId, ObjectKind};
use dragon_shmem::pool::table::InProcess;
use dragon_shmem::{Hooks, Member, Pool, PoolTag};

use crate::local::LocalNode;
use crate::{
    Channel, ChannelOptions, Deadline, Error, Object, PoolHandle, PoolOptions, create_channel,
    recover,
};

fn options(name: &str) -> PoolOptions {
    PoolOptions {
        limit: 64 << 20,
        name: name.to_owned(),
        ..PoolOptions::default()
    }
}

#[test]
fn a_message_carries_a_block_of_any_pool() {
    let node = LocalNode::new().unwrap();
    let (sender, receiver) = (node.member().unwrap(), node.member().unwrap());
    let pool = PoolHandle::create(&sender, &options("images")).unwrap();
    let tag = pool.tag().unwrap();
    let channel = create_channel(&sender, &ChannelOptions::default()).unwrap();
    let theirs = Channel::attach(&receiver, &channel.descriptor(), false).unwrap();
    for length in [100, 5000, 1 << 20] {
        let block = pool.alloc(length).unwrap();
        sender.write(block.offset, length - 5, b"ended").unwrap();
        channel.send_block(block, 7, Deadline::Now).unwrap();
        let message = theirs.receive(Deadline::Now).unwrap();
        assert_eq!(message.block().map(PoolTag::of), Some(tag));
        assert!(message.into_vec().ends_with(b"ended"));
        assert_eq!(pool.stats().unwrap().blocks, 0);
    }
    // The message outlives its sender and the sender's handle, and the receiver's lease outlives both.
    let block = pool.alloc(100_000).unwrap();
    sender.write(block.offset, 0, b"lives").unwrap();
    channel.send_block(block, 0, Deadline::Now).unwrap();
    let descriptor = pool.descriptor();
    drop(pool);
    recover(node.daemon(), sender.slot()).unwrap();
    let message = theirs.receive(Deadline::Now).unwrap();
    let mut bytes = [0; 5];
    message.copy_to(0, &mut bytes);
    assert_eq!(&bytes, b"lives");
    drop(message);
    let gone = PoolHandle::attach(&receiver, &descriptor, false).unwrap_err();
    assert!(matches!(
        gone,
        Error::Memory(dragon_shmem::Error::NoSuchObject(_))
    ));
}

#[test]
fn a_receiver_that_dies_with_a_lease_keeps_no_pool() {
    let node = LocalNode::new().unwrap();
    let (sender, receiver) = (node.member().unwrap(), node.member().unwrap());
    let pool = PoolHandle::create(&sender, &options("")).unwrap();
    let channel = create_channel(&sender, &ChannelOptions::default()).unwrap();
    let theirs = Channel::attach(&receiver, &channel.descriptor(), false).unwrap();
    let block = pool.alloc(5000).unwrap();
    channel.send_block(block, 7, Deadline::Now).unwrap();
    let lease = std::mem::ManuallyDrop::new(theirs.receive(Deadline::Now).unwrap());
    assert_eq!(pool.stats().unwrap().blocks, 1);
    pool.destroy().unwrap();
    let recovered = recover(node.daemon(), receiver.slot()).unwrap();
    assert_eq!(recovered.blocks, 1);
    assert_eq!(pool.stats().unwrap().blocks, 0, "{lease:?}");
    drop(pool);
    let again = PoolHandle::create(&sender, &options("again")).unwrap();
    assert_eq!(again.stats().unwrap().blocks, 0);
}

#[test]
fn descriptors_of_pools_travel_as_bytes_and_text() {
    let node = LocalNode::new().unwrap();
    let (a, b) = (node.member().unwrap(), node.member().unwrap());
    let named = PoolOptions {
        user: 99,
        ..options("named")
    };
    let pool = PoolHandle::create(&a, &named).unwrap();
    let exported = pool.export().unwrap();
    drop(pool);
    let text: Descriptor = exported.to_string().parse().unwrap();
    let bytes = Descriptor::from_bytes(&exported.to_bytes()).unwrap();
    assert_eq!((text, bytes), (exported, exported));
    let Object::Pool(pool) = Object::attach(&b, &text, true).unwrap() else {
        panic!("a pool");
    };
    assert_eq!((pool.name(), pool.descriptor().user), ("named".into(), 99));
    assert_eq!(pool.limit().unwrap(), 64 << 20);
    // Whatever else a descriptor says is refused with a sentence.
    let with = |change: &dyn Fn(&mut Descriptor)| {
        let mut changed = exported;
        change(&mut changed);
        Object::attach(&b, &changed, false).unwrap_err()
    };
    let gone = |error: Error| {
        matches!(
            error,
            Error::Memory(
                dragon_shmem::Error::NoSuchObject(_)
                    | dragon_shmem::Error::WrongKind(_)
                    | dragon_shmem::Error::Corrupt { .. }
            )
        )
    };
    assert!(gone(with(&|d| d.object.generation += 1)));
    assert!(gone(with(&|d| d.object.index += 1)));
    assert!(gone(with(&|d| d.object.index = u32::MAX)));
    assert!(gone(with(&|d| d.object.kind = ObjectKind::Lock)));
    assert!(matches!(
        with(&|d| d.runtime.0 ^= 1),
        Error::OtherRuntime { .. }
    ));
    let elsewhere = with(&|d| d.object.node = NodeIndex::new(5).unwrap());
    // A node without an agent reaches no other.
    assert!(matches!(elsewhere, Error::NoGateway(_, id) if id.node.get() == 5));
    let channel = create_channel(&a, &ChannelOptions::default()).unwrap();
    let mut as_pool = channel.descriptor();
    as_pool.object.kind = ObjectKind::Pool;
    assert!(gone(Object::attach(&b, &as_pool, false).unwrap_err()));
}

#[test]
fn who_waits_for_memory_of_a_pool_hears_of_its_end() {
    let node = LocalNode::new().unwrap();
    let (member, waiter) = (node.member().unwrap(), node.member().unwrap());
    let small = PoolOptions {
        limit: 4 << 20,
        ..options("small")
    };
    let pool = PoolHandle::create(&member, &small).unwrap();
    let theirs = PoolHandle::attach(&waiter, &pool.descriptor(), false).unwrap();
    while pool.alloc(1 << 20).is_ok() {}
    let (tell, thread) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let place = std::fs::read_link("/proc/thread-self").unwrap();
            tell.send(place).unwrap();
            // Long enough that only a wake-up can be what ended it.
            let deadline = Deadline::after(60_000_000_000);
            waiter.alloc_until(theirs.tag().unwrap(), 1 << 20, deadline)
        });
        let stat = std::path::Path::new("/proc")
            .join(thread.recv().unwrap())
            .join("stat");
        while !std::fs::read_to_string(&stat).unwrap().contains(") S ") {
            std::thread::yield_now();
        }
        pool.destroy().unwrap();
        let ended = waiting.join().unwrap();
        assert_eq!(ended, Err(dragon_shmem::Error::Destroyed(pool.id())));
    });
}

/// Hooks of a process for which no pool can be mapped, for a passing reason.
struct Short(InProcess);

impl Hooks for Short {
    fn commit(&self, pool: u32, bytes: u64) -> dragon_shmem::Result<()> {
        self.0.commit(pool, bytes)
    }

    fn notify(&self, object: ObjectId) {
        self.0.notify(object);
    }

    fn pool(&self, _: PoolTag) -> dragon_shmem::Result<(Pool, ObjectId)> {
        Err(dragon_shmem::Error::System {
            call: "recvmsg",
            errno: rustix::io::Errno::MFILE,
        })
    }
}

#[test]
fn a_message_whose_pool_cannot_be_mapped_for_now_keeps_its_block() {
    let node = dragon_shmem::local::Node::new().unwrap();
    let sender = node.member().unwrap();
    let slot = node.control.claim_slot(1).unwrap();
    let hooks = Box::new(Short(InProcess(Arc::clone(&node.pools))));
    let receiver = Member::new(node.control.clone(), node.pool.clone(), slot, hooks).unwrap();
    let pool = PoolHandle::create(&sender, &options("")).unwrap();
    let channel = create_channel(&sender, &ChannelOptions::default()).unwrap();
    // It dies with its handle.
    let theirs = Channel::attach(&receiver, &channel.descriptor(), false).unwrap();
    let theirs = std::mem::ManuallyDrop::new(theirs);
    let block = pool.alloc(5000).unwrap();
    channel.send_block(block, 7, Deadline::Now).unwrap();
    let error = theirs.receive(Deadline::Now).unwrap_err();
    assert!(error.to_string().contains("recvmsg"), "{error}");
    assert_eq!(pool.stats().unwrap().blocks, 1);
    // It is the receiver's, and goes with it.
    let recovered = recover(&node.daemon, slot).unwrap();
    assert_eq!((recovered.blocks, pool.stats().unwrap().blocks), (1, 0));
}
