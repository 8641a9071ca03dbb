//! The one connection over which a driver asks, and going on through another node when it is lost.
//!
//! ```text
//!             ask                       a node answers
//!   (none) ─────────> dialling ──────────────────────────────> connected ──┐ ask
//!      ▲                 │ all refuse, or no patience left         │  ▲    │
//!      │                 ▼                                         │  └────┘
//!      │               error                                       │
//!      └──────────── the connection breaks, or no answer in time ──┘
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use floe_protocol::message::Status;
use floe_protocol::{Failure, NodeId, Request, Response};
use floe_transport::files::read_checked;
use floe_transport::stream::send_body;
use floe_transport::{
    Body, BodyError, CALL, CallError, Connection, Credentials, DialError, Gate, MeshKey, Refusal, Role,
    Stream, read_frame, write_frame,
};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use libp2p::Multiaddr;
use libp2p::identity::Keypair;

use crate::error::{Error, Result};
use crate::holders::Holders;
use crate::local;
use crate::nodes::Nodes;
use crate::patience::Patience;
use crate::places::Places;

/// How long one node may take to be connected to. On a network where that takes longer no query is of use.
const DIAL_TIMEOUT: Duration = Duration::from_secs(4);

/// How many nodes are dialled at once, and how long one is given before the next is tried too: a node that is
/// switched off answers nothing, and the one after it should not wait for that.
const MAX_DIALS: usize = 4;
const DIAL_STAGGER: Duration = Duration::from_millis(250);

/// How long a node may take to answer a question before another is asked.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for what needs planning and the agreement of others, who may be electing a leader.
const DECISION_TIMEOUT: Duration = Duration::from_secs(40);

/// How fast bytes that a driver puts into the mesh are copied among the nodes, at the least.
const COPIED_BYTES_PER_S: u64 = 4 << 20;

/// After how long without a word of a node that reports as things happen the question is asked again. Nothing may well
/// happen for longer, but a node that hangs would otherwise keep its drivers waiting for ever.
const SILENCE: Duration = Duration::from_secs(10);

/// How often the list of nodes is brought up to date while nothing else happens.
const REFRESH: Duration = Duration::from_secs(5);

/// How many times one node may say that it cannot answer now before another is asked.
const MAX_EXCUSES: u32 = 4;

/// A driver's way into its mesh.
#[derive(Debug)]
pub(crate) struct Link {
    identity: Keypair,
    gate: Gate,
    /// Where the mesh key was read: the mesh may change it.
    key_file: Option<PathBuf>,
    timeout: Duration,
    nodes: std::sync::Mutex<Nodes>,
    holders: std::sync::Mutex<Holders>,
    places: Places,
    /// Held while dialling, so that many calls at once dial once.
    current: tokio::sync::Mutex<Option<Connection>>,
}

/// One question's stream after its first answer.
pub(crate) struct Exchange {
    address: Multiaddr,
    channel: Channel,
    /// The stream ends with its connection.
    connection: Connection,
    /// Whether another question may follow on the stream after the last answer.
    leaves_stream: bool,
}

/// What comes next on an exchange's stream.
enum Channel {
    Frames(Stream),
    Body(Box<Body<Stream>>),
    /// Nothing.
    Ended,
}

/// A question that brought no answer: another node may have one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Body(#[from] BodyError),
}

impl Link {
    /// Connects to the first node that answers, and keeps learning the others.
    pub(crate) async fn connect(
        (key, key_file): (MeshKey, Option<PathBuf>),
        addresses: Vec<Multiaddr>,
        connect_timeout: Duration,
        timeout: Duration,
    ) -> Result<Arc<Self>> {
        let link = Arc::new(Self {
            identity: Keypair::generate_ed25519(),
            gate: Gate::new(key),
            key_file,
            timeout,
            nodes: std::sync::Mutex::new(Nodes::new(addresses)),
            holders: std::sync::Mutex::default(),
            places: Places::default(),
            current: tokio::sync::Mutex::new(None),
        });
        let mut patience = Patience::new(connect_timeout);
        // A node that has no mesh yet knows nothing of it: another one is asked rather, if there is any.
        let mut others = link.nodes().candidates().len().min(MAX_EXCUSES as usize);
        loop {
            let (response, exchange) = link.ask(&Request::Status, &[], &mut patience).await?;
            let Response::Status(status) = response else { return Err(exchange.unexpected(&response)) };
            link.learn(&status);
            others = others.saturating_sub(1);
            if status.era.is_some() || others == 0 {
                break;
            }
            link.give_up(exchange).await;
        }
        tokio::spawn(refresh(Arc::downgrade(&link)));
        Ok(link)
    }

