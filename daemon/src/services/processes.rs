//! Processes of this node: start, output, end.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use dragon_protocol::control::{ExitNotice, Output, Program, SpawnRequest, SpawnResult, Spawned};
use dragon_protocol::{Code, ObjectId, SlotId, env};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::{Daemon, End, Event};
use crate::adapter::Manager;
use crate::cli::RUNTIME_FAILED;
use crate::config::keys;
use crate::forker::{Fork, null};
use crate::output::Label;
use crate::program;
use crate::resources;
use crate::survey::Managed;
use crate::zygote::{Key, Order, Zygote};

/// The processes of a node.
#[derive(Default)]
pub(super) struct Processes {
    live: HashMap<u32, Process>,
    /// Statuses of processes that ended before their start was reported.
    early: HashMap<u32, i32>,
    /// Starts on their way.
    starting: usize,
    /// The slots of the processes that are attached.
    slots: HashMap<u32, Vec<SlotId>>,
    /// Processes that have ended while slots of theirs are not recovered.
    unrecovered: Vec<Ended>,
    /// Warm interpreters. One that was started before anybody asked for a worker is silent about its errors; when it has
    /// ended, the next worker gets a new one that can be heard.
    zygotes: HashMap<Key, Zygote>,
    /// Tasks that read output; they end when the processes have closed their ends.
    pub(super) readers: Vec<JoinHandle<()>>,
}

/// A process that has ended.
struct Ended {
    process: Process,
    status: i32,
    /// Those that are not recovered.
    slots: Vec<SlotId>,
}

/// A live process.
struct Process {
    object: ObjectId,
    notify: Option<ObjectId>,
    head: bool,
}

/// A process whose start was ordered.
#[derive(Debug)]
pub struct Pending {
    object: ObjectId,
    notify: Option<ObjectId>,
    head: bool,
    reply: Option<oneshot::Sender<SpawnResult>>,
    name: String,
    tag: Tag,
}

/// Gets the pid of a process whose output is followed.
type Tag = Option<watch::Sender<u32>>;

impl Processes {
    /// A process has got a slot.
    pub(super) fn attached(&mut self, pid: u32, slot: SlotId) {
        self.slots.entry(pid).or_default().push(slot);
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

    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty() && self.starting == 0
    }

    pub(super) fn count(&self) -> usize {
        self.live.len()
    }

    /// The live processes, for those who ask what there is.
    pub(super) fn listed(&self) -> Vec<Managed> {
        let live = self.live.iter();
        live.map(|(pid, process)| Managed {
            pid: *pid,
            object: process.object,
            head: process.head,
            group: String::new(),
            rank: None,
        })
        .collect()
    }

    /// Sends a signal to every live process, and to the groups that they lead.
    pub(super) fn signal_all(&self, signal: Signal) {
        for (pid, process) in &self.live {
            signal_process(*pid, !process.head, signal);
        }
    }

    /// Ends the warm interpreters.
    pub(super) fn drop_zygotes(&mut self) {
        self.zygotes.clear();
    }
}

impl Daemon {
    /// Starts the head program: it inherits everything, the terminal included.
    pub(super) fn start_head(&mut self, program: program::Program) -> Result<(), End> {
        let name = program
            .words
            .first()
            .map(|word| word.to_string_lossy().into_owned())
            .unwrap_or_default();
        let (tag, stdio) = self.stdio_of_head().map_err(|error| End {
            code: RUNTIME_FAILED,
            why: format!("no pipes for the head program: {error}"),
        })?;
        let fork = Fork {
            words: program.words,
            environment: self.environment_for_head(),
            directory: None,
            stdio,
            own_group: false,
        };
        let object = self.node.create_process().map_err(|(_, text)| {
            let why = format!("the head program was not started: {text}");
            eprintln!("dragon: {why}");
            End {
                code: RUNTIME_FAILED,
                why,
            }
        })?;
        let started = self.forker.start_process(fork);
        let pending = Pending {
            object,
            notify: None,
            head: true,
            reply: None,
            name,
            tag,
        };
        self.expect(pending, started);
        Ok(())
    }

