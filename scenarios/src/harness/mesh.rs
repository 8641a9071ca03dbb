//! Several nodes that become one mesh.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use floe_client::Mesh;
use floe_protocol::message::Status;
use floe_protocol::{NodeId, NodeInfo, NodeRole};
use futures::future::try_join_all;
use tempfile::TempDir;

use super::process::{ANY_PORT, Finished, Floe, Node};
use super::small_disk::SmallDisk;
use super::{DEADLINE, wait_until};

/// How a cluster is to be.
#[derive(Debug)]
pub struct Builder {
    binary: PathBuf,
    nodes: usize,
    slots: u32,
    witnesses: usize,
    memory: Option<String>,
    env: Vec<(String, String)>,
    discover: bool,
    key: Option<String>,
    small_disk_bytes: Option<u64>,
    chaos: bool,
}

/// Nodes of one mesh, each a process with a data directory of its own. Dropping it kills them; their files go
/// too, unless a test is failing: then it says where they are.
#[derive(Debug)]
pub struct Cluster {
    floe: Floe,
    key_file: PathBuf,
    nodes: Vec<Node>,
    /// How further nodes are started.
    builder: Builder,
    /// How many nodes were ever started, so that each has a name and a directory of its own.
    started: usize,
    small_disks: Vec<SmallDisk>,
    /// Emptied only when the files are kept.
    home: Option<TempDir>,
}

impl Builder {
    /// How many nodes; three unless told otherwise.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Each node's `--slots`; one unless told otherwise.
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// How many nodes, the last ones, run nothing.
    pub fn witnesses(mut self, witnesses: usize) -> Self {
        self.witnesses = witnesses;
        self
    }

    /// Each node's `--memory`, as in `256MiB`.
    pub fn memory(mut self, memory: &str) -> Self {
        self.memory = Some(memory.to_owned());
        self
    }

    /// An environment variable for each node and every command.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts all nodes at the same moment and lets them find each other as nodes of one machine, instead of
    /// founding the mesh with the first and joining the others to it.
    pub fn discover(mut self) -> Self {
        self.discover = true;
        self
    }

    /// Gives each node's data directory a disk of its own of this size. See [`SmallDisk`].
    pub fn small_disks(mut self, size_bytes: u64) -> Self {
        self.small_disk_bytes = Some(size_bytes);
        self
    }

    /// Lets `floe chaos` hit its nodes.
    pub fn allow_chaos(mut self) -> Self {
        self.chaos = true;
        self
    }

    /// Gives it the mesh key of another cluster, that it does not know of.
    pub fn key_of(mut self, other: &Cluster) -> Result<Self> {
        self.key = Some(fs::read_to_string(&other.key_file)?);
        Ok(self)
    }

    /// Starts the nodes and waits until they are one mesh: one leader, everyone alive, and as many voters as
    /// a mesh of that size should have.
    pub async fn start(self) -> Result<Cluster> {
        let mut cluster = self.launch().await?;
        match cluster.settled().await {
            Ok(_) => Ok(cluster),
            Err(error) => {
                cluster.keep_files();
                Err(error)
            }
        }
    }

    /// Starts the nodes and waits only until each is ready.
    pub async fn launch(self) -> Result<Cluster> {
        ensure!(
            self.binary.is_file(),
            "there is no {}: build it first: cargo build --bin floe",
            self.binary.display()
        );
        let home = tempfile::Builder::new().prefix("floe-").tempdir()?;
        let floe = self
            .env
            .iter()
            .fold(Floe::new(&self.binary, home.path()), |floe, (name, value)| floe.env(name, value));
        let key_file = home.path().join("key");
        let key = match &self.key {
            Some(key) => key.clone(),
            None => floe.run(["key"]).await?.success()?,
        };
        fs::write(&key_file, key)?;
        let mut cluster = Cluster {
            floe,
            key_file,
            nodes: Vec::new(),
            builder: self,
            started: 0,
            small_disks: Vec::new(),
            home: Some(home),
        };
        if let Err(error) = cluster.bring_up().await {
            cluster.keep_files();
            return Err(error);
        }
        Ok(cluster)
    }
}

