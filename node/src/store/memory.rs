//! The node's memory budget, which running tasks and partitions in memory share.
//!
//! Tasks wait for their reservation, first come, first served. Partitions never wait: what does not fit goes
//! to disk. While a task waits, partitions are evicted to make room for it.
//!
//! ```text
//!   reserve ──> fits and nobody waits ──────────────────────────────> granted ──> dropped, its bytes are free
//!      └──────> waits ──> first in line and fits ───────────────────────┘
//!                 └─────> first in line, no task runs, nothing left to evict
//! ```

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;

/// A number of bytes that tasks and partitions share. Cheap to clone; clones are one budget.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

/// Bytes taken from a [`Budget`] until it is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    holder: Holder,
    bytes: u64,
}

/// What bytes are reserved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Task,
    Partition,
}

#[derive(Debug)]
struct Shared {
    limit_bytes: u64,
    state: Mutex<State>,
    /// Told of every change, for the thread that evicts.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    used_bytes: u64,
    /// How many tasks hold a reservation.
    tasks: usize,
    /// As long as tasks wait; the worker's slots bound how many do.
    waiting: VecDeque<Waiting>,
    next_ticket: u64,
    /// Counts what may make room, or make it needed.
    changes: u64,
    /// The count of changes at which there was nothing to evict.
    fruitless_at: Option<u64>,
    closed: bool,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    bytes: u64,
    granted: oneshot::Sender<Reservation>,
}

