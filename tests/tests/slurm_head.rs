//! `srun --dragon prog`: the plugin, the bring-up, the run over nodes, and every way it can end, on a real Slurm.

#![allow(clippy::unwrap_used)]

mod members;

use std::process::{Command, ExitCode};

use dragon_tests::cluster::Cluster;
use dragon_tests::cpus::{SHOW, allowed, bound_tasks};
use dragon_tests::local::{Finished, eventually_empty, finish, run};
use dragon_tests::step::Step;
use dragon_tests::suite;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let Some(code) = members::program(&words) {
        return code;
    }
    suite::run_with_slow(
        || Cluster::slurm(3),
        &[
            (
                "plugin_exports_only_its_callbacks",
                plugin_exports_only_its_callbacks,
            ),
            ("option_is_in_the_help", option_is_in_the_help),
            (
                "modes_that_do_not_exist_are_refused",
                modes_that_do_not_exist_are_refused,
            ),
            (
                "without_the_option_nothing_changes",
                without_the_option_nothing_changes,
            ),
            (
                "head_runs_once_on_the_first_node",
                head_runs_once_on_the_first_node,
            ),
            ("exit_code_is_the_heads", exit_code_is_the_heads),
            (
                "environment_hides_key_and_task",
                environment_hides_key_and_task,
            ),
            ("bad_programs_are_named_once", bad_programs_are_named_once),
            (
                "hello_world_on_two_and_three_nodes",
                hello_world_on_two_and_three_nodes,
            ),
            ("ring_and_pipeline", ring_and_pipeline),
            ("several_tasks_on_a_node", several_tasks_on_a_node),
            ("two_jobs_at_once", two_jobs_at_once),
            ("another_user_cannot_attach", another_user_cannot_attach),
            (
                "a_job_is_entered_from_outside_and_from_inside",
                a_job_is_entered_from_outside_and_from_inside,
            ),
            (
                "granted_cpus_are_those_of_all_tasks_of_the_node",
                granted_cpus_are_those_of_all_tasks_of_the_node,
            ),
            ("cancelled_job_leaves_nothing", cancelled_job_leaves_nothing),
            (
                "a_cancelled_head_is_told_and_ends_by_itself",
                a_cancelled_head_is_told_and_ends_by_itself,
            ),
            (
                "a_cancelled_head_that_is_deaf_is_killed",
                a_cancelled_head_that_is_deaf_is_killed,
            ),
            (
                "a_step_outlives_its_srun_and_can_be_cancelled",
                a_step_outlives_its_srun_and_can_be_cancelled,
            ),
            (
                "signal_for_the_program_reaches_it",
                signal_for_the_program_reaches_it,
            ),
            ("killed_daemon_ends_the_step", killed_daemon_ends_the_step),
            ("killed_stepd_ends_its_daemon", killed_stepd_ends_its_daemon),
            ("dead_node_ends_the_runtime", dead_node_ends_the_runtime),
            (
                "slurm_has_a_vote_about_dead_nodes",
                slurm_has_a_vote_about_dead_nodes,
            ),
        ],
        &[(
            (
                "the_time_limit_ends_the_job_in_order",
                the_time_limit_ends_the_job_in_order,
            ),
            "Slurm looks at its limits every 30 s",
        )],
    )
}

fn plugin_exports_only_its_callbacks(cluster: &Cluster) {
    let nm = run(Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(cluster.site().plugin())
        .stdout(std::process::Stdio::piped()));
    let mut names: Vec<_> = nm
        .out
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    names.sort_unstable();
    let expected = [
        "plugin_name",
        "plugin_type",
        "plugin_version",
        "slurm_spank_exit",
        "slurm_spank_init",
        "slurm_spank_init_post_opt",
        "slurm_spank_local_user_init",
        "slurm_spank_task_init",
        "spank_plugin_version",
    ];
    assert_eq!(names, expected);
}

fn option_is_in_the_help(cluster: &Cluster) {
    let help = cluster.login(["srun", "--help"]).out;
    assert!(help.contains("--dragon=head|spmd|off"), "{help}");
}

