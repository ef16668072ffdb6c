//! What a running runtime tells about itself: real daemons, real processes, the command `dragon`.
//!
//! The test runs itself again as the programs inside the runtimes (`child`).

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use dragon::{Channel, ChannelOptions, Deadline, NodeIndex, Pool, PoolOptions, Session};
use dragon_tests::child;
use dragon_tests::local::{Finished, Traces, WATCHDOG, binary, dragon, finish, pause, run};
use serde_json::Value;

const ROLE: &str = "DRAGON_TEST_INSPECT";

/// A runtime whose head waits for the end of its input.
struct Runtime {
    launcher: u32,
    /// Until its end is waited for.
    child: Option<Child>,
}

impl Drop for Runtime {
    /// A test that failed leaves nothing behind.
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Runtime {
    fn start(options: &[&str]) -> Self {
        Self::playing("waits", options)
    }

    /// With a head in this role.
    fn playing(role: &str, options: &[&str]) -> Self {
        let mut command = child::head(options);
        command.env(ROLE, role).env_remove("DRAGON_RUNTIME");
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.as_mut().unwrap());
        assert!(out.lines().any(|line| line.unwrap() == "ready"));
        Self {
            launcher: child.id(),
            child: Some(child),
        }
    }

    fn job(&self) -> String {
        self.launcher.to_string()
    }

    /// Asks this runtime.
    fn ask(&self, words: &[&str]) -> Finished {
        tool(&[words, &["--job", &self.job()]].concat())
    }

    /// The pids of its daemons, by node.
    fn daemons(&self) -> Vec<i64> {
        let status = self.ask(&["status", "--all-nodes", "--json"]);
        let all = json(&status)["nodes"].clone();
        let pids = all.as_array().unwrap().iter();
        pids.map(|node| node["pid"].as_i64().unwrap()).collect()
    }

    fn end(mut self) -> Finished {
        let done = finish(self.child.take().unwrap());
        Traces::assert_none(self.launcher);
        done
    }
}

/// A command about a runtime, outside of any.
fn tool(words: &[&str]) -> Finished {
    let mut command = dragon(words);
    run(command
        .env_remove("DRAGON_RUNTIME")
        .env_remove("SLURM_JOB_ID"))
}

fn json(done: &Finished) -> Value {
    serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"))
}

fn rows(done: &Finished, name: &str) -> Vec<Value> {
    assert_eq!(done.code, Some(0), "{done:?}");
    json(done)[name].as_array().unwrap().clone()
}

fn kill(signal: &str, pid: i64) {
    let done = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status();
    assert!(done.unwrap().success());
}

fn until(what: &str, happened: impl Fn() -> bool) {
    for _ in 0..6000 {
        if happened() {
            return;
        }
        pause(Duration::from_millis(10));
    }
    panic!("not within its time: {what}");
}

/// A program in a runtime; nothing when the test runs in the ordinary way.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    match role.as_str() {
        "waits" => waits(),
        "uses" => uses(),
        "sleeps" => sleeps(),
        "holds" => holds(),
        other => panic!("{other}"),
    }
}

fn waits() {
    println!("ready");
    let _ = std::io::stdin().lines().next();
}

/// A program that attaches, says so, and sleeps in a receive.
fn sleeps() {
    Session::attach().unwrap();
    let channel = Channel::create(&ChannelOptions::default()).unwrap();
    println!("ready");
    let _ = channel.receive(Deadline::Never);
}

/// A head that starts a process on node 1, which stays when the head is gone.
fn holds() {
    let node = NodeIndex::new(1).unwrap();
    let spawn = child::spawn().env(ROLE, "sleeps");
    let _process = spawn.node(node).start().unwrap();
    waits();
}

