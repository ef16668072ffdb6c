//! Kills at every instruction of an operation, one after the other.

use std::collections::HashMap;
use std::ffi::CStr;

use anyhow::{Result, anyhow, bail};
use dragon_protocol::SlotId;

use crate::elsewhere::Elsewhere;
use crate::operations::{Operation, Words};
use crate::survivor::{Maker, Process, Trouble};
use crate::symbols;
use crate::tally::{Failure, Tally};
use crate::tracer::{Marker, Stop, Victim};
use crate::watchdog;
use crate::world::{Counts, World, recover};

/// How a victim ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// SIGKILL.
    Kill,
    /// It becomes another program: its pid lives on, and only the end of its connection tells the daemon.
    Exec,
}

/// Kills victims of one operation at each instruction that is chosen, one after the other.
pub(crate) fn torture(
    operation: &Operation,
    end: End,
    trace: &Trace,
    chosen: &[usize],
    program: &'static CStr,
    tally: &mut Tally,
) -> Result<()> {
    let mut stage: Option<Stage> = None;
    let mut before = None;
    for &k in chosen {
        let mut ready = match stage.take() {
            Some(stage) => stage,
            None => Stage::new(operation)?,
        };
        watchdog::watch(operation.name, k);
        tally.kills += 1;
        match ready.kill(operation, end, trace, k, program) {
            Ok(()) => stage = Some(ready),
            Err(failure) => {
                tally.fail(operation.name, end, k, before, failure);
                // What is left of its world is not looked at any more.
                ready.abandon();
                if tally.gives_up(operation.name) {
                    return Ok(());
                }
            }
        }
        before = Some(k);
    }
    match stage {
        Some(stage) => stage.close(),
        None => Ok(()),
    }
}

/// The addresses of the instructions that an operation executes when nobody kills it.
#[derive(Debug)]
pub(crate) struct Trace {
    addresses: Vec<u64>,
    /// How often the instruction was executed before, and is executed in all.
    visits: Vec<(u32, u32)>,
}

impl Trace {
    /// Steps once through an operation.
    pub(crate) fn record(operation: &Operation) -> Result<Self> {
        let mut stage = Stage::new(operation)?;
        watchdog::watch(operation.name, 0);
        let mut addresses = Vec::new();
        let run = stage.run(operation, |steps, victim| {
            steps.record(victim, &mut addresses)
        });
        let (_, slot) = run.map_err(|failure| anyhow!("{}: {failure}", operation.name))?;
        let after = stage.after(slot);
        after.map_err(|failure| anyhow!("{} without a kill: {failure}", operation.name))?;
        stage.close()?;
        let mut seen: HashMap<u64, u32> = HashMap::new();
        let mut visits: Vec<(u32, u32)> = Vec::new();
        for address in &addresses {
            let count = seen.entry(*address).or_default();
            visits.push((*count, 0));
            *count += 1;
        }
        for (address, (_, all)) in addresses.iter().zip(&mut visits) {
            *all = seen[address];
        }
        Ok(Self { addresses, visits })
    }

    /// How many instructions.
    pub(crate) fn len(&self) -> usize {
        self.addresses.len()
    }

    /// The instructions to be killed at, as numbers of instructions executed before. Of those that are executed many times
    /// (in loops that wait, clear or copy) the first rounds, the last, and every one whose number is a power of two, as long as
    /// they are not far from where the victim can be stopped without steps; all when `every` is set.
    pub(crate) fn points(&self, every: bool) -> Vec<usize> {
        /// Steps to a point at most: a tenth of a second.
        const FAR: usize = 4_000;
        let mut checkpoint = 0;
        let mut points = Vec::new();
        for k in 0..self.len() {
            let (visit, all) = self.visits[k];
            if all == 1 {
                checkpoint = k;
            }
            let wanted = visit < 3 || visit.is_power_of_two() || visit + 1 == all;
            if every || wanted && k - checkpoint <= FAR {
                points.push(k);
            }
        }
        points
    }

    /// Where to begin to step for point `k`: the nearest instruction before it that is executed once only.
    fn checkpoint(&self, k: usize) -> Option<usize> {
        (1..=k).rev().find(|&at| self.visits[at].1 == 1)
    }
}

