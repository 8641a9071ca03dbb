//! One simulated node: its part in the mesh, its worker, and how it becomes a member and leaves, driven as the
//! real node's loop drives them.
//!
//! ```text
//!   messages, connections, ends of tasks, asks, ticks ──> Node ──settle──> Out: messages, tasks, answers, notes
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use floe_consensus::membership::{Decision, genesis};
use floe_consensus::rejoin::{Next, Rejoin, knows_leader};
use floe_consensus::replica::{BrokenError, Config, OpenError, TICK_MS};
use floe_consensus::{
    Action, Command, Entry, Event, MemoryLog, Order, Participant, Persist, ProposeError, Reading, Replica,
    StateMachine, Written,
};
use floe_protocol::job::TaskRun;
use floe_protocol::message::{Assignment, Inventory, MeshView, Report};
use floe_protocol::{
    AttemptId, Era, Failure, Fence, JobId, Load, Member, MeshId, NodeId, OutputMeta, PeerMessage, RequestId,
    TaskId,
};

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

/// How often a node ticks.
pub(super) const NODE_TICK_MS: u64 = TICK_MS;

/// What travels between nodes.
#[derive(Clone, Debug)]
pub(super) enum Wire {
    /// What nodes send one another.
    Peer(PeerMessage),
    /// What mesh are you of?
    AskView,
    /// This one.
    View(Box<MeshView>),
    /// May I go, now that I have left?
    AskNeeded,
    /// The leader's answer: whether the vote still counts.
    Needed(bool),
    /// Put this into the log.
    Propose { call: u64, entry: Entry },
    /// Keep this copy of a partition.
    Put { partition: TaskId, meta: OutputMeta },
    /// It is kept.
    Kept(TaskId),
    /// What became of it.
    Answer { call: u64, proposed: Proposed },
}

/// What became of a proposal.
#[derive(Clone, Debug)]
pub(super) enum Proposed {
    /// It applied, under this fence.
    Applied(Result<(), Failure>, Option<Fence>),
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
    /// Writes this to its disk.
    Write(Box<Persist>),
    /// Makes sure of a connection.
    Dial(NodeId),
    /// Breaks a connection that only seems to stand.
    Disconnect(NodeId),
    /// It is needed no more, or will wait no longer.
    Stop {
        clean: bool,
    },
    /// The mesh knows more of it than it does: its directory goes on as another node's.
    BeginAnew,
}

/// What the checker must know.
#[derive(Debug)]
pub(super) enum Note {
    /// Something was agreed on, under this fence as the node knows it.
    Event(Option<Fence>, Event),
    /// The worker answers a leader.
    Obeyed(Fence),
    /// The worker takes a task.
    Accepted { attempt: AttemptId, fence: Fence },
    /// The leader gives a task.
    Assigned { attempt: AttemptId, fence: Fence, to: NodeId },
    /// The node has left its era.
    Left(Era),
}

/// What is wrong with a node on purpose, to show that the checker notices.
#[cfg_attr(not(test), allow(dead_code, reason = "only tests are wrong on purpose"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    /// Workers follow leaders that were replaced.
    IgnoredFence,
    /// Disks say that they synced and did not.
    LyingDisk,
    /// Nodes forget which eras they have left.
    ForgottenEras,
    /// Leaders end their eras without handing the jobs over.
    EmptyHands,
}

/// How a node is started.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub(super) member: Member,
    pub(super) election_ticks: usize,
    pub(super) checkpoint_entries: u64,
    pub(super) kept_entries: u64,
    pub(super) reading: Reading,
    /// Whether it was told whom to join, so that it never founds a mesh while it finds nobody.
    pub(super) joins: bool,
    /// The partitions on its disk.
    pub(super) held: BTreeMap<TaskId, OutputMeta>,
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
    pub(super) participant: Participant,
    pub(super) out: Vec<Out>,
    /// What its machine's clocks show.
    pub(super) reading: Reading,
    pub(super) held: BTreeMap<TaskId, OutputMeta>,
    /// Standing jobs whose drivers are connected to it.
    pub(super) sessions: BTreeSet<JobId>,
    peers: BTreeSet<NodeId>,
    pending: BTreeMap<RequestId, Vec<Asker>>,
    forwarded: BTreeMap<u64, Forwarded>,
    calls: u64,
    next_request: RequestId,
    runs: BTreeMap<TaskId, TaskRun>,
    views: BTreeMap<NodeId, (MeshView, u64)>,
    /// Attempts in the order they came; those in front have the slots.
    attempts: Vec<Assignment>,
    started: BTreeMap<AttemptId, u64>,
    /// Since when it has looked for a mesh, if it has none.
    looking_since_ms: u64,
    look_due_ms: u64,
    /// Ticks that the participant has not heard of.
    passed: u32,
    ask_due_ms: u64,
    leaving_since_ms: Option<u64>,
    rejoin: Rejoin,
    /// Whether it has asked others for what they know of it.
    asked: bool,
    joins: bool,
    bug: Option<Bug>,
}

