//! Floe: a peer-to-peer compute mesh for DataFrames.
//!
//! The way of a query, and the modules in the order it meets them:
//!
//! ```text
//!   submit      calls, submit         a driver's job is planned and agreed on
//!   schedule    node                  the loop over this node's part in the mesh
//!   execute     worker                tasks, off the async threads; functions in processes of their own
//!   store       store                 partitions in memory and on disk
//!   stream      stream                partitions between nodes
//!   collect     results               results to drivers
//! ```
//!
//! Beside it stand `session`, a driver's many short calls, and `blobs`, the code and objects that functions need. `disk`
//! says what of the data directory's disk may be taken.
//!
//! A module imports only what stands beneath it; `node` sees them all, and only the command line and
//! `embedded` start one.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod answers;
pub mod blobs;
pub mod calls;
pub mod cli;
pub mod clock;
pub mod config;
pub mod data_dir;
pub mod disk;
pub mod embedded;
pub mod enter;
pub mod event_loop;
pub mod fault;
pub mod formation;
pub mod in_use;
pub mod intake;
pub mod job_changes;
pub mod job_status;
pub mod keys;
pub mod large_messages;
pub mod log_file;
pub mod log_writer;
pub mod logs;
pub mod mailbox;
pub mod node;
pub mod outgoing;
pub mod partitions;
pub mod peers;
pub mod places;
pub mod plan;
pub mod plans;
pub mod private;
pub mod progress;
pub mod proposals;
pub mod recovery;
pub mod relief;
pub mod results;
pub mod session;
pub mod store;
pub mod stream;
pub mod submit;
pub mod ticket;
pub mod ticks;
pub mod wakeups;
pub mod worker;
