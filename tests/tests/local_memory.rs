//! A runtime in a memory control group: what does not fit is an error that names the group, and nobody is killed.
//!
//! The test runs itself again as the program inside the runtime (`child`), and as one that competes for the memory.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use dragon::{Channel, ChannelOptions, Code, Deadline, Pool, PoolOptions, Session};
use dragon_tests::child::ALONE;
use dragon_tests::local::{Finished, binary, finish};

const ROLE: &str = "DRAGON_TEST_MEMORY";
const LIMIT: u64 = 200 << 20;
const MUCH: u64 = 1 << 30;

/// A memory control group of the test's own; gone with it.
struct Group {
    path: PathBuf,
    /// The file that counts kills, and the word before the number.
    kills: &'static str,
}

impl Group {
    /// One in each hierarchy in which the machine has the memory controller; says why it makes none in the other.
    fn all(name: &str) -> Vec<Self> {
        let made = [
            ("first", Self::first(name)),
            ("unified", Self::unified(name)),
        ];
        let made = made.into_iter().filter_map(|(hierarchy, made)| match made {
            Ok(group) => Some(group),
            Err(why) => {
                println!("SKIPPED {name} in the {hierarchy} hierarchy: {why}");
                None
            }
        });
        made.collect()
    }

    fn first(name: &str) -> Result<Self, String> {
        let root = Path::new("/sys/fs/cgroup/memory");
        let own = own_group("memory").ok_or("there is no memory controller in it")?;
        let parent = root.join(own.trim_start_matches('/'));
        Self::make(&parent, name, "memory.limit_in_bytes", "memory.oom_control")
    }

    fn unified(name: &str) -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mount = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let place = words.next()?;
            (words.next()? == "cgroup2").then(|| PathBuf::from(place))
        });
        let root = mount.ok_or("it is not mounted")?;
        let offered = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        if !offered.split_whitespace().any(|name| name == "memory") {
            return Err(format!(
                "{} offers only '{}'",
                root.display(),
                offered.trim()
            ));
        }
        fs::write(root.join("cgroup.subtree_control"), "+memory")
            .map_err(|error| format!("{}: {error}", root.display()))?;
        Self::make(&root, name, "memory.max", "memory.events")
    }

    fn make(parent: &Path, name: &str, limit: &str, kills: &'static str) -> Result<Self, String> {
        let path = parent.join(format!("dragon-test-{}-{name}", std::process::id()));
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        fs::create_dir(&path).map_err(failed)?;
        let group = Self {
            path: path.clone(),
            kills,
        };
        fs::write(path.join(limit), LIMIT.to_string()).map_err(failed)?;
        Ok(group)
    }

    /// A command that enters the group before it becomes what it is.
    fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                "echo $$ > \"$1\" && shift && exec \"$@\"",
                "sh",
                self.path.join("cgroup.procs").to_str().unwrap(),
                program.to_str().unwrap(),
            ])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs this test as a program in a runtime in the group.
    fn run(&self, role: &str, arguments: &[&str]) -> Finished {
        let test = std::env::current_exe().unwrap();
        let words = [arguments, &[test.to_str().unwrap()], &ALONE].concat();
        let mut command = self.command(&binary("dragon"), &words);
        finish(command.env(ROLE, role).spawn().unwrap())
    }

    fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.path.join(self.kills)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|number| number.trim().parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            println!("{} is left: {error}", self.path.display());
        }
    }
}

fn own_group(controller: &str) -> Option<String> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let is_it = controllers.split(',').any(|name| name == controller);
        is_it.then(|| fields.next().map(str::to_owned)).flatten()
    })
}

/// What a program in the runtime says about a refusal: the code, then the sentence.
fn refusal(finished: &Finished) -> &str {
    let line = finished
        .out
        .lines()
        .find(|line| line.starts_with("refused "));
    line.unwrap_or_else(|| panic!("{finished:?}"))
}

fn names_the_group(group: &Group, said: &str) {
    let limit = LIMIT.to_string();
    let name = group.path.file_name().unwrap().to_str().unwrap();
    for word in [name, &limit] {
        assert!(said.contains(word), "no '{word}' in: {said}");
    }
}

/// Ten runs of ten end with an error that names the group, its limit, what is used and what was asked.
#[test]
fn a_gigabyte_in_a_small_group_is_an_error() {
    for group in Group::all("much") {
        for run in 0..10 {
            let own = group.run("own", &[]);
            let said = refusal(&own);
            names_the_group(&group, said);
            assert!(said.starts_with("refused OutOfCgroupMemory"), "{said}");
            for word in [MUCH.to_string().as_str(), "'large'", "used"] {
                assert!(said.contains(word), "no '{word}' in: {said}");
            }
            assert_eq!(own.code, Some(0), "run {run}: {own:?}");
        }
        assert_eq!(group.kills(), 0);
    }
}

