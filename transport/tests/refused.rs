//! What the system refuses to the TCP fabric: descriptors, and an option of a socket.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "rig/victim.rs"]
mod victim;

use std::io::Write;
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use dragon_protocol::NodeIndex;
use dragon_protocol::wire::{FrameHeader, FrameKind};
use dragon_shmem::clock;
use dragon_transport::descriptors;
use dragon_transport::fabric::Fabric;
use dragon_transport::fabric::tcp::{TcpConfig, TcpFabric};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use zerocopy::IntoBytes;

use victim::{Deaf, Victim, WATCHDOG, connect, header, key, open};

/// The limit of descriptors is the process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn without_a_descriptor_the_fabric_sleeps_until_one_is_free() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let fabric = TcpFabric::bind(TcpConfig::new(NodeIndex::FIRST, key())).unwrap();
    let port = fabric.local_address().unwrap().port();
    let _first = connect(port);
    without_descriptors(|| sleeps(&fabric));
    descriptors::freed();
    comes_in(&fabric, 1);
    // Nobody says that one is free; the next connection shows it.
    let _second = connect(port);
    without_descriptors(|| sleeps(&fabric));
    let _third = connect(port);
    comes_in(&fabric, 3);
    // And it is as it was: one that comes is told of until it is accepted.
    let _fourth: TcpStream = connect(port);
    comes_in(&fabric, 4);
}

/// Nothing can be opened meanwhile, and what is closed does not help.
fn without_descriptors(act: impl FnOnce()) {
    let limit = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..limit
    };
    setrlimit(Resource::Nofile, none).unwrap();
    act();
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// A connection waits that cannot be accepted, and the fabric waits too: it returns a few times, not as often as the time
/// allows.
fn sleeps(fabric: &TcpFabric) {
    let until = clock::now() + 200_000_000;
    let mut rounds = 0;
    while clock::now() < until {
        fabric.progress(&mut Deaf, until).unwrap();
        rounds += 1;
    }
    assert!(rounds < 10, "{rounds} rounds with nothing to be done");
    assert_eq!(fabric.stats().refused, 0);
}

fn comes_in(fabric: &TcpFabric, strangers: u64) {
    let begun = Instant::now();
    while fabric.stats().half_open < strangers {
        assert!(begun.elapsed() < WATCHDOG, "connections wait for ever");
        fabric
            .progress(&mut Deaf, clock::now() + 1_000_000_000)
            .unwrap();
    }
}

#[test]
fn a_large_payload_arrives_where_the_socket_cannot_wait_for_parts_of_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // The filter is that of a thread, and of those that it starts.
    let test = std::thread::spawn(|| {
        refuse_receive_marks();
        let victim = Victim::start(|_| {});
        let (mut raw, _) = victim.raw(1, open(7));
        let payload: Vec<u8> = (0..1_u32 << 20).map(|n| n.to_le_bytes()[0]).collect();
        let header = FrameHeader {
            payload: (payload.len() as u64).into(),
            ..header(FrameKind::Request, 5)
        };
        let (some, rest) = payload.split_at(5_000);
        raw.stream.write_all(header.as_bytes()).unwrap();
        raw.stream.write_all(some).unwrap();
        let begun = Instant::now();
        while victim.fabric.stats().bytes_received < some.len() as u64 {
            assert!(begun.elapsed() < WATCHDOG, "nothing arrives");
            std::thread::yield_now();
        }
        raw.stream.write_all(rest).unwrap();
        victim.wait_for("the payload", |seen| {
            !seen.frames.is_empty() || !seen.lost.is_empty()
        });
        let seen = victim.seen();
        assert_eq!(seen.lost, Vec::<String>::new());
        assert!(seen.frames == [(5, payload)], "other bytes arrived");
    });
    test.join().unwrap();
}

/// From now on SO_RCVLOWAT is refused to this thread and to those that it starts.
fn refuse_receive_marks() {
    // Offsets of the number, the second and the third argument in the kernel's structure.
    const NUMBER: u32 = 0;
    const LEVEL: u32 = 24;
    const OPTION: u32 = 32;
    let load = |at| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, at);
    let go_on_if = |value| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, value);
    let end = |with| step(libc::BPF_RET | libc::BPF_K, 0, with);
    let allow = end(libc::SECCOMP_RET_ALLOW);
    let mut filter = [
        load(NUMBER),
        go_on_if(u32::try_from(libc::SYS_setsockopt).unwrap()),
        allow,
        load(LEVEL),
        go_on_if(libc::SOL_SOCKET as u32),
        allow,
        load(OPTION),
        go_on_if(libc::SO_RCVLOWAT as u32),
        allow,
        end(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap(),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: it takes away rights of this thread, and no memory is involved.
    let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(done, 0);
    // SAFETY: `program` is a filter of so many steps, which the kernel copies.
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// A step of a filter; one that compares leaves out the next `over` ones where the values are the same.
fn step(code: u32, over: u8, value: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: over,
        jf: 0,
        k: value,
    }
}
