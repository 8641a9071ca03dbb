//! From a function's job to its stages.
//!
//! ```text
//!   frames, or a query's last stage ──partition to partition──> the function ──groups──> merge ──groups──> merge
//!   arguments, files ─────────────── a task each ─────────────────^
//! ```

use std::sync::Arc;

use bytes::Bytes;
use floe_protocol::arrow_file::stream_of;
use floe_protocol::function::{
    Argument, Format, Frame, FunctionInput, FunctionWork, Host, MAX_TASKS, Merge, ProgramFile,
};
use floe_protocol::graph::BucketMeta;
use floe_protocol::message::{FileMark, Inspected, Status};
use floe_protocol::{
    Exchange, Failure, Function, FunctionJob, JobId, JobKind, JobSpec, NodeId, OutputMeta, Placed, Query,
    Read, Stage, StageGraph, StageId, StageInput, TaskId, TaskSpec, Work, frame,
};
use floe_transport::stream::{Body, BodyError};
use futures::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::{Looked, Planning, Submitter, blocking};
use crate::disk::Promise;
use crate::store::Arrived;

/// How many frames are stored and copied at once: enough to keep the link busy while others are checked.
const COPIED_AT_ONCE: usize = 4;

/// The largest of these: each is held in memory while a function runs on it.
const MAX_FRAME_BYTES: u64 = 1 << 30;

/// How many bytes of frames may come with one submission. What has no room in memory goes to disk.
const MAX_FRAMES_BYTES: u64 = 64 << 30;

/// The most partitions that one call of a merging function gets.
const MAX_FAN_IN: u32 = 1024;

/// The files of the frames that come with a submission, and the room that was promised for them.
pub(super) struct Files<'a, S> {
    pub(super) body: &'a mut Body<S>,
    pub(super) promise: &'a Arc<Promise>,
}

