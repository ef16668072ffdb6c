//! Where processes go. The node of whoever asks decides alone, from the table of nodes: no other is asked.

use dragon_protocol::control::{Membership, SpawnRequest};
use dragon_protocol::process::{Cpus, Place, Policy};
use dragon_protocol::{Code, NodeIndex, env};

/// Where the next process goes, policy by policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Turns {
    /// Position of the node that is next in turn.
    next: usize,
    /// Position of the node that is being filled, and how many of its CPUs are.
    filling: (usize, u32),
}

impl Turns {
    /// Turns that begin at a position.
    pub(super) fn beginning_at(position: usize) -> Self {
        Self {
            next: position,
            filling: (position, 0),
        }
    }

    /// The node of each process of one request.
    pub(super) fn place_all(
        &mut self,
        spawns: &[&SpawnRequest],
        me: NodeIndex,
        membership: &Membership,
    ) -> Vec<Result<NodeIndex, (Code, String)>> {
        let blocks = spawns
            .iter()
            .filter(|spawn| policy(spawn) == Ok(Policy::Block));
        let (blocks, mut block) = (blocks.count(), 0);
        let place = |spawn: &&SpawnRequest| {
            let policy = match &spawn.place {
                Place::Node(node) => return Ok(*node),
                Place::Host(name) => return host(name, membership),
                _ => policy(spawn)?,
            };
            Ok(match policy {
                Policy::Block => {
                    block += 1;
                    let position = (block - 1) * membership.nodes.len() / blocks.max(1);
                    at(position, me, membership)
                }
                other => self.place(other, cpus(spawn), me, membership),
            })
        };
        spawns.iter().map(place).collect()
    }

    fn place(
        &mut self,
        policy: Policy,
        cpus: u32,
        me: NodeIndex,
        membership: &Membership,
    ) -> NodeIndex {
        let nodes = membership.nodes.len().max(1);
        match policy {
            Policy::Local => me,
            Policy::Remote if nodes > 1 => loop {
                let node = self.in_turn(me, membership);
                if node != me {
                    return node;
                }
            },
            Policy::Packed => {
                let (mut position, mut used) = self.filling;
                let granted = membership.nodes.get(position % nodes);
                if used > 0 && granted.is_none_or(|node| used + cpus > node.cpus) {
                    (position, used) = (position + 1, 0);
                }
                self.filling = (position % nodes, used.saturating_add(cpus));
                at(position % nodes, me, membership)
            }
            _ => self.in_turn(me, membership),
        }
    }

    fn in_turn(&mut self, me: NodeIndex, membership: &Membership) -> NodeIndex {
        let nodes = membership.nodes.len().max(1);
        let position = self.next % nodes;
        self.next = (position + 1) % nodes;
        at(position, me, membership)
    }
}

/// CPUs that a process counts with.
fn cpus(spawn: &SpawnRequest) -> u32 {
    match &spawn.reservation.cpus {
        Cpus::Count(count) | Cpus::Numa { count, .. } => (*count).max(1),
        Cpus::These(ids) => u32::try_from(ids.len()).unwrap_or(u32::MAX).max(1),
        _ => 1,
    }
}

fn policy(spawn: &SpawnRequest) -> Result<Policy, (Code, String)> {
    if let Place::Policy(policy) = spawn.place {
        return Ok(policy);
    }
    let mut variables = spawn.environment.iter();
    let named = variables.find(|(name, _)| name == env::PLACEMENT.as_bytes());
    match named.map(|(_, value)| value.as_slice()) {
        None | Some(b"") => Ok(Policy::RoundRobin),
        Some(name) => Policy::from_name(name).ok_or_else(|| {
            let text = format!(
                "{} is '{}'; it is one of roundrobin, block, packed, local and remote",
                env::PLACEMENT,
                name.escape_ascii()
            );
            (Code::InvalidArgument, text)
        }),
    }
}

fn at(position: usize, me: NodeIndex, membership: &Membership) -> NodeIndex {
    membership.nodes.get(position).map_or(me, |info| info.node)
}

