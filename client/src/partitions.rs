//! A job's result partition by partition, each whole and as it was stored.

use std::pin::Pin;
use std::task::{Context, Poll};

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::StreamReader;
use arrow_schema::{ArrowError, DataType};
use bytes::Bytes;
use floe_protocol::OutputMeta;
use futures::Stream;
use futures::stream::BoxStream;

use crate::error::{Error, Result};
use crate::fetch::Fetch;
use crate::ipc::Piece;
use crate::job::Job;
use crate::result::END_OF_STREAM;

/// The one column of a partition that is no frame but one object, in its one row, as bytes that only the function
/// and its driver understand.
pub const OBJECT_COLUMN: &str = "__floe_object__";

/// A job's result, made by [`Job::partitions`]: each item is one partition, in order, as an Arrow IPC stream with
/// its own schema. It goes on through another node when the one it comes from is lost.
pub struct PartitionStream {
    sizes: Vec<OutputMeta>,
    partitions: BoxStream<'static, Result<Bytes>>,
}

impl PartitionStream {
    pub(crate) async fn open(job: Job) -> Result<Self> {
        let fetch = Fetch::open_whole(job).await?;
        let sizes = fetch.partitions().to_vec();
        let partitions = futures::stream::try_unfold(fetch, |mut fetch| async move {
            let partition = next_whole(&mut fetch).await?;
            Ok::<_, Error>(partition.map(|partition| (partition, fetch)))
        });
        Ok(Self { sizes, partitions: Box::pin(partitions) })
    }

    /// How many partitions the result has.
    pub fn partitions(&self) -> usize {
        self.sizes.len()
    }

    /// How many rows the whole result has.
    pub fn rows(&self) -> u64 {
        self.sizes.iter().map(OutputMeta::rows).sum()
    }

    /// How many bytes the whole result has as it is stored.
    pub fn bytes(&self) -> u64 {
        self.sizes.iter().map(OutputMeta::bytes).sum()
    }
}

impl Stream for PartitionStream {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.partitions.as_mut().poll_next(context)
    }
}

impl std::fmt::Debug for PartitionStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartitionStream").field("partitions", &self.sizes.len()).finish_non_exhaustive()
    }
}

async fn next_whole(fetch: &mut Fetch) -> Result<Option<Bytes>> {
    let mut messages = Vec::new();
    loop {
        match fetch.next().await? {
            // It is the first piece of a partition, also of one that broke off and begins anew.
            Some(Piece::Schema(message)) => messages = vec![message],
            Some(Piece::Dictionary { message, .. } | Piece::Batch { message, .. }) => messages.push(message),
            Some(Piece::End) => {
                messages.push(Bytes::from_static(&END_OF_STREAM));
                return Ok(Some(messages.concat().into()));
            }
            None => return Ok(None),
        }
    }
}

/// The batches of one partition, as [`Job::partitions`] gives it.
///
/// ```no_run
/// # async fn example(job: floe_client::Job) -> Result<(), Box<dyn std::error::Error>> {
/// use futures::TryStreamExt;
///
/// let mut partitions = job.partitions().await?;
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
