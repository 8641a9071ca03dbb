//! One simulated run: nodes, network, disks, drivers and faults under one executor with simulated time.
//!
//! ```text
//!   boot, genesis          jobs and faults                       calm: everything heals
//!   0 s ──────────── 5 s ──────────────────── 21 s ──────────────────── one mesh, all jobs ended
//! ```
//!
//! A boot is the first part alone, of nodes that do not find each other at once.
//!
//! Everything that happens is an event at a time; the one that is due next happens next, and one thread does
//! it all. Chance comes from the seed alone, so that a seed is a run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::RangeInclusive;

use floe_consensus::scheduler::SESSION_PATIENCE_MS;
use floe_consensus::{Command, LogParts, Persist};
use floe_protocol::message::Assignment;
use floe_protocol::{
    AttemptId, Era, Failure, Incarnation, JobId, JobPhase, Member, NodeId, OutputMeta, PeerMessage, TaskId,
};
use protobuf::Message as _;
use raft::Storage as _;
use raft::eraftpb::{Message, MessageType};

use super::check::Checker;
use super::clocks::{Clocks, wall};
use super::dice::Dice;
use super::disk::{Disk, Fate, WRITE_MS};
use super::faults::halves;
use super::jobs::{Order, is_poison, made, meta};
use super::network::{Change, Network, Weather};
use super::node::{Asker, Bug, NODE_TICK_MS, Node, Note, Out, Proposed, Start, Wire};
use super::story::{describe, name};

mod faults;
mod outcome;

/// When jobs and faults begin: the mesh is founded by then, unless its nodes do not see each other.
const BEGIN_MS: u64 = 5_000;

/// When faults stop.
const CALM_MS: u64 = 21_000;

/// Within this time after faults stop all nodes are one mesh, and every job ends.
const PATIENCE_MS: u64 = 45_000;

/// How often connections are looked at.
const LOOK_MS: u64 = 50;

/// Within this time after it begins, the nodes of a boot are one mesh.
const BOOT_PATIENCE_MS: u64 = 60_000;

/// Within this time after faults stop, standing jobs end whose drivers are gone: a last leader comes, and misses them
/// for a while.
const VANISHED_MS: u64 = PATIENCE_MS + SESSION_PATIENCE_MS;

/// Nodes that ever take part in one run.
const MAX_NODES: usize = 16;

/// Something due.
#[derive(Clone, Debug)]
enum Event {
    Boot(NodeId),
    Tick(NodeId, u64),
    Deliver {
        from: NodeId,
        to: NodeId,
        life: u64,
        wire: Box<Wire>,
    },
    EndTask(NodeId, u64, AttemptId),
    DieOfTask(NodeId, u64, AttemptId),
    Written(NodeId, u64),
    Quicken(NodeId),
    Link(Change, u64),
    Look,
    /// A node is killed, and started again at once.
    Restart(NodeId),
    PutBack(NodeId),
    Submit,
    Drive(usize),
    Attend(JobId),
    Fault,
    Recover(NodeId),
    CarryOn(NodeId, u64, Era),
    Resume(NodeId, u64),
    Heal(u64),
    Brighten,
    Calm,
}

/// A machine, whether its node runs or not.
struct Machine {
    id: NodeId,
    node: Option<Box<Node>>,
    disk: Disk,
    held: BTreeMap<TaskId, OutputMeta>,
    /// Counts its starts.
    life: u64,
    /// Ticks without a leader before it campaigns, different from all others'.
    patience: usize,
    clocks: Clocks,
    paused: bool,
    /// Since when its machine sleeps, and for how long by its own account.
    sleeps: Option<(u64, u64)>,
    /// What happened to it while it was paused.
    backlog: Vec<Event>,
    /// The start that it counts as.
    start: Incarnation,
    /// A copy of its data directory.
    copy: Option<Copy>,
    /// A copy took the place of its directory, and what came later is gone.
    put_back: bool,
    /// How long it stays down after a write that failed.
    down_ms: u64,
    /// It left the mesh in good order.
    gone: bool,
    /// It came later and was told whom to join.
    joins: bool,
}

/// A copy of a machine's data directory.
struct Copy {
    era: Option<Era>,
    /// How many voted then, as far as it says. One of a pair may go on alone, and what became of the pair it cannot know.
    voters: usize,
    start: Incarnation,
    log: LogParts,
    held: BTreeMap<TaskId, OutputMeta>,
}

