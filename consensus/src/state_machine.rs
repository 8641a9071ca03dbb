//! The replicated state: members and jobs. It changes only by applying log entries, in order, and the same
//! entries give the same state on every node: no clock, no randomness, no hash order.
//!
//! ```text
//!   Submit ──> Running ──StageDone of the last stage──> Succeeded ──Release, or too many──> freed
//!                 │
//!                 └────EndJob──> Failed | Cancelled (freed at once)
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use floe_protocol::frame::{self, FrameError};
use floe_protocol::job::{MAX_TIMELINE, TaskRun};
use floe_protocol::{
    Failure, JobId, JobPhase, JobStatus, Member, MeshId, NodeId, Placed, Read, RequestId, StageGraph,
    StageId, StageProgress, Work,
};
use serde::{Deserialize, Serialize};

use crate::command::{Command, Entry};
use crate::event::Event;

/// Ended jobs that are remembered. Beyond it the one that ended first is forgotten, and its result freed.
pub const MAX_KEPT_JOBS: usize = 256;

/// Jobs that may be unfinished at once: each costs every node memory.
pub const MAX_RUNNING_JOBS: usize = 1024;

/// Members of one mesh: a leader sends each of them leases and entries.
pub const MAX_MEMBERS: usize = 2048;

/// Tasks of one stage: its outputs travel in one log entry.
pub const MAX_STAGE_TASKS: usize = 16_384;

/// Stages of one job.
pub const MAX_STAGES: usize = 1024;

/// Size of all unfinished jobs' graphs, and of what will be known of their outputs and tasks: counted when a job
/// is accepted, so that a snapshot fits a frame whatever becomes of it.
pub const MAX_RUNNING_BYTES: usize = 8 << 20;

/// Size of all jobs, ended ones included; beyond it those that ended first are forgotten.
pub const MAX_STATE_BYTES: usize = 12 << 20;

/// Requests that are remembered with their outcomes, so that one proposed twice applies once. A proposer
/// gives up long before this many others have followed.
pub const MAX_RECENT_REQUESTS: usize = 4096;

/// Raised whenever a snapshot's layout changes.
const SNAPSHOT_VERSION: u32 = 1;

/// Roughly what one partition's place takes in a snapshot.
const PLACE_BYTES: usize = 48;

/// Roughly what one bucket's size takes in a snapshot.
const BUCKET_BYTES: usize = 32;

/// Roughly what one task's run takes in a snapshot.
const RUN_BYTES: usize = 80;

/// The replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateMachine {
    mesh: Option<MeshId>,
    epoch: u64,
    applied: u64,
    members: BTreeMap<NodeId, Member>,
    jobs: BTreeMap<JobId, Job>,
    /// Ended jobs, the one that ended first in front.
    ended: VecDeque<JobId>,
    /// Recent requests, the oldest in front, and what became of them.
    recent: VecDeque<(RequestId, Result<(), Failure>)>,
    /// The same by id. Derived from `recent`, so not part of a snapshot.
    #[serde(skip)]
    outcomes: BTreeMap<RequestId, Result<(), Failure>>,
}

/// One job as it is replicated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The driver's label.
    pub label: String,
    /// Where it stands.
    pub phase: JobPhase,
    /// What it runs and where its partitions lie; `None` once it was freed.
    pub work: Option<JobWork>,
    /// When it was accepted.
    pub submitted_unix_ms: u64,
    /// When it ended.
    pub ended_unix_ms: Option<u64>,
    /// Progress by stage, kept beyond `work`.
    pub stages: Vec<StageProgress>,
    /// Tasks that ran, at most [`MAX_TIMELINE`].
    pub timeline: Vec<TaskRun>,
    /// Roughly its size in a snapshot.
    weight_bytes: usize,
}

/// What a job runs, and what there is of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobWork {
    /// The stages.
    pub graph: Arc<StageGraph>,
    /// For each stage, where its partitions lie, once all of them exist.
    pub outputs: Vec<Option<Vec<Placed>>>,
}

