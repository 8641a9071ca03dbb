//! A node's partition store: what its tasks have made, and copies from peers, until the job is freed.
//!
//! Partitions are kept in memory for as long as the [`Budget`] allows, and in files beyond it. A
//! partition has one segment a bucket, each an Arrow IPC file with its checksum. Readers get the bytes as they
//! lie, compressed or not, which Arrow IPC tells them.
//!
//! ```text
//!   put ──> the budget has room ──> in memory, plain ──a moment later──> also in a file ──> synced
//!    │                                    └──a task waits for memory──┐      ▲
//!    └────> it has none, or the bytes are a driver's own ─────────────┴─> in a file, LZ4 or plain
//! ```
//!
//! What is in a file is here again after a restart, and after a power cut what was synced. A checksum that does not fit
//! when it is read means that the partition is lost.

mod arriving;
mod files;
pub mod ipc;
mod memory;
mod pieces;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use std::{io, mem, thread};

use bytes::Bytes;
use floe_protocol::graph::BucketMeta;
use floe_protocol::{Failure, JobId, NodeId, OutputMeta, StageId, Summary, TaskId};
use polars::prelude::{DataFrame, IpcCompression, PolarsError};
use xxhash_rust::xxh3::xxh3_64;

pub use self::arriving::Arrived;
use self::files::{Extent, FileWriter, Files, Footer, PartitionFile, SegmentError};
use self::memory::Buffer;
pub use self::memory::{Budget, Reservation};
pub use self::pieces::Pieces;
use crate::disk::{Disk, Promise};

/// A node's partitions. Cheap to clone; clones are one store.
///
/// Its methods read and write files: call them where blocking is allowed.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

/// A segment as a reader gets it.
#[derive(Clone, Debug)]
pub struct SegmentBytes {
    /// One Arrow IPC file.
    pub bytes: Bytes,
    /// XXH3-64 of the bytes.
    pub checksum: u64,
    /// How many rows it holds.
    pub rows: u64,
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of partitions in memory.
    pub memory_bytes: u64,
    /// Bytes of partition files.
    pub spilled_bytes: u64,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory for partition files is of no use.
    #[error("cannot use {} for partitions: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A thread that makes room, or puts things on disk, cannot be started.
    #[error("cannot start a thread of the store: {0}")]
    Thread(io::Error),
}

/// Partitions that were given up: their files go with it.
#[derive(Debug)]
pub struct Freed(Vec<Partition>);

impl Freed {
    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Debug)]
struct Inner {
    node: NodeId,
    budget: Budget,
    files: Files,
    index: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    partitions: BTreeMap<TaskId, Partition>,
    /// Counts uses, to tell which partition's last one is longest ago.
    clock: u64,
}

#[derive(Clone, Debug)]
struct Partition {
    /// See [`OutputMeta::mark`].
    mark: u64,
    segments: Vec<Segment>,
    place: Place,
    /// The clock at its last use.
    used: u64,
    since: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    rows: u64,
    bytes: u64,
    checksum: u64,
}

/// Where a partition's segments are, in order: in memory, in a file, or in both.
#[derive(Clone, Debug, Default)]
struct Place {
    memory: Option<Arc<Vec<Bytes>>>,
    file: Option<Filed>,
}

/// A partition's file.
#[derive(Clone, Debug)]
struct Filed {
    file: Arc<PartitionFile>,
    extents: Arc<Vec<Extent>>,
}

/// Where bytes that are put belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// They can be made again: in memory first, if there is room.
    InMemory,
    /// They came from a driver: in a file at once.
    OnDisk,
}

/// How long a partition is in memory before it goes to disk too: most are needed no more by then.
const WRITTEN_AFTER: Duration = Duration::from_secs(1);

/// How often it is looked for what is to be written and synced.
const WRITE_INTERVAL: Duration = Duration::from_millis(500);

impl Store {
    /// Opens node `node`'s store, with the partitions that a former process left in `dir`. What `budget` has no room
    /// for goes there, as far as `disk` has any.
    pub fn open(dir: &Path, node: NodeId, budget: Budget, disk: Disk) -> Result<Self, Error> {
        let opened = Files::open(dir, disk);
        let (files, found) = opened.map_err(|source| Error::Directory { path: dir.to_owned(), source })?;
        let index = Index { partitions: found.into_iter().map(partition_of).collect(), clock: 0 };
        let index = Mutex::new(index);
        let inner = Arc::new(Inner { node, budget: budget.clone(), files, index });
        let thread = |name: &str| thread::Builder::new().name(name.to_owned());
        let (evicted, written) = (Arc::downgrade(&inner), Arc::downgrade(&inner));
        thread("floe-evict")
            .spawn(move || evict_while_tasks_wait(&budget, &evicted))
            .map_err(Error::Thread)?;
        thread("floe-write").spawn(move || write_in_background(&written)).map_err(Error::Thread)?;
        Ok(Self(inner))
    }

    /// Puts on disk what is in memory alone, since this process is about to end.
    pub fn write_all(&self) {
        self.0.write_older_than(Duration::ZERO);
    }

    /// Whose store it is.
    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// The budget that the store shares with running tasks.
    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// What its files lie on.
    pub fn disk(&self) -> &Disk {
        self.0.files.disk()
    }

