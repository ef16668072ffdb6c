use std::collections::HashSet;

use dragon_channels::set::elsewhere::Subscription;
use dragon_protocol::op::Op;
use dragon_protocol::{Code, NodeIndex, ObjectId, ObjectKind, SlotId, wire};

use super::super::late::{Ask, Asked};
use super::{Caller, Chunk, GRACE, RETRY_FIRST, Receiver, Requests};
use crate::body::Body;

fn node(n: u32) -> NodeIndex {
    NodeIndex::new(n).unwrap()
}

fn slot(index: u32, generation: u32) -> SlotId {
    SlotId { index, generation }
}

fn caller(slot: SlotId, thread: u32, ticket: u64) -> Caller {
    Caller::Thread {
        slot,
        thread,
        ticket,
    }
}

fn object(n: u32) -> ObjectId {
    ObjectId {
        node: node(n),
        kind: ObjectKind::Channel,
        index: 1,
        generation: 1,
    }
}

fn begin(requests: &mut Requests, who: Caller, op: Op, to: u32) -> u64 {
    let begun = requests.begin(who, op, object(to), wire::NEVER, 0);
    begun.unwrap().number
}

#[test]
fn a_request_ends_once() {
    let mut requests = Requests::new(0);
    let who = caller(slot(1, 1), 0, 5);
    let number = begin(&mut requests, who, Op::Receive, 2);
    assert_eq!(requests.of_caller(who), Some((number, node(2))));
    assert_eq!(requests.of_caller(caller(slot(1, 1), 0, 6)), None);
    assert_eq!(requests.finish(number).unwrap().caller, who);
    assert!(requests.finish(number).is_none());
    assert_eq!(requests.of_caller(who), None);
    assert_eq!(requests.len(), 0);
}

#[test]
fn a_thread_has_one_request_under_way() {
    let mut requests = Requests::new(0);
    let old = begin(&mut requests, caller(slot(1, 1), 0, 5), Op::Receive, 2);
    let who = caller(slot(1, 1), 0, 6);
    let begun = requests.begin(who, Op::Receive, object(3), wire::NEVER, 0);
    let begun = begun.unwrap();
    assert_eq!(begun.displaced, Some((old, node(2))));
    assert_eq!(requests.of_caller(who), Some((begun.number, node(3))));
    assert_eq!(requests.len(), 1);
}

#[test]
fn a_lost_link_ends_its_own_requests_and_spares_the_unsent_once() {
    let mut requests = Requests::new(0);
    let numbers: Vec<u64> = (0..4)
        .map(|t| begin(&mut requests, caller(slot(1, 1), t, 1), Op::Receive, 2))
        .collect();
    for (number, link) in numbers.iter().zip([7, 7, 8, 7]) {
        assert!(requests.set_link(*number, link));
    }
    let unsent = HashSet::from([numbers[3]]);
    let (lost, again) = requests.link_lost(node(2), 7, true, &unsent);
    assert!(again);
    assert_eq!(lost.len(), 2);
    assert!(requests.finish(numbers[2]).is_some());
    // The next links do not come up: after one more attempt that is the end of the unsent one too.
    requests.set_link(numbers[3], 9);
    let (lost, again) = requests.link_lost(node(2), 9, false, &unsent);
    assert!(again && lost.is_empty());
    requests.set_link(numbers[3], 10);
    let (lost, again) = requests.link_lost(node(2), 10, false, &unsent);
    assert!(!again);
    assert_eq!(lost.len(), 1);
    assert_eq!(requests.len(), 0);
}

#[test]
fn a_node_that_is_gone_takes_no_requests() {
    let mut requests = Requests::new(0);
    begin(&mut requests, caller(slot(1, 1), 0, 1), Op::Receive, 2);
    begin(&mut requests, caller(slot(1, 1), 1, 1), Op::Receive, 3);
    assert_eq!(requests.node_gone(node(2), Code::NodeDown).len(), 1);
    let refused = requests.begin(
        caller(slot(1, 1), 0, 2),
        Op::Receive,
        object(2),
        wire::NEVER,
        0,
    );
    assert_eq!(refused.unwrap_err(), Code::NodeDown);
    assert_eq!(requests.len(), 1);
}

