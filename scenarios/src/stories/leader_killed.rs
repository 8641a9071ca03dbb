//! The leader dies without a word while a job runs.

use anyhow::Result;
use futures::FutureExt;

use super::measure::KILLED;
use super::scene::Question;
use super::{MAX_NODES, Plot, Round, Scene, Story};

pub(super) const STORY: Story = Story {
    name: "leader-killed",
    sentence: "The leader is killed in the middle of a job; another node takes over and the job goes on.",
    fewest_nodes: 3,
    most_nodes: MAX_NODES,
    usual_nodes: 3,
    question: Question::long,
    plot: Plot::OnMesh { prepare: |mesh| mesh, play: |scene, round| play(scene, round).boxed_local() },
};

async fn play(scene: &mut Scene, round: &mut Round) -> Result<()> {
    let (leader, job) = scene.leader_of_underway(round).await?;
    let killed_ms = scene.kill(round, leader, "the leader").await?;
    let election = scene.next_election(round, leader, killed_ms).await?;
    if let Some(status) = scene.judge(round, &job).await? {
        scene.measure_takeover(round, &KILLED, (&job, &status), (killed_ms, election)).await?;
    }
    scene.restart(round, leader).await
}
