//! A job's result as a stream of Arrow record batches.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use arrow_array::RecordBatch;
use arrow_ipc::reader::StreamDecoder;
use arrow_schema::{ArrowError, Schema, SchemaRef};
use bytes::Bytes;
use floe_protocol::Summary;
use futures::Stream;
use futures::stream::BoxStream;

use crate::error::{Error, Result};
use crate::fetch::Fetch;
use crate::ipc::Piece;
use crate::job::Job;
use crate::schema::{Column, difference};

/// How a partition ends; it makes the decoder give out a last batch that has no body.
const END_OF_STREAM: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// A job's result, made by [`Job::stream`]: its batches in the query's order. It goes on through another node,
/// where it was, when the one it comes from is lost.
pub struct ResultStream {
    schema: SchemaRef,
    partitions: Vec<Summary>,
    batches: BoxStream<'static, Result<RecordBatch>>,
}

impl ResultStream {
    pub(crate) async fn open(job: Job) -> Result<Self> {
        let mut fetch = Fetch::open(job).await?;
        let mut batches = Batches::default();
        let schema = if fetch.schema().is_empty() {
            batches.first_schema(&mut fetch).await?
        } else {
            decode_schema(fetch.schema())
                .map_err(|error| fetch.malformed(format!("the result's schema: {error}")))?
        };
        let partitions = fetch.partitions().to_vec();
        let state = (fetch, batches);
        let batches = futures::stream::try_unfold(state, |(mut fetch, mut batches)| async move {
            loop {
                if let Some(batch) = batches.ready.pop_front() {
                    return Ok(Some((batch, (fetch, batches))));
                }
                let partition = fetch.partition();
                let Some(piece) = fetch.next().await? else {
                    return Ok(None);
                };
                batches.check(partition, &piece, &fetch)?;
                batches.take(piece).map_err(|error| fetch.malformed(error))?;
            }
        });
        Ok(Self { schema, partitions, batches: Box::pin(batches) })
    }

    /// The columns, known before the first batch and without one.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// How many rows the whole result has.
    pub fn rows(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.rows).sum()
    }

    /// How many bytes the whole result has as it is sent.
    pub fn bytes(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.bytes).sum()
    }
}

impl Stream for ResultStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.as_mut().poll_next(context)
    }
}

impl std::fmt::Debug for ResultStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResultStream").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// Decodes pieces to batches.
#[derive(Default)]
struct Batches {
    decoder: StreamDecoder,
    ready: VecDeque<RecordBatch>,
    /// The columns of the first partition, if the others may have other ones.
    first: Option<Vec<Column>>,
}

impl Batches {
    /// The schema of the first partition, which all others must share.
    async fn first_schema(&mut self, fetch: &mut Fetch) -> Result<SchemaRef> {
        let Some(piece) = fetch.next().await? else {
            return Ok(SchemaRef::new(Schema::empty()));
        };
        let schema = match &piece {
            Piece::Schema(message) => schema_in(message).map_err(|error| fetch.malformed(error))?,
            _ => return Err(fetch.malformed("partition 0 does not begin with its schema")),
        };
        self.first = Some(columns(&schema));
        self.take(piece).map_err(|error| fetch.malformed(error))?;
        Ok(schema)
    }

    /// Refuses a partition that does not fit the first one.
    fn check(&self, partition: u32, piece: &Piece, fetch: &Fetch) -> Result<()> {
        let (Some(first), Piece::Schema(message)) = (&self.first, piece) else {
            return Ok(());
        };
        let other = schema_in(message).map_err(|error| fetch.malformed(error))?;
        match difference(first, partition, &columns(&other)) {
            Some(difference) => Err(Error::PartitionsDiffer { partition, difference }),
            None => Ok(()),
        }
    }

    fn take(&mut self, piece: Piece) -> Result<(), ArrowError> {
        match piece {
            Piece::Schema(message) => {
                self.decoder = StreamDecoder::new();
                self.feed(message)
            }
            Piece::Dictionary { message, .. } | Piece::Batch { message, .. } => self.feed(message),
            Piece::End => self.feed(Bytes::from_static(&END_OF_STREAM)),
        }
    }

    fn feed(&mut self, message: Bytes) -> Result<(), ArrowError> {
        let mut buffer = message.into();
        while let Some(batch) = self.decoder.decode(&mut buffer)? {
            self.ready.push_back(batch);
        }
        Ok(())
    }
}

fn columns(schema: &Schema) -> Vec<Column> {
    schema.fields().iter().map(|field| (field.name().clone(), field.data_type().to_string())).collect()
}

/// The schema in a message of its own, which the decoder takes to be whole once something follows it.
fn schema_in(message: &Bytes) -> Result<SchemaRef, ArrowError> {
    decode_schema(&[message, END_OF_STREAM.as_slice()].concat().into())
}

fn decode_schema(bytes: &Bytes) -> Result<SchemaRef, ArrowError> {
    let mut decoder = StreamDecoder::new();
    decoder.decode(&mut bytes.clone().into())?;
    decoder.schema().ok_or_else(|| ArrowError::IpcError("there is none".into()))
}
