use std::net::SocketAddr;

use super::{HalfOpen, PAUSE, Refusals, SOURCES};

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn friend() -> SocketAddr {
    at("10.0.0.7:1000")
}

#[test]
fn a_flood_from_one_address_pushes_out_its_own() {
    let mut half_open = HalfOpen::new(12);
    half_open.enter(0, friend(), 10);
    for n in 1..100 {
        half_open.enter(n, at("[fd00::5]:1000"), 10);
        // Each of its addresses in the same network is the same source.
        half_open.enter(100 + n, at("[fd00::6]:1000"), 10);
        while let Some(out) = half_open.surplus() {
            assert_ne!(out.connection, 0, "after {n}");
        }
    }
    // Its share, and the friend.
    assert_eq!(half_open.len(), 3 + 1);
    assert_eq!(half_open.leave(|n| *n == 0).map(|s| s.from), Some(friend()));
    assert!(half_open.leave(|n| *n == 0).is_none());
}

#[test]
fn among_equals_the_oldest_goes() {
    let mut half_open = HalfOpen::new(2);
    for (n, from) in ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]
        .iter()
        .enumerate()
    {
        assert!(half_open.surplus().is_none());
        half_open.enter(n, at(from), 10);
    }
    assert_eq!(half_open.surplus().map(|s| s.connection), Some(0));
    assert!(half_open.surplus().is_none());
}

#[test]
fn time_is_over_in_the_order_of_arrival() {
    let mut half_open = HalfOpen::new(8);
    assert_eq!(half_open.next_deadline(), None);
    half_open.enter('a', friend(), 10);
    half_open.enter('b', friend(), 20);
    assert!(half_open.overdue(9).is_none());
    assert_eq!(half_open.overdue(10).map(|s| s.connection), Some('a'));
    assert_eq!(half_open.next_deadline(), Some(20));
    assert!(half_open.overdue(10).is_none());
}

#[test]
fn a_source_gets_one_line_a_second() {
    let mut refusals = Refusals::default();
    assert_eq!(refusals.tell(friend(), 5), Some(0));
    for n in 0..10 {
        assert_eq!(refusals.tell(at("10.0.0.7:2"), 6 + n), None);
    }
    assert_eq!(refusals.tell(friend(), 5 + PAUSE), Some(10));
    assert_eq!(refusals.tell(friend(), 6 + PAUSE), None);
}

#[test]
fn a_flood_from_one_address_hides_no_other() {
    let mut refusals = Refusals::default();
    for n in 0..10_000 {
        refusals.tell(at("10.0.0.9:1"), 1 + n);
    }
    assert_eq!(refusals.tell(friend(), 10_001), Some(0));
    assert_eq!(refusals.tell(at("[::ffff:10.0.0.7]:1"), 10_002), None);
}

#[test]
fn a_flood_from_everywhere_is_bounded_and_forgotten() {
    let mut refusals = Refusals::default();
    let from = |n: u32| SocketAddr::from((std::net::Ipv4Addr::from_bits(n), 1));
    let lines = |refusals: &mut Refusals, now| {
        let told = (0..1000).filter_map(|n| refusals.tell(from(n), now));
        let told: Vec<u64> = told.collect();
        (told.len(), told.iter().sum::<u64>())
    };
    assert_eq!(lines(&mut refusals, 1), (SOURCES + 1, 0));
    let rest = 1000 - (SOURCES as u64 + 1);
    assert_eq!(lines(&mut refusals, 1 + PAUSE), (SOURCES + 1, rest));
    assert_eq!(refusals.sources.len(), SOURCES);
}
