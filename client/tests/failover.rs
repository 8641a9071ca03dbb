//! The client against nodes that play a part: real connections on loopback, scripted answers.

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_array::{Array, Int64Array, RecordBatch};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use floe_client::{
    Error, Failure, JobId, JobPhase, JobStatus, Mesh, MeshKey, NodeId, NodeInfo, NodeRole, Status,
};
use floe_protocol::graph::BucketMeta;
use floe_protocol::{Load, Member, OutputMeta, Request, Response};
use floe_transport::admission::Roster;
use floe_transport::substreams::{self, Offer};
use floe_transport::{CALL, Credentials, Role, Stream, read_frame, send_body, transport, write_frame};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use libp2p::Swarm;
use libp2p::identity::Keypair;
use libp2p::swarm::SwarmEvent;
use tokio::task::JoinHandle;

const JOB: JobId = JobId(7);

type Answer = Arc<dyn Fn(Request, Stream) -> BoxFuture<'static, ()> + Send + Sync>;

/// A node that answers by a script. Dropping it breaks its connections.
struct Fake {
    address: String,
    asked: Arc<Mutex<Vec<Request>>>,
    swarm: JoinHandle<()>,
}

impl Fake {
    async fn start<F>(key: &MeshKey, answer: impl Fn(Request, Stream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let answer: Answer = Arc::new(move |request, stream| answer(request, stream).boxed());
        let identity = Keypair::generate_ed25519();
        let roster = Roster::default();
        let credentials = Credentials::new(key.clone(), Role::Node);
        let transport = transport(&identity, credentials, roster.clone()).unwrap();
        let offers = vec![Offer { protocol: CALL, to_drivers: true }];
        let (behaviour, mut inbound) = substreams::Behaviour::new(roster, offers);
        let config = libp2p::swarm::Config::with_tokio_executor();
        let mut swarm = Swarm::new(transport, behaviour, identity.public().to_peer_id(), config);
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
                        let (answer, heard) = (answer.clone(), heard.clone());
                        answers.spawn(async move {
                            let request: Request = read_frame(&mut inbound.stream).await.unwrap();
                            heard.lock().unwrap().push(request.clone());
                            answer(request, inbound.stream).await;
                        });
                    }
                }
            }
        });
        Self { address, asked, swarm }
    }

    fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.swarm.abort();
    }
}

