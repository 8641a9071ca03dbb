//! The drivers: each submits one job after the other, follows it to its end, and judges what it was told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use floe_client::{Error, Failure, Job, JobId, JobPhase, JobSpec, Mesh, MeshKey, new_job_id};
use floe_protocol::{Request, Response};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::jobs::{Kind, Wanted};
use super::locked;
use super::watch::Watch;
use crate::history::{Answer, Call, History, Phase};
use crate::reference::same_rows;

/// The shortest time between two submissions of one driver. The mesh remembers 256 jobs; with this, one that is
/// being followed is never among those that are forgotten.
const PACE: Duration = Duration::from_millis(500);

/// How often a job's status is asked.
const POLL: Duration = Duration::from_millis(80);

/// How long one call goes on through other nodes before its driver hears of it. Shorter than by default, so that
/// more calls are left without an answer.
const CALL_PATIENCE: Duration = Duration::from_secs(8);

/// How long a job that is cancelled may run before.
const CANCEL_AFTER_MS: std::ops::Range<u64> = 0..1_500;

/// How many drivers' and nodes' questions a history tells apart: the driver is 0, who looks on at node `i` is
/// `ONLOOKERS + i`.
const DRIVER: usize = 0;
const ONLOOKERS: usize = 1;

/// What all drivers share.
pub(super) struct Run {
    key: MeshKey,
    addresses: Arc<Mutex<Vec<String>>>,
    watch: Watch,
    kinds: Vec<Kind>,
    clock: std::time::Instant,
    /// When the last job must have ended; known once the faults are over, and then no new one begins.
    end: watch::Sender<Option<Instant>>,
}

/// What became of a driver's jobs.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Jobs by outcome.
    pub(super) jobs: BTreeMap<&'static str, u64>,
    /// Accepted jobs that did not end as they should.
    pub(super) lost: Vec<String>,
    /// Results that differ from Polars'.
    pub(super) wrong: Vec<String>,
    /// Histories that contradict themselves by a status that was behind.
    pub(super) stale: Vec<String>,
    /// Histories that contradict themselves otherwise.
    pub(super) contradictions: Vec<String>,
    /// The longest time from submission to result.
    pub(super) slowest: Duration,
}

/// How one job ended, for its driver.
enum Outcome {
    /// As it should.
    Right(&'static str),
    /// It was not accepted, as far as its driver knows.
    Refused,
    /// With other rows.
    Wrong(String),
    /// Accepted, and nothing came of it, or not what should.
    Lost(String),
}

/// One driver.
pub(super) struct Driver {
    run: Arc<Run>,
    number: usize,
    dice: StdRng,
}

impl Run {
    pub(super) fn new(
        key: MeshKey,
        addresses: Arc<Mutex<Vec<String>>>,
        watch: Watch,
        kinds: Vec<Kind>,
    ) -> Self {
        let clock = std::time::Instant::now();
        Self { key, addresses, watch, kinds, clock, end: watch::Sender::new(None) }
    }

    /// The faults are over: no new jobs, and the last one ends by then.
    pub(super) fn end_by(&self, end: Instant) {
        self.end.send_replace(Some(end));
    }

    fn ends(&self) -> bool {
        self.end.borrow().is_some()
    }

    fn is_over(&self) -> bool {
        self.end.borrow().is_some_and(|end| Instant::now() >= end)
    }

    fn addresses(&self) -> Vec<String> {
        locked(&self.addresses).clone()
    }

    /// A client that tries node `first` first; none once the time is over.
    async fn connect(&self, first: usize) -> Option<Mesh> {
        loop {
            let mut addresses = self.addresses();
            let count = addresses.len();
            addresses.rotate_left(first % count.max(1));
            let builder = Mesh::builder().key(self.key.clone()).addresses(addresses).timeout(CALL_PATIENCE);
            match builder.connect().await {
                Ok(mesh) => return Some(mesh),
                Err(_) if self.is_over() => return None,
                Err(_) => sleep(POLL).await,
            }
        }
    }
}

impl Driver {
    pub(super) fn new(run: Arc<Run>, number: usize, seed: u64) -> Self {
        let dice = StdRng::seed_from_u64(seed.wrapping_add(number as u64 + 1));
        Self { run, number, dice }
    }

