//! The node: the one loop that owns the replica and the scheduler, and wires every part to it.
//!
//! ```text
//!   network events ─┐                      ┌─> network (Raft, orders to workers)
//!   reports ────────┤                      ├─> worker, store (orders to this node)
//!   asks ───────────┼─> replica, scheduler ┼─> answers to asks
//!   ticks ──────────┘                      └─> log file
//! ```
//!
//! Each event goes in, whatever it causes comes out, and only then the next is taken. What the node sends
//! to itself takes the same way as what a peer sends, without the network.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use floe_consensus::membership::{DEAD_MS, heir, next_change};
use floe_consensus::replica::{self, TICK_MS};
use floe_consensus::{
    Command, Effect, Entry, Event as Applied, Input, LogError, ProposeError, Replica, Scheduler,
};
use floe_network::{Event as NetworkEvent, Hint, Network};
use floe_protocol::job::TaskRun;
use floe_protocol::message::{Inventory, MeshView, Report, Status};
use floe_protocol::version::FLOE_VERSION;
use floe_protocol::{
    Failure, Fence, JobId, JobPhase, JobStatus, Load, Member, MeshId, NodeId, NodeInfo, NodeRole,
    PeerMessage, RequestId, TaskId,
};
use floe_transport::{MeshKey, Refusal, node_id};
use libp2p::Multiaddr;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::calls::Calls;
use crate::config::{self, Settings};
use crate::data_dir::{self, DataDir};
use crate::formation;
use crate::log_file::{self, LogFile};
use crate::mailbox::{Ask, Mailbox, Outputs, Proposed};
use crate::store::{self, Budget, Store};
use crate::stream::Streams;
use crate::submit::{Submitter, unix_ms};
use crate::worker::{self, Worker};

/// How many reports of this node's worker may wait for the loop.
const REPORTS: usize = 256;

/// How many proposals may wait for agreement on this node; more are told to try again.
const MAX_PENDING: usize = 4096;

/// How many refusals are remembered for whoever asks why nobody takes this node in.
const MAX_REFUSALS: usize = 16;

/// How many reports are kept for a leader that cannot be reached. It finds the rest in the inventory.
const MAX_UNSENT: usize = 1024;

/// How long after a start the node may take to have its first address.
const LISTEN_PATIENCE: Duration = Duration::from_secs(5);

/// A running node.
#[derive(Debug)]
pub struct Node {
    mailbox: Mailbox,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), Error>>,
    /// Keeps the node a member until it leaves.
    stay: Option<AbortOnDropHandle<()>>,
}

