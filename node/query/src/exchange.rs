//! A task's rows into buckets: by hash, so that equal keys meet, or by range, so that buckets are in order.
//!
//! Both work on Polars' row encoding of the keys, bytes that are equal where Polars finds values equal (null
//! with null, NaN with NaN, -0.0 with 0.0) and, for sorting, ordered as Polars orders the values. The encoding
//! depends on nothing but the values and their types, so that every node puts a row into the same bucket.

use polars::chunked_array::ops::row_encode::{_get_rows_encoded_ca, encode_rows_unordered};
use polars::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Column of a sample that holds encoded sort keys.
pub(crate) const SAMPLE_KEY: &str = "__floe_sample_key";

/// Column of a sample that says for how many rows each of its rows stands.
pub(crate) const SAMPLE_ROWS: &str = "__floe_sample_rows";

/// How many rows a task puts into its sample: enough to cut a hundred buckets within a few percent.
const SAMPLE_SIZE: usize = 1024;

/// One key of a sort.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SortKey {
    pub(crate) column: String,
    pub(crate) descending: bool,
    pub(crate) nulls_last: bool,
}

/// The rows of each bucket, by hash of the key columns, each in its order.
pub(crate) fn by_hash(df: &DataFrame, keys: &[String], buckets: u32) -> PolarsResult<Vec<DataFrame>> {
    if df.height() == 0 || buckets <= 1 {
        return Ok(in_first(df, buckets));
    }
    let columns = keys.iter().map(|key| encodable(df.column(key)?)).collect::<PolarsResult<Vec<_>>>()?;
    let encoded = encode_rows_unordered(&columns)?;
    let bucket = |row: Option<&[u8]>| (xxh3_64(row.unwrap_or_default()) % u64::from(buckets)) as u32;
    let assigned: Vec<u32> = encoded.iter().map(bucket).collect();
    gather(df, &assigned, buckets)
}

/// The rows of each bucket, by where their keys lie among the boundaries: one bucket more than these.
pub(crate) fn by_range(
    df: &DataFrame,
    by: &[SortKey],
    boundaries: &DataFrame,
    buckets: u32,
) -> PolarsResult<Vec<DataFrame>> {
    let boundaries = boundaries.column(SAMPLE_KEY)?.binary()?;
    let boundaries: Vec<&[u8]> = boundaries.iter().flatten().collect();
    if df.height() == 0 || boundaries.is_empty() {
        return Ok(in_first(df, buckets));
    }
    let encoded = encode_sorted(df, by)?;
    let last = buckets.saturating_sub(1) as usize;
    let bucket = |row: Option<&[u8]>| {
        let row = row.unwrap_or_default();
        boundaries.partition_point(|boundary| *boundary <= row).min(last) as u32
    };
    let assigned: Vec<u32> = encoded.iter().map(bucket).collect();
    gather(df, &assigned, buckets)
}

/// Evenly chosen rows' encoded keys, and for how many rows each stands.
pub(crate) fn sample(df: &DataFrame, by: &[SortKey]) -> PolarsResult<DataFrame> {
    let height = df.height();
    let size = height.min(SAMPLE_SIZE);
    let rows: Vec<IdxSize> = (0..size).map(|k| (k as u64 * height as u64 / size as u64) as IdxSize).collect();
    let keys: Vec<PlSmallStr> = by.iter().map(|key| key.column.as_str().into()).collect();
    let chosen = df.select(keys)?.take(&IdxCa::from_vec(PlSmallStr::EMPTY, rows))?;
    let encoded = encode_sorted(&chosen, by)?;
    let encoded: BinaryChunked = encoded.iter().collect_ca(SAMPLE_KEY.into());
    let weight = height.checked_div(size).unwrap_or(0) as u64;
    let weights = UInt64Chunked::full(SAMPLE_ROWS.into(), weight, size);
    DataFrame::new(size, vec![encoded.into_column(), weights.into_column()])
}