/// What a run was made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) steps: u64,
    pub(super) faults: u64,
    pub(super) jobs: u64,
    pub(super) succeeded: u64,
    pub(super) failed: u64,
    /// Nodes that died of a job.
    pub(super) poisoned: u64,
    pub(super) eras: u64,
    /// Nodes that were told to carry on alone, and did.
    pub(super) recovered: u64,
    /// Nodes that left their era for another.
    pub(super) left: u64,
    /// Nodes whose directory a copy took the place of.
    pub(super) put_back: u64,
    /// Nodes that were found out by it, and went on as others.
    pub(super) anew: u64,
    /// Of everything that happened, in order.
    pub(super) hash: u64,
}

impl Tally {
    /// Counts another run in.
    pub(super) fn add(&mut self, run: Self) {
        let Self {
            steps,
            faults,
            jobs,
            succeeded,
            failed,
            poisoned,
            eras,
            recovered,
            left,
            put_back,
            anew,
            hash: _,
        } = run;
        self.steps += steps;
        self.faults += faults;
        self.jobs += jobs;
        self.succeeded += succeeded;
        self.failed += failed;
        self.poisoned += poisoned;
        self.eras += eras;
        self.recovered += recovered;
        self.left += left;
        self.put_back += put_back;
        self.anew += anew;
    }
}

/// One run.
pub(super) struct World {
    now_ms: u64,
    dice: Dice,
    due: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    machines: BTreeMap<NodeId, Machine>,
    network: Network,
    orders: Vec<Order>,
    /// Standing jobs whose drivers are neither done nor gone.
    attended: BTreeSet<JobId>,
    checker: Checker,
    cuts: u64,
    calm: bool,
    /// A machine was lost for good.
    lost: bool,
    /// Nodes that somebody has told to go on alone, which takes until that is on their disks.
    recovering: BTreeSet<NodeId>,
    bug: Option<Bug>,
    hasher: DefaultHasher,
    told: VecDeque<String>,
    /// How many of the last lines are kept.
    lines: usize,
    pub(super) tally: Tally,
}

impl World {
    pub(super) fn new(seed: u64, nodes: RangeInclusive<u64>, lines: usize, bug: Option<Bug>) -> Self {
        let mut world = Self::empty(seed, lines, bug);
        let nodes = world.dice.between(nodes);
        for _ in 0..nodes {
            let wait_ms = world.dice.between(0..=500);
            world.add_machine(wait_ms);
        }
        // Two groups that do not see each other found two meshes.
        if world.dice.chance(150) {
            let ids: Vec<_> = world.machines.keys().copied().collect();
            let links = halves(&mut world.dice, &ids);
            let ms = world.dice.between(1_000..=14_000);
            world.cut(links, ms);
        }
        world.at(0, Event::Look);
        world.at(BEGIN_MS, Event::Submit);
        world.at(BEGIN_MS, Event::Fault);
        world.at(CALM_MS, Event::Calm);
        world
    }

    /// Nodes that start within a second, and find each other sooner or later over a network that loses some of what
    /// they say.
    pub(super) fn boot_of(seed: u64, nodes: RangeInclusive<u64>, lines: usize) -> Self {
        let mut world = Self::empty(seed, lines, None);
        let nodes = world.dice.between(nodes);
        for _ in 0..nodes {
            let wait_ms = world.dice.between(0..=1_000);
            world.add_machine(wait_ms);
        }
        let slowest_ms = world.dice.pick(&[100, 1_000, 3_000, 6_000]).unwrap_or(100);
        let ids: Vec<_> = world.machines.keys().copied().collect();
        for (position, a) in ids.iter().enumerate() {
            for b in &ids[..position] {
                let until_ms = world.dice.between(0..=slowest_ms);
                world.network.hide(*a, *b, until_ms);
            }
        }
        world.network.weather = Weather {
            // A connection loses nothing while it lasts, but a node that cannot keep up does.
            lost_permille: world.dice.between(0..=20),
            delay_ms: world.dice.between(0..=200),
            ..Weather::default()
        };
        world.at(0, Event::Look);
        world
    }

    fn empty(seed: u64, lines: usize, bug: Option<Bug>) -> Self {
        Self {
            now_ms: 0,
            dice: Dice::new(seed),
            due: BTreeMap::new(),
            scheduled: 0,
            machines: BTreeMap::new(),
            network: Network::default(),
            orders: Vec::new(),
            attended: BTreeSet::new(),
            checker: Checker::default(),
            cuts: 0,
            calm: false,
            lost: false,
            recovering: BTreeSet::new(),
            bug,
            hasher: DefaultHasher::new(),
            told: VecDeque::new(),
            lines,
            tally: Tally::default(),
        }
    }

