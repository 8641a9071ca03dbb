//! Messages: one-way between nodes, and calls from drivers and nodes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::columns::{self, Holders, Uneven};
use crate::failure::Failure;
use crate::function::Blob;
use crate::graph::{OutputMeta, Placed, Summary, Work};
use crate::ids::{
    AttemptId, BlobId, Claim, Era, Fence, InvitationId, JobId, KeyName, NodeId, RequestId, StageId, TaskId,
};
use crate::job::{JobStatus, TaskRun};
use crate::node::{Incarnation, Load, Member, NodeInfo};
use crate::secret::Secret;

/// One-way messages between nodes, on one ordered control stream a direction. Any of them may be lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// A raft-rs message in its own encoding.
    Raft {
        /// The sender's era: messages of another one are dropped.
        era: Era,
        /// Which start of the sender's this is: if it does not follow from the one that is known, its disk went back, and
        /// what it says counts for nothing.
        incarnation: Incarnation,
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
    /// Leader to worker: give another node a copy of this partition, which cannot be made again.
    Copy {
        /// The leader's fence.
        fence: Fence,
        /// The partition.
        partition: TaskId,
        /// Who gets it.
        to: NodeId,
    },
    /// Worker to leader: it was done, or could not be.
    Copied {
        /// The partition.
        partition: TaskId,
        /// Who was to get it.
        node: NodeId,
        /// Whether that has it now.
        done: bool,
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
    /// Leader to a learner that is to vote: get what voters keep beside the log.
    Prepare {
        /// The leader's fence.
        fence: Fence,
    },
    /// In answer: all that anybody has of it is here.
    Prepared {
        /// The fence answered.
        fence: Fence,
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
    /// Leader to the others: it hears nothing of this node. Whoever has a connection to it should see whether that only
    /// seems to stand.
    Silent {
        /// The leader's fence.
        fence: Fence,
        /// The node.
        node: NodeId,
    },
    /// To a node that seems to be of another era: this is ours. Also to one's own leader, about another node
    /// that told this of itself.
    View(Box<MeshView>),
    /// Leader to the leader of an era that wins over its own (or a node that has lost its leader to it): take
    /// over these jobs. Repeated until answered.
    Adopt {
        /// What the sender's own era claims.
        claim: Claim,
        /// The eras that have ended with it.
        ended: Vec<Era>,
        /// Which state of its jobs this is.
        jobs_changed: u64,
        /// Some of its jobs, as the replicated state's own encoding.
        jobs: Bytes,
    },
    /// In answer: the mesh has agreed to have them.
    Adopted {
        /// The era that was named first.
        era: Era,
        /// As it was said.
        jobs_changed: u64,
        /// The jobs.
        jobs: Vec<JobId>,
    },
}

/// A task to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The leader's fence.
    pub fence: Fence,
    /// The attempt.
    pub attempt: AttemptId,
    /// The job's plan, where the next two are in there, and empty here.
    pub plan: Option<Blob>,
    /// What the stage does: [`Work::Fragment`] or [`Work::Function`].
    pub work: Work,
    /// The task's part of the scans (`TaskSpec::split`).
    pub split: Bytes,
    /// What its output is marked with ([`Summary::mark`]).
    pub mark: u64,
    /// How many buckets its output has.
    pub buckets: u32,
    /// Where its inputs lie: what to read of each of the stage's inputs.
    pub inputs: Vec<StageRead>,
    /// Memory to reserve before it starts.
    pub memory_bytes: u64,
    /// Whether a query's fragment runs in a process of its own, since a node may have died of it.
    pub apart: bool,
}

/// What a task reads of one of the stages before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawStageRead")]
pub struct StageRead {
    stage: StageId,
    bucket: Option<u32>,
    partitions: Vec<u32>,
    holders: Holders,
}

#[derive(Deserialize)]
struct RawStageRead {
    stage: StageId,
    bucket: Option<u32>,
    partitions: Vec<u32>,
    holders: Holders,
}

impl TryFrom<RawStageRead> for StageRead {
    type Error = Uneven;

    fn try_from(RawStageRead { stage, bucket, partitions, holders }: RawStageRead) -> Result<Self, Uneven> {
        let fits = partitions.len() == holders.len();
        fits.then_some(Self { stage, bucket, partitions, holders }).ok_or(Uneven)
    }
}

impl StageRead {
    /// Partitions of a stage, with who holds them, the preferred first: one bucket of each, or the whole.
    pub fn new<'a>(
        stage: StageId,
        bucket: Option<u32>,
        partitions: impl Iterator<Item = (u32, &'a [NodeId])>,
    ) -> Self {
        let mut numbers = Vec::new();
        let holders = partitions.map(|(partition, nodes)| {
            numbers.push(partition);
            nodes
        });
        let holders = holders.collect();
        Self { stage, bucket, partitions: numbers, holders }
    }

    /// What is read, in order; `job` is the task's own.
    pub fn segments(&self, job: JobId) -> impl Iterator<Item = Segment> {
        let (stage, bucket) = (self.stage, self.bucket);
        self.partitions.iter().zip(self.holders.iter()).map(move |(partition, nodes)| Segment {
            partition: TaskId { job, stage, partition: *partition },
            bucket,
            nodes: nodes.to_vec(),
        })
    }
}

/// A readable piece of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The partition.
    pub partition: TaskId,
    /// One bucket, or the whole partition.
    pub bucket: Option<u32>,
    /// Who holds it, the preferred first.
    pub nodes: Vec<NodeId>,
}

