//! One node's copy of the replicated log: raft-rs and the state machine behind messages in, output out.
//!
//! ```text
//!   step, tick, propose ──> raft-rs ──take_output──> Output ──persist──> messages and events
//!                                                      │         │
//!                                           `send` at once     LogStore::write, then apply
//! ```
//!
//! The caller loops after every call that may have changed something:
//!
//! ```text
//!   while let Some(mut output) = replica.take_output() {
//!       send(output.send);                  // a leader replicates while its own disk is still writing
//!       replica.persist(&mut output)?;      // the one blocking call: writes the log, then applies
//!       send(output.send_after_persist);    // votes and acknowledgements, empty until then
//!       handle(output.events);              // likewise
//!   }
//! ```
//!
//! Nothing a peer sends can make raft-rs panic: [`Replica::step`] refuses what it would not survive.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use bytes::Bytes;
use floe_protocol::{Era, Failure, Fence, Member, MeshId, NodeId, RequestId};
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry as RaftEntry,
    EntryType, Message, Snapshot,
};
use raft::{GetEntriesContext, ProgressState, RawNode, Ready, SnapshotStatus, StateRole};

use crate::command::{Command, Entry};
use crate::event::Event;
use crate::log::{LogError, LogStore, Persist};
use crate::membership::{Change, Configuration};
use crate::state_machine::{RestoreError, StateMachine};

mod guard;

pub use guard::StepError;

/// How often [`Replica::tick`] is to be called.
pub const TICK_MS: u64 = 50;

/// The longest entry that is proposed: any job fits it, and with its message it fits a frame.
pub const MAX_ENTRY_BYTES: usize = 12 << 20;

/// Entries are sent in messages of at most this size (one entry at least), so that a follower that lags does
/// not cost the leader its memory.
const MAX_MESSAGE_BYTES: u64 = 1 << 20;

/// Proposals are refused while this much is not committed: a leader without a majority must not collect them.
const MAX_UNCOMMITTED_BYTES: u64 = 32 << 20;

/// Append messages on their way to one follower.
const MAX_INFLIGHT_MESSAGES: usize = 64;

/// Entries applied between two looks at the peers.
const MAX_APPLIED_BYTES: u64 = 8 << 20;

/// Reads waiting for a majority's confirmation.
const MAX_PENDING_READS: usize = 1024;

/// Log that is kept behind a snapshot, so that a follower that lags a little needs no snapshot.
const KEPT_TAIL_BYTES: usize = 8 << 20;

/// Applied entries after which a snapshot is taken though they are few.
const CHECKPOINT_BYTES: usize = 16 << 20;

/// A snapshot on its way that nobody reported the fate of counts as lost after this many ticks, and one more for each
/// of so many bytes: a slow link takes some 5 MB/s.
const SNAPSHOT_PATIENCE_TICKS: u32 = 200;
const SNAPSHOT_BYTES_PER_TICK: usize = 64 << 10;

/// How many entries a learner may lag and still count as caught up.
const CAUGHT_UP_ENTRIES: u64 = 64;

/// Settings of one replica.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node, and its Raft id. Not 0.
    pub id: NodeId,
    /// Ticks without a leader before an election, drawn from this range. A range of one makes it certain.
    pub election_ticks: std::ops::Range<usize>,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Applied entries between snapshots.
    pub checkpoint_entries: u64,
    /// Entries kept behind a snapshot.
    pub kept_entries: u64,
}

impl Config {
    /// The settings to use outside of tests.
    pub fn new(id: NodeId) -> Self {
        Self { id, election_ticks: 10..20, heartbeat_ticks: 2, checkpoint_entries: 1024, kept_entries: 256 }
    }
}

/// What there is to do. See the module's loop.
#[derive(Debug, Default)]
pub struct Output {
    /// Messages to send at once.
    pub send: Vec<(NodeId, Bytes)>,
    /// What [`Replica::persist`] will write.
    pub persist: Persist,
    /// Messages that promise what was written. Empty until [`Replica::persist`] returned.
    pub send_after_persist: Vec<(NodeId, Bytes)>,
    /// What applied and who leads. Empty until [`Replica::persist`] returned.
    pub events: Vec<Event>,
}

/// Why a replica cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log's own state does not fit together.
    #[error("the log cannot be opened: {0}")]
    Log(String),
    /// Its snapshot cannot be read.
    #[error(transparent)]
    Snapshot(#[from] RestoreError),
}

