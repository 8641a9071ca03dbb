//! The replicated state: members and jobs. It changes only by applying log entries, in order, and the same
//! entries give the same state on every node: no clock, no randomness, no hash order.
//!
//! ```text
//!   Submit ──> Running ──StageDone of the last stage──> Succeeded ──Release──> freed ──> history
//!                 │                                                              ▲
//!                 └────EndJob──> Failed | Cancelled ─────────────────────────────┘
//!                 ^                │ since what came with it was lost
//!                 └─────Submit─────┘ by a driver that has it still
//! ```
//!
//! A standing job ([`Work::Calls`]) has no result: it too is freed at once when it succeeds. What has a result stays
//! until it is released, whatever else ends meanwhile: if that leaves no room, new jobs are refused.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use floe_protocol::frame::{self, FrameError};
use floe_protocol::job::{MAX_TIMELINE, TaskRun};
use floe_protocol::node::MAX_MARKS;
use floe_protocol::{
    Claim, Era, Failure, Freed, JobId, JobPhase, JobStatus, Member, NodeId, RequestId, StageGraph, StageId,
    StageProgress, WallTime, WhyFreed, Work,
};
use serde::{Deserialize, Serialize};

use crate::command::{Command, Entry};
use crate::event::Event;

mod adoption;
mod door;
mod history;
mod job;

pub use door::{
    Door, FormerKey, FormerOf, Invitation, KeyChanges, MAX_FORGOTTEN, MAX_LASTS_MS, MAX_ROTATIONS, Rotated,
    Rotation,
};
pub use history::{MAX_RECORD_BYTES, MAX_TOMBSTONES, Tombstone};
pub(crate) use job::is_standing;
pub use job::{Job, JobWork, StageOutputs};

use history::History;
use job::{check_graph, outputs_fit, record_bytes, work_bytes};

/// Jobs that may be unfinished at once: each costs every node memory.
pub const MAX_UNFINISHED_JOBS: usize = 16_384;

/// Members of one mesh: a leader sends each of them leases and entries.
pub const MAX_MEMBERS: usize = 2048;

/// Tasks of one stage: its outputs travel in one log entry.
pub const MAX_STAGE_TASKS: usize = 131_072;

/// Stages of one job.
pub const MAX_STAGES: usize = 1024;

/// Size of the graphs of all jobs that are unfinished or have a result, and of what will be known of their outputs and
/// tasks: counted when a job is accepted. Every node has all of it in memory, some of it twice.
pub const MAX_WORK_BYTES: usize = 64 << 20;

/// The same of one job: its graph travels in one log entry.
pub const MAX_JOB_BYTES: usize = 11 << 20;

/// The same when another mesh hands its jobs over, so that a mesh which is full of its own can take some.
pub const MAX_ADOPTED_BYTES: usize = 80 << 20;

/// What a job that was taken on counts for, when eras are compared by what they have done.
const ACCEPTED_WORK_MS: u64 = 1_000;

/// The longest label of a job.
pub const MAX_LABEL_BYTES: usize = 16 << 10;

/// When to try again if there is no room for another job: jobs end, and results are collected, all the time.
const FULL_RETRY_MS: u64 = 1_000;

/// Requests that are remembered with their outcomes, so that one proposed twice applies once. A proposer
/// gives up long before this many others have followed.
pub const MAX_RECENT_REQUESTS: usize = 4096;

/// Eras that are remembered as merged into this one. A node that was away longer than so many merges took, and
/// lost its leader meanwhile, has to be recovered by hand.
pub const MAX_ENDED_ERAS: usize = 64;

/// Raised whenever a snapshot's layout changes.
const SNAPSHOT_VERSION: u32 = 7;

