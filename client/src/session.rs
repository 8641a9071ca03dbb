//! Sessions: many short calls over one stream, without a job of its own for each.
//!
//! ```text
//!   call() ──> ledger ──> attendant ══ CallFrames ══> the node it is connected to
//!              │    ▲        ║
//!   results() <┘    └────────╨═══════ ResultFrames ══
//! ```
//!
//! The ledger keeps every call until its result has come, and the attendant, a task in the background, has the
//! stream. When that breaks, it goes on through another node, with all that the ledger still has.

mod attendant;
mod ledger;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use floe_protocol::session::MAX_CALL_BYTES;
use floe_protocol::{Failure, Function, JobId, NodeId, frame};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Error, Result};
use crate::mesh::{Mesh, new_job_id};

use ledger::Ledger;

/// How large a definition may be once its code travels apart. What is left are names, requirements and variables.
const MAX_DEFINITION_BYTES: usize = 1 << 20;

/// How long closing waits for the node to have heard of it. One that does not answer finds out by itself.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// A standing job, opened by [`Mesh::session`], in which functions are called for as long as one likes: a call there
/// and back takes less than a millisecond. Dropping it closes it.
///
/// Calls are made with ids that the caller chooses and whose results are awaited in any order, from async code with
/// [`Session::results`] or from a thread with [`Session::wait_results`]. Making a call never waits: what the mesh
/// does not take yet stays here, up to what memory holds.
///
/// **When a node is lost.** A call runs at least once. What ran on a lost node is sent again, by the node that the
/// driver is connected to, or by this session through another node if it is that one that was lost. A result comes
/// once. After the mesh's patience without any node that takes the session, every call that is left fails with
/// [`Failure::Unavailable`], and the session is over.
///
/// ```no_run
/// # async fn example(mesh: floe_client::Mesh, double: floe_client::function::Function) -> floe_client::Result<()> {
/// let session = mesh.session("doubling").await?;
/// let double = session.define(double).await?;
/// session.calls(double, (0..1000).map(|id: u64| (id, id.to_le_bytes().to_vec().into())), None)?;
/// let mut left = 1000;
/// while left > 0 {
///     for result in session.results().await? {
///         match result.outcome {
///             Ok(bytes) => println!("{} returned {} bytes", result.id, bytes.len()),
///             Err(failure) => println!("{} failed: {failure}", result.id),
///         }
///         left -= 1;
///     }
/// }
/// session.close().await
/// # }
/// ```
#[derive(Debug)]
pub struct Session {
    mesh: Mesh,
    desk: Arc<Desk>,
    attendant: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallOutcome {
    /// The call, by the id that its caller chose.
    pub id: u64,
    /// What the function returned, or why it did not.
    pub outcome: Result<Bytes, Failure>,
    /// Where it ran; nothing if it did not.
    pub node: Option<NodeId>,
    /// How long it ran, in microseconds.
    pub elapsed_us: u64,
}

/// What caller and attendant share.
#[derive(Debug)]
struct Desk {
    session: JobId,
    label: String,
    ledger: Mutex<Ledger>,
    /// There is something for the attendant to do.
    work: Notify,
    /// Results came, or the session ended: for async code, and for threads.
    news: Notify,
    news_for_threads: Condvar,
}

impl Mesh {
    /// Opens a session under this label, which `floe jobs` shows.
    pub async fn session(&self, label: impl Into<String>) -> Result<Session> {
        Session::open(self.clone(), new_job_id()?, label.into()).await
    }
}

impl Session {
    async fn open(mesh: Mesh, session: JobId, label: String) -> Result<Self> {
        let desk = Arc::new(Desk {
            session,
            label,
            ledger: Mutex::default(),
            work: Notify::new(),
            news: Notify::new(),
            news_for_threads: Condvar::new(),
        });
        let exchange = attendant::open(&mesh, &desk, &mut mesh.link().patience()).await?;
        let attendant = tokio::spawn(attendant::attend(desk.clone(), mesh.clone(), exchange));
        let attendant = Mutex::new(Some(AbortOnDropHandle::new(attendant)));
        Ok(Self { mesh, desk, attendant })
    }

    /// The id of its standing job, in text 16 hexadecimal digits: for [`Mesh::job`], whose logs are what the calls
    /// printed.
    pub fn id(&self) -> JobId {
        self.desk.session
    }

    /// The mesh that runs the calls.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Makes a function known, and returns the number that calls name it by. Large code travels apart, once a node.
    pub async fn define(&self, mut function: Function) -> Result<u32> {
        self.mesh.outsource_code(&mut function).await?;
        let bytes = frame::encode(&function)
            .map_err(|error| Error::Local(format!("{} cannot be sent: {error}", function.name)))?
            .len();
        if bytes > MAX_DEFINITION_BYTES {
            return Err(Error::Local(format!(
                "{} cannot be sent: its requirements and variables take {bytes} bytes, more than \
                 {MAX_DEFINITION_BYTES}",
                function.name
            )));
        }
        let number = self.desk.ledger().define(function, bytes);
        number.map_err(|refused| self.desk.error_of(refused))
    }

