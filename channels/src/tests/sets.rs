//! Sets: what they report, and what a death in the middle of them leaves.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use dragon_protocol::ObjectId;
use dragon_shmem::Member;
use proptest::prelude::*;

use crate::channel::TestPoint;
use crate::fixture::{Node, Role, stop_at};
use crate::set::subscribers::WATCHED;
use crate::set::{flags, record_of};
use crate::{
    Channel, ChannelOptions, Deadline, Error, Event, Interest, ProcessObject, Semaphore, Set,
    SetMember, create_channel,
};

/// Plays a role of these tests; false when there is none of that name.
pub(super) fn play(name: &str, role: &Role) -> bool {
    let member = &role.member;
    match name {
        // Words: set, channel, point. Adds the channel, waits until it is readable, removes it; stops at the point.
        "use-set" => {
            let set = Set::attach(member, &role.descriptor(0), true).unwrap();
            let channel = Channel::attach(member, &role.descriptor(1), true).unwrap();
            stop_at(point(role.number(2)), 0);
            let membership = set.add(channel.id(), Interest::READABLE, 77).unwrap();
            let _ = set.wait(Deadline::after(1_000_000));
            set.remove(membership).unwrap();
        }
        // Words: set. Says by the second word, a channel, that it is there, and waits for ever.
        "wait-set" => {
            let set = Set::attach(member, &role.descriptor(0), true).unwrap();
            let said = Channel::attach(member, &role.descriptor(1), true).unwrap();
            said.send(b"", 0, Deadline::Never).unwrap();
            while set.wait(Deadline::Never).is_ok() {}
        }
        // Words: channel. Sends and dies behind the claim.
        "send-once" => {
            let channel = Channel::attach(member, &role.descriptor(0), true).unwrap();
            stop_at(TestPoint::Sending, 1);
            for n in 0..2 {
                channel.send(b"", n, Deadline::Never).unwrap();
            }
        }
        _ => return false,
    }
    true
}

/// Those who sleep until a member of a set is ready.
fn sleepers(node: &Node, set: &Set) -> u32 {
    let entry = node.control.object(set.id().index).unwrap();
    let (_, record) = record_of(&node.control, entry).unwrap();
    flags::Flags::wait(&record).waiters().0
}

const POINTS: [TestPoint; 4] = [
    TestPoint::Subscribing,
    TestPoint::Subscribed,
    TestPoint::Unsubscribing,
    TestPoint::Lowered,
];

fn point(number: u64) -> TestPoint {
    POINTS[usize::try_from(number).unwrap()]
}

fn channel(member: &Arc<Member>, capacity: u32) -> Channel {
    let options = ChannelOptions {
        capacity,
        block: 16,
        ..ChannelOptions::default()
    };
    create_channel(member, &options).unwrap()
}

fn tokens(set: &Set) -> Vec<u64> {
    set.poll()
        .unwrap()
        .iter()
        .map(|ready| ready.token)
        .collect()
}

fn subscribers(node: &Node, id: ObjectId) -> usize {
    let entry = node.control.object(id.index).unwrap();
    crate::set::subscribers::farewell(&node.control, entry, id).len()
}

