//! The libp2p behaviour that opens and accepts a connection's streams.
//!
//! `libp2p-stream` does the same for a start, but drops inbound streams whenever their acceptor lags, dials by
//! itself, and knows no roles. Here inbound streams wait, up to a limit; a stream is opened only on a connection
//! that exists; and what a peer may open depends on the role it was admitted with.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use floe_protocol::NodeId;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
    NetworkBehaviour, StreamUpgradeError, SubstreamProtocol, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::PollSender;

use crate::admission::{Role, Roster};
use crate::node_id;

/// How many streams may be asked for on one connection before askers wait.
const MAX_ASKED: usize = 64;

/// How many accepted streams of one connection wait for the acceptor; those beyond are reset.
const MAX_WAITING: usize = 256;

/// How many accepted streams of all connections wait for the acceptor before they wait at their connection.
const MAX_ACCEPTED: usize = 64;

/// Streams of calls that have ended, kept for the next ones on a connection: as many as a driver has calls under way that
/// matter how long they take. To open another one costs both ends a round trip and more than a short call itself.
const MAX_KEPT: usize = 4;

/// For how long a stream is used again. The other end keeps it for [`KEPT_OPEN`].
const REUSED_WITHIN: Duration = Duration::from_secs(2);

/// How long whoever has answered a call waits for another one on its stream: longer than anybody begins one there, so that
/// a call seldom meets a stream that has just been closed.
pub const KEPT_OPEN: Duration = Duration::from_secs(5);

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No connection.
    #[error("not connected to node {0}")]
    NotConnected(NodeId),
    /// The peer does not speak the protocol, or not with our role.
    #[error("the other side does not speak {0} with us")]
    Unsupported(StreamProtocol),
    /// The peer did not answer.
    #[error("the other side did not answer in time")]
    Timeout,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
}

/// A protocol that this end accepts.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Its name.
    pub protocol: StreamProtocol,
    /// Whether drivers may use it.
    pub to_drivers: bool,
}

/// A stream that a peer opened.
#[derive(Debug)]
pub struct Inbound {
    /// The peer.
    pub peer: PeerId,
    /// What it was admitted as.
    pub role: Role,
    /// The protocol it chose.
    pub protocol: StreamProtocol,
    /// The stream.
    pub stream: Stream,
}

/// Opens streams on the connections of one [`Behaviour`].
#[derive(Clone, Default)]
pub struct Opener(Arc<Mutex<HashMap<PeerId, Vec<Link>>>>);

struct Link {
    connection: ConnectionId,
    asks: mpsc::Sender<Ask>,
    /// Where a call has ended, and when; the last one behind.
    kept: Vec<(Stream, Instant)>,
}

/// A stream wanted.
struct Ask {
    protocol: StreamProtocol,
    answer: oneshot::Sender<Result<Stream, OpenError>>,
}

impl Opener {
    /// Opens a stream on the youngest connection to a peer: of several, it is the likeliest to be alive.
    pub async fn open(&self, peer: PeerId, protocol: StreamProtocol) -> Result<Stream, OpenError> {
        let asks = self.lock().get(&peer).and_then(|links| links.last()).map(|link| link.asks.clone());
        let asks = asks.ok_or_else(|| OpenError::NotConnected(node_id(&peer)))?;
        let (answer, answered) = oneshot::channel();
        let broken = || OpenError::Io(io::ErrorKind::ConnectionReset.into());
        asks.send(Ask { protocol, answer }).await.map_err(|_| broken())?;
        answered.await.map_err(|_| broken())?
    }

    /// A stream of [`crate::CALL`] to a peer on which a call has ended not long ago, if there is one. The peer may have closed
    /// it meanwhile: then the same is to be asked on a new one.
    pub fn reuse(&self, peer: PeerId) -> Option<Stream> {
        let mut links = self.lock();
        let kept = &mut links.get_mut(&peer)?.last_mut()?.kept;
        let (stream, since) = kept.pop()?;
        if since.elapsed() <= REUSED_WITHIN {
            return Some(stream);
        }
        // Those before it are older.
        kept.clear();
        None
    }

