//! A job's plan as a file: what workers alone read of its stages and tasks. The log has the shape of a job, which is what
//! is scheduled, and the digest of this file, so that a job costs the log a few bytes a task, whatever its tasks do.
//!
//! ```text
//!   S          first part of each stage, and the part after all stages   where each part begins, and the last one ends
//!   ├── u64 ───┼───────────── S + 1 times u64 ──────────────────────────┼──────────── P + 1 times u64 ──────────────┼ parts
//!
//!   the parts:  the work of stage 0, the splits of its tasks, the work of stage 1, ...
//! ```
//!
//! Numbers are little-endian; places are counted from the file's begin.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use floe_protocol::function::{Argument, FunctionWork};
use floe_protocol::{BlobId, Failure, Stage, StageGraph, StageId, Work, frame};

/// What is no longer than this stays in the log: as many such jobs as may be unfinished have room there, and a short query
/// need not wait for a file.
const MAX_LOGGED_BYTES: usize = 4 << 10;

/// The longest part: workers hold it in memory beside what they read.
pub const MAX_PART_BYTES: u64 = 64 << 20;

/// The longest plan: it is in memory as a whole while it is made.
pub const MAX_PLAN_BYTES: u64 = 256 << 20;

/// The longest name of a stage.
const MAX_NAME_BYTES: usize = 200;

/// How long a number is.
const WORD: u64 = 8;

/// Leaves in a graph what the log is to know of it: what only people read goes, and so do long parts, which are given back
/// as the bytes of a file. What objects they need is noted.
pub fn set_apart(graph: &mut StageGraph) -> Result<Option<Vec<u8>>, Failure> {
    graph.objects = graph.stages.iter().flat_map(objects_of).collect();
    for stage in &mut graph.stages {
        let mut name = stage.operators.pop().unwrap_or_default();
        name.truncate(name.floor_char_boundary(MAX_NAME_BYTES));
        stage.operators = vec![name];
        stage.single_because = None;
        stage.exchange.forget_keys();
    }
    let bytes = parts_of(graph).map(|part| part.len()).fold(0, usize::saturating_add);
    if bytes.saturating_add(graph.schema.len()) <= MAX_LOGGED_BYTES {
        return Ok(None);
    }
    // Every partition has it too, also one without rows.
    graph.schema.clear();
    let file = write(graph, bytes)?;
    for stage in &mut graph.stages {
        if let Some(work) = work_of(&mut stage.work) {
            work.clear();
        }
        stage.tasks.iter_mut().for_each(|task| task.split.clear());
    }
    Ok(Some(file))
}

/// The objects that a stage needs, as far as nodes can tell: arguments may name others that only their hosts see, which
/// are known by being used.
fn objects_of(stage: &Stage) -> BTreeSet<BlobId> {
    let Work::Function(work) = &stage.work else { return BTreeSet::new() };
    let Ok(FunctionWork { function }) = frame::decode(work) else { return BTreeSet::new() };
    let splits = stage.tasks.iter().filter(|task| !task.split.is_empty());
    let arguments = splits.filter_map(|task| frame::decode::<Argument>(&task.split).ok());
    let arguments = arguments.filter_map(|argument| match argument {
        Argument::Payload(payload) => payload.blob().map(|blob| blob.id),
        Argument::None | Argument::File(_) => None,
    });
    function.blobs().chain(arguments).collect()
}

fn write(graph: &StageGraph, bytes: usize) -> Result<Vec<u8>, Failure> {
    let too_long = |what: &str, bytes: u64, limit: u64| Failure::Refused {
        message: format!(
            "{what} of the job takes {} MiB, and the limit is {} MiB: give it the data as frames, or in files",
            bytes >> 20,
            limit >> 20
        ),
    };
    let stages = graph.stages.len();
    let parts = graph.stages.iter().map(|stage| 1 + stage.tasks.len()).sum::<usize>();
    let head = WORD as usize * (1 + (stages + 1) + (parts + 1));
    let whole = head.saturating_add(bytes) as u64;
    if whole > MAX_PLAN_BYTES {
        return Err(too_long("the plan", whole, MAX_PLAN_BYTES));
    }
    if let Some(part) = parts_of(graph).find(|part| part.len() as u64 > MAX_PART_BYTES) {
        return Err(too_long("a part of the plan", part.len() as u64, MAX_PART_BYTES));
    }
    let mut file = Vec::with_capacity(whole as usize);
    let mut put = |number: usize| file.extend_from_slice(&(number as u64).to_le_bytes());
    put(stages);
    let mut part = 0;
    for stage in &graph.stages {
        put(part);
        part += 1 + stage.tasks.len();
    }
    put(part);
    let mut at = head;
    put(at);
    for part in parts_of(graph) {
        at += part.len();
        put(at);
    }
    parts_of(graph).for_each(|part| file.extend_from_slice(part));
    Ok(file)
}

