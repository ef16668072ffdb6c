//! `dragon prog` in a job of PBS: the hosts and CPUs that it takes, and every way in which the job can end, on a real OpenPBS.
//!
//! What takes longer than a moment is PBS's own: a job begins and ends within about a second, a walltime is looked at every few.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dragon_tests::cluster::Cluster;
use dragon_tests::local::{Finished, WATCHDOG, eventually_empty, finish, pause, run};
use dragon_tests::suite;
use serde_json::Value;

/// Says that it is up, and runs until it finds the file, with a child in a session of its own.
const HEAD: &str = "setsid sleep 100000 >/dev/null 2>&1 & echo ready; until [ -e $HOME/go ]; do sleep 0.05; done; exit 3";

/// The same on all nodes: a worker that waits, and its child in a session of its own.
const EVERYWHERE: &str = "\
import dragon, multiprocessing, subprocess, time
def stay(started):
    subprocess.Popen(['sleep', '100000'], start_new_session=True)
    started.put(dragon.node().index)
    time.sleep(100000)
if __name__ == '__main__':
    multiprocessing.set_start_method('dragon')
    started = multiprocessing.Queue()
    for node in dragon.nodes():
        with dragon.on_node(node.index):
            multiprocessing.Process(target=stay, args=(started,), daemon=True).start()
    print(sorted(started.get() for _ in dragon.nodes()))
    print('ready', flush=True)
    time.sleep(100000)
";

fn main() -> ExitCode {
    suite::run(
        || Cluster::pbs(3),
        &[
            (
                "hello_world_on_one_two_and_three_nodes",
                hello_world_on_one_two_and_three_nodes,
            ),
            ("exit_code_is_the_heads", exit_code_is_the_heads),
            (
                "hosts_and_cpus_are_those_that_were_granted",
                hosts_and_cpus_are_those_that_were_granted,
            ),
            (
                "options_choose_among_the_hosts",
                options_choose_among_the_hosts,
            ),
            (
                "a_task_beside_the_script_is_no_place_to_start",
                a_task_beside_the_script_is_no_place_to_start,
            ),
            (
                "each_job_of_an_array_has_a_runtime_of_its_own",
                each_job_of_an_array_has_a_runtime_of_its_own,
            ),
            ("two_jobs_on_the_same_nodes", two_jobs_on_the_same_nodes),
            ("another_user_sees_nothing", another_user_sees_nothing),
            (
                "a_job_is_entered_from_inside_and_from_outside",
                a_job_is_entered_from_inside_and_from_outside,
            ),
            (
                "doctor_tries_the_task_manager",
                doctor_tries_the_task_manager,
            ),
            ("a_deleted_job_leaves_nothing", a_deleted_job_leaves_nothing),
            (
                "a_job_deleted_by_force_leaves_nothing",
                a_job_deleted_by_force_leaves_nothing,
            ),
            (
                "a_job_whose_walltime_is_over_leaves_nothing",
                a_job_whose_walltime_is_over_leaves_nothing,
            ),
            ("killed_daemons_end_the_job", killed_daemons_end_the_job),
            (
                "a_job_outlives_the_mom_of_another_host",
                a_job_outlives_the_mom_of_another_host,
            ),
            (
                "interrupts_at_the_terminal_of_an_interactive_job",
                interrupts_at_the_terminal_of_an_interactive_job,
            ),
            ("a_dead_node_ends_the_runtime", a_dead_node_ends_the_runtime),
        ],
    )
}

/// A job whose script's output is read while it runs.
struct Job<'a> {
    cluster: &'a Cluster,
    id: String,
    output: PathBuf,
    /// Waits for the job's end.
    qsub: Option<Child>,
}

impl<'a> Job<'a> {
    /// Submits a script that says `body`, in which `$D` is the command `dragon`.
    fn submit(cluster: &'a Cluster, options: &[&str], body: &str) -> Self {
        Self::of_script(cluster, options, body, |script| vec![script.to_owned()])
    }

    /// Submits the command `dragon` without a shell around it, with a script for its head.
    fn of_head(cluster: &'a Cluster, options: &[&str], body: &str) -> Self {
        let dragon = cluster.site().venv().join("bin/dragon");
        Self::of_script(cluster, options, body, |script| {
            let home = cluster.login(["pwd"]).out;
            let script = format!("{}/{script}", home.trim());
            vec!["--".to_owned(), dragon.display().to_string(), script]
        })
    }

