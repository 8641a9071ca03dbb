//! Nodes as the mesh and its users see them.

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;

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
    /// Counts its starts from one data directory.
    pub incarnation: u64,
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
