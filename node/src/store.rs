//! A node's partition store: what its tasks have made, and copies from peers, until the job is freed.
//!
//! Partitions are kept in memory for as long as the [`Budget`] allows, and in spill files beyond it. A
//! partition has one segment a bucket, each an Arrow IPC file with its checksum. Readers get the bytes as they
//! lie, compressed or not, which Arrow IPC tells them.
//!
//! ```text
//!   put ──> the budget has room ──> in memory, plain ──> a task waits for memory ──┐
//!    └────> it has none ──────────> in a spill file, LZ4 or plain <──────────────────┘
//!                                        └──> its checksum does not fit: lost
//! ```
//!
//! The store starts empty: partitions of a former process are computed again where a job still needs them.

pub mod ipc;
mod memory;
mod spill;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::{io, mem, thread};

use bytes::Bytes;
use floe_protocol::graph::BucketMeta;
use floe_protocol::{Failure, JobId, NodeId, OutputMeta, StageId, TaskId};
use polars::prelude::{DataFrame, IpcCompression, PolarsError};
use xxhash_rust::xxh3::xxh3_64;

use self::memory::Buffer;
pub use self::memory::{Budget, Reservation};
use self::spill::{Extent, SegmentError, Spill, SpillFile, SpillWriter};

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
    /// Bytes of spill files.
    pub spilled_bytes: u64,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory for spill files is of no use.
    #[error("cannot use {} for spilled partitions: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The thread that makes room cannot be started.
    #[error("cannot start a thread for evicting partitions: {0}")]
    Thread(io::Error),
}

#[derive(Debug)]
struct Inner {
    node: NodeId,
    budget: Budget,
    spill: Spill,
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
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    rows: u64,
    bytes: u64,
    checksum: u64,
}

/// Where a partition's segments are, in order.
#[derive(Clone, Debug)]
enum Place {
    Memory(Arc<Vec<Bytes>>),
    Spilled(Arc<SpillFile>, Arc<Vec<Extent>>),
}

impl Store {
    /// Opens node `node`'s store, which spills into `dir` what `budget` has no room for. Spill files of a
    /// former process are removed.
    pub fn open(dir: &Path, node: NodeId, budget: Budget) -> Result<Self, Error> {
        let spill = Spill::open(dir).map_err(|source| Error::Directory { path: dir.to_owned(), source })?;
        let inner = Arc::new(Inner { node, budget: budget.clone(), spill, index: Mutex::default() });
        let evicted = Arc::downgrade(&inner);
        thread::Builder::new()
            .name("floe-evict".to_owned())
            .spawn(move || evict_while_tasks_wait(&budget, &evicted))
            .map_err(Error::Thread)?;
        Ok(Self(inner))
    }

    /// Whose store it is.
    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// The budget that the store shares with running tasks.
    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// Stores a task's output, a frame a bucket. Its mark is that of its content unless given. A partition of the
    /// same mark that is there already stays, and the new one is dropped, so that all its readers see one run's rows;
    /// one of another mark is of another plan of its job, and gives way.
    pub fn put(
        &self,
        task: TaskId,
        mark: Option<u64>,
        buckets: Vec<DataFrame>,
    ) -> Result<OutputMeta, Failure> {
        if let Some(meta) = self.meta(task).filter(|meta| Some(meta.mark) == mark) {
            return Ok(meta);
        }
        let mut writer = PartitionWriter::new(&self.0, task);
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
    ) -> Result<OutputMeta, Failure> {
        let sizes = segments.iter().map(|segment| segment.len() as u64);
        if !sizes.eq(meta.buckets.iter().map(|bucket| bucket.bytes)) {
            let message = format!("the segments of partition {task} are not of the sizes announced");
            return Err(Failure::Refused { message });
        }
        if let Some(there) = self.meta(task).filter(|there| there.mark == meta.mark) {
            return Ok(there);
        }
        let mut writer = PartitionWriter::new(&self.0, task);
        for (bytes, bucket) in segments.into_iter().zip(&meta.buckets) {
            writer.push_bytes(bytes, bucket.rows)?;
        }
        Ok(self.0.insert(task, writer.finish((meta.mark != 0).then_some(meta.mark))?))
    }

