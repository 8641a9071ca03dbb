//! Asks a running mesh for the airlines' delays: submits SQL, shows its progress, collects a Polars frame.
//!
//! Start a node with `floe up`, then, in the directory that holds `scenarios`:
//!
//! ```text
//! cargo run -p floe-client --features polars --example flights
//! ```

#![allow(clippy::print_stdout)]

use floe_client::Mesh;
use futures::StreamExt;

const QUERY: &str = "
    SELECT a.name AS airline, COUNT(*) AS flights, AVG(f.arr_delay) AS mean_delay
    FROM flights AS f JOIN airlines AS a ON f.carrier = a.carrier
    GROUP BY a.name ORDER BY mean_delay DESC";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Any node will do; the others are learned from it. `Mesh::connect([address])` names one on another machine.
    let mesh = Mesh::local().await?;
    let job = mesh
        .sql(QUERY)
        .table("flights", "scenarios/data/nycflights13/flights.parquet")
        .table("airlines", "scenarios/data/nycflights13/airlines.parquet")
        .await?;
    let mut progress = job.watch();
    while let Some(status) = progress.next().await {
        let status = status?;
        let done: u32 = status.stages.iter().map(|stage| stage.done).sum();
        let tasks: u32 = status.stages.iter().map(|stage| stage.tasks).sum();
        println!("{}: {done} of {tasks} tasks", status.phase.name());
    }
    let delays = job.collect().await?;
    println!("{delays}");
    job.release().await?;
    Ok(())
}
