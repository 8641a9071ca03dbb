//! Paths are paths: a file that exists under the name given is that file, patterns are patterns, for every format and
//! however a query names it. What Polars makes of each path is compared where it knows the rule.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use floe_protocol::message::Inspected;
use floe_protocol::{Failure, Query};
use polars::prelude::*;
use polars_plan::dsl::{DslBuilder, DslPlan};
use serde::Deserialize;
use tempfile::TempDir;

use crate::mesh::{ALONE, collect};

/// The table, which the Python package's tests read too.
#[derive(Deserialize)]
struct Table {
    files: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    path: String,
    #[serde(default)]
    files: Vec<String>,
    error: Option<String>,
    /// Whether Polars makes the same of it.
    #[serde(default = "yes")]
    polars: bool,
}

fn yes() -> bool {
    true
}

/// All of the table's files in one format. Each has one row, its number.
struct Tree {
    format: &'static str,
    directory: TempDir,
    table: Table,
}

const FORMATS: [&str; 5] = ["parquet", "csv", "ndjson", "arrow", "lines"];

impl Tree {
    fn new(format: &'static str) -> Self {
        let text = include_str!("../paths.json").replace(".X\"", &format!(".{format}\""));
        let table: Table = serde_json::from_str(&text).unwrap();
        let tree = Self { format, directory: tempfile::tempdir().unwrap(), table };
        for (number, file) in tree.table.files.iter().enumerate() {
            tree.write(file, number);
        }
        tree
    }

