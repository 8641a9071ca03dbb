//! Properties of the replicated state, and its limits.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use floe_protocol::graph::BucketMeta;
use floe_protocol::{Exchange, OutputMeta, Stage, StageInput, TaskSpec};
use proptest::prelude::*;

use super::*;

fn member(id: u64) -> Member {
    Member {
        id: NodeId(id),
        peer: format!("peer-{id}"),
        name: format!("n{id}"),
        addresses: vec![],
        slots: 2,
        memory_bytes: 1 << 30,
        version: "0.1.0".to_owned(),
        incarnation: 1,
    }
}

/// Two stages, the second gathering the first.
fn graph(tasks: usize) -> StageGraph {
    let stage = |id: u32, tasks: usize, inputs| Stage {
        id: StageId(id),
        work: Work::Fragment(Bytes::from_static(b"fragment")),
        inputs,
        exchange: Exchange::Gather,
        tasks: vec![TaskSpec::default(); tasks],
        operators: vec!["scan".to_owned()],
        single_because: None,
        seen_by: vec![],
        unseen_by: vec![],
    };
    let gather = StageInput { stage: StageId(0), read: Read::All };
    StageGraph { stages: vec![stage(0, tasks, vec![]), stage(1, 1, vec![gather])], schema: Bytes::new() }
}

fn placed(node: u64) -> Placed {
    let meta = OutputMeta { buckets: vec![BucketMeta { rows: 1, bytes: 8 }] };
    Placed { nodes: vec![NodeId(node)], meta }
}

fn run(stage: u32, partition: u32) -> TaskRun {
    TaskRun { stage: StageId(stage), partition, node: NodeId(1), started_unix_ms: 1, elapsed_ms: 1 }
}

fn submit(job: u64) -> Command {
    Command::Submit { job: JobId(job), label: "q".to_owned(), graph: graph(2), submitted_unix_ms: 7 }
}

fn done(job: u64, stage: u32, tasks: usize, node: u64) -> Command {
    Command::StageDone {
        job: JobId(job),
        stage: StageId(stage),
        outputs: vec![placed(node); tasks],
        runs: (0..tasks as u32).map(|partition| run(stage, partition)).collect(),
        ended_unix_ms: 9,
    }
}

fn end(job: u64, phase: JobPhase) -> Command {
    Command::EndJob { job: JobId(job), phase, ended_unix_ms: 9 }
}

/// Applies commands under fresh request ids and returns the last one's events.
fn apply(state: &mut StateMachine, commands: impl IntoIterator<Item = Command>) -> Vec<Event> {
    let mut events = Vec::new();
    for command in commands {
        let index = state.applied() + 1;
        events = state.apply(index, &Entry { request: RequestId(u128::from(index)), command });
    }
    events
}

fn outcome(events: &[Event]) -> Result<(), Failure> {
    match events.last() {
        Some(Event::Applied { outcome, .. }) => outcome.clone(),
        other => panic!("no outcome but {other:?}"),
    }
}

fn command() -> impl Strategy<Value = Command> {
    let job = 0..4_u64;
    prop_oneof![
        (1..4_u64).prop_map(|id| Command::Genesis { mesh: MeshId(9), member: member(id) }),
        (0..4_u64).prop_map(|id| Command::Join { member: member(id) }),
        (1..4_u64).prop_map(|id| Command::Leave { node: NodeId(id) }),
        job.clone().prop_map(submit),
        (job.clone(), 0..3_u32, 1..3_usize, 1..4_u64)
            .prop_map(|(job, stage, tasks, node)| done(job, stage, tasks, node)),
        (job.clone(), any::<bool>())
            .prop_map(|(job, ok)| end(job, if ok { JobPhase::Cancelled } else { JobPhase::Succeeded })),
        prop::collection::vec(0..4_u64, 0..3)
            .prop_map(|jobs| Command::Release { jobs: jobs.into_iter().map(JobId).collect() }),
    ]
}

