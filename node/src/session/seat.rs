//! One session's calls on one node: a queue, and runners that work it off, each with a slot of the node and a host.
//!
//! ```text
//!   CallFrame ──> queue ──> runner: slot ──> host ──> outbox ──> ResultFrame
//!                   ^─────── what a host that ended had not begun
//! ```
//!
//! A runner keeps its slot while there are calls, but gives it to whoever waits for it every [`QUANTUM`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use floe_protocol::session::{Call, CallFrame, CallResult, ResultFrame};
use floe_protocol::{AttemptId, Failure, Function, JobId, NodeId, StageId, TaskId};
use futures::FutureExt;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::pace::Pace;
use super::wire::FRAMES;
use crate::worker::hosts::CallHost;
use crate::worker::{Slot, Worker};

/// How long a runner keeps its slot at most while others wait for one.
const QUANTUM: Duration = Duration::from_millis(100);

/// How long a runner without calls keeps its host: longer than a driver that waits for one result before it makes the
/// next call, and short enough that others soon get it from the pool. Where there are many hosts they get it at once.
const HOST_KEPT: Duration = Duration::from_secs(1);

/// How much work a host gets at once, by what the calls before took: more spares switches between processes, less
/// shares better among hosts.
const BATCH_US: u64 = 2_000;

/// How many calls that is at most.
const MAX_BATCH: usize = 256;

/// How long calls wait behind others that run on, until those that other nodes may run are given back: a call of an hour
/// is not to keep those waiting that were sent after it because their kind is short. Longer than one waits for a slot.
const GIVEN_BACK_AFTER: Duration = Duration::from_millis(1500);

/// How many results go into one frame at most.
const MAX_RESULTS: usize = 1024;

/// How many bytes of results go into one frame, roughly; the largest single result fits.
const MAX_RESULTS_BYTES: usize = 4 << 20;

/// Starts a seat; it ends when the sender is dropped, and whatever it runs with it.
pub(super) fn start(
    worker: Worker,
    node: NodeId,
    session: JobId,
) -> (mpsc::Sender<CallFrame>, mpsc::Receiver<ResultFrame>) {
    let (calls, received) = mpsc::channel(FRAMES);
    let (results, sent) = mpsc::channel(FRAMES);
    let seat = Arc::new(Seat {
        worker,
        session,
        state: Mutex::default(),
        work: Notify::new(),
        done: Notify::new(),
        cancelled: Notify::new(),
        hosts: AtomicU64::new(0),
    });
    tokio::spawn(run(seat, node, received, results));
    (calls, sent)
}

struct Seat {
    worker: Worker,
    session: JobId,
    state: Mutex<State>,
    /// There are calls that nobody has taken.
    work: Notify,
    /// There are results to send.
    done: Notify,
    /// Something that may be running is to be stopped.
    cancelled: Notify,
    /// Counts hosts, for the names of their logs.
    hosts: AtomicU64,
}

/// A call that no runner has taken.
struct Queued {
    function: u32,
    call: Call,
    /// Whether it must run here.
    pinned: bool,
}

/// Calls of one function that a runner has taken.
struct Batch {
    key: u32,
    function: Arc<Function>,
    pinned: bool,
    calls: Vec<Call>,
}

#[derive(Default)]
struct State {
    functions: BTreeMap<u32, Arc<Function>>,
    queue: VecDeque<Queued>,
    /// Calls that runners have taken and not finished.
    running: BTreeSet<u64>,
    /// Those of them that nobody wants any more.
    unwanted: BTreeSet<u64>,
    /// Bounded by the calls that a driver may have under way.
    outbox: Vec<CallResult>,
    pace: Pace,
    /// When a call last began or ended, or came where none was waiting.
    moved: Option<Instant>,
}

