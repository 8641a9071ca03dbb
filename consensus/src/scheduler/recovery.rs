//! What happens when something goes wrong: a task fails, a node falls silent, a partition is lost, a leader
//! is new. Every failure is typed, and each type has one answer.

use std::collections::BTreeMap;

use floe_protocol::job::TaskRun;
use floe_protocol::message::Inventory;
use floe_protocol::{AttemptId, Failure, JobId, Load, NodeId, PeerMessage, TaskId};

use super::job::{Attempt, Job, Made, Place, Refusal, State};
use super::placement::{Nodes, Standing, task_memory_bytes};
use super::{
    Effect, INVENTORY_RETRY_MS, LEASE_INTERVAL_MS, MAX_ORPHANS, ORPHAN_MS, RECONCILE_MS, Scheduler, choose,
    read_bytes,
};

/// A node that is connected and silent for this long is lost.
pub const LEASE_MS: u64 = 3_000;

/// How long a new leader waits for the inventory of a node that is connected: it hears from the living within
/// milliseconds, and the leader before it may be one that hangs.
pub const SETTLE_MS: u64 = 1_500;

/// A node whose connection is gone may come back for this long before it is lost.
pub const GRACE_MS: u64 = 300;

/// Attempts at one task that may fail for want of resources or by a fault, under one leader.
pub const MAX_ATTEMPTS: u32 = 4;

/// Nodes and processes that a query's task may take with it. After a first node it runs in a process of its own, so
/// that the second of them is the process and proves that it was the task. Under a new leader, which cannot know what
/// ran on nodes that are gone, it begins so, and where another era ran the same job.
pub const MAX_CRASHES: usize = 2;

/// Times that one task's inputs may turn out to be lost, under one leader.
pub const MAX_INPUT_LOSSES: u32 = 16;

/// A task that takes this many times the median of its finished siblings is slow.
pub const SLOW_FACTOR: u64 = 2;

/// No task is slow before this.
pub const SLOW_MS: u64 = 2_000;

impl Scheduler {
    /// An attempt failed: decides what becomes of its task and its job.
    pub(super) fn failed(&mut self, place: Place, attempt: AttemptId, node: NodeId, failure: Failure) {
        let id = attempt.task.job;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.task_mut(place).attempts.retain(|a| a.id != attempt);
        match failure {
            failure if failure.is_deterministic() => return self.fail(id, failure),
            Failure::InputLost { partition, node: holder } => {
                let task = job.task_mut(place).troubles_mut();
                task.input_losses += 1;
                if task.input_losses > MAX_INPUT_LOSSES {
                    return self.fail(id, Failure::InputLost { partition, node: holder });
                }
                // The partition may be there, and only the way from that node to this one be broken.
                task.excluded.push(node);
                job.abandon(place, attempt);
                if let Some(lost) = job.place(partition) {
                    self.nodes.entry(holder).held.remove(&partition);
                    if job.drop_holder(lost, holder) {
                        job.want_lost(vec![lost]);
                    }
                    // It may hold the partition all the same, and have been too slow to give it.
                    self.doubt(holder);
                }
            }
            Failure::Blind { why, path } => {
                let stage = &mut job.stages[place.stage];
                stage.refused.insert(node, Refusal::Blind(why));
                stage.missed = Some(path);
                job.abandon(place, attempt);
            }
            Failure::SubmissionLost { partition: None, .. } => {
                job.stages[place.stage].refused.insert(node, Refusal::Planless);
                job.abandon(place, attempt);
            }
            Failure::Unfit { needs, why } => {
                job.stages[place.stage].refused.insert(node, Refusal::Unfit { needs, why });
                job.abandon(place, attempt);
            }
            Failure::Crashed { name, how, output } if job.is_fragment(place.stage) => {
                let task = job.task_mut(place).troubles_mut();
                task.crashes.push(node);
                task.excluded.push(node);
                if task.deaths.len() + task.crashes.len() >= MAX_CRASHES {
                    let before = match task.deaths.as_slice() {
                        [] => String::new(),
                        nodes => {
                            let nodes: Vec<_> = nodes.iter().map(|node| self.nodes.name(*node)).collect();
                            format!(
                                "; it was tried apart since node {} went away while it ran there",
                                nodes.join(", ")
                            )
                        }
                    };
                    let failure = Failure::Crashed { name, how, output: format!("{output}{before}") };
                    return self.fail(id, failure);
                }
                job.abandon(place, attempt);
            }
            Failure::NodeLost { .. } | Failure::Cancelled => {
                // Nothing is known against the task or the node. One that leaves in order is not asked any more; what
                // others say so is bounded all the same.
                let task = job.task_mut(place).troubles_mut();
                task.failures += 1;
                if task.failures >= MAX_ATTEMPTS {
                    return self.fail(id, failure);
                }
                job.abandon(place, attempt);
            }
            failure => {
                let task = job.task_mut(place).troubles_mut();
                task.failures += 1;
                task.excluded.push(node);
                if task.failures >= MAX_ATTEMPTS {
                    return self.fail(id, at(&self.nodes.name(node), failure));
                }
                job.abandon(place, attempt);
            }
        }
        self.touch(id);
        self.check_stuck(id);
    }

