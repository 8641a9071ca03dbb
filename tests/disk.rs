//! Disks that fill up: work goes, voters stay.

use floe_client::function::{Argument, Format, FunctionInput, FunctionJob, Limits};
use floe_client::{Job, Mesh};
use floe_protocol::{Failure, JobPhase};
use floe_scenarios::harness::{Cluster, DEADLINE, Unavailable, wait_until};

use crate::{cluster, shell};

/// The size of each node's disk. Most of it is the log's from the start.
const DISK_BYTES: u64 = 112 << 20;

/// Tasks that make 6 MB each, which is more than all disks and memories hold.
async fn submit_flood(mesh: &Mesh, tasks: usize) -> Job {
    let script = "echo text; head -c 4500000 /dev/urandom | base64 -w 1000";
    let limits = Limits { memory_bytes: Some(256 << 20), time_ms: None };
    let function = shell("flood", script, Format::Csv, limits);
    let input = FunctionInput::Arguments(vec![Argument::None; tasks]);
    let spec = mesh.function_spec("flood", FunctionJob { function, input, merge: None }).await.unwrap();
    mesh.submit(spec).await.unwrap()
}

/// How many nodes say that their disk is short.
async fn short(cluster: &Cluster) -> Option<usize> {
    let running = (0..cluster.len()).find(|i| cluster.nodes()[*i].runs())?;
    let status = cluster.status(running).await.ok()?;
    Some(status.nodes.iter().filter(|node| node.alive && node.load.disk_short).count())
}

async fn count_to_three(mesh: &Mesh) {
    let job = mesh.sql("SELECT 1 + 2 AS three").await.unwrap();
    let frame = job.collect().await.unwrap();
    assert_eq!(frame.column("three").unwrap().get(0).unwrap().try_extract::<i64>().unwrap(), 3);
    job.release().await.unwrap();
}

/// A mesh on small disks, or nothing where there can be none.
#[expect(clippy::print_stderr, reason = "whoever runs the tests should see what was skipped")]
async fn on_small_disks(nodes: usize) -> Option<Cluster> {
    match cluster().nodes(nodes).small_disks(DISK_BYTES).memory("16MiB").start().await {
        Ok(cluster) => Some(cluster),
        Err(error) if error.is::<Unavailable>() => {
            eprintln!("skipped: {error:#}");
            None
        }
        Err(error) => panic!("{error:#}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_job_that_fills_all_disks_ends_in_a_sentence_and_the_mesh_lives() {
    let Some(mut cluster) = on_small_disks(3).await else { return };
    let mesh = cluster.client(0).await.unwrap();
    let job = submit_flood(&mesh, 60).await;
    let waiting = job.clone();
    let ended = tokio::spawn(async move { waiting.wait().await.unwrap().phase });
    wait_until("a node says that its disk is short", DEADLINE, async || {
        short(&cluster).await.filter(|short| *short > 0)
    })
    .await
    .unwrap();
    let told = cluster.run(0, &["status"]).await.unwrap().success().unwrap();
    assert!(told.contains("full, takes no work (") || ended.is_finished(), "{told}");
    let JobPhase::Failed(failure) = ended.await.unwrap() else { panic!("it fits") };
    let text = failure.to_string();
    assert!(matches!(&failure, Failure::Exhausted { what, .. } if what == "disk"), "{text}");
    assert!(text.contains("node-") && text.contains("free"), "{text}");
    for node in cluster.nodes_mut() {
        assert!(!node.has_ended().unwrap(), "a voter is gone");
    }
    // What it held goes, and with it the want of room.
    wait_until("no disk is short any more", DEADLINE, async || {
        short(&cluster).await.filter(|short| *short == 0)
    })
    .await
    .unwrap();
    count_to_three(&mesh).await;
    let leader = cluster.leader().await.unwrap();
    cluster.node(leader).kill().await.unwrap();
    cluster.leader().await.unwrap();
    count_to_three(&mesh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_is_full_votes_starts_again_and_takes_no_work() {
    let Some(mut cluster) = on_small_disks(1).await else { return };
    let mesh = cluster.client(0).await.unwrap();
    count_to_three(&mesh).await;
    cluster.small_disk(0).unwrap().fill().unwrap();
    wait_until("it says that its disk is short", DEADLINE, async || {
        short(&cluster).await.filter(|short| *short == 1)
    })
    .await
    .unwrap();
    // Its log goes on: only the log is written to for this.
    let cancelled = cluster.run(0, &["cancel", "00000000000000ab"]).await.unwrap().failure().unwrap();
    assert!(cancelled.contains("no job 00000000000000ab"), "{cancelled}");
    cluster.node(0).restart().await.unwrap();
    assert_eq!(short(&cluster).await, Some(1));
    let mesh = cluster.client(0).await.unwrap();
    let waits = tokio::spawn(async move { count_to_three(&mesh).await });
    cluster.small_disk(0).unwrap().free().unwrap();
    // It was refused for now, and is taken when there is room.
    tokio::time::timeout(DEADLINE, waits).await.unwrap().unwrap();
    assert_eq!(short(&cluster).await, Some(0));
}
