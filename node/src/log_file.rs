//! The durable log: Raft's entries, hard state and snapshot in one redb file.
//!
//! It is read once, at the start: then the replica has it in memory. A write is one transaction, on disk before it
//! returns; a crash leaves all of it or nothing.
//!
//! ```text
//!   log.redb   numbers   format, node, dropped_index, dropped_term
//!              records   hard_state, snapshot        (raft-rs' protobuf)
//!                        left                        (eras that the node has left)
//!              entries   index -> entry              (likewise)
//! ```

mod backend;

use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use self::backend::LogBackend;
use crate::disk::Reserve;
use crate::private;
use floe_consensus::Written;
use floe_consensus::log::{LogError, LogParts, MemoryLog, Persist};
use floe_protocol::{Era, NodeId, frame};
use protobuf::Message;
use raft::eraftpb::{Entry, HardState, Snapshot};
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition, TableError,
    WriteTransaction,
};

/// What a log's name ends with until it is complete, so that a crash at the first start leaves no half-made
/// one.
const NEW_EXTENSION: &str = "redb.new";

/// The format that this version writes and reads.
const FORMAT: u64 = 2;

/// redb's cache: entries are read once, at the start, so it only helps writes.
const CACHE_BYTES: usize = 4 << 20;

/// The entries of an empty log.
#[expect(clippy::reversed_empty_ranges, reason = "that is what is meant")]
const NOTHING: RangeInclusive<u64> = 1..=0;

const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds it.
    #[error("another floe up runs on the data directory {}: stop it, or choose another with --data-dir", .0.display())]
    Locked(PathBuf),
    /// It is not what a node wrote.
    #[error("the log {} is damaged ({why}): remove the data directory to start as a new node; an older copy of it would not know what this node has promised since", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another node wrote it.
    #[error("the log {} is that of node {owner}, and this is node {node}: put each node's files back together, or remove the data directory to start as a new node", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: NodeId,
        /// Whose it should be.
        node: NodeId,
    },
    /// An earlier version wrote it.
    #[error("the log {} was written by an older floe (format {found}, this one reads {FORMAT}): remove the data directory to start as a new node, or let the older one finish its jobs first", path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// A later version wrote it.
    #[error("the log {} was written by a newer floe (format {found}, this one reads up to {FORMAT}): update floe", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The operating system said no.
    #[error("cannot open the log {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A replica's log on disk.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Database,
    /// The indexes of the entries that it holds.
    held: RangeInclusive<u64>,
    /// Why a write failed. What was to be written is missing then, so nothing more is.
    failed: Option<String>,
}

impl LogFile {
    /// Opens the log at `path`, in a data directory, or begins one; and reads it.
    ///
    /// It is `node`'s: what a node has promised in its log, no other may promise or break.
    pub fn open(path: &Path, node: NodeId) -> Result<(Self, MemoryLog), Error> {
        let path = path.to_owned();
        if !path.try_exists().map_err(|source| Error::Io { path: path.clone(), source })? {
            begin(&path)?;
        }
        let file = open_file(&path)?;
        let damaged = |why: String| Error::Damaged { path: path.clone(), why };
        let parts = match read(&file) {
            Ok(parts) => parts,
            Err(ReadError::Older(found)) => return Err(Error::Older { path, found }),
            Err(ReadError::Newer(found)) => return Err(Error::Newer { path, found }),
            Err(ReadError::Damaged(why)) => return Err(damaged(why)),
        };
        let memory = MemoryLog::from_parts(parts).map_err(|error| damaged(error.to_string()))?;
        // Only now that it is known to be a log.
        if let Some(owner) = own(&file, node).map_err(|error| damaged(error.to_string()))? {
            return Err(Error::Foreign { path, owner, node });
        }
        let parts = memory.parts();
        let held = parts.dropped_index + 1..=parts.dropped_index + parts.entries.len() as u64;
        Ok((Self { path, file, held, failed: None }, memory))
    }

    /// Writes all of `persist`, or nothing and an error. When it returns, the write survives a crash. After an error the
    /// log takes no more writes: the node must stop, and start from what the file holds.
    pub fn write(&mut self, persist: &Persist) -> Result<Written, LogError> {
        if let Some(failed) = &self.failed {
            return Err(LogError::Io(failed.clone()));
        }
        let checkpoint = persist.checkpoint.as_ref().map(|checkpoint| checkpoint.encode()).transpose();
        let written = checkpoint.and_then(|checkpoint| {
            self.held = self
                .save(persist, checkpoint.as_ref())
                .map_err(|error| LogError::Io(format!("{}: {error}", self.path.display())))?;
            Ok(Written { checkpoint })
        });
        if let Err(error) = &written {
            self.failed = Some(error.to_string());
        }
        written
    }

