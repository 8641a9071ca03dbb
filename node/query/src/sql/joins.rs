//! The relations of a `FROM` brought together: which conditions are keys, and in which order to join.
//!
//! ```text
//!   FROM a, b, c WHERE a.x = b.x AND b.y = c.y AND a.z > 3
//!     filters   a.z > 3, on a alone
//!     keys      {a.x, b.x}, {b.y, c.y}: classes of columns that are equal in all rows of the result
//!     order     smallest intermediate results first, as far as row counts tell; no product while there is a key
//! ```

use std::collections::BTreeSet;

use floe_protocol::Failure;
use polars::prelude::*;
use polars_plan::dsl::Operator;
use sqlparser::tokenizer::Span;

use super::conjuncts::{balanced, selectivity};
use super::planner::Planner;
use super::relation::{Column, Relation, Size, leaves};
use super::value::{Typed, common};

/// With more relations than this, only the smallest one is tried as the first.
const TRY_ALL_STARTS: usize = 12;

/// Relations to be joined and the conditions their rows must meet.
pub(super) struct Pool {
    pub(super) relations: Vec<Relation>,
    pub(super) conditions: Vec<Typed>,
}

/// Columns of different relations that are equal: `(relation, column)`.
type Class = Vec<(usize, PlSmallStr, DataType)>;

/// An equality that is not between two columns of one type.
struct Edge {
    left: (BTreeSet<usize>, Typed),
    right: (BTreeSet<usize>, Typed),
}

