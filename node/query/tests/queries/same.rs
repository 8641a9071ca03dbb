//! Queries of every kind return what Polars returns.

use floe_protocol::Query;
use floe_query::Shape;
use polars::prelude::*;
use polars::sql::SQLContext;
use polars_buffer::Buffer;
use polars_plan::dsl::{ScanSources, UnifiedScanArgs};

use crate::data::{flights, path, rows, tables, with_rich_types};
use crate::mesh::{ALONE, ROOMY, TIGHT, assert_same, collect, lazy, sql};

/// Polars on one machine.
fn polars_sql(text: &str) -> DataFrame {
    let mut context = SQLContext::new();
    for (name, at) in tables() {
        let at = if at.starts_with('/') { PlRefPath::new(&at) } else { path(&at) };
        context.register(&name, LazyFrame::scan_parquet(at, Default::default()).unwrap());
    }
    context.execute(text).unwrap().collect().unwrap()
}

fn same_sql(text: &str, ordered: bool) {
    let expected = polars_sql(text);
    for shape in [TIGHT, ROOMY, ALONE] {
        let found = collect(&sql(text), &shape).unwrap_or_else(|failure| panic!("{text}: {failure}"));
        assert_same(&found, &expected, ordered, &format!("{text} on {shape:?}"));
    }
}

fn same_on(frame: LazyFrame, ordered: bool, shapes: &[Shape]) {
    let expected = frame.clone().collect().unwrap();
    let text = frame.explain(true).unwrap();
    let query = lazy(frame);
    for shape in shapes {
        let found = collect(&query, shape).unwrap_or_else(|failure| panic!("{text}: {failure}"));
        assert_same(&found, &expected, ordered, &format!("{text} on {shape:?}"));
    }
}

fn same(frame: LazyFrame, ordered: bool) {
    same_on(frame, ordered, &[TIGHT, ROOMY, ALONE]);
}

fn t() -> LazyFrame {
    LazyFrame::scan_parquet(path("t.parquet"), Default::default()).unwrap()
}

fn stages_and_tasks(query: &Query, shape: &Shape) -> (usize, usize) {
    let graph = floe_query::plan(query, shape).unwrap().graph;
    (graph.stages.len(), graph.stages.iter().map(|stage| stage.tasks.len()).max().unwrap())
}

#[test]
fn sql_rows_in_order() {
    for text in [
        "select 1 as one",
        "select * from t",
        "select id, key + 1 as next from t where key = 3",
        "select * from t where name like '%1%' and value > 2",
        "select * from t limit 7",
        "select * from t limit 5 offset 3000",
        "select id from t where key = 3 limit 40 offset 10",
        "select * from t order by small, id",
        "select * from t order by value desc, id",
        "select id, name from t order by name desc nulls last, key nulls first, id",
        "select id from t order by small * 2 + id % 7, id",
        "select * from t order by value, id limit 20",
        "select id, small from t order by small desc, id limit 20 offset 100",
        "select name, sum(key) as s from t group by name order by s desc, name limit 5",
        "select key, count(*) as n from t where small > 200 group by key order by key",
        "select * from t where id < 0",
        "select id, id - lag(id) over (order by id) as d from t order by id",
        "with big as (select * from t where small > 50) select key, max(small) as m from big group by key order by key",
    ] {
        same_sql(text, true);
    }
}