/// A snapshot that cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Not a snapshot, or a damaged one.
    #[error("the snapshot cannot be read: {0}")]
    Malformed(#[from] FrameError),
    /// Written by another version.
    #[error(
        "the snapshot is of format {found}, this node reads format {SNAPSHOT_VERSION}: run the same version of floe everywhere"
    )]
    Version {
        /// Its format.
        found: u32,
    },
}

impl StateMachine {
    /// Applies one committed entry. A refused command changes nothing but the memory of its refusal.
    pub fn apply(&mut self, index: u64, entry: &Entry) -> Vec<Event> {
        self.applied = index;
        let mut events = Vec::new();
        let outcome = match self.outcomes.get(&entry.request) {
            Some(outcome) => outcome.clone(),
            None => {
                let outcome = self.run(&entry.command, &mut events);
                self.remember(entry.request, outcome.clone());
                outcome
            }
        };
        events.push(Event::Applied { request: entry.request, outcome });
        events
    }

    /// Notes that an entry without a command (a leader's first, a conf change) applied.
    pub fn skip(&mut self, index: u64) {
        self.applied = index;
    }

    /// The whole state as bytes.
    pub fn snapshot(&self) -> Result<Vec<u8>, FrameError> {
        frame::encode(&(SNAPSHOT_VERSION, self))
    }

    /// The state that a snapshot holds.
    pub fn restore(snapshot: &[u8]) -> Result<Self, RestoreError> {
        let (version, mut state): (u32, Self) = match frame::decode(snapshot) {
            Ok(pair) => pair,
            // Another version may have another layout: say so rather than that it is damaged.
            Err(error) => match frame::decode::<(u32, serde::de::IgnoredAny)>(snapshot) {
                Ok((found, _)) if found != SNAPSHOT_VERSION => return Err(RestoreError::Version { found }),
                _ => return Err(error.into()),
            },
        };
        if version != SNAPSHOT_VERSION {
            return Err(RestoreError::Version { found: version });
        }
        state.outcomes = state.recent.iter().cloned().collect();
        Ok(state)
    }

    /// The mesh, once founded.
    pub fn mesh(&self) -> Option<MeshId> {
        self.mesh
    }

    /// Raised when the mesh is recovered or merged.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The index of the last entry applied.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// All members by id.
    pub fn members(&self) -> &BTreeMap<NodeId, Member> {
        &self.members
    }

    /// All jobs that are remembered, by id.
    pub fn jobs(&self) -> &BTreeMap<JobId, Job> {
        &self.jobs
    }

    /// One job.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// One job as drivers see it. It does not know which tasks run: only the leader's scheduler does.
    pub fn job_status(&self, id: JobId) -> Option<JobStatus> {
        let job = self.jobs.get(&id)?;
        Some(JobStatus {
            id,
            label: job.label.clone(),
            phase: job.phase.clone(),
            stages: job.stages.clone(),
            submitted_unix_ms: job.submitted_unix_ms,
            ended_unix_ms: job.ended_unix_ms,
            timeline: job.timeline.clone(),
        })
    }

    fn remember(&mut self, request: RequestId, outcome: Result<(), Failure>) {
        if self.recent.len() >= MAX_RECENT_REQUESTS
            && let Some((oldest, _)) = self.recent.pop_front()
        {
            self.outcomes.remove(&oldest);
        }
        self.outcomes.insert(request, outcome.clone());
        self.recent.push_back((request, outcome));
    }

