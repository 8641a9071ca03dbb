//! A mesh in one process: every stage's tasks, each from bytes, with segments as Arrow IPC files.

use std::collections::BTreeMap;
use std::io::Cursor;

use bytes::Bytes;
use floe_protocol::{Failure, Query, Read, Stage, StageGraph, StageId, Work};
use floe_query::{Planned, Shape};
use polars::prelude::*;

/// Few slots and little memory: everything that can be split is, many times.
pub(crate) const TIGHT: Shape = Shape { slots: 3, task_bytes: 48 << 10 };

/// What a few laptops have.
pub(crate) const ROOMY: Shape = Shape { slots: 6, task_bytes: 256 << 20 };

/// One machine.
pub(crate) const ALONE: Shape = Shape { slots: 1, task_bytes: u64::MAX };

/// Segments by stage, partition and bucket.
pub(crate) type Outputs = BTreeMap<StageId, Vec<Vec<Bytes>>>;

pub(crate) fn sql(text: &str) -> Query {
    Query::Sql { text: text.to_owned(), tables: crate::data::tables(), directory: crate::data::directory() }
}

pub(crate) fn lazy(frame: LazyFrame) -> Query {
    let dsl = floe_plan::encode(&frame).unwrap();
    Query::Plan { dsl: dsl.into(), directory: crate::data::directory(), schema: Bytes::new() }
}

/// What a task is run with: a fragment, a split, the segments of its inputs, how many buckets it fills.
pub(crate) type Run<'a> = &'a dyn Fn(&[u8], &[u8], Vec<Vec<Bytes>>, u32) -> Result<Vec<DataFrame>, Failure>;

/// Plans a query, runs all of it and returns its rows in order.
pub(crate) fn collect(query: &Query, shape: &Shape) -> Result<DataFrame, Failure> {
    collect_by(query, shape, &floe_query::run)
}

/// [`collect`], with tasks run by something else.
pub(crate) fn collect_by(query: &Query, shape: &Shape, run: Run<'_>) -> Result<DataFrame, Failure> {
    let Planned { graph, frames, .. } = floe_query::plan(query, shape)?;
    check(&graph);
    let mut outputs = held(frames);
    for stage in &graph.stages {
        if let Work::Fragment(fragment) = &stage.work {
            // Backwards, since no task may depend on another of its stage.
            let mut partitions: Vec<Vec<Bytes>> = Vec::new();
            for task in (0..stage.tasks.len() as u32).rev() {
                let segments = inputs(stage, task, &outputs);
                let split = &stage.tasks[task as usize].split;
                let buckets = run(fragment, split, segments, stage.exchange.buckets())?;
                assert_eq!(buckets.len(), stage.exchange.buckets() as usize, "stage {}", stage.id);
                partitions.push(buckets.into_iter().map(|df| ipc(df, task)).collect());
            }
            partitions.reverse();
            outputs.insert(stage.id, partitions);
        }
    }
    let last = &outputs[&graph.stages.last().unwrap().id];
    let schema = IpcStreamReader::new(Cursor::new(&graph.schema)).finish().unwrap();
    assert_eq!(schema.height(), 0);
    let mut result = schema;
    for segment in last.iter().flatten() {
        let rows = read(segment);
        if result.width() == 0 {
            return Ok(rows);
        }
        if rows.schema() != result.schema() {
            // No driver can read such a result.
            let (rows, announced) = (rows.schema(), result.schema());
            let message = format!("the announced schema is not that of the rows: {announced:?}, {rows:?}");
            return Err(Failure::Internal { message });
        }
        result.vstack_mut(&rows).unwrap();
    }
    Ok(result)
}

/// The segments that a task reads, by input.
pub(crate) fn inputs(stage: &Stage, task: u32, outputs: &Outputs) -> Vec<Vec<Bytes>> {
    let segments = |input: &floe_protocol::StageInput| -> Vec<Bytes> {
        let partitions = &outputs[&input.stage];
        match input.read {
            Read::All => partitions.iter().flatten().cloned().collect(),
            Read::Bucket => partitions.iter().map(|buckets| buckets[task as usize].clone()).collect(),
            Read::Group { size } => partitions
                .iter()
                .skip((task * size) as usize)
                .take(size as usize)
                .flatten()
                .cloned()
                .collect(),
            Read::Partition { first } => task
                .checked_sub(first)
                .and_then(|partition| partitions.get(partition as usize))
                .cloned()
                .unwrap_or_default(),
        }
    };
    stage.inputs.iter().map(segments).collect()
}

