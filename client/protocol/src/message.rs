//! Messages: one-way between nodes, and calls from drivers and nodes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::graph::{OutputMeta, StageGraph};
use crate::ids::{AttemptId, Fence, JobId, MeshId, NodeId, RequestId, TaskId};
use crate::job::{JobStatus, TaskRun};
use crate::node::{Load, Member, NodeInfo};

/// One-way messages between nodes, on one ordered control stream a direction. Any of them may be lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// A raft-rs message in its own encoding.
    Raft {
        /// The sender's mesh: messages of another mesh are dropped.
        mesh: MeshId,
        /// The protobuf bytes.
        message: Bytes,
    },
    /// Leader to worker: run this.
    Assign(Box<Assignment>),
    /// Leader to worker: stop these attempts.
    Abort {
        /// The leader's fence.
        fence: Fence,
        /// The attempts.
        attempts: Vec<AttemptId>,
    },
    /// Leader to worker: the jobs' partitions may go.
    Free {
        /// The leader's fence.
        fence: Fence,
        /// The jobs.
        jobs: Vec<JobId>,
    },
    /// Leader to worker: what do you hold and run? It renews the lease too: the leader sends it on election and
    /// then a [`PeerMessage::Lease`] regularly.
    AskInventory {
        /// The leader's fence.
        fence: Fence,
    },
    /// Worker to leader, in answer.
    Inventory(Inventory),
    /// Leader to worker, regularly: I still lead.
    Lease {
        /// The leader's fence.
        fence: Fence,
    },
    /// Worker to leader, in answer to a lease: I am alive.
    Alive {
        /// The fence answered.
        fence: Fence,
        /// The worker's load.
        load: Load,
    },
    /// Worker to leader: an attempt ended.
    Report(Report),
    /// Any node to the leader: a result partition could not be had from this node, which should hold it.
    Lost {
        /// The partition.
        partition: TaskId,
        /// Who was asked.
        node: NodeId,
    },
}

/// A task to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The leader's fence.
    pub fence: Fence,
    /// The attempt.
    pub attempt: AttemptId,
    /// The stage's fragment (`Work::Fragment`).
    pub fragment: Bytes,
    /// The task's part of the scans (`TaskSpec::split`).
    pub split: Bytes,
    /// How many buckets its output has.
    pub buckets: u32,
    /// Where its inputs lie: for each of the stage's inputs the segments to read, in order.
    pub inputs: Vec<Vec<Segment>>,
    /// Memory to reserve before it starts.
    pub memory_bytes: u64,
}

/// A readable piece of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The partition.
    pub partition: TaskId,
    /// One bucket, or the whole partition.
    pub bucket: Option<u32>,
    /// Rows.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// Who holds it, the preferred first.
    pub nodes: Vec<NodeId>,
}

/// What a node has, told to a new leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// The fence of the leader that asked.
    pub fence: Fence,
    /// Finished partitions it holds intact.
    pub held: Vec<(TaskId, OutputMeta)>,
    /// When it made those of them that it made itself.
    pub runs: Vec<(TaskId, TaskRun)>,
    /// Attempts it runs or has queued.
    pub running: Vec<AttemptId>,
    /// Its load.
    pub load: Load,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The fence under which it was assigned.
    pub fence: Fence,
    /// The attempt.
    pub attempt: AttemptId,
    /// Its output, or why there is none.
    pub outcome: Result<OutputMeta, Failure>,
    /// When and where it ran.
    pub run: TaskRun,
}