/// The head program of the first test: makes what there is to see, and looks at it.
fn uses() {
    let session = Session::attach().unwrap();
    let options = ChannelOptions {
        capacity: 4,
        user: 77,
        ..ChannelOptions::default()
    };
    let channel = Channel::create(&options).unwrap();
    for _ in 0..3 {
        channel.send(b"x", 0, Deadline::Now).unwrap();
    }
    channel.receive(Deadline::Now).unwrap();
    let pool = Pool::create(&PoolOptions {
        limit: 8 << 20,
        name: "images".to_owned(),
        ..PoolOptions::default()
    })
    .unwrap();
    let _block = pool.alloc(1 << 20).unwrap();
    let mut sleeper = child::command();
    let mut sleeper = sleeper
        .env(ROLE, "sleeps")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(sleeper.stdout.as_mut().unwrap());
    assert!(out.lines().any(|line| line.unwrap() == "ready"));
    let me = i64::from(std::process::id());
    let ask = |what: &str| run(&mut dragon([what, "--json"]));
    let waits =
        |row: &Value| row["owner_pid"] == i64::from(sleeper.id()) && row["receivers_waiting"] == 1;
    until("the process sleeps in its receive", || {
        rows(&ask("channels"), "channels").iter().any(waits)
    });
    // What is stopped can answer nobody.
    kill("-STOP", sleeper.id().into());

    let state = |row: &Value| row["state"].as_str().unwrap().to_owned();
    until("the process is stopped", || {
        let all = rows(&ask("ps"), "processes");
        let of = |row: &&Value| row["pid"] == i64::from(sleeper.id());
        all.iter().find(of).is_some_and(|row| state(row) == "T")
    });
    let processes = rows(&ask("ps"), "processes");
    assert_eq!(processes.len(), 2, "{processes:?}");
    let head = &processes[0];
    assert_eq!((&head["role"], &head["pid"]), (&"head".into(), &me.into()));
    assert_eq!(head["slot"], i64::from(session.slot().index));
    assert_eq!(
        (&head["local_sent"], &head["local_received"]),
        (&3.into(), &1.into())
    );
    assert!(head["command"].as_str().unwrap().contains("local_inspect"));
    assert!(head["object"].as_str().unwrap().starts_with("p:0."));
    assert!(head["rss_anon_bytes"].as_u64().unwrap() > 64 << 10);
    let other = &processes[1];
    assert_eq!(
        (&other["role"], &other["parent"]),
        (&"attached".into(), &me.into())
    );

    let channels = rows(&ask("channels"), "channels");
    let own = channels.iter().find(|row| row["user"] == 77).unwrap();
    let expected = [
        ("capacity", 4),
        ("messages", 2),
        ("sent", 3),
        ("received", 1),
        ("receivers_waiting", 0),
        ("references", 1),
        ("owner_pid", me),
    ];
    for (name, value) in expected {
        assert_eq!(own[name], value, "{name}");
    }
    assert_eq!(own["object"], channel.descriptor().object.to_string());
    assert!(channels.iter().any(waits), "{channels:?}");

    let pools = rows(&ask("pools"), "pools");
    let own = pools.iter().find(|row| row["name"] == "images").unwrap();
    assert_eq!(own["limit_bytes"], 8 << 20);
    assert!(own["used_bytes"].as_u64().unwrap() >= 1 << 20, "{own}");
    assert!(
        own["owners"]
            .as_array()
            .unwrap()
            .iter()
            .any(|owner| owner["pid"] == me)
    );

    let status = &rows(&ask("status"), "nodes")[0];
    assert_eq!(status["runtime"], session.runtime().to_string());
    assert_eq!(
        (&status["attached"], &status["processes"]),
        (&2.into(), &1.into())
    );
    assert_eq!(
        (&status["pools"], &status["nodes_up"]),
        (&2.into(), &1.into())
    );
    assert_eq!(
        (&status["local_sent"], &status["local_received"]),
        (&3.into(), &1.into())
    );
    kill("-KILL", sleeper.id().into());
    sleeper.wait().unwrap();
}

#[test]
fn what_there_is_is_told_though_its_process_is_stopped() {
    let done = finish(child::head(&[]).env(ROLE, "uses").spawn().unwrap());
    assert_eq!(done.code, Some(0), "{done:?}");
}