#[test]
fn sql_aggregates() {
    for text in [
        "select count(*) from t",
        "select count(*) as n, count(value) as c, sum(key) as s, min(value) as v, max(name) as m, avg(small) as a, avg(value) as b from t",
        "select sum(key) * 1.0 / count(*) as ratio, max(key) - min(key) as spread from t where key > 3",
        "select sum(key) as s, avg(small) as a, min(small) as m, count(*) from t where id < 0",
        "select key, count(*) as n, count(name), sum(id), sum(tiny), avg(tiny) as a, min(value), max(value) as m from t group by key",
        "select key, name, sum(small * (1 - key)) / count(*) as x from t group by key, name",
        "select key % 3 as k, max(name) from t group by key % 3",
        "select flag, avg(single) as a, sum(single) from t group by flag",
        "select date, count(*) from t group by date having count(*) > 110",
        "select key, count(distinct name) from t group by key",
        "select key, median(small), stddev(small) as s from t group by key",
        "select stddev(small), median(value) from t",
        "select value, count(*) from t group by value",
        "select distinct key, flag from t",
        "select count(distinct name) from t",
        "select key, sum(id) from t where id < 0 group by key",
    ] {
        same_sql(text, false);
    }
}

#[test]
fn sql_of_several_tables() {
    for text in [
        "select * from t where key = 1 union all select * from t where key = 2",
        "select key from t union select small from t",
        "select a.id, b.small from t a join t b on a.id = b.id where a.key = 4",
        "select name, n from (select name, count(*) as n from t group by name) where n > 400",
        "select id from t where key in (select max(key) from t)",
        "select carrier, name, n from (select carrier, count(*) as n from flights group by carrier) f \
         join airlines a using (carrier)",
        "select id from t except select small from t",
        "select f.origin, count(*) as n from flights f left join planes p on f.tailnum = p.tailnum \
         where p.manufacturer = 'BOEING' group by f.origin",
    ] {
        same_sql(text, false);
    }
}

#[test]
fn sql_over_real_flights() {
    for (text, ordered) in [
        (
            "select carrier, count(*) as n, avg(dep_delay) as late from flights group by carrier order by n desc",
            true,
        ),
        (
            "select * from flights order by dep_delay desc nulls last, flight, time_hour, tailnum, carrier limit 25",
            true,
        ),
        (
            "select origin, dest, min(distance), max(air_time) from flights where month = 7 group by origin, dest",
            false,
        ),
        (
            "select month, day, sum(distance) / count(*) as d from flights group by month, day order by month, day",
            true,
        ),
        ("select distinct tailnum from flights", false),
        ("select count(*) from flights where arr_delay > 60 or arr_delay is null", true),
    ] {
        same_sql(text, ordered);
    }
}

#[test]
fn files_of_every_format() {
    let shapes = [TIGHT, ROOMY];
    let grouped =
        |frame: LazyFrame| frame.group_by([col("key")]).agg([col("small").sum(), col("id").max(), len()]);
    let many = LazyFrame::scan_parquet(path("many/*.parquet"), Default::default()).unwrap();
    let csv = LazyCsvReader::new(path("csv/*.csv")).finish().unwrap();
    let ndjson = LazyJsonLineReader::new(path("ndjson/*.ndjson")).finish().unwrap();
    let ipc = LazyFrame::scan_ipc(path("ipc/*.arrow"), Default::default(), Default::default()).unwrap();
    let hive = LazyFrame::scan_parquet(path("hive"), Default::default()).unwrap();
    for frame in [many, csv, ndjson, ipc, hive] {
        same_on(frame.clone(), true, &shapes);
        same_on(frame.clone().filter(col("small").gt(lit(90))), true, &shapes);
        same_on(grouped(frame.clone()), false, &shapes);
        same_on(frame.clone().select([len()]), true, &shapes);
        same_on(frame.clone().slice(4_000, 2_000), true, &shapes);
        same_on(frame.clone().tail(50), true, &shapes);
        same_on(frame.clone().filter(col("key").eq(lit(2))).tail(50), true, &shapes);
        same_on(frame.clone().with_row_index("row", Some(5)), true, &shapes);
        same_on(frame.with_row_index("row", None).filter(col("small").lt(lit(3))), true, &shapes);
    }
    let hive = LazyFrame::scan_parquet(path("hive"), Default::default()).unwrap();
    same_on(hive.clone().filter(col("part").eq(lit("b"))).select([col("id"), col("part")]), true, &shapes);
    same_on(hive.group_by([col("part")]).agg([col("id").sum()]), false, &shapes);
    let args = ScanArgsParquet { include_file_paths: Some("file".into()), ..Default::default() };
    let named = LazyFrame::scan_parquet(path("many/*.parquet"), args).unwrap();
    same_on(named.select([col("file"), col("id")]), true, &shapes);
}

