//! How long calls took lately, and so how many of them are so much work.

use std::collections::BTreeMap;

/// The part that the newest call has in the average, as a divisor: one that was slow by chance should not count much,
/// and a function that has become slower should show it within some calls.
const NEWEST_PART: u64 = 8;

/// What a call of each function took lately, in microseconds.
#[derive(Debug, Default)]
pub(super) struct Pace(BTreeMap<u32, u64>);

impl Pace {
    /// A call of this function took so long.
    pub(super) fn note(&mut self, function: u32, elapsed_us: u64) {
        let lately_us = self.0.entry(function).or_insert(elapsed_us);
        *lately_us = (*lately_us * (NEWEST_PART - 1) + elapsed_us) / NEWEST_PART;
    }

    /// These functions are not called any more.
    pub(super) fn forget(&mut self, functions: &[u32]) {
        for function in functions {
            self.0.remove(function);
        }
    }

    /// How many calls of this function take about so long in all: at least one, at most `most`, and one where that
    /// is not known yet.
    pub(super) fn calls_in(&self, work_us: u64, function: u32, most: usize) -> usize {
        let lately_us = self.0.get(&function).copied().unwrap_or(u64::MAX);
        ((work_us / lately_us.max(1)) as usize).clamp(1, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_calls_are_many_and_unknown_ones_go_one_by_one() {
        let mut pace = Pace::default();
        assert_eq!(pace.calls_in(1000, 7, 50), 1);
        pace.note(7, 100);
        assert_eq!((pace.calls_in(1000, 7, 50), pace.calls_in(1000, 8, 50)), (10, 1));
        assert_eq!((pace.calls_in(1000, 7, 5), pace.calls_in(10, 7, 5)), (5, 1));
        for _ in 0..100 {
            pace.note(7, 10_000);
        }
        assert_eq!(pace.calls_in(100_000, 7, 50), 10, "what was before is forgotten");
        pace.note(9, 0);
        assert_eq!(pace.calls_in(1000, 9, 50), 50);
    }
}