/// Why a proposal was not taken. One that was taken may be lost all the same: propose again, with the same
/// request id, until [`Event::Applied`] answers.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Only the leader takes proposals.
    #[error("this node does not lead the mesh")]
    NotLeader {
        /// Who does, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// Too much waits for a majority, or leadership is being handed over. Try again soon.
    #[error("the mesh takes no proposals at the moment")]
    Busy,
    /// The entry is longer than [`MAX_ENTRY_BYTES`].
    #[error("an entry of {bytes} bytes exceeds the limit of {MAX_ENTRY_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// An earlier change of the voters has not applied yet: one at a time.
    #[error("an earlier change of the voters is not done")]
    ChangePending,
    /// The log was used before.
    #[error("this node has a log already: it cannot found a mesh")]
    NotEmpty,
    /// An [`Output`] was taken and not persisted.
    #[error("an output waits to be persisted")]
    Unpersisted,
    /// The entry cannot be encoded.
    #[error("the entry cannot be written: {0}")]
    Unwritable(String),
}

/// Why a node could not leave its era.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// Its log cannot be emptied.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Nor opened anew.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// How a log begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Founding {
    /// With a new mesh.
    Mesh,
    /// With a mesh's next era.
    Era,
}

/// Where a replica stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether it leads.
    pub leads: bool,
    /// The leader it follows, itself if it leads.
    pub leader: Option<NodeId>,
    /// The Raft term.
    pub term: u64,
    /// Index of the last committed entry it knows.
    pub committed: u64,
    /// Index of the last entry applied.
    pub applied: u64,
    /// Voters and learners.
    pub configuration: Configuration,
}

/// One node's copy of the log and of the state.
pub struct Replica<L: LogStore> {
    raw: RawNode<L>,
    state: StateMachine,
    config: Config,
    /// Taken as an output and not yet persisted.
    pending: Option<Ready>,
    /// The beginning of a log is on its way to the disk.
    founding: Option<Founding>,
    /// Index of the newest snapshot, and bytes applied since.
    checkpoint_index: u64,
    checkpoint_bytes: usize,
    /// The voters or learners changed since: raft-rs takes no snapshot on a node that it does not name.
    checkpoint_outdated: bool,
    /// What was last said of the leader.
    leader: (Option<NodeId>, u64),
    /// The term in which [`Event::Elected`] was said, while it holds.
    elected: Option<u64>,
    /// Reads that a majority confirmed, waiting for their index to apply.
    reads: Vec<(u64, RequestId)>,
    /// Ticks since a snapshot went to a follower.
    snapshots: BTreeMap<u64, u32>,
}

