//! Linearizability of one object's history, after Wing & Gong and Lowe: is there an order of the calls, each
//! taking effect at one moment between being made and being answered, that explains every answer?
//!
//! The search goes along the answers in the order of their times. It keeps every explanation of the answers so
//! far: the object's state, and which of the calls under way have taken effect. At each answer the calls under
//! way take effect in every order that is possible, and only explanations in which the answered one has are
//! kept. What is alike is kept once, so the work grows with the length of the history and not with the number
//! of its orders.

use std::collections::BTreeSet;
use std::fmt;

/// Explanations kept at once. Every call that is never answered may double them; a history that needs more
/// cannot be judged.
const MAX_EXPLANATIONS: usize = 1 << 16;

/// The sequential object that a history is compared with.
pub trait Object: Clone + fmt::Debug + Ord {
    /// What is asked of it.
    type Call;
    /// What it answers.
    type Answer;

    /// The states after the call took effect with this answer, or with any if it is not known; none if the
    /// object cannot have answered so.
    fn after(&self, call: &Self::Call, answer: Option<&Self::Answer>) -> Vec<Self>;

    /// The states it may pass to by itself.
    fn drift(&self) -> Vec<Self>;

    /// Whether the call changes nothing, so that one without an answer tells nothing.
    fn only_reads(call: &Self::Call) -> bool;
}

/// One call. Times are in nanoseconds since some moment.
#[derive(Clone, Copy, Debug)]
pub struct Operation<C, A> {
    /// Who made it.
    pub client: usize,
    /// What was asked.
    pub call: C,
    /// When.
    pub invoked_ns: u64,
    /// When it was answered, and how. Without: it may have taken effect at any time since, or never.
    pub returned: Option<(u64, A)>,
}

/// Why a history is not linearizable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contradiction<S> {
    /// No order of the calls explains this answer and those before it.
    Impossible {
        /// The operation's place in the history.
        operation: usize,
        /// The states that the answers before it allow.
        states: Vec<S>,
    },
    /// It has too many calls without an answer.
    Undecided,
}

/// One explanation: the state, and which calls under way have taken effect.
type Explanation<O> = (O, BTreeSet<usize>);

/// Checks the history of an object that starts as `initial`.
pub fn check<O: Object>(
    initial: O,
    operations: &[Operation<O::Call, O::Answer>],
) -> Result<(), Contradiction<O>> {
    // At the same moment calls come before answers: what may have been at once counts as at once.
    let mut moments = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        match &operation.returned {
            Some((returned_ns, _)) => {
                moments.push((operation.invoked_ns, false, index));
                moments.push((*returned_ns, true, index));
            }
            None if O::only_reads(&operation.call) => {}
            None => moments.push((operation.invoked_ns, false, index)),
        }
    }
    moments.sort_unstable();

    let mut under_way = BTreeSet::new();
    let mut explanations = BTreeSet::from([(initial, BTreeSet::new())]);
    for (_, answered, index) in moments {
        if !answered {
            under_way.insert(index);
            continue;
        }
        let all = extend(explanations, &under_way, operations).ok_or(Contradiction::Undecided)?;
        under_way.remove(&index);
        let states: BTreeSet<O> = all.iter().map(|(state, _)| state.clone()).collect();
        explanations = all
            .into_iter()
            .filter_map(|(state, mut effective)| effective.remove(&index).then_some((state, effective)))
            .collect();
        if explanations.is_empty() {
            let states = states.into_iter().collect();
            return Err(Contradiction::Impossible { operation: index, states });
        }
    }
    Ok(())
}

