//! Processes with all that they can be started with, as the head of a runtime starts them.
//!
//! The test runs itself again as the programs inside the runtime (`child`).

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::process::{self, Command};
use std::time::Duration;

use dragon::{
    Child, Code, Deadline, LimitKind, Lives, Policy, Session, Spawn, Stdio, wait_all, wait_any,
};
use dragon_tests::child;
use dragon_tests::local::{Finished, Traces, c_program, dragon, eventually_empty, finish};

const ROLE: &str = "DRAGON_TEST_PROCESSES";
const KILL: i32 = 9;
const TERM: i32 = 15;

/// Runs this test as the head of a runtime, with more variables.
fn head_with(role: &str, variables: &[(&str, &str)]) -> Finished {
    let mut command = child::head(&[]);
    command.env(ROLE, role).envs(variables.iter().copied());
    let child = command.spawn().unwrap();
    let launcher = child.id();
    let done = finish(child);
    assert_eq!(done.code, Some(0), "{done:?}");
    Traces::assert_none(launcher);
    done
}

fn head(role: &str) -> Finished {
    head_with(role, &[])
}

#[test]
fn a_killed_daemon_takes_all_processes_with_it() {
    let child = child::head(&[]).env(ROLE, "daemon killed").spawn().unwrap();
    let launcher = child.id();
    assert_ne!(finish(child).code, Some(0));
    Traces::assert_none(launcher);
}

#[test]
fn a_process_has_what_it_was_given() {
    head("given");
}

#[test]
fn standard_streams_lead_where_they_were_asked_to() {
    let done = head("streams");
    assert!(done.out.contains("by the terminal\n"), "{done:?}");
    assert!(!done.out.contains("to nowhere"), "{done:?}");
}

#[test]
fn a_pipe_holds_its_writer_back_and_carries_everything() {
    head("pipes");
}

#[test]
fn what_cannot_be_started_says_why() {
    head("refused");
}

#[test]
fn one_any_and_all_are_waited_for() {
    head("waits");
}

#[test]
fn a_signal_reaches_one_or_the_whole_tree() {
    head("signals");
}

#[test]
fn cpus_and_gpus_are_reserved_and_come_back() {
    eprintln!(
        "there are no GPUs here: the list comes from CUDA_VISIBLE_DEVICES, which the test sets"
    );
    head_with("reserves", &[("CUDA_VISIBLE_DEVICES", "0,GPU-5f1c")]);
}

#[test]
fn processes_end_with_their_creator_or_live_on() {
    head("creator killed");
}

#[test]
fn a_process_costs_the_daemon_the_descriptors_that_are_stated() {
    head("descriptors");
}

#[test]
fn a_daemon_without_descriptors_refuses_by_name_and_goes_on() {
    let head = child::head(&[]);
    let mut command = Command::new("prlimit");
    command.arg("--nofile=160:160").arg(head.get_program());
    command.args(head.get_args()).env(ROLE, "few descriptors");
    command.stdout(process::Stdio::piped());
    let done = finish(command.stderr(process::Stdio::piped()).spawn().unwrap());
    assert_eq!(done.code, Some(0), "{done:?}");
}

/// The C interface, by a program in C.
#[test]
fn c_programs_start_processes_with_options() {
    let folder = tempfile::tempdir().unwrap();
    let program = c_program(folder.path(), "processes");
    let done = finish(dragon([&program, folder.path()]).spawn().unwrap());
    assert_eq!(done.code, Some(0), "{done:?}");
}

/// A program in the runtime; nothing when the test runs in the ordinary way.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    match role.as_str() {
        "given" => given(),
        "streams" => streams(),
        "pipes" => pipes(),
        "refused" => refused(),
        "waits" => waits(),
        "signals" => signals(),
        "reserves" => reserves(),
        "creator killed" => creator_killed(),
        "creator" => creator(),
        "daemon killed" => daemon_killed(),
        "descriptors" => descriptors(),
        "few descriptors" => few_descriptors(),
        other => panic!("{other}"),
    }
}

fn sh(script: &str) -> Spawn {
    Spawn::program("sh").arg("-c").arg(script)
}

/// What a script prints.
fn says(spawn: Spawn) -> String {
    let mut child = spawn.stdout(Stdio::Piped).start().unwrap();
    let text = read(&mut child);
    assert_eq!(child.process.wait(Deadline::Never).unwrap(), 0, "{text}");
    text
}

fn read(child: &mut Child) -> String {
    let mut text = String::new();
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    text
}

