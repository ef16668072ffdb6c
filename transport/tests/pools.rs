//! Blocks of pools of another node: allocated and freed from here, copied to and from.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod rig;

use std::cmp::Ordering;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use dragon_channels::pool::PIECE;
use dragon_channels::{Deadline, Error, PoolBlock, PoolHandle, PoolOptions};
use dragon_protocol::Code;
use dragon_shmem::Member;
use dragon_transport::fabric::mem::MemHub;
use rig::{Node, POOL, on_each, pattern, tcp, until};

fn pool(member: &Arc<Member>, limit: u64) -> PoolHandle {
    let options = PoolOptions {
        limit,
        name: "images".to_owned(),
        ..PoolOptions::default()
    };
    PoolHandle::create(member, &options).unwrap()
}

fn seen_by(member: &Arc<Member>, pool: &PoolHandle) -> PoolHandle {
    PoolHandle::attach(member, &pool.descriptor(), false).unwrap()
}

fn bytes(block: &PoolBlock) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(block.len()).unwrap()];
    block.read(0, &mut bytes).unwrap();
    bytes
}

/// The same test from the pool's own node and from another one.
fn here_and_there(test: impl Fn(&[Node], &Arc<Member>, &PoolHandle)) {
    on_each(2, |nodes| {
        let owned = pool(&nodes[1].client(), POOL);
        for node in [&nodes[1], &nodes[0]] {
            let member = node.client();
            let before = nodes[0].blocks();
            test(nodes, &member, &seen_by(&member, &owned));
            until("all blocks are free", || {
                owned.stats().unwrap().blocks == 0 && nodes[0].blocks() == before
            });
        }
    });
}

#[test]
fn blocks_of_every_size_are_written_and_read() {
    here_and_there(|_, _, pool| {
        for size in [
            0,
            1,
            255,
            256,
            384,
            385,
            4096,
            4097,
            100_000,
            PIECE,
            2 * PIECE + 1,
        ] {
            let content = pattern(usize::try_from(size).unwrap(), size);
            let mut block = pool.alloc_block(size).unwrap();
            assert_eq!((block.len(), block.is_empty()), (size, size == 0));
            assert_eq!(block.node(), pool.node());
            block.write(0, &content).unwrap();
            assert!(bytes(&block) == content, "{size}");
            let middle = size / 3;
            let mut part = vec![0; usize::try_from(size - middle).unwrap()];
            block.read(middle, &mut part).unwrap();
            assert!(part == content[usize::try_from(middle).unwrap()..]);
        }
    });
}

#[test]
fn blocks_of_any_two_pools_are_copied() {
    here_and_there(|nodes, member, pool| {
        let near = self::pool(member, POOL);
        let third = self::pool(&nodes[0].client(), POOL);
        let third = seen_by(member, &third);
        for length in [1, 300, 5000, PIECE + 77] {
            let content = pattern(usize::try_from(length).unwrap(), length);
            let room = length + 10;
            let mut local = near.alloc_block(room).unwrap();
            local.write(3, &content).unwrap();
            let mut there = pool.alloc_block(room).unwrap();
            there.copy_from(7, &local, 3, length).unwrap();
            let mut other = third.alloc_block(room).unwrap();
            there.copy_to(7, &mut other, 1, length).unwrap();
            let mut back = near.alloc_block(length).unwrap();
            back.copy_from(0, &other, 1, length).unwrap();
            assert!(bytes(&back) == content, "{length}");
            let mut same = pool.alloc_block(length).unwrap();
            same.copy_from(0, &there, 7, length).unwrap();
            assert!(bytes(&same) == content, "{length}");
            for (to, from) in [(9, 7), (2, 9)] {
                there.copy_within(to, from, length).unwrap();
            }
            same.copy_from(0, &there, 2, length).unwrap();
            assert!(bytes(&same) == content, "{length}: within");
        }
    });
}

