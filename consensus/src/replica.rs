//! One node's copy of the replicated log: raft-rs and the state machine behind messages in, output out.
//!
//! ```text
//!   step, tick, propose ──> raft-rs ──take_output──> messages that promise nothing, and what applied
//!                              │  ▲
//!                    take_write│  │persisted ──────> messages that promise what is on disk now
//!                              ▼  │
//!                              disk, meanwhile
//! ```
//!
//! The caller loops after every call that may have changed something, and does not wait for its disk:
//!
//! ```text
//!   while let Some(output) = replica.take_output()? {
//!       send(output.send);                   // a leader replicates while its own disk is still writing
//!       handle(output.events);
//!   }
//!   if let Some(persist) = replica.take_write() {
//!       disk.write(persist);                 // when it is synced: `persisted`, whose output is treated likewise
//!   }
//! ```
//!
//! Disk before word: a vote, an acknowledgement, and a leader's own share in a majority count when what they promise is
//! on this node's disk. Until then raft-rs reads it from the log in memory.
//!
//! Nothing a peer sends can make raft-rs panic: [`Replica::step`] refuses what it would not survive. Nor does a node
//! campaign before all of its log is on disk: raft-rs takes for granted that a leader's is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use bytes::Bytes;
use floe_protocol::{Era, Failure, Fence, Member, MeshId, NodeId, RequestId};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry as RaftEntry, EntryType, Message, MessageType, Snapshot};
use raft::{GetEntriesContext, ProgressState, RawNode, SnapshotStatus, StateRole, Storage as _};

use crate::command::{Command, Entry};
use crate::event::Event;
use crate::log::{LogError, LogParts, MemoryLog, Persist};
use crate::membership::Configuration;
use crate::state_machine::{RestoreError, StateMachine};

mod configuration;
mod guard;
mod snapshots;
mod unwritten;

pub use guard::StepError;
pub use unwritten::Written;

use unwritten::{Promise, Unwritten};

/// How long a tick is, see [`Replica::tick`].
pub const TICK_MS: u64 = 50;

/// The most that [`Replica::quiet_ticks`] says: others than raft-rs look at the time too, and a longer gap would look like
/// a stall.
pub const MAX_QUIET_TICKS: u32 = 5;

/// Ticks between a leader's heartbeats. Two of them may be late before anybody doubts it; and each costs an idle mesh more
/// than all else that it does, on every node.
const HEARTBEAT_TICKS: usize = 4;

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

/// Roughly what an entry takes besides its data.
const ENTRY_BYTES: usize = 64;

/// A leader whose disk takes as many ticks for one write hands over to another voter: until it is done, nothing would be
/// agreed on under it.
const STALLED_TICKS: u32 = 40;

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
        Self {
            id,
            election_ticks: 10..20,
            heartbeat_ticks: HEARTBEAT_TICKS,
            checkpoint_entries: 1024,
            kept_entries: 256,
        }
    }
}

/// What there is to do. See the module's loop.
#[derive(Debug, Default)]
pub struct Output {
    /// Messages to send at once.
    pub send: Vec<(NodeId, Bytes)>,
    /// What applied and who leads.
    pub events: Vec<Event>,
    /// Whether this node has left its era: its log is empty now.
    pub left: bool,
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
    /// Too much waits for a majority or for this node's disk, or leadership is being handed over. Try again soon.
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
    /// The entry cannot be encoded.
    #[error("the entry cannot be written: {0}")]
    Unwritable(String),
}

/// Why a replica cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BrokenError {
    /// What raft-rs wants written does not follow what was written before.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A log that was emptied cannot be opened anew.
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

/// A snapshot on its way to the disk, with its state as it was read when it came, or made here. Nothing else counts
/// before it is there.
#[derive(Debug)]
struct Arriving {
    state: StateMachine,
    founding: Option<Founding>,
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
    /// Everybody whose vote may be asked for, also after this node has started again.
    pub voting: BTreeSet<NodeId>,
}

