//! What goes wrong in a run, drawn from its seed.

use std::collections::BTreeSet;
use std::fmt;

use floe_protocol::NodeId;

use super::dice::Dice;
use super::disk::Fate;
use super::network::Weather;

const HOUR_MS: u64 = 3_600_000;

/// One thing that goes wrong, and for how long.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// A process is killed, and started again after a while.
    Kill { node: NodeId, down_ms: u64 },
    /// Every process is killed at once.
    PowerCut { down_ms: u64 },
    /// A machine is lost for good, with its disk.
    Lose { node: NodeId },
    /// A machine stops in the middle of a write, or finds its disk full.
    Write { node: NodeId, fate: Fate, down_ms: u64 },
    /// A disk takes its time.
    Slow { node: NodeId, write_ms: u64, ms: u64 },
    /// A process does nothing for a while, and then goes on as if nothing had been.
    Pause { node: NodeId, ms: u64 },
    /// A machine sleeps for a while, longer by its own account: hours in which little happens elsewhere.
    Sleep { node: NodeId, ms: u64, told_ms: u64 },
    /// Links lose everything, in the directions given.
    Cut { links: BTreeSet<(NodeId, NodeId)>, ms: u64 },
    /// The network loses, repeats, reorders and delays messages.
    Weather { weather: Weather, ms: u64 },
    /// A node's wall clock is set.
    Clock { node: NodeId, by_ms: i64 },
    /// So many voters that the rest cannot decide are killed, and somebody has the mesh recovered meanwhile.
    LostQuorum { nodes: Vec<NodeId>, down_ms: u64, recover_after_ms: u64 },
    /// Somebody has the mesh recovered through a node that has lost its leader, whatever the others do.
    Recover { node: NodeId },
    /// A node's data directory is copied, and put back later: what it has promised since is not in it. The node may have
    /// started again in between.
    PutBack { node: NodeId, restarts: bool, after_ms: u64 },
    /// Another node starts and joins.
    Join,
    /// A node leaves for good.
    Leave { node: NodeId },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill { node, down_ms } => write!(f, "kill n{} for {down_ms} ms", node.0),
            Self::PowerCut { down_ms } => write!(f, "kill all for {down_ms} ms"),
            Self::Lose { node } => write!(f, "lose n{}", node.0),
            Self::Write { node, fate, down_ms } => {
                write!(f, "n{}'s next write: {fate:?}, down for {down_ms} ms", node.0)
            }
            Self::Slow { node, write_ms, ms } => {
                write!(f, "n{}'s disk takes up to {write_ms} ms a write for {ms} ms", node.0)
            }
            Self::Pause { node, ms } => write!(f, "pause n{} for {ms} ms", node.0),
            Self::Sleep { node, ms, told_ms } => {
                write!(f, "n{} sleeps for {ms} ms, by its clocks {told_ms} ms", node.0)
            }
            Self::Cut { links, ms } => {
                let links: Vec<_> = links.iter().map(|(a, b)| format!("{}>{}", a.0, b.0)).collect();
                write!(f, "cut {} for {ms} ms", links.join(" "))
            }
            Self::Weather { weather, ms } => write!(f, "{weather:?} for {ms} ms"),
            Self::Clock { node, by_ms } => write!(f, "n{}'s wall clock jumps by {by_ms} ms", node.0),
            Self::LostQuorum { nodes, down_ms, recover_after_ms } => {
                let nodes: Vec<_> = nodes.iter().map(|node| format!("n{}", node.0)).collect();
                write!(f, "kill {} for {down_ms} ms, recover after {recover_after_ms} ms", nodes.join(" "))
            }
            Self::Recover { node } => write!(f, "recover through n{}", node.0),
            Self::PutBack { node, restarts, after_ms } => {
                let then = if *restarts { "restarted, and " } else { "" };
                write!(f, "n{}'s directory is copied, {then}put back after {after_ms} ms", node.0)
            }
            Self::Join => write!(f, "a node joins"),
            Self::Leave { node } => write!(f, "n{} leaves", node.0),
        }
    }
}