    fn run(&mut self, command: &Command, events: &mut Vec<Event>) -> Result<(), Failure> {
        match command {
            Command::Genesis { mesh, member } => {
                if let Some(mesh) = self.mesh {
                    return Err(refused(format!("the mesh was founded already, as {mesh}")));
                }
                self.mesh = Some(*mesh);
                self.epoch = 1;
                events.push(Event::MeshFounded { mesh: *mesh });
                self.join(member, events)
            }
            Command::Join { member } => self.join(member, events),
            Command::Leave { node } => {
                if self.members.remove(node).is_some() {
                    events.push(Event::MemberLeft { node: *node });
                }
                Ok(())
            }
            Command::Submit { job, label, graph, submitted_unix_ms } => {
                self.submit(*job, label, graph, *submitted_unix_ms, events)
            }
            Command::StageDone { job, stage, outputs, runs, ended_unix_ms } => {
                self.stage_done(*job, *stage, outputs, runs, *ended_unix_ms, events)
            }
            Command::EndJob { job, phase, ended_unix_ms } => {
                self.end_job(*job, phase, *ended_unix_ms, events)
            }
            Command::Release { jobs } => {
                self.release(jobs, events);
                Ok(())
            }
        }
    }

    fn join(&mut self, member: &Member, events: &mut Vec<Event>) -> Result<(), Failure> {
        if member.id.0 == 0 {
            return Err(refused("node id 0 means none: choose another".to_owned()));
        }
        if self.members.len() >= MAX_MEMBERS && !self.members.contains_key(&member.id) {
            return Err(refused(format!("the mesh has {MAX_MEMBERS} members, which is its limit")));
        }
        if self.members.get(&member.id) != Some(member) {
            self.members.insert(member.id, member.clone());
            events.push(Event::MemberJoined { member: member.clone() });
        }
        Ok(())
    }

    fn submit(
        &mut self,
        id: JobId,
        label: &str,
        graph: &StageGraph,
        submitted_unix_ms: u64,
        events: &mut Vec<Event>,
    ) -> Result<(), Failure> {
        if let Some(known) = self.jobs.get(&id) {
            // Planned again, the same submission may have another graph; its label is the driver's own.
            let same = known.label == label;
            return if same { Ok(()) } else { Err(refused(format!("job id {id} is taken: choose another"))) };
        }
        check_graph(graph).map_err(refused)?;
        let running = self.jobs.values().filter(|job| !job.phase.is_terminal());
        let (count, bytes) = running.fold((0, 0), |(n, bytes), job| (n + 1, bytes + job.weight_bytes));
        let graph_bytes = frame::encode(graph).map_err(Failure::internal)?.len();
        let weight_bytes = label.len() + graph_bytes + results_bytes(graph);
        if weight_bytes > MAX_RUNNING_BYTES {
            return Err(refused(format!(
                "the job's plan takes {weight_bytes} bytes, the limit is {MAX_RUNNING_BYTES}: read fewer files, or use fewer partitions"
            )));
        }
        if count >= MAX_RUNNING_JOBS || bytes + weight_bytes > MAX_RUNNING_BYTES {
            return Err(Failure::Unavailable {
                message: format!(
                    "the mesh is full: {count} jobs are unfinished; try again when some have ended"
                ),
            });
        }
        let outputs: Vec<_> = graph
            .stages
            .iter()
            .map(|stage| match &stage.work {
                Work::Held(placed) => Some(placed.clone()),
                Work::Fragment(_) => None,
            })
            .collect();
        let stages = graph
            .stages
            .iter()
            .zip(&outputs)
            .map(|(stage, outputs)| StageProgress {
                stage: stage.id,
                name: stage.operators.last().cloned().unwrap_or_default(),
                tasks: stage.tasks.len() as u32,
                running: 0,
                done: outputs.as_ref().map_or(0, |o| o.len() as u32),
                rows: outputs.iter().flatten().map(|p| p.meta.rows()).sum(),
                bytes: outputs.iter().flatten().map(|p| p.meta.bytes()).sum(),
            })
            .collect();
        let finished = matches!(outputs.last(), Some(Some(_)));
        let graph = Arc::new(graph.clone());
        let job = Job {
            label: label.to_owned(),
            phase: JobPhase::Running,
            work: Some(JobWork { graph: graph.clone(), outputs }),
            submitted_unix_ms,
            ended_unix_ms: None,
            stages,
            timeline: Vec::new(),
            weight_bytes,
        };
        self.jobs.insert(id, job);
        events.push(Event::JobAccepted { job: id, graph });
        // A frame in memory, collected as it is: there is nothing to run.
        if finished {
            self.succeed(id, submitted_unix_ms, events);
        }
        Ok(())
    }

