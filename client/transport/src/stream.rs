//! Bulk bodies: bytes without a limit in one direction of a stream, for partitions, plans and results.
//!
//! ```text
//!   sender  -> reader    u32 length, bytes | KEEPALIVE | FAILED, u32 length, Failure | END
//!   reader  -> sender    u32 bytes it has taken since the last grant | ACKNOWLEDGED | REFUSED, u32 length, Failure
//! ```
//!
//! A sender may be [`WINDOW_BYTES`] ahead of what the reader has taken. Yamux has windows of its own, but they
//! grow to a gigabyte a connection, and only an acknowledgement of the reader's own says that the bytes arrived.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use floe_protocol::{Failure, frame};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, FutureExt, Stream, StreamExt};
use tokio::time::Sleep;

/// How far a sender may be ahead of its reader: enough for a gigabit over a distant link, little enough for
/// hundreds of bodies at once.
pub const WINDOW_BYTES: usize = 8 << 20;

/// How long a reader waits for a sign of its sender, which sends one every few seconds even if it has no bytes.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a sender waits for a reader that takes nothing: it may be a person at a pager. A reader that is
/// dead, rather than slow, ends with its connection.
pub const SLOW_READER_TIMEOUT: Duration = Duration::from_secs(600);

const PATIENCE: Patience = Patience {
    with_sender: STALL_TIMEOUT,
    with_reader: SLOW_READER_TIMEOUT,
    between_signs: Duration::from_secs(5),
};

/// The most bytes under one header.
const MAX_CHUNK_BYTES: usize = 1 << 20;

/// Pieces up to this size are copied together before they are written.
const SMALL_BYTES: usize = 16 << 10;

/// How much is copied together at most.
const STAGED_BYTES: usize = 128 << 10;

/// What a reader makes room for at a time.
const READ_BYTES: usize = 64 << 10;

/// How much room is made for bytes on the word of their sender alone. Beyond it the room grows only with bytes that
/// really came.
const MAX_PREALLOCATED_BYTES: usize = 64 << 20;

/// The longest failure a reader takes.
const MAX_FAILURE_BYTES: usize = 64 << 10;

const END: u32 = 0;
const KEEPALIVE: u32 = u32::MAX - 1;
const FAILED: u32 = u32::MAX;
const ACKNOWLEDGED: u32 = 0;
const REFUSED: u32 = u32::MAX;

/// Why a body did not come through.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The sender could not go on, and said why.
    #[error(transparent)]
    Failed(Failure),
    /// The reader will not have it, and said why.
    #[error(transparent)]
    Refused(Failure),
    /// The other side showed no sign of life, or took nothing.
    #[error("a transfer stood still for {} s", waited.as_secs())]
    Stalled {
        /// How long it was waited for.
        waited: Duration,
    },
    /// The other side broke the protocol.
    #[error("a transfer cannot be read: {0}")]
    Malformed(String),
    /// Less came than was announced.
    #[error("a transfer ended early")]
    Short,
    /// More came than was announced.
    #[error("a transfer is longer than was said")]
    Long,
    /// The connection broke, or the other side gave up.
    #[error("a transfer broke off: {0}")]
    Io(#[from] io::Error),
}

/// Sends a body and waits until its reader has acknowledged all of it. Returns how many bytes it had.
///
/// A failure in `source` is told to the reader and returned as [`BodyError::Failed`]; a reader that will not have the
/// body is heard within [`WINDOW_BYTES`], as [`BodyError::Refused`]. The stream can be used for
/// frames afterwards unless an error was returned.
pub async fn send_body<S, B>(stream: &mut S, source: B) -> Result<u64, BodyError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Stream<Item = Result<Bytes, Failure>>,
{
    send_patiently(stream, source, PATIENCE).await
}

async fn send_patiently<S, B>(stream: &mut S, source: B, patience: Patience) -> Result<u64, BodyError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Stream<Item = Result<Bytes, Failure>>,
{
    let mut source = pin!(source);
    let staged = Vec::with_capacity(STAGED_BYTES);
    let mut sender = Sender { stream, staged, credit_bytes: WINDOW_BYTES, patience };
    let mut sent_bytes = 0;
    loop {
        // As long as the source has more at hand, small pieces share a write.
        let item = match source.next().now_or_never() {
            Some(item) => item,
            None => sender.wait_for(&mut source).await?,
        };
        match item {
            Some(Ok(bytes)) => {
                sent_bytes += bytes.len() as u64;
                for chunk in bytes.chunks(MAX_CHUNK_BYTES) {
                    sender.chunk(chunk).await?;
                }
            }
            Some(Err(failure)) => {
                sender.fail(&failure).await?;
                return Err(BodyError::Failed(failure));
            }
            None => break,
        }
    }
    sender.end().await?;
    Ok(sent_bytes)
}

