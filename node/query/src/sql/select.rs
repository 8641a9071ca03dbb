//! One `SELECT`: from its relations to its result, clause by clause in the order of their meaning.
//!
//! ```text
//!   FROM, WHERE -> GROUP BY, aggregates -> HAVING -> windows, QUALIFY -> the list -> DISTINCT -> ORDER BY -> LIMIT
//! ```
//!
//! A correlated subquery *carries* columns through all of it: those by which its rows belong to rows of the query
//! around. Groups, distinct rows and limits are per value of these.

use floe_protocol::Failure;
use polars::prelude::*;
use sqlparser::ast::{
    Distinct, ExceptSelectItem, ExcludeSelectItem, Expr as Sql, Function, GroupByExpr, Ident,
    NamedWindowDefinition, NamedWindowExpr, OrderBy, OrderByExpr, OrderByKind, OrderByOptions, Query,
    RenameSelectItem, Select, SelectItem, SelectItemQualifiedWildcardKind, Spanned, Value, VisitorMut,
    WildcardAdditionalOptions, WindowSpec, WindowType,
};
use sqlparser::tokenizer::Span;

use super::aggregate::{Grouped, calls, groups};
use super::conjuncts::{conjuncts, has_subquery};
use super::delegate;
use super::from::{columns_of, ident};
use super::joins::keep;
use super::place::{unsupported, wrong};
use super::planner::Planner;
use super::query::Limit;
use super::relation::{Column, Relation, Size, leaves};
use super::scalar::{Outer, Scope};
use super::value::{Typed, common};
use super::walk::walk_mut;
use super::windows::Rows;

/// A planned query.
pub(super) struct Block {
    /// Its columns are those of the result, in order; the frame also has those carried.
    pub(super) relation: Relation,
    pub(super) carried: Vec<PlSmallStr>,
    /// Which expressions of the query around the carried columns equal.
    pub(super) pairs: Vec<(Typed, Typed)>,
    /// Exactly one row, or one for each value of the carried columns that has rows.
    pub(super) one_row: bool,
    /// The first column where a correlated aggregate has no rows at all.
    pub(super) if_empty: Option<Expr>,
}

/// An item of the list, with its name in the result.
struct Item {
    name: String,
    typed: Typed,
    table: Option<String>,
}

