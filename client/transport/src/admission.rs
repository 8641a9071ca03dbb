//! Who may connect: both ends of a connection prove that they hold one secret, and say why they part if they
//! don't or if their versions don't fit. The secret is the mesh key, or for a guest that of its invitation.
//!
//! Admission is a connection upgrade around Noise, below Yamux: a peer that was not admitted never reaches the
//! multiplexer. Of one that proves nothing a fixed number of bytes is read, nothing of its choice is repeated, and it is
//! sent no proof: who dials proves first.
//!
//! ```text
//!   dialer                                      listener
//!     |  <---------------- Noise ---------------->  |
//!     |  -- Hello: versions, role, secrets, nonce ->|
//!     |  <- Hello: the secret that it takes --------|    versions or secrets differ: both know, both part
//!     |  -- HMAC(secret, dialer, peers, hellos) --->|
//!     |  <- verdict, HMAC(secret, listener, ..) ----|    or no more than that the proof is wrong
//! ```

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use floe_protocol::{InvitationId, KeyName};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::core::upgrade::{
    InboundConnectionUpgrade, NegotiationError, OutboundConnectionUpgrade, ProtocolError, UpgradeInfo,
};
use libp2p::{PeerId, noise};

use crate::gate::{Credentials, MAX_OFFERED, Offered, offers};
use crate::key::PROOF_BYTES;
use crate::node_id;

/// How long Noise and admission together may take. A peer that is slower is most likely no floe at all.
pub const ADMISSION_TIMEOUT: Duration = Duration::from_secs(5);

/// How many admitted peers' roles are remembered until the swarm asks for them. It asks within moments; the limit
/// only keeps peers that came and went from piling up.
const MAX_REMEMBERED: usize = 1024;

/// What one end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Runs tasks and may lead. Nodes must agree on Polars' version too, since they exchange fragments.
    Node,
    /// Submits jobs.
    Driver,
    /// Was invited, and asks for the mesh key so that it can come back as a node.
    Guest(InvitationId),
}

/// Why two ends parted before they were connected. Nothing in it is of the other side's choice but numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The proofs don't fit, or the keys have different names.
    #[error(
        "wrong mesh key: this side holds key {ours}, the other side key {theirs}; start both with the same --key-file, \
         or ask for an invitation (`floe invite`)"
    )]
    WrongKey {
        /// Our key's fingerprint.
        ours: String,
        /// The fingerprint the other side claims.
        theirs: String,
    },
    /// The mesh does not know of the invitation.
    #[error(
        "the invitation is not known there: it is another mesh's, or it ended long ago; ask for a new one \
         (`floe invite`)"
    )]
    UnknownInvitation,
    /// The invitation has admitted whom it may.
    #[error(
        "the invitation is used up: it has admitted as many nodes as it may; ask for a new one (`floe invite`)"
    )]
    UsedUp,
    /// The invitation's time is over.
    #[error("the invitation has expired: ask for a new one (`floe invite`)")]
    Expired,
    /// The other side comes by an invitation that is over.
    #[error("the invitation by which the other side comes is used up, or has expired")]
    IsOver,
    /// The mesh takes this node for one that must not come back.
    #[error(
        "the mesh has removed this node for good (`floe forget`): to join again as a new node, start with an empty \
         data directory and an invitation"
    )]
    Forgotten,
    /// The other side is a node that must not come back.
    #[error("the other side was removed from this mesh for good (`floe forget`)")]
    IsForgotten,
    /// The other side has no room for us.
    #[error(
        "the node serves as many drivers as it has room for: try again later, or connect to another node"
    )]
    Busy,
    /// This side has no room.
    #[error("this node serves as many drivers as it has room for")]
    NoRoom,
    /// The wire protocols differ.
    #[error(
        "protocol versions differ: this side speaks {ours}, the other side {theirs}; install the same floe on both"
    )]
    Protocol {
        /// Our version.
        ours: u32,
        /// Theirs.
        theirs: u32,
    },
    /// Two nodes' Polars releases differ.
    #[error(
        "Polars versions differ: this node runs {ours}, the other node {theirs}; install the same floe on both"
    )]
    Polars {
        /// Our version.
        ours: String,
        /// Theirs.
        theirs: String,
    },
    /// Something else answers there, or called here.
    #[error("the other side does not speak floe's protocol, or another version of it")]
    NotFloe,
    /// It went before it had said enough to tell what it is.
    #[error("the other side hung up while it was greeted: it may have more visitors than it takes at once")]
    HungUp,
    /// Too slow.
    #[error("the other side did not finish the admission within {} s", ADMISSION_TIMEOUT.as_secs())]
    Timeout,
    /// Others came while it said nothing.
    #[error("it had not finished its admission when others came: no more wait at once")]
    MadeWay,
    /// The encryption did not come about.
    #[error("the encryption of the connection did not come about")]
    Noise,
    /// The other side refused for a reason this version does not know.
    #[error("the other side refused without a reason that this version knows (code {0})")]
    Unknown(u8),
    /// The connection ended.
    #[error("the connection broke during admission: {0}")]
    Broken(io::ErrorKind),
}

