//! One line of the table: ours beside a peer.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::bench::sample::{Measured, Sample};

/// What a row is to reach.
#[derive(Debug, Clone, Copy)]
pub(super) enum Goal {
    /// At most this many times the peer.
    Ratio(f64),
    /// At most this much, in the row's unit.
    Value(f64),
    /// At least this many times the peer.
    RatioAtLeast(f64),
    /// At least this much, in the row's unit.
    AtLeast(f64),
    /// No goal: the row says where we stand.
    None,
}

#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) unit: &'static str,
    pub(super) ours: Measured,
    pub(super) peer_name: String,
    /// `None` where the only thing to compare with is the goal.
    pub(super) peer: Option<Measured>,
    pub(super) goal: Goal,
}

pub(super) const HEADER: &str = "\
what                                     ours [quartiles]           unit  peer                      its value [quartiles]      ratio  goal       met  runs      CPU s: ours, peer  note";

/// A row with what it consists of.
pub(super) fn row(
    name: &str,
    unit: &'static str,
    ours: Measured,
    peer_name: &str,
    peer: Option<Measured>,
    goal: Goal,
) -> Row {
    Row {
        name: name.to_owned(),
        unit,
        ours,
        peer_name: peer_name.to_owned(),
        peer,
        goal,
    }
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        let ours = self.ours.as_ref().ok()?;
        let peer = self.peer.as_ref()?.as_ref().ok()?;
        Some(ours.ratio_to(peer))
    }

    fn met(&self) -> Option<bool> {
        match self.goal {
            Goal::Ratio(limit) => self.ratio().map(|ratio| ratio <= limit),
            Goal::Value(limit) => self.ours.as_ref().ok().map(|ours| ours.median() <= limit),
            Goal::RatioAtLeast(limit) => self.ratio().map(|ratio| ratio >= limit),
            Goal::AtLeast(limit) => self.ours.as_ref().ok().map(|ours| ours.median() >= limit),
            Goal::None => None,
        }
    }

    fn goal_text(&self) -> String {
        match self.goal {
            Goal::Ratio(limit) => format!("≤ {} ×", figure(limit)),
            Goal::Value(limit) => format!("≤ {} {}", figure(limit), self.unit),
            Goal::RatioAtLeast(limit) => format!("≥ {} ×", figure(limit)),
            Goal::AtLeast(limit) => format!("≥ {} {}", figure(limit), self.unit),
            Goal::None => String::new(),
        }
    }

    fn note(&self) -> String {
        let mut note = String::new();
        let ours = match &self.ours {
            Ok(sample) => sample.note.clone(),
            Err(why) => format!("ours: {why}"),
        };
        let peer = match &self.peer {
            Some(Ok(sample)) => sample.note.clone(),
            Some(Err(why)) => format!("peer: {why}"),
            None => String::new(),
        };
        note.push_str(&ours);
        if !peer.is_empty() && peer != ours {
            // Writing to a String does not fail.
            let _ = write!(note, "{}{peer}", if note.is_empty() { "" } else { "; " });
        }
        note
    }

    pub(super) fn text(&self, group: &str) -> String {
        let peer = self.peer.as_ref();
        format!(
            "{} {} {} {} {} {} {} {} {} {} {}",
            padded(&format!("{group}: {}", self.name), 40),
            padded(&spread(Some(&self.ours)), 26),
            padded(self.unit, 5),
            padded(&self.peer_name, 25),
            padded(&spread(peer), 26),
            padded(&self.ratio().map(figure).unwrap_or_default(), 6),
            padded(&self.goal_text(), 10),
            padded(
                self.met().map_or("", |met| if met { "yes" } else { "no" }),
                4
            ),
            padded(&format!("{}, {}", runs(Some(&self.ours)), runs(peer)), 9),
            padded(
                &format!("{}, {}", cpu_text(Some(&self.ours)), cpu_text(peer)),
                18
            ),
            self.note(),
        )
    }

    pub(super) fn json(&self, group: &str) -> Value {
        let peer = self.peer.as_ref();
        json!({
            "group": group,
            "name": self.name,
            "unit": self.unit,
            "ours": median(Some(&self.ours)),
            "ours_quartiles": quartiles(Some(&self.ours)),
            "ours_runs": runs(Some(&self.ours)),
            "ours_cpu_seconds": cpu(Some(&self.ours)),
            "peer": self.peer_name,
            "peer_value": median(peer),
            "peer_quartiles": quartiles(peer),
            "peer_runs": runs(peer),
            "peer_cpu_seconds": cpu(peer),
            "ratio": self.ratio(),
            "goal": self.goal_text(),
            "met": self.met(),
            "note": self.note(),
        })
    }
}

