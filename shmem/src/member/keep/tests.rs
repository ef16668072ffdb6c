use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Barrier};
use std::thread;

use dragon_protocol::op::Op;

use super::MOST;
use crate::Member;
use crate::control::{MAX_THREADS, SPARE_THREADS};
use crate::local::Node;
use crate::sync::Ordering;

fn member() -> (Node, Arc<Member>) {
    let node = Node::new().unwrap();
    let member = node.member().unwrap();
    (node, member)
}

fn index(member: &Member) -> u32 {
    member.thread().unwrap().index()
}

/// As many guards as there can be, at once; gives them back.
fn all(member: &Member) -> usize {
    std::iter::from_fn(|| member.thread().ok())
        .collect::<Vec<_>>()
        .len()
}

fn busy(member: &Member) -> u32 {
    let records = member.records.iter();
    records
        .map(|record| record.busy.load(Ordering::Relaxed))
        .sum()
}

#[test]
fn a_thread_keeps_one_record_and_gives_the_others_back() {
    let (_node, member) = member();
    let first = {
        let outer = member.thread().unwrap();
        outer.intent.begin(Op::Send, 1, 2, [3, 4]);
        let inner = member.thread().unwrap();
        assert_ne!(inner.index(), outer.index());
        assert_eq!(busy(&member), 2);
        outer.index()
    };
    assert_eq!(busy(&member), 1, "the outer one is kept");
    let guard = member.thread().unwrap();
    assert_eq!(guard.index(), first);
    assert_eq!(guard.intent.read(), None, "nothing that recovery would do");
}

#[test]
fn the_records_of_ended_threads_go_to_the_next() {
    let (_node, member) = member();
    let all_kept = u64::from(MOST) + 3;
    let of_a_thread = || thread::scope(|scope| scope.spawn(|| index(&member)).join().unwrap());
    let first = of_a_thread();
    for _ in 0..all_kept {
        assert_eq!(of_a_thread(), first);
    }
    assert_eq!(busy(&member), 1);
}

#[test]
fn so_many_threads_keep_one_and_the_others_do_without() {
    let (_node, member) = member();
    let threads = MOST as usize + 2;
    let barrier = Barrier::new(threads + 1);
    thread::scope(|scope| {
        let keep = || {
            drop(member.thread().unwrap());
            barrier.wait();
            barrier.wait();
        };
        let spawned: Vec<_> = (0..threads).map(|_| scope.spawn(keep)).collect();
        barrier.wait();
        assert_eq!(busy(&member), MOST);
        // This one has the others in turn, and one operation inside another.
        assert_eq!(all(&member), (MAX_THREADS - SPARE_THREADS - MOST) as usize);
        assert_eq!(busy(&member), MOST);
        barrier.wait();
        // The end of the scope alone comes before what a thread does last.
        spawned.into_iter().for_each(|ended| ended.join().unwrap());
    });
    // They have ended; one thread can have all that they kept.
    assert_eq!(all(&member), (MAX_THREADS - SPARE_THREADS) as usize);
    assert_eq!(busy(&member), 1);
}

#[test]
fn a_thread_outlives_its_member_and_keeps_a_record_of_the_next() {
    thread::spawn(|| {
        let (_node, member) = member();
        drop(member.thread().unwrap());
        let (_other_node, other) = self::member();
        drop(other.thread().unwrap());
        assert_eq!((busy(&member), busy(&other)), (1, 0), "one at a time");
        drop(member);
        drop(other.thread().unwrap());
        assert_eq!(busy(&other), 0, "what it claimed last is still free");
        let (_next_node, next) = self::member();
        drop(next.thread().unwrap());
        assert_eq!(busy(&next), 1);
    })
    .join()
    .unwrap();
}

#[test]
fn a_panic_leaves_the_kept_record_to_the_next_operation() {
    let (_node, member) = member();
    let first = index(&member);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let guard = member.thread().unwrap();
        assert_eq!(guard.index(), first);
        // Prints nothing: whoever reads what tests say looks for those that failed.
        resume_unwind(Box::new("after the look"));
    }));
    let panic = panicked.unwrap_err();
    assert!(panic.is::<&str>(), "it is not the same");
    assert_eq!(index(&member), first);
}

/// A guard that is never given back is no longer its thread's: what it names is in use for ever.
#[test]
fn a_forgotten_guard_keeps_its_record_from_the_next_thread() {
    let (_node, member) = member();
    let of_a_thread = |forget: bool| {
        let look = || {
            let guard = ManuallyDrop::new(member.thread().unwrap());
            let index = guard.index();
            if !forget {
                drop(ManuallyDrop::into_inner(guard));
            }
            index
        };
        thread::scope(|scope| scope.spawn(look).join().unwrap())
    };
    let forgotten = of_a_thread(true);
    assert_ne!(of_a_thread(false), forgotten);
}