    /// Writes what `persist` changes, and says which entries the file holds then.
    fn save(
        &self,
        persist: &Persist,
        checkpoint: Option<&Snapshot>,
    ) -> Result<RangeInclusive<u64>, redb::Error> {
        let mut held = self.held.clone();
        let mut transaction = self.file.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        if let Some(left) = &persist.left {
            empty(&transaction, left)?;
            held = NOTHING;
        }
        {
            let mut entries = transaction.open_table(ENTRIES)?;
            let mut records = transaction.open_table(RECORDS)?;
            let mut numbers = transaction.open_table(NUMBERS)?;
            if let Some(snapshot) = &persist.snapshot {
                let (index, term) = (snapshot.get_metadata().index, snapshot.get_metadata().term);
                entries.retain(|_, _| false)?;
                records.insert("snapshot", encode(snapshot)?.as_slice())?;
                numbers.insert("dropped_index", index)?;
                numbers.insert("dropped_term", term)?;
                held = index + 1..=index;
            }
            if let Some(first) = persist.entries.first() {
                for index in first.index..=*held.end() {
                    entries.remove(index)?;
                }
                for entry in &persist.entries {
                    entries.insert(entry.index, encode(entry)?.as_slice())?;
                }
                held = *held.start()..=first.index + persist.entries.len() as u64 - 1;
            }
            if let Some(hard_state) = &persist.hard_state {
                records.insert("hard_state", encode(hard_state)?.as_slice())?;
            }
            if let (Some(snapshot), Some(checkpoint)) = (checkpoint, &persist.checkpoint) {
                let (dropped_index, dropped_term) = checkpoint.dropped;
                for index in *held.start()..=dropped_index {
                    entries.remove(index)?;
                }
                records.insert("snapshot", encode(snapshot)?.as_slice())?;
                numbers.insert("dropped_index", dropped_index)?;
                numbers.insert("dropped_term", dropped_term)?;
                held = dropped_index + 1..=*held.end();
            }
        }
        transaction.commit()?;
        Ok(held)
    }
}

/// Removes all but what is remembered of eras that were left.
fn empty(transaction: &WriteTransaction, left: &[Era]) -> Result<(), redb::Error> {
    transaction.open_table(ENTRIES)?.retain(|_, _| false)?;
    let mut records = transaction.open_table(RECORDS)?;
    records.retain(|_, _| false)?;
    let left = frame::encode(&left).map_err(|error| redb::Error::Io(io::Error::other(error)))?;
    records.insert("left", left.as_slice())?;
    transaction.open_table(NUMBERS)?.retain(|name, _| matches!(name, "format" | "node"))?;
    Ok(())
}

/// Makes an empty log under another name and puts it in place when it is on disk.
fn begin(path: &Path) -> Result<(), Error> {
    let new = path.with_extension(NEW_EXTENSION);
    let io_error = |source| Error::Io { path: new.clone(), source };
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(error)),
        _ => {}
    }
    let write = || -> Result<(), redb::Error> {
        let file = private::options().read(true).write(true).create_new(true).open(&new)?;
        let backend = LogBackend::new(file, Reserve::of(directory(path)))?;
        let file = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)?;
        let transaction = file.begin_write()?;
        transaction.open_table(NUMBERS)?.insert("format", FORMAT)?;
        transaction.open_table(RECORDS)?;
        transaction.open_table(ENTRIES)?;
        transaction.commit()?;
        Ok(())
    };
    write().map_err(|error| match error {
        redb::Error::Io(source) => io_error(source),
        other => io_error(io::Error::other(other)),
    })?;
    fs::rename(&new, path).map_err(io_error)?;
    // The name must be on disk too.
    File::open(directory(path)).and_then(|dir| dir.sync_all()).map_err(io_error)
}

/// Makes the log this node's, if it is nobody's yet. Returns whose it is otherwise.
fn own(file: &Database, node: NodeId) -> Result<Option<NodeId>, redb::Error> {
    let transaction = file.begin_write()?;
    let owner = {
        let mut numbers = transaction.open_table(NUMBERS)?;
        let owner = numbers.get("node")?.map(|found| NodeId(found.value()));
        if owner.is_none() {
            numbers.insert("node", node.0)?;
        }
        owner
    };
    transaction.commit()?;
    Ok(owner.filter(|owner| *owner != node))
}

