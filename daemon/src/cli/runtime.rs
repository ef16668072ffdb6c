//! Which runtime a command means, and the conversation with its daemon on this node.
//!
//! The attach sockets of this node stand in `/proc/net/unix`: abstract names `@dragon/UID/JOB/NODE/RANDOM`. Who listens is
//! checked as the daemon checks who connects: a stranger's runtime is left alone.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dragon_protocol::attach::{
    AttachHello, AttachReply, HELLO_MAGIC, REPLY_MAGIC, ROLE_INSPECT, mismatch_text, release_bytes,
};
use dragon_protocol::control::{ClientReply, ClientRequest, Numbered};
use dragon_protocol::inspect::{Inspect, NodeAnswer, Scope, Subject};
use dragon_protocol::{Code, NodeIndex, PROTOCOL_VERSION, env, frame};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::enter::enter_job;
use super::tools::{Ask, Which};
use crate::adapter::pbs::short;

/// How much longer than the nodes' answers take the daemon of this node may think.
const MARGIN: Duration = Duration::from_secs(30);
/// The longest refusal that is read.
const LONGEST_REFUSAL: u32 = 1 << 20;

/// A runtime's daemon on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The attach socket, without the leading NUL.
    pub name: String,
    /// The job.
    pub job: String,
    /// The node.
    pub node: NodeIndex,
}

/// The daemons of a user that listen on this machine.
///
/// # Errors
/// When the system does not tell.
pub fn listening() -> Result<Vec<Found>> {
    let table = std::fs::read("/proc/net/unix")
        .context("cannot read /proc/net/unix, which lists sockets")?;
    let user = rustix::process::getuid().as_raw();
    Ok(parse(&String::from_utf8_lossy(&table), user))
}

/// Reads `/proc/net/unix`: address, references, protocol, flags, type, state, inode, name.
fn parse(table: &str, user: u32) -> Vec<Found> {
    /// The flag of a socket that listens.
    const LISTENS: u32 = 0x1_0000;
    let socket = |line: &str| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
        let name = fields.get(7)?.strip_prefix('@')?;
        let rest = name.strip_prefix(&format!("dragon/{user}/"))?;
        let (rest, _random) = rest.rsplit_once('/')?;
        let (job, node) = rest.rsplit_once('/')?;
        (flags & LISTENS != 0).then_some(Found {
            name: name.to_owned(),
            job: job.to_owned(),
            node: NodeIndex::new(node.parse().ok()?)?,
        })
    };
    let mut found: Vec<_> = table.lines().filter_map(socket).collect();
    found.sort_by(|a, b| (&a.job, a.node).cmp(&(&b.job, b.node)));
    found
}

/// The runtime that a command means.
///
/// # Errors
/// When there is none, or several; the sentence lists them.
pub fn find(which: &Which, node: Option<NodeIndex>) -> Result<Found> {
    let all = listening()?;
    if which.job.is_none()
        && let Ok(name) = std::env::var(env::RUNTIME)
    {
        let named = all.iter().find(|found| found.name == name);
        // In a step of a job of Slurm the name may be that of the node where the job's script runs.
        let elsewhere = || all.iter().find(|found| is_of_slurms_job(&name, found));
        return match named.or_else(elsewhere) {
            // Of the same job, where another node of it is wanted.
            Some(own) => of_job(&all, &own.job, node.or(Some(own.node))),
            None if is_strangers(&name) => bail!(
                "@{name}, which {} names, is another user's runtime; unset {}, or name one of yours with --job{}",
                env::RUNTIME,
                env::RUNTIME,
                these(&all)
            ),
            None => bail!(
                "nobody listens on @{name}, which {} names: that runtime has ended, or this shell is in another network namespace; unset {}, or name a runtime with --job{}",
                env::RUNTIME,
                env::RUNTIME,
                these(&all)
            ),
        };
    }
    let around = ["SLURM_JOB_ID", "PBS_JOBID"].map(|name| std::env::var(name).ok());
    let around = around.into_iter().flatten().next();
    choose(&all, which.job.as_deref(), around.as_deref(), node)
}

/// Whether a daemon is of the runtime that an attach socket's name tells, and that is one of the job of Slurm around this
/// command.
fn is_of_slurms_job(name: &str, found: &Found) -> bool {
    let job = std::env::var("SLURM_JOB_ID");
    name.split('/').nth(2) == Some(&*found.job)
        && job.is_ok_and(|job| {
            found
                .job
                .strip_prefix(&*job)
                .is_some_and(|step| step.starts_with('.'))
        })
}

