//! What `floe explain` prints, for the key shapes of queries.

use floe_protocol::NodeId;
use floe_query::Shape;
use polars::prelude::*;

use crate::data::{path, rows};
use crate::mesh::{ROOMY, TIGHT, lazy, sql};

fn explain(query: &floe_protocol::Query, shape: &Shape) -> String {
    let mut graph = floe_query::plan(query, shape).unwrap().graph;
    for stage in &mut graph.stages {
        if stage.tasks.iter().any(|task| !task.split.is_empty()) {
            stage.seen_by = vec![NodeId(1), NodeId(2)];
        }
    }
    floe_query::explain(&graph, &|node| format!("node-{}", node.0))
}

fn scan() -> LazyFrame {
    LazyFrame::scan_parquet(path("t.parquet"), Default::default()).unwrap()
}

#[test]
fn shapes_of_queries() {
    insta::assert_snapshot!("one_row", explain(&sql("select 1 as one"), &ROOMY));
    let text =
        "select carrier, avg(dep_delay) as late from flights where month = 3 group by carrier order by late";
    insta::assert_snapshot!("group_by_small", explain(&sql(text), &ROOMY));
    let text = "select tailnum, count(*) as n from flights group by tailnum";
    insta::assert_snapshot!("group_by_large", explain(&sql(text), &Shape { slots: 4, task_bytes: 1 << 20 }));
    let text = "select tailnum, median(distance) from flights group by tailnum";
    insta::assert_snapshot!("group_by_whole", explain(&sql(text), &Shape { slots: 4, task_bytes: 1 << 20 }));
    insta::assert_snapshot!("count", explain(&sql("select count(*) from flights"), &ROOMY));
    insta::assert_snapshot!(
        "aggregates",
        explain(&sql("select sum(distance), max(dep_delay) from flights"), &ROOMY)
    );
    insta::assert_snapshot!("sort", explain(&sql("select * from t order by value desc, id"), &TIGHT));
    insta::assert_snapshot!(
        "top",
        explain(&sql("select * from flights order by distance desc limit 3"), &ROOMY)
    );
    insta::assert_snapshot!("limit", explain(&sql("select * from flights where month = 2 limit 3"), &ROOMY));
    insta::assert_snapshot!("distinct", explain(&sql("select distinct origin, dest from flights"), &ROOMY));
    let text = "select id from t where key = 1 union all select id from t where key = 2";
    insta::assert_snapshot!("union", explain(&sql(text), &TIGHT));
    let text =
        "select f.carrier, a.name from flights f join airlines a on f.carrier = a.carrier where f.month = 1";
    insta::assert_snapshot!("join", explain(&sql(text), &ROOMY));
    let window = scan().with_columns([col("small").sum().over([col("key")]).unwrap().alias("total")]);
    insta::assert_snapshot!("window", explain(&lazy(window), &TIGHT));
    let running = scan().with_columns([col("small").cum_sum(false).alias("running")]);
    insta::assert_snapshot!("cumulative", explain(&lazy(running), &TIGHT));
    let frame = rows(0, 150_000).lazy().filter(col("key").gt(lit(3)));
    insta::assert_snapshot!("frame", explain(&lazy(frame), &ROOMY));
}
