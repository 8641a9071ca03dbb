//! A session's frames on a stream: written as they come, several at once where several wait.

use floe_protocol::frame;
use floe_protocol::session::{CallFrame, ResultFrame};
use floe_transport::call::read_frame;
use futures::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::Stream;
use serde::Serialize;
use tokio::sync::mpsc;

/// How many frames wait between a stream and whoever handles them.
pub(super) const FRAMES: usize = 64;

/// How many bytes of waiting frames are written together.
const MAX_WRITTEN_BYTES: usize = 256 << 10;

/// Hands the stream's call frames to a seat and the seat's results to the stream, until either ends.
pub(super) async fn serve(
    stream: Stream,
    calls: mpsc::Sender<CallFrame>,
    results: mpsc::Receiver<ResultFrame>,
) {
    let (mut reader, writer) = stream.split();
    let read = async {
        while let Ok(frame) = read_frame(&mut reader).await {
            if calls.send(frame).await.is_err() {
                break;
            }
        }
    };
    // Both at once: a stream on which one side only writes stands still when the other does the same.
    tokio::select! {
        () = read => {}
        () = write(writer, results) => {}
    }
}

/// Writes frames until there are no more or the stream takes none.
pub(super) async fn write<T: Serialize>(mut writer: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<T>) {
    let mut bytes = Vec::new();
    while let Some(first) = frames.recv().await {
        let mut next = Some(first);
        bytes.clear();
        while let Some(frame) = next {
            match frame::encode_frame(&frame) {
                Ok(encoded) => bytes.extend_from_slice(&encoded),
                Err(error) => {
                    tracing::error!(%error, "a session's frame cannot be written: the session breaks off");
                    return;
                }
            }
            next = if bytes.len() < MAX_WRITTEN_BYTES { frames.try_recv().ok() } else { None };
        }
        let written = async {
            writer.write_all(&bytes).await?;
            writer.flush().await
        };
        if written.await.is_err() {
            return;
        }
    }
    // The other side sees an end rather than a break.
    let _ = writer.close().await;
}
