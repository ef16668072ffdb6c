//! The second process: it has the object too, does its part while the victim is stepped, and afterwards shows that the
//! object works.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use dragon_protocol::{Descriptor, SlotId};
use dragon_shmem::Member;
use libc::pid_t;

use crate::world::World;

/// An answer that takes longer is a hang. Operations take microseconds; a loaded machine takes its time.
pub(crate) const HANG: Duration = Duration::from_secs(20);

/// What the survivor does for one operation.
pub(crate) trait Survivor {
    /// Brings the object to the state in which the victim's operation starts. Returns what the victim needs to find it.
    fn arm(&mut self) -> Result<Vec<String>>;

    /// Does that for which the victim waits, or has asked.
    fn release(&mut self) -> Result<()> {
        bail!("the victim sleeps, and nothing is to wake it")
    }

    /// The victim is dead and recovered: shows that everything works, and brings it back to the state before `arm`.
    fn check(&mut self) -> Result<()>;
}

/// Makes the survivor of an operation, in the survivor's process.
#[derive(Clone, Copy)]
pub(crate) enum Maker {
    /// Objects of the victim's node.
    Here(fn(&Arc<Member>) -> Result<Box<dyn Survivor>>),
    /// Objects of another node, of which the survivor is a process, too.
    Elsewhere(fn(Sides) -> Result<Box<dyn Survivor>>),
}

/// A process of two nodes.
pub(crate) struct Sides {
    /// The victim's.
    pub(crate) here: Arc<Member>,
    /// The other one.
    pub(crate) there: Arc<Member>,
    /// A pool of each.
    pub(crate) pools: [Descriptor; 2],
}

/// Why the survivor's part failed.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It does not answer.
    Hang,
    /// It answers that something is wrong.
    Wrong(String),
}

/// The survivor's process, seen from the supervisor.
pub(crate) struct Process {
    pid: pid_t,
    slot: SlotId,
    /// As a process of the other node, too.
    far: Option<SlotId>,
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Process {
    /// Forks it. This process must have one thread.
    pub(crate) fn fork(world: &World, elsewhere: Option<&World>, make: Maker) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let slot = world.control.claim_slot(0)?;
        let far = elsewhere.map(|far| far.control.claim_slot(0)).transpose()?;
        // SAFETY: this process has one thread, so the child's memory is consistent.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            drop(ours);
            let far = elsewhere.zip(far);
            let ended = serve(world, slot, far, make, theirs);
            if let Err(error) = &ended {
                eprintln!("survivor: {error:#}");
            }
            // SAFETY: ends the process without running what the parent registered for its own end.
            unsafe { libc::_exit(i32::from(ended.is_err())) };
        }
        ensure!(pid > 0, "fork: {}", std::io::Error::last_os_error());
        ours.set_read_timeout(Some(HANG))?;
        let reader = BufReader::new(ours.try_clone()?);
        let mut process = Self {
            pid,
            slot,
            far,
            stream: ours,
            reader,
        };
        process
            .ask("hello")
            .map_err(|trouble| anyhow!("the survivor did not start: {trouble:?}"))?;
        Ok(process)
    }

    pub(crate) fn arm(&mut self) -> Result<Vec<String>, Trouble> {
        let words = self.ask("arm")?;
        Ok(words.split(' ').map(str::to_owned).collect())
    }

    pub(crate) fn release(&mut self) -> Result<(), Trouble> {
        self.ask("release").map(drop)
    }

    pub(crate) fn check(&mut self) -> Result<(), Trouble> {
        self.ask("check").map(drop)
    }

    /// Ends it in the ordinary way. Its slots are to be recovered: on this node, and on the other one.
    pub(crate) fn end(mut self) -> Result<(SlotId, Option<SlotId>)> {
        self.ask("end")
            .map_err(|trouble| anyhow!("the survivor did not end: {trouble:?}"))?;
        self.reap();
        Ok((self.slot, self.far))
    }

    /// Kills it. Its world is given up with it.
    pub(crate) fn kill(self) {
        // SAFETY: our child, not waited for yet.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        self.reap();
    }

    fn reap(&self) {
        let mut status = 0;
        loop {
            // SAFETY: our child; `status` is a place for the status.
            let found = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
            if found == self.pid || std::io::Error::last_os_error().kind() != ErrorKind::Interrupted
            {
                return;
            }
        }
    }

    fn ask(&mut self, what: &str) -> Result<String, Trouble> {
        let gone = |error: std::io::Error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Trouble::Hang,
            _ => Trouble::Wrong(format!("the survivor is gone: {error}")),
        };
        writeln!(self.stream, "{what}").map_err(gone)?;
        let mut line = String::new();
        let asked = Instant::now();
        loop {
            match self.reader.read_line(&mut line) {
                Ok(_) => break,
                // Our timer ticks, and the kernel's time for the answer starts anew.
                Err(error) if error.kind() == ErrorKind::Interrupted && asked.elapsed() < HANG => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(Trouble::Hang),
                Err(error) => return Err(gone(error)),
            }
        }
        match line.trim_end_matches('\n').split_once(' ') {
            Some(("ok", rest)) => Ok(rest.to_owned()),
            Some((_, why)) => Err(Trouble::Wrong(why.to_owned())),
            None => Err(Trouble::Wrong("the survivor has ended".to_owned())),
        }
    }
}

fn serve(
    world: &World,
    slot: SlotId,
    far: Option<(&World, SlotId)>,
    make: Maker,
    stream: UnixStream,
) -> Result<()> {
    // SAFETY: a plain request about this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let here = world.member(slot)?;
    let mut survivor = match (make, far) {
        (Maker::Here(make), _) => make(&here),
        (Maker::Elsewhere(make), Some((far, slot))) => make(Sides {
            pools: [world.second_pool()?, far.second_pool()?],
            there: far.member(slot)?,
            here,
        }),
        (Maker::Elsewhere(_), None) => bail!("there is no other node"),
    }
    .context("cannot make the objects")?;
    let mut answers = stream.try_clone()?;
    for command in BufReader::new(stream).lines() {
        let done = match command?.as_str() {
            "hello" => Ok(String::new()),
            "arm" => survivor.arm().map(|words| words.join(" ")),
            "release" => survivor.release().map(|()| String::new()),
            "check" => survivor.check().map(|()| String::new()),
            "end" => {
                drop(survivor);
                writeln!(answers, "ok ")?;
                return Ok(());
            }
            other => bail!("{other}: no such command"),
        };
        match done {
            Ok(words) => writeln!(answers, "ok {words}")?,
            Err(error) => writeln!(answers, "wrong {}", format!("{error:#}").replace('\n', " "))?,
        }
    }
    Ok(())
}
