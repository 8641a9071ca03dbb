//! One admitted connection between two members of a Floe mesh: TCP, Noise, admission, Yamux; framed calls and
//! bulk bodies on its streams. Nodes and drivers use the same code.
//!
//! ```text
//!   key          the mesh key, and the secrets that are made of it or beside it
//!   gate         what an end holds to be let in, and whom it lets in itself
//!   admission    both ends prove one secret to each other before anything else is read
//!   pending      connections that have not finished that: how many, and who makes way
//!   host         which host an address is of, for limits by host
//!   muxer        Yamux, with large frames
//!   transport    TCP + Noise + admission + Yamux as one libp2p transport
//!   substreams   the libp2p behaviour that opens and accepts a connection's streams
//!   call         frames: one request, its responses
//!   stream       bulk bodies: credits, acknowledgement, a sender's failure
//!   files        bodies of files whose lengths are known
//!   keepalive    notices a peer that fell silent
//!   connection   a driver's connection: all of the above behind one handle
//!   registry     the nodes of this machine, found through a directory
//!   digest       what blobs are called
//! ```
//!
//! Absent: discovery, a mesh, Polars.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admission;
pub mod call;
pub mod connection;
pub mod digest;
pub mod files;
pub mod gate;
pub mod host;
pub mod keepalive;
pub mod key;
pub mod muxer;
mod pending;
pub mod registry;
pub mod stream;
pub mod substreams;
pub mod transport;

use floe_protocol::NodeId;
use libp2p::{PeerId, StreamProtocol};
use sha2::{Digest, Sha256};

pub use admission::{Refusal, Role, refusal_of};
pub use call::{CallError, read_frame, write_frame};
pub use connection::{Connection, DialError};
pub use digest::{BlobHasher, blob_id};
pub use gate::{Credentials, Gate};
pub use key::{InvitationSecret, MeshKey};
pub use libp2p::Stream;
pub use stream::{Body, BodyError, send_body};
pub use substreams::{OpenError, Opener};
pub use transport::transport;

/// Calls: one [`floe_protocol::Request`], perhaps a body, then responses, perhaps a body. Open to every role.
pub const CALL: StreamProtocol = StreamProtocol::new("/floe/call/1");

/// One-way [`floe_protocol::PeerMessage`]s from one node to another, in order. Closed to drivers.
pub const CONTROL: StreamProtocol = StreamProtocol::new("/floe/control/1");

/// The node's id that belongs to a libp2p identity.
pub fn node_id(peer: &PeerId) -> NodeId {
    let digest = Sha256::digest(peer.to_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    // Zero means "nobody" in Raft.
    NodeId(u64::from_be_bytes(first).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_id_is_the_start_of_the_digest_of_its_peer_id() {
        let peer: PeerId = "12D3KooWRnLkr1fzPvRVXsRp1s5PZsGDVxsbmYTDBGQy6VN1zTNg".parse().unwrap();
        let digest = Sha256::digest(peer.to_bytes());
        let text = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(node_id(&peer).to_string(), text);
    }
}
