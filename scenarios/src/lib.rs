//! Stories played on real Floe processes: chaos, load, scale.
//!
//! [`harness`] starts nodes as processes of their own on loopback and takes them down again, [`data`] makes
//! what they work on, [`workload`] what they are kept busy with, and [`mod@reference`] says what the right answer
//! is. The integration tests stand on the same four. [`stories`] tells what happens to nodes and plays it.
//!
//! What is absent: nothing here knows how a node works inside. A scenario sees what a user sees: the `floe`
//! binary, its exit codes and output, and the Rust client.

pub mod chaos;
pub mod data;
pub mod harness;
pub mod history;
pub mod reference;
pub mod stories;
pub mod workload;
