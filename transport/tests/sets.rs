//! Sets whose members lie on several nodes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dragon_channels::{
    Channel, ChannelOptions, Deadline, Endpoint, EndpointOptions, Error, Event, Interest, Object,
    PriorityQueue, PriorityQueueOptions, ProcessObject, Semaphore, Set, SetMember, create_channel,
    remote,
};
use dragon_protocol::Code;
use dragon_protocol::op::Op;
use dragon_shmem::Member;
use dragon_transport::fabric::mem::MemHub;
use rig::{Node, POOL, channel, on_each, pattern, seen_by, soon, tcp, until, waits, watched};

fn tokens(set: &Set) -> Vec<u64> {
    set.poll()
        .unwrap()
        .iter()
        .map(|ready| ready.token)
        .collect()
}

fn one(set: &Set, deadline: Deadline) -> (u64, Interest) {
    let ready = set.wait(deadline).unwrap();
    assert_eq!(ready.len(), 1, "{ready:?}");
    (ready[0].token, ready[0].ready)
}

/// Each test is made with the set on the node of its members, and with the set on another one.
fn here_and_there(test: impl Fn(&[Node], &Arc<Member>, &Arc<Member>)) {
    on_each(2, |nodes| {
        let far = nodes[1].client();
        for node in nodes {
            test(nodes, &node.client(), &far);
        }
    });
}

#[test]
fn a_member_is_reported_as_long_as_it_is_ready() {
    here_and_there(|nodes, near, far| {
        let before = nodes[1].blocks();
        let owned = channel(far, 2);
        let event = Event::create(far, 0).unwrap();
        let semaphore = Semaphore::create(far, 0, 3, 0).unwrap();
        let process = ProcessObject::create(&nodes[1].daemon, 7, 0).unwrap();
        let options = PriorityQueueOptions::default();
        let queue = PriorityQueue::create(far, &options).unwrap();
        let endpoint = Endpoint::create(far, &EndpointOptions::default()).unwrap();
        let both = Interest::READABLE | Interest::WRITABLE;
        let set = Set::create(near, 8, 0).unwrap();
        let of_channel = set.add(owned.id(), both, 1).unwrap();
        set.add(event.id(), Interest::READABLE, 2).unwrap();
        set.add(semaphore.id(), Interest::READABLE, 3).unwrap();
        set.add(process.id(), Interest::READABLE, 4).unwrap();
        set.add(queue.id(), Interest::READABLE, 5).unwrap();
        set.add(endpoint.id(), Interest::READABLE, 6).unwrap();
        assert_eq!(one(&set, Deadline::Now), (1, Interest::WRITABLE));
        assert_eq!(one(&set, watched()), (1, Interest::WRITABLE));
        owned.send(b"", 0, Deadline::Now).unwrap();
        assert_eq!(one(&set, Deadline::Now), (1, both));
        owned.send(b"", 0, Deadline::Now).unwrap();
        assert_eq!(one(&set, watched()), (1, Interest::READABLE));
        set.remove(of_channel).unwrap();
        assert_eq!(set.wait(soon()), Err(Error::Timeout));
        assert_eq!(set.wait(Deadline::Now), Err(Error::Empty));

        event.set().unwrap();
        semaphore.release(1).unwrap();
        process.finish(0).unwrap();
        queue.send(0, b"urgent", 0, watched()).unwrap();
        let sender = endpoint.open_send(watched()).unwrap();
        assert_eq!(tokens(&set), [2, 3, 4, 5, 6]);
        let mut seen = Vec::new();
        while seen.len() < 5 {
            for ready in set.wait(watched()).unwrap() {
                if !seen.contains(&ready.token) {
                    seen.push(ready.token);
                }
            }
        }
        semaphore.acquire(Deadline::Now).unwrap();
        event.clear().unwrap();
        queue.receive(Deadline::Now).unwrap();
        drop(endpoint.accept(Deadline::Now).unwrap());
        drop(sender);
        assert_eq!(one(&set, Deadline::Now), (4, Interest::READABLE));
        assert_eq!(one(&set, watched()), (4, Interest::READABLE));

        drop((event, semaphore, process, queue, endpoint));
        let mut gone = Vec::new();
        while gone.len() < 5 {
            for ready in set.wait(watched()).unwrap() {
                assert_eq!(ready.ready, Interest::GONE);
                gone.push(ready.token);
                set.remove(ready.member).unwrap();
            }
        }
        assert_eq!(set.wait(Deadline::Now), Err(Error::Empty));
        drop((set, owned));
        until("nothing waits at the owner", || {
            nodes[0].stats().pending == 0 && nodes[1].stats().parked == 0
        });
        until("nothing is left", || nodes[1].blocks() <= before);
    });
}