/// Whether the name of an attach socket is that of another user.
fn is_strangers(name: &str) -> bool {
    let user = name
        .strip_prefix("dragon/")
        .and_then(|rest| rest.split('/').next());
    user.is_some_and(|user| user != rustix::process::getuid().as_raw().to_string())
}

/// Of several runtimes the one that is meant: by its job; else that of the workload manager's job around this command; else
/// the only one.
fn choose(
    all: &[Found],
    job: Option<&str>,
    around: Option<&str>,
    node: Option<NodeIndex>,
) -> Result<Found> {
    let jobs = |wanted: Option<&str>| -> Vec<&str> {
        let is_it = |found: &&Found| wanted.is_none_or(|wanted| is_job(&found.job, wanted));
        let mut jobs: Vec<_> = all.iter().filter(is_it).map(|found| &*found.job).collect();
        jobs.dedup();
        jobs
    };
    let mut candidates = jobs(job.or(around));
    if candidates.is_empty() && job.is_none() {
        candidates = jobs(None);
    }
    match (candidates.as_slice(), job) {
        ([one], _) => of_job(all, one, node),
        ([], Some(job)) => bail!(
            "no runtime of yours on this machine is of job {job}{}",
            these(all)
        ),
        ([], None) => bail!(
            "no runtime of yours runs on this machine; start one with `dragon PROGRAM`, or name a job of the workload manager with --job"
        ),
        (several, _) => bail!(
            "{} runtimes of yours run on this machine; choose one with --job: {}",
            several.len(),
            several.join(", ")
        ),
    }
}

/// Whether a runtime belongs to a job: by its name, or as one of its steps. Names of runtimes of PBS lack the domain of the
/// server.
pub(super) fn is_job(name: &str, wanted: &str) -> bool {
    let is = |wanted: &str| {
        let step = name.strip_prefix(wanted);
        step.is_some_and(|step| step.is_empty() || step.starts_with('.'))
    };
    let short = short(wanted);
    let domain = wanted[short.len()..].trim_start_matches('.');
    // A number in the place of a domain is that of one runtime of several.
    is(wanted)
        || !domain.is_empty() && !domain.bytes().all(|byte| byte.is_ascii_digit()) && is(short)
}

fn of_job(all: &[Found], job: &str, node: Option<NodeIndex>) -> Result<Found> {
    let of_it = || all.iter().filter(|found| found.job == job);
    let wanted = of_it().find(|found| node.is_none_or(|node| found.node == node));
    wanted.cloned().with_context(|| {
        let here: Vec<_> = of_it().map(|found| found.node.to_string()).collect();
        format!(
            "node {} of job {job} is not on this machine, where its nodes {} are",
            node.map(|node| node.to_string()).unwrap_or_default(),
            here.join(", ")
        )
    })
}

pub(super) fn these(all: &[Found]) -> String {
    let mut jobs: Vec<_> = all.iter().map(|found| &*found.job).collect();
    jobs.dedup();
    match jobs.as_slice() {
        [] => "; no runtime of yours runs on this machine".to_owned(),
        some => format!("; on this machine run: {}", some.join(", ")),
    }
}

/// A conversation with a daemon.
#[derive(Debug)]
pub struct Conversation {
    stream: UnixStream,
    /// Number of the last request: there is one at a time.
    asked: u64,
}

