//! A mesh of one node inside this process, for the first minute: `floe sql` where no mesh runs.

use floe_client::local;
use floe_transport::MeshKey;
use libp2p::Multiaddr;
use tempfile::TempDir;

use crate::config::{self, Settings};
use crate::data_dir::DataDir;
use crate::fault::Faults;
use crate::keys::KeySource;
use crate::node::{Error, Node};

/// A running embedded mesh. It is alone by design: no discovery, a key nobody else has.
#[derive(Debug)]
pub struct Embedded {
    node: Node,
    key: MeshKey,
    /// Removed when the mesh stops.
    _temp: TempDir,
}

impl Embedded {
    /// Starts it in a temporary directory.
    pub async fn start() -> Result<Self, Error> {
        let temp = tempfile::tempdir().map_err(Error::Temporary)?;
        let data_dir = DataDir::open(&temp.path().join("node"))?;
        let key = MeshKey::generate();
        let settings = Settings {
            name: config::default_name(0),
            listen: Vec::new(),
            join: Vec::new(),
            everywhere: false,
            mdns: false,
            memory_bytes: config::default_memory_bytes(),
            slots: config::default_slots(),
            expect: Some(1),
            registry: None,
            environments: local::home().ok().map(|home| config::environments(&home)),
            python: None,
            faults: Faults::NotAlone,
        };
        let node = Node::start(settings, data_dir, KeySource { key: key.clone(), files: Vec::new() }).await?;
        Ok(Self { node, key, _temp: temp })
    }

    /// Where it can be dialled.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        self.node.addresses()
    }

    /// Its key.
    pub fn key(&self) -> &MeshKey {
        &self.key
    }

    /// Ends it.
    pub async fn stop(self) -> Result<(), Error> {
        self.node.stop().await
    }
}
