//! What a play tells: each round's events and figures, and all rounds summed up, as a table that is Markdown as
//! it stands, and as JSON.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;

use super::measure::{Measure, Target};
use super::{Order, Story};
use crate::harness::Unavailable;

/// One round of a story, while it is played and afterwards.
#[derive(Debug, Serialize)]
pub struct Round {
    /// From 1.
    pub number: usize,
    /// What decided who was hit and when.
    pub seed: u64,
    /// What happened, in order.
    pub happenings: Vec<Happening>,
    /// What was measured, by name and unit.
    pub figures: Vec<Figure>,
    /// How many jobs the mesh accepted.
    pub jobs: usize,
    /// How many of them have been judged.
    #[serde(skip)]
    pub(super) judged: usize,
    /// Accepted jobs without a result, and why.
    pub lost: Vec<String>,
    /// Results that were not what Polars answers in one process, and how they differ.
    pub wrong: Vec<String>,
    /// Why the story could not be played to its end, if so.
    pub problem: Option<String>,
    /// Why it was not played at all: this machine lacks what it needs.
    pub skipped: Option<String>,
    /// When it began, in milliseconds since the Unix epoch.
    #[serde(skip)]
    pub(super) began_unix_ms: f64,
    /// All its chance.
    #[serde(skip)]
    pub(super) dice: StdRng,
}

/// Something that happened.
#[derive(Debug, Serialize)]
pub struct Happening {
    /// Milliseconds since the round began.
    pub at_ms: f64,
    /// What.
    pub what: String,
}

/// Something that was measured in a round.
#[derive(Debug, Serialize)]
pub struct Figure {
    #[serde(serialize_with = "name")]
    measure: &'static Measure,
    value: f64,
}

fn name<S: serde::Serializer>(measure: &Measure, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{} [{}]", measure.name, measure.unit))
}

impl Round {
    pub(super) fn new(number: usize, seed: u64) -> Self {
        Self {
            number,
            seed,
            happenings: Vec::new(),
            figures: Vec::new(),
            jobs: 0,
            judged: 0,
            lost: Vec::new(),
            wrong: Vec::new(),
            problem: None,
            skipped: None,
            began_unix_ms: unix_ms(),
            dice: StdRng::seed_from_u64(seed),
        }
    }

    /// Its time counts from now.
    pub(super) fn begin(&mut self) {
        self.began_unix_ms = unix_ms();
    }

    /// Something happened now.
    pub(super) fn tell(&mut self, what: impl Into<String>) {
        self.tell_at(unix_ms(), what);
    }

    /// Something happened at this time, in milliseconds since the Unix epoch.
    pub(super) fn tell_at(&mut self, unix_ms: f64, what: impl Into<String>) {
        self.happenings.push(Happening { at_ms: unix_ms - self.began_unix_ms, what: what.into() });
    }

    /// Something was measured.
    pub(super) fn measured(&mut self, measure: &'static Measure, value: f64) {
        self.figures.push(Figure { measure, value });
    }

    /// Another account of this round, kept by somebody who watches something else, for [`Round::take`].
    pub(super) fn aside(&self) -> Self {
        Self { began_unix_ms: self.began_unix_ms, ..Self::new(self.number, self.seed) }
    }

    /// Takes over what the other account tells.
    pub(super) fn take(&mut self, other: Self) {
        self.happenings.extend(other.happenings);
        self.figures.extend(other.figures);
        self.jobs += other.jobs;
        self.judged += other.judged;
        self.lost.extend(other.lost);
        self.wrong.extend(other.wrong);
    }

    pub(super) fn end(&mut self, outcome: Result<()>) {
        match outcome {
            Err(error) if error.downcast_ref::<Unavailable>().is_some() => {
                self.skipped = Some(format!("{error:#}"));
            }
            outcome => self.problem = outcome.err().map(|error| format!("{error:#}")),
        }
        let unjudged = self.jobs.saturating_sub(self.judged);
        if unjudged > 0 {
            self.lost
                .push(format!("{unjudged} accepted, and the story broke off before their results were seen"));
        }
        self.happenings.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
    }

