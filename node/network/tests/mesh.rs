//! Whole networks on loopback: real sockets, real libp2p, one process.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use floe_network::{Caller, Config, Error, Event, Hint, Network, start};
use floe_protocol::version::PROTOCOL_VERSION;
use floe_protocol::{Era, Failure, Fence, JobId, Load, MeshId, NodeId, PeerMessage, Request, Response};
use floe_transport::{
    Body, CALL, CONTROL, Connection, Credentials, DialError, Gate, MeshKey, OpenError, Refusal, Role, Stream,
    call, node_id, read_frame, send_body, write_frame,
};
use futures::{AsyncWriteExt, StreamExt};
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use tokio::sync::mpsc;

/// Long enough for any machine: a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(key: &MeshKey) -> Config {
    Config {
        identity: Keypair::generate_ed25519(),
        gate: Gate::new(key.clone()),
        name: "test".into(),
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
        join: Vec::new(),
        mdns: false,
        local_registry: None,
    }
}

struct Node {
    network: Network,
    events: mpsc::Receiver<Event>,
}

impl Node {
    async fn start(config: Config) -> Self {
        let (network, events) = start(config).await.unwrap();
        Self { network, events }
    }

    async fn join(key: &MeshKey, other: &Node) -> Self {
        Self::start(Config { join: other.network.addresses(), ..config(key) }).await
    }

    fn id(&self) -> NodeId {
        self.network.node()
    }

    /// Waits for the first event of which `pick` makes something; others are dropped.
    async fn wait<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        let work = async {
            loop {
                let event = self.events.recv().await.expect("the network runs");
                if let Some(found) = pick(event) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, work).await.expect("it happens in time")
    }

    async fn wait_for_peers(&mut self, peers: &[NodeId]) {
        let mut missing: BTreeSet<NodeId> = peers.iter().copied().collect();
        missing.retain(|node| !self.network.is_connected(*node));
        while !missing.is_empty() {
            let up = self
                .wait(|event| if let Event::PeerUp { node, .. } = event { Some(node) } else { None })
                .await;
            missing.remove(&up);
        }
    }

    async fn next_call(&mut self) -> (Caller, Request, Stream) {
        self.wait(|event| match event {
            Event::Call { from, request, stream } => Some((from, request, stream)),
            _ => None,
        })
        .await
    }

    fn socket(&self) -> (String, u16) {
        let address = self.network.addresses().remove(0);
        let mut parts = address.iter();
        match (parts.next(), parts.next()) {
            (Some(Protocol::Ip4(ip)), Some(Protocol::Tcp(port))) => (ip.to_string(), port),
            other => panic!("{other:?}"),
        }
    }
}

async fn driver(key: &MeshKey, address: Multiaddr) -> Result<Connection, DialError> {
    let credentials = Credentials::new(key.clone(), Role::Driver);
    Connection::dial(&Keypair::generate_ed25519(), credentials, address, PATIENCE).await
}

fn lease(term: u64) -> PeerMessage {
    PeerMessage::Lease { fence: Fence { era: Era { mesh: MeshId(1), epoch: 1, founder: NodeId(1) }, term } }
}

#[tokio::test]
async fn one_join_address_connects_everyone_to_everyone() {
    let key = MeshKey::generate();
    let mut first = Node::start(config(&key)).await;
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(Node::join(&key, &first).await);
    }
    let ids: Vec<NodeId> = others.iter().map(Node::id).chain([first.id()]).collect();
    for node in others.iter_mut().chain([&mut first]) {
        let me = node.id();
        let rest: Vec<NodeId> = ids.iter().copied().filter(|id| *id != me).collect();
        node.wait_for_peers(&rest).await;
        let view = node.network.peers();
        assert_eq!(view.iter().filter(|peer| peer.connected).count(), rest.len());
    }
}

#[tokio::test]
async fn the_nodes_of_one_machine_find_each_other_through_a_directory() {
    let (key, other_key) = (MeshKey::generate(), MeshKey::generate());
    let dir = tempfile::tempdir().unwrap();
    let listed = |key: &MeshKey| Config { local_registry: Some(dir.path().to_owned()), ..config(key) };
    let mut nodes =
        [Node::start(listed(&key)).await, Node::start(listed(&key)).await, Node::start(listed(&key)).await];
    let stranger = Node::start(listed(&other_key)).await;
    let ids = [nodes[0].id(), nodes[1].id(), nodes[2].id()];
    for node in &mut nodes {
        let me = node.id();
        let rest: Vec<NodeId> = ids.into_iter().filter(|id| *id != me).collect();
        node.wait_for_peers(&rest).await;
    }
    assert!(stranger.network.peers().is_empty());
    // Drivers look there too.
    let found = floe_transport::registry::local_nodes(dir.path(), &key.fingerprint());
    assert_eq!(found.len(), 3);
    let connection = driver(&key, found[0].clone()).await.unwrap();
    assert!(ids.contains(&connection.node()));
    // Whoever leaves is no longer listed.
    for node in nodes {
        node.network.shutdown().await;
    }
    assert!(floe_transport::registry::local_nodes(dir.path(), &key.fingerprint()).is_empty());
}

