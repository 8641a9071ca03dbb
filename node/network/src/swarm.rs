//! The loop that owns the libp2p swarm.
//!
//! It waits for nobody: events for the node go through an outbox, streams are read by tasks of their own.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use floe_protocol::{KeyName, NodeId, Request};
use floe_transport::registry::{self, Listed};
use floe_transport::substreams::{self, Inbound, Offer};
use floe_transport::{
    CALL, CONTROL, CallError, Credentials, Gate, Opener, Refusal, Role, keepalive, node_id, read_frame,
    refusal_of, transport,
};
use futures::{FutureExt, StreamExt};
use libp2p::core::ConnectedPoint;
use libp2p::core::transport::{ListenerId, TransportError};
use libp2p::kad::store::MemoryStore;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{ConnectionId, DialError, ListenError, NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, gossipsub, identify, kad, mdns};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::control::{self, Outgoing};
use crate::discovery::{AddressBook, Target, announced, is_loopback};
use crate::gossip::{self, Announcement, Hint, PUBLISH_INTERVAL};
use crate::peers::Peers;
use crate::refusals::Refusals;
use crate::shares;
use crate::{Caller, Config, Error, Event};

/// Kademlia under a name of our own: floe's nodes share a table with nobody.
const KADEMLIA: StreamProtocol = StreamProtocol::new("/floe/kad/1");

/// What nodes call their protocols when they identify themselves.
const IDENTIFY: &str = "floe/1";

/// How many events may wait for the node before the swarm does too.
const MAX_OUTBOX: usize = 1024;

/// How many calls may be between their acceptance and the node's having them.
const MAX_READING: usize = 256;

/// How long a caller may take to send its request after opening a stream.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a listener may take to listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the directory of this machine's nodes is looked at.
const SCAN_INTERVAL: Duration = Duration::from_secs(1);

/// How soon after a node came up Kademlia is asked who is near: several often come at once.
const LOOKUP_DELAY: Duration = Duration::from_millis(200);

/// How often Kademlia is asked when nothing happens.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(60);

/// How often multicast asks who is there when nothing happens.
const MDNS_INTERVAL: Duration = Duration::from_secs(60);