/// One node's copy of the log and of the state.
pub struct Replica {
    raw: RawNode<MemoryLog>,
    state: StateMachine,
    config: Config,
    unwritten: Unwritten,
    /// The term that is on disk, and the last entry that is known there to be agreed on.
    durable_term: u64,
    durable_commit: u64,
    /// Index of the last change of the voters that applied, and who voted before it.
    changed_index: u64,
    former_voters: BTreeSet<NodeId>,
    arriving: Option<Arriving>,
    /// The node leaves its era, once that is on disk: all that it has left then.
    leaving: Option<Vec<Era>>,
    /// It keeps out of elections while others have a leader, see [`Replica::withhold_vote`].
    withholds_vote: bool,
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

impl Replica {
    /// Opens a replica on its log: empty, or as it was left. Entries after the log's snapshot apply again, so
    /// the first outputs repeat their events.
    pub fn open(config: Config, log: MemoryLog) -> Result<Self, OpenError> {
        let opening = |error: raft::Error| OpenError::Log(error.to_string());
        let snapshot_index = match log.snapshot(0, config.id.0) {
            Ok(snapshot) => snapshot.get_metadata().index,
            Err(_) => 0,
        };
        let state = match log.snapshot(0, config.id.0) {
            Ok(snapshot) => StateMachine::restore(snapshot.get_data())?,
            Err(_) => StateMachine::default(),
        };
        let initial = log.initial_state().map_err(opening)?;
        let voters = initial.conf_state.voters;
        let (durable_term, durable_commit) = (initial.hard_state.term, initial.hard_state.commit);
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
            unwritten: Unwritten::default(),
            durable_term,
            durable_commit,
            changed_index: 0,
            former_voters: BTreeSet::new(),
            arriving: None,
            leaving: None,
            withholds_vote: false,
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
        self.check_settled()?;
        if self.raw.raft.raft_log.last_index() != 0 || self.raw.raft.term != 0 {
            return Err(ProposeError::NotEmpty);
        }
        let mut state = StateMachine::default();
        state.apply(1, &Entry { request, command: Command::Genesis { mesh, member } });
        self.begin(state, Founding::Mesh)
    }

    /// Begins the mesh's next era, with this node as its only voter and all that its log holds: what was not
    /// known to be agreed on may have been, and nothing of it is lost that way. Nodes of the former era must
    /// come back as new ones, with empty logs.
    pub fn carry_on(&mut self) -> Result<(), ProposeError> {
        self.check_settled()?;
        let mut state = self.outlook();
        if state.era().is_none() {
            return Err(ProposeError::NotLeader { leader: None });
        }
        state
            .carry_on(self.config.id, self.raw.raft.raft_log.last_index() + 1)
            .map_err(|error| ProposeError::Unwritable(error.to_string()))?;
        self.begin(state, Founding::Era)
    }