    fn stage_done(
        &mut self,
        id: JobId,
        stage: StageId,
        outputs: &[Placed],
        runs: &[TaskRun],
        ended_unix_ms: u64,
        events: &mut Vec<Event>,
    ) -> Result<(), Failure> {
        let job = self.jobs.get_mut(&id).ok_or(Failure::NoSuchJob { job: id })?;
        // Failed, cancelled or released meanwhile: the partitions are of no use.
        let Some(work) = &mut job.work else { return Ok(()) };
        let position = stage.0 as usize;
        let Some(spec) = work.graph.stages.get(position) else {
            return Err(refused(format!("job {id} has no stage {stage}")));
        };
        let buckets = spec.exchange.buckets() as usize;
        let fits = |placed: &Placed| placed.meta.buckets.len() == buckets;
        if outputs.len() != spec.tasks.len() || !outputs.iter().all(fits) {
            return Err(refused(format!(
                "stage {stage} of job {id} has {} partitions of {buckets} buckets, not these",
                spec.tasks.len(),
            )));
        }
        let replaced = work.outputs[position].replace(outputs.to_vec());
        let progress = &mut job.stages[position];
        progress.done = outputs.len() as u32;
        progress.rows = outputs.iter().map(|p| p.meta.rows()).sum();
        progress.bytes = outputs.iter().map(|p| p.meta.bytes()).sum();
        // A leader that saw no answer says the same again, under another request id.
        let fresh = runs.iter().filter(|run| replaced.is_none() || !job.timeline.contains(run));
        let room = MAX_TIMELINE.saturating_sub(job.timeline.len());
        let kept: Vec<_> = fresh.take(room).cloned().collect();
        job.timeline.extend(kept);
        let last = position + 1 == work.outputs.len();
        let running = !job.phase.is_terminal();
        events.push(Event::StageDone { job: id, stage });
        if last && running {
            self.succeed(id, ended_unix_ms, events);
        }
        Ok(())
    }

    fn succeed(&mut self, id: JobId, ended_unix_ms: u64, events: &mut Vec<Event>) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.phase = JobPhase::Succeeded;
            job.ended_unix_ms = Some(ended_unix_ms);
            self.ended.push_back(id);
            events.push(Event::JobEnded { job: id, phase: JobPhase::Succeeded });
        }
        self.evict(events);
    }

    fn end_job(
        &mut self,
        id: JobId,
        phase: &JobPhase,
        ended_unix_ms: u64,
        events: &mut Vec<Event>,
    ) -> Result<(), Failure> {
        if !matches!(phase, JobPhase::Failed(_) | JobPhase::Cancelled) {
            return Err(refused(format!("a job cannot be ended as {}", phase.name())));
        }
        let job = self.jobs.get_mut(&id).ok_or(Failure::NoSuchJob { job: id })?;
        if job.phase.is_terminal() {
            return Ok(());
        }
        job.phase = phase.clone();
        job.ended_unix_ms = Some(ended_unix_ms);
        self.ended.push_back(id);
        events.push(Event::JobEnded { job: id, phase: phase.clone() });
        self.free(vec![id], events);
        self.evict(events);
        Ok(())
    }

    /// Frees the jobs that have ended. One that still runs must be cancelled first, and unknown ones are gone
    /// already.
    fn release(&mut self, jobs: &[JobId], events: &mut Vec<Event>) {
        let ended: BTreeSet<_> = jobs
            .iter()
            .filter(|id| self.jobs.get(id).is_some_and(|job| job.phase.is_terminal() && job.work.is_some()))
            .copied()
            .collect();
        self.free(ended.into_iter().collect(), events);
    }

    /// Drops what the jobs run and where their partitions lie; their history stays.
    fn free(&mut self, jobs: Vec<JobId>, events: &mut Vec<Event>) {
        for id in &jobs {
            if let Some(job) = self.jobs.get_mut(id) {
                job.work = None;
                job.weight_bytes = job.label.len() + job.timeline.len() * RUN_BYTES;
            }
        }
        if !jobs.is_empty() {
            events.push(Event::JobsFreed { jobs });
        }
    }

    /// Forgets the jobs that ended first while there are too many or they take too much.
    fn evict(&mut self, events: &mut Vec<Event>) {
        let mut bytes: usize = self.jobs.values().map(|job| job.weight_bytes).sum();
        let mut freed = Vec::new();
        while self.ended.len() > MAX_KEPT_JOBS || (bytes > MAX_STATE_BYTES && self.ended.len() > 1) {
            let Some(id) = self.ended.pop_front() else { break };
            if let Some(job) = self.jobs.remove(&id) {
                bytes -= job.weight_bytes;
                if job.work.is_some() {
                    freed.push(id);
                }
            }
        }
        if !freed.is_empty() {
            events.push(Event::JobsFreed { jobs: freed });
        }
    }
}