fn sample(measured: Option<&Measured>) -> Option<&Sample> {
    measured.and_then(|measured| measured.as_ref().ok())
}

fn median(measured: Option<&Measured>) -> Option<f64> {
    sample(measured).map(Sample::median)
}

fn quartiles(measured: Option<&Measured>) -> Option<[f64; 2]> {
    sample(measured).map(Sample::quartiles)
}

fn runs(measured: Option<&Measured>) -> usize {
    sample(measured).map_or(0, |sample| sample.values.len())
}

fn cpu(measured: Option<&Measured>) -> Option<f64> {
    sample(measured).and_then(|sample| sample.cpu_seconds)
}

fn cpu_text(measured: Option<&Measured>) -> String {
    cpu(measured).map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.2}"))
}

fn spread(measured: Option<&Measured>) -> String {
    match sample(measured) {
        Some(sample) => {
            let [low, high] = sample.quartiles();
            format!(
                "{} [{}, {}]",
                figure(sample.median()),
                figure(low),
                figure(high)
            )
        }
        None => "-".to_owned(),
    }
}

/// Three digits that count.
fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        one if one >= 1.0 => 2,
        tenth if tenth >= 0.1 => 3,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// `{:width$}` counts characters too, but only for what implements padding itself; here for `≤` and `×` as well.
fn padded(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    format!("{text}{}", " ".repeat(missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(values: &[f64]) -> Measured {
        Ok(Sample {
            values: values.to_vec(),
            ..Sample::default()
        })
    }

    fn row(ours: Measured, peer: Measured, goal: Goal) -> Row {
        Row {
            name: "x".into(),
            unit: "ms",
            ours,
            peer_name: "y".into(),
            peer: Some(peer),
            goal,
        }
    }

    #[test]
    fn ratio_is_of_medians_and_decides_the_goal() {
        let row = row(
            sample(&[1.0, 9.0, 2.0]),
            sample(&[4.0, 4.0]),
            Goal::Ratio(0.5),
        );
        assert_eq!(row.ratio(), Some(0.5));
        assert_eq!(row.met(), Some(true));
    }

    #[test]
    fn what_was_measured_in_turn_is_compared_with_its_neighbour() {
        let in_turn = |values: &[f64]| {
            sample(values).map(|sample| Sample {
                in_turn: true,
                ..sample
            })
        };
        // The machine became four times as slow after the first value.
        let row = row(
            in_turn(&[1.0, 4.0, 4.0]),
            in_turn(&[2.0, 8.0, 8.0]),
            Goal::Ratio(0.5),
        );
        assert_eq!(row.ratio(), Some(0.5));
        let one = in_turn(&[1.0, 8.0, 8.0]);
        let ratio = one.and_then(|one| sample(&[2.0, 8.0, 32.0]).map(|peer| one.ratio_to(&peer)));
        assert_eq!(ratio, Ok(1.0));
    }

    #[test]
    fn what_was_not_measured_has_no_ratio_and_says_why() {
        let row = row(Err("not built".into()), sample(&[4.0]), Goal::Value(20.0));
        assert_eq!((row.ratio(), row.met()), (None, None));
        assert_eq!(row.note(), "ours: not built");
        assert_eq!(row.json("start")["ours"], Value::Null);
    }

    #[test]
    fn quartiles_lie_between_neighbours() {
        let Ok(sample) = sample(&[4.0, 1.0, 2.0, 3.0]) else {
            panic!("a sample")
        };
        assert_eq!((sample.median(), sample.quartiles()), (2.5, [1.75, 3.25]));
    }

    #[test]
    fn figures_keep_three_digits() {
        assert_eq!(
            [1234.5, 12.34, 1.5, 0.1234, 0.01].map(figure),
            ["1234", "12.3", "1.5", "0.123", "0.01"].map(String::from)
        );
    }
}
