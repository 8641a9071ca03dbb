//! Why something asked of a mesh did not work, in sentences its user can act on.

use std::time::Duration;

use floe_protocol::{Failure, JobId};
use libp2p::Multiaddr;

/// What the functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something asked of a mesh did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// [`Mesh::connect`](crate::Mesh::connect) was given no address, or no key where one is needed.
    #[error("{0}")]
    Incomplete(&'static str),
    /// An address that is not a multiaddress.
    #[error("`{address}` is not a multiaddress such as /ip4/192.0.2.1/tcp/4001: {reason}")]
    Address {
        /// The address as it was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No node answered in time.
    #[error("no node answered within {}: {}", seconds(*.waited), list(.tried))]
    Unreachable {
        /// Each address that was tried, and what came of it last.
        tried: Vec<(String, String)>,
        /// How long it was tried.
        waited: Duration,
    },
    /// The nodes refused this driver at the door: another mesh key, or a version that does not fit. Trying again
    /// is of no use.
    #[error("{0}")]
    Refused(String),
    /// A node answered, but the mesh could not do what was asked in time: no leader, no majority.
    #[error("{}", unavailable(.failure, *.waited))]
    Unavailable {
        /// What was missing last.
        failure: Failure,
        /// How long it was tried.
        waited: Duration,
    },
    /// The job failed.
    #[error("{failure}")]
    JobFailed {
        /// The job.
        job: JobId,
        /// Why.
        failure: Failure,
    },
    /// The job was cancelled.
    #[error("job {job} was cancelled")]
    JobCancelled {
        /// The job.
        job: JobId,
    },
    /// The node would not do what was asked.
    #[error("{0}")]
    Failure(Failure),
    /// The node that sent the result was lost, and another holds a result that is cut differently: what was
    /// already read cannot be continued.
    #[error("the result of job {job} was made anew while it was read: read it again from its start")]
    ResultChanged {
        /// The job.
        job: JobId,
    },
    /// The partitions of a function's result are not parts of one table. Read them one by one, with
    /// [`Job::partitions`](crate::Job::partitions), or make the function return the same columns for each.
    #[error("partition {partition} of the result does not fit partition 0: {difference}")]
    PartitionsDiffer {
        /// The first partition that differs from partition 0.
        partition: u32,
        /// What differs, column by column, with both types.
        difference: String,
    },
    /// The session is over: no call can be made in it, and every result that came was taken.
    #[error("the session is over: {failure}")]
    SessionEnded {
        /// Its standing job.
        session: JobId,
        /// Why; [`Failure::Cancelled`] if it was closed on this side.
        failure: Failure,
    },
    /// A node sent something that cannot be read.
    #[error("the answer of {address} cannot be read: {reason}")]
    Malformed {
        /// The node's address.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something on this side failed: encoding a plan, reading a result into a frame.
    #[error("{0}")]
    Local(String),
    /// Polars could not write the plan or read the result.
    #[cfg(feature = "polars")]
    #[error(transparent)]
    Polars(#[from] polars::error::PolarsError),
}

impl Error {
    pub(crate) fn malformed(address: &Multiaddr, reason: impl std::fmt::Display) -> Self {
        Self::Malformed { address: address.to_string(), reason: reason.to_string() }
    }
}

/// A mesh that is full has answered, and says so itself.
fn unavailable(failure: &Failure, waited: Duration) -> String {
    let waited = seconds(waited);
    match failure {
        Failure::Busy { .. } => format!("{failure} (it was tried for {waited})"),
        failure => format!("the mesh could not answer within {waited}: {failure}"),
    }
}

fn seconds(waited: Duration) -> String {
    format!("{:.1} s", waited.as_secs_f64())
}

/// How many addresses an error lists: the rest would bury the sentence.
const MAX_LISTED: usize = 8;

fn list(tried: &[(String, String)]) -> String {
    let mut listed: Vec<_> =
        tried.iter().take(MAX_LISTED).map(|(address, reason)| format!("{address} ({reason})")).collect();
    if tried.len() > MAX_LISTED {
        listed.push(format!("and {} more", tried.len() - MAX_LISTED));
    }
    listed.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_mesh_says_so_first() {
        let waited = Duration::from_secs(29);
        let message = "the mesh is full: 4096 jobs are unfinished".to_owned();
        let busy = Error::Unavailable { failure: Failure::Busy { message, retry_ms: 1_000 }, waited };
        assert_eq!(
            busy.to_string(),
            "the mesh is full: 4096 jobs are unfinished; try again in 1 s (it was tried for 29.0 s)"
        );
        let message = "there is no leader".to_owned();
        let none = Error::Unavailable { failure: Failure::Unavailable { message }, waited };
        assert_eq!(none.to_string(), "the mesh could not answer within 29.0 s: there is no leader");
    }

    #[test]
    fn an_unreachable_mesh_is_told_with_addresses_and_time() {
        let tried =
            (1..=10).map(|port| (format!("/ip4/10.0.0.1/tcp/{port}"), "refused".to_owned())).collect();
        let text = Error::Unreachable { tried, waited: Duration::from_millis(10_040) }.to_string();
        assert!(
            text.starts_with("no node answered within 10.0 s: /ip4/10.0.0.1/tcp/1 (refused), "),
            "{text}"
        );
        assert!(text.ends_with("and 2 more"), "{text}");
    }
}
