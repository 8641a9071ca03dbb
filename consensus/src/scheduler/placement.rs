//! The nodes as the scheduler sees them, and the choice of one for a task: where its bytes lie, then the
//! least loaded, in turn.
//!
//! ```text
//!              NodeUp                 Inventory
//!    Absent ───────────────> Asked ──────────────> Live ──┐
//!      ^  <──silent, or down──┘ ^                   │  ^  │ NodeDown: no new tasks, for GRACE_MS
//!      │                        └──NodeUp again─────┤  └──┘
//!      └────────────────silent, or down─────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};

use floe_protocol::{AttemptId, JobId, Load, NodeId, StageId, TaskId};

/// Tasks a node gets beyond its slots, so that one waits there when another ends: a round trip is longer than
/// a short task.
pub const QUEUE_AHEAD: u32 = 1;

/// The least memory that is reserved for a task.
pub const MIN_TASK_BYTES: u64 = 16 << 20;

/// Memory reserved for a task, in multiples of the bytes it reads: decoded they are more, and it makes output.
pub const MEMORY_FACTOR: u64 = 3;

/// A task whose input is smaller than this is better off on an idle node than near its input: fetching it costs
/// less than waiting.
pub const HEAVY_BYTES: u64 = 1 << 20;

/// Load per slot and turn: the order in which nodes get tasks.
type Key = (u64, u64, NodeId);

/// All nodes that were ever heard of, as members or as holders of partitions.
#[derive(Default)]
pub(super) struct Nodes {
    nodes: BTreeMap<NodeId, Node>,
    /// Nodes that can take a task, the least loaded first, among equals the one that got none for longest.
    free: BTreeSet<Key>,
    turn: u64,
    /// Nodes that may take more than they could when this was last asked for, and whether one is lost since.
    relieved: BTreeSet<NodeId>,
    lost: bool,
}

/// What a node has left for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Means {
    /// Memory that is not reserved; all that a task can ask for where nothing runs.
    pub(super) memory_bytes: u64,
    /// Whether the task would start at once rather than wait in the node's queue.
    pub(super) at_once: bool,
}

impl Means {
    /// Whether these are no more than others.
    pub(super) fn is_within(self, other: Self) -> bool {
        self.memory_bytes <= other.memory_bytes && (other.at_once || !self.at_once)
    }
}

/// One node.
#[derive(Default)]
pub(super) struct Node {
    /// What people call it; empty if that is not known.
    name: String,
    slots: u32,
    memory_bytes: u64,
    pub(super) standing: Standing,
    /// When the connection was lost, if it is.
    pub(super) down_ms: Option<u64>,
    pub(super) connected: bool,
    /// When it was last heard of.
    pub(super) heard_ms: u64,
    /// When it was last asked for its inventory.
    pub(super) asked_ms: u64,
    /// When it last said what it holds, runs and reads.
    pub(super) told_ms: u64,
    /// Whether it was there all along when it was asked.
    pub(super) doubted: bool,
    pub(super) load: Load,
    /// Whether it takes nothing new for now.
    set_aside: bool,
    /// Attempts it runs or has queued, and the memory reserved for each.
    running: BTreeMap<AttemptId, u64>,
    /// The same in the order they came.
    order: Vec<AttemptId>,
    reserved_bytes: u64,
    /// Partitions it holds, as far as is known.
    pub(super) held: BTreeSet<TaskId>,
    turn: u64,
    key: Option<Key>,
}

/// Where a node stands; see the module's diagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    /// Not connected, or silent: nothing it holds can be read.
    #[default]
    Absent,
    /// Its inventory is awaited.
    Asked,
    /// What it holds and runs is known.
    Live,
}

/// What a task wants of its node.
pub(super) struct Wish<'a> {
    /// Where at least half of its input lies: several nodes where it lies on several.
    pub(super) near: &'a [NodeId],
    /// Whether so much lies there that it is worth an idle slot elsewhere.
    pub(super) heavy: bool,
    /// If not empty, only one of these will do. In order of id.
    pub(super) only: &'a [NodeId],
    /// Memory to reserve.
    pub(super) memory_bytes: u64,
    /// Whether it must start at once rather than wait in the node's queue.
    pub(super) at_once: bool,
}

