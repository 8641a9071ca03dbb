//! One job as the scheduler sees it: which tasks are wanted, which can start, which are done. It knows nodes
//! only as the places where partitions lie.
//!
//! ```text
//!            wanted            inputs exist          assigned            reported
//!    Idle ──────────> Waiting ─────────────> Ready ──────────> Running ──────────> Done
//!     ^                ^   ^ <───an input lost─┘ ^                │                 │
//!     │                │   └─────────────────────┴──attempt lost──┘                 │
//!     └────────────────┴──partition lost: still read by an unfinished task? ────────┘
//!                          no: Idle, yes: Waiting
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, LazyLock};

use floe_protocol::graph::{BucketMeta, TaskSpec};
use floe_protocol::job::TaskRun;
use floe_protocol::message;
use floe_protocol::{
    AttemptId, JobId, NodeId, OutputMeta, Placed, Read, StageGraph, StageId, StageProgress, Summary, TaskId,
    Work,
};

use super::deaths::Sudden;
use crate::state_machine::StageOutputs;

mod reads;

pub(super) use reads::{Made, Reads};

use reads::{consumers, partitions};

/// A task's place in its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) stage: usize,
    pub(super) partition: u32,
}

/// One job.
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) graph: Arc<StageGraph>,
    /// Whose it is.
    pub(super) owner: u64,
    /// What its partitions are marked with.
    pub(super) mark: u64,
    pub(super) stages: Vec<Stage>,
    /// It succeeded; its result must be kept, or made anew, until it is released.
    pub(super) succeeded: bool,
    /// An earlier leader, or one of another era, may have had tasks of it run on nodes that are gone: of what became of
    /// them nothing is known.
    pub(super) inherited: bool,
    /// Since when a task of it can run nowhere.
    pub(super) stuck_since_ms: Option<u64>,
    /// Whom it waits for, if that might mend it.
    pub(super) waits_for: Option<String>,
    /// Of a standing job: when a node last said that the driver is connected to it, or when the wait for that began.
    pub(super) attended_ms: Option<u64>,
}

/// One stage of a job.
pub(super) struct Stage {
    pub(super) tasks: Vec<Task>,
    /// Tasks that may be assigned, in order. May name some that no longer are [`State::Ready`].
    pub(super) ready: VecDeque<u32>,
    pub(super) running: BTreeSet<u32>,
    pub(super) done: u32,
    /// Nodes that can run no task of it, and why; the file that was missed last.
    pub(super) refused: BTreeMap<NodeId, Refusal>,
    pub(super) missed: Option<String>,
    /// Run times of finished tasks, for telling slow ones.
    pub(super) elapsed_ms: Vec<u64>,
    /// Runs not yet told with a `StageDone`.
    pub(super) runs: Vec<TaskRun>,
    /// The size of each bucket in all partitions that were counted, whether they are all there at the moment or not.
    buckets: Vec<BucketMeta>,
    /// Whether that is known of every bucket. Of partitions that a node tells of in its inventory only the whole is.
    exact: bool,
    /// Whether the replicated state knows the outputs as they are, and when that was last proposed.
    pub(super) agreed: bool,
    pub(super) proposed_ms: Option<u64>,
    /// Stages that read it: which, and how.
    consumers: Vec<(usize, Read)>,
}

/// Why a node can run no task of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It does not see the stage's files: what it found instead.
    Blind(String),
    /// It lacks what the stage's function needs.
    Unfit { needs: String, why: String },
    /// It did not find the job's plan anywhere.
    Planless,
}

/// One task.
pub(super) struct Task {
    pub(super) state: State,
    /// Attempts under way, the oldest first.
    pub(super) attempts: Vec<Attempt>,
    /// Counts attempts under this leader.
    pub(super) tries: u32,
    /// Whether a node went away to which it was given: it may have run there, unheard.
    pub(super) suspect: bool,
    /// Whether it ever ended well: then its partition is counted, and made anew it is as large.
    pub(super) once_done: bool,
    /// Of most tasks, none; and there may be a million tasks.
    troubles: Option<Box<Troubles>>,
}

/// What went wrong with a task.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    /// Attempts that failed for want of resources or by a fault.
    pub(super) failures: u32,
    /// Times an input turned out to be lost.
    pub(super) input_losses: u32,
    /// Nodes that went away while they ran it inside, being a query's; a few of them.
    pub(super) deaths: Vec<NodeId>,
    /// Of a function's: nodes that went away soon after it began there.
    pub(super) sudden: Sudden,
    /// Nodes where a process of its own crashed.
    pub(super) crashes: Vec<NodeId>,
    /// Nodes where it failed.
    pub(super) excluded: Vec<NodeId>,
    /// Nodes that held its partition when they were last heard of.
    pub(super) away: Vec<NodeId>,
}

