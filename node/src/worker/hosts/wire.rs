//! The messages between a node and a host of functions: `docs/host-protocol.md` is their page.
//!
//! ```text
//!   u32 length (big endian) | header: a CBOR map with `type` and `sections` | section | section | ...
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, Bytes};
use floe_protocol::frame::{self, FrameError};
use floe_protocol::session::Call;
use serde::{Deserialize, Serialize};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// The protocol that is spoken here.
pub(super) const PROTOCOL: u32 = 1;

/// The longest header.
const MAX_HEADER_BYTES: usize = 1 << 20;

/// The most sections of a host's message.
const MAX_SECTIONS: usize = 8;

/// How many bytes of what is not the protocol are shown.
const SHOWN_BYTES: usize = 32;

/// How long more of it is waited for.
const RUBBISH_PATIENCE: Duration = Duration::from_millis(10);

/// Messages up to this size are put together for one write.
const JOINED_BYTES: usize = 64 << 10;

/// What a host is told.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Order<'a> {
    /// The first message.
    Hello { protocol: u32, modules: Vec<String>, libraries: &'a BTreeMap<String, String>, progress: String },
    /// A function that later messages name by its number. One of that number before is forgotten.
    Define { function: u32, name: &'a str },
    /// These functions are not called any more, unless they are defined again.
    Forget { functions: &'a [u32] },
    /// Run a function once.
    Task { function: u32, argument: ArgumentKind },
    /// Say whether functions may come still.
    Check,
    /// Run a function once for each of these: ids, lengths, arguments.
    Calls { function: u32 },
    /// What was needed.
    Blob {
        blob: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        missing: Option<&'a str>,
    },
}

/// What a task's argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ArgumentKind {
    None,
    Bytes,
    Path,
}

/// What a host says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum AnswerType {
    Ready,
    Unfit,
    Returned,
    Raised,
    Results,
    Need,
    /// It runs nothing any more, and has run nothing of what it was told last.
    Spent,
}

/// What a task put out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OutputKind {
    Frame,
    Object,
}

/// The header of what a host says.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    #[serde(rename = "type")]
    pub(super) type_: AnswerType,
    #[serde(default)]
    sections: Vec<u64>,
    #[serde(default)]
    pub(super) version: String,
    #[serde(default)]
    pub(super) needs: String,
    #[serde(default)]
    pub(super) why: String,
    #[serde(default)]
    pub(super) kind: Option<OutputKind>,
    #[serde(default)]
    pub(super) rows: u64,
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) traceback: String,
    /// What makes the host of no use for another run; empty if it is as good as new.
    #[serde(default)]
    pub(super) spent: String,
    #[serde(default)]
    pub(super) blob: String,
    #[serde(default)]
    pub(super) bytes: u64,
}

/// The body of a call that raised.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Raised {
    pub(super) message: String,
    pub(super) traceback: String,
    pub(super) exception: Bytes,
}

/// Something that follows a header.
#[derive(Clone, Debug)]
pub(super) enum Section {
    Bytes(Bytes),
    /// A file's content, of so many bytes.
    File(PathBuf, u64),
}

/// Why the conversation with a host cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// Its end of the pipe is closed.
    #[error("its pipe is closed")]
    Closed,
    /// It said something else than the protocol.
    #[error("{0}")]
    Rubbish(String),
    /// It said more than it may.
    #[error("it put out {bytes} bytes, of at most {may_bytes}")]
    TooMuch { bytes: u64, may_bytes: u64 },
    /// What it is to be told cannot be written down.
    #[error("{0}")]
    Unwritable(String),
    /// A file that it is to be told cannot be read.
    #[error("a file for it cannot be read: {0}")]
    File(io::Error),
}

impl Section {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, bytes) => *bytes,
        }
    }
}

/// The header of a message with its length, ready to be written before its sections.
fn header(order: &Order<'_>, sections: &[u64]) -> Result<Vec<u8>, WireError> {
    #[derive(Serialize)]
    struct Header<'a> {
        #[serde(flatten)]
        order: &'a Order<'a>,
        #[serde(skip_serializing_if = "<[u64]>::is_empty")]
        sections: &'a [u64],
    }
    let message = frame::encode_frame(&Header { order, sections })
        .map_err(|error: FrameError| WireError::Unwritable(error.to_string()))?;
    if message.len() > 4 + MAX_HEADER_BYTES {
        let bytes = message.len() - 4;
        let message = format!("what it must be told takes {bytes} bytes, of at most {MAX_HEADER_BYTES}");
        return Err(WireError::Unwritable(message));
    }
    Ok(message)
}

