//! Shapes of steps and jobs under a real Slurm, with a head, with every task the program, and in an allocation: what works, and what
//! is refused with the way out.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::ExitCode;

use dragon_tests::cluster::Cluster;
use dragon_tests::local::{Finished, eventually_empty, finish, run, run_with_input};
use dragon_tests::step::Step;
use dragon_tests::suite;

/// salloc has its shell on the first node of the job, and a job that was requeued starts again after some seconds, not two minutes.
const SITE: &str = "LaunchParameters=use_interactive_step\nAuthInfo=cred_expire=5";

fn main() -> ExitCode {
    suite::run(
        || Cluster::slurm_with(3, &[("RIG_CONF", SITE)]),
        &[
            (
                "heterogeneous_steps_are_refused",
                heterogeneous_steps_are_refused,
            ),
            (
                "one_group_of_a_heterogeneous_job_has_a_runtime",
                one_group_of_a_heterogeneous_job_has_a_runtime,
            ),
            (
                "programs_out_of_a_file_are_refused",
                programs_out_of_a_file_are_refused,
            ),
            (
                "a_step_has_the_shape_that_srun_gives_it",
                a_step_has_the_shape_that_srun_gives_it,
            ),
            ("output_goes_where_srun_says", output_goes_where_srun_says),
            ("input_goes_where_srun_says", input_goes_where_srun_says),
            (
                "a_head_may_outlast_the_patience_of_srun",
                a_head_may_outlast_the_patience_of_srun,
            ),
            (
                "a_head_has_the_terminal_of_srun",
                a_head_has_the_terminal_of_srun,
            ),
            (
                "the_first_task_has_the_terminal_of_srun",
                the_first_task_has_the_terminal_of_srun,
            ),
            (
                "tasks_are_listed_with_their_ranks",
                tasks_are_listed_with_their_ranks,
            ),
            (
                "an_allocation_is_looked_at_from_outside",
                an_allocation_is_looked_at_from_outside,
            ),
            (
                "each_job_of_an_array_has_a_runtime",
                each_job_of_an_array_has_a_runtime,
            ),
            (
                "a_requeued_job_has_a_new_runtime",
                a_requeued_job_has_a_new_runtime,
            ),
            ("a_suspended_step_goes_on", a_suspended_step_goes_on),
            (
                "a_suspended_allocation_goes_on",
                a_suspended_allocation_goes_on,
            ),
            (
                "an_allocation_goes_on_without_a_node",
                an_allocation_goes_on_without_a_node,
            ),
        ],
    )
}

/// Both kinds of a step.
const MODES: [&str; 2] = ["--dragon", "--dragon=spmd"];

/// Runs srun with these options and this program, as words with blanks between them.
fn srun(cluster: &Cluster, mode: &str, options: &str, program: &[&str]) -> Finished {
    // What has ended holds its nodes for a moment, and another one would be the first.
    eventually_empty("the queue", || cluster.login(["squeue", "-h"]).out);
    let options = options.split_whitespace();
    let words = ["srun", mode].into_iter().chain(options);
    cluster.login(words.chain(program.iter().copied()))
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// As root, on the login node.
fn as_root(cluster: &Cluster, words: &[&str]) {
    let words = [&["-u", "root"], words].concat();
    let done = run(&mut cluster.on("ctl", words));
    assert_eq!(done.code, Some(0), "{done:?}");
}

/// The number of a job that runs alone.
fn running(cluster: &Cluster) -> String {
    let jobs = cluster.login(["squeue", "-h", "-t", "R", "-o", "%A"]);
    jobs.out.trim().to_owned()
}

/// Writes a batch script, and returns the words that submit it and wait for its end.
fn sbatch<'a>(cluster: &Cluster, options: &[&'a str], script: &str) -> Vec<&'a str> {
    let home = cluster.home("alice");
    fs::write(home.join("script"), format!("#!/bin/bash\n{script}\n")).unwrap();
    let _ = fs::remove_file(home.join("out"));
    let sbatch = [
        "sbatch",
        "--wait",
        "--quiet",
        "--output=out",
        "--open-mode=append",
    ];
    [&sbatch, options, &["script"]].concat()
}

fn said(cluster: &Cluster) -> String {
    // The file is there when the job has started.
    fs::read_to_string(cluster.home("alice").join("out")).unwrap_or_default()
}