    /// What limits this driver's streams.
    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    /// The patience of one call.
    pub(crate) fn patience(&self) -> Patience {
        Patience::new(self.timeout)
    }

    /// Asks until a node answers with more than that it cannot: one after the other, while there is patience. After the
    /// request go these bodies, each in its pieces. Returns its first response, and the stream for what follows.
    pub(crate) async fn ask(
        &self,
        request: &Request,
        bodies: &[Vec<Bytes>],
        patience: &mut Patience,
    ) -> Result<(Response, Exchange)> {
        let mut excuses = 0;
        let mut request = Cow::Borrowed(request);
        loop {
            let connection = self.connection(patience).await?;
            let place = self.places.question().await;
            let asked = ask_once(&connection, &request, bodies).await;
            drop(place);
            if let Some(again) = again(&request) {
                request = Cow::Owned(again);
            }
            let failure = match asked {
                Ok((Response::Failed(failure), _)) if is_excuse(&failure) => failure,
                Ok((Response::Failed(failure), _)) => return Err(Error::Failure(failure)),
                Ok((Response::NotLeader(_), _)) => {
                    let message = "the mesh is between two leaders".to_owned();
                    Failure::Unavailable { message }
                }
                Ok((response, exchange)) => {
                    if let Response::Status(status) = &response {
                        self.learn(status);
                    }
                    return Ok((response, exchange));
                }
                Err(lost) => {
                    tracing::debug!(address = %connection.address(), %lost, "the node is lost");
                    self.leave(&connection).await;
                    if let Lost::Call(error) = &lost
                        && error.is_garbage()
                    {
                        return Err(Error::malformed(connection.address(), error));
                    }
                    if !patience.pause().await {
                        let tried = vec![(connection.address().to_string(), lost.to_string())];
                        return Err(Error::Unreachable { tried, waited: patience.waited() });
                    }
                    continue;
                }
            };
            tracing::debug!(address = %connection.address(), %failure, "the node cannot answer now");
            excuses += 1;
            // One that is full says so at once, and one that says nothing else for long may be cut off from the others.
            let tired = matches!(failure, Failure::Busy { .. }) || excuses % MAX_EXCUSES == 0;
            if tired && self.nodes().has_others(connection.address()) {
                self.leave(&connection).await;
            }
            if !patience.pause().await {
                return Err(Error::Unavailable { failure, waited: patience.waited() });
            }
        }
    }

    /// The present connection, or a new one.
    async fn connection(&self, patience: &mut Patience) -> Result<Connection> {
        let mut current = self.current.lock().await;
        if let Some(connection) = &*current {
            if connection.is_open() {
                return Ok(connection.clone());
            }
            self.nodes().failed(connection.address());
            *current = None;
        }
        loop {
            match self.dial(patience.left()).await {
                Ok(connection) => {
                    tracing::debug!(address = %connection.address(), "connected");
                    self.nodes().answered(connection.address());
                    *current = Some(connection.clone());
                    return Ok(connection);
                }
                Err(failures) => {
                    if has_another_key(&failures) && self.read_key_again().await {
                        continue;
                    }
                    if let Some(refused) = refused(&failures) {
                        return Err(refused);
                    }
                    if !patience.pause().await {
                        let tried =
                            failures.iter().map(|(to, error)| (to.to_string(), reason(error))).collect();
                        return Err(Error::Unreachable { tried, waited: patience.waited() });
                    }
                }
            }
        }
    }

    /// Whether the mesh key was changed in the file that it was read from.
    async fn read_key_again(&self) -> bool {
        let Some(file) = self.key_file.clone() else { return false };
        let read = tokio::task::spawn_blocking(move || local::read_key(&file));
        let Ok(Ok(key)) = read.await else { return false };
        let former = self.gate.key();
        if key == former {
            return false;
        }
        tracing::info!(key = key.fingerprint(), "the mesh key was changed");
        self.gate.change(|rules| rules.key = key);
        true
    }

    fn credentials(&self) -> Credentials {
        Credentials::of(self.gate.clone(), Role::Driver)
    }