/// A process of the first node sends blocks of the third one to a channel of any.
/// No node has more blocks than before. Then, what came to an end on another node may not have been freed there yet.
fn none_more(nodes: &[Node], before: &[u64]) -> bool {
    let now = nodes.iter().map(Node::blocks);
    now.zip(before).all(|(now, before)| now <= *before)
}

#[test]
fn a_block_of_a_third_node_is_sent_to_a_channel_of_any() {
    on_each(3, |nodes| {
        let member = nodes[0].client();
        let owned = pool(&nodes[2].client(), POOL);
        let seen = seen_by(&member, &owned);
        for (node, home) in (0..).zip(nodes) {
            let inbox = rig::channel(&home.client(), 1);
            let channel = rig::seen_by(&member, inbox.descriptor());
            for length in [0, 100, 5000, PIECE + 77] {
                let content = pattern(usize::try_from(length).unwrap(), length);
                let before: Vec<u64> = nodes.iter().map(Node::blocks).collect();
                let mut block = seen.alloc_block(length).unwrap();
                block.write(0, &content).unwrap();
                let send = |block| channel.send_block(block, length, rig::watched());
                Box::new(block).hand_over(send).unwrap();
                let message = inbox.receive(rig::watched()).unwrap();
                assert_eq!(message.hint(), length);
                assert!(message.into_vec() == content, "{length} to node {node}");
                until("the block is free, and its copies", || {
                    owned.stats().unwrap().blocks == 0 && none_more(nodes, &before)
                });
            }
            // Without room it comes back, and nothing else is left.
            channel.send(b"full", 0, rig::watched()).unwrap();
            let before: Vec<u64> = nodes.iter().map(Node::blocks).collect();
            let mut block = seen.alloc_block(5000).unwrap();
            block.write(0, &[7; 5000]).unwrap();
            let send = |block| channel.send_block(block, 0, Deadline::Now);
            let (error, block) = Box::new(block).hand_over(send).unwrap_err();
            assert_eq!(error, Error::Full);
            assert!(bytes(&block) == [7; 5000]);
            drop(block);
            until("nothing is left of it", || {
                owned.stats().unwrap().blocks == 0 && none_more(nodes, &before)
            });
            inbox.receive(rig::watched()).unwrap();
        }
        let inbox = rig::channel(&nodes[1].client(), 1);
        let channel = rig::seen_by(&member, inbox.descriptor());
        let before = nodes[0].blocks();
        let mut block = seen.alloc_block(100_000).unwrap();
        nodes[0].agent.node_down(rig::index(2));
        // The agent comes to it in its own time.
        while block.write(0, &[0; 11]).is_ok() {}
        let send = |block| channel.send_block(block, 0, rig::watched());
        let (error, block) = Box::new(block).hand_over(send).unwrap_err();
        let expected = Error::Elsewhere {
            what: "copying",
            pool: owned.id(),
            length: 100_000,
            done: 0,
            code: Code::NodeDown,
        };
        assert_eq!((error, block.len()), (expected, 100_000));
        assert_eq!(inbox.attributes().unwrap().messages, 0);
        assert_eq!(nodes[0].blocks(), before);
    });
}

#[test]
fn blocks_are_filled_hashed_and_compared_where_they_lie() {
    here_and_there(|nodes, member, pool| {
        let length = PIECE + 1000;
        let mut block = pool.alloc_block(length).unwrap();
        let mut local = self::pool(member, POOL).alloc_block(length).unwrap();
        for block in [&mut block, &mut local] {
            block.fill(0, length, 1).unwrap();
            block.fill(10, 100, 0xfe).unwrap();
        }
        let sent = nodes[1].agent.stats().fabric.bytes_sent;
        let hash = block.hash(0, length).unwrap();
        assert_eq!(hash, local.hash(0, length).unwrap());
        assert!(nodes[1].agent.stats().fabric.bytes_sent < sent + 1000);
        let compare = |a: &PoolBlock, b: &PoolBlock| a.compare(5, b, 5, length - 5).unwrap();
        assert_eq!(compare(&block, &local), Ordering::Equal);
        local.write(length - 1, &[2]).unwrap();
        assert_eq!(compare(&block, &local), Ordering::Less);
        assert_eq!(compare(&local, &block), Ordering::Greater);
        assert_ne!(
            block.hash(1, length - 1).unwrap(),
            local.hash(1, length - 1).unwrap()
        );
    });
}

