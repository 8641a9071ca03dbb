//! Expressions of a row.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use floe_protocol::Failure;
use polars::prelude::*;
use sqlparser::ast::{
    BinaryOperator, CaseWhen, CastKind, DataType as SqlType, Expr as Sql, Function, FunctionArguments, Ident,
    Spanned, UnaryOperator, Value,
};
use sqlparser::tokenizer::Span;

use super::conjuncts::{balanced, operands};
use super::place::{unsupported, wrong};
use super::planner::Planner;
use super::relation::{Column, Relation, find};
use super::value::{Typed, arithmetic, cast, compare, dtype_of, meet, negate, number, unify};
use super::{aggregate, delegate, like, temporal};

/// The queries around a subquery, as it sees them.
pub(super) struct Outer {
    /// Columns of the queries around. Expressions over them are not of the subquery's rows: its conditions
    /// with them become keys of a join with the query around.
    pub(super) columns: Vec<Column>,
    /// All different values of the columns that the subquery uses, to be joined into its `FROM`.
    pub(super) domain: Option<Relation>,
    /// Which columns were used.
    pub(super) used: RefCell<BTreeSet<PlSmallStr>>,
    /// Whether conditions of `WHERE` are being read.
    pub(super) in_where: Cell<bool>,
    /// Whether a column is used where it cannot become a key.
    pub(super) elsewhere: Cell<bool>,
}

impl Outer {
    pub(super) fn new(columns: Vec<Column>, domain: Option<Relation>) -> Self {
        Self {
            columns,
            domain,
            used: RefCell::default(),
            in_where: Cell::new(false),
            elsewhere: Cell::new(false),
        }
    }
}

/// Where names are looked up.
pub(super) struct Scope<'s> {
    /// Subqueries of expressions become columns of it.
    pub(super) relation: &'s mut Relation,
    pub(super) outer: Option<&'s Outer>,
    /// Expressions that are columns by now: keys of the grouping, aggregates, windows.
    pub(super) computed: &'s [(Sql, Typed)],
    /// Columns from before a grouping, which are no longer there.
    pub(super) ungrouped: &'s [Column],
    /// Columns of the result that later clauses may name.
    pub(super) aliases: &'s [(String, Typed)],
}

impl<'s> Scope<'s> {
    pub(super) fn over(relation: &'s mut Relation, outer: Option<&'s Outer>) -> Self {
        Self { relation, outer, computed: &[], ungrouped: &[], aliases: &[] }
    }
}

/// What a value is cast to, where Polars SQL casts otherwise.
fn target(from: &DataType, to: &SqlType) -> Option<DataType> {
    if from.is_string() {
        return temporal::temporal_type(to);
    }
    let to = match to {
        SqlType::TinyInt(_) => DataType::Int8,
        SqlType::SmallInt(_) | SqlType::Int2(_) => DataType::Int16,
        SqlType::Int(_) | SqlType::Integer(_) | SqlType::Int4(_) => DataType::Int32,
        SqlType::BigInt(_) | SqlType::Int8(_) => DataType::Int64,
        _ => return None,
    };
    from.is_decimal().then_some(to)
}

