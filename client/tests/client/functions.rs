//! Functions over data: what is sent, and results whose partitions stand for themselves.

use std::sync::{Arc, Mutex};

use arrow_array::{RecordBatch, StringArray};
use bytes::Bytes;
use floe_client::function::{
    Argument, Frame, Function, FunctionInput, FunctionJob, Host, Limits, MAX_INLINE_BYTES, Payload, Python,
};
use floe_client::{
    AttemptId, Blob, Error, JobKind, JobPhase, JobSpec, LogChunk, MeshKey, NodeId, StageId, Submission,
    TaskId, blob_id,
};
use floe_protocol::arrow_file::stream_of;
use floe_protocol::message::Made;
use floe_protocol::{JobId, Request, Response, frame};
use floe_transport::Stream;
use floe_transport::stream::{Body, send_bytes};
use futures::TryStreamExt;

use crate::fake::{Fake, JOB, connect, file, file_of, hang, job, meta, numbers, say, say_made, send_file};

/// A function's result: only its partitions tell their columns.
fn result(partitions: &[u64]) -> Response {
    let partitions = partitions.iter().map(|rows| meta(*rows).summary()).collect();
    Response::Result { schema: Bytes::new(), partitions }
}

fn words(words: &[&str]) -> Vec<u8> {
    let column = Arc::new(StringArray::from(words.to_vec()));
    let batch = RecordBatch::try_from_iter([("n", column as _)]).unwrap();
    file_of(&batch.schema(), [batch])
}

/// A node that has a succeeded job with these partitions.
async fn holder(key: &MeshKey, files: Vec<Vec<u8>>) -> Fake {
    Fake::start(key, &[], move |request, mut stream| {
        let files = files.clone();
        async move {
            match request {
                Request::Result { from_partition, .. } => {
                    say(&mut stream, &result(&vec![1; files.len()])).await;
                    let wanted = files.into_iter().skip(from_partition as usize);
                    let streams: Vec<_> = wanted.map(|file| stream_of(&file.into()).unwrap()).collect();
                    let _ = send_bytes(&mut stream, streams.concat().into()).await;
                }
                Request::Partitions { from_partition, .. } => {
                    for _ in from_partition as usize..files.len() {
                        say_made(&mut stream, 1, &[]).await;
                    }
                    say(&mut stream, &Response::Made(Made::Beyond)).await;
                }
                Request::Partition { partition, .. } => {
                    let file = &files[partition as usize];
                    send_file(&mut stream, file, file).await;
                }
                _ => say(&mut stream, &job(JobPhase::Succeeded)).await,
            }
        }
    })
    .await
}

#[tokio::test]
async fn frames_follow_their_specification() {
    let key = MeshKey::generate();
    let got = Arc::new(Mutex::new(Vec::new()));
    let noted = got.clone();
    let node = Fake::start(&key, &[], move |request, mut stream| {
        let noted = noted.clone();
        async move {
            let answer = match request {
                Request::Submit { id, .. } => {
                    let spec: JobSpec = frame::decode(&body_of(&mut stream).await).unwrap();
                    let files = body_of(&mut stream).await;
                    noted.lock().unwrap().push((spec, files));
                    Response::Accepted { id }
                }
                other => panic!("{other:?}"),
            };
            say(&mut stream, &answer).await;
        }
    })
    .await;
    let function = Function {
        name: "f".into(),
        host: Host::Python(Python::default()),
        code: Payload::Inline(Bytes::new()),
        limits: Limits::default(),
    };
    let frames = vec![Frame { rows: 1, bytes: 2 }, Frame { rows: 3, bytes: 4 }];
    let job = FunctionJob { function, input: FunctionInput::Frames(frames), merge: None };
    let mesh = connect(&key, &[&node]).await;
    let spec = mesh.function_spec("frames", job).await.unwrap();
    let files = vec![Bytes::from_static(b"ab"), Bytes::from_static(b"cdef")];
    mesh.submit(Submission { spec: spec.clone(), files }).await.unwrap();
    assert_eq!(*got.lock().unwrap(), [(spec, Bytes::from_static(b"abcdef"))]);
}

#[tokio::test]
async fn a_stream_takes_its_schema_from_the_first_partition_and_tells_one_that_differs() {
    let key = MeshKey::generate();
    let node = holder(&key, vec![file(&[&[1]]), file(&[]), words(&["one"])]).await;
    let handle = connect(&key, &[&node]).await.job(JOB);
    let mut stream = handle.stream().await.unwrap();
    assert_eq!(stream.schema().field(0).name(), "n");
    assert_eq!(numbers(&stream.try_next().await.unwrap().unwrap()), [1]);
    let error = stream.try_next().await.unwrap_err();
    assert!(matches!(error, Error::PartitionsDiffer { partition: 2, .. }), "{error}");
    let text = "partition 2 of the result does not fit partition 0: \
                column n is Int64 in partition 0 and Utf8 in partition 2";
    assert_eq!(error.to_string(), text);
    let partitions: Vec<_> = handle.partitions().try_collect().await.unwrap();
    assert_eq!(partitions.len(), 3, "one by one they can be had");
}

