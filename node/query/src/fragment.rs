//! A stage's work as bytes, and running it.
//!
//! A fragment is a sub-plan of the optimized IR. Where it was cut off from the stages below there are empty
//! frames, its placeholders; its scans have lost their files. A task brings both: segments of its inputs as
//! Arrow IPC files, and its split of the scans.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use floe_protocol::Failure;
use polars::prelude::*;
use polars_buffer::Buffer;
use polars_expr::state::ExecutionState;
use polars_plan::dsl::{FileScanIR, ScanSources, UnifiedScanArgs};
use polars_plan::plans::{FileInfo, FunctionIR, IR, IRPlan};
use polars_utils::arena::Node;
use polars_utils::pl_serialize;
use polars_utils::slice_enum::Slice;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::exchange::{self, SortKey};
use crate::files::{self, Rows, ScanSplit};
use crate::stack::on_deep_stack;
use crate::{panic_message, query_failure};

/// Raised whenever a fragment changes its form or its meaning.
const VERSION: u32 = 3;

/// The largest fragment that is accepted: every task of its stage holds it in memory beside what it reads.
pub(crate) const MAX_FRAGMENT_BYTES: usize = 32 << 20;

/// Inputs up to this size are read at once; larger ones are streamed out of their segments.
const READ_AT_ONCE_BYTES: usize = 4 << 20;

/// Set it, and the task that runs with it ends soon with [`Failure::Cancelled`]: rows that leave a scan or an
/// input look at it. A long sort or aggregation that has all of its rows goes on to its end.
pub type Stop = Arc<AtomicBool>;

/// A stage's work.
pub(crate) struct Fragment {
    pub(crate) inputs: Vec<Input>,
    /// The plan's nodes that read files, in the order of a split's parts.
    pub(crate) scans: Vec<Node>,
    pub(crate) output: Output,
    pub(crate) plan: IRPlan,
}

/// A fragment as it is written.
#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    inputs: Vec<Input>,
    scans: Vec<Node>,
    output: Output,
    /// As [`floe_plan`] writes it.
    plan: Bytes,
}

/// What every version of a fragment tells.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// One input of a stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Input {
    /// The placeholder, unless the plan does not read it.
    pub(crate) node: Option<Node>,
    pub(crate) segments: Segments,
    /// Whether the rows are read at once, however many: categories are then met in the order of the rows.
    pub(crate) at_once: bool,
}

/// Which of an input's segments hold rows for the placeholder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Segments {
    /// All of them.
    All,
    /// The second of each pair: the rows, after a sample of them ([`Output::Sampled`]).
    Rows,
}

/// What becomes of a task's rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Output {
    /// One bucket.
    Rows,
    /// Buckets by hash of the keys; the columns of `drop` are for that only.
    Hash { keys: Vec<String>, drop: Vec<String> },
    /// Two buckets: a sample of the sort keys, and the rows.
    Sampled { by: Vec<SortKey> },
    /// The rows are samples; one bucket: where to cut them into so many ranges.
    Boundaries { ranges: u32 },
    /// Buckets by range of the sort keys, cut where the rows of this input say.
    Range { by: Vec<SortKey>, boundaries: usize, drop: Vec<String> },
}

impl Fragment {
    pub(crate) fn new(inputs: Vec<Input>, scans: Vec<Node>, output: Output, plan: IRPlan) -> Self {
        Self { inputs, scans, output, plan }
    }

    /// A plan with a closure in it cannot be written.
    pub(crate) fn write(self) -> Result<Bytes, Failure> {
        let plan = floe_plan::encode_ir(&self.plan).map_err(|error| Failure::Refused {
            message: format!(
                "the query cannot be sent to other nodes: {error}; express it without functions of your own"
            ),
        })?;
        let Self { inputs, scans, output, .. } = self;
        let written = Written { version: VERSION, inputs, scans, output, plan: plan.into() };
        let bytes = encode(&written).map_err(Failure::internal)?;
        if bytes.len() > MAX_FRAGMENT_BYTES {
            let message = format!(
                "a stage of the query takes {} bytes to write down, of at most {MAX_FRAGMENT_BYTES}: \
                 long lists of constants are better put into a frame and joined",
                bytes.len()
            );
            return Err(Failure::Refused { message });
        }
        Ok(bytes.into())
    }

