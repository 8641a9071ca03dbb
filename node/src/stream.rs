//! Partitions on their way: from this node's store and from the peers that hold them.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use floe_network::Network;
use floe_protocol::message::Segment;
use floe_protocol::{Failure, NodeId, OutputMeta, Request, Response, TaskId};
use floe_transport::call::{read_frame, write_frame};
use floe_transport::files::read_checked;
use floe_transport::stream::{Body, send_body};
use futures::future::BoxFuture;
use futures::{TryStreamExt, stream};
use libp2p::Stream;
use tokio::time::{sleep, timeout};

use crate::store::{Pieces, Store};
use crate::worker::Inputs;

/// How long a holder may take to begin answering; the body then has its own stall timeout.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a holder that is busy is left alone; each further time twice as long, up to the longest. Whoever does not need
/// the partition any more stops waiting.
const FIRST_BUSY_WAIT: Duration = Duration::from_millis(50);
const LONGEST_BUSY_WAIT: Duration = Duration::from_secs(1);

/// The largest chunk handed to a bulk stream at once.
const CHUNK_BYTES: usize = 256 << 10;

/// A partition's Arrow IPC files, in this node's store or on their way here.
pub struct Found {
    node: NodeId,
    partition: TaskId,
    /// The XXH3-64 of each file and its length.
    segments: Vec<(u64, u64)>,
    source: Source,
}

