//! Which task of a job ran on which node, and when, drawn with plain characters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use floe_protocol::job::{MAX_TIMELINE, TaskRun};
use floe_protocol::message::Status;
use floe_protocol::{JobStatus, NodeId};

use super::table;

/// How many columns the span of the job takes.
const WIDTH: u64 = 48;

/// How many tasks are drawn one by one; of a larger job's rest only the sums are told.
const MAX_DRAWN: usize = 60;

/// Draws a job's task runs, in order of their start, and sums them up by node.
///
/// ```text
///   task   node  0 ms                                        1.2 s
///   0/0    n1    |======                                          |  142 ms
///   0/1    n2    |      =========                                 |  217 ms
/// ```
pub(super) fn draw(job: &JobStatus, mesh: &Status) -> String {
    let names: BTreeMap<NodeId, &str> =
        mesh.nodes.iter().map(|node| (node.member.id, node.member.name.as_str())).collect();
    let name = |node: NodeId| names.get(&node).map_or_else(|| node.to_string(), |name| table::plain(name));
    let mut runs: Vec<&TaskRun> = job.timeline.iter().collect();
    runs.sort_by_key(|run| (run.started_at.unix_ms(), run.stage, run.partition));
    let (Some(begin), Some(end)) =
        (runs.iter().map(|run| run.started_at.unix_ms()).min(), runs.iter().map(|run| ended(run)).max())
    else {
        return "no task ran".to_owned();
    };
    let span_ms = (end - begin).max(1);
    let node_width = runs.iter().map(|run| name(run.node).chars().count()).max().unwrap_or(0).max(4);
    let span = table::span_ms(span_ms);
    let gap = " ".repeat((WIDTH as usize).saturating_sub(4 + span.len()));
    let mut text = format!("{:8}{:node_width$}   0 ms{gap}{span}\n", "task", "node");
    for run in runs.iter().take(MAX_DRAWN) {
        let from = (run.started_at.unix_ms() - begin) * WIDTH / span_ms;
        let to = ((ended(run) - begin) * WIDTH).div_ceil(span_ms).clamp(from + 1, WIDTH.max(from + 1));
        let from = from.min(WIDTH - 1);
        let to = to.min(WIDTH);
        let lane: String = (0..WIDTH).map(|at| if (from..to).contains(&at) { '=' } else { ' ' }).collect();
        let task = format!("{}/{}", run.stage, run.partition);
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{task:8}{:node_width$}  |{lane}|  {}",
            name(run.node),
            table::span_ms(run.elapsed_ms)
        );
    }
    if runs.len() > MAX_DRAWN {
        let _ = writeln!(text, "and {} more tasks", runs.len() - MAX_DRAWN);
    }
    let shown: BTreeSet<_> = runs.iter().map(|run| (run.stage, run.partition)).collect();
    let done = job.tasks().0 as usize;
    if done > shown.len() && runs.len() < MAX_TIMELINE {
        // Their outputs were found by the next leader, which had not been told of the runs.
        let _ = writeln!(text, "and {} tasks whose runs only a lost leader knew", done - shown.len());
    }
    let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for run in &runs {
        let sum = sums.entry(name(run.node)).or_default();
        *sum = (sum.0 + 1, sum.1 + run.elapsed_ms);
    }
    for (node, (tasks, busy_ms)) in sums {
        let _ = writeln!(text, "{node} ran {tasks} tasks in {}", table::span_ms(busy_ms));
    }
    text.truncate(text.trim_end().len());
    text
}

fn ended(run: &TaskRun) -> u64 {
    run.started_at.unix_ms().saturating_add(run.elapsed_ms)
}

#[cfg(test)]
mod tests {
    use floe_protocol::{JobId, JobPhase, StageId, WallTime};

    use super::*;

    fn job(timeline: Vec<TaskRun>) -> JobStatus {
        JobStatus {
            id: JobId(1),
            label: String::new(),
            phase: JobPhase::Succeeded,
            stages: Vec::new(),
            submitted_at: WallTime::default(),
            ended_at: None,
            other_ends: Vec::new(),
            waits_for: None,
            timeline,
        }
    }

    fn run(partition: u32, node: u64, started_ms: u64, elapsed_ms: u64) -> TaskRun {
        let started_at = WallTime::from_unix_ms(started_ms);
        TaskRun { stage: StageId(0), partition, node: NodeId(node), started_at, elapsed_ms }
    }

    #[test]
    fn tasks_are_drawn_to_scale_and_summed_by_node() {
        let mesh = Status {
            node: NodeId(1),
            era: None,
            leader: None,
            term: 0,
            rival: None,
            nodes: vec![],
            voters: vec![],
        };
        let drawn = draw(&job(vec![run(1, 2, 1_050, 50), run(0, 1, 1_000, 50), run(2, 2, 1_100, 0)]), &mesh);
        let lines: Vec<_> = drawn.lines().collect();
        let half = WIDTH as usize / 2;
        let lane = |bar: &str, before: usize| {
            format!("|{}{bar}{}|", " ".repeat(before), " ".repeat(WIDTH as usize - before - bar.len()))
        };
        assert!(lines[1].starts_with("0/0") && lines[1].contains(&lane(&"=".repeat(half), 0)), "{drawn}");
        assert!(lines[2].starts_with("0/1") && lines[2].contains(&lane(&"=".repeat(half), half)), "{drawn}");
        assert!(lines[3].contains(&lane("=", WIDTH as usize - 1)), "{drawn}");
        assert_eq!(lines[5], format!("{} ran 2 tasks in 50 ms", NodeId(2)));
        assert_eq!(draw(&job(Vec::new()), &mesh), "no task ran");
    }
}
