//! Plans of jobs ([`crate::plan`]) as objects on the nodes.
//!
//! ```text
//!   submit ──> file here ──> files on a majority of the voters, synced ──> the entry that names it
//!                                  │ a voter that has the entry and not the plan
//!                                  └──────────> gets it from another node
//! ```
//!
//! So whoever can agree on anything has the plans of what was agreed: a majority of voters has a member in every other
//! one, and a learner gets what it lacks before it votes. Those of an era that takes another one's jobs over get theirs
//! within moments. Nodes that run tasks get a plan with the first of its tasks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use floe_consensus::membership::Configuration;
use floe_network::Network;
use floe_protocol::function::Blob;
use floe_protocol::{BlobId, Failure, Fence, NodeId, Request, Response, TaskId};
use floe_transport::blob_id;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::blobs::Blobs;
use crate::config;
use crate::plan::PlanFile;
use crate::stream::chunks_of;
use crate::submit::blocking;
use crate::worker::TaskPlans;
use crate::worker::hosts::Blobs as _;

/// What a link to a voter carries at least: a longer plan may take longer.
const SLOWEST_BYTES_PER_S: u64 = 1 << 20;

/// How many plans a voter gets at once: enough not to wait for each file's sync.
const FETCHED_AT_ONCE: usize = 8;

/// How long a node keeps plans that was to vote: its leader says so again while that holds.
const CANDIDACY: Duration = Duration::from_secs(30);

/// How often a node looks for plans though no job has changed: some could not be had, or a file was damaged.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Keeps plans, and reads them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Plans {
    blobs: Blobs,
    network: Network,
}

impl Plans {
    /// Plans among these objects.
    pub fn new(blobs: Blobs, network: Network) -> Self {
        Self { blobs, network }
    }

    /// Keeps a plan here and on other nodes until enough of the voters have it on disk to agree on anything. The others
    /// are sent it, too.
    pub async fn keep(&self, file: Bytes, voters: &Configuration) -> Result<Blob, Failure> {
        let named = file.clone();
        let plan = blocking(move || Blob { id: blob_id(&named), bytes: named.len() as u64 }).await?;
        let here = self.network.node();
        let voting = voters.voting();
        let (told, mut outcomes) = mpsc::channel(voting.len().max(1));
        for node in voting.into_iter().filter(|node| *node != here) {
            let (plans, file, told) = (self.clone(), file.clone(), told.clone());
            tokio::spawn(async move {
                let outcome = plans.send(node, plan, file).await;
                // Nobody listens any more once there are enough.
                let _ = told.send((node, outcome)).await;
            });
        }
        drop(told);
        self.blobs.put_plan(plan, file).await?;
        let mut kept = BTreeSet::from([here]);
        let mut why = None;
        while !voters.is_quorum(&kept) {
            match outcomes.recv().await {
                Some((node, Ok(()))) => drop(kept.insert(node)),
                Some((_, Err(busy @ Failure::Busy { .. }))) => why = Some(busy),
                Some((node, Err(failure))) => {
                    tracing::info!(%node, plan = %plan.id, %failure, "a plan was not copied");
                    why.get_or_insert(Failure::Unavailable {
                        message: format!(
                            "the job's plan is to be on a majority of the voters before the job is accepted, and \
                             node {node} did not take it: {failure}; try again",
                        ),
                    });
                }
                None => {
                    return Err(why.unwrap_or_else(|| Failure::Unavailable {
                        message: "the mesh has no voters: try again".to_owned(),
                    }));
                }
            }
        }
        Ok(plan)
    }

    async fn send(&self, node: NodeId, plan: Blob, file: Bytes) -> Result<(), Failure> {
        let lost = |error: &dyn std::fmt::Display| Failure::Unavailable { message: error.to_string() };
        let patience = config::PROPOSE_PATIENCE + Duration::from_secs(plan.bytes / SLOWEST_BYTES_PER_S);
        let (request, file) = (Request::PutPlan { plan }, stream::iter(chunks_of(file).map(Ok)));
        let sent = timeout(patience, self.network.upload(node, &request, file, patience)).await;
        match sent.map_err(|error| lost(&error))?.map_err(|error| lost(&error))?.0 {
            Response::Done => Ok(()),
            Response::Failed(failure) => Err(failure),
            other => Err(Failure::internal(format!("node {node} answered a plan with {other:?}"))),
        }
    }
}

impl TaskPlans for Plans {
    /// A plan comes from another node if it is not here.
    fn task(&self, plan: Blob, task: TaskId) -> BoxFuture<'_, Result<(Bytes, Bytes), Failure>> {
        Box::pin(async move {
            let path = self.blobs.get(plan).await.map_err(|failure| match failure {
                Failure::Unavailable { .. } => {
                    Failure::SubmissionLost { partition: None, node: self.network.node() }
                }
                failure => failure,
            })?;
            blocking(move || PlanFile::open(&path)?.task(task.stage, task.partition)).await?
        })
    }
}

