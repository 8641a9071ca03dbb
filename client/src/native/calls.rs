//! A function over many items, each a call of its own.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use floe_protocol::function::Limits;
use futures::Stream;
use futures::stream::BoxStream;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::executable::Registered;
use super::parallel::{argument_bytes, value_of};
use super::registry::Shape;
use crate::error::{Error, Result};
use crate::mesh::Mesh;
use crate::session::{CallOutcome, Session};

/// How many items are under way, or wait for one before them, at most: enough that every host has some
/// waiting, few enough that an endless iterator can be mapped.
const MAX_UNDER_WAY: u64 = 8192;

/// How many bytes of arguments are under way.
const MAX_UNDER_WAY_BYTES: usize = 64 << 20;

/// How many items are taken before calling with them: the first results should not wait for the last items.
const BATCH: usize = 256;

impl Mesh {
    /// Calls a function with each item on the nodes, and gives what it returned as a stream in the items'
    /// order, each as soon as it and those before it are there. Items are taken as the nodes get on with
    /// them, so there may be any number. The function must have been registered with
    /// [`functions!`](crate::functions). If it returns a `Result`, that is what the stream gives; see
    /// [`Mesh::try_map`] for errors that are no more than a text.
    ///
    /// ```no_run
    /// # fn primes(below: u64) -> Vec<u64> { vec![below] }
    /// # async fn example(mesh: floe_client::Mesh) -> floe_client::Result<()> {
    /// use futures::{StreamExt, TryStreamExt};
    ///
    /// let all: Vec<Vec<u64>> = mesh.map(primes, 100..200).try_collect().await?;
    ///
    /// let mut completed = mesh.map(primes, 100..200).as_completed();
    /// while let Some((item, primes)) = completed.next().await {
    ///     println!("{item}: {:?}", primes?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn map<F, A, R, I>(&self, function: F, items: I) -> Calls<R>
    where
        F: Fn(A) -> R + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned + Send + 'static,
        I: IntoIterator<Item = A>,
        I::IntoIter: Send + 'static,
    {
        Calls::new(self, Registered::find(Shape::Value, &function), items.into_iter())
    }

    /// Like [`Mesh::map`], for a function that returns a `Result`: its error is that item's, with its text in
    /// a [`Failure::Exception`](crate::Failure::Exception). The stream goes on with the next item.
    pub fn try_map<F, A, R, E, I>(&self, function: F, items: I) -> Calls<R>
    where
        F: Fn(A) -> Result<R, E> + 'static,
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned + Send + 'static,
        E: std::fmt::Display,
        I: IntoIterator<Item = A>,
        I::IntoIter: Send + 'static,
    {
        Calls::new(self, Registered::find(Shape::Fallible, &function), items.into_iter())
    }
}

/// What a function returns for each item, in order; made by [`Mesh::map`]. It begins when it is polled first,
/// and dropping it cancels what is left.
#[must_use = "items are mapped when the stream is polled"]
pub struct Calls<R> {
    mesh: Mesh,
    function: Result<Registered>,
    limits: Limits,
    items: Option<Items>,
    ordered: bool,
    running: Option<BoxStream<'static, (u64, Result<R>)>>,
}

/// Arguments of calls, one after the other.
type Items = Box<dyn Iterator<Item = Result<Vec<u8>>> + Send>;

impl<R: DeserializeOwned + Send + 'static> Calls<R> {
    fn new<A: Serialize>(
        mesh: &Mesh,
        function: Result<Registered>,
        items: impl Iterator<Item = A> + Send + 'static,
    ) -> Self {
        Self {
            mesh: mesh.clone(),
            function,
            limits: Limits::default(),
            items: Some(Box::new(items.map(|item| argument_bytes(&item)))),
            ordered: true,
            running: None,
        }
    }

    super::limit_methods!();

    /// What it returns as it comes, with each item's place, from 0. An error that is no item's own, since the mesh
    /// is lost, comes last and with any place.
    pub fn as_completed(mut self) -> Completed<R> {
        self.ordered = false;
        Completed(self)
    }

    fn poll_pair(&mut self, context: &mut Context<'_>) -> Poll<Option<(u64, Result<R>)>> {
        if let Some(items) = self.items.take() {
            let taken = || Err(Error::Local("the items are being mapped already".to_owned()));
            let function = std::mem::replace(&mut self.function, taken());
            let (mesh, limits, ordered) = (self.mesh.clone(), self.limits, self.ordered);
            self.running = Some(Box::pin(run(mesh, function, limits, items, ordered)));
        }
        match &mut self.running {
            Some(running) => running.as_mut().poll_next(context),
            None => Poll::Ready(None),
        }
    }
}

impl<R: DeserializeOwned + Send + 'static> Stream for Calls<R> {
    type Item = Result<R>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_pair(context).map(|pair| pair.map(|(_, result)| result))
    }
}

impl<R> std::fmt::Debug for Calls<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calls").field("function", &self.function).finish_non_exhaustive()
    }
}

/// What a function returns for each item, as it comes; made by [`Calls::as_completed`].
#[derive(Debug)]
#[must_use = "items are mapped when the stream is polled"]
pub struct Completed<R>(Calls<R>);

impl<R: DeserializeOwned + Send + 'static> Stream for Completed<R> {
    type Item = (u64, Result<R>);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_pair(context)
    }
}