#[test]
fn reports_what_is_ready_as_long_as_it_is() {
    let node = Node::new();
    let before = node.used();
    let member = node.member();
    let channel = channel(&member, 2);
    let event = Event::create(&member, 0).unwrap();
    let semaphore = Semaphore::create(&member, 0, 3, 0).unwrap();
    let process = ProcessObject::create(&member, 7, 0).unwrap();
    let set = Set::create(&member, 4, 0).unwrap();
    let both = Interest::READABLE | Interest::WRITABLE;
    let of_channel = set.add(channel.id(), both, 1).unwrap();
    set.add(event.id(), Interest::READABLE, 2).unwrap();
    set.add(semaphore.id(), Interest::READABLE, 3).unwrap();
    set.add(process.id(), Interest::READABLE, 4).unwrap();
    assert_eq!(set.attributes().unwrap(), (4, 4));

    let ready = set.poll().unwrap();
    assert_eq!(ready.len(), 1);
    assert_eq!((ready[0].token, ready[0].ready), (1, Interest::WRITABLE));
    channel.send(b"", 0, Deadline::Now).unwrap();
    assert_eq!(set.poll().unwrap()[0].ready, both);
    channel.send(b"", 0, Deadline::Now).unwrap();
    assert_eq!(set.poll().unwrap()[0].ready, Interest::READABLE);
    event.set().unwrap();
    semaphore.release(1).unwrap();
    process.finish(0).unwrap();
    for _ in 0..2 {
        assert_eq!(tokens(&set), [1, 2, 3, 4], "still ready, reported again");
    }
    semaphore.acquire(Deadline::Now).unwrap();
    event.clear().unwrap();
    set.remove(of_channel).unwrap();
    assert_eq!(
        set.remove(of_channel),
        Err(Error::NoSuchMember {
            set: set.id(),
            membership: of_channel
        })
    );
    assert_eq!(tokens(&set), [4]);
    drop((channel, event, semaphore, process));
    let ready = set.poll().unwrap();
    assert_eq!(ready.len(), 3, "what is gone is said to be");
    assert!(ready.iter().all(|ready| ready.ready == Interest::GONE));
    for ready in ready {
        set.remove(ready.member).unwrap();
    }
    assert_eq!(tokens(&set), []);
    drop(set);
    assert_eq!(node.used(), before);
}

#[test]
fn refuses_what_it_cannot_do() {
    let node = Node::new();
    let member = node.member();
    let set = Set::create(&member, 1, 0).unwrap();
    let event = Event::create(&member, 0).unwrap();
    let error = set.add(set.id(), Interest::READABLE, 0).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let error = set.add(event.id(), Interest::WRITABLE, 0).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    let far = ObjectId {
        node: dragon_protocol::NodeIndex::new(3).unwrap(),
        ..event.id()
    };
    let error = set.add(far, Interest::READABLE, 0).unwrap_err();
    assert!(error.to_string().contains("has no agent"), "{error}");
    set.add(event.id(), Interest::READABLE, 0).unwrap();
    let error = set.add(event.id(), Interest::READABLE, 1).unwrap_err();
    assert!(error.to_string().contains("has 1 members"), "{error}");
    for capacity in [0, 65_537] {
        let error = Set::create(&member, capacity, 0).unwrap_err();
        assert!(error.to_string().contains("65536"), "{error}");
    }
    let id = event.id();
    drop(event);
    let set = Set::create(&member, 1, 0).unwrap();
    assert!(set.add(id, Interest::READABLE, 0).is_err());
    set.destroy().unwrap();
    assert_eq!(set.poll(), Err(Error::Destroyed(set.id())));
}

#[test]
fn an_object_in_many_sets_tells_them_all() {
    let node = Node::new();
    let member = node.member();
    let event = Event::create(&member, 0).unwrap();
    let sets: Vec<Set> = (0..100)
        .map(|n| {
            let set = Set::create(&member, 2, 0).unwrap();
            set.add(event.id(), Interest::READABLE, n).unwrap();
            set
        })
        .collect();
    assert_eq!(subscribers(&node, event.id()), 100);
    event.set().unwrap();
    for (n, set) in (0..).zip(&sets) {
        assert_eq!(tokens(set), [n]);
    }
    drop(sets);
    event.clear().unwrap();
    event.set().unwrap();
    assert_eq!(
        subscribers(&node, event.id()),
        0,
        "places of sets that have gone are cleared"
    );
    let watch = &node.control.object(event.id().index).unwrap().watch;
    let watch = watch.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(watch & WATCHED, 0);
}

/// One that was raised late, for a larger set that had the record before: else a waiter would spin for it.
#[test]
fn a_flag_beyond_the_members_is_taken_away() {
    let node = Node::new();
    let set = Set::create(&node.member(), 4, 0).unwrap();
    let entry = node.control.object(set.id().index).unwrap();
    let record = record_of(&node.control, entry).unwrap().1;
    for member in [5, 63, 64, 65_535] {
        flags::raise(&record, member, false);
        assert!(flags::any(&record));
        assert_eq!(tokens(&set), []);
        assert!(!flags::any(&record), "{member}");
    }
}

