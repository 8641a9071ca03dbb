//! Coming to a mesh by an invitation: the ticket's secret is traded for the mesh key.
//!
//! ```text
//!   this node, under the identity that it will have ──admission by the invitation──> any node of the mesh
//!                                                   ──Enter──> agreed: one use is this node's ──> mesh key
//! ```
//!
//! The key comes inside a connection of which both ends have proven that they know the secret. A second try under the
//! same identity takes no second use.

use std::time::Duration;

use floe_protocol::{Failure, Request, Response};
use floe_transport::{Connection, Credentials, DialError, MeshKey, Refusal};
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use tokio::time::{Instant, sleep};

use crate::config;
use crate::ticket::Ticket;

/// How long the mesh may take to answer and to agree: it may be electing a leader.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long nodes that do not know the invitation may take to hear of it.
const HEARSAY: Duration = Duration::from_secs(3);

/// How long one node may take to be connected to.
const DIAL_TIMEOUT: Duration = Duration::from_secs(4);

/// The wait between two rounds through the ticket's addresses.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a node was not let in.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nobody to ask.
    #[error("the ticket names no node's address: make a new one with `floe invite`")]
    NoAddress,
    /// A node refused, for a reason that lasts.
    #[error("{address} does not let this node in: {reason}")]
    Refused {
        /// The node.
        address: Multiaddr,
        /// Why.
        reason: String,
    },
    /// Nobody could.
    #[error("no node let this one in within {} s: {}", PATIENCE.as_secs(), .tried.join(", "))]
    Unavailable {
        /// What came of each address last.
        tried: Vec<String>,
    },
}

/// What came of one address.
enum Try {
    Key(MeshKey),
    /// It is of no use to ask again.
    Never(String),
    /// It has not heard of the invitation, perhaps just not yet.
    Unknown(String),
    Later(String),
}

/// Gets the mesh key for a node of this identity.
pub async fn enter(identity: &Keypair, ticket: &Ticket) -> Result<MeshKey, Error> {
    if ticket.addresses.is_empty() {
        return Err(Error::NoAddress);
    }
    let started = Instant::now();
    loop {
        let mut tried = Vec::new();
        for address in &ticket.addresses {
            let (refused, reason) = match ask(identity, ticket, address).await {
                Try::Key(key) => return Ok(key),
                Try::Never(reason) => (true, reason),
                Try::Unknown(reason) => (started.elapsed() >= HEARSAY, reason),
                Try::Later(reason) => (false, reason),
            };
            if refused {
                return Err(Error::Refused { address: address.clone(), reason });
            }
            tried.push(format!("{address} ({reason})"));
        }
        if started.elapsed() >= PATIENCE {
            return Err(Error::Unavailable { tried });
        }
        sleep(PAUSE).await;
    }
}

async fn ask(identity: &Keypair, ticket: &Ticket, address: &Multiaddr) -> Try {
    let credentials = Credentials::guest(&ticket.secret);
    let connection = match Connection::dial(identity, credentials, address.clone(), DIAL_TIMEOUT).await {
        Ok(connection) => connection,
        Err(DialError::Refused { refusal, .. }) => {
            let reason = refusal.to_string();
            return match refusal {
                Refusal::UnknownInvitation => Try::Unknown(reason),
                Refusal::Protocol { .. }
                | Refusal::Polars { .. }
                | Refusal::Forgotten
                | Refusal::UsedUp
                | Refusal::Expired => Try::Never(reason),
                _ => Try::Later(reason),
            };
        }
        Err(DialError::NobodyAnswers { .. }) => return Try::Later("nobody answers".to_owned()),
        Err(error) => return Try::Later(error.to_string()),
    };
    match connection.call(&Request::Enter, config::PROPOSE_PATIENCE).await {
        Ok((Response::Key(key), _)) => Try::Key(MeshKey::from_bytes(key.0)),
        Ok((Response::Failed(failure @ Failure::Refused { .. }), _)) => Try::Never(failure.to_string()),
        Ok((Response::Failed(failure), _)) => Try::Later(failure.to_string()),
        Ok(_) => Try::Later("its answer does not fit the question".to_owned()),
        Err(error) => Try::Later(error.to_string()),
    }
}
