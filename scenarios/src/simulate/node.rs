//! One simulated node: replica, scheduler and worker, driven as the real node's loop drives them.
//!
//! ```text
//!   messages, connections, ends of tasks, asks, ticks ──> Node ──settle──> Out: messages, tasks, answers, notes
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use floe_consensus::membership::{Configuration, DEAD_MS, Decision, genesis, heir, next_change};
use floe_consensus::replica::{Config, OpenError, TICK_MS};
use floe_consensus::{Command, Effect, Entry, Event, Input, LogError, ProposeError, Replica, Scheduler};
use floe_protocol::job::TaskRun;
use floe_protocol::message::{Assignment, Inventory, MeshView, Report};
use floe_protocol::{
    AttemptId, Failure, Fence, JobId, Load, Member, MeshId, NodeId, OutputMeta, PeerMessage, RequestId,
    TaskId,
};

use super::disk::Disk;

/// How often a leader looks at its voters, as the real node does.
const MEMBERSHIP_INTERVAL_MS: u64 = 250;

/// How often a node without a mesh looks around, and one that is not listed yet says so again.
const LOOK_INTERVAL_MS: u64 = 100;

/// What a peer said of its mesh counts for this long.
const VIEW_MS: u64 = 1_000;

/// How long a node that leaves waits until it is needed no more.
const LEAVE_PATIENCE_MS: u64 = 3_000;

/// How often it asks to be let go, or to be taken in.
const ASK_INTERVAL_MS: u64 = 1_000;

/// Proposals passed on to the leader that may wait for its answer.
const MAX_FORWARDED: usize = 1_024;

/// How often a proposal is passed on to the node that is named as leader.
const MAX_HOPS: u32 = 2;

/// Reports kept for a leader that cannot be reached.
const MAX_UNSENT: usize = 1_024;

/// Clocks show the year 2023 when a run begins.
pub(super) const EPOCH_MS: u64 = 1_700_000_000_000;

/// What travels between nodes.
#[derive(Clone, Debug)]
pub(super) enum Wire {
    /// What nodes send one another.
    Peer(PeerMessage),
    /// What mesh are you of?
    AskView,
    /// This one.
    View(MeshView),
    /// May I go, now that I have left?
    AskNeeded,
    /// The leader's answer: whether the vote still counts.
    Needed(bool),
    /// Put this into the log.
    Propose { call: u64, entry: Entry },
    /// What became of it.
    Answer { call: u64, proposed: Proposed },
}

/// What became of a proposal.
#[derive(Clone, Debug)]
pub(super) enum Proposed {
    Applied(Result<(), Failure>),
    /// Another node must be asked: this one, as far as is known.
    NotLeader(Option<NodeId>),
}

/// Who waits for a proposal.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asker {
    /// A driver's call.
    Driver(usize),
    /// A call of another node.
    Peer(NodeId, u64),
    /// Nobody: the node sees the outcome in its state.
    Nobody,
}

/// What a node does.
#[derive(Debug)]
pub(super) enum Out {
    Send(NodeId, Wire),
    /// Starts a task, which ends later.
    Run(Assignment),
    Answer(usize, Proposed),
    Note(Note),
    /// Breaks a connection that only seems to stand.
    Disconnect(NodeId),
    /// It is needed no more, or will wait no longer.
    Stop {
        clean: bool,
    },
}

/// What the checker must know.
#[derive(Debug)]
pub(super) enum Note {
    Event(Event),
    /// The worker follows orders of this fence.
    Obeyed(Fence),
    /// The worker takes a task.
    Accepted {
        attempt: AttemptId,
        fence: Fence,
    },
    /// The leader gives a task.
    Assigned {
        attempt: AttemptId,
        fence: Fence,
        to: NodeId,
    },
}

/// What is wrong with a node on purpose, to show that the checker notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    /// Workers follow leaders that were replaced.
    #[cfg_attr(not(test), allow(dead_code, reason = "only tests are wrong on purpose"))]
    IgnoredFence,
    /// Disks say that they synced and did not.
    #[cfg_attr(not(test), allow(dead_code, reason = "only tests are wrong on purpose"))]
    LyingDisk,
}

/// How a node is started.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub(super) member: Member,
    pub(super) election_ticks: usize,
    pub(super) checkpoint_entries: u64,
    pub(super) kept_entries: u64,
    pub(super) now_ms: u64,
    /// Whether it was told whom to join, so that it never founds a mesh while it finds nobody.
    pub(super) joins: bool,
    pub(super) bug: Option<Bug>,
}