fn modes_that_do_not_exist_are_refused(cluster: &Cluster) {
    for (words, text) in [
        (
            &["srun", "--dragon=nonsense", "true"][..],
            "--dragon=nonsense: unknown mode; use --dragon",
        ),
        (
            &["sbatch", "--dragon=spmd", "--wrap", "true"],
            "--dragon=spmd is for srun, whose tasks are the program",
        ),
        (
            &["sbatch", "--dragon=nonsense", "--wrap", "true"],
            "--dragon=nonsense: unknown mode; use --dragon",
        ),
        (
            &["salloc", "--dragon=nonsense", "true"],
            "--dragon=nonsense: unknown mode; use --dragon",
        ),
    ] {
        let done = cluster.login(words.iter().copied());
        assert_ne!(done.code, Some(0), "{words:?}");
        assert!(done.err.contains(text), "{words:?}: {}", done.err);
    }
    assert_eq!(cluster.login(["squeue", "-h"]).out, "");
}

fn without_the_option_nothing_changes(cluster: &Cluster) {
    for option in ["--quiet", "--dragon=off"] {
        let done = cluster.login([
            "srun",
            option,
            "-N3",
            "sh",
            "-c",
            "echo ${0##*/} $(env | grep -c DRAGON)",
        ]);
        assert_eq!(
            (done.code, done.out.as_str()),
            (Some(0), "sh 0\nsh 0\nsh 0\n"),
            "{}",
            done.err
        );
    }
}

fn head_runs_once_on_the_first_node(cluster: &Cluster) {
    let done = cluster.login([
        "srun",
        "-N3",
        "--dragon",
        "sh",
        "-c",
        "echo $(hostname) $*",
        "sh",
        "a",
        "b c",
    ]);
    assert_eq!(
        (done.code, done.out.as_str(), done.err.as_str()),
        (Some(0), "n1 a b c\n", "")
    );
    cluster.assert_nothing_left();
}

fn exit_code_is_the_heads(cluster: &Cluster) {
    assert_eq!(
        cluster
            .login(["srun", "-N3", "--dragon", "sh", "-c", "exit 7"])
            .code,
        Some(7)
    );
    assert_eq!(
        cluster
            .login(["srun", "-N2", "--dragon", "sh", "-c", "kill -9 $$"])
            .code,
        Some(128 + 9)
    );
}

fn environment_hides_key_and_task(cluster: &Cluster) {
    let done = cluster.login(["srun", "-N2", "--dragon", "env"]);
    assert!(
        done.out.contains("DRAGON_RUNTIME=dragon/2001/") && done.out.contains("SLURM_JOB_ID="),
        "{}",
        done.out
    );
    for hidden in [
        "DRAGON_STEP",
        "SLURM_PROCID",
        "SLURM_LOCALID",
        "SLURM_GTIDS",
        "PMI_",
    ] {
        assert!(!done.out.contains(hidden), "{hidden} is visible");
    }
}

fn bad_programs_are_named_once(cluster: &Cluster) {
    let done = cluster.login(["srun", "-N3", "--dragon", "no-such-program"]);
    assert_eq!(done.code, Some(127));
    assert_eq!(
        done.err
            .matches("no-such-program: command not found")
            .count(),
        1,
        "{}",
        done.err
    );
    let done = cluster.login(["srun", "-N2", "--dragon", "/tmp"]);
    assert_eq!(done.code, Some(126));
    assert!(done.err.contains("is a directory"), "{}", done.err);
}

fn hello_world_on_two_and_three_nodes(cluster: &Cluster) {
    for nodes in 2..=3 {
        let done = cluster.login([
            "srun",
            &format!("-N{nodes}"),
            "-c2",
            "--dragon",
            &cluster.site().example("hello_world.py"),
        ]);
        assert_eq!(done.code, Some(0), "{done:?}");
        for node in cluster.nodes().take(nodes) {
            assert!(done.out.contains(&node), "no worker on {node}: {done:?}");
        }
        cluster.assert_nothing_left();
    }
}

fn ring_and_pipeline(cluster: &Cluster) {
    for example in ["ring.py", "pipeline.py"] {
        for nodes in ["-N1", "-N3"] {
            let done = cluster.login([
                "srun",
                nodes,
                "-c2",
                "--dragon",
                &cluster.site().example(example),
            ]);
            assert_eq!(done.code, Some(0), "{example} {nodes}: {done:?}");
        }
    }
    cluster.assert_nothing_left();
}

fn several_tasks_on_a_node(cluster: &Cluster) {
    let done = cluster.login(["srun", "-N2", "-n6", "--dragon", "hostname"]);
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "n1\n"),
        "{}",
        done.err
    );
    cluster.assert_nothing_left();
}

