//! Calls from drivers and from other nodes, each served in a task of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use floe_consensus::{Command, Entry};
use floe_network::Caller;
use floe_protocol::function::Blob;
use floe_protocol::message::{Inspected, Made, Segment};
use floe_protocol::{
    Failure, JobId, JobPhase, JobStatus, OutputMeta, Placed, Request, Response, StageId, TaskId, frame,
};
use floe_transport::call::write_frame;
use floe_transport::stream::{Body, send_body};
use futures::{StreamExt, TryStreamExt, stream};
use libp2p::Stream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::blobs::Blobs;
use crate::config;
use crate::fault;
use crate::logs;
use crate::mailbox::{Ask, Mailbox, Outputs, Proposed};
use crate::recovery;
use crate::session::Sessions;
use crate::store::{Store, ipc};
use crate::stream::{Streams, chunks_of, read_files};
use crate::submit::{Submitter, blocking, unix_ms};
use crate::worker::task_logs::TaskLogs;

/// How often a watched job's live counts are asked of the leader.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(150);

/// How soon a partition that a driver waits for is asked for again; each further time it takes twice as long.
const FIRST_LOOK: Duration = Duration::from_millis(10);

/// How long a result stream waits for a lost partition to be made again.
const RECOMPUTE_PATIENCE: Duration = Duration::from_secs(60);

/// How many partitions of a result this node holds at once while it relays them: each is held whole.
const RESULT_READ_AHEAD: usize = 2;

/// How many jobs `jobs` answers at most, the newest first.
const MAX_LISTED_JOBS: usize = 1000;

/// Where a partition of a result lies.
struct Placement {
    stage: StageId,
    placed: Placed,
    /// The result's columns, if they are known without it.
    schema: Bytes,
}

/// Serves calls.
#[derive(Clone, Debug)]
pub struct Calls {
    pub(crate) mailbox: Mailbox,
    pub(crate) submitter: Submitter,
    pub(crate) streams: Arc<Streams>,
    pub(crate) store: Store,
    pub(crate) blobs: Blobs,
    pub(crate) sessions: Sessions,
    pub(crate) logs: TaskLogs,
    pub(crate) places: Arc<Semaphore>,
}

