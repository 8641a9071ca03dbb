//! The other nodes as this one sees them: how they are, who may come, and who must go.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use floe_consensus::StateMachine;
use floe_consensus::membership::Configuration;
use floe_network::Network;
use floe_protocol::{Load, Member, NodeId};
use floe_transport::Refusal;
use libp2p::Multiaddr;

use crate::config;
use crate::keys::Keys;

/// How many refusals are remembered for whoever asks why nobody takes this node in.
const MAX_REFUSALS: usize = 16;

/// What is known of the other nodes beside what was agreed on.
#[derive(Debug)]
pub struct Peers {
    me: NodeId,
    network: Network,
    keys: Keys,
    /// What nodes say of their loads.
    loads: BTreeMap<NodeId, Load>,
    /// Who was not admitted lately, the newest in front.
    refusals: VecDeque<(Multiaddr, Refusal)>,
    /// Nodes that must not come back, and how long their connections still stand.
    leaving: BTreeMap<NodeId, Instant>,
    /// Whether the mesh has said that this node must not come back.
    forgotten: bool,
}

impl Peers {
    /// Of `me`: nobody yet.
    pub fn new(me: NodeId, network: Network, keys: Keys) -> Self {
        let (loads, refusals, leaving) = Default::default();
        Self { me, network, keys, loads, refusals, leaving, forgotten: false }
    }

    /// A node, this one too, says how it is.
    pub fn says(&mut self, node: NodeId, load: Load) {
        self.loads.insert(node, load);
    }

    /// What a node said last of how it is.
    pub fn load(&self, node: NodeId) -> Option<Load> {
        self.loads.get(&node).copied()
    }

    /// A node has gone.
    pub fn gone(&mut self, node: NodeId) {
        self.loads.remove(&node);
    }

    /// Somebody was not admitted, here or there.
    pub fn refused(&mut self, address: Multiaddr, refusal: Refusal) {
        tracing::debug!(%address, "not admitted: {refusal}");
        self.forgotten |= refusal == Refusal::Forgotten;
        self.refusals.truncate(MAX_REFUSALS - 1);
        self.refusals.push_front((address, refusal));
    }

    /// Who was not admitted lately, the newest first.
    pub fn refusals(&self) -> Vec<(Multiaddr, Refusal)> {
        self.refusals.iter().cloned().collect()
    }

    /// Whether this node must not come back to its mesh.
    pub fn is_forgotten(&self) -> bool {
        self.forgotten
    }

    /// Makes sure that the network knows where a member is.
    pub fn meet(&self, member: &Member) {
        let addresses = member.addresses.iter().filter_map(|address| address.parse().ok()).collect();
        match member.peer.parse() {
            Ok(peer) => self.network.dial(peer, addresses),
            Err(error) => tracing::warn!(node = %member.id, %error, "a member without a valid peer id"),
        }
    }

    /// Lets those in, and only those, whom the mesh has agreed on.
    pub fn follow_door(&mut self, state: &StateMachine) {
        if let Some(changed) = self.keys.follow(state) {
            tokio::spawn(changed.tell(self.network.clone()));
        }
        let forgotten = state.door().forgotten().iter().filter(|node| **node != self.me);
        let connected: Vec<_> = forgotten.filter(|node| self.network.is_connected(**node)).copied().collect();
        for node in connected {
            self.leaving.entry(node).or_insert_with(|| Instant::now() + config::LEAVE_PATIENCE);
        }
    }

    /// Closes the connections to nodes that must not come back, as soon as the others can agree without them.
    pub fn hang_up(&mut self, configuration: impl FnOnce() -> Configuration) {
        if self.leaving.is_empty() {
            return;
        }
        let Configuration { voters, learners, outgoing } = configuration();
        let needed = |node: &NodeId| [&voters, &learners, &outgoing].iter().any(|nodes| nodes.contains(node));
        let now = Instant::now();
        self.leaving.retain(|node, until| {
            let stays = needed(node) && now < *until;
            if !stays {
                tracing::warn!(%node, "removed from the mesh for good: its connections are closed");
                self.network.shut_out(*node);
            }
            stays
        });
    }
}
