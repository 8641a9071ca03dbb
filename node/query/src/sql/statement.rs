//! Text to one query.
//!
//! A text may make views before its query and drop them after it, as TPC-H's Q15 does: they become common table
//! expressions of the query.

use std::ops::ControlFlow;

use floe_protocol::Failure;
use sqlparser::ast::{
    BinaryOperator, Cte, Expr, ObjectType, Query, Spanned, Statement, TableAlias, TableAliasColumnDef,
    UnaryOperator, Value, VisitorMut, With,
};
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::{Parser, ParserError, ParserOptions};

use super::conjuncts::Balance;
use super::place::{unsupported, wrong};
use super::walk::walk_mut;
use crate::depth::{self, MAX_SQL_BRACKETS};
use crate::stack::on_deep_stack;

/// The query of a text.
pub(super) fn query(text: &str) -> Result<Query, Failure> {
    depth::check_sql(text)?;
    on_deep_stack(|| {
        let mut query = parse(text)?;
        let _ = walk_mut(&mut query, &mut Distinct);
        let _ = walk_mut(&mut query, &mut Balance);
        Ok(query)
    })
}

/// Puts `a IS DISTINCT FROM b AND c` right, which the parser takes for `a IS DISTINCT FROM (b AND c)`.
///
/// Innermost first: what was swallowed is put around the comparison, and then around what the comparison is part of, as
/// far as that binds closer. Brackets have a node of their own, so what is without one was written without them.
struct Distinct;

impl VisitorMut for Distinct {
    type Break = Failure;

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Failure> {
        let (last, binds) = match expr {
            Expr::IsDistinctFrom(_, right) | Expr::IsNotDistinctFrom(_, right) => (right, u8::MAX),
            Expr::UnaryOp { op: UnaryOperator::Not, expr } => (expr, u8::MAX),
            Expr::BinaryOp { op, right, .. } => match binding(op) {
                Some(binds) => (right, binds),
                None => return ControlFlow::Continue(()),
            },
            _ => return ControlFlow::Continue(()),
        };
        if !is_looser(last, binds) {
            return ControlFlow::Continue(());
        }
        let mut around = std::mem::replace(&mut **last, null());
        std::mem::swap(first_of(&mut around, binds), last);
        let inner = std::mem::replace(expr, null());
        *first_of(&mut around, binds) = inner;
        *expr = around;
        ControlFlow::Continue(())
    }
}

/// How closely an operator of conditions binds.
fn binding(op: &BinaryOperator) -> Option<u8> {
    match op {
        BinaryOperator::Or => Some(0),
        BinaryOperator::Xor => Some(1),
        BinaryOperator::And => Some(2),
        _ => None,
    }
}

/// Whether an expression is of conditions whose operator binds no closer.
fn is_looser(expr: &Expr, than: u8) -> bool {
    matches!(expr, Expr::BinaryOp { op, .. } if binding(op).is_some_and(|binds| binds <= than))
}

/// The first operand of such conditions.
fn first_of(mut expr: &mut Expr, binds: u8) -> &mut Expr {
    while is_looser(expr, binds) {
        let Expr::BinaryOp { left, .. } = expr else { break };
        expr = left;
    }
    expr
}

fn null() -> Expr {
    Expr::Value(Value::Null.into())
}

fn parse(text: &str) -> Result<Query, Failure> {
    let options = ParserOptions { trailing_commas: true, ..Default::default() };
    let statements = Parser::new(&GenericDialect)
        .with_options(options)
        .with_recursion_limit(MAX_SQL_BRACKETS)
        .try_with_sql(text)
        .and_then(|mut parser| parser.parse_statements())
        .map_err(|error| match error {
            ParserError::RecursionLimitExceeded => Failure::Refused {
                message: format!(
                    "a text whose parts are within each other more than {MAX_SQL_BRACKETS} deep is not supported in SQL"
                ),
            },
            error => Failure::Query { message: error.to_string() },
        })?;
    let mut views: Vec<Cte> = Vec::new();
    let mut found: Option<Query> = None;
    let mut queries = 0;
    for statement in statements {
        match statement {
            Statement::Query(query) => {
                queries += 1;
                found = Some(*query);
            }
            Statement::CreateView(view) if found.is_none() => {
                if view.materialized {
                    return Err(unsupported("a materialized view", view.name.span()));
                }
                let name = super::from::ident(&view.name, view.name.span())?;
                let column = |column: &sqlparser::ast::ViewColumnDef| TableAliasColumnDef {
                    name: column.name.clone(),
                    data_type: None,
                };
                views.push(Cte {
                    alias: TableAlias {
                        explicit: true,
                        name,
                        columns: view.columns.iter().map(column).collect(),
                        at: None,
                    },
                    query: view.query,
                    from: None,
                    materialized: None,
                    closing_paren_token: sqlparser::ast::helpers::attached_token::AttachedToken::empty(),
                });
            }
            Statement::Drop { object_type: ObjectType::View, .. } if found.is_some() => {}
            other => {
                let text = other.to_string();
                let words: Vec<&str> = text.split_whitespace().take(1).collect();
                let message = format!(
                    "{} is not a query: only SELECT (with WITH, UNION, VALUES ...) runs on a mesh",
                    words.join(" ").to_uppercase()
                );
                return Err(Failure::Refused { message });
            }
        }
    }
    let mut query = match (found, queries) {
        (Some(query), 1) => query,
        (Some(_), _) => {
            let message = format!("one query at a time: this text has {queries}");
            return Err(Failure::Refused { message });
        }
        (None, _) => {
            let span = views.first().map(|view| view.alias.name.span);
            return Err(wrong(
                "a text without a query: it has to hold a SELECT",
                span.unwrap_or_else(sqlparser::tokenizer::Span::empty),
            ));
        }
    };
    if !views.is_empty() {
        match &mut query.with {
            Some(with) => {
                views.append(&mut with.cte_tables);
                with.cte_tables = views;
            }
            None => {
                query.with = Some(With {
                    with_token: sqlparser::ast::helpers::attached_token::AttachedToken::empty(),
                    recursive: false,
                    cte_tables: views,
                });
            }
        }
    }
    Ok(query)
}
