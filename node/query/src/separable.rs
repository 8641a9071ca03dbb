//! Which expressions look at one row at a time, so that splitting the rows among tasks cannot change them.

use polars::prelude::*;
use polars_plan::plans::expr_ir::ExprIR;
use polars_plan::plans::{
    AExpr, ArenaExprIter as _, IRBooleanFunction, IRFunctionExpr, IRStringFunction, is_elementwise,
    is_row_separable, is_scalar_ae,
};
use polars_utils::arena::{Arena, Node};
use polars_utils::idx_vec::UnitVec;

/// Whether each row of the result depends on that row of the input alone.
///
/// Polars' own flags say more than that for a few functions: they serve predicate pushdown, where it is enough
/// that a function keeps the rows apart. Those are told apart here.
pub(crate) fn elementwise(node: Node, exprs: &Arena<AExpr>) -> bool {
    every(node, exprs, |stack, expr| is_elementwise(stack, expr, exprs))
}

/// Whether the result for some rows, then for others, is the result for all of them.
pub(crate) fn row_separable(node: Node, exprs: &Arena<AExpr>) -> bool {
    every(node, exprs, |stack, expr| is_row_separable(stack, expr, exprs))
}

fn every(node: Node, exprs: &Arena<AExpr>, property: impl Fn(&mut UnitVec<Node>, &AExpr) -> bool) -> bool {
    let mut pending = vec![node];
    while let Some(node) = pending.pop() {
        let expr = exprs.get(node);
        match expr {
            AExpr::Function { input, function, .. } if compares_with_a_column(function) => {
                let Some((first, others)) = input.split_first() else {
                    return false;
                };
                if !others.iter().all(|other| constant(other.node(), exprs)) {
                    return false;
                }
                pending.push(first.node());
            }
            AExpr::Function { function, .. } if looks_at_other_rows(function) => return false,
            _ => {
                let mut inputs = UnitVec::default();
                if !property(&mut inputs, expr) {
                    return false;
                }
                pending.extend(inputs.iter().copied());
            }
        }
    }
    true
}

/// Functions whose later arguments are columns of any length, looked up whole for each row.
fn compares_with_a_column(function: &IRFunctionExpr) -> bool {
    matches!(
        function,
        IRFunctionExpr::Boolean(IRBooleanFunction::IsIn { .. })
            | IRFunctionExpr::Replace
            | IRFunctionExpr::ReplaceStrict { .. }
    )
}

/// Functions marked elementwise that take something from the column as a whole.
fn looks_at_other_rows(function: &IRFunctionExpr) -> bool {
    match function {
        // Without a format, the first value that parses decides how all are read.
        IRFunctionExpr::StringExpr(IRStringFunction::Strptime(_, options)) => options.format.is_none(),
        _ => false,
    }
}

/// Whether an expression reads no column at all.
fn constant(node: Node, exprs: &Arena<AExpr>) -> bool {
    exprs.iter(node).all(|(_, expr)| {
        let reads = matches!(expr, AExpr::Column(_) | AExpr::Len | AExpr::Element);
        let opaque = matches!(expr, AExpr::AnonymousFunction { .. } | AExpr::AnonymousAgg { .. });
        !reads && !opaque
    })
}

/// Whether rows may be split among tasks for a `select`. One row comes out of a select of constants, however
/// many go in, so at least one expression must be as long as its input.
pub(crate) fn select_is_separable(select: &[ExprIR], exprs: &Arena<AExpr>) -> bool {
    let as_long_as_input = |e: &ExprIR| !is_scalar_ae(e.node(), exprs);
    if let [only] = select {
        return as_long_as_input(only) && row_separable(only.node(), exprs);
    }
    select.iter().all(|e| elementwise(e.node(), exprs)) && select.iter().any(as_long_as_input)
}

/// The first expression that is not elementwise, in words.
pub(crate) fn culprit(select: &[ExprIR], exprs: &Arena<AExpr>) -> String {
    let Some(expr) = select.iter().find(|e| !elementwise(e.node(), exprs)) else {
        return "a constant".to_owned();
    };
    let windows = exprs.iter(expr.node()).any(|(_, expr)| matches!(expr, AExpr::Over { .. }));
    let text = crate::explain::expression(expr, exprs);
    if windows {
        format!("window expression `{text}` spans rows")
    } else {
        format!("`{text}` looks at more than one row at a time")
    }
}

/// Whether a column of this type can be a key of an exchange: the same value must have the same bytes on
/// every machine, and the codes of a categorical within a nested value do not.
pub(crate) fn can_be_key(dtype: &DataType) -> bool {
    fn plain(dtype: &DataType) -> bool {
        match dtype {
            DataType::Categorical(..) | DataType::Unknown(_) => false,
            DataType::List(inner) | DataType::Array(inner, _) => plain(inner),
            DataType::Struct(fields) => fields.iter().all(|field| plain(field.dtype())),
            _ => true,
        }
    }
    matches!(dtype, DataType::Categorical(..)) || plain(dtype)
}
