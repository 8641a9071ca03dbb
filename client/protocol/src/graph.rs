//! The stage graph: what a query becomes before it runs.
//!
//! ```text
//!   stage 0: scan, filter, partial group_by  --hash(carrier) 6-->  stage 1: final group_by  --gather-->  result
//! ```

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::columns;
use crate::frame;
use crate::function::Blob;
use crate::ids::{BlobId, NodeId, StageId};

/// The longest encoding of a graph: that of a job over many files says what each of its tasks reads.
pub const MAX_GRAPH_BYTES: u64 = 256 << 20;

/// A job's stages in topological order; the last one's partitions, in order, are the result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageGraph {
    /// The stages; a stage reads only from stages before it.
    pub stages: Vec<Stage>,
    /// The result's schema, as an Arrow IPC stream without batches, so that an empty result has columns.
    pub schema: Bytes,
    /// The job's plan: where this is given, what workers alone read of the stages and tasks (fragments, functions, splits) is
    /// in an object of its own, and empty here, as is the schema, which every partition has. What is left says what is to
    /// be scheduled.
    pub plan: Option<Blob>,
    /// Other objects that its functions need: no node lets go of those.
    pub objects: BTreeSet<BlobId>,
}

impl StageGraph {
    /// XXH3-64 of the graph, never 0: tells whether two graphs of one job are the same.
    pub fn fingerprint(&self) -> u64 {
        // A graph that cannot be encoded never came over the wire, nor will its partitions.
        xxh3_64(&frame::encode(self).unwrap_or_default()).max(1)
    }
}

/// One stage: the same work on every partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Its place in the graph.
    pub id: StageId,
    /// What it does.
    pub work: Work,
    /// The stages it reads, in the order of the fragment's placeholders.
    pub inputs: Vec<StageInput>,
    /// How its rows leave it.
    pub exchange: Exchange,
    /// One task per output partition.
    #[serde(with = "columns::tasks")]
    pub tasks: Vec<TaskSpec>,
    /// Its operators, from input to output, for people (`explain`).
    pub operators: Vec<String>,
    /// Why this stage runs as one task, where that is the planner's limit rather than the query's nature.
    pub single_because: Option<String>,
    /// Nodes known to see every file this stage scans, in order of id. Empty for a stage that scans no file.
    pub seen_by: Vec<NodeId>,
    /// Nodes that were asked and do not see them. A node in neither list may be tried.
    pub unseen_by: Vec<NodeId>,
}

/// What a stage's tasks do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Run this fragment (written and read by `floe-query` only).
    Fragment(Bytes),
    /// Call a function: an encoded [`crate::function::FunctionWork`], read by workers only.
    Function(Bytes),
    /// Nothing: the partitions came with the submission and lie where this says, one entry a partition.
    Held(#[serde(with = "columns::placed")] Vec<Placed>),
    /// Nothing that is scheduled: a driver that is connected calls functions for as long as it likes
    /// ([`crate::session`]). The stage is done when the driver says so.
    Calls,
}

/// One edge of the graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageInput {
    /// The producer.
    pub stage: StageId,
    /// Which of its output a task reads.
    pub read: Read,
}

/// Which part of a producer's output task `t` reads. Map outputs are always read in partition order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Read {
    /// The whole of partition `t - first`, or nothing where there is none such (a union's branches).
    Partition {
        /// The consumer's task that reads the producer's partition 0.
        first: u32,
    },
    /// The partitions from `t * size` on, `size` of them or as many as there are, whole (a tree that merges).
    Group {
        /// How many; at least 1.
        size: u32,
    },
    /// Every partition, whole (gather, broadcast).
    All,
    /// Bucket `t` of every partition (hash, range).
    Bucket,
}

/// How a stage's rows leave it. Map outputs are one indexed file each, with `buckets` segments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exchange {
    /// Partition to partition, unmoved.
    Pass,
    /// All to one consumer task (or the driver), in partition order.
    Gather,
    /// All to every consumer task.
    Broadcast,
    /// By hash of keys.
    Hash {
        /// The keys, for people.
        keys: Vec<String>,
        /// How many buckets.
        buckets: u32,
    },
    /// By sampled ranges of sort keys.
    Range {
        /// The keys, for people.
        keys: Vec<String>,
        /// How many buckets.
        buckets: u32,
    },
}

impl Exchange {
    /// How many segments each map output has.
    pub fn buckets(&self) -> u32 {
        match self {
            Self::Pass | Self::Gather | Self::Broadcast => 1,
            Self::Hash { buckets, .. } | Self::Range { buckets, .. } => *buckets,
        }
    }

    /// Drops what is there for people only.
    pub fn forget_keys(&mut self) {
        if let Self::Hash { keys, .. } | Self::Range { keys, .. } = self {
            keys.clear();
        }
    }
}

/// One task of a stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Which part of the stage's files it scans (written and read by `floe-query` only), or an encoded
    /// [`crate::function::Argument`]; empty if none.
    pub split: Bytes,
    /// An estimate of the bytes it scans from files; inputs from other stages are known exactly when it starts.
    pub scan_bytes: u64,
}

/// What is known of one finished partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputMeta {
    /// Rows and bytes of each bucket, in order; one entry where the exchange has no buckets.
    #[serde(with = "columns::buckets")]
    pub buckets: Vec<BucketMeta>,
    /// See [`Summary::mark`].
    pub mark: u64,
}

impl OutputMeta {
    /// Rows in all buckets.
    pub fn rows(&self) -> u64 {
        self.buckets.iter().map(|b| b.rows).fold(0, u64::saturating_add)
    }

    /// Bytes in all buckets, as stored (Arrow IPC).
    pub fn bytes(&self) -> u64 {
        self.buckets.iter().map(|b| b.bytes).fold(0, u64::saturating_add)
    }

    /// The partition as a whole.
    pub fn summary(&self) -> Summary {
        Summary { rows: self.rows(), bytes: self.bytes(), mark: self.mark }
    }
}

/// What is known of a finished partition as a whole: which rows are in which of its buckets, only its holders know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Rows.
    pub rows: u64,
    /// Bytes, as stored (Arrow IPC).
    pub bytes: u64,
    /// The [`StageGraph::fingerprint`] it was made for; of what came with the submission, that of its content. A
    /// job that was planned twice, in two meshes that did not see each other, has partitions of the same names that
    /// do not go together.
    pub mark: u64,
}

/// Size of one bucket of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketMeta {
    /// Rows.
    pub rows: u64,
    /// Bytes of Arrow IPC as stored.
    pub bytes: u64,
}

/// Where a finished partition lies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The nodes that hold a whole copy, the first preferred.
    pub nodes: Vec<NodeId>,
    /// Its size, and what it was made for.
    pub summary: Summary,
}
