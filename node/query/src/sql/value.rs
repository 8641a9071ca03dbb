//! Types of values: how those of two operands meet, and arithmetic that keeps the digits of decimals.
//!
//! | | |
//! |---|---|
//! | integers | 64 bits in arithmetic, whatever the columns have |
//! | decimals `+ - *` | exact: as many digits after the point as the result has |
//! | `/` | `Float64`, as in Polars and DuckDB; null if integers or decimals are divided by zero |
//! | decimal and float | `Float64` |
//! | text beside a date or number | the literal is read as one |

use floe_protocol::Failure;
use polars::prelude::*;
use polars_plan::plans::{DynLiteralValue, LiteralValue};
use sqlparser::ast::BinaryOperator;
use sqlparser::tokenizer::Span;

use super::place::{rejected, unsupported, wrong};

/// The most digits after the point that a product of decimals keeps; beyond, it is a `Float64`.
const MAX_SCALE: usize = 24;
/// The most digits after the point, of a number multiplied by itself, with which there is room for large ones too.
const MAX_EXACT_SCALE: usize = 18;
/// Digits that a decimal of 128 bits has.
const MAX_PRECISION: usize = 38;

/// An expression and what it yields.
#[derive(Clone, Debug)]
pub(super) struct Typed {
    pub(super) expr: Expr,
    pub(super) dtype: DataType,
    /// The name it has as a column of a result, unless an alias gives another: that of its first operand.
    pub(super) name: String,
    /// Whether nulls are possible as far as the planner knows.
    pub(super) nullable: bool,
}

impl Typed {
    pub(super) fn new(expr: Expr, dtype: DataType) -> Self {
        Self { expr, dtype, name: "literal".to_owned(), nullable: true }
    }

    pub(super) fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    pub(super) fn null() -> Self {
        Self::scalar(Scalar::null(DataType::Null))
    }

    pub(super) fn bool(value: bool) -> Self {
        Self::scalar(Scalar::from(value))
    }

    pub(super) fn scalar(scalar: Scalar) -> Self {
        let nullable = scalar.is_null();
        let dtype = scalar.dtype().clone();
        Self {
            expr: Expr::Literal(LiteralValue::Scalar(scalar)),
            dtype,
            name: "literal".to_owned(),
            nullable,
        }
    }

    /// An integer as it stands in the text: of the type of what it meets.
    pub(super) fn integer(value: i64) -> Self {
        let dtype = if i32::try_from(value).is_ok() { DataType::Int32 } else { DataType::Int64 };
        let expr = Expr::Literal(LiteralValue::Dyn(DynLiteralValue::Int(value.into())));
        Self { expr, dtype, name: "literal".to_owned(), nullable: false }
    }

