//! The network falls in two, with drivers on both sides, and is healed.

use anyhow::Result;
use futures::FutureExt;
use rand::RngExt;
use rand::seq::SliceRandom;
use serde_json::Value;

use super::evidence;
use super::machines::Machines;
use super::measure::{CUT_OFF, HEALED};
use super::report::unix_ms;
use super::scene::Question;
use super::{MAX_NODES, Plot, Props, Round, Story};
use crate::harness::{DEADLINE, Network, wait_until};

/// Tasks of each job that are done at most when the network is cut.
const DONE_AT_MOST: u64 = 8;

pub(super) const STORY: Story = Story {
    name: "network-cut",
    sentence: "The network is cut in two in the middle of two jobs, one driver on either side; the majority goes on, the minority finishes once it is healed.",
    fewest_nodes: 3,
    most_nodes: MAX_NODES,
    usual_nodes: 5,
    question: Question::long,
    plot: Plot::Alone(|props, round| play(props, round).boxed_local()),
};

async fn play(props: &Props, round: &mut Round) -> Result<()> {
    let machines = Machines::start(props, Network::new(props.nodes)?).await?;
    round.tell(format!("{} machines, each a network namespace with a veth to one bridge", props.nodes));
    let (leader, voters) = machines.settled().await?;
    let island = minority(round, props.nodes, &voters);
    let mainland: Vec<usize> = (0..props.nodes).filter(|machine| !island.contains(machine)).collect();
    let (there, here) = (pick(round, &island), pick(round, &mainland));
    let mut drivers = Vec::new();
    for machine in [here, there] {
        drivers.push(machines.ask(props, machine)?);
        round.jobs += 1;
        round.tell(format!("`floe sql` is started on {}", machines.nodes[machine].name()));
    }
    let enough = round.dice.random_range(1..=DONE_AT_MOST);
    wait_until("both jobs are under way", DEADLINE, async || {
        let jobs = machines.json(here, &["jobs"]).await.ok()?;
        let jobs = jobs.as_array()?;
        let under_way = |job: &Value| job["done"].as_u64().is_some_and(|done| done >= enough);
        (jobs.len() == drivers.len() && jobs.iter().all(under_way)).then_some(())
    })
    .await?;

    let cut_ms = unix_ms();
    machines.network.cut_off(&island)?;
    let names = |of: &[usize]| of.iter().map(|m| machines.nodes[*m].name()).collect::<Vec<_>>().join(", ");
    let place = if island.contains(&leader) { "on the smaller side" } else { "on the larger side" };
    round.tell_at(
        cut_ms,
        format!("the network is cut: {} | {}, the leader {place}", names(&mainland), names(&island)),
    );
    if island.contains(&leader) {
        let election = wait_until("the majority elects a leader", DEADLINE, async || {
            let elections = evidence::elections(&machines.nodes, cut_ms);
            elections.into_iter().find(|election| mainland.contains(&election.node))
        })
        .await?;
        let name = machines.nodes[election.node].name();
        round.tell_at(election.unix_ms, format!("{name} is elected, term {}", election.term));
        round.measured(&CUT_OFF, election.unix_ms - cut_ms);
    }
    let mut drivers = drivers.into_iter();
    let (Some(majority), Some(minority)) = (drivers.next(), drivers.next()) else { return Ok(()) };
    majority.judge(round, props, "the driver with the majority").await?;
    for &machine in &island {
        let name = machines.nodes[machine].name();
        if !voters.contains(&machine) {
            // It has no say in who leads, and may not know.
            let status = machines.json(machine, &["status"]).await?;
            round.tell(format!("`floe status` on {name}, a learner, names as leader: {}", status["leader"]));
            continue;
        }
        wait_until("a voter without a majority knows that it has no leader", DEADLINE, async || {
            let status = machines.json(machine, &["status"]).await.ok()?;
            status["leader"].is_null().then_some(())
        })
        .await?;
        round.tell(format!("`floe status` on {name}, a voter, says that there is no leader"));
    }
    machines.network.heal()?;
    let healed_ms = unix_ms();
    round.tell_at(healed_ms, "the network is healed");
    minority.judge(round, props, "the driver with the minority").await?;
    round.measured(&HEALED, unix_ms() - healed_ms);
    machines.settled().await?;
    round.tell("all are one mesh again");
    Ok(())
}

/// As many machines as are fewer than half, with fewer than half of the voters among them.
fn minority(round: &mut Round, machines: usize, voters: &[usize]) -> Vec<usize> {
    let mut voting = voters.to_vec();
    voting.shuffle(&mut round.dice);
    voting.truncate((voters.len() - 1) / 2);
    let mut others: Vec<usize> = (0..machines).filter(|machine| !voters.contains(machine)).collect();
    others.shuffle(&mut round.dice);
    let mut island = [voting, others].concat();
    island.truncate((machines - 1) / 2);
    island.sort_unstable();
    island
}

fn pick(round: &mut Round, machines: &[usize]) -> usize {
    machines[round.dice.random_range(0..machines.len())]
}
