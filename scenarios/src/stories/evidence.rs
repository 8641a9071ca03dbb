//! What the nodes' logs tell: who was elected, which attempts of a job's tasks came to their end where, who was
//! given up. All times are of one machine's clock.

use std::collections::BTreeMap;

use floe_protocol::{AttemptId, JobId, StageId, TaskId};

use crate::harness::{LogLine, Node};

/// What the nodes must log for this, beyond what `-v` has them say.
pub(super) const LOG_FILTER: &str = "warn,libp2p_kad=error,floe=debug,floe_network=info";

/// A node became the leader.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Election {
    /// Its number.
    pub(super) node: usize,
    /// When, in milliseconds since the Unix epoch.
    pub(super) unix_ms: f64,
    /// Its term.
    pub(super) term: u64,
}

/// An attempt that came to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Done {
    /// On which node.
    pub(super) node: usize,
    /// When, in milliseconds since the Unix epoch.
    pub(super) unix_ms: f64,
    /// Which task: stage and partition.
    pub(super) task: (u32, u32),
    /// The low 32 bits of the term in which it was assigned.
    pub(super) term: u64,
    /// How many attempts at the task its leader had made before.
    pub(super) earlier: u64,
    /// What it put out.
    pub(super) bytes: u64,
}

/// Every election since then, in order.
pub(super) fn elections(nodes: &[Node], since_unix_ms: f64) -> Vec<Election> {
    let mut found: Vec<_> = lines(nodes, since_unix_ms, "elected: this node schedules")
        .filter_map(|(node, line)| {
            Some(Election { node, unix_ms: line.unix_ms, term: line.field("term")?.parse().ok()? })
        })
        .collect();
    found.sort_by(|a, b| a.unix_ms.total_cmp(&b.unix_ms));
    found
}

/// When a leader gave up this node, named as in the log.
pub(super) fn given_up(nodes: &[Node], since_unix_ms: f64, id: &str) -> Option<f64> {
    let found = lines(nodes, since_unix_ms, "lost: what it ran and held");
    found.filter(|(_, line)| line.field("node") == Some(id)).map(|(_, line)| line.unix_ms).next()
}

/// Lines of any node since then that contain this text.
pub(super) fn lines(
    nodes: &[Node],
    since_unix_ms: f64,
    text: &str,
) -> impl Iterator<Item = (usize, LogLine)> {
    nodes.iter().enumerate().flat_map(move |(node, process)| {
        let lines = process.log_since(since_unix_ms).into_iter();
        lines.filter(|line| line.text.contains(text)).map(move |line| (node, line)).collect::<Vec<_>>()
    })
}

/// Every attempt at the job's tasks that was done since then, in order.
pub(super) fn done(nodes: &[Node], since_unix_ms: f64, job: JobId) -> Vec<Done> {
    let mut found: Vec<_> = lines(nodes, since_unix_ms, "task done")
        .filter_map(|(node, line)| {
            let attempt = attempt(line.field("attempt")?)?;
            let (of, task) = (attempt.task.job, (attempt.task.stage.0, attempt.task.partition));
            let bytes = line.field("bytes")?.parse().ok()?;
            let (term, earlier) = (attempt.term(), attempt.count());
            (of == job).then_some(Done { node, unix_ms: line.unix_ms, task, term, earlier, bytes })
        })
        .collect();
    found.sort_by(|a, b| a.unix_ms.total_cmp(&b.unix_ms));
    found
}

/// How many times tasks were done again, and how many bytes they put out again.
pub(super) fn again(done: &[Done]) -> (usize, u64) {
    let mut by_task: BTreeMap<(u32, u32), Vec<u64>> = BTreeMap::new();
    for one in done {
        by_task.entry(one.task).or_default().push(one.bytes);
    }
    by_task
        .values()
        .fold((0, 0), |(tasks, bytes), runs| (tasks + runs.len() - 1, bytes + runs[1..].iter().sum::<u64>()))
}

/// Reads `job/stage/partition#attempt`.
fn attempt(text: &str) -> Option<AttemptId> {
    let (task, number) = text.split_once('#')?;
    let mut parts = task.split('/');
    let job = parts.next()?.parse().ok()?;
    let (stage, partition) = (StageId(parts.next()?.parse().ok()?), parts.next()?.parse().ok()?);
    let task = TaskId { job, stage, partition };
    Some(AttemptId { task, attempt: u64::from_str_radix(number, 16).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_read_as_nodes_log_them() {
        let read = attempt("0000000000000abc/1/12#9876543200050002").expect("an attempt");
        assert_eq!(read.task, TaskId { job: JobId(0xabc), stage: StageId(1), partition: 12 });
        assert_eq!((read.term(), read.count()), (5, 2));
        assert_eq!(attempt("abc"), None);
    }

    #[test]
    fn what_was_done_twice_counts_once() {
        let one = |partition, bytes| Done {
            node: 0,
            unix_ms: 0.0,
            task: (0, partition),
            term: 1,
            earlier: 0,
            bytes,
        };
        assert_eq!(again(&[one(0, 10), one(1, 20), one(0, 11), one(2, 5)]), (1, 11));
        assert_eq!(again(&[]), (0, 0));
    }
}
