//! `sbatch --dragon`, `#SBATCH --dragon`, `salloc --dragon`: a runtime for a whole job, the heads and steps that share it,
//! and every way the job can end, on a real Slurm.

#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ExitCode};

use dragon_tests::cluster::Cluster;
use dragon_tests::local::{Finished, eventually_empty, finish, run};
use dragon_tests::step::Step;
use dragon_tests::suite;

fn main() -> ExitCode {
    suite::run_with_slow(
        || Cluster::slurm(3),
        &[
            (
                "the_runtime_is_up_before_the_first_line",
                the_runtime_is_up_before_the_first_line,
            ),
            ("heads_share_the_runtime", heads_share_the_runtime),
            (
                "steps_of_any_shape_attach_on_their_node",
                steps_of_any_shape_attach_on_their_node,
            ),
            (
                "a_step_with_the_option_is_a_head",
                a_step_with_the_option_is_a_head,
            ),
            (
                "what_a_head_has_started_ends_with_it",
                what_a_head_has_started_ends_with_it,
            ),
            (
                "the_runtime_takes_nothing_from_later_steps",
                the_runtime_takes_nothing_from_later_steps,
            ),
            (
                "options_that_come_too_late_are_refused",
                options_that_come_too_late_are_refused,
            ),
            ("the_end_is_the_scripts", the_end_is_the_scripts),
            (
                "a_signal_for_the_script_reaches_it",
                a_signal_for_the_script_reaches_it,
            ),
            (
                "every_signal_that_one_can_ask_for_reaches_the_script",
                every_signal_that_one_can_ask_for_reaches_the_script,
            ),
            (
                "a_runtime_lost_after_a_signal_is_noticed",
                a_runtime_lost_after_a_signal_is_noticed,
            ),
            (
                "a_shell_is_in_the_runtime_of_its_allocation",
                a_shell_is_in_the_runtime_of_its_allocation,
            ),
            (
                "a_command_of_salloc_has_a_runtime_for_each_step",
                a_command_of_salloc_has_a_runtime_for_each_step,
            ),
            (
                "a_job_that_does_not_ask_is_left_alone",
                a_job_that_does_not_ask_is_left_alone,
            ),
            (
                "two_jobs_on_the_same_nodes_do_not_mix",
                two_jobs_on_the_same_nodes_do_not_mix,
            ),
            (
                "a_runtime_that_does_not_come_up_ends_the_job",
                a_runtime_that_does_not_come_up_ends_the_job,
            ),
            (
                "a_cancelled_job_tells_its_script_and_leaves_nothing",
                a_cancelled_job_tells_its_script_and_leaves_nothing,
            ),
            ("a_killed_daemon_ends_the_job", a_killed_daemon_ends_the_job),
            (
                "a_killed_keeper_or_script_leaves_nothing",
                a_killed_keeper_or_script_leaves_nothing,
            ),
        ],
        &[
            (
                (
                    "the_time_limit_tells_the_script",
                    the_time_limit_tells_the_script,
                ),
                "Slurm looks at its limits every 30 s",
            ),
            (
                (
                    "a_stopped_daemon_does_not_hold_the_job",
                    a_stopped_daemon_does_not_hold_the_job,
                ),
                "srun waits 30 s for it",
            ),
        ],
    )
}

/// A batch job that was submitted.
struct Job<'a> {
    cluster: &'a Cluster,
    sbatch: Child,
    /// What the job says, on a file that all nodes see.
    out: PathBuf,
}

/// How a batch job ended.
#[derive(Debug)]
struct Ended {
    /// Exit code, as sbatch passes it on.
    code: Option<i32>,
    /// Output and errors.
    said: String,
}

impl<'a> Job<'a> {
    /// Submits a script with these options.
    fn submit(cluster: &'a Cluster, options: &[&str], script: &str) -> Self {
        thread_local!(static JOBS: Cell<u32> = const { Cell::new(0) });
        let number = JOBS.replace(JOBS.get() + 1);
        let home = cluster.home("alice");
        let (file, out) = (format!("script-{number}"), format!("out-{number}"));
        fs::write(home.join(&file), format!("#!/bin/bash\n{script}\n")).unwrap();
        let output = format!("--output={out}");
        let words = [&["sbatch", "--wait", "--quiet", &output], options, &[&file]].concat();
        Self {
            sbatch: cluster.on("ctl", words).spawn().unwrap(),
            out: home.join(out),
            cluster,
        }
    }

