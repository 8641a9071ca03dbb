//! `FROM`: tables, derived tables and explicit joins.

use floe_protocol::Failure;
use polars::prelude::*;
use sqlparser::ast::{
    Expr as Sql, Ident, JoinConstraint, JoinOperator, ObjectName, Spanned, TableAlias, TableFactor,
    TableWithJoins,
};
use sqlparser::tokenizer::Span;

use super::conjuncts::{balanced, conjuncts, has_subquery};
use super::joins::{Pool, keep};
use super::place::{rejected, unsupported, wrong};
use super::planner::Planner;
use super::relation::{Column, Relation, Size, find, leaves};
use super::scalar::{Outer, Scope};
use super::value::{Typed, compare};

impl Planner<'_> {
    /// The relations of a `FROM`, and what the `ON` of its inner joins demand. Outer joins are relations.
    pub(super) fn from(&mut self, from: &[TableWithJoins], outer: Option<&Outer>) -> Result<Pool, Failure> {
        let mut pool = Pool { relations: Vec::new(), conditions: Vec::new() };
        for table in from {
            let Pool { relations, conditions } = self.table_with_joins(table, outer)?;
            pool.relations.extend(relations);
            pool.conditions.extend(conditions);
        }
        Ok(pool)
    }

    fn table_with_joins(&mut self, table: &TableWithJoins, outer: Option<&Outer>) -> Result<Pool, Failure> {
        let mut pool = self.factor(&table.relation, outer)?;
        for join in &table.joins {
            let span = join.relation.span();
            if join.global {
                return Err(unsupported("GLOBAL JOIN", span));
            }
            let right = self.factor(&join.relation, outer)?;
            let inner = |constraint| Ok((JoinType::Inner, constraint));
            let (how, constraint) = match &join.join_operator {
                JoinOperator::Join(constraint)
                | JoinOperator::Inner(constraint)
                | JoinOperator::StraightJoin(constraint)
                | JoinOperator::CrossJoin(constraint) => inner(constraint),
                JoinOperator::Left(constraint) | JoinOperator::LeftOuter(constraint) => {
                    Ok((JoinType::Left, constraint))
                }
                JoinOperator::Right(constraint) | JoinOperator::RightOuter(constraint) => {
                    Ok((JoinType::Right, constraint))
                }
                JoinOperator::FullOuter(constraint) => Ok((JoinType::Full, constraint)),
                JoinOperator::Semi(constraint) | JoinOperator::LeftSemi(constraint) => {
                    Ok((JoinType::Semi, constraint))
                }
                JoinOperator::Anti(constraint) | JoinOperator::LeftAnti(constraint) => {
                    Ok((JoinType::Anti, constraint))
                }
                JoinOperator::RightSemi(_) | JoinOperator::RightAnti(_) => {
                    Err(unsupported("RIGHT SEMI or ANTI JOIN", span))
                }
                JoinOperator::AsOf { .. } => Err(unsupported("ASOF JOIN", span)),
                JoinOperator::CrossApply | JoinOperator::OuterApply => Err(unsupported("APPLY", span)),
                _ => Err(unsupported("ARRAY JOIN", span)),
            }?;
            if how == JoinType::Inner {
                let (columns, using) =
                    self.constraint(&pool.relations, &right.relations, constraint, span)?;
                pool.relations.extend(right.relations);
                pool.conditions.extend(right.conditions);
                for (left, right) in columns {
                    for relation in &mut pool.relations {
                        for column in &mut relation.columns {
                            column.hidden |= column.id == right.id;
                        }
                    }
                    let same =
                        compare(&sqlparser::ast::BinaryOperator::Eq, left.typed(), right.typed(), span)?;
                    pool.conditions.push(same);
                }
                if let Some(on) = using {
                    let mut all = columns_of(&pool.relations);
                    for condition in conjuncts(on) {
                        pool.conditions.push(self.on(&condition, &mut all, outer)?);
                    }
                }
                continue;
            }
            let left = self.join_all(pool)?;
            let right = self.join_all(right)?;
            let joined = self.outer_join(left, right, how, constraint, span, outer)?;
            pool = Pool { relations: vec![joined], conditions: Vec::new() };
        }
        Ok(pool)
    }

    /// A condition of an `ON`.
    fn on(&mut self, condition: &Sql, over: &mut Relation, outer: Option<&Outer>) -> Result<Typed, Failure> {
        if has_subquery(condition) {
            return Err(unsupported("a subquery in ON", condition.span()));
        }
        self.condition(condition, &mut Scope::over(over, outer))
    }

    /// The pairs of columns of a `USING` or `NATURAL`, or the condition of an `ON`.
    #[expect(clippy::type_complexity)]
    fn constraint<'c>(
        &mut self,
        left: &[Relation],
        right: &[Relation],
        constraint: &'c JoinConstraint,
        span: Span,
    ) -> Result<(Vec<(Column, Column)>, Option<&'c Sql>), Failure> {
        let (left, right) = (columns_of(left), columns_of(right));
        let names: Vec<Ident> = match constraint {
            JoinConstraint::On(on) => return Ok((Vec::new(), Some(on))),
            JoinConstraint::None => return Ok((Vec::new(), None)),
            JoinConstraint::Using(names) => {
                names.iter().map(|name| ident(name, span)).collect::<Result<_, _>>()?
            }
            JoinConstraint::Natural => {
                let common =
                    left.visible().filter(|column| right.visible().any(|other| other.name == column.name));
                let names: Vec<Ident> =
                    common.map(|column| Ident::with_quote('"', column.name.clone())).collect();
                if names.is_empty() {
                    return Err(wrong("NATURAL JOIN of tables without a column in common", span));
                }
                names
            }
        };
        let mut pairs = Vec::new();
        for name in names {
            let side = |relation: &Relation| {
                find(&relation.columns, &relation.equal, None, &name)?
                    .cloned()
                    .ok_or_else(|| wrong(&format!("USING ({}): a side has no such column", name.value), span))
            };
            pairs.push((side(&left)?, side(&right)?));
        }
        Ok((pairs, None))
    }

    fn outer_join(
        &mut self,
        mut left: Relation,
        mut right: Relation,
        how: JoinType,
        constraint: &JoinConstraint,
        span: Span,
        outer: Option<&Outer>,
    ) -> Result<Relation, Failure> {
        let lists = (std::slice::from_ref(&left), std::slice::from_ref(&right));
        let (pairs, on) = self.constraint(lists.0, lists.1, constraint, span)?;
        let mut keys: Vec<(Typed, Typed)> =
            pairs.iter().map(|(left, right)| (left.typed(), right.typed())).collect();
        let (mut left_only, mut right_only, mut both) = (Vec::new(), Vec::new(), Vec::new());
        if let Some(on) = on {
            let mut all = columns_of(&[left.clone(), right.clone()]);
            for condition in conjuncts(on) {
                let typed = self.on(&condition, &mut all, outer)?;
                let ids = leaves(&typed.expr);
                let in_left = ids.iter().all(|id| left.holds(id));
                let in_right = ids.iter().all(|id| right.holds(id));
                match (in_left, in_right) {
                    (_, true) => right_only.push(typed.expr),
                    (true, false) => left_only.push(typed.expr),
                    (false, false) => match sides(&typed.expr, &left, &right) {
                        Some(key) => keys.push(key),
                        None => both.push(typed.expr),
                    },
                }
            }
        }
        let boolean = |expr: Expr| Typed::new(expr, DataType::Boolean);
        // A condition on the side whose rows all stay only says which of them find a partner.
        if let Some(all) = balanced(left_only, Expr::and) {
            match how {
                JoinType::Right | JoinType::Semi => keep(&mut left, vec![all]),
                _ => keys.push((boolean(all), Typed::bool(true))),
            }
        }
        if let Some(all) = balanced(right_only, Expr::and) {
            match how {
                JoinType::Right | JoinType::Full => keys.push((Typed::bool(true), boolean(all))),
                _ => keep(&mut right, vec![all]),
            }
        }
        let mut size = left.size.clone();
        if !matches!(how, JoinType::Semi | JoinType::Anti) {
            size.distinct.extend(right.size.distinct.clone());
            size.rows = size.rows.max(right.size.rows);
            size.base = size.rows;
        }
        let nullable = |columns: &[Column], nulls: bool| -> Vec<Column> {
            let column = |column: &Column| Column { nullable: column.nullable || nulls, ..column.clone() };
            columns.iter().map(column).collect()
        };
        let mut columns = nullable(&left.columns, matches!(how, JoinType::Right | JoinType::Full));
        if !matches!(how, JoinType::Semi | JoinType::Anti) {
            columns.extend(nullable(&right.columns, matches!(how, JoinType::Left | JoinType::Full)));
        }
        let equal = left.equal.iter().chain(&right.equal).cloned().collect();
        let frame = match (balanced(both, Expr::and), &how) {
            (None, JoinType::Right) => {
                self.join(right.frame, left.frame, &turned(keys), JoinType::Left, false)?
            }
            (None, _) => self.join(left.frame, right.frame, &keys, how.clone(), false)?,
            (Some(rest), JoinType::Left) => self.left_with(left, right, &keys, rest)?,
            (Some(rest), JoinType::Right) => self.left_with(right, left, &turned(keys), rest)?,
            (Some(_), _) => {
                return Err(unsupported(
                    "a FULL, SEMI or ANTI JOIN by a condition on both sides that is no equality",
                    span,
                ));
            }
        };
        let mut joined = Relation { frame, columns, size, equal };
        for (left, right) in pairs {
            self.one_column(&mut joined, &left, &right, &how);
        }
        Ok(joined)
    }

    /// A left join by keys and a further condition: rows of the left that met only rows that fail it stay once,
    /// with nulls.
    fn left_with(
        &mut self,
        left: Relation,
        right: Relation,
        keys: &[(Typed, Typed)],
        rest: Expr,
    ) -> Result<LazyFrame, Failure> {
        let (row, met) = (self.fresh("row"), self.fresh("met"));
        let numbered = left.frame.with_row_index(row.clone(), None);
        let frame = self.join(numbered, right.frame, keys, JoinType::Left, false)?;
        let frame = frame.with_columns([rest.fill_null(lit(false)).alias(met.clone())]);
        let any = Expr::Column(met.clone()).any(true).over([Expr::Column(row.clone())]);
        let any = any.map_err(crate::query_failure)?;
        let first = Expr::Column(row).is_first_distinct();
        let frame = frame.filter(Expr::Column(met.clone()).or(any.not().and(first)));
        let column = |column: &Column| {
            let value = Expr::Column(column.id.clone());
            let null = lit(NULL).cast(column.dtype.clone());
            when(Expr::Column(met.clone())).then(value).otherwise(null).alias(column.id.clone())
        };
        Ok(frame.with_columns(right.columns.iter().map(column).collect::<Vec<_>>()))
    }

    /// Makes one visible column of the two of a `USING`.
    fn one_column(&mut self, joined: &mut Relation, left: &Column, right: &Column, how: &JoinType) {
        let hide = match how {
            JoinType::Semi | JoinType::Anti => return,
            JoinType::Left => vec![&right.id],
            JoinType::Right => vec![&left.id],
            _ => vec![&left.id, &right.id],
        };
        for column in &mut joined.columns {
            column.hidden |= hide.contains(&&column.id);
        }
        if *how == JoinType::Full {
            let id = self.fresh(&left.name);
            let value = coalesce(&[Expr::Column(left.id.clone()), Expr::Column(right.id.clone())]);
            joined.frame = joined.frame.clone().with_columns([value.alias(id.clone())]);
            let at = joined.columns.iter().position(|column| column.id == left.id).unwrap_or(0);
            joined.columns.insert(at, Column { table: None, id, hidden: false, ..left.clone() });
        }
    }

    fn factor(&mut self, factor: &TableFactor, outer: Option<&Outer>) -> Result<Pool, Failure> {
        let span = factor.span();
        let relation = match factor {
            TableFactor::Table { name, alias, args, version, with_ordinality, sample, .. } => {
                if version.is_some() || *with_ordinality || sample.is_some() {
                    return Err(unsupported("a table with VERSION, ORDINALITY or SAMPLE", span));
                }
                match args {
                    Some(_) => self.table_function(factor, name, alias.as_ref(), span)?,
                    None => self.table(name, alias.as_ref(), span)?,
                }
            }
            TableFactor::Derived { lateral, subquery, alias, sample } => {
                if *lateral || sample.is_some() {
                    return Err(unsupported("LATERAL", span));
                }
                let block = self.query(subquery, None, false)?;
                self.under(block.relation, alias.as_ref(), None, span)?
            }
            TableFactor::NestedJoin { table_with_joins, alias } => {
                let pool = self.table_with_joins(table_with_joins, outer)?;
                match alias {
                    None => return Ok(pool),
                    Some(alias) => {
                        let relation = self.join_all(pool)?;
                        self.under(relation, Some(alias), None, span)?
                    }
                }
            }
            TableFactor::UNNEST { .. } => self.unnest(factor, span)?,
            _ => return Err(unsupported("a table of this kind", span)),
        };
        Ok(Pool { relations: vec![relation], conditions: Vec::new() })
    }

    fn table(
        &mut self,
        name: &ObjectName,
        alias: Option<&TableAlias>,
        span: Span,
    ) -> Result<Relation, Failure> {
        let written = ident(name, span)?;
        let same = |known: &str| {
            known == written.value
                || written.quote_style.is_none() && known.eq_ignore_ascii_case(&written.value)
        };
        let cte = self.ctes.iter().rev().find(|(known, _)| same(known)).map(|(_, relation)| relation.clone());
        if let Some(relation) = cte {
            return self.under(relation, alias, Some(&written.value), span);
        }
        let exact = self.tables.get(&written.value);
        let table =
            exact.or_else(|| self.tables.iter().find(|(known, _)| same(known)).map(|(_, table)| table));
        let Some(table) = table else {
            return Err(Failure::Query { message: format!("relation '{}' was not found", written.value) });
        };
        let mut frame = table.frame.clone();
        let schema = frame.collect_schema().map_err(|error| rejected(error, Span::empty()))?;
        let rows = table.statistics.rows;
        let mut size = Size::of(rows);
        let column = |(name, dtype): (&PlSmallStr, &DataType)| {
            if let Some(distinct) = table.statistics.distinct.get(name.as_str()) {
                size.distinct.insert(name.clone(), *distinct);
            }
            Column {
                table: None,
                name: name.to_string(),
                id: name.clone(),
                dtype: dtype.clone(),
                nullable: !table.statistics.without_nulls.contains(name.as_str()),
                hidden: false,
                level: 0,
            }
        };
        let columns = schema.iter().map(column).collect();
        self.under(Relation::new(frame, columns, size), alias, Some(&written.value), span)
    }

    /// A relation under the name of a table: its columns are this table's from here on, each use with columns of
    /// its own.
    pub(super) fn under(
        &mut self,
        relation: Relation,
        alias: Option<&TableAlias>,
        name: Option<&str>,
        span: Span,
    ) -> Result<Relation, Failure> {
        let table = alias.map(|alias| alias.name.value.clone()).or_else(|| name.map(str::to_owned));
        let names: Vec<Ident> = alias
            .map(|alias| alias.columns.iter().map(|column| column.name.clone()).collect())
            .unwrap_or_default();
        self.labelled(relation, table, &names, name.is_some(), span)
    }

    /// The same with the names of its columns given. Rows that may be `used_again` get columns of their own.
    pub(super) fn labelled(
        &mut self,
        relation: Relation,
        table: Option<String>,
        names: &[Ident],
        used_again: bool,
        span: Span,
    ) -> Result<Relation, Failure> {
        let columns: Vec<Column> = relation.visible().cloned().collect();
        if names.len() > columns.len() {
            let message = format!("{} columns are named of a table of {}", names.len(), columns.len());
            return Err(wrong(&message, span));
        }
        let mut size = Size { distinct: Default::default(), ..relation.size.clone() };
        let mut select = Vec::new();
        let mut renamed = false;
        let mut labelled = Vec::new();
        for (index, column) in columns.into_iter().enumerate() {
            let id = if used_again { self.fresh(&column.id) } else { column.id.clone() };
            renamed |= id != column.id;
            select.push(Expr::Column(column.id.clone()).alias(id.clone()));
            if let Some(distinct) = relation.size.distinct.get(&column.id) {
                size.distinct.insert(id.clone(), *distinct);
            }
            let name = names.get(index).map_or_else(|| column.name.clone(), |name| name.value.clone());
            labelled.push(Column { table: table.clone(), name, id, hidden: false, ..column });
        }
        let frame = if renamed { relation.frame.select(select) } else { relation.frame };
        Ok(Relation::new(frame, labelled, size))
    }

    /// `read_parquet('...')` and its like, and other tables that Polars SQL makes by itself.
    fn table_function(
        &mut self,
        factor: &TableFactor,
        name: &ObjectName,
        alias: Option<&TableAlias>,
        span: Span,
    ) -> Result<Relation, Failure> {
        let mut plain = factor.clone();
        if let TableFactor::Table { alias, .. } = &mut plain {
            *alias = None;
        }
        let relation = self.by_polars(&format!("SELECT * FROM {plain}"), span)?;
        self.under(relation, alias, Some(&ident(name, span)?.value), span)
    }

    fn unnest(&mut self, factor: &TableFactor, span: Span) -> Result<Relation, Failure> {
        let TableFactor::UNNEST { alias, .. } = factor else {
            return Err(Failure::internal("not an UNNEST"));
        };
        let relation = self.by_polars(&format!("SELECT * FROM {factor}"), span)?;
        let table = alias.as_ref().map(|alias| alias.name.value.clone());
        self.labelled(relation, table, &[], true, span)
    }

    fn by_polars(&mut self, text: &str, span: Span) -> Result<Relation, Failure> {
        let frame = polars::sql::SQLContext::new().execute(text);
        let mut frame = frame.map_err(|error| rejected(error, span))?;
        let schema = frame.collect_schema().map_err(|error| rejected(error, Span::empty()))?;
        let column = |(name, dtype): (&PlSmallStr, &DataType)| Column {
            table: None,
            name: name.to_string(),
            id: name.clone(),
            dtype: dtype.clone(),
            nullable: true,
            hidden: false,
            level: 0,
        };
        let columns = schema.iter().map(column).collect();
        Ok(Relation::new(frame, columns, Size::of(super::statistics::UNKNOWN_ROWS)))
    }
}

