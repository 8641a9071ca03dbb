//! Identifiers, each its own type so that the compiler keeps them apart.

use std::cmp::{Ordering, Reverse};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::time::WallTime;

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
    /// One mesh, chosen at its genesis: the milliseconds since the Unix epoch in the upper 48 bits, then chance.
    /// So the smaller of two ids is, by the clocks of their founders, that of the mesh founded first.
    MeshId, u128, 32, "mesh id"
}
hex_id! {
    /// One proposal to the replicated log, chosen at random by the proposer: a command applies once however
    /// often it was proposed.
    RequestId, u128, 32, "request id"
}

hex_id! {
    /// Bytes that are kept and fetched by what they are: the first half of their SHA-256.
    BlobId, u128, 32, "blob id"
}

impl MeshId {
    /// The id of a mesh founded now, by its founder's clock, which makes it likely that the older of two meshes goes on
    /// when they meet. `chance` is any random number.
    pub fn founded_at(wall: WallTime, chance: u128) -> Self {
        Self(u128::from(wall.unix_ms()) << 80 | chance >> 48)
    }
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

/// One history of a mesh, and with it one replicated log: from genesis, or from where a single node went on
/// without the others (the survivor of two, or after a recovery), to where the next one goes on.
///
/// The greater of two eras wins when they meet: of one mesh the later epoch, of two meshes the one founded
/// first. The rule looks at nothing that could change meanwhile, so that all nodes choose alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Era {
    /// The mesh.
    pub mesh: MeshId,
    /// Counts the mesh's eras, from 1.
    pub epoch: u64,
    /// The node that began it: two that went on without each other begin two eras of one epoch.
    pub founder: NodeId,
}

impl Era {
    /// Whether the other era was given up when this one began, so that nothing in it can be agreed on that
    /// would not have to be agreed on here too.
    pub fn supersedes(&self, other: &Self) -> bool {
        self.mesh == other.mesh && self.epoch > other.epoch
    }
}

impl Ord for Era {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |era: &Self| (Reverse(era.mesh), era.epoch, Reverse(era.founder));
        rank(self).cmp(&rank(other))
    }
}

impl PartialOrd for Era {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Era {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {} of mesh {}, begun by {}", self.epoch, self.mesh, self.founder)
    }
}

/// Who speaks as leader: a worker follows orders of its own era only, and refuses those of a term below the
/// highest it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// The era.
    pub era: Era,
    /// The Raft term within the era.
    pub term: u64,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.era.epoch, self.term)
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

    #[test]
    fn of_one_mesh_the_later_era_wins_and_of_two_meshes_the_older() {
        let era = |mesh, epoch, founder| Era { mesh: MeshId(mesh), epoch, founder: NodeId(founder) };
        let ranked = [era(7, 9, 1), era(5, 1, 2), era(5, 2, 8), era(5, 2, 3)];
        assert!(ranked.is_sorted());
        assert!(era(5, 2, 8).supersedes(&era(5, 1, 2)));
        assert!(!era(5, 2, 3).supersedes(&era(5, 2, 8)), "two that went on without each other");
        assert!(!era(5, 2, 3).supersedes(&era(7, 1, 1)), "another mesh");
    }
}