    fn said(&self) -> String {
        // The file is there when the job has started.
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// Waits until the script has said something.
    fn says(&self, line: &str) {
        eventually_empty("the script", || {
            let said = self.said();
            if said.lines().any(|other| other == line) {
                String::new()
            } else {
                format!("no '{line}' in: {said}")
            }
        });
    }

    fn ends(self) -> Ended {
        let done = finish(self.sbatch);
        assert_eq!(done.err, "");
        self.cluster.assert_nothing_left();
        Ended {
            code: done.code,
            said: fs::read_to_string(&self.out).unwrap_or_default(),
        }
    }
}

/// Runs a job over three nodes to its end, which is to be good. Newer releases of Slurm give its `-c2` to the steps, too: one of
/// more tasks than nodes says what it wants.
fn job(cluster: &Cluster, script: &str) -> String {
    let done = Job::submit(cluster, &["-N3", "-c2", "--dragon"], script).ends();
    assert_eq!(done.code, Some(0), "{done:?}");
    // On a busy machine Slurm still has a step on its books when the next one asks for the same CPUs, and srun says so.
    let of_srun =
        |line: &&str| line.starts_with("srun: Job ") || line.starts_with("srun: Step created");
    let lines = done.said.lines().filter(|line| !of_srun(line));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The number of a job that runs alone.
fn running(cluster: &Cluster) -> String {
    let jobs = cluster.login(["squeue", "-h", "-t", "R", "-o", "%A"]);
    jobs.out.trim().to_owned()
}

fn the_runtime_is_up_before_the_first_line(cluster: &Cluster) {
    // As people write it.
    let script = "#SBATCH --dragon\n#SBATCH -N3\ndragon status\nenv | grep -c -e DRAGON_STEP -e SPANK\nexit 0";
    let done = Job::submit(cluster, &[], script).ends();
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.said.contains("3 nodes up"), "{done:?}");
    assert!(done.said.ends_with("\n0\n"), "{done:?}");
}

fn heads_share_the_runtime(cluster: &Cluster) {
    let hello = format!("dragon {}", cluster.site().example("hello_world.py"));
    let script = format!(
        "echo runtime $DRAGON_RUNTIME
        {hello} && {hello}
        {hello} & {hello} & wait %1 && wait %2 || exit 1
        dragon sh -c 'echo runtime $DRAGON_RUNTIME; exit 5'; echo code $?
        dragon -N3 sh -c 'echo runtime $DRAGON_RUNTIME'
        python -c 'import dragon; print(len(dragon.nodes()), \"nodes\")'"
    );
    let said = job(cluster, &script);
    for node in ["n1", "n2", "n3"] {
        // Two workers on each node, for each of four heads.
        let hellos = said.matches(&format!(" ({node}), process ")).count();
        assert_eq!(hellos, 8, "{node}: {said}");
    }
    let mut runtimes = said
        .lines()
        .filter(|line| line.starts_with("runtime dragon/"));
    let first = runtimes.next();
    assert!(first.is_some(), "{said}");
    assert_eq!([runtimes.next(), runtimes.next()], [first; 2], "{said}");
    assert!(
        said.contains("\ncode 5\n") && said.contains("\n3 nodes\n"),
        "{said}"
    );
}

/// A head that dies leaves its workers behind, who wait for it: they end with it, and the runtime goes on.
fn what_a_head_has_started_ends_with_it(cluster: &Cluster) {
    let head = "import dragon, multiprocessing, os, time
multiprocessing.set_start_method('dragon')
for _ in range(6): multiprocessing.Process(target=time.sleep, args=(1000,)).start()
print('started', flush=True)
os.kill(os.getpid(), 9)";
    let processes = "dragon ps --all-nodes | grep -c python";
    let script = format!(
        "exec 2> /dev/null
        for start in dragon 'srun --dragon'; do
            $start python -c \"{head}\"; echo code $?
            until [ $({processes}) = 0 ]; do sleep 0.05; done
        done
        dragon status | grep -o '3 nodes up'"
    );
    let said = job(cluster, &script);
    assert_eq!(said, "started\ncode 137\nstarted\ncode 137\n3 nodes up\n");
}

/// A Python program that says on which node of a runtime of how many it is, and where that is.
const ATTACHES: &str = "import dragon, os; dragon.attach(); \
    print('node', dragon.node().index, 'of', len(dragon.nodes()), 'on', os.uname().nodename, flush=True)";

fn steps_of_any_shape_attach_on_their_node(cluster: &Cluster) {
    let python = cluster.site().venv().join("bin/python");
    let script = format!(
        "step() {{ echo step; srun \"$@\" {python} -c \"{ATTACHES}\" | sort; }}
        step -N2 -n4 -c1
        step -w n3 -N1 -n1
        step --export=NONE -N3
        step -N3 --overlap
        srun -N1 -n1 -w n2 dragon status | grep -o '3 nodes up'",
        python = python.display()
    );
    let said = job(cluster, &script);
    let node = |index: u32| format!("node {index} of 3 on n{}\n", index + 1);
    let step = |nodes: &[u32]| {
        let lines: String = nodes.iter().map(|index| node(*index)).collect();
        format!("step\n{lines}")
    };
    let all = step(&[0, 1, 2]);
    let expected = [step(&[0, 0, 1, 1]), step(&[2]), all.clone(), all].concat();
    assert_eq!(said, expected + "3 nodes up\n");
}

fn a_step_with_the_option_is_a_head(cluster: &Cluster) {
    let head =
        "sh -c 'echo $DRAGON_RUNTIME $(hostname) $(env | grep -c -e DRAGON_STEP -e SLURM_PROCID)'";
    let script = format!(
        "echo $DRAGON_RUNTIME $(hostname) 0
        srun --dragon {head}
        srun -n5 -c1 --dragon=head {head}
        srun --dragon {hello}
        srun -N3 --dragon sh -c 'exit 6' 2> /dev/null; echo code $?
        srun -N3 --dragon no-such-program 2>&1 | grep -c 'no-such-program: command not found'
        srun -N2 --dragon=off sh -c 'echo plain'",
        hello = cluster.site().example("hello_world.py")
    );
    let said = job(cluster, &script);
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].starts_with("dragon/2001/"), "{said}");
    assert_eq!(lines[..3], [lines[0]; 3], "{said}");
    assert!(lines[3].starts_with("6 workers on 3 nodes"), "{said}");
    assert!(said.ends_with("\ncode 6\n1\nplain\nplain\n"), "{said}");
}

