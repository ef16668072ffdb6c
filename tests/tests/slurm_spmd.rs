//! `srun --dragon=spmd prog`: every task of the step is the program, on a real Slurm; and settings behind the mode. This program is
//! also the program of some steps.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use dragon::names::{self, Lasts, Value};
use dragon::{Channel, ChannelOptions, Deadline};
use dragon_tests::cluster::Cluster;
use dragon_tests::cpus::{SHOW, bound_tasks};
use dragon_tests::local::{Finished, eventually_empty, finish, run, run_with_input};
use dragon_tests::step::Step;
use dragon_tests::suite;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("ring") {
        return ring();
    }
    suite::run(
        || Cluster::slurm(3),
        &[
            (
                "every_task_has_a_runtime_and_a_rank",
                every_task_has_a_runtime_and_a_rank,
            ),
            ("python_knows_its_rank", python_knows_its_rank),
            (
                "messages_go_round_all_ranks_of_all_nodes",
                messages_go_round_all_ranks_of_all_nodes,
            ),
            (
                "tasks_start_processes_on_all_nodes",
                tasks_start_processes_on_all_nodes,
            ),
            ("a_task_keeps_its_own_cpus", a_task_keeps_its_own_cpus),
            (
                "pmi_and_other_descriptors_are_the_tasks",
                pmi_and_other_descriptors_are_the_tasks,
            ),
            (
                "input_output_and_labels_are_slurms",
                input_output_and_labels_are_slurms,
            ),
            (
                "exit_codes_are_those_of_tasks",
                exit_codes_are_those_of_tasks,
            ),
            ("bad_programs_are_named", bad_programs_are_named),
            (
                "the_runtime_ends_with_the_last_task",
                the_runtime_ends_with_the_last_task,
            ),
            (
                "a_killed_task_leaves_the_others_alone",
                a_killed_task_leaves_the_others_alone,
            ),
            (
                "a_bad_exit_ends_the_step_where_slurm_says_so",
                a_bad_exit_ends_the_step_where_slurm_says_so,
            ),
            (
                "a_bad_exit_is_told_over_a_new_connection",
                a_bad_exit_is_told_over_a_new_connection,
            ),
            (
                "what_a_task_reads_and_writes_is_its_own",
                what_a_task_reads_and_writes_is_its_own,
            ),
            (
                "a_site_may_end_steps_at_a_bad_exit",
                a_site_may_end_steps_at_a_bad_exit,
            ),
            (
                "a_killed_slurmstepd_ends_the_runtime",
                a_killed_slurmstepd_ends_the_runtime,
            ),
            (
                "a_killed_daemon_ends_the_step",
                a_killed_daemon_ends_the_step,
            ),
            (
                "a_daemon_killed_alone_ends_its_tasks",
                a_daemon_killed_alone_ends_its_tasks,
            ),
            (
                "a_killed_sibling_ends_its_program",
                a_killed_sibling_ends_its_program,
            ),
            ("signals_reach_every_task", signals_reach_every_task),
            (
                "a_cancelled_step_leaves_nothing",
                a_cancelled_step_leaves_nothing,
            ),
            (
                "interrupts_of_srun_are_for_the_tasks",
                interrupts_of_srun_are_for_the_tasks,
            ),
            ("settings_are_in_force", settings_are_in_force),
            (
                "bad_settings_are_refused_before_the_step",
                bad_settings_are_refused_before_the_step,
            ),
        ],
    )
}

