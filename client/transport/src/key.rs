//! The mesh key, and the secrets that are made of it or beside it.
//!
//! ```text
//!   mesh key ──name──> KeyName              what it is called
//!            ──successor(salt)──> mesh key   the next one, for whoever holds this one and hears the salt
//!            ──sealed(other)──> 32 bytes     another one, for whoever holds this one
//!
//!   ticket's secret ──id──> InvitationId
//!                   ──verifier──> mesh key  the secret that both ends of a guest's connection prove
//! ```

use std::fmt;
use std::str::FromStr;

use floe_protocol::{InvitationId, KeyName};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const KEY_BYTES: usize = 32;
const KEY_PREFIX: &str = "floe1-";

/// How many random bytes an invitation's secret has: as hard to guess as a key, and short in a ticket.
const INVITATION_BYTES: usize = 16;

/// How long a proof is.
pub(crate) const PROOF_BYTES: usize = 32;

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

    /// A key from its bytes.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes. They must not end in logs.
    pub fn to_bytes(&self) -> [u8; KEY_BYTES] {
        self.0
    }

    /// What it is called, which does not betray it.
    pub fn name(&self) -> KeyName {
        KeyName(first_half(&self.derive(&[b"floe fingerprint"])))
    }

    /// A short name for the key that does not betray it: eight hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        self.name().fingerprint()
    }

    /// The key that follows on this one. Who holds this key and learns the salt has the next one too.
    pub fn successor(&self, salt: &[u8; KEY_BYTES]) -> Self {
        Self(self.derive(&[b"floe next key", salt]))
    }

    /// Another key as only those can read it who hold this one; and back again. The salt must be used for this pair
    /// only.
    pub fn sealed(&self, other: &Self, salt: &[u8; KEY_BYTES]) -> [u8; KEY_BYTES] {
        let pad = self.derive(&[b"floe former key", salt]);
        std::array::from_fn(|at| other.0[at] ^ pad[at])
    }

    /// A proof that this key is known, of these parts.
    pub(crate) fn prove(&self, parts: &[&[u8]]) -> [u8; PROOF_BYTES] {
        self.derive(parts)
    }

    /// Whether it is that proof. Takes as long whichever of its bytes is wrong.
    pub(crate) fn verify(&self, parts: &[&[u8]], proof: &[u8; PROOF_BYTES]) -> bool {
        mac(&self.0, parts).verify_slice(proof).is_ok()
    }

    fn derive(&self, parts: &[&[u8]]) -> [u8; 32] {
        mac(&self.0, parts).finalize().into_bytes().into()
    }
}

/// The secret in a ticket. The mesh holds what is made of it only.
#[derive(Clone, PartialEq, Eq)]
pub struct InvitationSecret([u8; INVITATION_BYTES]);

impl InvitationSecret {
    /// A fresh one.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut secret = [0; INVITATION_BYTES];
        getrandom::fill(&mut secret)?;
        Ok(Self(secret))
    }

    /// One from its bytes.
    pub fn from_bytes(bytes: [u8; INVITATION_BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes. They must not end in logs.
    pub fn to_bytes(&self) -> [u8; INVITATION_BYTES] {
        self.0
    }

    /// Which invitation it is of.
    pub fn id(&self) -> InvitationId {
        let digest: [u8; 32] = mac(&self.0, &[b"floe invitation"]).finalize().into_bytes().into();
        InvitationId(first_half(&digest))
    }

    /// What both ends prove to each other, as a key.
    pub fn verifier(&self) -> MeshKey {
        MeshKey(mac(&self.0, &[b"floe invitation verifier"]).finalize().into_bytes().into())
    }
}

impl fmt::Debug for InvitationSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InvitationSecret({})", self.id())
    }
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac
}

fn first_half(digest: &[u8; 32]) -> u64 {
    digest[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The one line that a key file holds: `floe1-` and 64 hexadecimal digits.
impl fmt::Display for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(KEY_PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_former_key_leads_to_the_next_and_the_next_one_opens_the_former() {
        let (former, stranger, salt) = (MeshKey::generate(), MeshKey::generate(), [7; 32]);
        let next = former.successor(&salt);
        assert!(next != former && next.name() != former.name());
        assert_eq!(next, former.successor(&salt), "everyone who holds the former makes the same one");
        assert!(next != stranger.successor(&salt) && next != former.successor(&[8; 32]));
        let sealed = next.sealed(&former, &salt);
        assert_eq!(MeshKey(next.sealed(&MeshKey(sealed), &salt)), former);
        assert!(MeshKey(stranger.sealed(&MeshKey(sealed), &salt)) != former);
    }

    #[test]
    fn an_invitation_is_named_without_betraying_its_secret() {
        let secret = InvitationSecret::generate().unwrap();
        assert_eq!(InvitationSecret::from_bytes(secret.to_bytes()).id(), secret.id());
        assert!(InvitationSecret::generate().unwrap().verifier() != secret.verifier());
        let shown = format!("{secret:?}");
        assert_eq!(shown, format!("InvitationSecret({})", secret.id()));
    }
}