fn the_runtime_takes_nothing_from_later_steps(cluster: &Cluster) {
    let script = "srun -n6 -c1 true && srun -N3 -n6 -c1 --mem=1000 true && srun true && echo all";
    assert_eq!(job(cluster, script), "all\n");
}

fn options_that_come_too_late_are_refused(cluster: &Cluster) {
    let script = "dragon --pool 8M true; echo $?
        dragon -N2 true; echo $?
        dragon --output 'x%n' true; echo $?
        dragon --env A=b --placement local sh -c 'echo $A $DRAGON_PLACEMENT'
        dragon -s sh -c 'test $DRAGON_RUNTIME = $SLURM_DRAGON_JOB_RUNTIME'; echo $?";
    let said = job(cluster, script);
    let lines: Vec<_> = said.lines().collect();
    assert!(
        lines[0].contains("--pool 8M: the runtime of this job is up")
            && lines[0].contains("DRAGON_POOL=8M"),
        "{said}"
    );
    assert!(
        lines[2].contains("--nodes 2: the runtime of this job is up and has 3 nodes"),
        "{said}"
    );
    assert!(lines[4].contains("leave %n out"), "{said}");
    assert_eq!([lines[1], lines[3], lines[5]], ["2"; 3]);
    assert_eq!(lines[6..], ["b local", "1"], "{said}");
}

fn the_end_is_the_scripts(cluster: &Cluster) {
    let done = Job::submit(cluster, &["-N3", "--dragon"], "exit 7").ends();
    assert_eq!((done.code, done.said.as_str()), (Some(7), ""));
    // As Slurm reports what a signal ended.
    let job = Job::submit(
        cluster,
        &["-N2", "--dragon"],
        "echo $SLURM_JOB_ID > id; kill -9 $$",
    );
    assert_eq!(job.ends().said, "");
    let id = fs::read_to_string(cluster.home("alice").join("id")).unwrap();
    let shown = cluster.login(["scontrol", "show", "job", id.trim()]).out;
    assert!(shown.contains("ExitCode=0:9"), "{shown}");
    let done = Job::submit(cluster, &["-N2", "--dragon"], "").ends();
    assert_eq!((done.code, done.said.as_str()), (Some(0), ""));
}