proptest! {
    #[test]
    fn an_entry_applies_once_however_often_it_comes(
        commands in prop::collection::vec(command(), 1..40),
        repeats in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let entries: Vec<_> = commands
            .into_iter()
            .enumerate()
            .map(|(n, command)| Entry { request: RequestId(n as u128), command })
            .collect();
        let (mut once, mut often) = (StateMachine::default(), StateMachine::default());
        let mut repeats = repeats.into_iter();
        for (n, entry) in entries.iter().enumerate() {
            let expected = outcome(&once.apply(n as u64 + 1, entry));
            prop_assert_eq!(&outcome(&often.apply(n as u64 + 1, entry)), &expected);
            if let Some(repeat) = repeats.next() {
                let earlier = repeat.get(&entries[..=n]);
                let events = often.apply(n as u64 + 1, earlier);
                prop_assert_eq!(events.len(), 1, "a repeated entry says only its outcome: {:?}", events);
            }
        }
        prop_assert_eq!(once, often);
    }

    #[test]
    fn a_restored_snapshot_is_the_state_and_goes_on_alike(
        before in prop::collection::vec(command(), 0..30),
        after in prop::collection::vec(command(), 0..30),
    ) {
        let mut state = StateMachine::default();
        apply(&mut state, before);
        let mut restored = StateMachine::restore(&state.snapshot().unwrap()).unwrap();
        prop_assert_eq!(&restored, &state);
        for command in after {
            let (here, there) = (apply(&mut state, [command.clone()]), apply(&mut restored, [command]));
            prop_assert_eq!(here, there);
        }
        prop_assert_eq!(restored, state);
    }

    #[test]
    fn garbage_is_no_snapshot(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(StateMachine::restore(&bytes).is_err());
    }
}

#[test]
fn another_version_s_snapshot_is_named() {
    let snapshot = frame::encode(&(7_u32, "what only version 7 understands")).unwrap();
    let error = StateMachine::restore(&snapshot).unwrap_err();
    assert!(error.to_string().contains("format 7"), "{error}");
}

#[test]
fn the_last_stage_ends_the_job_and_lost_partitions_are_replaced() {
    let mut state = StateMachine::default();
    apply(&mut state, [submit(1), done(1, 0, 2, 1)]);
    assert_eq!(state.job(JobId(1)).unwrap().phase, JobPhase::Running);
    let events = apply(&mut state, [done(1, 1, 1, 1)]);
    assert!(events.contains(&Event::JobEnded { job: JobId(1), phase: JobPhase::Succeeded }));
    let events = apply(&mut state, [done(1, 1, 1, 2)]);
    assert!(!events.iter().any(|event| matches!(event, Event::JobEnded { .. })));
    let job = state.job(JobId(1)).unwrap();
    assert_eq!(job.work.as_ref().unwrap().outputs[1].as_ref().unwrap()[0].nodes, [NodeId(2)]);
    assert_eq!(job.timeline.len(), 3, "runs that were told twice are listed once");
}

#[test]
fn refusals_are_typed_and_change_nothing() {
    let mut state = StateMachine::default();
    let no_such_job = Err(Failure::NoSuchJob { job: JobId(5) });
    assert_eq!(outcome(&apply(&mut state, [end(5, JobPhase::Cancelled)])), no_such_job);
    assert_eq!(outcome(&apply(&mut state, [done(5, 0, 1, 1)])), no_such_job);
    let taken =
        Command::Submit { job: JobId(8), label: "other".into(), graph: graph(2), submitted_unix_ms: 7 };
    assert_eq!(outcome(&apply(&mut state, [submit(8), submit(8)])), Ok(()));
    assert!(matches!(outcome(&apply(&mut state, [taken])), Err(Failure::Refused { .. })));
    let wrong_count = outcome(&apply(&mut state, [submit(1), done(1, 0, 1, 1)]));
    assert!(matches!(wrong_count, Err(Failure::Refused { .. })), "{wrong_count:?}");
    let ended =
        apply(&mut state, [end(1, JobPhase::Cancelled), end(1, JobPhase::Failed(Failure::Cancelled))]);
    assert_eq!(outcome(&ended), Ok(()));
    assert_eq!(state.job(JobId(1)).unwrap().phase, JobPhase::Cancelled);
}

