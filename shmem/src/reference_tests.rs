use super::{Change, Counts, Outcome, Pending};
use crate::sync::AtomicU64;

impl Counts {
    fn empty() -> Self {
        Self {
            counts: AtomicU64::new(0),
            pending: AtomicU64::new(0),
        }
    }
}

#[cfg(not(loom))]
mod plain {
    use super::super::{apply, at_limit};
    use super::*;

    fn change(counts: &Counts, what: Change, destroyed: bool) -> Outcome {
        let number = counts.next_number().unwrap();
        let pending = Pending {
            number,
            slot: 3,
            place: 65535,
            change: what,
        };
        assert!(counts.announce(pending));
        assert!(!counts.announce(pending), "once");
        assert_eq!(counts.next_number(), Err(pending));
        let mut got = None;
        counts.help(pending, || destroyed, |outcome| got = Some(outcome));
        counts.help(pending, || destroyed, |late| assert_eq!(Some(late), got));
        got.unwrap()
    }

    #[test]
    fn changes_count() {
        use Change::{Adopt, Create, Drop, Export, Give, Take};
        let counts = Counts::empty();
        for (what, outcome, after) in [
            (Take, Outcome::Refused, (0, 0)),
            (Create, Outcome::Done, (0, 1)),
            (Take, Outcome::Done, (0, 2)),
            (Drop, Outcome::Refused, (0, 2)),
            (Export, Outcome::Done, (1, 2)),
            (Adopt, Outcome::Done, (0, 3)),
            (Adopt, Outcome::Done, (0, 4)),
            (Give, Outcome::Done, (0, 3)),
            (Give, Outcome::Done, (0, 2)),
            (Give, Outcome::Done, (0, 1)),
            (Export, Outcome::Done, (1, 1)),
            (Give, Outcome::Done, (1, 0)),
            (Give, Outcome::Refused, (1, 0)),
            (Adopt, Outcome::Done, (0, 1)),
            (Give, Outcome::Last, (0, 0)),
            (Give, Outcome::Refused, (0, 0)),
            (Export, Outcome::Refused, (0, 0)),
            (Create, Outcome::Done, (0, 1)),
        ] {
            assert_eq!(change(&counts, what, false), outcome, "{what:?}");
            assert_eq!(counts.read(), after, "{what:?}");
        }
    }

    #[test]
    fn what_is_in_transit_does_not_keep_a_destroyed_object() {
        let counts = Counts::empty();
        change(&counts, Change::Create, false);
        change(&counts, Change::Export, false);
        assert_eq!(change(&counts, Change::Give, true), Outcome::Last);
        assert_eq!(counts.read(), (0, 0));
    }

    #[test]
    fn counts_have_limits() {
        assert_eq!(
            apply(Change::Take, (0, 0xffff), false),
            ((0, 0xffff), Outcome::Refused)
        );
        assert_eq!(
            apply(Change::Export, (0xff_ffff, 1), false),
            ((0xff_ffff, 1), Outcome::Refused)
        );
        let processes = Some(("of processes", 0xffff));
        assert_eq!(at_limit(Change::Take, (0, 0xffff)), processes);
        assert_eq!(at_limit(Change::Adopt, (1, 0xffff)), processes);
        let transit = Some(("in transit", 0xff_ffff));
        assert_eq!(at_limit(Change::Export, (0xff_ffff, 1)), transit);
        // These were refused for another reason.
        assert_eq!(at_limit(Change::Take, (0, 0)), None);
        assert_eq!(at_limit(Change::Give, (0, 0xffff)), None);
    }

    #[test]
    fn a_direct_change_leaves_the_number_alone() {
        let counts = Counts::empty();
        change(&counts, Change::Create, false);
        let number = counts.next_number().unwrap();
        let direct = |what| counts.direct(what, || true, || false);
        assert_eq!(direct(Change::Take), Outcome::Done);
        assert_eq!(counts.read(), (0, 2));
        assert_eq!(counts.next_number(), Ok(number));
        assert_eq!(direct(Change::Give), Outcome::Done);
        assert_eq!(direct(Change::Give), Outcome::Last);
        assert_eq!(direct(Change::Give), Outcome::Refused);
        assert_eq!(
            counts.direct(Change::Take, || false, || false),
            Outcome::Refused
        );
    }

    #[test]
    fn numbers_wrap() {
        let counts = Counts::empty();
        change(&counts, Change::Create, false);
        for _ in 0..(1 << 21) + 5 {
            assert_eq!(change(&counts, Change::Take, false), Outcome::Done);
            assert_eq!(change(&counts, Change::Give, false), Outcome::Done);
        }
        assert_eq!(counts.read(), (0, 1));
    }
}

