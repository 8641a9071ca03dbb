//! Whatever is asked, the mesh answers what Polars answers on one machine.

use floe_protocol::Exchange;
use floe_scenarios::data::{Q1, Q6, lineitem, nycflights};
use floe_scenarios::harness::{DEADLINE, wait_until};
use floe_scenarios::reference::{Tables, same_rows};
use polars::prelude::*;

use crate::cluster;
use crate::workload::{FORMATS, airlines, flights, path};

/// Statements over `{flights}`, and whether Polars promises the order of their rows.
const STATEMENTS: &[(&str, bool)] = &[
    ("SELECT carrier, flight, dep_delay FROM {flights} WHERE dep_delay > 60", true),
    ("SELECT *, arr_delay - dep_delay AS gained FROM {flights} WHERE month = 1", true),
    ("SELECT * FROM {flights} LIMIT 1000", true),
    ("SELECT flight FROM {flights} LIMIT 10 OFFSET 9995", true),
    (
        "SELECT COUNT(*) AS n, SUM(distance) AS d, AVG(air_time) AS a, MAX(dep_delay) AS m FROM {flights}",
        true,
    ),
    (
        "SELECT carrier, COUNT(*) AS n, AVG(dep_delay) AS a, MIN(dep_time) AS b, MAX(arr_delay) AS c, \
         STDDEV(distance) AS s FROM {flights} GROUP BY carrier",
        false,
    ),
    (
        "SELECT origin, MEDIAN(dep_delay) AS m, COUNT(DISTINCT tailnum) AS t FROM {flights} GROUP BY origin",
        false,
    ),
    (
        "SELECT dest, COUNT(*) AS n FROM {flights} GROUP BY dest HAVING COUNT(*) > 100 ORDER BY n DESC, dest",
        true,
    ),
    (
        "SELECT time_hour, carrier, flight, origin FROM {flights} ORDER BY carrier DESC, flight, time_hour, origin",
        true,
    ),
    ("SELECT tailnum FROM {flights} GROUP BY tailnum ORDER BY tailnum NULLS FIRST", true),
    (
        "SELECT dep_delay, flight, carrier FROM {flights} ORDER BY dep_delay DESC NULLS LAST, flight, carrier LIMIT 25",
        true,
    ),
    ("SELECT DISTINCT origin, dest FROM {flights}", true),
    (
        "SELECT carrier, distance FROM {flights} WHERE distance > 2000 \
         UNION ALL SELECT carrier, distance FROM {flights} WHERE distance < 100",
        false,
    ),
    ("SELECT carrier, flight FROM {flights} WHERE distance < 0", true),
    ("SELECT carrier, dep_delay - AVG(dep_delay) OVER (PARTITION BY carrier) AS d FROM {flights}", false),
    ("SELECT f.flight, a.name FROM {flights} AS f JOIN {airlines} AS a ON f.carrier = a.carrier", false),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_format_gives_the_answers_of_one_machine() {
    let cluster = cluster().nodes(3).start().await.unwrap();
    let mesh = cluster.client(0).await.unwrap();
    let mut wrong = Vec::new();
    for format in FORMATS {
        let tables = flights(cluster.dir(), format).with("airlines", airlines());
        for (statement, ordered) in STATEMENTS {
            let wanted = tables.run(statement).unwrap();
            let answer = async {
                let job = mesh.sql(tables.for_floe(statement)).await?;
                let found = job.collect().await?;
                job.release().await?;
                same_rows(&found, &wanted, *ordered)
            };
            if let Err(error) = answer.await {
                wrong.push(format!("{format}: {statement}: {error:#}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong answers\n{}", wrong.len(), wrong.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lazy_frame_is_collected_by_the_mesh() {
    let cluster = cluster().nodes(2).start().await.unwrap();
    let mesh = cluster.client(1).await.unwrap();
    let flights = LazyFrame::scan_parquet(path(&nycflights("flights")), ScanArgsParquet::default()).unwrap();
    let memory = df!(
        "carrier" => ["UA", "DL", "ZZ"],
        "weight" => [Some(1.5), None, Some(3.0)],
        "tags" => [Series::new("".into(), ["a", "b"]), Series::new("".into(), [""; 0]), Series::new("".into(), ["c"])],
    )
    .unwrap();
    let numbers = (0..200_000i64).collect::<Vec<_>>();
    let large = df!("key" => numbers.iter().map(|n| n % 7).collect::<Vec<_>>(), "n" => numbers).unwrap();
    let frames = [
        // A small frame in memory travels with the plan.
        (memory.clone().lazy(), true),
        (
            memory.clone().lazy().filter(col("weight").is_not_null()).select([col("carrier"), col("tags")]),
            true,
        ),
        (
            flights
                .clone()
                .filter(col("distance").gt(1000))
                .group_by([col("carrier")])
                .agg([col("dep_delay").mean(), len().alias("n")]),
            false,
        ),
        // Groups in the order of their first rows.
        (flights.clone().group_by_stable([col("dest")]).agg([col("flight").first(), len().alias("n")]), true),
        (
            flights.join(memory.lazy(), [col("carrier")], [col("carrier")], JoinArgs::new(JoinType::Inner)),
            false,
        ),
        // A large one is kept by nodes, as partitions that tasks read.
        (large.clone().lazy().filter(col("n").gt(lit(100))), true),
        (large.clone().lazy().group_by([col("key")]).agg([col("n").sum(), len().alias("rows")]), false),
        (
            large.clone().lazy().join(large.lazy(), [col("n")], [col("n")], JoinArgs::new(JoinType::Left)),
            false,
        ),
    ];
    for (frame, ordered) in frames {
        let plan = frame.describe_plan().unwrap();
        let found = mesh.collect(frame.clone()).await.unwrap_or_else(|error| panic!("{plan}: {error}"));
        same_rows(&found, &frame.collect().unwrap(), ordered)
            .unwrap_or_else(|error| panic!("{plan}: {error:#}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tpch_queries_are_cut_into_stages_and_right() {
    let cluster = cluster().nodes(2).start().await.unwrap();
    let mesh = cluster.client(0).await.unwrap();
    let tables = Tables::new().with("lineitem", lineitem(cluster.dir(), 0.1).unwrap());
    for query in [Q1, Q6] {
        let text = tables.for_floe(query);
        let graph = mesh.sql(&text).explain().await.unwrap();
        assert!(graph.stages.len() > 1 && graph.stages[0].tasks.len() > 1, "{graph:#?}");
        let found = mesh.sql(&text).await.unwrap().collect().await.unwrap();
        same_rows(&found, &tables.run(query).unwrap(), true).unwrap();
    }
}

/// What is too large for one task is exchanged between the nodes, and still right.
#[tokio::test(flavor = "multi_thread")]
async fn large_groups_and_sorts_cross_the_mesh() {
    let cluster = cluster().nodes(2).memory("32MiB").start().await.unwrap();
    let mesh = cluster.client(0).await.unwrap();
    let tables = Tables::new().with("lineitem", lineitem(cluster.dir(), 0.1).unwrap());
    let hash = |exchange: &Exchange| matches!(exchange, Exchange::Hash { buckets, .. } if *buckets > 1);
    let range = |exchange: &Exchange| matches!(exchange, Exchange::Range { buckets, .. } if *buckets > 1);
    type Is = fn(&Exchange) -> bool;
    let cases: [(&str, Is, bool); 2] = [
        ("SELECT l_comment, MEDIAN(l_tax) AS m FROM {lineitem} GROUP BY l_comment", hash, false),
        ("SELECT * FROM {lineitem} ORDER BY l_comment DESC, l_orderkey, l_linenumber", range, true),
    ];
    for (statement, is, ordered) in cases {
        let text = tables.for_floe(statement);
        let graph = mesh.sql(&text).explain().await.unwrap();
        let exchanges: Vec<&Exchange> = graph.stages.iter().map(|stage| &stage.exchange).collect();
        assert!(exchanges.iter().any(|exchange| is(exchange)), "{statement}: {exchanges:?}");
        assert!(graph.stages.iter().all(|stage| stage.single_because.is_none()), "{statement}: {graph:?}");
        let job = mesh.sql(&text).await.unwrap();
        let found = job.collect().await.unwrap();
        job.release().await.unwrap();
        same_rows(&found, &tables.run(statement).unwrap(), ordered).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_shows_the_stages_and_why_one_is_not_split() {
    let cluster = cluster().nodes(2).start().await.unwrap();
    let mesh = cluster.client(0).await.unwrap();
    let tables = flights(cluster.dir(), "parquet").with("airlines", airlines());
    let joined = tables.for_floe(
        "SELECT f.flight, a.name FROM {flights} AS f JOIN {airlines} AS a ON f.carrier = a.carrier",
    );
    let graph = mesh.sql(&joined).explain().await.unwrap();
    let reason = graph.stages.iter().find_map(|stage| stage.single_because.clone()).unwrap_or_default();
    assert!(reason.to_lowercase().contains("join"), "{graph:#?}");

    let text = cluster.run(0, &["explain", &joined]).await.unwrap().success().unwrap();
    assert!(text.contains(&reason) && text.to_lowercase().contains("stage"), "{text}");
    let json = cluster.run(1, &["explain", &joined, "--format", "json"]).await.unwrap().success().unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let stages = json["stages"].as_array().unwrap();
    assert_eq!(stages.len(), graph.stages.len(), "{json}");
    assert!(stages.iter().any(|stage| stage["single_because"] == reason.as_str()), "{json}");
}

/// The table is several times the nodes' memory; what does not fit goes to their disks, and goes away.
#[tokio::test(flavor = "multi_thread")]
async fn data_beyond_memory_is_spilled_and_freed() {
    let cluster = cluster().nodes(2).memory("32MiB").start().await.unwrap();
    let mesh = cluster.client(0).await.unwrap();
    let tables = Tables::new().with("lineitem", lineitem(cluster.dir(), 0.1).unwrap());
    let query = "SELECT * FROM {lineitem} ORDER BY l_comment, l_orderkey, l_linenumber";
    let job = mesh.sql(tables.for_floe(query)).await.unwrap();
    let found = job.collect().await.unwrap();
    let spilled = async |holds: fn(u64) -> bool| {
        let status = mesh.status().await.unwrap();
        let spilled = status.nodes.iter().map(|node| node.load.spilled_bytes).sum();
        holds(spilled).then_some(())
    };
    wait_until("a node says that it has spilled", DEADLINE, async || spilled(|bytes| bytes > 0).await)
        .await
        .unwrap();
    same_rows(&found, &tables.run(query).unwrap(), true).unwrap();
    job.release().await.unwrap();
    wait_until("nothing is spilled any more", DEADLINE, async || spilled(|bytes| bytes == 0).await)
        .await
        .unwrap();
}
