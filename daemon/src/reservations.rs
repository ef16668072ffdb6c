//! Who has which CPUs and GPUs of the node: what processes reserve from what the job was granted.
//!
//! No clock and no I/O: the daemon's loop takes and gives back. Whoever waits does so in the order of arrival, and nobody
//! who came later overtakes: a process that wants many CPUs is served in the end.

use std::collections::VecDeque;
use std::fmt::Write as _;

use dragon_protocol::process::{Cpus, Gpus, Reservation};

/// Holders that a sentence names; of more, it says how many.
const NAMED: usize = 4;

/// A CPU that was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// The kernel's number.
    pub id: u32,
    /// Its NUMA node.
    pub numa: u32,
}

/// What is reserved for a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// CPUs by number, ascending.
    pub cpus: Vec<u32>,
    /// GPUs by name, in the order in which they were granted.
    pub gpus: Vec<String>,
}

/// Why nothing was reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// The job was granted less: waiting is of no use.
    Never(String),
    /// Others have it.
    Now(String),
}

/// What was granted on the node, and who has it.
#[derive(Debug, Default)]
pub struct Ledger {
    cpus: Vec<Place<Cpu>>,
    gpus: Vec<Place<String>>,
    /// Names of the holders, for sentences.
    holders: Vec<(u64, String)>,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Place<T> {
    what: T,
    holder: Option<u64>,
}

#[derive(Debug)]
struct Waiting {
    holder: u64,
    name: String,
    wanted: Reservation,
}

impl Ledger {
    /// A ledger in which everything is free.
    #[must_use]
    pub fn new(cpus: Vec<Cpu>, gpus: Vec<String>) -> Self {
        let free = |what| Place { what, holder: None };
        let free_gpu = |what| Place { what, holder: None };
        Self {
            cpus: cpus.into_iter().map(free).collect(),
            gpus: gpus.into_iter().map(free_gpu).collect(),
            ..Self::default()
        }
    }

    /// Reserves all that is wanted, or nothing. `holder` is a number that gives it back later, `name` names it to people.
    ///
    /// # Errors
    /// What is missing, and who has it.
    pub fn take(
        &mut self,
        holder: u64,
        name: &str,
        wanted: &Reservation,
    ) -> Result<Held, Shortage> {
        if let (false, Some(first)) = (wanted.is_empty(), self.waiting.front()) {
            self.possible(wanted)?;
            let text = format!(
                "{} others wait for CPUs or GPUs of this node, {} first; wait too (a time to wait goes with the request)",
                self.waiting.len(),
                first.name
            );
            return Err(Shortage::Now(text));
        }
        self.take_now(holder, name, wanted)
    }

    /// Has a holder wait for what it wants, behind the others.
    pub fn wait(&mut self, holder: u64, name: &str, wanted: Reservation) {
        self.waiting.push_back(Waiting {
            holder,
            name: name.to_owned(),
            wanted,
        });
    }

    /// Ends a wait without success; why it has lasted so long. `None` when it is not waiting (any more).
    pub fn give_up(&mut self, holder: u64) -> Option<String> {
        let place = self
            .waiting
            .iter()
            .position(|waiting| waiting.holder == holder)?;
        let waiting = self.waiting.remove(place)?;
        Some(match self.choose(&waiting.wanted) {
            Err(Shortage::Never(text) | Shortage::Now(text)) => text,
            Ok(_) => format!("others, who came first, wait for more: {} do", place),
        })
    }

    /// Gives back what a holder has. Returns who is served now of those who wait.
    pub fn give_back(&mut self, holder: u64) -> Vec<(u64, Held)> {
        let Some(place) = self.holders.iter().position(|(other, _)| *other == holder) else {
            return Vec::new();
        };
        self.holders.swap_remove(place);
        let free = |place: &mut Option<u64>| *place = place.filter(|other| *other != holder);
        self.cpus.iter_mut().for_each(|cpu| free(&mut cpu.holder));
        self.gpus.iter_mut().for_each(|gpu| free(&mut gpu.holder));
        self.serve()
    }

    /// Serves those who wait, as far as there is something for the first.
    pub fn serve(&mut self) -> Vec<(u64, Held)> {
        let mut served = Vec::new();
        while let Some(first) = self.waiting.pop_front() {
            match self.take_now(first.holder, &first.name, &first.wanted) {
                Ok(held) => served.push((first.holder, held)),
                Err(_) => {
                    self.waiting.push_front(first);
                    break;
                }
            }
        }
        served
    }