#[tokio::test]
async fn messages_arrive_in_order_in_both_directions() {
    let key = MeshKey::generate();
    let mut one = Node::start(config(&key)).await;
    let mut two = Node::join(&key, &one).await;
    one.wait_for_peers(&[two.id()]).await;
    two.wait_for_peers(&[one.id()]).await;
    let count = 3000;
    for (from, to) in [(&one, &two), (&two, &one)] {
        let (network, to) = (from.network.clone(), to.id());
        tokio::spawn(async move {
            for term in 0..count {
                // The queue is bounded: a full one says so.
                while !network.send(to, &lease(term)) {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    for node in [&mut one, &mut two] {
        for term in 0..count {
            let message = node
                .wait(|event| if let Event::Message { message, .. } = event { Some(message) } else { None });
            assert_eq!(message.await, lease(term));
        }
    }
    assert!(!one.network.send(NodeId(1), &lease(0)));
}

#[tokio::test]
async fn a_node_that_goes_is_reported_once_and_one_that_returns_is_found_again() {
    let key = MeshKey::generate();
    let mut stays = Node::start(config(&key)).await;
    let goes = config(&key);
    let mut node = Node::start(Config { join: stays.network.addresses(), ..goes.clone() }).await;
    node.wait_for_peers(&[stays.id()]).await;
    stays.wait_for_peers(&[node.id()]).await;
    let (id, address) = (node.id(), node.network.addresses().remove(0));
    // Where the other listens is told a moment after it is connected.
    let told = async {
        while stays.network.peers()[0].addresses.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
    drop(node);
    let down = |event| {
        if let Event::PeerDown { node } = event { Some(node) } else { None }
    };
    assert_eq!(stays.wait(down).await, id);
    assert!(!stays.network.is_connected(id));

    // The same identity at the same address, told nothing: the one that stayed dials it.
    let mut address = address;
    address.pop();
    let mut back = Node::start(Config { listen: vec![address], ..goes }).await;
    let (mut ups, mut downs) = (0, 0);
    let up = |event| match event {
        Event::PeerUp { node, .. } if node == id => {
            ups += 1;
            Some(())
        }
        Event::PeerDown { .. } => {
            downs += 1;
            None
        }
        _ => None,
    };
    stays.wait(up).await;
    assert_eq!((ups, downs), (1, 0));
    back.wait_for_peers(&[stays.id()]).await;
    back.network.shutdown().await;
    assert_eq!(stays.wait(down).await, id);
}

#[tokio::test]
async fn nodes_and_drivers_call_and_a_driver_may_not_do_more() {
    let key = MeshKey::generate();
    let mut serving = Node::start(config(&key)).await;
    let mut calling = Node::join(&key, &serving).await;
    calling.wait_for_peers(&[serving.id()]).await;
    let (to, address) = (serving.id(), serving.network.addresses().remove(0));
    let caller = calling.id();
    let serve = tokio::spawn(async move {
        for expected in [Some(Caller::Node(caller)), None] {
            let (from, request, mut stream) = serving.next_call().await;
            assert_eq!(request, Request::Job { id: JobId(5) });
            assert!(expected.is_none_or(|expected| expected == from));
            assert!(expected.is_some() || matches!(from, Caller::Driver(_)));
            call::respond(&mut stream, &Response::Accepted { id: JobId(5) }).await.unwrap();
        }
        serving
    });
    let request = Request::Job { id: JobId(5) };
    let response = calling.network.call(to, &request, PATIENCE).await.unwrap();
    assert_eq!(response, Response::Accepted { id: JobId(5) });
    assert!(calling.network.call(NodeId(1), &request, PATIENCE).await.is_err());

    let connection = driver(&key, address).await.unwrap();
    assert_eq!(connection.node(), to);
    assert!(matches!(connection.open(CONTROL).await, Err(OpenError::Unsupported(_))));
    let (response, _) = connection.call(&request, PATIENCE).await.unwrap();
    assert_eq!(response, Response::Accepted { id: JobId(5) });

    let serving = serve.await.unwrap();
    assert_eq!(serving.network.peers().len(), 1, "a driver is not a peer");
    serving.network.shutdown().await;
    tokio::time::timeout(PATIENCE, connection.closed()).await.unwrap();
    assert!(!connection.is_open());
}

#[tokio::test]
async fn many_calls_at_once_all_get_their_answer() {
    let key = MeshKey::generate();
    let mut serving = Node::start(config(&key)).await;
    let connection = driver(&key, serving.network.addresses().remove(0)).await.unwrap();
    let calls = 200;
    let serve = tokio::spawn(async move {
        for _ in 0..calls {
            let (_, request, mut stream) = serving.next_call().await;
            let Request::Job { id } = request else { panic!("{request:?}") };
            tokio::spawn(async move { call::respond(&mut stream, &Response::Accepted { id }).await });
        }
        serving
    });
    let asking = (0..calls).map(|id| {
        let connection = connection.clone();
        async move {
            let (response, _) = connection.call(&Request::Job { id: JobId(id) }, PATIENCE).await.unwrap();
            assert_eq!(response, Response::Accepted { id: JobId(id) });
        }
    });
    futures::future::join_all(asking).await;
    serve.await.unwrap();
}

#[tokio::test]
async fn calls_share_a_stream_and_one_that_was_closed_costs_no_call() {
    let key = MeshKey::generate();
    let mut callee = Node::start(config(&key)).await;
    let mut caller = Node::join(&key, &callee).await;
    let node = callee.id();
    caller.wait_for_peers(&[node]).await;
    let network = caller.network.clone();
    let ask = |id: u64| {
        let network = network.clone();
        tokio::spawn(async move { network.call(node, &Request::Job { id: JobId(id) }, PATIENCE).await })
    };
    let first = ask(1);
    let (_, request, mut stream) = callee.next_call().await;
    assert_eq!(request, Request::Job { id: JobId(1) });
    write_frame(&mut stream, &Response::Done).await.unwrap();
    assert!(matches!(first.await.unwrap(), Ok(Response::Done)));
    // The second one comes after it on the stream.
    let second = ask(2);
    let request: Request = tokio::time::timeout(PATIENCE, read_frame(&mut stream)).await.unwrap().unwrap();
    assert_eq!(request, Request::Job { id: JobId(2) });
    write_frame(&mut stream, &Response::Done).await.unwrap();
    assert!(matches!(second.await.unwrap(), Ok(Response::Done)));
    // The third one finds it closed.
    drop(stream);
    let third = ask(3);
    let (_, request, mut stream) = callee.next_call().await;
    assert_eq!(request, Request::Job { id: JobId(3) });
    write_frame(&mut stream, &Response::Done).await.unwrap();
    assert!(matches!(third.await.unwrap(), Ok(Response::Done)));
}

#[tokio::test]
async fn two_meshes_keep_apart_and_both_sides_say_why() {
    let (key, other_key) = (MeshKey::generate(), MeshKey::generate());
    let mut node = Node::start(config(&key)).await;
    let address = node.network.addresses().remove(0);
    let mut stranger = Node::join(&other_key, &node).await;
    let refused = |event| {
        if let Event::Refused { refusal, .. } = event { Some(refusal) } else { None }
    };
    let (ours, theirs) = (key.fingerprint(), other_key.fingerprint());
    assert_eq!(node.wait(refused).await, Refusal::WrongKey { ours: ours.clone(), theirs: theirs.clone() });
    assert_eq!(
        stranger.wait(refused).await,
        Refusal::WrongKey { ours: theirs.clone(), theirs: ours.clone() }
    );
    assert!(node.network.peers().is_empty());

    let error = driver(&other_key, address.clone()).await.unwrap_err();
    let expected = Refusal::WrongKey { ours: theirs, theirs: ours };
    assert!(matches!(&error, DialError::Refused { refusal, .. } if *refusal == expected), "{error}");

    let mut newer = Credentials::new(key, Role::Driver);
    newer.protocol = 99;
    let error = Connection::dial(&Keypair::generate_ed25519(), newer, address, PATIENCE).await.unwrap_err();
    let text = error.to_string();
    let ours = format!("the other side {PROTOCOL_VERSION}");
    assert!(text.contains("speaks 99") && text.contains(&ours), "{text}");
}

#[tokio::test]
async fn a_failed_dial_says_what_is_wrong_with_the_address() {
    let key = MeshKey::generate();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
    // Something that is no floe.
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let _ = socket.read(&mut [0; 1024]);
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        listener
    });
    let error = driver(&key, address.clone()).await.unwrap_err();
    assert!(matches!(&error, DialError::Refused { refusal: Refusal::NotFloe, .. }), "{error}");

    // Someone who takes the connection and says nothing.
    let silent = server.join().unwrap();
    let credentials = Credentials::new(key.clone(), Role::Driver);
    let soon = Duration::from_millis(300);
    let identity = Keypair::generate_ed25519();
    let dial = Connection::dial(&identity, credentials, address.clone(), soon).await;
    assert!(matches!(dial, Err(DialError::NobodyAnswers { .. })));

    // One that hangs up having said nothing, as a floe does that has more visitors than it takes at once.
    let hangs_up = std::thread::spawn(move || {
        let (mut socket, _) = silent.accept().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // Whoever has read all closes without a reset. The first connection is that of the dial before.
        while socket.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
        let (mut socket, _) = silent.accept().unwrap();
        let _ = socket.read(&mut [0; 1024]);
        drop(socket);
        silent
    });
    let error = driver(&key, address.clone()).await.unwrap_err();
    assert!(matches!(&error, DialError::Refused { refusal: Refusal::HungUp, .. }), "{error}");
    drop(hangs_up.join().unwrap());
    assert!(matches!(driver(&key, address).await, Err(DialError::NobodyAnswers { .. })));
    for bad in ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/1", "/dns4/example.org/tcp/1", "/memory/1"] {
        let dial = driver(&key, bad.parse().unwrap()).await;
        assert!(matches!(dial, Err(DialError::BadAddress { .. })), "{bad}");
    }
    let node = Node::start(config(&key)).await;
    let mut other = node.network.addresses().remove(0);
    other.pop();
    let other = other.with_p2p(Keypair::generate_ed25519().public().to_peer_id()).unwrap();
    assert!(matches!(driver(&key, other).await, Err(DialError::WrongPeer { .. })));
}

#[tokio::test]
async fn garbage_on_the_port_and_on_streams_drops_its_sender_only() {
    let key = MeshKey::generate();
    let mut node = Node::start(config(&key)).await;
    let address = node.network.addresses().remove(0);
    let good = driver(&key, address.clone()).await.unwrap();

    let mut socket = TcpStream::connect(node.socket()).unwrap();
    socket.write_all(&[0xa5; 4096]).unwrap();
    let refused =
        node.wait(|event| if let Event::Refused { refusal, .. } = event { Some(refusal) } else { None });
    assert!(matches!(refused.await, Refusal::NotFloe | Refusal::Broken(_)));

    // Admitted, and then a frame that claims more than a frame may have; then one that is no request.
    for garbage in [vec![0xff; 4], vec![0, 0, 0, 2, 0xff, 0xff]] {
        let bad = driver(&key, address.clone()).await.unwrap();
        let mut stream = bad.open(CALL).await.unwrap();
        stream.write_all(&garbage).await.unwrap();
        stream.flush().await.unwrap();
        tokio::time::timeout(PATIENCE, bad.closed()).await.unwrap();
    }

    assert!(good.is_open());
    let mut stream = good.open(CALL).await.unwrap();
    write_frame(&mut stream, &Request::Status).await.unwrap();
    assert_eq!(node.next_call().await.1, Request::Status);
}

#[tokio::test]
async fn a_large_body_passes_and_a_slow_reader_holds_its_sender_back() {
    let key = MeshKey::generate();
    let mut sending = Node::start(config(&key)).await;
    let mut reading = Node::join(&key, &sending).await;
    reading.wait_for_peers(&[sending.id()]).await;
    let piece = Bytes::from((0..1 << 20).map(|at| (at % 249) as u8).collect::<Vec<_>>());
    let pieces = 200;
    let drawn = Arc::new(AtomicUsize::new(0));
    let to = sending.id();
    let counter = drawn.clone();
    let source = {
        let piece = piece.clone();
        futures::stream::iter(0..pieces).map(move |_| {
            counter.fetch_add(piece.len(), Ordering::SeqCst);
            Ok::<_, Failure>(piece.clone())
        })
    };
    let server = tokio::spawn(async move {
        let (_, _, mut stream) = sending.next_call().await;
        write_frame(&mut stream, &Response::Fetching { segments: Vec::new() }).await.unwrap();
        let sent = send_body(&mut stream, source).await.unwrap();
        stream.close().await.unwrap();
        (sent, sending)
    });
    let mut stream = reading.network.open(to).await.unwrap();
    write_frame(&mut stream, &Request::Status).await.unwrap();
    let _: Response = read_frame(&mut stream).await.unwrap();
    let mut body = Body::new(stream);
    let mut taken = 0;
    let mut furthest = 0;
    while let Some(got) = body.next().await {
        let got = got.unwrap();
        let at = taken % piece.len();
        let first = got.len().min(piece.len() - at);
        assert!(got[..first] == piece[at..at + first] && got[first..] == piece[..got.len() - first]);
        furthest = furthest.max(drawn.load(Ordering::SeqCst) - taken);
        taken += got.len();
    }
    assert_eq!(taken, pieces * piece.len());
    let limit = floe_transport::stream::WINDOW_BYTES + 2 * piece.len();
    assert!(furthest <= limit, "the sender was {furthest} bytes ahead of its reader");
    let (sent, _sending) = server.await.unwrap();
    assert_eq!(sent, taken as u64);
}

#[tokio::test]
async fn hints_spread() {
    let key = MeshKey::generate();
    let one = Node::start(config(&key)).await;
    let mut two = Node::join(&key, &one).await;
    let hint = Hint {
        node: one.id(),
        name: "attic".into(),
        load: Load { running: 3, ..Load::default() },
        slots: 4,
        version: "0.1.0".into(),
        leader: None,
        term: 2,
    };
    // Said before anyone can hear it: it waits until someone does.
    one.network.publish(hint.clone());
    let got = two.wait(|event| if let Event::Hint { hint, .. } = event { Some(hint) } else { None }).await;
    assert_eq!(got, hint);
}

#[tokio::test]
async fn what_cannot_be_listened_on_is_named() {
    let key = MeshKey::generate();
    let first = Node::start(config(&key)).await;
    let mut taken = first.network.addresses().remove(0);
    taken.pop();
    let error = start(Config { listen: vec![taken.clone()], ..config(&key) }).await.err().unwrap();
    assert!(matches!(&error, Error::PortInUse { address } if *address == taken), "{error}");
    let bad: Multiaddr = "/ip4/127.0.0.1/udp/4001".parse().unwrap();
    let error = start(Config { listen: vec![bad], ..config(&key) }).await.err().unwrap();
    assert!(matches!(error, Error::Address { .. }), "{error}");
    let elsewhere: Multiaddr = "/ip4/192.0.2.1/tcp/0".parse().unwrap();
    let error = start(Config { listen: vec![elsewhere], ..config(&key) }).await.err().unwrap();
    assert!(matches!(error, Error::Listen { .. }), "{error}");
    let nowhere = PathBuf::from("/dev/null/floe");
    let error = start(Config { local_registry: Some(nowhere), ..config(&key) }).await.err().unwrap();
    assert!(matches!(error, Error::Registry { .. }), "{error}");
}

#[tokio::test]
async fn a_disconnected_node_is_connected_again() {
    let key = MeshKey::generate();
    let mut one = Node::start(config(&key)).await;
    let mut two = Node::join(&key, &one).await;
    one.wait_for_peers(&[two.id()]).await;
    two.wait_for_peers(&[one.id()]).await;
    one.network.disconnect(two.id());
    let id = two.id();
    one.wait(|event| matches!(event, Event::PeerDown { node } if node == id).then_some(())).await;
    one.wait(|event| matches!(event, Event::PeerUp { node, .. } if node == id).then_some(())).await;
    assert_eq!(node_id(&two.network.peer_id()), id);
}

/// Sockets that only stand open take nobody's place, wherever they come from.
#[tokio::test]
async fn idle_strangers_keep_neither_a_node_nor_a_driver_out() {
    let key = MeshKey::generate();
    let mut node = Node::start(config(&key)).await;
    let socket = node.socket();
    let mut idle = Vec::new();
    let greetings: [&[u8]; 3] = [b"", b"\x13/multistream/1.0.0\n", b"\x13"];
    for number in 0..400 {
        let mut stream = TcpStream::connect(&socket).unwrap();
        stream.write_all(greetings[number % greetings.len()]).unwrap();
        idle.push(stream);
    }
    let mut other = Node::join(&key, &node).await;
    other.wait_for_peers(&[node.id()]).await;
    let address = node.network.addresses().remove(0);
    let connection = driver(&key, address).await.unwrap();
    let mut stream = connection.open(CALL).await.unwrap();
    write_frame(&mut stream, &Request::Status).await.unwrap();
    let (from, request, _) = node.next_call().await;
    assert!(matches!(from, Caller::Driver(_)) && request == Request::Status);
    // Whoever made way was hung up on.
    idle[0].set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    assert!(idle[0].read_to_end(&mut rest).is_ok_and(|read| read < 64));
}
