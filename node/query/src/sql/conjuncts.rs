//! Conditions taken apart: what a `WHERE` or `ON` demands, one condition at a time.

use std::ops::ControlFlow;

use floe_protocol::Failure;
use polars::prelude::*;
use sqlparser::ast::{BinaryOperator, Expr as Sql, Query, Value, Visitor, VisitorMut};

use super::walk::walk;

/// The operands of a chain of one operator, however long and in whatever parentheses.
pub(super) fn operands(expr: &Sql, op: &BinaryOperator) -> Vec<Sql> {
    let mut found = Vec::new();
    let mut pending = vec![expr];
    while let Some(expr) = pending.pop() {
        match expr {
            Sql::Nested(inner) => pending.push(inner),
            Sql::BinaryOp { left, op: own, right } if own == op => {
                pending.push(right);
                pending.push(left);
            }
            other => found.push(other.clone()),
        }
    }
    found
}

/// Conditions that all must hold. What all alternatives of an `OR` demand is a condition by itself, so that
/// `(a = b AND x) OR (a = b AND y)` joins by `a = b`.
pub(super) fn conjuncts(expr: &Sql) -> Vec<Sql> {
    operands(expr, &BinaryOperator::And).into_iter().flat_map(factor).collect()
}

fn factor(expr: Sql) -> Vec<Sql> {
    let alternatives = operands(&expr, &BinaryOperator::Or);
    let [first, rest @ ..] = alternatives.as_slice() else {
        return vec![expr];
    };
    if rest.is_empty() {
        return vec![expr];
    }
    let first = operands(first, &BinaryOperator::And);
    let rest: Vec<Vec<Sql>> = rest.iter().map(|other| operands(other, &BinaryOperator::And)).collect();
    let in_all = |condition: &Sql| rest.iter().all(|other| other.contains(condition));
    let mut shared: Vec<Sql> = Vec::new();
    for condition in &first {
        if in_all(condition) && !shared.contains(condition) {
            shared.push(condition.clone());
        }
    }
    if shared.is_empty() {
        return vec![expr];
    }
    let mut remaining = Vec::new();
    for alternative in std::iter::once(first).chain(rest) {
        let own: Vec<Sql> = alternative.into_iter().filter(|condition| !shared.contains(condition)).collect();
        if own.is_empty() {
            // `a OR (a AND b)` is `a`.
            return shared;
        }
        remaining.push(join(own, &BinaryOperator::And));
    }
    shared.push(join(remaining, &BinaryOperator::Or));
    shared
}

/// A chain as a balanced tree: its depth is the logarithm of its length.
fn join(mut operands: Vec<Sql>, op: &BinaryOperator) -> Sql {
    while operands.len() > 1 {
        let mut halved = Vec::with_capacity(operands.len().div_ceil(2));
        let mut pairs = operands.into_iter();
        while let Some(left) = pairs.next() {
            halved.push(match pairs.next() {
                Some(right) => Sql::BinaryOp { left: Box::new(left), op: op.clone(), right: Box::new(right) },
                None => left,
            });
        }
        operands = halved;
    }
    operands.pop().unwrap_or(Sql::Value(Value::Boolean(true).into()))
}

/// The same for expressions of Polars, which must not be empty.
pub(super) fn balanced(mut operands: Vec<Expr>, join: impl Fn(Expr, Expr) -> Expr) -> Option<Expr> {
    while operands.len() > 1 {
        let mut halved = Vec::with_capacity(operands.len().div_ceil(2));
        let mut pairs = operands.into_iter();
        while let Some(left) = pairs.next() {
            halved.push(match pairs.next() {
                Some(right) => join(left, right),
                None => left,
            });
        }
        operands = halved;
    }
    operands.pop()
}

/// Whether a query stands in an expression.
pub(super) fn has_subquery(expr: &Sql) -> bool {
    struct Any;
    impl Visitor for Any {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            ControlFlow::Break(())
        }
    }
    walk(expr, &mut Any).is_break()
}

/// Makes every chain of `AND` or `OR` a balanced tree and takes the parentheses away, which the tree tells by itself: a
/// text of thousands of conditions is then walked, copied and dropped in few steps down.
pub(super) struct Balance;

impl VisitorMut for Balance {
    type Break = Failure;

    fn pre_visit_expr(&mut self, expr: &mut Sql) -> ControlFlow<Failure> {
        let take = |expr: &mut Sql| std::mem::replace(expr, Sql::Value(Value::Null.into()));
        while let Sql::Nested(inner) = expr {
            *expr = take(inner);
        }
        if let Sql::BinaryOp { op, .. } = expr
            && matches!(op, BinaryOperator::And | BinaryOperator::Or)
        {
            let op = op.clone();
            let (mut found, mut pending) = (Vec::new(), vec![take(expr)]);
            while let Some(expr) = pending.pop() {
                match expr {
                    Sql::Nested(inner) => pending.push(*inner),
                    Sql::BinaryOp { left, op: own, right } if own == op => {
                        pending.push(*right);
                        pending.push(*left);
                    }
                    other => found.push(other),
                }
            }
            *expr = join(found, &op);
        }
        ControlFlow::Continue(())
    }
}

/// How many of a relation's rows a condition keeps, by its form: a guess, to order joins by.
pub(super) fn selectivity(predicate: &Expr, size: &super::relation::Size, depth: u32) -> f64 {
    let Expr::BinaryExpr { left, op, right } = predicate else {
        return match predicate {
            Expr::Function { input, .. } if input.len() <= 2 => 0.3,
            _ => 0.25,
        };
    };
    if depth == 0 {
        return 0.25;
    }
    let inner = |expr: &Expr| selectivity(expr, size, depth - 1);
    match op {
        Operator::Eq => match (&**left, &**right) {
            (Expr::Column(id), _) | (_, Expr::Column(id)) if size.distinct.contains_key(id) => {
                1.0 / size.distinct[id].max(1.0)
            }
            _ => 0.05,
        },
        Operator::NotEq => 0.9,
        Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq => 0.4,
        Operator::And | Operator::LogicalAnd => inner(left) * inner(right),
        Operator::Or | Operator::LogicalOr => (inner(left) + inner(right)).min(1.0),
        _ => 0.25,
    }
}
