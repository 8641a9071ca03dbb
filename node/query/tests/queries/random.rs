//! Random pipelines over random rows, split at random.

use floe_query::Shape;
use polars::prelude::*;
use proptest::prelude::*;

use crate::data::rows;
use crate::mesh::{assert_same, collect, lazy};

#[derive(Clone, Debug)]
enum Step {
    Filter(u8, i32),
    WithColumns,
    Sort(Vec<(u8, bool, bool)>),
    GroupBy(Vec<u8>, bool),
    Whole(u8),
    Unique(u8, bool),
    Slice(i64, u32),
    Union,
}

const KEYS: [&str; 4] = ["key", "name", "flag", "small"];

fn step() -> impl Strategy<Value = Step> {
    let sort_key = (0..4u8, any::<bool>(), any::<bool>());
    prop_oneof![
        (0..3u8, 0..100i32).prop_map(|(kind, value)| Step::Filter(kind, value)),
        Just(Step::WithColumns),
        prop::collection::vec(sort_key, 1..3).prop_map(Step::Sort),
        (prop::collection::vec(0..3u8, 1..3), any::<bool>())
            .prop_map(|(keys, stable)| Step::GroupBy(keys, stable)),
        (0..3u8).prop_map(Step::Whole),
        (0..3u8, any::<bool>()).prop_map(|(key, last)| Step::Unique(key, last)),
        (-300..300i64, 0..400u32).prop_map(|(offset, len)| Step::Slice(offset, len)),
        Just(Step::Union),
    ]
}

/// The columns are the same after every step, so that steps can follow in any order. Each step keeps an
/// order that is determined, so that a slice after it is too.
fn apply(frame: LazyFrame, step: &Step) -> LazyFrame {
    let columns = || ["id", "key", "name", "small", "value", "flag"].map(col);
    let options = SortMultipleOptions::default().with_maintain_order(true);
    match step {
        Step::Filter(0, value) => frame.filter(col("small").gt(lit(*value))),
        Step::Filter(1, value) => {
            frame.filter(col("value").lt(lit(f64::from(*value) / 5.0)).or(col("flag").is_null()))
        }
        Step::Filter(_, value) => frame.filter(col("key").neq(lit(i64::from(*value % 17)))),
        Step::WithColumns => frame.with_columns([
            (col("small") * lit(3) % lit(101)).alias("small"),
            col("value").fill_nan(lit(1.5)).alias("value"),
        ]),
        Step::Sort(keys) => {
            let mut seen = Vec::new();
            let keys: Vec<_> = keys
                .iter()
                .filter(|key| {
                    !seen.contains(&key.0) && {
                        seen.push(key.0);
                        true
                    }
                })
                .collect();
            let names: Vec<&str> = keys.iter().map(|key| KEYS[key.0 as usize]).collect();
            let options = options
                .with_order_descending_multi(keys.iter().map(|key| key.1))
                .with_nulls_last_multi(keys.iter().map(|key| key.2));
            frame.sort(names, options)
        }
        Step::GroupBy(keys, stable) => {
            let mut keys: Vec<&str> = keys.iter().map(|key| KEYS[*key as usize]).collect();
            keys.dedup();
            keys.truncate(1);
            let others = KEYS.iter().filter(|name| !keys.contains(name));
            let mut aggregates: Vec<Expr> = others.map(|name| col(*name).max()).collect();
            aggregates.push(col("id").first());
            aggregates.push(col("value").min());
            let by: Vec<Expr> = keys.iter().map(|key| col(*key)).collect();
            let grouped = if *stable {
                frame.group_by_stable(by).agg(aggregates)
            } else {
                frame.group_by(by).agg(aggregates).sort(["id"], options)
            };
            grouped.select(columns())
        }
        Step::Whole(key) => {
            let key = KEYS[*key as usize];
            let median = col("small").median().cast(DataType::Int32);
            let others: Vec<Expr> = ["key", "name", "flag"]
                .iter()
                .filter(|name| **name != key)
                .map(|name| col(*name).last())
                .collect();
            let aggregates = [others, vec![median, col("id").min(), col("value").nan_max()]].concat();
            frame.group_by([col(key)]).agg(aggregates).sort(["id"], options).select(columns())
        }
        Step::Unique(key, last) => {
            let keep = if *last { UniqueKeepStrategy::Last } else { UniqueKeepStrategy::First };
            frame.unique_stable(Some(cols([KEYS[*key as usize]])), keep)
        }
        Step::Slice(offset, len) => frame.slice(*offset, *len),
        Step::Union => {
            let some = frame.clone().filter(col("small").lt(lit(40)));
            concat([frame, some], UnionArgs::default()).unwrap()
        }
    }
}

/// A few in every run; more when asked.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn pipelines_return_what_polars_returns(
        steps in prop::collection::vec(step(), 1..5),
        n in 0..3_000i64,
        group in 40..900usize,
        slots in 1..6u32,
        task_kib in 4..64u64,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("rows.parquet");
        let mut df = rows(n * 7, n).select(["id", "key", "name", "small", "value", "flag"]).unwrap();
        let file = std::fs::File::create(&at).unwrap();
        ParquetWriter::new(file).with_row_group_size(Some(group)).finish(&mut df).unwrap();
        let scan = LazyFrame::scan_parquet(PlRefPath::try_from_path(&at).unwrap(), Default::default()).unwrap();
        let frame = steps.iter().fold(scan, apply);
        let expected = frame.clone().collect().unwrap();
        let shape = Shape { slots, task_bytes: task_kib << 10 };
        let found = collect(&lazy(frame), &shape).unwrap();
        assert_same(&found, &expected, true, &format!("{steps:?}"));
    }
}
