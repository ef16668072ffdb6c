//! Whoever does not know the key gets nothing and keeps nobody out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "rig/victim.rs"]
mod victim;

use std::io::{Read, Write};
use std::net::TcpStream;

use dragon_protocol::handshake::ANSWER;
use dragon_protocol::key::JobKey;
use dragon_transport::fabric::Fabric;
use zerocopy::IntoBytes;

use victim::{Victim, closed, hello, key, node, open};

#[test]
fn noise_is_answered_with_a_closed_connection() {
    let victim = Victim::start(|_| {});
    for noise in [&b"GET / HTTP/1.1\r\n"[..], &[0; 4096], &[0xff; 100_000]] {
        let mut stream = victim.connect();
        // The victim may close while the noise is still being written.
        let _ = stream.write_all(noise);
        let _ = stream.write_all(&[b'x'; 100]);
        assert_eq!(closed(stream), b"");
    }
    victim.saw_nothing();
    assert_eq!(victim.fabric.stats().refused, 3);
    assert_eq!(victim.fabric.stats().half_open, 0);
}

#[test]
fn silence_is_ended_by_the_deadline() {
    let victim = Victim::start(|config| config.handshake_s = 1);
    let silent = victim.connect();
    let mut slow = victim.connect();
    slow.write_all(&hello(&key()).hello()[..40]).unwrap();
    assert_eq!(closed(silent), b"");
    assert_eq!(closed(slow), b"");
    victim.saw_nothing();
    assert_eq!(victim.fabric.stats().half_open, 0);
}

#[test]
fn a_wrong_key_gets_no_further() {
    let victim = Victim::start(|_| {});
    let wrong = JobKey::from_hex(&"11".repeat(32)).unwrap();
    let mut stream = victim.connect();
    let connector = hello(&wrong);
    stream.write_all(&connector.hello()).unwrap();
    let mut answer = [0; ANSWER];
    stream.read_exact(&mut answer).unwrap();
    assert!(connector.answer(&answer, 1).is_err());
    stream.write_all(&[0x77; 112]).unwrap();
    stream.write_all(&[1; 800]).unwrap_or(());
    assert_eq!(closed(stream), b"");
    victim.saw_nothing();
}

#[test]
fn a_recorded_proof_is_of_no_use() {
    let victim = Victim::start(|_| {});
    let mut stream = victim.connect();
    let connector = hello(&key());
    let first = connector.hello();
    stream.write_all(&first).unwrap();
    let mut answer = [0; ANSWER];
    stream.read_exact(&mut answer).unwrap();
    let (proof, _) = connector.answer(&answer, 1).unwrap();
    stream.write_all(&proof).unwrap();
    stream.write_all(open(7).as_bytes()).unwrap();
    victim.wait_for("a link", |seen| seen.up == 1);
    // That one stands. The same bytes once more do not.
    let mut replay = victim.connect();
    replay.write_all(&first).unwrap();
    replay.read_exact(&mut answer).unwrap();
    replay.write_all(&proof).unwrap();
    replay.write_all(open(7).as_bytes()).unwrap_or(());
    assert_eq!(closed(replay), b"");
    assert_eq!(victim.fabric.stats().accepted, 1);
}

#[test]
fn a_flood_of_silent_connections_keeps_nobody_out() {
    // None of them goes for its time being over.
    let victim = Victim::start(|config| {
        config.half_open = 8;
        config.handshake_s = 600;
    });
    let flood: Vec<TcpStream> = (0..40).map(|_| victim.connect()).collect();
    let friend = Victim::start(|config| config.node = node(1));
    let _link = friend.link_to(&victim);
    victim.wait_for("a link", |seen| seen.up == 1);
    // The oldest are closed without a word: of one source two stay.
    for stream in flood.into_iter().take(38) {
        assert_eq!(closed(stream), b"");
    }
    let mut late = victim.connect();
    late.write_all(b"noise").unwrap();
    late.write_all(&[0; 80]).unwrap_or(());
    assert_eq!(closed(late), b"");
    assert_eq!(victim.fabric.stats().accepted, 1);
    assert!(victim.fabric.stats().half_open <= 2);
}
