//! Partition files, one for each partition that is on disk.
//!
//! ```text
//!   segment, padding, segment, ..., footer (CBOR), u64 its length, u64 its XXH3-64, "floepart"
//! ```
//!
//! A segment is an Arrow IPC file of its own, on a boundary that suits mapping. The footer says whose segments they are,
//! where they lie and their checksums, so that a partition outlives its node's process, and a file that was not written
//! to its end is told from one that was.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use floe_protocol::{Failure, TaskId, frame};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::disk::{Disk, Promise};
use crate::private;

/// What partition files' names end with.
const EXTENSION: &str = "arrow";

/// What they themselves end with.
const MAGIC: &[u8; 8] = b"floepart";

/// What follows the footer.
const TRAILER_BYTES: usize = 24;

/// The longest footer that is read back: of a partition with as many buckets as there may be it is far shorter.
const MAX_FOOTER_BYTES: u64 = 4 << 20;

/// Segments start at multiples of this, so that mapped columns are aligned for any of Arrow's types.
const ALIGNMENT_BYTES: u64 = 64;

/// How much is gathered before it is written.
const WRITE_BUFFER_BYTES: usize = 256 << 10;

/// Where partition files lie, and how much they hold.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    disk: Disk,
    /// Tells files of one partition apart: an evicted one may still be there when the task runs again.
    next_number: AtomicU64,
    shared: Arc<Shared>,
}

/// What a directory has in common with its files.
#[derive(Debug, Default)]
struct Shared {
    bytes: AtomicU64,
    /// Files stay from now on: the next process finds them.
    closed: AtomicBool,
}

/// A complete partition file, removed when it is dropped, unless its directory was closed before.
#[derive(Debug)]
pub(super) struct PartitionFile {
    path: PathBuf,
    bytes: u64,
    synced: AtomicBool,
    shared: Arc<Shared>,
}

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Footer {
    pub(super) task: TaskId,
    /// See [`floe_protocol::OutputMeta::mark`].
    pub(super) mark: u64,
    /// Where each segment lies, and how many rows it has.
    pub(super) segments: Vec<(Extent, u64)>,
}

/// Where a segment lies in its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Extent {
    /// Its bytes in the file.
    pub(super) range: Range<u64>,
    /// Their XXH3-64.
    pub(super) checksum: u64,
}

/// A partition file being written; it is removed unless it is finished.
pub(super) struct FileWriter {
    file: BufWriter<Asking>,
    written: PartitionFile,
}

/// A file whose disk is asked before each write.
struct Asking {
    file: File,
    disk: Disk,
    /// What its bytes were announced with, if they were.
    promise: Option<Arc<Promise>>,
}

