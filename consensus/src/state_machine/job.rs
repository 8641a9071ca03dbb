//! A job as it is replicated, whether it is sound, and how much of a snapshot it takes.

use std::sync::Arc;

use floe_protocol::columns;
use floe_protocol::frame;
use floe_protocol::graph::BucketMeta;
use floe_protocol::job::{MAX_OTHER_ENDS, MAX_TIMELINE, TaskRun};
use floe_protocol::{Freed, JobPhase, Placed, Read, Stage, StageGraph, StageProgress, WallTime, Work};
use serde::{Deserialize, Serialize};

use super::{MAX_JOB_BYTES, MAX_LABEL_BYTES, MAX_STAGE_TASKS, MAX_STAGES};

/// Roughly what a stage's outputs take in a snapshot besides their partitions and buckets.
const OUTPUTS_BYTES: usize = 100;

/// Roughly what one partition's place takes in a snapshot.
const PLACE_BYTES: usize = 24;

/// What a task counts for besides: what the leader knows of it takes several times as much, in memory alone.
pub(super) const TASK_BYTES: usize = 32;

/// Roughly what the size of one of a stage's buckets takes in a snapshot.
const BUCKET_BYTES: usize = 16;

/// Roughly what one task's run takes in a snapshot.
const RUN_BYTES: usize = 80;

/// Roughly what a job takes in a snapshot besides what is counted for itself.
const RECORD_BYTES: usize = 200;

/// Roughly what one stage's progress takes in a snapshot, besides its name.
const PROGRESS_BYTES: usize = 80;

/// One job as it is replicated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The driver's label.
    pub label: String,
    /// Where it stands.
    pub phase: JobPhase,
    /// What it runs and where its partitions lie; `None` once it was freed.
    pub work: Option<JobWork>,
    /// Whose it is, see [`crate::Command::Submit`].
    pub owner: u64,
    /// When it was accepted.
    pub submitted_at: WallTime,
    /// When it ended.
    pub ended_at: Option<WallTime>,
    /// Why `work` was dropped, and when; a job with neither cannot be.
    pub freed: Option<Freed>,
    /// How else it ended, in eras that this one has taken over from.
    pub other_ends: Vec<JobPhase>,
    /// Progress by stage, kept beyond `work`.
    pub stages: Vec<StageProgress>,
    /// Tasks that ran, at most [`MAX_TIMELINE`].
    pub timeline: Vec<TaskRun>,
    /// Roughly its size in a snapshot.
    pub(super) weight_bytes: usize,
}

impl Job {
    /// Whether it has succeeded and its result waits to be collected.
    pub fn has_result(&self) -> bool {
        self.work.is_some() && self.phase.is_terminal()
    }

    /// Roughly its size in a snapshot.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }
}

/// What a job runs, and what there is of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobWork {
    /// The stages.
    pub graph: Arc<StageGraph>,
    /// For each stage, where its partitions lie, once all of them exist.
    pub outputs: Vec<Option<StageOutputs>>,
}

/// The partitions of a stage, all of which exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageOutputs {
    /// Where each lies, in order.
    #[serde(with = "columns::placed")]
    pub placed: Vec<Placed>,
    /// The size of each bucket in all partitions together. What is in which partition, its holders know.
    #[serde(with = "columns::buckets")]
    pub buckets: Vec<BucketMeta>,
}

impl StageOutputs {
    /// Those of a stage whose partitions are read whole: all of them are one bucket.
    pub fn whole(placed: Vec<Placed>) -> Self {
        let mut bucket = BucketMeta::default();
        for Placed { summary, .. } in &placed {
            bucket.rows = bucket.rows.saturating_add(summary.rows);
            bucket.bytes = bucket.bytes.saturating_add(summary.bytes);
        }
        Self { placed, buckets: vec![bucket] }
    }

    /// Rows in all of them.
    pub fn rows(&self) -> u64 {
        self.placed.iter().map(|placed| placed.summary.rows).fold(0, u64::saturating_add)
    }