/// A question to a node, one per stream. Some are followed by a body on the same stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Who are you, and who else is there? -> [`Response::Status`]
    Status,
    /// Accept this job -> [`Response::Accepted`] once a majority holds it. Repeating it with the same id is safe.
    /// The [`crate::JobSpec`], encoded, follows as a bulk body, since a plan
    /// may carry frames.
    Submit {
        /// The job's id, chosen by the driver.
        id: JobId,
    },
    /// Plan without running; the spec follows as a bulk body -> [`Response::Explained`]
    Explain,
    /// One job's status -> [`Response::Job`]
    Job {
        /// The job.
        id: JobId,
    },
    /// One job's status now and at every change -> [`Response::Job`], repeatedly, the last one terminal.
    Watch {
        /// The job.
        id: JobId,
    },
    /// All jobs that are known -> [`Response::Jobs`]
    Jobs,
    /// Cancel a job -> [`Response::Done`] once agreed. Cancelling an ended job changes nothing.
    Cancel {
        /// The job.
        id: JobId,
    },
    /// The result is no longer needed -> [`Response::Done`]
    Release {
        /// The job.
        id: JobId,
    },
    /// A succeeded job's result -> [`Response::Result`], then the partitions from `from_partition` on as a bulk
    /// body: concatenated Arrow IPC streams, one a partition, each ended by its end-of-stream marker.
    Result {
        /// The job.
        id: JobId,
        /// The first partition wanted, from 0.
        from_partition: u32,
    },
    /// Node to leader: put this command into the log -> [`Response::Done`] once applied.
    Propose {
        /// Its id.
        request: RequestId,
        /// The encoded command.
        command: Bytes,
    },
    /// Node to node: can you see these files? -> [`Response::Inspected`]
    Inspect {
        /// Absolute paths, globs or directories.
        paths: Vec<String>,
    },
    /// Node to node: plan this for me, since you see its files; the spec follows as a bulk body
    /// -> [`Response::Planned`]
    Plan {
        /// The job it is for.
        id: JobId,
    },
    /// Node to node: keep this partition; its body follows -> [`Response::Done`]
    Put {
        /// The partition.
        partition: TaskId,
        /// Its size by bucket.
        meta: OutputMeta,
    },
    /// Node to node: send these segments -> [`Response::Fetching`], then their bytes as a bulk body.
    Fetch {
        /// The partition.
        partition: TaskId,
        /// One bucket, or the whole.
        bucket: Option<u32>,
    },
    /// Node to node, before it has a mesh: what mesh are you of? -> [`Response::Mesh`]
    Mesh,
    /// Node to leader: make me a member -> [`Response::Done`] once applied.
    Join {
        /// The joining node.
        member: Member,
    },
    /// Node to leader: live progress of a job that only the leader knows -> [`Response::Job`]
    Progress {
        /// The job.
        id: JobId,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Submit`].
    Accepted {
        /// The job.
        id: JobId,
    },
    /// To [`Request::Explain`].
    Explained(StageGraph),
    /// To [`Request::Plan`].
    Planned(StageGraph),
    /// To [`Request::Job`] and [`Request::Watch`].
    Job(JobStatus),
    /// To [`Request::Jobs`].
    Jobs(Vec<JobStatus>),
    /// To [`Request::Result`]: a body follows.
    Result {
        /// The result's schema, as an Arrow IPC stream without batches.
        schema: Bytes,
        /// Rows and bytes of each partition, from partition 0.
        partitions: Vec<OutputMeta>,
    },
    /// To [`Request::Inspect`], in the order asked.
    Inspected(Vec<Inspected>),
    /// To [`Request::Fetch`]: a body follows.
    Fetching {
        /// XXH3-64 of each segment to come and its length in bytes, in order.
        segments: Vec<(u64, u64)>,
    },
    /// To [`Request::Mesh`].
    Mesh(MeshView),
    /// Done, nothing to say.
    Done,
    /// Not done.
    Failed(Failure),
    /// The node is not the leader; this one is, as far as it knows.
    NotLeader(Option<NodeId>),
}

/// What a node knows of its mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The answering node.
    pub node: NodeId,
    /// Its mesh, once it has one.
    pub mesh: Option<MeshId>,
    /// The leader, if there is one it hears from.
    pub leader: Option<NodeId>,
    /// The Raft term and epoch.
    pub fence: Fence,
    /// Every member, in order of id.
    pub nodes: Vec<NodeInfo>,
    /// Whose votes count, of the old voters too while they change.
    pub voters: Vec<NodeId>,
}

/// What a node without a mesh must know of another to decide on genesis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshView {
    /// The answering node.
    pub node: NodeId,
    /// Its mesh, if it has one.
    pub mesh: Option<MeshId>,
    /// Its leader, if it knows one.
    pub leader: Option<NodeId>,
    /// The nodes it is connected to, itself included.
    pub peers: Vec<NodeId>,
}

/// What a node found under one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inspected {
    /// The files the path or pattern expands to, in order.
    Files(Vec<FileMark>),
    /// Why there are none: `not found`, `permission denied`, ...
    Missing(String),
}

/// Enough of a file to tell whether two nodes see the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileMark {
    /// Absolute path.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// XXH3-64 of the size, the first and the last 64 KiB.
    pub mark: u64,
}