impl Files {
    /// Takes a directory for partition files, with those that a former process left, the oldest first. What is no
    /// whole file is removed.
    pub(super) fn open(dir: &Path, disk: Disk) -> io::Result<(Self, Vec<(PartitionFile, Footer)>)> {
        use io::ErrorKind::{InvalidData, UnexpectedEof};
        private::create_dir(dir)?;
        let shared: Arc<Shared> = Arc::default();
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let Some(number) = number_of(&path) else { continue };
            match read_footer(&path) {
                Ok((bytes, footer)) => {
                    shared.bytes.fetch_add(bytes, Ordering::Relaxed);
                    // A former process may have been killed before it got to that.
                    let synced = AtomicBool::new(false);
                    found.push((
                        number,
                        PartitionFile { path, bytes, synced, shared: Arc::clone(&shared) },
                        footer,
                    ));
                }
                Err(error) if !matches!(error.kind(), InvalidData | UnexpectedEof) => {
                    tracing::warn!(path = %path.display(), %error, "a partition file cannot be read and is passed over");
                }
                Err(error) => {
                    tracing::info!(path = %path.display(), %error, "a partition file is not whole and is removed");
                    fs::remove_file(&path)?;
                }
            }
        }
        found.sort_by_key(|(number, ..)| *number);
        let next_number = AtomicU64::new(found.last().map_or(0, |(number, ..)| number.saturating_add(1)));
        let found = found.into_iter().map(|(_, file, footer)| (file, footer)).collect();
        Ok((Self { dir: dir.to_owned(), disk, next_number, shared }, found))
    }

    /// Bytes in all partition files.
    pub(super) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Leaves the files that there are to the next process.
    pub(super) fn close(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
    }

    /// What they lie on.
    pub(super) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Makes sure that the names of files that were synced survive a power cut too.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    /// Begins a partition's file, whose bytes may have been announced.
    pub(super) fn create(&self, task: TaskId, promise: Option<Arc<Promise>>) -> Result<FileWriter, Failure> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let name = format!(
            "job-{}-stage-{}-partition-{}.{number}.{EXTENSION}",
            task.job, task.stage, task.partition
        );
        let path = self.dir.join(name);
        let file = private::create_new(&path).map_err(|error| write_failure(&path, &error))?;
        let file = Asking { file, disk: self.disk.clone(), promise };
        let synced = AtomicBool::new(false);
        let written = PartitionFile { path, bytes: 0, synced, shared: Arc::clone(&self.shared) };
        Ok(FileWriter { file: BufWriter::with_capacity(WRITE_BUFFER_BYTES, file), written })
    }
}

impl FileWriter {
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

    /// Completes the file. It is not synced yet.
    pub(super) fn finish(self, footer: &Footer) -> Result<PartitionFile, Failure> {
        let Self { mut file, mut written } = self;
        let mut end = frame::encode(footer).map_err(Failure::internal)?;
        let (length, checksum) = (end.len() as u64, xxh3_64(&end));
        end.extend(length.to_le_bytes());
        end.extend(checksum.to_le_bytes());
        end.extend(MAGIC);
        let write = file.write_all(&end).and_then(|()| file.flush());
        write.map_err(|error| write_failure(&written.path, &error))?;
        written.grow(end.len() as u64);
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
    file: &'a mut BufWriter<Asking>,
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

impl Write for Asking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.promise {
            Some(promise) => promise.take(bytes.len() as u64)?,
            None => self.disk.take(bytes.len() as u64)?,
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl PartitionFile {
    /// Makes sure that its bytes survive a power cut. Its name does when the directory is synced after that.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_data()
    }

    /// Both were done.
    pub(super) fn is_safe(&self) {
        self.synced.store(true, Ordering::Relaxed);
    }

    /// Whether that was done.
    pub(super) fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Relaxed)
    }

    /// Where it is, for the log.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file, if it is as long as it was written.
    pub(super) fn open(&self) -> io::Result<File> {
        let file = File::open(&self.path)?;
        if file.metadata()?.len() != self.bytes {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "its length has changed"));
        }
        Ok(file)
    }

    /// Maps the file into memory. The bytes stay readable after the file is removed.
    pub(super) fn map(&self) -> io::Result<Bytes> {
        // An empty file cannot be mapped, and one that was cut would end the process when it is read.
        let file = self.open()?;
        // SAFETY: the file is this process's own, in a directory that it holds locked, and nothing writes to
        // it once it is finished. It is unlinked at the end, never truncated.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Bytes::from_owner(map))
    }

    fn grow(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for PartitionFile {
    fn drop(&mut self) {
        self.shared.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.shared.closed.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a partition file");
        }
    }
}

/// The number in a partition file's name; none if it is not one.
fn number_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    name.rsplit_once('.')?.1.parse().ok()
}