    fn of_script(
        cluster: &'a Cluster,
        options: &[&str],
        body: &str,
        words: impl FnOnce(&str) -> Vec<String>,
    ) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("job-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let home = cluster.home("alice");
        let (script, output) = (home.join(&name), home.join(format!("{name}.out")));
        let dragon = cluster.site().venv().join("bin/dragon");
        let text = format!(
            "#!/bin/sh\nOUT=$HOME/{name}.out D={}\nexec >>$OUT 2>&1\n{body}\n",
            dragon.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(&output, "").unwrap();
        let owner = fs::metadata(&home).unwrap();
        for file in [&script, &output] {
            chown(file, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let qsub = ["qsub", "-W", "block=true", "-j", "oe", "-o", "/dev/null"];
        let words = words(&name);
        let all = qsub.iter().chain(options).copied();
        let all = all.chain(words.iter().map(String::as_str));
        let mut qsub = cluster.on("ctl", all).spawn().unwrap();
        let mut first = String::new();
        let stdout = qsub.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut first).unwrap();
        let id = first.trim().to_owned();
        if !id.ends_with(".ctl") {
            panic!("{first}: {:?}", finish(qsub));
        }
        Self {
            cluster,
            id,
            output,
            qsub: Some(qsub),
        }
    }

    /// A job over so many nodes whose head runs until it is told to end.
    fn at_work(cluster: &'a Cluster, nodes: u32) -> Self {
        let _ = fs::remove_file(cluster.home("alice").join("go"));
        let select = format!("select={nodes}:ncpus=1");
        let job = Self::submit(
            cluster,
            &["-l", &select],
            &format!("exec $D sh -c '{HEAD}'"),
        );
        job.wait_for("ready");
        job
    }

    /// A job that has processes in sessions of their own on all nodes.
    fn everywhere(cluster: &'a Cluster) -> Self {
        fs::write(cluster.home("alice").join("everywhere.py"), EVERYWHERE).unwrap();
        let body = "exec $D everywhere.py";
        let job = Self::submit(cluster, &["-l", "select=3:ncpus=1"], body);
        job.wait_for("[0, 1, 2]\nready");
        job
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    fn wait_for(&self, text: &str) {
        let begin = Instant::now();
        while !self.said().contains(text) {
            assert!(
                begin.elapsed() < WATCHDOG,
                "{} does not say {text}: {}",
                self.id,
                self.said()
            );
            pause(Duration::from_millis(20));
        }
    }

    /// Waits for the end; returns the script's exit code and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let done = self.qsub.take().map(finish).unwrap();
        (done.code, self.said())
    }

    /// Waits for the end, after which nothing may be left.
    fn ends_with(self, code: Option<i32>) -> String {
        let cluster = self.cluster;
        let (got, said) = self.end();
        assert!(code.is_none() || got == code, "{got:?}: {said}");
        cluster.assert_nothing_left();
        said
    }
}

impl Drop for Job<'_> {
    /// What a failed case leaves is not to fail the next one.
    fn drop(&mut self) {
        if let Some(qsub) = self.qsub.take() {
            self.cluster.login(["qdel", "-W", "force", &self.id]);
            let _ = qsub.wait_with_output();
        }
    }
}

/// Lets the heads of [`HEAD`] end.
fn go(cluster: &Cluster) {
    fs::write(cluster.home("alice").join("go"), "").unwrap();
}

fn as_root(cluster: &Cluster, node: &str, words: &[&str]) -> Finished {
    run(&mut cluster.on(node, [&["-u", "root"], words].concat()))
}

fn kill(cluster: &Cluster, node: &str, pattern: &str) {
    let pids = as_root(cluster, node, &["pgrep", "-n", "-f", pattern]).out;
    assert!(!pids.is_empty(), "no {pattern} on {node}");
    as_root(cluster, node, &["kill", "-9", pids.trim()]);
}

fn hello_world_on_one_two_and_three_nodes(cluster: &Cluster) {
    let hello = format!("exec $D {}", cluster.site().example("hello_world.py"));
    for nodes in 1..=3 {
        let select = format!("select={nodes}:ncpus=2");
        let said = Job::submit(cluster, &["-l", &select], &hello).ends_with(Some(0));
        for (rank, host) in cluster.nodes().take(nodes).enumerate() {
            let greeting = format!("hello from node {rank} ({host})");
            assert!(said.contains(&greeting), "{said}");
        }
        assert!(said.contains(&format!("on {nodes} nodes")), "{said}");
    }
}

fn exit_code_is_the_heads(cluster: &Cluster) {
    for (end, code) in [("exit 7", 7), ("kill -9 $$", 128 + 9)] {
        let body = format!("$D sh -c '{end}'");
        let job = Job::submit(cluster, &["-l", "select=2:ncpus=1"], &body);
        job.ends_with(Some(code));
    }
    let job = Job::submit(
        cluster,
        &["-l", "select=2:ncpus=1"],
        "exec $D no-such-program",
    );
    let said = job.ends_with(Some(127));
    assert_eq!(said.matches("no-such-program").count(), 1, "{said}");
}

/// Rank, host and CPUs of each node, as a job's runtime tells them.
fn nodes_of(cluster: &Cluster, options: &[&str], dragon: &str) -> Vec<(u64, String, u64)> {
    let body = format!("exec $D {dragon} sh -c '$0 status --all-nodes --json' $D");
    let said = Job::submit(cluster, options, &body).ends_with(Some(0));
    let status: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"));
    let node = |node: &Value| {
        Some((
            node["node"].as_u64()?,
            node["host"].as_str()?.to_owned(),
            node["cpus"].as_u64()?,
        ))
    };
    let nodes = status["nodes"].as_array().unwrap().iter();
    nodes
        .map(|one| node(one).unwrap_or_else(|| panic!("{said}")))
        .collect()
}

fn hosts_and_cpus_are_those_that_were_granted(cluster: &Cluster) {
    let here = std::thread::available_parallelism().unwrap().get() as u64;
    let node = |rank: u64, cpus: u64| (rank, format!("n{}", rank + 1), cpus.min(here));
    let nodes = nodes_of(cluster, &["-l", "select=1:ncpus=2+2:ncpus=1"], "");
    assert_eq!(nodes, [node(0, 2), node(1, 1), node(2, 1)]);
    // Several tasks on a host, and several chunks on one.
    let packed = ["-l", "select=2:ncpus=1:mpiprocs=2", "-l", "place=pack"];
    assert_eq!(nodes_of(cluster, &packed, ""), [node(0, 2)]);
}

fn options_choose_among_the_hosts(cluster: &Cluster) {
    let all = ["-l", "select=3:ncpus=1"];
    for (options, nodes) in [
        ("-N2", 2),
        ("-N0", 3),
        ("-s", 1),
        ("--wlm pbs", 3),
        ("-w pbs+pals -m", 3),
    ] {
        assert_eq!(nodes_of(cluster, &all, options).len(), nodes, "{options}");
    }
    let body = "$D -N4 true; echo $?; $D -w ssh true; echo $?; $D --rsh /opt/pbs/bin/pbs_tmrsh true; echo $?";
    let said = Job::submit(cluster, &all, body).ends_with(Some(0));
    for text in [
        "--nodes 4, but job ",
        ".ctl of PBS has only 3 hosts\n2\n",
        "dragon PROGRAM alone starts its nodes, by PBS itself\n2\n",
        "pbs_tmrsh passes no standard input",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    let outside = cluster.login(["dragon", "-w", "pbs", "true"]);
    assert_eq!(outside.code, Some(2), "{outside:?}");
    assert!(outside.err.contains("qsub"), "{outside:?}");
}

fn a_task_beside_the_script_is_no_place_to_start(cluster: &Cluster) {
    let body = "pbsdsh -n 1 -- sh -c \"exec >>$OUT 2>&1; $D true; $D -s hostname\"";
    let said = Job::submit(cluster, &["-l", "select=2:ncpus=1"], body).ends_with(None);
    assert!(said.contains("this is a task of job"), "{said}");
    assert!(said.ends_with("\nn2\n"), "{said}");
}

fn each_job_of_an_array_has_a_runtime_of_its_own(cluster: &Cluster) {
    let body = "$D sh -c 'echo $DRAGON_RUNTIME; hostname'";
    let job = Job::submit(cluster, &["-J", "1-2", "-l", "select=3:ncpus=1"], body);
    let array = job.id.split('[').next().unwrap().to_owned();
    let said = job.ends_with(None);
    for index in 1..=2 {
        let runtime = format!("/{array}[{index}].ctl.");
        assert_eq!(said.matches(&runtime).count(), 1, "{said}");
    }
    // Both write into one file.
    assert_eq!(
        said.lines().filter(|line| *line == "n1").count(),
        2,
        "{said}"
    );
}

fn two_jobs_on_the_same_nodes(cluster: &Cluster) {
    let one = Job::at_work(cluster, 3);
    let other = Job::at_work(cluster, 3);
    for job in [&one, &other] {
        let status = run(&mut cluster.on("n2", ["dragon", "status", "--job", &job.id]));
        assert!(status.out.contains("3 nodes up"), "{status:?}");
    }
    go(cluster);
    assert_eq!(one.end().0, Some(3));
    other.ends_with(Some(3));
}

fn another_user_sees_nothing(cluster: &Cluster) {
    let job = Job::at_work(cluster, 2);
    for command in ["status", "ps"] {
        let bob = run(&mut cluster.on("n1", ["-u", "bob", "dragon", command]));
        assert_ne!(bob.code, Some(0), "{bob:?}");
        assert!(bob.err.contains("no runtime of yours"), "{bob:?}");
    }
    assert_eq!(cluster.bytes_for("n1", "bob"), 0);
    assert_ne!(cluster.bytes_for("n1", "alice"), 0);
    go(cluster);
    job.ends_with(Some(3));
}

/// Servers of the system's OpenSSH on the nodes, which take the user's own key.
struct Ssh(Vec<Child>);

impl Ssh {
    fn up(cluster: &Cluster) -> Self {
        let home = cluster.home("alice");
        let folder = home.join(".ssh");
        let made = cluster.login(["sh", "-ec", "mkdir -p .ssh; cd .ssh; for key in host user; do [ -e $key ] || ssh-keygen -q -t ed25519 -N '' -f $key; done"]);
        assert_eq!(made.code, Some(0), "{made:?}");
        let at = |name: &str| folder.join(name).display().to_string();
        let server = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile none\n",
            at("host"),
            at("user.pub")
        );
        fs::write(at("sshd_config"), server).unwrap();
        let client = "IdentityFile ~/.ssh/user\nIdentitiesOnly yes\nBatchMode yes\nStrictHostKeyChecking no\nLogLevel ERROR\n";
        fs::write(at("config"), client).unwrap();
        fs::set_permissions(at("config"), fs::Permissions::from_mode(0o644)).unwrap();
        let owner = fs::metadata(&home).unwrap();
        chown(at("config"), Some(owner.uid()), Some(owner.gid())).unwrap();
        // As root, with the key that belongs to the user: the server wants it to be its own.
        let script = format!(
            "mkdir -p /run/sshd; install -m 600 {} /run/sshd/host; exec /usr/sbin/sshd -D -e -h /run/sshd/host -f {}",
            at("host"),
            at("sshd_config")
        );
        let server = |node: String| {
            let mut command = cluster.on(&node, ["-u", "root", "sh", "-ec", &script]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().unwrap()
        };
        let ssh = Self(cluster.nodes().map(server).collect());
        for node in cluster.nodes() {
            let begin = Instant::now();
            // Their own address, so that the wait is for the server alone.
            while cluster.login(["ssh", &node, "true"]).code != Some(0) {
                assert!(begin.elapsed() < WATCHDOG, "no ssh to {node}");
                pause(Duration::from_millis(50));
            }
        }
        ssh
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        for server in &mut self.0 {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn a_job_is_entered_from_inside_and_from_outside(cluster: &Cluster) {
    let _ssh = Ssh::up(cluster);
    let job = Job::at_work(cluster, 3);
    let id = &*job.id;
    // What ran is a program of the node, with its words as they were typed.
    let shows = [
        "sh",
        "-c",
        "echo $DRAGON_RUNTIME on $(hostname) '$'; exit 7",
    ];
    let is_on = |done: &Finished, node: u32| {
        assert_eq!(done.code, Some(7), "{done:?}");
        let begins = format!("dragon/2001/{id}.");
        let ends = format!(" on n{} $\n", node + 1);
        let here = done.out.starts_with(&begins) && done.out.ends_with(&ends);
        assert!(
            here && done.out.contains(&format!("/{node}/")),
            "{node}: {done:?}"
        );
    };
    let attach = |words: &[&'static str]| {
        let attach = ["dragon", "attach", "--job"].map(str::to_owned);
        let words = words.iter().chain(&shows).map(|word| (*word).to_owned());
        let all: Vec<_> = attach
            .into_iter()
            .chain([id.to_owned()])
            .chain(words)
            .collect();
        all
    };
    let run_on =
        |node: &str, words: &[String]| run(&mut cluster.on(node, words.iter().map(String::as_str)));
    is_on(&run_on("ctl", &attach(&[])), 0);
    is_on(&run_on("ctl", &attach(&["--node", "2"])), 2);
    // On a node of the job, and from one to another.
    is_on(&run_on("n2", &attach(&[])), 1);
    is_on(&run_on("n2", &attach(&["--node", "0"])), 0);
    let status = cluster.login(["dragon", "status", "--all-nodes", "--job", id]);
    assert!(status.out.contains("3 nodes up"), "{status:?}");
    let ps = cluster.login(["dragon", "ps", "--job", id, "--node", "0", "--json"]);
    assert!(ps.out.contains("sleep 100000"), "{ps:?}");
    let nobodys = cluster.login(["dragon", "attach", "--job", "99999.ctl", "true"]);
    assert_eq!(nobodys.code, Some(125), "{nobodys:?}");
    assert!(nobodys.err.contains("Unknown Job Id"), "{nobodys:?}");
    let queued = cluster.login(["qsub", "-h", "--", "/bin/true"]).out;
    let waits = cluster.login(["dragon", "status", "--job", queued.trim()]);
    assert!(waits.err.contains("its state is H"), "{waits:?}");
    cluster.login(["qdel", queued.trim()]);
    // What was brought into the job ends with it.
    let stays = [
        "dragon",
        "attach",
        "--job",
        id,
        "sh",
        "-c",
        "echo in; sleep 100000",
    ];
    let mut entered = cluster.on("ctl", stays).spawn().unwrap();
    let mut line = String::new();
    let stdout = entered.stdout.as_mut().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    assert_eq!(line, "in\n");
    go(cluster);
    job.ends_with(Some(3));
    assert_ne!(finish(entered).code, Some(0));
}

fn doctor_tries_the_task_manager(cluster: &Cluster) {
    let verdict = |said: &str| {
        let all: Value = serde_json::from_str(said).unwrap_or_else(|_| panic!("{said}"));
        let mut checks = all["checks"].as_array().unwrap().iter();
        let check = checks.find(|check| check["check"] == "workload manager");
        let text = |field: &str| check.unwrap()[field].as_str().unwrap().to_owned();
        (text("verdict"), text("found"))
    };
    let outside = cluster.login(["dragon", "doctor", "--json"]).out;
    let (outside, found) = verdict(&outside);
    assert!(outside == "ok" && found.contains("pbs_version"), "{found}");
    let job = Job::submit(cluster, &["-l", "select=2:ncpus=1"], "$D doctor --json");
    let (inside, found) = verdict(&job.ends_with(None));
    assert!(inside == "ok" && found.contains("task manager"), "{found}");
}

/// Whether the head has the time to say something depends on what PBS kills first; that nothing is left does not.
fn a_deleted_job_leaves_nothing(cluster: &Cluster) {
    let head = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let job = Job::of_head(cluster, &["-l", "select=3:ncpus=1"], head);
    job.wait_for("ready");
    cluster.login(["qdel", &job.id]);
    job.ends_with(None);
    let job = Job::everywhere(cluster);
    cluster.login(["qdel", &job.id]);
    job.ends_with(None);
}

fn a_job_deleted_by_force_leaves_nothing(cluster: &Cluster) {
    let job = Job::everywhere(cluster);
    cluster.login(["qdel", "-W", "force", &job.id]);
    job.ends_with(None);
}

fn a_job_whose_walltime_is_over_leaves_nothing(cluster: &Cluster) {
    let _ = fs::remove_file(cluster.home("alice").join("go"));
    let options = ["-l", "select=3:ncpus=1", "-l", "walltime=2"];
    let job = Job::submit(cluster, &options, &format!("exec $D sh -c '{HEAD}'"));
    let said = job.ends_with(None);
    assert!(said.contains("ready"), "{said}");
}

/// Ctrl-C once is the head's; twice within a second it ends the runtime, and the shell of the job goes on.
fn interrupts_at_the_terminal_of_an_interactive_job(cluster: &Cluster) {
    let qsub = "stty -echo; exec qsub -I -l select=2:ncpus=1";
    let terminal = ["script", "-qefc", qsub, "/dev/null"];
    let mut shell = cluster.on("ctl", terminal);
    let mut shell = shell.stdin(Stdio::piped()).spawn().unwrap();
    let mut keys = shell.stdin.take().unwrap();
    let screen = Arc::new(Mutex::new(Vec::new()));
    let (mut stdout, shown) = (shell.stdout.take().unwrap(), Arc::clone(&screen));
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = stdout.read(&mut bytes) {
            shown.lock().unwrap().extend_from_slice(&bytes[..read]);
        }
    });
    let shows = |text: &str| String::from_utf8_lossy(&screen.lock().unwrap()).contains(text);
    let wait_for = |text: &str| {
        let begin = Instant::now();
        while !shows(text) {
            assert!(begin.elapsed() < WATCHDOG, "no {text} at the terminal");
            pause(Duration::from_millis(20));
        }
    };
    wait_for("ready");
    let dragon = cluster.site().venv().join("bin/dragon");
    // What is typed may be shown: nothing of it is what is waited for.
    let mut type_in = |head: &str| {
        let line = format!("{} sh -c '{head}'; echo code'=='$?\n", dragon.display());
        keys.write_all(line.as_bytes()).unwrap();
        wait_for("up on two");
        screen.lock().unwrap().clear();
        keys.write_all(b"\x03").unwrap();
    };
    type_in("trap \"exit 7\" INT; echo up on t\"\"wo; while :; do sleep 0.05; done");
    wait_for("code==7");
    type_in("trap \"echo tol\"\"d\" INT; echo up on t\"\"wo; while :; do sleep 0.05; done");
    wait_for("told");
    // How soon the second one follows is the machine's business.
    while !shows("code==130") {
        keys.write_all(b"\x03").unwrap();
        pause(Duration::from_millis(100));
    }
    keys.write_all(b"exit\n").unwrap();
    assert!(shell.wait().unwrap().success());
    cluster.assert_nothing_left();
}

fn killed_daemons_end_the_job(cluster: &Cluster) {
    for (node, code, sentence) in [
        ("n1", 128 + 9, "the daemon of node 0 was ended by signal 9"),
        ("n3", 125, "node 2 (n3) is lost"),
    ] {
        let job = Job::at_work(cluster, 3);
        kill(cluster, node, "^[^ ]*bin/dragond .*--supervised");
        let said = job.ends_with(Some(code));
        assert!(said.contains(sentence), "{said}");
    }
}

fn a_job_outlives_the_mom_of_another_host(cluster: &Cluster) {
    let job = Job::at_work(cluster, 3);
    let mom = "/opt/pbs/sbin/pbs_mom";
    as_root(
        cluster,
        "n2",
        &[
            "sh",
            "-c",
            "kill -9 $(cat /var/spool/pbs/mom_priv/mom.lock)",
        ],
    );
    let again = as_root(cluster, "n2", &[mom]);
    assert_eq!(again.code, Some(0), "{again:?}");
    let nodes = run(&mut cluster.on("n1", ["dragon", "status", "--job", &job.id]));
    assert!(nodes.out.contains("3 nodes up"), "{nodes:?}");
    go(cluster);
    job.ends_with(Some(3));
    // The server hears of the new mom when it likes, and starts nothing there before.
    let down = || run(&mut cluster.on("ctl", ["pbsnodes", "-l"])).out;
    eventually_empty("the list of nodes that are down", down);
}

fn a_dead_node_ends_the_runtime(cluster: &Cluster) {
    let job = Job::at_work(cluster, 3);
    let done = run(cluster.rig().args(["kill", "n3"]));
    assert_eq!(done.code, Some(0), "{done:?}");
    job.wait_for("n3");
    for node in ["n1", "n2"] {
        eventually_empty(node, || cluster.traces(node));
    }
    cluster.login(["qdel", "-W", "force", &job.id]);
    let (_, said) = job.end();
    assert!(said.contains("lost"), "{said}");
}
