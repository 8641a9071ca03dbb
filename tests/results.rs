//! Results wait for their drivers, whatever else the mesh does; and what is gone says why.

use std::time::Duration;

use floe_client::{Error, Failure, Job, JobId, Mesh, Query};
use floe_protocol::{JobKind, JobPhase, JobSpec, WhyFreed};
use floe_scenarios::harness::Cluster;
use futures::{StreamExt, TryStreamExt};

use crate::cluster;

/// Jobs that end after the one that is looked at: more than a mesh used to keep.
const OTHERS: u64 = 300;

fn query(text: &str, label: String) -> JobSpec {
    let query = Query::Sql { text: text.to_owned(), tables: Default::default(), directory: String::new() };
    JobSpec { label, kind: JobKind::Query(query) }
}

async fn rows(job: &Job) -> Result<u64, Error> {
    let mut batches = job.stream().await?;
    let mut rows = 0;
    while let Some(batch) = batches.try_next().await? {
        rows += batch.num_rows() as u64;
    }
    Ok(rows)
}

/// A client that gives up soon, as its user wants to hear what a mesh says that cannot.
async fn hasty(cluster: &Cluster, node: usize) -> Mesh {
    let key = std::fs::read_to_string(cluster.key_file()).unwrap().trim().parse().unwrap();
    let builder =
        Mesh::builder().key(key).address(cluster.nodes()[node].address()).timeout(Duration::from_secs(2));
    builder.connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_outlasts_hundreds_of_others_and_one_that_is_gone_says_why() {
    let cluster = cluster().nodes(2).start().await.unwrap();
    let mesh = cluster.client(0).await.unwrap();
    let first = mesh.submit(query("SELECT 1 AS a UNION ALL SELECT 2", "first".to_owned())).await.unwrap();
    let submits = (0..OTHERS).map(|n| mesh.submit(query("SELECT 1 AS a", format!("other {n}"))));
    let others: Vec<Job> = futures::stream::FuturesUnordered::from_iter(submits).try_collect().await.unwrap();
    for job in &others {
        assert_eq!(job.wait().await.unwrap().phase, JobPhase::Succeeded);
    }
    // In any order, through any node, each is there.
    let other = cluster.client(1).await.unwrap();
    assert_eq!(rows(&other.job(first.id())).await.unwrap(), 2);
    for job in &others {
        assert_eq!(rows(job).await.unwrap(), 1);
    }

    let gone = |error: Error| match error {
        Error::Failure(Failure::Freed { job, freed }) => (job, freed.why),
        other => panic!("{other:?}"),
    };
    first.release().await.unwrap();
    for job in [&first, &other.job(first.id())] {
        assert_eq!(job.status().await.unwrap().phase, JobPhase::Succeeded, "its history is here");
        assert_eq!(gone(rows(job).await.unwrap_err()), (first.id(), WhyFreed::Released));
        let partitions: Result<Vec<_>, _> = job.partitions().try_collect().await;
        assert_eq!(gone(partitions.unwrap_err()), (first.id(), WhyFreed::Released));
    }
    // Submitted again by somebody who did not hear of its end, it does not begin anew.
    mesh.submit_as(first.id(), query("SELECT 1 AS a UNION ALL SELECT 2", "first".to_owned())).await.unwrap();
    assert_eq!(gone(rows(&first).await.unwrap_err()).1, WhyFreed::Released);
    let unknown = mesh.job(JobId(1)).status().await.unwrap_err();
    assert!(matches!(unknown, Error::Failure(Failure::NoSuchJob { job: JobId(1) })), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_mesh_refuses_new_jobs_keeps_its_results_and_hands_them_to_a_node_that_joins() {
    let mut cluster = cluster().nodes(1).start().await.unwrap();
    let mesh = hasty(&cluster, 0).await;
    // What a query says is not in the log, so that labels fill it sooner.
    let large = |n: usize| query("SELECT 1 AS a", format!("{n} {}", "x".repeat(16 << 10)));
    let mut submits = futures::stream::iter(0..).map(|n| mesh.submit(large(n))).buffered(64);
    let mut kept = Vec::new();
    let failure = loop {
        match submits.next().await.unwrap() {
            Ok(job) => kept.push(job),
            Err(Error::Unavailable { failure, .. }) => break failure,
            Err(other) => panic!("{other:?}"),
        }
        assert!(kept.len() < 10_000, "there is a limit");
    };
    drop(submits);
    let Failure::Busy { message, retry_ms } = &failure else { panic!("{failure:?}") };
    assert!(message.contains("results wait to be collected") && *retry_ms > 0, "{message}");
    assert!(kept.len() > 1_000, "{} results have room", kept.len());
    // Many calls at once that hear so do not each connect anew.
    assert!(!cluster.nodes()[0].log().contains("refused a connection"), "{}", cluster.nodes()[0].log());
    for job in kept.iter().step_by(100).take(5) {
        assert_eq!(rows(job).await.unwrap(), 1);
    }
    // More than those that were on their way may take.
    for job in &kept[1..100] {
        job.release().await.unwrap();
    }
    mesh.submit(large(10_000)).await.unwrap();

    // A node that joins is given all of it, though no frame holds that much, and goes on with it alone.
    cluster.add().await.unwrap();
    cluster.settled().await.unwrap();
    cluster.node(0).kill().await.unwrap();
    let mesh = cluster.client(1).await.unwrap();
    for job in kept.iter().step_by(100) {
        mesh.job(job.id()).status().await.unwrap();
    }
}
