//! What a pool promises, with its data in each kind of memory: a memfd, a file, and private memory. Under Miri, which knows
//! no mappings, the private one is all there is.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use dragon_protocol::{NodeIndex, PoolOptions, RuntimeId};

use super::page::{PAGE, PageWord};
use super::table::{InProcess, PoolTable, Unlimited};
use super::{CHUNK, DATA, META, Pool, Tables};
use crate::error::Error;
use crate::recover::recover_memory;
use crate::region::{Backing, Region};
use crate::sync::{AtomicU64, Ordering};
use crate::{Control, Member, PoolTag, slot};

const RUNTIME: RuntimeId = RuntimeId(7);
const LIMIT: u64 = 6 * CHUNK;
/// Miri needs a second for each of some things.
const ROUNDS: u64 = if cfg!(miri) { 3 } else { 200 };

struct Node {
    control: Control,
    pool: Pool,
    daemon: Arc<Member>,
    table: Arc<PoolTable>,
}

impl Node {
    fn of(pool: Pool) -> Self {
        let control = Control::create(RUNTIME, NodeIndex::FIRST, 2).unwrap();
        let table = PoolTable::new(pool.clone(), Box::new(Unlimited));
        let hooks = Box::new(InProcess(Arc::clone(&table)));
        let slot = control.claim_daemon_slot().unwrap();
        let daemon = Member::new(control.clone(), pool.clone(), slot, hooks).unwrap();
        table.set_owner(&daemon);
        Self {
            control,
            pool,
            daemon,
            table,
        }
    }

    fn all() -> Vec<Self> {
        let options = PoolOptions {
            limit: LIMIT,
            name: "of a test".to_owned(),
            ..PoolOptions::default()
        };
        let tag = PoolTag::DEFAULT;
        let mut pools = vec![Pool::create_private(RUNTIME, tag, &options).unwrap()];
        if !cfg!(miri) {
            let folder = tempfile::tempdir().unwrap();
            let in_file = PoolOptions {
                file: folder
                    .path()
                    .join("data")
                    .to_str()
                    .unwrap()
                    .as_bytes()
                    .to_vec(),
                ..options.clone()
            };
            pools.push(Pool::create_with(RUNTIME, tag, &options).unwrap());
            pools.push(Pool::create_with(RUNTIME, tag, &in_file).unwrap());
            let left = std::fs::read_dir(folder.path()).unwrap().count();
            assert_eq!(left, 0, "the file has no name any more");
            let backings: Vec<_> = pools.iter().map(|pool| pool.data().backing()).collect();
            assert_eq!(backings, [Backing::Heap, Backing::Memfd, Backing::File]);
        }
        pools.into_iter().map(Self::of).collect()
    }

    /// One more process, which has the pool mapped by itself where it can be.
    fn member(&self) -> Arc<Member> {
        let slot = self.control.claim_slot(1).unwrap();
        let hooks = Box::new(InProcess(Arc::clone(&self.table)));
        Member::new(self.control.clone(), self.again(), slot, hooks).unwrap()
    }

    fn again(&self) -> Pool {
        let fd = |region: &Region| -> (OwnedFd, u64) {
            let fd = region.fd().unwrap().try_clone_to_owned().unwrap();
            (fd, region.size())
        };
        let (meta, data) = (self.pool.meta(), self.pool.data());
        match data.backing() {
            Backing::Heap => self.pool.as_guest(),
            backing => Pool::map_backed(RUNTIME, 0, fd(meta), fd(data), backing).unwrap(),
        }
    }

    fn used(&self) -> u64 {
        self.pool.stats().unwrap().used
    }
}

#[test]
fn blocks_are_written_shared_read_and_freed() {
    for node in Node::all() {
        let (a, b) = (node.member(), node.member());
        for round in 0..ROUNDS {
            for length in [1, 64, 65, 4096, 32 << 10, 100_000, CHUNK] {
                let byte = u8::try_from(round % 251).unwrap() + 1;
                let block = a.alloc(length).unwrap();
                a.write(block.offset, length - 1, &[byte]).unwrap();
                assert!(b.free(block.offset).is_err(), "private");
                a.share(block.offset).unwrap();
                let mut last = [0];
                b.read(block.offset, length - 1, &mut last).unwrap();
                assert_eq!(last, [byte]);
                let by = if round % 2 == 0 { &a } else { &b };
                by.free(block.offset).unwrap();
                assert!(by.free(block.offset).is_err(), "twice");
            }
        }
        assert_eq!(node.used(), 0);
    }
}

