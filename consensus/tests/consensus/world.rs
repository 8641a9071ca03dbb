//! A leader's scheduler and its workers in memory: workers hold what they were told to make, until they die.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use bytes::Bytes;
use floe_consensus::scheduler::QUEUE_AHEAD;
use floe_consensus::{Command, Effect, Entry, Event, Input, Now, Scheduler, StateMachine};
use floe_protocol::graph::BucketMeta;
use floe_protocol::job::TaskRun;
use floe_protocol::message::{Assignment, Inventory, Report};
use floe_protocol::{
    AttemptId, Exchange, Failure, Fence, JobId, JobPhase, Load, NodeId, OutputMeta, PeerMessage, Placed,
    Read, RequestId, Stage, StageGraph, StageId, StageInput, TaskId, TaskSpec, WallTime, Work,
};

use crate::cluster::{ERA, MESH, member};

/// A mesh as the scheduler sees it.
pub(crate) struct World {
    pub(crate) now_ms: u64,
    pub(crate) term: u64,
    pub(crate) state: StateMachine,
    pub(crate) scheduler: Scheduler,
    /// Inputs not yet given to the scheduler, the one at work in front.
    inputs: VecDeque<Input>,
    pub(crate) workers: BTreeMap<u64, Worker>,
    /// Proposals are lost on their way.
    pub(crate) deaf: bool,
    /// What happened since it was last taken.
    pub(crate) story: String,
}