#[test]
fn sql_names_files_by_their_paths() {
    for (name, ordered) in [
        ("many/*.parquet", true),
        ("csv/0.csv", true),
        ("./ndjson/1.ndjson", true),
        ("ipc/*.arrow", true),
        ("many", true),
    ] {
        let text = format!("select id, small from '{name}' where key = 5");
        let found = collect(&sql(&text), &TIGHT).unwrap();
        assert!(found.height() > 50, "{text}");
        assert_eq!(found.schema().len(), 2);
        let read = match name {
            "csv/0.csv" => Some("read_csv"),
            "many/*.parquet" => Some("read_parquet"),
            _ => None,
        };
        if let Some(read) = read {
            let text = format!("select id, small from {read}('{name}') where key = 5");
            assert_same(&collect(&sql(&text), &ROOMY).unwrap(), &found, ordered, &text);
        }
    }
}

#[test]
fn one_row_group_is_split_by_rows() {
    let frame = LazyFrame::scan_parquet(path("one_group.parquet"), Default::default()).unwrap();
    assert!(stages_and_tasks(&lazy(frame.clone()), &ROOMY).1 >= 4);
    same(frame.clone(), true);
    same(frame.group_by([col("name")]).agg([col("value").min(), len()]), false);
    let frame = LazyFrame::scan_parquet(path("one_group.parquet"), Default::default()).unwrap();
    same(frame.clone().filter(col("small").lt(lit(2))), true);
    same(frame.clone().with_row_index("row", Some(7)).filter(col("small").lt(lit(2))), true);
    same(frame.slice(30_000, 61_000).filter(col("key").eq(lit(3))), true);
}

#[test]
fn no_rows_at_all() {
    let frame = LazyFrame::scan_parquet(path("none.parquet"), Default::default()).unwrap();
    same(frame.clone(), true);
    same(frame.clone().select([col("small").sum(), col("value").mean(), len(), col("name").first()]), true);
    same(frame.clone().group_by([col("key")]).agg([col("small").sum()]), false);
    same(frame.clone().sort(["key"], Default::default()), true);
    same(t().filter(lit(false)).select([col("small").sum(), col("id").first(), len()]), true);
    same(
        t().filter(col("id").lt(lit(-1))).select([
            col("id").first(),
            col("name").last(),
            col("flag").any(true),
        ]),
        true,
    );
    same(t().filter(col("id").lt(lit(-1))).sort(["value"], Default::default()), true);
    same(t().limit(0), true);
}

