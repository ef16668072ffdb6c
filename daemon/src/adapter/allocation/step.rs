//! The step of an allocation in which its daemons run: one task a node, beside all other steps.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use dragon_protocol::env;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::NODE;
use crate::adapter::slurm;
use crate::config::{Config, keys};
use crate::journal::say;
use crate::readable::end_of;

/// How long an srun may take that has nothing to do.
const END_SOON: Duration = Duration::from_secs(5);
/// How long one may take whose daemons have ended or are killed, all but those that are out of reach.
const LAST_ENDS: Duration = Duration::from_secs(1);

/// A step that makes no demands on what the job has, so that later ones of any size run beside it. An "external launcher"
/// takes no resources at all; on releases of Slurm that do not know it, steps that overlap come close enough.
const EXTERNAL: [&str; 1] = ["--external-launcher"];
const OVERLAPPING: [&str; 2] = ["--overlap", "--mem=0"];

/// How long daemons that do not come up may take to end by themselves.
const STOPS: Duration = Duration::from_secs(2);

/// How long the step may take after a first daemon that ended in order, or is gone without a word: as long as Slurm may take to hear of
/// many nodes, or one that is cut off to notice and to end. srun would wait for ever for a daemon that hangs, or that it does not
/// reach.
const PATIENCE: Duration = Duration::from_secs(15);
/// The same in seconds, longer, for srun itself: a shell goes on after its runtime, and does not wait for the step.
const LAST_RESORT: &str = "--wait=30";

/// The srun that runs the daemons.
pub(super) struct Step {
    child: Child,
    end: AsyncFd<OwnedFd>,
}

impl Step {
    /// Starts the daemons, who are told where the keeper listens.
    pub(super) async fn start(keeper: &str, settings: &str, config: &Config) -> Result<Self> {
        let nodes = std::env::var("SLURM_JOB_NUM_NODES")
            .context("SLURM_JOB_NUM_NODES is not set: was this started by Slurm?")?;
        let mut key = [0; 32];
        getrandom::fill(&mut key).context("no random numbers from the kernel")?;
        let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut command = clean("srun");
        command
            .env(env::STEP_KEY, key)
            .env(env::STEP_MODE, NODE)
            .env(env::STEP_SETTINGS, settings)
            .env(env::STEP_KEEPER, keeper);
        if knows_external_launchers().await {
            command.args(EXTERNAL);
        } else {
            command.args(OVERLAPPING);
        }
        command.args([
            "--quiet",
            "--job-name=dragon",
            &format!("--nodes={nodes}"),
            "--ntasks-per-node=1",
            "--export=ALL",
            "--input=none",
            // All CPUs of the job are the runtime's, and no daemon is a rank of an MPI program.
            "--cpu-bind=none",
            "--mpi=none",
            // What a lost node means is for the daemons to say, whatever the site has set.
            "--kill-on-bad-exit=0",
        ]);
        if config.text(&keys::ON_NODE_FAILURE) == "continue" {
            command.args(["--no-kill", "--wait=0"]);
        } else {
            command.arg(LAST_RESORT);
        }
        let child = command
            .arg(std::env::current_exe().context("cannot find this program's own path")?)
            .stdin(Stdio::null())
            // What is typed at the terminal of a shell is none of its business.
            .process_group(0)
            .spawn()
            .context("cannot start srun, which starts the daemons of the job")?;
        let end = end_of(child.id())?;
        Ok(Self { child, end })
    }

    /// Waits until it has ended.
    pub(super) async fn ended(&self) -> Result<()> {
        drop(self.end.readable().await?);
        Ok(())
    }

    /// Waits until it has ended, whose runtime had this attach socket, and whether that said that the rest is out of its reach. Has
    /// Slurm kill what does not end.
    pub(super) async fn ends(&mut self, runtime: &OsStr, out_of_reach: bool) {
        let limit = if out_of_reach { LAST_ENDS } else { PATIENCE };
        if self.has_ended_within(limit).await {
            return;
        }
        if let Some(step) = step_of(runtime) {
            if !out_of_reach {
                say(&format!(
                    "daemons of this job did not end within {limit:?} of the first one; their step {step} is cancelled"
                ));
            }
            slurm::cancel(step).await;
        }
        self.give_up().await;
    }

