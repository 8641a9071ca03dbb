//! The 22 queries of TPC-H in the specification's words, with its validation parameters.
//!
//! At scale factor 0.01 the answers are kept beside this file (`tpch/`): DuckDB 2.0 computed them over the same
//! rows, made by `tpchgen-cli`. At scale factor 1 they are those that the TPC publishes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use floe_protocol::Query;
use polars::prelude::*;
use tpchgen::dates::TPCHDate;
use tpchgen::decimal::TPCHDecimal;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};

use crate::mesh::{ALONE, ROOMY, collect};

/// Rows of one row group.
const ROW_GROUP_ROWS: usize = 250_000;

const TABLES: [&str; 8] =
    ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"];

/// The validation parameters of each query, and how many rows it is to return, if not all.
const PARAMETERS: [(&[&str], Option<u32>); 22] = [
    (&["90"], None),
    (&["15", "BRASS", "EUROPE"], Some(100)),
    (&["BUILDING", "1995-03-15"], Some(10)),
    (&["1993-07-01"], None),
    (&["ASIA", "1994-01-01"], None),
    (&["1994-01-01", "0.06", "24"], None),
    (&["FRANCE", "GERMANY"], None),
    (&["BRAZIL", "AMERICA", "ECONOMY ANODIZED STEEL"], None),
    (&["green"], None),
    (&["1993-10-01"], Some(20)),
    (&["GERMANY", "0.0001"], None),
    (&["MAIL", "SHIP", "1994-01-01"], None),
    (&["special", "requests"], None),
    (&["1995-09-01"], None),
    (&["1996-01-01"], None),
    (&["Brand#45", "MEDIUM POLISHED", "49", "14", "23", "45", "19", "3", "36", "9"], None),
    (&["Brand#23", "MED BOX"], None),
    (&["300"], Some(100)),
    (&["Brand#12", "Brand#23", "Brand#34", "1", "10", "20"], None),
    (&["forest", "1994-01-01", "CANADA"], None),
    (&["SAUDI ARABIA"], Some(100)),
    (&["13", "31", "23", "29", "30", "18", "17"], None),
];

/// A query's text.
pub(crate) fn text(number: usize) -> String {
    let (parameters, limit) = PARAMETERS[number - 1];
    let mut text = tpchgen::q_and_a::queries::query(number as i32).unwrap().to_owned();
    for (index, parameter) in parameters.iter().enumerate().rev() {
        text = text.replace(&format!(":{}", index + 1), parameter);
    }
    let text = text.replace(":s", "0");
    match limit {
        Some(rows) => format!("{}\nlimit {rows}", text.trim_end().trim_end_matches(';')),
        None => text,
    }
}

fn decimals<'r, T>(name: &str, rows: &'r [T], value: impl Fn(&'r T) -> TPCHDecimal) -> Column {
    let cents = rows.iter().map(|row| i128::from(value(row).into_inner())).collect();
    decimal(name, cents)
}

fn decimal(name: &str, hundredths: Vec<i128>) -> Column {
    Int128Chunked::from_vec(name.into(), hundredths).into_decimal_unchecked(15, 2).into_series().into_column()
}

fn dates<'r, T>(name: &str, rows: &'r [T], value: impl Fn(&'r T) -> TPCHDate) -> Column {
    let days: Vec<i32> = rows.iter().map(|row| value(row).to_unix_epoch()).collect();
    Series::new(name.into(), days).cast(&DataType::Date).unwrap().into_column()
}

fn numbers<'r, T>(name: &str, rows: &'r [T], value: impl Fn(&'r T) -> i64) -> Column {
    Series::new(name.into(), rows.iter().map(value).collect::<Vec<i64>>()).into_column()
}

fn small<'r, T>(name: &str, rows: &'r [T], value: impl Fn(&'r T) -> i32) -> Column {
    Series::new(name.into(), rows.iter().map(value).collect::<Vec<i32>>()).into_column()
}

fn texts<'r, T, S: ToString>(name: &str, rows: &'r [T], value: impl Fn(&'r T) -> S) -> Column {
    let values: Vec<String> = rows.iter().map(|row| value(row).to_string()).collect();
    Series::new(name.into(), values).into_column()
}

fn write<T>(
    directory: &Path,
    table: &str,
    rows: impl Iterator<Item = T>,
    columns: impl Fn(&[T]) -> Vec<Column>,
) {
    let mut rows = rows;
    let mut next = || {
        let rows: Vec<T> = rows.by_ref().take(ROW_GROUP_ROWS).collect();
        DataFrame::new(rows.len(), columns(&rows)).unwrap()
    };
    let mut frame = next();
    let file = File::create(directory.join(format!("{table}.parquet"))).unwrap();
    let writer = ParquetWriter::new(file).with_row_group_size(Some(ROW_GROUP_ROWS));
    let mut writer = writer.batched(frame.schema()).unwrap();
    while frame.height() > 0 {
        writer.write_batch(&frame).unwrap();
        frame = next();
    }
    writer.finish().unwrap();
}

