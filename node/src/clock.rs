//! The machine's clocks, read in one place.

use std::time::SystemTime;

use floe_consensus::Reading;
use floe_protocol::WallTime;
use nix::time::{ClockId, clock_gettime};

/// A clock that stands still while the machine sleeps, and one that does not.
#[cfg(not(target_vendor = "apple"))]
const CLOCKS: [ClockId; 2] = [ClockId::CLOCK_MONOTONIC, ClockId::CLOCK_BOOTTIME];
#[cfg(target_vendor = "apple")]
const CLOCKS: [ClockId; 2] = [ClockId::CLOCK_UPTIME_RAW, ClockId::CLOCK_MONOTONIC];

/// All clocks, now.
pub fn read() -> Reading {
    let [awake_ms, all_ms] = CLOCKS.map(millis);
    Reading { awake_ms, asleep_ms: all_ms.saturating_sub(awake_ms), wall: wall_time() }
}

/// The wall clock, for people.
pub fn wall_time() -> WallTime {
    WallTime::of(SystemTime::now())
}

/// What a clock shows, in milliseconds. Those that are read here exist on every system that nodes run on.
fn millis(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |time| time.tv_sec() as u64 * 1_000 + time.tv_nsec() as u64 / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_go_forward() {
        let first = read();
        assert!(first.awake_ms > 0, "a monotonic clock that cannot be read shows nothing");
        let mut last = first;
        while last.awake_ms < first.awake_ms + 3 {
            let next = read();
            assert!(next.awake_ms >= last.awake_ms);
            last = next;
        }
    }
}