fn stats() -> HashMap<String, u64> {
    let stats = Session::attach().unwrap().stats().unwrap();
    stats.into_iter().collect()
}

fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn gone(pid: u32) {
    eventually_empty("this machine", || match is_running(pid) {
        true => format!("process {pid}"),
        false => String::new(),
    });
}

fn given() {
    let before = says(sh("umask; nice; ulimit -n; ulimit -c"));
    let spawn = sh("pwd; umask; nice; ulimit -Sc; ulimit -Hc; echo $COLOUR; echo ${HOME-none}")
        .directory("/usr")
        .umask(0o027)
        .nice(3)
        .limit(LimitKind::Core, Some(0), Some(512))
        .env("COLOUR", "green");
    let nice: i32 = before.lines().nth(1).unwrap().parse().unwrap();
    let home = std::env::var("HOME").unwrap_or("none".to_owned());
    let text = says(spawn);
    assert_eq!(
        text,
        format!("/usr\n0027\n{}\n0\n1\ngreen\n{home}\n", nice + 3)
    );
    assert_eq!(before, says(sh("umask; nice; ulimit -n; ulimit -c")));

    // The program is looked up in the PATH of the process, from its working directory.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("here");
    fs::write(&program, "#!/bin/sh\necho found\n").unwrap();
    let status = Command::new("chmod").arg("+x").arg(&program).status();
    assert!(status.unwrap().success());
    let path = format!("{}:/bin:/usr/bin", folder.path().display());
    assert_eq!(says(Spawn::program("here").env("PATH", path)), "found\n");
    assert_eq!(
        says(Spawn::program("./here").directory(folder.path())),
        "found\n"
    );

    // Whatever the daemon blocks and handles, a process does not.
    let signals = says(sh("grep -E 'Sig(Blk|Ign)' /proc/self/status | cut -f2"));
    let (blocked, ignored) = signals.split_once('\n').unwrap();
    assert_eq!(blocked, "0000000000000000");
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    assert_eq!(ignored >> (13 - 1) & 1, 0, "SIGPIPE");
    // Nothing of the daemon's own descriptors is inherited: no more than whoever started the runtime left open.
    let open = "ls /proc/self/fd | wc -l";
    let plain = Command::new("sh").args(["-c", open]).output().unwrap();
    assert_eq!(says(sh(open)).as_bytes(), plain.stdout);
}

fn streams() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let run = |spawn: Spawn| {
        let child = spawn.directory(folder.path()).start().unwrap();
        assert_eq!(child.process.wait(Deadline::Never).unwrap(), 0);
    };
    let content = |name: &str| fs::read_to_string(file(name)).unwrap();
    run(sh("echo out; echo err >&2")
        .stdout(Stdio::File("a".into()))
        .stderr(Stdio::Merge));
    assert_eq!(content("a"), "out\nerr\n");
    run(sh("echo more").stdout(Stdio::Append("a".into())));
    assert_eq!(content("a"), "out\nerr\nmore\n");
    run(sh("echo new")
        .stdout(Stdio::File(file("a")))
        .stderr(Stdio::Null));
    assert_eq!(content("a"), "new\n");
    run(Spawn::program("cat")
        .stdin(Stdio::File("a".into()))
        .stdout(Stdio::File("b".into())));
    assert_eq!(content("b"), "new\n");
    run(sh("echo to nowhere; echo to nowhere >&2")
        .stdout(Stdio::Null)
        .stderr(Stdio::Null));
    run(sh("echo by the terminal").stdout(Stdio::Inherit));
    // Without anything said there is no input.
    assert_eq!(says(Spawn::program("cat")), "");
    // Where standard output is forwarded, what is merged with it is too.
    run(sh("echo merged >&2").stderr(Stdio::Merge));
}