    /// Plays the run to its end, or to the first violation.
    pub(super) fn run(&mut self) -> Result<(), String> {
        let mut patience_ms = PATIENCE_MS;
        while let Some(((at_ms, _), event)) = self.due.pop_first() {
            self.now_ms = at_ms;
            self.tally.steps += 1;
            let looks = matches!(event, Event::Look);
            self.handle(event)?;
            if looks && self.calm {
                let unfinished = self.unfinished().or_else(|| {
                    let stands = self.stands()?;
                    // All else is as it must be, but for a moment when this ends.
                    patience_ms = VANISHED_MS;
                    Some(stands)
                });
                match unfinished {
                    None => break,
                    Some(what) if self.now_ms >= CALM_MS + patience_ms => {
                        return Err(format!("{} s after the last fault {what}", patience_ms / 1_000));
                    }
                    Some(_) => {}
                }
            }
        }
        self.check_failures()?;
        self.count_jobs();
        self.tally.hash = self.hasher.finish();
        Ok(())
    }

    /// Plays a boot: when its nodes were one mesh with one leader, which lists all of them; else what they are.
    pub(super) fn boot_all(&mut self) -> Result<u64, String> {
        while let Some(((at_ms, _), event)) = self.due.pop_first() {
            self.now_ms = at_ms;
            self.tally.steps += 1;
            let looks = matches!(event, Event::Look);
            self.handle(event)?;
            if looks {
                match self.divided() {
                    None => break,
                    Some(what) if self.now_ms >= BOOT_PATIENCE_MS => {
                        return Err(format!("after {} s {what}", BOOT_PATIENCE_MS / 1_000));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(self.now_ms)
    }

    /// The last things that happened.
    pub(super) fn story(&self) -> impl Iterator<Item = &str> {
        self.told.iter().map(String::as_str)
    }

    fn at(&mut self, at_ms: u64, event: Event) {
        self.scheduled += 1;
        self.due.insert((at_ms, self.scheduled), event);
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.at(self.now_ms + ms, event);
    }

    fn tell(&mut self, line: String) {
        let line = format!("{:>6} {line}", self.now_ms);
        line.hash(&mut self.hasher);
        if self.told.len() >= self.lines {
            self.told.pop_front();
        }
        self.told.push_back(line);
    }

    fn add_machine(&mut self, wait_ms: u64) -> NodeId {
        let id = NodeId(self.machines.len() as u64 + 1);
        let machine = Machine {
            id,
            node: None,
            disk: Disk::new(self.bug),
            held: BTreeMap::new(),
            life: 0,
            patience: 0,
            clocks: Clocks::draw(&mut self.dice),
            paused: false,
            sleeps: None,
            backlog: Vec::new(),
            start: Incarnation { number: 0, marks: Vec::new() },
            copy: None,
            put_back: false,
            down_ms: 0,
            gone: false,
            joins: self.now_ms > 0,
        };
        self.machines.insert(id, machine);
        self.after(wait_ms, Event::Boot(id));
        id
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Boot(id) => self.boot(id),
            Event::Tick(id, life) => {
                if self.is_awake(id, life) {
                    self.after(NODE_TICK_MS, Event::Tick(id, life));
                    return self.with_node(id, life, Node::tick);
                }
                Ok(())
            }
            Event::Deliver { from, to, life, wire } => self.deliver(from, to, life, wire),
            Event::EndTask(id, life, attempt) => self.end_task(id, life, attempt),
            Event::DieOfTask(id, life, attempt) => self.die_of_task(id, life, attempt),
            Event::Written(id, life) => self.written(id, life),
            Event::Quicken(id) => {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.disk.write_ms = WRITE_MS;
                }
                Ok(())
            }
            Event::Link(change, life) => self.link(change, life),
            Event::Look => self.look(),
            Event::Restart(id) => {
                self.stop(id, 1);
                Ok(())
            }
            Event::PutBack(id) => {
                self.put_back(id);
                Ok(())
            }
            Event::Submit => {
                self.submit();
                Ok(())
            }
            Event::Drive(number) => self.drive(number),
            Event::Attend(job) => self.attend(job),
            Event::Fault => {
                if !self.calm {
                    let wait_ms = self.dice.between(100..=2_000);
                    self.after(wait_ms, Event::Fault);
                    return self.fault();
                }
                Ok(())
            }
            Event::Recover(id) => {
                self.recover(id);
                Ok(())
            }
            Event::CarryOn(id, life, era) => self.carry_on(id, life, era),
            Event::Resume(id, life) => self.resume(id, life),
            Event::Heal(number) => {
                self.network.heal(number);
                self.tell(format!("cut {number} heals"));
                Ok(())
            }
            Event::Brighten => {
                self.network.weather = Default::default();
                self.tell("the weather is fine".to_owned());
                Ok(())
            }
            Event::Calm => self.calm_down(),
        }
    }

    fn is_awake(&self, id: NodeId, life: u64) -> bool {
        self.machines
            .get(&id)
            .is_some_and(|machine| machine.node.is_some() && machine.life == life && !machine.paused)
    }

    fn boot(&mut self, id: NodeId) -> Result<(), String> {
        let election_ticks = self.patience();
        let checkpoint_entries = self.dice.between(10..=60);
        let kept_entries = self.dice.between(2..=20);
        let slots = self.dice.between(1..=3) as u32;
        let (now_ms, bug) = (self.now_ms, self.bug);
        let Some(machine) = self.machines.get_mut(&id) else { return Ok(()) };
        if machine.node.is_some() || machine.gone {
            return Ok(());
        }
        machine.life += 1;
        machine.patience = election_ticks;
        machine.disk.next = Fate::Written;
        let life = machine.life;
        machine.start = machine.start.next(life as u32);
        let member = Member {
            id,
            peer: format!("peer-{}", id.0),
            name: format!("n{}", id.0),
            addresses: Vec::new(),
            slots,
            memory_bytes: 1 << 30,
            version: "0.1.0".to_owned(),
            incarnation: machine.start.clone(),
        };
        let start = Start {
            member,
            election_ticks,
            checkpoint_entries,
            kept_entries,
            reading: machine.clocks.read(now_ms),
            joins: machine.joins,
            held: std::mem::take(&mut machine.held),
            bug,
        };
        let log = machine.disk.read();
        let log = log.map_err(|error| format!("n{} finds its log unreadable: {error}", id.0))?;
        let node = Node::start(start, log).map_err(|error| format!("n{} cannot start: {error}", id.0))?;
        machine.node = Some(Box::new(node));
        self.tell(format!("n{} starts for the {life}. time, {election_ticks} ticks patient", id.0));
        self.after(NODE_TICK_MS, Event::Tick(id, life));
        self.with_node(id, life, |_| {})
    }

    /// Ticks until a node campaigns. With a range of one value, two nodes of the same patience would campaign
    /// against each other for ever; so no two have it.
    fn patience(&mut self) -> usize {
        let taken: BTreeSet<_> = self.machines.values().map(|machine| machine.patience).collect();
        let free: Vec<_> = (10..=10 + MAX_NODES).filter(|ticks| !taken.contains(ticks)).collect();
        self.dice.pick(&free).unwrap_or(10)
    }

    /// A node goes on by itself only where nothing can have been agreed on without it: from a pair, whatever it has heard
    /// of a third voter.
    fn check_carried_on(&self, id: NodeId, era: Era, applied: u64) -> Result<(), String> {
        if self.recovering.contains(&id) {
            return Ok(());
        }
        let ahead = |node: &&Node| node.era() == Some(era) && node.state().applied() > applied;
        for node in self.nodes().filter(ahead) {
            let configuration = node.participant.replica().standing().configuration;
            if configuration.voters.len() > 2 && configuration.outgoing.len() != 2 {
                let voters = configuration.voters.len();
                let other = node.id().0;
                return Err(format!(
                    "n{} goes on alone from {era}, of which n{other} knows {voters} voters",
                    id.0
                ));
            }
        }
        Ok(())
    }

    /// Does something with a node that is awake, and carries out what comes of it.
    fn with_node(&mut self, id: NodeId, life: u64, act: impl FnOnce(&mut Node)) -> Result<(), String> {
        if !self.is_awake(id, life) {
            return Ok(());
        }
        let Some(machine) = self.machines.get_mut(&id) else { return Ok(()) };
        let Some(mut node) = machine.node.take() else { return Ok(()) };
        node.reading = machine.clocks.read(self.now_ms);
        let before = (node.era(), node.state().applied());
        act(&mut node);
        let settled = node.settle();
        let mut stops = settled.is_err();
        let mut anew = false;
        for out in std::mem::take(&mut node.out) {
            match out {
                Out::Send(to, wire) => {
                    self.keeps_word(&node, &wire)?;
                    self.send(id, to, wire);
                }
                Out::Write(persist) => self.begin_write(id, life, *persist),
                Out::Run(assignment) => self.start_task(&node, life, &assignment),
                Out::Answer(number, proposed) => self.answered(&node, number, &proposed),
                Out::Dial(peer) => self.network.dial(id, peer),
                Out::Disconnect(peer) => self.network.disconnect(id, peer),
                Out::Note(note) => {
                    if let Note::Left(era) = &note {
                        self.tell(format!("n{} leaves {era}", id.0));
                        self.tally.left += 1;
                        // What it forgets shows when it starts again.
                        stops |= self.bug == Some(Bug::ForgottenEras);
                    }
                    if let (Note::Event(_, floe_consensus::Event::CarriedOn { .. }), (Some(era), applied)) =
                        (&note, before)
                    {
                        self.check_carried_on(id, era, applied)?;
                        self.recovering.remove(&id);
                    }
                    self.checker.note(&node, &note)?;
                }
                Out::BeginAnew => anew = true,
                Out::Stop { clean } => {
                    self.tell(format!("n{} has left, in good order: {clean}", id.0));
                    stops = true;
                    if let Some(machine) = self.machines.get_mut(&id) {
                        (machine.gone, machine.down_ms) = (clean, 1_000);
                    }
                }
            }
        }
        if settled.is_ok() {
            self.checker.look(&node)?;
        }
        let Some(machine) = self.machines.get_mut(&id) else { return Ok(()) };
        machine.node = Some(node);
        if let Err(error) = settled {
            self.tell(format!("n{} stops: {error}", id.0));
        }
        if anew {
            return self.begin_anew(id);
        }
        if stops {
            let down_ms = self.machines[&id].down_ms;
            self.stop(id, down_ms);
        }
        Ok(())
    }

    /// What makes a node itself is put away, and its directory is another's, with the partitions that lie there.
    fn begin_anew(&mut self, id: NodeId) -> Result<(), String> {
        if !self.machines.get(&id).is_some_and(|machine| machine.put_back) {
            return Err(format!("n{} is taken for a copy, and is none", id.0));
        }
        self.tell(format!("n{} is found out, and begins anew", id.0));
        self.tally.anew += 1;
        self.stop(id, 1);
        let Some(machine) = self.machines.get_mut(&id) else { return Ok(()) };
        machine.gone = true;
        let held = std::mem::take(&mut machine.held);
        let other = self.add_machine(1);
        if let Some(machine) = self.machines.get_mut(&other) {
            machine.held = held;
        }
        Ok(())
    }

    /// The process ends, and with it all that is not on its disk.
    fn stop(&mut self, id: NodeId, down_ms: u64) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let Some(node) = machine.node.take() else { return };
        let crashed = machine.disk.crash(&mut self.dice);
        // What drivers brought is in files at once, what tasks made a little later.
        let is_on_disk = |_: &TaskId, meta: &mut OutputMeta| meta.mark == 0 || self.dice.chance(500);
        machine.held = node.held.into_iter().collect();
        machine.held.retain(is_on_disk);
        machine.paused = false;
        machine.sleeps = None;
        machine.backlog.clear();
        self.network.stopped(id);
        self.recovering.remove(&id);
        if let Err(error) = crashed {
            self.tell(format!("n{}'s disk is in disorder: {error}", id.0));
        }
        self.after(down_ms.max(1), Event::Boot(id));
    }

    fn begin_write(&mut self, id: NodeId, life: u64, persist: Persist) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let ms = self.dice.between(0..=machine.disk.write_ms);
        machine.disk.begin(persist);
        self.after(ms, Event::Written(id, life));
    }

