//! From a driver's specification to an accepted job: find the files, plan, store the driver's frames, agree.

mod function;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use floe_consensus::Command;
use floe_consensus::state_machine::MAX_LABEL_BYTES;
use floe_protocol::function::Blob;
use floe_protocol::graph::MAX_GRAPH_BYTES;
use floe_protocol::message::{FileMark, FilePath, Inspected, Status};
use floe_protocol::{
    Failure, JobId, JobKind, JobSpec, JobStatus, NodeId, NodeInfo, Placed, Query, Request, Response,
    StageGraph, TaskId, Work, frame,
};
use floe_query::{Planned, Shape};
use floe_transport::stream::Body;
use futures::future::{join_all, try_join};
use futures::{AsyncRead, AsyncWrite, FutureExt, StreamExt, stream};
use libp2p::Stream;
use tokio::time::timeout;

use self::function::Files;
use crate::clock::wall_time;
use crate::config;
use crate::in_use::{InUse, Use};
use crate::mailbox::{Ask, Mailbox};
use crate::plan;
use crate::plans::Plans;
use crate::store::{Keep, Store};
use crate::stream::{Streams, chunks_of};
use crate::worker::apart;

/// The part of a node's memory, over all its slots, that one task's input should take: decoded columns,
/// hash tables and output are several times their input.
const TASK_MEMORY_PART: u64 = 8;

/// Bounds of one task's input: less is not worth a task, more is not worth waiting for.
const TASK_BYTES: std::ops::RangeInclusive<u64> = (1 << 20)..=(128 << 20);

/// A specification up to this size is read sooner than another thread wakes up.
const SHORT_SPEC_BYTES: usize = 16 << 10;

/// How many nodes hold a driver's frame, so that losing one loses nothing.
const FRAME_COPIES: usize = 2;

/// When a driver is to try again whose frames have no room.
const FULL_RETRY_MS: u64 = 1_000;

/// Plans and submits on behalf of drivers.
#[derive(Clone, Debug)]
pub struct Submitter {
    mailbox: Mailbox,
    store: Store,
    streams: Arc<Streams>,
    plans: Plans,
    /// Jobs that are on their way: their frames are stored before anybody knows them.
    arriving: InUse,
}

/// How a query is planned.
#[derive(Clone, Copy, Debug)]
struct Planning {
    /// Whether the frames that come with it are stored.
    keep_frames: bool,
    /// Whether it is planned in a process of its own, since a node may have died of it.
    apart: bool,
}

/// What each node found under each path of a query.
struct Looked(BTreeMap<NodeId, Result<Vec<Inspected>, String>>);

impl Submitter {
    /// A submitter that keeps frames in `store`.
    pub fn new(mailbox: Mailbox, store: Store, streams: Arc<Streams>, plans: Plans) -> Self {
        Self { mailbox, store, streams, plans, arriving: InUse::default() }
    }

    /// A driver is about to send a job. What is stored of it is kept for as long as this is.
    pub fn begin(&self, id: JobId) -> Use {
        self.arriving.begin(id)
    }

    /// Jobs that are on their way, or were a moment ago.
    pub fn submitting(&self) -> Vec<JobId> {
        self.arriving.recent()
    }

    /// Whether a driver is just sending a job.
    pub fn is_arriving(&self, id: JobId) -> bool {
        self.arriving.is_open(id)
    }

    /// Whether a job that a driver is about to send would be taken, as far as is known without it.
    pub async fn admit(&self, id: JobId) -> Result<(), Failure> {
        match self.mailbox.ask(|reply| Ask::Progress(id, reply)).await? {
            // Sent again, it changes nothing.
            Ok(job) if !is_lost(&job) => Ok(()),
            Ok(_) | Err(Failure::NoSuchJob { .. }) => self.mailbox.ask(Ask::Room).await?,
            Err(freed) => Err(freed),
        }
    }

