//! Two machines that lose sight of each other, while one of them takes on more work than the other.

use anyhow::{Result, ensure};
use futures::FutureExt;
use rand::RngExt;

use super::machines::Machines;
use super::measure::{CARRIED_ON, HEALED};
use super::report::unix_ms;
use super::scene::Question;
use super::{Plot, Props, Round, Story};
use crate::harness::{DEADLINE, Network, wait_until};

/// Jobs that the busier side takes on while they are apart. Each counts as much as a second of a task's time, and the
/// two run the same tasks otherwise.
const JOBS_APART: usize = 12;

pub(super) const STORY: Story = Story {
    name: "two-cut",
    sentence: "The network between two nodes is cut in the middle of a job; each goes on alone, one of them takes on more, and that one is the mesh that the other joins.",
    fewest_nodes: 2,
    most_nodes: 2,
    usual_nodes: 2,
    question: Question::long,
    plot: Plot::Alone(|props, round| play(props, round).boxed_local()),
};

async fn play(props: &Props, round: &mut Round) -> Result<()> {
    let machines = Machines::start(props, Network::new(2)?).await?;
    round.tell("2 machines, each a network namespace with a veth to one bridge");
    let (leader, _) = machines.settled().await?;
    let busier = round.dice.random_range(0..2);
    let other = 1 - busier;
    let driver = machines.ask(props, busier)?;
    round.jobs += 1;
    let name = |machine: usize| machines.nodes[machine].name().to_owned();
    round.tell(format!("`floe sql` is started on {}, and {} leads", name(busier), name(leader)));
    wait_until("the job is under way", DEADLINE, async || {
        let jobs = machines.json(busier, &["jobs"]).await.ok()?;
        (jobs.get(0)?["done"].as_u64()? > 0).then_some(())
    })
    .await?;

    let cut_ms = unix_ms();
    machines.network.cut_off(&[other])?;
    round.tell_at(cut_ms, "the network between them is cut");
    for machine in [busier, other] {
        wait_until("each leads itself", DEADLINE, async || {
            let status = machines.json(machine, &["status"]).await.ok()?;
            let alone = status["epoch"] == 2 && status["leader"] == status["answered_by"];
            alone.then_some(())
        })
        .await?;
        round.measured(&CARRIED_ON, unix_ms() - cut_ms);
        round.tell(format!("{} goes on alone", name(machine)));
    }
    for _ in 0..JOBS_APART {
        let one = machines.json(busier, &["sql", "SELECT 1 AS one"]).await?;
        ensure!(one[0]["one"] == 1, "it should be 1: {one}");
    }
    round.tell(format!("{} takes on {JOBS_APART} more jobs", name(busier)));

    machines.network.heal()?;
    let healed_ms = unix_ms();
    round.tell_at(healed_ms, "the network is healed");
    driver.judge(round, props, "the driver").await?;
    let (leader, _) = machines.settled().await?;
    round.measured(&HEALED, unix_ms() - healed_ms);
    if leader != busier {
        round.lost.push(format!("{} leads, which did less", name(leader)));
    }
    round.tell(format!("they are one mesh again, led by {}", name(leader)));
    Ok(())
}
