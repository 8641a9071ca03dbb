//! A node loses its disk: it no longer knows what it promised, so it must not vote as who it was.

use std::fs;

use anyhow::{Context, Result, ensure};
use futures::FutureExt;

use super::scene::Question;
use super::{MAX_NODES, Plot, Round, Scene, Story};

pub(super) const STORY: Story = Story {
    name: "data-wiped",
    sentence: "A node is killed in the middle of a job and its data directory wiped; it comes back as a new node.",
    fewest_nodes: 3,
    most_nodes: MAX_NODES,
    usual_nodes: 3,
    question: Question::long,
    plot: Plot::OnMesh { prepare: |mesh| mesh, play: |scene, round| play(scene, round).boxed_local() },
};

async fn play(scene: &mut Scene, round: &mut Round) -> Result<()> {
    let leader = scene.cluster.leader().await?;
    // The first node was told to found a mesh alone if it finds none, and would, without its data.
    let victim = scene.any_but(&mut round.dice, &[0])?;
    let driver = scene.any_but(&mut round.dice, &[victim])?;
    let job = scene.underway(round, driver).await?;
    let before = scene.cluster.node(victim).peer().to_owned();
    scene.kill(round, victim, if victim == leader { "the leader" } else { "a worker" }).await?;
    let data = scene.cluster.data_dir(victim);
    fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))?;
    round.tell(format!("the data directory of {} is wiped", scene.name(victim)));
    scene.restart(round, victim).await?;
    ensure!(scene.cluster.node(victim).peer() != before, "a wiped node came back under its former id");
    scene.judge(round, &job).await?;
    Ok(())
}
