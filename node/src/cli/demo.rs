//! `floe demo`: three real nodes, two queries, and the leader killed while the longer one runs.
//!
//! ```text
//!   start three nodes ─> they agree on a leader ─> short query ─> long query ──────────────> compare with
//!                                                                   └ the leader is killed   Polars alone
//! ```

mod data;
mod processes;
mod reference;

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use floe_client::{Job, Mesh, MeshKey};
use floe_protocol::message::Status;
use floe_protocol::{JobStatus, NodeId, NodeRole};
use futures::StreamExt;
use polars::prelude::DataFrame;

use self::processes::Processes;
use super::interrupt::Interrupt;
use super::{End, output, table, timeline};

/// How many nodes: the fewest of which one may be lost.
const NODES: usize = 3;

/// How long the nodes may take to agree: many times what they need on a slow machine.
const AGREEMENT: Duration = Duration::from_secs(60);

/// How long the others may take to agree on a new leader.
const TAKEOVER: Duration = Duration::from_secs(30);

/// How often the mesh is asked while waiting for it to agree.
const POLL: Duration = Duration::from_millis(20);

/// How many copies of the flights the longer query reads first. On a machine that is done with them before the
/// leader can be killed it tries again with twice as many.
const COPIES: usize = 24;

/// How many times it tries.
const TRIES: u32 = 4;

/// The delays of each airline, over the table itself and a second one.
const SHORT_QUERY: &str = "\
SELECT a.name AS airline, COUNT(*) AS flights, AVG(f.arr_delay) AS mean_delay, MAX(f.arr_delay) AS worst_delay
FROM flights AS f JOIN airlines AS a ON f.carrier = a.carrier
WHERE f.month >= 6
GROUP BY a.name
ORDER BY flights DESC, airline";

/// Medians need all rows of a group in one place: the rows are exchanged between the nodes.
const LONG_QUERY: &str = "\
SELECT month, carrier, COUNT(*) AS flights, MEDIAN(arr_delay) AS median_delay, AVG(air_time) AS mean_air_time,
       COUNT(DISTINCT tailnum) AS planes
FROM many
GROUP BY month, carrier
ORDER BY median_delay DESC, month, carrier
LIMIT 12";

/// Show three nodes on this machine run queries, and survive the loss of their leader
///
/// Starts three node processes on loopback, apart from any mesh of yours, runs two queries over real flight
/// data, kills the leader's process while the longer one runs, and compares both results with Polars in a
/// single process. The exit code is 0 only if they are equal.
#[derive(Args, Debug)]
pub(super) struct DemoArgs {}

pub(super) async fn run(_: DemoArgs) -> anyhow::Result<End> {
    let mut interrupt = Interrupt::listen()?;
    let home = tempfile::Builder::new()
        .prefix("floe-demo-")
        .tempdir()
        .context("a temporary directory cannot be made")?;
    let mut processes = Processes::default();
    let end = tokio::select! {
        end = story(home.path(), &mut processes) => end,
        () = interrupt.wait() => Ok(End::Interrupted),
    };
    // The files of a node can be removed only when it no longer writes any.
    processes.kill_all().await;
    end
}

async fn story(home: &Path, processes: &mut Processes) -> anyhow::Result<End> {
    say(format_args!("Floe: {NODES} nodes, 2 queries, and the leader killed on the way\n"))?;
    let key = MeshKey::generate();
    let paths = data::write(home)?;

    say(format_args!("1. Starting {NODES} node processes on loopback"))?;
    processes.start(home, &key, NODES).await?;
    for process in processes.all() {
        say(format_args!(
            "   {} ready after {:>5}  {}",
            process.name,
            ms(process.ready_after),
            process.address
        ))?;
    }

    say(format_args!("\n2. They find each other and agree"))?;
    let addresses: Vec<_> = processes.all().iter().map(|process| process.address.clone()).collect();
    let mesh = Mesh::builder().key(key).addresses(addresses).connect().await?;
    let (status, waited) = agreed(&mesh).await?;
    for node in &status.nodes {
        say(format_args!("   {}  {}  {}", node.member.name, node.member.id, node.role.name()))?;
    }
    say(format_args!(
        "   all {NODES} vote, so any one may be lost ({} after the last was ready)",
        ms(waited)
    ))?;

    say(format_args!("\n3. A query over {} flights\n{}", table::count(data::FLIGHTS), indent(SHORT_QUERY)))?;
    let job =
        mesh.sql(SHORT_QUERY).table("flights", &paths.flights).table("airlines", &paths.airlines).await?;
    let short = collect(&mesh, &job, None).await?;
    let expected =
        reference::run(SHORT_QUERY, &[("flights", &paths.flights), ("airlines", &paths.airlines)]).await?;
    let short_equal = verdict(&short, &expected)?;

    let long_equal = long_query(home, processes, &mesh).await?;
    if short_equal && long_equal {
        say(format_args!("\nBoth results equal those of Polars in a single process."))?;
        Ok(End::Done)
    } else {
        say(format_args!("\nA result differs from that of Polars in a single process."))?;
        Ok(End::Wrong)
    }
}