impl Submitter {
    /// Plans a function's job; with `files`, for good: the frames that come with it are kept.
    pub(super) async fn plan_function<S>(
        &self,
        id: JobId,
        job: FunctionJob,
        status: &Status,
        planning: Planning,
        files: Option<Files<'_, S>>,
    ) -> Result<StageGraph, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let FunctionJob { function, input, merge } = job;
        let mut stages = match input {
            FunctionInput::Arguments(arguments) => vec![stage(0, &function, argument_tasks(arguments)?)?],
            FunctionInput::Frames(frames) => {
                let tasks = vec![TaskSpec::default(); frames.len()];
                let held = match files {
                    Some(files) => self.hold(id, &frames, status, files).await?,
                    None => frames
                        .iter()
                        .map(|frame| Placed { nodes: Vec::new(), summary: meta_of(frame).summary() })
                        .collect(),
                };
                let held = holding(held);
                vec![held, reading(stage(1, &function, tasks)?, Read::Partition { first: 0 })]
            }
            FunctionInput::Files { paths, directory } => {
                let (files, looked) = self.find_files(&paths, &directory, status).await?;
                let tasks = files.iter().cloned().map(file_task).collect::<Result<Vec<_>, _>>()?;
                bounded(tasks.len())?;
                let (seen_by, unseen_by) = looked.divide(&files);
                vec![Stage { seen_by, unseen_by, ..stage(0, &function, tasks)? }]
            }
            FunctionInput::Query(query) => {
                let mut stages = self.plan_input(id, query, planning).await?;
                let count = stages.len();
                let last = stages.last_mut().ok_or_else(|| Failure::internal("a query without stages"))?;
                last.exchange = Exchange::Pass;
                let tasks = vec![TaskSpec::default(); last.tasks.len()];
                stages.push(reading(stage(count, &function, tasks)?, Read::Partition { first: 0 }));
                stages
            }
        };
        if let Some(merge) = merge {
            add_merge(&mut stages, &merge)?;
        }
        // What a function returns is known when it has returned it.
        Ok(StageGraph { stages, ..StageGraph::default() })
    }

    /// The stages of the query whose result is the function's input.
    async fn plan_input(&self, id: JobId, query: Query, planning: Planning) -> Result<Vec<Stage>, Failure> {
        let spec = JobSpec { label: String::new(), kind: JobKind::Query(query) };
        let encoded = Bytes::from(frame::encode(&spec).map_err(Failure::internal)?);
        let JobKind::Query(query) = spec.kind else { return Err(Failure::internal("not a query")) };
        Ok(self.plan_query(id, query, encoded, planning).await?.stages)
    }

    /// Stores the frames on more than one node, each as soon as it has arrived.
    async fn hold<S>(
        &self,
        id: JobId,
        frames: &[Frame],
        status: &Status,
        Files { body, promise }: Files<'_, S>,
    ) -> Result<Vec<Placed>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut keeping = JoinSet::new();
        let mut held = vec![Placed::default(); frames.len()];
        for (partition, frame) in frames.iter().enumerate() {
            let task = TaskId { job: id, stage: StageId(0), partition: partition as u32 };
            let arrived = self.store.receive(task, meta_of(frame), body, promise).await;
            let arrived = arrived.map_err(|error| broken_off(&error))?;
            if keeping.len() == COPIED_AT_ONCE {
                kept(&mut keeping, &mut held).await?;
            }
            let (submitter, status) = (self.clone(), status.clone());
            keeping.spawn(async move { Ok((partition, submitter.keep(task, arrived, &status).await?)) });
        }
        body.reach_end().await.map_err(|error| broken_off(&error))?;
        while !keeping.is_empty() {
            kept(&mut keeping, &mut held).await?;
        }
        // Acknowledged only now, for a driver waits longer for that than for the answer that follows: copies take as long as
        // the nodes' links and disks do under all that others send.
        body.end().await.map_err(|error| broken_off(&error))?;
        Ok(held)
    }

    /// Looks at a frame that is stored here, and stores it elsewhere.
    async fn keep(&self, task: TaskId, arrived: Arrived, status: &Status) -> Result<Placed, Failure> {
        let meta = arrived.stored().await?;
        let store = self.store.clone();
        let looked_at = blocking(move || {
            let unreadable = |error: &dyn std::fmt::Display| Failure::Refused {
                message: format!("partition {} of the input cannot be read: {error}", task.partition),
            };
            let readable = match store.look(task)?.as_slice() {
                [file] => stream_of(file).map(drop).map_err(|error| unreadable(&error)),
                files => Err(unreadable(&format!("it is {} files", files.len()))),
            };
            readable.inspect_err(|_| store.discard(task))
        });
        looked_at.await??;
        let nodes = self.copy(task, &meta, status).await?;
        Ok(Placed { nodes, summary: meta.summary() })
    }

    /// The files under some paths, as a node lists them that sees all of these.
    async fn find_files(
        &self,
        paths: &[String],
        directory: &str,
        status: &Status,
    ) -> Result<(Vec<FileMark>, Looked), Failure> {
        let paths = floe_query::resolve(paths, directory)?;
        let looked = self.look(status, &paths).await?;
        let here = status.node;
        let nodes = std::iter::once(here).chain(looked.0.keys().copied().filter(|node| *node != here));
        let mut seeing = nodes.filter(|node| looked.sees_all(*node));
        let Some(node) = seeing.next() else { return Err(looked.unseen(&paths, status)) };
        let mut files: Vec<FileMark> = looked.files_of(node).cloned().collect();
        // Two patterns may name one file.
        let mut seen = std::collections::BTreeSet::new();
        files.retain(|file| seen.insert(file.path.clone()));
        Ok((files, looked))
    }
}

impl Looked {
    fn files_of(&self, node: NodeId) -> impl Iterator<Item = &FileMark> {
        let found = self.0.get(&node).and_then(|found| found.as_ref().ok());
        found.into_iter().flatten().flat_map(|path| match path {
            Inspected::Files(files) => files.as_slice(),
            Inspected::Missing(_) => &[],
        })
    }
}

/// What is known of a frame before its file is here.
fn meta_of(frame: &Frame) -> OutputMeta {
    OutputMeta { buckets: vec![BucketMeta { rows: frame.rows, bytes: frame.bytes }], mark: 0 }
}