#[test]
fn nodes_hear_of_a_dead_process_until_they_have_answered() {
    let mut requests = Requests::new(0);
    let dead = slot(4, 2);
    begin(&mut requests, caller(dead, 0, 1), Op::Attach, 2);
    let waiting = begin(&mut requests, caller(dead, 1, 1), Op::Receive, 3);
    begin(&mut requests, caller(slot(5, 1), 0, 1), Op::LockAcquire, 2);
    let mut end = requests.slot_gone(dead, [node(9)].into_iter());
    end.tell.sort();
    // Node 3 was only asked to wait: cancelling that is enough.
    assert_eq!(end.tell, [node(2), node(9)]);
    assert!(end.cancel.contains(&(waiting, node(3))));
    assert_eq!(requests.owed(node(2)), [dead]);
    let told = begin(&mut requests, Caller::Gone(dead), Op::Detach, 2);
    // Under way: not once more.
    assert!(requests.owed(node(2)).is_empty());
    requests.finish(told);
    requests.tell_later(node(2), 100);
    assert!(requests.due(100 + RETRY_FIRST - 1).retry.is_empty());
    assert_eq!(requests.due(100 + RETRY_FIRST).retry, [node(2)]);
    assert_eq!(requests.owed(node(2)), [dead]);
    requests.told(node(2), dead);
    assert!(requests.owed(node(2)).is_empty());
}

#[test]
fn what_a_dead_process_left_in_the_gateway_is_not_sent() {
    let mut requests = Requests::new(0);
    requests.slot_gone(slot(4, 2), std::iter::empty());
    for (generation, refused) in [(1, true), (2, true), (3, false)] {
        let who = caller(slot(4, generation), 0, 1);
        let begun = requests.begin(who, Op::Attach, object(2), wire::NEVER, 0);
        assert_eq!(begun.is_err(), refused, "generation {generation}");
        assert_eq!(requests.is_gone(slot(4, generation)), refused);
    }
}

#[test]
fn a_silent_owner_is_given_up_after_the_deadline_and_its_late_word_is_known() {
    let mut requests = Requests::new(0);
    assert_eq!(requests.sleep(wire::NEVER, 0), wire::NEVER);
    let who = caller(slot(1, 1), 0, 1);
    let begun = requests.begin(who, Op::Receive, object(2), 1_000, 10);
    let begun = begun.unwrap();
    assert!(begun.wake, "the thread sleeps for ever");
    assert_eq!(requests.sleep(wire::NEVER, 10), 1_000 + GRACE);
    assert!(requests.due(1_000 + GRACE - 1).callers.is_empty());
    assert_eq!(requests.due(1_000 + GRACE).callers, [who]);
    assert!(requests.due(1_000 + GRACE).callers.is_empty());
    assert!(requests.finish(begun.number).unwrap().expired);
}

#[test]
fn many_short_requests_wake_the_sleeper_once() {
    let mut requests = Requests::new(0);
    requests.sleep(wire::NEVER, 0);
    let mut wakes = 0;
    for now in 1..1_000 {
        let who = caller(slot(1, 1), 0, now);
        let begun = requests.begin(who, Op::Attributes, object(2), wire::NOW, now);
        let begun = begun.unwrap();
        if begun.wake {
            wakes += 1;
            requests.sleep(wire::NEVER, now);
        }
        requests.finish(begun.number);
        requests.sleep(wire::NEVER, now);
    }
    assert_eq!(wakes, 1);
}

fn receiver(slot: SlotId, to: u32, conversation: u64) -> Receiver {
    Receiver {
        slot,
        endpoint: object(to),
        conversation,
    }
}

fn chunk(argument: u64) -> Chunk {
    Chunk {
        argument,
        body: Body::Bytes(vec![1]),
    }
}

fn ask(receiver: Receiver, ticket: u64) -> Ask {
    Ask {
        caller: caller(receiver.slot, 0, ticket),
        receiver,
        op: Op::Receive,
        request: None,
    }
}

/// The argument of the first chunk, which is on its way from now on.
fn first(requests: &mut Requests, receiver: Receiver) -> Option<u64> {
    match requests.late.ask(ask(receiver, 1)) {
        Asked::Chunk(chunk) => Some(chunk.argument),
        Asked::Nothing => None,
        other => panic!("{other:?}"),
    }
}

