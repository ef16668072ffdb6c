//! A job of Slurm to which something happens: when that was said, when the job ended, and when nothing was left of it:
//! of the user, and of Slurm.

use std::cell::Cell;
use std::fmt;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::local::{Finished, WATCHDOG, eventually_empty, pause, run};

/// How a program comes to its runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `srun --dragon`, three nodes.
    Head,
    /// `srun --dragon=spmd`, several tasks on each of three nodes.
    Spmd,
    /// `sbatch --dragon`, three nodes.
    Allocation,
}

/// All modes.
pub const ALL: [Mode; 3] = [Mode::Head, Mode::Spmd, Mode::Allocation];
/// Those in which srun is the user's.
pub const STEPS: [Mode; 2] = [Mode::Head, Mode::Spmd];

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Head => "head",
            Self::Spmd => "spmd",
            Self::Allocation => "allocation",
        })
    }
}

/// Names another site for all rows than the usual one: `constrained`.
const SITE: &str = "DRAGON_TEST_SITE";

/// The nodes of all rows.
///
/// # Errors
/// Why there can be none here.
///
/// # Panics
/// When a site is asked for that there is not.
pub fn site() -> Result<Cluster, String> {
    match std::env::var(SITE).as_deref() {
        Err(_) => Cluster::slurm(3),
        Ok("constrained") => Cluster::slurm_constrained(3, &[]),
        Ok(other) => {
            panic!("{SITE}={other}: the one that there is besides the usual one is constrained")
        }
    }
}

/// The tasks of a step that is the program: two on each of three nodes, and four, more than there are CPUs, where they are bound to cores.
fn tasks(cluster: &Cluster) -> u32 {
    if cluster.is_constrained() { 12 } else { 6 }
}

/// A job of a user that says "ready" from each of its programs.
#[derive(Debug)]
pub struct Job<'a> {
    cluster: &'a Cluster,
    mode: Mode,
    submitter: Child,
    /// What it says, on a file that all nodes see.
    said: PathBuf,
    nodes: Vec<String>,
}

/// How a job ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this code of srun or sbatch.
    Code(i32),
    /// With any code but 0.
    Badly,
    /// With a code that is Slurm's to choose.
    Any,
    /// Not: srun waits for ever, as it would for any step.
    Never,
}

/// What a row expects.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// A part of what is said; empty: nothing has to be.
    pub said: &'a str,
    /// How the job ends.
    pub end: End,
}

impl<'a> Job<'a> {
    /// Submits a program of `sh` with these settings, for the user alice.
    #[must_use]
    pub fn submit(cluster: &'a Cluster, mode: Mode, settings: &str, program: &str) -> Self {
        Self::submit_with(cluster, mode, settings, &[], program)
    }

    /// With more options for Slurm.
    ///
    /// # Panics
    /// When it cannot be submitted.
    #[must_use]
    pub fn submit_with(
        cluster: &'a Cluster,
        mode: Mode,
        settings: &str,
        options: &[&str],
        program: &str,
    ) -> Self {
        thread_local!(static JOBS: Cell<u32> = const { Cell::new(0) });
        let number = JOBS.replace(JOBS.get() + 1);
        let name = format!("said-{number}");
        let said = cluster.home("alice").join(&name);
        let asked: &str = &format!(
            "--dragon={}{settings}",
            if mode == Mode::Spmd { "spmd," } else { "head," }
        );
        let output = format!("--output={name}");
        let tasks = format!("-n{}", tasks(cluster));
        let words = match mode {
            Mode::Head => [&["srun", "-N3", asked], options, &["sh", "-c", program]].concat(),
            Mode::Spmd => {
                let shape = ["srun", "-N3", &tasks, asked];
                let shared = if cluster.is_constrained() {
                    &["--overcommit", "--cpu-bind=cores"][..]
                } else {
                    &["--ntasks-per-node=2"]
                };
                [&shape[..], shared, options, &["sh", "-c", program]].concat()
            }
            Mode::Allocation => {
                let submit = [
                    "sbatch",
                    "--wait",
                    "--quiet",
                    "--no-requeue",
                    "-N3",
                    &output,
                ];
                [&submit[..], &[asked], options, &["--wrap", program]].concat()
            }
        };
        let mut command = cluster.on("ctl", words);
        if mode != Mode::Allocation {
            let file = File::create(&said).expect("homes can be written");
            let errors = file.try_clone().expect("a descriptor");
            command.stdout(file).stderr(errors);
        }
        let submitter = command.spawn().expect("the rig starts");
        Self {
            cluster,
            mode,
            submitter,
            said,
            nodes: cluster.nodes().collect(),
        }
    }

    /// Waits until all of its programs have said "ready".
    #[must_use]
    pub fn ready(self) -> Self {
        self.says("ready\n", self.programs());
        self
    }

    /// How many programs it has.
    #[must_use]
    pub fn programs(&self) -> usize {
        match self.mode {
            Mode::Spmd => tasks(self.cluster) as usize,
            Mode::Head | Mode::Allocation => 1,
        }
    }

