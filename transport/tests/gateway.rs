//! The gateway is full, and a signal comes, or its end: nothing that was to be told is lost, and nobody sleeps on.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside their functions"
)]

mod rig;

use std::os::unix::thread::JoinHandleExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use dragon_channels::{Channel, Error, Event, Interest, Ready, Set};
use dragon_protocol::ObjectId;
use dragon_shmem::Deadline;
use rig::{Node, channel, seen_by, until, watched};

static SIGNALS: AtomicU64 = AtomicU64::new(0);

/// Ends one sleep of a thread.
fn signal(thread: libc::pthread_t) {
    extern "C" fn count(_: libc::c_int) {
        SIGNALS.fetch_add(1, Ordering::SeqCst);
    }
    // SAFETY: all zeros is a valid sigaction: no flags (the wait is not restarted), an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = count as *const () as usize;
    // SAFETY: the action is initialised, and the handler only counts.
    unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    let before = SIGNALS.load(Ordering::SeqCst);
    // SAFETY: the thread has not been joined.
    unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
    until("the signal is handled", || {
        SIGNALS.load(Ordering::SeqCst) != before
    });
}

/// Stands in for a node's gateway, and is full.
struct Full<'a> {
    node: &'a Node,
    gateway: ObjectId,
    full: Channel,
}

impl<'a> Full<'a> {
    fn new(node: &'a Node) -> Self {
        let full = channel(&node.daemon, 1);
        full.send(b"", 0, Deadline::Now).unwrap();
        let gateway = node.control.gateway().unwrap();
        node.control.set_gateway(full.id());
        Self {
            node,
            gateway,
            full,
        }
    }

    fn sleepers(&self) -> u32 {
        self.full.attributes().unwrap().senders_waiting
    }

    /// What comes from now on goes to the gateway.
    fn step_aside(&self) {
        self.node.control.set_gateway(self.gateway);
    }

    /// The same for what wanted to go through here, if its sender does not turn to the gateway itself.
    fn pass_on(&self, sender: &thread::JoinHandle<impl Sized>) {
        self.step_aside();
        self.full.receive(Deadline::Now).unwrap();
        let descriptor = dragon_protocol::Descriptor {
            object: self.gateway,
            ..self.full.descriptor()
        };
        let gateway = seen_by(&self.node.daemon, descriptor);
        until("the sender has gone on", || {
            let finished = sender.is_finished();
            let request = self.full.receive(Deadline::Now);
            let passed = request.map(|request| {
                let request = request.into_vec();
                gateway.send(&request, 0, watched()).unwrap();
            });
            passed.is_ok() || finished
        });
    }
}

#[test]
fn a_signal_at_a_full_gateway_loses_no_change() {
    rig::on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let event = Event::create(&near, 0).unwrap();
        let remote = Event::attach(&far, &event.descriptor(), false).unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| remote.wait(watched()));
            until("the wait is parked", || nodes[0].stats().parked == 1);
            let gateway = Full::new(&nodes[0]);
            let setter = thread::spawn(move || event.set().map(|_| event));
            until("the change is about to be told", || gateway.sleepers() == 1);
            signal(setter.as_pthread_t());
            until("the signal has had its effect", || {
                setter.is_finished() || gateway.sleepers() == 1
            });
            gateway.pass_on(&setter);
            waiter.join().unwrap().unwrap();
            setter.join().unwrap().unwrap();
        });
    });
}

/// One waiter of a set is about to ask for its member, at a full gateway; another finds the member asked for, and sleeps.
/// `ends` is what happens then to the first one, and `goes_on` what to the other.
fn one_asks_and_another_sleeps(
    ends: impl Fn(&Full<'_>, thread::JoinHandle<Result<Vec<Ready>, Error>>),
    goes_on: impl Fn(&[Node], &Channel) -> Interest,
) {
    rig::on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 4);
        let set = Set::create(&near, 2, 0).unwrap();
        set.add(owned.id(), Interest::READABLE, 1).unwrap();
        let gateway = Full::new(&nodes[0]);
        let same = Set::attach(&near, &set.descriptor(), false).unwrap();
        let asks = thread::spawn(move || same.wait(watched()));
        until("the question is about to leave", || gateway.sleepers() == 1);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| set.wait(watched()).unwrap());
            until("the other one sleeps", || rig::waits(&nodes[0], &set) == 1);
            ends(&gateway, asks);
            let found = goes_on(nodes, &owned);
            let ready = waiter.join().unwrap();
            assert_eq!((ready.len(), ready[0].token, ready[0].ready), (1, 1, found));
        });
    });
}

#[test]
fn a_question_that_a_signal_keeps_back_is_asked_by_another() {
    one_asks_and_another_sleeps(
        |gateway, asks| {
            gateway.step_aside();
            signal(asks.as_pthread_t());
            assert_eq!(asks.join().unwrap(), Err(Error::Interrupted));
        },
        |nodes, owned| {
            until("the other one asks", || nodes[1].stats().parked == 1);
            owned.send(b"", 0, watched()).unwrap();
            Interest::READABLE
        },
    );
}

#[test]
fn all_who_wait_learn_that_the_gateway_has_closed() {
    one_asks_and_another_sleeps(
        |gateway, asks| {
            gateway.full.destroy().unwrap();
            let ready = asks.join().unwrap().unwrap();
            assert_eq!(ready[0].ready, Interest::LOST);
        },
        |_, _| Interest::LOST,
    );
}
