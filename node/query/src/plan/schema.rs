//! The types that a driver expects. Its Polars may be another version than the one that runs here, and give a column
//! another name or type; then the result is cast, or refused, but never silently another.

use std::io::Cursor;

use floe_protocol::Failure;
use polars::io::ipc::IpcStreamReader;
use polars::prelude::*;
use recursive::recursive;

/// What a result is to be cast by, if anything, to have the schema that was expected: an Arrow IPC stream without
/// rows, or nothing, if the driver could not tell.
///
/// Only such casts are made as keep every value or fail.
pub(super) fn casts(found: &Schema, expected: &[u8]) -> Result<Option<Vec<Expr>>, Failure> {
    if expected.is_empty() {
        return Ok(None);
    }
    let expected = IpcStreamReader::new(Cursor::new(expected)).finish().map_err(|error| {
        let message = format!("the schema that came with the plan cannot be read: {error}");
        Failure::Refused { message }
    })?;
    if found.len() != expected.width() {
        let names =
            |schema: &Schema| schema.iter_names().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(other(format!(
            "the result has the columns {} by Polars {} and {} by the driver's",
            names(found),
            floe_protocol::version::POLARS_VERSION,
            names(expected.schema()),
        )));
    }
    let mut casts = Vec::with_capacity(found.len());
    let mut differ = false;
    for ((name, found), (wanted_name, wanted)) in found.iter().zip(expected.schema().iter()) {
        if name != wanted_name {
            return Err(other(format!(
                "the column {wanted_name} of the result is named {name} by Polars {}: name it with .alias",
                floe_protocol::version::POLARS_VERSION,
            )));
        }
        let column = polars_plan::dsl::Expr::Column(name.clone());
        if found == wanted {
            casts.push(column);
        } else if keeps_values(found, wanted) {
            differ = true;
            casts.push(column.strict_cast(wanted.clone()));
        } else {
            return Err(other(format!(
                "the column {name} of the result has the type {found} by Polars {} and {wanted} by the driver's: \
                 cast it in the query",
                floe_protocol::version::POLARS_VERSION,
            )));
        }
    }
    Ok(differ.then_some(casts))
}

fn other(what: String) -> Failure {
    Failure::Foreign { message: format!("this plan would give another result here: {what}") }
}

