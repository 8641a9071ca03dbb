//! Runs tasks off the async threads, as many at once as the node has slots, each within its reservation of
//! memory.
//!
//! ```text
//!   assign ──> wait for a slot ──> reserve memory ──> fetch inputs ──> run ──> store ──> report
//! ```
//!
//! A fragment of a query runs inside this process, on a thread of its own, unless a node may have died of it
//! ([`apart`]); a function runs in a host, a process of its own ([`hosts`]). Calls of sessions take the same slots ([`Worker::slot`]).
//!
//! Whoever calls [`Worker::assign`] has checked the leader's fence; the worker does as it is told.

pub mod apart;
mod environment;
pub mod hosts;
mod object;
mod slots;
pub mod task_logs;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use floe_protocol::function::{Argument, Blob, FunctionWork};
use floe_protocol::graph::BucketMeta;
use floe_protocol::job::TaskRun;
use floe_protocol::message::{Assignment, Report, Segment, StageRead};
use floe_protocol::{AttemptId, Failure, JobId, Load, OutputMeta, TaskId, WallTime, Work, frame};
use floe_query::Stop;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt, stream};
use polars::prelude::DataFrame;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::hosts::{Hosts, Returned};
use self::slots::{Admitted, Slots};
pub use self::slots::{MAX_QUEUED, Slot};
use crate::clock::wall_time;
use crate::store::{Keep, Reservation, Store};

/// How many of a task's input segments are fetched at once: enough to keep several holders and the link busy,
/// and few enough that the slots' fetches together stay far below what a connection multiplexes.
const MAX_FETCHES: usize = 8;

/// How a worker works.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Tasks at once; at least one.
    pub slots: u32,
}

/// Where a worker's tasks get their inputs from.
pub trait Inputs: Send + Sync {
    /// A segment's Arrow IPC files, in order.
    fn fetch<'a>(&'a self, segment: &'a Segment) -> BoxFuture<'a, Result<Vec<Bytes>, Failure>>;
}

/// Where a worker reads what its tasks do, if that does not come with them.
pub trait TaskPlans: Send + Sync {
    /// What a task does, and its part of it.
    fn task(&self, plan: Blob, task: TaskId) -> BoxFuture<'_, Result<(Bytes, Bytes), Failure>>;
}

/// A node's worker. Cheap to clone; clones are one worker.
#[derive(Clone)]
pub struct Worker(Arc<Inner>);

struct Inner {
    store: Store,
    slots: Slots,
    hosts: Hosts,
    inputs: Arc<dyn Inputs>,
    plans: Arc<dyn TaskPlans>,
    reports: mpsc::Sender<Report>,
    run: Run,
}

/// Runs a fragment: [`floe_query::run_until`], but for tests.
type Run =
    Arc<dyn Fn(&Assignment, &Bytes, Vec<Vec<Bytes>>, &Stop) -> Result<Vec<DataFrame>, Failure> + Send + Sync>;

/// Runs a fragment here, or apart if the leader wants it so.
fn run_fragment(
    assignment: &Assignment,
    fragment: &Bytes,
    inputs: Vec<Vec<Bytes>>,
    stop: &Stop,
) -> Result<Vec<DataFrame>, Failure> {
    let Assignment { attempt, split, buckets, .. } = assignment;
    if assignment.apart && apart::is_known() {
        let TaskId { stage, partition, .. } = attempt.task;
        tracing::info!(%attempt, "runs in a process of its own");
        let name = format!("task {partition} of the query's stage {stage}");
        return apart::run(&name, fragment, split, &inputs, *buckets, stop);
    }
    floe_query::run_until(fragment, split, inputs, *buckets, stop)
}

impl Worker {
    /// A worker that keeps its outputs in `store`, reserves memory from the store's budget, has functions run by
    /// `hosts`, and sends a report of every attempt that ends, unless it was aborted. A full `reports` channel makes
    /// it wait.
    pub fn start(
        config: Config,
        store: Store,
        hosts: Hosts,
        (inputs, plans): (Arc<dyn Inputs>, Arc<dyn TaskPlans>),
        reports: mpsc::Sender<Report>,
    ) -> Self {
        Self::with_run(config, store, hosts, (inputs, plans), reports, Arc::new(run_fragment))
    }

