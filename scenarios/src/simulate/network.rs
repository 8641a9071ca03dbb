//! A simulated network: connections between nodes, cuts, and weather that loses, repeats, delays and reorders
//! messages.

use std::collections::{BTreeMap, BTreeSet};

use floe_protocol::NodeId;

use super::dice::Dice;

/// How long a message travels when all is well.
const LATENCY_MS: std::ops::RangeInclusive<u64> = 1..=4;

/// What happens to messages, in times per thousand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weather {
    /// How many are lost.
    pub(super) lost_permille: u64,
    /// How many arrive twice.
    pub(super) repeated_permille: u64,
    /// How many are overtaken.
    pub(super) reordered_permille: u64,
    /// How much longer a message may travel.
    pub(super) delay_ms: u64,
}

/// Links that do not work, each in one direction.
#[derive(Clone, Debug)]
struct Cut {
    number: u64,
    links: BTreeSet<(NodeId, NodeId)>,
    /// When the connections that it breaks are found broken.
    noticed_ms: u64,
}

/// A connection that came or went, for each of its ends that is there to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Who sees it.
    pub(super) node: NodeId,
    /// The other end.
    pub(super) peer: NodeId,
    /// Whether it came.
    pub(super) up: bool,
}

/// Who is connected to whom, and what is in the way.
#[derive(Debug, Default)]
pub(super) struct Network {
    pub(super) weather: Weather,
    cuts: Vec<Cut>,
    /// Each pair in order.
    connected: BTreeSet<(NodeId, NodeId)>,
    /// Connections whose end is not seen yet.
    broken: Vec<(NodeId, NodeId)>,
    /// Pairs, each in order, that have not found each other yet, and when they will.
    strangers: BTreeMap<(NodeId, NodeId), u64>,
    /// When the last message of a link arrives.
    arrivals: BTreeMap<(NodeId, NodeId), u64>,
}

impl Network {
    /// When a message that is sent now arrives: never, once or twice.
    pub(super) fn send(&mut self, dice: &mut Dice, now_ms: u64, from: NodeId, to: NodeId) -> Vec<u64> {
        let Weather { lost_permille, repeated_permille, reordered_permille, delay_ms } = self.weather;
        if !self.passes(from, to) || dice.chance(lost_permille) {
            return Vec::new();
        }
        let travel = |dice: &mut Dice| now_ms + dice.between(LATENCY_MS) + dice.between(0..=delay_ms);
        let mut arrival = travel(dice);
        if !dice.chance(reordered_permille) {
            let last = self.arrivals.entry((from, to)).or_default();
            arrival = arrival.max(*last);
            *last = arrival;
        }
        if dice.chance(repeated_permille) { vec![arrival, travel(dice).max(arrival)] } else { vec![arrival] }
    }

    /// Whether a message gets from one node to another, as far as cuts go.
    pub(super) fn passes(&self, from: NodeId, to: NodeId) -> bool {
        !self.cuts.iter().any(|cut| cut.links.contains(&(from, to)))
    }

    /// Whether two nodes are connected, and data flows both ways.
    pub(super) fn serves(&self, a: NodeId, b: NodeId) -> bool {
        a == b || (self.connected.contains(&pair(a, b)) && self.passes(a, b) && self.passes(b, a))
    }

    /// Two nodes find each other only at this time, unless one of them is told of the other.
    pub(super) fn hide(&mut self, a: NodeId, b: NodeId, until_ms: u64) {
        self.strangers.insert(pair(a, b), until_ms);
    }

    /// A node is told where another one is.
    pub(super) fn dial(&mut self, a: NodeId, b: NodeId) {
        self.strangers.remove(&pair(a, b));
    }

    /// Cuts links, until [`Network::heal`] is called with the same number.
    pub(super) fn cut(&mut self, number: u64, links: BTreeSet<(NodeId, NodeId)>, noticed_ms: u64) {
        self.cuts.push(Cut { number, links, noticed_ms });
    }

    /// Undoes a cut.
    pub(super) fn heal(&mut self, number: u64) {
        self.cuts.retain(|cut| cut.number != number);
    }

    /// Undoes all cuts, and the weather is fine.
    pub(super) fn heal_all(&mut self) {
        self.cuts.clear();
        self.weather = Weather::default();
    }

    /// One end breaks a connection; both see it.
    pub(super) fn disconnect(&mut self, a: NodeId, b: NodeId) {
        if self.connected.remove(&pair(a, b)) {
            self.broken.extend([(a, b), (b, a)]);
        }
    }

    /// A node stopped: its connections break.
    pub(super) fn stopped(&mut self, node: NodeId) {
        let gone: Vec<_> = self.connected.iter().filter(|(a, b)| *a == node || *b == node).copied().collect();
        for (a, b) in gone {
            self.connected.remove(&(a, b));
            self.broken.push(if a == node { (b, a) } else { (a, b) });
        }
        self.arrivals.retain(|(from, to), _| *from != node && *to != node);
    }

    /// Connections that broke or came about since the last look. `awake` nodes can connect.
    pub(super) fn look(&mut self, now_ms: u64, awake: &BTreeSet<NodeId>) -> Vec<Change> {
        let both = |a, b, up| [Change { node: a, peer: b, up }, Change { node: b, peer: a, up }];
        let mut changes: Vec<_> = std::mem::take(&mut self.broken)
            .into_iter()
            .map(|(node, peer)| Change { node, peer, up: false })
            .collect();
        let noticed: BTreeSet<_> = self
            .cuts
            .iter()
            .filter(|cut| now_ms >= cut.noticed_ms)
            .flat_map(|cut| cut.links.iter().map(|(a, b)| pair(*a, *b)))
            .filter(|link| self.connected.contains(link))
            .collect();
        for (a, b) in noticed {
            self.connected.remove(&(a, b));
            changes.extend(both(a, b, false));
        }
        for a in awake {
            for b in awake.range((std::ops::Bound::Excluded(*a), std::ops::Bound::Unbounded)) {
                let open = self.passes(*a, *b) && self.passes(*b, *a);
                let known = self.strangers.get(&(*a, *b)).is_none_or(|until_ms| now_ms >= *until_ms);
                if open && known && self.connected.insert((*a, *b)) {
                    changes.extend(both(*a, *b, true));
                }
            }
        }
        changes
    }
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}
