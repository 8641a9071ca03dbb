//! What can happen to a mesh, as stories: each is played on real nodes, ends in a check of every job's result
//! against Polars in one process, and tells what happened when and how long it took.
//!
//! [`ALL`] lists them, [`play`] plays one, over and over if wanted, and sums up. Who is hit and when follows from
//! a seed: round `n` of a play with seed `s` is the only round of a play with seed `s + n - 1`.
//!
//! What is told is what was seen from outside: the nodes' answers, their logs, and the timelines of jobs.

mod evidence;
mod measure;
mod report;
mod scene;

mod corrupted_partition;
mod data_wiped;
mod disk_full;
mod driver_killed_and_back;
mod driver_node_killed;
mod k_of_n_killed;
mod leader_killed;
mod leader_leaves;
mod leader_paused;
mod machines;
mod mesh_of_two;
mod network_cut;
mod node_joins;
mod quorum_lost;
mod rolling;
mod simultaneous_boot;
mod two_cut;
mod worker_killed;
mod worker_paused;

pub use measure::{Measure, Target};
pub use report::{Figure, Happening, Report, Round, Row, percentile};

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use futures::future::LocalBoxFuture;

use crate::harness::Builder;
use scene::{Props, Question, Scene};

/// The most nodes a story is played with: they share one machine.
pub const MAX_NODES: usize = 32;

/// All stories, in the order in which they are listed.
pub const ALL: &[Story] = &[
    leader_killed::STORY,
    leader_leaves::STORY,
    worker_killed::STORY,
    k_of_n_killed::STORY,
    rolling::STORY,
    leader_paused::STORY,
    worker_paused::STORY,
    network_cut::STORY,
    node_joins::STORY,
    data_wiped::STORY,
    disk_full::STORY,
    corrupted_partition::STORY,
    driver_node_killed::STORY,
    driver_killed_and_back::STORY,
    simultaneous_boot::STORY,
    quorum_lost::STORY,
    mesh_of_two::STORY,
    two_cut::STORY,
];

/// One story.
#[derive(Clone, Copy, Debug)]
pub struct Story {
    /// What it is called, in kebab case.
    pub name: &'static str,
    /// What happens, in a sentence.
    pub sentence: &'static str,
    /// The fewest nodes it can be played with.
    pub fewest_nodes: usize,
    /// The most nodes it can be played with.
    pub most_nodes: usize,
    /// How many nodes it has unless told otherwise.
    pub usual_nodes: usize,
    question: fn() -> Result<Question>,
    plot: Plot,
}

/// What a story needs to be played.
#[derive(Clone, Copy, Debug)]
enum Plot {
    /// A mesh, which all rounds share and which is whole again before each of them.
    OnMesh { prepare: fn(Builder) -> Builder, play: OnMesh },
    /// Nothing but the machine: each round makes its own nodes.
    Alone(Alone),
}

type OnMesh = for<'a> fn(&'a mut Scene, &'a mut Round) -> LocalBoxFuture<'a, Result<()>>;
type Alone = for<'a> fn(&'a Props, &'a mut Round) -> LocalBoxFuture<'a, Result<()>>;

/// How a story is to be played.
#[derive(Clone, Debug)]
pub struct Order {
    /// The `floe` binary.
    pub floe: PathBuf,
    /// How many nodes; as many as the story usually has unless given.
    pub nodes: Option<usize>,
    /// How often.
    pub rounds: usize,
    /// The first round's seed; the others follow.
    pub seed: u64,
}

/// The story of this name.
pub fn find(name: &str) -> Option<&'static Story> {
    ALL.iter().find(|story| story.name == name)
}

/// Plays a story, and gives each round to `told` when it has ended. A round that went wrong is part of the
/// report; the error is for an order that cannot be carried out.
pub async fn play(story: &Story, order: &Order, mut told: impl FnMut(&Round)) -> Result<Report> {
    let nodes = order.nodes.unwrap_or(story.usual_nodes);
    ensure!(order.rounds > 0, "0 rounds of {} tell nothing: give --rounds 1 or more", story.name);
    let (fewest, most) = (story.fewest_nodes, story.most_nodes);
    ensure!(nodes >= fewest, "{nodes} nodes are too few for {}: it needs at least {fewest}", story.name);
    ensure!(nodes <= most, "{nodes} nodes are too many for {}: it takes at most {most}", story.name);
    let props = Props::new(story, order)?;
    let mut report = Report::new(story, order);
    let mut standing = None;
    for number in 1..=order.rounds {
        let mut round = Round::new(number, order.seed.wrapping_add(number as u64 - 1));
        let outcome = match story.plot {
            Plot::Alone(play) => play(&props, &mut round).await,
            Plot::OnMesh { prepare, play } => on_mesh(&props, prepare, play, &mut standing, &mut round).await,
        };
        round.end(outcome);
        told(&round);
        report.add(round);
    }
    Ok(report)
}

/// Plays a round on the mesh that stands, or a new one where none does. It stands for the next round unless
/// something went wrong: then what is left of it is kept as evidence.
async fn on_mesh(
    props: &Props,
    prepare: fn(Builder) -> Builder,
    play: OnMesh,
    standing: &mut Option<Scene>,
    round: &mut Round,
) -> Result<()> {
    let mut scene = match standing.take() {
        Some(scene) => scene,
        None => Scene::new(props, prepare).await.context("the mesh did not come up")?,
    };
    round.begin();
    let played = match play(&mut scene, round).await {
        Ok(()) => scene.mend().await.context("the mesh did not become whole again"),
        Err(error) => Err(error),
    };
    if played.is_ok() && round.is_sound() {
        *standing = Some(scene);
    } else {
        scene.cluster.keep_files();
    }
    played
}
