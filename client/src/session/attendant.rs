//! Attends a session's stream: sends what the ledger has, takes what comes, goes on through another node when the
//! stream breaks.
//!
//! ```text
//!   open ──> serving ── Close was sent, or the mesh ended it ──> over
//!             │   ▲
//!       broke │   │ defined and sent again
//!             ▼   │
//!           opening ── refused, or no patience left ──> over: all that is left fails
//! ```

use std::sync::Arc;
use std::time::Duration;

use floe_protocol::message::{Request, Response};
use floe_protocol::session::{CallFrame, ResultFrame};
use floe_protocol::{Failure, frame};
use floe_transport::{CallError, read_frame};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Desk;
use super::ledger::Awaited;
use crate::error::{Error, Result};
use crate::link::{Exchange, is_excuse};
use crate::mesh::Mesh;
use crate::patience::Patience;

/// How much is encoded before it is written.
const WRITE_BYTES: usize = 256 << 10;

/// How long a stream must have stood, if no result came on it, for its end to be a new misfortune rather than the
/// same one.
const STEADY: Duration = Duration::from_secs(5);

/// How long the node may take to end the stream after it was told that the session is over.
const FAREWELL: Duration = Duration::from_secs(2);

/// How many large results are fetched at once.
const FETCHES_AT_ONCE: usize = 4;

/// Why a stream is not served any more.
enum Gone {
    /// This side closed the session.
    Closed,
    /// The mesh ended it.
    Ended(Failure),
    /// It broke.
    Broken(String),
}

/// The results that are being fetched.
struct Fetches {
    tasks: JoinSet<()>,
    places: Arc<Semaphore>,
}

/// Opens the session, or goes on with it, through any node.
pub(super) async fn open(mesh: &Mesh, desk: &Desk, patience: &mut Patience) -> Result<Exchange> {
    let request = Request::Session { id: desk.session, label: desk.label.clone() };
    let (answer, exchange) = mesh.link().ask(&request, &[], patience).await?;
    match answer {
        Response::Accepted { id } if id == desk.session => Ok(exchange),
        other => Err(exchange.unexpected(&other)),
    }
}

/// Attends the session until it is over.
pub(super) async fn attend(desk: Arc<Desk>, mesh: Mesh, first: Exchange) {
    let failure = match go_on(&desk, &mesh, first).await {
        Gone::Closed => Failure::Cancelled,
        Gone::Ended(failure) => failure,
        Gone::Broken(message) => Failure::Unavailable { message },
    };
    tracing::debug!(session = %desk.session, %failure, "a session is over");
    desk.ledger().fail(failure);
    desk.tell();
}

async fn go_on(desk: &Arc<Desk>, mesh: &Mesh, first: Exchange) -> Gone {
    let mut fetches = Fetches { tasks: JoinSet::new(), places: Arc::new(Semaphore::new(FETCHES_AT_ONCE)) };
    let mut patience = mesh.link().patience();
    let mut exchange = first;
    loop {
        let since = Instant::now();
        let reason = match serve(desk, mesh, exchange, &mut fetches).await {
            Gone::Broken(reason) => reason,
            over => return over,
        };
        tracing::debug!(session = %desk.session, reason, "a session's stream broke");
        if desk.ledger().is_closing() {
            return Gone::Closed;
        }
        if desk.ledger().heard() || since.elapsed() >= STEADY {
            patience.renew();
        }
        let again = async {
            if patience.pause().await { open(mesh, desk, &mut patience).await.map(Some) } else { Ok(None) }
        };
        let opened = tokio::select! {
            opened = again => opened,
            () = desk.closing() => return Gone::Closed,
        };
        exchange = match opened {
            Ok(Some(exchange)) => exchange,
            Ok(None) => return Gone::Broken(format!("the session broke off again and again: {reason}")),
            Err(Error::Failure(failure)) if !is_excuse(&failure) => return Gone::Ended(failure),
            Err(error) => return Gone::Broken(error.to_string()),
        };
    }
}

