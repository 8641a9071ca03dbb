//! Results partition by partition: from their holders, by way of another node, made anew.

use std::time::{Duration, Instant};

use bytes::Bytes;
use floe_client::{Error, Failure, JobPhase, Mesh, MeshKey, NodeId, read_partition};
use floe_protocol::message::Made;
use floe_protocol::{Placed, Request, Response, StageId, TaskId};
use futures::{StreamExt, TryStreamExt};

use crate::fake::{Fake, JOB, connect, file, hang, job, meta, numbers, partition, say, say_made, send_file};

/// Nodes that no driver can reach.
const NOWHERE: [NodeId; 2] = [NodeId(98), NodeId(99)];

fn rows(partition: &Bytes) -> Vec<i64> {
    read_partition(partition).unwrap().iter().flat_map(numbers).collect()
}

fn fetch(partition: u32) -> Request {
    Request::Fetch { partition: TaskId { job: JOB, stage: StageId(0), partition }, bucket: None }
}

#[tokio::test]
async fn partitions_come_whole_although_their_sender_is_lost_while_others_are_made() {
    let key = MeshKey::generate();
    let second = Fake::start(&key, &[], move |request, mut stream| async move {
        match request {
            Request::Partitions { from_partition, .. } => {
                for _ in from_partition..3 {
                    say_made(&mut stream, 3, &NOWHERE).await;
                }
                say(&mut stream, &Response::Made(Made::Beyond)).await;
            }
            // The lost partition was made anew, and is cut otherwise.
            Request::Partition { partition, .. } => {
                say(&mut stream, &Response::Made(Made::NotYet)).await;
                let again: [&[&[i64]]; 3] = [&[], &[&[4, 5, 6, 60]], &[&[7]]];
                let file = file(again[partition as usize]);
                send_file(&mut stream, &file, &file).await;
            }
            _ => {}
        }
    })
    .await;
    let first = Fake::start(&key, &[&second], move |request, mut stream| async move {
        match request {
            Request::Partition { partition: 0, .. } => {
                let file = file(&[&[1, 2], &[3]]);
                send_file(&mut stream, &file, &file).await;
            }
            Request::Partition { .. } => {
                let file = file(&[&[4], &[5, 6]]);
                send_file(&mut stream, &file, &file[..100]).await;
            }
            _ => {
                say(&mut stream, &Response::Made(Made::NotYet)).await;
                say_made(&mut stream, 3, &NOWHERE).await;
                say_made(&mut stream, 3, &NOWHERE).await;
                hang().await;
            }
        }
    })
    .await;
    let mesh = connect(&key, &[&first]).await;
    let mut stream = mesh.job(JOB).partitions();
    assert_eq!(rows(&stream.try_next().await.unwrap().unwrap()), [1, 2, 3]);
    drop(first);
    let rest: Vec<_> = stream.map(|partition| rows(&partition.unwrap())).collect().await;
    assert_eq!(rest, [vec![4, 5, 6, 60], vec![7]]);
    let asked = second.asked();
    let again: Vec<_> =
        asked.iter().filter(|request| matches!(request, Request::Partitions { .. })).collect();
    // Of the second one the driver may have heard before.
    assert!(matches!(again[..], [Request::Partitions { id: JOB, from_partition: 1 | 2 }]), "{asked:?}");
    assert!(!asked.contains(&Request::Partition { id: JOB, partition: 0 }), "{asked:?}");
}

#[tokio::test]
async fn partitions_end_with_what_the_job_failed_of() {
    let key = MeshKey::generate();
    // Were it not the job's own end, it would be a reason to ask again.
    let why = || Failure::Unavailable { message: "the disk is full".to_owned() };
    let node = Fake::start(&key, &[], move |request, mut stream| async move {
        match request {
            Request::Partitions { .. } => {
                say_made(&mut stream, 1, &NOWHERE).await;
                say(&mut stream, &Response::Failed(why())).await;
            }
            Request::Partition { .. } => {
                let file = file(&[&[1]]);
                send_file(&mut stream, &file, &file).await;
            }
            _ => say(&mut stream, &job(JobPhase::Failed(why()))).await,
        }
    })
    .await;
    let mut stream = connect(&key, &[&node]).await.job(JOB).partitions();
    assert!(stream.try_next().await.unwrap().is_some(), "what was made before is given out before");
    let error = stream.try_next().await.unwrap_err();
    assert!(matches!(&error, Error::JobFailed { job: JOB, failure } if *failure == why()), "{error}");
}

