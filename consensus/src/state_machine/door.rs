//! Who may come to the mesh: invitations, nodes that must not come back, and changes of the mesh key.
//!
//! ```text
//!   Invite ──> open ──Enter, as often as it may──> used up ──┐ remembered while there is room, so that whoever
//!                └────the leader's time is over──> expired ──┘ comes late hears why it is not let in
//!
//!   RotateKey ──> the former key counts for members and drivers ──> for members only ──> for nobody
//! ```
//!
//! No secret lies here as it is. Of an invitation there is what its secret gives, of a key what makes the next one of the
//! former, which nobody can use who holds neither.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use floe_protocol::{Failure, InvitationId, KeyName, NodeId, Secret};
use serde::{Deserialize, Serialize};

/// Invitations that may be open at once: whoever needs more can make one for several nodes.
const MAX_OPEN_INVITATIONS: usize = 64;

/// Invitations that are remembered, the open ones among them.
const MAX_INVITATIONS: usize = 256;

/// How many nodes one invitation may admit: their names are kept.
const MAX_USES: u32 = 256;

/// How long an invitation may last: a forgotten one is a door that stands open.
const MAX_LASTS_MS: u64 = 30 * 24 * 3_600_000;

/// Nodes that are kept out. None is let in again to make room for another.
pub const MAX_FORGOTTEN: usize = 4_096;

/// Changes of the key that a node may have missed and still find its way to the present one.
pub const MAX_ROTATIONS: usize = 8;

/// A part of the replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Door {
    invitations: BTreeMap<InvitationId, Invitation>,
    /// The same in the order in which they were made.
    made: VecDeque<InvitationId>,
    forgotten: BTreeSet<NodeId>,
    rotations: VecDeque<Rotated>,
}

/// What the mesh knows of an invitation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// What a guest proves to know, and is proven.
    pub verifier: Secret,
    /// How many nodes it admits in all.
    pub uses: u32,
    /// How long it lasts, in the leader's time.
    pub lasts_ms: u64,
    /// Who has come by it.
    pub guests: BTreeSet<NodeId>,
    /// Whether its time is over.
    pub expired: bool,
}

/// One change of the mesh key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// The former key.
    pub from: KeyName,
    /// The key that followed.
    pub to: KeyName,
    /// What makes that one of the former.
    pub salt: Secret,
    /// The former one, sealed with that: a node that has only the new one lets those in who still come with the old.
    pub sealed: Secret,
}

/// A change of the mesh key that was agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotated {
    /// The change.
    pub rotation: Rotation,
    /// For whom the key before it counts.
    pub former: FormerKey,
}

/// A key that is not the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormerOf {
    /// What it is called.
    pub key: KeyName,
    /// What the change is called by which it counts, in [`crate::Command::RetireKey`]: by the key that it made.
    pub change: KeyName,
    /// For whom it counts.
    pub counts_for: FormerKey,
}

/// For whom a former key counts. For no node that is not a member: that would be handed the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FormerKey {
    /// Members, and drivers.
    Drivers,
    /// Nodes that are members, and may have been away.
    Members,
    /// Nobody.
    Nobody,
}

impl Invitation {
    /// Whether it admits anybody that it has not admitted yet.
    pub fn is_open(&self) -> bool {
        !self.expired && self.guests.len() < self.uses as usize
    }
}

impl Door {
    /// Invitations that are remembered.
    pub fn invitations(&self) -> &BTreeMap<InvitationId, Invitation> {
        &self.invitations
    }

    /// Nodes that must not come back.
    pub fn forgotten(&self) -> &BTreeSet<NodeId> {
        &self.forgotten
    }

    /// The last changes of the key, the latest at the end.
    pub fn rotations(&self) -> &VecDeque<Rotated> {
        &self.rotations
    }

    /// What the present key is called, if it was ever changed.
    pub fn key(&self) -> Option<KeyName> {
        self.rotations.back().map(|last| last.rotation.to)
    }

    /// All changes that are remembered.
    pub fn changes(&self) -> impl Iterator<Item = &Rotation> {
        self.rotations.iter().map(|known| &known.rotation)
    }

    /// For whom other keys than the present one count, the one before it first.
    pub fn former_keys(&self) -> impl Iterator<Item = FormerOf> {
        self.rotations.iter().rev().map(|known| {
            let Rotation { from, to, .. } = known.rotation;
            FormerOf { key: from, change: to, counts_for: known.former }
        })
    }