/// Waits until every node is alive and votes, and one leads.
async fn agreed(mesh: &Mesh) -> anyhow::Result<(Status, Duration)> {
    let start = Instant::now();
    loop {
        let status = mesh.status().await?;
        let voting = status.nodes.iter().filter(|node| node.alive && node.role != NodeRole::Learner).count();
        if voting == NODES && status.leader.is_some() {
            return Ok((status, start.elapsed()));
        }
        if start.elapsed() > AGREEMENT {
            bail!("after {} s only {voting} of {NODES} nodes vote", AGREEMENT.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Runs the longer query, kills the leader on the way, and compares.
async fn long_query(home: &Path, processes: &mut Processes, mesh: &Mesh) -> anyhow::Result<bool> {
    let mut copies = COPIES;
    for _ in 0..TRIES {
        let many = data::copy(home, copies)?;
        say(format_args!(
            "\n4. A longer one over {} flights in {copies} files\n{}",
            table::count(data::FLIGHTS * copies as u64),
            indent(LONG_QUERY),
        ))?;
        let job = mesh.sql(LONG_QUERY).table("many", &many).await?;
        if let Some(before) = half_way(&job).await? {
            kill_leader(processes, mesh, &before).await?;
            let result = collect(mesh, &job, Some(before)).await?;
            let expected = reference::run(LONG_QUERY, &[("many", &many)]).await?;
            return verdict(&result, &expected);
        }
        say(format_args!("   it was done before the leader could be killed: again, with more flights"))?;
        copies *= 2;
    }
    bail!("this machine finishes every query before a node can be killed")
}

/// Waits until some of the job's tasks are done and others are not; nothing if it was too fast.
async fn half_way(job: &Job) -> anyhow::Result<Option<JobStatus>> {
    let mut statuses = job.watch();
    while let Some(status) = statuses.next().await {
        let status = status?;
        let (done, tasks) = status.tasks();
        if status.phase.is_terminal() {
            job.release().await?;
            return Ok(None);
        }
        if done > 0 && done < tasks {
            return Ok(Some(status));
        }
    }
    Ok(None)
}

async fn kill_leader(processes: &mut Processes, mesh: &Mesh, before: &JobStatus) -> anyhow::Result<()> {
    let status = mesh.status().await?;
    let old = status.leader.context("the mesh has no leader to kill")?;
    let name = name_of(&status, old);
    let pid = processes.kill(&name).await?;
    let killed = Instant::now();
    let (done, tasks) = before.tasks();
    say(format_args!(
        "   {done} of {tasks} tasks are done: the leader {name} is killed (SIGKILL, process {pid})"
    ))?;
    loop {
        let status = mesh.status().await?;
        if let Some(new) = status.leader.filter(|leader| *leader != old) {
            let waited = ms(killed.elapsed());
            say(format_args!(
                "   {} took over {waited} after the kill, and the query goes on",
                name_of(&status, new)
            ))?;
            return Ok(());
        }
        if killed.elapsed() > TAKEOVER {
            bail!("no node took over within {} s", TAKEOVER.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Collects a job's result and shows it, and who did what. A leader keeps the timeline, so what a lost one told
/// before is added.
async fn collect(mesh: &Mesh, job: &Job, before: Option<JobStatus>) -> anyhow::Result<DataFrame> {
    let result = job.collect().await?;
    let mut status = job.status().await?;
    for run in before.into_iter().flat_map(|before| before.timeline) {
        if !status.timeline.contains(&run) {
            status.timeline.push(run);
        }
    }
    let elapsed = status.submitted_at.span_to(status.ended_at.unwrap_or(status.submitted_at));
    say(format_args!("{}", indent(&result.to_string())))?;
    say(format_args!("   which task ran where, in {}:", table::span(elapsed)))?;
    say(format_args!("{}", indent(&timeline::draw(&status, &mesh.status().await?))))?;
    job.release().await?;
    Ok(result)
}

fn verdict(result: &DataFrame, expected: &DataFrame) -> anyhow::Result<bool> {
    match reference::difference(result, expected)? {
        None => {
            say(format_args!("   equal to single-process Polars, row for row"))?;
            Ok(true)
        }
        Some(difference) => {
            say(format_args!("   NOT equal to single-process Polars: {difference}; it says\n{expected}"))?;
            Ok(false)
        }
    }
}

fn name_of(status: &Status, id: NodeId) -> String {
    let node = status.nodes.iter().find(|node| node.member.id == id);
    node.map_or_else(|| id.to_string(), |node| node.member.name.clone())
}

fn ms(span: Duration) -> String {
    table::span_ms(span.as_millis() as u64)
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("   {line}")).collect::<Vec<_>>().join("\n")
}

fn say(line: fmt::Arguments<'_>) -> anyhow::Result<()> {
    output::print(format_args!("{line}\n"))
}