fn a_signal_for_the_script_reaches_it(cluster: &Cluster) {
    let script = "trap 'echo signalled; exit 3' USR1; echo ready; while :; do sleep 0.05; done";
    let job = Job::submit(cluster, &["-N2", "--dragon"], script);
    job.says("ready");
    let id = running(cluster);
    cluster.login(["scancel", "--batch", "-s", "USR1", &id]);
    let done = job.ends();
    assert_eq!(
        (done.code, done.said.as_str()),
        (Some(3), "ready\nsignalled\n")
    );
    // One for the steps of the job does not concern the runtime.
    let script = "echo ready; until [ -e go ]; do sleep 0.05; done; rm go; dragon status | grep -o '2 nodes up'";
    let job = Job::submit(cluster, &["-N2", "--dragon"], script);
    job.says("ready");
    cluster.login(["scancel", "-s", "USR1", &running(cluster)]);
    fs::write(cluster.home("alice").join("go"), "").unwrap();
    let done = job.ends();
    assert_eq!(
        (done.code, done.said.as_str()),
        (Some(0), "ready\n2 nodes up\n")
    );
}

/// Each by its number: `scancel` knows few by name.
fn every_signal_that_one_can_ask_for_reaches_the_script(cluster: &Cluster) {
    const ALL: [&str; 16] = [
        "HUP", "INT", "QUIT", "ABRT", "USR1", "USR2", "ALRM", "TERM", "CONT", "TSTP", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "PWR",
    ];
    let script = format!(
        "for s in {}; do trap \"echo heard $s\" $s; done; echo ready
        until [ -e go ]; do sleep 0.05; done; rm go; dragon status | grep -o '2 nodes up'",
        ALL.join(" ")
    );
    let job = Job::submit(cluster, &["-N2", "--dragon"], &script);
    job.says("ready");
    let id = running(cluster);
    for name in ALL {
        let number = run(&mut cluster.on("ctl", ["bash", "-c", &format!("kill -l {name}")])).out;
        // To the script, then to the steps: the runtime does not mind.
        cluster.login(["scancel", "--batch", "-s", number.trim(), &id]);
        job.says(&format!("heard {name}"));
        if !["HUP", "INT", "TERM"].contains(&name) {
            cluster.login(["scancel", "-s", number.trim(), &id]);
        }
    }
    fs::write(cluster.home("alice").join("go"), "").unwrap();
    let done = job.ends();
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.said.ends_with("\n2 nodes up\n"), "{done:?}");
}

/// A script may be told to end without the runtime, and take its time.
fn a_runtime_lost_after_a_signal_is_noticed(cluster: &Cluster) {
    let script = "trap 'echo told' TERM; echo ready; while :; do sleep 0.05; done";
    let job = Job::submit(cluster, &["-N3", "--dragon"], script);
    job.says("ready");
    cluster.login(["scancel", "--batch", "-s", "TERM", &running(cluster)]);
    job.says("told");
    kill_on(cluster, "n2", "KILL", DAEMON);
    let done = job.ends();
    assert_eq!(done.code, Some(125), "{done:?}");
    assert!(
        done.said.contains("the runtime of this job has ended"),
        "{done:?}"
    );
}

