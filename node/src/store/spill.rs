//! Spill files: partitions that do not fit into memory, one file each.
//!
//! A file holds its segments back to back, each an Arrow IPC file of its own, on boundaries that suit mapping.
//! Where they lie and their checksums stay in memory: a spilled partition does not outlive its node's process.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use floe_protocol::{Failure, TaskId};
use memmap2::Mmap;
use xxhash_rust::xxh3::Xxh3;

/// What spill files' names end with.
const EXTENSION: &str = "arrow";

/// Segments start at multiples of this, so that mapped columns are aligned for any of Arrow's types.
const ALIGNMENT_BYTES: u64 = 64;

/// How much is gathered before it is written.
const WRITE_BUFFER_BYTES: usize = 256 << 10;

/// Where spill files lie, and how much they hold.
#[derive(Debug)]
pub(super) struct Spill {
    dir: PathBuf,
    /// Tells files of one partition apart: an evicted one may still be there when the task runs again.
    next_number: AtomicU64,
    bytes: Arc<AtomicU64>,
}

/// A complete spill file, removed when it is dropped.
#[derive(Debug)]
pub(super) struct SpillFile {
    path: PathBuf,
    bytes: u64,
    total: Arc<AtomicU64>,
}

/// Where a segment lies in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Its bytes in the file.
    pub(super) range: Range<u64>,
    /// Their XXH3-64.
    pub(super) checksum: u64,
}

/// A spill file being written; it is removed unless it is finished.
pub(super) struct SpillWriter {
    file: BufWriter<File>,
    written: SpillFile,
}

impl Spill {
    /// Takes a directory for spill files and removes those that a former process left.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                fs::remove_file(&path)?;
            }
        }
        Ok(Self { dir: dir.to_owned(), next_number: AtomicU64::new(0), bytes: Arc::default() })
    }

    /// Bytes in all spill files.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Begins a partition's file.
    pub(super) fn create(&self, task: TaskId) -> Result<SpillWriter, Failure> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let name = format!(
            "job-{}-stage-{}-partition-{}.{number}.{EXTENSION}",
            task.job, task.stage, task.partition
        );
        let path = self.dir.join(name);
        let file = File::create_new(&path).map_err(|error| write_failure(&path, &error))?;
        let written = SpillFile { path, bytes: 0, total: Arc::clone(&self.bytes) };
        Ok(SpillWriter { file: BufWriter::with_capacity(WRITE_BUFFER_BYTES, file), written })
    }
}

impl SpillWriter {
    /// Appends a segment that `write` writes.
    pub(super) fn segment<E>(
        &mut self,
        write: impl FnOnce(&mut SegmentWriter<'_>) -> Result<(), E>,
    ) -> Result<Extent, SegmentError<E>> {
        let padding = self.written.bytes.next_multiple_of(ALIGNMENT_BYTES) - self.written.bytes;
        let mut segment = SegmentWriter { file: &mut self.file, hash: Xxh3::new(), bytes: 0, failed: None };
        let outcome = segment.pad(padding).map_or(Ok(()), |()| write(&mut segment));
        let SegmentWriter { hash, bytes, failed, .. } = segment;
        if let Some(error) = failed {
            return Err(SegmentError::Disk(write_failure(&self.written.path, &error)));
        }
        outcome.map_err(SegmentError::Writer)?;
        let start = self.written.bytes + padding;
        self.written.grow(padding + bytes);
        Ok(Extent { range: start..start + bytes, checksum: hash.digest() })
    }

    /// Completes the file. It is not synced: what a crash loses is computed again.
    pub(super) fn finish(self) -> Result<SpillFile, Failure> {
        let Self { mut file, written } = self;
        file.flush().map_err(|error| write_failure(&written.path, &error))?;
        Ok(written)
    }
}

/// Why a segment was not appended.
#[derive(Debug)]
pub(super) enum SegmentError<E> {
    /// The disk did not take it.
    Disk(Failure),
    /// Whoever wrote it failed.
    Writer(E),
}

/// Counts and hashes what goes into a segment, and remembers how the disk failed, which whoever writes may
/// wrap in an error of its own.
pub(super) struct SegmentWriter<'a> {
    file: &'a mut BufWriter<File>,
    hash: Xxh3,
    bytes: u64,
    failed: Option<io::Error>,
}

