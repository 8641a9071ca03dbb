//! Nodes become one mesh, leave it and come back.

use std::collections::BTreeSet;
use std::fs;

use floe_protocol::NodeId;
use floe_protocol::message::Status;
use floe_scenarios::harness::{DEADLINE, Node, wait_until};
use futures::future::join_all;
use serde_json::Value;

use crate::{cluster, floe};

#[tokio::test(flavor = "multi_thread")]
async fn one_known_address_makes_three_nodes_one_mesh() {
    let cluster = cluster().nodes(3).memory("256MiB").start().await.unwrap();
    let leader = cluster.leader().await.unwrap();
    for i in 0..3 {
        let text = cluster.run(i, &["status", "--format", "json"]).await.unwrap().success().unwrap();
        let status: Value = serde_json::from_str(&text).unwrap();
        let nodes = status["nodes"].as_array().unwrap();
        assert_eq!(nodes.len(), 3, "{text}");
        for node in nodes {
            assert!(node["name"].as_str().unwrap().starts_with("node-"), "{text}");
            assert!(node["address"].as_str().unwrap().starts_with("/ip4/127.0.0.1/tcp/"), "{text}");
            assert_eq!(node["alive"], true, "{text}");
            assert_eq!(node["slots"], 1, "{text}");
            assert_eq!(node["memory_bytes"], 256 << 20, "{text}");
            assert_eq!(node["version"], env!("CARGO_PKG_VERSION"), "{text}");
            let leads = node["id"] == status["leader"];
            assert_eq!(node["role"], if leads { "leader" } else { "voter" }, "{text}");
            assert_eq!(leads, node["name"] == format!("node-{leader}"), "{text}");
        }
        let ids: BTreeSet<&str> = nodes.iter().map(|node| node["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), 3, "{text}");
        let table = cluster.run(i, &["status"]).await.unwrap().success().unwrap();
        assert!((0..3).all(|n| table.contains(&format!("node-{n}"))) && table.contains("leader"), "{table}");
    }
}

/// Three plain `floe up` need no flag, and neither does a command.
#[tokio::test(flavor = "multi_thread")]
async fn plain_nodes_of_one_user_find_each_other() {
    let home = tempfile::tempdir().unwrap();
    let floe = floe(home.path());
    let mut nodes: Vec<Node> = (0..3)
        .map(|i| Node::spawn(floe.clone(), &home.path().join(format!("out-{i}")), [""; 0]).unwrap())
        .collect();
    for ready in join_all(nodes.iter_mut().map(Node::ready)).await {
        ready.unwrap();
    }
    let status = wait_until("three plain nodes are one mesh", DEADLINE, async || {
        let text = floe.run(["status", "--format", "json"]).await.unwrap().success().ok()?;
        let status: Value = serde_json::from_str(&text).unwrap();
        let alive = status["nodes"].as_array()?.iter().filter(|node| node["alive"] == true).count();
        (alive == 3 && status["leader"].is_string()).then_some(status)
    })
    .await
    .unwrap();
    let addresses: BTreeSet<&str> =
        status["nodes"].as_array().unwrap().iter().map(|node| node["address"].as_str().unwrap()).collect();
    assert_eq!(addresses, nodes.iter().map(Node::address).collect());
    assert!(addresses.iter().all(|address| address.starts_with("/ip4/127.0.0.1/")), "{addresses:?}");
    let one = floe.run(["sql", "SELECT 1 AS one", "--format", "csv"]).await.unwrap().success().unwrap();
    assert_eq!(one, "one\n1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_started_at_once_found_one_mesh() {
    let cluster = cluster().nodes(3).discover().start().await.unwrap();
    let mut meshes = BTreeSet::new();
    for i in 0..3 {
        meshes.insert(cluster.status(i).await.unwrap().era.unwrap());
    }
    assert_eq!(meshes.len(), 1);
}

/// Who is a member, by id and name.
fn who(status: &Status) -> BTreeSet<(NodeId, String)> {
    status.nodes.iter().map(|node| (node.member.id, node.member.name.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_nodes_come_back_as_themselves() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    let before = cluster.status(0).await.unwrap();
    for round in 0..2 {
        // One at a time first, then all at once: nothing but the disks remembers the mesh.
        if round == 0 {
            cluster.node(1).restart().await.unwrap();
        } else {
            for i in 0..3 {
                cluster.node(i).kill().await.unwrap();
            }
            for ready in join_all(cluster.nodes_mut().iter_mut().map(Node::restart)).await {
                ready.unwrap();
            }
        }
        cluster.settled().await.unwrap();
        let after = cluster.status(1).await.unwrap();
        assert_eq!((after.era, who(&after)), (before.era, who(&before)));
        assert!(after.term >= before.term, "{} after {}", after.term, before.term);
    }
    let one = cluster.run(2, &["sql", "SELECT 1 AS one", "--format", "csv"]).await.unwrap();
    assert_eq!(one.success().unwrap(), "one\n1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_asked_to_stop_hands_over() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    let first = cluster.leader().await.unwrap();
    let status = cluster.node(first).terminate().await.unwrap();
    assert!(status.success(), "{status}");
    let second = cluster.leader().await.unwrap();
    assert_ne!(second, first);
    let left = cluster.status(second).await.unwrap();
    let gone = cluster.id_of(&left, first);
    // It is either no member any more, or known to be away.
    assert!(left.nodes.iter().all(|node| Some(node.member.id) != gone || !node.alive), "{left:?}");
    let one = cluster.run(second, &["sql", "SELECT 1 AS one", "--format", "csv"]).await.unwrap();
    assert_eq!(one.success().unwrap(), "one\n1\n");
}

/// Three laptops are closed one after the other and opened again: two of them had left the mesh.
#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_was_stopped_node_by_node_comes_back() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    let before = cluster.status(0).await.unwrap();
    for node in cluster.nodes_mut() {
        assert!(node.terminate().await.unwrap().success());
    }
    for ready in join_all(cluster.nodes_mut().iter_mut().map(Node::restart)).await {
        ready.unwrap();
    }
    cluster.settled().await.unwrap();
    let after = cluster.status(1).await.unwrap();
    assert_eq!((after.era, who(&after)), (before.era, who(&before)));
    let one = cluster.run(0, &["sql", "SELECT 1 AS one", "--format", "csv"]).await.unwrap();
    assert_eq!(one.success().unwrap(), "one\n1\n");
}

/// With one voter of three dead, the mesh still bears that another leaves in good order.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_node_goes_on_after_a_death_and_a_leave() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    cluster.node(0).kill().await.unwrap();
    let status = cluster.node(1).terminate().await.unwrap();
    assert!(status.success(), "{status}");
    let one = cluster.run(2, &["sql", "SELECT 1 AS one", "--format", "csv"]).await.unwrap();
    assert_eq!(one.success().unwrap(), "one\n1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_key_is_refused_and_the_log_says_so() {
    let mut cluster = cluster().nodes(1).start().await.unwrap();
    let key = cluster.dir().join("other-key");
    fs::write(&key, cluster.floe().run(["key"]).await.unwrap().success().unwrap()).unwrap();
    let data = cluster.dir().join("stranger");
    let address = cluster.node(0).address().to_owned();
    let stranger = cluster
        .floe()
        .run([
            "up",
            "--join",
            &address,
            "--key-file",
            &key.to_string_lossy(),
            "--data-dir",
            &data.to_string_lossy(),
        ])
        .await
        .unwrap()
        .failure()
        .unwrap();
    assert!(stranger.contains("key"), "{stranger}");
    wait_until("the node's log names the refused key", DEADLINE, async || {
        cluster.node(0).log().contains("key").then_some(())
    })
    .await
    .unwrap();
    assert_eq!(cluster.status(0).await.unwrap().nodes.len(), 1);
}
