//! A job's handle.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use floe_protocol::message::{Request, Response};
use floe_protocol::{Failure, JobId, JobPhase, JobStatus, StageId};
use futures::StreamExt;

use crate::error::{Error, Result};
use crate::link::Exchange;
use crate::logs::LogStream;
use crate::mesh::Mesh;
use crate::partitions::PartitionStream;
use crate::patience::Patience;
use crate::places::Standing;
use crate::result::ResultStream;
use crate::watch::Watch;

/// How long a node may not know a job that this handle saw accepted. A majority holds it, but the node that the
/// driver went over to may have yet to hear of it.
const HEARSAY: Duration = Duration::from_secs(5);

/// Submissions up to this size are kept with their handle, to be submitted again should that be needed: more would
/// double what a driver needs for its frames.
const MAX_KEPT_BYTES: usize = 16 << 20;

/// How often a job is submitted again since what came with it was lost. Whoever waits with one handle counts, as several
/// may, and so does each further time that power is cut within seconds.
const MAX_AGAIN: usize = 8;

/// One submission. Dropping the handle leaves the job alone: [`Mesh::job`] finds it again by its id, from any
/// process and through any node.
///
/// As long as the handle is there it keeps what was submitted, up to 16 MiB. Should the mesh lose it (power is cut on all
/// nodes that have it, within two seconds), whoever waits with the handle submits the job again. Its functions may then
/// run twice.
///
/// ```no_run
/// # async fn example(mesh: floe_client::Mesh) -> floe_client::Result<()> {
/// use futures::StreamExt;
///
/// let job = mesh.sql("SELECT carrier, COUNT(*) AS flights FROM 'flights.parquet' GROUP BY carrier").await?;
/// let mut progress = job.watch();
/// while let Some(status) = progress.next().await {
///     for stage in &status?.stages {
///         println!("{}: {} of {} tasks, {} rows", stage.name, stage.done, stage.tasks, stage.rows);
///     }
/// }
/// let mut result = job.stream().await?;
/// while let Some(batch) = result.next().await {
///     println!("{} rows", batch?.num_rows());
/// }
/// job.release().await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Job {
    mesh: Mesh,
    id: JobId,
    /// Set if this handle saw the mesh accept the job, so that it must exist.
    accepted: Option<Accepted>,
    /// How else it ended.
    other_ends: Arc<Mutex<Vec<JobPhase>>>,
}

/// What a handle knows of the job that it submitted.
#[derive(Clone, Debug)]
struct Accepted {
    /// What was submitted, unless that is too large to be kept.
    bodies: Option<Arc<[Vec<Bytes>]>>,
    /// Whether the job was seen to have ended.
    ended: Arc<AtomicBool>,
    /// How often it was submitted again since what came with it was lost.
    again: Arc<tokio::sync::Mutex<usize>>,
}

impl Job {
    /// A job that the mesh has just accepted.
    pub(crate) fn accepted(mesh: Mesh, id: JobId, bodies: Vec<Vec<Bytes>>) -> Self {
        let bytes: usize = bodies.iter().flatten().map(Bytes::len).sum();
        let bodies = (bytes <= MAX_KEPT_BYTES).then(|| bodies.into());
        let accepted = Accepted { bodies, ended: Arc::default(), again: Arc::default() };
        Self { mesh, id, accepted: Some(accepted), other_ends: Arc::default() }
    }

    /// A job that somebody submitted, perhaps.
    pub(crate) fn named(mesh: Mesh, id: JobId) -> Self {
        Self { mesh, id, accepted: None, other_ends: Arc::default() }
    }

    /// Its id, in text 16 hexadecimal digits.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Where it stands now.
    pub async fn status(&self) -> Result<JobStatus> {
        let (answer, exchange) = self.ask(&Request::Job { id: self.id }).await?;
        match answer {
            Response::Job(status) => {
                self.saw(&status);
                Ok(status)
            }
            other => Err(exchange.unexpected(&other)),
        }
    }

    /// Its status now and at every change, ending with the terminal one. It goes on through another node when
    /// the one it came from is lost; a status may then be repeated.
    pub fn watch(&self) -> Watch {
        Watch::new(self.clone())
    }

    /// Waits until it ended, however it did. There is no limit on the time a job may run; wrap this in
    /// `tokio::time::timeout` to set one.
    pub async fn wait(&self) -> Result<JobStatus> {
        let mut statuses = self.watch();
        while let Some(status) = statuses.next().await {
            let status = status?;
            if status.phase.is_terminal() {
                return Ok(status);
            }
        }
        // A watch ends only after a terminal status or an error, both of which have returned.
        Err(Error::Local(format!("the watch on job {} ended before the job did", self.id)))
    }

    /// Stops it: its tasks end and its partitions are freed. Cancelling an ended job changes nothing.
    pub async fn cancel(&self) -> Result<()> {
        self.done(&Request::Cancel { id: self.id }).await
    }

    /// Says that its result is no longer needed, so that the nodes can free it.
    pub async fn release(&self) -> Result<()> {
        self.done(&Request::Release { id: self.id }).await
    }

    /// Waits until it succeeded, then streams its result, batch by batch, in the query's order. Only as much is
    /// held in memory as was asked for and a bounded window beyond. Partitions that a function returned must have
    /// the same columns: otherwise it ends with [`Error::PartitionsDiffer`].
    pub async fn stream(&self) -> Result<ResultStream> {
        self.succeeded().await?;
        ResultStream::open(self.clone()).await
    }