/// The eight tables as Parquet files, with the types of the specification.
pub(crate) fn tables(directory: &Path, scale: f64) -> BTreeMap<String, String> {
    write(directory, "region", RegionGenerator::default().iter(), |rows| {
        vec![
            numbers("r_regionkey", rows, |row| row.r_regionkey),
            texts("r_name", rows, |row| row.r_name),
            texts("r_comment", rows, |row| row.r_comment),
        ]
    });
    write(directory, "nation", NationGenerator::default().iter(), |rows| {
        vec![
            numbers("n_nationkey", rows, |row| row.n_nationkey),
            texts("n_name", rows, |row| row.n_name),
            numbers("n_regionkey", rows, |row| row.n_regionkey),
            texts("n_comment", rows, |row| row.n_comment),
        ]
    });
    write(directory, "part", PartGenerator::new(scale, 1, 1).iter(), |rows| {
        vec![
            numbers("p_partkey", rows, |row| row.p_partkey),
            texts("p_name", rows, |row| row.p_name.to_string()),
            texts("p_mfgr", rows, |row| row.p_mfgr.to_string()),
            texts("p_brand", rows, |row| row.p_brand.to_string()),
            texts("p_type", rows, |row| row.p_type),
            small("p_size", rows, |row| row.p_size),
            texts("p_container", rows, |row| row.p_container),
            decimals("p_retailprice", rows, |row| row.p_retailprice),
            texts("p_comment", rows, |row| row.p_comment),
        ]
    });
    write(directory, "supplier", SupplierGenerator::new(scale, 1, 1).iter(), |rows| {
        vec![
            numbers("s_suppkey", rows, |row| row.s_suppkey),
            texts("s_name", rows, |row| row.s_name.to_string()),
            texts("s_address", rows, |row| row.s_address.to_string()),
            numbers("s_nationkey", rows, |row| row.s_nationkey),
            texts("s_phone", rows, |row| row.s_phone.to_string()),
            decimals("s_acctbal", rows, |row| row.s_acctbal),
            texts("s_comment", rows, |row| row.s_comment.clone()),
        ]
    });
    write(directory, "partsupp", PartSuppGenerator::new(scale, 1, 1).iter(), |rows| {
        vec![
            numbers("ps_partkey", rows, |row| row.ps_partkey),
            numbers("ps_suppkey", rows, |row| row.ps_suppkey),
            small("ps_availqty", rows, |row| row.ps_availqty),
            decimals("ps_supplycost", rows, |row| row.ps_supplycost),
            texts("ps_comment", rows, |row| row.ps_comment),
        ]
    });
    write(directory, "customer", CustomerGenerator::new(scale, 1, 1).iter(), |rows| {
        vec![
            numbers("c_custkey", rows, |row| row.c_custkey),
            texts("c_name", rows, |row| row.c_name.to_string()),
            texts("c_address", rows, |row| row.c_address.to_string()),
            numbers("c_nationkey", rows, |row| row.c_nationkey),
            texts("c_phone", rows, |row| row.c_phone.to_string()),
            decimals("c_acctbal", rows, |row| row.c_acctbal),
            texts("c_mktsegment", rows, |row| row.c_mktsegment),
            texts("c_comment", rows, |row| row.c_comment),
        ]
    });
    write(directory, "orders", OrderGenerator::new(scale, 1, 1).iter(), |rows| {
        vec![
            numbers("o_orderkey", rows, |row| row.o_orderkey),
            numbers("o_custkey", rows, |row| row.o_custkey),
            texts("o_orderstatus", rows, |row| row.o_orderstatus.to_string()),
            decimals("o_totalprice", rows, |row| row.o_totalprice),
            dates("o_orderdate", rows, |row| row.o_orderdate),
            texts("o_orderpriority", rows, |row| row.o_orderpriority),
            texts("o_clerk", rows, |row| row.o_clerk.to_string()),
            small("o_shippriority", rows, |row| row.o_shippriority),
            texts("o_comment", rows, |row| row.o_comment),
        ]
    });
    write(directory, "lineitem", LineItemGenerator::new(scale, 1, 1).iter(), |rows| {
        vec![
            numbers("l_orderkey", rows, |row| row.l_orderkey),
            numbers("l_partkey", rows, |row| row.l_partkey),
            numbers("l_suppkey", rows, |row| row.l_suppkey),
            small("l_linenumber", rows, |row| row.l_linenumber),
            decimal("l_quantity", rows.iter().map(|row| i128::from(row.l_quantity) * 100).collect()),
            decimals("l_extendedprice", rows, |row| row.l_extendedprice),
            decimals("l_discount", rows, |row| row.l_discount),
            decimals("l_tax", rows, |row| row.l_tax),
            texts("l_returnflag", rows, |row| row.l_returnflag),
            texts("l_linestatus", rows, |row| row.l_linestatus),
            dates("l_shipdate", rows, |row| row.l_shipdate),
            dates("l_commitdate", rows, |row| row.l_commitdate),
            dates("l_receiptdate", rows, |row| row.l_receiptdate),
            texts("l_shipinstruct", rows, |row| row.l_shipinstruct),
            texts("l_shipmode", rows, |row| row.l_shipmode),
            texts("l_comment", rows, |row| row.l_comment),
        ]
    });
    TABLES
        .iter()
        .map(|table| ((*table).to_owned(), directory.join(format!("{table}.parquet")).display().to_string()))
        .collect()
}