#[test]
fn every_aggregate_in_groups_and_alone() {
    let aggregates = || {
        vec![
            col("small").sum().alias("sum"),
            col("tiny").sum().alias("sum8"),
            col("flag").sum().alias("trues"),
            col("value").sum().alias("sumf"),
            col("value").min().alias("min"),
            col("value").max().alias("max"),
            col("value").nan_min().alias("nan_min"),
            col("value").nan_max().alias("nan_max"),
            col("name").min().alias("min_name"),
            col("date").max().alias("max_date"),
            col("small").mean().alias("mean"),
            col("single").mean().alias("mean32"),
            col("flag").mean().alias("mean_flag"),
            col("small").count().alias("count"),
            col("small").len().alias("len"),
            len().alias("all"),
            col("small").null_count().alias("nulls"),
            col("flag").any(true).alias("any"),
            col("flag").any(false).alias("any_kleene"),
            col("flag").all(true).alias("every"),
            col("flag").all(false).alias("every_kleene"),
            col("small").filter(col("flag")).sum().alias("filtered"),
            col("small").filter(col("id").lt(lit(0))).max().alias("filtered_out"),
            col("small").drop_nulls().count().alias("dropped"),
            ((col("small").sum() + lit(1)) / len()).alias("ratio"),
            (col("value").max() - col("value").min()).abs().alias("spread"),
            when(col("small").sum().gt(lit(100))).then(lit("big")).otherwise(lit("little")).alias("size"),
        ]
    };
    same(t().select(aggregates()), true);
    same(t().group_by([col("key")]).agg(aggregates()), false);
    same(t().group_by([col("key"), col("flag")]).agg(aggregates()), false);
    same(t().group_by_stable([col("name")]).agg(aggregates()), true);
    same(
        t().select([
            col("id").first().alias("a"),
            col("id").last().alias("b"),
            col("value").first_non_null().alias("c"),
        ]),
        true,
    );
    // The first row of a group is the first in the order of the file.
    let ordered = || {
        vec![col("id").first().alias("first"), col("id").last().alias("last"), col("value").last().alias("v")]
    };
    same(t().group_by([col("key")]).agg(ordered()), false);
    same(t().group_by_stable([col("key")]).agg(ordered()), true);
}

#[test]
fn aggregates_without_a_partial_form() {
    let whole = || {
        vec![
            col("small").n_unique().alias("n"),
            col("small").median().alias("median"),
            col("small").quantile(lit(0.3), QuantileMethod::Linear).alias("quantile"),
            col("value").std(1).alias("std"),
            col("id").implode(true).alias("ids"),
            col("name").sort(Default::default()).first().alias("first_name"),
            (col("small") * col("small").mean()).sum().alias("mixed"),
            lit(1).sum().alias("one"),
            col("date").mean().alias("mean_date"),
            col("id").arg_max().alias("arg_max"),
        ]
    };
    same(t().group_by([col("key")]).agg(whole()), false);
    same(t().group_by_stable([col("key")]).agg(whole()), true);
    same(t().select(whole()), true);
    same(t().group_by([col("key")]).agg([col("id").head(Some(3))]), false);
    same(t().group_by([col("small").cast(DataType::Float64) / lit(7)]).agg([col("id").n_unique()]), false);
}

#[test]
fn rows_one_by_one() {
    same(
        t().with_columns([
            (col("small") * lit(2)).alias("double"),
            col("name").str().to_uppercase().alias("up"),
        ]),
        true,
    );
    same(t().select([col("id"), lit(7).alias("seven")]), true);
    same(t().select([lit(7).alias("seven")]), true);
    same(t().select([col("small").drop_nulls()]), true);
    same(
        t().filter(col("name").is_in(lit(Series::new("".into(), ["name 1", "name 2"])).implode(true), false)),
        true,
    );
    same(t().drop_nulls(None), true);
    same(t().rename(["id"], ["identity"], true), true);
    same(t().with_columns([col("small").fill_null(lit(-1)), col("value").fill_nan(lit(0.0))]), true);
}

#[test]
fn rows_that_look_at_others_run_on_one_node() {
    same(t().with_columns([col("small").cum_sum(false).alias("running")]), true);
    same(t().with_columns([col("small").sum().over([col("key")]).unwrap().alias("total")]), true);
    same(t().select([col("id"), (col("small") - col("small").mean()).alias("off")]), true);
    same(t().filter(col("small").eq(col("small").max())), true);
    same(t().with_columns([col("id").shift(lit(1)).alias("before")]), true);
    same(t().filter(col("key").eq(lit(1))).with_row_index("n", None), true);
    same(t().select([col("name").unique_stable()]), true);
    same(t().reverse(), true);
    same(t().filter(col("small").is_in(col("key").implode(true), false)), true);
}

