//! The one loop that owns this node's part in the mesh, and wires everything else to it.
//!
//! ```text
//!   network events ─┐                                       ┌─> network (Raft, orders to workers)
//!   reports ────────┤                                       ├─> worker, partitions (orders to this node)
//!   asks ───────────┼─> participant (replica, scheduler) ───┼─> answers to asks
//!   ticks ──────────┤                                       └─> log writer ─┐
//!   writes done ────┘<──────────────────────────────────────────────────────┘
//! ```
//!
//! Events go in, as many as wait; whatever they cause comes out, and only then the next are taken. It waits for nothing
//! else, nor for the disk.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use floe_consensus::participant::{Action, CarryOnError, Order, Participant};
use floe_consensus::replica::{BrokenError, TICK_MS};
use floe_consensus::{Command, Event as Applied, LogError, ProposeError, Written};
use floe_network::{Event as NetworkEvent, Hint, Network};
use floe_protocol::message::{Inventory, Report};
use floe_protocol::{Era, Failure, Fence, Member, MeshId, PeerMessage};
use floe_transport::Refusal;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant as Moment, sleep_until};

use crate::answers::Answers;
use crate::calls::Calls;
use crate::clock;
use crate::config;
use crate::data_dir::DataDir;
use crate::large_messages;
use crate::log_writer::LogWriter;
use crate::mailbox::{Ask, Mailbox, Proposed};
use crate::partitions::Partitions;
use crate::peers::Peers;
use crate::plans::PlanKeeper;
use crate::proposals::Proposals;
use crate::relief::Relief;
use crate::store::Store;
use crate::ticks::Ticks;
use crate::wakeups::Wakeups;
use crate::worker::Worker;

/// How long a node may take to answer of which the leader hears nothing.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// How many events are taken in before what they cause is carried out, and written in one go: under load most of the time
/// is the disk's, and heartbeats must not wait for too much.
const MAX_AT_ONCE: usize = 256;