/// A world, and the survivor in it.
struct Stage {
    world: World,
    elsewhere: Option<Elsewhere>,
    survivor: Process,
    start: Counts,
}

impl Stage {
    fn new(operation: &Operation) -> Result<Self> {
        let world = World::new(operation.cpus, operation.pool)?;
        let mut elsewhere = match operation.survivor {
            Maker::Here(_) => None,
            Maker::Elsewhere(_) => Some(Elsewhere::beside(&world, operation)?),
        };
        let far = elsewhere.as_ref().map(|elsewhere| &elsewhere.world);
        let survivor = Process::fork(&world, far, operation.survivor)?;
        let start = world.counts()?;
        if let Some(elsewhere) = &mut elsewhere {
            elsewhere.begin()?;
        }
        Ok(Self {
            world,
            elsewhere,
            survivor,
            start,
        })
    }

    /// The survivor ends too, and then nothing at all may be left.
    fn close(self) -> Result<()> {
        let (slot, far) = self.survivor.end()?;
        if let Some(elsewhere) = self.elsewhere {
            return elsewhere.end(&self.world, slot, far);
        }
        recover(&self.world, slot)?;
        if !self.world.is_empty()? {
            bail!("pages of the pool are not free after everybody's end");
        }
        Ok(())
    }

    /// Gives the stage up, whatever is left on it.
    fn abandon(self) {
        self.survivor.kill();
        if let Some(elsewhere) = self.elsewhere {
            elsewhere.kill();
        }
    }

    /// Brings a victim to point `k` of the operation and ends it there.
    fn kill(
        &mut self,
        operation: &Operation,
        end: End,
        trace: &Trace,
        k: usize,
        program: &'static CStr,
    ) -> Result<(), Failure> {
        let (reached, slot) = self.run(operation, |steps, victim| {
            steps.to(victim, trace, k)?;
            let place = symbols::Place(victim.address().unwrap_or(0));
            let other = end == End::Exec && !steps.asleep;
            if other {
                victim.exec(program).map_err(Failure::wrong)?;
            }
            Ok((place, other))
        })?;
        let Reached {
            found: (place, other),
            victim,
        } = reached;
        // Another program lives on while its slot is recovered.
        let lives = other.then_some(victim);
        let after = self.after(slot).map_err(|failure| failure.at(place));
        drop(lives);
        after
    }

    /// Forks a victim, and lets `trace` take it from the start of its operation.
    fn run<T>(
        &mut self,
        operation: &Operation,
        trace: impl FnOnce(&mut Steps<'_>, &Victim) -> Result<T, Failure>,
    ) -> Result<(Reached<T>, SlotId), Failure> {
        let words = self
            .survivor
            .arm()
            .map_err(|trouble| Failure::of(trouble, "arm"))?;
        let slot = self.world.control.claim_slot(0).map_err(Failure::wrong)?;
        let world = &self.world;
        let victim = Victim::fork(|| play(world, slot, operation, Words(words)));
        let victim = victim.map_err(Failure::wrong)?;
        let mut steps = Steps {
            survivor: &mut self.survivor,
            asleep: false,
        };
        steps.start(&victim)?;
        let found = trace(&mut steps, &victim)?;
        Ok((Reached { found, victim }, slot))
    }

    /// What must hold after a death.
    fn after(&mut self, slot: SlotId) -> Result<(), Failure> {
        match &mut self.elsewhere {
            Some(elsewhere) => elsewhere.dies(slot),
            None => recover(&self.world, slot),
        }
        .map_err(Failure::wrong)?;
        self.survivor
            .check()
            .map_err(|trouble| Failure::of(trouble, "check"))?;
        let leak = match &mut self.elsewhere {
            Some(elsewhere) => elsewhere.leak(&self.world, &self.start),
            None => self.world.counts().map(|now| now.leak(&self.start)),
        };
        match leak.map_err(Failure::wrong)? {
            Some(leak) => Err(Failure::leak(leak)),
            None => Ok(()),
        }
    }
}

struct Reached<T> {
    found: T,
    victim: Victim,
}

/// The victim's part.
fn play(world: &World, slot: SlotId, operation: &Operation, words: Words) {
    let ended = world
        .member(slot)
        .and_then(|member| (operation.victim)(&member, &words))
        .and_then(|act| {
            Marker::Edge.raise();
            let ended = act();
            Marker::Edge.raise();
            ended
        });
    if let Err(error) = ended {
        eprintln!("victim of {}: {error:#}", operation.name);
    }
}

/// Takes a victim through its operation.
struct Steps<'a> {
    survivor: &'a mut Process,
    /// The last instruction has begun, and the victim sleeps in it.
    asleep: bool,
}

