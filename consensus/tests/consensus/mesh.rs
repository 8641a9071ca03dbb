//! Whole participants and the connections between them, in memory and in one thread: nodes that find each other,
//! found, join, carry on alone and merge, and workers that run what they are told until they are told to finish.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use floe_consensus::membership::{Decision, genesis};
use floe_consensus::participant::{CarryOnError, HandedOver};
use floe_consensus::replica::{Config, TICK_MS};
use floe_consensus::{
    Action, Command, Entry, Event, MemoryLog, Order, Participant, ProposeError, Reading, Replica,
};
use floe_protocol::job::TaskRun;
use floe_protocol::message::{Assignment, Inventory, Report};
use floe_protocol::{
    AttemptId, Era, Fence, JobPhase, Load, MeshId, NodeId, OutputMeta, PeerMessage, RequestId, StageGraph,
    StageId, TaskId, WallTime,
};

use crate::cluster::{member, written};
use crate::world::{made, meta, short};

/// When the scripts begin, in milliseconds since the Unix epoch.
const BEGIN_MS: u64 = 1_000_000;

/// A node that has no mesh asks again this often.
const ASK_MS: u64 = 500;

/// More messages than one tick can need: a storm ends the test instead of running forever.
const MAX_DELIVERIES: usize = 20_000;

/// Nodes by number, and what is on its way between them.
pub(crate) struct Mesh {
    pub(crate) nodes: BTreeMap<u64, Node>,
    down: BTreeMap<u64, Down>,
    /// A node that is paused keeps its connections, and what is sent to it waits.
    pub(crate) paused: BTreeSet<u64>,
    cut: BTreeSet<(u64, u64)>,
    network: VecDeque<(u64, u64, PeerMessage)>,
    /// Messages of these kinds are lost, and of all others every so manieth.
    pub(crate) lost: BTreeSet<String>,
    pub(crate) lose_every: Option<u64>,
    delivered: u64,
    /// Stop before a message of this kind, from this node, is delivered.
    awaited: Option<(String, Option<u64>)>,
    pub(crate) now_ms: u64,
    /// Who led which era in which term.
    leaders: BTreeMap<(Era, u64), u64>,
    /// What was proposed from outside, for whom the answer is.
    asked: BTreeMap<RequestId, String>,
    /// Jobs that were accepted, as whoever submitted them was told.
    pub(crate) accepted: BTreeSet<u64>,
    requests: u128,
    /// Orders that workers followed, and kinds of those that they did not.
    obeyed: u64,
    refused: BTreeSet<(u64, u64, Fence, &'static str)>,
    /// The voters as the story last told them.
    voters: BTreeMap<u64, BTreeSet<NodeId>>,
    /// What happened since it was last taken.
    pub(crate) story: String,
}

/// One node that runs.
pub(crate) struct Node {
    pub(crate) participant: Participant,
    running: BTreeMap<AttemptId, Assignment>,
    held: BTreeMap<TaskId, OutputMeta>,
    connected: BTreeSet<u64>,
    /// The mesh it founds if it finds none.
    mesh: u64,
    starts: u64,
    lonely_since_ms: u64,
    asks_ms: u64,
}

/// What is left of a node that does not run.
struct Down {
    log: MemoryLog,
    mesh: u64,
    starts: u64,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        Self {
            nodes: BTreeMap::new(),
            down: BTreeMap::new(),
            paused: BTreeSet::new(),
            cut: BTreeSet::new(),
            network: VecDeque::new(),
            lost: BTreeSet::new(),
            lose_every: None,
            delivered: 0,
            awaited: None,
            now_ms: BEGIN_MS,
            leaders: BTreeMap::new(),
            asked: BTreeMap::new(),
            accepted: BTreeSet::new(),
            requests: 0,
            obeyed: 0,
            refused: BTreeSet::new(),
            voters: BTreeMap::new(),
            story: String::new(),
        }
    }

