//! A snapshot that a replica takes of its own state. To take one is quick; to write it out is not, so that is left to
//! whoever writes the log.

use raft::eraftpb::{Snapshot, SnapshotMetadata};

use crate::log::LogError;
use crate::state_machine::StateMachine;

/// The state at one index, and which entries need not be kept with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    state: StateMachine,
    metadata: SnapshotMetadata,
    /// Index and term of the last entry that may be dropped, 0 if none may.
    pub dropped: (u64, u64),
}

impl Checkpoint {
    /// The state at the place in the log that `metadata` names.
    pub fn new(state: StateMachine, metadata: SnapshotMetadata, dropped: (u64, u64)) -> Self {
        Self { state, metadata, dropped }
    }

    /// The last entry that the state holds.
    pub fn index(&self) -> u64 {
        self.metadata.index
    }

    /// The snapshot in its encoding, which may take a tenth of a second and more.
    pub fn encode(&self) -> Result<Snapshot, LogError> {
        let data = self.state.snapshot().map_err(|error| LogError::Damaged(error.to_string()))?;
        let mut snapshot = Snapshot { data: data.into(), ..Snapshot::default() };
        snapshot.set_metadata(self.metadata.clone());
        Ok(snapshot)
    }
}
