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
    Call, CallFrame, CallResult, MAX_CALLS, MAX_CALLS_BYTES, MAX_FUNCTIONS, MAX_FUNCTIONS_BYTES, Returned,
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
    /// No such function.
    #[error("this session defined no function number {0}")]
    NoSuchFunction(u32),
    /// The id of a call under way.
    #[error("call {0} of this session has no result yet: another call needs another id")]
    InUse(u64),
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    functions: HashMap<u32, Defined>,
    next_function: u32,
    /// Of the functions that the connected node was told.
    told: Window,
    /// Functions that it is to forget.
    forgotten: Vec<u32>,
    /// Counts calls that are sent, so that it is known which functions were not called for longest.
    clock: u64,
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

/// A function. The connected node is told of it before its first call is sent.
#[derive(Debug)]
struct Defined {
    function: Function,
    /// Of the definition.
    bytes: usize,
    /// How many of its calls have no result.
    calls: usize,
    /// How many of these are sent.
    sent: usize,
    /// Whether the connected node has it.
    told: bool,
    /// When a call of it was last sent.
    used: u64,
    /// Whether the caller has done with it: it goes with its last call.
    ending: bool,
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
    /// Takes a function in, whose definition has so many bytes.
    pub(super) fn define(&mut self, function: Function, bytes: usize) -> Result<u32, Refused> {
        self.refuse_if_ended()?;
        // After four billion of them the first numbers are free again, or else in use.
        while self.functions.contains_key(&self.next_function) {
            self.next_function = self.next_function.wrapping_add(1);
        }
        let number = self.next_function;
        self.next_function = number.wrapping_add(1);
        let (calls, sent, told, used, ending) = (0, 0, false, 0, false);
        self.functions.insert(number, Defined { function, bytes, calls, sent, told, used, ending });
        Ok(number)
    }

    /// The caller will not call a function any more. It is kept until its calls have ended.
    pub(super) fn forget(&mut self, number: u32) {
        if let Some(defined) = self.functions.get_mut(&number) {
            defined.ending = true;
            self.drop_if_done(number);
        }
    }

    fn drop_if_done(&mut self, number: u32) {
        let done = self.functions.get(&number).is_some_and(|defined| defined.ending && defined.calls == 0);
        if done
            && let Some(defined) = self.functions.remove(&number)
            && defined.told
        {
            self.told.remove(defined.bytes);
            self.forgotten.push(number);
        }
    }