    /// A node starts with an empty log. It founds this mesh if it has to.
    pub(crate) fn boot(&mut self, id: u64, mesh: u64) {
        self.open(id, Down { log: MemoryLog::new(), mesh, starts: 0 });
    }

    fn open(&mut self, id: u64, Down { log, mesh, starts }: Down) {
        let mut config = Config::new(NodeId(id));
        // Each node has its own fixed patience, so that elections replay.
        config.election_ticks = 10 + id as usize..11 + id as usize;
        let replica = Replica::open(config, log).unwrap();
        let first_request = RequestId(u128::from(id) << 64 | u128::from(starts) << 48);
        let node = Node {
            participant: Participant::new(member(id), replica, first_request, Reading::at(self.now_ms)),
            running: BTreeMap::new(),
            held: BTreeMap::new(),
            connected: BTreeSet::new(),
            mesh,
            starts: starts + 1,
            lonely_since_ms: self.now_ms,
            asks_ms: 0,
        };
        self.nodes.insert(id, node);
        self.drain(id);
    }

    /// A node dies; its log stays.
    pub(crate) fn kill(&mut self, id: u64) {
        let Some(node) = self.nodes.remove(&id) else { return };
        self.paused.remove(&id);
        self.network.retain(|(from, to, _)| *from != id && *to != id);
        for other in node.connected {
            self.disconnect(other, id);
        }
        let log = node.participant.replica().log().clone();
        self.down.insert(id, Down { log, mesh: node.mesh, starts: node.starts });
    }

    /// A node that died starts again from its log.
    pub(crate) fn start(&mut self, id: u64) {
        if let Some(mut down) = self.down.remove(&id) {
            // Through the parts, as a durable log would.
            down.log = MemoryLog::from_parts(down.log.parts().clone()).unwrap();
            self.open(id, down);
        }
    }

    /// Breaks all connections between two groups of nodes.
    pub(crate) fn cut(&mut self, some: &[u64], others: &[u64]) {
        for (a, b) in some.iter().flat_map(|a| others.iter().map(move |b| (*a, *b))) {
            self.cut.extend([(a, b), (b, a)]);
            self.break_connection(a, b);
        }
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.lose_every = None;
    }

    /// Lets time pass in steps of one tick. False if what was awaited is about to happen.
    pub(crate) fn run(&mut self, ms: u64) -> bool {
        for _ in 0..ms.div_ceil(TICK_MS) {
            if !self.deliver() {
                return false;
            }
            self.now_ms += TICK_MS;
            self.connect();
            let ids: Vec<_> = self.nodes.keys().filter(|id| !self.paused.contains(id)).copied().collect();
            for id in ids {
                let node = self.nodes.get_mut(&id).unwrap();
                node.participant.tick(Reading::at(self.now_ms), 1);
                self.drain(id);
                self.find_mesh(id);
            }
            if !self.deliver() {
                return false;
            }
            self.check();
        }
        true
    }

    /// Runs until a message of this kind is about to be delivered, and says whether one was.
    pub(crate) fn run_until(&mut self, kind: &str, from: Option<u64>, limit_ms: u64) -> bool {
        self.awaited = Some((kind.to_owned(), from));
        let quiet = self.run(limit_ms);
        self.awaited = None;
        !quiet
    }

    /// Proposes on a node what its driver wants. The story says what came of it.
    pub(crate) fn propose(&mut self, at: u64, command: Command, what: String) -> Result<(), ProposeError> {
        let Some(node) = self.nodes.get_mut(&at) else { return Ok(()) };
        self.requests += 1;
        let request = RequestId(self.requests);
        let taken = node.participant.propose(&Entry { request, command });
        if taken.is_ok() {
            self.asked.insert(request, what);
        }
        self.drain(at);
        taken
    }

    pub(crate) fn submit(&mut self, at: u64, job: u64, graph: StageGraph) -> Result<(), ProposeError> {
        let submitted_at = WallTime::from_unix_ms(self.now_ms);
        let job_id = crate::world::job(job);
        let submit = Command::Submit { job: job_id, label: format!("q{job}"), graph, owner: 1, submitted_at };
        self.propose(at, submit, format!("job {job}"))
    }

