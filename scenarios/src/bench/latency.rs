//! How long a query takes that has next to nothing to do: one row out of a small file.

use std::time::Instant;

use anyhow::Result;
use floe_scenarios::data::nycflights;
use floe_scenarios::harness::Cluster;
use floe_scenarios::reference::Tables;

use super::{Bench, Figure, Target, milliseconds, percentile};

/// Enough that the 99th percentile is not the worst of a few.
const QUERIES: usize = 500;

/// Queries before the first that counts.
const WARM_UP: usize = 20;

const QUERY: &str = "SELECT name FROM {airlines} WHERE carrier = 'UA'";

pub(super) async fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let cluster = Cluster::builder(bench.floe).start().await?;
    let mesh = cluster.client(1).await?;
    let text = Tables::new().with("airlines", nycflights("airlines")).for_floe(QUERY);
    let mut times_ms = Vec::with_capacity(QUERIES);
    for round in 0..WARM_UP + QUERIES {
        let start = Instant::now();
        let job = mesh.sql(&text).await?;
        let frame = job.collect().await?;
        let elapsed = milliseconds(start.elapsed());
        anyhow::ensure!(frame.height() == 1, "{} rows instead of one", frame.height());
        job.release().await?;
        if round >= WARM_UP {
            times_ms.push(elapsed);
        }
    }
    let figure = |name: &str, part, bound| Figure {
        name: format!("one-row query on 3 nodes, {name}"),
        value: percentile(&times_ms, part),
        unit: "ms",
        target: Target::AtMost(bound),
        made_from: format!("{QUERIES} queries over a Parquet file, submitted to collected, one client"),
    };
    Ok(vec![figure("p50", 0.5, 3.0), figure("p99", 0.99, 50.0)])
}