impl<L: LogStore> Replica<L> {
    /// Opens a replica on its log: empty, or as it was left. Entries after the log's snapshot apply again, so
    /// the first outputs repeat their events.
    pub fn open(config: Config, log: L) -> Result<Self, OpenError> {
        let opening = |error: raft::Error| OpenError::Log(error.to_string());
        let snapshot_index = match log.snapshot(0, config.id.0) {
            Ok(snapshot) => snapshot.get_metadata().index,
            Err(_) => 0,
        };
        let state = match log.snapshot(0, config.id.0) {
            Ok(snapshot) => StateMachine::restore(snapshot.get_data())?,
            Err(_) => StateMachine::default(),
        };
        let voters = log.initial_state().map_err(opening)?.conf_state.voters;
        let raft_config = raft::Config {
            id: config.id.0,
            election_tick: config.election_ticks.start,
            min_election_tick: config.election_ticks.start,
            max_election_tick: config.election_ticks.end,
            heartbeat_tick: config.heartbeat_ticks,
            applied: snapshot_index,
            max_size_per_msg: MAX_MESSAGE_BYTES,
            max_inflight_msgs: MAX_INFLIGHT_MESSAGES,
            max_uncommitted_size: MAX_UNCOMMITTED_BYTES,
            max_committed_size_per_ready: MAX_APPLIED_BYTES,
            check_quorum: true,
            pre_vote: true,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let mut raw = RawNode::new(&raft_config, log, &logger).map_err(opening)?;
        if voters == [config.id.0] {
            // The only voter need not wait for others to be silent.
            raw.campaign().map_err(opening)?;
        }
        Ok(Self {
            raw,
            state,
            config,
            pending: None,
            founding: None,
            checkpoint_index: snapshot_index,
            checkpoint_bytes: 0,
            checkpoint_outdated: false,
            leader: (None, 0),
            elected: None,
            reads: Vec::new(),
            snapshots: BTreeMap::new(),
        })
    }

    /// Founds a mesh with this node as its only voter and member. Only a node without a log can.
    ///
    /// Genesis is entry 1, and from the start it exists as a snapshot: whoever joins gets that first, and with
    /// it the founder as voter, which no entry says.
    pub fn found(&mut self, request: RequestId, mesh: MeshId, member: Member) -> Result<(), ProposeError> {
        self.check_persisted()?;
        if self.raw.raft.raft_log.last_index() != 0 || self.raw.raft.term != 0 || self.founding.is_some() {
            return Err(ProposeError::NotEmpty);
        }
        let mut state = StateMachine::default();
        state.apply(1, &Entry { request, command: Command::Genesis { mesh, member } });
        self.begin(&state, Founding::Mesh)
    }

    /// Begins the mesh's next era, with this node as its only voter and all that its log holds: what was not
    /// known to be agreed on may have been, and nothing of it is lost that way. Nodes of the former era must
    /// come back as new ones, with empty logs.
    pub fn carry_on(&mut self) -> Result<(), ProposeError> {
        self.check_persisted()?;
        let mut state = self.outlook();
        if self.founding.is_some() || state.era().is_none() {
            return Err(ProposeError::NotLeader { leader: None });
        }
        state
            .carry_on(self.config.id, self.raw.raft.raft_log.last_index() + 1)
            .map_err(|error| ProposeError::Unwritable(error.to_string()))?;
        self.begin(&state, Founding::Era)
    }

    /// Begins a log with a snapshot of this state and this node as its only voter, in a term of its own.
    fn begin(&mut self, state: &StateMachine, founding: Founding) -> Result<(), ProposeError> {
        let data = state.snapshot().map_err(|error| ProposeError::Unwritable(error.to_string()))?;
        let term = self.raw.raft.term + 1;
        let mut snapshot = Snapshot { data: data.into(), ..Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (state.applied(), term);
        metadata.mut_conf_state().voters = vec![self.config.id.0];
        self.raw.raft.become_follower(term, raft::INVALID_ID);
        self.founding = self.raw.raft.restore(snapshot).then_some(founding);
        Ok(())
    }

    /// Forgets everything, since the node leaves its era for another. After an error the replica must not be
    /// used any more.
    pub fn restart(&mut self, era: Era) -> Result<(), RestartError> {
        let log = self.log().restart(era)?;
        *self = Self::open(self.config.clone(), log)?;
        Ok(())
    }

    /// The state as it will be if everything in this node's log is agreed on. It may not be; but whatever was
    /// agreed on with this node's help is in it.
    pub fn outlook(&self) -> StateMachine {
        let mut state = self.state.clone();
        for entry in self.tail().unwrap_or_default() {
            match Entry::decode(&entry.data) {
                Ok(command) if entry.entry_type == EntryType::EntryNormal && !entry.data.is_empty() => {
                    state.apply(entry.index, &command);
                }
                _ => state.skip(entry.index),
            }
        }
        state
    }

    /// Entries of this node's log that are not applied yet.
    fn tail(&self) -> raft::Result<Vec<RaftEntry>> {
        let log = &self.raw.raft.raft_log;
        let (from, to) = (self.state.applied() + 1, log.last_index() + 1);
        log.slice(from, to, None, GetEntriesContext::empty(false))
    }

    /// The voters and learners as they are and, in order, as they will be after each change in this node's log that it
    /// does not know to be agreed on. None at all if that cannot be told.
    pub fn configurations(&self) -> Vec<Configuration> {
        let Ok(tail) = self.tail() else { return Vec::new() };
        let mut all = vec![self.configuration()];
        for entry in tail {
            if entry.entry_type == EntryType::EntryNormal {
                continue;
            }
            // An unreadable change is refused by every node.
            let Ok(change) = ConfChangeV2::parse_from_bytes(&entry.data) else { continue };
            all.extend(all.last().map(|before| after(before, &change)));
        }
        all
    }

    /// Takes in a peer's message in raft-rs' encoding.
    pub fn step(&mut self, message: &[u8]) -> Result<(), StepError> {
        let message =
            Message::parse_from_bytes(message).map_err(|error| StepError::Malformed(error.to_string()))?;
        self.step_message(message)
    }

    /// Takes in a peer's message.
    pub fn step_message(&mut self, mut message: Message) -> Result<(), StepError> {
        // What begins is no part of what the peer speaks of.
        if self.pending.is_some() || self.founding.is_some() {
            return Err(StepError::Unpersisted);
        }
        guard::check(&self.raw.raft, &message)?;
        // Floe's followers never ask for a snapshot: raft-rs sends one when it is needed.
        message.request_snapshot = 0;
        let from = message.from;
        self.raw.step(message).map_err(|error| match error {
            raft::Error::StepPeerNotFound => StepError::UnknownPeer { from: NodeId(from) },
            other => StepError::Malformed(other.to_string()),
        })
    }

    /// [`TICK_MS`] passed. After a stall call it once, not once for every tick that was missed: the stall says
    /// nothing about the leader.
    pub fn tick(&mut self) {
        if self.pending.is_some() || self.founding.is_some() {
            return;
        }
        self.raw.tick();
        if !self.leads() {
            self.snapshots.clear();
            return;
        }
        let progress = self.raw.raft.prs();
        let travelling =
            progress.iter().filter(|(_, p)| p.state == ProgressState::Snapshot).map(|(id, _)| *id);
        self.snapshots =
            travelling.map(|id| (id, self.snapshots.get(&id).map_or(0, |ticks| ticks + 1))).collect();
        if self.snapshots.is_empty() {
            return;
        }
        let bytes = self.raw.store().snapshot(0, self.config.id.0).map_or(0, |snapshot| snapshot.data.len());
        let more_ticks = u32::try_from(bytes / SNAPSHOT_BYTES_PER_TICK).unwrap_or(u32::MAX);
        let patience_ticks = SNAPSHOT_PATIENCE_TICKS.saturating_add(more_ticks);
        let lost: Vec<_> = self
            .snapshots
            .iter()
            .filter(|(_, ticks)| **ticks >= patience_ticks)
            .map(|(id, _)| NodeId(*id))
            .collect();
        for node in lost {
            self.report_snapshot(node, false);
        }
    }

    /// Proposes an entry. Only a leader can, and an accepted proposal may still be lost with the leadership.
    pub fn propose(&mut self, entry: &Entry) -> Result<(), ProposeError> {
        self.check_leads()?;
        let data = entry.encode().map_err(|error| ProposeError::Unwritable(error.to_string()))?;
        if data.len() > MAX_ENTRY_BYTES {
            return Err(ProposeError::TooLong { bytes: data.len() });
        }
        self.raw.propose(Vec::new(), data).map_err(|_| ProposeError::Busy)
    }

    /// Proposes a change of voters and learners, as [`crate::membership::next_change`] wants it. More than one
    /// step at once goes through a joint configuration, in which both majorities must agree, and leaves it by
    /// itself.
    pub fn change(&mut self, change: &Change) -> Result<(), ProposeError> {
        self.check_leads()?;
        if self.raw.raft.has_pending_conf() || !self.configuration().outgoing.is_empty() {
            return Err(ProposeError::ChangePending);
        }
        let kinds = [
            (&change.promote, ConfChangeType::AddNode),
            (&change.demote, ConfChangeType::AddLearnerNode),
            (&change.add_learners, ConfChangeType::AddLearnerNode),
            (&change.remove, ConfChangeType::RemoveNode),
        ];
        let single = |node: &NodeId, kind| ConfChangeSingle {
            change_type: kind,
            node_id: node.0,
            ..Default::default()
        };
        let changes: Vec<_> = kinds
            .into_iter()
            .flat_map(|(nodes, kind)| nodes.iter().map(move |node| single(node, kind)))
            .collect();
        let change = ConfChangeV2 {
            transition: ConfChangeTransition::Auto,
            changes: changes.into(),
            ..ConfChangeV2::default()
        };
        self.raw.propose_conf_change(Vec::new(), change).map_err(|_| ProposeError::Busy)
    }

    /// Hands the leadership to a voter, if this node has it. It takes about one round trip, or fails silently
    /// after an election timeout.
    pub fn transfer_leader(&mut self, to: NodeId) -> Result<(), ProposeError> {
        self.check_leads()?;
        self.raw.transfer_leader(to.0);
        Ok(())
    }

    /// Says that messages to a node are being lost.
    pub fn report_unreachable(&mut self, node: NodeId) {
        if self.pending.is_none() {
            self.raw.report_unreachable(node.0);
            self.report_snapshot(node, false);
        }
    }

    /// Says what became of a snapshot sent to a node. Without it the node's acknowledgement is proof of
    /// success, and [`Replica::report_unreachable`] or a few seconds of silence mean failure.
    pub fn report_snapshot(&mut self, node: NodeId, arrived: bool) {
        if self.pending.is_none() {
            let status = if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
            self.raw.report_snapshot(node.0, status);
        }
    }

    /// Asks for a moment at which this node's state is at least as new as now: [`Event::ReadReady`]. False if
    /// that cannot be had at present (no leader, or one too new). It may be lost: ask again after a while.
    pub fn read_index(&mut self, request: RequestId) -> bool {
        let raft = &self.raw.raft;
        let possible = raft.leader_id != raft::INVALID_ID
            && (raft.state != StateRole::Leader || raft.commit_to_current_term())
            && raft.pending_read_count() + self.reads.len() < MAX_PENDING_READS;
        if self.pending.is_some() || !possible {
            return false;
        }
        self.raw.read_index(request.0.to_be_bytes().to_vec());
        true
    }

    /// What there is to do now, if anything. Hand it to [`Replica::persist`] before any other call; until then
    /// there is no further output.
    pub fn take_output(&mut self) -> Option<Output> {
        if self.pending.is_some() || !(self.raw.has_ready() || self.checkpoint_due()) {
            return None;
        }
        let mut ready = self.raw.ready();
        let mut output = Output { send: encode_messages(ready.take_messages()), ..Output::default() };
        let persist = &mut output.persist;
        persist.must_sync = ready.must_sync();
        persist.hard_state = ready.hs().cloned();
        persist.entries = ready.take_entries();
        if !ready.snapshot().is_empty() {
            persist.snapshot = Some(ready.snapshot().clone());
        } else if self.checkpoint_due() {
            if let Some(snapshot) = self.checkpoint() {
                persist.compact_to = Some(self.compaction_point());
                persist.snapshot = Some(snapshot);
                persist.hard_state = Some(self.raw.raft.hard_state());
                persist.must_sync = true;
            }
            // Taken or not, the next one is due as many entries later.
            (self.checkpoint_index, self.checkpoint_bytes) = (self.state.applied(), 0);
            self.checkpoint_outdated = false;
        }
        self.pending = Some(ready);
        Some(output)
    }

    /// Writes what the output holds (the only call that does IO, through [`LogStore::write`]), then applies
    /// what is committed and fills in `send_after_persist` and `events`. After an error nothing has changed:
    /// try again, or stop using the replica.
    pub fn persist(&mut self, output: &mut Output) -> Result<(), LogError> {
        if self.pending.is_none() {
            return Ok(());
        }
        if !output.persist.is_empty() {
            self.raw.mut_store().write(&output.persist)?;
        }
        let Some(mut ready) = self.pending.take() else { return Ok(()) };
        let events = &mut output.events;
        output.send_after_persist = encode_messages(ready.take_persisted_messages());
        if let Some(snapshot) = &output.persist.snapshot {
            (self.checkpoint_index, self.checkpoint_bytes) = (snapshot.get_metadata().index, 0);
        }
        if !ready.snapshot().is_empty() {
            self.install(ready.snapshot(), events);
        }
        let reads = ready.take_read_states().into_iter().filter_map(|read| {
            let request = read.request_ctx.try_into().ok()?;
            Some((read.index, RequestId(u128::from_be_bytes(request))))
        });
        self.reads.extend(reads);
        self.apply(ready.take_committed_entries(), events);
        let mut light = self.raw.advance_append(ready);
        output.send_after_persist.extend(encode_messages(light.take_messages()));
        self.apply(light.take_committed_entries(), events);
        self.raw.advance_apply();
        self.announce(events);
        if self.founding.take().is_some() {
            // A lone voter elects itself; that it cannot is for the next timeout to find out.
            let _ = self.raw.campaign();
        }
        Ok(())
    }

    /// The replicated state.
    pub fn state(&self) -> &StateMachine {
        &self.state
    }

    /// The log.
    pub fn log(&self) -> &L {
        self.raw.store()
    }

    /// Whether this node leads, be its state current yet or not. See [`Event::Elected`].
    pub fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// The fence under which this node may lead, once it has a mesh.
    pub fn fence(&self) -> Option<Fence> {
        Some(Fence { era: self.state.era()?, term: self.raw.raft.term })
    }

    /// Term and index of the log's last entry: of two logs of one era, the one with the greater pair holds more.
    pub fn last_entry(&self) -> (u64, u64) {
        let log = &self.raw.raft.raft_log;
        (log.last_term(), log.last_index())
    }

    /// Where this replica stands.
    pub fn standing(&self) -> Standing {
        let raft = &self.raw.raft;
        Standing {
            leads: self.leads(),
            leader: some_node(raft.leader_id),
            term: raft.term,
            committed: raft.raft_log.committed,
            applied: self.state.applied(),
            configuration: self.configuration(),
        }
    }

    /// The leader it follows, itself if it leads.
    pub fn leader(&self) -> Option<NodeId> {
        some_node(self.raw.raft.leader_id)
    }

    /// On the leader: the nodes whose logs are nearly as long as its own. A node that got a snapshot is not sent
    /// entries in a row before it has acknowledged one more, which an idle mesh does not have: it counts too.
    pub fn caught_up(&self) -> BTreeSet<NodeId> {
        let committed = self.raw.raft.raft_log.committed;
        let progress = self.raw.raft.prs().iter().filter(|(_, p)| {
            p.matched > 0 && p.state != ProgressState::Snapshot && p.matched + CAUGHT_UP_ENTRIES >= committed
        });
        progress.map(|(id, _)| NodeId(*id)).collect()
    }

    fn configuration(&self) -> Configuration {
        let conf = self.raw.raft.prs().conf().to_conf_state();
        let set = |ids: &[u64]| ids.iter().map(|id| NodeId(*id)).collect::<BTreeSet<_>>();
        Configuration {
            voters: set(&conf.voters),
            learners: set(&conf.learners).union(&set(&conf.learners_next)).copied().collect(),
            outgoing: set(&conf.voters_outgoing),
        }
    }

    fn check_persisted(&self) -> Result<(), ProposeError> {
        if self.pending.is_some() { Err(ProposeError::Unpersisted) } else { Ok(()) }
    }

    fn check_leads(&self) -> Result<(), ProposeError> {
        self.check_persisted()?;
        if self.leads() {
            Ok(())
        } else {
            Err(ProposeError::NotLeader { leader: some_node(self.raw.raft.leader_id) })
        }
    }

    fn install(&mut self, snapshot: &Snapshot, events: &mut Vec<Event>) {
        let index = snapshot.get_metadata().index;
        match StateMachine::restore(snapshot.get_data()) {
            Ok(state) => self.state = state,
            // `step` has read it before raft-rs took it, so this cannot be.
            Err(_) => return,
        }
        match self.founding {
            Some(Founding::Mesh) => {
                events.extend(self.state.era().map(|era| Event::MeshFounded { mesh: era.mesh }));
                let members = self.state.members().values();
                events.extend(members.map(|member| Event::MemberJoined { member: member.clone() }));
            }
            Some(Founding::Era) => events.extend(self.state.era().map(|era| Event::CarriedOn { era })),
            None => events.push(Event::Restored { index }),
        }
    }

    fn apply(&mut self, entries: Vec<RaftEntry>, events: &mut Vec<Event>) {
        for entry in entries {
            self.checkpoint_bytes += entry.data.len();
            match entry.entry_type {
                EntryType::EntryNormal if entry.data.is_empty() => self.state.skip(entry.index),
                EntryType::EntryNormal => match Entry::decode(&entry.data) {
                    Ok(command) => events.extend(self.state.apply(entry.index, &command)),
                    // The same on every node, so they stay alike.
                    Err(_) => self.state.skip(entry.index),
                },
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    self.state.skip(entry.index);
                    // An unreadable or impossible change is refused alike on every node.
                    let change = ConfChangeV2::parse_from_bytes(&entry.data);
                    if change.is_ok_and(|change| self.raw.apply_conf_change(&change).is_ok()) {
                        self.checkpoint_outdated = true;
                        events.push(Event::Reconfigured);
                        self.step_down_if_removed();
                    }
                }
            }
        }
    }

    /// A node may be elected while the entry that removes it is on its way. raft-rs would let it lead on, and
    /// panic at the next acknowledgement for want of its own progress.
    fn step_down_if_removed(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && raft.prs().get(raft.id).is_none() {
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
    }

    /// Says what changed about the leadership, and which reads may go on.
    fn announce(&mut self, events: &mut Vec<Event>) {
        let raft = &self.raw.raft;
        if let Some(term) = self.elected
            && (raft.state != StateRole::Leader || raft.term != term)
        {
            self.elected = None;
            events.push(Event::Deposed { term });
        }
        let leader = (some_node(raft.leader_id), raft.term);
        if leader.0 != self.leader.0 || (leader.0.is_some() && leader.1 != self.leader.1) {
            events.push(Event::LeaderChanged { leader: leader.0, term: leader.1 });
        }
        self.leader = leader;
        if self.elected.is_none() && raft.state == StateRole::Leader && raft.apply_to_current_term() {
            self.elected = Some(raft.term);
            events.push(Event::Elected { term: raft.term });
        }
        let applied = self.state.applied();
        let (ready, waiting) =
            mem::take(&mut self.reads).into_iter().partition(|(index, _)| *index <= applied);
        self.reads = waiting;
        events.extend(Vec::into_iter(ready).map(|(_, request)| Event::ReadReady { request }));
    }

    fn checkpoint_due(&self) -> bool {
        self.state.applied() >= self.checkpoint_index + self.config.checkpoint_entries
            || self.checkpoint_bytes >= CHECKPOINT_BYTES
            || self.checkpoint_outdated
    }

    /// A snapshot of what has applied; none if it cannot be taken, which the next try may mend.
    fn checkpoint(&self) -> Option<Snapshot> {
        let index = self.state.applied();
        let term = self.raw.store().term(index).ok()?;
        let data = self.state.snapshot().ok()?;
        let mut snapshot = Snapshot { data: data.into(), ..Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (index, term);
        *metadata.mut_conf_state() = self.conf_state();
        Some(snapshot)
    }

    fn conf_state(&self) -> ConfState {
        self.raw.raft.prs().conf().to_conf_state()
    }

    /// The first index to keep: a tail limited in number and in size.
    fn compaction_point(&self) -> u64 {
        let applied = self.state.applied();
        let log = self.raw.store();
        let first =
            log.first_index().unwrap_or(applied).max(applied.saturating_sub(self.config.kept_entries) + 1);
        let tail = log.entries(first, applied + 1, None, GetEntriesContext::empty(false)).unwrap_or_default();
        let mut bytes = 0;
        let fits = tail.iter().rev().take_while(|entry| {
            bytes += entry.data.len();
            bytes <= KEPT_TAIL_BYTES
        });
        applied + 1 - fits.count() as u64
    }
}

fn some_node(id: u64) -> Option<NodeId> {
    (id != raft::INVALID_ID).then_some(NodeId(id))
}

/// Raft survives lost messages, so one that cannot be encoded is simply lost.
fn encode_messages(messages: Vec<Message>) -> Vec<(NodeId, Bytes)> {
    let encode = |message: Message| Some((NodeId(message.to), Bytes::from(message.write_to_bytes().ok()?)));
    messages.into_iter().filter_map(encode).collect()
}

/// The configuration that a change leads to: more than one step at once goes through one in which the votes of both
/// count, and no step at all leaves that.
fn after(before: &Configuration, change: &ConfChangeV2) -> Configuration {
    let mut after = Configuration { outgoing: BTreeSet::new(), ..before.clone() };
    for step in &change.changes {
        let node = NodeId(step.node_id);
        let (votes, learns) = match step.change_type {
            ConfChangeType::AddNode => (true, false),
            ConfChangeType::AddLearnerNode => (false, true),
            ConfChangeType::RemoveNode => (false, false),
        };
        let keep =
            |set: &mut BTreeSet<NodeId>, keeps| if keeps { set.insert(node) } else { set.remove(&node) };
        keep(&mut after.voters, votes);
        keep(&mut after.learners, learns);
    }
    if change.changes.len() > 1 {
        after.outgoing = before.voters.clone();
    }
    after
}

/// The failure a driver sees when a proposal was not taken.
impl From<ProposeError> for Failure {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::TooLong { .. } => Failure::Refused { message: error.to_string() },
            ProposeError::Unwritable(_) | ProposeError::Unpersisted => Failure::internal(error),
            _ => Failure::Unavailable { message: format!("{error}; try again") },
        }
    }
}
