//! Runs files in the format of SQLite's `sqllogictest`: our own in `slt/`, and by command a checkout of the corpus.
//!
//! ```text
//!   FLOE_SQLLOGICTEST=/path/to/sqllogictest/test/select1.test cargo nextest run -p floe-query --run-ignored only corpus
//! ```
//!
//! The path is a file or a directory; of a directory every `FLOE_SQLLOGICTEST_EVERY`th file is taken. Nothing of the
//! corpus is kept here. What is left out of it, with the reasons, is [`LEFT_OUT`]: the list may only shrink.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use floe_protocol::Failure;
use polars::prelude::*;
use sqlparser::ast::{DataType as SqlType, Expr, SetExpr, Statement, UnaryOperator, Value};
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::Parser;

/// Records that are not asked, or whose answer differs on purpose: a part of the text, and why.
const LEFT_OUT: [(&str, &str); 3] = [
    (
        " / ",
        "`/` of integers is a division with a fraction, as in Polars and DuckDB; the corpus means whole numbers",
    ),
    ("/(", "as above"),
    (")/5", "as above, where the rounded results are sorted by"),
];

/// What is made of a file.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    right: usize,
    left_out: usize,
}

/// The tables and views of a file.
#[derive(Default)]
struct Database {
    tables: BTreeMap<String, DataFrame>,
    /// Rows that are not in the frame yet.
    pending: BTreeMap<String, Vec<Vec<AnyValue<'static>>>>,
    views: BTreeMap<String, String>,
}

impl Database {
    fn run(&mut self, statement: &str) -> Result<(), String> {
        let parsed = Parser::parse_sql(&GenericDialect, statement).map_err(|error| error.to_string())?;
        for statement in parsed {
            match statement {
                Statement::CreateTable(table) => {
                    let column = |column: &sqlparser::ast::ColumnDef| {
                        let dtype = match column.data_type {
                            SqlType::Integer(_) | SqlType::Int(_) | SqlType::BigInt(_) => DataType::Int64,
                            SqlType::Float(_) | SqlType::Real | SqlType::Double(_) => DataType::Float64,
                            SqlType::Boolean => DataType::Boolean,
                            SqlType::Date => DataType::Date,
                            SqlType::Decimal(sqlparser::ast::ExactNumberInfo::PrecisionAndScale(p, s)) => {
                                DataType::Decimal(p as usize, s as usize)
                            }
                            _ => DataType::String,
                        };
                        Field::new(column.name.value.as_str().into(), dtype)
                    };
                    let schema = Schema::from_iter(table.columns.iter().map(column));
                    self.tables.insert(table.name.to_string(), DataFrame::empty_with_schema(&schema));
                }
                Statement::Insert(insert) => {
                    let table = insert.table.to_string();
                    let known = self.tables.get(&table).ok_or("no such table")?;
                    let names: Vec<String> = match insert.columns.as_slice() {
                        [] => known.get_column_names().iter().map(ToString::to_string).collect(),
                        names => names.iter().map(ToString::to_string).collect(),
                    };
                    let source = insert.source.ok_or("INSERT without VALUES")?;
                    let SetExpr::Values(values) = &*source.body else {
                        let rows = self.query(&source.to_string()).map_err(|failure| failure.to_string())?;
                        if rows.width() != names.len() {
                            return Err("INSERT of a query with other columns".to_owned());
                        }
                        let frame = self.tables.get_mut(&table).ok_or("no such table")?;
                        let column = |(name, dtype): (&PlSmallStr, &DataType)| {
                            let at = names.iter().position(|own| own == name.as_str());
                            let values = match at {
                                Some(at) => rows.columns()[at].clone(),
                                None => Column::full_null(name.clone(), rows.height(), dtype),
                            };
                            values.with_name(name.clone()).cast(dtype).map_err(|error| error.to_string())
                        };
                        let columns = frame.schema().iter().map(column).collect::<Result<_, _>>()?;
                        let rows =
                            DataFrame::new(rows.height(), columns).map_err(|error| error.to_string())?;
                        frame.vstack_mut(&rows).map_err(|error| error.to_string())?;
                        continue;
                    };
                    let at: Vec<Option<usize>> = known
                        .get_column_names()
                        .iter()
                        .map(|column| names.iter().position(|name| name == column.as_str()))
                        .collect();
                    for row in &values.rows {
                        let cells: Vec<AnyValue<'static>> =
                            row.content.iter().map(literal).collect::<Result<_, _>>()?;
                        let row =
                            at.iter().map(|at| at.map_or(AnyValue::Null, |at| cells[at].clone())).collect();
                        self.pending.entry(table.clone()).or_default().push(row);
                    }
                }
                Statement::CreateView(_) => {
                    let text = statement.to_string();
                    if let Statement::CreateView(view) = &statement {
                        self.views.insert(view.name.to_string(), text);
                    }
                }
                Statement::Drop { names, .. } => {
                    for name in names {
                        self.tables.remove(&name.to_string());
                        self.views.remove(&name.to_string());
                    }
                }
                Statement::CreateIndex(_) => {}
                other => return Err(format!("{other} is not read")),
            }
        }
        Ok(())
    }

