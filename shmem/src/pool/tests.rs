use std::collections::BTreeMap;
use std::sync::Arc;

use dragon_protocol::{NodeIndex, ObjectId, RuntimeId, SlotId};
use proptest::prelude::*;

use super::{CHUNK, Pool};
use crate::error::{Error, Result};
use crate::recover::recover_memory;
use crate::{Control, Hooks, Member};

thread_local! {
    /// How often this thread looked at the word of a page.
    pub(super) static LOOKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

struct Direct(Pool);

impl Hooks for Direct {
    fn commit(&self, _: u32, bytes: u64) -> Result<()> {
        self.0.commit(bytes)
    }
    fn notify(&self, _: ObjectId) {}
}

pub(super) fn node(limit: u64) -> (Control, Pool) {
    let runtime = RuntimeId(7);
    let control = Control::create(runtime, NodeIndex::FIRST, 2).unwrap();
    (
        control,
        Pool::create(runtime, NodeIndex::FIRST, 0, limit).unwrap(),
    )
}

pub(super) fn member(control: &Control, pool: &Pool) -> (SlotId, Arc<Member>) {
    let slot = control.claim_slot(1).unwrap();
    (
        slot,
        Member::new(
            control.clone(),
            pool.clone(),
            slot,
            Box::new(Direct(pool.clone())),
        )
        .unwrap(),
    )
}

#[test]
fn nothing_is_committed_before_it_is_needed() {
    let (control, pool) = node(1 << 30);
    assert_eq!(pool.committed(), 0);
    let (_, member) = member(&control, &pool);
    let block = member.alloc(100).unwrap();
    assert_eq!(pool.committed(), CHUNK);
    pool.write(block.offset, 0, &[7; 100]).unwrap();
    assert!(matches!(
        pool.write(block.offset, 100, &[0; 100]),
        Err(Error::Corrupt { .. })
    ));
    member.free(block.offset).unwrap();
    assert!(matches!(
        member.free(block.offset),
        Err(Error::NotAllocated { .. })
    ));
    assert_eq!(pool.stats().unwrap().used, 0);
}

#[test]
fn a_full_pool_says_so() {
    let (control, pool) = node(4 * CHUNK);
    let (_, member) = member(&control, &pool);
    let error = member.alloc(5 * CHUNK).unwrap_err();
    assert!(
        matches!(error, Error::OutOfMemory { asked, limit, .. } if asked == 5 * CHUNK && limit == 4 * CHUNK),
        "{error}"
    );
    let mut blocks = Vec::new();
    let error = loop {
        match member.alloc(100_000) {
            Ok(block) => blocks.push(block),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    assert!(blocks.len() > 50, "{} blocks", blocks.len());
    for block in blocks {
        member.free(block.offset).unwrap();
    }
    assert_eq!(pool.stats().unwrap().blocks, 0);
    member.alloc(3 * CHUNK).unwrap();
}

#[test]
fn recovery_frees_what_is_private_and_keeps_what_is_shared() {
    let (control, pool) = node(1 << 30);
    let (_, living) = member(&control, &pool);
    let (dead, dying) = member(&control, &pool);
    let mut shared = Vec::new();
    for (n, length) in [64, 100, 5000, 32 << 10, 100_000, 3 << 20]
        .into_iter()
        .cycle()
        .take(60)
        .enumerate()
    {
        let block = dying.alloc(length).unwrap();
        if n % 3 == 0 {
            dying.share(block.offset).unwrap();
            shared.push(block.offset);
        }
    }
    recover_memory(&control, &pool, dead).unwrap();
    assert_eq!(pool.stats().unwrap().blocks, shared.len() as u64);
    for offset in shared {
        living.free(offset).unwrap();
    }
    let stats = pool.stats().unwrap();
    assert_eq!((stats.blocks, stats.used), (0, 0));
    for page in 1..pool.committed_pages() {
        assert_eq!(
            pool.page(page).unwrap().load(),
            super::PageWord::FREE,
            "page {page}"
        );
    }
}

#[test]
fn what_an_idle_process_keeps_is_there_for_others() {
    let (control, pool) = node(8 * CHUNK);
    let (_, idle) = member(&control, &pool);
    let (_, other) = member(&control, &pool);
    for (sizes, by) in [
        (vec![64, 1_000, 30_000], &idle),
        (vec![1_000, 200_000], &other),
    ] {
        let mut blocks = Vec::new();
        'full: loop {
            for size in &sizes {
                match idle.alloc(*size) {
                    Ok(block) => blocks.push(block.offset),
                    Err(_) => break 'full,
                }
            }
        }
        for block in blocks {
            idle.share(block).unwrap();
            by.free(block).unwrap();
        }
        // But for a page in use of each class the pool is empty, and nobody asks the idle process.
        let mut got = Vec::new();
        while let Ok(block) = other.alloc(60_000) {
            got.push(block.offset);
        }
        let pages = pool.limit() / super::PAGE;
        assert!(got.len() as u64 > pages - 12, "{} of {pages}", got.len());
        for block in got {
            other.free(block).unwrap();
        }
        assert_eq!(pool.stats().unwrap().used, 0);
        // And its owner finds out that it has it no more.
        let again = idle.alloc(1_000).unwrap();
        idle.free(again.offset).unwrap();
    }
}

#[test]
fn recovery_does_the_same_whatever_else_is_in_the_pool() {
    let looks = |others: u32| {
        let (control, pool) = node(1 << 30);
        let (_, other) = member(&control, &pool);
        for n in 0..others {
            let length = if n % 50 == 0 { 60_000 } else { 64 << (n % 5) };
            let block = other.alloc(length).unwrap();
            if n % 3 == 0 {
                other.share(block.offset).unwrap();
            }
        }
        let (dead, dying) = member(&control, &pool);
        for n in 0..200_u64 {
            let block = dying.alloc(100 + n * 997).unwrap();
            if n % 2 == 0 {
                dying.share(block.offset).unwrap();
            }
        }
        LOOKS.set(0);
        recover_memory(&control, &pool, dead).unwrap();
        LOOKS.get()
    };
    let (alone, among_others) = (looks(0), looks(100_000));
    assert!(among_others <= alone, "{among_others} looks, {alone} alone");
}

#[test]
fn a_hand_over_takes_the_same_steps_whatever_the_length() {
    let looks = |length: u64| {
        let (control, pool) = node(256 << 20);
        pool.commit(256 << 20).unwrap();
        let (sender, receiver) = (member(&control, &pool).1, member(&control, &pool).1);
        let hand_over = || {
            let block = sender.alloc(length).unwrap().offset;
            sender.share(block).unwrap();
            receiver.free(block).unwrap();
            block
        };
        let first = hand_over();
        LOOKS.set(0);
        assert_eq!(hand_over(), first, "the same pages again");
        LOOKS.get()
    };
    assert_eq!(looks(1 << 20), looks(64 << 20));
}

#[test]
fn spare_extents_make_room_for_whoever_needs_it() {
    let (control, pool) = node(256 << 20);
    pool.commit(256 << 20).unwrap();
    let (_, one) = member(&control, &pool);
    let (_, other) = member(&control, &pool);
    let fill_with_spares = || {
        let lengths = (1..=10).map(|n| n << 20);
        let blocks: Vec<_> = lengths
            .map(|length| one.alloc(length).unwrap().offset)
            .collect();
        for block in blocks {
            one.share(block).unwrap();
            other.free(block).unwrap();
        }
        let kept = pool.statistics().unwrap().kept;
        assert_eq!(kept, 55 << 20);
    };
    fill_with_spares();
    // From committed memory: nobody need be asked.
    let all = other
        .try_alloc(pool.limit() - super::PAGE)
        .unwrap()
        .unwrap();
    assert_eq!(pool.statistics().unwrap().kept, 0);
    other.free(all.offset).unwrap();
    fill_with_spares();
    // The owner takes the memory of all chunks but that of the pool's header.
    assert_eq!(pool.release_free().unwrap(), pool.limit() - CHUNK);
}

#[test]
fn spare_extents_that_nobody_wants_go_in_time() {
    let (control, pool) = node(1 << 30);
    pool.commit(1 << 30).unwrap();
    let (_, member) = member(&control, &pool);
    let free_shared = |block: u64| {
        member.share(block).unwrap();
        member.free(block).unwrap();
    };
    let lengths = |from: u64| (from..from + 40).map(|n| n << 20);
    let blocks: Vec<_> = lengths(5)
        .map(|length| member.alloc(length).unwrap().offset)
        .collect();
    blocks.into_iter().for_each(free_shared);
    let wanted = 1 << 20;
    for _ in 0..2 {
        free_shared(member.alloc(wanted).unwrap().offset);
    }
    // The table was full of others, and has a place for this one now.
    let before = pool.statistics().unwrap().kept;
    let block = member.alloc(wanted).unwrap().offset;
    assert_eq!(pool.statistics().unwrap().kept, before - wanted);
    free_shared(block);
    assert_eq!(pool.statistics().unwrap().kept, before);
}

#[test]
fn statistics_say_what_is_where() {
    let (control, pool) = node(4 * CHUNK);
    let page = super::PAGE;
    let empty = pool.statistics().unwrap();
    assert_eq!((empty.used, empty.peak, empty.blocks), (0, 0, 0));
    assert_eq!(empty.largest_free, pool.limit() - page);
    let (a, one) = member(&control, &pool);
    let (b, two) = member(&control, &pool);
    let small = one.alloc(100).unwrap().offset;
    let large = two.alloc(3 * page).unwrap().offset;
    let shared = two.alloc(page).unwrap().offset;
    two.share(shared).unwrap();
    let all = pool.statistics().unwrap();
    assert_eq!((all.used, all.blocks), (128 + 4 * page, 3));
    assert_eq!(all.free, pool.limit() - all.used);
    assert!(all.peak >= 6 * page, "{all:?}");
    let sizes: Vec<_> = all.by_size.into_iter().collect();
    assert_eq!(sizes, [(128, 1), (page, 1), (3 * page, 1)]);
    let owners: Vec<_> = all.by_owner.into_iter().collect();
    assert_eq!(
        owners,
        [
            (None, (page, 1)),
            (Some(a.index), (128, 1)),
            (Some(b.index), (3 * page, 1))
        ]
    );
    two.free(large).unwrap();
    let all = pool.statistics().unwrap();
    assert_eq!((all.kept, all.used), (3 * page, 128 + page));
    let most = one.alloc(all.largest_free).unwrap().offset;
    assert!(one.alloc(all.largest_free).is_err());
    for block in [small, shared, most] {
        one.free(block).unwrap();
    }
    assert_eq!(pool.stats().unwrap().used, 0);
}

#[test]
fn a_slab_whose_owner_is_gone_is_adopted() {
    let (control, pool) = node(1 << 30);
    let (_, heir) = member(&control, &pool);
    let (dead, dying) = member(&control, &pool);
    let kept = dying.alloc(1_000).unwrap().offset;
    dying.share(kept).unwrap();
    dying.alloc(1_000).unwrap();
    recover_memory(&control, &pool, dead).unwrap();
    let block = heir.alloc(1_000).unwrap().offset;
    assert_eq!(block / super::PAGE, kept / super::PAGE, "the same slab");
    heir.free(kept).unwrap();
    heir.free(block).unwrap();
    assert_eq!(pool.stats().unwrap().used, 0);
}

#[derive(Clone, Debug)]
enum Step {
    Alloc {
        who: usize,
        length: u64,
    },
    Share {
        which: usize,
    },
    Free {
        which: usize,
        by: usize,
    },
    Resize {
        which: usize,
        by: usize,
        length: u64,
    },
    Die {
        who: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![
        1_u64..40_000,
        40_000_u64..400_000,
        Just(64),
        Just(32 << 10),
        Just(600_000),
        600_000_u64..900_000
    ];
    prop_oneof![
        6 => (0..3_usize, length.clone()).prop_map(|(who, length)| Step::Alloc { who, length }),
        3 => (any::<usize>(), 0..3_usize, length)
            .prop_map(|(which, by, length)| Step::Resize { which, by, length }),
        3 => any::<usize>().prop_map(|which| Step::Share { which }),
        5 => (any::<usize>(), 0..3_usize).prop_map(|(which, by)| Step::Free { which, by }),
        1 => (0..3_usize).prop_map(|who| Step::Die { who }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Three processes allocate, share, resize, free and die; blocks never overlap, contents stay, and in the end nothing is
    /// left.
    #[test]
    fn random_operations_agree_with_a_map(steps in prop::collection::vec(step(), 1..200)) {
        let (control, pool) = node(256 << 20);
        let mut members: Vec<_> = (0..3).map(|_| member(&control, &pool)).collect();
        // offset → (length, owner, shared, contents)
        let mut blocks: BTreeMap<u64, (u64, usize, bool, u8)> = BTreeMap::new();
        let mut stamp = 0_u8;
        for step in steps {
            match step {
                Step::Alloc { who, length } => {
                    let block = members[who].1.alloc(length).unwrap();
                    let before = blocks.range(..=block.offset).next_back().map(|(offset, (length, ..))| offset + length);
                    prop_assert!(before.is_none_or(|end| end <= block.offset));
                    let after = blocks.range(block.offset..).next().map(|(offset, _)| *offset);
                    prop_assert!(after.is_none_or(|next| block.offset + length <= next));
                    stamp = stamp.wrapping_add(1);
                    pool.write(block.offset, 0, &vec![stamp; usize::try_from(length).unwrap()]).unwrap();
                    blocks.insert(block.offset, (length, who, false, stamp));
                }
                Step::Share { which } if !blocks.is_empty() => {
                    let nth = which % blocks.len();
                    let (offset, block) = blocks.iter_mut().nth(nth).unwrap();
                    let shared = members[block.1].1.share(*offset);
                    prop_assert_eq!(shared.is_ok(), !block.2);
                    block.2 = true;
                }
                Step::Free { which, by } if !blocks.is_empty() => {
                    let (offset, (length, owner, shared, stamp)) = blocks.iter().nth(which % blocks.len()).map(|(o, b)| (*o, *b)).unwrap();
                    let by = if shared { by } else { owner };
                    let mut contents = vec![0; usize::try_from(length).unwrap()];
                    pool.read(offset, 0, &mut contents).unwrap();
                    prop_assert!(contents.iter().all(|byte| *byte == stamp));
                    members[by].1.free(offset).unwrap();
                    blocks.remove(&offset);
                }
                Step::Resize { which, by, length } if !blocks.is_empty() => {
                    let (offset, (old, owner, shared, stamp)) = blocks.iter().nth(which % blocks.len()).map(|(o, b)| (*o, *b)).unwrap();
                    let end = blocks.range(offset + 1..).next().map_or(pool.limit(), |(next, _)| *next);
                    let by = if shared { by } else { owner };
                    match members[by].1.resize(offset, length) {
                        Ok(block) => {
                            prop_assert_eq!((block.offset, block.length), (offset, length));
                            prop_assert!(offset + length <= end);
                            let mut contents = vec![0; usize::try_from(length).unwrap()];
                            pool.read(offset, 0, &mut contents).unwrap();
                            prop_assert!(contents.iter().take(usize::try_from(old).unwrap()).all(|byte| *byte == stamp));
                            contents.fill(stamp);
                            pool.write(offset, 0, &contents).unwrap();
                            blocks.insert(offset, (length, owner, shared, stamp));
                        }
                        Err(Error::CannotGrow { room, asked, .. }) => {
                            prop_assert!(asked == length && (old..length).contains(&room));
                            prop_assert!(offset + room <= end);
                        }
                        Err(error) => prop_assert!(false, "{}", error),
                    }
                }
                Step::Die { who } => {
                    recover_memory(&control, &pool, members[who].0).unwrap();
                    control.release_slot(members[who].0).unwrap();
                    members[who] = member(&control, &pool);
                    blocks.retain(|_, (_, owner, shared, _)| *shared || *owner != who);
                }
                _ => {}
            }
            prop_assert_eq!(pool.stats().unwrap().blocks, blocks.len() as u64);
        }
        for (slot, _) in &members {
            recover_memory(&control, &pool, *slot).unwrap();
        }
        let (_, last) = member(&control, &pool);
        for (offset, _) in blocks.iter().filter(|(_, (_, _, shared, _))| *shared) {
            last.free(*offset).unwrap();
        }
        prop_assert_eq!(pool.stats().unwrap().used, 0);
    }
}
