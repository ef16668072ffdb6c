//! Models of a slab's bits: every interleaving of owner, freeing processes and recovery.

use loom::sync::Arc;
use loom::thread;

use super::{
    Bits, PageWord, Stamps, Tag, Word, begin_look, end_look, finish_free, release_empty,
    take_looked_at, undo_look,
};
use crate::sync::AtomicU64;

type Words = [[AtomicU64; 1]; 3];

fn words() -> Arc<Words> {
    Arc::new([
        [AtomicU64::new(0)],
        [AtomicU64::new(0)],
        [AtomicU64::new(0)],
    ])
}

fn bits(words: &Words) -> Bits<'_> {
    Bits::new(&words[0], &words[1], &words[2])
}

fn allocate(words: &Words, blocks: u32) -> Option<u32> {
    let bits = bits(words);
    bits.allocate(blocks, &mut 0, |_| {}).or_else(|| {
        bits.collect();
        bits.allocate(blocks, &mut 0, |_| {})
    })
}

/// The owner allocates while another process frees: no block is given out twice, none is lost.
#[test]
fn loom_free_against_allocate() {
    loom::model(|| {
        let words = words();
        let (a, b) = (allocate(&words, 2).unwrap(), allocate(&words, 2).unwrap());
        assert!(bits(&words).share(a) && bits(&words).share(b));
        let theirs = words.clone();
        let other = thread::spawn(move || assert!(bits(&theirs).free(a)));
        let again = allocate(&words, 2);
        assert!(again.is_none() || again == Some(a));
        other.join().unwrap();
        let last = allocate(&words, 2);
        assert!(
            last.is_some() != again.is_some(),
            "the freed block is given out once"
        );
        assert_eq!(bits(&words).in_use(), 2);
    });
}

/// Two processes free the two blocks while the owner frees a third of its own and collects.
#[test]
fn loom_two_free_while_the_owner_collects() {
    loom::model(|| {
        let words = words();
        let blocks: Vec<_> = (0..3).map(|_| allocate(&words, 3).unwrap()).collect();
        assert!(
            blocks
                .iter()
                .take(2)
                .all(|block| bits(&words).share(*block))
        );
        let others: Vec<_> = [blocks[0], blocks[1]]
            .into_iter()
            .map(|block| {
                let theirs = words.clone();
                thread::spawn(move || assert!(bits(&theirs).free(block)))
            })
            .collect();
        assert!(bits(&words).free_own(blocks[2], || {}));
        bits(&words).collect();
        for other in others {
            other.join().unwrap();
        }
        bits(&words).collect();
        assert_eq!(bits(&words).in_use(), 0);
        assert!((0..3).all(|_| allocate(&words, 3).is_some()));
    });
}

/// The owner is dead: recovery frees its private blocks while another process frees a shared one. What is left in the end
/// is exactly the other shared block.
#[test]
fn loom_recovery_against_free() {
    loom::model(|| {
        let words = words();
        let (a, b, _private) = (
            allocate(&words, 3).unwrap(),
            allocate(&words, 3).unwrap(),
            allocate(&words, 3).unwrap(),
        );
        assert!(bits(&words).share(a) && bits(&words).share(b));
        let theirs = words.clone();
        let other = thread::spawn(move || assert!(bits(&theirs).free(a)));
        bits(&words).free_private();
        other.join().unwrap();
        assert_eq!(bits(&words).in_use(), 1);
        assert!(bits(&words).is_shared(b) && !bits(&words).is_shared(a));
    });
}

/// The last block of an orphan is freed while recovery gives the slab up: one of the two, and only one, frees the page.
#[test]
fn loom_an_orphan_goes_once() {
    loom::model(|| {
        let words = words();
        let owned = PageWord::new(Tag::Slab, Some(3), 0, 1);
        let page = Arc::new(Word::new(owned));
        let a = allocate(&words, 1).unwrap();
        assert!(bits(&words).share(a));
        let release = |words: &Words, page: &Word| release_empty(page, |_| bits(words).in_use());
        let (theirs, their_page) = (words.clone(), page.clone());
        let other = thread::spawn(move || {
            assert!(bits(&theirs).free(a));
            release(&theirs, &their_page)
        });
        bits(&words).free_private();
        assert!(page.replace(owned, owned.orphaned()));
        let here = release(&words, &page);
        let there = other.join().unwrap();
        assert!(here != there, "freed here {here}, there {there}");
        assert_eq!(page.load(), PageWord::FREE);
    });
}

