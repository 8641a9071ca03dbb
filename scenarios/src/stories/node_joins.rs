//! One more node comes while a job runs, and helps.

use anyhow::{Context, Result};
use futures::FutureExt;

use super::measure::{FIRST_TASK, OF_ITS_JOB};
use super::report::unix_ms;
use super::scene::Question;
use super::{MAX_NODES, Plot, Round, Scene, Story};

pub(super) const STORY: Story = Story {
    name: "node-joins",
    sentence: "A node joins in the middle of a job and gets its share of the work.",
    fewest_nodes: 1,
    most_nodes: MAX_NODES,
    usual_nodes: 3,
    question: Question::long,
    plot: Plot::OnMesh { prepare: |mesh| mesh, play: |scene, round| play(scene, round).boxed_local() },
};

async fn play(scene: &mut Scene, round: &mut Round) -> Result<()> {
    let driver = scene.any_but(&mut round.dice, &[])?;
    let job = scene.underway(round, driver).await?;
    round.tell("a node is started");
    let joined = scene.cluster.add().await?;
    let ready_ms = unix_ms();
    round.tell_at(ready_ms, format!("{} is a member", scene.name(joined)));
    if let Some(status) = scene.judge(round, &job).await? {
        let runs = scene.runs(&status).await?;
        let later = runs.iter().filter(|run| run.started_at >= ready_ms).count();
        let mut its_own: Vec<f64> =
            runs.iter().filter(|run| run.node == joined).map(|run| run.started_at).collect();
        its_own.sort_by(f64::total_cmp);
        let first = *its_own.first().context("the node that joined got no work")?;
        round.tell_at(
            first,
            format!("{} begins the first of its {} tasks", scene.name(joined), its_own.len()),
        );
        round.measured(&FIRST_TASK, (first - ready_ms).max(0.0));
        round.measured(&OF_ITS_JOB, 100.0 * its_own.len() as f64 / later.max(1) as f64);
    }
    scene.cluster.node(joined).terminate().await?;
    scene.cluster.remove_last()
}