/// Sends its rank to the next one through that one's channel, and says whose it got.
fn ring() -> ExitCode {
    let number = |name: &str| -> u32 { std::env::var(name).unwrap().parse().unwrap() };
    let (rank, size) = (number("DRAGON_RANK"), number("DRAGON_GROUP_SIZE"));
    let inbox = Channel::create(&ChannelOptions::default()).unwrap();
    let name = |rank| format!("inbox {rank}");
    names::publish(
        &name(rank),
        Value::Object(inbox.descriptor()),
        Lasts::WithPublisher,
    )
    .unwrap();
    let next = names::wait_for(&name((rank + 1) % size), Deadline::Never).unwrap();
    let Value::Object(next) = next else {
        panic!("no channel: {next:?}");
    };
    let next = Channel::attach(next, false).unwrap();
    next.send(&rank.to_le_bytes(), 0, Deadline::Never).unwrap();
    let got = inbox.receive(Deadline::Never).unwrap().to_vec();
    println!("{rank} got {}", u32::from_le_bytes(got.try_into().unwrap()));
    ExitCode::SUCCESS
}

/// Three tasks on the first node and one on the second, so that nodes are unequal: as many nodes as the file of hosts names.
const UNEQUAL: [&str; 3] = ["-n4", "-m", "arbitrary"];

fn srun<'a>(more: &[&'a str], program: &[&'a str]) -> Vec<&'a str> {
    [&["srun"], more, &["--dragon=spmd"], program].concat()
}

/// A step with [`UNEQUAL`] tasks.
fn unequal(cluster: &Cluster, program: &[&str]) -> Command {
    let hosts = ["env", "SLURM_HOSTFILE=hosts"];
    let written = cluster.login(["sh", "-c", "printf 'n1\\nn1\\nn1\\nn2\\n' > hosts"]);
    assert_eq!(written.code, Some(0), "{written:?}");
    cluster.on("ctl", [&hosts[..], &srun(&UNEQUAL, program)].concat())
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn every_task_has_a_runtime_and_a_rank(cluster: &Cluster) {
    let show = "echo $DRAGON_RANK $DRAGON_LOCAL_RANK $DRAGON_GROUP_SIZE $(hostname) ${DRAGON_RUNTIME%/*} $* \
        $(env | grep -c DRAGON_STEP) $SLURM_PROCID";
    let done = run(&mut unequal(cluster, &["sh", "-c", show, "sh", "a", "b c"]));
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""), "{done:?}");
    let job = done.out.split('/').nth(2).unwrap().to_owned();
    let runtime = |node: u32| format!("dragon/2001/{job}/{node}");
    let expected = [
        format!("0 0 4 n1 {} a b c 0 0", runtime(0)),
        format!("1 1 4 n1 {} a b c 0 1", runtime(0)),
        format!("2 2 4 n1 {} a b c 0 2", runtime(0)),
        format!("3 0 4 n2 {} a b c 0 3", runtime(1)),
    ];
    assert_eq!(sorted(&done.out), expected);
    cluster.assert_nothing_left();
}

fn python_knows_its_rank(cluster: &Cluster) {
    let program = "import dragon; print(dragon.rank(), dragon.local_rank(), dragon.size(), dragon.node().index, len(dragon.nodes()))";
    let python = cluster.site().venv().join("bin/python3");
    let python = python.to_str().unwrap();
    let done = cluster.login(srun(
        &["-N3", "-n6", "--ntasks-per-node=2"],
        &[python, "-c", program],
    ));
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""), "{done:?}");
    let expected = [
        "0 0 6 0 3",
        "1 1 6 0 3",
        "2 0 6 1 3",
        "3 1 6 1 3",
        "4 0 6 2 3",
        "5 1 6 2 3",
    ];
    assert_eq!(sorted(&done.out), expected);
    let alone = cluster.login(["env", python, "-c", "import dragon; dragon.rank()"]);
    assert!(
        alone.err.contains("only tasks of srun --dragon=spmd"),
        "{alone:?}"
    );
    cluster.assert_nothing_left();
}

fn messages_go_round_all_ranks_of_all_nodes(cluster: &Cluster) {
    let program = cluster.site().root().join("bin/spmd");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let program = program.to_str().unwrap();
    let done = cluster.login(srun(
        &["-N3", "-n6", "--ntasks-per-node=2"],
        &[program, "ring"],
    ));
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""), "{done:?}");
    let expected = [
        "0 got 5", "1 got 0", "2 got 1", "3 got 2", "4 got 3", "5 got 4",
    ];
    assert_eq!(sorted(&done.out), expected);
    cluster.assert_nothing_left();
}

