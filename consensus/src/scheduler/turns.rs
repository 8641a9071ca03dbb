//! Whose turn it is: jobs with tasks to assign, one task of each in turn. A job whose next tasks fit no node stays out of
//! the way until something changes that it waits for: a node that can take more, or the job itself.
//!
//! ```text
//!            touched                     fits nowhere
//!   (none) ─────────> in turn ─────────────────────────> blocked
//!                       ^  ^──a node has room for it──────┘ │
//!                       └──touched, or a node is lost───────┘
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use floe_protocol::{JobId, NodeId};

use super::placement::Means;

/// The jobs that wait for their turn.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Each job once.
    turn: VecDeque<JobId>,
    queued: BTreeSet<JobId>,
    /// In the order in which they came to it.
    blocked: BTreeMap<u64, Blocked>,
    blocked_at: BTreeMap<JobId, u64>,
    /// What they need of memory, and their places.
    least: BTreeSet<(u64, u64)>,
    /// Jobs that fitted nowhere, since when, until they are given something: also while they have another try.
    since_ms: BTreeMap<JobId, u64>,
    /// The same, the one that waits for longest first.
    in_order: BTreeSet<(u64, JobId)>,
    count: u64,
}

/// What the next tasks of a job take.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// The least memory that one of them takes.
    pub(super) memory_bytes: u64,
    /// If not empty, nodes that may queue them; others only start them at once.
    pub(super) only: Vec<NodeId>,
}

impl Need {
    /// What either of two tasks takes.
    pub(super) fn or(self, memory_bytes: u64, only: Vec<NodeId>) -> Self {
        let anywhere = self.only.is_empty() || only.is_empty();
        Self {
            memory_bytes: self.memory_bytes.min(memory_bytes),
            only: if anywhere { Vec::new() } else { [self.only, only].concat() },
        }
    }
}

#[derive(Debug)]
struct Blocked {
    job: JobId,
    need: Need,
    /// Nodes that had this to offer and were not for it all the same.
    in_vain: BTreeMap<NodeId, Means>,
}

impl Blocked {
    fn may_fit(&self, node: NodeId, means: Means) -> bool {
        self.need.memory_bytes <= means.memory_bytes
            && (means.at_once || self.need.only.is_empty() || self.need.only.contains(&node))
            && self.in_vain.get(&node).is_none_or(|before| !means.is_within(*before))
    }
}

impl Turns {
    /// A job that has tasks to assign has changed.
    pub(super) fn touched(&mut self, job: JobId) {
        self.unblock(job);
        if self.queued.insert(job) {
            self.turn.push_back(job);
        }
    }

    fn unblock(&mut self, job: JobId) {
        if let Some(number) = self.blocked_at.remove(&job)
            && let Some(blocked) = self.blocked.remove(&number)
        {
            self.least.remove(&(blocked.need.memory_bytes, number));
        }
    }

    /// The next job. It is in turn no more.
    pub(super) fn next(&mut self) -> Option<JobId> {
        let job = self.turn.pop_front()?;
        self.queued.remove(&job);
        Some(job)
    }

    /// A job's next tasks fit no node.
    pub(super) fn block(&mut self, job: JobId, need: Need, now_ms: u64) {
        self.unblock(job);
        let since_ms = *self.since_ms.entry(job).or_insert(now_ms);
        self.in_order.insert((since_ms, job));
        self.count += 1;
        self.blocked_at.insert(job, self.count);
        self.least.insert((need.memory_bytes, self.count));
        self.blocked.insert(self.count, Blocked { job, need, in_vain: BTreeMap::new() });
    }

    /// The first blocked job, from the given place on, that a node with these means might take; and its place.
    pub(super) fn first_for(&self, node: NodeId, means: Means, from: u64) -> Option<(u64, JobId)> {
        if self.least.first().is_none_or(|(least, _)| *least > means.memory_bytes) {
            return None;
        }
        let mut blocked = self.blocked.range(from..);
        blocked
            .find(|(_, blocked)| blocked.may_fit(node, means))
            .map(|(number, blocked)| (*number, blocked.job))
    }

