//! Several machines, played by network namespaces joined by a bridge: tickets, and mDNS.
//!
//! They need root and Linux; elsewhere they say that they were skipped, and why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use floe_scenarios::harness::{DEADLINE, Floe, Node, wait_until};
use serde_json::Value;
use tempfile::TempDir;

use crate::floe;

/// Machines on one network. Dropping it takes them down.
struct Network {
    name: String,
    machines: usize,
    homes: TempDir,
}

impl Network {
    /// A network of machines, or nothing where this machine doesn't let us make one. `subnet` is the third
    /// number of its addresses, its own for each test, since they run side by side.
    #[expect(clippy::print_stderr, reason = "whoever runs the tests should see what was skipped")]
    fn new(machines: usize, subnet: u8) -> Option<Self> {
        let name = format!("floe{}{subnet}", std::process::id() % 100_000);
        let homes = tempfile::tempdir().unwrap();
        let network = Self { name, machines, homes };
        match network.build(subnet) {
            Ok(()) => Some(network),
            Err(reason) => {
                eprintln!("skipped: this machine has no network namespaces for us: {reason}");
                None
            }
        }
    }

    fn build(&self, subnet: u8) -> Result<(), String> {
        // The bridge has a namespace of its own, so that nothing of the machine's own network is touched.
        let switch = self.namespace("switch");
        ip(&format!("netns add {switch}"))?;
        ip(&format!("-n {switch} link add bridge type bridge"))?;
        ip(&format!("-n {switch} link set bridge up"))?;
        for machine in 0..self.machines {
            let namespace = self.namespace(&machine.to_string());
            let address = format!("10.213.{subnet}.{}/24", machine + 1);
            ip(&format!("netns add {namespace}"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
            ip(&format!("-n {namespace} link add eth0 type veth peer name port{machine} netns {switch}"))?;
            ip(&format!("-n {namespace} addr add {address} dev eth0"))?;
            ip(&format!("-n {namespace} link set eth0 up"))?;
            // Multicast needs a route where there is no default one.
            ip(&format!("-n {namespace} route add default dev eth0"))?;
            ip(&format!("-n {switch} link set port{machine} master bridge up"))?;
        }
        Ok(())
    }

    fn namespace(&self, part: &str) -> String {
        format!("{}-{part}", self.name)
    }

    /// `floe` on this machine, with a home of its own.
    fn floe(&self, machine: usize) -> Floe {
        let namespace = self.namespace(&machine.to_string());
        floe(&self.home(machine)).through(["ip", "netns", "exec", &namespace])
    }

    fn home(&self, machine: usize) -> PathBuf {
        self.homes.path().join(machine.to_string())
    }

    /// A node on this machine, ready.
    async fn up(&self, machine: usize, args: &[&str]) -> Node {
        let mut node = Node::spawn(self.floe(machine), &self.home(machine), args.iter().copied()).unwrap();
        node.ready().await.unwrap();
        node
    }

    /// Waits until the node on this machine sees that many alive and a leader among them.
    async fn sees(&self, machine: usize, nodes: usize, args: &[&str]) -> Value {
        let args: Vec<&str> = ["status", "--format", "json"].iter().chain(args).copied().collect();
        wait_until("the machines are one mesh", DEADLINE, async || {
            let text = self.floe(machine).run(&args).await.unwrap().success().ok()?;
            let status: Value = serde_json::from_str(&text).unwrap();
            let alive = status["nodes"].as_array()?.iter().filter(|node| node["alive"] == true).count();
            (alive == nodes && status["leader"].is_string()).then_some(status)
        })
        .await
        .unwrap()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Deleting a namespace that was never made fails, and that is all right.
        for machine in 0..self.machines {
            let _ = ip(&format!("netns del {}", self.namespace(&machine.to_string())));
        }
        let _ = ip(&format!("netns del {}", self.namespace("switch")));
    }
}

fn ip(args: &str) -> Result<(), String> {
    let output =
        Command::new("ip").args(args.split_whitespace()).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {args}: {}", String::from_utf8_lossy(&output.stderr).trim_end()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_all_another_machine_needs() {
    let Some(network) = Network::new(2, 1) else { return };
    let _first = network.up(0, &["--lan"]).await;
    let ticket = network.floe(0).run(["invite"]).await.unwrap().success().unwrap();
    let ticket = ticket.lines().find(|line| line.starts_with("floe")).expect("a ticket on a line of its own");
    let _second = network.up(1, &[ticket]).await;
    let status = network.sees(1, 2, &[]).await;
    let text = status.to_string();
    assert!(
        text.contains("10.213.1.1") && text.contains("10.213.1.2"),
        "both are known by their addresses: {text}"
    );
    let one = network.floe(1).run(["sql", "SELECT 1 AS one", "--format", "csv"]).await.unwrap();
    assert_eq!(one.success().unwrap(), "one\n1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_with_one_key_find_each_other_by_mdns() {
    let Some(network) = Network::new(3, 2) else { return };
    let key = network.homes.path().join("key");
    fs::write(&key, network.floe(0).run(["key"]).await.unwrap().success().unwrap()).unwrap();
    let up = ["--lan", "--key-file", path(&key)];
    let _nodes = futures::future::join_all((0..3).map(|machine| network.up(machine, &up))).await;
    let status = network.sees(2, 3, &["--key-file", path(&key)]).await;
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3, "{status}");
}

/// Without `--lan` nothing is heard of a node beyond its machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_node_keeps_to_its_machine() {
    let Some(network) = Network::new(2, 3) else { return };
    let key = network.homes.path().join("key");
    fs::write(&key, network.floe(0).run(["key"]).await.unwrap().success().unwrap()).unwrap();
    let mut first = network.up(0, &["--key-file", path(&key)]).await;
    let _second = network.up(1, &["--lan", "--key-file", path(&key)]).await;
    assert!(first.address().starts_with("/ip4/127.0.0.1/"), "{}", first.address());
    // Nobody answers on its port from the other machine.
    let elsewhere = format!("/ip4/10.213.3.1/tcp/{}", first.port().unwrap());
    let run =
        network.floe(1).run(["status", "--connect", &elsewhere, "--key-file", path(&key)]).await.unwrap();
    run.failure().unwrap();
    assert_eq!(network.sees(0, 1, &["--key-file", path(&key)]).await["nodes"].as_array().unwrap().len(), 1);
    first.kill().await.unwrap();
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
