//! Names of environment variables. What stands here is public interface; everything else goes over sockets. The settings of
//! a job have variables too: the daemon's table of settings names them.

/// The attach socket of the runtime that this process belongs to: an abstract name, without the leading NUL.
pub const RUNTIME: &str = "DRAGON_RUNTIME";
/// Path of `dragond`, for programs that are started without a runtime and start one.
pub const DAEMON: &str = "DRAGON_DAEMON";
/// The interpreter for Python programs and workers; otherwise the one of the virtual environment in use.
pub const PYTHON: &str = "DRAGON_PYTHON";
/// Set by the Slurm plugin: the job key, 64 hexadecimal digits. Removed before any user program starts. The prefix makes
/// Slurm pass it on whatever `--export` says.
pub const STEP_KEY: &str = "SLURM_DRAGON_STEP_KEY";
/// Set by the Slurm plugin: the program that the user named. Removed likewise.
pub const STEP_PROGRAM: &str = "SLURM_DRAGON_STEP_PROGRAM";
/// Set by the Slurm plugin: the `dragond` that it has put in the place of the program. Removed likewise.
pub const STEP_DRAGOND: &str = "SLURM_DRAGON_STEP_DRAGOND";
/// Set by the Slurm plugin: what `dragond` is to be in the place of the program: `head`; `allocation`, in front of a batch
/// script or an interactive shell; `inside`, a head in a runtime that runs. By `dragond` itself: `node`, of an allocation.
/// Removed likewise.
pub const STEP_MODE: &str = "SLURM_DRAGON_STEP_MODE";
/// Set by the Slurm plugin: the settings that stand behind the mode, `NAME=VALUE,…`. Removed likewise.
pub const STEP_SETTINGS: &str = "SLURM_DRAGON_STEP_SETTINGS";
/// Set by the Slurm plugin: `1` or `0` where srun was told whether a task's bad exit kills the step, else empty. Removed likewise.
pub const STEP_BAD_EXIT: &str = "SLURM_DRAGON_STEP_BAD_EXIT";
/// Set for the daemons of an allocation: where its keeper listens, an abstract name without the leading NUL. Removed likewise.
pub const STEP_KEEPER: &str = "SLURM_DRAGON_STEP_KEEPER";
/// Set in the script or shell of an allocation that has a runtime: the same as [`RUNTIME`], by a name that Slurm passes on
/// to every step whatever `--export` says. It counts where [`RUNTIME`] is not set at all.
pub const JOB_RUNTIME: &str = "SLURM_DRAGON_JOB_RUNTIME";
/// Set for a daemon that joins its starter: the one-time join key, 64 hexadecimal digits. Removed before the daemon starts.
pub const JOIN_KEY: &str = "DRAGON_JOIN";
/// Set for a head in a runtime that goes on after it, by whoever starts it: the number of its process. What that process
/// starts ends with it.
pub const HEAD: &str = "DRAGON_HEAD";

/// Whether a runtime whose attach socket has this name is one of the job of Slurm with this number: jobs hand their environment
/// on to those that they submit.
#[must_use]
pub fn is_of_job(name: &str, job: &str) -> bool {
    let runtime = name.split('/').nth(2);
    runtime
        .and_then(|runtime| runtime.split_once('.'))
        .is_some_and(|(of, _)| !job.is_empty() && of == job)
}

/// Where new processes go when their creator does not say: `roundrobin` (default), `block`, `packed`, `local` or `remote`.
pub const PLACEMENT: &str = "DRAGON_PLACEMENT";
/// Set for a process of a group, and for a task of a step that is the program: its number among them.
pub const RANK: &str = "DRAGON_RANK";
/// Set likewise: its number among those of its node.
pub const LOCAL_RANK: &str = "DRAGON_LOCAL_RANK";
/// Set likewise: how many there are.
pub const GROUP_SIZE: &str = "DRAGON_GROUP_SIZE";