    /// Accepts a job: when it returns, a majority holds it. Safe to repeat with the same id; `again` says that a node
    /// that was asked before gave no answer. The files of the frames that it names are the next body of `stream`.
    pub async fn submit<S>(
        &self,
        id: JobId,
        owner: u64,
        spec: Bytes,
        again: bool,
        stream: &mut S,
    ) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let decoded = decode_spec(spec.clone()).await?;
        let frames_bytes = function::frames_bytes(&decoded);
        let mut files = Body::new(stream);
        let planning = Planning { keep_frames: true, apart: again };
        let outcome = self.accept((id, owner), decoded, spec, planning, &mut files).await;
        match (&outcome, frames_bytes) {
            (Ok(()), Some(bytes)) => files.pass_over(bytes).await,
            (Err(failure), Some(_)) => files.refuse(failure).await,
            (_, None) => {}
        }
        outcome
    }

    async fn accept<S>(
        &self,
        (id, owner): (JobId, u64),
        decoded: JobSpec,
        spec: Bytes,
        planning: Planning,
        files: &mut Body<S>,
    ) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match self.mailbox.ask(|reply| Ask::Progress(id, reply)).await? {
            Ok(job) if !is_lost(&job) => return Ok(()),
            Ok(_) | Err(Failure::NoSuchJob { .. }) => {}
            Err(freed) => return Err(freed),
        }
        // Before anything of it is stored. A plan carries its frames within.
        function::check_frames(&decoded)?;
        let bytes = function::frames_bytes(&decoded).unwrap_or(spec.len() as u64);
        let promise = Arc::new(self.store.disk().promise(bytes)?);
        let mut label = decoded.label.clone();
        label.truncate(label.floor_char_boundary(MAX_LABEL_BYTES));
        let mut graph = match decoded.kind {
            JobKind::Query(query) => {
                // What it is made of is no longer than that, and asks for itself.
                drop(promise);
                self.plan_query(id, query, spec, planning).await?
            }
            JobKind::Function(job) => {
                let status = self.mailbox.ask(Ask::Status).await?;
                let files = Files { body: files, promise: &promise };
                self.plan_function(id, *job, &status, planning, Some(files)).await?
            }
        };
        if let Some(file) = plan::set_apart(&mut graph)? {
            graph.plan = Some(self.keep_plan(file.into()).await?);
        }
        let submitted_at = wall_time();
        self.mailbox.propose(Command::Submit { job: id, label, graph, owner, submitted_at }).await?;
        self.applied(id).await
    }

    /// Keeps a plan on a majority of the voters, also of those who are it when that is done.
    async fn keep_plan(&self, file: Bytes) -> Result<Blob, Failure> {
        let mut voters = self.mailbox.ask(Ask::Voters).await?;
        loop {
            let plan = self.plans.keep(file.clone(), &voters).await?;
            let now = self.mailbox.ask(Ask::Voters).await?;
            if now == voters {
                return Ok(plan);
            }
            voters = now;
        }
    }

    /// Plans without running; `again` as for [`Submitter::submit`].
    pub async fn explain(&self, spec: Bytes, again: bool) -> Result<StageGraph, Failure> {
        let id = JobId(0);
        let planning = Planning { keep_frames: false, apart: again };
        let decoded = decode_spec(spec.clone()).await?;
        function::check_frames(&decoded)?;
        match decoded.kind {
            JobKind::Query(query) => self.plan_query(id, query, spec, planning).await,
            JobKind::Function(job) => {
                let status = self.mailbox.ask(Ask::Status).await?;
                self.plan_function(id, *job, &status, planning, None::<Files<'_, Stream>>).await
            }
        }
    }

    /// Answers [`Request::Plan`]: plans here or not at all.
    pub async fn plan_here(
        &self,
        id: JobId,
        spec: Bytes,
        apart: bool,
        keep_frames: bool,
    ) -> Result<StageGraph, Failure> {
        drop(self.store.disk().promise(spec.len() as u64)?);
        let JobKind::Query(query) = decode_spec(spec).await?.kind else {
            return Err(Failure::Refused { message: "only queries are planned for other nodes".to_owned() });
        };
        let status = self.mailbox.ask(Ask::Status).await?;
        let paths = paths_of(&query, apart).await?;
        let own = Looked(BTreeMap::from([(status.node, Ok(look_here(&paths).await?))]));
        let others = self.look_elsewhere(&status, &paths);
        let (planned, others) = try_join(plan(query, &status, apart), others.map(Ok)).await?;
        self.cut(id, planned, &status, &own.and(others), Planning { keep_frames, apart }).await
    }

    /// Waits until this node's own state has the job, so that a driver may ask for it at once.
    async fn applied(&self, id: JobId) -> Result<(), Failure> {
        let mut changes = self.mailbox.job_changes(id);
        let known = async {
            loop {
                changes.mark_unchanged();
                let known = self.mailbox.ask(|reply| Ask::Progress(id, reply)).await?;
                let behind = match &known {
                    Err(failure) => matches!(failure, Failure::NoSuchJob { .. }),
                    // It may have failed so before.
                    Ok(job) => is_lost(job),
                };
                if !behind {
                    return Ok(());
                }
                changes.changed().await;
            }
        };
        // Past the wait the job is accepted all the same; this node is merely behind.
        timeout(config::CALL_TIMEOUT, known).await.unwrap_or(Ok(()))
    }

    /// Plans a query where its files are seen. `encoded` is a specification of it, for another node to read.
    async fn plan_query(
        &self,
        id: JobId,
        query: Query,
        encoded: Bytes,
        planning: Planning,
    ) -> Result<StageGraph, Failure> {
        let status = self.mailbox.ask(Ask::Status).await?;
        let paths = paths_of(&query, planning.apart).await?;
        let own = Looked(BTreeMap::from([(status.node, Ok(look_here(&paths).await?))]));
        let others = self.look_elsewhere(&status, &paths);
        if own.sees_all(status.node) {
            // Who else sees the files is only needed of the plan's scans.
            let planned = plan(query, &status, planning.apart);
            let (planned, others) = try_join(planned, others.map(Ok)).await?;
            return self.cut(id, planned, &status, &own.and(others), planning).await;
        }
        let looked = own.and(others.await);
        match looked.0.keys().copied().find(|node| looked.sees_all(*node)) {
            Some(node) => self.plan_at(node, id, encoded, planning).await,
            None => Err(looked.unseen(&paths, &status)),
        }
    }

    /// What every live node sees of some files.
    async fn look(&self, status: &Status, paths: &[FilePath]) -> Result<Looked, Failure> {
        let (own, others) = tokio::join!(look_here(paths), self.look_elsewhere(status, paths));
        Ok(Looked(BTreeMap::from([(status.node, Ok(own?))])).and(others))
    }

    /// Asks every other live node what it sees of some files.
    async fn look_elsewhere(&self, status: &Status, paths: &[FilePath]) -> Looked {
        if paths.is_empty() {
            return Looked(BTreeMap::new());
        }
        let request = Request::Inspect { paths: paths.to_vec() };
        let others = status.nodes.iter().filter(|info| info.alive && info.member.id != status.node);
        let answers = others.map(|info| async {
            let node = info.member.id;
            let found = match self.mailbox.network().call(node, &request, config::CALL_TIMEOUT).await {
                Ok(Response::Inspected(found)) if found.len() == paths.len() => Ok(found),
                Ok(other) => Err(format!("answered {other:?}")),
                Err(error) => Err(error.to_string()),
            };
            (node, found)
        });
        Looked(join_all(answers).await.into_iter().collect())
    }

    /// Lets another node plan, since it sees the files.
    async fn plan_at(
        &self,
        node: NodeId,
        id: JobId,
        spec: Bytes,
        Planning { keep_frames: keep, apart }: Planning,
    ) -> Result<StageGraph, Failure> {
        let lost = |error: &dyn std::fmt::Display| Failure::Unavailable {
            message: format!(
                "node {node}, which sees the query's files, did not plan it: {error}; try again"
            ),
        };
        let plan = async {
            let (request, spec) = (Request::Plan { id, apart, keep }, stream::iter(chunks_of(spec).map(Ok)));
            let patience = config::PROPOSE_PATIENCE;
            let sent = self.mailbox.network().upload(node, &request, spec, patience).await;
            let (response, mut stream) = sent.map_err(|error| lost(&error))?;
            match response {
                Response::Planned => {}
                Response::Failed(failure) => return Err(failure),
                other => {
                    return Err(Failure::internal(format!("node {node} answered a plan with {other:?}")));
                }
            }
            let mut body = Body::new(&mut stream);
            let mut graph = BytesMut::new();
            while let Some(chunk) = body.next().await {
                graph.extend_from_slice(&chunk.map_err(|error| lost(&error))?);
                if graph.len() as u64 > MAX_GRAPH_BYTES {
                    return Err(Failure::internal(format!(
                        "node {node} made a plan that is longer than any"
                    )));
                }
            }
            Ok(graph.freeze())
        };
        let graph = timeout(config::PROPOSE_PATIENCE, plan).await.map_err(|error| lost(&error))??;
        blocking(move || frame::decode(&graph)).await?.map_err(|error| lost(&error))
    }

    /// Makes of what was planned on this node a job's stages, and keeps the driver's frames.
    async fn cut(
        &self,
        id: JobId,
        planned: Planned,
        status: &Status,
        looked: &Looked,
        planning: Planning,
    ) -> Result<StageGraph, Failure> {
        let Planned { mut graph, frames, scans } = planned;
        for (stage, files) in &scans {
            let Some(stage) = graph.stages.get_mut(stage.0 as usize) else {
                continue;
            };
            (stage.seen_by, stage.unseen_by) = looked.divide(files);
        }
        if planning.keep_frames {
            for (stage, partition, frame) in frames {
                let task = TaskId { job: id, stage, partition };
                let store = self.store.clone();
                let meta = blocking(move || store.put(task, None, vec![frame], Keep::OnDisk)).await??;
                let nodes = self.copy(task, &meta, status).await?;
                // The planner gives the partitions of a stage in order.
                if let Some(stage) = graph.stages.get_mut(stage.0 as usize)
                    && let Work::Held(held) = &mut stage.work
                {
                    held.push(Placed { nodes, summary: meta.summary() });
                }
            }
        }
        Ok(graph)
    }

    /// Copies a frame's partition to other nodes until it lies on [`FRAME_COPIES`], or all there are. Where all others
    /// are short of disk, it is refused.
    async fn copy(
        &self,
        task: TaskId,
        meta: &floe_protocol::OutputMeta,
        status: &Status,
    ) -> Result<Vec<NodeId>, Failure> {
        let mut nodes = vec![status.node];
        let others = status.nodes.iter().filter(|i| i.alive && i.member.id != status.node);
        let (workers, witnesses): (Vec<_>, Vec<_>) = others.partition(|i| i.member.slots > 0);
        let has_workers = !workers.is_empty();
        let ample = |nodes: Vec<_>| -> Vec<&NodeInfo> {
            nodes.into_iter().filter(|i: &&NodeInfo| !i.load.disk_short).collect()
        };
        let (workers, witnesses) = (ample(workers), ample(witnesses));
        if has_workers && workers.is_empty() && witnesses.is_empty() {
            return Err(full());
        }
        // Copies of different partitions go to different nodes, and to those that run nothing only for want of others.
        let first = (task.partition as usize).checked_rem(workers.len()).unwrap_or(0);
        let in_turn = workers[first..].iter().chain(&workers[..first]).chain(&witnesses);
        let mut busy = false;
        for node in in_turn.map(|i| i.member.id) {
            if nodes.len() == FRAME_COPIES {
                break;
            }
            match self.streams.copy_to(node, task, meta.clone()).await {
                Ok(()) => nodes.push(node),
                // It was short of disk before that was heard.
                Err(Failure::Busy { .. }) => busy = true,
                Err(error) => tracing::warn!(%node, partition = %task, %error, "frame not copied"),
            }
        }
        if nodes.len() == 1 && busy {
            return Err(full());
        }
        if nodes.len() == 1 && has_workers {
            return Err(Failure::Unavailable {
                message: format!(
                    "frame {} of the job could be stored on one node only, and is to be on {FRAME_COPIES}: see the log of \
                     node {}",
                    task.partition, status.node
                ),
            });
        }
        Ok(nodes)
    }
}