impl Node {
    pub(super) fn start(start: Start, log: MemoryLog) -> Result<Self, OpenError> {
        let Start { member, election_ticks, checkpoint_entries, kept_entries, reading, joins, held, bug } =
            start;
        let mut config = Config::new(member.id);
        // One value to choose from leaves nothing to chance outside of the seed.
        config.election_ticks = election_ticks..election_ticks + 1;
        (config.checkpoint_entries, config.kept_entries) = (checkpoint_entries, kept_entries);
        let replica = Replica::open(config, log)?;
        let start = start_of(&member);
        let first_call = start << 32;
        // Ids that nobody else chooses: the participant's, and those of what is asked here.
        let request = u128::from(member.id.0) << 80 | u128::from(start) << 40;
        Ok(Self {
            participant: Participant::new(member, replica, RequestId(request), reading),
            out: Vec::new(),
            reading,
            held,
            sessions: BTreeSet::new(),
            peers: BTreeSet::new(),
            pending: BTreeMap::new(),
            forwarded: BTreeMap::new(),
            // An answer to what an earlier start asked is none to what this one asks.
            calls: first_call,
            next_request: RequestId(request | 1 << 39),
            runs: BTreeMap::new(),
            views: BTreeMap::new(),
            attempts: Vec::new(),
            started: BTreeMap::new(),
            looking_since_ms: reading.awake_ms,
            look_due_ms: 0,
            passed: 0,
            ask_due_ms: 0,
            leaving_since_ms: None,
            rejoin: Rejoin::default(),
            asked: false,
            joins,
            bug,
        })
    }

    fn now_ms(&self) -> u64 {
        self.reading.awake_ms
    }

    pub(super) fn id(&self) -> NodeId {
        self.member().id
    }

    pub(super) fn member(&self) -> &Member {
        self.participant.member()
    }

    /// Which of its starts this is. Unlike their number, none has another's.
    pub(super) fn start_mark(&self) -> u64 {
        start_of(self.member())
    }

    pub(super) fn state(&self) -> &StateMachine {
        self.participant.state()
    }

    pub(super) fn era(&self) -> Option<Era> {
        self.state().era()
    }

    /// Under which fence it leads or would lead.
    pub(super) fn fence(&self) -> Option<Fence> {
        self.participant.replica().fence()
    }

    /// Whether it leads with its state current.
    pub(super) fn schedules(&self) -> bool {
        self.participant.scheduler().is_some()
    }

    /// Whether its state lists it as it is now.
    pub(super) fn is_listed(&self) -> bool {
        self.state().members().get(&self.id()) == Some(self.member())
    }

    pub(super) fn leave(&mut self) {
        self.leaving_since_ms.get_or_insert(self.now_ms());
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving_since_ms.is_some()
    }

    /// [`TICK_MS`] passed. The participant hears of it when it must, or before anything else that happens.
    pub(super) fn tick(&mut self) {
        self.passed += 1;
        if self.passed >= self.participant.quiet_ticks() {
            self.catch_up();
        }
        if self.now_ms() >= self.look_due_ms {
            self.look_due_ms = self.now_ms() + LOOK_INTERVAL_MS;
            self.keep_place();
        }
    }

    /// Tells the participant of the ticks that have passed.
    fn catch_up(&mut self) {
        match std::mem::take(&mut self.passed) {
            0 => {}
            passed => self.participant.tick(self.reading, passed),
        }
    }