#[tokio::test]
async fn a_partition_without_rows_whose_columns_are_known_is_not_fetched() {
    let key = MeshKey::generate();
    let node = Fake::start(&key, &[], |_, mut stream| async move {
        let placed = Placed { nodes: NOWHERE.to_vec(), summary: meta(0).summary() };
        let schema = partition(&[]).into();
        say(&mut stream, &Response::Made(Made::Here { stage: StageId(0), placed, schema })).await;
        say(&mut stream, &Response::Made(Made::Beyond)).await;
    })
    .await;
    let partitions: Vec<_> = connect(&key, &[&node]).await.job(JOB).partitions().try_collect().await.unwrap();
    let [only] = partitions.as_slice() else { panic!("{} partitions", partitions.len()) };
    assert!(rows(only).is_empty());
    assert_eq!(read_partition(only).unwrap().len(), 0);
}

/// A node that holds one partition and answers fetches so, and the node that the driver is connected to, which has the
/// numbers 10 and 20 instead.
async fn holder_and_gateway(key: &MeshKey, announced: Vec<u8>, sent: Vec<u8>) -> (Fake, Fake) {
    let holder = Fake::start(key, &[], move |request, mut stream| {
        let (announced, sent) = (announced.clone(), sent.clone());
        async move {
            assert_eq!(request, fetch(0));
            send_file(&mut stream, &announced, &sent).await;
        }
    })
    .await;
    let node = holder.node;
    let gateway = Fake::start(key, &[&holder], move |request, mut stream| async move {
        match request {
            Request::Partitions { .. } => {
                say_made(&mut stream, 2, &[node]).await;
                say(&mut stream, &Response::Made(Made::Beyond)).await;
            }
            _ => {
                let file = file(&[&[10, 20]]);
                send_file(&mut stream, &file, &file).await;
            }
        }
    })
    .await;
    (holder, gateway)
}

/// Reads the result until its holder was asked for it: the first times it is still being connected to.
async fn read_until_asked(mesh: &Mesh, holder: &Fake) -> Vec<i64> {
    let patience = Instant::now() + Duration::from_secs(30);
    loop {
        let partitions: Vec<_> = mesh.job(JOB).partitions().try_collect().await.unwrap();
        if !holder.asked().is_empty() {
            return partitions.iter().flat_map(rows).collect();
        }
        assert_eq!(partitions.iter().flat_map(rows).collect::<Vec<_>>(), [10, 20]);
        assert!(Instant::now() < patience, "the holder is never asked");
    }
}

#[tokio::test]
async fn a_partition_comes_from_its_holder_once_it_is_connected_to() {
    let key = MeshKey::generate();
    let stored = file(&[&[1, 2]]);
    let (holder, gateway) = holder_and_gateway(&key, stored.clone(), stored).await;
    let mesh = connect(&key, &[&gateway]).await;
    assert_eq!(read_until_asked(&mesh, &holder).await, [1, 2]);
    drop(holder);
    let partitions: Vec<_> = mesh.job(JOB).partitions().try_collect().await.unwrap();
    assert_eq!(rows(&partitions[0]), [10, 20], "by way of the other again");
}

#[tokio::test]
async fn a_holder_that_sends_something_else_is_passed_over() {
    let key = MeshKey::generate();
    let (holder, gateway) = holder_and_gateway(&key, file(&[&[1, 2]]), file(&[&[1, 3]])).await;
    let mesh = connect(&key, &[&gateway]).await;
    assert_eq!(read_until_asked(&mesh, &holder).await, [10, 20]);
}
