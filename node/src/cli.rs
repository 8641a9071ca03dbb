//! The command line: one file per command, and what they share.
//!
//! Results go to stdout and nothing else does; progress, notes, logs and errors go to stderr. The exit code is
//! 0 for success, 1 for a failure that was told in one line, 2 for wrong usage, 130 for Ctrl-C.

mod anew;
mod cancel;
mod chaos;
mod completions;
mod confirm;
mod connect;
mod demo;
mod drive;
mod explain;
mod forget;
mod format;
mod interrupt;
mod invite;
mod jobs;
mod key;
mod logging;
mod logs;
mod map;
mod output;
mod progress;
mod recover;
mod run;
mod sql;
mod status;
mod table;
mod timeline;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A peer-to-peer compute mesh for DataFrames.
///
/// Every machine runs the same `floe up`; nodes find each other, agree on a leader and share queries. Kill any
/// of them and the queries finish.
#[derive(Debug, Parser)]
#[command(name = "floe", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logging: logging::Logging,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::UpArgs),
    Invite(invite::InviteArgs),
    Status(status::StatusArgs),
    Sql(sql::SqlArgs),
    Explain(explain::ExplainArgs),
    Map(map::MapArgs),
    Run(run::RunArgs),
    Jobs(jobs::JobsArgs),
    Logs(logs::LogsArgs),
    Cancel(cancel::CancelArgs),
    Recover(recover::RecoverArgs),
    Forget(forget::ForgetArgs),
    Demo(demo::DemoArgs),
    Chaos(chaos::ChaosArgs),
    Key(key::KeyArgs),
    Completions(completions::CompletionsArgs),
}

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It did what it should.
    Done,
    /// It told what is wrong, and the exit code says so too.
    Wrong,
    /// Its user stopped it.
    Interrupted,
    /// A program that it ran ended with this.
    Program(u8),
}

/// What shells expect of a command that Ctrl-C ended: 128 and the signal's number.
const INTERRUPTED: u8 = 130;

/// The stack of the runtime's own threads, of which there may be hundreds: nothing that runs on them is deep.
const ASYNC_STACK_BYTES: usize = 2 << 20;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    // SAFETY: no thread runs yet.
    unsafe { floe_query::configure_thread_stacks() };
    let cli = Cli::parse();
    format::configure_tables();
    if let Command::Up(args) = &cli.command {
        args.configure_threads();
    }
    cli.logging.start();
    floe_query::log_polars_warnings();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(ASYNC_STACK_BYTES)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::anyhow!("the asynchronous runtime cannot start: {error}")),
    };
    let end = runtime.block_on(run(cli.command));
    // A worker thread inside Polars cannot be stopped; what it does is no longer wanted.
    runtime.shutdown_background();
    match end {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Wrong) => ExitCode::FAILURE,
        Ok(End::Interrupted) => ExitCode::from(INTERRUPTED),
        Ok(End::Program(code)) => ExitCode::from(code),
        Err(error) => fail(&error),
    }
}

async fn run(command: Command) -> anyhow::Result<End> {
    match command {
        Command::Up(args) => up::run(args).await,
        Command::Invite(args) => invite::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Sql(args) => sql::run(args).await,
        Command::Explain(args) => explain::run(args).await,
        Command::Map(args) => map::run(args).await,
        Command::Run(args) => run::run(args).await,
        Command::Jobs(args) => jobs::run(args).await,
        Command::Logs(args) => logs::run(args).await,
        Command::Cancel(args) => cancel::run(args).await,
        Command::Recover(args) => recover::run(args).await,
        Command::Forget(args) => forget::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Chaos(args) => chaos::run(args).await,
        Command::Key(args) => key::run(args).await,
        Command::Completions(args) => completions::run(args),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    output::note(format_args!("error: {}", sentence(error)));
    ExitCode::FAILURE
}

/// An error and its causes in one line, each said once: many errors repeat their cause in their own text.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("disk full").context("out.csv cannot be written");
        assert_eq!(super::sentence(&error), "out.csv cannot be written: disk full");
        let error = anyhow::anyhow!("disk full").context("cannot write out.csv: disk full");
        assert_eq!(super::sentence(&error), "cannot write out.csv: disk full");
    }

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
