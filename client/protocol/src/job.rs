//! Jobs as drivers see them.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::function::FunctionJob;
use crate::ids::{JobId, NodeId, StageId};
use crate::time::WallTime;

/// What a driver submits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// A short text for `floe jobs`: the SQL, the function's name, or what the driver calls it.
    pub label: String,
    /// What is to be done.
    pub kind: JobKind,
}

/// What a job does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobKind {
    /// Answer a query.
    Query(Query),
    /// Call a function over data.
    Function(Box<FunctionJob>),
}

/// A query in either of its forms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// Polars SQL. A table name that is a path or a glob (`FROM 'data/*.parquet'`) is scanned by its ending;
    /// other names are looked up in `tables`.
    Sql {
        /// The statement.
        text: String,
        /// Table name to path, glob or directory.
        tables: BTreeMap<String, String>,
        /// The driver's working directory, against which relative paths are resolved.
        directory: String,
    },
    /// A serialized Polars `DslPlan` (`DslPlan::serialize_versioned`, or py-polars' `LazyFrame.serialize()`).
    /// Frames in memory travel inside it.
    Plan {
        /// The plan.
        dsl: Bytes,
        /// The driver's working directory, against which relative paths are resolved.
        directory: String,
        /// The schema that the driver's Polars gives the result, as an Arrow IPC stream without rows: a result that
        /// would have another is cast where that keeps all values, or refused. Empty if the driver cannot tell.
        #[serde(default)]
        schema: Bytes,
    },
}

/// Why nothing is left of a job but what is remembered of it, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freed {
    /// Why.
    pub why: WhyFreed,
    /// When, by the clock of whoever proposed it.
    pub at: WallTime,
}

/// Why nothing is left of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhyFreed {
    /// Its driver, or somebody else, said that the result is not needed any more.
    Released,
    /// Nobody read its result for as long as results are kept without that.
    Expired,
    /// Its result was lost with the nodes that held it, and could not be made again.
    Lost,
    /// It failed.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// It was a driver's calls, and the driver has no more of them.
    Closed,
}

impl fmt::Display for Freed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { why, at } = self;
        match why {
            WhyFreed::Released => write!(f, "its result was released at {at}"),
            WhyFreed::Expired => {
                write!(
                    f,
                    "its result was freed at {at}, since nobody had read it for an hour: submit it again"
                )
            }
            WhyFreed::Lost => write!(
                f,
                "its result was lost at {at} with the nodes that held it, and could not be made again: submit it again"
            ),
            WhyFreed::Failed => write!(f, "it failed at {at}, and why is not remembered any more"),
            WhyFreed::Cancelled => write!(f, "it was cancelled at {at}"),
            WhyFreed::Closed => write!(f, "its session was closed at {at}"),
        }
    }
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobPhase {
    /// Accepted; tasks are waiting or running.
    Running,
    /// Done; the result waits to be collected.
    Succeeded,
    /// Ended with this failure.
    Failed(Failure),
    /// Ended because somebody asked for it.
    Cancelled,
}

impl JobPhase {
    /// Whether nothing more will happen to the job.
    pub fn is_terminal(&self) -> bool {
        !matches!(self, Self::Running)
    }

    /// Whether the job has ended for good. One that has failed since what came with it was lost may be submitted again by
    /// whoever has that still, and then runs.
    pub fn is_final(&self) -> bool {
        self.is_terminal() && !matches!(self, Self::Failed(Failure::SubmissionLost { .. }))
    }

    /// One word for tables: `running`, `succeeded`, `failed`, `cancelled`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A job's state, as the answering node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// The job.
    pub id: JobId,
    /// The driver's label.
    pub label: String,
    /// Where it stands.
    pub phase: JobPhase,
    /// Progress by stage, in order.
    pub stages: Vec<StageProgress>,
    /// When it was accepted, by the accepting node's clock.
    pub submitted_at: WallTime,
    /// When it ended, likewise.
    pub ended_at: Option<WallTime>,
    /// How else it ended: parts of the mesh that were cut off from each other have told their drivers different ends.
    /// Empty for almost every job, and at most [`MAX_OTHER_ENDS`].
    pub other_ends: Vec<JobPhase>,
    /// Tasks that ran, in order of their end: who ran what, when. At most [`MAX_TIMELINE`] of them.
    pub timeline: Vec<TaskRun>,
    /// Whom it waits for, and why, as long as only nodes that are away could help; be it that its result was lost and is
    /// to be made again.
    pub waits_for: Option<String>,
}

impl JobStatus {
    /// What to tell whoever waits for a job whose ends contradict each other.
    pub fn contradiction(&self) -> Option<String> {
        let others: Vec<_> = self.other_ends.iter().map(JobPhase::name).collect();
        (!others.is_empty()).then(|| {
            format!(
                "job {} is {}, and drivers in a part of the mesh that was cut off from this one were told that it was {}",
                self.id,
                self.phase.name(),
                others.join(" and ")
            )
        })
    }

    /// How many tasks are done, and how many there are.
    pub fn tasks(&self) -> (u32, u32) {
        self.stages.iter().fold((0, 0), |(done, tasks), stage| (done + stage.done, tasks + stage.tasks))
    }
}

/// How many ends of a job that contradict the one it has are remembered.
pub const MAX_OTHER_ENDS: usize = 3;

/// How many jobs a list of jobs has at most, the newest ones.
pub const MAX_LISTED_JOBS: usize = 1_000;

/// How many task runs a job's status lists at most; the first ones are kept.
pub const MAX_TIMELINE: usize = 4096;

/// One stage's progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageProgress {
    /// The stage.
    pub stage: StageId,
    /// Its last operator, for people.
    pub name: String,
    /// Tasks in all.
    pub tasks: u32,
    /// Tasks running now, as far as the answering node knows.
    pub running: u32,
    /// Tasks done.
    pub done: u32,
    /// Rows its finished tasks put out.
    pub rows: u64,
    /// Bytes its finished tasks put out.
    pub bytes: u64,
}

/// One task's run, for timelines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRun {
    /// The stage.
    pub stage: StageId,
    /// The partition.
    pub partition: u32,
    /// Where it ran.
    pub node: NodeId,
    /// When it started, in milliseconds since the Unix epoch by its node's clock.
    pub started_at: WallTime,
    /// How long it ran.
    pub elapsed_ms: u64,
}