impl Nodes {
    pub(super) fn get(&self, node: NodeId) -> Option<&Node> {
        self.nodes.get(&node)
    }

    /// The node, which is remembered from now on.
    pub(super) fn entry(&mut self, node: NodeId) -> &mut Node {
        self.nodes.entry(node).or_default()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    pub(super) fn is_live(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.standing == Standing::Live)
    }

    /// Whether a node answers, or is asked.
    pub(super) fn is_there(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.standing != Standing::Absent)
    }

    /// Whether nothing runs, and each is there or known to be gone.
    pub(super) fn are_quiet(&self) -> bool {
        self.nodes.values().all(|node| match node.standing {
            Standing::Live => node.connected && node.running.is_empty(),
            Standing::Absent => true,
            Standing::Asked => false,
        })
    }

    /// Whether any node can take a task.
    pub(super) fn any_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// The node is a member, under this name, and counts as heard of now.
    pub(super) fn member(&mut self, id: NodeId, name: String, now_ms: u64) {
        let node = self.entry(id);
        (node.name, node.heard_ms) = (name, now_ms);
    }

    /// The node is connected, under this name and with these means.
    pub(super) fn up(&mut self, id: NodeId, name: String, slots: u32, memory_bytes: u64, now_ms: u64) {
        let node = self.entry(id);
        (node.name, node.slots, node.memory_bytes) = (name, slots, memory_bytes);
        (node.connected, node.down_ms, node.heard_ms) = (true, None, now_ms);
    }

    /// What to call a node in a sentence.
    pub(super) fn name(&self, id: NodeId) -> String {
        match self.nodes.get(&id) {
            Some(node) if !node.name.is_empty() => node.name.clone(),
            _ => id.to_string(),
        }
    }

    /// Changes a node's standing or connection, and with it whether it gets tasks.
    pub(super) fn update(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes.get_mut(&id) {
            let (key, standing, running) = (node.key, node.standing, node.running.len());
            change(node);
            Self::rekey(&mut self.free, id, node);
            if node.key.is_some() && (key.is_none() || node.running.len() < running) {
                self.relieved.insert(id);
            }
            self.lost |= node.standing == Standing::Absent && standing != Standing::Absent;
        }
    }

    /// Nodes that may take more than when this was last called.
    pub(super) fn take_relieved(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.relieved)
    }

    /// Whether a node was lost since this was last called.
    pub(super) fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.lost)
    }

    /// What a node has left for a task, if it can take any.
    pub(super) fn means(&self, id: NodeId) -> Option<Means> {
        let node = self.nodes.get(&id).filter(|node| node.key.is_some())?;
        let idle = node.running.is_empty();
        let memory_bytes =
            if idle { u64::MAX } else { node.memory_bytes.saturating_sub(node.reserved_bytes) };
        Some(Means { memory_bytes, at_once: (node.running.len() as u32) < node.slots })
    }

    /// Whether a node may get tasks, now or when others have ended there.
    pub(super) fn is_fit(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(Node::is_fit)
    }

    /// The same of a node that may be just about to say so again.
    pub(super) fn may_be_fit(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.standing != Standing::Absent && !node.is_short())
    }

    /// Whether the memory fits on a node.
    pub(super) fn has_room(&self, id: NodeId, memory_bytes: u64) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.has_room(memory_bytes))
    }

    /// Whether a node that is set aside could take a task now.
    pub(super) fn has_room_aside(&self, id: NodeId, memory_bytes: u64) -> bool {
        let takes = |node: &Node| node.is_fit() && node.has_slot() && node.has_room(memory_bytes);
        self.nodes.get(&id).is_some_and(takes)
    }

    /// Takes a node out of the choice, or gives it back.
    pub(super) fn set_aside(&mut self, id: NodeId, set_aside: bool) {
        self.update(id, |node| node.set_aside = set_aside);
    }

    /// Gives a node an attempt.
    pub(super) fn reserve(&mut self, id: NodeId, attempt: AttemptId, memory_bytes: u64) {
        self.turn += 1;
        let turn = self.turn;
        self.update(id, |node| {
            let reserved = memory_bytes.min(node.memory_bytes);
            if node.running.insert(attempt, reserved).is_none() {
                node.reserved_bytes += reserved;
                node.order.push(attempt);
            }
            node.turn = turn;
        });
    }

    /// Takes an attempt from a node.
    pub(super) fn release(&mut self, id: NodeId, attempt: AttemptId) {
        self.update(id, |node| {
            if let Some(reserved) = node.running.remove(&attempt) {
                node.reserved_bytes -= reserved;
                node.order.retain(|a| *a != attempt);
            }
        });
    }

    /// Forgets the partitions of a job.
    pub(super) fn free_job(&mut self, job: JobId) {
        let first = TaskId { job, stage: StageId(0), partition: 0 };
        for node in self.nodes.values_mut() {
            let held: Vec<_> = node.held.range(first..).take_while(|task| task.job == job).copied().collect();
            for task in held {
                node.held.remove(&task);
            }
        }
    }

    /// The best node for a task that can take it now.
    pub(super) fn pick(&self, wish: &Wish<'_>, refuses: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let suits = |id: NodeId| {
            let Some(node) = self.nodes.get(&id) else { return false };
            let queues = node.running.len() as u32 >= node.slots;
            node.key.is_some()
                && !(wish.at_once && queues)
                && node.has_room(wish.memory_bytes)
                && !refuses(id)
        };
        let allowed = |id: &NodeId| wish.only.is_empty() || wish.only.binary_search(id).is_ok();
        let near = wish.near.iter().filter(|near| allowed(near) && suits(**near));
        if let Some((load, _, near)) = near.filter_map(|near| self.nodes.get(near)?.key).min()
            && (wish.heavy || self.free.first().is_none_or(|least| load <= least.0))
        {
            return Some(near);
        }
        // Walk the shorter of both lists.
        if !wish.only.is_empty() && wish.only.len() < self.free.len() {
            let keys = wish.only.iter().filter_map(|id| self.nodes.get(id)?.key);
            return keys.filter(|key| suits(key.2)).min().map(|key| key.2);
        }
        self.free.iter().map(|key| key.2).find(|id| allowed(id) && suits(*id))
    }

    fn rekey(free: &mut BTreeSet<Key>, id: NodeId, node: &mut Node) {
        let assigned = node.running.len() as u64;
        let takes = node.is_fit() && node.has_slot() && !node.set_aside;
        let key = takes.then(|| (assigned * 1024 / u64::from(node.slots), node.turn, id));
        if key != node.key {
            if let Some(old) = node.key.take() {
                free.remove(&old);
            }
            free.extend(key);
            node.key = key;
        }
    }
}