fn pipes() {
    let mut child = Spawn::program("cat")
        .stdin(Stdio::Piped)
        .stdout(Stdio::Piped)
        .start()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let expected: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let bytes = expected.clone();
    let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
    let mut received = Vec::new();
    let mut output = child.stdout.take().unwrap();
    output.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(received == expected, "{} bytes", received.len());
    assert_eq!(child.process.wait(Deadline::Never).unwrap(), 0);

    // Both outputs apart.
    let mut child = sh("echo out; echo err >&2")
        .stdout(Stdio::Piped)
        .stderr(Stdio::Piped)
        .start()
        .unwrap();
    let mut errors = String::new();
    child
        .stderr
        .as_mut()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    assert_eq!(
        (read(&mut child).as_str(), errors.as_str()),
        ("out\n", "err\n")
    );

    // Who prints more than is read waits: it never gets to its last line.
    let folder = tempfile::tempdir().unwrap();
    let script = "yes | head -c 20000000; echo done > finished";
    let child = sh(script)
        .directory(folder.path())
        .stdout(Stdio::Piped)
        .start()
        .unwrap();
    let waited = child.process.wait(Deadline::after(300_000_000));
    assert_eq!(waited.unwrap_err().code(), Code::Timeout);
    assert!(!folder.path().join("finished").exists());
    // Who reads no more ends it: `yes` gets SIGPIPE, as in a shell.
    drop(child.stdout);
    assert_eq!(child.process.wait(Deadline::Never).unwrap(), 0);

    // Nobody reads the input: the end of it does not hold up who drops it.
    let child = Spawn::program("sleep")
        .arg("1000")
        .stdin(Stdio::Piped)
        .start()
        .unwrap();
    let input = child.stdin.unwrap();
    let mut sent = 0;
    while input.send(&[0; 4096], Deadline::Now).is_ok() {
        sent += 1;
    }
    assert!(sent >= 16, "{sent}");
    drop(input);
    child.process.signal(KILL).unwrap();
    assert_eq!(child.process.wait(Deadline::Never).unwrap(), KILL);
}

fn refused() {
    let why = |spawn: Spawn| {
        let error = spawn.start().unwrap_err();
        (error.code(), error.to_string())
    };
    for (spawn, code, part) in [
        (
            Spawn::program("no-such-program"),
            Code::SpawnFailed,
            "no-such-program: command not found on PATH",
        ),
        (
            Spawn::program("/etc/passwd"),
            Code::SpawnFailed,
            "/etc/passwd: not executable; type chmod +x",
        ),
        (
            Spawn::program("true").directory("/nowhere"),
            Code::SpawnFailed,
            "working directory /nowhere: No such file",
        ),
        (
            Spawn::program("true").stdin(Stdio::File("/nowhere".into())),
            Code::SpawnFailed,
            "/nowhere as standard input",
        ),
        (
            Spawn::program("true").stdin(Stdio::Merge),
            Code::SpawnFailed,
            "Merge is nothing for standard input",
        ),
        (
            Spawn::program("true").limit(LimitKind::Core, Some(2), Some(1)),
            Code::SpawnFailed,
            "resource limits",
        ),
        (
            Spawn::program("true").arg("x".repeat(3_000_000)),
            Code::SpawnFailed,
            "exceed the system's limit",
        ),
        (
            Spawn::program("true").arg("a\0b"),
            Code::SpawnFailed,
            "a NUL byte",
        ),
        (
            Spawn::program("true").host("elsewhere"),
            Code::InvalidArgument,
            "host name elsewhere",
        ),
        (
            Spawn::program("true").env("DRAGON_PLACEMENT", "nearby"),
            Code::InvalidArgument,
            "'nearby'",
        ),
        (
            Spawn::program("true").cpus(100_000),
            Code::InvalidArgument,
            "100000 CPUs wanted, the job was granted",
        ),
        (
            Spawn::program("true").numa_node(77, 0),
            Code::InvalidArgument,
            "NUMA node 77",
        ),
    ] {
        let (found, text) = why(spawn);
        assert!(found == code && text.contains(part), "{found:?} {text}");
    }
    // One of many fails alone.
    let results = Spawn::start_all(vec![
        Spawn::program("no-such-program"),
        Spawn::program("true"),
    ]);
    let mut results = results.unwrap();
    assert_eq!(
        results
            .remove(1)
            .unwrap()
            .process
            .wait(Deadline::Never)
            .unwrap(),
        0
    );
    assert!(results.remove(0).is_err());
}

fn waits() {
    let spawns = vec![
        sh("read line; exit 3").stdin(Stdio::Piped),
        sh("kill -9 $$"),
        sh("sleep 1000"),
    ];
    let children: Vec<_> = Spawn::start_all(spawns)
        .unwrap()
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let all: Vec<_> = children.iter().map(|child| &child.process).collect();
    assert_eq!(wait_any(&all, Deadline::Never).unwrap(), (1, KILL));
    let rest = [all[0], all[2]];
    let late = wait_any(&rest, Deadline::after(10_000_000));
    assert_eq!(late.unwrap_err().code(), Code::Timeout);
    let mut input = children[0].stdin.as_ref().unwrap();
    input.send(b"go\n", Deadline::Never).unwrap();
    let _ = &mut input;
    assert_eq!(wait_any(&rest, Deadline::Never).unwrap(), (0, 3 << 8));
    let late = wait_all(&all, Deadline::after(10_000_000));
    assert_eq!(late.unwrap_err().code(), Code::Timeout);
    all[2].signal(TERM).unwrap();
    assert_eq!(
        wait_all(&all, Deadline::Never).unwrap(),
        [3 << 8, KILL, TERM]
    );
    assert_eq!(
        wait_any(&[], Deadline::Never).unwrap_err().code(),
        Code::InvalidArgument
    );
}

