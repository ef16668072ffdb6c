//! The options and settings of the `dragon` command, in jobs of one node and of several.
//!
//! The test runs itself again as the head of a runtime (`child`), which starts processes on its nodes.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use dragon::{Deadline, Session, Spawn};
use dragon_tests::child;
use dragon_tests::cluster::nodes_possible;
use dragon_tests::local::{Finished, Traces, binary, dragon, finish, pause, run};

const SCRIPT: &str = "DRAGON_TEST_SCRIPT";

/// Options with which a job starts whose head runs `script` in a shell on every node.
fn everywhere(options: &[&str], script: &str) -> Command {
    let mut command = child::head(options);
    command.env(SCRIPT, script);
    command
}

/// The head: runs the script on every node; nothing when the test runs in the ordinary way.
#[test]
fn child() {
    let Ok(script) = std::env::var(SCRIPT) else {
        return;
    };
    let nodes = Session::attach().unwrap().nodes().unwrap().nodes;
    for node in nodes {
        let shell = Spawn::program("/bin/sh").arg("-c").arg(&script);
        let child = shell.node(node.node).start().unwrap();
        assert_eq!(child.process.wait(Deadline::Never).unwrap(), 0);
    }
}

/// The lines that begin with the mark of the scripts, behind what stands before it: the harness prints lines of its own.
fn marked(done: &Finished) -> Vec<String> {
    assert_eq!(done.code, Some(0), "{done:?}");
    let lines = done.out.lines().filter(|line| line.contains("MARK"));
    lines.map(str::to_owned).collect()
}

/// A remote shell that runs everything here, in the session, the environment and the home of another host.
fn rsh(folder: &Path, environment: &str) -> PathBuf {
    let rsh = folder.join("rsh");
    let text =
        format!("#!/bin/sh\nshift; cd /; exec setsid env -i PATH=\"$PATH\" {environment} \"$@\"\n");
    fs::write(&rsh, text).unwrap();
    fs::set_permissions(&rsh, fs::Permissions::from_mode(0o755)).unwrap();
    rsh
}

fn user_file(folder: &Path, text: &str) {
    fs::create_dir_all(folder.join("dragon")).unwrap();
    fs::write(folder.join("dragon/dragond.toml"), text).unwrap();
}

#[test]
fn what_is_in_force_is_printed_with_its_source() {
    let folder = tempfile::tempdir().unwrap();
    user_file(
        folder.path(),
        "reconnect = 7\npool = \"64M\"\nencrypt = true\n",
    );
    let command = |words: &[&str]| {
        let mut command = dragon(words);
        command
            .env("XDG_CONFIG_HOME", folder.path())
            .env("DRAGON_POOL", "32M");
        command
    };
    let done = run(&mut command(&["config", "--reconnect", "9"]));
    assert_eq!(done.code, Some(0), "{done:?}");
    let line = |name: &str| {
        let line = done.out.lines().find(|line| line.starts_with(name));
        let words = line.unwrap().split_whitespace().collect::<Vec<_>>();
        words.join(" ")
    };
    assert_eq!(line("reconnect"), "reconnect 9 --reconnect");
    assert_eq!(line("pool"), "pool 32M DRAGON_POOL in the environment");
    let file = folder.path().join("dragon/dragond.toml");
    assert_eq!(
        line("encrypt"),
        format!("encrypt true {}:3", file.display())
    );
    assert_eq!(line("label"), "label none default");
    let done = run(&mut command(&["config", "--json"]));
    let wanted = format!("\"file\": \"{}\"", file.display());
    assert!(done.out.contains(&wanted), "{}", done.out);
    let done = run(&mut command(&["config", "--sample"]));
    assert!(done.out.contains("#reconnect = 5\n"), "{}", done.out);
}

