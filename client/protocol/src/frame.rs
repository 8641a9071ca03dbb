//! Framing: a big-endian `u32` length, then that many bytes of CBOR.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest frame that is read or written. Anything larger travels as a bulk body.
pub const MAX_FRAME_BYTES: usize = 16 << 20;

/// How deeply nested a frame's CBOR may be.
const MAX_DEPTH: usize = 64;

/// Why a frame could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Too long.
    #[error("a frame of {bytes} bytes exceeds the limit of {MAX_FRAME_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not CBOR of the wanted type.
    #[error("a frame cannot be read: {0}")]
    Malformed(String),
    /// A value that CBOR cannot hold.
    #[error("a frame cannot be written: {0}")]
    Unwritable(String),
}

/// Encodes a value as CBOR, without a length.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::with_capacity(256);
    ciborium::into_writer(value, &mut bytes).map_err(|error| FrameError::Unwritable(error.to_string()))?;
    Ok(bytes)
}

/// Decodes CBOR that must fill the whole of `bytes`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    let mut rest = bytes;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH)
        .map_err(|error| FrameError::Malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(FrameError::Malformed(format!("{} bytes follow its end", rest.len())));
    }
    Ok(value)
}

/// Encodes a value with its length in front.
pub fn encode_frame<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    ciborium::into_writer(value, &mut frame).map_err(|error| FrameError::Unwritable(error.to_string()))?;
    let length = frame.len() - 4;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLong { bytes: length });
    }
    frame[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(frame)
}

/// Reads a frame's length, refusing one over the limit before anything is allocated.
pub fn decode_length(header: [u8; 4]) -> Result<usize, FrameError> {
    let bytes = u32::from_be_bytes(header) as usize;
    if bytes > MAX_FRAME_BYTES { Err(FrameError::TooLong { bytes }) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::JobId;
    use crate::message::Request;

    #[test]
    fn a_frame_survives_and_garbage_is_refused_without_a_panic() {
        let request = Request::Job { id: JobId(7) };
        let frame = encode_frame(&request).unwrap();
        let length = decode_length(frame[..4].try_into().unwrap()).unwrap();
        assert_eq!(length, frame.len() - 4);
        assert_eq!(decode::<Request>(&frame[4..]).unwrap(), request);
        assert!(decode::<Request>(&[&frame[4..], &[0]].concat()).is_err());
        for cut in 0..length {
            assert!(decode::<Request>(&frame[4..4 + cut]).is_err());
        }
        assert!(decode_length([0xff; 4]).is_err());
        assert!(decode::<Request>(&[0x81; 100_000]).is_err());
    }
}