impl Conversation {
    /// Connects to the daemon of a runtime, and checks who it is.
    ///
    /// # Errors
    /// When nobody listens, it is another user's, or of another release.
    pub fn with(found: &Found) -> Result<Self> {
        let name = &found.name;
        let address = SocketAddr::from_abstract_name(name)?;
        let stream = UnixStream::connect_addr(&address).with_context(|| {
            format!("nobody listens on @{name} any more: the runtime has ended")
        })?;
        let (mut stream, theirs) =
            with_owner(stream).context("the system does not tell who listens")?;
        let ours = rustix::process::getuid().as_raw();
        ensure!(
            theirs == ours,
            "@{name} belongs to user {theirs}, this command runs as user {ours}: a stranger's runtime"
        );
        stream.set_read_timeout(Some(MARGIN))?;
        let hello = AttachHello {
            magic: HELLO_MAGIC,
            protocol: PROTOCOL_VERSION.into(),
            role: ROLE_INSPECT.into(),
            release: release_bytes(),
            reserved: 0.into(),
        };
        stream.write_all(hello.as_bytes())?;
        let mut reply = [0; size_of::<AttachReply>()];
        silent(stream.read_exact(&mut reply))?;
        let reply = AttachReply::read_from_bytes(&reply)
            .ok()
            .filter(|reply| reply.magic == REPLY_MAGIC);
        let reply = reply.with_context(|| format!("what listens on @{name} is no runtime"))?;
        let mut body = vec![0; reply.body.get().min(LONGEST_REFUSAL) as usize];
        silent(stream.read_exact(&mut body))?;
        if reply.protocol.get() != PROTOCOL_VERSION {
            let ours = (release_bytes(), PROTOCOL_VERSION.into());
            bail!(mismatch_text(ours, (reply.release, reply.protocol)));
        }
        if reply.status.get() != Code::Ok.to_i32().cast_unsigned() {
            bail!("{}", String::from_utf8_lossy(&body));
        }
        Ok(Self { stream, asked: 0 })
    }

    /// Asks for answers of nodes.
    ///
    /// # Errors
    /// What the daemon refuses with, or that it is gone.
    pub fn inspect(
        &mut self,
        subject: Subject,
        scope: Scope,
        limit: u32,
        patience_ms: u32,
    ) -> Result<Vec<NodeAnswer>> {
        let patience = Duration::from_millis(patience_ms.into());
        self.stream.set_read_timeout(Some(patience + MARGIN))?;
        let question = Inspect {
            subject,
            limit,
            patience_ms,
        };
        self.say(&ClientRequest::Inspect(question, scope))?;
        match self.hear()? {
            ClientReply::Inspected(answers) => Ok(answers),
            other => bail!("the daemon answered something else: {other:?}"),
        }
    }

    /// Asks for something to which the answers come again and again; they are waited for without end.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub fn begin(&mut self, request: &ClientRequest) -> Result<()> {
        self.stream.set_read_timeout(None)?;
        self.say(request)
    }

    fn say(&mut self, request: &ClientRequest) -> Result<()> {
        let mut bytes = Vec::new();
        self.asked += 1;
        frame::encode_request(&(self.asked, request), &mut bytes)?;
        self.stream
            .write_all(&bytes)
            .context("the runtime has ended")
    }

    /// Waits until the next answer comes. False: nobody reads `out` any more.
    ///
    /// # Errors
    /// When the system cannot wait.
    pub fn comes_while_read(&self, out: &impl AsFd) -> Result<bool> {
        loop {
            // A pipe without a reader, or a terminal that is gone, says so unasked.
            let mut both = [
                PollFd::new(&self.stream, PollFlags::IN),
                PollFd::new(out, PollFlags::empty()),
            ];
            match poll(&mut both, None) {
                Ok(_) if !both[1].revents().is_empty() => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for the daemon"),
            }
        }
    }

    /// The next answer.
    ///
    /// # Errors
    /// What the daemon refuses with, or that it is gone.
    pub fn hear(&mut self) -> Result<ClientReply> {
        let mut head = [0; 4];
        silent(self.stream.read_exact(&mut head))?;
        let mut body = vec![0; frame::body_length(head)?];
        silent(self.stream.read_exact(&mut body))?;
        let (_, reply): Numbered<ClientReply> = frame::decode(&body)?;
        match reply {
            ClientReply::Failed(_, text) => bail!("{text}"),
            reply => Ok(reply),
        }
    }
}

/// Finds the runtime that is meant, and asks it.
///
/// # Errors
/// When there is none, or it does not answer.
pub fn ask(ask: &Ask, subject: Subject) -> Result<Vec<NodeAnswer>> {
    enter_job(&ask.which)?;
    let mut conversation = Conversation::with(&find(&ask.which, None)?)?;
    conversation.inspect(subject, ask.scope(), ask.limit, ask.patience)
}

/// Who listens. By tokio, since rustix has no value for the pid of a process in another namespace.
fn with_owner(stream: UnixStream) -> io::Result<(UnixStream, u32)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let _inside = runtime.enter();
    stream.set_nonblocking(true)?;
    let stream = tokio::net::UnixStream::from_std(stream)?;
    let user = stream.peer_cred()?.uid();
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok((stream, user))
}

