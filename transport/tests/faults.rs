//! Whatever breaks, every caller gets an answer, and nothing of a dead process stays behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod rig;

use std::io::IoSlice;
use std::mem::ManuallyDrop;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use dragon_channels::{Channel, Deadline, Error, Lock, Returns, SendOptions};
use dragon_protocol::Code;
use dragon_shmem::{Member, clock};
use dragon_transport::fabric::mem::MemHub;
use rig::{Node, POOL, channel, index, info, mem, on_each, pattern, seen_by, tcp, until, watched};

/// A receive of `member` that is parked at `owner`.
fn parked_receive<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    remote: &'scope Channel,
    owner: &Node,
) -> std::thread::ScopedJoinHandle<'scope, Code> {
    let before = owner.stats().parked;
    let waiter = scope.spawn(|| {
        remote
            .receive(watched())
            .map_or_else(|e| e.code(), |_| Code::Ok)
    });
    until("the receive is parked", || {
        owner.stats().parked == before + 1
    });
    waiter
}

#[test]
fn requests_to_a_node_whose_agent_closes_end_with_node_down() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 4);
        let remote = seen_by(&near, owned.descriptor());
        std::thread::scope(|scope| {
            let waiter = parked_receive(scope, &remote, &nodes[1]);
            nodes[1].agent.shutdown(clock::now() + 10_000_000_000);
            assert_eq!(waiter.join().unwrap(), Code::NodeDown);
        });
        let error = remote.send(b"x", 0, watched()).unwrap_err();
        assert_eq!(error.code(), Code::NodeDown);
        assert_eq!(nodes[0].stats().pending, 0);
    });
}

#[test]
fn requests_to_a_node_that_is_declared_down_end_with_node_down() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 4);
        let remote = seen_by(&near, owned.descriptor());
        std::thread::scope(|scope| {
            let waiter = parked_receive(scope, &remote, &nodes[1]);
            nodes[0].agent.node_down(index(1));
            assert_eq!(waiter.join().unwrap(), Code::NodeDown);
        });
        let error = remote.receive(watched()).unwrap_err();
        assert_eq!(error.code(), Code::NodeDown);
        // The other side forgets what waited there.
        until("nothing is parked", || nodes[1].stats().parked == 0);
    });
}

#[test]
fn the_own_agents_end_answers_its_clients() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 4);
        let remote = seen_by(&near, owned.descriptor());
        std::thread::scope(|scope| {
            let waiter = parked_receive(scope, &remote, &nodes[1]);
            nodes[0].agent.shutdown(clock::now() + 10_000_000_000);
            assert_eq!(waiter.join().unwrap(), Code::RuntimeGone);
        });
        let error = remote.receive(watched()).unwrap_err();
        assert_eq!(error.code(), Code::Unreachable);
    });
}

#[test]
fn a_cut_link_ends_what_was_sent_and_the_next_request_opens_another() {
    let hub = MemHub::new();
    let nodes = mem(&hub, &[POOL; 2]);
    let (near, far) = (nodes[0].client(), nodes[1].client());
    let owned = channel(&far, 4);
    let remote = seen_by(&near, owned.descriptor());
    std::thread::scope(|scope| {
        let waiter = parked_receive(scope, &remote, &nodes[1]);
        hub.cut(index(0), index(1));
        assert_eq!(waiter.join().unwrap(), Code::Unreachable);
    });
    until("nothing is parked", || nodes[1].stats().parked == 0);
    remote.send(b"again", 0, watched()).unwrap();
    assert_eq!(owned.receive(watched()).unwrap().into_vec(), b"again");
    assert_eq!(nodes[0].stats().fabric.opened, 2);
}

