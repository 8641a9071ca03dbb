//! What the README shows of Rust, so that it is compiled. A test compares the two.

#![allow(clippy::print_stdout)]

use floe_client::Mesh;
use futures::TryStreamExt;
use polars::prelude::*;

fn area(iris: DataFrame) -> PolarsResult<DataFrame> {
    iris.lazy().with_column((col("sepal_length") * col("sepal_width")).alias("area")).collect()
}

fn primes(below: u64) -> Vec<u64> {
    (2..below).filter(|n| (2..*n).all(|d| n % d != 0)).collect()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // First of all: on the nodes, this is where the functions are called.
    floe_client::functions![area, primes];

    let mesh = Mesh::local().await?;
    let iris = df!("sepal_length" => [5.1, 4.9, 4.7], "sepal_width" => [3.5, 3.0, 3.2])?;
    // In three parts, on all nodes.
    let areas = mesh.parallelize(iris, area, 3).await?.collect().await?;
    // Many short calls.
    let found: Vec<Vec<u64>> = mesh.map(primes, 100..200).try_collect().await?;
    println!("{areas}\n{} lists of primes", found.len());
    Ok(())
}

/// How a program connects to a mesh elsewhere and queries it.
#[expect(dead_code, reason = "there is no such mesh: this is compiled only")]
async fn queries() -> Result<(), Box<dyn std::error::Error>> {
    use floe_client::Mesh;
    use polars::prelude::*;

    let mesh = Mesh::builder()
        .key(std::fs::read_to_string("mesh.key")?.trim().parse()?)
        .address("/ip4/192.0.2.7/tcp/4001")
        .connect()
        .await?;

    // SQL, with a handle to watch, cancel, or find again by its id.
    let job = mesh
        .sql("SELECT carrier, COUNT(*) AS flights FROM flights GROUP BY carrier")
        .table("flights", "/data/flights/*.parquet")
        .await?;
    println!("job {}", job.id());
    let frame = job.collect().await?;

    // Or a Polars LazyFrame (feature `polars`, as is `collect`).
    let delays = mesh
        .collect(
            LazyFrame::scan_parquet("/data/flights.parquet".into(), Default::default())?
                .group_by([col("origin")])
                .agg([col("dep_delay").mean()]),
        )
        .await?;
    let _ = (frame, delays);
    Ok(())
}