    fn write(&self, file: &str, number: usize) {
        let path = self.at(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut frame = df!("n" => [number as i64]).unwrap();
        let mut file = fs::File::create(path).unwrap();
        match self.format {
            "parquet" => drop(ParquetWriter::new(&mut file).finish(&mut frame).unwrap()),
            "csv" => CsvWriter::new(&mut file).finish(&mut frame).unwrap(),
            "ndjson" => {
                JsonWriter::new(&mut file).with_json_format(JsonFormat::JsonLines).finish(&mut frame).unwrap()
            }
            "arrow" => IpcWriter::new(&mut file).finish(&mut frame).unwrap(),
            _ => std::io::Write::write_all(&mut file, format!("{number}\n").as_bytes()).unwrap(),
        }
    }

    fn root(&self) -> &str {
        self.directory.path().to_str().unwrap()
    }

    fn at(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// What some files hold, in this order.
    fn numbers(&self, files: &[String]) -> Vec<i64> {
        let number = |file: &String| self.table.files.iter().position(|known| known == file).unwrap() as i64;
        files.iter().map(number).collect()
    }

    /// A scan of some paths, as py-polars writes it.
    fn scan(&self, paths: &[String], glob: bool) -> LazyFrame {
        let sources = ScanSources::Paths(paths.iter().map(PlRefPath::new).collect());
        let mut args = UnifiedScanArgs { glob, ..Default::default() };
        args.hive_options.enabled = (!matches!(self.format, "parquet" | "arrow")).then_some(false);
        let built = match self.format {
            "parquet" => DslBuilder::scan_parquet(sources, Default::default(), args),
            "csv" => DslBuilder::scan_csv(sources, CsvReadOptions::default(), args),
            "ndjson" => return ndjson(sources, args),
            "arrow" => DslBuilder::scan_ipc(sources, Default::default(), args),
            _ => DslBuilder::scan_lines(sources, args, "n".into()),
        };
        LazyFrame::from(built.unwrap().build())
    }

    /// By a plan.
    fn planned(&self, paths: &[&str], glob: bool) -> Result<Vec<i64>, String> {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        let dsl = floe_plan::encode(&self.scan(&paths, glob)).unwrap();
        read(collect(
            &Query::Plan { dsl: dsl.into(), directory: self.root().to_owned(), schema: Default::default() },
            &ALONE,
        ))
    }

    /// By a statement that `from` is a part of.
    fn queried(&self, from: &str, path: &str) -> Result<Vec<i64>, String> {
        let text = format!("select n from {from}");
        let tables = BTreeMap::from([("t".to_owned(), path.to_owned())]);
        read(collect(&Query::Sql { text, tables, directory: self.root().to_owned() }, &ALONE))
    }

    /// In every way that a query can name files. All must agree.
    fn all_ways(&self, path: &str) -> Result<Vec<i64>, String> {
        let planned = self.planned(&[path], true);
        if self.format != "lines" {
            let quoted = path.replace('\'', "''");
            let function = match self.format {
                "arrow" => "read_ipc",
                "ndjson" => "read_json",
                "csv" => "read_csv",
                _ => "read_parquet",
            };
            for from in [format!("'{quoted}'"), "t".to_owned(), format!("{function}('{quoted}')")] {
                assert_eq!(self.queried(&from, path), planned, "{from} as {}", self.format);
            }
        }
        planned
    }

    /// What Polars itself reads; `None` if nothing, which is an error but for lines.
    fn polars(&self, path: &str, glob: bool) -> Option<Vec<i64>> {
        let path = self.at(path).to_str().unwrap().to_owned();
        values(&self.scan(&[path], glob).collect().ok()?).filter(|numbers| !numbers.is_empty())
    }
}

/// A scan of NDJSON, of which there is no builder.
fn ndjson(sources: ScanSources, args: UnifiedScanArgs) -> LazyFrame {
    let mut plan = LazyJsonLineReader::new(PlRefPath::new("")).finish().unwrap().logical_plan;
    let DslPlan::Scan { sources: own, unified_scan_args, .. } = &mut plan else { panic!("not a scan") };
    *own = sources;
    **unified_scan_args = args;
    LazyFrame::from(plan)
}

fn read(collected: Result<DataFrame, Failure>) -> Result<Vec<i64>, String> {
    collected.map(|frame| values(&frame).unwrap()).map_err(|failure| failure.to_string())
}

fn values(frame: &DataFrame) -> Option<Vec<i64>> {
    let column = frame.column("n").unwrap().cast(&DataType::Int64).ok()?;
    Some(column.i64().unwrap().into_no_null_iter().collect())
}

fn special(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

#[test]
fn a_file_that_exists_is_that_file() {
    for format in FORMATS {
        let tree = Tree::new(format);
        for (number, file) in tree.table.files.iter().enumerate() {
            let expected = Ok(vec![number as i64]);
            // What starts with ~/ is in the home directory.
            let name = if file.starts_with("~/") { format!("./{file}") } else { file.clone() };
            assert_eq!(tree.all_ways(&name), expected, "{name}");
            assert_eq!(tree.all_ways(&format!("{}/{file}", tree.root())), expected, "{file} in full");
            assert_eq!(tree.planned(&[&name], false), expected, "{name}, which is no pattern");
            assert_eq!(tree.polars(file, false), expected.clone().ok(), "{file}, by Polars");
            if !special(file) {
                assert_eq!(tree.polars(file, true), expected.ok(), "{file}, by Polars");
            }
        }
    }
}

#[test]
fn patterns_are_patterns() {
    for format in FORMATS {
        let tree = Tree::new(format);
        for case in &tree.table.cases {
            let found = tree.all_ways(&case.path);
            match &case.error {
                Some(error) => {
                    let message = found.unwrap_err();
                    assert!(message.contains(error.as_str()), "{}: {message}", case.path);
                    assert_eq!(tree.polars(&case.path, true), None, "{}, by Polars", case.path);
                }
                None => {
                    let expected = tree.numbers(&case.files);
                    assert_eq!(found, Ok(expected.clone()), "{}", case.path);
                    let by_polars = tree.polars(&case.path, true);
                    assert_eq!(
                        by_polars == Some(expected),
                        case.polars,
                        "{}, by Polars: {by_polars:?}",
                        case.path
                    );
                }
            }
        }
    }
}

#[test]
fn without_glob_nothing_is_a_pattern() {
    for format in FORMATS {
        let tree = Tree::new(format);
        assert!(tree.planned(&["plain/*"], false).unwrap_err().contains("not found"));
        assert!(tree.planned(&["plain/[ab]"], false).unwrap_err().contains("not found"));
        let below = tree.numbers(&tree.table.cases.iter().find(|case| case.path == "plain").unwrap().files);
        assert_eq!(tree.planned(&["plain"], false), Ok(below.clone()));
        assert_eq!(tree.polars("plain", false), Some(below));
    }
}

#[test]
fn a_list_of_paths_is_read_in_its_order() {
    for format in FORMATS {
        let tree = Tree::new(format);
        let name = |file: &str| format!("{file}.{format}");
        let paths = [name("run [2024]/part [1]"), name("plain/[ab]"), "run 2".to_owned(), name("plain/b")];
        let listed: Vec<&str> = paths.iter().map(String::as_str).collect();
        let files =
            ["run [2024]/part [1]", "plain/a", "plain/b", "run 2/part 1", "run 2/part [1]", "plain/b"];
        assert_eq!(tree.planned(&listed, true), Ok(tree.numbers(&files.map(name))));
    }
}

#[test]
fn a_uri_names_a_file() {
    let tree = Tree::new("csv");
    let number = |file: &str| Ok(tree.numbers(&[file.to_owned()]));
    let uri = |path: &str| format!("file://{}/{path}", tree.root());
    assert_eq!(tree.all_ways(&uri("plain/b.csv")), number("plain/b.csv"));
    assert_eq!(tree.all_ways(&uri("odd/100%2520.csv")), number("odd/100%20.csv"));
    assert_eq!(tree.all_ways(&uri("odd/what%3F.csv")), number("odd/what?.csv"));
    assert_eq!(tree.all_ways(&uri("plain/[b].csv")), number("plain/b.csv"));
    assert!(tree.all_ways(&uri("plain/%5Bb%5D.csv")).is_err(), "what is written with escapes is no pattern");
    for path in ["s3://bucket/key.csv", "https://x.example/a.csv", "file://elsewhere/a.csv"] {
        let message = tree.all_ways(path).unwrap_err();
        assert!(message.contains(path), "{message}");
    }
}

#[test]
fn a_tilde_is_the_home_directory() {
    let tree = Tree::new("csv");
    let Some(home) = std::env::home_dir() else { return };
    let message = tree.all_ways("~/floe there is no such file.csv").unwrap_err();
    assert!(message.contains(&format!("{}/floe there", home.display())), "{message}");
}

#[test]
fn empty_files_are_passed_over_by_patterns_and_in_directories() {
    for format in FORMATS {
        let tree = Tree::new(format);
        fs::write(tree.at(&format!("plain/empty.{format}")), "").unwrap();
        for path in ["plain".to_owned(), format!("plain/*.{format}")] {
            let found = tree.all_ways(&path).unwrap();
            assert_eq!(Some(&found), tree.polars(&path, true).as_ref(), "{path}");
            assert!(found.len() >= 3);
        }
        let only = format!("plain/emp*.{format}");
        assert!(tree.planned(&[&only], true).unwrap_or_default().is_empty());
        assert_eq!(tree.polars(&only, true), None);
    }
}

#[test]
fn a_format_is_told_by_the_name_or_by_the_files() {
    let tree = Tree::new("csv");
    let below = tree.planned(&["plain"], true);
    for path in ["plain", "plain/**/*", "plain/**/*.c?v", "plain/**/*.[c]sv"] {
        assert_eq!(tree.queried("t", path), below, "{path}");
    }
    fs::create_dir(tree.at("mixed")).unwrap();
    fs::write(tree.at("mixed/a.csv"), "n\n1\n").unwrap();
    fs::write(tree.at("mixed/b.tsv"), "n\n1\n").unwrap();
    let message = tree.queried("t", "mixed/*").unwrap_err();
    assert!(message.contains("cannot tell the format of"), "{message}");
    // One file, read in two ways.
    fs::write(tree.at("rows"), "{\"n\": 1}\n").unwrap();
    let twice = "(select n from read_json('rows') union all select 2 as n from read_csv('rows'))";
    assert_eq!(tree.queried(twice, "").map(|numbers| numbers.len()), Ok(1), "the CSV has a head and no row");
}

#[test]
fn a_directory_keeps_its_partitions_whatever_it_is_called() {
    for (format, directory) in [("parquet", "by [year]"), ("arrow", "by [year]"), ("parquet", "by year")] {
        let tree = Tree::new(format);
        for year in [2023, 2024] {
            let path = tree.at(&format!("{directory}/year={year}/part [1].{format}"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::copy(tree.at(&format!("plain/b.{format}")), path).unwrap();
        }
        let frame = tree.scan(&[directory.to_owned()], true);
        let dsl = floe_plan::encode(&frame).unwrap();
        let query =
            Query::Plan { dsl: dsl.into(), directory: tree.root().to_owned(), schema: Default::default() };
        let found = collect(&query, &ALONE).unwrap();
        assert_eq!(found, df!("n" => [1i64, 1], "year" => [2023i64, 2024]).unwrap());
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_str().unwrap().to_owned();
    let missing = |path: &str| {
        let paths = floe_query::resolve(&[path.to_owned()], &root).unwrap();
        match floe_query::inspect(&paths).remove(0) {
            Inspected::Missing(why) => why,
            Inspected::Files(files) => panic!("{path} is {files:?}"),
        }
    };
    let at = |name: &str| directory.path().join(name);
    assert_eq!(missing("."), "no files are in it");
    fs::create_dir(at("odd")).unwrap();
    fs::write(at("odd").join(OsStr::from_bytes(b"bad\xff.csv")), "n\n1\n").unwrap();
    for path in ["odd", "odd/*.csv", "**/*.csv"] {
        let why = missing(path);
        assert!(why.contains("the name of this file is not UTF-8"), "{path}: {why}");
        assert!(why.contains("bad"), "{path}: {why}");
    }
    assert_eq!(missing("odd/good*.csv"), "nothing matches");
    std::os::unix::fs::symlink(at("gone"), at("link")).unwrap();
    for path in ["lin*", "."] {
        assert!(missing(path).contains("link: not found"), "{path}");
    }
    fs::remove_file(at("link")).unwrap();
    fs::create_dir(at("round")).unwrap();
    std::os::unix::fs::symlink(at("round"), at("round").join("again")).unwrap();
    for path in ["round", "round/**/*.csv"] {
        assert!(missing(path).contains("again: a link to a directory that it is in itself"), "{path}");
    }
    let fifo = at("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert_eq!(missing("fifo"), "neither a file nor a directory");
    let socket = Path::new("/dev/null");
    assert_eq!(missing(socket.to_str().unwrap()), "neither a file nor a directory");
}
