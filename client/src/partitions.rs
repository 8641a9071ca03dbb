//! A job's result partition by partition, each whole and as it was stored.

use std::pin::Pin;
use std::task::{Context, Poll};

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::StreamReader;
use arrow_schema::{ArrowError, DataType};
use bytes::Bytes;
use floe_protocol::arrow_file::stream_of;
use floe_protocol::message::{Made, Request, Response};
use floe_protocol::{Failure, JobPhase, NodeId, StageId, TaskId};
use floe_transport::{BodyError, Connection};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};

use crate::error::{Error, Result};
use crate::job::Job;
use crate::link::{Exchange, Lost, ask_once, is_excuse};
use crate::patience::Patience;
use crate::places::Standing;

/// The one column of a partition that is no frame but one object, in its one row, as bytes that only the function
/// and its driver understand.
pub const OBJECT_COLUMN: &str = "__floe_object__";

/// How many partitions are fetched at once: each is held whole.
const READ_AHEAD: usize = 2;

/// Why nothing more comes of a node that should say every few seconds that there is nothing to say.
const SILENT: &str = "it fell silent";

/// A job's result, made by [`Job::partitions`]: each item is one partition, in order, as an Arrow IPC stream with
/// its own schema. It goes on through another node when the one it comes from is lost.
pub struct PartitionStream(BoxStream<'static, Result<Bytes>>);

impl PartitionStream {
    pub(crate) fn new(job: Job) -> Self {
        let placements =
            Placements { patience: job.patience(), job: job.clone(), next: 0, place: None, exchange: None };
        let placements = futures::stream::try_unfold(placements, |mut placements| async move {
            Ok(placements.next().await?.map(|placement| (placement, placements)))
        });
        // A failure waits for its turn too: what was made before it is given out before it.
        let fetched = placements.map(move |placement: Result<Placement>| {
            let job = job.clone();
            async move { placement?.fetch(&job).await }
        });
        Self(fetched.buffered(READ_AHEAD).boxed())
    }
}

impl Stream for PartitionStream {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

impl std::fmt::Debug for PartitionStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartitionStream").finish_non_exhaustive()
    }
}

/// Where the partitions of a job lie, each as soon as it is made.
struct Placements {
    job: Job,
    /// The partition that comes next.
    next: u32,
    /// Its stream's place.
    place: Standing,
    exchange: Option<Exchange>,
    patience: Patience,
}

/// Where one lies.
struct Placement {
    partition: u32,
    stage: StageId,
    nodes: Vec<NodeId>,
    /// It itself, if it has no rows and its columns are known.
    empty: Option<Bytes>,
}

impl Placements {
    /// The next one; nothing after the last.
    async fn next(&mut self) -> Result<Option<Placement>> {
        loop {
            let (response, exchange) = match self.exchange.take() {
                Some(exchange) => {
                    let address = exchange.address();
                    match exchange.response_in_time().await {
                        Some(answer) => {
                            // Only what follows the first answer is progress: to begin is no merit.
                            self.patience.renew();
                            answer
                        }
                        None => {
                            broke_off(address, SILENT.to_owned(), &mut self.patience).await?;
                            continue;
                        }
                    }
                }
                None => {
                    if self.place.is_none() {
                        self.place = self.job.standing(&mut self.patience).await?;
                    }
                    let request = Request::Partitions { id: self.job.id(), from_partition: self.next };
                    match self.job.ask_within(&request, &mut self.patience).await {
                        Err(Error::Failure(failure @ Failure::SubmissionLost { .. })) => {
                            self.lost(failure).await?;
                            continue;
                        }
                        answer => answer?,
                    }
                }
            };
            match response {
                Response::Made(Made::Here { stage, placed, schema }) => {
                    self.exchange = Some(exchange);
                    let partition = self.next;
                    self.next += 1;
                    let empty = (placed.summary.rows == 0 && !schema.is_empty()).then_some(schema);
                    return Ok(Some(Placement { partition, stage, nodes: placed.nodes, empty }));
                }
                Response::Made(Made::NotYet) => self.exchange = Some(exchange),
                Response::Made(Made::Beyond) => {
                    self.job.saw_end();
                    return Ok(None);
                }
                Response::Failed(failure @ Failure::SubmissionLost { .. }) => self.lost(failure).await?,
                Response::Failed(failure) => match reason(&self.job, failure).await {
                    Error::Failure(failure) if is_excuse(&failure) && self.patience.pause().await => {}
                    error => return Err(error),
                },
                other => return Err(exchange.unexpected(&other)),
            }
        }
    }
}

