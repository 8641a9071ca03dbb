//! A simulated disk: what was synced survives a crash, what is under way is lost, and a write that a crash interrupts
//! is there wholly, partly or not at all.
//!
//! ```text
//!   begin ──> under way ──after some time: end──> durable ──crash──> what the next start finds
//!                  └──────crash: lost, torn or kept──┘
//! ```

use floe_consensus::{LogError, LogParts, MemoryLog, Persist, Written};
use raft::Storage as _;

use super::dice::Dice;
use super::node::Bug;

/// What becomes of the next write.
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

/// A write takes up to so long, unless the disk is slow.
pub(super) const WRITE_MS: u64 = 4;

/// A machine's disk, as far as its node's log is on it.
#[derive(Debug)]
pub(super) struct Disk {
    durable: MemoryLog,
    under_way: Option<Persist>,
    pub(super) next: Fate,
    /// How long a write takes at most.
    pub(super) write_ms: u64,
    bug: Option<Bug>,
}

impl Disk {
    /// An empty one.
    pub(super) fn new(bug: Option<Bug>) -> Self {
        Self { durable: MemoryLog::new(), under_way: None, next: Fate::Written, write_ms: WRITE_MS, bug }
    }

    /// What is on it.
    pub(super) fn durable(&self) -> &MemoryLog {
        &self.durable
    }

    /// What the next start finds.
    pub(super) fn read(&self) -> Result<MemoryLog, LogError> {
        MemoryLog::from_parts(self.durable.parts().clone())
    }

    /// A copy of what is on it.
    pub(super) fn copy(&self) -> LogParts {
        self.durable.parts().clone()
    }

    /// A copy takes the place of what is on it.
    pub(super) fn put_back(&mut self, copy: LogParts) -> Result<(), LogError> {
        self.durable = MemoryLog::from_parts(copy)?;
        Ok(())
    }

    /// A write begins.
    pub(super) fn begin(&mut self, persist: Persist) {
        self.under_way = Some(persist);
    }

    /// The write under way is done: what the node is told, or why its machine stops.
    pub(super) fn end(&mut self) -> Result<Option<Written>, LogError> {
        let Some(persist) = self.under_way.take() else { return Ok(None) };
        match std::mem::take(&mut self.next) {
            Fate::Written => self.write(&persist).map(Some),
            Fate::Full => Err(LogError::Io("no space left on the disk".to_owned())),
            Fate::Lost => stopped(),
            Fate::Torn(entries) => {
                self.tear(&persist, entries as usize)?;
                stopped()
            }
            Fate::Kept => {
                self.write(&persist)?;
                stopped()
            }
        }
    }

    /// The machine stops, whatever is under way.
    pub(super) fn crash(&mut self, dice: &mut Dice) -> Result<(), LogError> {
        let Some(persist) = self.under_way.take() else { return Ok(()) };
        match dice.between(0..=3) {
            0 => self.write(&persist).map(drop),
            1 => self.tear(&persist, dice.between(0..=3) as usize),
            _ => Ok(()),
        }
    }

    fn write(&mut self, persist: &Persist) -> Result<Written, LogError> {
        let checkpoint = persist.checkpoint.as_ref().map(|checkpoint| checkpoint.encode()).transpose()?;
        if self.bug == Some(Bug::LyingDisk) {
            return Ok(Written { checkpoint });
        }
        self.durable.write(persist)?;
        if let (Some(snapshot), Some(of)) = (&checkpoint, &persist.checkpoint) {
            self.durable.checkpointed(snapshot.clone(), of.dropped, false);
        }
        if self.bug == Some(Bug::ForgottenEras) && persist.left.is_some() {
            self.durable = MemoryLog::new();
        }
        Ok(Written { checkpoint })
    }

    /// Writes so many of the entries. A snapshot, and what is left of a log, are one piece: they are not there yet.
    fn tear(&mut self, persist: &Persist, entries: usize) -> Result<(), LogError> {
        if self.bug == Some(Bug::LyingDisk) || persist.snapshot.is_some() || persist.left.is_some() {
            return Ok(());
        }
        let kept: Vec<_> = persist.entries.iter().take(entries).cloned().collect();
        // What the log held from there on was to be replaced: it must not count as committed.
        let last = match persist.entries.first() {
            Some(first) => first.index - 1 + kept.len() as u64,
            None => self.durable.last_index().map_err(|error| LogError::Damaged(error.to_string()))?,
        };
        let hard_state = persist.hard_state.clone().map(|mut hard_state| {
            hard_state.commit = hard_state.commit.min(last);
            hard_state
        });
        self.durable.write(&Persist { entries: kept, hard_state, ..Persist::default() })
    }
}

fn stopped<T>() -> Result<T, LogError> {
    Err(LogError::Io("the machine stopped".to_owned()))
}
