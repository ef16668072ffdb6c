//! The workload manager's word that a node is down: its own command is asked, by daemons that see no majority of the nodes.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dragon_protocol::{NodeIndex, env};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::{Job, Manager};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(10);
/// The longest answer: some thousand bytes for each node.
const LONGEST: u64 = 16 << 20;

/// How to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Slurm's `scontrol`.
    Slurm,
    /// `pbsnodes` of PBS.
    Pbs,
}

impl Question {
    /// Who can be asked about the nodes of a job. `None`: nobody.
    #[must_use]
    pub fn for_job(job: &Job) -> Option<Self> {
        match job.manager {
            Manager::Slurm { .. } => Some(Self::Slurm),
            Manager::Client { .. } => None,
            _ => std::env::var_os("PBS_JOBID").map(|_| Self::Pbs),
        }
    }

    /// Asks which of some nodes are down. Whatever starts this reaps the process that is asked.
    ///
    /// # Errors
    /// When there is no answer within some seconds.
    pub async fn ask(self, nodes: Vec<(NodeIndex, String)>) -> Result<Vec<NodeIndex>> {
        let hosts: Vec<&str> = nodes.iter().map(|(_, host)| host.as_str()).collect();
        let said = output_of(self.command(&hosts)).await?;
        let down = self.down(&said);
        let is_down = |host: &str| down.iter().any(|name| same_host(name, host));
        let nodes = nodes.into_iter().filter(|(_, host)| is_down(host));
        Ok(nodes.map(|(node, _)| node).collect())
    }

    fn command(self, hosts: &[&str]) -> Command {
        match self {
            Self::Slurm => {
                let mut command = Command::new("scontrol");
                command.args(["-o", "show", "node", &hosts.join(",")]);
                command
            }
            Self::Pbs => {
                let folder = super::pbs::installation();
                let program = folder.map(|folder| folder.join("bin/pbsnodes"));
                let mut command = Command::new(program.unwrap_or_else(|_| "pbsnodes".into()));
                command.args(["-F", "json"]).args(hosts);
                command
            }
        }
    }

    /// The hosts that are down, in an answer. One that only does not respond to the manager is none: its manager's daemon may be
    /// away for a moment.
    fn down(self, said: &str) -> Vec<String> {
        match self {
            Self::Slurm => said.lines().filter_map(slurm_down).collect(),
            Self::Pbs => pbs_down(said).unwrap_or_default(),
        }
    }
}

/// Whether Slurm kills a step at the first bad exit of a task: as srun was told, else as the site has it.
pub async fn kills_on_bad_exit() -> bool {
    let told = [env::STEP_BAD_EXIT, "SLURM_KILL_BAD_EXIT"].map(std::env::var);
    let mut told = told.into_iter().flatten();
    if let Some(told) = told.find(|told| !told.is_empty()) {
        return told != "0";
    }
    let mut command = Command::new("scontrol");
    command.args(["show", "config"]);
    match output_of(command).await {
        Ok(said) => said.lines().any(is_kill_on_bad_exit),
        Err(error) => {
            tracing::warn!("whether a bad exit ends the step: {error:#}");
            false
        }
    }
}

/// `KillOnBadExit           = 1`
fn is_kill_on_bad_exit(line: &str) -> bool {
    let setting = line.split_once('=');
    setting.is_some_and(|(name, value)| name.trim() == "KillOnBadExit" && value.trim() == "1")
}

