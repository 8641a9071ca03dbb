//! A function that is called on the mesh as if it were here: each call is a future.

use std::collections::BTreeMap;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use floe_protocol::function::Limits;
use floe_protocol::session::MAX_CALL_BYTES;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::executable::Registered;
use super::object;
use super::registry::Shape;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::mesh::Mesh;
use crate::session::{CallOutcome, Session};

impl Mesh {
    /// A function to be called on the mesh, again and again and many times at once, in processes that stay: a
    /// call there and back takes less than a millisecond. The function must have been registered with
    /// [`functions!`](crate::functions). If it returns a `Result`, that is what calling it gives; see
    /// [`Mesh::try_parallel`] for errors that are no more than a text.
    ///
    /// ```no_run
    /// # fn primes(below: u64) -> Vec<u64> { vec![below] }
    /// # async fn example(mesh: floe_client::Mesh) -> floe_client::Result<()> {
    /// let primes = mesh.parallel(primes).await?;
    /// let replies: Vec<_> = (100..200).map(|below| primes.call(below)).collect();
    /// for reply in replies {
    ///     println!("{:?}", reply.await?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn parallel<F, A, R>(&self, function: F) -> OpenParallel<A, R>
    where
        F: Fn(A) -> R + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        OpenParallel::new(self, Registered::find(Shape::Value, &function))
    }

    /// Like [`Mesh::parallel`], for a function that returns a `Result`: its error makes the call fail, with
    /// its text in a [`Failure::Exception`](crate::Failure::Exception).
    pub fn try_parallel<F, A, R, E>(&self, function: F) -> OpenParallel<A, R>
    where
        F: Fn(A) -> Result<R, E> + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: std::fmt::Display,
    {
        OpenParallel::new(self, Registered::find(Shape::Fallible, &function))
    }
}

/// A function about to be opened for calls, made by [`Mesh::parallel`]. Awaiting it opens a session.
#[derive(Debug)]
#[must_use = "a function can be called once this was awaited"]
pub struct OpenParallel<A, R> {
    mesh: Mesh,
    function: Result<Registered>,
    limits: Limits,
    types: PhantomData<fn(A) -> R>,
}

impl<A, R> OpenParallel<A, R> {
    fn new(mesh: &Mesh, function: Result<Registered>) -> Self {
        Self { mesh: mesh.clone(), function, limits: Limits::default(), types: PhantomData }
    }

    super::limit_methods!();
}

impl<A: 'static, R: 'static> IntoFuture for OpenParallel<A, R> {
    type Output = Result<Parallel<A, R>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let line = Line::open(&self.mesh, self.function?, self.limits).await?;
            Ok(Parallel { line, types: PhantomData })
        })
    }
}

/// A function on the mesh, opened by awaiting [`Mesh::parallel`]. Cloning it is cheap and shares the session,
/// which is closed once all clones and replies are gone.
#[derive(Debug)]
pub struct Parallel<A, R> {
    line: Arc<Line>,
    types: PhantomData<fn(A) -> R>,
}

impl<A, R> Clone for Parallel<A, R> {
    fn clone(&self) -> Self {
        Self { line: self.line.clone(), types: PhantomData }
    }
}

impl<A, R> Parallel<A, R> {
    /// The session's standing job, whose logs are what the calls printed.
    pub fn job(&self) -> Job {
        self.line.session.mesh().job(self.line.session.id())
    }

    /// Ends the session, for all clones and for replies that are awaited, and waits for the mesh to hear of it. Not
    /// needed where the program goes on: dropping does the same in the background.
    pub async fn close(self) -> Result<()> {
        self.line.session.close().await
    }
}

impl<A: Serialize, R: DeserializeOwned> Parallel<A, R> {
    /// Calls the function on any node. The call is on its way at once, whether or not its reply is awaited.
    pub fn call(&self, argument: A) -> Reply<R> {
        let state = match argument_bytes(&argument).and_then(|bytes| self.line.call(bytes)) {
            Ok((id, outcome)) => State::UnderWay { line: self.line.clone(), id, outcome },
            Err(error) => State::Refused(Some(error)),
        };
        Reply { state, value: PhantomData }
    }
}

/// An argument as calls carry it.
pub(super) fn argument_bytes<A: Serialize>(argument: &A) -> Result<Vec<u8>> {
    let bytes = object::encode(argument).map_err(|error| Error::Local(format!("an argument: {error}")))?;
    if bytes.len() > MAX_CALL_BYTES {
        return Err(Error::Local(format!(
            "an argument of {} bytes is more than a call takes, {MAX_CALL_BYTES}: put what is large into the \
             mesh with `Mesh::share`, and pass that",
            bytes.len()
        )));
    }
    Ok(bytes)
}

