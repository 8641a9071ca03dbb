//! Identifiers, each its own type so that the compiler keeps them apart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not an identifier of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind}: expected {digits} hexadecimal digits")]
pub struct ParseIdError {
    text: String,
    kind: &'static str,
    digits: usize,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $repr:ty, $digits:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $repr);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{:0", $digits, "x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let error = || ParseIdError { text: text.to_owned(), kind: $kind, digits: $digits };
                if text.len() != $digits || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(error());
                }
                <$repr>::from_str_radix(text, 16).map(Self).map_err(|_| error())
            }
        }
    };
}

hex_id! {
    /// One node: the first eight bytes of the SHA-256 of its libp2p `PeerId`, never zero. It is the node's
    /// Raft id too, so a node that lost its disk, and with it its key, is a new one.
    NodeId, u64, 16, "node id"
}
hex_id! {
    /// One job, chosen at random by its driver, so that a submission can be repeated safely.
    JobId, u64, 16, "job id"
}
hex_id! {
    /// One mesh, chosen at random at its genesis.
    MeshId, u128, 32, "mesh id"
}
hex_id! {
    /// One proposal to the replicated log, chosen at random by the proposer: a command applies once however
    /// often it was proposed.
    RequestId, u128, 32, "request id"
}

/// A stage's place in its job's [`crate::StageGraph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StageId(pub u32);

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One task, and at once the partition it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId {
    /// The job.
    pub job: JobId,
    /// The stage within the job.
    pub stage: StageId,
    /// The output partition within the stage, from 0.
    pub partition: u32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.job, self.stage, self.partition)
    }
}

/// One try at a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// The task.
    pub task: TaskId,
    /// Which try, unique among the tries of this task across leaders: the high half holds the Raft term's low
    /// bits, the low half counts within it.
    pub attempt: u64,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{:x}", self.task, self.attempt)
    }
}

/// Who speaks as leader: a worker refuses orders whose fence is below the highest it has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// The mesh's epoch, raised when a mesh is recovered or merged.
    pub epoch: u64,
    /// The Raft term within the epoch.
    pub term: u64,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_their_text_form_and_refuse_others() {
        let id = JobId(0xabc);
        assert_eq!(id.to_string(), "0000000000000abc");
        assert_eq!("0000000000000abc".parse(), Ok(id));
        for bad in ["", "abc", "0000000000000abg", "+000000000000abc", "00000000000000abc"] {
            assert!(bad.parse::<JobId>().is_err(), "{bad}");
        }
    }
}
