//! `simulate --scale`: what a leader's scheduler spends per task and per heartbeat, as the mesh grows. Wall
//! time of this process, on one thread; nothing else is simulated.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use floe_consensus::{Command, Effect, Entry, Event, Input, Now, Scheduler, StateMachine};
use floe_protocol::job::TaskRun;
use floe_protocol::message::{Assignment, Inventory, Report};
use floe_protocol::{
    Era, Exchange, Fence, Freed, Incarnation, JobId, Load, Member, MeshId, NodeId, PeerMessage, Placed, Read,
    RequestId, Stage, StageGraph, StageId, StageInput, Summary, TaskSpec, WallTime, WhyFreed, Work,
};

use super::jobs::made;

/// Nodes in the meshes compared.
const MESHES: [u64; 3] = [10, 100, 1_000];

/// Jobs that run in each, and the tasks of one.
const JOBS: u64 = 12;
const TASKS: usize = 16_384;

/// Tasks a node runs at once.
const SLOTS: u32 = 4;

/// A leader ticks this often for that many tasks: every 50 ms at the rate that is its target.
const TASKS_PER_TICK: u64 = 2_500;

/// Heartbeats measured in each mesh.
const HEARTBEATS: u64 = 100_000;

/// Dispatches a second that a leader is to reach at 1,000 nodes, whatever else waits there.
const TARGET_PER_S: f64 = 50_000.0;

/// Jobs that wait meanwhile, in the last measurement, for more memory than any node has left.
const BLOCKED_JOBS: u64 = 1_000;

/// Partitions that the next task of each of these reads.
const BLOCKED_INPUTS: usize = 200;

/// What each of them has.
const BLOCKED_BYTES: u64 = 1 << 30;

/// The first of these jobs, and the job that keeps every node from being idle.
const FIRST_BLOCKED: u64 = 1_000_000;
const PINNING: u64 = 999_999;

/// What one mesh costs its leader.
struct Cost {
    nodes: u64,
    blocked: u64,
    dispatches: u64,
    dispatching: Duration,
    heartbeat: Duration,
    tick: Duration,
}

/// Measures and prints the table.
#[expect(clippy::print_stdout, reason = "the table is what this is run for")]
pub(super) fn run() -> Result<()> {
    println!(
        "{:>6} {:>13} {:>11} {:>12} {:>15} {:>14} {:>14}",
        "nodes", "jobs blocked", "dispatches", "us/dispatch", "dispatches/s", "us/heartbeat", "us/idle tick"
    );
    let mut costs = Vec::new();
    let largest = MESHES.last().map(|nodes| (*nodes, BLOCKED_JOBS));
    for (nodes, blocked) in MESHES.map(|nodes| (nodes, 0)).into_iter().chain(largest) {
        let cost = measure(nodes, blocked)?;
        println!(
            "{:>6} {:>13} {:>11} {:>12.2} {:>15.0} {:>14.2} {:>14.1}",
            cost.nodes,
            cost.blocked,
            cost.dispatches,
            cost.us_per_dispatch(),
            cost.per_s(),
            us(cost.heartbeat) / HEARTBEATS as f64,
            us(cost.tick)
        );
        costs.push(cost);
    }
    let [.., hundred, thousand, beside_blocked] = costs.as_slice() else { return Ok(()) };
    let verdict = |met: bool| if met { "met" } else { "missed" };
    for cost in [thousand, beside_blocked] {
        let rate = cost.per_s();
        println!(
            "dispatches/s at {} nodes beside {} blocked jobs of {BLOCKED_INPUTS} inputs: {rate:.0}, target at least {TARGET_PER_S:.0}: {}",
            cost.nodes,
            cost.blocked,
            verdict(rate >= TARGET_PER_S)
        );
    }
    let growth = thousand.us_per_dispatch() / hundred.us_per_dispatch();
    let nodes = thousand.nodes as f64 / hundred.nodes as f64;
    println!(
        "cost per dispatch from {} to {} nodes: x{growth:.2}, target at most x{nodes:.0} (linear): {}",
        hundred.nodes,
        thousand.nodes,
        verdict(growth <= nodes)
    );
    Ok(())
}

impl Cost {
    fn us_per_dispatch(&self) -> f64 {
        us(self.dispatching) / self.dispatches as f64
    }

    fn per_s(&self) -> f64 {
        self.dispatches as f64 / self.dispatching.as_secs_f64()
    }
}

fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// A leader, and what it gave its nodes to do.
struct Leader {
    state: StateMachine,
    scheduler: Scheduler,
    now_ms: u64,
    given: VecDeque<(NodeId, Assignment)>,
    spent: Duration,
}