/// Rows as texts; floats in full.
fn lines(frame: &DataFrame) -> Vec<Vec<String>> {
    let cell = |value: AnyValue<'_>| match value {
        AnyValue::Null => "NULL".to_owned(),
        AnyValue::String(text) => text.to_owned(),
        AnyValue::StringOwned(text) => text.to_string(),
        AnyValue::Float64(value) => format!("{value:?}"),
        other => other.to_string(),
    };
    let row = |row: usize| frame.columns().iter().map(|column| cell(column.get(row).unwrap())).collect();
    (0..frame.height()).map(row).collect()
}

/// Equal texts, or numbers that differ by less than `tolerance` of their size or by `within`.
fn alike(found: &str, wanted: &str, within: f64) -> bool {
    let (found, wanted) = (found.trim(), wanted.trim());
    found == wanted
        || match (found.parse::<f64>(), wanted.parse::<f64>()) {
            (Ok(a), Ok(b)) => (a - b).abs() <= within + 1e-9 * b.abs(),
            _ => false,
        }
}

fn check(number: usize, found: &DataFrame, answer: &str, within: f64) {
    let mut answer = answer
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<String>>());
    let names = answer.next().unwrap();
    let wanted: Vec<Vec<String>> = answer.collect();
    let own: Vec<String> = found.get_column_names().iter().map(ToString::to_string).collect();
    // Columns without a name have one that each system makes up, and the TPC cuts names to the width of values.
    let named = names.iter().zip(&own).filter(|(name, _)| within == 0.0 && !name.contains('('));
    for (wanted, own) in named {
        assert_eq!(own, wanted, "Q{number}");
    }
    let found = lines(found);
    assert_eq!(found.len(), wanted.len(), "Q{number}: {found:?}");
    for (found, wanted) in found.iter().zip(&wanted) {
        assert_eq!(found.len(), wanted.len(), "Q{number}");
        for (a, b) in found.iter().zip(wanted) {
            // The keys in the published answer of Q11 lack their last two digits.
            let cut = number == 11 && within > 0.0 && a.len() == b.len() + 2 && a.starts_with(b.as_str());
            assert!(cut || alike(a, b, within), "Q{number}: {found:?} instead of {wanted:?}");
        }
    }
}

#[test]
fn the_22_queries_give_their_answers() {
    let directory = tempfile::tempdir().unwrap();
    let tables = tables(directory.path(), 0.01);
    for number in 1..=22 {
        let query = Query::Sql {
            text: text(number),
            tables: tables.clone(),
            directory: directory.path().display().to_string(),
        };
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let answer = fs::read_to_string(here.join(format!("tests/queries/tpch/q{number:02}.csv"))).unwrap();
        for shape in [&ROOMY, &ALONE] {
            let found = collect(&query, shape).unwrap_or_else(|failure| panic!("Q{number}: {failure}"));
            check(number, &found, &answer, 0.0);
        }
    }
}

/// By command, in a directory that is kept: `FLOE_TPCH=/some/directory cargo nextest run -p floe-query --release
/// --run-ignored only at_scale_factor_1`. The published answers are rounded to cents.
#[test]
#[ignore = "makes a gigabyte of rows; FLOE_TPCH names a directory for them"]
#[expect(clippy::print_stderr, reason = "times are for whoever runs this by hand")]
fn the_22_queries_give_their_published_answers_at_scale_factor_1() {
    let directory = PathBuf::from(std::env::var("FLOE_TPCH").expect("FLOE_TPCH names a directory"));
    let tables = match directory.join("lineitem.parquet").exists() {
        true => TABLES
            .iter()
            .map(|table| ((*table).to_owned(), format!("{}/{table}.parquet", directory.display())))
            .collect(),
        false => tables(&directory, 1.0),
    };
    for number in 1..=22 {
        let query = Query::Sql {
            text: text(number),
            tables: tables.clone(),
            directory: directory.display().to_string(),
        };
        let start = std::time::Instant::now();
        let found = collect(&query, &ALONE).unwrap_or_else(|failure| panic!("Q{number}: {failure}"));
        eprintln!("Q{number}: {:.2} s", start.elapsed().as_secs_f64());
        // What is published for Q17 is by three cents off what others answer too; the TPC lets it be (2.1.3.5).
        let within = if number == 17 { 0.05 } else { 0.0051 };
        check(number, &found, tpchgen::q_and_a::answers_sf1::answer(number as i32).unwrap(), within);
    }
}
