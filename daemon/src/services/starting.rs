//! Starts of processes on this node: what is reserved, what they are given, and who is told.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Duration;

use dragon_protocol::control::{Program, SpawnRequest, SpawnResult, Spawned};
use dragon_protocol::process::{Lives, Settings, Stdio};
use dragon_protocol::{Code, ObjectId, env};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::{oneshot, watch};

use super::processes::{Creator, Process};
use super::timer::Timer;
use super::{Daemon, End, Event, pipes};
use crate::adapter::Manager;
use crate::adapter::slurm::is_task_variable;
use crate::cli::RUNTIME_FAILED;
use crate::config::keys;
use crate::exit::status_of;
use crate::forker::{Fork, Source, not_made, null, path};
use crate::groups::MemberKey;
use crate::inherited::Inherited;
use crate::journal;
use crate::output::Label;
use crate::program;
use crate::reservations::{Held, Shortage};
use crate::zygote::{Key, Order, Zygote};

/// A process whose start was ordered.
pub(super) struct Pending {
    pub(super) process: Process,
    told: StartedFor,
    name: String,
    tag: Tag,
    /// Whoever asked for it is gone, and it is to go too.
    pub(super) doomed: bool,
}

/// Gets the pid of a process whose output is followed.
type Tag = Option<watch::Sender<u32>>;

/// A start that waits for CPUs or GPUs.
pub(super) struct Queued {
    request: SpawnRequest,
    pub(super) creator: Creator,
    pub(super) told: StartedFor,
    _limit: Timer,
}

impl Queued {
    /// Whether it is out of the question when a process is gone. Members of groups are their group's business.
    pub(super) fn goes_with(&self, gone: impl Fn(Creator) -> bool) -> bool {
        self.member().is_none() && gone(self.creator)
    }

    /// Which member of a group it would be.
    fn member(&self) -> Option<MemberKey> {
        match self.told {
            StartedFor::Member(member) => Some(member),
            _ => None,
        }
    }
}

/// Who hears of a start.
pub(super) enum StartedFor {
    /// Whoever asked for the process, with this number of its own.
    Requester(u64, oneshot::Sender<SpawnResult>),
    /// A group of this or another node: it is a member.
    Member(MemberKey),
    /// Nobody: it is the head program.
    Head,
}

impl Daemon {
    /// Starts the head program: it inherits everything, the terminal included.
    pub(super) fn start_head(&mut self, program: program::Program) -> Result<(), End> {
        let (tag, stdio) = self.stdio_of_head().map_err(|error| End {
            code: RUNTIME_FAILED,
            why: format!("no pipes for the head program: {error}"),
        })?;
        let environment = self.environment_for_head().into_iter();
        let fork = Fork {
            words: program.words,
            look_up: false,
            environment: environment
                .map(|(name, value)| (name.into_vec(), value.into_vec()))
                .collect(),
            directory: None,
            stdio,
            own_group: false,
            settings: Settings::default(),
            cpus: Vec::new(),
            inherited: Inherited::default(),
        };
        self.start_program(fork, tag)
    }

    /// Starts the program that this daemon was started for: the head, or that of its own task.
    pub(super) fn start_program(&mut self, fork: Fork, tag: Tag) -> Result<(), End> {
        let name = fork.words.first().map(|word| word.to_string_lossy());
        let name = name.unwrap_or_default().into_owned();
        let object = self.node.create_process().map_err(|(_, text)| {
            let why = format!("{name} was not started: {text}");
            journal::say(&why);
            End {
                code: RUNTIME_FAILED,
                why,
            }
        })?;
        let number = self.processes.number();
        let process = Process {
            object,
            notify: None,
            head: true,
            number,
            creator: None,
            lives: Lives::UntilTheEnd,
            member: None,
        };
        self.forker.start_process(Some(number), fork);
        self.expect(process, StartedFor::Head, name, tag);
        Ok(())
    }

