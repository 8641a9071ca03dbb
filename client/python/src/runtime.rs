//! The one runtime behind all connections of this process, waiting on it from Python's threads, and what a fork means
//! for both.
//!
//! A forked child has the memory of its parent without the threads that served the connections, whose sockets and
//! event loop it shares. So whatever belongs to a runtime is owned by the process that made it ([`Own`]): in a child it
//! is refused at once, and it is never dropped there, since that would take the parent's sockets off the parent's event
//! loop. A child that connects anew gets a runtime of its own.

use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::pin;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

use pyo3::prelude::*;
use tokio::runtime::{Builder, Runtime};

use crate::error::{Parts, local};

/// Threads of the runtime: one that serves a connection and one that fills or empties it.
const THREADS: usize = 2;

/// How often a wait looks whether Ctrl-C was pressed.
pub(crate) const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

/// Counts the forks that led to this process.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// This process's runtime, once there is one. No lock, which another thread might hold during a fork.
static STARTED: AtomicPtr<Started> = AtomicPtr::new(ptr::null_mut());

struct Started {
    runtime: Runtime,
    generation: u32,
}

/// What belongs to the process that made it.
pub(crate) struct Own<T> {
    value: ManuallyDrop<T>,
    generation: u32,
}

impl<T> Own<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: ManuallyDrop::new(value), generation: GENERATION.load(Ordering::Relaxed) }
    }

    /// The value, unless this is a fork of the process that it belongs to.
    pub(crate) fn get(&self) -> PyResult<&T> {
        if self.is_here() { Ok(&self.value) } else { Err(forked()) }
    }

    fn is_here(&self) -> bool {
        self.generation == GENERATION.load(Ordering::Relaxed)
    }
}

impl<T> Drop for Own<T> {
    fn drop(&mut self) {
        if self.is_here() {
            // SAFETY: nothing uses it after this, the only place where it is dropped.
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}

/// To be called in each forked child before it does anything else.
pub(crate) fn was_forked() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

fn forked() -> PyErr {
    let message = "this process was forked from the one that this connection to the mesh belongs to: connect again \
                   here (floe.connect()), or start processes with the method `spawn`";
    Python::attach(|py| Parts::new("forked", message).into_error(py))
}

pub(crate) fn runtime() -> PyResult<&'static Runtime> {
    let generation = GENERATION.load(Ordering::Relaxed);
    let present = STARTED.load(Ordering::Acquire);
    // SAFETY: what it points to was leaked, so that it is there for as long as the process.
    if let Some(started) = unsafe { present.as_ref() }
        && started.generation == generation
    {
        return Ok(&started.runtime);
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("floe")
        .enable_all()
        .build()
        .map_err(|error| local(format!("no threads can be started: {error}")))?;
    let made = Box::into_raw(Box::new(Started { runtime, generation }));
    match STARTED.compare_exchange(present, made, Ordering::AcqRel, Ordering::Acquire) {
        // The parent's is left as it is: to end it would be to wait for threads that are not here.
        // SAFETY: it was leaked.
        Ok(_) => Ok(unsafe { &(*made).runtime }),
        Err(_) => {
            // SAFETY: another thread was first, so nobody else has this one.
            unsafe { Box::from_raw(made) }.runtime.shutdown_background();
            runtime_again()
        }
    }
}

fn runtime_again() -> PyResult<&'static Runtime> {
    // SAFETY: as above; whoever was first has put one there.
    match unsafe { STARTED.load(Ordering::Acquire).as_ref() } {
        Some(started) => Ok(&started.runtime),
        None => Err(local("no threads can be started")),
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
                    Err(_) => match Python::try_attach(|py| py.check_signals()) {
                        Some(checked) => checked?,
                        // The interpreter has ended, and its process soon will: there is nobody to return to.
                        None => std::future::pending().await,
                    },
                }
            }
        })
    })
}