impl Planner<'_> {
    /// An expression over the rows of a scope. Recursion is guarded by `recursive`, and chains of `AND` and `OR`
    /// are taken apart without it.
    #[recursive::recursive]
    pub(super) fn scalar(&mut self, expr: &Sql, scope: &mut Scope<'_>) -> Result<Typed, Failure> {
        if let Some((_, typed)) = scope.computed.iter().find(|(computed, _)| computed == expr) {
            return Ok(typed.clone());
        }
        let span = expr.span();
        match expr {
            Sql::Nested(inner) => self.scalar(inner, scope),
            Sql::Identifier(name) => column(None, name, scope),
            Sql::CompoundIdentifier(parts) => compound(parts, scope),
            Sql::Value(value) => match &value.value {
                Value::Number(text, _) => number(text, value.span),
                Value::SingleQuotedString(text) => {
                    Ok(Typed::scalar(Scalar::from(PlSmallStr::from_str(text))))
                }
                Value::Boolean(value) => Ok(Typed::bool(*value)),
                Value::Null => Ok(Typed::null()),
                _ => delegate::scalar(self, expr, scope),
            },
            Sql::TypedString(typed) => match temporal::typed_string(typed, span)? {
                Some(typed) => Ok(typed),
                None => delegate::scalar(self, expr, scope),
            },
            Sql::BinaryOp { left, op, right } => self.binary(expr, (left, op, right), scope),
            Sql::UnaryOp { op, expr: inner } => match op {
                UnaryOperator::Not => {
                    let inner = self.scalar(inner, scope)?.truth(span)?;
                    Ok(Typed { expr: inner.expr.not(), ..inner })
                }
                UnaryOperator::Minus => match &**inner {
                    // The smallest integer has no positive counterpart.
                    Sql::Value(value) => match &value.value {
                        Value::Number(text, _) => match format!("-{text}").parse() {
                            Ok(number) => Ok(Typed::integer(number)),
                            Err(_) => negate(number(text, span)?, span),
                        },
                        _ => negate(self.scalar(inner, scope)?, span),
                    },
                    _ => negate(self.scalar(inner, scope)?, span),
                },
                UnaryOperator::Plus => self.scalar(inner, scope),
                _ => delegate::scalar(self, expr, scope),
            },
            Sql::Between { expr, negated, low, high } => {
                let value = self.scalar(expr, scope)?.repeatable(span)?;
                let low = compare(&BinaryOperator::GtEq, value.clone(), self.scalar(low, scope)?, span)?;
                let high = compare(&BinaryOperator::LtEq, value.clone(), self.scalar(high, scope)?, span)?;
                let nullable = low.nullable || high.nullable;
                let both = low.expr.and(high.expr);
                let expr = if *negated { both.not() } else { both };
                Ok(Typed { nullable, ..Typed::new(expr, DataType::Boolean) }.named(&value.name))
            }
            Sql::InList { expr, list, negated } => self.in_list(expr, list, *negated, span, scope),
            Sql::IsNull(inner) | Sql::IsNotNull(inner) => {
                let value = self.scalar(inner, scope)?;
                let null = matches!(expr, Sql::IsNull(_));
                let test = if null { value.expr.is_null() } else { value.expr.is_not_null() };
                Ok(Typed { nullable: false, ..Typed::new(test, DataType::Boolean) }.named(&value.name))
            }
            Sql::IsTrue(inner) | Sql::IsNotTrue(inner) | Sql::IsFalse(inner) | Sql::IsNotFalse(inner) => {
                let value = self.scalar(inner, scope)?.truth(span)?;
                let wanted = matches!(expr, Sql::IsTrue(_) | Sql::IsNotTrue(_));
                let test = value.expr.eq_missing(lit(wanted));
                let test =
                    if matches!(expr, Sql::IsNotTrue(_) | Sql::IsNotFalse(_)) { test.not() } else { test };
                Ok(Typed { nullable: false, ..Typed::new(test, DataType::Boolean) }.named(&value.name))
            }
            Sql::IsUnknown(inner) | Sql::IsNotUnknown(inner) => {
                let value = self.scalar(inner, scope)?.truth(span)?;
                let unknown = matches!(expr, Sql::IsUnknown(_));
                let test = if unknown { value.expr.is_null() } else { value.expr.is_not_null() };
                Ok(Typed { nullable: false, ..Typed::new(test, DataType::Boolean) }.named(&value.name))
            }
            Sql::IsDistinctFrom(left, right) | Sql::IsNotDistinctFrom(left, right) => {
                let (left, right) = (self.scalar(left, scope)?, self.scalar(right, scope)?);
                let same = compare(&BinaryOperator::Spaceship, left, right, span)?;
                let differs = matches!(expr, Sql::IsDistinctFrom(..));
                Ok(if differs { Typed { expr: same.expr.not(), ..same } } else { same })
            }
            Sql::Case { operand, conditions, else_result, .. } => {
                self.case(operand.as_deref(), conditions, else_result.as_deref(), span, scope)
            }
            Sql::Cast { kind, expr: inner, data_type, array: false, format: None, .. } => {
                let value = self.scalar(inner, scope)?.settled(inner.span())?;
                match target(&value.dtype, data_type) {
                    Some(to) if matches!(kind, CastKind::TryCast | CastKind::SafeCast) => {
                        let found = cast(value.expr, &value.dtype, &to, false);
                        Ok(Typed { nullable: true, ..Typed::new(found, to) }.named(&value.name))
                    }
                    Some(to) => value.cast(&to, span),
                    None => delegate::scalar(self, expr, scope),
                }
            }
            Sql::Like { negated, any: false, expr: value, pattern, escape_char }
            | Sql::ILike { negated, any: false, expr: value, pattern, escape_char }
                if escape_char.is_some() || !matches!(&**pattern, Sql::Value(_)) =>
            {
                let both = (self.scalar(value, scope)?, self.scalar(pattern, scope)?);
                let any_case = matches!(expr, Sql::ILike { .. });
                let found = like::like(both, escape_char.as_ref(), any_case, span)?;
                Ok(if *negated { Typed { expr: found.expr.not(), ..found } } else { found })
            }
            Sql::Extract { field, expr: inner, .. } => {
                let value = self.scalar(inner, scope)?;
                match temporal::extract(field, &value) {
                    Some(typed) => Ok(typed),
                    None => delegate::scalar(self, expr, scope),
                }
            }
            Sql::Function(function) => self.function(expr, function, scope),
            Sql::Subquery(query) => self.scalar_subquery(query, span, scope),
            Sql::Exists { subquery, negated } => self.exists(subquery, *negated, scope),
            Sql::InSubquery { expr, subquery, negated } => {
                self.in_subquery(expr, subquery, *negated, span, scope)
            }
            Sql::AnyOp { left, compare_op, right, .. } => match &**right {
                Sql::Subquery(query) => self.any(left, compare_op, query, span, scope),
                _ => delegate::scalar(self, expr, scope),
            },
            Sql::AllOp { left, compare_op, right } => match &**right {
                Sql::Subquery(query) => self.all(left, compare_op, query, span, scope),
                _ => delegate::scalar(self, expr, scope),
            },
            Sql::Interval(interval) => temporal::duration(&temporal::interval(interval, span)?, span),
            Sql::GroupingSets(_) | Sql::Cube(_) | Sql::Rollup(_) => {
                Err(unsupported("GROUP BY with GROUPING SETS, CUBE or ROLLUP", span))
            }
            Sql::OuterJoin(_) => Err(unsupported("the outer join (+)", span)),
            Sql::Prior(_) => Err(unsupported("CONNECT BY", span)),
            Sql::Tuple(_) => Err(unsupported("a row of several values", span)),
            _ => delegate::scalar(self, expr, scope),
        }
    }

    /// A condition.
    pub(super) fn condition(&mut self, expr: &Sql, scope: &mut Scope<'_>) -> Result<Typed, Failure> {
        self.scalar(expr, scope)?.truth(expr.span())
    }

    fn binary(
        &mut self,
        expr: &Sql,
        (left, op, right): (&Sql, &BinaryOperator, &Sql),
        scope: &mut Scope<'_>,
    ) -> Result<Typed, Failure> {
        let span = expr.span();
        match op {
            BinaryOperator::And | BinaryOperator::Or => {
                let mut nullable = false;
                let mut name = None;
                let mut sides = Vec::new();
                for operand in operands(expr, op) {
                    let side = self.condition(&operand, scope)?;
                    nullable |= side.nullable;
                    name.get_or_insert(side.name);
                    sides.push(side.expr);
                }
                let and = *op == BinaryOperator::And;
                let both = |left: Expr, right: Expr| if and { left.and(right) } else { left.or(right) };
                let expr = balanced(sides, both).ok_or_else(|| Failure::internal("a chain of nothing"))?;
                Ok(Typed { nullable, ..Typed::new(expr, DataType::Boolean) }.named(&name.unwrap_or_default()))
            }
            BinaryOperator::Eq | BinaryOperator::NotEq
                if matches!((left, right), (Sql::Tuple(_), Sql::Tuple(_))) =>
            {
                let (Sql::Tuple(lefts), Sql::Tuple(rights)) = (left, right) else {
                    return Err(Failure::internal("not tuples"));
                };
                if lefts.len() != rights.len() || lefts.is_empty() {
                    return Err(wrong("rows of different lengths do not compare", span));
                }
                let mut sides = Vec::new();
                for (left, right) in lefts.iter().zip(rights) {
                    let (left, right) = (self.scalar(left, scope)?, self.scalar(right, scope)?);
                    sides.push(compare(&BinaryOperator::Eq, left, right, span)?.expr);
                }
                let same = balanced(sides, Expr::and).ok_or_else(|| Failure::internal("no sides"))?;
                let expr = if *op == BinaryOperator::Eq { same } else { same.not() };
                Ok(Typed::new(expr, DataType::Boolean))
            }
            BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::Lt
            | BinaryOperator::LtEq
            | BinaryOperator::Gt
            | BinaryOperator::GtEq
            | BinaryOperator::Spaceship => {
                let (left, right) = (self.scalar(left, scope)?, self.scalar(right, scope)?);
                compare(op, left, right, span)
            }
            BinaryOperator::Plus | BinaryOperator::Minus => {
                let back = *op == BinaryOperator::Minus;
                match (left, right) {
                    (_, Sql::Interval(interval)) => {
                        let steps = temporal::interval(interval, span)?;
                        temporal::shift(self.scalar(left, scope)?, &steps, back, span)
                    }
                    (Sql::Interval(interval), _) if !back => {
                        let steps = temporal::interval(interval, span)?;
                        temporal::shift(self.scalar(right, scope)?, &steps, back, span)
                    }
                    _ => {
                        let (left, right) = (self.scalar(left, scope)?, self.scalar(right, scope)?);
                        arithmetic(op, left, right, span)
                    }
                }
            }
            BinaryOperator::Multiply
            | BinaryOperator::Divide
            | BinaryOperator::Modulo
            | BinaryOperator::DuckIntegerDivide
            | BinaryOperator::MyIntegerDivide => {
                let (left, right) = (self.scalar(left, scope)?, self.scalar(right, scope)?);
                arithmetic(op, left, right, span)
            }
            _ => delegate::scalar(self, expr, scope),
        }
    }

    fn in_list(
        &mut self,
        expr: &Sql,
        list: &[Sql],
        negated: bool,
        span: Span,
        scope: &mut Scope<'_>,
    ) -> Result<Typed, Failure> {
        if let Sql::Tuple(_) = expr {
            // (a, b) IN ((1, 2), (3, 4))
            let mut any = Vec::new();
            for item in list {
                let same = Sql::BinaryOp {
                    left: Box::new(expr.clone()),
                    op: BinaryOperator::Eq,
                    right: Box::new(item.clone()),
                };
                any.push(self.scalar(&same, scope)?.expr);
            }
            let found = balanced(any, Expr::or).ok_or_else(|| wrong("an empty list", span))?;
            return Ok(Typed::new(if negated { found.not() } else { found }, DataType::Boolean));
        }
        let value = self.scalar(expr, scope)?;
        let name = value.name.clone();
        let mut constants: Vec<Scalar> = Vec::new();
        let mut tests = Vec::new();
        let mut nullable = value.nullable;
        for item in list {
            let item = self.scalar(item, scope)?;
            nullable |= item.nullable;
            let (left, right) = meet(value.clone(), item, span)?;
            // A literal of the column's own type goes into one set.
            let fits = left.dtype == value.dtype && left.constant().is_none();
            let literal = if fits { right.clone().cast(&left.dtype, span).ok() } else { None };
            match literal.and_then(|literal| literal.constant()) {
                Some(scalar) if !scalar.is_null() && lossless(&right, &scalar) => constants.push(scalar),
                _ => tests.push(compare(&BinaryOperator::Eq, left, right, span)?.expr),
            }
        }
        if constants.len() > 3 {
            let dtype = constants[0].dtype().clone();
            let values: Vec<AnyValue<'static>> = constants.into_iter().map(Scalar::into_value).collect();
            let set = Series::from_any_values_and_dtype("".into(), &values, &dtype, true)
                .map_err(|error| super::place::rejected(error, span))?;
            tests.push(value.expr.clone().is_in(lit(set).implode(false), false));
        } else {
            tests.extend(
                constants.into_iter().map(|scalar| value.expr.clone().eq(Typed::scalar(scalar).expr)),
            );
        }
        let found = match balanced(tests, Expr::or) {
            Some(found) => Typed { nullable, ..Typed::new(found, DataType::Boolean) },
            None => Typed::bool(false),
        };
        let found = found.named(&name);
        Ok(if negated { Typed { expr: found.expr.not(), ..found } } else { found })
    }

    fn case(
        &mut self,
        operand: Option<&Sql>,
        conditions: &[CaseWhen],
        otherwise: Option<&Sql>,
        span: Span,
        scope: &mut Scope<'_>,
    ) -> Result<Typed, Failure> {
        let operand = operand.map(|operand| self.scalar(operand, scope)?.repeatable(span)).transpose()?;
        let (mut tests, mut values) = (Vec::new(), Vec::new());
        for CaseWhen { condition, result } in conditions {
            tests.push(match &operand {
                Some(operand) => {
                    let other = self.scalar(condition, scope)?;
                    compare(&BinaryOperator::Eq, operand.clone(), other, condition.span())?.expr
                }
                None => self.condition(condition, scope)?.expr,
            });
            values.push(self.scalar(result, scope)?);
        }
        values.push(match otherwise {
            Some(otherwise) => self.scalar(otherwise, scope)?,
            None => Typed::null(),
        });
        let name = values.first().map(|value| value.name.clone()).unwrap_or_default();
        let (mut values, dtype) = unify(values, span)?;
        let nullable = values.iter().any(|value| value.nullable);
        let last = values.pop().ok_or_else(|| wrong("CASE without WHEN", span))?;
        let mut expr = last.expr;
        for (test, value) in tests.into_iter().zip(values).rev() {
            expr = when(test).then(value.expr).otherwise(expr);
        }
        Ok(Typed { nullable, ..Typed::new(expr, dtype) }.named(&name))
    }

    fn function(&mut self, expr: &Sql, function: &Function, scope: &mut Scope<'_>) -> Result<Typed, Failure> {
        let name = aggregate::name(function);
        if function.over.is_some() {
            return Err(wrong(&format!("the window function {name} cannot stand here"), expr.span()));
        }
        if aggregate::is_aggregate(&name) {
            return Err(wrong(&format!("the aggregate {name} cannot stand here"), expr.span()));
        }
        if matches!(name.as_str(), "coalesce" | "ifnull")
            && let Some(arguments) = delegate::arguments(function)
        {
            let mut values = Vec::new();
            for argument in arguments {
                values.push(self.scalar(argument, scope)?);
            }
            let name = values.first().map(|value| value.name.clone()).unwrap_or_default();
            let nullable = values.iter().all(|value| value.nullable);
            let (values, dtype) = unify(values, expr.span())?;
            let values: Vec<Expr> = values.into_iter().map(|value| value.expr).collect();
            if values.is_empty() {
                return Err(wrong("COALESCE of nothing", expr.span()));
            }
            return Ok(Typed { nullable, ..Typed::new(coalesce(&values), dtype) }.named(&name));
        }
        let none = matches!(&function.args, FunctionArguments::None)
            || delegate::arguments(function).is_some_and(|arguments| arguments.is_empty());
        if none && matches!(name.as_str(), "now" | "current_timestamp" | "localtimestamp" | "current_date") {
            return temporal::now(self.now_us, &name, expr.span());
        }
        if name == "date_trunc"
            && let Some([Sql::Value(unit), value]) = delegate::arguments(function).as_deref()
            && let Value::SingleQuotedString(unit) = &unit.value
        {
            return temporal::truncate(unit, self.scalar(value, scope)?, expr.span());
        }
        if name == "mod"
            && let Some([left, right]) = delegate::arguments(function).as_deref()
        {
            let (left, right) = (self.scalar(left, scope)?, self.scalar(right, scope)?);
            return arithmetic(&BinaryOperator::Modulo, left, right, expr.span());
        }
        if name == "nullif"
            && let Some([left, right]) = delegate::arguments(function).as_deref()
        {
            let (left, right) = (self.scalar(left, scope)?, self.scalar(right, scope)?);
            let left = left.settled(expr.span())?.repeatable(expr.span())?;
            let same = compare(&BinaryOperator::Eq, left.clone(), right, expr.span())?;
            let null = Typed::null().cast(&left.dtype, expr.span())?;
            // Where the comparison is null, the first value stays.
            let expr = when(same.expr).then(null.expr).otherwise(left.expr.clone());
            return Ok(Typed { expr, nullable: true, ..left });
        }
        // Polars rounds halves to even; SQL's decimals round them away from zero.
        if name == "round"
            && let Some([value, digits @ ..]) = delegate::arguments(function).as_deref()
            && digits.len() <= 1
        {
            let places = match digits.first() {
                None => Some(0),
                Some(Sql::Value(value)) => match &value.value {
                    Value::Number(text, _) => text.parse::<u32>().ok(),
                    _ => None,
                },
                Some(_) => None,
            };
            let value = self.scalar(value, scope)?;
            if let Some(places) = places
                && value.dtype.is_decimal()
            {
                let round = |value: Expr| value.round(places, RoundMode::HalfAwayFromZero);
                let dtype = dtype_of(&round(col("value")), &[("value", &value.dtype)], expr.span())?;
                return Ok(Typed { expr: round(value.expr.clone()), dtype, ..value });
            }
        }
        delegate::scalar(self, expr, scope)
    }
}

