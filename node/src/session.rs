//! Sessions: a driver's many short calls, spread over hosts on all nodes without a job of its own for each.
//!
//! ```text
//!   gateway   at the node that the driver is connected to: which node gets which call, and again if it is lost
//!   seat      at every node: the calls that it got, run by hosts in the node's slots
//!   waiting   the calls that no seat has yet
//!   pace      how long calls took lately: both send ahead by it
//!   wire      the frames between them
//! ```
//!
//! A session is one standing job in the log, so that it is seen, cancelled and ended like any other. Its calls are
//! not in the log and the leader has no part in them.

mod gateway;
mod pace;
mod seat;
mod waiting;
mod wire;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use floe_consensus::Command;
use floe_consensus::state_machine::StageOutputs;
use floe_protocol::{
    Exchange, Failure, JobId, JobPhase, Placed, Response, Stage, StageGraph, StageId, TaskSpec, Work,
};
use floe_transport::call::write_frame;
use libp2p::Stream;

use crate::clock::wall_time;
use crate::job_status;
use crate::mailbox::Mailbox;
use crate::worker::Worker;

/// How many bytes of calls that wait for a seat one node holds for all its sessions. With more it takes no further ones,
/// and those that are there send no more than they may anyway.
pub const MAX_HELD_BYTES: usize = 1 << 30;

/// What a session without a call counts for: its tasks, channels and buffers here.
const SESSION_BYTES: usize = 256 << 10;

/// How many streams of sessions a node has, attended here or with a seat: each is one for as long as it lives.
const MAX_STANDING: usize = 768;

/// When to try again at a node that is full: sessions last for minutes, and another node may have room.
const FULL_RETRY_MS: u64 = 1_000;

/// This node's part in all sessions. Cheap to clone; clones are one.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    mailbox: Mailbox,
    worker: Worker,
    /// Sessions whose drivers are connected here, and how many connections each has: an old one may linger.
    attended: Mutex<BTreeMap<JobId, usize>>,
    /// The bytes of their calls that wait.
    held_bytes: Arc<AtomicUsize>,
    /// How many streams of sessions there are.
    standing: AtomicUsize,
}

/// A session that is attended here until this is dropped.
struct Attendance {
    sessions: Sessions,
    id: JobId,
    _standing: Standing,
}

/// A stream of a session, until this is dropped.
struct Standing(Arc<Inner>);

impl Drop for Standing {
    fn drop(&mut self) {
        self.0.standing.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("attended", &self.attended()).finish_non_exhaustive()
    }
}

impl Sessions {
    /// Sessions whose calls run on `worker`.
    pub fn new(mailbox: Mailbox, worker: Worker) -> Self {
        let (attended, held_bytes) = (Mutex::default(), Arc::default());
        Self(Arc::new(Inner { mailbox, worker, attended, held_bytes, standing: AtomicUsize::new(0) }))
    }

    /// The sessions whose drivers are connected to this node, in order.
    pub fn attended(&self) -> Vec<JobId> {
        self.lock().keys().copied().collect()
    }

    /// Serves a driver's session until it is closed or the stream ends.
    pub async fn attend(
        &self,
        mut stream: Stream,
        id: JobId,
        owner: u64,
        label: String,
    ) -> Result<(), Failure> {
        let attendance = match self.open(id, owner, label).await {
            Ok(attendance) => attendance,
            Err(failure) => {
                return write_frame(&mut stream, &Response::Failed(failure)).await.map_err(Failure::internal);
            }
        };
        write_frame(&mut stream, &Response::Accepted { id }).await.map_err(Failure::internal)?;
        let held = waiting::Held::new(Arc::clone(&self.0.held_bytes));
        let closed = gateway::serve(&self.0.mailbox, &self.0.worker, id, stream, held).await;
        drop(attendance);
        if closed { self.end(id).await } else { Ok(()) }
    }

