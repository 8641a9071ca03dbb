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

use super::aggregate::{off_the_line, on_a_line, summand};
use super::place::{unsupported, wrong};
use super::planner::Planner;
use super::relation::{Column, Relation};
use super::scalar::{Outer, Scope};
use super::value::{Typed, unify};
use super::{aggregate, delegate};

/// Where the operands of a window function are looked up.
pub(super) struct Rows<'r> {
    pub(super) relation: &'r mut Relation,
    pub(super) computed: &'r [(Sql, Typed)],
    pub(super) ungrouped: &'r [Column],
    pub(super) outer: Option<&'r Outer>,
}

/// Which rows of its partition are in a row's frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// From one that stands so many after it to another, negative before it; without a number to the partition's end.
    Rows(Option<i64>, Option<i64>),
    /// From the first to the last of its peers.
    Peers,
    /// All.
    All,
}

/// How the values of a frame become one.
enum Rolled {
    /// Their sum; of no values it is this zero, which stands for nulls too.
    Sum(Expr),
    /// The same of floats: of a sum of all before, less that of all before the frame, rounding would leave little.
    FloatSum(Expr),
    /// The least that is not null.
    Min,
    /// The greatest that is not null.
    Max,
}

impl Rolled {
    /// Over so many rows up to each, or over all up to it.
    fn along(&self, values: Expr, width: Option<usize>) -> Expr {
        let options = |window_size| RollingOptionsFixedWindow { window_size, ..Default::default() };
        let forward = |values: Expr| values.fill_null_with_strategy(FillNullStrategy::Forward(None));
        match (self, width) {
            (Self::Sum(zero), Some(width)) => {
                let sum = values.cum_sum(false);
                sum.clone() - sum.shift(lit(width as u64)).fill_null(zero.clone())
            }
            (Self::FloatSum(_), Some(width)) => values.rolling_sum(options(width)),
            (Self::Min, Some(width)) => values.rolling_min(options(width)),
            (Self::Max, Some(width)) => values.rolling_max(options(width)),
            (Self::Sum(_) | Self::FloatSum(_), None) => values.cum_sum(false),
            // A null of the rows is no value of the frame.
            (Self::Min, None) => forward(values.cum_min(false)),
            (Self::Max, None) => forward(values.cum_max(false)),
        }
    }

    /// Of two parts of a frame.
    fn both(&self, one: Expr, other: Expr) -> Result<Expr, Failure> {
        let both = match self {
            Self::Sum(_) | Self::FloatSum(_) => return Ok(one + other),
            Self::Min => polars::lazy::dsl::min_horizontal([one, other]),
            Self::Max => polars::lazy::dsl::max_horizontal([one, other]),
        };
        both.map_err(|error| Failure::internal(error.to_string()))
    }
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

pub(super) fn windowed(expr: Expr, partition_by: Vec<Expr>, order_by: Option<Expr>) -> Expr {
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
        let span = window.span();
        let Sql::Function(function) = window else {
            return Err(Failure::internal("a window that is no function"));
        };
        let name = aggregate::name(function);
        if !function.within_group.is_empty() || matches!(name.as_str(), "percentile_cont" | "percentile_disc")
        {
            return Err(unsupported(&format!("{name} in a window"), span));
        }
        let Some(WindowType::WindowSpec(spec)) = &function.over else {
            return self.delegated_window(window, rows);
        };
        let frame = match (frame(spec.window_frame.as_ref(), span)?, spec.order_by.is_empty()) {
            // Without an order all rows are peers.
            (Frame::Peers, true) => Frame::All,
            (frame, _) => frame,
        };
        let ordered = match name.as_str() {
            "first_value" | "last_value" => !spec.order_by.is_empty() || matches!(frame, Frame::Rows(..)),
            _ if ignores_frame(&name) => !spec.order_by.is_empty(),
            _ => frame != Frame::All,
        };
        if ordered {
            return self.ordered_window(&name, function, spec, frame, span, rows);
        }
        // The order and the frame are of no account.
        let spec = WindowSpec { order_by: Vec::new(), window_frame: None, ..spec.clone() };
        let function = Function { over: Some(WindowType::WindowSpec(spec)), ..function.clone() };
        self.delegated_window(&Sql::Function(function), rows)
    }