/// The status that tells of nodes at these addresses.
fn status_of(addresses: &[&str]) -> Response {
    let nodes = addresses
        .iter()
        .enumerate()
        .map(|(at, address)| NodeInfo {
            member: Member {
                id: NodeId(at as u64 + 1),
                peer: String::new(),
                name: String::new(),
                addresses: vec![(*address).to_owned()],
                slots: 1,
                memory_bytes: 1,
                version: String::new(),
                incarnation: 1,
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

fn job(phase: JobPhase) -> Response {
    Response::Job(JobStatus {
        id: JOB,
        label: String::new(),
        phase,
        stages: Vec::new(),
        submitted_unix_ms: 0,
        ended_unix_ms: None,
        timeline: Vec::new(),
    })
}

async fn say(stream: &mut Stream, response: &Response) {
    // A driver that went away is part of some stories.
    let _ = write_frame(stream, response).await;
}

/// Never answers: the node hangs until it is dropped.
async fn hang() {
    std::future::pending::<()>().await;
}

/// One partition, a batch of each of these rows.
fn partition(batches: &[&[i64]]) -> Vec<u8> {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
    for rows in batches {
        let column = Arc::new(Int64Array::from(rows.to_vec()));
        writer.write(&RecordBatch::try_new(schema.clone(), vec![column]).unwrap()).unwrap();
    }
    writer.into_inner().unwrap()
}

fn meta(rows: u64) -> OutputMeta {
    OutputMeta { buckets: vec![BucketMeta { rows, bytes: rows * 8 }], mark: 0 }
}

fn result(partitions: &[u64]) -> Response {
    let partitions = partitions.iter().map(|rows| meta(*rows)).collect();
    Response::Result { schema: partition(&[]).into(), partitions }
}

async fn connect(key: &MeshKey, fakes: &[&Fake]) -> Mesh {
    let addresses = fakes.iter().map(|fake| &fake.address);
    Mesh::builder().key(key.clone()).addresses(addresses).connect().await.unwrap()
}

#[tokio::test]
async fn calls_go_on_through_a_node_that_the_lost_one_told_of() {
    let key = MeshKey::generate();
    let second =
        Fake::start(&key, |_, mut stream| async move { say(&mut stream, &Response::Jobs(vec![])).await })
            .await;
    let told = second.address.clone();
    let first = Fake::start(&key, move |_, mut stream| {
        let told = told.clone();
        async move { say(&mut stream, &status_of(&[&told])).await }
    })
    .await;
    let mesh = connect(&key, &[&first]).await;
    drop(first);
    assert_eq!(mesh.jobs().await.unwrap(), []);
    assert_eq!(second.asked(), [Request::Jobs]);
}

#[tokio::test]
async fn a_node_that_cannot_answer_now_is_asked_again_and_its_excuses_stay_hidden() {
    let key = MeshKey::generate();
    let excuses = Mutex::new(vec![
        Response::NotLeader(None),
        Response::Failed(Failure::Unavailable { message: "no leader".into() }),
    ]);
    let node = Fake::start(&key, move |request, mut stream| {
        let excuse = if request == Request::Status { None } else { excuses.lock().unwrap().pop() };
        async move {
            let answer = match request {
                Request::Status => status_of(&[]),
                _ => Response::Jobs(vec![]),
            };
            say(&mut stream, &excuse.unwrap_or(answer)).await;
        }
    })
    .await;
    let mesh = connect(&key, &[&node]).await;
    assert_eq!(mesh.jobs().await.unwrap(), []);
    assert_eq!(node.asked().iter().filter(|request| **request == Request::Jobs).count(), 3);
}

#[tokio::test]
async fn a_watch_goes_on_through_another_node_and_ends_with_the_job() {
    let key = MeshKey::generate();
    let second = Fake::start(&key, |_, mut stream| async move {
        say(&mut stream, &job(JobPhase::Running)).await;
        say(&mut stream, &job(JobPhase::Succeeded)).await;
    })
    .await;
    let told = second.address.clone();
    let first = Fake::start(&key, move |request, mut stream| {
        let told = told.clone();
        async move {
            if request == Request::Status {
                return say(&mut stream, &status_of(&[&told])).await;
            }
            say(&mut stream, &job(JobPhase::Running)).await;
            hang().await;
        }
    })
    .await;
    let mesh = connect(&key, &[&first]).await;
    let mut watch = mesh.job(JOB).watch();
    assert_eq!(watch.next().await.unwrap().unwrap().phase, JobPhase::Running);
    drop(first);
    let rest: Vec<_> = watch.map(|status| status.unwrap().phase).collect().await;
    assert_eq!(rest, [JobPhase::Running, JobPhase::Succeeded]);
}

/// Reads a result of two partitions whose sender is lost after the first batch of the second one. The node that
/// the driver goes on with has partitions of these sizes. Returns the rows, and what that node was asked.
async fn broken_off(sizes: &'static [u64]) -> (Result<Vec<i64>, Error>, Vec<Request>) {
    let key = MeshKey::generate();
    let partitions = || [partition(&[&[1, 2], &[3]]), partition(&[&[4], &[5, 6], &[7]])];
    let second = Fake::start(&key, move |request, mut stream| async move {
        let Request::Result { from_partition, .. } = request else {
            return;
        };
        say(&mut stream, &result(sizes)).await;
        let body = futures::stream::iter([Ok(partitions()[from_partition as usize..].concat().into())]);
        let _ = send_body(&mut stream, body).await;
    })
    .await;
    let told = second.address.clone();
    let first = Fake::start(&key, move |request, mut stream| {
        let told = told.clone();
        async move {
            match request {
                Request::Status => say(&mut stream, &status_of(&[&told])).await,
                Request::Watch { .. } => say(&mut stream, &job(JobPhase::Succeeded)).await,
                _ => {
                    say(&mut stream, &result(&[3, 4])).await;
                    let [mut sent, rest] = partitions();
                    // The first batch of the second partition, and a piece of the next.
                    sent.extend_from_slice(&rest[..rest.len() * 6 / 10]);
                    let body =
                        futures::stream::iter([Ok(Bytes::from(sent))]).chain(futures::stream::pending());
                    let _ = send_body(&mut stream, body).await;
                }
            }
        }
    })
    .await;
    let mesh = connect(&key, &[&first]).await;
    let mut stream = mesh.job(JOB).stream().await.unwrap();
    assert_eq!((stream.rows(), stream.schema().field(0).name().as_str()), (7, "n"));
    let mut rows = Vec::new();
    for _ in 0..3 {
        rows.extend(numbers(&stream.try_next().await.unwrap().unwrap()));
    }
    assert_eq!(rows, [1, 2, 3, 4]);
    drop(first);
    let outcome = loop {
        match stream.try_next().await {
            Ok(Some(batch)) => rows.extend(numbers(&batch)),
            Ok(None) => break Ok(rows),
            Err(error) => break Err(error),
        }
    };
    (outcome, second.asked())
}

fn numbers(batch: &RecordBatch) -> Vec<i64> {
    batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec()
}

#[tokio::test]
async fn a_result_goes_on_after_the_last_batch_that_was_read() {
    let (rows, asked) = broken_off(&[3, 4]).await;
    assert_eq!(rows.unwrap(), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(asked, [Request::Result { id: JOB, from_partition: 1 }]);
}

#[tokio::test]
async fn a_result_that_was_made_anew_is_not_mixed_with_the_old_one() {
    let (rows, _) = broken_off(&[3, 5]).await;
    assert!(matches!(rows, Err(Error::ResultChanged { job: JOB })), "{rows:?}");
}

#[tokio::test]
async fn a_failed_job_says_why() {
    let key = MeshKey::generate();
    let node = Fake::start(&key, |request, mut stream| async move {
        let failure = Failure::Query { message: "unable to find column \"carier\"".into() };
        let answer = match request {
            Request::Status => status_of(&[]),
            _ => job(JobPhase::Failed(failure)),
        };
        say(&mut stream, &answer).await;
    })
    .await;
    let mesh = connect(&key, &[&node]).await;
    let error = mesh.job(JOB).stream().await.unwrap_err();
    assert_eq!(error.to_string(), "unable to find column \"carier\"");
}

#[tokio::test]
async fn a_wrong_key_is_told_at_once_and_silence_after_the_time_given() {
    let key = MeshKey::generate();
    let node = Fake::start(&key, |_, _| hang()).await;
    let started = std::time::Instant::now();
    let other = Mesh::builder().key(MeshKey::generate()).address(&node.address);
    let error = other.connect_timeout(Duration::from_secs(600)).connect().await.unwrap_err();
    assert!(matches!(&error, Error::Refused(text) if text.contains("wrong mesh key")), "{error}");
    assert!(started.elapsed() < Duration::from_secs(300), "it is not tried again");
    let address = node.address.clone();
    drop(node);
    let gone = Mesh::builder().key(key).address(&address).connect_timeout(Duration::from_millis(200));
    let error = gone.connect().await.unwrap_err().to_string();
    assert!(error.starts_with("no node answered within 0.") && error.contains(&address), "{error}");
}

#[tokio::test]
async fn an_address_that_is_none_is_named() {
    let error =
        Mesh::builder().key(MeshKey::generate()).address("localhost:4001").connect().await.unwrap_err();
    assert!(error.to_string().starts_with("`localhost:4001` is not a multiaddress"), "{error}");
}
