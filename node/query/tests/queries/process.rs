//! A fragment means the same in another process: rows, and the buckets they go to.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use floe_protocol::{Failure, Work};
use polars::prelude::*;

use crate::data::path;
use crate::mesh::{TIGHT, collect_by, ipc, lazy, read};

const TASK: &str = "FLOE_TEST_TASK";

/// What children met before their task: categories in another order each, so that codes differ.
const MET: [&str; 3] =
    ["name 3\nname 22\nname 1", "name 22\nname 21\nname 3", "name 7\nname 8\nname 9\nname 10"];

#[test]
fn another_process_fills_the_same_buckets() {
    // A categorical's codes depend on what a process saw before: here, the names in another order.
    let categorical = DataType::from_categories(Categories::global());
    let _ = Series::new("".into(), ["name 22", "name 21", "name 3"]).cast(&categorical).unwrap();
    let frame = LazyFrame::scan_parquet(path("rich.parquet"), Default::default()).unwrap();
    let keys = [col("category"), col("value"), col("price"), col("struct")];
    let planned = floe_query::plan(&lazy(frame.group_by(keys).agg([col("id").median()])), &TIGHT);
    // A struct without categoricals is a key like others.
    let graph = planned.unwrap().graph;
    let stage = &graph.stages[0];
    let Work::Fragment(fragment) = &stage.work else { panic!("held") };
    let buckets = stage.exchange.buckets();
    assert!(buckets > 4);
    let here = floe_query::run(fragment, &stage.tasks[1].split, vec![], buckets).unwrap();
    let there = run_apart(fragment, &stage.tasks[1].split, vec![], buckets).unwrap();
    for (bucket, (here, there)) in here.into_iter().zip(there).enumerate() {
        assert!(there.equals_missing(&read(&ipc(here, 0))), "bucket {bucket}");
    }
}

/// Codes of categories are one for one with their strings, whichever processes the rows went through.
#[test]
fn codes_are_those_of_one_process() {
    let t = || LazyFrame::scan_parquet(path("rich.parquet"), Default::default()).unwrap();
    let code = || col("category").to_physical().alias("code");
    let cast = || col("category").cast(DataType::UInt32).alias("code");
    let again = || col("category").to_physical().cast(DataType::from_categories(Categories::global()));
    let listed = || {
        let list = concat_list([col("category")]).unwrap().to_physical();
        list.list().get(lit(0), false).alias("code")
    };
    let pairs = |frame: LazyFrame| {
        frame.group_by([col("code")]).agg([col("category").n_unique().alias("names"), len().alias("rows")])
    };
    for (what, frame) in [
        ("select", pairs(t().select([col("category"), code()]))),
        ("with_columns", pairs(t().with_columns([code()]))),
        ("cast", pairs(t().with_columns([cast()]))),
        ("within lists", pairs(t().with_columns([listed()]))),
        (
            "keys",
            t().group_by([code()]).agg([col("category").n_unique().alias("names"), len().alias("rows")]),
        ),
        (
            "aggregates",
            t().group_by([col("category")])
                .agg([code().first(), len().alias("rows")])
                .group_by([col("code")])
                .agg([col("category").n_unique().alias("names"), col("rows").sum()]),
        ),
        ("there and back", pairs(t().filter(again().eq_missing(col("category"))).with_columns([code()]))),
        (
            "union",
            pairs(
                concat(
                    [t().with_columns([code()]), t().with_columns([code()]).filter(col("id").gt(lit(9)))],
                    UnionArgs::default(),
                )
                .unwrap(),
            ),
        ),
    ] {
        let found = collect_by(&lazy(frame.clone()), &TIGHT, &run_apart).unwrap();
        let expected = frame.collect().unwrap();
        let numbers = |df: &DataFrame, name: &str| df.column(name).unwrap().cast(&DataType::UInt64).unwrap();
        let sums = |df: &DataFrame| {
            let (rows, names) = (numbers(df, "rows"), numbers(df, "names"));
            (df.height(), rows.u64().unwrap().sum(), names.u64().unwrap().max())
        };
        assert_eq!(sums(&found), sums(&expected), "{what}");
    }
}

/// Runs a task in a process of its own, which met other categories before.
fn run_apart(
    fragment: &[u8],
    split: &[u8],
    inputs: Vec<Vec<Bytes>>,
    buckets: u32,
) -> Result<Vec<DataFrame>, Failure> {
    static TASKS: AtomicUsize = AtomicUsize::new(0);
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
    write("fragment", fragment);
    write("split", split);
    write("buckets", buckets.to_string().as_bytes());
    write("met", MET[TASKS.fetch_add(1, Ordering::Relaxed) % MET.len()].as_bytes());
    write("inputs", inputs.iter().map(|input| format!("{} ", input.len())).collect::<String>().as_bytes());
    for (input, segments) in inputs.iter().enumerate() {
        for (index, segment) in segments.iter().enumerate() {
            write(&format!("input {input} {index}"), segment);
        }
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process::child", "--ignored"])
        .env(TASK, directory.path())
        .status()
        .unwrap();
    assert!(status.success());
    let bucket = |bucket: u32| std::fs::read(directory.path().join(format!("bucket {bucket}"))).unwrap();
    Ok((0..buckets).map(|number| read(&bucket(number).into())).collect())
}

/// The other process.
#[test]
#[ignore = "started by run_apart"]
fn child() {
    let Some(directory) = std::env::var_os(TASK).map(PathBuf::from) else {
        return;
    };
    let file = |name: &str| -> Bytes { std::fs::read(Path::new(&directory).join(name)).unwrap().into() };
    let text = |name: &str| String::from_utf8(file(name).to_vec()).unwrap();
    let categorical = DataType::from_categories(Categories::global());
    let names = text("met");
    let _met = Series::new("".into(), names.lines().collect::<Vec<_>>()).cast(&categorical).unwrap();
    let segments = |(input, count): (usize, &str)| -> Vec<Bytes> {
        (0..count.parse().unwrap()).map(|index: usize| file(&format!("input {input} {index}"))).collect()
    };
    let inputs = text("inputs").split_whitespace().enumerate().map(segments).collect();
    let buckets = text("buckets").parse().unwrap();
    let out = floe_query::run(&file("fragment"), &file("split"), inputs, buckets).unwrap();
    for (bucket, df) in out.into_iter().enumerate() {
        std::fs::write(directory.join(format!("bucket {bucket}")), ipc(df, 0)).unwrap();
    }
}