    /// What the head reads and writes: the daemon's own, the terminal included, unless its lines get labels or its input
    /// comes from afar.
    fn stdio_of_head(&mut self) -> io::Result<(Tag, [Option<OwnedFd>; 3])> {
        let input = self.head_input.take();
        if self.job.config.text(&keys::LABEL) == "none" {
            return Ok((Tag::default(), [input, None, None]));
        }
        let (tag, out, err) = self.output_pipes()?;
        Ok((tag, [input, Some(out), Some(err)]))
    }

    /// Starts a warm interpreter before anybody asks for a worker.
    pub(super) fn warm_up(&mut self, python: &Path) {
        let environment: Vec<_> = self
            .environment_for_head()
            .into_iter()
            .map(|(name, value)| (name.into_vec(), value.into_vec()))
            .collect();
        let interpreter = python.as_os_str().as_bytes();
        let key = Key::new(interpreter, &environment);
        match null()
            .and_then(|errors| Zygote::start(&self.forker, interpreter, &environment, Some(errors)))
        {
            Ok((zygote, _)) => drop(self.processes.zygotes.insert(key, zygote)),
            Err(error) => tracing::warn!("no warm interpreter: {error}"),
        }
    }

    /// Starts a process on this node.
    pub(super) fn spawn_here(
        &mut self,
        request: SpawnRequest,
        reply: oneshot::Sender<SpawnResult>,
    ) {
        let refused =
            |reply: oneshot::Sender<SpawnResult>, code, text| drop(reply.send(Err((code, text))));
        let name = program_name(&request.program);
        let (tag, stdio) = match self.stdio(request.output) {
            Ok(made) => made,
            Err(error) => {
                return refused(
                    reply,
                    Code::System,
                    format!("no pipes for the output of {name}: {error}"),
                );
            }
        };
        let mut environment = request.environment;
        environment.retain(|(variable, _)| variable != env::RUNTIME.as_bytes());
        environment.push((env::RUNTIME.into(), self.socket.clone().into_bytes()));
        let started = match request.program {
            Program::Executable(words) => {
                self.start_executable(words, environment, request.directory, stdio)
            }
            Program::Python {
                interpreter,
                payload,
            } => self.start_worker(&interpreter, payload, environment, request.directory, stdio),
            _ => Err("a kind of program that this release does not know".to_owned()),
        };
        let started = match started {
            Ok(started) => started,
            Err(text) => return refused(reply, Code::SpawnFailed, text),
        };
        match self.node.create_process() {
            Ok(object) => {
                let pending = Pending {
                    object,
                    notify: request.notify,
                    head: false,
                    reply: Some(reply),
                    name,
                    tag,
                };
                self.expect(pending, started);
            }
            Err((code, text)) => refused(reply, code, text),
        }
    }

    fn start_executable(
        &mut self,
        words: Vec<Vec<u8>>,
        environment: Vec<(Vec<u8>, Vec<u8>)>,
        directory: Vec<u8>,
        stdio: [OwnedFd; 3],
    ) -> Result<oneshot::Receiver<io::Result<u32>>, String> {
        let words: Vec<_> = words.into_iter().map(OsString::from_vec).collect();
        let program = program::resolve(&words).map_err(|no| no.text)?;
        let text = |bytes| OsString::from_vec(bytes);
        Ok(self.forker.start_process(Fork {
            words: program.words,
            environment: environment
                .into_iter()
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            directory: (!directory.is_empty()).then(|| PathBuf::from(text(directory))),
            stdio: stdio.map(Some),
            own_group: true,
        }))
    }