/// Passes bytes on between a node and another one's port, until it is cut.
struct Relay {
    port: u16,
    /// Where to; 0: nowhere, a connection is closed at once.
    to: Arc<AtomicU16>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let streams: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let known = Arc::clone(&streams);
        let to = Arc::new(AtomicU16::new(port));
        let target = Arc::clone(&to);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let port = target.load(Ordering::Acquire);
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else {
                    continue;
                };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    to.set_nodelay(true).unwrap();
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || {
                        // Ends with either stream.
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                known.lock().unwrap().extend([near, far]);
            }
        });
        Self {
            port: own,
            to,
            streams,
        }
    }

    /// Cuts, and leads elsewhere from now on.
    fn lead_to(&self, port: u16) {
        self.to.store(port, Ordering::Release);
        self.cut();
    }

    fn cut(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn a_connection_that_breaks_is_made_again_and_nothing_is_lost_or_doubled() {
    let nodes = tcp(&[POOL; 2]);
    let port = nodes[1].agent.local_address().unwrap().port();
    let relay = Relay::to(port);
    nodes[0].agent.set_peers(&[info(index(1), relay.port)]);
    let (near, far) = (nodes[0].client(), nodes[1].client());
    let owned = channel(&far, 64);
    let remote = seen_by(&near, owned.descriptor());
    std::thread::scope(|scope| {
        let waiter = parked_receive(scope, &remote, &nodes[1]);
        relay.cut();
        owned.send(b"all the same", 0, watched()).unwrap();
        assert_eq!(waiter.join().unwrap(), Code::Ok);
    });
    // In the middle of traffic: each send arrives once, in its order.
    std::thread::scope(|scope| {
        let (remote, relay) = (&remote, &relay);
        let sender = scope.spawn(move || {
            let send = |n: u64| remote.send(&pattern(50_000, n), n, watched());
            (0..300).map(|n| (n, send(n).is_ok())).collect::<Vec<_>>()
        });
        let mut received = Vec::new();
        let mut cuts = 0;
        while !sender.is_finished() || owned.attributes().unwrap().messages > 0 {
            if let Ok(message) = owned.receive(Deadline::after(1_000_000)) {
                received.push(message.hint());
                if received.len() % 40 == 0 {
                    relay.cut();
                    cuts += 1;
                }
            }
        }
        assert!(cuts > 0);
        let sent = sender.join().unwrap();
        assert!(sent.iter().all(|(_, ok)| *ok), "{sent:?}");
        assert_eq!(received, (0..300).collect::<Vec<u64>>());
        let stats = nodes[0].stats().fabric;
        assert_eq!(stats.opened, 1);
        assert!(stats.reconnects >= cuts, "{stats:?}");
    });
    assert_eq!(nodes[1].stats().fabric.accepted, 1);
    assert_eq!(nodes[0].stats().messages_lost, 0);
}

#[test]
fn a_node_that_cannot_be_reached_again_is_unreachable() {
    let nodes = tcp(&[POOL; 2]);
    let port = nodes[1].agent.local_address().unwrap().port();
    let relay = Relay::to(port);
    nodes[0].agent.set_peers(&[info(index(1), relay.port)]);
    let (near, far) = (nodes[0].client(), nodes[1].client());
    let owned = channel(&far, 64);
    let remote = seen_by(&near, owned.descriptor());
    std::thread::scope(|scope| {
        let waiter = parked_receive(scope, &remote, &nodes[1]);
        relay.lead_to(0);
        assert_eq!(waiter.join().unwrap(), Code::Unreachable);
    });
    assert_eq!(nodes[0].stats().pending, 0);
    // The way is there again: another link, and the owner forgets what waited on the old one.
    relay.lead_to(port);
    remote.send(b"again", 0, watched()).unwrap();
    assert_eq!(owned.receive(watched()).unwrap().into_vec(), b"again");
    assert_eq!(nodes[1].stats().parked, 0);
}

/// To its peers a node that was restarted is at the address and port where it was, those of a relay; and its objects have
/// the names of the old ones.
#[test]
fn a_node_that_was_restarted_knows_nothing_of_old_links() {
    let nodes = tcp(&[POOL; 2]);
    let relay = Relay::to(nodes[1].agent.local_address().unwrap().port());
    nodes[0].agent.set_peers(&[info(index(1), relay.port)]);
    let near = nodes[0].client();
    let life = |node: &Node| [1, 4].map(|capacity| channel(&node.client(), capacity));
    let [full, empty] = life(&nodes[1]);
    let other = tcp(&[4 << 20, POOL]).remove(1);
    let [reborn, also] = life(&other);
    assert_eq!(full.descriptor(), reborn.descriptor());
    assert_eq!(empty.descriptor(), also.descriptor());
    let to_full = seen_by(&near, full.descriptor());
    let from_empty = seen_by(&near, empty.descriptor());
    to_full.send(b"fills it", 0, watched()).unwrap();
    let ended = |done: Result<(), Error>| done.map_or_else(|error| error.code(), |()| Code::Ok);
    std::thread::scope(|scope| {
        let mut waiting = vec![parked_receive(scope, &from_empty, &nodes[1])];
        for size in [10, 4000, 1 << 20] {
            let to_full = &to_full;
            let sends = move || to_full.send(&pattern(size, 1), 1, watched());
            waiting.push(scope.spawn(move || ended(sends())));
        }
        until("all wait", || nodes[1].stats().parked == 4);
        // One that nobody waits for.
        let options = SendOptions {
            returns: Returns::Immediately,
            ..SendOptions::default()
        };
        to_full
            .send_with(&[IoSlice::new(b"lost")], &options)
            .unwrap();
        until("it is parked, too", || nodes[1].stats().parked == 5);
        relay.lead_to(other.agent.local_address().unwrap().port());
        for waits in waiting {
            assert_eq!(waits.join().unwrap(), Code::Unreachable);
        }
    });
    assert_eq!(nodes[0].stats().pending, 0);
    // Nothing of all that comes to the new one, which works.
    seen_by(&near, reborn.descriptor())
        .send(b"anew", 0, watched())
        .unwrap();
    assert_eq!(reborn.receive(watched()).unwrap().into_vec(), b"anew");
    seen_by(&near, also.descriptor())
        .send(b"anew", 0, watched())
        .unwrap();
    assert_eq!(also.receive(watched()).unwrap().into_vec(), b"anew");
    assert_eq!(reborn.attributes().unwrap().messages, 0);
    assert_eq!(also.attributes().unwrap().messages, 0);
    assert_eq!(other.stats().parked, 0);
    assert_eq!(other.stats().fabric.accepted, 1);
}

#[test]
fn nobody_listening_is_unreachable_and_not_a_hang() {
    let nodes = tcp(&[POOL; 2]);
    let (near, far) = (nodes[0].client(), nodes[1].client());
    let owned = channel(&far, 4);
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    nodes[0].agent.set_peers(&[info(index(1), gone)]);
    for _ in 0..3 {
        let error = Channel::attach(&near, &owned.descriptor(), false).unwrap_err();
        assert_eq!(error.code(), Code::Unreachable);
    }
    // And when somebody listens again, it works.
    let port = nodes[1].agent.local_address().unwrap().port();
    nodes[0].agent.set_peers(&[info(index(1), port)]);
    seen_by(&near, owned.descriptor())
        .send(b"x", 0, watched())
        .unwrap();
}

/// A client whose thread is left in the middle of a receive when its process "dies".
fn receive_and_die(nodes: &[Node], near: &Arc<Member>, owned: &Channel) {
    let remote = seen_by(near, owned.descriptor());
    let slot = near.slot();
    // The thread never gets an answer, as the thread of a dead process: it is left behind.
    std::thread::spawn(move || remote.receive(Deadline::Never).map(drop));
    until("the receive is parked", || nodes[1].stats().parked == 1);
    nodes[0].dies(slot);
}

#[test]
fn what_a_dead_process_waited_for_is_given_to_others() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 4);
        receive_and_die(nodes, &near, &owned);
        until("nothing is parked", || nodes[1].stats().parked == 0);
        owned.send(b"for the living", 0, watched()).unwrap();
        let message = owned.receive(watched()).unwrap();
        assert_eq!(message.into_vec(), b"for the living");
        until("the proxy is recovered", || nodes[1].stats().proxies == 0);
        until("nothing is pending", || nodes[0].stats().pending == 0);
    });
}