impl Planner<'_> {
    /// All rows of the relations that meet all conditions.
    pub(super) fn join_all(&mut self, pool: Pool) -> Result<Relation, Failure> {
        let Pool { mut relations, conditions } = pool;
        let columns: Vec<Column> = relations.iter().flat_map(|relation| relation.columns.clone()).collect();
        let mut equal: Vec<BTreeSet<PlSmallStr>> =
            relations.iter().flat_map(|relation| relation.equal.clone()).collect();
        let mut classes: Vec<Class> = Vec::new();
        let mut edges: Vec<Edge> = Vec::new();
        let mut rest: Vec<(BTreeSet<usize>, Expr)> = Vec::new();
        let mut filters: Vec<Vec<Expr>> = vec![Vec::new(); relations.len()];

        for condition in conditions {
            let used = owners(&condition.expr, &relations);
            match used.len() {
                1 => filters[*used.first().unwrap_or(&0)].push(condition.expr),
                _ => {
                    implied(&condition.expr, &used, &relations, &mut filters);
                    match equality(&condition.expr, &relations, &columns) {
                        Some((left, right)) => match (plain(&left.1), plain(&right.1)) {
                            (Some(a), Some(b)) if left.1.dtype == right.1.dtype => {
                                let owner =
                                    |side: &(BTreeSet<usize>, Typed)| side.0.first().copied().unwrap_or(0);
                                merge(
                                    &mut classes,
                                    [
                                        (owner(&left), a, left.1.dtype.clone()),
                                        (owner(&right), b, right.1.dtype.clone()),
                                    ],
                                );
                            }
                            _ => edges.push(Edge { left, right }),
                        },
                        None => rest.push((used, condition.expr)),
                    }
                }
            }
        }
        for class in &mut classes {
            // Two columns of one relation that must be equal: one stands for both from then on.
            class.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
            equal.push(class.iter().map(|(_, id, _)| id.clone()).collect());
            let mut kept: Class = Vec::new();
            for member in class.drain(..) {
                match kept.last() {
                    Some((relation, id, _)) if *relation == member.0 => {
                        filters[member.0].push(Expr::Column(id.clone()).eq(Expr::Column(member.1)));
                    }
                    _ => kept.push(member),
                }
            }
            *class = kept;
        }
        for (relation, filters) in relations.iter_mut().zip(filters) {
            keep(relation, filters);
        }

        let order = order(&relations, &classes, &edges);
        let mut parts: Vec<Option<Relation>> = relations.into_iter().map(Some).collect();
        let mut joined: Option<Relation> = None;
        let mut inside: BTreeSet<usize> = BTreeSet::new();
        for index in order {
            let Some(next) = parts.get_mut(index).and_then(Option::take) else {
                continue;
            };
            joined = Some(match joined {
                None => next,
                Some(left) => {
                    let keys = self.keys(index, &inside, &classes, &mut edges)?;
                    let rows = estimate(&left.size, &next.size, &keys);
                    let mut size = left.size.clone();
                    size.distinct.extend(next.size.distinct.clone());
                    size.rows = rows;
                    size.base = left.size.base.max(next.size.base);
                    let frame = self.join(left.frame, next.frame, &keys, JoinType::Inner, false)?;
                    Relation::new(frame, Vec::new(), size)
                }
            });
            inside.insert(index);
            if let Some(joined) = &mut joined {
                let mut now = Vec::new();
                rest.retain(|(used, condition)| {
                    let ready = used.is_subset(&inside);
                    if ready {
                        now.push(condition.clone());
                    }
                    !ready
                });
                // Equalities whose sides need several relations each.
                let mut later = Vec::new();
                for edge in edges.drain(..) {
                    if edge.left.0.is_subset(&inside) && edge.right.0.is_subset(&inside) {
                        now.push(same_type(edge.left.1, edge.right.1)?);
                    } else {
                        later.push(edge);
                    }
                }
                edges = later;
                keep(joined, now);
            }
        }
        let mut joined = joined.ok_or_else(|| Failure::internal("a FROM of nothing"))?;
        keep(&mut joined, rest.into_iter().map(|(_, condition)| condition).collect());
        joined.columns = columns;
        joined.equal = equal;
        Ok(joined)
    }

    /// The equalities by which a relation joins those inside.
    fn keys(
        &mut self,
        next: usize,
        inside: &BTreeSet<usize>,
        classes: &[Class],
        edges: &mut Vec<Edge>,
    ) -> Result<Vec<(Typed, Typed)>, Failure> {
        let mut keys = Vec::new();
        for class in classes {
            let own = class.iter().find(|(relation, ..)| *relation == next);
            let other = class.iter().find(|(relation, ..)| inside.contains(relation));
            if let (Some((_, right, dtype)), Some((_, left, _))) = (own, other) {
                let typed = |id: &PlSmallStr| Typed::new(Expr::Column(id.clone()), dtype.clone());
                keys.push((typed(left), typed(right)));
            }
        }
        let only = BTreeSet::from([next]);
        let mut later = Vec::new();
        for edge in edges.drain(..) {
            if edge.left.0.is_subset(inside) && edge.right.0 == only {
                keys.push((edge.left.1, edge.right.1));
            } else if edge.right.0.is_subset(inside) && edge.left.0 == only {
                keys.push((edge.right.1, edge.left.1));
            } else {
                later.push(edge);
            }
        }
        *edges = later;
        Ok(keys)
    }

    /// Joins two frames whose columns have names of their own. Keys may be expressions and of two types.
    pub(super) fn join(
        &mut self,
        left: LazyFrame,
        right: LazyFrame,
        keys: &[(Typed, Typed)],
        how: JoinType,
        nulls_equal: bool,
    ) -> Result<LazyFrame, Failure> {
        if keys.is_empty() && how == JoinType::Inner {
            return Ok(left.cross_join(right, None));
        }
        let (mut left_on, mut right_on) = (Vec::new(), Vec::new());
        let (mut left_new, mut right_new) = (Vec::new(), Vec::new());
        let mut key = |typed: Typed, new: &mut Vec<Expr>, on: &mut Vec<Expr>| match plain(&typed) {
            Some(id) => on.push(Expr::Column(id)),
            None => {
                let id = self.fresh("key");
                new.push(typed.expr.alias(id.clone()));
                on.push(Expr::Column(id));
            }
        };
        // The same equality twice is one key.
        let twice = |at: usize| {
            keys[..at].iter().any(|(a, b)| (&a.expr, &b.expr) == (&keys[at].0.expr, &keys[at].1.expr))
        };
        for (a, b) in keys.iter().enumerate().filter(|(at, _)| !twice(*at)).map(|(_, key)| key) {
            let to = common(&a.dtype, &b.dtype).unwrap_or_else(|| a.dtype.clone());
            key(a.clone().cast(&to, Span::empty())?, &mut left_new, &mut left_on);
            key(b.clone().cast(&to, Span::empty())?, &mut right_new, &mut right_on);
        }
        if keys.is_empty() {
            // Each row of the left meets each of the right.
            key(Typed::integer(1), &mut left_new, &mut left_on);
            key(Typed::integer(1), &mut right_new, &mut right_on);
        }
        let with =
            |frame: LazyFrame, new: Vec<Expr>| if new.is_empty() { frame } else { frame.with_columns(new) };
        let builder = with(left, left_new).join_builder().with(with(right, right_new));
        let coalesce = match how {
            JoinType::Semi | JoinType::Anti => JoinCoalesce::JoinSpecific,
            _ => JoinCoalesce::KeepColumns,
        };
        let builder = builder.left_on(left_on).right_on(right_on).how(how).join_nulls(nulls_equal);
        Ok(builder.coalesce(coalesce).finish())
    }
}

