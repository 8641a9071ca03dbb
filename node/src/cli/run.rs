//! `floe run`

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::NamedTempFile;
use tokio::process::Command;
use tokio::signal::unix::SignalKind;

use super::End;
use super::connect::{ConnectArgs, note_embedded};
use super::interrupt::Interrupt;

/// Run a driver: a Python script or a program that uses the mesh
///
/// It finds the mesh by itself: FLOE_CONNECT and FLOE_KEY_FILE are set for it. Where no mesh runs, it gets one of a
/// single node that ends with it. A script that ends in .py runs with the Python of the active virtual
/// environment, or python3.
#[derive(Args, Debug)]
pub(super) struct RunArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// The script or program
    program: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARG")]
    arguments: Vec<OsString>,
}

pub(super) async fn run(args: RunArgs) -> anyhow::Result<End> {
    let mut interrupt = Interrupt::listen()?;
    let found = tokio::select! {
        found = args.connect.mesh_or_embedded() => found?,
        () = interrupt.wait() => return Ok(End::Interrupted),
    };
    note_embedded(&found);
    let end = async {
        let key = match found.embedded_key() {
            Some(key) => Some(write_key(&key.to_string())?),
            None => None,
        };
        let key_file = match &key {
            Some(file) => Some(file.path().to_owned()),
            None => args.connect.key_path()?,
        };
        let status = found.mesh.status().await?;
        let mut alive: Vec<_> = status.nodes.into_iter().filter(|info| info.alive).collect();
        // The node that was asked for is tried first, and not the same one by all drivers.
        alive.sort_by_key(|info| info.member.id != status.node);
        let addresses: Vec<String> = alive.into_iter().flat_map(|info| info.member.addresses).collect();
        let mut command = command(&args);
        command.env("FLOE_CONNECT", addresses.join(","));
        if let Some(key_file) = key_file {
            command.env("FLOE_KEY_FILE", key_file);
        }
        let mut child = command
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} cannot be started", args.program.display()))?;
        loop {
            tokio::select! {
                status = child.wait() => {
                    let status = status?;
                    // As shells do: 128 and the signal's number.
                    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
                    return anyhow::Ok(match u8::try_from(code).unwrap_or(1) {
                        0 => End::Done,
                        code => End::Program(code),
                    });
                }
                // Ctrl-C has reached the program too, which decides what becomes of it. Another signal has not.
                signal = interrupt.which() => if signal == SignalKind::terminate()
                    && let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok())
                {
                    // It may have ended in between.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                },
            }
        }
    };
    let end = end.await;
    found.close().await;
    end
}

fn command(args: &RunArgs) -> Command {
    let is_python = args.program.extension().is_some_and(|ending| ending == "py");
    let mut command = if is_python {
        let mut command = Command::new(python());
        command.arg(&args.program);
        command
    } else {
        // A file here need not be on the path.
        let here = Path::new(".").join(&args.program);
        Command::new(if args.program.components().count() == 1 && here.is_file() {
            here
        } else {
            args.program.clone()
        })
    };
    command.args(&args.arguments);
    command
}

/// The interpreter that a user of this shell would get.
fn python() -> PathBuf {
    match std::env::var_os("VIRTUAL_ENV").filter(|environment| !environment.is_empty()) {
        Some(environment) => Path::new(&environment).join("bin/python"),
        None => PathBuf::from("python3"),
    }
}

/// A file that only its owner reads, gone when it is dropped.
fn write_key(key: &str) -> anyhow::Result<NamedTempFile> {
    let mut file = NamedTempFile::new().context("the mesh key cannot be written")?;
    file.write_all(key.as_bytes()).context("the mesh key cannot be written")?;
    Ok(file)
}