    fn query(&mut self, text: &str) -> Result<DataFrame, Failure> {
        for (table, rows) in std::mem::take(&mut self.pending) {
            let frame = self.tables.get_mut(&table).unwrap();
            let column = |(index, (name, dtype)): (usize, (&PlSmallStr, &DataType))| {
                let values: Vec<AnyValue<'static>> = rows.iter().map(|row| row[index].clone()).collect();
                let values = Series::from_any_values(name.clone(), &values, false).unwrap();
                values.cast(dtype).unwrap().into_column()
            };
            let columns = frame.schema().iter().enumerate().map(column).collect();
            frame.vstack_mut(&DataFrame::new(rows.len(), columns).unwrap()).unwrap();
        }
        let relations = self.tables.iter().map(|(name, frame)| (name.clone(), frame.clone().lazy()));
        let mut whole: String = self.views.values().map(|view| format!("{view};\n")).collect();
        whole.push_str(text);
        let lazy = floe_query::plan_sql(if self.views.is_empty() { text } else { &whole }, relations)?;
        lazy.collect().map_err(|error| Failure::Query { message: error.to_string() })
    }
}

fn literal(expr: &Expr) -> Result<AnyValue<'static>, String> {
    Ok(match expr {
        Expr::Value(value) => match &value.value {
            Value::Null => AnyValue::Null,
            Value::Boolean(value) => AnyValue::Boolean(*value),
            Value::SingleQuotedString(text) => AnyValue::StringOwned(text.as_str().into()),
            Value::Number(text, _) => match text.parse() {
                Ok(number) => AnyValue::Int64(number),
                Err(_) => AnyValue::Float64(text.parse().map_err(|_| format!("{text} is no number"))?),
            },
            other => return Err(format!("{other} is not read")),
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match literal(expr)? {
            AnyValue::Int64(number) => AnyValue::Int64(-number),
            AnyValue::Float64(number) => AnyValue::Float64(-number),
            other => return Err(format!("-{other} is not read")),
        },
        Expr::TypedString(typed) => match &typed.value.value {
            Value::SingleQuotedString(text) => AnyValue::StringOwned(text.as_str().into()),
            other => return Err(format!("{other} is not read")),
        },
        other => return Err(format!("{other} is not read")),
    })
}

/// A cell as the format prints it: whole numbers, numbers of three digits after the point, or text.
fn cell(value: &AnyValue<'_>, kind: char) -> String {
    let number = match value {
        AnyValue::Null => return "NULL".to_owned(),
        AnyValue::Boolean(value) if kind != 'T' => return u8::from(*value).to_string(),
        AnyValue::String(text) if kind == 'T' => Some((*text).to_owned()),
        AnyValue::StringOwned(text) if kind == 'T' => Some(text.to_string()),
        _ => None,
    };
    if let Some(text) = number {
        return if text.is_empty() { "(empty)".to_owned() } else { text };
    }
    match kind {
        'I' => {
            let exact = !value.dtype().is_float() && !value.dtype().is_decimal();
            match value.extract::<i128>().filter(|_| exact) {
                Some(whole) => whole.to_string(),
                // `+ 0.0` for -0.
                None => value
                    .extract::<f64>()
                    .map_or_else(|| "0".to_owned(), |number| format!("{:.0}", number.trunc() + 0.0)),
            }
        }
        'R' => value.extract::<f64>().map_or_else(|| value.to_string(), |number| format!("{number:.3}")),
        _ => value.to_string(),
    }
}