impl SegmentWriter<'_> {
    fn pad(&mut self, bytes: u64) -> Option<()> {
        let zeros = [0; ALIGNMENT_BYTES as usize];
        self.file.write_all(&zeros[..bytes as usize]).map_err(|error| self.failed = Some(error)).ok()
    }
}

impl Write for SegmentWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.file.write(bytes) {
            Ok(written) => {
                self.hash.update(&bytes[..written]);
                self.bytes += written as u64;
                Ok(written)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SpillFile {
    /// Where it is, for the log.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Maps the file into memory. The bytes stay readable after the file is removed.
    pub(super) fn map(&self) -> io::Result<Bytes> {
        let file = File::open(&self.path)?;
        // An empty file cannot be mapped, and one that was cut would end the process when it is read.
        if file.metadata()?.len() != self.bytes {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "its length has changed"));
        }
        // SAFETY: the file is this process's own, in a directory that it holds locked, and nothing writes to
        // it once it is finished. It is unlinked at the end, never truncated.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Bytes::from_owner(map))
    }

    fn grow(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a spill file");
        }
    }
}

/// What a partition that cannot be written means for its task.
fn write_failure(path: &Path, error: &io::Error) -> Failure {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let message = format!("cannot write {}: {error}", path.display());
    match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => Failure::Exhausted { what: "disk".to_owned(), message },
        _ => Failure::Internal { message },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use floe_protocol::{JobId, StageId};
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    const TASK: TaskId = TaskId { job: JobId(0xabc), stage: StageId(2), partition: 7 };

    fn write_segments(writer: &mut SpillWriter, segments: &[&[u8]]) -> Vec<Extent> {
        segments.iter().map(|bytes| writer.segment(|sink| sink.write_all(bytes)).unwrap()).collect()
    }

    #[test]
    fn segments_come_back_aligned_and_a_dropped_file_is_gone_while_its_readers_read_on() {
        let dir = tempfile::tempdir().unwrap();
        let spill = Spill::open(dir.path()).unwrap();
        let mut writer = spill.create(TASK).unwrap();
        let segments: [&[u8]; 3] = [b"first", b"", &[7; 1000]];
        let extents = write_segments(&mut writer, &segments);
        let file = writer.finish().unwrap();
        assert_eq!(spill.bytes(), fs::metadata(file.path()).unwrap().len());
        let name = file.path().file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.starts_with("job-0000000000000abc-stage-2-partition-7."), "{name}");

        let map = file.map().unwrap();
        drop(file);
        assert_eq!((spill.bytes(), fs::read_dir(dir.path()).unwrap().count()), (0, 0));
        for (extent, bytes) in extents.iter().zip(segments) {
            assert_eq!(extent.range.start % ALIGNMENT_BYTES, 0);
            assert_eq!(&map[extent.range.start as usize..extent.range.end as usize], bytes);
            assert_eq!(extent.checksum, xxh3_64(bytes));
        }
    }

    #[test]
    fn a_file_that_is_not_finished_and_leftovers_are_removed_but_not_what_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let spill = Spill::open(dir.path()).unwrap();
        let mut writer = spill.create(TASK).unwrap();
        write_segments(&mut writer, &[b"half"]);
        drop(writer);
        assert_eq!((spill.bytes(), fs::read_dir(dir.path()).unwrap().count()), (0, 0));

        fs::write(dir.path().join("job-1-stage-0-partition-0.0.arrow"), "left over").unwrap();
        fs::write(dir.path().join("notes.txt"), "the user's").unwrap();
        Spill::open(dir.path()).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.txt"]);
    }

    #[test]
    fn a_cut_file_is_refused_rather_than_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let spill = Spill::open(dir.path()).unwrap();
        let mut writer = spill.create(TASK).unwrap();
        write_segments(&mut writer, &[b"whole"]);
        let file = writer.finish().unwrap();
        fs::write(file.path(), "who").unwrap();
        assert_eq!(file.map().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_full_disk_is_named_with_the_path() {
        let error = io::Error::from(io::ErrorKind::StorageFull);
        let failure = write_failure(Path::new("partitions/x.arrow"), &error);
        assert!(matches!(&failure, Failure::Exhausted { what, .. } if what == "disk"), "{failure:?}");
        assert!(failure.to_string().contains("cannot write partitions/x.arrow"), "{failure}");
    }
}
