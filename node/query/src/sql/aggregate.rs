//! Aggregates, and the grouping of a `SELECT`.

use std::ops::ControlFlow;

use floe_protocol::Failure;
use polars::prelude::*;
use sqlparser::ast::{
    DuplicateTreatment, Expr as Sql, Function, FunctionArg, FunctionArgExpr, FunctionArguments, OrderByExpr,
    Query, Spanned, Visitor,
};
use sqlparser::tokenizer::Span;

use super::delegate;
use super::place::{unsupported, wrong};
use super::planner::Planner;
use super::relation::{Column, Relation, Size};
use super::scalar::{Outer, Scope};
use super::value::{Typed, dtype_of};
use super::walk::walk;

/// A function's name as texts compare it.
pub(super) fn name(function: &Function) -> String {
    function.name.to_string().to_ascii_lowercase()
}

/// Functions of all rows of a group.
pub(super) fn is_aggregate(name: &str) -> bool {
    const AGGREGATES: [&str; 36] = [
        "bool_and",
        "bool_or",
        "count_if",
        "every",
        "stddev_pop",
        "var_pop",
        "array_agg",
        "avg",
        "corr",
        "count",
        "covar",
        "covar_pop",
        "covar_samp",
        "first",
        "group_concat",
        "last",
        "listagg",
        "max",
        "mean",
        "median",
        "min",
        "percentile_cont",
        "percentile_disc",
        "quantile_cont",
        "quantile_disc",
        "stddev",
        "stddev_samp",
        "stdev",
        "stdev_samp",
        "string_agg",
        "sum",
        "total",
        "var",
        "var_samp",
        "variance",
        "any_value",
    ];
    AGGREGATES.contains(&name)
}

/// Calls of one kind in an expression, outside of its subqueries and not within each other.
pub(super) fn calls(expr: &Sql, wanted: fn(&Function) -> bool, found: &mut Vec<Sql>) {
    struct Calls<'f> {
        wanted: fn(&Function) -> bool,
        found: &'f mut Vec<Sql>,
        queries: u32,
        within: u32,
    }
    impl Calls<'_> {
        fn is(&self, expr: &Sql) -> bool {
            self.queries == 0 && matches!(expr, Sql::Function(function) if (self.wanted)(function))
        }
    }
    impl Visitor for Calls<'_> {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.queries += 1;
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.queries -= 1;
            ControlFlow::Continue(())
        }
        fn pre_visit_expr(&mut self, expr: &Sql) -> ControlFlow<()> {
            if self.is(expr) {
                if self.within == 0 && !self.found.contains(expr) {
                    self.found.push(expr.clone());
                }
                self.within += 1;
            }
            ControlFlow::Continue(())
        }
        fn post_visit_expr(&mut self, expr: &Sql) -> ControlFlow<()> {
            if self.is(expr) {
                self.within -= 1;
            }
            ControlFlow::Continue(())
        }
    }
    let _ = walk(expr, &mut Calls { wanted, found, queries: 0, within: 0 });
}

/// Whether a call aggregates groups of rows.
pub(super) fn groups(function: &Function) -> bool {
    function.over.is_none() && is_aggregate(&name(function))
}

/// Aggregates of Polars that the calls of a `SELECT` are made of.
#[derive(Default)]
pub(super) struct Aggregates {
    /// By the name of the column, with what it is where there is no row.
    pub(super) list: Vec<(PlSmallStr, Expr, Scalar)>,
}

/// Rows in groups.
pub(super) struct Grouped {
    pub(super) relation: Relation,
    /// Keys and aggregates by the expressions that stand for them in the text.
    pub(super) computed: Vec<(Sql, Typed)>,
    pub(super) aggregates: Aggregates,
    /// No keys: one group even of no rows.
    pub(super) global: bool,
}

