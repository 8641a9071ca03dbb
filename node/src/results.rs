//! A job's result on its way to the driver.
//!
//! ```text
//!   partitions   where each lies, as soon as it is made: the driver fetches it from there
//!   relay        one of them by way of this node, for a driver that does not reach its holders
//!   result       all of a succeeded job's, one after the other, as one stream of batches
//! ```

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use floe_protocol::arrow_file::stream_of;
use floe_protocol::message::{Made, Segment};
use floe_protocol::{Failure, JobId, JobPhase, Placed, Request, Response, StageId, TaskId};
use floe_transport::call::write_frame;
use floe_transport::stream::send_body;
use futures::{StreamExt, stream};
use libp2p::Stream;
use tokio::time::{Instant, sleep, timeout};

use crate::config;
use crate::job_status;
use crate::mailbox::{Ask, Mailbox, Outputs};
use crate::outgoing::Outgoing;
use crate::progress::Progress;
use crate::stream::{Found, Streams, chunks_of};

/// How long a partition that a driver waits for is not looked for, if nothing is heard of its job.
const LONGEST_LOOK: Duration = Duration::from_secs(2);

/// How often a driver that waits for a partition is told that there is none yet.
const SIGN_INTERVAL: Duration = Duration::from_secs(3);

/// How long a partition that was lost may take to be made again, and how soon it is looked for; each further time takes
/// half as long again, up to [`LONGEST_LOOK`].
const RECOMPUTE_PATIENCE: Duration = Duration::from_secs(60);
const RECOMPUTE_LOOK: Duration = Duration::from_millis(150);

/// How many partitions of a stream of batches this node holds at once: each is held whole.
const READ_AHEAD: usize = 2;

/// Gives results to drivers.
#[derive(Clone, Debug)]
pub struct Results {
    mailbox: Mailbox,
    streams: Arc<Streams>,
    progress: Progress,
    outgoing: Outgoing,
}

/// Where a partition of a result lies.
struct Placement {
    stage: StageId,
    placed: Placed,
    /// The result's columns, if it is empty and they are known without it.
    schema: Bytes,
}

impl Results {
    /// Results that lie in this node's store and others'.
    pub fn new(mailbox: Mailbox, streams: Arc<Streams>, progress: Progress, outgoing: Outgoing) -> Self {
        Self { mailbox, streams, progress, outgoing }
    }

    /// Answers [`Request::Partitions`].
    pub async fn partitions(&self, mut stream: Stream, id: JobId, from: u32) -> Result<(), Failure> {
        if let Err(failure) = job_status::known(&self.mailbox, id).await {
            return reply(&mut stream, Response::Failed(failure)).await;
        }
        // At once, or its driver would wonder whether anybody listens.
        reply(&mut stream, Response::Made(Made::NotYet)).await?;
        for partition in from.. {
            let made = with_signs(&mut stream, self.made(id, partition)).await?;
            match made {
                Ok(Some(Placement { stage, placed, schema })) => {
                    reply(&mut stream, Response::Made(Made::Here { stage, placed, schema })).await?;
                }
                Ok(None) => break,
                Err(failure) => return reply(&mut stream, Response::Failed(failure)).await,
            }
        }
        reply(&mut stream, Response::Made(Made::Beyond)).await
    }

    /// Answers [`Request::Partition`].
    pub async fn relay(&self, mut stream: Stream, id: JobId, partition: u32) -> Result<(), Failure> {
        let found = async {
            match self.find(id, partition).await {
                // This node may merely be late.
                Err(Failure::NoSuchJob { .. }) => {
                    self.mailbox.current().await?;
                    self.find(id, partition).await
                }
                found => found,
            }
        };
        match with_signs(&mut stream, found).await? {
            Ok(found) => found.send(&mut stream).await,
            Err(failure) => reply(&mut stream, Response::Failed(failure)).await,
        }
    }

