//! How much fits: many tasks, wide exchanges, many jobs that wait.

use std::collections::VecDeque;

use bytes::Bytes;
use floe_consensus::replica::MAX_ENTRY_BYTES;
use floe_consensus::state_machine::{MAX_WORK_BYTES, StageOutputs};
use floe_consensus::{Command, Effect, Entry, Input, Now, Scheduler, StateMachine};
use floe_protocol::frame;
use floe_protocol::graph::BucketMeta;
use floe_protocol::job::{MAX_TIMELINE, TaskRun};
use floe_protocol::message::{Assignment, Inventory, Report};
use floe_protocol::{
    Exchange, Fence, JobId, JobPhase, Load, NodeId, OutputMeta, PeerMessage, Placed, Read, RequestId, Stage,
    StageGraph, StageId, StageInput, Summary, TaskSpec, WallTime, Work,
};

use crate::cluster::{ERA, MESH, member};

const FENCE: Fence = Fence { era: ERA, term: 1 };

/// A stage of so many tasks, each of which scans what a path names.
fn stage(position: u32, tasks: usize, split: &str) -> Stage {
    Stage {
        id: StageId(position),
        work: Work::Fragment(Bytes::from(vec![0; 2_000])),
        inputs: vec![],
        exchange: Exchange::Gather,
        tasks: vec![TaskSpec { split: Bytes::from(split.to_owned()), scan_bytes: 1 << 20 }; tasks],
        operators: vec!["scan".to_owned()],
        single_because: None,
        seen_by: vec![],
        unseen_by: vec![],
    }
}

fn submit(job: u64, stages: Vec<Stage>) -> Command {
    let graph = StageGraph { stages, ..StageGraph::default() };
    Command::Submit {
        job: JobId(job),
        label: format!("job {job}"),
        graph,
        owner: 1,
        submitted_at: WallTime::default(),
    }
}

/// Applies a command that fits the log.
fn apply(state: &mut StateMachine, command: Command) {
    let index = state.applied() + 1;
    let entry = Entry { request: RequestId(index.into()), command };
    let bytes = entry.encode().unwrap().len();
    assert!(bytes <= MAX_ENTRY_BYTES, "an entry of {bytes} bytes");
    let events = state.apply(index, &entry);
    let refused =
        events.iter().find(|event| matches!(event, floe_consensus::Event::Applied { outcome: Err(_), .. }));
    assert_eq!(refused, None);
}

fn run(stage: u32, partition: u32) -> TaskRun {
    TaskRun {
        stage: StageId(stage),
        partition,
        node: NodeId(u64::MAX),
        started_at: WallTime::from_unix_ms(1 << 40),
        elapsed_ms: 1_000,
    }
}

#[test]
fn a_job_of_a_hundred_thousand_tasks_is_accepted_and_succeeds() {
    let mut state = StateMachine::default();
    apply(&mut state, submit(1, vec![stage(0, 100_000, "arguments of one task")]));
    let summary = Summary { rows: 1_000_000, bytes: 1 << 30, mark: u64::MAX };
    let placed = (0..100_000).map(|task| Placed { nodes: vec![NodeId(u64::MAX - task % 100)], summary });
    let runs = (0..MAX_TIMELINE as u32).map(|partition| run(0, partition));
    apply(
        &mut state,
        Command::StageDone {
            job: JobId(1),
            stage: StageId(0),
            outputs: StageOutputs::whole(placed.collect()),
            runs: runs.collect(),
            more_ms: 95_904_000,
            ended_at: WallTime::default(),
        },
    );
    let job = state.job(JobId(1)).unwrap();
    assert_eq!((&job.phase, job.stages[0].rows), (&JobPhase::Succeeded, 100_000_000_000));
    // Accepted, and each task ran for a second.
    assert_eq!(state.done_ms(), 1_000 + 100_000_000);
    assert_eq!(StateMachine::restore(&state.snapshot().unwrap()).unwrap(), state);
}

#[test]
fn ten_thousand_jobs_wait() {
    let mut state = StateMachine::default();
    for job in 1..=10_000 {
        apply(&mut state, submit(job, vec![stage(0, 4, "some file"), stage(1, 1, "")]));
    }
    let snapshot = state.snapshot().unwrap();
    assert!(snapshot.len() < MAX_WORK_BYTES, "{} bytes", snapshot.len());
    assert_eq!(StateMachine::restore(&snapshot).unwrap(), state);
}