/// Takes note of a frame that was stored.
async fn kept(
    keeping: &mut JoinSet<Result<(usize, Placed), Failure>>,
    held: &mut [Placed],
) -> Result<(), Failure> {
    if let Some(kept) = keeping.join_next().await {
        let (partition, placed) = kept.map_err(Failure::internal)??;
        held[partition] = placed;
    }
    Ok(())
}

fn broken_off(error: &BodyError) -> Failure {
    Failure::Refused { message: format!("the job's frames did not arrive whole: {error}") }
}

/// How many bytes of frames come with a submission, if frames do.
pub(super) fn frames_bytes(spec: &JobSpec) -> Option<u64> {
    match &spec.kind {
        JobKind::Function(job) => match &job.input {
            FunctionInput::Frames(frames) if !frames.is_empty() => Some(sum_bytes(frames)),
            _ => None,
        },
        JobKind::Query(_) => None,
    }
}

/// Refuses frames that no node takes, however much room it has.
pub(super) fn check_frames(spec: &JobSpec) -> Result<(), Failure> {
    let JobKind::Function(job) = &spec.kind else { return Ok(()) };
    let FunctionInput::Frames(frames) = &job.input else { return Ok(()) };
    bounded(frames.len())?;
    sized(frames)
}

fn sum_bytes(frames: &[Frame]) -> u64 {
    frames.iter().fold(0, |sum, frame| sum.saturating_add(frame.bytes))
}

/// A stage whose partitions are there.
fn holding(held: Vec<Placed>) -> Stage {
    Stage {
        id: StageId(0),
        tasks: vec![TaskSpec::default(); held.len()],
        work: Work::Held(held),
        inputs: Vec::new(),
        exchange: Exchange::Pass,
        operators: vec!["frames of the driver".to_owned()],
        single_because: None,
        seen_by: Vec::new(),
        unseen_by: Vec::new(),
    }
}

/// A stage that calls a function, without inputs of other stages.
fn stage(place: usize, function: &Function, tasks: Vec<TaskSpec>) -> Result<Stage, Failure> {
    let work = FunctionWork { function: function.clone() };
    let work = Work::Function(frame::encode(&work).map_err(Failure::internal)?.into());
    Ok(Stage {
        id: StageId(place as u32),
        work,
        inputs: Vec::new(),
        exchange: Exchange::Gather,
        tasks,
        operators: vec![describe(function)],
        single_because: None,
        seen_by: Vec::new(),
        unseen_by: Vec::new(),
    })
}

/// Lets a stage read the one before it.
fn reading(mut stage: Stage, read: Read) -> Stage {
    stage.inputs = vec![StageInput { stage: StageId(stage.id.0.saturating_sub(1)), read }];
    stage
}

/// Stages that call a merging function with groups of partitions, until one is left. It is called at least once,
/// so that the result is of its making however many partitions there were.
fn add_merge(stages: &mut Vec<Stage>, merge: &Merge) -> Result<(), Failure> {
    if !(2..=MAX_FAN_IN).contains(&merge.fan_in) {
        let message = format!("a merge takes 2 to {MAX_FAN_IN} partitions at once, and not {}", merge.fan_in);
        return Err(Failure::Refused { message });
    }
    let mut count = stages.last().map_or(0, |stage| stage.tasks.len());
    loop {
        if let Some(last) = stages.last_mut() {
            last.exchange = Exchange::Pass;
        }
        count = count.div_ceil(merge.fan_in as usize);
        let tasks = vec![TaskSpec::default(); count];
        let next = stage(stages.len(), &merge.function, tasks)?;
        stages.push(reading(next, Read::Group { size: merge.fan_in }));
        if count <= 1 {
            return Ok(());
        }
    }
}

fn argument_tasks(arguments: Vec<Argument>) -> Result<Vec<TaskSpec>, Failure> {
    bounded(arguments.len())?;
    arguments
        .into_iter()
        .map(|argument| match argument {
            Argument::File(file) => file_task(file),
            Argument::Payload(ref payload) => {
                let scan_bytes = payload.bytes();
                Ok(TaskSpec { split: split(&argument)?, scan_bytes })
            }
            Argument::None => Ok(TaskSpec::default()),
        })
        .collect()
}