    fn with_run(
        config: Config,
        store: Store,
        hosts: Hosts,
        (inputs, plans): (Arc<dyn Inputs>, Arc<dyn TaskPlans>),
        reports: mpsc::Sender<Report>,
        run: Run,
    ) -> Self {
        let slots = Slots::new(config.slots as usize);
        Self(Arc::new(Inner { store, slots, hosts, inputs, plans, reports, run }))
    }

    /// What runs functions here.
    pub fn hosts(&self) -> &Hosts {
        &self.0.hosts
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.0.slots.total()
    }

    /// Waits for a slot, in turn with the tasks but not for long; it is taken until it is dropped.
    pub async fn slot(&self) -> Slot {
        self.0.slots.take_for_calls().await
    }

    /// Queues an attempt. One that is queued or running already is not run twice. Must be called on the async
    /// runtime.
    pub fn assign(&self, assignment: Assignment) {
        let inner = Arc::clone(&self.0);
        match inner.slots.admit(assignment.attempt) {
            Admitted::Known => {}
            Admitted::New(token) => {
                tokio::spawn(async move { inner.attend(assignment, token).await });
            }
            Admitted::Full => {
                let failure = Failure::Unavailable {
                    message: format!("this node has {MAX_QUEUED} tasks queued already"),
                };
                let report = inner.report(&assignment, Err(failure), Started::now());
                // The leader sees a lost report as a task that is not in this node's inventory.
                if inner.reports.try_send(report).is_err() {
                    tracing::warn!(attempt = %assignment.attempt, "too many tasks queued, and too many reports");
                }
            }
        }
    }

    /// Stops these attempts and frees what they hold. They are not reported.
    pub fn abort(&self, attempts: &[AttemptId]) {
        self.0.slots.abort(|attempt| attempts.contains(attempt));
    }

    /// Stops every attempt of these jobs, likewise.
    pub fn abort_jobs(&self, jobs: &[JobId]) {
        self.0.slots.abort(slots::is_of(jobs));
    }

    /// Every attempt that is queued or running, in order.
    pub fn running(&self) -> Vec<AttemptId> {
        self.0.slots.list()
    }

    /// What the node has to do.
    pub fn load(&self) -> Load {
        let room = self.0.store.disk().look();
        Load {
            running: self.0.slots.taken() as u32,
            memory_used_bytes: self.0.store.budget().used_bytes(),
            spilled_bytes: self.0.store.usage().spilled_bytes,
            disk_free_bytes: room.free_bytes,
            disk_short: room.short,
        }
    }
}

impl Inner {
    /// Sees an attempt from its queue to its report.
    async fn attend(self: Arc<Self>, assignment: Assignment, token: CancellationToken) {
        let attempt = assignment.attempt;
        let assignment = Arc::new(assignment);
        let stop = Stop::default();
        let work = Arc::clone(&self).work(Arc::clone(&assignment), token.clone(), Arc::clone(&stop));
        // An abort drops whatever is waited for, and ends what Polars runs already.
        let Some((outcome, started)) = token.run_until_cancelled(work).await else {
            stop.store(true, Ordering::Relaxed);
            return;
        };
        if !self.slots.end(&attempt) {
            return;
        }
        match &outcome {
            Ok(meta) => tracing::debug!(%attempt, rows = meta.rows(), bytes = meta.bytes(), "task done"),
            Err(failure) => tracing::info!(%attempt, %failure, "task failed"),
        }
        let report = self.report(&assignment, outcome, started);
        // Without a receiver the node is stopping.
        drop(self.reports.send(report).await);
    }