    /// Dials every known node, the best first, until one answers. Otherwise returns why each did not.
    async fn dial(&self, left: Duration) -> Result<Connection, BTreeMap<Multiaddr, DialError>> {
        let mut waiting = self.nodes().candidates().into_iter();
        let mut dials = FuturesUnordered::new();
        let mut failures = BTreeMap::new();
        let dial = |address: Multiaddr| async move {
            let timeout = DIAL_TIMEOUT.min(left);
            let dialled = Connection::dial(&self.identity, self.credentials(), address.clone(), timeout);
            (address, dialled.await)
        };
        dials.extend(waiting.next().map(dial));
        while !dials.is_empty() {
            let more = dials.len() < MAX_DIALS && waiting.len() > 0;
            tokio::select! {
                Some((address, dialled)) = dials.next() => match dialled {
                    Ok(connection) => return Ok(connection),
                    Err(error) => {
                        self.nodes().failed(&address);
                        failures.insert(address, error);
                        if dials.is_empty() {
                            dials.extend(waiting.next().map(dial));
                        }
                    }
                },
                () = tokio::time::sleep(DIAL_STAGGER), if more => dials.extend(waiting.next().map(dial)),
            }
        }
        Err(failures)
    }

    /// Gives a connection up: the next call goes to another node first. Of many calls that give the same one up the first
    /// does; those after it would give up the next, be it with the same node.
    async fn leave(&self, connection: &Connection) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|current| current.is_same(connection)) {
            *current = None;
            self.nodes().failed(connection.address());
        }
    }

    /// Gives up the connection that an answer broke off on, so that the next call goes to another node first.
    pub(crate) async fn give_up(&self, exchange: Exchange) {
        self.leave(&exchange.connection).await;
    }

    /// A connection to one of these nodes, if there is one. If there is none yet it is begun, for the next time.
    pub(crate) fn holder(self: &Arc<Self>, nodes: &[NodeId]) -> Option<Connection> {
        if let Ok(current) = self.current.try_lock()
            && let Some(connection) = &*current
            && connection.is_open()
            && nodes.contains(&connection.node())
        {
            return Some(connection.clone());
        }
        let mut holders = self.holders();
        let connected = holders.connected(nodes);
        if connected.is_none() {
            for node in nodes.iter().copied().filter(|node| holders.begin(*node, Instant::now())) {
                tokio::spawn(dial_holder(self.clone(), node));
            }
        }
        connected
    }

    /// Gives a holder up that did not answer, for a while. The next question shows whether that is the node that the
    /// driver is connected to.
    pub(crate) fn leave_holder(&self, holder: &Connection) {
        self.holders().dialled(holder.node(), None, Instant::now());
    }

    fn learn(&self, status: &Status) {
        self.nodes().learn(status);
    }

    fn nodes(&self) -> std::sync::MutexGuard<'_, Nodes> {
        // The list is whole after every step, so one that panicked in between leaves nothing half done.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holders(&self) -> std::sync::MutexGuard<'_, Holders> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns the mesh's present members, if there is a connection to learn them by.
    async fn refresh(&self) {
        let connection = self.current.lock().await.clone();
        let Some(connection) = connection.filter(Connection::is_open) else {
            return;
        };
        if let Ok((Response::Status(status), _)) = ask_once(&connection, &Request::Status, &[]).await {
            self.learn(&status);
        }
    }
}

/// Refreshes the list of nodes for as long as the link is in use.
async fn refresh(link: Weak<Link>) {
    loop {
        tokio::time::sleep(REFRESH).await;
        let Some(link) = link.upgrade() else { return };
        link.refresh().await;
    }
}

/// Connects to a node that holds something, by whichever of its addresses leads to it.
async fn dial_holder(link: Arc<Link>, node: NodeId) {
    let addresses = link.nodes().addresses_of(node);
    let mut connected = None;
    for address in addresses {
        let dialled = Connection::dial(&link.identity, link.credentials(), address, DIAL_TIMEOUT).await;
        // Behind an address that means something else here, another node may answer.
        connected = dialled.ok().filter(|connection| connection.node() == node);
        if connected.is_some() {
            break;
        }
    }
    tracing::debug!(%node, reached = connected.is_some(), "a holder was dialled");
    link.holders().dialled(node, connected, Instant::now());
}