/// The default pool: by its own limit, which says where it comes from, or by the group's when it is larger than that.
#[test]
fn the_default_pool_names_the_group_too() {
    for group in Group::all("default") {
        let small = group.run("send", &[]);
        let said = refusal(&small);
        names_the_group(&group, said);
        assert!(said.starts_with("refused OutOfMemory"), "{said}");
        let large = group.run("send", &["--pool", "2G"]);
        let said = refusal(&large);
        names_the_group(&group, said);
        assert!(said.starts_with("refused OutOfCgroupMemory"), "{said}");
        assert_eq!((small.code, large.code), (Some(0), Some(0)));
        assert_eq!(group.kills(), 0);
    }
}

/// Bit by bit up to the limit, in several pools, and again after everything was freed.
#[test]
fn a_group_can_be_filled_to_its_limit_and_emptied() {
    for group in Group::all("fill") {
        let filled = group.run("fill", &[]);
        assert_eq!(filled.code, Some(0), "{filled:?}");
        names_the_group(&group, refusal(&filled));
        println!("{}", filled.out.trim());
        assert_eq!(group.kills(), 0, "{filled:?}");
    }
}

/// Somebody else in the group takes and gives memory meanwhile. The kernel may have to kill then; it never kills the
/// daemon. How often is printed.
#[test]
fn somebody_else_in_the_group_may_cost_a_kill_but_not_the_daemon() {
    for group in Group::all("eater") {
        let test = std::env::current_exe().unwrap();
        for role in ["own", "fill to the limit"] {
            let (mut errors, mut killed, mut lost) = (0, 0, 0);
            for _ in 0..10 {
                let before = group.kills();
                let mut eater = group.command(&test, &ALONE);
                let eater = eater.env(ROLE, "eat").spawn().unwrap();
                let done = group.run(role, &[]);
                stop(eater);
                killed += u32::from(group.kills() > before);
                errors += u32::from(done.code == Some(0) && done.out.contains("refused "));
                lost += u32::from(done.err.contains("dragond") || done.err.contains("daemon"));
            }
            println!(
                "with a competing eater, role '{role}', of 10 runs: {errors} ended with the error, {killed} cost somebody's life, {lost} the daemon's"
            );
            assert_eq!(lost, 0);
        }
    }
}

fn stop(mut child: Child) {
    let _ = child.kill();
    child.wait().unwrap();
}

/// The program in the runtime; nothing when the test runs in the ordinary way.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    match role.as_str() {
        "own" => {
            let pool = Pool::create(&PoolOptions {
                limit: 2 * MUCH,
                name: "large".to_owned(),
                ..PoolOptions::default()
            });
            refused(pool.unwrap().alloc(MUCH).unwrap_err());
        }
        "send" => {
            let channel = Channel::create(&ChannelOptions::default()).unwrap();
            let zeros = vec![0; usize::try_from(MUCH).unwrap()];
            refused(channel.send(&zeros, 0, Deadline::Now).unwrap_err());
        }
        "fill" => fill(),
        "fill to the limit" => {
            let options = PoolOptions {
                limit: 2 * MUCH,
                ..PoolOptions::default()
            };
            let pool = Pool::create(&options).unwrap();
            let mut blocks = Vec::new();
            let error = loop {
                match pool.alloc(1 << 20) {
                    Ok(block) => blocks.push(block),
                    Err(error) => break error,
                }
            };
            refused(error);
        }
        "eat" => eat(),
        other => panic!("{other}"),
    }
}

fn refused(error: dragon::Error) {
    println!("\nrefused {:?}: {error}", error.code());
}

fn fill() {
    let options = PoolOptions {
        limit: 2 * MUCH,
        name: "large".to_owned(),
        ..PoolOptions::default()
    };
    let pools = [(); 3].map(|()| Pool::create(&options).unwrap());
    let mut most = 0;
    for round in 0..3 {
        let mut blocks = Vec::new();
        let error = loop {
            match pools[blocks.len() % 3].alloc(1 << 20) {
                Ok(mut block) => {
                    block.write(0, &[7; 1 << 20]).unwrap();
                    blocks.push(block);
                }
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), Code::OutOfCgroupMemory, "{error}");
        println!("\nround {round}: {} MiB", blocks.len());
        assert!(
            blocks.len() > most / 2,
            "what was freed can be had again: {} after {most}",
            blocks.len()
        );
        most = most.max(blocks.len());
        if round == 2 {
            refused(error);
        }
    }
    // One pool's memory goes to another when it is needed there: nothing has to be given back by hand.
    let large = pools[0].alloc((most as u64 * 3 / 4) << 20);
    let large = large.unwrap();
    drop(large);
    println!(
        "\n{} bytes came back",
        Session::attach().unwrap().trim_pools().unwrap()
    );
    let committed: u64 = pools
        .iter()
        .map(|pool| pool.stats().unwrap().committed)
        .sum();
    // A process keeps some of what it freed for its next blocks.
    assert!(committed <= 40 << 20, "{committed} are still committed");
}

/// Takes up to 100 MB, bit by bit, gives it back, and again.
fn eat() {
    loop {
        let mut taken = Vec::new();
        for _ in 0..100 {
            taken.push(vec![1_u8; 1 << 20]);
        }
        std::hint::black_box(&taken);
    }
}
