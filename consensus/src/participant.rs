//! One node's part in the mesh: its replica, the scheduler while it leads, its place among the voters, and what
//! becomes of it when eras meet.
//!
//! ```text
//!   messages, connections, reports, ticks ──> Participant ──poll──> Action: messages, orders, events, Write
//!                                                  ▲                                                   │
//!                                                  └──────────── persisted ─────── the disk <──────────┘
//! ```
//!
//! The caller gives it what happens and carries out what comes of it, in order:
//!
//! ```text
//!   while let Some(action) = participant.poll()? {
//!       match action {
//!           Action::Write(persist) => disk.write(persist),    // and when it is synced, `participant.persisted`
//!           ...
//!       }
//!   }
//! ```
//!
//! What a node sends to itself takes the same way as what a peer sends, without the network.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;

use bytes::Bytes;
use floe_protocol::message::{Assignment, MeshView, Report, Rival, Survivor};
use floe_protocol::{
    AttemptId, Era, Failure, Fence, JobId, JobPhase, Member, MeshId, NodeId, PeerMessage, RequestId, TaskId,
};

use crate::clock::{Clock, Reading};
use crate::command::{Command, Entry};
use crate::event::Event;
use crate::log::Persist;
use crate::membership::{has_left, survives};
use crate::replica::{BrokenError, Output, ProposeError, Replica, StepError, Written, read_message};
use crate::scheduler::{Effect, Input, Scheduler};
use crate::state_machine::StateMachine;

mod doorkeeper;
mod doubles;
mod healing;
mod voters;

pub use healing::HandedOver;

use doorkeeper::Doorkeeper;
use doubles::Doubles;
use healing::Healing;
use voters::Voters;

/// A leader that said nothing for this long counts as gone: a node without a vote holds no election, so it would
/// believe in it for ever.
const LEADER_SILENCE_MS: u64 = 3_000;

/// A node that no longer answers its leader hangs if nothing at all was heard of it for this long: one of another era
/// says so every second.
const HUNG_MS: u64 = 1_500;

/// Reports that are kept for a leader that cannot be reached. It finds the rest in the inventory.
const MAX_UNSENT: usize = 1_024;

/// Members that a node names to one of another era, so that it finds its leader and, should that die, another.
const MAX_VIEW_MEMBERS: usize = 8;

/// Something the node must do.
#[derive(Debug)]
pub enum Action {
    /// Send a message to another node. If it cannot be, say so: [`Participant::not_sent`].
    Send(NodeId, PeerMessage),
    /// The leader's orders to this node's worker.
    Order(Order),
    /// Something was agreed on, or the leadership changed.
    Event(Event),
    /// Be reachable for a member: these are its addresses.
    Dial(Member),
    /// An order was refused: its leader has been replaced.
    Refused {
        /// Who gave it.
        from: NodeId,
        /// Under which fence.
        fence: Fence,
    },
    /// End, and go on as another node only: the mesh knows more of this one than its disk does, and why
    /// ([`Failure::Superseded`]).
    Superseded(Failure),
    /// Break a connection that only seems to stand.
    Disconnect(NodeId),
    /// The leader hears nothing of this node: see whether it answers here, and else break the connection too.
    Probe(NodeId),
    /// This node has left its era, and with it its mesh, and must join the one that goes on. Its partitions stay, and
    /// what it runs: the other one's leader takes over what it wants of that. Nobody answers its proposals.
    Left {
        /// What it left.
        era: Era,
        /// What goes on.
        to: Era,
    },
    /// Have this written and synced, in one piece, and then call [`Participant::persisted`]. Until then there is no
    /// further one, and all else goes on.
    Write(Box<Persist>),
}

/// What a leader asks of a node's worker and store.
#[derive(Debug)]
pub enum Order {
    /// Run this.
    Assign(Box<Assignment>),
    /// Stop these attempts.
    Abort(Vec<AttemptId>),
    /// Stop all of these jobs, and drop their partitions.
    Free(Vec<JobId>),
    /// Give another node a copy of a partition, and then say so: [`Participant::copied`].
    Copy {
        /// The partition.
        partition: TaskId,
        /// The node.
        to: NodeId,
    },
    /// Answer with an inventory under this fence: [`Participant::send`].
    Inventory {
        /// Who asks.
        to: NodeId,
        /// Its fence.
        fence: Fence,
    },
    /// Answer with [`PeerMessage::Alive`].
    Alive {
        /// Who asks.
        to: NodeId,
        /// Its fence.
        fence: Fence,
    },
    /// Get what voters keep beside the log, as far as anybody has it, and then answer with [`PeerMessage::Prepared`]. It
    /// is repeated until then.
    Prepare {
        /// Who asks.
        to: NodeId,
        /// Its fence.
        fence: Fence,
    },
}

