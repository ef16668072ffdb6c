//! Several pools of one node, as several processes see them.

use std::sync::Arc;

use dragon_protocol::{NodeIndex, ObjectId, PoolOptions, RuntimeId, SlotId};

use crate::error::{Error, Result};
use crate::pool::CHUNK;
use crate::pool::table::{Budget, PoolTable, Unlimited};
use crate::recover::{Found, forget_held, held, recover_memory, reset_threads};
use crate::sync::{AtomicU64, Ordering};
use crate::{Control, Hooks, Member, Pool, PoolTag, slot};

const RUNTIME: RuntimeId = RuntimeId(7);
const SIZES: [u64; 3] = [64, 32 << 10, 300_000];

struct Local(Arc<PoolTable>);

impl Hooks for Local {
    fn commit(&self, pool: u32, bytes: u64) -> Result<()> {
        self.0.commit(pool, bytes)
    }

    fn notify(&self, _: ObjectId) {}

    fn pool(&self, tag: PoolTag) -> Result<(Pool, ObjectId)> {
        let (pool, object) = self.0.find(tag)?;
        // As another process has it: mapped anew.
        let fd = |region: &crate::Region| {
            let fd = region.fd().unwrap().try_clone_to_owned().unwrap();
            (fd, region.size())
        };
        let mapped = Pool::map(RUNTIME, pool.number(), fd(pool.meta()), fd(pool.data()))?;
        Ok((mapped, object))
    }

    fn create_pool(&self, options: &PoolOptions, slot: SlotId) -> Result<(Pool, ObjectId)> {
        self.0.create(options, slot)
    }

    fn numbered_pool(&self, number: u32) -> Option<Pool> {
        self.0.numbered(number)
    }

    fn pool_released(&self, object: ObjectId) {
        self.0.released(object);
    }

    fn trim(&self) -> Result<u64> {
        self.0.trim()
    }
}

struct Node {
    control: Control,
    default: Pool,
    table: Arc<PoolTable>,
    daemon: Arc<Member>,
}

/// A budget that a test sets.
#[derive(Clone)]
struct Purse(Arc<AtomicU64>);

impl Budget for Purse {
    fn allow(&self, pool: &Pool, bytes: u64) -> Result<()> {
        let left = self.0.load(Ordering::Relaxed);
        if bytes > left {
            let text = format!("pool {}: {bytes} of {left}", pool.label());
            return Err(Error::OutOfCgroupMemory(text));
        }
        Ok(())
    }
}

impl Node {
    fn new() -> Self {
        Self::within(Box::new(Unlimited))
    }

    fn within(budget: Box<dyn Budget>) -> Self {
        let control = Control::create(RUNTIME, NodeIndex::FIRST, 2).unwrap();
        let default = Pool::create(RUNTIME, NodeIndex::FIRST, 0, 64 << 20).unwrap();
        let table = PoolTable::new(default.clone(), budget);
        let slot = control.claim_daemon_slot().unwrap();
        let daemon = join(&control, &default, &table, slot);
        table.set_owner(&daemon);
        Self {
            control,
            default,
            table,
            daemon,
        }
    }

    fn member(&self) -> (SlotId, Arc<Member>) {
        let slot = self.control.claim_slot(1).unwrap();
        (slot, join(&self.control, &self.default, &self.table, slot))
    }

    /// A pool that the test holds by the daemon's own use.
    fn pool(&self) -> Pool {
        let options = PoolOptions {
            limit: 64 << 20,
            name: "test".to_owned(),
            ..PoolOptions::default()
        };
        let (pool, _) = self.table.create(&options, slot::DAEMON).unwrap();
        self.table.numbered(pool.number()).unwrap()
    }

    fn object(&self, pool: &Pool) -> ObjectId {
        self.table.find(pool.tag()).unwrap().1
    }