#[test]
fn one_wait_for_members_of_three_nodes() {
    on_each(3, |nodes| {
        let clients: Vec<_> = nodes.iter().map(Node::client).collect();
        let owned: Vec<_> = clients.iter().map(|member| channel(member, 4)).collect();
        let set = Set::create(&clients[0], 3, 0).unwrap();
        for (token, owned) in (0..).zip(&owned) {
            set.add(owned.id(), Interest::READABLE, token).unwrap();
        }
        for round in 0..20 {
            for (token, owned) in (0..).zip(&owned) {
                std::thread::scope(|scope| {
                    let waiter = scope.spawn(|| one(&set, watched()));
                    if round % 2 == 0 {
                        until("the set has asked", || {
                            nodes[1].stats().parked == 1 && nodes[2].stats().parked == 1
                        });
                    }
                    owned.send(&pattern(10, round), round, watched()).unwrap();
                    assert_eq!(waiter.join().unwrap(), (token, Interest::READABLE));
                });
                assert_eq!(owned.receive(watched()).unwrap().hint(), round);
                assert_eq!(set.wait(Deadline::Now), Err(Error::Empty));
            }
        }
    });
}

#[test]
fn what_came_and_went_while_nobody_waited_is_not_reported() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 4);
        let set = Set::create(&near, 2, 0).unwrap();
        set.add(owned.id(), Interest::READABLE, 1).unwrap();
        assert_eq!(set.wait(soon()), Err(Error::Timeout));
        until("the set has asked", || nodes[1].stats().parked == 1);
        owned.send(b"", 0, watched()).unwrap();
        until("the answer has come", || nodes[0].stats().pending == 0);
        owned.receive(watched()).unwrap();
        assert_eq!(set.wait(Deadline::Now), Err(Error::Empty));
        assert_eq!(set.wait(soon()), Err(Error::Timeout));
        owned.send(b"", 0, watched()).unwrap();
        assert_eq!(one(&set, watched()), (1, Interest::READABLE));
    });
}

#[test]
fn a_busy_member_of_this_node_does_not_hide_one_of_another() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let event = Event::create(&near, 0).unwrap();
        event.set().unwrap();
        let owned = channel(&far, 4);
        owned.send(b"", 0, watched()).unwrap();
        let set = Set::create(&near, 2, 0).unwrap();
        set.add(event.id(), Interest::READABLE, 1).unwrap();
        set.add(owned.id(), Interest::READABLE, 2).unwrap();
        let far_one = |ready: &dragon_channels::Ready| ready.token == 2;
        until("the other one is reported", || {
            set.wait(watched()).unwrap().iter().any(far_one)
        });
    });
}

#[test]
fn members_that_do_not_exist_are_refused() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let set = Set::create(&near, 2, 0).unwrap();
        let event = Event::create(&far, 0).unwrap();
        let id = event.id();
        let error = set.add(id, Interest::WRITABLE, 0).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
        drop(event);
        let error = set.add(id, Interest::READABLE, 0).unwrap_err();
        assert_eq!(error.code(), Code::NoSuchObject);
        let nowhere = dragon_protocol::ObjectId {
            node: rig::index(77),
            ..id
        };
        let error = set.add(nowhere, Interest::READABLE, 0).unwrap_err();
        assert_eq!(error.code(), Code::Unreachable);
        assert_eq!(set.attributes().unwrap(), (0, 2));
    });
}

/// A set of `near` with an idle member of `far` for which it has asked.
fn waiting_set(nodes: &[Node], near: &Arc<Member>, far: &dragon_channels::Channel) -> Set {
    let set = Set::create(near, 2, 0).unwrap();
    set.add(far.id(), Interest::READABLE, 1).unwrap();
    assert_eq!(set.wait(soon()), Err(Error::Timeout));
    until("the set has asked", || nodes[1].stats().parked == 1);
    set
}

