//! The network falls in two, with drivers on both sides, and is healed.
//!
//! It is played on network namespaces, one a machine, joined by a bridge, whose ports are moved to a second
//! bridge. There is no way to play it without them: nodes tell each other where they listen, so that a proxy
//! between two of them would be gone around.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use futures::future::try_join_all;
use rand::RngExt;
use rand::seq::SliceRandom;
use serde_json::Value;
use tokio::process::Child;
use tokio::time::timeout;

use super::evidence::{self, LOG_FILTER};
use super::measure::{CUT_OFF, HEALED};
use super::report::unix_ms;
use super::scene::{JOB_DEADLINE, Question, same};
use super::{MAX_NODES, Plot, Props, Round, Story};
use crate::harness::{DEADLINE, Floe, Network, Node, wait_until};
use crate::reference::scan;

/// Tasks of each job that are done at most when the network is cut.
const DONE_AT_MOST: u64 = 8;

pub(super) const STORY: Story = Story {
    name: "network-cut",
    sentence: "The network is cut in two in the middle of two jobs, one driver on either side; the majority goes on, the minority finishes once it is healed.",
    fewest_nodes: 3,
    most_nodes: MAX_NODES,
    usual_nodes: 5,
    question: Question::long,
    plot: Plot::Alone(|props, round| play(props, round).boxed_local()),
};

async fn play(props: &Props, round: &mut Round) -> Result<()> {
    let machines = Machines::start(props, Network::new(props.nodes)?).await?;
    round.tell(format!("{} machines, each a network namespace with a veth to one bridge", props.nodes));
    let (leader, voters) = machines.settled().await?;
    let island = minority(round, props.nodes, &voters);
    let mainland: Vec<usize> = (0..props.nodes).filter(|machine| !island.contains(machine)).collect();
    let (there, here) = (pick(round, &island), pick(round, &mainland));
    let mut drivers = Vec::new();
    for machine in [here, there] {
        drivers.push(machines.ask(props, machine)?);
        round.jobs += 1;
        round.tell(format!("`floe sql` is started on {}", machines.nodes[machine].name()));
    }
    let enough = round.dice.random_range(1..=DONE_AT_MOST);
    wait_until("both jobs are under way", DEADLINE, async || {
        let jobs = machines.json(here, &["jobs"]).await.ok()?;
        let jobs = jobs.as_array()?;
        let under_way = |job: &Value| job["done"].as_u64().is_some_and(|done| done >= enough);
        (jobs.len() == drivers.len() && jobs.iter().all(under_way)).then_some(())
    })
    .await?;

    let cut_ms = unix_ms();
    machines.network.cut_off(&island)?;
    let names = |of: &[usize]| of.iter().map(|m| machines.nodes[*m].name()).collect::<Vec<_>>().join(", ");
    let place = if island.contains(&leader) { "on the smaller side" } else { "on the larger side" };
    round.tell_at(
        cut_ms,
        format!("the network is cut: {} | {}, the leader {place}", names(&mainland), names(&island)),
    );
    if island.contains(&leader) {
        let election = wait_until("the majority elects a leader", DEADLINE, async || {
            let elections = evidence::elections(&machines.nodes, cut_ms);
            elections.into_iter().find(|election| mainland.contains(&election.node))
        })
        .await?;
        let name = machines.nodes[election.node].name();
        round.tell_at(election.unix_ms, format!("{name} is elected, term {}", election.term));
        round.measured(&CUT_OFF, election.unix_ms - cut_ms);
    }
    let mut drivers = drivers.into_iter();
    let (Some(majority), Some(minority)) = (drivers.next(), drivers.next()) else { return Ok(()) };
    majority.judge(round, props, "the driver with the majority").await?;
    for &machine in &island {
        let name = machines.nodes[machine].name();
        if !voters.contains(&machine) {
            // It has no say in who leads, and may not know.
            let status = machines.json(machine, &["status"]).await?;
            round.tell(format!("`floe status` on {name}, a learner, names as leader: {}", status["leader"]));
            continue;
        }
        wait_until("a voter without a majority knows that it has no leader", DEADLINE, async || {
            let status = machines.json(machine, &["status"]).await.ok()?;
            status["leader"].is_null().then_some(())
        })
        .await?;
        round.tell(format!("`floe status` on {name}, a voter, says that there is no leader"));
    }
    machines.network.heal()?;
    let healed_ms = unix_ms();
    round.tell_at(healed_ms, "the network is healed");
    minority.judge(round, props, "the driver with the minority").await?;
    round.measured(&HEALED, unix_ms() - healed_ms);
    machines.settled().await?;
    round.tell("all are one mesh again");
    Ok(())
}

/// As many machines as are fewer than half, with fewer than half of the voters among them.
fn minority(round: &mut Round, machines: usize, voters: &[usize]) -> Vec<usize> {
    let mut voting = voters.to_vec();
    voting.shuffle(&mut round.dice);
    voting.truncate((voters.len() - 1) / 2);
    let mut others: Vec<usize> = (0..machines).filter(|machine| !voters.contains(machine)).collect();
    others.shuffle(&mut round.dice);
    let mut island = [voting, others].concat();
    island.truncate((machines - 1) / 2);
    island.sort_unstable();
    island
}

fn pick(round: &mut Round, machines: &[usize]) -> usize {
    machines[round.dice.random_range(0..machines.len())]
}

/// A node on each machine of a network.
struct Machines {
    // Before the network, so that no process is left in its namespaces.
    nodes: Vec<Node>,
    floes: Vec<Floe>,
    key_file: String,
    network: Network,
}

impl Machines {
    async fn start(props: &Props, network: Network) -> Result<Self> {
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
    async fn json(&self, machine: usize, command: &[&str]) -> Result<Value> {
        let driver =
            ["--format", "json", "--connect", self.nodes[machine].address(), "--key-file", &self.key_file];
        let printed = self.floes[machine].run(command.iter().chain(&driver)).await?.success()?;
        Ok(serde_json::from_str(&printed)?)
    }

    /// Waits until every node sees the same leader, all others and all voters; yields the leader and the voters.
    async fn settled(&self) -> Result<(usize, Vec<usize>)> {
        let wanted = self.nodes.len();
        let voting = if wanted < 7 { 3 } else { 5 };
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
    fn ask(&self, props: &Props, machine: usize) -> Result<Driver> {
        let result = self.network.home(machine).join("result.parquet");
        let (text, path) = (props.question.text(), result.to_string_lossy().into_owned());
        let connect = ["--connect", self.nodes[machine].address(), "--key-file", &self.key_file];
        let args = ["sql", &text, "-o", &path].into_iter().chain(connect);
        let process = self.floes[machine].command(args).spawn().context("cannot start `floe sql`")?;
        Ok(Driver { process, result })
    }
}

/// A `floe sql` that writes its result to a file.
struct Driver {
    process: Child,
    result: PathBuf,
}

impl Driver {
    /// Waits for its result and judges it.
    async fn judge(self, round: &mut Round, props: &Props, who: &str) -> Result<()> {
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
