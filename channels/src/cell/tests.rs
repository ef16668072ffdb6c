//! A queue over cells in private memory: against a `VecDeque`, and in models of all interleavings.

#[cfg(loom)]
use loom::cell::UnsafeCell;

use dragon_shmem::sync::AtomicU64;

use super::*;

pub(crate) struct Queue {
    capacity: Capacity,
    tail: AtomicU64,
    head: AtomicU64,
    free: AtomicU64,
    done: AtomicU64,
    end: AtomicU64,
    senders: Vec<AtomicU64>,
    published: Vec<AtomicU64>,
    receivers: Vec<AtomicU64>,
    /// Read before they are claimed, so atomics, without any order of their own.
    values: Vec<AtomicU64>,
    /// Read while they are claimed: loom checks that one thread at a time does.
    #[cfg(loom)]
    owned: Vec<UnsafeCell<u64>>,
}

#[cfg(loom)]
// SAFETY: loom checks that the values are accessed by one thread at a time.
unsafe impl Sync for Queue {}
#[cfg(loom)]
// SAFETY: as above.
unsafe impl Send for Queue {}

impl Cells for Queue {
    fn capacity(&self) -> Capacity {
        self.capacity
    }
    fn tail(&self) -> &AtomicU64 {
        &self.tail
    }
    fn head(&self) -> &AtomicU64 {
        &self.head
    }
    fn free(&self) -> &AtomicU64 {
        &self.free
    }
    fn done(&self) -> &AtomicU64 {
        &self.done
    }
    fn end(&self) -> &AtomicU64 {
        &self.end
    }
    fn sender(&self, index: u64) -> &AtomicU64 {
        &self.senders[usize::try_from(index).unwrap()]
    }
    fn published(&self, index: u64) -> &AtomicU64 {
        &self.published[usize::try_from(index).unwrap()]
    }
    fn receiver(&self, index: u64) -> &AtomicU64 {
        &self.receivers[usize::try_from(index).unwrap()]
    }
}

/// How a message is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Copied, then claimed.
    CopyFirst,
    /// Claimed, then copied.
    ClaimFirst,
}

#[cfg(loom)]
impl Cells for loom::sync::Arc<Queue> {
    fn capacity(&self) -> Capacity {
        (**self).capacity()
    }
    fn tail(&self) -> &AtomicU64 {
        (**self).tail()
    }
    fn head(&self) -> &AtomicU64 {
        (**self).head()
    }
    fn free(&self) -> &AtomicU64 {
        (**self).free()
    }
    fn done(&self) -> &AtomicU64 {
        (**self).done()
    }
    fn end(&self) -> &AtomicU64 {
        (**self).end()
    }
    fn sender(&self, index: u64) -> &AtomicU64 {
        (**self).sender(index)
    }
    fn published(&self, index: u64) -> &AtomicU64 {
        (**self).published(index)
    }
    fn receiver(&self, index: u64) -> &AtomicU64 {
        (**self).receiver(index)
    }
}

impl Queue {
    /// `lap`: the first lap, so that laps near their end can be tried.
    pub(crate) fn new(capacity: u32, lap: u64) -> Self {
        let start = lap * u64::from(capacity);
        let words = |which: usize| (0..capacity).map(|_| unused(lap)[which].into()).collect();
        Self {
            capacity: Capacity::new(capacity),
            tail: AtomicU64::new(start),
            head: AtomicU64::new(start),
            free: AtomicU64::new(start),
            done: AtomicU64::new(start),
            end: AtomicU64::new(0),
            senders: words(0),
            published: words(1),
            receivers: words(2),
            values: (0..capacity).map(|_| 0.into()).collect(),
            #[cfg(loom)]
            owned: (0..capacity).map(|_| 0.into()).collect(),
        }
    }

    fn index(&self, position: u64) -> usize {
        usize::try_from(self.capacity.place(position).1).unwrap()
    }

    pub(crate) fn write(&self, position: u64, value: u64) {
        self.values[self.index(position)].store(value, Ordering::Relaxed);
        #[cfg(loom)]
        // SAFETY: the claim gives the cell to this thread; loom checks it.
        self.owned[self.index(position)].with_mut(|cell| unsafe { *cell = value });
    }

    pub(crate) fn copy(&self, position: u64) -> u64 {
        self.values[self.index(position)].load(Ordering::Relaxed)
    }

