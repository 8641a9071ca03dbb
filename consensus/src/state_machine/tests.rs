//! Properties of the replicated state, and its limits.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use floe_protocol::{
    Exchange, Incarnation, InvitationId, KeyName, MeshId, Placed, Read, Secret, Stage, StageInput, Summary,
    TaskId, TaskSpec,
};
use proptest::prelude::*;

use super::job::TASK_BYTES;
use super::*;

/// What the wall clock showed.
fn at(unix_ms: u64) -> WallTime {
    WallTime::from_unix_ms(unix_ms)
}

/// The so many-th start from one directory.
fn start(number: u64) -> Incarnation {
    (1..=number).fold(Incarnation::default(), |before, number| before.next(number as u32))
}

fn member(id: u64) -> Member {
    Member {
        id: NodeId(id),
        peer: format!("peer-{id}"),
        name: format!("n{id}"),
        addresses: vec![],
        slots: 2,
        memory_bytes: 1 << 30,
        version: "0.1.0".to_owned(),
        incarnation: start(1),
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
    StageGraph { stages: vec![stage(0, tasks, vec![]), stage(1, 1, vec![gather])], ..StageGraph::default() }
}

fn placed(node: u64) -> Placed {
    Placed { nodes: vec![NodeId(node)], summary: Summary { rows: 1, bytes: 8, mark: 0 } }
}

fn run(stage: u32, partition: u32) -> TaskRun {
    TaskRun { stage: StageId(stage), partition, node: NodeId(1), started_at: at(1), elapsed_ms: 1 }
}

fn submit(job: u64) -> Command {
    Command::Submit { job: JobId(job), label: "q".to_owned(), graph: graph(2), owner: 1, submitted_at: at(7) }
}

fn done(job: u64, stage: u32, tasks: usize, node: u64) -> Command {
    Command::StageDone {
        job: JobId(job),
        stage: StageId(stage),
        outputs: StageOutputs::whole(vec![placed(node); tasks]),
        more_ms: 0,
        runs: (0..tasks as u32).map(|partition| run(stage, partition)).collect(),
        ended_at: at(9),
    }
}

/// Opens a standing job.
fn stand(job: u64) -> Command {
    let mut graph = graph(1);
    graph.stages.truncate(1);
    graph.stages[0].work = Work::Calls;
    Command::Submit { job: JobId(job), label: "calls".to_owned(), graph, owner: 1, submitted_at: at(7) }
}

/// Closes it.
fn close(job: u64) -> Command {
    Command::StageDone {
        job: JobId(job),
        stage: StageId(0),
        outputs: StageOutputs::whole(vec![Placed::default()]),
        more_ms: 0,
        runs: vec![],
        ended_at: at(9),
    }
}

fn release(jobs: impl IntoIterator<Item = u64>) -> Command {
    let freed = Freed { why: WhyFreed::Released, at: at(11) };
    Command::Release { jobs: jobs.into_iter().map(JobId).collect(), freed }
}

fn end(job: u64, phase: JobPhase) -> Command {
    Command::EndJob { job: JobId(job), phase, ended_at: at(9) }
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

fn door() -> impl Strategy<Value = Command> {
    let id = || (0..3_u64).prop_map(InvitationId);
    let rotation = |from, to| Rotation {
        from: KeyName(from),
        to: KeyName(to),
        salt: Secret([1; 32]),
        sealed: Secret([2; 32]),
    };
    prop_oneof![
        (id(), 0..3_u32)
            .prop_map(|(id, uses)| { Command::Invite { id, verifier: Secret([3; 32]), uses, lasts_ms: 1 } }),
        (id(), 1..4_u64).prop_map(|(invitation, node)| Command::Enter { invitation, node: NodeId(node) }),
        id().prop_map(|id| Command::ExpireInvitations { invitations: vec![id] }),
        (1..4_u64).prop_map(|node| Command::Forget { node: NodeId(node) }),
        (0..3_u64, 0..3_u64).prop_map(move |(from, to)| Command::RotateKey(rotation(from, to))),
        (0..3_u64).prop_map(|to| Command::RetireKey { to: KeyName(to), former: FormerKey::Members }),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let job = 0..4_u64;
    prop_oneof![
        (1..4_u64).prop_map(|id| Command::Genesis { mesh: MeshId(9), member: member(id) }),
        (0..4_u64).prop_map(|id| Command::Join { member: member(id) }),
        (1..4_u64).prop_map(|id| Command::Leave { node: NodeId(id) }),
        job.clone().prop_map(submit),
        (4..7_u64).prop_map(stand),
        (0..7_u64).prop_map(close),
        (job.clone(), 0..3_u32, 1..3_usize, 1..4_u64)
            .prop_map(|(job, stage, tasks, node)| done(job, stage, tasks, node)),
        (job.clone(), any::<bool>())
            .prop_map(|(job, ok)| end(job, if ok { JobPhase::Cancelled } else { JobPhase::Succeeded })),
        prop::collection::vec(0..4_u64, 0..3).prop_map(release),
        (prop::collection::vec(other_era(), 0..3), prop::collection::vec((0..6_u64, other_job()), 0..3))
            .prop_map(|(ended, jobs)| Command::Adopt {
                claim: claim(LOSER),
                ended,
                jobs: jobs.into_iter().map(|(id, job)| (JobId(id), job)).collect(),
                tombstones: vec![],
                forgotten: vec![],
                keys: KeyChanges::default(),
            }),
        door(),
        // Rarely of the right state, so that most scripts go on.
        (0..40_u64).prop_map(|jobs_changed| Command::Yield {
            to: WINNER,
            members: vec![member(7)],
            jobs_changed
        }),
    ]
}

/// The era that the tests' mesh begins with, one that loses against it, and one that wins.
const OWN: Era = Era { mesh: MeshId(9), epoch: 1, founder: NodeId(1) };
const LOSER: Era = Era { mesh: MeshId(12), epoch: 3, founder: NodeId(5) };
const WINNER: Era = Era { mesh: MeshId(3), epoch: 1, founder: NodeId(7) };

/// What an era says that was not compared with another.
fn claim(era: Era) -> Claim {
    Claim { era, work_ms: None }
}

fn genesis() -> Command {
    Command::Genesis { mesh: OWN.mesh, member: member(1) }
}

fn other_era() -> impl Strategy<Value = Era> {
    (2..13_u128, 1..3_u64, 1..3_u64).prop_map(|(mesh, epoch, founder)| Era {
        mesh: MeshId(mesh),
        epoch,
        founder: NodeId(founder),
    })
}

/// A job as another mesh has it after these commands.
fn job_after(commands: impl IntoIterator<Item = Command>) -> Job {
    let mut other = StateMachine::default();
    apply(&mut other, [submit(1)]);
    apply(&mut other, commands);
    other.job(JobId(1)).unwrap().clone()
}

/// What is left of a job, which failed for what is its own if it did.
fn buried(freed: Freed) -> Tombstone {
    Tombstone { freed, of_the_job: true }
}

/// Another era knows no more of job 1 than this.
fn bury(tombstone: Tombstone) -> Command {
    bury_all(vec![(JobId(1), tombstone)])
}

/// Another era knows no more of these jobs.
fn bury_all(tombstones: Vec<(JobId, Tombstone)>) -> Command {
    Command::Adopt {
        claim: claim(LOSER),
        ended: vec![],
        jobs: vec![],
        tombstones,
        forgotten: vec![],
        keys: KeyChanges::default(),
    }
}

fn running_job() -> Job {
    job_after([done(1, 0, 2, 4)])
}

fn succeeded_job() -> Job {
    job_after([done(1, 0, 2, 4), done(1, 1, 1, 4)])
}

fn cancelled_job() -> Job {
    job_after([end(1, JobPhase::Cancelled)])
}

fn released_job() -> Job {
    job_after([done(1, 0, 2, 4), done(1, 1, 1, 4), release([1])])
}

fn other_job() -> impl Strategy<Value = Job> {
    prop_oneof![Just(running_job()), Just(succeeded_job()), Just(cancelled_job()), Just(released_job())]
}

fn adopt(jobs: impl IntoIterator<Item = (u64, Job)>) -> Command {
    let jobs = jobs.into_iter().map(|(id, job)| (JobId(id), job)).collect();
    Command::Adopt {
        claim: claim(LOSER),
        ended: vec![],
        jobs,
        tombstones: vec![],
        forgotten: vec![],
        keys: KeyChanges::default(),
    }
}

fn hand_over(state: &StateMachine) -> Command {
    Command::Yield { to: WINNER, members: vec![member(7)], jobs_changed: state.jobs_changed() }
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
        prop_assert_eq!(&restored, &state);
        let unfinished = state.jobs.values().filter(|job| !job.phase.is_terminal());
        prop_assert_eq!(state.unfinished, unfinished.count());
        let with_work = state.jobs.values().filter(|job| job.work.is_some());
        prop_assert_eq!(state.work_bytes, with_work.map(|job| job.weight_bytes()).sum::<usize>());
        let gone = state.jobs.values().filter(|job| job.work.is_none());
        prop_assert!(gone.clone().all(|job| job.freed.is_some() && job.phase.is_terminal()));
    }

    /// The jobs that were handed over are all there are if and only if this has not moved.
    #[test]
    fn jobs_changed_moves_with_the_jobs(commands in prop::collection::vec(command(), 1..60)) {
        let mut state = StateMachine::default();
        apply(&mut state, [genesis()]);
        for command in commands {
            let before = state.clone();
            apply(&mut state, [command]);
            let handed_over = |state: &StateMachine| (state.jobs.clone(), state.ended_eras.clone());
            let moved = state.jobs_changed() != before.jobs_changed();
            prop_assert!(moved || handed_over(&state) == handed_over(&before));
            if moved {
                prop_assert_eq!(state.jobs_changed(), state.applied());
            }
        }
    }

    /// However often and in whatever order two eras say what they know of a job: whoever says that it ended is
    /// right, and nothing of it is lost.
    #[test]
    fn adopting_again_changes_nothing_and_ends_stay(
        own in prop::collection::vec(command(), 0..30),
        jobs in prop::collection::vec((0..6_u64, other_job()), 0..6),
    ) {
        let mut state = StateMachine::default();
        apply(&mut state, [genesis()]);
        apply(&mut state, own);
        prop_assume!(state.yielded().is_none());
        let before = state.jobs().clone();
        prop_assert_eq!(outcome(&apply(&mut state, [adopt(jobs.clone())])), Ok(()));
        for (id, job) in &jobs {
            let now = &state.job(JobId(*id)).unwrap().phase;
            let known = before.get(&JobId(*id)).map(|job| &job.phase);
            prop_assert!(now.is_terminal() || (!job.phase.is_terminal() && known.is_none_or(|p| !p.is_terminal())));
            let other_ends = &state.job(JobId(*id)).unwrap().other_ends;
            prop_assert!(known.is_none_or(|known| !known.is_terminal() || now == known || other_ends.contains(known)));
        }
        prop_assert!(before.keys().all(|id| state.jobs().contains_key(id)));
        let once = state.clone();
        apply(&mut state, [adopt(jobs)]);
        prop_assert_eq!(state.jobs(), once.jobs());
        prop_assert_eq!(state.jobs_changed(), once.jobs_changed());
        prop_assert_eq!(state.history, once.history);
    }

    #[test]
    fn garbage_is_no_snapshot(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(StateMachine::restore(&bytes).is_err());
    }
}

#[test]
fn another_version_s_snapshot_is_named() {
    let snapshot = frame::encode(&(SNAPSHOT_VERSION + 1, "what only that version understands")).unwrap();
    let error = StateMachine::restore(&snapshot).unwrap_err();
    assert!(error.to_string().contains(&format!("format {}", SNAPSHOT_VERSION + 1)), "{error}");
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
    assert_eq!(job.work.as_ref().unwrap().outputs[1].as_ref().unwrap().placed[0].nodes, [NodeId(2)]);
    assert_eq!(job.timeline.len(), 3, "runs that were told twice are listed once");
}

#[test]
fn refusals_are_typed_and_change_nothing() {
    let mut state = StateMachine::default();
    let no_such_job = Err(Failure::NoSuchJob { job: JobId(5) });
    assert_eq!(outcome(&apply(&mut state, [end(5, JobPhase::Cancelled)])), no_such_job);
    assert_eq!(outcome(&apply(&mut state, [done(5, 0, 1, 1)])), no_such_job);
    let taken = Command::Submit {
        job: JobId(8),
        label: "other".into(),
        graph: graph(2),
        owner: 1,
        submitted_at: at(7),
    };
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
    let flaws: [Flaw; 10] = [
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
        |graph| graph.stages[1].inputs[0].read = Read::Group { size: 0 },
        |graph| graph.stages[1].work = Work::Calls,
        |graph| {
            graph.stages.truncate(1);
            graph.stages[0].work = Work::Calls;
        },
    ];
    for (n, flaw) in flaws.into_iter().enumerate() {
        let mut state = StateMachine::default();
        let mut graph = graph(2);
        flaw(&mut graph);
        let submit =
            Command::Submit { job: JobId(1), label: String::new(), graph, owner: 1, submitted_at: at(0) };
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
    let submit =
        Command::Submit { job: JobId(1), label: String::new(), graph, owner: 1, submitted_at: at(3) };
    apply(&mut state, [submit]);
    let status = state.job_status(JobId(1)).unwrap();
    assert_eq!((status.phase, status.ended_at), (JobPhase::Succeeded, Some(at(3))));
    assert_eq!((status.stages[0].done, status.stages[0].rows), (2, 2));
}

#[test]
fn a_standing_job_runs_until_its_driver_is_done_and_leaves_nothing() {
    let mut state = StateMachine::default();
    let events = apply(&mut state, [genesis(), stand(1)]);
    assert_eq!(outcome(&events), Ok(()));
    // It goes on when it is opened again, and no partition of it can be anywhere.
    assert_eq!(outcome(&apply(&mut state, [stand(1)])), Ok(()));
    assert!(matches!(outcome(&apply(&mut state, [done(1, 0, 1, 1)])), Err(Failure::Refused { .. })));
    assert_eq!(state.job(JobId(1)).unwrap().phase, JobPhase::Running);
    let events = apply(&mut state, [close(1)]);
    let expected = [
        Event::StageDone { job: JobId(1), stage: StageId(0) },
        Event::JobEnded { job: JobId(1), phase: JobPhase::Succeeded },
        Event::JobsFreed { jobs: vec![JobId(1)], freed: Freed { why: WhyFreed::Closed, at: at(9) } },
    ];
    assert_eq!(events[..3], expected);
    assert_eq!(state.job(JobId(1)).unwrap().work, None);
    // Closed again, cancelled or released, it is what it was.
    let ended = state.jobs().clone();
    let again = release([1]);
    for command in [close(1), end(1, JobPhase::Cancelled), again] {
        let events = apply(&mut state, [command]);
        assert_eq!((outcome(&events), events.len()), (Ok(()), 1));
    }
    assert_eq!(state.jobs(), &ended);
}

#[test]
fn a_standing_job_goes_over_to_another_era_in_any_state() {
    let mut other = StateMachine::default();
    apply(&mut other, [stand(1), stand(2), stand(3), close(2), end(3, JobPhase::Cancelled)]);
    let theirs = |id| (id, other.job(JobId(id)).unwrap().clone());
    let mut state = StateMachine::default();
    apply(&mut state, [genesis(), stand(2), stand(3)]);
    let events = apply(&mut state, [adopt([theirs(1), theirs(2), theirs(3)])]);
    assert_eq!(outcome(&events), Ok(()), "{events:?}");
    let phases: Vec<_> = state.jobs().values().map(|job| job.phase.clone()).collect();
    assert_eq!(phases, [JobPhase::Running, JobPhase::Succeeded, JobPhase::Cancelled]);
    assert_eq!(outcome(&apply(&mut state, [close(1)])), Ok(()));
    assert_eq!(state.job(JobId(1)).unwrap().phase, JobPhase::Succeeded);
}

#[test]
fn a_released_job_keeps_its_history_and_frees_its_partitions_once() {
    let mut state = StateMachine::default();
    apply(&mut state, [submit(1), done(1, 0, 2, 1), done(1, 1, 1, 1)]);
    let again = release([1, 1, 2]);
    let events = apply(&mut state, [again.clone()]);
    assert_eq!(
        events[0],
        Event::JobsFreed { jobs: vec![JobId(1)], freed: Freed { why: WhyFreed::Released, at: at(11) } }
    );
    assert_eq!(state.job_status(JobId(1)).unwrap().phase, JobPhase::Succeeded);
    assert_eq!(apply(&mut state, [again]).len(), 1);
}

#[test]
fn results_stay_however_many_jobs_end_after_them() {
    let mut state = StateMachine::default();
    let succeed = |job| [submit(job), done(job, 0, 2, 1), done(job, 1, 1, 1)];
    apply(&mut state, succeed(1));
    let mut ended = 0;
    for job in 2.. {
        let events = apply(&mut state, succeed(job).into_iter().chain([submit(job + 100_000)]));
        if outcome(&events).is_err() {
            ended = job;
            break;
        }
        apply(
            &mut state,
            [end(job + 100_000, JobPhase::Failed(Failure::Query { message: "x".repeat(1 << 16) }))],
        );
    }
    assert!(ended > 1_000, "there is room for {ended} small results");
    for job in 1..=ended {
        assert!(state.job(JobId(job)).unwrap().has_result(), "job {job}");
    }
    // What cannot be taken on is refused, before anything runs, and says when to try again.
    let full = outcome(&apply(&mut state, [submit(99_999)]));
    assert!(
        matches!(&full, Err(Failure::Busy { message, .. }) if message.contains("results wait")),
        "{full:?}"
    );
    assert_eq!(state.check_room(0), Ok(()), "a smaller one may have room");
    apply(&mut state, [release([1, 2])]);
    assert_eq!(outcome(&apply(&mut state, [submit(99_999)])), Ok(()));
    assert!(state.snapshot().unwrap().len() < MAX_WORK_BYTES + (4 << 20), "it was weighed rightly");
}

#[test]
fn a_job_is_unknown_or_there_or_was_freed_and_says_why() {
    let mut state = StateMachine::default();
    assert_eq!(state.find(JobId(1)), Err(Failure::NoSuchJob { job: JobId(1) }));
    apply(&mut state, [submit(1), done(1, 0, 2, 1), done(1, 1, 1, 1), release([1])]);
    let freed = Freed { why: WhyFreed::Released, at: at(11) };
    assert_eq!(state.find(JobId(1)).map(|job| job.freed), Ok(Some(freed)), "its record is here");
    // Until many others have ended.
    let lengthy = |job| end(job, JobPhase::Failed(Failure::Query { message: "x".repeat(1 << 16) }));
    apply(&mut state, (2..200).flat_map(|job| [submit(job), lengthy(job)]));
    assert_eq!(state.find(JobId(1)), Err(Failure::Freed { job: JobId(1), freed }));
    let freed = Freed { why: WhyFreed::Failed, at: at(9) };
    assert_eq!(state.find(JobId(2)), Err(Failure::Freed { job: JobId(2), freed }));
    assert!(
        matches!(state.find(JobId(199)).unwrap().phase, JobPhase::Failed(_)),
        "why the last ones failed is known"
    );
    // Nor does it begin again.
    let again = outcome(&apply(&mut state, [submit(2)]));
    assert_eq!(again, Err(Failure::Freed { job: JobId(2), freed }));
    assert_eq!(outcome(&apply(&mut state, [end(2, JobPhase::Cancelled)])), Ok(()));
    // Another era that knows it as running hears nothing else.
    apply(&mut state, [genesis(), adopt([(2, running_job())])]);
    assert_eq!(state.find(JobId(2)), Err(Failure::Freed { job: JobId(2), freed }));
}

#[test]
fn a_job_whose_submission_was_lost_runs_when_it_is_submitted_again_and_no_other_does() {
    let partition = TaskId { job: JobId(1), stage: StageId(0), partition: 0 };
    let lost = JobPhase::Failed(Failure::SubmissionLost { partition: Some(partition), node: NodeId(1) });
    let mut state = StateMachine::default();
    apply(&mut state, [genesis(), submit(1), submit(2), submit(3)]);
    apply(&mut state, [end(1, lost.clone()), end(2, JobPhase::Cancelled), end(3, lost)]);
    let renamed = |job| Command::Submit {
        job: JobId(job),
        label: "another".to_owned(),
        graph: graph(2),
        owner: 1,
        submitted_at: at(7),
    };
    outcome(&apply(&mut state, [renamed(1)])).unwrap_err();
    let events = apply(&mut state, [submit(1)]);
    assert!(matches!(events[0], Event::JobAccepted { job: JobId(1), .. }), "{events:?}");
    assert_eq!(state.job(JobId(1)).unwrap().phase, JobPhase::Running);
    assert_eq!(apply(&mut state, [submit(1)]).len(), 1, "once");
    assert_eq!(apply(&mut state, [submit(2)]).len(), 1, "what was cancelled stays so");
    // Its history goes with it: it ends as any other.
    let restored = StateMachine::restore(&state.snapshot().unwrap()).unwrap();
    assert_eq!(restored, state);
    apply(&mut state, [done(1, 0, 2, 1), done(1, 1, 1, 1), release([1])]);
    assert_eq!(state.find(JobId(1)).unwrap().freed.unwrap().why, WhyFreed::Released);
    let ended = state.jobs().values().filter(|job| job.phase.is_terminal()).count();
    assert_eq!((ended, state.unfinished, state.work_bytes), (3, 0, 0));
}

#[test]
fn what_has_ended_in_another_era_is_known_to_have_ended() {
    let mut state = StateMachine::default();
    let freed = Freed { why: WhyFreed::Expired, at: at(3) };
    let command = bury_all(vec![(JobId(4), buried(freed)), (JobId(1), buried(freed))]);
    apply(&mut state, [genesis(), submit(1), command.clone()]);
    assert_eq!(state.find(JobId(4)), Err(Failure::Freed { job: JobId(4), freed }));
    assert!(state.job(JobId(1)).is_some_and(|job| job.phase.is_terminal()), "it has ended there");
    let before = state.jobs_changed();
    assert_eq!(before, state.applied());
    apply(&mut state, [command]);
    assert_eq!(state.jobs_changed(), before, "said again it changes nothing");
}

#[test]
fn unfinished_jobs_are_limited_by_their_size() {
    let mut state = StateMachine::default();
    let big = |job: u64| {
        let mut graph = graph(1);
        graph.stages[0].work = Work::Fragment(vec![0; MAX_WORK_BYTES / 7].into());
        Command::Submit { job: JobId(job), label: String::new(), graph, owner: 1, submitted_at: at(0) }
    };
    apply(&mut state, (1..7).map(big));
    let full = outcome(&apply(&mut state, [big(7)]));
    assert!(matches!(full, Err(Failure::Busy { .. })), "{full:?}");
    apply(&mut state, [end(1, JobPhase::Cancelled)]);
    assert_eq!(outcome(&apply(&mut state, [big(7)])), Ok(()));
}

#[test]
fn a_job_of_another_era_goes_on_under_its_id() {
    let mut state = StateMachine::default();
    apply(&mut state, [genesis()]);
    let events = apply(&mut state, [adopt([(4, running_job()), (5, succeeded_job()), (6, cancelled_job())])]);
    let work = |job: Job| job.work.unwrap();
    let expected = [
        Event::JobAdopted { job: JobId(4), work: work(running_job()), succeeded: false, owner: 1 },
        Event::JobAdopted { job: JobId(5), work: work(succeeded_job()), succeeded: true, owner: 1 },
        Event::JobEnded { job: JobId(6), phase: JobPhase::Cancelled },
    ];
    assert_eq!(events[..3], expected);
    assert_eq!(outcome(&events), Ok(()));
    assert_eq!(state.ended_eras().collect::<Vec<_>>(), [LOSER]);
    // It goes on where it was.
    let events = apply(&mut state, [done(4, 1, 1, 2)]);
    assert!(events.contains(&Event::JobEnded { job: JobId(4), phase: JobPhase::Succeeded }));
}

#[test]
fn of_a_job_that_both_know_the_one_that_ended_is_right() {
    let mut state = StateMachine::default();
    apply(&mut state, [genesis(), submit(1), submit(2), submit(3), submit(4)]);
    apply(&mut state, [end(3, JobPhase::Cancelled), done(4, 0, 2, 1)]);
    let events = apply(
        &mut state,
        [adopt([(1, succeeded_job()), (2, cancelled_job()), (3, succeeded_job()), (4, running_job())])],
    );
    assert_eq!(
        events[..4],
        [
            Event::JobEnded { job: JobId(1), phase: JobPhase::Succeeded },
            Event::JobAdopted {
                job: JobId(1),
                work: succeeded_job().work.unwrap(),
                succeeded: true,
                owner: 1
            },
            Event::JobEnded { job: JobId(2), phase: JobPhase::Cancelled },
            Event::JobsFreed { jobs: vec![JobId(2)], freed: Freed { why: WhyFreed::Cancelled, at: at(9) } },
        ]
    );
    assert!(matches!(events[4], Event::JobAdopted { job: JobId(3), .. }), "it has a result: {events:?}");
    assert_eq!(events[5], Event::JobShared { job: JobId(4) }, "nothing is new of it, but where it may run");
    assert_eq!(events.len(), 7, "{events:?}");
    let kept = state.job(JobId(4)).unwrap().work.as_ref().unwrap();
    assert_eq!(kept.outputs[0].as_ref().unwrap().placed[0].nodes, [NodeId(1)], "this era's own outputs stay");
}

#[test]
fn one_malformed_job_refuses_them_all() {
    type Flaw = fn(&mut Job);
    let flaws: [Flaw; 9] = [
        |job| job.work.as_mut().unwrap().outputs.clear(),
        |job| job.work.as_mut().unwrap().outputs[0].as_mut().unwrap().placed.truncate(1),
        |job| job.work.as_mut().unwrap().outputs[0].as_mut().unwrap().buckets.clear(),
        |job| job.work = None,
        // What follows would make whoever applies it look for what is not there, for good.
        |job| job.stages.truncate(1),
        |job| job.phase = JobPhase::Succeeded,
        |job| job.phase = JobPhase::Cancelled,
        |job| job.work.as_mut().unwrap().outputs[1] = succeeded_job().work.unwrap().outputs[1].clone(),
        |job| job.timeline = vec![run(0, 0); MAX_TIMELINE + 1],
    ];
    for (n, flaw) in flaws.into_iter().enumerate() {
        let mut state = StateMachine::default();
        apply(&mut state, [genesis(), submit(1)]);
        let mut job = running_job();
        flaw(&mut job);
        let before = state.clone();
        let outcome = outcome(&apply(&mut state, [adopt([(1, succeeded_job()), (7, job)])]));
        assert!(matches!(outcome, Err(Failure::Refused { .. })), "flaw {n}: {outcome:?}");
        assert_eq!(state.jobs, before.jobs, "flaw {n}");
        assert_eq!(state.ended_eras().count(), 0, "flaw {n}");
        assert_eq!(state.jobs_changed(), before.jobs_changed(), "flaw {n}");
    }
}

#[test]
fn what_a_job_weighs_is_not_the_other_s_word() {
    let mut state = StateMachine::default();
    let claim = |weight_bytes| Job { weight_bytes, ..running_job() };
    apply(&mut state, [genesis(), adopt([(4, claim(usize::MAX)), (5, claim(0)), (6, running_job())])]);
    let weights: BTreeSet<_> = state.jobs().values().map(|job| job.weight_bytes()).collect();
    assert_eq!(weights, [running_job().weight_bytes].into());
    let ended = |weight_bytes| Job { weight_bytes, ..released_job() };
    apply(&mut state, [adopt([(7, ended(usize::MAX)), (8, ended(usize::MAX))])]);
    assert_eq!(state.job(JobId(7)).unwrap().weight_bytes(), released_job().weight_bytes);
}

#[test]
fn a_full_mesh_takes_another_s_jobs_later() {
    let mut state = StateMachine::default();
    let mut graph = graph(1);
    graph.stages[0].work = Work::Fragment(vec![0; MAX_JOB_BYTES * 4 / 5].into());
    let big = |id: u64| Command::Submit {
        job: JobId(id),
        label: "big".to_owned(),
        graph: graph.clone(),
        owner: 1,
        submitted_at: at(0),
    };
    let mut other = StateMachine::default();
    apply(&mut other, [big(2)]);
    let theirs = adopt([(2, other.job(JobId(2)).unwrap().clone()), (3, cancelled_job())]);
    apply(&mut state, [genesis()]);
    // There is some room for others' jobs beyond that for its own.
    let own = (10..).take_while(|id| outcome(&apply(&mut state, [big(*id)])).is_ok()).last().unwrap();
    let spare = (100..).take_while(|id| {
        let theirs = adopt([(*id, other.job(JobId(2)).unwrap().clone())]);
        outcome(&apply(&mut state, [theirs])).is_ok()
    });
    assert_eq!(spare.count(), 2);
    let before = state.jobs().len();
    let full = outcome(&apply(&mut state, [theirs.clone()]));
    assert!(matches!(full, Err(Failure::Unavailable { .. })), "{full:?}");
    assert_eq!(state.jobs().len(), before);
    apply(&mut state, [end(own, JobPhase::Cancelled), end(own - 1, JobPhase::Cancelled)]);
    assert_eq!(outcome(&apply(&mut state, [theirs])), Ok(()));
}

#[test]
fn whatever_was_accepted_can_be_handed_over_in_one_entry() {
    // As large as a job may be, with all its stages done.
    let submit = |bytes: usize| {
        let mut graph = graph(MAX_TIMELINE);
        graph.stages[0].work = Work::Fragment(vec![0; bytes].into());
        Command::Submit { job: JobId(1), label: "q".to_owned(), graph, owner: 1, submitted_at: at(0) }
    };
    let weight = |bytes| {
        let mut state = StateMachine::default();
        apply(&mut state, [submit(bytes)]);
        state.job(JobId(1)).unwrap().weight_bytes()
    };
    let memory_bytes = (MAX_TIMELINE + 1) * TASK_BYTES;
    let most = MAX_JOB_BYTES + memory_bytes - weight(1 << 20) + (1 << 20);
    let mut state = StateMachine::default();
    apply(&mut state, [submit(most), done(1, 0, MAX_TIMELINE, u64::MAX), done(1, 1, 1, u64::MAX)]);
    let job = state.job(JobId(1)).expect("it is accepted").clone();
    assert_eq!(job.weight_bytes(), MAX_JOB_BYTES + memory_bytes);
    assert_eq!(job.timeline.len(), MAX_TIMELINE);
    let ended = vec![LOSER; MAX_ENDED_ERAS];
    let command = Command::Adopt {
        claim: claim(LOSER),
        ended,
        jobs: vec![(JobId(1), job)],
        tombstones: vec![],
        forgotten: vec![],
        keys: KeyChanges::default(),
    };
    let entry = Entry { request: RequestId(1), command };
    assert!(entry.encode().unwrap().len() <= crate::replica::MAX_ENTRY_BYTES);
}

#[test]
fn eras_that_ended_are_remembered_within_limits() {
    let mut state = StateMachine::default();
    apply(&mut state, [genesis()]);
    let era = |n: usize| Era { mesh: MeshId(100 + n as u128), ..LOSER };
    let adopt = |mut eras: Vec<Era>| {
        let ended = eras.split_off(1);
        Command::Adopt {
            claim: claim(eras[0]),
            ended,
            jobs: vec![],
            tombstones: vec![],
            forgotten: vec![],
            keys: KeyChanges::default(),
        }
    };
    // Its own, and one that would win, have not ended with one that loses.
    apply(&mut state, [adopt(vec![era(0), OWN, WINNER]), adopt(vec![era(0)])]);
    assert_eq!(state.ended_eras().collect::<Vec<_>>(), [era(0)]);
    for n in 1..=MAX_ENDED_ERAS {
        apply(&mut state, [adopt(vec![era(n)])]);
    }
    assert_eq!(state.ended_eras().collect::<Vec<_>>(), (1..=MAX_ENDED_ERAS).map(era).collect::<Vec<_>>());
    apply(&mut state, [adopt((500..9_000).map(era).collect())]);
    assert_eq!(state.ended_eras().count(), MAX_ENDED_ERAS);
}

#[test]
fn an_era_ends_only_if_no_job_changed_since_it_was_handed_over() {
    let mut state = StateMachine::default();
    apply(&mut state, [genesis(), submit(1)]);
    let too_early = hand_over(&state);
    apply(&mut state, [submit(2)]);
    let refused = outcome(&apply(&mut state, [too_early]));
    assert!(matches!(refused, Err(Failure::Refused { .. })), "{refused:?}");
    assert_eq!(state.yielded(), None);
    // What changes no job does not matter.
    let in_time = hand_over(&state);
    let events =
        apply(&mut state, [Command::Join { member: member(2) }, end(99, JobPhase::Cancelled), in_time]);
    assert_eq!(events[0], Event::Yielded { to: WINNER, members: vec![member(7)] });
    assert_eq!(state.yielded().map(|yielded| yielded.to), Some(WINNER));
}

#[test]
fn nothing_applies_after_the_end_of_an_era() {
    let mut state = StateMachine::default();
    apply(&mut state, [genesis(), submit(1)]);
    let end_of_era = hand_over(&state);
    apply(&mut state, [end_of_era.clone()]);
    let before = StateMachine { applied: 0, ..state.clone() };
    let commands = [
        submit(2),
        end(1, JobPhase::Cancelled),
        Command::Join { member: member(3) },
        adopt([(9, running_job())]),
        end_of_era,
    ];
    for command in commands {
        let events = apply(&mut state, [command]);
        assert!(matches!(outcome(&events), Err(Failure::Unavailable { .. })), "{events:?}");
        assert_eq!(events.len(), 1);
    }
    assert_eq!(StateMachine { applied: 0, ..state.clone() }, before);
    let restored = StateMachine::restore(&state.snapshot().unwrap()).unwrap();
    assert_eq!(restored, state);
}

#[test]
fn the_next_era_begins_with_all_that_was_known() {
    let mut state = StateMachine::default();
    apply(
        &mut state,
        [genesis(), Command::Join { member: member(2) }, submit(1), adopt([(4, running_job())])],
    );
    let before = state.clone();
    state.carry_on(NodeId(2), 40).unwrap();
    assert_eq!(state.era(), Some(Era { epoch: 2, founder: NodeId(2), ..OWN }));
    assert!(state.era() > before.era() && state.era().unwrap().supersedes(&OWN));
    assert_eq!(state.applied(), 40);
    assert_eq!(
        StateMachine { era: before.era, applied: before.applied, done_ms: before.done_ms, ..state.clone() },
        before
    );
    // A request that was answered before is not obeyed again after.
    let again = Entry { request: RequestId(3), command: end(1, JobPhase::Cancelled) };
    assert_eq!(outcome(&state.apply(41, &again)), Ok(()));
    assert_eq!(state.job(JobId(1)).unwrap().phase, JobPhase::Running);
}

#[test]
fn no_era_follows_the_last_one() {
    let mut state = StateMachine::default();
    apply(&mut state, [genesis()]);
    state.era = Some(Era { epoch: u64::MAX, ..OWN });
    let before = state.clone();
    assert!(state.carry_on(NodeId(2), 40).is_err());
    assert_eq!(state, before);
}

#[test]
fn a_node_whose_disk_is_older_than_what_is_known_of_it_is_not_taken_in() {
    let join = |incarnation| Command::Join { member: Member { incarnation, ..member(2) } };
    let mut state = StateMachine::default();
    apply(&mut state, [genesis(), join(start(5))]);
    // Put back as it was before the last start, and started once, or twice.
    for backup in [start(4), start(4).next(77), start(4).next(77).next(78)] {
        let refused = outcome(&apply(&mut state, [join(backup)]));
        assert!(
            matches!(&refused, Err(Failure::Superseded { message }) if message.contains("missed start 5")),
            "{refused:?}"
        );
    }
    // It may have been started without the mesh hearing of it.
    for again in [start(5), start(6), start(9), start(40)] {
        assert_eq!(outcome(&apply(&mut state, [join(again.clone())])), Ok(()));
        assert_eq!(state.members()[&NodeId(2)].incarnation, again);
    }
    let many = Incarnation { number: 41, marks: vec![0; MAX_MARKS + 1] };
    assert!(outcome(&apply(&mut state, [join(many)])).is_err());
}

#[test]
fn what_an_era_has_done_is_said_once_and_its_successor_begins_anew() {
    let mut state = StateMachine::default();
    apply(&mut state, [genesis(), Command::Claim { work_ms: 700 }, Command::Claim { work_ms: 90_000 }]);
    assert_eq!(state.claim(), Some(Claim { era: OWN, work_ms: Some(700) }));
    state.carry_on(NodeId(2), 40).unwrap();
    assert_eq!(state.claim().unwrap().work_ms, None);
}

#[test]
fn an_era_of_the_same_epoch_ends_with_the_one_that_did_more() {
    let sibling = Era { founder: NodeId(9), ..OWN };
    let adopt = |work_ms| {
        let claim = Claim { era: sibling, work_ms: Some(work_ms) };
        Command::Adopt {
            claim,
            ended: vec![],
            jobs: vec![],
            tombstones: vec![],
            forgotten: vec![],
            keys: KeyChanges::default(),
        }
    };
    let mut state = StateMachine::default();
    apply(&mut state, [genesis(), Command::Claim { work_ms: 700 }, adopt(701)]);
    assert_eq!(state.ended_eras().count(), 0, "that one would win");
    apply(&mut state, [adopt(699)]);
    assert_eq!(state.ended_eras().collect::<Vec<_>>(), [sibling]);
}

#[test]
fn two_ends_that_contradict_are_both_kept_and_a_result_goes_before_none() {
    let failed = || job_after([end(1, JobPhase::Failed(Failure::Query { message: "no".to_owned() }))]);
    let phase = |state: &StateMachine| state.job_status(JobId(1)).map(|job| (job.phase, job.other_ends));
    let own = |commands: &[Command]| {
        let mut state = StateMachine::default();
        apply(&mut state, [genesis(), submit(1)]);
        apply(&mut state, commands.iter().cloned());
        state
    };
    // Here it was cancelled, there it has a result, which somebody may collect.
    let mut state = own(&[end(1, JobPhase::Cancelled)]);
    let events = apply(&mut state, [adopt([(1, succeeded_job())])]);
    let adopted =
        Event::JobAdopted { job: JobId(1), work: succeeded_job().work.unwrap(), succeeded: true, owner: 1 };
    assert!(events.contains(&adopted), "{events:?}");
    assert_eq!(phase(&state), Ok((JobPhase::Succeeded, vec![JobPhase::Cancelled])));
    assert!(state.job(JobId(1)).unwrap().has_result());
    // The other way round it stays as it is.
    let mut state = own(&[done(1, 0, 2, 4), done(1, 1, 1, 4)]);
    apply(&mut state, [adopt([(1, cancelled_job())])]);
    assert_eq!(phase(&state), Ok((JobPhase::Succeeded, vec![JobPhase::Cancelled])));
    // A third one says yet something else; and what it says again, or agrees with, adds nothing.
    apply(&mut state, [adopt([(1, failed())])]);
    let changed = state.jobs_changed();
    apply(&mut state, [adopt([(1, failed())]), adopt([(1, succeeded_job())])]);
    assert_eq!(state.jobs_changed(), changed);
    let ends = phase(&state).unwrap().1;
    assert_eq!(ends, [JobPhase::Cancelled, failed().phase]);
    // Without a result the end that is known here stays the first.
    let mut state = own(&[end(1, JobPhase::Cancelled)]);
    apply(&mut state, [adopt([(1, failed())])]);
    assert_eq!(phase(&state), Ok((JobPhase::Cancelled, vec![failed().phase])));
    assert_eq!(StateMachine::restore(&state.snapshot().unwrap()).unwrap(), state);
}

#[test]
fn what_a_part_of_the_mesh_lacked_does_not_end_a_job_that_runs_here() {
    let failed = |failure| job_after([end(1, JobPhase::Failed(failure))]);
    let alone = Failure::NoneFits { needs: "pandas".to_owned(), looked: "node b".to_owned() };
    let own = Failure::Query { message: "no column".to_owned() };
    let mut state = StateMachine::default();
    apply(&mut state, [genesis(), submit(1), submit(2), stand(5)]);
    let mut calls = StateMachine::default();
    let gone = Failure::Refused { message: "its driver is gone".to_owned() };
    apply(&mut calls, [stand(5), end(5, JobPhase::Failed(gone.clone()))]);
    let calls = calls.job(JobId(5)).unwrap().clone();
    let theirs = [(1, failed(alone.clone())), (2, failed(own.clone())), (5, calls)];
    let events = apply(&mut state, [adopt(theirs.clone())]);
    assert!(!events.contains(&Event::JobEnded { job: JobId(1), phase: JobPhase::Failed(alone.clone()) }));
    let status = |state: &StateMachine, job| {
        state.job_status(JobId(job)).map(|job| (job.phase, job.other_ends)).unwrap()
    };
    assert_eq!(status(&state, 1), (JobPhase::Running, vec![JobPhase::Failed(alone.clone())]));
    assert_eq!(status(&state, 2), (JobPhase::Failed(own), vec![]));
    assert_eq!(status(&state, 5), (JobPhase::Running, vec![JobPhase::Failed(gone)]));
    // Said again it changes nothing, and the job goes on to its own end.
    let changed = state.jobs_changed();
    apply(&mut state, [adopt(theirs)]);
    assert_eq!(state.jobs_changed(), changed);
    apply(&mut state, [done(1, 0, 2, 4), done(1, 1, 1, 4)]);
    assert_eq!(status(&state, 1), (JobPhase::Succeeded, vec![JobPhase::Failed(alone)]));
}

#[test]
fn a_result_that_was_lost_here_is_taken_from_where_it_is() {
    let freed = |why| Freed { why, at: at(3) };
    let lost = Command::Release { jobs: vec![JobId(1)], freed: freed(WhyFreed::Lost) };
    let mut state = StateMachine::default();
    apply(&mut state, [genesis(), submit(1), done(1, 0, 2, 1), done(1, 1, 1, 1), lost]);
    apply(&mut state, [adopt([(1, succeeded_job())])]);
    assert!(state.job(JobId(1)).unwrap().has_result());
    // Also if no more is known of it, but not what its driver released.
    for (why, taken) in [(WhyFreed::Failed, true), (WhyFreed::Lost, true), (WhyFreed::Released, false)] {
        let mut state = StateMachine::default();
        let buried = bury(buried(freed(why)));
        apply(&mut state, [genesis(), buried, adopt([(1, succeeded_job())])]);
        assert_eq!(state.job(JobId(1)).is_some_and(Job::has_result), taken, "{why:?}");
    }
}

#[test]
fn a_result_that_was_released_in_another_era_is_released_here() {
    let release = |why| Freed { why, at: at(3) };
    for (why, stays) in [(WhyFreed::Released, false), (WhyFreed::Expired, true), (WhyFreed::Lost, true)] {
        let mut there = StateMachine::default();
        let finished = || [submit(1), done(1, 0, 2, 1), done(1, 1, 1, 1)];
        apply(&mut there, [genesis()].into_iter().chain(finished()));
        apply(&mut there, [Command::Release { jobs: vec![JobId(1)], freed: release(why) }]);
        let record = there.job(JobId(1)).unwrap().clone();
        for adopted in [adopt([(1, record)]), bury(buried(release(why)))] {
            let mut state = StateMachine::default();
            apply(&mut state, [genesis()].into_iter().chain(finished()).chain([adopted]));
            assert_eq!(state.job(JobId(1)).unwrap().has_result(), stays, "{why:?}");
        }
    }
}

#[test]
fn a_job_that_another_era_has_buried_does_not_run_on() {
    let mut state = StateMachine::default();
    let freed = Freed { why: WhyFreed::Cancelled, at: at(3) };
    let command = bury(buried(freed));
    let events = apply(&mut state, [genesis(), submit(1), command]);
    assert!(events.contains(&Event::JobEnded { job: JobId(1), phase: JobPhase::Cancelled }), "{events:?}");
    assert!(events.contains(&Event::JobsFreed { jobs: vec![JobId(1)], freed }), "{events:?}");
    assert_eq!((state.unfinished, state.work_bytes), (0, 0));
}

#[test]
fn what_a_part_of_the_mesh_lacked_does_not_end_a_job_of_which_it_knows_no_more_than_that() {
    let mut state = StateMachine::default();
    let freed = Freed { why: WhyFreed::Failed, at: at(3) };
    let ended = |of_the_job| bury(Tombstone { freed, of_the_job });
    let failed = JobPhase::Failed(Failure::Freed { job: JobId(1), freed });
    let events = apply(&mut state, [genesis(), submit(1), ended(false)]);
    assert!(!events.iter().any(|event| matches!(event, Event::JobEnded { .. })), "{events:?}");
    let job = state.job(JobId(1)).unwrap();
    assert_eq!((&job.phase, job.other_ends.as_slice()), (&JobPhase::Running, [failed.clone()].as_slice()));
    let changed = state.jobs_changed();
    apply(&mut state, [ended(false)]);
    assert_eq!(state.jobs_changed(), changed, "said again it changes nothing");
    // But what would have failed so anywhere does.
    let events = apply(&mut state, [ended(true)]);
    assert!(events.contains(&Event::JobEnded { job: JobId(1), phase: failed.clone() }), "{events:?}");
    // A third one to which this record is handed over believes that too.
    let record = state.job(JobId(1)).unwrap().clone();
    let mut third = StateMachine::default();
    apply(&mut third, [genesis(), submit(1), adopt([(1, record)])]);
    assert_eq!(third.job(JobId(1)).unwrap().phase, failed);
}

#[test]
fn what_is_left_of_a_record_says_whose_failure_it_was() {
    let one = |failure| {
        let mut state = StateMachine::default();
        apply(&mut state, [genesis(), submit(1), end(1, JobPhase::Failed(failure))]);
        // Its record has no room beside these.
        let large = "x".repeat(MAX_LABEL_BYTES);
        for job in 2..200 {
            let mut submit = submit(job);
            if let Command::Submit { label, .. } = &mut submit {
                label.clone_from(&large);
            }
            apply(&mut state, [submit, end(job, JobPhase::Cancelled)]);
        }
        state.tombstones().next().unwrap()
    };
    let (id, tombstone) = one(Failure::Query { message: "no column".to_owned() });
    assert_eq!((id, tombstone.of_the_job, tombstone.freed.why), (JobId(1), true, WhyFreed::Failed));
    let (_, tombstone) = one(Failure::NoneFits { needs: "pandas".to_owned(), looked: "node b".to_owned() });
    assert!(!tombstone.of_the_job);
}

#[test]
fn an_end_that_is_only_known_as_a_tombstone_is_shown_beside_another() {
    let buried = |why| buried(Freed { why, at: at(3) });
    let ends = |state: &StateMachine| {
        let job = state.job(JobId(1)).unwrap();
        (job.phase.clone(), job.other_ends.clone())
    };
    // Here it is known how it ended, there only that.
    let mut state = StateMachine::default();
    apply(&mut state, [genesis(), submit(1), end(1, JobPhase::Cancelled)]);
    let released = bury(buried(WhyFreed::Released));
    apply(&mut state, [released.clone()]);
    assert_eq!(ends(&state), (JobPhase::Cancelled, vec![JobPhase::Succeeded]));
    let changed = state.jobs_changed();
    assert_eq!(changed, state.applied());
    // What agrees with one of them adds nothing.
    apply(&mut state, [released, bury(buried(WhyFreed::Cancelled)), bury(buried(WhyFreed::Expired))]);
    assert_eq!(state.jobs_changed(), changed);
    assert_eq!(StateMachine::restore(&state.snapshot().unwrap()).unwrap(), state);

    // Here only that it ended, there with a result, or a record of another end.
    for (theirs, has_result) in [(succeeded_job(), true), (released_job(), false)] {
        let mut state = StateMachine::default();
        apply(&mut state, [genesis(), bury(buried(WhyFreed::Cancelled))]);
        let events = apply(&mut state, [adopt([(1, theirs.clone())])]);
        assert_eq!(ends(&state), (JobPhase::Succeeded, vec![JobPhase::Cancelled]));
        assert_eq!(state.job(JobId(1)).unwrap().has_result(), has_result);
        let ended = events.iter().any(|event| matches!(event, Event::JobEnded { .. }));
        assert!(!ended, "it has ended before: {events:?}");
        assert_eq!(state.tombstones().count(), 0);
        let changed = state.jobs_changed();
        assert_eq!(changed, state.applied());
        apply(&mut state, [adopt([(1, theirs)])]);
        assert_eq!(state.jobs_changed(), changed);
    }
    // A record of the same end is worth no more than the tombstone.
    let mut state = StateMachine::default();
    apply(&mut state, [genesis(), bury(buried(WhyFreed::Cancelled)), adopt([(1, cancelled_job())])]);
    assert_eq!(state.job(JobId(1)), None);
}

#[test]
fn what_an_era_has_done_is_counted_from_its_log() {
    let mut state = StateMachine::default();
    apply(&mut state, [genesis(), submit(1), done(1, 0, 2, 1)]);
    let worked = state.done_ms();
    assert!(worked > 2, "two tasks of a millisecond, and a job");
    // Said again, under another request, the same runs count once.
    apply(&mut state, [done(1, 0, 2, 1)]);
    assert_eq!(state.done_ms(), worked);
    assert_eq!(StateMachine::restore(&state.snapshot().unwrap()).unwrap().done_ms(), worked);
    state.carry_on(NodeId(2), 40).unwrap();
    assert_eq!(state.done_ms(), 0);
}

#[test]
fn a_forgotten_node_is_no_member_and_never_again_one_in_any_era() {
    let mut state = StateMachine::default();
    let mesh = MeshId(9);
    apply(&mut state, [Command::Genesis { mesh, member: member(1) }, Command::Join { member: member(2) }]);
    let events = apply(&mut state, [Command::Forget { node: NodeId(2) }]);
    assert!(events.contains(&Event::DoorChanged) && events.contains(&Event::MemberLeft { node: NodeId(2) }));
    let back = Member { incarnation: start(7), ..member(2) };
    let refused = outcome(&apply(&mut state, [Command::Join { member: back.clone() }])).unwrap_err();
    assert!(refused.to_string().contains("floe forget"), "{refused}");
    assert!(!state.members().contains_key(&NodeId(2)));
    // One that never was a member can be kept out too; saying it again changes nothing.
    let events =
        apply(&mut state, [Command::Forget { node: NodeId(3) }, Command::Forget { node: NodeId(3) }]);
    assert_eq!((events.len(), outcome(&events)), (1, Ok(())));
    let mut restored = StateMachine::restore(&state.snapshot().unwrap()).unwrap();
    assert!(outcome(&apply(&mut restored, [Command::Join { member: member(3) }])).is_err());
    // What a mesh was told before it was merged into another counts there.
    let mut winner = StateMachine::default();
    apply(
        &mut winner,
        [Command::Genesis { mesh: MeshId(1), member: member(1) }, Command::Join { member: back }],
    );
    let forgotten = state.door().forgotten().iter().copied().collect();
    let adopt = Command::Adopt {
        claim: state.claim().unwrap(),
        ended: vec![],
        jobs: vec![],
        tombstones: vec![],
        forgotten,
        keys: KeyChanges::default(),
    };
    assert_eq!(outcome(&apply(&mut winner, [adopt])), Ok(()));
    assert!(!winner.members().contains_key(&NodeId(2)));
    assert_eq!(winner.door().forgotten(), state.door().forgotten());
}

#[test]
fn the_last_member_is_not_forgotten() {
    let mut state = StateMachine::default();
    let mesh = MeshId(9);
    apply(&mut state, [Command::Genesis { mesh, member: member(1) }, Command::Join { member: member(2) }]);
    assert_eq!(outcome(&apply(&mut state, [Command::Forget { node: NodeId(2) }])), Ok(()));
    let before = state.clone();
    let events = apply(&mut state, [Command::Forget { node: NodeId(1) }]);
    let refused = outcome(&events).unwrap_err();
    assert!(refused.to_string().contains("only member"), "{refused}");
    assert_eq!((state.members(), state.door()), (before.members(), before.door()));
    // Nor where another part of the mesh was told to forget it.
    let adopt = Command::Adopt {
        claim: claim(LOSER),
        ended: vec![],
        jobs: vec![],
        tombstones: vec![],
        forgotten: vec![NodeId(1), NodeId(3)],
        keys: KeyChanges::default(),
    };
    assert_eq!(outcome(&apply(&mut state, [adopt])), Ok(()));
    assert!(state.members().contains_key(&NodeId(1)) && !state.door().forgotten().contains(&NodeId(1)));
    assert!(state.door().forgotten().contains(&NodeId(3)));
    // Once there is another, it can be.
    let commands = [Command::Join { member: member(4) }, Command::Forget { node: NodeId(1) }];
    assert_eq!(outcome(&apply(&mut state, commands)), Ok(()));
}