    /// Removes files that are there only for after a restart: what they hold is in memory.
    pub fn free_spare_files(&self) {
        let spare: Vec<_> = {
            let mut index = self.0.lock();
            let places = index.partitions.values_mut().map(|partition| &mut partition.place);
            places.filter(|place| place.memory.is_some()).filter_map(|place| place.file.take()).collect()
        };
        // Dropping removes files, so it happens without the lock.
        drop(spare);
    }

    /// Stores a task's output, a frame a bucket. Its mark is that of its content unless given. A partition of the
    /// same mark that is there already stays, and the new one is dropped, so that all its readers see one run's rows;
    /// one of another mark is of another plan of its job, and gives way.
    pub fn put(
        &self,
        task: TaskId,
        mark: Option<u64>,
        buckets: Vec<DataFrame>,
        keep: Keep,
    ) -> Result<OutputMeta, Failure> {
        if let Some(meta) = self.meta(task).filter(|meta| Some(meta.mark) == mark) {
            return Ok(meta);
        }
        let mut writer = PartitionWriter::new(&self.0, task, keep);
        for frame in buckets {
            writer.push_frame(&frame)?;
        }
        Ok(self.0.insert(task, writer.finish(mark)?))
    }

    /// Stores files that came from elsewhere, as they are: one Arrow IPC file a bucket of `meta`. With a mark of 0 they
    /// get that of their content.
    pub fn put_segments(
        &self,
        task: TaskId,
        segments: Vec<Bytes>,
        meta: OutputMeta,
        keep: Keep,
    ) -> Result<OutputMeta, Failure> {
        let sizes = segments.iter().map(|segment| segment.len() as u64);
        if !sizes.eq(meta.buckets.iter().map(|bucket| bucket.bytes)) {
            let message = format!("the segments of partition {task} are not of the sizes announced");
            return Err(Failure::Refused { message });
        }
        if let Some(there) = self.meta(task).filter(|there| there.mark == meta.mark) {
            return Ok(there);
        }
        let mut writer = PartitionWriter::new(&self.0, task, keep);
        for (bytes, bucket) in segments.into_iter().zip(&meta.buckets) {
            writer.push_bytes(bytes, bucket.rows)?;
        }
        Ok(self.0.insert(task, writer.finish((meta.mark != 0).then_some(meta.mark))?))
    }

    /// One segment, or all of them in order, without copying. [`Failure::InputLost`] if this node does not hold
    /// the partition, or finds it damaged, in which case it no longer does.
    pub fn get(&self, task: TaskId, bucket: Option<u32>) -> Result<Vec<SegmentBytes>, Failure> {
        let partition = self.use_one(task)?;
        let wanted = match bucket {
            None => 0..partition.segments.len(),
            Some(bucket) if (bucket as usize) < partition.segments.len() => {
                bucket as usize..bucket as usize + 1
            }
            Some(bucket) => {
                let message = format!("partition {task} has no bucket {bucket}");
                return Err(Failure::Refused { message });
            }
        };
        let bytes = match &partition.place {
            Place { memory: Some(segments), .. } => segments[wanted.clone()].to_vec(),
            Place { memory: None, file: Some(Filed { file, extents }) } => {
                match read_back(file, &extents[wanted.clone()]) {
                    Ok(bytes) => bytes,
                    Err(error) => return Err(self.damaged(task, file, &error)),
                }
            }
            Place { memory: None, file: None } => return Err(self.lost(task)),
        };
        let segments = partition.segments[wanted].iter();
        Ok(segments
            .zip(bytes)
            .map(|(segment, bytes)| SegmentBytes { bytes, checksum: segment.checksum, rows: segment.rows })
            .collect())
    }

    /// All of its segments piece by piece, else like [`Store::get`]. What lies in a file is read as it is wanted: mapped, it
    /// would count as this process's memory for as long as a copy of it takes.
    pub fn pieces(&self, task: TaskId) -> Result<Pieces, Failure> {
        match &self.use_one(task)?.place {
            Place { memory: Some(segments), .. } => Ok(Pieces::of_bytes(self.clone(), task, segments)),
            Place { memory: None, file: Some(filed) } => Pieces::of_file(self.clone(), task, filed)
                .map_err(|error| self.damaged(task, &filed.file, &error)),
            Place { memory: None, file: None } => Err(self.lost(task)),
        }
    }

    /// Its segments as they were stored a moment ago: what lies in a file is mapped, and not read to be compared with its
    /// checksum.
    pub fn look(&self, task: TaskId) -> Result<Vec<Bytes>, Failure> {
        match &self.use_one(task)?.place {
            Place { memory: Some(segments), .. } => Ok(segments.to_vec()),
            Place { memory: None, file: Some(Filed { file, extents }) } => {
                let map = file.map().map_err(|error| self.damaged(task, file, &error))?;
                let slice =
                    |extent: &Extent| map.slice(extent.range.start as usize..extent.range.end as usize);
                Ok(extents.iter().map(slice).collect())
            }
            Place { memory: None, file: None } => Err(self.lost(task)),
        }
    }

