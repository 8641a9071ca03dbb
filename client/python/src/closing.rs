//! Closing a connection while other threads wait for something of it.

use std::future::Future;
use std::sync::Arc;

use floe_client::JobId;
use pyo3::prelude::*;
use tokio::sync::watch;

use crate::error::Parts;
use crate::runtime::wait;

/// Whether a connection was closed. All that comes of a connection shares this, and every wait ends with it. At the
/// interpreter's end nobody closes: the threads that are left end with it, and an error would only be printed.
#[derive(Clone)]
pub(crate) struct Closing(Arc<watch::Sender<State>>);

#[derive(Clone, Copy)]
enum State {
    Open,
    Closed {
        /// Whether the jobs end too, since their node was started for this connection.
        jobs_end: bool,
    },
}

impl Closing {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::Open)))
    }

    /// Ends all waits, those that begin later too.
    pub(crate) fn close(&self, jobs_end: bool) {
        self.0.send_replace(State::Closed { jobs_end });
    }

    /// Waits for something of the mesh, unless the connection is closed.
    pub(crate) fn wait<T: Send>(
        &self,
        py: Python<'_>,
        future: impl Future<Output = T> + Send,
    ) -> PyResult<T> {
        let answered = wait(py, self.unless(self.closed(), future))?;
        answered.map_err(|_| closed(py, "the mesh was closed before it answered"))
    }

    /// Waits for what a job comes to, unless the connection is closed.
    pub(crate) fn wait_for_job<T: Send>(
        &self,
        py: Python<'_>,
        job: JobId,
        future: impl Future<Output = T> + Send,
    ) -> PyResult<T> {
        let ended = wait(py, self.unless(self.closed(), future))?;
        ended.map_err(|jobs_end| {
            let message = if jobs_end {
                format!("the mesh was closed, and job {job} ended with the node that was started for it")
            } else {
                format!(
                    "the mesh was closed before job {job} had ended; the job itself goes on: \
                     floe.connect().job({:?}) has it again",
                    job.to_string()
                )
            };
            closed(py, &message)
        })
    }

    /// Asks a job something, which can still be done after the connection was closed, but not while it is.
    pub(crate) fn ask<T: Send>(&self, py: Python<'_>, future: impl Future<Output = T> + Send) -> PyResult<T> {
        let mut states = self.0.subscribe();
        let closes = async move {
            // It cannot be dropped while this is borrowed.
            drop(states.changed().await);
            false
        };
        let answered = wait(py, self.unless(closes, future))?;
        answered.map_err(|_| closed(py, "the mesh was closed before it answered"))
    }

    /// What a future gives; what the closing gives, if that comes first.
    async fn unless<T>(
        &self,
        closes: impl Future<Output = bool>,
        future: impl Future<Output = T>,
    ) -> Result<T, bool> {
        tokio::select! {
            // What ends because of the closing must not look as if it had ended by itself.
            biased;
            jobs_end = closes => Err(jobs_end),
            output = future => Ok(output),
        }
    }

    /// Waits for the closing: whether the jobs end too.
    async fn closed(&self) -> bool {
        let mut states = self.0.subscribe();
        loop {
            if let State::Closed { jobs_end } = *states.borrow_and_update() {
                return jobs_end;
            }
            // It cannot be dropped while this is borrowed.
            drop(states.changed().await);
        }
    }
}

fn closed(py: Python<'_>, message: &str) -> PyErr {
    Parts::new("cancelled", message).into_error(py)
}