/// Each task has workers of its own on all nodes, which are no tasks of the step.
fn tasks_start_processes_on_all_nodes(cluster: &Cluster) {
    let program = "import dragon, multiprocessing as mp, os, socket\n\
        def say(queue): queue.put((socket.gethostname(), 'SLURM_PROCID' in os.environ))\n\
        if __name__ == '__main__':\n\
        \x20   mp.set_start_method('dragon')\n\
        \x20   queue = mp.Queue()\n\
        \x20   for node in dragon.nodes():\n\
        \x20       with dragon.on_node(node.index): mp.Process(target=say, args=(queue,)).start()\n\
        \x20   print(dragon.rank(), sorted(queue.get() for _ in dragon.nodes()))\n";
    let path = cluster.home("alice").join("workers.py");
    std::fs::write(&path, program).unwrap();
    let done = cluster.login(srun(&["-N3", "-n3", "-c2"], &["./workers.py"]));
    assert_eq!(done.code, Some(0), "{done:?}");
    let workers = "[('n1', False), ('n2', False), ('n3', False)]";
    let expected = [0, 1, 2].map(|rank| format!("{rank} {workers}"));
    assert_eq!(sorted(&done.out), expected, "{done:?}");
    cluster.assert_nothing_left();
}

fn a_task_keeps_its_own_cpus(cluster: &Cluster) {
    let (options, cpus) = bound_tasks();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let show = ["sh", "-c", SHOW];
    let plain = cluster.login([&["srun"], &options[..], &show].concat());
    let ours = cluster.login(srun(&options, &show));
    assert_eq!(ours.code, Some(0), "{ours:?}");
    assert_eq!(sorted(&ours.out), sorted(&plain.out), "{ours:?}");
    // The runtime has those of all tasks.
    let status = cluster.login(srun(&options, &["dragon", "status", "--json"]));
    let count = format!("\"cpus\": {cpus},");
    assert!(status.out.contains(&count), "{status:?}");
    cluster.assert_nothing_left();
}

/// A program that speaks to Slurm's PMI-2 server as a library of MPI does, and looks at what else it was given.
fn pmi_and_other_descriptors_are_the_tasks(cluster: &Cluster) {
    let program = "import os\n\
        line = int(os.environ['PMI_FD'])\n\
        # A line, then messages behind their length in six digits.\n\
        os.write(line, b'cmd=init pmi_version=2 pmi_subversion=0\\n')\n\
        answer = b''\n\
        while not answer.endswith(b'\\n'): answer += os.read(line, 1)\n\
        jobid, rank = os.environ['PMI_JOBID'], os.environ['PMI_RANK']\n\
        full = f'cmd=fullinit;pmijobid={jobid};pmirank={rank};threaded=FALSE;'.encode()\n\
        os.write(line, b'%6d' % len(full) + full)\n\
        body = b''\n\
        while len(body) < 6 or len(body) < 6 + int(body[:6]): body += os.read(line, 1)\n\
        fds = [n for n in map(int, os.listdir('/proc/self/fd')) if n > 2 and os.path.exists(f'/proc/self/fd/{n}')]\n\
        print(rank, os.environ['PMI_SIZE'], b'rc=0' in answer, b'rc=0' in body and b'size=4' in body, fds == [line])\n";
    let path = cluster.home("alice").join("pmi.py");
    std::fs::write(&path, program).unwrap();
    let words = ["/usr/bin/python3", "./pmi.py"];
    let options = ["-N2", "-n4", "--ntasks-per-node=2", "--mpi=pmi2"];
    let plain = cluster.login([&["srun"], &options[..], &words].concat());
    let ours = cluster.login(srun(&options, &words));
    let expected = [
        "0 4 True True True",
        "1 4 True True True",
        "2 4 True True True",
        "3 4 True True True",
    ];
    assert_eq!(sorted(&plain.out), expected, "{plain:?}");
    assert_eq!(sorted(&ours.out), expected, "{ours:?}");
    cluster.assert_nothing_left();
}

