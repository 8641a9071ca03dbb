//! How many connections others may have with this node, in shares that do not take each other's room.
//!
//! ```text
//!   nodes     as many as a mesh has, and a few that are about to die
//!   drivers   a share of their own, of which no host has all
//! ```
//!
//! Drivers that only stay connected keep neither a node out nor all other drivers.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::task::{Context, Poll};

use floe_transport::admission::Roster;
use floe_transport::host::{host_of, socket_of};
use floe_transport::{Gate, Refusal, Role};
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};

use crate::discovery::MAX_CONNECTED_NODES;

/// How many connections nodes may have with this one: two of each when both ends dialled at once.
const MAX_OF_NODES: usize = 2 * MAX_CONNECTED_NODES;

/// How many connections drivers and guests may have: each costs some 100 KiB.
const MAX_OF_DRIVERS: usize = 512;

/// How many drivers of one host: a whole mesh's may be on one machine, and others still get in.
const MAX_OF_HOST: usize = MAX_OF_DRIVERS / 4 * 3;

/// How many connections one peer may have: two when both ends dialled at once, and a few that are about to die.
const MAX_OF_PEER: usize = 8;

/// Keeps the shares, and tells the gate when that of the drivers is taken, so that they hear so at their admission.
pub(crate) struct Behaviour {
    gate: Gate,
    roster: Roster,
    limits: Limits,
    connections: HashMap<ConnectionId, Taken>,
    nodes: HashSet<ConnectionId>,
    by_host: HashMap<IpAddr, usize>,
    by_peer: HashMap<PeerId, usize>,
    drivers: usize,
}

#[derive(Clone, Copy)]
struct Limits {
    nodes: usize,
    drivers: usize,
    host: usize,
}

/// A driver's connection, or one that this node opened or took of a node.
#[derive(Clone, Copy)]
struct Taken {
    peer: PeerId,
    driver: bool,
    host: Option<IpAddr>,
}

impl Behaviour {
    pub(crate) fn new(gate: Gate, roster: Roster) -> Self {
        let limits = Limits { nodes: MAX_OF_NODES, drivers: MAX_OF_DRIVERS, host: MAX_OF_HOST };
        Self {
            gate,
            roster,
            limits,
            connections: HashMap::new(),
            nodes: HashSet::new(),
            by_host: HashMap::new(),
            by_peer: HashMap::new(),
            drivers: 0,
        }
    }

    fn take(&mut self, id: ConnectionId, peer: PeerId, from: Option<&Multiaddr>) -> Result<(), Refusal> {
        if self.by_peer.get(&peer).is_some_and(|count| *count >= MAX_OF_PEER) {
            return Err(Refusal::NoRoom);
        }
        let driver = from.is_some() && self.roster.role(&peer) != Some(Role::Node);
        let host = from.filter(|_| driver).and_then(socket_of).map(|socket| host_of(socket.ip()));
        if driver {
            let of_host = host.and_then(|host| self.by_host.get(&host)).copied().unwrap_or(0);
            if self.drivers >= self.limits.drivers || of_host >= self.limits.host {
                return Err(Refusal::NoRoom);
            }
            self.drivers += 1;
            if let Some(host) = host {
                *self.by_host.entry(host).or_default() += 1;
            }
        } else if from.is_some() {
            if self.nodes.len() >= self.limits.nodes {
                return Err(Refusal::NoRoom);
            }
            self.nodes.insert(id);
        }
        *self.by_peer.entry(peer).or_default() += 1;
        self.connections.insert(id, Taken { peer, driver, host });
        self.tell();
        Ok(())
    }

    fn give_back(&mut self, id: ConnectionId) {
        let Some(taken) = self.connections.remove(&id) else { return };
        self.nodes.remove(&id);
        if taken.driver {
            self.drivers -= 1;
        }
        if let Some(host) = taken.host {
            less(&mut self.by_host, host);
        }
        less(&mut self.by_peer, taken.peer);
        self.tell();
    }

    fn tell(&self) {
        let nodes_only = self.drivers >= self.limits.drivers;
        self.gate.change(|rules| rules.nodes_only = nodes_only);
    }
}

fn less<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        from: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.take(connection, peer, Some(from)).map_err(ConnectionDenied::new)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.take(connection, peer, None).map_err(ConnectionDenied::new)?;
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(event) => self.give_back(event.connection_id),
            // Another behaviour denied the connection after this one had counted it.
            FromSwarm::DialFailure(event) => self.give_back(event.connection_id),
            FromSwarm::ListenFailure(event) => self.give_back(event.connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        libp2p::core::util::unreachable(event)
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    use floe_transport::MeshKey;

    struct Door {
        shares: Behaviour,
        next: usize,
    }

    impl Door {
        fn new(limits: Limits) -> Self {
            let mut shares = Behaviour::new(Gate::new(MeshKey::generate()), Roster::default());
            shares.limits = limits;
            Self { shares, next: 0 }
        }

        fn come(&mut self, role: Role, from: &str) -> Option<ConnectionId> {
            let peer = PeerId::random();
            self.shares.roster.admit(peer, role);
            self.come_as(peer, from)
        }

        fn come_as(&mut self, peer: PeerId, from: &str) -> Option<ConnectionId> {
            self.next += 1;
            let id = ConnectionId::new_unchecked(self.next);
            let from = format!("/ip4/{from}/tcp/{}", self.next).parse().unwrap();
            self.shares.take(id, peer, Some(&from)).ok().map(|()| id)
        }
    }

    #[test]
    fn drivers_keep_no_node_out_and_no_host_has_all_of_their_share() {
        let mut door = Door::new(Limits { nodes: 4, drivers: 8, host: 6 });
        let greedy: Vec<_> = (0..20).filter_map(|_| door.come(Role::Driver, "192.0.2.1")).collect();
        assert_eq!(greedy.len(), 6);
        assert!(door.come(Role::Driver, "192.0.2.2").is_some());
        assert!(door.come(Role::Driver, "192.0.2.2").is_some());
        assert!(door.come(Role::Driver, "192.0.2.3").is_none(), "the whole share");
        let nodes = (0..9).filter(|_| door.come(Role::Node, "192.0.2.1").is_some()).count();
        assert_eq!(nodes, 4);
        // What is given back can be taken again.
        door.shares.give_back(greedy[0]);
        door.shares.give_back(greedy[0]);
        assert!(door.come(Role::Driver, "192.0.2.3").is_some());
        assert!(door.come(Role::Driver, "192.0.2.3").is_none());
    }

    #[test]
    fn one_peer_has_a_few_connections_and_nothing_is_left_of_those_that_ended() {
        let mut door = Door::new(Limits { nodes: 99, drivers: 99, host: 99 });
        let peer = PeerId::random();
        door.shares.roster.admit(peer, Role::Driver);
        let taken: Vec<_> = (0..20).filter_map(|_| door.come_as(peer, "192.0.2.1")).collect();
        assert_eq!(taken.len(), MAX_OF_PEER);
        for id in taken {
            door.shares.give_back(id);
        }
        let Behaviour { connections, nodes, by_host, by_peer, drivers, .. } = door.shares;
        assert!(connections.is_empty() && nodes.is_empty() && by_host.is_empty() && by_peer.is_empty());
        assert_eq!(drivers, 0);
    }
}
