//! A site that is not set up as the others of these tests: control groups that limit memory, tasks bound to cores, `KillOnBadExit=1`,
//! and nothing that nodes share but the installed files, which users can only read.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use dragon_tests::cluster::Cluster;
use dragon_tests::cpus::allowed;
use dragon_tests::faults::{End, Expected, Job, Mode};
use dragon_tests::local::run;
use dragon_tests::suite;

fn main() -> ExitCode {
    suite::run(
        site,
        &[
            ("every_mode_runs", every_mode_runs),
            (
                "workers_may_use_what_was_granted_on_every_node",
                workers_may_use_what_was_granted_on_every_node,
            ),
            (
                "dragon_on_the_login_node_runs_in_the_allocation",
                dragon_on_the_login_node_runs_in_the_allocation,
            ),
            (
                "a_program_over_its_memory_limit",
                a_program_over_its_memory_limit,
            ),
            (
                "a_worker_over_its_memory_limit",
                a_worker_over_its_memory_limit,
            ),
            (
                "a_daemon_that_the_kernel_hits",
                a_daemon_that_the_kernel_hits,
            ),
        ],
    )
}

fn site() -> Result<Cluster, String> {
    let cluster = Cluster::slurm_constrained(3, &[("RIG_HOME", "own")])?;
    let programs = cluster.site().root().join("examples");
    std::fs::write(programs.join("cpus.py"), CPUS).unwrap();
    std::fs::write(programs.join("eats.py"), EATS).unwrap();
    Ok(cluster)
}

/// Says of each node how many CPUs the runtime was granted there, and a worker on it which ones it may use.
const CPUS: &str = "import dragon, multiprocessing, os
def say(granted):
    print(os.uname().nodename, granted, *os.sched_getaffinity(0), flush=True)
if __name__ == '__main__':
    multiprocessing.set_start_method('dragon')
    for node in dragon.nodes():
        with dragon.on_node(node.index): p = multiprocessing.Process(target=say, args=(node.cpus,))
        with dragon.on_node(node.index): p.start()
        p.join()
";

/// A worker on the second node takes memory when it is told to.
const EATS: &str = "import dragon, multiprocessing, os, sys, time
def eat():
    print('ready', flush=True)
    while not os.path.exists('/tmp/eat'): time.sleep(0.05)
    all = [b'x' * (1 << 20) for _ in range(1 << 9)]
if __name__ == '__main__':
    multiprocessing.set_start_method('dragon')
    with dragon.on_node(1):
        p = multiprocessing.Process(target=eat)
        p.start()
    p.join()
    print('the worker ended with', p.exitcode, flush=True)
";

/// Four tasks on each node, more than it has CPUs.
const SHAPE: [&str; 4] = ["-N3", "-n12", "--overcommit", "--cpu-bind=cores"];

fn every_mode_runs(cluster: &Cluster) {
    let hello = cluster.site().example("hello_world.py");
    let on_all = |said: &str| {
        cluster
            .nodes()
            .all(|node| said.contains(&format!(" ({node}), ")))
    };
    let head = cluster.login([&["srun"], &SHAPE[..], &["--dragon", &hello]].concat());
    assert!(head.code == Some(0) && on_all(&head.out), "{head:?}");
    let rank = [
        "--dragon=spmd",
        "sh",
        "-c",
        "echo $DRAGON_RANK of $DRAGON_GROUP_SIZE",
    ];
    let tasks = cluster.login([&["srun"], &SHAPE[..], &rank].concat());
    assert_eq!(tasks.code, Some(0), "{tasks:?}");
    let said: BTreeSet<_> = tasks.out.lines().collect();
    assert!(said.len() == 12 && said.contains("11 of 12"), "{tasks:?}");
    let script = format!("dragon {hello} && srun -N3 dragon status && exit 7");
    let job = [
        &["sbatch", "--wait", "--quiet", "--output=said"],
        &SHAPE[..3],
        &["--dragon", "--wrap", &script],
    ];
    let job = cluster.login(job.concat());
    assert_eq!(job.code, Some(7), "{job:?}");
    let said = run(&mut cluster.on("n1", ["cat", "said"])).out;
    assert!(
        on_all(&said) && said.matches("3 nodes up").count() >= 3,
        "{said}"
    );
    let bad = cluster.login([&["srun"], &SHAPE[..], &["--dragon", "sh", "-c", "exit 7"]].concat());
    assert_eq!(bad.code, Some(7), "{bad:?}");
    assert!(
        run(&mut cluster.on("n2", ["touch", cluster.site().root().to_str().unwrap()])).code
            != Some(0),
        "the installed files can be written"
    );
    cluster.assert_nothing_left();
}

/// The CPUs of each node, from lines that begin with its name.
fn by_node(
    lines: impl Iterator<Item = (String, BTreeSet<u32>)>,
) -> BTreeMap<String, BTreeSet<u32>> {
    let mut nodes: BTreeMap<_, BTreeSet<u32>> = BTreeMap::new();
    for (node, cpus) in lines {
        nodes.entry(node).or_default().extend(cpus);
    }
    nodes
}

