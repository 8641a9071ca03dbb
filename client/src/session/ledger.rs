//! What a session has under way: its functions, its calls until their results have come, the results until they are
//! taken. Pure: it sends nothing and waits for nothing.
//!
//! ```text
//!   call() ──> Queued ──next_frame()──> Sent ──result──> taken
//!                ▲                       │  ╲
//!                └──── reconnected() ────┘   `─ a blob ─> Fetching ──fetched()──> taken
//! ```

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use floe_protocol::function::Blob;
use floe_protocol::session::{
    Call, CallFrame, CallResult, MAX_CALLS, MAX_CALLS_BYTES, MAX_FUNCTIONS, Returned,
};
use floe_protocol::{Failure, Function, NodeId};

use super::CallOutcome;

/// How many calls share a frame at most. More would not be written with fewer bytes a call, and the first of them would
/// wait for the last to be encoded.
const MAX_FRAME_CALLS: usize = 1024;

/// How many bytes of arguments share a frame; one call may exceed it alone.
const MAX_FRAME_ARGUMENTS_BYTES: usize = 512 << 10;

/// How many calls one frame cancels.
const MAX_FRAME_CANCELS: usize = 4096;

/// How often a call is made again because what it returned was lost with the node that had it.
const MAX_LOST_RESULTS: u32 = 3;

/// Why something cannot be had of a session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// It is over.
    #[error("{0}")]
    Ended(Failure),
    /// Its definitions are all used up.
    #[error("one session cannot define more than {MAX_FUNCTIONS} functions")]
    TooManyFunctions,
    /// No such function.
    #[error("this session defined no function number {0}")]
    NoSuchFunction(u32),
    /// The id of a call under way.
    #[error("call {0} of this session has no result yet: another call needs another id")]
    InUse(u64),
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    functions: Vec<Function>,
    /// How many of them the connected node was told.
    told: usize,
    /// Every call whose result has not come.
    calls: HashMap<u64, Entry>,
    /// Those to be sent, in order. One that was cancelled stays until it would be sent.
    queue: VecDeque<u64>,
    /// Calls to be cancelled.
    cancelled: VecDeque<u64>,
    /// Of the calls that are sent.
    sent: Window,
    /// Of the results that wait to be taken.
    untaken: Window,
    results: Vec<CallOutcome>,
    /// Counts calls, so that those sent again keep their order.
    next_turn: u64,
    /// Whether a result came since [`Ledger::reconnected`].
    heard: bool,
    closing: bool,
    end: Option<Failure>,
}

#[derive(Debug)]
struct Entry {
    turn: u64,
    function: u32,
    node: Option<NodeId>,
    argument: Bytes,
    state: State,
    /// How often its result was lost.
    lost_results: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued,
    Sent,
    Fetching,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    calls: usize,
    bytes: usize,
}

/// A result that is to be fetched before it is one.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) id: u64,
    pub(super) blob: Blob,
    pub(super) node: NodeId,
    pub(super) elapsed_us: u64,
}

impl Ledger {
    pub(super) fn define(&mut self, function: Function) -> Result<u32, Refused> {
        self.refuse_if_ended()?;
        if self.functions.len() >= MAX_FUNCTIONS {
            return Err(Refused::TooManyFunctions);
        }
        self.functions.push(function);
        Ok(self.functions.len() as u32 - 1)
    }

    pub(super) fn call(
        &mut self,
        function: u32,
        calls: Vec<(u64, Bytes)>,
        node: Option<NodeId>,
    ) -> Result<(), Refused> {
        self.refuse_if_ended()?;
        if function as usize >= self.functions.len() {
            return Err(Refused::NoSuchFunction(function));
        }
        for (at, (id, argument)) in calls.iter().enumerate() {
            let (turn, argument) = (self.next_turn + at as u64, argument.clone());
            let entry = Entry { turn, function, node, argument, state: State::Queued, lost_results: 0 };
            if let Some(other) = self.calls.insert(*id, entry) {
                // Everything as it was before.
                self.calls.insert(*id, other);
                for (made, _) in &calls[..at] {
                    self.calls.remove(made);
                }
                return Err(Refused::InUse(*id));
            }
        }
        self.next_turn += calls.len() as u64;
        self.queue.extend(calls.iter().map(|(id, _)| *id));
        Ok(())
    }

    pub(super) fn cancel(&mut self, ids: &[u64]) {
        for id in ids {
            if let Some(entry) = self.calls.remove(id)
                && entry.state == State::Sent
            {
                self.sent.remove(entry.argument.len());
                self.cancelled.push_back(*id);
            }
        }
    }