/// All columns of several relations, to look names up in.
pub(super) fn columns_of(relations: &[Relation]) -> Relation {
    let columns = relations.iter().flat_map(|relation| relation.columns.clone()).collect();
    let mut all = Relation::new(LazyFrame::default(), columns, Size::of(1.0));
    all.equal = relations.iter().flat_map(|relation| relation.equal.clone()).collect();
    all
}

/// The name of a table without its schema.
pub(super) fn ident(name: &ObjectName, span: Span) -> Result<Ident, Failure> {
    let ident = name.0.last().and_then(|part| part.as_ident()).cloned();
    ident.ok_or_else(|| unsupported(&format!("the name {name}"), span))
}

fn turned(keys: Vec<(Typed, Typed)>) -> Vec<(Typed, Typed)> {
    keys.into_iter().map(|(left, right)| (right, left)).collect()
}

/// An equality between something of the left and something of the right.
fn sides(expr: &Expr, left: &Relation, right: &Relation) -> Option<(Typed, Typed)> {
    let Expr::BinaryExpr { left: a, op: polars_plan::dsl::Operator::Eq, right: b } = expr else {
        return None;
    };
    let typed = |expr: &Expr, relation: &Relation| {
        let ids = leaves(expr);
        if ids.is_empty() || !ids.iter().all(|id| relation.holds(id)) {
            return None;
        }
        let fields =
            relation.columns.iter().map(|column| Field::new(column.id.clone(), column.dtype.clone()));
        let dtype = expr.to_field(&Schema::from_iter(fields)).ok()?.dtype;
        Some(Typed::new(expr.clone(), dtype))
    };
    let straight = || Some((typed(a, left)?, typed(b, right)?));
    let crossed = || Some((typed(b, left)?, typed(a, right)?));
    straight().or_else(crossed)
}