fn file_task(file: FileMark) -> Result<TaskSpec, Failure> {
    let scan_bytes = file.bytes;
    Ok(TaskSpec { split: split(&Argument::File(file))?, scan_bytes })
}

fn split(argument: &Argument) -> Result<Bytes, Failure> {
    Ok(frame::encode(argument).map_err(Failure::internal)?.into())
}

fn bounded(tasks: usize) -> Result<(), Failure> {
    if tasks == 0 {
        return Err(Failure::Refused { message: "there is nothing to call the function with".to_owned() });
    }
    if tasks > MAX_TASKS {
        let message = format!(
            "{tasks} parts are more than the {MAX_TASKS} of one job: put more into each, or use map, which sends \
             many at once"
        );
        return Err(Failure::Refused { message });
    }
    Ok(())
}

/// Refuses frames that are larger than a node should take in at once.
fn sized(frames: &[Frame]) -> Result<(), Failure> {
    let large = frames.iter().position(|frame| frame.bytes > MAX_FRAME_BYTES);
    let message = match large {
        Some(partition) => format!(
            "partition {partition} of the input is larger than {} MiB: use more partitions",
            MAX_FRAME_BYTES >> 20
        ),
        None if sum_bytes(frames) > MAX_FRAMES_BYTES => format!(
            "the input is larger than {} GiB: write it to files and scan those",
            MAX_FRAMES_BYTES >> 30
        ),
        None => return Ok(()),
    };
    Err(Failure::Refused { message })
}

/// A function for people.
fn describe(function: &Function) -> String {
    let name = &function.name;
    match &function.host {
        Host::Python(python) => format!("{name} (Python {})", python.version),
        Host::Native(_) => format!("{name} (native)"),
        Host::Program(program) => {
            let file = match &program.file {
                ProgramFile::Blob { name, .. } | ProgramFile::OnPath(name) => name,
            };
            let format = |format: Format| format.name();
            format!("{file} ({} to {})", format(program.stdin), format(program.stdout))
        }
    }
}

#[cfg(test)]
mod tests {
    use floe_protocol::function::{Payload, Python};

    use super::*;

    fn function(name: &str) -> Function {
        Function {
            name: name.to_owned(),
            host: Host::Python(Python { version: "3.12".to_owned(), ..Python::default() }),
            code: Payload::Inline(Bytes::from_static(b"code")),
            limits: Default::default(),
        }
    }

    fn merged(tasks: usize, fan_in: u32) -> Vec<(usize, Vec<Read>)> {
        let mut stages = vec![stage(0, &function("f"), vec![TaskSpec::default(); tasks]).unwrap()];
        add_merge(&mut stages, &Merge { function: function("merge"), fan_in }).unwrap();
        let shape =
            |stage: &Stage| (stage.tasks.len(), stage.inputs.iter().map(|input| input.read).collect());
        stages.iter().map(shape).collect()
    }

    #[test]
    fn a_merge_is_a_tree_that_ends_in_one_task() {
        let by_8 = || vec![Read::Group { size: 8 }];
        assert_eq!(merged(100, 8), [(100, vec![]), (13, by_8()), (2, by_8()), (1, by_8())]);
        assert_eq!(merged(1, 8), [(1, vec![]), (1, by_8())], "once at least");
        let mut stages = vec![stage(0, &function("f"), vec![TaskSpec::default(); 3]).unwrap()];
        for fan_in in [0, 1, MAX_FAN_IN + 1] {
            assert!(add_merge(&mut stages, &Merge { function: function("merge"), fan_in }).is_err());
        }
    }

    #[test]
    fn arguments_are_a_task_each_and_bounded() {
        let argument = || Argument::Payload(Payload::Inline(Bytes::from_static(b"12345")));
        let tasks = argument_tasks(vec![argument(), Argument::None]).unwrap();
        assert_eq!(frame::decode::<Argument>(&tasks[0].split).unwrap(), argument());
        assert_eq!((tasks[0].scan_bytes, tasks[1].split.len()), (5, 0));
        assert!(argument_tasks(vec![]).is_err());
        assert!(argument_tasks(vec![Argument::None; MAX_TASKS + 1]).is_err());
    }
}
