//! `floe key`

use anyhow::Context;
use clap::{Args, Subcommand};
use floe_transport::MeshKey;

use super::connect::ConnectArgs;
use super::{End, output};

/// Print a fresh mesh key, as a key file holds it; or change that of a running mesh
///
/// Whoever holds the key can join the mesh and run code on its nodes: keep it like a password.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    command: Option<KeyCommand>,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    Rotate(RotateArgs),
}

/// Change the key of a running mesh
///
/// Jobs and connections go on. Every node makes the new key of the former one and writes it into the file that it read
/// that from, if it still holds it. For a minute the former key counts for drivers as well. Members that were away may come
/// back with it for two weeks, and hear of the new one then; no other node may. Drivers on other machines need the new key
/// file.
#[derive(Debug, Args)]
struct RotateArgs {
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: KeyArgs) -> anyhow::Result<End> {
    match args.command {
        None => output::print(format_args!("{}\n", MeshKey::generate()))?,
        Some(KeyCommand::Rotate(args)) => {
            let mesh = args.connect.mesh().await?;
            let key = args.connect.key()?.context("there is no mesh key on this machine")?;
            let to = mesh.rotate_key(key.name()).await?;
            output::note(format_args!(
                "the mesh has a new key, {}; the nodes write it into their key files. The former one counts for drivers for \
                 a minute, and for members that are away",
                to.fingerprint()
            ));
        }
    }
    Ok(End::Done)
}
