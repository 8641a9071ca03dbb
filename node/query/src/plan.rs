//! A query to a stage graph: parse, resolve against the files of this machine, optimize, cut.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use floe_protocol::message::{FileMark, FilePath};
use floe_protocol::{Failure, Query, StageGraph, StageId};
use polars::prelude::*;
use polars_plan::dsl::{DslPlan, FileScanDsl, PlanSerializationContext, ScanSources};
use polars_plan::frame::OptFlags;
use polars_plan::plans::IRPlan;
use serde::{Deserialize, Serialize};

use crate::depth;
use crate::files;
use crate::paths::{Found, absolute, find};
use crate::sql::Sql;
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
    /// The content of [`floe_protocol::Work::Held`] stages, by stage and partition, those of a stage in order:
    /// the caller stores it and adds where it lies to the stage, which holds nothing so far.
    pub frames: Vec<(StageId, u32, DataFrame)>,
    /// The files that each scanning stage reads: the caller asks other nodes for them and fills in who sees
    /// them ([`floe_protocol::Stage::seen_by`]).
    pub scans: Vec<(StageId, Vec<FileMark>)>,
}

/// Paths that a query scans, absolute, with patterns and directories as written. No file is looked at.
pub fn paths(query: &Query) -> Result<Vec<FilePath>, Failure> {
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
            let found = find(&sql.paths())?;
            // Polars SQL reads schemas while it translates, so its errors may be about a file too.
            let ir = sql.frame(&found).and_then(optimize).map_err(|failure| name_file(failure, &found))?;
            stages::cut(ir, shape)
        }
        Query::Plan { dsl, directory } => {
            let (mut plan, paths) = read_plan(dsl, directory)?;
            let found = find(&paths)?;
            visit_scans(&mut plan, &mut |sources, args, scan| found.settle(sources, args, scan))?;
            let ir = optimize(LazyFrame::from(plan)).map_err(|failure| name_file(failure, &found))?;
            stages::cut(ir, shape)
        }
    }
}

/// Common subplans are not shared: a stage graph has no place to keep one, and each use is cut on its own.
fn optimize(frame: LazyFrame) -> Result<IRPlan, Failure> {
    let flags = (OptFlags::default() | OptFlags::STREAMING) & !OptFlags::COMM_SUBPLAN_ELIM;
    frame.with_optimizations(flags).to_alp_optimized().map_err(query_failure)
}

/// Puts the name of a damaged Parquet file before Polars' message, which lacks it.
fn name_file(failure: Failure, found: &Found) -> Failure {
    if !matches!(failure, Failure::Query { .. }) {
        return failure;
    }
    let mut parquet =
        found.files().map(Path::new).filter(|path| path.extension().is_some_and(|end| end == "parquet"));
    parquet.find_map(|path| files::parquet_metadata(path).err()).unwrap_or(failure)
}

/// Where a serialized plan's content begins: before it are a magic word, a version and a hash of the plan's schema.
const CONTENT: usize = MAGIC_BYTES + 4 + HASH_BYTES;
const MAGIC_BYTES: usize = b"DSL_VERSION".len();
const HASH_BYTES: usize = 64;

/// Reads a serialized plan, with the paths of its scans made absolute; also returns these.
fn read_plan(dsl: &[u8], directory: &str) -> Result<(DslPlan, Vec<FilePath>), Failure> {
    depth::check_plan(dsl.get(CONTENT..).unwrap_or_default())?;
    let bytes = with_own_schema_hash(dsl)?;
    let read = catch_unwind(|| DslPlan::deserialize_versioned(bytes.as_slice()));
    let mut plan = match read {
        Ok(Ok(plan)) => plan,
        Ok(Err(error)) => return Err(unreadable(&error.to_string())),
        Err(panic) => return Err(unreadable(&panic_message(&*panic))),
    };
    let mut paths = Vec::new();
    let mut refused = None;
    visit_scans(&mut plan, &mut |sources, args, _| {
        let ScanSources::Paths(found) = &*sources else { return };
        let resolved = found.iter().map(|path| absolute(directory, path.as_str(), args.glob));
        match resolved.collect::<Result<Vec<_>, _>>() {
            Ok(resolved) => {
                *sources =
                    ScanSources::Paths(resolved.iter().map(|path| PlRefPath::new(&path.path)).collect());
                paths.extend(resolved);
            }
            Err(failure) => refused = refused.take().or(Some(failure)),
        }
    })?;
    if let Some(failure) = refused {
        return Err(failure);
    }
    paths.sort();
    paths.dedup();
    Ok((plan, paths))
}

/// Paths, patterns and directories as a driver wrote them, made absolute against its directory.
pub fn resolve(paths: &[String], directory: &str) -> Result<Vec<FilePath>, Failure> {
    paths.iter().map(|path| absolute(directory, path, true)).collect()
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

/// Calls `f` on every scan. Refuses a plan that is too deep or too large.
fn visit_scans(
    plan: &mut DslPlan,
    f: &mut impl FnMut(&mut ScanSources, &mut UnifiedScanArgs, &FileScanDsl),
) -> Result<(), Failure> {
    let mut pending = vec![(plan, 1)];
    let mut operators = 0;
    while let Some((plan, depth)) = pending.pop() {
        operators += 1;
        depth::check_operators(depth, operators)?;
        let below = depth + 1;
        match plan {
            DslPlan::Scan { sources, unified_scan_args, scan_type, cached_ir } => {
                f(sources, unified_scan_args, scan_type);
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