    /// Answers [`Request::Result`].
    pub async fn result(&self, mut stream: Stream, id: JobId, from: u32) -> Result<(), Failure> {
        let outputs = match self.outputs(id).await {
            Ok(outputs) => outputs,
            Err(failure) => return reply(&mut stream, Response::Failed(failure)).await,
        };
        let partitions = outputs.partitions.iter().map(|placed| placed.summary).collect();
        reply(&mut stream, Response::Result { schema: outputs.schema, partitions }).await?;
        let count = outputs.partitions.len() as u32;
        let results = self.clone();
        let fetches = stream::iter(from..count).map(move |partition| {
            let results = results.clone();
            async move { results.batches(id, partition).await }
        });
        let reader = self.outgoing.reader();
        let chunks = fetches.buffered(READ_AHEAD).flat_map(|fetched| {
            let chunks: Vec<Result<Bytes, Failure>> = match fetched {
                Ok(streams) => streams.into_iter().flat_map(chunks_of).map(Ok).collect(),
                Err(failure) => vec![Err(failure)],
            };
            stream::iter(chunks)
        });
        let chunks = chunks.inspect(|_| reader.took());
        tokio::select! {
            sent = send_body(&mut stream, chunks) => sent.map(drop).map_err(Failure::internal),
            () = reader.is_idle() => {
                let message = format!("the result of job {id} waits for its reader, and others for its room");
                Err(Failure::Unavailable { message })
            }
        }
    }

    /// Waits until a partition of a job's result is made: where it lies, or nothing if the result has fewer.
    async fn made(&self, id: JobId, partition: u32) -> Result<Option<Placement>, Failure> {
        let mut changes = self.mailbox.job_changes(id);
        let mut statuses = None;
        loop {
            changes.mark_unchanged();
            let mut made = self.mailbox.ask(|reply| Ask::Made(id, partition, reply)).await??;
            if made == Made::NotYet {
                let request = Request::Made { id, partition };
                let known = self.mailbox.call_leader(&request, config::CALL_TIMEOUT).await;
                if let Some(Response::Made(known)) = known {
                    made = known;
                }
            }
            match made {
                Made::Here { stage, placed, schema } => {
                    let schema = if placed.summary.rows == 0 { schema } else { Bytes::new() };
                    return Ok(Some(Placement { stage, placed, schema }));
                }
                Made::Beyond => return Ok(None),
                Made::NotYet => {}
            }
            // What happens within a stage only the leader knows.
            let statuses = statuses.get_or_insert_with(|| self.progress.follow(id));
            let news = async {
                if statuses.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = changes.changed() => {}
                () = news => {}
                () = sleep(LONGEST_LOOK) => {}
            }
        }
    }

    /// A partition of a result, in this node's store or on its way here. One that its holders lost is made again by
    /// the leader, which this waits for.
    async fn find(&self, id: JobId, partition: u32) -> Result<Found, Failure> {
        let (deadline, mut wait) = (Instant::now() + RECOMPUTE_PATIENCE, RECOMPUTE_LOOK);
        loop {
            let placement = self.placement(id, partition).await?;
            match self.streams.find(&placement.segment(id, partition)).await {
                Ok(found) => return Ok(found),
                Err(failure) => self.make_again(id, failure, deadline, &mut wait).await?,
            }
        }
    }

    /// One partition's Arrow IPC streams, however many it has; made again like the former.
    async fn batches(&self, id: JobId, partition: u32) -> Result<Vec<Bytes>, Failure> {
        let (deadline, mut wait) = (Instant::now() + RECOMPUTE_PATIENCE, RECOMPUTE_LOOK);
        loop {
            let placement = self.placement(id, partition).await?;
            // Else only the partition knows its columns, be it empty.
            if placement.placed.summary.rows == 0 && !placement.schema.is_empty() {
                return Ok(vec![placement.schema]);
            }
            let here = placement.placed.nodes.contains(&self.mailbox.network().node());
            let room = if here { None } else { self.outgoing.room(placement.placed.summary.bytes).await };
            match self.streams.fetch_segment(&placement.segment(id, partition)).await {
                Ok(files) => {
                    let hold = |file| match &room {
                        Some(room) => room.hold(file),
                        None => file,
                    };
                    let streams =
                        files.into_iter().map(|file| stream_of(&hold(file)).map_err(Failure::internal));
                    return streams.collect();
                }
                Err(failure) => self.make_again(id, failure, deadline, &mut wait).await?,
            }
        }
    }