    async fn work(
        self: Arc<Self>,
        assignment: Arc<Assignment>,
        token: CancellationToken,
        stop: Stop,
    ) -> (Result<OutputMeta, Failure>, Started) {
        let slot = self.slots.take().await;
        let there = self.store.meta(assignment.attempt.task);
        if let Some(meta) = there.filter(|meta| meta.mark == assignment.mark) {
            return (Ok(meta), Started::now());
        }
        let memory = self.store.budget().reserve(assignment.memory_bytes).await;
        let started = Started::now();
        let assignment = match self.complete(assignment).await {
            Ok(assignment) => assignment,
            Err(failure) => return (Err(failure), started),
        };
        let outcome = match self.fetch(assignment.attempt.task.job, &assignment.inputs).await {
            Ok(inputs) => match &assignment.work {
                Work::Function(work) => {
                    let outcome = self.call(&assignment, work, inputs, token).await;
                    drop((memory, slot));
                    outcome
                }
                _ => self.run(assignment, inputs, (token, stop), (memory, slot)).await,
            },
            Err(failure) => Err(failure),
        };
        (outcome, started)
    }

    /// The same assignment with what it does, which may be in the job's plan.
    async fn complete(&self, assignment: Arc<Assignment>) -> Result<Arc<Assignment>, Failure> {
        let Some(plan) = assignment.plan else { return Ok(assignment) };
        let (work, split) = self.plans.task(plan, assignment.attempt.task).await?;
        let work = match assignment.work {
            Work::Function(_) => Work::Function(work),
            _ => Work::Fragment(work),
        };
        Ok(Arc::new(Assignment { plan: None, work, split, ..Assignment::clone(&assignment) }))
    }

    /// Every input's files, in the order of its segments.
    async fn fetch(&self, job: JobId, inputs: &[StageRead]) -> Result<Vec<Vec<Bytes>>, Failure> {
        let mut segments = Vec::new();
        for (input, read) in inputs.iter().enumerate() {
            segments.extend(read.segments(job).map(|segment| (input, segment)));
        }
        let fetches = segments.into_iter().map(|(input, segment)| self.fetch_one(input, segment));
        let mut fetches = stream::iter(fetches).buffered(MAX_FETCHES);
        let mut fetched = vec![Vec::new(); inputs.len()];
        while let Some((input, files)) = fetches.try_next().await? {
            fetched[input].extend(files);
        }
        Ok(fetched)
    }

    async fn fetch_one(&self, input: usize, segment: Segment) -> Result<(usize, Vec<Bytes>), Failure> {
        Ok((input, self.inputs.fetch(&segment).await?))
    }

    /// Runs the fragment and stores its output on a thread of its own. Slot and memory stay taken until that
    /// thread returns, even when nobody waits for it any more.
    async fn run(
        self: &Arc<Self>,
        assignment: Arc<Assignment>,
        inputs: Vec<Vec<Bytes>>,
        (token, stop): (CancellationToken, Stop),
        held: (Reservation, Slot),
    ) -> Result<OutputMeta, Failure> {
        let inner = Arc::clone(self);
        let thread = tokio::task::spawn_blocking(move || {
            let run = || inner.run_and_store(&assignment, inputs, &token, &stop);
            let outcome = catch_unwind(AssertUnwindSafe(run));
            drop(held);
            outcome.unwrap_or_else(|panic| Err(Failure::Internal { message: panic_message(&*panic) }))
        });
        thread.await.map_err(Failure::internal)?
    }

    fn run_and_store(
        &self,
        assignment: &Assignment,
        inputs: Vec<Vec<Bytes>>,
        token: &CancellationToken,
        stop: &Stop,
    ) -> Result<OutputMeta, Failure> {
        if token.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        let Work::Fragment(fragment) = &assignment.work else {
            return Err(Failure::internal("a task without work"));
        };
        let buckets = (self.run)(assignment, fragment, inputs, stop)?;
        self.keep(assignment, token, |store| {
            store.put(assignment.attempt.task, Some(assignment.mark), buckets, Keep::InMemory)
        })
    }