/// Why a node does not carry on by itself.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CarryOnError {
    /// It never had a mesh.
    #[error("this node has no mesh to recover")]
    NoMesh,
    /// It hears from a leader.
    #[error("the mesh has a leader")]
    Led(NodeId),
    /// It is not of the mesh whose log it has.
    #[error("this node is no member of the mesh whose log it holds")]
    NoMember,
    /// The mesh went on without it, or it is of another.
    #[error("this node's era is another")]
    OtherEra,
    /// The log takes nothing at present.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// One node's part in the mesh.
pub struct Participant {
    member: Member,
    replica: Replica,
    /// While this node leads with its state current.
    scheduler: Option<Scheduler>,
    /// Whose messages count: the state's, or before it is here that of whoever took this node in.
    era: Option<Era>,
    /// The highest term of this era that orders came under, and who gave them.
    obeyed_term: u64,
    obeyed: Option<NodeId>,
    connected: BTreeSet<NodeId>,
    /// When anything was last heard of a node, be it of another era.
    heard_ms: BTreeMap<NodeId, u64>,
    /// When a node last spoke as one of this era. A leader that left for another one does not.
    spoke_ms: BTreeMap<NodeId, u64>,
    /// Who led this era when a leader was last heard, and when that was.
    led: Option<(NodeId, u64)>,
    doubles: Doubles,
    healing: Healing,
    doorkeeper: Doorkeeper,
    voters: Voters,
    /// The id of the next proposal of this node's own.
    next_request: RequestId,
    unsent: VecDeque<Report>,
    to_self: VecDeque<PeerMessage>,
    actions: VecDeque<Action>,
    /// The era to leave for, once that is on disk.
    leaving_for: Option<Era>,
    clock: Clock,
    born_ms: u64,
}

impl Participant {
    /// The part of `member`, as it is now, with the replica on its log. This node's own proposals are named from `first_request` on, which
    /// must be far from any other node's, and from this one's at any other start.
    pub fn new(member: Member, replica: Replica, first_request: RequestId, reading: Reading) -> Self {
        let clock = Clock::new(reading);
        let era = replica.state().era();
        let mut participant = Self {
            member,
            replica,
            scheduler: None,
            era,
            obeyed_term: 0,
            obeyed: None,
            connected: BTreeSet::new(),
            heard_ms: BTreeMap::new(),
            spoke_ms: BTreeMap::new(),
            led: None,
            doubles: Doubles::default(),
            healing: Healing::default(),
            doorkeeper: Doorkeeper::default(),
            voters: Voters::default(),
            next_request: first_request,
            unsent: VecDeque::new(),
            to_self: VecDeque::new(),
            actions: VecDeque::new(),
            leaving_for: None,
            born_ms: clock.now().ms,
            clock,
        };
        participant.dial_members();
        participant.follow_yield();
        participant
    }

    /// See [`Replica::withhold_vote`].
    pub fn withhold_vote(&mut self, withholds: bool) {
        self.replica.withhold_vote(withholds);
    }

    /// How many ticks may pass before one of them has anything to do, unless something else happens first; at least one.
    /// See [`Replica::quiet_ticks`]. A node that has nothing to do is woken by its leader alone.
    pub fn quiet_ticks(&self) -> u32 {
        let busy = match &self.scheduler {
            Some(scheduler) => !scheduler.is_quiet(),
            None => self.leader().is_none(),
        };
        let heals = self.leaving_for.is_some() || self.healing.is_under_way();
        if busy || heals || !self.unsent.is_empty() { 1 } else { self.replica.quiet_ticks() }
    }