    fn use_one(&self, task: TaskId) -> Result<Partition, Failure> {
        let mut index = self.0.lock();
        let now = index.tick();
        let partition = index.partitions.get_mut(&task).ok_or_else(|| self.lost(task))?;
        partition.used = now;
        Ok(partition.clone())
    }

    fn lost(&self, task: TaskId) -> Failure {
        Failure::InputLost { partition: task, node: self.0.node }
    }

    /// Its file is damaged: this node holds the partition no longer.
    fn damaged(&self, task: TaskId, file: &Arc<PartitionFile>, error: &io::Error) -> Failure {
        let path = file.path().display();
        tracing::error!(partition = %task, %path, %error, "a partition file is damaged and lost");
        self.0.forget(task, file);
        self.lost(task)
    }

    /// What a partition that is here holds.
    pub fn meta(&self, task: TaskId) -> Option<OutputMeta> {
        self.0.lock().partitions.get(&task).map(Partition::meta)
    }

    /// Drops all partitions of these jobs. Readers that have their bytes keep them.
    ///
    /// What they were comes back: dropping it removes files, which takes its time.
    pub fn free(&self, jobs: &[JobId]) -> Freed {
        let mut index = self.0.lock();
        let mut tasks = Vec::new();
        for job in jobs {
            let of_job = index.partitions.range(first_of(*job)..).map(|(task, _)| *task);
            tasks.extend(of_job.take_while(|task| task.job == *job));
        }
        Freed(tasks.iter().filter_map(|task| index.partitions.remove(task)).collect())
    }

    /// Drops one partition.
    pub fn discard(&self, task: TaskId) {
        let discarded = self.0.lock().partitions.remove(&task);
        drop(discarded);
    }

    /// Every partition that is here, in order.
    pub fn held(&self) -> Vec<(TaskId, Summary)> {
        self.0.lock().partitions.iter().map(|(task, partition)| (*task, partition.summary())).collect()
    }

    /// How much is here.
    pub fn usage(&self) -> Usage {
        let index = self.0.lock();
        let in_memory = index.partitions.values().filter(|p| p.place.memory.is_some());
        Usage { memory_bytes: in_memory.map(Partition::bytes).sum(), spilled_bytes: self.0.files.bytes() }
    }
}

impl Inner {
    fn insert(&self, task: TaskId, mut partition: Partition) -> OutputMeta {
        let (meta, superfluous) = {
            let mut index = self.lock();
            partition.used = index.tick();
            match index.partitions.get(&task) {
                Some(there) if there.mark == partition.mark => (there.meta(), Some(partition)),
                _ => {
                    let meta = partition.meta();
                    (meta, index.partitions.insert(task, partition))
                }
            }
        };
        drop(superfluous);
        self.budget.partition_added();
        meta
    }

    /// Drops a partition if it still lies in this file.
    fn forget(&self, task: TaskId, damaged: &Arc<PartitionFile>) {
        let forgotten = {
            let mut index = self.lock();
            match index.partitions.get(&task) {
                Some(partition) if partition.place.is_file(damaged) => index.partitions.remove(&task),
                _ => None,
            }
        };
        drop(forgotten);
    }

    /// Takes the partition out of memory that was used longest ago, once it is in a file. False: there is none, or
    /// the disk does not take it.
    fn evict_oldest(&self) -> bool {
        let oldest = {
            let index = self.lock();
            let in_memory = index.partitions.iter().filter(|(_, partition)| partition.place.memory.is_some());
            in_memory
                .min_by_key(|(_, partition)| partition.used)
                .map(|(task, partition)| (*task, partition.clone()))
        };
        let Some((task, partition)) = oldest else {
            return false;
        };
        if partition.place.file.is_none()
            && let Err(failure) = self.write_out(task, &partition)
        {
            tracing::error!(partition = %task, %failure, "cannot evict a partition from memory");
            return false;
        }
        let evicted = {
            let mut index = self.lock();
            let place = index.partitions.get_mut(&task).map(|partition| &mut partition.place);
            // It may have been freed in the meantime.
            place.filter(|place| place.file.is_some()).and_then(|place| place.memory.take())
        };
        drop((evicted, partition));
        true
    }

    /// Writes a partition's segments as they are: their checksums stay, and reading them back costs nothing.
    fn write_out(&self, task: TaskId, partition: &Partition) -> Result<(), Failure> {
        let Some(memory) = &partition.place.memory else { return Ok(()) };
        let mut writer = self.files.create(task, None)?;
        let extents =
            memory.iter().map(|bytes| append_bytes(&mut writer, bytes)).collect::<Result<Vec<_>, _>>()?;
        let file = writer.finish(&footer_of(task, partition.mark, &partition.segments, &extents))?;
        let filed = Filed { file: Arc::new(file), extents: Arc::new(extents) };
        let superfluous = {
            let mut index = self.lock();
            match index.partitions.get_mut(&task) {
                Some(there) if there.place.is_memory(memory) => there.place.file.replace(filed),
                // It was freed in the meantime.
                _ => Some(filed),
            }
        };
        drop(superfluous);
        Ok(())
    }

