//! The swarm of a Floe node behind one handle: who is there, messages to them, calls from them.
//!
//! ```text
//!   discovery   who might be there: addresses to dial, when, and how often
//!   gossip      hints that every node spreads about itself
//!   peers       who is connected
//!   control     one-way messages, in order, on one stream a direction
//!   shares      how many connections others may have
//!   refusals    who was refused, in the log
//!   swarm       the loop that owns the libp2p swarm and sees all of the above
//! ```
//!
//! Absent: what messages mean, a leader, Polars. Nothing here decides anything about the mesh: every node is
//! connected to every other as soon as it hears of it, and that is all.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use floe_protocol::{Failure, InvitationId, NodeId, PeerMessage, Request, Response, frame};
use floe_transport::call::{read_frame, write_frame};
use floe_transport::stream::{BodyError, send_body};
use floe_transport::transport::IdentityError;
use floe_transport::{CALL, CallError, Gate, OpenError, Opener, Refusal, Stream, call, node_id};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{mpsc, oneshot, watch};

mod control;
mod discovery;
mod gossip;
mod peers;
mod refusals;
mod shares;
mod swarm;

pub use discovery::MAX_CONNECTED_NODES;
pub use gossip::{Hint, MAX_HINT_BYTES};
pub use peers::PeerView;

use peers::Peers;
use swarm::Command;

/// How many events wait for the node before the network waits for it.
const MAX_EVENTS: usize = 1024;

/// How many orders of the node's wait for the swarm; those beyond are dropped, and all of them may be repeated.
const MAX_COMMANDS: usize = 256;

/// What a node's network needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's identity.
    pub identity: Keypair,
    /// Whom it lets in, and by what it is let in itself. Its owner may change the rules at any time.
    pub gate: Gate,
    /// What the node's owner calls it, for other nodes' logs.
    pub name: String,
    /// Where to listen: `/ip4/ADDRESS/tcp/PORT`, port 0 for any.
    pub listen: Vec<Multiaddr>,
    /// Nodes to connect to, tried for ever. `/p2p/PEER` at the end is optional.
    pub join: Vec<Multiaddr>,
    /// Whether to find nodes on the local network by multicast. Without it no multicast is sent.
    pub mdns: bool,
    /// A directory through which the nodes of one machine find each other.
    pub local_registry: Option<PathBuf>,
}

/// Why an upload brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The call broke off beside its body.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The body did not get there.
    #[error(transparent)]
    Body(#[from] BodyError),
}

/// Why a network could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not an address to listen on.
    #[error("cannot listen on {address}: expected something like /ip4/127.0.0.1/tcp/4001")]
    Address {
        /// The address.
        address: Multiaddr,
    },
    /// Someone else listens there.
    #[error("cannot listen on {address}: the port is in use; choose another with --listen")]
    PortInUse {
        /// The address.
        address: Multiaddr,
    },
    /// The system refused.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: Multiaddr,
        /// Why.
        source: std::io::Error,
    },
    /// Multicast is not to be had.
    #[error("cannot look for nodes on the local network (mDNS): {0}")]
    Mdns(std::io::Error),
    /// The directory of this machine's nodes cannot be written.
    #[error("cannot write to {dir}, where this machine's nodes find each other: {source}", dir = dir.display())]
    Registry {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The identity is of no use.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A setting that libp2p does not take.
    #[error("internal error (please report it): gossip cannot start: {0}")]
    Gossip(String),
}

/// Who made a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A node of the mesh.
    Node(NodeId),
    /// A driver.
    Driver(PeerId),
    /// One that was invited to become a node, and is not one yet.
    Guest {
        /// Who it will be.
        peer: PeerId,
        /// Its invitation.
        invitation: InvitationId,
    },
}

impl Caller {
    /// Whether it is a node of the mesh.
    pub fn is_node(&self) -> bool {
        matches!(self, Self::Node(_))
    }
}