    /// In the order of the daemon.
    fn recover(&self, slot: SlotId) {
        let found = held(&self.control, slot).unwrap();
        reset_threads(&self.control, slot).unwrap();
        recover_memory(&self.control, &*self.daemon, slot).unwrap();
        for found in found {
            match found {
                Found::Object(id) => {
                    self.daemon.give_directly(id, |_| {}).unwrap();
                    self.table.released(id);
                }
                other => panic!("{other:?}"),
            }
        }
        forget_held(&self.control, slot).unwrap();
        self.control.release_slot(slot).unwrap();
        self.table.slot_gone(slot);
    }

    fn references(&self, pool: &Pool) -> u32 {
        self.control.entry(self.object(pool)).unwrap().references()
    }
}

fn join(control: &Control, default: &Pool, table: &Arc<PoolTable>, slot: SlotId) -> Arc<Member> {
    let hooks = Local(Arc::clone(table));
    let default = if slot == slot::DAEMON {
        default.clone()
    } else {
        default.as_guest()
    };
    Member::new(control.clone(), default, slot, Box::new(hooks)).unwrap()
}

fn used(pool: &Pool) -> u64 {
    pool.stats().unwrap().used
}

#[test]
fn blocks_of_any_pool_are_used_by_their_address() {
    let node = Node::new();
    let (first, last) = (node.pool(), node.pool());
    let (_, a) = node.member();
    let (_, b) = node.member();
    for pool in [&first, &last] {
        let tag = pool.tag();
        let handle = a.pin(tag.address(0)).unwrap();
        for length in SIZES {
            let block = a.alloc_in(tag, length).unwrap();
            assert_eq!((PoolTag::of(block.offset), block.length), (tag, length));
            a.write(block.offset, 0, b"of a").unwrap();
            assert!(b.free(block.offset).is_err(), "private to a");
            assert!(!b.is_shared(block.offset).unwrap());
            a.share(block.offset).unwrap();
            let mut bytes = [0; 4];
            b.read(block.offset, 0, &mut bytes).unwrap();
            assert_eq!(&bytes, b"of a");
            assert!(b.block_room(block.offset).unwrap() >= length);
            assert!(b.check(block.offset, length).is_ok());
            assert!(b.check(block.offset, 1 << 40).is_err());
            let place = b.hold_block(block.offset).unwrap();
            b.free_held(place, block.offset).unwrap();
            assert!(a.free(block.offset).is_err(), "twice");
        }
        assert_eq!(used(pool), 0);
        assert_eq!(node.references(pool), 2, "a's and the daemon's own");
        a.unpin(handle);
        assert!(node.table.find(tag).is_err(), "empty, and nobody needs it");
        assert_eq!(pool.data().resident().unwrap(), 0);
    }
    assert_eq!(used(&node.default), 0);
}

#[test]
fn addresses_of_no_pool_are_refused() {
    let node = Node::new();
    let pool = node.pool();
    let (_, member) = node.member();
    let (_, keeper) = node.member();
    let keep = keeper.pin(pool.tag().address(0)).unwrap();
    let other_generation = PoolTag::new(pool.number(), 6).unwrap();
    let nowhere = [
        other_generation.address(1 << 16),
        PoolTag::new(33, 5).unwrap().address(1 << 16),
        u64::MAX,
        1 << 63,
        0xffff << 48,
    ];
    for address in nowhere {
        let refused = |error| matches!(error, Error::NoSuchPool(_));
        assert!(refused(member.free(address).unwrap_err()), "{address:#x}");
        assert!(refused(member.share(address).unwrap_err()));
        assert!(refused(member.check(address, 1).unwrap_err()));
        assert!(refused(member.bytes(address, 1).unwrap_err()));
        assert!(refused(member.pin(address).map(drop_pin).unwrap_err()));
    }
    for offset in [0, 1, 1 << 16, (1 << 48) - 1] {
        assert!(member.free(pool.tag().address(offset)).is_err());
        assert!(member.share(pool.tag().address(offset)).is_err());
    }
    assert!(
        matches!(member.alloc_in(pool.tag(), 64), Err(Error::NoSuchPool(_))),
        "without a handle"
    );
    assert_eq!(node.references(&pool), 2);
    keeper.unpin(keep);
}