impl Refusal {
    /// Which rule was broken, in few words that are the same for all who break it.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::WrongKey { .. } => "wrong mesh key",
            Self::UnknownInvitation => "unknown invitation",
            Self::UsedUp | Self::Expired | Self::IsOver => "an invitation that is over",
            Self::Forgotten | Self::IsForgotten => "removed from the mesh",
            Self::Busy | Self::NoRoom => "no room for more drivers",
            Self::Protocol { .. } => "another protocol version",
            Self::Polars { .. } => "another Polars version",
            Self::NotFloe => "no floe",
            Self::HungUp => "hung up",
            Self::Timeout => "too slow",
            Self::MadeWay => "idle when others came",
            Self::Noise => "no encryption",
            Self::Unknown(_) => "refused by the other side",
            Self::Broken(_) => "broke off",
        }
    }
}

/// Finds why a peer was not admitted in an error of libp2p's, however deep it lies.
///
/// `libp2p::swarm::DialError::Transport` has no source: pass the `TransportError`s it lists one by one.
pub fn refusal_of(error: &(dyn Error + 'static)) -> Option<Refusal> {
    find::<Refusal>(error).cloned().or_else(|| {
        find::<NegotiationError>(error).map(|error| match error {
            // Whoever does not understand a greeting hangs up; who hangs up before it has said anything is found above.
            NegotiationError::ProtocolError(ProtocolError::IoError(error))
                if error.kind() != io::ErrorKind::UnexpectedEof =>
            {
                Refusal::Broken(error.kind())
            }
            _ => Refusal::NotFloe,
        })
    })
}

/// Walks an error's sources, and what `io::Error`s carry, for the first `E`.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match carried {
            Some(carried) => Some(carried),
            None => error.source(),
        };
    }
    None
}

/// The roles of admitted peers, from the transport that learns them to the behaviour that needs them.
#[derive(Clone, Debug, Default)]
pub struct Roster(Arc<Mutex<Remembered>>);

#[derive(Debug, Default)]
struct Remembered {
    roles: HashMap<PeerId, Role>,
    /// The peers of `roles`, the oldest first.
    order: VecDeque<PeerId>,
}

impl Roster {
    /// What a peer was admitted as, if it was admitted not too long ago.
    pub fn role(&self, peer: &PeerId) -> Option<Role> {
        self.lock().roles.get(peer).copied()
    }

