//! Sessions: a driver's many short calls, spread over hosts on all nodes without a job of its own for each.
//!
//! ```text
//!   gateway   at the node that the driver is connected to: which node gets which call, and again if it is lost
//!   seat      at every node: the calls that it got, run by hosts in the node's slots
//!   pace      how long calls took lately: both send ahead by it
//!   wire      the frames between them
//! ```
//!
//! A session is one standing job in the log, so that it is seen, cancelled and ended like any other. Its calls are
//! not in the log and the leader has no part in them.

mod gateway;
mod pace;
mod seat;
mod wire;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use floe_consensus::Command;
use floe_protocol::{
    Exchange, Failure, JobId, JobPhase, Placed, Response, Stage, StageGraph, StageId, TaskSpec, Work,
};
use floe_transport::call::write_frame;
use libp2p::Stream;

use crate::mailbox::{Ask, Mailbox};
use crate::submit::unix_ms;
use crate::worker::Worker;

/// How many sessions one node attends at once. Each may have hosts on every node.
pub const MAX_SESSIONS: usize = 64;

/// This node's part in all sessions. Cheap to clone; clones are one.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    mailbox: Mailbox,
    worker: Worker,
    /// Sessions whose drivers are connected here, and how many connections each has: an old one may linger.
    attended: Mutex<BTreeMap<JobId, usize>>,
}

/// A session that is attended here until this is dropped.
struct Attendance {
    sessions: Sessions,
    id: JobId,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("attended", &self.attended()).finish_non_exhaustive()
    }
}

impl Sessions {
    /// Sessions whose calls run on `worker`.
    pub fn new(mailbox: Mailbox, worker: Worker) -> Self {
        Self(Arc::new(Inner { mailbox, worker, attended: Mutex::default() }))
    }

    /// The sessions whose drivers are connected to this node, in order.
    pub fn attended(&self) -> Vec<JobId> {
        self.lock().keys().copied().collect()
    }

    /// Serves a driver's session until it is closed or the stream ends.
    pub async fn attend(&self, mut stream: Stream, id: JobId, label: String) -> Result<(), Failure> {
        let attendance = match self.open(id, label).await {
            Ok(attendance) => attendance,
            Err(failure) => {
                return write_frame(&mut stream, &Response::Failed(failure)).await.map_err(Failure::internal);
            }
        };
        write_frame(&mut stream, &Response::Accepted { id }).await.map_err(Failure::internal)?;
        let closed = gateway::serve(&self.0.mailbox, &self.0.worker, id, stream).await;
        drop(attendance);
        if closed { self.end(id).await } else { Ok(()) }
    }

    /// Serves the calls of a session that another node attends.
    pub async fn seat(&self, mut stream: Stream, id: JobId) -> Result<(), Failure> {
        write_frame(&mut stream, &Response::Done).await.map_err(Failure::internal)?;
        let (calls, results) = seat::start(self.0.worker.clone(), self.0.mailbox.network().node(), id);
        wire::serve(stream, calls, results).await;
        Ok(())
    }

    /// Makes sure that the standing job exists and runs.
    async fn open(&self, id: JobId, label: String) -> Result<Attendance, Failure> {
        let attendance = {
            let mut attended = self.lock();
            if attended.len() >= MAX_SESSIONS && !attended.contains_key(&id) {
                let message = format!("this node attends {MAX_SESSIONS} sessions already: use another node");
                return Err(Failure::Unavailable { message });
            }
            *attended.entry(id).or_default() += 1;
            Attendance { sessions: self.clone(), id }
        };
        let mailbox = &self.0.mailbox;
        // The driver may come from another node, and this one be behind.
        let known = match mailbox.ask(|reply| Ask::Job(id, reply)).await? {
            None => {
                mailbox.current().await?;
                mailbox.ask(|reply| Ask::Job(id, reply)).await?
            }
            known => known,
        };
        match known.map(|job| job.phase) {
            Some(JobPhase::Running) => {}
            Some(phase) => {
                let message = format!("session {id} has ended ({}): open another", phase.name());
                return Err(Failure::Refused { message });
            }
            None => {
                let graph = standing_graph();
                let submitted_unix_ms = unix_ms();
                mailbox.propose(Command::Submit { job: id, label, graph, submitted_unix_ms }).await?;
            }
        }
        Ok(attendance)
    }

    async fn end(&self, id: JobId) -> Result<(), Failure> {
        let done = Command::StageDone {
            job: id,
            stage: StageId(0),
            outputs: vec![Placed::default()],
            runs: Vec::new(),
            ended_unix_ms: unix_ms(),
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
        schema: Bytes::new(),
    }
}
