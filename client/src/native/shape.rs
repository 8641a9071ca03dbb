//! The shapes that functions may have, and how their types are taken off.
//!
//! What [`functions!`](crate::functions) does with each function: it calls `frame`, `merge`, `value` and
//! `fallible` on a [`Probe`] of it. Each of these names is a method of two traits, of which one is
//! implemented for the probe of a function of that shape and the other, which does nothing, for a reference
//! to any probe. The compiler takes the first where it can.

use std::any::{TypeId, type_name};
use std::fmt::Display;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::object;
use super::registry::{Callable, Shape, functions};
use super::wire::Raised;

/// A function to be registered.
#[derive(Clone, Copy, Debug)]
pub struct Probe<F>(pub F);

impl<F: 'static> Probe<F> {
    fn register(&self, shape: Shape, callable: Callable) {
        functions().add(shape, type_name::<F>(), TypeId::of::<F>(), callable);
    }
}

/// The values of functions from values to values.
fn value_function<A: DeserializeOwned, R: Serialize>(
    call: impl Fn(A) -> Result<R, Raised> + Send + Sync + 'static,
) -> Callable {
    Callable::Value(Box::new(move |argument| {
        let argument =
            object::decode(argument).map_err(|error| Raised::new(&format!("the argument: {error}")))?;
        let value = call(argument)?;
        object::encode(&value).map_err(|error| Raised::new(&format!("the returned value: {error}")))
    }))
}

/// An error as people are to read it: with its causes, where `{:#}` tells them.
fn raised(error: &impl Display) -> Raised {
    Raised::new(&format!("{error:#}"))
}

/// Registers a function from value to value.
pub trait RegisterValue<M> {
    /// Registers it.
    fn value(&self);
}

/// Registers nothing.
pub trait IgnoreValue {
    /// Does nothing.
    fn value(&self) {}
}

impl<F, A, R> RegisterValue<(A, R)> for Probe<F>
where
    F: Fn(A) -> R + Copy + Send + Sync + 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    fn value(&self) {
        let function = self.0;
        self.register(Shape::Value, value_function(move |argument| Ok(function(argument))));
    }
}

impl<F> IgnoreValue for &Probe<F> {}

/// Registers a function from value to value or error.
pub trait RegisterFallible<M> {
    /// Registers it.
    fn fallible(&self);
}

/// Registers nothing.
pub trait IgnoreFallible {
    /// Does nothing.
    fn fallible(&self) {}
}

impl<F, A, R, E> RegisterFallible<(A, R, E)> for Probe<F>
where
    F: Fn(A) -> Result<R, E> + Copy + Send + Sync + 'static,
    A: DeserializeOwned,
    R: Serialize,
    E: Display,
{
    fn fallible(&self) {
        let function = self.0;
        let call = move |argument| function(argument).map_err(|error| raised(&error));
        self.register(Shape::Fallible, value_function(call));
    }
}

impl<F> IgnoreFallible for &Probe<F> {}

/// Registers a function from frame to frame.
pub trait RegisterFrame<M> {
    /// Registers it.
    fn frame(&self);
}

/// Registers nothing.
pub trait IgnoreFrame {
    /// Does nothing.
    fn frame(&self) {}
}

impl<F> IgnoreFrame for &Probe<F> {}

/// Registers a function from frames to a frame.
pub trait RegisterMerge<M> {
    /// Registers it.
    fn merge(&self);
}

/// Registers nothing.
pub trait IgnoreMerge {
    /// Does nothing.
    fn merge(&self) {}
}

impl<F> IgnoreMerge for &Probe<F> {}

#[cfg(feature = "polars")]
mod frames {
    use polars::prelude::DataFrame;

    use super::*;
    use crate::native::frame_file;
    use crate::native::registry::FrameFile;

    /// What a function that makes a frame may return: a `DataFrame`, or a `Result` of one with any error that
    /// can be shown.
    pub trait FrameOutput: sealed::Sealed {
        #[doc(hidden)]
        fn into_frame(self) -> Result<DataFrame, String>;
    }

    mod sealed {
        pub trait Sealed {}
    }

    impl sealed::Sealed for DataFrame {}

    impl FrameOutput for DataFrame {
        fn into_frame(self) -> Result<DataFrame, String> {
            Ok(self)
        }
    }

    impl<E> sealed::Sealed for Result<DataFrame, E> {}

    impl<E: Display> FrameOutput for Result<DataFrame, E> {
        fn into_frame(self) -> Result<DataFrame, String> {
            self.map_err(|error| format!("{error:#}"))
        }
    }

    fn written(output: impl FrameOutput) -> Result<FrameFile, Raised> {
        let frame = output.into_frame().map_err(|error| Raised::new(&error))?;
        let rows = frame.height() as u64;
        let file = frame_file::write(frame)
            .map_err(|error| Raised::new(&format!("the returned frame cannot be written: {error}")))?;
        Ok(FrameFile { file, rows })
    }

    fn read(file: Vec<u8>) -> Result<DataFrame, Raised> {
        frame_file::read(file).map_err(|error| Raised::new(&format!("a partition cannot be read: {error}")))
    }

    impl<F, O> RegisterFrame<O> for Probe<F>
    where
        F: Fn(DataFrame) -> O + Copy + Send + Sync + 'static,
        O: FrameOutput,
    {
        fn frame(&self) {
            let function = self.0;
            let callable = Callable::Frames(Box::new(move |mut files| match (files.pop(), files.len()) {
                (Some(file), 0) => written(function(read(file)?)),
                (_, others) => {
                    let message = format!("a function of one frame was given {} partitions", others + 1);
                    Err(Raised::new(&message))
                }
            }));
            self.register(Shape::Frame, callable);
        }
    }

    impl<F, O> RegisterMerge<O> for Probe<F>
    where
        F: Fn(Vec<DataFrame>) -> O + Copy + Send + Sync + 'static,
        O: FrameOutput,
    {
        fn merge(&self) {
            let function = self.0;
            let callable = Callable::Frames(Box::new(move |files| {
                let frames: Vec<_> = files.into_iter().map(read).collect::<Result<_, _>>()?;
                written(function(frames))
            }));
            self.register(Shape::Merge, callable);
        }
    }
}

#[cfg(feature = "polars")]
pub use frames::FrameOutput;
