//! A job's progress, live.

use std::pin::Pin;
use std::task::{Context, Poll};

use floe_protocol::JobStatus;
use floe_protocol::message::{Request, Response};
use futures::Stream;
use futures::stream::BoxStream;

use crate::error::{Error, Result};
use crate::job::Job;
use crate::link::Exchange;
use crate::patience::Patience;
use crate::places::Standing;

/// The statuses of one job, made by [`Job::watch`]: the present one, then one at every change, the last one
/// terminal.
pub struct Watch {
    statuses: BoxStream<'static, Result<JobStatus>>,
}

impl Watch {
    pub(crate) fn new(job: Job) -> Self {
        let patience = job.patience();
        let source = Source { job, patience, place: None, exchange: None, ended: false };
        let statuses = futures::stream::unfold(source, |mut source| async move {
            let status = source.next().await?;
            Some((status, source))
        });
        Self { statuses: Box::pin(statuses) }
    }
}

impl Stream for Watch {
    type Item = Result<JobStatus>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.statuses.as_mut().poll_next(context)
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

/// Where a watch's statuses come from.
struct Source {
    job: Job,
    /// How long it goes on without any node's answer.
    patience: Patience,
    /// Its stream's.
    place: Standing,
    exchange: Option<Exchange>,
    ended: bool,
}

impl Source {
    async fn next(&mut self) -> Option<Result<JobStatus>> {
        if self.ended {
            return None;
        }
        let status = self.answer().await;
        self.ended = !matches!(&status, Ok(status) if !status.phase.is_terminal());
        Some(status)
    }

    async fn answer(&mut self) -> Result<JobStatus> {
        loop {
            let (response, exchange) = match self.exchange.take() {
                Some(exchange) => match exchange.response_in_time().await {
                    Some(answer) => answer,
                    None => continue,
                },
                None => {
                    if self.place.is_none() {
                        self.place = self.job.standing(&mut self.patience).await?;
                    }
                    let request = Request::Watch { id: self.job.id() };
                    self.job.ask_within(&request, &mut self.patience).await?
                }
            };
            match response {
                Response::Job(status) => {
                    self.patience.renew();
                    if self.job.goes_on(&status.phase, &mut self.patience).await? {
                        continue;
                    }
                    self.job.saw(&status);
                    self.exchange = Some(exchange);
                    return Ok(status);
                }
                // The node cannot go on; asking anew finds one that can, or says why none does.
                Response::Failed(failure) if failure.is_deterministic() => {
                    return Err(Error::Failure(failure));
                }
                Response::Failed(_) | Response::NotLeader(_) => {
                    if !self.patience.pause().await {
                        return Err(exchange.unexpected(&response));
                    }
                }
                other => return Err(exchange.unexpected(&other)),
            }
        }
    }
}