    fn written(&mut self, id: NodeId, life: u64) -> Result<(), String> {
        if self.unless_paused(id, life, Event::Written(id, life)).is_none() || !self.is_awake(id, life) {
            return Ok(());
        }
        let Some(machine) = self.machines.get_mut(&id) else { return Ok(()) };
        match machine.disk.end() {
            Ok(None) => Ok(()),
            Ok(Some(written)) => {
                let mut outcome = Ok(());
                self.with_node(id, life, |node| outcome = node.persisted(written))?;
                outcome.map_err(|error| format!("n{} cannot go on: {error}", id.0))
            }
            Err(error) => {
                self.tell(format!("n{} stops: {error}", id.0));
                let down_ms = self.machines[&id].down_ms;
                self.stop(id, down_ms);
                Ok(())
            }
        }
    }

    /// What a node says to others it has on its disk: its term, its vote, and what it acknowledges.
    fn keeps_word(&self, node: &Node, wire: &Wire) -> Result<(), String> {
        let Wire::Peer(PeerMessage::Raft { message, .. }) = wire else { return Ok(()) };
        let (Ok(m), Some(machine)) = (Message::parse_from_bytes(message), self.machines.get(&node.id()))
        else {
            return Ok(());
        };
        if self.bug == Some(Bug::LyingDisk) {
            return Ok(());
        }
        let log = machine.disk.durable();
        let (hard_state, last) = (&log.parts().hard_state, log.last_index().unwrap_or(0));
        let holds = match m.msg_type {
            MessageType::MsgAppendResponse if !m.reject => hard_state.term >= m.term && last >= m.index,
            MessageType::MsgRequestVoteResponse if !m.reject => {
                hard_state.term > m.term || (hard_state.term == m.term && hard_state.vote == m.to)
            }
            MessageType::MsgRequestVote | MessageType::MsgAppend | MessageType::MsgSnapshot => {
                hard_state.term >= m.term
            }
            _ => true,
        };
        if holds {
            return Ok(());
        }
        Err(format!(
            "n{} says what is not on its disk (term {}, vote {}, entries to {last}): {}",
            node.id().0,
            hard_state.term,
            hard_state.vote,
            describe(wire)
        ))
    }

