//! The words of a text, counted on every machine of the mesh, and the counts merged there too.
//!
//! Start a node with `floe up`, then:
//!
//! ```text
//! cargo run -p floe-client --features polars --example word_count
//! ```

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;

use floe_client::Mesh;
use polars::prelude::*;

/// A text that everybody has read.
const TEXT: &str = include_str!("../../LICENSE");

/// Counts the words of some lines. Any Rust code may do this; here it is a map.
fn count_words(lines: DataFrame) -> PolarsResult<DataFrame> {
    let mut counts = BTreeMap::new();
    for line in lines.column("line")?.str()?.iter().flatten() {
        for word in words(line) {
            *counts.entry(word).or_insert(0u32) += 1;
        }
    }
    let (words, counts): (Vec<_>, Vec<_>) = counts.into_iter().unzip();
    df!("word" => words, "count" => counts)
}

/// Makes one table of several: on the nodes, some at a time, until one is left.
fn merge_counts(tables: Vec<DataFrame>) -> PolarsResult<DataFrame> {
    let tables: Vec<_> = tables.into_iter().map(IntoLazy::lazy).collect();
    concat(tables, UnionArgs::default())?.group_by([col("word")]).agg([col("count").sum()]).collect()
}

fn words(line: &str) -> impl Iterator<Item = String> {
    line.split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // First of all: on the nodes, this is where the functions are called, and what follows is never reached.
    floe_client::functions![count_words, merge_counts];

    let mesh = connect().await?;
    let lines = df!("line" => TEXT.lines().collect::<Vec<_>>())?;
    let counts = mesh.parallelize(lines, count_words, 12).merge(merge_counts).fan_in(4).collect().await?;
    let counts =
        counts.sort(["count", "word"], SortMultipleOptions::default().with_order_descending(true))?;
    println!("{}", counts.head(Some(10)));

    let mut expected = BTreeMap::new();
    for word in TEXT.lines().flat_map(words) {
        *expected.entry(word).or_insert(0u32) += 1;
    }
    let counted: BTreeMap<_, _> =
        counts.column("word")?.str()?.iter().zip(counts.column("count")?.u32()?.iter()).collect();
    assert_eq!(counted.len(), expected.len());
    for (word, count) in &expected {
        assert_eq!(counted.get(&Some(word)), Some(&Some(*count)), "how often `{word}` is there");
    }
    Ok(())
}

/// Any node will do: one that FLOE_CONNECT names, or one of this machine.
async fn connect() -> floe_client::Result<Mesh> {
    match std::env::var("FLOE_CONNECT") {
        Ok(addresses) if !addresses.is_empty() => Mesh::connect(addresses.split(',')).await,
        _ => Mesh::local().await,
    }
}