/// Where a task stands; see the module's diagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    Idle,
    Waiting,
    Ready,
    Running,
    Done(Placed),
}

/// One attempt under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    pub(super) id: AttemptId,
    pub(super) node: NodeId,
    pub(super) since_ms: u64,
    /// Whether it is known to run in a process of its own, being a query's.
    pub(super) apart: bool,
}

impl Job {
    /// A job of which nothing has run, but what came with the submission.
    pub(super) fn new(id: JobId, graph: Arc<StageGraph>, owner: u64) -> Self {
        let outputs: Vec<_> = graph
            .stages
            .iter()
            .map(|stage| match &stage.work {
                Work::Held(placed) => Some(StageOutputs::whole(placed.clone())),
                Work::Fragment(_) | Work::Function(_) | Work::Calls => None,
            })
            .collect();
        let mut job = Self {
            id,
            stages: graph.stages.iter().map(Stage::new).collect(),
            mark: graph.fingerprint(),
            graph: graph.clone(),
            owner,
            succeeded: false,
            inherited: false,
            stuck_since_ms: None,
            waits_for: None,
            attended_ms: None,
        };
        for (consumer, spec) in graph.stages.iter().enumerate() {
            for input in &spec.inputs {
                job.stages[input.stage.0 as usize].consumers.push((consumer, input.read));
            }
        }
        job.restore(&outputs);
        job
    }

    /// Takes over what the replicated state says of finished stages.
    pub(super) fn restore(&mut self, outputs: &[Option<StageOutputs>]) {
        for (stage, outputs) in self.stages.iter_mut().zip(outputs) {
            let Some(outputs) = outputs else { continue };
            for (task, placed) in stage.tasks.iter_mut().zip(&outputs.placed) {
                task.state = State::Done(placed.clone());
                task.once_done = true;
            }
            stage.buckets.clone_from(&outputs.buckets);
            stage.done = stage.tasks.len() as u32;
            stage.agreed = true;
        }
    }

    /// Wants everything that the result takes: once, at the start.
    pub(super) fn start(&mut self) {
        let last = self.stages.len() - 1;
        let all: Vec<_> = (0..self.stages[last].tasks.len() as u32)
            .map(|partition| Place { stage: last, partition })
            .collect();
        self.want(all);
    }

    pub(super) fn task(&self, place: Place) -> &Task {
        &self.stages[place.stage].tasks[place.partition as usize]
    }

    pub(super) fn task_mut(&mut self, place: Place) -> &mut Task {
        &mut self.stages[place.stage].tasks[place.partition as usize]
    }

    pub(super) fn task_id(&self, place: Place) -> TaskId {
        TaskId { job: self.id, stage: StageId(place.stage as u32), partition: place.partition }
    }

    pub(super) fn spec(&self, place: Place) -> &TaskSpec {
        &self.graph.stages[place.stage].tasks[place.partition as usize]
    }

    /// Where a task is in this job, if it is of this job.
    pub(super) fn place(&self, id: TaskId) -> Option<Place> {
        let place = Place { stage: id.stage.0 as usize, partition: id.partition };
        self.stages.get(place.stage)?.tasks.get(id.partition as usize)?;
        (id.job == self.id).then_some(place)
    }

    pub(super) fn is_held(&self, stage: usize) -> bool {
        matches!(self.graph.stages[stage].work, Work::Held(_))
    }

    /// Whether nodes are given tasks of a stage. What came with the submission cannot be made anew: it waits for its
    /// holder to come back. Calls wait for their driver's word.
    pub(super) fn is_run(&self, stage: usize) -> bool {
        matches!(self.graph.stages[stage].work, Work::Fragment(_) | Work::Function(_))
    }

    /// Whether a stage is of a query, rather than of functions.
    pub(super) fn is_fragment(&self, stage: usize) -> bool {
        matches!(self.graph.stages[stage].work, Work::Fragment(_))
    }

    /// Whether a task's next attempt runs in a process of its own, which is all that it can take with it: where a node
    /// went away under an earlier one, for whatever reason, or may have, or while another one runs on a second node.
    /// Functions always run so.
    pub(super) fn runs_apart(&self, place: Place) -> bool {
        let task = self.task(place);
        let suspect = self.inherited
            || task.suspect
            || !task.troubles().crashes.is_empty()
            || !task.attempts.is_empty();
        suspect && !task.once_done && self.is_fragment(place.stage)
    }

