//! What one end of a connection holds to be let in, and whom it lets in itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use floe_protocol::{InvitationId, KeyName, NodeId, version};

use crate::admission::Role;
use crate::key::{InvitationSecret, MeshKey};

/// Whom a member lets in. Clones are one: who owns a gate changes its rules while connections come and go, and they
/// hold for every admission from then on.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Mutex<Rules>>);

/// The rules of a gate.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The mesh key.
    pub key: MeshKey,
    /// Other keys that count too, the one just before the present one first.
    pub former: Vec<Former>,
    /// The nodes that are members: no other may come with a former key.
    pub members: BTreeSet<NodeId>,
    /// By what guests come who were invited.
    pub invitations: BTreeMap<InvitationId, Invited>,
    /// Nodes that are not let in, whatever they hold.
    pub forgotten: BTreeSet<NodeId>,
    /// Whether there is no room for anybody but nodes.
    pub nodes_only: bool,
}

/// An invitation.
#[derive(Clone, Debug)]
pub struct Invited {
    /// What its guests prove.
    pub verifier: MeshKey,
    /// Whether it is over.
    pub over: Option<Over>,
}

/// How an invitation ended.
#[derive(Clone, Debug)]
pub struct Over {
    /// Whether its time is over; else it is used up.
    pub expired: bool,
    /// Those who came by it before: the answer that they waited for may have been lost, so they may come again.
    pub guests: BTreeSet<NodeId>,
}

/// A mesh key that was changed, with which members may still come.
#[derive(Clone, Debug)]
pub struct Former {
    /// The key.
    pub key: MeshKey,
    /// Whether drivers may too.
    pub drivers: bool,
}

/// How many former keys count at most: each has a place in a hello.
pub const MAX_FORMER: usize = 16;

impl Gate {
    /// Lets in whoever holds this key.
    pub fn new(key: MeshKey) -> Self {
        Self(Arc::new(Mutex::new(Rules {
            key,
            former: Vec::new(),
            members: BTreeSet::new(),
            invitations: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            nodes_only: false,
        })))
    }

    /// Changes the rules.
    pub fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.lock());
    }

    /// The mesh key.
    pub fn key(&self) -> MeshKey {
        self.lock().key.clone()
    }

    /// What the former keys that count too are called, the one just before the present one first.
    pub fn former(&self) -> Vec<KeyName> {
        self.lock().former.iter().map(|former| former.key.name()).collect()
    }

    /// Whether this is a former key with which drivers may still come.
    pub fn takes_of_drivers(&self, former: KeyName) -> bool {
        self.lock().former.iter().any(|known| known.drivers && known.key.name() == former)
    }

    /// Whether a node is not let in, whatever it holds.
    pub fn is_forgotten(&self, node: NodeId) -> bool {
        self.lock().forgotten.contains(&node)
    }

    fn lock(&self) -> MutexGuard<'_, Rules> {
        // Every change is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one end brings to admission.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// What this end is.
    pub role: Role,
    /// The protocol it speaks.
    pub protocol: u32,
    /// The Polars release whose fragments it runs.
    pub polars: String,
    holds: Holds,
}

#[derive(Clone, Debug)]
enum Holds {
    Keys(Gate),
    Invitation(InvitationId, MeshKey),
}

/// How many secrets an end may offer: the mesh key, and those before.
pub(crate) const MAX_OFFERED: usize = 1 + MAX_FORMER;

/// What secrets are called in a hello. Zero is none.
pub(crate) type Offered = [u64; MAX_OFFERED];

impl Credentials {
    /// Credentials of a holder of the mesh key, with this build's versions.
    pub fn new(key: MeshKey, role: Role) -> Self {
        Self::of(Gate::new(key), role)
    }

    /// The same, by rules that may change.
    pub fn of(gate: Gate, role: Role) -> Self {
        Self::with(Holds::Keys(gate), role)
    }

    /// Credentials of one that was invited.
    pub fn guest(secret: &InvitationSecret) -> Self {
        let id = secret.id();
        Self::with(Holds::Invitation(id, secret.verifier()), Role::Guest(id))
    }

    fn with(holds: Holds, role: Role) -> Self {
        let polars = version::POLARS_VERSION.to_owned();
        Self { role, protocol: version::PROTOCOL_VERSION, polars, holds }
    }

    /// What this end can prove, the best first.
    pub(crate) fn offered(&self) -> Offered {
        match &self.holds {
            Holds::Keys(gate) => {
                let rules = gate.lock();
                let former = rules.former.iter().map(|former| &former.key);
                offers(std::iter::once(&rules.key).chain(former).map(|key| key.name().0))
            }
            Holds::Invitation(id, _) => offers([id.0]),
        }
    }

    /// One of the secrets that this end has offered, if it may meet this node by it: whoever has only a former key is no
    /// more let in where it is dialled than where it dials.
    pub(crate) fn own(&self, name: u64, node: NodeId) -> Option<MeshKey> {
        match &self.holds {
            Holds::Keys(gate) => {
                let rules = gate.lock();
                let former = rules.former.iter().filter(|_| rules.members.contains(&node));
                let keys = std::iter::once(&rules.key).chain(former.map(|former| &former.key));
                keys.into_iter().find(|key| key.name().0 == name).cloned()
            }
            Holds::Invitation(id, verifier) => (id.0 == name).then(|| verifier.clone()),
        }
    }