/// What a node has, told to a new leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// The fence of the leader that asked.
    pub fence: Fence,
    /// Finished partitions it holds intact.
    #[serde(with = "columns::held")]
    pub held: Vec<(TaskId, Summary)>,
    /// When it made those of them that it made itself, as many as a timeline can hold.
    pub runs: Vec<(TaskId, TaskRun)>,
    /// Attempts it runs or has queued.
    pub running: Vec<AttemptId>,
    /// Standing jobs whose drivers are connected to it.
    pub sessions: Vec<JobId>,
    /// Jobs whose results drivers read here, or did a moment ago.
    pub reading: Vec<JobId>,
    /// Jobs that drivers are just submitting through it: what nodes hold of them is not to be freed, though nobody
    /// knows them yet.
    pub submitting: Vec<JobId>,
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
    /// The [`crate::JobSpec`], encoded, follows as a bulk body, since a plan may carry frames; and, where a function's
    /// input are [`crate::function::Frame`]s, a second body of their files, one after the other.
    Submit {
        /// The job's id, chosen by the driver.
        id: JobId,
        /// Whether a node that was asked before gave no answer: it may have died of the planning.
        again: bool,
    },
    /// Plan without running; the spec follows as a bulk body -> [`Response::Planned`], then the graph as another
    Explain {
        /// As of [`Request::Submit`].
        again: bool,
    },
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
    /// Where the partitions of a job's result lie, each as soon as it is made -> [`Response::Made`], repeatedly:
    /// [`Made::Here`] for each from `from_partition` on, [`Made::NotYet`] every few seconds while the next one is
    /// waited for, [`Made::Beyond`] after the last; or the job's failure.
    Partitions {
        /// The job.
        id: JobId,
        /// The first partition wanted, from 0.
        from_partition: u32,
    },
    /// One partition of a job's result, by way of this node -> as to [`Request::Fetch`]; if its holders have lost it,
    /// it is made again first, with [`Made::NotYet`] every few seconds meanwhile.
    Partition {
        /// The job.
        id: JobId,
        /// Which one, from 0.
        partition: u32,
    },
    /// Of nodes: where a partition of a job's result lies, as far as the leader knows -> [`Response::Made`].
    Made {
        /// The job.
        id: JobId,
        /// Which one, from 0.
        partition: u32,
    },
    /// A succeeded job's result -> [`Response::Result`], then the partitions from `from_partition` on as a bulk
    /// body: concatenated Arrow IPC streams, one a partition, each ended by its end-of-stream marker.
    Result {
        /// The job.
        id: JobId,
        /// The first partition wanted, from 0.
        from_partition: u32,
    },
    /// Open a session, or go on with it through this node -> [`Response::Accepted`], then
    /// [`crate::session::CallFrame`]s one way and [`crate::session::ResultFrame`]s the other, until the session is
    /// closed or either side is lost.
    Session {
        /// Its standing job, chosen by the driver.
        id: JobId,
        /// A short text for `floe jobs`.
        label: String,
    },
    /// Node to node: run calls of this session -> [`Response::Done`], then frames as in [`Request::Session`].
    Seat {
        /// The session's job.
        session: JobId,
    },
    /// Can these bytes be had here? -> [`Response::Has`]
    HasBlob {
        /// Their digest.
        id: BlobId,
    },
    /// Keep these bytes, which follow as a bulk body -> [`Response::Done`] once they are kept. If a driver asks,
    /// other nodes have got them too by then.
    PutBlob {
        /// Their digest and size.
        blob: Blob,
    },
    /// Node to node: keep this plan of a job that is about to be accepted; it follows as a bulk body -> [`Response::Done`]
    /// once it is synced.
    PutPlan {
        /// Its digest and size.
        plan: Blob,
    },
    /// These bytes -> [`Response::Blob`], then the bytes as a bulk body. If a driver asks, they come from whichever
    /// node has them.
    GetBlob {
        /// Their digest.
        id: BlobId,
    },
    /// What a job's functions printed -> [`Response::Log`], repeatedly, then [`Response::Done`]. If a driver asks,
    /// of all nodes that are there.
    Logs {
        /// The job.
        job: JobId,
        /// One task only.
        task: Option<(StageId, u32)>,
        /// Whether to go on until the job has ended.
        follow: bool,
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
        /// What the paths are, as the driver named them.
        paths: Vec<FilePath>,
    },
    /// Node to node: plan this for me, since you see its files; the spec follows as a bulk body
    /// -> [`Response::Planned`], then the graph as a bulk body: that of many files is longer than a frame
    Plan {
        /// The job it is for.
        id: JobId,
        /// Whether a node may have died of it, so that it is planned in a process of its own.
        apart: bool,
        /// Whether frames that come with it are kept.
        keep: bool,
    },
    /// Node to node: keep this partition; its body follows -> [`Response::Done`]
    Put {
        /// The partition.
        partition: TaskId,
        /// Its size by bucket.
        meta: OutputMeta,
    },
    /// To a node that holds them: send these segments -> [`Response::Fetching`], then their bytes as a bulk body.
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
    /// Go on without the voters that are gone -> [`Response::Recovered`], or why that must not be.
    Recover {
        /// Whether the mesh's owner has agreed. If not, nothing is done, and [`Response::Done`] says that it would be.
        agreed: bool,
    },
    /// Node to node, to find out who may recover the mesh -> [`Response::Survivor`]
    Survivor,
    /// Node to node: you are the one to go on without the others, if that is still your era -> [`Response::Done`]
    CarryOn {
        /// The era to be left behind.
        era: Era,
    },
    /// Nodes may come that know the secret of this invitation -> [`Response::Done`] once agreed
    Invite {
        /// What it is called.
        id: InvitationId,
        /// What whoever comes by it proves to know.
        verifier: Secret,
        /// How many nodes it admits.
        uses: u32,
        /// For how long.
        lasts_ms: u64,
    },
    /// Of one that was invited: let me in -> [`Response::Key`] once that is agreed
    Enter,
    /// Remove a node for good -> [`Response::Done`] once agreed
    Forget {
        /// The node.
        node: NodeId,
    },
    /// Change the mesh key -> [`Response::Rotated`] once agreed. Repeating it changes nothing.
    RotateKey {
        /// The key that its driver has.
        from: KeyName,
    },
    /// Let something go wrong with this node, to see the mesh bear it -> [`Response::Done`], before it does
    Fault(Fault),
    /// Node to node: a message of raft-rs that no frame holds, be it a snapshot of a large state; it follows as a bulk
    /// body -> [`Response::Done`] once it was taken in.
    Raft {
        /// As of [`PeerMessage::Raft`].
        era: Era,
        /// Likewise.
        incarnation: Incarnation,
        /// How long the message is.
        bytes: u64,
    },
    /// Node to leader: live progress of a job that only the leader knows -> [`Response::Job`]
    Progress {
        /// The job.
        id: JobId,
    },
}