    /// Makes an invitation.
    pub(super) fn invite(
        &mut self,
        id: InvitationId,
        verifier: Secret,
        uses: u32,
        lasts_ms: u64,
    ) -> Result<(), Failure> {
        if self.invitations.contains_key(&id) {
            return Err(refused("an invitation of this id was made already: make another".to_owned()));
        }
        if uses == 0 || uses > MAX_USES {
            return Err(refused(format!("an invitation admits 1 to {MAX_USES} nodes, not {uses}")));
        }
        if lasts_ms == 0 || lasts_ms > MAX_LASTS_MS {
            let days = MAX_LASTS_MS / 86_400_000;
            return Err(refused(format!("an invitation lasts up to {days} days, and not no time at all")));
        }
        let open = self.invitations.values().filter(|invitation| invitation.is_open()).count();
        if open >= MAX_OPEN_INVITATIONS {
            return Err(refused(format!(
                "{open} invitations are open, which is the limit: use those, or make one for several nodes with --uses"
            )));
        }
        while self.invitations.len() >= MAX_INVITATIONS
            && let Some(at) = self.made.iter().position(|id| !self.invitations[id].is_open())
            && let Some(oldest) = self.made.remove(at)
        {
            self.invitations.remove(&oldest);
        }
        let guests = BTreeSet::new();
        self.invitations.insert(id, Invitation { verifier, uses, lasts_ms, guests, expired: false });
        self.made.push_back(id);
        Ok(())
    }

    /// A node comes by an invitation. Whoever came by it before may do so again: its answer may have been lost.
    pub(super) fn enter(&mut self, id: InvitationId, node: NodeId) -> Result<(), Failure> {
        if self.forgotten.contains(&node) {
            return Err(is_forgotten(node));
        }
        let Some(invitation) = self.invitations.get_mut(&id) else {
            return Err(refused(
                "the mesh does not know this invitation (any more): ask for a new one (`floe invite`)"
                    .to_owned(),
            ));
        };
        if invitation.guests.contains(&node) {
            return Ok(());
        }
        if invitation.expired {
            return Err(refused("the invitation has expired: ask for a new one (`floe invite`)".to_owned()));
        }
        if !invitation.is_open() {
            let nodes = if invitation.uses == 1 {
                "one node".to_owned()
            } else {
                format!("{} nodes", invitation.uses)
            };
            return Err(refused(format!(
                "the invitation is used up: it admits {nodes}, and has; ask for a new one (`floe invite`)"
            )));
        }
        invitation.guests.insert(node);
        Ok(())
    }

    /// The time of these invitations is over.
    pub(super) fn expire(&mut self, ids: &[InvitationId]) {
        for id in ids {
            if let Some(invitation) = self.invitations.get_mut(id) {
                invitation.expired = true;
            }
        }
    }

    /// A node must not come back. Whether that is news.
    pub(super) fn forget(&mut self, node: NodeId) -> bool {
        self.forgotten.insert(node)
    }

    /// Whether there is room for one more node that is kept out.
    pub(super) fn check_forgettable(&self, node: NodeId) -> Result<(), Failure> {
        if self.forgotten.len() >= MAX_FORGOTTEN && !self.forgotten.contains(&node) {
            return Err(refused(format!(
                "{MAX_FORGOTTEN} nodes are kept out already, which is as many as the mesh remembers: change its key \
                 instead (`floe key rotate`), and give the new one to those that shall stay"
            )));
        }
        Ok(())
    }

    /// Whether there is room for those that another era keeps out: more than for one's own, so that a list which is full
    /// does not keep two parts of a mesh apart.
    pub(super) fn check_room(&self, nodes: &[NodeId]) -> Result<(), Failure> {
        let new = nodes.iter().filter(|node| !self.forgotten.contains(node)).count();
        if self.forgotten.len() + new > 4 * MAX_FORGOTTEN {
            let message = "the mesh keeps out as many nodes as it can remember".to_owned();
            return Err(Failure::Unavailable { message });
        }
        Ok(())
    }

    /// Why this node may not be a member, if it may not.
    pub(super) fn check(&self, node: NodeId) -> Result<(), Failure> {
        if self.forgotten.contains(&node) { Err(is_forgotten(node)) } else { Ok(()) }
    }

    /// The mesh has another key.
    pub(super) fn rotate(&mut self, rotation: &Rotation) -> Result<(), Failure> {
        if self.rotations.back().is_some_and(|last| last.rotation.to != rotation.from) {
            return Err(refused(
                "the mesh key was changed by somebody else meanwhile: look, and try again".to_owned(),
            ));
        }
        if self.rotations.len() >= MAX_ROTATIONS {
            self.rotations.pop_front();
        }
        // Drivers read the key file again; they may have missed one change.
        self.rotations.iter_mut().for_each(|before| before.former = before.former.max(FormerKey::Members));
        self.rotations.push_back(Rotated { rotation: rotation.clone(), former: FormerKey::Drivers });
        Ok(())
    }

    /// The key before this one counts for fewer. Whether that is news.
    pub(super) fn retire(&mut self, to: KeyName, former: FormerKey) -> bool {
        let known = self.rotations.iter_mut().find(|known| known.rotation.to == to);
        let newer = known.filter(|known| former > known.former);
        newer.map(|known| known.former = former).is_some()
    }
}