    /// Whether a partition is one of this job, as it is planned here.
    pub(super) fn fits(&self, place: Place, summary: &Summary) -> bool {
        match &self.graph.stages[place.stage].work {
            Work::Held(placed) => {
                placed.get(place.partition as usize).is_some_and(|held| held.summary == *summary)
            }
            Work::Fragment(_) | Work::Function(_) => summary.mark == self.mark,
            Work::Calls => false,
        }
    }

    /// Whether a task made as many buckets as it was to.
    pub(super) fn has_buckets(&self, place: Place, meta: &OutputMeta) -> bool {
        meta.buckets.len() == self.graph.stages[place.stage].exchange.buckets() as usize
    }

    /// Makes the tasks and whatever they lack wanted, and ready where nothing is lacking.
    pub(super) fn want(&mut self, mut places: Vec<Place>) {
        let mut wanted = Vec::new();
        while let Some(place) = places.pop() {
            if self.task(place).state != State::Idle {
                continue;
            }
            self.task_mut(place).state = State::Waiting;
            wanted.push(place);
            let idle = self.inputs(place).into_iter().filter(|input| self.task(*input).state == State::Idle);
            places.extend(idle.collect::<Vec<_>>());
        }
        wanted.sort();
        for place in wanted {
            self.make_ready(place);
        }
    }

    /// The partitions a task reads. Once a stage that is read whole is complete, that is left out: only what
    /// may be lacking counts here.
    fn inputs(&self, place: Place) -> Vec<Place> {
        let mut inputs = Vec::new();
        for input in &self.graph.stages[place.stage].inputs {
            let stage = input.stage.0 as usize;
            let producer = &self.stages[stage];
            if producer.is_complete() {
                continue;
            }
            inputs.extend(
                partitions(input.read, place.partition, producer.tasks.len())
                    .map(|partition| Place { stage, partition }),
            );
        }
        inputs
    }

    fn has_inputs(&self, place: Place) -> bool {
        self.graph.stages[place.stage].inputs.iter().all(|input| {
            let producer = &self.stages[input.stage.0 as usize];
            producer.is_complete()
                || partitions(input.read, place.partition, producer.tasks.len())
                    .all(|partition| producer.tasks[partition as usize].is_done())
        })
    }

    fn make_ready(&mut self, place: Place) {
        let waits = self.task(place).state == State::Waiting;
        if waits && self.is_run(place.stage) && self.has_inputs(place) {
            self.task_mut(place).state = State::Ready;
            self.stages[place.stage].ready.push_back(place.partition);
        }
    }

    /// The next task of a stage that can be assigned.
    pub(super) fn next_ready(&mut self, stage: usize) -> Option<Place> {
        let stage_state = &mut self.stages[stage];
        while let Some(partition) = stage_state.ready.front().copied() {
            if stage_state.tasks[partition as usize].state == State::Ready {
                return Some(Place { stage, partition });
            }
            stage_state.ready.pop_front();
        }
        None
    }

    pub(super) fn has_ready(&self) -> bool {
        self.stages.iter().any(|stage| !stage.ready.is_empty())
    }

    /// How many attempts at one of its tasks there were, at most.
    pub(super) fn tries(&self) -> u32 {
        self.stages.iter().flat_map(|stage| &stage.tasks).map(|task| task.tries).max().unwrap_or(0)
    }

    /// Counts the attempts at each task from here, since earlier ones, of another view of the job, may be under way
    /// still.
    pub(super) fn count_from(&mut self, tries: u32) {
        for task in self.stages.iter_mut().flat_map(|stage| &mut stage.tasks) {
            task.tries = tries;
        }
    }

    /// An attempt begins: of a task that is ready, or runs already, or (adopted) had not got so far.
    pub(super) fn begin(&mut self, place: Place, attempt: Attempt) {
        let task = self.task_mut(place);
        task.state = State::Running;
        task.attempts.push(attempt);
        let stage = &mut self.stages[place.stage];
        stage.running.insert(place.partition);
        if stage.ready.front() == Some(&place.partition) {
            stage.ready.pop_front();
        }
    }

    /// An attempt is over without a result. Its task starts again unless another attempt is under way.
    pub(super) fn abandon(&mut self, place: Place, attempt: AttemptId) {
        if self.rest(place, attempt) {
            self.want(vec![place]);
        }
    }