fn input_output_and_labels_are_slurms(cluster: &Cluster) {
    let words = ["sh", "-c", "cat; echo task $SLURM_PROCID"];
    let labelled = srun(
        &["-l", "-N2", "-n4", "--ntasks-per-node=2", "--input=0"],
        &words,
    );
    let done = run_with_input(&mut cluster.on("ctl", labelled), b"for the first\n");
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""), "{done:?}");
    let expected = [
        "0: for the first",
        "0: task 0",
        "1: task 1",
        "2: task 2",
        "3: task 3",
    ];
    assert_eq!(sorted(&done.out), expected);
    cluster.assert_nothing_left();
}

/// The largest code of a task, as with any step, whichever task it is.
fn exit_codes_are_those_of_tasks(cluster: &Cluster) {
    for task in 0..4 {
        let program = format!("[ $DRAGON_RANK != {task} ] || exit 7");
        let done = run(&mut unequal(cluster, &["sh", "-c", &program]));
        assert_eq!(done.code, Some(7), "task {task}: {done:?}");
        let named = format!("task {task}: Exited with exit code 7");
        assert!(done.err.contains(&named), "{done:?}");
        let program = format!("[ $DRAGON_RANK != {task} ] || kill -9 $$");
        let done = run(&mut unequal(cluster, &["sh", "-c", &program]));
        assert_eq!(done.code, Some(128 + 9), "task {task}: {done:?}");
        assert!(
            done.err.contains(&format!("task {task}: Killed")),
            "{done:?}"
        );
    }
    let each = cluster.login(srun(
        &["-N3", "-n3"],
        &["sh", "-c", "exit $((DRAGON_RANK + 1))"],
    ));
    assert_eq!(each.code, Some(3), "{each:?}");
    cluster.assert_nothing_left();
}

fn bad_programs_are_named(cluster: &Cluster) {
    let done = cluster.login(srun(&["-N2", "-n4"], &["no-such-program"]));
    assert_eq!(done.code, Some(127), "{done:?}");
    let named = done.err.matches("no-such-program: command not found");
    assert_eq!(named.count(), 4, "{}", done.err);
    let done = cluster.login(srun(&["-N2", "-n2"], &["/tmp"]));
    assert_eq!(done.code, Some(126), "{done:?}");
    cluster.assert_nothing_left();
}

/// The first task, whose daemon the others need, may be the first to end, on each node.
fn the_runtime_ends_with_the_last_task(cluster: &Cluster) {
    let last = "import dragon, time, os\n\
        if __name__ == '__main__' and dragon.rank() == 3:\n\
        \x20   while int(open('ended').read() or 0) < 3: time.sleep(0.01)\n\
        \x20   assert len(dragon.nodes()) == 2\n\
        \x20   import multiprocessing as mp\n\
        \x20   mp.set_start_method('dragon')\n\
        \x20   with dragon.on_node(0): p = mp.Process(target=print, args=('works',)); p.start(); p.join()\n";
    let home = cluster.home("alice");
    std::fs::write(home.join("last.py"), last).unwrap();
    std::fs::write(home.join("ended"), "").unwrap();
    let python = cluster.site().venv().join("bin/python3");
    let python = python.to_str().unwrap();
    let child = unequal(cluster, &[python, "last.py"]).spawn().unwrap();
    let left = |node: &str| {
        let count = run(&mut cluster.on(node, ["pgrep", "-c", "-f", "python3 last.py"]));
        count.out.trim().parse::<u32>().unwrap_or(0)
    };
    eventually_empty("n1", || match left("n1") {
        0 => String::new(),
        more => format!("{more} tasks"),
    });
    std::fs::write(home.join("ended"), "3").unwrap();
    let done = finish(child);
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "works\n"),
        "{done:?}"
    );
    cluster.assert_nothing_left();
}