/// A file's length and what it says of itself, if it is whole.
fn read_footer(path: &Path) -> io::Result<(u64, Footer)> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let trailer_at = bytes.checked_sub(TRAILER_BYTES as u64).ok_or_else(|| damaged("it is too short"))?;
    let mut trailer = [0; TRAILER_BYTES];
    file.seek(SeekFrom::Start(trailer_at))?;
    file.read_exact(&mut trailer)?;
    let word = |at: usize| trailer[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let (length, checksum) = (word(0), word(8));
    let at =
        trailer_at.checked_sub(length).filter(|_| length <= MAX_FOOTER_BYTES && trailer.ends_with(MAGIC));
    let at = at.ok_or_else(|| damaged("it does not end as a partition file does"))?;
    let mut footer = vec![0; length as usize];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut footer)?;
    if xxh3_64(&footer) != checksum {
        return Err(damaged("the checksum of its footer does not fit"));
    }
    let footer: Footer = frame::decode(&footer).map_err(|error| damaged(&error.to_string()))?;
    let within =
        |(extent, _): &(Extent, u64)| extent.range.start <= extent.range.end && extent.range.end <= at;
    if !footer.segments.iter().all(within) {
        return Err(damaged("its segments are not within it"));
    }
    Ok((bytes, footer))
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

    use super::*;

    const TASK: TaskId = TaskId { job: JobId(0xabc), stage: StageId(2), partition: 7 };

    fn open(dir: &Path) -> io::Result<(Files, Vec<(PartitionFile, Footer)>)> {
        Files::open(dir, Disk::of(dir)?)
    }

    fn write_segments(writer: &mut FileWriter, segments: &[&[u8]]) -> Vec<Extent> {
        segments.iter().map(|bytes| writer.segment(|sink| sink.write_all(bytes)).unwrap()).collect()
    }

    fn finish(writer: FileWriter, extents: &[Extent]) -> PartitionFile {
        let segments = extents.iter().map(|extent| (extent.clone(), 1)).collect();
        writer.finish(&Footer { task: TASK, mark: 9, segments }).unwrap()
    }

    #[test]
    fn segments_come_back_aligned_and_a_dropped_file_is_gone_while_its_readers_read_on() {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path()).unwrap().0;
        let mut writer = files.create(TASK, None).unwrap();
        let segments: [&[u8]; 3] = [b"first", b"", &[7; 1000]];
        let extents = write_segments(&mut writer, &segments);
        let file = finish(writer, &extents);
        assert_eq!(files.bytes(), fs::metadata(file.path()).unwrap().len());
        let name = file.path().file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.starts_with("job-0000000000000abc-stage-2-partition-7."), "{name}");

        let map = file.map().unwrap();
        drop(file);
        assert_eq!((files.bytes(), fs::read_dir(dir.path()).unwrap().count()), (0, 0));
        for (extent, bytes) in extents.iter().zip(segments) {
            assert_eq!(extent.range.start % ALIGNMENT_BYTES, 0);
            assert_eq!(&map[extent.range.start as usize..extent.range.end as usize], bytes);
            assert_eq!(extent.checksum, xxh3_64(bytes));
        }
    }

    #[test]
    fn a_file_that_is_not_finished_and_leftovers_are_removed_but_not_what_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path()).unwrap().0;
        let mut writer = files.create(TASK, None).unwrap();
        write_segments(&mut writer, &[b"half"]);
        drop(writer);
        assert_eq!((files.bytes(), fs::read_dir(dir.path()).unwrap().count()), (0, 0));

        fs::write(dir.path().join("job-1-stage-0-partition-0.0.arrow"), "left over").unwrap();
        fs::write(dir.path().join("mine.arrow"), "the user's").unwrap();
        fs::write(dir.path().join("notes.txt"), "the user's").unwrap();
        open(dir.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["mine.arrow", "notes.txt"]);
    }

    #[test]
    fn a_cut_file_is_refused_rather_than_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let files = open(dir.path()).unwrap().0;
        let mut writer = files.create(TASK, None).unwrap();
        let extents = write_segments(&mut writer, &[b"whole"]);
        let file = finish(writer, &extents);
        fs::write(file.path(), "who").unwrap();
        assert_eq!(file.map().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn files_outlive_a_directory_that_is_closed_and_say_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path()).unwrap().0;
        let mut files = Vec::new();
        for segments in [[b"one".as_slice(), b"two"], [b"three", b""]] {
            let mut writer = opened.create(TASK, None).unwrap();
            let extents = write_segments(&mut writer, &segments);
            files.push(finish(writer, &extents));
        }
        assert!(!files[0].is_synced());
        files[0].sync().unwrap();
        opened.sync().unwrap();
        files[0].is_safe();
        assert!(files[0].is_synced() && !files[1].is_synced());
        let bytes = opened.bytes();
        opened.close();
        drop(files);
        let (again, found) = open(dir.path()).unwrap();
        assert_eq!(again.bytes(), bytes);
        let texts: Vec<Vec<Bytes>> = found
            .iter()
            .map(|(file, footer)| {
                assert_eq!((footer.task, footer.mark), (TASK, 9));
                let map = file.map().unwrap();
                let ranges = footer.segments.iter().map(|(extent, _)| extent.range.clone());
                ranges.map(|range| map.slice(range.start as usize..range.end as usize)).collect()
            })
            .collect();
        assert_eq!(texts, [["one", "two"], ["three", ""]]);
        // A new file takes nobody's name.
        drop(again.create(TASK, None).unwrap());
        drop(found);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_was_not_written_to_its_end_is_no_partition() {
        let dir = tempfile::tempdir().unwrap();
        let whole = {
            let files = open(dir.path()).unwrap().0;
            let mut writer = files.create(TASK, None).unwrap();
            let extents = write_segments(&mut writer, &[&[7; 500]]);
            let file = finish(writer, &extents);
            fs::read(file.path()).unwrap()
        };
        let path = dir.path().join("job-1-stage-0-partition-0.0.arrow");
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(open(dir.path()).unwrap().1.is_empty(), "{length} bytes");
            assert!(!path.exists());
        }
        // Nor is one whose footer was changed. What is before it is looked at when it is read.
        for at in 500..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(open(dir.path()).unwrap().1.is_empty(), "byte {at}");
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(open(dir.path()).unwrap().1.len(), 1);
    }

    #[test]
    fn a_disk_that_has_filled_meanwhile_is_asked_before_it_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::told(100 << 20);
        let files = Files::open(dir.path(), disk.clone()).unwrap().0;
        let mut writer = files.create(TASK, None).unwrap();
        let block = vec![7; 2 * WRITE_BUFFER_BYTES];
        write_segments(&mut writer, &[&block]);
        disk.tell(0);
        let error = writer.segment(|sink| sink.write_all(&block)).unwrap_err();
        assert!(
            matches!(&error, SegmentError::Disk(Failure::Exhausted { what, .. }) if what == "disk"),
            "{error:?}"
        );
        drop(writer);
        assert_eq!((files.bytes(), fs::read_dir(dir.path()).unwrap().count()), (0, 0));
        // Room that was promised is there all the same.
        disk.tell(100 << 20);
        let promise = Arc::new(disk.promise(90 << 20).unwrap());
        let mut writer = files.create(TASK, Some(Arc::clone(&promise))).unwrap();
        write_segments(&mut writer, &[&vec![7; 20 << 20]]);
        assert!(files.create(TASK, None).unwrap().segment(|sink| sink.write_all(&vec![7; 20 << 20])).is_ok());
        disk.tell(80 << 20);
        let mut other = files.create(TASK, None).unwrap();
        assert!(other.segment(|sink| sink.write_all(&vec![7; 20 << 20])).is_err());
    }

    #[test]
    fn a_full_disk_is_named_with_the_path() {
        let error = io::Error::from(io::ErrorKind::StorageFull);
        let failure = write_failure(Path::new("partitions/x.arrow"), &error);
        assert!(matches!(&failure, Failure::Exhausted { what, .. } if what == "disk"), "{failure:?}");
        assert!(failure.to_string().contains("cannot write partitions/x.arrow"), "{failure}");
    }
}