    /// Waits until it has said something so many times.
    pub fn says(&self, text: &str, times: usize) {
        eventually_empty("the job", || {
            let said = self.said();
            let there = said.matches(text).count() >= times;
            if there {
                String::new()
            } else {
                format!("{text:?} {times} times in {said:?}")
            }
        });
    }

    /// What it has said.
    #[must_use]
    pub fn said(&self) -> String {
        // The file of a batch job is there when that has started.
        fs::read_to_string(&self.said).unwrap_or_default()
    }

    /// How it came to its runtime.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> String {
        let jobs = self.cluster.login(["squeue", "-h", "-t", "R", "-o", "%A"]);
        jobs.out.trim().to_owned()
    }

    /// Runs a script as root on a node.
    ///
    /// # Panics
    /// When it fails.
    pub fn as_root(&self, node: &str, script: &str) -> Finished {
        let done = run(&mut self.cluster.on(node, ["-u", "root", "sh", "-c", script]));
        assert_eq!(done.code, Some(0), "{script} on {node}: {done:?}");
        done
    }

    /// Sends a signal to the daemon of a node.
    pub fn signal_daemon(&self, node: &str, signal: &str) {
        self.as_root(node, &format!("kill -{signal} $({DAEMON})"));
    }

    /// Ends a node. Nothing can be left there, and nothing is looked for there.
    pub fn kill_node(&mut self, node: &str) {
        run(self.cluster.rig().args(["kill", node]));
        self.nodes.retain(|other| other != node);
    }

    /// Waits until the job has ended as expected and nothing of it is left; prints after what time that was, counted from now. Says
    /// what the job has said.
    ///
    /// # Panics
    /// When it is otherwise.
    pub fn ends(mut self, row: &str, expected: Expected<'_>) -> String {
        let fault = Instant::now();
        let (mut said, mut ours, mut clean, mut code) = (None, None, None, None);
        let over = expected.end == End::Never;
        while said.is_none() || clean.is_none() || (code.is_none() && !over) {
            if said.is_none() && self.said().contains(expected.said) {
                said = Some(fault.elapsed());
            }
            if code.is_none() {
                code = self.submitter.try_wait().expect("it can be waited for");
            }
            let left = self.left();
            // Where slurmstepd waits for others of its kind it is in the group of the job, and the user is not.
            let of_user = left
                .lines()
                .filter(|line| !line.is_empty() && !is_slurmstepd(line))
                .count();
            for (since, left) in [(&mut ours, of_user), (&mut clean, left.len())] {
                *since = since
                    .filter(|_| left == 0)
                    .or_else(|| (left == 0).then(|| fault.elapsed()));
            }
            assert!(
                fault.elapsed() < 2 * WATCHDOG,
                "{row}, {}: wanted {expected:?}; ended: {code:?}, said: {:?}, left: {left}",
                self.mode,
                self.said()
            );
            pause(Duration::from_millis(10));
        }
        let seconds = |time: Option<Duration>| time.unwrap_or_default().as_secs_f64();
        let sentence = match expected.said {
            "" => "     –".to_owned(),
            _ => format!("{:6.2}", seconds(said)),
        };
        println!(
            "{row:<42} {:<10} said after {sentence} s, nothing of the user left after {:6.2} s, nor of Slurm after {:6.2} s",
            self.mode,
            seconds(ours),
            seconds(clean)
        );
        let said = self.said();
        if let Some(code) = code.and_then(|status| status.code()) {
            let good = match expected.end {
                End::Code(wanted) => code == wanted,
                End::Badly => code != 0,
                End::Any => true,
                End::Never => false,
            };
            assert!(
                good,
                "{row}, {}: {expected:?}, but {code}: {said}",
                self.mode
            );
        }
        said
    }

    /// Everything that is left of it, on nodes that live.
    fn left(&self) -> String {
        let all = self.nodes.iter().map(|node| self.cluster.traces(node));
        all.collect::<Vec<_>>().join("\n").trim().to_owned()
    }
}

/// Whether what is left is Slurm's own: a process of the job that is in none of its steps.
fn is_slurmstepd(left: &str) -> bool {
    left.starts_with("/sys/fs/cgroup/") && !left.contains("/step_")
}

/// The submitter may wait for what Slurm does not know any more, and a job that did not end as expected may be there still.
impl Drop for Job<'_> {
    fn drop(&mut self) {
        self.cluster.login(["scancel", "-s", "KILL", "-u", "alice"]);
        if matches!(self.submitter.try_wait(), Ok(None)) {
            let script = "pkill -9 -u alice; exit 0";
            run(&mut self.cluster.on("ctl", ["-u", "root", "sh", "-c", script]));
        }
        let _ = self.submitter.wait();
        let _ = fs::remove_file(&self.said);
    }
}

/// Prints the pid of the daemon of a node: `dragond` is also in front of other tasks and of a batch script, where it is no
/// daemon. A daemon is what listens.
const DAEMON: &str = "ss -lxpH 2>/dev/null | grep -v /keeper/ | grep -o '@dragon/.*pid=[0-9]*' | head -n 1 | grep -o '[0-9]*$'";
