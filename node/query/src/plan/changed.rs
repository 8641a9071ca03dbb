//! What later versions of Polars compute otherwise, where only the types in a plan tell it.

use std::cell::Cell;
use std::collections::BTreeSet;

use floe_protocol::Failure;
use polars::prelude::*;
use polars_plan::dsl::Operator;
use polars_plan::plans::{AExpr, IR, IRFunctionExpr, IRPlan, ToFieldContext};
use polars_utils::arena::{Arena, Node};

use super::translate;
use crate::codes::any;

/// Refuses a plan of py-polars 2 with something in it whose values would be others here.
pub(super) fn check(ir: &IRPlan) -> Result<(), Failure> {
    let mut pending = vec![ir.lp_top];
    let mut seen = BTreeSet::new();
    while let Some(node) = pending.pop() {
        if !seen.insert(node) {
            continue;
        }
        let operator = ir.lp_arena.get(node);
        let inputs = operator.get_inputs();
        let mut exprs = operator.exprs().peekable();
        // The schema is a copy, which most operators of a long plan do not need.
        if exprs.peek().is_some() {
            let schema = rows(operator, &inputs, &ir.lp_arena);
            if let Some(what) = exprs.find_map(|expr| changed(expr.node(), &schema, &ir.expr_arena)) {
                return Err(translate::changed(what));
            }
        }
        pending.extend(inputs);
    }
    Ok(())
}

/// The columns that an operator's expressions see: of both sides of a join, which calls them apart.
fn rows(operator: &IR, inputs: &[Node], plans: &Arena<IR>) -> Schema {
    let mut schema = Schema::default();
    if inputs.is_empty() {
        schema.merge(operator.schema(plans).as_ref().as_ref().clone());
    }
    for input in inputs.iter().rev() {
        schema.merge(plans.get(*input).schema(plans).as_ref().as_ref().clone());
    }
    schema
}

/// Beyond it not every whole number is a float.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// What is in an expression that came out otherwise with py-polars 2.0.
fn changed(node: Node, schema: &Schema, exprs: &Arena<AExpr>) -> Option<&'static str> {
    use IRFunctionExpr::{ArgMax, ArgMin, MaxHorizontal, MinHorizontal};
    use Operator::{FloorDivide, Modulus};
    let context = ToFieldContext::new(exprs, schema);
    let dtype = |node: Node| exprs.get(node).to_dtype(&context).unwrap_or(DataType::Null);
    // Both are compared as floats here, which large numbers do not fit.
    let before = |node: Node| match exprs.get(node) {
        AExpr::Cast { expr, dtype: DataType::Float64, .. } => dtype(*expr),
        _ => DataType::Null,
    };
    let inexact = |node: Node| match exprs.get(node) {
        AExpr::Literal(LiteralValue::Scalar(scalar)) => {
            scalar.value().extract::<f64>().is_some_and(|value| value.abs() >= MAX_EXACT)
        }
        _ => false,
    };
    let large = |a: Node, b: Node| match before(a) {
        DataType::Int64 => before(b) == DataType::UInt64 || inexact(b),
        DataType::UInt64 => inexact(b),
        _ => false,
    };
    let kind = |expr: &AExpr| match expr {
        AExpr::Cast { expr, dtype: to, .. } if to.is_integer() && dtype(*expr).is_decimal() => {
            Some("a cast of decimals to whole numbers")
        }
        AExpr::BinaryExpr { left, op: Modulus | FloorDivide, right }
            if dtype(*left).is_decimal() || dtype(*right).is_decimal() =>
        {
            Some("a remainder or whole quotient of decimals")
        }
        AExpr::BinaryExpr { left, op, right }
            if op.is_comparison() && (large(*left, *right) || large(*right, *left)) =>
        {
            Some("a comparison of large Int64 and UInt64")
        }
        AExpr::Function { input, function: MaxHorizontal | MinHorizontal, .. }
            if input.iter().any(|input| dtype(input.node()).is_float()) =>
        {
            Some("max_horizontal or min_horizontal of floats")
        }
        AExpr::Function { input, function: ArgMax | ArgMin, .. }
            if input.iter().any(|input| dtype(input.node()).is_bool()) =>
        {
            Some("arg_max or arg_min of Booleans")
        }
        _ => None,
    };
    let found = Cell::new(None);
    any(node, exprs, &|expr| {
        found.set(kind(expr));
        found.get().is_some()
    });
    found.get()
}
