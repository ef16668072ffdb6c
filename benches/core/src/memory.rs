//! Allocations beside the least that is done for one, in slices in turn as in [`crate::beside`].

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Result;
use dragon_raw::memory::{Children, Shared};
use dragon_raw::{Page, cores, least, pin};
use dragon_shmem::{Deadline, Member, futex};

use crate::beside::{Columns, warm};
use crate::node::Node;

/// An allocation and its free: of each of these lengths, and last a bit of a bitmap.
pub(crate) fn alloc(lengths: &[u64]) -> Result<Columns> {
    const SLICES: usize = 200;
    const ROUNDS: u32 = 10_000;
    let node = Node::new(256 << 20, 2)?;
    pin(cores(true)?.0)?;
    let member = node.member(node.slot()?)?;
    let map = AtomicU64::new(0);
    let mut columns = vec![Vec::new(); lengths.len() + 1];
    for slice in 0..SLICES {
        for (which, column) in columns.iter_mut().enumerate() {
            let start = Instant::now();
            match lengths.get(which) {
                Some(bytes) => allocate(&member, *bytes, ROUNDS)?,
                None => least::bitmap(&map, ROUNDS)?,
            }
            let time = start.elapsed().as_secs_f64();
            if warm(SLICES).contains(&slice) {
                column.push(time * 1e9 / f64::from(ROUNDS));
            }
        }
    }
    let note = "committed memory, slices in turn, pinned".to_owned();
    Ok(("ns", columns, note))
}

/// How much more two processes do at once than one alone: for allocations of 64 B, for bits of bitmaps of their own, and for
/// arithmetic in registers.
pub(crate) fn scaling() -> Result<Columns> {
    const SLICES: usize = 100;
    // The first process alone, the second alone, both.
    const STEPS: usize = 3;
    let node = Node::new(256 << 20, 2)?;
    let cores = cores(false)?;
    let (page, words) = (Page::create()?, Shared::new(1 << 20)?);
    let map = |n: usize| words.word(64 * n);
    let place = |step: usize, n: usize| words.word(1024 + 2 * step + n);
    let turns = page.turns();
    let baton = Baton {
        step: &turns.ping.0,
        arrived: &turns.pong.0,
        done: words.word(512),
    };
    let mut children = Children::default();
    for (n, core) in [cores.0, cores.1].into_iter().enumerate() {
        let slot = node.slot()?;
        children.fork(|| {
            pin(core)?;
            let member = node.member(slot)?;
            let allocate = || allocate(&member, 64, 10_000);
            let bitmap = || least::bitmap(map(n), 50_000);
            let registers = || {
                least::registers(200_000);
                Ok(())
            };
            let tasks: [&dyn Fn() -> Result<()>; 3] = [&allocate, &bitmap, &registers];
            for step in 0..SLICES * tasks.len() * STEPS {
                let both = step % STEPS == 2;
                if both || step % STEPS == n {
                    baton.wait(step, both)?;
                    let start = Instant::now();
                    tasks[step / STEPS % tasks.len()]()?;
                    let time = u64::try_from(start.elapsed().as_nanos())?;
                    place(step, n).store(time, Ordering::SeqCst);
                    baton.pass(step, both)?;
                }
            }
            Ok(())
        })?;
    }
    children.join()?;
    let time = |step: usize, n: usize| place(step, n).load(Ordering::SeqCst) as f64;
    let together = |task: usize| {
        let of = |slice: usize| {
            let step = (slice * 3 + task) * STEPS;
            let speed = |n: usize| time(step + n, n) / time(step + 2, n);
            speed(0) + speed(1)
        };
        warm(SLICES).map(of).collect()
    };
    let note = format!(
        "slices of one, the other and both in turn, pinned to cores {} and {}",
        cores.0, cores.1
    );
    Ok(("x", (0..3).map(together).collect(), note))
}

fn allocate(member: &Member, bytes: u64, rounds: u32) -> Result<()> {
    for _ in 0..rounds {
        member.free(member.alloc(bytes)?.offset)?;
    }
    Ok(())
}

/// Which step two processes have come to. Whose step it is not sleeps: processors may share what computes.
struct Baton<'a> {
    step: &'a AtomicU32,
    /// How often a process has come to a step of both, and has done it.
    arrived: &'a AtomicU32,
    done: &'a AtomicU64,
}

impl Baton<'_> {
    /// Waits until the steps before are done; in a step of both, for the other too.
    fn wait(&self, step: usize, both: bool) -> Result<()> {
        let step = u32::try_from(step)?;
        loop {
            let now = self.step.load(Ordering::SeqCst);
            if now == step {
                break;
            }
            let _ = futex::wait(self.step, now, Deadline::Never);
        }
        if both {
            let all = (self.arrived.fetch_add(1, Ordering::SeqCst) / 2 + 1) * 2;
            while self.arrived.load(Ordering::SeqCst) < all {
                std::hint::spin_loop();
            }
        }
        Ok(())
    }

    /// The step is done, in a step of both if it is by the other too.
    fn pass(&self, step: usize, both: bool) -> Result<()> {
        if !both || self.done.fetch_add(1, Ordering::SeqCst) % 2 == 1 {
            self.step.store(u32::try_from(step + 1)?, Ordering::SeqCst);
            futex::wake(self.step, 1);
        }
        Ok(())
    }
}
