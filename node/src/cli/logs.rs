//! `floe logs`

use std::collections::BTreeMap;

use anyhow::bail;
use clap::Args;
use floe_protocol::message::LogChunk;
use floe_protocol::{AttemptId, JobId, NodeId, StageId};
use futures::TryStreamExt;

use super::connect::ConnectArgs;
use super::interrupt::Interrupt;
use super::{End, output};

/// Show what a job's functions printed
///
/// Each line has the node and the task before it. Logs lie on the nodes where the tasks ran, for an hour; those of a
/// node that is gone are gone with it.
#[derive(Args, Debug)]
pub(super) struct LogsArgs {
    /// The job's id, as `floe jobs` shows it
    job: JobId,
    /// One task only: its number, or STAGE/NUMBER
    #[arg(value_parser = parse_task)]
    task: Option<(Option<u32>, u32)>,
    /// Go on until the job has ended
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: LogsArgs) -> anyhow::Result<End> {
    let mut interrupt = Interrupt::listen()?;
    let mesh = args.connect.mesh().await?;
    let status = mesh.status().await?;
    let names: BTreeMap<NodeId, String> =
        status.nodes.into_iter().map(|info| (info.member.id, info.member.name)).collect();
    let job = mesh.job(args.job);
    let task = match args.task {
        Some((Some(stage), partition)) => Some((StageId(stage), partition)),
        Some((None, partition)) => Some((only_function_stage(job.status().await?.stages.len())?, partition)),
        None => None,
    };
    let show = async {
        let mut chunks = job.logs(task, args.follow);
        let mut lines = Lines::default();
        while let Some(chunk) = chunks.try_next().await? {
            let node = names.get(&chunk.node).cloned().unwrap_or_else(|| chunk.node.to_string());
            for line in lines.push(chunk) {
                output::print(format_args!("{node} {line}\n"))?;
            }
        }
        for (node, line) in lines.rest() {
            let node = names.get(&node).cloned().unwrap_or_else(|| node.to_string());
            output::print(format_args!("{node} {line}\n"))?;
        }
        anyhow::Ok(End::Done)
    };
    tokio::select! {
        shown = show => shown,
        () = interrupt.wait() => Ok(End::Interrupted),
    }
}

/// A number alone names a task of the only stage.
fn only_function_stage(stages: usize) -> anyhow::Result<StageId> {
    match stages {
        0 | 1 => Ok(StageId(0)),
        _ => bail!("the job has {stages} stages: name the task as STAGE/NUMBER, as in 0/3"),
    }
}

fn parse_task(text: &str) -> Result<(Option<u32>, u32), String> {
    let number = |text: &str| {
        text.parse::<u32>().map_err(|_| format!("`{text}` is no task: expected a number, or STAGE/NUMBER"))
    };
    match text.split_once('/') {
        Some((stage, partition)) => Ok((Some(number(stage)?), number(partition)?)),
        None => Ok((None, number(text)?)),
    }
}

/// Whole lines out of pieces that come as they were printed.
#[derive(Default)]
struct Lines {
    begun: BTreeMap<(NodeId, AttemptId), Vec<u8>>,
}

/// How much of a line without an end is kept before it is shown as it is.
const MAX_LINE_BYTES: usize = 64 << 10;

impl Lines {
    fn push(&mut self, chunk: LogChunk) -> Vec<String> {
        let begun = self.begun.entry((chunk.node, chunk.attempt)).or_default();
        begun.extend_from_slice(&chunk.bytes);
        let end = match begun.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None if begun.len() >= MAX_LINE_BYTES => begun.len(),
            None => return Vec::new(),
        };
        let whole: Vec<u8> = begun.drain(..end).collect();
        String::from_utf8_lossy(&whole).lines().map(|line| labelled(chunk.attempt, line)).collect()
    }

    fn rest(self) -> impl Iterator<Item = (NodeId, String)> {
        let unfinished = self.begun.into_iter().filter(|(_, bytes)| !bytes.is_empty());
        unfinished.map(|((node, attempt), bytes)| (node, labelled(attempt, &String::from_utf8_lossy(&bytes))))
    }
}

fn labelled(attempt: AttemptId, line: &str) -> String {
    format!("{}/{} | {}", attempt.task.stage, attempt.task.partition, line.trim_end_matches('\r'))
}

#[cfg(test)]
mod tests {
    use floe_protocol::TaskId;

    use super::*;

    #[test]
    fn a_task_is_a_number_or_a_stage_and_a_number() {
        assert_eq!(parse_task("3"), Ok((None, 3)));
        assert_eq!(parse_task("1/3"), Ok((Some(1), 3)));
        for bad in ["", "x", "1/", "/1", "-1"] {
            assert!(parse_task(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_are_shown_whole_and_apart_by_task() {
        let chunk = |partition, bytes: &'static [u8]| LogChunk {
            node: NodeId(1),
            attempt: AttemptId { task: TaskId { job: JobId(1), stage: StageId(0), partition }, attempt: 0 },
            bytes: bytes::Bytes::from_static(bytes),
        };
        let mut lines = Lines::default();
        assert_eq!(lines.push(chunk(0, b"one\ntw")), ["0/0 | one"]);
        assert!(lines.push(chunk(1, b"other")).is_empty());
        assert_eq!(lines.push(chunk(0, b"o\nthree\n")), ["0/0 | two", "0/0 | three"]);
        assert_eq!(lines.rest().collect::<Vec<_>>(), [(NodeId(1), "0/1 | other".to_owned())]);
    }
}
