//! A replica's log as it holds it in memory, and what it wants written of it. The log in memory is ahead of the one on
//! the disk by what is being written: nothing of that has been promised to anybody.
//!
//! ```text
//!            snapshot (state up to its index)
//!               │
//!   dropped │ kept tail │ applied │ committed │ appended
//!   ────────┼───────────┼─────────┼───────────┼─────────>  index
//!       first_index                        last_index
//! ```

use floe_protocol::Era;
use raft::eraftpb::{Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::checkpoint::Checkpoint;

/// Why a log cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Reading or writing failed.
    #[error("the log cannot be written: {0}")]
    Io(String),
    /// What was read, or is to be written, is no log.
    #[error("the log is damaged: {0}")]
    Damaged(String),
}

/// What must be kept together, in one transaction. What follows each other may be written as one: [`Persist::absorb`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Persist {
    /// The node leaves its era: nothing stays but the eras that it has left, which are these.
    pub left: Option<Vec<Era>>,
    /// A snapshot that replaces the whole log: received from the leader, or the beginning of a log.
    pub snapshot: Option<Snapshot>,
    /// Entries to append. Those that the log holds from the first one's index on are replaced.
    pub entries: Vec<Entry>,
    /// The term, vote and commit index.
    pub hard_state: Option<HardState>,
    /// A snapshot of the node's own state, yet to be encoded. The log stays, but for entries whose outcome it holds.
    pub checkpoint: Option<Checkpoint>,
}

impl Persist {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes in what is to be written next.
    pub fn absorb(&mut self, next: Self) {
        if next.left.is_some() {
            *self = next;
            return;
        }
        if next.snapshot.is_some() {
            self.entries.clear();
            // It holds less than what replaces the log.
            self.checkpoint = None;
            self.snapshot = next.snapshot;
        }
        if let Some(first) = next.entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
        }
        self.entries.extend(next.entries);
        self.hard_state = next.hard_state.or(self.hard_state.take());
        self.checkpoint = next.checkpoint.or(self.checkpoint.take());
    }
}

/// What a [`MemoryLog`] consists of: all that a durable log must write and read back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogParts {
    /// The term, vote and commit index.
    pub hard_state: HardState,
    /// The newest snapshot, empty in a log that was never used.
    pub snapshot: Snapshot,
    /// Index of the entry before the first one kept, 0 if none was dropped.
    pub dropped_index: u64,
    /// Its term.
    pub dropped_term: u64,
    /// The entries, from `dropped_index + 1`.
    pub entries: Vec<Entry>,
    /// The eras that the node has left, at most [`MAX_LEFT`], the last one at the end.
    pub left: Vec<Era>,
}

/// Eras that a node remembers to have left: more than could still be under way.
pub const MAX_LEFT: usize = 64;

impl LogParts {
    /// What remains of a log when its node leaves `era`.
    pub fn after(&self, era: Era) -> Self {
        let mut left = self.left.clone();
        left.push(era);
        left.drain(..left.len().saturating_sub(MAX_LEFT));
        Self { left, ..Self::default() }
    }
}

/// A log in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryLog {
    parts: LogParts,
    /// Its snapshot does not name all who vote or learn, and those do not take it: a new one is on its way.
    outdated: bool,
}

impl MemoryLog {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// A log from what was read back.
    pub fn from_parts(mut parts: LogParts) -> Result<Self, LogError> {
        let damaged = |what: String| Err(LogError::Damaged(what));
        let mut before = (parts.dropped_index, parts.dropped_term);
        for entry in &parts.entries {
            if entry.index != before.0 + 1 || entry.term < before.1 {
                return damaged(format!(
                    "entry {} of term {} follows entry {} of term {}",
                    entry.index, entry.term, before.0, before.1
                ));
            }
            before = (entry.index, entry.term);
        }
        let snapshot_index = parts.snapshot.get_metadata().index;
        if snapshot_index < parts.dropped_index || snapshot_index > before.0 {
            return damaged(format!(
                "its snapshot at {snapshot_index} lies outside the entries {} to {}",
                parts.dropped_index, before.0
            ));
        }
        if parts.hard_state.commit > before.0 {
            return damaged(format!(
                "entry {} is said to be committed, the log ends at {}",
                parts.hard_state.commit, before.0
            ));
        }
        if parts.hard_state.term < before.1 {
            return damaged(format!("an entry of term {} in term {}", before.1, parts.hard_state.term));
        }
        // A commit index alone need not have been written (see `Persist::must_sync`).
        parts.hard_state.commit = parts.hard_state.commit.max(snapshot_index);
        Ok(Self { parts, outdated: false })
    }