/// Tells a host something.
pub(super) async fn write(
    pipe: &mut (impl AsyncWrite + Unpin),
    order: &Order<'_>,
    sections: &[Section],
) -> Result<(), WireError> {
    let lengths: Vec<u64> = sections.iter().map(Section::len).collect();
    let mut joined = header(order, &lengths)?;
    for section in sections {
        match section {
            Section::Bytes(bytes) if joined.len() + bytes.len() <= JOINED_BYTES => {
                joined.extend_from_slice(bytes)
            }
            Section::Bytes(bytes) => {
                write_all(pipe, &joined).await?;
                joined.clear();
                write_all(pipe, bytes).await?;
            }
            Section::File(path, bytes) => {
                write_all(pipe, &joined).await?;
                joined.clear();
                let mut file = File::open(path).await.map_err(WireError::File)?.take(*bytes);
                let written = tokio::io::copy(&mut file, pipe).await.map_err(|_| WireError::Closed)?;
                if written < *bytes {
                    return Err(WireError::File(io::Error::other("it is shorter than it should be")));
                }
            }
        }
    }
    write_all(pipe, &joined).await
}

/// Tells a host to run some calls.
pub(super) async fn write_calls(
    pipe: &mut (impl AsyncWrite + Unpin),
    function: u32,
    calls: &[Call],
) -> Result<(), WireError> {
    let count = calls.len();
    let arguments: usize = calls.iter().map(|call| call.argument.len()).sum();
    let lengths = [count * 8, count * 4, arguments].map(|length| length as u64);
    let mut message = header(&Order::Calls { function }, &lengths)?;
    message.reserve_exact(count * 12 + arguments);
    for call in calls {
        message.extend_from_slice(&call.id.to_le_bytes());
    }
    for call in calls {
        let length = u32::try_from(call.argument.len()).map_err(|_| {
            WireError::Unwritable(format!("an argument of {} bytes is too large", call.argument.len()))
        })?;
        message.extend_from_slice(&length.to_le_bytes());
    }
    for call in calls {
        message.extend_from_slice(&call.argument);
    }
    write_all(pipe, &message).await
}

async fn write_all(pipe: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), WireError> {
    if bytes.is_empty() {
        return Ok(());
    }
    pipe.write_all(bytes).await.map_err(|_| WireError::Closed)
}

/// Hears what a host says, of at most so many bytes.
pub(super) async fn read(
    pipe: &mut (impl AsyncRead + Unpin),
    max_bytes: u64,
) -> Result<(Answer, Vec<Bytes>), WireError> {
    let length = pipe.read_u32().await.map_err(|_| WireError::Closed)?;
    if length as usize > MAX_HEADER_BYTES {
        let mut shown = length.to_be_bytes().to_vec();
        // What else is there already says more about where it comes from.
        let mut more = pipe.take((SHOWN_BYTES - shown.len()) as u64);
        drop(timeout(RUBBISH_PATIENCE, more.read_buf(&mut shown)).await);
        return Err(rubbish(&shown));
    }
    let header = read_exactly(pipe, length.into()).await?;
    let answer: Answer =
        frame::decode(&header).map_err(|_| rubbish(&[&length.to_be_bytes(), &header[..]].concat()))?;
    let bytes = answer.sections.iter().try_fold(0_u64, |sum, section| sum.checked_add(*section));
    let Some(bytes) = bytes.filter(|_| answer.sections.len() <= MAX_SECTIONS) else {
        return Err(rubbish(&[&length.to_be_bytes(), &header[..]].concat()));
    };
    if bytes > max_bytes {
        return Err(WireError::TooMuch { bytes, may_bytes: max_bytes });
    }
    let mut content = Bytes::from(read_exactly(pipe, bytes).await?);
    let sections = answer.sections.iter().map(|section| content.split_to(*section as usize)).collect();
    Ok((answer, sections))
}

async fn read_exactly(pipe: &mut (impl AsyncRead + Unpin), bytes: u64) -> Result<Vec<u8>, WireError> {
    let mut content = Vec::new();
    let room = usize::try_from(bytes).unwrap_or(usize::MAX);
    let reserved = content.try_reserve_exact(room);
    reserved.map_err(|_| WireError::TooMuch { bytes, may_bytes: content.capacity() as u64 })?;
    let read = pipe.take(bytes).read_to_end(&mut content).await.map_err(|_| WireError::Closed)?;
    if (read as u64) < bytes { Err(WireError::Closed) } else { Ok(content) }
}

fn rubbish(bytes: &[u8]) -> WireError {
    WireError::Rubbish(format!("instead of a message it wrote {}", shown(bytes)))
}

/// The first bytes of something, in quotes, with escapes for what is not text.
pub(super) fn shown(bytes: &[u8]) -> String {
    let first = &bytes[..bytes.len().min(SHOWN_BYTES)];
    let more = if bytes.len() > first.len() { "..." } else { "" };
    format!("\"{}{more}\"", first.escape_ascii())
}

/// One result out of a message of results.
#[derive(Debug)]
pub(super) struct RawResult {
    pub(super) id: u64,
    pub(super) raised: bool,
    pub(super) elapsed_us: u64,
    pub(super) body: Bytes,
}

