//! A simulated machine's clocks.

use floe_consensus::Reading;
use floe_protocol::WallTime;

use super::dice::Dice;

/// Clocks show the year 2023 when a run begins.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// How long machines have been up by then, at least.
const UP_MS: u64 = 60_000;

/// What a clock that is right shows at this moment of a run.
pub(super) fn wall(now_ms: u64) -> WallTime {
    WallTime::from_unix_ms(EPOCH_MS + now_ms)
}

/// By how much the clocks of one machine are wrong.
#[derive(Debug)]
pub(super) struct Clocks {
    wall_off_ms: i64,
    up_ms: u64,
    /// For how long its monotonic clock has stood still.
    stopped_ms: u64,
    asleep_ms: u64,
}

impl Clocks {
    /// Of a machine that has been up for a while, and is set a little wrong.
    pub(super) fn draw(dice: &mut Dice) -> Self {
        Self {
            wall_off_ms: dice.between(0..=2_000) as i64 - 1_000,
            up_ms: UP_MS + dice.between(0..=100_000),
            stopped_ms: 0,
            asleep_ms: 0,
        }
    }

    /// What they show.
    pub(super) fn read(&self, now_ms: u64) -> Reading {
        Reading {
            awake_ms: self.up_ms + now_ms.saturating_sub(self.stopped_ms),
            asleep_ms: self.asleep_ms,
            wall: WallTime::from_unix_ms((EPOCH_MS + now_ms).saturating_add_signed(self.wall_off_ms)),
        }
    }

    /// Somebody sets the wall clock.
    pub(super) fn set(&mut self, by_ms: i64) {
        self.wall_off_ms += by_ms;
    }

    /// The machine slept for `ms`, and takes it for `told_ms`.
    pub(super) fn slept(&mut self, ms: u64, told_ms: u64) {
        self.stopped_ms += ms;
        self.asleep_ms += told_ms;
    }
}
