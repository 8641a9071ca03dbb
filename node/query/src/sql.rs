//! SQL text to a `LazyFrame`, with tables that are files.
//!
//! A table name is looked up among the query's tables; a name that is a path or a pattern is scanned by its
//! ending, `read_csv('...')` and its like by their name. Nothing is read here beyond what Polars needs to resolve names,
//! and the footers of Parquet files.
//!
//! ```text
//!   statement.rs    text -> one query; views become common table expressions
//!   planner.rs      query -> LazyFrame, with what is kept on the way
//!     query.rs        WITH, UNION, VALUES, ORDER BY, LIMIT
//!     select.rs       one SELECT
//!     from.rs         tables and explicit joins
//!     joins.rs        commas and conditions -> joins in a good order
//!     conjuncts.rs    conditions taken apart
//!     subquery.rs     subqueries -> joins
//!     aggregate.rs    groups
//!     windows.rs      window functions
//!     scalar.rs       expressions of a row
//!       value.rs        their types: decimals, dates beside texts
//!       temporal.rs     dates and intervals
//!       like.rs         patterns
//!       delegate.rs     what Polars SQL translates by itself: most functions
//!   walk.rs         a visitor's way through what was parsed
//!   relation.rs     rows with named columns while planning
//!   statistics.rs   what is known of tables
//!   place.rs        errors with their line and column
//! ```
//!
//! Why not Polars SQL as a whole: it reads `0.06` as a float, has no scalar subqueries, and makes products of tables
//! of commas. Its translation of functions is used; relations are brought together here.

mod aggregate;
mod conjuncts;
mod delegate;
mod from;
mod joins;
mod like;
mod place;
mod planner;
mod query;
mod relation;
mod scalar;
mod select;
mod statement;
mod statistics;
mod subquery;
mod temporal;
mod value;
mod walk;
mod windows;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use floe_protocol::Failure;
use floe_protocol::message::FilePath;
use polars::prelude::*;
use polars_plan::dsl::DslPlan;
use sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, Ident, ObjectName, ObjectNamePart, Query, TableFactor, Value,
    Visitor, VisitorMut,
};

use self::planner::Table;
use self::walk::{walk, walk_mut};
use crate::paths::{Expanded, Found, Kind, absolute};
use crate::query_failure;

/// A statement, and the files its tables are.
pub(crate) struct Sql {
    /// With table functions replaced by the tables that they read.
    query: Query,
    /// Files of tables by the name the text gives them.
    tables: BTreeMap<String, TableFiles>,
    /// Names the query could have used.
    registered: Vec<String>,
}

/// Files that are a table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TableFiles {
    path: FilePath,
    /// The format, unless the files' names tell it.
    format: Option<Format>,
}

impl Sql {
    /// Parses a query and finds its tables. No file is looked at.
    pub(crate) fn parse(
        text: &str,
        tables: &BTreeMap<String, String>,
        directory: &str,
    ) -> Result<Self, Failure> {
        let mut query = statement::query(text)?;
        let mut functions = Functions { directory, tables: BTreeMap::new() };
        if let ControlFlow::Break(failure) = walk_mut(&mut query, &mut functions) {
            return Err(failure);
        }
        let mut relations = Relations::default();
        let _ = walk(&query, &mut relations);
        let mut found = functions.tables;
        for (name, quoted) in relations.names {
            let path = match tables.get(&name) {
                Some(path) => path,
                None if found.contains_key(&name) || relations.ctes.contains(&name) => continue,
                None if quoted || is_path(&name) => &name,
                None => continue,
            };
            let table = TableFiles { path: absolute(directory, path, true)?, format: None };
            found.insert(name, table);
        }
        Ok(Self { query, tables: found, registered: tables.keys().cloned().collect() })
    }

    /// Every path the query scans.
    pub(crate) fn paths(&self) -> Vec<FilePath> {
        let paths: BTreeSet<&FilePath> = self.tables.values().map(|table| &table.path).collect();
        paths.into_iter().cloned().collect()
    }

    /// The query over scans of its files.
    pub(crate) fn frame(&self, found: &Found) -> Result<LazyFrame, Failure> {
        let mut tables = BTreeMap::new();
        for (name, files) in &self.tables {
            tables.insert(name.clone(), Table::new(scan(files, found)?));
        }
        planner::plan(&self.query, &tables).map_err(|failure| self.explain_unknown(failure))
    }

