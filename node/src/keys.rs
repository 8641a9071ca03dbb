//! This node's mesh key: which one counts by what the mesh has agreed on, and the files in which it lies.
//!
//! ```text
//!   replicated state ──follow──> gate: the key, the former one, invitations, who is kept out
//!                                  └─if the key is another──> this machine's nodes, then its files
//! ```
//!
//! A file is written only where it holds a key that the present one follows on, so that nothing else is lost. What
//! cannot be written is no harm to this node, whose log leads from the former key to the present one.

use std::path::{Path, PathBuf};

use floe_consensus::StateMachine;
use floe_consensus::state_machine::{FormerKey, Rotation};
use floe_network::Network;
use floe_protocol::{Failure, KeyName, Secret};
use floe_transport::gate::Former;
use floe_transport::{Gate, MeshKey};

use crate::data_dir;

/// A mesh key, and where it was read.
#[derive(Clone, Debug)]
pub struct KeySource {
    /// The key.
    pub key: MeshKey,
    /// Files that hold it: when the mesh changes it, they are to hold the new one.
    pub files: Vec<PathBuf>,
}

/// The node's keys, and whom it lets in.
#[derive(Debug)]
pub struct Keys {
    gate: Gate,
    files: Vec<PathBuf>,
}

/// A key that was changed: whoever reads it from a file is to find the new one there.
#[derive(Debug)]
pub struct Changed {
    key: MeshKey,
    former: Vec<KeyName>,
    files: Vec<PathBuf>,
}

impl Keys {
    /// The keys of a node that starts with this one.
    pub fn new(source: KeySource) -> Self {
        Self { gate: Gate::new(source.key), files: source.files }
    }

    /// Whom the node lets in.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Follows what the mesh has agreed on.
    pub fn follow(&self, state: &StateMachine) -> Option<Changed> {
        let door = state.door();
        let (key, former) = present(self.gate.key(), door.rotations().iter());
        let before = door.rotations().iter().find(|rotation| rotation.to == key.name());
        let before = before.and_then(|rotation| former_of(&key, rotation));
        let only = match door.former() {
            FormerKey::Anybody => Some(None),
            FormerKey::Members => Some(Some(state.members().keys().copied().collect())),
            FormerKey::Nobody => None,
        };
        let before = before.zip(only).map(|(key, only)| Former { key, only });
        let invitations = door.invitations().iter();
        let invitations =
            invitations.map(|(id, invitation)| (*id, MeshKey::from_bytes(invitation.verifier.0))).collect();
        let forgotten = door.forgotten().clone();
        let present = key.clone();
        self.gate.change(|rules| {
            (rules.key, rules.former) = (present, before);
            (rules.invitations, rules.forgotten) = (invitations, forgotten);
        });
        (!former.is_empty()).then(|| Changed { key, former, files: self.files.clone() })
    }
}

impl Changed {
    /// Tells this machine's nodes and drivers.
    pub async fn tell(self, network: Network) {
        tracing::warn!(key = self.key.fingerprint(), "the mesh key was changed (`floe key rotate`)");
        // First of all, so that whoever reads the new key finds a node by it.
        network.rekeyed().await;
        let written = tokio::task::spawn_blocking(move || self.write());
        if written.await.is_err() {
            tracing::error!("the new mesh key was not written to its files: see the messages before");
        }
    }

    fn write(&self) {
        for file in &self.files {
            match self.write_to(file) {
                Ok(true) => tracing::info!(file = %file.display(), "the file holds the new mesh key"),
                Ok(false) => {}
                Err(error) => tracing::warn!(
                    "{} still holds the former mesh key, since the new one cannot be written there: {error}; copy it \
                     from another node's key file",
                    file.display()
                ),
            }
        }
    }

    /// Whether it held a former key, and holds the new one now.
    fn write_to(&self, file: &Path) -> Result<bool, data_dir::Error> {
        if !file.exists() {
            return Ok(false);
        }
        // A link stays one.
        let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        if !self.former.contains(&data_dir::read_key(&file)?.name()) {
            return Ok(false);
        }
        data_dir::write_key(&file, &self.key).map(|()| true)
    }
}

