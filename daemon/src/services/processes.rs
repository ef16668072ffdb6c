//! Processes of this node: who lives, who has ended, signals.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IsTerminal};

use dragon_protocol::control::{ExitNotice, Reach};
use dragon_protocol::process::Lives;
use dragon_protocol::{Code, NodeIndex, ObjectId, SlotId};
use rustix::process::{Signal, WaitOptions};
use tokio::task::JoinHandle;

use super::starting::{Pending, Queued, StartedFor};
use super::{Daemon, End, Event};
use crate::adapter::Manager;
use crate::groups::MemberKey;
use crate::resources;
use crate::survey::{Managed, ManagedRole};
use crate::tree;
use crate::zygote::Zygotes;

/// The processes of a node.
#[derive(Default)]
pub(super) struct Processes {
    live: HashMap<u32, Process>,
    /// Pids of the live ones.
    pids: HashMap<ObjectId, u32>,
    /// Statuses of children that ended while starts were on their way, each with the number of the last start then: a child
    /// whose start is reported later was started before.
    early: HashMap<u32, (i32, u64)>,
    /// Starts on their way, by number.
    pub(super) pending: BTreeMap<u64, Pending>,
    /// Starts that wait for CPUs or GPUs, by number.
    pub(super) queued: HashMap<u64, Queued>,
    /// The head has got every interrupt from the terminal that this daemon sees from now on.
    pub(super) head_hears: bool,
    /// What came for the head before it ran.
    for_head: Vec<Signal>,
    /// The last signal that was for all: the runtime ends.
    ended_by: Option<Signal>,
    /// Number of the last start.
    last: u64,
    /// The slots of the processes that are attached.
    slots: HashMap<u32, Vec<SlotId>>,
    /// Processes that have ended while slots of theirs are not recovered.
    unrecovered: Vec<Ended>,
    /// Warm interpreters. One that was started before anybody asked for a worker is silent about its errors; when it has
    /// ended, the next worker gets a new one that can be heard.
    pub(super) zygotes: Zygotes,
    /// Tasks that read output; they end when the processes have closed their ends.
    pub(super) readers: Vec<JoinHandle<()>>,
    /// How many readers there were when finished ones were last dropped.
    pub(super) readers_kept: usize,
}

/// A process that has ended.
struct Ended {
    process: Process,
    status: i32,
    /// Those that are not recovered.
    slots: Vec<SlotId>,
}

/// A live process.
pub(super) struct Process {
    pub(super) object: ObjectId,
    pub(super) notify: Option<ObjectId>,
    pub(super) head: bool,
    /// The number of its start, under which its CPUs and GPUs are reserved.
    pub(super) number: u64,
    pub(super) creator: Option<Creator>,
    pub(super) lives: Lives,
    /// Which member of a group it is.
    pub(super) member: Option<MemberKey>,
}

/// Who asked for a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Creator {
    pub(super) node: NodeIndex,
    pub(super) slot: SlotId,
}

impl Process {
    /// Whether it ends when a process is gone.
    fn goes_with(&self, gone: impl Fn(Creator) -> bool) -> bool {
        self.lives == Lives::WithCreator && self.creator.is_some_and(gone)
    }
}

impl Processes {
    /// The number of the next start.
    pub(super) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// A process has got a slot.
    pub(super) fn attached(&mut self, pid: u32, slot: SlotId) {
        self.slots.entry(pid).or_default().push(slot);
    }

    /// A process runs. Returns its status, if it has ended since.
    pub(super) fn runs(&mut self, pid: u32, process: Process) -> Option<i32> {
        let number = process.number;
        let leads_group = !process.head;
        self.pids.insert(process.object, pid);
        self.live.insert(pid, process);
        let early = self.early.remove(&pid);
        self.prune_early();
        // A child that ended before the start was ordered had the same pid, and is another one.
        let early = early.filter(|(_, last)| number <= *last);
        if let (None, Some(signal)) = (early, self.ended_by) {
            tree::signal(pid, leads_group, signal);
        }
        early.map(|(status, _)| status)
    }

