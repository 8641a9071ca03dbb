//! Scheduling: golden scripts, and a small world in which nodes and leaders die at random.

use std::error::Error;
use std::fmt::Write as _;

use bytes::Bytes;
use floe_consensus::Command;
use floe_consensus::scheduler::{Input, MAX_DEATHS, ORPHAN_MS, RECONCILE_MS};
use floe_consensus::state_machine::StageOutputs;
use floe_protocol::{
    AttemptId, Failure, Freed, JobId, JobPhase, NodeId, OutputMeta, Placed, StageId, TaskId, WallTime,
    WhyFreed, Work,
};
use goldenscript::Context;
use proptest::prelude::*;

use crate::cluster::cancel;
use crate::world::{World, graph, job, made};

#[test]
fn scripts() {
    crate::run_scripts("scheduler", || Runner(World::new()));
}

struct Runner(World);

#[derive(goldenscript::Command)]
enum ScriptCommand {
    /// Nodes join and connect.
    Nodes {
        ids: Vec<u64>,
        #[arg(key)]
        slots: Option<u32>,
        #[arg(key)]
        mib: Option<u64>,
    },
    /// A driver's job is accepted; one line a stage (see `world::graph`).
    Submit {
        id: u64,
        stages: Vec<String>,
        #[arg(key)]
        by: Option<u64>,
    },
    /// Tasks end well, `job/stage/partition`. On the node of their oldest attempt unless one is named.
    Done {
        tasks: Vec<String>,
        #[arg(key)]
        on: Option<u64>,
        #[arg(key)]
        mib: Option<u64>,
    },
    /// A task fails: query, exhausted, internal, crashed, exception, blind, unfit, planless, or lost with the partition and its
    /// node.
    Fail {
        task: String,
        kind: String,
        #[arg(key)]
        partition: Option<String>,
        #[arg(key)]
        node: Option<u64>,
        #[arg(key)]
        needs: Option<String>,
        #[arg(key)]
        why: Option<String>,
        #[arg(key)]
        on: Option<u64>,
    },
    /// Attempts end as they would in truth until none runs.
    Finish,
    /// Time passes.
    Pass(u64),
    /// More time, of which the regular questions are not told.
    Minutes(u64),
    Up(u64),
    Down(u64),
    Kill(u64),
    /// A node leaves in good order, and stops.
    Leave(u64),
    /// A node stays connected and answers nothing.
    Silence(u64),
    /// It answers again.
    Speak(u64),
    /// The disks of these nodes are nearly full from now on.
    Short(Vec<u64>),
    /// They have room again.
    Ample(Vec<u64>),
    /// A new leader.
    Elect,
    /// Another era ended in this one, which ran the same job.
    Share(u64),
    Cancel(u64),
    Release(u64),
    /// Nodes have stored what came with a job.
    Store {
        job: u64,
        nodes: Vec<u64>,
    },
    /// Nodes are submitting a job that nobody knows, of which these hold a partition.
    Arrive {
        job: u64,
        nodes: Vec<u64>,
    },
    /// No node submits a job any more.
    Arrived(u64),
    /// A driver connects to a node, and to no other, for its standing job; to none if none is named.
    Attend {
        job: u64,
        node: Option<u64>,
    },
    /// Drivers read a job's result through a node, or do so no more if none is named.
    Read {
        job: u64,
        node: Option<u64>,
    },
    /// A driver says that its standing job is over.
    Close(u64),
    /// Whether proposals get lost.
    Deaf(bool),
    /// What jobs and nodes look like.
    Status,
}

/// What a driver's node proposes when the driver is done with its calls.
fn close(id: u64) -> Command {
    Command::StageDone {
        job: job(id),
        stage: StageId(0),
        outputs: StageOutputs::whole(vec![Placed::default()]),
        more_ms: 0,
        runs: vec![],
        ended_at: WallTime::from_unix_ms(9),
    }
}

fn release(jobs: Vec<JobId>) -> Command {
    let freed = Freed { why: WhyFreed::Released, at: WallTime::from_unix_ms(9) };
    Command::Release { jobs, freed }
}

fn task(text: &str) -> TaskId {
    let parts: Vec<u64> = text.split('/').map(|part| part.parse().unwrap()).collect();
    TaskId { job: job(parts[0]), stage: StageId(parts[1] as u32), partition: parts[2] as u32 }
}