    /// Has a function called in a host and stores what it returned. Dropping this ends the host.
    async fn call(
        self: &Arc<Self>,
        assignment: &Arc<Assignment>,
        work: &Bytes,
        inputs: Vec<Vec<Bytes>>,
        token: CancellationToken,
    ) -> Result<OutputMeta, Failure> {
        let unreadable = |error| Failure::internal(format!("a function's task cannot be read: {error}"));
        let FunctionWork { mut function } = frame::decode(work).map_err(unreadable)?;
        let argument = if assignment.split.is_empty() {
            Argument::None
        } else {
            frame::decode(&assignment.split).map_err(unreadable)?
        };
        if let Argument::File(file) = &argument {
            // Whatever goes wrong, its user wants to know with which file.
            function.name = format!("{} on {}", function.name, file.path);
        }
        let inputs = inputs.into_iter().flatten().collect();
        let returned = self.hosts.run_task(assignment.attempt, &function, argument, inputs).await?;
        let (inner, assignment) = (Arc::clone(self), Arc::clone(assignment));
        let kept = tokio::task::spawn_blocking(move || {
            let (file, rows) = match returned {
                Returned::Frame { file, rows } => (file, rows),
                Returned::Object(bytes) => (object::wrap(&bytes)?, 1),
            };
            let buckets = vec![BucketMeta { rows, bytes: file.len() as u64 }];
            let meta = OutputMeta { buckets, mark: assignment.mark };
            inner.keep(&assignment, &token, |store| {
                store.put_segments(assignment.attempt.task, vec![file], meta.clone(), Keep::InMemory)?;
                Ok(meta)
            })
        });
        kept.await.map_err(Failure::internal)?
    }

    /// Stores an attempt's output, unless it is no longer wanted.
    fn keep(
        &self,
        assignment: &Assignment,
        token: &CancellationToken,
        put: impl FnOnce(&Store) -> Result<OutputMeta, Failure>,
    ) -> Result<OutputMeta, Failure> {
        if token.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        let task = assignment.attempt.task;
        let made_before = self.store.meta(task).is_some_and(|meta| meta.mark == assignment.mark);
        let meta = put(&self.store)?;
        // Its job may have been freed in the meantime, and nobody would free this partition again. One that
        // another attempt made is that attempt's.
        if token.is_cancelled() && !made_before {
            self.store.discard(task);
        }
        if token.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        Ok(meta)
    }