    /// Of what a node or a driver offers the first that this end takes, with what it is called.
    pub(crate) fn accepted(&self, offered: &Offered, role: Role, node: NodeId) -> Option<(u64, MeshKey)> {
        let Holds::Keys(gate) = &self.holds else { return None };
        let rules = gate.lock();
        if let Role::Guest(id) = role {
            let invited = rules.invitations.get(&id).filter(|_| offered[0] == id.0)?;
            return Some((id.0, invited.verifier.clone()));
        }
        let may = |former: &&Former| match role {
            Role::Node => rules.members.contains(&node),
            Role::Driver => former.drivers,
            Role::Guest(_) => false,
        };
        let former = rules.former.iter().filter(may).map(|former| &former.key);
        let keys: Vec<_> = std::iter::once(&rules.key).chain(former).map(|key| (key.name().0, key)).collect();
        let found = offered.iter().find_map(|name| keys.iter().find(|(own, _)| own == name));
        found.map(|(name, key)| (*name, (*key).clone()))
    }

    /// Whether a node is not let in, whatever it holds.
    pub(crate) fn forgets(&self, node: NodeId) -> bool {
        matches!(&self.holds, Holds::Keys(gate) if gate.is_forgotten(node))
    }

    /// Whether what this guest comes by is over for it: whether it has expired, if so.
    pub(crate) fn is_over(&self, role: Role, node: NodeId) -> Option<bool> {
        let (Holds::Keys(gate), Role::Guest(id)) = (&self.holds, role) else { return None };
        let rules = gate.lock();
        let over = rules.invitations.get(&id).and_then(|invited| invited.over.as_ref());
        over.filter(|over| !over.guests.contains(&node)).map(|over| over.expired)
    }

    /// Whether there is room for one of this role.
    pub(crate) fn has_room(&self, role: Role) -> bool {
        match &self.holds {
            Holds::Keys(gate) => role == Role::Node || !gate.lock().nodes_only,
            Holds::Invitation(..) => true,
        }
    }
}

/// These names, and zeros after them.
pub(crate) fn offers(names: impl IntoIterator<Item = u64>) -> Offered {
    let mut names = names.into_iter();
    std::array::from_fn(|_| names.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn former_keys_count_for_members_one_for_drivers_and_for_no_other_node() {
        let keys: [MeshKey; 4] = std::array::from_fn(|_| MeshKey::generate());
        let [key, last, older, stranger] = &keys;
        let gate = Gate::new(key.clone());
        let here = Credentials::of(gate.clone(), Role::Node);
        let (member, other) = (NodeId(1), NodeId(2));
        let takes = |offered: &MeshKey, role, node| {
            let offered = Credentials::new(offered.clone(), role).offered();
            here.accepted(&offered, role, node).is_some()
        };
        assert!(!takes(last, Role::Node, member) && !takes(last, Role::Driver, other));
        let former = |drivers| {
            vec![Former { key: last.clone(), drivers }, Former { key: older.clone(), drivers: false }]
        };
        for drivers in [true, false] {
            gate.change(|rules| {
                (rules.former, rules.members) = (former(drivers), BTreeSet::from([member]));
            });
            for key in [last, older] {
                assert!(takes(key, Role::Node, member));
                assert!(
                    !takes(key, Role::Node, other),
                    "a node that is no member joins with the present key"
                );
                // Nor is one believed that is dialled and proves no more than that.
                assert_eq!(here.own(key.name().0, member).as_ref(), Some(key));
                assert_eq!(here.own(key.name().0, other), None);
            }
            assert_eq!(takes(last, Role::Driver, other), drivers);
            assert_eq!(takes(last, Role::Driver, member), drivers, "a driver is no member");
            assert!(!takes(older, Role::Driver, other));
            assert!(takes(key, Role::Node, other) && takes(key, Role::Driver, other));
            assert!(!takes(stranger, Role::Node, member));
        }
        assert_eq!(here.own(key.name().0, other).as_ref(), Some(key));
        // The best first, and of what both know the best.
        let offered = here.offered();
        assert_eq!(offered[..4], [key.name().0, last.name().0, older.name().0, 0]);
        let away = Credentials::new(older.clone(), Role::Node);
        assert_eq!(away.accepted(&offered, Role::Node, other), Some((older.name().0, older.clone())));
    }

    #[test]
    fn a_guest_comes_by_its_invitation_only() {
        let secret = InvitationSecret::generate().unwrap();
        let guest = Credentials::guest(&secret);
        let gate = Gate::new(MeshKey::generate());
        let here = Credentials::of(gate.clone(), Role::Node);
        let takes = |role| here.accepted(&guest.offered(), role, NodeId(1)).is_some();
        assert!(!takes(guest.role));
        let invited = Invited { verifier: secret.verifier(), over: None };
        gate.change(|rules| rules.invitations.extend([(secret.id(), invited)]));
        assert!(takes(guest.role));
        assert!(!takes(Role::Node) && !takes(Role::Driver), "it is no mesh key");
    }
}