/// The replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateMachine {
    era: Option<Era>,
    /// What this era has done, once it was compared with another one.
    work_ms: Option<u64>,
    /// What it has done so far, as far as it was agreed on, in milliseconds of tasks.
    done_ms: u64,
    /// Eras whose jobs are this one's now, the one that ended first in front.
    ended_eras: VecDeque<Era>,
    yielded: Option<Yielded>,
    applied: u64,
    jobs_changed: u64,
    members: BTreeMap<NodeId, Member>,
    door: Door,
    /// Shared with the checkpoints that are being written.
    jobs: BTreeMap<JobId, Arc<Job>>,
    /// How many jobs are unfinished.
    unfinished: usize,
    /// Size of all jobs that are unfinished or have a result.
    work_bytes: usize,
    history: History,
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

    /// All of it but its jobs.
    pub fn without_jobs(&self) -> Self {
        Self {
            era: self.era,
            work_ms: self.work_ms,
            done_ms: self.done_ms,
            ended_eras: self.ended_eras.clone(),
            yielded: self.yielded.clone(),
            applied: self.applied,
            jobs_changed: self.jobs_changed,
            members: self.members.clone(),
            door: self.door.clone(),
            jobs: BTreeMap::new(),
            unfinished: self.unfinished,
            work_bytes: self.work_bytes,
            history: self.history.clone(),
            recent: self.recent.clone(),
            outcomes: BTreeMap::new(),
        }
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
        state.history.restore();
        Ok(state)
    }

    /// The mesh and its era, once founded.
    pub fn era(&self) -> Option<Era> {
        self.era
    }

    /// What this era brings forward against others.
    pub fn claim(&self) -> Option<Claim> {
        self.era.map(|era| Claim { era, work_ms: self.work_ms })
    }

    /// What this era has done so far, as far as it was agreed on: tasks that ran, and jobs that were taken on.
    pub fn done_ms(&self) -> u64 {
        self.done_ms
    }

    /// Whether an era with this claim is to hand its jobs over to this one; also a node of one that has done so already,
    /// and that may not know what its era had done.
    pub fn takes_over(&self, claim: &Claim) -> bool {
        let wins = self.claim().and_then(|own| own.wins_over(claim));
        wins == Some(true) || self.ended_eras.contains(&claim.era)
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
        (self.work_ms, self.done_ms) = (None, 0);
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

    /// Who may come to the mesh.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// All jobs that are remembered, by id.
    pub fn jobs(&self) -> &BTreeMap<JobId, Arc<Job>> {
        &self.jobs
    }

    /// One job, if more is known of it than that it has ended.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id).map(Arc::as_ref)
    }

    /// The same, to be changed.
    fn job_mut(&mut self, id: JobId) -> Option<&mut Job> {
        self.jobs.get_mut(&id).map(Arc::make_mut)
    }

    /// Jobs of which no more is known than that they have ended, those that were freed first in front.
    pub fn tombstones(&self) -> impl Iterator<Item = (JobId, Tombstone)> {
        self.history.tombstones()
    }

    /// One job; or that it has ended, [`Failure::Freed`]; or that nobody knows it, [`Failure::NoSuchJob`].
    pub fn find(&self, id: JobId) -> Result<&Job, Failure> {
        self.job(id).ok_or_else(|| match self.history.tombstone(id) {
            Some(Tombstone { freed, .. }) => Failure::Freed { job: id, freed },
            None => Failure::NoSuchJob { job: id },
        })
    }

    /// Whether there is room for a job whose work takes so much, as far as is known before it is planned.
    pub fn check_room(&self, bytes: usize) -> Result<(), Failure> {
        let kind = if self.unfinished >= MAX_UNFINISHED_JOBS {
            format!("{} jobs are unfinished, which is the limit", self.unfinished)
        } else if self.work_bytes.saturating_add(bytes) > MAX_WORK_BYTES {
            let results = self.jobs.values().filter(|job| job.has_result()).count();
            format!(
                "{} jobs are unfinished and {results} results wait to be collected, which is all that it can remember",
                self.unfinished
            )
        } else {
            return Ok(());
        };
        Err(Failure::Busy { message: format!("the mesh is full: {kind}"), retry_ms: FULL_RETRY_MS })
    }

    /// One job as drivers see it. It does not know which tasks run: only the leader's scheduler does.
    pub fn job_status(&self, id: JobId) -> Result<JobStatus, Failure> {
        let timeline = self.find(id)?.timeline.clone();
        Ok(JobStatus { timeline, ..self.job_progress(id)? })
    }

    /// The same without the timeline, which may be long.
    pub fn job_progress(&self, id: JobId) -> Result<JobStatus, Failure> {
        let job = self.find(id)?;
        Ok(JobStatus {
            id,
            label: job.label.clone(),
            phase: job.phase.clone(),
            stages: job.stages.clone(),
            other_ends: job.other_ends.clone(),
            submitted_at: job.submitted_at,
            ended_at: job.ended_at,
            timeline: Vec::new(),
            waits_for: None,
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
            Command::Submit { job, label, graph, owner, submitted_at } => {
                self.submit(*job, label, graph, (*owner, *submitted_at), events)
            }
            Command::StageDone { job, stage, outputs, runs, more_ms, ended_at } => {
                self.stage_done(*job, *stage, outputs, (runs, *more_ms), *ended_at, events)
            }
            Command::EndJob { job, phase, ended_at } => self.end_job(*job, phase, *ended_at, events),
            Command::Release { jobs, freed } => {
                self.release(jobs, *freed, events);
                Ok(())
            }
            Command::Adopt { claim, ended, jobs, tombstones, forgotten, keys } => {
                // Whoever was told that a node is kept out must find it so here too.
                self.door.check_room(forgotten)?;
                self.adopt(claim, ended, jobs, tombstones, events)?;
                for node in forgotten {
                    // Two parts may each have been told to forget the other's nodes: not all of them can go.
                    if !self.is_last(*node) {
                        self.shut_out(*node, events);
                    }
                }
                if self.door.adopt_keys(keys) {
                    self.key_changed(events);
                }
                Ok(())
            }
            Command::Invite { id, verifier, uses, lasts_ms } => {
                self.door.invite(*id, verifier.clone(), *uses, *lasts_ms)?;
                events.push(Event::DoorChanged);
                Ok(())
            }
            Command::Enter { invitation, node } => {
                self.door.enter(*invitation, *node)?;
                events.push(Event::DoorChanged);
                Ok(())
            }
            Command::ExpireInvitations { invitations } => {
                self.door.expire(invitations);
                events.push(Event::DoorChanged);
                Ok(())
            }
            Command::Forget { node } => {
                self.door.check_forgettable(*node)?;
                if self.is_last(*node) {
                    return Err(refused(format!(
                        "node {node} is the only member that the mesh has, and without it nothing is left of the mesh: stop it \
                         instead, or let another node join first"
                    )));
                }
                self.shut_out(*node, events);
                Ok(())
            }
            Command::RotateKey(rotation) => {
                self.door.rotate(rotation)?;
                self.key_changed(events);
                Ok(())
            }
            Command::RetireKey { to, former } => {
                if self.door.retire(*to, *former) {
                    events.push(Event::DoorChanged);
                }
                Ok(())
            }
            Command::Claim { work_ms } => {
                self.work_ms.get_or_insert(*work_ms);
                Ok(())
            }
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

    /// The mesh has another key, or knows of more that it had.
    fn key_changed(&mut self, events: &mut Vec<Event>) {
        // Whoever takes over from this era must know of it too.
        self.jobs_changed = self.applied;
        events.push(Event::DoorChanged);
    }

    /// Whether there is no member but this one.
    fn is_last(&self, node: NodeId) -> bool {
        self.members.len() == 1 && self.members.contains_key(&node)
    }

    /// A node is no longer a member, and must not come back.
    fn shut_out(&mut self, node: NodeId, events: &mut Vec<Event>) {
        if self.door.forget(node) {
            // Whoever takes over from this era must know of it too.
            self.jobs_changed = self.applied;
            events.push(Event::DoorChanged);
        }
        if self.members.remove(&node).is_some() {
            events.push(Event::MemberLeft { node });
        }
    }

    /// Takes a job in, and forgets what there is no room for any more: not what has a result.
    fn insert(&mut self, id: JobId, job: Job) {
        self.unfinished += usize::from(!job.phase.is_terminal());
        if job.work.is_some() {
            self.work_bytes += job.weight_bytes;
        } else {
            self.history.record(id, job.weight_bytes);
        }
        self.jobs.insert(id, Arc::new(job));
        while let Some(id) = self.history.surplus() {
            if let Some(job) = self.jobs.remove(&id)
                && let Some(freed) = job.freed
            {
                self.history.bury(id, Tombstone::new(&job.phase, freed));
            }
        }
    }

    /// Takes a job out that is unfinished or has a result.
    fn remove(&mut self, id: JobId) -> Option<Job> {
        let job = self.jobs.remove(&id).map(Arc::unwrap_or_clone)?;
        self.unfinished -= usize::from(!job.phase.is_terminal());
        self.work_bytes -= job.weight_bytes;
        Some(job)
    }

    fn join(&mut self, member: &Member, events: &mut Vec<Event>) -> Result<(), Failure> {
        if member.id.0 == 0 {
            return Err(refused("node id 0 means none: choose another".to_owned()));
        }
        self.door.check(member.id)?;
        if self.members.len() >= MAX_MEMBERS && !self.members.contains_key(&member.id) {
            return Err(refused(format!("the mesh has {MAX_MEMBERS} members, which is its limit")));
        }
        if member.incarnation.marks.len() > MAX_MARKS {
            return Err(refused(format!("a node knows the marks of up to {MAX_MARKS} of its starts")));
        }
        if let Some(known) = self.members.get(&member.id)
            && !member.incarnation.follows(&known.incarnation)
        {
            // What it promised since is forgotten: it must not promise anything again under this name.
            let message = format!(
                "the data directory of node {} is older than what the mesh knows of it (it has missed start {}): a copy \
                 or a backup was put in its place",
                member.name, known.incarnation.number
            );
            return Err(Failure::Superseded { message });
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
        (owner, submitted_at): (u64, WallTime),
        events: &mut Vec<Event>,
    ) -> Result<(), Failure> {
        match self.find(id) {
            // Its driver had what was lost, and has sent it again.
            Ok(known) if known.label == label && known.phase.is_terminal() && !known.phase.is_final() => {}
            // Planned again, the same submission may have another graph; its label is the driver's own.
            Ok(known) if known.label == label => return Ok(()),
            Ok(_) => return Err(refused(format!("job id {id} is taken: choose another"))),
            Err(Failure::NoSuchJob { .. }) => {}
            Err(freed) => return Err(freed),
        }
        if label.len() > MAX_LABEL_BYTES {
            return Err(refused(format!(
                "a label has at most {MAX_LABEL_BYTES} bytes, this one {}",
                label.len()
            )));
        }
        check_graph(graph).map_err(refused)?;
        let weight_bytes = work_bytes(label, graph).map_err(refused)?;
        self.check_room(weight_bytes)?;
        let outputs: Vec<_> = graph
            .stages
            .iter()
            .map(|stage| match &stage.work {
                Work::Held(placed) => Some(StageOutputs::whole(placed.clone())),
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
                done: outputs.as_ref().map_or(0, |outputs| outputs.placed.len() as u32),
                rows: outputs.as_ref().map_or(0, StageOutputs::rows),
                bytes: outputs.as_ref().map_or(0, StageOutputs::bytes),
            })
            .collect();
        let finished = matches!(outputs.last(), Some(Some(_)));
        // It holds nothing, or it would not have got here.
        let ended_before = self.jobs.remove(&id);
        self.history.forget(id);
        let graph = Arc::new(graph.clone());
        let job = Job {
            label: label.to_owned(),
            phase: JobPhase::Running,
            work: Some(JobWork { graph: graph.clone(), outputs }),
            owner,
            submitted_at,
            ended_at: None,
            freed: None,
            other_ends: ended_before.map(|job| job.other_ends.clone()).unwrap_or_default(),
            stages,
            timeline: Vec::new(),
            weight_bytes,
        };
        self.insert(id, job);
        self.done_ms = self.done_ms.saturating_add(ACCEPTED_WORK_MS);
        events.push(Event::JobAccepted { job: id, graph, owner });
        // A frame in memory, collected as it is: there is nothing to run.
        if finished {
            self.succeed(id, submitted_at, events);
        }
        Ok(())
    }

    fn stage_done(
        &mut self,
        id: JobId,
        stage: StageId,
        outputs: &StageOutputs,
        (runs, more_ms): (&[TaskRun], u64),
        ended_at: WallTime,
        events: &mut Vec<Event>,
    ) -> Result<(), Failure> {
        let job = self.jobs.get_mut(&id).map(Arc::make_mut).ok_or(Failure::NoSuchJob { job: id })?;
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
        let replaced = work.outputs[position].replace(outputs.clone());
        let progress = &mut job.stages[position];
        progress.done = outputs.placed.len() as u32;
        (progress.rows, progress.bytes) = (outputs.rows(), outputs.bytes());
        // A leader that saw no answer says the same again, under another request id.
        let fresh = runs.iter().filter(|run| replaced.is_none() || !job.timeline.contains(run));
        let room = MAX_TIMELINE.saturating_sub(job.timeline.len());
        let fresh: Vec<_> = fresh.collect();
        let more_ms = if replaced.is_none() { more_ms } else { 0 };
        let worked_ms = fresh.iter().map(|run| run.elapsed_ms).fold(more_ms, u64::saturating_add);
        self.done_ms = self.done_ms.saturating_add(worked_ms);
        let kept: Vec<_> = fresh.into_iter().take(room).cloned().collect();
        job.timeline.extend(kept);
        let last = position + 1 == work.outputs.len();
        let running = !job.phase.is_terminal();
        events.push(Event::StageDone { job: id, stage });
        if last && running {
            self.succeed(id, ended_at, events);
        }
        Ok(())
    }

    fn succeed(&mut self, id: JobId, ended_at: WallTime, events: &mut Vec<Event>) {
        let Some(job) = self.job_mut(id) else { return };
        job.phase = JobPhase::Succeeded;
        job.ended_at = Some(ended_at);
        let standing = job.work.as_ref().is_some_and(|work| is_standing(&work.graph));
        self.unfinished -= 1;
        events.push(Event::JobEnded { job: id, phase: JobPhase::Succeeded });
        if standing {
            self.free(vec![id], Freed { why: WhyFreed::Closed, at: ended_at }, events);
        }
    }

    fn end_job(
        &mut self,
        id: JobId,
        phase: &JobPhase,
        ended_at: WallTime,
        events: &mut Vec<Event>,
    ) -> Result<(), Failure> {
        let (phase, why) = match phase {
            JobPhase::Failed(failure) => (JobPhase::Failed(failure.clone().shortened()), WhyFreed::Failed),
            JobPhase::Cancelled => (JobPhase::Cancelled, WhyFreed::Cancelled),
            JobPhase::Running | JobPhase::Succeeded => {
                return Err(refused(format!("a job cannot be ended as {}", phase.name())));
            }
        };
        let job = match self.find(id) {
            Err(Failure::Freed { .. }) => return Ok(()),
            found => found?,
        };
        if job.phase.is_terminal() {
            return Ok(());
        }
        if let Some(job) = self.job_mut(id) {
            job.phase = phase.clone();
            job.ended_at = Some(ended_at);
        }
        self.unfinished -= 1;
        events.push(Event::JobEnded { job: id, phase });
        self.free(vec![id], Freed { why, at: ended_at }, events);
        Ok(())
    }

    /// Frees the results of jobs. One that still runs must be cancelled first, and unknown ones are gone already.
    fn release(&mut self, jobs: &[JobId], freed: Freed, events: &mut Vec<Event>) {
        let with_results = |id: &&JobId| self.job(**id).is_some_and(Job::has_result);
        let jobs: BTreeSet<_> = jobs.iter().filter(with_results).copied().collect();
        self.free(jobs.into_iter().collect(), freed, events);
    }

    /// Drops what ended jobs ran and where their partitions lie; their history stays.
    fn free(&mut self, jobs: Vec<JobId>, freed: Freed, events: &mut Vec<Event>) {
        for id in &jobs {
            if let Some(mut job) = self.remove(*id) {
                job.work = None;
                job.freed = Some(freed);
                job.weight_bytes = record_bytes(&job);
                self.insert(*id, job);
            }
        }
        if !jobs.is_empty() {
            events.push(Event::JobsFreed { jobs, freed });
        }
    }
}

fn refused(message: String) -> Failure {
    Failure::Refused { message }
}

#[cfg(test)]
mod tests;
