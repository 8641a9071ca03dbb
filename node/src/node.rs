//! A node: what it is made of, and its life from start to end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use floe_consensus::Replica;
use floe_consensus::participant::Participant;
use floe_consensus::replica;
use floe_network::{Event as NetworkEvent, Network};
use floe_protocol::version::FLOE_VERSION;
use floe_protocol::{Failure, Member};
use floe_transport::{Gate, node_id};
use libp2p::Multiaddr;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::blobs::{self, Blobs};
use crate::calls::Calls;
use crate::clock;
use crate::config::Settings;
use crate::data_dir::{self, DataDir};
use crate::disk::Disk;
use crate::event_loop::{self, EventLoop, Sources};
use crate::formation;
use crate::in_use::InUse;
use crate::intake::Intake;
use crate::job_changes::JobChanges;
use crate::keys::{KeySource, Keys};
use crate::large_messages::LargeMessages;
use crate::log_file::{self, LogFile};
use crate::log_writer::LogWriter;
use crate::mailbox::Mailbox;
use crate::outgoing::Outgoing;
use crate::partitions::Partitions;
use crate::peers::Peers;
use crate::places::Places;
use crate::plans::{PlanKeeper, Plans};
use crate::progress::Progress;
use crate::proposals::Proposals;
use crate::relief::Relief;
use crate::results::Results;
use crate::session::Sessions;
use crate::store::{self, Budget, Store};
use crate::stream::Streams;
use crate::submit::Submitter;
use crate::wakeups::Wakeups;
use crate::worker::hosts::{Hosts, HostsConfig};
use crate::worker::{self, Worker};

/// How many reports of this node's worker may wait for the loop.
const REPORTS: usize = 256;

/// How long after a start the node may take to have its first address.
const LISTEN_PATIENCE: Duration = Duration::from_secs(5);

/// A running node.
#[derive(Debug)]
pub struct Node {
    mailbox: Mailbox,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), event_loop::Error>>,
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
    /// There is no thread to write the log.
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(std::io::Error),
    /// The node did not get as far as its loop.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// No place for an embedded node.
    #[error("cannot create a temporary directory for the embedded mesh: {0}")]
    Temporary(std::io::Error),
    /// It cannot go on, or must not.
    #[error(transparent)]
    Ended(#[from] event_loop::Error),
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
            Self::Ended(event_loop::Error::Refused(Failure::Superseded { .. }))
                | Self::Formation(Failure::Superseded { .. })
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
            sessions,
            logs: worker.hosts().logs().clone(),
            places: Places::default(),
            gate: keys.gate().clone(),
            intake: Intake::new(settings.memory_bytes),
            large: LargeMessages::default(),
            faults: settings.faults,
        };
        let relief = Relief::new(data_dir.reserve(), store.clone(), calls.blobs.clone(), calls.logs.clone());
        let (stop, stopped) = oneshot::channel();
        let first_request = Mailbox::request_id()?;
        let event_loop = EventLoop {
            log: LogWriter::start(file).map_err(Error::Thread)?,
            participant: Participant::new(member.clone(), replica, first_request, clock::read()),
            network: network.clone(),
            peers: Peers::new(id, network, keys),
            worker,
            partitions: Partitions::new(
                store.clone(),
                Arc::clone(&calls.streams),
                mailbox.clone(),
                calls.submitter.clone(),
            ),
            store,
            calls,
            proposals: Proposals::default(),
            wakeups: Wakeups::new(changed, job_changes),
            relief,
            plans: PlanKeeper::new(plans),
            hint_due: Instant::now(),
            data_dir,
        };
        let task = tokio::spawn(event_loop.run(Sources { events, asks, reports: reported, stop: stopped }));
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
                failure = refused => return event_loop::Error::Refused(failure).into(),
                _ = self.mailbox.stopped() => {}
            }
        }
        match (&mut self.task).await {
            Ok(Ok(())) => Error::Stopped("its loop ended".to_owned()),
            Ok(Err(error)) => error.into(),
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
        Ok(self.task.await.map_err(|error| Error::Stopped(error.to_string()))??)
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
