//! Who may connect: both ends of a connection prove that they hold the mesh key, and say why they part if they
//! don't or if their versions don't fit.
//!
//! Admission is a connection upgrade around Noise, below Yamux: a peer that was not admitted never reaches the
//! multiplexer, and at most a few hundred bytes of its are read.
//!
//! ```text
//!   dialer                                 listener
//!     |  <------------- Noise ------------->  |
//!     |  <-- Hello: versions, role, nonce --> |    versions differ: both know, both part
//!     |  <-- HMAC(key, side, peers, hellos) ->|
//!     |  <------------ verdict ------------>  |    both must be welcome
//! ```

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use floe_protocol::{frame, version};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use hmac::{Hmac, KeyInit, Mac};
use libp2p::core::upgrade::{
    InboundConnectionUpgrade, NegotiationError, OutboundConnectionUpgrade, ProtocolError, UpgradeInfo,
};
use libp2p::{PeerId, noise};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// How long Noise and admission together may take. A peer that is slower is most likely no floe at all.
pub const ADMISSION_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest message read from a peer that is not admitted yet.
const MAX_MESSAGE_BYTES: usize = 512;

/// How many admitted peers' roles are remembered until the swarm asks for them. It asks within moments; the limit
/// only keeps peers that came and went from piling up.
const MAX_REMEMBERED: usize = 1024;

const KEY_BYTES: usize = 32;
const KEY_PREFIX: &str = "floe1-";

/// The secret that makes a mesh: whoever holds it is in.
#[derive(Clone, PartialEq, Eq)]
pub struct MeshKey([u8; KEY_BYTES]);

impl MeshKey {
    /// A fresh key from the operating system's randomness.
    pub fn generate() -> Self {
        let mut key = [0; KEY_BYTES];
        getrandom::fill(&mut key).expect("the operating system has randomness");
        Self(key)
    }

    /// A short name for the key that does not betray it: eight hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        hex(&self.mac(&[b"floe fingerprint"]).finalize().into_bytes()[..4])
    }

    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

/// The one line that a key file holds: `floe1-` and 64 hexadecimal digits.
impl fmt::Display for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KEY_PREFIX}{}", hex(&self.0))
    }
}

/// The fingerprint only: keys must not end in logs.
impl fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshKey({})", self.fingerprint())
    }
}

/// A text that is no mesh key. The text itself is not repeated, since it may be most of one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a mesh key: expected `{KEY_PREFIX}` and 64 hexadecimal digits, as `floe key` prints them")]
pub struct ParseKeyError;

impl FromStr for MeshKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        let digits = text.trim().strip_prefix(KEY_PREFIX).ok_or(ParseKeyError)?.as_bytes();
        if digits.len() != 2 * KEY_BYTES {
            return Err(ParseKeyError);
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(ParseKeyError);
        let mut key = [0; KEY_BYTES];
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Ok(Self(key))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a member of the mesh does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Runs tasks and may lead. Nodes must agree on Polars' version too, since they exchange fragments.
    Node,
    /// Submits jobs.
    Driver,
}

/// What one end brings to admission.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The mesh key.
    pub key: MeshKey,
    /// What this end is.
    pub role: Role,
    /// The protocol it speaks.
    pub protocol: u32,
    /// The Polars release whose fragments it runs.
    pub polars: String,
}

impl Credentials {
    /// Credentials with this build's versions.
    pub fn new(key: MeshKey, role: Role) -> Self {
        Self { key, role, protocol: version::PROTOCOL_VERSION, polars: version::POLARS_VERSION.to_owned() }
    }
}

/// Why two ends parted before they were connected.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The proofs don't fit.
    #[error(
        "wrong mesh key: this side holds key {ours}, the other side key {theirs}; start both with the same --key-file"
    )]
    WrongKey {
        /// Our key's fingerprint.
        ours: String,
        /// The fingerprint the other side claims.
        theirs: String,
    },
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
    #[error("the other side does not speak floe's protocol, or hung up at once")]
    NotFloe,
    /// Too slow.
    #[error("the other side did not finish the admission within {} s", ADMISSION_TIMEOUT.as_secs())]
    Timeout,
    /// The other side refused for a reason this version does not know.
    #[error("the other side refused without a reason that this version knows (code {0})")]
    Unknown(u8),
    /// The connection ended, or Noise failed.
    #[error("the connection broke during admission: {0}")]
    Broken(String),
}

