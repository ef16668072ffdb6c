//! What can happen to a job of Slurm, in each mode, as far as `slurm_head.rs`, `slurm_spmd.rs` and `slurm_alloc.rs` do not have it: what is
//! said, how the job ends, and that nothing is left on any node. Each row prints how long that took.

#![allow(clippy::unwrap_used)]

use std::process::ExitCode;

use dragon_tests::cluster::Cluster;
use dragon_tests::faults::{ALL, End, Expected, Job, Mode, STEPS, site};
use dragon_tests::local::{eventually_empty, run};
use dragon_tests::suite;

fn main() -> ExitCode {
    suite::run_with_slow(
        site,
        &[
            (
                "sigterm_of_srun_ends_the_step",
                sigterm_of_srun_ends_the_step,
            ),
            (
                "killed_srun_leaves_tasks_running",
                killed_srun_leaves_tasks_running,
            ),
            (
                "a_lost_srun_of_an_allocation_ends_the_job",
                a_lost_srun_of_an_allocation_ends_the_job,
            ),
            (
                "interrupts_end_a_head_at_the_second",
                interrupts_end_a_head_at_the_second,
            ),
            ("slurmd_may_be_restarted", slurmd_may_be_restarted),
            ("slurmctld_may_be_restarted", slurmctld_may_be_restarted),
            (
                "a_killed_slurmstepd_on_any_node",
                a_killed_slurmstepd_on_any_node,
            ),
        ],
        &[
            (
                (
                    "a_daemon_that_hangs_at_its_start",
                    a_daemon_that_hangs_at_its_start,
                ),
                "takes half a minute",
            ),
            (
                ("a_daemon_that_hangs_later", a_daemon_that_hangs_later),
                "takes a minute and a half",
            ),
            (
                ("a_link_that_is_cut", a_link_that_is_cut),
                "takes half a minute",
            ),
            (
                (
                    "a_kill_wait_shorter_than_the_grace",
                    a_kill_wait_shorter_than_the_grace,
                ),
                "takes a minute",
            ),
            (
                ("a_node_that_dies", a_node_that_dies),
                "Slurm looks for nodes every few seconds",
            ),
            (
                ("the_time_limit_ends_tasks", the_time_limit_ends_tasks),
                "Slurm looks at its limits every 30 s",
            ),
        ],
    )
}

const SLEEPS: &str = "echo ready; sleep 1000";
const BADLY: Expected<'_> = Expected {
    said: "",
    end: End::Badly,
};

/// The srun of the login node; its child would cancel the step when it is gone.
const SRUN: &str = "pgrep -x srun -u alice | sort -n | head -n 1";

fn sigterm_of_srun_ends_the_step(cluster: &Cluster) {
    for mode in STEPS {
        let job = Job::submit(cluster, mode, "", SLEEPS).ready();
        job.as_root("ctl", &format!("kill -TERM $({SRUN})"));
        job.ends("srun SIGTERM", BADLY);
    }
}

fn killed_srun_leaves_tasks_running(cluster: &Cluster) {
    let program = "echo ready; while :; do echo beat >> beats; sleep 0.05; done";
    let job = Job::submit(cluster, Mode::Spmd, "", program).ready();
    job.as_root("ctl", "kill -9 $(pgrep -x srun | sort -rn)");
    let beats = cluster.home("alice").join("beats");
    let count = || std::fs::metadata(&beats).map_or(0, |file| file.len());
    let before = count();
    eventually_empty("the tasks", || {
        let more = count() > before + 100;
        if more {
            String::new()
        } else {
            "no more beats".to_owned()
        }
    });
    cluster.login(["scancel", "-u", "alice"]);
    job.ends("srun SIGKILL, then scancel", BADLY);
    std::fs::remove_file(&beats).unwrap();
}

/// The one that the keeper has started. Nobody is there then to say what the daemons say.
fn a_lost_srun_of_an_allocation_ends_the_job(cluster: &Cluster) {
    for signal in ["TERM", "KILL"] {
        let job = Job::submit(cluster, Mode::Allocation, "", SLEEPS).ready();
        job.as_root("n1", &format!("kill -{signal} $({SRUN})"));
        let expected = Expected {
            said: "the runtime of this job has ended",
            end: End::Code(125),
        };
        job.ends(&format!("the daemons' srun SIG{signal}"), expected);
    }
}