    fn report(
        &self,
        assignment: &Assignment,
        outcome: Result<OutputMeta, Failure>,
        started: Started,
    ) -> Report {
        let task = assignment.attempt.task;
        let run = TaskRun {
            stage: task.stage,
            partition: task.partition,
            node: self.store.node(),
            started_at: started.at,
            elapsed_ms: u64::try_from(started.since.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        Report { fence: assignment.fence, attempt: assignment.attempt, outcome, run }
    }
}

/// When an attempt started.
#[derive(Clone, Copy)]
struct Started {
    since: Instant,
    at: WallTime,
}

impl Started {
    fn now() -> Self {
        Self { since: Instant::now(), at: wall_time() }
    }
}

/// What a panic said.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let said =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("a task panicked: {}", said.unwrap_or("it did not say why"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;
    use std::sync::{Condvar, Mutex};

    use floe_protocol::{Era, Fence, MeshId, NodeId, StageId};
    use polars::prelude::df;
    use tempfile::TempDir;
    use tokio::sync::watch;

    use super::hosts::HostsConfig;
    use super::*;
    use crate::disk::Disk;
    use crate::store::{Budget, Usage};

    const FENCE: Fence = Fence { era: Era { mesh: MeshId(1), epoch: 1, founder: NODE }, term: 2 };
    const NODE: NodeId = NodeId(5);

    /// Tasks that wait at a gate until they are let through, and say when they are there.
    struct Gate {
        arrived: watch::Sender<usize>,
        open: Mutex<usize>,
        opened: Condvar,
    }

    impl Gate {
        fn pass(&self) {
            self.arrived.send_modify(|n| *n += 1);
            let mut open = self.opened.wait_while(self.open.lock().unwrap(), |open| *open == 0).unwrap();
            *open -= 1;
        }

        fn let_through(&self, tasks: usize) {
            *self.open.lock().unwrap() += tasks;
            self.opened.notify_all();
        }

        async fn arrivals(&self, tasks: usize) {
            self.arrived.subscribe().wait_for(|n| *n == tasks).await.unwrap();
        }
    }

    /// A worker whose tasks wait at a gate and put out one frame.
    struct Fixture {
        worker: Worker,
        store: Store,
        gate: Arc<Gate>,
        reports: mpsc::Receiver<Report>,
        _dir: TempDir,
    }

    impl Fixture {
        fn new(slots: u32, memory_bytes: u64) -> Self {
            let gate = Arc::new(Gate {
                arrived: watch::Sender::new(0),
                open: Mutex::new(0),
                opened: Condvar::new(),
            });
            let at_gate = Arc::clone(&gate);
            Self::with_run(slots, memory_bytes, gate, move |_, _, _, _| {
                at_gate.pass();
                Ok(vec![df!("a" => [1, 2, 3]).unwrap()])
            })
        }

        fn with_run(
            slots: u32,
            memory_bytes: u64,
            gate: Arc<Gate>,
            run: impl Fn(&Assignment, &Bytes, Vec<Vec<Bytes>>, &Stop) -> Result<Vec<DataFrame>, Failure>
            + Send
            + Sync
            + 'static,
        ) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let disk = Disk::of(dir.path()).unwrap();
            let store = Store::open(dir.path(), NODE, Budget::new(memory_bytes), disk.clone()).unwrap();
            let (sender, reports) = mpsc::channel(64);
            let config = Config { slots };
            let hosts_config = HostsConfig {
                disk,
                slots,
                memory_bytes,
                scratch: dir.path().join("hosts"),
                logs: dir.path().join("logs"),
                environments: dir.path().join("environments"),
                python: None,
            };
            let hosts = Hosts::new(hosts_config, Arc::new(NoBlobs));
            let worker = Worker::with_run(
                config,
                store.clone(),
                hosts,
                (Arc::new(Echo), Arc::new(Named)),
                sender,
                Arc::new(run),
            );
            Self { worker, store, gate, reports, _dir: dir }
        }

        /// Waits for what happens on other threads without anybody being told.
        async fn until(&self, condition: impl Fn(&Self) -> bool) {
            while !condition(self) {
                tokio::task::yield_now().await;
            }
        }
    }

    /// No function is run here.
    struct NoBlobs;

    impl hosts::Blobs for NoBlobs {
        fn get(&self, blob: Blob) -> BoxFuture<'_, Result<PathBuf, Failure>> {
            Box::pin(async move { Err(Failure::internal(blob.id)) })
        }

