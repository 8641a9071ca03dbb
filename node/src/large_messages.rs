//! Messages between nodes that no frame holds, snapshots of a large state above all: each as a bulk body of a call of its
//! own, so that what nodes have to say meanwhile does not wait behind it.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use floe_protocol::frame::MAX_FRAME_BYTES;
use floe_protocol::{Era, Failure, Incarnation, NodeId, PeerMessage, Request, Response};
use floe_transport::call::{read_frame, write_frame};
use floe_transport::stream::{Body, send_body};
use futures::{AsyncRead, AsyncWrite, StreamExt, stream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::mailbox::{Ask, Mailbox};
use crate::stream::chunks_of;

/// Longer ones travel as calls of their own. What else a frame says of a message is short.
const LARGE_BYTES: usize = MAX_FRAME_BYTES / 16;

/// The longest message that a node takes: a snapshot of a state as full as it can be is less than half of it.
const MAX_MESSAGE_BYTES: u64 = 256 << 20;

/// How many of them a node takes in at once: each is in its memory as a whole.
const MAX_RECEIVED: usize = 1;

/// How long the other side may take to say that it has taken one in.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Takes in large messages. Cheap to clone; clones are one.
#[derive(Clone, Debug)]
pub struct LargeMessages(Arc<Semaphore>);

impl Default for LargeMessages {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_RECEIVED)))
    }
}

/// Whether a message travels as a call of its own.
pub fn is_large(message: &PeerMessage) -> bool {
    matches!(message, PeerMessage::Raft { message, .. } if message.len() > LARGE_BYTES)
}

/// Sends a large message in the background. If that fails, the loop is told.
pub fn send(mailbox: Mailbox, to: NodeId, message: PeerMessage) {
    tokio::spawn(async move {
        if let Err(failure) = deliver(&mailbox, to, &message).await {
            tracing::info!(node = %to, %failure, "a snapshot did not arrive");
            mailbox.tell(Ask::NotSent(to, message)).await;
        }
    });
}

async fn deliver(mailbox: &Mailbox, to: NodeId, message: &PeerMessage) -> Result<(), Failure> {
    let PeerMessage::Raft { era, incarnation, message } = message else {
        return Err(Failure::internal("only messages of raft-rs are large"));
    };
    let request = Request::Raft { era: *era, incarnation: incarnation.clone(), bytes: message.len() as u64 };
    let mut stream = mailbox.network().open(to).await.map_err(Failure::internal)?;
    write_frame(&mut stream, &request).await.map_err(Failure::internal)?;
    // A peer that takes nothing for long ends it.
    send_body(&mut stream, stream::iter(chunks_of(message.clone()).map(Ok)))
        .await
        .map_err(Failure::internal)?;
    let answer = timeout(ANSWER_TIMEOUT, read_frame(&mut stream)).await.map_err(Failure::internal)?;
    match answer.map_err(Failure::internal)? {
        Response::Done => Ok(()),
        Response::Failed(failure) => Err(failure),
        other => Err(Failure::internal(format!("node {to} answered a message with {other:?}"))),
    }
}

impl LargeMessages {
    /// Answers [`Request::Raft`].
    pub async fn receive<S>(
        &self,
        mailbox: &Mailbox,
        from: NodeId,
        stream: &mut S,
        (era, incarnation): (Era, Incarnation),
        bytes: u64,
    ) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut body = Body::new(stream);
        let read = async {
            if bytes > MAX_MESSAGE_BYTES {
                let message =
                    format!("a message of {bytes} bytes is too long: the limit is {MAX_MESSAGE_BYTES}");
                return Err(Failure::Refused { message });
            }
            // Its sender waits meanwhile, as it does for a slow link.
            let _turn = self.0.acquire().await.map_err(Failure::internal)?;
            let mut message = BytesMut::new();
            while let Some(piece) = body.next().await {
                let piece = piece.map_err(Failure::internal)?;
                if message.len() as u64 + piece.len() as u64 > bytes {
                    return Err(Failure::Refused { message: "a message is longer than it said".to_owned() });
                }
                message.extend_from_slice(&piece);
            }
            if message.len() as u64 != bytes {
                return Err(Failure::Refused { message: "a message is shorter than it said".to_owned() });
            }
            let message = PeerMessage::Raft { era, incarnation, message: message.freeze() };
            mailbox.tell(Ask::Message(from, message)).await;
            Ok(())
        };
        let outcome = read.await;
        if let Err(failure) = &outcome {
            body.refuse(failure).await;
        }
        outcome
    }
}