/// In a mount namespace with an /etc of the test's own.
#[test]
fn the_files_of_site_and_user_the_environment_and_options_override_each_other() {
    if let Err(why) = nodes_possible() {
        println!("SKIPPED the file of the site: {why}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let site = |text: &str| user_file(&folder.path().join("etc"), text);
    let at_site = |words: &[&str]| {
        let script = "mount --bind \"$0\" /etc && exec \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", script])
            .arg(folder.path().join("etc"))
            .arg(binary("dragon"))
            .args(words)
            .env("XDG_CONFIG_HOME", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    site("label = \"node\"\nnode_limit = 11\npool = \"16M\"\nreconnect = 1\n");
    user_file(
        folder.path(),
        "node_limit = 12\npool = \"32M\"\nreconnect = 2\n",
    );
    let mut config = at_site(&["config", "--reconnect", "4"]);
    let done = run(config
        .env("DRAGON_POOL", "64M")
        .env("DRAGON_RECONNECT", "3"));
    assert_eq!(done.code, Some(0), "{done:?}");
    let lines = done.out.lines();
    let lines = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let all: Vec<_> = lines.collect();
    let user = folder.path().join("dragon/dragond.toml");
    for line in [
        "label node /etc/dragon/dragond.toml:1",
        &format!("node_limit 12 {}:1", user.display()),
        "pool 64M DRAGON_POOL in the environment",
        "reconnect 4 --reconnect",
        "rsh ssh default",
    ] {
        assert!(all.iter().any(|there| there == line), "{line}: {all:#?}");
    }
    // And they are in force.
    assert_eq!(run(&mut at_site(&["echo", "here"])).out, "0: here\n");
    let done = run(&mut at_site(&["--label", "none", "echo", "here"]));
    assert_eq!(done.out, "here\n", "{done:?}");
    site("\nlabbel = \"node\"\n");
    let done = run(&mut at_site(&["true"]));
    assert_eq!(done.code, Some(2));
    let wanted = "/etc/dragon/dragond.toml:2: there is no setting 'labbel'; did you mean 'label'?";
    assert!(done.err.contains(wanted), "{}", done.err);
}

#[test]
fn a_file_with_a_mistake_stops_the_command_and_names_the_line() {
    let folder = tempfile::tempdir().unwrap();
    user_file(folder.path(), "# mine\nreconect = 7\n");
    for words in [&["true"][..], &["config"]] {
        let done = run(dragon(words).env("XDG_CONFIG_HOME", folder.path()));
        assert_eq!(done.code, Some(2));
        let wanted = "dragond.toml:2: there is no setting 'reconect'; did you mean 'reconnect'?";
        assert!(done.err.contains(wanted), "{}", done.err);
    }
}

#[test]
fn all_nodes_have_the_settings_of_the_launcher_whatever_their_own_are() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    user_file(&here, "label = \"node\"\n");
    user_file(&there, "this is no file of settings\n");
    let environment = format!(
        "XDG_CONFIG_HOME={} DRAGON_LABEL=full DRAGON_POOL=0",
        there.display()
    );
    let rsh = rsh(folder.path(), &environment);
    let options = [
        "--hostlist",
        "127.0.0.[1-3]",
        "--rsh",
        rsh.to_str().unwrap(),
        "--env",
        SCRIPT,
    ];
    let mut job = everywhere(&options, "echo MARK");
    let done = run(job.env("XDG_CONFIG_HOME", &here));
    assert_eq!(marked(&done), ["0: MARK", "1: MARK", "2: MARK"]);
}

#[test]
fn labels_name_node_and_process_and_keep_lines_whole() {
    let three = ["-N", "3", "--local-nodes", "--label", "full"];
    let done = run(&mut everywhere(
        &three,
        "echo MARK $$; printf 'MARK unfinished' >&2",
    ));
    let lines = marked(&done);
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (node, line) in lines.iter().enumerate() {
        let pid = line.rsplit(' ').next().unwrap();
        assert_eq!(*line, format!("{node}:{pid}: MARK {pid}"));
        let unfinished = format!("{node}:{pid}: MARK unfinished\n");
        assert!(done.err.contains(&unfinished), "{}", done.err);
    }
    // The head's lines too.
    let done = run(&mut dragon([
        "--label",
        "node",
        "sh",
        "-c",
        "echo one; echo two; echo three >&2",
    ]));
    assert_eq!(
        (done.out.as_str(), done.err.as_str()),
        ("0: one\n0: two\n", "0: three\n")
    );
}

#[test]
fn output_goes_to_a_file_or_to_one_for_each_node() {
    let folder = tempfile::tempdir().unwrap();
    let one = ["-N", "2", "--local-nodes", "--output", "all"];
    let done = run(everywhere(&one, "echo MARK; echo MARK error >&2").current_dir(folder.path()));
    assert_eq!(
        (done.code, done.out.as_str(), done.err.as_str()),
        (Some(0), "", "")
    );
    let all = fs::read_to_string(folder.path().join("all")).unwrap();
    let count = |text: &str, what: &str| text.lines().filter(|line| *line == what).count();
    assert_eq!(
        (count(&all, "MARK"), count(&all, "MARK error")),
        (2, 2),
        "{all}"
    );

    let each = [
        "-N",
        "2",
        "--local-nodes",
        "-o",
        "node-%n",
        "--label",
        "node",
    ];
    let done = run(everywhere(&each, "echo MARK").current_dir(folder.path()));
    assert_eq!(done.code, Some(0), "{done:?}");
    for node in 0..2 {
        let text = fs::read_to_string(folder.path().join(format!("node-{node}"))).unwrap();
        assert_eq!(count(&text, &format!("{node}: MARK")), 1, "{text}");
        assert_eq!(text.matches("MARK").count(), 1, "{text}");
    }
    for (name, text) in [
        ("x-%t", "%t means nothing"),
        ("no/such/folder", "no/such/folder"),
    ] {
        let done = run(dragon(["--output", name, "true"]).current_dir(folder.path()));
        assert_eq!(done.code, Some(2), "{}", done.err);
        assert!(done.err.contains(text), "{}", done.err);
    }
}

#[test]
fn variables_are_set_on_all_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let rsh = rsh(folder.path(), "OWN=there OTHER=there");
    let options = [
        &[
            "--hostlist",
            "127.0.0.[1-2]",
            "--rsh",
            rsh.to_str().unwrap(),
        ][..],
        &[
            "--env",
            SCRIPT,
            "--env",
            "OWN=with = and blanks",
            "--env",
            "HERE",
        ],
    ]
    .concat();
    let script = "echo \"MARK $OWN, $OTHER, $HERE, $ELSE\"";
    let mut job = everywhere(&options, script);
    let done = run(job.env("HERE", "launcher's").env("ELSE", "not asked for"));
    let expected = "MARK with = and blanks, there, launcher's, ";
    assert_eq!(marked(&done), [expected, expected]);
    for (word, text) in [
        ("NO_SUCH_VARIABLE", "no such variable"),
        ("=x", "NAME=VALUE"),
    ] {
        let done = run(&mut dragon(["--env", word, "true"]));
        assert_eq!(done.code, Some(2));
        assert!(done.err.contains(text), "{}", done.err);
    }
}

