use std::sync::Barrier;

use dragon_protocol::{ObjectId, ObjectKind};

use super::{BUCKETS, OPEN, PLACES, VERDICT, give, verdict, word};
use crate::error::Error;
use crate::local::Node;
use crate::pool::tag::PoolTag;
use crate::sync::Ordering;

const DEFAULT: PoolTag = PoolTag::DEFAULT;

#[test]
fn memory_is_found_by_its_number_until_the_last_reference_goes() {
    let node = Node::new().unwrap();
    let (a, b) = (node.member().unwrap(), node.member().unwrap());
    let before = node.pool.stats().unwrap().used;
    let id = a
        .create_memory(DEFAULT, 7, 100_000, |at| a.write(at, 99_990, b"0123456789"))
        .unwrap();
    let taken = a.create_memory(DEFAULT, 7, 10, |_| Ok(())).unwrap_err();
    assert!(
        matches!(taken, Error::AlreadyExists { id: 7, .. }),
        "{taken}"
    );
    let theirs = b.find_memory(DEFAULT, 7).unwrap();
    assert_eq!(theirs, id);
    a.detach(id).unwrap();
    let (address, length) = b.memory(theirs).unwrap();
    let mut end = [0; 10];
    b.read(address, length - 10, &mut end).unwrap();
    assert_eq!(&end, b"0123456789");
    b.detach(theirs).unwrap();
    assert_eq!(node.pool.stats().unwrap().used, before);
    let none = b.find_memory(DEFAULT, 7).unwrap_err();
    assert!(matches!(none, Error::NoSuchMemory { id: 7, .. }), "{none}");
    let again = b.create_memory(DEFAULT, 7, 10, |_| Ok(())).unwrap();
    b.detach(again).unwrap();
    let failed = b.create_memory(DEFAULT, 8, 10, |_| Err(Error::Interrupted));
    assert_eq!(failed, Err(Error::Interrupted));
    assert_eq!(node.pool.stats().unwrap().used, before);
}

#[test]
fn a_number_is_given_once() {
    let node = Node::new().unwrap();
    let members: Vec<_> = (0..4).map(|_| node.member().unwrap()).collect();
    let together = Barrier::new(members.len());
    for round in 0..200 {
        let made: Vec<Option<ObjectId>> = std::thread::scope(|scope| {
            let threads: Vec<_> = members
                .iter()
                .map(|member| {
                    scope.spawn(|| {
                        together.wait();
                        match member.create_memory(DEFAULT, round, 64, |_| Ok(())) {
                            Ok(id) => Some(id),
                            Err(Error::AlreadyExists { .. }) => None,
                            Err(error) => panic!("{error}"),
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(made.iter().flatten().count(), 1, "{made:?}");
        if round % 2 == 0 {
            for (member, id) in members.iter().zip(&made) {
                if let Some(id) = id {
                    member.detach(*id).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_bucket_outlives_many_objects_and_says_when_it_is_full() {
    let node = Node::new().unwrap();
    let member = node.member().unwrap();
    let bucket = std::ptr::from_ref(node.control.bucket_of(DEFAULT, 1).unwrap());
    let same = |user: &u64| std::ptr::eq(node.control.bucket_of(DEFAULT, *user).unwrap(), bucket);
    let numbers: Vec<u64> = (1..u64::from(BUCKETS) * 1_000)
        .filter(same)
        .take(PLACES as usize + 1)
        .collect();
    for _ in 0..3 {
        let made: Vec<_> = numbers
            .iter()
            .map(|number| member.create_memory(DEFAULT, *number, 64, |_| Ok(())))
            .collect();
        assert!(matches!(
            made[PLACES as usize],
            Err(Error::TableFull { .. })
        ));
        for id in made.into_iter().flatten() {
            member.detach(id).unwrap();
        }
    }
}

/// A creator dies after it announced its object, before or after somebody gave the verdict: the number is free again.
#[test]
fn a_creator_that_died_keeps_no_number() {
    for step in 0..3 {
        let node = Node::new().unwrap();
        let (dying, living) = (node.member().unwrap(), node.member().unwrap());
        let before = node.pool.stats().unwrap().used;
        let id = dying.create_memory(DEFAULT, 5, 64, |_| Ok(())).unwrap();
        let entry = node.control.object(id.index).unwrap();
        let bucket = node.control.bucket_of(DEFAULT, 5).unwrap();
        if step < 2 {
            entry.body[VERDICT].store(verdict(id, OPEN), Ordering::Relaxed);
            bucket.pending.store(word(id), Ordering::Relaxed);
        }
        if step < 1 {
            bucket.places[0].store(0, Ordering::Relaxed);
        }
        // Somebody else has no business with it yet, and helps.
        let other = living.create_memory(DEFAULT, 5, 64, |_| Ok(()));
        assert!(matches!(other, Err(Error::AlreadyExists { .. })), "{step}");
        // As recovery gives its reference back.
        node.daemon.give_directly(id, |_| {}).unwrap();
        let mine = living.create_memory(DEFAULT, 5, 64, |_| Ok(())).unwrap();
        living.detach(mine).unwrap();
        assert_eq!(node.pool.stats().unwrap().used, before);
    }
}

/// A helper is stopped before it gives its verdict, and goes on when the entry is another object's.
#[test]
fn a_helper_that_comes_late_changes_nothing() {
    let node = Node::new().unwrap();
    let member = node.member().unwrap();
    let control = &node.control;
    let id = member.create_memory(DEFAULT, 5, 64, |_| Ok(())).unwrap();
    let entry = control.object(id.index).unwrap();
    let bucket = control.bucket_of(DEFAULT, 5).unwrap();
    entry.body[VERDICT].store(verdict(id, OPEN), Ordering::Relaxed);
    let (_, of, reached) = control.judge(bucket, word(id)).unwrap();
    control.help_enter(bucket, word(id));
    member.detach(id).unwrap();
    // Body words as the objects of this entry may have them: also such as the verdict's place had before.
    for body in [0, verdict(id, 0), verdict(id, reached)] {
        let next = member
            .create(ObjectKind::Semaphore, |entry, _| {
                for word in &entry.body[..VERDICT] {
                    word.store(body, Ordering::Relaxed);
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(next.index, id.index, "the lowest free entry is used next");
        give(entry, of, reached);
        let words: Vec<u64> = entry
            .body
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .collect();
        assert_eq!(words[..VERDICT], [body; VERDICT]);
        assert_eq!(words[VERDICT], 0);
        member.detach(next).unwrap();
    }
    // The next memory there has a verdict of its own.
    let again = member.create_memory(DEFAULT, 5, 64, |_| Ok(())).unwrap();
    assert_eq!(again.index, id.index);
    give(entry, of, reached);
    assert_eq!(member.find_memory(DEFAULT, 5).unwrap(), again);
}