    /// Writes what has been in memory alone for longer than this, and syncs what was written. False if the disk does
    /// not take something.
    fn write_older_than(&self, age: Duration) -> bool {
        let mut taken = self.sync();
        let due: Vec<_> = {
            let index = self.lock();
            let alone =
                |partition: &Partition| partition.place.file.is_none() && partition.since.elapsed() >= age;
            let due = index.partitions.iter().filter(|(_, partition)| alone(partition));
            due.map(|(task, partition)| (*task, partition.clone())).collect()
        };
        for (task, partition) in due {
            // What can be made again must not take the room of what cannot, least of all the log's.
            if !self.files.disk().has_to_spare(partition.bytes()) {
                taken = false;
                continue;
            }
            if let Err(failure) = self.write_out(task, &partition) {
                tracing::debug!(partition = %task, %failure, "a partition stays in memory alone");
                taken = false;
                continue;
            }
            drop(partition);
            // Drivers' own bytes are to be safe soon, whatever else there is to write.
            taken &= self.sync();
        }
        taken
    }

    /// Makes sure that what is in files survives a power cut.
    fn sync(&self) -> bool {
        let files: Vec<_> = {
            let index = self.lock();
            let files = index.partitions.values().filter_map(|partition| partition.place.file.as_ref());
            files.filter(|filed| !filed.file.is_synced()).map(|filed| Arc::clone(&filed.file)).collect()
        };
        if files.is_empty() {
            return true;
        }
        let (mut written, mut failed) = (Vec::new(), None);
        for file in files {
            match file.sync() {
                Ok(()) => written.push(file),
                Err(error) => failed = Some(error),
            }
        }
        match self.files.sync() {
            Ok(()) => written.iter().for_each(|file| file.is_safe()),
            Err(error) => failed = Some(error),
        }
        if let Some(error) = &failed {
            tracing::warn!(%error, "partitions on disk cannot be synced: a power cut would lose them");
        }
        failed.is_none()
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        // Every change to the index is one call, so a poisoned one is a sound one.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.budget.close();
        self.files.close();
    }
}

impl Index {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

impl Partition {
    fn meta(&self) -> OutputMeta {
        let bucket = |segment: &Segment| BucketMeta { rows: segment.rows, bytes: segment.bytes };
        OutputMeta { buckets: self.segments.iter().map(bucket).collect(), mark: self.mark }
    }

    fn summary(&self) -> Summary {
        let rows = self.segments.iter().map(|segment| segment.rows).fold(0, u64::saturating_add);
        Summary { rows, bytes: self.bytes(), mark: self.mark }
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }
}

impl Place {
    fn is_memory(&self, these: &Arc<Vec<Bytes>>) -> bool {
        self.memory.as_ref().is_some_and(|segments| Arc::ptr_eq(segments, these))
    }

    fn is_file(&self, this: &Arc<PartitionFile>) -> bool {
        self.file.as_ref().is_some_and(|filed| Arc::ptr_eq(&filed.file, this))
    }
}

/// Writes one partition: into memory until the budget has no room, from then on, and from the start of the
/// partition, into a file.
struct PartitionWriter<'a> {
    store: &'a Inner,
    task: TaskId,
    keep: Keep,
    /// What its bytes were announced with, if they were.
    promise: Option<Arc<Promise>>,
    segments: Vec<Segment>,
    target: Target,
}

enum Target {
    Memory(Vec<Bytes>),
    File(FileWriter, Vec<Extent>),
}

impl<'a> PartitionWriter<'a> {
    fn new(store: &'a Inner, task: TaskId, keep: Keep) -> Self {
        Self { store, task, keep, promise: None, segments: Vec::new(), target: Target::Memory(Vec::new()) }
    }

    fn push_frame(&mut self, frame: &DataFrame) -> Result<(), Failure> {
        let rows = frame.height() as u64;
        if self.keep == Keep::InMemory
            && let Target::Memory(segments) = &mut self.target
            && let Some(bytes) = encode_in_memory(&self.store.budget, frame)?
        {
            self.segments.push(Segment { rows, bytes: bytes.len() as u64, checksum: xxh3_64(&bytes) });
            segments.push(bytes);
            return Ok(());
        }
        let (writer, extents) = self.file()?;
        let extent =
            writer.segment(|sink| ipc::write(frame, Some(IpcCompression::LZ4), sink)).map_err(|error| {
                match error {
                    SegmentError::Disk(failure) => failure,
                    SegmentError::Writer(error) => encode_failure(&error),
                }
            })?;
        extents.push(extent.clone());
        self.segments.push(Segment::of(&extent, rows));
        Ok(())
    }

    fn push_bytes(&mut self, bytes: Bytes, rows: u64) -> Result<(), Failure> {
        let bytes = match &mut self.target {
            Target::Memory(_) if self.keep == Keep::OnDisk => bytes,
            Target::Memory(segments) => match memory::charge(&self.store.budget, bytes) {
                Ok(bytes) => {
                    self.segments.push(Segment {
                        rows,
                        bytes: bytes.len() as u64,
                        checksum: xxh3_64(&bytes),
                    });
                    segments.push(bytes);
                    return Ok(());
                }
                Err(bytes) => bytes,
            },
            Target::File(..) => bytes,
        };
        let (writer, extents) = self.file()?;
        let extent = append_bytes(writer, &bytes)?;
        extents.push(extent.clone());
        self.segments.push(Segment::of(&extent, rows));
        Ok(())
    }