    pub(super) fn peer_up(&mut self, peer: NodeId) {
        self.catch_up();
        self.peers.insert(peer);
        self.participant.connected(self.reading, peer);
    }

    pub(super) fn peer_down(&mut self, peer: NodeId) {
        self.catch_up();
        self.peers.remove(&peer);
        self.views.remove(&peer);
        self.participant.disconnected(self.reading, peer);
    }

    pub(super) fn receive(&mut self, from: NodeId, wire: Wire) {
        self.catch_up();
        match wire {
            Wire::Peer(message) => {
                self.go_wrong(&message);
                self.participant.receive(self.reading, from, message);
            }
            Wire::AskView => {
                let view = self.participant.view(from);
                self.send(from, Wire::View(Box::new(view)));
            }
            Wire::View(view) => drop(self.views.insert(from, (*view, self.now_ms()))),
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
            Wire::Put { partition, meta } => {
                self.held.insert(partition, meta);
                self.send(from, Wire::Kept(partition));
            }
            Wire::Kept(partition) => self.participant.copied(partition, from, true),
            Wire::AskNeeded => {
                let standing = self.participant.replica().standing();
                let needed = !standing.leads || standing.voting.contains(&from);
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
        match self.participant.leader() {
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
        let since_ms = self.started.get(&attempt).copied().unwrap_or(self.now_ms());
        self.attempts.retain(|assignment| assignment.attempt != attempt);
        self.started.remove(&attempt);
        let outcome = outcome.map(|meta| match self.held.get(&attempt.task) {
            Some(there) if there.mark == meta.mark => there.clone(),
            _ => {
                self.held.insert(attempt.task, meta.clone());
                meta
            }
        });
        let run = TaskRun {
            stage: attempt.task.stage,
            partition: attempt.task.partition,
            node: self.id(),
            started_at: self.reading.wall,
            elapsed_ms: self.now_ms().saturating_sub(since_ms),
        };
        if outcome.is_ok() {
            self.runs.insert(attempt.task, run.clone());
        }
        self.participant.report(Report { fence, attempt, outcome, run });
        self.fill_slots();
    }

    /// A write is done.
    pub(super) fn persisted(&mut self, written: Written) -> Result<(), BrokenError> {
        self.participant.persisted(written)
    }

    /// Carries out what the last event caused, until nothing more comes of it.
    pub(super) fn settle(&mut self) -> Result<(), BrokenError> {
        while let Some(action) = self.participant.poll()? {
            match action {
                Action::Write(persist) => self.out.push(Out::Write(persist)),
                Action::Send(to, message) => self.send_peer(to, message),
                Action::Order(order) => self.order(order),
                Action::Event(event) => self.applied(event),
                Action::Dial(member) => self.out.push(Out::Dial(member.id)),
                Action::Disconnect(node) => self.out.push(Out::Disconnect(node)),
                // Nobody waits for anything here that a connection would have to end for.
                Action::Probe(_) => {}
                Action::Refused { .. } => {}
                Action::Superseded(_) => self.out.push(Out::BeginAnew),
                Action::Left { era, .. } => self.left(era),
            }
        }
        Ok(())
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Assign(assignment) => self.assign(*assignment),
            Order::Abort(attempts) => self.stop_tasks(|attempt| attempts.contains(attempt)),
            Order::Free(jobs) => {
                self.stop_tasks(|attempt| jobs.contains(&attempt.task.job));
                self.free(&jobs);
                self.runs.retain(|task, _| !jobs.contains(&task.job));
            }
            Order::Copy { partition, to } => {
                if let Some(meta) = self.held.get(&partition).cloned() {
                    self.send(to, Wire::Put { partition, meta });
                }
            }
            Order::Inventory { to, fence } => {
                self.out.push(Out::Note(Note::Obeyed(fence)));
                let inventory = self.inventory(fence);
                self.participant.send(to, PeerMessage::Inventory(inventory));
            }
            Order::Alive { to, fence } => {
                self.out.push(Out::Note(Note::Obeyed(fence)));
                let load = self.load();
                self.participant.send(to, PeerMessage::Alive { fence, load });
            }
            Order::Prepare { to, fence } => {
                self.out.push(Out::Note(Note::Obeyed(fence)));
                self.participant.send(to, PeerMessage::Prepared { fence });
            }
        }
    }

    fn assign(&mut self, assignment: Assignment) {
        let Assignment { attempt, fence, .. } = assignment;
        self.out.push(Out::Note(Note::Accepted { attempt, fence }));
        if self.running(attempt).is_none() {
            self.attempts.push(assignment);
            self.fill_slots();
        }
    }

    fn fill_slots(&mut self) {
        for assignment in self.attempts.iter().take(self.participant.member().slots as usize) {
            if !self.started.contains_key(&assignment.attempt) {
                self.started.insert(assignment.attempt, self.now_ms());
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
            held: self.held.iter().map(|(task, meta)| (*task, meta.summary())).collect(),
            runs: self.runs.iter().map(|(task, run)| (*task, run.clone())).collect(),
            running: self.attempts.iter().map(|assignment| assignment.attempt).collect(),
            reading: Vec::new(),
            submitting: Vec::new(),
            sessions: self.sessions.iter().copied().collect(),
            load: self.load(),
        }
    }

    fn send(&mut self, to: NodeId, wire: Wire) -> bool {
        let connected = self.peers.contains(&to);
        if connected {
            self.out.push(Out::Send(to, wire));
        }
        connected
    }

    fn send_peer(&mut self, to: NodeId, message: PeerMessage) {
        if !self.peers.contains(&to) {
            return self.participant.not_sent(to, message);
        }
        if let PeerMessage::Assign(assignment) = &message {
            let Assignment { attempt, fence, .. } = **assignment;
            self.out.push(Out::Note(Note::Assigned { attempt, fence, to }));
        }
        self.out.push(Out::Send(to, Wire::Peer(message)));
    }

    fn entry(&mut self, command: Command) -> Entry {
        let request = self.next_request;
        self.next_request = RequestId(request.0 + 1);
        Entry { request, command }
    }

    fn propose(&mut self, entry: Entry, asker: Asker) {
        if let Command::Join { member } = &entry.command
            && let Err(failure) = self.participant.admit(member)
        {
            return self.answer(asker, Proposed::Applied(Err(failure), None));
        }
        match self.participant.propose(&entry) {
            Ok(()) => self.pending.entry(entry.request).or_default().push(asker),
            Err(ProposeError::NotLeader { leader }) => self.answer(asker, Proposed::NotLeader(leader)),
            Err(error) => self.answer(asker, Proposed::Applied(Err(error.into()), None)),
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
            Asker::Nobody => {
                if let Proposed::Applied(Err(Failure::Superseded { .. }), _) = proposed {
                    self.out.push(Out::BeginAnew);
                }
            }
        }
    }

    fn applied(&mut self, event: Event) {
        match &event {
            Event::Applied { request, outcome } => {
                let fence = self.fence();
                for asker in self.pending.remove(request).into_iter().flatten() {
                    self.answer(asker, Proposed::Applied(outcome.clone(), fence));
                }
            }
            Event::JobsFreed { jobs, .. } => self.free(jobs),
            Event::LeaderChanged { leader, .. } => self.answer_all(Proposed::NotLeader(*leader)),
            _ => {}
        }
        self.out.push(Out::Note(Note::Event(self.fence(), event)));
    }

    fn answer_all(&mut self, proposed: Proposed) {
        for asker in mem::take(&mut self.pending).into_values().flatten() {
            self.answer(asker, proposed.clone());
        }
    }

    /// Its era goes on in another, which it has to join. What it ran was for leaders that are no more.
    fn left(&mut self, era: Era) {
        self.answer_all(Proposed::NotLeader(None));
        self.looking_since_ms = self.now_ms();
        self.out.push(Out::Note(Note::Left(era)));
    }

    /// Becomes a member, says so when it was restarted, or leaves.
    fn keep_place(&mut self) {
        if let Some(since_ms) = self.leaving_since_ms {
            self.go(since_ms);
        } else if self.era().is_none() {
            self.look_around();
        } else if !self.is_listed() {
            self.come_back();
        } else {
            self.participant.withhold_vote(false);
        }
    }

    /// Makes this start known to the mesh. One that was removed while it was away hears of no leader by itself:
    /// it asks its peers.
    fn come_back(&mut self) {
        let own = self.participant.view(self.id());
        if !knows_leader(&own) {
            self.ask_for_views();
            if !std::mem::replace(&mut self.asked, true) {
                return self.participant.withhold_vote(true);
            }
        }
        let views = self.views.iter().map(|(node, (view, _))| (*node, view.clone())).collect();
        let look = self.rejoin.look(&self.member().incarnation.clone(), &own, &views);
        self.participant.withhold_vote(look.withholds);
        if matches!(look.next, Next::IsLedByAnother | Next::HasMissed) {
            return self.out.push(Out::BeginAnew);
        }
        if look.next == Next::Wait || self.now_ms() < self.ask_due_ms {
            return;
        }
        self.ask_due_ms = self.now_ms() + ASK_INTERVAL_MS;
        let entry = self.entry(Command::Join { member: self.member().clone() });
        match look.next {
            Next::Tell(leader) => self.forward(leader, entry, Asker::Nobody, MAX_HOPS),
            _ => self.ask(entry, Asker::Nobody),
        }
    }

    fn ask_for_views(&mut self) {
        let since_ms = self.now_ms().saturating_sub(VIEW_MS);
        self.views.retain(|_, (_, at_ms)| *at_ms >= since_ms);
        for peer in self.peers.clone() {
            self.send(peer, Wire::AskView);
        }
    }

    fn go(&mut self, since_ms: u64) {
        if self.era().is_none() || self.now_ms() >= since_ms + LEAVE_PATIENCE_MS {
            self.out.push(Out::Stop { clean: false });
        } else if self.has_left() {
            // Only the leader knows whether the vote still counts.
            if let Some(leader) = self.participant.leader() {
                self.send(leader, Wire::AskNeeded);
            }
        } else if self.now_ms() >= self.ask_due_ms {
            self.ask_due_ms = self.now_ms() + ASK_INTERVAL_MS;
            let entry = self.entry(Command::Leave { node: self.id() });
            self.ask(entry, Asker::Nobody);
        }
    }

    fn has_left(&self) -> bool {
        self.is_leaving() && self.era().is_some() && !self.state().members().contains_key(&self.id())
    }

    fn look_around(&mut self) {
        self.ask_for_views();
        if self.joins && self.views.is_empty() {
            return;
        }
        let views = self.views.iter().map(|(node, (view, _))| (*node, view.clone())).collect();
        let left = self.participant.replica().log().left();
        let elapsed_ms = self.now_ms().saturating_sub(self.looking_since_ms);
        match genesis(self.id(), &views, left, elapsed_ms, None) {
            Decision::Join { through, .. } if self.now_ms() >= self.ask_due_ms => {
                self.ask_due_ms = self.now_ms() + ASK_INTERVAL_MS;
                let target = views.get(&through).and_then(|view| view.leader).unwrap_or(through);
                let entry = self.entry(Command::Join { member: self.member().clone() });
                self.forward(target, entry, Asker::Nobody, MAX_HOPS);
            }
            Decision::Found => {
                let mesh = MeshId(u128::from(self.now_ms()) << 80 | u128::from(self.id().0));
                // It can only fail on a log that was used, and then there is a mesh.
                let _ = self.participant.found(mesh);
            }
            Decision::Join { .. } | Decision::Wait => {}
        }
    }

    /// What it does because of what is wrong with it, before it does the right thing.
    fn go_wrong(&mut self, message: &PeerMessage) {
        match (self.bug, message) {
            (Some(Bug::IgnoredFence), PeerMessage::Assign(assignment)) => self.assign((**assignment).clone()),
            (Some(Bug::EmptyHands), PeerMessage::View(view)) if self.schedules() && view.era > self.era() => {
                let Some(to) = view.era else { return };
                let (members, jobs_changed) = (view.members.clone(), self.state().jobs_changed());
                let entry = self.entry(Command::Yield { to, members, jobs_changed });
                // If it cannot be, it will be with the next message.
                let _ = self.participant.propose(&entry);
            }
            _ => {}
        }
    }
}

fn start_of(member: &Member) -> u64 {
    member.incarnation.marks.first().copied().map_or(0, u64::from)
}
