//! A fragment means the same in another process: rows, and the buckets they go to.

use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use floe_protocol::Work;
use polars::prelude::*;

use crate::data::path;
use crate::mesh::{TIGHT, ipc, lazy, read};

const TASK: &str = "FLOE_TEST_TASK";

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

    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("fragment"), fragment).unwrap();
    std::fs::write(at("split"), &stage.tasks[1].split).unwrap();
    std::fs::write(at("buckets"), buckets.to_string()).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process::child", "--ignored"])
        .env(TASK, directory.path())
        .status()
        .unwrap();
    assert!(status.success());
    for (bucket, here) in here.into_iter().enumerate() {
        let there = read(&std::fs::read(at(&format!("bucket {bucket}"))).unwrap().into());
        assert!(there.equals_missing(&read(&ipc(here, 0))), "bucket {bucket}");
    }
}

/// The other process.
#[test]
#[ignore = "started by another_process_fills_the_same_buckets"]
fn child() {
    let Some(directory) = std::env::var_os(TASK).map(PathBuf::from) else {
        return;
    };
    let file = |name: &str| -> Bytes { std::fs::read(Path::new(&directory).join(name)).unwrap().into() };
    let buckets = String::from_utf8(file("buckets").to_vec()).unwrap().parse().unwrap();
    let out = floe_query::run(&file("fragment"), &file("split"), vec![], buckets).unwrap();
    for (bucket, df) in out.into_iter().enumerate() {
        std::fs::write(directory.join(format!("bucket {bucket}")), ipc(df, 0)).unwrap();
    }
}