    /// A peer was admitted.
    pub fn admit(&self, peer: PeerId, role: Role) {
        let mut remembered = self.lock();
        if remembered.roles.insert(peer, role).is_some() {
            remembered.order.retain(|other| *other != peer);
        }
        remembered.order.push_back(peer);
        if remembered.order.len() > MAX_REMEMBERED
            && let Some(oldest) = remembered.order.pop_front()
        {
            remembered.roles.remove(&oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the upgrade is called. Not plain "/noise": anything but floe parts at the negotiation already.
const NAME: &str = "/floe/noise/2";

/// What either end says first, whichever it is: that it negotiates, and [`NAME`], each with its length before it.
pub(crate) const GREETING: &[u8] = b"\x13/multistream/1.0.0\n\x0e/floe/noise/2\n";

/// The connection upgrade: Noise, then admission.
#[derive(Clone)]
pub(crate) struct Admission {
    noise: noise::Config,
    local: PeerId,
    credentials: Arc<Credentials>,
    roster: Roster,
}

impl Admission {
    pub(crate) fn new(noise: noise::Config, local: PeerId, credentials: Credentials, roster: Roster) -> Self {
        Self { noise, local, credentials: Arc::new(credentials), roster }
    }

    async fn admit<S>(
        self,
        side: Side,
        noise: impl Future<Output = Result<(PeerId, S), noise::Error>>,
    ) -> Result<(PeerId, S), Refusal>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let work = async {
            let (peer, mut stream) = noise.await.map_err(|error| of_noise(&error))?;
            // Whoever was forgotten is to hear so, but where it is dialled nobody does.
            if side == Side::Dialer && self.credentials.forgets(node_id(&peer)) {
                return Err(Refusal::IsForgotten);
            }
            let peers = match side {
                Side::Dialer => [self.local, peer],
                Side::Listener => [peer, self.local],
            };
            let role = prove(&mut stream, side, peers, &self.credentials).await?;
            self.roster.admit(peer, role);
            Ok((peer, stream))
        };
        tokio::time::timeout(ADMISSION_TIMEOUT, work).await.unwrap_or(Err(Refusal::Timeout))
    }
}

impl UpgradeInfo for Admission {
    type Info = &'static str;
    type InfoIter = std::iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(NAME)
    }
}

impl<S> InboundConnectionUpgrade<S> for Admission
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = (PeerId, noise::Output<S>);
    type Error = Refusal;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Output, Refusal>> + Send>>;

    fn upgrade_inbound(self, socket: S, info: &'static str) -> Self::Future {
        let noise = self.noise.clone().upgrade_inbound(socket, info);
        Box::pin(self.admit(Side::Listener, noise))
    }
}

impl<S> OutboundConnectionUpgrade<S> for Admission
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = (PeerId, noise::Output<S>);
    type Error = Refusal;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Output, Refusal>> + Send>>;

    fn upgrade_outbound(self, socket: S, info: &'static str) -> Self::Future {
        let noise = self.noise.clone().upgrade_outbound(socket, info);
        Box::pin(self.admit(Side::Dialer, noise))
    }
}

/// Which end one is. It goes into the proof, so that a proof cannot be sent back to its author.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Dialer,
    Listener,
}

/// Why there is no encryption.
fn of_noise(error: &noise::Error) -> Refusal {
    match (find::<Refusal>(error), error) {
        (Some(refusal), _) => refusal.clone(),
        (None, noise::Error::Io(error)) => Refusal::Broken(error.kind()),
        (None, _) => Refusal::Noise,
    }
}

fn broken(error: io::Error) -> Refusal {
    find::<Refusal>(&error).cloned().unwrap_or(Refusal::Broken(error.kind()))
}

/// What each end says first. The layout is fixed, so that nothing is read that was not asked for: the protocol comes
/// first, and whoever changes the rest raises that, which is where the two part then.
struct Hello {
    protocol: u32,
    role: u8,
    polars: [u16; 3],
    /// What the dialer can prove; of that what the listener takes, or what it would have taken.
    offered: Offered,
    nonce: [u8; NONCE_BYTES],
}

const NONCE_BYTES: usize = 32;
const PROTOCOL_BYTES: usize = 4;
const HELLO_BYTES: usize = PROTOCOL_BYTES + 1 + 3 * 2 + MAX_OFFERED * 8 + NONCE_BYTES;