#[test]
fn sorts_are_those_of_polars() {
    for (descending, nulls_last) in [(false, false), (true, false), (false, true), (true, true)] {
        let options = || {
            SortMultipleOptions::default()
                .with_order_descending(descending)
                .with_nulls_last(nulls_last)
                .with_maintain_order(true)
        };
        for key in ["id", "key", "name", "small", "value", "flag", "date", "time", "single"] {
            same_on(t().sort([key], options()), true, &[TIGHT]);
        }
        same(t().sort(["key", "value", "name"], options()), true);
        same_on(
            t().sort_by_exprs([col("small") % lit(7), col("name").str().len_bytes()], options()),
            true,
            &[TIGHT],
        );
        same_on(t().sort(["value"], options()).limit(30), true, &[TIGHT, ROOMY]);
        same_on(t().sort(["key"], options()).slice(100, 30), true, &[TIGHT, ROOMY]);
        same_on(t().sort(["name"], options()).tail(30), true, &[TIGHT, ROOMY]);
    }
    let mixed = SortMultipleOptions::default()
        .with_order_descending_multi([true, false])
        .with_nulls_last_multi([false, true])
        .with_maintain_order(true);
    same(t().sort(["key", "small"], mixed), true);
    // Operators above a sort keep its order.
    same(
        t().sort(["small", "id"], Default::default()).filter(col("key").gt(lit(3))).select([col("id")]),
        true,
    );
    same(
        t().sort(["small", "id"], Default::default())
            .group_by_stable([col("small")])
            .agg([col("id").first()]),
        true,
    );
    same(
        t().sort(["small", "id"], Default::default()).with_columns([col("id").cum_sum(false).alias("c")]),
        true,
    );
    // It takes several tasks.
    assert!(stages_and_tasks(&lazy(t().sort(["id"], Default::default())), &TIGHT).0 >= 4);
}

#[test]
fn distinct_rows() {
    use UniqueKeepStrategy::{Any, First, Last, None};
    let subset = || Option::Some(cols(["key", "flag"]));
    same(t().select([col("key"), col("flag")]).unique(Option::None, Any), false);
    for keep in [First, Last, None] {
        same(t().unique(subset(), keep), false);
        same(t().unique_stable(subset(), keep), true);
        same(t().select([col("value"), col("name")]).unique(Option::None, keep), false);
    }
    same(t().unique_stable(subset(), First).limit(9), true);
    let some = t().select([col("key")]).unique(Option::None, Any).limit(5);
    assert_eq!(collect(&lazy(some), &TIGHT).unwrap().height(), 5);
}

#[test]
fn unions() {
    let part = |from: i64| t().filter(col("id").gt(lit(from))).select([col("id"), col("name")]);
    let args = UnionArgs::default;
    same(concat([part(6_000), part(1_000), part(11_990)], args()).unwrap(), true);
    same(concat([part(6_000), part(1_000)], args()).unwrap().sort(["id"], Default::default()), true);
    same(
        concat([part(6_000), part(1_000)], args())
            .unwrap()
            .group_by([col("name")])
            .agg([len(), col("id").sum()]),
        false,
    );
    same(concat([part(6_000), part(1_000)], args()).unwrap().slice(5_000, 3_000), true);
    let other = || t().select([col("id"), col("small")]);
    same(concat_lf_diagonal([part(9_000), other()], args()).unwrap(), true);
    same(concat([part(6_000), rows(0, 3).lazy().select([col("id"), col("name")])], args()).unwrap(), true);
}

#[test]
fn frames_of_the_driver() {
    let large = rows(0, 150_000);
    let shapes = [TIGHT, ROOMY];
    same_on(large.clone().lazy(), true, &shapes);
    same_on(
        large.clone().lazy().select([col("name"), col("small")]).filter(col("small").gt(lit(97))),
        true,
        &shapes,
    );
    same_on(large.clone().lazy().group_by([col("key")]).agg([col("value").mean(), len()]), false, &shapes);
    same_on(
        large.clone().lazy().join(t(), [col("id")], [col("id")], JoinArgs::new(JoinType::Inner)),
        false,
        &[ROOMY],
    );
    same(rows(0, 10).lazy().select([col("small").sum()]), true);
    same(rows(0, 100).lazy().sort(["value"], SortMultipleOptions::default().with_maintain_order(true)), true);
    // A small one travels with the plan; a large one is a stage that is there from the start.
    assert_eq!(stages_and_tasks(&lazy(rows(0, 10).lazy()), &ROOMY), (1, 1));
    let planned = floe_query::plan(&lazy(large.lazy().select([col("id")])), &ROOMY).unwrap();
    assert!(planned.frames.len() > 1 && planned.frames.iter().all(|(_, _, df)| df.width() == 1));
}

