//! `simulate`: all that a mesh agrees on and decides, many times over, with everything going wrong, in one
//! thread a run and without a clock. Each run follows from its seed; one that breaks an invariant is told with
//! the command that plays it again.

mod check;
mod dice;
mod disk;
mod faults;
mod jobs;
mod network;
mod node;
mod scale;
mod world;

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Result, ensure};

use node::Bug;
use world::{Tally, World};

/// Fewest and most nodes of a simulated mesh at its start.
const NODES: RangeInclusive<u64> = 3..=9;

/// Violations after which no further seeds are tried.
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
    #[arg(long, default_value = "3..9", value_parser = parse_nodes)]
    nodes: RangeInclusive<u64>,
    /// Threads to divide the runs among; as many as the machine has cores unless said otherwise.
    #[arg(long)]
    threads: Option<usize>,
    /// How much of a violated run's story is told: its last lines.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    lines: u32,
    /// Instead: what a leader spends per task and heartbeat in meshes of 10, 100 and 1,000 nodes.
    #[arg(long, conflicts_with_all = ["seeds", "first_seed", "nodes", "threads", "lines"])]
    scale: bool,
}

/// How runs are played.
#[derive(Clone, Debug)]
struct Play {
    nodes: RangeInclusive<u64>,
    lines: usize,
    bug: Option<Bug>,
}

/// Runs what the options say, and says what came of it. Ends the process with 1 if an invariant did not hold.
#[expect(clippy::print_stdout, reason = "the report is what this is run for")]
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.scale {
        return scale::run();
    }
    ensure!(options.seeds > 0, "no seeds, nothing to simulate: give --seeds 1 or more");
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let seeds = options.first_seed..options.first_seed.saturating_add(options.seeds);
    let how = Play { nodes: options.nodes.clone(), lines: options.lines as usize, bug: None };
    let outcome = play_all(seeds, options.threads.unwrap_or(cores), &how);
    for violation in &outcome.violations {
        println!("{violation}");
    }
    for (failure, count) in &outcome.failures {
        println!("{count} jobs failed: {failure}");
    }
    let Sum { steps, faults, jobs, succeeded, failed, .. } = outcome.sum;
    println!("{jobs} jobs accepted, {succeeded} succeeded, {failed} failed for want of nodes or frames");
    println!(
        "{} seeds, {steps} steps, {faults} faults, {} violations",
        outcome.sum.seeds,
        outcome.violations.len()
    );
    if !outcome.violations.is_empty() {
        // All is said: an error would only follow what must be the last line.
        std::process::exit(1);
    }
    Ok(())
}

/// All runs together.
#[derive(Debug, Default)]
struct Sum {
    seeds: u64,
    steps: u64,
    faults: u64,
    jobs: u64,
    succeeded: u64,
    failed: u64,
}

#[derive(Debug, Default)]
struct Outcome {
    sum: Sum,
    violations: Vec<String>,
    /// Why jobs failed, without what differs between runs.
    failures: BTreeMap<String, u64>,
}

/// Plays every seed, on several threads.
fn play_all(seeds: Range<u64>, threads: usize, how: &Play) -> Outcome {
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let mut outcome = Outcome::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || outcome.violations.len() >= MAX_VIOLATIONS {
                return outcome;
            }
            let (tally, failures, violation) = play(seed, how);
            let sum = &mut outcome.sum;
            sum.seeds += 1;
            sum.steps += tally.steps;
            sum.faults += tally.faults;
            sum.jobs += tally.jobs;
            sum.succeeded += tally.succeeded;
            sum.failed += tally.failed;
            outcome.violations.extend(violation);
            for failure in failures {
                let words = failure.split(' ').filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
                let text = words.collect::<Vec<_>>().join(" ");
                *outcome.failures.entry(text).or_default() += 1;
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        let mut all = Outcome::default();
        for worker in workers {
            // A run's panic is caught within `play`.
            let Ok(part) = worker.join() else { continue };
            all.sum.seeds += part.sum.seeds;
            all.sum.steps += part.sum.steps;
            all.sum.faults += part.sum.faults;
            all.sum.jobs += part.sum.jobs;
            all.sum.succeeded += part.sum.succeeded;
            all.sum.failed += part.sum.failed;
            all.violations.extend(part.violations);
            for (text, count) in part.failures {
                *all.failures.entry(text).or_default() += count;
            }
        }
        all
    })
}

/// Plays one seed: what it was made of, why jobs failed, and what was violated, as a text for people.
fn play(seed: u64, how: &Play) -> (Tally, Vec<String>, Option<String>) {
    let mut world = World::new(seed, how.nodes.clone(), how.lines, how.bug);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violated = match ran {
        Ok(Ok(())) => return (world.tally, world.failures(), None),
        Ok(Err(violated)) => violated,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            format!("a panic: {text}")
        }
    };
    let story: Vec<_> = world.story().collect();
    let text = format!(
        "VIOLATION seed {seed}, step {}: {violated}\n{}\nplay it again: cargo run -p floe-scenarios -- simulate --seeds 1 --first-seed {seed} --nodes {}..{}\n",
        world.tally.steps,
        story.join("\n"),
        how.nodes.start(),
        how.nodes.end(),
    );
    (world.tally, Vec::new(), Some(text))
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

    fn how(bug: Option<Bug>) -> Play {
        Play { nodes: NODES, lines: 40, bug }
    }

    #[test]
    fn a_thousand_runs_break_no_invariant() {
        let outcome = play_all(1..SEEDS + 1, 2, &how(None));
        assert!(outcome.violations.is_empty(), "{}", outcome.violations.join("\n"));
        assert_eq!(outcome.sum.seeds, SEEDS);
        // A run in which nothing happens would break nothing either.
        assert!(outcome.sum.faults > 10 * SEEDS && outcome.sum.succeeded > 10 * SEEDS, "{:?}", outcome.sum);
    }

    #[test]
    fn a_seed_is_a_run() {
        for seed in [1, 2, 3] {
            let (first, ..) = play(seed, &how(None));
            let (second, ..) = play(seed, &how(None));
            assert_eq!(first, second);
        }
        assert_ne!(play(1, &how(None)).0.hash, play(2, &how(None)).0.hash);
    }

    /// What the first violation says, if one is found within a few hundred runs.
    fn found(bug: Bug) -> String {
        let outcome = play_all(1..301, 2, &how(Some(bug)));
        outcome.violations.join("\n")
    }

    #[test]
    fn a_worker_that_follows_fenced_leaders_is_found() {
        let violations = found(Bug::IgnoredFence);
        assert!(violations.contains("from a leader at fence"), "{violations}");
        assert!(violations.contains("play it again: cargo run"), "{violations}");
    }

    #[test]
    fn a_disk_that_lies_about_syncing_is_found() {
        let violations = found(Bug::LyingDisk);
        assert!(violations.contains("VIOLATION"), "{violations}");
    }
}