    /// Bytes of all of them, as stored.
    pub fn bytes(&self) -> u64 {
        self.placed.iter().map(|placed| placed.summary.bytes).fold(0, u64::saturating_add)
    }
}

/// Whether a job is a driver's calls: nothing of it is scheduled, and nothing is left of it when it ends.
pub(crate) fn is_standing(graph: &StageGraph) -> bool {
    graph.stages.iter().any(|stage| stage.work == Work::Calls)
}

/// Whether these can be a stage's partitions. A stage of calls has an empty one, that lies nowhere.
pub(super) fn outputs_fit(stage: &Stage, outputs: &StageOutputs) -> bool {
    let empty = || outputs.placed.iter().all(|placed| *placed == Placed::default());
    outputs.placed.len() == stage.tasks.len()
        && outputs.buckets.len() == stage.exchange.buckets() as usize
        && (stage.work != Work::Calls || empty())
}

/// What a job counts for: roughly what it will take in a snapshot, and what its tasks take in memory. Or what is too large
/// of it for one entry.
pub(super) fn work_bytes(label: &str, graph: &StageGraph) -> Result<usize, String> {
    let graph_bytes = frame::encode(graph).map_err(|error| error.to_string())?.len();
    let bytes = results_bytes(graph).saturating_add(RECORD_BYTES + label.len() + graph_bytes);
    if bytes > MAX_JOB_BYTES {
        return Err(format!(
            "the job's stages and tasks take {bytes} bytes of what the mesh remembers, the limit is {MAX_JOB_BYTES}: read \
             fewer files, or use fewer partitions"
        ));
    }
    let tasks: usize = graph.stages.iter().map(|stage| stage.tasks.len()).sum();
    Ok(bytes.saturating_add(tasks.saturating_mul(TASK_BYTES)))
}

/// What ends take in a snapshot that a job had elsewhere.
pub(super) fn ends_bytes(ends: &[JobPhase]) -> usize {
    match ends {
        [] => 0,
        ends => frame::encode(&ends).map_or(0, |bytes| bytes.len()),
    }
}

/// Roughly what a job takes in a snapshot once it was freed.
pub(super) fn record_bytes(job: &Job) -> usize {
    let phase = frame::encode(&job.phase).map_or(0, |bytes| bytes.len()) + ends_bytes(&job.other_ends);
    RECORD_BYTES
        + job.label.len()
        + phase
        + job.stages.iter().map(|stage| PROGRESS_BYTES + stage.name.len()).sum::<usize>()
        + job.timeline.len() * RUN_BYTES
}

/// Roughly what a job's outputs and timeline will take in a snapshot.
fn results_bytes(graph: &StageGraph) -> usize {
    let tasks: usize = graph.stages.iter().map(|stage| stage.tasks.len()).sum();
    let of_stage = |stage: &Stage| {
        let buckets = stage.exchange.buckets() as usize;
        let name = stage.operators.last().map_or(0, String::len);
        (PROGRESS_BYTES + name + OUTPUTS_BYTES)
            .saturating_add(stage.tasks.len().saturating_mul(PLACE_BYTES))
            .saturating_add(buckets.saturating_mul(BUCKET_BYTES))
    };
    let outputs = graph.stages.iter().map(of_stage).fold(0_usize, usize::saturating_add);
    outputs.saturating_add(tasks.min(MAX_TIMELINE) * RUN_BYTES)
}

