//! Nodes that know of no mesh start at the same moment, and must found one, not two.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use rand::RngExt;

use super::measure::{SPLIT, TOGETHER};
use super::report::unix_ms;
use super::scene::{Question, judge};
use super::{MAX_NODES, Plot, Props, Round, Story};

/// How many nodes start together, in turn from round to round, unless told otherwise.
const SIZES: [usize; 4] = [2, 3, 5, 9];

pub(super) const STORY: Story = Story {
    name: "simultaneous-boot",
    sentence: "Nodes that know of no mesh start at the same moment and become one mesh: 2, 3, 5 and 9 of them in turn, or as many as --nodes says.",
    fewest_nodes: 2,
    most_nodes: MAX_NODES,
    usual_nodes: 2,
    question: Question::small,
    plot: Plot::Alone(|props, round| play(props, round).boxed_local()),
};

async fn play(props: &Props, round: &mut Round) -> Result<()> {
    let nodes =
        if props.nodes_given { props.nodes } else { SIZES[(round.seed % SIZES.len() as u64) as usize] };
    round.tell(format!("{nodes} nodes are started"));
    let started_ms = unix_ms();
    let mut cluster = props.cluster().nodes(nodes).discover().launch().await?;
    let together = cluster.together().await;
    let mut meshes = BTreeSet::new();
    for node in 0..nodes {
        meshes.insert(cluster.status(node).await?.era.context("a node that is ready has no mesh")?);
    }
    round.measured(&SPLIT, (meshes.len() - 1) as f64);
    if together.is_err() || meshes.len() != 1 {
        cluster.keep_files();
    }
    ensure!(meshes.len() == 1, "{nodes} nodes are {} meshes: {meshes:?}", meshes.len());
    let leader = together?;
    round.measured(&TOGETHER, unix_ms() - started_ms);
    round.tell(format!("all are one mesh, led by {}", cluster.nodes()[leader].name()));
    let job = cluster.client(round.dice.random_range(0..nodes)).await?.sql(props.question.text()).await?;
    round.jobs += 1;
    judge(round, &job, &props.question.wanted).await;
    Ok(())
}
