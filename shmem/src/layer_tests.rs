//! Regions, slots, references, futex waits and the held table.

use std::sync::Arc;

use dragon_protocol::{NodeIndex, ObjectId, ObjectKind, RuntimeId, SlotId};

use crate::control::{self, MAX_HELD, MAX_SLOTS};
use crate::error::{Error, Result};
use crate::held::State;
use crate::pool::CHUNK;
use crate::recover::{self, Found};
use crate::reference::{Change, Outcome};
use crate::region::Region;
use crate::sync::{AtomicU32, Ordering};
use crate::{Control, Deadline, Hooks, Member, Pool, WaitResult, futex, slot};

const RUNTIME: RuntimeId = RuntimeId(7);

struct Direct(Pool);

impl Hooks for Direct {
    fn commit(&self, _: u32, bytes: u64) -> Result<()> {
        self.0.commit(bytes)
    }
    fn notify(&self, _: ObjectId) {}
}

fn node() -> (Control, Pool) {
    (
        Control::create(RUNTIME, NodeIndex::FIRST, 2).unwrap(),
        Pool::create(RUNTIME, NodeIndex::FIRST, 0, 16 * CHUNK).unwrap(),
    )
}

fn member(control: &Control, pool: &Pool) -> Arc<Member> {
    let slot = control.claim_slot(1).unwrap();
    let hooks = Box::new(Direct(pool.clone()));
    Member::new(control.clone(), pool.clone(), slot, hooks).unwrap()
}

fn fd_of(region: &Region) -> std::os::fd::OwnedFd {
    region.fd().unwrap().try_clone_to_owned().unwrap()
}

#[test]
fn a_region_is_refused_when_anything_about_it_differs() {
    let region = Region::create("test", 5, RUNTIME, 8192).unwrap();
    Region::map(fd_of(&region), 8192, 5, RUNTIME).unwrap();
    let what = |kind, size, runtime| match Region::map(fd_of(&region), size, kind, runtime) {
        Err(Error::Region { what, .. }) => what,
        Err(Error::OtherRuntime { .. }) => "runtime",
        other => panic!("{other:?}"),
    };
    assert_eq!(what(6, 8192, RUNTIME), "kind");
    assert_eq!(what(5, 4096, RUNTIME), "size");
    assert_eq!(what(5, 8192, RuntimeId(8)), "runtime");
    let magic = region.view::<AtomicU32>(0).unwrap();
    let layout = region.view::<AtomicU32>(8).unwrap();
    layout.fetch_add(1, Ordering::Relaxed);
    assert_eq!(what(5, 8192, RUNTIME), "layout version");
    magic.store(0, Ordering::Relaxed);
    assert_eq!(what(5, 8192, RUNTIME), "magic");
    let unsealed = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&unsealed, 8192).unwrap();
    let refused = Region::map(unsealed, 8192, 5, RUNTIME);
    assert!(
        matches!(refused, Err(Error::Region { what: "seals", .. })),
        "{refused:?}"
    );
}

#[test]
fn a_sealed_region_cannot_be_truncated() {
    let region = Region::create("test", 5, RUNTIME, 8192).unwrap();
    for size in [0, 4096, 16384] {
        assert!(
            rustix::fs::ftruncate(region.fd().unwrap(), size).is_err(),
            "{size}"
        );
    }
}

#[test]
fn nothing_outside_a_region_can_be_reached() {
    let region = Region::create("test", 5, RUNTIME, 8192).unwrap();
    let mut bytes = [0; 16];
    for offset in [8177, 8192, u64::MAX - 8, u64::MAX] {
        assert!(region.copy_in(offset, &[0; 16]).is_err(), "{offset}");
        assert!(region.copy_out(offset, &mut bytes).is_err(), "{offset}");
        assert!(region.slice::<AtomicU32>(offset & !3, 5).is_err());
    }
    assert!(region.view::<AtomicU32>(66).is_err(), "not aligned");
    assert!(region.slice::<AtomicU32>(64, usize::MAX).is_err());
    region.copy_in(8176, &[3; 16]).unwrap();
    region.copy_out(8176, &mut bytes).unwrap();
    assert_eq!(bytes, [3; 16]);
}

