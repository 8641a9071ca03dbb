//! `list` and `run`: stories from the command line.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;
use floe_scenarios::stories::{self, ALL, Order};

use crate::floe_binary;

/// What `list` is told.
#[derive(clap::Args, Debug)]
pub(crate) struct ListOptions {
    /// Only the names, one a line
    #[arg(long)]
    names: bool,
}

/// What `run` is told.
#[derive(clap::Args, Debug)]
pub(crate) struct RunOptions {
    /// The story; `list` shows all
    #[arg(value_parser = PossibleValuesParser::new(ALL.iter().map(|story| story.name)), hide_possible_values = true)]
    name: String,
    /// How often it is played
    #[arg(long, default_value_t = 1, value_parser = parse_rounds)]
    rounds: usize,
    /// What decides who is hit and when; a random one unless given, printed with the command that replays it
    #[arg(long, value_parser = parse_seed)]
    seed: Option<u64>,
    /// How many nodes; as many as the story usually has unless given
    #[arg(long)]
    nodes: Option<usize>,
    /// Also write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn parse_rounds(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("0 rounds tell nothing: give 1 or more".to_owned()),
        Ok(rounds) => Ok(rounds),
        Err(_) => Err("not a number of rounds: give a whole number, 1 or more".to_owned()),
    }
}

fn parse_seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("not a seed: give a whole number from 0 to {}", u64::MAX))
}

/// Prints the stories.
#[expect(clippy::print_stdout, reason = "the list is this command's output")]
pub(crate) fn list(options: &ListOptions) {
    for story in ALL {
        if options.names {
            println!("{}", story.name);
        } else {
            println!("{:<24} {} (nodes: {} or more)", story.name, story.sentence, story.fewest_nodes);
        }
    }
}

/// Plays a story. Missing a target is no error; a lost job, a wrong result or a story that breaks off is.
#[expect(clippy::print_stdout, reason = "the report is this command's output")]
pub(crate) async fn run(options: &RunOptions) -> Result<()> {
    let Some(story) = stories::find(&options.name) else {
        bail!("there is no story `{}`: `list` shows all", options.name);
    };
    // Short enough to be typed.
    let seed = options.seed.unwrap_or_else(|| rand::random::<u32>().into());
    let order = Order { floe: floe_binary()?, nodes: options.nodes, rounds: options.rounds, seed };
    // A report that cannot be written should not be found out after an hour.
    let json = match &options.json {
        Some(path) => Some(File::create(path).with_context(|| format!("cannot write {}", path.display()))?),
        None => None,
    };
    let report = stories::play(story, &order, |round| println!("{round}")).await?;
    println!("{report}");
    if let Some(file) = json {
        serde_json::to_writer_pretty(file, &report).context("cannot write the report")?;
    }
    if !report.sound {
        // All is said: an error would only follow what must be the end.
        std::process::exit(1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: RunOptions,
    }

    fn refused(args: &[&str]) -> String {
        let error = Line::try_parse_from(["run"].iter().chain(args)).err().unwrap();
        assert_ne!(error.exit_code(), 0);
        error.to_string()
    }

    #[test]
    fn bad_input_is_told_in_a_sentence() {
        assert!(refused(&["leader-kiled"]).contains("'leader-killed'"));
        assert!(refused(&["rolling", "--seed", "0x7"]).contains("not a seed: give a whole number"));
        assert!(refused(&["rolling", "--seed=-1"]).contains("not a seed"));
        assert!(refused(&["rolling", "--rounds", "0"]).contains("0 rounds tell nothing"));
        assert!(refused(&["rolling", "--rounds", "many"]).contains("not a number of rounds"));
    }
}