#[test]
fn whoever_stops_waiting_takes_its_question_back() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 4);
        let idle = || nodes[1].stats().parked == 0 && nodes[0].stats().pending == 0;
        let set = waiting_set(nodes, &near, &owned);
        drop(set);
        until("a set that goes takes its question back", idle);

        let set = waiting_set(nodes, &near, &owned);
        set.destroy().unwrap();
        until("a set that is destroyed takes its question back", idle);
        drop(set);

        // By another node: within what this node's agent does for it. There are no handles for that; the agent does it all the
        // same.
        let asks = |op, set| remote::call(&far, op, set, [0, 0], watched()).unwrap();
        let set = waiting_set(nodes, &near, &owned);
        asks(Op::Destroy, set.id());
        until("a set that another node destroys does, too", idle);
        drop(set);
        let set = waiting_set(nodes, &near, &owned);
        let id = set.id();
        asks(Op::Attach, id);
        drop(set);
        assert_eq!(nodes[1].stats().parked, 1);
        asks(Op::Detach, id);
        until("a set that another node had last does, too", idle);

        let set = Set::create(&near, 1, 0).unwrap();
        let place = set.add(owned.id(), Interest::READABLE, 1).unwrap();
        assert_eq!(set.wait(soon()), Err(Error::Timeout));
        until("the set has asked", || nodes[1].stats().parked == 1);
        set.remove(place).unwrap();
        until("a member that leaves takes its question back", idle);

        // The place is used again, and an answer to the first question is not one to the second.
        owned.send(b"", 0, watched()).unwrap();
        set.add(owned.id(), Interest::READABLE, 2).unwrap();
        assert_eq!(one(&set, watched()), (2, Interest::READABLE));
        owned.receive(watched()).unwrap();

        let dying = nodes[0].client();
        let set = std::mem::ManuallyDrop::new(waiting_set(nodes, &dying, &owned));
        let shared = Set::attach(&near, &set.descriptor(), false).unwrap();
        nodes[0].dies(dying.slot());
        // The set lives on, and so does its question.
        owned.send(b"", 0, watched()).unwrap();
        assert_eq!(one(&shared, watched()), (1, Interest::READABLE));
        drop(shared);
        owned.receive(watched()).unwrap();

        let dying = nodes[0].client();
        let _set = std::mem::ManuallyDrop::new(waiting_set(nodes, &dying, &owned));
        nodes[0].dies(dying.slot());
        until("a set whose process dies takes its question back", idle);
        let references = dragon_channels::attempt::references(&nodes[1].daemon, owned.id());
        assert_eq!(references, Ok(1), "a set keeps no member alive");
    });
}

#[test]
fn a_set_of_another_node_is_refused_with_the_way_out() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let set = Set::create(&far, 2, 0).unwrap();
        for adopt in [false, true] {
            let errors = [
                Set::attach(&near, &set.descriptor(), adopt).map(drop),
                Object::attach(&near, &set.descriptor(), adopt).map(drop),
            ];
            for error in errors.map(Result::unwrap_err) {
                assert_eq!(error.code(), Code::Unsupported);
                let text = error.to_string();
                for part in ["own node only", "sleep in that node's memory", "make a set"] {
                    assert!(text.contains(part), "{text}");
                }
                assert!(text.contains(&set.id().to_string()), "{text}");
            }
        }
        let references = dragon_channels::attempt::references(&nodes[1].daemon, set.id());
        assert_eq!(references, Ok(1));
        // On its own node it can be had as ever.
        Set::attach(&nodes[1].client(), &set.descriptor(), false).unwrap();
    });
}

#[test]
fn a_member_that_stays_ready_wakes_all_who_wait() {
    const WAITERS: u64 = 4;
    here_and_there(|nodes, near, far| {
        let event = Event::create(far, 0).unwrap();
        let idle = channel(far, 4);
        let set = Set::create(near, 2, 0).unwrap();
        set.add(event.id(), Interest::READABLE, 1).unwrap();
        set.add(idle.id(), Interest::READABLE, 2).unwrap();
        let home = nodes.iter().find(|node| node.index == set.id().node);
        std::thread::scope(|scope| {
            let wait = || scope.spawn(|| one(&set, watched()));
            let waiters: Vec<_> = (0..WAITERS).map(|_| wait()).collect();
            until("all wait", || waits(home.unwrap(), &set) == WAITERS);
            event.set().unwrap();
            for waiter in waiters {
                assert_eq!(waiter.join().unwrap(), (1, Interest::READABLE));
            }
        });
    });
}

#[test]
fn an_error_of_this_process_says_nothing_of_the_member() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 4);
        owned.send(b"", 0, watched()).unwrap();
        let set = Set::create(&near, 2, 0).unwrap();
        set.add(owned.id(), Interest::READABLE, 1).unwrap();
        // As many operations at once as a process can have, but one: that of the wait itself.
        let mut busy: Vec<_> = std::iter::from_fn(|| near.thread().ok()).collect();
        busy.pop();
        let error = set.poll().unwrap_err();
        assert_eq!(error.code(), Code::TableFull, "{error}");
        drop(busy);
        assert_eq!(one(&set, Deadline::Now), (1, Interest::READABLE));
    });
}