    /// The blocked job in this place fits no node, although this one might have been for it.
    pub(super) fn in_vain(&mut self, number: u64, node: NodeId, means: Means, need: Need) {
        if let Some(blocked) = self.blocked.get_mut(&number) {
            self.least.remove(&(blocked.need.memory_bytes, number));
            self.least.insert((need.memory_bytes, number));
            blocked.need = need;
            blocked.in_vain.insert(node, means);
        }
    }

    /// All blocked jobs have their turn again.
    pub(super) fn wake_all(&mut self) {
        self.wake(1);
    }

    /// One in so many of the blocked jobs, those that are it for longest, and one at least.
    pub(super) fn wake(&mut self, one_in: usize) {
        let count = self.blocked.len().div_ceil(one_in.max(1));
        let woken: Vec<_> = self.blocked.values().take(count).map(|blocked| blocked.job).collect();
        woken.into_iter().for_each(|job| self.touched(job));
    }

    /// Whether a job fits nowhere for now.
    pub(super) fn is_blocked(&self, job: JobId) -> bool {
        self.since_ms.contains_key(&job)
    }

    /// Jobs that are blocked since then or earlier, those behind the given one.
    pub(super) fn blocked_since(
        &self,
        behind: Option<(u64, JobId)>,
        since_ms: u64,
    ) -> impl Iterator<Item = (u64, JobId)> {
        let from = behind.map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.in_order.range((from, Bound::Unbounded)).copied();
        later.take_while(move |(since, _)| *since <= since_ms)
    }

    /// A job was given something.
    pub(super) fn served(&mut self, job: JobId) {
        if let Some(since_ms) = self.since_ms.remove(&job) {
            self.in_order.remove(&(since_ms, job));
        }
    }

    /// A job is over, or has nothing to assign any more.
    pub(super) fn remove(&mut self, job: JobId) {
        self.served(job);
        self.unblock(job);
        if self.queued.remove(&job) {
            self.turn.retain(|queued| *queued != job);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const fn means(memory_bytes: u64, at_once: bool) -> Means {
        Means { memory_bytes, at_once }
    }

    #[test]
    fn the_job_that_is_blocked_longest_comes_first_if_the_node_is_for_it() {
        let mut turns = Turns::default();
        for (job, memory_bytes) in [(1, 300), (2, 100), (3, 100)] {
            turns.touched(JobId(job));
            let next = turns.next().unwrap();
            turns.block(next, Need { memory_bytes, only: vec![] }, 0);
        }
        assert_eq!(turns.next(), None);
        let node = NodeId(7);
        assert_eq!(turns.first_for(node, means(50, true), 0), None);
        let (number, job) = turns.first_for(node, means(200, true), 0).unwrap();
        assert_eq!(job, JobId(2));
        // It was not, for another reason: only more of something will make a difference.
        turns.in_vain(number, node, means(200, false), Need { memory_bytes: 100, only: vec![] });
        assert_eq!(turns.first_for(node, means(200, false), 0).unwrap().1, JobId(3));
        assert_eq!(turns.first_for(node, means(200, true), 0).unwrap().1, JobId(2));
        assert_eq!(turns.first_for(NodeId(8), means(200, false), 0).unwrap().1, JobId(2));
        turns.touched(JobId(2));
        assert_eq!((turns.next(), turns.next()), (Some(JobId(2)), None));
        turns.wake_all();
        assert_eq!((turns.next(), turns.next(), turns.next()), (Some(JobId(1)), Some(JobId(3)), None));
    }

    #[test]
    fn a_job_that_only_some_nodes_may_queue_waits_for_a_slot_elsewhere() {
        let mut turns = Turns::default();
        turns.block(JobId(1), Need { memory_bytes: 1, only: vec![NodeId(1)] }, 0);
        assert!(turns.first_for(NodeId(1), means(10, false), 0).is_some());
        assert!(turns.first_for(NodeId(2), means(10, false), 0).is_none());
        assert!(turns.first_for(NodeId(2), means(10, true), 0).is_some());
        turns.remove(JobId(1));
        assert!(turns.first_for(NodeId(1), means(10, true), 0).is_none());
    }
}
