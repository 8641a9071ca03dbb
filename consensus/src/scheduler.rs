//! What the leader does with the jobs: which task runs where, and what happens when it fails or its node
//! goes. Soft state that lives only as long as the leadership.
//!
//! ```text
//!   events of the state machine ┐                 ┌ Send: Assign, Abort, Free, AskInventory, Lease
//!   NodeUp, NodeDown, NodeLeft  ├──> step(now) ──>┤ Propose: StageDone, EndJob
//!   Inventory, Report, Tick ... ┘                 └ NodeLost
//! ```
//!
//! It is level-triggered: the replicated state says what must be done, the inventories say what exists, and
//! it works off the difference. A new leader starts one of these from the replicated state, asks every node
//! what it holds and runs, and goes on from there: finished partitions are kept, running attempts adopted.
//! Messages and proposals may be lost: what is not confirmed is said again.
//!
//! Whose word counts: an inventory or a sign of life only under this leader's fence; a report if and only if
//! it is of an attempt that this scheduler assigned or adopted, whatever its fence, since an attempt's number
//! is unique across leaders.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::ops::Bound;
use std::sync::Arc;

use floe_protocol::job::{MAX_TIMELINE, TaskRun};
use floe_protocol::message::{Assignment, Inventory, Made, Report};
use floe_protocol::{
    AttemptId, Failure, Fence, Freed, JobId, JobPhase, Load, NodeId, PeerMessage, StageGraph, StageId,
    StageProgress, TaskId, WallTime, WhyFreed, Work,
};

use crate::clock::Now;
use crate::command::Command;
use crate::event::Event;
use crate::state_machine::{JobWork, StageOutputs, StateMachine};

mod copies;
mod deaths;
mod disks;
mod job;
mod leases;
mod placement;
mod recovery;
mod sessions;
mod set_aside;
mod stuck;
mod turns;

pub use copies::COPY_PATIENCE_MS;
pub use deaths::{MAX_DEATHS, PAUSES_MS, SUDDEN_MS};
pub use disks::{FULL_PATIENCE_MS, OTHERS_PATIENCE_MS};
pub use leases::RESULT_LEASE_MS;
pub use placement::{HEAVY_BYTES, MEMORY_FACTOR, MIN_TASK_BYTES, QUEUE_AHEAD};
pub use recovery::{
    GRACE_MS, LEASE_MS, MAX_ATTEMPTS, MAX_CRASHES, MAX_INPUT_LOSSES, SETTLE_MS, SLOW_FACTOR, SLOW_MS,
};
pub use sessions::SESSION_PATIENCE_MS;
pub use set_aside::{BLOCKED_PATIENCE_MS, HOLD_MS};
pub use stuck::{AWAY_PATIENCE_MS, UNSEEN_PATIENCE_MS};

use copies::Copies;
use disks::Disks;
use job::{Attempt, Job, Place, Reads};
use leases::Leases;
use placement::{Nodes, Standing, Wish, task_memory_bytes};
use set_aside::SetAside;
use turns::{Need, Turns};

/// How often nodes are told that this leader still leads, and are expected to answer.
pub const LEASE_INTERVAL_MS: u64 = 500;

/// A proposal that has not applied by then is made again.
pub const PROPOSE_RETRY_MS: u64 = 2_000;

/// An inventory that has not come by then is asked for again.
pub const INVENTORY_RETRY_MS: u64 = 1_000;

/// What a node holds and runs is compared with what is believed at least this often: an order or a report may
/// have been lost on the way without the connection being lost.
pub const RECONCILE_MS: u64 = 10_000;

/// Partitions of a job that nobody knows are freed after this long: a submission's frames are stored before
/// the job is accepted.
pub const ORPHAN_MS: u64 = 120_000;

/// How long after a job was adopted its holders may take to join this mesh.
pub const ADOPTION_MS: u64 = 5_000;

/// How many such jobs are remembered. Beyond it they wait for the next inventory.
const MAX_ORPHANS: usize = 16_384;

/// Jobs that are looked at in one tick at least, and in how many ticks all are.
const LOOKED_AT_ONCE: usize = 64;
const LOOK_TICKS: usize = 10;