    fn delegated_window(&mut self, window: &Sql, rows: &mut Rows<'_>) -> Result<Typed, Failure> {
        let typed = delegate::translate(window, |operand| self.operand(operand, rows))?;
        Ok(Typed { expr: self.column(typed.expr.clone(), rows), ..typed })
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
        frame: Frame,
        span: Span,
        rows: &mut Rows<'_>,
    ) -> Result<Typed, Failure> {
        let distinct =
            matches!(&function.args, FunctionArguments::List(list) if list.duplicate_treatment.is_some());
        if function.filter.is_some() || function.null_treatment.is_some() || distinct {
            return Err(unsupported(
                "FILTER, DISTINCT or IGNORE NULLS in a window with ORDER BY or ROWS",
                span,
            ));
        }
        let every = matches!(&function.args, FunctionArguments::List(list)
            if matches!(list.args.as_slice(), [FunctionArg::Unnamed(FunctionArgExpr::Wildcard)]));
        let arguments = match every {
            true => Vec::new(),
            false => delegate::arguments(function)
                .ok_or_else(|| unsupported(&format!("{name} with these arguments"), span))?,
        };
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
                let first = match frame {
                    Frame::Rows(from, to) => at_end(value, (from, to), true, &order),
                    _ => order.over(by_number(value.expr.clone(), &order).first()),
                };
                Typed::new(first, value.dtype.clone())
            }
            ("last_value", [value], 1) => {
                let last = by_number(value.expr.clone(), &order).last();
                let last = match frame {
                    Frame::Rows(from, to) => at_end(value, (from, to), false, &order),
                    Frame::Peers => order.over_peers(last),
                    Frame::All => order.over(last),
                };
                Typed::new(last, value.dtype.clone())
            }
            ("count", operands, _) if operands.len() <= 1 => {
                let counted_rows = match operands.first() {
                    Some(value) => value.expr.clone().is_not_null(),
                    None => order.number.clone().is_not_null(),
                };
                counted(self.count(counted_rows, frame, &order, rows)?)
            }
            ("sum" | "avg", [value], 1) => {
                let count = self.count(value.expr.clone().is_not_null(), frame, &order, rows)?;
                let (value, mean) = match name {
                    "avg" => {
                        let (value, mean) = on_a_line(name, value.clone(), span)?;
                        (Typed::new(value, DataType::Float64), mean)
                    }
                    _ => {
                        let value = summand(value.clone(), name, span)?;
                        let dtype = match &value.dtype {
                            DataType::Decimal(_, scale) => DataType::Decimal(38, *scale),
                            dtype => dtype.clone(),
                        };
                        (value.cast(&dtype, span)?, dtype)
                    }
                };
                let zero = Typed::integer(0).cast(&value.dtype, span)?.expr;
                let there = value.expr.fill_null(zero.clone());
                let rolled = if value.dtype.is_float() { Rolled::FloatSum(zero) } else { Rolled::Sum(zero) };
                let sum = self.framed(there, frame, &rolled, &order, rows)?;
                let result = match name {
                    "avg" => off_the_line(sum.true_div(count.clone().cast(DataType::Float64)), &mean),
                    _ => sum,
                };
                let null = lit(NULL).cast(mean.clone());
                Typed::new(when(count.gt(lit(0u32))).then(result).otherwise(null), mean)
            }
            ("min" | "max", [value], 1) => {
                let rolled = if name == "min" { Rolled::Min } else { Rolled::Max };
                let own = value.expr.clone();
                let found = if value.dtype.is_float() {
                    // As in an aggregate, NaN is what there is only where there is nothing else.
                    let numbers = when(own.clone().is_nan()).then(lit(NULL)).otherwise(own.clone());
                    let numbers = self.column(numbers, rows);
                    let found = self.framed(numbers, frame, &rolled, &order, rows)?;
                    let count = self.count(own.is_not_null(), frame, &order, rows)?;
                    let nothing = when(count.gt(lit(0u32))).then(lit(f64::NAN)).otherwise(lit(NULL));
                    coalesce(&[found, nothing.cast(value.dtype.clone())])
                } else if value.dtype.is_primitive_numeric() || value.dtype.is_temporal() {
                    self.framed(own, frame, &rolled, &order, rows)?
                } else {
                    // Polars rolls over numbers: the places of the values in their order are some.
                    let ranks = own.clone().rank(dense(false), None).cast(DataType::Int64);
                    let ranks = self.column(order.over(ranks), rows);
                    let rank = self.framed(ranks, frame, &rolled, &order, rows)?;
                    let values = own.drop_nulls().unique().sort(SortOptions::default());
                    order.over(values.gather(rank - lit(1i64), false))
                };
                Typed::new(found, value.dtype.clone())
            }
            _ => {
                return Err(unsupported(
                    &format!("{name} with these arguments and ORDER BY or ROWS in OVER"),
                    span,
                ));
            }
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
        if spec.order_by.is_empty() {
            // As they come, none of them equal.
            let number = int_range(lit(1), len().cast(DataType::Int64) + lit(1), 1, DataType::Int64);
            order.number = self.column(order.over(number).cast(DataType::UInt32), rows);
            order.peer = order.number.clone();
            return Ok(order);
        }
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

