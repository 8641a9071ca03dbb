//! What the right answer is: the same query by Polars in this process.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use polars::prelude::*;
use polars::sql::SQLContext;

/// The relative difference up to which two floating-point numbers count as equal: sums over partitions are
/// added in another order than over the whole.
const FLOAT_TOLERANCE: f64 = 1e-9;

/// Files and patterns that queries speak of by name, as `{name}`.
#[derive(Clone, Debug, Default)]
pub struct Tables(Vec<(String, PathBuf)>);

impl Tables {
    /// No tables yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names a file or a glob.
    pub fn with(mut self, name: &str, path: impl Into<PathBuf>) -> Self {
        self.0.push((name.to_owned(), path.into()));
        self
    }

    /// The statement as one gives it to Floe: each `{name}` becomes its quoted path.
    pub fn for_floe(&self, statement: &str) -> String {
        self.0.iter().fold(statement.to_owned(), |statement, (name, path)| {
            statement.replace(&format!("{{{name}}}"), &format!("'{}'", path.display()))
        })
    }

    /// What Polars answers in this process.
    pub fn run(&self, statement: &str) -> Result<DataFrame> {
        Ok(self.lazy(statement)?.collect()?)
    }

    /// The query in this process, not yet run.
    pub fn lazy(&self, statement: &str) -> Result<LazyFrame> {
        let mut context = SQLContext::new();
        let mut statement = statement.to_owned();
        for (name, path) in &self.0 {
            context.register(name, scan(path)?);
            statement = statement.replace(&format!("{{{name}}}"), name);
        }
        context.execute(&statement).map_err(|error| anyhow::Error::new(error).context(statement))
    }
}

/// Scans a file or a glob by its ending, with the defaults of Polars SQL.
pub fn scan(path: &Path) -> Result<LazyFrame> {
    let name = PlRefPath::try_from_path(path)?;
    let frame = match path.extension().and_then(|ending| ending.to_str()) {
        Some("parquet") => LazyFrame::scan_parquet(name, ScanArgsParquet::default())?,
        Some("csv") => {
            LazyCsvReader::new(name).with_try_parse_dates(true).with_missing_is_null(true).finish()?
        }
        Some("ndjson" | "jsonl") => LazyJsonLineReader::new(name).finish()?,
        Some("arrow" | "ipc") => {
            LazyFrame::scan_ipc(name, IpcScanOptions::default(), UnifiedScanArgs::default())?
        }
        _ => bail!("{} has no ending that is known", path.display()),
    };
    Ok(frame)
}

/// Checks that two frames have the same columns and rows; in the same order too if `ordered`.
pub fn same_rows(found: &DataFrame, wanted: &DataFrame, ordered: bool) -> Result<()> {
    let difference = |found: &DataFrame, wanted: &DataFrame| format!("found {found}\nwanted {wanted}");
    ensure!(found.schema() == wanted.schema(), "found {:?}\nwanted {:?}", found.schema(), wanted.schema());
    ensure!(
        found.height() == wanted.height(),
        "{} rows instead of {}: {}",
        found.height(),
        wanted.height(),
        difference(found, wanted)
    );
    let (found, wanted) =
        if ordered { (found.clone(), wanted.clone()) } else { (sorted(found)?, sorted(wanted)?) };
    for (left, right) in found.columns().iter().zip(wanted.columns()) {
        if let Some(row) = first_difference(left, right)? {
            bail!(
                "column {} differs in row {row}: {} instead of {}: {}",
                left.name(),
                left.get(row)?,
                right.get(row)?,
                difference(&found, &wanted)
            );
        }
    }
    Ok(())
}

/// Sorted by all columns, the floating-point ones last: their last digits may differ between the two frames
/// and must not decide the order.
fn sorted(frame: &DataFrame) -> Result<DataFrame> {
    let (floats, others): (Vec<&Column>, Vec<&Column>) =
        frame.columns().iter().partition(|column| column.dtype().is_float());
    let by: Vec<PlSmallStr> = others.into_iter().chain(floats).map(|column| column.name().clone()).collect();
    Ok(frame.sort(by, SortMultipleOptions::default().with_nulls_last(true))?)
}

fn first_difference(left: &Column, right: &Column) -> Result<Option<usize>> {
    if !left.dtype().is_float() {
        if left.equals_missing(right) {
            return Ok(None);
        }
        for row in 0..left.len() {
            if left.get(row)? != right.get(row)? {
                return Ok(Some(row));
            }
        }
        return Ok(None);
    }
    let (left, right) = (left.cast(&DataType::Float64)?, right.cast(&DataType::Float64)?);
    let close = |a: f64, b: f64| {
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= FLOAT_TOLERANCE * a.abs().max(b.abs())
    };
    Ok(left.f64()?.iter().zip(right.f64()?.iter()).position(|pair| match pair {
        (Some(a), Some(b)) => !close(a, b),
        (a, b) => a.is_some() != b.is_some(),
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rows_are_compared_with_or_without_their_order() {
        let wanted = df!("k" => ["a", "b", "b"], "v" => [Some(0.3), None, Some(2.0)]).unwrap();
        let shuffled = df!("k" => ["b", "a", "b"], "v" => [Some(2.0), Some(0.1 + 0.2), None]).unwrap();
        same_rows(&shuffled, &wanted, false).unwrap();
        assert!(same_rows(&shuffled, &wanted, true).is_err());
        let others = [
            df!("k" => ["a", "b", "b"], "v" => [Some(0.3), None, Some(2.1)]).unwrap(),
            df!("k" => ["a", "b", "b"], "v" => [Some(0.3), Some(0.0), Some(2.0)]).unwrap(),
            df!("k" => ["a", "b", "c"], "v" => [Some(0.3), None, Some(2.0)]).unwrap(),
            df!("k" => ["a", "b"], "v" => [Some(0.3), None]).unwrap(),
            df!("k" => ["a", "b", "b"], "w" => [Some(0.3), None, Some(2.0)]).unwrap(),
            df!("k" => ["a", "b", "b"], "v" => [Some(0.3f32), None, Some(2.0)]).unwrap(),
        ];
        for other in others {
            assert!(same_rows(&other, &wanted, false).is_err(), "{other}");
        }
    }

    #[test]
    fn a_statement_is_asked_of_both_by_the_same_template() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.csv");
        std::fs::write(&path, "x\n1\n2\n").unwrap();
        let tables = Tables::new().with("t", &path);
        assert_eq!(tables.for_floe("SELECT x FROM {t}"), format!("SELECT x FROM '{}'", path.display()));
        let frame = tables.run("SELECT SUM(x) AS s FROM {t}").unwrap();
        same_rows(&frame, &df!("s" => [3i64]).unwrap(), true).unwrap();
    }
}