impl Planner<'_> {
    /// Groups the rows of a relation by the keys and by `carried` columns, and computes all `calls`.
    pub(super) fn group(
        &mut self,
        mut relation: Relation,
        keys: Vec<(Sql, Typed)>,
        calls: &[Sql],
        carried: &[PlSmallStr],
        outer: Option<&Outer>,
    ) -> Result<Grouped, Failure> {
        let mut aggregates = Aggregates::default();
        let mut computed = Vec::new();
        for call in calls {
            let Sql::Function(function) = call else {
                return Err(Failure::internal("not a call"));
            };
            let typed = self.aggregate_call(call, function, &mut relation, outer, &mut aggregates)?;
            computed.push((call.clone(), typed));
        }
        let global = keys.is_empty();
        let mut columns = Vec::new();
        let mut ids: Vec<PlSmallStr> = Vec::new();
        let mut made = Vec::new();
        for (sql, key) in keys {
            let key = key.settled(sql.span())?;
            let id = match &key.expr {
                Expr::Column(id) => id.clone(),
                _ => {
                    let id = self.fresh(&key.name);
                    made.push(key.expr.clone().alias(id.clone()));
                    id
                }
            };
            let known = relation.columns.iter().find(|column| column.id == id).cloned();
            let column = known.unwrap_or_else(|| Column {
                table: None,
                name: key.name.clone(),
                id: id.clone(),
                dtype: key.dtype.clone(),
                nullable: key.nullable,
                hidden: !matches!(sql, Sql::Identifier(_)),
                level: 0,
            });
            computed.push((sql, Typed { expr: Expr::Column(id.clone()), ..key }));
            if !ids.contains(&id) {
                ids.push(id);
                columns.push(column);
            }
        }
        for id in carried {
            if !ids.contains(id) {
                ids.push(id.clone());
                columns.extend(relation.columns.iter().find(|column| column.id == *id).cloned());
            }
        }
        let frame = if made.is_empty() { relation.frame } else { relation.frame.with_columns(made) };
        let list: Vec<Expr> =
            aggregates.list.iter().map(|(id, expr, _)| expr.clone().alias(id.clone())).collect();
        let keys: Vec<Expr> = ids.iter().cloned().map(Expr::Column).collect();
        let frame = match (keys.is_empty(), list.is_empty()) {
            (true, true) => frame.select([len().alias(self.fresh("len"))]),
            (true, false) => frame.select(list),
            (false, true) => frame.select(keys).unique(None, UniqueKeepStrategy::Any),
            (false, false) => frame.group_by(keys).agg(list),
        };
        let rows = if global && carried.is_empty() { 1.0 } else { (relation.size.rows / 4.0).max(1.0) };
        let mut size = Size { rows, ..relation.size };
        size.base = rows;
        let relation = Relation { frame, columns, size, equal: relation.equal };
        Ok(Grouped { relation, computed, aggregates, global })
    }

    fn aggregate(&mut self, aggregates: &mut Aggregates, expr: Expr, empty: Scalar) -> Expr {
        if let Some((id, ..)) = aggregates.list.iter().find(|(_, known, _)| *known == expr) {
            return Expr::Column(id.clone());
        }
        let id = self.fresh("aggregate");
        aggregates.list.push((id.clone(), expr, empty));
        Expr::Column(id)
    }

    /// The call as an expression over aggregates.
    fn aggregate_call(
        &mut self,
        call: &Sql,
        function: &Function,
        relation: &mut Relation,
        outer: Option<&Outer>,
        aggregates: &mut Aggregates,
    ) -> Result<Typed, Failure> {
        let span = call.span();
        let name = name(function);
        if let [by] = function.within_group.as_slice() {
            if matches!(&function.args, FunctionArguments::List(list) if list.duplicate_treatment.is_some()) {
                return Err(unsupported(&format!("DISTINCT in {name}"), span));
            }
            let mut within = self.scalar(&by.expr, &mut Scope::over(relation, outer))?.settled(span)?;
            let label = within.name.clone();
            if let Some(filter) = &function.filter {
                let filter = self.condition(filter, &mut Scope::over(relation, outer))?.expr;
                within.expr = when(filter).then(within.expr).otherwise(lit(NULL));
            }
            let typed = within_group(&name, function, by, within, span)?;
            let expr = self.aggregate(aggregates, typed.expr.clone(), Scalar::null(typed.dtype.clone()));
            return Ok(Typed { expr, ..typed }.named(&label));
        }
        if matches!(name.as_str(), "percentile_cont" | "percentile_disc") {
            return Err(wrong(&format!("{name} is written {name}(0.5) WITHIN GROUP (ORDER BY x)"), span));
        }
        let list = match &function.args {
            FunctionArguments::List(list) => list,
            _ => return Err(unsupported(&format!("{name} without a list of arguments"), span)),
        };
        let distinct = matches!(list.duplicate_treatment, Some(DuplicateTreatment::Distinct));
        let none = Scalar::from(0 as IdxSize);
        let filter = match &function.filter {
            Some(filter) => Some(self.condition(filter, &mut Scope::over(relation, outer))?.expr),
            None => None,
        };
        let argument = match list.args.as_slice() {
            [FunctionArg::Unnamed(FunctionArgExpr::Wildcard)] | [] if name == "count" => {
                let expr = match filter {
                    None => len(),
                    Some(filter) => when(filter).then(lit(1i32)).otherwise(lit(NULL)).count(),
                };
                let expr = self.aggregate(aggregates, expr, none);
                return Ok(Typed { nullable: false, ..Typed::new(expr, DataType::IDX_DTYPE) }.named("len"));
            }
            [FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))] => argument,
            _ => return self.other_aggregate(call, relation, outer, aggregates),
        };
        let own = matches!(
            name.as_str(),
            "count"
                | "sum"
                | "total"
                | "avg"
                | "mean"
                | "min"
                | "max"
                | "bool_and"
                | "every"
                | "bool_or"
                | "count_if"
                | "var_pop"
                | "stddev_pop"
        );
        if !own || !list.clauses.is_empty() {
            if filter.is_some() {
                return Err(unsupported(&format!("FILTER of {name}"), span));
            }
            return self.other_aggregate(call, relation, outer, aggregates);
        }
        let mut value = self.scalar(argument, &mut Scope::over(relation, outer))?.settled(span)?;
        let label = value.name.clone();
        if super::relation::leaves(&value.expr).is_empty() {
            // A constant is one value for each row.
            let id = self.fresh("constant");
            relation.frame = relation.frame.clone().with_columns([value.expr.clone().alias(id.clone())]);
            value.expr = Expr::Column(id);
        }
        if let Some(filter) = filter {
            value.expr = when(filter).then(value.expr).otherwise(lit(NULL));
            value.nullable = true;
        }
        let nothing = |dtype: &DataType| Scalar::null(dtype.clone());
        let typed = match name.as_str() {
            "count" => {
                let expr = match (distinct, value.nullable) {
                    (true, _) => value.expr.drop_nulls().n_unique(),
                    (false, true) => value.expr.count(),
                    (false, false) => len(),
                };
                let expr = self.aggregate(aggregates, expr, none);
                Typed { nullable: false, ..Typed::new(expr, DataType::IDX_DTYPE) }
            }
            // Booleans are in order, and nulls are left out.
            "bool_and" | "every" | "bool_or" => {
                let truth = value.truth(span)?.expr;
                let expr = if name == "bool_or" { truth.max() } else { truth.min() };
                let expr = self.aggregate(aggregates, expr, nothing(&DataType::Boolean));
                Typed::new(expr, DataType::Boolean)
            }
            "count_if" => {
                let met = when(value.truth(span)?.expr).then(lit(1i32)).otherwise(lit(NULL));
                let expr = self.aggregate(aggregates, met.count(), none);
                Typed { nullable: false, ..Typed::new(expr, DataType::IDX_DTYPE) }
            }
            "var_pop" | "stddev_pop" => {
                let number = value.cast(&DataType::Float64, span)?.expr;
                let number = if distinct { number.unique() } else { number };
                let expr = if name == "var_pop" { number.var(0) } else { number.std(0) };
                let expr = self.aggregate(aggregates, expr, nothing(&DataType::Float64));
                Typed::new(expr, DataType::Float64)
            }
            "min" | "max" => {
                let expr = if name == "min" { value.expr.min() } else { value.expr.max() };
                let expr = self.aggregate(aggregates, expr, nothing(&value.dtype));
                Typed::new(expr, value.dtype)
            }
            "sum" | "total" => {
                // Of a type that is Polars' for the sum, with an error where it has no room instead of a wrap.
                let narrow =
                    matches!(value.dtype, DataType::Int32 | DataType::UInt32).then(|| value.dtype.clone());
                let value = summand(value, &name, span)?;
                let count = if value.nullable { value.expr.clone().count() } else { len() };
                let sum = if distinct { value.expr.unique().sum() } else { value.expr.sum() };
                let dtype = match &value.dtype {
                    DataType::Decimal(_, scale) => DataType::Decimal(38, *scale),
                    other => other.clone(),
                };
                let zero = Scalar::new(dtype.clone(), AnyValue::Null);
                let sum = self.aggregate(aggregates, sum, zero);
                let (sum, dtype) = match narrow {
                    Some(narrow) if name == "sum" => (sum.strict_cast(narrow.clone()), narrow),
                    _ => (sum, dtype),
                };
                if name == "total" {
                    sum_or(Typed::new(sum, dtype))
                } else {
                    // The sum of no value is null.
                    let count = self.aggregate(aggregates, count, none);
                    let null = lit(NULL).cast(dtype.clone());
                    Typed::new(when(count.gt(lit(0))).then(sum).otherwise(null), dtype)
                }
            }
            _ => {
                let value = summand(value, &name, span)?;
                if value.dtype.is_decimal() {
                    // Summed exactly; rounded once, by the division.
                    let count = if value.nullable || distinct {
                        let counted = value.expr.clone();
                        if distinct { counted.drop_nulls().n_unique() } else { counted.count() }
                    } else {
                        len()
                    };
                    let sum = if distinct { value.expr.unique().sum() } else { value.expr.sum() };
                    let sum = self.aggregate(aggregates, sum, nothing(&value.dtype));
                    let count = self.aggregate(aggregates, count, none);
                    let mean = sum.cast(DataType::Float64).true_div(count.clone().cast(DataType::Float64));
                    let null = lit(NULL).cast(DataType::Float64);
                    Typed::new(when(count.gt(lit(0))).then(mean).otherwise(null), DataType::Float64)
                } else {
                    let expr = if distinct { value.expr.unique().mean() } else { value.expr.mean() };
                    let dtype = dtype_of(&col("value").mean(), &[("value", &value.dtype)], span)?;
                    let expr = self.aggregate(aggregates, expr, nothing(&dtype));
                    Typed::new(expr, dtype)
                }
            }
        };
        Ok(typed.named(&label))
    }

    /// Aggregates that Polars SQL translates.
    fn other_aggregate(
        &mut self,
        call: &Sql,
        relation: &mut Relation,
        outer: Option<&Outer>,
        aggregates: &mut Aggregates,
    ) -> Result<Typed, Failure> {
        let typed = delegate::translate(call, |operand| {
            self.scalar(operand, &mut Scope::over(relation, outer))?.settled(operand.span())
        })?;
        let expr = self.aggregate(aggregates, typed.expr.clone(), Scalar::null(typed.dtype.clone()));
        Ok(Typed { expr, ..typed })
    }
}