    /// The same, but its task is not wanted for now. Returns whether no other attempt is under way.
    pub(super) fn rest(&mut self, place: Place, attempt: AttemptId) -> bool {
        let task = self.task_mut(place);
        task.attempts.retain(|a| a.id != attempt);
        if task.state != State::Running || !task.attempts.is_empty() {
            return false;
        }
        task.state = State::Idle;
        self.stages[place.stage].running.remove(&place.partition);
        true
    }

    /// A partition exists. Returns the attempts that are no longer needed for it.
    pub(super) fn finish(&mut self, place: Place, node: NodeId, made: Made) -> Vec<Attempt> {
        let stage = &mut self.stages[place.stage];
        let task = &mut stage.tasks[place.partition as usize];
        if !task.once_done {
            stage.exact &= made.add_to(&mut stage.buckets);
        }
        let attempts = std::mem::take(&mut task.attempts);
        task.state = State::Done(Placed { nodes: vec![node], summary: made.summary() });
        task.once_done = true;
        stage.done += 1;
        stage.agreed = false;
        stage.proposed_ms = None;
        stage.running.remove(&place.partition);
        for waiting in self.readers(place, &State::Waiting) {
            self.make_ready(waiting);
        }
        attempts
    }

    /// Tasks in a state that read a partition, but those that still lack another partition of a stage they
    /// read whole.
    fn readers(&self, place: Place, state: &State) -> Vec<Place> {
        let mut readers = Vec::new();
        for (stage, read) in &self.stages[place.stage].consumers {
            let whole = matches!(read, Read::All | Read::Bucket);
            if whole && *state == State::Waiting && !self.stages[place.stage].is_complete() {
                continue;
            }
            let tasks = &self.stages[*stage].tasks;
            readers.extend(
                consumers(*read, place.partition, tasks.len())
                    .filter(|partition| tasks[*partition as usize].state == *state)
                    .map(|partition| Place { stage: *stage, partition }),
            );
        }
        readers
    }

    /// A node holds a partition no more. Returns whether it is lost with that: then it is Idle, and
    /// [`Job::want_lost`] decides whether it is made anew.
    pub(super) fn drop_holder(&mut self, place: Place, node: NodeId) -> bool {
        let stage = &mut self.stages[place.stage];
        let task = &mut stage.tasks[place.partition as usize];
        let State::Done(placed) = &mut task.state else { return false };
        if !placed.nodes.contains(&node) {
            return false;
        }
        placed.nodes.retain(|holder| *holder != node);
        let away = &mut task.troubles.get_or_insert_default().away;
        if !away.contains(&node) {
            away.push(node);
        }
        stage.agreed = false;
        stage.proposed_ms = None;
        if !placed.nodes.is_empty() {
            return false;
        }
        task.state = State::Idle;
        stage.done -= 1;
        for ready in self.readers(place, &State::Ready) {
            self.task_mut(ready).state = State::Waiting;
        }
        true
    }

    /// Another node holds a partition too: of what came with the submission every copy is the same. Of what tasks make
    /// that is not so, be it as large. False if it is known, or not this partition.
    pub(super) fn add_holder(&mut self, place: Place, node: NodeId, summary: Option<&Summary>) -> bool {
        let stage = &mut self.stages[place.stage];
        let State::Done(placed) = &mut stage.tasks[place.partition as usize].state else { return false };
        if placed.nodes.contains(&node) || summary.is_some_and(|summary| *summary != placed.summary) {
            return false;
        }
        placed.nodes.push(node);
        stage.agreed = false;
        stage.proposed_ms = None;
        true
    }

    /// A node that is back holds only some of what it may have held.
    pub(super) fn not_with(&mut self, node: NodeId, holds: impl Fn(&TaskId) -> bool) {
        let id = self.id;
        for (number, stage) in self.stages.iter_mut().enumerate() {
            let tasks = stage.tasks.iter_mut().enumerate();
            for (partition, troubles) in tasks.filter_map(|(at, task)| Some((at, task.troubles.as_mut()?))) {
                let task_id = TaskId { job: id, stage: StageId(number as u32), partition: partition as u32 };
                if !holds(&task_id) {
                    troubles.away.retain(|holder| *holder != node);
                }
            }
        }
    }

