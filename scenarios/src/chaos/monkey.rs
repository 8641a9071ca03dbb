//! Who does what the plan says to the nodes, each node on a lane of its own, so that one that comes back slowly
//! keeps no other waiting.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use floe_protocol::NodeId;
use floe_protocol::message::Status;
use futures::future::join_all;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::locked;
use super::plan::{Fault, Kind, Step, Victim};
use super::watch::Watch;
use crate::harness::{Cluster, Floe, Node};

/// How long a fault that needs all seats filled waits for that: elections and promotions take less.
const SEATS_PATIENCE: Duration = Duration::from_secs(4);

/// How often the seats are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What was done.
#[derive(Clone, Debug, Default)]
pub(super) struct Wreaked {
    /// Faults by kind.
    pub(super) faults: BTreeMap<&'static str, u64>,
    /// Faults that hit the leader.
    pub(super) leaders: u64,
    /// What happened, in order.
    pub(super) timeline: Vec<String>,
    /// Nodes that did not come back, and why.
    pub(super) troubles: Vec<String>,
}

/// Hits nodes.
pub(super) struct Monkey {
    watch: Watch,
    addresses: Arc<Mutex<Vec<String>>>,
    start: Instant,
    wreaked: Mutex<Wreaked>,
    /// Nodes under a fault.
    busy: Vec<AtomicBool>,
    /// A node leaves or was wiped, and is not back.
    changing: AtomicBool,
}

/// What a node is started with anew.
struct Place {
    floe: Floe,
    key_file: String,
}

impl Monkey {
    pub(super) fn new(watch: Watch, addresses: Arc<Mutex<Vec<String>>>) -> Self {
        let nodes = locked(&addresses).len();
        Self {
            watch,
            addresses,
            start: Instant::now(),
            wreaked: Mutex::default(),
            busy: (0..nodes).map(|_| AtomicBool::new(false)).collect(),
            changing: AtomicBool::new(false),
        }
    }