    /// For how many rows of the frame a condition holds.
    fn count(
        &mut self,
        condition: Expr,
        frame: Frame,
        order: &Ordered,
        rows: &mut Rows<'_>,
    ) -> Result<Expr, Failure> {
        let one = condition.cast(DataType::UInt32);
        self.framed(one, frame, &Rolled::Sum(lit(0u32)), order, rows)
    }

    /// What the values of each row's frame become, in the type of the values.
    fn framed(
        &mut self,
        value: Expr,
        frame: Frame,
        rolled: &Rolled,
        order: &Ordered,
        rows: &mut Rows<'_>,
    ) -> Result<Expr, Failure> {
        let width = |rows: i64| usize::try_from(rows).unwrap_or_default();
        let back = |width, by: i64| order.along(rolled.along(value.clone(), width).shift(lit(by)));
        let on = |width, by: i64| {
            order.along(rolled.along(value.clone().reverse(), width).shift(lit(by)).reverse())
        };
        if matches!(frame, Frame::Rows(Some(from), Some(to)) if from > to) {
            return Ok(match rolled {
                Rolled::Sum(zero) | Rolled::FloatSum(zero) => self.column(zero.clone(), rows),
                Rolled::Min | Rolled::Max => {
                    self.column(when(lit(false)).then(value).otherwise(lit(NULL)), rows)
                }
            });
        }
        // The rows up to the row itself and those after it: none is in both parts.
        let parts = match frame {
            Frame::Peers | Frame::All => vec![back(None, 0)],
            Frame::Rows(from, Some(to)) if to <= 0 => vec![back(from.map(|from| width(to - from + 1)), -to)],
            Frame::Rows(Some(from), to) if from >= 0 => vec![on(to.map(|to| width(to - from + 1)), from)],
            Frame::Rows(from, to) => vec![back(from.map(|from| width(1 - from)), 0), on(to.map(width), 1)],
        };
        let mut whole = None;
        for part in parts {
            let part = self.column(part, rows);
            let part = match rolled {
                Rolled::Sum(zero) | Rolled::FloatSum(zero) => part.fill_null(zero.clone()),
                Rolled::Min | Rolled::Max => part,
            };
            whole = Some(match whole {
                Some(before) => rolled.both(before, part)?,
                None => part,
            });
        }
        let running = whole.ok_or_else(|| Failure::internal("a frame of no parts"))?;
        let running = self.column(running, rows);
        let last = |running: Expr| by_number(running, order).last();
        Ok(match frame {
            Frame::Rows(..) => running,
            Frame::Peers => self.column(order.over_peers(last(running)), rows),
            Frame::All => self.column(order.over(last(running)), rows),
        })
    }
}

