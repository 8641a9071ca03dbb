//! `chaos`: a mesh of real processes, a steady stream of jobs, and everything going wrong.
//!
//! ```text
//!   plan ──> monkey ──faults──> nodes <──jobs── drivers ──> reference, history
//!                                 ^                │
//!                                 └──── watch ─────┴──> report
//! ```
//!
//! The faults follow from the seed; when exactly they hit what is left to the machine, so the same seed gives the
//! same faults and not the same run. The promise that is checked: no accepted job is lost, no result is wrong,
//! and what drivers are told of a job fits one job that is the same for everyone. A mesh that loses a majority of
//! its voters for good cannot keep it, so that is the one thing that is never done.

mod drivers;
mod jobs;
mod monkey;
mod plan;
mod report;
mod watch;

pub use report::Report;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use floe_client::MeshKey;
use futures::future::join_all;
use tokio::time::{Instant, timeout};

use crate::harness::{Cluster, DEADLINE, wait_until};
use drivers::{Driver, Run};
use monkey::Monkey;
use watch::Watch;

/// Drivers at once. Each has one job at a time, so this is how many jobs the mesh has.
const DRIVERS: usize = 4;

/// How many nodes: with fewer than three, one loss stops the mesh; more than this a machine does not bear.
const NODES: RangeInclusive<usize> = 3..=16;

/// How long: shorter, nothing happens; longer, nobody waits.
const TIME: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);

/// How long after the last fault every job may take to end: elections, a voter declared dead and all partitions
/// made again on a busy machine are within it many times over.
const SETTLE: Duration = Duration::from_secs(120);

/// Random faults under a steady stream of jobs.
///
/// Nodes are killed, stopped, sent away and wiped, several at once, as long as a majority of the voters can come
/// back. At the end every job that was accepted must have ended with its right result.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// What the faults follow from; drawn and printed unless given
    #[arg(long, value_name = "S", value_parser = parse_seed)]
    seed: Option<u64>,
    /// How long faults happen, as in 90s or 5min
    #[arg(long, default_value = "60s", value_parser = parse_time)]
    time: Duration,
    /// How many nodes
    #[arg(long, value_name = "N", default_value = "3", value_parser = parse_nodes)]
    nodes: usize,
    /// Also write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One run of chaos.
#[derive(Clone, Debug)]
pub struct Chaos {
    /// What the faults follow from.
    pub seed: u64,
    /// How long faults happen.
    pub time: Duration,
    /// How many nodes.
    pub nodes: usize,
}

/// Plays chaos on processes of the binary `floe`, prints what came of it, and fails if anything was lost, wrong or
/// contradictory.
#[expect(clippy::print_stdout, reason = "the report is what this is run for")]
pub async fn run(options: &Options, floe: &Path) -> Result<()> {
    let seed = options.seed.unwrap_or_else(rand::random);
    let chaos = Chaos { seed, time: options.time, nodes: options.nodes };
    println!("seed {seed}: {}", chaos.command());
    let report = chaos.play(floe).await?;
    println!("{report}");
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    report.verdict()
}

impl Chaos {
    /// The command that plays the same faults again.
    pub fn command(&self) -> String {
        let time = humantime::format_duration(self.time).to_string().replace(' ', "");
        format!(
            "cargo run -p floe-scenarios -- chaos --seed {} --time {time} --nodes {}",
            self.seed, self.nodes
        )
    }

    /// Plays it. An error means that it could not be played to its end; what was found is in the report. The
    /// nodes' files are kept if anything was.
    pub async fn play(&self, floe: &Path) -> Result<Report> {
        let mut cluster = Cluster::builder(floe).nodes(self.nodes).start().await?;
        let report = self.play_on(&mut cluster).await;
        if report.as_ref().map_or(true, |report| report.verdict().is_err()) {
            cluster.keep_files();
        }
        report
    }

    async fn play_on(&self, cluster: &mut Cluster) -> Result<Report> {
        let kinds = jobs::prepare(cluster.dir())?;
        let key: MeshKey = std::fs::read_to_string(cluster.key_file())?.trim().parse()?;
        let addresses: Vec<_> = (0..self.nodes).map(|i| cluster.node(i).address().to_owned()).collect();
        let addresses = Arc::new(Mutex::new(addresses));
        let watch = Watch::start(key.clone(), addresses.clone())?;
        let run = Arc::new(Run::new(key, addresses.clone(), watch.clone(), kinds));
        let drivers: Vec<_> = (0..DRIVERS)
            .map(|number| tokio::spawn(Driver::new(run.clone(), number, self.seed).drive()))
            .collect();

        let plan = plan::plan(self.seed, self.time, self.nodes);
        let monkey = Monkey::new(watch.clone(), addresses.clone());
        let wreaked = monkey.wreak(&plan, self.time, cluster).await;

        run.end_by(Instant::now() + SETTLE);
        let tallies = timeout(SETTLE * 2, join_all(drivers)).await.context("the drivers did not end")?;
        let mut report = Report::new(self, &wreaked, watch.leaderless());
        for tally in tallies {
            report.add(tally.context("a driver panicked")?);
        }
        if let Err(error) = cluster.together().await {
            report.trouble(format!("the nodes did not become one mesh again: {error:#}"));
        }
        // Nodes that were wiped stay members, so how many voters there should be is the mesh's to say.
        let filled = async || monkey::seats_are_filled(&watch, &addresses).then_some(());
        if let Err(error) = wait_until("every voter is a node that exists", DEADLINE, filled).await {
            report.trouble(format!("{error:#}"));
        }
        for i in 0..self.nodes {
            let log = cluster.node(i).log();
            if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
                report.trouble(format!("node {i} panicked: {line}"));
            }
        }
        Ok(report)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept under a lock here is whole after every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn parse_seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is not a seed: give a whole number from 0 to {}", u64::MAX))
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|_| format!("`{text}` is not a time: give for example 90s or 5min"))?;
    if TIME.contains(&time) {
        return Ok(time);
    }
    let [from, to] = [TIME.start(), TIME.end()].map(|bound| humantime::format_duration(*bound));
    Err(format!("{text} is no time for chaos: give {from} to {to}"))
}

fn parse_nodes(text: &str) -> Result<usize, String> {
    let nodes = text.parse().map_err(|_| format!("`{text}` is not a number of nodes"))?;
    if NODES.contains(&nodes) {
        return Ok(nodes);
    }
    Err(if nodes < *NODES.start() {
        format!("{nodes} nodes are too few: a mesh bears the loss of one only from {} on", NODES.start())
    } else {
        format!("{nodes} nodes are too many for one machine: give at most {}", NODES.end())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bad_input_is_refused_in_sentences() {
        assert!(parse_seed("-1").unwrap_err().contains("`-1` is not a seed"));
        for (text, words) in
            [("soon", "not a time"), ("60", "not a time"), ("10ms", "1s to"), ("9d", "to 1day")]
        {
            let error = parse_time(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        for (text, words) in [("2", "too few"), ("17", "too many"), ("three", "not a number")] {
            let error = parse_nodes(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert_eq!((parse_time("2min"), parse_nodes("5")), (Ok(Duration::from_secs(120)), Ok(5)));
    }

    #[test]
    fn the_command_plays_the_same_faults_again() {
        let chaos = Chaos { seed: 7, time: Duration::from_secs(90), nodes: 5 };
        let text = chaos.command();
        assert!(text.ends_with("chaos --seed 7 --time 1m30s --nodes 5"), "{text}");
        assert_eq!(parse_time("1m30s"), Ok(chaos.time));
    }
}