/// The key that follows on this one by these changes, and what the keys before it were called.
fn present<'a>(mut key: MeshKey, rotations: impl Iterator<Item = &'a Rotation>) -> (MeshKey, Vec<KeyName>) {
    let mut former = Vec::new();
    for rotation in rotations {
        let next = key.successor(&rotation.salt.0);
        if key.name() == rotation.from && next.name() == rotation.to {
            former.push(rotation.from);
            key = next;
        }
    }
    (key, former)
}

/// The key before this one.
fn former_of(key: &MeshKey, rotation: &Rotation) -> Option<MeshKey> {
    let sealed = MeshKey::from_bytes(rotation.sealed.0);
    let former = MeshKey::from_bytes(key.sealed(&sealed, &rotation.salt.0));
    (former.name() == rotation.from).then_some(former)
}

/// A change of this key to a new one, for the mesh to agree on.
pub fn rotation(key: &MeshKey) -> Result<Rotation, Failure> {
    let mut salt = [0; 32];
    getrandom::fill(&mut salt).map_err(Failure::internal)?;
    let next = key.successor(&salt);
    let sealed = Secret(next.sealed(key, &salt));
    Ok(Rotation { from: key.name(), to: next.name(), salt: Secret(salt), sealed })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use floe_consensus::{Command, Entry};
    use floe_protocol::RequestId;

    use super::*;

    fn rotated(state: &mut StateMachine, rotation: &Rotation) {
        let index = state.applied() + 1;
        let request = RequestId(index.into());
        state.apply(index, &Entry { request, command: Command::RotateKey(rotation.clone()) });
    }

    #[test]
    fn a_node_follows_the_changes_it_missed_and_one_that_has_the_new_key_knows_the_former() {
        let first = MeshKey::generate();
        let one = rotation(&first).unwrap();
        let second = first.successor(&one.salt.0);
        let two = rotation(&second).unwrap();
        let third = second.successor(&two.salt.0);
        let mut state = StateMachine::default();
        rotated(&mut state, &one);
        rotated(&mut state, &two);
        for (start, missed) in [(&first, 2), (&second, 1), (&third, 0)] {
            let keys = Keys::new(KeySource { key: start.clone(), files: Vec::new() });
            let changed = keys.follow(&state).map_or(0, |changed| changed.former.len());
            assert_eq!((keys.gate().key(), changed), (third.clone(), missed));
            assert_eq!(keys.gate().former(), Some(second.name()));
            assert!(keys.follow(&state).is_none(), "it is no news any more");
        }
        // Whoever never held any of them learns nothing.
        let stranger = MeshKey::generate();
        let keys = Keys::new(KeySource { key: stranger.clone(), files: Vec::new() });
        assert!(keys.follow(&state).is_none());
        assert_eq!((keys.gate().key(), keys.gate().former()), (stranger, None));
        // Nor does what is agreed on tell the key.
        let text = |key: &MeshKey| key.to_bytes();
        for rotation in [&one, &two] {
            assert!(
                [&first, &second, &third]
                    .iter()
                    .all(|key| { rotation.salt.0 != text(key) && rotation.sealed.0 != text(key) })
            );
        }
    }

    #[test]
    fn only_files_that_hold_a_former_key_are_written_and_stay_private() {
        let dir = tempfile::tempdir().unwrap();
        let (first, other) = (MeshKey::generate(), MeshKey::generate());
        let [own, link, foreign, missing] =
            ["own", "link", "foreign", "missing"].map(|name| dir.path().join(name));
        data_dir::write_key(&own, &first).unwrap();
        data_dir::write_key(&foreign, &other).unwrap();
        std::os::unix::fs::symlink(&own, &link).unwrap();
        let files = vec![link.clone(), foreign.clone(), missing.clone()];
        let keys = Keys::new(KeySource { key: first.clone(), files });
        let mut state = StateMachine::default();
        rotated(&mut state, &rotation(&first).unwrap());
        keys.follow(&state).unwrap().write();
        assert_eq!(data_dir::read_key(&own).unwrap(), keys.gate().key());
        assert_eq!(own.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(link.is_symlink() && !missing.exists());
        assert_eq!(data_dir::read_key(&foreign).unwrap(), other);
    }
}
