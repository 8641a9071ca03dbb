//! What a job's functions printed.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Buf;
use floe_protocol::message::{LogChunk, Request, Response};
use floe_protocol::{AttemptId, NodeId, StageId};
use futures::Stream;
use futures::stream::BoxStream;

use crate::error::{Error, Result};
use crate::job::Job;
use crate::link::{Exchange, is_excuse};
use crate::patience::Patience;
use crate::places::Standing;

/// What a job's functions printed, made by [`Job::logs`]: of each attempt in order, of several mixed. It goes on
/// through another node when the one it comes from is lost, without saying anything twice.
pub struct LogStream {
    chunks: BoxStream<'static, Result<LogChunk>>,
}

impl LogStream {
    pub(crate) fn new(job: Job, task: Option<(StageId, u32)>, follow: bool) -> Self {
        let patience = job.patience();
        let place = Place::default();
        let source = Source { job, task, follow, patience, stands: None, exchange: None, place };
        let chunks = futures::stream::try_unfold(source, |mut source| async move {
            let chunk = source.next().await?;
            Ok::<_, Error>(chunk.map(|chunk| (chunk, source)))
        });
        Self { chunks: Box::pin(chunks) }
    }
}

impl Stream for LogStream {
    type Item = Result<LogChunk>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.as_mut().poll_next(context)
    }
}

impl std::fmt::Debug for LogStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStream").finish_non_exhaustive()
    }
}

/// Where chunks come from.
struct Source {
    job: Job,
    task: Option<(StageId, u32)>,
    follow: bool,
    patience: Patience,
    /// Its stream's place, if it follows.
    stands: Standing,
    exchange: Option<Exchange>,
    place: Place,
}

/// How far each log was read: a node that is asked again tells it from its start.
#[derive(Debug, Default)]
struct Place {
    read_bytes: BTreeMap<(NodeId, AttemptId), u64>,
    /// What of each is still to be passed over.
    skip_bytes: BTreeMap<(NodeId, AttemptId), u64>,
}

impl Source {
    async fn next(&mut self) -> Result<Option<LogChunk>> {
        loop {
            let (response, exchange) = match self.exchange.take() {
                Some(exchange) => {
                    let address = exchange.address();
                    match exchange.next_response().await {
                        Ok(answer) => answer,
                        Err(lost) => {
                            tracing::debug!(address, %lost, "a log broke off");
                            self.pause(address, lost.to_string()).await?;
                            continue;
                        }
                    }
                }
                None => {
                    if self.follow && self.stands.is_none() {
                        self.stands = self.job.standing(&mut self.patience).await?;
                    }
                    self.place.begin_anew();
                    let (job, task, follow) = (self.job.id(), self.task, self.follow);
                    let request = Request::Logs { job, task, follow };
                    self.job.ask_within(&request, &mut self.patience).await?
                }
            };
            match response {
                Response::Log(chunk) => {
                    self.exchange = Some(exchange);
                    if let Some(chunk) = self.place.admit(chunk) {
                        self.patience.renew();
                        return Ok(Some(chunk));
                    }
                }
                Response::Done => return Ok(None),
                Response::Failed(failure) if !is_excuse(&failure) => return Err(Error::Failure(failure)),
                Response::Failed(failure) => self.pause(exchange.address(), failure.to_string()).await?,
                other => return Err(exchange.unexpected(&other)),
            }
        }
    }

    async fn pause(&mut self, address: String, reason: String) -> Result<()> {
        if self.patience.pause().await {
            return Ok(());
        }
        Err(Error::Unreachable { tried: vec![(address, reason)], waited: self.patience.waited() })
    }
}

impl Place {
    fn begin_anew(&mut self) {
        self.skip_bytes = self.read_bytes.clone();
    }

    /// What of a chunk was not read before.
    fn admit(&mut self, mut chunk: LogChunk) -> Option<LogChunk> {
        let log = (chunk.node, chunk.attempt);
        if let Some(skip) = self.skip_bytes.get_mut(&log) {
            let passed = (*skip).min(chunk.bytes.len() as u64);
            *skip -= passed;
            chunk.bytes.advance(passed as usize);
        }
        *self.read_bytes.entry(log).or_default() += chunk.bytes.len() as u64;
        (!chunk.bytes.is_empty()).then_some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use floe_protocol::{JobId, TaskId};

    use super::*;

    #[test]
    fn a_log_that_is_told_again_says_nothing_twice() {
        let task = TaskId { job: JobId(1), stage: StageId(0), partition: 0 };
        let chunk = |node, bytes: &'static str| LogChunk {
            node: NodeId(node),
            attempt: AttemptId { task, attempt: 1 },
            bytes: bytes.into(),
        };
        let mut place = Place::default();
        assert_eq!(place.admit(chunk(1, "one\ntwo\n")), Some(chunk(1, "one\ntwo\n")));
        place.begin_anew();
        assert_eq!(place.admit(chunk(1, "one\n")), None);
        assert_eq!(place.admit(chunk(2, "other\n")), Some(chunk(2, "other\n")));
        assert_eq!(place.admit(chunk(1, "two\nthree\n")), Some(chunk(1, "three\n")));
        assert_eq!(place.admit(chunk(1, "four\n")), Some(chunk(1, "four\n")));
    }
}
