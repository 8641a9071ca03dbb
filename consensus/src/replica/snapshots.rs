//! Snapshots: when one is taken, what of the log is kept behind it, and those on their way to other nodes.

use floe_protocol::NodeId;
use raft::eraftpb::{Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, ProgressState, Storage as _};

use super::Replica;
use crate::checkpoint::Checkpoint;
use crate::log::Persist;

/// Log that is kept behind a snapshot, so that a follower that lags a little needs no snapshot.
const KEPT_TAIL_BYTES: usize = 8 << 20;

/// The part of the last snapshot's size that the entries since then have when the next one is taken.
const CHECKPOINT_PART: usize = 4;

/// Size of applied entries after which a snapshot is taken though they are few.
const CHECKPOINT_BYTES: usize = 16 << 20;

/// A snapshot on its way that nobody reported the fate of counts as lost after this many ticks, and one more for each
/// of so many bytes: a slow link takes some 5 MB/s.
const SNAPSHOT_PATIENCE_TICKS: u32 = 200;
const SNAPSHOT_BYTES_PER_TICK: usize = 64 << 10;

impl Replica {
    pub(super) fn checkpoint_due(&self) -> bool {
        let many = self.state.applied() >= self.checkpoint_index + self.config.checkpoint_entries
            || self.checkpoint_bytes >= CHECKPOINT_BYTES;
        // A large state is written again only when the log has grown by a part of that, so that what is written in all
        // stays in proportion to what was agreed on.
        let written = self.log().parts().snapshot.data.len();
        let due = many && self.checkpoint_bytes >= written / CHECKPOINT_PART || self.checkpoint_outdated;
        due && !self.unwritten.has_checkpoint()
    }

    /// Has a snapshot written of what has applied.
    pub(super) fn begin_checkpoint(&mut self) {
        let index = self.state.applied();
        // Taken or not, the next one is due as many entries later.
        (self.checkpoint_index, self.checkpoint_bytes, self.checkpoint_outdated) = (index, 0, false);
        let log = self.raw.store();
        let dropped_index = self.compaction_point() - 1;
        let (Ok(term), Ok(dropped_term)) = (log.term(index), log.term(dropped_index)) else { return };
        let mut metadata = SnapshotMetadata { index, term, ..SnapshotMetadata::default() };
        *metadata.mut_conf_state() = self.conf_state();
        let checkpoint = Checkpoint::new(self.state.clone(), metadata, (dropped_index, dropped_term));
        let persist = Persist {
            checkpoint: Some(checkpoint),
            hard_state: Some(self.raw.raft.hard_state()),
            ..Persist::default()
        };
        self.unwritten.gather_checkpoint(persist);
    }

    pub(super) fn checkpointed(&mut self, snapshot: Snapshot, dropped: (u64, u64)) {
        let log = self.raw.mut_store();
        let was_outdated = log.is_outdated();
        log.checkpointed(snapshot, dropped, self.checkpoint_outdated);
        if was_outdated && !log.is_outdated() && self.leads() {
            // Whoever waits for it says what it lacks when it answers.
            self.raw.ping();
        }
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

    /// On the leader, with each tick: gives up snapshots on their way of which nobody says what became.
    pub(super) fn give_up_snapshots(&mut self) {
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
}
