//! What functions printed, gathered from the nodes where they ran for whoever asks.
//!
//! A driver asks any node; that node reads its own logs and asks the others for theirs. Logs are not copied: those
//! of a node that is gone are gone with it.

use std::time::Duration;

use floe_protocol::message::LogChunk;
use floe_protocol::{Failure, JobId, NodeId, Request, Response, StageId};
use floe_transport::call::{read_frame, write_frame};
use libp2p::Stream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::job_status;
use crate::mailbox::{Ask, Mailbox};
use crate::worker::task_logs::TaskLogs;

/// How often it is looked whether a job that is followed has ended, besides at every change of this node's state.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long a node may be silent while its logs are read without being followed.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// How many pieces wait for the one who asked.
const PIECES: usize = 16;

/// Which logs are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Of this job.
    pub job: JobId,
    /// Of one task only.
    pub task: Option<(StageId, u32)>,
    /// Whether to go on until the job has ended.
    pub follow: bool,
}

/// Answers [`Request::Logs`]: this node's logs and, with `gather`, those of all nodes that are connected.
pub async fn serve(
    mailbox: &Mailbox,
    logs: &TaskLogs,
    mut stream: Stream,
    wanted: Wanted,
    gather: bool,
) -> Result<(), Failure> {
    if gather && let Err(failure) = job_status::known(mailbox, wanted.job).await {
        return write_frame(&mut stream, &Response::Failed(failure)).await.map_err(Failure::internal);
    }
    let (pieces, mut received) = mpsc::channel(PIECES);
    let mut sources = JoinSet::new();
    sources.spawn(own(mailbox.clone(), logs.clone(), wanted, pieces.clone()));
    if gather {
        for peer in mailbox.network().peers().into_iter().filter(|peer| peer.connected) {
            sources.spawn(others(mailbox.clone(), peer.node, wanted, pieces.clone()));
        }
    }
    drop(pieces);
    while let Some(chunk) = received.recv().await {
        write_frame(&mut stream, &Response::Log(chunk)).await.map_err(Failure::internal)?;
    }
    write_frame(&mut stream, &Response::Done).await.map_err(Failure::internal)
}

/// This node's logs.
async fn own(mailbox: Mailbox, logs: TaskLogs, wanted: Wanted, pieces: mpsc::Sender<LogChunk>) {
    let node = mailbox.network().node();
    let mut follower = logs.follow(wanted.job, wanted.task);
    let mut changes = mailbox.job_changes(wanted.job);
    loop {
        changes.mark_unchanged();
        // Whether the job has ended is asked before the last read, so that nothing is missed in between.
        let runs = match mailbox.ask(|reply| Ask::Progress(wanted.job, reply)).await {
            Ok(Ok(job)) => !job.phase.is_terminal(),
            Ok(Err(_)) | Err(_) => false,
        };
        loop {
            let parts = follower.read();
            if parts.is_empty() {
                break;
            }
            for part in parts {
                let chunk = LogChunk { node, attempt: part.attempt, bytes: part.bytes };
                if pieces.send(chunk).await.is_err() {
                    return;
                }
            }
        }
        if !(wanted.follow && runs) {
            return;
        }
        tokio::select! {
            () = follower.changed() => {}
            _ = timeout(LOOK_INTERVAL, changes.changed()) => {}
            () = pieces.closed() => return,
        }
    }
}

/// Another node's logs.
async fn others(mailbox: Mailbox, node: NodeId, wanted: Wanted, pieces: mpsc::Sender<LogChunk>) {
    let Wanted { job, task, follow } = wanted;
    let read = async {
        let mut stream = mailbox.network().open(node).await.ok()?;
        write_frame(&mut stream, &Request::Logs { job, task, follow }).await.ok()?;
        loop {
            let next = read_frame(&mut stream);
            // Whoever is followed may be silent for as long as its connection stands.
            let response = if follow { next.await } else { timeout(READ_TIMEOUT, next).await.ok()? };
            match response.ok()? {
                Response::Log(chunk) => pieces.send(chunk).await.ok()?,
                _ => return Some(()),
            }
        }
    };
    if read.await.is_none() {
        tracing::debug!(%node, "a node's logs were not read to their end");
    }
}
