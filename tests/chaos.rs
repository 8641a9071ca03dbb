//! Everything goes wrong at random: the scenario on nodes of its own, and `floe chaos` on a mesh of the user's.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use floe_protocol::message::{Fault, Request, Response};
use floe_scenarios::chaos::Chaos;
use floe_scenarios::harness::Cluster;
use floe_scenarios::reference::same_rows;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

use crate::workload::{flights, half_done, slow_query};
use crate::{FLOE, cluster, connection};

/// How long anything may take that is waited for.
const DEADLINE: Duration = floe_scenarios::harness::DEADLINE;

/// A short pass of what `cargo run -p floe-scenarios -- chaos` plays for as long as one wants.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_wrong_or_contradictory_in_chaos() {
    let chaos = Chaos { seed: 3, time: Duration::from_secs(15), nodes: 3 };
    let report = chaos.play(Path::new(FLOE)).await.unwrap();
    assert!(!report.faults.is_empty(), "{report}");
    report.verdict().unwrap_or_else(|error| panic!("{error:#}\n{report}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_users_monkey_asks_first_and_hits_only_who_is_there() {
    let cluster = cluster().nodes(3).start().await.unwrap();
    let failure = async |args: &[&str]| cluster.run(0, args).await.unwrap().failure().unwrap();
    let unasked = failure(&["chaos"]).await;
    assert!(unasked.contains("--yes") && unasked.contains("node-"), "{unasked}");
    let unknown = failure(&["chaos", "nobody", "--yes"]).await;
    for word in ["`nobody`", "node-0", "node-1"] {
        assert!(unknown.contains(word), "{word}: {unknown}");
    }
    for time in ["soon", "0s", "60"] {
        let refused = failure(&["chaos", "--yes", "--time", time]).await;
        assert!(refused.contains(time) && refused.contains("time"), "{refused}");
    }
    let refused = failure(&["chaos", "--yes", "--seed", "x"]).await;
    assert!(refused.contains("--seed"), "{refused}");
    // None of these nodes' owners has agreed to that.
    let refused = failure(&["chaos", "node-1", "--yes", "--time", "60s"]).await;
    assert!(refused.contains("none of these nodes takes faults; node-1"), "{refused}");
    assert!(refused.contains("floe up --allow-chaos"), "{refused}");
    cluster.settled().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_refuses_faults_beyond_its_limits() {
    let mut cluster = cluster().nodes(1).allow_chaos().start().await.unwrap();
    // Without its only node the mesh is nothing.
    let refused = cluster.run(0, &["chaos", "--yes"]).await.unwrap().failure().unwrap();
    assert!(refused.contains("start more nodes"), "{refused}");
    let connection = connection(&mut cluster, 0).await;
    for fault in
        [Fault::Pause { pause_ms: u64::MAX }, Fault::Pause { pause_ms: 0 }, Fault::Crash { down_ms: 1 }]
    {
        match connection.call(&Request::Fault(fault), DEADLINE).await.unwrap().0 {
            Response::Failed(failure) => {
                assert!(failure.to_string().contains("ms, not for"), "{failure}");
            }
            other => panic!("{fault:?}: {other:?}"),
        }
    }
    cluster.settled().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_outlives_the_users_monkey() {
    let mut cluster = cluster().nodes(3).allow_chaos().start().await.unwrap();
    let tables = flights(cluster.dir(), "parquet");
    let mesh = cluster.client(0).await.unwrap();
    let before = cluster.status(0).await.unwrap();
    let job = half_done(&mesh, &tables).await;
    // The first fault of this seed is a crash, within a second.
    let told = cluster.run(0, &["chaos", "--yes", "--time", "2s", "--seed", "101"]).await.unwrap();
    let told = told.success().unwrap();
    for words in ["crash: node-", "is back after", "the mesh is whole again", "crashes: "] {
        assert!(told.contains(words), "{words}: {told}");
    }
    same_rows(&job.collect().await.unwrap(), &tables.run(&slow_query()).unwrap(), false).unwrap();
    // It has crashed indeed: every node runs under the process id that it had, and one has started again.
    let after = mesh.status().await.unwrap();
    let starts = |status: &floe_protocol::message::Status| -> u64 {
        status.nodes.iter().map(|node| node.member.incarnation.number).sum()
    };
    assert!(starts(&after) > starts(&before), "{told}");
    for node in cluster.nodes_mut() {
        assert!(!node.has_ended().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_stops_the_users_monkey_and_leaves_the_mesh_whole() {
    let cluster = cluster().nodes(3).allow_chaos().start().await.unwrap();
    let args = cluster.args(0, &["chaos", "--yes", "--time", "10min", "--seed", "11"]);
    let mut monkey = cluster.floe().command(args).stderr(Stdio::inherit()).spawn().unwrap();
    let mut lines = BufReader::new(monkey.stdout.take().unwrap()).lines();
    let mut told = String::new();
    let mut hear = async |words: &str| {
        while let Some(line) = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap() {
            told += &line;
            told += "\n";
            if line.contains(words) {
                return;
            }
        }
        panic!("`{words}` was not told: {told}");
    };
    hear("pause: node-").await;
    kill(Pid::from_raw(monkey.id().unwrap().try_into().unwrap()), Signal::SIGINT).unwrap();
    hear("is back after").await;
    hear("the mesh is whole again").await;
    let status = timeout(DEADLINE, monkey.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(130), "what shells expect of Ctrl-C");
    all_go_on(&cluster).await;
}

/// No node stands still.
async fn all_go_on(cluster: &Cluster) {
    for i in 0..cluster.len() {
        cluster.status(i).await.unwrap();
    }
    cluster.settled().await.unwrap();
}
