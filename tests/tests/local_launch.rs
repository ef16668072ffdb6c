//! The `dragon` command on this machine: exit codes, input and output, bad input, and every way it can end.

#![allow(clippy::unwrap_used)]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dragon_tests::local::{
    Finished, Traces, WATCHDOG, binary, dragon, finish, pause, run, run_with_input,
};

fn kill(signal: &str, pid: u32) {
    let done = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status()
        .unwrap();
    assert!(done.success(), "kill {signal} {pid}");
}

/// Starts a program that says its first line when it runs, and waits for that line.
fn start(command: &mut Command) -> (Child, String) {
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::with_capacity(1, child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    (child, line.trim().to_owned())
}

/// The daemons that a launcher started.
fn daemons(launcher: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap();
    list.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

fn ends(command: &mut Command) -> Finished {
    let child = command.spawn().unwrap();
    let launcher = child.id();
    let finished = finish(child);
    Traces::assert_none(launcher);
    finished
}

#[test]
fn exit_code_is_the_heads() {
    assert_eq!(ends(&mut dragon(["/bin/true"])).code, Some(0));
    assert_eq!(ends(&mut dragon(["sh", "-c", "exit 7"])).code, Some(7));
    assert_eq!(
        ends(&mut dragon(["sh", "-c", "kill -9 $$"])).code,
        Some(128 + 9)
    );
    assert_eq!(
        ends(&mut dragon([
            "-N",
            "3",
            "--local-nodes",
            "sh",
            "-c",
            "exit 7"
        ]))
        .code,
        Some(7)
    );
}

#[test]
fn output_and_input_pass_through() {
    let done = run(&mut dragon(["sh", "-c", "echo out; echo err >&2"]));
    assert_eq!((done.out.as_str(), done.err.as_str()), ("out\n", "err\n"));
    let input = "line\n".repeat(100_000);
    for nodes in [&["-s"][..], &["-N", "2", "--local-nodes"]] {
        let done = run_with_input(&mut dragon(nodes.iter().chain(&["cat"])), input.as_bytes());
        assert_eq!(done.out.len(), input.len());
    }
}

#[test]
fn options_end_at_the_program() {
    assert_eq!(
        run(&mut dragon(["--", "echo", "--nodes", "-s"])).out,
        "--nodes -s\n"
    );
    assert_eq!(
        run(&mut dragon(["echo", "--nodes", "0"])).out,
        "--nodes 0\n"
    );
}

#[test]
fn a_script_is_run_by_its_first_line_and_a_python_file_by_the_interpreter() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script.sh");
    fs::write(&script, "#!/bin/sh\necho script $1\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(
        run(dragon(["./script.sh", "arg"]).current_dir(folder.path())).out,
        "script arg\n"
    );
    fs::write(
        folder.path().join("prog.py"),
        "import sys; print('python', sys.argv[1]); sys.exit(3)\n",
    )
    .unwrap();
    let done = run(dragon(["prog.py", "arg"]).current_dir(folder.path()));
    assert_eq!((done.out.as_str(), done.code), ("python arg\n", Some(3)));
    fs::write(folder.path().join("broken.py"), "def f(:\n").unwrap();
    let done = ends(dragon(["broken.py"]).current_dir(folder.path()));
    assert_eq!(done.code, Some(1));
    assert!(done.err.contains("SyntaxError"), "{}", done.err);
}

#[test]
fn programs_that_cannot_run_are_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("data"), "no program\n").unwrap();
    let table: [(&[&str], i32, &str); 7] = [
        (
            &["no-such-program"],
            127,
            "no-such-program: command not found",
        ),
        (&["./no-such-file"], 127, "./no-such-file: no such file"),
        (&["no-such.py"], 127, "no-such.py"),
        (&["data"], 127, "type ./data"),
        (&["./data"], 126, "not executable"),
        (&["."], 127, "command not found"),
        (&["/tmp"], 126, "is a directory"),
    ];
    for (arguments, code, text) in table {
        let done = ends(dragon(arguments).current_dir(folder.path()));
        assert_eq!(done.code, Some(code), "{arguments:?}: {}", done.err);
        assert!(done.err.contains(text), "{arguments:?}: {}", done.err);
    }
}

