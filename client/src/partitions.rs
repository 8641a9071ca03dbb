//! A job's result partition by partition, each whole and as it was stored.

use std::pin::Pin;
use std::task::{Context, Poll};

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::StreamReader;
use arrow_schema::{ArrowError, DataType};
use bytes::{Buf, Bytes, BytesMut};
use floe_protocol::message::{Request, Response};
use floe_protocol::{Failure, JobPhase};
use floe_transport::BodyError;
use futures::Stream;
use futures::stream::BoxStream;

use crate::error::{Error, Result};
use crate::job::Job;
use crate::link::{Exchange, Lost, is_excuse};
use crate::patience::Patience;

/// The one column of a partition that is no frame but one object, in its one row, as bytes that only the function
/// and its driver understand.
pub const OBJECT_COLUMN: &str = "__floe_object__";

/// What stands before each partition: its length.
const HEAD_BYTES: usize = 8;

/// How much room is made for a partition on the word of its sender alone. Beyond it the room grows only with bytes that
/// really came.
const MAX_PREALLOCATED_BYTES: usize = 64 << 20;

/// A job's result, made by [`Job::partitions`]: each item is one partition, in order, as an Arrow IPC stream with
/// its own schema. It goes on through another node when the one it comes from is lost.
pub struct PartitionStream(BoxStream<'static, Result<Bytes>>);

impl PartitionStream {
    pub(crate) fn new(job: Job) -> Self {
        let patience = job.patience();
        let arriving = Arriving { job, next: 0, source: None, patience };
        Self(Box::pin(futures::stream::try_unfold(arriving, |mut arriving| async move {
            Ok(arriving.next().await?.map(|partition| (partition, arriving)))
        })))
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

/// A result under way.
struct Arriving {
    job: Job,
    /// The partition that comes next.
    next: u32,
    source: Option<Source>,
    patience: Patience,
}

/// One body being read.
struct Source {
    exchange: Exchange,
    /// What came of it and was not used yet.
    rest: Bytes,
}

impl Arriving {
    /// The next partition; nothing after the last one. One that breaks off is asked for again, as a whole.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let mut source = match self.source.take() {
                Some(source) => source,
                None => self.ask().await?,
            };
            match source.next().await {
                Ok(Some(partition)) => {
                    self.patience.renew();
                    self.next += 1;
                    self.source = Some(source);
                    return Ok(Some(partition));
                }
                Ok(None) => {
                    self.job.saw_end();
                    return Ok(None);
                }
                Err(Lost::Body(BodyError::Failed(failure))) => self.failed(failure).await?,
                Err(lost) => self.broke_off(source.exchange.address(), lost.to_string()).await?,
            }
        }
    }

    /// What the end of its sender means: that of the job, or another try.
    async fn failed(&mut self, failure: Failure) -> Result<()> {
        let job = self.job.id();
        match self.job.status().await?.phase {
            JobPhase::Failed(failure) => Err(Error::JobFailed { job, failure }),
            JobPhase::Cancelled => Err(Error::JobCancelled { job }),
            JobPhase::Running | JobPhase::Succeeded if is_excuse(&failure) && self.patience.pause().await => {
                Ok(())
            }
            JobPhase::Running | JobPhase::Succeeded => Err(Error::Failure(failure)),
        }
    }

    /// Waits before the next try.
    async fn broke_off(&mut self, address: String, reason: String) -> Result<()> {
        tracing::debug!(address, reason, "a result broke off");
        if self.patience.pause().await {
            return Ok(());
        }
        Err(Error::Unreachable { tried: vec![(address, reason)], waited: self.patience.waited() })
    }

    async fn ask(&mut self) -> Result<Source> {
        let request = Request::Partitions { id: self.job.id(), from_partition: self.next };
        let (response, exchange) = self.job.ask_within(&request, &mut self.patience).await?;
        match response {
            Response::Partitions => Ok(Source { exchange, rest: Bytes::new() }),
            other => Err(exchange.unexpected(&other)),
        }
    }
}

impl Source {
    async fn next(&mut self) -> Result<Option<Bytes>, Lost> {
        if self.rest.is_empty() {
            let Some(chunk) = self.exchange.next_chunk().await? else { return Ok(None) };
            self.rest = chunk;
        }
        let length = self.take(HEAD_BYTES).await?.get_u64();
        let Ok(length) = usize::try_from(length) else {
            return Err(BodyError::Malformed(format!("a partition of {length} bytes")).into());
        };
        Ok(Some(self.take(length).await?))
    }

    /// The next bytes, so many.
    async fn take(&mut self, length: usize) -> Result<Bytes, Lost> {
        if length <= self.rest.len() {
            return Ok(self.rest.split_to(length));
        }
        let mut taken = BytesMut::with_capacity(length.min(MAX_PREALLOCATED_BYTES));
        loop {
            let wanted = (length - taken.len()).min(self.rest.len());
            taken.extend_from_slice(&self.rest.split_to(wanted));
            if taken.len() == length {
                return Ok(taken.freeze());
            }
            let ended = || BodyError::Malformed("it ended within a partition".to_owned());
            self.rest = self.exchange.next_chunk().await?.ok_or_else(ended)?;
        }
    }
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