/// The schema of [`sample`].
pub(crate) fn sample_schema() -> Schema {
    Schema::from_iter([
        Field::new(SAMPLE_KEY.into(), DataType::Binary),
        Field::new(SAMPLE_ROWS.into(), DataType::UInt64),
    ])
}

/// The keys at which buckets begin, from all tasks' samples; fewer of them where keys repeat.
pub(crate) fn boundaries(samples: &DataFrame, buckets: u32) -> PolarsResult<DataFrame> {
    let keys = samples.column(SAMPLE_KEY)?.binary()?.rechunk();
    let weights = samples.column(SAMPLE_ROWS)?.u64()?.rechunk();
    let mut sorted: Vec<(&[u8], u64)> =
        keys.iter().zip(weights.iter()).filter_map(|(key, weight)| Some((key?, weight?))).collect();
    sorted.sort_unstable();
    let total: u64 = sorted.iter().map(|(_, weight)| weight).sum();
    let mut chosen: Vec<&[u8]> = Vec::new();
    let mut seen = 0;
    for (key, weight) in sorted {
        let wanted = (chosen.len() as u64 + 1) * total / u64::from(buckets.max(1));
        if seen >= wanted && chosen.len() + 1 < buckets as usize && chosen.last() != Some(&key) {
            chosen.push(key);
        }
        seen += weight;
    }
    let chosen: BinaryChunked = chosen.into_iter().map(Some).collect_ca(SAMPLE_KEY.into());
    DataFrame::new(chosen.len(), vec![chosen.into_column()])
}

fn encode_sorted(df: &DataFrame, by: &[SortKey]) -> PolarsResult<BinaryOffsetChunked> {
    let columns =
        by.iter().map(|key| encodable(df.column(&key.column)?)).collect::<PolarsResult<Vec<_>>>()?;
    let descending: Vec<bool> = by.iter().map(|key| key.descending).collect();
    let nulls_last: Vec<bool> = by.iter().map(|key| key.nulls_last).collect();
    _get_rows_encoded_ca(SAMPLE_KEY.into(), &columns, &descending, &nulls_last, false)
}

/// A categorical's codes differ between processes; its strings do not, and order it.
fn encodable(column: &Column) -> PolarsResult<Column> {
    match column.dtype() {
        DataType::Categorical(..) => column.cast(&DataType::String),
        _ => Ok(column.clone()),
    }
}

fn in_first(df: &DataFrame, buckets: u32) -> Vec<DataFrame> {
    let mut out = vec![df.clear(); buckets.max(1) as usize];
    out[0] = df.clone();
    out
}