/// Sees to it that whoever votes, or is to, has the plans of all jobs, and that no node has those of jobs that are gone.
#[derive(Debug)]
pub struct PlanKeeper {
    plans: Plans,
    /// What was looked at last: the last change to a job, and whether plans are kept here; and when.
    looked: Option<((u64, bool), Instant)>,
    /// The plans of all jobs then.
    known: BTreeSet<BlobId>,
    /// Of jobs that are gone, and may be another's a moment from now.
    retired: BTreeSet<BlobId>,
    under_way: Arc<AtomicBool>,
    candidacy: Option<Candidacy>,
}

/// A leader's word that this node is to vote.
#[derive(Clone, Copy, Debug)]
struct Candidacy {
    leader: NodeId,
    fence: Fence,
    /// When it came first, and last.
    since: Instant,
    seen: Instant,
    /// Whether an answer is due.
    asked: bool,
}

impl PlanKeeper {
    /// A keeper of these plans.
    pub fn new(plans: Plans) -> Self {
        let (known, retired) = Default::default();
        Self { plans, looked: None, known, retired, under_way: Arc::default(), candidacy: None }
    }

    /// This node is to vote, as its leader says: it keeps plans from now on. When it has those that can be had
    /// [`PlanKeeper::look`] says so.
    pub fn prepare(&mut self, leader: NodeId, fence: Fence) {
        let now = Instant::now();
        let going_on = self.candidacy.filter(|candidacy| candidacy.fence == fence);
        let since = going_on.map_or(now, |candidacy| candidacy.since);
        self.candidacy = Some(Candidacy { leader, fence, since, seen: now, asked: true });
    }

    /// Whether its leader waits for this node's word.
    pub fn is_asked(&self) -> bool {
        self.candidacy.is_some_and(|candidacy| candidacy.asked)
    }

    /// To be called now and then, with the number of the last change to a job, whether this node votes, and the plans of
    /// all jobs. It does not wait for disk or network. Says whom to tell that this node is ready to vote.
    pub fn look(
        &mut self,
        changed: u64,
        votes: bool,
        plans: impl FnOnce() -> Vec<Blob>,
    ) -> Option<(NodeId, Fence)> {
        self.candidacy = self.candidacy.filter(|candidacy| candidacy.seen.elapsed() < CANDIDACY);
        let keeps = votes || self.candidacy.is_some();
        // What was looked at before this node was to keep anything says nothing of what it keeps.
        let seen = self.looked.is_some_and(|(of, at)| {
            of == (changed, keeps)
                && at.elapsed() < LOOK_AGAIN
                && self.candidacy.is_none_or(|candidacy| at >= candidacy.since)
        });
        if !seen && !self.under_way.load(Ordering::Acquire) {
            self.looked = Some(((changed, keeps), Instant::now()));
            self.begin(keeps, plans());
        }
        let candidacy = self.candidacy.as_mut()?;
        let looked = self.looked.is_some_and(|((_, kept), at)| kept && at >= candidacy.since);
        if !looked || !candidacy.asked || self.under_way.load(Ordering::Acquire) {
            return None;
        }
        candidacy.asked = false;
        Some((candidacy.leader, candidacy.fence))
    }

    /// Gets what is missing of these plans, if they are kept here, and removes those of jobs that are gone.
    fn begin(&mut self, keeps: bool, plans: Vec<Blob>) {
        let now: BTreeSet<BlobId> = plans.iter().map(|plan| plan.id).collect();
        self.retired.extend(self.known.difference(&now));
        self.retired.retain(|plan| !now.contains(plan) && self.plans.blobs.lists(*plan));
        self.known = now;
        let mut missing = plans;
        missing.retain(|plan| keeps && !self.plans.blobs.lists(plan.id));
        if missing.is_empty() && self.retired.is_empty() {
            return;
        }
        self.under_way.store(true, Ordering::Release);
        let (blobs, under_way) = (self.plans.blobs.clone(), Arc::clone(&self.under_way));
        let retired = self.retired.clone();
        tokio::spawn(async move {
            let freeing = blobs.clone();
            // What is still in use is looked at again.
            drop(blocking(move || retired.into_iter().for_each(|plan| freeing.free(plan))).await);
            let fetches = missing.into_iter().map(|plan| {
                let blobs = blobs.clone();
                async move { (plan, blobs.get(plan).await) }
            });
            let mut fetches = stream::iter(fetches).buffer_unordered(FETCHED_AT_ONCE);
            while let Some((plan, fetched)) = fetches.next().await {
                match fetched {
                    Ok(_) => {}
                    // The others have no more room.
                    Err(failure @ Failure::Exhausted { .. }) => {
                        tracing::warn!(%failure, "this node lacks plans of jobs");
                        break;
                    }
                    // Its job may have ended meanwhile, or those that have it may be coming back.
                    Err(failure) => {
                        tracing::info!(plan = %plan.id, %failure, "a job's plan could not be had")
                    }
                }
            }
            under_way.store(false, Ordering::Release);
        });
    }
}
