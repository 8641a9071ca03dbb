//! What drivers asked of one job, when, and what they were told: recorded while it happens, judged afterwards.
//!
//! Each job is an object of its own. Linearizability is local: a history of many objects is linearizable
//! exactly if each object's part of it is, so every job is judged by itself and forgotten afterwards.

mod job;
mod linearize;

pub use job::{Answer, Call, Phase};
pub use linearize::{Contradiction, Object, Operation, check};

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Calls that are recorded of one job. Beyond it reads are left out, which can hide a contradiction but never
/// make one up; a job lives for seconds and is asked for a few times in each.
const MAX_OPERATIONS: usize = 20_000;

/// How many of the calls before a contradiction are told with it.
const TOLD_BEFORE: usize = 16;

/// All that was asked of one job. Clones share it.
#[derive(Clone, Debug)]
pub struct History {
    clock: Instant,
    operations: Arc<Mutex<Vec<Operation<Call, Answer>>>>,
}

/// A call whose answer is not known yet. Dropped without one, it stays open: it may have taken effect at any
/// time after it was made, or never.
#[derive(Debug)]
#[must_use = "a call that is never answered may have taken effect or not"]
pub struct Open {
    history: History,
    /// Nothing if the call was not recorded.
    index: Option<usize>,
}

/// Why a history cannot be that of one job that is the same for everyone.
#[derive(Clone, Debug)]
pub struct Violation {
    told: String,
    stale: bool,
}

impl History {
    /// An empty history with times since `clock`.
    pub fn new(clock: Instant) -> Self {
        Self { clock, operations: Arc::default() }
    }

    /// Notes that `client` makes a call now.
    pub fn invoke(&self, client: usize, call: Call) -> Open {
        let mut operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        if operations.len() >= MAX_OPERATIONS && Phase::only_reads(&call) {
            return Open { history: self.clone(), index: None };
        }
        operations.push(Operation { client, call, invoked_ns: self.now_ns(), returned: None });
        Open { history: self.clone(), index: Some(operations.len() - 1) }
    }

    /// Whether all answers fit one job whose changes everyone sees at the same moment.
    pub fn judge(&self) -> Result<(), Violation> {
        let operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone();
        check(Phase::Unknown, &operations).map_err(|contradiction| Violation {
            told: tell(&operations, &contradiction),
            stale: is_stale(&operations, &contradiction),
        })
    }

    fn now_ns(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }
}

impl Open {
    /// The call returned now, with this answer.
    pub fn answered(self, answer: Answer) {
        let Some(index) = self.index else { return };
        let now_ns = self.history.now_ns();
        let mut operations = self.history.operations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(operation) = operations.get_mut(index) {
            operation.returned = Some((now_ns, answer));
        }
    }
}

impl Violation {
    /// Whether the answer that does not fit is a status that the job had left before it was asked for: the node
    /// that answered was behind, and nothing else need be wrong.
    pub fn is_stale_read(&self) -> bool {
        self.stale
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told)
    }
}

fn is_stale(operations: &[Operation<Call, Answer>], contradiction: &Contradiction<Phase>) -> bool {
    let Contradiction::Impossible { operation, states } = contradiction else { return false };
    let Operation { call: Call::Status, returned: Some((_, Answer::Is(phase))), .. } = operations[*operation]
    else {
        return false;
    };
    states.iter().all(|state| phase < *state) && matches!(phase, Phase::Unknown | Phase::Running)
}

/// The answer that does not fit and the calls before it, in the order of their answers.
fn tell(operations: &[Operation<Call, Answer>], contradiction: &Contradiction<Phase>) -> String {
    let Contradiction::Impossible { operation, states } = contradiction else {
        return "too many calls without an answer to judge the history".to_owned();
    };
    let bad = &operations[*operation];
    let end_ns = |operation: &Operation<Call, Answer>| operation.returned.map_or(u64::MAX, |(ns, _)| ns);
    // A read that was never answered tells nothing.
    let tells = |o: &Operation<Call, Answer>| o.returned.is_some() || !Phase::only_reads(&o.call);
    let mut before: Vec<_> = operations
        .iter()
        .filter(|o| o.invoked_ns < end_ns(bad) && tells(o) && !std::ptr::eq(*o, bad))
        .collect();
    before.sort_by_key(|operation| (end_ns(operation), operation.invoked_ns));
    let skipped = before.len().saturating_sub(TOLD_BEFORE);
    let mut text = format!("{bad} does not fit: the job could only be {states:?}; before it");
    for operation in &before[skipped..] {
        // Writing to a string does not fail.
        let _ = write!(text, "\n    {operation}");
    }
    text
}

impl fmt::Display for Operation<Call, Answer> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: u64| ns as f64 / 1e6;
        write!(f, "client {}: {:?} at {:.1} ms", self.client, self.call, ms(self.invoked_ns))?;
        match self.returned {
            Some((ns, answer)) => write!(f, " -> {answer:?} at {:.1} ms", ms(ns)),
            None => f.write_str(" -> no answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_recorded_is_judged_and_told() {
        let history = History::new(Instant::now());
        history.invoke(0, Call::Submit).answered(Answer::Done);
        // Dropped: nobody knows whether it happened.
        drop(history.invoke(1, Call::Cancel));
        history.invoke(0, Call::Status).answered(Answer::Is(Phase::Cancelled));
        history.judge().unwrap();
        let late = history.clone();
        late.invoke(2, Call::Status).answered(Answer::Is(Phase::Running));
        let violation = history.judge().unwrap_err();
        assert!(violation.is_stale_read());
        let text = violation.to_string();
        assert!(text.starts_with("client 2: Status at") && text.contains("only be [Cancelled]"), "{text}");
        assert!(text.contains("client 1: Cancel") && text.contains("no answer"), "{text}");
    }

    #[test]
    fn a_success_that_was_cancelled_is_worse_than_stale() {
        let history = History::new(Instant::now());
        history.invoke(0, Call::Submit).answered(Answer::Done);
        history.invoke(0, Call::Status).answered(Answer::Is(Phase::Succeeded));
        history.invoke(0, Call::Status).answered(Answer::Is(Phase::Cancelled));
        assert!(!history.judge().unwrap_err().is_stale_read());
    }
}