/// [`send_body`] of bytes that are at hand.
pub async fn send_bytes<S>(stream: &mut S, bytes: Bytes) -> Result<u64, BodyError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    send_body(stream, futures::stream::iter([Ok(bytes)])).await
}

/// How long the two ends wait for one another.
#[derive(Clone, Copy)]
struct Patience {
    with_sender: Duration,
    with_reader: Duration,
    /// How often a sender without bytes shows that it is alive.
    between_signs: Duration,
}

impl Patience {
    async fn with_reader<T>(self, work: impl Future<Output = io::Result<T>>) -> Result<T, BodyError> {
        match tokio::time::timeout(self.with_reader, work).await {
            Ok(outcome) => Ok(outcome?),
            Err(_) => Err(BodyError::Stalled { waited: self.with_reader }),
        }
    }
}

struct Sender<'a, S> {
    stream: &'a mut S,
    /// Small pieces and headers to be written together.
    staged: Vec<u8>,
    /// How much the reader lets us send now.
    credit_bytes: usize,
    patience: Patience,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sender<'_, S> {
    async fn chunk(&mut self, chunk: &[u8]) -> Result<(), BodyError> {
        if self.credit_bytes < chunk.len() {
            self.flush().await?;
            while self.credit_bytes < chunk.len() {
                match self.grant().await? {
                    ACKNOWLEDGED => return Err(BodyError::Malformed("acknowledged before its end".into())),
                    grant => self.credit_bytes = self.credit_bytes.saturating_add(grant as usize),
                }
            }
        }
        self.credit_bytes -= chunk.len();
        if self.staged.len() + 4 + chunk.len() > STAGED_BYTES {
            self.write_staged().await?;
        }
        self.staged.put_u32(chunk.len() as u32);
        if chunk.len() <= SMALL_BYTES {
            self.staged.put_slice(chunk);
            Ok(())
        } else {
            self.write_staged().await?;
            self.patience.with_reader(self.stream.write_all(chunk)).await
        }
    }

    /// Waits for the source, showing the reader that we are alive.
    async fn wait_for<B: Stream + Unpin>(&mut self, source: &mut B) -> Result<Option<B::Item>, BodyError> {
        self.flush().await?;
        loop {
            match tokio::time::timeout(self.patience.between_signs, source.next()).await {
                Ok(item) => return Ok(item),
                Err(_) => {
                    self.staged.put_u32(KEEPALIVE);
                    self.flush().await?;
                }
            }
        }
    }

    async fn fail(&mut self, failure: &Failure) -> Result<(), BodyError> {
        self.staged.put_u32(FAILED);
        self.staged.extend(encode_failure(failure)?);
        self.flush().await?;
        self.patience.with_reader(self.stream.close()).await
    }

    async fn end(&mut self) -> Result<(), BodyError> {
        self.staged.put_u32(END);
        self.flush().await?;
        while self.grant().await? != ACKNOWLEDGED {}
        Ok(())
    }

    async fn grant(&mut self) -> Result<u32, BodyError> {
        let mut grant = [0; 4];
        self.patience.with_reader(self.stream.read_exact(&mut grant)).await?;
        match u32::from_be_bytes(grant) {
            REFUSED => Err(self.patience.with_reader(read_failure(self.stream)).await?),
            grant => Ok(grant),
        }
    }

    async fn write_staged(&mut self) -> Result<(), BodyError> {
        self.patience.with_reader(self.stream.write_all(&self.staged)).await?;
        self.staged.clear();
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), BodyError> {
        self.write_staged().await?;
        self.patience.with_reader(self.stream.flush()).await
    }
}