fn drop_pin(_: crate::Pin) {}

#[test]
fn what_is_private_goes_with_the_last_use() {
    let node = Node::new();
    let pool = node.pool();
    let (_, member) = node.member();
    let (_, other) = node.member();
    let handle = member.pin(pool.tag().address(0)).unwrap();
    let mut shared = Vec::new();
    for length in SIZES.iter().cycle().take(30) {
        let block = member.alloc_in(pool.tag(), *length).unwrap();
        if shared.len() % 2 == 0 {
            member.share(block.offset).unwrap();
        }
        shared.push(block.offset);
    }
    assert_eq!(node.references(&pool), 2);
    member.unpin(handle);
    assert_eq!(node.references(&pool), 1);
    assert_eq!(pool.stats().unwrap().blocks, 15);
    // Its lists are empty: the slot may use another pool of that number.
    let slot = node.control.slot(member.slot().index).unwrap();
    let number = pool.number() as usize;
    assert_eq!(slot.slabs[number].load(Ordering::Relaxed), 0);
    assert_eq!(slot.extents[number].load(Ordering::Relaxed), 0);
    let again = member.pin(pool.tag().address(0)).unwrap();
    for offset in shared {
        let _ = other.free(offset);
    }
    assert_eq!(used(&pool), 0);
    let all = member
        .alloc_in(pool.tag(), pool.limit() - (64 << 10))
        .unwrap();
    member.free(all.offset).unwrap();
    member.unpin(again);
}

#[test]
fn a_last_use_that_cannot_end_goes_on_with_the_next() {
    let node = Node::new();
    let pool = node.pool();
    let (slot, member) = node.member();
    let handle = member.pin(pool.tag().address(0)).unwrap();
    for length in SIZES {
        member.alloc_in(pool.tag(), length).unwrap();
    }
    let busy: Vec<_> = std::iter::from_fn(|| member.thread().ok()).collect();
    assert!(busy.len() > 1000);
    member.unpin(handle);
    drop(busy);
    // What was private there is in the lists still, and recovery would find it.
    let again = member.pin(pool.tag().address(0)).unwrap();
    assert_eq!(
        (node.references(&pool), pool.stats().unwrap().blocks),
        (2, 3)
    );
    let entry = node.control.slot(slot.index).unwrap();
    assert_ne!(
        entry.slabs[pool.number() as usize].load(Ordering::Relaxed),
        0
    );
    member.alloc_in(pool.tag(), 64).unwrap();
    member.unpin(again);
    assert!(
        node.table.find(pool.tag()).is_err(),
        "empty, and nobody needs it"
    );
}

#[test]
fn recovery_looks_at_the_pools_that_the_process_used() {
    let node = Node::new();
    let pools: Vec<_> = (0..4).map(|_| node.pool()).collect();
    // One that keeps them in place meanwhile, though they are empty.
    let (_, keeper) = node.member();
    let keep: Vec<_> = pools
        .iter()
        .map(|pool| keeper.pin(pool.tag().address(0)).unwrap())
        .collect();
    let (dead, dying) = node.member();
    let (_, living) = node.member();
    let (mut shared, mut handles) = (Vec::new(), Vec::new());
    for pool in &pools[..3] {
        // Never given back: it dies.
        handles.push(dying.pin(pool.tag().address(0)).unwrap());
        for length in SIZES {
            let block = dying.alloc_in(pool.tag(), length).unwrap();
            dying.share(block.offset).unwrap();
            shared.push(block.offset);
            dying.alloc_in(pool.tag(), length).unwrap();
        }
    }
    dying.alloc(100).unwrap();
    let slot = node.control.slot(dead.index).unwrap();
    assert_eq!(slot.pools.load(Ordering::Relaxed), 0b1110);
    node.recover(dead);
    for pool in &pools[..3] {
        assert_eq!(pool.stats().unwrap().blocks, 3);
    }
    assert_eq!(used(&node.default), 0);
    assert_eq!(slot.pools.load(Ordering::Relaxed), 0);
    for offset in shared {
        living.free(offset).unwrap();
    }
    for pool in &pools {
        assert_eq!((used(pool), node.references(pool)), (0, 2));
    }
    for pin in keep {
        keeper.unpin(pin);
    }
    for pool in &pools {
        assert!(node.table.find(pool.tag()).is_err(), "nobody needs it");
    }
}