impl Planner<'_> {
    /// Plans a `SELECT`. With `exists`, only whether there are rows is wanted: the list is left out where it does not
    /// matter.
    pub(super) fn select(
        &mut self,
        select: &Select,
        order_by: Option<&OrderBy>,
        limit: Limit,
        outer: Option<&Outer>,
        exists: bool,
    ) -> Result<Block, Failure> {
        refuse_clauses(select)?;
        let select = &named_windows(select)?;
        let span = select.select_token.0.span;
        let mut pool = self.from(&select.from, outer)?;
        let domain = outer.and_then(|outer| outer.domain.clone());
        if pool.relations.is_empty() {
            // One row, which has to have a column: of a frame without any, Polars loses the row where it prunes columns.
            let row = Series::new(self.fresh("row"), [0i32]).into_column();
            let frame = DataFrame::new(1, vec![row]).map_err(crate::query_failure)?.lazy();
            pool.relations.push(Relation::new(frame, Vec::new(), Size::of(1.0)));
        }
        let mut carried: Vec<PlSmallStr> = Vec::new();
        if let Some(domain) = domain {
            carried.extend(domain.columns.iter().map(|column| column.id.clone()));
            pool.relations.push(domain);
        }

        // Conditions without queries are keys and filters of the joins.
        let conditions = select.selection.as_ref().map(conjuncts).unwrap_or_default();
        let (with_queries, plain): (Vec<Sql>, Vec<Sql>) = conditions.into_iter().partition(has_subquery);
        let mut all = columns_of(&pool.relations);
        let mut pairs: Vec<(Typed, Typed)> = Vec::new();
        for condition in &plain {
            if let Some(outer) = outer {
                outer.in_where.set(true);
            }
            let typed = self.condition(condition, &mut Scope::over(&mut all, outer));
            if let Some(outer) = outer {
                outer.in_where.set(false);
            }
            let typed = typed?;
            let foreign = leaves(&typed.expr).iter().any(|id| !all.holds(id));
            match (foreign, outer) {
                (true, Some(outer)) => match correlation(&typed.expr, &all, outer) {
                    Some(pair) => pairs.push(pair),
                    None => outer.elsewhere.set(true),
                },
                _ => pool.conditions.push(typed),
            }
        }
        let mut late = Vec::new();
        for condition in with_queries {
            if !self.filter_early(&condition, &mut pool.relations)? {
                late.push(condition);
            }
        }
        let mut relation = self.join_all(pool)?;
        for (_, inner) in &mut pairs {
            let id = match &inner.expr {
                Expr::Column(id) => id.clone(),
                _ => {
                    let id = self.fresh("key");
                    relation.frame =
                        relation.frame.clone().with_columns([inner.expr.clone().alias(id.clone())]);
                    id
                }
            };
            inner.expr = Expr::Column(id.clone());
            if !carried.contains(&id) {
                carried.push(id.clone());
            }
            if !relation.holds(&id) {
                relation.columns.push(carried_column(&id, inner));
            }
        }
        for condition in &late {
            self.filter_by_query(condition, &mut relation, outer)?;
        }

        let items = self.items(select, &relation)?;
        let (relation, computed, grouped) =
            self.grouping(select, &items, order_by, relation, &carried, outer)?;
        let aggregated = grouped.is_some();
        if exists && !aggregated && select.qualify.is_none() {
            return Ok(Block {
                relation: without_columns(relation),
                carried,
                pairs,
                one_row: false,
                if_empty: None,
            });
        }
        self.finish(Rest {
            select,
            items,
            relation,
            computed,
            grouped,
            carried,
            pairs,
            order_by,
            limit,
            outer,
            span,
        })
    }

    /// Groups the rows if the statement has groups.
    #[expect(clippy::type_complexity)]
    fn grouping(
        &mut self,
        select: &Select,
        items: &[(Option<String>, SqlItem)],
        order_by: Option<&OrderBy>,
        mut relation: Relation,
        carried: &[PlSmallStr],
        outer: Option<&Outer>,
    ) -> Result<(Relation, Vec<(Sql, Typed)>, Option<Before>), Failure> {
        let mut found = Vec::new();
        let expressions = items.iter().filter_map(|(_, item)| match item {
            SqlItem::Expr(expr) => Some(expr),
            SqlItem::Column(_) => None,
        });
        for expr in expressions.chain(&select.having).chain(&select.qualify) {
            calls(expr, groups, &mut found);
        }
        if let Some(OrderByKind::Expressions(list)) = order_by.map(|order_by| &order_by.kind) {
            for OrderByExpr { expr, .. } in list {
                calls(expr, groups, &mut found);
            }
        }
        let keys: Vec<Sql> = match &select.group_by {
            GroupByExpr::Expressions(keys, modifiers) => {
                if !modifiers.is_empty() {
                    return Err(unsupported(
                        "GROUP BY with ROLLUP, CUBE or TOTALS",
                        select.select_token.0.span,
                    ));
                }
                match keys.as_slice() {
                    [Sql::Identifier(name)]
                        if name.value.eq_ignore_ascii_case("all") && name.quote_style.is_none() =>
                    {
                        keys_of_all(items)
                    }
                    [Sql::Tuple(empty)] if empty.is_empty() => Vec::new(),
                    keys => keys.to_vec(),
                }
            }
            GroupByExpr::All(modifiers) if modifiers.is_empty() => keys_of_all(items),
            GroupByExpr::All(_) => {
                return Err(unsupported("GROUP BY with ROLLUP, CUBE or TOTALS", select.select_token.0.span));
            }
        };
        if keys.is_empty() && found.is_empty() && select.having.is_none() {
            return Ok((relation, Vec::new(), None));
        }
        let mut typed_keys = Vec::new();
        for key in keys {
            let meant = position_or_alias(&key, items, &relation)?;
            let typed = match meant {
                Some(SqlItem::Column(column)) => {
                    typed_keys.push((written(&column), column.typed()));
                    column.typed()
                }
                Some(SqlItem::Expr(expr)) => {
                    let typed = self.scalar(&expr, &mut Scope::over(&mut relation, outer))?;
                    typed_keys.push((expr, typed.clone()));
                    typed
                }
                None => self.scalar(&key, &mut Scope::over(&mut relation, outer))?,
            };
            typed_keys.push((key, typed));
        }
        // A constant key parts nothing, and a position is not the number it is written as.
        let typed_keys = typed_keys
            .into_iter()
            .filter(|(key, _)| !matches!(key, Sql::Value(value) if matches!(value.value, Value::Number(..))))
            .collect();
        let ungrouped = relation.columns.clone();
        let Grouped { relation, computed, aggregates, global } =
            self.group(relation, typed_keys, &found, carried, outer)?;
        let empty =
            aggregates.list.iter().map(|(id, _, empty)| (id.to_string(), Typed::scalar(empty.clone())));
        Ok((relation, computed, Some(Before { ungrouped, empty: empty.collect(), global })))
    }

    fn finish(&mut self, rest: Rest<'_>) -> Result<Block, Failure> {
        let Rest {
            select,
            items,
            mut relation,
            mut computed,
            grouped,
            carried,
            pairs,
            order_by,
            limit,
            outer,
            span,
        } = rest;
        let ungrouped: Vec<Column> =
            grouped.as_ref().map(|before| before.ungrouped.clone()).unwrap_or_default();
        let global = grouped.as_ref().is_some_and(|before| before.global);
        macro_rules! scope {
            ($aliases:expr) => {
                Scope {
                    relation: &mut relation,
                    outer,
                    computed: &computed,
                    ungrouped: &ungrouped,
                    aliases: $aliases,
                }
            };
        }
        if let Some(having) = &select.having {
            // Aliases of the list may stand in HAVING, as in most dialects.
            let mut aliases = Vec::new();
            for (name, item) in &items {
                if let (Some(name), SqlItem::Expr(expr)) = (name, item)
                    && !has_subquery(expr)
                    && let Ok(typed) = self.scalar(expr, &mut scope!(&[]))
                {
                    aliases.push((name.clone(), typed));
                }
            }
            let condition = self.condition(having, &mut scope!(&aliases))?;
            keep(&mut relation, vec![condition.expr]);
        }

        // Windows become columns.
        let mut windows = Vec::new();
        let window = |function: &Function| function.over.is_some();
        for (_, item) in &items {
            if let SqlItem::Expr(expr) = item {
                calls(expr, window, &mut windows);
            }
        }
        if let Some(qualify) = &select.qualify {
            calls(qualify, window, &mut windows);
        }
        if let Some(OrderByKind::Expressions(list)) = order_by.map(|order_by| &order_by.kind) {
            for OrderByExpr { expr, .. } in list {
                calls(expr, window, &mut windows);
            }
        }
        if !windows.is_empty() && !carried.is_empty() {
            return Err(unsupported("a window function in a correlated subquery", span));
        }
        for window in windows {
            let mut rows =
                Rows { relation: &mut relation, computed: &computed, ungrouped: &ungrouped, outer };
            let typed = self.window(&window, &mut rows)?;
            computed.push((window, typed));
        }

        // The list.
        let mut planned: Vec<Item> = Vec::new();
        for (alias, item) in &items {
            let (typed, table) = match item {
                SqlItem::Column(column) if grouped.is_some() && !relation.holds(&column.id) => {
                    let message =
                        format!("the column {} must stand in GROUP BY or in an aggregate", column.name);
                    return Err(wrong(&message, span));
                }
                SqlItem::Column(column) => (column.typed(), column.table.clone()),
                SqlItem::Expr(expr) => {
                    let typed = self.scalar(expr, &mut scope!(&[]))?;
                    let table = match &typed.expr {
                        Expr::Column(id) => {
                            let column = relation.columns.iter().find(|column| column.id == *id);
                            column.and_then(|column| column.table.clone())
                        }
                        _ => None,
                    };
                    (typed, table)
                }
            };
            let name = alias.clone().unwrap_or_else(|| typed.name.clone());
            planned.push(Item { name, typed, table });
        }
        let aliases: Vec<(String, Typed)> =
            planned.iter().map(|item| (item.name.clone(), item.typed.clone())).collect();
        if let Some(qualify) = &select.qualify {
            let condition = self.condition(qualify, &mut scope!(&aliases))?;
            keep(&mut relation, vec![condition.expr]);
        }
        let mut sort = Vec::new();
        for (expr, options) in order_keys(order_by, planned.len())? {
            let key = match expr {
                Key::Position(position) => planned[position].typed.clone(),
                Key::Expr(Sql::Identifier(name)) if unique_alias(&aliases, &name).is_some() => {
                    unique_alias(&aliases, &name).unwrap_or_else(Typed::null)
                }
                Key::Expr(expr) => self.scalar(&expr, &mut scope!(&aliases))?,
            };
            sort.push((key, options));
        }
        let on = match &select.distinct {
            Some(Distinct::On(exprs)) => {
                let mut on = Vec::new();
                for expr in exprs {
                    on.push(self.scalar(expr, &mut scope!(&aliases))?);
                }
                Some(on)
            }
            _ => None,
        };

        let if_empty = match (&grouped, planned.first()) {
            (Some(Before { empty, global: true, .. }), Some(first)) if !carried.is_empty() => {
                if select.having.is_some() {
                    return Err(unsupported("HAVING without GROUP BY in a correlated subquery", span));
                }
                Some(delegate::put_in(first.typed.expr.clone(), empty))
            }
            _ => None,
        };

        // One select makes the columns of the result, those carried, and those to sort by.
        let mut made: Vec<Expr> = Vec::new();
        let mut columns: Vec<Column> = Vec::new();
        for Item { name, typed, table } in &planned {
            let id = match &typed.expr {
                Expr::Column(id)
                    if !columns.iter().any(|column| column.id == *id) && !carried.contains(id) =>
                {
                    id.clone()
                }
                _ => self.fresh(name),
            };
            made.push(match &typed.expr {
                Expr::Column(own) if *own == id => typed.expr.clone(),
                expr => expr.clone().alias(id.clone()),
            });
            let dtype = typed.dtype.clone();
            columns.push(Column {
                table: table.clone(),
                name: name.clone(),
                id,
                dtype,
                nullable: typed.nullable,
                hidden: false,
                level: 0,
            });
        }
        made.extend(carried.iter().cloned().map(Expr::Column));
        let hide = |planner: &mut Self, made: &mut Vec<Expr>, typed: &Typed| {
            let item = planned.iter().position(|item| item.typed.expr == typed.expr);
            match item {
                Some(item) => columns[item].id.clone(),
                None => {
                    let id = planner.fresh("order");
                    made.push(typed.expr.clone().alias(id.clone()));
                    id
                }
            }
        };
        let plain = matches!(select.distinct, Some(Distinct::Distinct));
        let before = made.len();
        let sort: Vec<(PlSmallStr, OrderByOptions)> =
            sort.iter().map(|(typed, options)| (hide(self, &mut made, typed), *options)).collect();
        if plain && made.len() > before {
            let message = "with DISTINCT, ORDER BY can only name columns of the list";
            return Err(wrong(message, span));
        }
        let on: Option<Vec<PlSmallStr>> =
            on.map(|on| on.iter().map(|typed| hide(self, &mut made, typed)).collect());
        let bare =
            select.from.is_empty() && select.selection.is_none() && grouped.is_none() && carried.is_empty();
        if !bare && made.iter().all(|expr| leaves(expr).is_empty()) {
            // A select of constants would be one row: something as long as the rows goes with it.
            let rows = self.fresh("rows");
            relation.frame = relation.frame.clone().with_columns([lit(0i32).alias(rows.clone())]);
            made.push(Expr::Column(rows));
        }
        let width = made.len();
        let mut frame = relation.frame.select(made);
        if plain {
            let all: Vec<PlSmallStr> =
                columns.iter().map(|column| column.id.clone()).chain(carried.iter().cloned()).collect();
            // In the order of their first rows, as Polars has them.
            frame = frame.unique_stable(Some(by_name(all, true, false)), UniqueKeepStrategy::Any);
        }
        if !sort.is_empty() {
            frame = sorted(frame, &sort);
        }
        if let Some(on) = on {
            let subset = on.into_iter().chain(carried.iter().cloned());
            frame = frame.unique_stable(Some(by_name(subset, true, false)), UniqueKeepStrategy::First);
        }
        let frame = limited(frame, limit, &carried);
        let keep_only: Vec<Expr> = columns
            .iter()
            .map(|column| column.id.clone())
            .chain(carried.iter().filter(|id| !columns.iter().any(|column| column.id == **id)).cloned())
            .map(Expr::Column)
            .collect();
        let frame =
            if keep_only.is_empty() || keep_only.len() == width { frame } else { frame.select(keep_only) };
        let mut size = relation.size;
        if let Some(most) = limit.rows {
            size.rows = size.rows.min(most as f64);
        }
        let mut relation = Relation::new(frame, columns, size);
        for (_, inner) in &pairs {
            if let Expr::Column(id) = &inner.expr
                && !relation.holds(id)
            {
                relation.columns.push(Column { level: 1, hidden: true, ..carried_column(id, inner) });
            }
        }
        let one_row = global && select.having.is_none() && limit.rows != Some(0) && limit.offset == 0;
        Ok(Block { relation, carried, pairs, one_row, if_empty })
    }

    /// The list with its wildcards spelt out.
    fn items(
        &mut self,
        select: &Select,
        relation: &Relation,
    ) -> Result<Vec<(Option<String>, SqlItem)>, Failure> {
        let mut items = Vec::new();
        for item in &select.projection {
            match item {
                SelectItem::UnnamedExpr(expr) => items.push((None, SqlItem::Expr(expr.clone()))),
                SelectItem::ExprWithAlias { expr, alias } => {
                    items.push((Some(alias.value.clone()), SqlItem::Expr(expr.clone())));
                }
                SelectItem::Wildcard(options) => {
                    let columns: Vec<Column> = relation.visible().cloned().collect();
                    wildcard(columns, options, &mut items)?;
                }
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), options) => {
                    let table = ident(name, item.span())?;
                    let columns: Vec<Column> = relation
                        .columns
                        .iter()
                        .filter(|column| {
                            column.level == 0
                                && column.table.as_deref().is_some_and(|known| {
                                    known == table.value || known.eq_ignore_ascii_case(&table.value)
                                })
                        })
                        .cloned()
                        .collect();
                    if columns.is_empty() {
                        return Err(wrong(
                            &format!("{}.*: there is no table {}", table.value, table.value),
                            table.span,
                        ));
                    }
                    wildcard(columns, options, &mut items)?;
                }
                other => return Err(unsupported("this item of the list", other.span())),
            }
        }
        Ok(items)
    }
}