    /// The file, begun with what was in memory so far if this is the first call.
    fn file(&mut self) -> Result<(&mut FileWriter, &mut Vec<Extent>), Failure> {
        if let Target::Memory(segments) = &mut self.target {
            let segments = mem::take(segments);
            let mut writer = self.store.files.create(self.task, self.promise.clone())?;
            let extents =
                segments.iter().map(|bytes| append_bytes(&mut writer, bytes)).collect::<Result<_, _>>()?;
            self.target = Target::File(writer, extents);
        }
        match &mut self.target {
            Target::File(writer, extents) => Ok((writer, extents)),
            Target::Memory(_) => Err(Failure::internal("a partition went to memory while it went to a file")),
        }
    }

    /// With this mark, or that of what was written.
    fn finish(mut self, mark: Option<u64>) -> Result<Partition, Failure> {
        if self.keep == Keep::OnDisk {
            // Of no segments at all, too.
            self.file()?;
        }
        let of_content = || {
            let checksums = self.segments.iter().flat_map(|segment| segment.checksum.to_le_bytes());
            xxh3_64(&checksums.collect::<Vec<_>>())
        };
        let mark = mark.unwrap_or_else(of_content);
        let place = match self.target {
            Target::Memory(segments) => Place { memory: Some(Arc::new(segments)), file: None },
            Target::File(writer, extents) => {
                let file = writer.finish(&footer_of(self.task, mark, &self.segments, &extents))?;
                let filed = Filed { file: Arc::new(file), extents: Arc::new(extents) };
                Place { memory: None, file: Some(filed) }
            }
        };
        Ok(Partition { mark, segments: self.segments, place, used: 0, since: Instant::now() })
    }
}

impl Segment {
    fn of(extent: &Extent, rows: u64) -> Self {
        Self { rows, bytes: extent.range.end - extent.range.start, checksum: extent.checksum }
    }
}

/// A frame's bytes in memory, or none if the budget has no room for them.
fn encode_in_memory(budget: &Budget, frame: &DataFrame) -> Result<Option<Bytes>, Failure> {
    let Some(mut buffer) = Buffer::new(budget) else {
        return Ok(None);
    };
    match ipc::write(frame, None, &mut buffer) {
        Ok(()) => Ok(Some(buffer.freeze())),
        Err(_) if buffer.is_full() => Ok(None),
        Err(error) => Err(encode_failure(&error)),
    }
}

/// Appends bytes as they are to a file.
fn append_bytes(writer: &mut FileWriter, bytes: &Bytes) -> Result<Extent, Failure> {
    writer.segment(|sink| io::Write::write_all(sink, bytes)).map_err(|error| match error {
        SegmentError::Disk(failure) => failure,
        SegmentError::Writer(error) => Failure::internal(error),
    })
}

/// A frame that cannot be written as Arrow IPC cannot be on any node.
fn encode_failure(error: &PolarsError) -> Failure {
    Failure::Query { message: error.to_string() }
}

/// Maps segments of a file and compares their checksums.
fn read_back(file: &PartitionFile, extents: &[Extent]) -> io::Result<Vec<Bytes>> {
    let map = file.map()?;
    extents
        .iter()
        .map(|extent| {
            // The file is as long as it was when these ranges were written.
            let bytes = map.slice(extent.range.start as usize..extent.range.end as usize);
            if xxh3_64(&bytes) == extent.checksum {
                Ok(bytes)
            } else {
                Err(io::Error::new(io::ErrorKind::InvalidData, "its checksum does not fit"))
            }
        })
        .collect()
}

/// What a partition's file says of it.
fn footer_of(task: TaskId, mark: u64, segments: &[Segment], extents: &[Extent]) -> Footer {
    let segments = extents.iter().zip(segments).map(|(extent, segment)| (extent.clone(), segment.rows));
    Footer { task, mark, segments: segments.collect() }
}

/// A partition that a former process left. Of several of one task the newest file counts, which comes last.
fn partition_of((file, footer): (PartitionFile, Footer)) -> (TaskId, Partition) {
    let Footer { task, mark, segments } = footer;
    let of = |(extent, rows): &(Extent, u64)| Segment::of(extent, *rows);
    let extents = segments.iter().map(|(extent, _)| extent.clone()).collect();
    let filed = Filed { file: Arc::new(file), extents: Arc::new(extents) };
    let place = Place { memory: None, file: Some(filed) };
    let segments = segments.iter().map(of).collect();
    (task, Partition { mark, segments, place, used: 0, since: Instant::now() })
}

/// Puts on disk what stays, for as long as there is a store.
fn write_in_background(store: &Weak<Inner>) {
    let mut well = true;
    loop {
        thread::sleep(WRITE_INTERVAL);
        let Some(store) = store.upgrade() else { return };
        let taken = store.write_older_than(WRITTEN_AFTER);
        if well && !taken {
            tracing::warn!(
                "the disk does not take partitions: those in memory would be lost with this process"
            );
        }
        well = taken;
    }
}

/// The lowest id that a task of a job can have.
fn first_of(job: JobId) -> TaskId {
    TaskId { job, stage: StageId(0), partition: 0 }
}