    /// As many times [`crate::replica::TICK_MS`] passed: no more than [`Participant::quiet_ticks`] said, and after a stall
    /// one.
    pub fn tick(&mut self, reading: Reading, ticks: u32) {
        let now_ms = self.clock.observe(reading).ms;
        for _ in 0..ticks {
            self.replica.tick();
        }
        self.schedule(Input::Tick);
        for report in mem::take(&mut self.unsent) {
            self.report(report);
        }
        if self.voters.is_due(now_ms) {
            self.keep_membership();
            self.forget_strangers();
            self.keep_door();
        }
        self.carry_on_if_left_over();
        self.heal();
    }

    /// A node is connected.
    pub fn connected(&mut self, reading: Reading, node: NodeId) {
        self.clock.observe(reading);
        self.connected.insert(node);
        self.node_up(node);
    }

    /// A node is not connected any more.
    pub fn disconnected(&mut self, reading: Reading, node: NodeId) {
        self.clock.observe(reading);
        self.connected.remove(&node);
        self.healing.forget(node);
        self.replica.report_unreachable(node);
        self.schedule(Input::NodeDown { node });
    }

    /// A message came.
    pub fn receive(&mut self, reading: Reading, from: NodeId, message: PeerMessage) {
        let now_ms = self.clock.observe(reading).ms;
        self.heard_ms.insert(from, now_ms);
        self.handle(from, message);
    }

    /// A message could not be sent: the peer is away, or does not keep up.
    pub fn not_sent(&mut self, to: NodeId, message: PeerMessage) {
        match message {
            PeerMessage::Raft { .. } => self.replica.report_unreachable(to),
            PeerMessage::Report(report) if self.unsent.len() < MAX_UNSENT => self.unsent.push_back(report),
            // Whoever sends anything else says again what matters.
            _ => {}
        }
    }

    /// Sends a message, to this node itself too.
    pub fn send(&mut self, to: NodeId, message: PeerMessage) {
        if to == self.member.id {
            self.to_self.push_back(message);
        } else {
            self.actions.push_back(Action::Send(to, message));
        }
    }

    /// Tells the leader of an attempt's end. What it cannot be told now is told with a later tick; without a
    /// leader the next one finds the outcome in this node's inventory.
    pub fn report(&mut self, report: Report) {
        let Some(leader) = self.obeyed else { return };
        if self.is_connected(leader) {
            self.send(leader, PeerMessage::Report(report));
        } else if self.unsent.len() < MAX_UNSENT {
            self.unsent.push_back(report);
        }
    }

    /// A result partition could not be had from a node that should hold it.
    pub fn lost(&mut self, partition: TaskId, node: NodeId) {
        if let Some(leader) = self.leader() {
            self.send(leader, PeerMessage::Lost { partition, node });
        }
    }

    /// Another node has a copy of a partition that this one holds, or did not take it.
    pub fn copied(&mut self, partition: TaskId, node: NodeId, done: bool) {
        if let Some(leader) = self.leader() {
            self.send(leader, PeerMessage::Copied { partition, node, done });
        }
    }

    /// Proposes an entry, if this node leads and is not about to hand over to another era.
    pub fn propose(&mut self, entry: &Entry) -> Result<(), ProposeError> {
        if self.healing.is_frozen() { Err(ProposeError::Busy) } else { self.replica.propose(entry) }
    }

    /// Founds a mesh with this node as its only member. Only a node that never had one can, or has left it.
    pub fn found(&mut self, mesh: MeshId) -> Result<(), ProposeError> {
        let request = self.next_request();
        self.replica.found(request, mesh, self.member.clone())
    }

    /// See [`Replica::read_index`]. The outcome is [`Event::ReadReady`].
    pub fn read_index(&mut self, request: RequestId) -> bool {
        self.replica.read_index(request)
    }

    /// Begins the mesh's next era with this node alone, because its owner says that the others are gone: from
    /// `era`, and not if that has a leader.
    pub fn recover(&mut self, era: Era) -> Result<(), CarryOnError> {
        let own = self.replica.state().era().ok_or(CarryOnError::NoMesh)?;
        if own != era {
            return Err(CarryOnError::OtherEra);
        }
        if let Some(leader) = self.leader() {
            return Err(CarryOnError::Led(leader));
        }
        if !self.state().members().contains_key(&self.member.id) {
            return Err(CarryOnError::NoMember);
        }
        Ok(self.carry_on()?)
    }