/// What `finish` needs.
struct Rest<'r> {
    select: &'r Select,
    items: Vec<(Option<String>, SqlItem)>,
    relation: Relation,
    computed: Vec<(Sql, Typed)>,
    grouped: Option<Before>,
    carried: Vec<PlSmallStr>,
    pairs: Vec<(Typed, Typed)>,
    order_by: Option<&'r OrderBy>,
    limit: Limit,
    outer: Option<&'r Outer>,
    span: Span,
}

/// What was before a grouping.
struct Before {
    ungrouped: Vec<Column>,
    /// The aggregates' values where there is no row.
    empty: Vec<(String, Typed)>,
    global: bool,
}

/// An item of a list: written out, or found by a wildcard.
#[derive(Clone)]
enum SqlItem {
    Expr(Sql),
    Column(Column),
}

fn carried_column(id: &PlSmallStr, typed: &Typed) -> Column {
    Column {
        table: None,
        name: id.to_string(),
        id: id.clone(),
        dtype: typed.dtype.clone(),
        nullable: true,
        hidden: true,
        level: 1,
    }
}

fn without_columns(relation: Relation) -> Relation {
    let columns =
        relation.columns.into_iter().map(|column| Column { level: 1, hidden: true, ..column }).collect();
    Relation { columns, ..relation }
}