/// Finds why a peer was not admitted in an error of libp2p's, however deep it lies.
///
/// `libp2p::swarm::DialError::Transport` has no source: pass the `TransportError`s it lists one by one.
pub fn refusal_of(error: &(dyn Error + 'static)) -> Option<Refusal> {
    find::<Refusal>(error).cloned().or_else(|| {
        find::<NegotiationError>(error).map(|error| match error {
            // Whoever does not understand a greeting hangs up.
            NegotiationError::ProtocolError(ProtocolError::IoError(error))
                if error.kind() != io::ErrorKind::UnexpectedEof =>
            {
                Refusal::Broken(error.to_string())
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

    fn admit(&self, peer: PeerId, role: Role) {
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
            let (peer, mut stream) = noise.await.map_err(|error| Refusal::Broken(error.to_string()))?;
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
        // Not plain "/noise": anything but floe parts at the negotiation already.
        std::iter::once("/floe/noise/1")
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

/// What each end says first. Fields may be added: readers ignore those they don't know.
#[derive(Serialize, Deserialize)]
struct Hello {
    protocol: u32,
    polars: String,
    role: Role,
    fingerprint: String,
    nonce: [u8; 32],
}

const WELCOME: u8 = 0;
const WRONG_KEY: u8 = 1;

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
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map_err(|error| Refusal::Broken(error.to_string()))?;
    let ours = Hello {
        protocol: credentials.protocol,
        polars: credentials.polars.clone(),
        role: credentials.role,
        fingerprint: credentials.key.fingerprint(),
        nonce,
    };
    let our_hello = frame::encode(&ours).map_err(|error| Refusal::Broken(error.to_string()))?;
    let their_hello = exchange(stream, &our_hello).await?;
    let theirs: Hello = frame::decode(&their_hello).map_err(|_| Refusal::NotFloe)?;

    // Both ends compare the same two hellos, so both part here or neither does.
    if ours.protocol != theirs.protocol {
        return Err(Refusal::Protocol { ours: ours.protocol, theirs: theirs.protocol });
    }
    if ours.role == Role::Node && theirs.role == Role::Node && ours.polars != theirs.polars {
        return Err(Refusal::Polars { ours: ours.polars, theirs: theirs.polars });
    }

    let [dialer, listener] = peers.map(|peer| peer.to_bytes());
    let (dialer_hello, listener_hello) = match side {
        Side::Dialer => (&our_hello, &their_hello),
        Side::Listener => (&their_hello, &our_hello),
    };
    let proof = |by: Side| {
        let by: &[u8] = if by == Side::Dialer { b"dialer" } else { b"listener" };
        credentials.key.mac(&[b"floe admission", by, &dialer, &listener, dialer_hello, listener_hello])
    };
    let other = if side == Side::Dialer { Side::Listener } else { Side::Dialer };
    let their_proof = exchange(stream, &proof(side).finalize().into_bytes()).await?;
    let proven = proof(other).verify_slice(&their_proof).is_ok();

    let wrong_key =
        || Refusal::WrongKey { ours: ours.fingerprint.clone(), theirs: theirs.fingerprint.clone() };
    let verdict = exchange(stream, &[if proven { WELCOME } else { WRONG_KEY }]).await;
    if !proven {
        return Err(wrong_key());
    }
    match verdict?[..] {
        [WELCOME] => Ok(theirs.role),
        [WRONG_KEY] => Err(wrong_key()),
        [code, ..] => Err(Refusal::Unknown(code)),
        [] => Err(Refusal::NotFloe),
    }
}

/// Sends one message and reads the other side's: a `u16` length, then the bytes.
async fn exchange<S>(stream: &mut S, message: &[u8]) -> Result<Vec<u8>, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let broken = |error: io::Error| Refusal::Broken(error.to_string());
    let length = u16::try_from(message.len()).map_err(|_| Refusal::Broken("a message is too long".into()))?;
    stream.write_all(&length.to_be_bytes()).await.map_err(broken)?;
    stream.write_all(message).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;

    let mut length = [0; 2];
    stream.read_exact(&mut length).await.map_err(broken)?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > MAX_MESSAGE_BYTES {
        return Err(Refusal::NotFloe);
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await.map_err(broken)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    async fn meet(dialer: Credentials, listener: Credentials) -> [Result<Role, Refusal>; 2] {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (mut near, mut far) = (near.compat(), far.compat());
        let peers = [PeerId::random(), PeerId::random()];
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
        let newer = Credentials { protocol: 9, ..node.clone() };
        let [near, far] = meet(node.clone(), newer).await;
        assert_eq!(near, Err(Refusal::Protocol { ours: node.protocol, theirs: 9 }));
        assert_eq!(far, Err(Refusal::Protocol { ours: 9, theirs: node.protocol }));

        let other = Credentials { polars: "9.9.9".into(), ..node.clone() };
        let [near, _] = meet(node.clone(), other.clone()).await;
        assert_eq!(near, Err(Refusal::Polars { ours: node.polars.clone(), theirs: "9.9.9".into() }));

        // A driver sends plans of a tested range of versions: its own Polars does not matter here.
        let [near, far] = meet(node, Credentials { role: Role::Driver, ..other }).await;
        assert_eq!((near, far), (Ok(Role::Driver), Ok(Role::Node)));
    }

    #[tokio::test]
    async fn a_proof_sent_back_to_its_author_proves_nothing() {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (mut near, mirror) = (near.compat(), far);
        let echo = tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(mirror);
            tokio::io::copy(&mut read, &mut write).await
        });
        let credentials = Credentials::new(MeshKey::generate(), Role::Node);
        let peers = [PeerId::random(), PeerId::random()];
        let outcome = prove(&mut near, Side::Dialer, peers, &credentials).await;
        assert!(matches!(outcome, Err(Refusal::WrongKey { .. })), "{outcome:?}");
        echo.abort();
    }

    #[tokio::test]
    async fn an_announced_length_over_the_limit_is_refused_before_it_is_read() {
        let (near, mut far) = tokio::io::duplex(64 << 10);
        tokio::io::AsyncWriteExt::write_all(&mut far, &[0xff; 2]).await.unwrap();
        let credentials = Credentials::new(MeshKey::generate(), Role::Node);
        let peers = [PeerId::random(), PeerId::random()];
        let outcome = prove(&mut near.compat(), Side::Listener, peers, &credentials).await;
        assert_eq!(outcome, Err(Refusal::NotFloe));
    }

    #[test]
    fn a_key_survives_its_text_and_hides_in_debug_output() {
        let key = MeshKey::generate();
        let text = key.to_string();
        assert_eq!(text.parse(), Ok(key.clone()));
        assert_eq!(format!("{text}\n").parse(), Ok(key.clone()));
        assert!(!format!("{key:?}").contains(&text[KEY_PREFIX.len()..]));
        for bad in ["", "floe1-", &text[1..], &text[..text.len() - 1], &text.replace("floe1-", "floe1-zz")] {
            assert_eq!(bad.parse::<MeshKey>(), Err(ParseKeyError));
        }
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
