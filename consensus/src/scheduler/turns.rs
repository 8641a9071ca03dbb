//! Whose turn it is: drivers with jobs that have tasks to assign, one task of each driver in turn, and of each of its jobs
//! in turn. So a driver waits for one task of every other one, however many jobs those have. A job whose next tasks fit no
//! node stays out of the way until something changes that it waits for: a node that can take more, or the job itself.
//!
//! ```text
//!            touched                     fits nowhere
//!   (none) ─────────> in turn ─────────────────────────> blocked
//!                       ^  ^──a node has room for it──────┘ │
//!                       └──touched, or a node is lost───────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use floe_protocol::{JobId, NodeId};

use super::placement::Means;

/// If no more blocked jobs than this might fit, they are looked at one by one rather than driver by driver.
const FEW: usize = 32;

/// The jobs that wait for their turn.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Drivers with jobs that wait here.
    owners: BTreeMap<u64, Owner>,
    /// Those with jobs in turn, and those with blocked ones: whoever was given something longest ago comes first.
    in_turn: BTreeSet<(u64, u64)>,
    with_blocked: BTreeSet<(u64, u64)>,
    /// Whose each job in turn is, and its place there.
    queued: BTreeMap<JobId, (u64, u64)>,
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

/// A driver's jobs.
#[derive(Debug, Default)]
struct Owner {
    /// When it was last given something, or came, as counted by all that did.
    served: u64,
    /// Its jobs in turn, by their places.
    queue: BTreeMap<u64, JobId>,
    /// What its blocked ones need of memory, and their places; the same by place.
    least: BTreeSet<(u64, u64)>,
    blocked: BTreeSet<u64>,
}

