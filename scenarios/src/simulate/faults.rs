//! What goes wrong in a run, drawn from its seed.

use std::collections::BTreeSet;
use std::fmt;

use floe_protocol::NodeId;

use super::dice::Dice;
use super::disk::Fate;
use super::network::Weather;

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
    /// A process does nothing for a while, and then goes on as if nothing had been.
    Pause { node: NodeId, ms: u64 },
    /// Links lose everything, in the directions given.
    Cut { links: BTreeSet<(NodeId, NodeId)>, ms: u64 },
    /// The network loses, repeats, reorders and delays messages.
    Weather { weather: Weather, ms: u64 },
    /// A node's clock jumps.
    Clock { node: NodeId, by_ms: i64 },
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
            Self::Pause { node, ms } => write!(f, "pause n{} for {ms} ms", node.0),
            Self::Cut { links, ms } => {
                let links: Vec<_> = links.iter().map(|(a, b)| format!("{}>{}", a.0, b.0)).collect();
                write!(f, "cut {} for {ms} ms", links.join(" "))
            }
            Self::Weather { weather, ms } => write!(f, "{weather:?} for {ms} ms"),
            Self::Clock { node, by_ms } => write!(f, "n{}'s clock jumps by {by_ms} ms", node.0),
            Self::Join => write!(f, "a node joins"),
            Self::Leave { node } => write!(f, "n{} leaves", node.0),
        }
    }
}

/// Draws a fault for one of `nodes`, of which `leader` is hit more often than others.
pub(super) fn draw(dice: &mut Dice, nodes: &[NodeId], leader: Option<NodeId>) -> Option<Fault> {
    let any = dice.pick(nodes)?;
    let node = leader.filter(|_| dice.chance(350)).unwrap_or(any);
    let while_ms = dice.between(200..=6_000);
    Some(match dice.between(0..=99) {
        0 => Fault::PowerCut { down_ms: dice.between(20..=2_000) },
        1..=2 => Fault::Lose { node },
        3..=19 => Fault::Kill { node, down_ms: dice.between(20..=5_000) },
        20..=39 => {
            let torn = Fate::Torn(dice.between(0..=3));
            let fate = dice.pick(&[Fate::Full, Fate::Lost, torn, torn, Fate::Kept])?;
            Fault::Write { node, fate, down_ms: dice.between(20..=5_000) }
        }
        40..=54 => Fault::Pause { node, ms: while_ms },
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
        88..=92 => Fault::Clock { node, by_ms: dice.between(0..=13_000) as i64 - 3_000 },
        93..=96 => Fault::Join,
        _ => Fault::Leave { node },
    })
}

/// All links between two halves, both ways.
fn halves(dice: &mut Dice, nodes: &[NodeId]) -> BTreeSet<(NodeId, NodeId)> {
    let (one, other): (Vec<NodeId>, Vec<NodeId>) = nodes.iter().partition(|_| dice.chance(500));
    one.iter().flat_map(|a| other.iter().flat_map(move |b| [(*a, *b), (*b, *a)])).collect()
}
