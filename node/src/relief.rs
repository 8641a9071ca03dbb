//! What a node does that is short of disk, or has too many objects: it frees what it may, off the loop, until there is room.
//!
//! ```text
//!   short ──> files of partitions that are in memory too ──> objects that no job needs ──> old logs
//!   ample ──> the reserve, if it was given up
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use floe_protocol::{BlobId, StageGraph};

use crate::blobs::Blobs;
use crate::disk::{Disk, Reserve, Room};
use crate::store::Store;
use crate::worker::task_logs::TaskLogs;

/// How often it is said at most that the disk is nearly full.
const SAID_INTERVAL: Duration = Duration::from_secs(60);

/// How often objects are gone through at most: there may be many, and none that can go.
const FREED_INTERVAL: Duration = Duration::from_secs(5);

/// Looks after a node's disk.
#[derive(Debug)]
pub struct Relief {
    disk: Disk,
    reserve: Reserve,
    store: Store,
    blobs: Blobs,
    logs: TaskLogs,
    was_short: bool,
    /// When it was last said: a disk may be on the edge for long.
    said: Option<Instant>,
    /// When objects were last gone through.
    freed: Option<Instant>,
    under_way: Arc<AtomicBool>,
}

impl Relief {
    /// Relief for the disk that all of these lie on.
    pub fn new(reserve: Reserve, store: Store, blobs: Blobs, logs: TaskLogs) -> Self {
        let disk = store.disk().clone();
        Self {
            disk,
            reserve,
            store,
            blobs,
            logs,
            was_short: false,
            said: None,
            freed: None,
            under_way: Arc::default(),
        }
    }

    /// To be called now and then, with what runs. It does not wait for the disk.
    pub fn look(&mut self, graphs: impl FnOnce() -> Vec<Arc<StageGraph>>) {
        let Room { free_bytes, short } = self.disk.look();
        if short != self.was_short {
            self.was_short = short;
            let free_mib = free_bytes >> 20;
            if !short {
                tracing::info!(free_mib, "the disk has room again: this node takes work");
            } else if self.said.is_none_or(|said| said.elapsed() >= SAID_INTERVAL) {
                self.said = Some(Instant::now());
                tracing::warn!(
                    free_mib,
                    "the disk is nearly full: this node takes no work until it has room"
                );
            }
        }
        if self.under_way.swap(true, Ordering::Relaxed) {
            return;
        }
        // Where nothing can go, looking again at once is of no use.
        let due = self.freed.is_none_or(|freed| freed.elapsed() >= FREED_INTERVAL);
        let graphs = if due && (short || self.blobs.are_many()) { Some(graphs()) } else { None };
        if graphs.is_some() {
            self.freed = Some(Instant::now());
        }
        let (disk, reserve) = (self.disk.clone(), self.reserve.clone());
        let (store, blobs, logs) = (self.store.clone(), self.blobs.clone(), self.logs.clone());
        let under_way = Arc::clone(&self.under_way);
        tokio::task::spawn_blocking(move || {
            if short {
                store.free_spare_files();
            }
            if let Some(graphs) = graphs {
                blobs.free_unused(&needed(&graphs));
            }
            if short {
                logs.free_old();
            } else if let Err(error) = reserve.make(&disk) {
                tracing::debug!(%error, "nothing can be set aside for a full disk");
            }
            under_way.store(false, Ordering::Relaxed);
        });
    }
}

/// The objects that these need.
fn needed(graphs: &[Arc<StageGraph>]) -> BTreeSet<BlobId> {
    let objects =
        |graph: &Arc<StageGraph>| graph.objects.clone().into_iter().chain(graph.plan.map(|plan| plan.id));
    graphs.iter().flat_map(objects).collect()
}