    pub(super) fn close(&mut self) {
        self.closing = true;
        self.calls.clear();
        self.queue.clear();
        self.cancelled.clear();
        self.end.get_or_insert(Failure::Cancelled);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    pub(super) fn end(&self) -> Option<Failure> {
        self.end.clone()
    }

    pub(super) fn heard(&self) -> bool {
        self.heard
    }

    pub(super) fn unresolved(&self) -> usize {
        self.calls.len()
    }

    pub(super) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The session goes on through a node that knows nothing of it.
    pub(super) fn reconnected(&mut self) {
        self.told = 0;
        self.heard = false;
        self.cancelled.clear();
        self.sent = Window::default();
        let mut turns = Vec::new();
        for (id, entry) in &mut self.calls {
            if entry.state != State::Fetching {
                entry.state = State::Queued;
                turns.push((entry.turn, *id));
            }
        }
        turns.sort_unstable();
        self.queue = turns.into_iter().map(|(_, id)| id).collect();
    }

    /// What is to be sent next; nothing until there is more to do, or room for it.
    pub(super) fn next_frame(&mut self) -> Option<CallFrame> {
        if self.closing {
            return Some(CallFrame::Close);
        }
        if let Some(function) = self.functions.get(self.told) {
            let definition = Box::new(function.clone());
            self.told += 1;
            return Some(CallFrame::Define { function: self.told as u32 - 1, definition });
        }
        if !self.cancelled.is_empty() {
            let count = self.cancelled.len().min(MAX_FRAME_CANCELS);
            return Some(CallFrame::Cancel { calls: self.cancelled.drain(..count).collect() });
        }
        self.next_calls()
    }

    /// As many calls from the front of the queue as go to one function and node.
    fn next_calls(&mut self) -> Option<CallFrame> {
        let mut target = None;
        let mut calls = Vec::new();
        let mut bytes = 0;
        while let Some(id) = self.queue.front().copied() {
            let Some(entry) = self.calls.get_mut(&id).filter(|entry| entry.state == State::Queued) else {
                self.queue.pop_front();
                continue;
            };
            let length = entry.argument.len();
            let fits = calls.len() < MAX_FRAME_CALLS
                && (calls.is_empty() || bytes + length <= MAX_FRAME_ARGUMENTS_BYTES)
                && target.is_none_or(|target| target == (entry.function, entry.node));
            let sent_calls = self.sent.calls + self.untaken.calls;
            let sent_bytes = self.sent.bytes + self.untaken.bytes;
            let room = sent_calls < MAX_CALLS && (sent_calls == 0 || sent_bytes + length <= MAX_CALLS_BYTES);
            if !fits || !room {
                break;
            }
            target = Some((entry.function, entry.node));
            entry.state = State::Sent;
            self.sent.add(length);
            bytes += length;
            calls.push(Call { id, argument: entry.argument.clone() });
            self.queue.pop_front();
        }
        let (function, node) = target?;
        Some(CallFrame::Calls { function, node, calls })
    }

    /// Takes results that came; returns those that are to be fetched. One that came before, or that is not awaited any
    /// more, is dropped.
    pub(super) fn resolve(&mut self, node: NodeId, results: Vec<CallResult>) -> Vec<Awaited> {
        self.heard = true;
        let mut awaited = Vec::new();
        for CallResult { id, outcome, elapsed_us } in results {
            let Some(entry) = self.calls.get_mut(&id).filter(|entry| entry.state != State::Fetching) else {
                continue;
            };
            if entry.state == State::Sent {
                self.sent.remove(entry.argument.len());
            }
            let outcome = match outcome {
                Ok(Returned::Inline(bytes)) => Ok(bytes),
                Ok(Returned::Blob(blob)) => {
                    entry.state = State::Fetching;
                    awaited.push(Awaited { id, blob, node, elapsed_us });
                    continue;
                }
                Err(failure) => Err(failure),
            };
            self.calls.remove(&id);
            self.keep(CallOutcome { id, outcome, node: Some(node), elapsed_us });
        }
        awaited
    }

    /// A result was fetched, or is lost: then the call is made again, some times.
    pub(super) fn fetched(&mut self, awaited: Awaited, fetched: Result<Bytes, Failure>) {
        let Awaited { id, node, elapsed_us, .. } = awaited;
        let Some(entry) = self.calls.get_mut(&id).filter(|entry| entry.state == State::Fetching) else {
            return;
        };
        if fetched.is_err() && entry.lost_results < MAX_LOST_RESULTS {
            entry.lost_results += 1;
            entry.state = State::Queued;
            self.queue.push_front(id);
            return;
        }
        self.calls.remove(&id);
        self.keep(CallOutcome { id, outcome: fetched, node: Some(node), elapsed_us });
    }

    /// Everything that is left fails, and nothing more comes.
    pub(super) fn fail(&mut self, failure: Failure) {
        if self.end.is_some() {
            return;
        }
        let mut left: Vec<_> = self.calls.drain().map(|(id, entry)| (entry.turn, id)).collect();
        left.sort_unstable();
        for (_, id) in left {
            self.keep(CallOutcome { id, outcome: Err(failure.clone()), node: None, elapsed_us: 0 });
        }
        self.queue.clear();
        self.end = Some(failure);
    }

    /// All results that have come.
    pub(super) fn take_results(&mut self) -> Vec<CallOutcome> {
        self.untaken = Window::default();
        std::mem::take(&mut self.results)
    }

    fn keep(&mut self, result: CallOutcome) {
        self.untaken.add(result.outcome.as_ref().map_or(0, Bytes::len));
        self.results.push(result);
    }

    fn refuse_if_ended(&self) -> Result<(), Refused> {
        match &self.end {
            Some(failure) => Err(Refused::Ended(failure.clone())),
            None => Ok(()),
        }
    }
}

impl Window {
    fn add(&mut self, bytes: usize) {
        self.calls += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.calls = self.calls.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use floe_protocol::BlobId;
    use floe_protocol::function::{Host, Limits, Payload, Python};

    use super::*;

    const NODE: NodeId = NodeId(1);

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        let (host, code) = (Host::Python(Python::default()), Payload::Inline(Bytes::new()));
        ledger.define(Function { name: "f".into(), host, code, limits: Limits::default() }).unwrap();
        assert!(matches!(ledger.next_frame(), Some(CallFrame::Define { function: 0, .. })));
        ledger
    }