/// How long it may take to send what is queued and hang up before connections are cut.
const HANG_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// What the handle orders.
pub(crate) enum Command {
    Dial { peer: PeerId, addresses: Vec<Multiaddr> },
    Disconnect { peer: PeerId },
    ShutOut { node: NodeId },
    Rekeyed { done: oneshot::Sender<()> },
    Shutdown { done: oneshot::Sender<()> },
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
struct Behaviour {
    shares: shares::Behaviour,
    substreams: substreams::Behaviour,
    ping: libp2p_ping::Behaviour,
    identify: identify::Behaviour,
    kademlia: kad::Behaviour<MemoryStore>,
    gossip: gossipsub::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
}

/// The loop's state.
pub(crate) struct Service {
    swarm: Swarm<Behaviour>,
    gate: Gate,
    book: AddressBook,
    peers: Peers,
    /// Our own dials under way.
    dials: HashMap<ConnectionId, Target>,
    events: mpsc::Sender<Event>,
    outbox: VecDeque<Event>,
    commands: mpsc::Receiver<Command>,
    inbound: mpsc::Receiver<Inbound>,
    /// Reads requests.
    reading: JoinSet<()>,
    /// Who sent garbage on a stream.
    garbage: (mpsc::Sender<PeerId>, mpsc::Receiver<PeerId>),
    hints: watch::Receiver<Option<Hint>>,
    /// Where others can reach us.
    announced: watch::Sender<Vec<Multiaddr>>,
    listed: Option<Listed>,
    neighbours: mpsc::Receiver<Vec<registry::Entry>>,
    lookup_due: Instant,
    refusals: Refusals,
}

impl Service {
    pub(crate) fn new(
        config: &Config,
        peers: Peers,
        events: mpsc::Sender<Event>,
        commands: mpsc::Receiver<Command>,
        hints: watch::Receiver<Option<Hint>>,
        announced: watch::Sender<Vec<Multiaddr>>,
    ) -> Result<Self, Error> {
        let me = config.identity.public().to_peer_id();
        let roster = floe_transport::admission::Roster::default();
        let credentials = Credentials::of(config.gate.clone(), Role::Node);
        let transport = transport(&config.identity, credentials, roster.clone())?;
        let offers =
            vec![Offer { protocol: CALL, to_drivers: true }, Offer { protocol: CONTROL, to_drivers: false }];
        let shares = shares::Behaviour::new(config.gate.clone(), roster.clone());
        let (substreams, inbound) = substreams::Behaviour::new(roster, offers);
        let mdns = mdns::Config { query_interval: MDNS_INTERVAL, ..Default::default() };
        let mdns =
            config.mdns.then(|| mdns::tokio::Behaviour::new(mdns, me)).transpose().map_err(Error::Mdns)?;
        let behaviour = Behaviour {
            shares,
            substreams,
            ping: keepalive::behaviour(),
            identify: identify::Behaviour::new(
                identify::Config::new(IDENTIFY.to_owned(), config.identity.public())
                    .with_agent_version(format!(
                        "floe {} {}",
                        floe_protocol::version::FLOE_VERSION,
                        config.name
                    ))
                    .with_push_listen_addr_updates(true)
                    // Only what we announce: see `discovery::announced`.
                    .with_hide_listen_addrs(true),
            ),
            kademlia: kademlia(me),
            gossip: gossip::behaviour(&config.identity).map_err(Error::Gossip)?,
            mdns: mdns.into(),
        };
        let swarm = Swarm::new(transport, behaviour, me, libp2p::swarm::Config::with_tokio_executor());
        let mut book = AddressBook::new(me);
        let now = Instant::now();
        for address in &config.join {
            book.join(address, now);
        }
        // Closed, hence silent, unless a registry is joined.
        let (_, neighbours) = mpsc::channel(1);
        Ok(Self {
            swarm,
            gate: config.gate.clone(),
            book,
            peers,
            dials: HashMap::new(),
            events,
            outbox: VecDeque::new(),
            commands,
            inbound,
            reading: JoinSet::new(),
            garbage: mpsc::channel(MAX_READING),
            hints,
            announced,
            listed: None,
            neighbours,
            lookup_due: now + LOOKUP_INTERVAL,
            refusals: Refusals::default(),
        })
    }

    pub(crate) fn opener(&self) -> Opener {
        self.swarm.behaviour().substreams.opener()
    }

    /// Listens, and returns once each address is known.
    pub(crate) async fn listen(&mut self, addresses: &[Multiaddr]) -> Result<(), Error> {
        let mut waiting: HashMap<ListenerId, Multiaddr> = HashMap::new();
        // All of them before the first listens: a probe for any IPv6 address takes IPv4's port too.
        for address in addresses {
            probe(address)?;
        }
        for address in addresses {
            let listener = self.swarm.listen_on(address.clone()).map_err(|error| match error {
                TransportError::MultiaddrNotSupported(address) => Error::Address { address },
                TransportError::Other(source) => Error::Listen { address: address.clone(), source },
            })?;
            waiting.insert(listener, address.clone());
        }
        let deadline = tokio::time::Instant::now() + LISTEN_TIMEOUT;
        while let Some(address) = waiting.values().next().cloned() {
            let Ok(event) = tokio::time::timeout_at(deadline, self.swarm.select_next_some()).await else {
                return Err(Error::Listen { address, source: io::ErrorKind::TimedOut.into() });
            };
            match &event {
                SwarmEvent::NewListenAddr { listener_id, .. } => drop(waiting.remove(listener_id)),
                SwarmEvent::ListenerClosed { listener_id, reason: Err(error), .. } => {
                    if let Some(address) = waiting.remove(listener_id) {
                        return Err(Error::Listen { address, source: error.kind().into() });
                    }
                }
                _ => {}
            }
            self.on_swarm_event(event);
        }
        // "Any address" listens on several; those known by now belong to what is announced first.
        while let Some(Some(event)) = self.swarm.next().now_or_never() {
            self.on_swarm_event(event);
        }
        Ok(())
    }