    /// Serves the calls of a session that another node attends.
    pub async fn seat(&self, mut stream: Stream, id: JobId) -> Result<(), Failure> {
        let Some(_standing) = self.stand() else {
            return write_frame(&mut stream, &Response::Failed(self.full())).await.map_err(Failure::internal);
        };
        if self.0.worker.slots() == 0 {
            let message = "this node is a witness, which runs nothing (--slots 0)".to_owned();
            let failure = Response::Failed(Failure::Refused { message });
            return write_frame(&mut stream, &failure).await.map_err(Failure::internal);
        }
        // Held until all is written that there is to give back.
        let closing = self.0.worker.hosts().closing();
        if *closing.borrow() {
            let failure = Failure::Unavailable { message: "this node is stopping".to_owned() };
            return write_frame(&mut stream, &Response::Failed(failure)).await.map_err(Failure::internal);
        }
        write_frame(&mut stream, &Response::Done).await.map_err(Failure::internal)?;
        let (calls, results) = seat::start(self.0.worker.clone(), self.0.mailbox.network().node(), id);
        wire::serve(stream, calls, results).await;
        Ok(())
    }

    /// Makes sure that the standing job exists and runs.
    async fn open(&self, id: JobId, owner: u64, label: String) -> Result<Attendance, Failure> {
        let attendance = {
            let standing = self.stand().ok_or_else(|| self.full())?;
            let held_bytes = self.0.held_bytes.load(Ordering::Relaxed);
            if held_bytes + (self.lock().len() + 1) * SESSION_BYTES > MAX_HELD_BYTES {
                return Err(self.full());
            }
            *self.lock().entry(id).or_default() += 1;
            Attendance { sessions: self.clone(), id, _standing: standing }
        };
        let mailbox = &self.0.mailbox;
        // The driver may come from another node, and this one be behind.
        match job_status::known(mailbox, id).await.map(|job| job.phase) {
            Ok(JobPhase::Running) => {}
            Ok(phase) => {
                let message = format!("session {id} has ended ({}): open another", phase.name());
                return Err(Failure::Refused { message });
            }
            Err(Failure::Freed { freed, .. }) => {
                let message = format!("session {id} has ended ({freed}): open another");
                return Err(Failure::Refused { message });
            }
            Err(Failure::NoSuchJob { .. }) => {
                let graph = standing_graph();
                let submitted_at = wall_time();
                mailbox.propose(Command::Submit { job: id, label, graph, owner, submitted_at }).await?;
            }
            Err(failure) => return Err(failure),
        }
        Ok(attendance)
    }

    /// Counts a stream of a session, if there is room for it.
    fn stand(&self) -> Option<Standing> {
        let one_more = |count| (count < MAX_STANDING).then_some(count + 1);
        let counted = self.0.standing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        counted.is_ok().then(|| Standing(Arc::clone(&self.0)))
    }

    fn full(&self) -> Failure {
        let message = format!(
            "this node has as many sessions as it can hold: it attends {}, and has {} streams of sessions of at most \
             {MAX_STANDING}; calls that wait take {} MiB of at most {}",
            self.lock().len(),
            self.0.standing.load(Ordering::Relaxed),
            self.0.held_bytes.load(Ordering::Relaxed) >> 20,
            MAX_HELD_BYTES >> 20,
        );
        Failure::Busy { message, retry_ms: FULL_RETRY_MS }
    }

    async fn end(&self, id: JobId) -> Result<(), Failure> {
        let done = Command::StageDone {
            job: id,
            stage: StageId(0),
            outputs: StageOutputs::whole(vec![Placed::default()]),
            runs: Vec::new(),
            more_ms: 0,
            ended_at: wall_time(),
        };
        self.0.mailbox.propose(done).await
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, usize>> {
        // Every change is one call.
        self.0.attended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        let mut attended = self.sessions.lock();
        if let Some(count) = attended.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                attended.remove(&self.id);
            }
        }
    }
}

/// A job that the scheduler leaves alone until its driver ends it.
fn standing_graph() -> StageGraph {
    StageGraph {
        stages: vec![Stage {
            id: StageId(0),
            work: Work::Calls,
            inputs: Vec::new(),
            exchange: Exchange::Gather,
            tasks: vec![TaskSpec::default()],
            operators: vec!["calls".to_owned()],
            single_because: None,
            seen_by: Vec::new(),
            unseen_by: Vec::new(),
        }],
        ..StageGraph::default()
    }
}