#[test]
fn all_of_many_ready_ones_come_in_turn() {
    let node = Node::new();
    let member = node.member();
    let set = Set::create(&member, 300, 0).unwrap();
    let events: Vec<Event> = (0..300)
        .map(|n| {
            let event = Event::create(&member, 0).unwrap();
            set.add(event.id(), Interest::READABLE, n).unwrap();
            event.set().unwrap();
            event
        })
        .collect();
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let mut ready = Vec::new();
        assert_eq!(set.wait_into(&mut ready, 100, Deadline::Now), Ok(100));
        seen.extend(ready.iter().map(|ready| ready.token));
    }
    assert_eq!(seen.len(), events.len());
}

#[test]
fn ten_thousand_members() {
    const MEMBERS: u64 = 10_000;
    let node = Node::new();
    let before = node.used();
    let owner = node.member();
    let set = Set::create(&owner, 10_000, 0).unwrap();
    let mut channels = Vec::new();
    for n in 0..MEMBERS {
        let channel = channel(&owner, 1);
        set.add(channel.id(), Interest::READABLE, n).unwrap();
        channels.push(channel);
    }
    assert!(set.poll().unwrap().is_empty());
    // Flags of members that were found idle are lowered: nothing is left to look at.
    let entry = node.control.object(set.id().index).unwrap();
    let (_, record) = crate::set::record_of(&node.control, entry).unwrap();
    assert!(!crate::set::flags::any(&record));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let mut got = Vec::new();
            while got.len() < 100 {
                for ready in set.wait(Deadline::Never).unwrap() {
                    let at = usize::try_from(ready.token).unwrap();
                    if channels[at].receive(Deadline::Now).is_ok() {
                        got.push(ready.token);
                    }
                }
            }
            got
        });
        for n in 0..100 {
            channels[n * 97].send(b"", 0, Deadline::Never).unwrap();
        }
        let mut got = waiter.join().unwrap();
        got.sort_unstable();
        assert!(got.into_iter().eq((0..100).map(|n| n * 97)));
    });
    drop((channels, set));
    assert_eq!(node.used(), before);
}

/// Each change wakes one of those who sleep, and nothing is left over.
#[test]
fn a_thousand_waiters() {
    const WAITERS: usize = 1_000;
    let node = Node::new();
    let owner = node.member();
    let set = Set::create(&owner, 2, 0).unwrap();
    let semaphore = Semaphore::create(&owner, 0, 1_000, 0).unwrap();
    set.add(semaphore.id(), Interest::READABLE, 0).unwrap();
    // A process has a limited number of threads in operations.
    let members: Vec<_> = (0..10).map(|_| node.member()).collect();
    std::thread::scope(|scope| {
        for n in 0..WAITERS {
            let member = &members[n % members.len()];
            let (set, semaphore) = (set.descriptor(), semaphore.descriptor());
            scope.spawn(move || {
                let set = Set::attach(member, &set, false).unwrap();
                let semaphore = Semaphore::attach(member, &semaphore, false).unwrap();
                loop {
                    set.wait(Deadline::Never).unwrap();
                    if semaphore.acquire(Deadline::Now).is_ok() {
                        break;
                    }
                }
            });
        }
        for _ in 0..WAITERS {
            semaphore.release(1).unwrap();
        }
    });
    assert_eq!(semaphore.value(), Ok(0));
}

/// Records and nodes that are free again are used again: no more pages of their tables are touched than there are sets.
#[test]
fn records_and_nodes_are_used_again() {
    let node = Node::new();
    let member = node.member();
    for _ in 0..50 {
        let event = Event::create(&member, 0).unwrap();
        for _ in 0..3 {
            let set = Set::create(&member, 70, 0).unwrap();
            for _ in 0..70 {
                set.add(event.id(), Interest::READABLE, 0).unwrap();
            }
        }
    }
    let unused = |owner: &dragon_shmem::sync::AtomicU64| {
        owner.load(std::sync::atomic::Ordering::Relaxed) == 0
    };
    assert!(unused(&node.control.set_record(4).unwrap().owner));
    assert!(unused(&node.control.subscriber_node(10).unwrap().owner));
}

