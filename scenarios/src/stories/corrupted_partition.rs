//! A disk gives back other bytes than were written to it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use floe_protocol::JobPhase;
use futures::FutureExt;
use rand::RngExt;

use super::evidence;
use super::scene::Question;
use super::{MAX_NODES, Plot, Round, Scene, Story};

/// So little that a large result goes to disk.
const MEMORY: &str = "48MiB";

pub(super) const STORY: Story = Story {
    name: "corrupted-partition",
    sentence: "Bytes of a result's partition file are flipped on disk before the result is collected; it is made again.",
    fewest_nodes: 1,
    most_nodes: MAX_NODES,
    usual_nodes: 3,
    question: Question::large,
    plot: Plot::OnMesh {
        prepare: |mesh| mesh.memory(MEMORY),
        play: |scene, round| play(scene, round).boxed_local(),
    },
};

async fn play(scene: &mut Scene, round: &mut Round) -> Result<()> {
    let driver = scene.any_but(&mut round.dice, &[])?;
    let job = scene.ask(round, driver).await?;
    let status = job.wait().await?;
    ensure!(status.phase == JobPhase::Succeeded, "the job ended before its result was spoilt: {status:?}");
    let last = status.stages.last().context("a job without stages")?.stage;
    let prefix = format!("job-{}-stage-{last}-partition-", job.id());
    let mut files: Vec<(usize, PathBuf)> = Vec::new();
    for node in 0..scene.cluster.len() {
        for entry in fs::read_dir(scene.cluster.data_dir(node).join("partitions"))? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
                files.push((node, path));
            }
        }
    }
    files.sort();
    if files.is_empty() {
        bail!("no partition of the result went to disk: there is nothing to spoil");
    }
    let (node, path) = &files[round.dice.random_range(0..files.len())];
    let at = flip(path, round)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    round.tell(format!("byte {at} of {name} on {} is flipped", scene.name(*node)));
    let Some(_) = scene.judge(round, &job).await? else { return Ok(()) };
    let (again, _) = evidence::again(&scene.done(round, &job));
    ensure!(again > 0, "the spoilt partition was not made again, and nobody noticed");
    Ok(())
}

/// Flips all bits of a byte in the middle of the file, where the data lie.
fn flip(path: &PathBuf, round: &mut Round) -> Result<u64> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let at = round.dice.random_range(length / 4..length * 3 / 4);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[!byte[0]], at)?;
    Ok(at)
}