    /// The value of a literal.
    pub(super) fn constant(&self) -> Option<Scalar> {
        match &self.expr {
            Expr::Literal(LiteralValue::Scalar(scalar)) => Some(scalar.clone()),
            Expr::Literal(LiteralValue::Dyn(DynLiteralValue::Int(value))) => {
                Some(Scalar::from(i64::try_from(*value).ok()?))
            }
            _ => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        self.dtype == DataType::Null
    }

    fn is_text_literal(&self) -> bool {
        self.dtype == DataType::String && self.constant().is_some()
    }

    /// The same value in another type; a literal is cast now, so that scans see a literal.
    pub(super) fn cast(self, to: &DataType, span: Span) -> Result<Self, Failure> {
        let dynamic = matches!(self.expr, Expr::Literal(LiteralValue::Dyn(_)));
        if self.dtype == *to && !dynamic {
            return Ok(self);
        }
        let name = self.name.clone();
        if let Some(scalar) = self.constant() {
            let literal = cast(Self::scalar(scalar).expr, &self.dtype, to, true);
            return Ok(evaluate(literal, span)?.named(&name));
        }
        let lossless = self.dtype.is_integer() && widens(&self.dtype, to) || self.is_null();
        let expr = cast(self.expr, &self.dtype, to, !lossless);
        Ok(Self { expr, dtype: to.clone(), ..self })
    }

    /// A literal integer with the type it would have in a column.
    pub(super) fn settled(self, span: Span) -> Result<Self, Failure> {
        let dtype = self.dtype.clone();
        self.cast(&dtype, span)
    }

    /// An operand that its operator reads more than once. Nested, such operators double what is below them at
    /// each level, so what is large already is refused.
    pub(super) fn repeatable(self, span: Span) -> Result<Self, Failure> {
        /// The most parts of an expression that is repeated.
        const MAX_REPEATED: usize = 1_000;
        if self.expr.into_iter().nth(MAX_REPEATED).is_some() {
            let message = format!(
                "BETWEEN, CASE or NULLIF of an expression of more than {MAX_REPEATED} parts (compute it in a subquery first)"
            );
            return Err(unsupported(&message, span));
        }
        Ok(self)
    }

    /// As a condition: numbers are true unless they are zero.
    pub(super) fn truth(self, span: Span) -> Result<Self, Failure> {
        match &self.dtype {
            DataType::Boolean => Ok(self),
            DataType::Null => self.cast(&DataType::Boolean, span),
            dtype if dtype.is_numeric() => compare(&BinaryOperator::NotEq, self, Self::integer(0), span),
            dtype => Err(wrong(&format!("a condition is a Boolean, not a {dtype}"), span)),
        }
    }
}

/// A cast that fails where it loses a value if it is `strict`, and gives null there otherwise. Polars reads fewer forms
/// of dates, and cuts decimals of literals where it rounds those of columns.
pub(super) fn cast(expr: Expr, from: &DataType, to: &DataType, strict: bool) -> Expr {
    let expr = match (from, to) {
        (DataType::String, DataType::Date | DataType::Time | DataType::Datetime(_, None)) => {
            return super::temporal::read(expr, to, strict);
        }
        (from, to) if from.is_decimal() && to.is_integer() => expr.round(0, RoundMode::HalfAwayFromZero),
        _ => expr,
    };
    if strict { expr.strict_cast(to.clone()) } else { expr.cast(to.clone()) }
}

fn widens(from: &DataType, to: &DataType) -> bool {
    matches!(to, DataType::Int64) && !matches!(from, DataType::UInt64 | DataType::UInt128 | DataType::Int128)
        || to.is_float()
}

/// The value of an expression without columns, computed once, here.
pub(super) fn evaluate(expr: Expr, span: Span) -> Result<Typed, Failure> {
    let frame = DataFrame::empty().lazy().select([expr.alias("value")]);
    let value = frame.collect().and_then(|frame| {
        let column = frame.column("value")?;
        Ok(Scalar::new(column.dtype().clone(), column.get(0)?.into_static()))
    });
    Ok(Typed::scalar(value.map_err(|error| rejected(error, span))?))
}

/// The type of an expression over columns of the types given.
pub(super) fn dtype_of(expr: &Expr, columns: &[(&str, &DataType)], span: Span) -> Result<DataType, Failure> {
    let fields = columns.iter().map(|(name, dtype)| Field::new((*name).into(), (*dtype).clone()));
    let field = expr.to_field(&Schema::from_iter(fields)).map_err(|error| rejected(error, span))?;
    Ok(field.dtype)
}

/// A number of the text. One with a point and no exponent is a decimal.
pub(super) fn number(text: &str, span: Span) -> Result<Typed, Failure> {
    if let Ok(value) = text.parse::<i64>() {
        return Ok(Typed::integer(value));
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{whole}{fraction}");
    let decimal = digits.bytes().all(|byte| byte.is_ascii_digit()) && fraction.len() <= MAX_SCALE;
    if decimal
        && digits.trim_start_matches('0').len() <= MAX_PRECISION
        && let Ok(value) = digits.trim_start_matches('0').parse::<i128>().or_else(|_| "0".parse())
    {
        let dtype = DataType::Decimal(MAX_PRECISION, fraction.len());
        let value = AnyValue::Decimal(value, MAX_PRECISION, fraction.len());
        return Ok(Typed::scalar(Scalar::new(dtype, value)));
    }
    match text.parse::<f64>() {
        Ok(value) => Ok(Typed::scalar(Scalar::from(value))),
        Err(_) => Err(wrong(&format!("{text} is not a number"), span)),
    }
}

fn scale(dtype: &DataType) -> Option<usize> {
    match dtype {
        DataType::Decimal(_, scale) => Some(*scale),
        dtype if dtype.is_integer() => Some(0),
        _ => None,
    }
}

fn decimal(scale: usize) -> DataType {
    DataType::Decimal(MAX_PRECISION, scale)
}

/// The type in which values of two types are compared, joined or put under one name.
pub(super) fn common(a: &DataType, b: &DataType) -> Option<DataType> {
    match (a, b) {
        (a, b) if a == b => Some(a.clone()),
        (DataType::Null, other) | (other, DataType::Null) => Some(other.clone()),
        (a, b) if a.is_decimal() || b.is_decimal() => {
            if a.is_float() || b.is_float() {
                return Some(DataType::Float64);
            }
            Some(decimal(scale(a)?.max(scale(b)?)))
        }
        // Polars compares a number with the days of a date.
        (a, b)
            if a.is_primitive_numeric() && (b.is_string() || b.is_temporal())
                || b.is_primitive_numeric() && (a.is_string() || a.is_temporal()) =>
        {
            None
        }
        (a, b) => supertype(a, b),
    }
}

/// Polars' own rule, which it applies to the branches of `when`.
fn supertype(a: &DataType, b: &DataType) -> Option<DataType> {
    let either = when(lit(true)).then(col("a")).otherwise(col("b"));
    dtype_of(&either, &[("a", a), ("b", b)], Span::empty()).ok()
}

/// Reads a literal text as what stands beside it.
fn read_text(a: Typed, b: Typed, span: Span) -> Result<(Typed, Typed), Failure> {
    let readable =
        |dtype: &DataType| dtype.is_temporal() || dtype.is_numeric() || *dtype == DataType::Boolean;
    if a.is_text_literal() && readable(&b.dtype) {
        let to = beside(&a, &b.dtype);
        return Ok((a.cast(&to, span)?, b));
    }
    if b.is_text_literal() && readable(&a.dtype) {
        let to = beside(&b, &a.dtype);
        return Ok((a, b.cast(&to, span)?));
    }
    Ok((a, b))
}

/// A date beside a text with a time in it is compared as a time stamp.
fn beside(text: &Typed, other: &DataType) -> DataType {
    let long = match text.constant().map(|scalar| scalar.into_value()) {
        Some(AnyValue::StringOwned(text)) => text.trim().len() > "2000-01-01".len(),
        Some(AnyValue::String(text)) => text.trim().len() > "2000-01-01".len(),
        _ => false,
    };
    match other {
        DataType::Date if long => DataType::Datetime(TimeUnit::Microseconds, None),
        // Numbers without a fraction are texts of whole numbers; others are read as they come.
        other if other.is_integer() => DataType::Float64,
        other => other.clone(),
    }
}

/// Several values under one name: of one type, each cast to it.
pub(super) fn unify(values: Vec<Typed>, span: Span) -> Result<(Vec<Typed>, DataType), Failure> {
    let mut to = DataType::Null;
    let mut text = true;
    for value in &values {
        text &= value.is_text_literal() || value.is_null();
    }
    for value in &values {
        if !text && value.is_text_literal() && values.iter().any(|other| other.dtype.is_temporal()) {
            continue;
        }
        to = common(&to, &value.dtype).ok_or_else(|| {
            wrong(&format!("values of the types {to} and {} have no type in common", value.dtype), span)
        })?;
    }
    let values = values.into_iter().map(|value| value.cast(&to, span)).collect::<Result<_, _>>()?;
    Ok((values, to))
}

/// A comparison; null if one side is.
pub(super) fn compare(op: &BinaryOperator, a: Typed, b: Typed, span: Span) -> Result<Typed, Failure> {
    let (a, b) = meet(a, b, span)?;
    let name = a.name.clone();
    let nullable = a.nullable || b.nullable;
    let (left, right) = (a.expr, b.expr);
    let mut never_null = false;
    let expr = match op {
        BinaryOperator::Eq => left.eq(right),
        BinaryOperator::NotEq => left.neq(right),
        BinaryOperator::Lt => left.lt(right),
        BinaryOperator::LtEq => left.lt_eq(right),
        BinaryOperator::Gt => left.gt(right),
        BinaryOperator::GtEq => left.gt_eq(right),
        BinaryOperator::Spaceship => {
            never_null = true;
            left.eq_missing(right)
        }
        other => return Err(unsupported(&format!("the comparison {other}"), span)),
    };
    Ok(Typed { expr, dtype: DataType::Boolean, name, nullable: nullable && !never_null })
}

/// Two values in a form in which they compare. A literal takes the column's type if it loses nothing by it:
/// a comparison of a bare column with a literal is what scans can skip rows by.
pub(super) fn meet(a: Typed, b: Typed, span: Span) -> Result<(Typed, Typed), Failure> {
    let (a, b) = read_text(a, b, span)?;
    if a.is_null() || b.is_null() {
        let dtype = if a.is_null() { b.dtype.clone() } else { a.dtype.clone() };
        return Ok((a.cast(&dtype, span)?, b.cast(&dtype, span)?));
    }
    if a.dtype.is_decimal() || b.dtype.is_decimal() {
        if let Some(fitted) = fit(&b, &a.dtype) {
            return Ok((a, fitted));
        }
        if let Some(fitted) = fit(&a, &b.dtype) {
            return Ok((fitted, b));
        }
        let to = common(&a.dtype, &b.dtype).ok_or_else(|| {
            wrong(&format!("values of the types {} and {} do not compare", a.dtype, b.dtype), span)
        })?;
        // Literals of a fraction beside floats, and columns of two scales.
        return Ok((a.cast(&to, span)?, b.cast(&to, span)?));
    }
    if common(&a.dtype, &b.dtype).is_none() {
        return Err(wrong(&format!("values of the types {} and {} do not compare", a.dtype, b.dtype), span));
    }
    let negative = |value: &Typed| matches!(&value.expr, Expr::Literal(LiteralValue::Dyn(DynLiteralValue::Int(value))) if *value < 0);
    let a = if b.dtype.is_unsigned_integer() && negative(&a) { a.cast(&DataType::Int64, span)? } else { a };
    let b = if a.dtype.is_unsigned_integer() && negative(&b) { b.cast(&DataType::Int64, span)? } else { b };
    // A literal beyond the column's type would be cut to it.
    let wide = |value: &Typed, beside: &Typed| {
        value.dtype == DataType::Int64
            && beside.dtype.is_integer()
            && matches!(value.expr, Expr::Literal(LiteralValue::Dyn(_)))
    };
    let a = if wide(&a, &b) { a.cast(&DataType::Int64, span)? } else { a };
    let b = if wide(&b, &a) { b.cast(&DataType::Int64, span)? } else { b };
    Ok((a, b))
}

/// A literal number with the scale of a column of decimals, if it has no more digits than that.
fn fit(literal: &Typed, column: &DataType) -> Option<Typed> {
    let DataType::Decimal(precision, scale) = *column else {
        return None;
    };
    let (value, own) = match literal.constant()?.into_value() {
        AnyValue::Decimal(value, _, own) => (value, own),
        AnyValue::Int64(value) => (value.into(), 0),
        AnyValue::Int32(value) => (value.into(), 0),
        _ => return None,
    };
    let fitted = if own <= scale {
        value.checked_mul(10i128.checked_pow((scale - own) as u32)?)?
    } else {
        let cut = 10i128.checked_pow((own - scale) as u32)?;
        (value % cut == 0).then_some(value / cut)?
    };
    (fitted.unsigned_abs() < 10u128.checked_pow(precision as u32)?)
        .then(|| Typed::scalar(Scalar::new(column.clone(), AnyValue::Decimal(fitted, precision, scale))))
        .map(|typed| typed.named(&literal.name))
}

/// `+ - * / %` and whole-number division.
pub(super) fn arithmetic(op: &BinaryOperator, a: Typed, b: Typed, span: Span) -> Result<Typed, Failure> {
    let constant = a.constant().is_some() && b.constant().is_some();
    let name = a.name.clone();
    let result = operate(op, a, b, span)?.named(&name);
    if constant {
        let literal = result.dtype == DataType::Int32;
        let result = evaluate(result.expr, span)?;
        return Ok(match result.constant().and_then(|value| value.value().extract::<i64>()) {
            Some(value) if literal => Typed::integer(value).named(&name),
            _ => result.named(&name),
        });
    }
    Ok(result)
}

fn operate(op: &BinaryOperator, a: Typed, b: Typed, span: Span) -> Result<Typed, Failure> {
    let (a, b) = read_text(a, b, span)?;
    if a.is_null() || b.is_null() {
        let other = if a.is_null() { &b } else { &a };
        let dtype = match (op, &other.dtype) {
            (BinaryOperator::Divide, _) => DataType::Float64,
            (_, dtype) if narrow(dtype) => DataType::Int32,
            (_, dtype) if dtype.is_integer() => DataType::Int64,
            (_, dtype) => dtype.clone(),
        };
        return Typed::null().cast(&dtype, span);
    }
    if scale(&a.dtype).is_none() || scale(&b.dtype).is_none() {
        return with_floats(op, a, b, span);
    }
    if a.dtype.is_integer() && b.dtype.is_integer() {
        return with_integers(op, a, b, span);
    }
    with_decimals(op, a, b, span)
}

/// Whether an integer of this type is one that fits in an `Int32` too.
fn narrow(dtype: &DataType) -> bool {
    use DataType::{Int8, Int16, Int32, UInt8, UInt16};
    matches!(dtype, Int8 | Int16 | Int32 | UInt8 | UInt16)
}

/// Of narrow integers comes an `Int32`, as in Polars; a value for which it has no room is an error, where
/// Polars would wrap it around. Of all others comes an `Int64` or more.
fn with_integers(op: &BinaryOperator, a: Typed, b: Typed, span: Span) -> Result<Typed, Failure> {
    let large = |dtype: &DataType| matches!(dtype, DataType::UInt64 | DataType::Int128 | DataType::UInt128);
    let to = match (large(&a.dtype), large(&b.dtype)) {
        (false, false) => DataType::Int64,
        (true, true) if a.dtype == b.dtype => a.dtype.clone(),
        _ => DataType::Int128,
    };
    let nullable = a.nullable || b.nullable;
    let zero_is_possible = b.constant().is_none_or(|scalar| scalar.value().extract::<i64>() == Some(0));
    if *op == BinaryOperator::Divide {
        let (left, right) = (a.cast(&DataType::Float64, span)?.expr, b.cast(&DataType::Float64, span)?.expr);
        let expr = left.true_div(if zero_is_possible { null_where_zero(right) } else { right });
        return Ok(Typed { nullable: nullable || zero_is_possible, ..Typed::new(expr, DataType::Float64) });
    }
    let small = narrow(&a.dtype) && narrow(&b.dtype);
    let constant = a.constant().is_some() && b.constant().is_some();
    // A remainder is never larger than its operands.
    let to = if small && *op == BinaryOperator::Modulo { DataType::Int32 } else { to };
    let (left, right) = (a.cast(&to, span)?.expr, b.cast(&to, span)?.expr);
    let expr = match op {
        BinaryOperator::Plus => left + right,
        BinaryOperator::Minus => left - right,
        BinaryOperator::Multiply => left * right,
        BinaryOperator::DuckIntegerDivide | BinaryOperator::MyIntegerDivide => once(left, right, quotient),
        BinaryOperator::Modulo => once(left, right, remainder),
        other => return Err(unsupported(&format!("the operator {other} on numbers"), span)),
    };
    let nullable = nullable
        || zero_is_possible
            && !matches!(op, BinaryOperator::Plus | BinaryOperator::Minus | BinaryOperator::Multiply);
    if small && to == DataType::Int64 && !constant {
        return Ok(Typed { nullable, ..Typed::new(expr.strict_cast(DataType::Int32), DataType::Int32) });
    }
    let dtype = if small && constant { DataType::Int32 } else { to };
    Ok(Typed { nullable, ..Typed::new(expr, dtype) })
}

/// The remainder whose sign is that of the dividend, as in all SQL; that of Polars has the divisor's.
fn remainder(left: Expr, right: Expr) -> Expr {
    let rest = left.clone() % right.clone();
    when(turned(left, right.clone(), rest.clone())).then(rest.clone() - right).otherwise(rest)
}

/// The quotient without its fraction, which belongs to that remainder; that of Polars is the next lower one.
fn quotient(left: Expr, right: Expr) -> Expr {
    let lower = left.clone().floor_div(right.clone());
    let rest = left.clone() % right.clone();
    when(turned(left, right, rest)).then(lower.clone() + lit(1)).otherwise(lower)
}

/// Whether a quotient below zero has a rest.
fn turned(left: Expr, right: Expr, rest: Expr) -> Expr {
    left.lt(lit(0)).neq(right.lt(lit(0))).and(rest.neq(lit(0)))
}

/// An operator that reads each operand several times. Those that are no more than a column or a literal are repeated;
/// others are computed once, as the fields of a struct: repeated, nested operators would grow exponentially.
fn once(left: Expr, right: Expr, operator: impl FnOnce(Expr, Expr) -> Expr) -> Expr {
    fn plain(expr: &Expr) -> bool {
        match expr {
            Expr::Column(_) | Expr::Literal(_) => true,
            Expr::Cast { expr, .. } => plain(expr),
            _ => false,
        }
    }
    if plain(&left) && plain(&right) {
        return operator(left, right);
    }
    let field = |name: &'static str| Expr::Field([name.into()].into());
    let value = operator(field("left"), field("right"));
    as_struct(vec![left.alias("left"), right.alias("right")])
        .struct_()
        .with_fields(vec![value.alias("value")])
        .struct_()
        .field_by_name("value")
}

/// A divisor that makes the quotient null where it is zero.
fn null_where_zero(divisor: Expr) -> Expr {
    divisor.replace(lit(0.0), lit(NULL).cast(DataType::Float64))
}

fn with_decimals(op: &BinaryOperator, a: Typed, b: Typed, span: Span) -> Result<Typed, Failure> {
    let (Some(left), Some(right)) = (scale(&a.dtype), scale(&b.dtype)) else {
        return with_floats(op, a, b, span);
    };
    let nullable = a.nullable || b.nullable;
    if *op == BinaryOperator::Modulo
        && let common = left.max(right)
        && 2 * common <= MAX_EXACT_SCALE
    {
        // Polars has no remainder of decimals: it is that of whole numbers of their last digit.
        let to = decimal(common);
        let unit = Typed::scalar(Scalar::new(to.clone(), AnyValue::Decimal(1, MAX_PRECISION, common)));
        let count = |value: Typed| -> Result<Expr, Failure> {
            let whole = Typed::scalar(Scalar::new(
                decimal(0),
                AnyValue::Decimal(10i128.pow(common as u32), MAX_PRECISION, 0),
            ));
            let scaled = value.cast(&to, span)?.expr * whole.cast(&to, span)?.expr;
            Ok(scaled.strict_cast(DataType::Int128))
        };
        let rest = once(count(a)?, count(b)?, remainder).strict_cast(to.clone());
        return Ok(Typed { nullable: true, ..Typed::new(rest * unit.expr, to) });
    }
    let to = match op {
        BinaryOperator::Plus | BinaryOperator::Minus => left.max(right),
        BinaryOperator::Multiply if left + right <= MAX_SCALE => left + right,
        BinaryOperator::Divide => {
            let (a, b) = (a.cast(&DataType::Float64, span)?, b.cast(&DataType::Float64, span)?);
            let expr = a.expr.true_div(null_where_zero(b.expr));
            return Ok(Typed::new(expr, DataType::Float64));
        }
        _ => return with_floats(op, a, b, span),
    };
    let to = decimal(to);
    let (left, right) = (a.cast(&to, span)?.expr, b.cast(&to, span)?.expr);
    let expr = match op {
        BinaryOperator::Plus => left + right,
        BinaryOperator::Minus => left - right,
        _ => left * right,
    };
    Ok(Typed { nullable, ..Typed::new(expr, to) })
}

/// Floats, dates, durations and all else that Polars has rules for.
fn with_floats(op: &BinaryOperator, a: Typed, b: Typed, span: Span) -> Result<Typed, Failure> {
    let float = |value: Typed| match value.dtype.is_decimal() {
        true => value.cast(&DataType::Float64, span),
        false => Ok(value),
    };
    let (a, b) = (float(a)?, float(b)?);
    // A date and a number of days.
    for (date, days) in [(&a, &b), (&b, &a)] {
        if date.dtype == DataType::Date && days.dtype.is_integer() {
            let days_long = days.clone().cast(&DataType::Int64, span)?.expr * lit(86_400_000i64);
            let length = days_long.cast(DataType::Duration(TimeUnit::Milliseconds));
            let expr = match op {
                BinaryOperator::Plus => date.expr.clone() + length,
                BinaryOperator::Minus => date.expr.clone() - length,
                other => return Err(unsupported(&format!("the operator {other} on dates"), span)),
            };
            return Ok(Typed::new(expr.cast(DataType::Date), DataType::Date));
        }
    }
    let number = a.dtype.is_float() && b.dtype.is_primitive_numeric()
        || b.dtype.is_float() && a.dtype.is_primitive_numeric();
    let apply = |left: Expr, right: Expr| {
        Ok(match op {
            BinaryOperator::Modulo if number => once(left, right, remainder),
            BinaryOperator::DuckIntegerDivide | BinaryOperator::MyIntegerDivide if number => {
                once(left, right, quotient).cast(DataType::Int64)
            }
            BinaryOperator::Plus => left + right,
            BinaryOperator::Minus => left - right,
            BinaryOperator::Multiply => left * right,
            BinaryOperator::Divide => left.true_div(right),
            BinaryOperator::Modulo => left % right,
            BinaryOperator::DuckIntegerDivide | BinaryOperator::MyIntegerDivide => {
                left.floor_div(right).cast(DataType::Int64)
            }
            other => return Err(unsupported(&format!("the operator {other}"), span)),
        })
    };
    let rule = apply(col("a"), col("b"))?;
    let dtype = dtype_of(&rule, &[("a", &a.dtype), ("b", &b.dtype)], span)?;
    let nullable = a.nullable || b.nullable;
    Ok(Typed { nullable, ..Typed::new(apply(a.expr, b.expr)?, dtype) })
}

/// `-x`.
pub(super) fn negate(value: Typed, span: Span) -> Result<Typed, Failure> {
    let name = value.name.clone();
    if let Expr::Literal(LiteralValue::Dyn(DynLiteralValue::Int(number))) = value.expr
        && let Ok(number) = i64::try_from(-number)
    {
        return Ok(Typed::integer(number));
    }
    if scale(&value.dtype).is_some() || value.is_null() {
        return Ok(arithmetic(&BinaryOperator::Minus, Typed::integer(0), value, span)?.named(&name));
    }
    let constant = value.constant().is_some();
    let typed = Typed { expr: -value.expr, ..value };
    if constant {
        return Ok(evaluate(typed.expr, span)?.named(&name));
    }
    Ok(typed)
}