#[test]
fn bad_command_lines_are_refused_with_a_way_out() {
    let table: [(&[&str], &str); 7] = [
        (
            &["--nodes", "0", "--local-nodes", "true"],
            "say how many, 1 to 4096",
        ),
        (
            &["--nodes", "x", "--local-nodes", "true"],
            "invalid value 'x'",
        ),
        (&["--nodes", "3", "true"], "--local-nodes"),
        (&["--no-such-option", "true"], "--no-such-option"),
        (&["--hostlist", "n[1-", "true"], "bracket"),
        (&["--pool", "1K", "true"], "below the minimum"),
        (&[], "dragon --help"),
    ];
    for (arguments, text) in table {
        let done = ends(&mut dragon(arguments));
        assert_eq!(done.code, Some(2), "{arguments:?}: {}", done.err);
        assert!(done.err.contains(text), "{arguments:?}: {}", done.err);
    }
}

#[test]
fn long_arguments_and_bytes_that_are_no_text_arrive() {
    let long = "x".repeat(10_000);
    let done = run(dragon(["sh", "-c", "echo ${#1}; printenv BYTES"])
        .arg("sh")
        .arg(&long)
        .env("BYTES", OsStr::from_bytes(b"a\xff\xfeb")));
    assert_eq!(
        done.out.as_bytes(),
        "10000\na\u{fffd}\u{fffd}b\n".as_bytes()
    );
    let done = run(dragon(["printf", "%s"]).arg(OsString::from(OsStr::from_bytes(b"\xc3"))));
    assert_eq!(done.code, Some(0));
    let huge = "x".repeat(4 << 20);
    let done = ends(&mut dragon(["echo", &huge[..100_000]]));
    assert_eq!(done.out.len(), 100_001);
}

#[test]
fn interrupt_from_the_terminal_reaches_the_head_and_a_second_ends_the_job() {
    // A process group of its own stands for the terminal's foreground group.
    let program = "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.05; done";
    let (child, line) = start(dragon(["sh", "-c", program]).process_group(0));
    let launcher = child.id();
    assert_eq!(line, "ready");
    interrupt_group(launcher);
    let done = finish(child);
    assert_eq!((done.code, done.out.as_str()), (Some(5), "interrupted\n"));
    Traces::assert_none(launcher);

    let deaf = "trap '' INT; echo ready; while :; do sleep 0.05; done";
    let (child, _) = start(dragon(["sh", "-c", deaf]).process_group(0));
    let launcher = child.id();
    interrupt_group(launcher);
    pause(Duration::from_millis(100));
    interrupt_group(launcher);
    assert_eq!(finish(child).code, Some(128 + 2));
    Traces::assert_none(launcher);
}

fn interrupt_group(leader: u32) {
    let done = Command::new("kill")
        .args(["-INT", "--", &format!("-{leader}")])
        .status()
        .unwrap();
    assert!(done.success());
}

#[test]
fn terminate_ends_everything_orderly() {
    for nodes in [&["-s"][..], &["-N", "3", "--local-nodes"]] {
        let (child, _) = start(&mut dragon(nodes.iter().chain(&[
            "sh",
            "-c",
            "echo ready; sleep 1000",
        ])));
        let launcher = child.id();
        kill("-TERM", launcher);
        assert_eq!(finish(child).code, Some(128 + 15));
        Traces::assert_none(launcher);
    }
}

#[test]
fn signals_for_the_program_reach_it() {
    for signal in ["USR1", "USR2"] {
        let program = format!(
            "trap 'echo got {signal}; exit 3' {signal}; echo ready; while :; do sleep 0.05; done"
        );
        let (child, _) = start(&mut dragon(["sh", "-c", &program]));
        let launcher = child.id();
        kill(&format!("-{signal}"), launcher);
        let done = finish(child);
        assert_eq!((done.code, done.out), (Some(3), format!("got {signal}\n")));
        Traces::assert_none(launcher);
    }
}

