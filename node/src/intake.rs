//! What jobs' specifications may take while they are read and planned: plans may carry frames, and are decoded in memory.
//! Frames that come as files need none of it, since they go to disk as they come.

use std::sync::Arc;

use floe_protocol::Failure;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many times its size a specification takes: as it is read, where room for it grows, and as it is planned.
const COST: usize = 3;

/// What they may take together, however little memory a node was given: enough for plans without frames.
const LEAST_BYTES: u64 = 64 << 20;

/// When to try again if there is no room.
const RETRY_MS: u64 = 1_000;

/// Room for specifications. Cheap to clone; clones are one.
#[derive(Clone, Debug)]
pub struct Intake {
    free_kib: Arc<Semaphore>,
    all_kib: usize,
}

impl Intake {
    /// That of a node with so much memory for tasks and partitions.
    pub fn new(memory_bytes: u64) -> Self {
        let kib = usize::try_from(memory_bytes.max(LEAST_BYTES) / 1024).unwrap_or(usize::MAX);
        let all_kib = kib.min(u32::MAX as usize).min(Semaphore::MAX_PERMITS);
        Self { free_kib: Arc::new(Semaphore::new(all_kib)), all_kib }
    }

    /// The largest specification that there is ever room for, in bytes.
    pub fn largest(&self) -> usize {
        self.all_kib.saturating_mul(1024) / COST
    }

    /// Room for so many more bytes, until it is dropped.
    pub fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Failure> {
        let kib = u32::try_from(bytes.saturating_mul(COST).div_ceil(1024)).unwrap_or(u32::MAX);
        self.free_kib.clone().try_acquire_many_owned(kib).map_err(|_| Failure::Busy {
            message: format!(
                "this node reads and plans as much as it has memory for, {} MiB: frames in files need none of that",
                self.all_kib >> 10
            ),
            retry_ms: RETRY_MS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_the_largest_one_alone_and_for_no_more_beside_it() {
        for memory_bytes in [0, 200 << 20, u64::MAX] {
            let intake = Intake::new(memory_bytes);
            assert!(intake.largest() >= 20 << 20);
            let mut whole = intake.take(0).unwrap();
            let mut left = intake.largest();
            while left > 0 {
                let piece = left.min(64 << 20);
                whole.merge(
                    intake.take(piece).unwrap_or_else(|failure| panic!("{left} bytes left: {failure}")),
                );
                left -= piece;
            }
            assert!(matches!(intake.take(64 << 10), Err(Failure::Busy { .. })));
            drop(whole);
            assert!(intake.take(64 << 10).is_ok());
        }
    }
}