/// A process announced that it frees a block, and died before or after it did. Meanwhile the owner collects and gives the
/// block out again. Recovery frees the first allocation exactly once, and never the second.
#[test]
fn loom_recovery_of_an_announced_free() {
    for done in [false, true] {
        loom::model(move || {
            let words = words();
            let stamps = Arc::new(Stamps::new());
            let a = bits(&words)
                .allocate(1, &mut 0, |block| stamps.bump(block))
                .unwrap();
            assert!(bits(&words).share(a));
            let announced = stamps.get(a);
            if done {
                assert!(bits(&words).free(a));
            }
            let (theirs, their_stamps) = (words.clone(), stamps.clone());
            let owner = thread::spawn(move || {
                bits(&theirs).collect();
                let again = bits(&theirs).allocate(1, &mut 0, |block| their_stamps.bump(block));
                again.map(|block| assert!(bits(&theirs).share(block)))
            });
            finish_free(bits(&words), &stamps, a, announced);
            let again = owner.join().unwrap().is_some();
            assert!(again || !done);
            assert_eq!(bits(&words).in_use(), u64::from(again));
        });
    }
}

/// The owner takes a slab from its rest and allocates, while another process frees the last block in it, and a third one
/// looks for an empty slab to take. Either the owner has the slab and its block in it, or the thief has the page.
#[test]
fn loom_an_empty_slab_is_taken_or_used() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let words = words();
        let a = allocate(&words, 2).unwrap();
        assert!(bits(&words).share(a));
        let resting = PageWord::new(Tag::Slab, Some(3), 0, 1).resting();
        let page = Arc::new(Word::new(resting));
        let theirs = words.clone();
        let other = thread::spawn(move || assert!(bits(&theirs).free(a)));
        let (theirs, their_page) = (words.clone(), page.clone());
        let thief = thread::spawn(move || {
            let word = their_page.load();
            word.is_resting()
                && !word.is_looked_at()
                && take_looked_at(&their_page, word, 9, |_| bits(&theirs).in_use())
        });
        let word = page.load();
        let mine = word.is_resting() && !word.is_looked_at() && page.replace(word, word.awake());
        let got = mine && allocate(&words, 2).is_some();
        other.join().unwrap();
        let taken = thief.join().unwrap();
        assert!(!(mine && taken) && (got || !mine));
        if taken {
            assert_eq!(page.load().tag(), Tag::Claimed);
        } else {
            assert_eq!(page.load().owner(), Some(3));
            assert!(!page.load().is_looked_at());
        }
    });
}

/// As above, while the owner is dead and recovered: the slab becomes an orphan, or was taken; never both.
#[test]
fn loom_recovery_against_who_takes_empty_slabs() {
    loom::model(|| {
        let words = words();
        let _private = allocate(&words, 2).unwrap();
        let resting = PageWord::new(Tag::Slab, Some(3), 0, 1).resting();
        let page = Arc::new(Word::new(resting));
        let (theirs, their_page) = (words.clone(), page.clone());
        let thief = thread::spawn(move || {
            let word = their_page.load();
            word.is_resting()
                && !word.is_looked_at()
                && take_looked_at(&their_page, word, 9, |_| bits(&theirs).in_use())
        });
        // As in `orphan`.
        let mut word = page.load();
        while word.owner() == Some(3) && word != word.awake() {
            let _ = page.replace(word, word.awake());
            word = page.load();
        }
        let mine = word.owner() == Some(3);
        if mine {
            bits(&words).free_private();
            assert!(page.replace(word, word.orphaned()));
            assert!(release_empty(&page, |_| bits(&words).in_use()));
        }
        assert!(thief.join().unwrap() != mine);
    });
}

/// A process died that had the same slab in mind as another who looks at it, and is slow; the owner uses the slab meanwhile
/// and puts it to rest, and a third one looks at it. Nobody frees a page with a block in use.
#[test]
fn loom_a_look_is_undone_for_its_dead_looker_alone() {
    const DEAD: u32 = 7;
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(|| {
        let words = words();
        let looker = Arc::new(AtomicU64::new(0));
        let resting = PageWord::new(Tag::Slab, Some(3), 0, 1).resting();
        let page = Arc::new(Word::new(resting));
        let look = |thief: u32| {
            let (words, page, looker) = (words.clone(), page.clone(), looker.clone());
            move || {
                let word = page.load();
                let begun = word.is_resting() && !word.is_looked_at() && begin_look(&looker, thief);
                let taken = begun && take_looked_at(&page, word, thief, |_| bits(&words).in_use());
                if begun {
                    end_look(&looker, thief);
                }
                taken
            }
        };
        let slow = thread::spawn(look(9));
        let (third, their_page, their_looker) = (look(10), page.clone(), looker.clone());
        let recovery = thread::spawn(move || {
            undo_look(&their_page, &their_looker, DEAD);
            third()
        });
        let word = page.load();
        let mine = word.tag() == Tag::Slab
            && word.is_resting()
            && !word.is_looked_at()
            && page.replace(word, word.awake());
        if mine {
            assert!(allocate(&words, 2).is_some());
            page.store(page.load().resting());
        }
        let taken = [slow.join().unwrap(), recovery.join().unwrap()];
        assert!(!mine || taken == [false; 2], "a block is in use: {taken:?}");
    });
}
