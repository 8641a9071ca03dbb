//! Hosts that wait for the next function: starting an interpreter and importing libraries takes far longer than most
//! calls.

use std::time::{Duration, Instant};

use super::host::{Host, Key};

/// How long a host waits for the next function before it ends.
pub(super) const IDLE_KEPT: Duration = Duration::from_secs(60);

/// For how many hosts there is room also where fewer run at once: drivers call functions of several kinds by turns (with
/// pandas, with nothing, in an environment), and each kind has hosts of its own.
pub(super) const KINDS_KEPT: usize = 4;

/// Idle hosts, the one that was used last at the end.
#[derive(Debug)]
pub(super) struct Pool {
    idle: Vec<Waiting>,
    room: usize,
    room_bytes: u64,
}

#[derive(Debug)]
struct Waiting {
    host: Host,
    since: Instant,
    /// The memory that it holds.
    bytes: u64,
}

impl Pool {
    /// A pool for at most so many hosts, that hold no more than so many bytes of memory together.
    pub(super) fn new(room: usize, room_bytes: u64) -> Self {
        Self { idle: Vec::new(), room, room_bytes }
    }

    /// A host for a key, if there is a sound one. Those found to be unsound are returned too, to be ended.
    pub(super) fn take(&mut self, key: &Key) -> (Option<Host>, Vec<Host>) {
        let mut unsound = Vec::new();
        while let Some(at) = self.idle.iter().rposition(|waiting| waiting.host.key == *key) {
            let mut host = self.idle.remove(at).host;
            if host.is_sound() {
                return (Some(host), unsound);
            }
            unsound.push(host);
        }
        (None, unsound)
    }

    /// Keeps a host that holds so much memory. Returns those for which there is no room any more.
    pub(super) fn put(&mut self, host: Host, bytes: u64, now: Instant) -> Vec<Host> {
        self.idle.push(Waiting { host, since: now, bytes });
        let mut over = self.idle.len().saturating_sub(self.room);
        let held = |idle: &[Waiting]| idle.iter().fold(0, |sum: u64, each| sum.saturating_add(each.bytes));
        while held(&self.idle[over..]) > self.room_bytes {
            over += 1;
        }
        self.idle.drain(..over).map(|waiting| waiting.host).collect()
    }

    /// Those that have ended, or said that they are of no use, since they were put here.
    pub(super) fn unsound(&mut self) -> Vec<Host> {
        self.idle.extract_if(.., |waiting| !waiting.host.is_sound()).map(|waiting| waiting.host).collect()
    }

    /// Those that have waited for too long, and when the next will have.
    pub(super) fn expire(&mut self, now: Instant) -> (Vec<Host>, Option<Instant>) {
        let old = self.idle.partition_point(|waiting| now.duration_since(waiting.since) >= IDLE_KEPT);
        let expired = self.idle.drain(..old).map(|waiting| waiting.host).collect();
        (expired, self.idle.first().map(|waiting| waiting.since + IDLE_KEPT))
    }

    /// All of them.
    pub(super) fn clear(&mut self) -> Vec<Host> {
        self.idle.drain(..).map(|waiting| waiting.host).collect()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.idle.len()
    }
}
