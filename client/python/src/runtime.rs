//! The one runtime behind all connections, and waiting on it from Python's threads.

use std::future::Future;
use std::pin::pin;
use std::process;
use std::sync::OnceLock;
use std::time::Duration;

use pyo3::prelude::*;
use tokio::runtime::{Builder, Runtime};

use crate::error::local;

/// Threads of the runtime: one that serves a connection and one that fills or empties it.
const THREADS: usize = 2;

/// How often a wait looks whether Ctrl-C was pressed.
pub(crate) const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

struct Started {
    runtime: Runtime,
    /// The process whose threads the runtime has: a fork does not inherit them.
    process: u32,
}

pub(crate) fn runtime() -> PyResult<&'static Runtime> {
    static STARTED: OnceLock<Result<Started, String>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("floe")
            .enable_all()
            .build()
            .map_err(|error| format!("no threads can be started: {error}"))?;
        Ok(Started { runtime, process: process::id() })
    });
    match started {
        Ok(started) if started.process == process::id() => Ok(&started.runtime),
        Ok(_) => Err(local(
            "this process was forked from one that used floe, whose connections it does not have: start it with \
             the method `spawn` or `forkserver` instead",
        )),
        Err(message) => Err(local(message)),
    }
}

/// Waits for a future while other Python threads run. Ctrl-C drops it and raises `KeyboardInterrupt`.
pub(crate) fn wait<T: Send>(py: Python<'_>, future: impl Future<Output = T> + Send) -> PyResult<T> {
    let runtime = runtime()?;
    py.detach(|| {
        runtime.block_on(async {
            let mut future = pin!(future);
            loop {
                match tokio::time::timeout(SIGNAL_INTERVAL, &mut future).await {
                    Ok(output) => return Ok(output),
                    Err(_) => Python::attach(|py| py.check_signals())?,
                }
            }
        })
    })
}
