//! One-way messages between nodes: one long-lived stream a direction, opened again when it is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use floe_protocol::{NodeId, PeerMessage};
use floe_transport::{CONTROL, CallError, Opener, Stream, read_frame};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::PeerId;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::Event;

/// How many messages to one node may wait.
const MAX_QUEUED: usize = 1024;

/// How many bytes of messages to one node may wait.
const MAX_QUEUED_BYTES: usize = 64 << 20;

/// How many messages are written before they are flushed.
const BATCH: usize = 64;

/// The wait before a lost stream is opened again; it doubles with each failure up to [`MAX_BACKOFF`]. A lost
/// connection ends the writer, so this is for peers that are busy.
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// The queue to one node, and the task that empties it.
pub(crate) struct Outgoing {
    queue: mpsc::Sender<Vec<u8>>,
    queued_bytes: Arc<AtomicUsize>,
    writer: AbortOnDropHandle<()>,
}

impl Outgoing {
    pub(crate) fn new(opener: Opener, peer: PeerId) -> Self {
        let (queue, frames) = mpsc::channel(MAX_QUEUED);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let writer = tokio::spawn(write(opener, peer, frames, queued_bytes.clone()));
        Self { queue, queued_bytes, writer: AbortOnDropHandle::new(writer) }
    }

    /// Queues a frame. False if there is no room for it.
    pub(crate) fn send(&self, frame: Vec<u8>) -> bool {
        let bytes = frame.len();
        let queued_bytes = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let taken = queued_bytes <= MAX_QUEUED_BYTES && self.queue.try_send(frame).is_ok();
        if !taken {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        taken
    }

    /// Lets the writer finish what is queued, and waits for it.
    pub(crate) async fn finish(self) {
        drop(self.queue);
        let _ = self.writer.await;
    }
}

async fn write(
    opener: Opener,
    peer: PeerId,
    mut frames: mpsc::Receiver<Vec<u8>>,
    queued_bytes: Arc<AtomicUsize>,
) {
    let mut backoff = MIN_BACKOFF;
    loop {
        match opener.open(peer, CONTROL).await {
            Ok(mut stream) => {
                backoff = MIN_BACKOFF;
                match write_to(&mut stream, &mut frames, &queued_bytes).await {
                    Ok(()) => return,
                    Err(error) => tracing::debug!(%peer, %error, "a control stream is lost"),
                }
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "a control stream cannot be opened");
                if frames.is_closed() {
                    return;
                }
            }
        }
        tokio::time::sleep(backoff).await;
        backoff = (2 * backoff).min(MAX_BACKOFF);
    }
}

/// Writes until the queue is closed and empty.
async fn write_to(
    stream: &mut Stream,
    frames: &mut mpsc::Receiver<Vec<u8>>,
    queued_bytes: &AtomicUsize,
) -> std::io::Result<()> {
    let mut batch = Vec::with_capacity(BATCH);
    let mut nothing = [0];
    loop {
        let count = tokio::select! {
            count = frames.recv_many(&mut batch, BATCH) => count,
            // The reader never writes: this is how a stream's end shows before a message is lost on it.
            _ = stream.read(&mut nothing) => return Err(std::io::ErrorKind::ConnectionReset.into()),
        };
        if count == 0 {
            return stream.close().await;
        }
        let bytes = batch.iter().map(Vec::len).sum();
        queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        for frame in batch.drain(..) {
            stream.write_all(&frame).await?;
        }
        stream.flush().await?;
    }
}

/// Reads messages until the stream ends. An error means that what ended it was garbage.
pub(crate) async fn read(
    from: NodeId,
    mut stream: Stream,
    events: mpsc::Sender<Event>,
) -> Result<(), CallError> {
    loop {
        match read_frame::<PeerMessage>(&mut stream).await {
            Ok(message) => {
                // A node that lags holds its peers back, and their queues drop what it would not get to.
                if events.send(Event::Message { from, message }).await.is_err() {
                    return Ok(());
                }
            }
            Err(error) if error.is_garbage() => return Err(error),
            Err(_) => return Ok(()),
        }
    }
}
