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

use floe_client::function::{Format, Function, Host, Limits, Payload, Program, ProgramFile};
use floe_scenarios::harness::{Builder, Cluster, DEADLINE, Floe};
use floe_transport::{Connection, Credentials, Role};
use libp2p::identity::Keypair;

/// The binary under test, which cargo has built for this.
const FLOE: &str = env!("CARGO_BIN_EXE_floe");

fn cluster() -> Builder {
    Cluster::builder(FLOE)
}

/// A shell's command as a function, with its own format in and out.
fn shell(name: &str, command: &str, format: Format, limits: Limits) -> Function {
    let program = Program {
        file: ProgramFile::OnPath("sh".into()),
        arguments: vec!["-c".into(), command.into()],
        stdin: format,
        stdout: format,
        // What has types of its own needs none told.
        typed: format == Format::Ndjson,
        env: Default::default(),
    };
    let code = Payload::Inline(Default::default());
    Function { name: name.into(), host: Host::Program(program), code, limits }
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
