//! Connections that have not finished their admission: how many may have been taken, of one host and in all; and the end
//! of those that hang up while they are greeted, which says nothing about who is there.
//!
//! When there is no room, the one that has waited longest makes way: a member's admission takes milliseconds, so whoever
//! makes way for many others is idle. Nobody is kept out by sockets that only stand open.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use futures::{AsyncRead, AsyncWrite};
use libp2p::Multiaddr;

use crate::admission::{GREETING, Refusal};
use crate::host::{host_of, socket_of};

/// How many connections may be in the middle of their admission: each costs up to a Noise frame of memory.
const MAX_PENDING: usize = 256;

/// How many of one host: all of a mesh's nodes on it, and a crowd of drivers, may come at once.
const MAX_OF_HOST: usize = 32;

/// How many of this machine, where a whole mesh may run.
const MAX_OF_THIS_MACHINE: usize = 128;

/// The connections. Clones are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pending(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// Counts the connections that came.
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    by_host: BTreeMap<IpAddr, BTreeSet<u64>>,
    by_place: BTreeMap<SocketAddr, u64>,
}

#[derive(Debug)]
struct Waiting {
    host: IpAddr,
    place: SocketAddr,
    way: Arc<Way>,
}

/// How a connection hears that it has to make way.
#[derive(Debug, Default)]
struct Way {
    made: AtomicBool,
    waker: AtomicWaker,
}

/// A socket whose connection ends if it has to make way before it was admitted.
#[derive(Debug)]
pub(crate) struct Guarded<S> {
    socket: S,
    place: Option<Place>,
    greeted: Greeted,
}

/// How much of the greeting the other side has said.
#[derive(Debug)]
enum Greeted {
    /// So many bytes of it.
    Partly(usize),
    /// All of it, or something else.
    Over,
}

impl Greeted {
    /// It said this next, or with nothing hung up.
    fn hear(&mut self, said: &[u8]) -> io::Result<()> {
        let Self::Partly(heard) = *self else { return Ok(()) };
        if said.is_empty() {
            return Err(io::Error::other(Refusal::HungUp));
        }
        let left = &GREETING[heard..];
        let compared = said.len().min(left.len());
        let goes_on = said[..compared] == left[..compared] && compared < left.len();
        *self = if goes_on { Self::Partly(heard + compared) } else { Self::Over };
        Ok(())
    }
}

/// A connection's place in the table, until this is dropped.
#[derive(Debug)]
struct Place {
    pending: Pending,
    number: u64,
    way: Arc<Way>,
}

impl Pending {
    /// A socket that somebody else opened, from there.
    pub(crate) fn guard<S>(&self, socket: S, from: &Multiaddr) -> Guarded<S> {
        let place = socket_of(from).map(|place| self.enter(place));
        Guarded { socket, place, greeted: Greeted::Partly(0) }
    }

    /// Whoever came from there was admitted.
    pub(crate) fn admitted(&self, from: &Multiaddr) {
        let Some(place) = socket_of(from) else { return };
        let mut table = self.lock();
        if let Some(number) = table.by_place.get(&place).copied() {
            table.remove(number);
        }
    }

    fn enter(&self, place: SocketAddr) -> Place {
        let host = host_of(place.ip());
        let mut table = self.lock();
        let limit = if host.is_loopback() { MAX_OF_THIS_MACHINE } else { MAX_OF_HOST };
        if table.by_host.get(&host).is_some_and(|of_host| of_host.len() >= limit) {
            table.make_way(host);
        } else if table.waiting.len() >= MAX_PENDING
            && let Some(greediest) = table.greediest()
        {
            table.make_way(greediest);
        }
        let (number, way) = (table.next, Arc::<Way>::default());
        table.next += 1;
        table.by_host.entry(host).or_default().insert(number);
        table.by_place.insert(place, number);
        table.waiting.insert(number, Waiting { host, place, way: way.clone() });
        Place { pending: self.clone(), number, way }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// The host of which most wait.
    fn greediest(&self) -> Option<IpAddr> {
        self.by_host.iter().max_by_key(|(_, of_host)| of_host.len()).map(|(host, _)| *host)
    }

    /// The one of this host that has waited longest ends.
    fn make_way(&mut self, host: IpAddr) {
        let oldest = self.by_host.get(&host).and_then(|of_host| of_host.first().copied());
        if let Some(waiting) = oldest.and_then(|number| self.remove(number)) {
            waiting.way.made.store(true, Ordering::Release);
            waiting.way.waker.wake();
        }
    }

    fn remove(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&number)?;
        if let Some(of_host) = self.by_host.get_mut(&waiting.host) {
            of_host.remove(&number);
            if of_host.is_empty() {
                self.by_host.remove(&waiting.host);
            }
        }
        if self.by_place.get(&waiting.place) == Some(&number) {
            self.by_place.remove(&waiting.place);
        }
        Some(waiting)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pending.lock().remove(self.number);
    }
}

