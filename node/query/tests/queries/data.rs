//! Files to query: generated once for a test process, and the real flights of this repository.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;

use polars::prelude::*;
use tempfile::TempDir;

static DIRECTORY: OnceLock<TempDir> = OnceLock::new();

/// Where the generated files are.
pub(crate) fn directory() -> String {
    DIRECTORY.get_or_init(generate).path().to_string_lossy().into_owned()
}

pub(crate) fn path(name: &str) -> PlRefPath {
    PlRefPath::new(format!("{}/{name}", directory()))
}

pub(crate) fn flights() -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.join("../../scenarios/data/nycflights13").canonicalize().unwrap().to_string_lossy().into_owned()
}

pub(crate) fn tables() -> BTreeMap<String, String> {
    let mut tables = BTreeMap::from([("t".to_owned(), "t.parquet".to_owned())]);
    for name in ["flights", "airlines", "airports", "planes", "weather"] {
        tables.insert(name.to_owned(), format!("{}/{name}.parquet", flights()));
    }
    tables
}

/// Rows with every kind of trouble: nulls, NaN, both zeros, repeated and rare keys.
pub(crate) fn rows(from: i64, n: i64) -> DataFrame {
    let mix = |i: i64, salt: u64| {
        let x = (i as u64 ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        (x ^ (x >> 32)) as i64
    };
    let all = || from..from + n;
    let some = |i: i64, salt: u64| mix(i, salt).rem_euclid(11) != 0;
    let key: Vec<Option<i64>> = all().map(|i| some(i, 1).then(|| mix(i, 2).rem_euclid(17))).collect();
    let name: Vec<Option<String>> =
        all().map(|i| some(i, 3).then(|| format!("name {}", mix(i, 4).rem_euclid(23)))).collect();
    let small: Vec<Option<i32>> =
        all().map(|i| some(i, 5).then(|| mix(i, 6).rem_euclid(100) as i32)).collect();
    let value: Vec<Option<f64>> = all()
        .map(|i| match mix(i, 7).rem_euclid(20) {
            0 => None,
            1 => Some(f64::NAN),
            2 => Some(-0.0),
            3 => Some(0.0),
            v => Some(v as f64 * 1.25 - 10.0),
        })
        .collect();
    let flag: Vec<Option<bool>> = all().map(|i| some(i, 8).then(|| mix(i, 9) % 3 == 0)).collect();
    let id: Vec<i64> = all().collect();
    let mut df = df!(
        "id" => id, "key" => key, "name" => name, "small" => small, "value" => value, "flag" => flag,
    )
    .unwrap();
    let column = |name: &str| df.column(name).unwrap().clone();
    let small8 = column("small").cast(&DataType::Int8).unwrap().with_name("tiny".into());
    let single = column("value").cast(&DataType::Float32).unwrap().with_name("single".into());
    let date = column("small").cast(&DataType::Date).unwrap().with_name("date".into());
    let time = column("id").cast(&DataType::Int64).unwrap() * 3_600_000_000i64;
    let time = time.cast(&DataType::Datetime(TimeUnit::Microseconds, None)).unwrap().with_name("time".into());
    for extra in [small8, single, date, time] {
        df.with_column(extra).unwrap();
    }
    df
}

/// Types that not every file format has.
pub(crate) fn with_rich_types(df: DataFrame) -> LazyFrame {
    let categorical = DataType::from_categories(Categories::global());
    df.lazy().with_columns([
        col("name").cast(categorical).alias("category"),
        col("id").cast(DataType::Decimal(20, 2)).alias("price"),
        concat_list([col("small"), col("small") + lit(1)]).unwrap().alias("list"),
        as_struct(vec![col("key"), col("name")]).alias("struct"),
        (col("small") * lit(1000)).cast(DataType::Duration(TimeUnit::Milliseconds)).alias("took"),
        col("name").cast(DataType::Binary).alias("binary"),
    ])
}

fn generate() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| File::create(directory.path().join(name)).unwrap();
    let parquet = |name: &str, df: &DataFrame, group: usize| {
        ParquetWriter::new(at(name)).with_row_group_size(Some(group)).finish(&mut df.clone()).unwrap();
    };
    let all = rows(0, 12_000);
    parquet("t.parquet", &all, 700);
    parquet("one_group.parquet", &rows(0, 120_000), usize::MAX);
    parquet("none.parquet", &all.clear(), 100);
    parquet("rich.parquet", &with_rich_types(rows(0, 5_000)).collect().unwrap(), 400);
    for folder in ["many", "csv", "ndjson", "ipc", "hive/part=a", "hive/part=b"] {
        std::fs::create_dir_all(directory.path().join(folder)).unwrap();
    }
    for part in 0..5 {
        let mut df = all.slice(part * 2_400, 2_400);
        parquet(&format!("many/{part}.parquet"), &df, 500);
        let folder = if part < 2 { "a" } else { "b" };
        parquet(&format!("hive/part={folder}/{part}.parquet"), &df, 800);
        CsvWriter::new(at(&format!("csv/{part}.csv"))).finish(&mut df).unwrap();
        JsonWriter::new(at(&format!("ndjson/{part}.ndjson")))
            .with_json_format(JsonFormat::JsonLines)
            .finish(&mut df.drop_many(["value", "single"]))
            .unwrap();
        let mut rich = with_rich_types(df).collect().unwrap();
        IpcWriter::new(at(&format!("ipc/{part}.arrow")))
            .with_compression(Some(IpcCompression::LZ4))
            .finish(&mut rich)
            .unwrap();
    }
    parquet("many/5.parquet", &all.clear(), 100);
    directory
}