/// In how many ticks every job that is blocked has another try.
const WAKE_TICKS: usize = 200;

/// Something the scheduler must know.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The mesh accepted a job.
    JobAccepted {
        /// The job.
        job: JobId,
        /// What to run.
        graph: Arc<StageGraph>,
        /// Whose it is: drivers take turns.
        owner: u64,
    },
    /// The mesh took over another era's job, or what became of it there.
    JobAdopted {
        /// The job.
        job: JobId,
        /// What it runs, and what there is of it.
        work: JobWork,
        /// Whether it only keeps its result.
        succeeded: bool,
        /// Whose it is.
        owner: u64,
    },
    /// Nodes that come from another era may run tasks of a job of this one.
    JobShared {
        /// The job.
        job: JobId,
    },
    /// The mesh knows a stage's partitions.
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
    },
    /// A node is connected (anew), this one included. It is asked for its inventory.
    NodeUp {
        /// The node.
        node: NodeId,
        /// What people call it.
        name: String,
        /// How many tasks it runs at once; 0 if it takes none.
        slots: u32,
        /// Its memory budget.
        memory_bytes: u64,
    },
    /// The connection to a node was lost.
    NodeDown {
        /// The node.
        node: NodeId,
    },
    /// A node is no longer a member: it left in good order, or was told to go.
    NodeLeft {
        /// The node.
        node: NodeId,
    },
    /// A node answered a lease.
    Alive {
        /// The node.
        node: NodeId,
        /// The fence it answered.
        fence: Fence,
        /// Its load.
        load: Load,
    },
    /// A node said what it holds and runs.
    Inventory {
        /// The node.
        node: NodeId,
        /// What it said.
        inventory: Inventory,
    },
    /// An attempt ended.
    Report {
        /// The node it ran on.
        node: NodeId,
        /// How it ended.
        report: Report,
    },
    /// A node that should hold a partition could not give it to someone who collects a result.
    PartitionLost {
        /// The partition.
        partition: TaskId,
        /// The node that was asked.
        node: NodeId,
    },
    /// A node has given another one a copy of a partition, or could not.
    Copied {
        /// The partition.
        partition: TaskId,
        /// Who was to get it.
        node: NodeId,
        /// Whether that has it now.
        done: bool,
    },
    /// Time passed. To be given every 50 to 100 ms; several times a second suffices while all is quiet
    /// ([`Scheduler::is_quiet`]).
    Tick,
}

/// Something the node must do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send a message to a node, this one included.
    Send(NodeId, PeerMessage),
    /// Propose a command, under a request id of the node's choice.
    Propose(Command),
    /// A node is gone: what ran there runs elsewhere, what it held is made anew if needed.
    NodeLost(NodeId),
}

/// The leader's view of jobs and nodes.
pub struct Scheduler {
    fence: Fence,
    now_ms: u64,
    wall: WallTime,
    started_ms: u64,
    jobs: BTreeMap<JobId, Job>,
    nodes: Nodes,
    /// Jobs with tasks that may be assigned.
    turns: Turns,
    set_aside: SetAside,
    /// The job that was looked at last.
    looked_at: JobId,
    /// Commands that end jobs, until they apply, and when they were last proposed.
    ending: BTreeMap<JobId, (Command, u64)>,
    leases: Leases,
    copies: Copies,
    disks: Disks,
    /// The most attempts at one task of a job that is known here no more: should it be again, it has other ones.
    most_tries: u32,
    /// Jobs that were ended since what came with them was lost, and how many attempts at a task they had: submitted
    /// again, they have other ones.
    lost: BTreeMap<JobId, u32>,
    /// When jobs were last said to be on their way here.
    submitting: BTreeMap<JobId, u64>,
    /// How many nodes were lost under this leader.
    losses: u64,
    /// Tasks that are not to run again before then.
    paused: BTreeSet<(u64, TaskId)>,
    /// Members whose inventories are awaited before anything is assigned.
    settling: Option<BTreeSet<NodeId>>,
    /// Jobs that nodes hold partitions of and nobody knows, since when.
    orphans: BTreeMap<(JobId, NodeId), u64>,
    /// When a job was last adopted, while its holders may be on their way.
    adopted_ms: Option<u64>,
    leased_ms: u64,
    /// How long drivers' calls have gone on under this leader.
    attended_work_ms: u64,
    ticked_ms: u64,
    aborts: BTreeMap<NodeId, Vec<AttemptId>>,
    effects: Vec<Effect>,
    quiet: bool,
}