#[test]
fn programs_run_in_the_directory_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("run.sh"), "#!/bin/sh\npwd\n").unwrap();
    fs::set_permissions(inner.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    let inner_text = format!("{}\n", inner.canonicalize().unwrap().display());
    // Names of files in options are those of the directory in which they were typed.
    let options = ["--cwd", "inner", "--output", "pwd.txt", "./run.sh"];
    assert_eq!(
        run(dragon(options).current_dir(folder.path())).code,
        Some(0)
    );
    assert_eq!(
        fs::read_to_string(folder.path().join("pwd.txt")).unwrap(),
        inner_text
    );

    let rsh = rsh(folder.path(), "");
    let hosts = ["--hostlist", "127.0.0.1", "--rsh", rsh.to_str().unwrap()];
    let done = run(
        dragon([&hosts[..], &["--cwd", "inner", "./run.sh"]].concat()).current_dir(folder.path()),
    );
    assert_eq!(done.out, inner_text, "{}", done.err);
    // Without the option it is this one, where there is one.
    let done = run(dragon([&hosts[..], &["./run.sh"]].concat()).current_dir(&inner));
    assert_eq!(done.out, inner_text, "{}", done.err);
    let done = run(&mut dragon(["--cwd", "/no/such", "true"]));
    assert_eq!(done.code, Some(2));
    assert!(done.err.contains("--cwd /no/such"), "{}", done.err);
}

