//! Plans and statements of any depth are answered as Polars answers them, or refused in a sentence.
//!
//! In a process of their own, whose threads have the stacks that a node's have.

use std::process::Command;

use floe_protocol::{Failure, Query};
use floe_query::{THREAD_STACK_BYTES, on_deep_stack};
use polars::prelude::*;

use crate::mesh::{ROOMY, collect, lazy, sql};

const CHILD: &str = "FLOE_TEST_DEEP";

/// Up to here everything is answered.
const ANSWERED: usize = 1_000;

/// Beyond the limits of what Polars does in reasonable time. Here a refusal must come at once.
const DEPTHS: [usize; 4] = [10, ANSWERED, 10_000, 100_000];

#[test]
fn any_depth_is_answered_or_refused() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "deep::child", "--ignored", "--nocapture"])
        .env(CHILD, "1")
        // As `configure_thread_stacks` does in a process that has no threads yet.
        .env("RUST_MIN_STACK", THREAD_STACK_BYTES.to_string())
        .output()
        .unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}\n{}", output.status, said(&output.stdout), said(&output.stderr));
}

/// The other process.
#[test]
#[ignore = "started by any_depth_is_answered_or_refused"]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    on_deep_stack(|| {
        for depth in DEPTHS {
            for (name, make, expected) in plans() {
                judge(name, depth, &lazy(make(depth)), &expected(depth));
            }
            for (name, make, expected) in statements() {
                judge(name, depth, &sql(&make(depth)), &expected(depth));
            }
        }
    });
}

fn judge(name: &str, depth: usize, query: &Query, expected: &[i64]) {
    match collect(query, &ROOMY) {
        Ok(found) => {
            let found: Vec<i64> = found.column("x").unwrap().i64().unwrap().into_no_null_iter().collect();
            assert!(found == expected, "{depth} x {name}: {} rows", found.len());
        }
        Err(Failure::Refused { message } | Failure::Query { message }) => {
            assert!(depth > ANSWERED, "{depth} x {name}: {message}");
            assert!(message.len() > 20 && message.len() < 500, "{depth} x {name}: {message}");
        }
        Err(other) => panic!("{depth} x {name}: {other:?}"),
    }
}

const ROWS: [i64; 3] = [1, 2, 3];

fn rows() -> LazyFrame {
    df!("x" => ROWS).unwrap().lazy()
}

/// What a query is called, the query of a depth, and the rows that come of it.
type Case<Q> = (&'static str, fn(usize) -> Q, fn(usize) -> Vec<i64>);

fn case<Q>(name: &'static str, make: fn(usize) -> Q, expected: fn(usize) -> Vec<i64>) -> Case<Q> {
    (name, make, expected)
}

fn repeat<T>(depth: usize, first: T, step: impl Fn(T, usize) -> T) -> T {
    (0..depth).fold(first, step)
}

/// Of depths that are even.
fn plans() -> Vec<Case<LazyFrame>> {
    let same = |_: usize| ROWS.to_vec();
    let sums = |n: usize| ROWS.iter().map(|x| x + n as i64).collect();
    vec![
        case("+", |n| rows().select([repeat(n, col("x"), |e, _| e + lit(1))]), sums),
        case(
            "or",
            |n| rows().filter(repeat(n, col("x").eq(lit(-1)), |e, i| e.or(col("x").eq(lit(i as i64))))),
            |n| ROWS.into_iter().filter(|x| *x < n as i64).collect(),
        ),
        case("abs", |n| rows().select([repeat(n, col("x"), |e, _| e.abs())]), same),
        case("not", |n| rows().filter(repeat(n, col("x").gt(lit(0)), |e, _| e.not())), same),
        case(
            "cast",
            |n| {
                let there_and_back = |e: Expr, _| e.cast(DataType::Int32).cast(DataType::Int64);
                rows().select([repeat(n / 2, col("x"), there_and_back)])
            },
            same,
        ),
        case(
            "when",
            |n| {
                rows()
                    .select([repeat(n, col("x"), |e, _| when(col("x").gt(lit(0))).then(e).otherwise(lit(0)))])
            },
            same,
        ),
        case("with_columns", |n| repeat(n, rows(), |frame, _| frame.with_column(col("x") + lit(1))), sums),
        case("filter", |n| repeat(n, rows(), |frame, i| frame.filter(col("x").gt(lit(-(i as i64))))), same),
        case("slice", |n| repeat(n, rows(), |frame, _| frame.slice(0, 3)), same),
        case("sort", |n| repeat(n, rows(), |frame, _| frame.sort(["x"], Default::default())), same),
        case("a union of", |n| concat(vec![rows(); n], Default::default()).unwrap(), |n| ROWS.repeat(n)),
        case(
            "nested unions",
            |n| repeat(n / 20, rows(), |frame, _| concat([frame, rows()], Default::default()).unwrap()),
            |n| ROWS.repeat(n / 20 + 1),
        ),
    ]
}

/// Over numbers that the statement itself brings: 1, 2, 3.
fn statements() -> Vec<Case<String>> {
    const FROM: &str = "FROM (SELECT 1 AS x UNION ALL SELECT 2 UNION ALL SELECT 3) AS t";
    let same = |_: usize| ROWS.to_vec();
    vec![
        case(
            "OR in SQL",
            |n| {
                let more: String = (0..n).map(|i| format!(" OR x = {i}")).collect();
                format!("SELECT CAST(x AS BIGINT) AS x {FROM} WHERE x = -1{more}")
            },
            |n| ROWS.into_iter().filter(|x| *x < n as i64).collect(),
        ),
        case(
            "+ in SQL",
            |n| format!("SELECT CAST(x AS BIGINT){} AS x {FROM}", " + 1".repeat(n)),
            |n| ROWS.iter().map(|x| x + n as i64).collect(),
        ),
        case(
            "AND in SQL",
            |n| format!("SELECT CAST(x AS BIGINT) AS x {FROM} WHERE x > 0{}", " AND x > -1".repeat(n)),
            same,
        ),
        case(
            "UNION ALL in SQL",
            |n| {
                format!(
                    "SELECT CAST(0 AS BIGINT) AS x{}",
                    " UNION ALL SELECT CAST(0 AS BIGINT) AS x".repeat(n)
                )
            },
            |n| vec![0; n + 1],
        ),
    ]
}

/// What nests beyond what the parser takes is refused from a depth on that nobody writes.
#[test]
fn brackets_and_subqueries_are_refused_when_they_are_too_deep() {
    for depth in DEPTHS {
        let brackets = format!("SELECT {}1{} AS x", "(".repeat(depth), ")".repeat(depth));
        let queries =
            format!("SELECT * FROM {}(SELECT 1 AS x){}", "(SELECT * FROM ".repeat(depth), ")".repeat(depth));
        let unclosed = format!("SELECT {}1", "(".repeat(depth));
        for text in [brackets, queries, unclosed] {
            match collect(&sql(&text), &ROOMY) {
                Ok(found) => assert_eq!(found.height(), 1),
                Err(Failure::Refused { message } | Failure::Query { message }) => {
                    assert!((10..600).contains(&message.len()), "{message}");
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}
