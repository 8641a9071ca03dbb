//! Plans from a directory, split among as many tasks as they can be, return what they return as one task.
//!
//! `scenarios/judge/corpus.py` makes such a directory of py-polars' own unit tests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use floe_protocol::{Failure, Query};
use floe_query::Shape;
use polars::prelude::*;

use crate::mesh::{ALONE, collect};

/// A task for each file, and as many buckets as there are slots.
const SPLIT: Shape = Shape { slots: 3, task_bytes: 1 };

#[test]
#[ignore = "wants a directory of plans: FLOE_TEST_PLANS names it"]
fn plans_that_are_split_return_what_they_return_whole() {
    let Some(directory) = std::env::var_os("FLOE_TEST_PLANS") else {
        return;
    };
    let mut wrong = Vec::new();
    let (mut plans, mut compared) = (0, 0);
    let mut paths: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "plan"));
    paths.sort();
    for path in &paths {
        let query = Query::Plan {
            dsl: std::fs::read(path).unwrap().into(),
            directory: "/".to_owned(),
            schema: Default::default(),
        };
        plans += 1;
        let Some(whole) =
            outcome(&query, &ALONE).ok().filter(|whole| outcome(&query, &ALONE).as_ref() == Ok(whole))
        else {
            continue;
        };
        compared += 1;
        match outcome(&query, &SPLIT) {
            Ok(split) if split == whole => {}
            found => wrong.push(difference(path, found, &whole)),
        }
    }
    assert!(wrong.is_empty(), "{} of {compared} ({plans} plans)\n{}", wrong.len(), wrong.join("\n"));
}

/// The types and the rows of a result, whatever their order, as text.
fn outcome(query: &Query, shape: &Shape) -> Result<Vec<String>, String> {
    let collected = catch_unwind(AssertUnwindSafe(|| collect(query, shape)));
    let collected = collected.unwrap_or_else(|_| Err(Failure::internal("a panic")));
    let df = collected.map_err(|failure| failure.to_string())?;
    let mut rows: Vec<String> = (0..df.height()).map(|row| row_text(&df, row)).collect();
    rows.sort_unstable();
    rows.push(format!("{:?}", df.schema()));
    Ok(rows)
}

fn row_text(df: &DataFrame, row: usize) -> String {
    let value = |column: &Column| match column.get(row).unwrap() {
        AnyValue::Float64(value) => format!("{value:.8e}"),
        AnyValue::Float32(value) => format!("{value:.5e}"),
        value => value.to_string(),
    };
    df.columns().iter().map(value).collect::<Vec<_>>().join(", ")
}

fn difference(path: &Path, found: Result<Vec<String>, String>, whole: &[String]) -> String {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    match found {
        Err(failure) => format!("{name}: {failure}"),
        Ok(split) => {
            let only = |these: &[String], others: &[String]| {
                these.iter().find(|row| !others.contains(row)).cloned().unwrap_or_default()
            };
            let (split_only, whole_only) = (only(&split, whole), only(whole, &split));
            format!("{name}: {} rows, not {}: {split_only} | {whole_only}", split.len(), whole.len())
        }
    }
}
