//! Rows with named columns while a statement is planned.
//!
//! **Invariant.** A column's `id`, its name in the frame, is its own in the whole statement: whatever is joined,
//! no two columns meet under one name, and an expression says by itself which relations it needs.

use std::collections::{BTreeMap, BTreeSet};

use floe_protocol::Failure;
use polars::prelude::*;
use sqlparser::ast::Ident;

use super::place::wrong;
use super::value::Typed;

/// A column as names find it.
#[derive(Clone, Debug)]
pub(super) struct Column {
    /// The table's alias or name.
    pub(super) table: Option<String>,
    pub(super) name: String,
    pub(super) id: PlSmallStr,
    pub(super) dtype: DataType,
    /// Whether nulls are possible as far as the planner knows.
    pub(super) nullable: bool,
    /// Found by its table's name only, and not by `*`: the second column of a `USING`.
    pub(super) hidden: bool,
    /// How many queries further out the column is from: 0 in its own.
    pub(super) level: u32,
}

impl Column {
    pub(super) fn typed(&self) -> Typed {
        Typed {
            expr: Expr::Column(self.id.clone()),
            dtype: self.dtype.clone(),
            name: self.name.clone(),
            nullable: self.nullable,
        }
    }
}

/// What is known of the number of rows. Used to order joins only: no result depends on it.
#[derive(Clone, Debug)]
pub(super) struct Size {
    /// Rows after the filters seen so far, estimated.
    pub(super) rows: f64,
    /// Rows before them: the number of different values of a key of which nothing is known.
    pub(super) base: f64,
    /// At most as many different values, by column.
    pub(super) distinct: BTreeMap<PlSmallStr, f64>,
}

impl Size {
    pub(super) fn of(rows: f64) -> Self {
        Self { rows, base: rows, distinct: BTreeMap::new() }
    }

    /// Different values of an expression, before filters.
    pub(super) fn distinct(&self, expr: &Expr) -> f64 {
        match expr {
            Expr::Column(id) => self.distinct.get(id).copied().unwrap_or(self.base),
            _ => self.base,
        }
        .max(1.0)
    }
}

/// Rows being planned.
#[derive(Clone)]
pub(super) struct Relation {
    pub(super) frame: LazyFrame,
    pub(super) columns: Vec<Column>,
    pub(super) size: Size,
    /// Columns that equal each other in all rows, so that a bare name common to them is not ambiguous.
    pub(super) equal: Vec<BTreeSet<PlSmallStr>>,
}

impl Relation {
    pub(super) fn new(frame: LazyFrame, columns: Vec<Column>, size: Size) -> Self {
        Self { frame, columns, size, equal: Vec::new() }
    }

    /// The columns that `*` stands for.
    pub(super) fn visible(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.level == 0 && !column.hidden)
    }

    pub(super) fn holds(&self, id: &PlSmallStr) -> bool {
        self.columns.iter().any(|column| column.id == *id)
    }
}

/// The column of a name among some of one level, or an error if several have it.
pub(super) fn find<'c>(
    columns: &'c [Column],
    equal: &[BTreeSet<PlSmallStr>],
    table: Option<&Ident>,
    name: &Ident,
) -> Result<Option<&'c Column>, Failure> {
    let levels: BTreeSet<u32> = columns.iter().map(|column| column.level).collect();
    for level in levels {
        for exact in [true, false] {
            let same = |found: &str, wanted: &Ident| match exact {
                true => found == wanted.value,
                false => wanted.quote_style.is_none() && found.eq_ignore_ascii_case(&wanted.value),
            };
            let fits = |column: &&Column| {
                column.level == level
                    && same(&column.name, name)
                    && match table {
                        Some(table) => column.table.as_deref().is_some_and(|found| {
                            found == table.value
                                || table.quote_style.is_none() && found.eq_ignore_ascii_case(&table.value)
                        }),
                        None => !column.hidden,
                    }
            };
            let found: Vec<&Column> = columns.iter().filter(fits).collect();
            let one_value =
                || equal.iter().any(|class| found.iter().all(|column| class.contains(&column.id)));
            let Some(column) = found.first() else {
                continue;
            };
            let Some(other) = found.get(1).filter(|_| !one_value()) else {
                return Ok(Some(column));
            };
            let table = |column: &Column| column.table.clone().unwrap_or_else(|| "a query".to_owned());
            let message = format!(
                "the column {} is in {} and in {}: write it with its table",
                name.value,
                table(column),
                table(other)
            );
            return Err(wrong(&message, name.span));
        }
    }
    Ok(None)
}

/// The names of the columns an expression reads.
pub(super) fn leaves(expr: &Expr) -> BTreeSet<PlSmallStr> {
    let column = |expr: &Expr| match expr {
        Expr::Column(id) => Some(id.clone()),
        _ => None,
    };
    expr.into_iter().filter_map(column).collect()
}
