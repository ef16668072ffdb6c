//! Two network namespaces joined by veth. They have no name and belong to this process and its children: with the last of
//! them they are gone.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The two namespaces.
pub(crate) struct Net([File; 2]);

/// Which of the two nodes.
pub(crate) type Side = usize;

impl Net {
    /// This process must have one thread; it ends up in the first namespace.
    pub(crate) fn new() -> Result<Self> {
        let (first, second) = (fresh()?, fresh()?);
        ip(&[
            "link", "add", "veth1", "type", "veth", "peer", "name", "veth0",
        ])?;
        let target = format!("/proc/{}/fd/{}", std::process::id(), first.as_raw_fd());
        ip(&["link", "set", "veth0", "netns", &target])?;
        let net = Self([first, second]);
        for side in [1, 0] {
            net.enter(side)?;
            let device = format!("veth{side}");
            let address = format!("{}/24", address(side));
            ip(&["address", "add", &address, "dev", &device])?;
            ip(&["link", "set", &device, "up"])?;
            ip(&["link", "set", "lo", "up"])?;
        }
        Ok(net)
    }

    /// Joins them by a second network. This process ends up in the first namespace.
    pub(crate) fn second(&self) -> Result<()> {
        self.enter(1)?;
        ip(&[
            "link", "add", "rail1", "type", "veth", "peer", "name", "rail0",
        ])?;
        ip(&["link", "set", "rail0", "netns", &self.path(0)])?;
        for side in [1, 0] {
            self.enter(side)?;
            let device = format!("rail{side}");
            let address = format!("{}/24", rail_address(side));
            ip(&["address", "add", &address, "dev", &device])?;
            ip(&["link", "set", &device, "up"])?;
        }
        Ok(())
    }

    /// Limits both networks to so many Mbit/s each, in each direction. This process ends up in the first namespace.
    pub(crate) fn limit(&self, rate: u32) -> Result<()> {
        for side in [1, 0] {
            self.enter(side)?;
            for device in ["veth", "rail"] {
                let words = format!(
                    "qdisc add dev {device}{side} root tbf rate {rate}mbit burst 512kb latency 20ms"
                );
                command("tc", &words.split(' ').collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    /// Moves this process into a namespace.
    pub(crate) fn enter(&self, side: Side) -> Result<()> {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(self.0[side].as_fd(), kind).context("setns")
    }

    /// A path by which another process finds a namespace.
    pub(crate) fn path(&self, side: Side) -> String {
        let fd = self.0[side].as_raw_fd();
        format!("/proc/{}/fd/{fd}", std::process::id())
    }
}

/// The address of a node.
pub(crate) fn address(side: Side) -> Ipv4Addr {
    // One of two.
    Ipv4Addr::new(10, 78, 0, if side == 0 { 1 } else { 2 })
}

/// The address of a node on the second network.
pub(crate) fn rail_address(side: Side) -> Ipv4Addr {
    Ipv4Addr::new(10, 79, 0, if side == 0 { 1 } else { 2 })
}

/// Moves this process into a namespace of its own.
fn fresh() -> Result<File> {
    // SAFETY: only the network changes, which nothing in this process uses yet.
    let made = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    let failed = std::io::Error::last_os_error();
    ensure!(
        made == 0,
        "a network namespace of its own needs root: {failed}"
    );
    File::open("/proc/self/ns/net").context("cannot open the namespace")
}

fn ip(words: &[&str]) -> Result<()> {
    command("ip", words)
}

fn command(program: &str, words: &[&str]) -> Result<()> {
    let output = Command::new(program).args(words).output();
    let why = || format!("cannot start {program} (Debian package iproute2)");
    let output = output.with_context(why)?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        words.join(" "),
        text.trim()
    );
    Ok(())
}