/// An equality of something of the rows and something of the query around: `(around, own)`.
fn correlation(expr: &Expr, all: &Relation, outer: &Outer) -> Option<(Typed, Typed)> {
    let Expr::BinaryExpr { left, op: polars_plan::dsl::Operator::Eq, right } = expr else {
        return None;
    };
    let typed = |expr: &Expr, columns: &[Column]| {
        let ids = leaves(expr);
        if ids.is_empty() || !ids.iter().all(|id| columns.iter().any(|column| column.id == *id)) {
            return None;
        }
        let fields = columns.iter().map(|column| Field::new(column.id.clone(), column.dtype.clone()));
        let dtype = expr.to_field(&Schema::from_iter(fields)).ok()?.dtype;
        Some(Typed::new(expr.clone(), dtype))
    };
    let straight = || Some((typed(left, &outer.columns)?, typed(right, &all.columns)?));
    let crossed = || Some((typed(right, &outer.columns)?, typed(left, &all.columns)?));
    straight().or_else(crossed)
}

/// `GROUP BY ALL`: what is no aggregate.
fn keys_of_all(items: &[(Option<String>, SqlItem)]) -> Vec<Sql> {
    let key = |(_, item): &(Option<String>, SqlItem)| match item {
        SqlItem::Expr(expr) => {
            let mut found = Vec::new();
            calls(expr, groups, &mut found);
            found.is_empty().then(|| expr.clone())
        }
        SqlItem::Column(column) => Some(written(column)),
    };
    items.iter().filter_map(key).collect()
}

