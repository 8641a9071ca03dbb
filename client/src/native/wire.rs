//! The messages between a node and a host of functions, over the host's pipes.
//!
//! ```text
//!   u32 length (big endian) | header: a CBOR map with `type` and `sections` | section | section | ...
//! ```

use std::io::{self, Read, Write};

use floe_protocol::{BlobId, frame};
use serde::{Deserialize, Serialize};

/// The protocol that is spoken here.
pub(super) const PROTOCOL: u32 = 1;

/// The longest header.
const MAX_HEADER_BYTES: usize = 1 << 20;

/// The most sections of one message: a task that merges reads as many partitions as a job may have, and its
/// argument.
const MAX_SECTIONS: usize = floe_protocol::function::MAX_TASKS + 1;

/// How much room is made for a section on the word of its header. Beyond it, memory grows with what really
/// comes.
const MAX_PREALLOCATED_BYTES: u64 = 64 << 20;

/// The longest one-line message of an error; more is cut off. The node cuts there too.
const MAX_MESSAGE_BYTES: usize = 4 << 10;

/// The longest account of where an error came from.
const MAX_TRACEBACK_BYTES: usize = 16 << 10;

/// Why the conversation with the node cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The pipe broke.
    #[error("the pipe to the node: {0}")]
    Io(#[from] io::Error),
    /// The node sent something else than the protocol.
    #[error("the node's message cannot be read: {0}")]
    Malformed(String),
    /// What is to be sent cannot be.
    #[error("an answer cannot be written: {0}")]
    Unwritable(String),
}

/// What the node wants.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Order {
    /// The first message.
    Hello {
        /// The protocol that the node speaks.
        protocol: u32,
        /// A file of 8 bytes, in which stands the id of the call that runs.
        #[serde(default)]
        progress: Option<String>,
    },
    /// A function that later messages name by a number; its code is the only section.
    Define {
        /// The number.
        function: u32,
        /// What people call it.
        name: String,
    },
    /// Functions that are not called any more, unless they are defined again.
    Forget {
        /// Their numbers.
        functions: Vec<u32>,
    },
    /// One call of a job's function: the argument, unless there is none, then the input partitions.
    Task {
        /// The function.
        function: u32,
        /// What the first section is.
        argument: ArgumentKind,
    },
    /// Calls of a session: ids, lengths, arguments.
    Calls {
        /// The function.
        function: u32,
    },
    /// A blob that was asked for.
    Blob {
        /// Its id.
        blob: String,
        /// The file that holds it.
        #[serde(default)]
        path: Option<String>,
        /// Why there is none.
        #[serde(default)]
        missing: Option<String>,
    },
}

/// What a task's argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ArgumentKind {
    /// There is none, nor a section for it.
    None,
    /// The driver's bytes.
    Bytes,
    /// The path of a file on this node.
    Path,
}

/// A whole message from the node.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Its header.
    pub(super) order: Order,
    /// What follows it.
    pub(super) sections: Vec<Vec<u8>>,
}

/// What is said to the node. Sections are written after it, and their lengths into its header.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Answer<'a> {
    /// Functions can come.
    Ready {
        /// The version of this crate.
        version: &'a str,
    },
    /// No function can run here.
    Unfit {
        /// What is needed.
        needs: &'a str,
        /// What there is instead.
        why: &'a str,
    },
    /// A task's output, its only section.
    Returned {
        /// What it is.
        kind: OutputKind,
        /// A frame's rows.
        #[serde(skip_serializing_if = "Option::is_none")]
        rows: Option<u64>,
    },
    /// A task's error. Its only section, what the driver could make of it in its own terms, is empty.
    Raised {
        /// One line.
        message: &'a str,
        /// Where it came from.
        traceback: &'a str,
    },
    /// Calls that ended: ids, status, elapsed, lengths, bodies.
    Results {},
    /// A running function needs this blob.
    Need {
        /// Its id.
        blob: &'a str,
        /// Its size.
        bytes: u64,
    },
}

