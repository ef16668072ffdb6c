//! Barriers.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail, ensure};
use dragon_channels::{Barrier, Breakage, Deadline, Error};
use dragon_shmem::Member;

use crate::operations::channel::Nothing;
use crate::operations::{Act, Operation, Words, operation, soon};
use crate::survivor::Survivor;

pub(super) const OPERATIONS: &[Operation] = &[
    operation("barrier-create", |_| Ok(Box::new(Nothing)), creates),
    operation("barrier-complete", |m| barrier(m, true), waits),
    operation("barrier-wait", |m| barrier(m, false), waits),
    Operation {
        cpus: 1,
        ..operation("barrier-sleep", |m| barrier(m, false), waits)
    },
    operation("barrier-act", acting, waits),
    operation("barrier-try", |m| barrier(m, false), tries),
    operation("barrier-times-out", |m| barrier(m, false), times_out),
    operation("barrier-abort", |m| barrier(m, false), aborts),
    operation("barrier-abort-wakes", |m| barrier(m, true), aborts),
    operation("barrier-reset", broken, resets),
    operation("barrier-reset-wakes", |m| barrier(m, true), resets),
    operation("barrier-state", |m| barrier(m, true), states),
    operation("barrier-destroy-wakes", destroyed, destroys),
];

struct Rig {
    member: Arc<Member>,
    /// Of two parties.
    barrier: Arc<Barrier>,
    /// A party waits there while the victim works.
    partner: bool,
    asleep: Option<Party>,
    /// It is broken when the victim comes.
    broken: bool,
    /// A new one each time, since the victim destroys it.
    renewed: bool,
}

type Party = JoinHandle<Result<u32, Error>>;

fn rig(member: &Arc<Member>) -> Result<Rig> {
    Ok(Rig {
        member: Arc::clone(member),
        barrier: Arc::new(Barrier::create(member, 2, 0)?),
        partner: false,
        asleep: None,
        broken: false,
        renewed: false,
    })
}

fn barrier(member: &Arc<Member>, partner: bool) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        partner,
        ..rig(member)?
    }))
}

/// The victim comes last, so it acts.
fn acting(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        barrier: Arc::new(Barrier::create_with_action(member, 2, 0)?),
        partner: true,
        ..rig(member)?
    }))
}

fn broken(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        broken: true,
        ..rig(member)?
    }))
}

fn destroyed(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        partner: true,
        renewed: true,
        ..rig(member)?
    }))
}

impl Rig {
    fn party(&self) -> Party {
        let barrier = Arc::clone(&self.barrier);
        thread::spawn(move || barrier.wait(Deadline::Never))
    }

    /// What the sleeping party got: it passed, or the barrier was broken or ended; its time was not up.
    fn joined(&mut self) -> Result<()> {
        let Some(asleep) = self.asleep.take() else {
            return Ok(());
        };
        match asleep.join().ok().context("the party panicked")? {
            Ok(0 | 1) | Err(Error::Destroyed(_)) => Ok(()),
            Err(Error::Broken { why, .. }) if why != Breakage::Timeout => Ok(()),
            other => bail!("the party got {other:?}"),
        }
    }
}

impl Survivor for Rig {
    fn arm(&mut self) -> Result<Vec<String>> {
        if self.renewed {
            self.barrier = Arc::new(Barrier::create(&self.member, 2, 0)?);
        }
        if self.broken {
            self.barrier.abort()?;
        }
        if self.partner {
            self.asleep = Some(self.party());
            while self.barrier.state()?.waiting == 0 {
                thread::yield_now();
            }
        }
        Ok(vec![self.barrier.descriptor().to_string()])
    }

    fn release(&mut self) -> Result<()> {
        ensure!(self.asleep.is_none(), "the victim sleeps on");
        self.asleep = Some(self.party());
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        if self.renewed {
            self.barrier.destroy()?;
            self.joined()?;
            let new = Arc::new(Barrier::create(&self.member, 2, 0)?);
            let barrier = std::mem::replace(&mut self.barrier, new);
            drop(Arc::into_inner(barrier).context("the barrier is still in use")?);
            return Ok(());
        }
        // Ends the wait of a party that the victim left alone.
        self.barrier.abort()?;
        self.joined()?;
        self.barrier.reset()?;
        let state = self.barrier.state()?;
        ensure!(
            state.waiting == 0 && state.broken.is_none(),
            "after a reset: {state:?}"
        );
        let party = self.party();
        let mine = self.barrier.wait(soon()).context("cannot pass")?;
        let theirs = party.join().ok().context("the party panicked")?;
        let theirs = theirs.context("the other party cannot pass")?;
        ensure!(
            mine + theirs == 1,
            "numbers {mine} and {theirs} of two parties"
        );
        Ok(())
    }
}

/// The barrier outlives the operation: it is not given back between the markers.
fn act(
    member: &Arc<Member>,
    words: &Words,
    act: impl FnOnce(&Barrier) -> Result<()> + 'static,
) -> Result<Act> {
    let barrier = Barrier::attach(member, &words.descriptor(0)?, false)?;
    let barrier: &'static Barrier = Box::leak(Box::new(barrier));
    Ok(Box::new(move || act(barrier)))
}

fn creates(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        Box::leak(Box::new(Barrier::create(&member, 2, 0)?));
        Ok(())
    }))
}

fn waits(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(member, words, |barrier| {
        barrier.wait(Deadline::Never)?;
        Ok(())
    })
}

fn tries(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(member, words, |barrier| {
        let tried = barrier.wait(Deadline::Now);
        ensure!(tried == Err(Error::Empty), "{tried:?} alone");
        Ok(())
    })
}

fn times_out(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(member, words, |barrier| {
        let waited = barrier.wait(Deadline::after(1_000));
        ensure!(waited == Err(Error::Timeout), "{waited:?} alone");
        Ok(())
    })
}

fn aborts(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(member, words, |barrier| Ok(barrier.abort()?))
}

fn resets(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(member, words, |barrier| Ok(barrier.reset()?))
}

fn states(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(member, words, |barrier| {
        barrier.state()?;
        Ok(())
    })
}

fn destroys(member: &Arc<Member>, words: &Words) -> Result<Act> {
    act(member, words, |barrier| Ok(barrier.destroy()?))
}
