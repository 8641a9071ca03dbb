//! A partition's bytes one piece after the other, for who sends all of them somewhere.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use bytes::Bytes;
use floe_protocol::{Failure, TaskId};
use xxhash_rust::xxh3::Xxh3;

use super::files::{Extent, PartitionFile};
use super::{Filed, Store};

/// How much is read at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Pieces of the segments in their order; to read one may block. After an error nothing more comes.
pub struct Pieces {
    store: Store,
    task: TaskId,
    left: VecDeque<Segment>,
    file: Option<(File, Arc<PartitionFile>)>,
}

/// What is left of a segment.
enum Segment {
    Bytes(Bytes),
    /// The extent from here on, and what its former bytes sum up to.
    Extent {
        extent: Extent,
        hash: Box<Xxh3>,
    },
}

impl Pieces {
    /// Of segments in memory.
    pub(super) fn of_bytes(store: Store, task: TaskId, segments: &[Bytes]) -> Self {
        let left = segments.iter().cloned().map(Segment::Bytes).collect();
        Self { store, task, left, file: None }
    }

    /// Of segments in a file.
    pub(super) fn of_file(store: Store, task: TaskId, Filed { file, extents }: &Filed) -> io::Result<Self> {
        let begin = |extent: &Extent| Segment::Extent { extent: extent.clone(), hash: Box::default() };
        let left = extents.iter().map(begin).collect();
        let file = Some((file.open()?, Arc::clone(file)));
        Ok(Self { store, task, left, file })
    }

    fn piece(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.left.front_mut() {
                None => return Ok(None),
                Some(Segment::Bytes(bytes)) if bytes.is_empty() => drop(self.left.pop_front()),
                Some(Segment::Bytes(bytes)) => {
                    return Ok(Some(bytes.split_to(PIECE_BYTES.min(bytes.len()))));
                }
                Some(Segment::Extent { extent, hash }) if extent.range.is_empty() => {
                    if hash.digest() != extent.checksum {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "its checksum does not fit"));
                    }
                    self.left.pop_front();
                }
                Some(Segment::Extent { extent, hash }) => {
                    let Some((file, _)) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
                    let length = (extent.range.end - extent.range.start).min(PIECE_BYTES as u64);
                    let mut piece = vec![0; length as usize];
                    file.seek(SeekFrom::Start(extent.range.start))?;
                    file.read_exact(&mut piece)?;
                    hash.update(&piece);
                    extent.range.start += length;
                    return Ok(Some(piece.into()));
                }
            }
        }
    }
}

impl Iterator for Pieces {
    type Item = Result<Bytes, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.piece() {
            Ok(piece) => piece.map(Ok),
            Err(error) => {
                self.left.clear();
                let (_, file) = self.file.take()?;
                Some(Err(self.store.damaged(self.task, &file, &error)))
            }
        }
    }
}