/// Errors of a conversation in words.
fn silent<T: fmt::Debug>(read: io::Result<T>) -> Result<T> {
    read.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            anyhow::anyhow!("the runtime has ended")
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => anyhow::anyhow!(
            "the daemon does not answer; is it stopped (state T in ps), or are its nodes still coming up?"
        ),
        _ => anyhow::Error::new(error).context("the conversation with the daemon failed"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Num       RefCount Protocol Flags    Type St Inode Path
0000: 00000002 00000000 00010000 0001 01 100 @dragon/1000/4711.0/1/00ff
0000: 00000002 00000000 00010000 0001 01 101 @dragon/1000/4711.0/0/00fe
0000: 00000003 00000000 00000000 0001 03 102 @dragon/1000/4711.0/0/00fe
0000: 00000002 00000000 00010000 0001 01 103 @dragon/1000/77/0/00fd
0000: 00000002 00000000 00010000 0001 01 104 @dragon/2000/78/0/00fc
0000: 00000002 00000000 00010000 0001 01 105 /run/dragon/1000/79/0/x
0000: 00000002 00000000 00010000 0001 01 106 @dragon/1000/80/x/00fb
0000: 00000002 00000000 00010000 0001 01 107
";

    #[test]
    fn runtimes_belong_to_jobs() {
        for (name, job, belongs) in [
            ("4711.0", "4711", true),
            ("4711.0", "471", false),
            ("4711.0", "4711.0", true),
            ("12.pbs.77", "12", true),
            ("12.pbs.77", "12.pbs", true),
            ("12.pbs.77", "12.pbs.site.org", true),
            ("12.pbs.77", "12.pbs.77", true),
            ("12.pbs.77", "12.pbs.78", false),
            ("12.pbs.77", "12.other.site.org", false),
            ("12[3].pbs.77", "12[3]", true),
            ("12[3].pbs.77", "12", false),
        ] {
            assert_eq!(is_job(name, job), belongs, "{name} {job}");
        }
    }

    fn all() -> Vec<Found> {
        parse(TABLE, 1000)
    }

    fn at(n: u32) -> Option<NodeIndex> {
        NodeIndex::new(n)
    }

    #[test]
    fn only_listening_daemons_of_the_user_are_found() {
        let names: Vec<_> = all().into_iter().map(|found| found.name).collect();
        let expected = [
            "dragon/1000/4711.0/0/00fe",
            "dragon/1000/4711.0/1/00ff",
            "dragon/1000/77/0/00fd",
        ];
        assert_eq!(names, expected);
        assert!(parse(TABLE, 3000).is_empty());
    }

    #[test]
    fn the_job_decides_and_without_a_word_the_only_one() {
        let chosen = |job, slurm, node| choose(&all(), job, slurm, node).map(|found| found.name);
        let good = [
            ((Some("77"), None, None), "dragon/1000/77/0/00fd"),
            ((Some("4711"), None, None), "dragon/1000/4711.0/0/00fe"),
            ((Some("4711.0"), None, at(1)), "dragon/1000/4711.0/1/00ff"),
            ((None, Some("4711"), None), "dragon/1000/4711.0/0/00fe"),
            // What was said counts more than what is around.
            ((Some("77"), Some("4711"), None), "dragon/1000/77/0/00fd"),
        ];
        for ((job, slurm, node), name) in good {
            assert_eq!(chosen(job, slurm, node).unwrap(), name);
        }
        let bad = [
            ((None, None, None), "choose one with --job: 4711.0, 77"),
            // Another job of Slurm has no runtime here.
            ((None, Some("5"), None), "choose one with --job: 4711.0, 77"),
            (
                (Some("471"), None, None),
                "no runtime of yours on this machine is of job 471; on this machine run: 4711.0, 77",
            ),
            (
                (Some("4711"), None, at(2)),
                "node 2 of job 4711.0 is not on this machine, where its nodes 0, 1 are",
            ),
        ];
        for ((job, slurm, node), sentence) in bad {
            let error = chosen(job, slurm, node).unwrap_err().to_string();
            assert!(error.contains(sentence), "{error}");
        }
        let error = choose(&[], None, None, None).unwrap_err().to_string();
        assert!(
            error.contains("no runtime of yours runs on this machine"),
            "{error}"
        );
    }
}
