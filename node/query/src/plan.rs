//! A query to a stage graph: parse, resolve against the files of this machine, optimize, cut.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use floe_protocol::message::FileMark;
use floe_protocol::{Failure, Query, StageGraph, StageId};
use polars::prelude::*;
use polars_plan::dsl::{DslPlan, PlanSerializationContext, ScanSources};
use polars_plan::frame::OptFlags;
use polars_plan::plans::IRPlan;
use serde::{Deserialize, Serialize};

use crate::depth;
use crate::files;
use crate::sql::{Sql, absolute};
use crate::stack::on_deep_stack;
use crate::stages;
use crate::{panic_message, query_failure};

/// What the planner needs to know of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Task slots of all live nodes together.
    pub slots: u32,
    /// Wanted input of one task, uncompressed, from the smallest node's memory.
    pub task_bytes: u64,
}

/// A planned query.
#[derive(Debug)]
pub struct Planned {
    /// The stages.
    pub graph: StageGraph,
    /// The content of [`floe_protocol::Work::Held`] stages, by stage and partition: the caller stores it and
    /// fills in where it lies.
    pub frames: Vec<(StageId, u32, DataFrame)>,
    /// The files that each scanning stage reads: the caller asks other nodes for them and fills in who sees
    /// them ([`floe_protocol::Stage::seen_by`]).
    pub scans: Vec<(StageId, Vec<FileMark>)>,
}

/// Paths that a query scans, absolute, with globs and directories as written. No file is looked at.
pub fn paths(query: &Query) -> Result<Vec<String>, Failure> {
    on_deep_stack(|| match query {
        Query::Sql { text, tables, directory } => Ok(Sql::parse(text, tables, directory)?.paths()),
        Query::Plan { dsl, directory } => Ok(read_plan(dsl, directory)?.1),
    })
}

/// Plans a query whose files this machine sees: types are taken from them.
pub fn plan(query: &Query, shape: &Shape) -> Result<Planned, Failure> {
    let planned = catch_unwind(AssertUnwindSafe(|| on_deep_stack(|| plan_query(query, shape))));
    planned.unwrap_or_else(|panic| {
        let message = format!("Polars panicked while planning: {}", panic_message(&*panic));
        Err(Failure::Query { message })
    })
}

fn plan_query(query: &Query, shape: &Shape) -> Result<Planned, Failure> {
    match query {
        Query::Sql { text, tables, directory } => {
            let sql = Sql::parse(text, tables, directory)?;
            let files = find(&sql.paths())?;
            // Polars SQL reads schemas while it translates, so its errors may be about a file too.
            let ir = sql.frame().and_then(optimize).map_err(|failure| name_file(failure, &files))?;
            stages::cut(ir, shape)
        }
        Query::Plan { dsl, directory } => {
            let (plan, paths) = read_plan(dsl, directory)?;
            let files = find(&paths)?;
            let ir = optimize(LazyFrame::from(plan)).map_err(|failure| name_file(failure, &files))?;
            stages::cut(ir, shape)
        }
    }
}

/// Common subplans are not shared: a stage graph has no place to keep one, and each use is cut on its own.
fn optimize(frame: LazyFrame) -> Result<IRPlan, Failure> {
    let flags = (OptFlags::default() | OptFlags::STREAMING) & !OptFlags::COMM_SUBPLAN_ELIM;
    frame.with_optimizations(flags).to_alp_optimized().map_err(query_failure)
}

/// The files under some paths, or the first path that leads to none.
fn find(paths: &[String]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        let found = files::expand(path)
            .map_err(|why| Failure::Unseen { path: path.clone(), looked: format!("this node: {why}") })?;
        files.extend(found);
    }
    Ok(files)
}

/// Puts the name of a damaged Parquet file before Polars' message, which lacks it.
fn name_file(failure: Failure, files: &[PathBuf]) -> Failure {
    if !matches!(failure, Failure::Query { .. }) {
        return failure;
    }
    let mut parquet = files.iter().filter(|path| path.extension().is_some_and(|end| end == "parquet"));
    parquet.find_map(|path| files::parquet_metadata(path).err()).unwrap_or(failure)
}

/// Where a serialized plan's content begins: before it are a magic word, a version and a hash of the plan's schema.
const CONTENT: usize = MAGIC_BYTES + 4 + HASH_BYTES;
const MAGIC_BYTES: usize = b"DSL_VERSION".len();
const HASH_BYTES: usize = 64;