    /// Keeps a stream for the next call to a peer: the last answer was read from it, and the peer waits for another request.
    pub fn keep(&self, peer: PeerId, stream: Stream) {
        if let Some(link) = self.lock().get_mut(&peer).and_then(|links| links.last_mut())
            && link.kept.len() < MAX_KEPT
        {
            link.kept.push((stream, Instant::now()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Vec<Link>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The behaviour. It keeps every connection alive: who is connected stays so until someone hangs up.
pub struct Behaviour {
    roster: Roster,
    offers: Vec<Offer>,
    opener: Opener,
    accepted: mpsc::Sender<Inbound>,
    /// Connections on their way from a handler to the swarm's word that they are established.
    pending: HashMap<ConnectionId, mpsc::Sender<Ask>>,
    roles: HashMap<PeerId, Role>,
}

impl Behaviour {
    /// A behaviour that accepts `offers` and takes peers' roles from `roster`, and where its inbound streams come
    /// out.
    pub fn new(roster: Roster, offers: Vec<Offer>) -> (Self, mpsc::Receiver<Inbound>) {
        let (accepted, inbound) = mpsc::channel(MAX_ACCEPTED);
        let (opener, pending, roles) = Default::default();
        (Self { roster, offers, opener, accepted, pending, roles }, inbound)
    }

    /// What opens streams on this behaviour's connections.
    pub fn opener(&self) -> Opener {
        self.opener.clone()
    }

    /// What a connected peer was admitted as.
    pub fn role(&self, peer: &PeerId) -> Option<Role> {
        self.roles.get(peer).copied()
    }

    fn handler(&mut self, connection: ConnectionId, peer: PeerId) -> Result<Handler, ConnectionDenied> {
        let role = self.roster.role(&peer).ok_or_else(|| ConnectionDenied::new(NotAdmitted(peer)))?;
        self.roles.insert(peer, role);
        let (asks, asked) = mpsc::channel(MAX_ASKED);
        self.pending.insert(connection, asks);
        let offers = self.offers.iter().filter(|offer| offer.to_drivers || role == Role::Node);
        Ok(Handler {
            peer,
            role,
            offers: offers.map(|offer| offer.protocol.clone()).collect(),
            asked,
            accepted: PollSender::new(self.accepted.clone()),
            waiting: VecDeque::new(),
            reset: 0,
        })
    }
}

/// The transport admits before the swarm hears of a connection, so this means that a thousand others came between.
#[derive(Debug, thiserror::Error)]
#[error("{0} was admitted too long ago")]
struct NotAdmitted(PeerId);

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        self.handler(connection, peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        self.handler(connection, peer)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => {
                if let Some(asks) = self.pending.remove(&event.connection_id) {
                    let link = Link { connection: event.connection_id, asks, kept: Vec::new() };
                    self.opener.lock().entry(event.peer_id).or_default().push(link);
                }
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, .. }) => {
                let mut links = self.opener.lock();
                if let Some(of_peer) = links.get_mut(&peer_id) {
                    of_peer.retain(|link| link.connection != connection_id);
                    if of_peer.is_empty() {
                        links.remove(&peer_id);
                        self.roles.remove(&peer_id);
                    }
                }
            }
            // Another behaviour denied the connection after this one had made its handler.
            FromSwarm::DialFailure(event) => drop(self.pending.remove(&event.connection_id)),
            FromSwarm::ListenFailure(event) => drop(self.pending.remove(&event.connection_id)),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

/// One connection's part.
pub struct Handler {
    peer: PeerId,
    role: Role,
    offers: Vec<StreamProtocol>,
    asked: mpsc::Receiver<Ask>,
    accepted: PollSender<Inbound>,
    waiting: VecDeque<Inbound>,
    /// How many were not taken on, since as many waited.
    reset: u64,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = AnyOf;
    type OutboundProtocol = AnyOf;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Wanted;

    fn listen_protocol(&self) -> SubstreamProtocol<AnyOf> {
        SubstreamProtocol::new(AnyOf(self.offers.clone()), ())
    }

    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<AnyOf, Wanted, Infallible>> {
        while !self.waiting.is_empty() {
            match self.accepted.poll_reserve(cx) {
                Poll::Ready(Ok(())) => {
                    if let Some(inbound) = self.waiting.pop_front() {
                        let _ = self.accepted.send_item(inbound);
                    }
                }
                // Nobody accepts any more.
                Poll::Ready(Err(_)) => self.waiting.clear(),
                Poll::Pending => break,
            }
        }
        while let Poll::Ready(Some(ask)) = self.asked.poll_recv(cx) {
            if ask.answer.is_closed() {
                continue;
            }
            let protocol = SubstreamProtocol::new(AnyOf(vec![ask.protocol.clone()]), Wanted(ask));
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, AnyOf, AnyOf, (), Wanted>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol),
                ..
            }) => {
                if self.waiting.len() < MAX_WAITING {
                    let (peer, role) = (self.peer, self.role);
                    self.waiting.push_back(Inbound { peer, role, protocol, stream });
                } else {
                    self.reset += 1;
                    // The peer chooses how many there are: each further line stands for twice as many.
                    if self.reset.is_power_of_two() {
                        let (peer, reset) = (self.peer, self.reset);
                        tracing::warn!(%peer, reset, "streams are reset, since too many wait already");
                    }
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, _),
                info: Wanted(ask),
            }) => {
                let _ = ask.answer.send(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: Wanted(ask), error }) => {
                let error = match error {
                    StreamUpgradeError::Timeout => OpenError::Timeout,
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported(ask.protocol),
                    StreamUpgradeError::Io(error) => OpenError::Io(error),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                let _ = ask.answer.send(Err(error));
            }
            _ => {}
        }
    }
}

/// Who waits for a stream that is being negotiated.
pub struct Wanted(Ask);

/// Takes whichever of these protocols the two ends agree on, as it is.
#[derive(Clone, Debug)]
pub struct AnyOf(Vec<StreamProtocol>);

impl UpgradeInfo for AnyOf {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for AnyOf {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

impl OutboundUpgrade<Stream> for AnyOf {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}