#[test]
fn threads_that_begin_and_end_uses_at_once_agree() {
    let node = Node::new();
    let pool = node.pool();
    let (_, keeper) = node.member();
    let keep = keeper.pin(pool.tag().address(0)).unwrap();
    let (_, member) = node.member();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (member, pool) = (&member, &pool);
            scope.spawn(move || {
                for _ in 0..300 {
                    let pin = member.pin(pool.tag().address(0)).unwrap();
                    let block = member.alloc_in(pool.tag(), 100);
                    // Another thread's use may have ended in between, never this one's.
                    let block = block.unwrap();
                    member.write(block.offset, 0, &[1; 100]).unwrap();
                    member.free(block.offset).unwrap();
                    member.unpin(pin);
                }
            });
        }
    });
    assert_eq!(used(&pool), 0);
    assert_eq!(node.references(&pool), 2);
    keeper.unpin(keep);
    let held = node.control.held(member.slot().index).unwrap();
    assert!(held.iter().all(|entry| entry.is_empty()));
}

#[test]
fn a_pool_lives_as_long_as_somebody_needs_it() {
    let node = Node::new();
    let (_, maker) = node.member();
    let (_, reader) = node.member();
    let options = PoolOptions {
        limit: 8 << 20,
        name: "images".to_owned(),
        minimum_block: 4096,
        user: 77,
        ..PoolOptions::default()
    };
    let (tag, id, pin) = maker.create_pool(&options).unwrap();
    assert_eq!(node.control.entry(id).unwrap().references(), 2);
    assert_eq!(
        node.control.entry(id).unwrap().user.load(Ordering::Relaxed),
        77
    );
    let block = maker.alloc_in(tag, 100).unwrap();
    assert_eq!(maker.block_room(block.offset).unwrap(), 4096);
    maker.write(block.offset, 0, b"lives on").unwrap();
    maker.share(block.offset).unwrap();
    maker.unpin(pin);
    // Nobody refers to it, but it holds what was shared.
    let mut bytes = [0; 8];
    reader.read(block.offset, 0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"lives on");
    let data = node.table.numbered(tag.number()).unwrap().data().clone();
    assert!(data.resident().unwrap() >= CHUNK);
    reader.free(block.offset).unwrap();
    assert!(node.table.find(tag).is_err(), "now it is gone");
    assert_eq!(data.resident().unwrap(), 0, "and its memory");
    assert!(node.control.entry(id).is_err());
    assert!(matches!(reader.pin_object(id), Err(Error::NoSuchObject(_))));
    assert!(matches!(
        reader.free(block.offset),
        Err(Error::NoSuchPool(_))
    ));
}

