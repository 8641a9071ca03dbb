//! Which expressions look at the numbers behind a categorical's strings.
//!
//! Every process numbers categories in the order in which it meets them. So strings mean the same in all tasks,
//! their codes do not: what reads codes runs in one task, and all that is built on it too. What makes categories
//! of codes is right only after codes were read in the same task: those of a driver or a file mean nothing here.

use polars::prelude::*;
use polars_plan::plans::expr_ir::ExprIR;
use polars_plan::plans::{AExpr, IRCategoricalFunction, IRFunctionExpr, ToFieldContext};
use polars_utils::arena::{Arena, Node};

/// What an expression has to do with codes, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Codes {
    /// Nothing.
    Unused,
    /// It makes codes of categories.
    Read,
    /// It makes categories of codes that it has not read itself.
    Taken,
    /// It hashes categories, which Polars does not do alike in all versions.
    Hashed,
}

/// The expression of a list that has the most to do with codes, over rows of this schema.
pub(crate) fn codes<'a>(
    list: &'a [ExprIR],
    rows: &Schema,
    exprs: &Arena<AExpr>,
) -> (Codes, Option<&'a ExprIR>) {
    let most = list.iter().map(|e| (codes_of(e.node(), rows, exprs), Some(e))).max_by_key(|found| found.0);
    most.unwrap_or((Codes::Unused, None))
}

fn codes_of(node: Node, rows: &Schema, exprs: &Arena<AExpr>) -> Codes {
    // Types are asked for only where something might read codes: that is rare.
    if !any(node, exprs, &|expr| matches!(expr, AExpr::Cast { .. }) || is_of_codes(expr)) {
        return Codes::Unused;
    }
    let context = ToFieldContext::new(exprs, rows);
    // What is inside of a list or a struct has no type of its own here.
    let categories = rows.iter_values().any(has_categories);
    let unknown = if categories { DataType::from_categories(Categories::global()) } else { DataType::Null };
    let dtype = |node: Node| exprs.get(node).to_dtype(&context).unwrap_or_else(|_| unknown.clone());
    let reads = |expr: &AExpr| match expr {
        AExpr::Cast { expr, dtype: to, .. } => between(&dtype(*expr), to, &reads_leaf),
        AExpr::Function { function: IRFunctionExpr::Hash(..), .. } => false,
        AExpr::Function { input, .. } if is_of_codes(expr) => {
            input.iter().any(|input| has_categories(&dtype(input.node())))
        }
        _ => false,
    };
    let takes = |expr: &AExpr| match expr {
        AExpr::Cast { expr: input, dtype: to, .. } => {
            between(&dtype(*input), to, &|from, to| reads_leaf(to, from)) && !any(*input, exprs, &reads)
        }
        AExpr::Function {
            input,
            function: IRFunctionExpr::Categorical(IRCategoricalFunction::To(to, _)),
            ..
        } => has_categories(to) && !input.iter().any(|input| any(input.node(), exprs, &reads)),
        _ => false,
    };
    let hashes = |expr: &AExpr| match expr {
        AExpr::Function { input, function: IRFunctionExpr::Hash(..), .. } => {
            input.iter().any(|input| has_categories(&dtype(input.node())))
        }
        _ => false,
    };
    if any(node, exprs, &hashes) {
        Codes::Hashed
    } else if any(node, exprs, &takes) {
        Codes::Taken
    } else if any(node, exprs, &reads) {
        Codes::Read
    } else {
        Codes::Unused
    }
}

/// Whether something is so of an expression or of anything in it.
pub(crate) fn any(node: Node, exprs: &Arena<AExpr>, is: &impl Fn(&AExpr) -> bool) -> bool {
    let mut pending = vec![node];
    while let Some(node) = pending.pop() {
        let expr = exprs.get(node);
        if is(expr) {
            return true;
        }
        expr.children_rev(&mut pending);
    }
    false
}

fn is_of_codes(expr: &AExpr) -> bool {
    use IRCategoricalFunction::{Physical, To};
    matches!(
        expr,
        AExpr::Function {
            function: IRFunctionExpr::ToPhysical
                | IRFunctionExpr::Categorical(Physical | To(..))
                | IRFunctionExpr::Hash(..),
            ..
        }
    )
}

/// Whether a cast makes numbers of categories. Strings, and the categories of an enum, are the same everywhere.
fn reads_leaf(from: &DataType, to: &DataType) -> bool {
    matches!(from, DataType::Categorical(..)) && to.is_numeric()
}

/// Whether something is so of any two types that a cast has to do with, inside of lists and structs.
pub(crate) fn between(from: &DataType, to: &DataType, is: &impl Fn(&DataType, &DataType) -> bool) -> bool {
    use DataType::*;
    match (from, to) {
        (List(from) | Array(from, _), List(to) | Array(to, _)) => between(from, to, is),
        (Struct(from), Struct(to)) => {
            from.iter().zip(to).any(|(from, to)| between(from.dtype(), to.dtype(), is))
        }
        (Extension(_, from), to) => between(from, to, is),
        (from, List(to) | Array(to, _) | Extension(_, to)) => between(from, to, is),
        (from, to) => is(from, to),
    }
}

/// Whether a type has categories in it that a process numbers as it meets them.
fn has_categories(dtype: &DataType) -> bool {
    within(dtype, &|dtype| matches!(dtype, DataType::Categorical(..)))
}

/// Whether something is so of a type, or of one inside of it.
pub(crate) fn within(dtype: &DataType, is: &impl Fn(&DataType) -> bool) -> bool {
    match dtype {
        DataType::List(inner) | DataType::Array(inner, _) | DataType::Extension(_, inner) => {
            within(inner, is)
        }
        DataType::Struct(fields) => fields.iter().any(|field| within(field.dtype(), is)),
        dtype => is(dtype),
    }
}