    /// Granted and free CPUs, granted and free GPUs.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, u64); 4] {
        let free_cpus = self.cpus.iter().filter(|cpu| cpu.holder.is_none()).count();
        let free_gpus = self.gpus.iter().filter(|gpu| gpu.holder.is_none()).count();
        [
            ("cpus_granted", self.cpus.len() as u64),
            ("cpus_free", free_cpus as u64),
            ("gpus_granted", self.gpus.len() as u64),
            ("gpus_free", free_gpus as u64),
        ]
    }

    fn take_now(
        &mut self,
        holder: u64,
        name: &str,
        wanted: &Reservation,
    ) -> Result<Held, Shortage> {
        self.possible(wanted)?;
        let held = self.choose(wanted)?;
        for cpu in &mut self.cpus {
            if held.cpus.contains(&cpu.what.id) {
                cpu.holder = Some(holder);
            }
        }
        for gpu in &mut self.gpus {
            if held.gpus.contains(&gpu.what) {
                gpu.holder = Some(holder);
            }
        }
        if held != Held::default() {
            self.holders.push((holder, name.to_owned()));
        }
        Ok(held)
    }

    /// Whether the job was granted what is wanted.
    fn possible(&self, wanted: &Reservation) -> Result<(), Shortage> {
        let all: Vec<&Cpu> = self.cpus.iter().map(|cpu| &cpu.what).collect();
        let never = |text: String| Err(Shortage::Never(text));
        let granted = format!("the job was granted {} CPUs on this node", all.len());
        match &wanted.cpus {
            Cpus::Count(count) if *count as usize > all.len() => {
                return never(format!("{count} CPUs wanted, {granted}; ask for fewer"));
            }
            Cpus::These(ids) => {
                if let Some(id) = ids.iter().find(|id| all.iter().all(|cpu| cpu.id != **id)) {
                    let known = ranges(all.iter().map(|cpu| cpu.id));
                    return never(format!("CPU {id} wanted, {granted}: {known}"));
                }
            }
            Cpus::Numa { node, count } => {
                let there = all.iter().filter(|cpu| cpu.numa == *node).count();
                if there == 0 || *count as usize > there {
                    let mut nodes: Vec<u32> = all.iter().map(|cpu| cpu.numa).collect();
                    nodes.sort_unstable();
                    nodes.dedup();
                    return never(format!(
                        "{} CPUs of NUMA node {node} wanted, the job was granted {there} there and CPUs of the NUMA nodes {}",
                        (*count).max(1),
                        ranges(nodes)
                    ));
                }
            }
            _ => {}
        }
        let names: Vec<&str> = self.gpus.iter().map(|gpu| gpu.what.as_str()).collect();
        let granted = match names.len() {
            0 => "the job was granted none on this node (CUDA_VISIBLE_DEVICES, ROCR_VISIBLE_DEVICES, ZE_AFFINITY_MASK and SLURM_STEP_GPUS name none)".to_owned(),
            some => format!("the job was granted {some} on this node: {}", names.join(", ")),
        };
        match &wanted.gpus {
            Gpus::Count(count) if *count as usize > names.len() => {
                never(format!("{count} GPUs wanted, {granted}; ask for fewer"))
            }
            Gpus::These(these) => match these.iter().find(|gpu| !names.contains(&gpu.as_str())) {
                Some(gpu) => never(format!("GPU {gpu} wanted, {granted}")),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// What a process gets of what is free.
    fn choose(&self, wanted: &Reservation) -> Result<Held, Shortage> {
        let free: Vec<&Cpu> = self
            .cpus
            .iter()
            .filter(|cpu| cpu.holder.is_none())
            .map(|cpu| &cpu.what)
            .collect();
        let of_node = |node: u32| free.iter().filter(move |cpu| cpu.numa == node);
        let mut cpus: Vec<u32> = match &wanted.cpus {
            Cpus::Count(count) => {
                let count = *count as usize;
                // Of the NUMA node that fits best, so that larger wishes still find one.
                let mut nodes: Vec<u32> = free.iter().map(|cpu| cpu.numa).collect();
                nodes.sort_unstable();
                nodes.dedup();
                let fitting = nodes
                    .into_iter()
                    .filter(|node| of_node(*node).count() >= count)
                    .min_by_key(|node| of_node(*node).count());
                let ids: Vec<u32> = match fitting {
                    Some(node) => of_node(node).map(|cpu| cpu.id).collect(),
                    None => free.iter().map(|cpu| cpu.id).collect(),
                };
                if ids.len() < count {
                    return Err(self.short_of_cpus(&format!("{count} CPUs"), free.len()));
                }
                ids[..count].to_vec()
            }
            Cpus::These(ids) => {
                if let Some(taken) = ids.iter().find(|id| free.iter().all(|cpu| cpu.id != **id)) {
                    return Err(self.short_of_cpus(&format!("CPU {taken}"), free.len()));
                }
                ids.clone()
            }
            Cpus::Numa { node, count } => {
                let ids: Vec<u32> = of_node(*node).map(|cpu| cpu.id).collect();
                let all = self.cpus.iter().filter(|cpu| cpu.what.numa == *node);
                let count = match *count as usize {
                    0 => all.count(),
                    count => count,
                };
                if ids.len() < count {
                    let what = format!("{count} CPUs of NUMA node {node}");
                    return Err(self.short_of_cpus(&what, free.len()));
                }
                ids[..count].to_vec()
            }
            _ => Vec::new(),
        };
        cpus.sort_unstable();
        cpus.dedup();
        let gpus = self.choose_gpus(&wanted.gpus)?;
        Ok(Held { cpus, gpus })
    }

    fn choose_gpus(&self, wanted: &Gpus) -> Result<Vec<String>, Shortage> {
        let free: Vec<&String> = self
            .gpus
            .iter()
            .filter(|gpu| gpu.holder.is_none())
            .map(|gpu| &gpu.what)
            .collect();
        let short = |what: &str| {
            let holders = self.holders(self.gpus.iter().map(|gpu| gpu.holder));
            let (free, all) = (free.len(), self.gpus.len());
            Shortage::Now(format!(
                "{what} wanted, {free} of {all} granted on this node are free{holders}; wait for them, or ask for fewer"
            ))
        };
        match wanted {
            Gpus::Count(count) => {
                let count = *count as usize;
                let chosen = free.get(..count);
                let chosen = chosen.ok_or_else(|| short(&format!("{count} GPUs")))?;
                Ok(chosen.iter().map(|gpu| (*gpu).clone()).collect())
            }
            Gpus::These(these) => match these.iter().find(|gpu| !free.contains(gpu)) {
                Some(taken) => Err(short(&format!("GPU {taken}"))),
                None => Ok(these.clone()),
            },
            _ => Ok(Vec::new()),
        }
    }

    fn short_of_cpus(&self, what: &str, free: usize) -> Shortage {
        let holders = self.holders(self.cpus.iter().map(|cpu| cpu.holder));
        let all = self.cpus.len();
        Shortage::Now(format!(
            "{what} wanted, {free} of {all} granted on this node are free{holders}; wait for them, or ask for fewer"
        ))
    }

    /// Who has how many, as the rest of a sentence.
    fn holders(&self, places: impl Iterator<Item = Option<u64>>) -> String {
        let places: Vec<u64> = places.flatten().collect();
        let count = |holder: u64| places.iter().filter(|place| **place == holder).count();
        let holding = self.holders.iter().filter(|(holder, _)| count(*holder) > 0);
        let mut text = String::new();
        for (number, (holder, name)) in holding.clone().take(NAMED).enumerate() {
            // Writing to a String does not fail.
            let _ = write!(
                text,
                "{}{name} has {}",
                if number == 0 { ": " } else { ", " },
                count(*holder)
            );
        }
        let more = holding.count().saturating_sub(NAMED);
        if more > 0 {
            let _ = write!(text, ", {more} more have the rest");
        }
        text
    }
}

/// Numbers as people write them: `0-3, 8`.
fn ranges(numbers: impl IntoIterator<Item = u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let text = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two NUMA nodes with four CPUs each, and two GPUs.
    fn ledger() -> Ledger {
        let cpu = |id| Cpu { id, numa: id / 4 };
        Ledger::new(
            (0..8).map(cpu).collect(),
            vec!["0".to_owned(), "GPU-b".to_owned()],
        )
    }

    fn cpus(count: u32) -> Reservation {
        Reservation {
            cpus: Cpus::Count(count),
            ..Reservation::default()
        }
    }

    #[test]
    fn cpus_come_from_one_numa_node_where_one_has_them() {
        let mut ledger = ledger();
        assert_eq!(ledger.take(1, "a", &cpus(3)).unwrap().cpus, [0, 1, 2]);
        // One is left of the first node: the next two come from the second, the single one fits best.
        assert_eq!(ledger.take(2, "b", &cpus(2)).unwrap().cpus, [4, 5]);
        assert_eq!(ledger.take(3, "c", &cpus(1)).unwrap().cpus, [3]);
        assert_eq!(ledger.take(4, "d", &cpus(2)).unwrap().cpus, [6, 7]);
        let text = ledger.take(5, "e", &cpus(1)).unwrap_err();
        assert_eq!(
            text,
            Shortage::Now(
                "1 CPUs wanted, 0 of 8 granted on this node are free: a has 3, b has 2, c has 1, d has 2; wait for them, or ask for fewer"
                    .to_owned()
            )
        );
        ledger.give_back(2);
        assert_eq!(ledger.take(5, "e", &cpus(2)).unwrap().cpus, [4, 5]);
    }

    #[test]
    fn what_was_not_granted_is_never_waited_for() {
        let mut ledger = ledger();
        let never = |taken: Result<Held, Shortage>| match taken {
            Err(Shortage::Never(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(never(ledger.take(1, "a", &cpus(9))).contains("9 CPUs wanted"));
        let these = Reservation {
            cpus: Cpus::These(vec![7, 8]),
            ..Reservation::default()
        };
        assert!(never(ledger.take(1, "a", &these)).contains("CPU 8 wanted"));
        let numa = Reservation {
            cpus: Cpus::Numa { node: 2, count: 0 },
            ..Reservation::default()
        };
        assert!(never(ledger.take(1, "a", &numa)).contains("NUMA nodes 0-1"));
        let gpus = Reservation {
            gpus: Gpus::These(vec!["GPU-c".to_owned()]),
            ..Reservation::default()
        };
        assert!(never(ledger.take(1, "a", &gpus)).contains("0, GPU-b"));
        let mut none = Ledger::new(Vec::new(), Vec::new());
        let gpus = Reservation {
            gpus: Gpus::Count(1),
            ..Reservation::default()
        };
        assert!(never(none.take(1, "a", &gpus)).contains("CUDA_VISIBLE_DEVICES"));
    }

    #[test]
    fn all_or_nothing_is_taken() {
        let mut ledger = ledger();
        let both = Reservation {
            cpus: Cpus::Numa { node: 1, count: 0 },
            gpus: Gpus::Count(2),
            wait_ms: None,
        };
        let gpu = Reservation {
            gpus: Gpus::Count(1),
            ..Reservation::default()
        };
        assert_eq!(ledger.take(1, "a", &gpu).unwrap().gpus, ["0"]);
        assert!(matches!(
            ledger.take(2, "b", &both),
            Err(Shortage::Now(text)) if text.contains("2 GPUs wanted, 1 of 2")
        ));
        assert_eq!(ledger.counts()[1], ("cpus_free", 8));
        ledger.give_back(1);
        let held = ledger.take(2, "b", &both).unwrap();
        assert_eq!(held.cpus, [4, 5, 6, 7]);
        assert_eq!(held.gpus, ["0", "GPU-b"]);
    }

    #[test]
    fn those_who_wait_are_served_in_their_order() {
        let mut ledger = ledger();
        ledger.take(1, "a", &cpus(5)).unwrap();
        ledger.take(2, "b", &cpus(3)).unwrap();
        ledger.wait(3, "c", cpus(8));
        ledger.wait(4, "d", cpus(1));
        // Neither one who waits nor one who comes now overtakes.
        assert_eq!(ledger.give_back(2), []);
        assert!(matches!(
            ledger.take(5, "e", &cpus(1)),
            Err(Shortage::Now(text)) if text.contains("2 others wait")
        ));
        assert!(ledger.give_up(3).unwrap().contains("8 CPUs wanted, 3 of 8"));
        let served = ledger.serve();
        assert_eq!(served.len(), 1);
        assert_eq!((served[0].0, &served[0].1.cpus[..]), (4, &[5][..]));
        assert_eq!(ledger.give_up(4), None);
    }
}
