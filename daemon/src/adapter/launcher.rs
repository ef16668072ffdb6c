//! Started by the `dragon` command: it sends one framed [`LaunchSpec`], by a pipe of its own or, through a remote shell,
//! on standard input.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dragon_protocol::key::JobKey;
use dragon_protocol::launch::LaunchSpec;
use dragon_protocol::{NodeIndex, frame};

use super::task::Shape;
use super::{Job, Manager};
use crate::cli::RUNTIME_FAILED;
use crate::config::{Config, keys};

/// The source that stands for standard input.
pub const STDIN: &str = "-";
/// How long the nodes may take to find each other where nobody says.
pub const BRING_UP: Duration = Duration::from_secs(30);

/// Exit code of a daemon, other than the first, that did not come up. Only the launcher sees it.
pub const NOT_UP: u8 = 121;

/// What the launcher says by an argument, so that daemons of any release understand it: its own release and protocol, and
/// the rank of the daemon.
const FROM: &str = "--from=";

/// The argument that names the launcher's release, and the daemon's rank.
#[must_use]
pub fn from(rank: u32) -> String {
    let (release, protocol) = (dragon_protocol::RELEASE, dragon_protocol::PROTOCOL_VERSION);
    format!("{FROM}{release}/{protocol}/{rank}")
}

/// The exit code of a daemon that did not come up.
#[must_use]
pub fn not_up(arguments: &[OsString]) -> u8 {
    match parts(arguments) {
        Some((_, _, rank)) if rank != "0" => NOT_UP,
        _ => RUNTIME_FAILED,
    }
}

/// The rank of the daemon with these arguments, for messages.
#[must_use]
pub fn rank(arguments: &[OsString]) -> &str {
    parts(arguments).map_or("?", |(_, _, rank)| rank)
}

/// Refuses a launcher of another release: what it says cannot be read.
///
/// # Errors
/// A sentence with both releases.
pub fn check_release(arguments: &[OsString]) -> Result<()> {
    let Some((release, protocol, rank)) = parts(arguments) else {
        return Ok(());
    };
    let own = dragon_protocol::PROTOCOL_VERSION;
    ensure!(
        protocol.parse() == Ok(own),
        "the dragond of node {rank} ({}) is of release {} (protocol {own}), the dragon command that started it of release {release} (protocol {protocol}); use one release on all nodes",
        std::env::current_exe().unwrap_or_default().display(),
        dragon_protocol::RELEASE
    );
    Ok(())
}

fn parts(arguments: &[OsString]) -> Option<(&str, &str, &str)> {
    let mut words = arguments.iter().filter_map(|word| word.to_str());
    let mut parts = words
        .find_map(|word| word.strip_prefix(FROM))?
        .splitn(3, '/');
    Some((parts.next()?, parts.next()?, parts.next()?))
}

/// Reads the launcher's message.
///
/// # Errors
/// When it cannot be read or makes no sense.
pub fn read(source: &OsStr) -> Result<Job> {
    let by_stdin = source == STDIN;
    let spec: LaunchSpec = if by_stdin {
        read_frame(Stdin).context("no launch message on standard input")?
    } else {
        let file =
            File::open(source).with_context(|| format!("cannot open {}", source.display()))?;
        read_frame(file).with_context(|| format!("no launch message in {}", source.display()))?
    };
    ensure!(
        (spec.rank as usize) < spec.hosts.len(),
        "rank {} of {} nodes in the launch message",
        spec.rank,
        spec.hosts.len()
    );
    let node = NodeIndex::new(spec.rank).context("a rank of more than 24 bits")?;
    enter(&spec, node)?;
    let config = Config::from_pairs(&spec.settings)?;
    let bring_up = config.number(&keys::BRING_UP_LIMIT);
    let text = OsString::from_vec;
    Ok(Job {
        key: JobKey::new(spec.key),
        name: spec.job,
        node,
        hosts: spec.hosts,
        ports: config.ports(),
        fanout: spec.fanout.max(1),
        bring_up: bring_up.map_or(BRING_UP, Duration::from_secs),
        program: spec.program.into_iter().map(text).collect(),
        shape: Shape::Head,
        pool: config.number(&keys::POOL).unwrap_or(0),
        environment: spec
            .environment
            .into_iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect(),
        forward_output: spec.forward_output,
        siblings: 0,
        cpus: spec.cpus,
        network: config.network(),
        config,
        manager: if by_stdin {
            Manager::RemoteLauncher
        } else {
            Manager::Launcher {
                pid: launcher(source)?,
            }
        },
    })
}

/// The process in whose `/proc` the message lies.
fn launcher(source: &OsStr) -> Result<u32> {
    let mut parts = source.to_str().unwrap_or_default().split('/');
    let pid = parts.nth(2).and_then(|pid| pid.parse().ok());
    pid.with_context(|| {
        format!(
            "--launch {}: /proc/PID/fd/NUMBER is wanted, of the dragon command",
            source.display()
        )
    })
}

/// Goes to the directory in which programs are to run.
fn enter(spec: &LaunchSpec, node: NodeIndex) -> Result<()> {
    if spec.directory.is_empty() {
        return Ok(());
    }
    let directory = OsStr::from_bytes(&spec.directory);
    match std::env::set_current_dir(directory) {
        Err(error) if spec.directory_needed => Err(error).with_context(|| {
            let host = spec
                .hosts
                .get(spec.rank as usize)
                .map_or("?", String::as_str);
            format!("--cwd {} on node {node} ({host})", directory.display())
        }),
        // Not every directory is on every machine.
        _ => Ok(()),
    }
}

fn read_frame(mut source: impl Read) -> Result<LaunchSpec> {
    let mut head = [0; 4];
    source.read_exact(&mut head)?;
    let mut body = vec![0; frame::body_length(head)?];
    source.read_exact(&mut body)?;
    Ok(frame::decode(&body)?)
}

/// Standard input without a buffer: what follows the message is read elsewhere.
struct Stdin;

impl Read for Stdin {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        Ok(rustix::io::read(rustix::stdio::stdin(), buffer)?)
    }
}