    pub(crate) fn recover(&mut self, at: u64, era: Era) -> Result<(), CarryOnError> {
        let result = self.nodes.get_mut(&at).unwrap().participant.recover(era);
        self.drain(at);
        result
    }

    /// A node receives a message that another one sends, or seems to.
    pub(crate) fn say(&mut self, from: u64, to: u64, message: PeerMessage) {
        if let Some(node) = self.nodes.get_mut(&to) {
            node.participant.receive(Reading::at(self.now_ms), NodeId(from), message);
            self.drain(to);
        }
    }

    /// A node's store gets the only partition of a job's first stage.
    pub(crate) fn hold(&mut self, id: u64, job: u64) {
        let task = TaskId { job: crate::world::job(job), stage: StageId(0), partition: 0 };
        if let Some(node) = self.nodes.get_mut(&id) {
            node.held.insert(task, meta(1, 100));
        }
    }

    /// A node's worker ends all it runs well.
    pub(crate) fn finish(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        for (attempt, assignment) in std::mem::take(&mut node.running) {
            let meta = made(&assignment, 100);
            node.held.insert(attempt.task, meta.clone());
            let run = TaskRun {
                stage: attempt.task.stage,
                partition: attempt.task.partition,
                node: NodeId(id),
                started_at: WallTime::from_unix_ms(self.now_ms),
                elapsed_ms: 4_000,
            };
            node.participant.report(Report { fence: assignment.fence, attempt, outcome: Ok(meta), run });
        }
        self.drain(id);
    }

