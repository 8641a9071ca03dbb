//! Several nodes die one after the other, as many as a majority of the voters survives.

use anyhow::{Context, Result};
use futures::FutureExt;
use rand::RngExt;
use rand::seq::SliceRandom;

use super::scene::Question;
use super::{MAX_NODES, Plot, Round, Scene, Story};
use crate::workload::reached;

/// The most nodes killed in one round. A task that was running on three nodes when they died fails its job, by
/// design: it may be what kills them.
const MOST_KILLED: usize = 2;

pub(super) const STORY: Story = Story {
    name: "k-of-n-killed",
    sentence: "Any nodes are killed one after the other, as many as leave a majority of the voters, then restarted.",
    fewest_nodes: 3,
    most_nodes: MAX_NODES,
    usual_nodes: 5,
    question: Question::long,
    plot: Plot::OnMesh { prepare: |mesh| mesh, play: |scene, round| play(scene, round).boxed_local() },
};

async fn play(scene: &mut Scene, round: &mut Round) -> Result<()> {
    let leader = scene.cluster.leader().await?;
    let mut voters = scene.voters(leader).await?;
    let learners: Vec<usize> = (0..scene.cluster.len()).filter(|node| !voters.contains(node)).collect();
    voters.shuffle(&mut round.dice);
    voters.truncate(voters.len().saturating_sub(1) / 2);
    let mut victims = [voters, learners].concat();
    victims.shuffle(&mut round.dice);
    victims.truncate(round.dice.random_range(1..=MOST_KILLED));
    let driver = scene.any_but(&mut round.dice, &victims)?;
    let job = scene.underway(round, driver).await?;
    for &victim in &victims {
        let done = job.status().await?.stages.iter().map(|stage| stage.done).sum::<u32>();
        let role = if victim == leader { "the leader" } else { "one of several" };
        scene.kill(round, victim, role).await?;
        if Some(&victim) != victims.last() {
            reached(&job, done + 1).await.context("the job came to an end before all were killed")?;
        }
    }
    scene.judge(round, &job).await?;
    for victim in victims {
        scene.restart(round, victim).await?;
    }
    Ok(())
}