/// What a node lets go wrong with itself when it is asked to. A whole process is hit, with all that runs in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// It stands still, its connections open and silent, and then goes on as if nothing had been.
    Pause {
        /// For how long.
        pause_ms: u64,
    },
    /// It dies without any clean-up, and is started again as it was.
    Crash {
        /// After how long.
        down_ms: u64,
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
    /// To [`Request::Explain`] and [`Request::Plan`]: a [`crate::StageGraph`] follows, of up to
    /// [`crate::graph::MAX_GRAPH_BYTES`].
    Planned,
    /// To [`Request::Job`] and [`Request::Watch`].
    Job(JobStatus),
    /// To [`Request::Jobs`].
    Jobs(Vec<JobStatus>),
    /// To [`Request::Result`]: a body follows.
    Result {
        /// The result's schema, as an Arrow IPC stream without batches.
        schema: Bytes,
        /// Rows and bytes of each partition, from partition 0.
        partitions: Vec<Summary>,
    },
    /// To [`Request::Partitions`], [`Request::Partition`] and [`Request::Made`].
    Made(Made),
    /// To [`Request::Inspect`], in the order asked.
    Inspected(Vec<Inspected>),
    /// To [`Request::Fetch`] and [`Request::Partition`]: a body of Arrow IPC files follows.
    Fetching {
        /// XXH3-64 of each segment to come and its length in bytes, in order.
        segments: Vec<(u64, u64)>,
    },
    /// To [`Request::Mesh`].
    Mesh(MeshView),
    /// To [`Request::Recover`].
    Recovered {
        /// The node whose log the mesh goes on with.
        node: NodeId,
    },
    /// To [`Request::Survivor`].
    Survivor(Survivor),
    /// To [`Request::Enter`]: the mesh key.
    Key(Secret),
    /// To [`Request::RotateKey`].
    Rotated {
        /// The new key.
        to: KeyName,
    },
    /// To [`Request::HasBlob`].
    Has(bool),
    /// To [`Request::GetBlob`]: a body follows.
    Blob {
        /// How many bytes.
        bytes: u64,
    },
    /// To [`Request::Logs`].
    Log(LogChunk),
    /// Done, nothing to say.
    Done,
    /// Not done.
    Failed(Failure),
    /// The node is not the leader; this one is, as far as it knows.
    NotLeader(Option<NodeId>),
}