#[test]
fn at_the_time_limit_the_job_ends_in_good_order() {
    let program = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    for nodes in [&["-s"][..], &["-N", "2", "--local-nodes"]] {
        let child = dragon([nodes, &["--time-limit", "1", "sh", "-c", program]].concat());
        let child = { child }.spawn().unwrap();
        let launcher = child.id();
        let done = finish(child);
        assert_eq!((done.code, done.out.as_str()), (Some(124), "ready\ntold\n"));
        assert!(
            done.err.contains("time limit of 1s is over"),
            "{}",
            done.err
        );
        Traces::assert_none(launcher);
    }
    let done = run(&mut dragon(["--time-limit", "1h", "sh", "-c", "exit 4"]));
    assert_eq!(done.code, Some(4));
    let done = run(&mut dragon(["--time-limit", "30m1h", "true"]));
    assert_eq!(done.code, Some(2));
    assert!(done.err.contains("'30m1h' is no time"), "{}", done.err);
}

#[test]
fn signals_reach_the_head_through_the_remote_shell() {
    let folder = tempfile::tempdir().unwrap();
    let rsh = rsh(folder.path(), "");
    let hosts = [
        "--hostlist",
        "127.0.0.[1-2]",
        "--rsh",
        rsh.to_str().unwrap(),
    ];
    for (signal, code) in [("INT", 5), ("USR1", 5), ("TERM", 128 + 15)] {
        let program =
            format!("trap 'echo got; exit 5' {signal}; echo ready; while :; do sleep 0.05; done");
        // A process group of its own stands for the terminal's foreground group.
        let mut command = dragon([&hosts[..], &["sh", "-c", &program]].concat());
        let mut child = command
            .process_group(0)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let launcher = child.id();
        let mut line = String::new();
        BufReader::with_capacity(1, child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        let to = if signal == "INT" {
            format!("-{launcher}")
        } else {
            launcher.to_string()
        };
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), "--", &to])
            .status()
            .unwrap();
        assert!(sent.success());
        let done = finish(child);
        assert_eq!(
            (done.code, done.out.as_str()),
            (Some(code), "got\n"),
            "{signal}: {}",
            done.err
        );
        Traces::assert_none(launcher);
    }
}