async fn run(
    seat: Arc<Seat>,
    node: NodeId,
    mut frames: mpsc::Receiver<CallFrame>,
    results: mpsc::Sender<ResultFrame>,
) {
    let mut runners = JoinSet::new();
    let mut closing = seat.worker.hosts().closing();
    loop {
        let overdue = seat.overdue_at();
        tokio::select! {
            frame = frames.recv() => match frame {
                // Aborting the runners drops their hosts, which end.
                None | Some(CallFrame::Close) => return,
                Some(frame) => {
                    let waiting = seat.take(frame);
                    let wanted = waiting.min(seat.worker.slots());
                    while runners.len() < wanted {
                        runners.spawn(Arc::clone(&seat).work());
                    }
                }
            },
            () = seat.done.notified() => {
                while let Some(ready) = seat.ready() {
                    if results.send(ResultFrame::Results { node, results: ready }).await.is_err() {
                        return;
                    }
                }
            }
            () = sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => {
                let calls = seat.overdue();
                if !calls.is_empty() && results.send(ResultFrame::GivenBack { calls }).await.is_err() {
                    return;
                }
            }
            () = stops(&mut closing) => {
                while let Some(ready) = seat.ready() {
                    let _ = results.send(ResultFrame::Results { node, results: ready }).await;
                }
                let _ = results.send(ResultFrame::GivenBack { calls: seat.unfinished() }).await;
                return;
            }
        }
    }
}

/// Waits until the node stops.
async fn stops(closing: &mut watch::Receiver<bool>) {
    // The sender lives as long as the worker.
    let _ = closing.wait_for(|closing| *closing).await;
}

impl Seat {
    /// When what waits and need not run here has waited for too long, unless something begins or ends before. Nothing if
    /// none waits.
    fn overdue_at(&self) -> Option<Instant> {
        let state = self.lock();
        let moved = state.moved.filter(|_| state.queue.iter().any(|queued| !queued.pinned));
        moved.map(|moved| moved + GIVEN_BACK_AFTER)
    }

    /// Lets go of these, if they have waited for too long.
    fn overdue(&self) -> Vec<u64> {
        let mut state = self.lock();
        if state.moved.is_some_and(|moved| moved.elapsed() < GIVEN_BACK_AFTER) {
            return Vec::new();
        }
        let (kept, overdue): (VecDeque<Queued>, VecDeque<Queued>) =
            state.queue.drain(..).partition(|queued| queued.pinned);
        state.queue = kept;
        overdue.into_iter().map(|queued| queued.call.id).collect()
    }

    /// All calls that have no result, when the node is stopping: nothing is held against them, and others run them.
    fn unfinished(&self) -> Vec<u64> {
        let mut state = self.lock();
        let queued: Vec<_> = state.queue.drain(..).map(|queued| queued.call.id).collect();
        state.running.iter().filter(|call| !state.unwanted.contains(call)).copied().chain(queued).collect()
    }

    /// Takes a frame in; returns how many calls there are.
    fn take(&self, frame: CallFrame) -> usize {
        let mut state = self.lock();
        match frame {
            CallFrame::Define { function, definition } => {
                state.functions.insert(function, Arc::new(*definition));
            }
            CallFrame::Calls { function, node, calls } => {
                if state.queue.is_empty() {
                    state.moved = Some(Instant::now());
                }
                let pinned = node.is_some();
                state.queue.extend(calls.into_iter().map(|call| Queued { function, call, pinned }));
                // Whoever takes some of it wakes the next.
                self.work.notify_one();
            }
            CallFrame::Cancel { calls } => {
                let calls: BTreeSet<u64> = calls.into_iter().collect();
                state.queue.retain(|queued| !calls.contains(&queued.call.id));
                let running: Vec<u64> = calls.intersection(&state.running).copied().collect();
                if !running.is_empty() {
                    state.unwanted.extend(running);
                    self.cancelled.notify_waiters();
                }
            }
            CallFrame::Forget { functions } => {
                // Of their calls at most some that were cancelled are still running.
                for function in &functions {
                    state.functions.remove(function);
                }
                state.pace.forget(&functions);
            }
            CallFrame::Close => {}
        }
        state.queue.len() + state.running.len()
    }