    /// One segment, or all of them in order, without copying. [`Failure::InputLost`] if this node does not hold
    /// the partition, or finds it damaged, in which case it no longer does.
    pub fn get(&self, task: TaskId, bucket: Option<u32>) -> Result<Vec<SegmentBytes>, Failure> {
        let lost = || Failure::InputLost { partition: task, node: self.0.node };
        let partition = {
            let mut index = self.0.lock();
            let now = index.tick();
            let partition = index.partitions.get_mut(&task).ok_or_else(lost)?;
            partition.used = now;
            partition.clone()
        };
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
            Place::Memory(segments) => segments[wanted.clone()].to_vec(),
            Place::Spilled(file, extents) => match read_back(file, &extents[wanted.clone()]) {
                Ok(bytes) => bytes,
                Err(error) => {
                    let path = file.path().display();
                    tracing::error!(partition = %task, %path, %error, "a spilled partition is damaged and lost");
                    self.0.forget(task, file);
                    return Err(lost());
                }
            },
        };
        let segments = partition.segments[wanted].iter();
        Ok(segments
            .zip(bytes)
            .map(|(segment, bytes)| SegmentBytes { bytes, checksum: segment.checksum, rows: segment.rows })
            .collect())
    }

    /// What a partition that is here holds.
    pub fn meta(&self, task: TaskId) -> Option<OutputMeta> {
        self.0.lock().partitions.get(&task).map(Partition::meta)
    }

    /// Drops all partitions of these jobs. Readers that have their bytes keep them.
    pub fn free(&self, jobs: &[JobId]) {
        let freed: Vec<_> = {
            let mut index = self.0.lock();
            jobs.iter()
                .flat_map(|job| {
                    let mut later = index.partitions.split_off(&first_of(*job));
                    let mut kept = match job.0.checked_add(1) {
                        Some(next) => later.split_off(&first_of(JobId(next))),
                        None => BTreeMap::new(),
                    };
                    index.partitions.append(&mut kept);
                    later
                })
                .collect()
        };
        // Dropping removes files, so it happens without the lock.
        drop(freed);
    }

    /// Drops one partition.
    pub fn discard(&self, task: TaskId) {
        let discarded = self.0.lock().partitions.remove(&task);
        drop(discarded);
    }

    /// Every partition that is here, in order.
    pub fn held(&self) -> Vec<(TaskId, OutputMeta)> {
        self.0.lock().partitions.iter().map(|(task, partition)| (*task, partition.meta())).collect()
    }

    /// How much is here.
    pub fn usage(&self) -> Usage {
        let index = self.0.lock();
        let in_memory = index.partitions.values().filter(|p| matches!(p.place, Place::Memory(_)));
        Usage { memory_bytes: in_memory.map(Partition::bytes).sum(), spilled_bytes: self.0.spill.bytes() }
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
    fn forget(&self, task: TaskId, damaged: &Arc<SpillFile>) {
        let forgotten = {
            let mut index = self.lock();
            match index.partitions.get(&task) {
                Some(partition) if partition.place.is_file(damaged) => index.partitions.remove(&task),
                _ => None,
            }
        };
        drop(forgotten);
    }

    /// Moves the partition in memory that was used longest ago into a spill file. False: there is none, or
    /// the disk does not take it.
    fn evict_oldest(&self) -> bool {
        let oldest = {
            let index = self.lock();
            let in_memory = index.partitions.iter().filter_map(|(task, partition)| match &partition.place {
                Place::Memory(segments) => Some((partition.used, *task, Arc::clone(segments))),
                Place::Spilled(..) => None,
            });
            in_memory.min_by_key(|(used, ..)| *used)
        };
        let Some((_, task, segments)) = oldest else {
            return false;
        };
        let spilled = match self.write_out(task, &segments) {
            Ok(spilled) => spilled,
            Err(failure) => {
                tracing::error!(partition = %task, %failure, "cannot evict a partition from memory");
                return false;
            }
        };
        let unused = {
            let mut index = self.lock();
            match index.partitions.get_mut(&task) {
                Some(partition) if partition.place.is_memory(&segments) => {
                    mem::replace(&mut partition.place, spilled)
                }
                // It was freed in the meantime.
                _ => spilled,
            }
        };
        drop(unused);
        true
    }

    /// Writes segments as they are: their checksums stay, and reading them back costs nothing.
    fn write_out(&self, task: TaskId, segments: &[Bytes]) -> Result<Place, Failure> {
        let mut writer = self.spill.create(task)?;
        let extents =
            segments.iter().map(|bytes| spill_bytes(&mut writer, bytes)).collect::<Result<_, _>>()?;
        Ok(Place::Spilled(Arc::new(writer.finish()?), Arc::new(extents)))
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        // Every change to the index is one call, so a poisoned one is a sound one.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.budget.close();
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

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }
}

