//! Each point at which a process can die inside the allocator, made by hand, and what recovery does there.

use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use dragon_protocol::SlotId;
use dragon_protocol::op::Op;

use super::tests::{member, node};
use super::{Cache, Pool, ThreadRef, extent, slab};
use crate::recover::{recover_memory, reset_threads};
use crate::{Control, Member};

pub(super) struct Scene {
    pub(super) control: Control,
    pub(super) pool: Pool,
    pub(super) living: Arc<Member>,
    pub(super) dead: SlotId,
    pub(super) dying: Arc<Member>,
}

pub(super) fn scene() -> Scene {
    let (control, pool) = node(64 << 20);
    pool.commit(64 << 20).unwrap();
    let (_, living) = member(&control, &pool);
    let (dead, dying) = member(&control, &pool);
    Scene {
        control,
        pool,
        living,
        dead,
        dying,
    }
}

impl Scene {
    /// In the order of the daemon: what the threads were doing must survive the first step.
    pub(super) fn recover(&self) {
        reset_threads(&self.control, self.dead).unwrap();
        recover_memory(&self.control, &self.pool, self.dead).unwrap();
        let records = self.control.threads(self.dead.index).unwrap();
        assert!(!records[0].is_touched());
    }

    fn blocks(&self) -> u64 {
        self.pool.stats().unwrap().blocks
    }

    /// The dying process frees, and dies when the free is announced.
    fn die_freeing(&self, offset: u64) {
        let thread = ManuallyDrop::new(self.dying.thread().unwrap());
        let cache = Mutex::new(Cache::default());
        let slot = self.control.slot(self.dead.index).unwrap();
        let died = catch_unwind(AssertUnwindSafe(|| {
            let thread = || Ok(ThreadRef::Callers(&thread));
            let die = || std::panic::resume_unwind(Box::new("killed"));
            self.pool.free(&cache, slot, self.dead, thread, offset, die)
        }));
        assert!(died.is_err(), "{died:?}");
    }

    pub(super) fn all_pages_are_free(&self) {
        let all = self.living.try_alloc(self.pool.limit() - (64 << 10));
        self.living.free(all.unwrap().unwrap().offset).unwrap();
    }
}

const SIZES: [u64; 4] = [64, 32 << 10, 300_000, 5 << 20];

#[test]
fn a_free_that_was_announced_is_done_by_recovery() {
    for length in SIZES {
        let scene = scene();
        let block = scene.living.alloc(length).unwrap();
        scene.living.share(block.offset).unwrap();
        scene.die_freeing(block.offset);
        assert_eq!(scene.blocks(), 1);
        scene.recover();
        assert_eq!(scene.blocks(), 0, "{length}");
    }
}

#[test]
fn a_free_that_was_done_is_not_done_to_the_next_user_of_the_block() {
    for length in SIZES {
        let scene = scene();
        let block = scene.living.alloc(length).unwrap();
        scene.living.share(block.offset).unwrap();
        scene.die_freeing(block.offset);
        // As if it had died after the free: the owner has given the same block out again.
        scene.living.free(block.offset).unwrap();
        let again = scene.living.alloc(length).unwrap();
        assert_eq!(again.offset, block.offset, "the case that is meant");
        scene.living.share(again.offset).unwrap();
        scene.recover();
        assert_eq!(scene.blocks(), 1, "{length}");
        scene.living.free(again.offset).unwrap();
    }
}

#[test]
fn an_own_block_that_was_being_freed_goes() {
    for length in SIZES {
        for shared in [false, true] {
            let scene = scene();
            let block = scene.dying.alloc(length).unwrap();
            if shared {
                scene.dying.share(block.offset).unwrap();
            }
            scene.die_freeing(block.offset);
            scene.recover();
            assert_eq!(scene.blocks(), 0, "{length}");
            scene.all_pages_are_free();
        }
    }
}

#[test]
fn pages_that_were_being_claimed_are_free_again() {
    let scene = scene();
    let thread = ManuallyDrop::new(scene.dying.thread().unwrap());
    let claimed = extent::claim_pages(
        &scene.pool,
        &mut extent::Near::default(),
        scene.dead,
        &thread.intent,
        7,
    )
    .unwrap();
    assert!(claimed.is_some());
    scene.recover();
    scene.all_pages_are_free();
}

#[test]
fn a_run_that_others_took_meanwhile_is_theirs() {
    let scene = scene();
    let block = scene.living.alloc(300_000).unwrap();
    let thread = ManuallyDrop::new(scene.dying.thread().unwrap());
    // The intent names pages that the dead process never got.
    let first = block.offset / super::PAGE;
    thread.intent.begin(Op::Allocate, 0, 0, [first, 5]);
    scene.recover();
    assert_eq!(scene.blocks(), 1);
    scene.living.free(block.offset).unwrap();
}

