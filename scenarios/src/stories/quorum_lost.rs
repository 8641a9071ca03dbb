//! Two of three voters die at once: nobody can be elected until somebody says that they are gone for good.

use anyhow::{Result, ensure};
use futures::FutureExt;

use super::measure::RECOVERED;
use super::report::unix_ms;
use super::scene::Question;
use super::{MAX_NODES, Plot, Round, Scene, Story};
use crate::harness::{DEADLINE, wait_until};

pub(super) const STORY: Story = Story {
    name: "quorum-lost",
    sentence: "All nodes but one are killed in the middle of a job; `floe status` says what is lost, `floe recover --yes` goes on with the survivor, and the others come back.",
    fewest_nodes: 3,
    most_nodes: MAX_NODES,
    usual_nodes: 3,
    question: Question::long,
    plot: Plot::OnMesh { prepare: |mesh| mesh, play: |scene, round| play(scene, round).boxed_local() },
};

async fn play(scene: &mut Scene, round: &mut Round) -> Result<()> {
    let leader = scene.cluster.leader().await?;
    // A survivor that had no vote knows no majority that could be lost.
    let voters = scene.voters(leader).await?;
    let others: Vec<usize> = (0..scene.cluster.len()).filter(|node| !voters.contains(node)).collect();
    let survivor = scene.any_but(&mut round.dice, &others)?;
    let job = scene.underway(round, survivor).await?;
    let victims: Vec<usize> = (0..scene.cluster.len()).filter(|node| *node != survivor).collect();
    for &victim in &victims {
        scene.kill(round, victim, if victim == leader { "the leader" } else { "another" }).await?;
    }
    let said = wait_until("`floe status` says what to type", DEADLINE, async || {
        let status = scene.cluster.run(survivor, &["status"]).await.ok()?;
        let said = String::from_utf8_lossy(&status.stdout).into_owned() + &status.stderr;
        said.contains("floe recover").then_some(said)
    })
    .await?;
    let advice = said.lines().find(|line| line.contains("floe recover")).unwrap_or_default();
    round.tell(format!("`floe status` says: {}", advice.trim()));
    let began_ms = unix_ms();
    scene.cluster.run(survivor, &["recover", "--yes"]).await?.success()?;
    round.tell_at(began_ms, format!("`floe recover --yes` on {}", scene.name(survivor)));
    let now = scene.cluster.leader().await?;
    round.measured(&RECOVERED, unix_ms() - began_ms);
    ensure!(now == survivor, "{} leads, which is not the survivor", scene.name(now));
    round.tell(format!("{} leads", scene.name(survivor)));
    scene.judge(round, &job).await?;
    for victim in victims {
        scene.restart(round, victim).await?;
    }
    Ok(())
}
