//! Tests of barriers and of their words.

use super::*;
use crate::wait::WaitWord;

/// A barrier outside shared memory.
#[derive(Debug, Default)]
struct Alone {
    word: AtomicU64,
    hint: AtomicU64,
    done: WaitWord,
    room: WaitWord,
    places: Vec<AtomicU64>,
    acts: bool,
}

impl Alone {
    fn new(parties: usize) -> Self {
        Self {
            places: (0..2 * parties).map(|_| AtomicU64::new(0)).collect(),
            ..Self::default()
        }
    }

    fn with_action(parties: usize) -> Self {
        Self {
            acts: true,
            ..Self::new(parties)
        }
    }

    fn words(&self) -> Words<'_> {
        Words {
            word: &self.word,
            hint: &self.hint,
            done: &self.done,
            room: &self.room,
            places: &self.places,
            acts: self.acts,
        }
    }
}

#[cfg(not(loom))]
mod plain {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::local::{self, LocalNode};
    use crate::{End, Payload, Waiting, attempt, withdraw};

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Arrive(u32),
        Leave(usize),
        Withdraw(usize),
        TimeOut(usize),
        Die(u32),
        Abort,
        Reset,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (1..5_u32).prop_map(Step::Arrive),
            8 => (0..6_usize).prop_map(Step::Leave),
            2 => (0..6_usize).prop_map(Step::Withdraw),
            1 => (0..6_usize).prop_map(Step::TimeOut),
            1 => (1..5_u32).prop_map(Step::Die),
            1 => Just(Step::Abort),
            1 => Just(Step::Reset),
        ]
    }

    /// How a wait ended.
    type Ending = Result<(), Breakage>;

    /// What a barrier is to do, in plain words.
    #[derive(Debug, Default)]
    struct Oracle {
        /// Place, slot, and how the wait ended.
        parties: Vec<(Place, u32, Option<Ending>)>,
        broken: Option<Breakage>,
        resetting: bool,
    }

    impl Oracle {
        fn waiting(&self) -> usize {
            self.parties
                .iter()
                .filter(|party| party.2.is_none())
                .count()
        }

        fn finish(&mut self, how: Ending) {
            for party in self.parties.iter_mut().filter(|party| party.2.is_none()) {
                party.2 = Some(how);
            }
        }

        fn break_it(&mut self, why: Breakage) {
            if self.broken.is_none() {
                self.broken = Some(why);
                self.finish(Err(why));
            }
        }

        fn settle(&mut self) {
            if self.resetting && self.parties.is_empty() {
                self.resetting = false;
                self.broken = None;
            }
        }
    }

    proptest! {
        #[test]
        fn a_barrier_against_an_oracle(steps in proptest::collection::vec(step(), 1..150)) {
            const PARTIES: usize = 3;
            let alone = Alone::new(PARTIES);
            let words = alone.words();
            let mut oracle = Oracle::default();
            for step in steps {
                match step {
                    Step::Arrive(slot) => match words.arrive(slot).0 {
                        Arrival::At(at) => {
                            prop_assert_eq!(oracle.broken, None);
                            oracle.parties.push((at, slot, None));
                            if oracle.waiting() == PARTIES {
                                oracle.finish(Ok(()));
                            }
                        }
                        Arrival::Broken(why) => {
                            prop_assert_eq!(oracle.broken, Some(why));
                            prop_assert!(!oracle.resetting);
                        }
                        // Places of the phase before the last are still in use.
                        Arrival::Later => {
                            prop_assert!(oracle.resetting || oracle.parties.len() > oracle.waiting());
                        }
                    },
                    Step::Leave(n) => if let Some(&(at, _, how)) = oracle.parties.get(n) {
                        match (words.look(at), how) {
                            (Look::Waiting, None) => continue,
                            (Look::Passed(n), Some(Ok(()))) => prop_assert!((n as usize) < PARTIES),
                            (Look::Broken(why), Some(Err(expected))) => {
                                // A reset writes over why it was broken, and an abort over the reset.
                                prop_assert!(why == expected || [Breakage::Reset, Breakage::Aborted].contains(&why));
                            }
                            (found, expected) => panic!("{found:?}, expected {expected:?}"),
                        }
                        oracle.parties.remove(n);
                        words.leave(at);
                    },
                    Step::Withdraw(n) => if let Some(&(at, _, how)) = oracle.parties.get(n) {
                        oracle.parties.remove(n);
                        match (words.withdraw(at), how) {
                            (None, None) => {}
                            (Some(Look::Passed(_)), Some(Ok(())))
                            | (Some(Look::Broken(_)), Some(Err(_))) => { words.leave(at); }
                            (found, expected) => panic!("{found:?}, expected {expected:?}"),
                        }
                    },
                    Step::TimeOut(n) => if let Some(&(at, _, how)) = oracle.parties.get(n) {
                        prop_assert_eq!(words.break_at(at, Breakage::Timeout), how.is_none());
                        if how.is_none() {
                            oracle.break_it(Breakage::Timeout);
                        }
                        oracle.parties.remove(n);
                        words.leave(at);
                    },
                    Step::Die(slot) => {
                        let waited = |party: &(Place, u32, Option<_>)| party.1 == slot && party.2.is_none();
                        if oracle.parties.iter().any(waited) {
                            oracle.break_it(Breakage::Died);
                        }
                        oracle.parties.retain(|party| party.1 != slot);
                        words.recover(slot);
                    }
                    Step::Abort => {
                        prop_assert_eq!(words.break_any(Breakage::Aborted), oracle.broken.is_none() || oracle.resetting);
                        if std::mem::take(&mut oracle.resetting) {
                            oracle.broken = Some(Breakage::Aborted);
                        }
                        oracle.break_it(Breakage::Aborted);
                    }
                    Step::Reset => {
                        words.reset();
                        oracle.finish(Err(Breakage::Reset));
                        oracle.broken = Some(Breakage::Reset);
                        oracle.resetting = true;
                    }
                }
                oracle.settle();
                let (waiting, broken) = words.attributes();
                prop_assert_eq!(broken, oracle.broken);
                if broken.is_none() {
                    prop_assert_eq!(waiting as usize, oracle.waiting());
                }
            }
        }
    }

    #[test]
    fn parties_pass_together_again_and_again() {
        const ROUNDS: u32 = 400;
        let node = LocalNode::new().unwrap();
        let members = [(); 2].map(|()| node.member().unwrap());
        for parties in [1, 2, 5] {
            let barrier = Barrier::create(&members[0], parties, 0).unwrap();
            let (arrived, numbers) = (AtomicU32::new(0), AtomicU32::new(0));
            thread::scope(|scope| {
                for n in 0..parties {
                    let (barrier, arrived, numbers) = (&barrier, &arrived, &numbers);
                    let member = &members[n as usize % 2];
                    scope.spawn(move || {
                        let barrier =
                            Barrier::attach(member, &barrier.descriptor(), false).unwrap();
                        for round in 1..=ROUNDS {
                            arrived.fetch_add(1, Ordering::Relaxed);
                            let number = barrier.wait(Deadline::Never).unwrap();
                            assert!(arrived.load(Ordering::Relaxed) >= round * parties);
                            numbers.fetch_add(number, Ordering::Relaxed);
                        }
                    });
                }
            });
            let each = parties * (parties - 1) / 2;
            assert_eq!(numbers.into_inner(), each * ROUNDS, "each number once");
        }
    }

    /// More threads than parties: whoever comes too early waits for a place.
    #[test]
    fn more_threads_than_parties() {
        let member = local::member().unwrap();
        let barrier = Barrier::create(&member, 3, 0).unwrap();
        let passed = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..7 {
                scope.spawn(|| {
                    while barrier.wait(Deadline::Never).is_ok() {
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            while passed.load(Ordering::Relaxed) < 3_000 {
                thread::yield_now();
            }
            barrier.abort().unwrap();
        });
        assert_eq!(passed.into_inner() % 3, 0, "three at a time");
    }

    fn at(arrival: (Arrival, bool)) -> Place {
        match arrival {
            (Arrival::At(at), false) => at,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_last_party_acts_before_the_others_go_on() {
        let alone = Alone::with_action(2);
        let words = alone.words();
        for _ in 0..3 {
            let (first, last) = (at(words.arrive(1)), at(words.arrive(2)));
            assert_eq!(words.look(first), Look::Held);
            assert_eq!(words.look(last), Look::Acts(1));
            assert_eq!(words.arrive(3), (Arrival::Later, false));
            assert!(!words.break_at(first, Breakage::Timeout), "all are there");
            assert_eq!(words.withdraw(first), Some(Look::Held));
            assert!(words.is_of(first, 1) && !words.is_of(first, 2));
            assert_eq!(words.attributes(), (2, None));
            assert!(!words.acted(first, true), "it is not its turn");
            assert!(words.acted(last, true));
            assert_eq!(words.look(first), Look::Passed(0));
            assert_eq!(words.look(last), Look::Passed(1));
            words.leave(first);
            words.leave(last);
        }
    }

    #[test]
    fn only_the_death_of_the_one_who_acts_matters_while_it_does() {
        let alone = Alone::with_action(3);
        let words = alone.words();
        let places = [1, 2, 3].map(|slot| at(words.arrive(slot)));
        words.recover(1);
        assert_eq!(words.look(places[1]), Look::Held);
        words.recover(3);
        assert_eq!(words.look(places[1]), Look::Broken(Breakage::Died));
        assert!(!words.acted(places[2], true));
        words.leave(places[1]);
        words.reset();
        assert_eq!(words.attributes(), (0, None));
    }

    /// Before all are there, as at any barrier; and the last one, which cannot act any more.
    #[test]
    fn a_death_at_a_barrier_with_an_action_breaks_it() {
        for parties in [1, 2] {
            let alone = Alone::with_action(2);
            let words = alone.words();
            let first = at(words.arrive(1));
            if parties == 2 {
                at(words.arrive(2));
            }
            words.recover(parties);
            assert_eq!(words.look(first), Look::Broken(Breakage::Died));
        }
    }

    #[test]
    fn a_turn_is_taken_once() {
        let node = LocalNode::new().unwrap();
        let [ours, theirs] = [(); 2].map(|()| node.member().unwrap());
        let barrier = Barrier::create_with_action(&ours, 1, 0).unwrap();
        let pass = || {
            let passed = barrier.wait_through_signals(Deadline::Never, || true);
            passed.unwrap().turn.unwrap()
        };
        let turn = Turn::from_number(pass().number());
        let elsewhere = Barrier::attach(&theirs, &barrier.descriptor(), false).unwrap();
        let not_owner = Err(Error::NotOwner(barrier.id()));
        assert_eq!(elsewhere.acted(turn, true), not_owner);
        barrier.acted(turn, true).unwrap();
        assert_eq!(barrier.acted(turn, true), not_owner);
        let turn = pass();
        barrier.abort().unwrap();
        assert!(matches!(
            barrier.acted(turn, true),
            Err(Error::Broken {
                why: Breakage::Aborted,
                ..
            })
        ));
        barrier.reset().unwrap();
        barrier.acted(pass(), false).unwrap();
        assert_eq!(
            barrier.state().unwrap().broken,
            Some(Breakage::Aborted),
            "an action that fails breaks it"
        );
        barrier.reset().unwrap();
        assert_eq!(barrier.wait(Deadline::Never), Ok(0), "nothing to do");
    }

    /// A number that is another party's place, where a turn should be.
    #[test]
    fn who_has_no_turn_frees_nobodys_place() {
        let member = local::member().unwrap();
        let barrier = Barrier::create_with_action(&member, 2, 0).unwrap();
        let arrive = || barrier.wait_through_signals(Deadline::Never, || true);
        thread::scope(|scope| {
            let first = scope.spawn(arrive);
            while barrier.state().unwrap().waiting == 0 {
                thread::yield_now();
            }
            let turn = arrive().unwrap().turn.unwrap();
            let of_the_first = Turn::from_number(turn.number() - 1);
            let not_owner = Err(Error::NotOwner(barrier.id()));
            assert_eq!(barrier.acted(of_the_first, true), not_owner);
            assert_eq!(barrier.state().unwrap().waiting, 2);
            barrier.acted(turn, true).unwrap();
            assert_eq!(first.join().unwrap().unwrap().number, 0);
        });
    }

    /// All places are taken, and their parties do not leave: the time of one who came too early is up, too.
    #[test]
    fn who_waits_for_a_place_for_too_long_breaks_the_barrier() {
        let node = LocalNode::new().unwrap();
        let member = node.member().unwrap();
        let barrier = Barrier::create_with_action(&member, 1, 0).unwrap();
        let acts = || {
            let passed = barrier.wait_through_signals(Deadline::Never, || true);
            passed.unwrap().turn.unwrap()
        };
        let broken_by_time = |turn| {
            let why = Breakage::Timeout;
            assert_eq!(barrier.state().unwrap().broken, Some(why));
            let barrier_id = barrier.id();
            let broken = Error::Broken {
                barrier: barrier_id,
                why,
            };
            assert_eq!(barrier.acted(turn, true), Err(broken));
            barrier.reset().unwrap();
        };
        let turn = acts();
        assert_eq!(barrier.wait(Deadline::Now), Err(Error::Empty));
        let soon = Deadline::after(1_000_000);
        assert_eq!(barrier.wait(soon), Err(Error::Timeout));
        broken_by_time(turn);
        // The same of a process of another node.
        let turn = acts();
        let mut waiting = Waiting::default();
        let (op, id) = (Op::BarrierWait, barrier.id());
        let slot = node.daemon().slot();
        let payload = Payload::EMPTY;
        let tried = attempt(node.daemon(), op, id, slot, [0, 0], payload, &mut waiting);
        assert!(matches!(tried, Attempt::NotYet), "{tried:?}");
        let end = |end| withdraw(node.daemon(), op, id, slot, waiting, end);
        assert!(matches!(end(End::Cancelled), Attempt::NotYet));
        assert_eq!(barrier.state().unwrap().broken, None);
        assert!(matches!(end(End::Timeout), Attempt::NotYet));
        broken_by_time(turn);
    }

    #[test]
    fn a_barrier_breaks_and_is_made_whole() {
        let member = local::member().unwrap();
        let barrier = Barrier::create(&member, 2, 0).unwrap();
        let broken = |why| {
            Err(Error::Broken {
                barrier: barrier.id(),
                why,
            })
        };
        assert_eq!(barrier.wait(Deadline::Now), Err(Error::Empty));
        assert_eq!(
            barrier.state().unwrap().broken,
            None,
            "a try breaks nothing"
        );
        thread::scope(|scope| {
            let waiter = scope.spawn(|| barrier.wait(Deadline::Never));
            while barrier.state().unwrap().waiting == 0 {
                thread::yield_now();
            }
            barrier.abort().unwrap();
            assert_eq!(waiter.join().unwrap(), broken(Breakage::Aborted));
        });
        assert_eq!(barrier.wait(Deadline::Never), broken(Breakage::Aborted));
        barrier.reset().unwrap();
        assert_eq!(
            barrier.wait(Deadline::after(1_000_000)),
            Err(Error::Timeout)
        );
        assert_eq!(barrier.wait(Deadline::Never), broken(Breakage::Timeout));
        barrier.reset().unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| barrier.wait(Deadline::Never));
            while barrier.state().unwrap().waiting == 0 {
                thread::yield_now();
            }
            barrier.reset().unwrap();
            assert_eq!(waiter.join().unwrap(), broken(Breakage::Reset));
            let other = scope.spawn(|| barrier.wait(Deadline::Never));
            barrier.wait(Deadline::Never).unwrap();
            other.join().unwrap().unwrap();
        });
        thread::scope(|scope| {
            let waiter = scope.spawn(|| barrier.wait(Deadline::Never));
            barrier.destroy().unwrap();
            assert!(matches!(waiter.join().unwrap(), Err(Error::Destroyed(_))));
        });
        let error = Barrier::create(&member, 0, 0).unwrap_err().to_string();
        assert_eq!(
            error,
            "parties of a barrier is 0: it must be from 1 to 65536"
        );
    }
}

