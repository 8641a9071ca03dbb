//! The stream of jobs that drivers submit to a simulated mesh.

use bytes::Bytes;
use floe_consensus::state_machine::StageOutputs;
use floe_consensus::{Command, Entry};
use floe_protocol::graph::BucketMeta;
use floe_protocol::message::Assignment;
use floe_protocol::{
    Exchange, Freed, JobId, JobPhase, NodeId, OutputMeta, Placed, Read, RequestId, Stage, StageGraph,
    StageId, StageInput, TaskId, TaskSpec, WallTime, WhyFreed, Work,
};

use super::dice::Dice;

/// The split of a task that ends the process that runs it.
const POISON: &[u8] = b"poison";

/// What a driver wants, said again under one id until the mesh has answered.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) entry: Entry,
    pub(super) job: JobId,
    /// Frames to be stored before the job is submitted, and where.
    pub(super) frames: Vec<(TaskId, Placed)>,
    pub(super) answered: bool,
}

impl Order {
    /// A new job, submitted while `nodes` run.
    pub(super) fn submit(dice: &mut Dice, number: usize, nodes: &[NodeId], now: WallTime) -> Self {
        let job = JobId(number as u64 + 1);
        let graph = graph(dice, nodes);
        let mut frames = Vec::new();
        for stage in &graph.stages {
            let Work::Held(placed) = &stage.work else { continue };
            frames.extend(placed.iter().enumerate().map(|(partition, placed)| {
                (TaskId { job, stage: stage.id, partition: partition as u32 }, placed.clone())
            }));
        }
        let command = Command::Submit {
            job,
            label: format!("job {job}"),
            graph,
            owner: number as u64 % 3,
            submitted_at: now,
        };
        Self::new(number, job, command, frames)
    }

    /// A new standing job: calls that its driver is about to make.
    pub(super) fn stand(number: usize, now: WallTime) -> Self {
        let job = JobId(number as u64 + 1);
        let mut calls = stage(0, 1, Vec::new());
        calls.work = Work::Calls;
        let graph = StageGraph { stages: vec![calls], ..StageGraph::default() };
        let command = Command::Submit {
            job,
            label: format!("calls {job}"),
            graph,
            owner: number as u64 % 3,
            submitted_at: now,
        };
        Self::new(number, job, command, Vec::new())
    }

    /// The end of a standing job, whose driver makes no more calls.
    pub(super) fn close(number: usize, job: JobId, now: WallTime) -> Self {
        let command = Command::StageDone {
            job,
            stage: StageId(0),
            outputs: StageOutputs::whole(vec![Placed::default()]),
            more_ms: 0,
            runs: Vec::new(),
            ended_at: now,
        };
        Self::new(number, job, command, Vec::new())
    }

    /// The end of a job that is not wanted any more.
    pub(super) fn cancel(number: usize, job: JobId, now: WallTime) -> Self {
        let command = Command::EndJob { job, phase: JobPhase::Cancelled, ended_at: now };
        Self::new(number, job, command, Vec::new())
    }

    /// The end of the wish to keep a job's result.
    pub(super) fn release(number: usize, job: JobId, now: WallTime) -> Self {
        let freed = Freed { why: WhyFreed::Released, at: now };
        Self::new(number, job, Command::Release { jobs: vec![job], freed }, Vec::new())
    }

    fn new(number: usize, job: JobId, command: Command, frames: Vec<(TaskId, Placed)>) -> Self {
        let entry = Entry { request: RequestId(number as u128 + 1), command };
        Self { entry, job, frames, answered: false }
    }

    /// Whether it submits a job of which one task ends the process that runs it.
    pub(super) fn is_poison(&self) -> bool {
        let Command::Submit { graph, .. } = &self.entry.command else { return false };
        graph.stages.iter().flat_map(|stage| &stage.tasks).any(|task| task.split == POISON)
    }

    /// Whether it submits a job that calls functions.
    pub(super) fn calls(&self) -> bool {
        let Command::Submit { graph, .. } = &self.entry.command else { return false };
        graph.stages.iter().any(|stage| matches!(stage.work, Work::Function(_)))
    }

