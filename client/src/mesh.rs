//! The way into a mesh: connecting, submitting, asking.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use floe_protocol::frame::{self, FrameError};
use floe_protocol::function::FunctionInput;
use floe_protocol::graph::MAX_GRAPH_BYTES;
use floe_protocol::message::{Request, Response, Status};
use floe_protocol::{
    Failure, JobId, JobKind, JobSpec, JobStatus, KeyName, NodeId, Query, Secret, StageGraph,
};
use floe_transport::{InvitationSecret, MeshKey};
use libp2p::Multiaddr;

use crate::error::{Error, Result};
use crate::job::Job;
use crate::link::{Exchange, Link};
use crate::local;
use crate::patience::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_TIMEOUT};
use crate::query::Sql;

/// What a job without frames takes at most, as a rule: more costs a copy.
const SPEC_BYTES: usize = 64 << 10;

/// A mesh, through whichever of its nodes answers. Cloning it is cheap and shares the connection.
///
/// It is connected to one node at a time and learns the others from it; when that node is lost, every call,
/// watch and result goes on through another.
///
/// ```no_run
/// # async fn example(key: floe_client::MeshKey) -> floe_client::Result<()> {
/// let mesh = floe_client::Mesh::builder()
///     .key(key)
///     .address("/ip4/192.0.2.7/tcp/4001")
///     .connect()
///     .await?;
/// for node in mesh.status().await?.nodes {
///     println!("{} {} {}", node.member.id, node.member.name, node.role.name());
/// }
/// let job = mesh.sql("SELECT COUNT(*) FROM 'flights.parquet'").await?;
/// println!("submitted {}", job.id());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Mesh {
    link: Arc<Link>,
}