/// A shell of salloc at a terminal, into which these lines are typed, each when the shell asks for it. What came then.
fn type_into_shell(cluster: &Cluster, lines: &[&str]) -> (String, Finished) {
    let salloc = "salloc -N2 -c2 --dragon";
    let words = [
        "env",
        "SHELL=/bin/bash",
        "script",
        "-qec",
        salloc,
        "/dev/null",
    ];
    let (mut terminal, mut keyboard) = Step::with_input(&mut cluster.on("ctl", words));
    let mut said = String::new();
    for line in lines {
        said += &terminal
            .out()
            .until("prompt", |text| text.ends_with(b"$ ").then_some(text.len()));
        keyboard.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
    let (rest, done) = terminal.ended();
    ((said + &rest).replace('\r', ""), done)
}

fn a_shell_is_in_the_runtime_of_its_allocation(cluster: &Cluster) {
    let attaches = format!("srun python -c \"{ATTACHES}\"");
    let (said, done) = type_into_shell(
        cluster,
        &[
            "dragon status",
            &attaches,
            "srun --dragon sh -c 'echo head on $(hostname)'",
            "exit 3",
        ],
    );
    for line in [
        "2 nodes up;",
        "node 0 of 2 on n1\n",
        "node 1 of 2 on n2\n",
        "head on n1\n",
    ] {
        assert_eq!(said.matches(line).count(), 1, "{line}: {said} {done:?}");
    }
    assert_eq!(done.code, Some(3), "{said} {done:?}");
    cluster.assert_nothing_left();
}

/// With a command salloc runs that on the login node, where no runtime can be: each step has its own.
fn a_command_of_salloc_has_a_runtime_for_each_step(cluster: &Cluster) {
    let step = "srun sh -c 'echo head on $(hostname) of $DRAGON_RUNTIME'";
    let steps = format!("{step}; {step}");
    let done = cluster.login(["salloc", "-N2", "--dragon", "sh", "-c", &steps]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let heads: Vec<_> = done.out.lines().collect();
    assert_eq!(heads.len(), 2, "{done:?}");
    for (step, head) in heads.iter().enumerate() {
        assert!(head.starts_with("head on n1 of dragon/2001/"), "{done:?}");
        assert!(head.contains(&format!(".{step}/0/")), "{done:?}");
    }
    cluster.assert_nothing_left();
}

fn a_job_that_does_not_ask_is_left_alone(cluster: &Cluster) {
    let script = "tr '\\0' ' ' < /proc/$$/cmdline; tr '\\0' '\\n' < /proc/$PPID/cmdline | head -1 | cut -c1-12\n\
        env | grep -c DRAGON; srun -N2 sh -c 'env | grep -c DRAGON'; exit 0";
    for option in ["--dragon=off", "--export=ALL"] {
        let done = Job::submit(cluster, &["-N2", option], script).ends();
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(
            done.said.contains("slurm_script slurmstepd: ") && !done.said.contains("dragon"),
            "{done:?}"
        );
        let counts: Vec<_> = done.said.lines().filter(|line| *line == "0").collect();
        assert_eq!(counts.len(), 3, "{done:?}");
    }
}

fn two_jobs_on_the_same_nodes_do_not_mix(cluster: &Cluster) {
    let python = cluster.site().venv().join("bin/python");
    let script = format!(
        "echo here >> both; until [ $(wc -l < both) = 2 ]; do sleep 0.05; done
        srun -N3 {} -c \"{ATTACHES}; print('job', os.environ['SLURM_JOB_ID'], 'in', __import__('subprocess').getoutput('dragon status'))\"
        echo there >> both; until [ $(wc -l < both) = 4 ]; do sleep 0.05; done",
        python.display()
    );
    let both = cluster.home("alice").join("both");
    let _ = fs::remove_file(&both);
    let options = ["-N3", "-c2", "--dragon"];
    let jobs = [(); 2].map(|()| Job::submit(cluster, &options, &script));
    for job in jobs {
        let done = job.ends();
        assert_eq!(done.code, Some(0), "{done:?}");
        let of_jobs: Vec<_> = done
            .said
            .lines()
            .filter(|line| line.starts_with("job "))
            .collect();
        assert_eq!(of_jobs.len(), 3, "{done:?}");
        for line in of_jobs {
            let own = line.split(' ').nth(1).unwrap();
            assert!(line.contains(&format!(" of job {own}.0,")), "{done:?}");
        }
    }
    fs::remove_file(&both).unwrap();
}

fn a_runtime_that_does_not_come_up_ends_the_job(cluster: &Cluster) {
    let export = "--export=ALL,DRAGON_INTERFACE=nowhere0";
    let done = Job::submit(cluster, &["-N3", "--dragon", export], "echo ran").ends();
    assert_eq!(done.code, Some(125), "{done:?}");
    assert!(
        done.said.contains("nowhere0") && done.said.contains("did not come up"),
        "{done:?}"
    );
    assert!(!done.said.contains("ran\n"), "{done:?}");
    let export = "--export=ALL,DRAGON_NO_SUCH_SETTING=1,DRAGON_POOL=much";
    let done = Job::submit(cluster, &["-N3", "--dragon", export], "echo ran").ends();
    assert_eq!(done.code, Some(125), "{done:?}");
    assert!(
        done.said.contains("DRAGON_POOL") && !done.said.contains("ran\n"),
        "{done:?}"
    );
}

/// It has children on all nodes, and leaves what it can.
const BUSY: &str = "trap 'echo told; exit 3' TERM
    srun --overlap -N3 sh -c 'setsid sleep 1000 & sleep 1000' &
    dragon python -c \"
import dragon, multiprocessing, time
multiprocessing.set_start_method('dragon')
for _ in range(6): multiprocessing.Process(target=time.sleep, args=(1000,)).start()
print('ready', flush=True)
time.sleep(1000)\" &
    while :; do sleep 0.05; done";

fn a_cancelled_job_tells_its_script_and_leaves_nothing(cluster: &Cluster) {
    let job = Job::submit(cluster, &["-N3", "-c2", "--dragon"], BUSY);
    job.says("ready");
    cluster.login(["scancel", &running(cluster)]);
    let done = job.ends();
    assert!(done.said.contains("\ntold\n"), "{done:?}");
    assert!(
        !done.said.contains("the runtime of this job has ended"),
        "{done:?}"
    );
}

/// Up to 30 s and a little more: slurmctld looks at the limits no more often.
fn the_time_limit_tells_the_script(cluster: &Cluster) {
    let job = Job::submit(cluster, &["-N3", "-c2", "--dragon"], BUSY);
    job.says("ready");
    // A limit counts minutes; the end of the job is a time like any other, which root may set.
    let id = format!("JobId={}", running(cluster));
    let update = ["-u", "root", "scontrol", "update", &id, "EndTime=now+1"];
    let updated = run(&mut cluster.on("ctl", update));
    assert_eq!(updated.code, Some(0), "{updated:?}");
    let done = job.ends();
    assert!(done.said.contains("\ntold\n"), "{done:?}");
}

/// Which processes are killed: what prints the pid of one, told a shell that is not to find itself.
const SCRIPT: &str = "pgrep -of '[s]lurm_script'";
const KEEPER: &str = "ps -o ppid= -p $(pgrep -of '[s]lurm_script')";
const DAEMON: &str = "pgrep -x dragond -P $(pgrep -d, -f '^slurmstepd: .[0-9]*.0\\]')";

fn kill_on(cluster: &Cluster, node: &str, signal: &str, whom: &str) {
    let kill = format!("pid=$({whom}) && kill -{signal} $pid");
    let done = run(&mut cluster.on(node, ["-u", "root", "sh", "-c", &kill]));
    assert_eq!(done.code, Some(0), "{whom} on {node}: {done:?}");
}

fn a_killed_daemon_ends_the_job(cluster: &Cluster) {
    for node in ["n1", "n3"] {
        let script = "echo ready; sleep 1000";
        let job = Job::submit(cluster, &["-N3", "--dragon"], script);
        job.says("ready");
        kill_on(cluster, node, "KILL", DAEMON);
        let done = job.ends();
        assert_eq!(done.code, Some(125), "{done:?}");
        assert!(
            done.said.contains("the runtime of this job has ended"),
            "{done:?}"
        );
    }
}

fn a_killed_keeper_or_script_leaves_nothing(cluster: &Cluster) {
    for whom in [KEEPER, SCRIPT] {
        let job = Job::submit(cluster, &["-N3", "-c2", "--dragon"], BUSY);
        job.says("ready");
        kill_on(cluster, "n1", "KILL", whom);
        assert_ne!(job.ends().code, Some(0));
    }
}

/// A daemon that hangs holds its connections, and its step: 30 s after the others have ended it is killed.
fn a_stopped_daemon_does_not_hold_the_job(cluster: &Cluster) {
    let options = ["-N3", "--dragon", "--export=ALL,DRAGON_NODE_LIMIT=1"];
    let job = Job::submit(cluster, &options, "echo ready; sleep 1000");
    job.says("ready");
    kill_on(cluster, "n1", "STOP", DAEMON);
    let done = job.ends();
    assert_eq!(done.code, Some(125), "{done:?}");
    assert!(
        done.said
            .contains("the daemon on n1 does not answer: node 0 (n1) is lost"),
        "{done:?}"
    );
}
