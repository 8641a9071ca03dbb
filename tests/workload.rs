//! What the tests ask, and of which files.

use std::path::{Path, PathBuf};

use floe_client::{Job, Mesh};
use floe_protocol::JobStatus;
use floe_scenarios::data::nycflights;
use floe_scenarios::harness::DEADLINE;
use floe_scenarios::reference::Tables;
use floe_scenarios::workload;
pub(crate) use floe_scenarios::workload::slow_query;
use polars::prelude::*;

/// The formats that can be scanned, by their endings.
pub(crate) const FORMATS: [&str; 4] = ["parquet", "csv", "ndjson", "arrow"];

/// Into how many files the flights are cut, so that there is something to distribute.
const PARTS: usize = 6;

/// Writes the flights into `dir` as `PARTS` files of this format; `flights` names the glob.
pub(crate) fn flights(dir: &Path, format: &str) -> Tables {
    workload::flights(dir, format, PARTS).unwrap()
}

/// A path as Polars' scans want it.
pub(crate) fn path(path: &Path) -> PlRefPath {
    PlRefPath::try_from_path(path).unwrap()
}

/// Submits [`slow_query`] and waits until a part of it is done, so that there is something to lose.
pub(crate) async fn half_done(mesh: &Mesh, tables: &Tables) -> Job {
    workload::partly_done(mesh, tables, &slow_query(), 1).await.unwrap()
}

/// Waits until a job has ended, and yields how.
pub(crate) async fn ended(job: &Job) -> JobStatus {
    tokio::time::timeout(DEADLINE, job.wait()).await.expect("a job ends in time").unwrap()
}

/// Where the committed table lies.
pub(crate) fn airlines() -> PathBuf {
    nycflights("airlines")
}
