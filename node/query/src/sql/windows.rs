//! Window functions.
//!
//! Without an order they are Polars SQL's. With one they are computed here, as the standard has them: rows that are
//! equal in the order are *peers*, which a frame that ends at the current row has all in it unless it says `ROWS`, and
//! nulls stand where `ORDER BY` puts them.
//!
//! ```text
//!   peer     the number of a row's peers within its partition, in order
//!   number   the number of the row itself; peers are numbered as they come
//! ```

use floe_protocol::Failure;
use polars::prelude::*;
use sqlparser::ast::{
    Expr as Sql, Function, FunctionArg, FunctionArgExpr, FunctionArguments, OrderByExpr, Spanned,
    WindowFrame, WindowFrameBound, WindowFrameUnits, WindowSpec, WindowType,
};
use sqlparser::tokenizer::Span;

use super::place::{unsupported, wrong};
use super::planner::Planner;
use super::relation::{Column, Relation};
use super::scalar::{Outer, Scope};
use super::value::{Typed, dtype_of, unify};
use super::{aggregate, delegate};

/// Where the operands of a window function are looked up.
pub(super) struct Rows<'r> {
    pub(super) relation: &'r mut Relation,
    pub(super) computed: &'r [(Sql, Typed)],
    pub(super) ungrouped: &'r [Column],
    pub(super) outer: Option<&'r Outer>,
}

/// How far the frame of a row goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// To the row.
    Row,
    /// To the last of its peers.
    Peers,
    /// Over the whole partition.
    All,
}

/// Partitions with an order, as columns of a relation.
struct Ordered {
    partition: Vec<Expr>,
    peer: Expr,
    number: Expr,
}

impl Ordered {
    /// Of all rows of the partition.
    fn over(&self, expr: Expr) -> Expr {
        if self.partition.is_empty() { expr } else { windowed(expr, self.partition.clone(), None) }
    }

    /// Of all peers of a row.
    fn over_peers(&self, expr: Expr) -> Expr {
        windowed(expr, [self.partition.as_slice(), std::slice::from_ref(&self.peer)].concat(), None)
    }

    /// Row by row, in order.
    fn along(&self, expr: Expr) -> Expr {
        let everything = self.partition.is_empty().then(|| lit(1));
        let partition = self.partition.iter().cloned().chain(everything).collect();
        windowed(expr, partition, Some(self.number.clone()))
    }
}

fn windowed(expr: Expr, partition_by: Vec<Expr>, order_by: Option<Expr>) -> Expr {
    Expr::Over {
        function: Arc::new(expr),
        partition_by,
        order_by: order_by.map(|order| (Arc::new(order), SortOptions::default())),
        mapping: WindowMapping::default(),
    }
}

