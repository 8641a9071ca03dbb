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

hex_id! {
    /// What a mesh key is called where the key itself must not be told: it does not betray it.
    KeyName, u64, 16, "key name"
}
hex_id! {
    /// An invitation, by what its secret gives: it does not betray it.
    InvitationId, u64, 16, "invitation id"
}

impl KeyName {
    /// Its first half, which is what people see.
    pub fn fingerprint(self) -> String {
        format!("{:08x}", self.0 >> 32)
    }
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
    /// Which try, unique among the tries of this task across leaders and eras: a digest of the era in the high
    /// half, then the Raft term's and a count's low 16 bits.
    pub attempt: u64,
}

impl AttemptId {
    /// A leader's try at a task, after so many others of its own.
    pub fn new(task: TaskId, fence: Fence, count: u32) -> Self {
        let low = |number: u64| number & u64::from(u16::MAX);
        let attempt = u64::from(fence.era.digest()) << 32 | low(fence.term) << 16 | low(count.into());
        Self { task, attempt }
    }

    /// The low bits of the term of the leader that assigned it.
    pub fn term(self) -> u64 {
        self.attempt >> 16 & u64::from(u16::MAX)
    }

    /// How many tries at the task the leader had assigned before, or their low bits.
    pub fn count(self) -> u64 {
        self.attempt & u64::from(u16::MAX)
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{:x}", self.task, self.attempt)
    }
}

/// One history of a mesh, and with it one replicated log: from genesis, or from where a single node went on
/// without the others (the survivor of two, or after a recovery), to where the next one goes on.
///
/// Of one mesh the later epoch is greater, of two meshes the one founded first, as far as their founders' clocks tell.
/// When two eras meet the greater wins, but of two of one epoch the one that did more work ([`Claim`]).
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

impl Era {
    /// Some bits that tell it from others.
    fn digest(&self) -> u32 {
        let (mesh, epoch) = (self.mesh.0.to_be_bytes(), self.epoch.to_be_bytes());
        let parts = [mesh.as_slice(), &epoch, &self.founder.0.to_be_bytes()];
        xxhash_rust::xxh3::xxh3_64(&parts.concat()) as u32
    }
}

/// What an era brings forward when it meets another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// The era.
    pub era: Era,
    /// How much it has done since it began, in milliseconds of tasks; agreed on once, when it first meets one that it
    /// is compared with by that, and never changed.
    pub work_ms: Option<u64>,
}

impl Claim {
    /// Whether this era wins over another one when they meet. The rule looks at nothing that could change meanwhile,
    /// so that all nodes choose alike; nothing as long as it is not known what one of them has done. No era wins over
    /// itself.
    ///
    /// Two eras of one mesh and epoch come from a pair of which each node went on without the other: the one that was
    /// asleep, or that nobody was connected to, should give way.
    pub fn wins_over(&self, other: &Self) -> Option<bool> {
        if (self.era.mesh, self.era.epoch) != (other.era.mesh, other.era.epoch) || self.era == other.era {
            return Some(self.era > other.era);
        }
        Some((self.work_ms?, self.era) > (other.work_ms?, other.era))
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

    #[test]
    fn of_two_eras_of_one_epoch_the_one_that_worked_wins() {
        let claim = |mesh, epoch, founder, work_ms| {
            let era = Era { mesh: MeshId(mesh), epoch, founder: NodeId(founder) };
            Claim { era, work_ms }
        };
        let wins = |one: Claim, other: Claim| {
            let forth = one.wins_over(&other);
            assert_eq!(other.wins_over(&one), forth.map(|wins| !wins), "they agree");
            forth
        };
        assert_eq!(wins(claim(5, 2, 8, Some(9_000)), claim(5, 2, 3, Some(20))), Some(true));
        assert_eq!(wins(claim(5, 2, 8, Some(20)), claim(5, 2, 3, Some(20))), Some(false), "as before");
        assert_eq!(wins(claim(5, 2, 8, None), claim(5, 2, 3, Some(20))), None);
        // Only there: all else is decided by what the eras are.
        assert_eq!(wins(claim(5, 3, 8, None), claim(5, 2, 3, Some(9_000))), Some(true));
        assert_eq!(wins(claim(7, 9, 1, Some(9_000)), claim(5, 1, 2, None)), Some(false));
        let own = claim(5, 2, 8, None);
        assert_eq!(own.wins_over(&own), Some(false));
    }

    #[test]
    fn attempts_of_two_eras_differ_although_their_terms_do_not() {
        let task = TaskId { job: JobId(1), stage: StageId(0), partition: 2 };
        let attempt = |epoch, founder, term, count| {
            let era = Era { mesh: MeshId(5), epoch, founder: NodeId(founder) };
            AttemptId::new(task, Fence { era, term }, count)
        };
        let all = [
            attempt(2, 3, 7, 0),
            attempt(2, 8, 7, 0),
            attempt(1, 3, 7, 0),
            attempt(2, 3, 8, 0),
            attempt(2, 3, 7, 1),
        ];
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        assert_eq!((all[3].term(), all[4].count()), (8, 1));
    }
}
