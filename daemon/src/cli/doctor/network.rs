//! Sockets: of this machine, and towards other nodes.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;

use dragon_transport::interface::{self, Class, Interface, Wanted};

use super::{Check, limits};
use crate::network::any_address;

/// An attach socket, tried out.
pub(super) fn attach_socket() -> Check {
    const NAME: &str = "attach socket";
    let name = format!("dragon-doctor/{}", std::process::id());
    let tried = || -> io::Result<()> {
        let address = SocketAddr::from_abstract_name(&name)?;
        let listener = UnixListener::bind_addr(&address)?;
        UnixStream::connect_addr(&address)?;
        listener.accept().map(drop)
    };
    let table = fs::read_to_string("/proc/net/unix");
    match (tried(), table) {
        (Ok(()), Ok(_)) => Check::ok(NAME, "abstract unix sockets work"),
        (Err(error), _) => Check::fail(
            NAME,
            format!("an abstract unix socket cannot be used: {error}"),
            "programs reach their daemon by one: a sandbox or container must allow them",
        ),
        (_, Err(error)) => Check::warn(
            NAME,
            format!("/proc/net/unix cannot be read: {error}"),
            "dragon attach and dragon status find no runtime without DRAGON_RUNTIME: mount /proc",
        ),
    }
}

/// Which interfaces would be used, and why not the others.
pub(super) fn interfaces(wanted: &str) -> Check {
    const NAME: &str = "interfaces";
    let there = match interface::list() {
        Ok(there) => there,
        Err(error) => {
            return Check::fail(
                NAME,
                error.to_string(),
                "a sandbox must allow netlink sockets",
            );
        }
    };
    let wanted: Wanted = match wanted.parse() {
        Ok(wanted) => wanted,
        Err(error) => return Check::fail(NAME, error.to_string(), "correct --interface"),
    };
    // As the daemon does it: other nodes have a loopback interface of their own.
    let leads_out = |i: &Interface| !wanted.is_automatic() || i.class != Class::Loopback;
    let candidates: Vec<_> = there.iter().filter(|i| leads_out(i)).cloned().collect();
    let chosen = match interface::choose(&candidates, &wanted) {
        Ok(chosen) => chosen,
        Err(error) if wanted.is_automatic() => {
            return Check::warn(
                NAME,
                error.to_string(),
                "a runtime of this machine alone works; for others bring an interface up (ip link set NAME up) and give it an address",
            );
        }
        Err(error) => {
            return Check::fail(
                NAME,
                error.to_string(),
                "name one that is up with --interface",
            );
        }
    };
    let used: Vec<_> = chosen
        .iter()
        .map(|c| format!("{} ({})", c.name, c.address))
        .collect();
    let others = there
        .iter()
        .filter(|i| chosen.iter().all(|c| c.name != i.name));
    let others: Vec<_> = others
        .map(|i| format!("{}: {}", i.name, why_not(i, &wanted)))
        .collect();
    let mut found = format!("{} would be used", used.join(", "));
    if !others.is_empty() {
        found += &format!("; not {}", others.join(", "));
    }
    Check::ok(NAME, found)
}

fn why_not(interface: &Interface, wanted: &Wanted) -> &'static str {
    match interface.class {
        _ if !interface.up => "down",
        _ if interface.addresses.is_empty() => "no address",
        Class::Loopback if wanted.is_automatic() => "this machine alone",
        _ if !wanted.is_automatic() => "not asked for",
        Class::Container => "of containers",
        Class::Bridge => "a bridge",
        Class::Virtual => "virtual",
        _ => "slower, or its address is of the link alone",
    }
}

/// Ports for the bring-up.
pub(super) fn ports((first, last): (u16, u16)) -> Check {
    const NAME: &str = "ports";
    /// So many are tried, all over the range.
    const TRIES: u16 = 32;
    let tries = TRIES.min((last - first).saturating_add(1));
    let step = ((last - first) / tries).max(1);
    let mut refused = None;
    let mut free = 0;
    for n in 0..tries {
        match TcpListener::bind((any_address(), first + n * step)) {
            Ok(_) => free += 1,
            Err(error) => refused = Some(error),
        }
    }
    let found = format!(
        "{free} of {tries} ports that were tried between {first} and {last} can be listened on"
    );
    let why = refused
        .map(|error| format!(" ({error})"))
        .unwrap_or_default();
    let change = "the nodes of a job meet on ports of this range: allow them (net.ipv4.ip_unprivileged_port_start, a sandbox), and let them through the firewalls between the nodes";
    match free {
        0 => Check::fail(NAME, found + &why, change),
        n if n < tries / 2 => Check::warn(NAME, found + &why, change),
        _ => Check::ok(NAME, found),
    }
}

/// Adapters that are faster than what this release speaks.
pub(super) fn libfabric() -> Check {
    const NAME: &str = "libfabric";
    let path = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = path.split(':').filter(|folder| !folder.is_empty());
    let usual = [
        "/usr/lib64",
        "/usr/lib",
        "/lib64",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/local/lib",
        "/usr/local/lib64",
    ];
    let mut files = folders
        .chain(usual)
        .map(|folder| PathBuf::from(folder).join("libfabric.so.1"));
    let library = files.find(|file| file.exists());
    let there = library.map_or("there is none".to_owned(), |file| {
        file.display().to_string()
    });
    match limits::adapters().as_slice() {
        [] => Check::ok(
            NAME,
            format!("{there}; no RDMA adapter needs it, nodes speak TCP"),
        ),
        some => Check::warn(
            NAME,
            format!("{there}; there are RDMA adapters: {}", some.join(", ")),
            "this release speaks TCP only: let it use their IP interfaces (--interface ib0)",
        ),
    }
}