    /// Submits and follows jobs until the run ends.
    pub(super) async fn drive(mut self) -> Tally {
        let mut tally = Tally::default();
        let mut node = self.number;
        while !self.run.ends() {
            // Another node each time.
            node += 1;
            let next = Instant::now() + PACE;
            let kind = self.dice.random_range(0..self.run.kinds.len());
            let kind = self.run.kinds[kind].clone();
            let Some(mesh) = self.run.connect(node).await else { break };
            self.play(&kind, mesh, &mut tally).await;
            sleep_until(next).await;
        }
        tally
    }

    async fn play(&mut self, kind: &Kind, mesh: Mesh, tally: &mut Tally) {
        let began = Instant::now();
        let id = match new_job_id() {
            Ok(id) => id,
            Err(error) => return tally.lost.push(format!("no job id: {error}")),
        };
        let history = History::new(self.run.clock);
        let onlooker = Onlooker::start(&self.run, id, &history);
        let outcome = self.follow(kind, mesh, id, &history).await;
        onlooker.end().await;
        let named = |text: String| format!("job {id} ({}, driver {}): {text}", kind.name, self.number);
        *tally.jobs.entry("submitted").or_default() += 1;
        let name = match outcome {
            Outcome::Right(name) => {
                tally.slowest = tally.slowest.max(began.elapsed());
                name
            }
            Outcome::Refused => "not accepted",
            Outcome::Wrong(text) => {
                tally.wrong.push(named(text));
                "wrong"
            }
            Outcome::Lost(text) => {
                tally.lost.push(named(text));
                "lost"
            }
        };
        *tally.jobs.entry(name).or_default() += 1;
        if let Err(violation) = history.judge() {
            let kept = if violation.is_stale_read() { &mut tally.stale } else { &mut tally.contradictions };
            kept.push(named(violation.to_string()));
        }
    }

    /// One job from its submission to its release.
    async fn follow(&mut self, kind: &Kind, mut mesh: Mesh, id: JobId, history: &History) -> Outcome {
        let text = kind.statement.clone();
        let spec = match mesh.sql(text).label(format!("{} {id}", kind.name)).spec() {
            Ok(spec) => spec,
            Err(error) => return Outcome::Lost(error.to_string()),
        };
        if !self.submit(&mut mesh, id, &spec, history).await {
            return Outcome::Refused;
        }
        let job = mesh.job(id);
        let cancelling = async {
            if kind.cancelled {
                sleep(Duration::from_millis(self.dice.random_range(CANCEL_AFTER_MS))).await;
                cancel(&self.run, &job, history).await;
            }
        };
        let (phase, ()) = tokio::join!(ended(&self.run, &job, history), cancelling);
        let Some(phase) = phase else {
            return Outcome::Lost("it had not ended when the time was over".to_owned());
        };
        let outcome = match (phase, &kind.wanted) {
            (JobPhase::Succeeded, Wanted::Rows { rows, ordered }) => {
                match collected(&self.run, &job, history).await {
                    Ok(found) => match same_rows(&found, rows, *ordered) {
                        Ok(()) => Outcome::Right("succeeded"),
                        Err(error) => Outcome::Wrong(format!("{error:#}")),
                    },
                    Err(error) => Outcome::Lost(format!("its result could not be had: {error}")),
                }
            }
            (JobPhase::Cancelled, _) if kind.cancelled => Outcome::Right("cancelled"),
            (JobPhase::Failed(Failure::Query { .. }), Wanted::Error) => {
                Outcome::Right("failed by its own error")
            }
            (JobPhase::Failed(failure), _) => Outcome::Lost(format!("it failed: {failure:?}")),
            (phase, _) => Outcome::Lost(format!("it ended as {}", phase.name())),
        };
        // Whether that is heard is not this driver's concern: the mesh releases old results by itself.
        let _ = job.release().await;
        outcome
    }

