//! Where stories are played: nodes, a question that keeps them busy for seconds, and what is done to them.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use floe_client::Job;
use floe_protocol::{JobStatus, NodeRole};
use polars::prelude::DataFrame;
use rand::RngExt;
use rand::rngs::StdRng;
use tempfile::TempDir;
use tokio::time::timeout;

use super::evidence::{self, Done, Election, LOG_FILTER};
use super::measure::{MADE_AGAIN, RAN_AGAIN, Takeover};
use super::report::unix_ms;
use super::{Order, Round, Story};
use crate::harness::{Builder, Cluster, DEADLINE, wait_until};
use crate::reference::{Tables, same_rows};
use crate::workload::{flights, long_query, reached};

/// Into how many files the flights are cut, so that they can be divided among many tasks.
const PARTS: usize = 24;

/// How long an accepted job may take before it counts as lost. Undisturbed it takes seconds.
pub(super) const JOB_DEADLINE: Duration = Duration::from_secs(120);

/// A query, and the right answer to it.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) tables: Tables,
    pub(super) statement: String,
    pub(super) wanted: DataFrame,
    _files: TempDir,
}

impl Question {
    /// Seconds of work in dozens of tasks, and a small result.
    pub(super) fn long() -> Result<Self> {
        Self::of_flights(long_query())
    }

    /// All flights in another order: every row is moved, and the result is as large as the table.
    pub(super) fn large() -> Result<Self> {
        Self::of_flights("SELECT * FROM {flights} ORDER BY distance, dep_time, tailnum, flight".to_owned())
    }

    /// Next to nothing.
    pub(super) fn small() -> Result<Self> {
        Self::of_flights("SELECT COUNT(*) AS flights FROM {flights}".to_owned())
    }

    fn of_flights(statement: String) -> Result<Self> {
        let files = tempfile::Builder::new().prefix("floe-flights-").tempdir()?;
        let tables = flights(files.path(), "parquet", PARTS)?;
        let wanted = tables.run(&statement)?;
        Ok(Self { tables, statement, wanted, _files: files })
    }

    /// The statement as Floe is given it.
    pub(super) fn text(&self) -> String {
        self.tables.for_floe(&self.statement)
    }
}

/// What every story has.
#[derive(Clone, Debug)]
pub(super) struct Props {
    /// The `floe` binary.
    pub(super) floe: PathBuf,
    /// How many nodes are wanted.
    pub(super) nodes: usize,
    /// Whether somebody said how many, rather than nobody.
    pub(super) nodes_given: bool,
    pub(super) question: Rc<Question>,
}

impl Props {
    pub(super) fn new(story: &Story, order: &Order) -> Result<Self> {
        Ok(Self {
            floe: order.floe.clone(),
            nodes: order.nodes.unwrap_or(story.usual_nodes),
            nodes_given: order.nodes.is_some(),
            question: Rc::new((story.question)()?),
        })
    }

    /// A cluster as stories want it, not yet started.
    pub(super) fn cluster(&self) -> Builder {
        Cluster::builder(&self.floe).nodes(self.nodes).env("FLOE_LOG", LOG_FILTER)
    }
}

/// One run of a task, as its job's timeline lists it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) node: usize,
    /// Stage and partition.
    pub(super) task: (u32, u32),
    pub(super) started_at: f64,
    pub(super) elapsed_ms: f64,
}

/// A mesh and what it is asked.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) cluster: Cluster,
    pub(super) question: Rc<Question>,
    undisturbed_ms: Option<f64>,
}

impl Scene {
    pub(super) async fn new(props: &Props, prepare: fn(Builder) -> Builder) -> Result<Self> {
        let cluster = prepare(props.cluster()).start().await?;
        Ok(Self { cluster, question: props.question.clone(), undisturbed_ms: None })
    }

    /// What a node is called, as in its log and `floe status`.
    pub(super) fn name(&self, node: usize) -> String {
        self.cluster.nodes()[node].name()
    }

