//! A node for the job that finds none free enough: where small tasks take every slot as it comes free, one that needs
//! more memory than is left beside them would never begin.
//!
//! ```text
//!    blocked for BLOCKED_PATIENCE_MS                        enough has ended there
//!   (none) ────────────────────────> a node is set aside: ─────────────────────────> its task begins there
//!      ^                             nothing new goes there
//!      └──the node goes, its disk fills, the job changes, or HOLD_MS pass──┘
//! ```
//!
//! One node at a time, for one job. What runs on a node may never end: then another one has its turn, each twice as
//! long as the time before, so that in the end it is long enough for whatever does end.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use floe_protocol::{JobId, NodeId};

use super::placement::task_memory_bytes;
use super::{Scheduler, choose_among, read_bytes};

/// How long a job waits before a node is set aside for it: until then tasks that fit keep all nodes at work.
pub const BLOCKED_PATIENCE_MS: u64 = 3_000;

/// How long a node is set aside the first time.
pub const HOLD_MS: u64 = 30_000;

/// How often that doubles: to half a day, which is longer than anybody would wait for a task beside others.
const MAX_DOUBLINGS: u32 = 10;

/// How often a job is looked for, while no node is set aside.
const LOOK_MS: u64 = 500;

/// Jobs that are looked at each time: more than one, since for some no node will do.
const MAX_LOOKED_AT: usize = 16;

/// The node that is set aside, if any, and what was tried before.
#[derive(Debug, Default)]
pub(super) struct SetAside {
    held: Option<Held>,
    looked_ms: u64,
    /// The job that was looked at last, and since when it was blocked.
    looked_at: Option<(u64, JobId)>,
    /// How often nodes were set aside for jobs in vain. Each takes as long as [`HOLD_MS`] to become one more.
    in_vain: BTreeMap<(JobId, NodeId), u32>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    node: NodeId,
    job: JobId,
    /// The least memory that one of its next tasks takes.
    memory_bytes: u64,
    until_ms: u64,
}

impl Scheduler {
    /// Gives the node that is set aside what it is set aside for, once there is room.
    pub(super) fn use_set_aside(&mut self) {
        let Some(held) = self.set_aside.held else { return };
        if !self.nodes.has_room_aside(held.node, held.memory_bytes) {
            return;
        }
        self.put_back();
        match self.assign_next(held.job, Some(held.node)) {
            // That is noted as with any other node.
            Ok(()) => {
                self.turns.remove(held.job);
                self.keep_turn(held.job);
            }
            Err(Some(need)) if !self.nodes.has_room(held.node, need.memory_bytes) => {
                // What it needs has grown.
                self.nodes.set_aside(held.node, true);
                self.set_aside.held = Some(Held { memory_bytes: need.memory_bytes, ..held });
            }
            Err(_) => self.note_in_vain(held),
        }
    }

    /// A job was given a task, or is over.
    pub(super) fn is_blocked_no_more(&mut self, job: JobId) {
        if self.set_aside.held.is_some_and(|held| held.job == job) {
            self.put_back();
        }
        let tried = self.set_aside.in_vain.range((job, NodeId(0))..=(job, NodeId(u64::MAX)));
        for key in tried.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.set_aside.in_vain.remove(&key);
        }
    }

    /// To be called at every tick.
    pub(super) fn check_set_aside(&mut self) {
        if let Some(held) = self.set_aside.held {
            let over = self.now_ms >= held.until_ms;
            if over {
                self.note_in_vain(held);
            }
            if over || !self.nodes.may_be_fit(held.node) || !self.turns.is_blocked(held.job) {
                self.put_back();
            }
        }
        if self.set_aside.held.is_none() && self.now_ms >= self.set_aside.looked_ms + LOOK_MS {
            self.set_aside.looked_ms = self.now_ms;
            self.set_one_aside();
        }
    }

    fn set_one_aside(&mut self) {
        let Some(due_ms) = self.now_ms.checked_sub(BLOCKED_PATIENCE_MS) else { return };
        let due = self.turns.blocked_since(self.set_aside.looked_at, due_ms);
        let due: Vec<_> = due.take(MAX_LOOKED_AT).collect();
        if due.len() < MAX_LOOKED_AT {
            // From the one that waits for longest again.
            self.set_aside.looked_at = None;
        }
        for (since_ms, job) in due {
            self.set_aside.looked_at = Some((since_ms, job));
            if let Some((node, memory_bytes)) = self.node_to_set_aside(job) {
                let times = self.set_aside.in_vain.get(&(job, node)).copied().unwrap_or(0);
                let hold_ms = HOLD_MS << times.min(MAX_DOUBLINGS);
                self.nodes.set_aside(node, true);
                self.set_aside.held = Some(Held { node, job, memory_bytes, until_ms: self.now_ms + hold_ms });
                return;
            }
        }
    }

    /// The node for a job's next task that is likely to be free first, and what the task takes: among those that were
    /// tried least, the one whose tasks all began lately. What has run for long may do so for long.
    fn node_to_set_aside(&mut self, id: JobId) -> Option<(NodeId, u64)> {
        let job = self.jobs.get_mut(&id)?;
        let stages = 0..job.stages.len();
        let places: Vec<_> = stages.filter_map(|stage| job.next_ready(stage)).collect();
        let job = self.jobs.get(&id)?;
        places.into_iter().find_map(|place| {
            let memory_bytes = task_memory_bytes(read_bytes(job, place, &job.reads(place)?));
            let may = choose_among(&self.nodes, job, place);
            let nodes = self.nodes.iter().map(|(node, _)| node).filter(|node| self.nodes.is_fit(*node));
            let nodes = nodes.filter(|node| may(*node));
            let node = nodes.min_by_key(|node| {
                let times = self.set_aside.in_vain.get(&(id, *node)).copied().unwrap_or(0);
                (times, Reverse(self.oldest_ms(*node)), *node)
            })?;
            Some((node, memory_bytes))
        })
    }

    /// Since when the oldest of a node's tasks is there; now if there is none.
    fn oldest_ms(&self, node: NodeId) -> u64 {
        let attempts = self.nodes.get(node).map(|node| node.attempts()).unwrap_or_default();
        let since_ms = attempts.into_iter().filter_map(|(attempt, _)| {
            let job = self.jobs.get(&attempt.task.job)?;
            let attempts = &job.task(job.place(attempt.task)?).attempts;
            attempts.iter().find(|a| a.id == attempt).map(|a| a.since_ms)
        });
        since_ms.min().unwrap_or(self.now_ms)
    }

    /// The node takes tasks as others do.
    fn put_back(&mut self) {
        if let Some(held) = self.set_aside.held.take() {
            self.nodes.set_aside(held.node, false);
        }
    }

    fn note_in_vain(&mut self, held: Held) {
        *self.set_aside.in_vain.entry((held.job, held.node)).or_default() += 1;
    }
}
