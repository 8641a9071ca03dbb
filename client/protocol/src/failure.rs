//! Why something did not work, typed where a decision hangs on it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{JobId, NodeId, TaskId};

/// Why a task, a job or a call failed. Each variant's text is a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The query's own error, the same on any node: the job fails at once with Polars' message.
    #[error("{message}")]
    Query {
        /// Polars' own message.
        message: String,
    },
    /// A file that no node can see, or that not one node sees alike.
    #[error("no node can read {path}: {looked}")]
    Unseen {
        /// The path or pattern as the user wrote it.
        path: String,
        /// Which nodes looked and what each found.
        looked: String,
    },
    /// A function raised an exception, or returned an error.
    #[error("{name} failed: {message}")]
    Exception {
        /// The function.
        name: String,
        /// The exception's type and text, in one line.
        message: String,
        /// Where it came from, for people; empty if the host does not tell.
        traceback: String,
        /// The exception itself, as the driver's language understands it; empty if it cannot be sent.
        exception: Bytes,
    },
    /// A function's process ended by itself or was killed from outside, or did not keep to the protocol.
    #[error("the process that ran {name} {how}{output}")]
    Crashed {
        /// The function.
        name: String,
        /// How it ended: `was killed by signal 11 (SIGSEGV)`, `ended with exit status 3`.
        how: String,
        /// The end of what it printed, with a word before it; empty if there was nothing.
        output: String,
    },
    /// A function took more than it may.
    #[error("{name} was stopped: {message}")]
    Limit {
        /// The function.
        name: String,
        /// `memory` or `time`.
        what: String,
        /// What it took, and what it may take.
        message: String,
    },
    /// This node cannot run a function: it lacks an interpreter, a library, or the right CPU. The task belongs on
    /// another node.
    #[error("{needs} cannot be had on this node: {why}")]
    Unfit {
        /// What the function needs.
        needs: String,
        /// What this node has instead.
        why: String,
    },
    /// No node can run a function.
    #[error("no node can run this: {needs} cannot be had ({looked})")]
    NoneFits {
        /// What the function needs.
        needs: String,
        /// Which nodes were tried, and why each cannot.
        looked: String,
    },
    /// This node does not see the file that a task wants to scan, or sees another version of it. The task
    /// belongs on another node.
    #[error("{path} is not on this node as the plan saw it: {why}")]
    Blind {
        /// The file.
        path: String,
        /// What this node found instead.
        why: String,
    },
    /// An input partition could not be had from any node that should hold it: its producer runs again.
    #[error("partition {partition} is lost: node {node} no longer holds it intact")]
    InputLost {
        /// The lost partition.
        partition: TaskId,
        /// The node that was asked.
        node: NodeId,
    },
    /// Memory or disk ran out on the node.
    #[error("{what} ran out on this node: {message}")]
    Exhausted {
        /// `memory` or `disk`.
        what: String,
        /// What was wanted and what there was.
        message: String,
    },
    /// The node that ran a task is gone.
    #[error("node {node} was lost")]
    NodeLost {
        /// The node.
        node: NodeId,
    },
    /// A plan or a peer of a version that does not fit.
    #[error("{message}")]
    Version {
        /// Both versions, in a sentence.
        message: String,
    },
    /// The job was cancelled, or the attempt is no longer wanted.
    #[error("cancelled")]
    Cancelled,
    /// The mesh cannot decide now: no leader, or no majority. Trying again may help.
    #[error("{message}")]
    Unavailable {
        /// What is missing and what to do.
        message: String,
    },
    /// The job is not known here (any more).
    #[error("no job {job} in this mesh: it was never accepted, or its result was freed")]
    NoSuchJob {
        /// The job.
        job: JobId,
    },
    /// A request this node will not serve, with the reason.
    #[error("{message}")]
    Refused {
        /// The reason, and what to do.
        message: String,
    },
    /// A plan that only the driver's own Polars runs as it is meant: it calls functions of the driver's language, or
    /// comes from a Polars that is not the one of the nodes and has no counterpart there.
    #[error("{message}")]
    Foreign {
        /// What is foreign to the nodes, and what to do.
        message: String,
    },
    /// This node has as much to do as it can hold; another one may have room, and so may this one soon.
    #[error("{message}")]
    Busy {
        /// What there is too much of.
        message: String,
    },
    /// A fault of Floe's own.
    #[error("internal error (please report it): {message}")]
    Internal {
        /// What went wrong.
        message: String,
    },
}

impl Failure {
    /// Whether any node would fail alike, so that trying again is of no use.
    pub fn is_deterministic(&self) -> bool {
        matches!(
            self,
            Self::Query { .. }
                | Self::Unseen { .. }
                | Self::Exception { .. }
                | Self::Limit { .. }
                | Self::NoneFits { .. }
                | Self::Version { .. }
                | Self::Refused { .. }
                | Self::Foreign { .. }
        )
    }

    /// An [`Failure::Internal`] from anything that prints.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        Self::Internal { message: error.to_string() }
    }
}
