//! Which hosts a job runs on, from the command line.

use std::fs;

use anyhow::{Context, Result, bail};
use dragon_protocol::hostlist;

use super::Arguments;

/// Where the nodes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this machine, so many.
    Here(u32),
    /// On these hosts, by the remote shell.
    Hosts(Vec<String>),
}

/// Reads the host options.
///
/// # Errors
/// When they contradict each other, name nobody, or name fewer hosts than nodes are asked for.
pub fn place(arguments: &Arguments) -> Result<Place> {
    let mut hosts = match (&arguments.hostlist, &arguments.hostfile) {
        (Some(list), _) => hostlist::expand(list)?,
        (None, Some(file)) => {
            let text = fs::read_to_string(file)
                .with_context(|| format!("cannot read the host file {}", file.display()))?;
            let lines = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with('#'));
            lines.map(str::to_owned).collect()
        }
        (None, None) => match arguments.nodes {
            Some(0) if arguments.local_nodes => {
                bail!(
                    "--nodes 0 --local-nodes: this machine has no number of nodes of its own; say how many, 1 to 4096"
                )
            }
            Some(nodes) if nodes > 1 && !arguments.local_nodes => {
                bail!(
                    "--nodes {nodes} needs to know where: add --local-nodes for {nodes} nodes on this machine, or --hostlist or --hostfile; under Slurm type srun -N{nodes} --dragon PROGRAM"
                )
            }
            nodes => return Ok(Place::Here(nodes.unwrap_or(1).max(1))),
        },
    };
    if hosts.is_empty() {
        bail!("the host list names no host");
    }
    if let Some(nodes) = arguments.nodes.filter(|n| *n > 0).map(|n| n as usize) {
        if nodes > hosts.len() {
            bail!(
                "--nodes {nodes}, but the host list names only {} hosts",
                hosts.len()
            );
        }
        hosts.truncate(nodes);
    }
    Ok(Place::Hosts(hosts))
}