    /// The node that leads at the greatest era, with its state current.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leading = self.nodes.iter().filter(|(_, node)| node.participant.scheduler().is_some());
        leading.max_by_key(|(_, node)| node.participant.replica().fence()).map(|(id, _)| *id)
    }

    /// What a node was told to run, as `job/stage/partition`.
    pub(crate) fn runs(&self, id: u64) -> Vec<String> {
        let name = |attempt: &AttemptId| task_name(attempt.task);
        self.nodes.get(&id).map(|node| node.running.keys().map(name).collect()).unwrap_or_default()
    }

    /// Connects all that can be.
    fn connect(&mut self) {
        let ids: Vec<_> = self.nodes.keys().filter(|id| !self.paused.contains(id)).copied().collect();
        for (a, b) in ids.iter().flat_map(|a| ids.iter().map(move |b| (*a, *b))) {
            if a < b && !self.cut.contains(&(a, b)) && !self.nodes[&a].connected.contains(&b) {
                for (one, other) in [(a, b), (b, a)] {
                    let node = self.nodes.get_mut(&one).unwrap();
                    node.connected.insert(other);
                    node.participant.connected(Reading::at(self.now_ms), NodeId(other));
                    self.drain(one);
                }
            }
        }
    }

    fn break_connection(&mut self, a: u64, b: u64) {
        self.network.retain(|(from, to, _)| (*from, *to) != (a, b) && (*from, *to) != (b, a));
        self.disconnect(a, b);
        self.disconnect(b, a);
    }

    fn disconnect(&mut self, id: u64, other: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.connected.remove(&other) {
            node.participant.disconnected(Reading::at(self.now_ms), NodeId(other));
            self.drain(id);
        }
    }

    /// What a node without a mesh does.
    fn find_mesh(&mut self, id: u64) {
        let now_ms = self.now_ms;
        let node = self.nodes.get_mut(&id).unwrap();
        if node.participant.state().era().is_some() || now_ms < node.asks_ms + ASK_MS {
            return;
        }
        node.asks_ms = now_ms;
        let elapsed_ms = now_ms - node.lonely_since_ms;
        let left = node.participant.replica().log().parts().left.clone();
        let there = node.connected.iter().filter(|id| !self.paused.contains(id)).copied().collect::<Vec<_>>();
        let views =
            there.iter().map(|peer| (NodeId(*peer), self.nodes[peer].participant.view(NodeId(id)))).collect();
        match genesis(NodeId(id), &views, &left, elapsed_ms, None) {
            Decision::Wait => {}
            Decision::Found => {
                let node = self.nodes.get_mut(&id).unwrap();
                let mesh = MeshId(u128::from(node.mesh));
                // The next one it founds is another.
                node.mesh += 100;
                let _ = node.participant.found(mesh);
                self.drain(id);
            }
            Decision::Join { through, .. } => {
                let node = self.nodes.get_mut(&through.0).unwrap();
                self.requests += 1;
                let request = RequestId(self.requests);
                let _ = node
                    .participant
                    .propose(&Entry { request, command: Command::Join { member: member(id) } });
                self.drain(through.0);
            }
        }
    }

    /// Delivers all that is on its way. False if what was awaited is next.
    fn deliver(&mut self) -> bool {
        let mut waiting = VecDeque::new();
        for _ in 0..MAX_DELIVERIES {
            let Some((from, to, message)) = self.network.pop_front() else {
                self.network = waiting;
                return true;
            };
            if self.awaited.as_ref().is_some_and(|(kind, node)| {
                *kind == kind_of(&message) && node.is_none_or(|node| node == from)
            }) {
                self.network.push_front((from, to, message));
                waiting.append(&mut self.network);
                self.network = waiting;
                return false;
            }
            if self.paused.contains(&to) {
                waiting.push_back((from, to, message));
                continue;
            }
            self.delivered += 1;
            let lost = self.lost.contains(kind_of(&message))
                || self.lose_every.is_some_and(|every| self.delivered.is_multiple_of(every))
                || !self.nodes.contains_key(&to);
            if let Some(text) = describe(&message) {
                let note = if lost { " (lost)" } else { "" };
                writeln!(self.story, "n{from} -> n{to} {text}{note}").unwrap();
            }
            if lost {
                continue;
            }
            let order = match &message {
                PeerMessage::Assign(assignment) => Some(("an assignment", assignment.fence)),
                PeerMessage::AskInventory { fence } => Some(("a question", *fence)),
                PeerMessage::Lease { fence } => Some(("a lease", *fence)),
                PeerMessage::Prepare { fence } => Some(("a vote", *fence)),
                PeerMessage::Abort { fence, .. } | PeerMessage::Free { fence, .. } => {
                    Some(("an order", *fence))
                }
                _ => None,
            };
            let obeyed = self.obeyed;
            let node = self.nodes.get_mut(&to).unwrap();
            node.participant.receive(Reading::at(self.now_ms), NodeId(from), message);
            self.drain(to);
            if let Some((what, fence)) = order
                && self.obeyed == obeyed
                && self.refused.insert((to, from, fence, what))
            {
                writeln!(self.story, "n{to} refuses {what} of n{from} under {fence}").unwrap();
            }
        }
        panic!("a storm of messages\n{}", self.story);
    }

    /// Carries out all that a participant wants done.
    fn drain(&mut self, id: u64) {
        let mut broken = Vec::new();
        while let Some(node) = self.nodes.get_mut(&id) {
            let Some(action) = node.participant.poll().unwrap() else { break };
            match action {
                Action::Send(to, message) => {
                    if node.connected.contains(&to.0) {
                        self.network.push_back((id, to.0, message));
                    } else {
                        node.participant.not_sent(to, message);
                    }
                }
                Action::Order(order) => self.obey(id, order),
                Action::Event(event) => self.tell(id, &event),
                Action::Dial(_) | Action::Refused { .. } => {}
                Action::Superseded(failure) => {
                    writeln!(self.story, "n{id} must not go on: {failure}").unwrap()
                }
                Action::Probe(other) => writeln!(self.story, "n{id} probes n{}", other.0).unwrap(),
                Action::Disconnect(other) => broken.push(other.0),
                Action::Left { era, to } => {
                    node.lonely_since_ms = self.now_ms;
                    writeln!(self.story, "n{id} leaves {} for {}", name(era), name(to)).unwrap();
                }
                Action::Write(persist) => node.participant.persisted(written(&persist)).unwrap(),
            }
        }
        for other in broken {
            self.break_connection(id, other);
        }
    }

    fn obey(&mut self, id: u64, order: Order) {
        let node = self.nodes.get_mut(&id).unwrap();
        self.obeyed += 1;
        let load = Load::default();
        match order {
            Order::Assign(assignment) => {
                node.running.insert(assignment.attempt, *assignment);
            }
            Order::Abort(attempts) => {
                attempts.iter().for_each(|attempt| drop(node.running.remove(attempt)));
            }
            Order::Free(jobs) => {
                node.running.retain(|attempt, _| !jobs.contains(&attempt.task.job));
                node.held.retain(|task, _| !jobs.contains(&task.job));
            }
            Order::Copy { partition, to } => {
                let meta = node.held.get(&partition).cloned();
                if let (Some(meta), Some(other)) = (meta, self.nodes.get_mut(&to.0)) {
                    other.held.insert(partition, meta);
                    self.nodes.get_mut(&id).unwrap().participant.copied(partition, to, true);
                }
            }
            Order::Inventory { to, fence } => {
                let held = node.held.iter().map(|(task, meta)| (*task, meta.summary())).collect();
                let running = node.running.keys().copied().collect();
                let inventory = Inventory {
                    fence,
                    held,
                    runs: vec![],
                    running,
                    sessions: vec![],
                    reading: vec![],
                    submitting: vec![],
                    load,
                };
                node.participant.send(to, PeerMessage::Inventory(inventory));
            }
            Order::Alive { to, fence } => node.participant.send(to, PeerMessage::Alive { fence, load }),
            Order::Prepare { to, fence } => node.participant.send(to, PeerMessage::Prepared { fence }),
        }
    }

    fn tell(&mut self, id: u64, event: &Event) {
        let participant = &self.nodes[&id].participant;
        let leads = participant.scheduler().is_some();
        if let Event::Applied { request, outcome } = event
            // As the node that was asked says it, and only if it still leads: otherwise nobody would be told.
            && leads
            && let Some(what) = self.asked.remove(request)
        {
            let answer = match outcome {
                Ok(()) => "done".to_owned(),
                Err(error) => format!("refused: {}", short(&error.to_string())),
            };
            if let (Some(job), Ok(())) = (what.strip_prefix("job "), outcome) {
                self.accepted.insert(job.parse().unwrap());
            }
            writeln!(self.story, "n{id}: {what} {answer}").unwrap();
            return;
        }
        let text = match event {
            Event::MeshFounded { mesh } => format!("mesh {} founded", mesh.0),
            Event::Elected { .. } => {
                let Fence { era, term } = participant.replica().fence().unwrap();
                if let Some(other) = self.leaders.insert((era, term), id) {
                    assert_eq!(other, id, "two leaders of {era} in term {term}\n{}", self.story);
                }
                format!("leads {}", name(era))
            }
            Event::Deposed { .. } => "leads no more".to_owned(),
            Event::MemberJoined { member } if leads => format!("member {} joined", member.name),
            Event::MemberLeft { node } if leads => format!("member n{} left", node.0),
            Event::JobAccepted { job, .. } if leads => format!("job {} is accepted", job.0),
            Event::JobAdopted { job, succeeded, .. } if leads => {
                format!("job {} is adopted, {}", job.0, if *succeeded { "succeeded" } else { "running" })
            }
            Event::JobEnded { job, phase } if leads => format!("job {} {}", job.0, phase.name()),
            Event::Yielded { to, .. } => format!("all is in the hands of {}", name(*to)),
            Event::Reconfigured if leads => {
                let voters = participant.replica().standing().configuration.voters;
                if self.voters.get(&id) == Some(&voters) {
                    return;
                }
                let text = format!("voters are now [{}]", names(&voters));
                self.voters.insert(id, voters);
                text
            }
            _ => return,
        };
        writeln!(self.story, "n{id}: {text}").unwrap();
    }

    /// What cannot be at any time: nodes of one era that applied as much differ.
    fn check(&self) {
        let states: Vec<_> = self.nodes.iter().map(|(id, node)| (id, node.participant.state())).collect();
        for (n, (a, state)) in states.iter().enumerate() {
            for (b, other) in &states[n + 1..] {
                if state.era() == other.era() && state.applied() == other.applied() {
                    assert_eq!(state, other, "n{a} and n{b} differ\n{}", self.story);
                }
            }
        }
    }

    /// Where every node stands.
    pub(crate) fn status(&mut self) {
        for (id, node) in &self.nodes {
            let participant = &node.participant;
            let Some(era) = participant.state().era() else {
                writeln!(self.story, "n{id} has no mesh").unwrap();
                continue;
            };
            let role = match participant.leader() {
                Some(leader) if leader.0 == *id => "leads".to_owned(),
                Some(leader) => format!("follows n{} in", leader.0),
                None => "follows nobody in".to_owned(),
            };
            let phase = |phase: &JobPhase| phase.name().to_owned();
            let jobs: Vec<_> = participant
                .state()
                .jobs()
                .iter()
                .map(|(id, job)| format!("{} {}", id.0, phase(&job.phase)))
                .collect();
            writeln!(
                self.story,
                "n{id} {role} {} voters=[{}] members={} jobs=[{}]",
                name(era),
                names(&participant.replica().standing().configuration.voters),
                participant.state().members().len(),
                jobs.join(", ")
            )
            .unwrap();
        }
    }
}

