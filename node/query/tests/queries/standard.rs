//! SQL as the standard has it, where Polars SQL is silent, other or wrong. The values are those of DuckDB 2.0 and of
//! PostgreSQL's documentation.

use polars::prelude::*;

use crate::mesh::{ROOMY, collect, sql};

const TABLE: &str = "(VALUES (1, 5, 'u', 1.50), (2, NULL, 'v', -2.25), (3, 1, 'u', 99.99)) AS t(id, a, g, p)";

/// The rows of a query over [`TABLE`], one text each.
fn rows(text: &str) -> String {
    let text = text.replace("from t", &format!("from {TABLE}"));
    let frame = match collect(&sql(&text), &ROOMY) {
        Ok(frame) => frame,
        Err(failure) => return failure.to_string(),
    };
    let value = |column: &Column, row: usize| match column.get(row).unwrap() {
        AnyValue::String(text) => text.to_owned(),
        AnyValue::StringOwned(text) => text.to_string(),
        value => value.to_string(),
    };
    let row = |row| frame.columns().iter().map(|column| value(column, row)).collect::<Vec<_>>().join(" ");
    (0..frame.height()).map(row).collect::<Vec<_>>().join("; ")
}

fn check(table: &[(&str, &str)]) {
    let wrong: Vec<String> = table
        .iter()
        .map(|(text, wanted)| (text, wanted, rows(text)))
        .filter(|(_, wanted, found)| *wanted != found)
        .map(|(text, wanted, found)| format!("{text}\n  wanted {wanted}\n  found  {found}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn is_distinct_from_binds_closer_than_and_and_or() {
    check(&[
        ("select id from t where id is not distinct from 1 or id = 2 order by id", "1; 2"),
        ("select id from t where id is distinct from 1 and id > 2 or id = 1 order by id", "1; 3"),
        ("select 2 is distinct from 2 or false", "false"),
        ("select id from t where g is not distinct from 'u' and id = 1 and a = 5 or false", "1"),
        ("select id from t where a is not distinct from (null or null)", "2"),
        (
            "select id from t where a is distinct from null and g is distinct from 'v' or id is not distinct from 2 order by id",
            "1; 2; 3",
        ),
        (
            "select case when id is distinct from 1 and a = 1 then 'x' else 'y' end from t order by id",
            "y; y; x",
        ),
    ]);
}

#[test]
fn frames_of_rows_end_where_they_say() {
    let over = |call: &str, frame: &str| {
        format!("select {call} over (order by id rows between {frame}) as x from range order by id")
    };
    let range = "(VALUES (1, 5), (2, NULL), (3, 1), (4, 7), (5, 2)) AS range(id, a)";
    for (call, frame, wanted) in [
        ("sum(a)", "1 preceding and current row", "5; 5; 1; 8; 9"),
        ("sum(a)", "current row and 1 following", "5; 1; 8; 9; 2"),
        ("sum(a)", "1 preceding and 1 following", "5; 6; 8; 10; 9"),
        ("sum(a)", "2 preceding and 1 preceding", "null; 5; 5; 1; 8"),
        ("sum(a)", "1 following and 2 following", "1; 8; 9; 2; null"),
        ("sum(a)", "current row and unbounded following", "15; 10; 10; 9; 2"),
        ("sum(a)", "unbounded preceding and 1 following", "5; 6; 13; 15; 15"),
        ("sum(a)", "unbounded preceding and 1 preceding", "null; 5; 5; 6; 13"),
        ("sum(a)", "99999999999 preceding and 99999999999 following", "15; 15; 15; 15; 15"),
        ("count(a)", "1 preceding and 1 following", "1; 2; 2; 3; 2"),
        ("count(*)", "1 preceding and 1 following", "2; 3; 3; 3; 2"),
        ("count(*)", "7 following and 9 following", "0; 0; 0; 0; 0"),
        ("avg(a)", "1 preceding and current row", "5.0; 5.0; 1.0; 4.0; 4.5"),
        ("min(a)", "1 preceding and 1 following", "5; 1; 1; 1; 2"),
        ("max(a)", "1 preceding and current row", "5; 5; 1; 7; 7"),
        ("max(a)", "2 following and unbounded following", "7; 7; 2; null; null"),
        ("first_value(a)", "1 preceding and current row", "5; 5; null; 1; 7"),
        ("first_value(id)", "2 following and 3 following", "3; 4; 5; null; null"),
        ("last_value(id)", "1 preceding and 2 following", "3; 4; 5; 5; 5"),
        ("last_value(id)", "3 preceding and 2 preceding", "null; null; 1; 2; 3"),
        ("row_number()", "1 preceding and current row", "1; 2; 3; 4; 5"),
    ] {
        let text = over(call, frame).replace("from range", &format!("from {range}"));
        assert_eq!(rows(&text), wanted, "{call} {frame}");
    }
    check(&[
        (
            "select id, sum(id) over (partition by g order by id rows between 1 preceding and current row) from t order by id",
            "1 1; 2 2; 3 4",
        ),
        (
            "select id, sum(p) over (order by id rows 1 preceding) from t order by id",
            "1 1.50; 2 -0.75; 3 97.74",
        ),
        (
            "select id, min(date '2024-01-01' + id) over (order by id rows 1 preceding) from t order by id",
            "1 2024-01-02; 2 2024-01-02; 3 2024-01-03",
        ),
        (
            "select id, max(g) over (order by id rows 1 preceding), min(p) over (order by id rows 1 preceding) from t order by id",
            "1 u 1.50; 2 v -2.25; 3 v -2.25",
        ),
        (
            "select id, count(*) over (rows unbounded preceding), sum(id) over (partition by g rows 1 preceding) from t order by id",
            "1 1 1; 2 2 2; 3 3 4",
        ),
        (
            "select id, first_value(id) over (rows between 1 preceding and current row) from t order by id",
            "1 1; 2 1; 3 2",
        ),
        (
            "select id, sum(id) over (order by id rows between 2 preceding and 3 preceding), count(*) over (order by id rows between 3 following and 2 following) from t order by id",
            "1 null 0; 2 null 0; 3 null 0",
        ),
        ("select id, max(g) over (order by id) from t order by id", "1 u; 2 v; 3 v"),
        (
            "select id, sum(null) over (order by id rows 1 preceding) from t order by id",
            "1 null; 2 null; 3 null",
        ),
        (
            "select id, sum(x) over (order by id) from (values (1, cast(9999999.99 as decimal(9,2))), (2, cast(9999999.99 as decimal(9,2)))) v(id, x) order by id",
            "1 9999999.99; 2 19999999.98",
        ),
        (
            "select id, min(x) over (order by id rows between 1 preceding and 1 following), max(x) over (order by id rows 1 preceding) from (values (1, 'nan'::double), (2, 1.0::double), (3, 2.0::double), (4, 'nan'::double), (5, 'nan'::double)) v(id, x) order by id",
            "1 1.0 NaN; 2 1.0 1.0; 3 1.0 2.0; 4 2.0 2.0; 5 NaN NaN",
        ),
        (
            "select id, avg(d) over (order by id rows 1 preceding) from (values (1, date '2024-01-01'), (2, date '2024-01-02')) v(id, d) order by id",
            "1 2024-01-01 00:00:00; 2 2024-01-01 12:00:00",
        ),
        (
            "select sum(g) over (order by id rows 1 preceding) from t",
            "sum is of numbers, not of values of the type str (line 1, column 8)",
        ),
        (
            "select sum(a) over (order by id rows between 1 following and 1 preceding) from t",
            "a frame that ends before it begins (line 1, column 8)",
        ),
        (
            "select sum(a) over (order by id range between 1 preceding and current row) from t",
            "a frame of RANGE or GROUPS that does not go from UNBOUNDED PRECEDING to CURRENT ROW or UNBOUNDED \
             FOLLOWING is not supported in SQL (line 1, column 8)",
        ),
    ]);
}

#[test]
fn all_of_except_and_intersect_counts_copies() {
    let (left, right) =
        ("(VALUES (1), (1), (1), (2), (NULL), (NULL)) AS l(x)", "(VALUES (1), (1), (NULL), (3)) AS r(x)");
    let both =
        |operator: &str| rows(&format!("select x from {left} {operator} select x from {right} order by x"));
    assert_eq!(both("except all"), "1; 2; null");
    assert_eq!(both("intersect all"), "1; 1; null");
    assert_eq!(both("except"), "2");
    assert_eq!(both("intersect"), "1; null");
}

#[test]
fn percentiles_are_of_what_is_sorted() {
    check(&[
        ("select percentile_cont(0.5) within group (order by id) from t", "2.0"),
        ("select percentile_cont(0.25) within group (order by a desc) as x from t", "4.0"),
        ("select percentile_disc(0.5) within group (order by a) from t", "1"),
        ("select percentile_disc(0.5) within group (order by a desc) from t", "5"),
        ("select percentile_disc(0) within group (order by g desc) from t", "v"),
        (
            "select g, percentile_cont(0.5) within group (order by p) from t group by g order by g",
            "u 50.745; v -2.25",
        ),
        ("select percentile_cont(0.5) within group (order by id) from t where id > 3", "null"),
        ("select percentile_disc(0.5) within group (order by id) from t where id > 3", "null"),
        (
            "select percentile_cont(1.5) within group (order by id) from t",
            "percentile_cont has one number from 0 to 1 (line 1, column 8)",
        ),
        (
            "select sum(a) within group (order by id) from t",
            "sum WITHIN GROUP is not supported in SQL (line 1, column 8)",
        ),
    ]);
}

#[test]
fn a_table_of_which_no_column_is_used_counts_with_its_rows() {
    let sides = [
        ("(select 1 as y)", 1),
        ("(select 1 as y union all select 2)", 2),
        ("(values (1), (2))", 2),
        ("(select count(*) as y from t)", 1),
        ("(select max(id) as y from t)", 1),
        ("(select y from (select max(id) as y from t) q)", 1),
        ("(select max(id) + 1 as y from t having max(id) > 0)", 1),
        ("(select g as y from t group by g)", 2),
        ("(select distinct g as y from t)", 2),
        ("(select id as y from t limit 2)", 2),
        ("(select sum(id) over () as y from t)", 3),
        ("(select id as y from t union select 1)", 3),
        ("(select id as y from t where id > 3)", 0),
        ("(select (select max(id) from t) as y)", 1),
    ];
    for (side, height) in sides {
        for from in [format!("t, {side} z"), format!("{side} z, {TABLE}"), format!("t cross join {side} z")] {
            let count = rows(&format!("select count(*) from {from}"));
            assert_eq!(count, (3 * height).to_string(), "count(*) from {from}");
            let ids = rows(&format!("select id from {from}"));
            let listed = if ids.is_empty() { 0 } else { ids.split(';').count() };
            assert_eq!(listed, 3 * height, "id from {from}: {ids}");
            let sum = if height == 0 { "null".to_owned() } else { (6 * height).to_string() };
            assert_eq!(rows(&format!("select sum(id) from {from}")), sum, "sum(id) from {from}");
        }
    }
    check(&[
        ("select id, (select max(id) from (select 1 as y) z) as m from t order by id", "1 1; 2 2; 3 3"),
        ("select id, (select count(id) from (select 1 as y) z) as m from t order by id", "1 1; 2 1; 3 1"),
        ("select count(*) from (select 1 as y) z", "1"),
        ("select exists (select 1)", "true"),
        ("select 1 where false", ""),
    ]);
}

#[test]
fn windows_are_built_on_named_ones() {
    check(&[
        ("select id, sum(id) over w from t window w as (partition by g) order by id", "1 4; 2 2; 3 4"),
        (
            "select id, sum(id) over (w) from t window w as (partition by g order by id) order by id",
            "1 1; 2 2; 3 4",
        ),
        (
            "select id, sum(id) over (w order by id desc) from t window w as (partition by g) order by id",
            "1 4; 2 2; 3 3",
        ),
        (
            "select id, sum(id) over (v rows 1 preceding), row_number() over (w order by id) from t window w as (partition by g), v as (w order by id) order by id",
            "1 1 1; 2 2 1; 3 4 2",
        ),
        (
            "select sum(id) over (x) from t window w as (partition by g)",
            "there is no window x (line 1, column 8)",
        ),
        ("select sum(id) over (x) from t", "there is no window x (line 1, column 8)"),
        (
            "select sum(id) over v from t window w as (v), v as (w)",
            "a window that is built on itself (line 1, column 8)",
        ),
        (
            "select sum(id) over (w order by id) from t window w as (order by g)",
            "PARTITION BY or ORDER BY beside that of the window w (line 1, column 8)",
        ),
    ]);
}

#[test]
fn errors_name_what_was_written_and_where() {
    check(&[
        ("select array[1, a] from t", "ARRAY[1, a] is not supported in SQL (line 1, column 14)"),
        ("select ~id from t", "the operator ~ is not supported in SQL (line 1, column 9)"),
        (
            "select *, count(*) from t group by 1",
            "the column a must stand in GROUP BY or in an aggregate (line 1, column 1)",
        ),
        ("select g collate nocase from t", "COLLATE is not supported in SQL (line 1, column 8)"),
        ("select a ^ 2 from t", "the operator ^ is not supported in SQL (line 1, column 8)"),
        ("select g, foo(a) from t group by g", "unsupported function 'foo' (line 1, column 11)"),
        ("select foo(nope) from t", "unsupported function 'foo' (line 1, column 8)"),
        ("select id from t order by 3", "ORDER BY 3: the result has one column (line 1, column 113)"),
        ("select id, a from t order by 0", "ORDER BY 0: the result has 2 columns (line 1, column 116)"),
        ("select id from t group by 2", "GROUP BY 2: the result has one column (line 1, column 113)"),
        (
            "select id from t union select id, a from t",
            "UNION of results with 1 and 2 columns (line 1, column 110)",
        ),
        (
            "select id from t union all select id from t order by 2",
            "ORDER BY 2: the result has one column (line 1, column 226)",
        ),
        (
            "select id from t where id = (select id from t)",
            "one value was expected, of a subquery or of item(), and there were 3 values",
        ),
    ]);
}

#[test]
fn windows_with_an_order_take_peers_together_and_nulls_as_order_by_does() {
    check(&[
        ("select avg(id) over (order by id) as m from t order by id", "1.0; 1.5; 2.0"),
        ("select id, sum(id) over (order by g) from t order by id", "1 4; 2 6; 3 4"),
        (
            "select id, sum(id) over (order by g rows between unbounded preceding and current row) from t order by id",
            "1 1; 2 6; 3 4",
        ),
        (
            "select id, count(*) over (order by g), count(a) over (order by g) from t order by id",
            "1 2 2; 2 3 2; 3 2 2",
        ),
        (
            "select id, last_value(id) over (order by g), first_value(id) over (order by g) from t order by id",
            "1 3 1; 2 2 1; 3 3 1",
        ),
        (
            "select id, rank() over (order by a), dense_rank() over (order by a desc) from t order by id",
            "1 2 2; 2 3 1; 3 1 3",
        ),
        ("select id, rank() over (order by a nulls first) from t order by id", "1 3; 2 1; 3 2"),
        (
            "select id, row_number() over (order by a), lag(id) over (order by a), lead(id) over (order by a) from t order by id",
            "1 2 3 2; 2 3 1 null; 3 1 null 1",
        ),
        (
            "select id, lag(id, 2, -1) over (order by id), lead(a, 1, 7) over (order by id) from t order by id",
            "1 -1 null; 2 -1 1; 3 1 7",
        ),
        ("select id, row_number() over (order by g desc, id desc) from t order by id", "1 3; 2 1; 3 2"),
        (
            "select id, min(a) over (order by id), max(a) over (order by id desc) from t order by id",
            "1 5 5; 2 5 1; 3 1 1",
        ),
        (
            "select id, sum(id) over (partition by g order by id), sum(a) over (partition by g order by id) from t order by id",
            "1 1 5; 2 2 null; 3 4 6",
        ),
        (
            "select id, sum(id) over (order by id rows between unbounded preceding and unbounded following) from t order by id",
            "1 6; 2 6; 3 6",
        ),
        (
            "select id, percent_rank() over (order by id), cume_dist() over (order by g) from t order by id",
            "1 0.0 0.666667; 2 0.5 1.0; 3 1.0 0.666667",
        ),
        (
            "select id, ntile(2) over (order by id), ntile(5) over (order by id) from t order by id",
            "1 1 1; 2 1 2; 3 2 3",
        ),
        ("select id from t qualify rank() over (order by a desc) = 1", "2"),
        ("select g, rank() over (order by sum(a)) from t group by g order by g", "u 1; v 2"),
        ("select id, sum(p) over (order by id) from t order by id", "1 1.50; 2 -0.75; 3 99.24"),
    ]);
    for (text, word) in [
        (
            "select stddev(id) over (order by id) from t",
            "stddev with these arguments and ORDER BY or ROWS in OVER",
        ),
        ("select sum(id) filter (where id > 1) over (order by id) from t", "FILTER"),
    ] {
        assert!(rows(text).contains(word), "{text}: {}", rows(text));
    }
}

#[test]
fn remainders_and_whole_quotients_have_the_sign_of_the_dividend() {
    check(&[
        (
            "select cast(-2.25 as decimal(5,2)) % 1, -5.5 % 2, -2.5e0 % 1, -7 % 3, mod(-7, 3), 7 % -3",
            "-0.25 -1.5 -0.5 -1 -1 1",
        ),
        ("select p % 1 from t order by id", "0.50; -0.25; 0.99"),
        (
            "select id % -2 as a, -id % 2 as b, (id * 1e0) % -2 as c, mod(-id, 2) as d from t order by id",
            "1 -1 1.0 -1; 0 0 0.0 0; 1 -1 1.0 -1",
        ),
        ("select -5 // 2, 5 // -2, 5 // 2, -5.5e0 // 2, -4 // 2", "-2 -2 2 -2 -2"),
        ("select (-id) // 2 as a, (id - 4) // 2 as b from t order by id", "0 -1; -1 -1; -1 0"),
        ("select id % 0, id // 0 from t where id = 1", "null null"),
    ]);
}

#[test]
fn steps_of_months_are_taken_at_once() {
    check(&[
        ("select date '2024-02-29' + interval '1 year 2 months'", "2025-04-29"),
        ("select date '2024-02-29' + interval '14 months'", "2025-04-29"),
        ("select date '2024-02-29' + interval '1 year 2 months 3 days'", "2025-05-02"),
        ("select date '2024-03-31' - interval '1 month'", "2024-02-29"),
        ("select date '2024-01-31' + interval '3 days 1 month'", "2024-03-03"),
    ]);
}

#[test]
fn dates_and_times_are_read_as_people_write_them() {
    check(&[
        (
            "select timestamp '2024-03-31 12:00:00', timestamp '2024-03-31', timestamp '2024-03-31 12:00'",
            "2024-03-31 12:00:00 2024-03-31 00:00:00 2024-03-31 12:00:00",
        ),
        (
            "select cast('2024-03-31 12:00:00.25' as timestamp), cast('2024-03-31T01:02:03' as timestamp)",
            "2024-03-31 12:00:00.250 2024-03-31 01:02:03",
        ),
        (
            "select cast('2024-03-31 12:00:00' as date), cast('10:00' as time), time '11:30'",
            "2024-03-31 10:00:00 11:30:00",
        ),
        (
            "select timestamp '2024-03-31 12:00' > '2024-03-31', date '2024-01-31' = '2024-01-31 00:00:00', time '10:00' < '11:00'",
            "true true true",
        ),
        ("select timestamp '2024-03-31 12:00' between '2024-03-31' and '2024-03-31 12:00:00'", "true"),
        ("select timestamp '2024-03-31' in ('2024-03-31', '2024-04-01 10:00')", "true"),
        (
            "select cast(s as timestamp), cast(s as date) from (values ('2024-03-31 12:00'), ('2024-03-31'), (null)) as x(s)",
            "2024-03-31 12:00:00 2024-03-31; 2024-03-31 00:00:00 2024-03-31; null null",
        ),
        (
            "select try_cast('x' as timestamp), try_cast('2024-03-31 12:00' as timestamp)",
            "null 2024-03-31 12:00:00",
        ),
        ("select cast(99.99 as integer), cast(-2.5 as integer), cast(2.4 as bigint)", "100 -3 2"),
        ("select cast(p as integer) from t order by id", "2; -2; 100"),
    ]);
    assert!(rows("select id from t where date '2024-01-31' = 20240131").contains("do not compare"));
}

#[test]
fn the_same_key_twice_is_one() {
    check(&[
        (
            "select id, (select count(*) from (values (1), (1), (3)) u(k) where u.k = t.id and t.id = u.k) from t order by id",
            "1 2; 2 0; 3 1",
        ),
        (
            "select t.id, u.k from t left join (values (1), (3)) u(k) on t.id = u.k and u.k = t.id order by t.id",
            "1 1; 2 null; 3 3",
        ),
        (
            "select id from t where exists (select 1 from (values (1)) u(k) where u.k = t.id and t.id = u.k)",
            "1",
        ),
    ]);
}

#[test]
fn functions_that_polars_sql_lacks() {
    check(&[
        (
            "select date_trunc('month', timestamp '2024-03-31 12:00'), date_trunc('year', date '2024-03-31')",
            "2024-03-01 00:00:00 2024-01-01",
        ),
        (
            "select date_trunc('hour', s) from (values (timestamp '2024-03-31 12:34')) as x(s)",
            "2024-03-31 12:00:00",
        ),
        (
            "select date_trunc('week', date '2024-03-31'), date_trunc('quarter', date '2024-03-31')",
            "2024-03-25 2024-01-01",
        ),
        (
            "select now() = current_timestamp, current_date > date '2024-01-01', cast(now() as date) = current_date",
            "true true true",
        ),
        (
            "select bool_and(a > 0), bool_or(a > 4), every(id > 1), bool_and(a > 9 and null) from t",
            "true true false false",
        ),
        (
            "select g, bool_or(a is null), count_if(id > 1), var_pop(id), stddev_pop(id) from t group by g order by g",
            "u false 1 1.0 1.0; v true 1 0.0 0.0",
        ),
        ("select bool_and(a > 0), var_pop(a), count_if(true) from t where id > 9", "null null 0"),
    ]);
}

/// What stands in `FROM` is planned once, however deep.
#[test]
fn tables_within_tables() {
    let text =
        (0..60).fold("select id from t".to_owned(), |text, n| format!("select * from ({text}) as t{n}"));
    assert_eq!(rows(&text), "1; 2; 3");
    let text = (0..30).fold("t.id".to_owned(), |text, n| {
        format!("(select max(u{n}.k) from (values (1)) u{n}(k) where u{n}.k <= {text})")
    });
    assert!(rows(&format!("select {text} from t")).contains("within more than"));
}

#[test]
fn patterns() {
    check(&[
        (
            "select 'a%b' like 'a!%b' escape '!', 'axb' like 'a!%b' escape '!', 'a.b' like 'a_b', 'axb' like 'a.b'",
            "true false true false",
        ),
        (
            "select s like p, s not like p, s ilike upper(p) from (values ('abc', 'a%'), ('a.c', 'a_c'), ('abc', 'a.c'), ('a+c', 'a+%'), (null, '%')) as x(s, p)",
            "true false true; true false true; false true false; true false true; null null null",
        ),
        (
            "select s like p || '%' from (values ('50%', '50!%'), ('line\nbreak', 'line')) as x(s, p)",
            "false; true",
        ),
        ("select g from t where g not like 'u!%' escape '!' order by id", "u; v; u"),
    ]);
    assert!(rows("select 'a' like 'a!' escape '!'").contains("ends with its escape"));
    assert!(rows("select 'a' like 'a' escape 'ab'").contains("one character"));
    assert!(rows("select id like g from t").contains("LIKE is of texts"));
}
