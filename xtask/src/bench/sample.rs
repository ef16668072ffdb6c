//! What a measurement yields, and how one is taken.

use std::process::Command;
use std::time::Duration;

use crate::children::{self, Ended};
use crate::repo::shown;

/// Values of several runs, or why there are none.
pub(super) type Measured = Result<Sample, String>;

#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    pub(super) values: Vec<f64>,
    /// Processor time of all processes of all runs, where it can be known.
    pub(super) cpu_seconds: Option<f64>,
    /// How it was measured: cores, wait mode.
    pub(super) note: String,
    /// Each value has its neighbour in another sample, measured in turn with it: ratios are those of neighbours.
    pub(super) in_turn: bool,
}

impl Sample {
    pub(super) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(super) fn quartiles(&self) -> [f64; 2] {
        [self.quantile(0.25), self.quantile(0.75)]
    }

    /// The upper end of the 95 % interval of the median, by order statistics.
    pub(super) fn upper_bound_of_median(&self) -> f64 {
        let count = self.values.len() as f64;
        self.quantile((0.5 + 0.98 / count.sqrt()).min(1.0))
    }

    /// How many times `peer` this is: the median over neighbours where both were measured in turn, else of the medians.
    pub(super) fn ratio_to(&self, peer: &Self) -> f64 {
        if !(self.in_turn && peer.in_turn) {
            return self.median() / peer.median();
        }
        let pairs = self.values.iter().zip(&peer.values);
        let ratios = Self {
            values: pairs.map(|(ours, peer)| ours / peer).collect(),
            ..Self::default()
        };
        ratios.median()
    }

    fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else {
            return f64::NAN;
        };
        let place = share * last as f64;
        // In range and not negative, since `share` lies between 0 and 1.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let below = place.floor() as usize;
        let above = (below + 1).min(last);
        sorted[below] + (sorted[above] - sorted[below]) * place.fract()
    }
}

/// Takes the wall time, in milliseconds, of commands in turn: what disturbs one run disturbs its neighbours alike.
/// Each run must print `expected`, so that a program that did nothing is not taken for a quick one.
pub(super) fn wall_times<const N: usize>(
    runs: u32,
    limit: Duration,
    expected: &str,
    mut commands: [Command; N],
) -> [Measured; N] {
    let mut measured: [Measured; N] = std::array::from_fn(|_| {
        Ok(Sample {
            cpu_seconds: Some(0.0),
            ..Sample::default()
        })
    });
    // The first round warms the page cache and is dropped.
    for round in 0..=runs {
        for (command, measured) in commands.iter_mut().zip(&mut measured) {
            let Ok(sample) = measured else { continue };
            match captured(command, limit) {
                Ok((_, stdout)) if !stdout.contains(expected) => {
                    *measured = Err(format!("`{}` did not print {expected}", shown(command)));
                }
                Ok(_) if round == 0 => {}
                Ok((ended, _)) => {
                    sample.values.push(ended.wall.as_secs_f64() * 1e3);
                    sample.cpu_seconds =
                        sample.cpu_seconds.map(|cpu| cpu + ended.cpu.as_secs_f64());
                }
                Err(error) => *measured = Err(error),
            }
        }
    }
    measured
}

/// Runs each command a few times, all in turn, and puts the values of its runs together. Each one prints what
/// [`reported`] reads.
pub(super) fn in_turn<const N: usize>(
    turns: u32,
    limit: Duration,
    mut commands: [Result<Command, String>; N],
) -> [Measured; N] {
    let mut all: [Measured; N] = std::array::from_fn(|_| Ok(Sample::default()));
    for _ in 0..turns {
        for (command, all) in commands.iter_mut().zip(&mut all) {
            let Ok(sample) = all else { continue };
            let measured = command
                .as_mut()
                .map_err(|why| why.clone())
                .and_then(|command| reported(command, limit));
            match measured {
                Ok(more) => {
                    sample.values.extend(more.values);
                    let cpu = [sample.cpu_seconds, more.cpu_seconds];
                    sample.cpu_seconds = Some(cpu.into_iter().flatten().sum());
                    sample.note = more.note;
                }
                Err(why) => *all = Err(why),
            }
        }
    }
    all
}

/// Runs a program that measures so many things in turn: `{"columns": [[…], …], "note": …}`.
pub(super) fn reported_beside<const N: usize>(
    command: &mut Command,
    limit: Duration,
) -> [Measured; N] {
    let all = report(command, limit).and_then(|(ended, report)| {
        let columns = report["columns"].as_array().into_iter().flatten();
        let columns: Vec<_> = columns.map(numbers).collect();
        let wrong = |_| format!("`{}` printed no {N} columns", shown(command));
        let columns = <[Vec<f64>; N]>::try_from(columns).map_err(wrong)?;
        let length = columns.first().map_or(0, Vec::len);
        if length == 0 || columns.iter().any(|column| column.len() != length) {
            return Err(format!(
                "`{}` printed columns that do not match",
                shown(command)
            ));
        }
        // The processor time cannot be told apart: it stands with the first.
        let mut cpu = Some(ended.cpu.as_secs_f64());
        Ok(columns.map(|values| Sample {
            values,
            cpu_seconds: cpu.take(),
            note: note(&report),
            in_turn: true,
        }))
    });
    match all {
        Ok(samples) => samples.map(Ok),
        Err(why) => std::array::from_fn(|_| Err(why.clone())),
    }
}

/// Runs a benchmark program that prints one JSON object: `{"values": […], "note": …}` or `{"skipped": …}`.
pub(super) fn reported(command: &mut Command, limit: Duration) -> Measured {
    let (ended, report) = report(command, limit)?;
    let values = numbers(&report["values"]);
    if values.is_empty() {
        return Err(format!("`{}` printed no values", shown(command)));
    }
    Ok(Sample {
        values,
        cpu_seconds: Some(ended.cpu.as_secs_f64()),
        note: note(&report),
        in_turn: false,
    })
}

fn numbers(list: &serde_json::Value) -> Vec<f64> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(serde_json::Value::as_f64).collect()
}

fn note(report: &serde_json::Value) -> String {
    report["note"].as_str().unwrap_or_default().to_owned()
}

fn report(command: &mut Command, limit: Duration) -> Result<(Ended, serde_json::Value), String> {
    let (ended, stdout) = captured(command, limit)?;
    let report = stdout
        .lines()
        .rev()
        .find_map(|line| {
            serde_json::from_str::<serde_json::Value>(line)
                .ok()
                .filter(serde_json::Value::is_object)
        })
        .ok_or_else(|| format!("`{}` printed no result", shown(command)))?;
    match report["skipped"].as_str() {
        Some(why) => Err(why.to_owned()),
        None => Ok((ended, report)),
    }
}

/// Runs a command that must end well within the limit; returns its stdout, or says in one line why not.
pub(super) fn captured(command: &mut Command, limit: Duration) -> Result<(Ended, String), String> {
    let (ended, stdout, stderr) =
        children::run_captured(command, limit).map_err(|error| format!("{error:#}"))?;
    if ended.timed_out {
        return Err(format!("not done after {} s", limit.as_secs()));
    }
    if !ended.status.success() {
        let last = stderr
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default();
        return Err(format!("{}: {last}", ended.status));
    }
    Ok((ended, stdout))
}