/// Filters a relation.
pub(super) fn keep(relation: &mut Relation, conditions: Vec<Expr>) {
    for condition in &conditions {
        relation.size.rows = (relation.size.rows * selectivity(condition, &relation.size, 16)).max(1.0);
    }
    if let Some(all) = balanced(conditions, Expr::and) {
        relation.frame = relation.frame.clone().filter(all);
    }
}

/// The column an expression is, if nothing else.
pub(super) fn plain(typed: &Typed) -> Option<PlSmallStr> {
    match &typed.expr {
        Expr::Column(id) => Some(id.clone()),
        _ => None,
    }
}

/// Which relations an expression reads.
fn owners(expr: &Expr, relations: &[Relation]) -> BTreeSet<usize> {
    leaves(expr).iter().filter_map(|id| relations.iter().position(|relation| relation.holds(id))).collect()
}

type Side = (BTreeSet<usize>, Typed);

/// The sides of an equality between different relations.
fn equality(expr: &Expr, relations: &[Relation], columns: &[Column]) -> Option<(Side, Side)> {
    let Expr::BinaryExpr { left, op: Operator::Eq, right } = expr else {
        return None;
    };
    let (a, b) = (owners(left, relations), owners(right, relations));
    if a.is_empty() || b.is_empty() || !a.is_disjoint(&b) {
        return None;
    }
    let schema =
        Schema::from_iter(columns.iter().map(|column| Field::new(column.id.clone(), column.dtype.clone())));
    let typed = |expr: &Expr| {
        let dtype = match expr {
            Expr::Column(id) => schema.get(id)?.clone(),
            other => other.to_field(&schema).ok()?.dtype,
        };
        Some(Typed::new(expr.clone(), dtype))
    };
    Some(((a, typed(left)?), (b, typed(right)?)))
}

fn same_type(left: Typed, right: Typed) -> Result<Expr, Failure> {
    let to = common(&left.dtype, &right.dtype).unwrap_or_else(|| left.dtype.clone());
    Ok(left.cast(&to, Span::empty())?.expr.eq(right.cast(&to, Span::empty())?.expr))
}

/// From `(a.x = 1 AND b.y = 2) OR (a.x = 3 AND b.y = 4)` it follows for `a` alone that `a.x = 1 OR a.x = 3`.
fn implied(expr: &Expr, used: &BTreeSet<usize>, relations: &[Relation], filters: &mut [Vec<Expr>]) {
    let alternatives = chain(expr, &[Operator::Or, Operator::LogicalOr]);
    if alternatives.len() < 2 {
        return;
    }
    for relation in used {
        let own = |alternative: &&Expr| -> Option<Expr> {
            let parts = chain(alternative, &[Operator::And, Operator::LogicalAnd]);
            let only = BTreeSet::from([*relation]);
            let own = parts.into_iter().filter(|part| owners(part, relations) == only).cloned().collect();
            balanced(own, Expr::and)
        };
        let parts: Option<Vec<Expr>> = alternatives.iter().map(own).collect();
        if let Some(any) = parts.and_then(|parts| balanced(parts, Expr::or)) {
            filters[*relation].push(any);
        }
    }
}

