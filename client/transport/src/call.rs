//! Calls: on a [`crate::CALL`] stream goes one request frame, perhaps a body, then response frames, perhaps a body.
//!
//! After a call that has no body after its answer another may follow on its stream, which both ends keep for a while
//! (`substreams.rs`).
//!
//! Frames are read exactly, never beyond their end: what follows on the stream is the next reader's.

use std::io;
use std::time::Duration;

use floe_protocol::frame::{self, FrameError};
use floe_protocol::{Request, Response};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::substreams::OpenError;

/// How much of a frame is made room for before its bytes arrive: a header alone must not cost its sender's
/// claim.
const READ_STEP_BYTES: usize = 64 << 10;

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No stream to the other side.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A frame that is too long or cannot be read.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The other side closed the stream where a frame was due.
    #[error("the other side ended the call without an answer")]
    Ended,
    /// The connection broke.
    #[error("the connection broke during a call: {0}")]
    Io(#[from] io::Error),
    /// No answer in time.
    #[error("no answer within {} s", waited.as_secs_f32())]
    Timeout {
        /// How long it was waited for.
        waited: Duration,
    },
}

impl CallError {
    /// Whether the stream ended before an answer, as one does that was kept for too long.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Ended | Self::Io(_))
    }

    /// Whether the other side broke the protocol, rather than the connection it.
    pub fn is_garbage(&self) -> bool {
        matches!(self, Self::Frame(_))
    }
}

/// Writes one frame and flushes it.
pub async fn write_frame<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    value: &T,
) -> Result<(), CallError> {
    let frame = frame::encode_frame(value)?;
    stream.write_all(&frame).await?;
    stream.flush().await?;
    Ok(())
}

/// Reads one frame. [`CallError::Ended`] if the stream ends before it, which may be what was wanted.
pub async fn read_frame<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> Result<T, CallError> {
    let mut header = [0; 4];
    let mut have = 0;
    while have < header.len() {
        match stream.read(&mut header[have..]).await? {
            0 if have == 0 => return Err(CallError::Ended),
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            more => have += more,
        }
    }
    let length = frame::decode_length(header)?;
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let start = bytes.len();
        bytes.resize(length.min(start + READ_STEP_BYTES), 0);
        stream.read_exact(&mut bytes[start..]).await?;
    }
    Ok(frame::decode(&bytes)?)
}

/// Asks and waits for the first response, within `timeout`.
pub async fn call(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &Request,
    timeout: Duration,
) -> Result<Response, CallError> {
    let work = async {
        write_frame(stream, request).await?;
        read_frame(stream).await
    };
    tokio::time::timeout(timeout, work).await.unwrap_or(Err(CallError::Timeout { waited: timeout }))
}

/// Writes the last response and closes our half of the stream.
pub async fn respond(stream: &mut (impl AsyncWrite + Unpin), response: &Response) -> Result<(), CallError> {
    write_frame(stream, response).await?;
    stream.close().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use floe_protocol::JobId;
    use floe_protocol::frame::MAX_FRAME_BYTES;
    use futures::io::Cursor;

    #[tokio::test]
    async fn frames_are_read_exactly() {
        let mut wire = Cursor::new(Vec::new());
        for id in [1, 2] {
            write_frame(&mut wire, &Request::Job { id: JobId(id) }).await.unwrap();
        }
        wire.write_all(b"rest").await.unwrap();
        wire.set_position(0);
        for id in [1, 2] {
            let request: Request = read_frame(&mut wire).await.unwrap();
            assert_eq!(request, Request::Job { id: JobId(id) });
        }
        let mut rest = Vec::new();
        wire.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"rest");
    }

    #[tokio::test]
    async fn garbage_and_oversized_frames_are_told_from_broken_connections() {
        async fn read(bytes: &[u8]) -> CallError {
            read_frame::<Request>(&mut Cursor::new(bytes)).await.unwrap_err()
        }
        let oversized = (MAX_FRAME_BYTES as u32 + 1).to_be_bytes();
        assert!(matches!(read(&oversized).await, CallError::Frame(FrameError::TooLong { .. })));
        assert!(matches!(read(&[0, 0, 0, 1, 0xff]).await, CallError::Frame(FrameError::Malformed(_))));
        assert!(matches!(read(&[]).await, CallError::Ended));
        assert!(matches!(read(&[0, 0]).await, CallError::Io(_)));
        // A header that claims 16 MiB and brings nothing.
        assert!(matches!(read(&(MAX_FRAME_BYTES as u32).to_be_bytes()).await, CallError::Io(_)));
    }
}
