//! Dates, times and intervals.

use floe_protocol::Failure;
use polars::prelude::*;
use sqlparser::ast::{
    DataType as SqlType, DateTimeField, Expr as Sql, Interval, TimezoneInfo, TypedString, UnaryOperator,
    Value,
};
use sqlparser::tokenizer::Span;

use super::place::{unsupported, wrong};
use super::value::{Typed, evaluate};

/// `DATE '1998-12-01'` and its like: known while planning, so that scans see it.
pub(super) fn typed_string(typed: &TypedString, span: Span) -> Result<Option<Typed>, Failure> {
    let Value::SingleQuotedString(text) = &typed.value.value else {
        return Ok(None);
    };
    let dtype = match &typed.data_type {
        data_type if let Some(dtype) = temporal_type(data_type) => dtype,
        SqlType::Decimal(_) | SqlType::Numeric(_) => {
            return super::value::number(text.trim(), span).map(Some);
        }
        _ => return Ok(None),
    };
    let read = Typed::scalar(Scalar::from(PlSmallStr::from_str(text))).cast(&dtype, span);
    read.map(Some).map_err(|_| wrong(&format!("'{text}' is not a {}", typed.data_type), span))
}

/// The type of dates and times of a text, if it is one of them and without a time zone.
pub(super) fn temporal_type(data_type: &SqlType) -> Option<DataType> {
    match data_type {
        SqlType::Date => Some(DataType::Date),
        SqlType::Time(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => Some(DataType::Time),
        SqlType::Timestamp(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) | SqlType::Datetime(_) => {
            Some(DataType::Datetime(TimeUnit::Microseconds, None))
        }
        _ => None,
    }
}

/// Texts as dates or times, in the forms that people write: `2024-03-31T12:00:00.5`, `2024-03-31 12:00`, `2024-03-31`.
///
/// What is none is an error if `strict`, and null otherwise.
pub(super) fn read(text: Expr, to: &DataType, strict: bool) -> Expr {
    let replaced = |text: Expr, pattern: &str, by: &str| text.str().replace(lit(pattern), lit(by), false);
    let text = text.str().strip_chars(lit(NULL));
    let (text, format) = match to {
        // A time after it is left out, as by a cast of a time stamp.
        DataType::Date => {
            (replaced(text, r"^(\d+-\d+-\d+)[ T]+\d+:\d+(:\d+(\.\d+)?)?Z?$", "${1}"), "%Y-%m-%d")
        }
        DataType::Time => (replaced(text, r"^(\d+:\d+)$", "${1}:00"), "%H:%M:%S%.f"),
        _ => {
            let text = replaced(text, r"^(\d+-\d+-\d+)$", "${1}T00:00:00");
            let text = replaced(text, r"^(\d+-\d+-\d+)[ T]+(\d+:\d+[^Z]*)Z?$", "${1}T${2}");
            (replaced(text, r"^(\d+-\d+-\d+T\d+:\d+)$", "${1}:00"), "%Y-%m-%dT%H:%M:%S%.f")
        }
    };
    let options = StrptimeOptions { format: Some(format.into()), strict, ..Default::default() };
    text.str().strptime(to.clone(), options, lit("raise"))
}

/// Steps of a calendar or clock: `(count, unit of Polars' durations)`.
pub(super) type Steps = Vec<(i64, &'static str)>;

/// `INTERVAL '90' DAY (3)`, `INTERVAL '1 year 2 months'`, `INTERVAL 3 MONTH`.
pub(super) fn interval(interval: &Interval, span: Span) -> Result<Steps, Failure> {
    if interval.last_field.is_some() {
        return Err(unsupported("an interval from one field to another", span));
    }
    let mut negative = false;
    let mut value = &*interval.value;
    while let Sql::UnaryOp { op: UnaryOperator::Minus, expr } = value {
        negative = !negative;
        value = expr;
    }
    let text = match value {
        Sql::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::Number(text, _) => text.clone(),
            _ => return Err(unsupported("an interval of this kind", span)),
        },
        _ => return Err(unsupported("an interval that is not a literal", span)),
    };
    let malformed = || wrong(&format!("'{text}' is not an interval"), span);
    let mut steps = Vec::new();
    if let Some(field) = &interval.leading_field {
        let count: i64 = text.trim().parse().map_err(|_| malformed())?;
        let unit =
            unit(&field.to_string()).ok_or_else(|| unsupported(&format!("an interval of {field}"), span))?;
        steps.push(times(count, unit).ok_or_else(malformed)?);
    } else {
        let words = text.replace(',', " ");
        let mut words = words.split_whitespace();
        while let Some(word) = words.next() {
            let digits =
                word.find(|c: char| !(c.is_ascii_digit() || c == '-' || c == '+')).unwrap_or(word.len());
            let (count, rest) = word.split_at(digits);
            let name = if rest.is_empty() { words.next().ok_or_else(malformed)? } else { rest };
            let count: i64 = count.parse().map_err(|_| malformed())?;
            steps.push(times(count, unit(name).ok_or_else(malformed)?).ok_or_else(malformed)?);
        }
        if steps.is_empty() {
            return Err(malformed());
        }
    }
    // All months are one step, and so are all days: the day of the month is cut to its length once.
    let mut sum = Steps::new();
    for (count, unit) in steps {
        let count = if negative { count.checked_neg().ok_or_else(malformed)? } else { count };
        match sum.iter_mut().find(|(_, own)| *own == unit) {
            Some((total, _)) => *total = total.checked_add(count).ok_or_else(malformed)?,
            None => sum.push((count, unit)),
        }
    }
    sum.sort_by_key(|(_, unit)| match *unit {
        "mo" => 0,
        "d" => 1,
        _ => 2,
    });
    Ok(sum)
}

/// An interval that stands by itself.
pub(super) fn duration(steps: &[(i64, &'static str)], span: Span) -> Result<Typed, Failure> {
    let mut total_us: i64 = 0;
    for (count, unit) in steps {
        let unit_us = match *unit {
            "d" => 86_400_000_000,
            "h" => 3_600_000_000,
            "m" => 60_000_000,
            "s" => 1_000_000,
            "ms" => 1_000,
            "us" => 1,
            // Those have no length.
            _ => return Err(unsupported("an interval of months or years by itself", span)),
        };
        let sum = count.checked_mul(unit_us).and_then(|us| total_us.checked_add(us));
        total_us = sum.ok_or_else(|| wrong("an interval that is too long", span))?;
    }
    let dtype = DataType::Duration(TimeUnit::Microseconds);
    Ok(Typed::scalar(Scalar::new(dtype, AnyValue::Duration(total_us, TimeUnit::Microseconds))))
}

fn times(count: i64, (factor, unit): (i64, &'static str)) -> Option<(i64, &'static str)> {
    Some((count.checked_mul(factor)?, unit))
}

fn unit(name: &str) -> Option<(i64, &'static str)> {
    let name = name.to_ascii_lowercase();
    let name = if name.len() > 2 { name.trim_end_matches('s') } else { &name };
    Some(match name {
        "y" | "year" => (12, "mo"),
        "quarter" => (3, "mo"),
        "mo" | "mon" | "month" => (1, "mo"),
        "w" | "week" => (7, "d"),
        "d" | "day" => (1, "d"),
        "h" | "hour" | "hr" => (1, "h"),
        "m" | "min" | "minute" => (1, "m"),
        "s" | "sec" | "second" => (1, "s"),
        "ms" | "millisecond" => (1, "ms"),
        "us" | "microsecond" => (1, "us"),
        _ => return None,
    })
}

/// A date or time, moved.
pub(super) fn shift(
    value: Typed,
    steps: &[(i64, &'static str)],
    back: bool,
    span: Span,
) -> Result<Typed, Failure> {
    let name = value.name.clone();
    let clock = steps.iter().any(|(_, unit)| !matches!(*unit, "mo" | "d"));
    let value = match &value.dtype {
        DataType::String if value.constant().is_some() => value.cast(&DataType::Date, span)?,
        _ => value,
    };
    let mut value = match &value.dtype {
        DataType::Date if clock => value.cast(&DataType::Datetime(TimeUnit::Microseconds, None), span)?,
        DataType::Date | DataType::Datetime(..) | DataType::Null => value,
        DataType::Duration(_) => return Err(unsupported("the sum of two intervals", span)),
        other => {
            return Err(wrong(
                &format!("an interval can be added to a date or time, not to a {other}"),
                span,
            ));
        }
    };
    if value.is_null() {
        return Ok(value);
    }
    let constant = value.constant().is_some();
    for (count, unit) in steps {
        let count = if back { count.checked_neg() } else { Some(*count) };
        let count = count.ok_or_else(|| wrong("an interval is too long", span))?;
        value.expr = value.expr.dt().offset_by(lit(format!("{count}{unit}")));
    }
    Ok(if constant { evaluate(value.expr, span)?.named(&name) } else { value })
}

/// `NOW()` and its like, of a statement that is planned at this time.
pub(super) fn now(now_us: i64, name: &str, span: Span) -> Result<Typed, Failure> {
    let now = lit(now_us).cast(DataType::Datetime(TimeUnit::Microseconds, None));
    let now = if name == "current_date" { now.cast(DataType::Date) } else { now };
    Ok(evaluate(now, span)?.named(name))
}

/// `DATE_TRUNC('month', x)`: the beginning of the unit in which a date or time is.
pub(super) fn truncate(name: &str, value: Typed, span: Span) -> Result<Typed, Failure> {
    let every = match unit(name.trim()) {
        Some((12, "mo")) => "1y".to_owned(),
        Some((7, "d")) => "1w".to_owned(),
        Some((count, unit)) => format!("{count}{unit}"),
        None => return Err(unsupported(&format!("DATE_TRUNC to '{name}'"), span)),
    };
    let value = match &value.dtype {
        DataType::String if value.constant().is_some() => {
            value.cast(&DataType::Datetime(TimeUnit::Microseconds, None), span)?
        }
        DataType::Date | DataType::Datetime(..) => value,
        other => return Err(wrong(&format!("DATE_TRUNC is of a date or time, not of a {other}"), span)),
    };
    let constant = value.constant().is_some();
    let typed = Typed { expr: value.expr.clone().dt().truncate(lit(every)), ..value };
    Ok(if constant { evaluate(typed.expr, span)?.named(&typed.name) } else { typed })
}

/// The fields of `EXTRACT` that most texts use; others are Polars SQL's.
pub(super) fn extract(field: &DateTimeField, value: &Typed) -> Option<Typed> {
    if !matches!(value.dtype, DataType::Date | DataType::Datetime(..)) {
        return None;
    }
    let expr = || value.expr.clone().dt();
    let (expr, dtype) = match field {
        DateTimeField::Year | DateTimeField::Years => (expr().year(), DataType::Int32),
        DateTimeField::Month | DateTimeField::Months => (expr().month(), DataType::Int8),
        DateTimeField::Day | DateTimeField::Days => (expr().day(), DataType::Int8),
        _ => return None,
    };
    Some(Typed { expr, dtype, ..value.clone() })
}
