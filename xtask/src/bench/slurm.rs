//! Group `slurm`: what the runtime adds to a plain srun and sbatch, and what the plugin costs those who do not ask, on a Slurm
//! whose nodes are all on this machine.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::bench::row::{Goal, Row, row};
use crate::bench::sample::{Measured, Sample, captured, wall_times};
use crate::repo::Repo;
use crate::{build_cmd, setup};

const LIMIT: Duration = Duration::from_secs(60);
/// The script of a job: how long, in ms, it took from the start of its slurmstepd. When that starts is the scheduler's affair.
const FIRST_LINE: &str = r#"#!/bin/sh
read -r now idle </proc/uptime
stepd=$(pgrep -o -f "slurmstepd: .$SLURM_JOB_ID.batch")
awk -v now=$now '{print (now - $22 / 100) * 1000}' /proc/$stepd/stat >$HOME/first
"#;
/// Where the rig keeps its files.
const RUN: &str = "/var/tmp/dragon-rig";

pub(super) fn measure(repo: &Repo, print: &mut impl FnMut(Row)) {
    for (nodes, pairs, goal) in [(3, 50, 40.0), (8, 25, 80.0)] {
        let [with, plain] = match Cluster::up(repo, nodes) {
            Ok(cluster) => {
                let srun = |option: &str| cluster.login(&format!("srun -N{nodes} {option} true"));
                in_turn(pairs, [srun("--dragon"), srun("")])
            }
            Err(why) => [Err(why.clone()), Err(why)],
        };
        let name = format!("{nodes} nodes: srun --dragon − srun");
        let difference = of_pairs(&with, &plain, |with, plain| with - plain);
        print(row(&name, "ms", difference, "-", None, Goal::Value(goal)));
        let (name, peer) = (
            format!("srun -N{nodes} --dragon true"),
            format!("srun -N{nodes} true"),
        );
        print(row(&name, "ms", with, &peer, Some(plain), Goal::None));
    }
    match Cluster::up(repo, 3) {
        Ok(cluster) => {
            cluster.first_lines(print);
            cluster.who_does_not_ask(print);
        }
        Err(why) => print(row(
            "sbatch; jobs that do not ask",
            "",
            Err(why),
            "-",
            None,
            Goal::None,
        )),
    }
}

/// A Slurm on this machine; goes down when dropped.
struct Cluster<'a> {
    repo: &'a Repo,
}

impl<'a> Cluster<'a> {
    fn up(repo: &'a Repo, nodes: u32) -> Result<Self, String> {
        if !setup::is_root() {
            return Err("a Slurm on this machine needs root".to_owned());
        }
        let missing = setup::missing(&setup::DEBIAN_PACKAGES);
        if !missing.is_empty() {
            return Err(format!(
                "not installed; type: {}",
                setup::how_to_install(&missing)
            ));
        }
        if !build_cmd::slurm_release_known() || !repo.release("libdragon_spank.so").exists() {
            return Err("the Slurm plugin is not built".to_owned());
        }
        let cluster = Self { repo };
        captured(cluster.rig().args(["up", &nodes.to_string()]), LIMIT)
            .map_err(|why| format!("no cluster: {why}"))?;
        Ok(cluster)
    }

    /// How much later the first line of a script runs.
    fn first_lines(&self, print: &mut impl FnMut(Row)) {
        let home = PathBuf::from(RUN).join("home/alice");
        if let Err(why) = std::fs::write(home.join("script"), FIRST_LINE) {
            eprintln!("{}: {why}", home.display());
        }
        let sbatch = |option: &str| {
            let options = format!("--wait -N3 -o /dev/null {option}");
            self.login(&format!(
                "sbatch {options} $HOME/script >/dev/null && cat $HOME/first"
            ))
        };
        let [with, plain] = printed(25, [sbatch("--dragon"), sbatch("")]);
        let difference = of_pairs(&with, &plain, |with, plain| with - plain);
        print(row(
            "sbatch --dragon: first line later by",
            "ms",
            difference,
            "-",
            None,
            Goal::Value(120.0),
        ));
        let name = "3 nodes: sbatch --dragon to first line";
        print(row(
            name,
            "ms",
            with,
            "sbatch to first line",
            Some(plain),
            Goal::None,
        ));
    }