/// `PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY x)` and its like, over the values that are sorted.
fn within_group(
    name: &str,
    function: &Function,
    by: &OrderByExpr,
    value: Typed,
    span: Span,
) -> Result<Typed, Failure> {
    let falling = by.options.asc == Some(false);
    let share = match delegate::arguments(function).as_deref() {
        Some([Sql::Value(share)]) => Some(share.value.to_string()),
        _ => None,
    };
    let number = share.as_ref().and_then(|share| share.parse::<f64>().ok());
    let (expr, dtype) = match (name, number.filter(|share| (0.0..=1.0).contains(share))) {
        ("percentile_cont", Some(share)) => {
            let (numbers, dtype) = on_a_line(name, value, span)?;
            let share = if falling { 1.0 - share } else { share };
            (off_the_line(numbers.quantile(lit(share), QuantileMethod::Linear), &dtype), dtype)
        }
        // The first value that no smaller share of them comes up to.
        ("percentile_disc", Some(number)) => {
            let count = value.expr.clone().count();
            let place = match share.as_deref().and_then(fraction) {
                // In whole numbers: 0.07 of a hundred is seven, which floats miss.
                Some((share, whole)) => {
                    (count.cast(DataType::Int64) * lit(share) - lit(1i64)).floor_div(lit(whole))
                }
                None => {
                    ((count.cast(DataType::Float64) * lit(number)).ceil() - lit(1.0)).cast(DataType::Int64)
                }
            };
            let place = when(place.clone().gt(lit(0i64))).then(place).otherwise(lit(0i64));
            let order = SortOptions::default().with_order_descending(falling);
            (value.expr.drop_nulls().sort(order).get(place, true), value.dtype)
        }
        ("percentile_cont" | "percentile_disc", None) => {
            return Err(wrong(&format!("{name} has one number from 0 to 1"), span));
        }
        _ => return Err(unsupported(&format!("{name} WITHIN GROUP"), span)),
    };
    Ok(Typed::new(expr, dtype))
}