#[test]
fn objects_are_listed_as_long_as_somebody_refers_to_them() {
    let (control, pool) = node();
    let member = member(&control, &pool);
    assert_eq!(control.objects().count(), 0);
    let make = |kind| member.create(kind, |_, _| Ok(())).unwrap();
    let made = [
        make(ObjectKind::Lock),
        make(ObjectKind::Event),
        make(ObjectKind::Lock),
    ];
    let listed = || control.objects().map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!(listed(), made);
    member.detach(made[1]).unwrap();
    assert_eq!(listed(), [made[0], made[2]]);
}

#[test]
fn slots_are_given_out_lowest_first_under_a_new_generation() {
    let (control, _) = node();
    control.claim_daemon_slot().unwrap();
    let (a, b) = (
        control.claim_slot(10).unwrap(),
        control.claim_slot(11).unwrap(),
    );
    assert_eq!((a.index, b.index), (1, 2));
    assert_eq!(
        (control.slot_pid(a), control.slot_pid(b)),
        (Some(10), Some(11))
    );
    control.release_slot(a).unwrap();
    assert!(!control.slot_is(a) && control.slot_pid(a).is_none());
    let remote = SlotId {
        index: 4,
        generation: 9,
    };
    let there = NodeIndex::new(3).unwrap();
    let proxy = control.claim_proxy(there, remote).unwrap();
    assert_eq!((proxy.index, proxy.generation), (1, a.generation + 1));
    assert!(control.release_slot(a).is_err(), "it is another's by now");
    assert_eq!(control.slot_pid(proxy), None);
    let listed: Vec<_> = control
        .slots()
        .map(|(id, slot)| (id.index, slot.state(), slot.remote()))
        .collect();
    assert_eq!(
        listed,
        [
            (0, slot::PROCESS, None),
            (1, slot::PROXY, Some((there, remote))),
            (2, slot::PROCESS, None)
        ]
    );
    assert!(control.slot(MAX_SLOTS).is_err());
    assert!(control.object(control::MAX_OBJECTS).is_err());
    assert!(control.held_entry(u32::MAX, 0).is_err() && control.held_entry(0, MAX_HELD).is_err());
    assert!(control.held(u32::MAX).is_err() && control.threads(MAX_SLOTS).is_err());
}

#[test]
fn what_a_process_counted_outlives_it() {
    let (control, _) = node();
    let gone = control.claim_slot(1).unwrap();
    let here = control.claim_slot(1).unwrap();
    for id in [gone, here] {
        let sends = &control.slot(id.index).unwrap().counters.sends;
        sends.store(5, Ordering::Relaxed);
    }
    control.release_slot(gone).unwrap();
    assert_eq!(control.totals().sends.load(Ordering::Relaxed), 10);
}

#[test]
fn an_object_lives_as_long_as_somebody_refers_to_it() {
    let (control, pool) = node();
    let (a, b) = (member(&control, &pool), member(&control, &pool));
    let id = a
        .create(ObjectKind::Channel, |entry, _| {
            let block = a.alloc(100_000)?;
            entry.block.store(block.offset, Ordering::Release);
            a.share(block.offset)
        })
        .unwrap();
    let entry = control.entry(id).unwrap();
    a.export(id).unwrap();
    assert_eq!((entry.references(), entry.in_transit()), (2, 1));
    b.attach(id, true).unwrap();
    assert_eq!((entry.references(), entry.in_transit()), (2, 0));
    b.attach(id, false).unwrap();
    assert_eq!(
        entry.references(),
        2,
        "one reference for all handles of a process"
    );
    assert!(control.mark_destroyed(id).unwrap());
    assert!(!control.mark_destroyed(id).unwrap(), "once");
    a.detach(id).unwrap();
    b.detach(id).unwrap();
    assert_eq!(pool.stats().unwrap().blocks, 1);
    b.detach(id).unwrap();
    assert_eq!(pool.stats().unwrap().blocks, 0);
    assert_eq!(control.entry(id).err(), Some(Error::NoSuchObject(id)));
}

