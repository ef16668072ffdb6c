//! Sets of objects that are waited for together.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use dragon_channels::{
    Channel, ChannelOptions, Deadline, Error, Interest, Ready, Set, SetMember, create_channel,
};
use dragon_shmem::Member;

use crate::operations::channel::Nothing;
use crate::operations::{Act, Operation, Words, checked, operation, send, soon};
use crate::survivor::Survivor;

const PLACES: u32 = 8;
/// Tokens: of the member that is always there, and of the one that the operation is about.
const STAYS: u64 = 1;
const GOES: u64 = 2;

pub(super) const OPERATIONS: &[Operation] = &[
    operation("set-create", |_| Ok(Box::new(Nothing)), creates),
    operation(
        "set-create-and-drop",
        |_| Ok(Box::new(Nothing)),
        creates_and_drops,
    ),
    operation("set-add", |m| rig(m, false, false), adds),
    operation("set-add-ready", |m| rig(m, false, true), adds),
    operation("set-remove", |m| rig(m, true, false), removes),
    operation("set-poll", |m| rig(m, false, true), polls),
    operation("set-wait-sleeps", |m| rig(m, false, false), waits),
    operation("set-send-wakes", sleeping, sends),
    operation("set-destroy", |m| rig(m, true, false), destroys),
];

struct Rig {
    member: Arc<Member>,
    channel: Channel,
    /// One of its own for each victim, and with it its memberships go.
    set: Option<Arc<Set>>,
    /// The second membership is there at the start, or is what the victim makes.
    added: bool,
    /// A message is there at the start.
    ready: bool,
    sleeper: bool,
    asleep: Option<JoinHandle<Result<Vec<Ready>, Error>>>,
}

fn made(member: &Arc<Member>) -> Result<Rig> {
    Ok(Rig {
        member: Arc::clone(member),
        channel: create_channel(member, &ChannelOptions::default())?,
        set: None,
        added: false,
        ready: false,
        sleeper: false,
        asleep: None,
    })
}

fn rig(member: &Arc<Member>, added: bool, ready: bool) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        added,
        ready,
        ..made(member)?
    }))
}

fn sleeping(member: &Arc<Member>) -> Result<Box<dyn Survivor>> {
    Ok(Box::new(Rig {
        sleeper: true,
        ..made(member)?
    }))
}

impl Survivor for Rig {
    fn arm(&mut self) -> Result<Vec<String>> {
        let set = Arc::new(Set::create(&self.member, PLACES, 0)?);
        set.add(self.channel.id(), Interest::READABLE, STAYS)?;
        let mut words = vec![
            self.channel.descriptor().to_string(),
            set.descriptor().to_string(),
        ];
        if self.added {
            let goes = set.add(self.channel.id(), Interest::READABLE, GOES)?;
            words.push(goes.to_u64().to_string());
        }
        if self.ready {
            send(&self.channel, 0, 8)?;
        }
        if self.sleeper {
            let set = Arc::clone(&set);
            self.asleep = Some(thread::spawn(move || set.wait(Deadline::Never)));
            super::channel::wait_until_asleep(&self.member)?;
        }
        self.set = Some(set);
        Ok(words)
    }

    fn release(&mut self) -> Result<()> {
        send(&self.channel, 1, 8)
    }

    fn check(&mut self) -> Result<()> {
        send(&self.channel, 9, 8)?;
        if let Some(asleep) = self.asleep.take() {
            let joined = asleep.join().ok().context("the sleeping thread panicked")?;
            let woken = joined.context("the thread that waited for the set")?;
            ensure!(
                woken.iter().any(|ready| ready.token == STAYS),
                "the sleeper found {woken:?}"
            );
        }
        let set = self.set.take().context("armed")?;
        match set.wait(soon()) {
            Ok(ready) => {
                let stays = ready.iter().filter(|ready| ready.token == STAYS).count();
                ensure!(stays == 1, "the set reports {ready:?}");
            }
            // The victim destroyed it.
            Err(Error::Destroyed(_)) => {}
            Err(error) => return Err(error).context("the set"),
        }
        while let Ok(message) = self.channel.receive(Deadline::Now) {
            checked(message)?;
        }
        if let Ok(ready) = set.poll() {
            ensure!(
                ready.is_empty(),
                "nothing is there, and the set reports {ready:?}"
            );
        }
        Ok(())
    }
}

fn attached(member: &Arc<Member>, words: &Words) -> Result<(&'static Channel, &'static Set)> {
    let channel = Channel::attach(member, &words.descriptor(0)?, false)?;
    let set = Set::attach(member, &words.descriptor(1)?, false)?;
    Ok((Box::leak(Box::new(channel)), Box::leak(Box::new(set))))
}

fn creates(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let member = Arc::clone(member);
    Ok(Box::new(move || {
        Box::leak(Box::new(Set::create(&member, PLACES, 0)?));
        Ok(())
    }))
}

fn creates_and_drops(member: &Arc<Member>, _: &Words) -> Result<Act> {
    let member = Arc::clone(member);
    let channel = create_channel(&member, &ChannelOptions::default())?;
    let channel: &'static Channel = Box::leak(Box::new(channel));
    Ok(Box::new(move || {
        let set = Set::create(&member, PLACES, 0)?;
        set.add(channel.id(), Interest::READABLE, STAYS)?;
        drop(set);
        Ok(())
    }))
}

fn adds(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (channel, set) = attached(member, words)?;
    Ok(Box::new(move || {
        set.add(channel.id(), Interest::READABLE, GOES)?;
        Ok(())
    }))
}

fn removes(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (_, set) = attached(member, words)?;
    let goes = SetMember::from_u64(words.number(2)?);
    Ok(Box::new(move || Ok(set.remove(goes)?)))
}

fn polls(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (_, set) = attached(member, words)?;
    Ok(Box::new(move || {
        set.poll()?;
        Ok(())
    }))
}

fn waits(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (_, set) = attached(member, words)?;
    Ok(Box::new(move || {
        set.wait(Deadline::Never)?;
        Ok(())
    }))
}

fn sends(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (channel, _) = attached(member, words)?;
    Ok(Box::new(move || send(channel, 7, 8)))
}

fn destroys(member: &Arc<Member>, words: &Words) -> Result<Act> {
    let (_, set) = attached(member, words)?;
    Ok(Box::new(move || Ok(set.destroy()?)))
}
