//! The command line as scripts and people use it.

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::path::Path;

use floe_scenarios::reference::{Tables, same_rows, scan};
use polars::prelude::*;

use crate::workload::airlines;
use crate::{cluster, floe};

/// A few rows with everything that formats get wrong: quotes, commas, nulls, non-ASCII, dates, floats.
const STATEMENT: &str = "SELECT carrier, name || ', \"' || carrier || '\" é' AS label, \
    CASE WHEN carrier < 'D' THEN LENGTH(name) END AS size, LENGTH(name) / 7.0 AS ratio, \
    DATE '2013-01-31' AS day FROM {airlines} ORDER BY carrier";

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_fresh_each_time_and_one_word() {
    let home = tempfile::tempdir().unwrap();
    let mut keys = BTreeSet::new();
    for _ in 0..3 {
        let text = floe(home.path()).run(["key"]).await.unwrap().success().unwrap();
        let key = text.strip_suffix('\n').unwrap().to_owned();
        assert!(
            key.len() >= 32 && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_:".contains(c)),
            "{key}"
        );
        keys.insert(key);
    }
    assert_eq!(keys.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn results_come_in_every_format_to_the_terminal_and_to_a_file() {
    let cluster = cluster().nodes(1).start().await.unwrap();
    let tables = Tables::new().with("airlines", airlines());
    let text = tables.for_floe(STATEMENT);
    let wanted = tables.run(STATEMENT).unwrap();

    let table = cluster.run(0, &["sql", &text]).await.unwrap().success().unwrap();
    assert!(table.contains("label") && table.contains("\"UA\" é"), "{table}");

    for format in ["csv", "json", "parquet", "arrow"] {
        let printed = cluster.run(0, &["sql", &text, "--format", format]).await.unwrap();
        assert!(printed.status.success(), "{format}: {}", printed.stderr);
        let file = cluster.dir().join(format!("out.{format}"));
        let path = file.display().to_string();
        let quiet = cluster.run(0, &["sql", &text, "--format", format, "-o", &path]).await.unwrap();
        assert_eq!(quiet.success().unwrap(), "");
        if format != "parquet" {
            assert!(
                fs::read(&file).unwrap() == printed.stdout,
                "{format}: the file differs from what is printed"
            );
        }
        let found = read(&file);
        if matches!(format, "parquet" | "arrow") {
            same_rows(&found, &wanted, true).unwrap_or_else(|error| panic!("{format}: {error:#}"));
        } else {
            // Text has no types: compare as text.
            same_rows(&as_text(&found), &as_text(&wanted), true)
                .unwrap_or_else(|error| panic!("{format}: {error:#}"));
        }
    }
}

fn read(path: &Path) -> DataFrame {
    let file = File::open(path).unwrap();
    match path.extension().unwrap().to_str().unwrap() {
        "json" => JsonReader::new(file).finish().unwrap(),
        "arrow" => IpcReader::new(file).finish().unwrap(),
        _ => scan(path).unwrap().collect().unwrap(),
    }
}

fn as_text(frame: &DataFrame) -> DataFrame {
    frame.clone().lazy().select([all().as_expr().cast(DataType::String)]).collect().unwrap()
}

/// The first minute needs no set-up.
#[tokio::test(flavor = "multi_thread")]
async fn sql_without_a_mesh_starts_its_own() {
    let home = tempfile::tempdir().unwrap();
    let query = format!("SELECT carrier FROM '{}' WHERE name LIKE 'United%'", airlines().display());
    let answer = floe(home.path()).run(["sql", &query, "--format", "csv"]).await.unwrap().success().unwrap();
    assert_eq!(answer, "carrier\nUA\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn relative_paths_are_the_callers() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("t.csv"), "x\n1\n2\n").unwrap();
    let mut command =
        floe(home.path()).command(["sql", "SELECT MAX(x) AS m FROM 't.csv'", "--format", "csv"]);
    let output = command.current_dir(home.path()).output().await.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "m\n2\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_to_a_loopback_mesh_says_what_to_type_first() {
    let cluster = cluster().nodes(1).start().await.unwrap();
    let stderr = cluster.run(0, &["invite"]).await.unwrap().failure().unwrap();
    assert!(stderr.contains("floe up --lan"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_can_name_the_mesh() {
    let mut cluster = cluster().nodes(1).start().await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let floe = floe(home.path())
        .env("FLOE_CONNECT", cluster.node(0).address())
        .env("FLOE_KEY_FILE", &cluster.key_file().display().to_string());
    let text = floe.run(["status"]).await.unwrap().success().unwrap();
    assert!(text.contains("node-0"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn help_version_and_completions_need_no_mesh() {
    let home = tempfile::tempdir().unwrap();
    let floe = floe(home.path());
    let help = floe.run(["--help"]).await.unwrap().success().unwrap();
    for command in [
        "up", "invite", "status", "sql", "explain", "map", "run", "jobs", "logs", "cancel", "recover",
        "forget", "chaos", "demo", "key",
    ] {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(command)),
            "{command} is missing: {help}"
        );
    }
    let version = floe.run(["--version"]).await.unwrap().success().unwrap();
    assert_eq!(version, format!("floe {}\n", env!("CARGO_PKG_VERSION")));
    let completions = floe.run(["completions", "bash"]).await.unwrap().success().unwrap();
    assert!(completions.contains("explain"), "{completions}");
}