/// Starts a step of so many tasks that all say "ready", and waits for that.
fn ready(cluster: &Cluster, options: &[&str], program: &str) -> Step {
    let tasks = options.iter().find_map(|word| word.strip_prefix("-n"));
    let tasks = tasks.unwrap().parse().unwrap();
    let srun = srun(options, &["sh", "-c", program]);
    Step::start(&mut cluster.on("ctl", srun)).ready(tasks)
}

const TWO_BY_TWO: [&str; 3] = ["-N2", "-n4", "--ntasks-per-node=2"];

/// Kills a process of a node: one that `pgrep` lists and that has this in its environment.
fn kill(cluster: &Cluster, node: &str, listed: &str, variable: &str) {
    let script = format!(
        "for p in $(pgrep {listed}); do \
            tr '\\0' '\\n' < /proc/$p/environ | grep -qx {variable} && kill -9 $p && exit 0; \
        done; exit 1"
    );
    let done = run(&mut cluster.on(node, ["-u", "root", "sh", "-c", &script]));
    assert_eq!(done.code, Some(0), "{script}: {done:?}");
}

/// Kills the daemon of a node, which is its first task, or what stands in front of the program of another task.
fn kill_dragond(cluster: &Cluster, node: &str, local: u32) {
    let variable = format!("SLURM_LOCALID={local}");
    kill(cluster, node, "-f '^[^ ]*bin/dragond'", &variable);
}

fn a_killed_task_leaves_the_others_alone(cluster: &Cluster) {
    // The first task of a node, and another one.
    for local in [0, 1] {
        let program = "echo ready; while [ ! -e go ]; do sleep 0.05; done; echo on";
        let _ = std::fs::remove_file(cluster.home("alice").join("go"));
        let step = ready(cluster, &TWO_BY_TWO, program);
        kill(
            cluster,
            "n2",
            "-x sh",
            &format!("DRAGON_LOCAL_RANK={local}"),
        );
        cluster.login(["touch", "go"]);
        let (text, done) = step.ended();
        assert_eq!(text, "on\non\non\n", "{done:?}");
        assert_eq!(done.code, Some(128 + 9), "{done:?}");
        let named = format!("task {}: Killed", 2 + local);
        assert!(done.err.contains(&named), "{done:?}");
        cluster.login(["rm", "go"]);
        cluster.assert_nothing_left();
    }
}

fn a_bad_exit_ends_the_step_where_slurm_says_so(cluster: &Cluster) {
    for task in 0..4 {
        for option in [&["-K"][..], &["--kill-on-bad-exit=1"]] {
            let options = [&TWO_BY_TWO[..], option].concat();
            let program = format!("[ $DRAGON_RANK = {task} ] && exit 7; sleep 1000");
            let done = cluster.login(srun(&options, &["sh", "-c", &program]));
            assert_ne!(done.code, Some(0), "task {task}: {done:?}");
            let named = format!("task {task}: Exited with exit code 7");
            assert!(done.err.contains(&named), "{done:?}");
            cluster.assert_nothing_left();
        }
    }
}

/// The first task of a node that is cut off ends badly, and what its daemon says of that is lost with the connection.
fn a_bad_exit_is_told_over_a_new_connection(cluster: &Cluster) {
    let go = cluster.home("alice").join("go");
    let _ = std::fs::remove_file(&go);
    let program = "echo ready; while [ ! -e go ]; do sleep 0.05; done; [ $DRAGON_RANK = 2 ] && exit 7; sleep 1000";
    let srun = [
        "srun",
        "--no-kill",
        "-K",
        "--dragon=spmd,on_node_failure=continue",
    ];
    let srun = [&srun, &TWO_BY_TWO[..], &["sh", "-c", program]].concat();
    let step = Step::start(&mut cluster.on("ctl", srun)).ready(4);
    let rig = |words: &[&str]| assert_eq!(run(cluster.rig().args(words)).code, Some(0));
    rig(&["cut", "n2"]);
    std::fs::write(&go, "").unwrap();
    eventually_empty("n2", || {
        let first = "for p in $(pgrep -x sh); do tr '\\0' '\\n' < /proc/$p/environ | grep -x DRAGON_RANK=2; done; true";
        run(&mut cluster.on("n2", ["-u", "root", "sh", "-c", first])).out
    });
    let reset = ["-u", "root", "ss", "-K", "-H", "-t", "dst", "10.77.0.1"];
    let reset = run(&mut cluster.on("n2", reset));
    rig(&["join", "n2"]);
    if reset.out.is_empty() {
        println!(
            "SKIPPED a reset connection: the kernel ends no sockets for ss -K (CONFIG_INET_DIAG_DESTROY)"
        );
    }
    let (_, done) = step.ended();
    assert_ne!(done.code, Some(0), "{done:?}");
    let named = done.err.contains("task 2: Exited with exit code 7");
    assert!(named, "{done:?}");
    std::fs::remove_file(&go).unwrap();
    cluster.assert_nothing_left();
}

