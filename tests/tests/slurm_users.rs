//! Nodes that several users share, on a real Slurm: of a runtime of one of them the others see and reach nothing. And jobs and steps of
//! one user on the same nodes, at once, do not mix.

#![allow(clippy::unwrap_used)]

use std::process::ExitCode;

use dragon_tests::cluster::Cluster;
use dragon_tests::faults::{ALL, End, Expected, Job, Mode};
use dragon_tests::local::{Finished, finish, run};
use dragon_tests::suite;

fn main() -> ExitCode {
    suite::run(
        || Cluster::slurm(3),
        &[
            (
                "another_user_reaches_nothing_by_command",
                another_user_reaches_nothing_by_command,
            ),
            (
                "another_user_reaches_nothing_by_the_kernel",
                another_user_reaches_nothing_by_the_kernel,
            ),
            ("jobs_at_once_do_not_mix", jobs_at_once_do_not_mix),
            ("steps_at_once_do_not_mix", steps_at_once_do_not_mix),
        ],
    )
}

/// Ends well when it is told to, and the runtime is there.
const PROGRAM: &str =
    "echo ready; until [ -e go ]; do sleep 0.05; done; dragon status | grep -o '3 nodes up'";

/// Has a look at a runtime of alice's in each mode, which then goes on and ends well.
fn beside_a_runtime(cluster: &Cluster, row: &str, look: impl Fn(&Job<'_>)) {
    let go = cluster.home("alice").join("go");
    for mode in ALL {
        let job = Job::submit(cluster, mode, "", PROGRAM).ready();
        look(&job);
        std::fs::write(&go, "").unwrap();
        let expected = Expected {
            said: "3 nodes up",
            end: End::Code(0),
        };
        job.ends(row, expected);
        std::fs::remove_file(&go).unwrap();
    }
}

/// A script of bob's on a node.
fn by_bob(cluster: &Cluster, node: &str, script: &str) -> Finished {
    run(&mut cluster.on(node, ["-u", "bob", "sh", "-c", script]))
}

fn another_user_reaches_nothing_by_command(cluster: &Cluster) {
    beside_a_runtime(cluster, "commands of another user", |job| {
        let id = job.id();
        // The name of a socket is no secret.
        let sockets = job
            .as_root("n1", "grep -o '@dragon/2001/[0-9].*' /proc/net/unix")
            .out;
        let runtime = sockets.lines().next().unwrap().trim_start_matches('@');
        let python = cluster.site().venv().join("bin/python");
        let attach = format!(
            "DRAGON_RUNTIME={runtime} {} -c 'import dragon; dragon.attach()'",
            python.display()
        );
        let inside = format!("DRAGON_RUNTIME={runtime} dragon status");
        let commands = [
            "attach true",
            "status",
            "status --all-nodes",
            "ps",
            "channels",
            "pools",
            "logs",
            "top --once",
        ];
        for node in ["ctl", "n1", "n3"] {
            let of_job = commands.map(|command| {
                format!(
                    "dragon {}",
                    command.replacen(' ', &format!(" --job {id} "), 1)
                )
            });
            let of_job = of_job.into_iter().map(|words| {
                if words.contains("--job") {
                    words
                } else {
                    format!("{words} --job {id}")
                }
            });
            for words in of_job.chain([attach.clone(), inside.clone()]) {
                let done = by_bob(cluster, node, &words);
                assert_ne!(done.code, Some(0), "{words} on {node}: {done:?}");
                assert!(!done.err.is_empty(), "{words} on {node}: {done:?}");
                assert!(!done.out.contains("sleep"), "{words} on {node}: {done:?}");
            }
        }
        // alice's own commands find it.
        let own = cluster.login(["dragon", "status", "--job", &id]);
        assert!(own.out.contains("3 nodes up"), "{own:?}");
        let joined = by_bob(cluster, "ctl", &format!("srun --overlap --jobid {id} true"));
        assert_ne!(joined.code, Some(0), "{joined:?}");
    });
}

/// Everything of alice's that bob can open; processes that end while he looks are passed over.
const OPENS: &str = "find /dev/shm /tmp /run -user alice -readable 2> /dev/null
    for p in $(pgrep -u alice); do
        for f in environ maps mem auxv stack; do
            dd if=/proc/$p/$f of=/dev/null bs=1 count=1 2> /dev/null && [ -e /proc/$p/$f ] && head -c 1 /proc/$p/$f 2> /dev/null | grep -q . && echo /proc/$p/$f
        done
        ls /proc/$p/fd /proc/$p/map_files 2> /dev/null | grep -v :$ | sed s,^,/proc/$p:,
    done
    grep -lE '[0-9a-f]{64}' /proc/[0-9]*/cmdline 2> /dev/null; true";

fn another_user_reaches_nothing_by_the_kernel(cluster: &Cluster) {
    beside_a_runtime(cluster, "what another user can open", |job| {
        for node in cluster.nodes() {
            let opened = by_bob(cluster, &node, OPENS);
            assert_eq!(opened.out, "", "{node}: {opened:?}");
            // The script sees what there is: alice can open her own.
            let own = run(&mut cluster.on(&node, ["sh", "-c", OPENS]));
            assert!(own.out.contains("/environ"), "{node}: {own:?}");
            assert_eq!(cluster.bytes_for(&node, "bob"), 0, "{node}");
        }
        // Nor does Slurm tell the key.
        let asked = format!(
            "scontrol show -dd job {0}; scontrol show step {0}; squeue -s -o %all; squeue -o %all",
            job.id()
        );
        let asked = by_bob(cluster, "ctl", &asked);
        let digits =
            |word: &str| word.len() >= 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut words = asked.out.split(|c: char| !c.is_ascii_alphanumeric());
        assert!(!words.any(digits), "{asked:?}");
    });
}

/// What each task of `tasks` says: its step, its runtime and whom it sees. It waits until so many have said it.
fn says(tasks: usize) -> String {
    format!(
        "echo $SLURM_JOB_ID.$SLURM_STEP_ID $DRAGON_RUNTIME $(dragon status | head -n 1) >> all
        until [ $(wc -l < all) -ge {tasks} ]; do sleep 0.05; done"
    )
}

/// Each line names a step that is in its own runtime, and there are so many runtimes.
fn assert_apart(cluster: &Cluster, tasks: usize, runtimes: usize) {
    let file = cluster.home("alice").join("all");
    let all = std::fs::read_to_string(&file).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for line in all.lines() {
        let mut words = line.split_whitespace();
        let (step, runtime) = (words.next().unwrap(), words.next().unwrap());
        assert!(runtime.contains(&format!("/{step}/")), "{all}");
        assert!(
            line.contains(&format!("job {step},")) || line.contains(&format!("job {step} ")),
            "{all}"
        );
        seen.insert(step.to_owned());
    }
    assert_eq!(
        (all.lines().count(), seen.len()),
        (tasks, runtimes),
        "{all}"
    );
    std::fs::remove_file(&file).unwrap();
    cluster.assert_nothing_left();
}

fn jobs_at_once_do_not_mix(cluster: &Cluster) {
    let program = says(4);
    let srun = ["srun", "-N2", "--dragon=spmd", "sh", "-c", &program];
    let both = [(); 2].map(|()| cluster.on("ctl", srun).spawn().unwrap());
    for done in both.map(finish) {
        assert_eq!(done.code, Some(0), "{done:?}");
    }
    assert_apart(cluster, 4, 2);
}

fn steps_at_once_do_not_mix(cluster: &Cluster) {
    for (mode, tasks) in [(Mode::Head, 2), (Mode::Spmd, 6)] {
        let program = says(tasks);
        let step = format!("srun --overlap -N3 --dragon={mode} sh -c '{program}'");
        let both = format!("{step} & {step} & wait $! && wait");
        let done = cluster.login(["salloc", "-Q", "-N3", "sh", "-c", &both]);
        assert_eq!(done.code, Some(0), "{mode}: {done:?}");
        assert_apart(cluster, tasks, 2);
    }
}
