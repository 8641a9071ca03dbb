//! Nodes on machines of their own, whose network can be cut.
//!
//! They are played by network namespaces, one a machine, joined by a bridge, whose ports are moved to a second
//! bridge. There is no way to play it without them: nodes tell each other where they listen, so that a proxy
//! between two of them would be gone around.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde_json::Value;
use tokio::process::Child;
use tokio::time::timeout;

use super::evidence::LOG_FILTER;
use super::scene::{JOB_DEADLINE, same};
use super::{Props, Round};
use crate::harness::{DEADLINE, Floe, Network, Node, wait_until};
use crate::reference::scan;

/// A node on each machine of a network.
pub(super) struct Machines {
    // Before the network, so that no process is left in its namespaces.
    pub(super) nodes: Vec<Node>,
    floes: Vec<Floe>,
    key_file: String,
    pub(super) network: Network,
}

impl Machines {
    pub(super) async fn start(props: &Props, network: Network) -> Result<Self> {
        let floe = |machine| network.floe(&props.floe, machine).env("FLOE_LOG", LOG_FILTER);
        let floes: Vec<Floe> = (0..network.machines()).map(floe).collect();
        let key_file = network.dir().join("key");
        std::fs::write(&key_file, floes[0].run(["key"]).await?.success()?)?;
        let key_file = key_file.to_string_lossy().into_owned();
        let mut nodes: Vec<Node> = Vec::new();
        for (machine, floe) in floes.iter().enumerate() {
            let name = format!("node-{machine}");
            let listen = format!("/ip4/{}/tcp/0", network.address(machine));
            let mut args =
                vec!["--name", &name, "--listen", &listen, "--key-file", &key_file, "--slots", "1"];
            args.extend(match nodes.first() {
                None => ["--expect", "1"],
                Some(first) => ["--join", first.address()],
            });
            let dir = network.home(machine).join(&name);
            let mut node = Node::spawn(floe.clone(), &dir, args)?;
            if machine == 0 {
                node.ready().await?;
            }
            nodes.push(node);
        }
        try_join_all(nodes.iter_mut().map(Node::ready)).await?;
        Ok(Self { nodes, floes, key_file, network })
    }

    /// What a command prints as JSON that is asked of the node on this machine.
    pub(super) async fn json(&self, machine: usize, command: &[&str]) -> Result<Value> {
        let driver =
            ["--format", "json", "--connect", self.nodes[machine].address(), "--key-file", &self.key_file];
        let printed = self.floes[machine].run(command.iter().chain(&driver)).await?.success()?;
        Ok(serde_json::from_str(&printed)?)
    }

    /// Waits until every node sees the same leader, all others and all voters; yields the leader and the voters.
    pub(super) async fn settled(&self) -> Result<(usize, Vec<usize>)> {
        let wanted = self.nodes.len();
        let voting = match wanted {
            0..=2 => wanted,
            3..=6 => 3,
            _ => 5,
        };
        wait_until("the machines are one mesh with all its voters", DEADLINE, async || {
            let asked = (0..wanted).map(|machine| self.json(machine, &["status"]));
            let all = try_join_all(asked).await.ok()?;
            let alike = |status: &Value| -> Option<bool> {
                let nodes = status["nodes"].as_array()?;
                let alive = nodes.iter().filter(|node| node["alive"] == true).count();
                Some(alive == wanted && status["leader"] == all[0]["leader"])
            };
            let nodes = all[0]["nodes"].as_array()?;
            let number = |node: &Value| -> Option<usize> {
                node["name"].as_str()?.strip_prefix("node-")?.parse().ok()
            };
            let leader = nodes.iter().find(|node| node["id"] == all[0]["leader"]).and_then(number)?;
            let voters: Vec<usize> =
                nodes.iter().filter(|node| node["role"] != "learner").filter_map(number).collect();
            let settled = all.iter().all(|status| alike(status) == Some(true)) && voters.len() == voting;
            settled.then_some((leader, voters))
        })
        .await
    }

    /// Starts a driver on this machine.
    pub(super) fn ask(&self, props: &Props, machine: usize) -> Result<Driver> {
        let result = self.network.home(machine).join("result.parquet");
        let (text, path) = (props.question.text(), result.to_string_lossy().into_owned());
        let connect = ["--connect", self.nodes[machine].address(), "--key-file", &self.key_file];
        let args = ["sql", &text, "-o", &path].into_iter().chain(connect);
        let process = self.floes[machine].command(args).spawn().context("cannot start `floe sql`")?;
        Ok(Driver { process, result })
    }
}

/// A `floe sql` that writes its result to a file.
pub(super) struct Driver {
    process: Child,
    result: PathBuf,
}

impl Driver {
    /// Waits for its result and judges it.
    pub(super) async fn judge(self, round: &mut Round, props: &Props, who: &str) -> Result<()> {
        round.judged += 1;
        let Ok(ended) = timeout(JOB_DEADLINE, self.process.wait_with_output()).await else {
            round.lost.push(format!("{who} has no result after {} s", JOB_DEADLINE.as_secs()));
            return Ok(());
        };
        let ended = ended?;
        if !ended.status.success() {
            let said = String::from_utf8_lossy(&ended.stderr);
            round.lost.push(format!("{who} ended with {}: {}", ended.status, said.trim_end()));
            return Ok(());
        }
        round.tell(format!("{who} has its result"));
        ensure!(self.result.exists(), "{who} succeeded and wrote no result");
        same(round, who, &scan(&self.result)?.collect()?, &props.question.wanted);
        Ok(())
    }
}
