//! How everything else speaks to the node's loop, which alone owns the replica and the scheduler.

use std::time::Duration;

use bytes::Bytes;
use floe_consensus::membership::Configuration;
use floe_consensus::{Command, Entry};
use floe_network::Network;
use floe_protocol::message::{Made, MeshView, Status, Survivor};
use floe_protocol::{
    Era, Failure, JobId, JobStatus, Member, NodeId, PeerMessage, Placed, Request, RequestId, Response,
    StageId, TaskId, frame,
};
use floe_transport::{CallError, Refusal};
use libp2p::Multiaddr;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::config;
use crate::job_changes::{JobChanges, Subscription};

/// How long the leader may take to confirm that it leads before it is asked again: many times what its heartbeats
/// take.
const READ_PATIENCE: Duration = Duration::from_secs(1);

/// A question or an order to the loop. Every one is answered, unless the loop has ended.
#[derive(Debug)]
pub enum Ask {
    /// What the node knows of the mesh.
    Status(oneshot::Sender<Status>),
    /// Who leads as far as the node knows.
    Leader(oneshot::Sender<Option<NodeId>>),
    /// Who votes as far as the node knows, the old voters too while they change.
    Voters(oneshot::Sender<Configuration>),
    /// What a node without a mesh asks, or one that comes back to it.
    Mesh(NodeId, oneshot::Sender<MeshView>),
    /// Put an entry into the log, if this node leads.
    Propose(Entry, oneshot::Sender<Proposed>),
    /// A job's status by the replicated state and, on the leader, the scheduler's live counts; or why there is none.
    Job(JobId, oneshot::Sender<Result<JobStatus, Failure>>),
    /// Whether there is room for another job, as far as this node knows.
    Room(oneshot::Sender<Result<(), Failure>>),
    /// The same without the timeline.
    Progress(JobId, oneshot::Sender<Result<JobStatus, Failure>>),
    /// True once this node's state is at least as new as the mesh's was when this was asked; false if that cannot
    /// be had at present.
    Current(oneshot::Sender<bool>),
    /// The statuses of the newest jobs, without timelines.
    Jobs(oneshot::Sender<Result<Vec<JobStatus>, Failure>>),
    /// A job's result: its schema and partitions, once it has succeeded.
    Outputs(JobId, oneshot::Sender<Result<Option<Outputs>, Failure>>),
    /// Where a partition of a job's result lies as far as this node knows, or why it never will.
    Made(JobId, u32, oneshot::Sender<Result<Made, Failure>>),
    /// Make this node a member, if this node leads.
    Join(Member, oneshot::Sender<Proposed>),
    /// A message from another node came as a call of its own.
    Message(NodeId, PeerMessage),
    /// Whether this node, which has just started, is to keep out of elections.
    WithholdVote(bool),
    /// A message to another node, as a call of its own, did not get there.
    NotSent(NodeId, PeerMessage),
    /// A result partition could not be had from a node that should hold it.
    Lost(TaskId, NodeId),
    /// Another node has a copy of a partition that this one holds, or did not take it.
    Copied(TaskId, NodeId, bool),
    /// Found a mesh with this node as its only voter.
    Found(oneshot::Sender<Result<(), Failure>>),
    /// How much of the mesh's log is here, for a recovery.
    Survivor(oneshot::Sender<Survivor>),
    /// Go on from this era without the voters that are gone.
    CarryOn(Era, oneshot::Sender<Result<(), Failure>>),
    /// Who refused this node, or was refused, lately and why.
    Refusals(oneshot::Sender<Vec<(Multiaddr, Refusal)>>),
}

/// Where a succeeded job's result lies.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// The stage whose partitions are the result.
    pub stage: StageId,
    /// Its schema, as an Arrow IPC stream without batches.
    pub schema: Bytes,
    /// Its partitions.
    pub partitions: Vec<Placed>,
}

/// What became of a proposal on this node.
#[derive(Clone, Debug)]
pub enum Proposed {
    /// Agreed and applied, with this outcome.
    Applied(Result<(), Failure>),
    /// This node does not lead (any more); that one does, as far as it knows.
    NotLeader(Option<NodeId>),
    /// This node leads and cannot take it just now, for this reason.
    NotNow(String),
}

/// The loop's address. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Mailbox {
    asks: mpsc::Sender<Ask>,
    changes: watch::Receiver<u64>,
    jobs: JobChanges,
    network: Network,
}

impl Mailbox {
    /// A mailbox whose asks come out of the returned receiver. `changes` moves whenever members, voters or the leader
    /// do; `jobs` are told what happens to jobs.
    pub fn new(
        network: Network,
        changes: watch::Receiver<u64>,
        jobs: JobChanges,
    ) -> (Self, mpsc::Receiver<Ask>) {
        let (asks, receiver) = mpsc::channel(config::MAILBOX);
        (Self { asks, changes, jobs, network }, receiver)
    }

    /// The node's network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Waits for what happens to a job as far as this node knows it.
    pub fn job_changes(&self, job: JobId) -> Subscription {
        self.jobs.subscribe(job)
    }

    /// Moves whenever members, voters or the leader change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Waits until the loop has ended.
    pub async fn stopped(&self) {
        self.asks.closed().await;
    }

