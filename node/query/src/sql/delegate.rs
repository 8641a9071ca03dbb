//! Functions and operators that are Polars SQL's own: its expression parser translates one node at a time, over
//! operands that are planned here.

use std::ops::ControlFlow;

use floe_protocol::Failure;
use polars::prelude::*;
use sqlparser::ast::{
    Expr as Sql, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, Spanned, Value, VisitMut,
    VisitorMut,
};

use super::place::rejected;
use super::planner::Planner;
use super::scalar::Scope;
use super::value::{Typed, dtype_of};

/// Plans operands and puts names in their places.
struct Operands<F> {
    plan: F,
    depth: u32,
    planned: Vec<(String, Typed)>,
}

impl<F: FnMut(&Sql, usize) -> Result<(String, Typed), Failure>> VisitorMut for Operands<F> {
    type Break = Failure;

    fn pre_visit_expr(&mut self, expr: &mut Sql) -> ControlFlow<Failure> {
        self.depth += 1;
        if self.depth != 2 || literal(expr) {
            return ControlFlow::Continue(());
        }
        match (self.plan)(expr, self.planned.len()) {
            Ok((name, typed)) => {
                *expr = Sql::Identifier(Ident::with_quote('"', name.clone()));
                self.planned.push((name, typed));
                ControlFlow::Continue(())
            }
            Err(failure) => ControlFlow::Break(failure),
        }
    }

    fn post_visit_expr(&mut self, _: &mut Sql) -> ControlFlow<Failure> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

/// Operands whose value Polars SQL wants to see in the text: how many digits, which pattern.
fn literal(expr: &Sql) -> bool {
    match expr {
        Sql::Value(_) | Sql::TypedString(_) | Sql::Interval(_) | Sql::Array(_) => true,
        Sql::UnaryOp { expr, .. } => {
            matches!(&**expr, Sql::Value(value) if matches!(value.value, Value::Number(..)))
        }
        _ => false,
    }
}

/// The node as Polars SQL translates it, and its operands by the names they have in it. `plan` gives an operand
/// and its name.
pub(super) fn translate(
    expr: &Sql,
    plan: impl FnMut(&Sql, usize) -> Result<(String, Typed), Failure>,
) -> Result<(Expr, Vec<(String, Typed)>), Failure> {
    let span = expr.span();
    let mut node = expr.clone();
    let mut operands = Operands { plan, depth: 0, planned: Vec::new() };
    if let ControlFlow::Break(failure) = VisitMut::visit(&mut node, &mut operands) {
        return Err(failure);
    }
    let translated = polars::sql::sql_expr(node.to_string()).map_err(|error| rejected(error, span))?;
    Ok((translated, operands.planned))
}

/// An expression of a row.
pub(super) fn scalar(planner: &mut Planner<'_>, expr: &Sql, scope: &mut Scope<'_>) -> Result<Typed, Failure> {
    let (translated, operands) = translate(expr, |operand, index| {
        Ok((format!("__operand_{index}"), planner.scalar(operand, scope)?.settled(operand.span())?))
    })?;
    let columns: Vec<(&str, &DataType)> =
        operands.iter().map(|(name, operand)| (name.as_str(), &operand.dtype)).collect();
    let dtype = dtype_of(&translated, &columns, expr.span())?;
    let name = operands.first().map_or("literal", |(_, operand)| &operand.name);
    Ok(Typed::new(put_in(translated, &operands), dtype).named(name))
}

/// The operands in the places of their names.
pub(super) fn put_in(expr: Expr, operands: &[(String, Typed)]) -> Expr {
    expr.map_expr(|node| match &node {
        Expr::Column(name) => match operands.iter().find(|(own, _)| own == name.as_str()) {
            Some((_, operand)) => operand.expr.clone(),
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