/// A shell with a child in its group and one in a session of its own; their pids.
fn family() -> (Child, u32, u32) {
    let script = "sleep 1000 & echo $!; setsid sleep 1000 & echo $!; echo ready; wait";
    let mut child = sh(script).stdout(Stdio::Piped).start().unwrap();
    let mut text = String::new();
    while !text.contains("ready\n") {
        let piece = child
            .stdout
            .as_mut()
            .unwrap()
            .receive(Deadline::Never)
            .unwrap();
        text.push_str(&String::from_utf8(piece.unwrap().to_vec()).unwrap());
    }
    let pids: Vec<u32> = text
        .lines()
        .take(2)
        .map(|line| line.parse().unwrap())
        .collect();
    (child, pids[0], pids[1])
}

fn signals() {
    let (shell, near, far) = family();
    shell.process.signal(KILL).unwrap();
    assert_eq!(shell.process.wait(Deadline::Never).unwrap(), KILL);
    assert!(is_running(near) && is_running(far));

    let (shell, near, far) = family();
    shell.process.signal_tree(KILL).unwrap();
    assert_eq!(shell.process.wait(Deadline::Never).unwrap(), KILL);
    gone(near);
    gone(far);

    let error = shell.process.signal(TERM).unwrap_err();
    assert_eq!(error.code(), Code::NoSuchObject);
    let child = sh("sleep 1000").start().unwrap();
    assert_eq!(
        child.process.signal(4711).unwrap_err().code(),
        Code::InvalidArgument
    );
    child.process.signal(KILL).unwrap();
}

fn reserves() {
    let granted = stats()["cpus_granted"];
    let all = u32::try_from(granted).unwrap();
    let allowed = |spawn: Spawn| says(spawn).trim().to_owned();
    let mask = "grep Cpus_allowed_list /proc/self/status | cut -f2; echo $CUDA_VISIBLE_DEVICES";
    let nothing = allowed(sh(mask));
    assert!(nothing.ends_with("\n0,GPU-5f1c"), "{nothing}");
    let one = allowed(sh(mask).cpus(1).gpus(1));
    let (cpu, gpu) = one.split_once('\n').unwrap();
    let cpu: u32 = cpu.parse().unwrap();
    assert_eq!(gpu, "0");
    assert_eq!(
        allowed(sh(mask).cpu_set([cpu]).gpu_set(["GPU-5f1c"])),
        format!("{cpu}\nGPU-5f1c")
    );

    let holder = sh("sleep 1000").cpus(all).gpus(2).start().unwrap();
    let counted = stats();
    assert_eq!((counted["cpus_free"], counted["gpus_free"]), (0, 0));
    let error = sh("true").cpus(1).start().unwrap_err();
    assert_eq!(error.code(), Code::Full);
    let text = error.to_string();
    assert!(
        text.contains(&format!(
            "0 of {all} granted on this node are free: sh has {all}"
        )),
        "{text}"
    );
    let error = sh("true")
        .gpus(1)
        .wait_for_resources(Duration::from_millis(20))
        .start()
        .unwrap_err();
    assert_eq!(error.code(), Code::Timeout);
    assert!(
        error
            .to_string()
            .contains("waited 20 ms: 1 GPUs wanted, 0 of 2"),
        "{error}"
    );
    // Without a reservation nobody is held up.
    assert_eq!(says(sh("echo free")), "free\n");

    // One that waits is served by the end of the holder, whatever ends it.
    let waiting = std::thread::spawn(move || {
        let spawn = sh("true")
            .cpus(all)
            .wait_for_resources(Duration::from_secs(50));
        spawn
            .start()
            .unwrap()
            .process
            .wait(Deadline::Never)
            .unwrap()
    });
    let status = Command::new("kill")
        .args(["-9", &holder.pid.to_string()])
        .status();
    assert!(status.unwrap().success());
    assert_eq!(holder.process.wait(Deadline::Never).unwrap(), KILL);
    assert_eq!(waiting.join().unwrap(), 0);
    // One that cannot be started keeps nothing.
    assert!(
        Spawn::program("no-such-program")
            .cpus(1)
            .gpus(2)
            .start()
            .is_err()
    );
    let counted = stats();
    assert_eq!((counted["cpus_free"], counted["gpus_free"]), (granted, 2));
}