#[test]
fn a_message_for_a_dead_process_goes_back_to_its_channel() {
    on_each(2, |nodes| {
        for size in [10, 1_000, 300_000] {
            let (near, far) = (nodes[0].client(), nodes[1].client());
            let owned = channel(&far, 4);
            let remote = seen_by(&near, owned.descriptor());
            let slot = near.slot();
            std::thread::spawn(move || remote.receive(Deadline::Never).map(drop));
            until("the receive is parked", || nodes[1].stats().parked == 1);
            // Dead, and the agents have not heard of it: the message crosses and finds nobody.
            nodes[0].control.release_slot(slot).unwrap();
            let payload = pattern(size, 5);
            let returned = nodes[1].stats().returned;
            owned.send(&payload, 99, watched()).unwrap();
            until("it came back", || nodes[1].stats().returned == returned + 1);
            let message = owned.receive(watched()).unwrap();
            assert_eq!(message.hint(), 99);
            assert!(message.into_vec() == payload);
            assert_eq!(nodes[0].stats().messages_lost, 0);
        }
    });
}

/// A lock as a process has it that will die: nothing is dropped then, so the handle must not be either.
fn held_by_the_dying(member: &Arc<Member>, lock: &Lock) -> ManuallyDrop<Lock> {
    ManuallyDrop::new(Lock::attach(member, &lock.descriptor(), false).unwrap())
}