/// The directory that a log lies in.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Opens a log that exists, with every page's checksum compared: redb trusts a file otherwise, and may panic
/// on what it finds later.
fn open_file(path: &Path) -> Result<Database, Error> {
    let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
    match fs::metadata(path) {
        Ok(found) if found.len() == 0 => return Err(damaged("it is empty".to_owned())),
        Ok(_) => {}
        Err(source) => {
            return Err(Error::Io { path: path.to_owned(), source });
        }
    }
    let opened = catch_unwind(|| {
        let file = private::options().read(true).write(true).open(path)?;
        private::restrict(path, 0o600)?;
        let backend = LogBackend::new(file, Reserve::of(directory(path)))?;
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create_with_backend(backend)
    });
    match opened {
        Ok(Ok(file)) => Ok(file),
        Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => Err(Error::Locked(directory(path).to_owned())),
        Ok(Err(DatabaseError::Storage(redb::StorageError::Io(source)))) if !tells_damage(&source) => {
            Err(Error::Io { path: path.to_owned(), source })
        }
        Ok(Err(error)) => Err(damaged(error.to_string())),
        Err(_) => Err(damaged("it cannot be read".to_owned())),
    }
}

/// Whether redb uses this error to say what it thinks of the file's content.
fn tells_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput
    )
}

enum ReadError {
    Older(u64),
    Newer(u64),
    Damaged(String),
}

impl<E: Into<redb::Error>> From<E> for ReadError {
    fn from(error: E) -> Self {
        Self::Damaged(error.into().to_string())
    }
}

fn read(file: &Database) -> Result<LogParts, ReadError> {
    let transaction = file.begin_read()?;
    let numbers = transaction.open_table(NUMBERS).map_err(not_a_log)?;
    let number = |name| -> Result<u64, ReadError> { Ok(numbers.get(name)?.map_or(0, |found| found.value())) };
    // Of a newer format only this much is known.
    match number("format")? {
        FORMAT => {}
        0 => return Err(ReadError::Damaged("it does not say its format".to_owned())),
        found if found < FORMAT => return Err(ReadError::Older(found)),
        found => return Err(ReadError::Newer(found)),
    }
    let records = transaction.open_table(RECORDS).map_err(not_a_log)?;
    let hard_state =
        records.get("hard_state")?.map(|found| decode::<HardState>(found.value())).transpose()?;
    let snapshot = records.get("snapshot")?.map(|found| decode::<Snapshot>(found.value())).transpose()?;
    let left = match records.get("left")? {
        Some(found) => {
            frame::decode(found.value()).map_err(|error| ReadError::Damaged(format!("eras left: {error}")))?
        }
        None => Vec::new(),
    };
    let mut entries = Vec::new();
    for found in transaction.open_table(ENTRIES).map_err(not_a_log)?.iter()? {
        let (index, bytes) = found?;
        let entry = decode::<Entry>(bytes.value())?;
        if entry.index != index.value() {
            let why = format!("entry {} is kept as entry {}", entry.index, index.value());
            return Err(ReadError::Damaged(why));
        }
        entries.push(entry);
    }
    Ok(LogParts {
        hard_state: hard_state.unwrap_or_default(),
        snapshot: snapshot.unwrap_or_default(),
        dropped_index: number("dropped_index")?,
        dropped_term: number("dropped_term")?,
        entries,
        left,
    })
}

fn not_a_log(error: TableError) -> ReadError {
    ReadError::Damaged(format!("it is a database, but no log: {error}"))
}

fn decode<M: Message>(bytes: &[u8]) -> Result<M, ReadError> {
    M::parse_from_bytes(bytes).map_err(|error| ReadError::Damaged(error.to_string()))
}