fn gather(df: &DataFrame, assigned: &[u32], buckets: u32) -> PolarsResult<Vec<DataFrame>> {
    let mut sizes = vec![0; buckets as usize];
    assigned.iter().for_each(|bucket| sizes[*bucket as usize] += 1);
    let mut rows: Vec<Vec<IdxSize>> = sizes.into_iter().map(Vec::with_capacity).collect();
    for (row, bucket) in assigned.iter().enumerate() {
        rows[*bucket as usize].push(row as IdxSize);
    }
    rows.into_iter().map(|rows| df.take(&IdxCa::from_vec(PlSmallStr::EMPTY, rows))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn keys(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn equal_keys_share_a_bucket() {
        let df = df!(
            "f" => [Some(0.0), Some(-0.0), Some(f64::NAN), Some(-f64::NAN), None, None, Some(1.0)],
            "s" => ["a", "a", "b", "b", "c", "c", "d"],
        )
        .unwrap();
        let bucket_of = |key: &str| {
            let buckets =
                by_hash(&df.with_row_index("row".into(), None).unwrap(), &keys(&[key]), 1000).unwrap();
            assert_eq!(buckets.iter().map(DataFrame::height).sum::<usize>(), 7);
            let mut of = [0; 7];
            for (bucket, df) in buckets.iter().enumerate() {
                df.column("row")
                    .unwrap()
                    .u32()
                    .unwrap()
                    .iter()
                    .flatten()
                    .for_each(|row| of[row as usize] = bucket);
            }
            of
        };
        for key in ["f", "s"] {
            let of = bucket_of(key);
            assert!(of[0] == of[1] && of[2] == of[3] && of[4] == of[5], "{key}: {of:?}");
            assert!(of[0] != of[2] && of[2] != of[4] && of[4] != of[6], "{key}: {of:?}");
        }
    }

    #[test]
    fn a_categorical_hashes_like_its_strings() {
        let strings = df!("k" => ["x", "y", "z", "x"]).unwrap();
        let other = df!("k" => ["z", "z", "y", "x"]).unwrap();
        let cast = |df: &DataFrame| {
            let categorical = DataType::from_categories(Categories::global());
            let column = df.column("k").unwrap().cast(&categorical).unwrap();
            DataFrame::new(df.height(), vec![column]).unwrap()
        };
        let heights = |df: &DataFrame| {
            let buckets = by_hash(df, &keys(&["k"]), 16).unwrap();
            buckets.iter().map(DataFrame::height).collect::<Vec<_>>()
        };
        cast(&other);
        assert_eq!(heights(&strings), heights(&cast(&strings)));
    }

    /// A bucket must not depend on the process, the machine or the run: these were computed in another one.
    #[test]
    fn buckets_are_the_same_everywhere() {
        let df =
            df!("i" => [1i64, 2, 3, 4, 5, 6, 7, 8], "s" => ["a", "b", "c", "d", "e", "f", "g", "h"]).unwrap();
        let buckets = by_hash(&df, &keys(&["i", "s"]), 3).unwrap();
        let found: Vec<Vec<i64>> = buckets
            .iter()
            .map(|df| df.column("i").unwrap().i64().unwrap().iter().flatten().collect())
            .collect();
        assert_eq!(found, EXPECTED);
    }

    const EXPECTED: [&[i64]; 3] = [&[4, 6, 7], &[2], &[1, 3, 5, 8]];

    #[test]
    fn ranges_are_in_order_and_even() {
        let values: Vec<Option<i32>> =
            (0..10_000).map(|i| (i % 10 != 0).then_some((i * 7919) % 5003)).collect();
        let df = df!("a" => values).unwrap();
        for (descending, nulls_last) in [(false, false), (true, false), (false, true), (true, true)] {
            let by = [SortKey { column: "a".into(), descending, nulls_last }];
            let samples = sample(&df, &by).unwrap();
            let limits = boundaries(&samples, 8).unwrap();
            let buckets = by_range(&df, &by, &limits, 8).unwrap();
            let sizes: Vec<usize> = buckets.iter().map(DataFrame::height).collect();
            assert!(sizes.iter().all(|size| (800..2200).contains(size)), "{sizes:?}");
            let options =
                SortMultipleOptions::default().with_order_descending(descending).with_nulls_last(nulls_last);
            let mut sorted = DataFrame::empty_with_schema(df.schema());
            for bucket in &buckets {
                sorted.vstack_mut(&bucket.sort(["a"], options.clone()).unwrap()).unwrap();
            }
            assert!(sorted.equals_missing(&df.sort(["a"], options).unwrap()));
        }
    }

    #[test]
    fn one_value_makes_one_range() {
        let df = df!("a" => [7; 500]).unwrap();
        let by = [SortKey { column: "a".into(), descending: false, nulls_last: false }];
        let limits = boundaries(&sample(&df, &by).unwrap(), 4).unwrap();
        let buckets = by_range(&df, &by, &limits, 4).unwrap();
        assert_eq!(buckets.len(), 4);
        assert_eq!(buckets.iter().filter(|bucket| bucket.height() > 0).count(), 1);
        assert_eq!(boundaries(&sample(&df.clear(), &by).unwrap(), 4).unwrap().height(), 0);
    }
}
