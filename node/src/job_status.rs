//! Where a job stands, as drivers are told.

use std::time::Duration;

use floe_protocol::{Failure, JobId, JobStatus, Request, Response};
use floe_transport::call::write_frame;
use libp2p::Stream;
use tokio::time::timeout;

use crate::config;
use crate::mailbox::{Ask, Mailbox};

/// How often a watched job's live counts are asked of the leader.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(150);

/// What this node knows of a job: if nothing, then the mesh does not either.
pub async fn known(mailbox: &Mailbox, id: JobId) -> Result<JobStatus, Failure> {
    match mailbox.ask(|reply| Ask::Job(id, reply)).await? {
        // A node that is merely late must not say that there is none.
        Err(Failure::NoSuchJob { .. }) => {
            mailbox.current().await?;
            mailbox.ask(|reply| Ask::Job(id, reply)).await?
        }
        known => known,
    }
}

/// A job as it was at some moment since this was called: only an end, which never changes, is told without
/// asking whether this node is up to date.
pub async fn current(mailbox: &Mailbox, id: JobId) -> Result<JobStatus, Failure> {
    match mailbox.ask(|reply| Ask::Job(id, reply)).await? {
        Ok(job) if job.phase.is_terminal() => return Ok(job),
        Err(freed @ Failure::Freed { .. }) => return Err(freed),
        Ok(_) | Err(_) => {}
    }
    mailbox.current().await?;
    live(mailbox, id).await
}

/// A job as this node knows it, with the leader's live counts while it runs.
async fn live(mailbox: &Mailbox, id: JobId) -> Result<JobStatus, Failure> {
    let job = mailbox.ask(|reply| Ask::Job(id, reply)).await??;
    if job.phase.is_terminal() {
        return Ok(job);
    }
    let status = mailbox.ask(Ask::Status).await?;
    if let Some(leader) = status.leader.filter(|leader| *leader != status.node)
        && let Ok(Response::Job(live)) =
            mailbox.network().call(leader, &Request::Progress { id }, config::CALL_TIMEOUT).await
    {
        return Ok(live);
    }
    Ok(job)
}

/// Sends a job's status now and at every change, until it has ended.
pub async fn watch(mailbox: &Mailbox, stream: &mut Stream, id: JobId) -> Result<(), Failure> {
    let mut say = async |response| write_frame(stream, &response).await.map_err(Failure::internal);
    let mut changes = mailbox.changes();
    let mut sent: Option<JobStatus> = None;
    if let Err(failure) = known(mailbox, id).await {
        return say(Response::Failed(failure)).await;
    }
    loop {
        changes.mark_unchanged();
        // The first status may be behind, the last one never is, so a mesh without a majority can be watched too.
        let job = match live(mailbox, id).await {
            Ok(job) => job,
            Err(failure) => return say(Response::Failed(failure)).await,
        };
        let ended = job.phase.is_terminal();
        if sent.as_ref() != Some(&job) {
            say(Response::Job(job.clone())).await?;
            sent = Some(job);
        }
        if ended {
            return Ok(());
        }
        // A change of this node's own state ends the wait; live counts are the leader's and are polled.
        let _ = timeout(PROGRESS_INTERVAL, changes.changed()).await;
    }
}