const NODE: u8 = 0;
const DRIVER: u8 = 1;
const GUEST: u8 = 2;

impl Hello {
    fn new(credentials: &Credentials, offered: Offered) -> Result<Self, Refusal> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| Refusal::Broken(io::ErrorKind::Other))?;
        let role = match credentials.role {
            Role::Node => NODE,
            Role::Driver => DRIVER,
            Role::Guest(_) => GUEST,
        };
        Ok(Self {
            protocol: credentials.protocol,
            role,
            polars: release(&credentials.polars),
            offered,
            nonce,
        })
    }

    fn to_bytes(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        let (protocol, rest) = bytes.split_at_mut(PROTOCOL_BYTES);
        let (role, rest) = rest.split_at_mut(1);
        let (polars, rest) = rest.split_at_mut(6);
        let (offered, nonce) = rest.split_at_mut(MAX_OFFERED * 8);
        protocol.copy_from_slice(&self.protocol.to_be_bytes());
        role[0] = self.role;
        for (place, number) in polars.chunks_exact_mut(2).zip(self.polars) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        for (place, name) in offered.chunks_exact_mut(8).zip(self.offered) {
            place.copy_from_slice(&name.to_be_bytes());
        }
        nonce.copy_from_slice(&self.nonce);
        bytes
    }

    fn from_bytes(bytes: &[u8; HELLO_BYTES]) -> Self {
        let number = |at: usize, count: usize| {
            bytes[at..at + count].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(&bytes[HELLO_BYTES - NONCE_BYTES..]);
        Self {
            protocol: number(0, 4) as u32,
            role: bytes[4],
            polars: std::array::from_fn(|at| number(5 + 2 * at, 2) as u16),
            offered: std::array::from_fn(|at| number(11 + 8 * at, 8)),
            nonce,
        }
    }

    /// What its author is.
    fn role(&self) -> Result<Role, Refusal> {
        match self.role {
            NODE => Ok(Role::Node),
            DRIVER => Ok(Role::Driver),
            GUEST => Ok(Role::Guest(InvitationId(self.offered[0]))),
            _ => Err(Refusal::NotFloe),
        }
    }

    /// Whether the two may speak with each other. Both ends compare the same hellos, so both part here or neither does.
    fn check(&self, theirs: &Self) -> Result<(), Refusal> {
        if self.protocol != theirs.protocol {
            return Err(Refusal::Protocol { ours: self.protocol, theirs: theirs.protocol });
        }
        if self.role != DRIVER && theirs.role != DRIVER && self.polars != theirs.polars {
            let text = |[major, minor, patch]: [u16; 3]| format!("{major}.{minor}.{patch}");
            return Err(Refusal::Polars { ours: text(self.polars), theirs: text(theirs.polars) });
        }
        Ok(())
    }
}

/// The numbers of a release such as `0.55.2`.
fn release(text: &str) -> [u16; 3] {
    let mut numbers = text.split('.').map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

const WELCOME: u8 = 0;
const WRONG_KEY: u8 = 1;
const FORGOTTEN: u8 = 2;
const BUSY: u8 = 3;
const USED_UP: u8 = 4;
const EXPIRED: u8 = 5;

/// What both ends prove things of.
struct Transcript {
    peers: [Vec<u8>; 2],
    hellos: [[u8; HELLO_BYTES]; 2],
}

impl Transcript {
    /// What the listener proves says its verdict too, so that nobody else can give one.
    fn parts<'a>(&'a self, by: Side, verdict: &'a [u8; 1]) -> [&'a [u8]; 7] {
        let by: &[u8] = if by == Side::Dialer { b"dialer" } else { b"listener" };
        let ([dialer, listener], [first, second]) = (&self.peers, &self.hellos);
        [b"floe admission", by, verdict, dialer, listener, first, second]
    }
}