impl Scheduler {
    /// A new leader's scheduler. `state` holds all that earlier leaders committed ([`Event::Elected`]).
    ///
    /// The caller then gives [`Input::NodeUp`] for every node that is connected, its own included, and
    /// [`Input::NodeDown`] for every member that is not.
    pub fn new(fence: Fence, now: Now, state: &StateMachine) -> Self {
        let now_ms = now.ms;
        let mut scheduler = Self {
            fence,
            now_ms,
            wall: now.wall,
            started_ms: now_ms,
            jobs: BTreeMap::new(),
            nodes: Nodes::default(),
            turns: Turns::default(),
            set_aside: SetAside::default(),
            looked_at: JobId(0),
            ending: BTreeMap::new(),
            leases: Leases::default(),
            copies: Copies::default(),
            disks: Disks::default(),
            most_tries: 0,
            lost: BTreeMap::new(),
            submitting: BTreeMap::new(),
            losses: 0,
            paused: BTreeSet::new(),
            settling: None,
            orphans: BTreeMap::new(),
            adopted_ms: None,
            leased_ms: 0,
            attended_work_ms: 0,
            ticked_ms: now_ms,
            aborts: BTreeMap::new(),
            effects: Vec::new(),
            quiet: false,
        };
        for (node, member) in state.members() {
            scheduler.nodes.member(*node, member.name.clone(), now_ms);
        }
        for (id, job) in state.jobs() {
            let Some(work) = &job.work else { continue };
            scheduler.add_job(*id, work.graph.clone(), &work.outputs, job.owner, job.has_result());
            scheduler.inherit(*id);
        }
        if !scheduler.jobs.is_empty() {
            scheduler.settling = Some(state.members().keys().copied().collect());
        }
        scheduler
    }

