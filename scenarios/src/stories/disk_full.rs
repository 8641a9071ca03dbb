//! A node's disk fills up: neither its log nor what it spills finds room.

use anyhow::{Context, Result};
use futures::FutureExt;

use super::scene::Question;
use super::{MAX_NODES, Plot, Round, Scene, Story};
use crate::workload::long_query;

/// The size of each node's disk: room for the log and for what a job spills.
const DISK_BYTES: u64 = 256 << 20;

/// So little that a large result goes to disk.
const MEMORY: &str = "48MiB";

/// How many jobs are submitted at most to make the log grow.
const MOST_JOBS: usize = 40;

pub(super) const STORY: Story = Story {
    name: "disk-full",
    sentence: "A node's disk (a tmpfs of its own) is full in the middle of a job that spills: writing fails with ENOSPC.",
    fewest_nodes: 3,
    most_nodes: MAX_NODES,
    usual_nodes: 3,
    question: Question::large,
    plot: Plot::OnMesh {
        prepare: |mesh| mesh.small_disks(DISK_BYTES).memory(MEMORY),
        play: |scene, round| play(scene, round).boxed_local(),
    },
};

async fn play(scene: &mut Scene, round: &mut Round) -> Result<()> {
    let leader = scene.cluster.leader().await?;
    let victim = scene.any_but(&mut round.dice, &[])?;
    let driver = scene.any_but(&mut round.dice, &[victim])?;
    let job = scene.underway(round, driver).await?;
    let disk = scene.cluster.small_disk(victim).context("a node without a disk of its own")?;
    let filled_bytes = disk.fill()?;
    let role = if victim == leader { "the leader" } else { "a worker" };
    let name = scene.name(victim);
    round.tell(format!("the disk of {name}, {role}, is full: {filled_bytes} bytes took all that was free"));
    scene.judge(round, &job).await?;
    // What it spills is gone by now. Its log goes on growing until it finds no room either.
    let mesh = scene.cluster.client(driver).await?;
    let mut accepted = 0;
    while accepted < MOST_JOBS && !scene.cluster.node(victim).has_ended()? {
        let job = mesh.sql(scene.question.tables.for_floe(&long_query())).await?;
        job.cancel().await?;
        job.release().await?;
        accepted += 1;
    }
    round.tell(format!("{accepted} more jobs are accepted, to make the log grow"));
    let said = scene.cluster.node(victim).log_since(round.began_unix_ms);
    if let Some(line) = said.iter().find(|line| line.text.contains("ran out on this node")) {
        round.tell_at(line.unix_ms, format!("{name} says: {}", line.text));
    }
    let ended = scene.cluster.node(victim).has_ended()?;
    let log = scene.cluster.node(victim).log();
    let last_words = log.lines().rev().find(|line| ended && line.starts_with("error: "));
    let outcome = last_words.map_or(String::new(), |words| format!(": {words}"));
    round.tell(format!("{name} {}{outcome}", if ended { "has ended" } else { "is still there" }));
    scene.cluster.small_disk(victim).context("a node without a disk of its own")?.free()?;
    round.tell(format!("the disk of {name} has room again"));
    Ok(())
}