#[test]
fn all_nodes_answer_and_one_that_does_not_is_named() {
    let runtime = Runtime::start(&["-N", "3", "--local-nodes"]);
    let daemons = runtime.daemons();
    assert_eq!(daemons.len(), 3);
    let processes = runtime.ask(&["ps", "--all-nodes"]);
    assert_eq!(processes.out.lines().count(), 2, "{processes:?}");
    let elsewhere = runtime.ask(&["channels", "--node", "2", "--json"]);
    assert!(
        rows(&elsewhere, "channels")
            .iter()
            .all(|row| row["node"] == 2)
    );
    let nowhere = runtime.ask(&["ps", "--node", "3"]);
    assert_eq!(nowhere.code, Some(1));
    assert!(
        nowhere.err.contains("no node 3") && nowhere.err.contains("0 to 2"),
        "{nowhere:?}"
    );
    let few = runtime.ask(&["channels", "--all-nodes", "--limit", "2"]);
    assert_eq!(few.out.lines().count(), 3, "{few:?}");
    assert!(few.err.contains("1 more channels"), "{few:?}");

    kill("-STOP", daemons[2]);
    let partly = runtime.ask(&["status", "--all-nodes", "--json", "--patience", "300"]);
    kill("-CONT", daemons[2]);
    assert_eq!(partly.code, Some(1), "{partly:?}");
    let partly = json(&partly);
    assert_eq!(partly["nodes"].as_array().unwrap().len(), 2, "{partly}");
    assert_eq!(partly["missing"][0]["node"], 2);
    assert!(
        partly["missing"][0]["why"]
            .as_str()
            .unwrap()
            .contains("300 ms")
    );
    assert_eq!(runtime.daemons(), daemons, "it answers again");
    assert_eq!(runtime.end().code, Some(0));
}

#[test]
fn two_runtimes_at_once_are_told_apart() {
    let (one, other) = (Runtime::start(&[]), Runtime::start(&[]));
    let attached = |runtime: &Runtime| {
        let show = [
            "attach",
            "--job",
            &runtime.job(),
            "sh",
            "-c",
            "echo $DRAGON_RUNTIME; exit 7",
        ];
        let done = tool(&show);
        assert_eq!(done.code, Some(7), "{done:?}");
        done.out.trim().to_owned()
    };
    let names = [attached(&one), attached(&other)];
    for (name, runtime) in names.iter().zip([&one, &other]) {
        assert!(name.contains(&format!("/{}/0/", runtime.job())), "{name}");
        let mut inside = dragon(["status", "--json"]);
        let status = run(inside.env("DRAGON_RUNTIME", name));
        assert_eq!(rows(&status, "nodes")[0]["job"], runtime.job());
    }
    for words in [&["status"][..], &["attach", "true"]] {
        let unclear = tool(words);
        assert!(matches!(unclear.code, Some(1 | 125)), "{unclear:?}");
        assert!(unclear.err.contains("--job"), "{unclear:?}");
        for job in [one.job(), other.job()] {
            assert!(unclear.err.contains(&job), "{unclear:?}");
        }
    }
    let name = names[0].clone();
    assert_eq!(one.end().code, Some(0));
    for words in [&["ps"][..], &["attach", "true"]] {
        let stale = run(dragon(words).env("DRAGON_RUNTIME", &name));
        assert!(
            stale.err.contains(&name) && stale.err.contains("has ended"),
            "{stale:?}"
        );
    }
    let strangers = run(dragon(["attach", "true"]).env("DRAGON_RUNTIME", "dragon/4294967/1/0/00"));
    assert_eq!(strangers.code, Some(125), "{strangers:?}");
    assert!(strangers.err.contains("another user's"), "{strangers:?}");
    assert_eq!(other.end().code, Some(0));
}