    fn read_claimed(&self, position: u64) -> u64 {
        #[cfg(loom)]
        // SAFETY: as in `write`.
        return self.owned[self.index(position)].with(|cell| unsafe { *cell });
        #[cfg(not(loom))]
        self.copy(position)
    }

    /// As channels do: in one step if that is possible.
    fn claim(&self, slot: u32) -> Place {
        match claim_at_once(self, slot, |_| {}) {
            Some(spot) => Place::Claimed(spot.position),
            None => claim_to_send(self, slot, |_| true).unwrap(),
        }
    }

    fn send_to(&self, slot: u32, value: u64) -> Place {
        let place = self.claim(slot);
        if let Place::Claimed(position) = place {
            self.write(position, value);
            publish(self, position, slot);
        }
        place
    }

    fn send(&self, slot: u32, value: u64) -> bool {
        matches!(self.send_to(slot, value), Place::Claimed(_))
    }

    pub(crate) fn find(&self, slot: u32, how: How) -> Found<u64> {
        let look = |position| match how {
            How::CopyFirst => Take::Copied(self.copy(position)),
            How::ClaimFirst => Take::Claim,
        };
        receive(self, slot, &mut false, |_| {}, look).unwrap()
    }

    fn receive_as(&self, slot: u32, how: How) -> Option<u64> {
        match self.find(slot, how) {
            Found::Copied(_, value) => Some(value),
            Found::Claimed(position) => {
                let value = self.read_claimed(position);
                release(self, position);
                Some(value)
            }
            _ => None,
        }
    }

    /// As channels do: in one step if that is possible.
    fn receive(&self, slot: u32) -> Option<u64> {
        let mut value = 0;
        let look = |spot: Spot| {
            value = self.copy(spot.position);
            true
        };
        if receive_at_once(self, look) {
            return Some(value);
        }
        if !maybe_readable(self) {
            return None;
        }
        self.receive_as(slot, How::CopyFirst)
    }

    #[cfg(not(loom))]
    fn peek(&self) -> Option<u64> {
        let look = |position| Take::<(), _>::Leave(self.copy(position));
        match receive(self, 0, &mut false, |_| {}, look).unwrap() {
            Found::Left(_, value) => Some(value),
            _ => None,
        }
    }
}