/// More than a task reads at once: its input is streamed out of the segments.
#[test]
fn large_inputs() {
    let large = rows(0, 150_000);
    let options = || SortMultipleOptions::default().with_maintain_order(true);
    same_on(large.clone().lazy().sort(["value", "name"], options()), true, &[ROOMY]);
    same_on(large.clone().lazy().with_columns([col("small").cum_sum(false)]), true, &[ROOMY]);
    same_on(
        large.lazy().group_by([col("key")]).agg([col("small").median(), col("id").first()]),
        false,
        &[ROOMY],
    );
    let rich = with_rich_types(rows(0, 80_000)).collect().unwrap();
    same_on(rich.clone().lazy().with_columns([col("small").cum_sum(false)]), true, &[ROOMY]);
    same_on(rich.lazy().group_by([col("category")]).agg([col("small").median()]), false, &[ROOMY]);
}

#[test]
fn types_pass_through() {
    let rich = || LazyFrame::scan_parquet(path("rich.parquet"), Default::default()).unwrap();
    same(rich(), true);
    same(rich().filter(col("small").gt(lit(50))), true);
    let aggregates = || vec![col("price").sum(), col("price").max().alias("m"), col("took").sum(), len()];
    same(rich().group_by([col("category")]).agg(aggregates()), false);
    same(rich().group_by([col("category")]).agg([col("small").median()]), false);
    same(rich().group_by([col("price")]).agg([col("id").n_unique()]), false);
    same(rich().group_by([col("struct")]).agg([len()]), false);
    same(rich().group_by([col("list")]).agg([col("id").median()]), false);
    same(
        rich().group_by([col("key")]).agg([
            col("category").first(),
            col("list").last(),
            col("struct").first(),
        ]),
        false,
    );
    same(rich().select([col("category").max(), col("binary").min()]), true);
    for key in ["category", "price", "took", "binary"] {
        let options = SortMultipleOptions::default().with_maintain_order(true);
        same_on(rich().sort([key], options.clone()), true, &[TIGHT]);
        same_on(rich().sort([key], options.with_order_descending(true)).limit(20), true, &[TIGHT]);
    }
    same(rich().unique(Some(cols(["category"])), UniqueKeepStrategy::First), false);
    same(
        rich()
            .select([col("id"), col("list")])
            .explode(cols(["list"]), ExplodeOptions { empty_as_null: true, keep_nulls: true }),
        true,
    );
    same(rich().select([col("id"), col("struct")]).unnest(cols(["struct"]), None), true);
    let unpivot = UnpivotArgsDSL {
        on: Some(cols(["small", "key"])),
        index: cols(["id"]),
        variable_name: None,
        value_name: None,
    };
    same(rich().select([col("id"), col("small"), col("key").cast(DataType::Int32)]).unpivot(unpivot), false);
    let frame = with_rich_types(rows(0, 3_000)).collect().unwrap();
    same(frame.lazy(), true);
}

