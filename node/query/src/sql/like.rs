//! `LIKE` where Polars SQL has none: patterns that are computed, and patterns with an escape.

use floe_protocol::Failure;
use polars::prelude::*;
use sqlparser::ast::{Value, ValueWithSpan};
use sqlparser::tokenizer::Span;

use super::place::{unsupported, wrong};
use super::value::Typed;

/// `value [I]LIKE pattern [ESCAPE 'c']`.
pub(super) fn like(
    (value, pattern): (Typed, Typed),
    escape: Option<&ValueWithSpan>,
    any_case: bool,
    span: Span,
) -> Result<Typed, Failure> {
    if !value.dtype.is_string() || !pattern.dtype.is_string() {
        let message = format!("LIKE is of texts, not of {} and {}", value.dtype, pattern.dtype);
        return Err(wrong(&message, span));
    }
    let begin = if any_case { "^(?is)" } else { "^(?s)" };
    let text = pattern.constant().and_then(|scalar| scalar.value().get_str().map(str::to_owned));
    let regex = match (text, escape) {
        (Some(text), escape) => {
            let escape = escape.map(|escape| character(escape, span)).transpose()?.flatten();
            lit(format!("{begin}{}$", regex(&text, escape, span)?))
        }
        (None, None) => {
            let text = pattern.expr.str().escape_regex();
            let text = text.str().replace_all(lit("%"), lit(".*"), true);
            let text = text.str().replace_all(lit("_"), lit("."), true);
            concat_str([lit(begin), text, lit("$")], "", false)
        }
        (None, Some(_)) => return Err(unsupported("LIKE with ESCAPE of a pattern that is computed", span)),
    };
    let nullable = value.nullable || pattern.nullable;
    let name = value.name;
    Ok(Typed { nullable, ..Typed::new(value.expr.str().contains(regex, true), DataType::Boolean) }
        .named(&name))
}

/// What stands before a character that is meant as it is; nothing if the text is empty.
fn character(escape: &ValueWithSpan, span: Span) -> Result<Option<char>, Failure> {
    let one = || wrong("ESCAPE has one character", span);
    let Value::SingleQuotedString(text) = &escape.value else { return Err(one()) };
    let mut characters = text.chars();
    match (characters.next(), characters.next()) {
        (escape, None) => Ok(escape),
        _ => Err(one()),
    }
}

fn regex(pattern: &str, escape: Option<char>, span: Span) -> Result<String, Failure> {
    let mut regex = String::new();
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        let plain = match character {
            _ if Some(character) == escape => {
                characters.next().ok_or_else(|| wrong("the pattern ends with its escape", span))?
            }
            '%' => {
                regex.push_str(".*");
                continue;
            }
            '_' => {
                regex.push('.');
                continue;
            }
            _ => character,
        };
        if !plain.is_alphanumeric() && !plain.is_whitespace() && plain.is_ascii() {
            regex.push('\\');
        }
        regex.push(plain);
    }
    Ok(regex)
}
