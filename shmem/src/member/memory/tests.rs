use std::cmp::Ordering as Order;
use std::mem::ManuallyDrop;

use dragon_protocol::op::Op;

use crate::error::Error;
use crate::futex::Deadline;
use crate::local::Node;
use crate::pool::page::PAGE;
use crate::pool::tag::PoolTag;
use crate::recover::recover_memory;

const DEFAULT: PoolTag = PoolTag::DEFAULT;

#[test]
fn who_waits_gets_what_others_free() {
    for length in [1_000, 30_000, 300_000] {
        let node = Node::with_limit(4 << 20).unwrap();
        let (holder, waiter) = (node.member().unwrap(), node.member().unwrap());
        let mut blocks = Vec::new();
        while let Ok(block) = holder.alloc(length) {
            blocks.push(block.offset);
        }
        let now = waiter.alloc_until(DEFAULT, length, Deadline::Now);
        assert!(matches!(now, Err(Error::OutOfMemory { .. })), "{now:?}");
        let soon = waiter.alloc_until(DEFAULT, length, Deadline::after(5_000_000));
        assert!(matches!(soon, Err(Error::OutOfMemory { .. })), "{soon:?}");
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| waiter.alloc_until(DEFAULT, length, Deadline::Never)))
                .collect();
            for block in blocks {
                holder.free(block).unwrap();
            }
            for thread in waiting {
                let block = thread.join().unwrap().unwrap();
                waiter.free(block.offset).unwrap();
            }
        });
    }
}

#[test]
fn nobody_waits_for_what_can_never_fit() {
    let node = Node::with_limit(4 << 20).unwrap();
    let member = node.member().unwrap();
    let never = member.alloc_until(DEFAULT, 4 << 20, Deadline::Never);
    assert!(matches!(never, Err(Error::OutOfMemory { .. })), "{never:?}");
}

#[test]
fn blocks_change_their_length_in_place() {
    let node = Node::with_limit(16 << 20).unwrap();
    let member = node.member().unwrap();
    let small = member.alloc(100).unwrap().offset;
    assert_eq!(member.resize(small, 128).unwrap().length, 128);
    let refused = member.resize(small, 129).unwrap_err();
    assert!(
        matches!(refused, Error::CannotGrow { room: 128, .. }),
        "{refused}"
    );

    for shared in [false, true] {
        let block = member.alloc(3 * PAGE).unwrap().offset;
        if shared {
            member.share(block).unwrap();
        }
        member.fill(block, 0, 3 * PAGE, 7).unwrap();
        member.resize(block, 20 * PAGE).unwrap();
        assert_eq!(member.block_room(block).unwrap(), 20 * PAGE);
        let behind = loop {
            let block = member.alloc(PAGE).unwrap().offset;
            if block > 20 * PAGE {
                break block;
            }
        };
        member.resize(block, 2 * PAGE).unwrap();
        assert_eq!(member.block_room(block).unwrap(), 2 * PAGE);
        let most = behind - block;
        let error = member.resize(block, most + 1).unwrap_err();
        assert!(matches!(error, Error::CannotGrow { .. }), "{error}");
        let mut last = [0; 1];
        member.read(block, 2 * PAGE - 1, &mut last).unwrap();
        assert_eq!(last, [7]);
        assert_eq!(member.is_shared(block).unwrap(), shared);
        let other = node.member().unwrap();
        assert_eq!(
            other.resize(block, PAGE).is_ok(),
            shared,
            "private is private"
        );
        member.free(block).unwrap();
        member.free(behind).unwrap();
    }
    let error = member.resize(12345, 1).unwrap_err();
    assert!(matches!(error, Error::NotAllocated { .. }));
}

#[test]
fn a_block_grows_into_memory_that_is_not_committed_yet() {
    let node = Node::with_limit(16 << 20).unwrap();
    let member = node.member().unwrap();
    let block = member.alloc(40 * PAGE).unwrap().offset;
    let committed = node.pool.committed();
    member.resize(block, committed + PAGE).unwrap();
    assert!(node.pool.committed() > committed);
}

