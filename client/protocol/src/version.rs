//! Versions that must fit between two ends of a connection.

/// Raised whenever a message, a command or a fragment changes its meaning on the wire.
pub const PROTOCOL_VERSION: u32 = 13;

/// The Polars release whose plans and fragments travel; both ends of a node-to-node connection must agree.
pub const POLARS_VERSION: &str = "0.55.2";

/// The version of Floe.
pub const FLOE_VERSION: &str = env!("CARGO_PKG_VERSION");
