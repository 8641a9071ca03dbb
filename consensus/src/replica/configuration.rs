//! Who votes and who learns by this node's log, and changes of that.

use std::collections::BTreeSet;

use floe_protocol::NodeId;
use protobuf::Message as _;
use raft::StateRole;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, EntryType,
};

use super::{ProposeError, Replica};
use crate::membership::{Change, Configuration};

impl Replica {
    /// The voters and learners as they are and, in order, as they will be after each change in this node's log that it
    /// does not know to be agreed on. None at all if that cannot be told.
    pub fn configurations(&self) -> Vec<Configuration> {
        let Ok(tail) = self.tail() else { return Vec::new() };
        let mut all = vec![self.configuration()];
        for entry in tail {
            if entry.entry_type == EntryType::EntryNormal {
                continue;
            }
            // An unreadable change is refused by every node.
            let Ok(change) = ConfChangeV2::parse_from_bytes(&entry.data) else { continue };
            all.extend(all.last().map(|before| after(before, &change)));
        }
        all
    }

    /// Proposes a change of voters and learners, as [`crate::membership::next_change`] wants it. More than one
    /// step at once goes through a joint configuration, in which both majorities must agree, and leaves it by
    /// itself.
    pub fn change(&mut self, change: &Change) -> Result<(), ProposeError> {
        self.check_leads()?;
        if self.raw.raft.has_pending_conf() || !self.configuration().outgoing.is_empty() {
            return Err(ProposeError::ChangePending);
        }
        let kinds = [
            (&change.promote, ConfChangeType::AddNode),
            (&change.demote, ConfChangeType::AddLearnerNode),
            (&change.add_learners, ConfChangeType::AddLearnerNode),
            (&change.remove, ConfChangeType::RemoveNode),
        ];
        let single = |node: &NodeId, kind| ConfChangeSingle {
            change_type: kind,
            node_id: node.0,
            ..Default::default()
        };
        let changes: Vec<_> = kinds
            .into_iter()
            .flat_map(|(nodes, kind)| nodes.iter().map(move |node| single(node, kind)))
            .collect();
        let change = ConfChangeV2 {
            transition: ConfChangeTransition::Auto,
            changes: changes.into(),
            ..ConfChangeV2::default()
        };
        self.raw.propose_conf_change(Vec::new(), change).map_err(|_| ProposeError::Busy)
    }

    pub(super) fn configuration(&self) -> Configuration {
        let conf = self.raw.raft.prs().conf().to_conf_state();
        let set = |ids: &[u64]| ids.iter().map(|id| NodeId(*id)).collect::<BTreeSet<_>>();
        Configuration {
            voters: set(&conf.voters),
            learners: set(&conf.learners).union(&set(&conf.learners_next)).copied().collect(),
            outgoing: set(&conf.voters_outgoing),
        }
    }

    /// Everybody whose vote counts, and those whose votes did before the last change while it might be forgotten: by this
    /// node, should it start again, or, as far as a leader is told, by as many voters as it takes to elect another one.
    pub(super) fn voting(&self) -> BTreeSet<NodeId> {
        let configuration = self.configuration();
        let (me, progress) = (self.config.id, self.raw.raft.prs());
        let knows = |node: NodeId| match node == me {
            true => self.durable_commit >= self.changed_index,
            false => progress.get(node.0).is_some_and(|p| p.committed_index >= self.changed_index),
        };
        let Configuration { voters, .. } = &configuration;
        let is_known = match self.leads() {
            true => voters.iter().filter(|node| knows(**node)).count() * 2 > voters.len(),
            false => knows(me),
        };
        let voting = configuration.voting();
        if is_known { voting } else { &voting | &self.former_voters }
    }

    pub(super) fn conf_state(&self) -> ConfState {
        self.raw.raft.prs().conf().to_conf_state()
    }

    /// A node may be elected while the entry that removes it is on its way. raft-rs would let it lead on, and
    /// panic at the next acknowledgement for want of its own progress.
    pub(super) fn step_down_if_removed(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && raft.prs().get(raft.id).is_none() {
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
    }
}

/// The configuration that a change leads to: more than one step at once goes through one in which the votes of both
/// count, and no step at all leaves that.
fn after(before: &Configuration, change: &ConfChangeV2) -> Configuration {
    let mut after = Configuration { outgoing: BTreeSet::new(), ..before.clone() };
    for step in &change.changes {
        let node = NodeId(step.node_id);
        let (votes, learns) = match step.change_type {
            ConfChangeType::AddNode => (true, false),
            ConfChangeType::AddLearnerNode => (false, true),
            ConfChangeType::RemoveNode => (false, false),
        };
        let keep =
            |set: &mut BTreeSet<NodeId>, keeps| if keeps { set.insert(node) } else { set.remove(&node) };
        keep(&mut after.voters, votes);
        keep(&mut after.learners, learns);
    }
    if change.changes.len() > 1 {
        after.outgoing = before.voters.clone();
    }
    after
}