    fn start_worker(
        &mut self,
        interpreter: &[u8],
        payload: Vec<u8>,
        environment: Vec<(Vec<u8>, Vec<u8>)>,
        directory: Vec<u8>,
        stdio: [OwnedFd; 3],
    ) -> Result<oneshot::Receiver<io::Result<u32>>, String> {
        let key = Key::new(interpreter, &environment);
        let (reply, started) = oneshot::channel();
        let zygote_environment = environment.clone();
        let mut order = Order {
            environment,
            directory,
            payload,
            stdio,
            reply,
        };
        if let Some(zygote) = self.processes.zygotes.get(&key) {
            match zygote.order(order) {
                Ok(()) => return Ok(started),
                Err(refused) => order = refused,
            }
        }
        let (reader, writer) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| format!("no pipe: {error}"))?;
        self.follow(true, self.label_of_node(), reader)
            .map_err(|error| error.to_string())?;
        let (zygote, _) =
            Zygote::start(&self.forker, interpreter, &zygote_environment, Some(writer))
                .map_err(|error| error.to_string())?;
        zygote
            .order(order)
            .map_err(|_| "the warm interpreter ended at once".to_owned())?;
        self.processes.zygotes.insert(key, zygote);
        Ok(started)
    }

    /// Standard input, output and error of a worker.
    fn stdio(&mut self, output: Output) -> io::Result<(Tag, [OwnedFd; 3])> {
        if output == Output::Null {
            return Ok((Tag::default(), [null()?, null()?, null()?]));
        }
        let (tag, out, err) = self.output_pipes()?;
        Ok((tag, [null()?, out, err]))
    }

    /// Pipes for standard output and error, whose other ends are read from now on.
    fn output_pipes(&mut self) -> io::Result<(Tag, OwnedFd, OwnedFd)> {
        let (out, out_end) = pipe_with(PipeFlags::CLOEXEC)?;
        let (err, err_end) = pipe_with(PipeFlags::CLOEXEC)?;
        let (tag, pid) = watch::channel(0);
        let label = match self.label_of_node() {
            Label::Text(node) if self.job.config.text(&keys::LABEL) == "full" => {
                Label::Process(node, pid)
            }
            other => other,
        };
        self.follow(false, label.clone(), out)?;
        self.follow(true, label, err)?;
        Ok((Some(tag), out_end, err_end))
    }

    /// What stands before lines that are of no single process.
    fn label_of_node(&self) -> Label {
        match self.job.config.text(&keys::LABEL) {
            "node" | "full" => Label::Text(self.job.node.to_string()),
            _ => Label::None,
        }
    }

    fn follow(&mut self, is_error: bool, label: Label, end: OwnedFd) -> io::Result<()> {
        self.processes
            .readers
            .retain(|reader| !reader.is_finished());
        rustix::io::ioctl_fionbio(&end, true)?;
        let reader = self.sink.follow(is_error, label, end)?;
        self.processes.readers.push(reader);
        Ok(())
    }

    fn expect(&mut self, pending: Pending, started: oneshot::Receiver<io::Result<u32>>) {
        self.processes.starting += 1;
        let events = self.sender.clone();
        tokio::spawn(async move {
            let result = started
                .await
                .unwrap_or_else(|_| Err(io::Error::other("the daemon is ending")));
            let _ = events.send(Event::Started(pending, result)).await;
        });
    }

    /// A process was started, or not.
    pub(super) fn started(&mut self, pending: Pending, result: io::Result<u32>) -> Option<End> {
        let Pending {
            object,
            notify,
            head,
            reply,
            name,
            tag,
        } = pending;
        self.processes.starting -= 1;
        let pid = match result {
            Ok(pid) => pid,
            Err(error) => {
                let text = start_failed(&name, &error);
                self.node.forget_process(object);
                if head {
                    eprintln!("dragon: {text}");
                    return Some(End {
                        code: program::NOT_EXECUTABLE,
                        why: text,
                    });
                }
                reply.map(|reply| reply.send(Err((Code::SpawnFailed, text))));
                return None;
            }
        };
        self.node.process_started(object, pid);
        if let Some(tag) = tag {
            tag.send_replace(pid);
        }
        self.processes.live.insert(
            pid,
            Process {
                object,
                notify,
                head,
            },
        );
        let reply = reply.map(|reply| {
            reply.send(Ok(Spawned {
                process: object,
                pid,
            }))
        });
        if let Some(Err(_)) = reply {
            // Whoever asked is gone; the reference that was in transit to it goes too.
            self.node.drop_transit(object);
        }
        let early = self.processes.early.remove(&pid);
        if self.processes.starting == 0 {
            self.processes.early.clear();
        }
        early.and_then(|status| self.ended(pid, status))
    }

    /// Passes a signal on that is meant for the head. Most senders reach every process of the job themselves (the terminal,
    /// Slurm without control groups); Slurm with control groups sends only to the tasks of a step, and that is the daemon.
    pub(super) fn pass_to_head(&self, signal: Signal) {
        let wanted = match self.job.manager {
            Manager::Slurm { .. } => resources::in_step_group(),
            // The launcher was meant; only the terminal's interrupt has reached the head too.
            Manager::Launcher => signal != Signal::INT,
            Manager::RemoteLauncher => true,
        };
        if !wanted {
            return;
        }
        for (pid, _) in self
            .processes
            .live
            .iter()
            .filter(|(_, process)| process.head)
        {
            signal_process(*pid, false, signal);
        }
    }

    /// Reads the statuses of all children that have ended.
    pub(super) fn reap(&mut self) -> Option<End> {
        let forker = self.forker.clone();
        let _permission = forker.may_reap()?;
        let mut end = None;
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let (pid, status) = (pid.as_raw_nonzero().get().cast_unsigned(), status.as_raw());
            if self.processes.live.contains_key(&pid) {
                end = self.ended(pid, status).or(end);
            } else if self.processes.starting > 0 {
                self.processes.early.insert(pid, status);
            }
        }
        end
    }

    fn ended(&mut self, pid: u32, status: i32) -> Option<End> {
        let process = self.processes.live.remove(&pid)?;
        let code = exit_code(status);
        let end = process.head.then(|| End {
            code,
            why: format!("the head program ended with {code}"),
        });
        if let Some(ended) = self.processes.ended(pid, process, status) {
            self.tell_end(&ended);
        }
        end
    }

    /// A slot is nobody's any more.
    pub(super) fn detached(&mut self, pid: u32, slot: SlotId) {
        if let Some(ended) = self.processes.detached(pid, slot) {
            self.tell_end(&ended);
        }
    }

    fn tell_end(&mut self, ended: &Ended) {
        let Ended {
            process, status, ..
        } = ended;
        let status = *status;
        self.node.process_ended(process.object, status);
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
    pub(super) fn signal_here(&self, object: ObjectId, signal: i32) -> (Code, String) {
        let Some(signal) = Signal::from_named_raw(signal) else {
            return (
                Code::InvalidArgument,
                format!("{signal} is not a signal's number"),
            );
        };
        let mut live = self.processes.live.iter();
        if let Some((pid, _)) = live.find(|(_, process)| process.object == object) {
            // A signal to one process, not to its group: that is what kill() of the caller's language means.
            signal_process(*pid, false, signal);
        } else if !self.processes.is_unrecovered(object) {
            return (Code::NoSuchObject, format!("process {object} has ended"));
        }
        (Code::Ok, String::new())
    }
}

