//! A simulated disk: what was synced survives a crash, what was not is lost, and a write that a crash
//! interrupts is there wholly, partly or not at all.
//!
//! ```text
//!   write ──> cached ──must_sync──> durable ──crash──> what the next start finds
//!                └────────crash: lost───────┘
//! ```

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use floe_consensus::{LogError, LogStore, MemoryLog, Persist};
use floe_protocol::Era;
use raft::eraftpb::{Entry, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage};

use super::node::Bug;

/// What becomes of the next write that is to be synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is written and synced.
    #[default]
    Written,
    /// The disk is full: nothing is written, and the node is told.
    Full,
    /// The machine stops before anything is on disk.
    Lost,
    /// The machine stops when this many of the entries are on disk.
    Torn(u64),
    /// The machine stops just after everything is on disk.
    Kept,
}

/// A node's log on its simulated disk.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// What the running node reads.
    cached: MemoryLog,
    /// What a crash leaves.
    durable: Rc<RefCell<MemoryLog>>,
    /// Written after the last sync.
    unsynced: Vec<Persist>,
    next: Rc<Cell<Fate>>,
    bug: Option<Bug>,
}

impl Disk {
    /// A disk as the last crash left it. `next` decides on writes from outside.
    pub(super) fn new(durable: MemoryLog, next: Rc<Cell<Fate>>, bug: Option<Bug>) -> Self {
        let cached = durable.clone();
        Self { cached, durable: Rc::new(RefCell::new(durable)), unsynced: Vec::new(), next, bug }
    }

    /// What is on disk after a crash now.
    pub(super) fn after_crash(&self) -> MemoryLog {
        self.durable.borrow().clone()
    }

    fn sync(&mut self, persist: &Persist) -> Result<(), LogError> {
        if self.bug == Some(Bug::LyingDisk) {
            return Ok(());
        }
        let mut durable = self.durable.borrow_mut();
        for earlier in std::mem::take(&mut self.unsynced) {
            durable.write(&earlier)?;
        }
        durable.write(persist)
    }
}

impl LogStore for Disk {
    fn write(&mut self, persist: &Persist) -> Result<(), LogError> {
        let fate = if persist.must_sync { self.next.replace(Fate::Written) } else { Fate::Written };
        match fate {
            Fate::Written => {}
            Fate::Full => return full(),
            Fate::Lost => return stopped(),
            Fate::Torn(entries) => {
                let torn = torn(persist, entries as usize, &self.durable.borrow())?;
                self.sync(&torn)?;
                return stopped();
            }
            Fate::Kept => {
                self.sync(persist)?;
                return stopped();
            }
        }
        self.cached.write(persist)?;
        if persist.must_sync {
            self.sync(persist)
        } else {
            self.unsynced.push(persist.clone());
            Ok(())
        }
    }

    fn restart(&self, era: Era) -> Result<Self, LogError> {
        let fate = self.next.replace(Fate::Written);
        match fate {
            Fate::Written | Fate::Kept => {}
            Fate::Full => return full(),
            Fate::Lost | Fate::Torn(_) => return stopped(),
        }
        let mut emptied = self.cached.restart(era)?;
        if self.bug == Some(Bug::ForgottenEras) {
            emptied = MemoryLog::new();
        }
        if self.bug != Some(Bug::LyingDisk) {
            *self.durable.borrow_mut() = emptied.clone();
        }
        if fate == Fate::Kept {
            return stopped();
        }
        let (durable, next) = (Rc::clone(&self.durable), Rc::clone(&self.next));
        Ok(Self { cached: emptied, durable, unsynced: Vec::new(), next, bug: self.bug })
    }

    fn left(&self) -> &[Era] {
        self.cached.left()
    }
}

fn full<T>() -> Result<T, LogError> {
    Err(LogError::Io("no space left on the disk".to_owned()))
}

fn stopped<T>() -> Result<T, LogError> {
    Err(LogError::Io("the machine stopped".to_owned()))
}

/// What is left of a write after `entries` of its entries. A snapshot is one piece: it is not there yet.
fn torn(persist: &Persist, entries: usize, durable: &MemoryLog) -> Result<Persist, LogError> {
    if persist.snapshot.is_some() {
        return Ok(Persist::default());
    }
    let kept: Vec<_> = persist.entries.iter().take(entries).cloned().collect();
    // What the log held from there on was to be replaced: it must not count as committed.
    let last = match persist.entries.first() {
        Some(first) => first.index - 1 + kept.len() as u64,
        None => durable.last_index().map_err(|error| LogError::Damaged(error.to_string()))?,
    };
    let hard_state = persist.hard_state.clone().map(|mut hard_state| {
        hard_state.commit = hard_state.commit.min(last);
        hard_state
    });
    Ok(Persist { entries: kept, hard_state, ..Persist::default() })
}

impl Storage for Disk {
    fn initial_state(&self) -> raft::Result<RaftState> {
        self.cached.initial_state()
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        self.cached.entries(low, high, max_size, context)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.cached.term(index)
    }

    fn first_index(&self) -> raft::Result<u64> {
        self.cached.first_index()
    }

    fn last_index(&self) -> raft::Result<u64> {
        self.cached.last_index()
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        self.cached.snapshot(request_index, to)
    }
}