fn workers_may_use_what_was_granted_on_every_node(cluster: &Cluster) {
    let python = cluster.site().venv().join("bin/python");
    let cpus = cluster.site().example("cpus.py");
    let one_each = ["-N3", "-n3", "-c1", "--cpu-bind=cores"];
    for shape in [SHAPE, one_each] {
        let grep = "echo $(hostname) $(grep Cpus_allowed_list: /proc/self/status)";
        let plain = cluster.login([&["srun"], &shape[..], &["sh", "-c", grep]].concat());
        let granted = by_node(plain.out.lines().map(|line| {
            let (node, list) = line.split_once(' ').unwrap();
            (node.to_owned(), allowed(list))
        }));
        assert_eq!(granted.len(), 3, "{plain:?}");
        let program = ["--dragon", python.to_str().unwrap(), &cpus];
        let ours = cluster.login([&["srun"], &shape[..], &program].concat());
        assert_eq!(ours.code, Some(0), "{ours:?}");
        let may = by_node(ours.out.lines().map(|line| {
            let mut words = line.split_whitespace();
            let node = words.next().unwrap().to_owned();
            let count: usize = words.next().unwrap().parse().unwrap();
            let cpus: BTreeSet<u32> = words.map(|word| word.parse().unwrap()).collect();
            assert_eq!(cpus.len(), count, "{ours:?}");
            (node, cpus)
        }));
        assert_eq!(may, granted, "{shape:?}: {ours:?}");
    }
    cluster.assert_nothing_left();
}

fn dragon_on_the_login_node_runs_in_the_allocation(cluster: &Cluster) {
    let salloc = |option: &str, words: &[&str]| {
        cluster.login([&["salloc", "-Q", "-N3", option], words].concat())
    };
    let hello = salloc(
        "--dragon",
        &["dragon", &cluster.site().example("hello_world.py")],
    );
    assert_eq!(hello.code, Some(0), "{hello:?}");
    let on = |node: &String| hello.out.contains(&format!(" ({node}), "));
    assert!(cluster.nodes().all(|node| on(&node)), "{hello:?}");
    // Settings of salloc, and those that are nearer; the exit code.
    let shows = "echo $A $(hostname); dragon status --json | grep -o -e 67108864 -e '\"nodes_up\": [0-9]*'; exit 5";
    let words = ["dragon", "--pool", "64M", "--env", "A=b", "sh", "-c", shows];
    let set = salloc("--dragon=head,pool=32M", &words);
    assert_eq!(set.code, Some(5), "{set:?}");
    assert!(
        set.out.starts_with("b n1\n") && set.out.contains("67108864"),
        "{set:?}"
    );
    let refused = salloc("--dragon", &["dragon", "--rsh", "ssh", "true"]);
    assert!(
        refused.code == Some(2) && refused.err.contains("--rsh ssh: in an allocation of Slurm"),
        "{refused:?}"
    );
    // On this machine, where that is meant.
    for (option, words) in [
        ("--dragon", &["dragon", "-s", "hostname"][..]),
        ("--dragon=off", &["dragon", "hostname"]),
    ] {
        let here = salloc(option, words);
        assert_eq!(
            (here.code, here.out.as_str()),
            (Some(0), "ctl\n"),
            "{here:?}"
        );
    }
    cluster.assert_nothing_left();
}

const MEMORY: [&str; 1] = ["--mem=200M"];

fn a_program_over_its_memory_limit(cluster: &Cluster) {
    let python = cluster.site().venv().join("bin/python");
    let eats = format!(
        "echo ready; sleep 1; exec {} -c 'all = [b\"x\" * (1 << 20) for _ in range(1 << 9)]'",
        python.display()
    );
    for mode in [Mode::Head, Mode::Spmd] {
        let job = Job::submit_with(cluster, mode, "", &MEMORY, &eats).ready();
        let expected = Expected {
            said: "",
            end: End::Badly,
        };
        job.ends("program over its memory limit", expected);
    }
}

/// Where a worker on another node is: it ends, and the head hears of it.
fn a_worker_over_its_memory_limit(cluster: &Cluster) {
    let job = Job::submit_with(cluster, Mode::Head, "", &MEMORY, &eater(cluster)).ready();
    job.as_root("n2", "touch /tmp/eat");
    let expected = Expected {
        said: "the worker ended with -9",
        end: End::Any,
    };
    job.ends("worker over its memory limit", expected);
    run(&mut cluster.on("n2", ["-u", "root", "rm", "/tmp/eat"]));
}

fn eater(cluster: &Cluster) -> String {
    let python = cluster.site().venv().join("bin/python");
    format!(
        "exec {} {}",
        python.display(),
        cluster.site().example("eats.py")
    )
}

/// The kernel chooses whom it kills; here it is told to take the daemon. What ends the others is Slurm, with `KillOnBadExit`, before
/// they miss the one that was hit: that they do is shown where a daemon is killed otherwise.
fn a_daemon_that_the_kernel_hits(cluster: &Cluster) {
    let job = Job::submit_with(cluster, Mode::Head, "", &MEMORY, &eater(cluster)).ready();
    let first = "for p in $(pgrep -x dragond); do echo 1000 > /proc/$p/oom_score_adj; done";
    job.as_root("n2", &format!("{first}; touch /tmp/eat"));
    let expected = Expected {
        said: "n2: task 1: Out Of Memory",
        end: End::Badly,
    };
    job.ends("daemon hit at a memory limit", expected);
}
