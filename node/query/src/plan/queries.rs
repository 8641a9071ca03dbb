//! Queries in SQL that are part of a plan: since py-polars 2.0 `LazyFrame.sql` and `SQLContext` leave their text to
//! whoever runs the plan.

use std::collections::BTreeMap;

use floe_protocol::Failure;
use polars_plan::dsl::DslPlan;
use recursive::recursive;

use super::inputs;
use super::translate::SqlQuery;
use crate::paths::absolute;
use crate::sql::{Sql, plan_sql};

/// Refuses what is no query, and queries that read files by themselves: those of a plan are scanned by it.
pub(super) fn check(query: &SqlQuery, directory: &str) -> Result<(), Failure> {
    let files = Sql::parse(&query.text, &BTreeMap::new(), directory)?.paths();
    // A table may be called as a file is.
    let tables: Vec<_> =
        query.tables.iter().filter_map(|name| absolute(directory, name, true).ok()).collect();
    let Some(file) = files.iter().find(|file| !tables.contains(file)) else {
        return Ok(());
    };
    let message = format!(
        "{} is read by the text of a query in a plan: give it as a table, of pl.scan_parquet for one, or use mesh.sql",
        file.path
    );
    Err(Failure::Refused { message })
}

/// Puts a plan in the place of each query, innermost first. Tables' schemas are read for that.
#[recursive]
pub(super) fn lower(plan: &mut DslPlan, queries: &[SqlQuery]) -> Result<(), Failure> {
    if queries.is_empty() {
        return Ok(());
    }
    for input in inputs(plan) {
        lower(input, queries)?;
    }
    let DslPlan::ExtContext { contexts, .. } = plan else {
        return Ok(());
    };
    let [DslPlan::Slice { offset, .. }, tables @ ..] = contexts.as_slice() else {
        return Ok(());
    };
    let Some(query) = usize::try_from(*offset).ok().and_then(|number| queries.get(number)) else {
        return Ok(());
    };
    let tables = query.tables.iter().cloned().zip(tables.iter().map(|table| table.clone().into()));
    *plan = plan_sql(&query.text, tables)?.logical_plan;
    Ok(())
}