/// Opens a session, and gives what comes of the items.
fn run<R: DeserializeOwned + Send + 'static>(
    mesh: Mesh,
    function: Result<Registered>,
    limits: Limits,
    items: Items,
    ordered: bool,
) -> impl Stream<Item = (u64, Result<R>)> + Send {
    let opening = async move {
        let function = function?;
        let label = function.name().to_owned();
        let function = function.on(&mesh, limits).await?;
        let session = mesh.session(label).await?;
        let function = session.define(function).await?;
        Ok(Running {
            session,
            function,
            window: Window::new(ordered),
            items: Some(items),
            value: PhantomData,
        })
    };
    let state = State::Opening(Box::pin(opening));
    futures::stream::unfold(state, |state| async move {
        let mut running = match state {
            State::Opening(opening) => match opening.await {
                Ok(running) => running,
                Err(error) => return Some(((0, Err(error)), State::Over)),
            },
            State::Running(running) => running,
            State::Over => return None,
        };
        match running.next().await {
            Ok(Some(pair)) => Some((pair, State::Running(running))),
            Ok(None) => {
                // The session has nothing left to do; whether the node heard so is its own affair.
                let _ = running.session.close().await;
                None
            }
            Err(error) => Some(((running.window.next_out, Err(error)), State::Over)),
        }
    })
}

enum State<R> {
    Opening(Pin<Box<dyn Future<Output = Result<Running<R>>> + Send>>),
    Running(Running<R>),
    Over,
}

/// A session at work on items.
struct Running<R> {
    session: Session,
    function: u32,
    window: Window,
    /// Those that are left.
    items: Option<Items>,
    value: PhantomData<fn() -> R>,
}

impl<R: DeserializeOwned> Running<R> {
    async fn next(&mut self) -> Result<Option<(u64, Result<R>)>> {
        loop {
            if let Some((item, ended)) = self.window.pop() {
                return Ok(Some((item, ended.and_then(value_of))));
            }
            self.fill()?;
            if let Some((item, ended)) = self.window.pop() {
                return Ok(Some((item, ended.and_then(value_of))));
            }
            if self.window.under_way.is_empty() {
                return Ok(None);
            }
            for outcome in self.session.results().await? {
                self.window.ended(outcome.id, Ok(outcome));
            }
        }
    }

    /// Calls with as many items as may be under way. An item that cannot be sent has ended with that.
    fn fill(&mut self) -> Result<()> {
        while self.window.has_room() {
            let Some(items) = &mut self.items else { return Ok(()) };
            let mut batch = Vec::new();
            while batch.len() < BATCH && self.window.has_room() {
                match items.next() {
                    Some(Ok(argument)) => {
                        batch.push((self.window.began(argument.len()), Bytes::from(argument)));
                    }
                    Some(Err(error)) => {
                        let item = self.window.began(0);
                        self.window.ended(item, Err(error));
                    }
                    None => {
                        self.items = None;
                        break;
                    }
                }
            }
            self.session.calls(self.function, batch, None)?;
        }
        Ok(())
    }
}

/// Which items are under way, and which have ended but were not given out.
struct Window {
    ordered: bool,
    /// The next item to be called with.
    next_in: u64,
    /// In order: the next item to be given out.
    next_out: u64,
    /// The size of each argument that is under way.
    under_way: BTreeMap<u64, usize>,
    under_way_bytes: usize,
    ended: BTreeMap<u64, Result<CallOutcome>>,
}

impl Window {
    fn new(ordered: bool) -> Self {
        Self {
            ordered,
            next_in: 0,
            next_out: 0,
            under_way: BTreeMap::new(),
            under_way_bytes: 0,
            ended: BTreeMap::new(),
        }
    }

    fn has_room(&self) -> bool {
        let items = self.under_way.len() + self.ended.len();
        (items as u64) < MAX_UNDER_WAY && self.under_way_bytes < MAX_UNDER_WAY_BYTES
    }

    fn began(&mut self, bytes: usize) -> u64 {
        let item = self.next_in;
        self.next_in += 1;
        self.under_way.insert(item, bytes);
        self.under_way_bytes += bytes;
        item
    }

    fn ended(&mut self, item: u64, outcome: Result<CallOutcome>) {
        if let Some(bytes) = self.under_way.remove(&item) {
            self.under_way_bytes -= bytes;
            self.ended.insert(item, outcome);
        }
    }

    fn pop(&mut self) -> Option<(u64, Result<CallOutcome>)> {
        let first = self.ended.first_entry()?;
        if self.ordered && *first.key() != self.next_out {
            return None;
        }
        self.next_out = *first.key() + 1;
        Some(first.remove_entry())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(id: u64) -> Result<CallOutcome> {
        Ok(CallOutcome { id, outcome: Ok(Bytes::new()), node: None, elapsed_us: 0 })
    }

    #[test]
    fn items_are_given_out_in_order_or_as_they_come() {
        for ordered in [true, false] {
            let mut window = Window::new(ordered);
            let items: Vec<_> = (0..3).map(|_| window.began(10)).collect();
            assert_eq!((items, window.under_way_bytes), (vec![0, 1, 2], 30));
            window.ended(2, outcome(2));
            window.ended(2, outcome(2));
            assert_eq!(window.pop().map(|(item, _)| item), (!ordered).then_some(2));
            window.ended(0, outcome(0));
            window.ended(1, outcome(1));
            let left: Vec<_> = std::iter::from_fn(|| window.pop()).map(|(item, _)| item).collect();
            assert_eq!(left, if ordered { vec![0, 1, 2] } else { vec![0, 1] });
            assert_eq!(window.under_way_bytes, 0);
        }
    }

    #[test]
    fn one_slow_item_does_not_let_the_others_pile_up_for_ever() {
        let mut window = Window::new(true);
        while window.has_room() {
            let item = window.began(1);
            if item > 0 {
                window.ended(item, outcome(item));
            }
        }
        assert_eq!(window.next_in, MAX_UNDER_WAY);
        let mut window = Window::new(false);
        window.began(MAX_UNDER_WAY_BYTES);
        assert!(!window.has_room());
    }
}
