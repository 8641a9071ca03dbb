//! What results may take of this node's memory on their way from other nodes to drivers: each partition is here as a whole
//! until its driver has taken it. What lies in this node's own store takes nothing more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

/// The part of a node's memory that they may take.
const PART: u64 = 4;

/// What they may take, however little memory a node was given.
const LEAST_BYTES: u64 = 32 << 20;

/// While others wait for room, a reader that takes nothing for this long gives back its own, and begins anew from where it
/// was.
const IDLE: Duration = Duration::from_secs(10);

/// The room for results that pass through. Cheap to clone; clones are one.
#[derive(Clone, Debug)]
pub struct Outgoing {
    free_kib: Arc<Semaphore>,
    all_kib: u32,
    waiting: Arc<AtomicUsize>,
    idle: Duration,
}

/// Room that a partition takes, until everything that was made of it is dropped.
#[derive(Clone, Debug)]
pub struct Room(#[expect(dead_code, reason = "it is held")] Arc<OwnedSemaphorePermit>);

/// One who reads a result.
#[derive(Debug)]
pub struct Reader {
    outgoing: Outgoing,
    taken: watch::Sender<u64>,
}

/// One who waits for room.
struct Waiting(Arc<AtomicUsize>);

impl Outgoing {
    /// That of a node with so much memory for tasks and partitions.
    pub fn new(memory_bytes: u64) -> Self {
        let kib = (memory_bytes / PART).max(LEAST_BYTES) / 1024;
        let all_kib = u32::try_from(kib).unwrap_or(u32::MAX);
        let free_kib = Arc::new(Semaphore::new((all_kib as usize).min(Semaphore::MAX_PERMITS)));
        Self { free_kib, all_kib, waiting: Arc::default(), idle: IDLE }
    }

    /// Room for a partition of this size, which is waited for in turn. One that is larger than all there is gets all.
    pub async fn room(&self, bytes: u64) -> Option<Room> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(self.all_kib);
        let _waiting = Waiting::new(&self.waiting);
        // It is never closed.
        let permit = self.free_kib.clone().acquire_many_owned(kib).await.ok()?;
        Some(Room(Arc::new(permit)))
    }

    /// Somebody reads a result.
    pub fn reader(&self) -> Reader {
        Reader { outgoing: self.clone(), taken: watch::Sender::new(0) }
    }
}

impl Reader {
    /// It has taken something.
    pub fn took(&self) {
        self.taken.send_modify(|count| *count += 1);
    }

    /// Ends when it has taken nothing for long while others wait.
    pub async fn is_idle(&self) {
        let mut taken = self.taken.subscribe();
        loop {
            taken.mark_unchanged();
            let idle = timeout(self.outgoing.idle, taken.changed()).await.is_err();
            if idle && self.outgoing.waiting.load(Ordering::Relaxed) > 0 {
                return;
            }
        }
    }
}

impl Room {
    /// Bytes that keep it for as long as they are.
    pub fn hold(&self, bytes: Bytes) -> Bytes {
        struct Held(Bytes, #[expect(dead_code, reason = "it is held")] Room);

        impl AsRef<[u8]> for Held {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        Bytes::from_owner(Held(bytes, self.clone()))
    }
}

impl Waiting {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn readers_share_the_room_and_one_that_sleeps_gives_way() {
        let outgoing = Outgoing { idle: Duration::from_millis(20), ..Outgoing::new(0) };
        let reader = outgoing.reader();
        let all = outgoing.room(u64::MAX).await.unwrap();
        let bytes = all.hold(Bytes::from_static(b"some"));
        let piece = bytes.slice(1..2);
        drop((all, bytes));
        // As long as nobody waits it may sleep.
        assert!(timeout(5 * outgoing.idle, reader.is_idle()).await.is_err());
        let mut next = Box::pin(outgoing.room(1));
        assert!(next.as_mut().now_or_never().is_none(), "a piece of it is here");
        reader.is_idle().await;
        drop(piece);
        assert!(next.await.is_some());
        assert_eq!(outgoing.waiting.load(Ordering::Relaxed), 0);
    }
}