    /// The next results to send.
    fn ready(&self) -> Option<Vec<CallResult>> {
        let mut state = self.lock();
        let mut bytes = 0;
        let mut count = 0;
        while count < state.outbox.len().min(MAX_RESULTS) && bytes < MAX_RESULTS_BYTES {
            bytes += size(&state.outbox[count]);
            count += 1;
        }
        if count == 0 {
            return None;
        }
        let rest = state.outbox.split_off(count);
        Some(std::mem::replace(&mut state.outbox, rest))
    }

    /// Runs calls for as long as the seat lives.
    async fn work(self: Arc<Self>) {
        let mut host: Option<CallHost> = None;
        let mut slot: Option<(Slot, Instant)> = None;
        loop {
            if self.lock().queue.is_empty() {
                slot = None;
                if self.worker.hosts().are_many() {
                    host = None;
                }
                // A notification that came first is stored.
                if timeout(HOST_KEPT, self.work.notified()).await.is_err() {
                    host = None;
                    self.work.notified().await;
                }
                continue;
            }
            // Calls are taken with a slot in hand: those that wait for one can be given back. Others wait beside this.
            if self.lock().queue.len() > 1 {
                self.work.notify_one();
            }
            if slot.as_ref().is_none_or(|(_, since)| since.elapsed() > QUANTUM) {
                drop(slot.take());
                slot = Some((self.worker.slot().await, Instant::now()));
            }
            let Some(batch) = self.next_batch() else { continue };
            let (key, ids) = (batch.key, batch.calls.iter().map(|call| call.id).collect::<Vec<_>>());
            // What a panic leaves of the seat is whole, and calls end one way or another.
            host = match AssertUnwindSafe(self.run_batch(host, batch)).catch_unwind().await {
                Ok(host) => host,
                Err(_) => {
                    self.abandon(key, ids);
                    None
                }
            };
        }
    }

    /// Runs some calls of one function; returns the host if it can be used again.
    async fn run_batch(
        &self,
        host: Option<CallHost>,
        Batch { key, function, pinned, calls }: Batch,
    ) -> Option<CallHost> {
        let mut host = match host.filter(|host| host.serves(&function)) {
            Some(host) => host,
            None => {
                let number = self.hosts.fetch_add(1, Ordering::Relaxed);
                let task = TaskId { job: self.session, stage: StageId(0), partition: 0 };
                match self.worker.hosts().call_host(AttemptId { task, attempt: number }, &function).await {
                    Ok(host) => host,
                    Err(_) if self.is_closing() => return None,
                    Err(failure) => {
                        let failed = |call: Call| CallResult {
                            id: call.id,
                            outcome: Err(failure.clone()),
                            elapsed_us: 0,
                        };
                        self.finished(key, calls.into_iter().map(failed).collect());
                        return None;
                    }
                }
            }
        };
        let ids: BTreeSet<u64> = calls.iter().map(|call| call.id).collect();
        let mut left: BTreeMap<u64, Call> = calls.iter().map(|call| (call.id, call.clone())).collect();
        let mut report = |results: Vec<CallResult>| {
            for result in &results {
                left.remove(&result.id);
            }
            self.finished(key, results);
        };
        let ended = tokio::select! {
            ended = host.call(key, &function, calls, &mut report) => ended,
            () = self.until_unwanted(&ids) => {
                // Dropping a host that runs something ends it. What it had not finished and somebody wants runs again.
                drop(host);
                self.put_back(key, pinned, left.into_values().collect());
                return None;
            }
        };
        match ended {
            Ok(left) => {
                self.put_back(key, pinned, left);
                Some(host)
            }
            // That is what ended it.
            Err(_) if self.is_closing() => None,
            Err(ended) => {
                let mut unfinished = ended.unfinished.into_iter();
                if let Some(culprit) = unfinished.next() {
                    let outcome = Err(ended.failure);
                    self.finished(key, vec![CallResult { id: culprit.id, outcome, elapsed_us: 0 }]);
                }
                self.put_back(key, pinned, unfinished.collect());
                None
            }
        }
    }