/// Whether another era's job is one that this one could have made of it; and if so, roughly its size.
pub(super) fn check_job(job: &Job) -> Result<usize, String> {
    if job.label.len() > MAX_LABEL_BYTES
        || job.timeline.len() > MAX_TIMELINE
        || job.stages.len() > MAX_STAGES
        || job.other_ends.len() > MAX_OTHER_ENDS
    {
        return Err("it has too long a history".to_owned());
    }
    let Some(work) = &job.work else {
        return match job.phase {
            JobPhase::Running => Err("it runs, and nothing says what".to_owned()),
            _ if job.freed.is_none() => Err("nothing is left of it, and nothing says why".to_owned()),
            _ => Ok(record_bytes(job)),
        };
    };
    check_work(work)?;
    if job.stages.len() != work.graph.stages.len() {
        return Err(format!("it tells of {} stages and has {}", job.stages.len(), work.graph.stages.len()));
    }
    let complete = matches!(work.outputs.last(), Some(Some(_)));
    let fits = match job.phase {
        JobPhase::Running => !complete,
        JobPhase::Succeeded => complete,
        JobPhase::Failed(_) | JobPhase::Cancelled => false,
    };
    if !fits {
        return Err(format!("it is said to be {}, and its outputs say otherwise", job.phase.name()));
    }
    Ok(work_bytes(&job.label, &work.graph)?.saturating_add(ends_bytes(&job.other_ends)))
}

/// Whether a job's outputs fit its graph, which is sound.
fn check_work(work: &JobWork) -> Result<(), String> {
    check_graph(&work.graph)?;
    if work.outputs.len() != work.graph.stages.len() {
        return Err(format!(
            "it has outputs of {} stages for {}",
            work.outputs.len(),
            work.graph.stages.len()
        ));
    }
    for (stage, outputs) in work.graph.stages.iter().zip(&work.outputs) {
        if outputs.as_ref().is_some_and(|outputs| !outputs_fit(stage, outputs)) {
            return Err(format!("the outputs of its stage {} do not fit it", stage.id));
        }
    }
    Ok(())
}

/// Whether everything a graph refers to exists, so that nobody after this has to ask.
pub(super) fn check_graph(graph: &StageGraph) -> Result<(), String> {
    if graph.stages.is_empty() || graph.stages.len() > MAX_STAGES {
        return Err(format!("a job has 1 to {MAX_STAGES} stages, this one has {}", graph.stages.len()));
    }
    for (position, stage) in graph.stages.iter().enumerate() {
        if stage.id.0 as usize != position {
            return Err(format!("stage {} is in place {position} of its graph", stage.id));
        }
        if stage.tasks.is_empty() || stage.tasks.len() > MAX_STAGE_TASKS {
            return Err(format!(
                "a stage has 1 to {MAX_STAGE_TASKS} tasks, stage {} has {}: read fewer files at once",
                stage.id,
                stage.tasks.len()
            ));
        }
        if !stage.seen_by.is_sorted() {
            return Err(format!("the nodes that see stage {}'s files are not in order", stage.id));
        }
        if let Some(input) = stage.inputs.iter().find(|input| input.stage >= stage.id) {
            return Err(format!(
                "stage {} reads from stage {}, which is not before it",
                stage.id, input.stage
            ));
        }
        for input in &stage.inputs {
            if input.read == (Read::Group { size: 0 }) {
                return Err(format!("stage {} reads stage {} in groups of none", stage.id, input.stage));
            }
            let buckets = graph.stages[input.stage.0 as usize].exchange.buckets() as usize;
            if input.read == Read::Bucket && stage.tasks.len() > buckets {
                return Err(format!(
                    "stage {} has {} tasks for the {buckets} buckets of stage {}",
                    stage.id,
                    stage.tasks.len(),
                    input.stage
                ));
            }
        }
        if let Work::Held(placed) = &stage.work
            && (placed.len() != stage.tasks.len() || !stage.inputs.is_empty())
        {
            return Err(format!(
                "stage {} holds {} partitions for {} tasks",
                stage.id,
                placed.len(),
                stage.tasks.len()
            ));
        }
        if stage.work == Work::Calls && (graph.stages.len() > 1 || stage.tasks.len() > 1) {
            return Err(format!(
                "stage {} is a driver's calls: that must be all of a job, in one task",
                stage.id
            ));
        }
    }
    Ok(())
}