impl<S> Guarded<S> {
    /// A socket that this side opened.
    pub(crate) fn own(socket: S) -> Self {
        Self { socket, place: None, greeted: Greeted::Partly(0) }
    }

    /// An error once it has to make way.
    fn check(&self, cx: &Context<'_>) -> io::Result<()> {
        let Some(Place { way, .. }) = &self.place else { return Ok(()) };
        way.waker.register(cx.waker());
        if way.made.load(Ordering::Acquire) { Err(io::Error::other(Refusal::MadeWay)) } else { Ok(()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let read = std::task::ready!(Pin::new(&mut self.socket).poll_read(cx, buf))?;
        if !buf.is_empty() {
            self.greeted.hear(&buf[..read])?;
        }
        Poll::Ready(Ok(read))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(ip: &str, port: u16) -> Multiaddr {
        let family = if ip.contains(':') { "ip6" } else { "ip4" };
        format!("/{family}/{ip}/tcp/{port}").parse().unwrap()
    }

    fn made_way(guarded: &Guarded<()>) -> bool {
        guarded.place.as_ref().unwrap().way.made.load(Ordering::Acquire)
    }

    #[test]
    fn a_host_that_fills_its_places_keeps_nobody_else_out() {
        let pending = Pending::default();
        let modest = pending.guard((), &from("192.0.2.2", 1));
        let greedy: Vec<_> =
            (1..=MAX_OF_HOST as u16 + 3).map(|port| pending.guard((), &from("192.0.2.1", port))).collect();
        let gone: Vec<_> = greedy.iter().map(made_way).collect();
        assert_eq!(gone.iter().filter(|gone| **gone).count(), 3);
        assert!(gone[..3].iter().all(|gone| *gone), "those that waited longest");
        assert!(!made_way(&modest));
        drop(greedy);
        drop(modest);
        let table = pending.lock();
        assert!(table.waiting.is_empty() && table.by_host.is_empty() && table.by_place.is_empty());
    }

    #[test]
    fn many_hosts_together_make_way_for_each_other_the_greediest_first() {
        let pending = Pending::default();
        let modest = pending.guard((), &from("192.0.2.2", 1));
        let mut crowd = Vec::new();
        for host in 0..=(MAX_PENDING / MAX_OF_HOST) {
            let ip = format!("2001:db8:0:{host:x}::{host:x}");
            crowd.extend((1..=MAX_OF_HOST as u16).map(|port| pending.guard((), &from(&ip, port))));
        }
        assert_eq!(pending.lock().waiting.len(), MAX_PENDING);
        assert!(!made_way(&modest));
        assert!(!made_way(crowd.last().unwrap()), "whoever comes has its turn");
    }

    #[test]
    fn a_network_of_ipv6_is_one_host_and_whoever_was_admitted_never_makes_way() {
        let pending = Pending::default();
        let first = pending.guard((), &from("2001:db8::1", 1));
        pending.admitted(&from("2001:db8::1", 1));
        let crowd: Vec<_> = (0..2 * MAX_OF_HOST as u16)
            .map(|number| pending.guard((), &from(&format!("2001:db8::{number:x}"), 1)))
            .collect();
        assert!(!made_way(&first));
        assert_eq!(crowd.iter().filter(|guarded| made_way(guarded)).count(), MAX_OF_HOST);
    }

    #[tokio::test]
    async fn whoever_hangs_up_while_it_is_greeted_is_told_from_one_that_speaks_something_else() {
        use futures::AsyncReadExt;
        use tokio_util::compat::TokioAsyncReadCompatExt;

        let half = &GREETING[..GREETING.len() - 1];
        let said = [(&b""[..], true), (half, true), (GREETING, false), (b"HTTP/1.1 400 Bad Request", false)];
        for (said, hung_up) in said {
            let (near, mut far) = tokio::io::duplex(64);
            tokio::io::AsyncWriteExt::write_all(&mut far, said).await.unwrap();
            drop(far);
            let mut heard = Vec::new();
            let read = Guarded::own(near.compat()).read_to_end(&mut heard).await;
            assert_eq!(heard, said);
            let refusal = read.err().and_then(|error| crate::refusal_of(&error));
            assert_eq!(refusal, hung_up.then_some(Refusal::HungUp), "{said:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_makes_way_ends_while_it_waits_to_read() {
        use futures::AsyncReadExt;
        use tokio_util::compat::TokioAsyncReadCompatExt;

        let pending = Pending::default();
        let (near, _far) = tokio::io::duplex(64);
        let mut idle = pending.guard(near.compat(), &from("192.0.2.1", 1));
        let reading = tokio::spawn(async move { idle.read(&mut [0]).await });
        tokio::task::yield_now().await;
        let _crowd: Vec<_> =
            (2..=MAX_OF_HOST as u16 + 1).map(|port| pending.guard((), &from("192.0.2.1", port))).collect();
        let error = reading.await.unwrap().unwrap_err();
        assert_eq!(crate::refusal_of(&error), Some(Refusal::MadeWay));
    }
}
