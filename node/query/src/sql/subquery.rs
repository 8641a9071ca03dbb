//! Subqueries become joins.
//!
//! | in the text | becomes |
//! |---|---|
//! | `EXISTS`, `IN` as a condition | a semi join; an anti join if negated |
//! | `x NOT IN (...)` | the same, and no row where `x` or a value of the list is null |
//! | a scalar subquery | a cross join of its one row, or a left join with its rows by group |
//! | any of them inside an expression | a left join that adds a column |
//!
//! A correlated subquery is joined by its keys, the equalities of its `WHERE` with the query around. If it uses
//! columns of the query around in any other way, all their different values are joined into its `FROM`: then it is
//! computed once for each of them.

use std::collections::BTreeSet;

use floe_protocol::Failure;
use polars::prelude::*;
use sqlparser::ast::{BinaryOperator, Expr as Sql, Query, SetExpr, Spanned, UnaryOperator};
use sqlparser::tokenizer::Span;

use super::joins::keep;
use super::place::{unsupported, wrong};
use super::planner::Planner;
use super::relation::{Column, Relation, Size, leaves};
use super::scalar::{Outer, Scope};
use super::select::Block;
use super::value::{Typed, compare, unify};

/// A planned subquery and how it belongs to the rows around it.
struct Sub {
    block: Block,
    /// Expressions of the rows around, and the columns of the subquery that equal them.
    keys: Vec<(Typed, Typed)>,
    /// Whether nulls are equal in these keys: they are values of the rows around, not of a comparison.
    nulls_equal: bool,
}

impl Sub {
    fn frame(&self) -> LazyFrame {
        self.block.relation.frame.clone()
    }

    fn key_ids(&self) -> Vec<PlSmallStr> {
        let mut ids = Vec::new();
        for (_, inner) in &self.keys {
            if let Expr::Column(id) = &inner.expr
                && !ids.contains(id)
            {
                ids.push(id.clone());
            }
        }
        ids
    }

    fn key_columns(&self) -> Vec<Expr> {
        self.key_ids().into_iter().map(Expr::Column).collect()
    }

    /// The first and only column.
    fn only(&self, span: Span) -> Result<Column, Failure> {
        let columns: Vec<&Column> = self.block.relation.visible().collect();
        match columns.as_slice() {
            [only] => Ok((*only).clone()),
            many => Err(wrong(&format!("a subquery of one column is needed, this has {}", many.len()), span)),
        }
    }
}

