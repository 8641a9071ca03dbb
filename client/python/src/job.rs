//! `Job`: its state, its result, what it printed.

use std::time::Duration;

use bytes::Bytes;
use floe_client::{Error, JobId, JobPhase, LogStream, json};
use futures::StreamExt;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tokio::sync::{Mutex, mpsc};

use crate::bytes::Buffer;
use crate::closing::Closing;
use crate::error::raised;
use crate::mesh::seconds;
use crate::runtime::{Own, runtime};

/// How many partitions are fetched ahead of the one that Python works on.
const READ_AHEAD: usize = 1;

/// One submission.
#[pyclass(frozen, module = "floe._core")]
pub(crate) struct Job {
    job: Own<floe_client::Job>,
    closing: Own<Closing>,
}

impl Job {
    pub(crate) fn new(job: floe_client::Job, closing: Closing) -> Self {
        Self { job: Own::new(job), closing: Own::new(closing) }
    }

    fn ask<T: Send>(&self, py: Python<'_>, future: impl Future<Output = T> + Send) -> PyResult<T> {
        self.closing.get()?.ask(py, future)
    }
}

#[pymethods]
impl Job {
    #[getter]
    fn id(&self) -> PyResult<String> {
        Ok(self.job.get()?.id().to_string())
    }

    /// Where it stands now, as JSON.
    fn status(&self, py: Python<'_>) -> PyResult<String> {
        let status = self.ask(py, self.job.get()?.status())?.map_err(|error| raised(py, error))?;
        Ok(json::job(&status).to_string())
    }

    /// Waits until it has ended, however it did: its last status as JSON, or nothing if it takes longer.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<String>> {
        let (job, closing) = (self.job.get()?, self.closing.get()?);
        let ended = match timeout.map(seconds).transpose()? {
            None => Ok(closing.wait_for_job(py, job.id(), job.wait())?),
            Some(timeout) => closing.wait_for_job(py, job.id(), within(timeout, job.wait()))?,
        };
        match ended {
            Ok(status) => {
                let status = status.map_err(|error| raised(py, error))?;
                Ok(Some(json::job(&status).to_string()))
            }
            Err(_) => Ok(None),
        }
    }

    /// Raises what it failed of, or that it was cancelled.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        let asked = self.job.get()?;
        let job = asked.id();
        let checked = self.ask(py, async {
            match asked.status().await?.phase {
                JobPhase::Failed(failure) => Err(Error::JobFailed { job, failure }),
                JobPhase::Cancelled => Err(Error::JobCancelled { job }),
                JobPhase::Running | JobPhase::Succeeded => Ok(()),
            }
        })?;
        checked.map_err(|error| raised(py, error))
    }

    /// Gives its partitions one by one as they are made, each an Arrow IPC stream.
    fn partitions(&self) -> PyResult<Partitions> {
        let (job, closing) = (self.job.get()?, self.closing.get()?.clone());
        let mut partitions = job.partitions();
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        runtime()?.spawn(async move {
            loop {
                let next = tokio::select! {
                    next = partitions.next() => next,
                    // Nobody reads any more, and the job may go on for long.
                    () = sender.closed() => return,
                };
                let Some(partition) = next else { return };
                if partition.is_err() | sender.send(partition).await.is_err() {
                    return;
                }
            }
        });
        let receiver = Own::new(Mutex::new(receiver));
        Ok(Partitions { receiver, job: job.id(), closing: Own::new(closing) })
    }

    /// Stops it.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.ask(py, self.job.get()?.cancel())?.map_err(|error| raised(py, error))
    }

    /// Says that its result is no longer needed.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        self.ask(py, self.job.get()?.release())?.map_err(|error| raised(py, error))
    }

    /// The same in the background: for when nobody is left who could wait.
    fn release_later(&self) -> PyResult<()> {
        // In a fork it is not this process's to release.
        let Ok(job) = self.job.get().cloned() else { return Ok(()) };
        runtime()?.spawn(async move {
            // A result that is not released goes within the hour.
            drop(job.release().await);
        });
        Ok(())
    }

    /// What its functions printed, as tuples of node, stage, partition, attempt and bytes: of all tasks or of those of
    /// one partition; with `follow` until it has ended.
    #[pyo3(signature = (partition=None, follow=false))]
    fn logs(&self, partition: Option<u32>, follow: bool) -> PyResult<Logs> {
        let (job, closing) = (self.job.get()?, self.closing.get()?.clone());
        let logs = Own::new(Mutex::new(job.logs(None, follow)));
        Ok(Logs { logs, partition, job: job.id(), closing: Own::new(closing) })
    }
}

/// A job's partitions.
#[pyclass(frozen, module = "floe._core")]
pub(crate) struct Partitions {
    receiver: Own<Mutex<mpsc::Receiver<Result<Bytes, Error>>>>,
    job: JobId,
    closing: Own<Closing>,
}

#[pymethods]
impl Partitions {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Buffer>> {
        let receiver = self.receiver.get()?;
        let received = async { receiver.lock().await.recv().await };
        let next = self.closing.get()?.wait_for_job(py, self.job, received)?;
        match next {
            Some(Ok(partition)) => Ok(Some(Buffer::new(partition))),
            Some(Err(error)) => Err(raised(py, error)),
            None => Ok(None),
        }
    }
}

/// What a job's functions printed.
#[pyclass(frozen, module = "floe._core")]
pub(crate) struct Logs {
    logs: Own<Mutex<LogStream>>,
    partition: Option<u32>,
    job: JobId,
    closing: Own<Closing>,
}

/// Node, stage, partition, attempt, bytes.
type LogLine<'py> = (String, u32, u32, u64, Bound<'py, PyBytes>);

#[pymethods]
impl Logs {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<LogLine<'py>>> {
        let logs = self.logs.get()?;
        loop {
            let printed = async { logs.lock().await.next().await };
            let next = self.closing.get()?.wait_for_job(py, self.job, printed)?;
            let Some(chunk) = next.transpose().map_err(|error| raised(py, error))? else {
                return Ok(None);
            };
            let task = chunk.attempt.task;
            if self.partition.is_none_or(|partition| partition == task.partition) {
                let (node, bytes) = (chunk.node.to_string(), PyBytes::new(py, &chunk.bytes));
                return Ok(Some((node, task.stage.0, task.partition, chunk.attempt.attempt, bytes)));
            }
        }
    }
}

/// A future with a limit, made within the runtime that keeps its time.
async fn within<T>(
    limit: Duration,
    future: impl Future<Output = T>,
) -> Result<T, tokio::time::error::Elapsed> {
    tokio::time::timeout(limit, future).await
}