#[cfg(not(loom))]
mod against_vec_deque {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Send,
        /// Several at once.
        SendMany(u8),
        Receive(bool),
        Peek,
        /// A sender claims, and dies.
        DyingSend,
        /// A receiver claims, and dies.
        DyingReceive,
    }

    proptest! {
        #[test]
        fn a_queue_is_a_bounded_fifo(
            capacity in 1_u32..9,
            lap in prop_oneof![Just(0), Just((1_u64 << 40) - 2), 0..1_u64 << 40],
            ops in prop::collection::vec(
                prop_oneof![
                    5 => Just(Op::Send), 5 => any::<bool>().prop_map(Op::Receive), 1 => Just(Op::Peek),
                    1 => (1_u8..6).prop_map(Op::SendMany),
                    1 => Just(Op::DyingSend), 1 => Just(Op::DyingReceive),
                ],
                0..200,
            ),
        ) {
            let queue = Queue::new(capacity, lap);
            // `None` stands for a cell whose sender died.
            let mut model: VecDeque<Option<u64>> = VecDeque::new();
            let skip = |model: &mut VecDeque<Option<u64>>| {
                while model.front() == Some(&None) {
                    model.pop_front();
                }
            };
            for (n, op) in ops.into_iter().enumerate() {
                let value = n as u64;
                match op {
                    Op::Send => {
                        // A sender makes room by clearing away a dead cell only at the very front.
                        if model.len() == capacity as usize && model.front() == Some(&None) {
                            model.pop_front();
                        }
                        let fits = model.len() < capacity as usize;
                        prop_assert_eq!(is_writable(&queue), fits);
                        prop_assert_eq!(maybe_writable(&queue), fits);
                        prop_assert_eq!(queue.send(7, value), fits);
                        if fits {
                            model.push_back(Some(value));
                        }
                    }
                    Op::SendMany(count) => {
                        for more in 0..u64::from(count) {
                            if model.len() == capacity as usize && model.front() == Some(&None) {
                                model.pop_front();
                            }
                            let Place::Claimed(position) = queue.claim(7) else {
                                prop_assert_eq!(model.len(), capacity as usize);
                                break;
                            };
                            queue.write(position, value << 8 | more);
                            publish_more(&queue, position, 7);
                            model.push_back(Some(value << 8 | more));
                        }
                    }
                    Op::Receive(copy_first) => {
                        skip(&mut model);
                        let how = if copy_first { How::CopyFirst } else { How::ClaimFirst };
                        prop_assert_eq!(queue.receive_as(8, how), model.pop_front().flatten());
                    }
                    Op::Peek => {
                        prop_assert_eq!(is_readable(&queue), model.iter().any(Option::is_some));
                        skip(&mut model);
                        prop_assert_eq!(queue.peek(), model.front().copied().flatten());
                        prop_assert_eq!(maybe_readable(&queue), !model.is_empty());
                    }
                    Op::DyingSend => {
                        if model.len() == capacity as usize && model.front() == Some(&None) {
                            model.pop_front();
                        }
                        let place = queue.claim(9);
                        prop_assert_eq!(
                            matches!(place, Place::Claimed(_)),
                            model.len() < capacity as usize
                        );
                        if let Place::Claimed(position) = place {
                            prop_assert!(left_writing(&queue, position, 9));
                            prop_assert!(!left_writing(&queue, position, 7));
                            abandon(&queue, position);
                            model.push_back(None);
                        }
                    }
                    Op::DyingReceive => {
                        skip(&mut model);
                        let found = queue.find(9, How::ClaimFirst);
                        prop_assert_eq!(found == Found::Empty, model.is_empty());
                        if let Found::Claimed(position) = found {
                            prop_assert!(left_reading(&queue, position, 9));
                            prop_assert!(is_received(&queue, position));
                            release(&queue, position);
                            model.pop_front();
                        }
                    }
                }
                prop_assert_eq!(length(&queue), model.len() as u64);
            }
        }
    }

    fn claimed(queue: &Queue, slot: u32) -> u64 {
        match queue.claim(slot) {
            Place::Claimed(position) => position,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_sender_that_was_overtaken_holds_the_others_up_but_not_for_ever() {
        let queue = Queue::new(2, 0);
        let slow = claimed(&queue, 1);
        assert!(queue.send(2, 20));
        assert_eq!(queue.receive(3), None, "order is strict");
        assert!(!queue.send(2, 21), "both cells are in use");
        abandon(&queue, slow);
        assert_eq!(queue.receive(3), Some(20));
        assert_eq!(queue.receive(3), None);
    }

    #[test]
    fn a_full_queue_of_dead_cells_takes_messages() {
        let queue = Queue::new(1, 0);
        let position = claimed(&queue, 1);
        assert!(!queue.send(2, 1));
        abandon(&queue, position);
        assert!(queue.send(2, 2));
        assert_eq!(queue.receive(3), Some(2));
    }

    #[test]
    fn hints_that_lag_by_laps_are_overtaken_in_a_few_steps() {
        let queue = Queue::new(100, 0);
        for n in 0..1_050 {
            assert!(queue.send(1, n));
            assert_eq!(queue.receive(2), Some(n));
        }
        for n in 0..40 {
            assert!(queue.send(1, n));
        }
        for hint in [&queue.tail, &queue.head, &queue.free, &queue.done] {
            hint.store(7, Ordering::Relaxed);
        }
        assert_eq!(length(&queue), 40);
        assert!(queue.send(1, 40));
        assert_eq!(queue.receive(2), Some(0));
        assert_eq!(queue.head.load(Ordering::Relaxed), 1_051);
    }

    #[test]
    fn a_closed_queue_is_drained_to_its_end() {
        for messages in 0..=3 {
            let queue = Queue::new(3, 0);
            for n in 0..messages {
                assert!(queue.send(1, n));
            }
            close(&queue).unwrap();
            close(&queue).unwrap();
            assert_eq!(queue.claim(1), Place::Closed(messages));
            for n in 0..messages {
                assert_eq!(queue.receive(2), Some(n));
            }
            assert_eq!(queue.find(2, How::CopyFirst), Found::End);
            assert_eq!(length(&queue), 0);
        }
    }

    #[test]
    fn scribbled_words_are_reported() {
        let scribbled = State::new(9, 0, Tag::Full).0;
        let queue = Queue::new(2, 5);
        queue.senders[0].store(State::new(2, 0, Tag::Taken).0, Ordering::Relaxed);
        queue.published[0].store(scribbled, Ordering::Relaxed);
        assert!(claim_to_send(&queue, 1, |_| true).is_err());
        assert!(receive(&queue, 1, &mut false, |_| {}, |_| Take::<()>::Copied(())).is_err());
        let queue = Queue::new(2, 5);
        queue.tail.store(100, Ordering::Relaxed);
        assert!(claim_to_send(&queue, 1, |_| true).is_err());
    }
}

#[cfg(loom)]
mod models {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;
    use crate::Deadline;
    use crate::wait::{Ended, WaitWord, sleep_until};

    fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(model);
    }

    /// Two senders, one receiver, two cells: what was sent arrives once, in the order of its sender, and the bytes of a
    /// cell are never touched by two at a time (loom checks the `UnsafeCell`).
    #[test]
    fn loom_two_senders_one_receiver() {
        check(3, || {
            let queue = Arc::new(Queue::new(2, 0));
            let senders: Vec<_> = [10_u64, 20]
                .into_iter()
                .map(|first| {
                    let queue = Arc::clone(&queue);
                    thread::spawn(move || {
                        let count = if first == 10 { 2 } else { 1 };
                        let sent = |value: &u64| queue.send(1, *value);
                        (first..first + count).take_while(sent).count()
                    })
                })
                .collect();
            let mut received = Vec::new();
            for _ in 0..2 {
                received.extend(queue.receive(3));
            }
            let sent: usize = senders.into_iter().map(|s| s.join().unwrap()).sum();
            while let Some(value) = queue.receive(3) {
                received.push(value);
            }
            assert_eq!(received.len(), sent);
            let firsts: Vec<_> = received.iter().filter(|v| **v < 20).copied().collect();
            assert!(firsts.is_sorted() && firsts.windows(2).all(|w| w[0] != w[1]));
        });
    }

    /// One cell that two senders and a receiver use in turn: a cell is not overwritten before it was read.
    #[test]
    fn loom_one_cell() {
        check(3, || {
            let queue = Arc::new(Queue::new(1, 0));
            let theirs = Arc::clone(&queue);
            let sender = thread::spawn(move || (1..3).filter(|v| theirs.send(1, *v)).count());
            let theirs = Arc::clone(&queue);
            let other = thread::spawn(move || usize::from(theirs.send(2, 9)));
            let mut received = usize::from(queue.receive(3).is_some());
            let sent = sender.join().unwrap() + other.join().unwrap();
            while queue.receive(3).is_some() {
                received += 1;
            }
            assert_eq!(received, sent);
        });
    }

    struct Waited {
        queue: Queue,
        readable: WaitWord,
        writable: WaitWord,
    }

    impl Waited {
        fn new(capacity: u32) -> Arc<Self> {
            Arc::new(Self {
                queue: Queue::new(capacity, 0),
                readable: WaitWord::default(),
                writable: WaitWord::default(),
            })
        }

        fn send(&self, value: u64) {
            let attempt = || {
                let sent = self.queue.send(1, value);
                Ok::<_, crate::Error>(sent.then_some(()))
            };
            let more = || maybe_writable(&self.queue);
            if attempt().unwrap().is_none() {
                sleep_until(&self.writable, Deadline::Never, |_| {}, attempt, more).unwrap();
            }
            loom::sync::atomic::fence(Ordering::SeqCst);
            self.readable.wake_one_of(|| 1);
        }

        fn receive(&self) -> u64 {
            let value = self.take();
            loom::sync::atomic::fence(Ordering::SeqCst);
            self.writable.wake_one_of(|| 1);
            value
        }

        /// Receives, and wakes no sender.
        fn take(&self) -> u64 {
            let attempt = || Ok::<_, crate::Error>(self.queue.receive(2));
            let more = || maybe_readable(&self.queue);
            match attempt().unwrap() {
                Some(value) => value,
                None => {
                    sleep_until(&self.readable, Deadline::Never, |_| {}, attempt, more).unwrap()
                }
            }
        }
    }

    /// Two receivers sleep, two senders publish in any order: nobody sleeps on while there is a message. A lost wake-up
    /// shows as a deadlock of the model.
    #[test]
    fn loom_no_wake_up_is_lost() {
        check(2, || {
            let channel = Waited::new(2);
            let claimed = [1_u64, 2].map(|value| {
                let Place::Claimed(position) = channel.queue.claim(1) else {
                    panic!("full")
                };
                channel.queue.write(position, value);
                position
            });
            let publish = |channel: &Waited, position| {
                publish(&channel.queue, position, 1);
                loom::sync::atomic::fence(Ordering::SeqCst);
                channel.readable.wake_one_of(|| 1);
            };
            let theirs = Arc::clone(&channel);
            let other = thread::spawn(move || publish(&theirs, claimed[1]));
            let receivers = [(); 2].map(|()| {
                let theirs = Arc::clone(&channel);
                thread::spawn(move || theirs.take())
            });
            publish(&channel, claimed[0]);
            other.join().unwrap();
            let sum: u64 = receivers.into_iter().map(|r| r.join().unwrap()).sum();
            assert_eq!(sum, 3);
        });
    }

    /// Two receivers sleep, and a sender publishes two messages before it looks for sleepers: both are woken.
    #[test]
    fn loom_a_batch_wakes_as_many_as_it_has() {
        check(3, || {
            let channel = Waited::new(2);
            let receivers = [(); 2].map(|()| {
                let theirs = Arc::clone(&channel);
                thread::spawn(move || theirs.take())
            });
            for value in [1_u64, 2] {
                let Place::Claimed(position) = channel.queue.claim(1) else {
                    panic!("full")
                };
                channel.queue.write(position, value);
                publish_more(&channel.queue, position, 1);
            }
            loom::sync::atomic::fence(Ordering::SeqCst);
            channel.readable.wake_sleepers(2);
            let sum: u64 = receivers.into_iter().map(|r| r.join().unwrap()).sum();
            assert_eq!(sum, 3);
        });
    }

    /// A message that is seen without being received is that of its position, though its cell is used again meanwhile.
    #[test]
    fn loom_who_peeks_sees_one_message() {
        check(3, || {
            let queue = Arc::new(Queue::new(1, 0));
            let send = |queue: &Queue| {
                let Place::Claimed(position) = queue.claim(1) else {
                    return;
                };
                queue.write(position, position);
                publish(queue, position, 1);
            };
            send(&queue);
            let theirs = Arc::clone(&queue);
            let other = thread::spawn(move || {
                // It reads another copy: of what two threads both read, models try fewer orders.
                theirs.receive_as(2, How::ClaimFirst);
                send(&theirs);
            });
            let look = |position| Take::<(), _>::Leave(queue.copy(position));
            let found = receive(&*queue, 0, &mut false, |_| {}, look).unwrap();
            if let Found::Left(position, value) = found {
                assert_eq!(value, position);
            }
            other.join().unwrap();
        });
    }

    /// A sender of two messages in a row wakes nobody for the second while who was woken for the first has not looked, and
    /// that one takes it or passes on.
    #[test]
    fn loom_wake_ups_that_are_saved_are_not_missed() {
        check(2, || {
            let channel = Waited::new(4);
            let receivers = [(); 2].map(|()| {
                let theirs = Arc::clone(&channel);
                thread::spawn(move || theirs.take())
            });
            channel.send(1);
            channel.send(2);
            let sum: u64 = receivers.into_iter().map(|r| r.join().unwrap()).sum();
            assert_eq!(sum, 3);
        });
    }

    /// A sender sleeps on a full channel until the receiver makes room.
    #[test]
    fn loom_a_full_channel_wakes_its_sender() {
        check(3, || {
            let channel = Waited::new(1);
            let theirs = Arc::clone(&channel);
            let sender = thread::spawn(move || {
                theirs.send(1);
                theirs.send(2);
            });
            assert_eq!(channel.receive(), 1);
            assert_eq!(channel.receive(), 2);
            sender.join().unwrap();
        });
    }

    /// Whoever destroys wakes all who sleep.
    #[test]
    fn loom_destroy_wakes() {
        check(3, || {
            let channel = Waited::new(1);
            let gone = Arc::new(AtomicU64::new(0));
            let mut waiters = Vec::new();
            for _ in 0..2 {
                let (channel, gone) = (Arc::clone(&channel), Arc::clone(&gone));
                waiters.push(thread::spawn(move || {
                    let attempt = || match gone.load(Ordering::Acquire) {
                        0 => Ok(channel.queue.receive(2)),
                        _ => Err(crate::Error::from(Ended::Timeout)),
                    };
                    sleep_until(
                        &channel.readable,
                        Deadline::Never,
                        |_| {},
                        attempt,
                        || false,
                    )
                }));
            }
            gone.store(1, Ordering::Release);
            loom::sync::atomic::fence(Ordering::SeqCst);
            channel.readable.wake(u32::MAX);
            for waiter in waiters {
                assert!(waiter.join().unwrap().is_err());
            }
        });
    }
}
