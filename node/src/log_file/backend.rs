//! The log's file as redb writes it, with room set aside before it is needed.
//!
//! ```text
//!   0 ────────── length ───────────── allocated      blocks that nobody else gets, however full the disk is
//! ```
//!
//! redb makes the file longer before it writes there, and twice as long each time. Where the file system allocates
//! blocks beyond a file's end, all of the next length is allocated by then. Where it does not, or writes elsewhere what is
//! written again, the [`Reserve`] helps for a while.

use std::fs::File;
use std::io;
use std::ops::Bound;

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};

use crate::disk::{self, Reserve};

/// What is allocated at the least: the log with all that it may hold, and its next snapshot.
const LOG_BYTES: u64 = 64 << 20;

type Edge = Bound<u64>;

/// The file.
#[derive(Debug)]
pub(super) struct LogBackend {
    inner: FileBackend,
    /// The same open file.
    file: File,
    reserve: Reserve,
}

impl LogBackend {
    pub(super) fn new(file: File, reserve: Reserve) -> Result<Self, DatabaseError> {
        let backend = Self { file: file.try_clone()?, inner: FileBackend::new(file)?, reserve };
        backend.allocate(backend.inner.len()?);
        Ok(backend)
    }

    /// Sets aside what the log may take next, or as much of it as there is.
    fn allocate(&self, length: u64) {
        let mut wanted = length.saturating_mul(2).max(LOG_BYTES);
        while let Err(error) = disk::allocate(&self.file, wanted) {
            if !disk::is_full(&error) {
                tracing::debug!(%error, "the file system sets nothing aside for the log");
                return;
            }
            if wanted <= length {
                tracing::warn!(%error, "the disk has no room for what the log may take next");
                return;
            }
            wanted = (wanted / 2).max(length);
        }
    }
}

impl StorageBackend for LogBackend {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.reserve.lend(|| self.inner.set_len(len))?;
        self.allocate(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.reserve.lend(|| self.inner.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.reserve.lend(|| self.inner.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Edge, end: Edge) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Edge, end: Edge) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Edge, end: Edge) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Edge, end: Edge) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Edge, end: Edge) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Edge, end: Edge) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_next_length_is_allocated_before_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let backend = LogBackend::new(File::create_new(&path).unwrap(), Reserve::of(dir.path())).unwrap();
        let allocated = || std::fs::metadata(&path).unwrap().blocks() * 512;
        assert_eq!(backend.len().unwrap(), 0);
        assert!(allocated() >= LOG_BYTES, "{}", allocated());
        for length in [1 << 20, LOG_BYTES, LOG_BYTES / 2, LOG_BYTES * 2] {
            backend.set_len(length).unwrap();
            assert_eq!(backend.len().unwrap(), length);
            assert!(allocated() >= LOG_BYTES.max(2 * length), "{length}: {}", allocated());
        }
    }
}
