//! Jobs whose tasks could only go to nodes whose disks are nearly full.
//!
//! Such a job waits: nodes free what they may, others' results are collected, their owners make room. But one that has
//! filled the disks itself would wait for ever, and all others with it, so after a moment the job goes that holds most.

use std::collections::BTreeMap;

use floe_protocol::{Failure, JobId, NodeId};

use super::Scheduler;
use super::job::{Job, State};
use super::placement::{Node, Nodes, Standing};

/// How long all disks that a job could use may be full before the job that holds most of them ends: nodes say within a
/// second what they have freed.
pub const FULL_PATIENCE_MS: u64 = 10_000;

/// The same where no such job holds much: somebody else has filled the disks, and may free them.
pub const OTHERS_PATIENCE_MS: u64 = 600_000;

/// How much a job must hold for its end to make room: less would not make a disk ample.
const LARGE_BYTES: u64 = 8 << 20;

/// Nodes that are named in a failure.
const MAX_NAMED: usize = 8;

/// What is known of jobs that wait for room on a disk.
#[derive(Debug, Default)]
pub(super) struct Disks {
    /// Since when.
    waiting: BTreeMap<JobId, u64>,
    /// When a job was last ended to make room: what it held takes a moment to go.
    ended_ms: u64,
}

impl Scheduler {
    /// To be called at every tick.
    pub(super) fn check_disks(&mut self) {
        if self.settling.is_some() || !self.nodes.iter().any(|(_, node)| node.is_short()) {
            self.disks.waiting.clear();
            return;
        }
        let mut waiting = BTreeMap::new();
        for (id, job) in self.jobs.iter().filter(|(_, job)| !job.succeeded) {
            if waits_for_disks(&self.nodes, job) {
                waiting.insert(*id, self.disks.waiting.get(id).copied().unwrap_or(self.now_ms));
            }
        }
        self.disks.waiting = waiting;
        let held = self.disks.waiting.iter().map(|(id, since_ms)| {
            let bytes = self.jobs.get(id).map_or(0, Job::made_bytes);
            (bytes, *id, *since_ms)
        });
        let Some((bytes, id, since_ms)) = held.max() else { return };
        let patience_ms = if bytes >= LARGE_BYTES { FULL_PATIENCE_MS } else { OTHERS_PATIENCE_MS };
        if self.now_ms >= since_ms.max(self.disks.ended_ms) + patience_ms {
            self.disks.ended_ms = self.now_ms;
            let message = format!(
                "the disks of the nodes that could go on with it are nearly full ({}): free some of them, release \
                 results that are not needed any more, or let it make less, and submit it again",
                self.short_nodes()
            );
            self.fail(id, Failure::Exhausted { what: "disk".to_owned(), message });
        }
    }

    fn short_nodes(&self) -> String {
        let short: Vec<NodeId> =
            self.nodes.iter().filter(|(_, node)| node.is_short()).map(|(id, _)| id).collect();
        let mut names: Vec<_> = short.iter().take(MAX_NAMED).map(|id| self.nodes.name(*id)).collect();
        if short.len() > MAX_NAMED {
            names.push(format!("and {} more", short.len() - MAX_NAMED));
        }
        names.join(", ")
    }
}

/// Whether a job has a task to assign that no node takes but those whose disks are nearly full.
fn waits_for_disks(nodes: &Nodes, job: &Job) -> bool {
    let mut stages = job.stages.iter().zip(&job.graph.stages);
    stages.any(|(stage, spec)| {
        let is_ready = |partition: &u32| stage.tasks[*partition as usize].state == State::Ready;
        if !stage.ready.iter().any(is_ready) {
            return false;
        }
        let may_run = |(id, node): &(NodeId, &Node)| {
            node.standing != Standing::Absent
                && node.takes_tasks()
                && !stage.refused.contains_key(id)
                && (spec.seen_by.is_empty() || spec.seen_by.binary_search(id).is_ok())
        };
        let mut takers = nodes.iter().filter(may_run).peekable();
        takers.peek().is_some() && takers.all(|(_, node)| node.is_short())
    })
}

impl Job {
    /// What its tasks have made and nodes hold.
    fn made_bytes(&self) -> u64 {
        let made = self.stages.iter().flat_map(|stage| &stage.tasks).filter_map(|task| match &task.state {
            State::Done(placed) => Some(placed.summary.bytes),
            _ => None,
        });
        made.fold(0, u64::saturating_add)
    }
}
