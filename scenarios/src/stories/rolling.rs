//! Every node once, as in an upgrade, while jobs keep coming.

use std::cell::Cell;

use anyhow::Result;
use floe_client::Mesh;
use futures::{FutureExt, join};
use rand::seq::SliceRandom;

use super::measure::WHOLE_AGAIN;
use super::report::unix_ms;
use super::scene::{Question, judge};
use super::{MAX_NODES, Plot, Round, Scene, Story};
use crate::harness::{DEADLINE, wait_until};

pub(super) const STORY: Story = Story {
    name: "rolling",
    sentence: "Every node is killed once and restarted, one after the other, under a steady stream of jobs.",
    fewest_nodes: 3,
    most_nodes: MAX_NODES,
    usual_nodes: 3,
    question: Question::long,
    plot: Plot::OnMesh { prepare: |mesh| mesh, play: |scene, round| play(scene, round).boxed_local() },
};

async fn play(scene: &mut Scene, round: &mut Round) -> Result<()> {
    let mut order: Vec<usize> = (0..scene.cluster.len()).collect();
    order.shuffle(&mut round.dice);
    let mesh = scene.cluster.client(order[0]).await?;
    let question = scene.question.clone();
    let rolled = Cell::new(false);
    let mut jobs = round.aside();
    let stream = async {
        while !rolled.get() && jobs.is_sound() {
            let job = mesh.sql(question.text()).await?;
            jobs.jobs += 1;
            jobs.tell(format!("job {} submitted", job.id()));
            if judge(&mut jobs, &job, &question.wanted).await {
                job.release().await?;
            }
        }
        anyhow::Ok(())
    };
    let roll = async {
        let roll = roll(scene, round, &mesh, &order).await;
        rolled.set(true);
        roll
    };
    let (streamed, roll) = join!(stream, roll);
    round.take(jobs);
    streamed.and(roll)
}

async fn roll(scene: &mut Scene, round: &mut Round, mesh: &Mesh, order: &[usize]) -> Result<()> {
    for &node in order {
        wait_until("a job is under way", DEADLINE, async || {
            let jobs = mesh.jobs().await.ok()?;
            let mut running = jobs.iter().filter(|job| !job.phase.is_terminal());
            running.any(|job| job.stages.iter().any(|stage| stage.done > 0)).then_some(())
        })
        .await?;
        let role = if scene.cluster.leader().await? == node { "the leader" } else { "a worker" };
        scene.kill(round, node, role).await?;
        let restarted_ms = unix_ms();
        scene.restart(round, node).await?;
        scene.cluster.settled().await?;
        round.tell("the mesh is whole again");
        round.measured(&WHOLE_AGAIN, unix_ms() - restarted_ms);
    }
    Ok(())
}