    /// Starts a second copy of tasks that take much longer than their siblings did, once nothing else of the
    /// stage waits. Whichever copy ends first counts.
    pub(super) fn second_copies(&mut self, id: JobId) {
        if self.settling.is_some() {
            return;
        }
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let mut slow = Vec::new();
        for (position, stage) in job.stages.iter().enumerate() {
            let left = stage.tasks.len() - stage.done as usize;
            if stage.running.is_empty() || stage.running.len() < left || left > stage.done as usize {
                continue;
            }
            let mut elapsed_ms = stage.elapsed_ms.clone();
            if elapsed_ms.is_empty() {
                continue;
            }
            let middle = elapsed_ms.len() / 2;
            let median_ms = *elapsed_ms.select_nth_unstable(middle).1;
            let limit_ms = median_ms.saturating_mul(SLOW_FACTOR).max(SLOW_MS);
            for partition in &stage.running {
                if let [only] = stage.tasks[*partition as usize].attempts.as_slice()
                    && self.now_ms.saturating_sub(only.since_ms) > limit_ms
                {
                    slow.push(Place { stage: position, partition: *partition });
                }
            }
        }
        for place in slow {
            let Some(job) = self.jobs.get(&id) else { return };
            let Some(reads) = job.reads(place) else { continue };
            let memory_bytes = task_memory_bytes(read_bytes(job, place, &reads));
            if let Some(node) = choose(&self.nodes, job, place, &reads, memory_bytes, true) {
                self.assign(id, place, node, reads, memory_bytes);
            }
        }
    }

    /// A node is connected, or speaks after a silence: nothing is assigned to it until its inventory came.
    pub(super) fn ask(&mut self, node: NodeId) {
        let now_ms = self.now_ms;
        self.quiet = false;
        self.nodes.update(node, |node| {
            node.standing = Standing::Asked;
            node.asked_ms = now_ms;
            node.doubted = false;
        });
        self.send(node, PeerMessage::AskInventory { fence: self.fence });
    }

    /// Asks a node that has been there all along: what it does not know of was lost on the way, or with a
    /// partition, and not with the node.
    pub(super) fn doubt(&mut self, node: NodeId) {
        if self.nodes.is_live(node) {
            self.ask(node);
            self.nodes.update(node, |node| node.doubted = true);
        }
    }

    pub(super) fn node_down(&mut self, node: NodeId) {
        let now_ms = self.now_ms;
        self.nodes.update(node, |node| {
            node.connected = false;
            node.down_ms = Some(now_ms);
        });
        if self.nodes.get(node).is_none_or(|node| node.standing == Standing::Absent)
            && let Some(awaited) = &mut self.settling
        {
            awaited.remove(&node);
        }
    }

    pub(super) fn heard(&mut self, node: NodeId) {
        let now_ms = self.now_ms;
        self.nodes.update(node, |node| node.heard_ms = now_ms);
    }

    pub(super) fn alive(&mut self, node: NodeId, load: Load) {
        self.heard(node);
        self.nodes.update(node, |node| node.load = load);
        if self.nodes.get(node).is_some_and(|node| node.connected && node.standing == Standing::Absent) {
            self.ask(node);
        }
    }

