//! When the loop ticks: as rarely as whoever is ticked allows, so that a node that has nothing to do sleeps.
//!
//! ```text
//!   last tick ── quiet ticks ──> woken by the clock: all of them at once
//!            └── something happens before ──> those that have passed, and then what happened
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// So many times as long as it was to wait, a node may have waited: on a busy machine it is woken late, which must cost it
/// no time. After longer it was stalled.
const LATE: u32 = 2;

/// What has been ticked, and what is due.
#[derive(Debug)]
pub struct Ticks {
    tick: Duration,
    last: Instant,
    /// How many may pass at once since then.
    quiet: u32,
}

impl Ticks {
    /// Ticks of this length, from now on.
    pub fn new(tick: Duration) -> Self {
        Self { tick, last: Instant::now(), quiet: 1 }
    }

    /// When to tick at the latest, if so many may pass at once.
    pub fn due(&mut self, quiet: u32) -> Instant {
        self.quiet = quiet.max(1);
        self.last + self.tick * self.quiet
    }

    /// How many to tick now: no more than may pass at once. Where far more have passed the node was stalled: then it is one,
    /// since that says nothing about the others.
    pub fn passed(&mut self, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.last).as_nanos() / self.tick.as_nanos().max(1);
        let Ok(passed) = u32::try_from(passed) else {
            self.last = now;
            return 1;
        };
        self.last += self.tick * passed;
        if passed > self.quiet.saturating_mul(LATE) { 1 } else { passed.min(self.quiet) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_passed_is_ticked_once_and_a_stall_is_one() {
        let mut ticks = Ticks::new(Duration::from_millis(50));
        let start = ticks.last;
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(ticks.due(3), at(150));
        assert_eq!([ticks.passed(at(40)), ticks.passed(at(110)), ticks.passed(at(149))], [0, 2, 0]);
        assert_eq!(ticks.due(4), at(300));
        assert_eq!(ticks.passed(at(310)), 4);
        // It keeps to its steps, also after a stall.
        assert_eq!(ticks.due(2), at(400));
        assert_eq!([ticks.passed(at(499)), ticks.passed(at(499))], [2, 0], "late is not stalled");
        assert_eq!(ticks.due(2), at(550));
        assert_eq!([ticks.passed(at(1_020)), ticks.passed(at(1_049))], [1, 0]);
        assert_eq!(ticks.due(0), at(1_050));
        assert_eq!(ticks.passed(at(1_050)), 1);
        assert_eq!(ticks.passed(at(1_050 + 50 * (1 << 40))), 1);
    }
}
