//! Refusals and errors that say where in the text they are.

use floe_protocol::Failure;
use polars::prelude::PolarsError;
use sqlparser::tokenizer::Span;

use crate::query_failure;

/// What Floe's SQL does not have: the construct, and its place.
pub(super) fn unsupported(construct: &str, span: Span) -> Failure {
    Failure::Refused { message: format!("{construct} is not supported in SQL{}", at(span)) }
}

/// A statement that means nothing: what is wrong, and its place.
pub(super) fn wrong(message: &str, span: Span) -> Failure {
    Failure::Query { message: format!("{message}{}", at(span)) }
}

/// What Polars says of an expression, and its place.
pub(super) fn rejected(error: PolarsError, span: Span) -> Failure {
    match query_failure(error) {
        Failure::Query { message } => {
            // What may be done about it in Python is of no use here.
            let message = message.split("\n\nYou might want to try:").next().unwrap_or_default();
            Failure::Query { message: format!("{message}{}", at(span)) }
        }
        other => other,
    }
}

/// Empty if the parser kept no place.
fn at(span: Span) -> String {
    match span.start.line {
        0 => String::new(),
        line => format!(" (line {line}, column {})", span.start.column),
    }
}
