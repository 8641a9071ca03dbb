//! A driver's process dies; a second one finds the job by its id.

use std::process::Stdio;

use anyhow::{Result, ensure};
use futures::FutureExt;
use rand::RngExt;

use super::scene::Question;
use super::{MAX_NODES, Plot, Round, Scene, Story};
use crate::harness::{DEADLINE, wait_until};
use crate::workload::reached;

/// How much of the job is done at most when its driver dies.
const DONE_AT_MOST: u32 = 8;

pub(super) const STORY: Story = Story {
    name: "driver-killed-and-back",
    sentence: "The process `floe sql` is killed in the middle of its job; another driver finds the job by its id and has its result.",
    fewest_nodes: 1,
    most_nodes: MAX_NODES,
    usual_nodes: 3,
    question: Question::long,
    plot: Plot::OnMesh { prepare: |mesh| mesh, play: |scene, round| play(scene, round).boxed_local() },
};

async fn play(scene: &mut Scene, round: &mut Round) -> Result<()> {
    let driver = scene.any_but(&mut round.dice, &[])?;
    let second = scene.any_but(&mut round.dice, &[])?;
    let mesh = scene.cluster.client(second).await?;
    let text = scene.question.text();
    let mut process = scene
        .cluster
        .floe()
        .command(scene.cluster.args(driver, &["sql", &text]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let running = wait_until("the driver's job is accepted", DEADLINE, async || {
        let jobs = mesh.jobs().await.ok()?;
        jobs.iter().find(|job| !job.phase.is_terminal()).map(|job| job.id)
    })
    .await?;
    round.jobs += 1;
    round.tell(format!("`floe sql` submitted job {running} through {}", scene.name(driver)));
    let job = mesh.job(running);
    reached(&job, round.dice.random_range(1..=DONE_AT_MOST)).await?;
    process.kill().await?;
    round.tell("`floe sql` is killed (SIGKILL)");
    let listed = scene.cluster.run(second, &["jobs"]).await?.success()?;
    ensure!(listed.contains(&running.to_string()), "`floe jobs` does not list job {running}: {listed}");
    round.tell(format!("`floe jobs` through {} lists the job", scene.name(second)));
    scene.judge(round, &job).await?;
    Ok(())
}