    /// A step that does not ask, with the plugin installed and without.
    fn who_does_not_ask(&self, print: &mut impl FnMut(Row)) {
        let [there, not] = in_turn(1000, self.with_and_without("exec ctl srun true"));
        let upper = of_pairs(&there, &not, |there, not| (there / not - 1.0) * 100.0);
        let upper = upper.map(|sample| Sample {
            values: vec![sample.upper_bound_of_median()],
            note: "upper end of the 95 % interval of the median over pairs".to_owned(),
            ..sample
        });
        print(row(
            "srun that does not ask, more by",
            "%",
            upper,
            "-",
            None,
            Goal::Value(3.0),
        ));
        print(row(
            "srun, plugin installed",
            "ms",
            there,
            "srun, not installed",
            Some(not),
            Goal::None,
        ));
        let counted = "strace -f -c -o $HOME/calls";
        let total = r#"awk "/ total/{print \$4}" $HOME/calls"#;
        let srun = self.with_and_without(&format!("exec ctl sh -c '{counted} srun true; {total}'"));
        // The first step has all pages touched, and slurmd sees its end a little after srun.
        let stepd = format!(
            "exec n1 -u root sh -c '{counted} -p $(pgrep -o slurmd) & sleep 0.5; srun -w n1 true; sleep 0.5; kill -INT $!; wait; {total}'"
        );
        for (name, calls) in [
            ("srun", printed(15, srun)),
            (
                "slurmd and slurmstepd",
                printed(15, self.with_and_without(&stepd)),
            ),
        ] {
            let [there, not] = calls;
            let more = of_pairs(&there, &not, |there, not| there - not);
            let name = format!("system calls more in {name}");
            print(row(&name, "", more, "-", None, Goal::Value(20.0)));
        }
    }

    /// A command of the rig after the plugin was put into plugstack.conf, and after it was taken out.
    fn with_and_without(&self, words: &str) -> [Command; 2] {
        [self.plugstack(), String::new()].map(|line| {
            let mut command = self.rig_environment("sh");
            let text = format!("echo '{line}' >{RUN}/etc/plugstack.conf && exec \"$0\" {words}");
            command
                .args(["-c", &text])
                .arg(self.repo.path("tests/rig/cluster"));
            command
        })
    }

    /// A line of shell on the login node, as an ordinary user.
    fn login(&self, line: &str) -> Command {
        let mut command = self.rig();
        command.args(["exec", "ctl", "sh", "-c", line]);
        command
    }

    fn rig(&self) -> Command {
        self.rig_environment(self.repo.path("tests/rig/cluster"))
    }

    fn rig_environment(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("RIG_PLUGSTACK", self.plugstack())
            .env("RIG_RUN", RUN)
            .env("RIG_SLURM", "1")
            .env("RIG_SHARE", self.repo.path(""));
        command
    }

    fn plugstack(&self) -> String {
        format!(
            "required {} dragond={}",
            self.repo.release("libdragon_spank.so").display(),
            self.repo.release("dragond").display()
        )
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if let Err(why) = captured(self.rig().arg("down"), LIMIT) {
            eprintln!("the cluster did not go down: {why}; type: tests/rig/cluster down");
        }
    }
}

/// Wall times of two commands in turn. The nodes' processes are no descendants of ours: their processor time is not known.
fn in_turn(pairs: u32, commands: [Command; 2]) -> [Measured; 2] {
    wall_times(pairs, LIMIT, "", commands).map(|measured| {
        measured.map(|sample| Sample {
            cpu_seconds: None,
            in_turn: true,
            ..sample
        })
    })
}

/// What two commands print in turn, a number each.
fn printed(pairs: u32, mut commands: [Command; 2]) -> [Measured; 2] {
    let mut all: [Measured; 2] = std::array::from_fn(|_| {
        Ok(Sample {
            in_turn: true,
            ..Sample::default()
        })
    });
    for round in 0..=pairs {
        for (command, all) in commands.iter_mut().zip(&mut all) {
            let Ok(sample) = all else { continue };
            let number = captured(command, LIMIT).and_then(|(_, stdout)| {
                let number = stdout.trim().parse::<f64>();
                number.map_err(|error| format!("{error}: {stdout}"))
            });
            match number {
                Ok(_) if round == 0 => {}
                Ok(number) => sample.values.push(number),
                Err(why) => *all = Err(why),
            }
        }
    }
    all
}

/// One value for each pair.
fn of_pairs(one: &Measured, other: &Measured, value: impl Fn(f64, f64) -> f64) -> Measured {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok(Sample {
            values: one
                .values
                .iter()
                .zip(&other.values)
                .map(|(one, other)| value(*one, *other))
                .collect(),
            ..Sample::default()
        }),
        (Err(why), _) | (_, Err(why)) => Err(why.clone()),
    }
}