fn arguments(requests: &mut Requests, receiver: &Receiver) -> Vec<u64> {
    let next = || {
        let argument = first(requests, *receiver)?;
        assert!(requests.late.given(receiver, None).is_empty());
        Some(argument)
    };
    std::iter::from_fn(next).collect()
}

#[test]
fn chunks_that_come_too_late_wait_in_their_order() {
    let mut requests = Requests::new(0);
    let (a, b) = (receiver(slot(1, 1), 2, 5), receiver(slot(1, 1), 2, 6));
    assert!(!requests.late.has(&a));
    for (receiver, argument, first) in [(a, 2, false), (b, 9, false), (a, 3, false), (a, 1, true)] {
        assert!(
            requests
                .keep_late(receiver, chunk(argument), first)
                .is_none()
        );
    }
    assert!(requests.late.has(&a));
    assert_eq!(arguments(&mut requests, &a), [1, 2, 3]);
    assert!(!requests.late.has(&a));
    assert_eq!(arguments(&mut requests, &b), [9]);
}

#[test]
fn a_chunk_that_comes_too_late_ends_the_next_request_for_it() {
    let mut requests = Requests::new(0);
    let (who, other) = (caller(slot(1, 1), 0, 5), caller(slot(1, 1), 1, 5));
    let asked = begin(&mut requests, who, Op::Receive, 2);
    requests.wants_chunk(asked, Op::Receive, 7);
    let polled = begin(&mut requests, other, Op::PollReadable, 2);
    requests.wants_chunk(polled, Op::PollReadable, 8);
    let mut late = |slot, to, conversation| {
        let kept = requests.keep_late(receiver(slot, to, conversation), chunk(0), false);
        kept.map(|(number, pending)| (number, pending.wants.unwrap().0))
    };
    assert_eq!(late(slot(1, 1), 3, 7), None, "of another endpoint");
    assert_eq!(late(slot(2, 1), 2, 7), None, "of another process");
    assert_eq!(late(slot(1, 1), 2, 9), None, "of another conversation");
    assert_eq!(late(slot(1, 1), 2, 7), Some((asked, Op::Receive)));
    assert_eq!(late(slot(1, 1), 2, 7), None, "it has ended");
    assert_eq!(late(slot(1, 1), 2, 8), Some((polled, Op::PollReadable)));
    assert_eq!(requests.len(), 0);
    // One that was told that the owner does not answer does not wait any more.
    let begun = requests.begin(who, Op::Receive, object(2), 1_000, 10);
    requests.wants_chunk(begun.unwrap().number, Op::Receive, 7);
    assert_eq!(requests.due(1_000 + GRACE).callers, [who]);
    let kept = requests.keep_late(receiver(slot(1, 1), 2, 7), chunk(0), false);
    assert!(kept.is_none());
}

#[test]
fn chunks_go_with_their_receiver_and_with_their_owner() {
    let mut requests = Requests::new(0);
    let (dead, alive) = (receiver(slot(1, 1), 2, 5), receiver(slot(2, 1), 3, 5));
    for receiver in [dead, alive] {
        requests.keep_late(receiver, chunk(1), false);
    }
    requests.slot_gone(slot(1, 1), std::iter::empty());
    assert!(!requests.late.has(&dead) && requests.late.has(&alive));
    requests.keep_late(dead, chunk(2), false);
    assert!(!requests.late.has(&dead), "nobody comes for it");
    requests.node_gone(node(3), Code::NodeDown);
    assert!(!requests.late.has(&alive));
    requests.keep_late(alive, chunk(3), false);
    requests.late.forget(&alive);
    assert!(!requests.late.has(&alive));
}

#[test]
fn a_request_waits_for_a_chunk_that_is_on_its_way_to_an_earlier_one() {
    let mut requests = Requests::new(0);
    let it = receiver(slot(1, 1), 2, 5);
    requests.keep_late(it, chunk(1), false);
    assert_eq!(first(&mut requests, it), Some(1));
    // It may come back: the owner, which has sent it, must not be asked for the next one.
    assert!(requests.late.has(&it));
    let again = ask(it, 2);
    assert!(matches!(requests.late.ask(again), Asked::Waits));
    let polls = Ask {
        op: Op::PollReadable,
        ..ask(it, 3)
    };
    assert!(matches!(requests.late.ask(polls), Asked::Waits));
    // What comes meanwhile comes behind it.
    requests.keep_behind(it, chunk(2)).unwrap();
    assert!(matches!(requests.late.ask(polls), Asked::Readable));
    let waited = requests.late.given(&it, Some(chunk(1)));
    let callers: Vec<Caller> = waited.iter().map(|ask| ask.caller).collect();
    assert_eq!(callers, [again.caller, polls.caller]);
    assert_eq!(arguments(&mut requests, &it), [1, 2]);
    assert!(!requests.late.has(&it));
    assert!(requests.keep_behind(it, chunk(3)).is_err());
}