/// A failure as it follows [`FAILED`] or [`REFUSED`].
fn encode_failure(failure: &Failure) -> Result<Vec<u8>, BodyError> {
    let malformed = |error: frame::FrameError| BodyError::Malformed(error.to_string());
    let mut bytes = frame::encode(failure).map_err(malformed)?;
    if bytes.len() > MAX_FAILURE_BYTES {
        let message = format!("a failure too long to send ({} bytes)", bytes.len());
        bytes = frame::encode(&Failure::Internal { message }).map_err(malformed)?;
    }
    Ok([&(bytes.len() as u32).to_be_bytes(), bytes.as_slice()].concat())
}

/// Reads why a reader will not have a body.
async fn read_failure(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<BodyError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FAILURE_BYTES {
        return Ok(BodyError::Malformed(format!("a failure of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(match frame::decode(&bytes) {
        Ok(failure) => BodyError::Refused(failure),
        Err(error) => BodyError::Malformed(error.to_string()),
    })
}

/// Reads a body: a [`Stream`] of pieces of up to 64 KiB, which need not be the pieces that were sent.
///
/// It ends after the sender's end was read and acknowledged. Dropped before that, the sender is told when the
/// underlying stream is dropped too.
pub struct Body<S> {
    stream: S,
    state: State,
    /// Room that was read into only in part.
    room: BytesMut,
    /// Taken by our consumer, not granted to the sender yet.
    ungranted_bytes: usize,
    /// Whether the sender was told not to go on.
    refused: bool,
    /// Whether its end is to be read and not acknowledged yet.
    defers: bool,
    /// Grants being written.
    outgoing: BytesMut,
    /// When we give up; set when we start to wait.
    deadline: Option<Pin<Box<Sleep>>>,
    patience: Patience,
}

/// What is read next.
///
/// ```text
///   Header --length--> Chunk --all read--> Header
///     |  \--FAILED--> FailureLength --> Failure --> Ended
///     \--END--> Reached --> Acknowledge --> Ended
/// ```
enum State {
    Header(Word),
    Chunk { left_bytes: usize },
    FailureLength(Word),
    Failure { bytes: Vec<u8>, have: usize },
    Reached,
    Acknowledge,
    Ended,
}

/// A `u32` that is being read.
#[derive(Default)]
struct Word {
    bytes: [u8; 4],
    have: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Body<S> {
    /// A body that starts with the stream's next byte.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            state: State::Header(Word::default()),
            room: BytesMut::new(),
            ungranted_bytes: 0,
            refused: false,
            defers: false,
            outgoing: BytesMut::new(),
            deadline: None,
            patience: PATIENCE,
        }
    }

    /// The stream, for the frames that follow once the body has ended.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Reads the whole body, if it has at most `limit_bytes`.
    pub async fn read_all(&mut self, limit_bytes: usize) -> Result<Vec<u8>, BodyError> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await {
            let piece = piece?;
            if all.len() + piece.len() > limit_bytes {
                return Err(BodyError::Malformed(format!("it exceeds the limit of {limit_bytes} bytes")));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    /// The next bytes, exactly so many; nothing if the body ended before the first of them.
    pub async fn read_exact(&mut self, length: u64) -> Result<Option<Bytes>, BodyError> {
        let Ok(length) = usize::try_from(length) else {
            return Err(BodyError::Malformed(format!("{length} bytes in one piece")));
        };
        let mut read = BytesMut::zeroed(length.min(MAX_PREALLOCATED_BYTES));
        let mut have = 0;
        while have < length {
            if have == read.len() {
                read.resize(length.min(2 * have), 0);
            }
            match poll_fn(|cx| self.poll_read(cx, &mut read[have..])).await? {
                0 if have == 0 => return Ok(None),
                0 => return Err(BodyError::Short),
                more => have += more,
            }
        }
        Ok(Some(read.freeze()))
    }

    /// The next bytes, as many as are there and at most so many; nothing at the body's end.
    pub async fn read_some(&mut self, limit_bytes: u64) -> Result<Option<Bytes>, BodyError> {
        let limit = usize::try_from(limit_bytes).unwrap_or(READ_BYTES).min(READ_BYTES);
        let mut room = BytesMut::zeroed(limit);
        let have = poll_fn(|cx| self.poll_read(cx, &mut room)).await?;
        room.truncate(have);
        Ok((have > 0).then(|| room.freeze()))
    }

    /// Reads the body's end, and leaves its sender waiting: [`Body::end`] acknowledges it.
    pub async fn reach_end(&mut self) -> Result<(), BodyError> {
        self.defers = true;
        let reached = poll_fn(|cx| self.poll_read(cx, &mut [0])).await;
        self.defers = false;
        match reached? {
            0 => Ok(()),
            _ => Err(BodyError::Long),
        }
    }

    /// Reads the body's end, which this acknowledges.
    pub async fn end(&mut self) -> Result<(), BodyError> {
        match poll_fn(|cx| self.poll_read(cx, &mut [0])).await? {
            0 => Ok(()),
            _ => Err(BodyError::Long),
        }
    }

    /// Tells the sender, unless it has sent all, that it need not go on. The stream is of no more use then.
    pub async fn refuse(&mut self, failure: &Failure) {
        if matches!(self.state, State::Ended) {
            return;
        }
        let Ok(failure) = encode_failure(failure) else { return };
        self.refused = true;
        self.outgoing.put_u32(REFUSED);
        self.outgoing.put_slice(&failure);
        let waited = self.patience.with_sender;
        let write = async {
            poll_fn(|cx| self.poll_outgoing(cx)).await?;
            self.stream.flush().await
        };
        let written = tokio::time::timeout(waited, write).await.is_ok_and(|written| written.is_ok());
        if matches!(self.state, State::Reached) {
            self.state = State::Ended;
        } else if written {
            // A stream that is dropped with bytes unread would take the refusal with it. There are no more than
            // a window of them.
            self.pass_over(WINDOW_BYTES as u64).await;
        }
    }

    /// Takes what is left, up to so many bytes, without looking at it: its sender listens when it has sent all.
    pub async fn pass_over(&mut self, mut limit_bytes: u64) {
        while let Some(Ok(piece)) = self.next().await {
            match limit_bytes.checked_sub(piece.len() as u64) {
                Some(left_bytes) => limit_bytes = left_bytes,
                None => return,
            }
        }
    }

    /// Reads some bytes, at most as many as there is room for; none at the body's end.
    fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<Result<usize, BodyError>> {
        // Whoever asks for the next bytes has taken those before. Grants are lazy, one each half window.
        if self.ungranted_bytes >= WINDOW_BYTES / 2 && !self.refused {
            self.outgoing.put_u32(self.ungranted_bytes as u32);
            self.ungranted_bytes = 0;
        }
        if !matches!(self.state, State::Ended)
            && let Poll::Ready(Err(error)) = self.poll_outgoing(cx)
        {
            self.state = State::Ended;
            return Poll::Ready(Err(error.into()));
        }
        if let Poll::Ready(outcome) = self.poll_step(cx, room) {
            if outcome.is_err() {
                self.state = State::Ended;
            }
            return Poll::Ready(outcome);
        }
        let waited = self.patience.with_sender;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(waited)));
        ready!(deadline.as_mut().poll(cx));
        self.state = State::Ended;
        Poll::Ready(Err(BodyError::Stalled { waited }))
    }

    fn poll_step(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<Result<usize, BodyError>> {
        loop {
            match &mut self.state {
                State::Header(word) => {
                    let header = ready!(word.poll(&mut self.stream, cx))?;
                    self.deadline = None;
                    self.state = match header {
                        END => State::Reached,
                        KEEPALIVE => State::Header(Word::default()),
                        FAILED => State::FailureLength(Word::default()),
                        length if length as usize <= MAX_CHUNK_BYTES => {
                            State::Chunk { left_bytes: length as usize }
                        }
                        length => {
                            return Poll::Ready(Err(BodyError::Malformed(format!(
                                "a piece of {length} bytes exceeds the limit of {MAX_CHUNK_BYTES}"
                            ))));
                        }
                    };
                }
                State::Chunk { left_bytes: 0 } => self.state = State::Header(Word::default()),
                State::Chunk { left_bytes } => {
                    let limit = room.len().min(*left_bytes);
                    let mut have = 0;
                    while have < limit {
                        match Pin::new(&mut self.stream).poll_read(cx, &mut room[have..limit])? {
                            Poll::Ready(0) if have == 0 => return Poll::Ready(Err(cut())),
                            Poll::Pending if have == 0 => return Poll::Pending,
                            Poll::Ready(0) | Poll::Pending => break,
                            Poll::Ready(more) => have += more,
                        }
                    }
                    *left_bytes -= have;
                    self.deadline = None;
                    self.ungranted_bytes += have;
                    return Poll::Ready(Ok(have));
                }
                State::FailureLength(word) => {
                    let length = ready!(word.poll(&mut self.stream, cx))? as usize;
                    if length > MAX_FAILURE_BYTES {
                        let message = format!("a failure of {length} bytes");
                        return Poll::Ready(Err(BodyError::Malformed(message)));
                    }
                    self.state = State::Failure { bytes: vec![0; length], have: 0 };
                }
                State::Failure { bytes, have } => {
                    while *have < bytes.len() {
                        match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut bytes[*have..]))? {
                            0 => return Poll::Ready(Err(cut())),
                            more => *have += more,
                        }
                    }
                    return Poll::Ready(Err(match frame::decode(bytes) {
                        Ok(failure) => BodyError::Failed(failure),
                        Err(error) => BodyError::Malformed(error.to_string()),
                    }));
                }
                State::Reached if self.defers => return Poll::Ready(Ok(0)),
                State::Reached => {
                    self.outgoing.put_u32(ACKNOWLEDGED);
                    self.state = State::Acknowledge;
                }
                State::Acknowledge => {
                    ready!(self.poll_outgoing(cx))?;
                    ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
                    self.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(0)),
            }
        }
    }

    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.outgoing))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => drop(self.outgoing.split_to(written)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for Body<S> {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let mut room = std::mem::take(&mut this.room);
        if room.is_empty() {
            room = BytesMut::zeroed(READ_BYTES);
        }
        let read = this.poll_read(cx, &mut room);
        let piece = read.map_ok(|have| (have > 0).then(|| room.split_to(have).freeze()));
        this.room = room;
        piece.map(Result::transpose)
    }
}