impl Planner<'_> {
    /// Plans a subquery beside the rows of a scope.
    fn subquery(&mut self, query: &Query, scope: &Scope<'_>, exists: bool) -> Result<Sub, Failure> {
        let further = |column: &Column| Column { level: column.level + 1, ..column.clone() };
        let mut around: Vec<Column> = scope.relation.columns.iter().map(further).collect();
        around.extend(scope.outer.iter().flat_map(|outer| &outer.columns).map(further));
        let outer = Outer::new(around, None);
        let block = self.query(query, Some(&outer), exists)?;
        let used = outer.used.borrow().clone();
        if used.is_empty() {
            return Ok(Sub { block, keys: Vec::new(), nulls_equal: false });
        }
        // What it uses of queries further out is used by the query around, too.
        let beyond: BTreeSet<PlSmallStr> =
            used.iter().filter(|id| !scope.relation.holds(id)).cloned().collect();
        if let Some(enclosing) = scope.outer
            && !beyond.is_empty()
        {
            enclosing.used.borrow_mut().extend(beyond);
            enclosing.elsewhere.set(true);
        }
        if !outer.elsewhere.get() {
            let keys = block.pairs.clone();
            return Ok(Sub { block, keys, nulls_equal: false });
        }
        let mut columns = Vec::new();
        let mut select = Vec::new();
        let mut keys = Vec::new();
        for id in used {
            let Some(column) = outer.columns.iter().find(|column| column.id == id) else {
                continue;
            };
            let own = self.fresh(&id);
            select.push(Expr::Column(id).alias(own.clone()));
            let inner = Column { id: own, hidden: false, ..column.clone() };
            keys.push((column.typed(), inner.typed()));
            columns.push(inner);
        }
        let frame = scope.relation.frame.clone().select(select).unique(None, UniqueKeepStrategy::Any);
        let domain = Relation::new(frame, columns, Size::of(scope.relation.size.rows));
        let block = self.query(query, Some(&Outer::new(Vec::new(), Some(domain))), exists)?;
        Ok(Sub { block, keys, nulls_equal: true })
    }

    /// Adds columns of a subquery to the rows around it: to those that have keys in it, the others get nulls.
    fn attach(&mut self, scope: &mut Scope<'_>, right: LazyFrame, sub: &Sub) -> Result<(), Failure> {
        let left = scope.relation.frame.clone();
        scope.relation.frame = if sub.keys.is_empty() {
            left.cross_join(right, None)
        } else {
            self.join(left, right, &sub.keys, JoinType::Left, sub.nulls_equal)?
        };
        Ok(())
    }

    /// The value of a subquery of one column and at most one row.
    pub(super) fn scalar_subquery(
        &mut self,
        query: &Query,
        span: Span,
        scope: &mut Scope<'_>,
    ) -> Result<Typed, Failure> {
        let sub = self.subquery(query, scope, false)?;
        let value = sub.only(span)?;
        let id = self.fresh(&value.name);
        let column = Expr::Column(value.id.clone());
        let result = |expr: Expr| Typed::new(expr, value.dtype.clone()).named(&value.name);
        if sub.keys.is_empty() {
            let column = if sub.block.one_row { column } else { column.item(true) };
            let right = sub.frame().select([column.alias(id.clone())]);
            self.attach(scope, right, &sub)?;
            return Ok(result(Expr::Column(id)));
        }
        let met = self.fresh("met");
        let right = if sub.block.one_row {
            let mut select = sub.key_columns();
            select.push(column.alias(id.clone()));
            select.push(lit(true).alias(met.clone()));
            sub.frame().select(select)
        } else {
            let grouped = sub.frame().group_by(sub.key_columns());
            grouped.agg([column.item(true).alias(id.clone())]).with_columns([lit(true).alias(met.clone())])
        };
        self.attach(scope, right, &sub)?;
        let found = Expr::Column(id);
        Ok(match &sub.block.if_empty {
            Some(empty) => {
                let empty = empty.clone().cast(value.dtype.clone());
                result(when(Expr::Column(met).is_null()).then(empty).otherwise(found))
            }
            None => result(found),
        })
    }

    /// `[NOT] EXISTS` as a value.
    pub(super) fn exists(
        &mut self,
        query: &Query,
        negated: bool,
        scope: &mut Scope<'_>,
    ) -> Result<Typed, Failure> {
        if let Some(found) = self.exists_by_bound(query, scope)? {
            return Ok(boolean(if negated { found.not() } else { found }));
        }
        let sub = self.subquery(query, scope, true)?;
        if sub.block.one_row {
            return Ok(Typed::bool(!negated));
        }
        let met = self.fresh("exists");
        let found = if sub.keys.is_empty() {
            self.attach(scope, sub.frame().select([len().gt(lit(0)).alias(met.clone())]), &sub)?;
            Expr::Column(met)
        } else {
            let keys = sub.frame().select(sub.key_columns()).unique(None, UniqueKeepStrategy::Any);
            self.attach(scope, keys.with_columns([lit(true).alias(met.clone())]), &sub)?;
            Expr::Column(met).is_not_null()
        };
        Ok(boolean(if negated { found.not() } else { found }))
    }

    /// `EXISTS` with one comparison besides its equalities: there is a row with `b < x` if the least `b` is less than
    /// `x`. So one row for each key is enough, and the rows around are read once.
    fn exists_by_bound(&mut self, query: &Query, scope: &mut Scope<'_>) -> Result<Option<Expr>, Failure> {
        for at in 0.. {
            let Some((bare, comparison)) = split_comparison(query, at) else {
                return Ok(None);
            };
            if let Some(found) = self.exists_by(&bare, &comparison, scope)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn exists_by(
        &mut self,
        bare: &Query,
        comparison: &(Sql, BinaryOperator, Sql),
        scope: &mut Scope<'_>,
    ) -> Result<Option<Expr>, Failure> {
        let SetExpr::Select(select) = &*bare.body else {
            return Ok(None);
        };
        // Which side of the comparison is the subquery's own is known only by its columns.
        let mut own = super::from::columns_of(&self.from(&select.from, None)?.relations);
        let (left, op, right) = comparison;
        let inside = |planner: &mut Self, expr: &Sql, own: &mut Relation| {
            planner
                .scalar(expr, &mut Scope::over(own, None))
                .ok()
                .filter(|typed| !leaves(&typed.expr).is_empty())
        };
        let (inner, op, around) = match (inside(self, left, &mut own), inside(self, right, &mut own)) {
            (Some(typed), None) => ((left, typed), op.clone(), right),
            (None, Some(typed)) => ((right, typed), turned(op), left),
            _ => return Ok(None),
        };
        if inner.1.dtype.is_float() || inner.1.dtype.is_nested() {
            // NaN is beyond all bounds, and yet different from itself in no way.
            return Ok(None);
        }
        // The other side must be of the rows around alone.
        let Ok(around) = self.scalar(around, scope) else {
            return Ok(None);
        };
        if !leaves(&around.expr).iter().all(|id| scope.relation.holds(id)) {
            return Ok(None);
        }
        let mut bounded = bare.clone();
        if let SetExpr::Select(select) = &mut *bounded.body {
            select.projection = vec![sqlparser::ast::SelectItem::UnnamedExpr(inner.0.clone())];
        }
        let sub = self.subquery(&bounded, scope, false)?;
        if sub.nulls_equal
            || !sub.keys.is_empty()
                && sub
                    .keys
                    .iter()
                    .any(|(outer, _)| !leaves(&outer.expr).iter().all(|id| scope.relation.holds(id)))
        {
            return Ok(None);
        }
        let value = sub.only(Span::empty())?;
        let (least, most) = (self.fresh("least"), self.fresh("most"));
        let column = || Expr::Column(value.id.clone());
        let bounds = [column().min().alias(least.clone()), column().max().alias(most.clone())];
        let right = if sub.keys.is_empty() {
            sub.frame().select(bounds)
        } else {
            sub.frame().group_by(sub.key_columns()).agg(bounds)
        };
        self.attach(scope, right, &sub)?;
        let bound = |id: PlSmallStr| Typed::new(Expr::Column(id), value.dtype.clone());
        let test = |bound: Typed, op: &BinaryOperator| -> Result<Expr, Failure> {
            Ok(compare(op, bound, around.clone(), Span::empty())?.expr)
        };
        let found = match op {
            BinaryOperator::Lt | BinaryOperator::LtEq => test(bound(least), &op)?,
            BinaryOperator::Gt | BinaryOperator::GtEq => test(bound(most), &op)?,
            _ => test(bound(least), &op)?.or(test(bound(most), &op)?),
        };
        Ok(Some(found.fill_null(lit(false))))
    }

    /// `x [NOT] IN (query)` as a value: null where SQL says so.
    pub(super) fn in_subquery(
        &mut self,
        expr: &Sql,
        query: &Query,
        negated: bool,
        span: Span,
        scope: &mut Scope<'_>,
    ) -> Result<Typed, Failure> {
        if let Sql::Tuple(_) = expr {
            return Err(unsupported("IN of rows as a value", span));
        }
        let value = self.scalar(expr, scope)?;
        let sub = self.subquery(query, scope, false)?;
        let member = sub.only(span)?.typed();
        let (values, _) = unify(vec![value, member], span)?;
        let [value, member]: [Typed; 2] =
            values.try_into().map_err(|_| Failure::internal("two values became another number"))?;
        self.member(value, member, &sub, scope)
            .map(|found| boolean(if negated { found.not() } else { found }))
    }

    /// Whether a value is among those of a subquery: true, false or null.
    fn member(
        &mut self,
        value: Typed,
        member: Typed,
        sub: &Sub,
        scope: &mut Scope<'_>,
    ) -> Result<Expr, Failure> {
        // First whether it is there.
        let (own, met) = (self.fresh("member"), self.fresh("met"));
        let mut select = sub.key_columns();
        select.push(member.expr.clone().alias(own.clone()));
        let members = sub.frame().select(select).filter(Expr::Column(own.clone()).is_not_null());
        let members =
            members.unique(None, UniqueKeepStrategy::Any).with_columns([lit(true).alias(met.clone())]);
        let mut keys = sub.keys.clone();
        // Nulls are equal in keys of the rows around, and members are no nulls: both can be said at once.
        keys.push((value.clone(), Typed::new(Expr::Column(own), member.dtype.clone())));
        let left = scope.relation.frame.clone();
        scope.relation.frame = self.join(left, members, &keys, JoinType::Left, sub.nulls_equal)?;
        // Then whether there is any row, and any null.
        let (any, null) = (self.fresh("any"), self.fresh("null"));
        let counted =
            [len().gt(lit(0)).alias(any.clone()), member.expr.null_count().gt(lit(0)).alias(null.clone())];
        let right = if sub.keys.is_empty() {
            sub.frame().select(counted)
        } else {
            // The names of the keys are in the rows by now.
            let fresh: Vec<PlSmallStr> = sub.key_ids().iter().map(|id| self.fresh(id)).collect();
            let named = sub.key_ids().into_iter().zip(&fresh);
            let grouped = sub.frame().group_by(sub.key_columns()).agg(counted);
            let mut renamed: Vec<Expr> =
                named.map(|(id, fresh)| Expr::Column(id).alias(fresh.clone())).collect();
            renamed.push(Expr::Column(any.clone()));
            renamed.push(Expr::Column(null.clone()));
            let ids = sub.key_ids();
            let again = |(outer, inner): &(Typed, Typed)| {
                let at = ids.iter().position(|id| inner.expr == Expr::Column(id.clone())).unwrap_or(0);
                (outer.clone(), Typed { expr: Expr::Column(fresh[at].clone()), ..inner.clone() })
            };
            let keys: Vec<(Typed, Typed)> = sub.keys.iter().map(again).collect();
            let left = scope.relation.frame.clone();
            scope.relation.frame =
                self.join(left, grouped.select(renamed), &keys, JoinType::Left, sub.nulls_equal)?;
            let unknown = value.expr.is_null().or(Expr::Column(null).fill_null(lit(false)));
            let nobody = Expr::Column(any).fill_null(lit(false)).not();
            return Ok(three_valued(Expr::Column(met), unknown, nobody));
        };
        let left = scope.relation.frame.clone();
        scope.relation.frame = left.cross_join(right, None);
        let unknown = value.expr.is_null().or(Expr::Column(null));
        Ok(three_valued(Expr::Column(met), unknown, Expr::Column(any).not()))
    }

    /// `x < ANY (query)`: there is such a value. `= ANY` is `IN`.
    pub(super) fn any(
        &mut self,
        left: &Sql,
        op: &BinaryOperator,
        query: &Query,
        span: Span,
        scope: &mut Scope<'_>,
    ) -> Result<Typed, Failure> {
        match op {
            BinaryOperator::Eq => self.in_subquery(left, query, false, span, scope),
            _ => self.quantified(left, op, query, true, span, scope),
        }
    }

    /// `x < ALL (query)`: there is no other value. `<> ALL` is `NOT IN`.
    pub(super) fn all(
        &mut self,
        left: &Sql,
        op: &BinaryOperator,
        query: &Query,
        span: Span,
        scope: &mut Scope<'_>,
    ) -> Result<Typed, Failure> {
        match op {
            BinaryOperator::NotEq => self.in_subquery(left, query, true, span, scope),
            _ => self.quantified(left, op, query, false, span, scope),
        }
    }

    /// A comparison with the least or the greatest value, and nulls as SQL has them.
    fn quantified(
        &mut self,
        left: &Sql,
        op: &BinaryOperator,
        query: &Query,
        any: bool,
        span: Span,
        scope: &mut Scope<'_>,
    ) -> Result<Typed, Failure> {
        let value = self.scalar(left, scope)?;
        let sub = self.subquery(query, scope, false)?;
        let member = sub.only(span)?;
        let (least, most, null, rows) =
            (self.fresh("least"), self.fresh("most"), self.fresh("null"), self.fresh("rows"));
        let column = || Expr::Column(member.id.clone());
        let bounds = [
            column().min().alias(least.clone()),
            column().max().alias(most.clone()),
            column().null_count().gt(lit(0)).alias(null.clone()),
            len().alias(rows.clone()),
        ];
        let right = if sub.keys.is_empty() {
            sub.frame().select(bounds)
        } else {
            sub.frame().group_by(sub.key_columns()).agg(bounds)
        };
        self.attach(scope, right, &sub)?;
        let bound = |id: &PlSmallStr| Typed::new(Expr::Column(id.clone()), member.dtype.clone());
        let test = |op: &BinaryOperator, id: &PlSmallStr| -> Result<Expr, Failure> {
            Ok(compare(op, value.clone(), bound(id), span)?.expr)
        };
        let greater = matches!(op, BinaryOperator::Gt | BinaryOperator::GtEq);
        let holds = match op {
            BinaryOperator::Lt | BinaryOperator::LtEq | BinaryOperator::Gt | BinaryOperator::GtEq => {
                test(op, if greater == any { &least } else { &most })?
            }
            // x <> ANY: one of the bounds differs. x = ALL: both are the same.
            BinaryOperator::NotEq if any => test(op, &least)?.or(test(op, &most)?),
            BinaryOperator::Eq if !any => test(op, &least)?.and(test(op, &most)?),
            other => return Err(unsupported(&format!("{other} with ANY or ALL"), span)),
        };
        let empty = Expr::Column(rows).fill_null(lit(0)).eq(lit(0));
        let null = Expr::Column(null).fill_null(lit(false));
        // A null among the values leaves open what they have not decided.
        let decided =
            if any { holds.clone().fill_null(lit(false)) } else { holds.clone().not().fill_null(lit(false)) };
        let result = when(empty)
            .then(lit(!any))
            .when(decided)
            .then(lit(any))
            .when(null)
            .then(lit(NULL).cast(DataType::Boolean))
            .otherwise(holds);
        Ok(boolean(result))
    }

    /// A condition of `WHERE` with a query in it.
    pub(super) fn filter_by_query(
        &mut self,
        condition: &Sql,
        relation: &mut Relation,
        outer: Option<&Outer>,
    ) -> Result<(), Failure> {
        let span = condition.span();
        let mut scope = Scope::over(relation, outer);
        match positive(condition) {
            Test::Exists(query, negated) => {
                if let Some(found) = self.exists_by_bound(query, &mut scope)? {
                    keep(relation, vec![if negated { found.not() } else { found }]);
                    return Ok(());
                }
                let sub = self.subquery(query, &scope, true)?;
                if sub.keys.is_empty() || sub.block.one_row {
                    return self.filter_by_value(condition, relation, outer);
                }
                let how = if negated { JoinType::Anti } else { JoinType::Semi };
                let left = relation.frame.clone();
                let right = sub.frame().select(sub.key_columns());
                relation.frame = self.join(left, right, &sub.keys, how, sub.nulls_equal)?;
                relation.size.rows = (relation.size.rows * 0.5).max(1.0);
                Ok(())
            }
            Test::In(Sql::Tuple(values), query, negated) => {
                let mut typed = Vec::new();
                for value in values {
                    typed.push(self.scalar(value, &mut scope)?);
                }
                if negated {
                    return Err(unsupported("NOT IN of rows", span));
                }
                let sub = self.subquery(query, &scope, false)?;
                let columns: Vec<Column> = sub.block.relation.visible().cloned().collect();
                if columns.len() != typed.len() {
                    return Err(wrong("IN of rows with another number of columns", span));
                }
                let members = typed.into_iter().zip(columns.iter().map(Column::typed)).collect();
                self.half_join(relation, &sub, members, JoinType::Semi)
            }
            Test::In(value, query, true) if !matches!(value, Sql::Tuple(_)) => {
                // Without nulls on both sides an anti join says it all.
                let mark = relation.clone();
                let value = self.scalar(value, &mut Scope::over(relation, outer))?;
                let sub = self.subquery(query, &Scope::over(relation, outer), false)?;
                let member = sub.only(span)?.typed();
                let comparable = super::value::common(&value.dtype, &member.dtype).is_some();
                if value.nullable || member.nullable || !comparable {
                    *relation = mark;
                    return self.filter_by_value(condition, relation, outer);
                }
                self.half_join(relation, &sub, vec![(value, member)], JoinType::Anti)
            }
            Test::In(value, query, false) => {
                let value = self.scalar(value, &mut scope)?;
                let sub = self.subquery(query, &scope, false)?;
                let member = sub.only(span)?.typed();
                if super::value::common(&value.dtype, &member.dtype).is_none() {
                    let message =
                        format!("values of the types {} and {} do not compare", value.dtype, member.dtype);
                    return Err(wrong(&message, span));
                }
                self.half_join(relation, &sub, vec![(value, member)], JoinType::Semi)
            }
            _ => self.filter_by_value(condition, relation, outer),
        }
    }

    fn filter_by_value(
        &mut self,
        condition: &Sql,
        relation: &mut Relation,
        outer: Option<&Outer>,
    ) -> Result<(), Failure> {
        let typed = self.condition(condition, &mut Scope::over(relation, outer))?;
        keep(relation, vec![typed.expr]);
        Ok(())
    }

    /// Keeps the rows whose values are members, or those whose values are not.
    fn half_join(
        &mut self,
        relation: &mut Relation,
        sub: &Sub,
        members: Vec<(Typed, Typed)>,
        how: JoinType,
    ) -> Result<(), Failure> {
        let mut select = sub.key_columns();
        let mut keys = sub.keys.clone();
        for (value, member) in members {
            let own = self.fresh("member");
            select.push(member.expr.clone().alias(own.clone()));
            keys.push((value, Typed { expr: Expr::Column(own.clone()), ..member }));
        }
        let mut right = sub.frame().select(select);
        if sub.nulls_equal {
            // Nulls are values in the keys of the rows around, and never members.
            for (_, member) in keys.iter().skip(sub.keys.len()) {
                right = right.filter(member.expr.clone().is_not_null());
            }
        }
        let left = relation.frame.clone();
        let kept = if how == JoinType::Semi { 0.2 } else { 0.8 };
        relation.frame = self.join(left, right, &keys, how, sub.nulls_equal)?;
        relation.size.rows = (relation.size.rows * kept).max(1.0);
        Ok(())
    }

    /// Applies `x IN (query)` to the one relation that `x` is of before the joins, if the query is not correlated:
    /// fewer rows are joined then. Says whether it did.
    pub(super) fn filter_early(
        &mut self,
        condition: &Sql,
        relations: &mut [Relation],
    ) -> Result<bool, Failure> {
        if relations.len() < 2 {
            return Ok(false);
        }
        let Test::In(value, query, false) = positive(condition) else {
            return Ok(false);
        };
        if matches!(value, Sql::Tuple(_)) || super::conjuncts::has_subquery(value) {
            return Ok(false);
        }
        let mut all = super::from::columns_of(relations);
        let Ok(typed) = self.scalar(value, &mut Scope::over(&mut all, None)) else {
            return Ok(false);
        };
        let used = leaves(&typed.expr);
        let owner = relations.iter_mut().find(|relation| used.iter().all(|id| relation.holds(id)));
        let (Some(owner), false) = (owner, used.is_empty()) else {
            return Ok(false);
        };
        // Correlated ones have names that are not found here.
        let mark = self.ctes.len();
        let planned = self.query(query, None, false);
        self.ctes.truncate(mark);
        let Ok(block) = planned else {
            return Ok(false);
        };
        let sub = Sub { block, keys: Vec::new(), nulls_equal: false };
        let member = sub.only(condition.span())?.typed();
        if super::value::common(&typed.dtype, &member.dtype).is_none() {
            return Ok(false);
        }
        self.half_join(owner, &sub, vec![(typed, member)], JoinType::Semi)?;
        Ok(true)
    }
}

/// Members are found, or the rest of SQL's three values.
fn three_valued(met: Expr, unknown: Expr, nobody: Expr) -> Expr {
    when(met.is_not_null())
        .then(lit(true))
        .when(nobody)
        .then(lit(false))
        .when(unknown)
        .then(lit(NULL).cast(DataType::Boolean))
        .otherwise(lit(false))
}

fn boolean(expr: Expr) -> Typed {
    Typed::new(expr, DataType::Boolean)
}

/// A condition that is one test of a subquery.
enum Test<'t> {
    Exists(&'t Query, bool),
    In(&'t Sql, &'t Query, bool),
    Other,
}

/// The test without the `NOT` and the parentheses around it.
fn positive(condition: &Sql) -> Test<'_> {
    let (mut condition, mut turned) = (condition, false);
    loop {
        match condition {
            Sql::Nested(inner) => condition = inner,
            Sql::UnaryOp { op: UnaryOperator::Not, expr } => {
                turned = !turned;
                condition = expr;
            }
            Sql::Exists { subquery, negated } => return Test::Exists(subquery, *negated != turned),
            Sql::InSubquery { expr, subquery, negated } => {
                return Test::In(expr, subquery, *negated != turned);
            }
            Sql::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => {
                return match &**right {
                    Sql::Subquery(query) => Test::In(left, query, turned),
                    _ => Test::Other,
                };
            }
            _ => return Test::Other,
        }
    }
}