impl Planner<'_> {
    /// A window function, computed as a column.
    pub(super) fn window(&mut self, window: &Sql, rows: &mut Rows<'_>) -> Result<Typed, Failure> {
        if let Sql::Function(function) = window
            && let Some(WindowType::WindowSpec(spec)) = &function.over
            && !spec.order_by.is_empty()
        {
            let name = aggregate::name(function);
            if frame(spec.window_frame.as_ref(), window.span())? != Frame::All || is_of_position(&name) {
                return self.ordered_window(&name, function, spec, window.span(), rows);
            }
            // The order is of no account.
            let spec = WindowSpec { order_by: Vec::new(), window_frame: None, ..spec.clone() };
            let function = Function { over: Some(WindowType::WindowSpec(spec)), ..function.clone() };
            return self.delegated_window(&Sql::Function(function), rows);
        }
        self.delegated_window(window, rows)
    }

    fn delegated_window(&mut self, window: &Sql, rows: &mut Rows<'_>) -> Result<Typed, Failure> {
        let span = window.span();
        let (translated, operands) = delegate::translate(window, |operand, _| {
            let typed = self.operand(operand, rows)?;
            let Expr::Column(id) = &typed.expr else {
                return Err(Failure::internal("an operand of a window that is no column"));
            };
            Ok((id.to_string(), typed))
        })?;
        let columns: Vec<(&str, &DataType)> =
            operands.iter().map(|(name, typed)| (name.as_str(), &typed.dtype)).collect();
        let dtype = dtype_of(&translated, &columns, span)?;
        let label = operands.first().map_or("literal", |(_, typed)| typed.name.as_str());
        Ok(Typed::new(self.column(translated, rows), dtype).named(label))
    }

    /// An operand as a column.
    fn operand(&mut self, operand: &Sql, rows: &mut Rows<'_>) -> Result<Typed, Failure> {
        let Rows { relation, computed, ungrouped, outer } = rows;
        let mut scope = Scope { relation, outer: *outer, computed, ungrouped, aliases: &[] };
        let typed = self.scalar(operand, &mut scope)?.settled(operand.span())?;
        Ok(match typed.expr {
            Expr::Column(_) => typed,
            _ => Typed { expr: self.column(typed.expr, rows), ..typed },
        })
    }

    /// An expression as a column.
    fn column(&mut self, expr: Expr, rows: &mut Rows<'_>) -> Expr {
        let id = self.fresh("window");
        let frame = &mut rows.relation.frame;
        *frame = std::mem::take(frame).with_columns([expr.alias(id.clone())]);
        Expr::Column(id)
    }

    fn ordered_window(
        &mut self,
        name: &str,
        function: &Function,
        spec: &WindowSpec,
        span: Span,
        rows: &mut Rows<'_>,
    ) -> Result<Typed, Failure> {
        let distinct =
            matches!(&function.args, FunctionArguments::List(list) if list.duplicate_treatment.is_some());
        if function.filter.is_some() || function.null_treatment.is_some() || distinct {
            return Err(unsupported("FILTER, DISTINCT or IGNORE NULLS in a window with ORDER BY", span));
        }
        let every = matches!(&function.args, FunctionArguments::List(list)
            if matches!(list.args.as_slice(), [FunctionArg::Unnamed(FunctionArgExpr::Wildcard)]));
        let arguments = match every {
            true => Vec::new(),
            false => delegate::arguments(function)
                .ok_or_else(|| unsupported(&format!("{name} with these arguments"), span))?,
        };
        let frame = frame(spec.window_frame.as_ref(), span)?;
        let mut operands = Vec::new();
        // Of LAG and LEAD the second, and of NTILE the first, is a number of the text.
        let read = match name {
            "ntile" => 0,
            _ => 1,
        };
        for argument in arguments.iter().take(read) {
            operands.push(self.operand(argument, rows)?);
        }
        let order = self.ordered(spec, rows)?;
        let counted = |expr: Expr| Typed { nullable: false, ..Typed::new(expr, DataType::UInt32) };
        let share = |expr: Expr| Typed { nullable: false, ..Typed::new(expr, DataType::Float64) };
        let rank = |method: RankMethod| {
            let options = RankOptions { method, descending: false };
            order.over(order.peer.clone().rank(options, None)).cast(DataType::UInt32)
        };
        let typed = match (name, operands.as_slice(), arguments.len()) {
            ("row_number", [], 0) => counted(order.number.clone()),
            ("rank", [], 0) => counted(rank(RankMethod::Min)),
            ("dense_rank", [], 0) => counted(rank(RankMethod::Dense)),
            ("percent_rank", [], 0) => {
                let before = (rank(RankMethod::Min) - lit(1u32)).cast(DataType::Float64);
                let others = order.over(len()).cast(DataType::Float64) - lit(1.0);
                share(when(others.clone().gt(lit(0.0))).then(before.true_div(others)).otherwise(lit(0.0)))
            }
            ("cume_dist", [], 0) => {
                let until = rank(RankMethod::Max).cast(DataType::Float64);
                share(until.true_div(order.over(len()).cast(DataType::Float64)))
            }
            ("ntile", [], 1) => {
                let tiles = whole(arguments[0]).filter(|tiles| *tiles > 0);
                let tiles = lit(tiles.ok_or_else(|| wrong("NTILE has a whole number above 0", span))?);
                let (rows, before) = (order.over(len()).cast(DataType::Int64), order.number.clone());
                let before = before.cast(DataType::Int64) - lit(1i64);
                // The first tiles have one row more than the others, as far as rows are left over.
                let (size, left) = (rows.clone().floor_div(tiles.clone()), rows % tiles);
                let larger = (size.clone() + lit(1i64)) * left.clone();
                let tile = when(before.clone().lt(larger.clone()))
                    .then(before.clone().floor_div(size.clone() + lit(1i64)))
                    .otherwise(left + (before - larger).floor_div(size));
                counted((tile + lit(1i64)).cast(DataType::UInt32))
            }
            ("lag" | "lead", [value], 1..=3) => {
                let steps = match arguments.get(1) {
                    Some(steps) => whole(steps)
                        .filter(|steps| *steps >= 0)
                        .ok_or_else(|| wrong(&format!("{name} has a whole number as its second"), span))?,
                    None => 1,
                };
                let by = if name == "lag" { steps } else { -steps };
                let shifted = self.column(order.along(value.expr.clone().shift(lit(by))), rows);
                let shifted = Typed { nullable: true, ..Typed::new(shifted, value.dtype.clone()) };
                match arguments.get(2) {
                    Some(other) => {
                        let other = self.operand(other, rows)?;
                        let (values, dtype) = unify(vec![shifted, other], span)?;
                        let [shifted, other] = <[Typed; 2]>::try_from(values)
                            .map_err(|_| Failure::internal("two values are two"))?;
                        let number = order.number.clone().cast(DataType::Int64);
                        let outside = match name {
                            "lag" => number.lt_eq(lit(steps)),
                            _ => number.gt(order.over(len()).cast(DataType::Int64) - lit(steps)),
                        };
                        Typed::new(when(outside).then(other.expr).otherwise(shifted.expr), dtype)
                    }
                    None => shifted,
                }
            }
            ("first_value", [value], 1) => {
                let first = by_number(value.expr.clone(), &order).first();
                Typed::new(order.over(first), value.dtype.clone())
            }
            ("last_value", [value], 1) => {
                let last = by_number(value.expr.clone(), &order).last();
                let last = match frame {
                    Frame::Row => value.expr.clone(),
                    Frame::Peers => order.over_peers(last),
                    Frame::All => order.over(last),
                };
                Typed::new(last, value.dtype.clone())
            }
            ("count", operands, _) if operands.len() <= 1 => {
                let running = match operands.first() {
                    Some(value) => self.running_count(value, &order, rows),
                    None => order.number.clone(),
                };
                counted(self.until(running, frame, &order, rows))
            }
            ("sum" | "avg", [value], 1) => {
                let count = self.running_count(value, &order, rows);
                let value = match &value.dtype {
                    _ if name == "avg" => value.clone().cast(&DataType::Float64, span)?,
                    dtype if dtype.is_integer() && !matches!(dtype, DataType::Int128 | DataType::UInt64) => {
                        value.clone().cast(&DataType::Int64, span)?
                    }
                    _ => value.clone(),
                };
                let zero = Typed::integer(0).cast(&value.dtype, span)?.expr;
                let sum = order.along(value.expr.fill_null(zero).cum_sum(false));
                let sum = self.column(sum, rows);
                let there = count.clone().gt(lit(0u32));
                let result = match name {
                    "avg" => sum.true_div(count.cast(DataType::Float64)),
                    _ => sum,
                };
                let null = lit(NULL).cast(value.dtype.clone());
                let running = self.column(when(there).then(result).otherwise(null), rows);
                Typed::new(self.until(running, frame, &order, rows), value.dtype)
            }
            ("min" | "max", [value], 1) => {
                let running = match name {
                    "min" => value.expr.clone().cum_min(false),
                    _ => value.expr.clone().cum_max(false),
                };
                // A null of the rows is no value of the frame.
                let running = running.fill_null_with_strategy(FillNullStrategy::Forward(None));
                let running = self.column(order.along(running), rows);
                Typed::new(self.until(running, frame, &order, rows), value.dtype.clone())
            }
            _ => return Err(unsupported(&format!("{name} with these arguments and ORDER BY in OVER"), span)),
        };
        let expr = self.column(typed.expr, rows);
        let label = operands.first().map_or("literal", |operand| operand.name.as_str());
        Ok(Typed { expr, ..typed }.named(label))
    }

    /// The partitions and the order of a window.
    fn ordered(&mut self, spec: &WindowSpec, rows: &mut Rows<'_>) -> Result<Ordered, Failure> {
        let mut partition = Vec::new();
        for expr in &spec.partition_by {
            partition.push(self.operand(expr, rows)?.expr);
        }
        let nothing = Expr::Literal(LiteralValue::untyped_null());
        let mut order = Ordered { partition, peer: nothing.clone(), number: nothing };
        let dense = |descending| RankOptions { method: RankMethod::Dense, descending };
        let mut ranks = Vec::new();
        for OrderByExpr { expr, options, .. } in &spec.order_by {
            let falling = options.asc == Some(false);
            // As in the ORDER BY of a query.
            let nulls_first = options.nulls_first.unwrap_or(falling);
            let key = self.operand(expr, rows)?.expr;
            let rank = order.over(key.rank(dense(falling), None)).cast(DataType::UInt32);
            let rank = rank.fill_null(lit(if nulls_first { 0 } else { u32::MAX }));
            ranks.push(self.column(rank, rows));
        }
        order.peer = match <[Expr; 1]>::try_from(ranks) {
            Ok([rank]) => rank,
            Err(ranks) => {
                let peer = order.over(as_struct(ranks).rank(dense(false), None)).cast(DataType::UInt32);
                self.column(peer, rows)
            }
        };
        let ordinal = RankOptions { method: RankMethod::Ordinal, descending: false };
        let number = order.over(order.peer.clone().rank(ordinal, None)).cast(DataType::UInt32);
        order.number = self.column(number, rows);
        Ok(order)
    }

    /// How many rows of the frame up to the row have a value.
    fn running_count(&mut self, value: &Typed, order: &Ordered, rows: &mut Rows<'_>) -> Expr {
        let there = value.expr.clone().is_not_null().cast(DataType::UInt32);
        self.column(order.along(there.cum_sum(false)), rows)
    }

    /// What a column that runs along the order has at the end of a row's frame.
    fn until(&mut self, running: Expr, frame: Frame, order: &Ordered, rows: &mut Rows<'_>) -> Expr {
        let last = |running: Expr| by_number(running, order).last();
        match frame {
            Frame::Row => running,
            Frame::Peers => self.column(order.over_peers(last(running)), rows),
            Frame::All => self.column(order.over(last(running)), rows),
        }
    }
}