/// What happens on the network.
#[derive(Debug)]
pub enum Event {
    /// The node can be reached here.
    Listening(Multiaddr),
    /// The first connection to a node.
    PeerUp {
        /// The node.
        node: NodeId,
        /// Its identity.
        peer: PeerId,
    },
    /// The last connection to a node is gone.
    PeerDown {
        /// The node.
        node: NodeId,
    },
    /// A message from a node: those of one node in the order in which it sent them, some perhaps missing. The first
    /// ones may come just before the [`Event::PeerUp`].
    Message {
        /// The node.
        from: NodeId,
        /// The message.
        message: PeerMessage,
    },
    /// A call. If a body belongs to the request, it follows on the stream; answers go onto the stream.
    Call {
        /// Who asks.
        from: Caller,
        /// What.
        request: Request,
        /// Where to answer.
        stream: Stream,
    },
    /// What a node says of itself. May be missed at any time.
    Hint {
        /// The node.
        from: NodeId,
        /// What it says.
        hint: Hint,
    },
    /// A peer did not admit us, or was not admitted: of these the first in a while only.
    Refused {
        /// Its address.
        address: Multiaddr,
        /// Why.
        refusal: Refusal,
    },
}

/// Handle to a running network. Clones share it; it stops when the last of them is dropped, the receiver of its
/// events is dropped, or one of them shuts it down.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("peer", &self.0.peer).finish_non_exhaustive()
    }
}

struct Inner {
    peer: PeerId,
    peers: Peers,
    opener: Opener,
    commands: mpsc::Sender<Command>,
    hints: watch::Sender<Option<Hint>>,
    addresses: watch::Receiver<Vec<Multiaddr>>,
}

/// Starts listening and looking for nodes. Returns once every listener listens.
pub async fn start(config: Config) -> Result<(Network, mpsc::Receiver<Event>), Error> {
    let peer = config.identity.public().to_peer_id();
    let (events, received) = mpsc::channel(MAX_EVENTS);
    let (commands, ordered) = mpsc::channel(MAX_COMMANDS);
    let (hints, hinted) = watch::channel(None);
    let (announced, addresses) = watch::channel(Vec::new());
    let peers = Peers::default();
    let mut service = swarm::Service::new(&config, peers.clone(), events, ordered, hinted, announced)?;
    service.listen(&config.listen).await?;
    if let Some(dir) = config.local_registry {
        service.join_registry(dir)?;
    }
    let opener = service.opener();
    tokio::spawn(service.run());
    Ok((Network(Arc::new(Inner { peer, peers, opener, commands, hints, addresses })), received))
}

impl Network {
    /// This node.
    pub fn node(&self) -> NodeId {
        node_id(&self.0.peer)
    }

    /// This node's identity.
    pub fn peer_id(&self) -> PeerId {
        self.0.peer
    }

