//! Started by Slurm: the plugin put this program in the place of the user's, and the key into the step's environment.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dragon_protocol::key::JobKey;
use dragon_protocol::{NodeIndex, env, hostlist};
use tokio::time::timeout;

use super::task::{Shape, Task};
use super::{Job, Manager, Role, allocation, wishes};
use crate::config::{Config, keys};
use crate::inherited::{self, Inherited};
use crate::journal::say;
use crate::readable::end_of;
use crate::resources;

/// Children of a node in the tree of daemons.
const FANOUT: u32 = 16;
/// How long the nodes of a step may take to find each other.
pub const BRING_UP: Duration = Duration::from_secs(60);

/// Reads the step's environment. `arguments` are the program's, without its name.
///
/// # Errors
/// When a variable is missing or makes no sense.
pub fn read(arguments: &[OsString]) -> Result<Role> {
    let key = JobKey::from_hex(&text(env::STEP_KEY)?)
        .with_context(|| format!("{} is not 64 hexadecimal digits", env::STEP_KEY))?;
    let mode = text(env::STEP_MODE)?;
    let program = match mode.as_str() {
        // The script or shell runs beside it, and may run many.
        allocation::NODE => None,
        _ => Some(
            std::env::var_os(env::STEP_PROGRAM)
                .with_context(|| format!("{} is not set", env::STEP_PROGRAM))?,
        ),
    };
    let hosts =
        hostlist::expand(&text("SLURM_STEP_NODELIST").or_else(|_| text("SLURM_JOB_NODELIST"))?)?;
    let node =
        NodeIndex::new(number("SLURM_NODEID")?).filter(|node| (node.get() as usize) < hosts.len());
    let node = node.with_context(|| {
        format!(
            "SLURM_NODEID is not below the number of nodes, {}",
            hosts.len()
        )
    })?;
    let tasks = tasks_of_node(&text("SLURM_STEP_TASKS_PER_NODE")?, node.get())
        .context("SLURM_STEP_TASKS_PER_NODE")?;
    let settings = std::env::var(env::STEP_SETTINGS).unwrap_or_default();
    let config = Config::load(&wishes::parse(&settings).context("--dragon")?)?;
    let bring_up = config.number(&keys::BRING_UP_LIMIT);
    let step = format!("{}.{}", text("SLURM_JOB_ID")?, text("SLURM_STEP_ID")?);
    let job = Job {
        key,
        name: step.clone(),
        node,
        hosts,
        ports: config.ports(),
        fanout: FANOUT,
        bring_up: bring_up.map_or(BRING_UP, Duration::from_secs),
        program: program
            .into_iter()
            .chain(arguments.iter().cloned())
            .collect(),
        shape: shape(&mode)?,
        pool: config.number(&keys::POOL).unwrap_or(0),
        environment: Vec::new(),
        forward_output: false,
        siblings: tasks.saturating_sub(1),
        cpus: number("SLURM_CPUS_ON_NODE").ok(),
        network: config.network(),
        config,
        manager: Manager::Slurm {
            step,
            keeper: std::env::var(env::STEP_KEEPER).ok(),
        },
    };
    let first = number("SLURM_LOCALID")? == 0;
    Ok(if first {
        Role::Daemon(Box::new(job))
    } else {
        Role::Sibling(Box::new(job))
    })
}

/// What the program is. Takes the descriptors that are for it, and for nobody else.
fn shape(mode: &str) -> Result<Shape> {
    match mode {
        "head" | allocation::NODE => {
            // What the head starts must not answer in the place of the task; that there is none is no error.
            if let Ok(line) = number("PMI_FD").map(u32::cast_signed) {
                let _ = inherited::keep_from_programs(line);
            }
            Ok(Shape::Head)
        }
        "spmd" => Ok(Shape::Spmd(Task {
            rank: number("SLURM_PROCID")?,
            local_rank: number("SLURM_LOCALID")?,
            size: number("SLURM_STEP_NUM_TASKS").or_else(|_| number("SLURM_NTASKS"))?,
            cpus: resources::cpu_numbers(&resources::own_mask()),
            inherited: Inherited::take().context("descriptors for the program")?,
        })),
        other => bail!(
            "--dragon={other}: this release of dragond ({}) knows head and spmd; the plugin is of another one",
            dragon_protocol::RELEASE
        ),
    }
}

/// How long Slurm may take to cancel a step.
const CANCEL: Duration = Duration::from_secs(5);

/// Has Slurm kill a step, this daemon included: one of its tasks hangs, and the step would last as long as that does.
pub async fn cancel(step: &str) {
    let mut scancel = Command::new("scancel");
    // By slurmctld: without it scancel signals the nodes itself, and does not reach those that this one does not reach.
    scancel
        .args(["--ctld", "-s", "KILL", step])
        .stdin(Stdio::null());
    let why = match scancel.spawn().and_then(|scancel| end_of(scancel.id())) {
        Ok(end) => match timeout(CANCEL, end.readable()).await {
            Ok(_) => return,
            Err(_) => format!("scancel has not ended within {CANCEL:?}"),
        },
        Err(error) => format!("scancel failed: {error}"),
    };
    say(&format!("{why}; type scancel -s KILL {step}"));
}

/// Variables that make a process look like a task of the step: an `MPI_Init` in a library would wait for its peers.
#[must_use]
pub fn is_task_variable(name: &OsStr) -> bool {
    const TASK: [&str; 8] = [
        "PMI_FD",
        "PMI_RANK",
        "PMI_SIZE",
        "PMI_JOBID",
        "SLURM_PROCID",
        "SLURM_LOCALID",
        "SLURM_TASK_PID",
        "SLURM_GTIDS",
    ];
    TASK.iter().any(|task| name == *task) || name.as_bytes().starts_with(b"PMIX_")
}

fn text(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set: was this started by Slurm?"))
}

fn number(name: &str) -> Result<u32> {
    let value = text(name)?;
    value
        .parse()
        .with_context(|| format!("{name}={value} is not a number"))
}

/// The number of tasks on a node, from Slurm's compressed form: `2(x3),1`.
fn tasks_of_node(list: &str, node: u32) -> Option<u32> {
    let mut before = 0;
    for part in list.split(',') {
        let (tasks, nodes) = match part.split_once("(x") {
            Some((tasks, nodes)) => (tasks, nodes.strip_suffix(')')?.parse().ok()?),
            None => (part, 1_u32),
        };
        before += nodes;
        if node < before {
            return tasks.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::tasks_of_node;

    #[test]
    fn tasks_per_node_in_every_form() {
        let table = [
            ("1", 0, Some(1)),
            ("2(x3),1", 2, Some(2)),
            ("2(x3),1", 3, Some(1)),
            ("2(x3),1", 4, None),
            ("x", 0, None),
            ("2(x", 0, None),
        ];
        for (list, node, tasks) in table {
            assert_eq!(tasks_of_node(list, node), tasks, "{list} {node}");
        }
    }
}