/// A plan may bring its files along, in memory; types that a file's own do not tell apart are in its metadata.
#[test]
fn files_in_memory() {
    let array = |dtype: DataType| {
        let list = concat_list([col("small"), col("small")]).unwrap();
        list.cast(DataType::List(Box::new(dtype.clone()))).cast(DataType::Array(Box::new(dtype), 2))
    };
    let decimal = DataType::Decimal(12, 1);
    let df = with_rich_types(rows(0, 300))
        .with_columns([
            array(DataType::Int32).alias("integers"),
            array(DataType::String).alias("strings"),
            array(decimal.clone()).alias("decimals"),
            concat_list([array(decimal)]).unwrap().alias("nested"),
            col("id").cast(DataType::Int128).alias("wide"),
            col("value").cast(DataType::Float16).alias("half"),
            lit(NULL).alias("nothing"),
            as_struct(vec![col("name").cast(DataType::from_categories(Categories::global())).alias("c")])
                .alias("categories"),
        ])
        .collect()
        .unwrap();
    let mut file = Vec::new();
    ParquetWriter::new(&mut file).with_row_group_size(Some(100)).finish(&mut df.clone()).unwrap();
    let sources = || ScanSources::Buffers([Buffer::from_vec(file.clone())].into());
    let hive_options = HiveOptions { enabled: Some(false), ..Default::default() };
    let args = || ScanArgsParquet { hive_options: hive_options.clone(), glob: false, ..Default::default() };
    let parquet = || LazyFrame::scan_parquet_sources(sources(), args()).unwrap();
    same(parquet(), true);
    same(parquet().filter(col("small").gt(lit(50))).slice(3, 20), true);
    same(parquet().group_by([col("key")]).agg([len(), col("decimals").first()]), false);
    let mut file = Vec::new();
    IpcWriter::new(&mut file).finish(&mut df.clone()).unwrap();
    let sources = ScanSources::Buffers([Buffer::from_vec(file)].into());
    let args = UnifiedScanArgs { hive_options, glob: false, ..Default::default() };
    same(LazyFrame::scan_ipc_sources(sources, Default::default(), args).unwrap(), true);
}

/// Polars' optimizer makes an inner join of a right one whose filter asks for a row of the left.
#[test]
fn types_are_those_of_the_rows_after_a_join_was_rewritten() {
    let left = || df!("x" => [0i64, 1, 2], "z" => [4i64, 5, 6]).unwrap().lazy();
    let right = || df!("y" => [2i32, 3, 1]).unwrap().lazy();
    for limit in [5, 6, 7] {
        for how in [JoinType::Right, JoinType::Left, JoinType::Full, JoinType::Inner] {
            let (x, y) = (col("x").cast(DataType::Int64), col("y").cast(DataType::Int64));
            let joined =
                left().join(right(), [x], [y], JoinArgs::new(how)).filter(col("z").gt_eq(lit(limit)));
            same(joined.clone(), false);
            same(joined.limit(0), false);
        }
    }
}

/// As Polars' in-memory engine has them, though no order was asked for.
#[test]
fn joins_have_the_order_of_the_in_memory_engine() {
    let left = || t().select([col("id"), col("small"), col("value")]).limit(60);
    let right = || t().slice(40, 70).select([col("id").alias("other"), col("tiny"), col("single")]);
    let (small, tiny) = (|| col("small"), || col("tiny").cast(DataType::Int32));
    for (what, predicates) in [
        ("one bound", vec![small().gt(tiny())]),
        ("the other way", vec![tiny().lt_eq(small())]),
        ("two columns", vec![small().gt(tiny()), col("value").lt(col("single").cast(DataType::Float64))]),
        ("neither", vec![(small() + tiny()).gt(lit(90))]),
    ] {
        let joined = left().join_builder().with(right()).join_where(predicates);
        let expected = joined.clone().collect().unwrap();
        assert!(expected.height() > 20, "{what}");
        same(joined, true);
    }
    same(left().cross_join(right(), None), true);
    same(left().cross_join(right(), None).filter(small().neq(tiny())).limit(30), true);
    let keys = || ([col("small")], [tiny()]);
    for how in [JoinType::Left, JoinType::Right] {
        let (left_on, right_on) = keys();
        same(left().join(right(), left_on, right_on, JoinArgs::new(how)), true);
    }
}

