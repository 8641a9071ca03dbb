//! This node's mesh key: which one counts by what the mesh has agreed on, and the files in which it lies.
//!
//! ```text
//!   replicated state ──follow──> gate: the key, former ones, members, invitations, who is kept out
//!                                  └─if the key is another──> this machine's nodes, then its files
//! ```
//!
//! A file is written only where it holds a key that the changes lead from to the present one, so that nothing else is
//! lost. What cannot be written is no harm to this node, whose log leads from the former key to the present one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use floe_consensus::StateMachine;
use floe_consensus::state_machine::{Door, FormerKey, Invitation, MAX_ROTATIONS, Rotation};
use floe_network::Network;
use floe_protocol::{Failure, KeyName, Secret};
use floe_transport::gate::{Former, Invited, MAX_FORMER, Over};
use floe_transport::{Gate, MeshKey};

use crate::data_dir;

// A member that missed all of the changes comes with the key before the first.
const _: () = assert!(MAX_ROTATIONS <= MAX_FORMER);

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
        let own = self.gate.key();
        let mut known = reached(&own, door);
        let present = door.key().and_then(|name| known.remove(&name));
        let former = if present.is_some() { former_keys(&known, door) } else { Vec::new() };
        let key = present.unwrap_or_else(|| own.clone());
        let members = state.members().keys().copied().collect();
        let invitations = door.invitations().iter();
        let invitations = invitations.map(|(id, invitation)| (*id, invited(invitation))).collect();
        let forgotten = door.forgotten().clone();
        let present = key.clone();
        self.gate.change(|rules| {
            (rules.key, rules.former, rules.members) = (present, former, members);
            (rules.invitations, rules.forgotten) = (invitations, forgotten);
        });
        let former = known.into_keys().collect();
        (key != own).then(|| Changed { key, former, files: self.files.clone() })
    }
}

impl Changed {
    /// Tells this machine's nodes and drivers.
    pub async fn tell(self, network: Network) {
        let key = self.key.fingerprint();
        tracing::warn!(key, "the mesh has another key than this node had (`floe key rotate`)");
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
        if !data_dir::replace_key(&file, &self.key)? {
            tracing::warn!(
                "{} is open to this node's user only now: it was open to all, or its owner and group could not be kept",
                file.display()
            );
        }
        Ok(true)
    }
}

/// Whom an invitation lets in.
fn invited(invitation: &Invitation) -> Invited {
    let over = || Over { expired: invitation.expired, guests: invitation.guests.clone() };
    let verifier = MeshKey::from_bytes(invitation.verifier.0);
    Invited { verifier, over: (!invitation.is_open()).then(over) }
}

/// All keys that the mesh's changes lead to from this one, forth and back, and this one.
fn reached(key: &MeshKey, door: &Door) -> BTreeMap<KeyName, MeshKey> {
    let mut known = BTreeMap::from([(key.name(), key.clone())]);
    // Each round but the last finds one of the few keys that there are.
    loop {
        let before = known.len();
        for rotation in door.changes() {
            let found = match (known.get(&rotation.from), known.get(&rotation.to)) {
                (Some(key), None) => {
                    Some(key.successor(&rotation.salt.0)).filter(|next| next.name() == rotation.to)
                }
                (None, Some(key)) => former_of(key, rotation),
                _ => None,
            };
            known.extend(found.map(|key| (key.name(), key)));
        }
        if known.len() == before {
            return known;
        }
    }
}