    fn read(bytes: &[u8]) -> Result<Self, Failure> {
        let unreadable =
            |error: PolarsError| Failure::internal(format!("a fragment cannot be read: {error}"));
        let Versioned { version } = decode(bytes).map_err(unreadable)?;
        if version != VERSION {
            let message = format!("a fragment of version {version} met a node that reads {VERSION}");
            return Err(Failure::Version { message });
        }
        let Written { inputs, scans, output, plan, .. } = decode(bytes).map_err(unreadable)?;
        let plan = floe_plan::decode_ir(&plan).map_err(unreadable)?;
        Ok(Self { inputs, scans, output, plan })
    }
}

/// Writes one task's part of its stage's scans; nothing if there are none.
pub(crate) fn write_split(parts: &[ScanSplit]) -> Result<Bytes, Failure> {
    if parts.is_empty() {
        return Ok(Bytes::new());
    }
    encode(&parts).map(Bytes::from).map_err(Failure::internal)
}

/// The encoding that plans have, for what is around them.
fn encode<T: Serialize>(value: &T) -> PolarsResult<Vec<u8>> {
    pl_serialize::serialize_to_bytes::<_, true>(value)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> PolarsResult<T> {
    pl_serialize::deserialize_from_reader::<_, _, true>(bytes)
}

/// Runs one task. `inputs[k]` are the Arrow IPC files (the file format; bodies plain, LZ4 or ZSTD) of input
/// `k`'s segments, in order. Returns the rows of each of `buckets` buckets.
pub fn run(
    fragment: &[u8],
    split: &[u8],
    inputs: Vec<Vec<Bytes>>,
    buckets: u32,
) -> Result<Vec<DataFrame>, Failure> {
    run_until(fragment, split, inputs, buckets, &Stop::default())
}

/// [`run`], until it is told to stop.
pub fn run_until(
    fragment: &[u8],
    split: &[u8],
    inputs: Vec<Vec<Bytes>>,
    buckets: u32,
    stop: &Stop,
) -> Result<Vec<DataFrame>, Failure> {
    on_deep_stack(|| read_and_run(fragment, split, inputs, buckets, stop))
}

fn read_and_run(
    fragment: &[u8],
    split: &[u8],
    inputs: Vec<Vec<Bytes>>,
    buckets: u32,
    stop: &Stop,
) -> Result<Vec<DataFrame>, Failure> {
    let fragment = Fragment::read(fragment)?;
    if inputs.len() != fragment.inputs.len() {
        let (wanted, given) = (fragment.inputs.len(), inputs.len());
        return Err(Failure::internal(format!("a task of {wanted} inputs was given {given}")));
    }
    let parts: Vec<ScanSplit> = if split.is_empty() {
        Vec::new()
    } else {
        decode(split).map_err(|error| Failure::internal(format!("a split cannot be read: {error}")))?
    };
    for file in parts.iter().flat_map(|part| &part.files) {
        files::verify(file)?;
    }
    let task = catch_unwind(AssertUnwindSafe(|| run_task(fragment, &parts, inputs, buckets, stop)));
    let result = task.unwrap_or_else(|panic| {
        let message = format!("Polars panicked: {}", panic_message(&*panic));
        Err(Failure::Query { message })
    });
    if stop.load(Ordering::Relaxed) {
        return Err(Failure::Cancelled);
    }
    result.map_err(|failure| name_file(failure, &parts))
}

fn run_task(
    fragment: Fragment,
    parts: &[ScanSplit],
    inputs: Vec<Vec<Bytes>>,
    buckets: u32,
    stop: &Stop,
) -> Result<Vec<DataFrame>, Failure> {
    let Fragment { inputs: wanted, scans, output, mut plan } = fragment;
    if scans.len() != parts.len() {
        return Err(Failure::internal(format!("a task of {} scans was given {}", scans.len(), parts.len())));
    }
    let mut sources = scans.clone();
    for (node, part) in scans.iter().zip(parts) {
        restrict_scan(plan.lp_arena.get_mut(*node), part);
    }
    let mut boundaries = DataFrame::empty();
    for (index, (input, mut segments)) in wanted.iter().zip(inputs).enumerate() {
        if input.segments == Segments::Rows {
            segments = segments.into_iter().skip(1).step_by(2).collect();
        }
        if matches!(&output, Output::Range { boundaries, .. } if *boundaries == index) {
            boundaries = read_all(&segments, None).map_err(query_failure)?;
        } else if let Some(node) = input.node {
            let schema = plan.lp_arena.get(node).schema(&plan.lp_arena).into_owned();
            let source = source(segments, schema, input.at_once).map_err(query_failure)?;
            plan.lp_arena.replace(node, source);
            sources.push(node);
        }
    }
    for source in sources {
        watch(&mut plan, source, stop);
    }
    let df = execute(plan)?;
    put_out(df, &output, &boundaries, buckets).map_err(query_failure)
}

/// Runs a plan on Polars' streaming engine, or on its in-memory one if the other panics: not every operator is done
/// there for every type yet, and some are for none.
fn execute(mut plan: IRPlan) -> Result<DataFrame, Failure> {
    let spare = IRPlan::new(plan.lp_top, plan.lp_arena.clone(), plan.expr_arena.clone());
    plan.ensure_root_node_is_sink();
    let streaming = catch_unwind(AssertUnwindSafe(|| {
        polars_stream::run_query(plan.lp_top, &mut plan.lp_arena, &mut plan.expr_arena)
    }));
    match streaming {
        Ok(result) => result.map(|result| result.unwrap_single()).map_err(query_failure),
        Err(panic) => {
            tracing::debug!(panic = panic_message(&*panic), "run again by the in-memory engine");
            in_memory(spare).map_err(query_failure)
        }
    }
}

fn in_memory(mut plan: IRPlan) -> PolarsResult<DataFrame> {
    let streaming = Some(polars_stream::build_streaming_query_executor as _);
    let mut executor = polars_mem_engine::create_physical_plan(
        plan.lp_top,
        &mut plan.lp_arena,
        &mut plan.expr_arena,
        streaming,
    )?;
    executor.execute(&mut ExecutionState::new())
}

fn put_out(
    df: DataFrame,
    output: &Output,
    boundaries: &DataFrame,
    buckets: u32,
) -> PolarsResult<Vec<DataFrame>> {
    match output {
        Output::Rows => Ok(vec![df]),
        Output::Hash { keys, drop } => without(exchange::by_hash(&df, keys, buckets)?, drop),
        Output::Sampled { by } => Ok(vec![exchange::sample(&df, by)?, df]),
        Output::Boundaries { ranges } => Ok(vec![exchange::boundaries(&df, *ranges)?]),
        Output::Range { by, drop, .. } => without(exchange::by_range(&df, by, boundaries, buckets)?, drop),
    }
}

fn without(dfs: Vec<DataFrame>, drop: &[String]) -> PolarsResult<Vec<DataFrame>> {
    Ok(dfs
        .into_iter()
        .map(|df| df.drop_many(drop.iter().map(|name| PlSmallStr::from(name.as_str()))))
        .collect())
}

/// Gives a scan the files and rows of one task.
fn restrict_scan(node: &mut IR, part: &ScanSplit) {
    let paths = part.files.iter().map(|file| PlRefPath::new(file.path.as_str()));
    let files = ScanSources::Paths(paths.collect());
    match node {
        IR::Scan { sources, hive_parts, unified_scan_args: args, .. } => {
            *sources = files;
            if let Some(hive) = hive_parts {
                *hive = hive.df().slice(part.first as i64, part.files.len()).into();
            }
            match part.rows {
                Rows::All => args.pre_slice = None,
                Rows::AsPlanned => {}
                Rows::Slice { offset, len } => {
                    args.pre_slice = Some(Slice::Positive { offset: offset as usize, len: len as usize });
                }
            }
            if let Some(index) = &mut args.row_index {
                index.offset = index.offset.saturating_add(part.rows_before as IdxSize);
            }
        }
        IR::MapFunction { function: FunctionIR::FastCount { sources, .. }, .. } => *sources = files,
        _ => {}
    }
}

/// The rows of some segments, to be read by a plan.
fn source(segments: Vec<Bytes>, schema: SchemaRef, at_once: bool) -> PolarsResult<IR> {
    let large = !at_once && segments.iter().map(Bytes::len).sum::<usize>() > READ_AT_ONCE_BYTES;
    if large && segments.iter().all(|segment| segment_schema(segment).is_ok_and(|found| found == *schema)) {
        let buffers: Vec<Buffer<u8>> = segments.into_iter().map(Buffer::from_owner).collect();
        return Ok(IR::Scan {
            sources: ScanSources::Buffers(buffers.into()),
            file_info: FileInfo::new(schema, None, (None, usize::MAX)),
            hive_parts: None,
            predicate: None,
            predicate_file_skip_applied: None,
            output_schema: None,
            scan_type: Box::new(FileScanIR::Ipc { options: Default::default(), metadata: None }),
            unified_scan_args: Box::new(UnifiedScanArgs { glob: false, ..Default::default() }),
        });
    }
    let df = Arc::new(read_all(&segments, Some(&schema))?);
    Ok(IR::DataFrameScan { df, schema, output_schema: None })
}

fn segment_schema(segment: &Bytes) -> PolarsResult<Schema> {
    let schema = IpcReader::new(Cursor::new(segment)).schema()?;
    Ok(Schema::from_arrow_schema(&schema))
}

/// All rows of some segments in one frame, of the given types.
fn read_all(segments: &[Bytes], schema: Option<&SchemaRef>) -> PolarsResult<DataFrame> {
    let mut all = schema.map(|schema| DataFrame::empty_with_schema(schema));
    for segment in segments {
        let mut df = IpcReader::new(Cursor::new(segment)).finish()?;
        if let Some(schema) = schema {
            // A column without a value may have lost its type on the way, in Polars' own operators.
            let column = |(name, dtype): (&PlSmallStr, &DataType)| {
                let column = df.column(name)?;
                if column.dtype() == dtype { Ok(column.clone()) } else { column.cast(dtype) }
            };
            let columns = schema.iter().map(column).collect::<PolarsResult<Vec<_>>>()?;
            df = DataFrame::new(df.height(), columns)?;
        }
        match &mut all {
            Some(all) => {
                all.vstack_mut(&df)?;
            }
            None => all = Some(df),
        }
    }
    Ok(all.unwrap_or_default())
}

/// Puts a look at `stop` behind a source.
fn watch(plan: &mut IRPlan, source: Node, stop: &Stop) {
    let schema = plan.lp_arena.get(source).schema(&plan.lp_arena).into_owned();
    // Frames without columns carry a height that not every operator keeps.
    if schema.is_empty() {
        return;
    }
    let input = plan.lp_arena.duplicate(source);
    let stop = stop.clone();
    let look = move |df: DataFrame| {
        fail_if(stop.load(Ordering::Relaxed))?;
        Ok(df)
    };
    let function = FunctionIR::Opaque {
        function: Arc::new(look),
        schema: None,
        predicate_pd: false,
        projection_pd: false,
        streamable: true,
        fmt_str: "stop".into(),
    };
    plan.lp_arena.replace(source, IR::MapFunction { input, function });
}

fn fail_if(stopped: bool) -> PolarsResult<()> {
    if stopped { Err(PolarsError::ComputeError("stopped".into())) } else { Ok(()) }
}

/// Polars' readers do not say which file is damaged. Where the message is about a file's format, the first
/// file that cannot be read alone is named.
fn name_file(failure: Failure, parts: &[ScanSplit]) -> Failure {
    let Failure::Query { message } = &failure else {
        return failure;
    };
    let lower = message.to_lowercase();
    let about_format =
        ["parquet", "specification", "thrift", "ipc", "arrow file", "csv", "json", "decompress"]
            .iter()
            .any(|word| lower.contains(word));
    let mut files = parts.iter().flat_map(|part| &part.files);
    if !about_format || parts.iter().flat_map(|part| &part.files).any(|file| message.contains(&file.path)) {
        return failure;
    }
    let damaged =
        |path: &str| path.ends_with(".parquet") && files::parquet_metadata(Path::new(path)).is_err();
    let first = parts.iter().flat_map(|part| &part.files).find(|file| damaged(&file.path)).or(files.next());
    match first {
        Some(file) => Failure::Query { message: format!("{}: {message}", file.path) },
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_fragment_of_another_version_says_so_whatever_else_is_in_it() {
        #[derive(Serialize)]
        struct Other {
            version: u32,
            plan: Vec<u64>,
            more: &'static str,
        }
        let other = Other { version: VERSION + 1, plan: vec![1, 2], more: "than is known here" };
        let read = Fragment::read(&encode(&other).unwrap());
        assert!(matches!(read, Err(Failure::Version { .. })), "{:?}", read.err());
    }
}