/// A proposal that another node was given.
#[derive(Debug)]
struct Forwarded {
    entry: Entry,
    asker: Asker,
    /// How many more nodes it may be passed on to.
    hops: u32,
}

/// A running node.
pub(super) struct Node {
    pub(super) member: Member,
    pub(super) replica: Replica<Disk>,
    pub(super) out: Vec<Out>,
    /// The node's own clock.
    pub(super) now_ms: u64,
    pub(super) held: BTreeMap<TaskId, OutputMeta>,
    scheduler: Option<Scheduler>,
    mesh: Option<MeshId>,
    fence: Fence,
    leader: Option<NodeId>,
    pending: BTreeMap<RequestId, Vec<Asker>>,
    forwarded: BTreeMap<u64, Forwarded>,
    calls: u64,
    requests: u64,
    runs: BTreeMap<TaskId, TaskRun>,
    unsent: VecDeque<Report>,
    to_self: VecDeque<PeerMessage>,
    peers: BTreeSet<NodeId>,
    views: BTreeMap<NodeId, (MeshView, u64)>,
    /// Attempts in the order they came; those in front have the slots.
    attempts: Vec<Assignment>,
    started: BTreeMap<AttemptId, u64>,
    born_ms: u64,
    look_due_ms: u64,
    ask_due_ms: u64,
    membership_due_ms: u64,
    leaving_since_ms: Option<u64>,
    joins: bool,
    bug: Option<Bug>,
}

impl Node {
    pub(super) fn start(start: Start, disk: Disk) -> Result<Self, OpenError> {
        let Start { member, election_ticks, checkpoint_entries, kept_entries, now_ms, joins, bug } = start;
        let mut config = Config::new(member.id);
        // One value to choose from leaves nothing to chance outside of the seed.
        config.election_ticks = election_ticks..election_ticks + 1;
        (config.checkpoint_entries, config.kept_entries) = (checkpoint_entries, kept_entries);
        let replica = Replica::open(config, disk)?;
        let mesh = replica.state().mesh();
        Ok(Self {
            member,
            replica,
            out: Vec::new(),
            now_ms,
            held: BTreeMap::new(),
            scheduler: None,
            mesh,
            fence: Fence::default(),
            leader: None,
            pending: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            calls: 0,
            requests: 0,
            runs: BTreeMap::new(),
            unsent: VecDeque::new(),
            to_self: VecDeque::new(),
            peers: BTreeSet::new(),
            views: BTreeMap::new(),
            attempts: Vec::new(),
            started: BTreeMap::new(),
            born_ms: now_ms,
            look_due_ms: 0,
            ask_due_ms: 0,
            membership_due_ms: 0,
            leaving_since_ms: None,
            joins,
            bug,
        })
    }

    pub(super) fn id(&self) -> NodeId {
        self.member.id
    }

    /// Whether it leads with its state current.
    pub(super) fn schedules(&self) -> bool {
        self.scheduler.is_some()
    }

    /// Whether its state lists it as it is now.
    pub(super) fn is_listed(&self) -> bool {
        self.replica.state().members().get(&self.id()) == Some(&self.member)
    }

    pub(super) fn leave(&mut self) {
        self.leaving_since_ms.get_or_insert(self.now_ms);
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving_since_ms.is_some()
    }

    /// [`TICK_MS`] passed.
    pub(super) fn tick(&mut self) {
        self.replica.tick();
        self.schedule(Input::Tick);
        for report in std::mem::take(&mut self.unsent) {
            self.report(report);
        }
        if self.now_ms >= self.membership_due_ms {
            self.membership_due_ms = self.now_ms + MEMBERSHIP_INTERVAL_MS;
            self.keep_membership();
        }
        if self.now_ms >= self.look_due_ms {
            self.look_due_ms = self.now_ms + LOOK_INTERVAL_MS;
            self.keep_place();
        }
    }

    pub(super) fn peer_up(&mut self, peer: NodeId) {
        self.peers.insert(peer);
        self.node_up(peer);
    }

    pub(super) fn peer_down(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
        self.views.remove(&peer);
        self.replica.report_unreachable(peer);
        self.schedule(Input::NodeDown { node: peer });
    }

