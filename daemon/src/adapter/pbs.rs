//! In a job of PBS: which hosts it has, and where PBS is installed.

pub mod server;
pub mod tm;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};

use self::server::Chunk;
use crate::journal::say;

/// What PBS gave a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The job as PBS names it: `12.server.site`.
    pub id: String,
    /// Its hosts, in their order: the script runs on the first.
    pub hosts: Vec<Host>,
}

/// A host of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// The first of its numbers among the nodes of the job that PBS's task manager knows.
    pub tm_index: u32,
    /// CPUs that were granted there, where PBS says so.
    pub cpus: Option<u32>,
}

/// The longest name of a runtime of PBS: with the other parts, the name of an attach socket has 107 bytes.
const LONGEST_NAME: usize = 63;

impl Allocation {
    /// The job whose script this process belongs to; `None` outside of one.
    #[must_use]
    pub fn here() -> Option<Result<Self>> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        variable("PBS_ENVIRONMENT")?;
        let id = variable("PBS_JOBID")?;
        // Its script runs on the first host, and has the list of them all.
        let first = variable("PBS_NODENUM").is_none_or(|number| number == "0");
        let file = variable("PBS_NODEFILE").filter(|_| first);
        let Some(file) = file else {
            return Some(Err(anyhow!(
                "this is a task of job {id} beside its script, and not the place to start a runtime on all its hosts: type dragon in the script, or dragon -s for a runtime on this host alone"
            )));
        };
        Some(Self::read(id, Path::new(&file)))
    }

    fn read(id: String, file: &Path) -> Result<Self> {
        let named = || format!("PBS_NODEFILE, {}", file.display());
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", named()))?;
        let (mut hosts, lines) = hosts(&text);
        ensure!(
            !hosts.is_empty(),
            "{}, names no host: a job without CPUs has none; ask for them by qsub -l select=N:ncpus=M",
            named()
        );
        match server::describe(&id) {
            Ok(job) => grant(&mut hosts, &job.chunks)?,
            Err(why) => {
                let threads = std::env::var("NCPUS").ok();
                let threads = threads.and_then(|number| number.parse().ok());
                guess(&mut hosts, &lines, threads.unwrap_or(1));
                say(&format!(
                    "how many CPUs job {id} was granted on each host cannot be learnt ({why:#}); of its node file and NCPUS, it seems: {}",
                    hosts[0].cpus.unwrap_or(1)
                ));
            }
        }
        Ok(Self { id, hosts })
    }

    /// The name of a runtime of the job that this process starts: the job's number, the server's name as far as its first
    /// dot, and the number of this process, since a script may start several.
    #[must_use]
    pub fn name(&self) -> String {
        let end = format!(".{}", std::process::id());
        let mut name = short(&self.id).to_owned();
        while name.len() + end.len() > LONGEST_NAME {
            name.pop();
        }
        name + &end
    }
}

/// The name of a job without the domain of its server: `12.server`.
#[must_use]
pub fn short(id: &str) -> &str {
    let end = id.match_indices('.').nth(1).map(|(at, _)| at);
    &id[..end.unwrap_or(id.len())]
}

/// Tells the hosts what the server says that they were granted.
fn grant(hosts: &mut [Host], chunks: &[Chunk]) -> Result<()> {
    for (rank, host) in hosts.iter_mut().enumerate() {
        let own = |chunk: &&Chunk| is_same(&chunk.host, &host.name);
        let cpus = chunks
            .iter()
            .filter(own)
            .fold(None, |sum: Option<u32>, chunk| {
                Some(sum.unwrap_or(0).saturating_add(chunk.cpus))
            });
        // None for one that the server knows by another name: then the host's own limits count.
        host.cpus = cpus.map(|cpus| cpus.max(1));
        ensure!(
            rank > 0 || chunks.first().is_none_or(|first| own(&first)) || cpus.is_none(),
            "the job's script runs on {}, where no task of it has a place (mpiprocs=0): the first chunk needs mpiprocs=1",
            chunks[0].host
        );
    }
    Ok(())
}

/// Where the server says nothing: as many CPUs as a host has tasks, or as a task has threads.
fn guess(hosts: &mut [Host], lines: &[u32], threads: u32) {
    for (host, lines) in hosts.iter_mut().zip(lines) {
        host.cpus = Some((*lines).max(threads).max(1));
    }
}

