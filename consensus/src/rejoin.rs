//! A node that comes back to its mesh: whom it tells where it is now, whether it takes part in elections meanwhile, and
//! when it turns out to be a copy of one that runs.
//!
//! ```text
//!   started, with a log ──look──> tell the leader ──agreed──> listed as it is now
//!                        │  ^
//!                        └──┴─ nobody leads: wait, and vote
//!                        ├───> somebody knows of a start that this directory has missed: it was put back
//!                        └───> the others say that this node leads, look after look: it is a copy
//! ```
//!
//! What a directory that was put back has promised since, nobody can know by itself. Until it has looked around it does not
//! vote.

use std::collections::BTreeMap;

use floe_protocol::message::MeshView;
use floe_protocol::{Incarnation, NodeId};

/// How often in a row others may call this node their leader that does not lead: for as long as its former process is not
/// missed, at ten looks a second. It is not the time that counts, in which this process may have been stopped.
pub const NAMED_LOOKS: u32 = 50;

/// The same if only most of those say so who know of a leader at all. The others may be copies too; or the mesh has none,
/// and few have not missed it yet.
pub const NAMED_BY_FEW_LOOKS: u32 = 3 * NAMED_LOOKS;

/// What a node does after a look around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It tells its mesh by itself: it knows the leader, or leads.
    Propose,
    /// It tells this node, which leads as others say.
    Tell(NodeId),
    /// It looks again.
    Wait,
    /// It ends: another process leads the mesh under its name, with its data directory.
    IsLedByAnother,
    /// It ends: the mesh knows of a start of this node that its data directory has missed.
    HasMissed,
}

/// What a look around showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// What to do.
    pub next: Next,
    /// Whether the node keeps out of elections ([`crate::Participant::withhold_vote`]). Others that have a leader need no vote
    /// of a start that the mesh does not know; those whose leader this node heard too may when that dies.
    pub withholds: bool,
}

/// A node on its way back into its mesh.
#[derive(Clone, Debug, Default)]
pub struct Rejoin {
    /// How often in a row most others have called it their leader, and most of those who know of one.
    named: u32,
    named_by_few: u32,
}

impl Rejoin {
    /// Takes in what this node knows of its mesh, `own`, at this start, and what each of its peers answered. Nobody need be
    /// asked by a node that [`knows_leader`].
    pub fn look(&mut self, start: &Incarnation, own: &MeshView, views: &BTreeMap<NodeId, MeshView>) -> Look {
        let known = views.values().chain([own]).filter_map(|view| view.known.as_ref());
        if known.into_iter().any(|known| !start.follows(known)) {
            return Look { next: Next::HasMissed, withholds: true };
        }
        if knows_leader(own) {
            (self.named, self.named_by_few) = (0, 0);
            return Look { next: Next::Propose, withholds: false };
        }
        let leaders: Vec<_> =
            views.values().filter(|view| view.era == own.era).map(|view| view.leader).collect();
        let others = leaders.iter().copied().flatten().filter(|leader| *leader != own.node);
        let told = others.min_by_key(|leader| (!own.peers.contains(leader), *leader));
        let withholds = leaders.iter().any(Option::is_some);
        // One that was stopped for a while is late to miss the former process.
        let names_this = leaders.iter().filter(|leader| **leader == Some(own.node)).count();
        let in_a_row = |count: u32, of: usize| if names_this * 2 > of { count + 1 } else { 0 };
        self.named = in_a_row(self.named, leaders.len());
        self.named_by_few = in_a_row(self.named_by_few, leaders.iter().flatten().count());
        let is_named = self.named_by_few > 0;
        let next = match told {
            _ if self.named > NAMED_LOOKS || self.named_by_few > NAMED_BY_FEW_LOOKS => Next::IsLedByAnother,
            Some(leader) if !is_named => Next::Tell(leader),
            None if own.leader.is_some() && !is_named => Next::Propose,
            _ => Next::Wait,
        };
        Look { next, withholds }
    }
}

/// Whether a node hears from a leader. One that is gone for good is not forgotten by those to whom nobody says so.
pub fn knows_leader(own: &MeshView) -> bool {
    own.leader.is_some_and(|leader| own.peers.contains(&leader))
}

#[cfg(test)]
mod tests {
    use floe_protocol::{Era, MeshId};

    use super::*;

    const ERA: Era = Era { mesh: MeshId(7), epoch: 1, founder: NodeId(1) };

    fn view(node: u64, leader: Option<u64>) -> MeshView {
        MeshView {
            node: NodeId(node),
            era: Some(ERA),
            work_ms: None,
            leader: leader.map(NodeId),
            peers: vec![NodeId(1), NodeId(2), NodeId(3)],
            ended: Vec::new(),
            members: Vec::new(),
            known: Some(Incarnation { number: 2, marks: vec![12, 11] }),
        }
    }