#[test]
fn a_pool_is_described_and_destroyed() {
    here_and_there(|_, member, seen| {
        assert_eq!(
            (seen.name(), seen.limit().unwrap()),
            ("images".to_owned(), POOL)
        );
        let block = seen.alloc_block(100_000).unwrap();
        let stats = seen.stats().unwrap();
        assert_eq!((stats.limit, stats.blocks), (POOL, 1));
        assert!(stats.used >= 100_000 && stats.committed >= stats.used);
        drop(block);
        let _ = member;
    });
    on_each(2, |nodes| {
        let owner = nodes[1].client();
        for node in [&nodes[1], &nodes[0]] {
            let owned = pool(&owner, POOL);
            let id = owned.id();
            let seen = seen_by(&node.client(), &owned);
            let block = seen.alloc_block(10).unwrap();
            seen.destroy().unwrap();
            let error = seen.alloc_block(10).unwrap_err();
            assert_eq!(error.code(), Code::Destroyed, "{error}");
            // Who has a block can still read it.
            assert_eq!(bytes(&block).len(), 10);
            drop((owned, seen));
            drop(block);
            until("the pool has gone", || nodes[1].pools.all().len() == 1);
            let descriptor = dragon_protocol::Descriptor {
                runtime: rig::RUNTIME,
                object: id,
                user: 0,
            };
            let error = PoolHandle::attach(&owner, &descriptor, false).unwrap_err();
            assert_eq!(error.code(), Code::NoSuchObject);
        }
    });
}

#[test]
fn a_pool_that_is_empty_goes_with_its_last_handle_on_any_node() {
    on_each(2, |nodes| {
        let owned = pool(&nodes[1].client(), POOL);
        let seen = seen_by(&nodes[0].client(), &owned);
        let block = seen.alloc_block(10).unwrap();
        drop((owned, seen));
        // A block keeps its pool.
        assert_eq!(nodes[1].pools.all().len(), 2);
        assert_eq!(bytes(&block).len(), 10);
        drop(block);
        until("the pool has gone", || nodes[1].pools.all().len() == 1);
    });
}

#[test]
fn errors_name_pool_node_what_was_asked_and_the_way_out() {
    on_each(2, |nodes| {
        let owned = pool(&nodes[1].client(), 8 << 20);
        let seen = seen_by(&nodes[0].client(), &owned);
        let error = seen.alloc_block(64 << 20).unwrap_err();
        assert_eq!(error.code(), Code::OutOfMemory);
        let text = error.to_string();
        for part in ["allocating 67108864 bytes", "node 1", "a higher limit"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(text.contains(&owned.id().to_string()), "{text}");
        let mut block = seen.alloc_block(100).unwrap();
        for error in [
            block.write(90, &[0; 11]).unwrap_err(),
            block.read(90, &mut [0; 11]).unwrap_err(),
            block.fill(u64::MAX, 2, 0).unwrap_err(),
            block.hash(0, 101).unwrap_err(),
        ] {
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(error.to_string().contains("to 100"), "{error}");
        }
        nodes[0].agent.node_down(rig::index(1));
        // The agent comes to it in its own time.
        let error = loop {
            if let Err(error) = block.write(0, &[0; 11]) {
                break error;
            }
        };
        assert_eq!(error.code(), Code::NodeDown);
        let text = error.to_string();
        for part in ["writing 11 bytes", "after 0 bytes", "of another node"] {
            assert!(text.contains(part), "{text}");
        }
    });
}

#[test]
fn no_memory_on_the_way_is_an_error_that_says_how_far_it_came() {
    // A piece finds no place in the default pool of node 1, and none of what comes back in that of node 0.
    let length = 2 * PIECE;
    for small in [1, 0] {
        let mut pools = [POOL; 2];
        pools[small] = 4 << 20;
        let nodes = tcp(&pools);
        let owned = pool(&nodes[1].client(), POOL);
        let member = nodes[0].client();
        let near = pool(&member, POOL);
        let seen = seen_by(&member, &owned);
        let mut there = seen.alloc_block(length).unwrap();
        let mut here = near.alloc_block(length).unwrap();
        let copied = if small == 1 {
            there.copy_from(0, &here, 0, length)
        } else {
            here.copy_from(0, &there, 0, length)
        };
        let error = copied.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Elsewhere {
                    done: 0,
                    code: Code::OutOfMemory,
                    ..
                }
            ),
            "{error}"
        );
        // What fits still goes.
        there.copy_from(0, &here, 0, 1000).unwrap();
        here.copy_from(0, &there, 0, 1000).unwrap();
        assert_eq!(nodes[0].stats().messages_lost, 0);
    }
}

