//! The client against nodes that play a part.

#![allow(clippy::unwrap_used, missing_docs)]

mod failover;
mod fake;
mod functions;
mod partitions;
mod sessions;