/// Whether two names are of one host: PBS leaves out the domain in one place and writes it in another.
fn is_same(one: &str, other: &str) -> bool {
    let label = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let whole = |name: &str| name.contains('.');
    one == other || !(whole(one) && whole(other)) && label(one) == label(other)
}

/// The hosts of a node file, each once, and how often each stands there: it names one for each task that runs there.
fn hosts(text: &str) -> (Vec<Host>, Vec<u32>) {
    let (mut hosts, mut lines): (Vec<Host>, Vec<u32>) = Default::default();
    let names = text.lines().map(str::trim).filter(|name| !name.is_empty());
    for (tm_index, name) in (0..).zip(names) {
        if let Some(known) = hosts.iter().position(|host| host.name == name) {
            lines[known] += 1;
        } else {
            hosts.push(Host {
                name: name.to_owned(),
                tm_index,
                cpus: None,
            });
            lines.push(1);
        }
    }
    (hosts, lines)
}

/// The folder in which PBS is installed.
///
/// # Errors
/// When nobody says where that is.
pub fn installation() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("PBS_EXEC") {
        return Ok(folder.into());
    }
    let conf = std::env::var_os("PBS_CONF_FILE").unwrap_or_else(|| "/etc/pbs.conf".into());
    let conf = PathBuf::from(conf);
    let named = || {
        format!(
            "{} is to say where PBS is installed (PBS_EXEC=FOLDER); PBS_CONF_FILE names another file",
            conf.display()
        )
    };
    let text = fs::read_to_string(&conf).with_context(named)?;
    let mut lines = text.lines().map(str::trim);
    let folder = lines.find_map(|line| line.strip_prefix("PBS_EXEC="));
    folder.map(PathBuf::from).with_context(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, tm_index: u32, cpus: Option<u32>) -> Host {
        Host {
            name: name.to_owned(),
            tm_index,
            cpus,
        }
    }

    #[test]
    fn a_host_has_the_number_of_its_first_line() {
        let expected = [
            host("n1", 0, None),
            host("n2", 2, None),
            host("n3", 3, None),
        ];
        let (hosts, lines) = hosts("n1\nn1\nn2\n n3 \n\nn2\n");
        assert_eq!((&hosts[..], &lines[..]), (&expected[..], &[2, 2, 1][..]));
    }

    #[test]
    fn hosts_have_the_cpus_of_their_chunks() {
        let chunk = |host: &str, cpus| Chunk {
            host: host.to_owned(),
            cpus,
        };
        let granted = |names: &str, chunks: &[Chunk]| {
            let (mut hosts, _) = hosts(names);
            grant(&mut hosts, chunks).map(|()| hosts.iter().map(|host| host.cpus).collect())
        };
        let all: Vec<_> = granted(
            "n1.site\nn2.site\nn3.site\n",
            &[chunk("n1", 2), chunk("n2", 4), chunk("n1", 1)],
        )
        .unwrap();
        assert_eq!(all, [Some(3), Some(4), None]);
        // One name of two sites is two hosts; a chunk without CPUs has as much as any process.
        let all: Vec<_> = granted("n1.a\nn1.b\n", &[chunk("n1.a", 0), chunk("n1.b", 2)]).unwrap();
        assert_eq!(all, [Some(1), Some(2)]);
        let error = granted("n2\n", &[chunk("n1", 1), chunk("n2", 1)]).unwrap_err();
        assert!(error.to_string().contains("runs on n1"), "{error}");
    }

    #[test]
    fn without_the_server_tasks_and_threads_are_counted() {
        let (mut hosts, lines) = hosts("n1\nn2\nn1\nn1\n");
        guess(&mut hosts, &lines, 2);
        assert_eq!(hosts, [host("n1", 0, Some(3)), host("n2", 1, Some(2))]);
        guess(&mut hosts, &lines, 0);
        assert_eq!(hosts[1].cpus, Some(1));
    }

    #[test]
    fn the_name_of_a_runtime_is_short() {
        let end = format!(".{}", std::process::id());
        let long = format!("12.{}.site", "x".repeat(63));
        for (id, name) in [
            ("12.pbs.site.org", "12.pbs"),
            ("12[3].pbs", "12[3].pbs"),
            ("12", "12"),
            (&long, &long[..LONGEST_NAME - end.len()]),
        ] {
            let allocation = Allocation {
                id: id.to_owned(),
                hosts: Vec::new(),
            };
            assert_eq!(allocation.name(), format!("{name}{end}"));
        }
    }
}
