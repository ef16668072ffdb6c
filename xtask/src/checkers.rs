//! `cargo xtask fuzz`, `sanitize` and `miri`, the checkers that need a nightly toolchain, and `simulate`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::repo::{self, Repo};

/// What the compiler is told so that libFuzzer sees which branches an input takes, and AddressSanitizer each access.
const FUZZED: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Zsanitizer=address";

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

#[derive(Debug, clap::Args)]
pub(crate) struct Fuzz {
    /// Which target (all of them, one after the other, when none is named)
    target: Option<String>,
    /// How long each
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// The simulation of the tests, with more seeds and optimised.
pub(crate) fn simulate(repo: &Repo, seeds: u64, first: u64) -> Result<()> {
    repo::run(
        repo.cargo()
            .args(["test", "--release", "-p", "dragon-daemon", "--lib", "--"])
            .args(["the_rules_hold_whatever_the_network_does", "--nocapture"])
            .env("DRAGON_SIMULATION_SEEDS", seeds.to_string())
            .env("DRAGON_SIMULATION_FIRST", first.to_string()),
    )
}

pub(crate) fn fuzz(repo: &Repo, args: &Fuzz) -> Result<()> {
    nightly()?;
    let folder = repo.target("fuzz");
    repo::run(
        plus_nightly(repo)
            .args(["build", "--release", "--target", TRIPLE])
            .arg("--manifest-path")
            .arg(repo.path("fuzz/driver/Cargo.toml"))
            .arg("--target-dir")
            .arg(&folder)
            .env("RUSTFLAGS", FUZZED),
    )?;
    let program = folder.join(TRIPLE).join("release/dragon-fuzz-driver");
    let all = targets(repo)?;
    let chosen = match &args.target {
        Some(name) if all.contains(name) => vec![name.clone()],
        Some(name) => bail!("there is no target {name}; there are {}", all.join(", ")),
        None => all,
    };
    for target in chosen {
        // What the fuzzer finds is kept apart from what is committed.
        let found = repo.target(PathBuf::from("fuzz/corpus").join(&target));
        std::fs::create_dir_all(&found)?;
        println!("fuzz {target}, {} s", args.seconds);
        let mut command = Command::new(&program);
        command
            .arg(&found)
            .arg(repo.path("fuzz/corpus").join(&target))
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!("-artifact_prefix={}/", folder.display()))
            .arg(format!("-max_len={}", longest(&target)))
            .args(["-timeout=20", "-rss_limit_mb=4096", "-print_final_stats=1"])
            .env("DRAGON_FUZZ_TARGET", &target)
            .env("ASAN_OPTIONS", "detect_leaks=0");
        repo::run(&mut command)?;
    }
    println!("no target failed");
    Ok(())
}

/// Bytes of an input: enough for what a target distinguishes, and not so many that it is slow.
fn longest(target: &str) -> usize {
    match target {
        // Large payloads are those of more than 4096 bytes.
        "frames" => 16 << 10,
        "peer" => 2048,
        _ => 512,
    }
}

/// The targets are the folders of the corpus.
fn targets(repo: &Repo) -> Result<Vec<String>> {
    let folders = std::fs::read_dir(repo.path("fuzz/corpus"))?;
    let mut names: Vec<String> = folders
        .filter_map(|folder| folder.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Unit tests under AddressSanitizer. The standard library has none of its checks, which would take a build of it; all
/// code of this project has them.
pub(crate) fn sanitize(repo: &Repo) -> Result<()> {
    nightly()?;
    repo::run(
        plus_nightly(repo)
            .args(["test", "--lib", "--target", TRIPLE])
            .args([
                "-p",
                "dragon-protocol",
                "-p",
                "dragon-shmem",
                "-p",
                "dragon-channels",
            ])
            .arg("--target-dir")
            .arg(repo.target("sanitize"))
            .env("RUSTFLAGS", "-Zsanitizer=address")
            .env("ASAN_OPTIONS", "detect_leaks=0"),
    )
}

/// Tests under Miri, where every region is heap memory of the one process.
pub(crate) fn miri(repo: &Repo) -> Result<()> {
    nightly()?;
    // Its own copy of the standard library is made of the source.
    let sysroot = repo::read(Command::new("rustc").args([PLUS_NIGHTLY, "--print", "sysroot"]))?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    if !source.exists() || !succeeds(plus_nightly(repo).args(["miri", "--version"])) {
        install(
            &["component", "add", "--toolchain", NIGHTLY],
            &["miri", "rust-src"],
            "Not every nightly has Miri; one that has it: rustup toolchain install nightly --component miri,rust-src. \
             cargo xtask sanitize runs the same tests under AddressSanitizer",
        )?;
    }
    // Files and clocks are the host's; the tests of regions that map files say themselves that they cannot run.
    let flags = "-Zmiri-permissive-provenance -Zmiri-disable-isolation";
    for words in UNDER_MIRI {
        repo::run(
            plus_nightly(repo)
                .args(["miri", "test"])
                .args(*words)
                .env("MIRIFLAGS", flags)
                .env("PROPTEST_CASES", "4"),
        )?;
    }
    Ok(())
}

/// What runs under Miri: the rest needs other processes, or is too long for an interpreter.
const UNDER_MIRI: &[&[&str]] = &[
    &[
        "-p",
        "dragon-protocol",
        "--test",
        "protocol",
        "--",
        "descriptor::",
        "handshake::",
        "layout::",
    ],
    &[
        "-p",
        "dragon-shmem",
        "--lib",
        "--",
        "region::",
        "thread::",
        "member::keep::",
    ],
    &[
        "-p",
        "dragon-channels",
        "--lib",
        "--",
        "cell::",
        "message::",
        "tests::channels::receipts",
    ],
];

const NIGHTLY: &str = "nightly";
const PLUS_NIGHTLY: &str = "+nightly";

/// Installs the nightly toolchain when there is none.
fn nightly() -> Result<()> {
    if succeeds(Command::new("cargo").args([PLUS_NIGHTLY, "--version"])) {
        return Ok(());
    }
    install(
        &["toolchain", "install", "--profile", "minimal"],
        &[NIGHTLY],
        "A toolchain that was brought here otherwise is found when it is linked: rustup toolchain link nightly FOLDER",
    )
}

/// Has rustup install something; when it cannot, the error says what to type where it can.
fn install(words: &[&str], what: &[&str], otherwise: &str) -> Result<()> {
    let mut command = Command::new("rustup");
    command.args(words).args(what);
    eprintln!("installing {}: {}", what.join(", "), repo::shown(&command));
    repo::run(&mut command).with_context(|| {
        format!(
            "{} could not be installed; where rustup and its server can be reached, type: {}. {otherwise}",
            what.join(" and "),
            repo::shown(&command),
        )
    })
}

fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Cargo of the nightly toolchain: by its name, so that rustup chooses.
fn plus_nightly(repo: &Repo) -> Command {
    let mut command = Command::new("cargo");
    command.arg(PLUS_NIGHTLY).current_dir(repo.path(""));
    // What the toolchain that built this program left behind would be taken for nightly's.
    for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUSTFLAGS"] {
        command.env_remove(name);
    }
    command
}
