//! Hosts: the child processes that functions run in, never in the node itself.
//!
//! ```text
//!   run_task, call_host ──> pool ──> host ──> process ──> a Python interpreter, a driver's executable
//!                                               ^─────── program: any executable, once a task
//! ```
//!
//! [`docs/host-protocol.md`](https://github.com/floe-mesh/floe/blob/main/node/docs/host-protocol.md) says how a
//! host is spoken to. Whatever a function does (raise, crash, hang, fill its memory, write rubbish), it ends as one
//! typed failure, and nothing of it is left: each child leads a process group that is killed when its run is given
//! up, when its node stops, and by the guard when its node was killed.

mod family;
mod frames;
pub mod guard;
mod helper;
mod host;
mod lent;
mod limits;
mod mark;
mod pool;
mod process;
mod processes;
mod program;
mod tables;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use floe_protocol::function::{self, Argument, Blob, Limits};
use floe_protocol::session::{Call, CallResult};
use floe_protocol::{AttemptId, Failure, Function};
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use self::family::Family;
use self::guard::Guard;
use self::host::{Host, Key, Number, Run, Surroundings};
use self::limits::Allowed;
use self::pool::Pool;
pub(super) use self::process::how as how_it_ended;
use self::processes::Meter;
use super::environment::Environments;
use super::task_logs::{TaskLog, TaskLogs};
use crate::disk::Disk;
use crate::private;

/// How long giving back calls may take when the node stops.
const GIVE_BACK_PATIENCE: Duration = Duration::from_secs(1);

/// How long children may take to be gone when the node stops: they are killed, and only the system can hold them up.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(10);

/// A host that came to hold more than this part of what one may take is not used again: the next function would
/// start with that much less. All idle ones together hold no more than this part of what all may take.
const KEPT_MEMORY_PART: u64 = 2;

/// By when a host that has sent its last result has looked what was left behind.
const SAID_BY: Duration = Duration::from_millis(200);

/// Where hosts get blobs, and keep what is too large to return in a frame.
pub trait Blobs: Send + Sync {
    /// A file that holds a blob, to be read only. It stays for long enough to be opened or copied.
    fn get(&self, blob: Blob) -> BoxFuture<'_, Result<PathBuf, Failure>>;
    /// Keeps bytes as a blob.
    fn put(&self, bytes: Bytes) -> BoxFuture<'_, Result<Blob, Failure>>;
}

/// What hosts have to work with.
#[derive(Clone, Debug)]
pub struct HostsConfig {
    /// What the directories below lie on.
    pub disk: Disk,
    /// How many run at once; each may use its share of the cores.
    pub slots: u32,
    /// The node's memory budget; each host may take its share.
    pub memory_bytes: u64,
    /// A directory for what they need while they run. It loses what was in it before.
    pub scratch: PathBuf,
    /// A directory for what they print, likewise.
    pub logs: PathBuf,
    /// A directory for environments.
    pub environments: PathBuf,
    /// The interpreter to begin with; found on the path unless given.
    pub python: Option<PathBuf>,
}

/// A node's hosts. Cheap to clone; clones are one.
#[derive(Clone)]
pub struct Hosts(Arc<Inner>);

/// What a task returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Returned {
    /// A frame.
    Frame {
        /// One Arrow IPC file, whose structure was checked.
        file: Bytes,
        /// Its rows.
        rows: u64,
    },
    /// Bytes that the driver understands.
    Object(Bytes),
}

/// A host that runs the calls of a session. Dropped while it runs some, it ends; otherwise it is kept for others.
#[derive(Debug)]
pub struct CallHost {
    hosts: Hosts,
    host: Option<Host>,
    /// The session's functions that it knows.
    known: HashMap<u32, Number>,
}

/// A host ended, or was stopped, before it had run all its calls.
#[derive(Debug)]
pub struct CallsEnded {
    /// Why.
    pub failure: Failure,
    /// The calls without a result; the first of them was running.
    pub unfinished: Vec<Call>,
}

struct Inner {
    config: HostsConfig,
    blobs: Arc<dyn Blobs>,
    logs: TaskLogs,
    environments: Environments,
    family: Family,
    meter: Meter,
    pool: Mutex<Idle>,
    running: AtomicUsize,
    threads: usize,
}

struct Idle {
    pool: Pool,
    /// Whether somebody ends those that wait for too long.
    attended: bool,
}

impl Hosts {
    /// A node's hosts, none of them started.
    pub fn new(config: HostsConfig, blobs: Arc<dyn Blobs>) -> Self {
        Self::with_guard(config, blobs, Guard::new())
    }

    fn with_guard(config: HostsConfig, blobs: Arc<dyn Blobs>, guard: Guard) -> Self {
        // What a former process left is of no use; where it cannot be removed, the first start says why.
        drop(std::fs::remove_dir_all(&config.scratch));
        let slots = config.slots.max(1) as usize;
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let family = Family::new(guard);
        let guardian = Arc::new(family.clone());
        Self(Arc::new(Inner {
            logs: TaskLogs::open(config.logs.clone(), config.disk.clone()),
            environments: Environments::new(config.environments.clone(), config.python.clone(), guardian),
            family,
            meter: Meter::default(),
            pool: Mutex::new(Idle {
                pool: Pool::new(slots.max(pool::KINDS_KEPT), config.memory_bytes / KEPT_MEMORY_PART),
                attended: false,
            }),
            running: AtomicUsize::new(0),
            threads: (cores / slots).max(1),
            config,
            blobs,
        }))
    }