fn refused(message: String) -> Failure {
    Failure::Refused { message }
}

/// Roughly what a job's outputs and timeline will take in a snapshot.
fn results_bytes(graph: &StageGraph) -> usize {
    let tasks: usize = graph.stages.iter().map(|stage| stage.tasks.len()).sum();
    let of_stage = |stage: &floe_protocol::Stage| {
        let buckets = stage.exchange.buckets() as usize;
        stage.tasks.len().saturating_mul(PLACE_BYTES + BUCKET_BYTES.saturating_mul(buckets))
    };
    let outputs = graph.stages.iter().map(of_stage).fold(0_usize, usize::saturating_add);
    outputs.saturating_add(tasks.min(MAX_TIMELINE) * RUN_BYTES)
}

/// Whether everything a graph refers to exists, so that nobody after this has to ask.
fn check_graph(graph: &StageGraph) -> Result<(), String> {
    if graph.stages.is_empty() || graph.stages.len() > MAX_STAGES {
        return Err(format!("a job has 1 to {MAX_STAGES} stages, this one has {}", graph.stages.len()));
    }
    for (position, stage) in graph.stages.iter().enumerate() {
        if stage.id.0 as usize != position {
            return Err(format!("stage {} is in place {position} of its graph", stage.id));
        }
        if stage.tasks.is_empty() || stage.tasks.len() > MAX_STAGE_TASKS {
            return Err(format!(
                "a stage has 1 to {MAX_STAGE_TASKS} tasks, stage {} has {}: read fewer files at once",
                stage.id,
                stage.tasks.len()
            ));
        }
        if !stage.seen_by.is_sorted() {
            return Err(format!("the nodes that see stage {}'s files are not in order", stage.id));
        }
        if let Some(input) = stage.inputs.iter().find(|input| input.stage >= stage.id) {
            return Err(format!(
                "stage {} reads from stage {}, which is not before it",
                stage.id, input.stage
            ));
        }
        for input in &stage.inputs {
            let buckets = graph.stages[input.stage.0 as usize].exchange.buckets() as usize;
            if input.read == Read::Bucket && stage.tasks.len() > buckets {
                return Err(format!(
                    "stage {} has {} tasks for the {buckets} buckets of stage {}",
                    stage.id,
                    stage.tasks.len(),
                    input.stage
                ));
            }
        }
        if let Work::Held(placed) = &stage.work
            && (placed.len() != stage.tasks.len() || !stage.inputs.is_empty())
        {
            return Err(format!(
                "stage {} holds {} partitions for {} tasks",
                stage.id,
                placed.len(),
                stage.tasks.len()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
