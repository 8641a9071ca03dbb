//! A driver's connection to one node: no discovery, no listening, ends when dropped.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use floe_protocol::{NodeId, Request, Response};
use futures::StreamExt;
use libp2p::core::transport::TransportError;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol, Swarm};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::admission::{Refusal, Roster, refusal_of};
use crate::call::{self, CallError};
use crate::gate::Credentials;
use crate::substreams::{self, OpenError, Opener};
use crate::transport::{IdentityError, transport};
use crate::{CALL, keepalive, node_id};

/// Why no connection came about. Each names the address.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Not an address of a node.
    #[error("{address} is not an address of a node: expected something like /ip4/127.0.0.1/tcp/4001")]
    BadAddress {
        /// The address.
        address: Multiaddr,
    },
    /// Nobody took the connection, or whoever did said nothing.
    #[error("nobody answers at {address} (waited {:.1} s)", waited.as_secs_f32())]
    NobodyAnswers {
        /// The address.
        address: Multiaddr,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Someone took the connection and the two did not suit each other.
    #[error("{address} cannot be used: {refusal}")]
    Refused {
        /// The address.
        address: Multiaddr,
        /// Why.
        refusal: Refusal,
    },
    /// Another node than the address names.
    #[error("{address} is now the address of another node, {obtained}")]
    WrongPeer {
        /// The address.
        address: Multiaddr,
        /// Who answers there.
        obtained: PeerId,
    },
    /// Our own identity is of no use.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// A connection to one node. Clones share it; it ends with the last of them.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    peer: PeerId,
    address: Multiaddr,
    opener: Opener,
    open: watch::Receiver<bool>,
    _task: AbortOnDropHandle<()>,
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
struct Behaviour {
    substreams: substreams::Behaviour,
    ping: libp2p_ping::Behaviour,
}

impl Connection {
    /// Connects to the node at `address`, which may end in `/p2p/PEER` to insist on who answers.
    pub async fn dial(
        identity: &Keypair,
        credentials: Credentials,
        address: Multiaddr,
        timeout: Duration,
    ) -> Result<Self, DialError> {
        let mut parts = address.iter();
        let (host, port) = (parts.next(), parts.next());
        if !matches!((host, port), (Some(Protocol::Ip4(_) | Protocol::Ip6(_)), Some(Protocol::Tcp(1..)))) {
            return Err(DialError::BadAddress { address });
        }
        let roster = Roster::default();
        let transport = transport(identity, credentials, roster.clone())?;
        let (substreams, _inbound) = substreams::Behaviour::new(roster, Vec::new());
        let opener = substreams.opener();
        let behaviour = Behaviour { substreams, ping: keepalive::behaviour() };
        let config = libp2p::swarm::Config::with_tokio_executor();
        let mut swarm = Swarm::new(transport, behaviour, identity.public().to_peer_id(), config);

        let started = tokio::time::Instant::now();
        let nobody = || DialError::NobodyAnswers { address: address.clone(), waited: started.elapsed() };
        let opts = DialOpts::from(address.clone());
        if let Err(error) = swarm.dial(opts) {
            return Err(explain(error, &address).unwrap_or_else(nobody));
        }
        let established = async {
            loop {
                match swarm.select_next_some().await {
                    SwarmEvent::ConnectionEstablished { peer_id, .. } => return Ok(peer_id),
                    SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error),
                    _ => {}
                }
            }
        };
        let peer = match tokio::time::timeout(timeout, established).await {
            Ok(Ok(peer)) => peer,
            Ok(Err(error)) => return Err(explain(error, &address).unwrap_or_else(nobody)),
            Err(_) => return Err(nobody()),
        };
        let (ended, open) = watch::channel(true);
        let task = tokio::spawn(async move {
            run(swarm).await;
            ended.send_replace(false);
        });
        let _task = AbortOnDropHandle::new(task);
        Ok(Self(Arc::new(Inner { peer, address, opener, open, _task })))
    }

    /// Who is at the other end.
    pub fn peer(&self) -> PeerId {
        self.0.peer
    }

    /// Its node id.
    pub fn node(&self) -> NodeId {
        node_id(&self.0.peer)
    }

    /// The address that was dialled.
    pub fn address(&self) -> &Multiaddr {
        &self.0.address
    }

    /// Whether the connection still stood when last heard of.
    pub fn is_open(&self) -> bool {
        *self.0.open.borrow()
    }

    /// Whether both are clones of one.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Waits until the connection has ended.
    pub async fn closed(&self) {
        let mut open = self.0.open.clone();
        // An error means that the task is gone, and the connection with it.
        let _ = open.wait_for(|open| !open).await;
    }

    /// Opens a stream.
    pub async fn open(&self, protocol: StreamProtocol) -> Result<Stream, OpenError> {
        self.0.opener.open(self.0.peer, protocol).await
    }

    /// See [`Opener::reuse`].
    pub fn reuse(&self) -> Option<Stream> {
        self.0.opener.reuse(self.0.peer)
    }

    /// See [`Opener::keep`].
    pub fn keep(&self, stream: Stream) {
        self.0.opener.keep(self.0.peer, stream);
    }

    /// Asks on a new [`CALL`] stream and waits up to `timeout` for the first response. More responses, or a body,
    /// may follow on the stream.
    pub async fn call(&self, request: &Request, timeout: Duration) -> Result<(Response, Stream), CallError> {
        let work = async {
            let mut stream = self.open(CALL).await?;
            let response = call::call(&mut stream, request, timeout).await?;
            Ok((response, stream))
        };
        tokio::time::timeout(timeout, work).await.unwrap_or(Err(CallError::Timeout { waited: timeout }))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.0.peer).field("address", &self.0.address).finish()
    }
}

async fn run(mut swarm: Swarm<Behaviour>) {
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionClosed { num_established: 0, .. } => return,
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) if keepalive::is_dead(&event) => {
                swarm.close_connection(event.connection);
            }
            _ => {}
        }
    }
}

/// What a failed dial says, unless it is that nobody answered.
fn explain(error: libp2p::swarm::DialError, address: &Multiaddr) -> Option<DialError> {
    use libp2p::swarm::DialError as Swarm;
    let address = address.clone();
    match error {
        Swarm::WrongPeerId { obtained, .. } => Some(DialError::WrongPeer { address, obtained }),
        Swarm::Transport(errors) => errors.iter().find_map(|(_, error)| {
            if matches!(error, TransportError::MultiaddrNotSupported(_)) {
                return Some(DialError::BadAddress { address: address.clone() });
            }
            let refusal = refusal_of(error)?;
            Some(DialError::Refused { address: address.clone(), refusal })
        }),
        _ => None,
    }
}