/// What a task put out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OutputKind {
    /// An Arrow IPC file.
    Frame,
    /// Bytes that the driver understands.
    Object,
}

/// An error of a function, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Raised {
    /// One line.
    pub(super) message: String,
    /// Where it came from, and what else there is to say.
    pub(super) traceback: String,
}

impl Raised {
    /// An error's text: its first line as the message, all of it as the account if there is more than that.
    pub(super) fn new(text: &str) -> Self {
        let line = text.lines().next().unwrap_or_default();
        let rest = if line.len() == text.trim_end().len() { "" } else { text };
        Self::with_traceback(line, rest)
    }

    /// A message, and where it came from.
    pub(super) fn with_traceback(message: &str, traceback: &str) -> Self {
        Self {
            message: cut(message, MAX_MESSAGE_BYTES).to_owned(),
            traceback: cut(traceback, MAX_TRACEBACK_BYTES).to_owned(),
        }
    }
}

/// As much of a text as fits.
fn cut(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or(text)
}

/// The part of a header that all have.
#[derive(Deserialize)]
struct Lengths {
    #[serde(default)]
    sections: Vec<u64>,
}

/// A header with its lengths.
#[derive(Serialize)]
struct Header<'a> {
    #[serde(flatten)]
    answer: &'a Answer<'a>,
    #[serde(skip_serializing_if = "<[u64]>::is_empty")]
    sections: &'a [u64],
}

/// Reads a message; nothing at the end of the pipe.
pub(super) fn read_message(pipe: &mut impl Read) -> Result<Option<Message>, WireError> {
    let Some(length) = read_length(pipe)? else {
        return Ok(None);
    };
    if length > MAX_HEADER_BYTES {
        return Err(WireError::Malformed(format!("its header has {length} bytes")));
    }
    let mut header = vec![0; length];
    pipe.read_exact(&mut header)?;
    let malformed = |error: frame::FrameError| WireError::Malformed(error.to_string());
    let lengths: Lengths = frame::decode(&header).map_err(malformed)?;
    let order: Order = frame::decode(&header).map_err(malformed)?;
    if lengths.sections.len() > MAX_SECTIONS {
        return Err(WireError::Malformed(format!("it has {} sections", lengths.sections.len())));
    }
    let sections = lengths.sections.into_iter().map(|length| read_section(pipe, length));
    Ok(Some(Message { order, sections: sections.collect::<Result<_, _>>()? }))
}