    /// Whether it opens a standing job.
    pub(super) fn stands(&self) -> bool {
        matches!(&self.entry.command, Command::Submit { graph, .. } if is_standing(graph))
    }
}

/// Whether a task ends the process that runs it.
pub(super) fn is_poison(assignment: &Assignment) -> bool {
    matches!(assignment.work, Work::Fragment(_)) && assignment.split == POISON
}

/// Whether a job is a driver's calls.
pub(super) fn is_standing(graph: &StageGraph) -> bool {
    graph.stages.iter().any(|stage| stage.work == Work::Calls)
}

/// Every bucket with some rows.
pub(super) fn meta(buckets: u32) -> OutputMeta {
    OutputMeta { buckets: vec![BucketMeta { rows: 100, bytes: 4_096 }; buckets as usize], mark: 0 }
}

/// What a task makes.
pub(super) fn made(assignment: &Assignment) -> OutputMeta {
    OutputMeta { mark: assignment.mark, ..meta(assignment.buckets) }
}

/// Two or three stages of a few tasks: scans, function calls or frames, perhaps an exchange or a step towards one
/// partition, and one or more last tasks. Now and then one of the tasks ends whatever runs it.
fn graph(dice: &mut Dice, nodes: &[NodeId]) -> StageGraph {
    let mut tasks = dice.between(1..=4) as u32;
    let mut stages = vec![stage(0, tasks, Vec::new())];
    if dice.chance(300) {
        let hold = |dice: &mut Dice| {
            let copies = [dice.pick(nodes), dice.pick(nodes), dice.pick(nodes)];
            let mut nodes: Vec<_> = copies.into_iter().flatten().collect();
            nodes.sort_unstable();
            nodes.dedup();
            Placed { nodes, summary: meta(1).summary() }
        };
        stages[0].work = Work::Held((0..tasks).map(|_| hold(dice)).collect());
    }
    for position in 1..=dice.between(1..=2) as u32 {
        let before = position - 1;
        let held = matches!(stages[before as usize].work, Work::Held(_));
        let read = match dice.between(0..=3) {
            0 if !held => {
                let buckets = dice.between(1..=4) as u32;
                stages[before as usize].exchange = Exchange::Hash { keys: Vec::new(), buckets };
                tasks = buckets;
                Read::Bucket
            }
            1 => Read::Partition { first: 0 },
            2 => {
                let size = dice.between(1..=3) as u32;
                tasks = tasks.div_ceil(size);
                Read::Group { size }
            }
            _ => {
                tasks = 1;
                Read::All
            }
        };
        let mut stage = stage(position, tasks, vec![StageInput { stage: StageId(before), read }]);
        if dice.chance(300) {
            stage.work = Work::Function(Bytes::from_static(b"function"));
        }
        stages.push(stage);
    }
    if dice.chance(60) {
        let fragment = |stage: &&mut Stage| matches!(stage.work, Work::Fragment(_));
        let mut fragments: Vec<_> = stages.iter_mut().filter(fragment).collect();
        let at = dice.between(0..=fragments.len().saturating_sub(1) as u64) as usize;
        if let Some(stage) = fragments.get_mut(at) {
            let partition = dice.between(0..=stage.tasks.len() as u64 - 1) as usize;
            stage.tasks[partition].split = Bytes::from_static(POISON);
        }
    }
    StageGraph { stages, ..StageGraph::default() }
}

fn stage(position: u32, tasks: u32, inputs: Vec<StageInput>) -> Stage {
    Stage {
        id: StageId(position),
        work: Work::Fragment(Bytes::from_static(b"fragment")),
        inputs,
        exchange: Exchange::Gather,
        tasks: vec![TaskSpec::default(); tasks as usize],
        operators: vec!["operator".to_owned()],
        single_because: None,
        seen_by: Vec::new(),
        unseen_by: Vec::new(),
    }
}
