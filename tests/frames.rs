//! A driver's frames on their way to the nodes, and partitions on their way back.

use std::io::Cursor;

use bytes::Bytes;
use floe_client::function::{Format, Frame, FunctionInput, FunctionJob, Limits};
use floe_client::{Failure, Job, JobId, Mesh, NodeId, StageId, Submission, TaskId};
use floe_protocol::message::Made;
use floe_protocol::{Request, Response};
use floe_scenarios::harness::{DEADLINE, Node, wait_until};
use floe_transport::files::read_checked;
use floe_transport::{Body, Connection, read_frame};
use futures::TryStreamExt;
use futures::future::join_all;
use polars::prelude::{DataFrame, IpcReader, IpcStreamReader, IpcWriter, SerReader, SerWriter, df};

use crate::{cluster, connection, shell};

/// A frame as it travels.
fn file_of(mut frame: DataFrame) -> Vec<u8> {
    let mut file = Vec::new();
    IpcWriter::new(&mut file).finish(&mut frame).unwrap();
    file
}

/// Gives `cat` frames of these files, of which this is said.
async fn submit_cat(mesh: &Mesh, said: &[Frame], files: &[Vec<u8>]) -> Result<Job, String> {
    submit_shell(mesh, "cat", said, files).await
}

/// Gives a shell's command frames of these files.
async fn submit_shell(mesh: &Mesh, command: &str, said: &[Frame], files: &[Vec<u8>]) -> Result<Job, String> {
    let function = shell("cat", command, Format::Arrow, Limits::default());
    let job = FunctionJob { function, input: FunctionInput::Frames(said.to_vec()), merge: None };
    let spec = mesh.function_spec("cat", job).await.unwrap();
    let files = files.iter().cloned().map(Into::into).collect();
    mesh.submit(Submission { spec, files }).await.map_err(|error| error.to_string())
}

