//! Queries: from a Polars plan or SQL text to a graph of stages, and running one task of a stage.
//!
//! This crate knows Polars and no network. Read it in the order a query goes:
//!
//! ```text
//!   sql.rs        text -> LazyFrame: `plan_sql`; its parts are in sql/
//!   plan.rs       query -> optimized Polars IR: `paths`, `plan`
//!     plan/         plans of other versions: msgpack.rs, translate.rs; queries.rs in SQL within plans;
//!                   schema.rs, what their driver expects
//!   paths.rs      what a path stands for: a file, a directory, a pattern
//!   files.rs      whether two nodes see the same file, how a scan is split
//!   stages.rs     IR -> stages: where a plan is cut, and how rows move between the pieces
//!   adapt.rs        operators that the optimizer chose for one process, as a mesh runs them
//!   separable.rs    which expressions see one row at a time, so that rows may be split among tasks
//!   codes.rs        which expressions read the numbers of categories, which each process gives by itself
//!   aggregate.rs    which aggregates have a partial form
//!   fragment.rs   a stage's work as bytes, and running it on one task's inputs: `run`
//!   exchange.rs     rows of a task's output into buckets, by hash or by range
//!   explain.rs    the graph as text
//!   depth.rs      how deep a query may be
//!   stack.rs      where all of this runs: plans may be deep
//! ```
//!
//! **Invariant.** A plan returns what Polars on one machine returns, its order included where Polars promises
//! one. An operator is split among tasks only where that is shown to hold; all others run as one task, and the
//! stage says why ([`floe_protocol::Stage::single_because`]).
//!
//! **Invariant.** Nothing here waits, dials or keeps state between calls: planning and running are functions of
//! their arguments and of the files they name.

mod adapt;
mod aggregate;
mod codes;
mod depth;
mod exchange;
mod explain;
mod files;
mod fragment;
mod paths;
mod plan;
mod separable;
mod sql;
mod stack;
mod stages;

use floe_protocol::Failure;
use polars::prelude::PolarsError;

pub use explain::explain;
pub use files::{inspect, verify};
pub use fragment::{Stop, run, run_until};
pub use plan::{Planned, Shape, paths, plan, resolve};
pub use sql::plan_sql;
pub use stack::{DEEP_STACK_BYTES, THREAD_STACK_BYTES, configure_thread_stacks, on_deep_stack};

/// Sends Polars' warnings to the log instead of stderr: they are about the query, and the node that plans it is
/// not where its author looks. To be called once by a process that plans or runs queries.
pub fn log_polars_warnings() {
    polars::error::set_warning_function(
        |warning, _| tracing::info!(target: "floe_query::polars", "{warning}"),
    );
}

/// Polars' own message, once: without the plan that it prints beneath some of them, and without our wrapping.
fn query_failure(error: PolarsError) -> Failure {
    let text = error.to_string();
    let end = text.find("\n\nResolved plan until failure").unwrap_or(text.len());
    Failure::Query { message: readable(text[..end].trim()) }
}

/// A message without names that Polars makes up.
fn readable(message: &str) -> String {
    /// What an expression is called that occurs in a query more than once.
    const COMMON: &str = "__POLARS_CSER_";
    /// What a subquery in the place of a value becomes.
    const SINGLE: &str = "aggregation 'item' expected no or a single value, got ";
    if let Some(values) = message.strip_prefix(SINGLE) {
        return format!("one value was expected, of a subquery or of item(), and there were {values}");
    }
    // A constant has no column.
    let message = message.replace(" in column 'scalar'", "").replace(" in column 'literal'", "");
    let mut pieces = message.split(COMMON);
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        text.push_str("a common expression");
        text.push_str(piece.trim_start_matches(|c: char| c.is_ascii_alphanumeric()));
    }
    text
}

/// What a caught panic said.
fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a message".to_owned()
    }
}