/// The name of a column as a text would have it.
fn written(column: &Column) -> Sql {
    let name = Ident::with_quote('"', column.name.clone());
    match &column.table {
        Some(table) => Sql::CompoundIdentifier(vec![Ident::with_quote('"', table.clone()), name]),
        None => Sql::Identifier(name),
    }
}

/// `GROUP BY 2`, or the alias of an item where no column has the name.
fn position_or_alias(
    key: &Sql,
    items: &[(Option<String>, SqlItem)],
    relation: &Relation,
) -> Result<Option<SqlItem>, Failure> {
    if let Some(position) = position("GROUP BY", key, items.len())? {
        return Ok(Some(items[position].1.clone()));
    }
    let Sql::Identifier(name) = key else { return Ok(None) };
    if relation.visible().any(|column| column.name.eq_ignore_ascii_case(&name.value)) {
        return Ok(None);
    }
    let found = items
        .iter()
        .find(|(alias, _)| alias.as_deref().is_some_and(|alias| alias.eq_ignore_ascii_case(&name.value)));
    Ok(found.map(|(_, item)| item.clone()))
}

/// The place in the list, from 0, that a whole number means in a clause.
pub(super) fn position(clause: &str, expr: &Sql, width: usize) -> Result<Option<usize>, Failure> {
    let number = match expr {
        Sql::Value(value) => match &value.value {
            Value::Number(text, _) => text.parse::<usize>().ok(),
            _ => None,
        },
        _ => None,
    };
    let Some(number) = number else { return Ok(None) };
    match number.checked_sub(1).filter(|position| *position < width) {
        Some(position) => Ok(Some(position)),
        None => {
            let columns = if width == 1 { "one column".to_owned() } else { format!("{width} columns") };
            Err(wrong(&format!("{clause} {number}: the result has {columns}"), expr.span()))
        }
    }
}

