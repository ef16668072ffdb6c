//! Which network the nodes of a job use, and where this node listens on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use dragon_protocol::launch::Network;
use dragon_transport::interface::{self, Chosen, Class, Rail, Wanted};

use crate::adapter::Job;

/// The name of the one transport that this release has.
pub const TCP: &str = "tcp";

/// Where this node's transport agent listens, and what others are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Addresses to listen on.
    pub listen: Vec<IpAddr>,
    /// The interfaces to announce; empty: the address of the bring-up alone.
    pub chosen: Vec<Chosen>,
    /// The networks of `chosen` that are to be used together.
    pub rails: Vec<Rail>,
    /// Whether other addresses of this node lead to the listener too.
    pub anywhere: bool,
}

/// Checks options that were given.
///
/// # Errors
/// When one names nothing that there is.
pub fn check(network: &Network) -> Result<()> {
    if !matches!(network.transport.as_str(), "" | "auto" | TCP) {
        bail!(
            "there is no transport '{}' in this release; it has {TCP}",
            network.transport
        );
    }
    let _: Wanted = network.interface.parse()?;
    Ok(())
}

/// Decides where this node listens.
///
/// # Errors
/// When the interfaces that were asked for cannot be used on this node.
pub fn place(job: &Job) -> Result<Place> {
    check(&job.network)?;
    let wanted: Wanted = job.network.interface.parse()?;
    if job.all_here() && wanted.is_automatic() {
        return Ok(Place {
            listen: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            anywhere: true,
            ..Place::default()
        });
    }
    let there = interface::list()?;
    if wanted.is_automatic() {
        // Other nodes have a loopback interface of their own.
        let leads_out = |i: &interface::Interface| i.class != Class::Loopback;
        let there: Vec<_> = there.into_iter().filter(leads_out).collect();
        // A node without any is still reached as it was in the bring-up.
        let chosen = interface::choose(&there, &wanted).unwrap_or_default();
        return Ok(Place {
            listen: vec![any_address()],
            rails: interface::rails(&there, &chosen),
            chosen,
            anywhere: true,
        });
    }
    let chosen = interface::choose(&there, &wanted)
        .with_context(|| format!("node {} ({})", job.node, job.host(job.node)))?;
    Ok(Place {
        listen: chosen.iter().map(|c| c.address).collect(),
        rails: interface::rails(&there, &chosen),
        chosen,
        anywhere: false,
    })
}

impl Place {
    /// What other nodes are told: the port at any address, and the listeners on the chosen interfaces.
    #[must_use]
    pub fn announce(&self, listeners: &[SocketAddr]) -> (u16, Vec<SocketAddr>) {
        let first = listeners.first().map_or(0, SocketAddr::port);
        if !self.anywhere {
            return (0, listeners.to_vec());
        }
        let at = |c: &Chosen| SocketAddr::new(c.address, first);
        (first, self.chosen.iter().map(at).collect())
    }
}

/// The address that stands for all: of both families, where this system has IPv6.
#[must_use]
pub fn any_address() -> IpAddr {
    let both = std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    let both = both
        && std::fs::read_to_string("/proc/sys/net/ipv6/bindv6only").is_ok_and(|v| v.trim() == "0");
    if both {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_announced() {
        let chosen = |name: &str, address: &str| Chosen {
            name: name.to_owned(),
            address: address.parse().unwrap(),
        };
        let chosen = vec![chosen("ib0", "10.1.0.7"), chosen("ib1", "fd00::7")];
        let mut place = Place {
            listen: vec![any_address()],
            chosen,
            anywhere: true,
            ..Place::default()
        };
        let expected = (700, vec![at("10.1.0.7:700"), at("[fd00::7]:700")]);
        assert_eq!(place.announce(&[at("[::]:700")]), expected);
        place.anywhere = false;
        let listeners = [at("10.1.0.7:700"), at("[fd00::7]:701")];
        assert_eq!(place.announce(&listeners), (0, listeners.to_vec()));
        assert_eq!(place.announce(&[]), (0, vec![]));
    }

    #[test]
    fn options_are_checked() {
        let network = |transport: &str, interface: &str| Network {
            transport: transport.to_owned(),
            interface: interface.to_owned(),
            ..Network::default()
        };
        for good in [
            network("", ""),
            network("tcp", "ib0,10.0.0.0/8"),
            network("auto", "auto"),
        ] {
            check(&good).unwrap();
        }
        for (bad, text) in [
            (network("ofi", ""), "ofi"),
            (network("", "10.0.0.0/64"), "10.0.0.0/64"),
        ] {
            assert!(format!("{:#}", check(&bad).unwrap_err()).contains(text));
        }
    }
}
