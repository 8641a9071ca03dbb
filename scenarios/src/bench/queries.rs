//! TPC-H's queries 1 and 6: two nodes of one thread each against one process of two threads, in turns.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use floe_client::Mesh;
use floe_scenarios::data::{Q1, Q6, lineitem};
use floe_scenarios::harness::Cluster;
use floe_scenarios::reference::{Tables, same_rows};
use polars::prelude::*;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::{Bench, Figure, Target, median, milliseconds};

const QUERIES: [(&str, &str); 2] = [("Q1", Q1), ("Q6", Q6)];

pub(super) async fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let path = lineitem(bench.data, bench.scale_factor)?;
    let tables = Tables::new().with("lineitem", &path);
    let cluster =
        Cluster::builder(bench.floe).nodes(2).slots(1).env("POLARS_MAX_THREADS", "1").start().await?;
    let mesh = cluster.client(0).await?;
    let mut single = Single::start(&path)?;
    let mut figures = Vec::new();
    for (name, query) in QUERIES {
        let text = tables.for_floe(query);
        // The first round warms both sides and checks the answer.
        let (_, found) = on_mesh(&mesh, &text).await?;
        same_rows(&found, &tables.run(query)?, true).with_context(|| format!("{name} is wrong"))?;
        single.run(name).await?;
        let (mut mesh_ms, mut single_ms) = (Vec::new(), Vec::new());
        for _ in 0..bench.rounds {
            mesh_ms.push(on_mesh(&mesh, &text).await?.0);
            single_ms.push(single.run(name).await?);
        }
        let (mesh_ms, single_ms) = (median(&mesh_ms), median(&single_ms));
        figures.push(Figure {
            name: format!("{name} at SF{}, 2 nodes x 1 / single process", bench.scale_factor),
            value: mesh_ms / single_ms,
            unit: "times",
            target: Target::AtMost(1.3),
            made_from: format!(
                "medians of {}: {mesh_ms:.0} ms submitted to collected, {single_ms:.0} ms Polars streaming with 2 threads",
                bench.rounds
            ),
        });
    }
    Ok(figures)
}

/// Milliseconds from submission to the collected frame, and the frame.
async fn on_mesh(mesh: &Mesh, text: &str) -> Result<(f64, DataFrame)> {
    let start = Instant::now();
    let job = mesh.sql(text).await?;
    let frame = job.collect().await?;
    let elapsed = milliseconds(start.elapsed());
    job.release().await?;
    Ok((elapsed, frame))
}

/// This program again, as the process to compare with: the size of Polars' thread pool is fixed per process.
struct Single {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Single {
    fn start(lineitem: &PathBuf) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("single-process")
            .arg(lineitem)
            .env("POLARS_MAX_THREADS", "2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = child.stdin.take().context("no pipe to the single process")?;
        let output = child.stdout.take().context("no pipe from the single process")?;
        Ok(Self { _child: child, input, output: BufReader::new(output).lines() })
    }

    /// Runs a query once and yields its milliseconds.
    async fn run(&mut self, name: &str) -> Result<f64> {
        self.input.write_all(format!("{name}\n").as_bytes()).await?;
        let line = self.output.next_line().await?.context("the single process ended")?;
        Ok(line.parse()?)
    }
}

/// What the process to compare with is told: it runs each query named on its standard input and answers with
/// the milliseconds it took.
#[derive(Args)]
pub(crate) struct SingleProcess {
    /// The table as a Parquet file
    lineitem: PathBuf,
}

impl SingleProcess {
    pub(crate) fn run(&self) -> Result<()> {
        let tables = Tables::new().with("lineitem", &self.lineitem);
        let mut output = std::io::stdout();
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            let Some((_, query)) = QUERIES.iter().find(|(name, _)| *name == line) else {
                bail!("there is no query {line}");
            };
            let start = Instant::now();
            let frame = tables.lazy(query)?.collect_with_engine(Engine::Streaming)?.unwrap_single();
            let elapsed = milliseconds(start.elapsed());
            drop(frame);
            writeln!(output, "{elapsed}")?;
            output.flush()?;
        }
        Ok(())
    }
}
