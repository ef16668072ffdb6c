//! The plugin alone, on a real Slurm, with a script in the place of `dragond` that says what Slurm made of it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use dragon_tests::local::{Finished, binary, eventually_empty, finish, repository, run};
use dragon_tests::suite;

/// Says, in one line each: host, own path, the step's variables, arguments.
const STAND_IN: &str = "#!/bin/sh\n\
    [ \"$1\" = --check ] && { [ \"$2\" != bad=1 ] || { echo refused >&2; exit 2; }; exit 0; }\n\
    echo \"host=$(hostname) me=$0 key=$SLURM_DRAGON_STEP_KEY program=$SLURM_DRAGON_STEP_PROGRAM \
    mode=$SLURM_DRAGON_STEP_MODE settings=$SLURM_DRAGON_STEP_SETTINGS bad_exit=$SLURM_DRAGON_STEP_BAD_EXIT count=$# last=${2-}\"\n";

fn main() -> ExitCode {
    suite::run(
        Rig::up,
        &[
            (
                "dragond_takes_the_place_of_every_task",
                dragond_takes_the_place_of_every_task,
            ),
            (
                "every_step_has_a_key_of_its_own",
                every_step_has_a_key_of_its_own,
            ),
            (
                "an_argument_can_be_left_out_in_every_way",
                an_argument_can_be_left_out_in_every_way,
            ),
            (
                "the_variables_pass_any_export_list",
                the_variables_pass_any_export_list,
            ),
            (
                "a_broadcast_program_is_named_where_it_lies",
                a_broadcast_program_is_named_where_it_lies,
            ),
            (
                "inside_a_runtime_only_a_typed_option_counts",
                inside_a_runtime_only_a_typed_option_counts,
            ),
            (
                "dragond_takes_the_place_of_a_batch_script",
                dragond_takes_the_place_of_a_batch_script,
            ),
            (
                "a_script_that_cannot_have_its_runtime_does_not_run",
                a_script_that_cannot_have_its_runtime_does_not_run,
            ),
            (
                "mode_and_settings_are_taken_apart",
                mode_and_settings_are_taken_apart,
            ),
            (
                "a_wish_for_the_end_at_a_bad_exit_is_handed_on",
                a_wish_for_the_end_at_a_bad_exit_is_handed_on,
            ),
            (
                "settings_are_looked_at_before_the_step",
                settings_are_looked_at_before_the_step,
            ),
            ("off_leaves_everything_alone", off_leaves_everything_alone),
            (
                "refusals_end_srun_although_the_plugin_is_optional",
                refusals_end_srun_although_the_plugin_is_optional,
            ),
            ("plugstack_words_are_checked", plugstack_words_are_checked),
            ("dragond_has_a_usual_place", dragond_has_a_usual_place),
            ("slurmd_has_nothing_to_say", slurmd_has_nothing_to_say),
            ("symbols_are_bound_when_used", symbols_are_bound_when_used),
            ("srun_is_clean_under_valgrind", srun_is_clean_under_valgrind),
        ],
    )
}

/// A Slurm of three nodes whose plugin names the stand-in.
struct Rig {
    folder: PathBuf,
}

impl suite::Shared for Rig {}

impl Rig {
    fn up() -> Result<Self, String> {
        dragon_tests::cluster::slurm_possible()?;
        let rig = Self {
            folder: PathBuf::from(format!("/var/tmp/dragon-plugin-{}", std::process::id())),
        };
        let site = rig.folder.join("site");
        fs::create_dir_all(&site).unwrap();
        fs::copy(binary("libdragon_spank.so"), rig.plugin()).unwrap();
        fs::write(rig.stand_in(), STAND_IN).unwrap();
        fs::set_permissions(rig.stand_in(), fs::Permissions::from_mode(0o755)).unwrap();
        let up = run(rig
            .command()
            .env("RIG_PLUGSTACK", rig.plugstack(""))
            .args(["up", "3"]));
        assert_eq!(up.code, Some(0), "the cluster did not come up: {}", up.err);
        Ok(rig)
    }

    fn plugin(&self) -> PathBuf {
        self.folder.join("site/libdragon_spank.so")
    }

    fn stand_in(&self) -> PathBuf {
        self.folder.join("site/dragond")
    }

    fn plugstack(&self, more: &str) -> String {
        format!(
            "optional {} dragond={} {more}\n",
            self.plugin().display(),
            self.stand_in().display()
        )
    }

