//! Which attempts a worker has been given and still should run, and how many run at once.
//!
//! ```text
//!   assigned ──> queued ──> running ──> ended
//!                   └──────────┴──────> aborted: forgotten at once; a slot stays taken until Polars returns
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use floe_protocol::{AttemptId, JobId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How many attempts may be queued or running: enough to keep every slot busy while the leader thinks, and
/// few enough that what is queued can be moved when another node becomes idle.
pub const MAX_QUEUED: usize = 1024;

/// How long a call waits behind what runs, and a task behind calls, before it runs beside: a job whose tasks take hours
/// would otherwise keep everybody else's calls waiting for as long, and a call that takes hours everybody's jobs.
const PATIENCE: Duration = Duration::from_secs(1);

/// The attempts of one worker, and its slots.
#[derive(Debug)]
pub(super) struct Slots {
    total: usize,
    /// For tasks and calls, in turn.
    free: Arc<Semaphore>,
    /// For tasks alone, which never run beside each other: whoever has one of these runs at the latest when it has
    /// waited for long.
    tasks: Arc<Semaphore>,
    /// For calls that have waited for long.
    spare: Arc<Semaphore>,
    patience: Duration,
    wanted: Mutex<BTreeMap<AttemptId, CancellationToken>>,
}

/// What became of an assignment.
#[derive(Debug)]
pub(super) enum Admitted {
    /// It is to be run, until the token says otherwise.
    New(CancellationToken),
    /// It is queued or running already.
    Known,
    /// There are [`MAX_QUEUED`] already.
    Full,
}

impl Slots {
    pub(super) fn new(total: usize) -> Self {
        let total = total.clamp(1, Semaphore::MAX_PERMITS);
        let [free, tasks, spare] = std::array::from_fn(|_| Arc::new(Semaphore::new(total)));
        Self { total, free, tasks, spare, patience: PATIENCE, wanted: Mutex::default() }
    }

    /// Enters an attempt.
    pub(super) fn admit(&self, attempt: AttemptId) -> Admitted {
        let mut wanted = self.lock();
        if wanted.contains_key(&attempt) {
            return Admitted::Known;
        }
        if wanted.len() >= MAX_QUEUED {
            return Admitted::Full;
        }
        let token = CancellationToken::new();
        wanted.insert(attempt, token.clone());
        Admitted::New(token)
    }

    /// Waits for a slot for a task, in turn: behind as many tasks as there are slots for as long as they run, behind
    /// calls not for long.
    pub(super) async fn take(&self) -> Slot {
        // No semaphore is ever closed.
        let task = Arc::clone(&self.tasks).acquire_owned().await.ok();
        let shared = timeout(self.patience, Arc::clone(&self.free).acquire_owned()).await;
        Slot { _permits: [task, shared.ok().and_then(Result::ok)] }
    }

    /// The same for calls of sessions: behind what runs for long they do not wait for its end. So many may run beside
    /// as there are slots.
    pub(super) async fn take_for_calls(&self) -> Slot {
        let beside = async {
            tokio::time::sleep(self.patience).await;
            Arc::clone(&self.spare).acquire_owned().await.ok()
        };
        tokio::select! {
            biased;
            permit = Arc::clone(&self.free).acquire_owned() => Slot { _permits: [permit.ok(), None] },
            permit = beside => Slot { _permits: [permit, None] },
        }
    }

    /// How many there are.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// Takes an attempt out of the list. False: it was aborted before.
    pub(super) fn end(&self, attempt: &AttemptId) -> bool {
        self.lock().remove(attempt).is_some()
    }

    /// Takes the attempts that fit out of the list and tells them to stop.
    pub(super) fn abort(&self, fits: impl Fn(&AttemptId) -> bool) {
        self.lock().retain(|attempt, token| {
            let aborted = fits(attempt);
            if aborted {
                token.cancel();
            }
            !aborted
        });
    }

    /// Every attempt that is queued or running, in order.
    pub(super) fn list(&self) -> Vec<AttemptId> {
        self.lock().keys().copied().collect()
    }

    /// How many slots are taken, those of aborted attempts included whose threads have not returned.
    pub(super) fn taken(&self) -> usize {
        let left = self.free.available_permits().min(self.tasks.available_permits());
        self.total - left.min(self.total)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<AttemptId, CancellationToken>> {
        // Every change to the list is one call, so a poisoned one is a sound one.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot, taken until it is dropped.
#[derive(Debug)]
pub struct Slot {
    _permits: [Option<OwnedSemaphorePermit>; 2],
}

/// Whether an attempt is of one of these jobs.
pub(super) fn is_of(jobs: &[JobId]) -> impl Fn(&AttemptId) -> bool {
    move |attempt| jobs.contains(&attempt.task.job)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use floe_protocol::{StageId, TaskId};
    use futures::FutureExt;

    use super::*;

    fn attempt(job: u64, attempt: u64) -> AttemptId {
        AttemptId { task: TaskId { job: JobId(job), stage: StageId(0), partition: 0 }, attempt }
    }

    #[test]
    fn an_attempt_is_admitted_once_until_it_ends() {
        let slots = Slots::new(1);
        assert!(matches!(slots.admit(attempt(1, 1)), Admitted::New(_)));
        assert!(matches!(slots.admit(attempt(1, 1)), Admitted::Known));
        assert!(slots.end(&attempt(1, 1)));
        assert!(!slots.end(&attempt(1, 1)));
        assert!(matches!(slots.admit(attempt(1, 1)), Admitted::New(_)));
    }

    #[test]
    fn the_queue_is_bounded() {
        let slots = Slots::new(1);
        for n in 0..MAX_QUEUED as u64 {
            assert!(matches!(slots.admit(attempt(1, n)), Admitted::New(_)));
        }
        assert!(matches!(slots.admit(attempt(2, 0)), Admitted::Full));
        slots.abort(is_of(&[JobId(1)]));
        assert!(matches!(slots.admit(attempt(2, 0)), Admitted::New(_)));
    }

    #[test]
    fn aborting_tells_the_aborted_and_only_them() {
        let slots = Slots::new(1);
        let Admitted::New(first) = slots.admit(attempt(1, 0)) else { panic!("not admitted") };
        let Admitted::New(second) = slots.admit(attempt(2, 0)) else { panic!("not admitted") };
        slots.abort(is_of(&[JobId(1)]));
        assert!(first.is_cancelled());
        assert!(!second.is_cancelled());
        assert_eq!(slots.list(), [attempt(2, 0)]);
    }

    #[tokio::test]
    async fn slots_are_counted() {
        let slots = Slots::new(2);
        let (first, second) = (slots.take().await, slots.take().await);
        assert!(slots.take().now_or_never().is_none());
        assert_eq!(slots.taken(), 2);
        drop(first);
        assert_eq!(slots.taken(), 1);
        drop((slots.take().await, second));
        assert_eq!(slots.taken(), 0);
    }

    #[tokio::test]
    async fn calls_do_not_wait_for_the_end_of_what_takes_long() {
        let slots = Slots { patience: Duration::ZERO, ..Slots::new(1) };
        let task = slots.take().await;
        let beside = slots.take_for_calls().await;
        assert_eq!(slots.taken(), 1);
        let third = tokio::time::timeout(Duration::from_millis(20), slots.take_for_calls()).await;
        assert!(third.is_err(), "no more run beside than there are slots");
        drop(task);
        let in_turn = slots.take_for_calls().await;
        assert_eq!(slots.taken(), 1);
        drop((beside, in_turn));
        assert_eq!(slots.taken(), 0);
    }

    #[tokio::test]
    async fn tasks_do_not_wait_for_the_end_of_calls_but_of_tasks() {
        let slots = Slots { patience: Duration::ZERO, ..Slots::new(1) };
        let _call = slots.take_for_calls().await;
        let task = slots.take().await;
        assert_eq!(slots.taken(), 1);
        let second = tokio::time::timeout(Duration::from_millis(20), slots.take()).await;
        assert!(second.is_err(), "no more tasks run than there are slots");
        drop(task);
        slots.take().await;
    }
}
