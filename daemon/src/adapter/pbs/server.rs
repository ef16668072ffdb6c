//! What PBS's server says about a job, by `qstat`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::installation;
use crate::ask::said;

/// A job as the server describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its whole name: `12.server.site`.
    pub id: String,
    /// Its state, a letter: `R` is running.
    pub state: String,
    /// Its chunks in their order; none before it runs.
    pub chunks: Vec<Chunk>,
}

/// What the job has of one host, in one piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The host.
    pub host: String,
    /// CPUs.
    pub cpus: u32,
}

/// A command of PBS: where PBS is installed, else on PATH.
#[must_use]
pub fn command(name: &str) -> PathBuf {
    let installed = installation().map(|folder| folder.join("bin").join(name));
    let installed = installed.ok().filter(|path| path.exists());
    installed.unwrap_or_else(|| name.into())
}

/// Asks the server for a job.
///
/// # Errors
/// When there is no such job, or the server does not answer.
pub fn describe(job: &str) -> Result<Described> {
    ensure!(!job.starts_with('-'), "'{job}' is no name of a job");
    let qstat = command("qstat");
    let said = said(Command::new(&qstat).args(["-f", "-F", "json", job]));
    let text = said.map_err(|why| anyhow!("{} -f {job}: {why}", qstat.display()))?;
    read(&text).with_context(|| format!("{} -f -F json {job}", qstat.display()))
}

fn read(text: &str) -> Result<Described> {
    let answer: Value = serde_json::from_str(text).context("the answer is no JSON")?;
    let jobs = answer["Jobs"].as_object();
    let (id, job) = jobs
        .and_then(|jobs| jobs.iter().next())
        .context("there is no such job")?;
    let text = |field: &str| job[field].as_str().unwrap_or_default();
    let chunks = match (text("exec_host"), text("exec_vnode")) {
        ("", "") => Vec::new(),
        (hosts, vnodes) => chunks(hosts, vnodes)
            .with_context(|| format!("exec_host '{hosts}' with exec_vnode '{vnodes}'"))?,
    };
    Ok(Described {
        id: id.clone(),
        state: text("job_state").to_owned(),
        chunks,
    })
}

/// Puts together what stands in `exec_host`, `n1/0*2+n2/1`, and in `exec_vnode`,
/// `(n1[0]:ncpus=1:mem=1gb+n1[1]:ncpus=1)+(n2:ncpus=1)`: both have an entry for each chunk.
fn chunks(hosts: &str, vnodes: &str) -> Result<Vec<Chunk>> {
    let hosts: Vec<_> = hosts
        .split('+')
        .map(|entry| entry.split('/').next().unwrap_or_default().trim())
        .collect();
    let cpus = cpus_of_chunks(vnodes)?;
    ensure!(
        hosts.len() == cpus.len(),
        "{} hosts for {} chunks",
        hosts.len(),
        cpus.len()
    );
    ensure!(
        hosts.iter().all(|host| !host.is_empty()),
        "a host without a name"
    );
    let chunks = hosts.into_iter().zip(cpus).map(|(host, cpus)| Chunk {
        host: host.to_owned(),
        cpus,
    });
    Ok(chunks.collect())
}

/// The CPUs of each chunk: a chunk of several virtual nodes stands in parentheses.
fn cpus_of_chunks(vnodes: &str) -> Result<Vec<u32>> {
    let mut chunks = Vec::new();
    let mut rest = vnodes.trim();
    loop {
        let (chunk, behind) = match rest.strip_prefix('(') {
            Some(open) => open.split_once(')').context("a '(' without its ')'")?,
            None => rest.split_at(rest.find('+').unwrap_or(rest.len())),
        };
        let mut cpus = 0_u32;
        for vnode in chunk.split('+') {
            cpus = cpus
                .checked_add(cpus_of_vnode(vnode)?)
                .context("more CPUs than can be counted")?;
        }
        chunks.push(cpus);
        let behind = behind.trim();
        if behind.is_empty() {
            return Ok(chunks);
        }
        rest = behind
            .strip_prefix('+')
            .with_context(|| format!("'{behind}' behind a chunk"))?
            .trim();
    }
}