/// Why the loop ended, other than by an order.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log cannot be written: the node must not go on as if it could.
    #[error(transparent)]
    Write(#[from] LogError),
    /// Its part in the mesh cannot go on.
    #[error(transparent)]
    Broken(#[from] BrokenError),
    /// It must not go on.
    #[error("this node stops: {0}")]
    Refused(Failure),
}

/// Where the loop's events come from.
pub struct Sources {
    /// The network.
    pub events: mpsc::Receiver<NetworkEvent>,
    /// Everything that has a [`Mailbox`].
    pub asks: mpsc::Receiver<Ask>,
    /// The worker.
    pub reports: mpsc::Receiver<Report>,
    /// Whoever ends it.
    pub stop: oneshot::Receiver<()>,
}

/// Everything that can happen to a node.
enum Event {
    Network(NetworkEvent),
    Report(Report),
    Ask(Ask),
    Written(Written),
}

/// What the loop owns and gives its orders to.
pub struct EventLoop {
    /// Writes the log.
    pub log: LogWriter,
    /// This node's part in the mesh.
    pub participant: Participant,
    /// The way to the others.
    pub network: Network,
    /// What is known of them.
    pub peers: Peers,
    /// Runs tasks.
    pub worker: Worker,
    /// Where their partitions are.
    pub store: Store,
    /// What the leader has done with those.
    pub partitions: Partitions,
    /// Serves calls.
    pub calls: Calls,
    /// Who waits for agreement.
    pub proposals: Proposals,
    /// Who waits for changes.
    pub wakeups: Wakeups,
    /// Lets go of what is not needed.
    pub relief: Relief,
    /// Keeps what jobs need.
    pub plans: PlanKeeper,
    /// When the others are told next how this node is.
    pub hint_due: Instant,
    /// Held for its lock.
    pub data_dir: DataDir,
}

impl EventLoop {
    /// Runs until it is told to stop, or cannot go on.
    pub async fn run(mut self, sources: Sources) -> Result<(), Error> {
        let Sources { mut events, mut asks, mut reports, mut stop } = sources;
        let mut ticks = Ticks::new(Duration::from_millis(TICK_MS));
        let mut tick = pin!(sleep_until(Moment::now()));
        self.peers.follow_door(self.participant.state());
        loop {
            let settled = match self.settle() {
                Ok(()) if self.peers.is_forgotten() => {
                    Err(Error::Refused(Failure::Refused { message: Refusal::Forgotten.to_string() }))
                }
                settled => settled,
            };
            if let Err(error) = settled {
                self.worker.hosts().shutdown().await;
                return Err(error);
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
        self.proposals.tick();
        let replica = self.participant.replica();
        self.peers.hang_up(|| replica.standing().configuration);
        let hints = self.hint_due <= Instant::now();
        if hints {
            self.hint_due = Instant::now() + config::HINT_INTERVAL;
            self.relieve();
            self.publish_hint();
        }
        // Whoever is to vote is waited for.
        if hints || self.plans.is_asked() {
            self.keep_plans();
        }
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
                self.peers.gone(node);
                self.participant.disconnected(now, node);
            }
            NetworkEvent::Message { from, message } => {
                match &message {
                    PeerMessage::Report(report) => self.wakeups.job(report.attempt.task.job),
                    PeerMessage::Alive { load, .. } => self.peers.says(from, *load),
                    _ => {}
                }
                self.participant.receive(now, from, message);
            }
            NetworkEvent::Call { from, request, stream } => self.calls.serve(from, request, stream),
            NetworkEvent::Hint { from, hint } => self.peers.says(from, hint.load),
            NetworkEvent::Refused { address, refusal } => self.peers.refused(address, refusal),
        }
    }

    fn report(&mut self, report: Report) {
        self.partitions.reported(&report);
        self.wakeups.job(report.attempt.task.job);
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
                Action::Dial(member) => self.peers.meet(&member),
                Action::Disconnect(node) => {
                    let members = self.participant.state().members();
                    // Of one that has left, nothing is lost.
                    if let Some(Member { name, .. }) = members.get(&node) {
                        tracing::warn!(%node, name, "lost: what it ran and held is made anew elsewhere");
                    }
                    // Where the connection only seems to stand, whoever waits on it must hear of its end.
                    self.network.disconnect(node);
                }
                Action::Probe(node) => {
                    let network = self.network.clone();
                    tokio::spawn(async move { network.probe(node, PROBE_TIMEOUT).await });
                }
                Action::Superseded(failure) => return Err(Error::Refused(failure)),
                Action::Refused { from, fence } => {
                    tracing::info!(%from, %fence, "an order of a former leader is refused");
                }
                Action::Left { era, to } => {
                    tracing::warn!("this node's mesh ({era}) has merged into another ({to}): joining that");
                    self.proposals.refuse_all(self.participant.leader());
                    self.wakeups.all();
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
                self.partitions.free(jobs);
            }
            Order::Copy { partition, to } => self.partitions.copy(partition, to),
            Order::Inventory { to, fence } => {
                let inventory = self.inventory(fence);
                self.participant.send(to, PeerMessage::Inventory(inventory));
            }
            Order::Alive { to, fence } => {
                let load = self.worker.load();
                self.participant.send(to, PeerMessage::Alive { fence, load });
            }
            Order::Prepare { to, fence } => {
                self.plans.prepare(to, fence);
                self.keep_plans();
            }
        }
    }

    fn inventory(&mut self, fence: Fence) -> Inventory {
        Inventory {
            fence,
            held: self.partitions.held(),
            runs: self.partitions.runs(),
            running: self.worker.running(),
            sessions: self.calls.sessions.attended(),
            reading: self.calls.reading.recent(),
            submitting: self.calls.submitter.submitting(),
            load: self.worker.load(),
        }
    }

    /// Follows what the mesh has agreed on.
    fn applied(&mut self, event: Applied) {
        self.wakeups.event(&event);
        match event {
            Applied::Applied { request, outcome } => {
                let awaited = self.proposals.applied(request, &outcome);
                if let (false, Err(failure)) = (awaited, &outcome)
                    && self.participant.scheduler().is_some()
                {
                    // This node's own: another era's jobs that there is no room for, above all.
                    tracing::info!(%failure, "the mesh did not agree to what its leader proposed");
                }
            }
            Applied::MemberLeft { node } => {
                self.peers.gone(node);
                self.peers.follow_door(self.participant.state());
            }
            Applied::DoorChanged
            | Applied::MeshFounded { .. }
            | Applied::MemberJoined { .. }
            | Applied::Restored { .. } => self.peers.follow_door(self.participant.state()),
            Applied::JobsFreed { jobs, .. } => {
                self.calls.logs.free(&jobs);
                self.partitions.free(jobs);
            }
            Applied::Elected { term } => tracing::info!(term, "elected: this node schedules"),
            Applied::Deposed { term } => tracing::info!(term, "no longer the leader"),
            Applied::LeaderChanged { leader, term } => {
                self.proposals.refuse_all(self.participant.leader());
                if leader != Some(self.participant.member().id) {
                    tracing::info!(leader = leader.map(|l| l.to_string()), term, "the leader changed");
                }
            }
            Applied::Yielded { to, .. } => tracing::info!("this mesh's jobs go on in another: {to}"),
            Applied::CarriedOn { era } => {
                tracing::warn!("this node goes on without the voters that are gone: {era}");
            }
            Applied::JobAccepted { .. }
            | Applied::JobAdopted { .. }
            | Applied::JobShared { .. }
            | Applied::StageDone { .. }
            | Applied::JobEnded { .. }
            | Applied::Reconfigured => {}
            Applied::ReadReady { request } => self.proposals.ready(request),
        }
    }

    fn answers(&self) -> Answers<'_> {
        Answers { participant: &self.participant, peers: &self.peers, worker: &self.worker }
    }

    fn handle_ask(&mut self, ask: Ask) {
        // An answer that nobody waits for any more is dropped.
        match ask {
            Ask::Status(reply) => drop(reply.send(self.answers().status())),
            Ask::Leader(reply) => drop(reply.send(self.participant.leader())),
            Ask::Mesh(asker, reply) => drop(reply.send(self.participant.view(asker))),
            Ask::Voters(reply) => drop(reply.send(self.participant.replica().standing().configuration)),
            Ask::Job(id, reply) => drop(reply.send(self.answers().job(id))),
            Ask::Progress(id, reply) => drop(reply.send(self.answers().progress(id))),
            Ask::Room(reply) => drop(reply.send(self.answers().room())),
            Ask::Jobs(reply) => drop(reply.send(self.answers().newest_jobs())),
            Ask::Outputs(id, reply) => drop(reply.send(self.answers().outputs(id))),
            Ask::Made(id, partition, reply) => drop(reply.send(self.answers().made(id, partition))),
            Ask::Refusals(reply) => drop(reply.send(self.peers.refusals())),
            Ask::Survivor(reply) => drop(reply.send(self.participant.survivor())),
            Ask::Propose(entry, reply) => self.proposals.propose(&mut self.participant, &entry, reply),
            Ask::Join(member, reply) => {
                match self.participant.admit(&member).and_then(|()| Mailbox::entry(Command::Join { member }))
                {
                    Ok(entry) => self.proposals.propose(&mut self.participant, &entry, reply),
                    Err(failure) => drop(reply.send(Proposed::Applied(Err(failure)))),
                }
            }
            Ask::Current(reply) => self.proposals.read(&mut self.participant, reply),
            Ask::Found(reply) => drop(reply.send(self.found())),
            Ask::CarryOn(era, reply) => drop(reply.send(self.carry_on(era))),
            Ask::Message(from, message) => self.participant.receive(clock::read(), from, message),
            Ask::WithholdVote(withholds) => self.participant.withhold_vote(withholds),
            Ask::NotSent(to, message) => self.participant.not_sent(to, message),
            Ask::Lost(partition, node) => self.participant.lost(partition, node),
            Ask::Copied(partition, node, done) => {
                self.partitions.copied(partition, node);
                self.participant.copied(partition, node, done);
            }
        }
    }

    fn found(&mut self) -> Result<(), Failure> {
        let mesh = MeshId::founded_at(clock::wall_time(), Mailbox::request_id()?.0);
        self.participant.found(mesh).map_err(Failure::internal)
    }

    /// Goes on without the voters that are gone, since this node has the longest log of those that are left.
    fn carry_on(&mut self, era: Era) -> Result<(), Failure> {
        self.participant.recover(era).map_err(|error| match error {
            CarryOnError::Propose(ProposeError::Unwritable(_)) => Failure::internal(error),
            CarryOnError::Propose(_) => Failure::Unavailable { message: format!("{error}; try again") },
            _ => Failure::Refused {
                message: format!("node {} does not carry on: {error}", self.participant.member().id),
            },
        })
    }

    /// Lets go of objects that no job needs, where there are many.
    fn relieve(&mut self) {
        let state = self.participant.state();
        self.relief.look(|| {
            let works = state.jobs().values().filter_map(|job| job.work.as_ref());
            works.map(|work| Arc::clone(&work.graph)).collect()
        });
    }

    fn keep_plans(&mut self) {
        let state = self.participant.state();
        let me = self.participant.member().id;
        let votes = self.participant.replica().votes(me);
        let prepared = self.plans.look(state.jobs_changed(), votes, || {
            let works = state.jobs().values().filter_map(|job| job.work.as_ref());
            works.filter_map(|work| work.graph.plan).collect()
        });
        if let Some((leader, fence)) = prepared {
            self.participant.send(leader, PeerMessage::Prepared { fence });
        }
    }

    fn publish_hint(&mut self) {
        let load = self.worker.load();
        let member = self.participant.member();
        self.peers.says(member.id, load);
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
}
