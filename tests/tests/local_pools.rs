//! Pools of one's own in a real runtime: among several processes, some of which are killed.
//!
//! The test runs itself again as the programs inside the runtime (`child`).

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use dragon::{
    Channel, ChannelOptions, Code, Deadline, Descriptor, Pool, PoolBlock, PoolOptions, Session,
};
use dragon_tests::child;
use dragon_tests::local::finish;

const ROLE: &str = "DRAGON_TEST_POOLS";
const WHAT: &str = "DRAGON_TEST_WHAT";

/// Runs this test as the head of a runtime; returns what it printed.
fn head(role: &str) -> String {
    let done = finish(child::head(&[]).env(ROLE, role).spawn().unwrap());
    assert_eq!(done.code, Some(0), "{done:?}");
    done.out
}

#[test]
fn a_killed_process_leaves_its_messages_and_nothing_else() {
    head("killed");
}

#[test]
fn a_pool_in_a_file_leaves_no_file() {
    let out = head("file");
    assert!(out.contains("in a file"), "{out}");
}

#[test]
fn pools_come_and_go_with_their_users() {
    head("many");
}

/// A program in the runtime; nothing when the test runs in the ordinary way.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    match role.as_str() {
        "killed" => killed(),
        "victim" => victim(),
        "file" => file(),
        "many" => many(),
        "guest" => guest(),
        other => panic!("{other}"),
    }
}

fn options(name: &str) -> PoolOptions {
    PoolOptions {
        limit: 256 << 20,
        name: name.to_owned(),
        ..PoolOptions::default()
    }
}

/// Another process of the node with a role, and its standard output.
fn start(
    role: &str,
    what: &[Descriptor],
) -> (std::process::Child, BufReader<std::process::ChildStdout>) {
    let words: Vec<String> = what.iter().map(ToString::to_string).collect();
    let mut child = child::command()
        .env(ROLE, role)
        .env(WHAT, words.join(" "))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

fn what() -> Vec<Descriptor> {
    let words = std::env::var(WHAT).unwrap();
    words.split(' ').map(|word| word.parse().unwrap()).collect()
}

fn stat(name: &str) -> u64 {
    let stats = Session::attach().unwrap().stats().unwrap();
    stats.into_iter().find(|(n, _)| n == name).unwrap().1
}

/// Waits until the daemon has noticed the end of a process, without waiting for ever: each question takes a turn of its
/// loop, and the end is in its queue.
fn until(what: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if what() {
            return;
        }
        dragon_tests::local::pause(std::time::Duration::from_millis(1));
    }
    panic!("it did not come to that");
}

fn killed() {
    let (a, b) = (
        Pool::create(&options("a")).unwrap(),
        Pool::create(&options("b")).unwrap(),
    );
    let channel = Channel::create(&ChannelOptions::default()).unwrap();
    for round in 0..10_u64 {
        let descriptors = [a.descriptor(), b.descriptor(), channel.descriptor()];
        let (mut victim, out) = start("victim", &descriptors);
        assert!(out.lines().any(|line| line.unwrap() == "busy"));
        // At some moment between allocations and frees in three pools.
        dragon_tests::local::pause(std::time::Duration::from_micros(round * 700));
        victim.kill().unwrap();
        victim.wait().unwrap();
        until(|| {
            // Its messages live on; all that was private to it is gone, and so is its own pool.
            let blocks = a.stats().unwrap().blocks + b.stats().unwrap().blocks;
            blocks == 2 && stat("pools") == 3
        });
        for _ in 0..2 {
            let message = channel.receive(Deadline::Now).unwrap();
            assert!(message.to_vec().iter().all(|byte| *byte == 7));
        }
        assert_eq!(a.stats().unwrap().blocks + b.stats().unwrap().blocks, 0);
    }
    // What it used is whole: one block fits over all but the first page.
    drop(a.alloc((256 << 20) - (64 << 10)).unwrap());
}