/// Those of these keys that count still.
fn former_keys(known: &BTreeMap<KeyName, MeshKey>, door: &Door) -> Vec<Former> {
    let former = door.former_keys().filter(|former| former.counts_for != FormerKey::Nobody);
    let former = former.filter_map(|former| {
        let drivers = former.counts_for == FormerKey::Drivers;
        known.get(&former.key).map(|key| Former { key: key.clone(), drivers })
    });
    former.take(MAX_FORMER).collect()
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
    use floe_protocol::{Claim, Era, Member, MeshId, NodeId, RequestId};

    use super::*;

    fn rotated(state: &mut StateMachine, rotation: &Rotation) {
        let index = state.applied() + 1;
        let request = RequestId(index.into());
        state.apply(index, &Entry { request, command: Command::RotateKey(rotation.clone()) });
    }

    fn retired(state: &mut StateMachine, to: KeyName) {
        let index = state.applied() + 1;
        let retire = Command::RetireKey { to, former: FormerKey::Nobody };
        state.apply(index, &Entry { request: RequestId(index.into()), command: retire });
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
        for (start, news) in [(&first, true), (&second, true), (&third, false)] {
            let keys = Keys::new(KeySource { key: start.clone(), files: Vec::new() });
            assert_eq!(keys.follow(&state).is_some(), news);
            assert_eq!(keys.gate().key(), third);
            assert_eq!(keys.gate().former(), [second.name(), first.name()], "the latest first");
            assert!(keys.follow(&state).is_none(), "it is no news any more");
        }
        // Each has an age of its own.
        let keys = Keys::new(KeySource { key: third.clone(), files: Vec::new() });
        retired(&mut state, second.name());
        keys.follow(&state);
        assert_eq!(keys.gate().former(), [second.name()]);
        retired(&mut state, third.name());
        keys.follow(&state);
        assert_eq!(keys.gate().former(), []);
        // Whoever never held any of them learns nothing.
        let stranger = MeshKey::generate();
        let keys = Keys::new(KeySource { key: stranger.clone(), files: Vec::new() });
        assert!(keys.follow(&state).is_none());
        assert_eq!((keys.gate().key(), keys.gate().former()), (stranger, vec![]));
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
    fn whoever_changed_the_key_in_an_era_that_ended_goes_back_to_where_the_two_parted() {
        let dir = tempfile::tempdir().unwrap();
        let first = MeshKey::generate();
        let next = |key: &MeshKey, rotation: &Rotation| key.successor(&rotation.salt.0);
        let common = rotation(&first).unwrap();
        let parted = next(&first, &common);
        let [ours, theirs] = [(); 2].map(|()| rotation(&parted).unwrap());
        let strayed = next(&parted, &theirs);
        let further = rotation(&strayed).unwrap();
        let (present, lost) = (next(&parted, &ours), next(&strayed, &further));

        // One of the era that ends, which has followed it as far as it went.
        let file = dir.path().join("mesh.key");
        data_dir::write_key(&file, &first).unwrap();
        let keys = Keys::new(KeySource { key: first.clone(), files: vec![file.clone()] });
        let mut loser = StateMachine::default();
        [&common, &theirs, &further].into_iter().for_each(|rotation| rotated(&mut loser, rotation));
        keys.follow(&loser).unwrap().write();
        assert_eq!((keys.gate().key(), data_dir::read_key(&file).unwrap()), (lost.clone(), lost.clone()));

        let mut winner = StateMachine::default();
        let member = Member {
            id: NodeId(1),
            peer: "peer".to_owned(),
            name: "n1".to_owned(),
            addresses: vec![],
            slots: 1,
            memory_bytes: 1,
            version: String::new(),
            incarnation: floe_protocol::Incarnation::default(),
        };
        winner.apply(
            1,
            &Entry { request: RequestId(1), command: Command::Genesis { mesh: MeshId(1), member } },
        );
        [&common, &ours].into_iter().for_each(|rotation| rotated(&mut winner, rotation));
        assert!(keys.follow(&winner).is_none(), "it is not known yet how to get there");
        let adopt = Command::Adopt {
            claim: Claim { era: Era { mesh: MeshId(2), epoch: 1, founder: NodeId(2) }, work_ms: None },
            ended: vec![],
            jobs: vec![],
            tombstones: vec![],
            forgotten: vec![],
            keys: loser.door().keys().clone(),
        };
        let index = winner.applied() + 1;
        winner.apply(index, &Entry { request: RequestId(index.into()), command: adopt });
        keys.follow(&winner).unwrap().write();
        assert_eq!(
            (keys.gate().key(), data_dir::read_key(&file).unwrap()),
            (present.clone(), present.clone())
        );
        // Whoever was away then is let in with any of them, by all who have the present key.
        let other = Keys::new(KeySource { key: present, files: Vec::new() });
        other.follow(&winner);
        for keys in [&keys, &other] {
            let names = [&parted, &first, &lost, &strayed].map(MeshKey::name);
            assert_eq!(keys.gate().former(), names);
        }
    }

    #[test]
    fn a_file_stays_as_open_as_it_was_to_its_group_and_to_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        for (before, after) in
            [(0o640, 0o640), (0o440, 0o440), (0o400, 0o400), (0o644, 0o600), (0o660, 0o600)]
        {
            let (first, file) = (MeshKey::generate(), dir.path().join(format!("{before:o}")));
            data_dir::write_key(&file, &first).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(before)).unwrap();
            // The group, where this process may give files to another.
            let given = std::os::unix::fs::chown(&file, None, Some(12));
            let group = |path: &Path| std::os::unix::fs::MetadataExt::gid(&path.metadata().unwrap());
            let had = group(&file);
            assert!(given.is_err() || had == 12);
            let keys = Keys::new(KeySource { key: first.clone(), files: vec![file.clone()] });
            let mut state = StateMachine::default();
            rotated(&mut state, &rotation(&first).unwrap());
            keys.follow(&state).unwrap().write();
            assert_eq!(data_dir::read_key(&file).unwrap(), keys.gate().key());
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, after, "{before:o}");
            assert_eq!(group(&file), had);
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