/// Waits until a batch job has said this so many times.
fn says(cluster: &Cluster, line: &str, times: usize) {
    eventually_empty("the script", || {
        let said = said(cluster);
        match said.lines().filter(|other| *other == line).count() == times {
            true => String::new(),
            false => format!("not {times} times '{line}' in: {said}"),
        }
    });
}

fn heterogeneous_steps_are_refused(cluster: &Cluster) {
    for words in [
        &["srun", "--dragon", "-N1", "true", ":", "-N1", "true"][..],
        &["srun", "-N1", "true", ":", "--dragon=spmd", "-N1", "true"],
        &["srun", "--het-group=0,1", "--dragon", "true"],
        &["srun", "--dragon", "--het-group", "0-1", "true"],
    ] {
        let done = cluster.login(words.iter().copied());
        assert_eq!((done.code, done.out.as_str()), (Some(125), ""), "{done:?}");
        let text = "a heterogeneous step is several steps, and a runtime is one: leave out what stands behind ':', or name one --het-group";
        assert_eq!(done.err.matches(text).count(), 1, "{words:?}: {done:?}");
    }
    assert_eq!(cluster.login(["squeue", "-h"]).out, "");
    let plain = [
        "srun",
        "--dragon=off",
        "-N1",
        "hostname",
        ":",
        "-N1",
        "hostname",
    ];
    let plain = cluster.login(plain);
    assert_eq!(sorted(&plain.out), ["n1", "n2"], "{plain:?}");
}

fn one_group_of_a_heterogeneous_job_has_a_runtime(cluster: &Cluster) {
    let show = "sh -c 'echo $(hostname) $(dragon status | grep -o \". nodes* up\")'";
    for mode in MODES {
        let steps = format!(
            "srun --het-group=0 {mode} {show}; srun --het-group=1 {mode} -n1 -N1 {show}; \
            srun --het-group=1 {mode} {show} | sort"
        );
        let steps = cluster.login(["salloc", "-Q", "-N1", ":", "-N2", "sh", "-c", &steps]);
        let last = match mode {
            "--dragon" => "n2 2 nodes up\n",
            _ => "n2 2 nodes up\nn3 2 nodes up\n",
        };
        let expected = format!("n1 1 node up\nn2 1 node up\n{last}");
        assert_eq!(steps.out, expected, "{mode}: {steps:?}");
    }
    let words = sbatch(cluster, &["--dragon", "-N1", ":", "-N1"], "echo ran");
    let done = cluster.login(words);
    assert_eq!(done.code, Some(125), "{done:?} {}", said(cluster));
    let text = "this job is a heterogeneous one of 2 groups of nodes, and a runtime has one";
    assert!(said(cluster).contains(text) && !said(cluster).contains("ran\n"));
    cluster.assert_nothing_left();
}

fn programs_out_of_a_file_are_refused(cluster: &Cluster) {
    let file = cluster.home("alice").join("programs");
    fs::write(&file, "0 echo zero\n1 echo one\n").unwrap();
    let text = "with --multi-prog Slurm starts programs out of a file";
    for mode in MODES {
        for option in ["--multi-prog", "--multi"] {
            let done = srun(cluster, mode, &format!("-n2 {option}"), &["programs"]);
            assert_eq!((done.code, done.out.as_str()), (Some(125), ""), "{done:?}");
            assert_eq!(done.err.matches(text).count(), 1, "{done:?}");
        }
    }
    // What belongs to the program is none of srun's, and what a job hands on attaches by itself.
    let done = srun(cluster, "--dragon", "-N1", &["echo", "--multi-prog"]);
    assert_eq!(done.out, "--multi-prog\n", "{done:?}");
    let words = sbatch(
        cluster,
        &["--dragon", "-N2"],
        "srun -n2 --multi-prog programs | sort",
    );
    let done = cluster.login(words);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(said(cluster), "one\nzero\n");
}

