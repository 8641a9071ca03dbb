//! What later versions of Polars compute otherwise, where only the types in a plan tell it.

use std::cell::Cell;
use std::collections::BTreeSet;

use floe_protocol::Failure;
use polars::prelude::*;
use polars_plan::constants::CSE_REPLACED;
use polars_plan::dsl::Operator;
use polars_plan::plans::expr_ir::ExprIR;
use polars_plan::plans::{AExpr, IR, IRBooleanFunction, IRFunctionExpr, IRPlan, ToFieldContext};
use polars_utils::arena::{Arena, Node};

use super::translate;
use crate::codes::{any, between, within};

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
        let look = |exprs: &[&ExprIR], schema: &Schema| {
            let found = exprs.iter().find_map(|expr| changed(expr.node(), schema, &ir.expr_arena));
            found.map_or(Ok(()), |what| Err(translate::changed(what)))
        };
        let schema = |input: &Node| ir.lp_arena.get(*input).schema(&ir.lp_arena).into_owned();
        let mut keys = 0;
        if let IR::Join { input_left, input_right, left_on, right_on, .. } = operator {
            look(&left_on.iter().collect::<Vec<_>>(), &schema(input_left))?;
            look(&right_on.iter().collect::<Vec<_>>(), &schema(input_right))?;
            keys = left_on.len() + right_on.len();
        }
        let exprs: Vec<&ExprIR> = operator.exprs().skip(keys).collect();
        // The schema is a copy, which most operators of a long plan do not need.
        if !exprs.is_empty() {
            let mut rows = Schema::default();
            if inputs.is_empty() {
                rows.merge((*operator.schema(&ir.lp_arena).into_owned()).clone());
            }
            // Conditions of a join name columns of both sides, which has names for them that differ.
            for input in inputs.iter().rev() {
                rows.merge((*schema(input)).clone());
            }
            look(&exprs, &rows)?;
        }
        pending.extend(inputs);
    }
    Ok(())
}

/// Beyond it not every whole number is a float.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// What is in an expression that came out otherwise with py-polars 2.0.
fn changed(node: Node, schema: &Schema, exprs: &Arena<AExpr>) -> Option<&'static str> {
    use IRFunctionExpr::{ArgMax, ArgMin, Boolean, MaxHorizontal, MinHorizontal};
    use Operator::{FloorDivide, Modulus};
    let context = ToFieldContext::new(exprs, schema);
    let dtype = |node: Node| exprs.get(node).to_dtype(&context).unwrap_or(DataType::Null);
    // What is inside of a list or a struct has no type of its own here: it may be any that is in the rows.
    let may_be = |node: Node, is: fn(&DataType) -> bool| match exprs.get(node).to_dtype(&context) {
        Ok(dtype) => is(&dtype),
        Err(_) => schema.iter_values().any(|dtype| within(dtype, &is)),
    };
    let casts = |node: Node, to: &DataType| match exprs.get(node).to_dtype(&context) {
        Ok(from) => between(&from, to, &|from, to| from.is_decimal() && to.is_integer()),
        Err(_) => may_be(node, DataType::is_decimal) && within(to, &DataType::is_integer),
    };
    // Both are compared as floats here, which large numbers do not fit.
    let before = |node: Node| match exprs.get(node) {
        AExpr::Cast { expr, dtype: DataType::Float64, .. } => dtype(*expr),
        _ => dtype(node),
    };
    let is_float = |node: Node| dtype(node) == DataType::Float64;
    // What occurs more than once has become a column, whose type is that after the cast.
    let both = || {
        [DataType::Int64, DataType::UInt64].iter().all(|dtype| schema.iter_values().any(|own| own == dtype))
    };
    let hidden = |node: Node| {
        matches!(exprs.get(node), AExpr::Column(name) if name.starts_with(CSE_REPLACED))
            && is_float(node)
            && both()
    };
    let inexact = |node: Node| match exprs.get(node) {
        AExpr::Literal(LiteralValue::Scalar(scalar)) => {
            scalar.value().extract::<f64>().is_some_and(|value| value.abs() >= MAX_EXACT)
        }
        _ => false,
    };
    let large = |a: Node, b: Node| match before(a) {
        DataType::Int64 => before(b) == DataType::UInt64 || is_float(a) && inexact(b),
        DataType::UInt64 => is_float(a) && inexact(b),
        _ => hidden(a) && (hidden(b) || matches!(before(b), DataType::Int64 | DataType::UInt64)),
    };
    let kind = |expr: &AExpr| match expr {
        AExpr::Cast { expr, dtype: to, .. } if casts(*expr, to) => {
            Some("a cast of decimals to whole numbers")
        }
        AExpr::BinaryExpr { left, op: Modulus | FloorDivide, right }
            if may_be(*left, DataType::is_decimal) || may_be(*right, DataType::is_decimal) =>
        {
            Some("a remainder or whole quotient of decimals")
        }
        AExpr::BinaryExpr { left, op, right }
            if op.is_comparison() && (large(*left, *right) || large(*right, *left)) =>
        {
            Some("a comparison of large Int64 and UInt64")
        }
        AExpr::Function { input, function: Boolean(IRBooleanFunction::IsBetween { .. }), .. }
            if input.split_first().is_some_and(|(value, ends)| {
                let value = value.node();
                ends.iter().any(|end| large(value, end.node()) || large(end.node(), value))
            }) =>
        {
            Some("a comparison of large Int64 and UInt64")
        }
        AExpr::Function { input, function: MaxHorizontal | MinHorizontal, .. }
            if input.iter().any(|input| may_be(input.node(), DataType::is_float)) =>
        {
            Some("max_horizontal or min_horizontal of floats")
        }
        AExpr::Function { input, function: ArgMax | ArgMin, .. }
            if input.iter().any(|input| may_be(input.node(), DataType::is_bool)) =>
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