impl Runner {
    fn set_short(&mut self, ids: &[u64], short: bool) -> Result<(), &'static str> {
        for id in ids {
            self.0.workers.get_mut(id).ok_or("no such node")?.disk_short = short;
        }
        Ok(())
    }

    /// The oldest attempt at a task, and where it runs. Says so if there is none.
    fn attempt(&mut self, text: &str, on: Option<u64>) -> Option<(u64, AttemptId)> {
        let task = task(text);
        let mut attempts = self.0.attempts();
        attempts.retain(|(node, attempt)| attempt.task == task && on.is_none_or(|on| on == *node));
        attempts.sort_by_key(|(_, attempt)| attempt.attempt);
        if attempts.is_empty() {
            writeln!(self.0.story, "{text} does not run").unwrap();
        }
        attempts.first().copied()
    }
}

impl goldenscript::Runner for Runner {
    type Command = ScriptCommand;

    fn run(&mut self, command: &ScriptCommand, _: &Context) -> Result<String, Box<dyn Error>> {
        match command {
            ScriptCommand::Nodes { ids, slots, mib } => {
                for id in ids {
                    self.0.add(*id, slots.unwrap_or(2), mib.unwrap_or(1024) << 20);
                }
            }
            ScriptCommand::Submit { id, stages, by } => {
                let submit = Command::Submit {
                    job: job(*id),
                    label: "q".to_owned(),
                    graph: graph(stages),
                    owner: by.unwrap_or(1),
                    submitted_at: WallTime::from_unix_ms(self.0.now_ms),
                };
                self.0.commit(submit);
            }
            ScriptCommand::Done { tasks, on, mib } => {
                for text in tasks {
                    let Some((node, attempt)) = self.attempt(text, *on) else { continue };
                    let assignment = &self.0.workers[&node].running[&attempt];
                    let meta = made(assignment, mib.map_or(100, |mib| mib << 20));
                    self.0.report(node, attempt, Ok(meta));
                }
            }
            ScriptCommand::Fail { task: text, kind, partition, node: holder, needs, why, on } => {
                let found = self.attempt(text, *on);
                let message = || "out of luck".to_owned();
                let failure = match kind.as_str() {
                    "query" => Failure::Query { message: message() },
                    "exhausted" => Failure::Exhausted { what: "memory".to_owned(), message: message() },
                    "internal" => Failure::Internal { message: message() },
                    "crashed" => Failure::Crashed {
                        name: "area".to_owned(),
                        how: "was killed by signal 11 (SIGSEGV)".to_owned(),
                        output: String::new(),
                    },
                    "exception" => Failure::Exception {
                        name: "area".to_owned(),
                        message: "ValueError: out of luck".to_owned(),
                        traceback: String::new(),
                        exception: Bytes::new(),
                    },
                    "unfit" => Failure::Unfit {
                        needs: needs.clone().unwrap_or_else(|| "pandas 2.2.3".to_owned()),
                        why: why.clone().ok_or("why?")?,
                    },
                    "blind" => {
                        Failure::Blind { path: "/data/x.csv".to_owned(), why: "no such file".to_owned() }
                    }
                    "planless" => Failure::SubmissionLost { partition: None, node: NodeId(0) },
                    "lost" => Failure::InputLost {
                        partition: task(partition.as_deref().ok_or("which partition?")?),
                        node: NodeId(holder.ok_or("which node?")?),
                    },
                    other => return Err(format!("what is `{other}`?").into()),
                };
                if let Some((node, attempt)) = found {
                    self.0.report(node, attempt, Err(failure));
                }
            }
            ScriptCommand::Finish => {
                while let Some((node, attempt)) = self.0.attempts().first().copied() {
                    self.0.run_out(node, attempt);
                }
            }
            ScriptCommand::Pass(ms) => self.0.pass(*ms),
            ScriptCommand::Minutes(minutes) => {
                self.0.pass(minutes * 60_000);
                let told = std::mem::take(&mut self.0.story);
                let told = told.lines().filter(|line| !line.ends_with("inventory?"));
                self.0.story = told.map(|line| format!("{line}\n")).collect();
            }
            ScriptCommand::Up(id) => self.0.up(*id),
            ScriptCommand::Down(id) => self.0.down(*id),
            ScriptCommand::Kill(id) => self.0.kill(*id),
            ScriptCommand::Leave(id) => self.0.leave(*id),
            ScriptCommand::Silence(id) => self.0.workers.get_mut(id).ok_or("no such node")?.silent = true,
            ScriptCommand::Speak(id) => self.0.workers.get_mut(id).ok_or("no such node")?.silent = false,
            ScriptCommand::Short(ids) => self.set_short(ids, true)?,
            ScriptCommand::Ample(ids) => self.set_short(ids, false)?,
            ScriptCommand::Elect => self.0.elect(),
            ScriptCommand::Share(id) => self.0.step(Input::JobShared { job: job(*id) }),
            ScriptCommand::Cancel(id) => drop(self.0.commit(cancel(*id))),
            ScriptCommand::Release(id) => drop(self.0.commit(release(vec![job(*id)]))),
            ScriptCommand::Store { job: id, nodes } => {
                let work =
                    self.0.state.job(job(*id)).and_then(|job| job.work.clone()).ok_or("no such job")?;
                for stage in &work.graph.stages {
                    let Work::Held(placed) = &stage.work else { continue };
                    for (partition, placed) in (0..).zip(placed) {
                        let task = TaskId { job: job(*id), stage: stage.id, partition };
                        for node in nodes {
                            let worker = self.0.workers.get_mut(node).ok_or("no such node")?;
                            worker.held.insert(task, crate::world::meta(1, placed.summary.bytes));
                        }
                    }
                }
            }
            ScriptCommand::Arrive { job: id, nodes } => {
                let task = TaskId { job: job(*id), stage: StageId(0), partition: 0 };
                for node in nodes {
                    let worker = self.0.workers.get_mut(node).ok_or("no such node")?;
                    worker.held.insert(task, OutputMeta::default());
                    worker.submitting.insert(job(*id));
                }
            }
            ScriptCommand::Arrived(id) => {
                for worker in self.0.workers.values_mut() {
                    worker.submitting.remove(&job(*id));
                }
            }
            ScriptCommand::Attend { job: id, node } => {
                for (worker_id, worker) in &mut self.0.workers {
                    worker.sessions.remove(&job(*id));
                    worker.sessions.extend((Some(*worker_id) == *node).then_some(job(*id)));
                }
            }
            ScriptCommand::Read { job: id, node } => {
                for (worker_id, worker) in &mut self.0.workers {
                    worker.reading.remove(&job(*id));
                    worker.reading.extend((Some(*worker_id) == *node).then_some(job(*id)));
                }
            }
            ScriptCommand::Close(id) => drop(self.0.commit(close(*id))),
            ScriptCommand::Deaf(deaf) => self.0.deaf = *deaf,
            ScriptCommand::Status => status(&mut self.0)?,
        }
        self.0.check();
        Ok(std::mem::take(&mut self.0.story))
    }
}

