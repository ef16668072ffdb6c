//! Nodes behind the system's own OpenSSH: a server in each network namespace, with keys and a configuration of the test's own.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use dragon_tests::job::{Job, send};
use dragon_tests::local::{WATCHDOG, binary, pause, run};
use dragon_tests::netns::{Netns, address};
use dragon_tests::suite;
use rustix::process::Signal;
use tempfile::TempDir;

const NODES: u32 = 3;
/// Has a grandchild in a session of its own, and runs until its input ends.
const HEAD: [&str; 3] = [
    "sh",
    "-c",
    "setsid sleep 100000 >/dev/null 2>&1 & echo up; read line; exit 3",
];

fn main() -> ExitCode {
    suite::run(
        Site::up,
        &[
            ("host_lists_and_host_files", host_lists_and_host_files),
            (
                "a_host_without_a_server_is_named",
                a_host_without_a_server_is_named,
            ),
            ("killed_daemons_leave_nothing", killed_daemons_leave_nothing),
            (
                "killed_supervisors_leave_nothing",
                killed_supervisors_leave_nothing,
            ),
            ("killed_clients_leave_nothing", killed_clients_leave_nothing),
            ("a_job_goes_on", a_job_goes_on),
            (
                "a_killed_launcher_leaves_nothing",
                a_killed_launcher_leaves_nothing,
            ),
            (
                "a_stopped_daemon_does_not_outlive_a_killed_launcher",
                a_stopped_daemon_does_not_outlive_a_killed_launcher,
            ),
            (
                "an_interrupt_reaches_the_head",
                an_interrupt_reaches_the_head,
            ),
        ],
    )
}

/// Namespaces with a server each.
struct Site {
    netns: Netns,
    folder: TempDir,
    servers: Vec<Child>,
}

impl suite::Shared for Site {}

impl Site {
    fn up() -> Result<Self, String> {
        for program in ["/usr/sbin/sshd", "/usr/bin/ssh"] {
            if !Path::new(program).exists() {
                return Err(format!(
                    "{program} is not installed; type: cargo xtask setup"
                ));
            }
        }
        let netns = Netns::up(NODES)?;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        for key in ["host", "user"] {
            let made = run(Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f", &at(key)])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()));
            assert_eq!(made.code, Some(0), "{}", made.err);
        }
        let server = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nAcceptEnv DRAGON_*\nPidFile none\n",
            at("host"),
            at("user.pub"),
        );
        let client = format!(
            "IdentityFile {}\nIdentitiesOnly yes\nBatchMode yes\nStrictHostKeyChecking no\nUserKnownHostsFile {}\nSendEnv DRAGON_*\nUser root\nLogLevel ERROR\n",
            at("user"),
            at("known"),
        );
        fs::write(at("sshd_config"), server).unwrap();
        fs::write(at("ssh_config"), client).unwrap();
        // The server wants a folder of its own below /run.
        let script = format!(
            "mount -t tmpfs run /run && mkdir /run/sshd && exec /usr/sbin/sshd -D -e -f {}",
            at("sshd_config")
        );
        let servers = (0..NODES)
            .map(|node| {
                let words = ["unshare", "--mount", "sh", "-ec", &script];
                let mut command = netns.on(node, &words);
                let log = fs::File::create(folder.path().join(format!("sshd-{node}.log"))).unwrap();
                command
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(log);
                command.spawn().unwrap()
            })
            .collect();
        let site = Self {
            netns,
            folder,
            servers,
        };
        site.wait_for_servers();
        Ok(site)
    }

    fn wait_for_servers(&self) {
        for node in 0..NODES {
            let log = self.folder.path().join(format!("sshd-{node}.log"));
            let mut said = String::new();
            for _ in 0..1000 {
                said = fs::read_to_string(&log).unwrap();
                if said.contains("Server listening") {
                    break;
                }
                pause(Duration::from_millis(20));
            }
            assert!(
                said.contains("Server listening"),
                "no server on node {node}: {said}"
            );
        }
    }

    /// `dragon` on the first node, over hosts by ssh.
    fn dragon(&self, options: &[&str], words: &[&str]) -> Job {
        let shell = format!("ssh -F {}", self.folder.path().join("ssh_config").display());
        let dragon = binary("dragon").display().to_string();
        let all = [&[&*dragon, "--rsh", &shell], options, words].concat();
        let mut command = self.netns.on(0, &all);
        let job = Job::start(std::os::unix::process::CommandExt::process_group(
            &mut command,
            0,
        ));
        job.unwrap().in_namespaces(self.netns.holders())
    }

    /// A job whose head is at work.
    fn at_work(&self) -> Job {
        self.at_work_with(&[])
    }

    fn at_work_with(&self, options: &[&str]) -> Job {
        let hosts: Vec<_> = (0..NODES).map(address).collect();
        let hosts = hosts.join(",");
        let options = [&["--hostlist", &hosts], options].concat();
        let job = self.dragon(&options, &HEAD);
        assert!(job.has_printed("up", WATCHDOG), "{:?}", self.logs());
        job
    }

