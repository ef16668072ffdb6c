//! Tests of broadcasts and of their payloads.

use super::payloads::Place;
use super::*;
use crate::seat::{Seat, SeatsHead};

/// Seats and payloads outside shared memory.
#[derive(Debug)]
struct Alone {
    head: SeatsHead,
    seats: Vec<Seat>,
    places: Vec<Place>,
}

impl Alone {
    fn new(seats: usize, places: usize) -> Self {
        Self {
            head: SeatsHead::default(),
            seats: (0..seats).map(|_| Seat::default()).collect(),
            places: (0..places).map(|_| Place::default()).collect(),
        }
    }

    fn seats(&self) -> Seats<'_> {
        Seats {
            head: &self.head,
            seats: &self.seats,
        }
    }

    fn payloads(&self) -> Payloads<'_> {
        Payloads {
            places: &self.places,
        }
    }

    /// As `Local::give` and `close`, with a payload in a block of this number.
    fn trigger(&self, slot: u32, block: u64, freed: &dyn Fn(u64)) -> Option<u32> {
        let (seats, payloads) = (self.seats(), self.payloads());
        let number = payloads.claim(slot)?;
        payloads.set_block(number, block);
        payloads.publish(number, 1);
        let each = |one_more| payloads.count(number, one_more);
        let woken = seats.give(seats.limit(), ALL, number, each);
        payloads.close(number, &seats, slot, &freeing(freed));
        Some(woken)
    }

    /// As `Local::stand`.
    fn stand(&self, seat: u32, note: u8, slot: u32, freed: &dyn Fn(u64)) {
        let (seats, payloads) = (self.seats(), self.payloads());
        seats.stand(seat).unwrap();
        payloads.done(note, &seats, slot, &freeing(freed));
    }
}

fn freeing(freed: &dyn Fn(u64)) -> impl Fn(u64, &dyn Fn()) {
    move |block, release| {
        freed(block);
        release();
    }
}