#[test]
fn a_destroyed_member_is_gone() {
    here_and_there(|_, near, far| {
        let owned = channel(far, 4);
        let set = Set::create(near, 2, 0).unwrap();
        set.add(owned.id(), Interest::READABLE, 1).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| one(&set, watched()));
            owned.destroy().unwrap();
            assert_eq!(waiter.join().unwrap(), (1, Interest::GONE));
        });
        assert_eq!(one(&set, Deadline::Now), (1, Interest::GONE));
        assert_eq!(one(&set, watched()), (1, Interest::GONE));
    });
}

fn a_lost_node(nodes: &[Node], lose: impl Fn()) {
    let (near, far) = (nodes[0].client(), nodes[1].client());
    let here = channel(&near, 4);
    let there = channel(&far, 4);
    let set = Set::create(&near, 2, 0).unwrap();
    set.add(there.id(), Interest::READABLE, 1).unwrap();
    set.add(here.id(), Interest::READABLE, 2).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| set.wait(watched()).unwrap()[0]);
        until("the set has asked", || nodes[1].stats().parked == 1);
        lose();
        let ready = waiter.join().unwrap();
        assert_eq!((ready.token, ready.ready), (1, Interest::LOST));
        // It is so until it is taken out; then the other goes on.
        assert_eq!(one(&set, Deadline::Now), (1, Interest::LOST));
        set.remove(ready.member).unwrap();
    });
    here.send(b"", 0, watched()).unwrap();
    assert_eq!(one(&set, watched()), (2, Interest::READABLE));
}

#[test]
fn a_member_whose_node_is_lost_is_reported() {
    on_each(2, |nodes| {
        a_lost_node(nodes, || nodes[0].agent.node_down(rig::index(1)))
    });
    on_each(2, |nodes| {
        a_lost_node(nodes, || {
            let now = match Deadline::after(0) {
                Deadline::At(now) => now,
                _ => 0,
            };
            nodes[1].agent.shutdown(now);
        });
    });
}

#[test]
fn a_member_comes_back_with_its_link() {
    let hub = MemHub::new();
    let nodes = rig::mem(&hub, &[POOL; 2]);
    let (near, far) = (nodes[0].client(), nodes[1].client());
    let owned = channel(&far, 4);
    let set = waiting_set(&nodes, &near, &owned);
    let asked = nodes[0].stats().requests_sent;
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| one(&set, watched()));
        until("the wait sleeps", || rig::waits(&nodes[0], &set) == 1);
        hub.cut(rig::index(0), rig::index(1));
        assert_eq!(waiter.join().unwrap(), (1, Interest::LOST));
    });
    assert_eq!(nodes[0].stats().requests_sent, asked);
    // The next wait asks again, over a new link.
    assert_eq!(set.wait(soon()), Err(Error::Timeout));
    owned.send(b"", 0, watched()).unwrap();
    assert_eq!(one(&set, watched()), (1, Interest::READABLE));
}

#[test]
fn many_waiters_and_many_senders_lose_nothing() {
    const SENDERS: u64 = 4;
    const EACH: u64 = 100;
    on_each(3, |nodes| {
        let near = nodes[0].client();
        let owned: Vec<_> = (0..SENDERS)
            .map(|n| channel(&nodes[usize::try_from(n % 3).unwrap()].client(), 4))
            .collect();
        let set = Set::create(&near, 8, 0).unwrap();
        for (token, owned) in (0..).zip(&owned) {
            set.add(owned.id(), Interest::READABLE, token).unwrap();
        }
        let received = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for owned in &owned {
                scope.spawn(move || {
                    for n in 0..EACH {
                        owned.send(b"", n, watched()).unwrap();
                    }
                });
            }
            for _ in 0..3 {
                scope.spawn(|| {
                    let seen = owned.iter().map(Channel::descriptor);
                    let seen: Vec<_> = seen.map(|owned| seen_by(&near, owned)).collect();
                    loop {
                        let ready = match set.wait(watched()) {
                            Err(Error::Destroyed(_)) => return,
                            ready => ready.unwrap(),
                        };
                        for ready in ready {
                            let from = &seen[usize::try_from(ready.token).unwrap()];
                            if from.receive(Deadline::Now).is_ok()
                                && received.fetch_add(1, Ordering::Relaxed) + 1 == SENDERS * EACH
                            {
                                set.destroy().unwrap();
                            }
                        }
                    }
                });
            }
        });
        assert_eq!(received.into_inner(), SENDERS * EACH);
    });
}

