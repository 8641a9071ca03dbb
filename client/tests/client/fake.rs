//! Nodes that play a part: real connections on loopback, scripted answers.

use std::sync::{Arc, Mutex};

use arrow_array::{Array, Int64Array, RecordBatch};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use floe_client::{JobId, JobPhase, JobStatus, Mesh, MeshKey, NodeId, NodeInfo, NodeRole, Status};
use floe_protocol::arrow_file::stream_of;
use floe_protocol::graph::BucketMeta;
use floe_protocol::message::Made;
use floe_protocol::{Incarnation, Load, Member, OutputMeta, Placed, Request, Response, StageId, WallTime};
use floe_transport::admission::Roster;
use floe_transport::substreams::{self, Offer};
use floe_transport::{
    CALL, Credentials, Role, Stream, node_id, read_frame, send_body, transport, write_frame,
};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use libp2p::Swarm;
use libp2p::identity::Keypair;
use libp2p::swarm::SwarmEvent;
use tokio::task::JoinHandle;
use xxhash_rust::xxh3::xxh3_64;

pub(crate) const JOB: JobId = JobId(7);

type Answer = Arc<dyn Fn(Request, Stream) -> BoxFuture<'static, ()> + Send + Sync>;

/// A node that answers by a script. Dropping it breaks its connections.
pub(crate) struct Fake {
    pub(crate) address: String,
    pub(crate) node: NodeId,
    asked: Arc<Mutex<Vec<Request>>>,
    swarm: JoinHandle<()>,
}

impl Fake {
    /// A node that tells of these others; whatever else it is asked, `answer` answers.
    pub(crate) async fn start<F>(
        key: &MeshKey,
        others: &[&Self],
        answer: impl Fn(Request, Stream) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let status = status(others);
        let answer: Answer = Arc::new(move |request, stream| answer(request, stream).boxed());
        let identity = Keypair::generate_ed25519();
        let roster = Roster::default();
        let credentials = Credentials::new(key.clone(), Role::Node);
        let transport = transport(&identity, credentials, roster.clone()).unwrap();
        let offers = vec![Offer { protocol: CALL, to_drivers: true }];
        let (behaviour, mut inbound) = substreams::Behaviour::new(roster, offers);
        let config = libp2p::swarm::Config::with_tokio_executor();
        let peer = identity.public().to_peer_id();
        let mut swarm = Swarm::new(transport, behaviour, peer, config);
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                break address.to_string();
            }
        };
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        let swarm = tokio::spawn(async move {
            // The answers end with the node.
            let mut answers = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    _ = swarm.select_next_some() => {}
                    Some(mut inbound) = inbound.recv() => {
                        let (answer, heard, status) = (answer.clone(), heard.clone(), status.clone());
                        answers.spawn(async move {
                            let request: Request = read_frame(&mut inbound.stream).await.unwrap();
                            if request == Request::Status {
                                return say(&mut inbound.stream, &status).await;
                            }
                            heard.lock().unwrap().push(request.clone());
                            answer(request, inbound.stream).await;
                        });
                    }
                }
            }
        });
        Self { address, node: node_id(&peer), asked, swarm }
    }

    /// What it was asked, besides its status.
    pub(crate) fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.swarm.abort();
    }
}

/// The status that tells of these nodes.
fn status(others: &[&Fake]) -> Response {
    let nodes = others
        .iter()
        .map(|other| NodeInfo {
            member: Member {
                id: other.node,
                peer: String::new(),
                name: String::new(),
                addresses: vec![other.address.clone()],
                slots: 1,
                memory_bytes: 1,
                version: String::new(),
                incarnation: Incarnation::default(),
            },
            role: NodeRole::Voter,
            alive: true,
            load: Load::default(),
        })
        .collect();
    Response::Status(Status {
        node: NodeId(1),
        era: None,
        leader: None,
        term: 0,
        rival: None,
        nodes,
        voters: vec![],
    })
}

pub(crate) fn job(phase: JobPhase) -> Response {
    Response::Job(JobStatus {
        id: JOB,
        label: String::new(),
        phase,
        stages: Vec::new(),
        submitted_at: WallTime::default(),
        ended_at: None,
        other_ends: Vec::new(),
        timeline: Vec::new(),
        waits_for: None,
    })
}

pub(crate) async fn say(stream: &mut Stream, response: &Response) {
    // A driver that went away is part of some stories.
    let _ = write_frame(stream, response).await;
}

/// Says that a partition lies on these nodes.
pub(crate) async fn say_made(stream: &mut Stream, rows: u64, nodes: &[NodeId]) {
    let placed = Placed { nodes: nodes.to_vec(), summary: meta(rows).summary() };
    let made = Made::Here { stage: StageId(0), placed, schema: Bytes::new() };
    say(stream, &Response::Made(made)).await;
}

/// Answers a fetch: announces one file and sends these bytes for it. If they are too few, no more come.
pub(crate) async fn send_file(stream: &mut Stream, announced: &[u8], sent: &[u8]) {
    let segments = vec![(xxh3_64(announced), announced.len() as u64)];
    say(stream, &Response::Fetching { segments }).await;
    let body = futures::stream::iter([Ok(Bytes::copy_from_slice(sent))]);
    // A driver that went away is part of some stories.
    let _ = if sent.len() < announced.len() {
        send_body(stream, body.chain(futures::stream::pending())).await
    } else {
        send_body(stream, body).await
    };
}

/// Never answers: the node hangs until it is dropped.
pub(crate) async fn hang() {
    std::future::pending::<()>().await;
}

/// One partition as it is stored.
pub(crate) fn file_of(schema: &Schema, batches: impl IntoIterator<Item = RecordBatch>) -> Vec<u8> {
    let mut writer = FileWriter::try_new(Vec::new(), schema).unwrap();
    for batch in batches {
        writer.write(&batch).unwrap();
    }
    writer.into_inner().unwrap()
}

/// The same of numbers, a batch of each of these rows.
pub(crate) fn file(batches: &[&[i64]]) -> Vec<u8> {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
    let batch = |rows: &&[i64]| {
        RecordBatch::try_new(schema.clone(), vec![Arc::new(Int64Array::from(rows.to_vec()))]).unwrap()
    };
    file_of(&schema, batches.iter().map(batch))
}

/// And as it is streamed.
pub(crate) fn partition(batches: &[&[i64]]) -> Vec<u8> {
    stream_of(&file(batches).into()).unwrap().into()
}

pub(crate) fn meta(rows: u64) -> OutputMeta {
    OutputMeta { buckets: vec![BucketMeta { rows, bytes: rows * 8 }], mark: 0 }
}

pub(crate) fn result(partitions: &[u64]) -> Response {
    let partitions = partitions.iter().map(|rows| meta(*rows).summary()).collect();
    Response::Result { schema: partition(&[]).into(), partitions }
}

pub(crate) async fn connect(key: &MeshKey, fakes: &[&Fake]) -> Mesh {
    let addresses = fakes.iter().map(|fake| &fake.address);
    Mesh::builder().key(key.clone()).addresses(addresses).connect().await.unwrap()
}

pub(crate) fn numbers(batch: &RecordBatch) -> Vec<i64> {
    batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec()
}