#[test]
fn destroying_a_set_or_a_member_ends_waits() {
    let node = Node::new();
    let member = node.member();
    let set = Set::create(&member, 2, 0).unwrap();
    let channel = channel(&member, 1);
    set.add(channel.id(), Interest::READABLE, 5).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| set.wait(Deadline::Never));
        channel.destroy().unwrap();
        let ready = waiter.join().unwrap().unwrap();
        assert_eq!((ready[0].token, ready[0].ready), (5, Interest::GONE));
        set.remove(ready[0].member).unwrap();
        let waiters = [(); 2].map(|()| scope.spawn(|| set.wait(Deadline::Never)));
        set.destroy().unwrap();
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), Err(Error::Destroyed(set.id())));
        }
    });
    let set = Set::create(&member, 2, 0).unwrap();
    assert_eq!(set.wait(Deadline::after(1_000_000)), Err(Error::Timeout));
}

/// A process that dies anywhere in adding, waiting and removing leaves neither members nor places, and no change is lost.
#[test]
fn killed_in_a_set() {
    for number in 0..4_u64 {
        let node = Node::new();
        let before = node.used();
        let member = node.member();
        let set = Set::create(&member, 4, 0).unwrap();
        let channel = channel(&member, 4);
        let other = Event::create(&member, 0).unwrap();
        set.add(other.id(), Interest::READABLE, 1).unwrap();
        let words = [
            set.export().unwrap().to_string(),
            channel.export().unwrap().to_string(),
            number.to_string(),
        ];
        let victim = node.spawn("use-set", &words);
        victim.wait_until_stopped();
        if point(number) == TestPoint::Lowered {
            // Stopped between the two looks at the event or the channel: this change finds the flag lowered, or not.
            other.set().unwrap();
        }
        victim.kill(&node);
        other.set().unwrap();
        assert!(tokens(&set).contains(&1), "point {number}");
        if point(number) != TestPoint::Lowered {
            assert_eq!(set.attributes().unwrap().0, 1, "point {number}");
            assert_eq!(subscribers(&node, channel.id()), 0, "point {number}");
        }
        channel.send(b"", 0, Deadline::Now).unwrap();
        set.add(channel.id(), Interest::READABLE, 2).unwrap();
        assert!(tokens(&set).contains(&2));
        if point(number) != TestPoint::Lowered {
            // All places of the table can be used.
            for token in 3..5 {
                set.add(other.id(), Interest::READABLE, token).unwrap();
            }
            let full = set.add(other.id(), Interest::READABLE, 5);
            assert!(matches!(full, Err(Error::SetFull { .. })), "{full:?}");
        }
        drop((set, channel, other));
        assert_eq!(node.used(), before, "point {number}");
    }
}

/// A flag that a dead waiter had lowered is raised again.
#[test]
fn a_lowered_flag_comes_back() {
    let node = Node::new();
    let member = node.member();
    let set = Set::create(&member, 4, 0).unwrap();
    let channel = channel(&member, 4);
    let words = [
        set.export().unwrap().to_string(),
        channel.export().unwrap().to_string(),
        "3".to_owned(),
    ];
    let victim = node.spawn("use-set", &words);
    victim.wait_until_stopped();
    // It has lowered the flag; what was sent before its second look must not be lost with it. Nothing flags it again.
    let entry = node.control.object(channel.id().index).unwrap();
    entry.watch.store(0, std::sync::atomic::Ordering::Relaxed);
    channel.send(b"", 0, Deadline::Now).unwrap();
    assert_eq!(tokens(&set), []);
    victim.kill(&node);
    assert_eq!(tokens(&set), [77], "what the dead process had added stays");
}

#[test]
fn waiters_killed_in_their_sleep_take_no_wake_up_along() {
    let node = Node::new();
    let member = node.member();
    let set = Set::create(&member, 4, 0).unwrap();
    let (channel, said) = (channel(&member, 4), channel(&member, 4));
    set.add(channel.id(), Interest::READABLE, 1).unwrap();
    for _ in 0..5 {
        let words = [
            set.export().unwrap().to_string(),
            said.export().unwrap().to_string(),
        ];
        let victim = node.spawn("wait-set", &words);
        said.receive(Deadline::Never).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| set.wait(Deadline::Never).unwrap());
            channel.send(b"", 0, Deadline::Now).unwrap();
            victim.kill(&node);
            assert_eq!(waiter.join().unwrap()[0].token, 1);
        });
        channel.receive(Deadline::Now).unwrap();
        assert_eq!(sleepers(&node, &set), 0);
    }
}