    /// Makes this node known to the others of this machine, and them to it.
    pub(crate) fn join_registry(&mut self, dir: PathBuf) -> Result<(), Error> {
        let addresses = self.swarm.listeners().cloned().collect();
        let me = *self.swarm.local_peer_id();
        let listed = Listed::new(&dir, me, addresses, self.gate.key().fingerprint())
            .map_err(|source| Error::Registry { dir: dir.clone(), source })?;
        self.listed = Some(listed);
        let (found, neighbours) = mpsc::channel(1);
        self.neighbours = neighbours;
        let gate = self.gate.clone();
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(SCAN_INTERVAL);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = interval.tick() => {}
                    () = found.closed() => return,
                }
                let (dir, fingerprint) = (dir.clone(), gate.key().fingerprint());
                let scan = tokio::task::spawn_blocking(move || registry::scan(&dir, &fingerprint));
                let Ok(entries) = scan.await else { return };
                if found.send(entries).await.is_err() {
                    return;
                }
            }
        });
        Ok(())
    }

    /// Runs until the handle or the receiver of events is gone.
    pub(crate) async fn run(mut self) {
        let events = self.events.clone();
        let mut publish = tokio::time::interval(PUBLISH_INTERVAL);
        publish.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.dial();
            self.look_up();
            let due = [self.book.next_due(), self.refusals.due(), Some(self.lookup_due)];
            let due = due.into_iter().flatten().min().unwrap_or(self.lookup_due);
            tokio::select! {
                permit = events.reserve(), if !self.outbox.is_empty() => {
                    let Ok(permit) = permit else { break };
                    if let Some(event) = self.outbox.pop_front() {
                        permit.send(event);
                    }
                }
                () = events.closed() => break,
                event = self.swarm.select_next_some(), if self.outbox.len() < MAX_OUTBOX => {
                    self.on_swarm_event(event);
                }
                Some(inbound) = self.inbound.recv(), if self.reading.len() < MAX_READING => self.accept(inbound),
                Some(_) = self.reading.join_next() => {}
                Some(peer) = self.garbage.1.recv() => {
                    // The connection may be gone already.
                    let _ = self.swarm.disconnect_peer_id(peer);
                }
                command = self.commands.recv() => match command {
                    Some(Command::Dial { peer, addresses }) => self.book.learn(peer, addresses, Instant::now()),
                    Some(Command::Disconnect { peer }) => {
                        let _ = self.swarm.disconnect_peer_id(peer);
                    }
                    Some(Command::ShutOut { node }) => self.shut_out(node),
                    Some(Command::Rekeyed { done }) => {
                        self.list();
                        let _ = done.send(());
                    }
                    Some(Command::Shutdown { done }) => {
                        let _ = tokio::time::timeout(HANG_UP_TIMEOUT, self.hang_up()).await;
                        drop(self);
                        let _ = done.send(());
                        return;
                    }
                    None => break,
                },
                Some(entries) = self.neighbours.recv() => self.on_neighbours(entries),
                _ = publish.tick() => self.publish(),
                () = tokio::time::sleep_until(due.into()) => {
                    if let Some(line) = self.refusals.tell(Instant::now()) {
                        tracing::warn!("{line}");
                    }
                }
            }
        }
        self.peers.take_outgoing();
    }

    /// Sends what is queued and closes every connection.
    async fn hang_up(&mut self) {
        self.listed = None;
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        let outgoing = self.peers.take_outgoing();
        let mut finishing = futures::future::join_all(outgoing.into_iter().map(Outgoing::finish)).fuse();
        loop {
            tokio::select! {
                _ = &mut finishing => break,
                _ = self.swarm.select_next_some() => {}
            }
        }
        for peer in peers {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        while self.swarm.connected_peers().next().is_some() {
            self.swarm.select_next_some().await;
        }
    }

    fn dial(&mut self) {
        let now = Instant::now();
        while let Some((target, addresses)) = self.book.next_dial(now) {
            if let Target::Peer(peer) = &target
                && self.gate.is_forgotten(node_id(peer))
            {
                self.book.forget(&target);
                continue;
            }
            // Never from our listening port: two nodes that dial each other from there at once would meet in one
            // TCP connection that both believe to have begun.
            let opts = match &target {
                Target::Peer(peer) => {
                    DialOpts::peer_id(*peer).addresses(addresses).allocate_new_port().build()
                }
                Target::Address(address) => {
                    DialOpts::unknown_peer_id().address(address.clone()).allocate_new_port().build()
                }
            };
            let connection = opts.connection_id();
            match self.swarm.dial(opts) {
                Ok(()) => drop(self.dials.insert(connection, target)),
                Err(DialError::DialPeerConditionFalse(_)) => self.book.postponed(&target, now),
                Err(error) => {
                    tracing::debug!(?target, %error, "cannot dial");
                    self.book.failed(&target, now);
                }
            }
        }
    }

    /// Closes the connections to a node that must not come back.
    fn shut_out(&mut self, node: NodeId) {
        let of_node = |peer: &&PeerId| node_id(peer) == node;
        let peers: Vec<PeerId> = self.swarm.connected_peers().filter(of_node).copied().collect();
        for peer in peers {
            self.book.forget(&Target::Peer(peer));
            // The connection may be gone already.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    /// Tells this machine's other nodes, and its drivers, by which keys this node is found.
    fn list(&mut self) {
        let (fingerprint, former) = (self.gate.key().fingerprint(), self.gate.former());
        if let Some(listed) = &mut self.listed
            && let Err(error) =
                listed.rekey(fingerprint, former.into_iter().map(KeyName::fingerprint).collect())
        {
            tracing::warn!(%error, "cannot tell this machine's other nodes of the new key");
        }
    }

    fn look_up(&mut self) {
        let now = Instant::now();
        if self.lookup_due <= now {
            self.lookup_due = now + LOOKUP_INTERVAL;
            let me = *self.swarm.local_peer_id();
            self.swarm.behaviour_mut().kademlia.get_closest_peers(me);
        }
    }

    fn publish(&mut self) {
        if !self.hints.has_changed().unwrap_or(false) {
            return;
        }
        let Some(hint) = self.hints.borrow().clone() else {
            return;
        };
        let Some(bytes) = Announcement::encode(hint, &self.announced.borrow()) else {
            self.hints.mark_unchanged();
            return tracing::warn!(
                limit = gossip::MAX_HINT_BYTES,
                "a hint is too long to send: shorten the name"
            );
        };
        match self.swarm.behaviour_mut().gossip.publish(gossip::topic(), bytes) {
            Ok(_) => self.hints.mark_unchanged(),
            // Most often nobody is there to hear it yet: it is tried again.
            Err(error) => tracing::trace!(%error, "a hint is not sent"),
        }
    }

    fn on_neighbours(&mut self, entries: Vec<registry::Entry>) {
        if let Some(listed) = &self.listed
            && let Err(error) = listed.renew()
        {
            tracing::debug!(%error, "cannot renew this node's file among this machine's nodes");
        }
        let now = Instant::now();
        for entry in entries {
            self.book.learn(entry.peer, entry.addresses, now);
        }
    }

    fn accept(&mut self, inbound: Inbound) {
        let Inbound { peer, role, protocol, stream } = inbound;
        let (events, garbage) = (self.events.clone(), self.garbage.0.clone());
        let node = node_id(&peer);
        let report = move |error: CallError| {
            tracing::warn!(%peer, %node, %error, "a peer sent garbage and is dropped");
            let _ = garbage.try_send(peer);
        };
        if protocol == CONTROL {
            let reader = tokio::spawn(async move {
                if let Err(error) = control::read(node, stream, events).await {
                    report(error);
                }
            });
            self.peers.read_by(peer, AbortOnDropHandle::new(reader));
            return;
        }
        let from = match role {
            Role::Node => Caller::Node(node),
            Role::Driver => Caller::Driver(peer),
            Role::Guest(invitation) => Caller::Guest { peer, invitation },
        };
        self.reading.spawn(async move {
            let mut stream = stream;
            match tokio::time::timeout(REQUEST_TIMEOUT, read_frame::<Request>(&mut stream)).await {
                Ok(Ok(request)) => drop(events.send(Event::Call { from, request, stream }).await),
                Ok(Err(error)) if error.is_garbage() => report(error),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "a call ended before its request"),
                Err(_) => tracing::debug!(%peer, "a caller opened a stream and asked nothing"),
            }
        });
    }

    fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        let now = Instant::now();
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event, now),
            SwarmEvent::NewListenAddr { address, .. } => {
                tracing::debug!(%address, "listening");
                self.announce();
                self.outbox.push_back(Event::Listening(address));
            }
            SwarmEvent::ExpiredListenAddr { .. } | SwarmEvent::ListenerClosed { .. } => self.announce(),
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener has trouble"),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_established(peer_id, connection_id, &endpoint, now);
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, cause, .. } => {
                let why = cause.map(|cause| cause.to_string());
                tracing::debug!(peer = %peer_id, ?why, "disconnected");
                if self.peers.down(peer_id) {
                    self.outbox.push_back(Event::PeerDown { node: node_id(&peer_id) });
                    self.book.disconnected(peer_id, now);
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.on_dial_error(connection_id, &error, now);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                self.on_listen_error(send_back_addr, &error);
            }
            _ => {}
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent, now: Instant) {
        match event {
            BehaviourEvent::Ping(event) if keepalive::is_dead(&event) => {
                tracing::info!(peer = %event.peer, "no sign of life: a connection is closed");
                self.swarm.close_connection(event.connection);
            }
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.on_addresses(peer_id, info.listen_addrs, now);
            }
            BehaviourEvent::Kademlia(kad::Event::OutboundQueryProgressed {
                result: kad::QueryResult::GetClosestPeers(Ok(found)),
                ..
            }) => {
                for peer in found.peers {
                    self.book.learn(peer.peer_id, peer.addrs, now);
                }
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, address) in found {
                    // Another machine's loopback is not ours.
                    if !is_loopback(&address) {
                        self.book.learn(peer, [address], now);
                    }
                }
            }
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                let behaviour = self.swarm.behaviour_mut();
                let by_node = behaviour.substreams.role(&propagation_source) == Some(Role::Node);
                let source = message.source.filter(|_| by_node);
                let announcement =
                    source.and_then(|peer| Some((peer, Announcement::decode(&message.data, &peer)?)));
                let verdict = match announcement {
                    Some(_) => gossipsub::MessageAcceptance::Accept,
                    None => gossipsub::MessageAcceptance::Reject,
                };
                behaviour.gossip.report_message_validation_result(&message_id, &propagation_source, verdict);
                match announcement {
                    Some((peer, Announcement { hint, addresses })) => {
                        self.book.learn(peer, addresses, now);
                        // Hints are the first to go when the node lags.
                        if self.outbox.len() < MAX_OUTBOX / 2 {
                            self.outbox.push_back(Event::Hint { from: node_id(&peer), hint });
                        }
                    }
                    None => tracing::debug!(from = %propagation_source, "a malformed hint is dropped"),
                }
            }
            _ => {}
        }
    }

    fn on_established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint, now: Instant) {
        let target = self.dials.remove(&id);
        if self.swarm.behaviour().substreams.role(&peer) != Some(Role::Node) {
            tracing::debug!(%peer, address = %endpoint.get_remote_address(), "a driver connected");
            return;
        }
        self.book.connected(peer, target.as_ref(), now);
        if let ConnectedPoint::Dialer { address, .. } = endpoint {
            self.on_addresses(peer, vec![address.clone()], now);
        }
        let opener = self.opener();
        if self.peers.up(peer, || Outgoing::new(opener, peer)) {
            tracing::debug!(%peer, node = %node_id(&peer), "connected");
            self.outbox.push_back(Event::PeerUp { node: node_id(&peer), peer });
            self.lookup_due = self.lookup_due.min(now + LOOKUP_DELAY);
        }
    }

    /// Takes a connected node's addresses.
    fn on_addresses(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, now: Instant) {
        if self.swarm.behaviour().substreams.role(&peer) != Some(Role::Node) {
            return;
        }
        self.book.learn(peer, addresses, now);
        let known = self.book.addresses(peer);
        for address in &known {
            self.swarm.behaviour_mut().kademlia.add_address(&peer, address.clone());
        }
        self.peers.reached_at(peer, known);
    }

    fn on_dial_error(&mut self, id: ConnectionId, error: &DialError, now: Instant) {
        // Kademlia dials too; its failures are its own.
        let Some(target) = self.dials.remove(&id) else {
            return;
        };
        match error {
            DialError::WrongPeerId { address, .. } | DialError::LocalPeerId { address } => {
                tracing::debug!(?target, %address, "another node answers at a known address");
                self.book.wrong_address(&target, address, now);
            }
            DialError::Transport(errors) => {
                self.book.failed(&target, now);
                for (address, error) in errors {
                    match refusal_of(error) {
                        Some(refusal) => self.refuse(address.clone(), refusal, true),
                        None => tracing::debug!(%address, %error, "cannot connect"),
                    }
                }
            }
            error => {
                tracing::debug!(?target, %error, "cannot connect");
                self.book.failed(&target, now);
            }
        }
    }

    fn on_listen_error(&mut self, address: Multiaddr, error: &ListenError) {
        let refusal = match error {
            ListenError::Transport(error) => refusal_of(error).unwrap_or(Refusal::NotFloe),
            ListenError::Denied { cause } => cause.downcast_ref().cloned().unwrap_or(Refusal::NoRoom),
            error => return tracing::debug!(%address, %error, "a connection was not taken"),
        };
        self.refuse(address, refusal, false);
    }

    /// Counts it for the log. The node hears of everyone that refused it, of strangers as often as the log does.
    fn refuse(&mut self, address: Multiaddr, refusal: Refusal, dialled: bool) {
        let line = self.refusals.note(&address, &refusal, Instant::now());
        if let Some(line) = &line {
            tracing::warn!("{line}");
        }
        // Strangers must not crowd out what matters.
        if (dialled || line.is_some()) && self.outbox.len() < MAX_OUTBOX / 2 {
            self.outbox.push_back(Event::Refused { address, refusal });
        }
    }

    /// Tells the others where we can be reached now.
    fn announce(&mut self) {
        let addresses = announced(self.swarm.listeners());
        let before = self.announced.send_replace(addresses.clone());
        for gone in before.iter().filter(|address| !addresses.contains(address)) {
            self.swarm.remove_external_address(gone);
        }
        for new in addresses.iter().filter(|address| !before.contains(address)) {
            self.swarm.add_external_address(new.clone());
        }
        let listening = self.swarm.listeners().cloned().collect();
        if let Some(listed) = &mut self.listed
            && let Err(error) = listed.update(listening)
        {
            tracing::warn!(%error, "cannot tell this machine's other nodes our addresses");
        }
    }
}

