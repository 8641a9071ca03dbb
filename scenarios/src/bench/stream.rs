//! What one partition's stream moves between two nodes, against a bare libp2p stream.
//!
//! Both ends are in this process and talk over loopback TCP, Noise and Yamux. On one side stands what nodes
//! use among each other: admission, then a bulk body with its credits and acknowledgement. On the other a
//! stream of `libp2p-stream`, written and read as it is. Reading the partition from its store and checking its
//! sum are on neither side.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use floe_protocol::Failure;
use floe_transport::admission::Roster;
use floe_transport::substreams::{Behaviour, Offer, Opener};
use floe_transport::{Body, CALL, Credentials, MeshKey, Role, Stream, send_body, transport};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::identity::Keypair;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, noise, tcp, yamux};
use tokio::task::JoinSet;

use super::{Bench, Figure, Target, median};

/// How much one transfer moves: most of a second's worth.
const TRANSFER_BYTES: usize = 512 << 20;

/// What the sender has at hand at a time.
const PIECE_BYTES: usize = 1 << 20;

/// What the bare reader reads at a time; the body's reader does the same.
const READ_BYTES: usize = 64 << 10;

const BARE: StreamProtocol = StreamProtocol::new("/bare/1");

pub(super) async fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let body = Bodies::connect().await?;
    let bare = Bare::connect().await?;
    body.transfer().await?;
    bare.transfer().await?;
    let (mut body_rates, mut bare_rates) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        body_rates.push(body.transfer().await?);
        bare_rates.push(bare.transfer().await?);
    }
    let (body, bare) = (median(&body_rates), median(&bare_rates));
    Ok(vec![Figure {
        name: "a partition's stream / a bare libp2p stream".to_owned(),
        value: body / bare * 100.0,
        unit: "%",
        target: Target::AtLeast(80.0),
        made_from: format!(
            "medians of {}: {body:.0} and {bare:.0} MB/s; both ends in one process, over loopback TCP",
            bench.rounds
        ),
    }])
}

/// Two ends as nodes have them.
struct Bodies {
    server: PeerId,
    opener: Opener,
    _tasks: JoinSet<()>,
}

impl Bodies {
    async fn connect() -> Result<Self> {
        let key = MeshKey::generate();
        let end = |offers| -> Result<_> {
            let identity = Keypair::generate_ed25519();
            let roster = Roster::default();
            let transport = transport(&identity, Credentials::new(key.clone(), Role::Node), roster.clone())?;
            let (behaviour, inbound) = Behaviour::new(roster, offers);
            let opener = behaviour.opener();
            let config = libp2p::swarm::Config::with_tokio_executor();
            Ok((Swarm::new(transport, behaviour, identity.public().to_peer_id(), config), inbound, opener))
        };
        let (server, mut inbound, _) = end(vec![Offer { protocol: CALL, to_drivers: false }])?;
        let (client, _, opener) = end(Vec::new())?;
        let peer = *server.local_peer_id();
        let mut tasks = JoinSet::new();
        join(server, client, &mut tasks).await?;
        tasks.spawn(async move {
            while let Some(inbound) = inbound.recv().await {
                // A failed transfer shows at its reader.
                let _ = serve(inbound.stream).await;
            }
        });
        return Ok(Self { server: peer, opener, _tasks: tasks });

        async fn serve(mut stream: Stream) -> Result<()> {
            stream.read_exact(&mut [0]).await?;
            let pieces = pieces().map(Ok::<_, Failure>);
            send_body(&mut stream, futures::stream::iter(pieces)).await?;
            Ok(())
        }
    }

    /// Moves [`TRANSFER_BYTES`] and yields the MB/s.
    async fn transfer(&self) -> Result<f64> {
        let start = Instant::now();
        let mut stream = self.opener.open(self.server, CALL).await?;
        ask(&mut stream).await?;
        let mut body = Body::new(stream);
        let mut bytes = 0;
        while let Some(piece) = body.next().await {
            bytes += piece?.len();
        }
        rate(bytes, start)
    }
}

/// Two ends with nothing between them and libp2p.
struct Bare {
    server: PeerId,
    control: libp2p_stream::Control,
    _tasks: JoinSet<()>,
}

impl Bare {
    async fn connect() -> Result<Self> {
        let end = || -> Result<Swarm<libp2p_stream::Behaviour>> {
            Ok(SwarmBuilder::with_new_identity()
                .with_tokio()
                .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)?
                .with_behaviour(|_| libp2p_stream::Behaviour::new())?
                .with_swarm_config(|config| config.with_idle_connection_timeout(std::time::Duration::MAX))
                .build())
        };
        let (server, client) = (end()?, end()?);
        let mut inbound = server.behaviour().new_control().accept(BARE)?;
        let (peer, control) = (*server.local_peer_id(), client.behaviour().new_control());
        let mut tasks = JoinSet::new();
        join(server, client, &mut tasks).await?;
        tasks.spawn(async move {
            while let Some((_, stream)) = inbound.next().await {
                // A failed transfer shows at its reader.
                let _ = serve(stream).await;
            }
        });
        return Ok(Self { server: peer, control, _tasks: tasks });

        async fn serve(mut stream: libp2p::Stream) -> Result<()> {
            stream.read_exact(&mut [0]).await?;
            for piece in pieces() {
                stream.write_all(&piece).await?;
            }
            Ok(stream.close().await?)
        }
    }

    /// Moves [`TRANSFER_BYTES`] and yields the MB/s.
    async fn transfer(&self) -> Result<f64> {
        let start = Instant::now();
        let mut stream = self.control.clone().open_stream(self.server, BARE).await?;
        ask(&mut stream).await?;
        let mut room = vec![0; READ_BYTES];
        let mut bytes = 0;
        loop {
            match stream.read(&mut room).await? {
                0 => return rate(bytes, start),
                read => bytes += read,
            }
        }
    }
}

/// Connects the two and leaves both to run.
async fn join<B>(mut server: Swarm<B>, mut client: Swarm<B>, tasks: &mut JoinSet<()>) -> Result<()>
where
    B: NetworkBehaviour<ToSwarm: Send> + Send,
{
    server.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
    let address: Multiaddr = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = server.select_next_some().await {
            break address;
        }
    };
    tasks.spawn(async move {
        loop {
            server.select_next_some().await;
        }
    });
    client.dial(address)?;
    loop {
        match client.select_next_some().await {
            SwarmEvent::ConnectionEstablished { .. } => break,
            SwarmEvent::OutgoingConnectionError { error, .. } => {
                bail!("the two ends cannot connect: {error}")
            }
            _ => {}
        }
    }
    tasks.spawn(async move {
        loop {
            client.select_next_some().await;
        }
    });
    Ok(())
}

/// A fetch begins with a few bytes from the reader.
async fn ask(stream: &mut Stream) -> Result<()> {
    stream.write_all(&[1]).await?;
    stream.flush().await.context("the other end is gone")
}

fn pieces() -> impl Iterator<Item = Bytes> {
    let piece = Bytes::from(vec![0x5a; PIECE_BYTES]);
    std::iter::repeat_n(piece, TRANSFER_BYTES / PIECE_BYTES)
}

fn rate(bytes: usize, start: Instant) -> Result<f64> {
    ensure!(bytes == TRANSFER_BYTES, "{bytes} bytes arrived instead of {TRANSFER_BYTES}");
    Ok(bytes as f64 / 1e6 / start.elapsed().as_secs_f64())
}