    /// Runs one task. `inputs` are all its input partitions as Arrow IPC files, in order. What it prints is in the
    /// attempt's log by the time it returns. Dropping the future kills the process.
    pub async fn run_task(
        &self,
        attempt: AttemptId,
        function: &Function,
        argument: Argument,
        inputs: Vec<Bytes>,
    ) -> Result<Returned, Failure> {
        let _running = self.0.run();
        let log = self.0.logs.begin(attempt);
        if let Argument::File(mark) = &argument {
            let mark = mark.clone();
            let verified = tokio::task::spawn_blocking(move || floe_query::verify(&mark));
            verified.await.map_err(Failure::internal)??;
        }
        if let function::Host::Program(program) = &function.host {
            let scratch = self.0.scratch()?;
            let task = program::Task { attempt, function, program, argument, inputs };
            return program::run(task, scratch, log, self.0.allowed(&function.limits), self.0.around()).await;
        }
        let mut host = self.host(function, log).await?;
        let run = self.0.runs(function);
        let outcome = host.task(run, argument, inputs).await;
        self.give_back(host);
        outcome
    }

    /// A host for a session's calls, warm if there is one. `attempt` names the log of what it prints.
    pub async fn call_host(&self, attempt: AttemptId, function: &Function) -> Result<CallHost, Failure> {
        let _running = self.0.run();
        let host = self.host(function, self.0.logs.begin(attempt)).await?;
        Ok(CallHost { hosts: self.clone(), host: Some(host), known: HashMap::new() })
    }

    /// What functions printed.
    pub fn logs(&self) -> &TaskLogs {
        &self.0.logs
    }

    /// How many tasks and batches of calls run.
    pub fn running(&self) -> usize {
        self.0.running.load(Ordering::Relaxed)
    }

    /// Whether more hosts are in use than can run at once: then none should be kept by who does not need it.
    pub fn are_many(&self) -> bool {
        let idle = self.0.idle().pool.len();
        self.0.family.len().saturating_sub(idle) > self.0.config.slots.max(1) as usize
    }

    /// Whether the node is stopping, for those who have calls to give back then: hosts are ended when they have dropped
    /// this, or soon after.
    pub fn closing(&self) -> watch::Receiver<bool> {
        self.0.family.closing()
    }

    /// Starts no more children, has calls given back that have not ended, kills all children, and waits until they are gone.
    pub async fn shutdown(&self) {
        self.0.family.close();
        let _ = timeout(GIVE_BACK_PATIENCE, self.0.family.handed_back()).await;
        let idle = self.0.idle().pool.clear();
        drop(idle);
        self.0.family.kill();
        if timeout(SHUTDOWN_PATIENCE, self.0.family.gone()).await.is_err() {
            tracing::warn!("functions that were killed are still there");
        }
    }

    /// A host for a function, from the pool or a new one.
    async fn host(&self, function: &Function, log: TaskLog) -> Result<Host, Failure> {
        let key = self.0.key(&function.host, &log).await?;
        loop {
            let (found, unsound) = self.0.idle().pool.take(&key);
            drop(unsound);
            let Some(mut host) = found else { break };
            if host.is_as_new(self.0.around()).await {
                host.belongs_to(log);
                return Ok(host);
            }
        }
        Host::start(key, self.0.scratch()?, &function.name, log, self.0.around()).await
    }

    /// Keeps a host for the next function, if it can be used again.
    fn give_back(&self, mut host: Host) {
        let held_bytes = host.resident(&self.0.meter);
        let too_large = held_bytes > self.0.share_bytes() / KEPT_MEMORY_PART;
        if !host.is_sound() || self.0.family.is_closed() {
            return;
        }
        // The log of what it ran is complete. What it prints while it runs nothing is nobody's.
        host.belongs_to(TaskLog::none());
        // Without a runtime nobody could wait for it.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        // What its last call left is found after its result was sent. What that started is not to wait for the next.
        let asked_later = host.is_unasked();
        let gone = if too_large { vec![host] } else { self.keep(host, held_bytes, &runtime) };
        for host in gone {
            runtime.spawn(host.part());
        }
        if asked_later {
            let inner = Arc::downgrade(&self.0);
            runtime.spawn(async move {
                tokio::time::sleep(SAID_BY).await;
                // Dropped, they end with what they started.
                drop(inner.upgrade().map(|inner| inner.idle().pool.unsound()));
            });
        }
    }

