//! What a node costs that has nothing to do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use floe_scenarios::harness::Cluster;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use super::{Bench, Figure, Target};

/// How long the mesh is left alone first, so that its start is not counted.
const REST: Duration = Duration::from_secs(5);

/// How long it is watched.
const WATCH: Duration = Duration::from_secs(20);

pub(super) async fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let mut cluster = Cluster::builder(bench.floe).start().await?;
    let pids = (0..cluster.len())
        .map(|i| cluster.node(i).pid().map(Pid::from_u32).context("a node does not run"))
        .collect::<Result<Vec<_>>>()?;
    let mut system = System::new();
    tokio::time::sleep(REST).await;
    let before = usage(&mut system, &pids)?;
    let start = Instant::now();
    tokio::time::sleep(WATCH).await;
    let after = usage(&mut system, &pids)?;
    let elapsed_ms = start.elapsed().as_millis() as f64;

    let resident = after.iter().map(|usage| usage.resident_bytes).max().unwrap_or(0);
    let busiest_ms = before.iter().zip(&after).map(|(before, after)| after.cpu_ms - before.cpu_ms).max();
    let made_from = format!("the greatest of {} nodes over {} s", pids.len(), WATCH.as_secs());
    Ok(vec![
        Figure {
            name: "idle node, resident memory".to_owned(),
            value: resident as f64 / f64::from(1 << 20),
            unit: "MiB",
            target: Target::AtMost(60.0),
            made_from: made_from.clone(),
        },
        Figure {
            name: "idle node, part of a core".to_owned(),
            value: busiest_ms.unwrap_or(0) as f64 / elapsed_ms * 100.0,
            unit: "%",
            target: Target::AtMost(0.5),
            made_from,
        },
    ])
}

struct Usage {
    resident_bytes: u64,
    cpu_ms: u64,
}

fn usage(system: &mut System, pids: &[Pid]) -> Result<Vec<Usage>> {
    let what = ProcessRefreshKind::nothing().with_memory().with_cpu();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(pids), true, what);
    pids.iter()
        .map(|&pid| {
            let process = system.process(pid).with_context(|| format!("process {pid} is gone"))?;
            Ok(Usage { resident_bytes: process.memory(), cpu_ms: process.accumulated_cpu_time() })
        })
        .collect()
}
