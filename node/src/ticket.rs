//! Tickets: one word that lets another machine join, made of an invitation's secret and addresses of the mesh.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use floe_protocol::frame;
use floe_transport::InvitationSecret;
use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};

/// What every ticket starts with; its digit is the format's version.
const PREFIX: &str = "floe2";

/// What tickets of a former format started with, which held the mesh key.
const FORMER_PREFIX: &str = "floe1";

/// How many addresses a ticket carries at most.
pub const MAX_ADDRESSES: usize = 8;

/// The longest text that is taken for a ticket.
const MAX_TICKET_CHARS: usize = 8 << 10;

/// An invitation. Whoever holds it can join until it is used up or has expired.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// What admits its holder.
    pub secret: InvitationSecret,
    /// Where a member listens.
    pub addresses: Vec<Multiaddr>,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    secret: [u8; 16],
    addresses: Vec<String>,
}

/// Why a text is not a ticket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a floe ticket ({0}): copy the whole line that `floe invite` printed")]
pub struct Error(&'static str);

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wire = Wire {
            secret: self.secret.to_bytes(),
            addresses: self.addresses.iter().take(MAX_ADDRESSES).map(Multiaddr::to_string).collect(),
        };
        let mut bytes = frame::encode(&wire).map_err(|_| fmt::Error)?;
        // A mistyped or cut ticket must not look like another one.
        let sum = xxhash_rust::xxh3::xxh3_64(&bytes) as u32;
        bytes.extend(sum.to_be_bytes());
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl FromStr for Ticket {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if text.len() > MAX_TICKET_CHARS {
            return Err(Error("it is too long"));
        }
        if text.starts_with(FORMER_PREFIX) {
            return Err(Error("it is of a former version of floe, or no ticket at all"));
        }
        let body = text.strip_prefix(PREFIX).ok_or(Error("it does not start with floe2"))?;
        let bytes = BASE32_NOPAD
            .decode(body.to_ascii_uppercase().as_bytes())
            .map_err(|_| Error("it has characters or a length that tickets do not have"))?;
        let (bytes, sum) = bytes.split_last_chunk::<4>().ok_or(Error("it is too short"))?;
        if xxhash_rust::xxh3::xxh3_64(bytes) as u32 != u32::from_be_bytes(*sum) {
            return Err(Error("a part of it is missing or mistyped"));
        }
        let wire: Wire = frame::decode(bytes).map_err(|_| Error("its content cannot be read"))?;
        let addresses = wire
            .addresses
            .iter()
            .take(MAX_ADDRESSES)
            .map(|address| address.parse().map_err(|_| Error("an address in it cannot be read")))
            .collect::<Result<_, _>>()?;
        Ok(Self { secret: InvitationSecret::from_bytes(wire.secret), addresses })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_ticket_survives_its_text_and_a_damaged_one_is_refused() {
        let ticket = Ticket {
            secret: InvitationSecret::generate().unwrap(),
            addresses: vec!["/ip4/192.0.2.1/tcp/4810".parse().unwrap()],
        };
        let text = ticket.to_string();
        let back: Ticket = text.parse().unwrap();
        assert_eq!(back.addresses, ticket.addresses);
        assert_eq!(back.secret, ticket.secret);
        for position in 0..text.len() {
            let mut damaged = text.clone().into_bytes();
            damaged[position] = if damaged[position] == b'a' { b'b' } else { b'a' };
            assert!(String::from_utf8(damaged).unwrap().parse::<Ticket>().is_err(), "{position}");
            assert!(text[..position].parse::<Ticket>().is_err());
        }
    }
}
