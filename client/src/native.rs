//! Rust functions on the mesh: native code, and nothing to install on the nodes.
//!
//! The driver's *own executable* travels to the nodes, once to each, and is started there to call what it
//! registered. So `main` begins with [`functions!`](crate::functions), which lists the functions that are to
//! run on the mesh; on a node it serves them and never returns, in the driver it only notes their names.
//!
//! ```no_run
//! # #[cfg(feature = "polars")]
//! # mod example {
//! use floe_client::Mesh;
//! use polars::prelude::*;
//!
//! /// From a frame to a frame; the error may be any that can be shown.
//! fn area(iris: DataFrame) -> PolarsResult<DataFrame> {
//!     iris.lazy().select([col("sepal_length") * col("sepal_width")]).collect()
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     floe_client::functions![area];
//!     let mesh = Mesh::local().await?;
//!     let iris = df!("sepal_length" => [5.1, 4.9, 4.7], "sepal_width" => [3.5, 3.0, 3.2])?;
//!     println!("{}", mesh.parallelize(iris, area, 10).collect().await?);
//!     Ok(())
//! }
//! # }
//! ```
//!
//! | a function | is called by |
//! |---|---|
//! | `fn(DataFrame) -> DataFrame` | `Mesh::parallelize` (feature `polars`) |
//! | `fn(Vec<DataFrame>) -> DataFrame` | `.merge(...)` of it |
//! | `fn(A) -> R` | [`Mesh::map`], [`Mesh::parallel`], [`Mesh::map_reduce`] |
//! | `fn(A) -> Result<R, E>` | [`Mesh::try_map`], [`Mesh::try_parallel`], [`Mesh::map_reduce`] |
//!
//! `A` and `R` are anything that serde writes and reads; several arguments are one tuple. Instead of a
//! `DataFrame` a function may return a `Result` of one. An error, like a panic, becomes a
//! [`Failure::Exception`](crate::Failure::Exception) with its text. What a function prints is in the job's
//! log.
//!
//! A function is a plain `fn` and known by its path: closures cannot travel. The executable runs on nodes of
//! the CPU and operating system that it was built for, and finds there what it links dynamically; others
//! refuse it with a sentence. It is started without arguments, so `functions!` comes before these are looked
//! at.
//!
//! The modules: `registry` knows the functions and `shape` takes off their types; `host` with `wire`,
//! `connection`, `results`, `progress`, `panics` and `stdio` is what runs on a node; `executable` and the
//! others are the driver's side.

use std::time::Duration;

use crate::job::Job;
#[cfg(doc)]
use crate::mesh::Mesh;

mod calls;
mod connection;
mod executable;
#[cfg(feature = "polars")]
mod frame_file;
mod host;
mod object;
mod panics;
mod parallel;
#[cfg(feature = "polars")]
mod parallelize;
mod progress;
mod reduce;
mod registry;
mod results;
#[doc(hidden)]
pub mod shape;
mod shared;
mod stdio;
#[cfg(test)]
mod tests;
mod wire;

pub use calls::{Calls, Completed};
pub use parallel::{OpenParallel, Parallel, Reply};
#[cfg(feature = "polars")]
pub use parallelize::{FrameJob, Parallelize};
pub use reduce::{MapReduce, Part, Source, ValueJob, Yields};
#[cfg(feature = "polars")]
pub use shape::FrameOutput;
pub use shared::{Shared, SharedError, blob};

/// Registers the functions that are to run on the mesh. In a process that a node started to call them it
/// serves that node, and never returns: it must come before anything else that `main` does. See
/// [`native`](crate::native).
///
/// ```no_run
/// fn primes(below: u64) -> Vec<u64> {
///     (2..below).filter(|n| (2..*n).all(|d| n % d != 0)).collect()
/// }
///
/// # async fn example() -> floe_client::Result<()> {
/// floe_client::functions![primes];
/// # let mesh = floe_client::Mesh::local().await?;
/// # assert_eq!(mesh.parallel(primes).await?.call(10).await?, [2, 3, 5, 7]);
/// # Ok(())
/// # }
/// ```
#[macro_export]
macro_rules! functions {
    ($($function:path),+ $(,)?) => {{
        #[allow(unused_imports)]
        use $crate::native::shape::{
            IgnoreFallible as _, IgnoreFrame as _, IgnoreMerge as _, IgnoreValue as _, RegisterFallible as _,
            RegisterFrame as _, RegisterMerge as _, RegisterValue as _,
        };
        $(
            let probe = $crate::native::shape::Probe($function);
            (&probe).value();
            (&probe).fallible();
            (&probe).frame();
            (&probe).merge();
        )+
        $crate::native::begin();
    }};
}

/// Serves the node that started this process, if one did, and then ends it.
#[doc(hidden)]
pub fn begin() {
    if host::is_host() {
        host::serve_and_exit();
    }
}

/// The methods of builders that say what one call may take.
macro_rules! limit_methods {
    () => {
        /// How much memory a process that calls the function may take: a slot's share of its node's unless
        /// set.
        pub fn memory_limit(mut self, bytes: u64) -> Self {
            self.limits.memory_bytes = Some(bytes);
            self
        }

        /// How long one call may take: without a limit unless set.
        pub fn time_limit(mut self, time: std::time::Duration) -> Self {
            self.limits.time_ms = Some(crate::native::millis(time));
            self
        }
    };
}

use limit_methods;

/// A duration as limits are given.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Frees a job's result, which has been read or never will be: nobody else knows the job's id.
async fn release(job: &Job) {
    if let Err(error) = job.release().await {
        tracing::debug!(job = %job.id(), %error, "the job could not be released");
    }
}
