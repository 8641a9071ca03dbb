//! What came with a submission lies on more than one node for as long as its job is kept: it cannot be made again, and a
//! result that is lost is made from it.
//!
//! ```text
//!   a holder goes ──for longer than a restart takes──> another one is told to copy ──Copied──> two holders again
//! ```

use std::collections::BTreeMap;

use floe_protocol::{NodeId, PeerMessage, Placed, TaskId};

use super::Scheduler;
use super::job::{Job, Place, State};
use super::placement::{Node, Standing};

/// How many nodes hold a partition that came with a submission, where there are as many.
const COPIES: usize = 2;

/// How long a holder may be away before what it holds is copied elsewhere: a node that is started again brings it back.
pub const COPY_PATIENCE_MS: u64 = 10_000;

/// How often it is looked for partitions that too few nodes hold: while there are some, and while there are none. All
/// jobs' partitions are looked at.
const LOOK_MS: u64 = 1_000;
const IDLE_LOOK_MS: u64 = 3_000;

/// A copy that was not heard of by then is ordered again.
const COPY_RETRY_MS: u64 = 120_000;

/// How many copies one node makes at a time, and of how many bytes: one alone may exceed that.
const MAX_COPYING: usize = 64;
const MAX_COPYING_BYTES: u64 = 32 << 20;

/// What is known of partitions that too few nodes hold.
#[derive(Debug, Default)]
pub(super) struct Copies {
    looked_ms: u64,
    short: BTreeMap<TaskId, Short>,
}

#[derive(Debug)]
struct Short {
    since_ms: u64,
    /// Who was told to copy it, and when.
    ordered: Option<(NodeId, u64)>,
    /// Nodes that did not take a copy.
    unfit: Vec<NodeId>,
}

/// The copies that a node makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Copying {
    bytes: u64,
    count: usize,
}

impl Copying {
    fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.count += 1;
    }

    fn has_room(self, bytes: u64) -> bool {
        let fits = self.bytes.saturating_add(bytes) <= MAX_COPYING_BYTES;
        self.count == 0 || (self.count < MAX_COPYING && fits)
    }
}

impl Scheduler {
    /// To be called at every tick.
    pub(super) fn keep_copies(&mut self) {
        let interval_ms = if self.copies.short.is_empty() { IDLE_LOOK_MS } else { LOOK_MS };
        if self.settling.is_some() || self.now_ms < self.copies.looked_ms + interval_ms {
            return;
        }
        self.copies.looked_ms = self.now_ms;
        if self.nodes.iter().filter(|(node, _)| self.is_alive(*node)).count() < COPIES {
            return;
        }
        let mut before = std::mem::take(&mut self.copies.short);
        let mut copying: BTreeMap<NodeId, Copying> = BTreeMap::new();
        for (task, bytes, holders) in self.short() {
            let mut short = before.remove(&task).unwrap_or(Short {
                since_ms: self.now_ms,
                ordered: None,
                unfit: Vec::new(),
            });
            let under_way = short
                .ordered
                .filter(|(from, at_ms)| self.is_alive(*from) && self.now_ms < at_ms + COPY_RETRY_MS);
            short.ordered = under_way;
            let from = holders.into_iter().min_by_key(|node| copying.get(node).copied().unwrap_or_default());
            if let Some(from) = under_way.map(|(from, _)| from).or(from) {
                let busy = copying.entry(from).or_default();
                if under_way.is_some() {
                    busy.add(bytes);
                } else if busy.has_room(bytes)
                    && self.now_ms >= short.since_ms + COPY_PATIENCE_MS
                    && let Some(to) = self.target(task, &mut short.unfit)
                {
                    busy.add(bytes);
                    short.ordered = Some((from, self.now_ms));
                    self.send(from, PeerMessage::Copy { fence: self.fence, partition: task, to });
                }
            }
            self.copies.short.insert(task, short);
        }
    }

    /// A node has a copy of a partition now, or did not take it.
    pub(super) fn copied(&mut self, partition: TaskId, node: NodeId, done: bool) {
        if !done {
            if let Some(short) = self.copies.short.get_mut(&partition) {
                short.ordered = None;
                short.unfit.push(node);
            }
            return;
        }
        let Some(job) = self.jobs.get_mut(&partition.job) else { return };
        let Some(place) = job.place(partition).filter(|place| job.is_held(place.stage)) else { return };
        if self.nodes.get(node).is_some_and(|node| node.standing != Standing::Absent)
            && job.add_holder(place, node, None)
        {
            self.nodes.entry(node).held.insert(partition);
            self.copies.short.remove(&partition);
            // Others may wait for their turn.
            self.copies.looked_ms = 0;
            self.touch(partition.job);
        }
    }

    /// Partitions that cannot be made again and that too few of the nodes hold that are there: of how many bytes, and who
    /// does.
    fn short(&self) -> Vec<(TaskId, u64, Vec<NodeId>)> {
        // One whose inventory is just awaited is there all the same.
        let live = |node: &&NodeId| self.is_alive(**node);
        let mut short = Vec::new();
        for job in self.jobs.values() {
            for (place, placed) in job.held_partitions() {
                let holders: Vec<_> = placed.nodes.iter().filter(live).copied().collect();
                if !holders.is_empty() && holders.len() < COPIES {
                    short.push((job.task_id(place), placed.summary.bytes, holders));
                }
            }
        }
        short
    }

    /// Where a copy goes: to a node that does not hold the partition and has room, and rather one that works. Those of one job go
    /// to different nodes, and those that did not take it have their turn again after all others.
    fn target(&self, task: TaskId, unfit: &mut Vec<NodeId>) -> Option<NodeId> {
        let fit = |node: &&(NodeId, &Node)| {
            self.is_alive(node.0) && !node.1.is_short() && !node.1.held.contains(&task)
        };
        let nodes: Vec<_> = self.nodes.iter().collect();
        let mut fit: Vec<_> = nodes.iter().filter(fit).collect();
        if fit.iter().any(|(_, node)| node.takes_tasks()) {
            fit.retain(|(_, node)| node.takes_tasks());
        }
        if fit.iter().all(|(node, _)| unfit.contains(node)) {
            unfit.clear();
        }
        fit.retain(|(node, _)| !unfit.contains(node));
        let turn = (task.partition as usize).checked_rem(fit.len())?;
        fit.get(turn).map(|(node, _)| *node)
    }
}

impl Job {
    /// The partitions that came with the submission, and who holds them.
    fn held_partitions(&self) -> impl Iterator<Item = (Place, &Placed)> {
        let held = (0..self.stages.len()).filter(|stage| self.is_held(*stage));
        held.flat_map(move |stage| {
            let tasks = self.stages[stage].tasks.iter().enumerate();
            tasks.filter_map(move |(partition, task)| match &task.state {
                State::Done(placed) => Some((Place { stage, partition: partition as u32 }, placed)),
                _ => None,
            })
        })
    }
}