fn host(name: &str, membership: &Membership) -> Result<NodeIndex, (Code, String)> {
    let mut nodes = membership.nodes.iter();
    if let Some(info) = nodes.find(|info| info.host == name) {
        return Ok(info.node);
    }
    let hosts = membership.nodes.iter().take(8);
    let known: Vec<_> = hosts.map(|info| info.host.as_str()).collect();
    let more = membership.nodes.len() - known.len();
    let more = (more > 0).then(|| format!(" and {more} more"));
    let text = format!(
        "no node of this runtime has the host name {name}; they are {}{}",
        known.join(", "),
        more.unwrap_or_default()
    );
    Err((Code::InvalidArgument, text))
}

#[cfg(test)]
mod tests {
    use dragon_protocol::RuntimeId;
    use dragon_protocol::control::Program;
    use dragon_protocol::launch::NodeInfo;
    use dragon_protocol::process::Reservation;

    use super::*;

    fn nodes(cpus: &[u32]) -> Membership {
        let info = |(index, cpus): (u32, &u32)| NodeInfo {
            node: NodeIndex::new(index).unwrap(),
            host: format!("n{index}"),
            address: String::new(),
            control_port: 0,
            data_port: 0,
            data: Vec::new(),
            cpus: *cpus,
            memory: 0,
            pid: 0,
        };
        Membership {
            runtime: RuntimeId(0),
            global_services: NodeIndex::FIRST,
            nodes: (0..).zip(cpus).map(info).collect(),
        }
    }

    fn request(place: Place) -> SpawnRequest {
        SpawnRequest {
            place,
            ..SpawnRequest::new(Program::Executable(vec![b"a".to_vec()]))
        }
    }

    fn placed(turns: &mut Turns, requests: &[SpawnRequest], membership: &Membership) -> Vec<u32> {
        let requests: Vec<_> = requests.iter().collect();
        let all = turns.place_all(&requests, NodeIndex::FIRST, membership);
        all.into_iter().map(|node| node.unwrap().get()).collect()
    }

    #[test]
    fn each_policy_spreads_as_it_says() {
        let membership = nodes(&[2, 4, 1]);
        let mut turns = Turns::beginning_at(1);
        let mut all = |policy, count| {
            let requests = vec![request(Place::Policy(policy)); count];
            placed(&mut turns, &requests, &membership)
        };
        assert_eq!(all(Policy::RoundRobin, 4), [1, 2, 0, 1]);
        // The turn goes on with the next request.
        assert_eq!(all(Policy::RoundRobin, 1), [2]);
        assert_eq!(all(Policy::Block, 7), [0, 0, 0, 1, 1, 2, 2]);
        assert_eq!(all(Policy::Block, 2), [0, 1]);
        assert_eq!(all(Policy::Packed, 8), [1, 1, 1, 1, 2, 0, 0, 1]);
        assert_eq!(all(Policy::Local, 2), [0, 0]);
        assert_eq!(all(Policy::Remote, 3), [1, 2, 1]);
    }

    #[test]
    fn packed_counts_reserved_cpus() {
        let membership = nodes(&[4, 4]);
        let wide = SpawnRequest {
            reservation: Reservation {
                cpus: Cpus::Count(3),
                ..Reservation::default()
            },
            ..request(Place::Policy(Policy::Packed))
        };
        let narrow = request(Place::Policy(Policy::Packed));
        let requests = [wide.clone(), narrow, wide.clone(), wide];
        assert_eq!(
            placed(&mut Turns::default(), &requests, &membership),
            [0, 0, 1, 0]
        );
    }

    #[test]
    fn hosts_and_the_environment_are_read_or_refused() {
        let membership = nodes(&[1, 1]);
        let mut by_environment = request(Place::Default);
        by_environment
            .environment
            .push((env::PLACEMENT.into(), b"local".to_vec()));
        let mut wrong = request(Place::Default);
        wrong
            .environment
            .push((env::PLACEMENT.into(), b"nearby".to_vec()));
        let requests = [
            request(Place::Host("n1".to_owned())),
            by_environment,
            wrong,
            request(Place::Host("n9".to_owned())),
        ];
        let requests: Vec<_> = requests.iter().collect();
        let all = Turns::beginning_at(1).place_all(&requests, NodeIndex::FIRST, &membership);
        assert_eq!(all[0], Ok(NodeIndex::new(1).unwrap()));
        assert_eq!(all[1], Ok(NodeIndex::FIRST));
        let text = |place: usize| all[place].clone().unwrap_err().1;
        assert!(text(2).contains("'nearby'; it is one of roundrobin"));
        assert!(text(3).contains("they are n0, n1"));
    }
}