impl Placements {
    /// What came with the job is lost: it goes on if the driver has that still.
    async fn lost(&mut self, failure: Failure) -> Result<()> {
        match reason(&self.job, failure).await {
            Error::JobFailed { job, failure } => {
                let phase = JobPhase::Failed(failure.clone());
                match self.job.goes_on(&phase, &mut self.patience).await? {
                    true => Ok(()),
                    false => Err(Error::JobFailed { job, failure }),
                }
            }
            // It goes on already, and the node that was asked has yet to hear of it.
            Error::Failure(_) if self.patience.pause().await => Ok(()),
            error => Err(error),
        }
    }
}

impl Placement {
    /// Fetches the partition from where it lies, or else by way of the node that the driver is connected to, which
    /// also has it made again if it was lost.
    async fn fetch(self, job: &Job) -> Result<Bytes> {
        if let Some(empty) = self.empty {
            return Ok(empty);
        }
        if let Some(holder) = job.mesh().link().holder(&self.nodes) {
            let partition = TaskId { job: job.id(), stage: self.stage, partition: self.partition };
            match fetch_from(&holder, partition).await {
                Ok(partition) => return Ok(partition),
                Err(lost) => {
                    tracing::debug!(%partition, address = %holder.address(), %lost, "not had directly");
                    if !matches!(lost, Lost::Body(BodyError::Failed(_))) {
                        job.mesh().link().leave_holder(&holder);
                    }
                }
            }
        }
        relayed(job, self.partition).await
    }
}

async fn fetch_from(holder: &Connection, partition: TaskId) -> Result<Bytes, Lost> {
    match ask_once(holder, &Request::Fetch { partition, bucket: None }, &[]).await? {
        (Response::Fetching { segments }, exchange) => read(exchange, &segments).await,
        (Response::Failed(failure), _) => Err(BodyError::Failed(failure).into()),
        (other, _) => Err(BodyError::Malformed(format!("it is not an answer to a fetch: {other:?}")).into()),
    }
}

/// Why something about a job failed: that is what the job failed of, if it has.
async fn reason(job: &Job, failure: Failure) -> Error {
    match job.status().await.map(|status| status.phase) {
        Ok(JobPhase::Failed(failure)) => Error::JobFailed { job: job.id(), failure },
        Ok(JobPhase::Cancelled) => Error::JobCancelled { job: job.id() },
        Ok(JobPhase::Running | JobPhase::Succeeded) => Error::Failure(failure),
        Err(error) => error,
    }
}

/// A partition by way of any node. If it breaks off it is asked for again, as a whole.
async fn relayed(job: &Job, partition: u32) -> Result<Bytes> {
    let request = Request::Partition { id: job.id(), partition };
    let mut patience = job.patience();
    loop {
        let (mut response, mut exchange) = match job.ask_within(&request, &mut patience).await {
            Ok(answer) => answer,
            Err(Error::Failure(failure)) => return Err(reason(job, failure).await),
            Err(error) => return Err(error),
        };
        let address = exchange.address();
        let lost = loop {
            match response {
                Response::Fetching { segments } => match read(exchange, &segments).await {
                    Ok(partition) => return Ok(partition),
                    Err(lost) => break lost.to_string(),
                },
                // It is being made again.
                Response::Made(Made::NotYet) => {}
                Response::Failed(failure) if is_excuse(&failure) => break failure.to_string(),
                Response::Failed(failure) => return Err(reason(job, failure).await),
                other => return Err(exchange.unexpected(&other)),
            }
            match exchange.response_in_time().await {
                Some(answer) => (response, exchange) = answer,
                None => break SILENT.to_owned(),
            }
            patience.renew();
        };
        broke_off(address, lost, &mut patience).await?;
    }
}