    /// Submits until the job is accepted; false if it is refused, or the time is over.
    async fn submit(&self, mesh: &mut Mesh, id: JobId, spec: &JobSpec, history: &History) -> bool {
        loop {
            // Left open unless it is accepted: an earlier try of the same call may have come through.
            let open = history.invoke(DRIVER, Call::Submit);
            match mesh.submit_as(id, spec.clone()).await {
                Ok(_) => {
                    open.answered(Answer::Done);
                    return true;
                }
                Err(Error::Unreachable { .. } | Error::Unavailable { .. }) if !self.run.is_over() => {
                    if let Some(other) = self.run.connect(self.number).await {
                        *mesh = other;
                    }
                }
                Err(_) => return false,
            }
        }
    }
}

/// Polls a job's status until it has ended; nothing if the time is over before.
async fn ended(run: &Run, job: &Job, history: &History) -> Option<JobPhase> {
    while !run.is_over() {
        let open = history.invoke(DRIVER, Call::Status);
        match job.status().await {
            Ok(status) => {
                open.answered(Answer::Is(phase_of(&status.phase)));
                if status.phase.is_terminal() {
                    return Some(status.phase);
                }
            }
            Err(Error::Failure(Failure::NoSuchJob { .. })) => open.answered(Answer::Is(Phase::Unknown)),
            Err(_) => drop(open),
        }
        sleep(POLL).await;
    }
    None
}

/// Cancels until that is agreed, or the time is over.
async fn cancel(run: &Run, job: &Job, history: &History) {
    while !run.is_over() {
        let open = history.invoke(DRIVER, Call::Cancel);
        match job.cancel().await {
            Ok(()) => return open.answered(Answer::Done),
            Err(Error::Failure(Failure::NoSuchJob { .. })) => open.answered(Answer::Is(Phase::Unknown)),
            Err(_) => drop(open),
        }
        sleep(POLL).await;
    }
}

/// A succeeded job's rows.
async fn collected(run: &Run, job: &Job, history: &History) -> Result<polars::prelude::DataFrame, Error> {
    loop {
        let open = history.invoke(DRIVER, Call::Result);
        let error = match job.collect().await {
            Ok(rows) => {
                open.answered(Answer::Is(Phase::Succeeded));
                return Ok(rows);
            }
            Err(error) => error,
        };
        let answer = match &error {
            Error::Failure(Failure::NoSuchJob { .. }) => Some(Phase::Unknown),
            Error::JobFailed { .. } => Some(Phase::Failed),
            Error::JobCancelled { .. } => Some(Phase::Cancelled),
            _ => None,
        };
        match answer {
            Some(phase) => open.answered(Answer::Is(phase)),
            None => drop(open),
        }
        if run.is_over() {
            return Err(error);
        }
        sleep(POLL).await;
    }
}

fn phase_of(phase: &JobPhase) -> Phase {
    match phase {
        JobPhase::Running => Phase::Running,
        JobPhase::Succeeded => Phase::Succeeded,
        JobPhase::Failed(_) => Phase::Failed,
        JobPhase::Cancelled => Phase::Cancelled,
    }
}

/// Asks every node in turn about a job, from before it is submitted until after it ended.
struct Onlooker {
    stop: watch::Sender<bool>,
    task: AbortOnDropHandle<()>,
}

impl Onlooker {
    fn start(run: &Arc<Run>, id: JobId, history: &History) -> Self {
        let stop = watch::Sender::new(false);
        let stopped = stop.subscribe();
        let (run, history) = (run.clone(), history.clone());
        let task = tokio::spawn(async move {
            loop {
                // At least once more after the end.
                let last = *stopped.borrow();
                for node in 0..run.addresses().len() {
                    look(&run.watch, node, id, &history).await;
                }
                if last {
                    return;
                }
                sleep(POLL).await;
            }
        });
        Self { stop, task: AbortOnDropHandle::new(task) }
    }

    async fn end(self) {
        self.stop.send_replace(true);
        // It ends after one more round, each of whose questions has a limit.
        let _ = self.task.await;
    }
}

async fn look(watch: &Watch, node: usize, id: JobId, history: &History) {
    let open = history.invoke(ONLOOKERS + node, Call::Status);
    match watch.ask(node, &Request::Job { id }).await {
        Some(Response::Job(status)) => open.answered(Answer::Is(phase_of(&status.phase))),
        Some(Response::Failed(Failure::NoSuchJob { .. })) => open.answered(Answer::Is(Phase::Unknown)),
        _ => drop(open),
    }
}