/// The place of a blocked job among others that a node may be for: its driver's, then its own.
pub(super) type Position = (u64, u64);

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
    owner: u64,
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
    /// Whether no job has tasks to assign.
    pub(super) fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// A job that has tasks to assign has changed.
    pub(super) fn touched(&mut self, job: JobId, owner: u64) {
        self.unblock(job);
        if !self.queued.contains_key(&job) {
            self.count += 1;
            let place = self.count;
            self.queued.insert(job, (owner, place));
            self.change(owner, |owner| {
                owner.queue.insert(place, job);
            });
        }
    }

    /// Changes a driver's jobs, and with that where it stands.
    fn change(&mut self, id: u64, change: impl FnOnce(&mut Owner)) {
        let count = self.count;
        let owner = self.owners.entry(id).or_insert_with(|| Owner { served: count, ..Owner::default() });
        let key = (owner.served, id);
        self.in_turn.remove(&key);
        self.with_blocked.remove(&key);
        change(owner);
        let key = (owner.served, id);
        self.in_turn.extend((!owner.queue.is_empty()).then_some(key));
        self.with_blocked.extend((!owner.blocked.is_empty()).then_some(key));
        if owner.queue.is_empty() && owner.blocked.is_empty() {
            self.owners.remove(&id);
        }
    }

    fn unblock(&mut self, job: JobId) {
        if let Some(place) = self.blocked_at.remove(&job)
            && let Some(Blocked { owner, need, .. }) = self.blocked.remove(&place)
        {
            self.least.remove(&(need.memory_bytes, place));
            self.change(owner, |owner| {
                owner.blocked.remove(&place);
                owner.least.remove(&(need.memory_bytes, place));
            });
        }
    }

    /// The next job. It is in turn no more.
    pub(super) fn next(&mut self) -> Option<JobId> {
        let (_, owner) = self.in_turn.first()?;
        let (_, job) = self.owners.get(owner)?.queue.first_key_value()?;
        let job = *job;
        self.unqueue(job);
        Some(job)
    }

    fn unqueue(&mut self, job: JobId) {
        if let Some((owner, place)) = self.queued.remove(&job) {
            self.change(owner, |owner| {
                owner.queue.remove(&place);
            });
        }
    }

    /// A job's next tasks fit no node.
    pub(super) fn block(&mut self, job: JobId, owner: u64, need: Need, now_ms: u64) {
        self.unblock(job);
        let since_ms = *self.since_ms.entry(job).or_insert(now_ms);
        self.in_order.insert((since_ms, job));
        self.count += 1;
        let place = self.count;
        self.blocked_at.insert(job, place);
        self.least.insert((need.memory_bytes, place));
        self.change(owner, |owner| {
            owner.blocked.insert(place);
            owner.least.insert((need.memory_bytes, place));
        });
        self.blocked.insert(place, Blocked { job, owner, need, in_vain: BTreeMap::new() });
    }

    /// The first blocked job, from the given position on, that a node with these means might take; and its position.
    pub(super) fn first_for(&self, node: NodeId, means: Means, from: Position) -> Option<(Position, JobId)> {
        let few: Vec<_> = self.least.range(..=(means.memory_bytes, u64::MAX)).take(FEW + 1).collect();
        if few.len() <= FEW {
            let found = few.into_iter().filter_map(|(_, place)| {
                let blocked = self.blocked.get(place).filter(|blocked| blocked.may_fit(node, means))?;
                Some(((self.owners.get(&blocked.owner)?.served, *place), blocked.job))
            });
            return found.filter(|(position, _)| *position >= from).min();
        }
        self.with_blocked.range((from.0, 0)..).find_map(|(served, owner)| {
            let owner = self.owners.get(owner)?;
            let (least, _) = owner.least.first()?;
            if *least > means.memory_bytes {
                return None;
            }
            let first = if *served == from.0 { from.1 } else { 0 };
            let mut blocked =
                owner.blocked.range(first..).filter_map(|place| self.blocked.get_key_value(place));
            let (place, blocked) = blocked.find(|(_, blocked)| blocked.may_fit(node, means))?;
            Some(((*served, *place), blocked.job))
        })
    }

    /// Whether a driver has a job in turn that was given something longer ago than the one of a blocked job.
    pub(super) fn is_others_turn(&self, position: Position) -> bool {
        self.in_turn.first().is_some_and(|(served, _)| *served < position.0)
    }

    /// The blocked job in this position fits no node, although this one might have been for it.
    pub(super) fn in_vain(&mut self, (_, place): Position, node: NodeId, means: Means, need: Need) {
        if let Some(blocked) = self.blocked.get_mut(&place) {
            let (before, after) = (blocked.need.memory_bytes, need.memory_bytes);
            blocked.need = need;
            blocked.in_vain.insert(node, means);
            self.least.remove(&(before, place));
            self.least.insert((after, place));
            if let Some(owner) = self.owners.get_mut(&blocked.owner) {
                owner.least.remove(&(before, place));
                owner.least.insert((after, place));
            }
        }
    }

    /// All blocked jobs have their turn again.
    pub(super) fn wake_all(&mut self) {
        self.wake(1);
    }

    /// One in so many of the blocked jobs, those that are it for longest, and one at least.
    pub(super) fn wake(&mut self, one_in: usize) {
        let count = self.blocked.len().div_ceil(one_in.max(1));
        let woken = self.blocked.values().take(count).map(|blocked| (blocked.job, blocked.owner));
        for (job, owner) in woken.collect::<Vec<_>>() {
            self.touched(job, owner);
        }
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

    /// A job was given something: all other drivers come before its own now.
    pub(super) fn served(&mut self, job: JobId, owner: u64) {
        self.forget_wait(job);
        if self.owners.contains_key(&owner) {
            self.count += 1;
            let count = self.count;
            self.change(owner, |owner| owner.served = count);
        }
    }

    fn forget_wait(&mut self, job: JobId) {
        if let Some(since_ms) = self.since_ms.remove(&job) {
            self.in_order.remove(&(since_ms, job));
        }
    }

    /// A job is over, or has nothing to assign any more.
    pub(super) fn remove(&mut self, job: JobId) {
        self.forget_wait(job);
        self.unblock(job);
        self.unqueue(job);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const START: Position = (0, 0);

    const fn means(memory_bytes: u64, at_once: bool) -> Means {
        Means { memory_bytes, at_once }
    }

    #[test]
    fn the_job_that_is_blocked_longest_comes_first_if_the_node_is_for_it() {
        let mut turns = Turns::default();
        for (job, memory_bytes) in [(1, 300), (2, 100), (3, 100)] {
            turns.touched(JobId(job), 1);
            let next = turns.next().unwrap();
            turns.block(next, 1, Need { memory_bytes, only: vec![] }, 0);
        }
        assert_eq!(turns.next(), None);
        let node = NodeId(7);
        assert_eq!(turns.first_for(node, means(50, true), START), None);
        let (position, job) = turns.first_for(node, means(200, true), START).unwrap();
        assert_eq!(job, JobId(2));
        // It was not, for another reason: only more of something will make a difference.
        turns.in_vain(position, node, means(200, false), Need { memory_bytes: 100, only: vec![] });
        assert_eq!(turns.first_for(node, means(200, false), START).unwrap().1, JobId(3));
        assert_eq!(turns.first_for(node, means(200, true), START).unwrap().1, JobId(2));
        assert_eq!(turns.first_for(NodeId(8), means(200, false), START).unwrap().1, JobId(2));
        turns.touched(JobId(2), 1);
        assert_eq!((turns.next(), turns.next()), (Some(JobId(2)), None));
        turns.wake_all();
        assert_eq!((turns.next(), turns.next(), turns.next()), (Some(JobId(1)), Some(JobId(3)), None));
    }

    #[test]
    fn a_job_that_only_some_nodes_may_queue_waits_for_a_slot_elsewhere() {
        let mut turns = Turns::default();
        turns.block(JobId(1), 1, Need { memory_bytes: 1, only: vec![NodeId(1)] }, 0);
        assert!(turns.first_for(NodeId(1), means(10, false), START).is_some());
        assert!(turns.first_for(NodeId(2), means(10, false), START).is_none());
        assert!(turns.first_for(NodeId(2), means(10, true), START).is_some());
        turns.remove(JobId(1));
        assert!(turns.first_for(NodeId(1), means(10, true), START).is_none());
    }

    #[test]
    fn of_blocked_jobs_too_one_of_each_driver_is_next() {
        let mut turns = Turns::default();
        for job in 1..=2 * FEW as u64 {
            turns.block(JobId(job), 1, Need { memory_bytes: 1, only: vec![] }, 0);
        }
        turns.block(JobId(200), 2, Need { memory_bytes: 1, only: vec![] }, 0);
        turns.touched(JobId(300), 3);
        let next = |turns: &Turns, from| turns.first_for(NodeId(7), means(10, true), from).unwrap();
        let (position, job) = next(&turns, START);
        assert_eq!((job, turns.is_others_turn(position)), (JobId(1), false));
        turns.served(JobId(1), 1);
        turns.remove(JobId(1));
        let (position, job) = next(&turns, position);
        assert_eq!((job, turns.is_others_turn(position)), (JobId(200), false));
        turns.served(JobId(200), 2);
        turns.remove(JobId(200));
        let (position, job) = next(&turns, position);
        assert_eq!((job, turns.is_others_turn(position)), (JobId(2), true));
        assert_eq!(turns.next(), Some(JobId(300)));
    }

    proptest! {
        /// Whatever happens, a driver with a job in turn waits for one task of every other one at most; and nothing is
        /// left of jobs that are over.
        #[test]
        fn nobody_waits_for_more_than_one_task_of_each_other(
            steps in prop::collection::vec((0..5_u8, 0..4_u64, 0..30_u64), 1..300),
        ) {
            let mut turns = Turns::default();
            let mut waited: BTreeMap<u64, BTreeMap<u64, u32>> = BTreeMap::new();
            for (step, owner, job) in steps {
                let job = JobId(owner * 100 + job);
                let served = match step {
                    0 | 1 => { turns.touched(job, owner); None }
                    2 => { turns.remove(job); None }
                    3 => { turns.wake(2); None }
                    _ => turns.next(),
                };
                if let Some(job) = served {
                    let owner = job.0 / 100;
                    turns.served(job, owner);
                    match job.0 % 3 {
                        0 => turns.touched(job, owner),
                        1 => turns.block(job, owner, Need { memory_bytes: 1, only: vec![] }, 0),
                        _ => turns.remove(job),
                    }
                    for (other, by) in &mut waited {
                        let times = by.entry(owner).or_default();
                        *times += 1;
                        prop_assert!(*other == owner || *times <= 1, "{other} waits for {owner}");
                    }
                    waited.remove(&owner);
                }
                let waits = turns.in_turn.iter().map(|(_, owner)| *owner).collect::<BTreeSet<_>>();
                waited.retain(|owner, _| waits.contains(owner));
                waits.into_iter().for_each(|owner| { waited.entry(owner).or_default(); });
            }
            let jobs: Vec<_> = turns.queued.keys().chain(turns.blocked_at.keys()).copied().collect();
            jobs.into_iter().for_each(|job| turns.remove(job));
            prop_assert!(turns.owners.is_empty() && turns.in_turn.is_empty() && turns.with_blocked.is_empty());
            prop_assert!(turns.since_ms.is_empty() && turns.in_order.is_empty() && turns.blocked.is_empty());
            prop_assert!(turns.least.is_empty());
        }
    }
}
