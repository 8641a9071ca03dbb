//! Queries that are too much: deep ones are answered, or refused in a sentence, and one that ends whatever process runs
//! it takes one node with it, and no more.

use floe_client::Mesh;
use floe_protocol::{Failure, JobPhase};
use floe_scenarios::harness::{Cluster, DEADLINE, wait_until};
use polars::prelude::*;

use crate::cluster;
use crate::workload::ended;

/// Rows that want more memory than there are addresses, at once: the allocator ends the process.
fn deadly() -> LazyFrame {
    let most = col("x") * lit(10_i64.pow(17));
    let frame = df!("x" => [1_i64, 2, 3]).unwrap().lazy();
    frame.select([int_ranges(lit(0), most, lit(1), DataType::Int64).alias("numbers")])
}

async fn works(mesh: &Mesh) {
    let frame = df!("x" => [1_i64, 2]).unwrap().lazy().select([col("x").sum()]);
    let found = mesh.collect(frame).await.unwrap();
    assert_eq!(found.column("x").unwrap().i64().unwrap().get(0), Some(3));
}

/// The one node that has ended, when there is one.
async fn died(cluster: &mut Cluster) -> usize {
    wait_until("a node dies of the query", DEADLINE, async || {
        cluster.nodes_mut().iter_mut().position(|node| node.has_ended().unwrap())
    })
    .await
    .unwrap()
}

fn crashed(phase: &JobPhase) -> &str {
    match phase {
        JobPhase::Failed(Failure::Crashed { how, .. }) => how,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadly_query_costs_one_node_of_three_and_stays_failed() {
    let mut cluster = cluster().nodes(3).slots(1).start().await.unwrap();
    let leader = cluster.leader().await.unwrap();
    let mesh = cluster.client((leader + 1) % 3).await.unwrap();
    let job = mesh.submit_lazy(deadly()).await.unwrap();
    let status = ended(&job).await;
    assert!(crashed(&status.phase).contains("signal"), "{status:?}");
    let lost = died(&mut cluster).await;
    works(&mesh).await;
    cluster.node(lost).restart().await.unwrap();
    cluster.settled().await.unwrap();
    // Nobody runs it again: all of the nodes are there, and have another job done.
    works(&mesh).await;
    crashed(&job.status().await.unwrap().phase);
    assert!(cluster.nodes_mut().iter_mut().all(|node| !node.has_ended().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_does_not_die_twice_of_one_query() {
    let mut cluster = cluster().nodes(1).start().await.unwrap();
    let mesh = cluster.client(0).await.unwrap();
    let job = mesh.submit_lazy(deadly()).await.unwrap();
    let id = job.id();
    died(&mut cluster).await;
    cluster.node(0).restart().await.unwrap();
    let mesh = cluster.client(0).await.unwrap();
    let status = ended(&mesh.job(id)).await;
    assert!(crashed(&status.phase).contains("signal"), "{status:?}");
    works(&mesh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_queries_of_every_driver_are_answered_or_refused() {
    let mut cluster = cluster().nodes(1).start().await.unwrap();
    let ors = |n: usize| (0..n).map(|i| format!("x = {i}")).collect::<Vec<_>>().join(" OR ");
    let statement = |n: usize| format!("SELECT COUNT(*) AS n FROM (SELECT 7 AS x) AS t WHERE {}", ors(n));
    let sql = |n: usize| vec!["sql".to_owned(), statement(n), "--format".to_owned(), "csv".to_owned()];
    let run = async |cluster: &Cluster, args: Vec<String>| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        cluster.run(0, &args).await.unwrap()
    };
    assert_eq!(run(&cluster, sql(1_500)).await.success().unwrap(), "n\n1\n");
    let explained = run(&cluster, vec!["explain".to_owned(), statement(1_500)]).await.success().unwrap();
    assert!(explained.contains("stage 0"), "{explained}");
    for args in [sql(4_000), vec!["explain".to_owned(), statement(4_000)]] {
        let said = run(&cluster, args).await.failure().unwrap();
        assert!(said.contains("too deep: more than"), "{said}");
    }

    let mesh = cluster.client(0).await.unwrap();
    let rows = || df!("x" => [1_i64, 2, 3]).unwrap().lazy();
    let steps = |n: usize| (0..n).fold(rows(), |frame, _| frame.with_column(col("x") + lit(1)));
    let found = mesh.collect(steps(2_000)).await.unwrap();
    assert_eq!(found.column("x").unwrap().i64().unwrap().get(0), Some(2_001));
    let said = mesh.collect(steps(12_000)).await.unwrap_err().to_string();
    assert!(said.contains("too deep: more than"), "{said}");
    works(&mesh).await;
    assert!(!cluster.node(0).has_ended().unwrap());
}
