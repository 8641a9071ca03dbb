//! The same queries by Polars in this process, and the comparison.

use std::path::{Path, PathBuf};

use anyhow::Context;
use polars::prelude::{DataFrame, DataType, LazyFrame, PlRefPath};
use polars::sql::SQLContext;

/// How far two floats may be apart, relative to the larger: sums of floats depend on the order of their
/// terms, and partial sums have another order.
const TOLERANCE: f64 = 1e-9;

/// Runs a statement over Parquet files with Polars' own SQL, without Floe.
pub(super) async fn run(sql: &str, tables: &[(&str, &PathBuf)]) -> anyhow::Result<DataFrame> {
    let sql = sql.to_owned();
    let tables: Vec<_> = tables.iter().map(|(name, path)| ((*name).to_owned(), (*path).clone())).collect();
    let work = move || {
        let mut context = SQLContext::new();
        for (name, path) in tables {
            context.register(&name, scan(&path)?);
        }
        anyhow::Ok(context.execute(&sql)?.collect()?)
    };
    tokio::task::spawn_blocking(work).await.context("Polars panicked")?
}

fn scan(path: &Path) -> anyhow::Result<LazyFrame> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(LazyFrame::scan_parquet(PlRefPath::new(text), Default::default())?)
}

/// Where two frames differ, their rows' order included; nothing if they are equal.
pub(super) fn difference(one: &DataFrame, other: &DataFrame) -> anyhow::Result<Option<String>> {
    if one.schema() != other.schema() {
        return Ok(Some(format!("columns {:?} against {:?}", one.schema(), other.schema())));
    }
    if one.height() != other.height() {
        return Ok(Some(format!("{} rows against {}", one.height(), other.height())));
    }
    for (left, right) in one.columns().iter().zip(other.columns()) {
        let equal = if left.dtype().is_float() {
            let (left, right) = (left.cast(&DataType::Float64)?, right.cast(&DataType::Float64)?);
            let mut pairs = left.f64()?.iter().zip(right.f64()?.iter());
            pairs.all(|pair| match pair {
                (Some(a), Some(b)) => {
                    a == b || (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()) || (a.is_nan() && b.is_nan())
                }
                (a, b) => a.is_none() && b.is_none(),
            })
        } else {
            left.equals_missing(right)
        };
        if !equal {
            return Ok(Some(format!("column {}", left.name())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use polars::prelude::df;

    use super::*;

    #[test]
    fn a_difference_is_found_and_named() {
        let frame = df!("n" => [Some(1), None], "x" => [0.1, 0.2]).unwrap();
        let close = df!("n" => [Some(1), None], "x" => [0.1 + 1e-15, 0.2]).unwrap();
        assert_eq!(difference(&frame, &close).unwrap(), None);
        for other in [
            df!("n" => [Some(1), Some(2)], "x" => [0.1, 0.2]).unwrap(),
            df!("n" => [Some(1), None], "x" => [0.1, 0.3]).unwrap(),
            df!("n" => [Some(1)], "x" => [0.1]).unwrap(),
            df!("n" => [Some(1), None], "y" => [0.1, 0.2]).unwrap(),
        ] {
            assert!(difference(&frame, &other).unwrap().is_some(), "{other}");
        }
    }
}