/// The operands of a chain of one operator.
fn chain<'e>(expr: &'e Expr, ops: &[Operator]) -> Vec<&'e Expr> {
    let (mut found, mut pending) = (Vec::new(), vec![expr]);
    while let Some(expr) = pending.pop() {
        match expr {
            Expr::BinaryExpr { left, op, right } if ops.contains(op) => {
                pending.push(right);
                pending.push(left);
            }
            other => found.push(other),
        }
    }
    found
}

fn merge(classes: &mut Vec<Class>, pair: [(usize, PlSmallStr, DataType); 2]) {
    let (with, without): (Vec<Class>, Vec<Class>) = classes
        .drain(..)
        .partition(|class| class.iter().any(|member| pair.iter().any(|new| new.1 == member.1)));
    let mut class: Class = with.into_iter().flatten().collect();
    for new in pair {
        if !class.iter().any(|member| member.1 == new.1) {
            class.push(new);
        }
    }
    *classes = without;
    classes.push(class);
}

/// Rows of a join: the product, divided by the number of different values of each key.
fn estimate(left: &Size, right: &Size, keys: &[(Typed, Typed)]) -> f64 {
    let product = left.rows * right.rows;
    let values: f64 = keys.iter().map(|(a, b)| left.distinct(&a.expr).min(right.distinct(&b.expr))).product();
    (product / values.max(1.0)).max(1.0)
}

/// The order in which to join: from each relation as the first, always the one that makes the smallest result;
/// the cheapest of these orders.
fn order(relations: &[Relation], classes: &[Class], edges: &[Edge]) -> Vec<usize> {
    let all = 0..relations.len();
    let smallest = all.clone().min_by(|a, b| relations[*a].size.rows.total_cmp(&relations[*b].size.rows));
    let starts: Vec<usize> =
        if relations.len() <= TRY_ALL_STARTS { all.collect() } else { smallest.into_iter().collect() };
    let mut best: Option<(f64, Vec<usize>)> = None;
    for start in starts {
        let (cost, order) = from(start, relations, classes, edges);
        if best.as_ref().is_none_or(|(known, _)| cost < *known) {
            best = Some((cost, order));
        }
    }
    best.map(|(_, order)| order).unwrap_or_default()
}

fn from(start: usize, relations: &[Relation], classes: &[Class], edges: &[Edge]) -> (f64, Vec<usize>) {
    let mut order = vec![start];
    let mut inside = BTreeSet::from([start]);
    let mut rows = relations[start].size.rows;
    let mut cost = 0.0;
    while order.len() < relations.len() {
        let mut best: Option<(bool, f64, usize)> = None;
        for (next, relation) in relations.iter().enumerate() {
            if inside.contains(&next) {
                continue;
            }
            let mut values = 1.0;
            let mut keyed = false;
            for class in classes {
                let own = class.iter().find(|(relation, ..)| *relation == next);
                let other = class.iter().find(|(relation, ..)| inside.contains(relation));
                if let (Some((_, own, _)), Some((owner, other, _))) = (own, other) {
                    keyed = true;
                    let of = |relation: usize, id: &PlSmallStr| {
                        relations[relation].size.distinct(&Expr::Column(id.clone()))
                    };
                    values *= of(next, own).min(of(*owner, other));
                }
            }
            let only = BTreeSet::from([next]);
            for edge in edges {
                let joins = edge.left.0.is_subset(&inside) && edge.right.0 == only
                    || edge.right.0.is_subset(&inside) && edge.left.0 == only;
                if joins {
                    keyed = true;
                    values *= relation.size.base.max(1.0).min(rows.max(1.0));
                }
            }
            let result = (rows * relation.size.rows / values).max(1.0);
            let better = match best {
                None => true,
                Some((had_key, known, _)) => (!keyed, result) < (!had_key, known),
            };
            if better {
                best = Some((keyed, result, next));
            }
        }
        let Some((_, result, next)) = best else {
            break;
        };
        // What is read to build or probe counts beside what comes out.
        cost += result + relations[next].size.rows;
        rows = result;
        inside.insert(next);
        order.push(next);
    }
    (cost + relations[start].size.rows, order)
}