/// One worker.
#[derive(Default)]
pub(crate) struct Worker {
    pub(crate) slots: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) connected: bool,
    /// It answers nothing, though it is connected.
    pub(crate) silent: bool,
    /// Its disk is nearly full.
    pub(crate) disk_short: bool,
    pub(crate) running: BTreeMap<AttemptId, Assignment>,
    pub(crate) held: BTreeMap<TaskId, OutputMeta>,
    /// Standing jobs whose drivers are connected to it.
    pub(crate) sessions: BTreeSet<JobId>,
    /// Jobs whose results drivers read through it.
    pub(crate) reading: BTreeSet<JobId>,
    /// Jobs that drivers submit through it.
    pub(crate) submitting: BTreeSet<JobId>,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut state = StateMachine::default();
        let genesis = Command::Genesis { mesh: MESH, member: member(1) };
        state.apply(1, &Entry { request: RequestId(1), command: genesis });
        let scheduler = Scheduler::new(Fence { era: ERA, term: 1 }, Now::at(0), &state);
        Self {
            now_ms: 0,
            term: 1,
            state,
            scheduler,
            inputs: VecDeque::new(),
            workers: BTreeMap::new(),
            deaf: false,
            story: String::new(),
        }
    }

    /// A node becomes a member and connects.
    pub(crate) fn add(&mut self, id: u64, slots: u32, memory_bytes: u64) {
        self.workers.insert(id, Worker { slots, memory_bytes, ..Worker::default() });
        self.up(id);
    }

    /// It connects (anew), and answers.
    pub(crate) fn up(&mut self, id: u64) {
        self.commit(Command::Join { member: member(id) });
        let worker = self.workers.get_mut(&id).unwrap();
        (worker.connected, worker.silent) = (true, false);
        self.connected(id);
    }

    fn connected(&mut self, id: u64) {
        let worker = &self.workers[&id];
        let input = Input::NodeUp {
            node: NodeId(id),
            name: format!("n{id}"),
            slots: worker.slots,
            memory_bytes: worker.memory_bytes,
        };
        self.step(input);
    }

    /// The connection is lost; the worker goes on.
    pub(crate) fn down(&mut self, id: u64) {
        self.workers.get_mut(&id).unwrap().connected = false;
        self.step(Input::NodeDown { node: NodeId(id) });
    }

    /// The worker dies with all it holds and runs, and drivers lose it.
    pub(crate) fn kill(&mut self, id: u64) {
        let worker = self.workers.get_mut(&id).unwrap();
        worker.running.clear();
        worker.held.clear();
        worker.sessions.clear();
        worker.reading.clear();
        worker.submitting.clear();
        self.down(id);
    }

    /// The worker says that it goes, and then dies with what it runs: what it holds is on its disk.
    pub(crate) fn leave(&mut self, id: u64) {
        self.commit(Command::Leave { node: NodeId(id) });
        let worker = self.workers.get_mut(&id).unwrap();
        worker.running.clear();
        worker.sessions.clear();
        worker.reading.clear();
        worker.submitting.clear();
        self.down(id);
    }

    /// Another node is elected and starts from the replicated state.
    pub(crate) fn elect(&mut self) {
        self.term += 1;
        self.scheduler =
            Scheduler::new(Fence { era: ERA, term: self.term }, Now::at(self.now_ms), &self.state);
        let ids: Vec<_> = self.workers.iter().map(|(id, worker)| (*id, worker.connected)).collect();
        for (id, connected) in ids {
            if connected {
                self.connected(id);
            } else {
                self.step(Input::NodeDown { node: NodeId(id) });
            }
        }
    }

    /// Time passes in steps of 100 ms, each with a tick.
    pub(crate) fn pass(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(100) {
            self.now_ms += 100;
            self.step(Input::Tick);
        }
    }

    /// An attempt ends on a worker as it says itself.
    pub(crate) fn report(&mut self, id: u64, attempt: AttemptId, outcome: Result<OutputMeta, Failure>) {
        let worker = self.workers.get_mut(&id).unwrap();
        let Some(assignment) = worker.running.remove(&attempt) else { return };
        if let Ok(meta) = &outcome {
            worker.held.insert(attempt.task, meta.clone());
        }
        let run = TaskRun {
            stage: attempt.task.stage,
            partition: attempt.task.partition,
            node: NodeId(id),
            started_at: WallTime::from_unix_ms(self.now_ms),
            elapsed_ms: 100,
        };
        if self.workers[&id].connected && !self.workers[&id].silent {
            let report = Report { fence: assignment.fence, attempt, outcome, run };
            self.step(Input::Report { node: NodeId(id), report });
        }
    }

    /// An attempt ends as it would in truth: if one of its inputs cannot be read, with that.
    pub(crate) fn run_out(&mut self, id: u64, attempt: AttemptId) {
        let assignment = &self.workers[&id].running[&attempt];
        let reachable = |node: &NodeId, task: &TaskId| {
            self.workers.get(&node.0).is_some_and(|worker| worker.connected && worker.held.contains_key(task))
        };
        let segments = assignment.inputs.iter().flat_map(|read| read.segments(attempt.task.job));
        let lost = segments
            .into_iter()
            .find(|segment| !segment.nodes.iter().any(|node| reachable(node, &segment.partition)));
        let outcome = match lost {
            Some(segment) => Err(Failure::InputLost { partition: segment.partition, node: segment.nodes[0] }),
            None => Ok(made(assignment, 100)),
        };
        self.report(id, attempt, outcome);
    }

    /// Puts a command through the log, unless proposals are lost.
    pub(crate) fn commit(&mut self, command: Command) -> Vec<Event> {
        let index = self.state.applied() + 1;
        let events = self.state.apply(index, &Entry { request: RequestId(index.into()), command });
        for event in &events {
            match event {
                Event::JobEnded { job, phase: JobPhase::Failed(failure) } => {
                    writeln!(self.story, "job {} failed: {}", job.0, short(&failure.to_string())).unwrap();
                }
                Event::JobEnded { job, phase } => {
                    writeln!(self.story, "job {} {}", job.0, phase.name()).unwrap()
                }
                _ => {}
            }
            if let Some(input) = Input::from_event(event) {
                self.step(input);
            }
        }
        events
    }

    /// Gives the scheduler an input, and whatever comes of it, one after the other.
    pub(crate) fn step(&mut self, input: Input) {
        self.inputs.push_back(input);
        if self.inputs.len() > 1 {
            return;
        }
        while let Some(input) = self.inputs.front().cloned() {
            for effect in self.scheduler.step(Now::at(self.now_ms), input) {
                match effect {
                    Effect::Send(node, message) => self.receive(node.0, message),
                    Effect::Propose(command) => {
                        writeln!(self.story, "propose {}", describe(&command)).unwrap();
                        if !self.deaf {
                            self.commit(command);
                        }
                    }
                    Effect::NodeLost(node) => writeln!(self.story, "n{} is lost", node.0).unwrap(),
                }
            }
            self.inputs.pop_front();
        }
    }

    fn receive(&mut self, id: u64, message: PeerMessage) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let lost = if !worker.connected || worker.silent { " (lost)" } else { "" };
        let load =
            Load { running: worker.running.len() as u32, disk_short: worker.disk_short, ..Load::default() };
        match message {
            PeerMessage::Assign(assignment) => {
                let text = describe_assignment(&assignment);
                writeln!(self.story, "n{id} <- run {text}{lost}").unwrap();
                if lost.is_empty() {
                    worker.running.insert(assignment.attempt, *assignment);
                    let limit = worker.slots + QUEUE_AHEAD;
                    assert!(worker.running.len() <= limit as usize, "n{id} has more than it can queue");
                }
            }
            PeerMessage::Abort { attempts, .. } => {
                for attempt in attempts {
                    writeln!(self.story, "n{id} <- abort {}{lost}", name(attempt)).unwrap();
                    if lost.is_empty() {
                        worker.running.remove(&attempt);
                    }
                }
            }
            PeerMessage::Free { jobs, .. } => {
                for job in jobs {
                    writeln!(self.story, "n{id} <- free {}{lost}", job.0).unwrap();
                    if lost.is_empty() {
                        worker.held.retain(|task, _| task.job != job);
                    }
                }
            }
            PeerMessage::Copy { partition, to, .. } => {
                writeln!(self.story, "n{id} <- copy {} to n{}{lost}", task_name(partition), to.0).unwrap();
                let meta = worker.held.get(&partition).cloned();
                if let (true, Some(meta)) = (lost.is_empty(), meta) {
                    self.workers.get_mut(&to.0).unwrap().held.insert(partition, meta);
                    self.step(Input::Copied { partition, node: to, done: true });
                }
            }
            PeerMessage::AskInventory { fence } => {
                writeln!(self.story, "n{id} <- inventory?{lost}").unwrap();
                if lost.is_empty() {
                    let held = worker.held.iter().map(|(task, meta)| (*task, meta.summary())).collect();
                    let running = worker.running.keys().copied().collect();
                    let sessions = worker.sessions.iter().copied().collect();
                    let reading = worker.reading.iter().copied().collect();
                    let inventory = Inventory {
                        fence,
                        held,
                        runs: vec![],
                        running,
                        sessions,
                        reading,
                        submitting: worker.submitting.iter().copied().collect(),
                        load,
                    };
                    self.step(Input::Inventory { node: NodeId(id), inventory });
                }
            }
            PeerMessage::Lease { fence } if lost.is_empty() => {
                self.step(Input::Alive { node: NodeId(id), fence, load });
            }
            _ => {}
        }
    }

    /// Every attempt that runs anywhere.
    pub(crate) fn attempts(&self) -> Vec<(u64, AttemptId)> {
        let of = |(id, worker): (&u64, &Worker)| {
            worker.running.keys().map(|attempt| (*id, *attempt)).collect::<Vec<_>>()
        };
        self.workers.iter().flat_map(of).collect()
    }

    /// What cannot be at any time, whatever happened.
    pub(crate) fn check(&self) {
        for (id, worker) in &self.workers {
            let tasks: BTreeSet<_> = worker.running.keys().map(|attempt| attempt.task).collect();
            assert_eq!(tasks.len(), worker.running.len(), "n{id} runs a task twice\n{}", self.story);
            let reserved: u64 = worker.running.values().map(|assignment| assignment.memory_bytes).sum();
            let fits = worker.running.len() <= 1 || reserved <= worker.memory_bytes;
            assert!(fits, "n{id} has {reserved} bytes reserved of {}\n{}", worker.memory_bytes, self.story);
        }
    }
}

