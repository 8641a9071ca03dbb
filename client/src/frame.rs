//! Polars on both ends: lazy frames in, data frames out. Only with the feature `polars`.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use floe_protocol::{JobKind, JobSpec, Query, Summary};
use futures::stream::BoxStream;
use futures::{Stream, TryStreamExt};
use polars::prelude::{DataFrame, IpcStreamReader, LazyFrame, PolarsResult, Schema, SerReader};

use crate::error::{Error, Result};
use crate::fetch::Fetch;
use crate::ipc::Piece;
use crate::job::Job;
use crate::mesh::Mesh;
use crate::query::working_directory;
use crate::schema::{Column, difference};

/// What `floe jobs` shows of a job that came as a plan.
const PLAN_LABEL: &str = "a Polars plan";

/// How many times a result is read whole: each time after the first means that a node was lost meanwhile.
const MAX_READS: usize = 3;

impl Mesh {
    /// Runs a lazy frame on the mesh and collects its result. The frame must not have been collected before:
    /// nothing of it runs here.
    ///
    /// ```no_run
    /// # async fn example(mesh: floe_client::Mesh) -> floe_client::Result<()> {
    /// use polars::prelude::*;
    ///
    /// let flights = LazyFrame::scan_parquet(PlRefPath::new("flights.parquet"), Default::default())?;
    /// let delays = mesh
    ///     .collect(flights.group_by([col("carrier")]).agg([col("arr_delay").mean()]))
    ///     .await?;
    /// println!("{delays}");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn collect(&self, frame: LazyFrame) -> Result<DataFrame> {
        let job = self.submit_lazy(frame).await?;
        let collected = job.collect().await;
        // The result has been read, or never will be: nobody else knows this job's id.
        if let Err(error) = job.release().await {
            tracing::debug!(job = %job.id(), %error, "the job could not be released");
        }
        collected
    }

    /// Submits a lazy frame without waiting for it. Frames in memory that it reads travel with it.
    pub async fn submit_lazy(&self, frame: LazyFrame) -> Result<Job> {
        self.submit(lazy_spec(&frame)?).await
    }
}

/// A lazy frame as a job, for [`Mesh::submit`] and [`Mesh::explain`].
pub fn lazy_spec(frame: &LazyFrame) -> Result<JobSpec> {
    let dsl = floe_plan::encode(frame)?;
    let query = Query::Plan { dsl: dsl.into(), directory: working_directory()?, schema: Bytes::new() };
    Ok(JobSpec { label: PLAN_LABEL.to_owned(), kind: JobKind::Query(query) })
}

impl Job {
    /// Waits until it succeeded, and collects its whole result into memory. A result that is made anew while it
    /// is read is read again from its start. Partitions that a function returned must have the same columns:
    /// otherwise it is [`Error::PartitionsDiffer`], which says what differs.
    pub async fn collect(&self) -> Result<DataFrame> {
        for _ in 1..MAX_READS {
            match self.read_whole().await {
                Err(Error::ResultChanged { .. }) => {}
                whole => return whole,
            }
        }
        self.read_whole().await
    }

    async fn read_whole(&self) -> Result<DataFrame> {
        let mut frames = self.frames().await?;
        let mut whole = frames.empty.clone();
        while let Some(frame) = frames.try_next().await? {
            whole.vstack_mut_owned(frame)?;
        }
        Ok(whole)
    }

    /// Waits until it succeeded, then streams its result as one Polars frame a batch, like [`Job::stream`].
    pub async fn frames(&self) -> Result<FrameStream> {
        self.succeeded().await?;
        FrameStream::open(self.clone()).await
    }
}

/// A job's result, made by [`Job::frames`]: its batches in the query's order, each a frame.
pub struct FrameStream {
    empty: DataFrame,
    partitions: Vec<Summary>,
    frames: BoxStream<'static, Result<DataFrame>>,
}