#[expect(clippy::large_enum_variant, reason = "a few of them, for a moment")]
enum Key {
    Position(usize),
    Expr(Sql),
}

/// What to sort by, spelt out.
fn order_keys(order_by: Option<&OrderBy>, width: usize) -> Result<Vec<(Key, OrderByOptions)>, Failure> {
    let Some(order_by) = order_by else {
        return Ok(Vec::new());
    };
    let all =
        |options: &OrderByOptions| (0..width).map(|position| (Key::Position(position), *options)).collect();
    let list = match &order_by.kind {
        OrderByKind::All(options) => return Ok(all(options)),
        OrderByKind::Expressions(list) => list,
    };
    if let [OrderByExpr { expr: Sql::Identifier(name), options, .. }] = list.as_slice()
        && name.value.eq_ignore_ascii_case("all")
        && name.quote_style.is_none()
    {
        return Ok(all(options));
    }
    let key = |item: &OrderByExpr| {
        if item.with_fill.is_some() {
            return Err(unsupported("WITH FILL", item.expr.span()));
        }
        let position = position("ORDER BY", &item.expr, width)?;
        let key = position.map_or_else(|| Key::Expr(item.expr.clone()), Key::Position);
        Ok((key, item.options))
    };
    list.iter().map(key).collect()
}

/// The only item of a name.
fn unique_alias(aliases: &[(String, Typed)], name: &Ident) -> Option<Typed> {
    let found = aliases.iter().find(|(alias, _)| *alias == name.value).or_else(|| {
        aliases
            .iter()
            .find(|(alias, _)| name.quote_style.is_none() && alias.eq_ignore_ascii_case(&name.value))
    });
    found.map(|(_, typed)| typed.clone())
}

/// Nulls come last in rising order and first in falling order, unless told.
pub(super) fn sorted(frame: LazyFrame, by: &[(PlSmallStr, OrderByOptions)]) -> LazyFrame {
    let falling: Vec<bool> = by.iter().map(|(_, options)| !options.asc.unwrap_or(true)).collect();
    let nulls_last: Vec<bool> = by
        .iter()
        .zip(&falling)
        .map(|((_, options), falling)| !options.nulls_first.unwrap_or(*falling))
        .collect();
    let by: Vec<Expr> = by.iter().map(|(id, _)| Expr::Column(id.clone())).collect();
    let options =
        SortMultipleOptions::default().with_order_descending_multi(falling).with_nulls_last_multi(nulls_last);
    frame.sort_by_exprs(by, options)
}