/// Runs admission on a stream that Noise protects. `peers` are the dialer and the listener.
async fn prove<S>(
    stream: &mut S,
    side: Side,
    peers: [PeerId; 2],
    credentials: &Credentials,
) -> Result<Role, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match side {
        Side::Dialer => knock(stream, peers, credentials).await,
        Side::Listener => answer(stream, peers, credentials).await,
    }
}

/// The dialer's part.
async fn knock<S>(stream: &mut S, peers: [PeerId; 2], credentials: &Credentials) -> Result<Role, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let ours = Hello::new(credentials, credentials.offered())?;
    let our_hello = ours.to_bytes();
    write(stream, &our_hello).await?;
    let their_hello = read_hello(stream, credentials.protocol).await?;
    let theirs = Hello::from_bytes(&their_hello);
    ours.check(&theirs)?;
    let Role::Node = theirs.role()? else { return Err(Refusal::NotFloe) };
    let unfit = || match credentials.role {
        Role::Guest(_) => Refusal::UnknownInvitation,
        Role::Node | Role::Driver => wrong_key(ours.offered[0], theirs.offered[0]),
    };
    let secret = credentials.own(theirs.offered[0], node_id(&peers[1])).ok_or_else(unfit)?;

    let peers = peers.map(|peer| peer.to_bytes());
    let transcript = Transcript { peers, hellos: [our_hello, their_hello] };
    write(stream, &secret.prove(&transcript.parts(Side::Dialer, &[WELCOME]))).await?;
    let verdict: [u8; 1] = read(stream).await?;
    let proof: [u8; PROOF_BYTES] = read(stream).await?;
    // Whoever does not hold the secret decides nothing.
    if !secret.verify(&transcript.parts(Side::Listener, &verdict), &proof) {
        return Err(unfit());
    }
    match verdict[0] {
        WELCOME => Ok(Role::Node),
        FORGOTTEN => Err(Refusal::Forgotten),
        BUSY => Err(Refusal::Busy),
        USED_UP => Err(Refusal::UsedUp),
        EXPIRED => Err(Refusal::Expired),
        code => Err(Refusal::Unknown(code)),
    }
}

/// The listener's part.
async fn answer<S>(stream: &mut S, peers: [PeerId; 2], credentials: &Credentials) -> Result<Role, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let their_hello = read_hello(stream, credentials.protocol).await?;
    let theirs = Hello::from_bytes(&their_hello);
    let role = theirs.role()?;
    let node = node_id(&peers[0]);
    let accepted = credentials.accepted(&theirs.offered, role, node);
    let named = accepted.as_ref().map_or_else(|| credentials.offered()[0], |(name, _)| *name);
    let ours = Hello::new(credentials, offers([named]))?;
    let our_hello = ours.to_bytes();
    write(stream, &our_hello).await?;
    ours.check(&theirs)?;
    let unfit = || match role {
        Role::Guest(_) => Refusal::UnknownInvitation,
        Role::Node | Role::Driver => wrong_key(named, theirs.offered[0]),
    };
    let (_, secret) = accepted.ok_or_else(unfit)?;

    let peers = peers.map(|peer| peer.to_bytes());
    let transcript = Transcript { peers, hellos: [their_hello, our_hello] };
    let proof: [u8; PROOF_BYTES] = read(stream).await?;
    if !secret.verify(&transcript.parts(Side::Dialer, &[WELCOME]), &proof) {
        write(stream, &[WRONG_KEY]).await?;
        write(stream, &[0; PROOF_BYTES]).await?;
        return Err(unfit());
    }
    let (verdict, outcome) = if credentials.forgets(node) {
        (FORGOTTEN, Err(Refusal::IsForgotten))
    } else if let Some(expired) = credentials.is_over(role, node) {
        (if expired { EXPIRED } else { USED_UP }, Err(Refusal::IsOver))
    } else if !credentials.has_room(role) {
        (BUSY, Err(Refusal::NoRoom))
    } else {
        (WELCOME, Ok(role))
    };
    write(stream, &[verdict]).await?;
    write(stream, &secret.prove(&transcript.parts(Side::Listener, &[verdict]))).await?;
    outcome
}