    /// What the head reads and writes: the daemon's own, the terminal included, unless its lines get labels or its input
    /// comes from afar.
    fn stdio_of_head(&mut self) -> io::Result<(Tag, [Source; 3])> {
        let input = self.head_input.take();
        let input = input.map_or(Source::Inherit, Source::Fd);
        if self.job.config.text(&keys::LABEL) == "none" {
            return Ok((None, [input, Source::Inherit, Source::Inherit]));
        }
        let mut tag = None;
        let out = self.forward(false, &mut tag)?;
        let err = self.forward(true, &mut tag)?;
        Ok((tag, [input, out, err]))
    }

    /// Starts a warm interpreter before anybody asks for a worker.
    pub(super) fn warm_up(&mut self, python: &Path) {
        let environment: Vec<_> = self
            .environment_for_head()
            .into_iter()
            .map(|(name, value)| (name.into_vec(), value.into_vec()))
            .collect();
        let interpreter = python.as_os_str().as_bytes().to_vec();
        let key = Key::foreseen(interpreter, &environment);
        let started = null().and_then(|errors| {
            let errors = Source::Fd(errors);
            Zygote::start(&self.forker, &self.sender, &key, &environment, errors)
        });
        match started {
            Ok(zygote) => self.processes.zygotes.insert(key, zygote),
            Err(error) => tracing::warn!("no warm interpreter: {error}"),
        }
    }

    /// Starts a process on this node, at once or when the CPUs and GPUs that it wants are free.
    pub(super) fn spawn_here(&mut self, request: SpawnRequest, creator: Creator, told: StartedFor) {
        let number = self.processes.number();
        let wanted = &request.reservation;
        let name = program_name(&request.program);
        match self.ledger.take(number, &name, wanted) {
            Ok(held) => self.start(number, request, creator, told, held),
            Err(Shortage::Never(text)) => {
                self.told(
                    told,
                    Err((Code::InvalidArgument, format!("{name}: {text}"))),
                );
            }
            Err(Shortage::Now(text)) => {
                let Some(limit) = wanted.wait_ms else {
                    return self.told(told, Err((Code::Full, format!("{name}: {text}"))));
                };
                self.ledger.wait(number, &name, wanted.clone());
                let limit = Duration::from_millis(limit);
                let queued = Queued {
                    request,
                    creator,
                    told,
                    _limit: Timer::new(&self.sender, limit, Event::WaitedLongEnough(number)),
                };
                self.processes.queued.insert(number, queued);
            }
        }
    }

    /// Ends the starts of members of groups, as far as they wait for CPUs or GPUs.
    pub(super) fn call_off(&mut self, members: &[MemberKey]) {
        let members: HashSet<&MemberKey> = members.iter().collect();
        let meant = |queued: &Queued| queued.member().is_some_and(|key| members.contains(&key));
        self.give_up_all(meant, Code::Cancelled);
    }

    /// Ends starts that wait for CPUs or GPUs and that nobody wants any more.
    pub(super) fn give_up_all(&mut self, meant: impl Fn(&Queued) -> bool, code: Code) {
        let queued = self.processes.queued.iter();
        let meant = queued.filter(|(_, queued)| meant(queued));
        let mut numbers: Vec<u64> = meant.map(|(number, _)| *number).collect();
        // In the order in which they wait, so that each is found at once.
        numbers.sort_unstable();
        self.give_up(&numbers, code);
    }

    /// Ends starts that wait for CPUs or GPUs.
    pub(super) fn give_up(&mut self, numbers: &[u64], code: Code) {
        let mut ended = Vec::new();
        for number in numbers {
            let Some(why) = self.ledger.give_up(*number) else {
                continue;
            };
            if let Some(queued) = self.processes.queued.remove(number) {
                let name = program_name(&queued.request.program);
                let limit = queued.request.reservation.wait_ms.unwrap_or_default();
                let text = match code {
                    Code::Timeout => format!("{name}: waited {limit} ms: {why}"),
                    Code::Interrupted => format!("{name}: a signal ended the wait: {why}"),
                    _ => format!("{name}: was called off while it waited: {why}"),
                };
                ended.push((queued.told, text));
            }
        }
        // None of them is served in between.
        for (told, text) in ended {
            self.told(told, Err((code, text)));
        }
        // Whoever waited behind them may be served now.
        let served = self.ledger.serve();
        self.start_served(served);
    }