impl Budget {
    /// A budget of `limit_bytes`.
    pub fn new(limit_bytes: u64) -> Self {
        Self(Arc::new(Shared { limit_bytes, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// What it was made with.
    pub fn limit_bytes(&self) -> u64 {
        self.0.limit_bytes
    }

    /// What is reserved. It may exceed the limit by one reservation, see [`Budget::reserve`].
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes
    }

    /// Takes `bytes` for a task, waiting in line until they are free.
    ///
    /// Nobody waits for ever: a request beyond the limit is cut down to it, so that its task runs alone,
    /// and when no task runs and no partition can be evicted, the first in line is served whatever is used,
    /// because all that is left is partitions that are being read, perhaps slowly.
    pub async fn reserve(&self, bytes: u64) -> Reservation {
        let bytes = bytes.min(self.0.limit_bytes);
        let (place, granted) = {
            let mut state = self.lock();
            if state.waiting.is_empty() && state.used_bytes + bytes <= self.0.limit_bytes {
                state.used_bytes += bytes;
                state.tasks += 1;
                return Reservation { budget: self.clone(), holder: Holder::Task, bytes };
            }
            let (sender, granted) = oneshot::channel();
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiting.push_back(Waiting { ticket, bytes, granted: sender });
            self.tell_change(&mut state);
            (Place { budget: self, ticket }, granted)
        };
        let reservation = granted.await;
        drop(place);
        // A place in line is given up only by its holder, who is still here.
        reservation.unwrap_or_else(|_| unreachable!("a place in line was dropped while its holder waited"))
    }

    /// Takes `bytes` for a partition if they are free and no task waits for them.
    pub fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        let mut reservation = Reservation { budget: self.clone(), holder: Holder::Partition, bytes: 0 };
        reservation.try_grow(bytes).then_some(reservation)
    }

    /// Blocks until the first task in line lacks memory that an eviction may free. False: closed.
    pub(super) fn wait_for_shortage(&self) -> bool {
        let mut state = self.lock();
        loop {
            if state.closed {
                return false;
            }
            if !state.waiting.is_empty() && state.fruitless_at != Some(state.changes) {
                return true;
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says that there was nothing to evict. It is not asked for again until something changes.
    pub(super) fn nothing_to_evict(&self) {
        let granted = {
            let mut state = self.lock();
            if state.tasks == 0
                && let Some(first) = state.waiting.pop_front()
            {
                vec![self.grant(&mut state, first)]
            } else {
                state.fruitless_at = Some(state.changes);
                Vec::new()
            }
        };
        deliver(granted);
    }

    /// Says that a partition can now be evicted that could not be before.
    pub(super) fn partition_added(&self) {
        self.tell_change(&mut self.lock());
    }

    /// Ends [`Budget::wait_for_shortage`] for good.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.0.changed.notify_all();
    }

    fn give_back(&self, holder: Holder, bytes: u64) {
        let granted = {
            let mut state = self.lock();
            state.used_bytes -= bytes;
            if holder == Holder::Task {
                state.tasks -= 1;
            }
            self.grant_what_fits(&mut state)
        };
        deliver(granted);
    }

    fn leave_line(&self, ticket: u64) {
        let granted = {
            let mut state = self.lock();
            state.waiting.retain(|waiting| waiting.ticket != ticket);
            self.grant_what_fits(&mut state)
        };
        deliver(granted);
    }

    #[must_use]
    fn grant_what_fits(&self, state: &mut State) -> Vec<Granted> {
        let mut granted = Vec::new();
        while let Some(first) = state.waiting.front()
            && state.used_bytes + first.bytes <= self.0.limit_bytes
            && let Some(first) = state.waiting.pop_front()
        {
            granted.push(self.grant(state, first));
        }
        self.tell_change(state);
        granted
    }

    #[must_use]
    fn grant(&self, state: &mut State, waiting: Waiting) -> Granted {
        state.used_bytes += waiting.bytes;
        state.tasks += 1;
        self.tell_change(state);
        let reservation = Reservation { budget: self.clone(), holder: Holder::Task, bytes: waiting.bytes };
        (waiting.granted, reservation)
    }

    fn tell_change(&self, state: &mut State) {
        state.changes += 1;
        self.0.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two changes that belong together, so a poisoned state is a sound one.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// How many bytes it holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `bytes` more if they are free and no task waits for them.
    pub fn try_grow(&mut self, bytes: u64) -> bool {
        let mut state = self.budget.lock();
        if !state.waiting.is_empty() || state.used_bytes.saturating_add(bytes) > self.budget.0.limit_bytes {
            return false;
        }
        state.used_bytes += bytes;
        self.bytes += bytes;
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.holder, self.bytes);
    }
}

type Granted = (oneshot::Sender<Reservation>, Reservation);

/// Hands reservations over, without the lock: one whose task has gone is dropped here, and gives its bytes
/// to the next.
fn deliver(granted: Vec<Granted>) {
    for (sender, reservation) in granted {
        drop(sender.send(reservation));
    }
}

/// A place in line, given up when its holder no longer waits.
struct Place<'a> {
    budget: &'a Budget,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.budget.leave_line(self.ticket);
    }
}

/// Collects bytes for as long as the budget allows.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    charge: Reservation,
    full: bool,
}

impl Buffer {
    /// An empty one; `None` if tasks wait for memory.
    pub(super) fn new(budget: &Budget) -> Option<Self> {
        Some(Self { bytes: Vec::new(), charge: budget.try_reserve(0)?, full: false })
    }

