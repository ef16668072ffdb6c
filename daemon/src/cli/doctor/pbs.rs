//! PBS: its commands, its library, and in a job its task manager.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use libloading::Library;

use super::Check;
use crate::adapter::pbs::{installation, server, tm};
use crate::ask::{said, said_beside};

const NAME: &str = "workload manager";
const CONF: &str = "PBS_CONF_FILE, or PBS_EXEC, in the environment says where PBS is, where /etc/pbs.conf does not";

/// Whether this process is in a job of PBS.
pub(super) fn inside() -> bool {
    ["PBS_ENVIRONMENT", "PBS_JOBID"]
        .iter()
        .all(|name| std::env::var_os(name).is_some())
}

/// Looks at the PBS of this machine; `None` where there is none.
pub(super) fn check() -> Option<Check> {
    let folder = match installation() {
        Ok(folder) => folder,
        Err(_) if !inside() => return None,
        Err(why) => {
            return Some(Check::fail(
                NAME,
                format!("this is a job of PBS, but {why:#}"),
                CONF,
            ));
        }
    };
    Some(installed(&folder))
}

fn installed(folder: &Path) -> Check {
    // Outside of a job nothing of it is needed.
    let bad = if inside() { Check::fail } else { Check::warn };
    let qstat = server::command("qstat");
    let version = match said(Command::new(&qstat).arg("--version")) {
        Ok(version) => version,
        Err(why) => return bad(NAME, format!("{}: {why}", qstat.display()), CONF.to_owned()),
    };
    let found = format!("PBS in {}, {version}", folder.display());
    if let Err(why) = tm::library().and_then(|path| loads(&path)) {
        return bad(
            NAME,
            format!("{found}; {why:#}"),
            "dragon starts its daemons on the hosts of a job by that library: install it (PBS's package for execution hosts has it), or use --hostfile $PBS_NODEFILE with ssh".to_owned(),
        );
    }
    if !inside() {
        return Check::ok(
            NAME,
            format!("{found}; a script for qsub says dragon PROGRAM"),
        );
    }
    // As a job's daemons are started, on this host and by a program that ends at once.
    let tried = tm::command(0, Path::new("/bin/true"))
        .map_err(|error| format!("{error:#}"))
        .and_then(|mut command| said_beside(&mut command));
    match tried {
        Ok(_) => Check::ok(
            NAME,
            format!("{found}; the job's task manager starts programs"),
        ),
        Err(why) => Check::fail(
            NAME,
            format!("{found}; the job's task manager starts no programs: {why}"),
            "ask the administrator whether pbs_mom of this host is well (its log is PBS_HOME/mom_logs), or use --hostfile $PBS_NODEFILE with ssh",
        ),
    }
}

#[expect(
    unsafe_code,
    reason = "to load a library is to run what it begins with"
)]
fn loads(library: &Path) -> Result<()> {
    // SAFETY: the library's constructors are those of PBS's own programs; nothing of it is called, and this process ends soon.
    match unsafe { Library::new(library) } {
        Ok(loaded) => {
            // Never unloaded: it has left something to be done at the end of this thread.
            Box::leak(Box::new(loaded));
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("{} does not load", library.display())),
    }
}
