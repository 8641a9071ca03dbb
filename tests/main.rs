//! Floe from outside: real node processes on loopback, called through the command line and the Rust client.
//!
//! Every test waits for conditions, never for time; a test that fails leaves its nodes' files behind and says
//! where. Tests that differ only in what they ask share one mesh, because starting one costs seconds.

#![allow(clippy::unwrap_used)]

mod bad_input;
// The longest by far, so its name makes it begin early: tests are taken in the order of their names.
mod bindings;
mod chaos;
mod cli;
mod deadly;
mod disk;
mod door;
mod failover;
mod frames;
mod functions;
mod healing;
mod mesh;
mod namespaces;
mod plans;
mod queries;
mod readme;
mod results;
mod stories;
mod workload;

use std::path::Path;

use floe_scenarios::harness::{Builder, Cluster, DEADLINE, Floe};
use floe_transport::{Connection, Credentials, Role};
use libp2p::identity::Keypair;

/// The binary under test, which cargo has built for this.
const FLOE: &str = env!("CARGO_BIN_EXE_floe");

fn cluster() -> Builder {
    Cluster::builder(FLOE)
}

/// `floe` with this directory as its home, apart from any mesh.
fn floe(home: &Path) -> Floe {
    Floe::new(FLOE, home)
}

/// A driver's connection to one node, and nothing that goes on through others.
async fn connection(cluster: &mut Cluster, node: usize) -> Connection {
    let key = std::fs::read_to_string(cluster.key_file()).unwrap().trim().parse().unwrap();
    let credentials = Credentials::new(key, Role::Driver);
    let address = cluster.node(node).address().parse().unwrap();
    Connection::dial(&Keypair::generate_ed25519(), credentials, address, DEADLINE).await.unwrap()
}
