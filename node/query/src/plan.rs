//! A query to a stage graph: parse, resolve against the files of this machine, optimize, cut.

mod changed;
mod msgpack;
mod queries;
mod schema;
mod translate;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use floe_protocol::message::{FileMark, FilePath};
use floe_protocol::{Failure, Query, StageGraph, StageId};
use polars::prelude::*;
use polars_plan::dsl::{DslPlan, FileScanDsl, ScanSources};
use polars_plan::frame::OptFlags;
use polars_plan::plans::{IR, IRPlan};
use serde::{Deserialize, Serialize};

use self::translate::{SqlQuery, Translated, Writer};
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
        Query::Plan { dsl, directory, .. } => Ok(read_plan(dsl, directory)?.paths),
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
        Query::Plan { dsl, directory, schema } => {
            let ReadPlan { mut plan, paths, queries, writer } = read_plan(dsl, directory)?;
            let found = find(&paths)?;
            visit_scans(&mut plan, &mut |sources, args, scan| found.settle(sources, args, scan))?;
            let ir = queries::lower(&mut plan, &queries)
                .and_then(|()| as_expected(LazyFrame::from(plan), schema))
                .map_err(|failure| name_file(failure, &found))
                .map_err(|failure| match failure {
                    // A later Polars may know better, and says what is wrong in its own words.
                    Failure::Query { message } if writer >= Writer::Two => Failure::Foreign { message },
                    Failure::Refused { message } if !queries.is_empty() => Failure::Foreign { message },
                    failure => failure,
                })?;
            if writer >= Writer::Two {
                changed::check(&ir)?;
            }
            stages::cut(ir, shape)
        }
    }
}

/// Common subplans are not shared: a stage graph has no place to keep one, and each use is cut on its own.
fn optimize(frame: LazyFrame) -> Result<IRPlan, Failure> {
    let flags = (OptFlags::default() | OptFlags::STREAMING) & !OptFlags::COMM_SUBPLAN_ELIM;
    frame.with_optimizations(flags).to_alp_optimized().map_err(query_failure)
}