#[cfg(feature = "polars")]
#[tokio::test]
async fn partitions_of_a_function_are_collected_to_one_frame_if_they_fit() {
    let key = MeshKey::generate();
    let node = holder(&key, vec![file(&[&[1], &[2]]), file(&[]), file(&[&[3]])]).await;
    let frame = connect(&key, &[&node]).await.job(JOB).collect().await.unwrap();
    let numbers: Vec<_> = frame.column("n").unwrap().i64().unwrap().into_no_null_iter().collect();
    assert_eq!(numbers, [1, 2, 3]);
    let node = holder(&key, vec![file(&[&[1]]), words(&["one"])]).await;
    let error = connect(&key, &[&node]).await.job(JOB).collect().await.unwrap_err().to_string();
    assert!(error.contains("column n is i64 in partition 0 and str in partition 1"), "{error}");
    let node = holder(&key, Vec::new()).await;
    assert_eq!(connect(&key, &[&node]).await.job(JOB).collect().await.unwrap().shape(), (0, 0));
}

async fn body_of(stream: &mut Stream) -> Bytes {
    Body::new(stream).read_all(1 << 30).await.unwrap().into()
}

#[tokio::test]
async fn large_code_and_arguments_travel_apart_and_only_if_the_mesh_has_them_not() {
    let key = MeshKey::generate();
    let specs = Arc::new(Mutex::new(Vec::new()));
    let (code, argument) = (Bytes::from(vec![1; MAX_INLINE_BYTES + 1]), Bytes::from(vec![2; 1 << 20]));
    let known = blob_id(&code);
    let noted = specs.clone();
    let node = Fake::start(&key, &[], move |request, mut stream| {
        let noted = noted.clone();
        async move {
            let answer = match request {
                Request::HasBlob { id } => Response::Has(id == known),
                Request::PutBlob { blob } => {
                    let bytes = body_of(&mut stream).await;
                    assert_eq!((blob.id, blob.bytes), (blob_id(&bytes), bytes.len() as u64));
                    Response::Done
                }
                Request::Submit { id, .. } => {
                    let spec: JobSpec = frame::decode(&body_of(&mut stream).await).unwrap();
                    noted.lock().unwrap().push(spec);
                    Response::Accepted { id }
                }
                other => panic!("{other:?}"),
            };
            say(&mut stream, &answer).await;
        }
    })
    .await;
    let host = Host::Python(Python::default());
    let function = |code| Function { name: "f".into(), host: host.clone(), code, limits: Limits::default() };
    let inline = |bytes: &Bytes| Argument::Payload(Payload::Inline(bytes.clone()));
    let small = Bytes::from_static(b"small");
    let arguments = FunctionInput::Arguments(vec![inline(&small), inline(&argument), Argument::None]);
    let job =
        FunctionJob { function: function(Payload::Inline(code.clone())), input: arguments, merge: None };
    connect(&key, &[&node]).await.run_function("large", job).await.unwrap();
    let blob = |bytes: &Bytes| Payload::Blob(Blob { id: blob_id(bytes), bytes: bytes.len() as u64 });
    let sent = FunctionJob {
        function: function(blob(&code)),
        input: FunctionInput::Arguments(vec![
            inline(&small),
            Argument::Payload(blob(&argument)),
            Argument::None,
        ]),
        merge: None,
    };
    let expected = JobSpec { label: "large".into(), kind: JobKind::Function(Box::new(sent)) };
    assert_eq!(*specs.lock().unwrap(), [expected]);
    let put = |request: &Request| matches!(request, Request::PutBlob { .. });
    assert_eq!(node.asked().iter().filter(|request| put(request)).count(), 1);
}

#[tokio::test]
async fn an_object_comes_from_another_node_if_one_breaks_off_or_sends_something_else() {
    let key = MeshKey::generate();
    let object = Bytes::from(vec![3; 1 << 20]);
    let blob = Blob { id: blob_id(&object), bytes: object.len() as u64 };
    let good = object.clone();
    let second = Fake::start(&key, &[], move |_, mut stream| {
        let good = good.clone();
        async move {
            say(&mut stream, &Response::Blob { bytes: blob.bytes }).await;
            let _ = send_bytes(&mut stream, good).await;
        }
    })
    .await;
    let first = Fake::start(&key, &[&second], move |_, mut stream| async move {
        say(&mut stream, &Response::Blob { bytes: blob.bytes }).await;
        let _ = send_bytes(&mut stream, vec![0; 1 << 20].into()).await;
    })
    .await;
    let mesh = connect(&key, &[&first]).await;
    assert_eq!(mesh.get(blob).await.unwrap(), object);
    assert_eq!(second.asked(), [Request::GetBlob { id: blob.id }]);
}

#[tokio::test]
async fn a_log_goes_on_through_another_node_without_saying_anything_twice() {
    let key = MeshKey::generate();
    let chunk = |partition, bytes: &'static str| {
        let task = TaskId { job: JobId(7), stage: StageId(1), partition };
        LogChunk { node: NodeId(3), attempt: AttemptId { task, attempt: 1 }, bytes: bytes.into() }
    };
    let second = Fake::start(&key, &[], move |_, mut stream| async move {
        for chunk in [chunk(0, "one\ntwo\n"), chunk(1, "other\n")] {
            say(&mut stream, &Response::Log(chunk)).await;
        }
        say(&mut stream, &Response::Done).await;
    })
    .await;
    let first = Fake::start(&key, &[&second], move |_, mut stream| async move {
        say(&mut stream, &Response::Log(chunk(0, "one\n"))).await;
        hang().await;
    })
    .await;
    let mut logs = connect(&key, &[&first]).await.job(JOB).logs(None, true);
    assert_eq!(logs.try_next().await.unwrap(), Some(chunk(0, "one\n")));
    drop(first);
    let rest: Vec<_> = logs.try_collect().await.unwrap();
    assert_eq!(rest, [chunk(0, "two\n"), chunk(1, "other\n")]);
    assert_eq!(second.asked(), [Request::Logs { job: JOB, task: None, follow: true }]);
}