/// A header's length; nothing if the pipe ends before it.
fn read_length(pipe: &mut impl Read) -> Result<Option<usize>, WireError> {
    let mut length = [0; 4];
    let mut read = 0;
    while read < length.len() {
        match pipe.read(&mut length[read..]) {
            Ok(0) if read == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(bytes) => read += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(u32::from_be_bytes(length) as usize))
}

fn read_section(pipe: &mut impl Read, length: u64) -> Result<Vec<u8>, WireError> {
    let mut section = Vec::with_capacity(length.min(MAX_PREALLOCATED_BYTES) as usize);
    pipe.take(length).read_to_end(&mut section)?;
    if section.len() as u64 != length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(section)
}

/// Writes a message and hands it to the node.
pub(super) fn write_message(
    pipe: &mut impl Write,
    answer: &Answer<'_>,
    sections: &[&[u8]],
) -> Result<(), WireError> {
    let lengths: Vec<_> = sections.iter().map(|section| section.len() as u64).collect();
    let header = frame::encode(&Header { answer, sections: &lengths })
        .map_err(|error| WireError::Unwritable(error.to_string()))?;
    // Sections that are small go out with the header, in one write.
    let mut message = Vec::with_capacity(4 + header.len());
    message.extend_from_slice(&(header.len() as u32).to_be_bytes());
    message.extend_from_slice(&header);
    for section in sections {
        if message.len() + section.len() <= MAX_JOINED_BYTES {
            message.extend_from_slice(section);
        } else {
            pipe.write_all(&message)?;
            message.clear();
            pipe.write_all(section)?;
        }
    }
    pipe.write_all(&message)?;
    pipe.flush()?;
    Ok(())
}

/// How much is put together for one write: beyond it, copying costs more than another write.
const MAX_JOINED_BYTES: usize = 64 << 10;

/// A blob's id in text.
pub(super) fn parse_blob(text: &str) -> Result<BlobId, WireError> {
    text.parse().map_err(|error: floe_protocol::ids::ParseIdError| WireError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as a node writes it.
    fn written(header: &[(&str, ciborium::Value)], sections: &[&[u8]]) -> Vec<u8> {
        let lengths = sections.iter().map(|section| (section.len() as u64).into()).collect();
        let mut map: Vec<_> = header.iter().map(|(key, value)| ((*key).into(), value.clone())).collect();
        map.push(("sections".into(), ciborium::Value::Array(lengths)));
        let header = frame::encode(&ciborium::Value::Map(map)).unwrap();
        [&(header.len() as u32).to_be_bytes()[..], &header, &sections.concat()].concat()
    }

    #[test]
    fn orders_are_read_with_their_sections_and_unknown_keys_are_passed_over() {
        let task = [("type", "task".into()), ("function", 3.into()), ("argument", "bytes".into())];
        let hello =
            [("type", "hello".into()), ("protocol", 1.into()), ("modules", ciborium::Value::Array(vec![]))];
        let bytes = [written(&task, &[b"argument", b"", b"file"]), written(&hello, &[])].concat();
        let mut pipe = &bytes[..];
        let message = read_message(&mut pipe).unwrap().unwrap();
        assert_eq!(message.order, Order::Task { function: 3, argument: ArgumentKind::Bytes });
        assert_eq!(message.sections, [&b"argument"[..], b"", b"file"]);
        assert_eq!(
            read_message(&mut pipe).unwrap().unwrap().order,
            Order::Hello { protocol: 1, progress: None }
        );
        assert_eq!(read_message(&mut pipe).unwrap(), None);
    }

    #[test]
    fn a_cut_message_and_rubbish_are_errors() {
        let whole = written(&[("type", "calls".into()), ("function", 1.into())], &[b"12345678", b"1234"]);
        for cut in 1..whole.len() {
            assert!(read_message(&mut &whole[..cut]).is_err(), "cut at {cut}");
        }
        assert!(read_message(&mut &[0xff; 64][..]).is_err());
        assert!(read_message(&mut &written(&[("type", "dance".into())], &[])[..]).is_err());
    }

    #[test]
    fn answers_carry_their_sections_lengths() {
        let mut pipe = Vec::new();
        let answer = Answer::Returned { kind: OutputKind::Frame, rows: Some(7) };
        let large = vec![1; MAX_JOINED_BYTES];
        write_message(&mut pipe, &answer, &[&large, b"more"]).unwrap();
        let length = u32::from_be_bytes(pipe[..4].try_into().unwrap()) as usize;
        let header: ciborium::Value = frame::decode(&pipe[4..4 + length]).unwrap();
        let keys: Vec<_> = header.into_map().unwrap();
        let value = |key: &str| {
            keys.iter().find(|(name, _)| name.as_text() == Some(key)).map(|(_, value)| value.clone())
        };
        assert_eq!(value("type"), Some("returned".into()));
        assert_eq!(value("kind"), Some("frame".into()));
        assert_eq!(value("rows"), Some(7.into()));
        assert_eq!(
            value("sections"),
            Some(ciborium::Value::Array(vec![(large.len() as u64).into(), 4.into()]))
        );
        assert!(pipe[4 + length..] == [&large[..], b"more"].concat());
    }

    #[test]
    fn errors_are_cut_to_one_line_and_their_limits() {
        let raised = Raised::new("first\nsecond");
        assert_eq!((raised.message.as_str(), raised.traceback.as_str()), ("first", "first\nsecond"));
        assert_eq!(Raised::new("only\n").traceback, "");
        assert!(Raised::new(&"ä".repeat(10_000)).message.len() <= MAX_MESSAGE_BYTES);
    }
}
