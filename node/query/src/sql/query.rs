//! Whole queries: `WITH`, set operations, `VALUES`, and what comes after them.

use floe_protocol::Failure;
use polars::prelude::*;
use sqlparser::ast::{
    Expr as Sql, Ident, LimitClause, OrderBy, OrderByKind, Query, SetExpr, SetOperator, SetQuantifier,
    Spanned, Value, Values, With,
};
use sqlparser::tokenizer::Span;

use super::place::{rejected, unsupported, wrong};
use super::planner::{MAX_NESTING, Planner};
use super::relation::{Column, Relation, Size};
use super::scalar::{Outer, Scope};
use super::select::{Block, common_types, limited, position, sorted};
use super::value::{Typed, unify};
use super::walk::walk;
use super::windows::windowed;

/// Which rows of a result are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limit {
    pub(super) offset: u64,
    pub(super) rows: Option<u64>,
}

impl Planner<'_> {
    /// Plans a query, as a subquery if there is one around it. With `exists`, only whether it has rows is wanted.
    pub(super) fn query(
        &mut self,
        query: &Query,
        outer: Option<&Outer>,
        exists: bool,
    ) -> Result<Block, Failure> {
        let span = query.span();
        // What has no rows around is planned once.
        let within = usize::from(outer.is_some());
        if self.nesting + within > MAX_NESTING {
            return Err(unsupported(&format!("a query within more than {MAX_NESTING} others"), span));
        }
        refuse_clauses(query, span)?;
        let known = self.ctes.len();
        self.nesting += within;
        let planned = self.with_tables(query.with.as_ref()).and_then(|()| {
            let limit = limit(query)?;
            // Whether there is a row does not depend on how many are wanted, if any is.
            let limit =
                if exists && limit.rows != Some(0) && limit.offset == 0 { Limit::default() } else { limit };
            let order_by = query.order_by.as_ref().filter(|_| !exists || limit.offset > 0);
            self.body(&query.body, order_by, limit, outer, exists)
        });
        self.nesting -= within;
        self.ctes.truncate(known);
        planned
    }

    /// Common table expressions: planned once, put in wherever they are named.
    fn with_tables(&mut self, with: Option<&With>) -> Result<(), Failure> {
        let Some(with) = with else {
            return Ok(());
        };
        for cte in &with.cte_tables {
            if with.recursive && mentions(&cte.query, &cte.alias.name) {
                return Err(unsupported("WITH RECURSIVE", cte.alias.name.span));
            }
            let block = self.query(&cte.query, None, false)?;
            let names: Vec<Ident> = cte.alias.columns.iter().map(|column| column.name.clone()).collect();
            let relation = self.labelled(block.relation, None, &names, false, cte.alias.name.span)?;
            self.ctes.push((cte.alias.name.value.clone(), relation));
        }
        Ok(())
    }

    #[recursive::recursive]
    fn body(
        &mut self,
        body: &SetExpr,
        order_by: Option<&OrderBy>,
        limit: Limit,
        outer: Option<&Outer>,
        exists: bool,
    ) -> Result<Block, Failure> {
        match body {
            SetExpr::Select(select) => self.select(select, order_by, limit, outer, exists),
            SetExpr::Query(query) => {
                let exists = exists && order_by.is_none() && limit.rows.is_none() && limit.offset == 0;
                let block = self.query(query, outer, exists)?;
                self.order_and_limit(block, order_by, limit)
            }
            SetExpr::Values(values) => {
                if outer.is_some_and(|outer| outer.domain.is_some()) {
                    return Err(unsupported("VALUES in a correlated subquery", body.span()));
                }
                let relation = self.values(values, outer)?;
                let block = Block {
                    relation,
                    carried: Vec::new(),
                    pairs: Vec::new(),
                    one_row: false,
                    if_empty: None,
                };
                self.order_and_limit(block, order_by, limit)
            }
            SetExpr::SetOperation { left, op, set_quantifier, right } => {
                // The operator itself has no place in the tree: it stands before its right side.
                let span = right.span();
                let first = self.body(left, None, Limit::default(), outer, false)?;
                let second = self.body(right, None, Limit::default(), outer, false)?;
                let block = self.set_operation(first, second, *op, *set_quantifier, outer, span)?;
                self.order_and_limit(block, order_by, limit)
            }
            SetExpr::Table(table) => {
                let name = table.table_name.clone().unwrap_or_default();
                let text = sqlparser::ast::ObjectName::from(vec![Ident::new(name)]);
                let factor = sqlparser::ast::TableFactor::Table {
                    name: text,
                    alias: None,
                    args: None,
                    with_hints: Vec::new(),
                    version: None,
                    with_ordinality: false,
                    partitions: Vec::new(),
                    json_path: None,
                    sample: None,
                    index_hints: Vec::new(),
                };
                let from = sqlparser::ast::TableWithJoins { relation: factor, joins: Vec::new() };
                let pool = self.from(&[from], None)?;
                let relation = self.join_all(pool)?;
                let block = Block {
                    relation,
                    carried: Vec::new(),
                    pairs: Vec::new(),
                    one_row: false,
                    if_empty: None,
                };
                self.order_and_limit(block, order_by, limit)
            }
            other => Err(unsupported("a statement that changes data", other.span())),
        }
    }

    /// `ORDER BY` and `LIMIT` of a result that is no single `SELECT`: only its columns have names.
    fn order_and_limit(
        &mut self,
        mut block: Block,
        order_by: Option<&OrderBy>,
        limit: Limit,
    ) -> Result<Block, Failure> {
        let Some(order_by) = order_by else {
            block.relation.frame = limited(block.relation.frame, limit, &block.carried);
            return Ok(block);
        };
        let columns: Vec<Column> = block.relation.visible().cloned().collect();
        let mut by = Vec::new();
        match &order_by.kind {
            OrderByKind::All(options) => {
                by.extend(columns.iter().map(|column| (column.id.clone(), *options)))
            }
            OrderByKind::Expressions(list) => {
                for item in list {
                    let id = match position("ORDER BY", &item.expr, columns.len())? {
                        Some(position) => columns[position].id.clone(),
                        None => {
                            let typed =
                                self.scalar(&item.expr, &mut Scope::over(&mut block.relation, None))?;
                            match &typed.expr {
                                Expr::Column(id) => id.clone(),
                                expr => {
                                    let id = self.fresh("order");
                                    let with = [expr.clone().alias(id.clone())];
                                    block.relation.frame = block.relation.frame.clone().with_columns(with);
                                    id
                                }
                            }
                        }
                    };
                    by.push((id, item.options));
                }
            }
        }
        let frame = sorted(block.relation.frame, &by);
        let frame = limited(frame, limit, &block.carried);
        let kept = columns.iter().map(|column| column.id.clone()).chain(block.carried.iter().cloned());
        block.relation.frame = frame.select(kept.map(Expr::Column).collect::<Vec<_>>());
        Ok(block)
    }

    /// `VALUES (1, 'a'), (2, 'b')`.
    fn values(&mut self, values: &Values, outer: Option<&Outer>) -> Result<Relation, Failure> {
        let width = values.rows.first().map_or(0, |row| row.content.len());
        let mut nothing = Relation::new(LazyFrame::default(), Vec::new(), Size::of(1.0));
        let mut cells: Vec<Vec<Typed>> = vec![Vec::new(); width];
        for row in &values.rows {
            let span = row.opening_token.0.span;
            if row.content.len() != width {
                return Err(wrong("the rows of VALUES have different lengths", span));
            }
            for (column, cell) in cells.iter_mut().zip(&row.content) {
                let typed = self.scalar(cell, &mut Scope::over(&mut nothing, outer))?;
                if !super::relation::leaves(&typed.expr).is_empty() {
                    return Err(unsupported("a column in VALUES", cell.span()));
                }
                let constant = typed.constant().is_some();
                column.push(if constant { typed } else { super::value::evaluate(typed.expr, cell.span())? });
            }
        }
        let (mut columns, mut series) = (Vec::new(), Vec::new());
        for (index, cells) in cells.into_iter().enumerate() {
            let (cells, dtype) = unify(cells, Span::empty())?;
            let id = self.fresh(&format!("column_{index}"));
            let mut values = Vec::new();
            for cell in cells {
                values.push(cell.constant().map_or(AnyValue::Null, Scalar::into_value));
            }
            let column = Series::from_any_values_and_dtype(id.clone(), &values, &dtype, true);
            series.push(column.map_err(|error| rejected(error, Span::empty()))?.into_column());
            columns.push(Column {
                table: None,
                name: format!("column_{index}"),
                id,
                dtype,
                nullable: true,
                hidden: false,
                level: 0,
            });
        }
        let height = values.rows.len();
        let frame = DataFrame::new(height, series).map_err(|error| rejected(error, Span::empty()))?;
        Ok(Relation::new(frame.lazy(), columns, Size::of(height as f64)))
    }

    fn set_operation(
        &mut self,
        mut left: Block,
        mut right: Block,
        op: SetOperator,
        quantifier: SetQuantifier,
        outer: Option<&Outer>,
        span: Span,
    ) -> Result<Block, Failure> {
        if !left.pairs.is_empty() || !right.pairs.is_empty() {
            // Keys of two branches are no keys of both.
            if let Some(outer) = outer {
                outer.elsewhere.set(true);
            }
        }
        let by_name = matches!(
            quantifier,
            SetQuantifier::ByName | SetQuantifier::AllByName | SetQuantifier::DistinctByName
        );
        let all = matches!(quantifier, SetQuantifier::All | SetQuantifier::AllByName);
        let mut lefts: Vec<Column> = left.relation.visible().cloned().collect();
        let mut rights: Vec<Column> = right.relation.visible().cloned().collect();
        if by_name {
            (lefts, rights) = self.aligned(&mut left.relation, &mut right.relation, lefts, rights);
        }
        if lefts.len() != rights.len() {
            let message = format!("{op} of results with {} and {} columns", lefts.len(), rights.len());
            return Err(wrong(&message, span));
        }
        let types = common_types(&lefts, &rights, span)?;
        let mut columns = Vec::new();
        let mut selects = (Vec::new(), Vec::new());
        for ((left, right), dtype) in lefts.iter().zip(&rights).zip(types) {
            let id = self.fresh(&left.name);
            let side = |column: &Column| {
                let value = Expr::Column(column.id.clone());
                let value = if column.dtype == dtype { value } else { value.cast(dtype.clone()) };
                value.alias(id.clone())
            };
            selects.0.push(side(left));
            selects.1.push(side(right));
            columns.push(Column {
                id: id.clone(),
                dtype: dtype.clone(),
                nullable: left.nullable || right.nullable,
                table: None,
                ..left.clone()
            });
        }
        let carried = left.carried.clone();
        for (own, other) in left.carried.iter().zip(&right.carried) {
            selects.0.push(Expr::Column(own.clone()));
            selects.1.push(Expr::Column(other.clone()).alias(own.clone()));
        }
        let (first, second) = (left.relation.frame.select(selects.0), right.relation.frame.select(selects.1));
        let rows = left.relation.size.rows;
        let (frame, rows) = match op {
            SetOperator::Union => {
                let both = concat([first, second], UnionArgs::default());
                let both = both.map_err(|error| rejected(error, span))?;
                let both = if all { both } else { both.unique(None, UniqueKeepStrategy::Any) };
                (both, rows + right.relation.size.rows)
            }
            SetOperator::Except | SetOperator::Minus | SetOperator::Intersect => {
                let how = if op == SetOperator::Intersect { JoinType::Semi } else { JoinType::Anti };
                let mut on: Vec<Expr> = columns
                    .iter()
                    .map(|column| column.id.clone())
                    .chain(carried.iter().cloned())
                    .map(Expr::Column)
                    .collect();
                let (first, second) = match all {
                    // The first of several equal rows meets the first, the second the second.
                    true => {
                        let id = self.fresh("copy");
                        let copy = int_range(lit(0), len().cast(DataType::Int64), 1, DataType::Int64);
                        let copy = windowed(copy, on.clone(), None).alias(id.clone());
                        on.push(Expr::Column(id));
                        (first.with_columns([copy.clone()]), second.with_columns([copy]))
                    }
                    false => (first.unique(None, UniqueKeepStrategy::Any), second),
                };
                let kept = on[..columns.len() + carried.len()].to_vec();
                let joined = first.join_builder().with(second).on(on).how(how).join_nulls(true).finish();
                (if all { joined.select(kept) } else { joined }, rows)
            }
        };
        let relation = Relation::new(frame, columns, Size::of(rows));
        Ok(Block { relation, carried, pairs: left.pairs, one_row: false, if_empty: None })
    }

    /// The columns of both sides in one order, each side with nulls for those it lacks.
    fn aligned(
        &mut self,
        left: &mut Relation,
        right: &mut Relation,
        lefts: Vec<Column>,
        rights: Vec<Column>,
    ) -> (Vec<Column>, Vec<Column>) {
        let mut order = lefts.clone();
        order.extend(
            rights.iter().filter(|column| !lefts.iter().any(|left| left.name == column.name)).cloned(),
        );
        let mut side = |relation: &mut Relation, own: &[Column]| -> Vec<Column> {
            let mut found = Vec::new();
            for column in &order {
                found.push(match own.iter().find(|own| own.name == column.name) {
                    Some(own) => own.clone(),
                    None => {
                        let id = self.fresh(&column.name);
                        let null = lit(NULL).cast(column.dtype.clone()).alias(id.clone());
                        relation.frame = relation.frame.clone().with_columns([null]);
                        Column { id, nullable: true, ..column.clone() }
                    }
                });
            }
            found
        };
        (side(left, &lefts), side(right, &rights))
    }
}