impl Place {
    fn is_memory(&self, these: &Arc<Vec<Bytes>>) -> bool {
        matches!(self, Self::Memory(segments) if Arc::ptr_eq(segments, these))
    }

    fn is_file(&self, this: &Arc<SpillFile>) -> bool {
        matches!(self, Self::Spilled(file, _) if Arc::ptr_eq(file, this))
    }
}

/// Writes one partition: into memory until the budget has no room, from then on, and from the start of the
/// partition, into a spill file.
struct PartitionWriter<'a> {
    store: &'a Inner,
    task: TaskId,
    segments: Vec<Segment>,
    target: Target,
}

enum Target {
    Memory(Vec<Bytes>),
    Spill(SpillWriter, Vec<Extent>),
}

impl<'a> PartitionWriter<'a> {
    fn new(store: &'a Inner, task: TaskId) -> Self {
        Self { store, task, segments: Vec::new(), target: Target::Memory(Vec::new()) }
    }

    fn push_frame(&mut self, frame: &DataFrame) -> Result<(), Failure> {
        let rows = frame.height() as u64;
        if let Target::Memory(segments) = &mut self.target
            && let Some(bytes) = encode_in_memory(&self.store.budget, frame)?
        {
            self.segments.push(Segment { rows, bytes: bytes.len() as u64, checksum: xxh3_64(&bytes) });
            segments.push(bytes);
            return Ok(());
        }
        let (writer, extents) = self.spill()?;
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
            Target::Spill(..) => bytes,
        };
        let (writer, extents) = self.spill()?;
        let extent = spill_bytes(writer, &bytes)?;
        extents.push(extent.clone());
        self.segments.push(Segment::of(&extent, rows));
        Ok(())
    }

    /// The spill file, begun with what was in memory so far if this is the first call.
    fn spill(&mut self) -> Result<(&mut SpillWriter, &mut Vec<Extent>), Failure> {
        if let Target::Memory(segments) = &mut self.target {
            let segments = mem::take(segments);
            let mut writer = self.store.spill.create(self.task)?;
            let extents =
                segments.iter().map(|bytes| spill_bytes(&mut writer, bytes)).collect::<Result<_, _>>()?;
            self.target = Target::Spill(writer, extents);
        }
        match &mut self.target {
            Target::Spill(writer, extents) => Ok((writer, extents)),
            Target::Memory(_) => Err(Failure::internal("a partition went to memory while it was spilled")),
        }
    }

    /// With this mark, or that of what was written.
    fn finish(self, mark: Option<u64>) -> Result<Partition, Failure> {
        let of_content = || {
            let checksums = self.segments.iter().flat_map(|segment| segment.checksum.to_le_bytes());
            xxh3_64(&checksums.collect::<Vec<_>>())
        };
        let mark = mark.unwrap_or_else(of_content);
        let place = match self.target {
            Target::Memory(segments) => Place::Memory(Arc::new(segments)),
            Target::Spill(writer, extents) => Place::Spilled(Arc::new(writer.finish()?), Arc::new(extents)),
        };
        Ok(Partition { mark, segments: self.segments, place, used: 0 })
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

/// Appends bytes as they are to a spill file.
fn spill_bytes(writer: &mut SpillWriter, bytes: &Bytes) -> Result<Extent, Failure> {
    writer.segment(|sink| io::Write::write_all(sink, bytes)).map_err(|error| match error {
        SegmentError::Disk(failure) => failure,
        SegmentError::Writer(error) => Failure::internal(error),
    })
}

/// A frame that cannot be written as Arrow IPC cannot be on any node.
fn encode_failure(error: &PolarsError) -> Failure {
    Failure::Query { message: error.to_string() }
}

/// Maps segments of a spill file and compares their checksums.
fn read_back(file: &SpillFile, extents: &[Extent]) -> io::Result<Vec<Bytes>> {
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

    use futures::FutureExt;
    use polars::prelude::{IpcReader, SerReader, df};
    use tempfile::TempDir;

    use super::*;

    const NODE: NodeId = NodeId(5);

    fn task(job: u64, partition: u32) -> TaskId {
        TaskId { job: JobId(job), stage: StageId(0), partition }
    }

    fn store(memory_bytes: u64) -> (Store, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Store::open(dir.path(), NODE, Budget::new(memory_bytes)).unwrap(), dir)
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
        let meta = store.put(task(1, 0), Some(7), buckets.clone()).unwrap();
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
        assert_eq!(store.put(task(1, 0), Some(7), vec![frame(9)]).unwrap(), meta);
        assert_eq!(read_all(&store, task(1, 0)), buckets);
        // One of another plan does: its partitions do not go together with those of the first.
        let other = store.put(task(1, 0), Some(8), vec![frame(9)]).unwrap();
        assert_eq!((other.mark, read_all(&store, task(1, 0))), (8, vec![frame(9)]));

        for job in [0, 2, u64::MAX] {
            store.put(task(job, 0), None, vec![frame(0)]).unwrap();
        }
        store.free(&[JobId(1), JobId(u64::MAX), JobId(77)]);
        assert_eq!(store.held().iter().map(|(task, _)| task.job.0).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(read(&one[0]), buckets[2], "a reader keeps its bytes");
        drop(one);
        assert_eq!(store.budget().used_bytes(), store.usage().memory_bytes);
    }

    #[test]
    fn what_the_budget_has_no_room_for_is_spilled_and_reads_the_same() {
        let (store, dir) = store(300 << 10);
        let buckets = vec![frame(0), frame(1), frame(2)];
        let meta = store.put(task(1, 0), None, buckets.clone()).unwrap();
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
        let meta = from.put(task(1, 0), None, vec![frame(0), frame(1)]).unwrap();
        let sent: Vec<_> = from.get(task(1, 0), None).unwrap().into_iter().map(|s| s.bytes).collect();
        for memory_bytes in [10 << 20, 300 << 10, 0] {
            let (to, _dir) = store(memory_bytes);
            to.put_segments(task(1, 0), sent.clone(), meta.clone()).unwrap();
            assert_eq!(to.held(), [(task(1, 0), meta.clone())]);
            let held: Vec<_> = to.get(task(1, 0), None).unwrap().into_iter().map(|s| s.bytes).collect();
            assert_eq!(held, sent);
            let refused = to.put_segments(task(1, 1), sent[..1].to_vec(), meta.clone());
            assert!(matches!(refused, Err(Failure::Refused { .. })));
        }
    }

    #[tokio::test]
    async fn a_task_that_waits_for_memory_evicts_the_partitions_used_longest_ago() {
        let (store, _dir) = store(1 << 20);
        for partition in 0..4 {
            store.put(task(1, partition), None, vec![frame(partition.into())]).unwrap();
        }
        let size = store.meta(task(1, 0)).unwrap().bytes();
        store.get(task(1, 0), None).unwrap();
        // Two partitions have to go: not the first, which was just read.
        let free = (1 << 20) - 4 * size;
        let reservation = store.budget().reserve(free + size + 1).await;
        let in_memory =
            |partition| matches!(store.0.lock().partitions[&task(1, partition)].place, Place::Memory(_));
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
    fn a_damaged_spilled_partition_is_lost_and_no_longer_held() {
        let (store, dir) = store(0);
        store.put(task(1, 0), None, vec![frame(0), frame(1)]).unwrap();
        store.put(task(1, 1), None, vec![frame(2)]).unwrap();
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
        store.put(task(1, 0), None, vec![frame(0), frame(1)]).unwrap();
        assert_eq!(read_all(&store, task(1, 0)), [frame(0), frame(1)]);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let (store, dir) = store(0);
        dir.close().unwrap();
        let failure = store.put(task(1, 0), None, vec![frame(0)]).unwrap_err();
        assert!(failure.to_string().contains("job-0000000000000001-stage-0-partition-0"), "{failure}");

        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Store::open(file.path(), NODE, Budget::new(1)).unwrap_err();
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
