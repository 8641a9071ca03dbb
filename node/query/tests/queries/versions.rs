//! Plans of every version of py-polars that is supported, of every kind that it writes (`tests/plans/make.py`): each
//! gives what that version itself made of it, or is refused with a sentence.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::path::PathBuf;

use floe_protocol::{Failure, Query};
use polars::prelude::*;

use crate::mesh::{ROOMY, collect};

/// Of each version the plans differ in form or in what they are made of; those of others are as one of these.
const VERSIONS: [&str; 8] = ["1.40.0", "1.40.1", "1.41.2", "1.42.1", "1.43.2", "1.44.2", "2.0.0", "2.1.0"];

/// What Polars gives in no promised order.
const UNORDERED: [&str; 11] = [
    "pl.union(",
    ".mode()",
    "top_k(",
    "bottom_k",
    ".join(",
    "join_where",
    "unpivot(",
    "UNION ALL",
    ".pivot(",
    ".unique()",
    "SELECT",
];

/// What depends on the process that computes it, or on which of several equal rows comes first.
const UNDETERMINED: [&str; 6] = [
    "get_categories()",
    "c('c').to_physical()",
    "cat.physical()",
    "cat.to(pl.Cat",
    "mode().first()",
    "LIMIT 2",
];

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/plans")
}

struct Plan {
    text: String,
    bytes: Vec<u8>,
    result: Option<DataFrame>,
}

fn plans(version: &str) -> Vec<Plan> {
    let file = std::fs::File::open(directory().join(format!("{version}.parquet"))).unwrap();
    let rows = ParquetReader::new(file).finish().unwrap();
    let column = |name: &str| rows.column(name).unwrap();
    let (texts, bytes, results) = (column("text"), column("plan"), column("result"));
    let texts = texts.str().unwrap();
    let (bytes, results) = (bytes.binary().unwrap(), results.binary().unwrap());
    let plan = |row| Plan {
        text: texts.get(row).unwrap().to_owned(),
        bytes: bytes.get(row).unwrap().to_vec(),
        // A type that came later is none that can be read here.
        result: results.get(row).and_then(|ipc| IpcReader::new(Cursor::new(ipc)).finish().ok()),
    };
    (0..rows.height()).map(plan).collect()
}

/// How a plan ends here.
fn outcome(plan: &Plan) -> String {
    let mut schema = Vec::new();
    if let Some(result) = &plan.result {
        IpcStreamWriter::new(&mut schema).finish(&mut result.clear()).unwrap();
    }
    let query = Query::Plan {
        dsl: plan.bytes.clone().into(),
        directory: directory().join("files").to_string_lossy().into_owned(),
        schema: schema.into(),
    };
    let found = match collect(&query, &ROOMY) {
        Ok(found) => found,
        // The driver's Polars has none either: it failed, or it was not run since it writes.
        Err(_) if plan.result.is_none() => return String::new(),
        Err(
            Failure::Query { message }
            | Failure::Refused { message }
            | Failure::Version { message }
            | Failure::Foreign { message },
        ) => {
            return message.lines().next().unwrap_or_default().to_owned();
        }
        Err(failure) => return format!("{failure:?}"),
    };
    let Some(expected) = &plan.result else {
        return "a result, where the driver's Polars has none".to_owned();
    };
    let ordered = !UNORDERED.iter().any(|word| plan.text.contains(word));
    different(&found, expected, ordered).unwrap_or_default()
}

/// What is different between two frames.
fn different(found: &DataFrame, expected: &DataFrame, ordered: bool) -> Option<String> {
    if found.schema() != expected.schema() {
        return Some(format!("other types: {:?} instead of {:?}", found.schema(), expected.schema()));
    }
    if found.height() != expected.height() {
        return Some(format!("{} rows instead of {}", found.height(), expected.height()));
    }
    let rows = |df: &DataFrame| {
        let row = |row: usize| -> Vec<String> {
            let value = |column: &Column| match column.as_materialized_series().get(row).unwrap() {
                // Sums of floats differ in their last bits.
                AnyValue::Float64(value) => format!("{value:.9e}"),
                AnyValue::Float32(value) => format!("{value:.5e}"),
                // Codes are those of a process.
                value @ (AnyValue::Categorical(..) | AnyValue::Enum(..)) => value.to_string(),
                value => format!("{value:?}"),
            };
            df.columns().iter().map(value).collect()
        };
        let mut rows: Vec<Vec<String>> = (0..df.height()).map(row).collect();
        if !ordered {
            rows.sort();
        }
        rows
    };
    let (found, expected) = (rows(found), rows(expected));
    let differing = found.iter().zip(&expected).find(|(found, expected)| found != expected);
    differing.map(|(found, expected)| format!("other values: {found:?} instead of {expected:?}"))
}

/// Those that differ are listed with their sentence, each once, with the versions whose plans they are: the list may
/// only shrink.
#[test]
fn plans_of_all_versions_give_what_their_version_gives() {
    let mut known: BTreeMap<(bool, String, Vec<u8>), String> = BTreeMap::new();
    let mut ended: BTreeMap<(String, String), BTreeSet<&str>> = BTreeMap::new();
    let (mut read, mut all) = (0, 0);
    for version in VERSIONS {
        for plan in plans(version) {
            if UNDETERMINED.iter().any(|word| plan.text.contains(word)) {
                continue;
            }
            // Most plans are the same in several versions.
            let same = (
                version < "2",
                plan.text.clone(),
                [&plan.bytes[79..], ipc(&plan.result).as_slice()].concat(),
            );
            let outcome = known.entry(same).or_insert_with(|| outcome(&plan)).clone();
            (read, all) = (read + usize::from(outcome.is_empty()), all + 1);
            if !outcome.is_empty() {
                ended.entry((plan.text, outcome)).or_default().insert(version);
            }
        }
    }
    let mut list = format!("{read} of {all} plans give what their version gives\n");
    for ((text, outcome), versions) in ended {
        let versions = Vec::from_iter(versions).join(" ");
        list += &format!("\n{text}\n    [{versions}] {outcome}\n");
    }
    insta::assert_snapshot!("versions", list);
}

fn ipc(df: &Option<DataFrame>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(df) = df {
        IpcWriter::new(&mut bytes).finish(&mut df.clone()).unwrap();
    }
    bytes
}
