//! Sessions: calls and their results, and what happens to them when something is lost.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use floe_client::function::{Function, Host, Limits, Payload, Python};
use floe_client::{Blob, CallOutcome, Error, Failure, Mesh, MeshKey, NodeId, Session, blob_id};
use floe_protocol::session::{
    Call, CallFrame, CallResult, MAX_CALL_BYTES, MAX_CALLS, MAX_CALLS_BYTES, ResultFrame, Returned,
};
use floe_protocol::{Request, Response};
use floe_transport::stream::send_bytes;
use floe_transport::{Stream, read_frame, write_frame};

use crate::fake::{Fake, connect, hang, say};

const NODE: NodeId = NodeId(9);

fn function(name: &str) -> Function {
    let host = Host::Python(Python { version: "3.12".into(), ..Python::default() });
    let code = Payload::Inline(Bytes::from_static(b"code"));
    Function { name: name.into(), host, code, limits: Limits::default() }
}

/// The node's end of a session's stream.
struct Gateway(Stream);

impl Gateway {
    async fn accept(request: &Request, mut stream: Stream) -> Option<Self> {
        let Request::Session { id, .. } = request else {
            return None;
        };
        say(&mut stream, &Response::Accepted { id: *id }).await;
        Some(Self(stream))
    }

    /// What the driver sends next; nothing once it is gone.
    async fn next(&mut self) -> Option<CallFrame> {
        read_frame(&mut self.0).await.ok()
    }

    /// The calls that it makes next, whatever else it says before.
    async fn calls(&mut self) -> Option<Vec<Call>> {
        loop {
            if let CallFrame::Calls { calls, .. } = self.next().await? {
                return Some(calls);
            }
        }
    }

    async fn send(&mut self, frame: ResultFrame) {
        let _ = write_frame(&mut self.0, &frame).await;
    }

    async fn results(&mut self, results: impl IntoIterator<Item = (u64, Result<Returned, Failure>)>) {
        let result = |(id, outcome)| CallResult { id, outcome, elapsed_us: 7 };
        let results = results.into_iter().map(result).collect();
        self.send(ResultFrame::Results { node: NODE, results }).await;
    }

    /// Returns each call's argument until the driver is gone.
    async fn echo(mut self) {
        while let Some(calls) = self.calls().await {
            self.results(calls.into_iter().map(|call| (call.id, Ok(Returned::Inline(call.argument))))).await;
        }
    }
}

/// As many results as were asked for, by id.
async fn collected(session: &Session, count: usize) -> Vec<CallOutcome> {
    let mut results = Vec::new();
    while results.len() < count {
        results.extend(session.results().await.unwrap());
    }
    results.sort_by_key(|result| result.id);
    results
}

fn ids(results: &[CallOutcome]) -> Vec<u64> {
    results.iter().map(|result| result.id).collect()
}

fn numbered(ids: impl IntoIterator<Item = u64>) -> Vec<(u64, Bytes)> {
    ids.into_iter().map(|id| (id, id.to_string().into())).collect()
}

#[tokio::test]
async fn calls_come_back_and_many_share_a_frame() {
    let key = MeshKey::generate();
    let frames = Arc::new(Mutex::new(0));
    let counted = frames.clone();
    let node = Fake::start(&key, &[], move |request, stream| {
        let counted = counted.clone();
        async move {
            let mut gateway = Gateway::accept(&request, stream).await.unwrap();
            while let Some(calls) = gateway.calls().await {
                *counted.lock().unwrap() += 1;
                let echo = calls.into_iter().map(|call| (call.id, Ok(Returned::Inline(call.argument))));
                gateway.results(echo).await;
            }
        }
    })
    .await;
    let session = connect(&key, &[&node]).await.session("test").await.unwrap();
    let echo = session.define(function("echo")).await.unwrap();
    session.calls(echo, numbered(0..5000), None).unwrap();
    let results = collected(&session, 5000).await;
    let returned =
        |id: u64| CallOutcome { id, outcome: Ok(id.to_string().into()), node: Some(NODE), elapsed_us: 7 };
    assert_eq!(results, (0..5000).map(returned).collect::<Vec<_>>());
    assert!(*frames.lock().unwrap() < 20, "{} frames", frames.lock().unwrap());
    assert_eq!((session.unresolved(), session.take_results().unwrap().len()), (0, 0));
}