/// An optimized plan whose result has the schema that its driver expects.
fn as_expected(frame: LazyFrame, expected: &[u8]) -> Result<IRPlan, Failure> {
    let ir = optimize(frame.clone())?;
    let top = ir.lp_arena.get(ir.lp_top);
    if matches!(top, IR::Sink { .. } | IR::SinkMultiple { .. }) {
        return Ok(ir);
    }
    match schema::casts(&top.schema(&ir.lp_arena), expected)? {
        Some(casts) => optimize(frame.select(casts)),
        None => Ok(ir),
    }
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

/// A plan as it was read.
struct ReadPlan {
    plan: DslPlan,
    /// The paths of its scans, absolute.
    paths: Vec<FilePath>,
    /// Its queries in SQL, which [`queries::lower`] turns into parts of the plan.
    queries: Vec<SqlQuery>,
    writer: Writer,
}

/// Reads a serialized plan, with the paths of its scans made absolute.
///
/// A serialized plan begins with a magic word, a version, which is the same for all of Polars 1.40 to 2.1, and a
/// hash of the types that a plan is made of. The hash changes with every type and feature flag, while the format
/// describes itself: what does not fit is found when it is read. So the hash only tells who wrote the plan, and what
/// follows is translated and read under this build's own.
fn read_plan(dsl: &[u8], directory: &str) -> Result<ReadPlan, Failure> {
    let header = own_header()?;
    let (magic, form) = (b"DSL_VERSION", header.len().saturating_sub(64));
    if dsl.len() < header.len() {
        return Err(unreadable("it is cut short"));
    }
    if !dsl.starts_with(magic) {
        return Err(unreadable("it does not begin as plans do"));
    }
    depth::check_plan(&dsl[header.len()..])?;
    let (version, writer) = translate::writer(&dsl[form..header.len()]);
    let Translated { bytes, queries } = translate::translate(&dsl[header.len()..], writer, header)?;
    let read = catch_unwind(|| floe_plan::decode(&bytes));
    let why = match read {
        Ok(Ok(frame)) => return resolved(frame.logical_plan, queries, writer, directory),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic_message(&*panic),
    };
    // What else could have stood there is a list of hundreds.
    let why = why.replace("deserialization failed\n\nerror: ", "");
    let why = why.split(", expected").next().unwrap_or_default();
    let own = floe_protocol::version::POLARS_VERSION;
    Err(Failure::Foreign {
        message: format!("this plan, of py-polars {version}, cannot be read by Polars {own}: {why}"),
    })
}

/// What plans of this build begin with: magic word, version, hash.
fn own_header() -> Result<Vec<u8>, Failure> {
    let mut own = floe_plan::encode(&DataFrame::empty().lazy()).map_err(query_failure)?;
    own.truncate(b"DSL_VERSION".len() + 4 + 64);
    Ok(own)
}

/// Makes the paths of a plan's scans absolute.
fn resolved(
    mut plan: DslPlan,
    queries: Vec<SqlQuery>,
    writer: Writer,
    directory: &str,
) -> Result<ReadPlan, Failure> {
    let mut paths = Vec::new();
    let mut refused = None;
    visit_scans(&mut plan, &mut |sources, args, _| {
        let ScanSources::Paths(found) = &*sources else { return };
        if args.include_file_paths.is_some() && found.iter().any(|path| path.as_str().starts_with("file:")) {
            // Polars gives them as they were written, and here they are paths.
            let message = "include_file_paths of a path written as file:// names files otherwise here: write the \
                           path without file://";
            refused = refused.take().or(Some(Failure::Foreign { message: message.to_owned() }));
            return;
        }
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
    queries.iter().try_for_each(|query| queries::check(query, directory))?;
    paths.sort();
    paths.dedup();
    Ok(ReadPlan { plan, paths, queries, writer })
}

/// Paths, patterns and directories as a driver wrote them, made absolute against its directory.
pub fn resolve(paths: &[String], directory: &str) -> Result<Vec<FilePath>, Failure> {
    paths.iter().map(|path| absolute(directory, path, true)).collect()
}

fn unreadable(why: &str) -> Failure {
    let message = format!(
        "this plan cannot be read by Polars {}; plans of py-polars 1.40 to 2.1 can: {why}",
        floe_protocol::version::POLARS_VERSION,
    );
    Failure::Version { message }
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
        if let DslPlan::Scan { sources, unified_scan_args, scan_type, cached_ir } = plan {
            f(sources, unified_scan_args, scan_type);
            *cached_ir = Default::default();
        }
        pending.extend(inputs(plan).into_iter().map(|input| (input, depth + 1)));
    }
    Ok(())
}

/// The plans that a plan reads.
fn inputs(plan: &mut DslPlan) -> Vec<&mut DslPlan> {
    match plan {
        DslPlan::Scan { .. } | DslPlan::DataFrameScan { .. } => Vec::new(),
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
        | DslPlan::Sink { input, .. } => vec![Arc::make_mut(input)],
        DslPlan::IR { dsl, .. } => vec![Arc::make_mut(dsl)],
        DslPlan::Join { input_left, input_right, .. }
        | DslPlan::MergeSorted { input_left, input_right, .. } => {
            vec![Arc::make_mut(input_left), Arc::make_mut(input_right)]
        }
        DslPlan::Gather { input, idxs, .. } => vec![Arc::make_mut(input), Arc::make_mut(idxs)],
        DslPlan::PipeWithSchema { input, .. } => Arc::make_mut(input).iter_mut().collect(),
        DslPlan::Union { inputs, .. }
        | DslPlan::HConcat { inputs, .. }
        | DslPlan::SinkMultiple { inputs } => inputs.iter_mut().collect(),
        DslPlan::ExtContext { input, contexts } => {
            std::iter::once(Arc::make_mut(input)).chain(contexts).collect()
        }
    }
}