    /// Takes in what happened now, and says what to do.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Effect> {
        self.now_ms = self.now_ms.max(now.ms);
        self.wall = now.wall;
        self.quiet &= matches!(input, Input::Alive { .. });
        match input {
            Input::JobAccepted { job, graph, owner } => self.job_accepted(job, graph, owner),
            Input::JobAdopted { job, work, succeeded, owner } => {
                self.job_adopted(job, work, succeeded, owner);
            }
            Input::JobShared { job } => self.inherit(job),
            Input::StageDone { job, stage } => self.stage_agreed(job, stage),
            Input::JobEnded { job, phase: JobPhase::Succeeded } => {
                self.ending.remove(&job);
                self.succeeded(job);
            }
            Input::JobEnded { job, .. } => {
                self.ending.remove(&job);
                self.stop(job);
            }
            Input::JobsFreed { jobs } => self.jobs_freed(jobs),
            Input::NodeUp { node, name, slots, memory_bytes } => {
                self.nodes.up(node, name, slots, memory_bytes, self.now_ms);
                self.ask(node);
                self.look_for_plans_again();
            }
            Input::NodeDown { node } => self.node_down(node),
            Input::NodeLeft { node } => self.node_left(node),
            Input::Alive { node, fence, load } if fence == self.fence => self.alive(node, load),
            Input::Inventory { node, inventory } if inventory.fence == self.fence => {
                self.inventory(node, inventory);
            }
            Input::Alive { .. } | Input::Inventory { .. } => {}
            Input::Report { node, report } => self.report(node, report),
            Input::PartitionLost { partition, node } => {
                self.nodes.entry(node).held.remove(&partition);
                self.drop_partitions(node, [partition]);
                self.doubt(node);
            }
            Input::Copied { partition, node, done } => self.copied(partition, node, done),
            Input::Tick => self.tick(),
        }
        self.settle();
        self.dispatch();
        // What frees a slot goes before what takes it.
        let aborts = mem::take(&mut self.aborts)
            .into_iter()
            .map(|(node, attempts)| Effect::Send(node, PeerMessage::Abort { fence: self.fence, attempts }));
        aborts.chain(mem::take(&mut self.effects)).collect()
    }

    /// Whether nothing but leases went on at the last tick, nor began since: nothing runs or waits, and every node is there
    /// or known to be gone.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// The fence under which everything is sent.
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// What is done and not agreed on yet, in milliseconds of tasks: how long those have run that run now, and drivers'
    /// calls, of which nothing is agreed on.
    pub fn work_under_way_ms(&self) -> u64 {
        let tasks = self.jobs.values().flat_map(|job| &job.stages).flat_map(|stage| &stage.tasks);
        let attempts = tasks.flat_map(|task| &task.attempts);
        let ran_ms = attempts.map(|attempt| self.now_ms.saturating_sub(attempt.since_ms));
        ran_ms.fold(self.attended_work_ms, u64::saturating_add)
    }

    /// A job's live progress; `None` if the job is unknown here or has ended, and the replicated state knows
    /// as much.
    pub fn progress(&self, job: JobId) -> Option<Vec<StageProgress>> {
        self.jobs.get(&job).filter(|job| !job.succeeded).map(Job::progress)
    }

    /// Where a partition of a running job's result lies, if it was made.
    pub fn made(&self, job: JobId, partition: u32) -> Made {
        self.jobs.get(&job).filter(|job| !job.succeeded).map_or(Made::NotYet, |job| job.made(partition))
    }

    /// Whether a node answers.
    pub fn is_alive(&self, node: NodeId) -> bool {
        self.nodes.is_there(node)
    }

    /// What a node last said of its load.
    pub fn load(&self, node: NodeId) -> Load {
        self.nodes.get(node).map(|node| node.load).unwrap_or_default()
    }

    /// The nodes heard of within the last `window_ms`; the start of this leadership counts as hearing of every
    /// member.
    pub fn heard_within(&self, window_ms: u64) -> BTreeSet<NodeId> {
        let since = self.now_ms.saturating_sub(window_ms);
        self.nodes.iter().filter(|(_, node)| node.heard_ms >= since).map(|(id, _)| id).collect()
    }

    fn add_job(
        &mut self,
        id: JobId,
        graph: Arc<StageGraph>,
        outputs: &[Option<StageOutputs>],
        owner: u64,
        succeeded: bool,
    ) {
        let mut job = Job::new(id, graph, owner);
        job.restore(outputs);
        for stage in 0..job.stages.len() {
            for (partition, holders) in (0..).zip(job.holders(stage)) {
                let task = job.task_id(Place { stage, partition });
                for node in holders {
                    self.nodes.entry(*node).held.insert(task);
                }
            }
        }
        job.start();
        job.attended_ms = job.is_standing().then_some(self.now_ms);
        self.jobs.insert(id, job);
        if succeeded {
            self.succeeded(id);
        }
        self.touch(id);
    }

    /// The job has a result.
    fn succeeded(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.succeeded = true;
            self.renew_lease(id);
        }
    }

    /// The job ran under another leader too.
    fn inherit(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.inherited = true;
        }
    }

    fn job_accepted(&mut self, id: JobId, graph: Arc<StageGraph>, owner: u64) {
        if !self.jobs.contains_key(&id) {
            self.ending.remove(&id);
            self.add_job(id, graph, &[], owner, false);
            if let (Some(tries), Some(job)) = (self.lost.remove(&id), self.jobs.get_mut(&id)) {
                job.count_from(tries);
            }
            self.lose_absent();
        }
    }

    /// The nodes of the era that the job is of are about to join, with what they hold of it.
    fn job_adopted(&mut self, id: JobId, work: JobWork, succeeded: bool, owner: u64) {
        // What ran of it here is of no use if it has ended elsewhere.
        self.stop(id);
        self.add_job(id, work.graph, &work.outputs, owner, succeeded);
        self.inherit(id);
        if let Some(job) = self.jobs.get_mut(&id) {
            // It may have run here, and have ended, under this leader.
            job.count_from(self.most_tries);
        }
        self.adopted_ms = Some(self.now_ms);
    }

    /// Holders that are gone hold nothing, unless they may just be on their way.
    fn lose_absent(&mut self) {
        if self.settling.is_some() || self.adopted_ms.is_some_and(|since| self.now_ms < since + ADOPTION_MS) {
            return;
        }
        self.adopted_ms = None;
        let gone = |node: &placement::Node| node.standing == Standing::Absent && !node.held.is_empty();
        let absent: Vec<_> = self.nodes.iter().filter(|(_, node)| gone(node)).map(|(id, _)| id).collect();
        for node in absent {
            self.lose_partitions(node);
        }
    }

    fn stage_agreed(&mut self, id: JobId, stage: StageId) {
        if let Some(job) = self.jobs.get_mut(&id)
            && let Some(stage) = job.stages.get_mut(stage.0 as usize)
            // Otherwise it has changed since, and is proposed again.
            && stage.proposed_ms.is_some()
        {
            stage.agreed = true;
            stage.runs.clear();
        }
    }

    fn jobs_freed(&mut self, jobs: Vec<JobId>) {
        for id in &jobs {
            self.ending.remove(id);
            self.leases.end(*id);
            self.stop(*id);
            self.nodes.free_job(*id);
        }
        let connected: Vec<_> =
            self.nodes.iter().filter(|(_, node)| node.connected).map(|(id, _)| id).collect();
        for node in connected {
            self.send(node, PeerMessage::Free { fence: self.fence, jobs: jobs.clone() });
        }
    }

    /// Aborts what runs of a job and forgets it.
    fn stop(&mut self, id: JobId) {
        let Some(job) = self.jobs.remove(&id) else { return };
        self.most_tries = self.most_tries.max(job.tries());
        self.turns.remove(id);
        self.is_blocked_no_more(id);
        self.paused.retain(|(_, task)| task.job != id);
        for attempt in job.stages.iter().flat_map(|stage| &stage.tasks).flat_map(|task| &task.attempts) {
            self.nodes.release(attempt.node, attempt.id);
            self.aborts.entry(attempt.node).or_default().push(attempt.id);
        }
    }

    /// Ends a job with a failure. It is proposed until it applies.
    fn fail(&mut self, id: JobId, failure: Failure) {
        let Some(job) = self.jobs.get(&id) else { return };
        if matches!(failure, Failure::SubmissionLost { .. }) && self.lost.len() < MAX_ORPHANS {
            self.lost.insert(id, job.tries());
        }
        let command = if job.succeeded {
            // Its result was lost and cannot be made anew.
            Command::Release { jobs: vec![id], freed: Freed { why: WhyFreed::Lost, at: self.wall } }
        } else {
            Command::EndJob { job: id, phase: JobPhase::Failed(failure.shortened()), ended_at: self.wall }
        };
        self.stop(id);
        self.effects.push(Effect::Propose(command.clone()));
        self.ending.insert(id, (command, self.now_ms));
    }

    fn report(&mut self, node: NodeId, report: Report) {
        self.heard(node);
        let Report { attempt, outcome, run, .. } = report;
        let Some(job) = self.jobs.get_mut(&attempt.task.job) else { return };
        let Some(place) = job.place(attempt.task) else { return };
        if !job.task(place).attempts.iter().any(|a| a.id == attempt && a.node == node) {
            return;
        }
        self.nodes.release(node, attempt);
        match outcome {
            Ok(meta) if job.fits(place, &meta.summary()) && job.has_buckets(place, &meta) => {
                self.ran(attempt.task, place, node, run);
                self.finish(attempt.task.job, place, node, job::Made::Reported(meta), Some(attempt));
            }
            Ok(meta) => {
                let message = format!(
                    "task {} made {} buckets, of plan {:x}",
                    attempt.task,
                    meta.buckets.len(),
                    meta.mark
                );
                self.failed(place, attempt, node, Failure::Internal { message });
            }
            Err(failure) => self.failed(place, attempt, node, failure),
        }
    }

    /// Notes when and where a task ran. What it is a run of is this leader's word, not the node's.
    fn ran(&mut self, task: TaskId, place: Place, node: NodeId, run: TaskRun) {
        let Some(job) = self.jobs.get_mut(&task.job) else { return };
        let stage = &mut job.stages[place.stage];
        stage.elapsed_ms.push(run.elapsed_ms);
        stage.runs.push(TaskRun { stage: task.stage, partition: task.partition, node, ..run });
    }

    /// A partition exists on a node: other attempts at it are of no use.
    fn finish(&mut self, id: JobId, place: Place, node: NodeId, made: job::Made, by: Option<AttemptId>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        self.nodes.entry(node).held.insert(job.task_id(place));
        for attempt in job.finish(place, node, made) {
            if Some(attempt.id) != by {
                self.nodes.release(attempt.node, attempt.id);
                self.aborts.entry(attempt.node).or_default().push(attempt.id);
            }
        }
        self.touch(id);
    }

    /// After any change of a job: its turn if it has tasks to assign, and its complete stages proposed.
    fn touch(&mut self, id: JobId) {
        self.keep_turn(id);
        self.propose_stages(id);
    }

    /// Proposes the stages of a job that are complete, again after a while.
    fn propose_stages(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        for position in 0..job.stages.len() {
            let stage = &job.stages[position];
            let said = stage.proposed_ms.is_some_and(|at| self.now_ms < at + PROPOSE_RETRY_MS);
            if stage.agreed || said || !stage.is_complete() {
                continue;
            }
            let Some(outputs) = job.outputs(position) else { continue };
            let stage = &mut job.stages[position];
            stage.proposed_ms = Some(self.now_ms);
            let (runs, more) = stage.runs.split_at(stage.runs.len().min(MAX_TIMELINE));
            self.effects.push(Effect::Propose(Command::StageDone {
                job: id,
                stage: StageId(position as u32),
                outputs,
                runs: runs.to_vec(),
                more_ms: more.iter().map(|run| run.elapsed_ms).fold(0, u64::saturating_add),
                ended_at: self.wall,
            }));
        }
    }

    fn tick(&mut self) {
        self.count_work();
        self.check_leases();
        self.end_pauses();
        self.check_set_aside();
        // Should it have been missed that one can go on, it tries again all the same.
        self.turns.wake(WAKE_TICKS);
        for id in self.next_to_look_at() {
            self.propose_stages(id);
            self.check_stuck(id);
            self.check_attended(id);
            self.second_copies(id);
        }
        for (command, proposed_ms) in self.ending.values_mut() {
            if self.now_ms >= *proposed_ms + PROPOSE_RETRY_MS {
                *proposed_ms = self.now_ms;
                self.effects.push(Effect::Propose(command.clone()));
            }
        }
        self.expire();
        self.check_disks();
        self.keep_copies();
        self.free_orphans();
        if self.adopted_ms.is_some() {
            self.lose_absent();
        }
        self.quiet = self.settling.is_none()
            && self.adopted_ms.is_none()
            && self.ending.is_empty()
            && self.paused.is_empty()
            && self.turns.is_empty()
            && self.nodes.are_quiet();
    }

    /// Of few jobs all, of many a part in turn, so that a tick costs no more than what came of it is worth.
    fn next_to_look_at(&mut self) -> Vec<JobId> {
        let count = LOOKED_AT_ONCE.max(self.jobs.len().div_ceil(LOOK_TICKS)).min(self.jobs.len());
        let later = self.jobs.range((Bound::Excluded(self.looked_at), Bound::Unbounded));
        let jobs: Vec<_> = later.chain(self.jobs.iter()).take(count).map(|(id, _)| *id).collect();
        self.looked_at = jobs.last().copied().unwrap_or(JobId(0));
        if count < self.jobs.len() { jobs } else { self.jobs.keys().copied().collect() }
    }

    /// Counts drivers' calls, for when this era meets another one.
    fn count_work(&mut self) {
        let attended = self.jobs.values().filter_map(|job| job.attended_ms);
        let attended =
            attended.filter(|attended_ms| self.now_ms <= attended_ms + 2 * RECONCILE_MS).count() as u64;
        let passed_ms = self.now_ms.saturating_sub(self.ticked_ms);
        self.attended_work_ms = self.attended_work_ms.saturating_add(attended.saturating_mul(passed_ms));
        self.ticked_ms = self.now_ms;
    }

    /// Assigns tasks, one of each job in turn, while nodes can take them.
    fn dispatch(&mut self) {
        if self.settling.is_some() {
            return;
        }
        if self.nodes.take_lost() {
            // What could go elsewhere then may have to go where it failed.
            self.turns.wake_all();
        }
        self.use_set_aside();
        for node in self.nodes.take_relieved() {
            self.fill(node);
        }
        while self.nodes.any_free() {
            let Some(id) = self.turns.next() else { break };
            self.take_turn(id);
        }
    }

    /// Assigns one task of the job whose turn it is.
    fn take_turn(&mut self, id: JobId) {
        match self.assign_next(id, None) {
            Ok(()) => self.keep_turn(id),
            Err(Some(need)) => {
                let owner = self.jobs.get(&id).map_or(0, |job| job.owner);
                self.turns.block(id, owner, need, self.now_ms);
            }
            Err(None) => self.turns.remove(id),
        }
    }

    /// Gives a node that can take more of what was blocked, unless it is another driver's turn.
    fn fill(&mut self, node: NodeId) {
        let mut from = (0, 0);
        while let Some(means) = self.nodes.means(node)
            && let Some((position, id)) = self.turns.first_for(node, means, from)
        {
            if self.turns.is_others_turn(position)
                && let Some(others) = self.turns.next()
            {
                self.take_turn(others);
                continue;
            }
            from = (position.0, position.1 + 1);
            match self.assign_next(id, None) {
                Ok(()) => {
                    self.turns.remove(id);
                    self.keep_turn(id);
                }
                Err(Some(need)) => self.turns.in_vain(position, node, means, need),
                Err(None) => self.turns.remove(id),
            }
        }
    }

    /// A job has its turn (again) if it has something to assign.
    fn keep_turn(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get(&id).filter(|job| job.has_ready()) {
            self.turns.touched(id, job.owner);
        }
    }

    /// Assigns one task of a job, to the node if one is given; or says what its next tasks take, if it has any.
    fn assign_next(&mut self, id: JobId, at: Option<NodeId>) -> Result<(), Option<Need>> {
        let Some(job) = self.jobs.get_mut(&id) else { return Err(None) };
        let mut blocked: Option<Need> = None;
        for stage in 0..job.stages.len() {
            // Behind a task that must not go where it failed before, others of its stage need not wait.
            let (mut first, mut last) = (None, None);
            while let Some(place) = job.next_ready(stage)
                && first != Some(place)
                && last != Some(place)
            {
                let Some(reads) = job.reads(place) else { break };
                let memory_bytes = task_memory_bytes(read_bytes(job, place, &reads));
                let mut node = match at {
                    Some(at) => {
                        let takes = choose_among(&self.nodes, job, place)(at);
                        (takes && self.nodes.has_room_aside(at, memory_bytes)).then_some(at)
                    }
                    None => choose(&self.nodes, job, place, &reads, memory_bytes, false),
                };
                if node.is_none() && at.is_none() && recovery::relent(&self.nodes, job, place) {
                    node = choose(&self.nodes, job, place, &reads, memory_bytes, false);
                }
                if let Some(node) = node {
                    self.assign(id, place, node, reads, memory_bytes);
                    return Ok(());
                }
                let only = job.graph.stages[place.stage].seen_by.clone();
                blocked = Some(match blocked {
                    Some(other) => other.or(memory_bytes, only),
                    None => Need { memory_bytes, only },
                });
                (first, last) = (first.or(Some(place)), Some(place));
            }
        }
        Err(blocked)
    }

    fn assign(&mut self, id: JobId, place: Place, node: NodeId, reads: Reads, memory_bytes: u64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let spec = &job.graph.stages[place.stage];
        let work = match &spec.work {
            work @ (Work::Fragment(_) | Work::Function(_)) => work.clone(),
            Work::Held(_) | Work::Calls => return,
        };
        let plan = job.graph.plan;
        let (buckets, split) = (spec.exchange.buckets(), job.spec(place).split.clone());
        let mark = job.mark;
        let apart = job.runs_apart(place);
        let task = job.task_id(place);
        let tries = &mut job.task_mut(place).tries;
        let attempt = AttemptId::new(task, self.fence, *tries);
        *tries = tries.wrapping_add(1);
        job.begin(place, Attempt { id: attempt, node, since_ms: self.now_ms, apart });
        self.turns.served(id, job.owner);
        self.is_blocked_no_more(id);
        self.nodes.reserve(node, attempt, memory_bytes);
        let budget_bytes = self.nodes.get(node).map_or(memory_bytes, |node| node.memory_bytes());
        let assignment = Assignment {
            fence: self.fence,
            attempt,
            plan,
            work,
            split,
            mark,
            buckets,
            inputs: reads.inputs,
            memory_bytes: memory_bytes.min(budget_bytes),
            apart,
        };
        self.send(node, PeerMessage::Assign(Box::new(assignment)));
    }

    fn send(&mut self, node: NodeId, message: PeerMessage) {
        self.effects.push(Effect::Send(node, message));
    }
}

