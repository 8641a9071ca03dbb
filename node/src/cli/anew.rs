//! Going on as a new node where the mesh knows of a later start of the one that this directory is of.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::output;
use crate::data_dir::DataDir;
use crate::node::Error;

/// Makes the directory a new node's and replaces this process by one that starts on it as this one was told to. It returns
/// only if that does not work.
pub(super) fn start_again(dir: &Path, superseded: Error) -> anyhow::Error {
    output::note(format_args!("{superseded}. It goes on as a new node; the former one's log is in former/"));
    match replace(dir) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn replace(dir: &Path) -> anyhow::Result<std::convert::Infallible> {
    DataDir::begin_anew(dir)?;
    let program = std::env::current_exe().context("cannot start again as a new node: no program")?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    // A ticket that came from standard input cannot be read again.
    anyhow::ensure!(
        !arguments.iter().any(|argument| argument == "-"),
        "the data directory {} is a new node's now: start it again as before",
        dir.display()
    );
    let error = Command::new(&program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {} again as a new node", program.display()))
}
