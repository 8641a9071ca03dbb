//! The leader is asked to stop, and hands over before it does.

use anyhow::{Result, ensure};
use futures::FutureExt;
use nix::sys::signal::Signal;

use super::measure::{HANDED_OVER, LEFT};
use super::report::unix_ms;
use super::scene::Question;
use super::{MAX_NODES, Plot, Round, Scene, Story};

pub(super) const STORY: Story = Story {
    name: "leader-leaves",
    sentence: "The leader is asked to stop in the middle of a job, hands over and leaves in good order.",
    fewest_nodes: 3,
    most_nodes: MAX_NODES,
    usual_nodes: 3,
    question: Question::long,
    plot: Plot::OnMesh { prepare: |mesh| mesh, play: |scene, round| play(scene, round).boxed_local() },
};

async fn play(scene: &mut Scene, round: &mut Round) -> Result<()> {
    let (leader, job) = scene.leader_of_underway(round).await?;
    let asked_ms = unix_ms();
    scene.cluster.node(leader).signal(Signal::SIGTERM)?;
    round.tell_at(asked_ms, format!("{}, the leader, is asked to stop (SIGTERM)", scene.name(leader)));
    let status = scene.cluster.node(leader).wait().await?;
    let ended_ms = unix_ms();
    round.tell_at(ended_ms, format!("{} has ended with {status}", scene.name(leader)));
    ensure!(status.success(), "a node that leaves in good order ends with success, not with {status}");
    round.measured(&LEFT, ended_ms - asked_ms);
    let election = scene.next_election(round, leader, asked_ms).await?;
    round.measured(&HANDED_OVER, election.unix_ms - asked_ms);
    scene.judge(round, &job).await?;
    scene.restart(round, leader).await
}