/// What the streaming engine panics at, the in-memory engine may know.
#[test]
fn what_one_engine_cannot_do_the_other_does() {
    same(df!("a" => [1.0, 2.0, 4.0]).unwrap().lazy().select([pearson_corr(lit(1), col("a"))]), true);
}

#[test]
fn joins_and_their_like() {
    let other = || t().select([col("id"), col("small").alias("other")]).filter(col("other").gt(lit(60)));
    for how in [JoinType::Inner, JoinType::Left, JoinType::Full, JoinType::Semi, JoinType::Anti] {
        same(t().join(other(), [col("id")], [col("id")], JoinArgs::new(how)), false);
    }
    let left = JoinArgs { maintain_order: MaintainOrderJoin::Left, ..JoinArgs::new(JoinType::Left) };
    same(t().join(other(), [col("id")], [col("id")], left), true);
    same(t().limit(20).cross_join(other().limit(30), None), false);
    same(
        t().join(other(), [col("id")], [col("id")], JoinArgs::new(JoinType::Inner))
            .group_by([col("key")])
            .agg([col("other").sum()]),
        false,
    );
    same(
        concat_lf_horizontal([t(), other().rename(["id"], ["id2"], true)], Default::default()).unwrap(),
        true,
    );
    let twice = t().group_by([col("key")]).agg([col("small").mean().alias("mean")]);
    same(
        t().join(twice, [col("key")], [col("key")], JoinArgs::new(JoinType::Left))
            .filter(col("small").gt(col("mean"))),
        false,
    );
}

#[test]
fn groups_in_time() {
    let options = DynamicGroupOptions {
        index_column: "time".into(),
        every: Duration::parse("7d"),
        period: Duration::parse("7d"),
        offset: Duration::parse("0d"),
        ..Default::default()
    };
    let grouped = t().group_by_dynamic(col("time"), [], options).agg([col("small").sum(), len()]);
    same(grouped, true);
}

#[test]
fn cheap_queries_take_few_tasks() {
    let count = |text: &str| stages_and_tasks(&sql(text), &ROOMY);
    assert_eq!(count("select 1"), (1, 1));
    assert_eq!(count("select count(*) from t"), (1, 1));
    assert_eq!(count("select * from airlines"), (1, 1));
    assert_eq!(count("select * from airlines order by name limit 3"), (1, 1));
    assert_eq!(count("select * from flights limit 10"), (1, 1));
    let (stages, tasks) =
        count("select carrier, avg(dep_delay) from flights group by carrier order by carrier");
    assert_eq!(stages, 2);
    assert!(tasks >= 4, "{tasks}");
}

#[test]
fn a_plan_names_files_from_the_directory_of_its_driver() {
    let scan = |at: PlRefPath| LazyFrame::scan_parquet(at, Default::default()).unwrap();
    let relative = |frame: LazyFrame| frame.filter(col("key").eq(lit(2))).select([col("id")]);
    let expected = relative(scan(path("t.parquet"))).collect().unwrap();
    let query = lazy(relative(scan(PlRefPath::new("t.parquet"))));
    assert_eq!(floe_query::paths(&query).unwrap()[0].path, path("t.parquet").as_str());
    assert_same(&collect(&query, &TIGHT).unwrap(), &expected, true, "relative");
}

#[test]
fn flights_are_found_by_absolute_path() {
    let text = format!("select count(*) as n from '{}/flights.parquet' where dep_delay > 0", flights());
    same_sql_absolute(&text);
}

fn same_sql_absolute(text: &str) {
    let found = collect(&sql(text), &ROOMY).unwrap();
    let expected = polars_sql("select count(*) as n from flights where dep_delay > 0");
    assert_same(&found, &expected, true, text);
    let paths = floe_query::paths(&sql(text)).unwrap();
    assert_eq!(paths.len(), 1);
    assert_eq!(paths[0].path, format!("{}/flights.parquet", flights()));
}