/// Whether a cast kept a literal's value: 2.5 is in no set of integers.
fn lossless(before: &Typed, after: &Scalar) -> bool {
    match before.constant() {
        Some(before) => {
            before.dtype() == after.dtype() || before.dtype().is_integer() && after.dtype().is_integer()
        }
        None => false,
    }
}

fn column(table: Option<&Ident>, name: &Ident, scope: &Scope<'_>) -> Result<Typed, Failure> {
    let found = look_up(table, name, scope)?;
    found.ok_or_else(|| {
        let written = match table {
            Some(table) => format!("{}.{}", table.value, name.value),
            None => name.value.clone(),
        };
        if let Ok(Some(_)) = find(scope.ungrouped, &[], table, name) {
            let message = format!("the column {written} must stand in GROUP BY or in an aggregate");
            return wrong(&message, name.span);
        }
        let known: Vec<&str> = scope.relation.visible().map(|column| column.name.as_str()).take(20).collect();
        let known =
            if known.is_empty() { String::new() } else { format!("; there are {}", known.join(", ")) };
        wrong(&format!("unable to find column {written:?}{known}"), name.span)
    })
}

fn look_up(table: Option<&Ident>, name: &Ident, scope: &Scope<'_>) -> Result<Option<Typed>, Failure> {
    let found = find(&scope.relation.columns, &scope.relation.equal, table, name)?;
    if let Some(column) = found
        && column.level == 0
    {
        return Ok(Some(column.typed()));
    }
    if table.is_none() {
        let alias = scope.aliases.iter().find(|(alias, _)| {
            *alias == name.value || name.quote_style.is_none() && alias.eq_ignore_ascii_case(&name.value)
        });
        if let Some((_, typed)) = alias {
            return Ok(Some(typed.clone()));
        }
    }
    if let Some(column) = found {
        return Ok(Some(column.typed()));
    }
    let Some(outer) = scope.outer else {
        return Ok(None);
    };
    let found = find(&outer.columns, &[], table, name)?;
    if let Some(column) = found {
        outer.used.borrow_mut().insert(column.id.clone());
        if !outer.in_where.get() {
            outer.elsewhere.set(true);
        }
    }
    Ok(found.map(Column::typed))
}