/// Between its mark in the place and the request a process can die: then nobody else would ever ask.
#[test]
fn a_question_of_a_dead_process_is_asked_again() {
    on_each(2, |nodes| {
        let (near, far) = (nodes[0].client(), nodes[1].client());
        let owned = channel(&far, 4);
        let dying = nodes[0].client();
        let set = std::mem::ManuallyDrop::new(waiting_set(nodes, &dying, &owned));
        let shared = Set::attach(&near, &set.descriptor(), false).unwrap();
        // It is in a wait, and its intent names the member.
        let thread = std::mem::ManuallyDrop::new(dying.thread().unwrap());
        let (index, generation) = (set.id().index, set.id().generation);
        thread.intent.begin(Op::SetWait, index, generation, [0, 0]);
        let before = nodes[0].stats().requests_sent;
        nodes[0].dies(dying.slot());
        assert_eq!(shared.wait(soon()), Err(Error::Timeout));
        assert_eq!(nodes[0].stats().requests_sent, before + 1);
        owned.send(b"", 0, watched()).unwrap();
        assert_eq!(one(&shared, watched()), (1, Interest::READABLE));
    });
}

/// The agent of the owner is told of each change; nobody looks in between.
#[test]
fn an_idle_set_sends_nothing() {
    let nodes = tcp(&[POOL; 2]);
    let (near, far) = (nodes[0].client(), nodes[1].client());
    let owned = create_channel(&far, &ChannelOptions::default()).unwrap();
    let set = waiting_set(&nodes, &near, &owned);
    let before = nodes[0].stats().requests_sent;
    for _ in 0..10 {
        assert_eq!(set.wait(soon()), Err(Error::Timeout));
    }
    assert_eq!(nodes[0].stats().requests_sent, before);
}

/// Does what the first node's agent is to be told of, with a gateway from which nobody takes the word.
fn untold(nodes: &[Node], change: impl FnOnce()) {
    let control = &nodes[0].control;
    let gateway = control.gateway().unwrap();
    let nobodys = channel(&nodes[0].daemon, 4);
    control.set_gateway(nobodys.id());
    change();
    control.set_gateway(gateway);
    assert_eq!(nobodys.attributes().unwrap().messages, 1);
    assert_eq!(nodes[1].stats().parked, 1);
}

/// A process of the first node ends, and the question that is left at the second one goes.
fn dies_with_its_question(nodes: &[Node], process: &Arc<Member>) {
    nodes[0].dies(process.slot());
    until("the question is taken back", || {
        nodes[1].stats().parked == 0 && nodes[0].stats().pending == 0
    });
}

/// The point at which it dies is behind the change of the set and before the word to the agent, which goes to a gateway here
/// from which nobody takes.
#[test]
fn a_question_goes_whose_process_died_before_it_told_the_agent() {
    let leave: [fn(&Set, SetMember); 2] = [
        |set, place| set.remove(place).unwrap(),
        |set, _| set.destroy().unwrap(),
    ];
    on_each(2, |nodes| {
        for leave in leave {
            let (near, far) = (nodes[0].client(), nodes[1].client());
            let owned = channel(&far, 4);
            let set = Set::create(&near, 1, 0).unwrap();
            let place = set.add(owned.id(), Interest::READABLE, 1).unwrap();
            assert_eq!(set.wait(soon()), Err(Error::Timeout));
            until("the set has asked", || nodes[1].stats().parked == 1);

            let dying = nodes[0].client();
            let theirs = Set::attach(&dying, &set.descriptor(), false).unwrap();
            let theirs = std::mem::ManuallyDrop::new(theirs);
            untold(nodes, || leave(&theirs, place));
            dies_with_its_question(nodes, &dying);
        }
    });
}

/// The same with the last handle of a set: of that nothing is left by which the process's end could lead to the question.
#[test]
fn a_question_goes_whose_process_died_with_its_set_gone_and_the_agent_not_told() {
    on_each(2, |nodes| {
        let far = nodes[1].client();
        let (owned, dying) = (channel(&far, 4), nodes[0].client());
        let set = waiting_set(nodes, &dying, &owned);
        untold(nodes, || drop(set));
        dies_with_its_question(nodes, &dying);
    });
}
