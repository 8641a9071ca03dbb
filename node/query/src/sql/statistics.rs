//! What the planner knows of tables before it reads them: row counts, and bounds of their columns, from the footers
//! of Parquet files and from frames in memory. Joins are ordered by it; nothing else depends on it but whether a
//! column may hold nulls.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use polars::prelude::*;
use polars_plan::dsl::ScanSources;
use polars_plan::plans::IR;

use crate::files;

/// Rows of a table of which nothing is known: more than most small ones, fewer than most large ones.
pub(super) const UNKNOWN_ROWS: f64 = 100_000.0;
/// Of more files than this, the first ones stand for all.
const MOST_FOOTERS: usize = 64;

/// What is known of a table.
#[derive(Clone, Debug)]
pub(super) struct Statistics {
    pub(super) rows: f64,
    /// At most so many different values: whole numbers between bounds that are known.
    pub(super) distinct: BTreeMap<String, f64>,
    /// Columns that hold no null for certain.
    pub(super) without_nulls: BTreeSet<String>,
}

impl Statistics {
    /// Of the rows that a plan yields. A plan that cannot be read is one of which nothing is known: whoever runs it
    /// will say what is wrong with it.
    pub(super) fn of(frame: &LazyFrame) -> Self {
        let unknown = Self { rows: UNKNOWN_ROWS, distinct: BTreeMap::new(), without_nulls: BTreeSet::new() };
        let Ok(plan) = frame.clone().to_alp() else {
            return unknown;
        };
        match plan.lp_arena.get(plan.lp_top) {
            IR::DataFrameScan { df, .. } => Self::of_frame(df),
            IR::Scan { sources: ScanSources::Paths(paths), scan_type, predicate: None, .. }
                if matches!(**scan_type, polars_plan::dsl::FileScanIR::Parquet { .. }) =>
            {
                let paths: Vec<&Path> = paths.iter().map(|path| Path::new(path.as_str())).collect();
                Self::of_parquet(&paths).unwrap_or(unknown)
            }
            _ => unknown,
        }
    }

    fn of_frame(df: &DataFrame) -> Self {
        let without_nulls = df.columns().iter().filter(|column| column.null_count() == 0);
        Self {
            rows: df.height() as f64,
            distinct: BTreeMap::new(),
            without_nulls: without_nulls.map(|column| column.name().to_string()).collect(),
        }
    }

    fn of_parquet(paths: &[&Path]) -> Option<Self> {
        let mut rows = 0u64;
        let mut bounds: BTreeMap<String, Option<(i64, i64)>> = BTreeMap::new();
        let mut nullable: BTreeSet<String> = BTreeSet::new();
        for path in paths.iter().take(MOST_FOOTERS) {
            let metadata = files::parquet_metadata(path).ok()?;
            for group in &metadata.row_groups {
                rows += group.num_rows() as u64;
                for column in group.parquet_columns() {
                    let [name] = column.descriptor().path_in_schema.as_slice() else {
                        continue;
                    };
                    let name = name.to_string();
                    let statistics = column.statistics(&metadata.footer_buf).and_then(Result::ok);
                    if statistics.as_ref().and_then(|statistics| statistics.null_count()) != Some(0) {
                        nullable.insert(name.clone());
                    }
                    let own = statistics.as_ref().and_then(|statistics| {
                        let wide =
                            statistics.as_int64().and_then(|own| Some((own.min_value?, own.max_value?)));
                        let narrow = || {
                            let own = statistics.as_int32()?;
                            Some((i64::from(own.min_value?), i64::from(own.max_value?)))
                        };
                        wide.or_else(narrow)
                    });
                    let known = bounds.entry(name).or_insert(own);
                    *known = match (*known, own) {
                        (Some((low, high)), Some((min, max))) => Some((low.min(min), high.max(max))),
                        _ => None,
                    };
                }
            }
        }
        let read = paths.len().clamp(1, MOST_FOOTERS);
        let rows = rows as f64 * paths.len() as f64 / read as f64;
        let complete = paths.len() <= MOST_FOOTERS;
        let distinct = bounds.iter().filter_map(|(name, bounds)| {
            let (low, high) = (*bounds)?;
            Some((name.clone(), (high as f64 - low as f64 + 1.0).min(rows)))
        });
        Some(Self {
            rows,
            distinct: distinct.collect(),
            without_nulls: match complete {
                true => bounds.keys().filter(|name| !nullable.contains(*name)).cloned().collect(),
                false => BTreeSet::new(),
            },
        })
    }
}
