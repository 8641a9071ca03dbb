//! How jobs stand, for all on this node that follow them: only the leader knows which tasks run and are done, so it is
//! asked, once for each job however many follow it here, and less often while nothing happens. Of a job that ends at
//! once it is not asked at all: that it has ended this node's own state says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use floe_protocol::{Failure, JobId, JobStatus};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::job_status;
use crate::mailbox::{Ask, Mailbox};

/// How soon the leader is asked again after something happened; each further time it takes half as long again, up to the
/// longest.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// How a job stands, without its timeline; nothing yet; or why that cannot be told.
pub type Seen = Option<Result<Arc<JobStatus>, Failure>>;

/// The jobs that somebody on this node follows. Cheap to clone; clones are one.
#[derive(Clone, Debug)]
pub struct Progress {
    mailbox: Mailbox,
    followed: Arc<Mutex<BTreeMap<JobId, watch::Sender<Seen>>>>,
}

impl Progress {
    /// Of the jobs that this mailbox's node knows.
    pub fn new(mailbox: Mailbox) -> Self {
        Self { mailbox, followed: Arc::default() }
    }

    /// Follows a job, until it has ended or cannot be told of any more.
    pub fn follow(&self, job: JobId) -> watch::Receiver<Seen> {
        let mut followed = self.lock();
        if let Some(sender) = followed.get(&job) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(None);
        followed.insert(job, sender);
        tokio::spawn(self.clone().look(job));
        receiver
    }

    /// Looks how a job stands for as long as somebody follows it.
    async fn look(self, job: JobId) {
        let mut changes = self.mailbox.job_changes(job);
        let mut wait = FIRST_WAIT;
        let mut own = true;
        loop {
            changes.mark_unchanged();
            let seen = match std::mem::take(&mut own) {
                true => self.mailbox.ask(|reply| Ask::Progress(job, reply)).await.and_then(|known| known),
                false => job_status::live(&self.mailbox, job).await,
            };
            let seen = seen.map(Arc::new);
            let last = !seen.as_ref().is_ok_and(|job| !job.phase.is_terminal());
            let Some(news) = self.tell(job, seen, last) else { return };
            if last {
                return;
            }
            wait = if news { FIRST_WAIT } else { (wait * 3 / 2).min(LONGEST_WAIT) };
            if timeout(wait, changes.changed()).await.is_ok() {
                wait = FIRST_WAIT;
            }
        }
    }

    /// Whether that was news; nothing if nobody follows the job any more.
    fn tell(&self, job: JobId, seen: Result<Arc<JobStatus>, Failure>, last: bool) -> Option<bool> {
        let mut followed = self.lock();
        let sender = followed.get(&job)?;
        let news = sender.send_if_modified(|before| {
            let news = before.as_ref() != Some(&seen);
            if news {
                *before = Some(seen);
            }
            news
        });
        if last || sender.receiver_count() == 0 {
            // Receivers see the last value all the same.
            followed.remove(&job);
        }
        Some(news)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, watch::Sender<Seen>>> {
        // Every change is one call.
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