    /// Does all that is planned within `time`, and returns when every node is back.
    pub(super) async fn wreak(self, plan: &[Step], time: Duration, cluster: &mut Cluster) -> Wreaked {
        let place =
            Place { floe: cluster.floe().clone(), key_file: cluster.key_file().display().to_string() };
        let (orders, lanes): (Vec<_>, Vec<_>) = cluster
            .nodes_mut()
            .iter_mut()
            .enumerate()
            .map(|(i, node)| {
                // A node under a fault is given no other.
                let (order, orders) = mpsc::channel(1);
                (order, self.lane(i, node, orders, &place))
            })
            .unzip();
        tokio::join!(self.conduct(plan, time, orders), join_all(lanes));
        self.wreaked.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    async fn conduct(&self, plan: &[Step], time: Duration, orders: Vec<mpsc::Sender<Fault>>) {
        for step in plan {
            sleep_until(self.start + step.at).await;
            let fault = self.allowed(step.fault).await;
            let mut hit = BTreeSet::new();
            for victim in &step.victims {
                let leader = self.watch.leader().map(|(node, _)| node);
                let first = match victim {
                    Victim::Leader => leader.unwrap_or(0),
                    Victim::Node(node) => *node,
                };
                let free = |node: &usize| !self.busy[*node].load(Ordering::Relaxed) && !hit.contains(node);
                let Some(node) = (0..orders.len()).map(|i| (first + i) % orders.len()).find(free) else {
                    self.is_over(fault);
                    continue;
                };
                let named = if leader == Some(node) { " (leader)" } else { "" };
                self.busy[node].store(true, Ordering::Relaxed);
                if orders[node].try_send(fault).is_err() {
                    // Its lane is gone with the run.
                    self.is_over(fault);
                } else {
                    hit.insert(node);
                    self.say(format!("{fault}: node {node}{named}"));
                    let mut wreaked = locked(&self.wreaked);
                    *wreaked.faults.entry(fault.kind.name()).or_default() += 1;
                    wreaked.leaders += u64::from(leader == Some(node));
                }
            }
        }
        sleep_until(self.start + time).await;
    }

    /// The fault, or a kill where it could cost the mesh its majority for good, now and for a while: a seat is lost
    /// with a wiped disk until somebody else has it, and while a node leaves it is not certain who votes.
    async fn allowed(&self, fault: Fault) -> Fault {
        if matches!(fault.kind, Kind::Kill | Kind::Pause) {
            return fault;
        }
        let end = Instant::now() + SEATS_PATIENCE;
        while Instant::now() < end {
            if seats_are_filled(&self.watch, &self.addresses) && !self.changing.swap(true, Ordering::Relaxed)
            {
                return fault;
            }
            sleep(LOOK).await;
        }
        Fault { kind: Kind::Kill, ..fault }
    }

    async fn lane(&self, i: usize, node: &mut Node, mut orders: mpsc::Receiver<Fault>, place: &Place) {
        while let Some(fault) = orders.recv().await {
            let began = Instant::now();
            match self.inflict(i, node, fault, place).await {
                Ok(()) => {
                    node.address().clone_into(&mut locked(&self.addresses)[i]);
                    self.say(format!("node {i} is back after {:.1} s", began.elapsed().as_secs_f64()));
                }
                Err(error) => {
                    let text = format!("node {i} did not come back after a {fault}: {error:#}");
                    self.say(text.clone());
                    locked(&self.wreaked).troubles.push(text);
                }
            }
            self.is_over(fault);
            self.busy[i].store(false, Ordering::Relaxed);
        }
    }

    fn is_over(&self, fault: Fault) {
        if matches!(fault.kind, Kind::Leave | Kind::Wipe) {
            self.changing.store(false, Ordering::Relaxed);
        }
    }

    async fn inflict(&self, i: usize, node: &mut Node, fault: Fault, place: &Place) -> Result<()> {
        match fault.kind {
            Kind::Pause => {
                node.stop()?;
                sleep(fault.away).await;
                node.resume()
            }
            Kind::Kill => {
                node.kill().await?;
                sleep(fault.away).await;
                node.restart().await
            }
            Kind::Leave => {
                node.terminate().await?;
                sleep(fault.away).await;
                node.restart().await
            }
            Kind::Wipe => {
                node.kill().await?;
                let dir = node.dir().to_owned();
                let data = dir.join("data");
                fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))?;
                sleep(fault.away).await;
                let args = self.as_new(i, node.port()?, &data.display().to_string(), place);
                *node = Node::spawn(place.floe.clone(), &dir, args)?;
                node.ready().await
            }
        }
    }

    /// The arguments of a node that is new in the mesh. It is told of the others: alone it would found a mesh.
    fn as_new(&self, i: usize, port: u16, data: &str, place: &Place) -> Vec<String> {
        let name = format!("node-{i}");
        let listen = format!("/ip4/127.0.0.1/tcp/{port}");
        let fixed = [
            ("--name", name.as_str()),
            ("--data-dir", data),
            ("--key-file", &place.key_file),
            ("--slots", "1"),
            ("--listen", &listen),
        ];
        let addresses = locked(&self.addresses);
        let others = addresses.iter().enumerate().filter(|(other, _)| *other != i);
        // Without their identities: others may be wiped too.
        let others = others.map(|(_, address)| address.split("/p2p/").next().unwrap_or_default());
        let args = fixed.into_iter().chain(others.map(|address| ("--join", address)));
        args.flat_map(|(name, value)| [name.to_owned(), value.to_owned()]).collect()
    }

    /// Notes what happened, and says it at once.
    #[expect(clippy::print_stderr, reason = "whoever waits for the end wants to see what happens")]
    fn say(&self, what: String) {
        let line = format!("{:7.1} s  {what}", self.start.elapsed().as_secs_f64());
        eprintln!("{line}");
        locked(&self.wreaked).timeline.push(line);
    }
}

/// Whether a leader says that every voter is a node that exists, at one of these addresses.
pub(super) fn seats_are_filled(watch: &Watch, addresses: &Mutex<Vec<String>>) -> bool {
    let addresses = locked(addresses);
    let peers = addresses.iter().filter_map(|address| address.rsplit('/').next()).collect();
    watch.leader().is_some_and(|(_, status)| bears_a_loss(&status, &peers))
}

/// Whether the voters are as many as they should be, all of them nodes that exist, so that one more may be lost
/// for good. `peers` are the nodes' present identities.
fn bears_a_loss(status: &Status, peers: &BTreeSet<&str>) -> bool {
    const FEWEST: usize = 3;
    let there: BTreeSet<NodeId> = status
        .nodes
        .iter()
        .filter(|node| peers.contains(node.member.peer.as_str()))
        .map(|node| node.member.id)
        .collect();
    status.voters.len() >= FEWEST && status.voters.iter().all(|voter| there.contains(voter))
}