    /// All it consists of.
    pub fn parts(&self) -> &LogParts {
        &self.parts
    }

    /// Whether it was never used.
    pub fn is_empty(&self) -> bool {
        self.last() == 0 && self.parts.hard_state == HardState::default()
    }

    fn first(&self) -> u64 {
        self.parts.dropped_index + 1
    }

    fn last(&self) -> u64 {
        self.parts.dropped_index + self.parts.entries.len() as u64
    }

    fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.parts.dropped_index {
            return Some(self.parts.dropped_term);
        }
        let position = index.checked_sub(self.first())?;
        self.parts.entries.get(position as usize).map(|entry| entry.term)
    }

    /// Replaces the whole log.
    fn install(&mut self, snapshot: &Snapshot) {
        let (index, term) = (snapshot.get_metadata().index, snapshot.get_metadata().term);
        (self.parts.dropped_index, self.parts.dropped_term) = (index, term);
        self.parts.entries.clear();
        self.parts.snapshot = snapshot.clone();
        self.outdated = false;
        let hard_state = &mut self.parts.hard_state;
        hard_state.commit = hard_state.commit.max(index);
        hard_state.term = hard_state.term.max(term);
    }

    /// Takes in what [`Persist`] wants written, but for its checkpoint: that follows when it is encoded
    /// ([`MemoryLog::checkpointed`]).
    pub fn write(&mut self, persist: &Persist) -> Result<(), LogError> {
        if let Some(left) = &persist.left {
            self.parts = LogParts { left: left.clone(), ..LogParts::default() };
        }
        if let Some(snapshot) = &persist.snapshot {
            self.install(snapshot);
        }
        self.append(&persist.entries)?;
        if let Some(hard_state) = &persist.hard_state {
            let commit = hard_state.commit.max(self.parts.snapshot.get_metadata().index);
            self.parts.hard_state = hard_state.clone();
            self.parts.hard_state.commit = commit;
        }
        Ok(())
    }

    /// A checkpoint is written: what it holds of the log need not be kept, up to the entry named. One that a newer
    /// snapshot has replaced meanwhile is of no use any more. `outdated`: the voters or learners have changed since it was taken.
    pub fn checkpointed(&mut self, snapshot: Snapshot, dropped: (u64, u64), outdated: bool) {
        let (index, term) = (snapshot.get_metadata().index, snapshot.get_metadata().term);
        if index <= self.parts.snapshot.get_metadata().index || self.term_of(index) != Some(term) {
            return;
        }
        self.parts.snapshot = snapshot;
        self.outdated = outdated;
        // What is applied is agreed on, whether that was worth a write or not.
        self.parts.hard_state.commit = self.parts.hard_state.commit.max(index);
        let (dropped_index, dropped_term) = dropped;
        if dropped_index > self.parts.dropped_index && self.term_of(dropped_index) == Some(dropped_term) {
            self.parts.entries.drain(..(dropped_index - self.parts.dropped_index) as usize);
            (self.parts.dropped_index, self.parts.dropped_term) = dropped;
        }
    }

    /// The voters or learners changed since its snapshot was taken.
    pub(crate) fn set_outdated(&mut self) {
        self.outdated = true;
    }

    /// Whether its snapshot does not name all who vote or learn.
    pub(crate) fn is_outdated(&self) -> bool {
        self.outdated
    }

    /// The eras that the log's node has left, the last ones at least.
    pub fn left(&self) -> &[Era] {
        &self.parts.left
    }

    fn append(&mut self, entries: &[Entry]) -> Result<(), LogError> {
        let Some(first) = entries.first() else { return Ok(()) };
        if first.index < self.first() || first.index > self.last() + 1 {
            return Err(LogError::Damaged(format!(
                "entry {} cannot follow the entries {} to {}",
                first.index,
                self.first(),
                self.last()
            )));
        }
        self.parts.entries.truncate((first.index - self.first()) as usize);
        self.parts.entries.extend_from_slice(entries);
        Ok(())
    }
}