/// What it makes of them.
async fn through_cat(mesh: &Mesh, said: &[Frame], files: &[Vec<u8>]) -> Result<Vec<DataFrame>, String> {
    let job = submit_cat(mesh, said, files).await?;
    let partitions: Vec<_> = job.partitions().try_collect().await.map_err(|error| error.to_string())?;
    let read = |partition| IpcStreamReader::new(Cursor::new(partition)).finish().unwrap();
    Ok(partitions.into_iter().map(read).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_are_not_what_was_said_are_refused_and_the_mesh_goes_on() {
    let cluster = cluster().nodes(2).start().await.unwrap();
    let mesh = cluster.client(1).await.unwrap();
    let frames = [df!("n" => [1, 2, 3]).unwrap(), df!("n" => (0..100_000).collect::<Vec<_>>()).unwrap()];
    let files = frames.clone().map(file_of);
    let of = |rows: u64, file: &Vec<u8>| Frame { rows, bytes: file.len() as u64 };
    let right = [of(3, &files[0]), of(100_000, &files[1])];
    let rubbish = vec![7; 1000];
    let off_by = |bytes: i64| {
        let wrong = Frame { bytes: right[1].bytes.checked_add_signed(bytes).unwrap(), ..right[1] };
        [right[0], wrong]
    };
    let huge = [right[0], Frame { bytes: (1 << 30) + 1, ..right[1] }];
    for (said, files, why) in [
        (off_by(1), files.clone(), "the job's frames did not arrive whole: a transfer ended early"),
        (
            off_by(-1),
            files.clone(),
            "the job's frames did not arrive whole: a transfer is longer than was said",
        ),
        (huge, files.clone(), "partition 1 of the input is larger than 1024 MiB: use more partitions"),
        ([right[0], of(1, &rubbish)], [files[0].clone(), rubbish], "partition 1 of the input cannot be read"),
    ] {
        let error = through_cat(&mesh, &said, &files).await.unwrap_err();
        assert!(error.contains(why), "{error}");
        assert_eq!(through_cat(&mesh, &right, &frames.clone().map(file_of)).await.unwrap(), frames);
    }
    assert!(through_cat(&mesh, &[], &[]).await.unwrap_err().contains("nothing to call the function with"));
}

/// A partition as a node sends it, or why it does not.
async fn fetch(connection: &Connection, request: Request) -> Result<Vec<Bytes>, Failure> {
    match connection.call(&request, DEADLINE).await.unwrap() {
        (Response::Fetching { segments }, stream) => {
            Ok(read_checked(&mut Body::new(stream), &segments).await.unwrap())
        }
        (Response::Failed(failure), _) => Err(failure),
        (other, _) => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_had_from_its_holder_and_by_way_of_every_other_node() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    let mut nodes = Vec::new();
    for node in 0..3 {
        nodes.push(connection(&mut cluster, node).await);
    }
    let (frames, files, said) = six_frames();
    let job = submit_cat(&cluster.client(0).await.unwrap(), &said, &files).await.unwrap().id();

    let (answer, mut stream) =
        nodes[1].call(&Request::Partitions { id: job, from_partition: 0 }, DEADLINE).await.unwrap();
    assert_eq!(answer, Response::Made(Made::NotYet), "it listens");
    let mut holders: Vec<(StageId, NodeId)> = Vec::new();
    loop {
        match tokio::time::timeout(DEADLINE, read_frame(&mut stream)).await.unwrap().unwrap() {
            Response::Made(Made::Here { stage, placed, .. }) => holders.push((stage, placed.nodes[0])),
            Response::Made(Made::NotYet) => {}
            Response::Made(Made::Beyond) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(holders.len(), 6);
    for (partition, (stage, holder)) in (0..).zip(&holders) {
        let task = TaskId { job, stage: *stage, partition };
        let frame = &frames[partition as usize];
        for node in &nodes {
            let relayed = fetch(node, Request::Partition { id: job, partition }).await.unwrap();
            assert_eq!(&read(&relayed), frame);
            let fetched = fetch(node, Request::Fetch { partition: task, bucket: None }).await;
            if node.node() == *holder {
                assert_eq!(&read(&fetched.unwrap()), frame);
            } else {
                assert!(matches!(fetched, Err(Failure::InputLost { .. })), "{fetched:?}");
            }
        }
    }

    // One whose holder is gone is made again, and so is what nobody had asked for yet.
    let other = nodes.iter().position(|node| node.node() != holders[0].1).unwrap();
    let gone = nodes.iter().position(|node| node.node() == holders[0].1).unwrap();
    cluster.node(gone).kill().await.unwrap();
    let request = Request::Partition { id: job, partition: 0 };
    let again =
        wait_until("it is made again", DEADLINE, async || fetch(&nodes[other], request.clone()).await.ok());
    let again = again.await.unwrap();
    assert_eq!(read(&again), frames[0]);

    let beyond = fetch(&nodes[other], Request::Partition { id: job, partition: 6 }).await.unwrap_err();
    assert_eq!(beyond.to_string(), format!("job {job} has no partition 6"));
    let unknown = fetch(&nodes[other], Request::Partition { id: JobId(1), partition: 0 }).await.unwrap_err();
    assert_eq!(unknown, Failure::NoSuchJob { job: JobId(1) });
}

/// Frames of some size, and what is said of them.
fn six_frames() -> (Vec<DataFrame>, Vec<Vec<u8>>, Vec<Frame>) {
    let frames: Vec<_> = (0..6).map(|n| df!("n" => vec![n; 50_000]).unwrap()).collect();
    let files: Vec<_> = frames.iter().cloned().map(file_of).collect();
    let said = files.iter().map(|file| Frame { rows: 50_000, bytes: file.len() as u64 }).collect();
    (frames, files, said)
}

async fn collected(job: &Job) -> Vec<DataFrame> {
    let partitions: Vec<Bytes> = job.partitions().try_collect().await.unwrap();
    let read = |partition| IpcStreamReader::new(Cursor::new(partition)).finish().unwrap();
    partitions.into_iter().map(read).collect()
}

/// Waits until some of a job's calls have ended, and not all.
async fn under_way(job: &Job) {
    let mut statuses = job.watch();
    while let Some(status) = statuses.try_next().await.unwrap() {
        assert!(!status.phase.is_terminal(), "it was to last longer");
        if status.stages.last().is_some_and(|stage| stage.done > 0) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_job_survives_that_every_node_is_killed_at_once() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    let (frames, files, said) = six_frames();
    let mesh = cluster.client(0).await.unwrap();
    let job = submit_shell(&mesh, "sleep 1; cat", &said, &files).await.unwrap();
    under_way(&job).await;
    for node in cluster.nodes_mut() {
        node.kill().await.unwrap();
    }
    for ready in join_all(cluster.nodes_mut().iter_mut().map(Node::restart)).await {
        ready.unwrap();
    }
    let again = cluster.client(1).await.unwrap().job(job.id());
    assert_eq!(collected(&again).await, frames);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_job_survives_that_one_node_after_the_other_is_started_again() {
    let mut cluster = cluster().nodes(3).start().await.unwrap();
    let (frames, files, said) = six_frames();
    let job = submit_shell(&cluster.client(0).await.unwrap(), "sleep 2; cat", &said, &files).await.unwrap();
    under_way(&job).await;
    // As soon as one is back the next one goes: what the first brought back must count by then.
    for node in 0..3 {
        cluster.node(node).restart().await.unwrap();
        cluster.settled().await.unwrap();
    }
    let again = cluster.client(2).await.unwrap().job(job.id());
    assert_eq!(collected(&again).await, frames);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_power_cut_took_is_sent_again_by_a_driver_that_is_there() {
    let mut cluster = cluster().nodes(2).start().await.unwrap();
    let (frames, files, said) = six_frames();
    let mesh = cluster.client(0).await.unwrap();
    let gate = cluster.dir().join("gate");
    let script = format!("while [ ! -e {} ]; do sleep 0.1; done; cat", gate.display());
    let waited_for = submit_shell(&mesh, &script, &said, &files).await.unwrap();
    let left_alone = submit_shell(&mesh, &script, &said, &files).await.unwrap().id();
    let waiting = waited_for.clone();
    let collecting = tokio::spawn(async move { collected(&waiting).await });
    for node in cluster.nodes_mut() {
        node.kill().await.unwrap();
    }
    // Nothing of it was synced yet.
    for node in 0..2 {
        for file in std::fs::read_dir(cluster.data_dir(node).join("partitions")).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
    }
    for ready in join_all(cluster.nodes_mut().iter_mut().map(Node::restart)).await {
        ready.unwrap();
    }
    std::fs::write(&gate, "").unwrap();
    assert_eq!(collecting.await.unwrap(), frames);
    assert!(waited_for.wait().await.unwrap().phase == floe_protocol::JobPhase::Succeeded);
    // Of whose driver is gone it is said what happened.
    let ended = cluster.client(1).await.unwrap().job(left_alone).wait().await.unwrap().phase;
    let floe_protocol::JobPhase::Failed(failure @ Failure::SubmissionLost { .. }) = ended else {
        panic!("{ended:?}")
    };
    assert!(failure.to_string().contains("power was cut"), "{failure}");
}

fn read(files: &[Bytes]) -> DataFrame {
    let [file] = files else { panic!("{} files", files.len()) };
    IpcReader::new(Cursor::new(file.clone())).finish().unwrap()
}
