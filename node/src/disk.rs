//! The disk of a data directory: what may be written there, and whether it is short of room.
//!
//! ```text
//!        0        floor      2 floors    3 floors    4 floors          all of it
//!   free ├──────────┼───────────┼───────────┼───────────┼──────────────────┤
//!        │ the log  │ what runs │           │ also what is convenient only │
//!        │   alone  │ may finish│           │           │ also drivers' objects
//!        │          │ plans of jobs that others submit
//!        │          │           │<─ short ──┤ whoever was short is not any more
//! ```
//!
//! Objects, partitions and what functions print share what is free above the floor, and ask before they write. A node
//! that is short takes no work, no copies and nothing of drivers', frees what it may, and goes on voting: the log's room
//! is allocated before anybody needs it (`log_file.rs`), and the [`Reserve`] is a second one, for file systems where that
//! does not hold, and for the few files that a node writes when it starts.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use floe_protocol::Failure;
use nix::sys::statvfs::statvfs;

/// The most that is left free of a disk: beyond it a larger disk needs no larger margin.
const MAX_FLOOR_BYTES: u64 = 256 << 20;

/// The least: some blocks of every file that is being written, and what other programs write meanwhile.
const MIN_FLOOR_BYTES: u64 = 4 << 20;

/// The floor of a small disk, as a part of it.
const FLOOR_PART: u64 = 20;

/// A node is short with less than so many floors free, so that what runs can finish above the first.
const SHORT_FLOORS: u64 = 2;

/// It is short no more with so many, so that it does not change its mind with every file.
const AMPLE_FLOORS: u64 = 3;

/// Drivers' objects leave so many, so that they alone never make a node short: nobody is known to need them.
const OBJECT_FLOORS: u64 = 4;

/// How large the reserve is: enough for the files that a node writes when it starts, and for some hundred small entries
/// of the log.
const RESERVE_BYTES: u64 = 4 << 20;

/// When a driver that was refused is to try again: what is freed was removed by then.
const RETRY_MS: u64 = 1_000;

/// A data directory's disk. Cheap to clone; clones are one.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    system: System,
    floor_bytes: u64,
    short: AtomicBool,
    /// What was announced and is yet to be written.
    promised_bytes: AtomicU64,
}

#[derive(Debug)]
enum System {
    /// The file system that this directory lies on.
    Of(PathBuf),
    /// One that has as much free as a test says.
    #[cfg(test)]
    Told(AtomicU64),
}

/// How much room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What other files may take yet.
    pub free_bytes: u64,
    /// Whether that is so little that the node takes no work.
    pub short: bool,
}

/// Room for something whose size is known before it comes. What is not written of it is given back when it is dropped.
#[derive(Debug)]
pub struct Promise {
    disk: Disk,
    left_bytes: AtomicU64,
}