/// The exit code of a status, as shells have it: 128 + n for signal n.
fn exit_code(status: i32) -> u8 {
    let (signal, code) = (status & 0x7f, status >> 8 & 0xff);
    u8::try_from(if signal == 0 { code } else { 128 + signal }).unwrap_or(u8::MAX)
}

fn signal_process(pid: u32, leads_group: bool, signal: Signal) {
    let Some(pid) = Pid::from_raw(pid.cast_signed()) else {
        return;
    };
    // It may have ended in between. A worker leads its group only a moment after its start: so both are signalled.
    let _ = rustix::process::kill_process(pid, signal);
    if leads_group {
        let _ = rustix::process::kill_process_group(pid, signal);
    }
}

fn program_name(program: &Program) -> String {
    match program {
        Program::Executable(words) => words
            .first()
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .unwrap_or_default(),
        Program::Python { interpreter, .. } => {
            format!("a worker of {}", String::from_utf8_lossy(interpreter))
        }
        _ => "a program".to_owned(),
    }
}

fn start_failed(name: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::TOOBIG.raw_os_error() => {
            format!(
                "{name}: arguments and environment exceed the system's limit; pass long data by a file"
            )
        }
        _ => format!("{name}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use dragon_protocol::{NodeIndex, ObjectKind};

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
        }
    }

    fn slot(index: u32) -> SlotId {
        SlotId {
            index,
            generation: 1,
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