/// A leader's scheduler and workers that do at once what they are told.
struct Leader {
    state: StateMachine,
    scheduler: Scheduler,
    given: VecDeque<(NodeId, Assignment)>,
}

impl Leader {
    fn new(nodes: u64) -> Self {
        let mut state = StateMachine::default();
        apply(&mut state, Command::Genesis { mesh: MESH, member: member(1) });
        let scheduler = Scheduler::new(FENCE, Now::at(0), &state);
        let mut leader = Self { state, scheduler, given: VecDeque::new() };
        for node in (1..=nodes).map(NodeId) {
            leader.step(Input::NodeUp { node, name: node.to_string(), slots: 4, memory_bytes: 64 << 30 });
            leader.inventory(node, vec![]);
        }
        leader
    }

    fn inventory(&mut self, node: NodeId, held: Vec<(floe_protocol::TaskId, Summary)>) {
        let inventory = Inventory {
            fence: FENCE,
            held,
            runs: vec![],
            running: vec![],
            sessions: vec![],
            reading: vec![],
            submitting: vec![],
            load: Load::default(),
        };
        self.step(Input::Inventory { node, inventory });
    }

    fn commit(&mut self, command: Command) {
        apply(&mut self.state, command.clone());
        match command {
            Command::Submit { job, graph, owner, .. } => {
                self.step(Input::JobAccepted { job, graph: graph.into(), owner });
            }
            Command::StageDone { job, stage, .. } => self.step(Input::StageDone { job, stage }),
            _ => {}
        }
    }

    fn step(&mut self, input: Input) {
        for effect in self.scheduler.step(Now::at(0), input) {
            match effect {
                Effect::Send(node, PeerMessage::Assign(assignment)) => {
                    self.given.push_back((node, *assignment))
                }
                Effect::Propose(command) => self.commit(command),
                Effect::Send(..) | Effect::NodeLost(_) => {}
            }
        }
    }
}

#[test]
fn an_exchange_of_two_thousand_by_four_thousand_is_run() {
    const MAPS: u32 = 2_000;
    const BUCKETS: u32 = 4_096;
    let mut map = stage(0, MAPS as usize, "file");
    map.exchange = Exchange::Hash { keys: vec!["k".to_owned()], buckets: BUCKETS };
    let mut reduce = stage(1, BUCKETS as usize, "");
    reduce.tasks.iter_mut().for_each(|task| task.scan_bytes = 0);
    reduce.inputs = vec![StageInput { stage: StageId(0), read: Read::Bucket }];
    // Every third bucket is empty everywhere, and each of the others has a MiB in all.
    let bucket = |bucket: u32| match bucket % 3 {
        0 => BucketMeta::default(),
        _ => BucketMeta { rows: 10, bytes: (1 << 20) / u64::from(MAPS) },
    };

    let mut leader = Leader::new(100);
    leader.commit(submit(1, vec![map, reduce]));
    let mut given = [0, 0];
    while let Some((node, assignment)) = leader.given.pop_front() {
        let task = assignment.attempt.task;
        given[task.stage.0 as usize] += 1;
        if task.stage == StageId(1) {
            let segments: Vec<_> =
                assignment.inputs.iter().flat_map(|read| read.segments(JobId(1))).collect();
            let expected = if task.partition % 3 == 0 { 0 } else { MAPS as usize };
            assert_eq!(segments.len(), expected);
            assert!(segments.iter().all(|segment| segment.bucket == Some(task.partition)));
            assert_eq!(assignment.memory_bytes, floe_consensus::scheduler::MIN_TASK_BYTES);
        }
        if task.partition == 1 {
            let bytes = frame::encode(&PeerMessage::Assign(Box::new(assignment.clone()))).unwrap().len();
            assert!(bytes < 16 << 10, "an assignment of {bytes} bytes");
        }
        let buckets = (0..assignment.buckets).map(bucket).collect();
        let meta = OutputMeta { buckets, mark: assignment.mark };
        let run = run(task.stage.0, task.partition);
        let report = Report { fence: FENCE, attempt: assignment.attempt, outcome: Ok(meta), run };
        leader.step(Input::Report { node, report });
    }
    assert_eq!(given, [MAPS, BUCKETS]);
    let job = leader.state.job(JobId(1)).unwrap();
    assert_eq!(job.phase, JobPhase::Succeeded);
    // What is kept of 8 million buckets.
    assert!(leader.state.snapshot().unwrap().len() < 1 << 20);
}