    /// Says that these functions will not be called any more, so that they need not be kept: neither here nor, once
    /// their calls have ended, on the nodes. A session may define any number of functions; what nodes hold of them at
    /// once is bounded in any case.
    pub fn forget(&self, functions: &[u32]) {
        let mut ledger = self.desk.ledger();
        for function in functions {
            ledger.forget(*function);
        }
        drop(ledger);
        self.desk.work.notify_one();
    }

    /// Calls a function with an argument of at most [`MAX_CALL_BYTES`], on any node or on one. `id` is the caller's
    /// choice, and of one call only in a session. Never waits.
    pub fn call(&self, function: u32, id: u64, argument: Bytes, node: Option<NodeId>) -> Result<()> {
        self.calls(function, [(id, argument)], node)
    }

    /// Calls a function many times, with an id and an argument each: all of these calls are made, or on an error none.
    pub fn calls(
        &self,
        function: u32,
        calls: impl IntoIterator<Item = (u64, Bytes)>,
        node: Option<NodeId>,
    ) -> Result<()> {
        let calls: Vec<_> = calls.into_iter().collect();
        if let Some((_, argument)) = calls.iter().find(|(_, argument)| argument.len() > MAX_CALL_BYTES) {
            return Err(Error::Local(format!(
                "an argument of {} bytes is too large for a call, which takes up to {MAX_CALL_BYTES}: put it into \
                 the mesh and call with its blob",
                argument.len()
            )));
        }
        let made = self.desk.ledger().call(function, calls, node);
        made.map_err(|refused| self.desk.error_of(refused))?;
        self.desk.work.notify_one();
        Ok(())
    }

    /// Does without the results of these calls: those that have not begun are not run, and none of them is heard of
    /// again.
    pub fn cancel(&self, ids: &[u64]) {
        self.desk.ledger().cancel(ids);
        self.desk.work.notify_one();
    }

    /// How many calls have been made whose results have not come.
    pub fn unresolved(&self) -> usize {
        self.desk.ledger().unresolved()
    }

    /// The results that have come and were not taken before, at least one: waits for it. An error once the session is
    /// over and all were taken.
    pub async fn results(&self) -> Result<Vec<CallOutcome>> {
        loop {
            let news = self.desk.news.notified();
            tokio::pin!(news);
            // What comes from here on wakes it.
            news.as_mut().enable();
            let results = self.take_results()?;
            if !results.is_empty() {
                return Ok(results);
            }
            news.await;
        }
    }

    /// Like [`Session::results`], for a thread that may block: none after `timeout`.
    pub fn wait_results(&self, timeout: Duration) -> Result<Vec<CallOutcome>> {
        let deadline = Instant::now() + timeout;
        let mut ledger = self.desk.ledger();
        loop {
            if let Some(results) = self.desk.take_from(&mut ledger)? {
                return Ok(results);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Vec::new());
            }
            let waited = self.desk.news_for_threads.wait_timeout(ledger, left);
            (ledger, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Like [`Session::results`], without waiting: none if none has come.
    pub fn take_results(&self) -> Result<Vec<CallOutcome>> {
        let results = self.desk.take_from(&mut self.desk.ledger())?;
        Ok(results.unwrap_or_default())
    }

    /// Ends it: its calls are not awaited any more. Waits until the node has heard of it, up to some seconds.
    pub async fn close(&self) -> Result<()> {
        self.desk.close();
        let attendant = self.attendant.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(attendant) = attendant {
            // One that takes longer is stopped; the mesh ends a session that nobody attends.
            let _ = tokio::time::timeout(CLOSE_PATIENCE, attendant).await;
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.desk.close();
        let attendant = self.attendant.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(attendant) = attendant {
            // It says good-bye and ends by itself.
            drop(attendant.detach());
        }
    }
}

impl Desk {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Every step leaves it whole, so one that panicked in between leaves nothing half done.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_from(&self, ledger: &mut Ledger) -> Result<Option<Vec<CallOutcome>>> {
        let results = ledger.take_results();
        if !results.is_empty() {
            // There may be room now for what waits.
            if ledger.has_queued() {
                self.work.notify_one();
            }
            return Ok(Some(results));
        }
        match ledger.end() {
            Some(failure) => Err(self.ended(failure)),
            None => Ok(None),
        }
    }

    /// Tells whoever waits for results that there are some, or that none will come.
    fn tell(&self) {
        self.news_for_threads.notify_all();
        self.news.notify_waiters();
    }

    /// The caller has no more to do with it.
    fn close(&self) {
        self.ledger().close();
        self.work.notify_one();
        self.tell();
    }

    fn ended(&self, failure: Failure) -> Error {
        Error::SessionEnded { session: self.session, failure }
    }

    fn error_of(&self, refused: ledger::Refused) -> Error {
        match refused {
            ledger::Refused::Ended(failure) => self.ended(failure),
            other => Error::Local(other.to_string()),
        }
    }
}
