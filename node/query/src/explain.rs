//! The stage graph as text, and operators and expressions in words.

use std::fmt::Write as _;

use floe_protocol::{Exchange, NodeId, Read, Stage, StageGraph, Work};
use polars_plan::dsl::{FileScanIR, ScanSources};
use polars_plan::plans::expr_ir::{ExprIR, OutputName};
use polars_plan::plans::{AExpr, FunctionIR, IR};
use polars_utils::arena::Arena;

/// How much of an expression is shown.
const MAX_EXPRESSION_CHARS: usize = 80;

/// How many names of a list are shown.
const MAX_LISTED: usize = 6;

/// How the operator begins that takes a sample of sort keys.
pub(crate) const SAMPLE: &str = "sample ";

/// What `floe explain` prints: for each stage its tasks, what it reads and does, where it would run, how its
/// rows leave it, and why it is one task where it could not be split. `names` tells what to call a node.
pub fn explain(graph: &StageGraph, names: &dyn Fn(NodeId) -> String) -> String {
    let mut text = String::new();
    let last = graph.stages.len().saturating_sub(1);
    for (index, stage) in graph.stages.iter().enumerate() {
        let tasks = stage.tasks.len();
        let plural = if tasks == 1 { "" } else { "s" };
        let _ = writeln!(text, "stage {}: {tasks} task{plural}", stage.id);
        for input in &stage.inputs {
            let what = match input.read {
                Read::All => "all of",
                Read::Bucket => "its bucket of",
                Read::Partition { .. } => "its partition of",
                Read::Group { .. } => "its group of the partitions of",
            };
            let _ = writeln!(text, "  reads    {what} stage {}", input.stage);
        }
        for operator in &stage.operators {
            let _ = writeln!(text, "  does     {operator}");
        }
        let _ = writeln!(text, "  runs on  {}", place(stage, names));
        if let Some(reason) = &stage.single_because {
            let _ = writeln!(text, "  one task because {reason}");
        }
        let target = if index == last { "to the driver" } else { "" };
        let _ = writeln!(text, "  sends    {}", format!("{} {target}", sends(stage)).trim_end());
    }
    text
}

fn sends(stage: &Stage) -> String {
    match &stage.exchange {
        _ if stage.operators.last().is_some_and(|last| last.starts_with(SAMPLE)) => {
            "its rows, and apart from them the sample".to_owned()
        }
        Exchange::Pass => "partition to partition".to_owned(),
        Exchange::Gather => "all rows in order".to_owned(),
        Exchange::Broadcast => "all rows to every task".to_owned(),
        Exchange::Hash { keys, buckets } => format!("by hash of {}, {buckets} buckets", list(keys)),
        Exchange::Range { keys, buckets } => format!("by range of {}, {buckets} buckets", list(keys)),
    }
}

fn place(stage: &Stage, names: &dyn Fn(NodeId) -> String) -> String {
    match &stage.work {
        Work::Held(placed) => {
            let mut nodes: Vec<NodeId> =
                placed.iter().flat_map(|placed| placed.nodes.iter().copied()).collect();
            nodes.sort();
            nodes.dedup();
            if nodes.is_empty() {
                "nothing to run: its rows came with the query".to_owned()
            } else {
                let nodes: Vec<String> = nodes.into_iter().map(names).collect();
                format!("nothing to run: its rows came with the query and lie on {}", list(&nodes))
            }
        }
        Work::Calls => "nothing to run: a driver calls functions as it likes".to_owned(),
        Work::Function(_) if stage.seen_by.is_empty() => "nodes that have what it needs".to_owned(),
        Work::Function(_) => {
            let nodes: Vec<String> = stage.seen_by.iter().map(|node| names(*node)).collect();
            format!("nodes that have what it needs and see its files: {}", nodes.join(", "))
        }
        Work::Fragment(_) if stage.tasks.iter().all(|task| task.split.is_empty()) => "any node".to_owned(),
        Work::Fragment(_) if stage.seen_by.is_empty() => "nodes that see its files".to_owned(),
        Work::Fragment(_) => {
            let nodes: Vec<String> = stage.seen_by.iter().map(|node| names(*node)).collect();
            format!("nodes that see its files: {}", nodes.join(", "))
        }
    }
}