    fn send(&mut self, from: NodeId, to: NodeId, wire: Wire) {
        let Some(life) = self.machines.get(&to).map(|machine| machine.life) else { return };
        let arrivals = self.network.send(&mut self.dice, self.now_ms, from, to);
        for at_ms in arrivals {
            self.at(at_ms, Event::Deliver { from, to, life, wire: Box::new(wire.clone()) });
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, life: u64, wire: Box<Wire>) -> Result<(), String> {
        if !self.network.passes(from, to) {
            return Ok(());
        }
        let event = Event::Deliver { from, to, life, wire };
        let Some(event) = self.unless_paused(to, life, event) else { return Ok(()) };
        let Event::Deliver { wire, .. } = event else { return Ok(()) };
        if self.is_awake(to, life) {
            self.tell(format!("n{} -> n{} {}", from.0, to.0, describe(&wire)));
        }
        self.with_node(to, life, |node| node.receive(from, *wire))
    }

    /// Puts off what happens to a paused node.
    fn unless_paused(&mut self, id: NodeId, life: u64, event: Event) -> Option<Event> {
        let machine = self.machines.get_mut(&id)?;
        if machine.paused && machine.life == life {
            machine.backlog.push(event);
            return None;
        }
        Some(event)
    }

    fn resume(&mut self, id: NodeId, life: u64) -> Result<(), String> {
        let Some(machine) = self.machines.get_mut(&id) else { return Ok(()) };
        if !machine.paused || machine.life != life {
            return Ok(());
        }
        machine.paused = false;
        if let Some((since_ms, told_ms)) = machine.sleeps.take() {
            machine.clocks.slept(self.now_ms - since_ms, told_ms);
        }
        let backlog = std::mem::take(&mut machine.backlog);
        self.tell(format!("n{} goes on", id.0));
        let tick_first = self.dice.chance(500);
        if tick_first {
            self.after(0, Event::Tick(id, life));
        }
        for event in backlog {
            self.after(0, event);
        }
        if !tick_first {
            self.after(0, Event::Tick(id, life));
        }
        Ok(())
    }

    fn start_task(&mut self, node: &Node, life: u64, assignment: &Assignment) {
        let attempt = assignment.attempt;
        let ms = if node.held.contains_key(&attempt.task) {
            0
        } else if self.dice.chance(40) {
            self.dice.between(1_000..=6_000)
        } else {
            self.dice.between(10..=400)
        };
        let ends = match is_poison(assignment) && !assignment.apart && ms > 0 {
            true => Event::DieOfTask(node.id(), life, attempt),
            false => Event::EndTask(node.id(), life, attempt),
        };
        self.after(ms, ends);
    }

    /// A task ends its node.
    fn die_of_task(&mut self, id: NodeId, life: u64, attempt: AttemptId) -> Result<(), String> {
        let event = Event::DieOfTask(id, life, attempt);
        if self.unless_paused(id, life, event).is_none() || !self.is_awake(id, life) {
            return Ok(());
        }
        let node = self.machines.get(&id).and_then(|machine| machine.node.as_ref());
        let Some(node) = node.filter(|node| node.running(attempt).is_some()) else { return Ok(()) };
        let era = node.era();
        self.tell(format!("n{} dies of {}", id.0, name(attempt)));
        self.tally.poisoned += 1;
        let down_ms = self.dice.between(100..=5_000);
        self.stop(id, down_ms);
        self.checker.died_of(era, attempt.task.job, id)
    }

    fn end_task(&mut self, id: NodeId, life: u64, attempt: AttemptId) -> Result<(), String> {
        let event = Event::EndTask(id, life, attempt);
        if self.unless_paused(id, life, event).is_none() || !self.is_awake(id, life) {
            return Ok(());
        }
        let node = self.machines.get(&id).and_then(|machine| machine.node.as_ref());
        let Some(assignment) = node.and_then(|node| node.running(attempt)) else { return Ok(()) };
        let mut outcome = self.outcome(id, assignment);
        if outcome.is_ok()
            && is_poison(assignment)
            && !node.is_some_and(|n| n.held.contains_key(&attempt.task))
        {
            let (name, how) = ("a task".to_owned(), "was killed by signal 11 (SIGSEGV)".to_owned());
            outcome = Err(Failure::Crashed { name, how, output: String::new() });
        }
        if !self.calm && outcome.is_ok() && self.dice.chance(10) {
            let message = "less than was reserved".to_owned();
            outcome = Err(Failure::Exhausted { what: "memory".to_owned(), message });
        }
        let ended = match &outcome {
            Ok(_) => "done".to_owned(),
            Err(Failure::InputLost { partition, node }) => format!("lacks {partition} of n{}", node.0),
            Err(_) => "fails".to_owned(),
        };
        self.tell(format!("n{} {} {ended}", id.0, name(attempt)));
        self.with_node(id, life, |node| node.end_task(attempt, outcome))
    }

    /// How a task ends: well if its inputs can be had.
    fn outcome(&self, id: NodeId, assignment: &Assignment) -> Result<OutputMeta, Failure> {
        let held = |node: NodeId, task: &TaskId| {
            let Some(machine) = self.machines.get(&node) else { return false };
            let holds = machine.node.as_ref().is_some_and(|node| node.held.contains_key(task));
            holds && !machine.paused && self.network.serves(id, node)
        };
        let job = assignment.attempt.task.job;
        for segment in assignment.inputs.iter().flat_map(|read| read.segments(job)) {
            if !segment.nodes.iter().any(|node| held(*node, &segment.partition)) {
                let node = segment.nodes.last().copied().unwrap_or(id);
                return Err(Failure::InputLost { partition: segment.partition, node });
            }
        }
        Ok(made(assignment))
    }

    fn look(&mut self) -> Result<(), String> {
        self.after(LOOK_MS, Event::Look);
        let running = self.machines.values().filter(|machine| machine.node.is_some() && !machine.paused);
        let awake: BTreeSet<NodeId> = running.map(|machine| machine.id).collect();
        for change in self.network.look(self.now_ms, &awake) {
            let Some(life) = self.machines.get(&change.node).map(|machine| machine.life) else { continue };
            self.after(0, Event::Link(change, life));
        }
        Ok(())
    }

    fn link(&mut self, change: Change, life: u64) -> Result<(), String> {
        let Change { node: id, peer, up } = change;
        if self.unless_paused(id, life, Event::Link(change, life)).is_none() || !self.is_awake(id, life) {
            return Ok(());
        }
        self.tell(format!("n{} {} n{}", id.0, if up { "is connected to" } else { "has lost" }, peer.0));
        self.with_node(id, life, |node| if up { node.peer_up(peer) } else { node.peer_down(peer) })
    }

    fn running(&self) -> Vec<NodeId> {
        self.machines.values().filter(|machine| machine.node.is_some()).map(|machine| machine.id).collect()
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.machines.values().filter_map(|machine| machine.node.as_deref())
    }

    fn leader(&self) -> Option<&Node> {
        self.nodes().filter(|node| node.schedules()).max_by_key(|node| node.fence())
    }

    fn submit(&mut self) {
        if self.calm {
            return;
        }
        let wait_ms = self.dice.between(200..=1_200);
        self.after(wait_ms, Event::Submit);
        let number = self.orders.len();
        let now = wall(self.now_ms);
        let promised: Vec<_> = self.checker.promised_jobs().into_iter().collect();
        let running = self.running();
        if running.is_empty() {
            // A driver has nobody to connect to.
            return;
        }
        let order = match (self.dice.between(0..=9), self.dice.pick(&promised)) {
            (0, Some(job)) => Order::cancel(number, job, now),
            (1, Some(job)) => {
                self.checker.unwanted(job);
                Order::release(number, job, now)
            }
            (2, _) if self.dice.chance(500) => Order::stand(number, now),
            _ => Order::submit(&mut self.dice, number, &running, now),
        };
        for (task, placed) in &order.frames {
            for holder in &placed.nodes {
                let node = self.machines.get_mut(holder).and_then(|machine| machine.node.as_mut());
                if let Some(node) = node {
                    node.held.insert(*task, meta(1));
                }
            }
        }
        self.orders.push(order);
        self.after(0, Event::Drive(number));
    }

    /// A driver says through any node what it wants, until it is answered.
    fn drive(&mut self, number: usize) -> Result<(), String> {
        let Some(order) = self.orders.get(number).filter(|order| !order.answered) else { return Ok(()) };
        let (entry, job) = (order.entry.clone(), order.job);
        let wait_ms = self.dice.between(200..=1_500);
        self.after(wait_ms, Event::Drive(number));
        let Some(id) = self.dice.pick(&self.running()) else { return Ok(()) };
        let life = self.machines[&id].life;
        self.tell(format!("driver asks n{} for order {number}, job {}", id.0, job.0));
        self.with_node(id, life, |node| node.ask(entry, Asker::Driver(number)))
    }

    /// A driver of a standing job sees to it that it is connected to a node, until it is done. Some vanish.
    fn attend(&mut self, job: JobId) -> Result<(), String> {
        let missed = |node: &Node| {
            let phase = node.state().job(job).map(|job| &job.phase);
            matches!(phase, Some(JobPhase::Failed(Failure::Refused { .. })))
        };
        if self.nodes().any(missed) {
            return Err(format!("job {job} has failed, and its driver is there"));
        }
        if self.calm || self.dice.chance(60) {
            self.attended.remove(&job);
            for node in self.machines.values_mut().filter_map(|machine| machine.node.as_mut()) {
                node.sessions.remove(&job);
            }
            if !self.calm && self.dice.chance(250) {
                self.tell(format!("driver of job {} vanishes", job.0));
                return Ok(());
            }
            let number = self.orders.len();
            self.orders.push(Order::close(number, job, wall(self.now_ms)));
            self.after(0, Event::Drive(number));
            return Ok(());
        }
        let wait_ms = self.dice.between(200..=1_500);
        self.after(wait_ms, Event::Attend(job));
        if !self.nodes().any(|node| node.sessions.contains(&job))
            && let Some(id) = self.dice.pick(&self.running())
            && let Some(node) = self.machines.get_mut(&id).and_then(|machine| machine.node.as_mut())
        {
            node.sessions.insert(job);
            self.tell(format!("driver of job {} is connected to n{}", job.0, id.0));
        }
        Ok(())
    }

    fn answered(&mut self, node: &Node, number: usize, proposed: &Proposed) {
        let Some(order) = self.orders.get_mut(number) else { return };
        let Proposed::Applied(outcome, fence) = proposed else { return };
        if order.answered || matches!(outcome, Err(Failure::Unavailable { .. })) {
            return;
        }
        order.answered = true;
        let ended = match &order.entry.command {
            Command::Submit { .. } => Some(false),
            Command::EndJob { .. } | Command::StageDone { .. } => Some(true),
            // Released is also what nobody knows.
            _ => None,
        };
        if let (Ok(()), Some(ended), Some(fence)) = (outcome, ended, fence) {
            self.checker.promised(order.job, ended, *fence);
        }
        if outcome.is_ok() && order.stands() {
            let job = order.job;
            self.attended.insert(job);
            self.after(0, Event::Attend(job));
        }
        self.tell(format!("order {number} is answered by n{}: {}", node.id().0, outcome.is_ok()));
    }
}

impl Machine {
    /// Whether it belongs to a mesh, so that it will never found one.
    fn has_mesh(&self) -> bool {
        match &self.node {
            Some(node) => node.era().is_some(),
            None => self.life > 0 && !self.disk.durable().is_empty(),
        }
    }
}