    async fn placement(&self, id: JobId, partition: u32) -> Result<Placement, Failure> {
        let made = self.made(id, partition).await?;
        made.ok_or_else(|| Failure::Refused { message: format!("job {id} has no partition {partition}") })
    }

    /// Has a lost partition made again; anything else stays the failure that it is. One that cannot be made while a node is
    /// away is refused in the end, with what it waits for: it is kept, and whoever wants it comes again.
    async fn make_again(
        &self,
        id: JobId,
        failure: Failure,
        deadline: Instant,
        wait: &mut Duration,
    ) -> Result<(), Failure> {
        match failure {
            Failure::InputLost { partition, node } if Instant::now() < deadline => {
                self.mailbox.tell(Ask::Lost(partition, node)).await;
                sleep(*wait).await;
                *wait = (*wait * 3 / 2).min(LONGEST_LOOK);
                Ok(())
            }
            failure @ Failure::InputLost { partition, .. } => {
                let known = self.mailbox.call_leader(&Request::Progress { id }, config::CALL_TIMEOUT).await;
                let waits_for = match known {
                    Some(Response::Job(status)) => status.waits_for,
                    // It may be this node that leads.
                    _ => self
                        .mailbox
                        .ask(|reply| Ask::Progress(id, reply))
                        .await?
                        .ok()
                        .and_then(|job| job.waits_for),
                };
                Err(waits_for.map_or(failure, |waits_for| Failure::Refused {
                    message: format!(
                        "partition {} of the result cannot be had now: job {id} {waits_for}; read it again then",
                        partition.partition
                    ),
                }))
            }
            failure => Err(failure),
        }
    }

    async fn outputs(&self, id: JobId) -> Result<Outputs, Failure> {
        match self.mailbox.ask(|reply| Ask::Outputs(id, reply)).await? {
            Ok(Some(outputs)) => return Ok(outputs),
            Err(freed @ Failure::Freed { .. }) => return Err(freed),
            Ok(None) | Err(_) => {}
        }
        let job = job_status::current(&self.mailbox, id).await?;
        Err(match job.phase {
            JobPhase::Failed(failure) => failure,
            JobPhase::Cancelled => Failure::Cancelled,
            JobPhase::Running => {
                Failure::Refused { message: format!("job {id} still runs: wait for it first") }
            }
            // The leader knows of its end and this node does not yet.
            JobPhase::Succeeded => {
                let mut changes = self.mailbox.job_changes(id);
                let deadline = Instant::now() + config::CALL_TIMEOUT;
                while Instant::now() < deadline {
                    changes.mark_unchanged();
                    if let Some(outputs) = self.mailbox.ask(|reply| Ask::Outputs(id, reply)).await?? {
                        return Ok(outputs);
                    }
                    let _ = timeout(LONGEST_LOOK, changes.changed()).await;
                }
                Failure::Unavailable {
                    message: format!("this node has not heard yet that job {id} has ended: ask again"),
                }
            }
        })
    }
}

impl Placement {
    fn segment(&self, job: JobId, partition: u32) -> Segment {
        Segment {
            partition: TaskId { job, stage: self.stage, partition },
            bucket: None,
            nodes: self.placed.nodes.clone(),
        }
    }
}

/// Waits, and tells the driver every few seconds that it does.
async fn with_signs<T>(stream: &mut Stream, work: impl Future<Output = T>) -> Result<T, Failure> {
    let mut work = pin!(work);
    loop {
        match timeout(SIGN_INTERVAL, &mut work).await {
            Ok(done) => return Ok(done),
            Err(_) => reply(stream, Response::Made(Made::NotYet)).await?,
        }
    }
}

async fn reply(stream: &mut Stream, response: Response) -> Result<(), Failure> {
    write_frame(stream, &response).await.map_err(Failure::internal)
}