#[cfg(not(loom))]
mod plain {
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::local::LocalNode;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Sit(u32),
        Trigger(u32),
        Read(usize),
        Die(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1..4_u32).prop_map(Step::Sit),
            2 => (1..4_u32).prop_map(Step::Trigger),
            3 => (0..8_usize).prop_map(Step::Read),
            1 => (1..4_u32).prop_map(Step::Die),
        ]
    }

    proptest! {
        /// Each payload is freed once, when the last one has read it or died, and not before.
        #[test]
        fn payloads_against_an_oracle(steps in proptest::collection::vec(step(), 1..100)) {
            let alone = Alone::new(6, 3);
            let freed = RefCell::new(Vec::new());
            let free = |block| freed.borrow_mut().push(block);
            // Seat, slot, and the payload that it was given.
            let mut sitting: Vec<(u32, u32, Option<u64>)> = Vec::new();
            let mut readers: HashMap<u64, usize> = HashMap::new();
            let mut expected = Vec::new();
            for (block, step) in (1..).zip(steps) {
                match step {
                    Step::Sit(slot) => if let Ok(seat) = alone.seats().sit(slot) {
                        sitting.push((seat, slot, None));
                    },
                    Step::Trigger(slot) => match alone.trigger(slot, block, &free) {
                        None => prop_assert_eq!(readers.len(), 3, "there was a place"),
                        Some(woken) => {
                            let waiting = sitting.iter_mut().filter(|seat| seat.2.is_none());
                            let count = waiting.map(|seat| seat.2 = Some(block)).count();
                            prop_assert_eq!(woken as usize, count);
                            if count == 0 {
                                expected.push(block);
                            } else {
                                readers.insert(block, count);
                            }
                        }
                    },
                    Step::Read(n) => {
                        let given = sitting.iter().position(|seat| seat.2.is_some());
                        if let Some(n) = given.filter(|_| n < sitting.len()) {
                            let (seat, slot, block) = sitting.remove(n);
                            let Look::Given(note) = alone.seats().look(seat).unwrap() else {
                                panic!("seat {seat} was not woken");
                            };
                            prop_assert_eq!(alone.payloads().content(note).unwrap().1, block);
                            alone.stand(seat, note, slot, &free);
                            leave(&mut readers, &mut expected, block);
                        }
                    }
                    Step::Die(slot) => {
                        alone.seats().recover(slot, |_| {});
                        let (payloads, seats) = (alone.payloads(), alone.seats());
                        payloads.recover(slot, &seats, 0, &freeing(&free), |block| {
                            panic!("block {block} was named")
                        });
                        for seat in sitting.extract_if(.., |seat| seat.1 == slot) {
                            leave(&mut readers, &mut expected, seat.2);
                        }
                    }
                }
                let mut got = freed.borrow().clone();
                got.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(&got, &expected);
                prop_assert_eq!(alone.payloads().free_places(), 3 - readers.len());
            }
        }
    }

    fn leave(readers: &mut HashMap<u64, usize>, expected: &mut Vec<u64>, block: Option<u64>) {
        let Some(block) = block else { return };
        let left = readers.get_mut(&block).unwrap();
        *left -= 1;
        if *left == 0 {
            readers.remove(&block);
            expected.push(block);
        }
    }

    fn used(node: &LocalNode) -> u64 {
        node.daemon().pool().stats().unwrap().used
    }

    #[test]
    fn payloads_of_all_sizes_arrive_and_leave_nothing() {
        let node = LocalNode::new().unwrap();
        let member = node.member().unwrap();
        let before = used(&node);
        {
            let options = BroadcastOptions::default();
            let broadcast = Broadcast::create(&member, &options).unwrap();
            let with_broadcast = used(&node);
            for size in [0, 1, 128, 129, 5_000, 300_000] {
                let payload: Vec<u8> = (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect();
                thread::scope(|scope| {
                    let waiters = [(); 3].map(|()| scope.spawn(|| broadcast.wait(Deadline::Never)));
                    let trigger = Trigger::ALL.after(3);
                    assert_eq!(broadcast.trigger(trigger, &payload, Deadline::Never), Ok(3));
                    for waiter in waiters {
                        assert_eq!(waiter.join().unwrap().unwrap().into_vec(), payload);
                    }
                });
                assert_eq!(used(&node), with_broadcast, "{size} bytes left something");
            }
            // Unread payloads go with the broadcast.
            let local = broadcast.handle.local().unwrap().unwrap();
            let seat = Local::open(&member, local, broadcast.id())
                .unwrap()
                .sit(1)
                .unwrap();
            assert_eq!(
                broadcast.trigger(Trigger::ALL, &[1; 5_000], Deadline::Now),
                Ok(1)
            );
            assert_ne!(used(&node), with_broadcast, "seat {seat} has not read");
        }
        assert_eq!(used(&node), before);
    }

    #[test]
    fn try_forms_deadlines_and_limits() {
        let node = LocalNode::new().unwrap();
        let member = node.member().unwrap();
        let options = BroadcastOptions {
            waiters: 2,
            payloads: 1,
            ..BroadcastOptions::default()
        };
        let broadcast = Broadcast::create(&member, &options).unwrap();
        let soon = || Deadline::after(1_000_000);
        assert_eq!(broadcast.wait(Deadline::Now).unwrap_err(), Error::Empty);
        assert_eq!(broadcast.wait(soon()).unwrap_err(), Error::Timeout);
        let one = Trigger::ONE.after(1);
        assert_eq!(
            broadcast.trigger(one, b"x", Deadline::Now),
            Err(Error::Empty)
        );
        assert_eq!(broadcast.trigger(one, b"x", soon()), Err(Error::Timeout));
        let error = broadcast
            .trigger(Trigger::ONE.after(3), b"x", Deadline::Now)
            .unwrap_err();
        let text = "waiters to trigger after is 3: it must be from 0 to 2";
        assert_eq!(error.to_string(), text);
        let entry = broadcast.handle.local().unwrap().unwrap();
        let local = Local::open(&member, entry, broadcast.id()).unwrap();
        let seat = local.sit(member.slot().index).unwrap();
        assert_eq!(broadcast.trigger(Trigger::ONE, b"x", Deadline::Now), Ok(1));
        let used_before = used(&node);
        for payload in [&b"y"[..], &[0; 10_000]] {
            let sent = broadcast.trigger(Trigger::ONE, payload, Deadline::Now);
            assert_eq!(sent, Err(Error::Full));
            let sent = broadcast.trigger(Trigger::ONE, payload, soon());
            assert_eq!(sent, Err(Error::Timeout));
        }
        assert_eq!(used(&node), used_before);
        thread::scope(|scope| {
            let triggerer = scope.spawn(|| broadcast.trigger(Trigger::ONE, b"y", Deadline::Never));
            let Look::Given(note) = local.seats.look(seat).unwrap() else {
                panic!("it was woken");
            };
            assert_eq!(local.read(note).unwrap(), b"x");
            local.stand(seat, note).unwrap();
            assert_eq!(triggerer.join().unwrap(), Ok(0));
        });
        thread::scope(|scope| {
            let waiter = scope.spawn(|| broadcast.wait(Deadline::Never));
            broadcast.destroy().unwrap();
            assert!(matches!(waiter.join().unwrap(), Err(Error::Destroyed(_))));
        });
    }

    /// Waiters and triggerers at once: every payload that a trigger gave to `n` arrives `n` times, and nothing is left.
    #[test]
    fn every_wake_up_arrives_once() {
        const ROUNDS: u64 = 400;
        let node = LocalNode::new().unwrap();
        let before = used(&node);
        {
            let members = [(); 3].map(|()| node.member().unwrap());
            let options = BroadcastOptions {
                payloads: 2,
                ..BroadcastOptions::default()
            };
            let broadcast = Broadcast::create(&members[0], &options).unwrap();
            let descriptor = broadcast.descriptor();
            let (given, got) = (AtomicU64::new(0), AtomicU64::new(0));
            let over = AtomicUsize::new(0);
            thread::scope(|scope| {
                for n in 0..4 {
                    let (member, got) = (&members[n % 3], &got);
                    scope.spawn(move || {
                        let broadcast = Broadcast::attach(member, &descriptor, false).unwrap();
                        while let Ok(message) = broadcast.wait(Deadline::Never) {
                            let bytes = message.into_vec();
                            if !bytes.is_empty() {
                                assert!(bytes.iter().all(|byte| *byte == bytes[0]));
                            }
                            got.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        }
                    });
                }
                for member in members.iter().take(2) {
                    let (given, over) = (&given, &over);
                    scope.spawn(move || {
                        let broadcast = Broadcast::attach(member, &descriptor, false).unwrap();
                        for round in 0..ROUNDS {
                            let length = usize::try_from(round % 3 * 100).unwrap();
                            let payload = vec![u8::try_from(round % 256).unwrap(); length];
                            let trigger = match round % 3 {
                                0 => Trigger::ALL.after(1),
                                1 => Trigger::ONE,
                                _ => Trigger::some(2).after(1),
                            };
                            let woken = broadcast
                                .trigger(trigger, &payload, Deadline::Never)
                                .unwrap();
                            let bytes = u64::from(woken) * length as u64;
                            given.fetch_add(bytes, Ordering::Relaxed);
                        }
                        over.fetch_add(1, Ordering::Relaxed);
                    });
                }
                while over.load(Ordering::Relaxed) < 2
                    || got.load(Ordering::Relaxed) != given.load(Ordering::Relaxed)
                {
                    thread::yield_now();
                }
                broadcast.destroy().unwrap();
            });
        }
        assert_eq!(used(&node), before);
    }
}

