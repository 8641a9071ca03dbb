//! Functions and operators that are Polars SQL's own: its expression parser translates one node at a time, over
//! operands that are planned here.

use std::ops::ControlFlow;

use floe_protocol::Failure;
use polars::prelude::*;
use sqlparser::ast::{
    Expr as Sql, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, Spanned, Value, VisitorMut,
};

use super::place::{rejected, unsupported};
use super::planner::Planner;
use super::scalar::Scope;
use super::value::{Typed, dtype_of};
use super::walk::walk_mut;

/// What is in errors of Polars SQL that show a syntax tree.
const SHOWING: [&str; 4] =
    ["is not currently supported", "is not supported", "Span(", "cannot parse literal"];

/// How much of an expression an error shows.
const MAX_SHOWN_CHARS: usize = 60;

/// Takes operands out and puts names in their places.
#[derive(Default)]
struct Operands {
    depth: u32,
    taken: Vec<(String, Sql)>,
}

impl Operands {
    /// A text with the operands as they are written.
    fn put_back(&self, text: String) -> String {
        self.taken
            .iter()
            .fold(text, |text, (name, operand)| text.replace(&format!("\"{name}\""), &operand.to_string()))
    }
}

impl VisitorMut for Operands {
    type Break = Failure;

    fn pre_visit_expr(&mut self, expr: &mut Sql) -> ControlFlow<Failure> {
        self.depth += 1;
        if self.depth == 2 && !literal(expr) {
            let name = format!("__operand_{}", self.taken.len());
            let operand = std::mem::replace(expr, Sql::Identifier(Ident::with_quote('"', name.clone())));
            self.taken.push((name, operand));
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, _: &mut Sql) -> ControlFlow<Failure> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

/// Operands whose value Polars SQL wants to see in the text: how many digits, which pattern.
fn literal(expr: &Sql) -> bool {
    match expr {
        Sql::Value(_) | Sql::TypedString(_) | Sql::Array(_) => true,
        Sql::UnaryOp { expr, .. } => {
            matches!(&**expr, Sql::Value(value) if matches!(value.value, Value::Number(..)))
        }
        _ => false,
    }
}

/// The node as Polars SQL translates it, over operands as `plan` plans them: an operand that is wrong too is of no
/// account where there is no such function.
pub(super) fn translate(
    expr: &Sql,
    mut plan: impl FnMut(&Sql) -> Result<Typed, Failure>,
) -> Result<Typed, Failure> {
    let span = expr.span();
    let mut node = expr.clone();
    let mut operands = Operands::default();
    let _ = walk_mut(&mut node, &mut operands);
    let translated =
        polars::sql::sql_expr(node.to_string()).map_err(|error| match rejected(error, span) {
            // Such a text shows a syntax tree.
            Failure::Query { message } if SHOWING.iter().any(|part| message.contains(part)) => {
                unsupported(&construct(expr), span)
            }
            Failure::Query { message } => Failure::Query { message: operands.put_back(message) },
            other => other,
        })?;
    let mut planned = Vec::new();
    for (name, operand) in operands.taken {
        planned.push((name, plan(&operand)?));
    }
    let columns: Vec<(&str, &DataType)> =
        planned.iter().map(|(name, operand)| (name.as_str(), &operand.dtype)).collect();
    let dtype = dtype_of(&translated, &columns, span)?;
    let label = planned.first().map_or("literal", |(_, operand)| &operand.name).to_owned();
    Ok(Typed::new(put_in(translated, &planned), dtype).named(&label))
}

/// An expression of a row.
pub(super) fn scalar(planner: &mut Planner<'_>, expr: &Sql, scope: &mut Scope<'_>) -> Result<Typed, Failure> {
    translate(expr, |operand| planner.scalar(operand, scope)?.settled(operand.span()))
}

/// What to call an expression that there is not.
fn construct(expr: &Sql) -> String {
    match expr {
        Sql::BinaryOp { op, .. } => format!("the operator {op}"),
        Sql::UnaryOp { op, .. } => format!("the operator {op}"),
        Sql::Collate { .. } => "COLLATE".to_owned(),
        _ => {
            let text = expr.to_string();
            match text.char_indices().nth(MAX_SHOWN_CHARS) {
                Some((end, _)) => format!("{}...", &text[..end]),
                None => text,
            }
        }
    }
}

/// Values in the places of their names.
pub(super) fn put_in(expr: Expr, named: &[(String, Typed)]) -> Expr {
    expr.map_expr(|node| match &node {
        Expr::Column(name) => match named.iter().find(|(own, _)| own == name.as_str()) {
            Some((_, value)) => value.expr.clone(),
            None => node,
        },
        _ => node,
    })
}

/// The arguments of a plain call.
pub(super) fn arguments(function: &Function) -> Option<Vec<&Sql>> {
    let FunctionArguments::List(list) = &function.args else {
        return None;
    };
    let argument =
        |argument: &FunctionArg| matches!(argument, FunctionArg::Unnamed(FunctionArgExpr::Expr(_)));
    if !list.args.iter().all(argument) || !list.clauses.is_empty() {
        return None;
    }
    let found = list.args.iter().filter_map(|argument| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
        _ => None,
    });
    Some(found.collect())
}
