//! Yamux as libp2p's multiplexer, with frames of a size that suits bulk bodies.
//!
//! The crate libp2p-yamux does the same with Yamux' own 16 KiB and offers no other: a body then takes four times the
//! allocations, wake-ups and system calls, which was a twentieth of the time of a job that moves much data.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::iter;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use yamux::{Connection, ConnectionError, Mode};

/// How many streams may be open on one connection at once. Yamux lets each have 256 KiB in flight before it tunes
/// itself, so this times 256 KiB must stay below its 1 GiB per connection.
const MAX_STREAMS: usize = 1024;

/// The most bytes in one frame: about what Noise encrypts at once.
const FRAME_BYTES: usize = 64 << 10;

/// How many streams of the other side wait for somebody who wants them. Yamux lets it have as many that were not
/// acknowledged; beyond them a stream is reset.
const MAX_WAITING: usize = 256;

/// The upgrade from an admitted connection to a multiplexed one.
#[derive(Clone, Debug)]
pub struct Yamux(yamux::Config);

/// A connection and its streams.
#[derive(Debug)]
pub struct Muxer<C> {
    /// Nothing once it is closed.
    connection: Option<Connection<C>>,
    /// What the other side opened and nobody has taken yet.
    waiting: VecDeque<yamux::Stream>,
    /// Who wants the next of them.
    wanted: Option<Waker>,
}

impl Default for Yamux {
    fn default() -> Self {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(MAX_STREAMS).set_split_send_size(FRAME_BYTES);
        Self(config)
    }
}

impl UpgradeInfo for Yamux {
    type Info = &'static str;
    type InfoIter = iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once("/yamux/1.0.0")
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> InboundConnectionUpgrade<C> for Yamux {
    type Output = Muxer<C>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, connection: C, _: Self::Info) -> Self::Future {
        ready(Ok(Muxer::new(Connection::new(connection, self.0, Mode::Server))))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> OutboundConnectionUpgrade<C> for Yamux {
    type Output = Muxer<C>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, connection: C, _: Self::Info) -> Self::Future {
        ready(Ok(Muxer::new(Connection::new(connection, self.0, Mode::Client))))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn new(connection: Connection<C>) -> Self {
        Self { connection: Some(connection), waiting: VecDeque::new(), wanted: None }
    }

    /// Reads and writes whatever there is, until the other side opens a stream.
    fn poll_opened(&mut self, cx: &mut Context<'_>) -> Poll<Result<yamux::Stream, ConnectionError>> {
        let Some(connection) = &mut self.connection else {
            return Poll::Ready(Err(ConnectionError::Closed));
        };
        match ready!(connection.poll_next_inbound(cx)) {
            Some(opened) => Poll::Ready(opened),
            None => Poll::Ready(Err(ConnectionError::Closed)),
        }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = yamux::Stream;
    type Error = ConnectionError;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        if let Some(stream) = self.waiting.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        let opened = self.poll_opened(cx);
        if opened.is_pending() {
            self.wanted = Some(cx.waker().clone());
        }
        opened
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        match &mut self.connection {
            Some(connection) => connection.poll_new_outbound(cx),
            None => Poll::Ready(Err(ConnectionError::Closed)),
        }
    }

    /// Whoever reads or writes one of its streams hears of it. Yamux' own way to close does not tell them, and waits for as
    /// long as the other side takes nothing, which may be the reason for closing. What was written goes out as far as the
    /// connection takes it at once.
    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        for _ in 0..MAX_WAITING {
            let Poll::Ready(Ok(_)) = self.poll_opened(cx) else { break };
        }
        self.connection = None;
        self.waiting.clear();
        Poll::Ready(Ok(()))
    }

    /// Nothing but this moves the streams' bytes, so it goes on although nobody wants what the other side opens.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        let opened = ready!(self.poll_opened(cx))?;
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(opened);
            if let Some(wanted) = self.wanted.take() {
                wanted.wake();
            }
        } else {
            tracing::debug!(%opened, "a stream that nobody takes is reset");
        }
        // Others have their turn before the next.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    use futures::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