    fn explain_unknown(&self, failure: Failure) -> Failure {
        let Failure::Query { message } = &failure else {
            return failure;
        };
        if !(message.contains("relation '") && message.contains("was not found")) {
            return failure;
        }
        let known = match self.registered.as_slice() {
            [] => "no tables are registered".to_owned(),
            names => format!("registered tables: {}", names.join(", ")),
        };
        Failure::Query { message: format!("{message}; {known}; name a file as FROM 'path/to/file.parquet'") }
    }
}

/// Plans a text over frames by name: what `SQLContext` of py-polars leaves in a plan, for one.
pub fn plan_sql(
    text: &str,
    relations: impl IntoIterator<Item = (String, LazyFrame)>,
) -> Result<LazyFrame, Failure> {
    let tables = relations.into_iter().map(|(name, frame)| (name, Table::new(frame))).collect();
    planner::plan(&statement::query(text)?, &tables)
}

/// The endings of files, after that of a compression.
fn ending(path: &str) -> Option<String> {
    let lower = path.to_lowercase();
    let plain = [".gz", ".zst", ".zlib"].iter().find_map(|end| lower.strip_suffix(end)).unwrap_or(&lower);
    let name = plain.rsplit(['/', '\\']).next()?;
    name.rsplit_once('.').map(|(_, end)| end.to_owned())
}

const ENDINGS: [&str; 9] = ["parquet", "pq", "csv", "tsv", "ndjson", "jsonl", "ipc", "arrow", "feather"];

/// What a table's files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Csv { separator: u8 },
    Ipc,
    NdJson,
    Parquet,
}

impl Format {
    /// The format of files with this ending.
    fn of(ending: &str) -> Option<Self> {
        Some(match ending {
            "csv" => Self::Csv { separator: b',' },
            "tsv" => Self::Csv { separator: b'\t' },
            "ndjson" | "jsonl" => Self::NdJson,
            "ipc" | "arrow" | "feather" => Self::Ipc,
            "parquet" | "pq" => Self::Parquet,
            _ => return None,
        })
    }

    /// What one of Polars' table functions reads.
    fn of_function(name: &str) -> Option<Self> {
        Some(match name.to_lowercase().as_str() {
            "read_csv" => Self::Csv { separator: b',' },
            "read_ipc" => Self::Ipc,
            "read_json" => Self::NdJson,
            "read_parquet" => Self::Parquet,
            _ => return None,
        })
    }
}

fn is_path(name: &str) -> bool {
    name.contains(['/', '\\', '*']) || ending(name).is_some_and(|end| ENDINGS.contains(&end.as_str()))
}

/// The format of a table: by the ending of its name, or else of the files that it stands for.
fn format_of(path: &str, expanded: Option<&Expanded>) -> Result<Format, Failure> {
    let by_name = |path: &str| ending(path).and_then(|end| Format::of(&end));
    if let Some(format) = by_name(path) {
        return Ok(format);
    }
    let mut formats = expanded.into_iter().flat_map(|expanded| &expanded.files).map(|file| by_name(file));
    let first = formats.next().flatten();
    let alike = formats.all(|format| format == first);
    match first {
        Some(format) if alike => return Ok(format),
        None if alike && expanded.is_some_and(|expanded| expanded.kind == Kind::Directory) => {
            return Ok(Format::Parquet);
        }
        _ => {}
    }
    let message = format!(
        "cannot tell the format of {path} by its name: it should end in .{}, or all of its files should",
        ENDINGS.join(", .")
    );
    Err(Failure::Refused { message })
}

fn scan(table: &TableFiles, found: &Found) -> Result<LazyFrame, Failure> {
    let path = &table.path.path;
    let format = match table.format {
        Some(format) => format,
        None => format_of(path, found.get(&table.path))?,
    };
    let at = PlRefPath::new(path);
    let frame = match format {
        // As `read_csv` of Polars SQL does.
        Format::Csv { separator } => LazyCsvReader::new(at)
            .with_separator(separator)
            .with_try_parse_dates(true)
            .with_missing_is_null(true)
            .finish(),
        Format::NdJson => LazyJsonLineReader::new(at).finish(),
        Format::Ipc => LazyFrame::scan_ipc(at, Default::default(), Default::default()),
        Format::Parquet => LazyFrame::scan_parquet(at, Default::default()),
    };
    let mut plan: DslPlan = frame.map_err(query_failure)?.logical_plan;
    if let DslPlan::Scan { sources, unified_scan_args, scan_type, .. } = &mut plan {
        found.settle(sources, unified_scan_args, scan_type);
    }
    Ok(LazyFrame::from(plan))
}