/// Whoever reads what it writes sees the end when it closes its own: what stands before it holds neither that nor its input.
fn what_a_task_reads_and_writes_is_its_own(cluster: &Cluster) {
    let program = "[ $DRAGON_LOCAL_RANK = 0 ] && exit
        own() { for n in 0 1 2; do readlink /proc/$$/fd/$n; done; }
        while ls -l /proc/$PPID/fd | grep -qF \"$(own | grep -v /dev/null)\"; do sleep 0.05; done
        echo alone";
    let options = [&TWO_BY_TWO[..], &["--input=all"]].concat();
    let srun = srun(&options, &["sh", "-c", program]);
    let done = run_with_input(&mut cluster.on("ctl", srun), b"input\n");
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "alone\nalone\n"),
        "{done:?}"
    );
    cluster.assert_nothing_left();
}

/// Another line in slurm.conf, until the end of the case.
struct Configured<'a> {
    cluster: &'a Cluster,
    before: String,
}

impl<'a> Configured<'a> {
    fn with(cluster: &'a Cluster, line: &str) -> Self {
        let before = std::fs::read_to_string(Self::file(cluster)).unwrap();
        let done = Self::write(cluster, &format!("{before}\n{line}\n"));
        let configured = Self { cluster, before };
        assert_eq!(done.code, Some(0), "{done:?}");
        configured
    }

    fn file(cluster: &Cluster) -> PathBuf {
        cluster.folder().join("etc/slurm.conf")
    }

    fn write(cluster: &Cluster, text: &str) -> Finished {
        std::fs::write(Self::file(cluster), text).unwrap();
        run(&mut cluster.on("ctl", ["-u", "root", "scontrol", "reconfigure"]))
    }
}

impl Drop for Configured<'_> {
    fn drop(&mut self) {
        let done = Self::write(self.cluster, &self.before);
        if done.code != Some(0) {
            eprintln!("Slurm keeps the settings of a case: {done:?}");
        }
    }
}

/// The site says so, and srun nothing.
fn a_site_may_end_steps_at_a_bad_exit(cluster: &Cluster) {
    let _set = Configured::with(cluster, "KillOnBadExit=1");
    let ends = cluster.login(srun(
        &TWO_BY_TWO,
        &["sh", "-c", "[ $DRAGON_RANK = 2 ] && exit 7; sleep 1000"],
    ));
    let named = ends.err.contains("task 2: Exited with exit code 7");
    assert!(ends.code != Some(0) && named, "{ends:?}");
    let told_otherwise =
        "[ $DRAGON_RANK = 2 ] && exit 7; [ $DRAGON_RANK != 0 ] || { sleep 0.5; echo on; }";
    let goes_on = cluster.login(srun(
        &[&TWO_BY_TWO[..], &["-K0"]].concat(),
        &["sh", "-c", told_otherwise],
    ));
    assert_eq!(
        (goes_on.code, goes_on.out.as_str()),
        (Some(7), "on\n"),
        "{goes_on:?}"
    );
    cluster.assert_nothing_left();
}

