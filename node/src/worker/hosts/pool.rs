//! Hosts that wait for the next function: starting an interpreter and importing libraries takes far longer than most
//! calls.

use std::time::{Duration, Instant};

use super::host::{Host, Key};

/// How long a host waits for the next function before it ends.
pub(super) const IDLE_KEPT: Duration = Duration::from_secs(60);

/// Idle hosts, the one that was used last at the end.
#[derive(Debug)]
pub(super) struct Pool {
    idle: Vec<(Host, Instant)>,
    room: usize,
}

impl Pool {
    pub(super) fn new(room: usize) -> Self {
        Self { idle: Vec::new(), room }
    }

    /// A host for a key, if there is a sound one. Those found to be unsound are returned too, to be ended.
    pub(super) fn take(&mut self, key: &Key) -> (Option<Host>, Vec<Host>) {
        let mut unsound = Vec::new();
        while let Some(at) = self.idle.iter().rposition(|(host, _)| host.key == *key) {
            let (mut host, _) = self.idle.remove(at);
            if host.is_sound() {
                return (Some(host), unsound);
            }
            unsound.push(host);
        }
        (None, unsound)
    }

    /// Keeps a host. Returns those for which there is no room any more.
    pub(super) fn put(&mut self, host: Host, now: Instant) -> Vec<Host> {
        self.idle.push((host, now));
        let over = self.idle.len().saturating_sub(self.room);
        self.idle.drain(..over).map(|(host, _)| host).collect()
    }

    /// Those that have ended, or said that they are of no use, since they were put here.
    pub(super) fn unsound(&mut self) -> Vec<Host> {
        self.idle.extract_if(.., |(host, _)| !host.is_sound()).map(|(host, _)| host).collect()
    }

    /// Those that have waited for too long, and when the next will have.
    pub(super) fn expire(&mut self, now: Instant) -> (Vec<Host>, Option<Instant>) {
        let old = self.idle.partition_point(|(_, since)| now.duration_since(*since) >= IDLE_KEPT);
        let expired = self.idle.drain(..old).map(|(host, _)| host).collect();
        (expired, self.idle.first().map(|(_, since)| *since + IDLE_KEPT))
    }

    /// All of them.
    pub(super) fn clear(&mut self) -> Vec<Host> {
        self.idle.drain(..).map(|(host, _)| host).collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.idle.len()
    }
}