fn two_jobs_at_once(cluster: &Cluster) {
    let start = || {
        cluster
            .on(
                "ctl",
                [
                    "srun",
                    "-N3",
                    "--dragon",
                    "sh",
                    "-c",
                    "sleep 0.3; echo $SLURM_JOB_ID",
                ],
            )
            .spawn()
            .unwrap()
    };
    let both: Vec<Finished> = [start(), start()].into_iter().map(finish).collect();
    assert!(both.iter().all(|done| done.code == Some(0)), "{both:?}");
    assert_ne!(both[0].out, both[1].out);
}

/// Starts a job whose head says "ready", and waits for that.
fn ready(cluster: &Cluster, program: &str) -> Step {
    let srun = ["srun", "-N3", "--dragon", "sh", "-c", program];
    Step::start(&mut cluster.on("ctl", srun)).ready(1)
}

fn another_user_cannot_attach(cluster: &Cluster) {
    let step = ready(cluster, "echo ready; sleep 1000");
    assert_eq!(cluster.bytes_for("n1", "bob"), 0);
    assert_ne!(cluster.bytes_for("n1", "alice"), 0);
    cluster.login(["scancel", "-u", "alice"]);
    let _ = step.ended();
    cluster.assert_nothing_left();
}

/// A command that starts a program, which tells where it is and what its runtime is.
fn shows<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [
        words,
        &["sh", "-c", "echo $DRAGON_RUNTIME on $(hostname); exit 7"],
    ]
    .concat()
}

fn a_job_is_entered_from_outside_and_from_inside(cluster: &Cluster) {
    let running = ready(cluster, "echo ready; sleep 1000");
    let jobs = cluster.login(["squeue", "-h", "-t", "R", "-o", "%i"]);
    let job = jobs.out.trim();
    // What ran is a program of the node: by the name of its runtime, and by its host.
    let is_on = |done: &Finished, node: u32| {
        assert_eq!(done.code, Some(7), "{done:?}");
        let runtime = format!("/{job}.0/{node}/");
        let host = format!(" on n{}\n", node + 1);
        let here = done.out.contains(&runtime) && done.out.ends_with(&host);
        assert!(here, "not on node {node}: {done:?}");
    };
    let attach = ["dragon", "attach", "--job", job];
    is_on(&cluster.login(shows(&attach)), 0);
    let to_last = [&attach[..], &["--node", "2"]].concat();
    is_on(&cluster.login(shows(&to_last)), 2);
    let step = [
        "srun",
        "--overlap",
        "--jobid",
        job,
        "-w",
        "n2",
        "-N1",
        "-n1",
    ];
    let inside = |words: &[&str]| cluster.login(shows(&[&step[..], words].concat()));
    is_on(&inside(&["dragon", "attach"]), 1);
    is_on(&inside(&["dragon", "attach", "--node", "2"]), 2);
    // On a node of the job, but in no step of it.
    let beside = run(&mut cluster.on("n1", shows(&["dragon", "attach", "--node", "1"])));
    is_on(&beside, 1);

    let nodes = cluster.login(["dragon", "status", "--job", job, "--all-nodes"]);
    assert_eq!(nodes.code, Some(0), "{nodes:?}");
    assert!(nodes.out.contains("3 nodes up"), "{nodes:?}");
    let one = cluster.login(["dragon", "ps", "--job", job, "--node", "0", "--json"]);
    assert!(one.out.contains("sleep 1000"), "{one:?}");
    let nowhere = cluster.login(shows(&[&attach[..], &["--node", "3"]].concat()));
    assert_eq!(nowhere.code, Some(125), "{nowhere:?}");
    assert!(
        nowhere
            .err
            .contains("there is no node 3 in this runtime; its nodes are 0 to 2")
            && nowhere.err.contains("its node 3 is"),
        "{nowhere:?}"
    );
    let nobodys = cluster.login(["dragon", "attach", "--job", "999999", "true"]);
    assert_ne!(nobodys.code, Some(0), "{nobodys:?}");
    assert!(nobodys.err.contains("job"), "{nobodys:?}");
    cluster.login(["scancel", "-u", "alice"]);
    let _ = running.ended();
    cluster.assert_nothing_left();
}

fn cancelled_job_leaves_nothing(cluster: &Cluster) {
    let step = ready(
        cluster,
        "echo ready; sleep 1000 & setsid sleep 1000 & sleep 1000",
    );
    cluster.login(["scancel", "-u", "alice"]);
    assert_ne!(step.ended().1.code, Some(0));
    cluster.assert_nothing_left();
}