/// What there is to be hit.
#[derive(Debug)]
pub(super) struct Targets {
    pub(super) running: Vec<NodeId>,
    /// Hit more often than others.
    pub(super) leader: Option<NodeId>,
    pub(super) voters: Vec<NodeId>,
}

/// Draws a fault.
pub(super) fn draw(dice: &mut Dice, targets: &Targets) -> Option<Fault> {
    let nodes = &targets.running;
    let any = dice.pick(nodes)?;
    let node = targets.leader.filter(|_| dice.chance(350)).unwrap_or(any);
    // Some last long enough for the others to go on without the node, and it without them.
    let while_ms = if dice.chance(200) { dice.between(4_000..=14_000) } else { dice.between(200..=6_000) };
    Some(match dice.between(0..=124) {
        0 => Fault::PowerCut { down_ms: dice.between(20..=2_000) },
        1..=2 => Fault::Lose { node },
        3..=19 => Fault::Kill { node, down_ms: while_ms },
        20..=39 => {
            let torn = Fate::Torn(dice.between(0..=3));
            let fate = dice.pick(&[Fate::Full, Fate::Lost, torn, torn, Fate::Kept])?;
            Fault::Write { node, fate, down_ms: dice.between(20..=5_000) }
        }
        40..=50 => Fault::Pause { node, ms: while_ms },
        51..=54 => {
            let told_ms = if dice.chance(500) { while_ms } else { while_ms + dice.between(0..=3 * HOUR_MS) };
            Fault::Sleep { node, ms: while_ms, told_ms }
        }
        55..=64 => Fault::Cut { links: halves(dice, nodes), ms: while_ms },
        65..=71 => {
            let links = nodes.iter().filter(|other| **other != node).map(|other| (node, *other));
            let links = if dice.chance(500) { links.collect() } else { links.map(|(a, b)| (b, a)).collect() };
            Fault::Cut { links, ms: while_ms }
        }
        72..=77 => {
            let other = dice.pick(nodes).filter(|other| *other != node)?;
            Fault::Cut { links: BTreeSet::from([(node, other)]), ms: while_ms }
        }
        78..=87 => {
            let weather = Weather {
                lost_permille: dice.between(0..=200),
                repeated_permille: dice.between(0..=100),
                reordered_permille: dice.between(0..=200),
                delay_ms: dice.between(0..=300),
            };
            Fault::Weather { weather, ms: while_ms }
        }
        88..=92 => Fault::Clock { node, by_ms: dice.between(0..=4 * HOUR_MS) as i64 - 2 * HOUR_MS as i64 },
        93..=96 => Fault::Join,
        97..=99 => Fault::Leave { node },
        100..=102 => {
            let mut nodes = targets.voters.clone();
            while nodes.len() > targets.voters.len() / 2 + 1 {
                nodes.swap_remove(dice.between(0..=nodes.len() as u64 - 1) as usize);
            }
            let recover_after_ms = dice.between(500..=5_000);
            Fault::LostQuorum { nodes, down_ms: dice.between(4_000..=14_000), recover_after_ms }
        }
        103..=107 => Fault::Recover { node: any },
        108..=112 => Fault::PutBack { node, restarts: dice.chance(500), after_ms: dice.between(500..=6_000) },
        _ => {
            let longest_ms = dice.pick(&[30, 300, 1_000, 3_000, 10_000])?;
            Fault::Slow { node, write_ms: dice.between(10..=longest_ms), ms: while_ms }
        }
    })
}

/// All links between two halves, both ways.
pub(super) fn halves(dice: &mut Dice, nodes: &[NodeId]) -> BTreeSet<(NodeId, NodeId)> {
    let (one, other): (Vec<NodeId>, Vec<NodeId>) = nodes.iter().partition(|_| dice.chance(500));
    one.iter().flat_map(|a| other.iter().flat_map(move |b| [(*a, *b), (*b, *a)])).collect()
}