impl Storage for MemoryLog {
    /// The voters and learners are those of the snapshot: what changed them since is in the entries, which
    /// apply again after a restart.
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf_state = self.parts.snapshot.get_metadata().get_conf_state().clone();
        Ok(RaftState::new(self.parts.hard_state.clone(), conf_state))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let range = (low - self.first()) as usize..(high - self.first()) as usize;
        let mut entries = self.parts.entries.get(range).unwrap_or_default().to_vec();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.parts.dropped_index {
            return Err(StorageError::Compacted.into());
        }
        self.term_of(index).ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _: u64) -> raft::Result<Snapshot> {
        let snapshot = &self.parts.snapshot;
        if snapshot.get_metadata().index == 0
            || snapshot.get_metadata().index < request_index
            || self.outdated
        {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        Ok(snapshot.clone())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
        range.map(|index| Entry { index, term, ..Entry::default() }).collect()
    }

    fn snapshot(index: u64, term: u64) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = index;
        snapshot.mut_metadata().term = term;
        snapshot
    }

    fn kept(log: &MemoryLog) -> Vec<(u64, u64)> {
        log.parts().entries.iter().map(|e| (e.index, e.term)).collect()
    }

    #[test]
    fn entries_replace_the_conflicting_tail() {
        let mut log = MemoryLog::new();
        log.write(&Persist { entries: entries(1..=4, 1), ..Persist::default() }).unwrap();
        log.write(&Persist { entries: entries(3..=3, 2), ..Persist::default() }).unwrap();
        assert_eq!(kept(&log), [(1, 1), (2, 1), (3, 2)]);
        let gap = log.write(&Persist { entries: entries(5..=5, 2), ..Persist::default() });
        assert!(matches!(gap, Err(LogError::Damaged(_))));
    }

    #[test]
    fn a_checkpoint_keeps_the_tail_and_a_snapshot_replaces_the_log() {
        let mut log = MemoryLog::new();
        log.write(&Persist { entries: entries(1..=6, 1), ..Persist::default() }).unwrap();
        log.checkpointed(snapshot(4, 1), (2, 1), false);
        assert_eq!(kept(&log), [(3, 1), (4, 1), (5, 1), (6, 1)]);
        assert_eq!(log.term(2).unwrap(), 1);
        assert!(log.term(1).is_err());
        log.write(&Persist { snapshot: Some(snapshot(6, 2)), ..Persist::default() }).unwrap();
        assert_eq!(kept(&log), []);
        assert_eq!((log.first_index().unwrap(), log.last_index().unwrap()), (7, 6));
        assert_eq!(log.term(6).unwrap(), 2);
        // One that was being encoded when that came.
        log.checkpointed(snapshot(5, 1), (4, 1), false);
        assert_eq!(log.parts().snapshot, snapshot(6, 2));
    }

    #[test]
    fn what_is_written_as_one_is_what_was_to_be_written_one_after_another() {
        let hard_state = |term| Some(HardState { term, ..HardState::default() });
        let of = |range, term| Persist {
            entries: entries(range, term),
            hard_state: hard_state(term),
            ..Persist::default()
        };
        let foreign =
            Persist { snapshot: Some(snapshot(9, 3)), hard_state: hard_state(3), ..Persist::default() };
        let left = Persist { left: Some(Vec::new()), ..Persist::default() };
        let writes =
            [of(1..=4, 1), of(3..=5, 2), foreign, of(10..=11, 3), of(11..=11, 4), left, of(1..=2, 7)];
        for until in 1..=writes.len() {
            let (mut apart, mut together, mut whole) =
                (MemoryLog::new(), MemoryLog::new(), Persist::default());
            for persist in &writes[..until] {
                apart.write(persist).unwrap();
                whole.absorb(persist.clone());
            }
            together.write(&whole).unwrap();
            assert_eq!(apart.parts(), together.parts());
        }
    }

    #[test]
    fn damaged_parts_are_refused() {
        let mut log = MemoryLog::new();
        let hard_state = HardState { term: 1, commit: 2, ..HardState::default() };
        let persist =
            Persist { entries: entries(1..=3, 1), hard_state: Some(hard_state), ..Persist::default() };
        log.write(&persist).unwrap();
        assert!(MemoryLog::from_parts(log.parts().clone()).is_ok());
        type Damage = fn(&mut LogParts);
        let damages: [Damage; 5] = [
            |parts| drop(parts.entries.remove(1)),
            |parts| parts.entries.truncate(1),
            |parts| parts.entries[2].term = 9,
            |parts| parts.hard_state.commit = 9,
            |parts| parts.snapshot = snapshot(7, 1),
        ];
        for damage in damages {
            let mut parts = log.parts().clone();
            damage(&mut parts);
            assert!(matches!(MemoryLog::from_parts(parts), Err(LogError::Damaged(_))));
        }
    }
}
