//! The thread that writes the log, so that the loop never waits for the disk.
//!
//! ```text
//!   loop ── Persist ──> thread: one transaction, one sync ── Written ──> loop
//! ```
//!
//! One write is under way at a time; what comes meanwhile is gathered by the replica for the next, so the queues hold one.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use floe_consensus::{LogError, Persist, Written};
use tokio::sync::mpsc;

use crate::log_file::LogFile;

/// The log's thread. It ends when this is dropped, or with the first write that fails: the node must not go on then.
#[derive(Debug)]
pub struct LogWriter {
    writes: Option<SyncSender<Persist>>,
    written: mpsc::Receiver<Result<Written, LogError>>,
    thread: Option<JoinHandle<()>>,
}

impl LogWriter {
    /// Starts it on a log.
    pub fn start(mut log: LogFile) -> io::Result<Self> {
        let (writes, to_write) = sync_channel::<Persist>(1);
        let (done, written) = mpsc::channel(1);
        let thread = Builder::new().name("log".to_owned()).spawn(move || {
            while let Ok(persist) = to_write.recv() {
                let outcome = log.write(&persist);
                let failed = outcome.is_err();
                if done.blocking_send(outcome).is_err() || failed {
                    break;
                }
            }
        })?;
        Ok(Self { writes: Some(writes), written, thread: Some(thread) })
    }

    /// Begins a write. The one before it must be done.
    pub fn write(&self, persist: Persist) -> Result<(), LogError> {
        let Some(writes) = &self.writes else { return Err(ended()) };
        writes.try_send(persist).map_err(|_| ended())
    }

    /// Waits for the write under way.
    pub async fn written(&mut self) -> Result<Written, LogError> {
        self.written.recv().await.unwrap_or_else(|| Err(ended()))
    }

    /// The outcome of the write under way, if it is there.
    pub fn try_written(&mut self) -> Option<Result<Written, LogError>> {
        self.written.try_recv().ok()
    }
}

impl Drop for LogWriter {
    /// Whoever opens the log next must find it closed.
    fn drop(&mut self) {
        self.writes = None;
        self.written.close();
        if let Some(thread) = self.thread.take() {
            // A panic has been told where it happened.
            let _ = thread.join();
        }
    }
}

fn ended() -> LogError {
    LogError::Io("the thread that writes it has ended".to_owned())
}