#[test]
fn a_half_freed_extent_is_freed_to_its_end() {
    let scene = scene();
    let block = scene.dying.alloc(300_000).unwrap();
    scene.dying.share(block.offset).unwrap();
    let first = u32::try_from(block.offset / super::PAGE).unwrap();
    scene.die_freeing(block.offset);
    // Its head is claimed and its last two pages are free; one of them is somebody else's by now.
    let word = |page| scene.pool.page(page).unwrap();
    let claimed = super::PageWord::new(super::Tag::Claimed, Some(scene.dead.index), 0, 5);
    word(first).store(claimed);
    word(first + 4).store(super::PageWord::FREE);
    word(first + 3).store(super::PageWord::new(super::Tag::Extent, Some(99), 0, 1));
    scene.recover();
    assert_eq!(scene.blocks(), 1, "the other's is left");
    assert!((first..first + 3).all(|page| word(page).load() == super::PageWord::FREE));
}

#[test]
fn scribbled_intents_and_lists_do_no_harm() {
    let nonsense = [
        0,
        1,
        63,
        64 << 10,
        u64::from(u32::MAX),
        u64::MAX - 1,
        u64::MAX,
    ];
    for a in nonsense {
        for b in nonsense {
            let scene = scene();
            let block = scene.living.alloc(100).unwrap();
            let thread = ManuallyDrop::new(scene.dying.thread().unwrap());
            for (op, what) in [
                (Op::Allocate, 0),
                (Op::Free, extent::FREE_EXTENT),
                (Op::Free, slab::FREE_BLOCK),
                (Op::Free, 77),
            ] {
                let slot = scene.control.slot(scene.dead.index).unwrap();
                slot.slabs[0].store(a, crate::sync::Ordering::Relaxed);
                slot.extents[0].store(b, crate::sync::Ordering::Relaxed);
                let records = scene.control.threads(scene.dead.index).unwrap();
                for record in &records[..=thread.index() as usize] {
                    record.touched.store(1, crate::sync::Ordering::Relaxed);
                }
                thread.intent.begin(op, 0, what, [a, b]);
                scene.recover();
            }
            assert_eq!(scene.blocks(), 1);
            scene.living.free(block.offset).unwrap();
        }
    }
}

#[test]
fn private_blocks_are_their_owners() {
    for length in SIZES {
        let scene = scene();
        let block = scene.dying.alloc(length).unwrap();
        assert!(scene.living.free(block.offset).is_err());
        assert!(scene.living.share(block.offset).is_err());
        assert!(!scene.pool.is_shared(block.offset).unwrap());
        scene.dying.share(block.offset).unwrap();
        assert!(scene.dying.share(block.offset).is_err(), "twice");
        assert!(scene.pool.is_shared(block.offset).unwrap());
        assert!(scene.living.free(block.offset + 8).is_err(), "inside");
        scene.living.free(block.offset).unwrap();
        assert!(scene.living.free(block.offset).is_err(), "twice");
        assert!(scene.dying.free(block.offset).is_err(), "twice");
        assert!(scene.living.free(u64::MAX).is_err());
        assert!(scene.living.free(0).is_err(), "the header");
    }
}

#[test]
fn empty_slabs_make_room_for_large_blocks() {
    let (control, pool) = node(8 << 20);
    pool.commit(8 << 20).unwrap();
    let (_, member) = member(&control, &pool);
    let mut blocks = Vec::new();
    while let Some(block) = member.try_alloc(1_000).unwrap() {
        blocks.push(block);
    }
    for block in blocks {
        member.free(block.offset).unwrap();
    }
    let large = member.try_alloc((8 << 20) - (64 << 10)).unwrap();
    assert!(large.is_some(), "the slabs' pages went back");
}

#[test]
fn blocks_that_others_freed_are_found_again() {
    let scene = scene();
    let mut before = 0;
    for _ in 0..20 {
        let mut blocks = Vec::new();
        for _ in 0..2_000 {
            let block = scene.dying.alloc(1_000).unwrap();
            scene.dying.share(block.offset).unwrap();
            blocks.push(block);
        }
        for block in blocks {
            scene.living.free(block.offset).unwrap();
        }
        let top = (1..1024)
            .filter(|page| scene.pool.page(*page).unwrap().load() != super::PageWord::FREE)
            .count();
        assert!(
            before == 0 || top <= before * 2,
            "{top} pages after {before}"
        );
        before = before.max(top);
    }
}
