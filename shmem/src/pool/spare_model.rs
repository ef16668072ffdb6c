//! Models of the table of spare extents: every interleaving of those who take, free and give back the same run.

use loom::sync::Arc;
use loom::thread;

use super::{claim, clear, enter, entry, head, take_run};
use crate::pool::page::{PageWord, Tag, Word};
use crate::sync::{AtomicU64, Ordering};

const PAGE: u32 = 3;
const PAGES: u32 = 8;
const RUN: u64 = (PAGES as u64) << 32 | PAGE as u64;

/// A table of two entries, and the head of the only run.
struct Model {
    spares: [AtomicU64; 2],
    head: Word,
    /// Written by whoever has the run.
    content: AtomicU64,
}

impl Model {
    /// The run is spare, and in the table.
    fn new() -> Arc<Self> {
        let model = Self {
            spares: [AtomicU64::new(0), AtomicU64::new(0)],
            head: Word::new(head(PAGES)),
            content: AtomicU64::new(0),
        };
        assert_eq!(entry(PAGE, PAGES), RUN);
        assert!(enter(&model.spares, RUN));
        Arc::new(model)
    }

    /// As `take`.
    fn take(&self, owner: u32) -> bool {
        let took = self.spares.iter().any(|spare| {
            let found = spare.load(Ordering::Acquire);
            found == RUN && take_run(spare, found, &self.head, PAGES, owner)
        });
        if took {
            // Nobody else has it, and what its last user wrote is seen.
            assert_eq!(self.content.load(Ordering::Relaxed), 0);
            self.content.store(owner.into(), Ordering::Relaxed);
            let mine = PageWord::new(Tag::Extent, Some(owner), 0, PAGES);
            assert_eq!(self.head.load(), mine);
        }
        took
    }

    /// As `put`, by who has the run.
    fn put(&self, owner: u32) {
        assert_eq!(self.content.load(Ordering::Relaxed), u64::from(owner));
        self.content.store(0, Ordering::Relaxed);
        self.head.store(head(PAGES));
        if !enter(&self.spares, RUN) {
            self.free(owner);
        }
    }

    /// As `give_back`.
    fn give_back(&self, which: usize, owner: u32) -> bool {
        let found = self.spares[which].load(Ordering::Acquire);
        found == RUN && clear(&self.spares[which], found) && self.free(owner)
    }

    /// As `free`, which is also what recovery does.
    fn free(&self, owner: u32) -> bool {
        let won = claim(&self.head, PAGES, owner);
        if won {
            assert_eq!(self.content.load(Ordering::Relaxed), 0);
            self.head.store(PageWord::FREE);
        }
        won
    }

    fn entries(&self) -> usize {
        let named = |spare: &&AtomicU64| spare.load(Ordering::Relaxed) == RUN;
        self.spares.iter().filter(named).count()
    }
}

/// Two want the run, a third one gives it back to the pool: one of the three has it, and nobody is sent to it any more.
#[test]
fn loom_a_spare_run_goes_to_one() {
    loom::model(|| {
        let model = Model::new();
        let others = [5, 6].map(|owner| {
            let theirs = model.clone();
            thread::spawn(move || theirs.take(owner))
        });
        let freed = model.give_back(0, 7);
        let took = others.map(|other| other.join().unwrap());
        let winners = took.iter().filter(|took| **took).count();
        assert_eq!(winners + usize::from(freed), 1);
        assert_eq!(model.entries(), 0);
        assert_eq!(model.head.load() == PageWord::FREE, freed);
    });
}

/// It is taken and freed again while another takes it and a third one gives it back. In the end the run is spare and in the
/// table, or its pages are free, or somebody has it; in between nobody has it twice.
#[test]
fn loom_a_spare_run_goes_round() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(|| {
        let model = Model::new();
        let (round, other) = (model.clone(), model.clone());
        let round = thread::spawn(move || {
            for _ in 0..2 {
                if round.take(5) {
                    round.put(5);
                }
            }
        });
        let other = thread::spawn(move || other.take(6));
        let freed = model.give_back(0, 7);
        round.join().unwrap();
        let took = other.join().unwrap();
        let head_now = model.head.load();
        if took {
            assert_eq!(head_now.owner(), Some(6));
            assert!(!freed);
        } else if freed {
            assert_eq!(head_now, PageWord::FREE);
        } else {
            assert_eq!(head_now, head(PAGES));
            assert!(model.entries() > 0, "spare, and nobody finds it");
        }
    });
}

/// A process died after it had freed the run, before the table named it. Recovery frees the pages, unless somebody who came
/// by an older entry has them; its own entry may be there and then means nothing.
#[test]
fn loom_recovery_of_a_run_on_its_way_into_the_table() {
    for entered in [false, true] {
        loom::model(move || {
            let model = Model::new();
            if entered {
                assert!(enter(&model.spares, RUN));
            }
            let others = [5, 6].map(|owner| {
                let theirs = model.clone();
                thread::spawn(move || theirs.take(owner))
            });
            let freed = model.free(7);
            let took = others.map(|other| other.join().unwrap());
            let winners = took.iter().filter(|took| **took).count();
            assert_eq!(winners + usize::from(freed), 1);
            // Who comes later finds nothing to take.
            assert!(!model.take(8));
        });
    }
}
