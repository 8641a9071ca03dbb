//! `simulate`: all that a mesh agrees on and decides, many times over, with everything going wrong, in one
//! thread a run and without a clock. Each run follows from its seed; one that breaks an invariant is told with
//! the command that plays it again.

mod check;
mod clocks;
mod dice;
mod digest;
mod disk;
mod faults;
mod jobs;
mod network;
mod node;
mod scale;
mod story;
mod world;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Result, ensure};

use node::Bug;
use world::{Tally, World};

/// Fewest and most nodes of a simulated mesh at its start.
const NODES: RangeInclusive<u64> = 2..=9;

/// Violations that are told; then no further seeds are tried.
const MAX_VIOLATIONS: usize = 5;

/// What to simulate.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// How many runs.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first run's seed; the others follow.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// How many nodes a mesh has at its start: a number, or a range to draw from, such as 3..9.
    #[arg(long, default_value = "2..9", value_parser = parse_nodes)]
    nodes: RangeInclusive<u64>,
    /// Threads to divide the runs among; as many as the machine has cores unless said otherwise.
    #[arg(long)]
    threads: Option<usize>,
    /// How much of a violated run's story is told: its last lines.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    lines: u32,
    /// Instead: how so many meshes come about whose nodes all start at once, and how long it takes.
    #[arg(long, conflicts_with = "seeds")]
    boots: Option<u64>,
    /// Instead: what a leader spends per task and heartbeat in meshes of 10, 100 and 1,000 nodes.
    #[arg(long, conflicts_with_all = ["seeds", "first_seed", "nodes", "threads", "lines", "boots"])]
    scale: bool,
}

/// How runs are played.
#[derive(Clone, Debug)]
struct Play {
    nodes: RangeInclusive<u64>,
    lines: usize,
    threads: usize,
    bug: Option<Bug>,
}

/// Runs what the options say, and says what came of it. Ends the process with 1 if an invariant did not hold.
#[expect(clippy::print_stdout, reason = "the report is what this is run for")]
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.scale {
        return scale::run();
    }
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.unwrap_or(cores);
    let (nodes, lines) = (options.nodes.clone(), options.lines as usize);
    let how = Play { nodes, lines, threads, bug: None };
    let report = match options.boots {
        Some(boots) => {
            ensure!(boots > 0, "no boots, nothing to simulate: give --boots 1 or more");
            boot_all(options.first_seed, boots, &how).report(&how)
        }
        None => {
            ensure!(options.seeds > 0, "no seeds, nothing to simulate: give --seeds 1 or more");
            play_all(options.first_seed, options.seeds, &how).report()
        }
    };
    println!("{}", report.text);
    if !report.good {
        // All is said: an error would only follow what must be the last line.
        std::process::exit(1);
    }
    Ok(())
}

/// What is printed in the end.
struct Report {
    text: String,
    good: bool,
}

/// What came of one run.
struct Run {
    tally: Tally,
    /// Why jobs failed.
    failures: Vec<String>,
    /// What was violated, as a text for people.
    violation: Option<String>,
}

/// All runs together.
#[derive(Debug, Default)]
struct Outcome {
    seeds: u64,
    sum: Tally,
    violations: Vec<String>,
    /// Why jobs failed, without what differs between runs.
    failures: BTreeMap<String, u64>,
}

impl Outcome {
    fn add(&mut self, run: Run) {
        self.seeds += 1;
        self.sum.add(run.tally);
        self.violations.extend(run.violation);
        for failure in run.failures {
            let words = failure.split(' ').filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
            *self.failures.entry(words.collect::<Vec<_>>().join(" ")).or_default() += 1;
        }
    }

