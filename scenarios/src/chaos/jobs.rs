//! What the drivers ask, and the right answers.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use polars::prelude::DataFrame;

use crate::data::nycflights;
use crate::workload::flights;

/// Into how many files the flights are cut, so that there is something to distribute.
const PARTS: usize = 6;

/// Aggregates of the job that is cancelled: enough that there is time to.
const SLOW_AGGREGATES: usize = 120;

/// One kind of job.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// What is submitted.
    pub(super) statement: String,
    /// What should come of it.
    pub(super) wanted: Wanted,
    /// Whether its driver cancels it while it runs. It may still end by itself before.
    pub(super) cancelled: bool,
}

/// What should come of a job.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// These rows, in this order if `ordered`.
    Rows { rows: DataFrame, ordered: bool },
    /// The query's own error.
    Error,
}

/// Writes the data into `dir` and has every query answered by Polars in this process.
pub(super) fn prepare(dir: &Path) -> Result<Vec<Kind>> {
    let tables = flights(dir, "parquet", PARTS)?.with("airlines", nycflights("airlines"));
    let sums = (0..SLOW_AGGREGATES).fold(String::new(), |mut text, k| {
        // Writing to a string does not fail.
        let _ = write!(text, ", SUM(POWER(distance, {:.3})) AS s{k}", 0.5 + k as f64 / 1000.0);
        text
    });
    let slow = format!("SELECT carrier{sums} FROM {{flights}} GROUP BY carrier");
    let queries = [
        (
            "group_by",
            "SELECT carrier, origin, COUNT(*) AS flights, SUM(distance) AS miles, AVG(arr_delay) AS delay \
             FROM {flights} GROUP BY carrier, origin",
            false,
        ),
        (
            "sort",
            "SELECT carrier, flight, origin, dest, month, day, sched_dep_time FROM {flights} \
             WHERE dep_delay > 120 ORDER BY month, day, sched_dep_time, carrier, flight, origin, dest",
            true,
        ),
        ("filter", "SELECT flight, origin, dest, dep_delay FROM {flights} WHERE dep_delay > 400", false),
        (
            "join",
            "SELECT a.name, COUNT(*) AS flights FROM {flights} AS f JOIN {airlines} AS a \
             ON f.carrier = a.carrier GROUP BY a.name",
            false,
        ),
    ];
    let mut kinds = Vec::new();
    for (name, statement, ordered) in queries {
        kinds.push(Kind {
            name,
            statement: tables.for_floe(statement),
            wanted: Wanted::Rows { rows: tables.run(statement)?, ordered },
            cancelled: false,
        });
    }
    kinds.push(Kind {
        name: "cancel",
        statement: tables.for_floe(&slow),
        wanted: Wanted::Rows { rows: tables.run(&slow)?, ordered: false },
        cancelled: true,
    });
    kinds.push(Kind {
        name: "fail",
        statement: tables.for_floe("SELECT CAST(tailnum AS INTEGER) AS i FROM {flights}"),
        wanted: Wanted::Error,
        cancelled: false,
    });
    Ok(kinds)
}
