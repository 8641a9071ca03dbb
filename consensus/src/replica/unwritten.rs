//! What a replica's disk has not confirmed yet, and what must not be said before it has.
//!
//! ```text
//!   gather ──> gathered ──take──> under way ──written──> what it held back may be said
//! ```
//!
//! One write is under way at a time, and what comes meanwhile is gathered for the next, so that under load many entries
//! share one sync.

use std::mem;

use bytes::Bytes;
use floe_protocol::NodeId;
use raft::eraftpb::Snapshot;

use crate::log::Persist;

/// What may wait for the disk: some seconds' worth of a slow one, and the longest entry several times over. Beyond it
/// nothing is taken on.
pub(super) const MAX_BYTES: usize = 32 << 20;

/// What an entry takes besides its data, roughly.
const ENTRY_BYTES: usize = 64;

/// What came of a write.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// The encoding of its checkpoint, if it had one.
    pub checkpoint: Option<Snapshot>,
}

/// What is said when something is on disk.
#[derive(Debug, Default)]
pub(super) struct Promise {
    /// The last of raft-rs' outputs that it covers.
    pub(super) number: u64,
    /// Messages that say that it is there.
    pub(super) messages: Vec<(NodeId, Bytes)>,
    /// The term that is on disk with it, if it has one.
    pub(super) term: Option<u64>,
    /// The same of the last entry that is agreed on.
    pub(super) commit: Option<u64>,
    /// Of its checkpoint: the last entry that need not be kept then.
    pub(super) dropped: Option<(u64, u64)>,
    bytes: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    gathered: Persist,
    next: Promise,
    under_way: Option<Promise>,
    /// The last term that was gathered.
    term: u64,
    /// How many ticks that has taken.
    ticks: u32,
}

impl Unwritten {
    /// Whether everything is on disk.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_none() && self.gathered.is_empty()
    }

    /// Whether no more can be taken on.
    pub(super) fn is_full(&self) -> bool {
        self.next.bytes + self.under_way.as_ref().map_or(0, |promise| promise.bytes) >= MAX_BYTES
    }

    /// Whether a checkpoint is among it.
    pub(super) fn has_checkpoint(&self) -> bool {
        let under_way = self.under_way.as_ref().is_some_and(|promise| promise.dropped.is_some());
        under_way || self.gathered.checkpoint.is_some()
    }

    /// A tick passed: for how many the write under way has lasted.
    pub(super) fn tick(&mut self) -> u32 {
        self.ticks = if self.under_way.is_some() { self.ticks.saturating_add(1) } else { 0 };
        self.ticks
    }

    /// Takes in what raft-rs wants written, as its output of this number.
    pub(super) fn gather(&mut self, persist: Persist, number: u64) {
        let entries = persist.entries.iter().map(|entry| entry.data.len() + ENTRY_BYTES).sum::<usize>();
        if let Some(hard_state) = &persist.hard_state
            && hard_state.term > self.term
        {
            self.term = hard_state.term;
            // What waits to be said of an earlier term is of use to nobody any more; and it speaks of a log that may be
            // replaced by what is gathered now, in the same write.
            self.next.messages.clear();
        }
        self.next.bytes += entries + persist.snapshot.as_ref().map_or(0, |snapshot| snapshot.data.len());
        self.next.number = number;
        self.gathered.absorb(persist);
    }

    /// Takes in a checkpoint. It promises nothing.
    pub(super) fn gather_checkpoint(&mut self, persist: Persist) {
        self.gathered.absorb(persist);
    }

    /// Holds messages back until all is written that was gathered before them, in an output of this number.
    pub(super) fn hold(&mut self, messages: Vec<(NodeId, Bytes)>, number: u64) {
        let promise = match &mut self.under_way {
            Some(promise) if self.gathered.is_empty() => promise,
            _ => &mut self.next,
        };
        promise.number = number;
        promise.messages.extend(messages);
    }

    /// The next write, if the last one is done.
    pub(super) fn take(&mut self) -> Option<Persist> {
        if self.under_way.is_some() || self.gathered.is_empty() {
            return None;
        }
        let mut promise = mem::take(&mut self.next);
        let hard_state = self.gathered.hard_state.as_ref();
        promise.term = hard_state.map(|hard_state| hard_state.term);
        promise.commit = hard_state.map(|hard_state| hard_state.commit);
        promise.dropped = self.gathered.checkpoint.as_ref().map(|checkpoint| checkpoint.dropped);
        self.under_way = Some(promise);
        self.ticks = 0;
        Some(mem::take(&mut self.gathered))
    }

    /// The write under way is done.
    pub(super) fn written(&mut self) -> Option<Promise> {
        self.under_way.take()
    }

    /// Forgets what was gathered: this is written instead.
    pub(super) fn replace(&mut self, persist: Persist) {
        (self.gathered, self.next) = (persist, Promise::default());
    }
}
