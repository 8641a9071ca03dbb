//! Hints: what every node says of itself once a second, spread by gossip. Losing all of them costs speed and a
//! dashboard's freshness, never correctness.

use std::time::Duration;

use floe_protocol::{Load, NodeId, frame};
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId, gossipsub};
use serde::{Deserialize, Serialize};

use floe_transport::node_id;

/// The largest hint with its sender's addresses, encoded.
pub const MAX_HINT_BYTES: usize = 1024;

/// How often a node publishes at most.
pub(crate) const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

/// How many addresses travel with a hint.
const MAX_ADDRESSES: usize = 4;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// The node. Gossip is signed, and a hint of anyone else's is dropped.
    pub node: NodeId,
    /// What its owner calls it.
    pub name: String,
    /// What it has to do.
    pub load: Load,
    /// How many tasks it runs at once.
    pub slots: u32,
    /// The version of its `floe`.
    pub version: String,
    /// The leader it hears from.
    pub leader: Option<NodeId>,
    /// The Raft term it is in.
    pub term: u64,
}

/// What travels: the hint, and where its node can be reached, so that large meshes close too.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Announcement {
    pub(crate) hint: Hint,
    pub(crate) addresses: Vec<Multiaddr>,
}

impl Announcement {
    /// Encodes it, if it is not too long.
    pub(crate) fn encode(hint: Hint, addresses: &[Multiaddr]) -> Option<Vec<u8>> {
        let addresses = addresses.iter().take(MAX_ADDRESSES).cloned().collect();
        let bytes = frame::encode(&Self { hint, addresses }).ok()?;
        (bytes.len() <= MAX_HINT_BYTES).then_some(bytes)
    }

    /// Decodes it, if it is well formed and speaks for `source`.
    pub(crate) fn decode(bytes: &[u8], source: &PeerId) -> Option<Self> {
        if bytes.len() > MAX_HINT_BYTES {
            return None;
        }
        let announcement: Self = frame::decode(bytes).ok()?;
        let genuine = announcement.hint.node == node_id(source);
        (genuine && announcement.addresses.len() <= MAX_ADDRESSES).then_some(announcement)
    }
}

pub(crate) fn topic() -> gossipsub::IdentTopic {
    gossipsub::IdentTopic::new("floe/hints/1")
}

/// The behaviour, tuned for meshes that may be as small as two.
pub(crate) fn behaviour(identity: &Keypair) -> Result<gossipsub::Behaviour, String> {
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix("/floe/gossip")
        // With a lower bound of five, a mesh of three would look for more peers for ever.
        .mesh_outbound_min(1)
        .mesh_n_low(2)
        .mesh_n(4)
        .mesh_n_high(8)
        .max_transmit_size(2 * MAX_HINT_BYTES)
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        .build()
        .map_err(|error| error.to_string())?;
    let authenticity = gossipsub::MessageAuthenticity::Signed(identity.clone());
    let mut behaviour = gossipsub::Behaviour::new(authenticity, config)?;
    behaviour.subscribe(&topic()).map_err(|error| error.to_string())?;
    Ok(behaviour)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn hint(peer: &PeerId) -> Hint {
        Hint {
            node: node_id(peer),
            name: "attic".into(),
            load: Load::default(),
            slots: 4,
            version: "0.1.0".into(),
            leader: None,
            term: 0,
        }
    }

    #[test]
    fn a_hint_survives_and_only_its_own_node_may_send_it() {
        let (peer, other) = (PeerId::random(), PeerId::random());
        let address: Multiaddr = "/ip4/10.0.0.7/tcp/4001".parse().unwrap();
        let bytes = Announcement::encode(hint(&peer), &vec![address.clone(); 9]).unwrap();
        let got = Announcement::decode(&bytes, &peer).unwrap();
        assert_eq!(got.hint, hint(&peer));
        assert_eq!(got.addresses, vec![address; MAX_ADDRESSES]);
        assert!(Announcement::decode(&bytes, &other).is_none());
        assert!(Announcement::decode(&bytes[1..], &peer).is_none());
    }

    #[test]
    fn a_hint_that_is_too_long_is_not_sent_and_not_taken() {
        let peer = PeerId::random();
        let long = Hint { name: "x".repeat(MAX_HINT_BYTES), ..hint(&peer) };
        let bytes = frame::encode(&Announcement { hint: long.clone(), addresses: Vec::new() }).unwrap();
        assert!(Announcement::encode(long, &[]).is_none());
        assert!(Announcement::decode(&bytes, &peer).is_none());
    }
}