/// Names of tables and of common table expressions.
#[derive(Default)]
struct Relations {
    /// Names, and whether they stand in single quotes as only paths do.
    names: BTreeSet<(String, bool)>,
    ctes: BTreeSet<String>,
}

impl Visitor for Relations {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if let Some(with) = &query.with {
            self.ctes.extend(with.cte_tables.iter().map(|cte| cte.alias.name.value.clone()));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        if let Some(name) = relation.0.first().and_then(|part| part.as_ident()) {
            self.names.insert((name.value.clone(), name.quote_style == Some('\'')));
        }
        ControlFlow::Continue(())
    }
}

/// Makes tables of `read_parquet('...')` and its like, whose paths Polars would take from the directory of this process
/// and for patterns.
struct Functions<'a> {
    directory: &'a str,
    tables: BTreeMap<String, TableFiles>,
}

impl VisitorMut for Functions<'_> {
    type Break = Failure;

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<Failure> {
        let TableFactor::Table { name, args, .. } = factor else { return ControlFlow::Continue(()) };
        let function = name.0.as_slice();
        let [ObjectNamePart::Identifier(function)] = function else { return ControlFlow::Continue(()) };
        // What Polars' functions do not take, Polars says.
        let Some(format) = Format::of_function(&function.value) else { return ControlFlow::Continue(()) };
        let Some([FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value)))]) =
            args.as_ref().map(|arguments| arguments.args.as_slice())
        else {
            return ControlFlow::Continue(());
        };
        let Value::SingleQuotedString(path) = &value.value else { return ControlFlow::Continue(()) };
        let table = match absolute(self.directory, path, true) {
            Ok(path) => TableFiles { path, format: Some(format) },
            Err(failure) => return ControlFlow::Break(failure),
        };
        // One file may be read in two ways.
        let mut relation = table.path.path.clone();
        while self.tables.get(&relation).is_some_and(|other| *other != table) {
            relation.push('\'');
        }
        *name = ObjectName::from(vec![Ident::with_quote('"', &relation)]);
        *args = None;
        self.tables.insert(relation, table);
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(text: &str) -> Result<Sql, Failure> {
        let tables = BTreeMap::from([("t".to_owned(), "data/t.parquet".to_owned())]);
        Sql::parse(text, &tables, "/home/me")
    }

    #[test]
    fn tables_are_found_wherever_they_stand() {
        let paths = |text: &str| -> Vec<String> {
            parse(text).unwrap().paths().into_iter().map(|path| path.path).collect()
        };
        assert_eq!(paths("select * from t"), ["/home/me/data/t.parquet"]);
        assert_eq!(paths("select * from 'a/*.csv'"), ["/home/me/a/*.csv"]);
        assert_eq!(paths("select * from \"/b.ndjson\" as b"), ["/b.ndjson"]);
        assert_eq!(
            paths("select * from './c.ipc' join t using (x)"),
            ["/home/me/c.ipc", "/home/me/data/t.parquet"]
        );
        assert_eq!(
            paths("with t2 as (select * from t) select * from t2 where x in (select x from 'd.csv')").len(),
            2
        );
        assert_eq!(paths("select * from read_parquet('e.parquet')"), ["/home/me/e.parquet"]);
        assert_eq!(paths("select * from t union all select * from t").len(), 1);
        assert_eq!(paths("select 1"), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_query_is_refused_with_a_sentence() {
        for text in
            ["create table x as select 1", "drop table t", "show tables", "delete from t", "explain select 1"]
        {
            let Err(Failure::Refused { message }) = parse(text) else { panic!("{text} was accepted") };
            assert!(message.contains("is not a query"), "{message}");
        }
        assert!(matches!(parse("select 1; select 2"), Err(Failure::Refused { .. })));
        assert!(matches!(parse("selec 1"), Err(Failure::Query { .. })));
        assert!(matches!(parse("select (1"), Err(Failure::Query { .. })));
    }

    #[test]
    fn an_unknown_table_names_the_known_ones() {
        let Err(Failure::Query { message }) = parse("select * from u").unwrap().frame(&Found::default())
        else {
            panic!("found")
        };
        assert_eq!(
            message,
            "relation 'u' was not found; registered tables: t; name a file as FROM 'path/to/file.parquet'"
        );
        let Err(Failure::Refused { message }) =
            parse("select * from 'x/y.txt'").unwrap().frame(&Found::default())
        else {
            panic!("read")
        };
        assert!(message.starts_with("cannot tell the format of /home/me/x/y.txt"), "{message}");
    }
}
