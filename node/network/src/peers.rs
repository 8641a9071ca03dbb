//! Who is connected, shared between the swarm's loop and the handle.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use floe_protocol::NodeId;
use floe_transport::node_id;
use libp2p::{Multiaddr, PeerId};
use tokio_util::task::AbortOnDropHandle;

use crate::control::Outgoing;

/// How many nodes that are gone are remembered for [`crate::Network::peers`].
const MAX_GONE: usize = 256;

/// Control streams of one node that are read at a time. It has one; but a copy of its data directory may speak under its
/// name, and must not be what is heard in its place.
const MAX_READERS: usize = 2;

/// A node as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// The node.
    pub node: NodeId,
    /// Its identity.
    pub peer: PeerId,
    /// Where it can be reached, as far as is known.
    pub addresses: Vec<Multiaddr>,
    /// Whether it is connected now.
    pub connected: bool,
}

/// The table.
#[derive(Clone, Default)]
pub(crate) struct Peers(Arc<Mutex<BTreeMap<NodeId, Peer>>>);

struct Peer {
    peer: PeerId,
    addresses: Vec<Multiaddr>,
    /// While it is connected.
    outgoing: Option<Outgoing>,
    /// Read its control streams, the newest last.
    readers: VecDeque<AbortOnDropHandle<()>>,
}

impl Peers {
    /// Whether it was down before.
    pub(crate) fn up(&self, peer: PeerId, outgoing: impl FnOnce() -> Outgoing) -> bool {
        let mut peers = self.lock();
        let entry = peers.entry(node_id(&peer)).or_insert_with(|| Peer::new(peer));
        let is_news = entry.outgoing.is_none();
        entry.outgoing.get_or_insert_with(outgoing);
        is_news
    }

    /// Whether it was up before.
    pub(crate) fn down(&self, peer: PeerId) -> bool {
        let mut peers = self.lock();
        let Some(entry) = peers.get_mut(&node_id(&peer)) else {
            return false;
        };
        entry.readers.clear();
        let was_up = entry.outgoing.take().is_some();
        let mut gone = peers.iter().filter(|(_, peer)| peer.outgoing.is_none()).map(|(node, _)| *node);
        if let (Some(first), true) = (gone.next(), gone.count() >= MAX_GONE) {
            peers.remove(&first);
        }
        was_up
    }

    /// Every connected node's queue, taken away.
    pub(crate) fn take_outgoing(&self) -> Vec<Outgoing> {
        self.lock().values_mut().filter_map(|peer| peer.outgoing.take()).collect()
    }

    pub(crate) fn read_by(&self, peer: PeerId, reader: AbortOnDropHandle<()>) {
        let mut peers = self.lock();
        let readers = &mut peers.entry(node_id(&peer)).or_insert_with(|| Peer::new(peer)).readers;
        readers.retain(|reader| !reader.is_finished());
        if readers.len() >= MAX_READERS {
            readers.pop_front();
        }
        readers.push_back(reader);
    }

    pub(crate) fn reached_at(&self, peer: PeerId, addresses: Vec<Multiaddr>) {
        if let Some(entry) = self.lock().get_mut(&node_id(&peer)) {
            entry.addresses = addresses;
        }
    }

    pub(crate) fn send(&self, to: NodeId, frame: Vec<u8>) -> bool {
        let peers = self.lock();
        peers.get(&to).and_then(|peer| peer.outgoing.as_ref()).is_some_and(|outgoing| outgoing.send(frame))
    }

    pub(crate) fn peer(&self, node: NodeId) -> Option<PeerId> {
        self.lock().get(&node).filter(|peer| peer.outgoing.is_some()).map(|peer| peer.peer)
    }

    pub(crate) fn is_connected(&self, node: NodeId) -> bool {
        self.peer(node).is_some()
    }

    pub(crate) fn view(&self) -> Vec<PeerView> {
        let peers = self.lock();
        let view = peers.iter().map(|(node, peer)| PeerView {
            node: *node,
            peer: peer.peer,
            addresses: peer.addresses.clone(),
            connected: peer.outgoing.is_some(),
        });
        view.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Peer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    fn new(peer: PeerId) -> Self {
        Self { peer, addresses: Vec::new(), outgoing: None, readers: VecDeque::new() }
    }
}
