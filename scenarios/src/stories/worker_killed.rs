//! A node that only works dies in the middle of a stage, with what it ran and what it had made.

use std::collections::BTreeSet;

use anyhow::Result;
use futures::FutureExt;

use super::evidence;
use super::measure::{ELSEWHERE, EXCESS, NOTICED};
use super::report::unix_ms;
use super::scene::Question;
use super::{MAX_NODES, Plot, Round, Scene, Story};

pub(super) const STORY: Story = Story {
    name: "worker-killed",
    sentence: "A worker is killed in the middle of a stage; what it ran and what it had made is made elsewhere.",
    fewest_nodes: 3,
    most_nodes: MAX_NODES,
    usual_nodes: 3,
    question: Question::long,
    plot: Plot::OnMesh { prepare: |mesh| mesh, play: |scene, round| play(scene, round).boxed_local() },
};

async fn play(scene: &mut Scene, round: &mut Round) -> Result<()> {
    let undisturbed_ms = scene.undisturbed_ms().await?;
    round.begin();
    let leader = scene.cluster.leader().await?;
    let worker = scene.any_but(&mut round.dice, &[leader])?;
    let driver = scene.any_but(&mut round.dice, &[worker])?;
    let mesh = scene.cluster.status(leader).await?;
    let id = scene.cluster.id_of(&mesh, worker).map(|id| id.to_string()).unwrap_or_default();
    let began_ms = unix_ms();
    let job = scene.underway(round, driver).await?;
    let killed_ms = scene.kill(round, worker, "a worker").await?;
    let Some(status) = scene.judge(round, &job).await? else { return Ok(()) };
    let took_ms = unix_ms() - began_ms;
    if let Some(noticed_ms) = evidence::given_up(scene.cluster.nodes(), killed_ms, &id) {
        round.tell_at(noticed_ms, format!("the leader gives up {}", scene.name(worker)));
        round.measured(&NOTICED, noticed_ms - killed_ms);
    }
    let done = scene.done(round, &job);
    let by_worker: BTreeSet<_> =
        done.iter().filter(|done| done.node == worker).map(|done| done.task).collect();
    // A second attempt by the same leader makes up for a first one that was lost.
    let anew: BTreeSet<_> =
        done.iter().filter(|done| done.node != worker && done.earlier > 0).map(|done| done.task).collect();
    let runs = scene.runs(&status).await?;
    let again = runs
        .iter()
        .filter(|run| run.node != worker && run.started_at >= killed_ms && anew.contains(&run.task));
    let again: Vec<_> = again.copied().collect();
    // What it ran when it died never came to its end there.
    let ran = again.iter().filter(|run| !by_worker.contains(&run.task));
    if let Some(last) = ran.map(|run| run.started_at).max_by(f64::total_cmp) {
        round.tell_at(last, format!("the last task that {} ran runs elsewhere", scene.name(worker)));
        round.measured(&ELSEWHERE, last - killed_ms);
    }
    let lost_work_ms: f64 = again.iter().map(|run| run.elapsed_ms).sum();
    round.tell(format!("{} tasks ran anew, {lost_work_ms:.0} ms of work", again.len()));
    round.measured(&EXCESS, (took_ms - undisturbed_ms - lost_work_ms).max(0.0));
    scene.restart(round, worker).await
}