enum Source {
    Here(Vec<Bytes>),
    Peer(Box<Body<Stream>>),
}

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
        let mut failure = self.lost(segment);
        for node in self.holders(segment) {
            let read = async { self.find_at(node, segment).await?.read().await };
            match read.await {
                Ok(files) => return Ok(files),
                Err(error) => failure = passed_over(segment, node, &error),
            }
        }
        Err(failure)
    }

    /// The same before it has been read, for somebody else.
    pub async fn find(&self, segment: &Segment) -> Result<Found, Failure> {
        let mut failure = self.lost(segment);
        for node in self.holders(segment) {
            match self.find_at(node, segment).await {
                Ok(found) => return Ok(found),
                Err(error) => failure = passed_over(segment, node, &error),
            }
        }
        Err(failure)
    }

    /// What is true of a segment that nobody holds.
    fn lost(&self, segment: &Segment) -> Failure {
        let node = segment.nodes.first().copied().unwrap_or(self.network.node());
        Failure::InputLost { partition: segment.partition, node }
    }

    /// A segment's holders, this node first.
    fn holders(&self, segment: &Segment) -> impl Iterator<Item = NodeId> {
        let here = self.network.node();
        let local_first = segment.nodes.iter().filter(move |node| **node == here);
        let others = segment.nodes.iter().filter(move |node| **node != here);
        local_first.chain(others).copied()
    }

    async fn find_at(&self, node: NodeId, segment: &Segment) -> Result<Found, Failure> {
        if node == self.network.node() {
            return self.find_here(segment.partition, segment.bucket).await;
        }
        let nothing = |_| not_sent(node, segment.partition, &"no answer in time");
        let mut wait = FIRST_BUSY_WAIT;
        loop {
            let begin = self.ask(node, segment.partition, segment.bucket);
            match timeout(FETCH_TIMEOUT, begin).await.map_err(nothing)? {
                // It has not lost the partition.
                Err(Failure::Busy { message, .. }) => {
                    tracing::debug!(partition = %segment.partition, %node, message, "waiting for a busy node");
                }
                answer => return answer,
            }
            sleep(wait).await;
            wait = (wait * 2).min(LONGEST_BUSY_WAIT);
        }
    }

    async fn find_here(&self, partition: TaskId, bucket: Option<u32>) -> Result<Found, Failure> {
        let store = self.store.clone();
        let found = tokio::task::spawn_blocking(move || store.get(partition, bucket));
        let found = found.await.map_err(Failure::internal)??;
        let segments = found.iter().map(|segment| (segment.checksum, segment.bytes.len() as u64)).collect();
        let files = found.into_iter().map(|segment| segment.bytes).collect();
        Ok(Found { node: self.network.node(), partition, segments, source: Source::Here(files) })
    }

    async fn ask(&self, node: NodeId, partition: TaskId, bucket: Option<u32>) -> Result<Found, Failure> {
        let unreachable = |error: &dyn Display| not_sent(node, partition, error);
        let mut stream = self.network.open(node).await.map_err(|error| unreachable(&error))?;
        let request = Request::Fetch { partition, bucket };
        write_frame(&mut stream, &request).await.map_err(|error| unreachable(&error))?;
        match read_frame(&mut stream).await.map_err(|error| unreachable(&error))? {
            Response::Fetching { segments } => {
                let source = Source::Peer(Box::new(Body::new(stream)));
                Ok(Found { node, partition, segments, source })
            }
            Response::Failed(failure) => Err(failure),
            other => Err(Failure::internal(format!("node {node} answered a fetch with {other:?}"))),
        }
    }

    /// Answers [`Request::Fetch`].
    pub async fn serve_fetch(
        &self,
        mut stream: Stream,
        partition: TaskId,
        bucket: Option<u32>,
    ) -> Result<(), Failure> {
        match self.find_here(partition, bucket).await {
            Ok(found) => found.send(&mut stream).await,
            Err(failure) => {
                write_frame(&mut stream, &Response::Failed(failure)).await.map_err(Failure::internal)
            }
        }
    }

    /// Gives another node a copy of a partition that this one holds.
    pub async fn copy_to(&self, node: NodeId, partition: TaskId, meta: OutputMeta) -> Result<(), Failure> {
        let store = self.store.clone();
        let pieces = tokio::task::spawn_blocking(move || store.pieces(partition));
        let pieces = pieces.await.map_err(Failure::internal)??;
        let next = |mut pieces: Pieces| async move {
            let read = tokio::task::spawn_blocking(move || pieces.next().map(|piece| (piece, pieces)));
            let Some((piece, pieces)) = read.await.map_err(Failure::internal)? else { return Ok(None) };
            Ok(Some((piece?, pieces)))
        };
        let pieces = Box::pin(stream::try_unfold(pieces, next));
        let request = Request::Put { partition, meta };
        let sent = self.network.upload(node, &request, pieces, FETCH_TIMEOUT).await;
        match sent.map_err(Failure::internal)?.0 {
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

impl Found {
    /// Reads its files, and makes sure that they are what was stored.
    async fn read(self) -> Result<Vec<Bytes>, Failure> {
        match self.source {
            Source::Here(files) => Ok(files),
            Source::Peer(mut body) => read_checked(&mut body, &self.segments)
                .await
                .map_err(|error| not_sent(self.node, self.partition, &error)),
        }
    }

    /// Answers a fetch with it, piece by piece.
    pub async fn send(self, stream: &mut Stream) -> Result<(), Failure> {
        let Self { node, partition, segments, source } = self;
        write_frame(stream, &Response::Fetching { segments }).await.map_err(Failure::internal)?;
        let sent = match source {
            Source::Here(files) => {
                send_body(stream, stream::iter(files.into_iter().flat_map(chunks_of).map(Ok))).await
            }
            Source::Peer(body) => {
                send_body(stream, body.map_err(|error| not_sent(node, partition, &error))).await
            }
        };
        sent.map(drop).map_err(Failure::internal)
    }
}

fn not_sent(node: NodeId, partition: TaskId, error: &dyn Display) -> Failure {
    Failure::Unavailable { message: format!("node {node} does not send partition {partition}: {error}") }
}

/// Says why a holder does not help.
fn passed_over(segment: &Segment, node: NodeId, error: &Failure) -> Failure {
    // Whoever needs it asks again and again.
    tracing::debug!(partition = %segment.partition, %node, %error, "partition not had");
    Failure::InputLost { partition: segment.partition, node }
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
