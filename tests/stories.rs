//! A short pass of every story that `cargo run -p floe-scenarios -- run` plays at length: one round each, on a
//! fixed seed.

use floe_scenarios::stories::{self, Order};

use crate::FLOE;

/// Plays one round; a round that goes wrong is shown whole.
#[expect(clippy::print_stderr, reason = "whoever runs the tests should see what was skipped")]
async fn plays(name: &str, nodes: Option<usize>) {
    let order = Order { floe: FLOE.into(), nodes, rounds: 1, seed: 1 };
    let report = stories::play(stories::find(name).unwrap(), &order, |_| {}).await.unwrap();
    let round = &report.rounds[0];
    if let Some(reason) = &round.skipped {
        eprintln!("skipped: {reason}");
    }
    assert!(report.sound, "{round}");
}

macro_rules! stories {
    ($($test:ident: $name:literal, $nodes:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            plays($name, $nodes).await;
        }
    )*};
}

stories! {
    leader_killed: "leader-killed", None;
    leader_leaves: "leader-leaves", None;
    worker_killed: "worker-killed", None;
    k_of_n_killed: "k-of-n-killed", None;
    rolling: "rolling", None;
    leader_paused: "leader-paused", None;
    worker_paused: "worker-paused", None;
    network_cut: "network-cut", Some(3);
    node_joins: "node-joins", None;
    data_wiped: "data-wiped", None;
    disk_full: "disk-full", None;
    corrupted_partition: "corrupted-partition", None;
    driver_node_killed: "driver-node-killed", None;
    driver_killed_and_back: "driver-killed-and-back", None;
    three_boot_at_once: "simultaneous-boot", Some(3);
    five_boot_at_once: "simultaneous-boot", Some(5);
    quorum_lost: "quorum-lost", None;
    mesh_of_two: "mesh-of-two", None;
    two_cut: "two-cut", None;
}

#[tokio::test]
async fn too_few_nodes_are_refused() {
    let order = Order { floe: FLOE.into(), nodes: Some(2), rounds: 1, seed: 1 };
    let error = stories::play(stories::find("rolling").unwrap(), &order, |_| {}).await.unwrap_err();
    assert_eq!(error.to_string(), "2 nodes are too few for rolling: it needs at least 3");
}
