//! `floe jobs`

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use floe_client::json;
use floe_protocol::JobStatus;
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
        ListFormat::Table => output::print(format_args!("{}", as_table(&jobs, unix_ms())))?,
        ListFormat::Json => {
            let jobs: Vec<_> = jobs.iter().map(json::job).collect();
            output::print(format_args!("{:#}\n", Value::from(jobs)))?;
        }
    }
    Ok(End::Done)
}

fn as_table(jobs: &[JobStatus], now_unix_ms: u64) -> String {
    let rows: Vec<_> = jobs
        .iter()
        .map(|job| {
            let (done, tasks) = job.tasks();
            let end = job.ended_unix_ms.unwrap_or(now_unix_ms);
            [
                job.id.to_string(),
                job.phase.name().to_owned(),
                format!("{done}/{tasks}"),
                table::span_ms(now_unix_ms.saturating_sub(job.submitted_unix_ms)),
                table::span_ms(end.saturating_sub(job.submitted_unix_ms)),
                shorten(&job.label),
            ]
        })
        .collect();
    table::layout(["JOB", "PHASE", "TASKS", "AGE", "TIME", "QUERY"], &rows)
}

fn shorten(label: &str) -> String {
    let line = label.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_LABEL_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
