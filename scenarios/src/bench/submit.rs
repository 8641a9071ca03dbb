//! How many jobs a mesh takes on, when many drivers submit at once and when one does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use floe_client::Mesh;
use floe_protocol::{JobKind, JobSpec, Query};
use floe_scenarios::harness::Cluster;
use futures::future::try_join_all;

use super::{Bench, Figure, Target, median, milliseconds};

/// Drivers that submit at once, each as soon as its last job was accepted.
const SUBMITTERS: usize = 64;

/// How long they do so.
const WINDOW: Duration = Duration::from_secs(5);

/// Jobs of one driver alone.
const ALONE: usize = 200;

/// Something that is planned and has next to nothing to run.
fn tiny() -> JobSpec {
    let query = Query::Sql {
        text: "SELECT 1 AS one".to_owned(),
        tables: Default::default(),
        directory: String::new(),
    };
    JobSpec { label: "tiny".to_owned(), kind: JobKind::Query(query) }
}

pub(super) async fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let cluster = Cluster::builder(bench.floe).start().await?;
    let mut times_ms = Vec::with_capacity(ALONE);
    let mesh = cluster.client(cluster.leader().await?).await?;
    for _ in 0..ALONE {
        let start = Instant::now();
        let job = mesh.submit(tiny()).await?;
        times_ms.push(milliseconds(start.elapsed()));
        job.wait().await?;
        job.release().await?;
    }
    let mut meshes = Vec::new();
    for submitter in 0..SUBMITTERS {
        meshes.push(cluster.client(submitter % 3).await?);
    }
    let start = Instant::now();
    let accepted = try_join_all(meshes.iter().map(|mesh| submit_for(mesh, start))).await?;
    let elapsed = start.elapsed().as_secs_f64();
    let accepted: usize = accepted.into_iter().sum();
    Ok(vec![
        Figure {
            name: "jobs accepted, 64 submitters on 3 nodes".to_owned(),
            value: accepted as f64 / elapsed,
            unit: "jobs/s",
            target: Target::AtLeast(1_000.0),
            made_from: format!(
                "{accepted} jobs of one row in {elapsed:.1} s, each released when it has ended"
            ),
        },
        Figure {
            name: "a job accepted, one submitter, p50".to_owned(),
            value: median(&times_ms),
            unit: "ms",
            target: Target::AtMost(2.0 * sync_ms()?),
            made_from: format!("{ALONE} jobs, one after the other; the target is twice an fsync here"),
        },
    ])
}

/// Submits one job after the other, and gives their results up as soon as there are any.
async fn submit_for(mesh: &Mesh, start: Instant) -> Result<usize> {
    let mut accepted = 0;
    while start.elapsed() < WINDOW {
        let job = mesh.submit(tiny()).await?;
        accepted += 1;
        job.wait().await?;
        job.release().await?;
    }
    Ok(accepted)
}

/// What a write of one block that is synced takes in the directory for temporary files, in the median.
fn sync_ms() -> Result<f64> {
    use std::io::Write;
    let mut file = tempfile::tempfile().context("a file to sync")?;
    let mut times_ms = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times_ms.push(milliseconds(start.elapsed()));
    }
    Ok(median(&times_ms))
}