    fn report(&self) -> Report {
        let Tally { steps, faults, eras, recovered, left, put_back, anew, .. } = self.sum;
        let Tally { jobs, succeeded, failed, poisoned, .. } = self.sum;
        let mut lines = self.violations.clone();
        lines.extend(self.failures.iter().map(|(failure, count)| format!("{count} jobs failed: {failure}")));
        lines.push(format!(
            "{jobs} jobs accepted, {succeeded} succeeded, {failed} failed for want of nodes, frames or drivers, or because \
             they end what runs them: {poisoned} nodes died of one"
        ));
        lines.push(format!(
            "{eras} eras, {recovered} of them by recovery; {left} times a node left its era for another"
        ));
        lines.push(format!(
            "{put_back} times a copy took the place of a node's directory, and {anew} of these nodes went on as others"
        ));
        let (seeds, violations) = (self.seeds, self.violations.len());
        lines.push(format!("{seeds} seeds, {steps} steps, {faults} faults, {violations} violations"));
        Report { text: lines.join("\n"), good: violations == 0 }
    }
}

/// Plays so many seeds on several threads, until too many of them go wrong. The outcomes are in order of their
/// seeds.
fn play_each<T: Send>(
    first_seed: u64,
    seeds: u64,
    how: &Play,
    play: impl Fn(u64) -> (T, bool) + Sync,
) -> Vec<T> {
    let next = AtomicU64::new(first_seed);
    let end = first_seed.saturating_add(seeds);
    let wrong = AtomicUsize::new(0);
    let work = || {
        let mut outcomes = Vec::new();
        while wrong.load(Ordering::Relaxed) < MAX_VIOLATIONS {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                break;
            }
            let (outcome, good) = play(seed);
            outcomes.push((seed, outcome));
            wrong.fetch_add(usize::from(!good), Ordering::Relaxed);
        }
        outcomes
    };
    let mut outcomes: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..how.threads.max(1)).map(|_| scope.spawn(work)).collect();
        // A run's panic is caught where it is played.
        workers.into_iter().filter_map(|worker| worker.join().ok()).flatten().collect()
    });
    outcomes.sort_by_key(|(seed, _)| *seed);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

fn play_all(first_seed: u64, seeds: u64, how: &Play) -> Outcome {
    let runs = play_each(first_seed, seeds, how, |seed| {
        let run = play(seed, how);
        let good = run.violation.is_none();
        (run, good)
    });
    let mut outcome = Outcome::default();
    runs.into_iter().for_each(|run| outcome.add(run));
    outcome
}

/// Plays one seed.
fn play(seed: u64, how: &Play) -> Run {
    let mut world = World::new(seed, how.nodes.clone(), how.lines, how.bug);
    let Err(violated) = caught(|| world.run()) else {
        return Run { tally: world.tally, failures: world.failures(), violation: None };
    };
    let violation = tell(&world, seed, how, &violated, "seeds");
    Run { tally: world.tally, failures: Vec::new(), violation: Some(violation) }
}

/// What came of many boots.
#[derive(Debug, Default)]
struct Boots {
    /// How long each took until all nodes were one mesh, with one leader, which listed all of them. The shortest
    /// comes first.
    elapsed_ms: Vec<u64>,
    /// Those that did not come to that.
    violations: Vec<String>,
}

impl Boots {
    /// How long at most so many of a thousand took.
    fn within_ms(&self, permille: usize) -> u64 {
        let last = self.elapsed_ms.len().saturating_sub(1);
        self.elapsed_ms.get(last * permille / 1_000).copied().unwrap_or(0)
    }

    fn report(&self, how: &Play) -> Report {
        let (split, count) = (self.violations.len(), self.violations.len() + self.elapsed_ms.len());
        let s = |ms: u64| ms as f64 / 1_000.0;
        let mut lines = self.violations.clone();
        lines.push(format!(
            "{count} boots of {}..{} nodes, {split} meshes left split; one leader and all listed after {:.2} s (median), {:.2} s (p99)",
            how.nodes.start(),
            how.nodes.end(),
            s(self.within_ms(500)),
            s(self.within_ms(990)),
        ));
        Report { text: lines.join("\n"), good: split == 0 }
    }
}

fn boot_all(first_seed: u64, boots: u64, how: &Play) -> Boots {
    let outcomes = play_each(first_seed, boots, how, |seed| {
        let mut world = World::boot_of(seed, how.nodes.clone(), how.lines);
        let booted = caught(|| world.boot_all()).map_err(|what| tell(&world, seed, how, &what, "boots"));
        let good = booted.is_ok();
        (booted, good)
    });
    let mut all = Boots::default();
    for outcome in outcomes {
        match outcome {
            Ok(elapsed_ms) => all.elapsed_ms.push(elapsed_ms),
            Err(violation) => all.violations.push(violation),
        }
    }
    all.elapsed_ms.sort_unstable();
    all
}