/// Serves one stream.
async fn serve(desk: &Arc<Desk>, mesh: &Mesh, exchange: Exchange, fetches: &mut Fetches) -> Gone {
    let Some((stream, _connection)) = exchange.into_stream() else {
        return Gone::Broken("the node sends a body where a session's frames should be".to_owned());
    };
    desk.ledger().reconnected();
    // Both ends may have much to say at once: reading never waits for writing.
    let (reader, writer) = stream.split();
    let reading = read(desk, mesh, reader, fetches);
    let writing = write(desk, writer);
    tokio::pin!(reading, writing);
    tokio::select! {
        gone = &mut reading => gone,
        written = &mut writing => match written {
            Ok(()) => {
                // The node ends the stream when it has read the good-bye; going before that might lose it.
                let _ = tokio::time::timeout(FAREWELL, reading).await;
                Gone::Closed
            }
            Err(error) => Gone::Broken(error.to_string()),
        },
    }
}

/// Writes what the ledger has to send, as soon as it has. Returns when the good-bye was written.
async fn write(desk: &Desk, mut writer: impl AsyncWrite + Unpin) -> Result<(), CallError> {
    let mut buffer = Vec::new();
    loop {
        let mut closes = false;
        while buffer.len() < WRITE_BYTES && !closes {
            // The ledger is free again while its frame is encoded.
            let next = desk.ledger().next_frame();
            let Some(next) = next else { break };
            closes = next == CallFrame::Close;
            let encoded = frame::encode_frame(&next)?;
            if buffer.is_empty() {
                buffer = encoded;
            } else {
                buffer.extend_from_slice(&encoded);
            }
        }
        if buffer.is_empty() {
            desk.work.notified().await;
            continue;
        }
        writer.write_all(&buffer).await?;
        writer.flush().await?;
        buffer.clear();
        if closes {
            writer.close().await?;
            return Ok(());
        }
    }
}

/// Reads results until there are no more.
async fn read(
    desk: &Arc<Desk>,
    mesh: &Mesh,
    mut reader: impl AsyncRead + Unpin,
    fetches: &mut Fetches,
) -> Gone {
    loop {
        match read_frame(&mut reader).await {
            Ok(ResultFrame::Results { node, results }) => {
                let (awaited, queued) = {
                    let mut ledger = desk.ledger();
                    (ledger.resolve(node, results), ledger.has_queued())
                };
                desk.tell();
                if queued {
                    desk.work.notify_one();
                }
                for awaited in awaited {
                    fetches.begin(desk.clone(), mesh.clone(), awaited);
                }
            }
            // Between nodes only.
            Ok(ResultFrame::GivenBack { .. }) => {}
            Ok(ResultFrame::Ended(failure)) if is_excuse(&failure) => {
                return Gone::Broken(failure.to_string());
            }
            Ok(ResultFrame::Ended(failure)) => return Gone::Ended(failure),
            Err(error) => return Gone::Broken(error.to_string()),
        }
    }
}

impl Fetches {
    /// Fetches a large result in the background. There are no more of these than calls are sent.
    fn begin(&mut self, desk: Arc<Desk>, mesh: Mesh, awaited: Awaited) {
        while self.tasks.try_join_next().is_some() {}
        let places = self.places.clone();
        self.tasks.spawn(async move {
            let _place = places.acquire_owned().await;
            let fetched = mesh.get(awaited.blob).await.map_err(failure_of);
            desk.ledger().fetched(awaited, fetched);
            desk.tell();
            desk.work.notify_one();
        });
    }
}

impl Desk {
    /// Waits until this side closes the session.
    async fn closing(&self) {
        while !self.ledger().is_closing() {
            self.work.notified().await;
        }
    }
}

fn failure_of(error: Error) -> Failure {
    match error {
        Error::Failure(failure) | Error::Unavailable { failure, .. } => failure,
        other => Failure::Unavailable { message: other.to_string() },
    }
}