    type Wire = Compat<tokio::io::DuplexStream>;

    fn pair() -> (Muxer<Wire>, Muxer<Wire>) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let Yamux(config) = Yamux::default();
        let near = Connection::new(near.compat(), config.clone(), Mode::Client);
        (Muxer::new(near), Muxer::new(Connection::new(far.compat(), config, Mode::Server)))
    }

    async fn open(muxer: &mut Muxer<Wire>) -> yamux::Stream {
        poll_fn(|cx| Pin::new(&mut *muxer).poll_outbound(cx)).await.unwrap()
    }

    /// Moves a connection's bytes for as long as it lives.
    fn drive(mut muxer: Muxer<Wire>) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            // Its end is its test's end.
            let _ = poll_fn(|cx| Pin::new(&mut muxer).poll(cx)).await;
        })
    }

    #[tokio::test]
    async fn bytes_of_many_frames_go_both_ways() {
        let (mut near, mut far) = pair();
        let mut stream = open(&mut near).await;
        let near = drive(near);
        let whole: Vec<u8> = (0..5 * FRAME_BYTES + 7).map(|at| (at % 251) as u8).collect();
        let sent = whole.clone();
        let sending = tokio::spawn(async move {
            stream.write_all(&sent).await.unwrap();
            stream.flush().await.unwrap();
            let mut back = vec![0; sent.len()];
            stream.read_exact(&mut back).await.unwrap();
            back
        });
        let mut taken = poll_fn(|cx| Pin::new(&mut far).poll_inbound(cx)).await.unwrap();
        let far = drive(far);
        let mut got = vec![0; whole.len()];
        taken.read_exact(&mut got).await.unwrap();
        taken.write_all(&got).await.unwrap();
        taken.flush().await.unwrap();
        assert!(sending.await.unwrap() == whole);
        near.abort();
        far.abort();
    }

    #[tokio::test]
    async fn streams_that_nobody_takes_are_kept_up_to_a_limit() {
        let (mut near, mut far) = pair();
        let mut streams = Vec::new();
        for at in 0..MAX_WAITING {
            let mut stream = open(&mut near).await;
            stream.write_all(&[at as u8]).await.unwrap();
            streams.push(stream);
        }
        let near = drive(near);
        let kept = async {
            while far.waiting.len() < MAX_WAITING {
                let once = poll_fn(|cx| {
                    assert!(Pin::new(&mut far).poll(cx).is_pending());
                    Poll::Ready(())
                });
                once.await;
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), kept).await.unwrap();
        for at in 0..MAX_WAITING {
            let mut taken = poll_fn(|cx| Pin::new(&mut far).poll_inbound(cx)).await.unwrap();
            let mut byte = [0];
            taken.read_exact(&mut byte).await.unwrap();
            assert_eq!(byte[0], at as u8, "in the order in which they were opened");
        }
        near.abort();
    }

    #[tokio::test]
    async fn whoever_waits_for_a_stream_hears_that_its_connection_was_closed() {
        // The other side does nothing, as if it were stopped.
        let (mut near, _far) = pair();
        let mut reads = open(&mut near).await;
        let mut writes = open(&mut near).await;
        let reading = tokio::spawn(async move { reads.read(&mut [0]).await });
        let writing = tokio::spawn(async move {
            loop {
                writes.write_all(&[0; FRAME_BYTES]).await?;
                writes.flush().await?;
            }
        });
        // Until both wait.
        for _ in 0..64 {
            poll_fn(|cx| Poll::Ready(Pin::new(&mut near).poll(cx).is_ready())).await;
            tokio::task::yield_now().await;
        }
        poll_fn(|cx| Pin::new(&mut near).poll_close(cx)).await.unwrap();
        let ended = async {
            assert!(reading.await.unwrap().is_ok_and(|bytes| bytes == 0));
            let written: std::io::Result<()> = writing.await.unwrap();
            assert!(written.is_err());
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await.expect("both hear of it");
        assert!(poll_fn(|cx| Pin::new(&mut near).poll_outbound(cx)).await.is_err());
    }
}