/// Whether a job has ended since what came with it was lost, so that it runs if it is sent again.
fn is_lost(job: &JobStatus) -> bool {
    job.phase.is_terminal() && !job.phase.is_final()
}

/// No other node has room for a driver's frame.
fn full() -> Failure {
    Failure::Busy {
        message: "the mesh is full: what comes with a job is kept on two nodes, and the disks of all others are nearly \
                  full: free some of them, or release results that are not needed any more"
            .to_owned(),
        retry_ms: FULL_RETRY_MS,
    }
}

impl Looked {
    fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    fn sees_all(&self, node: NodeId) -> bool {
        matches!(self.0.get(&node), Some(Ok(found))
            if found.iter().all(|path| matches!(path, Inspected::Files(files) if !files.is_empty())))
    }

    /// Nodes that see exactly these files, and nodes that answered and do not.
    fn divide(&self, files: &[FileMark]) -> (Vec<NodeId>, Vec<NodeId>) {
        let (mut seen_by, mut unseen_by) = (Vec::new(), Vec::new());
        for (node, found) in &self.0 {
            let Ok(found) = found else { continue };
            let has: BTreeSet<&FileMark> = found
                .iter()
                .filter_map(|path| match path {
                    Inspected::Files(files) => Some(files),
                    Inspected::Missing(_) => None,
                })
                .flatten()
                .collect();
            if files.iter().all(|file| has.contains(file)) {
                seen_by.push(*node)
            } else {
                unseen_by.push(*node)
            }
        }
        (seen_by, unseen_by)
    }

