//! Calls of one session that wait for a seat: those that any node may run in one queue, those for one node in its own,
//! so that a node that is busy for long keeps only those waiting that must run there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use floe_protocol::NodeId;
use floe_protocol::session::Call;

/// A call's place in the gateway.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) function: u32,
    /// The only node that will do, if its driver said so.
    pub(super) only: Option<NodeId>,
    pub(super) call: Call,
    /// How often it was lost.
    pub(super) tries: u32,
}

/// Bytes that a session holds, counted among those of all sessions of the node.
#[derive(Debug)]
pub(super) struct Held {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Held {
    /// None yet.
    pub(super) fn new(all: Arc<AtomicUsize>) -> Self {
        Self { bytes: 0, all }
    }

    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.all.fetch_add(bytes, Ordering::Relaxed);
    }

    fn remove(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.all.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.remove(self.bytes);
    }
}

/// The calls that wait.
#[derive(Debug)]
pub(super) struct Waiting {
    /// By the only node that will do; without one, any will. None is empty.
    queues: BTreeMap<Option<NodeId>, VecDeque<Placed>>,
    /// Of their arguments.
    held: Held,
}

impl Waiting {
    /// None yet.
    pub(super) fn new(held: Held) -> Self {
        Self { queues: BTreeMap::new(), held }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.queues.values().map(VecDeque::len).sum()
    }

    /// The bytes of their arguments.
    pub(super) fn bytes(&self) -> usize {
        self.held.bytes
    }

    /// All of them, queue by queue.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Placed> {
        self.queues.values().flatten()
    }

    /// The queues that are not empty.
    pub(super) fn queues(&self) -> Vec<Option<NodeId>> {
        self.queues.keys().copied().collect()
    }

    /// How many are in a queue.
    pub(super) fn count(&self, queue: Option<NodeId>) -> usize {
        self.queues.get(&queue).map_or(0, VecDeque::len)
    }

    /// The last to run of its queue.
    pub(super) fn push(&mut self, placed: Placed) {
        self.held.add(placed.call.argument.len());
        self.queues.entry(placed.only).or_default().push_back(placed);
    }

    /// The next to run of its queue, since it came before those that wait.
    pub(super) fn put_back(&mut self, placed: Placed) {
        self.held.add(placed.call.argument.len());
        self.queues.entry(placed.only).or_default().push_front(placed);
    }

    /// The next of a queue.
    pub(super) fn pop(&mut self, queue: Option<NodeId>) -> Option<Placed> {
        self.pop_if(queue, |_| true)
    }

    /// The next of a queue, if it fits.
    pub(super) fn pop_if(
        &mut self,
        queue: Option<NodeId>,
        fits: impl FnOnce(&Placed) -> bool,
    ) -> Option<Placed> {
        let calls = self.queues.get_mut(&queue)?;
        if !calls.front().is_some_and(fits) {
            return None;
        }
        let placed = calls.pop_front()?;
        if calls.is_empty() {
            self.queues.remove(&queue);
        }
        self.held.remove(placed.call.argument.len());
        Some(placed)
    }

    /// Forgets these calls, where they wait.
    pub(super) fn cancel(&mut self, unwanted: &BTreeSet<u64>) {
        let held = &mut self.held;
        self.queues.retain(|_, calls| {
            calls.retain(|placed| {
                let wanted = !unwanted.contains(&placed.call.id);
                if !wanted {
                    held.remove(placed.call.argument.len());
                }
                wanted
            });
            !calls.is_empty()
        });
    }

    /// Takes out those that only a node can run that is not here.
    pub(super) fn take_lost(&mut self, is_here: impl Fn(NodeId) -> bool) -> Vec<(NodeId, Placed)> {
        let gone: Vec<NodeId> =
            self.queues.keys().copied().flatten().filter(|node| !is_here(*node)).collect();
        let mut lost = Vec::new();
        for node in gone {
            while let Some(placed) = self.pop(Some(node)) {
                lost.push((node, placed));
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn placed(id: u64, only: Option<u64>) -> Placed {
        let call = Call { id, argument: Bytes::from_static(b"seven..") };
        Placed { function: 0, only: only.map(NodeId), call, tries: 0 }
    }

    fn ids(waiting: &Waiting) -> Vec<u64> {
        waiting.iter().map(|placed| placed.call.id).collect()
    }

    #[test]
    fn each_queue_keeps_its_order_and_all_bytes_are_counted() {
        let all = Arc::new(AtomicUsize::new(0));
        let mut waiting = Waiting::new(Held::new(Arc::clone(&all)));
        for (id, only) in [(0, Some(7)), (1, None), (2, Some(7)), (3, None), (4, Some(8))] {
            waiting.push(placed(id, only));
        }
        assert_eq!((waiting.len(), waiting.bytes(), all.load(Ordering::Relaxed)), (5, 35, 35));
        assert_eq!(waiting.queues(), [None, Some(NodeId(7)), Some(NodeId(8))]);
        let first = waiting.pop(None).unwrap();
        assert_eq!((first.call.id, waiting.count(None)), (1, 1));
        assert!(waiting.pop_if(None, |next| next.call.id != 3).is_none());
        waiting.put_back(first);
        assert_eq!(ids(&waiting), [1, 3, 0, 2, 4]);
        waiting.cancel(&BTreeSet::from([1, 3, 2]));
        assert_eq!((ids(&waiting), waiting.bytes()), (vec![0, 4], 14));
        assert_eq!(waiting.queues(), [Some(NodeId(7)), Some(NodeId(8))]);
        let lost = waiting.take_lost(|node| node == NodeId(7));
        assert_eq!(lost.iter().map(|(node, placed)| (node.0, placed.call.id)).collect::<Vec<_>>(), [(8, 4)]);
        assert_eq!((ids(&waiting), all.load(Ordering::Relaxed)), (vec![0], 7));
        drop(waiting);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }
}
