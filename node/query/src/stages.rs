//! Cutting an optimized plan into stages.
//!
//! The plan is walked from its sources up. At each point there is a *piece*: a fragment in progress, how many
//! tasks run it, and what these read. An operator that can work on each task's rows alone is put on top of the
//! piece. One that needs rows to meet seals the piece as a stage and starts another that reads it. One that
//! must see all rows makes the piece one task first, and notes why.
//!
//! **Invariant.** The rows of a piece are those of its tasks in order: wherever Polars promises an order, the
//! concatenation of the tasks' rows has it.

use std::sync::Arc;

use bytes::Bytes;
use floe_protocol::message::FileMark;
use floe_protocol::{Exchange, Failure, Read, Stage, StageGraph, StageId, StageInput, TaskSpec, Work};
use polars::prelude::*;
use polars_plan::dsl::{FileScanIR, ScanSources, SinkTypeIR};
use polars_plan::plans::expr_ir::{ExprIR, OutputName};
use polars_plan::plans::prune::prune_plan;
use polars_plan::plans::{
    AExpr, AExprBuilder, FunctionIR, IR, IRFunctionExpr, IRPlan, IRPlanRef, is_scalar_ae,
};
use polars_plan::prelude::{DistinctOptionsIR, GroupbyOptions, ProjectionOptions, UnionOptions};
use polars_utils::arena::{Arena, Node};

use crate::adapt::{forget_metadata, in_order};
use crate::aggregate::{TwoSteps, two_steps};
use crate::codes::{Codes, codes};
use crate::exchange::{SortKey, sample_schema};
use crate::explain::{SAMPLE, expression, expressions, list, operator};
use crate::files::{self, ScanSplit};
use crate::fragment::{Fragment, Input, Output, Segments, write_split};
use crate::plan::{Planned, Shape};
use crate::query_failure;
use crate::separable::{can_be_key, culprit, elementwise, select_is_separable};

/// A frame up to this size travels inside the fragment that uses it.
const EMBEDDED_BYTES: usize = 64 << 10;

/// The least rows of a frame in memory that are worth a task of their own.
const MIN_FRAME_ROWS: usize = 64 << 10;

/// What is smaller than this is brought together in one task rather than exchanged: another round of tasks
/// would take longer than the work.
const GATHER_BYTES: u64 = 16 << 20;

/// How large a bucket should be before there are more of them.
const BUCKET_BYTES: u64 = 8 << 20;

/// How much less a partial aggregate is taken to put out than it reads. Nothing is known of the keys here.
const GROUPING_SHRINKS: u64 = 4;

/// Column that stands in for the height of a frame without columns on its way between stages.
const HEIGHT: &str = "__floe_height";

/// Column that counts the rows behind a partial aggregate.
const ROWS: &str = "__floe_rows";

/// The input of an operator that [`Cutter::add`] is about to put on top of a piece.
const INPUT: Node = Node(usize::MAX);

/// Cuts a plan into stages.
pub(crate) fn cut(plan: IRPlan, shape: &Shape) -> Result<Planned, Failure> {
    let mut cutter = Cutter {
        ir: plan.lp_arena,
        exprs: plan.expr_arena,
        shape: *shape,
        stages: Vec::new(),
        frames: Vec::new(),
        files: Vec::new(),
        scans: 0,
    };
    cutter.drop_dynamic_predicates();
    let schema = cutter.schema(plan.lp_top);
    let result = cutter.lower(plan.lp_top)?;
    cutter.seal(result, Output::Rows, Exchange::Gather)?;
    let graph = StageGraph { stages: cutter.stages, schema: ipc_schema(&schema)?, ..StageGraph::default() };
    Ok(Planned { graph, frames: cutter.frames, scans: cutter.files })
}