#[test]
fn a_dead_processs_lock_is_handed_on() {
    on_each(3, |nodes| {
        let (near, far, third) = (nodes[0].client(), nodes[1].client(), nodes[2].client());
        let owned = Lock::create(&far, 0).unwrap();
        let dying = held_by_the_dying(&near, &owned);
        let waiting = Lock::attach(&third, &owned.descriptor(), false).unwrap();
        dying.acquire(watched()).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| waiting.acquire(watched()).unwrap());
            until("the acquire is parked", || nodes[1].stats().parked == 1);
            nodes[0].dies(near.slot());
            assert!(waiter.join().unwrap().owner_died);
        });
        waiting.release(false).unwrap();
        // The same for a whole node.
        waiting.acquire(watched()).unwrap();
        assert_eq!(owned.acquire(Deadline::Now).unwrap_err(), Error::Empty);
        nodes[1].agent.node_down(index(2));
        assert!(owned.acquire(watched()).unwrap().owner_died);
        until("no proxies", || nodes[1].stats().proxies == 0);
    });
}

#[test]
fn a_dead_process_is_told_again_when_the_link_was_cut() {
    let hub = MemHub::new();
    let nodes = mem(&hub, &[POOL; 2]);
    let (near, far) = (nodes[0].client(), nodes[1].client());
    let owned = Lock::create(&far, 0).unwrap();
    let dying = held_by_the_dying(&near, &owned);
    dying.acquire(watched()).unwrap();
    hub.cut(index(0), index(1));
    nodes[0].dies(near.slot());
    assert!(owned.acquire(watched()).unwrap().owner_died);
}

#[test]
fn a_signal_ends_a_wait_and_takes_nothing() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: all zeros is a valid sigaction: no flags (the wait is not restarted), an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as usize;
    // SAFETY: the action is initialised, and the handler does nothing.
    unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 4);
        let remote = seen_by(&near, owned.descriptor());
        let waiter = std::thread::spawn(move || remote.receive(watched()).map(drop));
        until("the receive is parked", || nodes[1].stats().parked == 1);
        // Again until it hits the wait: parked at the owner does not mean asleep here.
        while !waiter.is_finished() {
            // SAFETY: the thread has not been joined.
            unsafe { libc::pthread_kill(waiter.as_pthread_t(), libc::SIGUSR1) };
            std::thread::yield_now();
        }
        assert_eq!(waiter.join().unwrap().unwrap_err(), Error::Interrupted);
        assert_eq!(nodes[1].stats().parked, 0);
        assert_eq!(nodes[0].stats().pending, 0);
        owned.send(b"still there", 0, watched()).unwrap();
        assert_eq!(owned.receive(watched()).unwrap().into_vec(), b"still there");
    });
}

#[test]
fn no_memory_for_a_message_is_an_error_at_the_sender() {
    let nodes = tcp(&[POOL, 4 << 20]);
    let (near, far) = (nodes[0].client(), nodes[1].client());
    let owned = channel(&far, 4);
    let remote = seen_by(&near, owned.descriptor());
    let error = remote.send(&pattern(8 << 20, 1), 0, watched()).unwrap_err();
    assert_eq!(error.code(), Code::OutOfMemory);
    remote.send(b"small", 0, watched()).unwrap();
    assert_eq!(owned.receive(watched()).unwrap().into_vec(), b"small");
}

#[test]
fn no_memory_to_receive_a_message_leaves_it_in_its_channel() {
    let nodes = tcp(&[4 << 20, POOL]);
    let (near, far) = (nodes[0].client(), nodes[1].client());
    let owned = channel(&far, 4);
    let remote = seen_by(&near, owned.descriptor());
    let payload = pattern(8 << 20, 1);
    owned.send(&payload, 3, watched()).unwrap();
    let error = remote.receive(watched()).unwrap_err();
    assert_eq!(error.code(), Code::OutOfMemory);
    let message = owned.receive(watched()).unwrap();
    assert_eq!(message.hint(), 3);
    assert!(message.into_vec() == payload);
    assert_eq!(nodes[0].stats().messages_lost, 0);
}

#[test]
fn a_slow_node_does_not_hold_up_another() {
    let nodes = tcp(&[POOL; 3]);
    let (near, slow, quick) = (nodes[0].client(), nodes[1].client(), nodes[2].client());
    let full = channel(&slow, 1);
    let free = channel(&quick, 4);
    let to_slow = seen_by(&near, full.descriptor());
    let to_quick = seen_by(&near, free.descriptor());
    to_slow.send(b"fills it", 0, watched()).unwrap();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let to_slow = &to_slow;
            scope.spawn(move || to_slow.send(&pattern(200_000, n), n, watched()).unwrap());
        }
        until("all wait", || nodes[1].stats().parked == 8);
        for n in 0..100 {
            to_quick.send(b"passes", n, watched()).unwrap();
            assert_eq!(free.receive(watched()).unwrap().hint(), n);
        }
        for _ in 0..9 {
            full.receive(watched()).unwrap();
        }
    });
}
