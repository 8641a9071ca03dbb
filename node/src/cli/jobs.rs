//! `floe jobs`

use std::time::SystemTime;

use clap::Args;
use floe_client::json;
use floe_protocol::job::MAX_LISTED_JOBS;
use floe_protocol::{JobPhase, JobStatus, WallTime};
use serde_json::Value;

use super::connect::ConnectArgs;
use super::format::ListFormat;
use super::{End, output, table};

/// How much of a label is shown in the table.
const MAX_LABEL_CHARS: usize = 60;

/// List the jobs that the mesh knows
#[derive(Args, Debug)]
pub(super) struct JobsArgs {
    /// How it is written
    #[arg(long, value_enum, default_value = "table")]
    format: ListFormat,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: JobsArgs) -> anyhow::Result<End> {
    let jobs = args.connect.mesh().await?.jobs().await?;
    match args.format {
        ListFormat::Table => {
            output::print(format_args!("{}", as_table(&jobs, WallTime::of(SystemTime::now()))))?
        }
        ListFormat::Json => {
            let jobs: Vec<_> = jobs.iter().map(json::job).collect();
            output::print(format_args!("{:#}\n", Value::from(jobs)))?;
        }
    }
    if jobs.len() >= MAX_LISTED_JOBS {
        output::note(format_args!(
            "these are the newest {MAX_LISTED_JOBS} jobs: programs still find older ones by their ids"
        ));
    }
    Ok(End::Done)
}

fn as_table(jobs: &[JobStatus], now: WallTime) -> String {
    let rows: Vec<_> = jobs
        .iter()
        .map(|job| {
            let (done, tasks) = job.tasks();
            let end = job.ended_at.unwrap_or(now);
            [
                job.id.to_string(),
                phase(job),
                format!("{done}/{tasks}"),
                table::span(job.submitted_at.span_to(now)),
                table::span(job.submitted_at.span_to(end)),
                shorten(&job.label),
            ]
        })
        .collect();
    table::layout(["JOB", "PHASE", "TASKS", "AGE", "TIME", "QUERY"], &rows)
}

/// How it stands; whom it waits for; and how else it ended, where parts of the mesh that were cut off from each other said
/// so.
fn phase(job: &JobStatus) -> String {
    let others: Vec<_> = job.other_ends.iter().map(JobPhase::name).collect();
    let name = job.phase.name();
    match (others.as_slice(), &job.waits_for) {
        ([], None) => name.to_owned(),
        ([], Some(waits_for)) => format!("{name} ({waits_for})"),
        (others, _) => format!("{name} (elsewhere {})", others.join(", ")),
    }
}

fn shorten(label: &str) -> String {
    let line = label.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_LABEL_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
