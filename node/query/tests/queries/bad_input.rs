//! What does not work says so in a sentence, once.

use std::path::PathBuf;

use floe_protocol::message::Inspected;
use floe_protocol::{Failure, Query, Work};
use floe_query::Stop;
use polars::prelude::*;

use crate::data::{directory, path};
use crate::mesh::{ROOMY, collect, held, inputs, lazy, sql};

fn failure(query: &Query) -> Failure {
    collect(query, &ROOMY).err().unwrap_or_else(|| panic!("{query:?} worked"))
}

fn message(text: &str) -> String {
    match failure(&sql(text)) {
        Failure::Query { message } => message,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn polars_own_message_comes_through_once() {
    for (text, words) in [
        ("select nonsense from t", "nonsense"),
        ("select id from t group by", "Expected"),
        ("select sum(name) from t", "sum"),
        ("select id + name from t where name + 1 > 2", "do not compare"),
        ("select cast(name as int) from t", "conversion"),
    ] {
        let message = message(text);
        assert!(message.contains(words), "{text}: {message}");
        assert!(!message.contains("Resolved plan") && !message.contains("stack backtrace"), "{message}");
        let first = message.lines().next().unwrap();
        assert_eq!(message.matches(first).count(), 1, "{message}");
    }
}

/// Operators that read an operand more than once would double what is below them at each level.
#[test]
fn nested_operators_do_not_grow_exponentially() {
    let nested = |open: &str, close: &str| format!("{}id{}", open.repeat(60), close.repeat(60));
    for (expr, wanted) in [
        (nested("((", " + 1) % 1009)"), f64::from((0..60).fold(0, |value, _| (value + 1) % 1009))),
        (nested("-((", " + 1) % 7)"), f64::from((0..60).fold(0, |value, _| -((value + 1) % 7)))),
        (nested("(1 / (", " + 1))"), (0..60).fold(0.0, |value, _| 1.0 / (value + 1.0))),
    ] {
        let found = collect(&sql(&format!("select {expr} as v from t where id = 0")), &ROOMY).unwrap();
        let found: f64 = found.column("v").unwrap().get(0).unwrap().try_extract().unwrap();
        assert!((found - wanted).abs() < 1e-12, "{expr}: {found} instead of {wanted}");
    }
    for (open, close) in [
        ("(", " between 0 and id)"),
        ("case ", " when 1 then 2 when 3 then 4 else id end"),
        ("nullif(", ", 7)"),
    ] {
        let message = match failure(&sql(&format!("select {} from t", nested(open, close)))) {
            Failure::Query { message } | Failure::Refused { message } => message,
            other => panic!("{open}: {other:?}"),
        };
        assert!(message.contains("more than 1000 parts"), "{open}: {message}");
    }
}

/// The type is that of Polars; where it has no room, that is an error and not another number.
#[test]
fn integers_of_32_bits_do_not_wrap() {
    let small = "select cast(2147483647 as int) as n from t where id < 2";
    for (text, wanted) in [
        (format!("select n - 1 as v from ({small})"), "2147483646"),
        (format!("select n % -7 as v from ({small})"), "1"),
        ("select sum(n) - 1 as v from (select cast(id as int) as n from t where id < 3)".to_owned(), "2"),
    ] {
        let found = collect(&sql(&text), &ROOMY).unwrap();
        let values = found.column("v").unwrap();
        assert_eq!((values.dtype(), values.get(0).unwrap().to_string().as_str()), (&DataType::Int32, wanted));
    }
    for text in ["n + 1", "n * 2", "-2 - n", "sum(n)"] {
        let text = format!("select {text} as v from ({small})");
        assert!(message(&text).contains("conversion from `i64` to `i32` failed"), "{text}");
    }
    let wide = collect(&sql(&format!("select cast(n as bigint) + 1 as v from ({small})")), &ROOMY).unwrap();
    assert_eq!(wide.column("v").unwrap().get(0).unwrap().to_string(), "2147483648");
}

#[test]
fn a_missing_file_is_unseen() {
    for name in ["gone.parquet", "gone/*.csv", "gone"] {
        let query = sql(&format!("select * from read_parquet('{name}')"));
        let Failure::Unseen { path, looked } = failure(&query) else { panic!("{name}") };
        assert_eq!(path, format!("{}/{name}", directory()));
        assert!(looked.starts_with("this node: "), "{looked}");
    }
    let scan = LazyFrame::scan_parquet(PlRefPath::new("gone.parquet"), Default::default()).unwrap();
    assert!(matches!(failure(&lazy(scan)), Failure::Unseen { .. }));
    let paths = floe_query::resolve(&["many".to_owned(), "/gone".to_owned()], &directory()).unwrap();
    let found = floe_query::inspect(&paths);
    assert!(matches!(&found[0], Inspected::Files(files) if files.len() == 6));
    assert_eq!(found[1], Inspected::Missing("not found".into()));
}

/// Codes that a driver's process gave mean nothing here; an enum's are its own.
#[test]
fn categories_of_codes_are_refused() {
    let codes = || df!("code" => [0u32, 1, 0], "n" => [1, 2, 3]).unwrap().lazy();
    let categorical = || DataType::from_categories(Categories::global());
    let cast = || col("code").cast(categorical());
    for frame in [
        codes().select([cast()]),
        codes().with_columns([cast().alias("c")]),
        codes().filter(cast().is_not_null()),
        codes().group_by([cast()]).agg([len()]),
        codes().select([concat_list([col("code")]).unwrap().cast(DataType::List(Box::new(categorical())))]),
    ] {
        let Failure::Refused { message } = failure(&lazy(frame)) else { panic!("not refused") };
        assert!(message.contains("makes categories of codes") && message.contains("Enum"), "{message}");
    }
    let categories = FrozenCategories::new(["a", "b"]).unwrap();
    let of_enum = codes().select([col("code").cast(DataType::from_frozen_categories(categories))]);
    assert_eq!(collect(&lazy(of_enum), &ROOMY).unwrap().height(), 3);
    let known = codes().select([col("n").cast(DataType::String).cast(categorical()).alias("s")]);
    let known = known.with_columns([col("s").to_physical().alias("code")]).with_columns([cast().alias("c")]);
    assert_eq!(collect(&lazy(known), &ROOMY).unwrap().column("c").unwrap().null_count(), 0);
}

/// The driver's own Polars runs these: here the values would be others.
#[test]
fn what_has_other_values_here_is_foreign() {
    let words = || df!("word" => ["a", "b"]).unwrap().lazy();
    let categories = || col("word").cast(DataType::from_categories(Categories::global()));
    let scan = |path: &str| {
        let args = ScanArgsParquet { include_file_paths: Some("path".into()), ..Default::default() };
        LazyFrame::scan_parquet(PlRefPath::new(path), args).unwrap()
    };
    for (frame, word) in [
        (words().select([categories().hash(1, 2, 3, 4)]), "hashes categories"),
        (words().select([as_struct(vec![categories()]).hash(1, 2, 3, 4)]), "hashes categories"),
        (scan(&format!("file://{}/flights.parquet", directory())), "include_file_paths"),
    ] {
        let Failure::Foreign { message } = failure(&lazy(frame)) else { panic!("not foreign") };
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(collect(&lazy(words().select([col("word").hash(1, 2, 3, 4)])), &ROOMY).unwrap().height(), 2);
}

fn copy(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join(name);
    let mut bytes = std::fs::read(path("t.parquet").as_str()).unwrap();
    change(&mut bytes);
    std::fs::write(&to, bytes).unwrap();
    (directory, to)
}

#[test]
fn a_truncated_file_is_named() {
    let (_keep, at) = copy("short.parquet", |bytes| bytes.truncate(bytes.len() / 2));
    let message = message(&format!("select * from '{}'", at.display()));
    assert!(message.contains("short.parquet"), "{message}");
    // One of many, not the first.
    let (keep, _) = copy("a.parquet", |_| {});
    std::fs::write(keep.path().join("b.parquet"), b"PAR1 and nothing else").unwrap();
    let message = self::message(&format!("select * from '{}/*.parquet'", keep.path().display()));
    assert!(message.contains("b.parquet"), "{message}");
    // The footer is sound, the pages are not.
    let (_keep, at) = copy("holes.parquet", |bytes| {
        let half = bytes.len() / 2;
        bytes[4..half].fill(0xff);
    });
    let message = self::message(&format!("select * from '{}'", at.display()));
    assert!(message.contains("holes.parquet"), "{message}");
}

#[test]
fn a_file_that_changed_after_planning_is_not_read() {
    let (_keep, at) = copy("changing.parquet", |_| {});
    let planned = floe_query::plan(&sql(&format!("select * from '{}'", at.display())), &ROOMY).unwrap();
    std::fs::copy(path("none.parquet").as_str(), &at).unwrap();
    let stage = &planned.graph.stages[0];
    let Work::Fragment(fragment) = &stage.work else { panic!("held") };
    let failure = floe_query::run(fragment, &stage.tasks[0].split, vec![], 1).unwrap_err();
    let Failure::Blind { path, why } = failure else { panic!("{failure:?}") };
    assert_eq!(path, at.to_string_lossy());
    assert!(why.contains("bytes instead of"), "{why}");
    assert_eq!(planned.scans[0].1.len(), 1);
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let frame = rows().map(Ok, Default::default(), None, Some("my function"));
    assert!(floe_plan::encode(&frame).is_err(), "Polars refuses closures itself");
    let Query::Plan { dsl, directory, schema } = lazy(rows()) else { panic!("sql") };
    let sink = sql("copy t to 'x.csv'");
    assert!(matches!(failure(&sink), Failure::Refused { .. } | Failure::Query { .. }));
    assert!(floe_query::paths(&Query::Plan { dsl, directory, schema }).unwrap().is_empty());
}

fn rows() -> LazyFrame {
    crate::data::rows(0, 10).lazy()
}

#[test]
fn garbage_is_not_a_plan() {
    let empty = Query::Plan { dsl: Default::default(), directory: "/".into(), schema: Default::default() };
    assert!(matches!(failure(&empty), Failure::Version { .. }));
    let Query::Plan { dsl, directory, schema } = lazy(rows()) else { panic!("sql") };
    for cut in [5, 40, 80, dsl.len() - 1] {
        let query =
            Query::Plan { dsl: dsl.slice(..cut), directory: directory.clone(), schema: schema.clone() };
        let Failure::Version { message } = failure(&query) else { panic!("cut at {cut}") };
        assert!(message.contains("py-polars 1.40"), "{message}");
    }
    // Another build's hash of the schema is no obstacle.
    let mut other = dsl.to_vec();
    other[15..79].fill(b'0');
    let query = Query::Plan { dsl: other.into(), directory, schema };
    assert_eq!(collect(&query, &ROOMY).unwrap().height(), 10);
    assert!(floe_query::run(b"garbage", b"", vec![], 1).is_err());
}

#[test]
fn a_task_stops_when_told() {
    let planned = floe_query::plan(&sql("select * from t order by value"), &ROOMY).unwrap();
    let stage = &planned.graph.stages[0];
    let Work::Fragment(fragment) = &stage.work else { panic!("held") };
    let segments = inputs(stage, 0, &held(planned.frames));
    let stop = Stop::default();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let buckets = stage.exchange.buckets();
    let failure = floe_query::run_until(fragment, &stage.tasks[0].split, segments, buckets, &stop);
    assert_eq!(failure.unwrap_err(), Failure::Cancelled);
}
