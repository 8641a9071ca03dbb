//! Which nodes a driver knows, and in what order it tries them.

use std::collections::{BTreeMap, VecDeque};

use floe_protocol::message::Status;
use floe_protocol::{NodeId, NodeInfo};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

/// How many addresses are kept. A mesh of a hundred nodes with two addresses each fits; more would only make
/// the round through dead ones longer.
const MAX_ADDRESSES: usize = 256;

/// The known addresses, the next to try first.
///
/// The addresses that the user gave are never forgotten; the others follow what the mesh says of its members.
#[derive(Debug)]
pub(crate) struct Nodes {
    given: Vec<Multiaddr>,
    order: VecDeque<Multiaddr>,
    /// Where each member can be dialled, by what it says.
    members: BTreeMap<NodeId, Vec<Multiaddr>>,
}

impl Nodes {
    /// Knows only what the user gave.
    pub(crate) fn new(given: Vec<Multiaddr>) -> Self {
        let order = given.iter().take(MAX_ADDRESSES).cloned().collect();
        Self { given, order, members: BTreeMap::new() }
    }

    /// Every address, the next to try first.
    pub(crate) fn candidates(&self) -> Vec<Multiaddr> {
        self.order.iter().cloned().collect()
    }

    /// Whether there is another address than this one to try.
    pub(crate) fn has_others(&self, address: &Multiaddr) -> bool {
        self.order.iter().any(|known| known != address)
    }

    /// Where a member can be dialled.
    pub(crate) fn addresses_of(&self, node: NodeId) -> Vec<Multiaddr> {
        self.members.get(&node).cloned().unwrap_or_default()
    }

    /// The node at this address answered: it is tried first from now on.
    pub(crate) fn answered(&mut self, address: &Multiaddr) {
        self.order.retain(|known| known != address);
        self.order.push_front(address.clone());
    }

    /// The node at this address did not answer: it is tried last from now on.
    pub(crate) fn failed(&mut self, address: &Multiaddr) {
        if let Some(at) = self.order.iter().position(|known| known == address)
            && let Some(address) = self.order.remove(at)
        {
            self.order.push_back(address);
        }
    }

    /// Takes over what a node says of the mesh's members: living ones are added, gone ones forgotten. The order
    /// among those already known stays.
    pub(crate) fn learn(&mut self, status: &Status) {
        let addresses = |info: &NodeInfo| -> Vec<Multiaddr> {
            info.member.addresses.iter().filter_map(|address| address.parse().ok()).collect()
        };
        let members = status.nodes.iter().take(MAX_ADDRESSES);
        self.members = members.map(|info| (info.member.id, addresses(info))).collect();
        let (living, silent): (Vec<_>, Vec<_>) = status.nodes.iter().partition(|node| node.alive);
        let told: Vec<Multiaddr> = living.into_iter().chain(silent).flat_map(addresses).collect();
        let given = &self.given;
        self.order.retain(|known| given.contains(known) || told.contains(known));
        for address in told {
            if self.order.len() < MAX_ADDRESSES && !self.order.iter().any(|known| same_place(known, &address))
            {
                self.order.push_back(address);
            }
        }
    }
}

/// Whether two addresses lead to the same place, whether or not they name who is expected there.
fn same_place(one: &Multiaddr, other: &Multiaddr) -> bool {
    let place = |address: &Multiaddr| -> Vec<_> {
        address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).map(Protocol::acquire).collect()
    };
    place(one) == place(other)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use floe_protocol::{Load, Member, NodeRole};

    use super::*;

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()
    }

    fn status(ports: &[(u16, bool)]) -> Status {
        let node = |(port, alive): &(u16, bool)| NodeInfo {
            member: Member {
                id: NodeId((*port).into()),
                peer: String::new(),
                name: String::new(),
                addresses: vec![address(*port).to_string(), "nonsense".into()],
                slots: 1,
                memory_bytes: 1,
                version: String::new(),
                incarnation: floe_protocol::Incarnation::default(),
            },
            role: NodeRole::Voter,
            alive: *alive,
            load: Load::default(),
        };
        let nodes = ports.iter().map(node).collect();
        Status { node: NodeId(1), era: None, leader: None, term: 0, nodes, voters: vec![], rival: None }
    }

    #[test]
    fn the_mesh_teaches_addresses_and_the_given_ones_stay() {
        let mut nodes = Nodes::new(vec![address(1)]);
        nodes.learn(&status(&[(2, false), (3, true)]));
        assert_eq!(nodes.candidates(), [address(1), address(3), address(2)], "the living first");
        nodes.failed(&address(1));
        nodes.answered(&address(2));
        assert_eq!(nodes.candidates(), [address(2), address(3), address(1)]);
        nodes.learn(&status(&[(3, true), (4, true)]));
        assert_eq!(nodes.candidates(), [address(3), address(1), address(4)], "2 left the mesh");
        assert_eq!(nodes.addresses_of(NodeId(4)), [address(4)]);
        assert_eq!(nodes.addresses_of(NodeId(2)), []);
    }

    #[test]
    fn an_address_is_known_once_with_or_without_its_peer() {
        let peer = libp2p::identity::Keypair::generate_ed25519().public().to_peer_id();
        let mut nodes = Nodes::new(vec![address(1).with(Protocol::P2p(peer))]);
        nodes.learn(&status(&[(1, true)]));
        assert_eq!(nodes.candidates().len(), 1);
    }

    #[test]
    fn a_huge_mesh_is_not_remembered_whole() {
        let mut nodes = Nodes::new(vec![address(1)]);
        let many: Vec<_> = (2..2000).map(|port| (port, true)).collect();
        nodes.learn(&status(&many));
        assert_eq!((nodes.candidates().len(), nodes.members.len()), (MAX_ADDRESSES, MAX_ADDRESSES));
    }
}