#[cfg(loom)]
mod models {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::wait::{Ended, sleep_until};

    fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(model);
    }

    /// As `Barrier::wait`, without a deadline.
    fn wait(alone: &Alone, slot: u32) -> Result<u32, Breakage> {
        let words = alone.words();
        let why = std::cell::Cell::new(None);
        let failed = |reason| {
            why.set(Some(reason));
            Error::from(Ended::Interrupted)
        };
        let arrive = || {
            let (arrival, moved) = words.arrive(slot);
            if moved {
                words.wake();
            }
            match arrival {
                Arrival::At(at) => Ok(Some(at)),
                Arrival::Later => Ok(None),
                Arrival::Broken(reason) => Err(failed(reason)),
            }
        };
        let none = || false;
        let at = match arrive() {
            Ok(Some(at)) => Ok(at),
            Ok(None) => sleep_until(words.room, Deadline::Never, |_| {}, arrive, none),
            Err(error) => Err(error),
        };
        let Ok(at) = at else {
            return Err(why.get().unwrap());
        };
        let look = || match words.look(at) {
            Look::Waiting | Look::Held => Ok(None),
            Look::Passed(number) | Look::Acts(number) => Ok(Some(number)),
            Look::Broken(reason) => Err(failed(reason)),
        };
        let looked = match look() {
            Ok(Some(number)) => Ok(number),
            Ok(None) => sleep_until(words.done, Deadline::Never, |_| {}, look, none),
            Err(error) => Err(error),
        };
        let whole_again = words.leave(at);
        words.wake_room();
        if whole_again {
            words.wake();
        }
        looked.map_err(|_| why.get().unwrap())
    }

    /// Two parties, twice: both pass both times.
    #[test]
    fn loom_a_barrier_passes_all() {
        check(2, || {
            let alone = Arc::new(Alone::new(2));
            let theirs = Arc::clone(&alone);
            let other = thread::spawn(move || [(); 2].map(|()| wait(&theirs, 1).unwrap()));
            let mine = [(); 2].map(|()| wait(&alone, 2).unwrap());
            let theirs = other.join().unwrap();
            for (mine, theirs) in mine.into_iter().zip(theirs) {
                assert_eq!(mine + theirs, 1);
            }
        });
    }

    /// One breaks the barrier while two meet there: both pass, or both are told.
    #[test]
    fn loom_a_barrier_is_passed_or_broken_for_all() {
        check(2, || {
            let alone = Arc::new(Alone::new(2));
            let parties = [1, 2].map(|slot| {
                let alone = Arc::clone(&alone);
                thread::spawn(move || wait(&alone, slot))
            });
            if alone.words().break_any(Breakage::Aborted) {
                alone.words().wake();
            }
            let [a, b] = parties.map(|party| party.join().unwrap());
            assert_eq!(a.is_ok(), b.is_ok(), "{a:?} {b:?}");
        });
    }

    /// A party takes its arrival back while the last one comes: it was counted, or the other goes on waiting, for a third.
    #[test]
    fn loom_an_arrival_is_taken_back_or_counted() {
        check(2, || {
            let alone = Arc::new(Alone::new(2));
            let words = alone.words();
            let (Arrival::At(at), false) = words.arrive(1) else {
                panic!("there is a place");
            };
            let theirs = Arc::clone(&alone);
            let other = thread::spawn(move || wait(&theirs, 2).unwrap());
            match words.withdraw(at) {
                None => {
                    words.wake_room();
                    wait(&alone, 3).unwrap();
                }
                Some(look) => {
                    assert!(matches!(look, Look::Passed(_)), "{look:?}");
                    words.leave(at);
                    words.wake_room();
                }
            }
            other.join().unwrap();
        });
    }

    /// The one who acts, or is to, dies at any moment: the other party is told, and never passes.
    #[test]
    fn loom_the_death_of_one_who_acts_breaks_the_barrier() {
        check(3, || {
            let alone = Arc::new(Alone::with_action(2));
            let theirs = Arc::clone(&alone);
            let other = thread::spawn(move || {
                let words = theirs.words();
                match words.arrive(2) {
                    (Arrival::At(at), _) => match words.look(at) {
                        Look::Acts(_) => words.acted(at, true),
                        _ => false,
                    },
                    _ => false,
                }
            });
            let words = alone.words();
            let (Arrival::At(at), _) = words.arrive(9) else {
                panic!("there is a place");
            };
            let acts = matches!(words.look(at), Look::Acts(_));
            words.recover(9);
            let passed = other.join().unwrap();
            assert!(!(acts && passed), "one acts");
            if !passed {
                assert_eq!(words.attributes().1, Some(Breakage::Died));
            }
        });
    }

    /// A party dies at the barrier while another waits or comes: that one is told, or had been there before.
    #[test]
    fn loom_a_death_breaks_the_barrier() {
        check(3, || {
            let alone = Arc::new(Alone::new(2));
            let words = alone.words();
            let (Arrival::At(_), false) = words.arrive(9) else {
                panic!("there is a place");
            };
            let theirs = Arc::clone(&alone);
            let other = thread::spawn(move || wait(&theirs, 2));
            words.recover(9);
            words.wake();
            match other.join().unwrap() {
                Ok(_) => {}
                Err(why) => assert_eq!(why, Breakage::Died),
            }
        });
    }
}
