//! Nodes die in the middle of a job, and the job does not.

use std::process::Stdio;
use std::time::Duration;

use floe_protocol::JobPhase;
use floe_scenarios::harness::{Cluster, DEADLINE, wait_until};
use floe_scenarios::reference::{Tables, same_rows};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster;
use crate::workload::{ended, flights, half_done, slow_query};

/// Three nodes with the flights cut into files, and who leads them.
async fn mesh_with_flights() -> (Cluster, Tables, usize) {
    let cluster = cluster().nodes(3).start().await.unwrap();
    let tables = flights(cluster.dir(), "parquet");
    let leader = cluster.leader().await.unwrap();
    (cluster, tables, leader)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_outlives_its_leader() {
    let (mut cluster, tables, leader) = mesh_with_flights().await;
    let mesh = cluster.client((leader + 1) % 3).await.unwrap();
    let job = half_done(&mesh, &tables).await;
    cluster.node(leader).kill().await.unwrap();
    let found = job.collect().await.unwrap();
    same_rows(&found, &tables.run(&slow_query()).unwrap(), false).unwrap();
    assert_ne!(cluster.leader().await.unwrap(), leader);
}

/// What the lost node had finished is made again.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_outlives_a_worker_and_its_partitions() {
    let (mut cluster, tables, leader) = mesh_with_flights().await;
    let mesh = cluster.client(leader).await.unwrap();
    let job = half_done(&mesh, &tables).await;
    cluster.node((leader + 1) % 3).kill().await.unwrap();
    let found = job.collect().await.unwrap();
    same_rows(&found, &tables.run(&slow_query()).unwrap(), false).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_goes_on_through_another_node() {
    let (mut cluster, tables, leader) = mesh_with_flights().await;
    let driver = (leader + 2) % 3;
    let mesh = cluster.client(driver).await.unwrap();
    let job = half_done(&mesh, &tables).await;
    cluster.node(driver).kill().await.unwrap();
    let found = job.collect().await.unwrap();
    same_rows(&found, &tables.run(&slow_query()).unwrap(), false).unwrap();
    // A second driver finds the job by its id, at any node.
    let other = cluster.client(leader).await.unwrap();
    assert_eq!(other.job(job.id()).status().await.unwrap().phase, JobPhase::Succeeded);
}

/// A stopped leader is not a dead one: it comes back believing that it still leads.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_slept_steps_back_into_line() {
    let (mut cluster, tables, leader) = mesh_with_flights().await;
    let mesh = cluster.client((leader + 1) % 3).await.unwrap();
    let job = half_done(&mesh, &tables).await;
    let before = mesh.status().await.unwrap();
    cluster.node(leader).stop().unwrap();
    // A node that has asked it for something turns to the next leader, and does not wait for its answer.
    let asked = tokio::time::timeout(Duration::from_secs(20), mesh.sql("SELECT 1 AS a")).await;
    asked.expect("it is asked of the next leader long before").unwrap();
    let status = mesh.status().await.unwrap();
    assert!(status.leader.is_some() && status.leader != before.leader, "{status:?}");
    cluster.node(leader).resume().unwrap();
    let found = job.collect().await.unwrap();
    same_rows(&found, &tables.run(&slow_query()).unwrap(), false).unwrap();
    cluster.settled().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupting_a_query_cancels_it_and_frees_what_it_held() {
    let (cluster, tables, leader) = mesh_with_flights().await;
    let mesh = cluster.client(leader).await.unwrap();
    let text = tables.for_floe(&slow_query());
    let mut driver = cluster
        .floe()
        .command(cluster.args((leader + 1) % 3, &["sql", &text]))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let job = wait_until("the job runs", DEADLINE, async || {
        let jobs = mesh.jobs().await.unwrap();
        jobs.iter()
            .find(|job| job.stages.iter().any(|stage| stage.done > 0))
            .map(|status| mesh.job(status.id))
    })
    .await
    .unwrap();
    let pid = Pid::from_raw(driver.id().unwrap().try_into().unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    let status = tokio::time::timeout(DEADLINE, driver.wait()).await.expect("the driver ends").unwrap();
    assert_eq!(status.code(), Some(130), "what shells expect of Ctrl-C");
    assert_eq!(ended(&job).await.phase, JobPhase::Cancelled);
    idle(&mesh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_listed_and_cancelled_by_its_id() {
    let (cluster, tables, leader) = mesh_with_flights().await;
    let mesh = cluster.client(leader).await.unwrap();
    let job = half_done(&mesh, &tables).await;
    let id = job.id().to_string();
    let table = cluster.run(0, &["jobs"]).await.unwrap().success().unwrap();
    assert!(table.contains(&id) && table.contains("running"), "{table}");
    cluster.run((leader + 1) % 3, &["cancel", &id]).await.unwrap().success().unwrap();
    assert_eq!(ended(&job).await.phase, JobPhase::Cancelled);
    let error = job.collect().await.unwrap_err().to_string();
    assert!(error.contains("cancelled"), "{error}");
    idle(&mesh).await;
    let json = cluster.run(1, &["jobs", "--format", "json"]).await.unwrap().success().unwrap();
    assert!(json.contains(&id) && json.contains("cancelled"), "{json}");
    serde_json::from_str::<serde_json::Value>(&json).unwrap();
}

/// Waits until no node runs a task or holds a partition.
async fn idle(mesh: &floe_client::Mesh) {
    wait_until("the nodes run nothing and hold nothing", DEADLINE, async || {
        let status = mesh.status().await.ok()?;
        let idle = |load: &floe_protocol::Load| {
            (load.running, load.memory_used_bytes, load.spilled_bytes) == (0, 0, 0)
        };
        status.nodes.iter().all(|node| idle(&node.load)).then_some(())
    })
    .await
    .unwrap();
}
