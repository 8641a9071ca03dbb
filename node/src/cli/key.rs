//! `floe key`

use floe_transport::MeshKey;

use super::{End, output};

/// Print a fresh mesh key, as a key file holds it
///
/// Whoever holds the key can join the mesh and run code on its nodes: keep it like a password.
#[derive(Debug, clap::Args)]
pub(super) struct KeyArgs {}

pub(super) fn run(_: KeyArgs) -> anyhow::Result<End> {
    output::print(format_args!("{}\n", MeshKey::generate()))?;
    Ok(End::Done)
}
