//! The node: the one loop that owns this node's part in the mesh, and wires everything else to it.
//!
//! ```text
//!   network events ─┐                                       ┌─> network (Raft, orders to workers)
//!   reports ────────┤                                       ├─> worker, store (orders to this node)
//!   asks ───────────┼─> participant (replica, scheduler) ───┼─> answers to asks
//!   ticks ──────────┤                                       └─> log writer ─┐
//!   writes done ────┘<──────────────────────────────────────────────────────┘
//! ```
//!
//! Events go in, as many as wait; whatever they cause comes out, and only then the next are taken. It waits for nothing
//! else, nor for the disk.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use floe_consensus::participant::{Action, CarryOnError, Order, Participant};
use floe_consensus::replica::{self, TICK_MS};
use floe_consensus::state_machine::Job;
use floe_consensus::{Command, Entry, Event as Applied, LogError, ProposeError, Replica, Written};
use floe_network::{Event as NetworkEvent, Hint, Network};
use floe_protocol::job::{MAX_LISTED_JOBS, MAX_TIMELINE, TaskRun};
use floe_protocol::message::{Inventory, Made, Report, Status};
use floe_protocol::version::FLOE_VERSION;
use floe_protocol::{
    Era, Failure, Fence, JobId, JobPhase, JobStatus, Load, Member, MeshId, NodeId, NodeInfo, NodeRole,
    PeerMessage, Placed, RequestId, StageGraph, TaskId,
};
use floe_transport::{Gate, Refusal, node_id};
use libp2p::Multiaddr;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant as Moment, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use crate::blobs::{self, Blobs};
use crate::calls::Calls;
use crate::clock;
use crate::config::{self, Settings};
use crate::data_dir::{self, DataDir};
use crate::disk::Disk;
use crate::formation;
use crate::in_use::InUse;
use crate::intake::Intake;
use crate::job_changes::JobChanges;
use crate::keys::{KeySource, Keys};
use crate::large_messages::{self, LargeMessages};
use crate::log_file::{self, LogFile};
use crate::log_writer::LogWriter;
use crate::mailbox::{Ask, Mailbox, Outputs, Proposed};
use crate::outgoing::Outgoing;
use crate::places::Places;
use crate::plans::{PlanKeeper, Plans};
use crate::progress::Progress;
use crate::relief::Relief;
use crate::results::Results;
use crate::session::Sessions;
use crate::store::{self, Budget, Store};
use crate::stream::Streams;
use crate::submit::Submitter;
use crate::ticks::Ticks;
use crate::worker::hosts::{Hosts, HostsConfig};
use crate::worker::{self, Worker};

/// How many reports of this node's worker may wait for the loop.
const REPORTS: usize = 256;

/// How many events are taken in before what they cause is carried out, and written in one go: under load most of the time
/// is the disk's, and heartbeats must not wait for too much.
const MAX_AT_ONCE: usize = 256;

/// How many proposals may wait for agreement on this node; more are told to try again.
const MAX_PENDING: usize = 4096;

/// How many reads may wait for the leader's word on this node; more are told to try again.
const MAX_READS: usize = 1024;

/// How many refusals are remembered for whoever asks why nobody takes this node in.
const MAX_REFUSALS: usize = 16;

/// When a driver is to try again while all disks are full: nodes say several times a second how theirs are.
const DISKS_RETRY_MS: u64 = 1_000;

/// How long after a start the node may take to have its first address.
const LISTEN_PATIENCE: Duration = Duration::from_secs(5);