#[test]
fn a_late_change_never_meets_the_next_object_of_an_entry() {
    let (control, pool) = node();
    let member = member(&control, &pool);
    let old = member.create(ObjectKind::Lock, |_, _| Ok(())).unwrap();
    member.detach(old).unwrap();
    let new = member.create(ObjectKind::Lock, |_, _| Ok(())).unwrap();
    assert_eq!(new.index, old.index, "the case that is meant");
    assert!(member.attach(old, false).is_err());
    assert!(member.export(old).is_err());
    assert!(member.drop_transit(old).is_err());
    for change in [Change::Take, Change::Export, Change::Give, Change::Drop] {
        assert!(control.change_directly(old, change).is_err(), "{change:?}");
    }
    assert!(control.mark_destroyed(old).is_err());
    assert_eq!(control.entry(new).unwrap().references(), 1);
    let other = ObjectId {
        kind: ObjectKind::Event,
        ..new
    };
    assert_eq!(control.entry(other).err(), Some(Error::WrongKind(other)));
}

#[test]
fn a_creation_that_fails_leaves_nothing() {
    let (control, pool) = node();
    let member = member(&control, &pool);
    let failed = member.create(ObjectKind::Lock, |_, id| Err(Error::NoSuchObject(id)));
    let Err(Error::NoSuchObject(id)) = failed else {
        panic!("{failed:?}");
    };
    assert!(control.entry(id).is_err());
    let held = control.held(member.slot().index).unwrap();
    assert!(held.iter().all(|entry| entry.is_empty()));
}

/// A process dies when it has named the entry that it was about to claim, and another process was quicker, or another thread
/// of its own: the object is theirs.
#[test]
fn a_claim_that_another_won_is_not_given_back() {
    let (control, pool) = node();
    let [dead, other] = [(); 2].map(|()| member(&control, &pool));
    for winner in [&other, &dead] {
        let entry = control.held_entry(dead.slot().index, 9).unwrap();
        let mut won = None;
        let claimed = control.claim_object(ObjectKind::Event, dead.slot(), |id| {
            if won.is_none() {
                entry.set(id, 0, State::Claiming);
                won = Some(winner.create(ObjectKind::Event, |_, _| Ok(())).unwrap());
                assert_eq!(won, Some(id));
            }
        });
        assert_ne!(claimed.ok(), won);
        // Others read the table when the process is dead; it has used so many places.
        let top = &control.slot(dead.slot().index).unwrap().held_top;
        let before = top.swap(10, Ordering::AcqRel);
        let found = recover::held(&control, dead.slot()).unwrap();
        top.store(before, Ordering::Release);
        let own = won.filter(|_| winner.slot() == dead.slot());
        let own: Vec<_> = own.into_iter().map(Found::Object).collect();
        assert_eq!(found, own, "only what the process has by its other places");
        entry.clear();
    }
}

#[test]
fn a_full_held_table_says_so_and_recovers() {
    let (control, pool) = node();
    let member = member(&control, &pool);
    let places: Vec<_> = (0..MAX_HELD)
        .map(|n| member.hold_block(u64::from(n) * 64).unwrap())
        .collect();
    assert!(matches!(
        member.hold_block(0),
        Err(Error::TableFull { size: MAX_HELD, .. })
    ));
    for place in places {
        member.release_block(place);
    }
    member.hold_block(64).unwrap();
}

#[test]
fn held_entries_that_were_scribbled_over_say_nothing() {
    let (control, _) = node();
    let entry = control.held_entry(3, 5).unwrap();
    let here = NodeIndex::FIRST;
    let id = ObjectId {
        node: NodeIndex::new(NodeIndex::MAX).unwrap(),
        kind: ObjectKind::Semaphore,
        index: 77,
        generation: u32::MAX,
    };
    entry.set_remote(id);
    assert_eq!(entry.get(here), Some((id, State::Remote)));
    let id = ObjectId { node: here, ..id };
    entry.set(id, 8, State::Giving);
    assert_eq!(entry.get(here), Some((id, State::Giving)));
    entry.mark(id.index, 7, Change::Give, Outcome::Done);
    entry.mark(id.index, 8, Change::Take, Outcome::Done);
    entry.mark(id.index + 1, 8, Change::Give, Outcome::Done);
    assert_eq!(entry.get(here), Some((id, State::Giving)), "not meant");
    entry.mark(id.index, 8, Change::Give, Outcome::Last);
    assert_eq!(entry.get(here), Some((id, State::Last)));
    entry.set_block(4096);
    assert_eq!((entry.get(here), entry.block()), (None, Some(4096)));
    entry.clear();
    assert_eq!((entry.get(here), entry.block()), (None, None));
}

