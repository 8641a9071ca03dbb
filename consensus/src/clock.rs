//! Time as a node lives through it.
//!
//! ```text
//!   the machine's clocks ──Reading──> Clock ──Now──> everything that waits, or is shown to people
//! ```
//!
//! Whatever waits for others counts the time in which it could have heard them. While a machine sleeps, or a process is
//! stopped or waits for a disk, others may well have spoken; so next to none of that time passes here. Wall clocks are
//! read for people only.

use floe_protocol::WallTime;

/// Nothing came to pass here for this long, although ticks are due several times as often: this node was stalled.
pub const STALL_MS: u64 = 1_000;

/// What such a gap counts for, so that time passes also where a slow disk leaves nothing but gaps.
const COUNTED_MS: u64 = 100;

/// What a machine's clocks show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Milliseconds since some moment, by a clock that never goes back. It may stand still while the machine sleeps.
    pub awake_ms: u64,
    /// How many milliseconds that clock has stood still since some moment, as far as the machine can tell.
    pub asleep_ms: u64,
    /// The wall clock, for people.
    pub wall: WallTime,
}

impl Reading {
    /// Of a machine that never slept, and whose wall clock shows the same.
    pub fn at(ms: u64) -> Self {
        Self { awake_ms: ms, asleep_ms: 0, wall: WallTime::from_unix_ms(ms) }
    }
}

/// A moment in a node's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds that the node lived through, by a clock that never goes back.
    pub ms: u64,
    /// What people call the moment.
    pub wall: WallTime,
}

impl Now {
    /// Where the wall clock shows what the node's own does.
    pub fn at(ms: u64) -> Self {
        Self { ms, wall: WallTime::from_unix_ms(ms) }
    }
}

/// A node's clock.
#[derive(Debug)]
pub struct Clock {
    last: Reading,
    now_ms: u64,
    resumed_ms: u64,
}

impl Clock {
    /// A clock that starts with the node.
    pub fn new(reading: Reading) -> Self {
        Self { last: reading, now_ms: reading.awake_ms, resumed_ms: reading.awake_ms }
    }

    /// Something happened. To be called at least every [`crate::replica::MAX_QUIET_TICKS`], so that a much longer gap means
    /// that this node was stalled.
    pub fn observe(&mut self, reading: Reading) -> Now {
        let awake_ms = reading.awake_ms.saturating_sub(self.last.awake_ms);
        let asleep_ms = reading.asleep_ms.saturating_sub(self.last.asleep_ms);
        self.last = Reading {
            awake_ms: reading.awake_ms.max(self.last.awake_ms),
            asleep_ms: reading.asleep_ms.max(self.last.asleep_ms),
            wall: reading.wall,
        };
        if awake_ms.saturating_add(asleep_ms) >= STALL_MS {
            self.now_ms = self.now_ms.saturating_add(COUNTED_MS);
            self.resumed_ms = self.now_ms;
        } else {
            self.now_ms = self.now_ms.saturating_add(awake_ms);
        }
        self.now()
    }

    /// The moment of the last observation.
    pub fn now(&self) -> Now {
        Now { ms: self.now_ms, wall: self.last.wall }
    }

    /// For how long the node has lived without a gap.
    pub fn continuous_ms(&self) -> u64 {
        self.now_ms.saturating_sub(self.resumed_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> Clock {
        Clock::new(Reading::at(1_000_000))
    }

    #[test]
    fn time_passes_while_a_node_pays_attention() {
        let mut clock = clock();
        for step in 1..=40 {
            assert_eq!(clock.observe(Reading::at(1_000_000 + step * 50)).ms, 1_000_000 + step * 50);
        }
        assert_eq!(clock.continuous_ms(), 2_000);
    }

    #[test]
    fn a_stall_takes_next_to_no_time_whichever_clock_tells_of_it() {
        let stopped = Reading::at(1_000_000 + 3 * 3_600_000);
        let slept = Reading { asleep_ms: 3 * 3_600_000, ..Reading::at(1_000_050) };
        for gap in [stopped, slept] {
            let mut clock = clock();
            clock.observe(Reading::at(1_000_040));
            assert_eq!(clock.observe(gap).ms, 1_000_140);
            assert_eq!(clock.continuous_ms(), 0);
            let next = Reading { awake_ms: gap.awake_ms + 50, ..gap };
            assert_eq!(clock.observe(next).ms, 1_000_190);
            assert_eq!(clock.continuous_ms(), 50);
        }
    }

    #[test]
    fn a_wall_clock_that_is_set_moves_nothing_but_itself() {
        let mut clock = clock();
        for (step, wall) in [(1, 9_000_000), (2, 0), (3, u64::MAX)] {
            let wall = WallTime::from_unix_ms(wall);
            let now = clock.observe(Reading { wall, ..Reading::at(1_000_000 + step * 50) });
            assert_eq!(now, Now { ms: 1_000_000 + step * 50, wall });
        }
        // Nor does a clock that goes back although it must not.
        assert_eq!(clock.observe(Reading::at(5)).ms, 1_000_150);
        assert_eq!(clock.observe(Reading::at(1_000_200)).ms, 1_000_200);
    }
}
