//! Marks: what the processes of a child are known by, whoever is their parent by now.
//!
//! A process hands two things on to all that it starts. One is its environment, but it may start others with a
//! different one. The other is its limits, of which Linux keeps one that nothing has heeded since Linux 2.4.25: how many
//! locks of files it may have. Everybody can read it, whoever has no privileges cannot raise it, and nobody has a reason
//! to lower it. So each child gets a number of its own there.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The variable whose value is the mark.
pub(super) const VARIABLE: &str = "FLOE_HOST_ID";

/// How many children of a node have numbers of their own. By when these are used up, the first are long gone.
const NUMBERS: u64 = 1 << 24;

/// All numbers are less than this. Those of a node that a function started are less than that function's own, since no
/// limit can be raised.
#[cfg(target_os = "linux")]
const HIGHEST: u64 = 1 << 62;

/// The mark of one child, or of all that a node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The value of [`VARIABLE`], or how it begins.
    text: String,
    /// The limit. None where there cannot be one.
    numbers: Range<u64>,
}

impl Mark {
    /// One that no other node of this machine has.
    pub(super) fn of_node() -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let (process, made) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let first = first().unwrap_or(0);
        Self::begins(format!("{process}-{now:x}-{made}-{first:x}."))
    }

    /// The mark of a node by its text.
    pub(super) fn begins(text: String) -> Self {
        let number = text.strip_suffix('.').and_then(|text| text.rsplit('-').next());
        let first = number.and_then(|number| u64::from_str_radix(number, 16).ok()).unwrap_or(0);
        let numbers = if first == 0 { 0..0 } else { first..first.saturating_add(NUMBERS) };
        Self { text, numbers }
    }

    /// Of a node's mark, that of one of its children.
    pub(super) fn child(&self, child: u64) -> Self {
        let number = self.numbers.start + child % NUMBERS;
        let numbers = if self.numbers.is_empty() { 0..0 } else { number..number + 1 };
        Self { text: format!("{}{child}.", self.text), numbers }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The limit that a child is to have.
    #[cfg(target_os = "linux")]
    pub(super) fn number(&self) -> Option<u64> {
        self.numbers.clone().next()
    }

    /// Whether a limit is of this mark.
    #[cfg(target_os = "linux")]
    pub(super) fn has_number(&self, number: u64) -> bool {
        self.numbers.contains(&number)
    }

    /// How a variable of this mark begins.
    pub(super) fn variable(&self) -> String {
        format!("{VARIABLE}={}", self.text)
    }
}

/// The first number of a node, by chance.
#[cfg(target_os = "linux")]
fn first() -> Option<u64> {
    use nix::sys::resource::{Resource, getrlimit};

    let (_, own) = getrlimit(Resource::RLIMIT_LOCKS).ok()?;
    let end = own.min(HIGHEST);
    // Half of them are left to the nodes that functions start.
    let room = (end / 2).checked_sub(NUMBERS).filter(|room| *room >= NUMBERS)?;
    let first = end / 2 + getrandom::u64().ok()? % room;
    Some(first)
}

#[cfg(not(target_os = "linux"))]
fn first() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_knows_the_marks_of_its_nodes_children_and_no_others() {
        let (node, other) = (Mark::of_node(), Mark::of_node());
        assert_eq!(Mark::begins(node.text().to_owned()), node);
        for number in [0, 7, NUMBERS, u64::MAX] {
            let child = node.child(number);
            assert!(child.variable().starts_with(&node.variable()));
            assert!(!child.variable().starts_with(&other.variable()));
            #[cfg(target_os = "linux")]
            {
                let limit = child.number().unwrap();
                assert!(limit < HIGHEST && node.has_number(limit) && child.has_number(limit));
                assert!(!child.has_number(limit + 1) && !other.has_number(limit));
            }
        }
        assert_ne!(node.child(1), node.child(2));
        let none = Mark::begins("of another kind.".to_owned());
        assert!(none.numbers.is_empty() && none.child(3).numbers.is_empty());
    }
}
