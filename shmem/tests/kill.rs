//! Processes that allocate, share, hand over and free are killed at random moments. Whatever they were doing, recovery must
//! bring the pool back to exactly what the living still hold, and in the end to nothing.
//!
//! The test runs itself again as the children. Child `i` hands blocks to whoever reads cell `i`, which is child `i + 1`.
//! A cell is two words of an object: what is offered (number of the hand-over, offset), and the last number that was taken.

#![expect(clippy::unwrap_used, reason = "a test: whatever fails ends it")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use dragon_protocol::op::Op;
use dragon_protocol::{NodeIndex, ObjectId, ObjectKind, RuntimeId, SlotId};
use dragon_shmem::object::ObjectEntry;
use dragon_shmem::pool::label::Label;
use dragon_shmem::sync::{AtomicU32, AtomicU64, Ordering};
use dragon_shmem::{Block, Control, Deadline, Error, Hooks, Member, Pool, clock, futex, recover};

const RUNTIME: RuntimeId = RuntimeId(11);
const LIMIT: u64 = 32 << 20;
const CHILDREN: usize = 3;
const KILLS: u32 = 150;
const ROLE: &str = "DRAGON_TEST_KILL";

#[test]
fn the_killed_leave_nothing_in_the_pool() {
    let seed = clock::now();
    println!("seed {seed}");
    let mut random = Random(seed | 1);
    let node = Node::new();
    let mut children: Vec<_> = (0..CHILDREN)
        .map(|cell| node.spawn(cell, random.next()))
        .collect();
    for _ in 0..KILLS {
        // A moment of random length, for the children to get somewhere.
        let never = AtomicU32::new(0);
        let moment = Deadline::after(random.below(2_000_000));
        let _ = futex::wait(&never, 0, moment);
        let cell = usize::try_from(random.below(CHILDREN as u64)).unwrap();
        let (victim, slot) = children.remove(cell);
        node.kill(victim, slot, cell);
        children.insert(cell, node.spawn(cell, random.next()));
    }
    for (cell, (child, slot)) in children.into_iter().enumerate() {
        node.kill(child, slot, cell);
    }
    let mut handed_over = 0;
    for cell in 0..CHILDREN {
        let (offer, taken) = node.cell(cell);
        handed_over += taken.load(Ordering::Relaxed);
        let (_, offset) = split(offer.load(Ordering::Acquire));
        if offset != 0 {
            node.member.free(offset).unwrap();
        }
    }
    assert!(handed_over > 0, "the children did something");
    let stats = node.member.pool().stats().unwrap();
    assert_eq!((stats.blocks, stats.used), (0, 0), "{stats:?}, seed {seed}");
    // All pages are free, not just all blocks: one block fits over all but the first.
    let all = node.member.alloc(LIMIT - (64 << 10)).unwrap();
    node.member.free(all.offset).unwrap();
}

/// The children's part; nothing when the test runs in the ordinary way.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let words: Vec<u64> = role.split(' ').map(|word| word.parse().unwrap()).collect();
    let [index, generation, cell, seed, object, object_generation] = words[..6] else {
        panic!("{role}");
    };
    let slot = SlotId {
        index: u32::try_from(index).unwrap(),
        generation: u32::try_from(generation).unwrap(),
    };
    let fd = |n: usize| {
        let number = i32::try_from(words[n]).unwrap();
        // SAFETY: the parent passed these numbers, and each is taken once.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        (fd, words[n + 1])
    };
    let (control, size) = fd(6);
    let control = Control::map(control, size, RUNTIME).unwrap();
    let pool = Pool::map(RUNTIME, 0, fd(8), fd(10)).unwrap();
    let object = ObjectId {
        node: NodeIndex::FIRST,
        kind: ObjectKind::Event,
        index: u32::try_from(object).unwrap(),
        generation: u32::try_from(object_generation).unwrap(),
    };
    let entry = control.entry(object).unwrap();
    let member = Member::new(control.clone(), pool, slot, Box::new(NoMore)).unwrap();
    println!("\nready");
    std::io::stdout().flush().unwrap();
    work(
        &member,
        entry,
        usize::try_from(cell).unwrap(),
        Random(seed | 1),
    );
}