#[test]
fn graphs_that_contradict_themselves_are_refused() {
    type Flaw = fn(&mut StageGraph);
    let flaws: [Flaw; 7] = [
        |graph| graph.stages.clear(),
        |graph| graph.stages[0].tasks.clear(),
        |graph| graph.stages[0].id = StageId(1),
        |graph| graph.stages[1].inputs[0].stage = StageId(1),
        |graph| graph.stages[1].inputs[0].stage = StageId(u32::MAX),
        |graph| {
            graph.stages[1].inputs[0].read = Read::Bucket;
            graph.stages[1].tasks = vec![TaskSpec::default(); 2];
        },
        |graph| graph.stages[0].work = Work::Held(vec![]),
    ];
    for (n, flaw) in flaws.into_iter().enumerate() {
        let mut state = StateMachine::default();
        let mut graph = graph(2);
        flaw(&mut graph);
        let submit = Command::Submit { job: JobId(1), label: String::new(), graph, submitted_unix_ms: 0 };
        let outcome = outcome(&apply(&mut state, [submit]));
        assert!(matches!(outcome, Err(Failure::Refused { .. })), "flaw {n}: {outcome:?}");
        assert!(state.jobs().is_empty());
    }
}

#[test]
fn a_frame_that_is_collected_as_it_is_succeeds_at_once() {
    let mut state = StateMachine::default();
    let mut graph = graph(2);
    graph.stages.truncate(1);
    graph.stages[0].work = Work::Held(vec![placed(1), placed(2)]);
    let submit = Command::Submit { job: JobId(1), label: String::new(), graph, submitted_unix_ms: 3 };
    apply(&mut state, [submit]);
    let status = state.job_status(JobId(1)).unwrap();
    assert_eq!((status.phase, status.ended_unix_ms), (JobPhase::Succeeded, Some(3)));
    assert_eq!((status.stages[0].done, status.stages[0].rows), (2, 2));
}

#[test]
fn a_released_job_keeps_its_history_and_frees_its_partitions_once() {
    let mut state = StateMachine::default();
    apply(&mut state, [submit(1), done(1, 0, 2, 1), done(1, 1, 1, 1)]);
    let release = Command::Release { jobs: vec![JobId(1), JobId(1), JobId(2)] };
    let events = apply(&mut state, [release.clone()]);
    assert_eq!(events[0], Event::JobsFreed { jobs: vec![JobId(1)] });
    assert_eq!(state.job_status(JobId(1)).unwrap().phase, JobPhase::Succeeded);
    assert_eq!(apply(&mut state, [release]).len(), 1);
}

#[test]
fn the_job_that_ended_first_is_forgotten_first() {
    let mut state = StateMachine::default();
    let succeed = |job| [submit(job), done(job, 0, 2, 1), done(job, 1, 1, 1)];
    apply(&mut state, [submit(1), submit(2)]);
    apply(&mut state, [done(2, 0, 2, 1), done(2, 1, 1, 1), done(1, 0, 2, 1), done(1, 1, 1, 1)]);
    apply(&mut state, (3..=MAX_KEPT_JOBS as u64).flat_map(succeed));
    let events = apply(&mut state, succeed(9999));
    assert!(events.contains(&Event::JobsFreed { jobs: vec![JobId(2)] }), "{events:?}");
    assert_eq!(state.jobs().len(), MAX_KEPT_JOBS);
}

#[test]
fn unfinished_jobs_are_limited_by_their_size() {
    let mut state = StateMachine::default();
    let big = |job: u64| {
        let mut graph = graph(1);
        graph.stages[0].work = Work::Fragment(vec![0; MAX_RUNNING_BYTES / 3].into());
        Command::Submit { job: JobId(job), label: String::new(), graph, submitted_unix_ms: 0 }
    };
    apply(&mut state, [big(1), big(2)]);
    let full = outcome(&apply(&mut state, [big(3)]));
    assert!(matches!(full, Err(Failure::Unavailable { .. })), "{full:?}");
    apply(&mut state, [end(1, JobPhase::Cancelled)]);
    assert_eq!(outcome(&apply(&mut state, [big(3)])), Ok(()));
}