    /// Forgets statuses that belong to none of the starts on their way.
    pub(super) fn prune_early(&mut self) {
        if self.early.is_empty() {
            return;
        }
        match self.pending.first_key_value() {
            Some((&oldest, _)) => self.early.retain(|_, (_, last)| *last >= oldest),
            None => self.early.clear(),
        }
    }

    /// A process has ended; returns it if it has no slot. Otherwise others hear of it when its slots are recovered: they may
    /// rely on it then that it takes nothing any more, on other nodes neither.
    fn ended(&mut self, pid: u32, process: Process, status: i32) -> Option<Ended> {
        let slots = self.slots.remove(&pid).unwrap_or_default();
        let ended = Ended {
            process,
            status,
            slots,
        };
        if ended.slots.is_empty() {
            return Some(ended);
        }
        self.unrecovered.push(ended);
        None
    }

    /// A slot is nobody's any more; returns the process that had it, if it has ended and this was its last one.
    fn detached(&mut self, pid: u32, slot: SlotId) -> Option<Ended> {
        if let Some(slots) = self.slots.get_mut(&pid) {
            slots.retain(|other| *other != slot);
            if slots.is_empty() {
                self.slots.remove(&pid);
            }
        }
        // Another process may have its pid by now, but nobody its slot.
        let had_it = |ended: &Ended| ended.slots.contains(&slot);
        let place = self.unrecovered.iter().position(had_it)?;
        let slots = &mut self.unrecovered[place].slots;
        slots.retain(|other| *other != slot);
        slots
            .is_empty()
            .then(|| self.unrecovered.swap_remove(place))
    }

    /// The process has ended, and others have not heard of it.
    fn is_unrecovered(&self, object: ObjectId) -> bool {
        self.unrecovered
            .iter()
            .any(|ended| ended.process.object == object)
    }

    /// The processes that have a slot.
    pub(super) fn attached_processes(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.keys().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty() && self.pending.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.live.len()
    }

    /// The live processes, for those who ask what there is.
    pub(super) fn listed(&self) -> Vec<Managed> {
        let live = self.live.iter();
        live.map(|(pid, process)| Managed {
            pid: *pid,
            object: Some(process.object),
            role: match process.head {
                true => ManagedRole::Head,
                false => ManagedRole::Managed,
            },
            group: process
                .member
                .map(|member| member.batch.group_name())
                .unwrap_or_default(),
            rank: process.member.map(|member| member.rank.into()),
        })
        .collect()
    }

    /// Sends a signal to every live process, and to the groups that they lead; those that are being started get it then.
    pub(super) fn signal_all(&mut self, signal: Signal) {
        self.ended_by = Some(signal);
        for (pid, process) in &self.live {
            tree::signal(*pid, !process.head, signal);
        }
    }

    /// Ends the warm interpreters.
    pub(super) fn drop_zygotes(&mut self) {
        self.zygotes.clear();
    }
}

/// What a terminal sends by itself to the programs in its foreground.
fn is_typed(signal: Signal) -> bool {
    [Signal::INT, Signal::QUIT, Signal::TSTP].contains(&signal)
}

impl Daemon {
    /// Passes a signal on that is meant for the head. Most senders reach every process of the job themselves (the terminal,
    /// Slurm without control groups); Slurm with control groups sends only to the tasks of a step, and that is the daemon.
    pub(super) fn pass_to_head(&mut self, signal: Signal) {
        let wanted = match self.job.manager {
            // The terminal of srun --pty speaks to the program itself.
            Manager::Slurm { .. } if is_typed(signal) && io::stdin().is_terminal() => false,
            Manager::Slurm { .. } => resources::in_step_group(),
            // The launcher was meant; only the terminal's interrupt has reached the head too, unless it came too early.
            Manager::Launcher { .. } => signal != Signal::INT || !self.processes.head_hears,
            Manager::RemoteLauncher | Manager::Client { .. } => true,
        };
        if !wanted {
            return;
        }
        let mut heads = self.processes.live.iter();
        match heads.find(|(_, process)| process.head) {
            Some((pid, _)) => tree::signal(*pid, false, signal),
            None if self.awaits_program() => self.processes.for_head.push(signal),
            None => {}
        }
    }

