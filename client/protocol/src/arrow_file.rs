//! Partitions as they travel and are stored: Arrow IPC files, and the IPC stream that each has within.
//!
//! ```text
//!   an IPC file:    ARROW1 00 | schema, dictionaries, batches, end of stream | footer | its length | ARROW1
//!   an IPC stream:             \___________________________________________/
//! ```

use bytes::Bytes;

/// What an IPC file starts and ends with.
const MAGIC: &[u8] = b"ARROW1";

/// The magic, padded to the alignment of what follows, at the least and at the most: Polars and pyarrow take the one,
/// arrow-rs the other.
const HEADER_BYTES: usize = 8;
const MAX_HEADER_BYTES: usize = 64;

/// The footer's length, an `i32`, and the magic.
const TRAILER_BYTES: usize = 4 + MAGIC.len();

/// The marker that ends an IPC stream.
const END_OF_STREAM: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// Bytes that are not an Arrow IPC file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes are not an Arrow IPC file: {what}")]
pub struct NotAFile {
    /// How many there are.
    pub bytes: usize,
    /// What is wrong with them.
    pub what: &'static str,
}

/// An IPC file's schema, dictionaries and batches as an IPC stream, without a copy.
pub fn stream_of(file: &Bytes) -> Result<Bytes, NotAFile> {
    let wrong = |what| NotAFile { bytes: file.len(), what };
    let Some(content) = file.len().checked_sub(HEADER_BYTES + TRAILER_BYTES) else {
        return Err(wrong("they are too few"));
    };
    if !file.starts_with(MAGIC) || !file.ends_with(MAGIC) {
        return Err(wrong("they do not start and end with its magic"));
    }
    let trailer = HEADER_BYTES + content;
    let mut footer_bytes = [0; 4];
    footer_bytes.copy_from_slice(&file[trailer..trailer + 4]);
    let footer = usize::try_from(i32::from_le_bytes(footer_bytes)).ok();
    let Some(stream) = footer.and_then(|footer| content.checked_sub(footer)) else {
        return Err(wrong("the footer's length is more than there is"));
    };
    let padding = file[MAGIC.len()..].iter().take_while(|byte| **byte == 0).count();
    let header = (MAGIC.len() + padding).clamp(HEADER_BYTES, MAX_HEADER_BYTES);
    let stream = file.slice(header.min(HEADER_BYTES + stream)..HEADER_BYTES + stream);
    if !stream.ends_with(&END_OF_STREAM) {
        return Err(wrong("no end of stream comes before the footer"));
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_begins_after_whatever_padding_there_is() {
        let stream = [&[0xff; 4][..], b"a message", &END_OF_STREAM].concat();
        for padding in [2, 10, 58] {
            let file = [MAGIC, &vec![0; padding], &stream, b"footer", &6i32.to_le_bytes(), MAGIC].concat();
            assert_eq!(stream_of(&file.into()).unwrap(), stream);
        }
        let nothing = [MAGIC, &[0; 200], &END_OF_STREAM, &0i32.to_le_bytes(), MAGIC].concat();
        assert!(stream_of(&nothing.into()).is_ok_and(|stream| stream.ends_with(&END_OF_STREAM)));
        let only_padding = [MAGIC, &[0; 30], &0i32.to_le_bytes(), MAGIC].concat();
        assert!(stream_of(&only_padding.into()).is_err());
    }
}