/// The same hosts as without the runtime, for the head those of the first task.
fn a_step_has_the_shape_that_srun_gives_it(cluster: &Cluster) {
    let show = [
        "sh",
        "-c",
        "echo $(hostname) $PWD $(dragon status | grep -o '. nodes\\? up')",
    ];
    let plain = ["sh", "-c", "echo $(hostname) $PWD"];
    for (options, nodes) in [
        ("-N2 -n5", "2 nodes"),
        ("-N3 -n3 -m cyclic --chdir=/tmp", "3 nodes"),
        ("-N2 --nodelist=n2,n3", "2 nodes"),
        ("-N2 --exclude=n1", "2 nodes"),
        ("-N3 --exclusive --ntasks-per-node=2", "3 nodes"),
        ("-n3 --ntasks-per-node=1 --overcommit -D /", "3 nodes"),
        ("-N1 -n12 --overcommit", "1 node"),
    ] {
        let tasks = srun(cluster, "--dragon=off", options, &plain).out;
        let up = |line: &str| format!("{line} {nodes} up");
        let every = srun(cluster, "--dragon=spmd", options, &show);
        let expected: Vec<_> = sorted(&tasks).into_iter().map(up).collect();
        assert_eq!(sorted(&every.out), expected, "{options}: {every:?}");
        let head = srun(cluster, "--dragon", options, &show);
        let expected = format!("{}\n", up(sorted(&tasks)[0]));
        assert_eq!(head.out, expected, "{options}: {head:?}");
        assert_eq!((every.code, head.code), (Some(0), Some(0)));
    }
    // As without the runtime, PATH is not handed on; the program is found by its whole path.
    for mode in MODES {
        let done = srun(
            cluster,
            mode,
            "-N2 --export=NONE",
            &["/bin/sh", "-c", "echo ${HOME-none} ${DRAGON_RUNTIME%%/*}"],
        );
        let tasks = if mode == "--dragon" { 1 } else { 2 };
        assert_eq!(done.out, "none dragon\n".repeat(tasks), "{done:?}");
        assert_eq!(done.code, Some(0), "{done:?}");
    }
    cluster.assert_nothing_left();
}

fn output_goes_where_srun_says(cluster: &Cluster) {
    let read = |name: &str| {
        let file = cluster.home("alice").join(name);
        let text = fs::read_to_string(&file).unwrap_or_default();
        let _ = fs::remove_file(file);
        text
    };
    let options = "-N2 -n4 --output=out-%t --error=err-%N";
    let program = ["sh", "-c", "echo out ${DRAGON_RANK-head}; echo err >&2"];
    let done = srun(cluster, "--dragon=spmd", options, &program);
    assert_eq!((done.code, done.out.as_str()), (Some(0), ""), "{done:?}");
    let files = [0, 1, 2, 3].map(|task| read(&format!("out-{task}")));
    assert_eq!(files, [0, 1, 2, 3].map(|task| format!("out {task}\n")));
    assert_eq!(read("err-n1") + &read("err-n2"), "err\n".repeat(4));
    let done = srun(cluster, "--dragon", options, &program);
    assert_eq!((done.code, done.out.as_str()), (Some(0), ""), "{done:?}");
    let files = [0, 1, 2, 3].map(|task| read(&format!("out-{task}")));
    assert_eq!(files, ["out head\n", "", "", ""]);
    assert_eq!(read("err-n1"), "err\n");
    // A line for each node, by its first task.
    let program = "import multiprocessing as mp, dragon\n\
        if __name__ == '__main__':\n\
        \x20   mp.set_start_method('dragon')\n\
        \x20   for node in dragon.nodes():\n\
        \x20       with dragon.on_node(node.index): p = mp.Process(target=print, args=('here',)); p.start(); p.join()\n";
    fs::write(cluster.home("alice").join("here.py"), program).unwrap();
    let done = srun(
        cluster,
        "--dragon",
        "-l -N3 -n6 --ntasks-per-node=2 --unbuffered",
        &["./here.py"],
    );
    assert_eq!(
        sorted(&done.out),
        ["0: here", "2: here", "4: here"],
        "{done:?}"
    );
    let whole = ["sh", "-c", "printf 'no end'; sleep 0.2; echo ' yet'"];
    for mode in MODES {
        let done = srun(cluster, mode, "-N1 --unbuffered", &whole);
        assert_eq!(done.out, "no end yet\n", "{done:?}");
    }
    cluster.assert_nothing_left();
}

fn input_goes_where_srun_says(cluster: &Cluster) {
    fs::write(cluster.home("alice").join("input"), "from a file\n").unwrap();
    for (mode, options, expected) in [
        ("--dragon", "-N2", &["typed"][..]),
        ("--dragon", "-N2 -n4 --input=all", &["typed"]),
        ("--dragon", "-N2 --input=input", &["from a file"]),
        ("--dragon", "-N2 --input=none", &[]),
        ("--dragon=spmd", "-N2 -n3 --input=all", &["typed"; 3]),
        ("--dragon=spmd", "-N2 -n3 --input=2", &["typed"]),
        (
            "--dragon=spmd",
            "-N2 -n3 --input=input",
            &["from a file"; 3],
        ),
        ("--dragon=spmd", "-N2 -n3 --input=none", &[]),
    ] {
        let words = ["srun", mode].into_iter().chain(options.split_whitespace());
        let mut command = cluster.on("ctl", words.chain(["cat"]));
        let done = run_with_input(&mut command, b"typed\n");
        assert_eq!(sorted(&done.out), expected, "{mode} {options}: {done:?}");
        assert_eq!(done.code, Some(0), "{mode} {options}: {done:?}");
    }
    cluster.assert_nothing_left();
}