    /// Any of the nodes but these.
    pub(super) fn any_but(&self, dice: &mut StdRng, not: &[usize]) -> Result<usize> {
        let others: Vec<usize> = (0..self.cluster.len()).filter(|node| !not.contains(node)).collect();
        ensure!(!others.is_empty(), "no node is left to choose");
        Ok(others[dice.random_range(0..others.len())])
    }

    /// Which nodes vote, according to this one.
    pub(super) async fn voters(&self, node: usize) -> Result<Vec<usize>> {
        let mesh = self.cluster.status(node).await?;
        let voting = mesh.nodes.iter().filter(|node| node.role != NodeRole::Learner);
        Ok(voting.filter_map(|node| self.cluster.number_of(&mesh, node.member.id)).collect())
    }

    /// Asks the question through this node.
    pub(super) async fn ask(&self, round: &mut Round, driver: usize) -> Result<Job> {
        let mesh = self.cluster.client(driver).await?;
        let job = mesh.sql(self.question.text()).await?;
        round.jobs += 1;
        round.tell(format!("job {} submitted through {}", job.id(), self.name(driver)));
        Ok(job)
    }

    /// Asks the question through this node, and waits until a part of it is done that the round's dice decide.
    pub(super) async fn underway(&self, round: &mut Round, driver: usize) -> Result<Job> {
        let job = self.ask(round, driver).await?;
        let tasks: u32 = job.status().await?.stages.iter().map(|stage| stage.tasks).sum();
        // Enough must be left to be disturbed.
        let done = round.dice.random_range(1..=(tasks / 2).max(1));
        reached(&job, done).await?;
        round.tell(format!("{done} of its {tasks} tasks are done"));
        Ok(job)
    }

    /// A job under way, which came through another node than the leader, and the leader of now: on a busy machine
    /// another one may have been elected while the job got so far.
    pub(super) async fn leader_of_underway(&self, round: &mut Round) -> Result<(usize, Job)> {
        let leader = self.cluster.leader().await?;
        let driver = self.any_but(&mut round.dice, &[leader])?;
        let job = self.underway(round, driver).await?;
        Ok((self.cluster.leader().await?, job))
    }

    /// Kills a node, and returns when, in milliseconds since the Unix epoch.
    pub(super) async fn kill(&mut self, round: &mut Round, node: usize, role: &str) -> Result<f64> {
        let killed_ms = unix_ms();
        self.cluster.node(node).kill().await?;
        round.tell_at(killed_ms, format!("{}, {role}, is killed (SIGKILL)", self.name(node)));
        Ok(killed_ms)
    }

    /// Starts a node again that was killed, with the data it had.
    pub(super) async fn restart(&mut self, round: &mut Round, node: usize) -> Result<()> {
        self.cluster.node(node).restart().await?;
        round.tell(format!("{} is back", self.name(node)));
        Ok(())
    }

    /// Waits until another node than this one has been elected since then.
    pub(super) async fn next_election(
        &self,
        round: &mut Round,
        not: usize,
        since_unix_ms: f64,
    ) -> Result<Election> {
        let election = wait_until("another node is elected", DEADLINE, async || {
            let elections = evidence::elections(self.cluster.nodes(), since_unix_ms);
            elections.into_iter().find(|election| election.node != not)
        })
        .await?;
        let name = self.name(election.node);
        round.tell_at(election.unix_ms, format!("{name} is elected, term {}", election.term));
        Ok(election)
    }

    /// Collects a job's result and judges it against the right answer. What became of the job is the round's to
    /// tell; the status is none if it was lost.
    pub(super) async fn judge(&self, round: &mut Round, job: &Job) -> Result<Option<JobStatus>> {
        if !judge(round, job, &self.question.wanted).await {
            return Ok(None);
        }
        let status = job.status().await?;
        let done = self.done(round, job);
        let (tasks, bytes) = evidence::again(&done);
        round.measured(&RAN_AGAIN, tasks as f64);
        round.measured(&MADE_AGAIN, bytes as f64);
        job.release().await?;
        Ok(Some(status))
    }