#[test]
fn children_that_were_there_before_are_spared() {
    let program = format!(
        "sleep 1000 >/dev/null & echo $!; exec {} true",
        binary("dragon").display()
    );
    let done = run(Command::new("sh")
        .args(["-c", &program])
        .stdout(std::process::Stdio::piped()));
    assert_eq!(done.code, Some(0));
    // It lives, or kill would fail.
    kill("-KILL", done.out.trim().parse().unwrap());
}

#[test]
fn nodes_on_this_machine_listen_to_nobody_else() {
    let words = [
        "-N",
        "2",
        "--local-nodes",
        "sh",
        "-c",
        "echo ready; read line",
    ];
    let (mut child, _) = start(dragon(words).stdin(std::process::Stdio::piped()));
    let pids = daemons(child.id());
    let listening: Vec<String> = pids
        .iter()
        .flat_map(|pid| listening_addresses(*pid))
        .collect();
    child.stdin.take();
    let _ = finish(child);
    assert_eq!(listening.len(), 4, "{listening:?}");
    // 127.0.0.1, as the kernel prints it.
    assert!(
        listening
            .iter()
            .all(|address| address.starts_with("0100007F:")),
        "{listening:?}"
    );
}

#[test]
fn a_killed_launcher_ends_the_job() {
    for nodes in [&["-s"][..], &["-N", "3", "--local-nodes"]] {
        let (child, _) = start(&mut dragon(nodes.iter().chain(&[
            "sh",
            "-c",
            "echo ready; sleep 1000 & sleep 1000",
        ])));
        let launcher = child.id();
        kill("-KILL", launcher);
        assert_eq!(finish(child).code, None);
        Traces::assert_none(launcher);
    }
}

#[test]
fn a_killed_daemon_ends_the_job_and_leaves_nothing() {
    for victim in 0..3 {
        let program = "echo ready; sleep 1000 & setsid sleep 1000 & sleep 1000";
        let (child, _) = start(&mut dragon([
            "-N",
            "3",
            "--local-nodes",
            "sh",
            "-c",
            program,
        ]));
        let launcher = child.id();
        let daemons = daemons(launcher);
        assert_eq!(daemons.len(), 3);
        kill("-KILL", daemons[victim]);
        let done = finish(child);
        assert_eq!(
            done.code,
            Some(if victim == 0 { 128 + 9 } else { 125 }),
            "{}",
            done.err
        );
        assert!(done.err.contains(&format!("node {victim}")), "{}", done.err);
        Traces::assert_none(launcher);
    }
}

#[test]
fn orphans_of_the_head_are_swept() {
    let done = ends(&mut dragon([
        "sh",
        "-c",
        "setsid sleep 1000 >/dev/null 2>&1 & exit 4",
    ]));
    assert_eq!(done.code, Some(4));
}

#[test]
fn strangers_at_the_port_are_closed_and_change_nothing() {
    let mut command = dragon([
        "-N",
        "2",
        "--local-nodes",
        "sh",
        "-c",
        "echo ready; read line; exit 6",
    ]);
    let (child, _) = start(command.stdin(std::process::Stdio::piped()));
    let launcher = child.id();
    let ports: Vec<u16> = daemons(launcher)
        .into_iter()
        .flat_map(listening_ports)
        .collect();
    // Two for the control plane, two for data.
    assert_eq!(ports.len(), 4, "{ports:?}");
    let mut silent = Vec::new();
    for port in ports {
        let mut noise = TcpStream::connect(("127.0.0.1", port)).unwrap();
        noise.set_read_timeout(Some(WATCHDOG)).unwrap();
        let _ = noise.write_all(&[0xa5; 4096]);
        let mut rest = Vec::new();
        // Closed or reset: both are the end.
        let _ = noise.read_to_end(&mut rest);
        assert!(
            rest.len() < 200,
            "a stranger was answered with {} bytes",
            rest.len()
        );
        silent.push(TcpStream::connect(("127.0.0.1", port)).unwrap());
    }
    let mut child = child;
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(finish(child).code, Some(6));
    Traces::assert_none(launcher);
}