fn creator_killed() {
    let creator = child::spawn().env(ROLE, "creator").stdout(Stdio::Piped);
    let mut creator = creator.start().unwrap();
    let pids = child::ready(&mut creator);
    let [bound, free, piped, waiting] = pids[..] else {
        panic!("{pids:?}")
    };
    assert!(is_running(bound) && is_running(free) && is_running(piped));
    assert_eq!(waiting, 0);
    creator.process.signal(KILL).unwrap();
    assert_eq!(creator.process.wait(Deadline::Never).unwrap(), KILL);
    gone(bound);
    // It wrote to a channel of its creator: SIGPIPE, as in a shell.
    gone(piped);
    assert!(is_running(free));
    // What its creator still waited for is not started any more.
    let counted = stats();
    assert_eq!(counted["cpus_free"], counted["cpus_granted"]);
}

fn creator() {
    let all = u32::try_from(stats()["cpus_granted"]).unwrap();
    let bound = sh("sleep 1000")
        .lives(Lives::WithCreator)
        .cpus(all)
        .start()
        .unwrap();
    let free = sh("sleep 1000").policy(Policy::Local).start().unwrap();
    let piped = sh("yes").stdout(Stdio::Piped).start().unwrap();
    std::thread::spawn(move || {
        let waits = sh("sleep 1000")
            .cpus(all)
            .wait_for_resources(Duration::from_secs(50));
        drop(waits.start());
    });
    println!("{} {} {} 0 ready", bound.pid, free.pid, piped.pid);
    let _ = bound.process.wait(Deadline::Never);
}

fn descriptors() {
    let daemon = format!("/proc/{}/fd", std::os::unix::process::parent_id());
    // The counters come from the loop: what it had to do for the starts before is done.
    let open = || {
        stats();
        fs::read_dir(&daemon).unwrap().count()
    };
    let sleep = || Spawn::program("sleep").arg("1000");
    let silent = || sleep().stdout(Stdio::Null).stderr(Stdio::Null);
    for (spawn, each) in [
        (silent(), 0),
        (sleep(), 2),
        (silent().stdin(Stdio::Piped).stdout(Stdio::Piped), 2),
        (
            silent()
                .stderr(Stdio::Merge)
                .stdout(Stdio::File("/dev/null".into())),
            0,
        ),
    ] {
        let before = open();
        let children = Spawn::start_all(vec![spawn; 20]).unwrap();
        let children: Vec<_> = children.into_iter().map(Result::unwrap).collect();
        assert_eq!(open(), before + 20 * each);
        for child in &children {
            child.process.signal(KILL).unwrap();
        }
        let all: Vec<_> = children.iter().map(|child| &child.process).collect();
        wait_all(&all, Deadline::Never).unwrap();
        drop(children);
        eventually_empty("the daemon", || match open() {
            now if now <= before => String::new(),
            now => format!("{now} descriptors, {before} before"),
        });
    }
}

fn few_descriptors() {
    let sleep = || Spawn::program("sleep").arg("1000");
    let mut children = Vec::new();
    let refused = loop {
        match sleep().start() {
            Ok(child) => children.push(child),
            Err(error) => break error.to_string(),
        }
    };
    for words in ["160 files open", "ulimit -Hn"] {
        assert!(refused.contains(words), "{refused}");
    }
    // What needs none is started still, and everything when there are some again.
    let silent = sleep().stdout(Stdio::Null).stderr(Stdio::Null);
    children.push(silent.start().unwrap());
    for child in &children {
        child.process.signal(KILL).unwrap();
    }
    let all: Vec<_> = children.iter().map(|child| &child.process).collect();
    wait_all(&all, Deadline::Never).unwrap();
    eventually_empty("the daemon", || match Spawn::program("true").start() {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    });
}

fn daemon_killed() {
    let spawns = vec![
        sh("sleep 1000 & sleep 1000"),
        sh("yes").stdout(Stdio::Piped),
        Spawn::program("cat").stdin(Stdio::Piped),
    ];
    let children = Spawn::start_all(spawns).unwrap();
    let started: Vec<_> = children.into_iter().map(Result::unwrap).collect();
    let daemon = std::os::unix::process::parent_id().to_string();
    let status = Command::new("kill").args(["-9", &daemon]).status();
    assert!(status.unwrap().success());
    let _ = started[0].process.wait(Deadline::Never);
}