/// What a call that ended comes to.
pub(super) fn value_of<R: DeserializeOwned>(outcome: CallOutcome) -> Result<R> {
    let bytes = outcome.outcome.map_err(Error::Failure)?;
    object::decode(&bytes).map_err(|error| Error::Local(format!("a result: {error}")))
}

/// A call that is under way, made by [`Parallel::call`]. It is a future of the result; dropping it cancels
/// the call, unless it runs already.
#[derive(Debug)]
#[must_use = "a call whose reply is dropped is cancelled"]
pub struct Reply<R> {
    state: State,
    value: PhantomData<fn() -> R>,
}

#[derive(Debug)]
enum State {
    UnderWay {
        line: Arc<Line>,
        id: u64,
        outcome: oneshot::Receiver<Result<CallOutcome>>,
    },
    /// It was never made, or the reply was given.
    Refused(Option<Error>),
}

impl<R: DeserializeOwned> Future for Reply<R> {
    type Output = Result<R>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let over = || Error::Local("the reply of a call was given before".to_owned());
        let outcome = match &mut self.state {
            State::UnderWay { outcome, .. } => match Pin::new(outcome).poll(context) {
                Poll::Ready(Ok(outcome)) => outcome,
                // Who answers is gone, and with it the session.
                Poll::Ready(Err(_)) => Err(Error::Local("the session of a call is over".to_owned())),
                Poll::Pending => return Poll::Pending,
            },
            State::Refused(error) => return Poll::Ready(Err(error.take().unwrap_or_else(over))),
        };
        self.state = State::Refused(None);
        Poll::Ready(outcome.and_then(value_of))
    }
}

impl<R> Drop for Reply<R> {
    fn drop(&mut self) {
        if let State::UnderWay { line, id, outcome } = &mut self.state
            && matches!(outcome.try_recv(), Err(oneshot::error::TryRecvError::Empty))
        {
            line.forget(*id);
        }
    }
}

/// One session with one function, and who waits for which call.
#[derive(Debug)]
struct Line {
    session: Arc<Session>,
    function: u32,
    waiting: Mutex<Waiting>,
    /// Hands results to those who wait for them.
    _clerk: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct Waiting {
    next_id: u64,
    replies: BTreeMap<u64, oneshot::Sender<Result<CallOutcome>>>,
    /// Nobody hands out results any more.
    over: bool,
}

impl Line {
    async fn open(mesh: &Mesh, function: Registered, limits: Limits) -> Result<Arc<Self>> {
        let label = function.name().to_owned();
        let function = function.on(mesh, limits).await?;
        let session = Arc::new(mesh.session(label).await?);
        let function = session.define(function).await?;
        Ok(Arc::new_cyclic(|line| {
            let clerk = tokio::spawn(hand_out(session.clone(), line.clone()));
            let waiting = Mutex::default();
            Self { session, function, waiting, _clerk: AbortOnDropHandle::new(clerk) }
        }))
    }

    fn call(&self, argument: Vec<u8>) -> Result<(u64, oneshot::Receiver<Result<CallOutcome>>)> {
        let (reply, outcome) = oneshot::channel();
        let mut waiting = self.waiting();
        let id = waiting.next_id;
        // Under the lock, so that a session which ends meanwhile either refuses the call or answers it.
        self.session.call(self.function, id, argument.into(), None)?;
        if waiting.over {
            return Err(Error::Local("the session of a call is over".to_owned()));
        }
        waiting.next_id += 1;
        waiting.replies.insert(id, reply);
        Ok((id, outcome))
    }

    fn forget(&self, id: u64) {
        self.waiting().replies.remove(&id);
        self.session.cancel(&[id]);
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Every step leaves it whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands results out until the session is over or nobody is left to call.
async fn hand_out(session: Arc<Session>, line: Weak<Line>) {
    loop {
        let results = session.results().await;
        let Some(line) = line.upgrade() else { return };
        match results {
            Ok(results) => {
                let mut waiting = line.waiting();
                for outcome in results {
                    if let Some(reply) = waiting.replies.remove(&outcome.id) {
                        // Who dropped the reply does not want it.
                        let _ = reply.send(Ok(outcome));
                    }
                }
            }
            Err(error) => {
                let text = error.to_string();
                let mut waiting = line.waiting();
                waiting.over = true;
                for reply in std::mem::take(&mut waiting.replies).into_values() {
                    let _ = reply.send(Err(Error::Local(text.clone())));
                }
                return;
            }
        }
    }
}
