//! Work for a mesh: tables cut into files, and jobs that last long enough for something to happen meanwhile.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail};
use floe_client::{Job, Mesh};
use polars::prelude::*;

use crate::data::nycflights;
use crate::harness::{DEADLINE, wait_until};
use crate::reference::Tables;

/// Rows of the flights table in the formats that are slow to read and write.
const FEW_ROWS: usize = 12_000;

/// How many aggregates [`slow_query`] has: enough that a job takes seconds of CPU time.
const SLOW_AGGREGATES: usize = 400;

/// How many scans [`long_query`] has, each a stage with at least as many tasks as a mesh has slots.
const LONG_SCANS: usize = 8;

/// How many aggregates each of them has, and how many operations each of those: enough that a task takes some
/// tens of milliseconds at least.
const LONG_AGGREGATES: usize = 6;
const LONG_OPERATIONS: usize = 10;

/// Writes the flights into `dir` as this many files of this format; `flights` names the glob.
pub fn flights(dir: &Path, format: &str, parts: usize) -> Result<Tables> {
    let scan = PlRefPath::try_from_path(&nycflights("flights"))?;
    let mut frame = LazyFrame::scan_parquet(scan, ScanArgsParquet::default())?.collect()?;
    if format != "parquet" {
        frame = frame.head(Some(FEW_ROWS));
    }
    let dir = dir.join(format!("flights-{format}"));
    fs::create_dir_all(&dir)?;
    let rows = frame.height().div_ceil(parts);
    for part in 0..parts {
        // Numbered so that names sort as numbers do.
        let path = dir.join(format!("{part:04}.{format}"));
        let slice = frame.slice((part * rows) as i64, rows);
        write(slice, &path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(Tables::new().with("flights", dir.join(format!("*.{format}"))))
}

/// Writes a frame in the format that the path's ending names.
fn write(mut frame: DataFrame, path: &Path) -> Result<()> {
    let file = File::create(path)?;
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("parquet") => drop(ParquetWriter::new(file).finish(&mut frame)?),
        Some("csv") => CsvWriter::new(file).finish(&mut frame)?,
        Some("ndjson") => {
            JsonWriter::new(file).with_json_format(JsonFormat::JsonLines).finish(&mut frame)?;
        }
        Some("arrow") => IpcWriter::new(file).finish(&mut frame)?,
        _ => bail!("{} has no ending that is known", path.display()),
    }
    Ok(())
}

/// A query over `{flights}` that takes seconds, most of them in one task.
pub fn slow_query() -> String {
    let aggregates: Vec<String> = (0..SLOW_AGGREGATES)
        .map(|k| format!("SUM(POWER(distance, {:.3})) AS s{k}", 0.5 + k as f64 / 1000.0))
        .collect();
    format!("SELECT carrier, {} FROM {{flights}} GROUP BY carrier", aggregates.join(", "))
}

/// A query over `{flights}` that takes seconds, in dozens of short tasks. All its numbers are whole, so that its
/// result does not depend on how it was divided.
pub fn long_query() -> String {
    let aggregate = |number: usize| {
        (0..LONG_OPERATIONS).fold("distance".to_owned(), |value, operation| {
            let k = number + operation;
            format!("({value} * {} % {})", k % 7 + 2, 1009 + k)
        })
    };
    let scan = |scan: usize| {
        let aggregates = (0..LONG_AGGREGATES)
            .map(|k| format!("SUM({}) AS s{k}", aggregate(scan * LONG_AGGREGATES + k)))
            .collect::<Vec<_>>()
            .join(", ");
        format!("SELECT {scan} AS scan, carrier, {aggregates} FROM {{flights}} GROUP BY carrier")
    };
    (0..LONG_SCANS).map(scan).collect::<Vec<_>>().join(" UNION ALL ")
}

/// Submits a statement and waits until `tasks` of its tasks are done, so that there is something to lose.
pub async fn partly_done(mesh: &Mesh, tables: &Tables, statement: &str, tasks: u32) -> Result<Job> {
    let job = mesh.sql(tables.for_floe(statement)).await?;
    reached(&job, tasks).await?;
    Ok(job)
}

/// Waits until `tasks` of the job's tasks are done, and it is not.
pub async fn reached(job: &Job, tasks: u32) -> Result<()> {
    let status = wait_until("enough of a job's tasks are done", DEADLINE, async || {
        let status = job.status().await.ok()?;
        let done: u32 = status.stages.iter().map(|stage| stage.done).sum();
        (done >= tasks || status.phase.is_terminal()).then_some(status)
    })
    .await?;
    if status.phase.is_terminal() {
        bail!("the job ended before anything could happen to it: {status:?}");
    }
    Ok(())
}