/// Waits before the next try.
async fn broke_off(address: String, reason: String, patience: &mut Patience) -> Result<()> {
    tracing::debug!(address, reason, "a result broke off");
    if patience.pause().await {
        return Ok(());
    }
    Err(Error::Unreachable { tried: vec![(address, reason)], waited: patience.waited() })
}

/// The files of an answer as the streams that they hold.
async fn read(mut exchange: Exchange, segments: &[(u64, u64)]) -> Result<Bytes, Lost> {
    let files = exchange.read_files(segments).await?;
    let streams: std::result::Result<Vec<_>, _> = files.iter().map(stream_of).collect();
    let mut streams = streams.map_err(|error| BodyError::Malformed(error.to_string()))?;
    // A copy is needed only where there is not exactly one.
    Ok(if streams.len() == 1 { streams.remove(0) } else { streams.concat().into() })
}

/// The batches of one partition, as [`Job::partitions`] gives it.
///
/// ```no_run
/// # async fn example(job: floe_client::Job) -> Result<(), Box<dyn std::error::Error>> {
/// use futures::TryStreamExt;
///
/// let mut partitions = job.partitions();
/// while let Some(partition) = partitions.try_next().await? {
///     for batch in floe_client::read_partition(&partition)? {
///         println!("{} rows of {} columns", batch.num_rows(), batch.num_columns());
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub fn read_partition(partition: &[u8]) -> Result<Vec<RecordBatch>> {
    let read = || StreamReader::try_new(partition, None)?.collect::<Result<Vec<_>, _>>();
    read().map_err(|error: ArrowError| Error::Local(format!("a partition cannot be read: {error}")))
}

/// The object that a partition is, if it is one rather than a frame.
pub fn object_of(partition: &[u8]) -> Result<Option<Bytes>> {
    let unreadable = |error: ArrowError| Error::Local(format!("a partition cannot be read: {error}"));
    let reader = StreamReader::try_new(partition, None).map_err(unreadable)?;
    let schema = reader.schema();
    if !matches!(schema.fields().iter().as_slice(), [field] if field.name() == OBJECT_COLUMN) {
        return Ok(None);
    }
    for batch in reader {
        let batch = batch.map_err(unreadable)?;
        if batch.num_rows() > 0 {
            return bytes_in(batch.column(0)).map(Some);
        }
    }
    Err(Error::Local("a partition should hold an object and is empty".to_owned()))
}

fn bytes_in(column: &dyn Array) -> Result<Bytes> {
    let bytes = match column.data_type() {
        DataType::Binary => column.as_binary::<i32>().value(0),
        DataType::LargeBinary => column.as_binary::<i64>().value(0),
        DataType::BinaryView => column.as_binary_view().value(0),
        other => return Err(Error::Local(format!("an object comes as {other}, which holds no bytes"))),
    };
    Ok(Bytes::copy_from_slice(bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{BinaryViewArray, Int64Array, LargeBinaryArray};
    use arrow_ipc::writer::StreamWriter;

    use super::*;

    fn partition(name: &str, column: Arc<dyn Array>) -> Vec<u8> {
        let batch = RecordBatch::try_from_iter([(name, column)]).unwrap();
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.into_inner().unwrap()
    }

    #[test]
    fn objects_are_told_from_frames_however_their_bytes_are_stored() {
        let large = partition(OBJECT_COLUMN, Arc::new(LargeBinaryArray::from_vec(vec![b"seven"])));
        assert_eq!(object_of(&large).unwrap().unwrap(), "seven");
        let view = partition(OBJECT_COLUMN, Arc::new(BinaryViewArray::from_iter_values([b"eight"])));
        assert_eq!(object_of(&view).unwrap().unwrap(), "eight");
        let frame = partition("n", Arc::new(Int64Array::from(vec![1, 2])));
        assert_eq!(object_of(&frame).unwrap(), None);
        assert_eq!(read_partition(&frame).unwrap()[0].num_rows(), 2);
        let odd = partition(OBJECT_COLUMN, Arc::new(Int64Array::from(vec![1])));
        assert!(object_of(&odd).is_err() && object_of(b"nothing of the kind").is_err());
    }
}