fn a_killed_daemon_ends_the_step(cluster: &Cluster) {
    for node in ["n1", "n2"] {
        let step = ready(cluster, &TWO_BY_TWO, "echo ready; sleep 1000; echo late");
        kill_dragond(cluster, node, 0);
        let (text, done) = step.ended();
        assert_eq!(text, "", "{done:?}");
        assert_ne!(done.code, Some(0), "{done:?}");
        let lost = ["node 0 (n1) is lost", "node 1 (n2) is lost"];
        let named = lost[usize::from(node == "n2")];
        assert!(done.err.contains(named), "{done:?}");
        cluster.assert_nothing_left();
    }
}

/// Nobody is there to cancel the step.
fn a_daemon_killed_alone_ends_its_tasks(cluster: &Cluster) {
    let program = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let step = ready(cluster, &["-N1", "-n3"], program);
    kill_dragond(cluster, "n1", 0);
    let (_, done) = step.ended();
    assert_ne!(done.code, Some(0), "{done:?}");
    cluster.assert_nothing_left();
}

fn a_killed_slurmstepd_ends_the_runtime(cluster: &Cluster) {
    let step = ready(cluster, &TWO_BY_TWO, "echo ready; sleep 1000");
    let stepd = "kill -9 $(pgrep -f '^slurmstepd: ')";
    let killed = run(&mut cluster.on("n2", ["-u", "root", "sh", "-c", stepd]));
    assert_eq!(killed.code, Some(0), "{killed:?}");
    // srun itself waits for ever for a lost slurmstepd; what counts is that nothing of ours is left.
    cluster.assert_nothing_left();
    cluster.login(["scancel", "-s", "KILL", "-u", "alice"]);
    // The next case would take it for its own.
    run(&mut cluster.on("ctl", ["-u", "root", "pkill", "-9", "-x", "srun"]));
    step.kill();
}

fn a_killed_sibling_ends_its_program(cluster: &Cluster) {
    let program = "echo ready; [ $DRAGON_RANK = 3 ] && exec tail -f /dev/null; while [ ! -e go ]; do sleep 0.05; done";
    let step = ready(cluster, &TWO_BY_TWO, program);
    kill_dragond(cluster, "n2", 1);
    eventually_empty("n2", || {
        run(&mut cluster.on("n2", ["pgrep", "-x", "tail"])).out
    });
    cluster.login(["touch", "go"]);
    let (_, done) = step.ended();
    assert_eq!(done.code, Some(128 + 9), "{done:?}");
    assert!(done.err.contains("task 3: Killed"), "{done:?}");
    cluster.login(["rm", "go"]);
    cluster.assert_nothing_left();
}

fn signals_reach_every_task(cluster: &Cluster) {
    let names = "USR2 QUIT ABRT ALRM URG XCPU TSTP CONT HUP TERM";
    let traps = format!(
        "for s in {names}; do trap \"echo $s\" $s; done; trap 'exit 3' USR1; echo ready; \
        while :; do sleep 0.05; done"
    );
    let mut step = ready(cluster, &TWO_BY_TWO, &traps);
    let job = cluster.login(["squeue", "-h", "-t", "R", "-o", "%i"]).out;
    for name in names.split(' ') {
        let kill = format!("scancel -s $(bash -c 'kill -l {name}') {}", job.trim());
        cluster.login(["sh", "-c", &kill]);
        for _ in 0..4 {
            assert_eq!(step.line(), format!("{name}\n"));
        }
    }
    cluster.login(["scancel", "-s", "USR1", job.trim()]);
    let (text, done) = step.ended();
    assert_eq!(text, "", "{done:?}");
    assert_eq!(done.code, Some(3), "{done:?}");
    cluster.assert_nothing_left();
}