/// Whether a query reads a table of this name.
fn mentions(query: &Query, name: &Ident) -> bool {
    struct Named<'n>(&'n Ident);
    impl sqlparser::ast::Visitor for Named<'_> {
        type Break = ();
        fn pre_visit_relation(&mut self, relation: &sqlparser::ast::ObjectName) -> std::ops::ControlFlow<()> {
            let found = relation.0.last().and_then(|part| part.as_ident());
            match found.is_some_and(|found| found.value.eq_ignore_ascii_case(&self.0.value)) {
                true => std::ops::ControlFlow::Break(()),
                false => std::ops::ControlFlow::Continue(()),
            }
        }
    }
    walk(query, &mut Named(name)).is_break()
}

fn limit(query: &Query) -> Result<Limit, Failure> {
    let count = |expr: &Sql| -> Result<u64, Failure> {
        let text = match expr {
            Sql::Value(value) => match &value.value {
                Value::Number(text, _) => Some(text),
                _ => None,
            },
            _ => None,
        };
        text.and_then(|text| text.parse().ok())
            .ok_or_else(|| wrong(&format!("LIMIT or OFFSET {expr}: a whole number is expected"), expr.span()))
    };
    let mut found = Limit::default();
    match &query.limit_clause {
        Some(LimitClause::LimitOffset { limit, offset, limit_by }) => {
            if let Some(by) = limit_by.first() {
                return Err(unsupported("LIMIT BY", by.span()));
            }
            let no_limit = |expr: &&Sql| !matches!(expr, Sql::Value(value) if value.value == Value::Null);
            found.rows = limit.as_ref().filter(no_limit).map(count).transpose()?;
            found.offset = offset.as_ref().map(|offset| count(&offset.value)).transpose()?.unwrap_or(0);
        }
        Some(LimitClause::OffsetCommaLimit { offset, limit }) => {
            found = Limit { offset: count(offset)?, rows: Some(count(limit)?) };
        }
        None => {}
    }
    if let Some(fetch) = &query.fetch {
        if fetch.percent || fetch.with_ties {
            return Err(unsupported("FETCH with PERCENT or WITH TIES", query.span()));
        }
        if found.rows.is_some() {
            return Err(wrong("LIMIT and FETCH in one query", query.span()));
        }
        found.rows = Some(fetch.quantity.as_ref().map_or(Ok(1), count)?);
    }
    Ok(found)
}

fn refuse_clauses(query: &Query, span: Span) -> Result<(), Failure> {
    let clauses = [
        (!query.locks.is_empty(), "FOR UPDATE or SHARE"),
        (query.for_clause.is_some(), "FOR XML, JSON or BROWSE"),
        (query.settings.is_some(), "SETTINGS"),
        (query.format_clause.is_some(), "FORMAT"),
        (!query.pipe_operators.is_empty(), "a pipe operator"),
    ];
    match clauses.iter().find(|(found, _)| *found) {
        Some((_, clause)) => Err(unsupported(clause, span)),
        None => Ok(()),
    }
}