/// At the first one srun asks, the second one within a second goes to the head, and a third one ends the step.
fn interrupts_end_a_head_at_the_second(cluster: &Cluster) {
    let trap = "trap 'echo alive' USR1; echo ready; while :; do sleep 0.05; done";
    let job = Job::submit(cluster, Mode::Head, "", trap).ready();
    let srun = job.as_root("ctl", SRUN).out;
    let srun = srun.trim();
    job.as_root("ctl", &format!("kill -INT {srun}"));
    cluster.login(["scancel", "-s", "USR1", &job.id()]);
    job.says("alive", 1);
    job.as_root(
        "ctl",
        &format!("while kill -INT {srun} 2> /dev/null; do sleep 0.2; done"),
    );
    job.ends("Ctrl-C once, twice", BADLY);
}

/// In the place of the daemon of a node, something that never answers.
fn a_daemon_that_hangs_at_its_start(cluster: &Cluster) {
    let stops = cluster.site().root().join("stops");
    std::fs::write(&stops, "#!/bin/sh\nkill -STOP $$\n").unwrap();
    let (stops, dragond) = (stops.display(), cluster.site().dragond());
    let dragond = dragond.display();
    for node in ["n1", "n3"] {
        let script = format!("chmod 755 {stops} && mount --bind {stops} {dragond}");
        let _hangs = Done::on(cluster, node, &script, &format!("umount -l {dragond}"));
        // In front of a script stands the keeper, which is as good as the script.
        let modes = if node == "n1" { &STEPS[..] } else { &ALL };
        for &mode in modes {
            let job = Job::submit(cluster, mode, "bring_up_limit=2", SLEEPS);
            let expected = Expected {
                said: node,
                end: End::Badly,
            };
            job.ends(
                &format!("dragond SIGSTOP at its start on {node} (limit 2 s)"),
                expected,
            );
        }
    }
}

/// Something that root did to a node, until this goes.
struct Done<'a> {
    cluster: &'a Cluster,
    node: &'a str,
    undo: String,
}

impl<'a> Done<'a> {
    fn on(cluster: &'a Cluster, node: &'a str, script: &str, undo: &str) -> Self {
        let undo = undo.to_owned();
        let done = Self {
            cluster,
            node,
            undo,
        };
        done.run(script);
        done
    }

    fn run(&self, script: &str) {
        let words = ["-u", "root", "sh", "-c", script];
        let done = run(&mut self.cluster.on(self.node, words));
        assert_eq!(done.code, Some(0), "{script}: {done:?}");
    }
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.run(&self.undo);
    }
}

fn a_daemon_that_hangs_later(cluster: &Cluster) {
    for (mode, node) in [
        (Mode::Head, "n1"),
        (Mode::Head, "n3"),
        (Mode::Spmd, "n1"),
        (Mode::Spmd, "n3"),
        (Mode::Allocation, "n3"),
    ] {
        let job = Job::submit(cluster, mode, "node_limit=1", SLEEPS).ready();
        job.signal_daemon(node, "STOP");
        let said = format!("the daemon on {node} does not answer");
        let expected = Expected {
            said: &said,
            end: End::Badly,
        };
        job.ends(&format!("dragond SIGSTOP on {node} (limit 1 s)"), expected);
    }
}

/// A program that ends well when it is told to, and the runtime is there.
const GOES_ON: &str =
    "echo ready; until [ -e go ]; do sleep 0.05; done; dragon status | grep -o '3 nodes up'";

/// The daemon of Slurm on a node ends and is started again: the job goes on and ends well.
fn goes_on_without(cluster: &Cluster, node: &str, row: &str) {
    let go = cluster.home("alice").join("go");
    for mode in ALL {
        let job = Job::submit(cluster, mode, "", GOES_ON).ready();
        cluster.restart_slurm(node);
        eventually_empty("Slurm", || {
            let asked = cluster.login(["scontrol", "show", "job"]);
            if asked.code == Some(0) {
                String::new()
            } else {
                asked.err
            }
        });
        std::fs::write(&go, "").unwrap();
        let expected = Expected {
            said: "3 nodes up",
            end: End::Code(0),
        };
        job.ends(row, expected);
        std::fs::remove_file(&go).unwrap();
    }
    cluster.revive();
}

