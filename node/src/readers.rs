//! Which results drivers read through this node. Its inventories say so, and the leader keeps what is read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use floe_protocol::JobId;

/// How long it is said of a result that it was read: some inventories' time, since one may be lost.
const SAID: Duration = Duration::from_secs(60);

/// How many results are noted that nobody reads just now. A read of more is not told to the leader, which keeps a
/// result for much longer than the others are noted.
const MAX_NOTED: usize = 16_384;

/// The results that drivers read here. Cheap to clone; clones are one.
#[derive(Clone, Debug, Default)]
pub struct Readers(Arc<Mutex<BTreeMap<JobId, Reads>>>);

#[derive(Clone, Copy, Debug)]
struct Reads {
    open: usize,
    last: Instant,
}

/// One read, until this is dropped.
#[derive(Debug)]
pub struct Reading {
    readers: Readers,
    job: JobId,
}

impl Readers {
    /// A driver begins to read a job's result.
    pub fn begin(&self, job: JobId) -> Reading {
        let mut reads = self.lock();
        if reads.len() >= MAX_NOTED {
            forget(&mut reads, Instant::now());
        }
        reads.entry(job).or_insert(Reads { open: 0, last: Instant::now() }).open += 1;
        Reading { readers: self.clone(), job }
    }

    /// The jobs whose results are read now, or were a moment ago.
    pub fn recent(&self) -> Vec<JobId> {
        let mut reads = self.lock();
        forget(&mut reads, Instant::now());
        reads.keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, Reads>> {
        // Every change is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut reads = self.readers.lock();
        let surplus = reads.len() > MAX_NOTED;
        let Some(of) = reads.get_mut(&self.job) else { return };
        of.open -= 1;
        of.last = Instant::now();
        if surplus && of.open == 0 {
            reads.remove(&self.job);
        }
    }
}

fn forget(reads: &mut BTreeMap<JobId, Reads>, now: Instant) {
    reads.retain(|_, of| of.open > 0 || now.duration_since(of.last) < SAID);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_read_while_somebody_does_and_for_a_while_after() {
        let readers = Readers::default();
        let (one, two) = (readers.begin(JobId(1)), readers.begin(JobId(1)));
        drop(one);
        assert_eq!(readers.recent(), [JobId(1)]);
        drop(two);
        assert_eq!(readers.recent(), [JobId(1)]);
        let mut reads = readers.lock();
        forget(&mut reads, Instant::now() + SAID);
        assert!(reads.is_empty());
    }

    #[test]
    fn however_long_a_read_takes_it_is_not_forgotten() {
        let readers = Readers::default();
        let reading = readers.begin(JobId(1));
        forget(&mut readers.lock(), Instant::now() + 100 * SAID);
        assert_eq!(readers.recent(), [JobId(1)]);
        drop(reading);
    }

    #[test]
    fn there_is_a_limit_to_what_is_noted() {
        let readers = Readers::default();
        let open: Vec<_> = (0..100).map(|job| readers.begin(JobId(job))).collect();
        for job in 0..2 * MAX_NOTED as u64 {
            drop(readers.begin(JobId(job)));
        }
        assert!(readers.recent().len() <= MAX_NOTED + 1);
        assert!((0..100).all(|job| readers.recent().contains(&JobId(job))));
        drop(open);
    }
}