pub(crate) fn held(frames: Vec<(StageId, u32, DataFrame)>) -> Outputs {
    let mut outputs = Outputs::new();
    for (stage, partition, df) in frames {
        let partitions = outputs.entry(stage).or_default();
        assert_eq!(partitions.len(), partition as usize, "partitions come in order");
        partitions.push(vec![ipc(df, partition)]);
    }
    outputs
}

/// Compressed or not by turns, as stores may, and in several batches, but for categoricals: an IPC file has one
/// dictionary a column, and each batch makes its own.
pub(crate) fn ipc(df: DataFrame, salt: u32) -> Bytes {
    let categorical = |dtype: &DataType| format!("{dtype:?}").contains("Categorical");
    let mut chunks = df;
    chunks.rechunk_mut();
    if !chunks.dtypes().iter().any(categorical) && chunks.height() > 10 {
        let half = chunks.height() / 2;
        chunks = chunks.slice(0, half).vstack(&chunks.slice(half as i64, chunks.height())).unwrap();
    }
    let mut file = Vec::new();
    let compression = [None, Some(IpcCompression::LZ4), Some(IpcCompression::ZSTD(Default::default()))];
    let compression = compression[salt as usize % 3];
    IpcWriter::new(&mut file).with_compression(compression).finish(&mut chunks).unwrap();
    file.into()
}

pub(crate) fn read(segment: &Bytes) -> DataFrame {
    IpcReader::new(Cursor::new(segment)).finish().unwrap()
}

/// What holds for every graph.
fn check(graph: &StageGraph) {
    for (index, stage) in graph.stages.iter().enumerate() {
        assert_eq!(stage.id.0 as usize, index);
        assert!(!stage.tasks.is_empty());
        for input in &stage.inputs {
            let producer = &graph.stages[input.stage.0 as usize];
            assert!(input.stage < stage.id, "stages come after what they read");
            match input.read {
                Read::All => {}
                Read::Group { size } => {
                    assert!(size as usize * stage.tasks.len() >= producer.tasks.len());
                }
                Read::Bucket => assert!(stage.tasks.len() <= producer.exchange.buckets() as usize),
                Read::Partition { first } => {
                    assert!(first as usize + producer.tasks.len() <= stage.tasks.len());
                }
            }
        }
        if stage.single_because.is_some() {
            assert_eq!(stage.tasks.len(), 1, "{:?}", stage.single_because);
        }
    }
    let text = floe_query::explain(graph, &|node| node.to_string());
    assert!(!text.contains("__floe") || text.contains("partial"), "{text}");
}

/// Whether two results are the same, in order if that was promised. Sums of floats may differ in their last
/// bits, as they do between two runs of Polars.
pub(crate) fn assert_same(found: &DataFrame, expected: &DataFrame, ordered: bool, what: &str) {
    assert_eq!(found.schema(), expected.schema(), "{what}");
    assert_eq!(found.height(), expected.height(), "{what}");
    let (found, expected) =
        if ordered { (found.clone(), expected.clone()) } else { (sorted(found), sorted(expected)) };
    for (found, expected) in found.columns().iter().zip(expected.columns()) {
        let name = expected.name();
        if expected.dtype().is_float() {
            let values = |column: &Column| column.cast(&DataType::Float64).unwrap();
            let (found, expected) = (values(found), values(expected));
            for (row, (a, b)) in found.f64().unwrap().iter().zip(expected.f64().unwrap().iter()).enumerate() {
                let close = match (a, b) {
                    (Some(a), Some(b)) => {
                        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-9 * b.abs().max(1.0)
                    }
                    (a, b) => a.is_none() && b.is_none(),
                };
                assert!(close, "{what}: {name}[{row}] is {a:?}, not {b:?}");
            }
        } else {
            let (a, b) = (found.as_materialized_series(), expected.as_materialized_series());
            assert!(a.equals_missing(b), "{what}: {name} is\n{a:?}, not\n{b:?}");
        }
    }
}

fn sorted(df: &DataFrame) -> DataFrame {
    if df.width() == 0 {
        return df.clone();
    }
    // Floats last, so that their last bits decide nothing.
    let (floats, others): (Vec<_>, Vec<_>) =
        df.columns().iter().partition(|column| column.dtype().is_float());
    let by: Vec<PlSmallStr> = others.iter().chain(&floats).map(|column| column.name().clone()).collect();
    df.sort(by, SortMultipleOptions::default().with_maintain_order(true)).unwrap()
}