#[test]
fn an_attached_program_is_a_program_like_any_other() {
    let runtime = Runtime::start(&["-N", "2", "--local-nodes"]);
    let job = runtime.job();
    let attach = |words: &[&str]| tool(&[&["attach", "--job", &job], words].concat());
    let done = attach(&["no-such-program"]);
    assert_eq!(done.code, Some(127), "{done:?}");
    let done = attach(&[
        "--node",
        "1",
        "sh",
        "-c",
        "echo $DRAGON_RUNTIME; kill -TERM $$",
    ]);
    assert_eq!(
        done.code, None,
        "the signal ends this process itself: {done:?}"
    );
    assert!(done.out.contains(&format!("/{job}/1/")), "{done:?}");
    let done = attach(&["--node", "7", "true"]);
    assert_eq!(done.code, Some(125));
    assert!(
        done.err
            .contains("no node 7 in this runtime; its nodes are 0 to 1"),
        "{done:?}"
    );
    // Without a program: a shell.
    let mut shell = dragon(["attach", "--job", &job]);
    shell.env_remove("DRAGON_RUNTIME").env("SHELL", "/bin/sh");
    let said = dragon_tests::local::run_with_input(&mut shell, b"echo $DRAGON_RUNTIME\nexit 3\n");
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(said.out.contains(&format!("/{job}/0/")), "{said:?}");
    // It can use the runtime as if that had started it.
    let mut user = child::head(&["attach", "--job", &job]);
    user.env(ROLE, "sleeps").env_remove("DRAGON_RUNTIME");
    let mut user = user.spawn().unwrap();
    let out = BufReader::new(user.stdout.as_mut().unwrap());
    assert!(out.lines().any(|line| line.unwrap() == "ready"));
    let processes = rows(&runtime.ask(&["ps", "--json"]), "processes");
    let of = |row: &&Value| row["pid"] == i64::from(user.id());
    assert_eq!(processes.iter().find(of).unwrap()["role"], "attached");
    assert_eq!(runtime.end().code, Some(0));
    // What it does with the runtime ends with the runtime, and so does it.
    assert!(!finish(user).err.contains("panicked"));
}

/// Says to the daemon of a node what is no word of the protocol: that leaves a line in its log. The connection stays
/// until it is dropped.
fn say_nonsense(runtime: &Runtime, node: u32) -> UnixStream {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let of_node = format!("/{}/{node}/", runtime.job());
    let mut names = sockets.lines().filter_map(|line| line.split_once('@'));
    let (_, name) = names.find(|(_, name)| name.contains(&of_node)).unwrap();
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let mut stranger = UnixStream::connect_addr(&address).unwrap();
    stranger.write_all(b"nonsense").unwrap();
    stranger
}

#[test]
fn lines_of_logs_are_pushed_from_all_nodes() {
    let runtime = Runtime::start(&["-N", "3", "--local-nodes"]);
    let mut follower = Follower::start(&runtime, "debug");
    for node in 0..3 {
        let _stranger = say_nonsense(&runtime, node);
        follower.line(node, "nonsense");
    }
    let kept = runtime.ask(&["logs", "--node", "2", "--level", "debug"]);
    assert!(kept.out.contains("nonsense"), "{kept:?}");
    let severe = runtime.ask(&["logs", "--node", "2", "--level", "error"]);
    assert!(!severe.out.contains("nonsense"), "{severe:?}");
    follower.end();
    assert_eq!(runtime.end().code, Some(0));
}

#[test]
fn who_follows_logs_for_nobody_ends() {
    let runtime = Runtime::start(&[]);
    let words = ["logs", "--follow", "--level", "debug", "--job"];
    let mut follower = dragon([&words[..], &[&runtime.job()]].concat());
    let mut follower = follower.env_remove("DRAGON_RUNTIME").spawn().unwrap();
    let _stranger = say_nonsense(&runtime, 0);
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("nonsense")));
    // Nothing more is logged: it is not told by a line that cannot be written.
    drop(lines);
    assert_eq!(finish(follower).code, Some(0));
    assert_eq!(runtime.end().code, Some(0));
}