/// The rows that a `LIMIT` and `OFFSET` leave, for each value of the carried columns.
pub(super) fn limited(frame: LazyFrame, limit: Limit, carried: &[PlSmallStr]) -> LazyFrame {
    if limit.rows.is_none() && limit.offset == 0 {
        return frame;
    }
    if carried.is_empty() {
        let most = limit.rows.map_or(IdxSize::MAX, |rows| IdxSize::try_from(rows).unwrap_or(IdxSize::MAX));
        return frame.slice(i64::try_from(limit.offset).unwrap_or(i64::MAX), most);
    }
    let by: Vec<Expr> = carried.iter().cloned().map(Expr::Column).collect();
    let position = int_range(lit(0i64), len(), 1, DataType::Int64);
    let position = position.over(by);
    let Ok(position) = position else {
        return frame;
    };
    let from = i64::try_from(limit.offset).unwrap_or(i64::MAX);
    let mut within = position.clone().gt_eq(lit(from));
    if let Some(rows) = limit.rows {
        within = within.and(position.lt(lit(from.saturating_add(i64::try_from(rows).unwrap_or(i64::MAX)))));
    }
    frame.filter(within)
}

/// `*` with what is taken out, replaced or renamed.
fn wildcard(
    columns: Vec<Column>,
    options: &WildcardAdditionalOptions,
    items: &mut Vec<(Option<String>, SqlItem)>,
) -> Result<(), Failure> {
    let span = options.wildcard_token.0.span;
    let mut without: Vec<String> = Vec::new();
    match &options.opt_exclude {
        Some(ExcludeSelectItem::Single(name)) => without.push(ident(name, span)?.value),
        Some(ExcludeSelectItem::Multiple(names)) => {
            for name in names {
                without.push(ident(name, span)?.value);
            }
        }
        None => {}
    }
    if let Some(ExceptSelectItem { first_element, additional_elements }) = &options.opt_except {
        without.push(first_element.value.clone());
        without.extend(additional_elements.iter().map(|name| name.value.clone()));
    }
    let renames = match &options.opt_rename {
        Some(RenameSelectItem::Single(one)) => vec![one.clone()],
        Some(RenameSelectItem::Multiple(many)) => many.clone(),
        None => Vec::new(),
    };
    let like = match &options.opt_ilike {
        Some(ilike) => {
            let pattern = ilike.pattern.to_lowercase();
            Some(move |name: &str| like(&pattern, &name.to_lowercase()))
        }
        None => None,
    };
    for column in columns {
        if without.contains(&column.name) || like.as_ref().is_some_and(|like| !like(&column.name)) {
            continue;
        }
        let replaced = options
            .opt_replace
            .as_ref()
            .and_then(|replace| replace.items.iter().find(|item| item.column_name.value == column.name));
        let rename = renames.iter().find(|rename| rename.ident.value == column.name);
        let name = rename.map_or_else(|| column.name.clone(), |rename| rename.alias.value.clone());
        let item = match replaced {
            Some(replaced) => SqlItem::Expr(replaced.expr.clone()),
            None => SqlItem::Column(column),
        };
        items.push((Some(name), item));
    }
    Ok(())
}

/// `LIKE` for names of columns: `%` is any text, `_` any character.
fn like(pattern: &str, text: &str) -> bool {
    let mut reached: Vec<bool> = std::iter::once(true).chain(text.chars().map(|_| false)).collect();
    for wanted in pattern.chars() {
        let mut next = vec![false; reached.len()];
        if wanted == '%' {
            let mut any = false;
            for (at, reached) in reached.iter().enumerate() {
                any |= reached;
                next[at] = any;
            }
        } else {
            for (at, found) in text.chars().enumerate() {
                next[at + 1] = reached[at] && (wanted == '_' || wanted == found);
            }
        }
        reached = next;
    }
    reached.last().copied().unwrap_or(false)
}

