//! Jobs that can run nowhere: what came with the submission is lost, no node sees a stage's files, or none has what
//! its function needs. Such a job waits while a node that is away might help, and then ends with a sentence that
//! says which node lacks what.

use std::collections::{BTreeMap, BTreeSet};

use floe_protocol::{Failure, JobId, NodeId, Work};

use super::Scheduler;
use super::job::{Refusal, Stage};
use super::placement::{Node, Nodes, Standing};

/// How long a job waits for a node to come back that alone sees its files, holds its frames, or may have what its
/// function needs.
pub const UNSEEN_PATIENCE_MS: u64 = 10_000;

/// How long a job waits for the nodes that hold what came with it, and are members of the mesh: they may be starting
/// again, and nobody else has it.
pub const AWAY_PATIENCE_MS: u64 = 600_000;

/// How long a job waits before its driver is told: nodes come and go.
const SAID_MS: u64 = 3_000;

/// Nodes that are named together in a failure; of more than these, how many.
const MAX_NAMED: usize = 4;

/// Different reasons, and things needed, that are listed in a failure.
const MAX_LISTED: usize = 8;

/// The part of a node's reason that is quoted in a failure, in characters.
const MAX_WHY_CHARS: usize = 300;

/// Said of a node that lacks a job's plan.
const NO_PLAN: &str = "did not find the job's plan";

/// Why a job can run nowhere.
struct Stuck {
    /// How it ends for that.
    failure: Failure,
    /// Nodes that might mend it, should they come back, and what they may have that no other has.
    away: BTreeSet<NodeId>,
    what: &'static str,
    /// How long it waits for them.
    patience_ms: u64,
}

impl Scheduler {
    /// Ends a job that can run nowhere: at once if no node that is away could help, else after a while.
    pub(super) fn check_stuck(&mut self, id: JobId) {
        if self.settling.is_some() {
            return;
        }
        let stuck = self.stuck(id);
        let waits_for = stuck.as_ref().and_then(|stuck| stuck.waits_for(&self.nodes));
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(Stuck { failure, patience_ms, .. }) = stuck else {
            (job.stuck_since_ms, job.waits_for) = (None, None);
            return;
        };
        let since = *job.stuck_since_ms.get_or_insert(self.now_ms);
        job.waits_for = waits_for.filter(|_| self.now_ms >= since + SAID_MS);
        if self.now_ms >= since + patience_ms {
            self.fail(id, failure);
        }
    }

    /// What a job waits for that can run nowhere until a node comes back.
    pub fn waits_for(&self, job: JobId) -> Option<&str> {
        self.jobs.get(&job)?.waits_for.as_deref()
    }

    /// A node is there that may have the plans that others looked for in vain.
    pub(super) fn look_for_plans_again(&mut self) {
        let stages = self.jobs.values_mut().flat_map(|job| &mut job.stages);
        let mut any = false;
        for stage in stages {
            let before = stage.refused.len();
            stage.refused.retain(|_, refusal| *refusal != Refusal::Planless);
            any |= stage.refused.len() < before;
        }
        if any {
            self.turns.wake_all();
        }
    }

    fn stuck(&mut self, id: JobId) -> Option<Stuck> {
        let short = |failure, away: BTreeSet<NodeId>, what| {
            let patience_ms = if away.is_empty() { 0 } else { UNSEEN_PATIENCE_MS };
            Some(Stuck { failure, away, what, patience_ms })
        };
        let now_ms = self.now_ms;
        let job = self.jobs.get_mut(&id)?;
        if let Some(lost) = job.lost_submission() {
            let partition = job.task_id(lost);
            let Work::Held(placed) = &job.graph.stages[lost.stage].work else { return None };
            let node = placed.get(lost.partition as usize)?.nodes.first().copied().unwrap_or(NodeId(0));
            let absent =
                |node: &NodeId| self.nodes.get(*node).is_some_and(|n| n.standing == Standing::Absent);
            let away: BTreeSet<_> = job.task(lost).troubles().away.iter().copied().filter(absent).collect();
            let patience_ms = if away.is_empty() { UNSEEN_PATIENCE_MS } else { AWAY_PATIENCE_MS };
            let failure = Failure::SubmissionLost { partition: Some(partition), node };
            return Some(Stuck { failure, away, what: "a part of what came with it", patience_ms });
        }
        for position in 0..job.stages.len() {
            if job.next_ready(position).is_none() {
                continue;
            }
            let (seen_by, stage) = (&job.graph.stages[position].seen_by, &job.stages[position]);
            let refuses = |node: &NodeId| stage.refused.contains_key(node);
            let planless = stage.refused.iter().find(|(_, refusal)| **refusal == Refusal::Planless);
            let unfit = planless.is_some() || stage.needs().next().is_some();
            // Of files every node was asked, of what a function needs, or of the plan, only those that got a task.
            let may_run = |(id, node): (NodeId, &Node)| {
                node.standing != Standing::Absent && !refuses(&id) && (node.takes_tasks() || !unfit)
            };
            if stage.refused.is_empty() || self.nodes.iter().any(may_run) {
                continue;
            }
            let absent = |node: &NodeId| self.nodes.get(*node).is_none_or(|n| n.standing == Standing::Absent);
            let mut away: BTreeSet<_> =
                seen_by.iter().copied().filter(|node| absent(node) && !refuses(node)).collect();
            if !unfit {
                let failure = stage.unseen(&self.nodes, &away);
                return short(failure, away, "its files");
            }
            // Whoever was here a moment ago may be starting again.
            let lately = |node: &Node| now_ms < node.heard_ms + UNSEEN_PATIENCE_MS;
            let others = self.nodes.iter().filter(|(id, node)| absent(id) && !refuses(id) && lately(node));
            away.extend(others.map(|(id, _)| id));
            return match planless {
                Some((node, _)) => {
                    short(Failure::SubmissionLost { partition: None, node: *node }, away, "its plan")
                }
                None => short(stage.none_fits(&self.nodes, &away), away, "what its function needs"),
            };
        }
        None
    }
}