fn status(world: &mut World) -> std::fmt::Result {
    let scheduler = &world.scheduler;
    for (id, state) in world.state.jobs() {
        let live = scheduler.progress(*id);
        write!(world.story, "job {} {}:", id.0, state.phase.name())?;
        for stage in live.as_ref().unwrap_or(&state.stages) {
            write!(world.story, " {} {}/{}", stage.name, stage.done, stage.tasks)?;
            if stage.running > 0 {
                write!(world.story, " ({} running)", stage.running)?;
            }
        }
        match scheduler.waits_for(*id) {
            Some(waits_for) => writeln!(world.story, "; it {waits_for}")?,
            None => writeln!(world.story)?,
        }
    }
    for (id, worker) in &world.workers {
        let alive = if scheduler.is_alive(NodeId(*id)) { "alive" } else { "gone" };
        writeln!(world.story, "n{id} {alive} runs {} holds {}", worker.running.len(), worker.held.len())?;
    }
    Ok(())
}

/// What may happen to the small world.
#[derive(Clone, Debug)]
enum Fate {
    RunOut(prop::sample::Index),
    Fail(prop::sample::Index),
    Unfit(prop::sample::Index),
    Pass(u64),
    Kill(u64),
    Cut(u64),
    Silence(u64),
    Up(u64),
    Elect,
    Deaf(bool),
}

fn fate() -> impl Strategy<Value = Fate> {
    let node = 1..5_u64;
    prop_oneof![
        12 => any::<prop::sample::Index>().prop_map(Fate::RunOut),
        1 => any::<prop::sample::Index>().prop_map(Fate::Fail),
        1 => any::<prop::sample::Index>().prop_map(Fate::Unfit),
        4 => (1..40_u64).prop_map(|n| Fate::Pass(n * 100)),
        1 => node.clone().prop_map(Fate::Kill),
        1 => node.clone().prop_map(Fate::Cut),
        1 => node.clone().prop_map(Fate::Silence),
        2 => node.prop_map(Fate::Up),
        1 => Just(Fate::Elect),
        1 => any::<bool>().prop_map(Fate::Deaf),
    ]
}