/// What a run comes to, if only to a panic.
fn caught<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(format!("a panic: {text}"))
    })
}

fn tell(world: &World, seed: u64, how: &Play, violated: &str, option: &str) -> String {
    let story: Vec<_> = world.story().collect();
    format!(
        "VIOLATION seed {seed}, step {}: {violated}\n{}\nplay it again: cargo run -p floe-scenarios -- simulate --{option} 1 --first-seed {seed} --nodes {}..{}\n",
        world.tally.steps,
        story.join("\n"),
        how.nodes.start(),
        how.nodes.end(),
    )
}

fn parse_nodes(text: &str) -> Result<RangeInclusive<u64>, String> {
    let number = |text: &str| {
        let number = text.trim_start_matches('=').parse::<u64>().ok();
        number.filter(|number| NODES.contains(number)).ok_or_else(|| {
            format!("`{text}` is no number of nodes from {} to {}", NODES.start(), NODES.end())
        })
    };
    let (first, last) = match text.split_once("..") {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    if first > last {
        Err(format!("{first} is more than {last}: write {last}..{first}"))
    } else {
        Ok(first..=last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enough for every kind of fault to meet every other; `cargo run` plays any number.
    const SEEDS: u64 = 1_000;

    /// Likewise.
    const BOOTS: u64 = 500;

    fn how(bug: Option<Bug>) -> Play {
        Play { nodes: NODES, lines: 40, threads: 2, bug }
    }

    #[test]
    fn a_thousand_runs_break_no_invariant() {
        let outcome = play_all(1, SEEDS, &how(None));
        assert!(outcome.violations.is_empty(), "{}", outcome.violations.join("\n"));
        assert_eq!(outcome.seeds, SEEDS);
        // A run in which nothing happens would break nothing either.
        let Tally { faults, recovered, left, succeeded, poisoned, put_back, anew, .. } = outcome.sum;
        let much = faults > 10 * SEEDS
            && put_back > SEEDS / 50
            && anew > SEEDS / 100
            && succeeded > 10 * SEEDS
            && left > SEEDS
            && recovered > SEEDS / 50
            && poisoned > SEEDS / 10;
        assert!(much, "{:?}", outcome.sum);
    }

    #[test]
    fn a_seed_is_a_run() {
        for seed in [1, 2, 3] {
            assert_eq!(play(seed, &how(None)).tally, play(seed, &how(None)).tally);
        }
        assert_ne!(play(1, &how(None)).tally.hash, play(2, &how(None)).tally.hash);
    }

    #[test]
    fn nodes_that_start_at_once_become_one_mesh() {
        let boots = boot_all(1, BOOTS, &how(None));
        assert!(boots.violations.is_empty(), "{}", boots.violations.join("\n"));
        assert_eq!(boots.elapsed_ms.len() as u64, BOOTS);
    }

    /// Plays until a violation says this. Most bugs show within a few runs; but a node comes back to an era that it
    /// has left only if no other has a leader.
    fn is_found(bug: Bug, says: &str) {
        let how = how(Some(bug));
        let found = (1..2_000).filter_map(|seed| play(seed, &how).violation).find(|text| text.contains(says));
        let text = found.unwrap_or_default();
        assert!(text.contains("play it again: cargo run"), "{bug:?} was not noticed");
    }

    #[test]
    fn a_worker_that_follows_fenced_leaders_is_found() {
        is_found(Bug::IgnoredFence, "from a leader at fence");
    }

    #[test]
    fn a_disk_that_lies_about_syncing_is_found() {
        is_found(Bug::LyingDisk, "lead in term");
    }

    #[test]
    fn a_node_that_forgets_which_eras_it_left_is_found() {
        is_found(Bug::ForgottenEras, "which it has left");
    }

    #[test]
    fn a_leader_that_ends_its_era_without_handing_over_is_found() {
        is_found(Bug::EmptyHands, "is not known");
    }
}