    /// Makes lost partitions wanted again where a task that is not done reads them, or the result is theirs.
    pub(super) fn want_lost(&mut self, mut lost: Vec<Place>) {
        // Later stages first: what they want again makes earlier ones needed.
        lost.sort_by(|a, b| b.cmp(a));
        for place in lost {
            let last = place.stage + 1 == self.stages.len();
            let unfinished = [State::Waiting, State::Running];
            let is_read = |state: &State| {
                self.stages[place.stage].consumers.iter().any(|(stage, read)| {
                    let tasks = &self.stages[*stage].tasks;
                    consumers(*read, place.partition, tasks.len())
                        .any(|partition| tasks[partition as usize].state == *state)
                })
            };
            if last || unfinished.iter().any(is_read) {
                self.want(vec![place]);
            }
        }
    }

    /// Who holds each partition of a complete stage; nothing of one that is not complete.
    pub(super) fn holders(&self, stage: usize) -> impl Iterator<Item = &[NodeId]> {
        let stage = &self.stages[stage];
        let tasks = stage.tasks.iter().take(if stage.is_complete() { stage.tasks.len() } else { 0 });
        tasks.map(|task| match &task.state {
            State::Done(placed) => placed.nodes.as_slice(),
            _ => &[],
        })
    }

    /// Where a complete stage's partitions lie.
    pub(super) fn outputs(&self, stage: usize) -> Option<StageOutputs> {
        let stage = &self.stages[stage];
        let placed = stage.tasks.iter().map(|task| match &task.state {
            State::Done(placed) => Some(placed.clone()),
            _ => None,
        });
        Some(StageOutputs { placed: placed.collect::<Option<_>>()?, buckets: stage.buckets.clone() })
    }

    /// Where a partition of its result lies.
    pub(super) fn made(&self, partition: u32) -> message::Made {
        use message::Made;

        let (Some(spec), Some(stage)) = (self.graph.stages.last(), self.stages.last()) else {
            return Made::Beyond;
        };
        match stage.tasks.get(partition as usize).map(|task| &task.state) {
            Some(State::Done(placed)) => {
                Made::Here { stage: spec.id, placed: placed.clone(), schema: self.graph.schema.clone() }
            }
            Some(_) => Made::NotYet,
            None => Made::Beyond,
        }
    }

    /// Partitions that came with the submission, are needed, and lie nowhere any more.
    pub(super) fn lost_submission(&self) -> Option<Place> {
        let held = (0..self.stages.len()).filter(|stage| self.is_held(*stage));
        held.flat_map(|stage| {
            (0..self.stages[stage].tasks.len() as u32).map(move |partition| Place { stage, partition })
        })
        .find(|place| self.task(*place).state == State::Waiting)
    }

    pub(super) fn progress(&self) -> Vec<StageProgress> {
        self.graph
            .stages
            .iter()
            .zip(&self.stages)
            .map(|(spec, stage)| {
                let done = stage.tasks.iter().filter_map(|task| match &task.state {
                    State::Done(placed) => Some(&placed.summary),
                    _ => None,
                });
                let (rows, bytes) = done.fold((0_u64, 0_u64), |(rows, bytes), summary| {
                    (rows.saturating_add(summary.rows), bytes.saturating_add(summary.bytes))
                });
                StageProgress {
                    stage: spec.id,
                    name: spec.operators.last().cloned().unwrap_or_default(),
                    tasks: stage.tasks.len() as u32,
                    running: stage.running.len() as u32,
                    done: stage.done,
                    rows,
                    bytes,
                }
            })
            .collect()
    }
}

impl Stage {
    fn new(spec: &floe_protocol::Stage) -> Self {
        Self {
            tasks: spec.tasks.iter().map(|_| Task::new()).collect(),
            ready: VecDeque::new(),
            running: BTreeSet::new(),
            done: 0,
            refused: spec
                .unseen_by
                .iter()
                .map(|node| (*node, Refusal::Blind("not found".to_owned())))
                .collect(),
            missed: None,
            elapsed_ms: Vec::new(),
            runs: Vec::new(),
            buckets: vec![BucketMeta::default(); spec.exchange.buckets() as usize],
            exact: true,
            agreed: false,
            proposed_ms: None,
            consumers: Vec::new(),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.done as usize == self.tasks.len()
    }
}

impl Task {
    fn new() -> Self {
        Self {
            state: State::Idle,
            attempts: Vec::new(),
            tries: 0,
            suspect: false,
            once_done: false,
            troubles: None,
        }
    }

    pub(super) fn troubles(&self) -> &Troubles {
        static NONE: LazyLock<Troubles> = LazyLock::new(Troubles::default);
        self.troubles.as_deref().unwrap_or(&NONE)
    }

    pub(super) fn troubles_mut(&mut self) -> &mut Troubles {
        self.troubles.get_or_insert_default()
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done(_))
    }
}
