//! Why something did not work, typed where a decision hangs on it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{JobId, NodeId, TaskId};
use crate::job::Freed;

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
    /// What came with a job's submission is on no node any more, and cannot be made again: a power cut took it before it
    /// was synced, or disks were wiped. Whoever has it may submit the job again, under its id.
    #[error(
        "what came with the job is lost: {}, since power was cut soon after the job was accepted, or disks were wiped; \
         submit it again",
        lost_part(*partition, *node)
    )]
    SubmissionLost {
        /// One of the lost partitions, or nothing if it is the plan.
        partition: Option<TaskId>,
        /// A node that held it, or looked for it everywhere.
        node: NodeId,
    },
    /// Memory or disk ran out.
    #[error("{what} ran out: {message}")]
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
    /// The mesh does not know the job. If it ever did, it ended so long ago that it is forgotten.
    #[error("no job {job} in this mesh: it was never accepted, or ended long ago")]
    NoSuchJob {
        /// The job.
        job: JobId,
    },
    /// The job has ended, and what is asked for is not there any more.
    #[error("nothing is left of job {job}: {freed}")]
    Freed {
        /// The job.
        job: JobId,
        /// Why, and since when.
        freed: Freed,
    },
    /// A request this node will not serve, with the reason.
    #[error("{message}")]
    Refused {
        /// The reason, and what to do.
        message: String,
    },
    /// The mesh knows of a later start of this node than this one: its data directory is a copy of another, or was put back
    /// from a backup, and knows nothing of what the node promised since. It must not go on under its name.
    #[error("{message}")]
    Superseded {
        /// Which start of which node, and what of it is known.
        message: String,
    },
    /// A plan that only the driver's own Polars runs as it is meant: it calls functions of the driver's language, or
    /// comes from a Polars that is not the one of the nodes and has no counterpart there.
    #[error("{message}")]
    Foreign {
        /// What is foreign to the nodes, and what to do.
        message: String,
    },
    /// There is as much to do as can be held, so this was not begun.
    #[error("{message}; try again in {} s", retry_ms.div_ceil(1_000))]
    Busy {
        /// What there is too much of, and where: of one node, another may have room.
        message: String,
        /// When to try again.
        retry_ms: u64,
    },
    /// A fault of Floe's own.
    #[error("internal error (please report it): {message}")]
    Internal {
        /// What went wrong.
        message: String,
    },
}

fn lost_part(partition: Option<TaskId>, node: NodeId) -> String {
    match partition {
        Some(task) => format!("no node holds its partition {} any more (node {node} did)", task.partition),
        None => format!("no node holds its plan any more (node {node} looked for it)"),
    }
}

/// The longest text that is kept of a failure.
pub const MAX_TEXT_BYTES: usize = 16 << 10;

/// The longest exception that is kept as the driver's language understands it.
pub const MAX_EXCEPTION_BYTES: usize = 32 << 10;

/// Stands where something was left out.
const LEFT_OUT: &str = " ... ";

/// Leaves out the middle of a text that is too long: its begin says what it is, and its end is often the reason.
fn shorten(text: &mut String) {
    if text.len() <= MAX_TEXT_BYTES {
        return;
    }
    let half = (MAX_TEXT_BYTES - LEFT_OUT.len()) / 2;
    let begin = text.floor_char_boundary(half);
    let end = text.ceil_char_boundary(text.len() - half);
    text.replace_range(begin..end, LEFT_OUT);
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

    /// Whether it says something of the job itself, which would have failed so anywhere, rather than of the nodes that
    /// one part of a mesh had.
    pub fn is_of_the_job(&self) -> bool {
        matches!(
            self,
            Self::Query { .. }
                | Self::Exception { .. }
                | Self::Crashed { .. }
                | Self::Limit { .. }
                | Self::Version { .. }
                | Self::Foreign { .. }
                // All that is remembered of one of these.
                | Self::Freed { .. }
        )
    }

    /// The same with no text longer than [`MAX_TEXT_BYTES`]: what is replicated and remembered on every node must not
    /// grow with what a query or a function said.
    pub fn shortened(mut self) -> Self {
        let texts: Vec<&mut String> = match &mut self {
            Self::Query { message }
            | Self::Version { message }
            | Self::Unavailable { message }
            | Self::Refused { message }
            | Self::Superseded { message }
            | Self::Foreign { message }
            | Self::Busy { message, .. }
            | Self::Internal { message } => vec![message],
            Self::Unseen { path, looked } => vec![path, looked],
            Self::Exception { name, message, traceback, exception } => {
                // A part of it cannot be read back.
                if exception.len() > MAX_EXCEPTION_BYTES {
                    exception.clear();
                }
                vec![name, message, traceback]
            }
            Self::Crashed { name, how, output } => vec![name, how, output],
            Self::Limit { name, what, message } => vec![name, what, message],
            Self::Unfit { needs, why } => vec![needs, why],
            Self::NoneFits { needs, looked } => vec![needs, looked],
            Self::Blind { path, why } => vec![path, why],
            Self::Exhausted { what, message } => vec![what, message],
            Self::InputLost { .. }
            | Self::SubmissionLost { .. }
            | Self::NodeLost { .. }
            | Self::Cancelled
            | Self::NoSuchJob { .. }
            | Self::Freed { .. } => Vec::new(),
        };
        for text in texts {
            shorten(text);
        }
        self
    }

    /// An [`Failure::Internal`] from anything that prints.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        Self::Internal { message: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_is_remembered_is_short() {
        let long = "é".repeat(MAX_TEXT_BYTES);
        let exception = |bytes: usize| Failure::Exception {
            name: "f".to_owned(),
            message: format!("begin {long} end"),
            traceback: String::new(),
            exception: vec![0; bytes].into(),
        };
        let Failure::Exception { message, exception: kept, .. } = exception(MAX_EXCEPTION_BYTES).shortened()
        else {
            panic!("it stays what it is");
        };
        assert!(message.len() <= MAX_TEXT_BYTES && message.len() > MAX_TEXT_BYTES - 8);
        assert!(message.starts_with("begin é") && message.ends_with("é end"));
        assert_eq!(kept.len(), MAX_EXCEPTION_BYTES);
        let Failure::Exception { exception: kept, .. } = exception(MAX_EXCEPTION_BYTES + 1).shortened()
        else {
            panic!("it stays what it is");
        };
        assert!(kept.is_empty(), "half an exception is none");
        let short = Failure::Query { message: "no column a".to_owned() };
        assert_eq!(short.clone().shortened(), short);
    }
}
