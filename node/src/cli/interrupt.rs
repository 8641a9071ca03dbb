//! Ctrl-C, and SIGTERM, which means the same to a command.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens from its making on, so that no signal in between ends the process by itself.
#[derive(Debug)]
pub(super) struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupt {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for a signal.
    pub(super) async fn wait(&mut self) {
        self.which().await;
    }

    /// Waits for a signal, and tells which it was.
    pub(super) async fn which(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
        }
    }
}
