//! What came of a run: a table for people, JSON for programs, and a verdict.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;

use super::Chaos;
use super::drivers::Tally;
use super::monkey::Wreaked;

/// How many findings of one sort the table shows; the JSON has all.
const MAX_SHOWN: usize = 3;

/// What came of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What the faults followed from.
    pub seed: u64,
    /// The command that plays the same faults again.
    pub replay: String,
    /// How many nodes.
    pub nodes: usize,
    /// How long faults happened.
    pub time_s: f64,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Faults that hit the leader.
    pub leader_faults: u64,
    /// Jobs by outcome.
    pub jobs: BTreeMap<&'static str, u64>,
    /// The longest time in which no node said that it leads. It spans times in which too few nodes ran to elect.
    pub leaderless_s: f64,
    /// The longest time from a submission to its result.
    pub slowest_job_s: f64,
    /// Accepted jobs that did not end as they should.
    pub lost: Vec<String>,
    /// Results that differ from those of Polars in one process.
    pub wrong: Vec<String>,
    /// Jobs whose history holds a status that had been replaced before it was asked for.
    pub stale_reads: Vec<String>,
    /// Jobs whose history contradicts itself otherwise.
    pub contradictions: Vec<String>,
    /// What else must not happen: nodes that did not come back, panics, a mesh that did not settle.
    pub troubles: Vec<String>,
    /// What was done, and when.
    pub timeline: Vec<String>,
}

impl Report {
    pub(super) fn new(chaos: &Chaos, wreaked: &Wreaked, leaderless: Duration) -> Self {
        Self {
            seed: chaos.seed,
            replay: chaos.command(),
            nodes: chaos.nodes,
            time_s: chaos.time.as_secs_f64(),
            faults: wreaked.faults.clone(),
            leader_faults: wreaked.leaders,
            jobs: BTreeMap::new(),
            leaderless_s: leaderless.as_secs_f64(),
            slowest_job_s: 0.0,
            lost: Vec::new(),
            wrong: Vec::new(),
            stale_reads: Vec::new(),
            contradictions: Vec::new(),
            troubles: wreaked.troubles.clone(),
            timeline: wreaked.timeline.clone(),
        }
    }

    /// Adds what became of one driver's jobs.
    pub(super) fn add(&mut self, tally: Tally) {
        for (outcome, count) in tally.jobs {
            *self.jobs.entry(outcome).or_default() += count;
        }
        self.slowest_job_s = self.slowest_job_s.max(tally.slowest.as_secs_f64());
        self.lost.extend(tally.lost);
        self.wrong.extend(tally.wrong);
        self.stale_reads.extend(tally.stale);
        self.contradictions.extend(tally.contradictions);
    }

    /// Adds something else that must not happen.
    pub(super) fn trouble(&mut self, what: String) {
        self.troubles.push(what);
    }

    fn findings(&self) -> [(&'static str, &Vec<String>); 5] {
        [
            ("jobs lost", &self.lost),
            ("wrong results", &self.wrong),
            ("stale reads", &self.stale_reads),
            ("contradictions", &self.contradictions),
            ("troubles", &self.troubles),
        ]
    }

    /// An error that says what was found, if anything was, and how to play it again.
    pub fn verdict(&self) -> Result<()> {
        let found: Vec<_> = self
            .findings()
            .into_iter()
            .filter(|(_, texts)| !texts.is_empty())
            .map(|(name, texts)| format!("{name}: {}", texts.len()))
            .collect();
        if self.jobs.get("submitted").is_none_or(|count| *count == 0) {
            bail!("no job was submitted, so nothing was shown; play it again with {}", self.replay);
        }
        if !found.is_empty() {
            bail!(
                "the mesh did not keep its promise ({}); play it again with {}",
                found.join(", "),
                self.replay
            );
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = |counts: &BTreeMap<&'static str, u64>| {
            counts.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
        };
        let mut line = |name: &str, value: String| writeln!(f, "{name:<24}{value}");
        line("seed", self.seed.to_string())?;
        line("nodes", self.nodes.to_string())?;
        line("faults", format!("{} ({} of them at the leader)", counts(&self.faults), self.leader_faults))?;
        line("jobs", counts(&self.jobs))?;
        line("longest without leader", format!("{:.1} s", self.leaderless_s))?;
        line("slowest job", format!("{:.1} s", self.slowest_job_s))?;
        for (name, texts) in self.findings() {
            line(name, texts.len().to_string())?;
            for text in texts.iter().take(MAX_SHOWN) {
                line("", text.clone())?;
            }
        }
        write!(f, "{:<24}{}", "again", self.replay)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_report_with_any_finding_fails_and_says_how_to_play_it_again() {
        let chaos = Chaos { seed: 9, time: Duration::from_secs(60), nodes: 3 };
        let mut report = Report::new(&chaos, &Wreaked::default(), Duration::ZERO);
        assert!(report.verdict().unwrap_err().to_string().contains("no job was submitted"));
        report.add(Tally { jobs: BTreeMap::from([("submitted", 2)]), ..Tally::default() });
        report.verdict().unwrap();
        let finding = || vec!["job 1".to_owned()];
        let bad = [
            Tally { lost: finding(), ..Tally::default() },
            Tally { wrong: finding(), ..Tally::default() },
            Tally { stale: finding(), ..Tally::default() },
            Tally { contradictions: finding(), ..Tally::default() },
        ];
        for tally in bad {
            let mut report = report.clone();
            report.add(tally);
            let error = report.verdict().unwrap_err().to_string();
            assert!(error.contains("chaos --seed 9 --time 1m --nodes 3"), "{error}");
            assert!(report.to_string().contains("job 1"));
        }
    }
}