    /// Whether this daemon is about to start the head, or its own task.
    fn awaits_program(&self) -> bool {
        match &self.tasks {
            Some(tasks) => !tasks.own_has_ended(),
            None => self.job.node == NodeIndex::FIRST,
        }
    }

    /// The head runs: it gets what came for it before.
    pub(super) fn head_runs(&mut self, pid: u32) {
        for signal in std::mem::take(&mut self.processes.for_head) {
            tree::signal(pid, false, signal);
        }
        self.head_hears_soon();
    }

    /// An interrupt from before the fork may be on its way from the kernel to the loop, and the head has not got it. Its
    /// handler has run by now, on this thread; the loop sees it when the runtime has looked at its descriptors once more.
    fn head_hears_soon(&self) {
        let events = self.sender.clone();
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            let _ = events.send(Event::HeadHears).await;
        });
    }

    /// Reads the statuses of all children that have ended.
    pub(super) fn reap(&mut self) -> Option<End> {
        let mut end = None;
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let (pid, status) = (pid.as_raw_nonzero().get().cast_unsigned(), status.as_raw());
            if self.processes.live.contains_key(&pid) {
                end = self.ended(pid, status).or(end);
            } else if !self.processes.pending.is_empty() {
                let last = self.processes.last;
                self.processes.early.insert(pid, (status, last));
            }
        }
        end
    }

    /// A process has ended.
    pub(super) fn ended(&mut self, pid: u32, status: i32) -> Option<End> {
        let process = self.processes.live.remove(&pid)?;
        self.processes.pids.remove(&process.object);
        self.give_back(process.number);
        let program = process.head;
        if let Some(ended) = self.processes.ended(pid, process, status) {
            self.tell_end(&ended);
        }
        program.then(|| self.program_ended(status)).flatten()
    }

    /// A slot is nobody's any more.
    pub(super) fn detached(&mut self, pid: u32, slot: SlotId) {
        if let Some(ended) = self.processes.detached(pid, slot) {
            self.tell_end(&ended);
        }
        self.creator_left(slot);
    }

    fn tell_end(&mut self, ended: &Ended) {
        let Ended {
            process, status, ..
        } = ended;
        let status = *status;
        self.node.process_ended(process.object, status);
        if let Some(member) = process.member {
            let actions = self.groups.ended(member, status);
            self.act(actions);
        }
        if let Some(channel) = process.notify {
            self.node.notify(
                channel,
                &ExitNotice {
                    process: process.object,
                    status,
                }
                .to_bytes(),
            );
        }
    }

    /// Sends a signal to a process of this node. To one whose end has not been told yet it does nothing, as for a child that
    /// its parent has not waited for: whoever sends it could not know.
    pub(super) fn signal_here(
        &self,
        object: ObjectId,
        signal: i32,
        reach: Reach,
    ) -> (Code, String) {
        let Some(signal) = Signal::from_named_raw(signal) else {
            return (
                Code::InvalidArgument,
                format!("{signal} is not a signal's number"),
            );
        };
        match (self.processes.pids.get(&object), reach) {
            (Some(pid), Reach::Tree) => self.signal_tree(*pid, signal),
            // A signal to one process, not to its group: that is what kill() of the caller's language means.
            (Some(pid), _) => tree::signal(*pid, false, signal),
            (None, _) if !self.processes.is_unrecovered(object) => {
                return (Code::NoSuchObject, format!("process {object} has ended"));
            }
            (None, _) => {}
        }
        (Code::Ok, String::new())
    }

    fn signal_tree(&self, pid: u32, signal: Signal) {
        let leads_group = self
            .processes
            .live
            .get(&pid)
            .is_some_and(|process| !process.head);
        tree::signal_all(pid, leads_group, signal);
    }

    /// Processes that asked for others are gone: what was to end with them does.
    pub(super) fn creators_gone(&mut self, gone: impl Fn(Creator) -> bool) {
        for (pid, process) in &self.processes.live {
            if process.goes_with(&gone) {
                self.signal_tree(*pid, Signal::KILL);
            }
        }
        for pending in self.processes.pending.values_mut() {
            pending.doomed |= pending.process.goes_with(&gone);
        }
        self.give_up_all(|queued| queued.goes_with(&gone), Code::Cancelled);
    }

    /// The starts that a process asked for with this number of its own wait no longer.
    pub(super) fn cancel_starts(&mut self, creator: Creator, asked: u64) {
        let is_it = |queued: &Queued| {
            queued.creator == creator
                && matches!(queued.told, StartedFor::Requester(number, _) if number == asked)
        };
        self.give_up_all(is_it, Code::Interrupted);
    }

    /// Kills a process that was started for somebody who is gone.
    pub(super) fn kill_doomed(&self, pid: u32) {
        self.signal_tree(pid, Signal::KILL);
    }

    /// Whoever asked for a process has it, or is gone.
    pub(super) fn told(&mut self, told: StartedFor, result: dragon_protocol::control::SpawnResult) {
        let object = result.as_ref().ok().map(|spawned| spawned.process);
        let adopted = match told {
            StartedFor::Requester(_, reply) => reply.send(result).is_ok(),
            StartedFor::Member(member) => {
                let actions = self.groups.started(member, result);
                self.act(actions);
                false
            }
            StartedFor::Head => true,
        };
        if let Some(object) = object.filter(|_| !adopted) {
            // The reference that was in transit to whoever asked goes too.
            self.node.drop_transit(object);
        }
    }
}