/// The TCP ports on which a process listens.
fn listening_ports(pid: u32) -> Vec<u16> {
    let port =
        |address: String| u16::from_str_radix(address.rsplit(':').next().unwrap(), 16).unwrap();
    listening_addresses(pid).into_iter().map(port).collect()
}

/// The TCP addresses on which a process listens, as the kernel prints them: address and port in hexadecimal digits.
fn listening_addresses(pid: u32) -> Vec<String> {
    let sockets: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|fd| {
            fs::read_link(fd.unwrap().path())
                .ok()?
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')
                .map(str::to_owned)
        })
        .collect();
    let table = ["tcp", "tcp6"]
        .map(|name| fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default())
        .concat();
    let addresses = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(3) == Some(&"0A")
            && sockets
                .iter()
                .any(|inode| fields.get(9) == Some(&inode.as_str()));
        listens.then(|| fields[1].to_owned())
    });
    addresses.collect()
}

#[test]
fn a_single_node_opens_no_port() {
    let (mut child, _) =
        start(dragon(["sh", "-c", "echo ready; read line"]).stdin(std::process::Stdio::piped()));
    let ports: Vec<u16> = daemons(child.id())
        .into_iter()
        .flat_map(listening_ports)
        .collect();
    child.stdin.take();
    let _ = finish(child);
    assert_eq!(ports, []);
}

#[test]
fn a_daemon_started_by_nobody_says_so() {
    let done = run(Command::new(binary("dragond"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped()));
    assert_eq!(done.code, Some(125));
    assert!(done.err.contains("dragon --help"), "{}", done.err);
}

#[test]
fn hosts_are_reached_by_the_given_shell() {
    let folder = tempfile::tempdir().unwrap();
    let rsh = folder.path().join("rsh");
    fs::write(
        &rsh,
        "#!/bin/sh\necho \"$1\" >> \"$(dirname \"$0\")/hosts\"; shift; exec \"$@\"\n",
    )
    .unwrap();
    fs::set_permissions(&rsh, fs::Permissions::from_mode(0o755)).unwrap();
    // Addresses of the loopback range stand for hosts.
    let arguments = [
        "--hostlist",
        "127.0.0.[1-3]",
        "--rsh",
        rsh.to_str().unwrap(),
        "cat",
    ];
    let child = dragon(arguments)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let launcher = child.id();
    let mut child = child;
    child.stdin.take().unwrap().write_all(b"through\n").unwrap();
    let done = finish(child);
    assert_eq!(
        (done.code, done.out.as_str()),
        (Some(0), "through\n"),
        "{}",
        done.err
    );
    assert_eq!(
        fs::read_to_string(folder.path().join("hosts"))
            .unwrap()
            .lines()
            .count(),
        3
    );
    Traces::assert_none(launcher);
}

#[test]
fn a_starter_that_hears_of_no_children_is_no_reason_to_fail() {
    let own = binary("dragon");
    let mut command = Command::new("env");
    command.arg("--ignore-signal=CHLD").arg(&own);
    command.args([
        "-N",
        "2",
        "--local-nodes",
        "sh",
        "-c",
        "true & wait; exit 7",
    ]);
    let done = ends(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    assert_eq!((done.code, done.err.as_str()), (Some(7), ""));
}

/// Takes as long as the end waits for a reader: one second for each process that has something to say.
#[test]
fn who_does_not_read_standard_error_stops_nobody() {
    let (reader, mut errors) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&errors, true).unwrap();
    for size in [4096, 1] {
        while errors.write(&vec![b'.'; size]).is_ok() {}
    }
    rustix::io::ioctl_fionbio(&errors, false).unwrap();
    let words = ["-N", "2", "--local-nodes", "sh", "-c", "echo up; exit 3"];
    let mut command = dragon(words);
    command.env("DRAGON_LOG", "debug").stderr(errors);
    let done = ends(&mut command);
    assert_eq!((done.code, done.out.as_str()), (Some(3), "up\n"));
    drop(reader);
}
