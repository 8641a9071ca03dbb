//! How many streams a driver has open on its connection at once: a node ends a connection with more than 1,024, and with it
//! all that went on there.
//!
//! ```text
//!   a question ── a place until its answer ──>
//!   a watch, or a result that is being made ── a place for as long as its job runs ──>
//!             └── none is free: a look at the job now and then
//! ```

use std::sync::Arc;
use std::time::Duration;

use floe_protocol::Request;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::sleep;

use crate::error::Result;
use crate::job::Job;
use crate::patience::Patience;

/// Questions that wait for their answers. The streams of results that are being read come on top.
const MAX_QUESTIONS: usize = 320;

/// Streams on which a node says what happens.
const MAX_STANDING: usize = 512;

/// How often whoever has no place looks at its job: with a thousand of them some hundred looks a second.
const LOOK_INTERVAL: Duration = Duration::from_secs(4);

/// The places of one driver.
#[derive(Debug)]
pub(crate) struct Places {
    questions: Semaphore,
    standing: Arc<Semaphore>,
}

/// A place for a stream on which a node says what happens to a job.
pub(crate) type Standing = Option<OwnedSemaphorePermit>;

impl Default for Places {
    fn default() -> Self {
        Self { questions: Semaphore::new(MAX_QUESTIONS), standing: Arc::new(Semaphore::new(MAX_STANDING)) }
    }
}

impl Places {
    /// A place for one question. The semaphore is never closed.
    pub(crate) async fn question(&self) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.questions.acquire().await
    }

    /// A place for a stream that stays open while a job runs. Where many do, it takes until one of their jobs has ended, or
    /// this one has: then the stream is a short one, and needs no place.
    pub(crate) async fn standing(&self, job: &Job, patience: &mut Patience) -> Result<Standing> {
        let place = Arc::clone(&self.standing).acquire_owned();
        let mut place = std::pin::pin!(place);
        loop {
            tokio::select! {
                biased;
                place = &mut place => return Ok(place.ok()),
                () = sleep(LOOK_INTERVAL) => {}
            }
            let (answer, _) = job.ask_within(&Request::Job { id: job.id() }, patience).await?;
            patience.renew();
            if !matches!(&answer, floe_protocol::Response::Job(status) if !status.phase.is_terminal()) {
                return Ok(None);
            }
        }
    }
}
