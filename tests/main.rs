//! Floe from outside: real node processes on loopback, called through the command line and the Rust client.
//!
//! Every test waits for conditions, never for time; a test that fails leaves its nodes' files behind and says
//! where. Tests that differ only in what they ask share one mesh, because starting one costs seconds.

#![allow(clippy::unwrap_used)]

mod bad_input;
mod chaos;
mod cli;
mod failover;
mod functions;
mod healing;
mod mesh;
mod namespaces;
mod python;
mod queries;
mod stories;
mod workload;

use std::path::Path;

use floe_scenarios::harness::{Builder, Cluster, Floe};

/// The binary under test, which cargo has built for this.
const FLOE: &str = env!("CARGO_BIN_EXE_floe");

fn cluster() -> Builder {
    Cluster::builder(FLOE)
}

/// `floe` with this directory as its home, apart from any mesh.
fn floe(home: &Path) -> Floe {
    Floe::new(FLOE, home)
}
