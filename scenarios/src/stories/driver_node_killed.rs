//! The one node dies that a driver talks to.

use anyhow::Result;
use futures::FutureExt;

use super::measure::DRIVER_GAP;
use super::report::unix_ms;
use super::scene::Question;
use super::{MAX_NODES, Plot, Round, Scene, Story};

pub(super) const STORY: Story = Story {
    name: "driver-node-killed",
    sentence: "The node is killed that the driver is connected to; the driver goes on through another.",
    fewest_nodes: 3,
    most_nodes: MAX_NODES,
    usual_nodes: 3,
    question: Question::long,
    plot: Plot::OnMesh { prepare: |mesh| mesh, play: |scene, round| play(scene, round).boxed_local() },
};

async fn play(scene: &mut Scene, round: &mut Round) -> Result<()> {
    let leader = scene.cluster.leader().await?;
    let driver = scene.any_but(&mut round.dice, &[])?;
    let job = scene.underway(round, driver).await?;
    let role = if driver == leader { "the driver's node and the leader" } else { "the driver's node" };
    let killed_ms = scene.kill(round, driver, role).await?;
    let through = job.mesh().status().await?.node;
    let answered_ms = unix_ms();
    round.tell_at(answered_ms, format!("the driver has an answer through node {through}"));
    round.measured(&DRIVER_GAP, answered_ms - killed_ms);
    scene.judge(round, &job).await?;
    scene.restart(round, driver).await
}
