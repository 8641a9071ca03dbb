//! Where a job stands, as drivers are told.

use floe_protocol::{Failure, JobId, JobStatus, Request, Response};
use floe_transport::call::write_frame;
use libp2p::Stream;

use crate::config;
use crate::mailbox::{Ask, Mailbox};
use crate::progress::Progress;

/// What this node knows of a job, without its timeline: if nothing, then the mesh does not either.
pub async fn known(mailbox: &Mailbox, id: JobId) -> Result<JobStatus, Failure> {
    match mailbox.ask(|reply| Ask::Progress(id, reply)).await? {
        // A node that is merely late must not say that there is none.
        Err(Failure::NoSuchJob { .. }) => {
            mailbox.current().await?;
            mailbox.ask(|reply| Ask::Progress(id, reply)).await?
        }
        known => known,
    }
}

/// A job as it was at some moment since this was called: only an end that never changes is told without asking whether
/// this node is up to date.
pub async fn current(mailbox: &Mailbox, id: JobId) -> Result<JobStatus, Failure> {
    match mailbox.ask(|reply| Ask::Job(id, reply)).await? {
        Ok(job) if job.phase.is_final() => return Ok(job),
        Err(freed @ Failure::Freed { .. }) => return Err(freed),
        Ok(_) | Err(_) => {}
    }
    mailbox.current().await?;
    let live = live(mailbox, id).await?;
    let known = mailbox.ask(|reply| Ask::Job(id, reply)).await??;
    Ok(if known.phase.is_terminal() { known } else { JobStatus { timeline: known.timeline, ..live } })
}

/// A job as this node knows it, with the leader's live counts while it runs, and without its timeline.
pub async fn live(mailbox: &Mailbox, id: JobId) -> Result<JobStatus, Failure> {
    let job = mailbox.ask(|reply| Ask::Progress(id, reply)).await??;
    if job.phase.is_terminal() {
        return Ok(job);
    }
    match mailbox.call_leader(&Request::Progress { id }, config::CALL_TIMEOUT).await {
        Some(Response::Job(live)) => Ok(live),
        _ => Ok(job),
    }
}

/// Sends a job's status now and at every change, until it has ended. Only the last one has the timeline. False if this
/// node could not say it.
pub async fn watch(
    mailbox: &Mailbox,
    progress: &Progress,
    stream: &mut Stream,
    id: JobId,
) -> Result<bool, Failure> {
    let mut say = async |response| write_frame(stream, &response).await.map_err(Failure::internal);
    if let Err(failure) = known(mailbox, id).await {
        return say(Response::Failed(failure)).await.map(|()| true);
    }
    // The first status may be behind, the last one never is, so a mesh without a majority can be watched too.
    let mut statuses = progress.follow(id);
    loop {
        let seen = match statuses.wait_for(Option::is_some).await {
            Ok(seen) => seen.clone(),
            // This node stops.
            Err(_) => return Ok(false),
        };
        let ended = match seen {
            // The leader may have said so, and this node be a moment behind; or it may have been submitted again.
            Some(Ok(job)) if job.phase.is_terminal() => match current(mailbox, id).await {
                Ok(job) if !job.phase.is_terminal() => {
                    statuses = progress.follow(id);
                    continue;
                }
                ended => ended,
            },
            Some(Ok(job)) => {
                say(Response::Job(JobStatus::clone(&job))).await?;
                if statuses.changed().await.is_err() {
                    return Ok(false);
                }
                continue;
            }
            Some(Err(failure)) => Err(failure),
            None => continue,
        };
        return say(ended.map_or_else(Response::Failed, Response::Job)).await.map(|()| true);
    }
}
