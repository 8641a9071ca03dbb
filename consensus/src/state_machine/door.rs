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
pub const MAX_LASTS_MS: u64 = 30 * 24 * 3_600_000;

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
    keys: KeyChanges,
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

/// Changes of the mesh key that were agreed on.
///
/// ```text
///   k0 ──> k1 ──> k2       the line: the present key is at its end
///     └──> k1'             strayed: of another era, which ended with this one
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChanges {
    /// Each follows on the one before it.
    pub line: VecDeque<Rotated>,
    /// Changes that were agreed on elsewhere, on a key of this mesh that had been changed here too: whoever made them
    /// goes back by them to where the two parted.
    pub strayed: VecDeque<Rotated>,
}

/// A change of the mesh key that was agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotated {
    /// The change.
    pub rotation: Rotation,
    /// For whom the key counts that does not any more since: the one before it, or if it strayed the one that it made.
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
    pub fn keys(&self) -> &KeyChanges {
        &self.keys
    }

    /// What the present key is called, if it was ever changed.
    pub fn key(&self) -> Option<KeyName> {
        self.keys.line.back().map(|last| last.rotation.to)
    }

    /// All changes that are remembered.
    pub fn changes(&self) -> impl Iterator<Item = &Rotation> {
        self.keys.line.iter().chain(&self.keys.strayed).map(|known| &known.rotation)
    }

    /// For whom other keys than the present one count, the one before it first.
    pub fn former_keys(&self) -> impl Iterator<Item = FormerOf> {
        let line = self.keys.line.iter().map(|known| (known.rotation.from, known));
        let strayed = self.keys.strayed.iter().map(|known| (known.rotation.to, known));
        line.rev().chain(strayed.rev()).map(|(key, known)| FormerOf {
            key,
            change: known.rotation.to,
            counts_for: known.former,
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
        if lasts_ms == 0 {
            return Err(refused("an invitation that lasts no time at all admits nobody".to_owned()));
        }
        if lasts_ms > MAX_LASTS_MS {
            let days = MAX_LASTS_MS / 86_400_000;
            return Err(refused(format!(
                "an invitation lasts up to {days} days, not {} s",
                lasts_ms / 1_000
            )));
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
        if self.key().is_some_and(|key| key != rotation.from) {
            return Err(refused(
                "the mesh key was changed by somebody else meanwhile: look, and try again".to_owned(),
            ));
        }
        let KeyChanges { line, strayed } = &mut self.keys;
        if line.len() >= MAX_ROTATIONS {
            line.pop_front();
        }
        strayed.retain(|known| known.rotation.to != rotation.to);
        // Drivers read the key file again; they may have missed one change.
        line.iter_mut().for_each(|before| before.former = before.former.max(FormerKey::Members));
        line.push_back(Rotated { rotation: rotation.clone(), former: FormerKey::Drivers });
        Ok(())
    }

    /// Takes over another era's changes: those that follow on the present key count here too, since that one may have
    /// been changed because somebody has it who should not. Where both have changed the key, this era's stand, and the
    /// others are remembered for those who have to come back. Whether that is news.
    pub(super) fn adopt_keys(&mut self, theirs: &KeyChanges) -> bool {
        let mut news = false;
        for Rotated { rotation, .. } in theirs.line.iter().take(MAX_ROTATIONS) {
            if self.key().is_none_or(|key| key == rotation.from) {
                news |= self.rotate(rotation).is_ok();
            }
        }
        // What a key is after which they made another counts for no more here than it did there.
        let made = theirs.line.iter().skip(1).map(|next| next.former).chain([FormerKey::Members]);
        let line = theirs.line.iter().map(|known| &known.rotation).zip(made);
        let strayed = theirs.strayed.iter().map(|known| (&known.rotation, known.former));
        for (rotation, former) in line.take(MAX_ROTATIONS).chain(strayed.take(MAX_ROTATIONS)) {
            if !self.knows_key(rotation.from) || self.knows_key(rotation.to) {
                continue;
            }
            if self.keys.strayed.len() >= MAX_ROTATIONS {
                self.keys.strayed.pop_front();
            }
            let former = former.max(FormerKey::Members);
            self.keys.strayed.push_back(Rotated { rotation: rotation.clone(), former });
            news = true;
        }
        news
    }

    /// Whether a remembered change is of this key, or made it.
    fn knows_key(&self, key: KeyName) -> bool {
        self.changes().any(|rotation| rotation.from == key || rotation.to == key)
    }

    /// A key that was changed counts for fewer. Whether that is news.
    pub(super) fn retire(&mut self, to: KeyName, former: FormerKey) -> bool {
        let KeyChanges { line, strayed } = &mut self.keys;
        let known = line.iter_mut().chain(strayed).find(|known| known.rotation.to == to);
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

    fn step(from: u64, to: u64) -> Rotation {
        let (from, to) = (KeyName(from), KeyName(to));
        Rotation { from, to, salt: Secret([1; 32]), sealed: Secret([2; 32]) }
    }

    fn changed(steps: &[(u64, u64)]) -> Door {
        let mut door = Door::default();
        steps.iter().for_each(|(from, to)| door.rotate(&step(*from, *to)).unwrap());
        door
    }

    fn names(changes: &VecDeque<Rotated>) -> Vec<(u64, u64)> {
        changes.iter().map(|known| (known.rotation.from.0, known.rotation.to.0)).collect()
    }

    #[test]
    fn changes_that_follow_on_the_present_key_are_taken_over_and_others_are_remembered() {
        // Both knew of the first one, or of none; then one of them changed the key, or both did.
        for before in [&[][..], &[(1, 2)]] {
            let last = before.last().map_or(1, |(_, to)| *to);
            let with = |more: &[(u64, u64)]| changed(&[before, more].concat());
            let (mut winner, loser) = (changed(before), with(&[(last, 3), (3, 4)]));
            assert!(winner.adopt_keys(&loser.keys));
            assert_eq!(winner.keys, loser.keys, "drivers may come with the key before");
            assert!(!winner.adopt_keys(&loser.keys), "it is said again until it is answered");

            let (mut winner, mut loser) = (with(&[(last, 5)]), with(&[(last, 3), (3, 4)]));
            assert!(loser.retire(KeyName(4), FormerKey::Nobody));
            assert!(winner.adopt_keys(&loser.keys));
            assert_eq!(names(&winner.keys.line), [before, &[(last, 5)]].concat());
            assert_eq!(names(&winner.keys.strayed), [(last, 3), (3, 4)]);
            let former: Vec<_> =
                winner.former_keys().map(|former| (former.key.0, former.counts_for)).collect();
            let strayed = [(4, FormerKey::Members), (3, FormerKey::Nobody)];
            assert_eq!(former[0], (last, FormerKey::Drivers));
            assert_eq!(former[former.len() - 2..], strayed, "none counts again that counted no more");
            assert!(!winner.adopt_keys(&loser.keys));
            assert!(winner.retire(KeyName(4), FormerKey::Nobody));
            // A third one hears of both.
            let mut third = changed(&[&[(last, 5)][..], &[(5, 6)]].concat());
            assert!(third.adopt_keys(&winner.keys));
            assert_eq!(names(&third.keys.line), [(last, 5), (5, 6)]);
            assert_eq!(names(&third.keys.strayed), [(last, 3), (3, 4)]);
        }
        // Of another mesh's nothing is known.
        let mut winner = changed(&[(1, 2)]);
        assert!(!winner.adopt_keys(&changed(&[(8, 9)]).keys));
        let many: Vec<_> = (100..140).map(|to| (1, to)).collect();
        for (from, to) in many {
            winner.adopt_keys(&changed(&[(from, to)]).keys);
        }
        assert_eq!((winner.keys.line.len(), winner.keys.strayed.len()), (1, MAX_ROTATIONS));
    }

    #[test]
    fn the_former_key_counts_for_fewer_and_never_for_more() {
        let mut door = Door::default();
        let key = |number: u64| KeyName(number);
        let stages = |door: &Door| door.keys.line.iter().map(|known| known.former).collect::<Vec<_>>();
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
        assert_eq!(door.keys.line.len(), MAX_ROTATIONS);
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