/// Every bucket with this many bytes, and a row for each.
pub(crate) fn meta(buckets: u32, bytes: u64) -> OutputMeta {
    OutputMeta { buckets: vec![BucketMeta { rows: bytes, bytes }; buckets as usize], mark: 0 }
}

/// What a task makes.
pub(crate) fn made(assignment: &Assignment, bytes: u64) -> OutputMeta {
    OutputMeta { mark: assignment.mark, ..meta(assignment.buckets, bytes) }
}

/// A graph from one line a stage:
///
/// ```text
///   scan x4 seen 1-2 unseen 3 bytes 1000      four tasks over files that nodes 1 and 2 see and 3 does not
///   agg x2 bucket 0                           two tasks, each reading its bucket of stage 0
///   join x2 part 0 all 1                      reading one partition of stage 0 and all of stage 1
///   held x2 at 1                              two partitions that came with the submission and lie on node 1
///   map x4 call area                          four tasks that call a function
///   merge x2 group 0/3 call sum               two more, each reading three partitions of stage 0
///   calls x1                                  a driver's calls
/// ```
///
/// The number of buckets of a stage follows from who reads it.
pub(crate) fn graph(lines: &[String]) -> StageGraph {
    let mut stages: Vec<Stage> = Vec::new();
    let nodes = |text: &str| text.split('-').map(|id| NodeId(id.parse().unwrap())).collect::<Vec<_>>();
    for (position, line) in lines.iter().enumerate() {
        let mut words = line.split_whitespace();
        let operator = words.next().unwrap().to_owned();
        let tasks: usize = words.next().unwrap().trim_start_matches('x').parse().unwrap();
        let mut stage = Stage {
            id: StageId(position as u32),
            work: match operator.as_str() {
                "calls" => Work::Calls,
                _ => Work::Fragment(Bytes::from(operator.clone())),
            },
            inputs: vec![],
            exchange: Exchange::Gather,
            tasks: vec![TaskSpec::default(); tasks],
            operators: vec![operator],
            single_because: None,
            seen_by: vec![],
            unseen_by: vec![],
        };
        while let (Some(word), Some(value)) = (words.next(), words.next()) {
            let mut input =
                |read| stage.inputs.push(StageInput { stage: StageId(value.parse().unwrap()), read });
            match word {
                "seen" => stage.seen_by = nodes(value),
                "unseen" => stage.unseen_by = nodes(value),
                "bytes" => stage.tasks.iter_mut().for_each(|task| task.scan_bytes = value.parse().unwrap()),
                "at" => {
                    stage.work =
                        Work::Held(vec![
                            Placed { nodes: nodes(value), summary: meta(1, 100).summary() };
                            tasks
                        ])
                }
                "part" => input(Read::Partition { first: 0 }),
                "call" => stage.work = Work::Function(Bytes::from(value.to_owned())),
                "group" => {
                    let (producer, size) = value.split_once('/').unwrap();
                    let read = Read::Group { size: size.parse().unwrap() };
                    stage.inputs.push(StageInput { stage: StageId(producer.parse().unwrap()), read });
                }
                "all" => input(Read::All),
                "bucket" => {
                    input(Read::Bucket);
                    let producer = &mut stages[value.parse::<usize>().unwrap()];
                    producer.exchange = Exchange::Hash { keys: vec![], buckets: tasks as u32 };
                }
                other => panic!("what is `{other}`?"),
            }
        }
        stages.push(stage);
    }
    StageGraph { stages, ..StageGraph::default() }
}