fn slurmd_may_be_restarted(cluster: &Cluster) {
    goes_on_without(cluster, "n2", "slurmd killed and started again");
}

fn slurmctld_may_be_restarted(cluster: &Cluster) {
    goes_on_without(cluster, "ctl", "slurmctld ended and started again");
}

fn a_killed_slurmstepd_on_any_node(cluster: &Cluster) {
    for (mode, node) in [
        (Mode::Head, "n1"),
        (Mode::Spmd, "n1"),
        (Mode::Allocation, "n1"),
        (Mode::Allocation, "n3"),
    ] {
        let job = Job::submit(cluster, mode, "", SLEEPS).ready();
        // That of the daemons' step: a batch script has one, too.
        job.as_root(node, "kill -9 $(pgrep -f '^slurmstepd: .[0-9]*\\.0\\]')");
        let expected = if mode == Mode::Allocation {
            Expected {
                said: "the runtime of this job has ended",
                end: End::Code(125),
            }
        } else {
            // srun itself waits for ever for it.
            Expected {
                said: "",
                end: End::Never,
            }
        };
        job.ends(&format!("slurmstepd SIGKILL on {node}"), expected);
    }
    // Of a batch script: its keeper goes with it.
    let job = Job::submit(cluster, Mode::Allocation, "", SLEEPS).ready();
    job.as_root(
        "n1",
        "kill -9 $(pgrep -f '^slurmstepd: .[0-9]*\\.batch\\]')",
    );
    let expected = Expected {
        said: "",
        end: End::Never,
    };
    job.ends("slurmstepd SIGKILL of the script", expected);
}

/// Between two nodes alone: Slurm reaches both.
fn a_link_that_is_cut(cluster: &Cluster) {
    for mode in ALL {
        let job = Job::submit(cluster, mode, "node_limit=1", SLEEPS).ready();
        let route = "blackhole 10.77.0.3";
        let _cut = Done::on(
            cluster,
            "n1",
            &format!("ip route add {route}"),
            &format!("ip route del {route}"),
        );
        let expected = Expected {
            // Either side says it of the other, as far as Slurm lets it.
            said: " is lost; the job ends",
            end: End::Badly,
        };
        job.ends("link cut between n1 and n3 (limit 1 s)", expected);
    }
}

/// Slurm kills what has not ended by then: the runtime needs no time of its own.
fn a_kill_wait_shorter_than_the_grace(cluster: &Cluster) {
    let deaf = "trap '' TERM; sleep 1000 & echo ready; while :; do sleep 0.05; done";
    cluster.configured("KillWait=1", || {
        for mode in ALL {
            let job = Job::submit(cluster, mode, "", deaf).ready();
            cluster.login(["scancel", "-u", "alice"]);
            // What srun ends with is its own affair: it waits for its tasks hardly longer than KillWait.
            let expected = Expected {
                said: "",
                end: End::Any,
            };
            job.ends("scancel, a deaf program, KillWait=1", expected);
        }
    });
}

fn a_node_that_dies(cluster: &Cluster) {
    for (mode, node) in [
        (Mode::Head, "n1"),
        (Mode::Spmd, "n1"),
        (Mode::Spmd, "n3"),
        (Mode::Allocation, "n1"),
        (Mode::Allocation, "n3"),
    ] {
        let mut job = Job::submit(cluster, mode, "node_limit=1", SLEEPS).ready();
        job.kill_node(node);
        // Slurm notices it later.
        let expected = Expected {
            said: "",
            end: End::Never,
        };
        job.ends(&format!("{node} dies"), expected);
        cluster.revive();
    }
}

/// Up to 30 s and a little more: slurmctld looks at the limits no more often.
fn the_time_limit_ends_tasks(cluster: &Cluster) {
    let told = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let job = Job::submit(cluster, Mode::Spmd, "", told).ready();
    // A limit counts minutes; the end of the job is a time like any other, which root may set.
    let id = job.id();
    job.as_root("ctl", &format!("scontrol update JobId={id} EndTime=now+1"));
    let expected = Expected {
        said: "told",
        end: End::Badly,
    };
    let programs = job.programs();
    let said = job.ends("the time limit", expected);
    assert_eq!(said.matches("told").count(), programs, "{said}");
}
