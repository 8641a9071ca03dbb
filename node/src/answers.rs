//! What this node answers of what it knows: the replicated state, and on the leader what only that knows.

use std::cmp::Reverse;

use floe_consensus::participant::Participant;
use floe_consensus::state_machine::Job;
use floe_protocol::job::MAX_LISTED_JOBS;
use floe_protocol::message::{Made, Status};
use floe_protocol::{
    Failure, JobId, JobPhase, JobStatus, Load, Member, NodeId, NodeInfo, NodeRole, Placed, StageGraph,
};

use crate::mailbox::Outputs;
use crate::peers::Peers;
use crate::worker::Worker;

/// When a driver is to try again while all disks are full: nodes say several times a second how theirs are.
const DISKS_RETRY_MS: u64 = 1_000;

/// What answers are made of.
#[derive(Clone, Copy)]
pub struct Answers<'a> {
    /// This node's part in the mesh.
    pub participant: &'a Participant,
    /// What it knows of the others.
    pub peers: &'a Peers,
    /// What this node runs.
    pub worker: &'a Worker,
}

impl Answers<'_> {
    /// What this node knows of its mesh.
    pub fn status(&self) -> Status {
        let state = self.participant.state();
        let standing = self.participant.replica().standing();
        let leader = self.participant.leader();
        let nodes = state.members().values().map(|member| {
            let role = if leader == Some(member.id) {
                NodeRole::Leader
            } else if standing.configuration.voters.contains(&member.id) {
                NodeRole::Voter
            } else {
                NodeRole::Learner
            };
            let (alive, load) = (self.participant.answers(member.id), self.load_of(member.id));
            NodeInfo { member: member.clone(), role, alive, load: load.unwrap_or_default() }
        });
        Status {
            node: self.participant.member().id,
            era: state.era(),
            leader,
            term: standing.term,
            nodes: nodes.collect(),
            voters: standing.voting.into_iter().collect(),
            rival: self.participant.rival(),
        }
    }

    /// A job's status, with its timeline, or why there is none.
    pub fn job(&self, id: JobId) -> Result<JobStatus, Failure> {
        Ok(self.with_live_counts(self.participant.state().job_status(id)?))
    }

    /// The same without the timeline.
    pub fn progress(&self, id: JobId) -> Result<JobStatus, Failure> {
        Ok(self.with_live_counts(self.participant.state().job_progress(id)?))
    }

    /// The newest jobs, without timelines.
    pub fn newest_jobs(&self) -> Result<Vec<JobStatus>, Failure> {
        if self.participant.state().era().is_none() {
            let message = "this node has no mesh yet: it is still looking for others".to_owned();
            return Err(Failure::Unavailable { message });
        }
        let jobs = self.participant.state().jobs().iter();
        let mut newest: Vec<_> = jobs.map(|(id, job)| (Reverse(job.submitted_at.unix_ms()), *id)).collect();
        newest.sort_unstable();
        newest.truncate(MAX_LISTED_JOBS);
        Ok(newest.into_iter().filter_map(|(_, id)| self.progress(id).ok()).collect())
    }

    /// On the leader: the counts of tasks that run, and whom the job waits for, which the replicated state does not hold.
    fn with_live_counts(&self, mut job: JobStatus) -> JobStatus {
        let Some(scheduler) = self.participant.scheduler() else { return job };
        if let Some(stages) = scheduler.progress(job.id) {
            job.stages = stages;
        }
        job.waits_for = scheduler.waits_for(job.id).map(str::to_owned);
        job
    }

    /// Whether another job would be taken on, as far as this node knows.
    pub fn room(&self) -> Result<(), Failure> {
        let state = self.participant.state();
        if !state.members().is_empty() && state.members().values().all(|member| member.slots == 0) {
            let message = "no node of this mesh runs anything: all were started with --slots 0".to_owned();
            return Err(Failure::Unavailable { message });
        }
        self.check_disks()?;
        state.check_room(0)
    }

    /// Whether there is a node that runs something and has room on its disk, as far as they said.
    fn check_disks(&self) -> Result<(), Failure> {
        let members = self.participant.state().members().values();
        let mut workers = members.filter(|member| member.slots > 0 && self.participant.answers(member.id));
        let is_short = |member: &Member| self.load_of(member.id).is_some_and(|load| load.disk_short);
        let Some(first) = workers.next() else { return Ok(()) };
        if !is_short(first) || !workers.all(is_short) {
            return Ok(());
        }
        let message = "the mesh is full: the disks of all nodes that run tasks are nearly full: free some of them, or \
                       release results that are not needed any more";
        Err(Failure::Busy { message: message.to_owned(), retry_ms: DISKS_RETRY_MS })
    }

    fn load_of(&self, node: NodeId) -> Option<Load> {
        if node == self.participant.member().id { Some(self.worker.load()) } else { self.peers.load(node) }
    }

    /// What is known of a partition of a job's result.
    pub fn made(&self, id: JobId, partition: u32) -> Result<Made, Failure> {
        let job = self.participant.state().find(id)?;
        match &job.phase {
            JobPhase::Running => {
                let scheduler = self.participant.scheduler();
                return Ok(scheduler.map_or(Made::NotYet, |scheduler| scheduler.made(id, partition)));
            }
            JobPhase::Failed(failure) => return Err(failure.clone()),
            JobPhase::Cancelled => return Err(Failure::Cancelled),
            JobPhase::Succeeded => {}
        }
        let (graph, placed) = result_of(id, job)?;
        let (Some(stage), Some(placed)) = (graph.stages.last(), placed.get(partition as usize)) else {
            return Ok(Made::Beyond);
        };
        Ok(Made::Here { stage: stage.id, placed: placed.clone(), schema: graph.schema.clone() })
    }

    /// Where a job's result lies, once it has succeeded.
    pub fn outputs(&self, id: JobId) -> Result<Option<Outputs>, Failure> {
        let job = self.participant.state().find(id)?;
        if job.phase != JobPhase::Succeeded {
            return Ok(None);
        }
        let (graph, placed) = result_of(id, job)?;
        let Some(stage) = graph.stages.last().map(|stage| stage.id) else { return Ok(None) };
        Ok(Some(Outputs { stage, schema: graph.schema.clone(), partitions: placed.to_vec() }))
    }
}

/// The graph of a succeeded job, and where its last stage's partitions lie.
fn result_of(id: JobId, job: &Job) -> Result<(&StageGraph, &[Placed]), Failure> {
    let work = job.work.as_ref();
    let result =
        work.and_then(|work| Some((work.graph.as_ref(), work.outputs.last()?.as_ref()?.placed.as_slice())));
    result.ok_or_else(|| match job.freed {
        Some(freed) => Failure::Freed { job: id, freed },
        None => Failure::internal(format!("job {id} has succeeded, and nothing says where its result lies")),
    })
}