/// Tasks are bound to one CPU each: the head, and what it starts, may run on those of all of them.
fn granted_cpus_are_those_of_all_tasks_of_the_node(cluster: &Cluster) {
    let (options, cpus) = bound_tasks();
    let srun: Vec<&str> = ["srun"]
        .into_iter()
        .chain(options.iter().map(String::as_str))
        .collect();
    let plain = cluster.login([&srun[..], &["sh", "-c", SHOW]].concat());
    let alone = plain.out.lines().all(|line| allowed(line).len() == 1);
    assert!(alone, "the tasks are not bound: {plain:?}");
    let head = format!("{SHOW}; dragon status --json");
    let ours = cluster.login([&srun[..], &["--dragon", "sh", "-c", &head]].concat());
    assert_eq!(ours.code, Some(0), "{ours:?}");
    assert_eq!(allowed(&ours.out), allowed(&plain.out), "{ours:?}");
    let count = format!("\"cpus\": {cpus},");
    assert!(ours.out.contains(&count), "{ours:?}");
}

const TRAPS: &str = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done";

fn a_cancelled_head_is_told_and_ends_by_itself(cluster: &Cluster) {
    let step = ready(cluster, TRAPS);
    cluster.login(["scancel", "-u", "alice"]);
    let (text, done) = step.ended();
    assert_eq!(text, "told\n", "{done:?}");
    assert_eq!(done.code, Some(128 + 15), "{done:?}");
    cluster.assert_nothing_left();
}

/// Two seconds, since that is how long it may take.
fn a_cancelled_head_that_is_deaf_is_killed(cluster: &Cluster) {
    let deaf = "trap '' TERM; sleep 1000 & echo ready; sleep 1000; echo deaf";
    let step = ready(cluster, deaf);
    cluster.login(["scancel", "-u", "alice"]);
    let (text, done) = step.ended();
    assert_eq!(text, "", "{done:?}");
    assert_ne!(done.code, Some(0), "{done:?}");
    cluster.assert_nothing_left();
}

/// As with any step: what srun started goes on when the host of srun is gone.
fn a_step_outlives_its_srun_and_can_be_cancelled(cluster: &Cluster) {
    let beats = "echo ready; while :; do echo beat >> $HOME/beats; sleep 0.05; done";
    let step = ready(cluster, beats);
    // srun has a child that would cancel the step: on a host that is gone both are. The child is the later one.
    let gone = "kill -9 $(pgrep -x srun | sort -rn)";
    let killed = run(&mut cluster.on("ctl", ["-u", "root", "sh", "-c", gone]));
    assert_eq!(killed.code, Some(0), "{killed:?}");
    let _ = step.ended();
    let count = || cluster.login(["sh", "-c", "wc -l < $HOME/beats"]).out;
    let beats: u32 = count().trim().parse().unwrap();
    eventually_empty("the head", || {
        let more = count().trim().parse::<u32>().unwrap() > beats + 5;
        if more {
            String::new()
        } else {
            "no more beats".to_owned()
        }
    });
    let step = cluster.login(["squeue", "-s", "-h", "-o", "%i %N"]).out;
    assert!(step.contains(".0 n[1-3]"), "{step}");
    let daemons = ["-u", "root", "pgrep", "-c", "-f", "^.*bin/dragond"];
    for node in cluster.nodes() {
        let here = run(&mut cluster.on(&node, daemons));
        assert_eq!(here.out, "1\n", "{node}: {here:?}");
    }
    cluster.login(["scancel", "-u", "alice"]);
    cluster.assert_nothing_left();
    cluster.login(["rm", "beats"]);
}

/// Up to 30 s and a little more: slurmctld looks at the limits no more often.
fn the_time_limit_ends_the_job_in_order(cluster: &Cluster) {
    // The case before this one has ended nodes.
    cluster.revive();
    let step = ready(cluster, TRAPS);
    let job = cluster.login(["squeue", "-h", "-t", "R", "-o", "%i"]).out;
    // A limit counts minutes; the end of the job is a time like any other, which root may set.
    let id = format!("JobId={}", job.trim());
    let update = ["-u", "root", "scontrol", "update", &id, "EndTime=now+1"];
    let updated = run(&mut cluster.on("ctl", update));
    assert_eq!(updated.code, Some(0), "{updated:?}");
    let (text, done) = step.ended();
    assert_eq!(text, "told\n", "{done:?}");
    assert_eq!(done.code, Some(128 + 15), "{done:?}");
    cluster.assert_nothing_left();
}