#[cfg(loom)]
mod models {
    use dragon_shmem::sync::AtomicU64;
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(model);
    }

    /// Two read one payload while its triggerer closes it: it is freed once, after both.
    #[test]
    fn loom_a_payload_is_freed_once() {
        check(2, || {
            let alone = Arc::new(Alone::new(2, 1));
            let freed = Arc::new(AtomicU64::new(0));
            let waiters = [1, 2].map(|slot| {
                let seat = alone.seats().sit(slot).unwrap();
                let (alone, freed) = (Arc::clone(&alone), Arc::clone(&freed));
                thread::spawn(move || {
                    let alive = || Ok(());
                    let note = alone.seats().wait(seat, Deadline::Never, alive).unwrap();
                    let before = freed.load(Ordering::Acquire);
                    assert_eq!(before, 0, "a reader is left");
                    let free = |_| {
                        freed.fetch_add(1, Ordering::AcqRel);
                    };
                    alone.stand(seat, note, slot, &free);
                })
            });
            let free = |_| {
                freed.fetch_add(1, Ordering::AcqRel);
            };
            assert_eq!(alone.trigger(3, 77, &free), Some(2));
            for waiter in waiters {
                waiter.join().unwrap();
            }
            assert_eq!(freed.load(Ordering::Acquire), 1);
        });
    }

    /// A reader dies between leaving its seat and counting itself out, while another reads: recovery sees to it.
    #[test]
    fn loom_a_dead_readers_payload_is_freed() {
        check(3, || {
            let alone = Arc::new(Alone::new(2, 1));
            let freed = Arc::new(AtomicU64::new(0));
            let dead = alone.seats().sit(9).unwrap();
            let seat = alone.seats().sit(1).unwrap();
            let free = |_| {
                freed.fetch_add(1, Ordering::AcqRel);
            };
            assert_eq!(alone.trigger(3, 77, &free), Some(2));
            alone.seats().stand(dead).unwrap();
            let (theirs, count) = (Arc::clone(&alone), Arc::clone(&freed));
            let reader = thread::spawn(move || {
                let free = |_| {
                    count.fetch_add(1, Ordering::AcqRel);
                };
                theirs.stand(seat, 0, 1, &free);
            });
            alone.seats().recover(9, |_| {});
            let (payloads, seats) = (alone.payloads(), alone.seats());
            payloads.recover(9, &seats, 0, &freeing(&free), |_| {});
            reader.join().unwrap();
            assert_eq!(freed.load(Ordering::Acquire), 1);
            assert_eq!(payloads.free_places(), 1);
        });
    }
}