/// Asks one node, once. After the request go these bodies.
pub(crate) async fn ask_once(
    connection: &Connection,
    request: &Request,
    bodies: &[Vec<Bytes>],
) -> Result<(Response, Exchange), Lost> {
    let waited = match request {
        Request::Submit { .. }
        | Request::Explain { .. }
        | Request::Cancel { .. }
        | Request::Release { .. }
        | Request::Recover { .. }
        | Request::Invite { .. }
        | Request::Forget { .. }
        | Request::RotateKey { .. }
        | Request::Session { .. } => DECISION_TIMEOUT,
        // It answers when other nodes have copies too.
        Request::PutBlob { blob } => DECISION_TIMEOUT + Duration::from_secs(blob.bytes / COPIED_BYTES_PER_S),
        // It looks for them on the other nodes first.
        Request::GetBlob { .. } => DECISION_TIMEOUT,
        _ => ANSWER_TIMEOUT,
    };
    if let Some(stream) = connection.reuse() {
        match ask_on(connection, stream, request, bodies, waited).await {
            // The node has closed it meanwhile.
            Err(lost) if lost.is_closed() => {}
            asked => return asked,
        }
    }
    let stream = tokio::time::timeout(waited, connection.open(CALL)).await;
    let stream = stream.map_err(|_| CallError::Timeout { waited })?.map_err(CallError::Open)?;
    ask_on(connection, stream, request, bodies, waited).await
}