/// The value of the first or of the last row of a frame of rows.
fn at_end(value: &Typed, (from, to): (Option<i64>, Option<i64>), first: bool, order: &Ordered) -> Expr {
    let number = || order.number.clone().cast(DataType::Int64);
    let before = |end: Option<i64>| end.map(|end| (number() + lit(end)).lt(lit(1i64)));
    let beyond =
        |end: Option<i64>| end.map(|end| (number() + lit(end)).gt(order.over(len()).cast(DataType::Int64)));
    let sorted = by_number(value.expr.clone(), order);
    // Where the frame begins before the partition, its first row is the partition's; where it is all outside, none is.
    let (end, outmost, clipped, empty) = match first {
        true => (from, order.over(sorted.first()), before(from), before(to)),
        false => (to, order.over(sorted.last()), beyond(to), beyond(from)),
    };
    let found = match (end, clipped) {
        (Some(end), Some(clipped)) => {
            let there = order.along(value.expr.clone().shift(lit(-end)));
            when(clipped).then(outmost).otherwise(there)
        }
        _ => outmost,
    };
    let never = matches!((from, to), (Some(from), Some(to)) if from > to);
    match empty.map(|empty| empty.or(lit(never))) {
        Some(empty) => when(empty).then(lit(NULL).cast(value.dtype.clone())).otherwise(found),
        None => found,
    }
}

fn dense(descending: bool) -> RankOptions {
    RankOptions { method: RankMethod::Dense, descending }
}

fn by_number(expr: Expr, order: &Ordered) -> Expr {
    expr.sort_by([order.number.clone()], SortMultipleOptions::default())
}

/// Functions that ask for the place of a row, which is the same in any frame.
fn ignores_frame(name: &str) -> bool {
    matches!(
        name,
        "row_number" | "rank" | "dense_rank" | "percent_rank" | "cume_dist" | "ntile" | "lag" | "lead"
    )
}

fn frame(frame: Option<&WindowFrame>, span: Span) -> Result<Frame, Failure> {
    let Some(frame) = frame else { return Ok(Frame::Peers) };
    // Without an end it is the current row.
    let end = frame.end_bound.as_ref().unwrap_or(&WindowFrameBound::CurrentRow);
    match (frame.units, &frame.start_bound, end) {
        (_, WindowFrameBound::Preceding(None), WindowFrameBound::Following(None)) => Ok(Frame::All),
        (WindowFrameUnits::Rows, start, end) => {
            let (from, to) = (bound(start, span)?, bound(end, span)?);
            // Between 2 and 3 preceding are no rows, which is no mistake.
            let way = |bound: &WindowFrameBound| match bound {
                WindowFrameBound::Preceding(_) => -1,
                WindowFrameBound::CurrentRow => 0,
                WindowFrameBound::Following(_) => 1,
            };
            let backwards = matches!(start, WindowFrameBound::Following(None))
                || matches!(end, WindowFrameBound::Preceding(None))
                || way(start) > way(end);
            match backwards {
                true => Err(wrong("a frame that ends before it begins", span)),
                false => Ok(Frame::Rows(from, to)),
            }
        }
        (_, WindowFrameBound::Preceding(None), WindowFrameBound::CurrentRow) => Ok(Frame::Peers),
        _ => Err(unsupported(
            "a frame of RANGE or GROUPS that does not go from UNBOUNDED PRECEDING to CURRENT ROW or UNBOUNDED \
             FOLLOWING",
            span,
        )),
    }
}

/// How many rows after the current one a frame begins or ends, negative before it.
fn bound(bound: &WindowFrameBound, span: Span) -> Result<Option<i64>, Failure> {
    let (distance, sign) = match bound {
        WindowFrameBound::CurrentRow => return Ok(Some(0)),
        WindowFrameBound::Preceding(None) | WindowFrameBound::Following(None) => return Ok(None),
        WindowFrameBound::Preceding(Some(distance)) => (distance, -1),
        WindowFrameBound::Following(Some(distance)) => (distance, 1),
    };
    match whole(distance) {
        // As far as that no partition goes.
        Some(rows) if rows > i64::from(u32::MAX) => Ok(Some(sign * i64::from(u32::MAX))),
        Some(rows) if rows >= 0 => Ok(Some(sign * rows)),
        _ => Err(wrong(&format!("{distance} as a distance in ROWS: a whole number is expected"), span)),
    }
}

/// A whole number of the text.
fn whole(expr: &Sql) -> Option<i64> {
    match expr {
        Sql::Value(value) => value.value.to_string().parse().ok(),
        _ => None,
    }
}
