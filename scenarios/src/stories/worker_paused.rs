//! A worker stands still in the middle of a stage: its connections stay open, and nobody answers on them.

use anyhow::Result;
use futures::FutureExt;
use rand::RngExt;

use super::evidence;
use super::measure::NOTICED;
use super::report::unix_ms;
use super::scene::Question;
use super::{MAX_NODES, Plot, Round, Scene, Story};
use crate::harness::{DEADLINE, wait_until};

pub(super) const STORY: Story = Story {
    name: "worker-paused",
    sentence: "A worker is stopped (SIGSTOP) in the middle of a stage until it is given up, then goes on (SIGCONT) with tasks that run elsewhere by now.",
    fewest_nodes: 3,
    most_nodes: MAX_NODES,
    usual_nodes: 3,
    question: Question::long,
    plot: Plot::OnMesh { prepare: |mesh| mesh, play: |scene, round| play(scene, round).boxed_local() },
};

async fn play(scene: &mut Scene, round: &mut Round) -> Result<()> {
    let leader = scene.cluster.leader().await?;
    let worker = scene.any_but(&mut round.dice, &[leader])?;
    let driver = scene.any_but(&mut round.dice, &[worker])?;
    let mesh = scene.cluster.status(leader).await?;
    let id = scene.cluster.id_of(&mesh, worker).map(|id| id.to_string()).unwrap_or_default();
    let job = scene.underway(round, driver).await?;
    let stopped_ms = unix_ms();
    scene.cluster.node(worker).stop()?;
    round.tell_at(stopped_ms, format!("{}, a worker, stands still (SIGSTOP)", scene.name(worker)));
    let noticed_ms = wait_until("the leader gives up a worker that stands still", DEADLINE, async || {
        evidence::given_up(scene.cluster.nodes(), stopped_ms, &id)
    })
    .await?;
    round.tell_at(noticed_ms, format!("the leader gives up {}", scene.name(worker)));
    round.measured(&NOTICED, noticed_ms - stopped_ms);
    // It wakes while the job still runs, or after its end.
    let early = round.dice.random_bool(0.5);
    if early {
        wake(scene, round, worker)?;
    }
    scene.judge(round, &job).await?;
    if !early {
        wake(scene, round, worker)?;
    }
    Ok(())
}

fn wake(scene: &mut Scene, round: &mut Round, worker: usize) -> Result<()> {
    scene.cluster.node(worker).resume()?;
    round.tell(format!("{} goes on (SIGCONT)", scene.name(worker)));
    Ok(())
}