fn parts_of(graph: &StageGraph) -> impl Iterator<Item = &Bytes> {
    static NONE: Bytes = Bytes::new();
    graph.stages.iter().flat_map(|stage| {
        let work = match &stage.work {
            Work::Fragment(work) | Work::Function(work) => work,
            Work::Held(_) | Work::Calls => &NONE,
        };
        std::iter::once(work).chain(stage.tasks.iter().map(|task| &task.split))
    })
}

fn work_of(work: &mut Work) -> Option<&mut Bytes> {
    match work {
        Work::Fragment(work) | Work::Function(work) => Some(work),
        Work::Held(_) | Work::Calls => None,
    }
}

/// A plan's file, to be read part by part. Reading it blocks.
#[derive(Debug)]
pub struct PlanFile {
    file: File,
    stages: u64,
}

impl PlanFile {
    /// Opens it.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(|error| unreadable(&error))?;
        let plan = Self { stages: number_at(&file, 0)?, file };
        Ok(plan)
    }

    /// What a stage's tasks do, and one task's part of it.
    pub fn task(&self, stage: StageId, task: u32) -> Result<(Bytes, Bytes), Failure> {
        let (first, end) = self.parts_of(stage)?;
        let split = first.checked_add(1 + u64::from(task)).filter(|part| *part < end);
        let split = split.ok_or_else(|| unreadable(&format!("stage {stage} has no task {task}")))?;
        Ok((self.part(first)?, self.part(split)?))
    }

    /// The first part of a stage, and the one after its last.
    fn parts_of(&self, stage: StageId) -> Result<(u64, u64), Failure> {
        let stage = u64::from(stage.0);
        if stage >= self.stages {
            return Err(unreadable(&format!("it has no stage {stage}")));
        }
        Ok((self.first_of(stage)?, self.first_of(stage + 1)?))
    }

    fn first_of(&self, stage: u64) -> Result<u64, Failure> {
        number_at(&self.file, 1 + stage)
    }

    fn part(&self, part: u64) -> Result<Bytes, Failure> {
        let word = self.stages.checked_add(2).and_then(|head| head.checked_add(part));
        let word = word.filter(|word| *word < u64::MAX).ok_or_else(|| unreadable(&"a place is too large"))?;
        let (begin, end) = (number_at(&self.file, word)?, number_at(&self.file, word + 1)?);
        let length = end.checked_sub(begin).filter(|length| *length <= MAX_PART_BYTES);
        let length = length.ok_or_else(|| unreadable(&format!("its part {part} ends where none can")))?;
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, begin).map_err(|error| unreadable(&error))?;
        Ok(bytes.into())
    }
}

fn number_at(file: &File, word: u64) -> Result<u64, Failure> {
    let place = word.checked_mul(WORD).ok_or_else(|| unreadable(&"a place is too large"))?;
    let mut bytes = [0; WORD as usize];
    file.read_exact_at(&mut bytes, place).map_err(|error: io::Error| unreadable(&error))?;
    Ok(u64::from_le_bytes(bytes))
}