    /// Renews the leases and finds the nodes that no longer answer.
    pub(super) fn check_leases(&mut self) {
        let now_ms = self.now_ms;
        let lost: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.standing != Standing::Absent)
            .filter(|(_, node)| match node.down_ms {
                Some(down_ms) => now_ms >= down_ms + GRACE_MS,
                None => now_ms >= node.heard_ms + LEASE_MS,
            })
            .map(|(id, _)| id)
            .collect();
        for node in lost {
            self.lose(node);
        }
        if now_ms < self.leased_ms + LEASE_INTERVAL_MS {
            return;
        }
        self.leased_ms = now_ms;
        let connected: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.connected)
            .map(|(id, node)| (id, node.standing, now_ms.saturating_sub(node.asked_ms), node.doubted))
            .collect();
        for (node, standing, asked_ago_ms, doubted) in connected {
            match standing {
                Standing::Asked if asked_ago_ms >= INVENTORY_RETRY_MS => {
                    self.ask(node);
                    self.nodes.update(node, |node| node.doubted = doubted);
                }
                Standing::Live if asked_ago_ms >= RECONCILE_MS => self.doubt(node),
                _ => self.send(node, PeerMessage::Lease { fence: self.fence }),
            }
        }
    }

    /// A node is gone: its tasks run elsewhere, and what only it held is made anew where that is needed.
    pub(super) fn lose(&mut self, node: NodeId) {
        self.nodes.update(node, |node| node.standing = Standing::Absent);
        self.losses += 1;
        self.effects.push(Effect::NodeLost(node));
        self.lose_partitions(node);
        let attempts = self.nodes.get(node).map(|node| node.attempts()).unwrap_or_default();
        for (attempt, had_slot) in attempts {
            self.vanished(attempt, node, had_slot);
        }
        if let Some(awaited) = &mut self.settling {
            awaited.remove(&node);
        }
    }

    /// Whatever a node held is lost, unless another holds it too.
    pub(super) fn lose_partitions(&mut self, node: NodeId) {
        let held = std::mem::take(&mut self.nodes.entry(node).held);
        self.drop_partitions(node, held);
    }

    /// The partitions, in order of job, are no longer on the node.
    pub(super) fn drop_partitions(&mut self, node: NodeId, partitions: impl IntoIterator<Item = TaskId>) {
        let mut lost: Vec<(JobId, Vec<Place>)> = Vec::new();
        for partition in partitions {
            let Some(job) = self.jobs.get_mut(&partition.job) else { continue };
            let Some(place) = job.place(partition) else { continue };
            if lost.last().is_none_or(|(id, _)| *id != partition.job) {
                lost.push((partition.job, Vec::new()));
            }
            if job.drop_holder(place, node)
                && let Some((_, places)) = lost.last_mut()
            {
                places.push(place);
            }
        }
        for (id, places) in lost {
            if let Some(job) = self.jobs.get_mut(&id) {
                job.want_lost(places);
            }
            self.touch(id);
        }
    }

    /// A node said what it holds and runs: what differs from what was believed is put right.
    pub(super) fn inventory(&mut self, node: NodeId, inventory: Inventory) {
        self.heard(node);
        if !self.nodes.get(node).is_some_and(|node| node.connected) {
            return;
        }
        let Inventory { mut held, runs, running, sessions, reading, submitting, load, fence: _ } = inventory;
        self.attended(&sessions);
        self.read(&reading);
        for job in submitting.into_iter().take(MAX_ORPHANS) {
            self.submitting.insert(job, self.now_ms);
        }
        let mut runs: BTreeMap<TaskId, TaskRun> = runs.into_iter().collect();
        let now_ms = self.now_ms;
        self.nodes.update(node, |node| {
            node.standing = Standing::Live;
            node.load = load;
            node.told_ms = now_ms;
        });
        held.sort_by_key(|(task, _)| *task);
        for (task, summary) in &held {
            let Some(job) = self.jobs.get(&task.job) else {
                let known = self.ending.contains_key(&task.job) || self.orphans.len() >= MAX_ORPHANS;
                if !known {
                    self.orphans.entry((task.job, node)).or_insert(self.now_ms);
                }
                continue;
            };
            let Some(place) = job.place(*task) else { continue };
            if job.is_held(place.stage)
                && let Some(job) = self.jobs.get_mut(&task.job)
                && job.add_holder(place, node, Some(summary))
            {
                self.nodes.entry(node).held.insert(*task);
                self.touch(task.job);
                continue;
            }
            let Some(job) = self.jobs.get(&task.job) else { continue };
            if job.fits(place, summary) && !job.task(place).is_done() {
                if let Some(run) = runs.remove(task) {
                    self.ran(*task, place, node, run);
                }
                self.finish(task.job, place, node, Made::Held(*summary), None);
            }
        }
        let believed = self.nodes.get(node).map(|node| node.held.clone()).unwrap_or_default();
        let missing: Vec<_> = believed
            .into_iter()
            .filter(|task| held.binary_search_by_key(task, |(held, _)| *held).is_err())
            .collect();
        for task in &missing {
            self.nodes.entry(node).held.remove(task);
        }
        self.drop_partitions(node, missing);
        for job in self.jobs.values_mut() {
            job.not_with(node, |task| held.binary_search_by_key(task, |(held, _)| *held).is_ok());
        }

        for attempt in &running {
            if !self.nodes.get(node).is_some_and(|node| node.runs(*attempt)) && !self.adopt(*attempt, node) {
                self.aborts.entry(node).or_default().push(*attempt);
            }
        }
        let believed = self.nodes.get(node).map(|node| node.attempts()).unwrap_or_default();
        let doubted = self.nodes.get(node).is_some_and(|node| node.doubted);
        let gone: Vec<_> = believed.into_iter().filter(|(attempt, _)| !running.contains(attempt)).collect();
        if !gone.is_empty() && !doubted {
            // It has started again meanwhile.
            self.losses += 1;
        }
        for (attempt, had_slot) in gone {
            self.vanished(attempt, node, had_slot && !doubted);
        }
        if let Some(awaited) = &mut self.settling {
            awaited.remove(&node);
        }
    }

    /// Takes over an attempt that an earlier leader assigned, or this one before the node was lost. False if
    /// its task is not wanted, or runs twice already.
    fn adopt(&mut self, attempt: AttemptId, node: NodeId) -> bool {
        let Some(job) = self.jobs.get_mut(&attempt.task.job) else { return false };
        let Some(place) = job.place(attempt.task) else { return false };
        let task = job.task(place);
        let wanted =
            matches!(task.state, State::Waiting | State::Ready | State::Running) && job.is_run(place.stage);
        if !wanted || task.attempts.len() >= 2 {
            return false;
        }
        let input_bytes = read_bytes(job, place, &job.reads(place).unwrap_or_default());
        let memory_bytes = task_memory_bytes(input_bytes);
        // How it runs there is not known.
        job.begin(place, Attempt { id: attempt, node, since_ms: self.now_ms, apart: false });
        self.nodes.reserve(node, attempt, memory_bytes);
        true
    }

    /// Ends the wait for inventories at the start of a leadership: when all members answered; when the grace
    /// has passed and all that are connected answered; or after [`SETTLE_MS`]. What nobody holds by then is lost.
    pub(super) fn settle(&mut self) {
        let Some(awaited) = &self.settling else { return };
        let since_ms = self.now_ms.saturating_sub(self.started_ms);
        let answering = self.nodes.iter().any(|(_, node)| node.standing == Standing::Asked);
        let answered = (awaited.is_empty() || since_ms >= GRACE_MS) && !answering;
        let done = answered || since_ms >= SETTLE_MS;
        if !done {
            return;
        }
        self.settling = None;
        let absent: Vec<_> =
            self.nodes.iter().filter(|(_, node)| node.standing != Standing::Live).map(|(id, _)| id).collect();
        for node in absent {
            self.lose_partitions(node);
        }
    }

    /// Frees partitions of jobs that are still unknown after a while.
    pub(super) fn free_orphans(&mut self) {
        let now_ms = self.now_ms;
        self.submitting.retain(|_, said_ms| now_ms < *said_ms + ORPHAN_MS);
        let due: Vec<_> = self
            .orphans
            .iter()
            .filter(|((job, _), since)| now_ms >= **since + ORPHAN_MS && !self.submitting.contains_key(job))
            .map(|(key, _)| *key)
            .collect();
        for (job, node) in due {
            self.orphans.remove(&(job, node));
            if !self.jobs.contains_key(&job) && self.is_alive(node) {
                self.send(node, PeerMessage::Free { fence: self.fence, jobs: vec![job] });
            }
        }
    }
}