/// The digits of a number below ten, and what it is so many parts of. Nothing if there are more than nine of them, of
/// which a product with a count of rows might have no room.
fn fraction(text: &str) -> Option<(i64, i64)> {
    let (whole, digits) = text.split_once('.').unwrap_or((text, ""));
    if digits.len() > 9 || whole.len() > 1 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let parts = 10_i64.pow(digits.len() as u32);
    Some((format!("{whole}{digits}").parse().ok()?, parts))
}

/// A value as a number on a line, and the type of what lies between two of them.
pub(super) fn on_a_line(name: &str, value: Typed, span: Span) -> Result<(Expr, DataType), Failure> {
    let (number, between) = match &value.dtype {
        DataType::Date => {
            let dtype = DataType::Datetime(TimeUnit::Microseconds, None);
            (value.expr.cast(dtype.clone()).cast(DataType::Int64), dtype)
        }
        dtype if dtype.is_temporal() => (value.expr.cast(DataType::Int64), value.dtype),
        _ => (summand(value, name, span)?.expr, DataType::Float64),
    };
    Ok((number.cast(DataType::Float64), between))
}

/// What lies at a place of such a line.
pub(super) fn off_the_line(number: Expr, dtype: &DataType) -> Expr {
    if dtype.is_float() { number } else { number.cast(DataType::Int64).cast(dtype.clone()) }
}

/// `TOTAL` of nothing is zero.
fn sum_or(sum: Typed) -> Typed {
    Typed { expr: sum.expr.fill_null(lit(0)), nullable: false, ..sum }
}

/// A value in a type in which its sum has room.
pub(super) fn summand(value: Typed, name: &str, span: Span) -> Result<Typed, Failure> {
    let narrow = matches!(name, "sum" | "total")
        && value.dtype.is_integer()
        && !matches!(value.dtype, DataType::Int64 | DataType::UInt64 | DataType::Int128 | DataType::UInt128);
    if narrow || value.dtype == DataType::Boolean {
        let expr = value.expr.cast(DataType::Int64);
        return Ok(Typed { expr, dtype: DataType::Int64, ..value });
    }
    if value.is_null() {
        return value.cast(&DataType::Float64, span);
    }
    if value.dtype.is_numeric() || value.dtype.is_duration() {
        return Ok(value);
    }
    if name != "sum" && name != "total" && value.dtype.is_temporal() {
        return Ok(value);
    }
    Err(wrong(&format!("{name} is of numbers, not of values of the type {}", value.dtype), span))
}