/// What a command of the workload manager's says. Whatever starts it reaps it.
async fn output_of(mut command: Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .env_remove(env::STEP_KEY)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command
        .spawn()
        .with_context(|| format!("{name} cannot be asked"))?;
    let process = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let process = process.map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    let out = child.stdout.take().context("no pipe")?;
    let out = pipe::Receiver::from_owned_fd(nonblocking(out.into())?)?;
    let mut said = String::new();
    let read = timeout(LIMIT, out.take(LONGEST).read_to_string(&mut said)).await;
    if read.is_err() {
        if let Some(Ok(process)) = process {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        bail!("{name} has not answered within {LIMIT:?}");
    }
    read?.with_context(|| format!("{name} was not understood"))?;
    if said.trim().is_empty() {
        let words: Vec<_> = command
            .get_args()
            .map(|word| word.to_string_lossy())
            .collect();
        bail!("{name} {} says nothing", words.join(" "));
    }
    Ok(said)
}

/// `NodeName=n1 … State=DOWN*+DRAIN …`
fn slurm_down(line: &str) -> Option<String> {
    let field = |name: &str| {
        let mut words = line.split_whitespace();
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let mut states = field("State")?.split('+');
    let is_down = |state: &str| state.trim_end_matches(|c: char| !c.is_alphabetic()) == "DOWN";
    states
        .any(is_down)
        .then(|| field("NodeName"))?
        .map(str::to_owned)
}

/// `{"nodes": {"n1": {"Mom": "n1.site", "state": "down,offline", …}, …}}`
fn pbs_down(said: &str) -> Option<Vec<String>> {
    let said: Value = serde_json::from_str(said).ok()?;
    let nodes = said.get("nodes")?.as_object()?;
    let is_down = |node: &Value| {
        let state = node.get("state").and_then(Value::as_str);
        state.is_some_and(|state| state.split(',').any(|word| word.trim() == "down"))
    };
    let down = nodes.iter().filter(|(_, node)| is_down(node));
    let names = down.flat_map(|(name, node)| {
        let mom = node.get("Mom").and_then(Value::as_str);
        std::iter::once(name.as_str()).chain(mom)
    });
    Some(names.map(str::to_owned).collect())
}

/// Whether two names are of one host: one may be without its domain.
fn same_host(one: &str, other: &str) -> bool {
    let is_address = |name: &str| name.parse::<std::net::IpAddr>().is_ok();
    if one == other || is_address(one) || is_address(other) {
        return one == other;
    }
    let parts = |name: &str| match name.split_once('.') {
        Some((host, domain)) => (host.to_owned(), Some(domain.to_owned())),
        None => (name.to_owned(), None),
    };
    let ((host, domain), (other, other_domain)) = (parts(one), parts(other));
    host == other && (domain.is_none() || other_domain.is_none())
}

fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_site_says_of_bad_exits_is_read() {
        assert!(is_kill_on_bad_exit("KillOnBadExit           = 1"));
        assert!(!is_kill_on_bad_exit("KillOnBadExit           = 0"));
        assert!(!is_kill_on_bad_exit("KillWait                = 1"));
    }

    #[test]
    fn slurm_says_who_is_down() {
        let said = "NodeName=n1 Arch=x86_64 CPUAlloc=0 State=DOWN*+DRAIN ThreadsPerCore=1\n\
            NodeName=n2 State=ALLOCATED* Reason=DOWN\n\
            NodeName=n3 State=IDLE+NOT_RESPONDING\n\
            NodeName=n4 State=DOWN+NOT_RESPONDING ThreadsPerCore=1\n\
            slurm_load_node error: Invalid node name specified\n";
        assert_eq!(Question::Slurm.down(said), ["n1", "n4"]);
    }

    #[test]
    fn pbs_says_who_is_down() {
        let said = r#"{"timestamp":1,"nodes":{
            "n1":{"Mom":"n1.site","state":"down"},
            "n2":{"Mom":"n2.site","state":"offline"},
            "n3":{"Mom":"n3.site","state":"state-unknown,down"},
            "n4":{"Mom":"n4.site","state":"job-busy"}}}"#;
        let expected = ["n1", "n1.site", "n3", "n3.site"];
        assert_eq!(Question::Pbs.down(said), expected);
        assert_eq!(Question::Pbs.down("no such node"), [""; 0]);
    }

    #[test]
    fn hosts_with_and_without_their_domain() {
        for (one, other, same) in [
            ("n1", "n1", true),
            ("n1.site", "n1", true),
            ("n1.site", "n1.other", false),
            ("n10", "n1", false),
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.1", "10", false),
        ] {
            assert_eq!(same_host(one, other), same, "{one} {other}");
        }
    }
}
