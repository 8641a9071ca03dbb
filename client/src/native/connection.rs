//! A host's end of its pipes, used by its loop and by the functions that ask for blobs while they run.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use floe_protocol::BlobId;
use floe_protocol::function::Blob;

use super::wire::{Answer, Message, Order, WireError, parse_blob, read_message, write_message};

/// How many messages may come before the answer to a question is there. A node has a few under way.
const MAX_WAITING: usize = 4096;

/// Both pipes.
pub(super) struct Connection {
    input: Mutex<Input>,
    output: Mutex<Box<dyn Write + Send>>,
    /// Where the blobs lie that were asked for, this process's own copies; and how they were when they came.
    blobs: Mutex<BTreeMap<BlobId, (PathBuf, Option<Stamp>)>>,
}

struct Input {
    pipe: Box<dyn Read + Send>,
    /// Messages that came while an answer was awaited.
    waiting: VecDeque<Message>,
}

impl Connection {
    pub(super) fn new(input: impl Read + Send + 'static, output: impl Write + Send + 'static) -> Self {
        let input = Input { pipe: Box::new(input), waiting: VecDeque::new() };
        Self { input: Mutex::new(input), output: Mutex::new(Box::new(output)), blobs: Mutex::default() }
    }

    /// The next order; nothing once the node has closed the pipe.
    pub(super) fn next(&self) -> Result<Option<Message>, WireError> {
        let mut input = lock(&self.input);
        match input.waiting.pop_front() {
            Some(message) => Ok(Some(message)),
            None => read_message(&mut input.pipe),
        }
    }

    /// Says something to the node.
    pub(super) fn say(&self, answer: &Answer<'_>, sections: &[&[u8]]) -> Result<(), WireError> {
        write_message(&mut *lock(&self.output), answer, sections)
    }

    /// The file that holds a blob, or the node's reason why there is none.
    pub(super) fn blob(&self, blob: Blob) -> Result<Result<PathBuf, String>, WireError> {
        // Another function may have changed it since.
        if let Some((path, stamp)) = lock(&self.blobs).get(&blob.id)
            && stamp.is_some()
            && stamp_of(path) == *stamp
        {
            return Ok(Ok(path.clone()));
        }
        // Held until the answer is there, so that it comes to who asked.
        let mut input = lock(&self.input);
        let id = blob.id.to_string();
        self.say(&Answer::Need { blob: &id, bytes: blob.bytes }, &[])?;
        loop {
            let message = read_message(&mut input.pipe)?
                .ok_or_else(|| WireError::from(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)))?;
            match message.order {
                Order::Blob { blob: answered, path, missing } if parse_blob(&answered)? == blob.id => {
                    let Some(path) = path else {
                        return Ok(Err(missing.unwrap_or_else(|| "the node does not say why".to_owned())));
                    };
                    let path = PathBuf::from(path);
                    lock(&self.blobs).insert(blob.id, (path.clone(), stamp_of(&path)));
                    return Ok(Ok(path));
                }
                _ if input.waiting.len() < MAX_WAITING => input.waiting.push_back(message),
                _ => return Err(WireError::Malformed("too many messages before a blob".to_owned())),
            }
        }
    }
}

/// What is different about a file that was written to: its length and when that was.
type Stamp = (u64, SystemTime);

fn stamp_of(path: &Path) -> Option<Stamp> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.len(), found.modified().ok()?))
}

/// What a panic leaves behind is whole: each use is one step.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
