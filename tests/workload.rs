//! What the tests ask, and of which files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use floe_client::{Job, Mesh};
use floe_protocol::JobStatus;
use floe_scenarios::data::nycflights;
use floe_scenarios::harness::{DEADLINE, wait_until};
use floe_scenarios::reference::Tables;
use polars::prelude::*;

/// The formats that can be scanned, by their endings.
pub(crate) const FORMATS: [&str; 4] = ["parquet", "csv", "ndjson", "arrow"];

/// Into how many files the flights are cut, so that there is something to distribute.
const PARTS: usize = 6;

/// Rows of the flights table in the formats that are slow to read and write.
const FEW_ROWS: usize = 12_000;

/// How many aggregates [`slow_query`] has: enough that a job takes seconds of CPU time.
const SLOW_AGGREGATES: usize = 400;

/// Writes the flights into `dir` as `PARTS` files of this format; `flights` names the glob.
pub(crate) fn flights(dir: &Path, format: &str) -> Tables {
    let mut frame = LazyFrame::scan_parquet(path(&nycflights("flights")), ScanArgsParquet::default())
        .unwrap()
        .collect()
        .unwrap();
    if format != "parquet" {
        frame = frame.head(Some(FEW_ROWS));
    }
    let dir = dir.join(format!("flights-{format}"));
    fs::create_dir_all(&dir).unwrap();
    let rows = frame.height().div_ceil(PARTS);
    for part in 0..PARTS {
        let slice = frame.slice((part * rows) as i64, rows);
        write(slice, &dir.join(format!("{part}.{format}")));
    }
    Tables::new().with("flights", dir.join(format!("*.{format}")))
}

/// Writes a frame in the format that the path's ending names.
pub(crate) fn write(mut frame: DataFrame, path: &Path) {
    let file = File::create(path).unwrap();
    match path.extension().unwrap().to_str().unwrap() {
        "parquet" => drop(ParquetWriter::new(file).finish(&mut frame).unwrap()),
        "csv" => CsvWriter::new(file).finish(&mut frame).unwrap(),
        "ndjson" => JsonWriter::new(file).with_json_format(JsonFormat::JsonLines).finish(&mut frame).unwrap(),
        "arrow" => IpcWriter::new(file).finish(&mut frame).unwrap(),
        other => panic!("no writer for {other}"),
    }
}

/// A path as Polars' scans want it.
pub(crate) fn path(path: &Path) -> PlRefPath {
    PlRefPath::try_from_path(path).unwrap()
}

/// A query over `{flights}` that keeps three single-slot nodes busy for seconds, in many tasks.
pub(crate) fn slow_query() -> String {
    let aggregates: Vec<String> = (0..SLOW_AGGREGATES)
        .map(|k| format!("SUM(POWER(distance, {:.3})) AS s{k}", 0.5 + k as f64 / 1000.0))
        .collect();
    format!("SELECT carrier, {} FROM {{flights}} GROUP BY carrier", aggregates.join(", "))
}

/// Submits [`slow_query`] and waits until a part of it is done, so that there is something to lose.
pub(crate) async fn half_done(mesh: &Mesh, tables: &Tables) -> Job {
    let job = mesh.sql(tables.for_floe(&slow_query())).await.unwrap();
    let status = wait_until("a task of the slow query is done", DEADLINE, async || {
        let status = job.status().await.unwrap();
        let done: u32 = status.stages.iter().map(|stage| stage.done).sum();
        (done > 0 || status.phase.is_terminal()).then_some(status)
    })
    .await
    .unwrap();
    assert!(!status.phase.is_terminal(), "the slow query is not slow enough: {status:?}");
    job
}

/// Waits until a job has ended, and yields how.
pub(crate) async fn ended(job: &Job) -> JobStatus {
    tokio::time::timeout(DEADLINE, job.wait()).await.expect("a job ends in time").unwrap()
}

/// Where the committed table lies.
pub(crate) fn airlines() -> PathBuf {
    nycflights("airlines")
}