/// Whether a strict cast gives the values that the driver's Polars would have given, or fails.
///
/// Floats are not cast: what was computed in one precision is not what would have been in another. Times neither,
/// for the same reason.
#[recursive]
fn keeps_values(from: &DataType, to: &DataType) -> bool {
    use DataType as T;
    let text = |dtype: &DataType| matches!(dtype, T::String | T::Categorical(..) | T::Enum(..));
    match (from, to) {
        (from, to) if from == to => true,
        (T::Null, _) => true,
        (from, to) if from.is_integer() && to.is_integer() => true,
        (from, T::Decimal(..)) if from.is_integer() => true,
        (T::Decimal(_, from), T::Decimal(_, to)) => from <= to,
        (from, to) if text(from) && text(to) => true,
        (T::List(from) | T::Array(from, _), T::List(to)) => keeps_values(from, to),
        (T::List(from), T::Array(to, _)) => keeps_values(from, to),
        (T::Array(from, width), T::Array(to, wanted)) => width == wanted && keeps_values(from, to),
        (T::Struct(from), T::Struct(to)) => {
            let same =
                |(from, to): (&Field, &Field)| from.name == to.name && keeps_values(&from.dtype, &to.dtype);
            from.len() == to.len() && from.iter().zip(to).all(same)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn stream(df: &DataFrame) -> Vec<u8> {
        let mut bytes = Vec::new();
        IpcStreamWriter::new(&mut bytes).finish(&mut df.clear()).unwrap();
        bytes
    }

    /// The result of casting, or why there is none.
    fn cast(found: Series, wanted: DataType) -> Result<Series, String> {
        let found = DataFrame::new_infer_height(vec![found.with_name("x".into()).into()]).unwrap();
        let expected =
            stream(&DataFrame::empty_with_schema(&Schema::from_iter([Field::new("x".into(), wanted)])));
        let casts = casts(found.schema(), &expected).map_err(|failure| failure.to_string())?;
        let cast = found.lazy().select(casts.unwrap_or_else(|| vec![polars::prelude::col("x")])).collect();
        Ok(cast.map_err(|error| error.to_string())?.columns()[0].as_materialized_series().clone())
    }

    #[test]
    fn values_are_kept_or_the_cast_fails() {
        let counts = || Series::new("".into(), [1u32, 2]);
        assert_eq!(cast(counts(), DataType::Int64).unwrap(), Series::new("x".into(), [1i64, 2]));
        assert_eq!(cast(counts(), DataType::UInt32).unwrap(), counts().with_name("x".into()));
        let why = cast(Series::new("".into(), [300i64]), DataType::UInt8).unwrap_err();
        assert!(why.contains("x") && why.contains("300"), "{why}");
        assert!(cast(Series::new("".into(), [-1i64]), DataType::UInt64).is_err());
        let decimals = |precision, scale| counts().cast(&DataType::Decimal(precision, scale)).unwrap();
        assert_eq!(
            cast(decimals(38, 1), DataType::Decimal(10, 2)).unwrap().dtype(),
            &DataType::Decimal(10, 2)
        );
        assert!(cast(decimals(38, 2), DataType::Decimal(38, 1)).is_err());
        let large = Series::new("".into(), [i64::MAX]).cast(&DataType::Decimal(38, 0)).unwrap();
        assert!(cast(large, DataType::Decimal(10, 0)).is_err());
        let lists = |values: &[i64]| Series::new("".into(), [Series::new("".into(), values)]);
        let narrow = DataType::List(Box::new(DataType::Int8));
        assert_eq!(cast(lists(&[1, 2]), narrow.clone()).unwrap().dtype(), &narrow);
        assert!(cast(lists(&[1, 200]), narrow).is_err());
        let fixed = |width| DataType::Array(Box::new(DataType::Int64), width);
        assert_eq!(cast(lists(&[1, 2]), fixed(2)).unwrap().dtype(), &fixed(2));
        assert!(cast(lists(&[1, 2]), fixed(3)).is_err());
        assert_eq!(cast(Series::new_null("".into(), 2), DataType::Date).unwrap().null_count(), 2);
    }

    #[test]
    fn what_would_lose_something_is_refused_by_name() {
        for (found, wanted) in [
            (DataType::Float32, DataType::Float64),
            (DataType::Float64, DataType::Int64),
            (DataType::Int64, DataType::Float64),
            (DataType::Int64, DataType::String),
            (DataType::Decimal(10, 3), DataType::Decimal(38, 2)),
            (
                DataType::Datetime(TimeUnit::Milliseconds, None),
                DataType::Datetime(TimeUnit::Microseconds, None),
            ),
        ] {
            let why = cast(Series::new_empty("".into(), &found), wanted.clone()).unwrap_err();
            assert!(
                why.contains("the column x of the result") && why.contains("cast it in the query"),
                "{why}"
            );
        }
        let found = Schema::from_iter([Field::new("a".into(), DataType::Int8)]);
        let other =
            DataFrame::empty_with_schema(&Schema::from_iter([Field::new("b".into(), DataType::Int8)]));
        let why = casts(&found, &stream(&other)).unwrap_err().to_string();
        assert!(why.contains("the column b of the result is named a"), "{why}");
        assert!(casts(&found, &stream(&DataFrame::empty())).unwrap_err().to_string().contains("columns"));
        assert!(casts(&found, b"no stream").unwrap_err().to_string().contains("cannot be read"));
        assert!(casts(&found, b"").unwrap().is_none());
    }
}