impl FrameStream {
    async fn open(job: Job) -> Result<Self> {
        let mut fetch = Fetch::open(job).await?;
        let mut frames = Frames::default();
        let empty = if fetch.schema().is_empty() {
            frames.first_schema(&mut fetch).await?
        } else {
            read(&[fetch.schema()])
                .map_err(|error| fetch.malformed(format!("the result's schema: {error}")))?
        };
        let partitions = fetch.partitions().to_vec();
        let state = (fetch, frames);
        let frames = futures::stream::try_unfold(state, |(mut fetch, mut frames)| async move {
            loop {
                let partition = fetch.partition();
                let Some(piece) = fetch.next().await? else {
                    return Ok(None);
                };
                frames.check(partition, &piece, &fetch)?;
                if let Some(frame) = frames.take(piece).map_err(|error| fetch.malformed(error))? {
                    return Ok(Some((frame, (fetch, frames))));
                }
            }
        });
        Ok(Self { empty, partitions, frames: Box::pin(frames) })
    }

    /// The columns, known before the first batch and without one.
    pub fn schema(&self) -> Arc<Schema> {
        self.empty.schema().clone()
    }

    /// How many rows the whole result has.
    pub fn rows(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.rows).sum()
    }
}

impl Stream for FrameStream {
    type Item = Result<DataFrame>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.frames.as_mut().poll_next(context)
    }
}

impl std::fmt::Debug for FrameStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameStream").field("schema", self.empty.schema()).finish_non_exhaustive()
    }
}

/// Decodes pieces to frames. Polars reads whole IPC streams only, so each batch is made one again, with the
/// schema and the dictionaries that came before it.
#[derive(Default)]
struct Frames {
    schema: Bytes,
    dictionaries: BTreeMap<i64, Vec<Bytes>>,
    /// The columns of the first partition, if the others may have other ones.
    first: Option<Vec<Column>>,
}

impl Frames {
    /// The schema of the first partition, which all others must share.
    async fn first_schema(&mut self, fetch: &mut Fetch) -> Result<DataFrame> {
        let Some(piece) = fetch.next().await? else {
            return Ok(DataFrame::empty());
        };
        self.take(piece).map_err(|error| fetch.malformed(error))?;
        let empty = read(&[&self.schema]).map_err(|error| fetch.malformed(error))?;
        self.first = Some(columns(&empty));
        Ok(empty)
    }

    /// Refuses a partition that does not fit the first one.
    fn check(&self, partition: u32, piece: &Piece, fetch: &Fetch) -> Result<()> {
        let (Some(first), Piece::Schema(message)) = (&self.first, piece) else {
            return Ok(());
        };
        let other = read(&[message]).map_err(|error| fetch.malformed(error))?;
        match difference(first, partition, &columns(&other)) {
            Some(difference) => Err(Error::PartitionsDiffer { partition, difference }),
            None => Ok(()),
        }
    }

    fn take(&mut self, piece: Piece) -> PolarsResult<Option<DataFrame>> {
        match piece {
            Piece::Schema(message) => {
                self.schema = message;
                self.dictionaries.clear();
            }
            Piece::Dictionary { message, id, is_delta } => {
                let parts = self.dictionaries.entry(id).or_default();
                if !is_delta {
                    parts.clear();
                }
                parts.push(message);
            }
            Piece::Batch { message, .. } => {
                let dictionaries = self.dictionaries.values().flatten();
                let messages: Vec<_> =
                    [&self.schema].into_iter().chain(dictionaries).chain([&message]).collect();
                return read(&messages).map(Some);
            }
            Piece::End => {}
        }
        Ok(None)
    }
}

fn columns(frame: &DataFrame) -> Vec<Column> {
    frame.schema().iter().map(|(name, kind)| (name.to_string(), kind.to_string())).collect()
}

/// Reads messages as one IPC stream.
fn read(messages: &[&Bytes]) -> PolarsResult<DataFrame> {
    let length = messages.iter().map(|message| message.len()).sum();
    let mut stream = Vec::with_capacity(length);
    for message in messages {
        stream.extend_from_slice(message);
    }
    IpcStreamReader::new(Cursor::new(stream)).set_rechunk(false).finish()
}