/// Graphs of the usual shapes.
fn shapes() -> impl Strategy<Value = Vec<String>> {
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    prop::sample::select(vec![
        lines(&["scan x4", "gather x1 all 0"]),
        lines(&["scan x6", "agg x3 bucket 0", "gather x1 all 1"]),
        lines(&["scan x3", "filter x3 part 0", "agg x2 bucket 1"]),
        lines(&["scan x2", "scan x3", "join x2 bucket 0 all 1", "sort x2 part 2", "top x1 all 3"]),
        lines(&[
            "map x5 call f",
            "merge x3 group 0/2 call g",
            "merge x2 group 1/2 call g",
            "merge x1 group 2/2",
        ]),
        lines(&["scan x4", "map x4 part 0 call f", "merge x2 group 1/3 call g"]),
        lines(&["calls x1"]),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever dies, every job ends, with every partition of its result where the mesh believes it to be.
    #[test]
    fn every_job_ends_with_its_whole_result(
        jobs in prop::collection::vec(shapes(), 1..4),
        fates in prop::collection::vec(fate(), 0..80),
    ) {
        let mut world = World::new();
        (1..5).for_each(|id| world.add(id, 2, 64 << 20));
        for (number, stages) in jobs.iter().enumerate() {
            let submit = Command::Submit {
                job: job(number as u64),
                label: String::new(),
                graph: graph(stages),
                owner: 1, submitted_at: WallTime::from_unix_ms(0),
            };
            world.commit(submit);
        }
        let (mut losses, mut failures, mut unfit) = (0, 0, 0);
        for fate in fates {
            let attempts = world.attempts();
            match fate {
                Fate::RunOut(index) if !attempts.is_empty() => {
                    let (node, attempt) = *index.get(&attempts);
                    world.run_out(node, attempt);
                }
                Fate::Fail(index) if !attempts.is_empty() && failures < 3 => {
                    failures += 1;
                    let (node, attempt) = *index.get(&attempts);
                    world.report(node, attempt, Err(Failure::internal("a fault")));
                }
                Fate::Unfit(index) if !attempts.is_empty() => {
                    unfit += 1;
                    let (node, attempt) = *index.get(&attempts);
                    let (needs, why) = ("luck".to_owned(), "there is none".to_owned());
                    world.report(node, attempt, Err(Failure::Unfit { needs, why }));
                }
                Fate::RunOut(_) | Fate::Fail(_) | Fate::Unfit(_) => {}
                Fate::Pass(ms) => world.pass(ms),
                Fate::Kill(id) => { losses += 1; world.kill(id); }
                Fate::Cut(id) => { losses += 1; world.down(id); }
                Fate::Silence(id) => { losses += 1; world.workers.get_mut(&id).unwrap().silent = true; }
                Fate::Up(id) => world.up(id),
                Fate::Elect => world.elect(),
                Fate::Deaf(deaf) => world.deaf = deaf,
            }
            world.check();
        }
        // All is well again: what is left must come to an end.
        world.deaf = false;
        (1..5).for_each(|id| world.up(id));
        for _ in 0..2_000 {
            if world.state.jobs().values().all(|job| job.phase.is_terminal()) {
                break;
            }
            match world.attempts().first().copied() {
                Some((node, attempt)) => world.run_out(node, attempt),
                None => world.pass(1_000),
            }
            world.check();
        }
        world.pass(5_000);
        let standing = |id: floe_protocol::JobId| jobs[id.0 as usize][0].starts_with("calls");
        let calls = |id: floe_protocol::JobId| jobs[id.0 as usize].iter().any(|stage| stage.contains("call "));
        for (id, state) in world.state.jobs() {
            match &state.phase {
                JobPhase::Succeeded => {}
                JobPhase::Failed(Failure::Refused { message }) if losses >= MAX_DEATHS => {
                    let given_up = message.contains("went away") && calls(*id);
                    prop_assert!(given_up || standing(*id), "{}", message);
                    continue;
                }
                // Nobody attends them.
                JobPhase::Failed(Failure::Refused { message }) if standing(*id) => {
                    prop_assert!(message.contains("its driver is gone"), "{}", message);
                }
                JobPhase::Failed(Failure::NoneFits { looked, .. }) if unfit > 0 => {
                    prop_assert!(looked.contains("there is none"), "{}", looked);
                }
                other => prop_assert!(false, "job {} is {:?}\n{}", id.0, other, world.story),
            }
        }
        // Lost results of jobs that had succeeded are made anew.
        for _ in 0..2_000 {
            match world.attempts().first().copied() {
                Some((node, attempt)) => world.run_out(node, attempt),
                None => break,
            }
        }
        for (id, state) in world.state.jobs() {
            let Some(work) = &state.work else { continue };
            let result = work.outputs.last().unwrap().as_ref().expect("a succeeded job has a result");
            for (partition, placed) in result.placed.iter().enumerate() {
                let stage = StageId(work.outputs.len() as u32 - 1);
                let task = TaskId { job: *id, stage, partition: partition as u32 };
                for node in &placed.nodes {
                    let held = world.workers[&node.0].held.contains_key(&task);
                    prop_assert!(held, "n{} lacks {}\n{}", node.0, task, world.story);
                }
            }
        }
        // And what is released is freed everywhere, in time on nodes that were away too.
        let all: Vec<_> = world.state.jobs().keys().copied().collect();
        world.commit(release(all));
        world.pass(ORPHAN_MS + RECONCILE_MS + 1_000);
        for (id, worker) in &world.workers {
            let left = worker.held.len() + worker.running.len();
            prop_assert_eq!(left, 0, "n{} holds {:?} still\n{}", id, worker.held.keys(), world.story);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    /// However much a task takes, it runs in the end: small ones that keep coming give way, in whatever order they end.
    #[test]
    fn large_tasks_run_beside_small_ones_that_keep_coming(
        large in prop::collection::vec((1..4_u32, 1..200_u64), 1..5),
        ends in prop::collection::vec(any::<prop::sample::Index>(), 64),
    ) {
        let mut world = World::new();
        (1..4).for_each(|id| world.add(id, 2, 64 << 20));
        let submit = |world: &mut World, number: u64, stage: String| {
            world.commit(Command::Submit {
                job: job(number),
                label: String::new(),
                graph: graph(&[stage]),
                owner: 1, submitted_at: WallTime::from_unix_ms(0),
            });
        };
        let mut small = 1_000..;
        for (number, (tasks, mib)) in large.iter().enumerate() {
            submit(&mut world, number as u64, format!("scan x{tasks} bytes {}", mib << 20));
        }
        let is_done = |world: &World, number: usize| {
            world.state.job(job(number as u64)).is_some_and(|job| job.phase == JobPhase::Succeeded)
        };
        for round in 0_usize.. {
            // More wait than there are slots.
            while world.state.jobs().values().filter(|job| !job.phase.is_terminal()).count() < 40 {
                submit(&mut world, small.next().unwrap(), "scan x1".to_owned());
            }
            if (0..large.len()).all(|number| is_done(&world, number)) {
                break;
            }
            prop_assert!(round < 3_000, "a large task never runs\n{}", world.story);
            world.pass(100);
            let attempts = world.attempts();
            // Another one each time that the numbers begin anew, since every task ends at some time.
            let at = ends[round % ends.len()].index(attempts.len()) + round / ends.len();
            let (node, attempt) = attempts[at % attempts.len()];
            world.run_out(node, attempt);
            world.check();
            world.story.clear();
        }
    }
}

/// A thousand nodes and many tasks: no decision looks at all of either, or this would not end.
#[test]
fn a_large_mesh_is_scheduled_to_the_end() {
    let mut world = World::new();
    for id in 1..=1_000 {
        world.add(id, 8, 64 << 30);
    }
    let graph = graph(&["scan x2000".to_owned(), "filter x2000 part 0".to_owned()]);
    for number in 0..10 {
        let submit = Command::Submit {
            job: job(number),
            label: String::new(),
            graph: graph.clone(),
            owner: 1,
            submitted_at: WallTime::from_unix_ms(0),
        };
        world.commit(submit);
    }
    let mut done = 0;
    loop {
        let attempts = world.attempts();
        if attempts.is_empty() {
            break;
        }
        for (node, attempt) in attempts {
            world.run_out(node, attempt);
            done += 1;
        }
        world.story.clear();
    }
    assert_eq!(done, 40_000);
    assert!(world.state.jobs().values().all(|job| job.phase == JobPhase::Succeeded));
    assert_eq!(world.scheduler.progress(job(0)), None);
}