        fn put(&self, _: Bytes) -> BoxFuture<'_, Result<Blob, Failure>> {
            Box::pin(async { Err(Failure::internal("no blobs here")) })
        }
    }

    /// Gives a task of any plan its name as its work and its split.
    struct Named;

    impl TaskPlans for Named {
        fn task(&self, plan: Blob, task: TaskId) -> BoxFuture<'_, Result<(Bytes, Bytes), Failure>> {
            Box::pin(async move { Ok((format!("{}", plan.bytes).into(), format!("{task}").into())) })
        }
    }

    /// Gives a segment's partition and bucket back as its only file.
    struct Echo;

    impl Inputs for Echo {
        fn fetch<'a>(&'a self, segment: &'a Segment) -> BoxFuture<'a, Result<Vec<Bytes>, Failure>> {
            Box::pin(async move {
                // Later segments are there sooner.
                for _ in segment.partition.partition..20 {
                    tokio::task::yield_now().await;
                }
                if segment.nodes.is_empty() {
                    return Err(Failure::InputLost { partition: segment.partition, node: NodeId(9) });
                }
                Ok(vec![Bytes::from(format!("{}:{:?}", segment.partition.partition, segment.bucket))])
            })
        }
    }

    fn task(partition: u32) -> TaskId {
        TaskId { job: JobId(1), stage: StageId(0), partition }
    }

    fn assignment(partition: u32, memory_bytes: u64) -> Assignment {
        Assignment {
            fence: FENCE,
            attempt: AttemptId { task: task(partition), attempt: 0 },
            plan: None,
            work: Work::Fragment(Bytes::new()),
            split: Bytes::new(),
            mark: 7,
            buckets: 1,
            inputs: Vec::new(),
            memory_bytes,
            apart: false,
        }
    }

    #[tokio::test]
    async fn what_a_task_does_is_read_in_the_plan_where_it_does_not_come_along() {
        let gate =
            Arc::new(Gate { arrived: watch::Sender::new(0), open: Mutex::new(0), opened: Condvar::new() });
        let (said, mut ran) = mpsc::channel(1);
        let mut fixture = Fixture::with_run(1, 1 << 20, gate, move |assignment, fragment, _, _| {
            said.try_send((fragment.clone(), assignment.split.clone())).unwrap();
            Ok(vec![df!("a" => [1]).unwrap()])
        });
        let plan = Some(Blob { id: floe_protocol::BlobId(1), bytes: 77 });
        fixture.worker.assign(Assignment { plan, ..assignment(3, 0) });
        let (fragment, split) = ran.recv().await.unwrap();
        assert_eq!((fragment, split), (Bytes::from("77"), Bytes::from(task(3).to_string())));
        assert!(fixture.reports.recv().await.unwrap().outcome.is_ok());
    }

    /// Bucket 3 of these partitions, which these nodes hold.
    fn read(partitions: impl IntoIterator<Item = (u32, &'static [NodeId])>) -> StageRead {
        StageRead::new(StageId(0), Some(3), partitions.into_iter())
    }

    #[tokio::test]
    async fn as_many_run_as_there_are_slots_and_the_same_attempt_runs_once() {
        let mut it = Fixture::new(2, 1 << 20);
        for partition in [0, 1, 2, 2, 0] {
            it.worker.assign(assignment(partition, 10));
        }
        it.gate.arrivals(2).await;
        assert_eq!(it.worker.running().len(), 3);
        assert_eq!(it.worker.load().running, 2);
        it.gate.let_through(1);
        let report = it.reports.recv().await.unwrap();
        assert_eq!(report.outcome.unwrap().rows(), 3);
        assert_eq!((report.fence, report.run.node), (FENCE, NODE));
        // Only now is the third one's turn.
        it.gate.arrivals(3).await;
        it.gate.let_through(2);
        it.reports.recv().await.unwrap().outcome.unwrap();
        it.reports.recv().await.unwrap().outcome.unwrap();
        assert_eq!(it.store.held().len(), 3);
        assert_eq!((it.worker.running(), it.worker.load().running), (Vec::new(), 0));

        // What is here already is not computed again: nobody arrives at the gate.
        it.worker.assign(assignment(1, 10));
        assert_eq!(it.reports.recv().await.unwrap().outcome.unwrap().rows(), 3);
        it.gate.arrivals(3).await;
    }

    #[tokio::test]
    async fn a_task_waits_for_memory_that_another_has_reserved() {
        let mut it = Fixture::new(2, 1 << 20);
        it.worker.assign(assignment(0, 700 << 10));
        it.gate.arrivals(1).await;
        it.worker.assign(assignment(1, 700 << 10));
        it.until(|it| it.worker.load().running == 2).await;
        it.gate.arrivals(1).await;
        it.gate.let_through(1);
        assert_eq!(it.reports.recv().await.unwrap().attempt.task, task(0));
        it.gate.arrivals(2).await;
        it.gate.let_through(1);
        assert_eq!(it.reports.recv().await.unwrap().attempt.task, task(1));
    }

    #[tokio::test]
    async fn an_aborted_attempt_leaves_nothing_and_reports_nothing() {
        let mut it = Fixture::new(1, 1 << 20);
        it.worker.assign(assignment(0, 700 << 10));
        it.gate.arrivals(1).await;
        it.worker.assign(assignment(1, 10));
        it.worker.assign(assignment(2, 10));
        // One runs, one is queued.
        it.worker.abort(&[assignment(0, 0).attempt, assignment(1, 0).attempt]);
        assert_eq!(it.worker.running(), [assignment(2, 0).attempt]);
        assert_eq!(it.worker.load().running, 1, "the slot is taken until the thread returns");
        it.gate.let_through(2);
        let report = it.reports.recv().await.unwrap();
        assert_eq!(report.attempt.task, task(2));
        assert_eq!(it.store.held().iter().map(|(task, _)| *task).collect::<Vec<_>>(), [task(2)]);

        it.worker.assign(assignment(3, 10));
        it.gate.arrivals(3).await;
        it.worker.abort_jobs(&[JobId(1)]);
        it.store.free(&[JobId(1)]);
        it.gate.let_through(1);
        it.until(|it| it.worker.load().running == 0).await;
        assert_eq!((it.store.held(), it.store.budget().used_bytes()), (Vec::new(), 0));
        assert_eq!(it.store.usage(), Usage::default());
        assert!(it.reports.try_recv().is_err());
    }

    #[tokio::test]
    async fn what_runs_already_is_told_to_stop() {
        let (arrived, mut arrivals) = mpsc::channel(1);
        let gate = Fixture::new(1, 10).gate;
        let it = Fixture::with_run(1, 1 << 20, gate, move |_, _, _, stop| {
            arrived.blocking_send(()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Err(Failure::Cancelled)
        });
        it.worker.assign(assignment(0, 10));
        arrivals.recv().await.unwrap();
        it.worker.abort(&[assignment(0, 0).attempt]);
        it.until(|it| it.worker.load().running == 0).await;
    }

    #[tokio::test]
    async fn inputs_come_in_order_and_a_lost_one_is_reported() {
        let gate = Fixture::new(1, 10).gate;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sees = Arc::clone(&seen);
        let mut it = Fixture::with_run(1, 1 << 20, gate, move |_, _, inputs, _| {
            *sees.lock().unwrap() = inputs;
            Ok(vec![DataFrame::empty()])
        });
        const HERE: &[NodeId] = &[NODE];
        let mut wanted = assignment(0, 10);
        wanted.inputs = vec![read((0..20).map(|partition| (partition, HERE))), read([]), read([(7, HERE)])];
        it.worker.assign(wanted);
        it.reports.recv().await.unwrap().outcome.unwrap();
        let seen = seen.lock().unwrap().clone();
        let expected: Vec<_> = (0..20).map(|partition| Bytes::from(format!("{partition}:Some(3)"))).collect();
        assert_eq!(seen, [expected, Vec::new(), vec![Bytes::from("7:Some(3)")]]);

        let mut wanted = assignment(1, 10);
        wanted.inputs = vec![read([(0, HERE), (4, &[])])];
        it.worker.assign(wanted);
        let outcome = it.reports.recv().await.unwrap().outcome;
        assert_eq!(outcome, Err(Failure::InputLost { partition: task(4), node: NodeId(9) }));
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_and_the_slot_is_free_again() {
        let gate = Fixture::new(1, 10).gate;
        let mut it = Fixture::with_run(1, 1 << 20, gate, |assignment, _, _, _| {
            assert!(assignment.attempt.task.partition > 0, "partition zero is unlucky");
            Ok(vec![DataFrame::empty()])
        });
        it.worker.assign(assignment(0, 10));
        let failure = it.reports.recv().await.unwrap().outcome.unwrap_err();
        assert!(matches!(failure, Failure::Internal { .. }), "{failure:?}");
        assert!(failure.to_string().contains("partition zero is unlucky"), "{failure}");
        it.worker.assign(assignment(1, 10));
        it.reports.recv().await.unwrap().outcome.unwrap();
    }
}