impl Disk {
    /// The disk that `dir` lies on.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let disk = statvfs(dir)?;
        // Their types are not the same on every system.
        #[allow(clippy::unnecessary_cast)]
        let all_bytes = (disk.blocks() as u64).saturating_mul(disk.fragment_size() as u64);
        Ok(Self::new(System::Of(dir.to_owned()), floor_of(all_bytes)))
    }

    fn new(system: System, floor_bytes: u64) -> Self {
        let inner =
            Inner { system, floor_bytes, short: AtomicBool::new(false), promised_bytes: AtomicU64::new(0) };
        let disk = Self(Arc::new(inner));
        disk.look();
        disk
    }

    /// A disk with a floor of a mebibyte.
    #[cfg(test)]
    pub fn told(free_bytes: u64) -> Self {
        Self::new(System::Told(AtomicU64::new(free_bytes)), 1 << 20)
    }

    /// From now on so much is free.
    #[cfg(test)]
    pub fn tell(&self, bytes: u64) {
        if let System::Told(free) = &self.0.system {
            free.store(bytes, Ordering::Relaxed);
        }
        self.look();
    }

    /// Measures what is free, and says whether the node is short of room.
    pub fn look(&self) -> Room {
        let free_bytes = self.0.free_bytes();
        let limit = if self.is_short() { AMPLE_FLOORS } else { SHORT_FLOORS };
        let short = free_bytes < self.0.floor_bytes.saturating_mul(limit);
        self.0.short.store(short, Ordering::Relaxed);
        Room { free_bytes, short }
    }

    /// Whether it was short of room when it was measured last.
    pub fn is_short(&self) -> bool {
        self.0.short.load(Ordering::Relaxed)
    }

    /// Whether so many bytes may be written now of something that nobody waits for: it can be made again, and must not
    /// make a node short.
    pub fn has_to_spare(&self, bytes: u64) -> bool {
        let ample = self.0.floor_bytes.saturating_mul(AMPLE_FLOORS);
        self.0.unpromised_bytes() >= ample.saturating_add(bytes)
    }

    /// To be asked right before so many bytes are written; the error is that of a full disk.
    pub fn take(&self, bytes: u64) -> io::Result<()> {
        self.refuse_unless(self.0.unpromised_bytes(), bytes)
    }

    /// Whether so many bytes of a driver's object may be taken on.
    pub fn has_room_for_object(&self, bytes: u64) -> bool {
        let kept = self.0.floor_bytes.saturating_mul(OBJECT_FLOORS);
        self.0.unpromised_bytes() >= kept.saturating_add(bytes)
    }

    /// Takes on a driver's object of this size, or refuses it before anything of it has come.
    pub fn promise_object(&self, bytes: u64) -> Result<Promise, Failure> {
        if self.has_room_for_object(bytes) {
            return self.promise(bytes);
        }
        let message = format!(
            "the disk of this node has {} free, of which {} are kept for jobs: an object of {} has no room. Free some of \
             it, or release results that are not needed any more; objects that were not used for long go by themselves",
            amount(self.0.free_bytes()),
            amount(self.0.floor_bytes.saturating_mul(OBJECT_FLOORS)),
            amount(bytes),
        );
        Err(Failure::Busy { message, retry_ms: RETRY_MS })
    }

    /// Takes on something of this size, or refuses it before anything of it has come.
    pub fn promise(&self, bytes: u64) -> Result<Promise, Failure> {
        let busy = |free_bytes: u64| Failure::Busy {
            message: format!(
                "the disk of this node is nearly full ({} free): free some of it, or release results that are not \
                 needed any more",
                amount(free_bytes)
            ),
            retry_ms: RETRY_MS,
        };
        let room = self.look();
        if room.short {
            return Err(busy(room.free_bytes));
        }
        self.set_aside(bytes).map_err(|_| busy(room.free_bytes))
    }

    /// Takes on a job's plan of this size, like the log's entry that it goes with for as long as that is possible, or
    /// refuses it before anything of it has come.
    pub fn promise_plan(&self, bytes: u64) -> Result<Promise, Failure> {
        self.set_aside(bytes).map_err(|error| Failure::Busy {
            message: format!(
                "the mesh is full: a job's plan has no room on the disk of one of its voters: {error}"
            ),
            retry_ms: RETRY_MS,
        })
    }

    /// Sets so much aside for what runs already; the error is that of a full disk.
    pub fn set_aside(&self, bytes: u64) -> io::Result<Promise> {
        // Taken first and looked at then, so that of two who ask at once not both are taken on.
        let add = |promised: u64| promised.checked_add(bytes);
        let before = self.0.promised_bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
        // No disk is that large.
        let before = before.map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
        let promise = Promise { disk: self.clone(), left_bytes: AtomicU64::new(bytes) };
        self.refuse_unless(self.0.free_bytes(), before.saturating_add(bytes))?;
        Ok(promise)
    }

    fn refuse_unless(&self, free_bytes: u64, bytes: u64) -> io::Result<()> {
        if free_bytes >= self.0.floor_bytes.saturating_add(bytes) {
            return Ok(());
        }
        self.look();
        Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!(
                "{} are free on the disk, of which {} are kept for what the node needs to go on",
                amount(free_bytes),
                amount(self.0.floor_bytes)
            ),
        ))
    }
}

impl Inner {
    /// A disk that cannot be asked is taken for a full one: what cannot be asked cannot be written to either.
    fn free_bytes(&self) -> u64 {
        match &self.system {
            System::Of(dir) => match statvfs(dir) {
                #[allow(clippy::unnecessary_cast)]
                Ok(disk) => (disk.blocks_available() as u64).saturating_mul(disk.fragment_size() as u64),
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "the disk does not say what is free");
                    0
                }
            },
            #[cfg(test)]
            System::Told(free) => free.load(Ordering::Relaxed),
        }
    }

    fn unpromised_bytes(&self) -> u64 {
        self.free_bytes().saturating_sub(self.promised_bytes.load(Ordering::SeqCst))
    }
}

