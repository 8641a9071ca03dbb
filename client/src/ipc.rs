//! Cuts the bytes of a result into Arrow IPC messages, without decoding them.
//!
//! A result's body is a row of Arrow IPC *streams*, one a partition:
//!
//! ```text
//!   schema  dictionary*  batch*  end | schema  batch  end | schema  end | ...
//!   `------- partition 0 ----------'   `- partition 1 -'   `- empty -'
//! ```
//!
//! The cut is made here, once, for both ways of decoding (arrow-rs batches and Polars frames) and for
//! resumption, which must count batches that it does not decode.

use arrow_ipc::{MessageHeader, root_as_message};
use bytes::{Buf, Bytes, BytesMut};

/// The largest message that is put together. Floe's nodes write batches far below it; a length beyond it is
/// damage, not data.
const MAX_MESSAGE_BYTES: u64 = 4 << 30;

/// The longest header of a message: a few dozen bytes a column.
const MAX_METADATA_BYTES: usize = 64 << 20;

/// How much room is made for a message on the word of its header alone. Beyond it the buffer grows only with
/// bytes that really came.
const MAX_PREALLOCATED_BYTES: usize = 64 << 20;

/// A message's prefix: the continuation marker and the metadata's length.
const PREFIX_BYTES: usize = 8;

/// One message of a result, with its prefix, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A partition begins.
    Schema(Bytes),
    /// A dictionary for the batches that follow.
    Dictionary {
        /// The message.
        message: Bytes,
        /// Which dictionary it is.
        id: i64,
        /// Whether it is appended to the one before it rather than put in its place.
        is_delta: bool,
    },
    /// Rows.
    Batch {
        /// The message.
        message: Bytes,
        /// How many rows it declares.
        rows: u64,
    },
    /// A partition ends.
    End,
}

/// The bytes are not a row of Arrow IPC streams.
#[derive(Debug, thiserror::Error)]
#[error("the result is not valid Arrow IPC: {0}")]
pub(crate) struct Malformed(String);

/// Puts messages together from chunks of any size.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    buffer: BytesMut,
    /// How much the buffer must hold before looking at it again is of use.
    needed: usize,
    within_partition: bool,
}

impl Splitter {
    /// Takes the next chunk of the body.
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next whole message, or nothing until more is pushed.
    pub(crate) fn next(&mut self) -> Result<Option<Piece>, Malformed> {
        if self.buffer.len() < self.needed {
            return Ok(None);
        }
        let Some(prefix) = self.buffer.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let [a, b, c, d, length @ ..] = *prefix;
        if [a, b, c, d] != [0xff; 4] {
            return Err(Malformed("a message does not begin with the continuation marker".into()));
        }
        let metadata_length = u32::from_le_bytes(length) as usize;
        if metadata_length == 0 {
            if !self.within_partition {
                return Err(Malformed("a partition ends before it began".into()));
            }
            self.buffer.advance(PREFIX_BYTES);
            self.needed = 0;
            self.within_partition = false;
            return Ok(Some(Piece::End));
        }
        if metadata_length > MAX_METADATA_BYTES {
            return Err(Malformed(format!("a header of {metadata_length} bytes")));
        }
        let Some(metadata) = self.buffer.get(PREFIX_BYTES..PREFIX_BYTES + metadata_length) else {
            self.make_room(PREFIX_BYTES + metadata_length);
            return Ok(None);
        };
        let message = root_as_message(metadata).map_err(|error| Malformed(error.to_string()))?;
        let body_length = u64::try_from(message.bodyLength())
            .ok()
            .filter(|length| *length <= MAX_MESSAGE_BYTES)
            .ok_or_else(|| Malformed(format!("a body of {} bytes", message.bodyLength())))?;
        let kind = message.header_type();
        let rows = message.header_as_record_batch().map(|batch| batch.length());
        let dictionary = message.header_as_dictionary_batch().map(|header| (header.id(), header.isDelta()));
        let total = PREFIX_BYTES + metadata_length + body_length as usize;
        if self.buffer.len() < total {
            self.make_room(total);
            return Ok(None);
        }
        let bytes = self.buffer.split_to(total).freeze();
        self.needed = 0;
        match (kind, self.within_partition) {
            (MessageHeader::Schema, false) => {
                self.within_partition = true;
                Ok(Some(Piece::Schema(bytes)))
            }
            (MessageHeader::DictionaryBatch, true) => {
                let (id, is_delta) =
                    dictionary.ok_or_else(|| Malformed("a dictionary without an id".into()))?;
                Ok(Some(Piece::Dictionary { message: bytes, id, is_delta }))
            }
            (MessageHeader::RecordBatch, true) => {
                let rows = rows.and_then(|rows| u64::try_from(rows).ok());
                let rows = rows.ok_or_else(|| Malformed("a batch without a row count".into()))?;
                Ok(Some(Piece::Batch { message: bytes, rows }))
            }
            (other, within) => {
                let place = if within { "within" } else { "between" };
                Err(Malformed(format!("a message of kind {other:?} {place} partitions")))
            }
        }
    }

    fn make_room(&mut self, total: usize) {
        self.needed = total;
        let missing = total.saturating_sub(self.buffer.len());
        self.buffer.reserve(missing.min(MAX_PREALLOCATED_BYTES));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use arrow_array::{Int64Array, RecordBatch};
    use arrow_ipc::writer::StreamWriter;
    use arrow_schema::{DataType, Field, Schema};

    use super::*;

    /// One partition, a batch for each of `heights`.
    fn partition(heights: &[i64]) -> Vec<u8> {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
        for height in heights {
            let column = Arc::new(Int64Array::from_iter_values(0..*height));
            writer.write(&RecordBatch::try_new(schema.clone(), vec![column]).unwrap()).unwrap();
        }
        writer.into_inner().unwrap()
    }

    /// `S`, `B<rows>` and `E` for what comes out when the body arrives in chunks of `size`.
    fn outline(body: &[u8], size: usize) -> Result<String, Malformed> {
        let mut splitter = Splitter::default();
        let mut seen = String::new();
        for chunk in body.chunks(size) {
            splitter.push(chunk);
            while let Some(piece) = splitter.next()? {
                match piece {
                    Piece::Schema(_) => seen.push('S'),
                    Piece::Dictionary { .. } => seen.push('D'),
                    Piece::Batch { rows, .. } => seen.push_str(&format!("B{rows}")),
                    Piece::End => seen.push('E'),
                }
            }
        }
        let at_rest = splitter.buffer.is_empty() && !splitter.within_partition;
        Ok(if at_rest { seen } else { seen + "…" })
    }

    #[test]
    fn a_body_is_cut_alike_however_it_arrives() {
        let body = [partition(&[3, 5]), partition(&[]), partition(&[0, 1000])].concat();
        for size in [1, 7, 8, 64, 4096, body.len()] {
            assert_eq!(outline(&body, size).unwrap(), "SB3B5ESESB0B1000E", "chunks of {size}");
        }
    }

    #[test]
    fn a_cut_body_is_not_at_rest_and_damage_is_refused_without_a_panic() {
        let body = partition(&[2]);
        for cut in 1..body.len() {
            assert!(outline(&body[..cut], 64).unwrap().ends_with('…'), "cut at {cut}");
        }
        assert!(outline(&[0; 64], 64).is_err());
        assert!(outline(&[0xff; 64], 64).is_err());
        assert!(outline(&body[body.len() - 8..], 64).is_err(), "an end before a beginning");
        for at in 0..body.len() {
            let mut damaged = body.clone();
            damaged[at] ^= 0x55;
            let _ = outline(&damaged, 64);
        }
    }
}