    /// Whether it was played to its end, with every job's result there and right.
    pub fn is_sound(&self) -> bool {
        self.problem.is_none() && self.lost.is_empty() && self.wrong.is_empty()
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "round {}, seed {}", self.number, self.seed)?;
        if let Some(reason) = &self.skipped {
            writeln!(f, "  skipped: {reason}")?;
        }
        for Happening { at_ms, what } in &self.happenings {
            writeln!(f, "  {at_ms:>8.0} ms  {what}")?;
        }
        for Figure { measure, value } in &self.figures {
            writeln!(f, "  {value:>8.0} {}  {}", measure.unit, measure.name)?;
        }
        for (kind, texts) in [("LOST", &self.lost), ("WRONG", &self.wrong)] {
            for text in texts {
                writeln!(f, "  {kind}: {text}")?;
            }
        }
        if let Some(problem) = &self.problem {
            writeln!(f, "  FAILED: {problem}")?;
        }
        Ok(())
    }
}

/// A whole play.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The story's name.
    pub story: &'static str,
    /// What happens in it.
    pub sentence: &'static str,
    /// The command that plays it again.
    pub command: String,
    /// Whether every round was played to its end, or skipped, and no job was lost and no result wrong.
    pub sound: bool,
    /// All rounds summed up.
    pub summary: Vec<Row>,
    /// Every round.
    pub rounds: Vec<Round>,
}

/// One line of the summary.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was measured or counted.
    pub what: &'static str,
    /// In what.
    pub unit: &'static str,
    /// How many values there are.
    pub values: usize,
    /// The median.
    pub p50: f64,
    /// What 99 of 100 values are at or below.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
    /// What it should be; empty if it is only told.
    pub target: String,
    /// Whether it is, if it should be something.
    pub met: Option<bool>,
}

