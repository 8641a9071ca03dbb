//! What raft-rs takes for granted of a peer's message, checked. raft-rs trusts its peers and panics where an
//! invariant breaks; a peer with a damaged disk or a bug must not take this node with it.

use std::collections::BTreeSet;

use floe_protocol::NodeId;
use raft::eraftpb::{ConfState, Message, MessageType};
use raft::{Raft, StateRole, Storage};

use crate::state_machine::{RestoreError, StateMachine};

/// Indices and terms beyond this come from no log that could exist, and would overflow when counted on.
const MAX_NUMBER: u64 = 1 << 56;

/// The context of a read or a heartbeat: a request id, or raft-rs' own marks.
const MAX_CONTEXT_BYTES: usize = 64;

/// Why a peer's message was not taken.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Not a Raft message.
    #[error("a raft message cannot be read: {0}")]
    Malformed(String),
    /// For another node.
    #[error("a raft message for node {to} came here")]
    Misaddressed {
        /// The node it is for.
        to: NodeId,
    },
    /// An answer from a node that is neither voter nor learner (any more).
    #[error("node {from} answers, but is not a part of this mesh")]
    UnknownPeer {
        /// The node.
        from: NodeId,
    },
    /// No correct peer sends this.
    #[error("node {from} sent an impossible raft message: {what}")]
    Impossible {
        /// The node.
        from: NodeId,
        /// What is wrong with it.
        what: &'static str,
    },
    /// This node has lost what it acknowledged: its disk was put back as it was before.
    #[error(
        "node {from} knows that this node acknowledged entry {acknowledged} of the log, which ends at {last} here"
    )]
    Forgotten {
        /// The leader.
        from: NodeId,
        /// The index of an entry that this node has had.
        acknowledged: u64,
        /// The index of the last one it has.
        last: u64,
    },
    /// Its snapshot cannot be restored here.
    #[error("node {from} sent a snapshot that cannot be used: {reason}")]
    Snapshot {
        /// The node.
        from: NodeId,
        /// Why not.
        reason: RestoreError,
    },
    /// This node's log is being replaced, or its disk does not keep up: what comes now counts as lost.
    #[error("this node's disk is busy")]
    Busy,
}

/// The state of the message's snapshot comes back, if it has one: to read it takes long, so it is read once.
pub(super) fn check<S: Storage>(
    raft: &Raft<S>,
    message: &Message,
) -> Result<Option<StateMachine>, StepError> {
    if message.to != raft.id {
        return Err(StepError::Misaddressed { to: NodeId(message.to) });
    }
    let from = NodeId(message.from);
    if let Some(what) = flaw(raft, message) {
        return Err(StepError::Impossible { from, what });
    }
    let last = raft.raft_log.last_index();
    // What a leader commits with a heartbeat the node has acknowledged. raft-rs would not survive that it has not.
    if message.msg_type == MessageType::MsgHeartbeat && message.term >= raft.term && message.commit > last {
        return Err(StepError::Forgotten { from, acknowledged: message.commit, last });
    }
    if message.msg_type == MessageType::MsgSnapshot {
        // Read now: once raft-rs has taken it there is no way back.
        return StateMachine::restore(message.get_snapshot().get_data())
            .map(Some)
            .map_err(|reason| StepError::Snapshot { from, reason });
    }
    Ok(None)
}

fn flaw<S: Storage>(raft: &Raft<S>, m: &Message) -> Option<&'static str> {
    if m.from == 0 || m.from == raft.id {
        return Some("it claims to come from nobody, or from this node");
    }
    let numbers = [m.term, m.log_term, m.index, m.commit, m.commit_term, m.reject_hint];
    if numbers.iter().any(|number| *number > MAX_NUMBER) {
        return Some("a number in it is out of range");
    }
    if m.context.len() > MAX_CONTEXT_BYTES {
        return Some("its context is too long");
    }
    let last = raft.raft_log.last_index();
    // Messages of older terms are answered or dropped before anything in them counts.
    let counts = m.term >= raft.term;
    match m.msg_type {
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum => Some("its type is for use within a node"),
        MessageType::MsgPropose | MessageType::MsgTransferLeader => {
            Some("proposals do not travel as raft messages")
        }
        // A follower that gets one passes it on, which raft-rs does only with those that have no term.
        MessageType::MsgReadIndex if m.term != 0 => Some("a read with a term"),
        MessageType::MsgReadIndex => (m.entries.len() != 1 || m.entries[0].data.len() > MAX_CONTEXT_BYTES)
            .then_some("a read without its context"),
        _ if m.term == 0 => Some("it has no term"),
        MessageType::MsgReadIndexResp => (m.entries.len() != 1).then_some("a read without its context"),
        MessageType::MsgTimeoutNow => (counts && m.from != raft.leader_id)
            .then_some("an order to campaign from a node that does not lead"),
        MessageType::MsgAppend => append_flaw(m),
        MessageType::MsgSnapshot => snapshot_flaw(m),
        MessageType::MsgAppendResponse => {
            let leads = raft.state == StateRole::Leader && m.term == raft.term;
            (leads && !m.reject && m.index > last).then_some("it acknowledges entries that were never sent")
        }
        MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse => None,
    }
}

fn append_flaw(m: &Message) -> Option<&'static str> {
    if (m.index == 0) != (m.log_term == 0) {
        return Some("only the start of the log has no term");
    }
    let mut before = (m.index, m.log_term);
    for entry in m.entries.iter() {
        if entry.index != before.0 + 1 || entry.term < before.1 || entry.term == 0 || entry.term > m.term {
            return Some("its entries are not in sequence");
        }
        before = (entry.index, entry.term);
    }
    None
}

fn snapshot_flaw(m: &Message) -> Option<&'static str> {
    let metadata = m.get_snapshot().get_metadata();
    if metadata.index == 0 || metadata.term == 0 || metadata.index > MAX_NUMBER || metadata.term > m.term {
        return Some("its snapshot has no place in the log");
    }
    (!is_sound(metadata.get_conf_state())).then_some("the voters of its snapshot contradict each other")
}

/// Whether raft-rs can restore these voters and learners.
fn is_sound(conf: &ConfState) -> bool {
    let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<_>>();
    let lists = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next];
    let distinct = lists.iter().all(|ids| set(ids).len() == ids.len() && !ids.contains(&0));
    let (voters, learners) = (set(&conf.voters), set(&conf.learners));
    let (outgoing, next) = (set(&conf.voters_outgoing), set(&conf.learners_next));
    distinct
        && !voters.is_empty()
        && learners.is_disjoint(&voters)
        && learners.is_disjoint(&outgoing)
        && next.is_subset(&outgoing)
        && next.is_disjoint(&voters)
        && (!outgoing.is_empty() || !conf.auto_leave)
}