/// `7.2.4`: epoch 2 of mesh 7, begun by node 4.
pub(crate) fn name(era: Era) -> String {
    format!("{}.{}.{}", era.mesh.0, era.epoch, era.founder.0)
}

fn names(ids: &BTreeSet<NodeId>) -> String {
    ids.iter().map(|id| format!("n{}", id.0)).collect::<Vec<_>>().join(" ")
}

fn task_name(task: TaskId) -> String {
    format!("{}/{}/{}", task.job.0, task.stage, task.partition)
}

fn kind_of(message: &PeerMessage) -> &'static str {
    match message {
        PeerMessage::Raft { .. } => "raft",
        PeerMessage::Assign(_) => "assign",
        PeerMessage::View(_) => "view",
        PeerMessage::Adopt { .. } => "adopt",
        PeerMessage::Adopted { .. } => "adopted",
        PeerMessage::Report(_) => "report",
        PeerMessage::Prepare { .. } => "prepare",
        PeerMessage::Prepared { .. } => "prepared",
        PeerMessage::Silent { .. } => "silent",
        _ => "other",
    }
}

/// What the healing of meshes says, and what is to run; the rest is traffic.
fn describe(message: &PeerMessage) -> Option<String> {
    Some(match message {
        PeerMessage::Assign(assignment) => {
            format!("run {} under {}", task_name(assignment.attempt.task), assignment.fence)
        }
        PeerMessage::Adopt { claim, ended, jobs, .. } => {
            let eras = [claim.era].into_iter().chain(ended.iter().copied());
            let eras: Vec<_> = eras.map(name).collect();
            let handed: HandedOver = floe_protocol::frame::decode(jobs).unwrap_or_default();
            let jobs: Vec<_> =
                handed.jobs.iter().map(|(id, job)| format!("{} {}", id.0, job.phase.name())).collect();
            format!("adopt from {}: [{}]", eras.join(" "), jobs.join(", "))
        }
        PeerMessage::Silent { node, .. } => format!("n{} is silent", node.0),
        PeerMessage::Adopted { jobs, .. } => {
            format!("adopted {:?}", jobs.iter().map(|job| job.0).collect::<Vec<_>>())
        }
        _ => return None,
    })
}