fn signal_for_the_program_reaches_it(cluster: &Cluster) {
    let names = "USR1 USR2 QUIT ABRT ALRM URG XCPU TSTP CONT";
    let traps = format!(
        "for s in {names}; do trap \"echo $s\" $s; done; echo ready; while :; do sleep 0.05; done"
    );
    let mut step = ready(cluster, &traps);
    let job = cluster.login(["squeue", "-h", "-t", "R", "-o", "%i"]).out;
    for name in names.split(' ') {
        let kill = format!("scancel -s $(bash -c 'kill -l {name}') {}", job.trim());
        cluster.login(["sh", "-c", &kill]);
        assert_eq!(step.line(), format!("{name}\n"));
    }
    cluster.login(["scancel", "-u", "alice"]);
    let _ = step.ended();
}

fn kill_on(cluster: &Cluster, node: &str, pattern: &str) {
    // As root: the rig's nodes are entered by nsenter.
    let pids = run(&mut cluster.on(node, ["-u", "root", "pgrep", "-f", pattern])).out;
    let first = pids
        .lines()
        .next()
        .unwrap_or_else(|| panic!("no {pattern} on {node}"));
    run(&mut cluster.on(node, ["-u", "root", "kill", "-9", first]));
}

fn killed_daemon_ends_the_step(cluster: &Cluster) {
    for node in ["n1", "n3"] {
        let step = ready(cluster, "echo ready; sleep 1000");
        kill_on(cluster, node, "^.*bin/dragond");
        let (_, done) = step.ended();
        assert_ne!(done.code, Some(0), "{done:?}");
        cluster.assert_nothing_left();
    }
}

fn killed_stepd_ends_its_daemon(cluster: &Cluster) {
    let step = ready(cluster, "echo ready; sleep 1000");
    kill_on(cluster, "n2", "slurmstepd: \\[");
    // srun itself waits for ever for a lost slurmstepd; what counts is that nothing of ours is left.
    cluster.assert_nothing_left();
    cluster.login(["scancel", "-s", "KILL", "-u", "alice"]);
    step.kill();
}

fn dead_node_ends_the_runtime(cluster: &Cluster) {
    let step = ready(cluster, "echo ready; sleep 1000");
    run(cluster.rig().args(["kill", "n3"]));
    for node in ["n1", "n2"] {
        eventually_empty(node, || cluster.traces(node));
    }
    cluster.login(["scancel", "-s", "KILL", "-u", "alice"]);
    step.kill();
}

/// A job that goes on without nodes: two of three go on without the first by themselves; the last one alone does when Slurm
/// says that the other is down, and not before. Takes as long as nodes take to come back and to be missed.
fn slurm_has_a_vote_about_dead_nodes(cluster: &Cluster) {
    // Whatever the tests before this one have ended.
    cluster.revive();
    let program = cluster.site().root().join("bin/members");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let program = program.to_str().unwrap();
    let settings = [
        "env",
        "DRAGON_ON_NODE_FAILURE=continue",
        "DRAGON_NODE_LIMIT=3",
    ];
    let srun = [
        "srun",
        "--no-kill",
        "-N3",
        "--dragon",
        program,
        "holds",
        "3",
    ];
    let mut job = members::Job::start(&mut cluster.on("ctl", [&settings[..], &srun].concat()));
    run(cluster.rig().args(["kill", "n1"]));
    for _ in 0..2 {
        let line = job.line("survivor ");
        assert!(line.ends_with(": 2 left, node 1 first"), "{line}");
    }
    run(cluster.rig().args(["kill", "n2"]));
    for node in ["n1", "n2"] {
        let words = [
            "-u",
            "root",
            "scontrol",
            "update",
            "State=DOWN",
            "Reason=dead",
        ];
        let name = format!("NodeName={node}");
        let done = run(&mut cluster.on("ctl", [&words[..], &[&name]].concat()));
        assert_eq!(done.code, Some(0), "{done:?}");
    }
    assert_eq!(job.line("survivor "), "survivor 2: 1 left, node 2 first");
    eventually_empty("n3", || cluster.traces("n3"));
    cluster.login(["scancel", "-s", "KILL", "-u", "alice"]);
    let _ = job.launcher.kill();
    let done = job.end();
    let lost = "the workload manager says that n2 is down: node 1 (n2) is lost; the job goes on with one node";
    assert!(done.err.contains(lost), "{}", done.err);
}