    /// The sentence for a path that no single node can read.
    fn unseen(&self, paths: &[FilePath], status: &Status) -> Failure {
        let name_of = |node: NodeId| {
            let member = status.nodes.iter().find(|info| info.member.id == node);
            member.map_or_else(|| node.to_string(), |info| info.member.name.clone())
        };
        let lacks = |index: usize| {
            self.0.values().all(|found| !matches!(found, Ok(f) if matches!(f.get(index), Some(Inspected::Files(f)) if !f.is_empty())))
        };
        // The path that nobody has, or, where each has another part, the first that somebody lacks.
        let index = (0..paths.len()).find(|index| lacks(*index)).unwrap_or(0);
        let looked = self.0.iter().map(|(node, found)| {
            let answer = match found {
                Err(error) => error.clone(),
                Ok(found) => match found.get(index) {
                    Some(Inspected::Files(files)) if !files.is_empty() => {
                        "found, but not the query's other files".to_owned()
                    }
                    Some(Inspected::Missing(why)) => why.clone(),
                    _ => "no such file".to_owned(),
                },
            };
            format!("{} ({answer})", name_of(*node))
        });
        Failure::Unseen {
            path: paths.get(index).map(|path| path.path.clone()).unwrap_or_default(),
            looked: format!("looked on {}", looked.collect::<Vec<_>>().join(", ")),
        }
    }
}