    /// Takes a call out, since it has ended or nobody wants it.
    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.calls.remove(&id)?;
        if entry.state == State::Sent {
            self.no_longer_sent(entry.function, entry.argument.len());
        }
        if let Some(defined) = self.functions.get_mut(&entry.function) {
            defined.calls -= 1;
        }
        self.drop_if_done(entry.function);
        Some(entry)
    }

    fn no_longer_sent(&mut self, function: u32, bytes: usize) {
        self.sent.remove(bytes);
        if let Some(defined) = self.functions.get_mut(&function) {
            defined.sent = defined.sent.saturating_sub(1);
        }
    }

    pub(super) fn call(
        &mut self,
        function: u32,
        calls: Vec<(u64, Bytes)>,
        node: Option<NodeId>,
    ) -> Result<(), Refused> {
        self.refuse_if_ended()?;
        if self.functions.get(&function).is_none_or(|defined| defined.ending) {
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
        if let Some(defined) = self.functions.get_mut(&function) {
            defined.calls += calls.len();
        }
        self.queue.extend(calls.iter().map(|(id, _)| *id));
        Ok(())
    }

    pub(super) fn cancel(&mut self, ids: &[u64]) {
        for id in ids {
            if let Some(entry) = self.remove(*id)
                && entry.state == State::Sent
            {
                self.cancelled.push_back(*id);
            }
        }
    }

    pub(super) fn close(&mut self) {
        self.closing = true;
        self.calls.clear();
        self.functions.clear();
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
        self.told = Window::default();
        for defined in self.functions.values_mut() {
            (defined.told, defined.sent) = (false, 0);
        }
        self.heard = false;
        self.forgotten.clear();
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
        if !self.cancelled.is_empty() {
            let count = self.cancelled.len().min(MAX_FRAME_CANCELS);
            return Some(CallFrame::Cancel { calls: self.cancelled.drain(..count).collect() });
        }
        // After what cancels their calls.
        if !self.forgotten.is_empty() {
            return Some(CallFrame::Forget { functions: std::mem::take(&mut self.forgotten) });
        }
        self.next_definition().or_else(|| self.next_calls())
    }

    /// The definition of the function that is called next, if the node does not have it; before that, if need be, what
    /// makes room for it there.
    fn next_definition(&mut self) -> Option<CallFrame> {
        let number = self.next_queued()?.function;
        let defined = self.functions.get(&number).filter(|defined| !defined.told)?;
        let bytes = defined.bytes;
        if !self.has_room(bytes) {
            let functions = self.let_go(bytes);
            return (!functions.is_empty()).then_some(CallFrame::Forget { functions });
        }
        self.told.add(bytes);
        let defined = self.functions.get_mut(&number)?;
        defined.told = true;
        Some(CallFrame::Define { function: number, definition: Box::new(defined.function.clone()) })
    }

    /// Whether the node may be told of a function more.
    fn has_room(&self, bytes: usize) -> bool {
        self.told.calls < MAX_FUNCTIONS && self.told.bytes + bytes <= MAX_FUNCTIONS_BYTES
    }

    /// Chooses functions that make way for one of so many bytes: half of what there may be, so that this is seldom, of
    /// those that are not under way and were not called for longest.
    fn let_go(&mut self, bytes: usize) -> Vec<u32> {
        let mut idle: Vec<(u64, u32)> = (self.functions.iter())
            .filter(|(_, defined)| defined.told && defined.sent == 0)
            .map(|(number, defined)| (defined.used, *number))
            .collect();
        idle.sort_unstable();
        let mut chosen = Vec::new();
        for (_, number) in idle {
            let few = self.told.calls <= MAX_FUNCTIONS / 2 && self.told.bytes <= MAX_FUNCTIONS_BYTES / 2;
            if few && self.has_room(bytes) {
                break;
            }
            if let Some(defined) = self.functions.get_mut(&number) {
                defined.told = false;
                self.told.remove(defined.bytes);
                chosen.push(number);
            }
        }
        chosen
    }

    /// The first call that waits. Those that wait no longer are passed over for good.
    fn next_queued(&mut self) -> Option<&Entry> {
        while let Some(id) = self.queue.front() {
            if self.calls.get(id).is_some_and(|entry| entry.state == State::Queued) {
                return self.calls.get(id);
            }
            self.queue.pop_front();
        }
        None
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
            let known = self.functions.get(&entry.function).is_some_and(|defined| defined.told);
            let fits = known
                && calls.len() < MAX_FRAME_CALLS
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
            self.clock += 1;
            if let Some(defined) = self.functions.get_mut(&entry.function) {
                defined.sent += 1;
                defined.used = self.clock;
            }
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
            let outcome = match outcome {
                Ok(Returned::Inline(bytes)) => Ok(bytes),
                Ok(Returned::Blob(blob)) => {
                    let (function, bytes) = (entry.function, entry.argument.len());
                    let before = std::mem::replace(&mut entry.state, State::Fetching);
                    if before == State::Sent {
                        self.no_longer_sent(function, bytes);
                    }
                    awaited.push(Awaited { id, blob, node, elapsed_us });
                    continue;
                }
                Err(failure) => Err(failure),
            };
            self.remove(id);
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
        self.remove(id);
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
        self.functions.clear();
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
        let function = Function { name: "f".into(), host, code, limits: Limits::default() };
        assert_eq!(ledger.define(function, 100), Ok(0));
        ledger
    }

    fn call(ledger: &mut Ledger, ids: &[u64]) -> Result<(), Refused> {
        ledger.call(0, ids.iter().map(|id| (*id, Bytes::from_static(b"argument"))).collect(), None)
    }

    fn sent(ledger: &mut Ledger) -> Vec<u64> {
        match ledger.next_frame() {
            Some(CallFrame::Calls { calls, .. }) => calls.iter().map(|call| call.id).collect(),
            Some(CallFrame::Define { .. }) => sent(ledger),
            Some(other @ (CallFrame::Cancel { .. } | CallFrame::Forget { .. })) => panic!("{other:?}"),
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
        let mut ids = sent(&mut ledger);
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

    /// A function's number, as the node would be told of it, and what it is told before.
    fn defined(ledger: &mut Ledger, bytes: usize) -> u32 {
        let (host, code) = (Host::Python(Python::default()), Payload::Inline(Bytes::new()));
        ledger.define(Function { name: "g".into(), host, code, limits: Limits::default() }, bytes).unwrap()
    }

    /// What a node holds that is told all this, with every call returning at once if `answers`.
    fn told(ledger: &mut Ledger, held: &mut std::collections::BTreeSet<u32>, answers: bool) -> usize {
        let mut made = 0;
        while let Some(frame) = ledger.next_frame() {
            match frame {
                CallFrame::Define { function, .. } => assert!(held.insert(function), "told twice"),
                CallFrame::Forget { functions } => {
                    assert!(functions.iter().all(|function| held.remove(function)), "it did not know all");
                }
                CallFrame::Calls { function, calls, .. } => {
                    assert!(held.contains(&function), "called before it was defined");
                    made += calls.len();
                    if answers {
                        let empty = |call: &Call| result(call.id, Ok(Returned::Inline(Bytes::new())));
                        ledger.resolve(NODE, calls.iter().map(empty).collect());
                        ledger.take_results();
                    }
                }
                other => panic!("{other:?}"),
            }
            assert!(held.len() <= MAX_FUNCTIONS);
        }
        made
    }

    #[test]
    fn a_node_holds_no_more_functions_than_it_should_however_many_there_are() {
        let mut ledger = Ledger::default();
        let mut held = std::collections::BTreeSet::new();
        let count = 2 * MAX_FUNCTIONS as u64 + 100;
        for id in 0..count {
            let function = defined(&mut ledger, 10);
            ledger.call(function, vec![(id, Bytes::new())], None).unwrap();
        }
        // None can make way while their calls have no results.
        assert_eq!(told(&mut ledger, &mut held, false), MAX_FUNCTIONS);
        let empty = |id| result(id, Ok(Returned::Inline(Bytes::new())));
        ledger.resolve(NODE, (0..MAX_FUNCTIONS as u64).map(empty).collect());
        ledger.take_results();
        assert_eq!(told(&mut ledger, &mut held, true), count as usize - MAX_FUNCTIONS);
        // One that was let go is told again.
        assert!(!held.contains(&0));
        ledger.call(0, vec![(count, Bytes::new())], None).unwrap();
        assert_eq!((told(&mut ledger, &mut held, true), held.contains(&0)), (1, true));
    }

    #[test]
    fn a_node_holds_no_more_bytes_of_functions_than_it_should() {
        let mut ledger = Ledger::default();
        let mut held = std::collections::BTreeSet::new();
        let functions: Vec<u32> = (0..10).map(|_| defined(&mut ledger, MAX_FUNCTIONS_BYTES / 3)).collect();
        for (id, function) in functions.iter().cycle().take(50).enumerate() {
            ledger.call(*function, vec![(id as u64, Bytes::new())], None).unwrap();
            assert_eq!(told(&mut ledger, &mut held, true), 1);
            assert!(held.len() <= 3 && held.contains(function));
        }
    }

    #[test]
    fn what_the_caller_has_done_with_goes_after_its_last_call() {
        let mut ledger = ledger();
        call(&mut ledger, &[1, 2]).unwrap();
        ledger.forget(0);
        assert_eq!(call(&mut ledger, &[3]), Err(Refused::NoSuchFunction(0)));
        assert_eq!(sent(&mut ledger), [1, 2]);
        // Through another node it is told of it again.
        ledger.reconnected();
        assert_eq!(sent(&mut ledger), [1, 2]);
        ledger.resolve(NODE, vec![result(1, Ok(Returned::Inline(Bytes::new())))]);
        assert_eq!(ledger.next_frame(), None);
        ledger.cancel(&[2]);
        assert_eq!(ledger.next_frame(), Some(CallFrame::Cancel { calls: vec![2] }));
        assert_eq!(ledger.next_frame(), Some(CallFrame::Forget { functions: vec![0] }));
        assert!(ledger.functions.is_empty() && ledger.next_frame().is_none());
    }
}
