//! Open MPI over TCP between the namespaces.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::net::{Net, address};

/// By which the program that stands in for a remote shell finds the other namespace.
const NAMESPACE: &str = "TRANSPORT_BENCH_NAMESPACE";

/// Runs a program with a rank in each namespace; it prints what it measured.
pub(crate) fn run(program: &str, mode: &str) -> Result<()> {
    let net = Net::new()?;
    let this = std::env::current_exe()?;
    let network = format!("{}/24", address(0));
    let hosts = format!("{}:1,{}:1", address(0), address(1));
    let mut command = Command::new("mpirun");
    command.args([
        "--allow-run-as-root",
        "--bind-to",
        "none",
        "-np",
        "2",
        "--host",
        &hosts,
    ]);
    let shell = format!("{} mpi-shell", this.display());
    for (name, value) in [
        ("plm_rsh_agent", shell.as_str()),
        ("btl", "tcp,self"),
        ("pml", "ob1"),
        ("btl_tcp_if_include", &network),
        ("oob_tcp_if_include", &network),
    ] {
        command.args(["--mca", name, value]);
    }
    command.args([program, mode]).env(NAMESPACE, net.path(1));
    let status = command.status().context("cannot start mpirun")?;
    ensure!(status.success(), "mpirun ended with {status}");
    Ok(())
}

/// Stands in for a remote shell: `HOST COMMAND…`, in the other namespace and under another host name.
pub(crate) fn shell(words: &[&str]) -> Result<()> {
    let (_, command) = words.split_first().context("no host")?;
    let path = std::env::var(NAMESPACE).context(NAMESPACE)?;
    let namespace = File::open(path).context("the other namespace")?;
    let kind = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(namespace.as_fd(), kind).context("setns")?;
    // SAFETY: only the host's name changes, which nothing in this process uses.
    let made = unsafe { libc::unshare(libc::CLONE_NEWUTS) };
    ensure!(made == 0, "unshare: {}", std::io::Error::last_os_error());
    rustix::system::sethostname(b"other").context("sethostname")?;
    Err(anyhow!(
        Command::new("sh").args(["-c", &command.join(" ")]).exec()
    ))
}
