//! A pool on another node: a process there makes it, this one allocates in it, copies an image to it and back, and checks.
//! Run it over two nodes: `dragon -N 2 --local-nodes target/debug/examples/far_pool`. With one node the pool is on that.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::cmp::Ordering;
use std::env;
use std::error::Error;

use dragon::{Channel, ChannelOptions, Deadline, Event, Pool, PoolOptions, Session, Spawn};
use dragon_protocol::NodeIndex;

const IMAGE: u64 = 64 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = env::args().skip(1);
    match (words.next(), words.next()) {
        (Some(reply), Some(done)) => own(&reply, &done),
        _ => use_it(),
    }
}

/// On the other node: makes a pool, says where, and keeps it until it is not needed any more.
fn own(reply: &str, done: &str) -> Result<(), Box<dyn Error>> {
    let pool = Pool::create(&PoolOptions::default())?;
    let reply = Channel::attach(reply.parse()?, false)?;
    let text = pool.descriptor().to_string();
    reply.send(text.as_bytes(), 0, Deadline::Never)?;
    Event::attach(done.parse()?, false)?.wait(Deadline::Never)?;
    println!("blocks that are left: {}", pool.stats()?.blocks);
    Ok(())
}

fn use_it() -> Result<(), Box<dyn Error>> {
    let reply = Channel::create(&ChannelOptions::default())?;
    let done = Event::create(0)?;
    let nodes = Session::attach_or_start()?.nodes()?.nodes.len();
    let last = u32::try_from(nodes.saturating_sub(1))?;
    let owner = Spawn::program(env::current_exe()?)
        .arg(reply.descriptor().to_string())
        .arg(done.descriptor().to_string())
        .node(NodeIndex::new(last).ok_or("too many nodes")?)
        .start()?;
    let text = String::from_utf8(reply.receive(Deadline::Never)?.to_vec())?;
    let there = Pool::attach(text.parse()?, false)?;

    let here = Pool::create(&PoolOptions::default())?;
    let mut image = here.alloc(IMAGE)?;
    image.fill(0, IMAGE / 2, 7)?;
    image.write(IMAGE - 5, b"ended")?;

    let mut copy = there.alloc(IMAGE)?;
    copy.copy_from(0, &image, 0, IMAGE)?;
    let same = copy.hash(0, IMAGE)? == image.hash(0, IMAGE)?;
    println!("copied to node {}: the same bytes: {same}", copy.node());
    let mut back = here.alloc(IMAGE)?;
    copy.copy_to(0, &mut back, 0, IMAGE)?;
    let same = back.compare(0, &image, 0, IMAGE)? == Ordering::Equal;
    println!("and back: the same bytes: {same}");

    drop(copy);
    done.set()?;
    owner.process.wait(Deadline::Never)?;
    Ok(())
}