impl Cluster {
    /// A cluster of three nodes with one slot each, unless told otherwise, of this `floe` binary.
    pub fn builder(binary: impl Into<PathBuf>) -> Builder {
        Builder {
            binary: binary.into(),
            nodes: 3,
            slots: 1,
            witnesses: 0,
            memory: None,
            env: Vec::new(),
            discover: false,
            key: None,
            small_disk_bytes: None,
            chaos: false,
        }
    }

    async fn bring_up(&mut self) -> Result<()> {
        for number in 0..self.builder.nodes {
            self.spawn().await?;
            if number == 0 && !self.builder.discover {
                self.nodes[0].ready().await?;
            }
        }
        try_join_all(self.nodes.iter_mut().map(Node::ready)).await?;
        Ok(())
    }

    /// Starts one more node that joins a running one, and waits until it is ready; yields its number.
    pub async fn add(&mut self) -> Result<usize> {
        self.spawn().await?;
        let number = self.nodes.len() - 1;
        self.nodes[number].ready().await?;
        Ok(number)
    }

    /// Forgets the last node, which must have ended; its files stay.
    pub fn remove_last(&mut self) -> Result<()> {
        let ended = self.nodes.pop_if(|node| !node.runs());
        ended.map(drop).context("only a node that has ended can be removed")
    }

    async fn spawn(&mut self) -> Result<()> {
        let (number, builder) = (self.started, &self.builder);
        let last = builder.nodes.saturating_sub(builder.witnesses)..builder.nodes;
        let slots = if last.contains(&number) { 0 } else { builder.slots };
        let dir = self.floe.home().join(format!("node-{number}"));
        let data = dir.join("data");
        let mut args = vec![
            "--name".to_owned(),
            format!("node-{number}"),
            "--data-dir".to_owned(),
            data.display().to_string(),
            "--key-file".to_owned(),
            self.key_file.display().to_string(),
            "--slots".to_owned(),
            slots.to_string(),
        ];
        if builder.chaos {
            args.push("--allow-chaos".to_owned());
        }
        if let Some(memory) = &builder.memory {
            args.extend(["--memory".to_owned(), memory.clone()]);
        }
        if !builder.discover {
            args.extend(["--listen".to_owned(), ANY_PORT.to_owned()]);
            // The first need not look around for others, since they come to it.
            args.extend(match self.nodes.iter().find(|node| node.runs()) {
                None => ["--expect".to_owned(), "1".to_owned()],
                Some(running) => ["--join".to_owned(), running.address().to_owned()],
            });
        }
        let mut floe = self.floe.clone();
        if let Some(size_bytes) = builder.small_disk_bytes {
            let disk = SmallDisk::new(&data, size_bytes).await?;
            floe = disk.floe(floe);
            self.small_disks.push(disk);
        }
        self.nodes.push(Node::spawn(floe, &dir, args)?);
        self.started += 1;
        Ok(())
    }

    /// Node `i`'s small disk, if it has one.
    pub fn small_disk(&self, i: usize) -> Option<&SmallDisk> {
        self.small_disks.get(i)
    }

    /// Where node `i` keeps its identity, log and partitions.
    pub fn data_dir(&self, i: usize) -> PathBuf {
        self.nodes[i].dir().join("data")
    }

