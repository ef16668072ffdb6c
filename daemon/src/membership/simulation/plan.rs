//! What goes wrong in a history, and what clients ask meanwhile.

use std::collections::BTreeSet;

use dragon_protocol::names::{NameOp, Value};

use super::{Event, Fault, Kind, MS, TROUBLE, World};
use crate::membership::Time;

impl World {
    pub(super) fn plan(&mut self, kind: Kind) {
        let count = self.nodes.len();
        let spread =
            [TROUBLE - 1000 * MS, 3000 * MS, 300 * MS][usize::try_from(self.below(3)).unwrap()];
        let faults = 1 + self.below(12);
        let mut kills = 0;
        for _ in 0..faults {
            let time = self.now + 500 * MS + self.below(spread);
            let long = self.below(4000 * MS);
            let short = self.below(250 * MS);
            let length = if kind == Kind::Nuisances { short } else { long };
            let end = (time + length).min(self.now + TROUBLE);
            let what = match kind {
                Kind::Kills => 0,
                Kind::Nuisances => 1 + self.below(4),
                Kind::Cuts => 1 + self.below(6),
                Kind::Everything => self.below(7),
            };
            let node = self.any_node();
            let others: Vec<_> = (0..count).filter(|other| *other != node).collect();
            let other = others[usize::try_from(self.below(others.len() as u64)).unwrap()];
            match what {
                0 => {
                    if kind == Kind::Kills && (kills + 1) * 2 >= count {
                        continue;
                    }
                    kills += 1;
                    let host = self.below(2) == 0;
                    self.at(time, Event::Fault(Fault::Kill { node, host }));
                }
                1 => {
                    self.at(time, Event::Fault(Fault::Stop { node }));
                    self.at(end, Event::Fault(Fault::Resume { node }));
                }
                2 => self.at(time, Event::Fault(Fault::Reset { one: node, other })),
                3 => self.cut(time, end, &[(node, other)]),
                4 => self.cut(time, end, &[(node, other), (other, node)]),
                5 => {
                    // One node from all others, perhaps one way only.
                    let mut blocks = Vec::new();
                    let ways = self.below(3);
                    for other in others {
                        blocks.extend((ways != 1).then_some((node, other)));
                        blocks.extend((ways != 2).then_some((other, node)));
                    }
                    self.cut(time, end, &blocks);
                }
                _ => {
                    let mut blocks = Vec::new();
                    let side: BTreeSet<_> = (0..count).filter(|_| self.below(2) == 0).collect();
                    for one in 0..count {
                        for other in 0..count {
                            if side.contains(&one) != side.contains(&other) {
                                blocks.push((one, other));
                            }
                        }
                    }
                    self.cut(time, end, &blocks);
                }
            }
        }
    }

    /// Clients publish names, and take some of them back.
    pub(super) fn plan_clients(&mut self) {
        for number in 0..self.below(40) {
            let node = self.any_node();
            let time = self.now + self.below(TROUBLE);
            let name = format!("name {number}");
            let value = Value::Bytes(number.to_le_bytes().to_vec());
            let op = NameOp::Publish(name.clone(), value, None);
            self.at(time, Event::Client { node, op });
            if self.below(4) == 0 {
                self.asked_back.insert(name.clone());
                let time = time + self.below(3000 * MS);
                let (node, op) = (self.any_node(), NameOp::Unpublish(name, None));
                self.at(time, Event::Client { node, op });
            }
        }
    }

    fn cut(&mut self, time: Time, end: Time, blocks: &[(usize, usize)]) {
        for (from, to) in blocks.iter().copied() {
            self.at(time, Event::Fault(Fault::Block { from, to }));
            self.at(end, Event::Fault(Fault::Unblock { from, to }));
        }
    }
}