impl Steps<'_> {
    /// To the start of the operation.
    fn start(&mut self, victim: &Victim) -> Result<(), Failure> {
        let mut stop = victim.run().map_err(Failure::wrong)?;
        loop {
            stop = match stop {
                Stop::Marker(Marker::Edge) => return Ok(()),
                Stop::Marker(Marker::Release) => {
                    self.release()?;
                    victim.run().map_err(Failure::wrong)?
                }
                Stop::Asleep => victim.wait().map_err(Failure::wrong)?,
                Stop::Signal(_) => victim.run().map_err(Failure::wrong)?,
                other => return Err(Failure::wrong(anyhow!("a victim prepared and: {other:?}"))),
            };
        }
    }

    /// To the end, noting where it comes along.
    fn record(&mut self, victim: &Victim, addresses: &mut Vec<u64>) -> Result<(), Failure> {
        loop {
            addresses.push(victim.address().map_err(Failure::wrong)?);
            if self.step(victim, false)? {
                return Ok(());
            }
        }
    }

    /// Until `k` instructions are executed. When the operation takes another way this time, and ends before, the victim
    /// is left at its end.
    fn to(&mut self, victim: &Victim, trace: &Trace, k: usize) -> Result<(), Failure> {
        let mut done = 0;
        if let Some(checkpoint) = trace.checkpoint(k) {
            let address = trace.addresses[checkpoint];
            victim.stop_at(Some(address)).map_err(Failure::wrong)?;
            if self.advance(victim, |victim| victim.run(), false)? {
                return Ok(());
            }
            victim.stop_at(None).map_err(Failure::wrong)?;
            done = checkpoint;
        }
        for step in done..k {
            if self.step(victim, step + 1 == k)? || self.asleep {
                return Ok(());
            }
        }
        Ok(())
    }

    fn step(&mut self, victim: &Victim, last: bool) -> Result<bool, Failure> {
        self.advance(victim, |victim| victim.step(), last)
    }

    /// Lets the victim go on until it stops; true at the operation's end. One that sleeps is woken, unless it is to be
    /// killed in its sleep.
    fn advance(
        &mut self,
        victim: &Victim,
        go: impl Fn(&Victim) -> Result<Stop>,
        last: bool,
    ) -> Result<bool, Failure> {
        let mut stop = go(victim).map_err(Failure::wrong)?;
        loop {
            stop = match stop {
                Stop::Step => return Ok(false),
                Stop::Marker(Marker::Edge) => return Ok(true),
                Stop::Marker(Marker::Release) => {
                    self.release()?;
                    go(victim).map_err(Failure::wrong)?
                }
                Stop::Asleep if last => {
                    self.asleep = true;
                    return Ok(false);
                }
                Stop::Asleep => {
                    self.release()?;
                    wake_up(victim)?
                }
                // Not ours, and not for the victim.
                Stop::Signal(_) => go(victim).map_err(Failure::wrong)?,
                other => {
                    let what = anyhow!("in the operation the victim: {other:?}");
                    return Err(Failure::wrong(what));
                }
            };
        }
    }

    fn release(&mut self) -> Result<(), Failure> {
        self.survivor
            .release()
            .map_err(|trouble| Failure::of(trouble, "release"))
    }
}

/// Waits for the end of the system call in which the victim slept.
fn wake_up(victim: &Victim) -> Result<Stop, Failure> {
    /// Ticks that a wake-up may take on a loaded machine: seconds.
    const PATIENCE: u32 = 5_000;
    for _ in 0..PATIENCE {
        match victim.wait().map_err(Failure::wrong)? {
            Stop::Asleep => {}
            stop => return Ok(stop),
        }
    }
    Err(Failure::of(
        Trouble::Hang,
        "the victim sleeps on after its wake-up",
    ))
}
