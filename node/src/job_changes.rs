//! Who waits for something to happen to a job on this node, and is told when it does. Nobody else is: a mesh with
//! thousands of jobs must not wake all that wait at every entry of the log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use floe_protocol::JobId;
use tokio::sync::watch;

/// The jobs that somebody waits for. Cheap to clone; clones are one.
#[derive(Clone, Debug, Default)]
pub struct JobChanges(Arc<Mutex<BTreeMap<JobId, watch::Sender<()>>>>);

/// One who waits for changes of a job, until this is dropped.
#[derive(Debug)]
pub struct Subscription {
    changes: JobChanges,
    job: JobId,
    /// There until this is dropped.
    receiver: Option<watch::Receiver<()>>,
}

impl JobChanges {
    /// Waits for what happens to a job from now on.
    pub fn subscribe(&self, job: JobId) -> Subscription {
        let receiver = self.lock().entry(job).or_insert_with(|| watch::channel(()).0).subscribe();
        Subscription { changes: self.clone(), job, receiver: Some(receiver) }
    }

    /// Something about a job is different now.
    pub fn tell(&self, job: JobId) {
        if let Some(sender) = self.lock().get(&job) {
            sender.send_replace(());
        }
    }

    /// Anything may be different: the state was replaced, or another node leads.
    pub fn tell_all(&self) {
        self.lock().values().for_each(|sender| sender.send_replace(()));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, watch::Sender<()>>> {
        // Every change is one call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// Forgets what happened so far: only what comes after is a change.
    pub fn mark_unchanged(&mut self) {
        if let Some(receiver) = &mut self.receiver {
            receiver.mark_unchanged();
        }
    }

    /// Waits for the next change. Nothing is missed between two calls.
    pub async fn changed(&mut self) {
        // The sender lives in the table for as long as this does.
        if let Some(receiver) = &mut self.receiver
            && receiver.changed().await.is_err()
        {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut waited_for = self.changes.lock();
        drop(self.receiver.take());
        if waited_for.get(&self.job).is_some_and(|sender| sender.receiver_count() == 0) {
            waited_for.remove(&self.job);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn only_who_waits_for_a_job_is_told_and_misses_nothing() {
        let changes = JobChanges::default();
        let (mut one, mut other) = (changes.subscribe(JobId(1)), changes.subscribe(JobId(2)));
        changes.tell(JobId(1));
        changes.tell(JobId(3));
        one.changed().await;
        assert!(one.changed().now_or_never().is_none() && other.changed().now_or_never().is_none());
        changes.tell_all();
        one.changed().await;
        other.mark_unchanged();
        assert!(other.changed().now_or_never().is_none());
    }

    #[test]
    fn nothing_is_left_of_those_who_wait_no_more() {
        let changes = JobChanges::default();
        let (one, other) = (changes.subscribe(JobId(1)), changes.subscribe(JobId(1)));
        drop(one);
        assert_eq!(changes.lock().len(), 1);
        drop(other);
        assert!(changes.lock().is_empty());
    }
}
