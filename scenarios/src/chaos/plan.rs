//! What goes wrong and when: a pure function of the seed.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The pause between two steps, in milliseconds. Long enough that the mesh gets some work done.
const GAP_MS: std::ops::RangeInclusive<u64> = 500..=5_000;

/// How long a node is away, in milliseconds: from less than an election takes to several of them, and now and
/// then more than a voter may be silent before it is replaced.
const AWAY_MS: std::ops::RangeInclusive<u64> = 100..=5_000;
const LONG_MS: std::ops::RangeInclusive<u64> = 10_000..=14_000;

/// Something that is done to one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    /// How long the node is away.
    pub(super) away: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// SIGKILL, and started again.
    Kill,
    /// SIGSTOP, then SIGCONT.
    Pause,
    /// SIGTERM: it leaves in good order, and is started again.
    Leave,
    /// SIGKILL, its data directory is removed, and it starts as a new node.
    Wipe,
}

/// Who is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    /// Whoever leads at that moment.
    Leader,
    /// This node, or the next one that is not hit already.
    Node(usize),
}

/// What is done at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// How long after the start.
    pub(super) at: Duration,
    pub(super) fault: Fault,
    /// Who is hit, several perhaps.
    pub(super) victims: Vec<Victim>,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Leave => "leave",
            Self::Wipe => "wipe",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {:.1} s", self.kind.name(), self.away.as_secs_f64())
    }
}

/// All steps of a run.
pub(super) fn plan(seed: u64, time: Duration, nodes: usize) -> Vec<Step> {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut steps = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += Duration::from_millis(dice.random_range(GAP_MS));
        if at >= time {
            return steps;
        }
        let kind = match dice.random_range(0..100) {
            0..40 => Kind::Kill,
            40..70 => Kind::Pause,
            70..85 => Kind::Leave,
            _ => Kind::Wipe,
        };
        let away_ms = if dice.random_range(0..100) < 5 { LONG_MS } else { AWAY_MS };
        let fault = Fault { kind, away: Duration::from_millis(dice.random_range(away_ms)) };
        let first = if dice.random_range(0..100) < 35 {
            Victim::Leader
        } else {
            Victim::Node(dice.random_range(0..nodes))
        };
        let victims = match (kind, dice.random_range(0..100)) {
            // Those come back with all they had, so any number may be hit.
            (Kind::Kill | Kind::Pause, 0..10) => (0..nodes).map(Victim::Node).collect(),
            (Kind::Kill | Kind::Pause, 10..30) => vec![first, Victim::Node(dice.random_range(0..nodes))],
            _ => vec![first],
        };
        steps.push(Step { at, fault, victims });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_follows_from_its_seed_and_holds_all_kinds() {
        let time = Duration::from_secs(600);
        let steps = plan(1, time, 5);
        assert_eq!(steps, plan(1, time, 5));
        assert_ne!(steps, plan(2, time, 5));
        assert!(
            steps.iter().is_sorted_by_key(|step| step.at) && steps.last().is_some_and(|step| step.at < time)
        );
        for kind in [Kind::Kill, Kind::Pause, Kind::Leave, Kind::Wipe] {
            assert!(steps.iter().any(|step| step.fault.kind == kind), "{kind:?}");
        }
        assert!(steps.iter().any(|step| step.victims.len() == 5));
        assert!(steps.iter().any(|step| step.victims.contains(&Victim::Leader)));
        // What is done for good is done to one at a time.
        let for_good = |step: &&Step| matches!(step.fault.kind, Kind::Leave | Kind::Wipe);
        assert!(steps.iter().filter(for_good).all(|step| step.victims.len() == 1));
        assert_eq!(plan(1, Duration::from_millis(1), 3), []);
    }
}