#[test]
fn what_a_dead_process_had_on_another_node_is_freed() {
    on_each(2, |nodes| {
        let owned = pool(&nodes[1].client(), POOL);
        let other = nodes[0].client();
        let others = seen_by(&other, &owned).alloc_block(5000).unwrap();
        let dying = nodes[0].client();
        let seen = ManuallyDrop::new(seen_by(&dying, &owned));
        for size in [10, 5000, 3 << 20] {
            let mut block = ManuallyDrop::new(seen.alloc_block(size).unwrap());
            block.fill(0, size, 1).unwrap();
        }
        assert_eq!(owned.stats().unwrap().blocks, 4);
        nodes[0].dies(dying.slot());
        until("its blocks are free, and only they", || {
            owned.stats().unwrap().blocks == 1
        });
        assert_eq!(bytes(&others).len(), 5000);
        drop(others);
        until("nothing is left", || owned.stats().unwrap().blocks == 0);
    });
}

#[test]
fn what_a_lost_node_had_is_freed() {
    let hub = MemHub::new();
    let nodes = rig::mem(&hub, &[POOL; 2]);
    let owned = pool(&nodes[1].client(), POOL);
    let seen = seen_by(&nodes[0].client(), &owned);
    let _block = ManuallyDrop::new(seen.alloc_block(5000).unwrap());
    nodes[1].agent.node_down(rig::index(0));
    until("its blocks are free", || owned.stats().unwrap().blocks == 0);
}

/// In the middle of allocating, filling or freeing: its request has not left, is on its way, or was answered. The thread is
/// left where it is, as that of a killed process; no other process gets its slot.
#[test]
fn a_process_that_dies_with_a_request_on_its_way_leaves_nothing() {
    on_each(2, |nodes| {
        let owned = pool(&nodes[1].client(), POOL);
        let descriptor = owned.descriptor();
        let dying: Vec<_> = (0..60_u64).map(|_| nodes[0].client()).collect();
        for (round, member) in (0..).zip(dying) {
            let slot = member.slot();
            let (ready, is_ready) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let seen = PoolHandle::attach(&member, &descriptor, false).unwrap();
                let seen = ManuallyDrop::new(seen);
                let block = seen.alloc_block(100).unwrap();
                let mut block = ManuallyDrop::new(block);
                ready.send(()).unwrap();
                // Nothing comes back when it is dead by then.
                let _ = match round % 3 {
                    0 => seen.alloc_block(70_000).map(ManuallyDrop::new).map(drop),
                    1 => block.fill(0, 100, 1),
                    _ => {
                        drop(ManuallyDrop::into_inner(block));
                        Ok(())
                    }
                };
                loop {
                    std::thread::park();
                }
            });
            is_ready.recv().unwrap();
            for _ in 0..round * 50 {
                std::hint::spin_loop();
            }
            nodes[0].dies(slot);
        }
        until("nothing is left", || {
            owned.stats().unwrap().blocks == 0 && nodes[1].stats().proxies == 0
        });
    });
}