fn work(member: &Arc<Member>, entry: &ObjectEntry, cell: usize, mut random: Random) {
    let (offer, taken) = cell_of(entry, cell);
    let (other, other_taken) = cell_of(entry, (cell + 1) % CHILDREN);
    let mut number = split(offer.load(Ordering::Acquire))
        .0
        .max(taken.load(Ordering::Acquire))
        + 1;
    let mut mine: Vec<Block> = Vec::new();
    loop {
        match random.below(9) {
            8 if !mine.is_empty() => {
                let which = random.below(mine.len() as u64);
                let block = mine[usize::try_from(which).unwrap()];
                match member.resize(block.offset, 1 + random.below(600 << 10)) {
                    Ok(_) | Err(Error::CannotGrow { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            0..=2 if mine.len() < 40 => mine.extend(some_block(member, &mut random)),
            0..=3 if !mine.is_empty() => {
                let which = random.below(mine.len() as u64);
                let block = mine.swap_remove(usize::try_from(which).unwrap());
                member.free(block.offset).unwrap();
            }
            4 => {
                if let Some(block) = some_block(member, &mut random) {
                    let place = member.hold_block(block.offset).unwrap();
                    member.share(block.offset).unwrap();
                    member.free_held(place, block.offset).unwrap();
                }
            }
            5..=6 if offer.load(Ordering::Acquire) == 0 => {
                if let Some(block) = some_block(member, &mut random) {
                    let stamp = number.to_le_bytes();
                    member.pool().write(block.offset, 0, &stamp).unwrap();
                    let thread = member.thread().unwrap();
                    let what = [block.offset, number];
                    thread.intent.begin(Op::Send, 0, 0, what);
                    member.share(block.offset).unwrap();
                    offer.store(number << 40 | block.offset, Ordering::Release);
                    number += 1;
                }
            }
            _ => {
                let (theirs, offset) = split(other.load(Ordering::Acquire));
                if offset != 0 {
                    let mut stamp = [0; 8];
                    member.pool().read(offset, 0, &mut stamp).unwrap();
                    assert_eq!(u64::from_le_bytes(stamp), theirs);
                    let place = member.hold_block(offset).unwrap();
                    other_taken.store(theirs, Ordering::Release);
                    other.store(0, Ordering::Release);
                    member.free_held(place, offset).unwrap();
                }
            }
        }
    }
}

/// A block of a random size; mostly small. `None` when the pool is full.
fn some_block(member: &Member, random: &mut Random) -> Option<Block> {
    let length = match random.below(10) {
        0..=5 => 8 + random.below(1 << 10),
        6..=8 => 8 + random.below(32 << 10),
        _ => 8 + random.below(400 << 10),
    };
    match member.alloc(length) {
        Ok(block) => Some(block),
        Err(Error::OutOfMemory { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// What the daemon has: everything is committed before the children start.
struct Node {
    control: Control,
    member: Arc<Member>,
    object: ObjectId,
}

impl Node {
    fn new() -> Self {
        let control = Control::create(RUNTIME, NodeIndex::FIRST, 2).unwrap();
        let pool = Pool::create(RUNTIME, NodeIndex::FIRST, 0, LIMIT).unwrap();
        pool.commit(LIMIT).unwrap();
        let slot = control.claim_daemon_slot().unwrap();
        let member = Member::new(control.clone(), pool, slot, Box::new(NoMore)).unwrap();
        let object = member.create(ObjectKind::Event, |_, _| Ok(())).unwrap();
        Self {
            control,
            member,
            object,
        }
    }

    fn cell(&self, cell: usize) -> (&AtomicU64, &AtomicU64) {
        cell_of(self.control.entry(self.object).unwrap(), cell)
    }

    fn spawn(&self, cell: usize, seed: u64) -> (Child, SlotId) {
        let slot = self.control.claim_slot(0).unwrap();
        let pool = self.member.pool();
        let mut role = format!(
            "{} {} {cell} {seed} {} {}",
            slot.index, slot.generation, self.object.index, self.object.generation
        );
        let mut passed = Vec::new();
        for region in [self.control.region(), pool.meta(), pool.data()] {
            // A duplicate stays open over exec.
            let fd = rustix::io::dup(region.fd().unwrap()).unwrap().into_raw_fd();
            role += &format!(" {fd} {}", region.size());
            passed.push(fd);
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(ROLE, role)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        for fd in passed {
            // SAFETY: the duplicates were made above and are closed once.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        let output = BufReader::new(child.stdout.take().unwrap());
        let ready = output.lines().any(|line| line.unwrap() == "ready");
        assert!(ready, "a child ended early");
        (child, slot)
    }

    /// Kills a child and does what the daemon does.
    fn kill(&self, mut child: Child, slot: SlotId, cell: usize) {
        assert!(child.try_wait().unwrap().is_none(), "a child failed");
        child.kill().unwrap();
        child.wait().unwrap();
        let (offer, taken) = self.cell(cell);
        let (other, _) = self.cell((cell + 1) % CHILDREN);
        let mut leases = Vec::new();
        for entry in self.control.held(slot.index).unwrap() {
            if let Some(block) = entry.block() {
                // What it had not taken out of the cell is left for its successor.
                if split(other.load(Ordering::Acquire)).1 != block {
                    leases.push(block);
                }
                entry.clear();
            }
        }
        let records = self.control.threads(slot.index).unwrap();
        for record in records.iter().take_while(|record| record.is_touched()) {
            if let Some(intended) = record
                .intent
                .read()
                .filter(|intended| intended.op == Op::Send)
            {
                let [block, number, ..] = intended.arguments;
                let offered = split(offer.load(Ordering::Acquire)).0 == number;
                if !offered && taken.load(Ordering::Acquire) < number {
                    leases.push(block);
                }
            }
        }
        for block in leases {
            // It fails for one that was not shared yet: that goes with the memory.
            let _ = self.member.free(block);
        }
        assert_eq!(recover::reset_threads(&self.control, slot).unwrap(), []);
        recover::recover_memory(&self.control, self.member.pool(), slot).unwrap();
        self.control.release_slot(slot).unwrap();
    }
}

fn cell_of(entry: &ObjectEntry, cell: usize) -> (&AtomicU64, &AtomicU64) {
    (&entry.body[cell * 2], &entry.body[cell * 2 + 1])
}

fn split(word: u64) -> (u64, u64) {
    (word >> 40, word & ((1 << 40) - 1))
}

struct NoMore;

impl Hooks for NoMore {
    fn commit(&self, pool: u32, bytes: u64) -> Result<(), Error> {
        Err(Error::OutOfMemory {
            pool: Label {
                number: pool,
                name: Box::default(),
            },
            asked: bytes,
            free: 0,
            limit: LIMIT,
            note: Box::default(),
        })
    }

    fn notify(&self, _: ObjectId) {}
}

/// Marsaglia's xorshift, good enough to choose what to do next.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