impl Mesh {
    /// Connects to any of these nodes with the key of this machine's user, the one that `floe up` uses when it
    /// is given none. For another key, see [`Mesh::builder`].
    ///
    /// ```no_run
    /// # async fn example() -> floe_client::Result<()> {
    /// let mesh = floe_client::Mesh::connect(["/ip4/127.0.0.1/tcp/4001"]).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect<A: AsRef<str>>(addresses: impl IntoIterator<Item = A>) -> Result<Self> {
        Self::builder().addresses(addresses).connect().await
    }

    /// Connects to the mesh that runs on this machine, with the key of this machine's user.
    pub async fn local() -> Result<Self> {
        let home = local::home()?;
        let key_file = local::user_key_file(&home);
        let key = local::read_key(&key_file)?;
        let addresses = local::nodes(&home, &key);
        if addresses.is_empty() {
            return Err(Error::Incomplete("no mesh runs on this machine: start one with `floe up`"));
        }
        Self::builder().key(key).key_file(key_file).addresses(addresses).connect().await
    }

    /// Settings for a connection.
    pub fn builder() -> MeshBuilder {
        MeshBuilder::default()
    }

    /// The mesh as the connected node knows it: its members, their roles and load, the leader.
    pub async fn status(&self) -> Result<Status> {
        let (answer, exchange) = self.ask(&Request::Status, &[]).await?;
        match answer {
            Response::Status(status) => Ok(status),
            other => Err(exchange.unexpected(&other)),
        }
    }

    /// A Polars SQL statement. Awaiting it submits it; before that, tables can be named.
    ///
    /// ```no_run
    /// # async fn example(mesh: floe_client::Mesh) -> floe_client::Result<()> {
    /// let job = mesh
    ///     .sql("SELECT origin, AVG(dep_delay) AS delay FROM flights GROUP BY origin ORDER BY delay DESC")
    ///     .table("flights", "data/flights/*.parquet")
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn sql(&self, text: impl Into<String>) -> Sql {
        Sql::new(self.clone(), text.into())
    }

    /// Submits a job under a new id. Returns when a majority of the mesh's voters hold it: from then on it
    /// survives its driver and the loss of any node.
    pub async fn submit(&self, submission: impl Into<Submission>) -> Result<Job> {
        self.submit_as(new_job_id()?, submission).await
    }

    /// Submits a job under an id that the caller chose, with [`new_job_id`], and can therefore cancel at any
    /// moment. Repeating it with the same id submits once.
    pub async fn submit_as(&self, id: JobId, submission: impl Into<Submission>) -> Result<Job> {
        let Submission { spec, files } = submission.into();
        let mut bodies = vec![vec![encode(&spec)?]];
        if !files.is_empty() {
            bodies.push(files);
        }
        let (answer, exchange) = self.ask(&Request::Submit { id, again: false }, &bodies).await?;
        match answer {
            Response::Accepted { id } => Ok(Job::accepted(self.clone(), id, bodies)),
            other => Err(exchange.unexpected(&other)),
        }
    }

    /// The stages that a job would become, without running it.
    pub async fn explain(&self, spec: &JobSpec) -> Result<StageGraph> {
        let body = vec![encode(spec)?];
        let mut patience = self.link().patience();
        loop {
            let request = Request::Explain { again: false };
            let (answer, mut exchange) =
                self.link().ask(&request, std::slice::from_ref(&body), &mut patience).await?;
            let Response::Planned = answer else { return Err(exchange.unexpected(&answer)) };
            let address = exchange.address();
            let reason = match exchange.read_body(MAX_GRAPH_BYTES).await {
                Ok(graph) => {
                    let malformed =
                        |error: FrameError| Error::Malformed { address, reason: error.to_string() };
                    return frame::decode(&graph).map_err(malformed);
                }
                Err(lost) => lost.to_string(),
            };
            self.link().give_up(exchange).await;
            if !patience.pause().await {
                let tried = vec![(address, reason)];
                return Err(Error::Unreachable { tried, waited: patience.waited() });
            }
        }
    }

    /// Every job that the mesh knows.
    pub async fn jobs(&self) -> Result<Vec<JobStatus>> {
        let (answer, exchange) = self.ask(&Request::Jobs, &[]).await?;
        match answer {
            Response::Jobs(jobs) => Ok(jobs),
            other => Err(exchange.unexpected(&other)),
        }
    }

    /// Whether the mesh has to be recovered: an error with the reason while it can decide by itself.
    pub async fn needs_recovery(&self) -> Result<()> {
        let (answer, exchange) = self.ask(&Request::Recover { agreed: false }, &[]).await?;
        match answer {
            Response::Done => Ok(()),
            other => Err(exchange.unexpected(&other)),
        }
    }

    /// Goes on without voters that are lost for good, and says with whose knowledge. Refused while the mesh can
    /// decide by itself.
    pub async fn recover(&self) -> Result<NodeId> {
        let (answer, exchange) = self.ask(&Request::Recover { agreed: true }, &[]).await?;
        match answer {
            Response::Recovered { node } => Ok(node),
            other => Err(exchange.unexpected(&other)),
        }
    }

    /// Lets that many nodes come that know this secret, for so long by the leader's clock. Whoever comes gets the mesh key.
    pub async fn invite(&self, secret: &InvitationSecret, uses: u32, lasts: Duration) -> Result<()> {
        let (id, verifier) = (secret.id(), Secret(secret.verifier().to_bytes()));
        let lasts_ms = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
        let (answer, exchange) = self.ask(&Request::Invite { id, verifier, uses, lasts_ms }, &[]).await?;
        match answer {
            Response::Done => Ok(()),
            other => Err(exchange.unexpected(&other)),
        }
    }

    /// Removes a node for good: no node lets it in again. Where that cannot be agreed on in time it may be later.
    pub async fn forget(&self, node: NodeId) -> Result<()> {
        let (answer, exchange) = self.ask(&Request::Forget { node }, &[]).await.map_err(or_later)?;
        match answer {
            Response::Done => Ok(()),
            other => Err(exchange.unexpected(&other)),
        }
    }

    /// Changes the mesh key, which is `from`, and returns what the new one is called. The nodes write it to the files in
    /// which they found the former one; this connection goes on.
    pub async fn rotate_key(&self, from: KeyName) -> Result<KeyName> {
        let (answer, exchange) = self.ask(&Request::RotateKey { from }, &[]).await.map_err(or_later)?;
        match answer {
            Response::Rotated { to } => Ok(to),
            other => Err(exchange.unexpected(&other)),
        }
    }

    /// A job submitted before, by this process or another. Whether it exists shows with the first question.
    pub fn job(&self, id: JobId) -> Job {
        Job::named(self.clone(), id)
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    pub(crate) async fn ask(&self, request: &Request, bodies: &[Vec<Bytes>]) -> Result<(Response, Exchange)> {
        self.link.ask(request, bodies, &mut self.link.patience()).await
    }
}

/// A job, and what comes with it.
#[derive(Clone, Debug)]
pub struct Submission {
    /// What is to be done.
    pub spec: JobSpec,
    /// One Arrow IPC file for each [`Frame`](crate::function::Frame) of its input, in order.
    pub files: Vec<Bytes>,
}