#[test]
fn a_full_pool_says_so_and_goes_on() {
    for node in Node::all() {
        let member = node.member();
        let mut blocks = Vec::new();
        let error = loop {
            match member.alloc(PAGE * 2) {
                Ok(block) => blocks.push(block.offset),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
        assert!(error.to_string().contains("'of a test'"), "{error}");
        assert_eq!(blocks.len() as u64, LIMIT / PAGE / 2 - 1);
        for block in blocks {
            member.free(block).unwrap();
        }
        assert_eq!(node.used(), 0);
        member.alloc(LIMIT - PAGE).unwrap();
    }
}

#[test]
fn a_dead_process_leaves_what_it_shared() {
    for node in Node::all() {
        let (dead, living) = (node.member(), node.member());
        let mut shared = Vec::new();
        for length in [64, 3000, 100_000] {
            let block = dead.alloc(length).unwrap();
            dead.share(block.offset).unwrap();
            shared.push(block.offset);
            dead.alloc(length).unwrap();
        }
        recover_memory(&node.control, &*node.daemon, dead.slot()).unwrap();
        assert_eq!(node.pool.stats().unwrap().blocks, 3);
        for block in shared {
            living.free(block).unwrap();
        }
        assert_eq!(node.used(), 0);
    }
}

#[test]
fn memory_that_is_released_comes_back() {
    for node in Node::all() {
        let member = node.member();
        // More than a process keeps for its next blocks.
        const LARGE: u64 = 5 * CHUNK;
        let large = member.alloc(LARGE).unwrap();
        let keep = member.alloc(64).unwrap();
        member.write(keep.offset, 0, b"kept").unwrap();
        member.write(large.offset, LARGE / 2, &[1]).unwrap();
        member.free(large.offset).unwrap();
        let before = node.pool.stats().unwrap().committed;
        let released = node.table.trim().unwrap();
        assert!(released >= 3 * CHUNK, "{:?}", node.pool.data().backing());
        assert_eq!(node.pool.stats().unwrap().committed, before - released);
        let mut kept = [0; 4];
        member.read(keep.offset, 0, &mut kept).unwrap();
        assert_eq!(&kept, b"kept");
        let again = member.alloc(LARGE).unwrap();
        let mut middle = [7];
        member.read(again.offset, LARGE / 2, &mut middle).unwrap();
        assert_eq!(middle, [0], "it went to the system and came back as zeros");
        assert_eq!(node.pool.stats().unwrap().committed, before);
    }
}

#[test]
fn no_block_is_smaller_than_the_minimum() {
    let options = PoolOptions {
        limit: CHUNK,
        minimum_block: 4096,
        ..PoolOptions::default()
    };
    let pool = Pool::create_private(RUNTIME, PoolTag::DEFAULT, &options).unwrap();
    let node = Node::of(pool);
    let member = node.member();
    for (length, room) in [
        (0, 4096),
        (1, 4096),
        (4096, 4096),
        (4097, 8192),
        (40_000, PAGE),
    ] {
        let block = member.alloc(length).unwrap();
        assert_eq!(member.block_room(block.offset).unwrap(), room, "{length}");
    }
}

/// A process that gives its pool up may die at any step of that; here: after each change of a page word.
#[test]
fn a_process_that_dies_while_it_leaves_a_pool_leaves_nothing() {
    for node in Node::all() {
        for die_at in 0..12 {
            let leaving = node.member();
            let slot = node.control.slot(leaving.slot().index).unwrap();
            for length in [64, 3000, 100_000, 200_000] {
                leaving.alloc(length).unwrap();
            }
            // What it would do, as far as it comes.
            let thread = std::mem::ManuallyDrop::new(leaving.thread().unwrap());
            super::list::stop_after(die_at);
            let left = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let cache = std::sync::Mutex::default();
                node.pool
                    .abandon(&cache, slot, leaving.slot(), &thread.intent)
            }));
            super::list::stop_after(u32::MAX);
            drop(left);
            recover_memory(&node.control, &*node.daemon, leaving.slot()).unwrap();
            node.control.release_slot(leaving.slot()).unwrap();
            assert_eq!(node.used(), 0, "died at {die_at}");
            for page in 1..node.pool.committed_pages() {
                let word = node.pool.page(page).unwrap().load();
                assert_eq!(word, PageWord::FREE, "page {page}, died at {die_at}");
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "nothing is mapped")]
fn regions_that_do_not_make_a_pool_are_refused() {
    let size = Tables::of(LIMIT).end;
    let regions = || {
        let meta = Region::create("meta", META, RUNTIME, size).unwrap();
        let data = Region::create("data", DATA, RUNTIME, LIMIT).unwrap();
        (meta, data)
    };
    let fd = |region: &Region| region.fd().unwrap().try_clone_to_owned().unwrap();
    let map = |number, (meta, data): &(Region, Region)| {
        let (meta, data) = ((fd(meta), meta.size()), (fd(data), data.size()));
        Pool::map(RUNTIME, number, meta, data)
    };
    // Nothing says that the smallest block is 0.
    let empty = regions();
    assert!(map(0, &empty).is_err());
    let words: &[AtomicU64] = empty.0.slice(4096, 512).unwrap();
    for (index, word) in words.iter().enumerate() {
        for nonsense in [1, 63, 64, 65, 1 << 20, u64::MAX] {
            let before = word.swap(nonsense, Ordering::Relaxed);
            if let Ok(pool) = map(0, &empty) {
                assert_eq!(nonsense, 64, "word {index}");
                assert!(pool.stats().is_ok());
            }
            word.store(before, Ordering::Relaxed);
        }
    }
    let good = Node::all().remove(1).pool;
    let pair = (good.meta().clone(), good.data().clone());
    assert!(map(0, &pair).is_ok());
    for number in [1, 63, 64, u32::MAX] {
        assert!(map(number, &pair).is_err(), "{number}");
    }
    let swapped = (pair.1.clone(), pair.0.clone());
    assert!(map(0, &swapped).is_err());
    let other_size = Region::create("data", DATA, RUNTIME, LIMIT + CHUNK).unwrap();
    assert!(map(0, &(pair.0.clone(), other_size)).is_err());
    let odd = Region::create("data", DATA, RUNTIME, LIMIT + 4096).unwrap();
    assert!(map(0, &(pair.0, odd)).is_err());
    let unsealed = {
        let (meta, data) = ((fd(good.meta()), size), (fd(good.data()), LIMIT));
        Pool::map_backed(RUNTIME, 0, meta, data, Backing::File)
    };
    assert!(unsealed.is_ok(), "a memfd may pass for a file");
    let file = Node::all().remove(2).pool;
    let as_memfd = {
        let (meta, data) = ((fd(file.meta()), size), (fd(file.data()), LIMIT));
        Pool::map(RUNTIME, 0, meta, data)
    };
    assert!(as_memfd.is_err(), "a file is not sealed");
    assert_eq!(slot::MAX_POOLS, 64);
}
