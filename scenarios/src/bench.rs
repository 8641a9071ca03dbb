//! Measures what Floe promises. Every figure is printed beside its target, met or not; ratios compare what
//! ran in turns within the same minutes, so that a slow machine slows both sides.

mod idle;
mod latency;
mod queries;
mod start;
mod stream;
mod submit;

pub(crate) use queries::SingleProcess;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::floe_binary;

/// What `bench` is told.
#[derive(Args)]
pub(crate) struct Options {
    /// Measure only this (repeatable)
    #[arg(long, value_enum)]
    only: Vec<Subject>,
    /// Rounds of each measurement that is repeated
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// The scale factor of TPC-H's data; the targets are meant for 1
    #[arg(long, default_value_t = 1.0)]
    scale_factor: f64,
    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// TPC-H's queries 1 and 6 on two nodes against one process
    Queries,
    /// A one-row query through a connected client
    Latency,
    /// From three starts to one mesh
    Start,
    /// What a node costs that has nothing to do
    Idle,
    /// A partition's stream against a bare libp2p stream
    Stream,
    /// How many jobs are accepted
    Submit,
}

/// One measured figure and what it should be.
#[derive(Debug, Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    target: Target,
    /// What it was made from.
    made_from: String,
}

/// The bound a figure should keep.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Figure {
    fn met(&self) -> bool {
        match self.target {
            Target::AtMost(bound) => self.value <= bound,
            Target::AtLeast(bound) => self.value >= bound,
        }
    }
}

/// Where and how to measure.
struct Bench<'a> {
    floe: &'a Path,
    data: &'a Path,
    rounds: usize,
    scale_factor: f64,
}

/// Measures and prints; missing a target is no error.
#[expect(clippy::print_stdout, reason = "the figures are this command's output")]
pub(crate) async fn run(options: &Options) -> Result<()> {
    let floe = floe_binary()?;
    // Beside the binaries, so that the data lives as long as they do and is made once.
    let data = floe.with_file_name("bench-data");
    let bench =
        Bench { floe: &floe, data: &data, rounds: options.rounds.into(), scale_factor: options.scale_factor };
    let mut figures = Vec::new();
    for subject in Subject::value_variants() {
        if !options.only.is_empty() && !options.only.contains(subject) {
            continue;
        }
        let measured = match subject {
            Subject::Queries => queries::measure(&bench).await?,
            Subject::Latency => latency::measure(&bench).await?,
            Subject::Start => start::measure(&bench).await?,
            Subject::Idle => idle::measure(&bench).await?,
            Subject::Stream => stream::measure(&bench).await?,
            Subject::Submit => submit::measure(&bench).await?,
        };
        for figure in &measured {
            println!("{}", line(figure));
        }
        figures.extend(measured);
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&figures)?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn line(figure: &Figure) -> String {
    let (sign, bound) = match figure.target {
        Target::AtMost(bound) => ("<=", bound),
        Target::AtLeast(bound) => (">=", bound),
    };
    let verdict = if figure.met() { "met   " } else { "MISSED" };
    format!(
        "{:<44} {:>9.2} {:<8} target {sign} {bound:<6} {verdict}  ({})",
        figure.name, figure.value, figure.unit, figure.made_from
    )
}

/// The value that `part` of the values, in any order, are below or at. NaN if there are none.
fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    floe_scenarios::stories::percentile(&sorted, part)
}

fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(
            (median(&values), percentile(&values, 0.99), percentile(&values, 1.0)),
            (50.0, 99.0, 100.0)
        );
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_missed_target_says_so() {
        let figure = |value, target| Figure {
            name: "x".to_owned(),
            value,
            unit: "ms",
            target,
            made_from: String::new(),
        };
        assert!(line(&figure(2.0, Target::AtMost(1.0))).contains("MISSED"));
        assert!(line(&figure(2.0, Target::AtLeast(1.0))).contains("met"));
    }
}