/// What the planner should know of the live nodes.
fn shape_of(status: &Status) -> Shape {
    let live = || status.nodes.iter().filter(|info| info.alive).map(|info| &info.member);
    let slots = live().map(|member| member.slots).sum::<u32>().max(1);
    // One that runs nothing needs no memory for it.
    let smallest = live()
        .filter(|member| member.slots > 0)
        .map(|member| member.memory_bytes / u64::from(member.slots.max(1)))
        .min();
    let task_bytes = smallest.unwrap_or(0) / TASK_MEMORY_PART;
    Shape { slots, task_bytes: task_bytes.clamp(*TASK_BYTES.start(), *TASK_BYTES.end()) }
}

/// Plans a query on this node.
async fn plan(query: Query, status: &Status, apart: bool) -> Result<Planned, Failure> {
    let shape = shape_of(status);
    let plan = if apart && apart::is_known() { apart::plan } else { floe_query::plan };
    blocking(move || plan(&query, &shape)).await?
}

/// What this node sees of some files.
async fn look_here(paths: &[FilePath]) -> Result<Vec<Inspected>, Failure> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let paths = paths.to_vec();
    blocking(move || floe_query::inspect(&paths)).await
}

/// Off the async threads: a plan may carry frames.
async fn paths_of(query: &Query, apart: bool) -> Result<Vec<FilePath>, Failure> {
    let query = query.clone();
    let paths = if apart && apart::is_known() { apart::paths } else { floe_query::paths };
    blocking(move || paths(&query)).await?
}

/// Off the async threads if it is long: a specification may carry frames.
async fn decode_spec(bytes: Bytes) -> Result<JobSpec, Failure> {
    let decoded = match bytes.len() <= SHORT_SPEC_BYTES {
        true => frame::decode(&bytes),
        false => blocking(move || frame::decode(&bytes)).await?,
    };
    decoded.map_err(|error| Failure::Refused { message: format!("the job cannot be read: {error}") })
}

/// Runs something that computes or reads files off the async threads.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(Failure::internal)
}
