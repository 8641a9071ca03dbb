//! Map and reduce over a source that the nodes make or read themselves.

use std::fmt::Display;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::ops::Range;
use std::pin::Pin;

use floe_protocol::function::{Argument, FunctionInput, FunctionJob, Limits, MAX_TASKS, Merge, Payload};
use futures::TryStreamExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::executable::Registered;
use super::object;
use super::registry::Shape;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::mesh::Mesh;
use crate::partitions::object_of;

/// Into how many parts a source is cut for each slot of the mesh, unless said otherwise: enough that no node
/// waits long for the last one.
const PARTS_PER_SLOT: u64 = 4;

/// How many values are reduced at once.
const FAN_IN: u32 = 16;

/// Data that is known by its length and read in pieces where it is needed. What travels is the source itself,
/// as serde writes it: a range, a path, a query; not the data.
pub trait Source: Serialize {
    /// What reading gives.
    type Block;

    /// How many items it has.
    fn len(&self) -> u64;

    /// The items from `offset` on, `limit` of them.
    fn read(&self, offset: u64, limit: u64) -> Self::Block;

    /// Whether it has none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The numbers themselves.
impl Source for Range<u64> {
    type Block = Range<u64>;

    fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    fn read(&self, offset: u64, limit: u64) -> Self::Block {
        let start = self.start.saturating_add(offset).min(self.end);
        start..start.saturating_add(limit).min(self.end)
    }
}

/// A part of a source: what one call of the mapping function is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part<S> {
    /// The whole.
    pub source: S,
    /// The first item of this part.
    pub offset: u64,
    /// How many it has.
    pub limit: u64,
}

impl<S: Source> Part<S> {
    /// Reads it.
    pub fn read(&self) -> S::Block {
        self.source.read(self.offset, self.limit)
    }
}

/// What a mapping or reducing function may return for a value of type `T`: that, or a `Result` of it with any
/// error that can be shown. The parameter `M` tells the two apart and is found by the compiler.
pub trait Yields<T, M> {
    #[doc(hidden)]
    const SHAPE: Shape;
}

/// It returns the value.
#[derive(Debug)]
pub struct Plain;

/// It returns the value or an error.
#[derive(Debug)]
pub struct OrError;

impl<T> Yields<T, Plain> for T {
    const SHAPE: Shape = Shape::Value;
}

impl<T, E: Display> Yields<T, OrError> for Result<T, E> {
    const SHAPE: Shape = Shape::Fallible;
}

impl Mesh {
    /// Calls one function for each part of a source, and another that makes one value of several, until one
    /// is left: all on the nodes, as a tree and in order. Both must have been registered with
    /// [`functions!`](crate::functions). Awaiting this submits it and gives the value.
    ///
    /// ```no_run
    /// use std::ops::Range;
    ///
    /// use floe_client::native::Part;
    ///
    /// fn squares(part: Part<Range<u64>>) -> u64 {
    ///     part.read().map(|n| n * n).sum()
    /// }
    ///
    /// fn total(sums: Vec<u64>) -> u64 {
    ///     sums.into_iter().sum()
    /// }
    ///
    /// # async fn example(mesh: floe_client::Mesh) -> floe_client::Result<()> {
    /// let sum = mesh.map_reduce(0..1_000_000, squares, total).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn map_reduce<S, T, F, G, O, P, M, N>(&self, source: S, map: F, reduce: G) -> MapReduce<S, T>
    where
        S: Source + DeserializeOwned,
        T: Serialize + DeserializeOwned,
        F: Fn(Part<S>) -> O + 'static,
        G: Fn(Vec<T>) -> P + 'static,
        O: Yields<T, M>,
        P: Yields<T, N>,
    {
        MapReduce {
            mesh: self.clone(),
            source,
            map: Registered::find(O::SHAPE, &map),
            reduce: Registered::find(P::SHAPE, &reduce),
            parts: None,
            limits: Limits::default(),
            label: None,
            value: PhantomData,
        }
    }
}

/// Map and reduce over a source, made by [`Mesh::map_reduce`]. Awaiting it submits it and waits for the
/// value.
#[derive(Debug)]
#[must_use = "map and reduce is submitted when it is awaited"]
pub struct MapReduce<S, T> {
    mesh: Mesh,
    source: S,
    map: Result<Registered>,
    reduce: Result<Registered>,
    parts: Option<u64>,
    limits: Limits,
    label: Option<String>,
    value: PhantomData<fn() -> T>,
}

impl<S: Source, T: DeserializeOwned> MapReduce<S, T> {
    /// Into how many parts the source is cut, or as many as it has items: four for each slot of the mesh
    /// unless set.
    pub fn parts(mut self, parts: u64) -> Self {
        self.parts = Some(parts);
        self
    }

