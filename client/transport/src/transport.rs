//! TCP, Noise with admission, Yamux: one libp2p transport.

use std::time::Duration;

use libp2p::core::ConnectedPoint;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{PeerId, Transport, noise, tcp};

use crate::admission::{Admission, Roster};
use crate::gate::Credentials;
use crate::muxer::Yamux;
use crate::pending::{Guarded, Pending};

/// How long a connection may take from its first packet to Yamux.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// An identity that cannot sign, and so cannot prove itself.
#[derive(Debug, thiserror::Error)]
#[error("this identity key cannot be used: {0}")]
pub struct IdentityError(#[from] noise::Error);

/// A transport that only admitted peers pass. Their roles go into `roster`.
pub fn transport(
    identity: &Keypair,
    credentials: Credentials,
    roster: Roster,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, IdentityError> {
    let noise = noise::Config::new(identity)?;
    let admission = Admission::new(noise, identity.public().to_peer_id(), credentials, roster);
    let pending = Pending::default();
    let waiting = pending.clone();
    Ok(tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .map(move |socket, endpoint| match endpoint {
            ConnectedPoint::Listener { send_back_addr, .. } => waiting.guard(socket, &send_back_addr),
            ConnectedPoint::Dialer { .. } => Guarded::own(socket),
        })
        .upgrade(Version::V1)
        .authenticate(admission)
        .multiplex(Yamux::default())
        .timeout(HANDSHAKE_TIMEOUT)
        .boxed()
        .map(move |admitted, endpoint| {
            if let ConnectedPoint::Listener { send_back_addr, .. } = endpoint {
                pending.admitted(&send_back_addr);
            }
            admitted
        })
        .boxed())
}
