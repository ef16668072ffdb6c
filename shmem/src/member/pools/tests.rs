//! Several pools of one node, as several processes see them.

use std::sync::Arc;
use std::sync::Mutex;

use dragon_protocol::{NodeIndex, ObjectId, ObjectKind, RuntimeId, SlotId};

use crate::error::{Error, Result};
use crate::recover::{recover_memory, reset_threads};
use crate::sync::Ordering;
use crate::{Control, Hooks, Member, Pool, PoolTag};

const RUNTIME: RuntimeId = RuntimeId(7);
const SIZES: [u64; 3] = [64, 32 << 10, 300_000];

/// The pools of a node, with their objects. What a daemon has.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<Vec<(Pool, ObjectId)>>>);

struct Local {
    default: Pool,
    table: Table,
}

impl Hooks for Local {
    fn commit(&self, pool: u32, bytes: u64) -> Result<()> {
        match self.numbered_pool(pool) {
            Some(pool) => pool.commit(bytes),
            None => self.default.commit(bytes),
        }
    }

    fn notify(&self, _: ObjectId) {}

    fn pool(&self, tag: PoolTag) -> Result<(Pool, ObjectId)> {
        let table = self.table.0.lock().unwrap();
        let found = table.iter().find(|(pool, _)| pool.tag() == tag);
        let (pool, object) = found.ok_or(Error::NoSuchPool(tag))?;
        // As another process has it: mapped anew.
        let fd = |region: &crate::Region| {
            let fd = region.fd().unwrap().try_clone_to_owned().unwrap();
            (fd, region.size())
        };
        let mapped = Pool::map(RUNTIME, pool.number(), fd(pool.meta()), fd(pool.data()))?;
        Ok((mapped, *object))
    }

    fn numbered_pool(&self, number: u32) -> Option<Pool> {
        let table = self.table.0.lock().unwrap();
        let found = table.iter().find(|(pool, _)| pool.number() == number);
        found.map(|(pool, _)| pool.clone())
    }
}

struct Node {
    control: Control,
    default: Pool,
    table: Table,
    daemon: Arc<Member>,
}

impl Node {
    fn new() -> Self {
        let control = Control::create(RUNTIME, NodeIndex::FIRST, 2).unwrap();
        let default = Pool::create(RUNTIME, NodeIndex::FIRST, 0, 64 << 20).unwrap();
        let table = Table::default();
        let slot = control.claim_daemon_slot().unwrap();
        let daemon = join(&control, &default, &table, slot);
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

    fn pool(&self, number: u32) -> Pool {
        let tag = PoolTag::new(number, 5).unwrap();
        let pool = Pool::create_tagged(RUNTIME, NodeIndex::FIRST, tag, 64 << 20).unwrap();
        let object = self.daemon.create(ObjectKind::Pool, |_, _| Ok(())).unwrap();
        self.table.0.lock().unwrap().push((pool.clone(), object));
        pool
    }

    fn object(&self, pool: &Pool) -> ObjectId {
        let table = self.table.0.lock().unwrap();
        let found = table.iter().find(|(other, _)| other.tag() == pool.tag());
        found.unwrap().1
    }

    fn recover(&self, slot: SlotId) {
        reset_threads(&self.control, slot).unwrap();
        recover_memory(&self.control, &*self.daemon, slot).unwrap();
    }

    fn references(&self, pool: &Pool) -> u32 {
        self.control.entry(self.object(pool)).unwrap().references()
    }
}

fn join(control: &Control, default: &Pool, table: &Table, slot: SlotId) -> Arc<Member> {
    let hooks = Local {
        default: default.clone(),
        table: table.clone(),
    };
    Member::new(control.clone(), default.clone(), slot, Box::new(hooks)).unwrap()
}

fn used(pool: &Pool) -> u64 {
    pool.stats().unwrap().used
}

#[test]
fn blocks_of_any_pool_are_used_by_their_address() {
    let node = Node::new();
    let (first, last) = (node.pool(1), node.pool(63));
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
        a.unpin(handle);
        assert_eq!(used(pool), 0);
        assert_eq!(node.references(pool), 1, "the daemon's own");
    }
    assert_eq!(used(&node.default), 0);
}

#[test]
fn addresses_of_no_pool_are_refused() {
    let node = Node::new();
    let pool = node.pool(2);
    let (_, member) = node.member();
    let other_generation = PoolTag::new(2, 6).unwrap();
    let nowhere = [
        other_generation.address(1 << 16),
        PoolTag::new(3, 5).unwrap().address(1 << 16),
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
    assert_eq!(node.references(&pool), 1);
}

fn drop_pin(_: crate::Pin) {}

#[test]
fn what_is_private_goes_with_the_last_use() {
    let node = Node::new();
    let pool = node.pool(4);
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
    assert_eq!(slot.slabs[4].load(Ordering::Relaxed), 0);
    assert_eq!(slot.extents[4].load(Ordering::Relaxed), 0);
    for offset in shared {
        let _ = other.free(offset);
    }
    assert_eq!(used(&pool), 0);
    let again = member.pin(pool.tag().address(0)).unwrap();
    let all = member
        .alloc_in(pool.tag(), pool.limit() - (64 << 10))
        .unwrap();
    member.free(all.offset).unwrap();
    member.unpin(again);
}

#[test]
fn recovery_looks_at_the_pools_that_the_process_used() {
    let node = Node::new();
    let pools: Vec<_> = [1, 2, 7, 63].map(|number| node.pool(number)).to_vec();
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
    assert_eq!(slot.pools.load(Ordering::Relaxed), 1 << 1 | 1 << 2 | 1 << 7);
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
        assert_eq!(used(pool), 0);
    }
}

#[test]
fn threads_that_begin_and_end_uses_at_once_agree() {
    let node = Node::new();
    let pool = node.pool(9);
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
    assert_eq!(node.references(&pool), 1);
    let held = node.control.held(member.slot().index).unwrap();
    assert!(held.iter().all(|entry| entry.is_empty()));
}