/// A running node.
#[derive(Debug)]
pub struct Node {
    mailbox: Mailbox,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), Error>>,
    /// Keeps the node a member until it leaves.
    stay: Option<AbortOnDropHandle<Failure>>,
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
    /// The blobs cannot be used.
    #[error(transparent)]
    Blobs(#[from] blobs::Error),
    /// The network cannot be used.
    #[error(transparent)]
    Network(#[from] floe_network::Error),
    /// The log cannot be read back.
    #[error(transparent)]
    Open(#[from] replica::OpenError),
    /// The log cannot be written: the node must not go on as if it could.
    #[error(transparent)]
    Write(#[from] LogError),
    /// Its part in the mesh cannot go on.
    #[error(transparent)]
    Broken(#[from] replica::BrokenError),
    /// There is no thread to write the log.
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(std::io::Error),
    /// No randomness for the ids that must be unlike all others.
    #[error("the operating system gives no random numbers: {0}")]
    Random(getrandom::Error),
    /// No place for an embedded node.
    #[error("cannot create a temporary directory for the embedded mesh: {0}")]
    Temporary(std::io::Error),
    /// It must not go on.
    #[error("this node stops: {0}")]
    Refused(Failure),
    /// It did not become a member.
    #[error("this node did not become a member of a mesh: {0}")]
    Formation(Failure),
    /// The loop ended by itself.
    #[error("the node stopped unexpectedly: {0}")]
    Stopped(String),
}

impl Error {
    /// Whether a later start of the same node is known, so that this one may only go on as a new node.
    pub fn is_superseded(&self) -> bool {
        matches!(
            self,
            Self::Refused(Failure::Superseded { .. }) | Self::Formation(Failure::Superseded { .. })
        )
    }
}

impl Node {
    /// Starts a node and waits until it is a member of a mesh that has a leader.
    pub async fn start(settings: Settings, mut data_dir: DataDir, key: KeySource) -> Result<Self, Error> {
        let keys = Keys::new(key);
        let id = node_id(&data_dir.identity().public().to_peer_id());
        let (file, log) = LogFile::open(&data_dir.log_file(), id)?;
        data_dir.remember_log()?;
        let disk = data_dir.disk()?;
        let budget = Budget::new(settings.memory_bytes);
        let store = Store::open(&data_dir.path().join("partitions"), id, budget, disk.clone())?;
        let (network, events) = open_network(&settings, &data_dir, keys.gate()).await?;
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
        let job_changes = JobChanges::default();
        let (mailbox, asks) = Mailbox::new(network.clone(), changes, job_changes.clone());
        let streams = Streams::new(network.clone(), store.clone());
        let (reports, reported) = mpsc::channel(REPORTS);
        let blobs = Blobs::open(&data_dir.path().join("blobs"), disk.clone(), network.clone())?;
        let hosts = Hosts::new(hosts_config(&settings, &data_dir, disk), Arc::new(blobs.clone()));
        let config = worker::Config { slots: settings.slots };
        let plans = Plans::new(blobs.clone(), network.clone());
        let worker =
            Worker::start(config, store.clone(), hosts, (streams.clone(), Arc::new(plans.clone())), reports);
        let submitter = Submitter::new(mailbox.clone(), store.clone(), streams.clone(), plans.clone());
        let sessions = Sessions::new(mailbox.clone(), worker.clone());
        let progress = Progress::new(mailbox.clone());
        let results = Results::new(
            mailbox.clone(),
            streams.clone(),
            progress.clone(),
            Outgoing::new(settings.memory_bytes),
        );
        let calls = Calls {
            mailbox: mailbox.clone(),
            submitter,
            streams,
            results,
            progress,
            reading: InUse::default(),
            store: store.clone(),
            blobs,
            sessions: sessions.clone(),
            logs: worker.hosts().logs().clone(),
            places: Places::default(),
            gate: keys.gate().clone(),
            intake: Intake::new(settings.memory_bytes),
            large: LargeMessages::default(),
            faults: settings.faults,
        };
        let relief = Relief::new(data_dir.reserve(), store.clone(), calls.blobs.clone(), calls.logs.clone());
        let (stop, stopped) = oneshot::channel();
        let first_request = RequestId(random_id()?);
        let state = Loop {
            log: LogWriter::start(file).map_err(Error::Thread)?,
            participant: Participant::new(member.clone(), replica, first_request, clock::read()),
            network,
            worker,
            store,
            calls,
            sessions,
            pending: BTreeMap::new(),
            reads: BTreeMap::new(),
            loads: BTreeMap::new(),
            refusals: VecDeque::new(),
            keys,
            leaving: BTreeMap::new(),
            forgotten: false,
            runs: BTreeMap::new(),
            copying: BTreeSet::new(),
            relief,
            plans: PlanKeeper::new(plans),
            changed,
            job_changes,
            hint_due: Instant::now(),
            _data_dir: data_dir,
        };
        let task = tokio::spawn(state.run(events, asks, reported, stopped));
        let mut node = Self { mailbox, stop, task, stay: None };
        match formation::form(&node.mailbox, &member, &settings).await {
            Ok(()) => {
                let stay = tokio::spawn(formation::stay(node.mailbox.clone(), member, settings));
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

    /// Ends with the loop, which does not end by itself unless something failed, or when this node must not go on.
    pub async fn failed(&mut self) -> Error {
        if let Some(stay) = &mut self.stay {
            let refused = async {
                match stay.await {
                    Ok(failure @ (Failure::Refused { .. } | Failure::Superseded { .. })) => failure,
                    // The loop that it asks has ended, and knows better why.
                    Ok(_) | Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                failure = refused => return Error::Refused(failure),
                _ = self.mailbox.stopped() => {}
            }
        }
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

/// Where this node's functions run, and within what.
fn hosts_config(settings: &Settings, data_dir: &DataDir, disk: Disk) -> HostsConfig {
    HostsConfig {
        disk,
        slots: settings.slots,
        memory_bytes: settings.memory_bytes,
        scratch: data_dir.path().join("hosts"),
        logs: data_dir.path().join("logs"),
        environments: settings.environments.clone().unwrap_or_else(|| data_dir.path().join("environments")),
        python: settings.python.clone(),
    }
}

async fn open_network(
    settings: &Settings,
    data_dir: &DataDir,
    gate: &Gate,
) -> Result<(Network, mpsc::Receiver<NetworkEvent>), Error> {
    let host = if settings.everywhere { "0.0.0.0" } else { "127.0.0.1" };
    let at =
        |port: u16| -> Vec<Multiaddr> { format!("/ip4/{host}/tcp/{port}").parse().into_iter().collect() };
    let config = |listen: Vec<Multiaddr>| floe_network::Config {
        identity: data_dir.identity().clone(),
        gate: gate.clone(),
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
    Written(Written),
}

struct Loop {
    log: LogWriter,
    participant: Participant,
    network: Network,
    worker: Worker,
    store: Store,
    calls: Calls,
    sessions: Sessions,
    /// Proposals of this node that are not agreed yet.
    pending: BTreeMap<RequestId, Vec<oneshot::Sender<Proposed>>>,
    /// Reads that wait until this node's state is new enough.
    reads: BTreeMap<RequestId, oneshot::Sender<bool>>,
    /// What hints say of the nodes' loads.
    loads: BTreeMap<NodeId, Load>,
    /// Who was not admitted lately, the newest in front.
    refusals: VecDeque<(Multiaddr, Refusal)>,
    keys: Keys,
    /// Nodes that must not come back, and how long their connections still stand.
    leaving: BTreeMap<NodeId, Instant>,
    /// Whether the mesh has said that this node must not come back.
    forgotten: bool,
    /// When this node made what it holds, for the next leader.
    runs: BTreeMap<TaskId, TaskRun>,
    /// Copies of partitions that are on their way to other nodes.
    copying: BTreeSet<(TaskId, NodeId)>,
    relief: Relief,
    plans: PlanKeeper,
    changed: watch::Sender<u64>,
    job_changes: JobChanges,
    hint_due: Instant,
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
        let mut ticks = Ticks::new(Duration::from_millis(TICK_MS));
        let mut tick = pin!(sleep_until(Moment::now()));
        self.follow_door();
        loop {
            self.settle()?;
            if self.forgotten {
                self.worker.hosts().shutdown().await;
                return Err(Error::Refused(Failure::Refused { message: Refusal::Forgotten.to_string() }));
            }
            let due = ticks.due(self.participant.quiet_ticks());
            if tick.deadline() != due {
                tick.as_mut().reset(due);
            }
            let event = tokio::select! {
                biased;
                _ = &mut stop => break,
                () = &mut tick => None,
                written = self.log.written() => Some(Event::Written(written?)),
                Some(event) = events.recv() => Some(Event::Network(event)),
                Some(report) = reports.recv() => Some(Event::Report(report)),
                Some(ask) = asks.recv() => Some(Event::Ask(ask)),
                else => break,
            };
            match ticks.passed(Moment::now()) {
                0 => {}
                passed => self.tick(passed),
            }
            if let Some(event) = event {
                self.handle(event)?;
            }
            // What has come meanwhile is taken in together.
            for _ in 0..MAX_AT_ONCE {
                let next = match events.try_recv() {
                    Ok(event) => Event::Network(event),
                    Err(_) => match reports.try_recv() {
                        Ok(report) => Event::Report(report),
                        Err(_) => match asks.try_recv() {
                            Ok(ask) => Event::Ask(ask),
                            Err(_) => break,
                        },
                    },
                };
                self.handle(next)?;
            }
        }
        self.worker.abort(&self.worker.running());
        self.worker.hosts().shutdown().await;
        let store = self.store.clone();
        let written = tokio::task::spawn_blocking(move || store.write_all());
        if tokio::time::timeout(config::LEAVE_PATIENCE, written).await.is_err() {
            tracing::warn!(
                "not all partitions were written to disk in time: they are made again where needed"
            );
        }
        self.network.clone().shutdown().await;
        Ok(())
    }

    fn me(&self) -> NodeId {
        self.participant.member().id
    }

    fn handle(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Network(event) => self.handle_network(event),
            Event::Report(report) => self.report(report),
            Event::Ask(ask) => self.handle_ask(ask),
            Event::Written(written) => self.participant.persisted(written)?,
        }
        Ok(())
    }

    fn tick(&mut self, ticks: u32) {
        self.participant.tick(clock::read(), ticks);
        // A read may be lost; whoever waited for it asks again.
        self.reads.retain(|_, reply| !reply.is_closed());
        self.hang_up();
        self.publish_hint();
    }

    fn handle_network(&mut self, event: NetworkEvent) {
        let now = clock::read();
        match event {
            NetworkEvent::Listening(address) => tracing::info!(%address, "listening"),
            NetworkEvent::PeerUp { node, .. } => {
                tracing::info!(%node, "connected");
                self.participant.connected(now, node);
            }
            NetworkEvent::PeerDown { node } => {
                tracing::info!(%node, "disconnected");
                self.loads.remove(&node);
                self.participant.disconnected(now, node);
            }
            NetworkEvent::Message { from, message } => {
                if let PeerMessage::Report(report) = &message {
                    self.job_changes.tell(report.attempt.task.job);
                }
                if let PeerMessage::Alive { load, .. } = &message {
                    self.loads.insert(from, *load);
                }
                self.participant.receive(now, from, message);
            }
            NetworkEvent::Call { from, request, stream } => self.calls.serve(from, request, stream),
            NetworkEvent::Hint { from, hint } => {
                self.loads.insert(from, hint.load);
            }
            NetworkEvent::Refused { address, refusal } => {
                tracing::debug!(%address, "not admitted: {refusal}");
                self.forgotten |= refusal == Refusal::Forgotten;
                self.refusals.truncate(MAX_REFUSALS - 1);
                self.refusals.push_front((address, refusal));
            }
        }
    }

    fn report(&mut self, report: Report) {
        if report.outcome.is_ok() {
            self.runs.insert(report.attempt.task, report.run.clone());
        }
        self.job_changes.tell(report.attempt.task.job);
        self.participant.report(report);
    }

    /// Carries out what the last event caused, until nothing more comes of it.
    fn settle(&mut self) -> Result<(), Error> {
        while let Some(action) = self.participant.poll()? {
            match action {
                Action::Send(to, message) if large_messages::is_large(&message) => {
                    large_messages::send(self.calls.mailbox.clone(), to, message);
                }
                Action::Send(to, message) => {
                    if !self.network.send(to, &message) {
                        tracing::debug!(%to, "a message was not sent: the peer is away or slow");
                        self.participant.not_sent(to, message);
                    }
                }
                Action::Order(order) => self.obey(order),
                Action::Event(event) => self.applied(event),
                Action::Dial(member) => self.meet(&member),
                Action::Disconnect(node) => {
                    let members = self.participant.state().members();
                    // Of one that has left, nothing is lost.
                    if let Some(Member { name, .. }) = members.get(&node) {
                        tracing::warn!(%node, name, "lost: what it ran and held is made anew elsewhere");
                    }
                    // Where the connection only seems to stand, whoever waits on it must hear of its end.
                    self.network.disconnect(node);
                }
                Action::Refused { from, fence } => {
                    tracing::info!(%from, %fence, "an order of a former leader is refused");
                }
                Action::Left { era, to } => {
                    tracing::warn!("this node's mesh ({era}) has merged into another ({to}): joining that");
                    self.refuse_pending();
                    self.changed.send_modify(|count| *count += 1);
                    self.job_changes.tell_all();
                }
                Action::Write(persist) => self.log.write(*persist)?,
            }
        }
        Ok(())
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Assign(assignment) => self.worker.assign(*assignment),
            Order::Abort(attempts) => self.worker.abort(&attempts),
            Order::Free(jobs) => {
                self.worker.abort_jobs(&jobs);
                self.runs.retain(|task, _| !jobs.contains(&task.job));
                self.free(jobs);
            }
            Order::Copy { partition, to } => self.copy(partition, to),
            Order::Inventory { to, fence } => {
                let inventory = self.inventory(fence);
                self.participant.send(to, PeerMessage::Inventory(inventory));
            }
            Order::Alive { to, fence } => {
                let load = self.worker.load();
                self.participant.send(to, PeerMessage::Alive { fence, load });
            }
        }
    }

    fn inventory(&mut self, fence: Fence) -> Inventory {
        let held = self.store.held();
        let tasks: BTreeSet<TaskId> = held.iter().map(|(task, _)| *task).collect();
        self.runs.retain(|task, _| tasks.contains(task));
        let runs = self.runs.iter().take(MAX_TIMELINE).map(|(task, run)| (*task, run.clone())).collect();
        Inventory {
            fence,
            held,
            runs,
            running: self.worker.running(),
            sessions: self.sessions.attended(),
            reading: self.calls.reading.recent(),
            submitting: self.calls.submitter.submitting(),
            load: self.worker.load(),
        }
    }

    /// Follows what the mesh has agreed on.
    fn applied(&mut self, event: Applied) {
        self.tell_who_waits(&event);
        match event {
            Applied::Applied { request, outcome } => {
                let waiting = self.pending.remove(&request);
                if let (None, Err(failure)) = (&waiting, &outcome)
                    && self.participant.scheduler().is_some()
                {
                    // This node's own: another era's jobs that there is no room for, above all.
                    tracing::info!(%failure, "the mesh did not agree to what its leader proposed");
                }
                for waiting in waiting.into_iter().flatten() {
                    // Whoever asked may have gone.
                    let _ = waiting.send(Proposed::Applied(outcome.clone()));
                }
            }
            Applied::MemberLeft { node } => {
                self.loads.remove(&node);
                self.follow_door();
            }
            Applied::DoorChanged
            | Applied::MeshFounded { .. }
            | Applied::MemberJoined { .. }
            | Applied::Restored { .. } => self.follow_door(),
            Applied::JobsFreed { jobs, .. } => {
                self.calls.logs.free(&jobs);
                self.free(jobs);
            }
            Applied::Elected { term } => tracing::info!(term, "elected: this node schedules"),
            Applied::Deposed { term } => tracing::info!(term, "no longer the leader"),
            Applied::LeaderChanged { leader, term } => {
                self.refuse_pending();
                if leader != Some(self.me()) {
                    tracing::info!(leader = leader.map(|l| l.to_string()), term, "the leader changed");
                }
            }
            Applied::Yielded { to, .. } => tracing::info!("this mesh's jobs go on in another: {to}"),
            Applied::CarriedOn { era } => {
                tracing::warn!("this node goes on without the voters that are gone: {era}");
            }
            Applied::JobAccepted { .. }
            | Applied::JobAdopted { .. }
            | Applied::StageDone { .. }
            | Applied::JobEnded { .. }
            | Applied::Reconfigured => {}
            Applied::ReadReady { request } => {
                if let Some(reply) = self.reads.remove(&request) {
                    // Whoever asked may have gone.
                    let _ = reply.send(true);
                }
            }
        }
    }

    /// Lets those in, and only those, whom the mesh has agreed on.
    fn follow_door(&mut self) {
        let state = self.participant.state();
        if let Some(changed) = self.keys.follow(state) {
            tokio::spawn(changed.tell(self.network.clone()));
        }
        let forgotten = state.door().forgotten().iter().filter(|node| **node != self.me());
        let connected: Vec<_> = forgotten.filter(|node| self.network.is_connected(**node)).copied().collect();
        for node in connected {
            self.leaving.entry(node).or_insert_with(|| Instant::now() + config::LEAVE_PATIENCE);
        }
    }

    /// Closes the connections to nodes that must not come back, as soon as the others can agree without them.
    fn hang_up(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        let floe_consensus::membership::Configuration { voters, learners, outgoing } =
            self.participant.replica().standing().configuration;
        let needed = |node: &NodeId| [&voters, &learners, &outgoing].iter().any(|nodes| nodes.contains(node));
        let now = Instant::now();
        self.leaving.retain(|node, until| {
            let stays = needed(node) && now < *until;
            if !stays {
                tracing::warn!(%node, "removed from the mesh for good: its connections are closed");
                self.network.shut_out(*node);
            }
            stays
        });
    }

    /// Wakes those, and only those, who wait for this.
    fn tell_who_waits(&self, event: &Applied) {
        match event {
            Applied::JobAccepted { job, .. }
            | Applied::JobAdopted { job, .. }
            | Applied::StageDone { job, .. }
            | Applied::JobEnded { job, .. } => self.job_changes.tell(*job),
            Applied::JobsFreed { jobs, .. } => jobs.iter().for_each(|job| self.job_changes.tell(*job)),
            Applied::Applied { .. } | Applied::ReadReady { .. } | Applied::DoorChanged => {}
            Applied::MeshFounded { .. }
            | Applied::MemberJoined { .. }
            | Applied::MemberLeft { .. }
            | Applied::Reconfigured => self.changed.send_modify(|count| *count += 1),
            Applied::Restored { .. }
            | Applied::CarriedOn { .. }
            | Applied::Yielded { .. }
            | Applied::Elected { .. }
            | Applied::Deposed { .. }
            | Applied::LeaderChanged { .. } => {
                self.changed.send_modify(|count| *count += 1);
                self.job_changes.tell_all();
            }
        }
    }

    /// What a driver is just sending again stays. Files are removed off the loop.
    fn free(&self, mut jobs: Vec<JobId>) {
        jobs.retain(|job| !self.calls.submitter.is_arriving(*job));
        let freed = self.store.free(&jobs);
        if !freed.is_empty() {
            tokio::task::spawn_blocking(move || drop(freed));
        }
    }

    /// Gives another node a copy of a partition, unless that is under way.
    fn copy(&mut self, partition: TaskId, to: NodeId) {
        if !self.copying.insert((partition, to)) {
            return;
        }
        let (streams, mailbox) = (Arc::clone(&self.calls.streams), self.calls.mailbox.clone());
        let meta = self.store.meta(partition);
        tokio::spawn(async move {
            let copied = match meta {
                Some(meta) => streams.copy_to(to, partition, meta).await,
                None => Err(Failure::InputLost { partition, node: mailbox.network().node() }),
            };
            if let Err(failure) = &copied {
                tracing::warn!(%partition, node = %to, %failure, "a frame was not copied");
            }
            mailbox.tell(Ask::Copied(partition, to, copied.is_ok())).await;
        });
    }

    /// Makes sure that the network knows where a member is.
    fn meet(&self, member: &Member) {
        let addresses = member.addresses.iter().filter_map(|address| address.parse().ok()).collect();
        match member.peer.parse() {
            Ok(peer) => self.network.dial(peer, addresses),
            Err(error) => tracing::warn!(node = %member.id, %error, "a member without a valid peer id"),
        }
    }

    /// Proposals that this node can no longer bring to an end; their submitters turn to the next leader, and
    /// the request id keeps what does come through from applying twice.
    fn refuse_pending(&mut self) {
        let leader = self.participant.leader();
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
                let _ = reply.send(self.participant.view());
            }
            Ask::Propose(entry, reply) => self.propose(entry, reply),
            Ask::Join(member, reply) => {
                match self.participant.admit(&member).and_then(|()| Mailbox::entry(Command::Join { member }))
                {
                    Ok(entry) => self.propose(entry, reply),
                    Err(failure) => {
                        let _ = reply.send(Proposed::Applied(Err(failure)));
                    }
                }
            }
            Ask::Job(id, reply) => {
                let mut job = self.participant.state().job_status(id);
                if let Ok(job) = &mut job {
                    self.add_live_counts(job);
                }
                let _ = reply.send(job);
            }
            Ask::Progress(id, reply) => {
                let mut job = self.participant.state().job_progress(id);
                if let Ok(job) = &mut job {
                    self.add_live_counts(job);
                }
                let _ = reply.send(job);
            }
            Ask::Room(reply) => {
                let _ = reply.send(self.room());
            }
            Ask::Current(reply) => self.read(reply),
            Ask::Jobs(reply) => {
                let _ = reply.send(self.newest_jobs());
            }
            Ask::Outputs(id, reply) => {
                let _ = reply.send(self.outputs(id));
            }
            Ask::Made(id, partition, reply) => {
                let _ = reply.send((self.made(id, partition), self.participant.leader()));
            }
            Ask::Found(reply) => {
                let _ = reply.send(self.found());
            }
            Ask::Refusals(reply) => {
                let _ = reply.send(self.refusals.iter().cloned().collect());
            }
            Ask::Message(from, message) => self.participant.receive(clock::read(), from, message),
            Ask::WithholdVote(withholds) => self.participant.withhold_vote(withholds),
            Ask::NotSent(to, message) => self.participant.not_sent(to, message),
            Ask::Lost(partition, node) => self.participant.lost(partition, node),
            Ask::Copied(partition, node, done) => {
                self.copying.remove(&(partition, node));
                self.participant.copied(partition, node, done);
            }
            Ask::Survivor(reply) => {
                let _ = reply.send(self.participant.survivor());
            }
            Ask::CarryOn(era, reply) => {
                let _ = reply.send(self.carry_on(era));
            }
        }
    }

    fn newest_jobs(&self) -> Vec<JobStatus> {
        let state = self.participant.state();
        let mut newest: Vec<_> =
            state.jobs().iter().map(|(id, job)| (Reverse(job.submitted_at.unix_ms()), *id)).collect();
        newest.sort_unstable();
        newest.truncate(MAX_LISTED_JOBS);
        let jobs = newest.into_iter().filter_map(|(_, id)| state.job_progress(id).ok());
        let with_live_counts = jobs.map(|mut job| {
            self.add_live_counts(&mut job);
            job
        });
        with_live_counts.collect()
    }

    /// On the leader: the counts of tasks that run, which the replicated state does not hold.
    fn add_live_counts(&self, job: &mut JobStatus) {
        if let Some(stages) = self.participant.scheduler().and_then(|scheduler| scheduler.progress(job.id)) {
            job.stages = stages;
        }
    }

    fn propose(&mut self, entry: Entry, reply: oneshot::Sender<Proposed>) {
        if self.pending.len() >= MAX_PENDING {
            let message = format!("{MAX_PENDING} proposals wait for agreement already");
            let _ = reply.send(Proposed::NotNow(message));
            return;
        }
        let request = entry.request;
        match self.participant.propose(&entry) {
            Ok(()) => self.pending.entry(request).or_default().push(reply),
            Err(ProposeError::NotLeader { leader }) => {
                let _ = reply.send(Proposed::NotLeader(leader));
            }
            Err(error) => {
                let _ = reply.send(Proposed::NotNow(error.to_string()));
            }
        }
    }

    /// Whether another job would be taken on, as far as this node knows.
    fn room(&self) -> Result<(), Failure> {
        let state = self.participant.state();
        if !state.members().is_empty() && state.members().values().all(|member| member.slots == 0) {
            let message = "no node of this mesh runs anything: all were started with --slots 0".to_owned();
            return Err(Failure::Unavailable { message });
        }
        self.check_disks()?;
        state.check_room(0)
    }

    /// Whether there is a node that runs something and has room on its disk, as far as they said.
    fn check_disks(&self) -> Result<(), Failure> {
        let members = self.participant.state().members().values();
        let mut workers = members.filter(|member| member.slots > 0 && self.participant.answers(member.id));
        let is_short = |member: &Member| match member.id == self.me() {
            true => self.store.disk().is_short(),
            false => self.loads.get(&member.id).is_some_and(|load| load.disk_short),
        };
        let Some(first) = workers.next() else { return Ok(()) };
        if !is_short(first) || !workers.all(is_short) {
            return Ok(());
        }
        let message = "the mesh is full: the disks of all nodes that run tasks are nearly full: free some of them, or \
                       release results that are not needed any more";
        Err(Failure::Busy { message: message.to_owned(), retry_ms: DISKS_RETRY_MS })
    }

    fn read(&mut self, reply: oneshot::Sender<bool>) {
        let request = Mailbox::request_id().ok().filter(|_| self.reads.len() < MAX_READS);
        match request.filter(|request| self.participant.read_index(*request)) {
            Some(request) => drop(self.reads.insert(request, reply)),
            // Whoever asked may have gone.
            None => drop(reply.send(false)),
        }
    }

    fn found(&mut self) -> Result<(), Failure> {
        let mesh = MeshId::founded_at(clock::wall_time(), random_id().map_err(Failure::internal)?);
        self.participant.found(mesh).map_err(Failure::internal)
    }

    /// Goes on without the voters that are gone, since this node has the longest log of those that are left.
    fn carry_on(&mut self, era: Era) -> Result<(), Failure> {
        self.participant.recover(era).map_err(|error| match error {
            CarryOnError::Propose(ProposeError::Unwritable(_)) => Failure::internal(error),
            CarryOnError::Propose(_) => Failure::Unavailable { message: format!("{error}; try again") },
            _ => Failure::Refused { message: format!("node {} does not carry on: {error}", self.me()) },
        })
    }

    fn publish_hint(&mut self) {
        if self.hint_due > Instant::now() {
            return;
        }
        self.hint_due = Instant::now() + config::HINT_INTERVAL;
        let load = self.worker.load();
        let state = self.participant.state();
        self.relief.look(|| {
            let works = state.jobs().values().filter_map(|job| job.work.as_ref());
            works.map(|work| Arc::clone(&work.graph)).collect()
        });
        let votes = self.participant.replica().standing().configuration.voters.contains(&self.me());
        self.plans.look(state.jobs_changed(), votes, || {
            let works = state.jobs().values().filter_map(|job| job.work.as_ref());
            works.filter_map(|work| work.graph.plan).collect()
        });
        let member = self.participant.member();
        self.loads.insert(member.id, load);
        self.network.publish(Hint {
            node: member.id,
            name: member.name.clone(),
            slots: member.slots,
            version: member.version.clone(),
            load,
            leader: self.participant.leader(),
            term: self.participant.replica().standing().term,
        });
    }

    fn status(&self) -> Status {
        let state = self.participant.state();
        let standing = self.participant.replica().standing();
        let leader = self.participant.leader();
        let me = self.me();
        let nodes = state.members().values().map(|member| {
            let role = if leader == Some(member.id) {
                NodeRole::Leader
            } else if standing.configuration.voters.contains(&member.id) {
                NodeRole::Voter
            } else {
                NodeRole::Learner
            };
            let load = if member.id == me {
                self.worker.load()
            } else {
                self.loads.get(&member.id).copied().unwrap_or_default()
            };
            NodeInfo { member: member.clone(), role, alive: self.participant.answers(member.id), load }
        });
        Status {
            node: me,
            era: state.era(),
            leader,
            term: standing.term,
            nodes: nodes.collect(),
            voters: standing.configuration.voters.union(&standing.configuration.outgoing).copied().collect(),
            rival: self.participant.rival(),
        }
    }

    fn made(&self, id: JobId, partition: u32) -> Result<Made, Failure> {
        let job = self.participant.state().find(id)?;
        match &job.phase {
            JobPhase::Running => {
                let scheduler = self.participant.scheduler();
                return Ok(scheduler.map_or(Made::NotYet, |scheduler| scheduler.made(id, partition)));
            }
            JobPhase::Failed(failure) => return Err(failure.clone()),
            JobPhase::Cancelled => return Err(Failure::Cancelled),
            JobPhase::Succeeded => {}
        }
        let (graph, placed) = result_of(id, job)?;
        let (Some(stage), Some(placed)) = (graph.stages.last(), placed.get(partition as usize)) else {
            return Ok(Made::Beyond);
        };
        Ok(Made::Here { stage: stage.id, placed: placed.clone(), schema: graph.schema.clone() })
    }

    fn outputs(&self, id: JobId) -> Result<Option<Outputs>, Failure> {
        let job = self.participant.state().find(id)?;
        if job.phase != JobPhase::Succeeded {
            return Ok(None);
        }
        let (graph, placed) = result_of(id, job)?;
        let Some(stage) = graph.stages.last().map(|stage| stage.id) else { return Ok(None) };
        Ok(Some(Outputs { stage, schema: graph.schema.clone(), partitions: placed.to_vec() }))
    }
}

/// The graph of a succeeded job, and where its last stage's partitions lie.
fn result_of(id: JobId, job: &Job) -> Result<(&StageGraph, &[Placed]), Failure> {
    let work = job.work.as_ref();
    let result =
        work.and_then(|work| Some((work.graph.as_ref(), work.outputs.last()?.as_ref()?.placed.as_slice())));
    result.ok_or_else(|| match job.freed {
        Some(freed) => Failure::Freed { job: id, freed },
        None => Failure::internal(format!("job {id} has succeeded, and nothing says where its result lies")),
    })
}

fn random_id() -> Result<u128, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    Ok(u128::from_be_bytes(bytes))
}
