//! What a blob is called: the digest of its bytes, which whoever receives them checks.

use floe_protocol::BlobId;
use sha2::{Digest, Sha256};

/// The id of bytes that are at hand.
pub fn blob_id(bytes: &[u8]) -> BlobId {
    let mut hasher = BlobHasher::default();
    hasher.update(bytes);
    hasher.finish()
}

/// The id of bytes that come piece by piece.
#[derive(Clone, Debug, Default)]
pub struct BlobHasher(Sha256);

impl BlobHasher {
    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The id of all pieces.
    pub fn finish(self) -> BlobId {
        let digest = self.0.finalize();
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        BlobId(u128::from_be_bytes(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_first_half_of_the_sha_256_however_the_bytes_come() {
        assert_eq!(blob_id(b"abc").to_string(), "ba7816bf8f01cfea414140de5dae2223");
        let mut hasher = BlobHasher::default();
        hasher.update(b"a");
        hasher.update(b"bc");
        assert_eq!(hasher.finish(), blob_id(b"abc"));
    }
}