impl Promise {
    /// To be asked right before so many of its bytes are written: the disk may have been filled meanwhile, by whomever.
    pub fn take(&self, bytes: u64) -> io::Result<()> {
        let inner = &self.disk.0;
        let before = self
            .left_bytes
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(bytes)));
        let before = before.unwrap_or_default();
        inner.promised_bytes.fetch_sub(before.min(bytes), Ordering::SeqCst);
        self.disk.refuse_unless(inner.free_bytes(), bytes)
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.disk.0.promised_bytes.fetch_sub(self.left_bytes.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

/// What is left free of a disk of this size.
fn floor_of(all_bytes: u64) -> u64 {
    (all_bytes / FLOOR_PART).clamp(MIN_FLOOR_BYTES, MAX_FLOOR_BYTES)
}

fn amount(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// A file that only takes room, to be given up when a node could not go on otherwise.
#[derive(Clone, Debug)]
pub struct Reserve(PathBuf);

impl Reserve {
    /// The reserve of a data directory.
    pub fn of(dir: &Path) -> Self {
        Self(dir.join("reserve"))
    }

    /// Makes it, if it is not there and `disk` has room for it.
    pub fn make(&self, disk: &Disk) -> io::Result<()> {
        if self.0.exists() || !disk.has_to_spare(RESERVE_BYTES) {
            return Ok(());
        }
        let made = self.write();
        if made.is_err() {
            self.give_up();
        }
        made
    }

    fn write(&self) -> io::Result<()> {
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&self.0)?;
        if allocate(&file, RESERVE_BYTES).is_ok() {
            return Ok(());
        }
        // Not all file systems can allocate, and some make nothing of zeros.
        let block = [0x5a; 64 << 10];
        for _ in 0..RESERVE_BYTES / block.len() as u64 {
            file.write_all(&block)?;
        }
        file.sync_all()
    }

    /// Gives it up. False if there was none.
    pub fn give_up(&self) -> bool {
        fs::remove_file(&self.0).is_ok()
    }

    /// Does something that may find the disk full, and does it again without the reserve if it does.
    pub fn lend<T>(&self, mut write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match write() {
            Err(error) if is_full(&error) && self.give_up() => {
                tracing::warn!(%error, "the disk is full: this node goes on with what was reserved");
                write()
            }
            written => written,
        }
    }
}

/// Whether a write failed for want of room.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Has the file system set so many bytes aside for a file, from its start on. The file does not get longer by it.
#[cfg(target_os = "linux")]
pub fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    use nix::fcntl::{FallocateFlags, fallocate};
    let length = i64::try_from(bytes).map_err(io::Error::other)?;
    Ok(fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length)?)
}

/// Systems that cannot do that have the [`Reserve`] only.
#[cfg(not(target_os = "linux"))]
pub fn allocate(_: &File, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_disk_is_short_below_two_floors_and_ample_again_from_three_on() {
        let disk = Disk::told(100 * MIB);
        let mut short = |free| {
            disk.tell(free);
            disk.is_short()
        };
        assert_eq!(
            [2 * MIB, 2 * MIB - 1, 3 * MIB - 1, 3 * MIB, 2 * MIB].map(&mut short),
            [false, true, true, false, false]
        );
    }

    #[test]
    fn what_runs_may_finish_above_the_floor_and_what_is_convenient_makes_nobody_short() {
        let disk = Disk::told(10 * MIB);
        disk.take(9 * MIB).unwrap();
        let error = disk.take(9 * MIB + 1).unwrap_err();
        assert!(is_full(&error), "{error}");
        assert!(error.to_string().contains("10 MiB are free"), "{error}");
        assert!(disk.has_to_spare(7 * MIB) && !disk.has_to_spare(7 * MIB + 1));
    }

    #[test]
    fn what_was_promised_is_nobody_elses_until_it_is_written_or_given_up() {
        let disk = Disk::told(100 * MIB);
        let first = disk.promise(60 * MIB).unwrap();
        let refused = disk.promise(40 * MIB).unwrap_err();
        assert!(
            matches!(&refused, Failure::Busy { message, .. } if message.contains("nearly full")),
            "{refused}"
        );
        disk.take(40 * MIB).unwrap_err();
        assert!(disk.has_room_for_object(0) && disk.promise_object(u64::MAX).is_err());
        assert!(disk.promise(u64::MAX).is_err() && disk.promise(u64::MAX - 60 * MIB).is_err());
        let second = disk.promise(39 * MIB).unwrap();
        first.take(60 * MIB).unwrap();
        disk.tell(40 * MIB);
        second.take(39 * MIB).unwrap();
        // Filled by somebody else meanwhile.
        disk.tell(MIB);
        assert!(is_full(&second.take(1).unwrap_err()));
        drop((first, second));
        assert_eq!(disk.0.promised_bytes.load(Ordering::SeqCst), 0);
        assert!(matches!(disk.promise(0), Err(Failure::Busy { .. })), "it is short");
    }

    #[test]
    fn the_reserve_takes_its_room_and_is_lent_once() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(dir.path());
        reserve.make(&Disk::told(0)).unwrap();
        assert!(!reserve.0.exists(), "not where there is no room");
        reserve.make(&Disk::of(dir.path()).unwrap()).unwrap();
        let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&reserve.0).unwrap());
        assert!(blocks * 512 >= RESERVE_BYTES, "{blocks}");
        let mut tries = 0;
        let mut full = || -> io::Result<()> {
            tries += 1;
            Err(io::ErrorKind::StorageFull.into())
        };
        assert!(reserve.lend(&mut full).is_err() && reserve.lend(&mut full).is_err());
        assert_eq!(tries, 3);
    }

    #[test]
    fn a_small_disk_has_a_small_floor() {
        assert_eq!([0, 200 * MIB, u64::MAX].map(floor_of), [MIN_FLOOR_BYTES, 10 * MIB, MAX_FLOOR_BYTES]);
    }
}