    /// Where this node can be reached, as addresses that end in `/p2p/PEER`: from other machines if it listens for
    /// them, else from this one.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        let addresses = self.0.addresses.borrow();
        addresses.iter().filter_map(|address| address.clone().with_p2p(self.0.peer).ok()).collect()
    }

    /// Sends a message to a node. It never waits; false means that the message is dropped: the node is not
    /// connected, or does not keep up. True does not mean that it arrives.
    pub fn send(&self, to: NodeId, message: &PeerMessage) -> bool {
        match frame::encode_frame(message) {
            Ok(frame) => self.0.peers.send(to, frame),
            Err(error) => {
                tracing::error!(%to, %error, "a message cannot be sent");
                false
            }
        }
    }

    /// Asks a node for something that has one response, and waits for it. For other calls, [`Network::open`] a stream. It may
    /// be asked twice, if the stream of an earlier call was closed meanwhile.
    pub async fn call(
        &self,
        to: NodeId,
        request: &Request,
        timeout: Duration,
    ) -> Result<Response, CallError> {
        let work = async {
            let peer = self.0.peers.peer(to).ok_or(OpenError::NotConnected(to))?;
            if let Some(mut stream) = self.0.opener.reuse(peer) {
                match call::call(&mut stream, request, timeout).await {
                    Ok(response) => {
                        self.0.opener.keep(peer, stream);
                        return Ok(response);
                    }
                    Err(error) if error.is_closed() => {}
                    Err(error) => return Err(error),
                }
            }
            let mut stream = self.0.opener.open(peer, CALL).await?;
            let response = call::call(&mut stream, request, timeout).await?;
            self.0.opener.keep(peer, stream);
            Ok(response)
        };
        tokio::time::timeout(timeout, work).await.unwrap_or(Err(CallError::Timeout { waited: timeout }))
    }

    /// Opens a stream for a call to a connected node.
    pub async fn open(&self, to: NodeId) -> Result<Stream, OpenError> {
        let peer = self.0.peers.peer(to).ok_or(OpenError::NotConnected(to))?;
        self.0.opener.open(peer, CALL).await
    }

    /// Asks a node for something that a body belongs to, and waits for the response, after the body for so long. A body
    /// that the other side will not have is answered with a failure, and so is one whose source fails.
    pub async fn upload<B>(
        &self,
        to: NodeId,
        request: &Request,
        body: B,
        patience: Duration,
    ) -> Result<(Response, Stream), UploadError>
    where
        B: futures::Stream<Item = Result<Bytes, Failure>>,
    {
        let mut stream = self.open(to).await.map_err(CallError::from)?;
        write_frame(&mut stream, request).await?;
        match send_body(&mut stream, body).await {
            Ok(_) => {
                let response = tokio::time::timeout(patience, read_frame(&mut stream)).await;
                Ok((response.unwrap_or(Err(CallError::Timeout { waited: patience }))?, stream))
            }
            Err(BodyError::Refused(failure) | BodyError::Failed(failure)) => {
                Ok((Response::Failed(failure), stream))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Spreads what this node says of itself, at most once a second: the latest counts.
    pub fn publish(&self, hint: Hint) {
        self.0.hints.send_replace(Some(hint));
    }

    /// The nodes that are connected or were not long ago, in order of id.
    pub fn peers(&self) -> Vec<PeerView> {
        self.0.peers.view()
    }

    /// Whether a node is connected.
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.0.peers.is_connected(node)
    }

    /// Tells where a member can be reached: it is dialled until it is connected.
    pub fn dial(&self, peer: PeerId, addresses: Vec<Multiaddr>) {
        self.order(Command::Dial { peer, addresses });
    }

    /// Closes the connections to a node that is thought dead. If it lives, it will be connected again.
    pub fn disconnect(&self, node: NodeId) {
        if let Some(peer) = self.0.peers.peer(node) {
            self.order(Command::Disconnect { peer });
        }
    }

    /// Closes the connections to a node unless it answers within this time.
    pub async fn probe(&self, node: NodeId, timeout: Duration) {
        if let Err(CallError::Timeout { waited }) = self.call(node, &Request::Mesh, timeout).await {
            tracing::debug!(%node, ?waited, "does not answer");
            self.disconnect(node);
        }
    }

    /// Closes the connections to a node that the gate does not let in any more, and dials it no more.
    pub fn shut_out(&self, node: NodeId) {
        self.order(Command::ShutOut { node });
    }

    /// The gate has another key: tells the nodes of this machine. Returns once they can find this node by it.
    pub async fn rekeyed(&self) {
        let (done, told) = oneshot::channel();
        if self.0.commands.send(Command::Rekeyed { done }).await.is_ok() {
            // An error means that the network has stopped.
            let _ = told.await;
        }
    }

    /// Sends what is queued, hangs up, and stops.
    pub async fn shutdown(self) {
        let (done, finished) = oneshot::channel();
        if self.0.commands.send(Command::Shutdown { done }).await.is_ok() {
            // An error means that it stopped by itself.
            let _ = finished.await;
        }
    }

    fn order(&self, command: Command) {
        if self.0.commands.try_send(command).is_err() {
            tracing::debug!("the swarm is busy or stopped: an order is dropped");
        }
    }
}
