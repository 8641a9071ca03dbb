//! Moments that people read.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The latest moment that is written as a date, in milliseconds since the Unix epoch: the end of the year 9999.
const LAST_DATE_UNIX_MS: u64 = 253_402_300_799_000;

/// A moment by some machine's wall clock, to be shown to people. Wall clocks are set forward and back, and differ from
/// machine to machine, so moments have no order, and nothing may be decided by them: how long something may take is
/// counted by a clock that only goes forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallTime(u64);

impl WallTime {
    /// So many milliseconds after the Unix epoch.
    pub fn from_unix_ms(unix_ms: u64) -> Self {
        Self(unix_ms)
    }

    /// What a machine's clock shows; the epoch if it shows a moment before that.
    pub fn of(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
    }

    /// In milliseconds since the Unix epoch, for programs that show it.
    pub fn unix_ms(self) -> u64 {
        self.0
    }

    /// How much later `end` is, for people: nothing if the clock was set back in between.
    pub fn span_to(self, end: Self) -> Duration {
        Duration::from_millis(end.0.saturating_sub(self.0))
    }
}

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = UNIX_EPOCH + Duration::from_millis(self.0.min(LAST_DATE_UNIX_MS));
        humantime::format_rfc3339_seconds(time).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_shown_as_dates_whatever_a_clock_says() {
        assert_eq!(WallTime::from_unix_ms(1_700_000_000_123).to_string(), "2023-11-14T22:13:20Z");
        assert_eq!(WallTime::from_unix_ms(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
        assert_eq!(WallTime::of(UNIX_EPOCH - Duration::from_secs(9)), WallTime::from_unix_ms(0));
    }

    #[test]
    fn a_clock_that_was_set_back_gives_no_span() {
        let (early, late) = (WallTime::from_unix_ms(1_000), WallTime::from_unix_ms(3_500));
        assert_eq!(early.span_to(late), Duration::from_millis(2_500));
        assert_eq!(late.span_to(early), Duration::ZERO);
    }
}
