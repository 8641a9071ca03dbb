//! The areas of iris sepals: a function of a frame, in Rust, over ten parts of it on every machine of the
//! mesh.
//!
//! Start a node with `floe up`, then:
//!
//! ```text
//! cargo run -p floe-client --features polars --example iris_area
//! ```

#![allow(clippy::print_stdout)]

use floe_client::Mesh;
use futures::StreamExt;
use polars::prelude::*;

/// What the nodes run: native code of this very executable, which travels to each of them once.
fn area(iris: DataFrame) -> PolarsResult<DataFrame> {
    let area = (col("sepal_length") * col("sepal_width")).alias("sepal_area");
    iris.lazy().select([col("species"), area]).collect()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // First of all: on the nodes, this is where the function is called, and what follows is never reached.
    floe_client::functions![area];

    let mesh = connect().await?;
    let iris = iris()?;
    let job = mesh.parallelize(iris.clone(), area, 10).await?;
    println!("job {} over {} parts", job.job().id(), job.partitions());
    let mut progress = job.watch();
    while let Some(status) = progress.next().await {
        let status = status?;
        let done = status.stages.last().map_or(0, |stage| stage.done);
        println!("{}: {done} of {} parts", status.phase.name(), job.partitions());
    }
    let areas = job.collect().await?;
    println!("{areas}");
    job.job().release().await?;

    assert!(areas.equals(&area(iris)?), "the mesh returns what one call returns");
    let first = areas.column("sepal_area")?.f64()?.get(0);
    assert!(first.is_some_and(|area| (area - 17.85).abs() < 1e-9), "5.1 × 3.5");
    Ok(())
}

/// Any node will do: one that FLOE_CONNECT names, or one of this machine.
async fn connect() -> floe_client::Result<Mesh> {
    match std::env::var("FLOE_CONNECT") {
        Ok(addresses) if !addresses.is_empty() => Mesh::connect(addresses.split(',')).await,
        _ => Mesh::local().await,
    }
}

/// Fifteen flowers of Fisher's, five of each species.
fn iris() -> PolarsResult<DataFrame> {
    df!(
        "species" => [["setosa"; 5], ["versicolor"; 5], ["virginica"; 5]].concat(),
        "sepal_length" => [5.1, 4.9, 4.7, 4.6, 5.0, 7.0, 6.4, 6.9, 5.5, 6.5, 6.3, 5.8, 7.1, 6.3, 6.5],
        "sepal_width" => [3.5, 3.0, 3.2, 3.1, 3.6, 3.2, 3.2, 3.1, 2.3, 2.8, 3.3, 2.7, 3.0, 2.9, 3.0],
    )
}
