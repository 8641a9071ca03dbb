//! Whether a node is the one that the mesh knows: its data directory may have been copied, or put back from a backup, and
//! then another process speaks under its name.

use std::collections::BTreeMap;

use floe_protocol::{Failure, Incarnation, Member, NodeId};

use super::Participant;

/// While the start that the mesh knows was heard within this time, a later one counts for nothing: a process that ended
/// says nothing more, and a node with a vote speaks several times as often.
const SILENCE_MS: u64 = 1_000;

/// Whoever comes as a node whose known start still speaks after this time is a copy.
const PATIENCE_MS: u64 = 2_500;

/// What was heard of nodes under their names.
#[derive(Debug, Default)]
pub(super) struct Doubles {
    /// When the start that the mesh knows last spoke.
    known_ms: BTreeMap<NodeId, u64>,
    /// Since when a later start asks to be let in.
    newer: BTreeMap<NodeId, (Incarnation, u64)>,
}

impl Doubles {
    /// The mesh knows of another start of the node now.
    pub(super) fn joined(&mut self, node: NodeId) {
        self.known_ms.remove(&node);
        self.newer.remove(&node);
    }

    /// Keeps only what concerns members.
    pub(super) fn retain(&mut self, is_member: impl Fn(&NodeId) -> bool) {
        self.known_ms.retain(|node, _| is_member(node));
        self.newer.retain(|node, _| is_member(node));
    }
}

impl Participant {
    /// Whether what a node says counts, by the start that says it.
    pub(super) fn is_itself(&mut self, node: NodeId, incarnation: &Incarnation) -> bool {
        let now_ms = self.now_ms();
        let Some(known) = self.replica.state().members().get(&node) else { return true };
        if !incarnation.follows(&known.incarnation) {
            return false;
        }
        if incarnation.number == known.incarnation.number {
            self.doubles.known_ms.insert(node, now_ms);
            return true;
        }
        // The mesh has yet to be told of this start; and the process before it may not be gone.
        !self.known_speaks(node)
    }

    fn known_speaks(&self, node: NodeId) -> bool {
        let since_ms = self.now_ms().saturating_sub(SILENCE_MS);
        self.doubles.known_ms.get(&node).is_some_and(|known_ms| *known_ms >= since_ms)
    }

    /// Whether the leader may let a node in, or have its new start agreed on: not while the one that is known runs. The
    /// error is final ([`Failure::Superseded`]) if that one does not end, or if no mesh takes such a node
    /// ([`Failure::Refused`]).
    pub fn admit(&mut self, member: &Member) -> Result<(), Failure> {
        member.check().map_err(|message| Failure::Refused { message })?;
        let Some(known) = self.replica.state().members().get(&member.id) else { return Ok(()) };
        let is_own = member.id == self.member.id;
        let is_this = is_own && member.incarnation == self.member.incarnation;
        if !self.replica.leads() || is_this || known.incarnation == member.incarnation {
            return Ok(());
        }
        let at = known.addresses.first().cloned().unwrap_or_default();
        if !is_own && !self.known_speaks(member.id) {
            return Ok(());
        }
        let now_ms = self.now_ms();
        let newer =
            self.doubles.newer.entry(member.id).or_insert_with(|| (member.incarnation.clone(), now_ms));
        if newer.0 != member.incarnation {
            *newer = (member.incarnation.clone(), now_ms);
        }
        let name = &member.name;
        if is_own || now_ms >= newer.1 + PATIENCE_MS {
            let message = format!(
                "another process, at {at}, runs as node {name} and knows more of it: this data directory is a copy"
            );
            return Err(Failure::Superseded { message });
        }
        Err(Failure::Unavailable {
            message: format!("the former process of node {name} may still run: try again"),
        })
    }
}
