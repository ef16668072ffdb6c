//! Which network interfaces carry the frames between nodes.
//!
//! The user names them, by name, regular expression or network ([`Wanted`]); without a word, [`choose`] takes the fastest
//! ones of the best [`Class`] that are up. The decision is a pure function over what [`list`] finds.

mod system;

use core::fmt;
use core::str::FromStr;
use std::net::{IpAddr, Ipv6Addr};

use regex_lite::Regex;

pub use self::system::list;

/// A network interface of this machine, as far as a choice depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// What it is.
    pub class: Class,
    /// Megabits a second, where it says so.
    pub speed: Option<u32>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// How many leading bits of each address are those of its network; fewer entries than addresses: it is not known.
    pub prefixes: Vec<u8>,
}

/// What an interface is, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// An adapter, or adapters bonded, or a VLAN on one.
    Adapter,
    /// Something virtual: what a container sees as its network.
    Virtual,
    /// A bridge. On a host of virtual machines it has the address of the adapter in it.
    Bridge,
    /// What container engines and hypervisors make for themselves: it leads nowhere but to this machine.
    Container,
    /// The loopback interface.
    Loopback,
}

/// Which interfaces are to be used.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    text: String,
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
enum Pattern {
    Name(String, Option<Regex>),
    Network(IpAddr, u8),
}

/// An interface that was chosen, with the address that other nodes shall use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

/// A network that a node uses together with others: the address of its interface, and how many leading bits of it are the
/// network's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rail {
    /// The address.
    pub address: IpAddr,
    /// The length of the prefix.
    pub bits: u8,
}

impl Rail {
    /// Whether an address is on this network.
    #[must_use]
    pub fn leads_to(&self, address: IpAddr) -> bool {
        within(address, self.address, self.bits)
    }
}

/// At most so many interfaces are used together.
pub const MOST: usize = 8;

/// Why no interface was chosen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InterfaceError {
    /// The text is no choice of interfaces.
    #[error(
        "'{item}' names no interface: {why}; give names (ib0), regular expressions (ib[0-3]) or networks (10.1.0.0/16), separated by commas"
    )]
    Pattern {
        /// The part that is wrong.
        item: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing that matches can be used.
    #[error("no interface for '{wanted}' that is up and has an address; this node has {there}")]
    NoMatch {
        /// What was asked for.
        wanted: String,
        /// The interfaces that there are.
        there: String,
    },
    /// There is nothing at all.
    #[error("no network interface is up and has an address; this node has {there}")]
    None {
        /// The interfaces that there are.
        there: String,
    },
    /// The system does not tell.
    #[error("cannot list the network interfaces: {0}")]
    List(#[source] std::io::Error),
}

impl Wanted {
    /// Whether the choice is left to [`choose`].
    #[must_use]
    pub fn is_automatic(&self) -> bool {
        self.patterns.is_empty()
    }
}

impl FromStr for Wanted {
    type Err = InterfaceError;

    /// Reads names, regular expressions and networks, separated by commas. Nothing, or `auto`, leaves the choice to
    /// [`choose`].
    fn from_str(text: &str) -> Result<Self, InterfaceError> {
        let text = text.trim();
        if text.is_empty() || text == "auto" {
            return Ok(Self::default());
        }
        let items = text.split(',').map(str::trim);
        Ok(Self {
            text: text.to_owned(),
            patterns: items.map(pattern).collect::<Result<_, _>>()?,
        })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_automatic() {
            "auto"
        } else {
            &self.text
        })
    }
}

/// Chooses among the interfaces of a node.
///
/// What the user names is taken in the order of the names, as far as it is up and has an address of use. Left to itself,
/// this takes the best [`Class`] that is there, and of it all interfaces of the highest speed: the rails of a node that
/// has several, and not the slow one for administration beside them.
///
/// # Errors
/// When nothing that was asked for can be used. The text names what was asked for and what there is.
///
/// # Examples
/// ```
/// use dragon_transport::interface::{Class, Interface, choose};
///
/// let interface = |name: &str, class, address: &str| Interface {
///     name: name.to_owned(),
///     up: true,
///     class,
///     speed: None,
///     addresses: vec![address.parse().unwrap()],
///     prefixes: vec![24],
/// };
/// let there = [
///     interface("lo", Class::Loopback, "127.0.0.1"),
///     interface("docker0", Class::Container, "172.17.0.1"),
///     interface("eth0", Class::Adapter, "10.0.0.7"),
/// ];
/// let chosen = choose(&there, &"auto".parse()?)?;
/// assert_eq!(chosen[0].name, "eth0");
/// let chosen = choose(&there, &"172.16.0.0/12".parse()?)?;
/// assert_eq!(chosen[0].name, "docker0");
/// # Ok::<(), dragon_transport::interface::InterfaceError>(())
/// ```
pub fn choose(there: &[Interface], wanted: &Wanted) -> Result<Vec<Chosen>, InterfaceError> {
    let chosen = if wanted.is_automatic() {
        automatic(there)
    } else {
        asked_for(there, wanted)
    };
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let there = describe(there);
    Err(if wanted.is_automatic() {
        InterfaceError::None { there }
    } else {
        let wanted = wanted.to_string();
        InterfaceError::NoMatch { wanted, there }
    })
}

