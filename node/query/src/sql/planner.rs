//! The planner: a query of SQL over tables to a `LazyFrame`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use floe_protocol::Failure;
use polars::prelude::*;
use sqlparser::ast::Query;

use super::relation::{Column, Relation};
use super::statistics::Statistics;
use crate::stack::on_deep_stack;

/// Queries within queries: each level that uses columns of the one around may be planned twice.
pub(super) const MAX_NESTING: usize = 12;

/// A table as the planner sees it.
pub(super) struct Table {
    pub(super) frame: LazyFrame,
    pub(super) statistics: Statistics,
}

impl Table {
    pub(super) fn new(frame: LazyFrame) -> Self {
        let statistics = Statistics::of(&frame);
        Self { frame, statistics }
    }
}

/// What is kept while a statement is planned.
pub(super) struct Planner<'t> {
    pub(super) tables: &'t BTreeMap<String, Table>,
    /// Common table expressions, the innermost last.
    pub(super) ctes: Vec<(String, Relation)>,
    pub(super) nesting: usize,
    /// What `now()` and its like are, the same in the whole statement: microseconds of UTC.
    pub(super) now_us: i64,
    used: HashSet<PlSmallStr>,
    counter: usize,
}

/// A query over tables.
pub(super) fn plan(query: &Query, tables: &BTreeMap<String, Table>) -> Result<LazyFrame, Failure> {
    on_deep_stack(|| plan_query(query, tables))
}

fn plan_query(query: &Query, tables: &BTreeMap<String, Table>) -> Result<LazyFrame, Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_us = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
    let (ctes, used) = (Vec::new(), HashSet::new());
    let mut planner = Planner { tables, ctes, nesting: 0, now_us, used, counter: 0 };
    let relation = planner.query(query, None, false)?.relation;
    let columns: Vec<Column> = relation.visible().cloned().collect();
    let names = names(&columns);
    let same = columns.iter().zip(&names).all(|(column, name)| column.id == *name);
    if same && columns.len() == relation.columns.len() {
        return Ok(relation.frame);
    }
    let select: Vec<Expr> = columns
        .iter()
        .zip(names)
        .map(|(column, name)| match column.id == name {
            true => Expr::Column(column.id.clone()),
            false => Expr::Column(column.id.clone()).alias(name),
        })
        .collect();
    Ok(relation.frame.select(select))
}

/// The names of a result, each once: a second column of a name has its table's as well, as in Polars SQL.
fn names(columns: &[Column]) -> Vec<PlSmallStr> {
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let mut name = |column: &Column| {
        let mut name = column.name.clone();
        if taken.contains(&name)
            && let Some(table) = &column.table
        {
            name = format!("{name}:{table}");
        }
        let mut number = 1;
        let plain = name.clone();
        while !taken.insert(name.clone()) {
            name = format!("{plain}_{number}");
            number += 1;
        }
        PlSmallStr::from(name)
    };
    columns.iter().map(&mut name).collect()
}

impl Planner<'_> {
    /// A name for a column that no other has: the one wanted, if it is free.
    pub(super) fn fresh(&mut self, wanted: &str) -> PlSmallStr {
        let mut name = PlSmallStr::from_str(wanted);
        while !self.used.insert(name.clone()) {
            self.counter += 1;
            name = format!("{wanted}#{}", self.counter).into();
        }
        name
    }
}
