//! A node's disk fills up: what it spills finds no room, and it is left without work. Its log goes on.

use anyhow::{Context, Result, ensure};
use futures::FutureExt;

use super::scene::Question;
use super::{MAX_NODES, Plot, Round, Scene, Story};
use crate::harness::{DEADLINE, wait_until};
use crate::workload::long_query;

/// The size of each node's disk: room for the log and for what a job spills.
const DISK_BYTES: u64 = 256 << 20;

/// So little that a large result goes to disk.
const MEMORY: &str = "48MiB";

/// How many jobs are submitted at most to make the log grow.
const MOST_JOBS: usize = 40;

pub(super) const STORY: Story = Story {
    name: "disk-full",
    sentence: "A node's disk (a tmpfs of its own) is full in the middle of a job that spills: it takes no more work, and votes.",
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
    // Its log goes on growing.
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
    if let Some(line) = said.iter().find(|line| line.text.contains("disk ran out")) {
        round.tell_at(line.unix_ms, format!("{name} says: {}", line.text));
    }
    ensure!(!scene.cluster.node(victim).has_ended()?, "{name} has ended, and with it a vote");
    says(scene, victim, true).await?;
    round.tell(format!("{name} votes and takes no work"));
    scene.cluster.small_disk(victim).context("a node without a disk of its own")?.free()?;
    says(scene, victim, false).await?;
    round.tell(format!("the disk of {name} has room again, and it takes work"));
    Ok(())
}

/// Waits until a node says that its disk is short, or no more.
async fn says(scene: &Scene, node: usize, short: bool) -> Result<()> {
    wait_until("a node says how its disk is", DEADLINE, async || {
        let status = scene.cluster.status(node).await.ok()?;
        let id = scene.cluster.id_of(&status, node)?;
        let info = status.nodes.iter().find(|info| info.member.id == id)?;
        (info.load.disk_short == short).then_some(())
    })
    .await
}