    fn keep(&self, host: Host, held_bytes: u64, runtime: &Handle) -> Vec<Host> {
        let mut idle = self.0.idle();
        let gone = idle.pool.put(host, held_bytes, Instant::now());
        if !idle.attended {
            idle.attended = true;
            // The hosts end when nobody uses this any more.
            let inner = Arc::downgrade(&self.0);
            runtime.spawn(async move {
                let mut next = Instant::now() + pool::IDLE_KEPT;
                loop {
                    tokio::time::sleep_until(next.into()).await;
                    let Some(inner) = inner.upgrade() else {
                        return;
                    };
                    let mut idle = inner.idle();
                    let (expired, then) = idle.pool.expire(Instant::now());
                    idle.attended = then.is_some();
                    drop(idle);
                    for host in expired {
                        tokio::spawn(host.part());
                    }
                    let Some(then) = then else {
                        return;
                    };
                    next = then;
                }
            });
        }
        gone
    }
}

impl fmt::Debug for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hosts").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl Inner {
    /// Counts a run while it lives.
    fn run(self: &Arc<Self>) -> impl Drop + use<> {
        struct Running(Arc<Inner>);
        impl Drop for Running {
            fn drop(&mut self) {
                self.0.running.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(self))
    }

    /// What a host must have been started for to run functions of this kind.
    async fn key(&self, host: &function::Host, log: &TaskLog) -> Result<Key, Failure> {
        match host {
            function::Host::Python(python) => {
                let say = |line: &str| log.note(line);
                let interpreter = self.environments.interpreter(python, &say).await?;
                Ok(Key { host: host.clone(), interpreter: Some(interpreter) })
            }
            function::Host::Native(_) => Ok(Key { host: host.clone(), interpreter: None }),
            function::Host::Program(_) => Err(Failure::Refused {
                message: "a program runs once for a task: it cannot serve calls".to_owned(),
            }),
        }
    }

    fn scratch(&self) -> Result<TempDir, Failure> {
        let made = private::create_dir(&self.config.scratch)
            .and_then(|()| tempfile::Builder::new().prefix("host-").tempdir_in(&self.config.scratch));
        made.map_err(|error| Failure::Exhausted {
            what: "disk".to_owned(),
            message: format!("no directory can be made in {}: {error}", self.config.scratch.display()),
        })
    }

    /// The memory that one host may take unless its function says otherwise.
    fn share_bytes(&self) -> u64 {
        self.config.memory_bytes / u64::from(self.config.slots.max(1))
    }

    fn allowed(&self, limits: &Limits) -> Allowed {
        Allowed::new(limits, self.share_bytes())
    }

    fn runs<'a>(&'a self, function: &'a Function) -> Run<'a> {
        Run { function, allowed: self.allowed(&function.limits), around: self.around() }
    }

    fn around(&self) -> Surroundings<'_> {
        Surroundings {
            family: &self.family,
            meter: &self.meter,
            blobs: &*self.blobs,
            disk: &self.config.disk,
            threads: self.threads,
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        // Every change of the pool is one step.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CallHost {
    /// Whether it can run this function.
    pub fn serves(&self, function: &Function) -> bool {
        self.host.as_ref().is_some_and(|host| host.key.host == function.host)
    }

    /// Runs calls of one function, in order; hands out every result as it comes. `key` stands for the function
    /// within the session, and it is told to the host on first use. Returns the calls that did not run because one
    /// before them left something behind in the process, which is not used again then. Dropping the future kills the
    /// process; after an error it is gone already.
    pub async fn call(
        &mut self,
        key: u32,
        function: &Function,
        mut calls: Vec<Call>,
        results: &mut (dyn FnMut(Vec<CallResult>) + Send),
    ) -> Result<Vec<Call>, CallsEnded> {
        if calls.is_empty() {
            return Ok(calls);
        }
        let inner = Arc::clone(&self.hosts.0);
        let _running = inner.run();
        let Some(host) = &mut self.host else {
            let failure = Failure::Unavailable { message: "this host has ended".to_owned() };
            return Err(CallsEnded { failure, unfinished: calls });
        };
        let run = inner.runs(function);
        let mut done = 0;
        let known = self.known.get(&key).copied().filter(|number| host.still_known(*number));
        let number = match known {
            Some(number) => Ok(number),
            None => host.known(function, run.around).await,
        };
        let outcome = match number {
            Ok(number) => {
                self.known.insert(key, number);
                host.calls(run, number, &calls, &mut done, results).await
            }
            Err(failure) => Err(failure),
        };
        let mut unfinished = calls.split_off(done.min(calls.len()));
        let Err(failure) = outcome else {
            if !host.is_whole() {
                self.host = None;
            }
            return Ok(unfinished);
        };
        // Results that it had not sent are lost with it, so the first call without one need not be the culprit.
        let present = host.present_call();
        if let Some(at) = unfinished.iter().position(|call| Some(call.id) == present) {
            let culprit = unfinished.remove(at);
            unfinished.insert(0, culprit);
        }
        self.host = None;
        Err(CallsEnded { failure, unfinished })
    }
}

impl Drop for CallHost {
    fn drop(&mut self) {
        if let Some(host) = self.host.take() {
            self.hosts.give_back(host);
        }
    }
}
