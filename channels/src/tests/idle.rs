//! What waiting costs: nothing.

use std::fs;
use std::sync::Arc;
use std::thread;

use dragon_shmem::Member;

use crate::fixture::{Node, Role, pause};
use crate::wait::mark;
use crate::{Channel, ChannelOptions, Deadline, Error, Event, create_channel};

/// Processes, and threads that wait in each.
const PROCESSES: u32 = 4;
const WAITERS: u32 = 250;
const CHANNELS: usize = 10_000;

pub(super) fn play(name: &str, role: &Role) -> bool {
    if name != "wait-in-threads" {
        return false;
    }
    // Words: event, channel. Half of the threads wait for the one, half for the other.
    let event = Arc::new(Event::attach(&role.member, &role.descriptor(0), false).unwrap());
    let channel = Arc::new(Channel::attach(&role.member, &role.descriptor(1), false).unwrap());
    let waiters: Vec<_> = (0..WAITERS)
        .map(|n| {
            let (event, channel) = (Arc::clone(&event), Arc::clone(&channel));
            thread::Builder::new()
                .stack_size(64 << 10)
                .spawn(move || match n % 2 {
                    0 => event.wait(Deadline::Never),
                    _ => channel.receive(Deadline::Never).map(drop),
                })
                .unwrap()
        })
        .collect();
    for waiter in waiters {
        match waiter.join().unwrap() {
            Ok(()) | Err(Error::Destroyed(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    true
}

/// Ticks of CPU time, and switches that the threads of a process made by going to sleep.
fn cost(pid: u32) -> (u64, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name may have spaces in it; what follows its bracket has not.
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let field = |n: usize| {
        let word = rest.split_whitespace().nth(n).unwrap();
        word.parse::<u64>().unwrap()
    };
    let mut switches = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        switches += line.unwrap().trim().parse::<u64>().unwrap();
    }
    (field(11) + field(12), switches)
}

/// How many threads of a process are counted among the waiters of some object.
fn asleep(member: &Member, slot: u32) -> u32 {
    const COUNTED: u32 = mark::FIRST | mark::SECOND | mark::THIRD;
    let records = member.control().threads(slot).unwrap().iter();
    let waiting = records
        .take_while(|record| record.is_touched())
        .filter(|record| {
            record
                .intent
                .read()
                .is_some_and(|now| now.step & COUNTED != 0)
        });
    u32::try_from(waiting.count()).unwrap()
}

/// 10 000 channels in which nothing happens, and 1 000 threads of four processes that wait: no CPU is used, and nobody wakes
/// up; in the end all of them do.
#[test]
fn idle_channels_and_blocked_waiters_cost_no_cpu() {
    let node = Node::new();
    let member = node.member();
    let options = ChannelOptions {
        capacity: 4,
        block: 64,
        ..ChannelOptions::default()
    };
    let idle: Vec<Channel> = (0..CHANNELS)
        .map(|_| create_channel(&member, &options).unwrap())
        .collect();
    let event = Event::create(&member, 0).unwrap();
    let channel = create_channel(&member, &options).unwrap();
    let words = [
        event.descriptor().to_string(),
        channel.descriptor().to_string(),
    ];
    let processes: Vec<_> = (0..PROCESSES)
        .map(|_| node.spawn("wait-in-threads", &words))
        .collect();
    for process in &processes {
        while asleep(&member, process.slot.index) < WAITERS {
            thread::yield_now();
        }
    }
    // Counted in is not asleep yet: they are when nothing changes any more.
    let costs = || -> Vec<_> { processes.iter().map(|process| cost(process.id())).collect() };
    let mut before = costs();
    loop {
        pause(200_000_000);
        let now = costs();
        if now == before {
            break;
        }
        before = now;
    }
    pause(2_000_000_000);
    assert_eq!(costs(), before, "ticks and switches of each process");
    event.set().unwrap();
    for _ in 0..PROCESSES * WAITERS / 2 {
        channel.send(b"", 0, Deadline::Never).unwrap();
    }
    for process in processes {
        process.join(&node);
    }
    assert_eq!(channel.receive(Deadline::Now).unwrap_err(), Error::Empty);
    assert!(idle.iter().all(|channel| channel.attributes().is_ok()));
}