impl From<JobSpec> for Submission {
    fn from(spec: JobSpec) -> Self {
        Self { spec, files: Vec::new() }
    }
}

/// How to reach a mesh. Made by [`Mesh::builder`].
#[derive(Clone, Debug, Default)]
pub struct MeshBuilder {
    key: Option<MeshKey>,
    key_file: Option<PathBuf>,
    addresses: Vec<String>,
    connect_timeout: Option<Duration>,
    timeout: Option<Duration>,
}

impl MeshBuilder {
    /// The mesh's key: unless set, the one in the file that `FLOE_KEY_FILE` names, else that of this machine's
    /// user, which `floe up` made.
    pub fn key(mut self, key: MeshKey) -> Self {
        self.key = Some(key);
        self
    }

    /// The file that holds the mesh key. It is read again when the mesh has changed its key.
    pub fn key_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.key_file = Some(file.into());
        self
    }

    /// One more node's address, a multiaddress. One that answers is enough: the others are learned from it.
    pub fn address(mut self, address: impl AsRef<str>) -> Self {
        self.addresses.push(address.as_ref().to_owned());
        self
    }

    /// More addresses.
    pub fn addresses<A: AsRef<str>>(mut self, addresses: impl IntoIterator<Item = A>) -> Self {
        self.addresses.extend(addresses.into_iter().map(|address| address.as_ref().to_owned()));
        self
    }

    /// How long connecting goes on looking for a node that answers: [`DEFAULT_CONNECT_TIMEOUT`] unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// How long each later call goes on through other nodes: [`DEFAULT_TIMEOUT`] unless set. It does not limit
    /// how long a job may run or a result may take.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Connects to the first node that answers and learns the others from it.
    pub async fn connect(self) -> Result<Mesh> {
        let key = match (self.key, self.key_file) {
            (Some(key), file) => (key, file),
            (None, Some(file)) => (local::read_key(&file)?, Some(file)),
            (None, None) => {
                let file = local::user_key_file(&local::home()?);
                (local::read_key(&file)?, Some(file))
            }
        };
        if self.addresses.is_empty() {
            return Err(Error::Incomplete("no node's address was given"));
        }
        let addresses = self.addresses.into_iter().map(parse_address).collect::<Result<Vec<_>>>()?;
        let connect_timeout = self.connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT);
        let call_timeout = self.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let link = Link::connect(key, addresses, connect_timeout, call_timeout).await?;
        Ok(Mesh { link })
    }
}

fn parse_address(text: String) -> Result<Multiaddr> {
    text.parse().map_err(|error: libp2p::multiaddr::Error| Error::Address {
        reason: error.to_string(),
        address: text,
    })
}

fn encode(spec: &JobSpec) -> Result<Bytes> {
    // Plans may be large: room for them is made once.
    let mut bytes = Vec::with_capacity(carried_bytes(spec) + SPEC_BYTES);
    ciborium::into_writer(spec, &mut bytes)
        .map_err(|error| Error::Local(format!("the job cannot be written: {error}")))?;
    Ok(bytes.into())
}

/// How many bytes of plans a job carries.
fn carried_bytes(spec: &JobSpec) -> usize {
    let in_query = |query: &Query| match query {
        Query::Plan { dsl, .. } => dsl.len(),
        Query::Sql { .. } => 0,
    };
    match &spec.kind {
        JobKind::Query(query) => in_query(query),
        JobKind::Function(job) => match &job.input {
            FunctionInput::Query(query) => in_query(query),
            FunctionInput::Arguments(_) | FunctionInput::Frames(_) | FunctionInput::Files { .. } => 0,
        },
    }
}

/// A fresh id for [`Mesh::submit_as`].
pub fn new_job_id() -> Result<JobId> {
    getrandom::u64()
        .map(JobId)
        .map_err(|error| Error::Local(format!("the system gives no random numbers: {error}")))
}

/// What was asked of a mesh that could not agree on it in time may lie with its nodes, who agree on it when they can.
fn or_later(error: Error) -> Error {
    match error {
        Error::Unavailable { failure: Failure::Unavailable { message }, waited } => {
            let message = format!("{message}; it may still be done once the mesh has a leader");
            Error::Unavailable { failure: Failure::Unavailable { message }, waited }
        }
        error => error,
    }
}