/// A schema as an Arrow IPC stream without batches.
fn ipc_schema(schema: &Schema) -> Result<Bytes, Failure> {
    let mut stream = Vec::new();
    let mut writer = IpcStreamWriter::new(&mut stream).with_compat_level(CompatLevel::newest());
    writer.finish(&mut DataFrame::empty_with_schema(schema)).map_err(query_failure)?;
    // The schema is the first message: a marker, its length, and as many bytes. An empty batch may follow.
    let length: [u8; 4] = stream
        .get(4..8)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| Failure::internal("an IPC stream without a schema"))?;
    stream.truncate(8 + u32::from_le_bytes(length) as usize);
    stream.extend([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    Ok(stream.into())
}

/// A fragment in progress.
struct Piece {
    root: Node,
    inputs: Vec<PieceInput>,
    scans: Vec<PieceScan>,
    tasks: u32,
    /// Estimated rows that come out, in bytes.
    bytes: u64,
    operators: Vec<String>,
    single_because: Option<String>,
    /// Whether codes of categories were read in it: they mean nothing in another task.
    reads_codes: bool,
}

struct PieceInput {
    stage: StageId,
    read: Read,
    segments: Segments,
    /// Known by its address in the plan; nothing where the plan itself does not read the input.
    placeholder: Option<Arc<DataFrame>>,
}

struct PieceScan {
    /// Stands for the scan's files in the plan, so that the scan is found again.
    token: PlRefPath,
    /// One for each task.
    splits: Vec<ScanSplit>,
}

struct Cutter {
    ir: Arena<IR>,
    exprs: Arena<AExpr>,
    shape: Shape,
    stages: Vec<Stage>,
    frames: Vec<(StageId, u32, DataFrame)>,
    files: Vec<(StageId, Vec<FileMark>)>,
    scans: usize,
}

impl Cutter {
    /// The piece that puts out the rows of a node. Recursion is guarded by `recursive`: plans may be deep.
    #[recursive::recursive]
    fn lower(&mut self, node: Node) -> Result<Piece, Failure> {
        let ir = self.ir.get(node).clone();
        match ir {
            IR::Scan { .. } => self.scan(ir),
            IR::DataFrameScan { df, output_schema, .. } => self.frame(&df, output_schema.as_ref()),
            // Each use of a cached plan is lowered anew.
            IR::Cache { input, .. } => self.lower(input),
            IR::MapFunction { input, function: FunctionIR::Rechunk } => self.lower(input),
            IR::Sink { input, payload: SinkTypeIR::Memory } => self.lower(input),
            IR::Sink { .. } => {
                Err(refused("a query that writes files: collect its rows and write them here"))
            }
            IR::SinkMultiple { .. } => Err(refused("several queries at once: submit them one by one")),
            IR::Filter { input, ref predicate } => {
                self.apply_expressions(input, ir.clone(), std::slice::from_ref(predicate))
            }
            IR::SimpleProjection { input, .. } => self.apply(input, ir, None),
            IR::Select { .. } => self.select(ir),
            IR::HStack { input, ref exprs, .. } => self.apply_expressions(input, ir.clone(), exprs),
            IR::MapFunction { .. } => self.map_function(ir),
            IR::Slice { input, offset, len } => {
                let piece = self.lower(input)?;
                self.slice(piece, offset, len as usize)
            }
            IR::Sort { .. } => self.sort(ir),
            IR::GroupBy { .. } => self.group_by(ir),
            IR::Distinct { input, options } => self.distinct(input, options),
            IR::Union { inputs, options } => self.union(&inputs, options),
            IR::Join { ref options, .. } => {
                let reason =
                    format!("the {} join is not split yet", options.args.how.to_string().to_lowercase());
                self.alone(in_order(ir), reason)
            }
            IR::Invalid => Err(Failure::internal("an invalid plan")),
            _ => {
                let reason = format!("`{}` puts rows of its inputs side by side", ir.name().to_lowercase());
                self.alone(ir, reason)
            }
        }
    }

    /// The columns that a node puts out. A select may have been put into the plan by Polars' optimizer in place of
    /// something else (a right join, for one) and still name the types of that: its expressions have the last word.
    fn schema(&self, node: Node) -> SchemaRef {
        let named = self.ir.get(node).schema(&self.ir).into_owned();
        let mut below = node;
        let (input, exprs) = loop {
            match self.ir.get(below) {
                IR::Filter { input, .. }
                | IR::Slice { input, .. }
                | IR::Sort { input, .. }
                | IR::SimpleProjection { input, .. } => below = *input,
                IR::Select { input, expr, .. } => break (*input, expr),
                _ => return named,
            }
        };
        let Ok(found) = self.extended(Schema::default(), exprs, &self.ir.get(input).schema(&self.ir)) else {
            return named;
        };
        let dtype = |(name, dtype): (&PlSmallStr, &DataType)| match found.get(name) {
            Some(found) if found.is_known() => Field::new(name.clone(), found.clone()),
            _ => Field::new(name.clone(), dtype.clone()),
        };
        Arc::new(named.iter().map(dtype).collect())
    }

    /// A predicate that tightens while a sort above it runs means nothing in another stage, or after a plan
    /// was written and read: it is true there. So it is taken out of the scans' predicates.
    fn drop_dynamic_predicates(&mut self) {
        let dynamic = |expr: &AExpr| {
            matches!(expr, AExpr::Function { function: IRFunctionExpr::DynamicPred { .. }, .. })
        };
        for node in (0..self.exprs.len()).map(Node) {
            if let AExpr::BinaryExpr { left, op: Operator::And, right } = *self.exprs.get(node) {
                let kept = match (dynamic(self.exprs.get(left)), dynamic(self.exprs.get(right))) {
                    (true, _) => right,
                    (false, true) => left,
                    (false, false) => continue,
                };
                let kept = self.exprs.get(kept).clone();
                self.exprs.replace(node, kept);
            }
        }
        for node in (0..self.ir.len()).map(Node) {
            if let IR::Scan { predicate, .. } = self.ir.get_mut(node)
                && predicate.as_ref().is_some_and(|e| dynamic(self.exprs.get(e.node())))
            {
                *predicate = None;
            }
        }
    }

    // ---- building pieces

    /// Puts an operator of one input on top of a piece.
    fn add(&mut self, piece: &mut Piece, ir: IR) {
        self.add_silently(piece, ir);
        let text = operator(self.ir.get(piece.root), &self.exprs);
        if !text.is_empty() {
            piece.operators.push(text);
        }
    }

    /// The same, without a word of it in `explain`.
    fn add_silently(&mut self, piece: &mut Piece, ir: IR) {
        piece.root = self.ir.add(ir.with_inputs([piece.root]));
    }

    /// Lowers the input and puts the operator on top, in one task if there is a reason for it.
    fn apply(&mut self, input: Node, ir: IR, one_task_because: Option<String>) -> Result<Piece, Failure> {
        let mut piece = self.lower(input)?;
        if let Some(reason) = one_task_because {
            piece = self.gather(piece, Some(reason))?;
        }
        self.add(&mut piece, ir);
        Ok(piece)
    }

    /// Lowers the input and puts an operator on top whose expressions see its rows, in one task if they need it.
    fn apply_expressions(&mut self, input: Node, ir: IR, exprs: &[ExprIR]) -> Result<Piece, Failure> {
        let piece = self.lower(input)?;
        let mut piece = self.for_codes(piece, exprs)?;
        if !exprs.iter().all(|e| elementwise(e.node(), &self.exprs)) {
            piece = self.gather(piece, Some(culprit(exprs, &self.exprs)))?;
        }
        self.add(&mut piece, ir);
        Ok(piece)
    }

    /// The same rows in one task, if one of these expressions reads the codes of categories.
    fn for_codes(&mut self, mut piece: Piece, exprs: &[ExprIR]) -> Result<Piece, Failure> {
        if let Some(reason) = self.codes(exprs, &self.schema(piece.root), piece.reads_codes)? {
            piece = self.gather(piece, Some(reason))?;
            piece.reads_codes = true;
        }
        Ok(piece)
    }

    /// Why expressions must run in one task for the codes that one of them reads, if one does. `known` is whether
    /// codes were read before, in the same task.
    fn codes(&self, exprs: &[ExprIR], rows: &Schema, known: bool) -> Result<Option<String>, Failure> {
        let (codes, Some(expr)) = codes(exprs, rows, &self.exprs) else {
            return Ok(None);
        };
        let text = expression(expr, &self.exprs);
        match codes {
            Codes::Unused => Ok(None),
            Codes::Taken if !known => Err(refused(&format!(
                "`{text}`, which makes categories of codes: they mean something only in the process that gave \
                 them; send strings, or use an Enum"
            ))),
            Codes::Hashed => Err(Failure::Foreign {
                message: format!(
                    "`{text}` hashes categories, which Polars {} does otherwise than py-polars: hash strings",
                    floe_protocol::version::POLARS_VERSION
                ),
            }),
            Codes::Read | Codes::Taken => {
                Ok(Some(format!("`{text}` reads codes of categories, which each task would number anew")))
            }
        }
    }

    /// An operator of any inputs, in one task.
    fn alone(&mut self, ir: IR, reason: String) -> Result<Piece, Failure> {
        let inputs: Vec<Node> = ir.inputs().collect();
        let mut split = false;
        let mut pieces = Vec::new();
        for input in inputs {
            let piece = self.lower(input)?;
            split |= piece.tasks > 1;
            pieces.push(self.gather(piece, None)?);
        }
        let roots: Vec<Node> = pieces.iter().map(|piece| piece.root).collect();
        let mut merged = merge(pieces);
        merged.root = self.ir.add(ir.with_inputs(roots));
        merged.operators.push(operator(self.ir.get(merged.root), &self.exprs));
        if split {
            merged.single_because.get_or_insert(reason);
        }
        Ok(merged)
    }

    fn with_columns(&mut self, piece: &mut Piece, exprs: Vec<ExprIR>) -> Result<(), Failure> {
        if exprs.is_empty() {
            return Ok(());
        }
        let schema = self.schema(piece.root);
        let schema = Arc::new(self.extended((*schema).clone(), &exprs, &schema)?);
        let options = ProjectionOptions::default();
        self.add_silently(piece, IR::HStack { input: INPUT, exprs, schema, options });
        Ok(())
    }

    /// A schema with the fields of some expressions over another.
    fn extended(&self, mut base: Schema, exprs: &[ExprIR], over: &Schema) -> Result<Schema, Failure> {
        for expr in exprs {
            let field = expr.field(over, &self.exprs).map_err(query_failure)?;
            base.with_column(field.name, field.dtype);
        }
        Ok(base)
    }

    // ---- sealing pieces

    /// Makes a stage of a piece.
    fn seal(&mut self, piece: Piece, output: Output, exchange: Exchange) -> Result<StageId, Failure> {
        let id = StageId(self.stages.len() as u32);
        let plan = prune_plan(IRPlanRef { lp_top: piece.root, lp_arena: &self.ir, expr_arena: &self.exprs });
        let nodes = || (0..plan.lp_arena.len()).map(Node);
        let placeholder = |df: &Arc<DataFrame>| {
            nodes().find(|node| match plan.lp_arena.get(*node) {
                IR::DataFrameScan { df: found, .. } => Arc::ptr_eq(found, df),
                _ => false,
            })
        };
        let inputs = piece.inputs.iter().map(|input| Input {
            node: input.placeholder.as_ref().and_then(placeholder),
            segments: input.segments,
            at_once: piece.reads_codes,
        });
        let inputs = inputs.collect();
        let scan = |scan: &PieceScan| {
            let found = nodes().find(|node| match plan.lp_arena.get(*node) {
                IR::Scan { sources, .. }
                | IR::MapFunction { function: FunctionIR::FastCount { sources, .. }, .. } => {
                    sources.first_path() == Some(&scan.token)
                }
                _ => false,
            });
            found.ok_or_else(|| Failure::internal("a scan was lost from its fragment"))
        };
        let scans = piece.scans.iter().map(scan).collect::<Result<_, _>>()?;
        let fragment = Fragment::new(inputs, scans, output, plan).write()?;

        let task = |task: u32| {
            let part = |scan: &PieceScan| scan.splits.get(task as usize).cloned();
            let parts: Vec<ScanSplit> = piece.scans.iter().filter_map(part).collect();
            let scan_bytes = parts.iter().map(|part| part.bytes).sum();
            Ok(TaskSpec { split: write_split(&parts)?, scan_bytes })
        };
        let tasks = (0..piece.tasks).map(task).collect::<Result<_, Failure>>()?;
        let mut files: Vec<FileMark> = piece
            .scans
            .iter()
            .flat_map(|scan| &scan.splits)
            .flat_map(|split| split.files.iter().cloned())
            .collect();
        files.sort();
        files.dedup();
        if !files.is_empty() {
            self.files.push((id, files));
        }
        self.stages.push(Stage {
            id,
            work: Work::Fragment(fragment),
            inputs: piece
                .inputs
                .iter()
                .map(|input| StageInput { stage: input.stage, read: input.read })
                .collect(),
            exchange,
            tasks,
            operators: piece.operators,
            single_because: piece.single_because,
            seen_by: Vec::new(),
            unseen_by: Vec::new(),
        });
        Ok(id)
    }

    /// Seals a piece whose rows another piece will read. The height of a frame without columns would be lost
    /// on the way, so such rows are numbered.
    fn hand_over(
        &mut self,
        mut piece: Piece,
        output: Output,
        exchange: Exchange,
    ) -> Result<StageId, Failure> {
        if self.schema(piece.root).is_empty() {
            let function =
                FunctionIR::RowIndex { name: HEIGHT.into(), offset: None, schema: Default::default() };
            self.add_silently(&mut piece, IR::MapFunction { input: INPUT, function });
        }
        self.seal(piece, output, exchange)
    }

    /// Starts a piece that reads a stage.
    fn read(&mut self, stage: StageId, schema: &SchemaRef, read: Read, tasks: u32, bytes: u64) -> Piece {
        let columns = if schema.is_empty() {
            Arc::new(Schema::from_iter([Field::new(HEIGHT.into(), DataType::IDX_DTYPE)]))
        } else {
            schema.clone()
        };
        let df = Arc::new(DataFrame::empty_with_schema(&columns));
        let placeholder = IR::DataFrameScan { df: df.clone(), schema: columns, output_schema: None };
        let mut piece = Piece {
            root: self.ir.add(placeholder),
            inputs: vec![PieceInput { stage, read, segments: Segments::All, placeholder: Some(df) }],
            scans: Vec::new(),
            tasks,
            bytes,
            operators: Vec::new(),
            single_because: None,
            reads_codes: false,
        };
        if schema.is_empty() {
            self.add_silently(&mut piece, IR::SimpleProjection { input: INPUT, columns: schema.clone() });
        }
        piece
    }

    /// All rows in one task, in order.
    fn gather(&mut self, piece: Piece, because: Option<String>) -> Result<Piece, Failure> {
        if piece.tasks == 1 {
            return Ok(piece);
        }
        let (schema, bytes) = (self.schema(piece.root), piece.bytes);
        let stage = self.hand_over(piece, Output::Rows, Exchange::Gather)?;
        let mut piece = self.read(stage, &schema, Read::All, 1, bytes);
        piece.single_because = because;
        Ok(piece)
    }

    /// Rows with equal keys in the same task. `drop` are columns that were added for the keys.
    fn exchange(
        &mut self,
        piece: Piece,
        keys: Vec<String>,
        shown: Vec<String>,
        drop: Vec<String>,
        buckets: u32,
    ) -> Result<Piece, Failure> {
        let mut schema = (*self.schema(piece.root)).clone();
        for name in &drop {
            schema.shift_remove(name.as_str());
        }
        let bytes = piece.bytes;
        let stage =
            self.hand_over(piece, Output::Hash { keys, drop }, Exchange::Hash { keys: shown, buckets })?;
        Ok(self.read(stage, &Arc::new(schema), Read::Bucket, buckets, bytes))
    }

    /// How many buckets rows of this size should be put into.
    fn buckets(&self, bytes: u64) -> u32 {
        let by_memory = bytes.div_ceil(self.shape.task_bytes.max(1));
        let by_slots =
            bytes.div_ceil(BUCKET_BYTES.min(self.shape.task_bytes.max(1))).min(self.shape.slots.into());
        by_memory.max(by_slots).clamp(1, MAX_BUCKETS) as u32
    }

    // ---- sources

    fn scan(&mut self, mut ir: IR) -> Result<Piece, Failure> {
        let IR::Scan { sources, predicate, scan_type, .. } = &ir else {
            return Err(Failure::internal("not a scan"));
        };
        if matches!(**scan_type, FileScanIR::Anonymous { .. }) {
            return Err(refused("a scan by a function of the driver: only files and frames travel"));
        }
        let text = operator(&ir, &self.exprs);
        let paths = match sources {
            ScanSources::Files(_) => return Err(refused("a scan of open files: name them by their paths")),
            ScanSources::Paths(paths) if !paths.is_empty() => paths.clone(),
            // Bytes in memory travel in the fragment, and no file at all needs none.
            _ => {
                forget_metadata(&mut ir);
                return Ok(Piece::source(self.ir.add(ir), Vec::new(), 0, text));
            }
        };
        if let Some(path) = paths.iter().find(|path| path.has_scheme()) {
            return Err(refused(&format!("a scan of {path}: only files are read, no object stores")));
        }
        let predicate = predicate.as_slice();
        let halved = !predicate.is_empty();
        let codes = self.codes(predicate, &ir.schema(&self.ir), false)?;
        let separable = codes.is_none() && predicate.iter().all(|e| elementwise(e.node(), &self.exprs));
        let (splits, reason) = files::split(&ir, separable, &self.shape)?;
        let bytes: u64 = splits.iter().map(|split| split.bytes).sum();
        let token = self.token();
        let IR::Scan { sources, file_info, unified_scan_args, .. } = &mut ir else {
            return Err(Failure::internal("not a scan"));
        };
        // What the planner read of the first file does not hold for a task's files.
        *sources = ScanSources::Paths([token.clone()].into_iter().collect());
        file_info.row_estimation = (None, usize::MAX);
        unified_scan_args.table_statistics = None;
        forget_metadata(&mut ir);
        let root = self.ir.add(ir);
        let bytes = if halved { bytes / 2 } else { bytes };
        let mut piece = Piece::source(root, vec![PieceScan { token, splits }], bytes, text);
        piece.reads_codes = codes.is_some();
        piece.single_because = reason.map(|reason| codes.unwrap_or(reason));
        Ok(piece)
    }

    fn token(&mut self) -> PlRefPath {
        self.scans += 1;
        PlRefPath::new(format!("/floe/scan/{}", self.scans))
    }

    /// A driver's frame: inside the fragment if small, else a stage of its own that is there from the start.
    fn frame(&mut self, df: &DataFrame, wanted: Option<&SchemaRef>) -> Result<Piece, Failure> {
        let df = match wanted {
            Some(schema) => df.select(schema.iter_names().cloned()).map_err(query_failure)?,
            None => df.clone(),
        };
        let schema = df.schema().clone();
        let bytes = df.estimated_size();
        if bytes <= EMBEDDED_BYTES {
            let ir = IR::DataFrameScan { df: Arc::new(df), schema, output_schema: None };
            let text = operator(&ir, &self.exprs);
            let mut piece = Piece::source(self.ir.add(ir), Vec::new(), bytes as u64, text);
            if wanted.is_none() && piece.operators[0] == "frame of 0 rows" {
                piece.operators.clear();
            }
            return Ok(piece);
        }
        let by_memory = (bytes as u64).div_ceil(self.shape.task_bytes.max(1)) as usize;
        let by_slots = (df.height() / MIN_FRAME_ROWS).min(2 * self.shape.slots as usize);
        let parts = by_memory.max(by_slots).clamp(1, df.height().max(1));
        let id = StageId(self.stages.len() as u32);
        for part in 0..parts {
            let bound = |part: usize| (part as u128 * df.height() as u128 / parts as u128) as usize;
            let rows = df.slice(bound(part) as i64, bound(part + 1) - bound(part));
            self.frames.push((id, part as u32, rows));
        }
        self.stages.push(Stage {
            id,
            work: Work::Held(Vec::new()),
            inputs: Vec::new(),
            exchange: Exchange::Pass,
            tasks: vec![TaskSpec::default(); parts],
            operators: vec![format!("frame of {} rows and {} columns", df.height(), df.width())],
            single_because: None,
            seen_by: Vec::new(),
            unseen_by: Vec::new(),
        });
        Ok(self.read(id, &schema, Read::Partition { first: 0 }, parts as u32, bytes as u64))
    }

    // ---- operators that keep rows apart

    fn select(&mut self, ir: IR) -> Result<Piece, Failure> {
        let IR::Select { input, expr, schema, options } = &ir else {
            return Err(Failure::internal("not a select"));
        };
        let piece = self.lower(*input)?;
        let mut piece = self.for_codes(piece, expr)?;
        if piece.tasks > 1 && !select_is_separable(expr, &self.exprs) {
            let rows = self.schema(piece.root);
            match two_steps(expr, &rows, schema, &mut self.exprs) {
                Ok(steps) if !steps.partials.is_empty() => {
                    return self.select_aggregates(piece, steps, schema.clone(), *options);
                }
                _ => {
                    let reason = if expr.iter().all(|e| is_scalar_ae(e.node(), &self.exprs)) {
                        format!("`{}` has no partial form", expressions(expr, &self.exprs))
                    } else {
                        culprit(expr, &self.exprs)
                    };
                    piece = self.gather(piece, Some(reason))?;
                }
            }
        }
        self.add(&mut piece, ir);
        Ok(piece)
    }

    /// Aggregates of all rows: of each task's, then of the tasks' results.
    fn select_aggregates(
        &mut self,
        mut piece: Piece,
        steps: TwoSteps,
        schema: SchemaRef,
        options: ProjectionOptions,
    ) -> Result<Piece, Failure> {
        let rows = self.schema(piece.root);
        let mut partials = steps.partials;
        if steps.needs_rows {
            partials.push(AExprBuilder::dataframe_length(&mut self.exprs).expr_ir(ROWS));
        }
        let partial_schema = Arc::new(self.extended(Schema::default(), &partials, &rows)?);
        let text = expressions(&partials, &self.exprs);
        self.add_silently(
            &mut piece,
            IR::Select { input: INPUT, expr: partials, schema: partial_schema, options },
        );
        piece.operators.push(format!("partial {text}"));
        if steps.needs_rows {
            let zero = AExprBuilder::lit_scalar(Scalar::from(0 as IdxSize), &mut self.exprs);
            let predicate = AExprBuilder::col(ROWS, &mut self.exprs).gt(zero, &mut self.exprs).expr_ir(ROWS);
            self.add_silently(&mut piece, IR::Filter { input: INPUT, predicate });
        }
        piece.bytes = 0;
        let mut piece = self.gather(piece, None)?;
        let text = list(&steps.finals.iter().map(|e| e.output_name().as_str()).collect::<Vec<_>>());
        self.add_silently(&mut piece, IR::Select { input: INPUT, expr: steps.finals, schema, options });
        piece.operators.push(format!("final {text}"));
        Ok(piece)
    }

    fn map_function(&mut self, mut ir: IR) -> Result<Piece, Failure> {
        let IR::MapFunction { input, function } = &mut ir else {
            return Err(Failure::internal("not a function"));
        };
        let input = *input;
        match function {
            FunctionIR::Opaque { fmt_str, .. } => {
                Err(refused(&format!("`{fmt_str}`, a function of the driver: it cannot be sent")))
            }
            FunctionIR::FastCount { sources, .. } => {
                let mut piece = self.lower(input)?;
                piece.operators.clear();
                if let ScanSources::Paths(paths) = sources {
                    let split = files::whole(paths)?;
                    let text = operator(&ir, &self.exprs);
                    let token = self.token();
                    if let IR::MapFunction { function: FunctionIR::FastCount { sources, .. }, .. } = &mut ir {
                        *sources = ScanSources::Paths([token.clone()].into_iter().collect());
                    }
                    piece.scans.push(PieceScan { token, splits: vec![split] });
                    self.add_silently(&mut piece, ir);
                    piece.operators.push(text);
                } else {
                    self.add(&mut piece, ir);
                }
                Ok(piece)
            }
            FunctionIR::RowIndex { .. } => {
                self.apply(input, ir, Some("rows are numbered from the first one".to_owned()))
            }
            FunctionIR::Unnest { .. }
            | FunctionIR::Explode { .. }
            | FunctionIR::Unpivot { .. }
            | FunctionIR::Hint(_) => self.apply(input, ir, None),
            other => {
                let reason = format!("`{other}` is not known to keep rows apart");
                self.apply(input, ir, Some(reason))
            }
        }
    }

    /// Rows from `offset` on (from the end if negative), `len` of them. Each task gives as many as could be
    /// among them.
    fn slice(&mut self, mut piece: Piece, offset: i64, len: usize) -> Result<Piece, Failure> {
        let idx = |n: u64| IdxSize::try_from(n).unwrap_or(IdxSize::MAX);
        if piece.tasks > 1 {
            let (from, most) = if offset >= 0 {
                (0, (offset as u64).saturating_add(len as u64))
            } else {
                (offset, offset.unsigned_abs())
            };
            self.add(&mut piece, IR::Slice { input: INPUT, offset: from, len: idx(most) });
            piece = self.gather(piece, None)?;
        }
        self.add(&mut piece, IR::Slice { input: INPUT, offset, len: idx(len as u64) });
        Ok(piece)
    }

    // ---- operators that need rows to meet

    fn group_by(&mut self, ir: IR) -> Result<Piece, Failure> {
        let IR::GroupBy { input, keys, aggs, schema, maintain_order, options, apply } = ir else {
            return Err(Failure::internal("not a group_by"));
        };
        if apply.is_some() {
            return Err(refused("a group_by with a function of the driver: it cannot be sent"));
        }
        let piece = self.lower(input)?;
        let mut piece = self.for_codes(piece, &[&keys[..], &aggs[..]].concat())?;
        let mut group = Group { keys, aggs, schema, maintain_order, options };
        let rows = self.schema(piece.root);
        let reason = self.group_in_one_task(&group, &piece);
        if piece.tasks == 1 || reason.is_some() {
            piece = self.gather(piece, reason)?;
            self.add(&mut piece, group.ir(INPUT));
            return Ok(piece);
        }
        let slice = group.options.slice;
        if slice.is_some() {
            group.options = Arc::new(GroupbyOptions { slice: None, ..(*group.options).clone() });
        }
        let piece = match two_steps(&group.aggs, &rows, &group.schema, &mut self.exprs) {
            Ok(steps) => self.group_in_two_steps(piece, group, steps)?,
            Err(aggregate) if group.maintain_order => {
                let reason = format!("groups keep their order and `{aggregate}` has no partial form");
                let mut piece = self.gather(piece, Some(reason))?;
                self.add(&mut piece, group.ir(INPUT));
                piece
            }
            Err(_) => {
                let keys = group.keys.clone();
                let mut piece = self.exchange_by(piece, &keys)?;
                self.add(&mut piece, group.ir(INPUT));
                piece.bytes /= GROUPING_SHRINKS;
                piece
            }
        };
        match slice {
            Some((offset, len)) => self.slice(piece, offset, len),
            None => Ok(piece),
        }
    }

    fn group_in_one_task(&self, group: &Group, piece: &Piece) -> Option<String> {
        if group.options.is_dynamic() || group.options.is_rolling() {
            return Some("windows of a dynamic or rolling group_by overlap".to_owned());
        }
        if !group.keys.iter().all(|key| elementwise(key.node(), &self.exprs)) {
            return Some(culprit(&group.keys, &self.exprs));
        }
        if group.keys.iter().any(|key| is_scalar_ae(key.node(), &self.exprs)) {
            return Some("a key of the group_by is a constant".to_owned());
        }
        self.unfit_key(&group.keys, piece)
    }

    /// Why rows cannot be put into buckets by these keys, if so.
    fn unfit_key(&self, keys: &[ExprIR], piece: &Piece) -> Option<String> {
        let schema = self.schema(piece.root);
        keys.iter().find_map(|key| {
            let dtype = key.dtype(&schema, &self.exprs).ok()?;
            (!can_be_key(dtype)).then(|| format!("a key of type {dtype} has no bytes of its own"))
        })
    }

    fn group_in_two_steps(
        &mut self,
        mut piece: Piece,
        group: Group,
        steps: TwoSteps,
    ) -> Result<Piece, Failure> {
        let rows = self.schema(piece.root);
        let schema = self.extended(Schema::default(), &group.keys, &rows)?;
        let schema = Arc::new(self.extended(schema, &steps.partials, &rows)?);
        let partial = Group { aggs: steps.partials, schema, ..group.clone() };
        self.add_silently(&mut piece, partial.ir(INPUT));
        piece.operators.push(format!("partial {}", operator(self.ir.get(piece.root), &self.exprs)));
        piece.bytes /= GROUPING_SHRINKS;

        let names: Vec<String> = group.keys.iter().map(|key| key.output_name().to_string()).collect();
        let buckets = self.buckets(piece.bytes);
        // In the order of first appearance: of the partial groups, in the order of tasks, in one task.
        let mut piece = if buckets == 1 || group.maintain_order {
            self.gather(piece, None)?
        } else {
            self.exchange(piece, names.clone(), names.clone(), Vec::new(), buckets)?
        };
        let column = |name: &String| ExprIR::from_column_name(name.as_str().into(), &mut self.exprs);
        let keys = names.iter().map(column).collect();
        let aggregates: Vec<&str> = steps.finals.iter().map(|e| e.output_name().as_str()).collect();
        let text = format!("final group by {}: {}", list(&names), list(&aggregates));
        let last = Group { keys, aggs: steps.finals, ..group };
        self.add_silently(&mut piece, last.ir(INPUT));
        piece.operators.push(text.trim_end_matches(": ").to_owned());
        Ok(piece)
    }

    /// Rows with equal values of some expressions in the same task.
    fn exchange_by(&mut self, mut piece: Piece, keys: &[ExprIR]) -> Result<Piece, Failure> {
        let buckets = self.buckets(piece.bytes);
        if buckets == 1 {
            return self.gather(piece, None);
        }
        let shown = keys.iter().map(|key| expression(key, &self.exprs)).collect();
        let (names, added) = self.key_columns(&mut piece, keys)?;
        self.exchange(piece, names, shown, added, buckets)
    }

    /// Makes columns of expressions that are not. Returns all their names, and those that were added.
    fn key_columns(
        &mut self,
        piece: &mut Piece,
        keys: &[ExprIR],
    ) -> Result<(Vec<String>, Vec<String>), Failure> {
        let (mut names, mut added, mut exprs) = (Vec::new(), Vec::new(), Vec::new());
        for (index, key) in keys.iter().enumerate() {
            if let AExpr::Column(name) = self.exprs.get(key.node()) {
                names.push(name.to_string());
            } else {
                let name = format!("__floe_key_{index}");
                exprs.push(ExprIR::new(key.node(), OutputName::Alias(name.as_str().into())));
                names.push(name.clone());
                added.push(name);
            }
        }
        self.with_columns(piece, exprs)?;
        Ok((names, added))
    }

    fn distinct(&mut self, input: Node, options: DistinctOptionsIR) -> Result<Piece, Failure> {
        let mut piece = self.lower(input)?;
        let schema = self.schema(piece.root);
        let names: Vec<PlSmallStr> = match &options.subset {
            Some(subset) => subset.to_vec(),
            None => schema.iter_names().cloned().collect(),
        };
        let column = |name: &PlSmallStr| ExprIR::from_column_name(name.clone(), &mut self.exprs);
        let keys: Vec<ExprIR> = names.iter().map(column).collect();
        let any_once = !matches!(options.keep_strategy, UniqueKeepStrategy::None);
        let reason = if piece.tasks == 1 {
            None
        } else if options.maintain_order && !any_once {
            Some("rows that occur once keep their order".to_owned())
        } else {
            self.unfit_key(&keys, &piece)
        };
        let ir = |input: Node, slice| IR::Distinct {
            input,
            options: DistinctOptionsIR { slice, ..options.clone() },
        };
        if piece.tasks == 1 || names.is_empty() || reason.is_some() {
            piece = self.gather(piece, reason)?;
            self.add(&mut piece, ir(INPUT, options.slice));
            return Ok(piece);
        }
        if any_once {
            self.add_silently(&mut piece, ir(INPUT, None));
            piece.operators.push(format!("partial {}", operator(self.ir.get(piece.root), &self.exprs)));
            piece.bytes /= 2;
        }
        piece =
            if options.maintain_order { self.gather(piece, None)? } else { self.exchange_by(piece, &keys)? };
        self.add(&mut piece, ir(INPUT, None));
        match options.slice {
            Some((offset, len)) => self.slice(piece, offset, len),
            None => Ok(piece),
        }
    }

    fn sort(&mut self, ir: IR) -> Result<Piece, Failure> {
        let IR::Sort { input, by_column, slice, mut sort_options } = ir else {
            return Err(Failure::internal("not a sort"));
        };
        let piece = self.lower(input)?;
        let mut piece = self.for_codes(piece, &by_column)?;
        // A predicate that tightens while the sort runs does not reach scans in other stages.
        let slice = slice.map(|(offset, len, _)| (offset, len, None));
        for flags in [&mut sort_options.descending, &mut sort_options.nulls_last] {
            if let [only] = flags[..] {
                flags.resize(by_column.len(), only);
            }
        }
        let sort = |input: Node, slice| IR::Sort {
            input,
            by_column: by_column.clone(),
            slice,
            sort_options: sort_options.clone(),
        };
        let reason = if piece.tasks == 1 {
            None
        } else if by_column.iter().all(|key| elementwise(key.node(), &self.exprs)) {
            self.unfit_key(&by_column, &piece)
        } else {
            Some(culprit(&by_column, &self.exprs))
        };
        let top = match slice {
            Some((offset, len, _)) if offset >= 0 => Some((offset as usize).saturating_add(len)),
            _ => None,
        };
        if piece.tasks > 1 && reason.is_none() {
            if let Some(most) = top {
                self.add(&mut piece, sort(INPUT, Some((0, most, None))));
                piece.bytes /= GROUPING_SHRINKS;
            } else if slice.is_none() && piece.bytes > GATHER_BYTES.min(self.shape.task_bytes) {
                sort_options.limit = None;
                return self.sort_by_ranges(piece, by_column, sort_options);
            }
        }
        piece = self.gather(piece, reason)?;
        self.add(&mut piece, sort(INPUT, slice));
        Ok(piece)
    }

    /// ```text
    ///   rows, and a sample of them ──┬── sample ──> where to cut ──(to all)──┐
    ///                                └── rows ───────────────────────> into ranges ──> sort each range
    /// ```
    fn sort_by_ranges(
        &mut self,
        mut piece: Piece,
        by_column: Vec<ExprIR>,
        sort_options: SortMultipleOptions,
    ) -> Result<Piece, Failure> {
        let schema = self.schema(piece.root);
        let (tasks, bytes) = (piece.tasks, piece.bytes);
        let ranges = self.buckets(bytes).max(2);
        let shown: Vec<String> = by_column.iter().map(|key| expression(key, &self.exprs)).collect();
        let (names, added) = self.key_columns(&mut piece, &by_column)?;
        let flags = sort_options.descending.iter().zip(&sort_options.nulls_last);
        let by: Vec<SortKey> = names
            .into_iter()
            .zip(flags)
            .map(|(column, (&descending, &nulls_last))| SortKey { column, descending, nulls_last })
            .collect();

        let with_keys = self.schema(piece.root);
        piece.operators.push(format!("{SAMPLE}{}", list(&shown)));
        let exchange = Exchange::Range { keys: shown.clone(), buckets: 2 };
        let rows = self.seal(piece, Output::Sampled { by: by.clone() }, exchange)?;

        let mut sample = self.read(rows, &Arc::new(sample_schema()), Read::Bucket, 1, 0);
        sample.operators.push(format!("choose {ranges} ranges of {}", list(&shown)));
        let boundaries = self.seal(sample, Output::Boundaries { ranges }, Exchange::Broadcast)?;

        let mut cut = self.read(rows, &with_keys, Read::Partition { first: 0 }, tasks, bytes);
        cut.inputs[0].segments = Segments::Rows;
        cut.inputs.push(PieceInput {
            stage: boundaries,
            read: Read::All,
            segments: Segments::All,
            placeholder: None,
        });
        cut.operators.push(format!("cut into ranges of {}", list(&shown)));
        let output = Output::Range { by, boundaries: 1, drop: added };
        let cut = self.seal(cut, output, Exchange::Range { keys: shown, buckets: ranges })?;

        let mut piece = self.read(cut, &schema, Read::Bucket, ranges, bytes);
        self.add(&mut piece, IR::Sort { input: INPUT, by_column, slice: None, sort_options });
        Ok(piece)
    }

    /// One task for each task of each branch, in order; small branches of one task each share one.
    fn union(&mut self, inputs: &[Node], options: UnionOptions) -> Result<Piece, Failure> {
        let mut pieces = Vec::new();
        for input in inputs {
            pieces.push(self.lower(*input)?);
        }
        let together = pieces.iter().any(|piece| piece.reads_codes);
        if together {
            pieces = pieces.into_iter().map(|piece| self.gather(piece, None)).collect::<Result<_, _>>()?;
        }
        let without_slice = UnionOptions { slice: None, ..options };
        let bytes: u64 = pieces.iter().map(|piece| piece.bytes).sum();
        let small = together
            || pieces.iter().all(|piece| piece.tasks == 1)
                && bytes <= GATHER_BYTES.min(self.shape.task_bytes);
        if !small {
            let mut branches = Vec::new();
            let mut first = 0;
            for piece in pieces {
                let (schema, tasks, bytes) = (self.schema(piece.root), piece.tasks, piece.bytes);
                let stage = self.hand_over(piece, Output::Rows, Exchange::Pass)?;
                branches.push(self.read(stage, &schema, Read::Partition { first }, tasks, bytes));
                first += tasks;
            }
            pieces = branches;
        }
        let tasks = if small { 1 } else { pieces.iter().map(|piece| piece.tasks).sum() };
        let roots: Vec<Node> = pieces.iter().map(|piece| piece.root).collect();
        let mut piece = merge(pieces);
        piece.tasks = tasks;
        piece.root = self.ir.add(IR::Union { inputs: roots, options: without_slice });
        piece.operators.push(operator(self.ir.get(piece.root), &self.exprs));
        match options.slice {
            Some((offset, len)) => self.slice(piece, offset, len),
            None => Ok(piece),
        }
    }
}

/// The largest number of buckets of an exchange: each map output has a segment for each.
const MAX_BUCKETS: u64 = 4096;

/// A group_by.
#[derive(Clone)]
struct Group {
    keys: Vec<ExprIR>,
    aggs: Vec<ExprIR>,
    schema: SchemaRef,
    maintain_order: bool,
    options: Arc<GroupbyOptions>,
}

impl Group {
    fn ir(&self, input: Node) -> IR {
        IR::GroupBy {
            input,
            keys: self.keys.clone(),
            aggs: self.aggs.clone(),
            schema: self.schema.clone(),
            maintain_order: self.maintain_order,
            options: self.options.clone(),
            apply: None,
        }
    }
}

impl Piece {
    /// A piece that reads no stage.
    fn source(root: Node, scans: Vec<PieceScan>, bytes: u64, text: String) -> Self {
        let tasks = scans.first().map_or(1, |scan| scan.splits.len() as u32);
        Self {
            root,
            inputs: Vec::new(),
            scans,
            tasks,
            bytes,
            operators: vec![text],
            single_because: None,
            reads_codes: false,
        }
    }
}

/// Several pieces as one, which has no root yet that brings them together.
fn merge(pieces: Vec<Piece>) -> Piece {
    let mut merged = Piece {
        root: Node::default(),
        inputs: Vec::new(),
        scans: Vec::new(),
        tasks: 1,
        bytes: 0,
        operators: Vec::new(),
        single_because: None,
        reads_codes: false,
    };
    for piece in pieces {
        merged.inputs.extend(piece.inputs);
        merged.scans.extend(piece.scans);
        merged.bytes += piece.bytes;
        merged.operators.extend(piece.operators);
        merged.reads_codes |= piece.reads_codes;
        merged.single_because = merged.single_because.or(piece.single_because);
    }
    merged
}

fn refused(what: &str) -> Failure {
    Failure::Refused { message: format!("a mesh does not run {what}") }
}