    /// This node's present start.
    fn start() -> Incarnation {
        Incarnation { number: 3, marks: vec![13, 12, 11] }
    }

    /// What node 1 finds, of which the others say that these lead.
    fn look(rejoin: &mut Rejoin, own: &MeshView, leaders: &[Option<u64>]) -> Look {
        let views = (2..).zip(leaders).map(|(node, leader)| (NodeId(node), view(node, *leader)));
        rejoin.look(&start(), own, &views.collect())
    }

    #[test]
    fn the_leader_is_told_and_needs_no_vote() {
        let mut rejoin = Rejoin::default();
        let found = look(&mut rejoin, &view(1, None), &[None, Some(2)]);
        assert_eq!(found, Look { next: Next::Tell(NodeId(2)), withholds: true });
        let found = look(&mut rejoin, &view(1, Some(3)), &[]);
        assert_eq!(found, Look { next: Next::Propose, withholds: false }, "it hears from it");
        let found = look(&mut rejoin, &view(1, None), &[None, None]);
        assert_eq!(found, Look { next: Next::Wait, withholds: false }, "they need its vote");
    }

    #[test]
    fn a_leader_that_is_gone_is_asked_after() {
        let gone = MeshView { peers: vec![NodeId(1), NodeId(2)], ..view(1, Some(3)) };
        let found = look(&mut Rejoin::default(), &gone, &[Some(2)]);
        assert_eq!(found.next, Next::Tell(NodeId(2)));
        // One that can be reached goes before one that cannot.
        let found = look(&mut Rejoin::default(), &gone, &[Some(3), Some(2)]);
        assert_eq!(found.next, Next::Tell(NodeId(2)));
    }

    #[test]
    fn what_others_say_of_another_era_counts_for_nothing() {
        let other = MeshView { era: Some(Era { epoch: 2, ..ERA }), ..view(2, Some(2)) };
        let found = Rejoin::default().look(&start(), &view(1, None), &BTreeMap::from([(NodeId(2), other)]));
        assert_eq!(found, Look { next: Next::Wait, withholds: false });
    }

    #[test]
    fn a_copy_is_found_out_when_most_others_say_so_for_long() {
        let mut rejoin = Rejoin::default();
        for _ in 0..NAMED_LOOKS {
            let found = look(&mut rejoin, &view(1, None), &[Some(1), Some(1)]);
            assert_eq!(found, Look { next: Next::Wait, withholds: true });
        }
        let mut once = rejoin.clone();
        assert_eq!(look(&mut once, &view(1, None), &[Some(2), Some(1)]).next, Next::Tell(NodeId(2)));
        assert_eq!(look(&mut once, &view(1, None), &[Some(1), Some(1)]).next, Next::Wait, "it begins anew");
        assert_eq!(look(&mut rejoin, &view(1, None), &[Some(1), Some(1)]).next, Next::IsLedByAnother);
        // Another copy, which it takes for the node that runs, does not know the leader either.
        let mut beside = Rejoin::default();
        for _ in 0..NAMED_BY_FEW_LOOKS {
            assert_eq!(look(&mut beside, &view(1, None), &[Some(1), None]).next, Next::Wait);
        }
        assert_eq!(look(&mut beside, &view(1, None), &[Some(1), None]).next, Next::IsLedByAnother);
    }

    #[test]
    fn a_directory_that_has_missed_a_start_is_told_by_whoever_knows_of_it() {
        let (own, mut rejoin) = (view(1, None), Rejoin::default());
        let missed = Incarnation { number: 3, marks: vec![99, 12, 11] };
        let knowing = MeshView { known: Some(missed.clone()), ..view(3, None) };
        let views = BTreeMap::from([(NodeId(2), view(2, Some(2))), (NodeId(3), knowing)]);
        let found = rejoin.look(&start(), &own, &views);
        assert_eq!(found, Look { next: Next::HasMissed, withholds: true });
        // It may have got the log since, and know so itself.
        let own = MeshView { known: Some(missed), ..view(1, Some(2)) };
        assert_eq!(rejoin.look(&start(), &own, &BTreeMap::new()).next, Next::HasMissed);
        let own = MeshView { known: Some(start()), ..view(1, Some(2)) };
        assert_eq!(rejoin.look(&start(), &own, &BTreeMap::new()).next, Next::Propose);
        let stranger = MeshView { known: None, ..view(2, Some(2)) };
        let found = rejoin.look(&start(), &view(1, None), &BTreeMap::from([(NodeId(2), stranger)]));
        assert_eq!(found.next, Next::Tell(NodeId(2)));
    }
}