    /// The CPUs and GPUs of a start are free again.
    pub(super) fn give_back(&mut self, number: u64) {
        let served = self.ledger.give_back(number);
        self.start_served(served);
    }

    fn start_served(&mut self, served: Vec<(u64, Held)>) {
        for (number, held) in served {
            match self.processes.queued.remove(&number) {
                Some(queued) => {
                    self.start(number, queued.request, queued.creator, queued.told, held);
                }
                None => self.give_back(number),
            }
        }
    }

    /// Starts a process with what was reserved for it.
    fn start(
        &mut self,
        number: u64,
        mut request: SpawnRequest,
        creator: Creator,
        told: StartedFor,
        held: Held,
    ) {
        let name = program_name(&request.program);
        self.complete_environment(&mut request, &held);
        let process = self.node.create_process();
        let process = process.map(|object| Process {
            object,
            notify: request.notify,
            head: false,
            number,
            creator: Some(creator),
            lives: request.settings.lives,
            member: match &told {
                StartedFor::Member(member) => Some(*member),
                _ => None,
            },
        });
        let started = process.and_then(|process| {
            let object = process.object;
            match self.order(number, request, held.cpus) {
                Ok(tag) => Ok((process, tag)),
                Err(text) => {
                    self.node.forget_process(object);
                    Err((Code::SpawnFailed, format!("{name}: {text}")))
                }
            }
        });
        match started {
            Ok((process, tag)) => self.expect(process, told, name, tag),
            Err(refused) => {
                self.give_back(number);
                self.told(told, Err(refused));
            }
        }
    }

    /// What the runtime says to a process by its environment.
    fn complete_environment(&self, request: &mut SpawnRequest, held: &Held) {
        const RANKS: [&str; 3] = [env::RANK, env::LOCAL_RANK, env::GROUP_SIZE];
        let mut set: Vec<(&str, Vec<u8>)> = vec![(env::RUNTIME, self.socket.clone().into_bytes())];
        if let Some(rank) = request.rank {
            let text = |number: u32| number.to_string().into_bytes();
            set.extend([
                (env::RANK, text(rank.rank)),
                (env::LOCAL_RANK, text(rank.local)),
                (env::GROUP_SIZE, text(rank.size)),
            ]);
        }
        if !held.gpus.is_empty() {
            let list = held.gpus.join(",").into_bytes();
            set.extend(self.gpu_variables.iter().map(|name| (*name, list.clone())));
        }
        let of_task =
            |name: &[u8]| self.tasks.is_some() && is_task_variable(OsStr::from_bytes(name));
        request.environment.retain(|(name, _)| {
            // What a task starts is none, and what a member of a group starts is no member.
            let of_member =
                request.rank.is_none() && RANKS.iter().any(|variable| name == variable.as_bytes());
            set.iter().all(|(ours, _)| name != ours.as_bytes()) && !of_task(name) && !of_member
        });
        let set = set.into_iter();
        request
            .environment
            .extend(set.map(|(name, value)| (name.into(), value)));
    }

    /// Orders a process of the thread that starts them, or of a warm interpreter.
    fn order(&mut self, number: u64, request: SpawnRequest, cpus: Vec<u32>) -> Result<Tag, String> {
        let (tag, stdio) = self.stdio(request.stdio)?;
        let SpawnRequest {
            program,
            environment,
            directory,
            settings,
            ..
        } = request;
        match program {
            Program::Executable(words) => {
                let fork = Fork {
                    words: words.into_iter().map(OsString::from_vec).collect(),
                    look_up: true,
                    environment,
                    directory: (!directory.is_empty()).then(|| path(directory)),
                    stdio,
                    own_group: true,
                    settings,
                    cpus,
                    inherited: Inherited::default(),
                };
                self.forker.start_process(Some(number), fork);
                Ok(tag)
            }
            Program::Python {
                interpreter,
                options,
                preload,
                payload,
            } => {
                let key = Key::new(interpreter, options, &environment);
                let order = Order {
                    number: Some(number),
                    environment,
                    directory,
                    payload,
                    stdio: None,
                    settings,
                    cpus,
                };
                let zygote = self.zygote(key, &preload, &order);
                self.order_worker(zygote.map_err(no_interpreter)?, order, stdio);
                Ok(tag)
            }
            _ => Err("a kind of program that this release does not know".to_owned()),
        }
    }