/// `dragon logs --follow` for all nodes of a runtime.
struct Follower {
    child: Child,
    lines: Receiver<Value>,
    /// What came before the line that is waited for.
    before: Vec<Value>,
}

impl Follower {
    fn start(runtime: &Runtime, level: &str) -> Self {
        let words = [
            "logs",
            "--follow",
            "--all-nodes",
            "--json",
            "--level",
            level,
        ];
        let job = ["--job", &runtime.job()];
        let mut command = dragon([&words[..], &job].concat());
        let mut child = command.env_remove("DRAGON_RUNTIME").spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines() {
                let line = serde_json::from_str(&line.unwrap()).unwrap();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            before: Vec::new(),
        }
    }

    /// Waits for a line of a node with this text in it.
    fn line(&mut self, node: u32, text: &str) {
        loop {
            let line = self.lines.recv_timeout(WATCHDOG).unwrap_or_else(|error| {
                let _ = self.child.kill();
                panic!(
                    "{error}, no '{text}' of node {node}, but {:#?}",
                    self.before
                )
            });
            if line["node"] == node && line["text"].as_str().unwrap().contains(text) {
                return;
            }
            self.before.push(line);
        }
    }

    /// Not by SIGINT: that may be ignored here, as in all that a shell starts in the background.
    fn end(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn lost_nodes_are_told() {
    let options = ["-N", "4", "--local-nodes", "--node-limit", "2"];
    let goes_on = ["--on-node-failure", "continue"];
    let runtime = Runtime::playing("holds", &[&options[..], &goes_on].concat());
    let status = |node: &str| {
        let answer = runtime.ask(&["status", "--json", "--node", node]);
        rows(&answer, "nodes").remove(0)
    };
    let first = status("1");
    assert_eq!(
        (&first["nodes_up"], &first["epoch"]),
        (&4.into(), &0.into())
    );
    assert_eq!(first["nodes_down"], Value::Array(Vec::new()));
    assert_eq!(first["global_services"], 0);
    let daemons = runtime.daemons();
    let mut follower = Follower::start(&runtime, "error");
    let words = [
        "logs", "--follow", "--node", "3", "--level", "debug", "--job",
    ];
    let mut alone = dragon([&words[..], &[&runtime.job()]].concat());
    let mut alone = alone.env_remove("DRAGON_RUNTIME").spawn().unwrap();
    let mut begun = [0; 1];
    alone
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut begun)
        .unwrap();

    kill("-KILL", daemons[3]);
    let alone = finish(alone);
    assert_eq!(alone.code, Some(1), "{alone:?}");
    assert!(alone.err.contains("node 3 (127.0.0.1)"), "{alone:?}");
    follower.line(
        0,
        "node 3 (127.0.0.1) is lost; the job goes on with 3 nodes",
    );
    let mut epochs = vec![0];
    for node in ["0", "1", "2"] {
        until("it learns of the loss", || status(node)["nodes_up"] == 3);
        let now = status(node);
        assert_eq!(now["nodes_down"], Value::Array(vec![3.into()]), "{now}");
        assert_eq!(now["global_services"], 0, "{now}");
        epochs.push(now["epoch"].as_u64().unwrap());
    }
    assert!(epochs[1] > 0 && epochs[1..].iter().all(|epoch| *epoch == epochs[1]));
    let all = runtime.ask(&["status", "--all-nodes"]);
    assert_eq!(all.code, Some(0), "who is lost is not waited for: {all:?}");
    let line = format!(
        "3 nodes up, down: 3; global services on node 0, epoch {}\n",
        epochs[1]
    );
    assert!(all.out.contains(&line), "{all:?}");
    let gone = runtime.ask(&["ps", "--node", "3"]);
    assert_eq!(gone.code, Some(1), "{gone:?}");
    assert!(
        gone.err
            .contains("node 3 (127.0.0.1) is lost; 3 nodes are left"),
        "{gone:?}"
    );

    // With the node that was asked till now, global services go too. A process on another node keeps the job alive.
    kill("-KILL", daemons[0]);
    until("the next node takes over", || {
        // The socket of one that is being killed may still be there to be asked.
        let answer = runtime.ask(&["status", "--json", "--node", "2"]);
        answer.code == Some(0) && rows(&answer, "nodes")[0]["global_services"] == 1
    });
    let now = status("1");
    assert_eq!(now["nodes_down"], Value::Array(vec![0.into(), 3.into()]));
    assert!(now["epoch"].as_u64().unwrap() > epochs[1], "{now}");
    let said = runtime.ask(&["logs", "--level", "error"]);
    assert!(
        said.out
            .contains("node 0 (127.0.0.1) is lost; the job goes on with 2 nodes"),
        "{said:?}"
    );
    let processes = rows(&runtime.ask(&["ps", "--all-nodes", "--json"]), "processes");
    let held = processes.iter().find(|row| row["role"] == "managed");
    kill("-KILL", held.unwrap()["pid"].as_i64().unwrap());
    assert_eq!(runtime.end().code, Some(125));
    // What it followed has ended.
    follower.end();
}

/// The numbers of a node, as a monitoring system reads them.
fn numbers(mut stream: impl Read + Write) -> prometheus_parse::Scrape {
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains(&format!("Content-Length: {}", body.len())),
        "{head}"
    );
    let lines = body.lines().map(|line| Ok(line.to_owned()));
    prometheus_parse::Scrape::parse(lines).unwrap()
}

