//! Going on through another node, and saying why when there is none.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use floe_client::{Error, Failure, JobPhase, Mesh, MeshKey};
use floe_protocol::{Request, Response, StageGraph, frame};
use floe_transport::send_body;
use floe_transport::stream::Body;
use futures::{StreamExt, TryStreamExt};

use crate::fake::{Fake, JOB, connect, hang, job, numbers, partition, result, say};

#[tokio::test]
async fn calls_go_on_through_a_node_that_the_lost_one_told_of() {
    let key = MeshKey::generate();
    let second =
        Fake::start(
            &key,
            &[],
            |_, mut stream| async move { say(&mut stream, &Response::Jobs(vec![])).await },
        )
        .await;
    let first = Fake::start(&key, &[&second], |_, _| hang()).await;
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
    let node = Fake::start(&key, &[], move |_, mut stream| {
        let excuse = excuses.lock().unwrap().pop();
        async move { say(&mut stream, &excuse.unwrap_or(Response::Jobs(vec![]))).await }
    })
    .await;
    let mesh = connect(&key, &[&node]).await;
    assert_eq!(mesh.jobs().await.unwrap(), []);
    assert_eq!(node.asked().iter().filter(|request| **request == Request::Jobs).count(), 3);
}

/// Whoever plans a query must know that a node may have died of it.
#[tokio::test]
async fn what_a_lost_node_was_to_plan_is_asked_for_again_as_such() {
    let key = MeshKey::generate();
    let second = Fake::start(&key, &[], |request, mut stream| async move {
        // Whoever answers before all was said breaks the transfer off.
        Body::new(&mut stream).read_all(1 << 20).await.unwrap();
        let Request::Submit { id, .. } = request else {
            say(&mut stream, &Response::Planned).await;
            let graph = frame::encode(&StageGraph::default()).unwrap();
            send_body(&mut stream, futures::stream::iter([Ok(graph.into())])).await.unwrap();
            return;
        };
        say(&mut stream, &Response::Accepted { id }).await;
    })
    .await;
    // It closes the stream without a word.
    let first = Fake::start(&key, &[&second], |_, _| async {}).await;
    let mesh = connect(&key, &[&first]).await;
    let spec = mesh.sql("SELECT 1").spec().unwrap();
    let job = mesh.submit(spec.clone()).await.unwrap();
    assert_eq!(first.asked(), [Request::Submit { id: job.id(), again: false }]);
    assert_eq!(second.asked(), [Request::Submit { id: job.id(), again: true }]);
    mesh.explain(&spec).await.unwrap();
    assert_eq!(second.asked().last(), Some(&Request::Explain { again: false }));
}

#[tokio::test]
async fn a_watch_goes_on_through_another_node_and_ends_with_the_job() {
    let key = MeshKey::generate();
    let second = Fake::start(&key, &[], |_, mut stream| async move {
        say(&mut stream, &job(JobPhase::Running)).await;
        say(&mut stream, &job(JobPhase::Succeeded)).await;
    })
    .await;
    let first = Fake::start(&key, &[&second], |_, mut stream| async move {
        say(&mut stream, &job(JobPhase::Running)).await;
        hang().await;
    })
    .await;
    let mesh = connect(&key, &[&first]).await;
    let mut watch = mesh.job(JOB).watch();
    assert_eq!(watch.next().await.unwrap().unwrap().phase, JobPhase::Running);
    drop(first);
    let rest: Vec<_> = watch.map(|status| status.unwrap().phase).collect().await;
    assert_eq!(rest, [JobPhase::Running, JobPhase::Succeeded]);
}

/// A node ends a connection with more than 1,024 streams, and with it all that others of this driver wait for.
#[tokio::test]
async fn however_many_jobs_a_driver_waits_for_its_connection_stays_and_others_calls_go_on() {
    const WATCHES: usize = 1_500;
    let key = MeshKey::generate();
    let (end, ended) = tokio::sync::watch::channel(false);
    let open = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (count, highest) = (open.clone(), most.clone());
    let node = Fake::start(&key, &[], move |request, mut stream| {
        let (open, most, mut ended) = (count.clone(), highest.clone(), ended.clone());
        async move {
            most.fetch_max(open.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            match request {
                Request::Watch { .. } => {
                    say(&mut stream, &job(JobPhase::Running)).await;
                    // It fails if the test has failed.
                    let _ = ended.wait_for(|ended| *ended).await;
                    say(&mut stream, &job(JobPhase::Succeeded)).await;
                }
                Request::Job { .. } => say(&mut stream, &job(JobPhase::Running)).await,
                _ => say(&mut stream, &Response::Jobs(vec![])).await,
            }
            open.fetch_sub(1, Ordering::Relaxed);
        }
    })
    .await;
    let mesh = connect(&key, &[&node]).await;
    let mut waits: tokio::task::JoinSet<_> = (0..WATCHES)
        .map(|_| {
            let job = mesh.job(JOB);
            async move { job.wait().await.unwrap().phase }
        })
        .collect();
    let watches = || node.asked().iter().filter(|asked| matches!(asked, Request::Watch { .. })).count();
    while watches() < 500 {
        tokio::task::yield_now().await;
    }
    assert_eq!(mesh.jobs().await.unwrap(), []);
    end.send(true).unwrap();
    while let Some(phase) = waits.join_next().await {
        assert_eq!(phase.unwrap(), JobPhase::Succeeded);
    }
    assert_eq!(watches(), WATCHES, "none was asked for again");
    assert!(most.load(Ordering::Relaxed) < 1_024, "{most:?} streams were open");
}

/// Reads a result of two partitions whose sender is lost after the first batch of the second one. The node that
/// the driver goes on with has partitions of these sizes. Returns the rows, and what that node was asked.
async fn broken_off(sizes: &'static [u64]) -> (Result<Vec<i64>, Error>, Vec<Request>) {
    let key = MeshKey::generate();
    let partitions = || [partition(&[&[1, 2], &[3]]), partition(&[&[4], &[5, 6], &[7]])];
    let second = Fake::start(&key, &[], move |request, mut stream| async move {
        let Request::Result { from_partition, .. } = request else {
            return;
        };
        say(&mut stream, &result(sizes)).await;
        let body = futures::stream::iter([Ok(partitions()[from_partition as usize..].concat().into())]);
        let _ = send_body(&mut stream, body).await;
    })
    .await;
    let first = Fake::start(&key, &[&second], move |request, mut stream| async move {
        match request {
            Request::Watch { .. } => say(&mut stream, &job(JobPhase::Succeeded)).await,
            _ => {
                say(&mut stream, &result(&[3, 4])).await;
                let [mut sent, rest] = partitions();
                // The first batch of the second partition, and a piece of the next.
                sent.extend_from_slice(&rest[..rest.len() * 6 / 10]);
                let body = futures::stream::iter([Ok(Bytes::from(sent))]).chain(futures::stream::pending());
                let _ = send_body(&mut stream, body).await;
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
    let node = Fake::start(&key, &[], |_, mut stream| async move {
        let failure = Failure::Query { message: "unable to find column \"carier\"".into() };
        say(&mut stream, &job(JobPhase::Failed(failure))).await;
    })
    .await;
    let mesh = connect(&key, &[&node]).await;
    let error = mesh.job(JOB).stream().await.unwrap_err();
    assert_eq!(error.to_string(), "unable to find column \"carier\"");
}

#[tokio::test]
async fn a_wrong_key_is_told_at_once_and_silence_after_the_time_given() {
    let key = MeshKey::generate();
    let node = Fake::start(&key, &[], |_, _| hang()).await;
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