/// Who has no room for all that is ready wakes the next.
#[test]
fn what_a_waiter_leaves_is_told_to_another() {
    let node = Node::new();
    let member = node.member();
    let set = Set::create(&member, 4, 0).unwrap();
    let event = Event::create(&member, 0).unwrap();
    set.add(event.id(), Interest::READABLE, 1).unwrap();
    for _ in 0..20 {
        std::thread::scope(|scope| {
            let waiters = [(); 2].map(|()| {
                scope.spawn(|| {
                    let watchdog = Deadline::after(60_000_000_000);
                    set.wait_into(&mut Vec::new(), 1, watchdog)
                })
            });
            while sleepers(&node, &set) < 2 {
                std::thread::yield_now();
            }
            // One change, which wakes one of them.
            event.set().unwrap();
            for waiter in waiters {
                assert_eq!(waiter.join().unwrap(), Ok(1));
            }
        });
        event.clear().unwrap();
    }
}

/// The message of a sender that died behind its claim is not there, and the one behind it is reported after recovery.
#[test]
fn a_dead_sender_in_front_of_a_message() {
    let node = Node::new();
    let member = node.member();
    let set = Set::create(&member, 4, 0).unwrap();
    let channel = channel(&member, 8);
    set.add(channel.id(), Interest::READABLE, 1).unwrap();
    let victim = node.spawn("send-once", &[channel.export().unwrap().to_string()]);
    victim.wait_until_stopped();
    assert_eq!(channel.receive(Deadline::Never).unwrap().hint(), 0);
    channel.send(b"", 9, Deadline::Now).unwrap();
    assert_eq!(tokens(&set), [], "strict order: it waits behind the claim");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| set.wait(Deadline::Never).unwrap());
        victim.kill(&node);
        assert_eq!(waiter.join().unwrap()[0].token, 1);
    });
    assert_eq!(channel.receive(Deadline::Now).unwrap().hint(), 9);
}

#[derive(Clone, Debug)]
enum Step {
    Add(usize),
    Remove(usize),
    Set(usize),
    Clear(usize),
    Poll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..6_usize).prop_map(Step::Add),
        (0..12_usize).prop_map(Step::Remove),
        (0..6_usize).prop_map(Step::Set),
        (0..6_usize).prop_map(Step::Clear),
        Just(Step::Poll),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Against a map of members and an array of flags.
    #[test]
    fn as_a_map_of_flags(steps in steps()) {
        let node = Node::new();
        let member = node.member();
        let set = Set::create(&member, 8, 0).unwrap();
        let events: Vec<Event> = (0..6).map(|_| Event::create(&member, 0).unwrap()).collect();
        let mut ready = [false; 6];
        let mut members: HashMap<u64, (SetMember, usize)> = HashMap::new();
        let mut order = Vec::new();
        for (token, step) in (0..).zip(steps) {
            match step {
                Step::Add(n) => match set.add(events[n].id(), Interest::READABLE, token) {
                    Ok(membership) => {
                        members.insert(token, (membership, n));
                        order.push(token);
                    }
                    Err(error) => {
                        let full = matches!(error, Error::SetFull { .. });
                        prop_assert!(full);
                        prop_assert_eq!(members.len(), 8);
                    }
                },
                Step::Remove(n) if !order.is_empty() => {
                    let token = order[n % order.len()];
                    let member = members.remove(&token);
                    order.retain(|other| *other != token);
                    set.remove(member.unwrap().0).unwrap();
                }
                Step::Set(n) => {
                    events[n].set().unwrap();
                    ready[n] = true;
                }
                Step::Clear(n) => {
                    events[n].clear().unwrap();
                    ready[n] = false;
                }
                Step::Remove(_) | Step::Poll => {}
            }
            let got: BTreeSet<u64> = tokens(&set).into_iter().collect();
            let expected: BTreeSet<u64> = members
                .iter()
                .filter(|(_, (_, n))| ready[*n])
                .map(|(token, _)| *token)
                .collect();
            prop_assert_eq!(got, expected);
        }
    }
}