/// All that can have happened until now: calls under way take effect, and the object changes by itself.
fn extend<O: Object>(
    explanations: BTreeSet<Explanation<O>>,
    under_way: &BTreeSet<usize>,
    operations: &[Operation<O::Call, O::Answer>],
) -> Option<BTreeSet<Explanation<O>>> {
    let mut new: Vec<_> = explanations.iter().cloned().collect();
    let mut all = explanations;
    while let Some((state, effective)) = new.pop() {
        let drifted = state.drift().into_iter().map(|state| (state, effective.clone()));
        let taken = under_way.difference(&effective).flat_map(|&index| {
            let operation = &operations[index];
            let answer = operation.returned.as_ref().map(|(_, answer)| answer);
            let mut effective = effective.clone();
            effective.insert(index);
            state.after(&operation.call, answer).into_iter().map(move |state| (state, effective.clone()))
        });
        for next in drifted.chain(taken) {
            if all.insert(next.clone()) {
                new.push(next);
            }
        }
        if all.len() > MAX_EXPLANATIONS {
            return None;
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// A register, on which the literature's examples are told.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Register(u8);

    #[derive(Clone, Copy, Debug)]
    enum Access {
        Read,
        Write(u8),
    }

    impl Object for Register {
        type Call = Access;
        type Answer = u8;

        fn after(&self, call: &Access, answer: Option<&u8>) -> Vec<Self> {
            match call {
                Access::Write(value) => vec![Register(*value)],
                Access::Read => {
                    if answer.is_none_or(|answer| *answer == self.0) {
                        vec![*self]
                    } else {
                        Vec::new()
                    }
                }
            }
        }

        fn drift(&self) -> Vec<Self> {
            Vec::new()
        }

        fn only_reads(call: &Access) -> bool {
            matches!(call, Access::Read)
        }
    }

    type Accesses = Vec<Operation<Access, u8>>;

    fn write(client: usize, value: u8, span: std::ops::Range<u64>) -> Operation<Access, u8> {
        let returned = (span.end < u64::MAX).then_some((span.end, 0));
        Operation { client, call: Access::Write(value), invoked_ns: span.start, returned }
    }

    fn read(client: usize, value: u8, span: std::ops::Range<u64>) -> Operation<Access, u8> {
        Operation { client, call: Access::Read, invoked_ns: span.start, returned: Some((span.end, value)) }
    }

    #[test]
    fn the_examples_of_the_literature_are_judged_right() {
        let good: [Accesses; 4] = [
            // Two overlapping writes may take effect in either order, but in one for all.
            vec![write(0, 1, 0..10), write(1, 2, 0..10), read(2, 1, 11..12), read(3, 1, 13..14)],
            // A read that overlaps a write may see either value.
            vec![write(0, 1, 0..10), read(1, 0, 2..3), read(1, 1, 4..5)],
            // A write that nobody answered may have happened, and late,
            vec![write(0, 1, 0..u64::MAX), read(1, 0, 5..6), read(1, 1, 7..8)],
            // or never.
            vec![write(0, 1, 0..u64::MAX), read(1, 0, 5..6), read(2, 0, 50..60)],
        ];
        for history in good {
            assert_eq!(check(Register(0), &history), Ok(()), "{history:?}");
        }
        let bad: [(Accesses, usize); 3] = [
            // A stale read.
            (vec![write(0, 1, 0..1), read(1, 0, 2..3)], 1),
            // The new value was seen, then the old one again.
            (vec![write(0, 1, 0..10), read(1, 1, 2..3), read(2, 0, 4..5)], 2),
            // A value that nobody wrote.
            (vec![write(0, 1, 0..10), read(1, 7, 2..3)], 1),
        ];
        for (history, index) in bad {
            match check(Register(0), &history) {
                Err(Contradiction::Impossible { operation, .. }) => {
                    assert_eq!(operation, index, "{history:?}");
                }
                other => panic!("{history:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn too_many_open_calls_are_said_to_be_undecided() {
        let mut history: Accesses = (0..40).map(|value| write(0, value, 0..u64::MAX)).collect();
        history.push(read(1, 3, 1..2));
        assert_eq!(check(Register(0), &history), Err(Contradiction::Undecided));
    }

    /// Tries every order: right by its simplicity, and only for short histories.
    fn explained_by_some_order(state: Register, left: &[Operation<Access, u8>]) -> bool {
        if left.iter().all(|operation| operation.returned.is_none()) {
            return true;
        }
        // Whatever comes next was made before any of the others was answered.
        let first_end =
            left.iter().filter_map(|operation| operation.returned).map(|(ns, _)| ns).min().unwrap();
        (0..left.len()).any(|next| {
            let operation = &left[next];
            let mut rest = left.to_vec();
            rest.remove(next);
            operation.invoked_ns <= first_end
                && state
                    .after(&operation.call, operation.returned.as_ref().map(|(_, answer)| answer))
                    .into_iter()
                    .any(|state| explained_by_some_order(state, &rest))
        })
    }

    #[test]
    fn random_histories_are_judged_as_by_trying_every_order() {
        let mut dice = StdRng::seed_from_u64(7);
        let mut linearizable = 0;
        const HISTORIES: usize = 3_000;
        for _ in 0..HISTORIES {
            let length = dice.random_range(1..=6);
            let history: Accesses = (0..length)
                .map(|client| {
                    let start = dice.random_range(0..12u64);
                    let end = start + dice.random_range(1..8u64);
                    let value = dice.random_range(0..3u8);
                    match dice.random_range(0..5) {
                        0..=2 => read(client, value, start..end),
                        3 => write(client, value, start..end),
                        _ => write(client, value, start..u64::MAX),
                    }
                })
                .collect();
            let wanted = explained_by_some_order(Register(0), &history);
            assert_eq!(check(Register(0), &history).is_ok(), wanted, "{history:?}");
            linearizable += usize::from(wanted);
        }
        // Else the comparison would say little.
        assert!((HISTORIES / 10..HISTORIES * 9 / 10).contains(&linearizable), "{linearizable}");
    }
}