    /// Whether a write failed because the budget did.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// The bytes; they count against the budget until the last clone is dropped, a reader's too.
    pub(super) fn freeze(mut self) -> Bytes {
        self.bytes.shrink_to_fit();
        Bytes::from_owner(Charged { bytes: self.bytes, _charge: self.charge })
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.charge.try_grow(bytes.len() as u64) {
            self.full = true;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes bytes that came from elsewhere into the budget, if it allows.
pub(super) fn charge(budget: &Budget, bytes: Bytes) -> Result<Bytes, Bytes> {
    match budget.try_reserve(bytes.len() as u64) {
        Some(charge) => Ok(Bytes::from_owner(Charged { bytes, _charge: charge })),
        None => Err(bytes),
    }
}

struct Charged<B> {
    bytes: B,
    _charge: Reservation,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Charged<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    #[tokio::test]
    async fn reservations_are_granted_in_order_even_when_a_later_one_would_fit() {
        let budget = Budget::new(10);
        let first = budget.reserve(8).await;
        let mut second = Box::pin(budget.reserve(6));
        let mut third = Box::pin(budget.reserve(1));
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none(), "it would fit, but another came first");
        assert!(budget.try_reserve(1).is_none(), "partitions must not take what a task waits for");
        drop(first);
        assert_eq!((second.await.bytes(), third.await.bytes()), (6, 1));
        assert_eq!(budget.used_bytes(), 0);
    }

    #[tokio::test]
    async fn who_stops_waiting_leaves_the_line() {
        let budget = Budget::new(10);
        let first = budget.reserve(8).await;
        let mut second = Box::pin(budget.reserve(10));
        let mut third = Box::pin(budget.reserve(2));
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        assert_eq!(third.await.bytes(), 2);
        drop(first);

        // Granted, and gone before it noticed.
        let first = budget.reserve(8).await;
        let mut second = Box::pin(budget.reserve(10));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        assert_eq!(budget.used_bytes(), 10);
        drop(second);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[tokio::test]
    async fn a_request_beyond_the_limit_runs_alone() {
        let budget = Budget::new(10);
        let small = budget.reserve(1).await;
        let mut large = Box::pin(budget.reserve(1000));
        assert!((&mut large).now_or_never().is_none());
        drop(small);
        let large = large.await;
        assert_eq!(large.bytes(), 10);
        assert!(budget.reserve(1).now_or_never().is_none());
    }

    #[tokio::test]
    async fn with_no_task_running_and_nothing_to_evict_the_first_in_line_is_served() {
        let budget = Budget::new(10);
        let read_slowly = budget.try_reserve(5).unwrap();
        let task = budget.reserve(2).await;
        let mut large = Box::pin(budget.reserve(10));
        assert!((&mut large).now_or_never().is_none());
        assert!(budget.wait_for_shortage());
        budget.nothing_to_evict();
        assert!((&mut large).now_or_never().is_none(), "a task runs, its memory will come back");
        drop(task);
        assert!(budget.wait_for_shortage(), "asked again after a change");
        budget.nothing_to_evict();
        assert_eq!(large.await.bytes(), 10);
        drop(read_slowly);
        budget.close();
        assert!(!budget.wait_for_shortage());
    }

    #[test]
    fn a_buffer_stops_at_the_budget_and_its_bytes_count_until_the_last_reader_is_done() {
        let budget = Budget::new(10);
        let mut buffer = Buffer::new(&budget).unwrap();
        buffer.write_all(b"12345").unwrap();
        assert!(buffer.write_all(b"678901").is_err());
        assert!(buffer.is_full());
        let bytes = buffer.freeze();
        let reader = bytes.slice(1..3);
        drop(bytes);
        assert_eq!((budget.used_bytes(), &reader[..]), (5, &b"23"[..]));
        drop(reader);
        assert_eq!(budget.used_bytes(), 0);
        assert!(charge(&budget, Bytes::from_static(b"12345678901")).is_err());
        let bytes = charge(&budget, Bytes::from_static(b"1234567890")).unwrap();
        assert_eq!((budget.used_bytes(), bytes.len()), (10, 10));
    }

    proptest! {
        /// Whatever comes and goes, the limit holds, the line is in order, and in the end all is free.
        #[test]
        fn the_limit_holds_and_everyone_is_served(requests in prop::collection::vec((0u64..30, any::<bool>()), 1..40)) {
            let budget = Budget::new(20);
            let mut held = VecDeque::new();
            let mut waiting = VecDeque::new();
            for (bytes, release) in requests {
                if release {
                    held.pop_front();
                }
                let budget = budget.clone();
                waiting.push_back(Box::pin(async move { budget.reserve(bytes).await }));
                let mut still = VecDeque::new();
                for mut request in waiting {
                    match (&mut request).now_or_never() {
                        Some(reservation) => {
                            prop_assert!(still.is_empty(), "served before one that came first");
                            held.push_back(reservation);
                        }
                        None => still.push_back(request),
                    }
                }
                waiting = still;
                prop_assert!(held.iter().map(Reservation::bytes).sum::<u64>() <= 20);
            }
            while let Some(mut request) = waiting.pop_front() {
                while (&mut request).now_or_never().map(|r| held.push_back(r)).is_none() {
                    prop_assert!(held.pop_front().is_some(), "nobody holds anything, and one still waits");
                }
            }
            held.clear();
            prop_assert_eq!(budget.used_bytes(), 0);
        }
    }
}