/// The code that ships, under every interleaving: processes that take and give, one that died anywhere, and recovery.
#[cfg(loom)]
mod model {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::held::{Entry, State};
    use dragon_protocol::{NodeIndex, ObjectId, ObjectKind};

    const ID: ObjectId = ObjectId {
        node: NodeIndex::FIRST,
        kind: ObjectKind::Lock,
        index: 5,
        generation: 1,
    };

    struct World {
        counts: Counts,
        /// One held entry for each process.
        held: [Entry; 3],
    }

    impl World {
        fn new() -> Arc<Self> {
            let world = Self {
                counts: Counts::empty(),
                held: std::array::from_fn(|_| Entry::empty()),
            };
            world.change(0, Change::Create, 9);
            Arc::new(world)
        }

        /// As `Control::change`, by a process that dies after `steps` steps of its own.
        fn change(&self, who: usize, change: Change, steps: u32) {
            loop {
                let number = match self.counts.next_number() {
                    Ok(number) => number,
                    Err(pending) => {
                        self.help(pending);
                        continue;
                    }
                };
                self.held[who].set(ID, number, State::before(change));
                let pending = Pending {
                    number,
                    slot: u32::try_from(who).unwrap(),
                    place: 0,
                    change,
                };
                if steps < 1 {
                    return;
                }
                if self.counts.announce(pending) {
                    if steps > 1 {
                        self.help(pending);
                    }
                    return;
                }
            }
        }

        fn help(&self, pending: Pending) {
            let held = &self.held[pending.slot as usize];
            let mark = |outcome| held.mark(ID.index, pending.number, pending.change, outcome);
            self.counts.help(pending, || false, mark);
        }

        fn state(&self, who: usize) -> Option<State> {
            if let Err(pending) = self.counts.next_number() {
                self.help(pending);
            }
            self.held[who].get(NodeIndex::FIRST).map(|(_, state)| state)
        }
    }

    /// Two processes take and one of them gives, while a third has died at each of its steps: in the end the count is that of
    /// the held entries.
    #[test]
    fn loom_references_are_exact_whoever_dies_when() {
        for dead_steps in 0..3 {
            for what in [Change::Take, Change::Export] {
                let mut model = loom::model::Builder::new();
                model.preemption_bound = Some(3);
                model.check(move || {
                    let world = World::new();
                    let theirs = world.clone();
                    let other = thread::spawn(move || {
                        theirs.change(1, Change::Take, 9);
                        theirs.change(1, Change::Give, 9);
                    });
                    world.change(2, what, dead_steps);
                    // Recovery, while the other works on.
                    let state = world.state(2);
                    let was_made = matches!(state, Some(State::Held | State::Exported));
                    assert_eq!(was_made, dead_steps > 0, "{state:?}");
                    other.join().unwrap();
                    assert_eq!(world.state(1), Some(State::Over));
                    let expected = match (was_made, what) {
                        (false, _) => (0, 1),
                        (true, Change::Take) => (0, 2),
                        (true, _) => (1, 1),
                    };
                    assert_eq!(world.counts.read(), expected);
                });
            }
        }
    }

    /// Two give their references back, one dying in between, and the daemon one directly: exactly one of them is the last.
    #[test]
    fn loom_exactly_one_is_the_last() {
        for dead_steps in 1..3 {
            let mut model = loom::model::Builder::new();
            model.preemption_bound = Some(3);
            model.check(move || {
                let world = World::new();
                world.change(1, Change::Take, 9);
                let direct = |world: &World, what| world.counts.direct(what, || true, || false);
                assert_eq!(direct(&world, Change::Take), Outcome::Done);
                let theirs = world.clone();
                let dying = thread::spawn(move || theirs.change(1, Change::Give, dead_steps));
                let theirs = world.clone();
                let daemon = thread::spawn(move || direct(&theirs, Change::Give));
                world.change(0, Change::Give, 9);
                dying.join().unwrap();
                let directly = daemon.join().unwrap() == Outcome::Last;
                let last = [0, 1].map(|who| world.state(who) == Some(State::Last));
                assert_eq!(
                    [last[0], last[1], directly]
                        .into_iter()
                        .filter(|last| *last)
                        .count(),
                    1,
                    "{last:?} {directly}"
                );
                assert_eq!(world.counts.read(), (0, 0));
            });
        }
    }
}