/// `--wait` counts from the end of a first task: none ends before the head, and in a step whose tasks are the program none of those
/// that are the first of their node.
fn a_head_may_outlast_the_patience_of_srun(cluster: &Cluster) {
    let program = ["sh", "-c", "[ ${DRAGON_RANK-0} = 0 ] && sleep 2; echo end"];
    let done = srun(cluster, "--dragon", "-N2 -n4 --wait=1", &program);
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "end\n"),
        "{done:?}"
    );
    let done = srun(cluster, "--dragon=spmd", "-N2 -n2 --wait=1", &program);
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "end\nend\n"),
        "{done:?}"
    );
    cluster.assert_nothing_left();
}

/// A program at a terminal of 33 lines, which says what is typed to it.
const AT_A_TERMINAL: &str = "trap 'echo interrupted' INT; trap 'echo stopped' TSTP; trap 'echo resized to $(stty size)' WINCH; \
    echo $(stty size) ready; for n in 1 2 3 4; do read line; echo read $line; done; exit 3";

/// srun with a terminal, of which all lines are heard.
fn at_a_terminal(cluster: &Cluster, srun: &str) -> (Step, std::process::ChildStdin) {
    let file = cluster.home("alice").join("at-a-terminal");
    fs::write(&file, AT_A_TERMINAL).unwrap();
    let srun = format!("stty rows 33 cols 77; exec {srun} bash ./at-a-terminal");
    let words = ["script", "-qec", &srun, "/dev/null"];
    Step::with_input(&mut cluster.on("ctl", words))
}

/// Types, and reads until the program has said this.
fn type_and_hear(step: &mut Step, keyboard: &mut impl Write, keys: &[u8], heard: &str) {
    keyboard.write_all(keys).unwrap();
    let all = step.out().until(heard, |text| {
        let text = String::from_utf8_lossy(text);
        text.find(heard).map(|at| at + heard.len())
    });
    assert!(all.ends_with(heard), "no {heard:?} in {all:?}");
}

fn the_terminal_is_the_programs(cluster: &Cluster, srun: &str) {
    let (mut step, mut keyboard) = at_a_terminal(cluster, srun);
    type_and_hear(&mut step, &mut keyboard, b"", "33 77 ready");
    type_and_hear(&mut step, &mut keyboard, b"a\n", "read a");
    // Once each: the terminal speaks to the program itself.
    type_and_hear(&mut step, &mut keyboard, b"\x03b\n", "interrupted");
    type_and_hear(&mut step, &mut keyboard, b"", "read b");
    type_and_hear(&mut step, &mut keyboard, b"\x1ac\n", "stopped");
    type_and_hear(&mut step, &mut keyboard, b"", "read c");
    keyboard.write_all(b"d\n").unwrap();
    let (rest, done) = step.ended();
    assert!(rest.contains("read d"), "{rest:?}");
    assert!(
        !rest.contains("interrupted") && !rest.contains("stopped"),
        "{rest:?}"
    );
    assert_eq!(done.code, Some(3), "{rest:?} {done:?}");
    cluster.assert_nothing_left();
}

fn a_head_has_the_terminal_of_srun(cluster: &Cluster) {
    the_terminal_is_the_programs(cluster, "srun --pty -N3 --dragon");
}

/// As without the runtime: the others have none.
fn the_first_task_has_the_terminal_of_srun(cluster: &Cluster) {
    let first =
        "srun --pty -N2 -n4 --dragon=spmd sh -c '[ $DRAGON_RANK = 0 ] || exit 0; exec \"$@\"' sh";
    the_terminal_is_the_programs(cluster, first);
}

