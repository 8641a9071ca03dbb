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
    /// The key before, as long as it counts too.
    pub former: Option<Former>,
    /// What guests prove who were invited.
    pub invitations: BTreeMap<InvitationId, MeshKey>,
    /// Nodes that are not let in, whatever they hold.
    pub forgotten: BTreeSet<NodeId>,
    /// Whether there is no room for anybody but nodes.
    pub nodes_only: bool,
}

/// A mesh key that was changed.
#[derive(Clone, Debug)]
pub struct Former {
    /// The key.
    pub key: MeshKey,
    /// The nodes that may still come with it; anybody if there are none named.
    pub only: Option<BTreeSet<NodeId>>,
}

impl Gate {
    /// Lets in whoever holds this key.
    pub fn new(key: MeshKey) -> Self {
        Self(Arc::new(Mutex::new(Rules {
            key,
            former: None,
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

    /// What the key before was called, as long as it counts too.
    pub fn former(&self) -> Option<KeyName> {
        self.lock().former.as_ref().map(|former| former.key.name())
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

/// How many secrets an end may offer: the mesh key, and the one before.
pub(crate) const MAX_OFFERED: usize = 2;

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
                [rules.key.name().0, rules.former.as_ref().map_or(0, |former| former.key.name().0)]
            }
            Holds::Invitation(id, _) => [id.0, 0],
        }
    }

    /// One of the secrets that this end has offered.
    pub(crate) fn own(&self, name: u64) -> Option<MeshKey> {
        match &self.holds {
            Holds::Keys(gate) => {
                let rules = gate.lock();
                let former = rules.former.iter().map(|former| &former.key);
                std::iter::once(&rules.key).chain(former).find(|key| key.name().0 == name).cloned()
            }
            Holds::Invitation(id, verifier) => (id.0 == name).then(|| verifier.clone()),
        }
    }

    /// Of what a node or a driver offers the first that this end takes, with what it is called.
    pub(crate) fn accepted(&self, offered: &Offered, role: Role, node: NodeId) -> Option<(u64, MeshKey)> {
        let Holds::Keys(gate) = &self.holds else { return None };
        let rules = gate.lock();
        if let Role::Guest(id) = role {
            let verifier = rules.invitations.get(&id).filter(|_| offered[0] == id.0)?;
            return Some((id.0, verifier.clone()));
        }
        let may = |former: &&Former| match &former.only {
            None => true,
            Some(nodes) => role == Role::Node && nodes.contains(&node),
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

    /// Whether there is room for one of this role.
    pub(crate) fn has_room(&self, role: Role) -> bool {
        match &self.holds {
            Holds::Keys(gate) => role == Role::Node || !gate.lock().nodes_only,
            Holds::Invitation(..) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_former_key_counts_for_whom_it_may_and_the_next_one_goes_before() {
        let (former, key, stranger) = (MeshKey::generate(), MeshKey::generate(), MeshKey::generate());
        let gate = Gate::new(key.clone());
        let here = Credentials::of(gate.clone(), Role::Node);
        let (member, other) = (NodeId(1), NodeId(2));
        let takes = |offered: &Credentials, role, node| {
            here.accepted(&offered.offered(), role, node).map(|(name, _)| KeyName(name))
        };
        let old = Credentials::new(former.clone(), Role::Node);
        assert_eq!(takes(&old, Role::Node, member), None);
        gate.change(|rules| rules.former = Some(Former { key: former.clone(), only: None }));
        assert_eq!(takes(&old, Role::Node, other), Some(former.name()));
        assert_eq!(takes(&old, Role::Driver, other), Some(former.name()));
        assert_eq!(takes(&here, Role::Node, other), Some(key.name()));
        assert_eq!(takes(&Credentials::new(stranger, Role::Node), Role::Node, member), None);
        let only = Some(BTreeSet::from([member]));
        gate.change(|rules| rules.former = Some(Former { key: former.clone(), only }));
        assert_eq!(takes(&old, Role::Node, member), Some(former.name()));
        assert_eq!(takes(&old, Role::Node, other), None);
        assert_eq!(takes(&old, Role::Driver, member), None, "a driver is no member");
    }

    #[test]
    fn a_guest_comes_by_its_invitation_only() {
        let secret = InvitationSecret::generate().unwrap();
        let guest = Credentials::guest(&secret);
        let gate = Gate::new(MeshKey::generate());
        let here = Credentials::of(gate.clone(), Role::Node);
        let takes = |role| here.accepted(&guest.offered(), role, NodeId(1)).is_some();
        assert!(!takes(guest.role));
        gate.change(|rules| rules.invitations.extend([(secret.id(), secret.verifier())]));
        assert!(takes(guest.role));
        assert!(!takes(Role::Node) && !takes(Role::Driver), "it is no mesh key");
    }
}
