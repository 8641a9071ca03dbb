//! From a function's job to its stages.
//!
//! ```text
//!   frames, or a query's last stage ──partition to partition──> the function ──groups──> merge ──groups──> merge
//!   arguments, files ─────────────── a task each ─────────────────^
//! ```

use bytes::Bytes;
use floe_protocol::function::{
    Argument, Format, Frame, FunctionInput, FunctionWork, Host, MAX_TASKS, Merge, ProgramFile,
};
use floe_protocol::graph::BucketMeta;
use floe_protocol::message::{FileMark, Inspected, Status};
use floe_protocol::{
    Exchange, Failure, Function, FunctionJob, JobId, JobKind, JobSpec, NodeId, OutputMeta, Placed, Query,
    Read, Stage, StageGraph, StageId, StageInput, TaskId, TaskSpec, Work, frame,
};
use futures::{StreamExt, TryStreamExt, stream};
use xxhash_rust::xxh3::xxh3_64;

use super::{Looked, Submitter, blocking};
use crate::store::ipc;

/// How many frames are stored and copied at once: enough to keep the link busy while others are checked.
const COPIED_AT_ONCE: usize = 4;

/// The most partitions that one call of a merging function gets.
const MAX_FAN_IN: u32 = 1024;

impl Submitter {
    /// Plans a function's job; with `keep_frames`, stores the frames that came with it.
    pub(super) async fn plan_function(
        &self,
        id: JobId,
        job: FunctionJob,
        status: &Status,
        keep_frames: bool,
    ) -> Result<StageGraph, Failure> {
        let FunctionJob { function, input, merge } = job;
        let mut stages = match input {
            FunctionInput::Arguments(arguments) => vec![stage(0, &function, argument_tasks(arguments)?)?],
            FunctionInput::Frames(frames) => {
                bounded(frames.len())?;
                let tasks = vec![TaskSpec::default(); frames.len()];
                let held = self.hold(id, frames, status, keep_frames).await?;
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
                let mut stages = self.plan_input(id, query, keep_frames).await?;
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
        Ok(StageGraph { stages, schema: Bytes::new() })
    }

    /// The stages of the query whose result is the function's input.
    async fn plan_input(&self, id: JobId, query: Query, keep_frames: bool) -> Result<Vec<Stage>, Failure> {
        let spec = JobSpec { label: String::new(), kind: JobKind::Query(query) };
        let encoded = Bytes::from(frame::encode(&spec).map_err(Failure::internal)?);
        let JobKind::Query(query) = spec.kind else { return Err(Failure::internal("not a query")) };
        Ok(self.plan_query(id, query, encoded, keep_frames).await?.stages)
    }

    /// Stores frames on more than one node.
    async fn hold(
        &self,
        id: JobId,
        frames: Vec<Frame>,
        status: &Status,
        keep: bool,
    ) -> Result<Stage, Failure> {
        let frames = frames.into_iter().enumerate().map(|(partition, frame)| async move {
            let task = TaskId { job: id, stage: StageId(0), partition: partition as u32 };
            let (file, meta) = blocking(move || describe_frame(partition, frame)).await??;
            let mut nodes = Vec::new();
            if keep {
                let (store, of_copy) = (self.store.clone(), meta.clone());
                blocking(move || store.put_segments(task, vec![file], of_copy)).await??;
                nodes = self.copy(task, &meta, status).await;
            }
            Ok::<_, Failure>(Placed { nodes, meta })
        });
        let held: Vec<Placed> = stream::iter(frames).buffered(COPIED_AT_ONCE).try_collect().await?;
        let tasks = vec![TaskSpec::default(); held.len()];
        Ok(Stage {
            id: StageId(0),
            work: Work::Held(held),
            inputs: Vec::new(),
            exchange: Exchange::Pass,
            tasks,
            operators: vec!["frames of the driver".to_owned()],
            single_because: None,
            seen_by: Vec::new(),
            unseen_by: Vec::new(),
        })
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

/// A frame's file and what is to be known of it.
fn describe_frame(partition: usize, frame: Frame) -> Result<(Bytes, OutputMeta), Failure> {
    let Frame { rows, file } = frame;
    ipc::stream_of(&file).map_err(|error| Failure::Refused {
        message: format!("partition {partition} of the input cannot be read: {error}"),
    })?;
    let buckets = vec![BucketMeta { rows, bytes: file.len() as u64 }];
    let mark = xxh3_64(&file).max(1);
    Ok((file, OutputMeta { buckets, mark }))
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