impl Calls {
    /// As many places as calls are served at once.
    pub fn places() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(config::MAX_CALLS))
    }

    /// Serves one call in the background.
    pub fn serve(&self, from: Caller, request: Request, stream: Stream) {
        let calls = self.clone();
        tokio::spawn(async move {
            if let Err(failure) = calls.answer(from, request, stream).await {
                tracing::debug!(%failure, "a call ended early");
            }
        });
    }

    async fn answer(&self, from: Caller, request: Request, mut stream: Stream) -> Result<(), Failure> {
        let Ok(_place) = self.places.clone().try_acquire_owned() else {
            let message = format!("this node serves {} calls already: ask another", config::MAX_CALLS);
            return reply(&mut stream, Response::Failed(Failure::Unavailable { message })).await;
        };
        if !from.is_node() && is_for_nodes(&request) {
            let message = "only a node of the mesh may ask this".to_owned();
            return reply(&mut stream, Response::Failed(Failure::Refused { message })).await;
        }
        match request {
            Request::Submit { id } => {
                let outcome = match read_spec(&mut stream).await {
                    Ok(spec) => self.submitter.submit(id, spec, &mut stream).await,
                    Err(failure) => Err(failure),
                };
                reply(&mut stream, outcome.map_or_else(Response::Failed, |()| Response::Accepted { id }))
                    .await
            }
            Request::Explain => {
                let outcome = match read_spec(&mut stream).await {
                    Ok(spec) => self.submitter.explain(spec).await,
                    Err(failure) => Err(failure),
                };
                reply(&mut stream, outcome.map_or_else(Response::Failed, Response::Explained)).await
            }
            Request::Plan { id } => {
                let outcome = match read_spec(&mut stream).await {
                    Ok(spec) => self.submitter.plan_here(id, spec).await,
                    Err(failure) => Err(failure),
                };
                reply(&mut stream, outcome.map_or_else(Response::Failed, Response::Planned)).await
            }
            Request::Watch { id } => self.watch(&mut stream, id).await,
            Request::Result { id, from_partition } => self.result(stream, id, from_partition).await,
            Request::Partitions { id, from_partition } => self.partitions(stream, id, from_partition).await,
            Request::Fetch { partition, bucket } => self.streams.serve_fetch(stream, partition, bucket).await,
            Request::Session { id, label } => self.sessions.attend(stream, id, label).await,
            Request::Seat { session } => self.sessions.seat(stream, session).await,
            Request::PutBlob { blob } => {
                let outcome = self.keep_blob(&from, &mut stream, blob).await;
                reply(&mut stream, outcome.map_or_else(Response::Failed, |()| Response::Done)).await
            }
            Request::GetBlob { id } => self.blobs.serve(stream, id, !from.is_node()).await,
            Request::Logs { job, task, follow } => {
                let wanted = logs::Wanted { job, task, follow };
                logs::serve(&self.mailbox, &self.logs, stream, wanted, !from.is_node()).await
            }
            Request::Put { partition, meta } => {
                let outcome = self.keep(&mut stream, partition, meta).await;
                reply(&mut stream, outcome.map_or_else(Response::Failed, |()| Response::Done)).await
            }
            short => {
                let response = self.short(short).await.unwrap_or_else(Response::Failed);
                reply(&mut stream, response).await
            }
        }
    }

    /// Calls of one frame each way.
    async fn short(&self, request: Request) -> Result<Response, Failure> {
        match request {
            Request::HasBlob { id } => Ok(Response::Has(self.blobs.has(id))),
            Request::Status => Ok(Response::Status(self.mailbox.ask(Ask::Status).await?)),
            Request::Mesh => Ok(Response::Mesh(self.mailbox.ask(Ask::Mesh).await?)),
            Request::Job { id } => Ok(Response::Job(self.job(id).await?)),
            Request::Progress { id } => {
                let known = self.mailbox.ask(|reply| Ask::Job(id, reply)).await?;
                known.map(Response::Job).ok_or(Failure::NoSuchJob { job: id })
            }
            Request::Made { id, partition } => {
                Ok(Response::Made(self.mailbox.ask(|reply| Ask::Made(id, partition, reply)).await?.0))
            }
            Request::Jobs => {
                let mut jobs = self.mailbox.ask(Ask::Jobs).await?;
                jobs.sort_by_key(|job| std::cmp::Reverse(job.submitted_unix_ms));
                jobs.truncate(MAX_LISTED_JOBS);
                Ok(Response::Jobs(jobs))
            }
            Request::Cancel { id } => {
                let phase = JobPhase::Cancelled;
                self.mailbox.propose(Command::EndJob { job: id, phase, ended_unix_ms: unix_ms() }).await?;
                Ok(Response::Done)
            }
            Request::Release { id } => {
                self.mailbox.propose(Command::Release { jobs: vec![id] }).await?;
                Ok(Response::Done)
            }
            Request::Propose { request, command } => {
                let command = frame::decode(&command).map_err(|error| Failure::Refused {
                    message: format!("the command cannot be read: {error}"),
                })?;
                let proposed =
                    self.mailbox.ask(|reply| Ask::Propose(Entry { request, command }, reply)).await?;
                Ok(answer_of(proposed))
            }
            Request::Join { member } => {
                Ok(answer_of(self.mailbox.ask(|reply| Ask::Join(member, reply)).await?))
            }
            Request::Recover { agreed: false } => {
                recovery::needed(&self.mailbox).await?;
                Ok(Response::Done)
            }
            Request::Recover { agreed: true } => {
                Ok(Response::Recovered { node: recovery::recover(&self.mailbox).await? })
            }
            Request::Survivor => Ok(Response::Survivor(self.mailbox.ask(Ask::Survivor).await?)),
            Request::CarryOn { era } => {
                self.mailbox.ask(|reply| Ask::CarryOn(era, reply)).await??;
                Ok(Response::Done)
            }
            Request::Fault(fault) => {
                fault::inflict(fault)?;
                Ok(Response::Done)
            }
            Request::Inspect { paths } => {
                let found: Vec<Inspected> = blocking(move || floe_query::inspect(&paths)).await?;
                Ok(Response::Inspected(found))
            }
            other => Err(Failure::internal(format!("{other:?} was not served"))),
        }
    }

    /// A job as it was at some moment since this was called: only an end, which never changes, is told without
    /// asking whether this node is up to date.
    async fn job(&self, id: JobId) -> Result<JobStatus, Failure> {
        let known = self.mailbox.ask(|reply| Ask::Job(id, reply)).await?;
        if let Some(job) = known.filter(|job| job.phase.is_terminal()) {
            return Ok(job);
        }
        self.mailbox.current().await?;
        self.progress(id).await
    }

    /// A job as this node knows it, with the leader's live counts while it runs.
    async fn progress(&self, id: JobId) -> Result<JobStatus, Failure> {
        let known = self.mailbox.ask(|reply| Ask::Job(id, reply)).await?;
        let job = known.ok_or(Failure::NoSuchJob { job: id })?;
        if job.phase.is_terminal() {
            return Ok(job);
        }
        let status = self.mailbox.ask(Ask::Status).await?;
        if let Some(leader) = status.leader.filter(|leader| *leader != status.node)
            && let Ok(Response::Job(live)) =
                self.mailbox.network().call(leader, &Request::Progress { id }, config::CALL_TIMEOUT).await
        {
            return Ok(live);
        }
        Ok(job)
    }

    /// Sends a job's status now and at every change, until it has ended.
    async fn watch(&self, stream: &mut Stream, id: JobId) -> Result<(), Failure> {
        let mut changes = self.mailbox.changes();
        let mut sent: Option<JobStatus> = None;
        loop {
            changes.mark_unchanged();
            // The first status may be behind, the last one never is, so a mesh without a majority can be watched
            // too. Only that there is no such job must not be said by a node that is merely late.
            let known = match self.progress(id).await {
                Err(Failure::NoSuchJob { .. }) if sent.is_none() => self.job(id).await,
                known => known,
            };
            let job = match known {
                Ok(job) => job,
                Err(failure) => return reply(stream, Response::Failed(failure)).await,
            };
            let ended = job.phase.is_terminal();
            if sent.as_ref() != Some(&job) {
                reply(stream, Response::Job(job.clone())).await?;
                sent = Some(job);
            }
            if ended {
                return Ok(());
            }
            // A change of this node's own state ends the wait; live counts are the leader's and are polled.
            let _ = timeout(PROGRESS_INTERVAL, changes.changed()).await;
        }
    }

    /// Streams a result from its holders to the driver.
    async fn result(&self, mut stream: Stream, id: JobId, from: u32) -> Result<(), Failure> {
        let outputs = match self.outputs(id).await {
            Ok(outputs) => outputs,
            Err(failure) => return reply(&mut stream, Response::Failed(failure)).await,
        };
        let partitions = outputs.partitions.iter().map(|placed| placed.meta.clone()).collect();
        reply(&mut stream, Response::Result { schema: outputs.schema, partitions }).await?;
        let count = outputs.partitions.len() as u32;
        let calls = self.clone();
        let fetches = stream::iter(from..count).map(move |partition| {
            let calls = calls.clone();
            async move { calls.result_partition(id, partition).await }
        });
        let chunks = fetches.buffered(RESULT_READ_AHEAD).flat_map(|fetched| {
            let chunks: Vec<Result<Bytes, Failure>> = match fetched {
                Ok(streams) => streams.into_iter().flat_map(chunks_of).map(Ok).collect(),
                Err(failure) => vec![Err(failure)],
            };
            stream::iter(chunks)
        });
        send_body(&mut stream, chunks).await.map_err(Failure::internal)?;
        Ok(())
    }

    /// Streams a result's partitions from their holders to the driver, each as soon as it was made.
    async fn partitions(&self, mut stream: Stream, id: JobId, from: u32) -> Result<(), Failure> {
        // A node that has yet to hear of the job must not say that there is none.
        let known = match self.progress(id).await {
            Err(Failure::NoSuchJob { .. }) => self.job(id).await,
            known => known,
        };
        if let Err(failure) = known {
            return reply(&mut stream, Response::Failed(failure)).await;
        }
        reply(&mut stream, Response::Partitions).await?;
        let calls = self.clone();
        let made = stream::try_unfold((calls, from), move |(calls, partition)| async move {
            let made = calls.made(id, partition).await?;
            Ok::<_, Failure>(made.map(|_| (partition, (calls, partition + 1))))
        });
        let calls = self.clone();
        let fetched = made
            .map_ok(move |partition| {
                let calls = calls.clone();
                async move { calls.result_partition(id, partition).await }
            })
            .try_buffered(RESULT_READ_AHEAD);
        let chunks = fetched.map_ok(|streams| {
            let length: usize = streams.iter().map(Bytes::len).sum();
            let head = Bytes::copy_from_slice(&(length as u64).to_be_bytes());
            stream::iter(std::iter::once(head).chain(streams.into_iter().flat_map(chunks_of)).map(Ok))
        });
        send_body(&mut stream, chunks.try_flatten()).await.map_err(Failure::internal)?;
        Ok(())
    }

    /// Waits until a partition of a job's result is made: where it lies, or nothing if the result has fewer.
    async fn made(&self, id: JobId, partition: u32) -> Result<Option<Placement>, Failure> {
        let mut changes = self.mailbox.changes();
        let network = self.mailbox.network();
        let mut wait = FIRST_LOOK;
        loop {
            changes.mark_unchanged();
            // Asked before the partition is: what has ended by then is all there is.
            let phase = self.mailbox.ask(|reply| Ask::Job(id, reply)).await?.map(|job| job.phase);
            let (mut made, leader) = self.mailbox.ask(|reply| Ask::Made(id, partition, reply)).await?;
            if made == Made::NotYet
                && let Some(leader) = leader.filter(|leader| *leader != network.node())
                && let Ok(Response::Made(known)) =
                    network.call(leader, &Request::Made { id, partition }, config::CALL_TIMEOUT).await
            {
                made = known;
            }
            match made {
                Made::Here { stage, placed, schema } => return Ok(Some(Placement { stage, placed, schema })),
                Made::Beyond => return Ok(None),
                Made::NotYet => {}
            }
            match phase {
                Some(JobPhase::Failed(failure)) => return Err(failure),
                Some(JobPhase::Cancelled) => return Err(Failure::Cancelled),
                // Released, or forgotten.
                Some(JobPhase::Succeeded) | None => return Err(Failure::NoSuchJob { job: id }),
                Some(JobPhase::Running) => {}
            }
            let _ = timeout(wait, changes.changed()).await;
            wait = (wait * 2).min(PROGRESS_INTERVAL);
        }
    }

    /// One result partition as Arrow IPC streams. One that its holders lost is made again by the leader, which
    /// this waits for.
    async fn result_partition(&self, id: JobId, partition: u32) -> Result<Vec<Bytes>, Failure> {
        let deadline = Instant::now() + RECOMPUTE_PATIENCE;
        loop {
            let Some(Placement { stage, placed, schema }) = self.made(id, partition).await? else {
                return Err(Failure::internal(format!("job {id} has no partition {partition}")));
            };
            // Of a function, an empty partition has columns that only it knows.
            if placed.meta.rows() == 0 && !schema.is_empty() {
                return Ok(vec![schema]);
            }
            let segment = Segment {
                partition: TaskId { job: id, stage, partition },
                bucket: None,
                rows: placed.meta.rows(),
                bytes: placed.meta.bytes(),
                nodes: placed.nodes,
            };
            match self.streams.fetch_segment(&segment).await {
                Ok(files) => {
                    return files.iter().map(|f| ipc::stream_of(f).map_err(Failure::internal)).collect();
                }
                Err(failure) if Instant::now() > deadline => return Err(failure),
                Err(Failure::InputLost { partition, node }) => {
                    self.mailbox.tell(Ask::Lost(partition, node)).await;
                    sleep(PROGRESS_INTERVAL).await;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn outputs(&self, id: JobId) -> Result<Outputs, Failure> {
        if let Some(outputs) = self.mailbox.ask(|reply| Ask::Outputs(id, reply)).await? {
            return Ok(outputs);
        }
        let job = self.job(id).await?;
        Err(match job.phase {
            JobPhase::Failed(failure) => failure,
            JobPhase::Cancelled => Failure::Cancelled,
            JobPhase::Running => {
                Failure::Refused { message: format!("job {id} still runs: wait for it first") }
            }
            // The leader knows of its end and this node does not yet.
            JobPhase::Succeeded => {
                let mut changes = self.mailbox.changes();
                let deadline = Instant::now() + config::CALL_TIMEOUT;
                while Instant::now() < deadline {
                    changes.mark_unchanged();
                    if let Some(outputs) = self.mailbox.ask(|reply| Ask::Outputs(id, reply)).await? {
                        return Ok(outputs);
                    }
                    let _ = timeout(PROGRESS_INTERVAL, changes.changed()).await;
                }
                Failure::NoSuchJob { job: id }
            }
        })
    }

    /// Keeps an object. For a driver others get it too, so that it is not lost with this node.
    async fn keep_blob(&self, from: &Caller, stream: &mut Stream, blob: Blob) -> Result<(), Failure> {
        self.blobs.receive(blob, stream).await?;
        if !from.is_node() {
            self.blobs.spread(blob).await;
        }
        Ok(())
    }

    /// Keeps a copy that a peer sends.
    async fn keep(&self, stream: &mut Stream, partition: TaskId, meta: OutputMeta) -> Result<(), Failure> {
        let lengths = meta.buckets.iter().map(|bucket| bucket.bytes);
        let segments = read_files(stream, lengths)
            .await
            .map_err(|error| Failure::internal(format!("a copied partition was not received: {error}")))?;
        let store = self.store.clone();
        blocking(move || store.put_segments(partition, segments, meta).map(drop)).await?
    }
}

fn is_for_nodes(request: &Request) -> bool {
    matches!(
        request,
        Request::Propose { .. }
            | Request::Inspect { .. }
            | Request::Plan { .. }
            | Request::Put { .. }
            | Request::Seat { .. }
            | Request::Fetch { .. }
            | Request::Mesh
            | Request::Survivor
            | Request::CarryOn { .. }
            | Request::Join { .. }
            | Request::Progress { .. }
            | Request::Made { .. }
    )
}

fn answer_of(proposed: Proposed) -> Response {
    match proposed {
        Proposed::Applied(Ok(())) => Response::Done,
        Proposed::Applied(Err(failure)) => Response::Failed(failure),
        Proposed::NotLeader(leader) => Response::NotLeader(leader),
    }
}

async fn reply(stream: &mut Stream, response: Response) -> Result<(), Failure> {
    write_frame(stream, &response).await.map_err(Failure::internal)
}

/// Reads a specification, which may carry frames, up to [`config::MAX_SPEC_BYTES`].
async fn read_spec(stream: &mut Stream) -> Result<Bytes, Failure> {
    let mut body = Body::new(stream);
    let mut spec = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| Failure::Refused {
            message: format!("the job did not arrive whole: {error}"),
        })?;
        if spec.len() + chunk.len() > config::MAX_SPEC_BYTES {
            let message = format!(
                "the job is larger than {} MiB: write its frames to files and scan those",
                config::MAX_SPEC_BYTES >> 20
            );
            return Err(Failure::Refused { message });
        }
        spec.extend_from_slice(&chunk);
    }
    Ok(spec.freeze())
}