/// Windows by the names of a `WINDOW` clause, put where they are used or built on.
fn named_windows(select: &Select) -> Result<Select, Failure> {
    /// Those of a subquery are its own: it has been entered so many times more than left.
    struct Named<'n>(&'n [NamedWindowDefinition], u32);
    impl VisitorMut for Named<'_> {
        type Break = Failure;
        fn pre_visit_query(&mut self, _: &mut Query) -> std::ops::ControlFlow<Failure> {
            self.1 += 1;
            std::ops::ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &mut Query) -> std::ops::ControlFlow<Failure> {
            self.1 -= 1;
            std::ops::ControlFlow::Continue(())
        }
        fn pre_visit_expr(&mut self, expr: &mut Sql) -> std::ops::ControlFlow<Failure> {
            let span = expr.span();
            if self.1 == 0
                && let Sql::Function(function) = expr
                && let Some(over) = &function.over
            {
                match named_window(over, self.0, span) {
                    Ok(spec) => function.over = Some(WindowType::WindowSpec(spec)),
                    Err(failure) => return std::ops::ControlFlow::Break(failure),
                }
            }
            std::ops::ControlFlow::Continue(())
        }
    }
    let mut select = select.clone();
    let windows = std::mem::take(&mut select.named_window);
    match walk_mut(&mut select, &mut Named(&windows, 0)) {
        std::ops::ControlFlow::Break(failure) => Err(failure),
        std::ops::ControlFlow::Continue(()) => Ok(select),
    }
}

/// A window with all that the windows have which it is built on.
fn named_window(
    over: &WindowType,
    windows: &[NamedWindowDefinition],
    span: Span,
) -> Result<WindowSpec, Failure> {
    let nothing = || WindowSpec {
        window_name: None,
        partition_by: Vec::new(),
        order_by: Vec::new(),
        window_frame: None,
    };
    let (mut spec, mut wanted) = match over {
        WindowType::WindowSpec(spec) => {
            (WindowSpec { window_name: None, ..spec.clone() }, spec.window_name.clone())
        }
        WindowType::NamedWindow(name) => (nothing(), Some(name.clone())),
    };
    // One that is built on itself comes to no end.
    for _ in 0..=windows.len() {
        let Some(name) = wanted.take() else { return Ok(spec) };
        let Some(definition) = windows.iter().find(|definition| definition.0.value == name.value) else {
            return Err(wrong(&format!("there is no window {}", name.value), span));
        };
        let base = match &definition.1 {
            NamedWindowExpr::WindowSpec(base) => base.clone(),
            NamedWindowExpr::NamedWindow(other) => {
                WindowSpec { window_name: Some(other.clone()), ..nothing() }
            }
        };
        let twice = !spec.partition_by.is_empty() && !base.partition_by.is_empty()
            || !spec.order_by.is_empty() && !base.order_by.is_empty();
        if twice {
            let message = format!("PARTITION BY or ORDER BY beside that of the window {}", name.value);
            return Err(wrong(&message, span));
        }
        if spec.partition_by.is_empty() {
            spec.partition_by = base.partition_by;
        }
        if spec.order_by.is_empty() {
            spec.order_by = base.order_by;
        }
        spec.window_frame = spec.window_frame.or(base.window_frame);
        wanted = base.window_name;
    }
    Err(wrong("a window that is built on itself", span))
}

fn refuse_clauses(select: &Select) -> Result<(), Failure> {
    let span = select.select_token.0.span;
    let clauses = [
        (select.top.is_some(), "TOP"),
        (select.into.is_some(), "SELECT INTO"),
        (!select.lateral_views.is_empty(), "LATERAL VIEW"),
        (select.prewhere.is_some(), "PREWHERE"),
        (!select.connect_by.is_empty(), "CONNECT BY"),
        (!select.cluster_by.is_empty(), "CLUSTER BY"),
        (!select.distribute_by.is_empty(), "DISTRIBUTE BY"),
        (!select.sort_by.is_empty(), "SORT BY"),
        (select.value_table_mode.is_some(), "SELECT AS VALUE or STRUCT"),
        (select.exclude.is_some(), "EXCLUDE after the list"),
        (select.select_modifiers.is_some(), "a modifier of SELECT"),
    ];
    match clauses.iter().find(|(found, _)| *found) {
        Some((_, clause)) => Err(unsupported(clause, span)),
        None => Ok(()),
    }
}

/// The columns of several results under each other: of one type each.
pub(super) fn common_types(left: &[Column], right: &[Column], span: Span) -> Result<Vec<DataType>, Failure> {
    let pair = |(left, right): (&Column, &Column)| {
        common(&left.dtype, &right.dtype).ok_or_else(|| {
            let message = format!(
                "the column {} is of the type {} above and {} below",
                left.name, left.dtype, right.dtype
            );
            wrong(&message, span)
        })
    };
    left.iter().zip(right).map(pair).collect()
}