impl Node {
    /// Whether it may get tasks, now or when others have ended there.
    fn is_fit(&self) -> bool {
        self.standing == Standing::Live && self.connected && self.takes_tasks() && !self.is_short()
    }

    /// Whether it can run or queue one more.
    fn has_slot(&self) -> bool {
        (self.running.len() as u64) < u64::from(self.slots.saturating_add(QUEUE_AHEAD))
    }

    /// Whether the memory fits. A task always fits a node that does nothing else.
    fn has_room(&self, memory_bytes: u64) -> bool {
        self.running.is_empty() || self.reserved_bytes + memory_bytes <= self.memory_bytes
    }

    /// Whether it ever gets tasks while it is there.
    pub(super) fn takes_tasks(&self) -> bool {
        self.slots > 0
    }

    /// Whether its disk is nearly full, so that it gets no tasks and no copies.
    pub(super) fn is_short(&self) -> bool {
        self.load.disk_short
    }

    /// The memory budget of the node.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    pub(super) fn runs(&self, attempt: AttemptId) -> bool {
        self.running.contains_key(&attempt)
    }

    /// Its attempts, and for each whether it had a slot (the others were queued).
    pub(super) fn attempts(&self) -> Vec<(AttemptId, bool)> {
        let slots = self.slots as usize;
        self.order.iter().enumerate().map(|(position, attempt)| (*attempt, position < slots)).collect()
    }
}

/// Memory to reserve for a task that reads this much.
pub(super) fn task_memory_bytes(read_bytes: u64) -> u64 {
    read_bytes.saturating_mul(MEMORY_FACTOR).max(MIN_TASK_BYTES)
}