    pub(super) fn receive(&mut self, from: NodeId, wire: Wire) {
        match wire {
            Wire::Peer(message) => self.handle(from, message),
            Wire::AskView => {
                let view = self.view();
                self.send(from, Wire::View(view));
            }
            Wire::View(view) => {
                self.views.insert(from, (view, self.now_ms));
            }
            Wire::Propose { call, entry } => self.propose(entry, Asker::Peer(from, call)),
            Wire::Answer { call, proposed } => {
                let Some(Forwarded { entry, asker, hops }) = self.forwarded.remove(&call) else { return };
                match proposed {
                    // A node that no longer leads names its successor.
                    Proposed::NotLeader(Some(next)) if hops > 0 && next != self.id() => {
                        self.forward(next, entry, asker, hops - 1);
                    }
                    proposed => self.answer(asker, proposed),
                }
            }
            Wire::AskNeeded => {
                let standing = self.replica.standing();
                let Configuration { voters, outgoing, .. } = standing.configuration;
                let needed = !standing.leads || voters.contains(&from) || outgoing.contains(&from);
                self.send(from, Wire::Needed(needed));
            }
            Wire::Needed(needed) => {
                if !needed && self.has_left() {
                    self.out.push(Out::Stop { clean: true });
                }
            }
        }
    }

    /// Takes an entry of a driver connected to this node, and passes it on if another one leads.
    pub(super) fn ask(&mut self, entry: Entry, asker: Asker) {
        match self.replica.standing().leader {
            Some(leader) if leader != self.id() => self.forward(leader, entry, asker, MAX_HOPS),
            _ => self.propose(entry, asker),
        }
    }

    /// The attempt as it was assigned, if it still runs.
    pub(super) fn running(&self, attempt: AttemptId) -> Option<&Assignment> {
        self.attempts.iter().find(|assignment| assignment.attempt == attempt)
    }

    /// A task ended.
    pub(super) fn end_task(&mut self, attempt: AttemptId, outcome: Result<OutputMeta, Failure>) {
        let Some(assignment) = self.running(attempt) else { return };
        let fence = assignment.fence;
        let since_ms = self.started.get(&attempt).copied().unwrap_or(self.now_ms);
        self.attempts.retain(|assignment| assignment.attempt != attempt);
        self.started.remove(&attempt);
        let outcome = outcome.map(|meta| self.held.entry(attempt.task).or_insert(meta).clone());
        let run = TaskRun {
            stage: attempt.task.stage,
            partition: attempt.task.partition,
            node: self.id(),
            started_unix_ms: since_ms,
            elapsed_ms: self.now_ms.saturating_sub(since_ms),
        };
        self.report(Report { fence, attempt, outcome, run });
        self.fill_slots();
    }

    /// Carries out what the last event caused, until nothing more comes of it.
    pub(super) fn settle(&mut self) -> Result<(), LogError> {
        loop {
            if let Some(mut output) = self.replica.take_output() {
                let mut unreachable = self.send_raft(&mut output.send);
                self.replica.persist(&mut output)?;
                unreachable.extend(self.send_raft(&mut output.send_after_persist));
                for node in unreachable {
                    self.replica.report_unreachable(node);
                }
                for event in output.events {
                    self.out.push(Out::Note(Note::Event(event.clone())));
                    self.applied(event);
                }
            } else if let Some(message) = self.to_self.pop_front() {
                self.handle(self.id(), message);
            } else {
                return Ok(());
            }
        }
    }

    fn handle(&mut self, from: NodeId, message: PeerMessage) {
        match message {
            PeerMessage::Raft { mesh, message } => {
                if *self.mesh.get_or_insert(mesh) == mesh {
                    // What it refuses counts as lost.
                    let _ = self.replica.step(&message);
                }
            }
            PeerMessage::Assign(assignment) => {
                if self.obeys(from, assignment.fence) {
                    let Assignment { attempt, fence, .. } = *assignment;
                    self.out.push(Out::Note(Note::Accepted { attempt, fence }));
                    self.assign(*assignment);
                }
            }
            PeerMessage::Abort { fence, attempts } => {
                if self.obeys(from, fence) {
                    self.stop_tasks(|attempt| attempts.contains(attempt));
                }
            }
            PeerMessage::Free { fence, jobs } => {
                if self.obeys(from, fence) {
                    self.stop_tasks(|attempt| jobs.contains(&attempt.task.job));
                    self.free(&jobs);
                    self.runs.retain(|task, _| !jobs.contains(&task.job));
                }
            }
            PeerMessage::AskInventory { fence } => {
                if self.obeys(from, fence) {
                    let inventory = self.inventory(fence);
                    self.send_peer(from, PeerMessage::Inventory(inventory));
                }
            }
            PeerMessage::Lease { fence } => {
                if self.obeys(from, fence) {
                    let load = self.load();
                    self.send_peer(from, PeerMessage::Alive { fence, load });
                }
            }
            PeerMessage::Inventory(inventory) => self.schedule(Input::Inventory { node: from, inventory }),
            PeerMessage::Alive { fence, load } => self.schedule(Input::Alive { node: from, fence, load }),
            PeerMessage::Lost { partition, node } => self.schedule(Input::PartitionLost { partition, node }),
            PeerMessage::Report(report) => self.schedule(Input::Report { node: from, report }),
        }
    }