fn unreadable(why: &dyn std::fmt::Display) -> Failure {
    Failure::internal(format!("a job's plan cannot be read: {why}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use floe_protocol::function::{Blob, Function, Host, Limits, Payload, Python};
    use floe_protocol::{Exchange, TaskSpec};
    use proptest::prelude::*;
    use tempfile::NamedTempFile;

    use super::*;

    fn stage(position: usize, work: Work, splits: Vec<Bytes>) -> Stage {
        Stage {
            id: StageId(position as u32),
            work,
            inputs: Vec::new(),
            exchange: Exchange::Hash { keys: vec!["key".to_owned()], buckets: 3 },
            tasks: splits.into_iter().map(|split| TaskSpec { split, scan_bytes: 7 }).collect(),
            operators: vec!["scan".to_owned(), "é".repeat(MAX_NAME_BYTES)],
            single_because: Some("it is".to_owned()),
            seen_by: Vec::new(),
            unseen_by: Vec::new(),
        }
    }

    fn file(bytes: &[u8]) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn bytes(longest: usize) -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..longest).prop_map(Bytes::from)
    }

    fn graph() -> impl Strategy<Value = StageGraph> {
        let work = prop_oneof![
            bytes(9_000).prop_map(Work::Fragment),
            bytes(9_000).prop_map(Work::Function),
            Just(Work::Held(Vec::new())),
        ];
        let stages = prop::collection::vec((work, prop::collection::vec(bytes(40), 1..20)), 1..5);
        (stages, bytes(100)).prop_map(|(stages, schema)| {
            let stages = stages.into_iter().enumerate();
            let stages = stages.map(|(position, (work, splits))| stage(position, work, splits)).collect();
            StageGraph { stages, schema, ..StageGraph::default() }
        })
    }

    proptest! {
        #[test]
        fn what_is_set_apart_is_read_back_and_the_rest_is_short(graph in graph()) {
            let mut left = graph.clone();
            let Some(written) = set_apart(&mut left).unwrap() else {
                for (left, stage) in left.stages.iter().zip(&graph.stages) {
                    prop_assert_eq!((&left.work, &left.tasks), (&stage.work, &stage.tasks));
                }
                let bytes = parts_of(&graph).map(Bytes::len).sum::<usize>() + graph.schema.len();
                prop_assert!(bytes <= MAX_LOGGED_BYTES);
                prop_assert_eq!(&left.schema, &graph.schema);
                return Ok(());
            };
            prop_assert_eq!(parts_of(&left).map(Bytes::len).sum::<usize>(), 0);
            let file = file(&written);
            let plan = PlanFile::open(file.path()).unwrap();
            prop_assert!(left.schema.is_empty());
            for stage in graph.stages {
                for (position, task) in stage.tasks.iter().enumerate() {
                    let (work, split) = plan.task(stage.id, position as u32).unwrap();
                    let whole = match &stage.work {
                        Work::Fragment(work) | Work::Function(work) => work.clone(),
                        _ => Bytes::new(),
                    };
                    prop_assert_eq!((work, &split), (whole, &task.split));
                }
                prop_assert!(plan.task(stage.id, stage.tasks.len() as u32).is_err());
            }
            prop_assert!(plan.task(StageId(7), 0).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200), small in any::<bool>()) {
            if small {
                // Numbers that may well be places.
                bytes.chunks_exact_mut(8).for_each(|word| word[1..].fill(0));
            }
            let file = file(&bytes);
            if let Ok(plan) = PlanFile::open(file.path()) {
                for (stage, task) in [(0, 0), (0, u32::MAX), (3, 2), (u32::MAX, u32::MAX)] {
                    let _ = plan.task(StageId(stage), task);
                }
            }
        }
    }

    #[test]
    fn what_only_people_read_is_not_in_the_log() {
        let mut graph =
            StageGraph { stages: vec![stage(0, Work::Calls, vec![Bytes::new()])], ..StageGraph::default() };
        assert_eq!(set_apart(&mut graph).unwrap(), None);
        let stage = &graph.stages[0];
        assert_eq!(stage.operators, ["é".repeat(MAX_NAME_BYTES / 2)]);
        assert_eq!(
            (&stage.exchange, &stage.single_because),
            (&Exchange::Hash { keys: vec![], buckets: 3 }, &None)
        );
    }

    #[test]
    fn the_log_knows_what_objects_a_job_needs() {
        let blob = |id| Blob { id: BlobId(id), bytes: 1 };
        let function = Function {
            name: "f".to_owned(),
            host: Host::Python(Python { modules: vec![blob(1)], ..Python::default() }),
            code: Payload::Blob(blob(2)),
            limits: Limits::default(),
        };
        let work = frame::encode(&FunctionWork { function }).unwrap();
        let argument = |argument| Bytes::from(frame::encode(&argument).unwrap());
        let splits = vec![
            argument(Argument::Payload(Payload::Blob(blob(3)))),
            argument(Argument::Payload(Payload::Inline(vec![0; 9_000].into()))),
            Bytes::new(),
        ];
        let function = stage(0, Work::Function(work.into()), splits);
        let mut graph = StageGraph { stages: vec![function], ..StageGraph::default() };
        assert!(set_apart(&mut graph).unwrap().is_some());
        assert_eq!(graph.objects, [BlobId(1), BlobId(2), BlobId(3)].into());
    }

    #[test]
    fn a_plan_that_no_worker_could_hold_is_refused() {
        let work = Work::Fragment(Bytes::from(vec![0; MAX_PART_BYTES as usize + 1]));
        let mut graph = StageGraph { stages: vec![stage(0, work, vec![])], ..StageGraph::default() };
        let failure = set_apart(&mut graph).unwrap_err();
        assert!(failure.to_string().contains("the limit is 64 MiB"), "{failure}");
    }
}