/// Some names, the rest as a number.
pub(crate) fn list<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<&str> = names.iter().take(MAX_LISTED).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(MAX_LISTED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// One expression, shortened.
pub(crate) fn expression(expr: &ExprIR, exprs: &Arena<AExpr>) -> String {
    let unnamed = ExprIR::new(expr.node(), OutputName::ColumnLhs(expr.output_name().clone()));
    let text = unnamed.display(exprs).to_string().replace("dyn int: ", "").replace("dyn float: ", "");
    let mut plain = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("col(\"") {
        let (name, end) = after.split_once("\")").unwrap_or((after, ""));
        plain.push_str(before);
        plain.push_str(name);
        rest = end;
    }
    plain.push_str(rest);
    let mut text =
        plain.strip_prefix("[(").and_then(|text| text.strip_suffix(")]")).unwrap_or(&plain).to_owned();
    if let Some((end, _)) = text.char_indices().nth(MAX_EXPRESSION_CHARS) {
        text.truncate(end);
        text.push_str("...");
    }
    match expr.get_alias() {
        Some(name) if *name != text && !name.starts_with("__") => format!("{text} as {name}"),
        _ => text,
    }
}

/// Some expressions.
pub(crate) fn expressions(of: &[ExprIR], exprs: &Arena<AExpr>) -> String {
    let texts: Vec<String> = of.iter().map(|expr| expression(expr, exprs)).collect();
    list(&texts)
}

/// One operator of a plan; nothing if it changes nothing.
pub(crate) fn operator(ir: &IR, exprs: &Arena<AExpr>) -> String {
    match ir {
        IR::Scan { sources, file_info, predicate, output_schema, scan_type, unified_scan_args, .. } => {
            let format: &'static str = (&**scan_type).into();
            let mut text = format!("scan {} {}", format_name(scan_type, format), places(sources));
            if let Some(schema) = output_schema
                && schema.len() < file_info.schema.len()
            {
                let names: Vec<&str> = schema.iter_names().map(|name| name.as_str()).collect();
                let _ = write!(text, " [{}]", list(&names));
            }
            if let Some(slice) = &unified_scan_args.pre_slice {
                let _ = write!(text, " limit {}", slice.len());
            }
            if let Some(predicate) = predicate {
                let _ = write!(text, " where {}", expression(predicate, exprs));
            }
            text
        }
        IR::DataFrameScan { df, .. } => format!("frame of {} rows", df.height()),
        IR::Filter { predicate, .. } => format!("filter {}", expression(predicate, exprs)),
        IR::SimpleProjection { columns, .. } => {
            let names: Vec<&str> = columns.iter_names().map(|name| name.as_str()).collect();
            format!("select {}", list(&names))
        }
        IR::Select { expr, .. } => format!("select {}", expressions(expr, exprs)),
        IR::HStack { exprs: with, .. } => {
            let same =
                |e: &ExprIR| matches!(exprs.get(e.node()), AExpr::Column(name) if name == e.output_name());
            let new: Vec<ExprIR> = with.iter().filter(|e| !same(e)).cloned().collect();
            if new.is_empty() { String::new() } else { format!("with columns {}", expressions(&new, exprs)) }
        }
        IR::Sort { by_column, slice: Some((offset, len, _)), .. } => {
            let by = expressions(by_column, exprs);
            if *offset == 0 {
                format!("top {len} by {by}")
            } else {
                format!("sort by {by}, {len} rows from {offset}")
            }
        }
        IR::Sort { by_column, .. } => format!("sort by {}", expressions(by_column, exprs)),
        IR::GroupBy { keys, aggs, .. } if aggs.is_empty() => format!("group by {}", expressions(keys, exprs)),
        IR::GroupBy { keys, aggs, .. } => {
            format!("group by {}: {}", expressions(keys, exprs), expressions(aggs, exprs))
        }
        IR::Distinct { options, .. } => match &options.subset {
            Some(subset) => format!("distinct {}", list(subset)),
            None => "distinct".to_owned(),
        },
        IR::Slice { offset, len, .. } if *offset == 0 => format!("limit {len}"),
        IR::Slice { offset, len, .. } => format!("{len} rows from {offset}"),
        IR::Join { left_on, right_on, options, .. } => {
            let how = options.args.how.to_string().to_lowercase();
            if left_on.is_empty() {
                format!("{how} join")
            } else {
                format!("{how} join on {} = {}", expressions(left_on, exprs), expressions(right_on, exprs))
            }
        }
        IR::MapFunction { function: FunctionIR::FastCount { sources, .. }, .. } => {
            format!("count rows of {}", places(sources))
        }
        IR::MapFunction { function, .. } => function.to_string().to_lowercase(),
        IR::Union { inputs, .. } => format!("union of {}", inputs.len()),
        IR::HConcat { inputs, .. } => format!("put {} frames side by side", inputs.len()),
        other => other.name().to_lowercase(),
    }
}

fn format_name(scan_type: &FileScanIR, name: &'static str) -> String {
    match scan_type {
        FileScanIR::NDJson { .. } => "ndjson".to_owned(),
        _ => name.to_lowercase(),
    }
}

fn places(sources: &ScanSources) -> String {
    match sources {
        ScanSources::Paths(paths) => match paths.as_ref() {
            [] => "no files".to_owned(),
            [one] => {
                one.file_name().map_or_else(|| one.to_string(), |name| name.to_string_lossy().into_owned())
            }
            many => format!("{} files", many.len()),
        },
        ScanSources::Files(files) => format!("{} open files", files.len()),
        ScanSources::Buffers(buffers) => format!("{} buffers", buffers.len()),
    }
}