/// Makes room for as long as there is a store.
fn evict_while_tasks_wait(budget: &Budget, store: &Weak<Inner>) {
    while budget.wait_for_shortage() {
        let Some(store) = store.upgrade() else { return };
        if !store.evict_oldest() {
            budget.nothing_to_evict();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::io::Cursor;

    use floe_transport::stream::{Body, BodyError};
    use futures::FutureExt;
    use polars::prelude::{IpcReader, SerReader, df};
    use tempfile::TempDir;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    const NODE: NodeId = NodeId(5);

    fn task(job: u64, partition: u32) -> TaskId {
        TaskId { job: JobId(job), stage: StageId(0), partition }
    }

    fn store(memory_bytes: u64) -> (Store, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (
            Store::open(dir.path(), NODE, Budget::new(memory_bytes), Disk::of(dir.path()).unwrap()).unwrap(),
            dir,
        )
    }

    /// A frame of some 200 kB that compresses well.
    fn frame(seed: i64) -> DataFrame {
        let names: Vec<_> =
            (0..5_000).map(|i| (i % 7 != 0).then(|| format!("a rather long name {}", i % 10))).collect();
        let numbers: Vec<_> = (0..5_000).map(|i| i % 100 + seed).collect();
        df!("number" => numbers, "name" => names).unwrap()
    }

    fn read(segment: &SegmentBytes) -> DataFrame {
        assert_eq!(xxh3_64(&segment.bytes), segment.checksum);
        let frame = IpcReader::new(Cursor::new(segment.bytes.clone())).finish().unwrap();
        assert_eq!(frame.height() as u64, segment.rows);
        frame
    }

    fn read_all(store: &Store, task: TaskId) -> Vec<DataFrame> {
        store.get(task, None).unwrap().iter().map(read).collect()
    }

    fn lost(task: TaskId) -> Failure {
        Failure::InputLost { partition: task, node: NODE }
    }

    #[test]
    fn what_was_put_comes_back_by_bucket_and_whole_and_goes_with_its_job() {
        let (store, _dir) = store(10 << 20);
        let buckets = vec![frame(0), frame(0).clear(), frame(1)];
        let meta = store.put(task(1, 0), Some(7), buckets.clone(), Keep::InMemory).unwrap();
        assert_eq!(meta.buckets.iter().map(|b| b.rows).collect::<Vec<_>>(), [5_000, 0, 5_000]);
        assert_eq!(read_all(&store, task(1, 0)), buckets);
        let one = store.get(task(1, 0), Some(2)).unwrap();
        assert_eq!((one.len(), one[0].bytes.len() as u64), (1, meta.buckets[2].bytes));
        assert_eq!(read(&one[0]), buckets[2]);
        assert!(matches!(store.get(task(1, 0), Some(3)), Err(Failure::Refused { .. })));
        assert_eq!(store.get(task(1, 1), None).unwrap_err(), lost(task(1, 1)));
        assert_eq!(store.usage(), Usage { memory_bytes: meta.bytes(), spilled_bytes: 0 });
        assert_eq!(store.budget().used_bytes(), meta.bytes());

        // A second run of the task changes nothing: readers see one run's rows.
        assert_eq!(store.put(task(1, 0), Some(7), vec![frame(9)], Keep::InMemory).unwrap(), meta);
        assert_eq!(read_all(&store, task(1, 0)), buckets);
        // One of another plan does: its partitions do not go together with those of the first.
        let other = store.put(task(1, 0), Some(8), vec![frame(9)], Keep::InMemory).unwrap();
        assert_eq!((other.mark, read_all(&store, task(1, 0))), (8, vec![frame(9)]));

        for job in [0, 2, u64::MAX] {
            store.put(task(job, 0), None, vec![frame(0)], Keep::InMemory).unwrap();
        }
        store.free(&[JobId(1), JobId(u64::MAX), JobId(77)]);
        assert_eq!(store.held().iter().map(|(task, _)| task.job.0).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(read(&one[0]), buckets[2], "a reader keeps its bytes");
        drop(one);
        assert_eq!(store.budget().used_bytes(), store.usage().memory_bytes);
    }

    #[test]
    fn what_the_budget_has_no_room_for_goes_to_disk_and_reads_the_same() {
        let (store, dir) = store(300 << 10);
        let buckets = vec![frame(0), frame(1), frame(2)];
        let meta = store.put(task(1, 0), None, buckets.clone(), Keep::InMemory).unwrap();
        let usage = store.usage();
        assert_eq!((usage.memory_bytes, store.budget().used_bytes()), (0, 0));
        assert!(usage.spilled_bytes >= meta.bytes(), "{usage:?}");
        assert!(
            meta.buckets[2].bytes < meta.buckets[0].bytes,
            "compressed, while the first was in memory before"
        );
        assert_eq!(read_all(&store, task(1, 0)), buckets);
        assert_eq!(read(&store.get(task(1, 0), Some(1)).unwrap()[0]), buckets[1]);
        store.free(&[JobId(1)]);
        assert_eq!((store.usage(), fs::read_dir(dir.path()).unwrap().count()), (Usage::default(), 0));
    }

    #[test]
    fn a_copy_from_a_peer_is_kept_as_it_came() {
        let (from, _dir) = store(10 << 20);
        let meta = from.put(task(1, 0), None, vec![frame(0), frame(1)], Keep::InMemory).unwrap();
        let sent: Vec<_> = from.get(task(1, 0), None).unwrap().into_iter().map(|s| s.bytes).collect();
        let ways =
            [Keep::InMemory, Keep::OnDisk].map(|keep| [10 << 20, 300 << 10, 0].map(|bytes| (keep, bytes)));
        for (keep, memory_bytes) in ways.into_iter().flatten() {
            let (to, _dir) = store(memory_bytes);
            to.put_segments(task(1, 0), sent.clone(), meta.clone(), keep).unwrap();
            assert_eq!(to.held(), [(task(1, 0), meta.summary())]);
            let held: Vec<_> = to.get(task(1, 0), None).unwrap().into_iter().map(|s| s.bytes).collect();
            assert_eq!(held, sent);
            let refused = to.put_segments(task(1, 1), sent[..1].to_vec(), meta.clone(), keep);
            assert!(matches!(refused, Err(Failure::Refused { .. })));
        }
    }

    #[tokio::test]
    async fn a_partition_goes_to_disk_as_it_comes() {
        let (from, _dir) = store(10 << 20);
        let buckets = vec![frame(0), frame(1).clear(), frame(2)];
        let meta = from.put(task(1, 0), None, buckets.clone(), Keep::InMemory).unwrap();
        let sent: Vec<u8> =
            from.get(task(1, 0), None).unwrap().into_iter().flat_map(|s| s.bytes.to_vec()).collect();
        let (store, dir) = store(10 << 20);
        let take = async |bytes: Vec<u8>| {
            let promise = Arc::new(store.disk().promise(meta.bytes()).unwrap());
            let (near, far) = tokio::io::duplex(4096);
            let sending = tokio::spawn(async move {
                floe_transport::stream::send_bytes(&mut near.compat(), bytes.into()).await
            });
            let mut body = Body::new(far.compat());
            let arrived = store.receive(task(1, 0), meta.clone(), &mut body, &promise).await;
            drop(body);
            let _ = sending.await;
            arrived
        };
        // Cut off, nothing of it stays.
        let error = take(sent[..sent.len() / 2].to_vec()).await.unwrap_err();
        assert!(matches!(error, BodyError::Short), "{error:?}");
        assert_eq!(store.held(), []);
        let stored = take(sent).await.unwrap().stored().await.unwrap();
        assert_eq!((stored, store.usage().memory_bytes), (meta.clone(), 0));
        assert_eq!(read_all(&store, task(1, 0)), buckets);
        drop(dir);
    }

    #[tokio::test]
    async fn a_task_that_waits_for_memory_evicts_the_partitions_used_longest_ago() {
        let (store, _dir) = store(1 << 20);
        for partition in 0..4 {
            store.put(task(1, partition), None, vec![frame(partition.into())], Keep::InMemory).unwrap();
        }
        let size = store.meta(task(1, 0)).unwrap().bytes();
        store.get(task(1, 0), None).unwrap();
        // Two partitions have to go: not the first, which was just read.
        let free = (1 << 20) - 4 * size;
        let reservation = store.budget().reserve(free + size + 1).await;
        let in_memory = |partition| store.0.lock().partitions[&task(1, partition)].place.memory.is_some();
        assert_eq!([0, 1, 2, 3].map(in_memory), [true, false, false, true]);
        for partition in 0..4 {
            assert_eq!(read_all(&store, task(1, partition)), [frame(partition.into())]);
        }
        drop(reservation);

        // Bytes in a slow reader's hands do not keep a task waiting for ever.
        let slow = store.get(task(1, 3), None).unwrap();
        assert_eq!(store.budget().reserve(1 << 20).await.bytes(), 1 << 20);
        assert_eq!(read(&slow[0]), frame(3));
    }

    #[test]
    fn a_damaged_partition_file_is_lost_and_no_longer_held() {
        let (store, dir) = store(0);
        store.put(task(1, 0), None, vec![frame(0), frame(1)], Keep::InMemory).unwrap();
        store.put(task(1, 1), None, vec![frame(2)], Keep::InMemory).unwrap();
        let files = || {
            let mut paths: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
            paths.sort();
            paths
        };
        let path = files().remove(0);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 4;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(read(&store.get(task(1, 0), Some(1)).unwrap()[0]), frame(1), "this bucket is intact");
        assert_eq!(store.get(task(1, 0), Some(0)).unwrap_err(), lost(task(1, 0)));
        assert_eq!(store.held().iter().map(|(task, _)| *task).collect::<Vec<_>>(), [task(1, 1)]);
        assert_eq!(files().len(), 1);
        // Computed again, it is here again.
        store.put(task(1, 0), None, vec![frame(0), frame(1)], Keep::InMemory).unwrap();
        assert_eq!(read_all(&store, task(1, 0)), [frame(0), frame(1)]);
    }

    #[test]
    fn a_partition_is_had_piece_by_piece_from_memory_and_from_a_file_and_damage_is_noticed() {
        let segments = [700 << 10, 0, 5].map(|length| (0..length).map(|n: u32| n as u8).collect::<Bytes>());
        let buckets = segments.iter().map(|segment| BucketMeta { rows: 1, bytes: segment.len() as u64 });
        let meta = OutputMeta { buckets: buckets.collect(), mark: 0 };
        let pieces = |store: &Store| store.pieces(task(1, 0)).unwrap().collect::<Result<Vec<Bytes>, _>>();
        for keep in [Keep::InMemory, Keep::OnDisk] {
            let (store, dir) = store(10 << 20);
            store.put_segments(task(1, 0), segments.to_vec(), meta.clone(), keep).unwrap();
            let read = pieces(&store).unwrap();
            assert!(read.iter().all(|piece| piece.len() <= 256 << 10));
            assert_eq!(read.concat(), segments.concat());
            assert_eq!(store.pieces(task(1, 1)).err(), Some(lost(task(1, 1))));
            if keep == Keep::OnDisk {
                let path = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
                let mut bytes = fs::read(&path).unwrap();
                bytes[300 << 10] ^= 1;
                fs::write(&path, bytes).unwrap();
                assert_eq!(pieces(&store).unwrap_err(), lost(task(1, 0)));
                assert_eq!(store.held(), []);
            }
        }
    }

    #[test]
    fn partitions_are_here_again_after_a_restart_and_those_of_a_driver_at_once() {
        let (first, dir) = store(10 << 20);
        let again =
            || Store::open(dir.path(), NODE, Budget::new(10 << 20), Disk::of(dir.path()).unwrap()).unwrap();
        let buckets = vec![frame(0), frame(1)];
        let meta = first.put(task(1, 0), Some(7), buckets.clone(), Keep::OnDisk).unwrap();
        let empty = first.put_segments(task(1, 1), vec![], OutputMeta::default(), Keep::OnDisk).unwrap();
        assert_eq!(first.usage().memory_bytes, 0);
        let made = first.put(task(2, 0), Some(8), vec![frame(2)], Keep::InMemory).unwrap();
        // As a process that is killed leaves them: nothing is dropped.
        mem::forget(first);
        let second = again();
        assert_eq!(second.held(), [(task(1, 0), meta.summary()), (task(1, 1), empty.summary())]);
        assert_eq!(read_all(&second, task(1, 0)), buckets);
        // And as one does that stops.
        second.put(task(2, 0), Some(8), vec![frame(2)], Keep::InMemory).unwrap();
        second.write_all();
        assert_eq!(second.usage().memory_bytes, made.bytes(), "it is in memory too");
        second.free(&[JobId(1)]);
        drop(second);
        let third = again();
        assert_eq!(third.held(), [(task(2, 0), made.summary())]);
        assert_eq!(read_all(&third, task(2, 0)), [frame(2)]);
        third.free(&[JobId(2)]);
        assert_eq!((third.usage(), fs::read_dir(dir.path()).unwrap().count()), (Usage::default(), 0));
    }

    #[test]
    fn what_stays_in_memory_goes_to_disk_in_the_background() {
        let (store, dir) = store(10 << 20);
        store.put(task(1, 0), None, vec![frame(0)], Keep::InMemory).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while fs::read_dir(dir.path()).unwrap().count() == 0 || !store.0.sync() {
            assert!(Instant::now() < deadline, "it was not written");
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(read_all(&store, task(1, 0)), [frame(0)]);
        // It is evicted without being written again.
        assert!(store.0.evict_oldest() && !store.0.evict_oldest());
        assert_eq!((store.usage().memory_bytes, fs::read_dir(dir.path()).unwrap().count()), (0, 1));
        assert_eq!(read_all(&store, task(1, 0)), [frame(0)]);
    }

    #[test]
    fn a_short_disk_gets_no_copies_of_what_is_in_memory_and_gives_up_those_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::told(100 << 20);
        let store = Store::open(dir.path(), NODE, Budget::new(10 << 20), disk.clone()).unwrap();
        let files = || fs::read_dir(dir.path()).unwrap().count();
        store.put(task(1, 0), None, vec![frame(0)], Keep::InMemory).unwrap();
        store.put(task(1, 1), None, vec![frame(1)], Keep::OnDisk).unwrap();
        assert!(store.0.write_older_than(Duration::ZERO));
        assert_eq!(files(), 2);
        disk.tell(2 << 20);
        store.free_spare_files();
        assert_eq!(files(), 1, "that of a driver's own bytes stays");
        assert!(!store.0.write_older_than(Duration::ZERO));
        assert_eq!(files(), 1);
        for partition in 0..2 {
            assert_eq!(read_all(&store, task(1, partition)), [frame(partition.into())]);
        }
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let (store, dir) = store(0);
        dir.close().unwrap();
        let failure = store.put(task(1, 0), None, vec![frame(0)], Keep::InMemory).unwrap_err();
        assert!(failure.to_string().contains("job-0000000000000001-stage-0-partition-0"), "{failure}");

        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Store::open(file.path(), NODE, Budget::new(1), Disk::told(u64::MAX)).unwrap_err();
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }

    #[test]
    fn the_evicting_thread_ends_with_the_store() {
        let (store, _dir) = store(10);
        let budget = store.budget().clone();
        let inner = Arc::downgrade(&store.0);
        assert!(budget.reserve(10).now_or_never().is_some());
        drop(store);
        assert!(inner.upgrade().is_none());
        assert!(!budget.wait_for_shortage());
    }
}
