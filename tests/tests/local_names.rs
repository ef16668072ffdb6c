//! Names across nodes: what one process publishes another one on another node finds and uses, whatever it is; the key-value
//! store of a node is its own. This program is also the program that runs on the nodes.

#![allow(clippy::unwrap_used)]

use std::process::ExitCode;

use dragon::names::{self, Lasts, Value, store};
use dragon::{
    Channel, ChannelOptions, Code, Deadline, Descriptor, Group, NodeIndex, Pool, PoolOptions,
    Process, Session, Spawn,
};
use dragon_tests::local::{c_program, dragon, run};
use dragon_tests::suite;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["publishes"] => publishes(),
        ["finds"] => finds(),
        _ => {
            return suite::run(
                || Ok(()),
                &[
                    (
                        "objects_of_every_kind_are_found_from_another_node",
                        objects_of_every_kind_are_found_from_another_node,
                    ),
                    ("a_c_program_uses_names", a_c_program_uses_names),
                ],
            );
        }
    }
    ExitCode::SUCCESS
}

const TERM: i32 = 15;

/// This program on a node, with what it is to do.
fn other(node: u32, what: &str) -> Spawn {
    let own = std::env::current_exe().unwrap();
    let node = NodeIndex::new(node).unwrap();
    Spawn::program(own).arg(what).node(node)
}

fn publish(name: &str, descriptor: Descriptor) {
    names::publish(name, Value::Object(descriptor), Lasts::UntilUnpublished).unwrap();
}

/// The head: one object of each kind under a name, and the other process on the second node.
fn publishes() {
    let pool = Pool::create(&PoolOptions {
        limit: 16 << 20,
        ..PoolOptions::default()
    })
    .unwrap();
    publish("pool", pool.descriptor());
    let answers = Channel::create(&ChannelOptions::default()).unwrap();
    publish("answers", answers.descriptor());
    let sleeps = || Spawn::program("sleep").arg("1000");
    let process = sleeps().node(NodeIndex::FIRST).start().unwrap().process;
    publish("process", process.descriptor());
    let group = Group::of(sleeps()).start(2).unwrap();
    publish("group", group.descriptor());
    store::put(b"key", b"of the first node").unwrap();
    // It waits for this name before it asks for the others.
    let value = Value::Bytes(b"all is there".to_vec());
    let finder = other(1, "finds").start().unwrap();
    names::publish("begin", value, Lasts::UntilUnpublished).unwrap();

    assert_eq!(finder.process.wait(Deadline::Never).unwrap(), 0);
    assert_eq!(answers.receive(Deadline::Never).unwrap().to_vec(), b"found");
    // What the other one ended by their names.
    assert_eq!(process.wait(Deadline::Never).unwrap(), TERM);
    assert_eq!(group.wait(Deadline::Never).unwrap(), TERM);
    // The other node has the key with another value, and keys that are not here.
    assert_eq!(store::list(b"").unwrap(), [b"key"]);
    let value = store::get(b"key").unwrap().unwrap();
    assert_eq!(value, b"of the first node");
    assert_eq!(
        names::list("").unwrap(),
        ["answers", "begin", "group", "pool", "process"]
    );
    println!("all of it");
}

fn object(name: &str) -> Descriptor {
    match names::look_up(name).unwrap() {
        Value::Object(descriptor) => descriptor,
        bytes @ Value::Bytes(_) => panic!("{name}: {bytes:?}"),
    }
}

/// On the second node: finds what is published, and uses it.
fn finds() {
    assert_eq!(Session::attach_or_start().unwrap().node().get(), 1);
    let begin = names::wait_for("begin", Deadline::Never).unwrap();
    assert_eq!(begin, Value::Bytes(b"all is there".to_vec()));
    assert_eq!(store::get(b"key").unwrap(), None);
    store::put(b"key", b"of the second node").unwrap();
    store::put(b"another", b"").unwrap();
    assert_eq!(store::list(b"").unwrap(), [&b"another"[..], b"key"]);

    let pool = object("pool");
    assert_eq!(pool.object.node, NodeIndex::FIRST);
    let pool = Pool::attach(pool, false).unwrap();
    let mut block = pool.alloc(100).unwrap();
    assert_eq!(block.node(), 0);
    block.write(0, b"from afar").unwrap();
    let mut read = [0; 9];
    block.read(0, &mut read).unwrap();
    assert_eq!(&read, b"from afar");
    drop(block);
    let process = Process::attach(object("process"), false).unwrap();
    let running = process.wait(Deadline::Now).unwrap_err();
    assert_eq!(running.code(), Code::Empty);
    process.signal(TERM).unwrap();
    assert_eq!(process.wait(Deadline::Never).unwrap(), TERM);
    let group = Group::attach(object("group"), false).unwrap();
    assert_eq!(group.members().unwrap().len(), 2);
    group.signal(TERM).unwrap();
    assert_eq!(group.wait(Deadline::Never).unwrap(), TERM);
    let answers = Channel::attach(object("answers"), false).unwrap();
    answers.send(b"found", 0, Deadline::Never).unwrap();
}

// The tests. ------------------------------------------------------------------------------------------------------------

const NODES: [&str; 4] = ["-N", "2", "--local-nodes", "--"];

fn objects_of_every_kind_are_found_from_another_node(_: &()) {
    let own = std::env::current_exe().unwrap();
    let own = own.to_str().unwrap();
    let done = run(&mut dragon([&NODES[..], &[own, "publishes"]].concat()));
    assert_eq!(done.out, "all of it\n", "{}", done.err);
    assert_eq!(done.code, Some(0), "{}", done.err);
}

fn a_c_program_uses_names(_: &()) {
    let folder = tempfile::tempdir().unwrap();
    let program = c_program(folder.path(), "names");
    let done = run(&mut dragon(
        [&NODES[..], &[program.to_str().unwrap()]].concat(),
    ));
    assert_eq!(done.out, "all of it\n", "{}", done.err);
    assert_eq!(done.code, Some(0), "{}", done.err);
}