#[test]
fn two_interrupts_end_a_job_on_hosts_whose_head_heeds_none() {
    let folder = tempfile::tempdir().unwrap();
    let rsh = rsh(folder.path(), "");
    let program = "trap '' INT; echo ready; while :; do sleep 0.05; done";
    let words = [
        "--hostlist",
        "127.0.0.[1-2]",
        "--rsh",
        rsh.to_str().unwrap(),
        "sh",
        "-c",
        program,
    ];
    let mut child = dragon(words).process_group(0).spawn().unwrap();
    let launcher = child.id();
    let mut line = String::new();
    BufReader::with_capacity(1, child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    for _ in 0..2 {
        let group = format!("-{launcher}");
        let sent = Command::new("kill")
            .args(["-INT", "--", &group])
            .status()
            .unwrap();
        assert!(sent.success());
        pause(Duration::from_millis(100));
    }
    assert_eq!(finish(child).code, Some(128 + 2));
    Traces::assert_none(launcher);
}

#[test]
fn verbose_says_what_the_daemons_do() {
    assert_eq!(run(&mut dragon(["true"])).err, "");
    let done = run(&mut dragon(["-v", "true"]));
    assert!(
        done.err.contains("INFO") && !done.err.contains("DEBUG"),
        "{}",
        done.err
    );
    assert!(run(&mut dragon(["-vv", "true"])).err.contains("DEBUG"));
}

#[test]
fn options_known_from_elsewhere_do_what_they_say() {
    let hosts = ["--hostlist", "127.0.0.[1-2]", "--rsh", "env ssh="];
    // `env ssh= HOST COMMAND` would run HOST: a shell is needed that skips its first word.
    let folder = tempfile::tempdir().unwrap();
    let rsh = rsh(folder.path(), "");
    let hosts = [&hosts[..3], &[rsh.to_str().unwrap()]].concat();
    let pass: [&[&str]; 10] = [
        &["-s"],
        &["-N", "0"],
        &["-m", "-N", "2", "--local-nodes"],
        &["-t", "tcp"],
        &["--network-prefix", "lo", "-N", "2", "--local-nodes"],
        &["-l", "ERROR"],
        &["-l", "stderr=WARNING"],
        &["--no-label"],
        &["-p", "21000-21100", "-N", "2", "--local-nodes"],
        &[&hosts[..], &["-w", "ssh", "-m", "-N", "1"]].concat(),
    ];
    for words in pass {
        let done = run(&mut dragon([words, &["echo", "here"]].concat()));
        assert_eq!(
            (done.code, done.out.as_str()),
            (Some(0), "here\n"),
            "{words:?}: {}",
            done.err
        );
    }
    let labels = [("--basic-label", "0: here\n"), ("--no-label", "here\n")];
    for (word, expected) in labels {
        assert_eq!(run(&mut dragon([word, "echo", "here"])).out, expected);
    }
    let done = run(&mut dragon(["--verbose-label", "sh", "-c", "echo $$"]));
    let pid = done.out.rsplit(' ').next().unwrap().trim().to_owned();
    assert_eq!(done.out, format!("0:{pid}: {pid}\n"));
    let done = run(&mut dragon(["-l", "DEBUG", "true"]));
    assert!(done.err.contains("DEBUG"), "{}", done.err);
}

#[test]
fn options_known_from_elsewhere_that_are_not_ours_name_what_is() {
    let refused: [(&[&str], &str); 13] = [
        (&["-m"], "--hostlist"),
        (&["-w", "slurm"], "srun -N4 --dragon"),
        (&["-w", "pbs+pals"], "qsub"),
        (&["-w", "pbs", "-N2", "--local-nodes"], "named already"),
        (&["-w", "lsf"], "qsub under PBS"),
        (&["--rsh", "/opt/pbs/bin/pbs_tmrsh"], "no standard input"),
        (&["-w", "ssh"], "--hostlist"),
        (&["-i", "1"], "--nodes"),
        (&["--resilient"], "--nodes"),
        (&["--network-config", "x.yaml"], "--interface"),
        (&["-t", "hsta"], "it has tcp"),
        (&["-l", "dragon_file=INFO"], "--output"),
        (&["-l", "LOUD"], "--log"),
    ];
    for (words, text) in refused {
        let done = run(&mut dragon([words, &["true"]].concat()));
        assert_eq!(done.code, Some(2), "{words:?}: {}", done.err);
        assert!(done.err.contains(text), "{words:?}: {}", done.err);
    }
}

#[test]
fn names_of_commands_are_no_programs_unless_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("config");
    fs::write(&program, "#!/bin/sh\necho program\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let run = |words: &[&str]| run(dragon(words).current_dir(folder.path()));
    assert_eq!(run(&["./config"]).out, "program\n");
    assert!(run(&["config"]).out.starts_with("pool"));
    assert!(run(&["completions", "bash"]).out.contains("--time-limit"));
    let page = run(&["man"]);
    assert!(
        page.out.contains(".TH") && page.out.contains("time\\-limit"),
        "{}",
        page.out
    );
    assert_eq!(run(&["man", "--folder", "."]).code, Some(0));
    for page in ["dragon.1", "dragon-config.1"] {
        assert!(folder.path().join(page).exists(), "{page}");
    }
    assert_eq!(run(&["completions", "tcsh"]).code, Some(2));
}
