//! Spare extents: what the table says, what it may say wrongly, and what is left after a death.

use std::mem::ManuallyDrop;

use dragon_protocol::op::Op;

use super::death_tests::{Scene, scene};
use super::page::{PAGE, PageWord, Tag};
use super::{extent, spare};
use crate::Member;
use crate::slot::KEPT;
use crate::sync::Ordering;

/// Pages of a block that becomes a spare extent when it is freed.
const PAGES: u32 = 12;

fn length(pages: u32) -> u64 {
    u64::from(pages) * PAGE
}

/// Leaves a spare extent; its first page.
fn leave(member: &Member, pages: u32) -> u32 {
    let block = member.alloc(length(pages)).unwrap().offset;
    member.share(block).unwrap();
    member.free(block).unwrap();
    u32::try_from(block / PAGE).unwrap()
}

impl Scene {
    fn entries(&self) -> Vec<u64> {
        let spares = self.pool.spares().unwrap().iter();
        let entries = spares.map(|spare| spare.load(Ordering::Relaxed));
        entries.filter(|entry| *entry != 0).collect()
    }

    fn kept(&self) -> u64 {
        self.pool.statistics().unwrap().kept
    }
}

#[test]
fn a_run_that_is_taken_is_named_no_more() {
    let scene = scene();
    for _ in 0..100 {
        let page = leave(&scene.living, PAGES);
        assert_eq!(scene.entries(), [u64::from(PAGES) << 32 | u64::from(page)]);
        let block = scene.dying.alloc(length(PAGES)).unwrap().offset;
        assert_eq!(block, u64::from(page) * PAGE, "the case that is meant");
        assert_eq!(scene.entries(), []);
        scene.dying.share(block).unwrap();
        scene.living.free(block).unwrap();
    }
    assert_eq!(scene.entries().len(), 1);
}

#[test]
fn only_a_run_of_the_same_length_is_taken() {
    let scene = scene();
    let longer = leave(&scene.living, PAGES + 1);
    let block = scene.living.alloc(length(PAGES)).unwrap().offset;
    assert_ne!(block, u64::from(longer) * PAGE);
    assert_eq!(scene.kept(), length(PAGES + 1));
    scene.living.free(block).unwrap();
    let block = scene.living.alloc(length(PAGES + 1)).unwrap().offset;
    assert_eq!(block, u64::from(longer) * PAGE);
}

/// All places of the table are looked at, by who frees and by who needs room.
#[test]
fn a_full_table_is_given_back_as_a_whole() {
    let scene = scene();
    let lengths = (0..).map(|n| PAGES + n).take(spare::SPARES);
    let blocks: Vec<u64> = lengths
        .map(|pages| scene.living.alloc(length(pages)).unwrap().offset)
        .collect();
    for block in blocks {
        scene.living.share(block).unwrap();
        scene.living.free(block).unwrap();
    }
    assert_eq!(scene.entries().len(), spare::SPARES);
    scene.all_pages_are_free();
}

/// It had taken the head's word, and died before the extent was in its list.
#[test]
fn who_dies_taking_a_run_leaves_free_pages() {
    let scene = scene();
    let page = leave(&scene.living, PAGES);
    let slot = scene.control.slot(scene.dead.index).unwrap();
    let note = &slot.kept[0][KEPT - 1];
    assert_eq!(note.load(Ordering::Relaxed), 0);
    let block = scene.dying.alloc(length(PAGES)).unwrap().offset;
    assert_eq!(block, u64::from(page) * PAGE, "the case that is meant");
    // Written before the word, so that recovery finds it whatever comes next.
    assert_eq!(note.load(Ordering::Relaxed), page);
    // As if it had not come to the list.
    slot.extents[0].store(0, Ordering::Relaxed);
    scene.recover();
    scene.all_pages_are_free();
}

/// It had freed the run, and died before the table named it, or after another had taken the entry out.
#[test]
fn who_dies_leaving_a_run_leaves_free_pages() {
    for claimed in [false, true] {
        let scene = scene();
        let page = leave(&scene.living, PAGES);
        for spare in scene.pool.spares().unwrap() {
            spare.store(0, Ordering::Relaxed);
        }
        if claimed {
            let claimed = PageWord::new(Tag::Claimed, Some(scene.dead.index), 0, PAGES);
            scene.pool.page(page).unwrap().store(claimed);
        }
        let run = u64::from(PAGES) << 32 | u64::from(page);
        let thread = ManuallyDrop::new(scene.dying.thread().unwrap());
        let what = extent::FREE_EXTENT;
        thread.intent.begin(Op::Free, 0, what, [run, u64::MAX]);
        scene.recover();
        let head = scene.pool.page(page).unwrap().load();
        assert_eq!(head, PageWord::FREE, "{claimed}");
        assert_eq!(scene.kept(), 0);
        scene.all_pages_are_free();
    }
}

/// The intent of a dead process names a run that somebody took meanwhile.
#[test]
fn a_run_that_was_taken_meanwhile_is_its_takers() {
    let scene = scene();
    let page = leave(&scene.living, PAGES);
    let block = scene.living.alloc(length(PAGES)).unwrap().offset;
    assert_eq!(block, u64::from(page) * PAGE, "the case that is meant");
    let run = u64::from(PAGES) << 32 | u64::from(page);
    let thread = ManuallyDrop::new(scene.dying.thread().unwrap());
    let what = extent::FREE_EXTENT;
    thread.intent.begin(Op::Free, 0, what, [run, u64::MAX]);
    scene.recover();
    scene.living.free(block).unwrap();
}

#[test]
fn a_scribbled_table_leads_nobody_astray() {
    let pages = u64::from(PAGES);
    let nonsense = [
        1,
        pages << 32,
        pages << 32 | 1_000_000,
        pages << 32 | 1023,
        pages << 32 | u64::from(u32::MAX),
        u64::MAX,
    ];
    for entry in nonsense {
        let scene = scene();
        for spare in scene.pool.spares().unwrap() {
            spare.store(entry, Ordering::Relaxed);
        }
        let mine = scene.living.alloc(length(PAGES)).unwrap().offset;
        scene.living.share(mine).unwrap();
        let other = scene.dying.alloc(length(PAGES)).unwrap().offset;
        assert!(mine.abs_diff(other) >= length(PAGES), "{entry:#x}");
        scene.living.free(mine).unwrap();
        scene.dying.share(other).unwrap();
        scene.living.free(other).unwrap();
        scene.all_pages_are_free();
        // All of it was cleared; then the block of all pages became a spare one.
        assert_eq!(scene.entries(), [1023 << 32 | 1]);
    }
}