#[test]
fn a_destroyed_pool_gives_no_more_and_goes_with_its_last_user() {
    let node = Node::new();
    let (_, maker) = node.member();
    let (_, reader) = node.member();
    let (_, late) = node.member();
    let (tag, id, pin) = maker.create_pool(&PoolOptions::default()).unwrap();
    let block = maker.alloc_in(tag, 100_000).unwrap();
    maker.share(block.offset).unwrap();
    let lease = reader.pin(block.offset).unwrap();
    assert!(node.control.mark_destroyed(id).unwrap());
    assert_eq!(maker.alloc_in(tag, 64), Err(Error::Destroyed(id)));
    assert!(matches!(late.pin(block.offset), Err(Error::Destroyed(_))));
    assert!(matches!(late.pin_object(id), Err(Error::Destroyed(_))));
    maker.unpin(pin);
    reader.check(block.offset, 100_000).unwrap();
    let data = node.table.numbered(tag.number()).unwrap().data().clone();
    assert!(data.resident().unwrap() >= CHUNK);
    reader.unpin(lease);
    assert_eq!(data.resident().unwrap(), 0);
    assert!(matches!(late.pin(block.offset), Err(Error::NoSuchPool(_))));
}

#[test]
fn numbers_of_pools_come_round_under_new_generations() {
    let node = Node::new();
    let (_, member) = node.member();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..200 {
        let options = PoolOptions {
            limit: 1,
            ..PoolOptions::default()
        };
        let (tag, id, pin) = member.create_pool(&options).unwrap();
        assert!(seen.insert(tag), "{tag} again");
        let block = member.alloc_in(tag, 64).unwrap();
        node.control.mark_destroyed(id).unwrap();
        member.unpin(pin);
        assert!(member.free(block.offset).is_err());
    }
    // All at once.
    let mut pins = Vec::new();
    let error = loop {
        match member.create_pool(&PoolOptions::default()) {
            Ok((tag, _, pin)) => {
                assert!(seen.insert(tag));
                pins.push(pin);
            }
            Err(error) => break error,
        }
    };
    assert_eq!(pins.len(), slot::MAX_POOLS - 1);
    assert!(
        matches!(error, Error::TableFull { size: 64, .. }),
        "{error}"
    );
    for pin in pins {
        member.unpin(pin);
    }
    assert_eq!(node.table.all().len(), 1);
}

#[test]
fn a_pool_whose_asker_dies_before_he_has_it_is_taken_back() {
    let node = Node::new();
    let (asker, _) = node.member();
    let (pool, id) = node.table.create(&PoolOptions::default(), asker).unwrap();
    assert!(node.table.find(pool.tag()).is_ok());
    node.recover(asker);
    assert!(node.table.find(pool.tag()).is_err());
    assert!(node.control.entry(id).is_err());
}

#[test]
fn memory_that_no_block_uses_is_released_when_it_is_needed() {
    let purse = Purse(Arc::new(AtomicU64::new(u64::MAX)));
    let node = Node::within(Box::new(purse.clone()));
    let (_, member) = node.member();
    let (tag, _, pin) = member.create_pool(&PoolOptions::default()).unwrap();
    let pool = node.table.numbered(tag.number()).unwrap();
    let large = member.alloc_in(tag, 20 << 20).unwrap();
    let small = member.alloc_in(tag, 100).unwrap();
    let committed = pool.stats().unwrap().committed;
    member.free(large.offset).unwrap();
    // The next commit would be refused: what the pool does not use goes first, in this pool and in others.
    purse.0.store(0, Ordering::Relaxed);
    let error = member.alloc(1 << 20).unwrap_err();
    assert!(matches!(error, Error::OutOfCgroupMemory(_)), "{error}");
    let stats = pool.stats().unwrap();
    assert!(
        stats.committed <= committed - (18 << 20),
        "{stats:?} of {committed}"
    );
    assert!(pool.data().resident().unwrap() <= stats.committed);
    member.check(small.offset, 100).unwrap();
    // It comes back where it was.
    purse.0.store(u64::MAX, Ordering::Relaxed);
    let again = member.alloc_in(tag, 20 << 20).unwrap();
    member.write(again.offset, (20 << 20) - 1, &[1]).unwrap();
    assert!(pool.committed() <= committed + CHUNK);
    member.free(again.offset).unwrap();
    assert!(member.hooks().trim().unwrap() >= 18 << 20);
    assert_eq!(member.hooks().trim().unwrap(), 0, "nothing is left to give");
    for length in [64, 3000, 60_000, 5 << 20] {
        let block = member.alloc_in(tag, length).unwrap();
        member.write(block.offset, length - 1, &[1]).unwrap();
        member.free(block.offset).unwrap();
    }
    member.free(small.offset).unwrap();
    member.unpin(pin);
}