impl Report {
    pub(super) fn new(story: &Story, order: &Order) -> Self {
        let nodes = order.nodes.map_or(String::new(), |nodes| format!(" --nodes {nodes}"));
        let command = format!(
            "cargo run -p floe-scenarios -- run {} --rounds {} --seed {}{nodes}",
            story.name, order.rounds, order.seed
        );
        Self {
            story: story.name,
            sentence: story.sentence,
            command,
            sound: true,
            summary: Vec::new(),
            rounds: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, round: Round) {
        self.sound &= round.is_sound();
        self.rounds.push(round);
        self.summary = self.rows();
    }

    fn rows(&self) -> Vec<Row> {
        let mut measures: Vec<&'static Measure> = Vec::new();
        for figure in self.rounds.iter().flat_map(|round| &round.figures) {
            if !measures.contains(&figure.measure) {
                measures.push(figure.measure);
            }
        }
        let rows = measures.into_iter().map(|measure| {
            let figures = self.rounds.iter().flat_map(|round| &round.figures);
            let of_it = figures.filter(|figure| figure.measure == measure);
            let mut values: Vec<f64> = of_it.map(|figure| figure.value).collect();
            values.sort_by(f64::total_cmp);
            row(measure, &values)
        });
        let mut rows: Vec<Row> = rows.collect();
        // What should be something comes first.
        rows.sort_by_key(|row| row.met.is_none());
        rows
    }

    fn count(&self, of: impl Fn(&Round) -> usize) -> usize {
        self.rounds.iter().map(of).sum()
    }
}

fn row(measure: &Measure, sorted: &[f64]) -> Row {
    let targets = measure
        .targets
        .iter()
        .map(|target: &Target| format!("{} ≤ {} {}", target.part_name(), target.at_most, measure.unit));
    let met = measure.targets.iter().all(|target| percentile(sorted, target.part) <= target.at_most);
    Row {
        what: measure.name,
        unit: measure.unit,
        values: sorted.len(),
        p50: percentile(sorted, 0.5),
        p99: percentile(sorted, 0.99),
        max: percentile(sorted, 1.0),
        target: targets.collect::<Vec<_>>().join(", "),
        met: (!measure.targets.is_empty()).then_some(met),
    }
}

/// The value that `part` of the sorted values are below or at: 0.5 for the median. NaN if there are none.
pub fn percentile(sorted: &[f64], part: f64) -> f64 {
    let at = ((sorted.len() as f64 * part).ceil() as usize).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// A section for `RESULTS.md`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n\n{}\n\n`{}`\n", self.story, self.sentence, self.command)?;
        let skipped = self.count(|round| round.skipped.is_some().into());
        let failed = self.count(|round| round.problem.is_some().into());
        writeln!(f, "| what | values | p50 | p99 | max | target | met |")?;
        writeln!(f, "|---|---:|---:|---:|---:|---|---|")?;
        for Row { what, unit, values, p50, p99, max, target, met } in &self.summary {
            let met = met.map_or("", |met| if met { "yes" } else { "MISSED" });
            let value = |value: f64| format!("{value:.0} {unit}");
            let [p50, p99, max] = [p50, p99, max].map(|number| value(*number));
            writeln!(f, "| {what} | {values} | {p50} | {p99} | {max} | {target} | {met} |")?;
        }
        let jobs = self.count(|round| round.jobs);
        for (what, count) in [
            ("jobs lost", self.count(|round| round.lost.len())),
            ("wrong results", self.count(|round| round.wrong.len())),
        ] {
            let met = if count == 0 { "yes" } else { "MISSED" };
            writeln!(f, "| {what} | {jobs} jobs | | | {count} | 0 | {met} |")?;
        }
        let rounds = self.rounds.len();
        writeln!(f, "\n{rounds} rounds, {skipped} skipped, {failed} not played to their end.")?;
        if let Some(reason) = self.rounds.iter().find_map(|round| round.skipped.as_ref()) {
            writeln!(f, "Skipped: {reason}")?;
        }
        for round in self.rounds.iter().filter(|round| !round.is_sound()) {
            writeln!(
                f,
                "Round {} went wrong: play it again with `--rounds 1 --seed {}`.",
                round.number, round.seed
            )?;
        }
        Ok(())
    }
}

/// Now, in milliseconds since the Unix epoch, by the clock that the nodes' logs go by.
pub(super) fn unix_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::measure::{HANDED_OVER, LEFT};
    use super::super::{Order, find};
    use super::*;

    fn report(values: impl IntoIterator<Item = f64>) -> Report {
        let order = Order { floe: "floe".into(), nodes: Some(3), rounds: 3, seed: 7 };
        let mut report = Report::new(find("leader-leaves").unwrap(), &order);
        for (number, value) in values.into_iter().enumerate() {
            let mut round = Round::new(number + 1, 7 + number as u64);
            (round.jobs, round.judged) = (1, 1);
            round.measured(&HANDED_OVER, value);
            round.measured(&LEFT, value);
            round.end(Ok(()));
            report.add(round);
        }
        report
    }

    #[test]
    fn a_missed_target_is_said_and_is_no_fault() {
        let report = report([100.0, 301.0, 50.0]);
        let text = report.to_string();
        assert!(text.contains("| 100 ms | 301 ms | 301 ms | max ≤ 300 ms | MISSED |"), "{text}");
        assert!(text.contains("| jobs lost | 3 jobs | | | 0 | 0 | yes |"), "{text}");
        assert!(text.contains("run leader-leaves --rounds 3 --seed 7 --nodes 3`"), "{text}");
        assert!(report.sound);
        assert_eq!(report.summary[1].met, None, "only told");
    }

    #[test]
    fn a_wrong_result_is_a_fault_that_can_be_played_again() {
        let mut report = report([100.0]);
        let mut round = Round::new(2, 8);
        round.wrong.push("3 rows instead of 4".to_owned());
        round.end(Ok(()));
        report.add(round);
        assert!(!report.sound);
        assert!(report.to_string().contains("Round 2 went wrong: play it again with `--rounds 1 --seed 8`."));
    }
}