    /// What there is to do next, if anything. After an error the participant is not to be used any more.
    pub fn poll(&mut self) -> Result<Option<Action>, BrokenError> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Ok(Some(action));
            }
            if self.leaving_for.is_some() {
                // It is of none: there is nothing to leave.
                let Some(era) = self.era else {
                    self.leaving_for = None;
                    continue;
                };
                self.replica.leave(era);
            }
            if let Some(output) = self.replica.take_output()? {
                self.carry_out(output);
            } else if let Some(persist) = self.replica.take_write() {
                return Ok(Some(Action::Write(Box::new(persist))));
            } else if self.leaving_for.is_some() {
                return Ok(None);
            } else {
                let Some(message) = self.to_self.pop_front() else { return Ok(None) };
                self.handle(self.member.id, message);
            }
        }
    }

    /// What [`Action::Write`] held is on disk. After an error the participant is not to be used any more.
    pub fn persisted(&mut self, written: Written) -> Result<(), BrokenError> {
        let output = self.replica.persisted(written)?;
        self.carry_out(output);
        Ok(())
    }

    fn carry_out(&mut self, output: Output) {
        self.send_raft(&output.send);
        for event in output.events {
            self.applied(event);
        }
        if output.left
            && let (Some(to), Some(era)) = (self.leaving_for.take(), self.era.take())
        {
            self.scheduler = None;
            self.voters = Voters::default();
            (self.obeyed_term, self.obeyed) = (0, None);
            self.unsent.clear();
            self.to_self.clear();
            self.spoke_ms.clear();
            self.led = None;
            self.healing = Healing::default();
            self.actions.push_back(Action::Left { era, to });
        }
    }

    /// The node as it is now.
    pub fn member(&self) -> &Member {
        &self.member
    }

    /// Its copy of the log.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Its copy of the replicated state.
    pub fn state(&self) -> &StateMachine {
        self.replica.state()
    }

    /// The scheduler, while this node leads with its state current.
    pub fn scheduler(&self) -> Option<&Scheduler> {
        self.scheduler.as_ref()
    }

    /// The leader that this node hears from, itself if it leads.
    pub fn leader(&self) -> Option<NodeId> {
        let leader = self.replica.leader()?;
        let since_ms = self.now_ms().saturating_sub(LEADER_SILENCE_MS);
        let heard = self.born_ms >= since_ms
            || self.led.is_some_and(|(node, led_ms)| node == leader && led_ms >= since_ms);
        (leader == self.member.id || heard).then_some(leader)
    }

    /// Whether a node is connected, this one included.
    pub fn is_connected(&self, node: NodeId) -> bool {
        node == self.member.id || self.connected.contains(&node)
    }

    /// Whether a node is there as far as this one can tell: the leader waits for answers, others see connections.
    pub fn answers(&self, node: NodeId) -> bool {
        self.is_connected(node) && self.scheduler.as_ref().is_none_or(|scheduler| scheduler.is_alive(node))
    }

    /// What this node tells one of another era, or of none, or itself.
    pub fn view(&self, asker: NodeId) -> MeshView {
        let leader = self.leader();
        let members = self.state().members();
        let rank = |node: &&Member| (Some(node.id) != leader, !self.is_connected(node.id));
        let mut named: Vec<_> = members.values().collect();
        named.sort_by_key(rank);
        named.truncate(MAX_VIEW_MEMBERS);
        let mut peers: Vec<_> = self.connected.iter().copied().chain([self.member.id]).collect();
        peers.sort_unstable();
        MeshView {
            node: self.member.id,
            era: self.state().era(),
            work_ms: self.state().claim().and_then(|claim| claim.work_ms),
            leader,
            peers,
            ended: self.state().ended_eras().chain(self.replica.log().left().iter().copied()).collect(),
            members: named.into_iter().cloned().collect(),
            known: members.get(&asker).map(|member| member.incarnation.clone()),
        }
    }

    /// An era that wins over this node's own, if any is seen.
    pub fn rival(&self) -> Option<Rival> {
        let view = self.healing.winner(self.state().claim()?, self.replica.log().left())?;
        Some(Rival { era: view.era?, node: view.node, leader: view.leader })
    }

    /// How much of the mesh's log is here.
    pub fn survivor(&self) -> Survivor {
        Survivor {
            node: self.member.id,
            era: self.state().era(),
            leader: self.leader(),
            log: self.replica.last_entry(),
        }
    }

    fn handle(&mut self, from: NodeId, message: PeerMessage) {
        match message {
            PeerMessage::Raft { era, incarnation, message } => {
                if self.is_itself(from, &incarnation) && self.is_of(from, era) {
                    let now_ms = self.now_ms();
                    self.spoke_ms.insert(from, now_ms);
                    // What cannot be read, and what else is refused, counts as lost.
                    let Ok(message) = read_message(&message) else { return };
                    if self.replica.is_from_leader(&message) {
                        self.led = Some((from, now_ms));
                    }
                    if let Err(error @ StepError::Forgotten { .. }) = self.replica.step_message(message) {
                        let message = format!("this data directory was put back from a backup: {error}");
                        self.actions.push_back(Action::Superseded(Failure::Superseded { message }));
                    }
                }
            }
            PeerMessage::Assign(assignment) => {
                if self.obeys(from, assignment.fence) {
                    self.actions.push_back(Action::Order(Order::Assign(assignment)));
                }
            }
            PeerMessage::Abort { fence, attempts } => {
                if self.obeys(from, fence) {
                    self.actions.push_back(Action::Order(Order::Abort(attempts)));
                }
            }
            PeerMessage::Free { fence, jobs } => {
                if self.obeys(from, fence) {
                    self.actions.push_back(Action::Order(Order::Free(jobs)));
                }
            }
            PeerMessage::Copy { fence, partition, to } => {
                if self.obeys(from, fence) {
                    self.actions.push_back(Action::Order(Order::Copy { partition, to }));
                }
            }
            PeerMessage::Copied { partition, node, done } => {
                self.schedule(Input::Copied { partition, node, done });
            }
            PeerMessage::AskInventory { fence } => {
                if self.obeys(from, fence) {
                    self.actions.push_back(Action::Order(Order::Inventory { to: from, fence }));
                }
            }
            PeerMessage::Lease { fence } => {
                if self.obeys(from, fence) {
                    self.actions.push_back(Action::Order(Order::Alive { to: from, fence }));
                }
            }
            PeerMessage::Prepare { fence } => {
                if self.obeys(from, fence) {
                    self.prepare(from, fence);
                }
            }
            PeerMessage::Prepared { fence } => self.prepared(from, fence),
            PeerMessage::Silent { fence, node } => {
                if self.obeys(from, fence) && self.connected.contains(&node) {
                    self.actions.push_back(Action::Probe(node));
                }
            }
            PeerMessage::Inventory(inventory) => self.schedule(Input::Inventory { node: from, inventory }),
            PeerMessage::Alive { fence, load } => self.schedule(Input::Alive { node: from, fence, load }),
            PeerMessage::Lost { partition, node } => self.schedule(Input::PartitionLost { partition, node }),
            PeerMessage::Report(report) => self.schedule(Input::Report { node: from, report }),
            PeerMessage::View(view) => self.viewed(from, *view),
            PeerMessage::Adopt { claim, ended, jobs_changed, jobs } => {
                self.adopt(from, claim, ended, jobs_changed, &jobs);
            }
            PeerMessage::Adopted { era, jobs_changed, jobs } => {
                self.handed_over(from, era, jobs_changed, jobs);
            }
        }
    }

    /// Whether a message is of this node's era. A mesh that this node asked to join speaks first: until anything of
    /// its log is here, its messages say which it is; of several that do so it follows the one that will win, while
    /// anybody of that speaks.
    fn is_of(&mut self, from: NodeId, era: Era) -> bool {
        if self.era == Some(era) {
            return true;
        }
        let since_ms = self.now_ms().saturating_sub(LEADER_SILENCE_MS);
        let gone = self.spoke_ms.values().all(|spoke_ms| *spoke_ms < since_ms);
        let blank = self.replica.last_entry() == (0, 0);
        // What this node promised in an era that it left is forgotten, so it must not promise anything there again.
        if blank && (self.era < Some(era) || gone) && !has_left(self.replica.log().left(), era) {
            self.spoke_ms.clear();
            self.be_of(era);
            return true;
        }
        self.tell(from);
        false
    }

    /// Follows this era's leaders from now on. Their terms say nothing of another era's.
    fn be_of(&mut self, era: Era) {
        if self.era.replace(era) != Some(era) {
            (self.obeyed_term, self.obeyed) = (0, None);
        }
    }

    /// Whether an order is to be followed: not of a leader that has been replaced.
    fn obeys(&mut self, from: NodeId, fence: Fence) -> bool {
        if !self.is_of(from, fence.era) || fence.term < self.obeyed_term {
            self.actions.push_back(Action::Refused { from, fence });
            return false;
        }
        self.obeyed_term = fence.term;
        self.obeyed = Some(from);
        true
    }

    fn send_raft(&mut self, messages: &[(NodeId, Bytes)]) {
        let Some(era) = self.era else { return };
        // raft-rs walks its peers in no particular order.
        let mut messages: Vec<_> = messages.iter().collect();
        messages.sort_by_key(|(to, _)| *to);
        for (to, message) in messages {
            let incarnation = self.member.incarnation.clone();
            let message = PeerMessage::Raft { era, incarnation, message: message.clone() };
            self.actions.push_back(Action::Send(*to, message));
        }
    }

    fn schedule(&mut self, input: Input) {
        let now = self.clock.now();
        let Some(scheduler) = &mut self.scheduler else { return };
        for effect in scheduler.step(now, input) {
            match effect {
                // The scheduler says again what matters, and proposes again what did not come through.
                Effect::Send(to, message) => self.send(to, message),
                Effect::Propose(command) => self.decide(command),
                Effect::NodeLost(node) => {
                    // One of another era obeys nobody here and is well all the same: the two have yet to meet.
                    let since_ms = self.now_ms().saturating_sub(HUNG_MS);
                    if self.heard_ms.get(&node).is_none_or(|heard_ms| *heard_ms < since_ms) {
                        self.actions.push_back(Action::Disconnect(node));
                        self.tell_of_silence(node);
                    }
                }
            }
        }
    }

    /// Calls that others wait for may be with a node that hangs, and they have little to hear of it otherwise.
    fn tell_of_silence(&mut self, node: NodeId) {
        let Some(scheduler) = &self.scheduler else { return };
        let fence = scheduler.fence();
        let others = self.connected.iter().filter(|other| **other != node);
        let members = others.filter(|other| self.replica.state().members().contains_key(other));
        let told = members.map(|other| Action::Send(*other, PeerMessage::Silent { fence, node }));
        self.actions.extend(told);
    }

    /// Proposes a command of the leader's own, which it proposes again if nothing comes of it. One that is too long
    /// can never be agreed on: its job fails.
    pub fn decide(&mut self, command: Command) {
        let request = self.next_request();
        let entry = Entry { request, command };
        let Err(ProposeError::TooLong { bytes }) = self.propose(&entry) else { return };
        if let Command::StageDone { job, ended_at, .. } = entry.command {
            let message = format!(
                "the outcome of a stage takes {bytes} bytes, which is too much to agree on: use fewer partitions"
            );
            let phase = JobPhase::Failed(Failure::Refused { message });
            let command = Command::EndJob { job, phase, ended_at };
            let request = self.next_request();
            let _ = self.propose(&Entry { request, command });
        }
    }

    fn now_ms(&self) -> u64 {
        self.clock.now().ms
    }

    fn next_request(&mut self) -> RequestId {
        let request = self.next_request;
        self.next_request = RequestId(request.0.wrapping_add(1));
        request
    }

    /// Follows what the mesh has agreed on.
    fn applied(&mut self, event: Event) {
        if let Some(input) = Input::from_event(&event) {
            self.schedule(input);
        }
        match &event {
            Event::MeshFounded { .. }
            | Event::CarriedOn { .. }
            | Event::Restored { .. }
            | Event::Reconfigured => {
                if let Some(era) = self.state().era() {
                    self.be_of(era);
                }
                self.dial_members();
            }
            Event::MemberJoined { member } => {
                let member = member.clone();
                let node = member.id;
                self.doubles.joined(node);
                self.dial(member);
                if self.is_connected(node) {
                    self.node_up(node);
                }
                self.keep_membership();
            }
            Event::MemberLeft { .. } => self.keep_membership(),
            Event::Elected { term } => self.elected(*term),
            Event::Deposed { .. } => {
                self.scheduler = None;
                self.doorkeeper = Doorkeeper::default();
                self.voters = Voters::default();
                self.healing.deposed();
            }
            Event::Applied { request, outcome } => self.adoption_applied(*request, outcome.is_ok()),
            Event::DoorChanged
            | Event::Yielded { .. }
            | Event::JobsFreed { .. }
            | Event::JobAccepted { .. }
            | Event::JobAdopted { .. }
            | Event::JobShared { .. }
            | Event::StageDone { .. }
            | Event::JobEnded { .. }
            | Event::LeaderChanged { .. }
            | Event::ReadReady { .. } => {}
        }
        self.actions.push_back(Action::Event(event));
        self.follow_yield();
    }

    /// If this node's era has ended, the node leaves it too. That may have come with a snapshot, or before its
    /// last stop.
    fn follow_yield(&mut self) {
        let Some(yielded) = self.state().yielded().cloned() else { return };
        self.leave_for(yielded.to, yielded.members);
    }

    fn leave_for(&mut self, to: Era, members: Vec<Member>) {
        if self.leaving_for.is_none() {
            self.leaving_for = Some(to);
            for member in members {
                self.dial(member);
            }
        }
    }

    fn dial_members(&mut self) {
        let members: Vec<_> = self.state().members().values().cloned().collect();
        for member in members {
            self.dial(member);
        }
    }

    fn dial(&mut self, member: Member) {
        if member.id != self.member.id {
            self.actions.push_back(Action::Dial(member));
        }
    }

    fn elected(&mut self, term: u64) {
        let Some(era) = self.state().era() else { return };
        let members: Vec<NodeId> = self.state().members().keys().copied().collect();
        self.scheduler = Some(Scheduler::new(Fence { era, term }, self.clock.now(), self.replica.state()));
        for node in members {
            if self.is_connected(node) {
                self.node_up(node);
            } else {
                self.schedule(Input::NodeDown { node });
            }
        }
        self.keep_membership();
    }

    /// Tells the scheduler of a node that can take work: a member, and connected.
    fn node_up(&mut self, node: NodeId) {
        let Some(member) = self.state().members().get(&node) else { return };
        let (name, slots, memory_bytes) = (member.name.clone(), member.slots, member.memory_bytes);
        self.schedule(Input::NodeUp { node, name, slots, memory_bytes });
    }

    /// Whether a node has spoken lately as one of this era.
    fn speaks(&self, node: NodeId) -> bool {
        let since_ms = self.now_ms().saturating_sub(LEADER_SILENCE_MS);
        self.spoke_ms.get(&node).is_some_and(|spoke_ms| *spoke_ms >= since_ms)
    }

    /// Nodes come and go: of those that are neither members nor connected nothing is remembered.
    fn forget_strangers(&mut self) {
        let (connected, members) = (&self.connected, self.replica.state().members());
        let known = |node: &NodeId| connected.contains(node) || members.contains_key(node);
        self.heard_ms.retain(|node, _| known(node));
        self.spoke_ms.retain(|node, _| known(node));
        self.doubles.retain(|node| members.contains_key(node));
    }

    /// The one of a pair of voters that is left when the other falls silent goes on.
    fn carry_on_if_left_over(&mut self) {
        let leads = self.scheduler.is_some() || self.leader().is_some();
        if leads || !self.state().members().contains_key(&self.member.id) || self.leaving_for.is_some() {
            return;
        }
        let now_ms = self.now_ms();
        // Whoever was heard of before this node slept may be gone by now, or this node's network.
        let up_ms = self.clock.continuous_ms();
        let ago = self.heard_ms.iter().map(|(node, heard_ms)| (*node, now_ms.saturating_sub(*heard_ms)));
        let heard = ago.filter(|(_, ago_ms)| *ago_ms < up_ms).collect();
        if survives(self.member.id, &self.replica.configurations(), &heard, up_ms) {
            // While its log is being replaced it cannot be; the next tick finds it the same.
            let _ = self.carry_on();
        }
    }

    fn carry_on(&mut self) -> Result<(), ProposeError> {
        // The era may have ended without this node's knowledge: then there is nothing to carry on.
        match self.replica.outlook().yielded().cloned() {
            Some(yielded) => self.leave_for(yielded.to, yielded.members),
            None => self.replica.carry_on()?,
        }
        Ok(())
    }
}