    fn call(ledger: &mut Ledger, ids: &[u64]) -> Result<(), Refused> {
        ledger.call(0, ids.iter().map(|id| (*id, Bytes::from_static(b"argument"))).collect(), None)
    }

    fn sent(ledger: &mut Ledger) -> Vec<u64> {
        match ledger.next_frame() {
            Some(CallFrame::Calls { calls, .. }) => calls.iter().map(|call| call.id).collect(),
            Some(CallFrame::Define { .. }) => sent(ledger),
            Some(CallFrame::Cancel { calls }) => panic!("cancels {calls:?}"),
            Some(CallFrame::Close) | None => Vec::new(),
        }
    }

    fn result(id: u64, outcome: Result<Returned, Failure>) -> CallResult {
        CallResult { id, outcome, elapsed_us: 1 }
    }

    #[test]
    fn calls_are_made_again_in_their_order_but_not_those_whose_results_exist() {
        let mut ledger = ledger();
        call(&mut ledger, &[9, 8, 7, 6]).unwrap();
        assert_eq!(sent(&mut ledger), [9, 8, 7, 6]);
        call(&mut ledger, &[5]).unwrap();
        let blob = Blob { id: BlobId(1), bytes: 5 };
        let results = vec![result(8, Ok(Returned::Inline("r".into()))), result(7, Ok(Returned::Blob(blob)))];
        let mut awaited = ledger.resolve(NODE, results);
        assert!(ledger.heard());
        ledger.reconnected();
        assert_eq!(sent(&mut ledger), [9, 6, 5]);
        let awaited = awaited.pop().unwrap();
        assert_eq!(awaited.id, 7);
        ledger.fetched(awaited, Ok("large".into()));
        let taken: Vec<_> = ledger.take_results().into_iter().map(|result| result.id).collect();
        assert_eq!((taken, ledger.unresolved()), (vec![8, 7], 3));
    }

    #[test]
    fn a_call_whose_result_is_lost_again_and_again_fails_at_last() {
        let mut ledger = ledger();
        call(&mut ledger, &[1]).unwrap();
        let blob = Blob { id: BlobId(1), bytes: 5 };
        let lost = Failure::NodeLost { node: NODE };
        for _ in 0..=MAX_LOST_RESULTS {
            assert_eq!(sent(&mut ledger), [1]);
            let awaited = ledger.resolve(NODE, vec![result(1, Ok(Returned::Blob(blob)))]).pop().unwrap();
            ledger.fetched(awaited, Err(lost.clone()));
        }
        assert_eq!(ledger.take_results()[0].outcome, Err(lost));
        assert_eq!((sent(&mut ledger), ledger.unresolved()), (vec![], 0));
    }

    #[test]
    fn of_calls_with_an_id_in_use_none_is_made() {
        let mut ledger = ledger();
        call(&mut ledger, &[1]).unwrap();
        assert_eq!(call(&mut ledger, &[2, 1]), Err(Refused::InUse(1)));
        assert_eq!(call(&mut ledger, &[3, 3]), Err(Refused::InUse(3)));
        assert_eq!((sent(&mut ledger), ledger.unresolved()), (vec![1], 1));
        ledger.cancel(&[1]);
        assert_eq!(ledger.next_frame(), Some(CallFrame::Cancel { calls: vec![1] }));
        ledger.fail(Failure::Cancelled);
        assert_eq!(call(&mut ledger, &[4]), Err(Refused::Ended(Failure::Cancelled)));
    }

    #[test]
    fn results_that_nobody_takes_hold_further_calls_back() {
        let mut ledger = ledger();
        call(&mut ledger, &(0..MAX_CALLS as u64 + 1).collect::<Vec<_>>()).unwrap();
        let mut ids = Vec::new();
        while let Some(CallFrame::Calls { calls, .. }) = ledger.next_frame() {
            ids.extend(calls.into_iter().map(|call| call.id));
        }
        assert_eq!(ids.len(), MAX_CALLS);
        let returned = ids.into_iter().map(|id| result(id, Ok(Returned::Inline(Bytes::new()))));
        ledger.resolve(NODE, returned.collect());
        assert!(sent(&mut ledger).is_empty());
        assert_eq!(ledger.take_results().len(), MAX_CALLS);
        assert_eq!(sent(&mut ledger), [MAX_CALLS as u64]);
    }
}
