//! All children of a node, from their start to when they are gone without a trace.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::guard::Guard;
use super::mark::Mark;
use super::processes;

/// A node's children. Cheap to clone; clones are one.
#[derive(Clone, Debug)]
pub(super) struct Family(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    groups: watch::Sender<BTreeSet<i32>>,
    guard: Guard,
    closed: watch::Sender<bool>,
    started: AtomicU64,
}

impl Family {
    pub(super) fn new(guard: Guard) -> Self {
        let groups = watch::Sender::new(BTreeSet::new());
        let (closed, started) = (watch::Sender::new(false), AtomicU64::new(0));
        Self(Arc::new(Inner { groups, guard, closed, started }))
    }

    /// A mark for the next child: what it starts is known by it.
    pub(super) fn mark(&self) -> Mark {
        self.0.guard.mark().child(self.0.started.fetch_add(1, Ordering::Relaxed))
    }

    /// Takes a child in, unless the node is stopping.
    pub(super) fn enter(&self, group: i32) -> bool {
        self.0.guard.add(group);
        self.0.groups.send_modify(|groups| {
            groups.insert(group);
        });
        // Whoever closes looks at the groups after that.
        !self.is_closed() || {
            self.leave(group);
            false
        }
    }

    /// A child and all that it started are gone.
    pub(super) fn leave(&self, group: i32) {
        self.0.guard.remove(group);
        self.0.groups.send_modify(|groups| {
            groups.remove(&group);
        });
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.groups.borrow().len()
    }

    pub(super) fn is_closed(&self) -> bool {
        *self.0.closed.borrow()
    }

    /// Whether the node is stopping, for those who have something to hand back then. They are waited for until they drop
    /// it.
    pub(super) fn closing(&self) -> watch::Receiver<bool> {
        self.0.closed.subscribe()
    }

    /// From now on there are no new children.
    pub(super) fn close(&self) {
        self.0.closed.send_replace(true);
    }

    /// Waits until nobody has anything to hand back.
    pub(super) async fn handed_back(&self) {
        self.0.closed.closed().await;
    }

    pub(super) fn kill(&self) {
        let groups = self.0.groups.borrow().clone();
        for group in groups {
            processes::end(group);
        }
    }

    /// Waits until all are gone.
    pub(super) async fn gone(&self) {
        let mut groups = self.0.groups.subscribe();
        // The sender lives as long as `self`.
        let _ = groups.wait_for(BTreeSet::is_empty).await;
    }

    #[cfg(test)]
    pub(super) fn guard(&self) -> &Guard {
        &self.0.guard
    }

    #[cfg(test)]
    pub(super) fn groups(&self) -> BTreeSet<i32> {
        self.0.groups.borrow().clone()
    }
}
