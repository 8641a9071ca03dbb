//! Who founds a mesh, who joins it, and who votes in it: pure rules over what is known.
//!
//! ```text
//!   no mesh ──found──> only voter        (the smallest id, once discovery has closed)
//!      └─────join───> learner ──caught up, a seat is free──> voter
//!                        ^                                     │
//!                        └──── dead for a while, replaced ─────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};

use floe_protocol::message::MeshView;
use floe_protocol::{MeshId, NodeId};

/// How long a node looks for others before it founds a mesh.
pub const DISCOVERY_MS: u64 = 3_000;

/// How long it waits for its view of the others to close: a node that others name but that never answers must
/// not keep the rest from starting.
pub const DISCOVERY_LIMIT_MS: u64 = 10_000;

/// A voter not heard of for this long is replaced.
pub const DEAD_MS: u64 = 10_000;

/// What a node without a mesh does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Wait, and look again.
    Wait,
    /// Found a mesh.
    Found,
    /// Join the mesh that this node is of.
    Join {
        /// A member to ask: the leader if one is known.
        through: NodeId,
        /// The mesh.
        mesh: MeshId,
    },
}

/// Voters and learners of a mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Who replicates without a vote.
    pub learners: BTreeSet<NodeId>,
    /// Whose votes count too while a change is under way.
    pub outgoing: BTreeSet<NodeId>,
}

/// One change of voters and learners, made at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Learners that shall vote.
    pub promote: Vec<NodeId>,
    /// Voters that shall vote no more.
    pub demote: Vec<NodeId>,
    /// Members that shall replicate.
    pub add_learners: Vec<NodeId>,
    /// Nodes that are members no more.
    pub remove: Vec<NodeId>,
}

impl Change {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.promote.is_empty()
            && self.demote.is_empty()
            && self.add_learners.is_empty()
            && self.remove.is_empty()
    }
}

/// What a node without a mesh does, `elapsed_ms` after it started to look for others. `views` holds what each
/// node it is connected to answered; `expect` is how many nodes, itself included, its owner told it to wait
/// for.
///
/// A mesh that exists is joined at once (of several, the one with the smallest id: every node picks alike).
/// Otherwise all wait until the views close (nobody names a node that has not answered), and the smallest id
/// founds.
pub fn genesis(
    me: NodeId,
    views: &BTreeMap<NodeId, MeshView>,
    elapsed_ms: u64,
    expect: Option<usize>,
) -> Decision {
    let member = views.values().filter_map(|view| Some((view.mesh?, view))).min_by_key(|(mesh, _)| *mesh);
    if let Some((mesh, view)) = member {
        let through = view.leader.filter(|leader| views.contains_key(leader)).unwrap_or(view.node);
        return Decision::Join { through, mesh };
    }
    let answered: BTreeSet<_> = views.keys().copied().chain([me]).collect();
    let named: BTreeSet<_> = views.values().flat_map(|view| view.peers.iter().copied()).chain([me]).collect();
    let closed = named.is_subset(&answered);
    let enough = expect.is_none_or(|count| answered.len() >= count);
    let expected = expect.is_some() && enough && closed;
    let patient = elapsed_ms < DISCOVERY_MS || (!closed && elapsed_ms < DISCOVERY_LIMIT_MS);
    if !enough || (patient && !expected) {
        return Decision::Wait;
    }
    if answered.first() == Some(&me) { Decision::Found } else { Decision::Wait }
}

/// How many voters a mesh of `members` nodes wants: an odd number, few enough that a commit stays quick.
pub fn wanted_voters(members: usize) -> usize {
    match members {
        0..=2 => 1,
        3..=6 => 3,
        _ => 5,
    }
}

/// Who takes over from a leader that leaves: a voter that is here to stay.
pub fn heir(
    members: &BTreeSet<NodeId>,
    configuration: &Configuration,
    alive: &BTreeSet<NodeId>,
    leader: NodeId,
) -> Option<NodeId> {
    let stays = |node: &&NodeId| **node != leader && members.contains(node) && alive.contains(node);
    configuration.voters.iter().find(stays).copied()
}

/// What the leader changes next, if anything: nothing while a change is under way.
///
/// `alive` are the nodes heard of within [`DEAD_MS`], `caught_up` those whose logs are nearly as long as the
/// leader's. The leader itself always stays; one that is a member no more makes sure of an heir and changes
/// nothing else, since its successor can do that without it. Voters are changed only where that is needed, so
/// the choice is stable.
pub fn next_change(
    members: &BTreeSet<NodeId>,
    configuration: &Configuration,
    alive: &BTreeSet<NodeId>,
    caught_up: &BTreeSet<NodeId>,
    leader: NodeId,
) -> Option<Change> {
    if !configuration.outgoing.is_empty() {
        return None;
    }
    let Configuration { voters, learners, .. } = configuration;
    let fit = |node: &&NodeId| members.contains(node) && alive.contains(node) && caught_up.contains(node);
    if !members.contains(&leader) {
        if heir(members, configuration, alive, leader).is_some() {
            return None;
        }
        let promote = vec![*learners.iter().find(fit)?];
        return Some(Change { promote, ..Change::default() });
    }
    let remove: Vec<_> =
        voters.union(learners).filter(|node| !members.contains(node) && **node != leader).copied().collect();
    let add_learners: Vec<_> =
        members.iter().filter(|node| !voters.contains(node) && !learners.contains(node)).copied().collect();

    let staying: Vec<_> = voters.iter().filter(|node| !remove.contains(node)).copied().collect();
    // The dead first, then the highest ids: those are the first to give up their seats.
    let mut leaving: Vec<_> = staying.iter().filter(|node| **node != leader).copied().collect();
    leaving.sort_by_key(|node| (alive.contains(node), std::cmp::Reverse(*node)));
    let candidates: Vec<_> = learners.iter().filter(fit).copied().collect();

    let wanted = wanted_voters(members.len());
    let seats = wanted.saturating_sub(staying.len());
    let surplus = staying.len().saturating_sub(wanted);
    let dead = leaving.iter().filter(|node| !alive.contains(node)).count().saturating_sub(surplus);
    let replaced = dead.min(candidates.len().saturating_sub(seats));
    let mut promoted = seats.min(candidates.len());
    // An even number of voters bears no more losses than one less, and needs one more for a majority.
    if promoted > 0 && (staying.len() + promoted) % 2 == 0 {
        promoted -= 1;
    }
    let mut change = Change {
        promote: candidates[..promoted + replaced].to_vec(),
        demote: leaving[..surplus + replaced].to_vec(),
        add_learners,
        remove,
    };
    // A voter that leaves keeps its vote until a majority of the others is here: with one of them dead and no
    // learner caught up, the rest could never agree on anything again.
    let here = |node: &&NodeId| **node == leader || (alive.contains(node) && caught_up.contains(node));
    let stay = staying.iter().filter(|node| !change.demote.contains(node));
    let others: Vec<_> = stay.chain(&change.promote).collect();
    if others.iter().copied().filter(here).count() * 2 <= others.len() {
        change.remove.retain(|node| !voters.contains(node));
    }
    (!change.is_empty()).then_some(change)
}