/// The networks of chosen interfaces that are to be used together: of those with the highest speed, one for each network,
/// since the system sends all that goes to one network through one interface. None where only one is left.
#[must_use]
pub fn rails(there: &[Interface], chosen: &[Chosen]) -> Vec<Rail> {
    let of = |c: &Chosen| there.iter().find(|i| i.name == c.name);
    let speed = chosen.iter().filter_map(|c| Some(of(c)?.speed)).max();
    let mut rails: Vec<Rail> = Vec::new();
    for Chosen { name, address } in chosen {
        let interface = there.iter().find(|i| i.name == *name);
        let Some(interface) = interface.filter(|i| Some(i.speed) == speed) else {
            continue;
        };
        let at = interface.addresses.iter().position(|a| a == address);
        let bits = at.and_then(|at| interface.prefixes.get(at));
        // One that leads everywhere is none that both nodes are on.
        let Some(&bits) = bits.filter(|bits| **bits > 0) else {
            continue;
        };
        let rail = Rail {
            address: *address,
            bits,
        };
        let same = |other: &Rail| other.leads_to(*address) || rail.leads_to(other.address);
        if !rails.iter().any(same) {
            rails.push(rail);
        }
    }
    if rails.len() < 2 { Vec::new() } else { rails }
}

fn automatic(there: &[Interface]) -> Vec<Chosen> {
    let usable = |i: &&Interface| i.up && address(i, |_| true).is_some();
    let Some(best) = there.iter().filter(usable).map(|i| i.class).min() else {
        return Vec::new();
    };
    let of_class = |i: &&Interface| usable(i) && i.class == best;
    let speed = there.iter().filter(of_class).map(|i| i.speed).max();
    let fastest = there
        .iter()
        .filter(|i| of_class(i) && Some(i.speed) == speed);
    let chosen = fastest.filter_map(|i| Some(chosen(i, address(i, |_| true)?)));
    chosen.take(MOST).collect()
}

fn asked_for(there: &[Interface], wanted: &Wanted) -> Vec<Chosen> {
    let mut all: Vec<Chosen> = Vec::new();
    for pattern in &wanted.patterns {
        for interface in there.iter().filter(|i| i.up) {
            let found = match pattern {
                // A name stands for itself, whatever it would mean as an expression.
                Pattern::Name(name, expression) => {
                    let exact = there.iter().any(|i| i.name == *name);
                    let matches = if exact {
                        interface.name == *name
                    } else {
                        expression
                            .as_ref()
                            .is_some_and(|e| e.is_match(&interface.name))
                    };
                    matches.then(|| address(interface, |_| true)).flatten()
                }
                Pattern::Network(network, bits) => {
                    address(interface, |a| within(a, *network, *bits))
                }
            };
            let chosen = found.map(|address| chosen(interface, address));
            all.extend(chosen.filter(|c| !all.contains(c)));
        }
    }
    all.truncate(MOST);
    all
}

fn chosen(interface: &Interface, address: IpAddr) -> Chosen {
    Chosen {
        name: interface.name.clone(),
        address,
    }
}

/// The address of an interface that others shall use: one that means the same on every node, IPv4 before IPv6.
fn address(interface: &Interface, allowed: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let rank = |address: &IpAddr| match address {
        IpAddr::V4(v4) if v4.is_link_local() => 2,
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => 1,
    };
    // A link-local IPv6 address is none without the number of an interface, which is another one on every node.
    let usable = |address: &IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_unspecified(),
        IpAddr::V6(v6) => !is_link_local(v6) && !v6.is_unspecified(),
    };
    let addresses = interface.addresses.iter().copied();
    addresses
        .filter(|a| usable(a) && allowed(*a))
        .min_by_key(rank)
}

fn is_link_local(address: &Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

fn pattern(item: &str) -> Result<Pattern, InterfaceError> {
    let bad = |why: String| InterfaceError::Pattern {
        item: item.to_owned(),
        why,
    };
    if item.is_empty() {
        return Err(bad("it is empty".to_owned()));
    }
    let (network, bits) = match item.split_once('/') {
        Some((network, bits)) => (network, Some(bits)),
        None => (item, None),
    };
    if let Ok(network) = network.parse::<IpAddr>() {
        let most = if network.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), str::parse::<u8>);
        let bits = bits.ok().filter(|bits| *bits <= most);
        let bits = bits.ok_or_else(|| bad(format!("a prefix length is 0 to {most}")))?;
        return Ok(Pattern::Network(network, bits));
    }
    if bits.is_some() {
        return Err(bad(format!("'{network}' is not an IP address")));
    }
    let expression = Regex::new(&format!("^(?:{item})$"));
    let plain = |c: char| c.is_alphanumeric() || "._-@:".contains(c);
    match expression {
        Ok(expression) => Ok(Pattern::Name(item.to_owned(), Some(expression))),
        Err(_) if item.chars().all(plain) => Ok(Pattern::Name(item.to_owned(), None)),
        Err(error) => Err(bad(error.to_string())),
    }
}

fn within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let same = |a: u128, b: u128, width: u32| {
        let shift = width - u32::from(bits);
        a.checked_shr(shift) == b.checked_shr(shift)
    };
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => same(a.to_bits().into(), n.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(n)) => same(a.to_bits(), n.to_bits(), 128),
        _ => false,
    }
}

fn describe(there: &[Interface]) -> String {
    if there.is_empty() {
        return "none".to_owned();
    }
    let one = |interface: &Interface| {
        let state = if interface.up { "up" } else { "down" };
        let addresses: Vec<String> = interface.addresses.iter().map(IpAddr::to_string).collect();
        let addresses = match addresses.as_slice() {
            [] => "no address".to_owned(),
            some => some.join(" "),
        };
        format!("{} ({state}, {addresses})", interface.name)
    };
    there.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