fn number(scrape: &prometheus_parse::Scrape, name: &str, label: (&str, &str)) -> f64 {
    let is_it = |sample: &&prometheus_parse::Sample| {
        sample.metric == name && sample.labels.get(label.0) == Some(label.1)
    };
    let sample = scrape.samples.iter().find(is_it);
    match sample
        .unwrap_or_else(|| panic!("no {name} in {scrape:?}"))
        .value
    {
        prometheus_parse::Value::Gauge(n) | prometheus_parse::Value::Counter(n) => n,
        ref other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn numbers_are_told_to_a_monitoring_system() {
    let runtime = Runtime::start(&["-N", "2", "--local-nodes", "--metrics", "0"]);
    let status = runtime.ask(&["status", "--all-nodes", "--json"]);
    let places: Vec<_> = rows(&status, "nodes")
        .iter()
        .map(|node| node["metrics"].as_str().unwrap().to_owned())
        .collect();
    for (node, place) in places.iter().enumerate() {
        let scrape = numbers(TcpStream::connect(place).unwrap());
        let node = node.to_string();
        let of = |name: &str| number(&scrape, name, ("node", &node));
        assert_eq!(of("dragon_nodes_up"), 2.0);
        assert!(of("dragon_control_requests_total") >= 0.0);
        let managed = number(&scrape, "dragon_processes", ("role", "managed"));
        assert_eq!(managed, if node == "0" { 1.0 } else { 0.0 });
        assert!(number(&scrape, "dragon_pool_limit_bytes", ("pool", "0")) > 0.0);
        assert_eq!(number(&scrape, "dragon_objects", ("kind", "channel")), 1.0);
    }
    // Strangers get an answer, or are turned away; they keep nobody out for long.
    let answer = |asked: &str| {
        let mut stream = TcpStream::connect(&places[0]).unwrap();
        stream.write_all(asked.as_bytes()).unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(
        answer("GET /other HTTP/1.1\r\n\r\n"),
        "HTTP/1.1 404 Not Found"
    );
    assert_eq!(answer("nonsense\r\n\r\n"), "HTTP/1.1 400 Bad Request");
    let silent: Vec<_> = (0..8)
        .map(|_| TcpStream::connect(&places[0]).unwrap())
        .collect();
    until("the ninth is turned away", || {
        answer("GET /metrics HTTP/1.1\r\n\r\n").is_empty()
    });
    drop(silent);
    until("there is room again", || {
        answer("GET /metrics HTTP/1.1\r\n\r\n") == "HTTP/1.1 200 OK"
    });
    assert_eq!(runtime.end().code, Some(0));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("numbers");
    let runtime = Runtime::start(&["--metrics", &format!("unix:{}", path.display())]);
    let scrape = numbers(UnixStream::connect(&path).unwrap());
    assert_eq!(number(&scrape, "dragon_nodes_up", ("node", "0")), 1.0);
    let taken = run(&mut dragon([
        "--metrics",
        &format!("unix:{}", path.display()),
        "true",
    ]));
    assert_eq!(taken.code, Some(125), "{taken:?}");
    assert!(
        taken.err.contains("somebody listens there already"),
        "{taken:?}"
    );
    assert_eq!(runtime.end().code, Some(0));
    assert!(!path.exists(), "nothing is left");
    let bad = run(&mut dragon(["--metrics", "everywhere", "true"]));
    assert_eq!(bad.code, Some(2), "{bad:?}");
    assert!(
        bad.err.contains("'everywhere'") && bad.err.contains("unix:/PATH"),
        "{bad:?}"
    );
}

#[test]
fn a_terminal_is_put_back_however_top_ends() {
    let runtime = Runtime::start(&["-N", "2", "--local-nodes"]);
    let once = runtime.ask(&["top", "--once"]);
    assert_eq!(once.code, Some(0), "{once:?}");
    for part in [
        &*format!("job {}", runtime.job()),
        "2 nodes",
        "POOLS",
        "head",
        "local_inspect",
    ] {
        assert!(once.out.contains(part), "{part}: {once:?}");
    }
    let once = runtime.ask(&["top", "--once", "--json", "--sort", "pid"]);
    let nodes = rows(&once, "nodes");
    let hosts: Vec<_> = nodes.iter().map(|node| node["node"].as_u64()).collect();
    assert_eq!(hosts, [Some(0), Some(1)], "{once:?}");
    assert!(nodes[0]["sent_per_s"].is_u64() && nodes[0]["objects"].is_array());
    let processes = rows(&once, "processes");
    assert!(processes[0]["role"] == "head" && processes[0]["cpu_percent"].is_u64());
    assert_eq!(json(&once)["missing"], Value::Array(Vec::new()));
    let piped = runtime.ask(&["top"]);
    assert!(piped.err.contains("--once"), "{piped:?}");
    // A terminal of its own; the pid of top comes first.
    let shell = format!(
        "stty rows 30 cols 120; echo $$; exec {} top --delay 0.2 --job {}",
        binary("dragon").display(),
        runtime.job()
    );
    for way in ["q", "-TERM", "-HUP"] {
        let mut terminal = Command::new("script");
        terminal
            .args(["-qec", &shell, "/dev/null"])
            .env_remove("DRAGON_RUNTIME");
        terminal
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env("TERM", "xterm");
        let mut child = terminal.spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let (mut seen, mut piece) = (String::new(), [0; 4096]);
        let mut told = false;
        loop {
            let read = out.read(&mut piece).unwrap_or(0);
            if read == 0 {
                break;
            }
            seen += &String::from_utf8_lossy(&piece[..read]);
            if !told && seen.contains("POOLS") {
                told = true;
                let pid = seen.lines().next().unwrap().trim().parse().unwrap();
                match way {
                    "q" => child.stdin.as_mut().unwrap().write_all(b"q").unwrap(),
                    signal => kill(signal, pid),
                }
            }
        }
        let code = child.wait().unwrap().code();
        let expected = [("q", 0), ("-TERM", 143), ("-HUP", 129)];
        assert!(
            expected.contains(&(way, code.unwrap())),
            "{way}: {code:?} {seen}"
        );
        assert!(seen.contains("\x1b[?1049h"), "{way}: {seen}");
        assert!(
            seen.trim_end().ends_with("\x1b[?25h")
                || seen.rfind("\x1b[?1049l") > seen.rfind("\x1b[?1049h"),
            "{way}: {seen}"
        );
    }
    assert_eq!(runtime.end().code, Some(0));
}
