//! What an entry of the replicated log says. The log holds decisions, not traffic: task starts and
//! heartbeats stay out of it.

use floe_protocol::frame::{FrameError, decode, encode};
use floe_protocol::job::TaskRun;
use floe_protocol::{
    Claim, Era, Freed, InvitationId, JobId, JobPhase, KeyName, Member, MeshId, NodeId, RequestId, Secret,
    StageGraph, StageId, WallTime,
};
use serde::{Deserialize, Serialize};

use crate::state_machine::{FormerKey, Job, KeyChanges, Rotation, StageOutputs, Tombstone};

/// One entry: a command and the id under which it applies once, however often it was proposed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Chosen at random by the proposer.
    pub request: RequestId,
    /// What to do.
    pub command: Command,
}

/// A decision of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Nodes may come that know the secret of this invitation.
    Invite {
        /// What it is called.
        id: InvitationId,
        /// What whoever comes by it proves to know.
        verifier: Secret,
        /// How many nodes it admits.
        uses: u32,
        /// For how long, in the leader's time.
        lasts_ms: u64,
    },
    /// A node comes by an invitation.
    Enter {
        /// The invitation.
        invitation: InvitationId,
        /// The node.
        node: NodeId,
    },
    /// The time of these invitations is over.
    ExpireInvitations {
        /// The invitations.
        invitations: Vec<InvitationId>,
    },
    /// A node is no longer a member, and must not come back.
    Forget {
        /// The node.
        node: NodeId,
    },
    /// The mesh has another key.
    RotateKey(Rotation),
    /// The key before that counts for fewer.
    RetireKey {
        /// The present key.
        to: KeyName,
        /// For whom the former still counts.
        former: FormerKey,
    },
    /// The mesh begins, with its founder as first member. Always the first entry, and the only one of its kind.
    Genesis {
        /// The new mesh.
        mesh: MeshId,
        /// Its founder.
        member: Member,
    },
    /// A node becomes a member, or is known by new addresses.
    Join {
        /// The node.
        member: Member,
    },
    /// A node is no longer a member.
    Leave {
        /// The node.
        node: NodeId,
    },
    /// A job is accepted.
    Submit {
        /// Chosen by the driver, so that submitting twice is safe.
        job: JobId,
        /// A short text for people.
        label: String,
        /// What to run.
        graph: StageGraph,
        /// Whose it is, a number made of the driver's identity: drivers take turns.
        owner: u64,
        /// When, by the accepting node's clock.
        submitted_at: WallTime,
    },
    /// All partitions of a stage exist. With the last stage's the job has succeeded. Saying it again replaces
    /// what was known, since lost partitions are made anew elsewhere.
    StageDone {
        /// The job.
        job: JobId,
        /// The stage.
        stage: StageId,
        /// Where the partitions lie.
        outputs: StageOutputs,
        /// Which tasks ran for it since it was last said, as many as a timeline can hold.
        runs: Vec<TaskRun>,
        /// How long the others ran, together.
        more_ms: u64,
        /// When, by the leader's clock.
        ended_at: WallTime,
    },
    /// A job ends without a result.
    EndJob {
        /// The job.
        job: JobId,
        /// [`JobPhase::Failed`] or [`JobPhase::Cancelled`].
        phase: JobPhase,
        /// When, by the proposer's clock.
        ended_at: WallTime,
    },
    /// The jobs' results go, if they have any.
    Release {
        /// The jobs.
        jobs: Vec<JobId>,
        /// Why: [`floe_protocol::WhyFreed::Released`], `Expired` or `Lost`.
        freed: Freed,
    },
    /// Jobs of another era become this one's, under the same ids.
    Adopt {
        /// What the era claims that hands over, and ends with that.
        claim: Claim,
        /// The eras that have ended with it.
        ended: Vec<Era>,
        /// What that one knows of them.
        jobs: Vec<(JobId, Job)>,
        /// Jobs of which it knows no more than that they have ended.
        tombstones: Vec<(JobId, Tombstone)>,
        /// Nodes that it was told to forget.
        forgotten: Vec<NodeId>,
        /// Its changes of the mesh key.
        keys: KeyChanges,
    },
    /// This era has met another one that it is compared with by what both have done. What is said first stays.
    Claim {
        /// See [`Claim::work_ms`].
        work_ms: u64,
    },
    /// This era ends, since its jobs are in another's hands: the last entry that changes anything.
    Yield {
        /// The era that goes on.
        to: Era,
        /// Some of its members, so that they can be found.
        members: Vec<Member>,
        /// What [`crate::StateMachine::jobs_changed`] was when the jobs were handed over. If it has moved since,
        /// nothing happens.
        jobs_changed: u64,
    },
}

impl Entry {
    /// As bytes for the log.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        encode(self)
    }

    /// From the log's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        decode(bytes)
    }
}
