//! What later versions of Polars compute otherwise, where only the types in a plan tell it.

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
        let schema = rows(operator, &inputs, &ir.lp_arena);
        for expr in operator.exprs() {
            if let Some(what) = changed(expr.node(), &schema, &ir.expr_arena) {
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

/// What is in an expression that came out otherwise with py-polars 2.0.
fn changed(node: Node, schema: &Schema, exprs: &Arena<AExpr>) -> Option<&'static str> {
    let context = ToFieldContext::new(exprs, schema);
    let dtype = |node: Node| exprs.get(node).to_dtype(&context).unwrap_or(DataType::Null);
    // Both are compared as floats here, which large numbers do not fit.
    let as_float = |node: Node| match exprs.get(node) {
        AExpr::Cast { expr, dtype: DataType::Float64, .. } => Some(dtype(*expr)),
        _ => None,
    };
    let kinds: [(&str, &dyn Fn(&AExpr) -> bool); 5] = [
        ("a remainder or whole quotient of decimals", &|expr| match expr {
            AExpr::BinaryExpr { left, op: Operator::Modulus | Operator::FloorDivide, right } => {
                dtype(*left).is_decimal() || dtype(*right).is_decimal()
            }
            _ => false,
        }),
        ("a cast of decimals to whole numbers", &|expr| match expr {
            AExpr::Cast { expr, dtype: to, .. } => to.is_integer() && dtype(*expr).is_decimal(),
            _ => false,
        }),
        ("a comparison of Int64 with UInt64", &|expr| match expr {
            AExpr::BinaryExpr { left, op, right } if op.is_comparison() => matches!(
                (as_float(*left), as_float(*right)),
                (Some(DataType::Int64), Some(DataType::UInt64))
                    | (Some(DataType::UInt64), Some(DataType::Int64))
            ),
            _ => false,
        }),
        ("max_horizontal or min_horizontal of floats", &|expr| match expr {
            AExpr::Function {
                input,
                function: IRFunctionExpr::MaxHorizontal | IRFunctionExpr::MinHorizontal,
                ..
            } => input.iter().any(|input| dtype(input.node()).is_float()),
            _ => false,
        }),
        ("arg_max or arg_min of Booleans", &|expr| match expr {
            AExpr::Function { input, function: IRFunctionExpr::ArgMax | IRFunctionExpr::ArgMin, .. } => {
                input.iter().any(|input| dtype(input.node()).is_bool())
            }
            _ => false,
        }),
    ];
    kinds.iter().find(|(_, is)| any(node, exprs, is)).map(|(what, _)| *what)
}
