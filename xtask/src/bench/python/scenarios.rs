//! What is measured, and what each figure is to reach beside the standard library's start methods and upstream.
//!
//! Figures are times, so that "twice as fast" is at most half of the peer's.

use crate::bench::row::Goal;

pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// A program of benches/python and its options.
    pub(super) words: &'static [&'static str],
    pub(super) unit: &'static str,
    /// How often ours and the standard library's run, in turn.
    pub(super) turns: u32,
    /// How many values a program measures each time.
    pub(super) runs: &'static str,
    /// What upstream gets in addition, for its only turn: where it is a thousand times as slow, less to do.
    pub(super) upstream_options: &'static [&'static str],
    /// Beside fork, forkserver and spawn.
    pub(super) stdlib: [Goal; 3],
    pub(super) upstream: Goal,
    /// What a reader must know about the figure.
    pub(super) note: &'static str,
}

impl Scenario {
    /// What most rows have in common.
    pub(super) const EACH: Self = Self {
        name: "",
        words: &[],
        unit: "us",
        turns: 5,
        runs: "5",
        upstream_options: &["--runs", "5"],
        stdlib: [Goal::None; 3],
        upstream: Goal::None,
        note: "",
    };
}

const HALF: [Goal; 3] = [Goal::Ratio(0.5); 3];
const AS_FAST: [Goal; 3] = [Goal::Ratio(1.0); 3];
/// Beside fork a fresh process cannot win anything.
const HALF_OF_FORKSERVER: [Goal; 3] = [Goal::None, Goal::Ratio(0.5), Goal::Ratio(0.5)];
/// As long as more processes than cores contend, each of its rounds takes milliseconds.
const FEW: &[&str] = &["--runs", "2", "--rounds", "100"];
/// Of a wait of a second: what it takes to fall asleep and to wake up.
const ASLEEP: Goal = Goal::Value(1.0);

pub(super) const SCENARIOS: [Scenario; 16] = [
    Scenario {
        name: "Process start + join",
        words: &["process.py"],
        unit: "ms",
        runs: "10",
        stdlib: HALF_OF_FORKSERVER,
        upstream: Goal::Ratio(0.02),
        ..Scenario::EACH
    },
    Scenario {
        name: "1000 processes, start + join of all",
        words: &["process.py", "--count", "1000"],
        unit: "ms",
        turns: 3,
        runs: "1",
        upstream_options: &["--runs", "1"],
        upstream: Goal::Ratio(0.02),
        ..Scenario::EACH
    },
    Scenario {
        name: "Pool.map 20 000, chunksize 1, each",
        words: &["pool_map.py"],
        runs: "2",
        upstream_options: &["--runs", "1"],
        stdlib: HALF,
        ..Scenario::EACH
    },
    Scenario {
        name: "Pool.map 20 000, default chunks, each",
        words: &["pool_map.py", "--chunksize", "0"],
        stdlib: AS_FAST,
        ..Scenario::EACH
    },
    Scenario {
        name: "Pool(8), creation",
        words: &["pool_start.py"],
        unit: "ms",
        upstream_options: &["--runs", "3"],
        upstream: Goal::Ratio(1.0 / 30.0),
        ..Scenario::EACH
    },
    Scenario {
        name: "Pool(8), creation and first result",
        words: &["pool_start.py", "--result", "1"],
        unit: "ms",
        upstream_options: &["--runs", "3"],
        upstream: Goal::Ratio(1.0 / 30.0),
        ..Scenario::EACH
    },
    Scenario {
        name: "Pipe round trip, 1 B",
        words: &["pipe.py"],
        stdlib: HALF,
        upstream: Goal::Ratio(1.0),
        ..Scenario::EACH
    },
    Scenario {
        name: "Queue round trip, small",
        words: &["queue_round_trip.py"],
        stdlib: HALF,
        upstream: Goal::Ratio(1.0),
        ..Scenario::EACH
    },
    Scenario {
        name: "Connection.recv for 1 s, CPU",
        words: &["waiting.py", "--on", "pipe"],
        unit: "ms",
        turns: 2,
        runs: "2",
        upstream_options: &["--runs", "2"],
        stdlib: [ASLEEP; 3],
        upstream: ASLEEP,
        ..Scenario::EACH
    },
    Scenario {
        name: "Queue.get for 1 s, CPU",
        words: &["waiting.py"],
        unit: "ms",
        turns: 2,
        runs: "2",
        upstream_options: &["--runs", "2"],
        stdlib: [ASLEEP; 3],
        upstream: ASLEEP,
        ..Scenario::EACH
    },
    Scenario {
        name: "Queue, NumPy array of 64 MB",
        words: &["queue_array.py"],
        unit: "ms",
        stdlib: [Goal::Ratio(0.2); 3],
        upstream: Goal::Ratio(0.5),
        ..Scenario::EACH
    },
    Scenario {
        name: "Lock, uncontended",
        words: &["lock.py", "--rounds", "1000"],
        runs: "25",
        stdlib: [Goal::Ratio(2.0); 3],
        ..Scenario::EACH
    },
    Scenario {
        name: "Lock, 8 contenders",
        words: &["lock.py", "--processes", "8"],
        upstream_options: FEW,
        upstream: Goal::Ratio(0.1),
        note: "who releases it may take it again before one who waits (barging)",
        ..Scenario::EACH
    },
    Scenario {
        name: "Value, increment under its lock",
        words: &["lock.py", "--on", "value", "--rounds", "1000"],
        runs: "25",
        stdlib: AS_FAST,
        ..Scenario::EACH
    },
    Scenario {
        name: "Value, increments of 8 processes",
        words: &["lock.py", "--on", "value", "--processes", "8"],
        upstream_options: FEW,
        stdlib: AS_FAST,
        ..Scenario::EACH
    },
    Scenario {
        name: "merge sort, 1 M, 127 processes",
        words: &["merge_sort.py"],
        unit: "s",
        turns: 3,
        runs: "1",
        upstream_options: &["--runs", "1"],
        stdlib: AS_FAST,
        upstream: AS_FAST[0],
        ..Scenario::EACH
    },
];
