//! What a replica tells its node: entries that applied, and changes of leadership.

use std::sync::Arc;

use floe_protocol::{
    Era, Failure, Freed, JobId, JobPhase, Member, MeshId, NodeId, RequestId, StageGraph, StageId,
};

use crate::state_machine::JobWork;

/// Something happened to the replicated state or to the leadership. Events come in the order of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An entry applied. Whoever proposed it learns the outcome, which is the same on every node.
    Applied {
        /// The entry's id.
        request: RequestId,
        /// Whether it changed anything, or why it was refused.
        outcome: Result<(), Failure>,
    },
    /// The mesh exists.
    MeshFounded {
        /// Its id.
        mesh: MeshId,
    },
    /// The mesh's next era has begun, with this node alone.
    CarriedOn {
        /// The new era.
        era: Era,
    },
    /// A node became a member, or is known by new addresses.
    MemberJoined {
        /// The node.
        member: Member,
    },
    /// A node is no longer a member.
    MemberLeft {
        /// The node.
        node: NodeId,
    },
    /// Somebody else may come to the mesh than before: see [`crate::StateMachine::door`].
    DoorChanged,
    /// A job was accepted.
    JobAccepted {
        /// The job.
        job: JobId,
        /// What to run.
        graph: Arc<StageGraph>,
        /// Whose it is.
        owner: u64,
    },
    /// A job of another era is this one's now; or what became of it there, if both knew it.
    JobAdopted {
        /// The job.
        job: JobId,
        /// What it runs, and what there is of it.
        work: JobWork,
        /// Whether it had succeeded, and only keeps its result.
        succeeded: bool,
        /// Whose it is.
        owner: u64,
    },
    /// Another era has ended in this one, and a job that runs here ran there too.
    JobShared {
        /// The job.
        job: JobId,
    },
    /// This era has ended: its jobs are in another's hands.
    Yielded {
        /// The era that goes on.
        to: Era,
        /// Some of its members.
        members: Vec<Member>,
    },
    /// A stage's partitions all exist.
    StageDone {
        /// The job.
        job: JobId,
        /// The stage.
        stage: StageId,
    },
    /// A job ended.
    JobEnded {
        /// The job.
        job: JobId,
        /// How.
        phase: JobPhase,
    },
    /// The jobs' partitions are needed no more.
    JobsFreed {
        /// The jobs.
        jobs: Vec<JobId>,
        /// Why, and when.
        freed: Freed,
    },
    /// The state machine was replaced by the leader's snapshot: single events up to its index were skipped.
    Restored {
        /// The snapshot's index.
        index: u64,
    },
    /// The voters or learners changed.
    Reconfigured,
    /// This node leads, and its state machine holds all that earlier leaders committed.
    Elected {
        /// The Raft term.
        term: u64,
    },
    /// This node, once [`Event::Elected`], leads no more.
    Deposed {
        /// The Raft term it led.
        term: u64,
    },
    /// Another leader, or none, as far as this node knows.
    LeaderChanged {
        /// The leader.
        leader: Option<NodeId>,
        /// The Raft term.
        term: u64,
    },
    /// The state machine is at least as new as when [`crate::Replica::read_index`] was called.
    ReadReady {
        /// The id given to `read_index`.
        request: RequestId,
    },
}

impl Event {
    /// Whether it says that something about a job is different now.
    pub(crate) fn changes_a_job(&self) -> bool {
        matches!(
            self,
            Self::JobAccepted { .. }
                | Self::JobAdopted { .. }
                | Self::StageDone { .. }
                | Self::JobEnded { .. }
                | Self::JobsFreed { .. }
        )
    }
}
