//! What jobs are made of lies in files beside the log: on every voter, for as long as the job is there.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;

use floe_client::function::{Argument, Format, FunctionInput, FunctionJob, Limits};
use floe_client::{Failure, Job, Mesh};
use floe_protocol::JobPhase;
use floe_scenarios::harness::{Cluster, DEADLINE, Node, wait_until};
use futures::TryStreamExt;
use futures::future::join_all;

use crate::{cluster, shell};

/// How many tasks a job has.
const TASKS: usize = 6;

/// A job whose tasks wait at a gate, and each put out a row. Its plan is longer than what the log takes.
async fn submit(mesh: &Mesh, cluster: &Cluster, label: &str) -> Job {
    let gate = cluster.dir().join("gate");
    let script = format!(
        "while [ ! -e {} ]; do sleep 0.1; done; echo '{{\"a\": 1}}' # {}",
        gate.display(),
        label.repeat(10_000)
    );
    let function = shell("row", &script, Format::Ndjson, Limits::default());
    let input = FunctionInput::Arguments(vec![Argument::None; TASKS]);
    mesh.run_function(label, FunctionJob { function, input, merge: None }).await.unwrap()
}

async fn rows(job: &Job) -> usize {
    let batches: Vec<_> = job.stream().await.unwrap().try_collect().await.unwrap();
    batches.iter().map(|batch| batch.num_rows()).sum()
}

/// The names of the files of plans on a node.
fn plans(cluster: &Cluster, node: usize) -> BTreeSet<OsString> {
    let files = fs::read_dir(cluster.data_dir(node).join("blobs")).unwrap();
    files.map(|file| file.unwrap().file_name()).collect()
}

fn lose_plans(cluster: &Cluster, node: usize) {
    for plan in plans(cluster, node) {
        fs::remove_file(cluster.data_dir(node).join("blobs").join(plan)).unwrap();
    }
}

async fn restart_all(cluster: &mut Cluster) {
    for ready in join_all(cluster.nodes_mut().iter_mut().map(Node::restart)).await {
        ready.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_voter_has_the_plans_and_a_driver_sends_one_again_that_all_have_lost() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    cluster.settled().await.unwrap();
    let mesh = cluster.client(0).await.unwrap();
    let everywhere = async |cluster: &Cluster| {
        wait_until("the plan is on every voter", DEADLINE, async || {
            (0..3).all(|node| plans(cluster, node).len() == 1).then_some(())
        })
        .await
        .unwrap();
    };
    // A result without rows has its columns, also where they are too many for the log.
    let columns: Vec<_> = (0..400).map(|n| format!("{n} AS c{n}")).collect();
    let text = format!("SELECT {} WHERE 1 = 0", columns.join(", "));
    let output = cluster.run(1, &["sql", "--format", "csv", &text]).await.unwrap().success().unwrap();
    assert_eq!(output.trim().split(',').count(), 400, "{output}");
    everywhere(&cluster).await;
    (0..3).for_each(|node| lose_plans(&cluster, node));

    let job = submit(&mesh, &cluster, "a").await;
    everywhere(&cluster).await;

    // One that has lost it gets it again, though nobody asks it for anything.
    cluster.node(2).kill().await.unwrap();
    lose_plans(&cluster, 2);
    cluster.node(2).restart().await.unwrap();
    everywhere(&cluster).await;

    // After a power cut each of them goes on with its own.
    for node in cluster.nodes_mut() {
        node.kill().await.unwrap();
    }
    restart_all(&mut cluster).await;
    fs::write(cluster.dir().join("gate"), "").unwrap();
    let mesh = cluster.client(1).await.unwrap();
    let again = mesh.job(job.id());
    assert_eq!(again.wait().await.unwrap().phase, JobPhase::Succeeded);
    assert_eq!(rows(&again).await, TASKS);

    // What is nowhere is sent again by a driver that is there, and else the job says what happened.
    fs::remove_file(cluster.dir().join("gate")).unwrap();
    let waited_for = submit(&mesh, &cluster, "b").await;
    let left_alone = submit(&mesh, &cluster, "c").await.id();
    for node in cluster.nodes_mut() {
        node.kill().await.unwrap();
    }
    (0..3).for_each(|node| lose_plans(&cluster, node));
    let waiting = waited_for.clone();
    let waiting = tokio::spawn(async move { waiting.wait().await.unwrap().phase });
    restart_all(&mut cluster).await;
    fs::write(cluster.dir().join("gate"), "").unwrap();
    assert_eq!(waiting.await.unwrap(), JobPhase::Succeeded);
    assert_eq!(rows(&waited_for).await, TASKS);
    let ended = cluster.client(1).await.unwrap().job(left_alone).wait().await.unwrap().phase;
    let JobPhase::Failed(failure @ Failure::SubmissionLost { partition: None, .. }) = ended else {
        panic!("{ended:?}")
    };
    assert!(failure.to_string().contains("no node holds its plan any more"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_gets_a_vote_has_the_plans() {
    const JOBS: usize = 150;
    let mut cluster = cluster().nodes(1).start().await.unwrap();
    let mesh = cluster.client(0).await.unwrap();
    let labels: Vec<_> = (0..JOBS).map(|number| format!("job {number} ")).collect();
    let jobs = join_all(labels.iter().map(|label| submit(&mesh, &cluster, label))).await;
    let second = cluster.add().await.unwrap();
    wait_until("the second node votes", DEADLINE, async || {
        (cluster.status(0).await.ok()?.voters.len() == 2).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(plans(&cluster, second).len(), JOBS);

    // So the mesh may lose the first for good.
    cluster.node(0).kill().await.unwrap();
    fs::write(cluster.dir().join("gate"), "").unwrap();
    let mesh = cluster.client(second).await.unwrap();
    for job in jobs {
        assert_eq!(rows(&mesh.job(job.id())).await, TASKS);
    }
}
