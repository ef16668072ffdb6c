//! Which hosts a job runs on, from the command line.

use std::fs;

use anyhow::{Context, Result, bail};
use dragon_protocol::hostlist;

use super::Arguments;
use crate::adapter::pbs::Allocation;
use crate::journal::say;

/// As many nodes as `--nodes` allows.
const MOST_NODES: usize = 4096;

/// Where the nodes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this machine, so many.
    Here(u32),
    /// On these hosts, by the remote shell.
    Hosts(Vec<String>),
    /// On the hosts of the job of PBS that this process is in, by its task manager.
    Pbs(Allocation),
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
            in_file(&text).with_context(|| format!("the host file {}", file.display()))?
        }
        (None, None) => match arguments.nodes {
            Some(0) if arguments.local_nodes => {
                bail!(
                    "--nodes 0 --local-nodes: this machine has no number of nodes of its own; say how many, 1 to 4096"
                )
            }
            nodes if arguments.single || arguments.local_nodes => {
                return Ok(Place::Here(nodes.unwrap_or(1).max(1)));
            }
            nodes => return around(nodes),
        },
    };
    if hosts.is_empty() {
        bail!("the host list names no host");
    }
    shorten(&mut hosts, arguments.nodes, "the host list names")?;
    check(&hosts)?;
    Ok(Place::Hosts(hosts))
}

/// The hosts of a host file: a name or a host list on each line, and comments behind #.
fn in_file(text: &str) -> Result<Vec<String>> {
    let mut hosts = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (line, number) in text.lines().zip(1..) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        if line.contains(char::is_whitespace) {
            bail!(
                "line {number}: '{line}': one host a line is wanted, without further words; a node has all the CPUs that its daemon finds"
            );
        }
        hosts.extend(hostlist::expand(line).with_context(|| format!("line {number}"))?);
    }
    Ok(hosts)
}

/// Refuses what is no name of a host, and more of them than a job has nodes.
fn check(hosts: &[String]) -> Result<()> {
    if hosts.len() > MOST_NODES {
        bail!(
            "{} hosts; a job has at most {MOST_NODES} nodes: -N takes the first so many",
            hosts.len()
        );
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:@%".contains(&byte);
    for host in hosts {
        // A remote shell would take it for an option.
        if host.is_empty() || host.starts_with('-') || !host.bytes().all(fits) {
            bail!(
                "'{}' is no name of a host: letters, digits, '.', '-', '_', ':' and '@' make one, and no '-' at its beginning",
                host.escape_debug()
            );
        }
    }
    Ok(())
}

/// The place where nobody names one: the hosts of the workload manager's job around this command, or this machine.
fn around(nodes: Option<u32>) -> Result<Place> {
    if let Some(allocation) = Allocation::here() {
        let mut allocation = allocation?;
        let granted = format!("job {} of PBS has", allocation.id);
        shorten(&mut allocation.hosts, nodes, &granted)?;
        return Ok(Place::Pbs(allocation));
    }
    if let Some(nodes @ 2..) = nodes {
        bail!(
            "--nodes {nodes} needs to know where: add --local-nodes for {nodes} nodes on this machine, or --hostlist or --hostfile; under Slurm type srun -N{nodes} --dragon PROGRAM, under PBS qsub a script that says dragon PROGRAM"
        );
    }
    let variable = |name: &str| std::env::var(name).ok();
    if nodes != Some(1)
        && let Some(sentence) = one_of_slurm(variable)
    {
        say(&sentence);
    }
    Ok(Place::Here(1))
}

/// What is said where a runtime on one node is started in an allocation of Slurm that has more.
fn one_of_slurm(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let job = variable("SLURM_JOB_ID")?;
    let nodes: u32 = variable("SLURM_JOB_NUM_NODES")?.parse().ok()?;
    (nodes > 1).then(|| {
        format!(
            "job {job} of Slurm has {nodes} nodes, and this runtime only this one: srun --dragon PROGRAM takes them all; -s says that one is meant"
        )
    })
}

/// Leaves the first so many; 0 stands for all.
fn shorten<T>(hosts: &mut Vec<T>, nodes: Option<u32>, who: &str) -> Result<()> {
    let nodes = nodes.filter(|nodes| *nodes > 0).map(|nodes| nodes as usize);
    if let Some(nodes) = nodes {
        let all = hosts.len();
        if nodes > all {
            bail!("--nodes {nodes}, but {who} only {all} hosts");
        }
        hosts.truncate(nodes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_nodes_of_slurm_one_is_not_taken_silently() {
        let said = |variables: &[(&str, &str)]| {
            let of = |name: &str| variables.iter().find(|(other, _)| *other == name);
            one_of_slurm(|name| of(name).map(|(_, value)| (*value).to_owned()))
        };
        let job = ("SLURM_JOB_ID", "47");
        let sentence = said(&[job, ("SLURM_JOB_NUM_NODES", "4")]).unwrap();
        assert!(
            sentence.contains("job 47 of Slurm has 4 nodes"),
            "{sentence}"
        );
        for one in [
            &[][..],
            &[job],
            &[job, ("SLURM_JOB_NUM_NODES", "1")],
            &[job, ("SLURM_JOB_NUM_NODES", "x")],
            &[("SLURM_JOB_NUM_NODES", "4")],
        ] {
            assert_eq!(said(one), None, "{one:?}");
        }
    }

    #[test]
    fn host_files_have_a_host_or_a_list_on_each_line() {
        let hosts = in_file("\u{feff}a # first\n\n# none\n n[1-2],b\r\n").unwrap();
        assert_eq!(hosts, ["a", "n1", "n2", "b"]);
        let error = in_file("a\nb slots=4\n").unwrap_err().to_string();
        assert!(error.starts_with("line 2: 'b slots=4'"), "{error}");
    }

    #[test]
    fn names_of_hosts_are_names() {
        let checked = |name: &str| check(&[name.to_owned()]).map_err(|error| error.to_string());
        for name in ["n1", "user@n-1.site", "fe80::1%eth0", "10.0.0.1"] {
            checked(name).unwrap();
        }
        for name in ["-oProxyCommand=x", "a b", "a;b", "$(x)", ""] {
            assert!(checked(name).is_err(), "{name}");
        }
        let many = vec!["n".to_owned(); MOST_NODES + 1];
        assert!(
            check(&many)
                .unwrap_err()
                .to_string()
                .starts_with("4097 hosts")
        );
    }

    #[test]
    fn no_more_hosts_than_there_are() {
        let left = |nodes| {
            let mut hosts = vec![1, 2, 3];
            shorten(&mut hosts, nodes, "it has").map(|()| hosts.len())
        };
        assert_eq!(left(None).unwrap(), 3);
        assert_eq!(left(Some(0)).unwrap(), 3);
        assert_eq!(left(Some(2)).unwrap(), 2);
        let error = left(Some(4)).unwrap_err().to_string();
        assert_eq!(error, "--nodes 4, but it has only 3 hosts");
    }
}