/// What is known of a partition of a job's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Made {
    /// It lies somewhere.
    Here {
        /// The stage that it is of.
        stage: StageId,
        /// Where it lies, and its size.
        placed: Placed,
        /// The result's columns, as an Arrow IPC stream without batches; empty if only partitions tell theirs. To
        /// a driver it is told of a partition without rows only, which need not be fetched then.
        schema: Bytes,
    },
    /// It is still to be made, as far as is known.
    NotYet,
    /// The result has fewer partitions.
    Beyond,
}

/// Something that a function's process printed, to stdout or stderr.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    /// On which node.
    pub node: NodeId,
    /// In which attempt of which task. Calls of a session are of its partition 0, counted by host.
    pub attempt: AttemptId,
    /// What, in the order in which it was printed.
    pub bytes: Bytes,
}

/// What a node knows of its mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The answering node.
    pub node: NodeId,
    /// Its mesh and era, once it has one.
    pub era: Option<Era>,
    /// The leader, if there is one it hears from.
    pub leader: Option<NodeId>,
    /// The Raft term within the era.
    pub term: u64,
    /// Every member, in order of id.
    pub nodes: Vec<NodeInfo>,
    /// Whose votes count, of the old voters too while they change.
    pub voters: Vec<NodeId>,
    /// An era that wins over this one, as a connected node says that is of it.
    pub rival: Option<Rival>,
}

/// An era that wins over a node's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rival {
    /// The era.
    pub era: Era,
    /// A node of it.
    pub node: NodeId,
    /// Its leader, if it has one.
    pub leader: Option<NodeId>,
}

/// What a node tells one that is of another era, or of none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshView {
    /// The node it is about.
    pub node: NodeId,
    /// Its mesh and era, if it has one.
    pub era: Option<Era>,
    /// What that has done, if its mesh has agreed on that ([`Claim::work_ms`]).
    pub work_ms: Option<u64>,
    /// Its leader, if it knows one.
    pub leader: Option<NodeId>,
    /// The nodes it is connected to, itself included.
    pub peers: Vec<NodeId>,
    /// Eras that have ended: those that were merged into its own, and those it left itself.
    pub ended: Vec<Era>,
    /// Some members of its mesh with their addresses, the leader first.
    pub members: Vec<Member>,
    /// The start of the node that asks that its mesh knows, if it is a member.
    pub known: Option<Incarnation>,
}

impl MeshView {
    /// What its era brings forward against others.
    pub fn claim(&self) -> Option<Claim> {
        self.era.map(|era| Claim { era, work_ms: self.work_ms })
    }
}

/// How much of its mesh's log a node has, and whether the mesh is alive as far as it knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survivor {
    /// The node.
    pub node: NodeId,
    /// Its era, if it has one.
    pub era: Option<Era>,
    /// The leader it hears from.
    pub leader: Option<NodeId>,
    /// The Raft term and the index of its log's last entry: the greater pair is the longer log.
    pub log: (u64, u64),
}

/// What a node found under one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inspected {
    /// The files the path or pattern expands to, in order.
    Files(Vec<FileMark>),
    /// Why there are none: `not found`, `permission denied`, ...
    Missing(String),
}

/// Files as a query or a job names them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FilePath {
    /// The absolute path of a file or a directory, or a pattern.
    pub path: String,
    /// Whether it may be a pattern, if nothing has this name.
    pub glob: bool,
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
