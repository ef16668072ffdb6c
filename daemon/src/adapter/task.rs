//! What the program of a job is to its runtime: one head, or every task of a step.

use std::ffi::OsString;
use std::mem;
use std::os::unix::ffi::OsStringExt;

use dragon_protocol::env;

use super::Job;
use crate::inherited::Inherited;

/// What the program is to the runtime.
#[derive(Clone, Debug)]
pub enum Shape {
    /// One head on the first node, which starts what else there is. The job ends with it.
    Head,
    /// Every task of the step is the program. The job ends with the last of them.
    Spmd(Task),
}

/// The task of a step that this process stands for.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its number in the step.
    pub rank: u32,
    /// Its number among those of its node.
    pub local_rank: u32,
    /// How many tasks the step has.
    pub size: u32,
    /// The CPUs that it is bound to.
    pub cpus: Vec<u32>,
    /// What it was given beside input, output and errors.
    pub inherited: Inherited,
}

impl Shape {
    /// The task, where the program is one.
    #[must_use]
    pub fn task(&self) -> Option<&Task> {
        match self {
            Self::Head => None,
            Self::Spmd(task) => Some(task),
        }
    }

    /// The task with the descriptors that it was given, which are from here on the caller's to close.
    #[must_use]
    pub fn take_task(&mut self) -> Option<Task> {
        let Self::Spmd(task) = self else {
            return None;
        };
        let inherited = mem::take(&mut task.inherited);
        Some(Task {
            inherited,
            ..task.clone()
        })
    }
}

impl Task {
    /// The environment of its program: as the workload manager made it for the task, and what the runtime says.
    #[must_use]
    pub fn environment(&self, job: &Job) -> Vec<(Vec<u8>, Vec<u8>)> {
        let ours: [(&str, OsString); 4] = [
            (env::RUNTIME, job.socket_name().into()),
            (env::RANK, self.rank.to_string().into()),
            (env::LOCAL_RANK, self.local_rank.to_string().into()),
            (env::GROUP_SIZE, self.size.to_string().into()),
        ];
        let mut all = job.environment_of_tasks();
        all.extend(ours.map(|(name, value)| (name.into(), value)));
        let bytes = |(name, value): (OsString, OsString)| (name.into_vec(), value.into_vec());
        all.into_iter().map(bytes).collect()
    }
}