/// What ran out is told with where it did.
fn at(node: &str, failure: Failure) -> Failure {
    match failure {
        Failure::Exhausted { what, message } => Failure::Exhausted {
            what,
            message: format!("on node {node}, the last of {MAX_ATTEMPTS} tries: {message}"),
        },
        failure => failure,
    }
}

/// A task that can go nowhere, perhaps for the nodes where it failed before. True if that is so of every node
/// that may run it: then it may be tried there again. Otherwise others of its stage need not wait behind it.
pub(super) fn relent(nodes: &Nodes, job: &mut Job, place: Place) -> bool {
    let (spec, stage) = (&job.graph.stages[place.stage], &job.stages[place.stage]);
    let excluded = &job.task(place).troubles().excluded;
    if excluded.is_empty() {
        return false;
    }
    let elsewhere = nodes.iter().any(|(node, state)| {
        state.standing != Standing::Absent
            && state.takes_tasks()
            && !state.is_short()
            && !excluded.contains(&node)
            && !stage.refused.contains_key(&node)
            && (spec.seen_by.is_empty() || spec.seen_by.binary_search(&node).is_ok())
    });
    if elsewhere {
        job.stages[place.stage].ready.rotate_left(1);
    } else {
        job.task_mut(place).troubles_mut().excluded.clear();
    }
    !elsewhere
}
