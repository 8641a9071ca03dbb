//! How a driver command finds its mesh.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use floe_client::{Error, Mesh, MeshBuilder, MeshKey, local};

use super::output;
use crate::data_dir::read_key;
use crate::embedded::Embedded;

/// How long nodes of this machine may take to answer before they count as gone: they need no network.
const LOCAL_PATIENCE: Duration = Duration::from_secs(3);

/// Which mesh to ask.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Mesh")]
pub(super) struct ConnectArgs {
    /// A node's address; may be given more than once. Without it, this machine's mesh is found
    #[arg(long = "connect", value_name = "MULTIADDR", env = "FLOE_CONNECT", value_delimiter = ',')]
    addresses: Vec<String>,
    /// The file that holds the mesh key; the key of `floe up` on this machine unless given
    #[arg(long, value_name = "FILE", env = "FLOE_KEY_FILE")]
    key_file: Option<PathBuf>,
}

/// A mesh, and the node of this process that it consists of where none was running.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) mesh: Mesh,
    embedded: Option<Embedded>,
}

impl Found {
    /// The key of the embedded node's mesh, if there is one: it lies in no file.
    pub(super) fn embedded_key(&self) -> Option<&MeshKey> {
        self.embedded.as_ref().map(Embedded::key)
    }

    /// Ends the embedded node, if there is one.
    pub(super) async fn close(self) {
        if let Some(embedded) = self.embedded
            && let Err(error) = embedded.stop().await
        {
            tracing::warn!(%error, "the embedded node did not stop cleanly");
        }
    }
}

impl ConnectArgs {
    /// The mesh, which must be running.
    pub(super) async fn mesh(&self) -> anyhow::Result<Mesh> {
        self.find()
            .await?
            .context("no mesh runs on this machine: start one with `floe up`, or name a node with --connect")
    }

    /// The mesh, or one of a single node in this process where none is running.
    pub(super) async fn mesh_or_embedded(&self) -> anyhow::Result<Found> {
        if let Some(mesh) = self.find().await? {
            return Ok(Found { mesh, embedded: None });
        }
        tracing::info!("no mesh runs on this machine: this process answers by itself");
        let embedded = Embedded::start().await?;
        let addresses: Vec<_> = embedded.addresses().iter().map(ToString::to_string).collect();
        let mesh = Mesh::builder().key(embedded.key().clone()).addresses(addresses).connect().await?;
        Ok(Found { mesh, embedded: Some(embedded) })
    }

    /// The mesh key, if there is one.
    pub(super) fn key(&self) -> anyhow::Result<Option<MeshKey>> {
        self.key_path()?.map(|path| Ok(read_key(&path)?)).transpose()
    }

    /// The file that holds it: the one that was named, which may not exist, or this user's, if it does.
    pub(super) fn key_path(&self) -> anyhow::Result<Option<PathBuf>> {
        if let Some(path) = &self.key_file {
            return Ok(Some(path.clone()));
        }
        Ok(Some(local::key_file(&local::home()?)).filter(|path| path.exists()))
    }

    /// With this key, and the file that it was read from, since the mesh may change it.
    fn builder(&self, key: MeshKey) -> anyhow::Result<MeshBuilder> {
        let builder = Mesh::builder().key(key);
        Ok(match self.key_path()? {
            Some(file) => builder.key_file(file),
            None => builder,
        })
    }

    async fn find(&self) -> anyhow::Result<Option<Mesh>> {
        let addresses: Vec<&String> = self.addresses.iter().filter(|address| !address.is_empty()).collect();
        let key = self.key()?;
        if !addresses.is_empty() {
            let Some(key) = key else {
                bail!("there is no mesh key on this machine: name the mesh's key file with --key-file");
            };
            let mesh = self.builder(key)?.addresses(addresses);
            return Ok(Some(mesh.connect().await?));
        }
        let home = local::home()?;
        let addresses = key.as_ref().map(|key| local::nodes(&home, key)).unwrap_or_default();
        let Some(key) = key.filter(|_| !addresses.is_empty()) else {
            if local::any_node(&home) {
                bail!("nodes run on this machine with another mesh key: name their key file with --key-file");
            }
            return Ok(None);
        };
        let builder = self.builder(key)?.addresses(addresses).connect_timeout(LOCAL_PATIENCE);
        match builder.connect().await {
            Ok(mesh) => Ok(Some(mesh)),
            // Nodes that were killed leave their announcements behind.
            Err(error @ Error::Unreachable { .. }) => {
                tracing::debug!(%error, "the nodes announced on this machine are gone");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Tells what a note on stderr says about the mesh that was asked.
pub(super) fn note_embedded(found: &Found) {
    if found.embedded.is_some() {
        output::note(format_args!(
            "note: no mesh runs on this machine, so this process answered alone; start one with `floe up`"
        ));
    }
}