    /// The zygote that forks a worker: one that runs, or a new one.
    fn zygote(&mut self, plain: Key, preload: &[u8], order: &Order) -> io::Result<Zygote> {
        let Order {
            environment,
            directory,
            ..
        } = order;
        let key = plain.with(preload);
        if let Some(zygote) = self.processes.zygotes.live(&key) {
            return Ok(zygote.clone());
        }
        let base = match self.processes.zygotes.live(&plain) {
            Some(zygote) => zygote.clone(),
            None => {
                let errors = Source::Fd(self.output_of_node(true)?);
                let new = Zygote::start(&self.forker, &self.sender, &plain, environment, errors)?;
                self.processes.zygotes.insert(plain, new.clone());
                new
            }
        };
        if preload.is_empty() {
            return Ok(base);
        }
        let outputs = [self.output_of_node(false)?, self.output_of_node(true)?];
        let new = base.fork(&key, environment, directory, outputs)?;
        self.processes.zygotes.insert(key, new.clone());
        Ok(new)
    }

    /// A pipe into the output of the job for what belongs to no process of a user.
    fn output_of_node(&mut self, errors: bool) -> io::Result<OwnedFd> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        self.follow(errors, self.label_of_node(), reader)?;
        Ok(writer)
    }

    fn order_worker(&mut self, zygote: Zygote, mut order: Order, stdio: [Source; 3]) {
        let directory = path(order.directory.clone());
        match stdio.map(|source| match source {
            Source::Fd(fd) => Ok(fd),
            other => Err(other),
        }) {
            [Ok(input), Ok(output), Ok(error)] => {
                order.stdio = Some([input, output, error]);
                zygote.order(order);
            }
            others => {
                let sources = others.map(|source| source.map_or_else(|other| other, Source::Fd));
                let opened = self.forker.open(sources, directory);
                let (later, events) = (zygote, self.sender.clone());
                tokio::spawn(async move {
                    let opened = opened.await;
                    let ending = || Err("the daemon is ending".to_owned());
                    match opened.unwrap_or_else(|_| ending()) {
                        Ok(stdio) => {
                            order.stdio = Some(stdio);
                            later.order(order);
                        }
                        Err(text) => {
                            if let Some(number) = order.number {
                                let _ = events.send(Event::Started(number, Err(text))).await;
                            }
                        }
                    }
                });
            }
        }
    }

    /// Where standard input, output and error come from.
    fn stdio(&mut self, wanted: [Stdio; 3]) -> Result<(Tag, [Source; 3]), String> {
        let [input, output, error] = wanted;
        let mut tag = None;
        if input == Stdio::Inherit && self.job.manager == Manager::RemoteLauncher {
            return Err(format!(
                "standard input cannot be inherited on node {}, whose daemon has none of its own; pass it by a channel, or start the process on another node",
                self.job.node
            ));
        }
        let mut source = |daemon: &mut Self, place: usize, wanted| {
            let no_pipe = |error: io::Error| {
                not_made("no pipe for its standard input, output or error", &error)
            };
            Ok(match wanted {
                Stdio::Null => Source::Null,
                Stdio::Forward if place == 0 => Source::Null,
                Stdio::Forward => daemon.forward(place == 2, &mut tag).map_err(no_pipe)?,
                Stdio::Inherit => Source::Inherit,
                Stdio::Merge if place == 2 => Source::LikeOutput,
                Stdio::File { path: file, append } => Source::File {
                    path: path(file),
                    append,
                },
                Stdio::Channel(channel) => {
                    Source::Fd(daemon.pipe(place, channel).map_err(no_pipe)?)
                }
                other => {
                    return Err(format!(
                        "{other:?} is nothing for {}",
                        ["standard input", "standard output", "standard error"][place]
                    ));
                }
            })
        };
        let sources = [
            source(self, 0, input)?,
            source(self, 1, output)?,
            source(self, 2, error)?,
        ];
        Ok((tag, sources))
    }

    /// A pipe for standard output or error, whose other end is read from now on.
    fn forward(&mut self, is_error: bool, tag: &mut Tag) -> io::Result<Source> {
        let (end, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        let label = match self.label_of_node() {
            Label::Text(node) if self.job.config.text(&keys::LABEL) == "full" => {
                let tag = tag.get_or_insert_with(|| watch::channel(0).0);
                Label::Process(node, tag.subscribe())
            }
            other => other,
        };
        self.follow(is_error, label, end)?;
        Ok(Source::Fd(theirs))
    }

    /// What stands before lines that are of no single process.
    fn label_of_node(&self) -> Label {
        match self.job.config.text(&keys::LABEL) {
            "node" | "full" => Label::Text(self.job.node.to_string()),
            _ => Label::None,
        }
    }

    /// A pipe whose other end is a channel.
    fn pipe(&self, place: usize, channel: ObjectId) -> io::Result<OwnedFd> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        let member = self.node.member();
        if place == 0 {
            pipes::feed(member, channel, write)?;
            Ok(read)
        } else {
            pipes::drain(member, channel, read)?;
            Ok(write)
        }
    }

    fn follow(&mut self, is_error: bool, label: Label, end: OwnedFd) -> io::Result<()> {
        let processes = &mut self.processes;
        // Now and then: with ten thousand live processes each look takes its time.
        if processes.readers.len() >= 2 * processes.readers_kept.max(64) {
            processes.readers.retain(|reader| !reader.is_finished());
            processes.readers_kept = processes.readers.len();
        }
        rustix::io::ioctl_fionbio(&end, true)?;
        let reader = self.sink.follow(
            is_error,
            label,
            end,
            self.refused[usize::from(is_error)].subscribe(),
        )?;
        processes.readers.push(reader);
        Ok(())
    }

    pub(super) fn expect(&mut self, process: Process, told: StartedFor, name: String, tag: Tag) {
        let pending = Pending {
            process,
            told,
            name,
            tag,
            doomed: false,
        };
        let number = pending.process.number;
        self.processes.pending.insert(number, pending);
    }

    /// A process was started, or not.
    pub(super) fn started(&mut self, number: u64, result: Result<u32, String>) -> Option<End> {
        let pending = self.processes.pending.remove(&number)?;
        let Pending {
            process,
            told,
            name,
            tag,
            doomed,
        } = pending;
        let object = process.object;
        let pid = match result {
            Ok(pid) => pid,
            Err(text) => {
                self.processes.prune_early();
                self.node.forget_process(object);
                self.give_back(number);
                if process.head {
                    journal::say(&text);
                    return self.program_ended(status_of(program::NOT_EXECUTABLE));
                }
                let text = match text.starts_with(&name) {
                    true => text,
                    false => format!("{name}: {text}"),
                };
                self.told(told, Err((Code::SpawnFailed, text)));
                return None;
            }
        };
        self.node.process_started(object, pid);
        if let Some(tag) = tag {
            tag.send_replace(pid);
        }
        if process.head {
            self.head_runs(pid);
        }
        let ended = self.processes.runs(pid, process);
        if doomed && ended.is_none() {
            self.kill_doomed(pid);
        }
        let spawned = Spawned {
            process: object,
            pid,
        };
        self.told(told, Ok(spawned));
        ended.and_then(|status| self.ended(pid, status))
    }
}

fn no_interpreter(error: io::Error) -> String {
    not_made("no warm interpreter", &error)
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