    fn logs(&self) -> Vec<String> {
        let log = |node| self.folder.path().join(format!("sshd-{node}.log"));
        (0..NODES)
            .map(|node| fs::read_to_string(log(node)).unwrap_or_default())
            .collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn host_lists_and_host_files(site: &Site) {
    let file = site.folder.path().join("hosts");
    fs::write(
        &file,
        format!("# the nodes\n{}\n\n{}\n", address(1), address(2)),
    )
    .unwrap();
    for options in [
        ["--hostlist", "10.78.0.[1-3]"],
        ["--hostfile", file.to_str().unwrap()],
    ] {
        let mut job = site.dragon(&options, &["sh", "-c", "echo up; cat; exit 3"]);
        job.tell("what the head reads\n");
        job.stdin = None;
        let ended = job.ends();
        let expected = (Some(3), "up\nwhat the head reads\n");
        assert_eq!(
            (ended.code, &*ended.out),
            expected,
            "{ended:?} {:?}",
            site.logs()
        );
    }
}

fn a_host_without_a_server_is_named(site: &Site) {
    // Nobody has the last address.
    let nobody = address(200);
    let hosts = [address(0), address(1), nobody.clone()].join(",");
    let options = ["--bring-up-limit", "3600", "--hostlist", &hosts];
    let ended = site.dragon(&options, &HEAD).ends();
    assert_eq!(ended.code, Some(125), "{ended:?}");
    assert!(
        ended
            .err
            .contains(&format!("node 2 ({nobody}) cannot be reached")),
        "{ended:?}"
    );
}

fn killed_daemons_leave_nothing(site: &Site) {
    for node in 0..NODES {
        let mut job = site.at_work();
        let pid = job.in_state(node, "RUNNING", WATCHDOG).unwrap();
        assert!(send(pid, Signal::KILL));
        let ended = job.ends();
        let code = if node == 0 { 137 } else { 125 };
        assert_eq!(ended.code, Some(code), "node {node}: {ended:?}");
        assert!(
            ended
                .err
                .contains(&format!("node {node} was ended by signal 9")),
            "{ended:?}"
        );
    }
}

fn killed_supervisors_leave_nothing(site: &Site) {
    for node in 0..2 {
        let mut job = site.at_work();
        let pid = job.in_state(node, "RUNNING", WATCHDOG).unwrap();
        let supervisor = parent(pid);
        let name = fs::read_to_string(format!("/proc/{supervisor}/comm")).unwrap();
        assert_eq!(name, "dragond\n");
        assert!(send(supervisor, Signal::KILL));
        let ended = job.ends();
        assert_ne!(ended.code, Some(0), "node {node}: {ended:?}");
    }
}

fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap();
    line.trim().parse().unwrap()
}

/// Ends the remote shell of a node, at the end of the launcher.
fn kill_client(job: &Job, node: u32) {
    let host = address(node);
    let processes = job.processes();
    let client = processes
        .iter()
        .find(|process| process.words[0] == "ssh" && process.words.contains(&host))
        .unwrap_or_else(|| panic!("no ssh to {host} among {processes:?}"));
    assert!(send(client.pid, Signal::KILL));
}

/// Where the job goes on without nodes: without one whose daemon is killed, then without another whose line breaks.
fn a_job_goes_on(site: &Site) {
    let faults: [fn(&Job, u32); 2] = [
        |job, node| {
            let pid = job.in_state(node, "RUNNING", WATCHDOG).unwrap();
            assert!(send(pid, Signal::KILL));
        },
        kill_client,
    ];
    for fault in faults {
        let mut job = site.at_work_with(&["--on-node-failure", "continue"]);
        fault(&job, 1);
        let host = address(1);
        let lost = format!("node 1 ({host}) is lost; the job goes on with 2 nodes");
        assert!(job.has_said(&lost, WATCHDOG), "{:?}", job.end(WATCHDOG));
        job.tell("end\n");
        let ended = job.ends();
        assert_eq!(ended.code, Some(3), "{ended:?}");
    }
    // Without the first node's line, the others find that nobody is left to go on for.
    let mut job = site.at_work_with(&["--on-node-failure", "continue"]);
    kill_client(&job, 0);
    let ended = job.ends();
    assert_eq!(ended.code, Some(125), "{ended:?}");
    let lost = format!("node 0 ({}) was lost with the program", address(0));
    assert!(ended.err.contains(&lost), "{ended:?}");
}

fn killed_clients_leave_nothing(site: &Site) {
    for node in 0..2 {
        let mut job = site.at_work();
        kill_client(&job, node);
        let ended = job.ends();
        assert_ne!(ended.code, Some(0), "node {node}: {ended:?}");
    }
}

fn a_killed_launcher_leaves_nothing(site: &Site) {
    let mut job = site.at_work();
    assert!(send(job.launcher(), Signal::KILL));
    assert_eq!(job.ends().code, Some(137));
}

/// A stopped daemon does not notice that its starter is gone.
fn a_stopped_daemon_does_not_outlive_a_killed_launcher(site: &Site) {
    for node in 0..2 {
        let mut job = site.at_work();
        let pid = job.in_state(node, "RUNNING", WATCHDOG).unwrap();
        assert!(send(pid, Signal::STOP));
        assert!(send(job.launcher(), Signal::KILL));
        assert_eq!(job.ends().code, Some(137));
    }
}

fn an_interrupt_reaches_the_head(site: &Site) {
    let mut job = site.at_work();
    assert!(send(job.launcher(), Signal::INT));
    assert_eq!(job.ends().code, Some(130));
}