fn measure(nodes: u64, blocked: u64) -> Result<Cost> {
    let era = Era { mesh: MeshId(1), epoch: 1, founder: NodeId(1) };
    let fence = Fence { era, term: 1 };
    let mut state = StateMachine::default();
    for id in 1..=nodes {
        let member = member(id);
        let command = match id {
            1 => Command::Genesis { mesh: era.mesh, member },
            _ => Command::Join { member },
        };
        state.apply(id, &Entry { request: RequestId(u128::from(id)), command });
    }
    let scheduler = Scheduler::new(fence, Now::at(0), &state);
    let mut leader = Leader { state, scheduler, now_ms: 0, given: VecDeque::new(), spent: Duration::ZERO };
    for id in (1..=nodes).map(NodeId) {
        let name = format!("n{}", id.0);
        leader.step(Input::NodeUp { node: id, name, slots: SLOTS, memory_bytes: 64 << 30 });
        let inventory = Inventory {
            fence,
            held: vec![],
            runs: vec![],
            running: vec![],
            reading: Vec::new(),
            submitting: Vec::new(),
            sessions: vec![],
            load: Load::default(),
        };
        leader.step(Input::Inventory { node: id, inventory });
    }
    if blocked > 0 {
        // A task on every node that does not end: what would fit an idle one does not fit.
        leader.submit(JobId(PINNING), vec![scan(nodes as usize)]);
        let pinned: BTreeSet<_> = leader.given.drain(..).map(|(node, _)| node).collect();
        anyhow::ensure!(pinned.len() as u64 == nodes, "not every node has something to do");
        let stages = wide(&pinned);
        // More than a mesh takes on: they are given to the scheduler alone.
        let graph = Arc::new(StageGraph { stages, ..StageGraph::default() });
        for job in (FIRST_BLOCKED..FIRST_BLOCKED + blocked).map(JobId) {
            leader.step(Input::JobAccepted { job, graph: Arc::clone(&graph), owner: job.0 % 100 });
        }
        anyhow::ensure!(leader.given.is_empty(), "a job that is to wait was given to a node");
    }
    leader.spent = Duration::ZERO;
    let mut dispatches = 0;
    for job in 1..=JOBS {
        leader.submit(JobId(job), vec![scan(TASKS)]);
        while let Some((node, assignment)) = leader.given.pop_front() {
            dispatches += 1;
            if dispatches % TASKS_PER_TICK == 0 {
                leader.now_ms += 50;
                leader.step(Input::Tick);
            }
            leader.step(report(node, &assignment, leader.now_ms));
        }
        let status = leader.state.job(JobId(job)).context("the job was refused")?;
        anyhow::ensure!(status.phase.is_terminal(), "job {job} did not end");
        // Its result is not wanted: what it leaves behind is no part of what is measured.
        let freed = Freed { why: WhyFreed::Released, at: WallTime::default() };
        leader.commit(Command::Release { jobs: vec![JobId(job)], freed });
    }
    let dispatching = std::mem::take(&mut leader.spent);
    for heartbeat in 0..HEARTBEATS {
        let node = NodeId(heartbeat % nodes + 1);
        leader.step(Input::Alive { node, fence, load: Load::default() });
    }
    let heartbeat = std::mem::take(&mut leader.spent);
    leader.now_ms += 500;
    leader.step(Input::Tick);
    Ok(Cost { nodes, blocked, dispatches, dispatching, heartbeat, tick: leader.spent })
}

impl Leader {
    /// The scheduler's time counts, and nothing else does.
    fn step(&mut self, input: Input) {
        let start = Instant::now();
        let effects = self.scheduler.step(Now::at(self.now_ms), input);
        self.spent += start.elapsed();
        for effect in effects {
            match effect {
                Effect::Send(node, PeerMessage::Assign(assignment)) => {
                    self.given.push_back((node, *assignment));
                }
                Effect::Propose(command) => self.commit(command),
                Effect::Send(..) | Effect::NodeLost(_) => {}
            }
        }
    }

    fn submit(&mut self, job: JobId, stages: Vec<Stage>) {
        let graph = StageGraph { stages, ..StageGraph::default() };
        self.commit(Command::Submit {
            job,
            label: String::new(),
            graph,
            owner: job.0,
            submitted_at: WallTime::default(),
        });
    }

    fn commit(&mut self, command: Command) {
        let index = self.state.applied() + 1;
        let entry = Entry { request: RequestId(u128::from(index)), command };
        let events: Vec<Event> = self.state.apply(index, &entry);
        for input in events.iter().filter_map(Input::from_event) {
            self.step(input);
        }
    }
}

/// A stage of so many tasks that read no other.
fn scan(tasks: usize) -> Stage {
    Stage {
        id: StageId(0),
        work: Work::Fragment(Bytes::from_static(b"fragment")),
        inputs: vec![],
        exchange: Exchange::Gather,
        tasks: vec![TaskSpec::default(); tasks],
        operators: vec![],
        single_because: None,
        seen_by: vec![],
        unseen_by: vec![],
    }
}

/// One task that reads many partitions that came with the submission.
fn wide(holders: &BTreeSet<NodeId>) -> Vec<Stage> {
    let summary = Summary { rows: 1, bytes: BLOCKED_BYTES, mark: 0 };
    let placed = holders.iter().zip(holders.iter().cycle().skip(1)).cycle().take(BLOCKED_INPUTS);
    let held = placed.map(|(one, other)| Placed { nodes: vec![*one, *other], summary }).collect();
    let frames = Stage { work: Work::Held(held), ..scan(BLOCKED_INPUTS) };
    let inputs = vec![StageInput { stage: StageId(0), read: Read::All }];
    vec![frames, Stage { id: StageId(1), inputs, ..scan(1) }]
}

fn report(node: NodeId, assignment: &Assignment, now_ms: u64) -> Input {
    let Assignment { attempt, fence, .. } = *assignment;
    let run = TaskRun {
        stage: attempt.task.stage,
        partition: attempt.task.partition,
        node,
        started_at: WallTime::from_unix_ms(now_ms),
        elapsed_ms: 50,
    };
    let report = Report { fence, attempt, outcome: Ok(made(assignment)), run };
    Input::Report { node, report }
}

fn member(id: u64) -> Member {
    Member {
        id: NodeId(id),
        peer: format!("peer-{id}"),
        name: format!("n{id}"),
        addresses: vec![],
        slots: SLOTS,
        memory_bytes: 64 << 30,
        version: "0.1.0".to_owned(),
        incarnation: Incarnation::default(),
    }
}