/// `1/0/2 try 3.0`: task 2 of stage 0 of job 1, the first try under the leader of term 3.
pub(crate) fn name(attempt: AttemptId) -> String {
    format!("{} try {}.{}", task_name(attempt.task), attempt.term(), attempt.count())
}

fn task_name(task: TaskId) -> String {
    format!("{}/{}/{}", task.job.0, task.stage, task.partition)
}

fn describe_assignment(assignment: &Assignment) -> String {
    let input = |read: &floe_protocol::message::StageRead| {
        let parts = read.segments(assignment.attempt.task.job).map(|segment| {
            let bucket = segment.bucket.map(|bucket| format!(":{bucket}")).unwrap_or_default();
            let nodes: Vec<_> = segment.nodes.iter().map(|node| format!("n{}", node.0)).collect();
            format!("{}/{}{bucket}@{}", segment.partition.stage, segment.partition.partition, nodes.join("+"))
        });
        format!(" [{}]", parts.collect::<Vec<_>>().join(" "))
    };
    let inputs: String = assignment.inputs.iter().map(input).collect();
    let calls = match &assignment.work {
        Work::Fragment(_) => String::new(),
        Work::Function(function) => format!(" calls {}", String::from_utf8_lossy(function)),
        other => panic!("{other:?} is assigned"),
    };
    let apart = if assignment.apart { " apart" } else { "" };
    format!("{} {}MiB{inputs}{calls}{apart}", name(assignment.attempt), assignment.memory_bytes >> 20)
}

fn describe(command: &Command) -> String {
    match command {
        Command::StageDone { job, stage, outputs, runs, .. } => {
            let place = |placed: &Placed| {
                placed.nodes.iter().map(|node| format!("n{}", node.0)).collect::<Vec<_>>().join("+")
            };
            let places: Vec<_> = outputs.placed.iter().map(place).collect();
            format!("stage {}/{stage} done at [{}], {} runs", job.0, places.join(" "), runs.len())
        }
        Command::EndJob { job, phase, .. } => format!("end of job {}: {}", job.0, phase.name()),
        Command::Release { jobs, freed } => {
            format!("release of {:?} ({:?})", jobs.iter().map(|job| job.0).collect::<Vec<_>>(), freed.why)
        }
        other => format!("{other:?}"),
    }
}

/// Long identifiers as scripts write them.
pub(crate) fn short(text: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let trimmed = word.trim_start_matches('0');
        let shortened = if word.len() >= 16 && trimmed.len() < word.len() { trimmed } else { word };
        words.push(shortened.replace("(0000000000000000", "(").replace("(000000000000000", "(n"));
    }
    words.join(" ")
}

/// The job's id from its number.
pub(crate) fn job(id: u64) -> JobId {
    JobId(id)
}