/// The rows of `dragon ps`: node, role, rank, and the first word of the command.
fn listed(text: &str) -> Vec<String> {
    let json: serde_json::Value =
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let rows = json
        .as_array()
        .cloned()
        .unwrap_or_else(|| json["processes"].as_array().unwrap().clone());
    let row = |row: &serde_json::Value| {
        let command = row["command"].as_str().unwrap_or_default();
        format!(
            "{} {} {} {}",
            row["node"],
            row["role"].as_str().unwrap_or_default(),
            row["rank"],
            command.split_whitespace().next().unwrap_or_default()
        )
    };
    rows.iter().map(row).collect()
}

fn tasks_are_listed_with_their_ranks(cluster: &Cluster) {
    let program = ["sh", "-c", "echo ready; exec sleep 1000"];
    let words = ["srun", "-N2", "-n4", "--ntasks-per-node=2", "--dragon=spmd"];
    let step = Step::start(&mut cluster.on("ctl", [&words[..], &program].concat())).ready(4);
    let job = running(cluster);
    let all = || {
        let done = cluster.login(["dragon", "ps", "--job", &job, "--all-nodes", "--json"]);
        assert_eq!(done.code, Some(0), "{done:?}");
        listed(&done.out)
    };
    let tasks = [0, 0, 1, 1].into_iter().zip(0..);
    let tasks: Vec<_> = tasks
        .map(|(node, rank)| format!("{node} task {rank} sleep"))
        .collect();
    // What stands in front of a task tells its daemon of the program a moment after its start.
    eventually_empty("dragon ps", || match all() == tasks {
        true => String::new(),
        false => format!("{:?}", all()),
    });
    let status = cluster.login(["dragon", "status", "--job", &job]);
    assert!(status.out.contains("2 nodes up"), "{status:?}");
    let logs = cluster.login(["dragon", "logs", "--job", &job, "--all-nodes"]);
    assert_eq!(logs.code, Some(0), "{logs:?}");
    cluster.login(["scancel", "-u", "alice"]);
    let _ = step.ended();
    cluster.assert_nothing_left();
}

fn an_allocation_is_looked_at_from_outside(cluster: &Cluster) {
    let head = "import dragon, time; dragon.attach(); print('ready', flush=True); time.sleep(1000)";
    let script = format!("dragon python -c \"{head}\"");
    let words = sbatch(cluster, &["--dragon", "-N2"], &script);
    let batch = cluster.on("ctl", words).spawn().unwrap();
    says(cluster, "ready", 1);
    let job = running(cluster);
    let ask = |words: &[&str]| {
        let done = cluster.login([&["dragon"], words, &["--job", &job]].concat());
        assert_eq!(done.code, Some(0), "{words:?}: {done:?}");
        done.out
    };
    assert!(ask(&["status"]).contains("2 nodes up"));
    let listed = listed(&ask(&["ps", "--all-nodes", "--json"]));
    assert!(
        listed.iter().any(|row| row.starts_with("0 attached ")),
        "{listed:?}"
    );
    ask(&["logs", "--all-nodes"]);
    cluster.login(["scancel", "-u", "alice"]);
    let _ = finish(batch);
    cluster.assert_nothing_left();
}

fn each_job_of_an_array_has_a_runtime(cluster: &Cluster) {
    let script = "echo job $SLURM_ARRAY_TASK_ID of ${DRAGON_RUNTIME#dragon/*/} $SLURM_JOB_ID
        echo here >> all; until [ $(wc -l < all) = 3 ]; do sleep 0.05; done
        echo $SLURM_ARRAY_TASK_ID $(srun -n2 -N2 sh -c 'dragon status | grep -o \"2 nodes up\"')";
    let _ = fs::remove_file(cluster.home("alice").join("all"));
    let options = ["--dragon", "--array=0-2", "-N2", "-n2", "-c1"];
    let done = cluster.login(sbatch(cluster, &options, script));
    let said = said(cluster);
    assert_eq!(done.code, Some(0), "{done:?} {said}");
    let lines = sorted(&said);
    for task in 0..3 {
        assert_eq!(
            lines[task],
            format!("{task} 2 nodes up 2 nodes up"),
            "{said}"
        );
        let words: Vec<_> = lines[3 + task].split(' ').collect();
        // Each is a runtime of its own job.
        let own = format!("{}.0/0/", words[4]);
        assert!(
            words[1] == task.to_string() && words[3].starts_with(&own),
            "{said}"
        );
    }
    cluster.assert_nothing_left();
}