    super::limit_methods!();

    /// What `floe jobs` shows; the mapping function's name unless set.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Submits it without waiting.
    pub async fn submit(self) -> Result<ValueJob<T>> {
        let (map, reduce) = (self.map?, self.reduce?);
        let label = self.label.unwrap_or_else(|| map.name().to_owned());
        let length = self.source.len();
        if length == 0 {
            return Err(Error::Local(format!("{label} over an empty source: there is nothing to reduce")));
        }
        let parts = match self.parts {
            Some(0) => {
                let message = format!("{label} over 0 parts of a source: there must be at least 1");
                return Err(Error::Local(message));
            }
            Some(parts) if parts.min(length) > MAX_TASKS as u64 => {
                let message = format!("{label} over {parts} parts: a job has {MAX_TASKS} at most");
                return Err(Error::Local(message));
            }
            Some(parts) => parts,
            None => (slots(&self.mesh).await? * PARTS_PER_SLOT).clamp(1, MAX_TASKS as u64),
        };
        let mut part = Part { source: self.source, offset: 0, limit: 0 };
        let mut arguments = Vec::new();
        for (offset, limit) in cut(length, parts) {
            (part.offset, part.limit) = (offset, limit);
            let argument = object::encode(&part)
                .map_err(|error| Error::Local(format!("the source of {label}: {error}")))?;
            arguments.push(Argument::Payload(Payload::Inline(argument.into())));
        }
        let reduce = Merge { function: reduce.on(&self.mesh, self.limits).await?, fan_in: FAN_IN };
        let function = map.on(&self.mesh, self.limits).await?;
        let job = FunctionJob { function, input: FunctionInput::Arguments(arguments), merge: Some(reduce) };
        Ok(ValueJob { job: self.mesh.run_function(label, job).await?, value: PhantomData })
    }
}

impl<S, T> IntoFuture for MapReduce<S, T>
where
    S: Source + Send + 'static,
    T: DeserializeOwned + Send + 'static,
{
    type Output = Result<T>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let job = self.submit().await?;
            let value = job.value().await;
            super::release(job.job()).await;
            value
        })
    }
}

/// A job whose result is one value. Dropping the handle leaves the job alone.
#[derive(Debug)]
pub struct ValueJob<T> {
    job: Job,
    value: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> ValueJob<T> {
    /// The job: its id, its status, its progress, cancelling and releasing it.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Waits until it succeeded, and gives the value.
    pub async fn value(&self) -> Result<T> {
        let mut partitions = self.job.partitions();
        let partition = partitions.try_next().await?.unwrap_or_default();
        if partitions.try_next().await?.is_some() {
            return Err(Error::Local("the result has more values than one".to_owned()));
        }
        let object = object_of(&partition)?
            .ok_or_else(|| Error::Local("the result is a frame instead of a value".to_owned()))?;
        object::decode(&object).map_err(|error| Error::Local(format!("the result: {error}")))
    }
}

/// Parts of a source, as equal as can be and never empty.
fn cut(length: u64, parts: u64) -> impl Iterator<Item = (u64, u64)> {
    let parts = parts.min(length).max(1);
    let (size, longer) = (length / parts, length % parts);
    (0..parts).map(move |part| (part * size + part.min(longer), size + u64::from(part < longer)))
}

/// How many tasks the mesh runs at once.
async fn slots(mesh: &Mesh) -> Result<u64> {
    let nodes = mesh.status().await?.nodes;
    Ok(nodes.iter().filter(|node| node.alive).map(|node| u64::from(node.member.slots)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_cut_whole_and_in_order() {
        for (length, parts) in [(10, 3), (3, 10), (1, 1), (1000, 7), (7, 7)] {
            let source = 5..5 + length;
            let read: Vec<u64> = cut(length, parts)
                .flat_map(|(offset, limit)| {
                    assert!(limit > 0);
                    Part { source: source.clone(), offset, limit }.read()
                })
                .collect();
            assert_eq!(read, source.collect::<Vec<_>>(), "{length} in {parts}");
            assert_eq!(cut(length, parts).count() as u64, parts.min(length));
        }
    }

    #[test]
    fn functions_may_return_the_value_or_a_result_of_it() {
        fn shape<T, O: Yields<T, M>, M>(_: fn(Part<Range<u64>>) -> O, _: fn(Vec<T>) -> T) -> Shape {
            O::SHAPE
        }
        let total = |sums: Vec<u64>| sums.iter().sum();
        assert_eq!(shape(|part| part.limit, total), Shape::Value);
        assert_eq!(shape(|part| Ok::<_, String>(part.limit), total), Shape::Fallible);
    }
}