/// Reads a serialized plan, with the paths of its scans made absolute; also returns these.
fn read_plan(dsl: &[u8], directory: &str) -> Result<(DslPlan, Vec<String>), Failure> {
    depth::check_plan(dsl.get(CONTENT..).unwrap_or_default())?;
    let bytes = with_own_schema_hash(dsl)?;
    let read = catch_unwind(|| DslPlan::deserialize_versioned(bytes.as_slice()));
    let mut plan = match read {
        Ok(Ok(plan)) => plan,
        Ok(Err(error)) => return Err(unreadable(&error.to_string())),
        Err(panic) => return Err(unreadable(&panic_message(&*panic))),
    };
    let mut paths = Vec::new();
    let mut uri = None;
    visit_scans(&mut plan, &mut |sources| {
        let ScanSources::Paths(found) = sources else {
            return;
        };
        let resolve = |path: &PlRefPath| PlRefPath::new(absolute(directory, path.as_str()));
        let resolved: Vec<PlRefPath> = found.iter().map(resolve).collect();
        uri = uri.take().or_else(|| resolved.iter().find(|path| path.has_scheme()).map(ToString::to_string));
        paths.extend(resolved.iter().map(|path| path.as_str().to_owned()));
        *sources = ScanSources::Paths(resolved.into_iter().collect());
    })?;
    if let Some(uri) = uri {
        return Err(no_object_store(&uri));
    }
    paths.sort();
    paths.dedup();
    Ok((plan, paths))
}

/// Paths, globs and directories as a driver wrote them, made absolute against its directory.
pub fn resolve(paths: &[String], directory: &str) -> Result<Vec<String>, Failure> {
    let resolve = |path: &String| match path.contains("://") {
        true => Err(no_object_store(path)),
        false => Ok(absolute(directory, path)),
    };
    paths.iter().map(resolve).collect()
}

fn no_object_store(uri: &str) -> Failure {
    Failure::Refused { message: format!("{uri}: only files are read, no object stores") }
}

fn unreadable(why: &str) -> Failure {
    let message = format!(
        "this plan cannot be read by Polars {}; plans of py-polars 1.40 to 2.1 can: {}",
        floe_protocol::version::POLARS_VERSION,
        why.replace("deserialization failed\n\nerror: ", "")
    );
    Failure::Version { message }
}

/// A serialized plan begins with a magic word, a version and a hash of the plan's schema. The hash changes
/// with every feature flag, while the format describes itself: what does not fit is found when it is read.
/// So the hash is replaced by that of this build, which spares an environment variable that turns it off.
fn with_own_schema_hash(dsl: &[u8]) -> Result<Vec<u8>, Failure> {
    const HASH: std::ops::Range<usize> = CONTENT - HASH_BYTES..CONTENT;
    let mut own = Vec::new();
    let empty = DataFrame::empty().lazy().logical_plan;
    empty.serialize_versioned(&mut own, PlanSerializationContext::default()).map_err(query_failure)?;
    let mut bytes = dsl.to_vec();
    match (bytes.get_mut(HASH), own.get(HASH)) {
        (Some(hash), Some(own)) => hash.copy_from_slice(own),
        _ => return Err(unreadable("it is cut short")),
    }
    Ok(bytes)
}

/// Calls `f` on the sources of every scan. Refuses a plan that is too deep or too large.
fn visit_scans(plan: &mut DslPlan, f: &mut impl FnMut(&mut ScanSources)) -> Result<(), Failure> {
    let mut pending = vec![(plan, 1)];
    let mut operators = 0;
    while let Some((plan, depth)) = pending.pop() {
        operators += 1;
        depth::check_operators(depth, operators)?;
        let below = depth + 1;
        match plan {
            DslPlan::Scan { sources, cached_ir, .. } => {
                f(sources);
                *cached_ir = Default::default();
            }
            DslPlan::DataFrameScan { .. } => {}
            DslPlan::Filter { input, .. }
            | DslPlan::Cache { input, .. }
            | DslPlan::Select { input, .. }
            | DslPlan::GroupBy { input, .. }
            | DslPlan::HStack { input, .. }
            | DslPlan::MatchToSchema { input, .. }
            | DslPlan::Pivot { input, .. }
            | DslPlan::Distinct { input, .. }
            | DslPlan::Sort { input, .. }
            | DslPlan::Slice { input, .. }
            | DslPlan::MapFunction { input, .. }
            | DslPlan::Sink { input, .. } => pending.push((Arc::make_mut(input), below)),
            DslPlan::IR { dsl, .. } => pending.push((Arc::make_mut(dsl), below)),
            DslPlan::Join { input_left, input_right, .. }
            | DslPlan::MergeSorted { input_left, input_right, .. } => {
                pending.push((Arc::make_mut(input_left), below));
                pending.push((Arc::make_mut(input_right), below));
            }
            DslPlan::Gather { input, idxs, .. } => {
                pending.push((Arc::make_mut(input), below));
                pending.push((Arc::make_mut(idxs), below));
            }
            DslPlan::PipeWithSchema { input, .. } => {
                pending.extend(Arc::make_mut(input).iter_mut().map(|input| (input, below)))
            }
            DslPlan::Union { inputs, .. }
            | DslPlan::HConcat { inputs, .. }
            | DslPlan::SinkMultiple { inputs } => {
                pending.extend(inputs.iter_mut().map(|input| (input, below)));
            }
            DslPlan::ExtContext { input, contexts } => {
                pending.push((Arc::make_mut(input), below));
                pending.extend(contexts.iter_mut().map(|input| (input, below)));
            }
        }
    }
    Ok(())
}
