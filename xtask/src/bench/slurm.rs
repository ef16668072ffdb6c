//! Group `slurm`: what the runtime over three nodes adds to a plain srun, on a Slurm of three nodes on this machine.

use std::process::Command;
use std::time::Duration;

use crate::bench::row::{Goal, Row};
use crate::bench::sample::{Measured, Sample, captured, wall_times};
use crate::repo::Repo;
use crate::{build_cmd, setup};

const RUNS: u32 = 15;
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn measure(repo: &Repo, print: &mut impl FnMut(Row)) {
    let [with, plain, difference] = match Cluster::up(repo) {
        Ok(cluster) => cluster.sruns(),
        Err(why) => std::array::from_fn(|_| Err(why.clone())),
    };
    print(row(
        "3 nodes: srun --dragon − srun",
        difference,
        "-",
        None,
        Goal::Value(40.0),
    ));
    print(row(
        "srun -N3 --dragon true",
        with,
        "srun -N3 true",
        Some(plain),
        Goal::None,
    ));
}

/// A Slurm of three nodes; goes down when dropped.
struct Cluster<'a> {
    repo: &'a Repo,
}

impl<'a> Cluster<'a> {
    fn up(repo: &'a Repo) -> Result<Self, String> {
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
        captured(cluster.rig().args(["up", "3"]), LIMIT)
            .map_err(|why| format!("no cluster: {why}"))?;
        Ok(cluster)
    }

    fn sruns(&self) -> [Measured; 3] {
        let [with, plain] = wall_times(RUNS, LIMIT, "", [self.srun(&["--dragon"]), self.srun(&[])]);
        let difference = match (&with, &plain) {
            (Ok(with), Ok(plain)) => Ok(Sample {
                values: with
                    .values
                    .iter()
                    .zip(&plain.values)
                    .map(|(with, plain)| with - plain)
                    .collect(),
                ..Sample::default()
            }),
            (Err(why), _) | (_, Err(why)) => Err(why.clone()),
        };
        // The nodes' processes are no descendants of ours: their processor time is not known.
        let unknown = |measured: Measured| {
            measured.map(|sample| Sample {
                cpu_seconds: None,
                ..sample
            })
        };
        [unknown(with), unknown(plain), difference]
    }

    fn srun(&self, options: &[&str]) -> Command {
        let mut command = self.rig();
        command
            .args(["exec", "ctl", "srun", "-N3"])
            .args(options)
            .arg("true");
        command
    }

    fn rig(&self) -> Command {
        let mut command = Command::new(self.repo.path("tests/rig/cluster"));
        let plugin = self.repo.release("libdragon_spank.so");
        let dragond = self.repo.release("dragond");
        let line = format!(
            "required {} dragond={}",
            plugin.display(),
            dragond.display()
        );
        command.env("RIG_PLUGSTACK", line).env("RIG_SLURM", "1");
        command.env("RIG_SHARE", self.repo.path(""));
        command
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if let Err(why) = captured(self.rig().arg("down"), LIMIT) {
            eprintln!("the cluster did not go down: {why}; type: tests/rig/cluster down");
        }
    }
}

fn row(name: &str, ours: Measured, peer_name: &str, peer: Option<Measured>, goal: Goal) -> Row {
    Row {
        name: name.to_owned(),
        unit: "ms",
        ours,
        peer_name: peer_name.to_owned(),
        peer,
        goal,
    }
}