    /// Gives its result partition by partition, each whole and in memory, in order, as an Arrow IPC stream with its
    /// own schema; the first ones while the others are still being made. It ends with an error if the job fails, also
    /// after some partitions. This is how to read what functions return: frames whose columns may differ, and objects,
    /// which [`object_of`](crate::object_of) takes out.
    pub fn partitions(&self) -> PartitionStream {
        PartitionStream::new(self.clone())
    }

    /// What its functions printed to stdout and stderr, of one task only if one is given; with `follow` until the
    /// job has ended.
    ///
    /// ```no_run
    /// # async fn example(job: floe_client::Job) -> floe_client::Result<()> {
    /// use futures::TryStreamExt;
    ///
    /// let mut logs = job.logs(None, true);
    /// while let Some(chunk) = logs.try_next().await? {
    ///     println!("{}: {}", chunk.attempt, String::from_utf8_lossy(&chunk.bytes));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn logs(&self, task: Option<(StageId, u32)>, follow: bool) -> LogStream {
        LogStream::new(self.clone(), task, follow)
    }

    /// Waits until it ended, and makes an error of any end but success.
    pub async fn succeeded(&self) -> Result<()> {
        match self.wait().await?.phase {
            JobPhase::Failed(failure) => Err(Error::JobFailed { job: self.id, failure }),
            JobPhase::Cancelled => Err(Error::JobCancelled { job: self.id }),
            JobPhase::Succeeded | JobPhase::Running => Ok(()),
        }
    }

    /// Asks any node, as long as the mesh's patience goes.
    pub(crate) async fn ask(&self, request: &Request) -> Result<(Response, Exchange)> {
        self.ask_within(request, &mut self.mesh.link().patience()).await
    }

    /// Notes how the job stands.
    pub(crate) fn saw(&self, status: &JobStatus) {
        if status.phase.is_terminal() {
            self.saw_end();
        }
        if let Some(contradiction) = status.contradiction() {
            tracing::warn!("{contradiction}");
            *self.other_ends() = status.other_ends.clone();
        }
    }

    /// How else the job has ended, as far as this handle has heard: parts of the mesh that were cut off from each other
    /// have told their drivers different ends. Empty for almost every job.
    pub fn contradicting_ends(&self) -> Vec<JobPhase> {
        self.other_ends().clone()
    }

    fn other_ends(&self) -> MutexGuard<'_, Vec<JobPhase>> {
        // It is replaced as a whole.
        self.other_ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the job goes on after this end, since what came with it was lost and this handle has it still: then it is
    /// submitted again, under its id. Functions that had run already run again.
    pub(crate) async fn goes_on(&self, phase: &JobPhase, patience: &mut Patience) -> Result<bool> {
        let JobPhase::Failed(failure @ Failure::SubmissionLost { .. }) = phase else { return Ok(false) };
        let Some((bodies, again)) =
            self.accepted.as_ref().and_then(|accepted| Some((accepted.bodies.as_ref()?, &accepted.again)))
        else {
            return Ok(false);
        };
        // Whoever waits for the job hears of its end; one of them submits it at a time, and a second time is harmless.
        let mut again = again.lock().await;
        if *again == MAX_AGAIN {
            return Ok(false);
        }
        *again += 1;
        tracing::warn!(job = %self.id, %failure, "submitting it again");
        let request = Request::Submit { id: self.id, again: false };
        self.mesh.link().ask(&request, bodies, patience).await?;
        Ok(true)
    }

    /// Notes that the job has ended.
    pub(crate) fn saw_end(&self) {
        if let Some(accepted) = &self.accepted {
            accepted.ended.store(true, Ordering::Relaxed);
        }
    }

    /// Asks any node while there is patience, and believes that the job exists if it was accepted. One that is still
    /// to run and that nobody knows is known to nodes that are away: of two nodes the other one, which went on alone.
    /// It is submitted again, under its id, so that it runs here too and is one job again when they are back.
    pub(crate) async fn ask_within(
        &self,
        request: &Request,
        patience: &mut Patience,
    ) -> Result<(Response, Exchange)> {
        let mut hearsay = Patience::new(if self.accepted.is_some() { HEARSAY } else { Duration::ZERO });
        let mut again = self.accepted.as_ref().and_then(|accepted| {
            let asks =
                matches!(request, Request::Job { .. } | Request::Watch { .. } | Request::Partitions { .. });
            accepted.bodies.clone().filter(|_| asks && !accepted.ended.load(Ordering::Relaxed))
        });
        loop {
            match self.mesh.link().ask(request, &[], patience).await {
                Err(Error::Failure(Failure::NoSuchJob { .. })) if hearsay.pause().await => {}
                Err(Error::Failure(failure @ Failure::NoSuchJob { .. })) => {
                    let Some(bodies) = again.take() else { return Err(Error::Failure(failure)) };
                    tracing::warn!(job = %self.id, "no node here knows the job: submitting it again");
                    self.mesh
                        .link()
                        .ask(&Request::Submit { id: self.id, again: true }, &bodies, patience)
                        .await?;
                }
                answer => return answer,
            }
        }
    }

    /// The mesh that runs it.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// A place for a stream that stays open while the job runs.
    pub(crate) async fn standing(&self, patience: &mut Patience) -> Result<Standing> {
        self.mesh.link().places().standing(self, patience).await
    }

    pub(crate) fn patience(&self) -> Patience {
        self.mesh.link().patience()
    }

    async fn done(&self, request: &Request) -> Result<()> {
        let (answer, exchange) = self.ask(request).await?;
        match answer {
            Response::Done => Ok(()),
            other => Err(exchange.unexpected(&other)),
        }
    }
}
