//! `floe completions`

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, End, output};

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

pub(super) fn run(args: CompletionsArgs) -> anyhow::Result<End> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "floe", &mut script);
    output::print(format_args!("{}", String::from_utf8_lossy(&script)))?;
    Ok(End::Done)
}
