//! Which jobs' partitions drivers are busy with through this node: results that they read, frames that they submit. Its
//! inventories say so, and the leader keeps those partitions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use floe_protocol::JobId;

/// How long a use is told of after its end: some inventories' time, since one may be lost.
const SAID: Duration = Duration::from_secs(60);

/// How many jobs are noted whose uses have ended. The end of more is not told to the leader, which keeps things for longer
/// than the others are noted.
const MAX_NOTED: usize = 16_384;

/// The jobs that drivers are busy with here. Cheap to clone; clones are one.
#[derive(Clone, Debug, Default)]
pub struct InUse(Arc<Mutex<BTreeMap<JobId, Uses>>>);

#[derive(Clone, Copy, Debug)]
struct Uses {
    open: usize,
    last: Instant,
}

/// One use, until this is dropped.
#[derive(Debug)]
pub struct Use {
    of: InUse,
    job: JobId,
}

impl InUse {
    /// A driver begins to read a job's result, or to submit it.
    pub fn begin(&self, job: JobId) -> Use {
        let mut uses = self.lock();
        if uses.len() >= MAX_NOTED {
            forget(&mut uses, Instant::now());
        }
        uses.entry(job).or_insert(Uses { open: 0, last: Instant::now() }).open += 1;
        Use { of: self.clone(), job }
    }

    /// The jobs that are in use now, or were a moment ago.
    pub fn recent(&self) -> Vec<JobId> {
        let mut uses = self.lock();
        forget(&mut uses, Instant::now());
        uses.keys().copied().collect()
    }

    /// Whether a job is in use now.
    pub fn is_open(&self, job: JobId) -> bool {
        self.lock().get(&job).is_some_and(|of| of.open > 0)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, Uses>> {
        // Every change is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut uses = self.of.lock();
        let surplus = uses.len() > MAX_NOTED;
        let Some(of) = uses.get_mut(&self.job) else { return };
        of.open -= 1;
        of.last = Instant::now();
        if surplus && of.open == 0 {
            uses.remove(&self.job);
        }
    }
}

fn forget(uses: &mut BTreeMap<JobId, Uses>, now: Instant) {
    uses.retain(|_, of| of.open > 0 || now.duration_since(of.last) < SAID);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_in_use_while_somebody_uses_it_and_for_a_while_after() {
        let in_use = InUse::default();
        let (one, two) = (in_use.begin(JobId(1)), in_use.begin(JobId(1)));
        drop(one);
        assert_eq!(in_use.recent(), [JobId(1)]);
        drop(two);
        assert_eq!(in_use.recent(), [JobId(1)]);
        let mut uses = in_use.lock();
        forget(&mut uses, Instant::now() + SAID);
        assert!(uses.is_empty());
    }

    #[test]
    fn however_long_a_use_takes_it_is_not_forgotten() {
        let in_use = InUse::default();
        let one = in_use.begin(JobId(1));
        forget(&mut in_use.lock(), Instant::now() + 100 * SAID);
        assert_eq!(in_use.recent(), [JobId(1)]);
        assert!(in_use.is_open(JobId(1)) && !in_use.is_open(JobId(2)));
        drop(one);
        assert!(!in_use.is_open(JobId(1)));
    }

    #[test]
    fn there_is_a_limit_to_what_is_noted() {
        let in_use = InUse::default();
        let open: Vec<_> = (0..100).map(|job| in_use.begin(JobId(job))).collect();
        for job in 0..2 * MAX_NOTED as u64 {
            drop(in_use.begin(JobId(job)));
        }
        assert!(in_use.recent().len() <= MAX_NOTED + 1);
        assert!((0..100).all(|job| in_use.recent().contains(&JobId(job))));
        drop(open);
    }
}
