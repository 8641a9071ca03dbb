//! Several machines, played by network namespaces joined by a bridge: tickets, and mDNS.
//!
//! They need root and Linux; elsewhere they say that they were skipped, and why.

use std::fs;
use std::path::Path;

use floe_scenarios::harness::{DEADLINE, Floe, Network, Node, Unavailable, wait_until};
use serde_json::Value;

use crate::FLOE;

/// Machines on one network, or nothing where this machine doesn't let us make one.
#[expect(clippy::print_stderr, reason = "whoever runs the tests should see what was skipped")]
fn network(machines: usize) -> Option<Network> {
    match Network::new(machines) {
        Ok(network) => Some(network),
        Err(reason) if reason.is::<Unavailable>() => {
            eprintln!("skipped: {reason:#}");
            None
        }
        Err(error) => panic!("{error:#}"),
    }
}

/// `floe` on this machine.
fn floe(network: &Network, machine: usize) -> Floe {
    network.floe(FLOE, machine)
}

/// A node on this machine, ready.
async fn up(network: &Network, machine: usize, args: &[&str]) -> Node {
    let home = network.home(machine);
    let mut node = Node::spawn(floe(network, machine), &home, args.iter().copied()).unwrap();
    node.ready().await.unwrap();
    node
}

/// Waits until the node on this machine sees that many alive and a leader among them.
async fn sees(network: &Network, machine: usize, nodes: usize, args: &[&str]) -> Value {
    let args: Vec<&str> = ["status", "--format", "json"].iter().chain(args).copied().collect();
    wait_until("the machines are one mesh", DEADLINE, async || {
        let text = floe(network, machine).run(&args).await.unwrap().success().ok()?;
        let status: Value = serde_json::from_str(&text).unwrap();
        let alive = status["nodes"].as_array()?.iter().filter(|node| node["alive"] == true).count();
        (alive == nodes && status["leader"].is_string()).then_some(status)
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_all_another_machine_needs() {
    let Some(machines) = network(2) else { return };
    let _first = up(&machines, 0, &["--lan"]).await;
    let ticket = floe(&machines, 0).run(["invite"]).await.unwrap().success().unwrap();
    let ticket = ticket.lines().find(|line| line.starts_with("floe")).expect("a ticket on a line of its own");
    let _second = up(&machines, 1, &[ticket]).await;
    let status = sees(&machines, 1, 2, &[]).await;
    let text = status.to_string();
    assert!(
        (0..2).all(|machine| text.contains(&machines.address(machine))),
        "both are known by their addresses: {text}"
    );
    let one = floe(&machines, 1).run(["sql", "SELECT 1 AS one", "--format", "csv"]).await.unwrap();
    assert_eq!(one.success().unwrap(), "one\n1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_with_one_key_find_each_other_by_mdns() {
    let Some(machines) = network(3) else { return };
    let key = machines.dir().join("key");
    fs::write(&key, floe(&machines, 0).run(["key"]).await.unwrap().success().unwrap()).unwrap();
    let args = ["--lan", "--key-file", path(&key)];
    let _nodes = futures::future::join_all((0..3).map(|machine| up(&machines, machine, &args))).await;
    let status = sees(&machines, 2, 3, &["--key-file", path(&key)]).await;
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3, "{status}");
}

/// Without `--lan` nothing is heard of a node beyond its machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_node_keeps_to_its_machine() {
    let Some(machines) = network(2) else { return };
    let key = machines.dir().join("key");
    fs::write(&key, floe(&machines, 0).run(["key"]).await.unwrap().success().unwrap()).unwrap();
    let mut first = up(&machines, 0, &["--key-file", path(&key)]).await;
    let _second = up(&machines, 1, &["--lan", "--key-file", path(&key)]).await;
    assert!(first.address().starts_with("/ip4/127.0.0.1/"), "{}", first.address());
    // Nobody answers on its port from the other machine.
    let elsewhere = format!("/ip4/{}/tcp/{}", machines.address(0), first.port().unwrap());
    let run =
        floe(&machines, 1).run(["status", "--connect", &elsewhere, "--key-file", path(&key)]).await.unwrap();
    run.failure().unwrap();
    assert_eq!(
        sees(&machines, 0, 1, &["--key-file", path(&key)]).await["nodes"].as_array().unwrap().len(),
        1
    );
    first.kill().await.unwrap();
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