#[test]
fn a_chunk_that_comes_back_finds_nobody_after_an_end() {
    let ends: [fn(&mut Requests, &Receiver); 3] = [
        |requests, it| drop(requests.slot_gone(it.slot, std::iter::empty())),
        |requests, it| drop(requests.node_gone(it.endpoint.node, Code::NodeDown)),
        |requests, it| requests.late.forget(it),
    ];
    for (n, end) in ends.into_iter().enumerate() {
        let mut requests = Requests::new(0);
        let it = receiver(slot(1, 1), 2, 5);
        for argument in [1, 2] {
            requests.keep_late(it, chunk(argument), false);
        }
        assert_eq!(first(&mut requests, it), Some(1));
        let waits = ask(it, 2);
        assert!(matches!(requests.late.ask(waits), Asked::Waits));
        end(&mut requests, &it);
        requests.keep_late(it, chunk(3), false);
        let waited = requests.late.given(&it, Some(chunk(1)));
        assert_eq!(waited.len(), 1, "end {n}: it gets an answer");
        assert!(!requests.late.has(&it), "end {n}");
        assert!(matches!(requests.late.ask(waits), Asked::Nothing));
    }
}

#[test]
fn nothing_is_kept_for_a_receiver_that_ends_or_whose_owner_is_gone() {
    let mut requests = Requests::new(0);
    let it = receiver(slot(1, 1), 2, 5);
    let closes = begin(&mut requests, caller(it.slot, 0, 7), Op::StreamClose, 2);
    requests.ends_receiver(closes, it);
    requests.keep_late(it, chunk(1), false);
    assert!(!requests.late.has(&it), "it ends");
    let other = receiver(slot(1, 1), 2, 6);
    requests.keep_late(other, chunk(1), false);
    assert!(requests.late.has(&other), "another conversation");
    requests.node_gone(node(2), Code::NodeDown);
    requests.keep_late(other, chunk(2), true);
    assert!(!requests.late.has(&other), "its owner is gone");
}

#[test]
fn a_request_outlives_the_longest_silence_of_its_link() {
    let mut requests = Requests::new(GRACE * 2);
    let who = caller(slot(1, 1), 0, 1);
    requests
        .begin(who, Op::Receive, object(2), 1_000, 10)
        .unwrap();
    assert!(requests.due(1_000 + 2 * GRACE - 1).callers.is_empty());
    assert_eq!(requests.due(1_000 + 2 * GRACE).callers, [who]);
}

#[test]
fn what_a_set_asked_for_is_found_by_set_and_place() {
    let mut requests = Requests::new(0);
    let asks = |set: u32, place| Subscription {
        set: ObjectId {
            kind: ObjectKind::Set,
            index: set,
            ..object(0)
        },
        place,
        version: 0,
        ask: 1,
    };
    let mut ask = |set, place| {
        let who = Caller::Member(asks(set, place));
        begin(&mut requests, who, Op::Subscribe, 2)
    };
    let (first, second, other) = (ask(1, 0), ask(1, 1), ask(2, 1));
    let found = |requests: &Requests, set, place| {
        let found = requests.subscriptions(set, place).into_iter();
        let mut found: Vec<_> = found.map(|(number, _)| number).collect();
        found.sort_unstable();
        found
    };
    let set = Some(asks(1, 0).set);
    assert_eq!(found(&requests, None, None), [first, second, other]);
    assert_eq!(found(&requests, set, None), [first, second]);
    assert_eq!(found(&requests, set, Some(1)), [second]);
    assert_eq!(found(&requests, set, Some(7)), []);
    requests.finish(second);
    assert_eq!(found(&requests, set, None), [first]);
    assert_eq!(found(&requests, set, Some(1)), []);
}