/// Why a node could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] data_dir::Error),
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] log_file::Error),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The network cannot be used.
    #[error(transparent)]
    Network(#[from] floe_network::Error),
    /// The log cannot be read back.
    #[error(transparent)]
    Open(#[from] replica::OpenError),
    /// The log cannot be written: the node must not go on as if it could.
    #[error(transparent)]
    Write(#[from] LogError),
    /// No place for an embedded node.
    #[error("cannot create a temporary directory for the embedded mesh: {0}")]
    Temporary(std::io::Error),
    /// It did not become a member.
    #[error("this node did not become a member of a mesh: {0}")]
    Formation(Failure),
    /// The loop ended by itself.
    #[error("the node stopped unexpectedly: {0}")]
    Stopped(String),
}

impl Node {
    /// Starts a node and waits until it is a member of a mesh that has a leader.
    pub async fn start(settings: Settings, mut data_dir: DataDir, key: MeshKey) -> Result<Self, Error> {
        let id = node_id(&data_dir.identity().public().to_peer_id());
        let log = LogFile::open(&data_dir.log_file())?;
        data_dir.remember_log()?;
        let budget = Budget::new(settings.memory_bytes);
        let store = Store::open(&data_dir.path().join("partitions"), id, budget)?;
        let (network, events) = open_network(&settings, &data_dir, key).await?;
        let addresses = first_addresses(&network).await?;
        data_dir.remember_port(tcp_port(&addresses).unwrap_or(0))?;
        let member = Member {
            id,
            peer: network.peer_id().to_string(),
            name: settings.name.clone(),
            addresses: addresses.iter().map(Multiaddr::to_string).collect(),
            slots: settings.slots,
            memory_bytes: settings.memory_bytes,
            version: FLOE_VERSION.to_owned(),
            incarnation: data_dir.incarnation(),
        };
        let replica = Replica::open(replica::Config::new(member.id), log)?;
        let (changed, changes) = watch::channel(0);
        let (mailbox, asks) = Mailbox::new(network.clone(), changes);
        let streams = Streams::new(network.clone(), store.clone());
        let (reports, reported) = mpsc::channel(REPORTS);
        let worker =
            Worker::start(worker::Config { slots: settings.slots }, store.clone(), streams.clone(), reports);
        let submitter = Submitter::new(mailbox.clone(), store.clone(), streams.clone());
        let calls = Calls::new(mailbox.clone(), submitter, streams, store.clone());
        let (stop, stopped) = oneshot::channel();
        let mesh = replica.state().mesh();
        let state = Loop {
            member: member.clone(),
            network,
            replica,
            scheduler: None,
            mesh,
            worker,
            store,
            calls,
            fence: Fence::default(),
            leader: None,
            pending: BTreeMap::new(),
            loads: BTreeMap::new(),
            refusals: VecDeque::new(),
            runs: BTreeMap::new(),
            unsent: VecDeque::new(),
            to_self: VecDeque::new(),
            changed,
            started: Instant::now(),
            started_unix_ms: unix_ms(),
            membership_due: Instant::now(),
            hint_due: Instant::now(),
            release_due: Instant::now(),
            _data_dir: data_dir,
        };
        let task = tokio::spawn(state.run(events, asks, reported, stopped));
        let mut node = Self { mailbox, stop, task, stay: None };
        match formation::form(&node.mailbox, &member, &settings).await {
            Ok(()) => {
                let stay = tokio::spawn(formation::stay(node.mailbox.clone(), member));
                node.stay = Some(AbortOnDropHandle::new(stay));
                Ok(node)
            }
            // A loop that failed knows better why than whoever asked it.
            Err(failure) => match node.stop().await {
                Err(error) => Err(error),
                Ok(()) => Err(Error::Formation(failure)),
            },
        }
    }

    /// Where the node can be dialled, its own peer id included.
    pub fn addresses(&self) -> Vec<Multiaddr> {
        self.mailbox.network().addresses()
    }

    /// Ends with the loop, which does not end by itself unless something failed.
    pub async fn failed(&mut self) -> Error {
        match (&mut self.task).await {
            Ok(Ok(())) => Error::Stopped("its loop ended".to_owned()),
            Ok(Err(error)) => error,
            Err(error) => Error::Stopped(error.to_string()),
        }
    }

    /// Hands over and stops.
    pub async fn leave(mut self) -> Result<(), Error> {
        self.stay = None;
        formation::leave(&self.mailbox).await;
        self.stop().await
    }

    /// Stops without a word to the others.
    pub async fn stop(self) -> Result<(), Error> {
        // A loop that has ended already says why below.
        let _ = self.stop.send(());
        self.task.await.map_err(|error| Error::Stopped(error.to_string()))?
    }
}

async fn open_network(
    settings: &Settings,
    data_dir: &DataDir,
    key: MeshKey,
) -> Result<(Network, mpsc::Receiver<NetworkEvent>), Error> {
    let host = if settings.everywhere { "0.0.0.0" } else { "127.0.0.1" };
    let at =
        |port: u16| -> Vec<Multiaddr> { format!("/ip4/{host}/tcp/{port}").parse().into_iter().collect() };
    let config = |listen: Vec<Multiaddr>| floe_network::Config {
        identity: data_dir.identity().clone(),
        key: key.clone(),
        listen,
        join: settings.join.clone(),
        mdns: settings.mdns,
        local_registry: settings.registry.clone(),
        name: settings.name.clone(),
    };
    if !settings.listen.is_empty() {
        return Ok(floe_network::start(config(settings.listen.clone())).await?);
    }
    // The port of last time keeps tickets valid; where somebody else has it now, any other will do.
    if data_dir.port() != 0
        && let Ok(started) = floe_network::start(config(at(data_dir.port()))).await
    {
        return Ok(started);
    }
    Ok(floe_network::start(config(at(0))).await?)
}

async fn first_addresses(network: &Network) -> Result<Vec<Multiaddr>, Error> {
    let listening = async {
        loop {
            let addresses = network.addresses();
            if !addresses.is_empty() {
                return addresses;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LISTEN_PATIENCE, listening)
        .await
        .map_err(|_| Error::Stopped("it got no address to listen on".to_owned()))
}

fn tcp_port(addresses: &[Multiaddr]) -> Option<u16> {
    addresses.iter().flat_map(Multiaddr::iter).find_map(|part| match part {
        libp2p::multiaddr::Protocol::Tcp(port) => Some(port),
        _ => None,
    })
}

/// Everything that can happen to a node.
enum Event {
    Network(NetworkEvent),
    Report(Report),
    Ask(Ask),
    Tick,
}

struct Loop {
    member: Member,
    network: Network,
    replica: Replica<LogFile>,
    /// The scheduler, while this node leads.
    scheduler: Option<Scheduler>,
    /// The mesh whose messages count.
    mesh: Option<MeshId>,
    worker: Worker,
    store: Store,
    calls: Calls,
    /// The highest fence seen: orders below it are refused.
    fence: Fence,
    /// Who gave the orders of that fence.
    leader: Option<NodeId>,
    /// Proposals of this node that are not agreed yet.
    pending: BTreeMap<RequestId, Vec<oneshot::Sender<Proposed>>>,
    /// What hints say of the nodes' loads.
    loads: BTreeMap<NodeId, Load>,
    /// Who was not admitted lately, the newest in front.
    refusals: VecDeque<(Multiaddr, Refusal)>,
    /// When this node made what it holds, for the next leader.
    runs: BTreeMap<TaskId, TaskRun>,
    /// Reports that the leader could not be given yet.
    unsent: VecDeque<Report>,
    /// Messages of this node to itself.
    to_self: VecDeque<PeerMessage>,
    changed: watch::Sender<u64>,
    started: Instant,
    started_unix_ms: u64,
    membership_due: Instant,
    hint_due: Instant,
    release_due: Instant,
    /// Held for its lock.
    _data_dir: DataDir,
}

impl Loop {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<NetworkEvent>,
        mut asks: mpsc::Receiver<Ask>,
        mut reports: mpsc::Receiver<Report>,
        mut stop: oneshot::Receiver<()>,
    ) -> Result<(), Error> {
        let mut ticks = interval(Duration::from_millis(TICK_MS));
        // After a stall one tick is reported, not all that were missed: a slow disk must not start an election.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        self.meet_all();
        loop {
            self.settle()?;
            let event = tokio::select! {
                biased;
                _ = &mut stop => break,
                _ = ticks.tick() => Event::Tick,
                Some(event) = events.recv() => Event::Network(event),
                Some(report) = reports.recv() => Event::Report(report),
                Some(ask) = asks.recv() => Event::Ask(ask),
                else => break,
            };
            self.handle(event);
        }
        self.worker.abort(&self.worker.running());
        self.network.clone().shutdown().await;
        Ok(())
    }

    /// Milliseconds since the Unix epoch, by a clock that never goes back.
    fn now_ms(&self) -> u64 {
        self.started_unix_ms + self.started.elapsed().as_millis() as u64
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Network(event) => self.handle_network(event),
            Event::Report(report) => self.report(report),
            Event::Ask(ask) => self.handle_ask(ask),
            Event::Tick => {
                self.replica.tick();
                self.schedule(Input::Tick);
                for report in std::mem::take(&mut self.unsent) {
                    self.report(report);
                }
                self.publish_hint();
                self.release_old_results();
                if self.membership_due <= Instant::now() {
                    self.membership_due = Instant::now() + config::MEMBERSHIP_INTERVAL;
                    self.keep_membership();
                }
            }
        }
    }

    fn handle_network(&mut self, event: NetworkEvent) {
        match event {
            NetworkEvent::Listening(address) => tracing::info!(%address, "listening"),
            NetworkEvent::PeerUp { node, .. } => {
                tracing::info!(%node, "connected");
                self.node_up(node);
            }
            NetworkEvent::PeerDown { node } => {
                tracing::info!(%node, "disconnected");
                self.replica.report_unreachable(node);
                self.loads.remove(&node);
                self.schedule(Input::NodeDown { node });
            }
            NetworkEvent::Message { from, message } => self.handle_message(from, message),
            NetworkEvent::Call { from, request, stream } => self.calls.serve(from, request, stream),
            NetworkEvent::Hint { from, hint } => {
                self.loads.insert(from, hint.load);
            }
            NetworkEvent::Refused { address, refusal } => {
                tracing::info!(%address, "not admitted: {refusal}");
                self.refusals.truncate(MAX_REFUSALS - 1);
                self.refusals.push_front((address, refusal));
            }
        }
    }

    /// Tells the scheduler of a node that can take work: a member, and connected.
    fn node_up(&mut self, node: NodeId) {
        let Some(member) = self.replica.state().members().get(&node) else {
            return;
        };
        let (slots, memory_bytes) = (member.slots, member.memory_bytes);
        self.schedule(Input::NodeUp { node, slots, memory_bytes });
    }

    fn handle_message(&mut self, from: NodeId, message: PeerMessage) {
        let now_ms = self.now_ms();
        match message {
            PeerMessage::Raft { mesh, message } => self.handle_raft(from, mesh, &message),
            PeerMessage::Assign(assignment) => {
                if self.obeys(from, assignment.fence) {
                    self.worker.assign(*assignment);
                }
            }
            PeerMessage::Abort { fence, attempts } => {
                if self.obeys(from, fence) {
                    self.worker.abort(&attempts);
                }
            }
            PeerMessage::Free { fence, jobs } => {
                if self.obeys(from, fence) {
                    self.worker.abort_jobs(&jobs);
                    self.runs.retain(|task, _| !jobs.contains(&task.job));
                    self.free(jobs);
                }
            }
            PeerMessage::AskInventory { fence } => {
                if self.obeys(from, fence) {
                    let inventory = self.inventory(fence);
                    self.send(from, PeerMessage::Inventory(inventory));
                }
            }
            PeerMessage::Lease { fence } => {
                if self.obeys(from, fence) {
                    let load = self.load();
                    self.send(from, PeerMessage::Alive { fence, load });
                }
            }
            PeerMessage::Inventory(inventory) => {
                self.schedule_at(now_ms, Input::Inventory { node: from, inventory });
            }
            PeerMessage::Alive { fence, load } => {
                self.loads.insert(from, load);
                self.schedule_at(now_ms, Input::Alive { node: from, fence, load });
            }
            PeerMessage::Lost { partition, node } => {
                self.schedule_at(now_ms, Input::PartitionLost { partition, node });
            }
            PeerMessage::Report(report) => self.schedule_at(now_ms, Input::Report { node: from, report }),
        }
    }

    /// Whether an order is to be followed: not of a leader that has been replaced.
    fn obeys(&mut self, from: NodeId, fence: Fence) -> bool {
        if fence < self.fence {
            tracing::info!(%from, %fence, "an order of a former leader is refused");
            return false;
        }
        self.fence = fence;
        self.leader = Some(from);
        true
    }

    fn handle_raft(&mut self, from: NodeId, mesh: MeshId, message: &Bytes) {
        // A mesh that this node asked to join speaks first: until its state is here, its messages say which it is.
        let own = *self.mesh.get_or_insert(mesh);
        if own != mesh {
            tracing::debug!(%from, %mesh, "a message of another mesh is dropped");
            return;
        }
        if let Err(error) = self.replica.step(message) {
            tracing::debug!(%from, %error, "a raft message is dropped");
        }
    }

    /// Tells the leader of an attempt's end. What it cannot be told now is told with a later tick.
    fn report(&mut self, report: Report) {
        if report.outcome.is_ok() {
            self.runs.insert(report.attempt.task, report.run.clone());
        }
        // Without a leader the next one finds the outcome in this node's inventory.
        let Some(leader) = self.leader else { return };
        if !self.send(leader, PeerMessage::Report(report.clone())) && self.unsent.len() < MAX_UNSENT {
            self.unsent.push_back(report);
        }
    }

    fn inventory(&mut self, fence: Fence) -> Inventory {
        let held = self.store.held();
        let tasks: BTreeSet<TaskId> = held.iter().map(|(task, _)| *task).collect();
        self.runs.retain(|task, _| tasks.contains(task));
        let runs = self.runs.iter().map(|(task, run)| (*task, run.clone())).collect();
        Inventory { fence, held, runs, running: self.worker.running(), load: self.load() }
    }

    fn load(&self) -> Load {
        let usage = self.store.usage();
        Load { spilled_bytes: usage.spilled_bytes, ..self.worker.load() }
    }

    /// False if the message was dropped: the peer is away, or does not keep up.
    fn send(&mut self, to: NodeId, message: PeerMessage) -> bool {
        if to == self.member.id {
            self.to_self.push_back(message);
            return true;
        }
        let sent = self.network.send(to, message);
        if !sent {
            tracing::debug!(%to, "a message was not sent: the peer is away or slow");
        }
        sent
    }

    fn schedule(&mut self, input: Input) {
        self.schedule_at(self.now_ms(), input);
    }

    fn schedule_at(&mut self, now_ms: u64, input: Input) {
        let Some(scheduler) = &mut self.scheduler else {
            return;
        };
        let effects = scheduler.step(now_ms, input);
        self.effect(effects);
    }

    fn effect(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                // The scheduler says again what matters.
                Effect::Send(to, message) => drop(self.send(to, message)),
                Effect::Propose(command) => {
                    // The scheduler proposes again what did not come through.
                    match Mailbox::entry(command) {
                        Ok(entry) => drop(self.replica.propose(&entry)),
                        Err(failure) => tracing::warn!(%failure, "not proposed"),
                    }
                }
                Effect::NodeLost(node) => {
                    let name = self.replica.state().members().get(&node).map_or("", |member| &member.name);
                    tracing::warn!(%node, name, "lost: what it ran and held is made anew elsewhere");
                    // Where the connection only seems to stand, whoever waits on it must hear of its end.
                    self.network.disconnect(node);
                }
            }
        }
    }

    /// Carries out what the last event caused, until nothing more comes of it.
    fn settle(&mut self) -> Result<(), Error> {
        loop {
            if let Some(mut output) = self.replica.take_output() {
                let mut unreachable = self.send_raft(&output.send);
                // The loop waits for the disk: nothing may be acknowledged before it is there.
                tokio::task::block_in_place(|| self.replica.persist(&mut output))?;
                unreachable.extend(self.send_raft(&output.send_after_persist));
                for node in unreachable {
                    self.replica.report_unreachable(node);
                }
                for event in output.events {
                    self.applied(event);
                }
            } else if let Some(message) = self.to_self.pop_front() {
                self.handle_message(self.member.id, message);
            } else {
                return Ok(());
            }
        }
    }

    /// Sends what can be sent, and returns who could not be reached.
    fn send_raft(&self, messages: &[(NodeId, Bytes)]) -> Vec<NodeId> {
        let Some(mesh) = self.mesh else { return Vec::new() };
        let unsent = messages.iter().filter(|(to, message)| {
            !self.network.send(*to, PeerMessage::Raft { mesh, message: message.clone() })
        });
        unsent.map(|(to, _)| *to).collect()
    }

    /// Follows what the mesh has agreed on.
    fn applied(&mut self, event: Applied) {
        if let Some(input) = Input::from_event(&event) {
            self.schedule(input);
        }
        match event {
            Applied::Applied { request, outcome } => {
                for waiting in self.pending.remove(&request).into_iter().flatten() {
                    // Whoever asked may have gone.
                    let _ = waiting.send(Proposed::Applied(outcome.clone()));
                }
            }
            Applied::MeshFounded { mesh } => self.mesh = Some(mesh),
            Applied::MemberJoined { member } => {
                self.meet(&member);
                if self.is_alive(member.id) {
                    self.node_up(member.id);
                }
                self.keep_membership();
            }
            Applied::MemberLeft { node } => {
                self.loads.remove(&node);
                self.schedule(Input::NodeDown { node });
                self.keep_membership();
            }
            Applied::JobsFreed { jobs } => self.free(jobs),
            Applied::JobAccepted { .. } | Applied::StageDone { .. } | Applied::JobEnded { .. } => {}
            Applied::Restored { .. } | Applied::Reconfigured => {
                self.mesh = self.replica.state().mesh().or(self.mesh);
                self.meet_all();
            }
            Applied::Elected { term } => self.elected(term),
            Applied::Deposed { term } => {
                tracing::info!(term, "no longer the leader");
                self.scheduler = None;
            }
            Applied::LeaderChanged { leader, term } => {
                self.refuse_pending();
                if leader != Some(self.member.id) {
                    tracing::info!(leader = leader.map(|l| l.to_string()), term, "the leader changed");
                }
            }
            Applied::ReadReady { .. } => {}
        }
        self.changed.send_modify(|count| *count += 1);
    }

    /// Off the loop, since it removes a file for each spilled partition.
    fn free(&self, jobs: Vec<JobId>) {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || store.free(&jobs));
    }

    fn meet_all(&self) {
        for member in self.replica.state().members().values() {
            self.meet(member);
        }
    }

    /// Makes sure that the network knows where a member is.
    fn meet(&self, member: &Member) {
        if member.id != self.member.id {
            let addresses = member.addresses.iter().filter_map(|address| address.parse().ok()).collect();
            match member.peer.parse() {
                Ok(peer) => self.network.dial(peer, addresses),
                Err(error) => tracing::warn!(node = %member.id, %error, "a member without a valid peer id"),
            }
        }
    }

    fn elected(&mut self, term: u64) {
        tracing::info!(term, "elected: this node schedules");
        let state = self.replica.state();
        let fence = Fence { epoch: state.epoch(), term };
        let members: Vec<NodeId> = state.members().keys().copied().collect();
        self.scheduler = Some(Scheduler::new(fence, self.now_ms(), state));
        for node in members {
            if self.is_alive(node) {
                self.node_up(node);
            } else {
                self.schedule(Input::NodeDown { node });
            }
        }
        self.keep_membership();
    }

    /// Proposals that this node can no longer bring to an end; their submitters turn to the next leader, and
    /// the request id keeps what does come through from applying twice.
    fn refuse_pending(&mut self) {
        let leader = self.replica.standing().leader;
        for waiting in std::mem::take(&mut self.pending).into_values().flatten() {
            let _ = waiting.send(Proposed::NotLeader(leader));
        }
    }

    fn handle_ask(&mut self, ask: Ask) {
        // An answer that nobody waits for any more is dropped.
        match ask {
            Ask::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Ask::Mesh(reply) => {
                let _ = reply.send(self.mesh_view());
            }
            Ask::Propose(entry, reply) => self.propose(entry, reply),
            Ask::Join(member, reply) => match Mailbox::entry(Command::Join { member }) {
                Ok(entry) => self.propose(entry, reply),
                Err(failure) => {
                    let _ = reply.send(Proposed::Applied(Err(failure)));
                }
            },
            Ask::Job(id, reply) => {
                let mut job = self.replica.state().job_status(id);
                if let Some(job) = &mut job {
                    self.add_live_counts(job);
                }
                let _ = reply.send(job);
            }
            Ask::Jobs(reply) => {
                let state = self.replica.state();
                let jobs = state.jobs().keys().filter_map(|id| state.job_status(*id)).map(|mut job| {
                    self.add_live_counts(&mut job);
                    job.timeline.clear();
                    job
                });
                let _ = reply.send(jobs.collect());
            }
            Ask::Outputs(id, reply) => {
                let _ = reply.send(self.outputs(id));
            }
            Ask::Found(member, reply) => {
                let _ = reply.send(self.found(member));
            }
            Ask::Refusals(reply) => {
                let _ = reply.send(self.refusals.iter().cloned().collect());
            }
            Ask::Lost(partition, node) => {
                if self.scheduler.is_some() {
                    self.schedule(Input::PartitionLost { partition, node });
                } else if let Some(leader) = self.leader {
                    self.send(leader, PeerMessage::Lost { partition, node });
                }
            }
        }
    }

    /// On the leader: the counts of tasks that run, which the replicated state does not hold.
    fn add_live_counts(&self, job: &mut JobStatus) {
        if let Some(stages) = self.scheduler.as_ref().and_then(|scheduler| scheduler.progress(job.id)) {
            job.stages = stages;
        }
    }

    fn propose(&mut self, entry: Entry, reply: oneshot::Sender<Proposed>) {
        if self.pending.len() >= MAX_PENDING {
            let message = format!("{MAX_PENDING} proposals wait for agreement already");
            let _ = reply.send(Proposed::Applied(Err(Failure::Unavailable { message })));
            return;
        }
        let request = entry.request;
        match self.replica.propose(&entry) {
            Ok(()) => self.pending.entry(request).or_default().push(reply),
            Err(ProposeError::NotLeader { leader }) => {
                let _ = reply.send(Proposed::NotLeader(leader));
            }
            Err(error) => {
                let message = error.to_string();
                let _ = reply.send(Proposed::Applied(Err(Failure::Unavailable { message })));
            }
        }
    }

    /// Founds a mesh. Its first random id is its own, the second one names the log's first entry.
    fn found(&mut self, member: Member) -> Result<(), Failure> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(Failure::internal)?;
        let mesh = MeshId(u128::from_be_bytes(bytes));
        self.replica.found(RequestId(mesh.0), mesh, member).map_err(Failure::internal)
    }

    /// On the leader: brings voters and learners closer to what the mesh wants, one change at a time, and hands
    /// over once it is a member no more.
    fn keep_membership(&mut self) {
        let Some(scheduler) = &self.scheduler else { return };
        let me = self.member.id;
        let members: BTreeSet<NodeId> = self.replica.state().members().keys().copied().collect();
        let connected: BTreeSet<NodeId> =
            members.iter().copied().filter(|node| self.is_alive(*node)).collect();
        // A seat is kept for a while for a voter that is away, and given only to who is here.
        let heard = &scheduler.heard_within(DEAD_MS) | &connected;
        let caught_up = &self.replica.caught_up() & &connected;
        let standing = self.replica.standing();
        let change = next_change(&members, &standing.configuration, &heard, &caught_up, me);
        let done = match change {
            Some(change) => {
                tracing::debug!(?change, "changing the voters");
                self.replica.change(&change)
            }
            None if !members.contains(&me) => {
                let heir = heir(&members, &standing.configuration, &connected, me);
                heir.map_or(Ok(()), |heir| self.replica.transfer_leader(heir))
            }
            None => Ok(()),
        };
        if let Err(error) = done {
            tracing::debug!(%error, "the voters stay as they are for now");
        }
    }

    fn is_alive(&self, node: NodeId) -> bool {
        node == self.member.id || self.network.is_connected(node)
    }

    /// Whether a node is there as far as this one can tell: the leader waits for answers, others see connections.
    fn answers(&self, node: NodeId) -> bool {
        self.is_alive(node) && self.scheduler.as_ref().is_none_or(|scheduler| scheduler.is_alive(node))
    }

    /// On the leader: results that nobody collected nor released go after a while, or a mesh whose drivers die
    /// would fill up.
    fn release_old_results(&mut self) {
        if self.scheduler.is_none() || self.release_due > Instant::now() {
            return;
        }
        self.release_due = Instant::now() + config::RELEASE_INTERVAL;
        let old = unix_ms().saturating_sub(config::RESULT_KEPT.as_millis() as u64);
        let jobs = self.replica.state().jobs().iter();
        let jobs =
            jobs.filter(|(_, job)| job.work.is_some() && job.ended_unix_ms.is_some_and(|ended| ended < old));
        let jobs: Vec<JobId> = jobs.map(|(id, _)| *id).collect();
        if !jobs.is_empty() {
            self.effect(vec![Effect::Propose(Command::Release { jobs })]);
        }
    }

    fn publish_hint(&mut self) {
        if self.hint_due > Instant::now() {
            return;
        }
        self.hint_due = Instant::now() + config::HINT_INTERVAL;
        self.loads.insert(self.member.id, self.load());
        self.network.publish(Hint {
            node: self.member.id,
            name: self.member.name.clone(),
            slots: self.member.slots,
            version: self.member.version.clone(),
            load: self.load(),
            leader: self.replica.standing().leader,
            fence: self.replica.fence(),
        });
    }

    fn status(&self) -> Status {
        let state = self.replica.state();
        let standing = self.replica.standing();
        let nodes = state.members().values().map(|member| {
            let role = if standing.leader == Some(member.id) {
                NodeRole::Leader
            } else if standing.configuration.voters.contains(&member.id) {
                NodeRole::Voter
            } else {
                NodeRole::Learner
            };
            let load = if member.id == self.member.id {
                self.load()
            } else {
                self.loads.get(&member.id).copied().unwrap_or_default()
            };
            NodeInfo { member: member.clone(), role, alive: self.answers(member.id), load }
        });
        Status {
            node: self.member.id,
            mesh: state.mesh(),
            leader: standing.leader,
            fence: self.replica.fence(),
            nodes: nodes.collect(),
            voters: standing.configuration.voters.union(&standing.configuration.outgoing).copied().collect(),
        }
    }

    fn mesh_view(&self) -> MeshView {
        let connected = self.network.peers().into_iter().filter(|peer| peer.connected);
        let mut peers: Vec<NodeId> = connected.map(|peer| peer.node).collect();
        peers.push(self.member.id);
        peers.sort_unstable();
        MeshView {
            node: self.member.id,
            mesh: self.replica.state().mesh(),
            leader: self.replica.standing().leader,
            peers,
        }
    }

    fn outputs(&self, id: JobId) -> Option<Outputs> {
        let job = self.replica.state().job(id)?;
        if job.phase != JobPhase::Succeeded {
            return None;
        }
        let work = job.work.as_ref()?;
        let stage = work.graph.stages.last()?.id;
        let partitions = work.outputs.last()?.clone()?;
        Some(Outputs { stage, schema: work.graph.schema.clone(), partitions })
    }
}