    fn obeys(&mut self, from: NodeId, fence: Fence) -> bool {
        if fence < self.fence {
            return self.bug == Some(Bug::IgnoredFence);
        }
        self.fence = fence;
        self.leader = Some(from);
        self.out.push(Out::Note(Note::Obeyed(fence)));
        true
    }

    fn assign(&mut self, assignment: Assignment) {
        if self.running(assignment.attempt).is_none() {
            self.attempts.push(assignment);
            self.fill_slots();
        }
    }

    fn fill_slots(&mut self) {
        for assignment in self.attempts.iter().take(self.member.slots as usize) {
            if !self.started.contains_key(&assignment.attempt) {
                self.started.insert(assignment.attempt, self.now_ms);
                self.out.push(Out::Run(assignment.clone()));
            }
        }
    }

    fn stop_tasks(&mut self, stops: impl Fn(&AttemptId) -> bool) {
        self.attempts.retain(|assignment| !stops(&assignment.attempt));
        self.started.retain(|attempt, _| !stops(attempt));
        self.fill_slots();
    }

    fn free(&mut self, jobs: &[JobId]) {
        self.held.retain(|task, _| !jobs.contains(&task.job));
    }

    fn load(&self) -> Load {
        Load { running: self.started.len() as u32, ..Load::default() }
    }

    fn inventory(&self, fence: Fence) -> Inventory {
        Inventory {
            fence,
            held: self.held.iter().map(|(task, meta)| (*task, meta.clone())).collect(),
            runs: self.runs.iter().map(|(task, run)| (*task, run.clone())).collect(),
            running: self.attempts.iter().map(|assignment| assignment.attempt).collect(),
            load: self.load(),
        }
    }

    fn report(&mut self, report: Report) {
        if report.outcome.is_ok() {
            self.runs.insert(report.attempt.task, report.run.clone());
        }
        let Some(leader) = self.leader else { return };
        if !self.send_peer(leader, PeerMessage::Report(report.clone())) && self.unsent.len() < MAX_UNSENT {
            self.unsent.push_back(report);
        }
    }

    fn send(&mut self, to: NodeId, wire: Wire) -> bool {
        let connected = self.peers.contains(&to);
        if connected {
            self.out.push(Out::Send(to, wire));
        }
        connected
    }

    fn send_peer(&mut self, to: NodeId, message: PeerMessage) -> bool {
        if to == self.id() {
            self.to_self.push_back(message);
            return true;
        }
        self.send(to, Wire::Peer(message))
    }

    /// Sends what can be sent, and returns who could not be reached.
    fn send_raft(&mut self, messages: &mut [(NodeId, Bytes)]) -> Vec<NodeId> {
        let Some(mesh) = self.mesh else { return Vec::new() };
        // raft-rs walks its peers in no particular order.
        messages.sort_by_key(|(to, _)| *to);
        let mut unreachable = Vec::new();
        for (to, message) in messages {
            if !self.send(*to, Wire::Peer(PeerMessage::Raft { mesh, message: message.clone() })) {
                unreachable.push(*to);
            }
        }
        unreachable
    }

    fn schedule(&mut self, input: Input) {
        let Some(scheduler) = &mut self.scheduler else { return };
        for effect in scheduler.step(self.now_ms, input) {
            match effect {
                Effect::Send(to, message) => {
                    if let PeerMessage::Assign(assignment) = &message {
                        let Assignment { attempt, fence, .. } = **assignment;
                        self.out.push(Out::Note(Note::Assigned { attempt, fence, to }));
                    }
                    self.send_peer(to, message);
                }
                Effect::Propose(command) => {
                    let entry = self.entry(command);
                    // The scheduler proposes again what did not come through.
                    let _ = self.replica.propose(&entry);
                }
                Effect::NodeLost(node) => self.out.push(Out::Disconnect(node)),
            }
        }
    }