#[tokio::test]
async fn a_thread_waits_for_results_too_and_not_longer_than_it_wants() {
    let key = MeshKey::generate();
    let node = echoing(&key).await;
    let session = connect(&key, &[&node]).await.session("test").await.unwrap();
    let echo = session.define(function("echo")).await.unwrap();
    let thread = tokio::task::spawn_blocking(move || {
        assert_eq!(session.wait_results(Duration::from_millis(1)).unwrap(), []);
        session.call(echo, 3, "x".into(), None).unwrap();
        session.wait_results(Duration::from_secs(60)).unwrap()
    });
    assert_eq!(ids(&thread.await.unwrap()), [3]);
}

/// A node that returns each call's argument.
async fn echoing(key: &MeshKey) -> Fake {
    Fake::start(key, &[], |request, stream| async move {
        Gateway::accept(&request, stream).await.unwrap().echo().await;
    })
    .await
}

#[tokio::test]
async fn calls_without_a_result_are_made_again_through_another_node() {
    let key = MeshKey::generate();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    let second = Fake::start(&key, &[], move |request, stream| {
        let noted = noted.clone();
        async move {
            let Some(mut gateway) = Gateway::accept(&request, stream).await else {
                return;
            };
            while let Some(frame) = gateway.next().await {
                noted.lock().unwrap().push(frame.clone());
                if let CallFrame::Calls { calls, .. } = frame {
                    let echo = calls.into_iter().map(|call| (call.id, Ok(Returned::Inline(call.argument))));
                    gateway.results(echo).await;
                }
            }
        }
    })
    .await;
    let first = Fake::start(&key, &[&second], move |request, stream| async move {
        let mut gateway = Gateway::accept(&request, stream).await.unwrap();
        let mut calls = Vec::new();
        while calls.len() < 4 {
            calls.extend(gateway.calls().await.unwrap());
        }
        gateway.results([(2, Ok(Returned::Inline("first".into())))]).await;
        hang().await;
    })
    .await;
    let mesh = connect(&key, &[&first]).await;
    let session = mesh.session("test").await.unwrap();
    let one = session.define(function("one")).await.unwrap();
    let other = session.define(function("other")).await.unwrap();
    session.calls(one, numbered([1, 2, 3]), None).unwrap();
    session.calls(other, numbered([4]), Some(NODE)).unwrap();
    assert_eq!(collected(&session, 1).await[0].outcome, Ok("first".into()));
    drop(first);
    let results = collected(&session, 3).await;
    assert_eq!(ids(&results), [1, 3, 4]);
    let call = |(id, argument)| Call { id, argument };
    let calls = |function, node, ids: Vec<u64>| CallFrame::Calls {
        function,
        node,
        calls: numbered(ids).into_iter().map(call).collect(),
    };
    let define = |number, name| CallFrame::Define { function: number, definition: Box::new(function(name)) };
    let expected = [
        define(one, "one"),
        calls(one, None, vec![1, 3]),
        define(other, "other"),
        calls(other, Some(NODE), vec![4]),
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
    let Some(Request::Session { id, .. }) = second.asked().into_iter().next() else {
        panic!("the session did not go on: {:?}", second.asked());
    };
    assert_eq!(id, session.id());
}

#[tokio::test]
async fn a_result_comes_once_and_one_that_is_not_awaited_never() {
    let key = MeshKey::generate();
    let (said, mut heard) = tokio::sync::mpsc::channel(8);
    let node = Fake::start(&key, &[], move |request, stream| {
        let said = said.clone();
        async move {
            let mut gateway = Gateway::accept(&request, stream).await.unwrap();
            let returned = |text: &'static str| Ok(Returned::Inline(text.into()));
            while let Some(frame) = gateway.next().await {
                match frame {
                    CallFrame::Calls { calls, .. } if calls[0].id == 1 => {
                        gateway.results([(1, returned("a")), (1, returned("b")), (99, returned("c"))]).await;
                        gateway.results([(1, returned("d"))]).await;
                    }
                    CallFrame::Calls { calls, .. } => said.send(calls[0].id).await.unwrap(),
                    CallFrame::Cancel { calls } => {
                        let late = calls.into_iter().map(|id| (id, returned("late")));
                        gateway.results(late).await;
                        gateway.results([(3, returned("e"))]).await;
                    }
                    _ => {}
                }
            }
        }
    })
    .await;
    let session = connect(&key, &[&node]).await.session("test").await.unwrap();
    let echo = session.define(function("echo")).await.unwrap();
    session.call(echo, 1, Bytes::new(), None).unwrap();
    let mut results = collected(&session, 1).await;
    session.call(echo, 2, Bytes::new(), None).unwrap();
    assert_eq!(heard.recv().await, Some(2));
    session.call(echo, 3, Bytes::new(), None).unwrap();
    assert_eq!(heard.recv().await, Some(3));
    let in_use = session.call(echo, 3, Bytes::new(), None).unwrap_err();
    assert!(in_use.to_string().contains("call 3 of this session has no result yet"), "{in_use}");
    session.cancel(&[2]);
    session.cancel(&[2]);
    results.extend(collected(&session, 1).await);
    let outcomes: Vec<_> = results.into_iter().map(|result| (result.id, result.outcome.unwrap())).collect();
    assert_eq!(outcomes, [(1, Bytes::from("a")), (3, Bytes::from("e"))]);
}

/// Makes these calls against a node that holds all results back, until it has as much as a driver may send, and then
/// gives them one by one. Returns how many calls and bytes it was sent at most without having answered.
async fn most_under_way(arguments: Vec<Bytes>) -> (usize, usize) {
    let key = MeshKey::generate();
    let total = arguments.len();
    let most = Arc::new(Mutex::new((0, 0)));
    let noted = most.clone();
    let node = Fake::start(&key, &[], move |request, stream| {
        let noted = noted.clone();
        async move {
            let mut gateway = Gateway::accept(&request, stream).await.unwrap();
            let (mut waiting, mut answered) = (Vec::<Call>::new(), 0);
            while answered < total {
                let bytes = |calls: &[Call]| calls.iter().map(|call| call.argument.len()).sum::<usize>();
                let next = waiting.last().map_or(0, |call| call.argument.len());
                let is_full = waiting.len() == MAX_CALLS || bytes(&waiting) + next > MAX_CALLS_BYTES;
                if is_full || waiting.len() + answered == total {
                    let call = waiting.remove(0);
                    answered += 1;
                    gateway.results([(call.id, Ok(Returned::Inline(Bytes::new())))]).await;
                } else {
                    waiting.extend(gateway.calls().await.unwrap());
                    let mut noted = noted.lock().unwrap();
                    *noted = (noted.0.max(waiting.len()), noted.1.max(bytes(&waiting)));
                }
            }
            hang().await;
        }
    })
    .await;
    let session = connect(&key, &[&node]).await.session("test").await.unwrap();
    let echo = session.define(function("echo")).await.unwrap();
    session.calls(echo, (0..).zip(arguments), None).unwrap();
    let distinct: BTreeSet<_> = ids(&collected(&session, total).await).into_iter().collect();
    assert_eq!(distinct.len(), total);
    *most.lock().unwrap()
}

#[tokio::test]
async fn no_more_calls_are_under_way_than_the_mesh_takes() {
    let (calls, _) = most_under_way(vec![Bytes::new(); MAX_CALLS + 300]).await;
    assert_eq!(calls, MAX_CALLS);
    let (_, bytes) = most_under_way(vec![vec![0; MAX_CALL_BYTES].into(); 40]).await;
    assert_eq!(bytes, MAX_CALLS_BYTES);
}

#[tokio::test]
async fn an_argument_that_is_too_large_is_refused_with_what_to_do() {
    let key = MeshKey::generate();
    let node = echoing(&key).await;
    let session = connect(&key, &[&node]).await.session("test").await.unwrap();
    let error = session.call(0, 1, vec![0; MAX_CALL_BYTES + 1].into(), None).unwrap_err();
    assert!(error.to_string().contains("put it into the mesh"), "{error}");
    let error = session.call(5, 1, Bytes::new(), None).unwrap_err();
    assert!(error.to_string().contains("no function number 5"), "{error}");
}

#[tokio::test]
async fn a_large_result_is_fetched_before_it_is_given_out() {
    let key = MeshKey::generate();
    let large = Bytes::from(vec![5; MAX_CALL_BYTES * 3]);
    let blob = Blob { id: blob_id(&large), bytes: large.len() as u64 };
    let kept = large.clone();
    let node = Fake::start(&key, &[], move |request, mut stream| {
        let kept = kept.clone();
        async move {
            match request {
                Request::GetBlob { id } => {
                    assert_eq!(id, blob.id);
                    say(&mut stream, &Response::Blob { bytes: blob.bytes }).await;
                    let _ = send_bytes(&mut stream, kept).await;
                }
                request => {
                    let mut gateway = Gateway::accept(&request, stream).await.unwrap();
                    let calls = gateway.calls().await.unwrap();
                    gateway.results([(calls[0].id, Ok(Returned::Blob(blob)))]).await;
                    hang().await;
                }
            }
        }
    })
    .await;
    let session = connect(&key, &[&node]).await.session("test").await.unwrap();
    let make = session.define(function("make")).await.unwrap();
    session.call(make, 1, Bytes::new(), None).unwrap();
    assert_eq!(collected(&session, 1).await[0].outcome, Ok(large));
}

#[tokio::test]
async fn a_session_that_the_mesh_ends_says_why_for_each_call() {
    let key = MeshKey::generate();
    let failure = Failure::Refused { message: "the session's job was cancelled".into() };
    let said = failure.clone();
    let node = Fake::start(&key, &[], move |request, stream| {
        let said = said.clone();
        async move {
            let mut gateway = Gateway::accept(&request, stream).await.unwrap();
            gateway.calls().await.unwrap();
            gateway.send(ResultFrame::Ended(said)).await;
            hang().await;
        }
    })
    .await;
    let session = connect(&key, &[&node]).await.session("test").await.unwrap();
    let echo = session.define(function("echo")).await.unwrap();
    session.calls(echo, numbered([1, 2]), None).unwrap();
    let results = collected(&session, 2).await;
    assert!(results.iter().all(|result| result.outcome == Err(failure.clone()) && result.node.is_none()));
    let error = session.results().await.unwrap_err();
    assert!(matches!(&error, Error::SessionEnded { failure: told, .. } if *told == failure), "{error}");
    assert!(session.call(echo, 3, Bytes::new(), None).is_err());
}

#[tokio::test]
async fn without_any_node_every_call_fails_when_patience_ends() {
    let key = MeshKey::generate();
    let node = Fake::start(&key, &[], |request, stream| async move {
        let _gateway = Gateway::accept(&request, stream).await.unwrap();
        hang().await;
    })
    .await;
    let mesh = Mesh::builder().key(key).address(&node.address).timeout(Duration::from_millis(300));
    let session = mesh.connect().await.unwrap().session("test").await.unwrap();
    let echo = session.define(function("echo")).await.unwrap();
    session.call(echo, 1, Bytes::new(), None).unwrap();
    drop(node);
    let results = collected(&session, 1).await;
    assert!(matches!(&results[0].outcome, Err(Failure::Unavailable { .. })), "{results:?}");
    assert!(matches!(session.results().await, Err(Error::SessionEnded { .. })));
}

#[tokio::test]
async fn closing_tells_the_node() {
    let key = MeshKey::generate();
    let (said, heard) = tokio::sync::oneshot::channel();
    let said = Mutex::new(Some(said));
    let node = Fake::start(&key, &[], move |request, stream| {
        let said = said.lock().unwrap().take().unwrap();
        async move {
            let mut gateway = Gateway::accept(&request, stream).await.unwrap();
            while let Some(frame) = gateway.next().await {
                if frame == CallFrame::Close {
                    return said.send(()).unwrap();
                }
            }
        }
    })
    .await;
    let session = connect(&key, &[&node]).await.session("test").await.unwrap();
    session.close().await.unwrap();
    heard.await.unwrap();
    let error = session.results().await.unwrap_err();
    assert!(matches!(error, Error::SessionEnded { failure: Failure::Cancelled, .. }), "{error}");
}