impl Stuck {
    /// The sentence for who waits for the job, if it waits for anybody.
    fn waits_for(&self, nodes: &Nodes) -> Option<String> {
        let time = match self.patience_ms / 1_000 {
            seconds if seconds < 120 => format!("{seconds} s"),
            seconds => format!("{} min", seconds / 60),
        };
        let names = joined(nodes, &self.away.iter().copied().collect::<Vec<_>>());
        (!self.away.is_empty())
            .then(|| format!("waits up to {time} for {names} to come back: no other node has {}", self.what))
    }
}

impl Stage {
    /// What nodes lack.
    fn needs(&self) -> impl Iterator<Item = &str> {
        self.refused.values().filter_map(|refusal| match refusal {
            Refusal::Unfit { needs, .. } => Some(needs.as_str()),
            Refusal::Blind(_) | Refusal::Planless => None,
        })
    }

    fn path(&self) -> &str {
        self.missed.as_deref().unwrap_or("its files")
    }

    /// No node sees the stage's files, and those that did are away.
    fn unseen(&self, nodes: &Nodes, away: &BTreeSet<NodeId>) -> Failure {
        let found = self.refused.iter().map(|(node, refusal)| match refusal {
            Refusal::Blind(why) | Refusal::Unfit { why, .. } => (*node, cut(why)),
            Refusal::Planless => (*node, NO_PLAN.to_owned()),
        });
        let gone = away.iter().map(|node| (*node, "saw it and is gone".to_owned()));
        let looked = [list(nodes, found), list(nodes, gone)].concat().join("; ");
        Failure::Unseen { path: self.path().to_owned(), looked }
    }

    /// No node has what the stage's function needs, but perhaps those that are away.
    fn none_fits(&self, nodes: &Nodes, away: &BTreeSet<NodeId>) -> Failure {
        let needs: BTreeSet<_> = self.needs().map(cut).collect();
        let found = self.refused.iter().map(|(node, refusal)| match refusal {
            Refusal::Unfit { why, .. } if needs.len() == 1 => (*node, cut(why)),
            Refusal::Unfit { needs, why } => (*node, format!("{} (needs {})", cut(why), cut(needs))),
            Refusal::Blind(why) => (*node, format!("does not see {}: {}", self.path(), cut(why))),
            Refusal::Planless => (*node, NO_PLAN.to_owned()),
        });
        let gone = away.iter().map(|node| (*node, "is away".to_owned()));
        let looked = [list(nodes, found), list(nodes, gone)].concat().join("; ");
        let needs: Vec<_> = needs.into_iter().take(MAX_LISTED).collect();
        Failure::NoneFits { needs: needs.join(" or "), looked }
    }
}

/// `node a: why`, `nodes b, c and d: another why`: nodes with the same reason together, and no more of either than
/// anybody would read.
fn list(nodes: &Nodes, reasons: impl Iterator<Item = (NodeId, String)>) -> Vec<String> {
    let mut groups: BTreeMap<String, Vec<NodeId>> = BTreeMap::new();
    for (node, why) in reasons {
        groups.entry(why).or_default().push(node);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, nodes)| nodes.first().copied());
    let more: usize = groups.iter().skip(MAX_LISTED).map(|(_, nodes)| nodes.len()).sum();
    let mut texts: Vec<_> = groups
        .into_iter()
        .take(MAX_LISTED)
        .map(|(why, group)| format!("{}: {why}", joined(nodes, &group)))
        .collect();
    if more > 0 {
        texts.push(format!("and {more} more nodes for other reasons"));
    }
    texts
}

/// `node a`, or `nodes a, b and 3 more`.
fn joined(nodes: &Nodes, group: &[NodeId]) -> String {
    let mut names: Vec<_> = group.iter().take(MAX_NAMED).map(|node| nodes.name(*node)).collect();
    match group.len() - names.len() {
        0 => {}
        more => names.push(format!("{more} more")),
    }
    let last = names.pop().unwrap_or_default();
    match names.is_empty() {
        true => format!("node {last}"),
        false => format!("nodes {} and {last}", names.join(", ")),
    }
}

/// A node's own words, not too many of them.
fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_WHY_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
