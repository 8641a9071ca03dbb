//! Who votes: what a leader changes of voters and learners, one change at a time.
//!
//! ```text
//!   leader: this learner is to vote ──Prepare──> it gets what voters keep beside the log ──Prepared──> the change
//! ```
//!
//! A majority of voters has what the log names by its digest. A learner that got a vote without that could make a
//! majority with others that lack it too.

use std::collections::{BTreeMap, BTreeSet};

use floe_protocol::{Fence, NodeId, PeerMessage};

use super::{Action, Order, Participant};
use crate::membership::{DEAD_MS, heir, next_change};

/// How often a leader looks at its voters.
const INTERVAL_MS: u64 = 250;

/// How often a learner that is to vote is told so.
const ASK_INTERVAL_MS: u64 = 1_000;

/// The others that are to vote wait so long for one that is not ready, so that as a rule one change makes all of them
/// voters.
const TOGETHER_MS: u64 = 1_000;

/// A learner gets its vote after this long, ready or not: it keeps nothing safe, but with a seat empty the next loss
/// may be the mesh's.
const PATIENCE_MS: u64 = 30_000;

/// How long a learner is remembered that is not to vote any more: what it got meanwhile is lost again then.
const READY_MS: u64 = 5_000;

/// A leader's knowledge of those that are to vote.
#[derive(Debug, Default)]
pub(super) struct Voters {
    due_ms: u64,
    candidates: BTreeMap<NodeId, Candidate>,
}

/// A learner that is to vote.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// When that was seen first, and last.
    since_ms: u64,
    wanted_ms: u64,
    /// When it was told.
    asked_ms: Option<u64>,
    ready: bool,
}

impl Voters {
    /// Whether it is time to look at the voters again.
    pub(super) fn is_due(&mut self, now_ms: u64) -> bool {
        let due = now_ms >= self.due_ms;
        if due {
            self.due_ms = now_ms + INTERVAL_MS;
        }
        due
    }

    /// These learners are to vote. Gives those of them that are to be told so now.
    fn want(&mut self, learners: &[NodeId], now_ms: u64) -> Vec<NodeId> {
        for learner in learners {
            let new = Candidate { since_ms: now_ms, wanted_ms: now_ms, asked_ms: None, ready: false };
            self.candidates.entry(*learner).or_insert(new).wanted_ms = now_ms;
        }
        self.candidates.retain(|_, candidate| candidate.wanted_ms + READY_MS > now_ms);
        let unaware = self.candidates.iter_mut().filter(|(_, candidate)| {
            candidate.wanted_ms == now_ms
                && !candidate.ready
                && candidate.asked_ms.is_none_or(|asked_ms| asked_ms + ASK_INTERVAL_MS <= now_ms)
        });
        let unaware = unaware.map(|(node, candidate)| {
            candidate.asked_ms = Some(now_ms);
            *node
        });
        unaware.collect()
    }

    /// Those that can be given a vote now.
    fn ready(&self, now_ms: u64) -> BTreeSet<NodeId> {
        let wanted = self.candidates.iter().filter(|(_, candidate)| candidate.wanted_ms == now_ms);
        let (ready, others): (Vec<_>, Vec<_>) =
            wanted.partition(|(_, candidate)| candidate.ready || candidate.since_ms + PATIENCE_MS <= now_ms);
        if others.iter().any(|(_, candidate)| candidate.since_ms + TOGETHER_MS > now_ms) {
            return BTreeSet::new();
        }
        ready.into_iter().map(|(node, _)| *node).collect()
    }

    fn prepared(&mut self, node: NodeId) {
        if let Some(candidate) = self.candidates.get_mut(&node) {
            candidate.ready = true;
        }
    }
}

impl Participant {
    /// On the leader: brings voters and learners closer to what the mesh wants, one change at a time, and hands
    /// over once it is a member no more.
    pub(super) fn keep_membership(&mut self) {
        let Some(scheduler) = &self.scheduler else { return };
        let (me, now_ms, fence) = (self.member.id, self.now_ms(), scheduler.fence());
        let members: BTreeSet<NodeId> = self.state().members().keys().copied().collect();
        let connected: BTreeSet<NodeId> =
            members.iter().copied().filter(|node| self.is_connected(*node)).collect();
        // A seat is kept for a while for a voter that is away, and given only to who is here.
        let heard = &scheduler.heard_within(DEAD_MS) | &connected;
        let mut caught_up = &self.replica.caught_up() & &connected;
        let configuration = self.replica.standing().configuration;
        let mut next = next_change(&members, &configuration, &heard, &caught_up, me);
        if let Some(change) = &next
            && !change.promote.is_empty()
        {
            let unaware = self.voters.want(&change.promote, now_ms);
            let ready = self.voters.ready(now_ms);
            caught_up.retain(|node| !configuration.learners.contains(node) || ready.contains(node));
            next = next_change(&members, &configuration, &heard, &caught_up, me);
            for learner in unaware {
                self.send(learner, PeerMessage::Prepare { fence });
            }
        }
        // What does not come about now is tried again soon.
        let _ = match next {
            Some(change) => self.replica.change(&change),
            None if !members.contains(&me) => {
                // One that has left this era would never take over, and meanwhile nothing could be agreed on.
                let here = connected.into_iter().filter(|node| self.speaks(*node)).collect();
                heir(&members, &configuration, &here, me)
                    .map_or(Ok(()), |heir| self.replica.transfer_leader(heir))
            }
            None => Ok(()),
        };
    }

    /// On a learner: its leader means to give it a vote.
    pub(super) fn prepare(&mut self, to: NodeId, fence: Fence) {
        self.actions.push_back(Action::Order(Order::Prepare { to, fence }));
    }

    /// On the leader: a learner has what voters keep.
    pub(super) fn prepared(&mut self, from: NodeId, fence: Fence) {
        if self.scheduler.as_ref().is_some_and(|scheduler| scheduler.fence() == fence) {
            self.voters.prepared(from);
            self.keep_membership();
        }
    }
}
