//! Partitions on their way: served to peers, fetched from them, and relayed to drivers as results.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use floe_network::Network;
use floe_protocol::message::Segment;
use floe_protocol::{Failure, NodeId, OutputMeta, Request, Response, TaskId};
use floe_transport::call::{read_frame, write_frame};
use floe_transport::stream::{Body, BodyError, send_body};
use futures::future::BoxFuture;
use futures::{AsyncRead, AsyncWrite, StreamExt, stream};
use tokio::time::timeout;
use xxhash_rust::xxh3::xxh3_64;

use crate::store::Store;
use crate::worker::Inputs;

/// How long a holder may take to begin answering; the body then has its own stall timeout.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest chunk handed to a bulk stream at once.
const CHUNK_BYTES: usize = 256 << 10;

/// How much room is made for a file on the word of its sender alone. Beyond it the room grows only with bytes that
/// really came.
const MAX_PREALLOCATED_BYTES: usize = 64 << 20;

/// Gets partitions from this node's store or from the peers that hold them.
#[derive(Clone, Debug)]
pub struct Streams {
    network: Network,
    store: Store,
}

impl Streams {
    /// Streams between this store and the peers of this network.
    pub fn new(network: Network, store: Store) -> Arc<Self> {
        Arc::new(Self { network, store })
    }

    /// A segment's Arrow IPC files, from this node if it holds them, else from the first holder that does.
    pub async fn fetch_segment(&self, segment: &Segment) -> Result<Vec<Bytes>, Failure> {
        let mut failure = Failure::InputLost {
            partition: segment.partition,
            node: segment.nodes.first().copied().unwrap_or(self.network.node()),
        };
        let here = self.network.node();
        let local_first = segment.nodes.iter().filter(|n| **n == here);
        let others = segment.nodes.iter().filter(|n| **n != here);
        for node in local_first.chain(others).copied() {
            let found = if node == here {
                self.fetch_local(segment.partition, segment.bucket).await
            } else {
                self.fetch_remote(node, segment.partition, segment.bucket).await
            };
            match found {
                Ok(files) => return Ok(files),
                Err(error) => {
                    tracing::info!(partition = %segment.partition, %node, %error, "partition not had");
                    failure = Failure::InputLost { partition: segment.partition, node };
                }
            }
        }
        Err(failure)
    }

    async fn fetch_local(&self, partition: TaskId, bucket: Option<u32>) -> Result<Vec<Bytes>, Failure> {
        let store = self.store.clone();
        let found = tokio::task::spawn_blocking(move || store.get(partition, bucket))
            .await
            .map_err(Failure::internal)??;
        Ok(found.into_iter().map(|segment| segment.bytes).collect())
    }

    async fn fetch_remote(
        &self,
        node: NodeId,
        partition: TaskId,
        bucket: Option<u32>,
    ) -> Result<Vec<Bytes>, Failure> {
        let unreachable = |error: &dyn std::fmt::Display| Failure::Unavailable {
            message: format!("node {node} does not send partition {partition}: {error}"),
        };
        let begin = async {
            let mut stream = self.network.open(node).await.map_err(|error| unreachable(&error))?;
            write_frame(&mut stream, &Request::Fetch { partition, bucket })
                .await
                .map_err(|error| unreachable(&error))?;
            let response: Response = read_frame(&mut stream).await.map_err(|error| unreachable(&error))?;
            Ok::<_, Failure>((stream, response))
        };
        let (stream, response) =
            timeout(FETCH_TIMEOUT, begin).await.map_err(|_| unreachable(&"no answer in time"))??;
        let segments = match response {
            Response::Fetching { segments } => segments,
            Response::Failed(failure) => return Err(failure),
            other => {
                return Err(Failure::internal(format!("node {node} answered a fetch with {other:?}")));
            }
        };
        let lengths = segments.iter().map(|(_, length)| *length);
        let files = read_files(stream, lengths).await.map_err(|error| unreachable(&error))?;
        let intact = files.iter().zip(&segments).all(|(file, (checksum, _))| xxh3_64(file) == *checksum);
        if intact { Ok(files) } else { Err(unreachable(&"its checksum does not fit")) }
    }

