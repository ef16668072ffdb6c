//! Options that people know from DragonHPC's launcher: taken with the meaning that its documentation gives them, or refused
//! with the name of ours.

use anyhow::{Result, bail};

use super::hosts::Place;
use crate::config::keys::{self, Key};

/// The options that have no place among ours. What they mean is said where they are applied.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Habits {
    /// Run on several nodes, also when there is only one in the host list.
    #[arg(short = 'm', long = "multi-node-override", conflicts_with = "single")]
    pub multi: bool,

    /// Who starts the nodes: ssh, with a host list; pbs, in a job of PBS.
    #[arg(short = 'w', long = "wlm", value_name = "NAME", hide = true)]
    pub manager: Option<String>,

    /// Nodes that stand by.
    #[arg(short = 'i', long, value_name = "N", hide = true)]
    pub idle: Option<String>,

    /// What the daemons log: NONE, ERROR, WARNING, INFO or DEBUG.
    #[arg(
        short = 'l',
        long,
        value_name = "LEVEL",
        hide = true,
        conflicts_with = "log"
    )]
    pub log_level: Vec<String>,

    /// Nothing stands before lines of output.
    #[arg(long, hide = true, conflicts_with_all = ["label", "basic_label", "verbose_label"])]
    pub no_label: bool,

    /// The node's number stands before lines of output.
    #[arg(long, hide = true, conflicts_with_all = ["label", "verbose_label"])]
    pub basic_label: bool,

    /// Node and process stand before lines of output.
    #[arg(long, hide = true, conflicts_with = "label")]
    pub verbose_label: bool,

    /// A file that describes the network.
    #[arg(long, value_name = "FILE", hide = true)]
    pub network_config: Option<String>,

    /// Start again when a node is lost.
    #[arg(short = 'r', long, hide = true)]
    pub resilient: bool,

    /// Go on until no node is left.
    #[arg(short = 'e', long, hide = true)]
    pub exhaust_resources: bool,
}

impl Habits {
    /// Checks them against the place where the job is to run.
    ///
    /// # Errors
    /// When one means something that is done otherwise here; the sentence says how.
    pub fn check(&self, place: &Place) -> Result<()> {
        let several = match place {
            Place::Here(nodes) => *nodes > 1,
            // What the workload manager gives is as many as it is.
            Place::Hosts(_) | Place::Pbs(_) => true,
        };
        if self.multi && !several {
            bail!(
                "-m (--multi-node-override) needs to know the nodes: add --hostlist or --hostfile, or -N 2 --local-nodes for nodes on this machine; under Slurm type srun --dragon PROGRAM, under PBS qsub a script that says dragon PROGRAM"
            );
        }
        match self.manager.as_deref() {
            None => {}
            Some("ssh") if matches!(place, Place::Hosts(_)) => {}
            Some("ssh") if matches!(place, Place::Pbs(_)) => {
                bail!(
                    "--wlm ssh needs --hostlist or --hostfile; in this job of PBS dragon PROGRAM alone starts its nodes, by PBS itself"
                )
            }
            Some("ssh") => bail!("--wlm ssh needs --hostlist or --hostfile"),
            Some("pbs" | "pbs+ssh" | "pbs+pals") if matches!(place, Place::Pbs(_)) => {}
            Some(name @ ("pbs" | "pbs+ssh" | "pbs+pals")) if several => {
                bail!(
                    "--wlm {name}: the nodes are named already; leave out --wlm, or, for the nodes of a job of PBS, --hostlist, --hostfile and --local-nodes"
                )
            }
            Some(name @ ("pbs" | "pbs+ssh" | "pbs+pals")) => {
                bail!(
                    "--wlm {name}: there are no nodes of a job of PBS to take; qsub a script that says dragon PROGRAM, or type it in qsub -I, without -s"
                )
            }
            Some("slurm") => {
                bail!(
                    "--wlm slurm: under Slurm srun starts the nodes; type srun -N4 --dragon PROGRAM"
                )
            }
            Some(other) => bail!(
                "--wlm {other} is not available in this release; use srun --dragon under Slurm, qsub under PBS, or --hostlist or --hostfile for ssh"
            ),
        }
        if self.idle.is_some() || self.resilient || self.exhaust_resources {
            bail!(
                "--idle, --resilient and --exhaust-resources: there are no nodes that stand by in this release, and no program is started again; give all nodes to the job with --nodes"
            );
        }
        if let Some(file) = &self.network_config {
            bail!(
                "--network-config {file}: the nodes are named by --hostlist or --hostfile, their interfaces by --interface"
            );
        }
        Ok(())
    }

    /// The settings that they stand for.
    ///
    /// # Errors
    /// When a level of logging is unknown, or meant for a place where nothing is logged.
    pub fn settings(&self) -> Result<Vec<(&'static Key, String)>> {
        let mut settings: Vec<(&'static Key, String)> = Vec::new();
        let labels = [
            (self.no_label, "none"),
            (self.basic_label, "node"),
            (self.verbose_label, "full"),
        ];
        let label = labels.into_iter().find(|(given, _)| *given);
        settings.extend(label.map(|(_, label)| (&keys::LABEL, label.to_owned())));
        for level in &self.log_level {
            settings.push((&keys::LOG, filter(level)?.to_owned()));
        }
        Ok(settings)
    }
}

fn filter(level: &str) -> Result<&'static str> {
    let (place, name) = level.split_once('=').unwrap_or(("stderr", level));
    if place != "stderr" {
        bail!(
            "--log-level {level}: the daemons log to standard error alone; redirect it, or use --output FILE"
        );
    }
    Ok(match name.to_ascii_uppercase().as_str() {
        "NONE" => "off",
        "DEBUG" => "debug",
        "INFO" => "info",
        "WARNING" => "warn",
        "ERROR" | "CRITICAL" => "error",
        _ => bail!(
            "--log-level {level}: there are NONE, ERROR, WARNING, INFO and DEBUG; --log takes finer filters"
        ),
    })
}
