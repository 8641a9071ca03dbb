//! How long three nodes that are started at the same moment take to become one mesh.

use std::time::Instant;

use anyhow::Result;
use floe_scenarios::harness::Cluster;

use super::{Bench, Figure, Target, median};

pub(super) async fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let mut times_s = Vec::new();
    for _ in 0..bench.rounds {
        let start = Instant::now();
        let cluster = Cluster::builder(bench.floe).discover().launch().await?;
        cluster.together().await?;
        times_s.push(start.elapsed().as_secs_f64());
    }
    let worst = times_s.iter().copied().fold(f64::NAN, f64::max);
    Ok(vec![Figure {
        name: "3 nodes started to one leader, all visible".to_owned(),
        value: median(&times_s),
        unit: "s",
        target: Target::AtMost(5.0),
        made_from: format!("median of {}, worst {worst:.2} s; same-machine discovery", bench.rounds),
    }])
}