#[test]
fn many_threads_have_a_record_each() {
    let (control, pool) = node();
    let member = member(&control, &pool);
    let ordinary = control::SPARE_THREADS..control::MAX_THREADS;
    let together = std::sync::Barrier::new(ordinary.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = ordinary
            .clone()
            .map(|_| {
                scope.spawn(|| {
                    let guard = member.thread().unwrap();
                    together.wait();
                    let more = member.thread().is_err();
                    together.wait();
                    (guard.index(), more)
                })
            })
            .collect();
        let mut seen: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        seen.sort_unstable();
        let expected: Vec<_> = ordinary.map(|n| (n, true)).collect();
        assert_eq!(seen, expected);
    });
    member.thread().unwrap();
}

/// A process whose threads have all records in use can free whatever it may free, also several threads of it at once.
#[test]
fn freeing_needs_no_free_record() {
    const LENGTHS: [u64; 5] = [100, 3_000, 65_000, 100_000, 1 << 20];
    let (control, pool) = node();
    let (member, other) = (member(&control, &pool), member(&control, &pool));
    let before = pool.stats().unwrap().used;
    let mut blocks = Vec::new();
    for length in LENGTHS.iter().cycle().take(20) {
        let theirs = other.alloc(*length).unwrap().offset;
        other.share(theirs).unwrap();
        blocks.extend([theirs, member.alloc(*length).unwrap().offset]);
    }
    let busy: Vec<_> = std::iter::from_fn(|| member.thread().ok()).collect();
    assert!(!busy.is_empty());
    std::thread::scope(|scope| {
        for blocks in blocks.chunks(10) {
            scope.spawn(|| blocks.iter().for_each(|block| member.free(*block).unwrap()));
        }
    });
    assert_eq!(pool.stats().unwrap().used, before);
    // One that empties an object frees inside.
    let block = other.alloc(100).unwrap().offset;
    other.share(block).unwrap();
    let emptying = member.thread_to_empty().unwrap();
    member.free(block).unwrap();
    assert!(emptying.index() < control::SPARE_THREADS);
    assert_eq!(pool.stats().unwrap().used, before);
}

#[test]
fn threads_of_one_process_share_its_allocator() {
    let (control, pool) = node();
    let member = member(&control, &pool);
    std::thread::scope(|scope| {
        for byte in 1..=4 {
            let (member, pool) = (&member, &pool);
            scope.spawn(move || {
                for round in 0..500_u64 {
                    let length = 1 + round * 97 % 70_000;
                    let block = member.alloc(length).unwrap();
                    pool.write(block.offset, 0, &[byte; 1]).unwrap();
                    pool.write(block.offset, length - 1, &[byte; 1]).unwrap();
                    if round % 2 == 0 {
                        member.share(block.offset).unwrap();
                    }
                    let mut ends = [0; 2];
                    pool.read(block.offset, 0, &mut ends[..1]).unwrap();
                    pool.read(block.offset, length - 1, &mut ends[1..]).unwrap();
                    assert_eq!(ends, [byte; 2]);
                    member.free(block.offset).unwrap();
                }
            });
        }
    });
    assert_eq!(pool.stats().unwrap().used, 0);
}

#[test]
fn commits_of_several_threads_add_up() {
    let (_, pool) = node();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| pool.commit(2 * CHUNK).unwrap());
        }
    });
    assert_eq!(pool.committed(), 16 * CHUNK);
    assert!(matches!(pool.commit(1), Err(Error::OutOfMemory { .. })));
}

#[test]
fn a_wait_ends_by_change_deadline_or_wake() {
    let word = AtomicU32::new(1);
    assert_eq!(futex::wait(&word, 0, Deadline::Never), WaitResult::Changed);
    assert_eq!(futex::wait(&word, 1, Deadline::Now), WaitResult::TimedOut);
    let soon = Deadline::after(1_000_000);
    while futex::wait(&word, 1, soon) != WaitResult::TimedOut {}
    assert!(soon.passed());
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            while word.load(Ordering::Acquire) == 1 {
                let _ = futex::wait(&word, 1, Deadline::Never);
            }
        });
        word.store(2, Ordering::Release);
        futex::wake(&word, u32::MAX);
        sleeper.join().unwrap();
    });
    for deadline in [Deadline::Now, Deadline::Never, Deadline::At(5)] {
        assert_eq!(Deadline::from_wire(deadline.to_wire()), deadline);
    }
}
