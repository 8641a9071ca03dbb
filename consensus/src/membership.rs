//! Who founds a mesh, who joins it, and who votes in it: pure rules over what is known.
//!
//! ```text
//!   no mesh ──found──> only voter        (the smallest id, once discovery has closed)
//!      └─────join───> learner ──caught up, a seat is free──> voter
//!                        ^                                     │
//!                        └──── dead for a while, replaced ─────┘
//! ```
//!
//! A mesh of two has two voters, so that what is accepted is on both disks, and the one that is left when the
//! other falls silent carries on alone ([`survives`]).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use floe_protocol::message::MeshView;
use floe_protocol::{Era, NodeId};

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
        /// The mesh, in its present era.
        era: Era,
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

impl Configuration {
    /// Everybody whose vote counts.
    pub fn voting(&self) -> BTreeSet<NodeId> {
        &self.voters | &self.outgoing
    }

    /// Whether these nodes can agree on something: a majority of the voters, and of the former ones while they change.
    pub fn is_quorum(&self, nodes: &BTreeSet<NodeId>) -> bool {
        let majority = |voters: &BTreeSet<NodeId>| voters.intersection(nodes).count() > voters.len() / 2;
        majority(&self.voters) && (self.outgoing.is_empty() || majority(&self.outgoing))
    }
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
/// A mesh that exists is joined at once; of several with a leader, the one that wins. `left` are the eras
/// that the node has left, to which it cannot come back. Otherwise all wait until the views close (nobody names a
/// node that has not answered), and the smallest id founds.
pub fn genesis(
    me: NodeId,
    views: &BTreeMap<NodeId, MeshView>,
    left: &[Era],
    elapsed_ms: u64,
    expect: Option<usize>,
) -> Decision {
    let open = |view: &MeshView| view.era.filter(|era| !has_left(left, *era));
    let member = views.values().filter_map(|view| Some((open(view)?, view))).max_by_key(|(era, view)| {
        // Only a mesh with a leader can take a node in.
        (view.leader.is_some(), *era, Reverse(view.node))
    });
    if let Some((era, view)) = member {
        let through = view.leader.filter(|leader| views.contains_key(leader)).unwrap_or(view.node);
        return Decision::Join { through, era };
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

/// Whether a node that has left these eras must keep out of this one: it left it, or the one that went on from it.
/// What it promised there is forgotten, so it must not promise anything again.
pub fn has_left(left: &[Era], era: Era) -> bool {
    left.iter().any(|gone| *gone == era || gone.supersedes(&era))
}

/// One of a pair of voters that has heard nothing of the other for this long carries on without it: two
/// elections' time at least, in which a living one would have spoken.
pub const SURVIVOR_MS: u64 = 2_000;

/// The same, for one that has not heard of the other since it started, or went on after it slept or was stopped: longer
/// than a laptop takes to be on its network again, or both may just be starting.
pub const ALONE_MS: u64 = 15_000;

/// Whether this node, without a leader, goes on without the other voters: when a majority must contain one
/// other node, and just that one is silent. `heard_ms_ago` says of whom this node has heard how long ago, and of
/// nobody else since it started or was last asleep, `up_ms` ago. `configurations` are the one that holds and, in order,
/// those that changes in this node's log lead to that may have been agreed on without its knowledge.
///
/// With three voters or more a majority of them decides, and this node may just be cut off from it; of a pair
/// each may think so of the other, and both carry on until they meet again.
pub fn survives(
    me: NodeId,
    configurations: &[Configuration],
    heard_ms_ago: &BTreeMap<NodeId, u64>,
    up_ms: u64,
) -> bool {
    let silent = |node: &NodeId| match heard_ms_ago.get(node) {
        Some(ago_ms) => *ago_ms >= SURVIVOR_MS,
        None => up_ms >= ALONE_MS,
    };
    let left_over = |pair: &BTreeSet<NodeId>| {
        pair.len() == 2 && pair.contains(&me) && pair.iter().any(|node| *node != me && silent(node))
    };
    // If one of them needs no word of this node, others may have gone on by it.
    let needed = |configuration: &Configuration| {
        left_over(&configuration.voters) || left_over(&configuration.outgoing)
    };
    !configurations.is_empty() && configurations.iter().all(needed)
}

/// How many voters a mesh of `members` nodes wants: few enough that a commit stays quick, and an odd number,
/// but for two.
pub fn wanted_voters(members: usize) -> usize {
    match members {
        0..=1 => 1,
        2 => 2,
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
    // The dead are replaced before seats are filled: a mesh that knows of many nodes that are gone has more seats
    // than it can fill, and must not wait for that.
    let dead = leaving.iter().filter(|node| !alive.contains(node)).count().saturating_sub(surplus);
    let replaced = dead.min(candidates.len());
    let mut promoted = seats.min(candidates.len() - replaced);
    // An even number of voters bears no more losses than one less, and needs one more for a majority; but of two
    // the one that is left carries on.
    let voting = staying.len() + promoted;
    if promoted > 0 && voting > 2 && voting % 2 == 0 {
        promoted -= 1;
    }
    let mut change = Change {
        promote: candidates[..promoted + replaced].to_vec(),
        demote: leaving[..surplus + replaced].to_vec(),
        add_learners,
        remove,
    };
    let here = |node: &&NodeId| **node == leader || (alive.contains(node) && caught_up.contains(node));
    // When a voter leaves, a pair may be left over: not one whose other half is away, which could agree on nothing.
    let left: Vec<_> = staying.iter().filter(|node| !change.demote.contains(node)).collect();
    if let ([], [one, other]) = (change.promote.as_slice(), left.as_slice())
        && change.remove.iter().any(|node| voters.contains(node))
    {
        change.demote.extend([**one, **other].iter().filter(|node| !here(node)));
    }
    // A voter that leaves keeps its vote until a majority of the others is here: with one of them dead and no
    // learner caught up, the rest could never agree on anything again.
    let stay = staying.iter().filter(|node| !change.demote.contains(node));
    let others: Vec<_> = stay.chain(&change.promote).collect();
    if others.iter().copied().filter(here).count() * 2 <= others.len() {
        change.remove.retain(|node| !voters.contains(node));
    }
    (!change.is_empty()).then_some(change)
}
