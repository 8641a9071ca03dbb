//! What the SQL front end makes of a text, before Polars optimizes it: one golden text for each kind of construct.

use std::fmt::Write;

use polars::prelude::*;

/// `orders` has many rows, `customers` few, `regions` one for each customer's region.
fn tables() -> Vec<(String, LazyFrame)> {
    let orders = df!(
        "o_id" => (0..1000i64).collect::<Vec<_>>(),
        "o_customer" => (0..1000i64).map(|n| n % 50).collect::<Vec<_>>(),
        "o_price" => (0..1000i64).collect::<Vec<_>>(),
        "o_day" => vec![19_000i32; 1000],
    );
    let customers = df!(
        "c_id" => (0..50i64).collect::<Vec<_>>(),
        "c_region" => (0..50i32).map(|n| n % 5).collect::<Vec<_>>(),
        "c_name" => (0..50i64).map(|n| n.to_string()).collect::<Vec<_>>(),
    );
    let regions = df!("r_id" => [0i32, 1, 2, 3, 4], "r_name" => ["a", "b", "c", "d", "e"]);
    let priced = [col("o_price").cast(DataType::Decimal(15, 2)), col("o_day").cast(DataType::Date)];
    vec![
        ("orders".to_owned(), orders.unwrap().lazy().with_columns(priced).collect().unwrap().lazy()),
        ("customers".to_owned(), customers.unwrap().lazy()),
        ("regions".to_owned(), regions.unwrap().lazy()),
    ]
}

/// Each text and its plan.
fn plans(texts: &[&str]) -> String {
    let mut shown = String::new();
    for text in texts {
        let plan = match floe_query::plan_sql(text, tables()) {
            Ok(frame) => frame.describe_plan().unwrap(),
            Err(failure) => failure.to_string(),
        };
        writeln!(shown, "> {text}\n{plan}\n").unwrap();
    }
    shown
}

macro_rules! golden {
    ($name:ident: $($text:literal)+) => {
        #[test]
        fn $name() {
            insta::assert_snapshot!(stringify!($name), plans(&[$($text),+]));
        }
    };
}

golden! { values:
    "select 0.06 - 0.01, o_price * 1.1, o_price / 3 from orders"
    "select o_id from orders where o_price between 0.06 - 0.01 and 0.06 + 0.01"
    "select o_id from orders where o_day < date '1998-12-01' - interval '90' day"
    "select o_id from orders where o_day >= '1994-01-01' and o_id in (1, 2, 3, 4, 5)"
    "select extract(year from o_day), case when o_id > 5 then o_price else 0 end from orders"
    "select c_name like '%special%requests%', c_name || '!' from customers"
}

golden! { joins:
    "select r_name, o_id from orders, customers, regions where o_customer = c_id and c_region = r_id"
    "select o_id from orders, customers where o_customer = c_id and c_name = '7' and o_price > 10"
    "select o_id, c_name from orders left join customers on o_customer = c_id and c_name <> '7'"
    "select o_id from orders, customers where (o_customer = c_id and o_id = 1) or (o_customer = c_id and o_id = 2)"
    "select o_id, c_id from orders join customers on o_id < c_id"
    "select * from customers join regions on c_region = r_id limit 3"
    "select * from customers, regions"
}

golden! { subqueries:
    "select o_id from orders where o_price > (select avg(o_price) from orders)"
    "select o_id from orders o where o_price = (select max(o_price) from orders i where i.o_customer = o.o_customer)"
    "select c_id from customers where exists (select 1 from orders where o_customer = c_id and o_price > 3)"
    "select c_id from customers where not exists (select 1 from orders where o_customer = c_id)"
    "select c_id from customers where c_id in (select o_customer from orders group by o_customer having count(*) > 5)"
    "select c_id from customers where c_id not in (select o_customer from orders)"
    "select c_id from customers where c_id > all (select o_customer from orders)"
    "select c_id, (select count(*) from orders where o_customer = c_id) from customers"
}

golden! { groups:
    "select count(*), count(distinct o_customer), sum(o_price), avg(o_price) from orders"
    "select c_region, count(*) as n from customers group by 1 having count(*) > 3 order by n desc limit 2"
    "select c_region + 1 as next, min(c_name) from customers group by next"
    "select sum(case when o_id > 3 then 1 else 0 end) / count(*) from orders"
    "select percentile_cont(0.5) within group (order by o_id) from orders"
}

golden! { windows:
    "select o_id, sum(o_price) over (partition by o_customer) from orders"
    "select o_id, rank() over (partition by o_customer order by o_price desc) from orders"
    "select o_id, sum(o_id) over (order by o_day rows between 1 preceding and 1 following) from orders"
}

golden! { sets:
    "select c_id from customers union select r_id from regions order by 1"
    "select c_region from customers intersect all select r_id from regions"
    "select c_id from customers except select o_customer from orders"
    "with big as (select * from orders where o_price > 100) select count(*) from big a join big b on a.o_id = b.o_id"
    "values (1, 'a'), (2, null)"
}

golden! { refusals:
    "with recursive n as (select 1 union all select 1 from n) select * from n"
    "select c_region, count(*) from customers group by rollup (c_region)"
    "select sum(o_id) over (order by o_id range between 1 preceding and current row) from orders"
    "select * from customers, lateral (select * from orders where o_customer = c_id) as l"
    "select c_name similar to 'a' from customers"
}