    /// How many nodes it has, running or not.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether it has no nodes.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Node number `i`, from 0.
    pub fn node(&mut self, i: usize) -> &mut Node {
        &mut self.nodes[i]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All nodes, for what is done to several at once.
    pub fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// The directory in which everything of this cluster lies; free for a test's own files too.
    pub fn dir(&self) -> &Path {
        self.floe.home()
    }

    /// The file that holds the mesh key.
    pub fn key_file(&self) -> &Path {
        &self.key_file
    }

    /// A way to call `floe` in this cluster's home.
    pub fn floe(&self) -> &Floe {
        &self.floe
    }

    /// `COMMAND --connect NODE --key-file KEY ARGS`: the arguments of a driver's command against node `i`, with
    /// the command's name first in `args`.
    pub fn args(&self, i: usize, args: &[&str]) -> Vec<String> {
        let driver = ["--connect", self.nodes[i].address(), "--key-file", &self.key_file.to_string_lossy()];
        let (command, rest) = args.split_at(args.len().min(1));
        command.iter().chain(&driver).chain(rest).map(|arg| (*arg).to_owned()).collect()
    }

    /// Runs a driver's command against node `i` to its end.
    pub async fn run(&self, i: usize, args: &[&str]) -> Result<Finished> {
        self.floe.run(self.args(i, args)).await
    }

    /// A client that was told of node `i` only.
    pub async fn client(&self, i: usize) -> Result<Mesh> {
        let key = fs::read_to_string(&self.key_file)?;
        let mesh = Mesh::builder()
            .key(key.trim().parse()?)
            .address(self.nodes[i].address())
            .connect()
            .await
            .with_context(|| format!("cannot connect to node {i}"))?;
        Ok(mesh)
    }

    /// What node `i` itself says of the mesh.
    pub async fn status(&self, i: usize) -> Result<Status> {
        Ok(self.client(i).await?.status().await?)
    }

    /// The number of the node that leads: waits until a running one does and all running ones agree on it.
    /// A stopped node must be resumed first.
    pub async fn leader(&self) -> Result<usize> {
        self.agreed("the running nodes agree on a leader", |_| true).await.map(|(leader, _)| leader)
    }

    /// Waits until all running nodes agree on a leader and see each other alive; yields the leader's number.
    pub async fn together(&self) -> Result<usize> {
        let running = self.running();
        self.agreed("the running nodes see each other", |status| alive(status).count() == running)
            .await
            .map(|(leader, _)| leader)
    }

    /// Waits until all running nodes agree on a leader and see each other alive, with as many voters as that
    /// makes; yields the leader's number.
    pub async fn settled(&self) -> Result<usize> {
        let running = self.running();
        let voters = voters(running);
        self.agreed("the running nodes are one mesh with all its voters", |status| {
            let voting = alive(status).filter(|node| node.role != NodeRole::Learner).count();
            alive(status).count() == running && voting == voters
        })
        .await
        .map(|(leader, _)| leader)
    }

    fn running(&self) -> usize {
        self.nodes.iter().filter(|node| node.runs()).count()
    }

    /// Which of the cluster's nodes has this id, according to a status.
    pub fn number_of(&self, status: &Status, id: NodeId) -> Option<usize> {
        let member = &status.nodes.iter().find(|node| node.member.id == id)?.member;
        self.nodes.iter().position(|node| node.peer() == member.peer)
    }

    /// The id of node `i`, according to a status.
    pub fn id_of(&self, status: &Status, i: usize) -> Option<NodeId> {
        let peer = self.nodes[i].peer();
        status
            .nodes
            .iter()
            .map(|node| &node.member)
            .find(|member| member.peer == peer)
            .map(|member| member.id)
    }

    /// Waits until every running node names the same running leader and `holds` is true of what each says.
    async fn agreed(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Result<(usize, Status)> {
        let mut last = None;
        let found = wait_until(what, DEADLINE, async || {
            let running = (0..self.nodes.len()).filter(|&i| self.nodes[i].runs());
            let asked = try_join_all(running.map(|i| self.status(i))).await;
            let (all, leader) = match &asked {
                Ok(all) => (all, all.first()?.leader),
                Err(_) => {
                    last = Some(asked);
                    return None;
                }
            };
            let number = leader.and_then(|leader| self.number_of(&all[0], leader));
            match number {
                Some(i) if self.nodes[i].runs() && all.iter().all(|s| s.leader == leader && holds(s)) => {
                    Some((i, all[0].clone()))
                }
                _ => {
                    last = Some(asked);
                    None
                }
            }
        })
        .await;
        found.with_context(|| format!("last heard: {last:#?}"))
    }

    /// Leaves the files where they are and says where, with the end of every node's log.
    #[expect(clippy::print_stderr, reason = "a failing test's output is what people look at")]
    pub fn keep_files(&mut self) {
        if let Some(home) = self.home.take() {
            for (i, node) in self.nodes.iter().enumerate() {
                eprintln!("--- the end of node {i}'s log\n{}", node.log_tail());
            }
            eprintln!("--- the nodes' files are kept in {}", home.keep().display());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_files();
        }
        // A node that still writes would keep its directory from being removed.
        self.nodes.drain(..).for_each(Node::kill_now);
    }
}

fn alive(status: &Status) -> impl Iterator<Item = &NodeInfo> {
    status.nodes.iter().filter(|node| node.alive)
}

/// How many voters a mesh of this many living nodes has.
fn voters(nodes: usize) -> usize {
    match nodes {
        0..=1 => 1,
        2 => 2,
        3..=6 => 3,
        _ => 5,
    }
}
