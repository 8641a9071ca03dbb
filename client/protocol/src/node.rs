//! Nodes as the mesh and its users see them.

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;

/// Starts that an [`Incarnation`] knows the marks of. A node that has missed more of another's takes its word.
pub const MAX_MARKS: usize = 16;

/// Which start of a node this is, of all from its data directory.
///
/// A directory that was copied, or put back from a backup, counts on from where it was then. So each start also draws a
/// mark by chance, and knows those of the starts before it: who knows of another start with the same number knows that
/// this directory has missed that one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incarnation {
    /// Counts the starts, from 1.
    pub number: u64,
    /// The mark of this start, and those of up to [`MAX_MARKS`] - 1 before it, the latest first.
    pub marks: Vec<u32>,
}

impl Incarnation {
    /// The start after this one.
    pub fn next(&self, mark: u32) -> Self {
        let former = self.marks.iter().copied().take(MAX_MARKS - 1);
        Self { number: self.number.saturating_add(1), marks: std::iter::once(mark).chain(former).collect() }
    }

    /// Whether this is the start that is known, or one after it on the same directory.
    pub fn follows(&self, known: &Self) -> bool {
        if self == known {
            return true;
        }
        let Some(ago) = self.number.checked_sub(known.number) else { return false };
        match usize::try_from(ago).ok().and_then(|ago| self.marks.get(ago)) {
            Some(mark) => known.marks.first() == Some(mark),
            None => ago >= MAX_MARKS as u64,
        }
    }
}

/// What the mesh knows of a member for good: an entry of the replicated state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// Its libp2p peer id, in text.
    pub peer: String,
    /// What its owner calls it.
    pub name: String,
    /// Where it listens, as multiaddresses ending in `/p2p/PEER`.
    pub addresses: Vec<String>,
    /// How many tasks it runs at once.
    pub slots: u32,
    /// Its memory budget for tasks and partitions.
    pub memory_bytes: u64,
    /// The version of its `floe`.
    pub version: String,
    /// Which start of it this is.
    pub incarnation: Incarnation,
}

/// What a node has to do at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Tasks running.
    pub running: u32,
    /// Bytes of partitions in memory plus running tasks' reservations.
    pub memory_used_bytes: u64,
    /// Bytes of partitions on disk.
    pub spilled_bytes: u64,
    /// What the disk of its data directory takes yet.
    pub disk_free_bytes: u64,
    /// Whether that is so little that it takes no work until there is more.
    pub disk_short: bool,
}

/// A node's part in Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeRole {
    /// Leads and schedules.
    Leader,
    /// Votes.
    Voter,
    /// Replicates without a vote.
    Learner,
}

impl NodeRole {
    /// One word for tables: `leader`, `voter`, `learner`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Voter => "voter",
            Self::Learner => "learner",
        }
    }
}

/// A member as `floe status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The replicated part.
    pub member: Member,
    /// Its part in Raft.
    pub role: NodeRole,
    /// Whether the answering node's leader hears from it.
    pub alive: bool,
    /// Its load, from hints.
    pub load: Load,
}