/// The second life waits until nothing was left of the first one.
fn a_requeued_job_has_a_new_runtime(cluster: &Cluster) {
    let script = "echo $DRAGON_RUNTIME; dragon status | grep -o '3 nodes up'
        [ $SLURM_RESTART_COUNT ] && exit
        echo ready; sleep 1000";
    let words = sbatch(cluster, &["--requeue", "--dragon", "-N3"], script);
    let submit: Vec<_> = words.into_iter().filter(|word| *word != "--wait").collect();
    let submitted = cluster.login(submit);
    assert_eq!(submitted.code, Some(0), "{submitted:?}");
    says(cluster, "ready", 1);
    let job = running(cluster);
    as_root(cluster, &["scontrol", "requeue", &job]);
    as_root(cluster, &["scontrol", "hold", &job]);
    cluster.assert_nothing_left();
    as_root(cluster, &["scontrol", "release", &job]);
    eventually_empty("the queue", || cluster.login(["squeue", "-h"]).out);
    let said = said(cluster);
    let runtimes = said.lines().filter(|line| line.starts_with("dragon/"));
    let runtimes: BTreeSet<_> = runtimes.collect();
    assert_eq!(runtimes.len(), 2, "{said}");
    assert_eq!(said.matches("3 nodes up").count(), 2, "{said}");
    cluster.assert_nothing_left();
}

/// Three times as long as a daemon may be silent.
fn suspend_and_resume(cluster: &Cluster, job: &str) {
    as_root(cluster, &["scontrol", "suspend", job]);
    cluster.login(["sleep", "3"]);
    as_root(cluster, &["scontrol", "resume", job]);
}

fn a_suspended_step_goes_on(cluster: &Cluster) {
    for mode in ["head", "spmd"] {
        let option = format!("--dragon={mode},node_limit=1");
        let program = "echo ready; until [ -e go ]; do sleep 0.05; done; dragon status | grep -o '3 nodes up'";
        let _ = fs::remove_file(cluster.home("alice").join("go"));
        let words = ["srun", "-N3", &option, "sh", "-c", program];
        let tasks = if mode == "head" { 1 } else { 3 };
        let step = Step::start(&mut cluster.on("ctl", words)).ready(tasks);
        suspend_and_resume(cluster, &running(cluster));
        fs::write(cluster.home("alice").join("go"), "").unwrap();
        let (said, done) = step.ended();
        assert_eq!(done.code, Some(0), "{said} {done:?}");
        assert_eq!(said, "3 nodes up\n".repeat(tasks), "{done:?}");
        cluster.assert_nothing_left();
    }
}

fn a_suspended_allocation_goes_on(cluster: &Cluster) {
    let _ = fs::remove_file(cluster.home("alice").join("go"));
    let script = "echo ready; until [ -e go ]; do sleep 0.05; done; dragon sh -c \"dragon status | grep -o '3 nodes up'\"";
    let words = sbatch(cluster, &["--dragon=node_limit=1", "-N3"], script);
    let batch = cluster.on("ctl", words).spawn().unwrap();
    says(cluster, "ready", 1);
    suspend_and_resume(cluster, &running(cluster));
    fs::write(cluster.home("alice").join("go"), "").unwrap();
    let done = finish(batch);
    assert_eq!(done.code, Some(0), "{done:?} {}", said(cluster));
    assert_eq!(said(cluster), "ready\n3 nodes up\n");
    cluster.assert_nothing_left();
}

/// The last case: its node is gone.
fn an_allocation_goes_on_without_a_node(cluster: &Cluster) {
    let script = "echo ready
        until dragon status 2> /dev/null | grep -q '2 nodes up'; do sleep 0.05; done
        dragon python -c 'import dragon; print(len(dragon.nodes()), \"nodes are left\")'; exit 3";
    let options = [
        "--no-kill",
        "--dragon=on_node_failure=continue,node_limit=2",
        "-N3",
    ];
    let batch = cluster
        .on("ctl", sbatch(cluster, &options, script))
        .spawn()
        .unwrap();
    says(cluster, "ready", 1);
    let killed = run(cluster.rig().args(["kill", "n3"]));
    assert_eq!(killed.code, Some(0), "{killed:?}");
    says(cluster, "2 nodes are left", 1);
    let done = finish(batch);
    assert_eq!(done.code, Some(3), "{done:?} {}", said(cluster));
    assert!(
        said(cluster).contains("node 2 (n3) is lost; the job goes on with 2 nodes"),
        "{}",
        said(cluster)
    );
    for node in ["n1", "n2"] {
        eventually_empty(node, || cluster.traces(node));
    }
}