/// A task that is told to end says so, and takes the time that Slurm gives it; one that is deaf is killed by Slurm.
fn a_cancelled_step_leaves_nothing(cluster: &Cluster) {
    let told = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let step = ready(cluster, &TWO_BY_TWO, told);
    cluster.login(["scancel", "-u", "alice"]);
    let (text, done) = step.ended();
    assert_eq!(text, "told\n".repeat(4), "{done:?}");
    assert_ne!(done.code, Some(0), "{done:?}");
    cluster.assert_nothing_left();
    let plain = "echo ready; sleep 1000 & setsid sleep 1000 & sleep 1000";
    let step = ready(cluster, &TWO_BY_TWO, plain);
    cluster.login(["scancel", "-u", "alice"]);
    assert_ne!(step.ended().1.code, Some(0));
    cluster.assert_nothing_left();
}

/// srun takes the first Ctrl-C for a question; at the second it passes it to the tasks, and then ends the step.
fn interrupts_of_srun_are_for_the_tasks(cluster: &Cluster) {
    // srun has a child of the same name; whose number may be the lower one.
    let srun = "for p in $(pgrep -x srun); do pgrep -x srun -P $p > /dev/null && break; done";
    let interrupt = |script: &str| {
        let script = format!("{srun}; {script}");
        let done = run(&mut cluster.on("ctl", ["sh", "-c", &script]));
        assert_eq!(done.code, Some(0), "{done:?}");
    };
    let trap = "trap 'echo alive' USR1; echo ready; while :; do sleep 0.05; done";
    let mut step = ready(cluster, &TWO_BY_TWO, trap);
    interrupt("kill -INT $p");
    let job = cluster.login(["squeue", "-h", "-t", "R", "-o", "%i"]).out;
    cluster.login(["scancel", "-s", "USR1", job.trim()]);
    for _ in 0..4 {
        assert_eq!(step.line(), "alive\n");
    }
    let until_it_ends = "for i in $(seq 100); do kill -INT $p 2> /dev/null || exit 0; sleep 0.2; done; \
        cat /proc/$p/wchan /proc/$p/status; squeue -s; exit 1";
    interrupt(until_it_ends);
    let (_, done) = step.ended();
    assert_ne!(done.code, Some(0), "{done:?}");
    cluster.assert_nothing_left();
}

fn settings_are_in_force(cluster: &Cluster) {
    for mode in ["head,", "spmd,", ""] {
        let option = format!("--dragon={mode}pool=64M,transport=tcp");
        let status = ["dragon", "status", "--json"];
        let done = cluster.login([&["srun", "-N2", "-n2", &option], &status[..]].concat());
        assert_eq!(done.code, Some(0), "{option}: {done:?}");
        let limit = format!("{}", 64 << 20);
        assert!(done.out.contains(&limit), "{option}: {done:?}");
        // What is nearer to the step counts more.
        let other = ["env", "DRAGON_POOL=32M"];
        let words = [&other, &["srun", "-N2", "-n2", &option][..], &status].concat();
        let done = cluster.login(words);
        assert!(done.out.contains(&limit), "{option}: {done:?}");
    }
    cluster.assert_nothing_left();
}

fn bad_settings_are_refused_before_the_step(cluster: &Cluster) {
    for (option, text) in [
        (
            "--dragon=head,pol=8G",
            "there is no setting 'pol'; did you mean pool?",
        ),
        (
            "--dragon=spmd,pool=1K",
            "pool=1K: 1K is below the minimum of 4M",
        ),
        (
            "--dragon=encrypt=maybe",
            "encrypt=maybe: 'maybe' is neither true nor false",
        ),
        ("--dragon=head,8G", "'8G' is no setting"),
        ("--dragon=spmd,rsh=ssh", "for the command dragon"),
        (
            "--dragon=off,pool=8G",
            "without a runtime there are no settings",
        ),
    ] {
        let done = cluster.login(["srun", option, "-N2", "sh", "-c", "echo ran"]);
        assert_eq!((done.code, done.out.as_str()), (Some(255), ""), "{done:?}");
        assert!(done.err.contains(text), "{option}: {done:?}");
    }
    assert_eq!(cluster.login(["squeue", "-h"]).out, "");
}