    /// An entry under an id that nobody else chooses.
    fn entry(&mut self, command: Command) -> Entry {
        self.requests += 1;
        let parts = [self.id().0, self.member.incarnation, self.requests];
        let request = parts.iter().fold(1, |id: u128, part| id << 40 | u128::from(*part));
        Entry { request: RequestId(request), command }
    }

    fn propose(&mut self, entry: Entry, asker: Asker) {
        match self.replica.propose(&entry) {
            Ok(()) => self.pending.entry(entry.request).or_default().push(asker),
            Err(ProposeError::NotLeader { leader }) => self.answer(asker, Proposed::NotLeader(leader)),
            Err(error) => self.answer(asker, Proposed::Applied(Err(error.into()))),
        }
    }

    fn forward(&mut self, leader: NodeId, entry: Entry, asker: Asker, hops: u32) {
        if self.forwarded.len() >= MAX_FORWARDED {
            self.forwarded.pop_first();
        }
        self.calls += 1;
        let call = self.calls;
        if self.send(leader, Wire::Propose { call, entry: entry.clone() }) {
            self.forwarded.insert(call, Forwarded { entry, asker, hops });
        } else {
            self.answer(asker, Proposed::NotLeader(None));
        }
    }

    fn answer(&mut self, asker: Asker, proposed: Proposed) {
        match asker {
            Asker::Driver(call) => self.out.push(Out::Answer(call, proposed)),
            Asker::Peer(peer, call) => drop(self.send(peer, Wire::Answer { call, proposed })),
            Asker::Nobody => {}
        }
    }

    fn applied(&mut self, event: Event) {
        if let Some(input) = Input::from_event(&event) {
            self.schedule(input);
        }
        match event {
            Event::Applied { request, outcome } => {
                for asker in self.pending.remove(&request).into_iter().flatten() {
                    self.answer(asker, Proposed::Applied(outcome.clone()));
                }
            }
            Event::MeshFounded { mesh } => self.mesh = Some(mesh),
            Event::MemberJoined { member } => {
                if self.is_connected(member.id) {
                    self.node_up(member.id);
                }
                self.keep_membership();
            }
            Event::MemberLeft { node } => {
                self.schedule(Input::NodeDown { node });
                self.keep_membership();
            }
            Event::JobsFreed { jobs } => self.free(&jobs),
            Event::Restored { .. } | Event::Reconfigured => {
                self.mesh = self.replica.state().mesh().or(self.mesh);
            }
            Event::Elected { term } => self.elected(term),
            Event::Deposed { .. } => self.scheduler = None,
            Event::LeaderChanged { leader, .. } => {
                for asker in std::mem::take(&mut self.pending).into_values().flatten() {
                    self.answer(asker, Proposed::NotLeader(leader));
                }
            }
            Event::JobAccepted { .. }
            | Event::StageDone { .. }
            | Event::JobEnded { .. }
            | Event::ReadReady { .. } => {}
        }
    }

    fn elected(&mut self, term: u64) {
        let state = self.replica.state();
        let fence = Fence { epoch: state.epoch(), term };
        let members: Vec<NodeId> = state.members().keys().copied().collect();
        self.scheduler = Some(Scheduler::new(fence, self.now_ms, state));
        for node in members {
            if self.is_connected(node) {
                self.node_up(node);
            } else {
                self.schedule(Input::NodeDown { node });
            }
        }
        self.keep_membership();
    }

    fn is_connected(&self, node: NodeId) -> bool {
        node == self.id() || self.peers.contains(&node)
    }

    fn node_up(&mut self, node: NodeId) {
        let Some(member) = self.replica.state().members().get(&node) else { return };
        let (slots, memory_bytes) = (member.slots, member.memory_bytes);
        self.schedule(Input::NodeUp { node, slots, memory_bytes });
    }

