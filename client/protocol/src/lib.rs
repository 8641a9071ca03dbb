//! What crosses the wire between Floe's nodes and drivers: ids, job specifications and status, stage
//! graphs, typed failures, messages, and their framing.
//!
//! This crate knows neither libp2p nor Polars: what only they understand travels as bytes.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod arrow_file;
pub mod columns;
pub mod failure;
pub mod frame;
pub mod function;
pub mod graph;
pub mod ids;
pub mod job;
mod manner;
pub mod message;
pub mod node;
pub mod secret;
pub mod session;
pub mod time;
pub mod version;

pub use failure::Failure;
pub use function::{Function, FunctionJob};
pub use graph::{Exchange, OutputMeta, Placed, Read, Stage, StageGraph, StageInput, Summary, TaskSpec, Work};
pub use ids::{
    AttemptId, BlobId, Claim, Era, Fence, InvitationId, JobId, KeyName, MeshId, NodeId, RequestId, StageId,
    TaskId,
};
pub use job::{Freed, JobKind, JobPhase, JobSpec, JobStatus, Query, StageProgress, WhyFreed};
pub use message::{PeerMessage, Request, Response};
pub use node::{Incarnation, Load, Member, NodeInfo, NodeRole};
pub use secret::Secret;
pub use time::WallTime;