    /// Sends an ask made of a reply channel and waits for its answer.
    pub async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Failure> {
        let stopping = || Failure::Unavailable { message: "this node is stopping: ask another".to_owned() };
        let (reply, answer) = oneshot::channel();
        self.asks.send(ask(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }

    /// Tells the loop something without an answer.
    pub async fn tell(&self, ask: Ask) {
        // A loop that has ended needs no telling.
        let _ = self.asks.send(ask).await;
    }

    /// Waits until this node's own state is at least as new as the mesh's was when this was called, or until
    /// [`config::CALL_TIMEOUT`] has passed.
    pub async fn current(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + config::CALL_TIMEOUT;
        let mut wait = Duration::from_millis(10);
        while Instant::now() < deadline {
            // The question to the leader, or its answer, may be lost.
            match timeout(READ_PATIENCE, self.ask(Ask::Current)).await {
                Ok(Ok(true)) => return Ok(()),
                Ok(Err(failure)) => return Err(failure),
                Ok(Ok(false)) | Err(_) => {}
            }
            sleep(wait).await;
            wait = (wait * 2).min(Duration::from_millis(250));
        }
        Err(Failure::Unavailable {
            message: format!(
                "no leader confirmed within {} s that this node is up to date: a majority of the voters must run; see `floe status`",
                config::CALL_TIMEOUT.as_secs()
            ),
        })
    }

    /// Gets a command agreed by whichever node leads, repeating it under one id until it is, or until
    /// [`config::PROPOSE_PATIENCE`] has passed.
    pub async fn propose(&self, command: Command) -> Result<(), Failure> {
        let entry = Self::entry(command)?;
        let encoded = Bytes::from(frame::encode(&entry.command).map_err(Failure::internal)?);
        let request = Request::Propose { request: entry.request, command: encoded };
        self.with_leader(|reply| Ask::Propose(entry.clone(), reply), &request).await
    }

    /// Asks the leader, if it is known and another node, for as long as it leads as far as this node knows.
    pub async fn call_leader(&self, request: &Request, patience: Duration) -> Option<Response> {
        let mut changes = self.changes();
        changes.mark_unchanged();
        let leader = self.ask(Ask::Leader).await.ok()?.filter(|leader| *leader != self.network.node())?;
        self.call_while_it_leads(leader, request, patience, &mut changes).await?.ok()
    }

    /// Calls the leader, until `changes` says that it may lead no more: one that sleeps keeps its connections, and the
    /// others go on without it.
    async fn call_while_it_leads(
        &self,
        leader: NodeId,
        request: &Request,
        patience: Duration,
        changes: &mut watch::Receiver<u64>,
    ) -> Option<Result<Response, CallError>> {
        tokio::select! {
            answer = self.network.call(leader, request, patience) => Some(answer),
            Ok(()) = changes.changed() => None,
        }
    }

    /// What this node knows of its mesh.
    pub async fn mesh(&self) -> Result<MeshView, Failure> {
        let own = self.network().node();
        self.ask(|reply| Ask::Mesh(own, reply)).await
    }

    /// Makes a member known to the leader.
    pub async fn join(&self, member: Member) -> Result<(), Failure> {
        let request = Request::Join { member: member.clone() };
        self.with_leader(|reply| Ask::Join(member.clone(), reply), &request).await
    }

    /// An entry for the log, under an id of its own.
    pub fn entry(command: Command) -> Result<Entry, Failure> {
        Ok(Entry { request: Self::request_id()?, command })
    }

    /// A fresh id.
    pub fn request_id() -> Result<RequestId, Failure> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(Failure::internal)?;
        Ok(RequestId(u128::from_be_bytes(bytes)))
    }

    async fn with_leader(
        &self,
        here: impl Fn(oneshot::Sender<Proposed>) -> Ask,
        there: &Request,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + config::PROPOSE_PATIENCE;
        let mut wait = Duration::from_millis(10);
        let mut changes = self.changes();
        while Instant::now() < deadline {
            changes.mark_unchanged();
            let mut next = match self.ask(&here).await? {
                Proposed::Applied(outcome) => return outcome,
                Proposed::NotLeader(leader) => leader,
                Proposed::NotNow(reason) => {
                    tracing::debug!(reason, "this node leads and cannot decide yet");
                    None
                }
            };
            // A node that no longer leads names its successor; two steps cover a hand-over.
            for _ in 0..2 {
                let Some(leader) = next.filter(|leader| *leader != self.network.node()) else {
                    break;
                };
                let answer =
                    self.call_while_it_leads(leader, there, config::PROPOSE_PATIENCE, &mut changes).await;
                let Some(answer) = answer else { break };
                match answer {
                    Ok(Response::Done) => return Ok(()),
                    Ok(Response::Failed(failure @ Failure::Unavailable { .. })) => {
                        tracing::debug!(%leader, %failure, "the leader cannot decide yet");
                        next = None;
                    }
                    Ok(Response::Failed(failure)) => return Err(failure),
                    Ok(Response::NotLeader(other)) => next = other,
                    Ok(other) => {
                        return Err(Failure::internal(format!(
                            "{leader} answered a proposal with {other:?}"
                        )));
                    }
                    Err(error) => {
                        tracing::debug!(%leader, %error, "the leader cannot be reached");
                        next = None;
                    }
                }
            }
            sleep(wait).await;
            wait = (wait * 2).min(Duration::from_millis(250));
        }
        Err(Failure::Unavailable {
            message: format!(
                "no leader answered within {} s: a majority of the voters must run; see `floe status`",
                config::PROPOSE_PATIENCE.as_secs()
            ),
        })
    }
}