/// The results in a message's sections.
pub(super) fn results(sections: Vec<Bytes>) -> Result<impl Iterator<Item = RawResult>, WireError> {
    let wrong = || WireError::Rubbish("its message of results does not hold what it says".to_owned());
    let [mut ids, mut status, mut elapsed, mut lengths, mut bodies]: [Bytes; 5] =
        sections.try_into().map_err(|_| wrong())?;
    let count = status.len();
    if ids.len() != count * 8 || elapsed.len() != count * 4 || lengths.len() != count * 4 {
        return Err(wrong());
    }
    let all: u64 = lengths.chunks_exact(4).map(|mut length| u64::from(length.get_u32_le())).sum();
    if all != bodies.len() as u64 {
        return Err(wrong());
    }
    Ok((0..count).map(move |_| RawResult {
        id: ids.get_u64_le(),
        raised: status.get_u8() != 0,
        elapsed_us: elapsed.get_u32_le().into(),
        body: bodies.split_to(lengths.get_u32_le() as usize),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn heard(bytes: &[u8]) -> Result<(Answer, Vec<Bytes>), WireError> {
        read(&mut &bytes[..], 1 << 20).await
    }

    fn said(header: &[u8], sections: &[u8]) -> Vec<u8> {
        [&(header.len() as u32).to_be_bytes(), header, sections].concat()
    }

    #[tokio::test]
    async fn what_is_written_has_its_lengths_in_front() {
        let mut pipe = Vec::new();
        let sections = [Section::Bytes("argument".into()), Section::Bytes(vec![7; JOINED_BYTES].into())];
        let order = Order::Task { function: 3, argument: ArgumentKind::Bytes };
        write(&mut pipe, &order, &sections).await.unwrap();
        #[derive(Deserialize)]
        struct Task {
            #[serde(rename = "type")]
            type_: String,
            function: u32,
            argument: String,
            sections: Vec<u64>,
        }
        let length = u32::from_be_bytes(pipe[..4].try_into().unwrap()) as usize;
        let task: Task = frame::decode(&pipe[4..4 + length]).unwrap();
        assert_eq!((task.type_.as_str(), task.function, task.argument.as_str()), ("task", 3, "bytes"));
        assert_eq!(task.sections, [8, JOINED_BYTES as u64]);
        assert_eq!(pipe.len(), 4 + length + 8 + JOINED_BYTES);
    }

    #[tokio::test]
    async fn rubbish_is_told_from_an_end() {
        assert!(matches!(heard(b"").await, Err(WireError::Closed)));
        assert!(matches!(heard(b"\0\0").await, Err(WireError::Closed)));
        assert!(matches!(heard(b"\0\0\0\x09\xa1").await, Err(WireError::Closed)));
        let Err(WireError::Rubbish(text)) = heard(b"Hello, world\n\xff").await else { panic!("understood") };
        assert_eq!(text, "instead of a message it wrote \"Hello, world\\n\\xff\"");
        let cbor = |value: &BTreeMap<&str, &str>| frame::encode(value).unwrap();
        let dance = said(&cbor(&BTreeMap::from([("type", "dance")])), b"");
        assert!(matches!(heard(&dance).await, Err(WireError::Rubbish(_))));
        let ready = said(&cbor(&BTreeMap::from([("type", "ready"), ("more", "?")])), b"");
        assert_eq!(heard(&ready).await.unwrap().0.type_, AnswerType::Ready);
        // {"type": "need", "sections": [2^64 - 1, 2^64 - 1]}, and [2^40].
        let huge = b"\xa2dtypedneedhsections\x82\x1b\xff\xff\xff\xff\xff\xff\xff\xff\x1b\xff\xff\xff\xff\xff\xff\xff\xff";
        assert!(matches!(heard(&said(huge, b"")).await, Err(WireError::Rubbish(_))));
        let large = b"\xa2dtypedneedhsections\x81\x1b\x00\x00\x01\x00\x00\x00\x00\x00";
        assert!(
            matches!(heard(&said(large, b"")).await, Err(WireError::TooMuch { bytes, .. }) if bytes == 1 << 40)
        );
    }

    #[test]
    fn results_are_taken_apart_only_if_they_fit_together() {
        let good: [&'static [u8]; 5] = [
            b"\x07\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0",
            b"\0\x01",
            b"\x05\0\0\0\x06\0\0\0",
            b"\x02\0\0\0\x01\0\0\0",
            b"abc",
        ];
        let sections = |parts: [&'static [u8]; 5]| parts.map(Bytes::from_static).to_vec();
        let all: Vec<_> = results(sections(good)).unwrap().collect();
        assert_eq!(
            (all[0].id, all[0].raised, all[0].elapsed_us, &all[0].body[..]),
            (7, false, 5, &b"ab"[..])
        );
        assert_eq!((all[1].id, all[1].raised, all[1].elapsed_us, &all[1].body[..]), (8, true, 6, &b"c"[..]));
        for broken in 0..5 {
            let mut bad = good;
            bad[broken] = b"\xff";
            assert!(results(sections(bad)).is_err(), "{broken}");
        }
        assert!(results(Vec::new()).is_err());
        assert_eq!(results(sections([b""; 5])).unwrap().count(), 0);
    }
}
