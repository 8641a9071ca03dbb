//! The Rust client of a Floe mesh: connect to any node, submit, watch, collect.
//!
//! ```no_run
//! # async fn example() -> floe_client::Result<()> {
//! use floe_client::Mesh;
//! use futures::TryStreamExt;
//!
//! let mesh = Mesh::connect(["/ip4/127.0.0.1/tcp/4001"]).await?;
//! let job = mesh
//!     .sql("SELECT carrier, COUNT(*) AS flights FROM flights GROUP BY carrier ORDER BY flights DESC")
//!     .table("flights", "data/flights.parquet")
//!     .await?;
//! let mut result = job.stream().await?;
//! println!("{}", result.schema());
//! while let Some(batch) = result.try_next().await? {
//!     println!("{} rows", batch.num_rows());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! With the feature `polars`, a `LazyFrame` runs on the mesh and comes back as a `DataFrame`: see
//! `Mesh::collect`.
//!
//! **Functions.** [`Mesh::run_function`] runs a function over data, as a job with a task for each part, whose
//! partitions [`Job::partitions`] gives one by one; [`Mesh::session`] is for many short calls. Both take a function
//! as the nodes know it, in any language ([`function::Function`]); [`native`] makes such functions of Rust's own.
//! [`Mesh::put`] shares bytes with all nodes, once each.
//!
//! **What happens when a node is lost.** A job lives in the mesh, not in its driver. Every call, watch and result
//! that was under way goes on through another node under the same job id, for up to [`DEFAULT_TIMEOUT`] without
//! an answer; a result goes on with the batch after the last one that was read. The calls of a session that have no
//! result yet are made again.
//!
//! The modules, in the order of a call: `mesh` asks, `link` finds a node that answers (among `nodes`, with
//! `patience`), `job` and `watch` follow, `fetch` brings the result in pieces that `ipc` cuts, and `result`,
//! `frame` and `partitions` put them together, `schema` saying what does not fit. `function` and `blob` send what
//! functions are made of, `logs` brings what they printed, and `session` has the calls.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod blob;
mod error;
mod fetch;
#[cfg(feature = "polars")]
mod frame;
pub mod function;
mod holders;
mod ipc;
mod job;
pub mod json;
mod link;
pub mod local;
mod logs;
mod mesh;
pub mod native;
mod nodes;
mod partitions;
mod patience;
mod places;
mod query;
mod result;
mod schema;
mod session;
mod watch;

pub use error::{Error, Result};
#[cfg(feature = "polars")]
pub use frame::{FrameStream, lazy_spec};
pub use job::Job;
pub use logs::LogStream;
pub use mesh::{Mesh, MeshBuilder, Submission, new_job_id};
pub use partitions::{OBJECT_COLUMN, PartitionStream, object_of, read_partition};
pub use patience::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_TIMEOUT};
pub use query::Sql;
pub use result::ResultStream;
pub use session::{CallOutcome, Session};
pub use watch::Watch;

pub use floe_protocol::function::Blob;
pub use floe_protocol::message::{LogChunk, Status};
pub use floe_protocol::{
    AttemptId, BlobId, Failure, JobId, JobKind, JobPhase, JobSpec, JobStatus, KeyName, NodeId, NodeInfo,
    NodeRole, Query, Stage, StageGraph, StageId, StageProgress, TaskId,
};
pub use floe_transport::{InvitationSecret, MeshKey, blob_id};
