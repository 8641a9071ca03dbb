//! Connections to the nodes that hold partitions, beside the one over which a driver asks everything else.
//!
//! Nobody waits for them: what a driver cannot fetch from its holder yet, or at all, comes through the node that it
//! is connected to.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use floe_protocol::NodeId;
use floe_transport::Connection;

/// How many nodes a driver is connected to besides. What others hold comes through the one.
const MAX_HOLDERS: usize = 64;

/// How soon a node that could not be reached is tried again: firewalls seldom change their minds.
const TRIED_AGAIN: Duration = Duration::from_secs(60);

/// The nodes that were wanted so far.
#[derive(Debug, Default)]
pub(crate) struct Holders(HashMap<NodeId, Holder>);

#[derive(Debug)]
enum Holder {
    Dialled,
    Connected(Connection),
    Unreachable { since: Instant },
}

impl Holders {
    /// A connection to one of these nodes.
    pub(crate) fn connected(&self, nodes: &[NodeId]) -> Option<Connection> {
        nodes.iter().find_map(|node| match self.0.get(node) {
            Some(Holder::Connected(connection)) if connection.is_open() => Some(connection.clone()),
            _ => None,
        })
    }

    /// Whether to dial this node now. The next to ask is told no until [`Self::dialled`] says how it went.
    pub(crate) fn begin(&mut self, node: NodeId, now: Instant) -> bool {
        self.0.retain(|_, holder| match holder {
            Holder::Dialled => true,
            Holder::Connected(connection) => connection.is_open(),
            Holder::Unreachable { since } => now.duration_since(*since) < TRIED_AGAIN,
        });
        if self.0.len() >= MAX_HOLDERS || self.0.contains_key(&node) {
            return false;
        }
        self.0.insert(node, Holder::Dialled);
        true
    }

    /// How a dial went; without a connection the node is left alone for a while.
    pub(crate) fn dialled(&mut self, node: NodeId, connection: Option<Connection>, now: Instant) {
        let holder = connection.map_or(Holder::Unreachable { since: now }, Holder::Connected);
        self.0.insert(node, holder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_dialled_once_at_a_time_and_again_only_after_a_while() {
        let mut holders = Holders::default();
        let (one, other, now) = (NodeId(1), NodeId(2), Instant::now());
        assert!(holders.begin(one, now) && !holders.begin(one, now) && holders.begin(other, now));
        holders.dialled(one, None, now);
        assert!(!holders.begin(one, now));
        let later = now + TRIED_AGAIN;
        assert!(holders.begin(one, later));
        assert!(!holders.begin(other, later), "it is still being dialled");
        assert!(holders.connected(&[one, other]).is_none());
    }

    #[test]
    fn not_every_node_of_a_huge_mesh_is_dialled() {
        let mut holders = Holders::default();
        let now = Instant::now();
        assert_eq!((0..1000).filter(|node| holders.begin(NodeId(*node), now)).count(), MAX_HOLDERS);
    }
}
