//! `dragon doctor` on machines that lack something: each check is shown the state that it is there to find.
//!
//! Limits are set by `prlimit`; files of the kernel and of sites are put before the real ones in a mount namespace, which
//! needs root, as other namespaces do.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use dragon_tests::cluster::nodes_possible;
use dragon_tests::local::{binary, run};
use serde_json::Value;
use tempfile::TempDir;

/// A folder that every user can read, with `dragon` and `dragond`.
fn installed() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["dragon", "dragond"] {
        fs::copy(binary(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn script(folder: &Path, name: &str, text: &str) {
    let file = folder.join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What a check says where `shell` runs the doctor, which it calls `$DOCTOR`: verdict, finding and advice, and the exit code.
fn check(folder: &TempDir, shell: &str, name: &str) -> (String, String, i32) {
    check_with(folder, shell, &[], name)
}

fn check_with(
    folder: &TempDir,
    shell: &str,
    variables: &[(&str, &str)],
    name: &str,
) -> (String, String, i32) {
    let mut command = Command::new("sh");
    let doctor = format!("{} doctor --json", folder.path().join("dragon").display());
    command
        .args(["-c", shell])
        .env("DOCTOR", doctor)
        .env("FOLDER", folder.path())
        .env_remove("SLURM_JOB_ID")
        .envs(variables.iter().copied())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let done = run(&mut command);
    let all: Value = serde_json::from_str(&done.out).unwrap_or_else(|_| panic!("{done:?}"));
    let failed = all["failed"].as_u64().unwrap();
    assert_eq!(done.code, Some(i32::from(failed > 0)), "{done:?}");
    let checks = all["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["check"] == name);
    let found = found.unwrap_or_else(|| panic!("no check {name}: {all}"));
    let text = |field: &str| found[field].as_str().unwrap().to_owned();
    assert_eq!(
        text("verdict") == "ok",
        text("change").is_empty(),
        "{found}"
    );
    (
        text("verdict"),
        text("found") + " → " + &text("change"),
        done.code.unwrap(),
    )
}

fn assert_check(folder: &TempDir, shell: &str, name: &str, verdict: &str, sentence: &str) {
    let (got, text, code) = check(folder, shell, name);
    assert_eq!(got, verdict, "{name}: {text}");
    assert!(text.contains(sentence), "{name}: {text}");
    assert!(code == 1 || verdict != "fail");
}

#[test]
fn limits_of_the_shell_are_found() {
    let folder = installed();
    assert_check(&folder, "$DOCTOR", "kernel calls", "ok", "work");
    assert_check(&folder, "$DOCTOR", "process table", "ok", "");
    for (limit, name, verdict, sentence) in [
        ("--nofile=120:120", "open files", "fail", "at most 120"),
        ("--nofile=4000:4000", "open files", "warn", "at most 4000"),
        ("--as=4294967296", "kernel calls", "fail", "ulimit -v"),
    ] {
        let shell = format!("prlimit {limit} $DOCTOR");
        assert_check(&folder, &shell, name, verdict, sentence);
    }
}

#[test]
fn programs_that_do_not_fit_together_are_found() {
    let folder = installed();
    let path = folder.path();
    fs::remove_file(path.join("dragond")).unwrap();
    assert_check(
        &folder,
        "PATH=/usr/bin:/bin $DOCTOR",
        "dragond",
        "fail",
        "dragond",
    );
    script(path, "dragond", "echo dragond 9.9.9");
    assert_check(&folder, "$DOCTOR", "dragond", "fail", "9.9.9");
    script(path, "dragond", "exit 3");
    assert_check(&folder, "$DOCTOR", "dragond", "fail", "3");

    script(path, "python", "echo 9.9.9");
    assert_check(
        &folder,
        "DRAGON_PYTHON=$FOLDER/python $DOCTOR",
        "Python package",
        "fail",
        "9.9.9",
    );
    script(path, "python", "echo no such module >&2; exit 1");
    let shell = "DRAGON_PYTHON=$FOLDER/python $DOCTOR";
    assert_check(&folder, shell, "Python package", "warn", "no such module");
    assert_check(
        &folder,
        "DRAGON_PYTHON=/no/python $DOCTOR",
        "Python package",
        "warn",
        "/no/python",
    );

    assert_check(
        &folder,
        "DRAGON_METRICS=nonsense $DOCTOR",
        "settings",
        "fail",
        "nonsense",
    );
    assert_check(
        &folder,
        "DRAGON_TIME_LIMIT=1h $DOCTOR",
        "settings",
        "ok",
        "time_limit",
    );
}

#[test]
fn a_slurm_without_its_plugin_is_found() {
    let folder = installed();
    let path = folder.path();
    let name = "workload manager";
    let alone = "PATH=/nowhere SLURM_JOB_ID=1 $DOCTOR";
    assert_check(&folder, alone, name, "fail", "srun cannot be run");
    script(path, "srun", "echo slurm 99.9");
    script(path, "scontrol", "exit 1");
    script(path, "broken/srun", "echo no configuration >&2; exit 1");
    let broken = "PATH=$FOLDER/broken:$PATH $DOCTOR";
    assert_check(&folder, broken, name, "warn", "no configuration");
    let shell = "PATH=$FOLDER:$PATH SLURM_CONF=$FOLDER/slurm.conf $DOCTOR";
    let plugstack = path.join("plugstack.conf");
    let line = |plugin: &Path, dragond: &Path| {
        let text = format!(
            "optional {} dragond={}\n",
            plugin.display(),
            dragond.display()
        );
        fs::write(&plugstack, text).unwrap();
    };
    fs::write(&plugstack, "# nothing\n").unwrap();
    assert_check(
        &folder,
        shell,
        name,
        "warn",
        "does not name libdragon_spank.so",
    );
    let plugin = path.join("libdragon_spank.so");
    line(&plugin, &path.join("dragond"));
    assert_check(&folder, shell, name, "fail", "there is no");
    fs::write(&plugin, "").unwrap();
    assert_check(&folder, shell, name, "ok", "slurm 99.9");
    line(&plugin, &path.join("no-dragond"));
    assert_check(&folder, shell, name, "fail", "no-dragond");
    script(path, "other", "echo dragond 9.9.9");
    line(&plugin, &path.join("other"));
    assert_check(&folder, shell, name, "warn", "9.9.9");
}

#[test]
fn states_of_the_machine_are_found() {
    if let Err(why) = nodes_possible() {
        println!("SKIPPED states of the machine: {why}");
        return;
    }
    let folder = installed();
    let path = folder.path();
    let copied = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap();
    fs::create_dir_all(path.join("kernel/yama")).unwrap();
    for name in ["pid_max", "threads-max"] {
        fs::write(path.join("kernel").join(name), copied(name)).unwrap();
    }
    fs::write(path.join("kernel/osrelease"), "4.18.0-553.el8.x86_64\n").unwrap();
    fs::write(path.join("kernel/yama/ptrace_scope"), "3\n").unwrap();
    let shell = "unshare -m sh -c 'mount --bind $FOLDER/kernel /proc/sys/kernel && exec $DOCTOR'";
    assert_check(&folder, shell, "kernel", "fail", "4.18.0-553");
    assert_check(&folder, shell, "debugging", "warn", "ptrace_scope is 3");
    fs::write(path.join("kernel/pid_max"), "40\n").unwrap();
    assert_check(&folder, shell, "processes", "fail", "kernel.pid_max");

    let huge = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    if Path::new(huge).exists() {
        let shell = format!("unshare -m sh -c 'mount --bind $FOLDER/huge {huge} && exec $DOCTOR'");
        fs::write(
            path.join("huge"),
            "always within_size advise [never] deny force\n",
        )
        .unwrap();
        assert_check(&folder, &shell, "huge pages", "warn", "never");
        fs::write(
            path.join("huge"),
            "always within_size [advise] never deny force\n",
        )
        .unwrap();
        assert_check(&folder, &shell, "huge pages", "ok", "advise");
    }

    // One tree for both hierarchies.
    for (file, text) in [
        ("group/memory.max", "104857600"),
        ("group/memory.current", "94371840"),
        ("group/memory/memory.limit_in_bytes", "104857600"),
        ("group/memory/memory.usage_in_bytes", "94371840"),
        ("group/pids.max", "1000"),
        ("group/pids/pids.max", "1000"),
    ] {
        fs::create_dir_all(path.join(file).parent().unwrap()).unwrap();
        fs::write(path.join(file), text).unwrap();
    }
    let shell = "unshare -m sh -c 'mount --bind $FOLDER/group /sys/fs/cgroup && exec $DOCTOR'";
    assert_check(
        &folder,
        shell,
        "memory limit",
        "fail",
        "allows 100M, of which 10M are left",
    );
    assert_check(
        &folder,
        shell,
        "processes",
        "warn",
        "1000, the limit of this control group",
    );

    fs::create_dir_all(path.join("class/infiniband/mlx5_7")).unwrap();
    let shell = "unshare -m sh -c 'mount --bind $FOLDER/class /sys/class && exec prlimit --memlock=65536 $DOCTOR'";
    assert_check(&folder, shell, "locked memory", "warn", "mlx5_7");
    assert_check(&folder, shell, "libfabric", "warn", "mlx5_7");

    let shell = "unshare -m sh -c 'mount -t tmpfs none /proc && exec $DOCTOR'";
    assert_check(&folder, shell, "process table", "fail", "mount -t proc");
    assert_check(&folder, shell, "attach socket", "warn", "/proc/net/unix");
}

#[test]
fn namespaces_are_found() {
    if let Err(why) = nodes_possible() {
        println!("SKIPPED namespaces: {why}");
        return;
    }
    let folder = installed();
    let shell = "unshare --pid --fork --kill-child $DOCTOR";
    assert_check(
        &folder,
        shell,
        "process table",
        "fail",
        "another PID namespace",
    );
    assert_check(
        &folder,
        "unshare -n $DOCTOR",
        "interfaces",
        "warn",
        "no network interface",
    );
    let shell = "unshare -n $DOCTOR --interface eth77";
    assert_check(&folder, shell, "interfaces", "fail", "eth77");
    let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let shell = format!(
        "unshare -n sh -c 'echo 32100 > /proc/sys/net/ipv4/ip_unprivileged_port_start && exec {nobody} $DOCTOR'"
    );
    assert_check(&folder, &shell, "ports", "fail", "0 of 32");
    let shell = format!("{nobody} prlimit --nproc=48:48 $DOCTOR");
    assert_check(&folder, &shell, "processes", "fail", "ulimit -u");
}
