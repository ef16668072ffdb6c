//! Models of growth, over the code that ships. Run by `RUSTFLAGS="--cfg loom" cargo test -p dragon-channels --release --lib
//! loom`.

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::cell::tests::{How, Queue};
use crate::cell::{Found, Take};

/// A chain in private memory: the rings lie ready, and `added` says which of them are in the chain.
struct Rings {
    limit: u64,
    rings: Vec<Arc<Queue>>,
    added: Vec<AtomicU64>,
    sending: AtomicU64,
    receiving: AtomicU64,
}

impl Links for Rings {
    type Ring = Arc<Queue>;

    fn limit(&self) -> u64 {
        self.limit
    }

    fn sending(&self) -> &AtomicU64 {
        &self.sending
    }

    fn receiving(&self) -> &AtomicU64 {
        &self.receiving
    }

    fn ring(&self, n: u64) -> Result<Arc<Queue>> {
        let index = usize::try_from(n).unwrap();
        let there = match index.checked_sub(1) {
            None => true,
            Some(further) => self.added[further].load(Ordering::Acquire) != 0,
        };
        there
            .then(|| Arc::clone(&self.rings[index]))
            .ok_or_else(|| corrupt(n))
    }
}

impl Grow for Rings {
    fn add_ring(&self, n: u64, cells: u64) -> Result<()> {
        let index = usize::try_from(n).unwrap();
        assert_eq!(self.rings[index].capacity().cells(), cells);
        let word = &self.added[index - 1];
        let _ = word.compare_exchange(0, n, Ordering::AcqRel, Ordering::Acquire);
        Ok(())
    }
}

impl Rings {
    /// One cell at first.
    fn new(limit: u32) -> Arc<Self> {
        let mut capacities = vec![1];
        while *capacities.last().unwrap() < limit {
            capacities.push((capacities.last().unwrap() * 2).min(limit));
        }
        Arc::new(Self {
            limit: limit.into(),
            added: capacities[1..].iter().map(|_| 0.into()).collect(),
            rings: capacities
                .into_iter()
                .map(|capacity| Arc::new(Queue::new(capacity, 0)))
                .collect(),
            sending: 0.into(),
            receiving: 0.into(),
        })
    }

    /// As `deposit_in_chain` does.
    fn send(&self, value: u64) -> bool {
        let Some((ring, ticket)) = self.claim(1, |_| {}).unwrap() else {
            return false;
        };
        ring.write(ticket.position, value);
        cell::publish(&ring, ticket.position, 1);
        true
    }

    /// As `try_receive_recorded` does.
    fn receive(&self) -> Option<u64> {
        loop {
            let oldest = self.receiving.load(Ordering::Acquire);
            let ring = self.ring(oldest).unwrap();
            match ring.find(2, How::CopyFirst) {
                Found::Copied(_, value) => return Some(value),
                Found::End => self.go_on_receiving(oldest).unwrap(),
                _ => return None,
            }
        }
    }

    /// As `try_peek` does.
    fn peek(&self) -> Option<u64> {
        loop {
            let oldest = self.receiving.load(Ordering::Acquire);
            let ring = self.ring(oldest).unwrap();
            let look = |position| Take::<(), _>::Leave(ring.copy(position));
            match cell::receive(&ring, 0, &mut false, |_| {}, look).unwrap() {
                Found::Left(_, value) => return Some(value),
                Found::End => self.go_on_receiving(oldest).unwrap(),
                _ => return None,
            }
        }
    }
}

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Two senders grow a channel together: both messages arrive, and there are as many as the limit says and not one more.
#[test]
fn loom_the_limit_is_exact_while_it_grows() {
    check(3, || {
        let rings = Rings::new(2);
        assert!(rings.send(1));
        let theirs = Arc::clone(&rings);
        let other = thread::spawn(move || theirs.send(2));
        let mine = rings.send(3);
        let theirs = other.join().unwrap();
        assert!(mine != theirs, "one of the two has room");
        assert_eq!(rings.length(), 2);
        assert_eq!(rings.receive(), Some(1));
        assert_eq!(rings.receive(), Some(if mine { 3 } else { 2 }));
        assert_eq!(rings.receive(), None);
    });
}

/// A sender grows a channel while a receiver goes through it: what was sent comes once and in order.
#[test]
fn loom_a_channel_grows_while_it_is_received_from() {
    check(2, || {
        let rings = Rings::new(4);
        assert!(rings.send(1));
        let theirs = Arc::clone(&rings);
        let sender = thread::spawn(move || assert!(theirs.send(2) && theirs.send(3)));
        let mut received = Vec::new();
        for _ in 0..2 {
            if let Some(seen) = rings.peek() {
                // Nobody else receives.
                received.extend(rings.receive());
                assert_eq!(received.last(), Some(&seen));
            }
        }
        sender.join().unwrap();
        while let Some(value) = rings.receive() {
            received.push(value);
        }
        assert_eq!(received, [1, 2, 3]);
    });
}

/// A sender dies with a ring in the chain before it has closed the full one: the next one goes on.
#[test]
fn loom_a_ring_that_a_dead_sender_added_is_used() {
    check(3, || {
        let rings = Rings::new(2);
        assert!(rings.send(1));
        rings.add_ring(1, 2).unwrap();
        let theirs = Arc::clone(&rings);
        let sender = thread::spawn(move || theirs.send(2));
        let first = rings.receive();
        assert_eq!(first, Some(1));
        assert!(sender.join().unwrap());
        assert_eq!(rings.receive(), Some(2));
    });
}
