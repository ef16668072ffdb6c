//! Which job is run and what happens to it, by the dice; and how it has to end.

use std::collections::BTreeSet;
use std::fmt;

use super::{HEAD, NODES, Place};

/// One job and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub(super) nodes: u32,
    /// Nodes in namespaces, not on this machine's loopback.
    pub(super) apart: bool,
    /// The job goes on without nodes that are lost.
    pub(super) goes_on: bool,
    pub(super) head: Head,
    pub(super) moment: Moment,
    pub(super) fault: Fault,
    /// Another daemon, which is killed right after.
    pub(super) second: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// A shell that waits.
    Shell,
    /// One that ignores signals, with children in sessions of their own.
    Deaf,
    /// Starts processes on all nodes, one after the other.
    Spawns,
    /// Sends messages to processes of all nodes and back.
    Messages,
    /// A Python program with a pool of workers.
    Python,
}

/// When it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// When a node has entered this state.
    State(u32, &'static str),
    /// When the head says that it is at work.
    Working,
    /// When the head was told to end, and this node has entered this state.
    AtTheEnd(u32, &'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    KillDaemon(u32),
    TerminateDaemon(u32),
    /// Stopped for a moment: stopped is not dead.
    PauseDaemon(u32),
    /// Stopped until it is lost; then it goes on.
    StopDaemon(u32),
    /// What stands behind the remote shell, and waits for the daemon.
    KillSupervisor(u32),
    KillLauncher,
    TerminateLauncher,
    /// Ctrl-C, twice.
    Interrupt,
    KillHead,
    Cut(u32),
    /// Nothing that the one sends reaches the other.
    CutOneWay(u32, u32),
}

impl Fault {
    /// The node that is lost by it, or may be.
    fn victim(self) -> Option<u32> {
        match self {
            Self::KillDaemon(node)
            | Self::StopDaemon(node)
            | Self::KillSupervisor(node)
            | Self::Cut(node)
            // Of the two it is never the first that the others can spare.
            | Self::CutOneWay(node, 0)
            | Self::CutOneWay(0, node) => Some(node),
            _ => None,
        }
    }

    /// Whether nobody hears of it but by silence.
    pub(super) fn is_silent(self) -> bool {
        matches!(
            self,
            Self::StopDaemon(_) | Self::Cut(_) | Self::CutOneWay(..)
        )
    }
}

impl Plan {
    /// The plan with this number of the sequence that the seed begins.
    #[must_use]
    pub fn new(seed: u64, number: u32, place: &Place) -> Self {
        let mut dice = Dice::new(seed, number);
        let nodes = 3 + dice.below(NODES - 2);
        let apart = place.netns.is_some() && dice.below(2) == 0;
        let goes_on = dice.below(3) == 0;
        let heads = [
            Head::Shell,
            Head::Deaf,
            Head::Spawns,
            Head::Messages,
            Head::Python,
        ];
        // A pool of workers does not outlive one of them whose task is lost.
        let python = place.python.is_some() && !goes_on;
        let head = dice.of(&heads[..if python { 5 } else { 4 }]);
        let (victim, below) = (dice.below(nodes), 1 + dice.below(nodes - 1));
        let (from, to) = dice.of(&[(below, 0), (0, below)]);
        let anywhere = [
            Fault::KillDaemon(victim),
            Fault::KillDaemon(victim),
            Fault::StopDaemon(victim),
            Fault::TerminateDaemon(victim),
            Fault::PauseDaemon(victim),
            Fault::None,
            Fault::KillLauncher,
            Fault::TerminateLauncher,
            Fault::Interrupt,
            Fault::KillHead,
        ];
        let with_a_network = [
            Fault::Cut(victim),
            Fault::CutOneWay(from, to),
            Fault::KillSupervisor(victim),
        ];
        let with_a_network = &with_a_network[..if apart { 3 } else { 0 }];
        let faults = [&anywhere[..], with_a_network].concat();
        // A job that is to go on loses something more often.
        let fault = if goes_on && dice.below(2) == 0 {
            let loses = faults
                .iter()
                .copied()
                .filter(|fault| fault.victim().is_some());
            dice.of(&loses.collect::<Vec<_>>())
        } else {
            dice.of(&faults)
        };
        let moment = Moment::new(&mut dice, nodes, goes_on, fault);
        let killed = dice.below(nodes);
        let second = fault.victim().filter(|victim| {
            let alone = matches!(fault, Fault::CutOneWay(..) | Fault::KillSupervisor(_));
            !alone && *victim != killed && moment == Moment::Working && dice.below(3) == 0
        });
        Self {
            nodes,
            apart,
            goes_on,
            head,
            moment,
            fault,
            second: second.map(|_| killed),
        }
    }

    /// The node that is lost, or may be.
    pub(super) fn lost(&self) -> Option<u32> {
        self.fault.victim()
    }

    /// With which exit codes the job may end, given that somebody was there to be struck.
    pub(super) fn expected(&self) -> Vec<i32> {
        let head = i32::from(HEAD);
        let mut codes = match self.fault {
            Fault::None | Fault::PauseDaemon(_) => vec![head],
            Fault::TerminateDaemon(0) | Fault::TerminateLauncher => vec![143],
            Fault::TerminateDaemon(_) => vec![143, 125],
            Fault::KillLauncher | Fault::KillHead => vec![137],
            Fault::Interrupt => vec![130],
            // Of the supervisor's end the daemon hears, and ends in order: the job with it, or the node alone.
            Fault::KillSupervisor(0) if self.goes_on => vec![125],
            Fault::KillSupervisor(_) if self.goes_on => vec![head, 143, 125],
            Fault::KillSupervisor(0) => vec![137],
            Fault::KillSupervisor(_) => vec![143, 125],
            _ if self.goes_on => self.expected_of_survivors(),
            // The first daemon's end is that of the job.
            Fault::KillDaemon(0) => vec![137],
            _ => vec![125],
        };
        if self.second == Some(0) && !self.goes_on {
            codes.push(137);
        }
        // The job may have been over before it was struck, or for another reason at the same time.
        let over = matches!(self.moment, Moment::AtTheEnd(..));
        if over && self.fault != Fault::KillLauncher {
            codes.push(head);
        }
        if matches!(
            self.fault,
            Fault::TerminateDaemon(0) | Fault::TerminateLauncher | Fault::Interrupt
        ) && !matches!(self.moment, Moment::State(..))
        {
            // The head may die of it before its daemon notes that it got it too.
            codes.extend([143, 130]);
        }
        codes
    }

    /// The exit codes of a job that goes on without the nodes that it loses, where it can.
    fn expected_of_survivors(&self) -> Vec<i32> {
        let lost: BTreeSet<u32> = self.fault.victim().into_iter().chain(self.second).collect();
        if lost.contains(&0) {
            // The head was there; behind a remote shell its daemon's death has an exit code of its own.
            let killed =
                self.apart && (self.fault == Fault::KillDaemon(0) || self.second == Some(0));
            return match self.fault {
                _ if killed => vec![137, 125],
                // Awake again, it may see the end of its head before it hears that it was left out.
                Fault::StopDaemon(0) => vec![i32::from(HEAD), 125],
                _ => vec![125],
            };
        }
        let left = (self.nodes as usize - lost.len()) * 2;
        // With the first of them, half is enough. Of two that are lost one after the other each may be spared.
        if left >= self.nodes as usize {
            vec![i32::from(HEAD)]
        } else {
            vec![i32::from(HEAD), 125]
        }
    }
}

impl Moment {
    fn new(dice: &mut Dice, nodes: u32, goes_on: bool, fault: Fault) -> Self {
        let node = dice.below(nodes);
        let below = 1 + dice.below(nodes - 1);
        if matches!(
            fault,
            Fault::StopDaemon(_) | Fault::CutOneWay(..) | Fault::KillSupervisor(_)
        ) {
            return Self::Working;
        }
        let while_up = [
            Self::Working,
            Self::Working,
            Self::Working,
            Self::State(node, "RUNNING"),
            Self::AtTheEnd(node, "ENDING"),
            Self::AtTheEnd(below, "GONE"),
        ];
        if goes_on {
            // Nobody is a member before all are up.
            return dice.of(&while_up);
        }
        let coming_up = [
            Self::State(node, "ALONE"),
            Self::State(below, "CONNECTING"),
            Self::State(node, "GATHERING"),
            Self::State(below, "READY"),
        ];
        dice.of(&[&while_up[..], &coming_up].concat())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            nodes,
            apart,
            goes_on,
            head,
            moment,
            fault,
            second,
        } = self;
        let place = if *apart {
            "in namespaces"
        } else {
            "on this machine"
        };
        let policy = if *goes_on { " that go on" } else { "" };
        write!(f, "{nodes} nodes {place}{policy}, {head:?}, {fault:?}")?;
        if let Some(second) = second {
            write!(f, " and KillDaemon({second})")?;
        }
        write!(f, " at {moment:?}")
    }
}

/// Numbers that follow from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn new(seed: u64, number: u32) -> Self {
        let mut dice = Self(seed ^ u64::from(number).wrapping_mul(0x2545_f491_4f6c_dd1d));
        dice.next();
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u32) -> u32 {
        // Below a u32: it fits.
        u32::try_from(self.next() % u64::from(limit.max(1))).unwrap_or(0)
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(u32::try_from(all.len()).unwrap_or(1)) as usize]
    }
}