/// Each point at which a process can die in a change of length, made by hand.
#[test]
fn a_change_of_length_that_was_broken_off_leaves_nothing() {
    for (head, behind, expected) in [
        // Growing from 2 to 5 pages: nothing, some or all of the new ones claimed, the head not or changed.
        (2, 0, 2),
        (2, 2, 2),
        (2, 3, 2),
        (5, 3, 5),
    ] {
        let node = Node::with_limit(16 << 20).unwrap();
        let (dying, living) = (node.member().unwrap(), node.member().unwrap());
        let block = dying.alloc(2 * PAGE).unwrap();
        dying.share(block.offset).unwrap();
        let first = u32::try_from(block.offset / PAGE).unwrap();
        let thread = ManuallyDrop::new(dying.thread().unwrap());
        thread
            .intent
            .begin(Op::Resize, 0, 0, [first.into(), 5 << 32 | 2]);
        let word = |page: u32| node.pool.page(first + page).unwrap();
        let mine = crate::pool::page::PageWord::new(
            crate::pool::page::Tag::Body,
            Some(dying.slot().index),
            0,
            0,
        );
        for page in 0..behind {
            word(2 + page).store(mine);
        }
        word(0).store(word(0).load().with_extra(head));
        recover_memory(&node.control, &*node.daemon, dying.slot()).unwrap();
        assert_eq!(living.block_room(block.offset).unwrap(), expected * PAGE);
        living.free(block.offset).unwrap();
        assert_eq!(node.pool.stats().unwrap().used, 0);
        let all = living.alloc((16 << 20) - PAGE).unwrap();
        living.free(all.offset).unwrap();
    }
    for left in 0..4 {
        // Shrinking from 5 to 2 pages: the head changed, and `left` of the pages behind it not given back yet.
        let node = Node::with_limit(16 << 20).unwrap();
        let (dying, living) = (node.member().unwrap(), node.member().unwrap());
        let block = dying.alloc(5 * PAGE).unwrap();
        let first = u32::try_from(block.offset / PAGE).unwrap();
        let thread = ManuallyDrop::new(dying.thread().unwrap());
        thread
            .intent
            .begin(Op::Resize, 0, 0, [first.into(), 2 << 32 | 5]);
        let word = |page: u32| node.pool.page(first + page).unwrap();
        word(0).store(word(0).load().with_extra(2));
        for page in 2 + left..5 {
            word(page).store(crate::pool::page::PageWord::FREE);
        }
        recover_memory(&node.control, &*node.daemon, dying.slot()).unwrap();
        let all = living.alloc((16 << 20) - PAGE).unwrap();
        living.free(all.offset).unwrap();
    }
}

#[test]
fn bytes_are_copied_compared_hashed_and_filled() {
    let node = Node::new().unwrap();
    let member = node.member().unwrap();
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let length = bytes.len() as u64;
    let (a, b) = (
        member.alloc(length).unwrap().offset,
        member.alloc(length + 10).unwrap().offset,
    );
    member.write(a, 0, &bytes).unwrap();
    member.copy((a, 0), (b, 10), length).unwrap();
    assert_eq!(
        member.compare((a, 0), (b, 10), length).unwrap(),
        Order::Equal
    );
    let expected: [u8; 32] = blake3::hash(&bytes).into();
    assert_eq!(member.hash(b, 10, length).unwrap(), expected);
    member.fill(b, length + 9, 1, 0).unwrap();
    assert_eq!(
        member.compare((a, 0), (b, 10), length).unwrap(),
        Order::Greater
    );
    assert_eq!(
        member.compare((b, 10), (a, 0), length).unwrap(),
        Order::Less
    );
    assert_eq!(member.compare((a, 0), (b, 0), 0).unwrap(), Order::Equal);
    member.clear(b).unwrap();
    let mut zeros = vec![1; bytes.len()];
    member.read(b, 0, &mut zeros).unwrap();
    assert!(zeros.iter().all(|byte| *byte == 0));
    for wrong in [
        member.copy((a, 0), (b, u64::MAX), 2),
        member.copy((a, 64 << 20), (b, 0), 1),
        member.fill(a, 1 << 20, 1, 0),
        member.hash(a + 1, 0, 1).map(drop),
    ] {
        assert!(wrong.is_err());
    }
}

#[test]
fn values_have_types() {
    let node = Node::new().unwrap();
    let member = node.member().unwrap();
    let before = node.pool.stats().unwrap().used;
    let value = member.alloc_value([1_u64, 2, 3]).unwrap();
    value.write([4, 5, 6]).unwrap();
    assert_eq!(value.read().unwrap(), [4, 5, 6]);
    let block = value.hand_over().unwrap();
    let other = node.member().unwrap();
    let theirs = super::Value::<[u64; 3]>::adopt(&other, block.offset).unwrap();
    assert_eq!(theirs.read().unwrap(), [4, 5, 6]);
    assert!(super::Value::<[u64; 300]>::adopt(&other, block.offset).is_err());
    drop(theirs);
    assert_eq!(node.pool.stats().unwrap().used, before);
}