/// A plain `SELECT` without one comparison of its `WHERE` that is neither an equality nor has a query in it: the
/// one at a position among these.
fn split_comparison(query: &Query, at: usize) -> Option<(Query, (Sql, BinaryOperator, Sql))> {
    let plain = query.with.is_none() && query.limit_clause.is_none() && query.fetch.is_none();
    let SetExpr::Select(select) = &*query.body else {
        return None;
    };
    let ungrouped =
        matches!(&select.group_by, sqlparser::ast::GroupByExpr::Expressions(keys, _) if keys.is_empty());
    if !plain
        || !ungrouped
        || select.having.is_some()
        || select.qualify.is_some()
        || select.distinct.is_some()
    {
        return None;
    }
    let mut calls = Vec::new();
    for item in &select.projection {
        if let sqlparser::ast::SelectItem::UnnamedExpr(expr)
        | sqlparser::ast::SelectItem::ExprWithAlias { expr, .. } = item
        {
            super::aggregate::calls(expr, super::aggregate::groups, &mut calls);
        }
    }
    if !calls.is_empty() {
        return None;
    }
    let conditions = super::conjuncts::conjuncts(select.selection.as_ref()?);
    let compares = |condition: &Sql| {
        matches!(condition,
        Sql::BinaryOp { left, op: BinaryOperator::Lt | BinaryOperator::LtEq | BinaryOperator::Gt
            | BinaryOperator::GtEq | BinaryOperator::NotEq, right }
        if !constant(left) && !constant(right))
    };
    let mut split = None;
    let mut rest = Vec::new();
    let mut seen = 0;
    for condition in conditions {
        let one = compares(&condition) && !super::conjuncts::has_subquery(&condition);
        if one && seen == at {
            split = Some(condition);
        } else {
            rest.push(condition);
        }
        seen += usize::from(one);
    }
    let Some(Sql::BinaryOp { left, op, right }) = split else {
        return None;
    };
    let mut bare = query.clone();
    bare.order_by = None;
    if let SetExpr::Select(select) = &mut *bare.body {
        let and = |left: Sql, right: Sql| Sql::BinaryOp {
            left: Box::new(left),
            op: BinaryOperator::And,
            right: Box::new(right),
        };
        select.selection = rest.into_iter().reduce(and);
    }
    Some((bare, (*left, op, *right)))
}

fn constant(expr: &Sql) -> bool {
    match expr {
        Sql::Value(_) | Sql::TypedString(_) => true,
        Sql::Nested(inner) | Sql::UnaryOp { expr: inner, .. } => constant(inner),
        _ => false,
    }
}

fn turned(op: &BinaryOperator) -> BinaryOperator {
    match op {
        BinaryOperator::Lt => BinaryOperator::Gt,
        BinaryOperator::LtEq => BinaryOperator::GtEq,
        BinaryOperator::Gt => BinaryOperator::Lt,
        BinaryOperator::GtEq => BinaryOperator::LtEq,
        other => other.clone(),
    }
}