/// `n1[0]:ncpus=2:mem=4gb`.
fn cpus_of_vnode(vnode: &str) -> Result<u32> {
    let mut words = vnode.trim().split(':');
    let name = words.next().unwrap_or_default();
    ensure!(
        !name.is_empty() && !name.contains(['(', ')', '=']),
        "'{vnode}' is no virtual node"
    );
    let cpus = words.find_map(|word| word.strip_prefix("ncpus="));
    // A chunk of GPUs or of memory alone has none.
    cpus.map_or(Ok(0), |cpus| {
        cpus.parse()
            .with_context(|| format!("ncpus={cpus} is no number"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_have_the_cpus_of_their_vnodes() {
        for (hosts, vnodes, expected) in [
            ("n1/0", "(n1:ncpus=1)", &[("n1", 1)][..]),
            ("n1/0*2", "n1:ncpus=2", &[("n1", 2)]),
            (
                "n1/0*2+n2/0*4",
                "(n1:ncpus=2)+(n2:mem=1gb:ncpus=4:ngpus=1)",
                &[("n1", 2), ("n2", 4)],
            ),
            // Two virtual nodes of a host in one chunk, and names with brackets.
            (
                "n1/0*3+n2/0",
                "(n1[0]:ncpus=2+n1[1]:ncpus=1)+(n2[0]:ncpus=1)",
                &[("n1", 3), ("n2", 1)],
            ),
            // Two chunks on one host.
            (
                "n1.site/0*2+n1.site/1",
                "(n1:ncpus=2) + (n1:ncpus=1)",
                &[("n1.site", 2), ("n1.site", 1)],
            ),
            // A chunk without CPUs.
            (
                "n1/0*0+n2/0",
                "(n1:ngpus=1)+(n2:ncpus=1)",
                &[("n1", 0), ("n2", 1)],
            ),
        ] {
            let chunks = chunks(hosts, vnodes).unwrap();
            let got: Vec<_> = chunks.iter().map(|c| (&*c.host, c.cpus)).collect();
            assert_eq!(got, expected, "{hosts} {vnodes}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (hosts, vnodes) in [
            ("n1/0", ""),
            ("", "(n1:ncpus=1)"),
            ("n1/0+", "(n1:ncpus=1)+(n2:ncpus=1)"),
            ("n1/0", "(n1:ncpus=1"),
            ("n1/0", "(n1:ncpus=1)+"),
            ("n1/0", "(n1:ncpus=1)n2"),
            ("n1/0", "(n1:ncpus=x)"),
            ("n1/0", "(n1:ncpus=-1)"),
            ("n1/0", "(n1:ncpus=4294967295+n1:ncpus=1)"),
            ("n1/0", "()"),
            ("n1/0", "((n1:ncpus=1))"),
            ("n1/0", "(:ncpus=1)"),
            ("n1/0", "ncpus=1"),
            ("n1/0+n2/0", "(n1:ncpus=1)"),
        ] {
            assert!(chunks(hosts, vnodes).is_err(), "{hosts} {vnodes}");
        }
    }

    #[test]
    fn the_answer_of_the_server_is_read() {
        let text = r#"{"pbs_server": "pbs", "Jobs": {"12[3].pbs.site": {"job_state": "R",
            "exec_host": "n1/0*2", "exec_vnode": "(n1:ncpus=2)"}}}"#;
        let job = read(text).unwrap();
        assert_eq!((&*job.id, &*job.state), ("12[3].pbs.site", "R"));
        assert_eq!(job.chunks.len(), 1);
        let waiting = read(r#"{"Jobs": {"12.pbs": {"job_state": "Q"}}}"#).unwrap();
        assert_eq!((&*waiting.state, waiting.chunks), ("Q", Vec::new()));
        for none in ["", "{}", r#"{"Jobs": {}}"#, r#"{"Jobs": []}"#] {
            assert!(read(none).is_err(), "{none}");
        }
        let odd = r#"{"Jobs": {"12.pbs": {"exec_host": "n1/0", "exec_vnode": "("}}}"#;
        let error = format!("{:#}", read(odd).unwrap_err());
        assert!(error.contains("exec_vnode '('"), "{error}");
    }
}