    /// Ends it, whose daemons have said why they do not come up.
    pub(super) async fn stop(&mut self) {
        if self.has_ended_within(STOPS).await {
            return;
        }
        let _ = rustix::process::pidfd_send_signal(&self.end, Signal::TERM);
        self.give_up().await;
    }

    async fn has_ended_within(&mut self, limit: Duration) -> bool {
        let ended = timeout(limit, self.ended()).await.is_ok();
        if ended {
            let _ = self.child.wait();
        }
        ended
    }

    /// What srun still waits for is out of its reach.
    async fn give_up(&mut self) {
        if !self.has_ended_within(LAST_ENDS).await {
            say(
                "srun does not hear of the end of all daemons of this job; Slurm ends them with the job",
            );
            // srun is two processes: the other one would go on waiting.
            if let Some(group) = Pid::from_raw(self.child.id().cast_signed()) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.child.wait();
        }
    }
}

/// The step that a runtime is, as the name of an attach socket has it: `dragon/UID/JOB.STEP/…`.
fn step_of(runtime: &OsStr) -> Option<&str> {
    runtime.to_str()?.split('/').nth(2)
}

/// Whether srun knows steps for launchers: it says its release when it does, else what is wrong. One that says nothing in time
/// is taken for one that does not.
async fn knows_external_launchers() -> bool {
    let asked = clean("srun")
        .args(EXTERNAL)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut srun) = asked else {
        return false;
    };
    if let Ok(end) = end_of(srun.id())
        && timeout(END_SOON, end.readable()).await.is_err()
    {
        // It may have ended in between.
        let _ = srun.kill();
    }
    srun.wait().is_ok_and(|status| status.success())
}

/// A command of Slurm whose step has the shape that its arguments say, whatever shape the job has: in a script srun takes
/// the job's options from its environment.
fn clean(command: &str) -> Command {
    let mut command = Command::new(command);
    for (name, _) in std::env::vars_os() {
        if shapes_steps(&name) {
            command.env_remove(name);
        }
    }
    command.env_remove(env::RUNTIME);
    command
}

/// Whether a variable tells srun, or what it starts, about this job: all but where Slurm is, and which job it is.
fn shapes_steps(name: &OsStr) -> bool {
    const KEPT: [&str; 3] = ["SLURM_CONF", "SLURM_JOB_ID", "SLURM_JWT"];
    const OF_SLURM: [&str; 7] = [
        "SLURM_", "SLURMD_", "SBATCH_", "SALLOC_", "SRUN_", "PMI_", "PMIX_",
    ];
    let name = name.to_string_lossy();
    !KEPT.contains(&name.as_ref()) && OF_SLURM.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a variable hands `--dragon` on to the steps of a job.
#[must_use]
pub fn is_option(name: &OsStr) -> bool {
    // Slurm's own prefix, and the plugin's name.
    name.to_string_lossy()
        .ends_with("SLURM_SPANK_OPTION_dragon_dragon")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bends_a_step_is_left_out() {
        for (name, bends) in [
            ("SLURM_NTASKS_PER_NODE", true),
            ("SLURM_CPUS_PER_TASK", true),
            ("SLURM_EXPORT_ENV", true),
            ("SLURM_SPANK__SLURM_SPANK_OPTION_dragon_dragon", true),
            ("SBATCH_MEM_PER_NODE", true),
            ("SLURM_JOB_ID", false),
            ("SLURM_CONF", false),
            ("PATH", false),
            ("DRAGON_POOL", false),
        ] {
            assert_eq!(shapes_steps(OsStr::new(name)), bends, "{name}");
        }
    }

    #[test]
    fn a_runtime_tells_its_step() {
        let name = OsStr::new("dragon/1000/4711.0/0/00fe");
        assert_eq!(step_of(name), Some("4711.0"));
        assert_eq!(step_of(OsStr::new("dragon")), None);
    }

    #[test]
    fn the_option_is_told_from_others() {
        for (name, is) in [
            ("SLURM_SPANK__SLURM_SPANK_OPTION_dragon_dragon", true),
            ("_SLURM_SPANK_OPTION_dragon_dragon", true),
            ("SLURM_SPANK__SLURM_SPANK_OPTION_pyxis_container", false),
        ] {
            assert_eq!(is_option(OsStr::new(name)), is, "{name}");
        }
    }
}