    /// Begins a log with a snapshot of this state and this node as its only voter, in a term of its own.
    fn begin(&mut self, state: StateMachine, founding: Founding) -> Result<(), ProposeError> {
        let data = state.snapshot().map_err(|error| ProposeError::Unwritable(error.to_string()))?;
        let term = self.raw.raft.term + 1;
        let mut snapshot = Snapshot { data: data.into(), ..Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (state.applied(), term);
        metadata.mut_conf_state().voters = vec![self.config.id.0];
        self.raw.raft.become_follower(term, raft::INVALID_ID);
        if self.raw.raft.restore(snapshot) {
            self.arriving = Some(Arriving { state, founding: Some(founding) });
        }
        Ok(())
    }

    /// Forgets everything, since the node leaves its era for another: [`Output::left`] says when that is on disk. The
    /// era is remembered, since the node has promised things in it that it then forgets. Until then nothing counts.
    pub fn leave(&mut self, era: Era) {
        if self.leaving.is_none() {
            let left = self.log().parts().after(era).left;
            self.unwritten.replace(Persist { left: Some(left.clone()), ..Persist::default() });
            self.leaving = Some(left);
        }
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

    /// Takes in a peer's message in raft-rs' encoding.
    pub fn step(&mut self, message: &[u8]) -> Result<(), StepError> {
        self.step_message(read_message(message)?)
    }

    /// Whether only a leader sends this, and no former one did. Whoever led and asks for votes now leads no more.
    pub fn is_from_leader(&self, message: &Message) -> bool {
        let as_leader = matches!(
            message.msg_type,
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot
        );
        as_leader && message.term >= self.raw.raft.term
    }

    /// Whether this node neither votes nor asks for votes: it has just started, and others have a leader. If it is a copy of a
    /// node that runs, it must not elect anybody together with other copies.
    pub fn withhold_vote(&mut self, withholds: bool) {
        self.withholds_vote = withholds;
    }

    /// Takes in a peer's message.
    pub fn step_message(&mut self, mut message: Message) -> Result<(), StepError> {
        // What begins is no part of what the peer speaks of.
        if !self.is_settled() {
            return Err(StepError::Busy);
        }
        let asks_for_vote = matches!(
            message.msg_type,
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote | MessageType::MsgTimeoutNow
        );
        if asks_for_vote && self.withholds_vote {
            return Err(StepError::Busy);
        }
        let snapshot = guard::check(&self.raw.raft, &message)?;
        // A snapshot comes one at a time, and its sender would wait long for what became of it.
        let brings_entries = message.msg_type == MessageType::MsgAppend && !message.entries.is_empty();
        if (brings_entries && self.unwritten.is_full())
            || (message.msg_type == MessageType::MsgTimeoutNow && !self.is_on_disk())
        {
            return Err(StepError::Busy);
        }
        // Floe's followers never ask for a snapshot: raft-rs sends one when it is needed.
        message.request_snapshot = 0;
        let from = message.from;
        let stepped = self.raw.step(message).map_err(|error| match error {
            raft::Error::StepPeerNotFound => StepError::UnknownPeer { from: NodeId(from) },
            other => StepError::Malformed(other.to_string()),
        });
        // Or the log goes as far without it.
        if self.raw.raft.raft_log.unstable_snapshot().is_some() {
            self.arriving = snapshot.map(|state| Arriving { state, founding: None });
        }
        stepped
    }

    /// How many ticks may pass before one of them does anything, unless something else happens first; at least one.
    /// Whoever waits for so long, or is called on meanwhile, then calls [`Replica::tick`] once for each that passed.
    ///
    /// No tick but the first that follows such a wait makes a node campaign, so that it hears first what came meanwhile.
    pub fn quiet_ticks(&self) -> u32 {
        let raft = &self.raw.raft;
        if !self.unwritten.is_empty() || !self.snapshots.is_empty() || !self.is_settled() {
            return 1;
        }
        let quiet = if self.leads() {
            self.config.heartbeat_ticks.saturating_sub(raft.heartbeat_elapsed())
        } else if raft.leader_id != raft::INVALID_ID {
            raft.randomized_election_timeout().saturating_sub(raft.election_elapsed + 1)
        } else {
            1
        };
        u32::try_from(quiet).unwrap_or(MAX_QUIET_TICKS).clamp(1, MAX_QUIET_TICKS)
    }

    /// [`TICK_MS`] passed. After a stall call it once, not once for every tick that was missed: the stall says
    /// nothing about the leader.
    pub fn tick(&mut self) {
        let writing_ticks = self.unwritten.tick();
        if !self.is_settled() {
            return;
        }
        if !self.leads() {
            self.snapshots.clear();
            // A node whose disk lags could not vote for itself either.
            if self.is_on_disk() && !self.withholds_vote {
                self.raw.tick();
            }
            return;
        }
        self.raw.tick();
        if writing_ticks > 0 && writing_ticks.is_multiple_of(STALLED_TICKS) {
            self.hand_over();
        }
        self.give_up_snapshots();
    }

    /// Hands the leadership to the voter that has most of the log.
    fn hand_over(&mut self) {
        let progress = self.raw.raft.prs();
        let voters = progress.conf().voters();
        let others = progress
            .iter()
            .filter(|(id, p)| **id != self.config.id.0 && voters.contains(**id) && p.recent_active);
        let best = others.max_by_key(|(id, p)| (p.matched, Reverse(**id))).map(|(id, _)| *id);
        if let Some(best) = best {
            self.raw.transfer_leader(best);
        }
    }

    /// Proposes an entry. Only a leader can, and an accepted proposal may still be lost with the leadership.
    pub fn propose(&mut self, entry: &Entry) -> Result<(), ProposeError> {
        self.check_leads()?;
        if self.unwritten.is_full() {
            return Err(ProposeError::Busy);
        }
        let data = entry.encode().map_err(|error| ProposeError::Unwritable(error.to_string()))?;
        if data.len() > MAX_ENTRY_BYTES {
            return Err(ProposeError::TooLong { bytes: data.len() });
        }
        self.raw.propose(Vec::new(), data).map_err(|_| ProposeError::Busy)
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
        self.raw.report_unreachable(node.0);
        self.report_snapshot(node, false);
    }

    /// Says what became of a snapshot sent to a node. Without it the node's acknowledgement is proof of
    /// success, and [`Replica::report_unreachable`] or a few seconds of silence mean failure.
    pub fn report_snapshot(&mut self, node: NodeId, arrived: bool) {
        let status = if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(node.0, status);
    }

    /// Asks for a moment at which this node's state is at least as new as now: [`Event::ReadReady`]. False if
    /// that cannot be had at present (no leader, or one too new). It may be lost: ask again after a while.
    pub fn read_index(&mut self, request: RequestId) -> bool {
        let raft = &self.raw.raft;
        let possible = raft.leader_id != raft::INVALID_ID
            && (raft.state != StateRole::Leader || raft.commit_to_current_term())
            && raft.pending_read_count() + self.reads.len() < MAX_PENDING_READS;
        if !self.is_settled() || !possible {
            return false;
        }
        self.raw.read_index(request.0.to_be_bytes().to_vec());
        true
    }

    /// What there is to do now, if anything. After an error the replica is not to be used any more.
    pub fn take_output(&mut self) -> Result<Option<Output>, BrokenError> {
        // Of what arrives only the beginning is taken, so that nothing follows it before it is there.
        let arrives = self.arriving.is_some() && self.raw.raft.raft_log.unstable_snapshot().is_some();
        let open = self.is_settled() || (arrives && self.leaving.is_none());
        if !open || !(self.raw.has_ready() || self.checkpoint_due()) {
            return Ok(None);
        }
        let mut output = Output::default();
        if self.raw.has_ready() {
            self.take_ready(&mut output)?;
        }
        if self.is_settled() {
            self.announce(&mut output.events);
            if self.checkpoint_due() {
                self.begin_checkpoint();
            }
        }
        Ok(Some(output))
    }

    fn take_ready(&mut self, output: &mut Output) -> Result<(), BrokenError> {
        let mut ready = self.raw.ready();
        let number = ready.number();
        let raft = &self.raw.raft;
        // A node that leads by its own vote alone may do so before its disk knows that. Said too early, the same term
        // could come to mean something else after a crash.
        let leads = raft.state == StateRole::Leader && raft.term == self.durable_term;
        let mut messages = ready.take_messages();
        messages.extend(ready.take_persisted_messages());
        let hard_state = raft.hard_state();
        if ready.must_sync() {
            let snapshot = Some(ready.snapshot().clone()).filter(|snapshot| !snapshot.is_empty());
            let persist = Persist {
                snapshot,
                entries: ready.take_entries(),
                hard_state: Some(hard_state),
                ..Persist::default()
            };
            self.raw.mut_store().write(&persist)?;
            self.unwritten.gather(persist, number);
        } else {
            // The commit index alone is written with what comes next, or never.
            self.raw.mut_store().write(&Persist { hard_state: Some(hard_state), ..Persist::default() })?;
        }
        if leads {
            output.send = encode_messages(messages);
        } else {
            // That a heartbeat came promises nothing.
            let (says, promises) =
                messages.into_iter().partition(|m| m.msg_type == MessageType::MsgHeartbeatResponse);
            output.send = encode_messages(says);
            let promises = encode_messages(promises);
            if self.unwritten.is_empty() {
                output.send.extend(promises);
            } else {
                self.unwritten.hold(promises, number);
            }
        }
        let reads = ready.take_read_states().into_iter().filter_map(|read| {
            let request = read.request_ctx.try_into().ok()?;
            Some((read.index, RequestId(u128::from_be_bytes(request))))
        });
        self.reads.extend(reads);
        let committed = ready.take_committed_entries();
        self.raw.advance_append_async(ready);
        if self.unwritten.is_empty() {
            self.raw.on_persist_ready(number);
        }
        if self.arriving.is_none() {
            self.apply(committed, &mut output.events);
            self.raw.advance_apply();
        }
        Ok(())
    }

    /// What is to be written next, unless a write is under way: all of it, and synced, before [`Replica::persisted`] is
    /// called.
    pub fn take_write(&mut self) -> Option<Persist> {
        self.unwritten.take()
    }

    /// What [`Replica::take_write`] gave is on disk. After an error the replica is not to be used any more.
    pub fn persisted(&mut self, written: Written) -> Result<Output, BrokenError> {
        let Some(Promise { number, messages, term, commit, dropped, .. }) = self.unwritten.written() else {
            return Ok(Output::default());
        };
        if let Some(left) = &self.leaving {
            // A write that was under way when it began to leave comes first.
            if !self.unwritten.is_empty() {
                return Ok(Output::default());
            }
            let log = MemoryLog::from_parts(LogParts { left: left.clone(), ..LogParts::default() })?;
            *self = Self::open(self.config.clone(), log)?;
            return Ok(Output { left: true, ..Output::default() });
        }
        let mut output = Output { send: messages, ..Output::default() };
        self.durable_term = term.unwrap_or(self.durable_term);
        self.durable_commit = commit.unwrap_or(self.durable_commit);
        self.raw.on_persist_ready(number);
        if let (Some(snapshot), Some(dropped)) = (written.checkpoint, dropped) {
            self.checkpointed(snapshot, dropped);
        }
        // It may not have been taken yet, or be gathered still for the next write.
        if self.unwritten.is_empty()
            && self.raw.raft.raft_log.unstable_snapshot().is_none()
            && let Some(arriving) = self.arriving.take()
        {
            self.install(arriving, &mut output.events);
        }
        Ok(output)
    }

    /// The replicated state.
    pub fn state(&self) -> &StateMachine {
        &self.state
    }

    /// The log.
    pub fn log(&self) -> &MemoryLog {
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
            voting: self.voting(),
        }
    }

    /// Whether a node votes.
    pub fn votes(&self, node: NodeId) -> bool {
        self.raw.raft.prs().conf().voters().contains(node.0)
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

    /// Whether the log goes on as it is: it is neither being replaced nor emptied.
    fn is_settled(&self) -> bool {
        self.arriving.is_none() && self.leaving.is_none()
    }

    /// Whether all of the log is on disk.
    fn is_on_disk(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        log.persisted >= log.last_index()
    }

    fn check_settled(&self) -> Result<(), ProposeError> {
        if self.is_settled() { Ok(()) } else { Err(ProposeError::Busy) }
    }

    fn check_leads(&self) -> Result<(), ProposeError> {
        self.check_settled()?;
        if self.leads() {
            Ok(())
        } else {
            Err(ProposeError::NotLeader { leader: some_node(self.raw.raft.leader_id) })
        }
    }

    /// What arrived is on disk.
    fn install(&mut self, arriving: Arriving, events: &mut Vec<Event>) {
        self.state = arriving.state;
        let index = self.log().parts().snapshot.get_metadata().index;
        (self.checkpoint_index, self.checkpoint_bytes, self.checkpoint_outdated) = (index, 0, false);
        self.raw.advance_apply();
        match arriving.founding {
            Some(Founding::Mesh) => {
                events.extend(self.state.era().map(|era| Event::MeshFounded { mesh: era.mesh }));
                let members = self.state.members().values();
                events.extend(members.map(|member| Event::MemberJoined { member: member.clone() }));
            }
            Some(Founding::Era) => events.extend(self.state.era().map(|era| Event::CarriedOn { era })),
            None => events.push(Event::Restored { index }),
        }
        self.announce(events);
        if arriving.founding.is_some() {
            // A lone voter elects itself; that it cannot is for the next timeout to find out.
            let _ = self.raw.campaign();
        }
    }

    fn apply(&mut self, entries: Vec<RaftEntry>, events: &mut Vec<Event>) {
        for entry in entries {
            self.checkpoint_bytes += ENTRY_BYTES + entry.data.len();
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
                    let voting = self.voting();
                    if change.is_ok_and(|change| self.raw.apply_conf_change(&change).is_ok()) {
                        (self.changed_index, self.former_voters) = (entry.index, voting);
                        // With the next one it is on disk that this is agreed on. Started again before, this node might ask
                        // for the votes of nodes that are gone.
                        self.checkpoint_outdated = true;
                        self.raw.mut_store().set_outdated();
                        events.push(Event::Reconfigured);
                        self.step_down_if_removed();
                    }
                }
            }
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
}

fn some_node(id: u64) -> Option<NodeId> {
    (id != raft::INVALID_ID).then_some(NodeId(id))
}

/// Reads a message in raft-rs' encoding.
pub(crate) fn read_message(bytes: &[u8]) -> Result<Message, StepError> {
    Message::parse_from_bytes(bytes).map_err(|error| StepError::Malformed(error.to_string()))
}

/// Raft survives lost messages, so one that cannot be encoded is simply lost.
fn encode_messages(messages: Vec<Message>) -> Vec<(NodeId, Bytes)> {
    let encode = |message: Message| Some((NodeId(message.to), Bytes::from(message.write_to_bytes().ok()?)));
    messages.into_iter().filter_map(encode).collect()
}

/// The failure a driver sees when a proposal was not taken.
impl From<ProposeError> for Failure {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::TooLong { .. } => Failure::Refused { message: error.to_string() },
            ProposeError::Unwritable(_) => Failure::internal(error),
            _ => Failure::Unavailable { message: format!("{error}; try again") },
        }
    }
}