fn encode(message: &impl Message) -> Result<Vec<u8>, redb::Error> {
    message.write_to_bytes().map_err(|error| redb::Error::Io(io::Error::other(error)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use floe_consensus::{Checkpoint, StateMachine};
    use proptest::prelude::*;
    use raft::Storage;
    use tempfile::TempDir;

    use super::*;

    const NODE: NodeId = NodeId(5);

    fn path_in(dir: &TempDir) -> PathBuf {
        dir.path().join("log.redb")
    }

    fn entries(range: RangeInclusive<u64>, term: u64) -> Vec<Entry> {
        range
            .map(|index| Entry { index, term, data: vec![index as u8; 100].into(), ..Entry::default() })
            .collect()
    }

    fn hard_state(term: u64, commit: u64) -> Option<HardState> {
        Some(HardState { term, vote: 3, commit, ..HardState::default() })
    }

    fn snapshot(index: u64, term: u64) -> Option<Snapshot> {
        let mut snapshot = Snapshot { data: vec![7; 1000].into(), ..Snapshot::default() };
        snapshot.mut_metadata().index = index;
        snapshot.mut_metadata().term = term;
        snapshot.mut_metadata().mut_conf_state().voters = vec![1, 2, 3];
        Some(snapshot)
    }

    /// A log's file, and what memory must hold of it.
    struct Log {
        file: LogFile,
        memory: MemoryLog,
    }

    impl Log {
        fn open(path: &Path) -> Self {
            let (file, memory) = LogFile::open(path, NODE).unwrap();
            Self { file, memory }
        }

        fn write(&mut self, persist: Persist) {
            let written = self.file.write(&persist).unwrap();
            self.memory.write(&persist).unwrap();
            if let (Some(snapshot), Some(checkpoint)) = (written.checkpoint, persist.checkpoint) {
                self.memory.checkpointed(snapshot, checkpoint.dropped, false);
            }
        }

        /// The log after a restart, which must be what it was.
        fn reopen(self) -> Self {
            let path = self.file.path.clone();
            drop(self.file);
            let log = Self::open(&path);
            assert_eq!(log.memory.parts(), self.memory.parts());
            log
        }
    }

    /// A checkpoint of this much of a log.
    fn checkpoint(log: &MemoryLog, index: u64, dropped: u64) -> Persist {
        let metadata = snapshot(index, log.term(index).unwrap()).unwrap().take_metadata();
        let dropped = (dropped, log.term(dropped).unwrap());
        let checkpoint = Checkpoint::new(StateMachine::default(), metadata, dropped);
        Persist { checkpoint: Some(checkpoint), ..Persist::default() }
    }

    fn kept(log: &MemoryLog) -> Vec<(u64, u64)> {
        log.parts().entries.iter().map(|entry| (entry.index, entry.term)).collect()
    }

    #[test]
    fn the_log_of_another_node_is_refused_by_name_and_left_alone() {
        let dir = TempDir::new().unwrap();
        drop(LogFile::open(&path_in(&dir), NODE).unwrap());
        let error = LogFile::open(&path_in(&dir), NodeId(6)).unwrap_err();
        assert!(matches!(error, Error::Foreign { owner: NODE, .. }), "{error}");
        let mut log = Log::open(&path_in(&dir));
        let era = Era { mesh: floe_protocol::MeshId(1), epoch: 1, founder: NODE };
        log.write(Persist { entries: entries(1..=2, 1), hard_state: hard_state(1, 1), ..Persist::default() });
        log.write(Persist { left: Some(vec![era]), ..Persist::default() });
        let log = log.reopen();
        assert_eq!((log.memory.left(), kept(&log.memory)), (&[era][..], Vec::new()));
        drop(log);
        // Also after it was emptied.
        assert!(matches!(LogFile::open(&path_in(&dir), NodeId(6)), Err(Error::Foreign { .. })));
    }

    #[test]
    fn what_was_written_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(&path_in(&dir)).reopen();
        assert!(log.memory.is_empty());
        log.write(Persist { entries: entries(1..=4, 1), hard_state: hard_state(1, 2), ..Persist::default() });
        let mut log = log.reopen();
        assert!(!log.memory.is_empty());

        // A conflicting tail is replaced.
        log.write(Persist { entries: entries(3..=3, 2), hard_state: hard_state(2, 2), ..Persist::default() });
        let mut log = log.reopen();
        assert_eq!(kept(&log.memory), [(1, 1), (2, 1), (3, 2)]);

        // A checkpoint keeps what follows it; what it holds may be dropped.
        log.write(Persist { entries: entries(4..=6, 2), hard_state: hard_state(2, 6), ..Persist::default() });
        log.write(checkpoint(&log.memory, 5, 4));
        let mut log = log.reopen();
        assert_eq!(kept(&log.memory), [(5, 2), (6, 2)]);
        assert_eq!(log.memory.initial_state().unwrap().conf_state.voters, [1, 2, 3]);

        // A snapshot replaces the log, and entries may come with it.
        log.write(Persist {
            snapshot: snapshot(5, 3),
            entries: entries(6..=7, 3),
            hard_state: hard_state(3, 6),
            ..Persist::default()
        });
        let log = log.reopen();
        assert_eq!(kept(&log.memory), [(6, 3), (7, 3)]);
        assert_eq!((log.memory.first_index().unwrap(), log.memory.term(5).unwrap()), (6, 3));
    }

    #[test]
    fn a_write_that_cannot_be_is_refused_and_so_is_every_later_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(&path_in(&dir));
        log.write(Persist { entries: entries(1..=2, 1), hard_state: hard_state(1, 0), ..Persist::default() });
        log.file.failed = Some("the disk is full".to_owned());
        let third = Persist { entries: entries(3..=3, 1), ..Persist::default() };
        log.file.write(&third).unwrap_err();
        log.reopen();
    }

    #[test]
    fn a_second_process_is_told_who_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let _log = LogFile::open(&path_in(&dir), NODE).unwrap();
        let error = LogFile::open(&path_in(&dir), NODE).unwrap_err();
        assert!(matches!(error, Error::Locked(_)), "{error:?}");
        let place = dir.path().display().to_string();
        assert!(error.to_string().contains(&format!("another floe up runs on the data directory {place}")));
    }

    #[test]
    fn what_is_no_log_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_in(&dir);
        let mut log = Log::open(&path_in(&dir));
        log.write(Persist {
            entries: entries(1..=200, 1),
            hard_state: hard_state(1, 200),
            ..Persist::default()
        });
        drop(log);
        let whole = fs::read(&path).unwrap();
        let cut = whole[..whole.len() / 2].to_vec();
        let mut garbled = whole.clone();
        for byte in garbled.iter_mut().skip(4096) {
            *byte ^= 0x5a;
        }
        for damaged in [Vec::new(), b"x".to_vec(), vec![0; 8192], vec![0xff; 100_000], cut, garbled] {
            fs::write(&path, &damaged).unwrap();
            let error = LogFile::open(&path_in(&dir), NODE).unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }), "{} bytes: {error:?}", damaged.len());
            let sentence = error.to_string();
            assert!(
                sentence.contains(&path.display().to_string())
                    && sentence.contains("remove the data directory"),
                "{sentence}"
            );
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(kept(&Log::open(&path_in(&dir)).memory).len(), 200);
    }

    #[test]
    fn other_formats_and_another_database_are_told_apart_from_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = LogFile::open(&path_in(&dir), NODE).unwrap();
        let set_format = |file: &Database, format| {
            let transaction = file.begin_write().unwrap();
            transaction.open_table(NUMBERS).unwrap().insert("format", format).unwrap();
            transaction.commit().unwrap();
        };
        set_format(&log.file, 7);
        drop(log);
        let error = LogFile::open(&path_in(&dir), NODE).unwrap_err();
        assert!(matches!(error, Error::Newer { found: 7, .. }), "{error:?}");
        assert!(error.to_string().contains("update floe"), "{error}");
        set_format(&Database::open(path_in(&dir)).unwrap(), 1);
        let error = LogFile::open(&path_in(&dir), NODE).unwrap_err();
        assert!(matches!(error, Error::Older { found: 1, .. }), "{error:?}");

        fs::remove_file(path_in(&dir)).unwrap();
        drop(Database::create(path_in(&dir)).unwrap());
        let error = LogFile::open(&path_in(&dir), NODE).unwrap_err();
        assert!(error.to_string().contains("no log"), "{error}");
    }

    #[test]
    fn a_log_half_made_at_the_first_start_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(path_in(&dir).with_extension(NEW_EXTENSION), "half").unwrap();
        assert!(Log::open(&path_in(&dir)).memory.is_empty());
        assert!(!path_in(&dir).with_extension(NEW_EXTENSION).exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever Raft writes, a restart finds what memory held.
        #[test]
        fn file_and_memory_agree(steps in prop::collection::vec((0u8..4, 0u64..6, 1u64..6), 1..12)) {
            let dir = tempfile::tempdir().unwrap();
            let mut log = Log::open(&path_in(&dir));
            let mut term = 1;
            for (kind, back, count) in steps {
                let (first, last) = (log.memory.first_index().unwrap(), log.memory.last_index().unwrap());
                let from = (last + 1).saturating_sub(back).max(first);
                let persist = match kind {
                    // Append, perhaps over a conflicting tail.
                    0 | 1 => {
                        term += u64::from(back > 0);
                        let commit = log.memory.parts().hard_state.commit.min(from - 1);
                        Persist { entries: entries(from..=from + count - 1, term), hard_state: hard_state(term, commit), ..Persist::default() }
                    }
                    // A checkpoint.
                    2 if last >= first => checkpoint(&log.memory, from.min(last), from.min(last) - 1),
                    // A snapshot.
                    _ => {
                        term += 1;
                        Persist { snapshot: snapshot(last + count, term), hard_state: hard_state(term, last + count), ..Persist::default() }
                    }
                };
                // Raft does not take back what it committed, and a snapshot is committed.
                let held = log.memory.parts().snapshot.get_metadata().index;
                if persist.entries.first().is_some_and(|entry| entry.index <= held)
                    || persist.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.index() <= held)
                {
                    continue;
                }
                log.write(persist);
            }
            log.reopen();
        }
    }
}