fn is_forgotten(node: NodeId) -> Failure {
    refused(format!(
        "node {node} was removed from this mesh for good (`floe forget`): to join again as a new node, start with an \
         empty data directory and an invitation"
    ))
}

fn refused(message: String) -> Failure {
    Failure::Refused { message }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const LONG_MS: u64 = 3_600_000;

    fn text(outcome: Result<(), Failure>) -> String {
        outcome.unwrap_err().to_string()
    }

    #[test]
    fn one_use_is_one_node_which_may_come_again() {
        let mut door = Door::default();
        let id = InvitationId(1);
        assert!(text(door.enter(id, NodeId(1))).contains("does not know"));
        door.invite(id, Secret([7; 32]), 2, LONG_MS).unwrap();
        assert!(text(door.invite(id, Secret([7; 32]), 2, LONG_MS)).contains("already"));
        for node in [1, 1, 2, 1, 2] {
            assert_eq!(door.enter(id, NodeId(node)), Ok(()), "{node}");
        }
        assert!(text(door.enter(id, NodeId(3))).contains("used up"));
        door.expire(&[id, InvitationId(9)]);
        assert!(text(door.enter(id, NodeId(3))).contains("expired"));
        assert_eq!(door.enter(id, NodeId(2)), Ok(()), "its answer may have been lost");
        assert!(door.forget(NodeId(2)));
        assert!(text(door.enter(id, NodeId(2))).contains("removed"));
        for (uses, lasts_ms) in [(0, 1), (MAX_USES + 1, 1), (1, 0), (1, MAX_LASTS_MS + 1)] {
            assert!(door.invite(InvitationId(2), Secret([7; 32]), uses, lasts_ms).is_err());
        }
    }

    #[test]
    fn the_former_key_counts_for_fewer_and_never_for_more() {
        let mut door = Door::default();
        let key = |number: u64| KeyName(number);
        let step = |from, to| Rotation {
            from: key(from),
            to: key(to),
            salt: Secret([1; 32]),
            sealed: Secret([2; 32]),
        };
        let stages = |door: &Door| door.rotations().iter().map(|known| known.former).collect::<Vec<_>>();
        door.rotate(&step(1, 2)).unwrap();
        assert_eq!(stages(&door), [FormerKey::Drivers]);
        assert!(text(door.rotate(&step(1, 3))).contains("meanwhile"));
        assert!(door.retire(key(2), FormerKey::Members));
        assert!(!door.retire(key(2), FormerKey::Drivers) && !door.retire(key(1), FormerKey::Nobody));
        door.rotate(&step(2, 3)).unwrap();
        door.rotate(&step(3, 4)).unwrap();
        assert_eq!(stages(&door), [FormerKey::Members, FormerKey::Members, FormerKey::Drivers]);
        assert!(door.retire(key(3), FormerKey::Nobody));
        assert_eq!(stages(&door), [FormerKey::Members, FormerKey::Nobody, FormerKey::Drivers]);
        for number in 4..40 {
            door.rotate(&step(number, number + 1)).unwrap();
        }
        assert_eq!(door.rotations().len(), MAX_ROTATIONS);
        let shown = format!("{door:?}");
        assert!(!shown.contains("[1, 1") && !shown.contains("[2, 2"), "{shown}");
    }

    proptest! {
        #[test]
        fn the_door_is_bounded_and_open_invitations_stay(
            steps in prop::collection::vec((0..600_u64, 0..4_u8), 1..900),
        ) {
            let mut door = Door::default();
            for (number, what) in steps {
                let id = InvitationId(number);
                let open: Vec<_> = open_of(&door);
                match what {
                    0 => drop(door.enter(id, NodeId(number))),
                    1 => door.expire(&[id]),
                    _ => {
                        let made = door.invite(id, Secret([0; 32]), 1, 1).is_ok();
                        prop_assert!(!made || open.len() < MAX_OPEN_INVITATIONS);
                        let still = open_of(&door);
                        prop_assert!(open.iter().all(|id| still.contains(id)));
                    }
                }
                prop_assert!(door.invitations.len() <= MAX_INVITATIONS);
                prop_assert_eq!(door.invitations.len(), door.made.len());
            }
        }
    }

    fn open_of(door: &Door) -> Vec<InvitationId> {
        let open = door.invitations.iter().filter(|(_, invitation)| invitation.is_open());
        open.map(|(id, _)| *id).collect()
    }

    #[test]
    fn nobody_is_let_in_again_to_make_room() {
        let mut door = Door::default();
        for node in 1..=MAX_FORGOTTEN as u64 {
            assert_eq!(door.check_forgettable(NodeId(node)), Ok(()));
            assert!(door.forget(NodeId(node)));
        }
        assert_eq!((door.check_forgettable(NodeId(1)), door.forget(NodeId(1))), (Ok(()), false));
        assert!(text(door.check_forgettable(NodeId(0))).contains("floe key rotate"));
        assert!(door.check(NodeId(1)).is_err() && door.check(NodeId(0)).is_ok());
    }
}