fn by_number(expr: Expr, order: &Ordered) -> Expr {
    expr.sort_by([order.number.clone()], SortMultipleOptions::default())
}

/// Functions that ask for the place of a row, for which there is an order with any frame.
fn is_of_position(name: &str) -> bool {
    matches!(
        name,
        "row_number"
            | "rank"
            | "dense_rank"
            | "percent_rank"
            | "cume_dist"
            | "ntile"
            | "lag"
            | "lead"
            | "first_value"
            | "last_value"
    )
}

fn frame(frame: Option<&WindowFrame>, span: Span) -> Result<Frame, Failure> {
    let Some(frame) = frame else { return Ok(Frame::Peers) };
    match (&frame.start_bound, &frame.end_bound) {
        (WindowFrameBound::Preceding(None), None | Some(WindowFrameBound::CurrentRow)) => {
            Ok(if frame.units == WindowFrameUnits::Rows { Frame::Row } else { Frame::Peers })
        }
        (WindowFrameBound::Preceding(None), Some(WindowFrameBound::Following(None))) => Ok(Frame::All),
        _ => Err(unsupported(
            "a frame that does not begin at UNBOUNDED PRECEDING and end at CURRENT ROW or UNBOUNDED FOLLOWING",
            span,
        )),
    }
}

/// A whole number of the text.
fn whole(expr: &Sql) -> Option<i64> {
    match expr {
        Sql::Value(value) => value.value.to_string().parse().ok(),
        _ => None,
    }
}