#[test]
fn a_commit_that_is_refused_half_way_takes_nothing() {
    let purse = Purse(Arc::new(AtomicU64::new(100 << 20)));
    let node = Node::within(Box::new(purse.clone()));
    let pool = node.pool();
    let before = pool.data().resident().unwrap();
    let asked = std::cell::Cell::new(0);
    let refused = pool.commit_within(50 << 20, |more| {
        asked.set(asked.get() + 1);
        if asked.get() == 3 {
            return Err(Error::OutOfCgroupMemory(format!("{more}")));
        }
        Ok(())
    });
    assert!(refused.is_err());
    assert_eq!(pool.committed(), 0);
    assert!(pool.data().resident().unwrap() <= before + 4096);
    pool.commit_within(50 << 20, |_| Ok(())).unwrap();
}

#[test]
fn an_empty_pool_touches_almost_nothing() {
    let node = Node::new();
    let (_, member) = node.member();
    let options = PoolOptions {
        limit: 1 << 40,
        ..PoolOptions::default()
    };
    let (tag, _, pin) = member.create_pool(&options).unwrap();
    let pool = node.table.numbered(tag.number()).unwrap();
    let touched = pool.meta().resident().unwrap() + pool.data().resident().unwrap();
    println!("an empty pool of 1 TiB touches {touched} bytes");
    assert!(touched <= 64 << 10);
    // Statistics do not make it more.
    assert_eq!(pool.stats().unwrap().blocks, 0);
    assert_eq!(
        pool.meta().resident().unwrap() + pool.data().resident().unwrap(),
        touched
    );
    member.unpin(pin);
}

#[test]
fn errors_name_the_pool_and_the_way_out() {
    let node = Node::new();
    let (_, member) = node.member();
    let options = PoolOptions {
        limit: 4 << 20,
        name: "images".to_owned(),
        ..PoolOptions::default()
    };
    let (tag, _, pin) = member.create_pool(&options).unwrap();
    let error = member.alloc_in(tag, 5 << 20).unwrap_err().to_string();
    for word in ["'images'", "5242880", "4194304", "free", "larger limit"] {
        assert!(error.contains(word), "{error}");
    }
    member.unpin(pin);
    for (options, word) in [
        (
            PoolOptions {
                limit: 0,
                ..PoolOptions::default()
            },
            "limit",
        ),
        (
            PoolOptions {
                limit: u64::MAX,
                ..PoolOptions::default()
            },
            "limit",
        ),
        (
            PoolOptions {
                minimum_block: 65,
                ..PoolOptions::default()
            },
            "65",
        ),
        (
            PoolOptions {
                minimum_block: 0,
                ..PoolOptions::default()
            },
            "minimum",
        ),
        (
            PoolOptions {
                name: "n".repeat(65),
                ..PoolOptions::default()
            },
            "65",
        ),
        (
            PoolOptions {
                numa_node: Some(999),
                ..PoolOptions::default()
            },
            "NUMA node 999",
        ),
        (
            PoolOptions {
                file: b"relative".to_vec(),
                ..PoolOptions::default()
            },
            "file",
        ),
        (
            PoolOptions {
                file: b"/no/such/folder/f".to_vec(),
                ..PoolOptions::default()
            },
            "/no/such",
        ),
    ] {
        let error = member.create_pool(&options).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    assert_eq!(node.table.all().len(), 1, "nothing is left of them");
}