/// Asks on this stream.
async fn ask_on(
    connection: &Connection,
    mut stream: Stream,
    request: &Request,
    bodies: &[Vec<Bytes>],
    waited: Duration,
) -> Result<(Response, Exchange), Lost> {
    let timeout = |_| CallError::Timeout { waited };
    tokio::time::timeout(waited, write_frame(&mut stream, request)).await.map_err(timeout)??;
    for body in bodies {
        // However long it takes: the transfer itself notices when it stands still.
        match send_body(&mut stream, futures::stream::iter(body.iter().cloned().map(Ok))).await {
            Ok(_) => {}
            Err(BodyError::Refused(failure)) => {
                let address = connection.address().clone();
                let (channel, connection) = (Channel::Frames(stream), connection.clone());
                let exchange = Exchange { address, channel, connection, leaves_stream: false };
                return Ok((Response::Failed(failure), exchange));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let read = Exchange::read(connection.clone(), stream, leaves_stream(request, bodies));
    tokio::time::timeout(waited, read).await.map_err(timeout)?
}

/// Whether another question may follow on the stream after the last answer to this one.
fn leaves_stream(request: &Request, bodies: &[Vec<Bytes>]) -> bool {
    match request {
        Request::Submit { .. } => bodies.len() == 1,
        Request::Watch { .. }
        | Request::Job { .. }
        | Request::Status
        | Request::Cancel { .. }
        | Request::Release { .. } => true,
        _ => false,
    }
}

/// Whether nothing follows a response to what leaves its stream.
fn is_last(response: &Response) -> bool {
    match response {
        Response::Accepted { .. } | Response::Done | Response::Status(_) => true,
        Response::Job(job) => job.phase.is_terminal(),
        _ => false,
    }
}

impl Lost {
    /// See [`CallError::is_closed`].
    fn is_closed(&self) -> bool {
        match self {
            Self::Call(error) => error.is_closed(),
            Self::Body(error) => matches!(error, BodyError::Io(_)),
        }
    }
}

impl Exchange {
    /// Reads a response, and prepares for what follows it. After the last one the stream is kept for another question, if it
    /// can be.
    async fn read(
        connection: Connection,
        mut stream: Stream,
        leaves_stream: bool,
    ) -> Result<(Response, Self), Lost> {
        let response = read_frame(&mut stream).await?;
        let channel = match &response {
            response if leaves_stream && is_last(response) => {
                connection.keep(stream);
                Channel::Ended
            }
            Response::Result { .. }
            | Response::Fetching { .. }
            | Response::Blob { .. }
            | Response::Planned => Channel::Body(Box::new(Body::new(stream))),
            _ => Channel::Frames(stream),
        };
        let address = connection.address().clone();
        Ok((response, Self { address, channel, connection, leaves_stream }))
    }

    /// The node's address.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// The next response of a question that has several.
    pub(crate) async fn next_response(self) -> Result<(Response, Self), Lost> {
        match self.channel {
            Channel::Frames(stream) => Self::read(self.connection, stream, self.leaves_stream).await,
            Channel::Body(_) | Channel::Ended => Err(CallError::Ended.into()),
        }
    }

    /// The next response of a node that reports as things happen; nothing if it is silent, or lost: whether it is alive
    /// shows when it is asked anew.
    pub(crate) async fn response_in_time(self) -> Option<(Response, Self)> {
        tokio::time::timeout(SILENCE, self.next_response()).await.ok()?.ok()
    }

    /// The next piece of the answer's body; nothing at its end.
    pub(crate) async fn next_chunk(&mut self) -> Result<Option<Bytes>, Lost> {
        match &mut self.channel {
            Channel::Frames(_) | Channel::Ended => Ok(None),
            Channel::Body(body) => Ok(body.next().await.transpose()?),
        }
    }

    /// The answer's whole body, of which no more than `limit_bytes` are taken.
    pub(crate) async fn read_body(&mut self, limit_bytes: u64) -> Result<Bytes, Lost> {
        match &mut self.channel {
            Channel::Frames(_) | Channel::Ended => Err(CallError::Ended.into()),
            Channel::Body(body) => {
                let limit = usize::try_from(limit_bytes).unwrap_or(usize::MAX);
                Ok(body.read_all(limit).await?.into())
            }
        }
    }

    /// The Arrow IPC files that [`Response::Fetching`] has announced.
    pub(crate) async fn read_files(&mut self, segments: &[(u64, u64)]) -> Result<Vec<Bytes>, Lost> {
        match &mut self.channel {
            Channel::Frames(_) | Channel::Ended => Err(CallError::Ended.into()),
            Channel::Body(body) => Ok(read_checked(body, segments).await?),
        }
    }

    /// The stream, for frames in both directions, and the connection that it ends with; nothing if a body is on it.
    pub(crate) fn into_stream(self) -> Option<(Stream, Connection)> {
        match self.channel {
            Channel::Frames(stream) => Some((stream, self.connection)),
            Channel::Body(_) | Channel::Ended => None,
        }
    }

    /// The error of a response that does not answer the question.
    pub(crate) fn unexpected(&self, response: &Response) -> Error {
        match response {
            Response::Failed(failure) => Error::Failure(failure.clone()),
            other => Error::malformed(&self.address, format!("it does not fit the question: {other:?}")),
        }
    }
}

/// What is asked instead when no answer came: whoever plans a query should know that it may have ended a node.
fn again(request: &Request) -> Option<Request> {
    match request {
        Request::Submit { id, again: false } => Some(Request::Submit { id: *id, again: true }),
        Request::Explain { again: false } => Some(Request::Explain { again: true }),
        _ => None,
    }
}

/// Whether a failure means that the node cannot answer now, and another, or the same one later, may.
pub(crate) fn is_excuse(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::Unavailable { .. }
            | Failure::Busy { .. }
            | Failure::NodeLost { .. }
            | Failure::InputLost { .. }
    )
}

/// Whether a node holds another key.
fn has_another_key(failures: &BTreeMap<Multiaddr, DialError>) -> bool {
    let wrong =
        |error: &DialError| matches!(error, DialError::Refused { refusal: Refusal::WrongKey { .. }, .. });
    failures.values().any(wrong)
}

/// The refusal that makes dialling again useless: no node did anything but refuse, one for a reason that lasts.
fn refused(failures: &BTreeMap<Multiaddr, DialError>) -> Option<Error> {
    let lasting = |error: &DialError| match error {
        DialError::Refused { refusal, .. } => !matches!(
            refusal,
            // Of many that come at once a node closes some; they may come again.
            Refusal::Timeout
                | Refusal::Broken(_)
                | Refusal::HungUp
                | Refusal::MadeWay
                | Refusal::Busy
                | Refusal::Noise
        ),
        DialError::BadAddress { .. } | DialError::WrongPeer { .. } | DialError::Identity(_) => true,
        DialError::NobodyAnswers { .. } => false,
    };
    if !failures.values().all(lasting) {
        return None;
    }
    // Another node at a known address says less than a refusal does.
    let first = failures.values().find(|error| matches!(error, DialError::Refused { .. }));
    first.or(failures.values().next()).map(|error| Error::Refused(error.to_string()))
}

/// A dial's error, without the address that stands before it.
fn reason(error: &DialError) -> String {
    match error {
        DialError::NobodyAnswers { .. } => "nobody answers".to_owned(),
        DialError::Refused { refusal, .. } => refusal.to_string(),
        DialError::BadAddress { .. } => "not an address of a node".to_owned(),
        DialError::WrongPeer { obtained, .. } => format!("another node answers there, {obtained}"),
        DialError::Identity(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_hangs_up_is_dialled_again_and_what_is_no_floe_is_not() {
        let address: Multiaddr = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
        let lasts = |refusal| {
            let error = DialError::Refused { address: address.clone(), refusal };
            refused(&BTreeMap::from([(address.clone(), error)])).is_some()
        };
        assert!(!lasts(Refusal::HungUp) && !lasts(Refusal::MadeWay));
        assert!(lasts(Refusal::NotFloe));
    }
}