impl Word {
    fn poll(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<Result<u32, BodyError>> {
        while self.have < self.bytes.len() {
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut self.bytes[self.have..]))? {
                0 => return Poll::Ready(Err(cut())),
                more => self.have += more,
            }
        }
        Poll::Ready(Ok(u32::from_be_bytes(self.bytes)))
    }
}

fn cut() -> BodyError {
    BodyError::Io(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio_util::compat::TokioAsyncReadCompatExt;

    type Wire = tokio_util::compat::Compat<tokio::io::DuplexStream>;

    fn wire(buffered_bytes: usize) -> (Wire, Wire) {
        let (near, far) = tokio::io::duplex(buffered_bytes);
        (near.compat(), far.compat())
    }

    fn pattern(length: usize) -> Bytes {
        (0..length).map(|at| (at % 251) as u8).collect()
    }

    #[tokio::test]
    async fn pieces_of_any_size_arrive_and_the_stream_goes_on_after_them() {
        let (mut near, far) = wire(1 << 16);
        let whole = pattern(3 * MAX_CHUNK_BYTES + 12345);
        let mut rest = whole.clone();
        let mut pieces = vec![Bytes::new()];
        for size in [1, SMALL_BYTES, SMALL_BYTES + 1, 7, MAX_CHUNK_BYTES, MAX_CHUNK_BYTES + 1, 0, 300] {
            pieces.push(rest.split_to(size));
        }
        pieces.push(rest);
        let reader = tokio::spawn(async move {
            let mut body = Body::new(far);
            let got = body.read_all(usize::MAX).await.unwrap();
            let mut far = body.into_inner();
            far.write_all(b"thanks").await.unwrap();
            far.flush().await.unwrap();
            (got, far)
        });
        let sent = send_body(&mut near, futures::stream::iter(pieces.into_iter().map(Ok))).await.unwrap();
        assert_eq!(sent, whole.len() as u64);
        let mut thanks = [0; 6];
        near.read_exact(&mut thanks).await.unwrap();
        assert_eq!(&thanks, b"thanks");
        let (got, _far) = reader.await.unwrap();
        assert!(got == whole);
    }

    #[tokio::test]
    async fn parts_of_known_lengths_are_read_however_they_were_sent() {
        let whole = pattern(2 * MAX_CHUNK_BYTES + 5);
        let lengths = [3, 0, MAX_CHUNK_BYTES as u64 + 1, MAX_CHUNK_BYTES as u64 + 1];
        let send = |mut near: Wire, whole: Bytes| {
            tokio::spawn(async move { send_bytes(&mut near, whole).await.map(|_| near) })
        };
        let (near, far) = wire(1 << 16);
        let sending = send(near, whole.clone());
        let mut body = Body::new(far);
        let mut rest = whole.clone();
        for length in lengths {
            let read = body.read_exact(length).await.unwrap().unwrap();
            assert!(read == rest.split_to(length as usize));
        }
        assert!(rest.is_empty());
        body.end().await.unwrap();
        assert_eq!(body.read_exact(1).await.unwrap(), None);
        sending.await.unwrap().unwrap();

        let (near, far) = wire(1 << 16);
        let _sending = send(near, whole.clone());
        let mut body = Body::new(far);
        assert!(matches!(body.read_exact(whole.len() as u64 + 1).await, Err(BodyError::Short)));

        let (near, far) = wire(1 << 16);
        let sending = send(near, whole.clone());
        let mut body = Body::new(far);
        assert!(body.read_exact(whole.len() as u64 - 1).await.unwrap().is_some());
        assert!(matches!(body.end().await, Err(BodyError::Long)));
        drop(body);
        assert!(sending.await.unwrap().is_err());

        // What a liar announces costs no more than the room that is made on his word.
        let (near, far) = wire(1 << 16);
        let _sending = send(near, whole);
        assert!(matches!(Body::new(far).read_exact(1 << 50).await, Err(BodyError::Short)));
    }

    #[tokio::test]
    async fn a_sender_waits_while_its_end_is_read_and_not_acknowledged_and_may_be_refused_then() {
        let send = |mut near: Wire| tokio::spawn(async move { send_bytes(&mut near, pattern(5)).await });
        for refused in [false, true] {
            let (near, far) = wire(1 << 16);
            let sending = send(near);
            let mut body = Body::new(far);
            body.read_exact(5).await.unwrap();
            body.reach_end().await.unwrap();
            body.reach_end().await.unwrap();
            tokio::task::yield_now().await;
            assert!(!sending.is_finished());
            if refused {
                body.refuse(&Failure::Cancelled).await;
                let sent = sending.await.unwrap();
                assert!(matches!(sent, Err(BodyError::Refused(Failure::Cancelled))), "{sent:?}");
            } else {
                body.end().await.unwrap();
                assert_eq!(sending.await.unwrap().unwrap(), 5);
            }
        }
        let (near, far) = wire(1 << 16);
        let _sending = send(near);
        let mut body = Body::new(far);
        body.read_exact(3).await.unwrap();
        assert!(matches!(body.reach_end().await, Err(BodyError::Long)));
    }

    #[tokio::test]
    async fn a_sender_gets_no_further_ahead_than_the_window() {
        // A wire that would take everything: only credits hold the sender back.
        let (mut near, far) = wire(64 << 20);
        let drawn = Arc::new(AtomicUsize::new(0));
        let piece = pattern(256 << 10);
        let pieces = 128; // 32 MiB
        let counter = drawn.clone();
        let source = futures::stream::iter(0..pieces).map(move |_| {
            counter.fetch_add(piece.len(), Ordering::SeqCst);
            Ok(piece.clone())
        });
        let sending = tokio::spawn(async move { send_body(&mut near, source).await });
        let mut body = Body::new(far);
        let mut taken = 0;
        while let Some(piece) = body.next().await {
            // Let the sender run as far as it can.
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            let ahead = drawn.load(Ordering::SeqCst) - taken;
            assert!(ahead <= WINDOW_BYTES + (256 << 10), "{ahead} bytes ahead");
            taken += piece.unwrap().len();
        }
        assert_eq!(taken, pieces * (256 << 10));
        assert_eq!(sending.await.unwrap().unwrap(), taken as u64);
    }

    #[tokio::test]
    async fn a_failure_of_the_source_reaches_the_reader_after_what_came_before() {
        let (mut near, far) = wire(1 << 16);
        let failure = Failure::Query { message: "division by zero".into() };
        let source = futures::stream::iter([Ok(Bytes::from_static(b"half")), Err(failure.clone())]);
        let sending = tokio::spawn(async move { send_body(&mut near, source).await });
        let mut body = Body::new(far);
        assert_eq!(body.next().await.unwrap().unwrap(), "half");
        assert!(matches!(body.next().await, Some(Err(BodyError::Failed(got))) if got == failure));
        assert!(body.next().await.is_none());
        assert!(matches!(sending.await.unwrap(), Err(BodyError::Failed(_))));
    }

    #[tokio::test]
    async fn a_reader_refuses_what_it_has_no_room_for_and_its_sender_hears_why() {
        let failure = Failure::Busy { message: "no room".into(), retry_ms: 500 };
        // Sent whole before it is heard, longer than the window, and refused in the middle.
        for (length, taken) in [(10, 0), (3 * WINDOW_BYTES, 0), (3 * WINDOW_BYTES, 2 * WINDOW_BYTES)] {
            let (mut near, far) = wire(1 << 16);
            let sending = tokio::spawn(async move { send_bytes(&mut near, pattern(length)).await });
            let mut body = Body::new(far);
            body.read_exact(taken as u64).await.unwrap();
            body.refuse(&failure).await;
            let sent = sending.await.unwrap();
            assert!(matches!(&sent, Err(BodyError::Refused(got)) if *got == failure), "{sent:?}");
        }
        // What has come whole cannot be refused any more.
        let (mut near, far) = wire(1 << 16);
        let sending = tokio::spawn(async move { send_bytes(&mut near, pattern(10)).await });
        let mut body = Body::new(far);
        body.read_all(10).await.unwrap();
        body.refuse(&failure).await;
        assert_eq!(sending.await.unwrap().unwrap(), 10);
    }

    #[tokio::test]
    async fn a_vanished_peer_is_an_error_on_either_side() {
        let (mut near, far) = wire(1 << 16);
        drop(far);
        let sent = send_bytes(&mut near, pattern(1 << 20)).await;
        assert!(matches!(sent, Err(BodyError::Io(_))), "{sent:?}");

        let (mut near, far) = wire(1 << 16);
        near.write_all(&[0, 0, 0, 9, 1]).await.unwrap();
        drop(near);
        let mut body = Body::new(far);
        assert_eq!(body.next().await.unwrap().unwrap().len(), 1);
        assert!(matches!(body.next().await, Some(Err(BodyError::Io(_)))));
    }

    const HASTY: Patience = Patience {
        with_sender: Duration::from_millis(400),
        with_reader: Duration::from_millis(50),
        between_signs: Duration::from_millis(5),
    };

    #[tokio::test]
    async fn a_silent_sender_is_given_up() {
        let (_near, far) = wire(1 << 16);
        let mut body = Body { patience: HASTY, ..Body::new(far) };
        assert!(matches!(body.next().await, Some(Err(BodyError::Stalled { .. }))));
    }

    #[tokio::test]
    async fn a_sender_that_waits_for_its_source_shows_that_it_is_alive() {
        let (mut near, mut far) = wire(1 << 16);
        let (release, released) = tokio::sync::oneshot::channel();
        let source = futures::stream::once(async { Ok(released.await.unwrap()) });
        let sending = tokio::spawn(async move { send_patiently(&mut near, source, HASTY).await });
        for _ in 0..3 {
            let mut sign = [0; 4];
            far.read_exact(&mut sign).await.unwrap();
            assert_eq!(u32::from_be_bytes(sign), KEEPALIVE);
        }
        release.send(Bytes::from_static(b"late")).unwrap();
        // Further signs may precede the bytes: a body passes over them.
        assert_eq!(Body::new(far).read_all(100).await.unwrap(), b"late");
        assert_eq!(sending.await.unwrap().unwrap(), 4);
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_given_up_at_last() {
        let (mut near, _far) = wire(1 << 16);
        let source = futures::stream::iter([Ok(pattern(1 << 20))]);
        let sent = send_patiently(&mut near, source, HASTY).await;
        assert!(matches!(sent, Err(BodyError::Stalled { .. })), "{sent:?}");
    }

    #[tokio::test]
    async fn an_oversized_piece_is_refused() {
        let (mut near, far) = wire(1 << 16);
        near.write_all(&(MAX_CHUNK_BYTES as u32 + 1).to_be_bytes()).await.unwrap();
        assert!(matches!(Body::new(far).next().await, Some(Err(BodyError::Malformed(_)))));
    }
}
