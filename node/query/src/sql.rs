//! SQL text to a `LazyFrame`: Polars SQL, with tables that are files.
//!
//! A table name is looked up among the query's tables; a name that is a path or a glob is scanned by its
//! ending. Nothing is read here beyond what Polars needs to resolve names.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

use floe_protocol::Failure;
use polars::prelude::*;
use polars::sql::SQLContext;
use sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, ObjectName, Query, Statement, TableFactor, Value, Visit, VisitMut,
    Visitor, VisitorMut,
};
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::{Parser, ParserOptions};

use crate::query_failure;

/// A statement, and the files its tables are.
pub(crate) struct Sql {
    /// The text, with the paths of table functions made absolute.
    text: String,
    /// Tables by the name the text gives them; absolute paths.
    tables: BTreeMap<String, String>,
    /// Absolute paths given to `read_parquet` and its like.
    function_paths: Vec<String>,
    /// Names the query could have used.
    registered: Vec<String>,
}

impl Sql {
    /// Parses a query and finds its tables. No file is looked at.
    pub(crate) fn parse(
        text: &str,
        tables: &BTreeMap<String, String>,
        directory: &str,
    ) -> Result<Self, Failure> {
        let options = ParserOptions { trailing_commas: true, ..Default::default() };
        let statements = Parser::new(&GenericDialect)
            .with_options(options)
            .try_with_sql(text)
            .and_then(|mut parser| parser.parse_statements())
            .map_err(|error| Failure::Query { message: error.to_string() })?;
        let [statement] = statements.as_slice() else {
            let message = format!("one statement at a time: this text has {}", statements.len());
            return Err(Failure::Refused { message });
        };
        if !matches!(statement, Statement::Query(_)) {
            let first = text.split_whitespace().next().unwrap_or_default().to_uppercase();
            let message =
                format!("{first} is not a query: only SELECT (with WITH, UNION, VALUES ...) runs on a mesh");
            return Err(Failure::Refused { message });
        }
        let mut statement = statement.clone();
        let mut functions = Functions { directory, paths: Vec::new(), changed: false };
        let _ = VisitMut::visit(&mut statement, &mut functions);
        let mut relations = Relations::default();
        let _ = Visit::visit(&statement, &mut relations);
        let mut found = BTreeMap::new();
        for (name, quoted) in relations.names {
            if let Some(path) = tables.get(&name) {
                found.insert(name, absolute(directory, path));
            } else if !relations.ctes.contains(&name) && (quoted || is_path(&name)) {
                let path = absolute(directory, &name);
                found.insert(name, path);
            }
        }
        Ok(Self {
            text: if functions.changed { statement.to_string() } else { text.to_owned() },
            tables: found,
            function_paths: functions.paths,
            registered: tables.keys().cloned().collect(),
        })
    }

    /// Every path the query scans.
    pub(crate) fn paths(&self) -> Vec<String> {
        let paths: BTreeSet<&String> = self.tables.values().chain(&self.function_paths).collect();
        paths.into_iter().cloned().collect()
    }

    /// The query over scans of its files.
    pub(crate) fn frame(&self) -> Result<LazyFrame, Failure> {
        let mut context = SQLContext::new();
        for (name, path) in &self.tables {
            context.register(name, scan(path)?);
        }
        context.execute(&self.text).map_err(|error| self.explain_unknown(query_failure(error)))
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
pub(crate) fn plan_sql(
    text: &str,
    relations: impl IntoIterator<Item = (String, LazyFrame)>,
) -> Result<LazyFrame, Failure> {
    let mut context = SQLContext::new();
    for (name, frame) in relations {
        context.register(&name, frame);
    }
    context.execute(text).map_err(query_failure)
}

/// Makes a path absolute against the driver's directory; paths with a scheme stay as they are.
pub(crate) fn absolute(directory: &str, path: &str) -> String {
    if path.contains("://") || Path::new(path).is_absolute() {
        return path.to_owned();
    }
    let relative = path.strip_prefix("./").unwrap_or(path);
    Path::new(directory).join(relative).to_string_lossy().into_owned()
}

/// The endings of files, after that of a compression.
fn ending(path: &str) -> Option<String> {
    let lower = path.to_lowercase();
    let plain = [".gz", ".zst", ".zlib"].iter().find_map(|end| lower.strip_suffix(end)).unwrap_or(&lower);
    let name = plain.rsplit(['/', '\\']).next()?;
    name.rsplit_once('.').map(|(_, end)| end.to_owned())
}

const ENDINGS: [&str; 9] = ["parquet", "pq", "csv", "tsv", "ndjson", "jsonl", "ipc", "arrow", "feather"];

fn is_path(name: &str) -> bool {
    name.contains(['/', '\\', '*']) || ending(name).is_some_and(|end| ENDINGS.contains(&end.as_str()))
}

fn scan(path: &str) -> Result<LazyFrame, Failure> {
    let at = PlRefPath::new(path);
    let csv = |separator| {
        // As `read_csv` of Polars SQL does.
        LazyCsvReader::new(at.clone())
            .with_separator(separator)
            .with_try_parse_dates(true)
            .with_missing_is_null(true)
            .finish()
    };
    let frame = match ending(path).as_deref() {
        Some("csv") => csv(b','),
        Some("tsv") => csv(b'\t'),
        Some("ndjson" | "jsonl") => LazyJsonLineReader::new(at).finish(),
        Some("ipc" | "arrow" | "feather") => LazyFrame::scan_ipc(at, Default::default(), Default::default()),
        Some("parquet" | "pq") => LazyFrame::scan_parquet(at, Default::default()),
        _ if Path::new(path).is_dir() => LazyFrame::scan_parquet(at, Default::default()),
        _ => {
            let message = format!(
                "cannot tell the format of {path} by its name: it should end in .{} or be a directory of Parquet files",
                ENDINGS.join(", .")
            );
            return Err(Failure::Refused { message });
        }
    };
    frame.map_err(query_failure)
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

/// Makes the paths of `read_parquet('...')` and its like absolute: Polars would take them from the directory
/// of this process.
struct Functions<'a> {
    directory: &'a str,
    paths: Vec<String>,
    changed: bool,
}

impl VisitorMut for Functions<'_> {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        let TableFactor::Table { args: Some(arguments), .. } = factor else {
            return ControlFlow::Continue(());
        };
        for argument in &mut arguments.args {
            let FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value))) = argument else {
                continue;
            };
            if let Value::SingleQuotedString(path) = &mut value.value {
                let found = absolute(self.directory, path);
                self.changed |= found != *path;
                self.paths.push(found.clone());
                *path = found;
            }
        }
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
        let paths = |text: &str| parse(text).unwrap().paths();
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
        let Err(Failure::Query { message }) = parse("select * from u").unwrap().frame() else {
            panic!("found")
        };
        assert_eq!(
            message,
            "relation 'u' was not found; registered tables: t; name a file as FROM 'path/to/file.parquet'"
        );
        let Err(Failure::Refused { message }) = parse("select * from 'x/y.txt'").unwrap().frame() else {
            panic!("read")
        };
        assert!(message.starts_with("cannot tell the format of /home/me/x/y.txt"), "{message}");
    }
}