fn victim() {
    let what = what();
    let pools = [
        Pool::attach(what[0], false).unwrap(),
        Pool::attach(what[1], false).unwrap(),
        Pool::create(&options("its own")).unwrap(),
    ];
    let channel = Channel::attach(what[2], false).unwrap();
    for pool in &pools[..2] {
        let mut block = pool.alloc(100_000).unwrap();
        block.write(0, &[7; 100_000]).unwrap();
        block
            .send(&channel, 0, Deadline::Never)
            .map_err(|e| e.0)
            .unwrap();
    }
    println!("\nbusy");
    let mut mine: Vec<PoolBlock> = Vec::new();
    for n in 0_u64.. {
        let length = [64, 3000, 40_000, 300_000][usize::try_from(n % 4).unwrap()];
        mine.push(
            pools[usize::try_from(n % 3).unwrap()]
                .alloc(length)
                .unwrap(),
        );
        if mine.len() > 50 {
            mine.swap_remove(usize::try_from(n * 7 % 50).unwrap());
        }
    }
}

fn file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    let pool = Pool::create(&PoolOptions {
        file: path.to_str().unwrap().as_bytes().to_vec(),
        ..options("in a file")
    })
    .unwrap();
    let mut block = pool.alloc(1 << 20).unwrap();
    block.write(0, &[3; 1 << 20]).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let channel = Channel::create(&ChannelOptions::default()).unwrap();
    let (guest, mut out) = start("guest", &[channel.descriptor(), pool.descriptor()]);
    block
        .send(&channel, 0, Deadline::Never)
        .map_err(|e| e.0)
        .unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut out, &mut said).unwrap();
    assert_eq!(finish(guest).code, Some(0));
    assert!(said.contains("1048576 times 3"), "{said}");
    println!("\n{}", pool.name().unwrap());
    // A path that is taken, or where nothing can be.
    for path in [
        folder.path().to_str().unwrap(),
        "/proc/none",
        "/no/such/folder/file",
    ] {
        let refused = Pool::create(&PoolOptions {
            file: path.as_bytes().to_vec(),
            ..options("")
        });
        let text = refused.unwrap_err().to_string();
        assert!(text.contains(path), "{text}");
    }
}

/// Receives a message in a pool that it has not met before.
fn guest() {
    let channel = Channel::attach(what()[0], false).unwrap();
    let message = channel.receive(Deadline::Never).unwrap();
    let bytes = message.to_vec();
    let count = bytes.iter().filter(|byte| **byte == bytes[0]).count();
    println!("\n{count} times {}", bytes[0]);
}

fn many() {
    let channel = Channel::create(&ChannelOptions::default()).unwrap();
    for round in 0..100_u64 {
        let pool = Pool::create(&options("one of many")).unwrap();
        let mut block = pool.alloc(1000 + round).unwrap();
        block.write(0, &[1; 1000]).unwrap();
        block
            .send(&channel, round, Deadline::Now)
            .map_err(|e| e.0)
            .unwrap();
        drop(pool);
        // The message keeps the pool.
        assert_eq!(stat("pools"), 2);
        assert_eq!(
            channel.receive(Deadline::Now).unwrap().len() as u64,
            1000 + round
        );
        assert_eq!(stat("pools"), 1, "round {round}");
    }
    let pools: Vec<Pool> = (0..63)
        .map(|_| Pool::create(&options("full")).unwrap())
        .collect();
    let error = Pool::create(&options("too many")).unwrap_err();
    assert_eq!(error.code(), Code::TableFull);
    assert!(error.to_string().contains("64"), "{error}");
    drop(pools);
    assert_eq!(stat("pools"), 1);
    let touched = PoolOptions {
        limit: 32 << 20,
        pre_touch: true,
        huge_pages: true,
        numa_node: Some(0),
        ..PoolOptions::default()
    };
    let pool = Pool::create(&touched).unwrap();
    let stats = pool.stats().unwrap();
    assert_eq!((stats.committed, stats.used), (32 << 20, 0), "{stats:?}");
    let nowhere = PoolOptions {
        numa_node: Some(77),
        ..touched
    };
    let error = Pool::create(&nowhere).unwrap_err().to_string();
    assert!(
        error.contains("77") && error.contains("there are 0"),
        "{error}"
    );
}
