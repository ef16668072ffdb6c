//! What strangers may cost: connections to an open port that have not proved the job key.
//!
//! A listener keeps those connections in a [`HalfOpen`], which bounds their number and their time, and tells of the ones
//! that it refuses through [`Refusals`], which bounds the log. Both look at where a connection comes from, so that a flood
//! from one address pushes out and hides its own connections before those of anybody else.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// How many connections may be in their handshake at once: all nodes of a large job may connect at the same moment.
pub const HALF_OPEN: usize = 1024;
/// The part of them that one source may have.
const SHARE: usize = 4;
/// How long a handshake may take.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// Connections in their handshake, in the order in which they came.
#[derive(Debug)]
pub struct HalfOpen<T> {
    limit: usize,
    waiting: VecDeque<Stranger<T>>,
}

/// A connection in its handshake.
#[derive(Debug)]
pub struct Stranger<T> {
    /// The connection.
    pub connection: T,
    /// Where it comes from.
    pub from: SocketAddr,
    /// CLOCK_MONOTONIC nanoseconds at which its time is over.
    until: u64,
}

impl<T> HalfOpen<T> {
    /// Room for so many.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            waiting: VecDeque::new(),
        }
    }

    /// A connection came; it may stay until then.
    pub fn enter(&mut self, connection: T, from: SocketAddr, until: u64) {
        self.waiting.push_back(Stranger {
            connection,
            from,
            until,
        });
    }

    /// The connection that `is` names has proved itself, or is gone.
    pub fn leave(&mut self, is: impl Fn(&T) -> bool) -> Option<Stranger<T>> {
        let at = self.waiting.iter().position(|s| is(&s.connection))?;
        self.waiting.remove(at)
    }

    /// The connection that has to go because there are too many, or because its source has more than a quarter of what is
    /// allowed: of the source that has the most, the oldest.
    pub fn surplus(&mut self) -> Option<Stranger<T>> {
        let share = self.share();
        if self.waiting.len() <= share {
            return None;
        }
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for stranger in &self.waiting {
            *counts.entry(source(stranger.from)).or_default() += 1;
        }
        let most = counts.values().copied().max()?;
        if self.waiting.len() <= self.limit && most <= share {
            return None;
        }
        let of_those = |s: &Stranger<T>| counts.get(&source(s.from)) == Some(&most);
        let at = self.waiting.iter().position(of_those)?;
        self.waiting.remove(at)
    }

    /// A connection whose time is over.
    pub fn overdue(&mut self, now: u64) -> Option<Stranger<T>> {
        let first = self.waiting.front()?;
        if first.until > now {
            return None;
        }
        self.waiting.pop_front()
    }

    /// When the next one's time is over.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.waiting.front().map(|first| first.until)
    }

    /// How many one source may have.
    #[must_use]
    pub fn share(&self) -> usize {
        self.limit.div_ceil(SHARE)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Which refusals get a log line: of each source one a second. A line says how many of its source were not told.
#[derive(Debug, Default)]
pub struct Refusals {
    sources: Vec<Told>,
    /// For those that find no place among [`SOURCES`].
    others: Told,
}

/// How many sources are told apart.
const SOURCES: usize = 32;
/// Nanoseconds between two lines about one source.
const PAUSE: u64 = 1_000_000_000;

#[derive(Debug, Default)]
struct Told {
    source: Option<IpAddr>,
    /// When the last line was written; 0: never.
    at: u64,
    untold: u64,
}

impl Refusals {
    /// A connection is refused at `now` (CLOCK_MONOTONIC nanoseconds). `Some`: it gets a line, and so many before it got
    /// none.
    pub fn tell(&mut self, from: SocketAddr, now: u64) -> Option<u64> {
        let source = source(from);
        let known = self.sources.iter().position(|t| t.source == Some(source));
        let told = match known {
            Some(at) => &mut self.sources[at],
            None => self.place(source, now),
        };
        if told.at != 0 && now.saturating_sub(told.at) < PAUSE {
            told.untold += 1;
            return None;
        }
        told.at = now.max(1);
        Some(core::mem::take(&mut told.untold))
    }

    fn place(&mut self, source: IpAddr, now: u64) -> &mut Told {
        let new = Told {
            source: Some(source),
            ..Told::default()
        };
        if self.sources.len() < SOURCES {
            self.sources.push(new);
            let last = self.sources.len() - 1;
            return &mut self.sources[last];
        }
        // One that may be forgotten: what it has not been told of would be told now.
        let over = |told: &Told| now.saturating_sub(told.at) >= PAUSE;
        match self.sources.iter().position(over) {
            Some(at) => {
                self.others.untold += self.sources[at].untold;
                self.sources[at] = new;
                &mut self.sources[at]
            }
            None => &mut self.others,
        }
    }
}

/// What counts as one source: an IPv4 address, also in its IPv6 form, or the /64 network of an IPv6 address.
fn source(from: SocketAddr) -> IpAddr {
    match from.ip().to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests;