#[cfg(test)]
mod tests {
    use dragon_protocol::ObjectKind;

    use super::*;

    fn process(index: u32) -> Process {
        let object = ObjectId {
            node: NodeIndex::FIRST,
            kind: ObjectKind::Process,
            index,
            generation: 1,
        };
        Process {
            object,
            notify: None,
            head: false,
            number: 0,
            creator: None,
            lives: Lives::default(),
            member: None,
        }
    }

    fn slot(index: u32) -> SlotId {
        SlotId {
            index,
            generation: 1,
        }
    }

    #[test]
    fn a_child_that_ended_before_the_start_was_ordered_is_another_one() {
        let started = |number: u32| Process {
            number: number.into(),
            ..process(number)
        };
        for (number, expected) in [(3, Some(9)), (4, Some(9)), (5, None)] {
            let mut processes = Processes::default();
            processes.early.insert(77, (9, 4));
            assert_eq!(processes.runs(77, started(number)), expected);
            assert!(processes.early.is_empty());
        }
    }

    #[test]
    fn an_end_is_told_when_all_slots_of_the_process_are_recovered() {
        let mut processes = Processes::default();
        assert!(
            processes.ended(1, process(1), 0).is_some(),
            "never attached"
        );

        processes.attached(2, slot(1));
        processes.attached(2, slot(2));
        assert!(processes.ended(2, process(2), 9).is_none());
        // Another process with the same pid.
        processes.attached(2, slot(3));
        assert!(processes.detached(2, slot(2)).is_none());
        let ended = processes.detached(2, slot(1)).unwrap();
        assert_eq!((ended.process.object.index, ended.status), (2, 9));
        assert!(processes.ended(2, process(3), 0).is_none());
        assert_eq!(
            processes.detached(2, slot(3)).unwrap().process.object.index,
            3
        );

        processes.attached(4, slot(4));
        assert!(processes.detached(4, slot(4)).is_none(), "it lives on");
        assert!(processes.ended(4, process(4), 0).is_some());
    }
}