    fn keep_membership(&mut self) {
        let Some(scheduler) = &self.scheduler else { return };
        let me = self.id();
        let members: BTreeSet<NodeId> = self.replica.state().members().keys().copied().collect();
        let connected: BTreeSet<NodeId> =
            members.iter().copied().filter(|node| self.is_connected(*node)).collect();
        // A seat is kept for a while for a voter that is away, and given only to who is here.
        let heard = &scheduler.heard_within(DEAD_MS) | &connected;
        let caught_up = &self.replica.caught_up() & &connected;
        let configuration = self.replica.standing().configuration;
        // What does not come about now is tried again soon.
        let _ = match next_change(&members, &configuration, &heard, &caught_up, me) {
            Some(change) => self.replica.change(&change),
            None if !members.contains(&me) => heir(&members, &configuration, &connected, me)
                .map_or(Ok(()), |heir| self.replica.transfer_leader(heir)),
            None => Ok(()),
        };
    }

    /// Becomes a member, says so when it was restarted, or leaves.
    fn keep_place(&mut self) {
        if let Some(since_ms) = self.leaving_since_ms {
            return self.go(since_ms);
        }
        if self.replica.state().mesh().is_none() {
            return self.look_around();
        }
        if !self.is_listed() {
            self.come_back();
        }
    }

    /// Makes this start known to the mesh. One that was removed while it was away hears of no leader by itself:
    /// it asks its peers.
    fn come_back(&mut self) {
        if self.now_ms < self.ask_due_ms {
            return self.ask_for_views();
        }
        self.ask_due_ms = self.now_ms + ASK_INTERVAL_MS;
        let entry = self.entry(Command::Join { member: self.member.clone() });
        let same = self.views.values().filter(|(view, _)| view.mesh == self.mesh);
        let named = same.filter_map(|(view, _)| view.leader).find(|leader| self.peers.contains(leader));
        // A node without a vote never forgets its leader, be it gone for good.
        let known = self.replica.standing().leader.filter(|leader| self.is_connected(*leader));
        match (known, named) {
            (None, Some(leader)) => self.forward(leader, entry, Asker::Nobody, MAX_HOPS),
            _ => self.ask(entry, Asker::Nobody),
        }
    }

    fn ask_for_views(&mut self) {
        let since_ms = self.now_ms.saturating_sub(VIEW_MS);
        self.views.retain(|_, (_, at_ms)| *at_ms >= since_ms);
        for peer in self.peers.clone() {
            self.send(peer, Wire::AskView);
        }
    }

    fn go(&mut self, since_ms: u64) {
        let left = self.has_left();
        if self.now_ms >= since_ms + LEAVE_PATIENCE_MS {
            self.out.push(Out::Stop { clean: false });
        } else if left {
            // Only the leader knows whether the vote still counts.
            if let Some(leader) = self.replica.standing().leader {
                self.send(leader, Wire::AskNeeded);
            }
        } else if self.now_ms >= self.ask_due_ms {
            self.ask_due_ms = self.now_ms + ASK_INTERVAL_MS;
            let entry = self.entry(Command::Leave { node: self.id() });
            self.ask(entry, Asker::Nobody);
        }
    }

    fn has_left(&self) -> bool {
        self.is_leaving() && !self.replica.state().members().contains_key(&self.id())
    }

    fn look_around(&mut self) {
        self.ask_for_views();
        if self.joins && self.views.is_empty() {
            return;
        }
        let views = self.views.iter().map(|(node, (view, _))| (*node, view.clone())).collect();
        match genesis(self.id(), &views, self.now_ms.saturating_sub(self.born_ms), None) {
            Decision::Join { through, .. } if self.now_ms >= self.ask_due_ms => {
                self.ask_due_ms = self.now_ms + ASK_INTERVAL_MS;
                let target = views.get(&through).and_then(|view| view.leader).unwrap_or(through);
                let entry = self.entry(Command::Join { member: self.member.clone() });
                self.forward(target, entry, Asker::Nobody, MAX_HOPS);
            }
            Decision::Found => {
                let mesh = MeshId(u128::from(self.id().0) << 64 | u128::from(self.now_ms));
                // It can only fail on a log that was used, and then there is a mesh.
                let _ = self.replica.found(RequestId(mesh.0), mesh, self.member.clone());
            }
            Decision::Join { .. } | Decision::Wait => {}
        }
    }

    fn view(&self) -> MeshView {
        let mut peers: Vec<_> = self.peers.iter().copied().chain([self.id()]).collect();
        peers.sort_unstable();
        MeshView {
            node: self.id(),
            mesh: self.replica.state().mesh(),
            leader: self.replica.standing().leader,
            peers,
        }
    }
}

/// How often a node ticks.
pub(super) const NODE_TICK_MS: u64 = TICK_MS;