fn wrong_key(ours: u64, theirs: u64) -> Refusal {
    Refusal::WrongKey { ours: KeyName(ours).fingerprint(), theirs: KeyName(theirs).fingerprint() }
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> Result<(), Refusal> {
    stream.write_all(message).await.map_err(broken)?;
    stream.flush().await.map_err(broken)
}

/// Reads a hello; of one in another protocol, which may be of another length, no more than that.
async fn read_hello(stream: &mut (impl AsyncRead + Unpin), ours: u32) -> Result<[u8; HELLO_BYTES], Refusal> {
    let mut hello = [0; HELLO_BYTES];
    let (protocol, rest) = hello.split_at_mut(PROTOCOL_BYTES);
    stream.read_exact(protocol).await.map_err(broken)?;
    if protocol == ours.to_be_bytes() {
        stream.read_exact(rest).await.map_err(broken)?;
    }
    Ok(hello)
}

/// Reads a message of this length.
async fn read<const BYTES: usize>(stream: &mut (impl AsyncRead + Unpin)) -> Result<[u8; BYTES], Refusal> {
    let mut message = [0; BYTES];
    stream.read_exact(&mut message).await.map_err(broken)?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use crate::gate::{Gate, Invited, Over};
    use crate::key::{InvitationSecret, MeshKey};

    async fn meet(dialer: Credentials, listener: Credentials) -> [Result<Role, Refusal>; 2] {
        meet_as([PeerId::random(), PeerId::random()], dialer, listener).await
    }

    async fn meet_as(
        peers: [PeerId; 2],
        dialer: Credentials,
        listener: Credentials,
    ) -> [Result<Role, Refusal>; 2] {
        let (near, far) = tokio::io::duplex(64 << 10);
        // Each end hangs up when it has done, as the transport does.
        let (mut near, mut far) = (near.compat(), far.compat());
        let (one, two) = futures::join!(
            prove(&mut near, Side::Dialer, peers, &dialer),
            prove(&mut far, Side::Listener, peers, &listener)
        );
        [one, two]
    }

    #[tokio::test]
    async fn holders_of_one_key_are_admitted_with_their_roles() {
        let key = MeshKey::generate();
        let [near, far] =
            meet(Credentials::new(key.clone(), Role::Driver), Credentials::new(key, Role::Node)).await;
        assert_eq!((near, far), (Ok(Role::Node), Ok(Role::Driver)));
    }

    #[tokio::test]
    async fn a_wrong_key_is_named_on_both_sides() {
        let [one, two] = [MeshKey::generate(), MeshKey::generate()];
        let [near, far] =
            meet(Credentials::new(one.clone(), Role::Node), Credentials::new(two.clone(), Role::Node)).await;
        assert_eq!(near, Err(Refusal::WrongKey { ours: one.fingerprint(), theirs: two.fingerprint() }));
        assert_eq!(far, Err(Refusal::WrongKey { ours: two.fingerprint(), theirs: one.fingerprint() }));
    }

    #[tokio::test]
    async fn versions_that_do_not_fit_are_named_on_both_sides() {
        let node = Credentials::new(MeshKey::generate(), Role::Node);
        let mut newer = node.clone();
        let next = node.protocol + 1;
        newer.protocol = next;
        let [near, far] = meet(node.clone(), newer).await;
        assert_eq!(near, Err(Refusal::Protocol { ours: node.protocol, theirs: next }));
        assert_eq!(far, Err(Refusal::Protocol { ours: next, theirs: node.protocol }));

        // Hellos of another version may be longer or shorter.
        let (near, far) = tokio::io::duplex(64 << 10);
        let (mut near, mut far) = (near.compat(), far.compat());
        let short = async {
            write(&mut far, &next.to_be_bytes()).await.unwrap();
            let _: [u8; HELLO_BYTES] = read(&mut far).await.unwrap();
        };
        let peers = [PeerId::random(), PeerId::random()];
        let (outcome, ()) = futures::join!(prove(&mut near, Side::Listener, peers, &node), short);
        assert_eq!(outcome, Err(Refusal::Protocol { ours: node.protocol, theirs: next }));

        let mut other = node.clone();
        other.polars = "9.9.9".into();
        let [near, _] = meet(node.clone(), other.clone()).await;
        assert_eq!(near, Err(Refusal::Polars { ours: node.polars.clone(), theirs: "9.9.9".into() }));

        // A driver sends plans of a tested range of versions: its own Polars does not matter here.
        other.role = Role::Driver;
        let [near, far] = meet(other, node).await;
        assert_eq!((near, far), (Ok(Role::Node), Ok(Role::Driver)));
    }

    #[tokio::test]
    async fn a_proof_sent_back_to_its_author_proves_nothing() {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (mut near, mut far) = (near.compat(), far.compat());
        let mirror = async {
            let hello: [u8; HELLO_BYTES] = read(&mut far).await.unwrap();
            write(&mut far, &hello).await.unwrap();
            let proof: [u8; PROOF_BYTES] = read(&mut far).await.unwrap();
            write(&mut far, &[[WELCOME].as_slice(), &proof].concat()).await.unwrap();
        };
        let credentials = Credentials::new(MeshKey::generate(), Role::Node);
        let peers = [PeerId::random(), PeerId::random()];
        let (outcome, ()) = futures::join!(prove(&mut near, Side::Dialer, peers, &credentials), mirror);
        assert!(matches!(outcome, Err(Refusal::WrongKey { .. })), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_stranger_is_sent_no_proof_and_read_no_further_than_its_hello() {
        let credentials = Credentials::new(MeshKey::generate(), Role::Node);
        let stranger = Credentials::new(MeshKey::generate(), Role::Node);
        let offered = stranger.offered();
        let forged = Hello::new(&stranger, credentials.offered()).unwrap().to_bytes();
        let honest = Hello::new(&stranger, offered).unwrap().to_bytes();
        for (hello, sent) in [(honest, HELLO_BYTES), (forged, HELLO_BYTES + 1 + PROOF_BYTES)] {
            let (near, mut far) = tokio::io::duplex(64 << 10);
            tokio::io::AsyncWriteExt::write_all(&mut far, &hello).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut far, &[0xff; 4096]).await.unwrap();
            let peers = [PeerId::random(), PeerId::random()];
            let mut near = near.compat();
            let outcome = prove(&mut near, Side::Listener, peers, &credentials).await;
            assert!(matches!(outcome, Err(Refusal::WrongKey { .. })), "{outcome:?}");
            drop(near);
            let mut got = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut far, &mut got).await.unwrap();
            assert_eq!(got.len(), sent);
            assert!(got[HELLO_BYTES..].iter().skip(1).all(|byte| *byte == 0), "no proof");
        }
    }

    #[tokio::test]
    async fn a_verdict_counts_only_from_one_that_holds_the_key() {
        let key = MeshKey::generate();
        let gate = Gate::new(key.clone());
        let listener = Credentials::of(gate.clone(), Role::Node);
        let (node, driver) =
            (Credentials::new(key.clone(), Role::Node), Credentials::new(key.clone(), Role::Driver));
        gate.change(|rules| rules.nodes_only = true);
        let [near, far] = meet(driver, listener.clone()).await;
        assert_eq!((near, far), (Err(Refusal::Busy), Err(Refusal::NoRoom)));
        let [near, far] = meet(node.clone(), listener.clone()).await;
        assert_eq!((near, far), (Ok(Role::Node), Ok(Role::Node)));

        let peers = [PeerId::random(), PeerId::random()];
        gate.change(|rules| rules.forgotten.extend([node_id(&peers[0])]));
        let [near, far] = meet_as(peers, node.clone(), listener).await;
        assert_eq!((near, far), (Err(Refusal::Forgotten), Err(Refusal::IsForgotten)));

        // Anybody may say that a node is forgotten. It is not believed.
        let (near, far) = tokio::io::duplex(64 << 10);
        let (mut near, mut far) = (near.compat(), far.compat());
        let liar = async {
            let _: [u8; HELLO_BYTES] = read(&mut far).await.unwrap();
            let hello = Hello::new(&node, node.offered()).unwrap();
            write(&mut far, &hello.to_bytes()).await.unwrap();
            let _: [u8; PROOF_BYTES] = read(&mut far).await.unwrap();
            write(&mut far, &[[FORGOTTEN; 1].as_slice(), &[9; PROOF_BYTES]].concat()).await.unwrap();
        };
        let (outcome, ()) = futures::join!(prove(&mut near, Side::Dialer, peers, &node), liar);
        assert!(matches!(outcome, Err(Refusal::WrongKey { .. })), "{outcome:?}");
    }

    #[tokio::test]
    async fn a_guest_proves_its_invitation_and_hears_proof_of_it() {
        let secret = InvitationSecret::generate().unwrap();
        let gate = Gate::new(MeshKey::generate());
        let listener = Credentials::of(gate.clone(), Role::Node);
        let [near, far] = meet(Credentials::guest(&secret), listener.clone()).await;
        assert_eq!((near, far), (Err(Refusal::UnknownInvitation), Err(Refusal::UnknownInvitation)));
        let invite = |verifier, over| {
            let invited = Invited { verifier, over };
            gate.change(|rules| rules.invitations.extend([(secret.id(), invited)]));
        };
        invite(secret.verifier(), None);
        let [near, far] = meet(Credentials::guest(&secret), listener.clone()).await;
        assert_eq!((near, far), (Ok(Role::Node), Ok(Role::Guest(secret.id()))));
        // Once it is over whoever came by it may come again, for the answer, and nobody else; and hears so.
        let peers = [PeerId::random(), PeerId::random()];
        for (expired, refusal) in [(true, Refusal::Expired), (false, Refusal::UsedUp)] {
            invite(secret.verifier(), Some(Over { expired, guests: [node_id(&peers[0])].into() }));
            let [near, far] = meet(Credentials::guest(&secret), listener.clone()).await;
            assert_eq!((near, far), (Err(refusal), Err(Refusal::IsOver)));
            let [near, far] = meet_as(peers, Credentials::guest(&secret), listener.clone()).await;
            assert_eq!((near, far), (Ok(Role::Node), Ok(Role::Guest(secret.id()))));
        }
        // One that knows its id only, as everyone does who sees it pass.
        invite(MeshKey::generate(), None);
        let [near, far] = meet(Credentials::guest(&secret), listener).await;
        assert_eq!((near, far), (Err(Refusal::UnknownInvitation), Err(Refusal::UnknownInvitation)));
    }

    #[test]
    fn a_hello_survives_its_bytes() {
        let credentials = Credentials::new(MeshKey::generate(), Role::Driver);
        let hello = Hello::new(&credentials, offers([u64::MAX, 7])).unwrap();
        let back = Hello::from_bytes(&hello.to_bytes());
        assert_eq!((back.protocol, back.role, back.polars), (hello.protocol, hello.role, hello.polars));
        assert_eq!((back.offered, back.nonce), (hello.offered, hello.nonce));
        assert_eq!((release("0.55.2"), release("x.1"), release("")), ([0, 55, 2], [0, 1, 0], [0, 0, 0]));
    }

    #[test]
    fn the_roster_forgets_the_oldest_beyond_its_limit() {
        let roster = Roster::default();
        let first = PeerId::random();
        roster.admit(first, Role::Node);
        for _ in 0..MAX_REMEMBERED {
            roster.admit(PeerId::random(), Role::Driver);
        }
        assert_eq!(roster.role(&first), None);
        assert_eq!(roster.lock().roles.len(), MAX_REMEMBERED);
    }
}