    /// Whether the node is stopping. What has not ended is given back then.
    fn is_closing(&self) -> bool {
        *self.worker.hosts().closing().borrow()
    }

    /// Waits until one of these calls is unwanted while it runs.
    async fn until_unwanted(&self, ids: &BTreeSet<u64>) {
        loop {
            let cancelled = self.cancelled.notified();
            tokio::pin!(cancelled);
            cancelled.as_mut().enable();
            if self.lock().unwanted.iter().any(|call| ids.contains(call)) {
                return;
            }
            cancelled.await;
        }
    }

    /// Some calls of one function from the front of the queue: as many as fit [`BATCH_US`], and no more than leaves
    /// some for other runners.
    fn next_batch(&self) -> Option<Batch> {
        let mut state = self.lock();
        loop {
            let Queued { function: key, pinned, .. } = *state.queue.front()?;
            let Some(function) = state.functions.get(&key).cloned() else {
                // The gateway defines before it calls.
                state.queue.pop_front();
                continue;
            };
            let share = state.queue.len().div_ceil(self.worker.slots());
            let count = state.pace.calls_in(BATCH_US, key, MAX_BATCH).min(share);
            let mut calls = Vec::with_capacity(count);
            let fits = |next: &Queued| (next.function, next.pinned) == (key, pinned);
            while calls.len() < count && state.queue.front().is_some_and(fits) {
                calls.extend(state.queue.pop_front().map(|queued| queued.call));
            }
            state.running.extend(calls.iter().map(|call| call.id));
            state.moved = Some(Instant::now());
            if !state.queue.is_empty() {
                self.work.notify_one();
            }
            return Some(Batch { key, function, pinned, calls });
        }
    }

    fn finished(&self, key: u32, results: Vec<CallResult>) {
        let mut state = self.lock();
        let state = &mut *state;
        state.moved = Some(Instant::now());
        for result in results {
            state.running.remove(&result.id);
            if state.functions.contains_key(&key) {
                state.pace.note(key, result.elapsed_us);
            }
            if !state.unwanted.remove(&result.id) {
                state.outbox.push(result);
            }
        }
        self.done.notify_one();
    }

    /// Ends calls whose runner panicked, as far as they had not ended.
    fn abandon(&self, key: u32, ids: Vec<u64>) {
        let failure = Failure::internal("what ran the call panicked; the node's log says where");
        let running = ids.into_iter().filter(|id| self.lock().running.contains(id));
        let failed = |id| CallResult { id, outcome: Err(failure.clone()), elapsed_us: 0 };
        let results = running.map(failed).collect();
        self.finished(key, results);
    }

    /// Calls that were taken and did not run.
    fn put_back(&self, function: u32, pinned: bool, calls: Vec<Call>) {
        let mut state = self.lock();
        for call in calls.into_iter().rev() {
            state.running.remove(&call.id);
            if !state.unwanted.remove(&call.id) {
                state.queue.push_front(Queued { function, call, pinned });
            }
        }
        state.moved = Some(Instant::now());
        self.work.notify_one();
        // Whoever watches what is overdue has to know that there is something.
        self.done.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A runner that panicked left the lists whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn size(result: &CallResult) -> usize {
    match &result.outcome {
        Ok(floe_protocol::session::Returned::Inline(bytes)) => bytes.len(),
        Ok(_) => 64,
        Err(Failure::Exception { exception, traceback, .. }) => exception.len() + traceback.len(),
        Err(_) => 1024,
    }
}
