//! One maker of an environment at a time: whoever wants it meanwhile waits for the same answer and sees the
//! same progress, and a failure stands for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use floe_protocol::Failure;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::AbortHandle;

use super::Interpreter;

/// How long a failure is the answer to all who ask: the tasks of a job come one after the other, and each
/// would wait for the same error again.
const FAILURE_STANDS: Duration = Duration::from_secs(60);

/// How many lines of progress may wait for one waiter; it misses the oldest beyond it.
const MAX_LINES: usize = 256;

/// What came of making an environment.
pub(super) type Outcome = Result<Interpreter, Failure>;

/// What is being made, and what could not be.
#[derive(Debug)]
pub(super) struct Flights {
    known: Mutex<HashMap<String, Known>>,
    failure_stands: Duration,
}

#[derive(Debug)]
enum Known {
    Begun(Weak<Flight>),
    Failed(Instant, Failure),
}

/// A making that somebody waits for. When the last of them goes, it stops.
#[derive(Debug)]
struct Flight {
    lines: broadcast::Receiver<Arc<str>>,
    outcome: Arc<OnceLock<Outcome>>,
    task: AbortHandle,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where a maker says how far it is.
#[derive(Clone, Debug)]
pub(super) struct Lines(broadcast::Sender<Arc<str>>);

impl Lines {
    pub(super) fn say(&self, line: &str) {
        // Fails when nobody listens.
        let _ = self.0.send(line.into());
    }
}

impl Default for Flights {
    fn default() -> Self {
        Self { known: Mutex::default(), failure_stands: FAILURE_STANDS }
    }
}

impl Flights {
    /// The outcome of what `begin` makes, or of what somebody else began under the same key.
    pub(super) async fn outcome<F>(
        self: &Arc<Self>,
        key: &str,
        say: &(dyn Fn(&str) + Sync),
        begin: impl FnOnce(Lines) -> F + Send,
    ) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let (flight, mut lines) = self.join(key, begin)?;
        loop {
            match lines.recv().await {
                Ok(line) => say(&line),
                Err(RecvError::Lagged(missed)) => say(&format!("({missed} lines left out)")),
                Err(RecvError::Closed) => break,
            }
        }
        flight.outcome.get().cloned().unwrap_or_else(|| {
            Err(Failure::Internal { message: "the making of an environment broke off".to_owned() })
        })
    }

    fn join<F>(
        self: &Arc<Self>,
        key: &str,
        begin: impl FnOnce(Lines) -> F,
    ) -> Result<(Arc<Flight>, broadcast::Receiver<Arc<str>>), Failure>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut known = self.lock();
        known.retain(|_, known| match known {
            Known::Begun(flight) => flight.strong_count() > 0,
            Known::Failed(since, _) => since.elapsed() < self.failure_stands,
        });
        match known.get(key) {
            Some(Known::Failed(_, failure)) => return Err(failure.clone()),
            Some(Known::Begun(flight)) => {
                if let Some(flight) = flight.upgrade() {
                    let lines = flight.lines.resubscribe();
                    return Ok((flight, lines));
                }
            }
            None => {}
        }
        let (sender, receiver) = broadcast::channel(MAX_LINES);
        let lines = receiver.resubscribe();
        let outcome = Arc::new(OnceLock::new());
        let making = begin(Lines(sender.clone()));
        let task = tokio::spawn({
            let (flights, key, outcome) = (Arc::clone(self), key.to_owned(), Arc::clone(&outcome));
            async move {
                let made = making.await;
                if let Err(failure) = &made {
                    flights.lock().insert(key, Known::Failed(Instant::now(), failure.clone()));
                }
                let _ = outcome.set(made);
                // The waiters look at the outcome when there is nothing more to be said.
                drop(sender);
            }
        });
        let flight = Arc::new(Flight { lines: receiver, outcome, task: task.abort_handle() });
        known.insert(key.to_owned(), Known::Begun(Arc::downgrade(&flight)));
        Ok((flight, lines))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        // Every change to the map is one call, so a poisoned one is a sound one.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt;
    use futures::future::join_all;
    use tokio::sync::oneshot;
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    fn failure(message: &str) -> Failure {
        Failure::Refused { message: message.to_owned() }
    }

    /// Asks three times at once, and then once more.
    async fn ask_four_times(flights: Flights) -> (Vec<Outcome>, Vec<String>) {
        let flights = Arc::new(flights);
        let made = AtomicUsize::new(0);
        let seen = Mutex::new(Vec::new());
        let say = |line: &str| seen.lock().unwrap().push(line.to_owned());
        let ask = || {
            flights.outcome("key", &say, |lines| {
                let nth = made.fetch_add(1, Ordering::SeqCst);
                async move {
                    lines.say("line");
                    Err(failure(&format!("failure {nth}")))
                }
            })
        };
        let mut outcomes = join_all([ask(), ask(), ask()]).await;
        outcomes.push(ask().await);
        let seen = seen.lock().unwrap().clone();
        (outcomes, seen)
    }

    #[tokio::test]
    async fn all_get_one_failure_and_it_stands_for_a_while() {
        let (outcomes, lines) = ask_four_times(Flights::default()).await;
        let messages: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap_err().to_string()).collect();
        assert_eq!(messages, ["failure 0"; 4]);
        assert_eq!(lines, ["line"; 3], "one for each that waited");
        let at_once = Flights { failure_stands: Duration::ZERO, ..Flights::default() };
        let (outcomes, _) = ask_four_times(at_once).await;
        assert_eq!(outcomes[3].as_ref().unwrap_err().to_string(), "failure 1");
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_stopped_and_begun_anew() {
        let flights = Arc::new(Flights::default());
        let (dropped, mut stopped) = oneshot::channel::<()>();
        let say = |_: &str| {};
        {
            let first = flights.outcome("key", &say, |_| async move {
                let _dropped = dropped;
                std::future::pending().await
            });
            let second = flights.outcome("key", &say, |_| async { panic!("begun twice") });
            let (mut first, mut second) = (Box::pin(first), Box::pin(second));
            assert!((&mut first).now_or_never().is_none());
            assert!((&mut second).now_or_never().is_none());
            drop(first);
            tokio::task::yield_now().await;
            assert!(second.now_or_never().is_none());
            assert_eq!(stopped.try_recv(), Err(TryRecvError::Empty));
        }
        stopped.await.unwrap_err();
        let outcome = flights.outcome("key", &say, |_| async { Err(failure("again")) }).await;
        assert_eq!(outcome.unwrap_err(), failure("again"));
    }

    #[tokio::test]
    async fn a_maker_that_panics_is_a_failure() {
        let flights = Arc::new(Flights::default());
        let broken = || async { panic!("on purpose") };
        let outcome = flights.outcome("key", &|_: &str| {}, |_| broken()).await;
        assert!(matches!(outcome.unwrap_err(), Failure::Internal { .. }));
    }
}