/// A record of a file.
struct Record {
    line: usize,
    head: Vec<String>,
    text: String,
    wanted: Vec<String>,
}

fn records(content: &str) -> Vec<Record> {
    let mut records = Vec::new();
    let mut block: Vec<(usize, &str)> = Vec::new();
    for (number, line) in content.lines().chain([""]).enumerate() {
        if !line.trim().is_empty() {
            if !line.starts_with('#') {
                block.push((number + 1, line));
            }
            continue;
        }
        let mut lines = std::mem::take(&mut block).into_iter().peekable();
        let mut head = Vec::new();
        let mut at = 0;
        while let Some((number, line)) = lines.peek() {
            let first = line.split_whitespace().next().unwrap_or_default();
            if !matches!(first, "onlyif" | "skipif" | "statement" | "query" | "hash-threshold" | "halt") {
                break;
            }
            at = *number;
            head.push((*line).to_owned());
            lines.next();
        }
        let (mut text, mut wanted, mut results) = (Vec::new(), Vec::new(), false);
        for (_, line) in lines {
            if line == "----" {
                results = true;
            } else if results {
                wanted.push(line.to_owned());
            } else {
                text.push(line);
            }
        }
        if !head.is_empty() {
            records.push(Record { line: at, head, text: text.join("\n"), wanted });
        }
    }
    records
}

/// Runs a file; what is wrong in it is told with its line.
fn run(path: &Path, wrong: &mut Vec<String>) -> Tally {
    let content = fs::read_to_string(path).unwrap();
    let mut tally = Tally::default();
    let mut database = Database::default();
    for record in records(&content) {
        let words: Vec<Vec<&str>> =
            record.head.iter().map(|line| line.split_whitespace().collect()).collect();
        let meant = words.iter().all(|words| match words.as_slice() {
            ["onlyif", engine, ..] => *engine == "floe",
            ["skipif", engine, ..] => *engine != "floe",
            _ => true,
        });
        let Some(words) = words.last().filter(|_| meant) else {
            continue;
        };
        let at = format!("{}:{}", path.display(), record.line);
        match words.as_slice() {
            ["halt", ..] => break,
            ["statement", "ok", ..] => {
                if let Err(message) = database.run(&record.text) {
                    wrong.push(format!("{at}: {message}"));
                }
            }
            ["query", "error", ..] => match database.query(&record.text) {
                Ok(found) => wrong.push(format!("{at}: an answer instead of an error: {found}")),
                Err(failure) => {
                    let message = failure.to_string();
                    match record.wanted.iter().all(|part| message.contains(part.as_str())) {
                        true => tally.right += 1,
                        false => wrong.push(format!("{at}: {message}")),
                    }
                }
            },
            ["query", kinds, rest @ ..] => {
                let sort = rest.first().copied().unwrap_or("nosort");
                match answer(&mut database, &record, kinds, sort) {
                    Ok(()) => tally.right += 1,
                    Err(_) if LEFT_OUT.iter().any(|(part, _)| record.text.contains(part)) => {
                        tally.left_out += 1
                    }
                    Err(message) => wrong.push(format!("{at}: {message}\n{}", record.text)),
                }
            }
            _ => {}
        }
    }
    tally
}