    fn command(&self) -> Command {
        let mut command = Command::new(repository().join("tests/rig/cluster"));
        command
            .env("RIG_RUN", &self.folder)
            .env("RIG_OWNER", std::process::id().to_string())
            .env("RIG_SLURM", "1");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command on the login node, as an ordinary user.
    fn login(&self, words: &[&str]) -> Finished {
        run(self.command().args(["exec", "ctl"]).args(words))
    }

    /// The lines of a step that Slurm gave to the stand-in, sorted.
    fn lines(&self, words: &[&str]) -> Vec<String> {
        let done = self.login(words);
        assert_eq!(
            (done.code, done.err.as_str()),
            (Some(0), ""),
            "{words:?}: {done:?}"
        );
        let mut lines: Vec<_> = done.out.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }

    /// The key of a step in which every task got the same one.
    fn key(&self, words: &[&str]) -> String {
        let lines = self.lines(words);
        let keys: Vec<_> = lines.iter().map(|line| field(line, "key")).collect();
        assert!(keys.windows(2).all(|pair| pair[0] == pair[1]), "{lines:?}");
        assert!(
            keys[0].len() == 64
                && keys[0]
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
            "{lines:?}"
        );
        keys[0].to_owned()
    }

    /// Runs `srun --dragon true` while plugstack.conf says something else.
    fn with_plugstack(&self, text: &str) -> Finished {
        let _other = Plugstack::says(self, text);
        self.login(&["srun", "--dragon", "true"])
    }
}

/// Another plugstack.conf, until the value is dropped. Whatever loads plugins reads it anew each time.
struct Plugstack {
    file: PathBuf,
    before: String,
}

impl Plugstack {
    fn says(rig: &Rig, text: &str) -> Self {
        let file = rig.folder.join("etc/plugstack.conf");
        let before = fs::read_to_string(&file).unwrap();
        fs::write(&file, text).unwrap();
        Self { file, before }
    }
}

impl Drop for Plugstack {
    fn drop(&mut self) {
        fs::write(&self.file, &self.before).unwrap();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let down = run(self.command().arg("down"));
        if down.code != Some(0) {
            eprintln!(
                "the cluster in {} did not go down: {}",
                self.folder.display(),
                down.err
            );
        } else if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// A field of a line of the stand-in's.
fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let found = line
        .split(' ')
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("no {name} in {line:?}"))
}

fn dragond_takes_the_place_of_every_task(rig: &Rig) {
    let lines = rig.lines(&[
        "srun",
        "-N3",
        "-n6",
        "--dragon",
        "prog.py",
        "one argument",
        "two",
    ]);
    let me = rig.stand_in().display().to_string();
    let hosts: Vec<_> = lines.iter().map(|line| field(line, "host")).collect();
    assert_eq!(hosts.len(), 6);
    assert!(
        ["n1", "n2", "n3"].iter().all(|node| hosts.contains(node)),
        "{hosts:?}"
    );
    for line in &lines {
        assert_eq!(field(line, "me"), me);
        assert_eq!(
            (field(line, "program"), field(line, "mode")),
            ("prog.py", "head")
        );
        assert_eq!((field(line, "count"), field(line, "last")), ("2", "two"));
    }
}

fn every_step_has_a_key_of_its_own(rig: &Rig) {
    let step = ["srun", "-N2", "--dragon", "prog"];
    assert_ne!(rig.key(&step), rig.key(&step));
}

fn an_argument_can_be_left_out_in_every_way(rig: &Rig) {
    for option in ["--dragon", "--dragon=", "--dragon=(null)", "--dragon=head"] {
        rig.key(&["srun", option, "prog"]);
    }
    // As Slurm hands the option on to the steps of a job.
    rig.key(&[
        "env",
        "SLURM_SPANK__SLURM_SPANK_OPTION_dragon_dragon=(null)",
        "srun",
        "prog",
    ]);
}

fn the_variables_pass_any_export_list(rig: &Rig) {
    for list in ["NONE", "OTHER=1", "ALL", "ALL,OTHER=1"] {
        rig.key(&[
            "srun",
            "-N2",
            &format!("--export={list}"),
            "--dragon",
            "prog",
        ]);
        // As a batch script of a job submitted with --export leaves it to its steps.
        rig.key(&[
            "env",
            &format!("SLURM_EXPORT_ENV={list}"),
            "srun",
            "--dragon",
            "prog",
        ]);
    }
}

fn a_broadcast_program_is_named_where_it_lies(rig: &Rig) {
    let done = rig.login(&["srun", "-N2", "--bcast=/tmp/copy", "--dragon", "/bin/echo"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(
        done.out
            .lines()
            .all(|line| field(line, "program") == "/tmp/copy"),
        "{done:?}"
    );
}

/// The option that a job hands on to its steps is no wish for a head; one that somebody types is.
fn inside_a_runtime_only_a_typed_option_counts(rig: &Rig) {
    let in_job = "DRAGON_RUNTIME=dragon/1/$SLURM_JOB_ID.0/0/0 exec \"$0\" \"$@\"";
    let runtime = ["salloc", "-Q", "-N2", "sh", "-c", in_job, "env"];
    let handed_on = "SLURM_SPANK__SLURM_SPANK_OPTION_dragon_dragon=(null)";
    let shows = ["sh", "-c", "echo ${0##*/} $(env | grep -c DRAGON_STEP)"];
    let words = [&runtime[..], &[handed_on, "srun", "-N2"], &shows].concat();
    assert_eq!(rig.lines(&words), ["sh 0", "sh 0"]);
    for option in ["--dragon", "--dragon=head"] {
        let words = [&runtime[..], &["srun", "-N2", option, "prog"]].concat();
        let lines = rig.lines(&words);
        let inside =
            |line: &String| field(line, "mode") == "inside" && field(line, "program") == "prog";
        assert!(lines.len() == 2 && lines.iter().all(inside), "{lines:?}");
    }
    // The environment of a job that has submitted this one.
    let other = ["env", "DRAGON_RUNTIME=dragon/1/1.0/0/0"];
    let lines = rig.lines(&[&other[..], &["srun", "-N2", "--dragon", "prog"]].concat());
    assert!(
        lines.iter().all(|line| field(line, "mode") == "head"),
        "{lines:?}"
    );
    for (option, text) in [
        ("--dragon=spmd", "leave the option out"),
        ("--dragon=head,pool=8G", "leave the settings out"),
    ] {
        let done = rig.login(&[&runtime[..], &["srun", "-N2", option, "prog"]].concat());
        assert_ne!(done.code, Some(0), "{option}: {done:?}");
        assert!(done.err.contains(text), "{option}: {done:?}");
    }
}

fn dragond_takes_the_place_of_a_batch_script(rig: &Rig) {
    let out = rig.folder.join("home/alice/out");
    let shows = "#!/bin/sh\necho ${0##*/} $(env | grep -c DRAGON_STEP)\n";
    fs::write(rig.folder.join("home/alice/script"), shows).unwrap();
    let submit = |option| {
        let words = [
            "sbatch", "--wait", "-N2", "-o", "out", option, "script", "a b", "two",
        ];
        let done = rig.login(&words);
        assert_eq!(done.code, Some(0), "{done:?}");
        fs::read_to_string(&out).unwrap()
    };
    let said = submit("--dragon");
    let mode = (
        field(&said, "mode"),
        field(&said, "key"),
        field(&said, "count"),
    );
    assert_eq!(mode, ("allocation", "", "2"), "{said}");
    assert!(field(&said, "program").ends_with("/slurm_script"), "{said}");
    assert_eq!(field(&said, "last"), "two\n");
    assert_eq!(submit("--dragon=off"), "slurm_script 0\n");
    assert_eq!(submit("--quiet"), "slurm_script 0\n");
}

/// What the host of sbatch could not see: a line of the batch node's, for a plugin that is optional.
fn a_script_that_cannot_have_its_runtime_does_not_run(rig: &Rig) {
    let home = rig.folder.join("home/alice");
    fs::write(home.join("script"), "#!/bin/sh\necho ran\n").unwrap();
    for (option, code, text) in [
        (
            "--dragon",
            125,
            "dragon: plugstack.conf: dragnod=/x: the plugin takes only dragond=",
        ),
        ("--dragon=off", 0, "ran"),
    ] {
        let words = [
            "sbatch", "--hold", "--wait", "-Q", "-N2", "-o", "out", option, "script",
        ];
        let mut command = rig.command();
        let sbatch = command.args(["exec", "ctl"]).args(words).spawn().unwrap();
        let held = || {
            let held = rig.login(&["squeue", "-h", "-t", "PD", "-o", "%A %r"]).out;
            let id = held.strip_suffix(" JobHeldUser\n");
            id.map(str::to_owned)
        };
        eventually_empty("the queue", || match held() {
            Some(_) => String::new(),
            None => "no job is held".to_owned(),
        });
        let _other = Plugstack::says(rig, &rig.plugstack("dragnod=/x"));
        let released = rig.login(&["scontrol", "release", &held().unwrap()]);
        assert_eq!(released.code, Some(0), "{released:?}");
        let done = finish(sbatch);
        let said = fs::read_to_string(home.join("out")).unwrap();
        assert_eq!(done.code, Some(code), "{option}: {done:?} {said}");
        assert_eq!(said.matches(text).count(), 1, "{option}: {said}");
        assert!(option == "--dragon=off" || !said.contains("ran"), "{said}");
    }
}

fn mode_and_settings_are_taken_apart(rig: &Rig) {
    for (option, mode, settings) in [
        ("--dragon=head", "head", ""),
        ("--dragon=spmd", "spmd", ""),
        ("--dragon=spmd,", "spmd", ""),
        ("--dragon=spmd,a=1", "spmd", "a=1"),
        ("--dragon=head,a=1,b=2,3", "head", "a=1,b=2,3"),
        ("--dragon=a=1,b=2", "head", "a=1,b=2"),
        ("--dragon=,a=1", "head", "a=1"),
    ] {
        for line in rig.lines(&["srun", "-N2", option, "prog"]) {
            let seen = (field(&line, "mode"), field(&line, "settings"));
            assert_eq!(seen, (mode, settings), "{option}");
        }
    }
}

/// What srun was told, and not what the program is.
fn a_wish_for_the_end_at_a_bad_exit_is_handed_on(rig: &Rig) {
    for (options, handed) in [
        (&["-N1"][..], ""),
        (&["-K"], "1"),
        (&["-K0"], "0"),
        (&["-K1"], "1"),
        (&["-lK"], "1"),
        (&["--kill-on-bad-exit"], "1"),
        (&["--kill-on-bad-exit=0"], "0"),
        (&["--kill-on"], "1"),
        (&["-K", "-K0"], "0"),
        (&["-JK"], ""),
    ] {
        let words = [
            &["srun", "--dragon"],
            options,
            &["prog", "-K", "--kill-on-bad-exit"],
        ]
        .concat();
        let line = &rig.lines(&words)[0];
        assert_eq!(field(line, "bad_exit"), handed, "{options:?}");
    }
}

/// As the user, and where `dragond` cannot be asked or says nothing about them, by the nodes.
fn settings_are_looked_at_before_the_step(rig: &Rig) {
    let done = rig.login(&["srun", "--dragon=head,bad=1", "prog"]);
    assert_eq!((done.code, done.out.as_str()), (Some(255), ""), "{done:?}");
    assert_eq!(done.err.matches("refused\n").count(), 1, "{done:?}");
    assert_eq!(rig.login(&["squeue", "-h"]).out, "");
    let other = format!("optional {} dragond=/no/such\n", rig.plugin().display());
    let _other = Plugstack::says(rig, &other);
    let done = rig.login(&["srun", "--dragon=head,bad=1", "prog"]);
    assert!(done.err.contains("/no/such"), "{done:?}");
}

fn off_leaves_everything_alone(rig: &Rig) {
    let program = ["sh", "-c", "echo ${0##*/} $(env | grep -c DRAGON_STEP)"];
    for option in ["--dragon=off", "--quiet"] {
        assert_eq!(
            rig.lines(&[&["srun", "-N3", option], &program[..]].concat()),
            ["sh 0", "sh 0", "sh 0"]
        );
    }
    // The last one counts, and the command line before what a job handed on.
    assert_eq!(
        rig.lines(&[&["srun", "--dragon", "--dragon=off"], &program[..]].concat()),
        ["sh 0"]
    );
    let inherited = [
        "env",
        "SLURM_SPANK__SLURM_SPANK_OPTION_dragon_dragon=(null)",
        "srun",
        "--dragon=off",
    ];
    assert_eq!(
        rig.lines(&[&inherited[..], &program[..]].concat()),
        ["sh 0"]
    );
    let batch = rig.login(&["salloc", "--dragon=off", "srun", "echo", "ran"]);
    assert_eq!(
        (batch.code, batch.out.as_str()),
        (Some(0), "ran\n"),
        "{batch:?}"
    );
}

fn refusals_end_srun_although_the_plugin_is_optional(rig: &Rig) {
    let long = format!("--dragon={}", "x".repeat(10_000));
    for (words, text) in [
        (
            &["srun", "--dragon=Head", "true"][..],
            "--dragon=Head: unknown mode; use --dragon, --dragon=head, --dragon=spmd or --dragon=off",
        ),
        (
            &["srun", "--dragon=%s%n", "true"],
            "--dragon=%s%n: unknown mode",
        ),
        (&["srun", &long, "true"], "xxx: unknown mode"),
        (
            &["srun", "--dragon=off,pool=8G", "true"],
            "--dragon=off: without a runtime there are no settings",
        ),
        (
            &["sbatch", "--dragon=Head", "--wrap", "true"],
            "--dragon=Head: unknown mode",
        ),
        (
            &["sbatch", "--dragon=spmd", "--wrap", "true"],
            "--dragon=spmd is for srun",
        ),
        (
            &["salloc", "--dragon=Head", "true"],
            "--dragon=Head: unknown mode",
        ),
    ] {
        let done = rig.login(words);
        assert_eq!(
            (done.code, done.out.as_str()),
            (Some(255), ""),
            "{words:?}: {done:?}"
        );
        assert_eq!(done.err.matches(text).count(), 1, "{words:?}: {}", done.err);
    }
    assert_eq!(rig.login(&["squeue", "-h"]).out, "");
}

fn plugstack_words_are_checked(rig: &Rig) {
    for word in ["dragnod=/x", "dragond=relative", "dragond="] {
        let done = rig.with_plugstack(&rig.plugstack(word));
        assert_eq!(done.code, Some(255), "{done:?}");
        assert!(
            done.err.contains(&format!(
                "plugstack.conf: {word}: the plugin takes only dragond="
            )),
            "{}",
            done.err
        );
    }
}

fn dragond_has_a_usual_place(rig: &Rig) {
    let done = rig.with_plugstack(&format!("optional {}\n", rig.plugin().display()));
    assert_eq!(done.code, Some(2), "{done:?}");
    assert!(
        done.err.contains("/usr/libexec/dragon/dragond"),
        "{}",
        done.err
    );
}

fn slurmd_has_nothing_to_say(rig: &Rig) {
    rig.key(&["srun", "-N3", "--dragon", "prog"]);
    for node in 1..=3 {
        let log = fs::read_to_string(rig.folder.join(format!("log/slurmd-n{node}.log"))).unwrap();
        let ours: Vec<_> = log
            .lines()
            .filter(|line| line.contains("--dragon") || line.contains("spank"))
            .collect();
        assert!(ours.is_empty(), "{ours:?}");
    }
}

fn symbols_are_bound_when_used(rig: &Rig) {
    let dynamic = run(Command::new("readelf")
        .args(["-dW"])
        .arg(rig.plugin())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped()));
    assert!(dynamic.out.contains("NEEDED"), "{dynamic:?}");
    assert!(
        !dynamic.out.contains("BIND_NOW") && !dynamic.out.contains("Flags: NOW"),
        "{}",
        dynamic.out
    );
}

/// How many errors valgrind finds in an srun. What is lost in it may be Slurm's, but none of the plugin's.
fn errors(rig: &Rig, words: &[&str]) -> String {
    let valgrind = [
        "valgrind",
        "--leak-check=full",
        "--show-leak-kinds=definite",
        "--errors-for-leak-kinds=none",
        // Slurm has unloaded the plugin at the end.
        "--keep-debuginfo=yes",
        "--child-silent-after-fork=yes",
        "--log-file=valgrind",
        "srun",
        "-N2",
    ];
    let done = rig.login(&[&valgrind[..], words].concat());
    assert_eq!(done.code, Some(0), "{words:?}: {done:?}");
    let log = fs::read_to_string(rig.folder.join("home/alice/valgrind")).unwrap();
    let ours = log.contains("libdragon_spank.so");
    assert!(!ours, "{words:?}: {log}");
    let (_, errors) = log.split_once("ERROR SUMMARY: ").unwrap();
    errors.lines().next().unwrap().to_owned()
}

/// No more errors with the plugin than without, asked for or not.
fn srun_is_clean_under_valgrind(rig: &Rig) {
    if rig.login(&["valgrind", "--version"]).code != Some(0) {
        println!("SKIPPED srun_is_clean_under_valgrind: valgrind is not installed");
        return;
    }
    let file = rig.folder.join("etc/plugstack.conf");
    let before = fs::read_to_string(&file).unwrap();
    fs::write(&file, "").unwrap();
    let plain = errors(rig, &["true"]);
    fs::write(&file, before).unwrap();
    for words in [
        &["true"][..],
        &["--dragon", "true"],
        &["--dragon=spmd,pool=8G", "-K", "true"],
        &["--dragon=off", "true"],
    ] {
        assert_eq!(errors(rig, words), plain, "{words:?}");
    }
}
