//! Scenarios from the command line: `cargo run -p floe-scenarios -- list`, `-- run NAME`, `-- bench`,
//! `-- simulate`.

mod bench;
mod run;
mod simulate;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

/// The same allocator as the nodes', so that a comparison with Polars in this process is a fair one.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Stories played on real Floe processes.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the stories that `run` plays.
    List(run::ListOptions),
    /// Plays a story on real nodes and tells what happened, as a table and, if wanted, as JSON.
    Run(run::RunOptions),
    /// Random faults under a steady stream of jobs, from a seed.
    Chaos(floe_scenarios::chaos::Options),
    /// Measures what Floe promises and prints each figure beside its target.
    Bench(bench::Options),
    /// Plays what the mesh agrees on and decides, with everything going wrong, from seeds.
    Simulate(simulate::Options),
    /// Runs queries in this process for `bench` to compare with.
    #[command(hide = true)]
    SingleProcess(bench::SingleProcess),
}

#[tokio::main]
#[expect(clippy::print_stderr, reason = "an error's sentence is for whoever ran this")]
async fn main() -> ExitCode {
    // About queries of ours that we know.
    polars::error::set_warning_function(|_, _| {});
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("FLOE_LOG"))
        .with_writer(std::io::stderr)
        .init();
    match run(Arguments::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Chaos(options) => floe_scenarios::chaos::run(&options, &floe_binary()?).await,
        Command::List(options) => {
            run::list(&options);
            Ok(())
        }
        Command::Run(options) => run::run(&options).await,
        Command::Bench(options) => bench::run(&options).await,
        Command::Simulate(options) => simulate::run(&options),
        Command::SingleProcess(options) => options.run(),
    }
}

/// The `floe` binary, which cargo puts beside this one.
fn floe_binary() -> Result<PathBuf> {
    let here = std::env::current_exe().context("cannot tell where this program lies")?;
    let floe = here.with_file_name(format!("floe{}", std::env::consts::EXE_SUFFIX));
    ensure!(floe.is_file(), "there is no {}: build it first: cargo build --bin floe", floe.display());
    Ok(floe)
}