impl Input {
    /// What the scheduler must know of an event, if anything.
    pub fn from_event(event: &Event) -> Option<Self> {
        match event {
            Event::JobAccepted { job, graph, owner } => {
                Some(Self::JobAccepted { job: *job, graph: graph.clone(), owner: *owner })
            }
            Event::JobAdopted { job, work, succeeded, owner } => {
                let work = work.clone();
                Some(Self::JobAdopted { job: *job, work, succeeded: *succeeded, owner: *owner })
            }
            Event::JobShared { job } => Some(Self::JobShared { job: *job }),
            Event::StageDone { job, stage } => Some(Self::StageDone { job: *job, stage: *stage }),
            Event::JobEnded { job, phase } => Some(Self::JobEnded { job: *job, phase: phase.clone() }),
            Event::MemberLeft { node } => Some(Self::NodeLeft { node: *node }),
            Event::JobsFreed { jobs, .. } => Some(Self::JobsFreed { jobs: jobs.clone() }),
            _ => None,
        }
    }
}

/// The node for a task: the least loaded where at least half of its input lies, if that is much or the node as idle as
/// any, else the least loaded that may run it.
fn choose(
    nodes: &Nodes,
    job: &Job,
    place: Place,
    reads: &Reads,
    memory_bytes: u64,
    at_once: bool,
) -> Option<NodeId> {
    let (spec, stage) = (&job.graph.stages[place.stage], &job.stages[place.stage]);
    let total = reads.bytes;
    let near = reads.bytes_at.iter().filter(|(_, bytes)| total > 0 && **bytes >= total.div_ceil(2));
    let near: Vec<NodeId> = near.map(|(node, _)| *node).collect();
    let sees = |node: &NodeId| nodes.is_live(*node) && !stage.refused.contains_key(node);
    let wish = Wish {
        near: &near,
        heavy: total >= HEAVY_BYTES,
        only: if spec.seen_by.iter().any(sees) { &spec.seen_by } else { &[] },
        memory_bytes,
        at_once,
    };
    let refuses = |node| refuses(job, place, node);
    // A node that joined since may see the files too. It is tried when it is idle and all others have enough to
    // do, and says at once if it does not.
    nodes.pick(&wish, refuses).or_else(|| {
        let anywhere = Wish { only: &[], at_once: true, ..wish };
        (!wish.only.is_empty()).then(|| nodes.pick(&anywhere, refuses))?
    })
}

/// Whether a task must not go to a node.
fn refuses(job: &Job, place: Place, node: NodeId) -> bool {
    let task = job.task(place);
    job.stages[place.stage].refused.contains_key(&node)
        || task.troubles().excluded.contains(&node)
        || task.attempts.iter().any(|attempt| attempt.node == node)
}

/// The nodes where a task may wait for room: of those that see its files, if any does.
fn choose_among(nodes: &Nodes, job: &Job, place: Place) -> impl Fn(NodeId) -> bool {
    let (seen_by, refused) = (&job.graph.stages[place.stage].seen_by, &job.stages[place.stage].refused);
    let is_seen = seen_by.iter().any(|node| nodes.is_live(*node) && !refused.contains_key(node));
    move |node| !refuses(job, place, node) && (!is_seen || seen_by.binary_search(&node).is_ok())
}

/// Bytes a task reads, from files and from other stages.
fn read_bytes(job: &Job, place: Place, reads: &Reads) -> u64 {
    reads.bytes.saturating_add(job.spec(place).scan_bytes)
}