    /// Answers [`Request::Fetch`].
    pub async fn serve_fetch<S>(
        &self,
        mut stream: S,
        partition: TaskId,
        bucket: Option<u32>,
    ) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let store = self.store.clone();
        let found = tokio::task::spawn_blocking(move || store.get(partition, bucket))
            .await
            .map_err(Failure::internal)?;
        let found = match found {
            Ok(found) => found,
            Err(failure) => {
                return write_frame(&mut stream, &Response::Failed(failure)).await.map_err(Failure::internal);
            }
        };
        let segments = found.iter().map(|s| (s.checksum, s.bytes.len() as u64)).collect();
        write_frame(&mut stream, &Response::Fetching { segments }).await.map_err(Failure::internal)?;
        let chunks = found.into_iter().flat_map(|segment| chunks_of(segment.bytes)).map(Ok);
        send_body(&mut stream, stream::iter(chunks)).await.map_err(Failure::internal)?;
        Ok(())
    }

    /// Gives another node a copy of a partition that this one holds.
    pub async fn copy_to(&self, node: NodeId, partition: TaskId, meta: OutputMeta) -> Result<(), Failure> {
        let store = self.store.clone();
        let found = tokio::task::spawn_blocking(move || store.get(partition, None))
            .await
            .map_err(Failure::internal)??;
        let mut stream = self.network.open(node).await.map_err(Failure::internal)?;
        write_frame(&mut stream, &Request::Put { partition, meta }).await.map_err(Failure::internal)?;
        let chunks = found.into_iter().flat_map(|segment| chunks_of(segment.bytes)).map(Ok);
        send_body(&mut stream, stream::iter(chunks)).await.map_err(Failure::internal)?;
        let answer = timeout(FETCH_TIMEOUT, read_frame(&mut stream)).await.map_err(Failure::internal)?;
        match answer.map_err(Failure::internal)? {
            Response::Done => Ok(()),
            Response::Failed(failure) => Err(failure),
            other => Err(Failure::internal(format!("node {node} answered a copy with {other:?}"))),
        }
    }
}

impl Inputs for Streams {
    fn fetch<'a>(&'a self, segment: &'a Segment) -> BoxFuture<'a, Result<Vec<Bytes>, Failure>> {
        Box::pin(self.fetch_segment(segment))
    }
}

/// Why a body did not hold the files it should.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// It broke off.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// Less came than was announced.
    #[error("its stream ended early")]
    Short,
    /// More came than was announced.
    #[error("its stream is longer than it said")]
    Long,
}

/// A body that holds files whose lengths are known, one after the other.
pub struct Files<S> {
    body: Body<S>,
    rest: Bytes,
    ended: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Files<S> {
    /// The files of the body that begins here.
    pub fn new(stream: S) -> Self {
        Self { body: Body::new(stream), rest: Bytes::new(), ended: false }
    }

    /// The next file, of so many bytes.
    pub async fn next(&mut self, length: u64) -> Result<Bytes, FilesError> {
        let room = usize::try_from(length).unwrap_or(MAX_PREALLOCATED_BYTES).min(MAX_PREALLOCATED_BYTES);
        let mut file = BytesMut::with_capacity(room);
        while (file.len() as u64) < length {
            if self.rest.is_empty() {
                self.rest = self.body.next().await.ok_or(FilesError::Short)??;
            }
            let wanted = (length - file.len() as u64).min(self.rest.len() as u64) as usize;
            file.extend_from_slice(&self.rest.split_to(wanted));
        }
        Ok(file.freeze())
    }

    /// The body's end, which this acknowledges.
    pub async fn end(&mut self) -> Result<(), FilesError> {
        self.ended = true;
        match self.body.next().await {
            None if self.rest.is_empty() => Ok(()),
            Some(Err(error)) => Err(error.into()),
            None | Some(Ok(_)) => Err(FilesError::Long),
        }
    }

    /// Takes what is left, up to so many bytes, without looking at it: its sender listens when it has sent all.
    pub async fn pass_over(&mut self, mut limit_bytes: u64) {
        while !self.ended
            && let Some(Ok(piece)) = self.body.next().await
        {
            match limit_bytes.checked_sub(piece.len() as u64) {
                Some(left_bytes) => limit_bytes = left_bytes,
                None => self.ended = true,
            }
        }
    }
}

/// Reads a body that holds files of these lengths, one after the other, to its end.
pub async fn read_files<S>(stream: S, lengths: impl Iterator<Item = u64>) -> Result<Vec<Bytes>, FilesError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut body = Files::new(stream);
    let mut files = Vec::new();
    for length in lengths {
        files.push(body.next(length).await?);
    }
    body.end().await?;
    Ok(files)
}

/// Cuts bytes into chunks without copying them.
pub fn chunks_of(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        Some(bytes.split_to(CHUNK_BYTES.min(bytes.len())))
    })
}
