//! The commonest small mesh: two machines, either of which may be switched off.

use anyhow::Result;
use futures::FutureExt;
use rand::seq::SliceRandom;

use super::measure::CARRIED_ON;
use super::report::unix_ms;
use super::scene::Question;
use super::{Plot, Round, Scene, Story};

pub(super) const STORY: Story = Story {
    name: "mesh-of-two",
    sentence: "Each of two nodes is killed in turn in the middle of a job; the other finishes it alone, and they become one mesh again.",
    fewest_nodes: 2,
    most_nodes: 2,
    usual_nodes: 2,
    question: Question::long,
    plot: Plot::OnMesh { prepare: |mesh| mesh, play: |scene, round| play(scene, round).boxed_local() },
};

async fn play(scene: &mut Scene, round: &mut Round) -> Result<()> {
    let mut order = [0, 1];
    order.shuffle(&mut round.dice);
    for victim in order {
        let survivor = 1 - victim;
        let leader = scene.cluster.leader().await?;
        let job = scene.underway(round, survivor).await?;
        let role = if victim == leader { "the leader" } else { "the follower" };
        let killed_ms = scene.kill(round, victim, role).await?;
        // That it still leads proves nothing: it must be able to decide without the other.
        let mesh = scene.cluster.client(survivor).await?;
        let one = mesh.sql("SELECT 1 AS one").await?;
        let accepted_ms = unix_ms();
        round.tell_at(accepted_ms, format!("{} accepts a job alone", scene.name(survivor)));
        round.measured(&CARRIED_ON, accepted_ms - killed_ms);
        one.collect().await?;
        one.release().await?;
        scene.judge(round, &job).await?;
        scene.restart(round, victim).await?;
        scene.cluster.settled().await?;
        round.tell("the two are one mesh again");
    }
    Ok(())
}