    /// Every attempt at the job's tasks that was done.
    pub(super) fn done(&self, round: &Round, job: &Job) -> Vec<Done> {
        evidence::done(self.cluster.nodes(), round.began_unix_ms, job.id())
    }

    /// The runs of a job's tasks that its timeline lists.
    pub(super) async fn runs(&self, job: &JobStatus) -> Result<Vec<Run>> {
        let living = self.cluster.nodes().iter().position(|node| node.runs()).context("no node runs")?;
        let mesh = self.cluster.status(living).await?;
        let runs = job.timeline.iter().filter_map(|run| {
            let node = self.cluster.number_of(&mesh, run.node)?;
            let started_at = run.started_at.unix_ms() as f64;
            let elapsed_ms = run.elapsed_ms as f64;
            Some(Run { node, task: (run.stage.0, run.partition), started_at, elapsed_ms })
        });
        Ok(runs.collect())
    }

    /// How long the next leader took: to be elected, and until a first task started by its order.
    pub(super) async fn measure_takeover(
        &self,
        round: &mut Round,
        takeover: &Takeover,
        (job, status): (&Job, &JobStatus),
        (lost_unix_ms, election): (f64, Election),
    ) -> Result<()> {
        round.measured(takeover.elected, election.unix_ms - lost_unix_ms);
        let ordered = self.done(round, job).into_iter().filter(|done| done.term >= election.term);
        let ordered: Vec<_> = ordered.map(|done| (done.node, done.task)).collect();
        let runs = self.runs(status).await?.into_iter().filter(|run| ordered.contains(&(run.node, run.task)));
        if let Some(first) = runs.map(|run| run.started_at).min_by(f64::total_cmp) {
            round.tell_at(first, format!("a first task starts by order of {}", self.name(election.node)));
            round.measured(takeover.scheduling, first - lost_unix_ms);
        }
        Ok(())
    }

    /// How long the question takes when nothing happens, measured once.
    pub(super) async fn undisturbed_ms(&mut self) -> Result<f64> {
        if let Some(known) = self.undisturbed_ms {
            return Ok(known);
        }
        let mesh = self.cluster.client(0).await?;
        let mut took_ms = 0.0;
        // The first one finds the nodes' caches cold.
        for _ in 0..2 {
            let began_ms = unix_ms();
            let job = mesh.sql(self.question.text()).await?;
            job.wait().await?;
            took_ms = unix_ms() - began_ms;
            job.release().await?;
        }
        self.undisturbed_ms = Some(took_ms);
        Ok(took_ms)
    }

    /// Makes the mesh whole again: all nodes run, see each other, and have all their voters.
    pub(super) async fn mend(&mut self) -> Result<()> {
        for node in 0..self.cluster.len() {
            if self.cluster.node(node).has_ended()? {
                self.cluster.node(node).restart().await?;
            }
        }
        self.cluster.settled().await?;
        Ok(())
    }
}

/// Collects a job's result and says whether it is there and right; if not, the round tells why.
pub(super) async fn judge(round: &mut Round, job: &Job, wanted: &DataFrame) -> bool {
    let id = job.id();
    round.judged += 1;
    let found = match timeout(JOB_DEADLINE, job.collect()).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            round.lost.push(format!("job {id}: {error}"));
            return false;
        }
        Err(_) => {
            round.lost.push(format!("job {id} has no result after {} s", JOB_DEADLINE.as_secs()));
            return false;
        }
    };
    round.tell(format!("the result of job {id} is here"));
    same(round, &format!("job {id}"), &found, wanted)
}

/// Says whether a result is right; if not, the round tells how it differs.
pub(super) fn same(round: &mut Round, whose: &str, found: &DataFrame, wanted: &DataFrame) -> bool {
    match same_rows(found, wanted, false) {
        Ok(()) => true,
        Err(difference) => {
            round.wrong.push(format!("{whose}: {difference}"));
            false
        }
    }
}