/// `table.column`, `column.field`, `schema.table.column`.
fn compound(parts: &[Ident], scope: &Scope<'_>) -> Result<Typed, Failure> {
    let [.., table, name] = parts else {
        return Err(Failure::internal("a name of one part"));
    };
    if let Some(found) = look_up(Some(table), name, scope)? {
        return Ok(found);
    }
    // Fields of structs, from the longest name of a column on.
    let (first, fields) = match parts {
        [first, second, rest @ ..] if !rest.is_empty() && look_up(Some(first), second, scope)?.is_some() => {
            (look_up(Some(first), second, scope)?, rest)
        }
        [first, rest @ ..] => (look_up(None, first, scope)?, rest),
        [] => (None, parts),
    };
    let Some(mut value) = first.filter(|value| value.dtype.is_struct()) else {
        return column(Some(table), name, scope);
    };
    for field in fields {
        let DataType::Struct(known) = &value.dtype else {
            return Err(wrong(&format!("{} has no fields", value.name), field.span));
        };
        let Some(found) = known.iter().find(|known| known.name.as_str() == field.value) else {
            return Err(wrong(&format!("{} has no field {}", value.name, field.value), field.span));
        };
        let dtype = found.dtype.clone();
        value = Typed {
            expr: value.expr.struct_().field_by_name(&field.value),
            dtype,
            name: field.value.clone(),
            nullable: true,
        };
    }
    Ok(value)
}
