//! What is remembered of jobs that have ended and hold nothing any more.
//!
//! ```text
//!   freed ──> record: the whole job but its work ──no room──> tombstone: why and when ──too many──> forgotten
//! ```
//!
//! A record is what `floe jobs` shows, and why a job failed. Of a tombstone the mesh can still say that the job was
//! here, so that nobody submits it again.

use std::collections::{BTreeMap, VecDeque};

use floe_protocol::{Failure, Freed, JobId, JobPhase, WhyFreed};
use serde::{Deserialize, Serialize};

/// Size of all records together, roughly as in a snapshot.
pub const MAX_RECORD_BYTES: usize = 1536 << 10;

/// Tombstones. Each takes some 33 bytes of a snapshot.
pub const MAX_TOMBSTONES: usize = 16_384;

/// What is remembered of a job that has no record any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Why it was freed, and when.
    pub freed: Freed,
    /// Of one that failed: whether for something that is its own, see [`Failure::is_of_the_job`].
    pub of_the_job: bool,
}

impl Tombstone {
    /// What is left of a job that ended so and was freed then.
    pub(super) fn new(phase: &JobPhase, freed: Freed) -> Self {
        let of_the_job = !matches!(phase, JobPhase::Failed(failure) if !failure.is_of_the_job());
        Self { freed, of_the_job }
    }

    /// How the job ended, as far as is known.
    pub(super) fn phase(self, id: JobId) -> JobPhase {
        match self.freed.why {
            WhyFreed::Cancelled => JobPhase::Cancelled,
            WhyFreed::Failed => JobPhase::Failed(Failure::Freed { job: id, freed: self.freed }),
            WhyFreed::Released | WhyFreed::Expired | WhyFreed::Lost | WhyFreed::Closed => JobPhase::Succeeded,
        }
    }
}

/// Jobs that have ended and hold nothing, those that were freed first in front.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History {
    records: VecDeque<(JobId, usize)>,
    record_bytes: usize,
    tombstones: VecDeque<(JobId, Tombstone)>,
    /// The same by id. Derived from `tombstones`, so not part of a snapshot.
    #[serde(skip)]
    by_id: BTreeMap<JobId, Tombstone>,
}

impl History {
    /// Makes what is not part of a snapshot.
    pub(super) fn restore(&mut self) {
        self.by_id = self.tombstones.iter().copied().collect();
    }

    /// A job was freed, and its record takes so many bytes.
    pub(super) fn record(&mut self, id: JobId, bytes: usize) {
        self.records.push_back((id, bytes));
        self.record_bytes += bytes;
    }

    /// A job has a result after all.
    pub(super) fn forget(&mut self, id: JobId) {
        let bytes: usize = self.records.iter().filter(|(of, _)| *of == id).map(|(_, bytes)| bytes).sum();
        self.record_bytes -= bytes;
        self.records.retain(|(of, _)| *of != id);
    }

    /// A job whose record there is no room for any more, if any: the newest one stays, however large.
    pub(super) fn surplus(&mut self) -> Option<JobId> {
        if self.record_bytes <= MAX_RECORD_BYTES || self.records.len() <= 1 {
            return None;
        }
        let (id, bytes) = self.records.pop_front()?;
        self.record_bytes -= bytes;
        Some(id)
    }

    /// Remembers no more of a job than why and when it was freed: what was said first.
    pub(super) fn bury(&mut self, id: JobId, tombstone: Tombstone) {
        if self.by_id.contains_key(&id) {
            return;
        }
        self.by_id.insert(id, tombstone);
        self.tombstones.push_back((id, tombstone));
        if self.tombstones.len() > MAX_TOMBSTONES
            && let Some((oldest, _)) = self.tombstones.pop_front()
        {
            self.by_id.remove(&oldest);
        }
    }

    /// There is more to be known of a job than its tombstone says.
    pub(super) fn unbury(&mut self, id: JobId) {
        self.by_id.remove(&id);
        self.tombstones.retain(|(of, _)| *of != id);
    }

    /// What is known of a job that has no record.
    pub(super) fn tombstone(&self, id: JobId) -> Option<Tombstone> {
        self.by_id.get(&id).copied()
    }

    /// All jobs that have no record, those that were freed first in front.
    pub(super) fn tombstones(&self) -> impl Iterator<Item = (JobId, Tombstone)> {
        self.tombstones.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use floe_protocol::WallTime;
    use proptest::prelude::*;

    use super::*;

    fn buried(unix_ms: u64) -> Tombstone {
        let freed = Freed { why: WhyFreed::Failed, at: WallTime::from_unix_ms(unix_ms) };
        Tombstone { freed, of_the_job: true }
    }

    proptest! {
        #[test]
        fn records_stay_within_their_bytes_and_the_newest_stays(
            sizes in prop::collection::vec(1..MAX_RECORD_BYTES * 2 / 3, 1..40),
        ) {
            let mut history = History::default();
            let mut gone = Vec::new();
            for (id, bytes) in sizes.iter().enumerate() {
                history.record(JobId(id as u64), *bytes);
                gone.extend(std::iter::from_fn(|| history.surplus()));
            }
            prop_assert!(gone.iter().map(|id| id.0).eq(0..gone.len() as u64), "the oldest go first");
            let kept: usize = sizes[gone.len()..].iter().sum();
            prop_assert_eq!(history.record_bytes, kept);
            prop_assert!(kept <= MAX_RECORD_BYTES && gone.len() < sizes.len());
            // And none goes for whom there is room.
            prop_assert!(gone.is_empty() || kept + sizes[gone.len() - 1] > MAX_RECORD_BYTES);
        }
    }

    #[test]
    fn tombstones_are_a_ring() {
        let mut history = History::default();
        for id in 0..MAX_TOMBSTONES as u64 + 10 {
            history.bury(JobId(id), buried(id));
            // What is said later is no news, and a snapshot knows nothing of it.
            history.bury(JobId(id), buried(id + 1));
        }
        assert_eq!(history.tombstone(JobId(9)), None);
        assert_eq!(history.tombstone(JobId(10)), Some(buried(10)));
        assert_eq!((history.tombstones().count(), history.by_id.len()), (MAX_TOMBSTONES, MAX_TOMBSTONES));
        let mut restored = History { by_id: BTreeMap::new(), ..history.clone() };
        restored.restore();
        assert_eq!(restored, history);
    }
}