fn answer(database: &mut Database, record: &Record, kinds: &str, sort: &str) -> Result<(), String> {
    let found = database.query(&record.text).map_err(|failure| failure.to_string())?;
    if found.width() != kinds.len() {
        return Err(format!("{} columns instead of {}", found.width(), kinds.len()));
    }
    let mut rows: Vec<Vec<String>> = (0..found.height())
        .map(|row| {
            let cells = found.columns().iter().zip(kinds.chars());
            cells.map(|(column, kind)| cell(&column.get(row).unwrap(), kind)).collect()
        })
        .collect();
    if sort == "rowsort" {
        rows.sort();
    }
    let mut values: Vec<String> = match record.wanted.first() {
        // Our own files have a row in a line.
        Some(first) if kinds.len() > 1 && first.contains('\t') => {
            rows.iter().map(|row| row.join("\t")).collect()
        }
        _ => rows.into_iter().flatten().collect(),
    };
    if sort == "valuesort" {
        values.sort();
    }
    if let [hashed] = record.wanted.as_slice()
        && let Some((count, hash)) = hashed.split_once(" values hashing to ")
    {
        let text: String = values.iter().map(|value| format!("{value}\n")).collect();
        let own = md5::hex(text.as_bytes());
        return match count == values.len().to_string() && hash == own {
            true => Ok(()),
            false => Err(format!(
                "{} values hashing to {own}: {:?}",
                values.len(),
                &values[..values.len().min(12)]
            )),
        };
    }
    match values == record.wanted {
        true => Ok(()),
        false => Err(format!("found {values:?}, wanted {:?}", record.wanted)),
    }
}

/// The corpus keeps long results as MD5 sums (RFC 1321).
mod md5 {
    pub(super) fn hex(message: &[u8]) -> String {
        const TURNS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];
        let mut state: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
        let mut padded = message.to_vec();
        padded.push(0x80);
        while padded.len() % 64 != 56 {
            padded.push(0);
        }
        padded.extend((message.len() as u64 * 8).to_le_bytes());
        for block in padded.chunks(64) {
            let word = |index: usize| u32::from_le_bytes(block[index * 4..index * 4 + 4].try_into().unwrap());
            let [mut a, mut b, mut c, mut d] = state;
            for step in 0..64 {
                let (mix, index) = match step / 16 {
                    0 => ((b & c) | (!b & d), step),
                    1 => ((d & b) | (!d & c), (5 * step + 1) % 16),
                    2 => (b ^ c ^ d, (3 * step + 5) % 16),
                    _ => (c ^ (b | !d), (7 * step) % 16),
                };
                let constant = (f64::from(step as u32 + 1).sin().abs() * 4_294_967_296.0) as u32;
                let sum = mix.wrapping_add(a).wrapping_add(constant).wrapping_add(word(index));
                (a, d, c) = (d, c, b);
                b = b.wrapping_add(sum.rotate_left(TURNS[step / 16][step % 4]));
            }
            for (old, new) in state.iter_mut().zip([a, b, c, d]) {
                *old = old.wrapping_add(new);
            }
        }
        state.iter().flat_map(|word| word.to_le_bytes()).map(|byte| format!("{byte:02x}")).collect()
    }
}

fn files(path: &Path) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![path.to_owned()]);
    while let Some(next) = pending.pop() {
        if next.is_dir() {
            pending.extend(fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()));
        } else if next.extension().is_some_and(|end| end == "test" || end == "slt") {
            found.push(next);
        }
    }
    found.sort();
    found
}

#[test]
fn statements_give_what_sql_says() {
    assert_eq!(md5::hex(b"message digest"), "f96b697d7cb7938d525a2f31aaf161d0");
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/queries/slt");
    let mut wrong = Vec::new();
    let mut right = 0;
    for file in files(&here) {
        right += run(&file, &mut wrong).right;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(right > 0);
}

#[test]
#[ignore = "FLOE_SQLLOGICTEST names a checkout of the corpus"]
#[expect(clippy::print_stderr, reason = "counts are for whoever runs this by hand")]
fn corpus() {
    let path = PathBuf::from(std::env::var("FLOE_SQLLOGICTEST").expect("FLOE_SQLLOGICTEST names a path"));
    let every: usize = std::env::var("FLOE_SQLLOGICTEST_EVERY").map_or(1, |every| every.parse().unwrap());
    let mut wrong = Vec::new();
    for file in files(&path).iter().step_by(every) {
        let before = wrong.len();
        let Tally { right, left_out } = run(file, &mut wrong);
        eprintln!("{}: {right} right, {left_out} left out, {} wrong", file.display(), wrong.len() - before);
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n\n"));
}
