//! Nodes that die while they run a task, and what that says of the task.
//!
//! Most nodes are killed, lose their power or their network, whatever they run: that is held against nobody. A query's
//! task that may have ended its node is tried again in a process of its own ([`super::job::Job::runs_apart`]), and only
//! that one's crash is proof. A function always runs so: what takes the whole node with it even then is what looks
//! for the node and ends it, or exhausts the machine. No single death tells that from a killed node, but a task that
//! is its nodes' end is so wherever and whenever it starts:
//!
//! ```text
//!   dies soon after the task began ──> again at once ──dies soon──> again after a pause ──> ... ──> given up
//!            ^                              │
//!            └── begins anew: the task ran for longer, or another node went in between
//! ```
//!
//! The pauses part the two: whoever kills nodes, or restarts them one after the other, does not wait for this task.

use floe_protocol::{AttemptId, Failure, NodeId, TaskId};

use super::Scheduler;
use super::job::Attempt;
use super::recovery::MAX_CRASHES;

/// A node that goes this soon after it was given a task may have died of it.
pub const SUDDEN_MS: u64 = 10_000;

/// How long a function's task waits after each such node in a row: nothing is meant by one.
pub const PAUSES_MS: [u64; 3] = [0, 10_000, 30_000];

/// After so many such nodes in a row the task is given up, so that it does not go through the whole mesh.
pub const MAX_DEATHS: usize = PAUSES_MS.len() + 1;

/// The nodes that went soon after a task of a function began there, in a row.
#[derive(Debug, Default)]
pub(super) struct Sudden {
    nodes: Vec<NodeId>,
    /// Which loss of a node, of all that there were, the last one was, and when.
    loss: u64,
    at_ms: u64,
}

impl Sudden {
    /// A node went under an attempt that began then. Returns how many there are now.
    fn add(&mut self, node: NodeId, since_ms: u64, loss: u64, now_ms: u64) -> usize {
        let in_a_row = loss == self.loss + 1 && since_ms >= self.at_ms;
        if !in_a_row || now_ms >= since_ms + SUDDEN_MS {
            self.nodes.clear();
        }
        if now_ms < since_ms + SUDDEN_MS {
            self.nodes.push(node);
        }
        (self.loss, self.at_ms) = (loss, now_ms);
        self.nodes.len()
    }
}

impl Scheduler {
    /// An attempt is gone with its node, or the node no longer knows it.
    pub(super) fn vanished(&mut self, attempt: AttemptId, node: NodeId, ran: bool) {
        self.nodes.release(node, attempt);
        let id = attempt.task.job;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(place) = job.place(attempt.task) else { return };
        let is_fragment = job.is_fragment(place.stage);
        let task = job.task_mut(place);
        let gone = task.attempts.iter().find(|a| a.id == attempt).copied();
        task.attempts.retain(|a| a.id != attempt);
        task.suspect = true;
        let mut pause_ms = 0;
        // What ended well once does not end nodes.
        match gone.filter(|_| ran && !task.once_done) {
            // Only what ran inside the node can have ended it.
            Some(Attempt { apart: false, .. })
                if is_fragment
                    && task.troubles().deaths.len() < MAX_CRASHES
                    && !task.troubles().deaths.contains(&node) =>
            {
                task.troubles_mut().deaths.push(node);
            }
            Some(Attempt { since_ms, .. }) if !is_fragment => {
                let troubles = task.troubles_mut();
                let count = troubles.sudden.add(node, since_ms, self.losses, self.now_ms);
                if count >= MAX_DEATHS {
                    let nodes: Vec<_> =
                        troubles.sudden.nodes.iter().map(|node| self.nodes.name(*node)).collect();
                    let message = format!(
                        "task {} of stage {} was given up: {count} nodes in a row went away within {} s after it began \
                         there ({}); see whether its function ends the node that runs it, or exhausts the machine",
                        place.partition,
                        place.stage,
                        SUDDEN_MS / 1_000,
                        nodes.join(", ")
                    );
                    return self.fail(id, Failure::Refused { message });
                }
                if count > 1 {
                    // It may be the node.
                    troubles.excluded.push(node);
                }
                pause_ms = count.checked_sub(1).and_then(|last| PAUSES_MS.get(last)).copied().unwrap_or(0);
            }
            _ => {}
        }
        if pause_ms == 0 {
            job.abandon(place, attempt);
            self.touch(id);
        } else if job.rest(place, attempt) {
            self.paused.insert((self.now_ms + pause_ms, attempt.task));
        }
    }

    /// Has tasks run again whose pause is over.
    pub(super) fn end_pauses(&mut self) {
        while let Some((until_ms, task)) = self.paused.first().copied()
            && self.now_ms >= until_ms
        {
            self.paused.pop_first();
            self.want_again(task);
        }
    }

    fn want_again(&mut self, task: TaskId) {
        if let Some(job) = self.jobs.get_mut(&task.job)
            && let Some(place) = job.place(task)
        {
            job.want(vec![place]);
            self.touch(task.job);
        }
    }

    /// A node left in good order: what it ran runs elsewhere, and nothing is held against anybody.
    pub(super) fn node_left(&mut self, node: NodeId) {
        self.node_down(node);
        let attempts = self.nodes.get(node).map(|node| node.attempts()).unwrap_or_default();
        for (attempt, _) in attempts {
            self.nodes.release(node, attempt);
            self.aborts.entry(node).or_default().push(attempt);
            let id = attempt.task.job;
            if let Some(job) = self.jobs.get_mut(&id)
                && let Some(place) = job.place(attempt.task)
            {
                // It may be what the node would have died of.
                job.task_mut(place).suspect = true;
                job.abandon(place, attempt);
                self.touch(id);
            }
        }
        if self.nodes.is_there(node) {
            self.lose(node);
        }
    }
}
