//! The replicated state: members and jobs. It changes only by applying log entries, in order, and the same
//! entries give the same state on every node: no clock, no randomness, no hash order.
//!
//! ```text
//!   Submit ──> Running ──StageDone of the last stage──> Succeeded ──Release, or too many──> freed
//!                 │
//!                 └────EndJob──> Failed | Cancelled (freed at once)
//! ```
//!
//! A standing job ([`Work::Calls`]) has no result: it too is freed at once when it succeeds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use floe_protocol::frame::{self, FrameError};
use floe_protocol::job::{MAX_TIMELINE, TaskRun};
use floe_protocol::{
    Era, Failure, JobId, JobPhase, JobStatus, Member, NodeId, Placed, Read, RequestId, Stage, StageGraph,
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

/// Eras that are remembered as merged into this one. A node that was away longer than so many merges took, and
/// lost its leader meanwhile, has to be recovered by hand.
pub const MAX_ENDED_ERAS: usize = 64;

/// Raised whenever a snapshot's layout changes.
const SNAPSHOT_VERSION: u32 = 2;

/// Roughly what one partition's place takes in a snapshot.
const PLACE_BYTES: usize = 48;

/// Roughly what one bucket's size takes in a snapshot.
const BUCKET_BYTES: usize = 32;

/// Roughly what one task's run takes in a snapshot.
const RUN_BYTES: usize = 80;

/// The replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateMachine {
    era: Option<Era>,
    /// Eras whose jobs are this one's now, the one that ended first in front.
    ended_eras: VecDeque<Era>,
    yielded: Option<Yielded>,
    applied: u64,
    jobs_changed: u64,
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

/// How an era ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Yielded {
    /// The era that goes on.
    pub to: Era,
    /// Some of its members.
    pub members: Vec<Member>,
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

impl Job {
    /// Roughly its size in a snapshot.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }
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
        if let Some(Yielded { to, .. }) = &self.yielded {
            let message = format!("this mesh has merged into another, in its {to}; try again there");
            events.push(Event::Applied {
                request: entry.request,
                outcome: Err(Failure::Unavailable { message }),
            });
            return events;
        }
        let outcome = match self.outcomes.get(&entry.request) {
            Some(outcome) => outcome.clone(),
            None => {
                let outcome = self.run(&entry.command, &mut events);
                if events.iter().any(Event::changes_a_job) {
                    self.jobs_changed = index;
                }
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

    /// The mesh and its era, once founded.
    pub fn era(&self) -> Option<Era> {
        self.era
    }

    /// Eras whose jobs are this one's now.
    pub fn ended_eras(&self) -> impl Iterator<Item = Era> {
        self.ended_eras.iter().copied()
    }

    /// Where this era's jobs went, once it has ended.
    pub fn yielded(&self) -> Option<&Yielded> {
        self.yielded.as_ref()
    }

    /// The index of the last entry that changed a job, or brought the jobs of another era.
    pub fn jobs_changed(&self) -> u64 {
        self.jobs_changed
    }

    /// Begins the mesh's next era, in which `founder` goes on without the others, with what it has. `index` is
    /// the first of the new log.
    pub(crate) fn carry_on(&mut self, founder: NodeId, index: u64) -> Result<(), Failure> {
        if let Some(era) = &mut self.era {
            let epoch = era.epoch.checked_add(1).ok_or_else(|| refused(format!("no era follows {era}")))?;
            *era = Era { mesh: era.mesh, epoch, founder };
        }
        self.applied = index;
        Ok(())
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
                if let Some(era) = self.era {
                    return Err(refused(format!("the mesh was founded already: {era}")));
                }
                self.era = Some(Era { mesh: *mesh, epoch: 1, founder: member.id });
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
            Command::Adopt { eras, jobs } => self.adopt(eras, jobs, events),
            Command::Yield { to, members, jobs_changed } => {
                if *jobs_changed != self.jobs_changed {
                    return Err(refused("a job has changed since it was handed over".to_owned()));
                }
                self.yielded = Some(Yielded { to: *to, members: members.clone() });
                events.push(Event::Yielded { to: *to, members: members.clone() });
                Ok(())
            }
        }
    }

    /// Takes over another era's jobs. Of a job that both know, whichever says that it ended is right: somebody
    /// may have been told so.
    fn adopt(&mut self, eras: &[Era], jobs: &[(JobId, Job)], events: &mut Vec<Event>) -> Result<(), Failure> {
        // Looked at as a whole first, so that a refusal changes nothing.
        let mut weights = BTreeMap::new();
        for (id, job) in jobs {
            let weight = check_job(job);
            let weight = weight.map_err(|error| refused(format!("job {id} cannot be adopted: {error}")))?;
            weights.insert(*id, weight);
        }
        let new = |(id, job): &&(JobId, Job)| !self.jobs.contains_key(id) && !job.phase.is_terminal();
        let running = self.jobs.values().filter(|job| !job.phase.is_terminal()).map(|job| job.weight_bytes);
        let more = jobs.iter().filter(new).map(|(id, _)| weights[id]);
        if running.chain(more).sum::<usize>() > MAX_RUNNING_BYTES && jobs.iter().any(|job| new(&job)) {
            let message = "the mesh is full: it can take another's jobs when some of its own have ended";
            return Err(Failure::Unavailable { message: message.to_owned() });
        }
        // An era that would win cannot have ended with one that loses.
        for era in eras.iter().filter(|era| Some(**era) < self.era).take(MAX_ENDED_ERAS) {
            if !self.ended_eras.contains(era) {
                self.ended_eras.push_back(*era);
                // Whoever takes over from this era must know of those too.
                self.jobs_changed = self.applied;
            }
        }
        while self.ended_eras.len() > MAX_ENDED_ERAS {
            self.ended_eras.pop_front();
        }
        for (id, job) in jobs {
            match self.jobs.get(id).map(|known| known.phase.is_terminal()) {
                None => {
                    if job.phase.is_terminal() {
                        self.ended.push_back(*id);
                    }
                    self.jobs.insert(*id, Job { weight_bytes: weights[id], ..job.clone() });
                    match job.work.clone() {
                        Some(work) => {
                            let succeeded = job.phase.is_terminal();
                            events.push(Event::JobAdopted { job: *id, work, succeeded });
                        }
                        None => events.push(Event::JobEnded { job: *id, phase: job.phase.clone() }),
                    }
                }
                Some(false) if job.phase.is_terminal() => self.end_as(*id, job, weights[id], events),
                Some(_) => {}
            }
        }
        self.evict(events);
        Ok(())
    }

    /// A job of ours ended elsewhere, as `other` says.
    fn end_as(&mut self, id: JobId, other: &Job, weight_bytes: usize, events: &mut Vec<Event>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        *job = Job { weight_bytes, ..other.clone() };
        self.ended.push_back(id);
        events.push(Event::JobEnded { job: id, phase: other.phase.clone() });
        events.push(match other.work.clone() {
            Some(work) => Event::JobAdopted { job: id, work, succeeded: true },
            None => Event::JobsFreed { jobs: vec![id] },
        });
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
        let weight_bytes = work_bytes(label, graph).map_err(Failure::internal)?;
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
                Work::Fragment(_) | Work::Function(_) | Work::Calls => None,
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
        if !outputs_fit(spec, outputs) {
            return Err(refused(format!(
                "stage {stage} of job {id} has {} partitions of {} buckets, not these",
                spec.tasks.len(),
                spec.exchange.buckets(),
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
            let standing = job.work.as_ref().is_some_and(|work| is_standing(&work.graph));
            self.ended.push_back(id);
            events.push(Event::JobEnded { job: id, phase: JobPhase::Succeeded });
            if standing {
                self.free(vec![id], events);
            }
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
                job.weight_bytes = freed_bytes(job);
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

/// Whether a job is a driver's calls: nothing of it is scheduled, and nothing is left of it when it ends.
pub(crate) fn is_standing(graph: &StageGraph) -> bool {
    graph.stages.iter().any(|stage| stage.work == Work::Calls)
}

/// Whether these can be a stage's partitions. A stage of calls has an empty one, that lies nowhere.
fn outputs_fit(stage: &Stage, outputs: &[Placed]) -> bool {
    let buckets = stage.exchange.buckets() as usize;
    let fits = |placed: &Placed| match stage.work {
        Work::Calls => *placed == Placed::default(),
        Work::Fragment(_) | Work::Function(_) | Work::Held(_) => placed.meta.buckets.len() == buckets,
    };
    outputs.len() == stage.tasks.len() && outputs.iter().all(fits)
}

/// Roughly what a job will take in a snapshot.
fn work_bytes(label: &str, graph: &StageGraph) -> Result<usize, FrameError> {
    Ok(results_bytes(graph).saturating_add(label.len() + frame::encode(graph)?.len()))
}

/// Roughly what a job takes in a snapshot once it was freed.
fn freed_bytes(job: &Job) -> usize {
    job.label.len() + job.timeline.len() * RUN_BYTES
}

/// Roughly what a job's outputs and timeline will take in a snapshot.
fn results_bytes(graph: &StageGraph) -> usize {
    let tasks: usize = graph.stages.iter().map(|stage| stage.tasks.len()).sum();
    let of_stage = |stage: &Stage| {
        let buckets = stage.exchange.buckets() as usize;
        stage.tasks.len().saturating_mul(PLACE_BYTES + BUCKET_BYTES.saturating_mul(buckets))
    };
    let outputs = graph.stages.iter().map(of_stage).fold(0_usize, usize::saturating_add);
    outputs.saturating_add(tasks.min(MAX_TIMELINE) * RUN_BYTES)
}

/// Whether another era's job is one that this one could have made of it; and if so, roughly its size.
fn check_job(job: &Job) -> Result<usize, String> {
    if job.timeline.len() > MAX_TIMELINE || job.stages.len() > MAX_STAGES {
        return Err("it has too long a history".to_owned());
    }
    let Some(work) = &job.work else {
        return match job.phase {
            JobPhase::Running => Err("it runs, and nothing says what".to_owned()),
            _ => Ok(freed_bytes(job)),
        };
    };
    check_work(work)?;
    if job.stages.len() != work.graph.stages.len() {
        return Err(format!("it tells of {} stages and has {}", job.stages.len(), work.graph.stages.len()));
    }
    let complete = matches!(work.outputs.last(), Some(Some(_)));
    let fits = match job.phase {
        JobPhase::Running => !complete,
        JobPhase::Succeeded => complete,
        JobPhase::Failed(_) | JobPhase::Cancelled => false,
    };
    if !fits {
        return Err(format!("it is said to be {}, and its outputs say otherwise", job.phase.name()));
    }
    let bytes = work_bytes(&job.label, &work.graph).map_err(|error| error.to_string())?;
    if bytes > MAX_RUNNING_BYTES {
        return Err(format!("it takes {bytes} bytes, the limit is {MAX_RUNNING_BYTES}"));
    }
    Ok(bytes)
}

/// Whether a job's outputs fit its graph, which is sound.
fn check_work(work: &JobWork) -> Result<(), String> {
    check_graph(&work.graph)?;
    if work.outputs.len() != work.graph.stages.len() {
        return Err(format!(
            "it has outputs of {} stages for {}",
            work.outputs.len(),
            work.graph.stages.len()
        ));
    }
    for (stage, outputs) in work.graph.stages.iter().zip(&work.outputs) {
        if outputs.as_ref().is_some_and(|outputs| !outputs_fit(stage, outputs)) {
            return Err(format!("the outputs of its stage {} do not fit it", stage.id));
        }
    }
    Ok(())
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
            if input.read == (Read::Group { size: 0 }) {
                return Err(format!("stage {} reads stage {} in groups of none", stage.id, input.stage));
            }
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
        if stage.work == Work::Calls && (graph.stages.len() > 1 || stage.tasks.len() > 1) {
            return Err(format!(
                "stage {} is a driver's calls: that must be all of a job, in one task",
                stage.id
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
