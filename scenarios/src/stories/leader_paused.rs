//! The leader stands still, as a laptop whose lid is closed, and comes back believing that it still leads.

use anyhow::Result;
use futures::FutureExt;
use rand::RngExt;

use super::evidence;
use super::measure::PAUSED;
use super::report::unix_ms;
use super::scene::Question;
use super::{MAX_NODES, Plot, Round, Scene, Story};
use crate::harness::{DEADLINE, wait_until};

pub(super) const STORY: Story = Story {
    name: "leader-paused",
    sentence: "The leader is stopped (SIGSTOP) until another leads, then goes on (SIGCONT) as a zombie that must do no harm.",
    fewest_nodes: 3,
    most_nodes: MAX_NODES,
    usual_nodes: 3,
    question: Question::long,
    plot: Plot::OnMesh { prepare: |mesh| mesh, play: |scene, round| play(scene, round).boxed_local() },
};

async fn play(scene: &mut Scene, round: &mut Round) -> Result<()> {
    let (leader, job) = scene.leader_of_underway(round).await?;
    let stopped_ms = unix_ms();
    scene.cluster.node(leader).stop()?;
    round.tell_at(stopped_ms, format!("{}, the leader, stands still (SIGSTOP)", scene.name(leader)));
    let election = scene.next_election(round, leader, stopped_ms).await?;
    // It wakes while the job it once led still runs, or after its end.
    let early = round.dice.random_bool(0.5);
    if early {
        wake(scene, round, leader).await?;
    }
    let judged = scene.judge(round, &job).await?;
    if !early {
        wake(scene, round, leader).await?;
    }
    if let Some(status) = judged {
        scene.measure_takeover(round, &PAUSED, (&job, &status), (stopped_ms, election)).await?;
    }
    Ok(())
}

/// Lets the zombie go on, and waits until it knows that it leads no more.
async fn wake(scene: &mut Scene, round: &mut Round, zombie: usize) -> Result<()> {
    let woken_ms = unix_ms();
    scene.cluster.node(zombie).resume()?;
    round.tell_at(woken_ms, format!("{} goes on (SIGCONT)", scene.name(zombie)));
    let deposed_ms = wait_until("the zombie knows that it leads no more", DEADLINE, async || {
        let mut lines = evidence::lines(scene.cluster.nodes(), woken_ms, "no longer the leader");
        lines.find(|(node, _)| *node == zombie).map(|(_, line)| line.unix_ms)
    })
    .await?;
    round.tell_at(deposed_ms, format!("{} knows that it leads no more", scene.name(zombie)));
    let refused =
        evidence::lines(scene.cluster.nodes(), woken_ms, "order of a former leader is refused").count();
    round.tell(format!("{refused} orders of a former leader were refused"));
    Ok(())
}
