//! A site whose jobs have folders of their own in place of `/tmp` and `/dev/shm` (`job_container/tmpfs`): what is not inside does not see
//! them, and daemons, programs and attached shells are.

#![allow(clippy::unwrap_used)]

use std::process::ExitCode;

use dragon_tests::cluster::Cluster;
use dragon_tests::faults::{ALL, End, Expected, Job, Mode};
use dragon_tests::local::run;
use dragon_tests::suite;

fn main() -> ExitCode {
    suite::run(
        || {
            let container = "JobContainerType=job_container/tmpfs\nPrologFlags=Contain";
            // Since Linux 6.18 the number of a mount namespace is only larger than that of an older one of the same CPU, and one with a
            // smaller number cannot be mounted: slurmstepd's "ns base mount failed: Invalid argument".
            Cluster::slurm_with(3, &[("RIG_CONF", container), ("RIG_PIN", "1")])
        },
        &[
            ("every_mode_runs", every_mode_runs),
            (
                "a_shell_attaches_from_outside",
                a_shell_attaches_from_outside,
            ),
            ("a_lost_daemon_leaves_nothing", a_lost_daemon_leaves_nothing),
        ],
    )
}

const GOOD: Expected<'_> = Expected {
    said: "done",
    end: End::Code(0),
};

/// What the node has in its `/tmp` is not there, and the runtime needs none that others share.
fn every_mode_runs(cluster: &Cluster) {
    let of_node = |command| run(&mut cluster.on("n1", ["-u", "root", command, "/tmp/of-node"]));
    of_node("touch");
    let hello = cluster.site().example("hello_world.py");
    for mode in ALL {
        let program = match mode {
            Mode::Head => hello.clone(),
            Mode::Spmd => "dragon status".to_owned(),
            Mode::Allocation => format!("dragon {hello} && srun -N3 dragon status"),
        };
        let script = format!(
            "touch /tmp/of-job && [ ! -e /tmp/of-node ] && echo ready && {program} && echo done"
        );
        let job = Job::submit(cluster, mode, "", &script).ready();
        let said = job.ends("programs end", GOOD);
        let whole = if mode == Mode::Head {
            " (n3), "
        } else {
            "3 nodes up"
        };
        assert!(said.contains(whole), "{mode}: {said}");
    }
    of_node("rm");
}

fn a_shell_attaches_from_outside(cluster: &Cluster) {
    let go = cluster.home("alice").join("go");
    for mode in ALL {
        let script =
            "touch /tmp/of-job; echo ready; until [ -e go ]; do sleep 0.05; done; echo done";
        let job = Job::submit(cluster, mode, "", script).ready();
        let id = job.id();
        for node in ["0", "2"] {
            let looks = "ls /tmp; dragon status";
            let attach = ["dragon", "attach", "--job", &id, "--node", node];
            let attached = cluster.login([&attach[..], &["sh", "-c", looks]].concat());
            // A head and a script are on the first node alone.
            let sees = attached.out.contains("of-job") == (node == "0" || mode == Mode::Spmd);
            assert!(
                sees && attached.out.contains("3 nodes up"),
                "{mode}: {attached:?}"
            );
        }
        std::fs::write(&go, "").unwrap();
        job.ends("a shell attached", GOOD);
        std::fs::remove_file(&go).unwrap();
    }
}

fn a_lost_daemon_leaves_nothing(cluster: &Cluster) {
    for mode in ALL {
        let script = "touch /dev/shm/of-job; echo ready; sleep 1000";
        let job = Job::submit(cluster, mode, "", script).ready();
        job.signal_daemon("n2", "KILL");
        let expected = Expected {
            said: "node 1 (n2) is lost",
            end: End::Badly,
        };
        job.ends("dragond SIGKILL on n2", expected);
    }
}