fn kademlia(me: PeerId) -> kad::Behaviour<MemoryStore> {
    let mut config = kad::Config::new(KADEMLIA);
    // It finds nodes here and keeps nothing for them.
    config.set_record_filtering(kad::StoreInserts::FilterBoth).set_periodic_bootstrap_interval(None);
    let mut kademlia = kad::Behaviour::with_config(me, MemoryStore::new(me), config);
    kademlia.set_mode(Some(kad::Mode::Server));
    kademlia
}

/// Whether the port is free. libp2p listens with `SO_REUSEPORT`, so that a second process would share the port
/// and take half of the first one's connections.
fn probe(address: &Multiaddr) -> Result<(), Error> {
    let mut parts = address.iter();
    let ip = match parts.next() {
        Some(Protocol::Ip4(ip)) => IpAddr::V4(ip),
        Some(Protocol::Ip6(ip)) => IpAddr::V6(ip),
        _ => {
            return Err(Error::Address { address: address.clone() });
        }
    };
    let Some(Protocol::Tcp(port)) = parts.next() else {
        return Err(Error::Address { address: address.clone() });
    };
    let address = address.clone();
    match TcpListener::bind((ip, port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(Error::PortInUse { address }),
        Err(source) => Err(Error::Listen { address, source }),
    }
}
