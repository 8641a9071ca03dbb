//! Who was refused, in the log: counted, not repeated.
//!
//! The first is told at once, so that an owner who tries something sees it. What follows is told every few seconds, as
//! numbers and the last address. Nothing of a stranger's own text is in it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use floe_transport::Refusal;
use libp2p::Multiaddr;

/// How often refusals are told of.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// The refusals since the log last told of some.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// By rule, of which there are a dozen.
    counts: BTreeMap<&'static str, u64>,
    last: Option<Multiaddr>,
    /// When the log told of some.
    told: Option<Instant>,
}

impl Refusals {
    /// Counts one. What the log is to say of it at once, if that is not to wait.
    pub(crate) fn note(&mut self, address: &Multiaddr, refusal: &Refusal, now: Instant) -> Option<String> {
        if self.due().is_none_or(|due| due <= now) && self.counts.is_empty() {
            self.told = Some(now);
            return Some(format!("refused a connection with {address}: {refusal}"));
        }
        *self.counts.entry(refusal.rule()).or_default() += 1;
        self.last = Some(address.clone());
        None
    }

    /// When [`Refusals::tell`] is next worth asking.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.told.map(|told| told + TELL_INTERVAL)
    }

    /// What the log is to say now, if anything.
    pub(crate) fn tell(&mut self, now: Instant) -> Option<String> {
        let told = self.told.filter(|told| *told + TELL_INTERVAL <= now)?;
        let total: u64 = self.counts.values().sum();
        if total == 0 {
            self.told = None;
            return None;
        }
        let waited_s = now.duration_since(told).as_secs();
        let counts: Vec<_> =
            self.counts.iter().map(|(rule, count)| format!("{} {rule}", grouped(*count))).collect();
        let last = self.last.take().map_or_else(String::new, |last| format!("; the last with {last}"));
        self.counts.clear();
        self.told = Some(now);
        let connections = if total == 1 { "connection" } else { "connections" };
        Some(format!(
            "refused {} {connections} in the last {waited_s} s: {}{last}",
            grouped(total),
            counts.join(", ")
        ))
    }
}

/// A number as people read it: `1,234`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_the_rest_in_numbers() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let address: Multiaddr = "/ip4/192.0.2.1/tcp/7".parse().unwrap();
        assert_eq!(
            refusals.note(&address, &Refusal::Timeout, start).unwrap(),
            "refused a connection with /ip4/192.0.2.1/tcp/7: the other side did not finish the admission within 5 s"
        );
        assert_eq!(refusals.tell(start), None);
        for _ in 0..1_234 {
            assert_eq!(refusals.note(&address, &Refusal::NotFloe, start), None);
        }
        assert_eq!(refusals.note(&address, &Refusal::Timeout, start), None);
        let due = refusals.due().unwrap();
        // One that comes before the numbers were told is one of them.
        assert_eq!(refusals.note(&address, &Refusal::Timeout, due), None);
        assert_eq!(
            refusals.tell(due).unwrap(),
            "refused 1,236 connections in the last 10 s: 1,234 no floe, 2 too slow; the last with /ip4/192.0.2.1/tcp/7"
        );
        assert_eq!(refusals.tell(due), None);
        // After a quiet while the next is the first again.
        let later = due + TELL_INTERVAL;
        assert_eq!(refusals.tell(later), None);
        assert_eq!(refusals.due(), None);
        assert!(refusals.note(&address, &Refusal::Timeout, later).is_some());
        assert_eq!([grouped(7), grouped(1_000), grouped(12_345_678)], ["7", "1,000", "12,345,678"]);
    }
}
