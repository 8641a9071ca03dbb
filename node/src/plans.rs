//! Plans of jobs ([`crate::plan`]) as objects on the nodes.
//!
//! ```text
//!   submit ──> file here ──> files on a majority of the voters, synced ──> the entry that names it
//!                                  │ a voter that has the entry and not the plan
//!                                  └──────────> gets it from another node
//! ```
//!
//! So whoever can agree on anything has the plans of what was agreed: a majority of voters has a member in every other
//! one, and new voters get what they lack. Nodes that run tasks get a plan with the first of its tasks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use floe_network::Network;
use floe_protocol::function::Blob;
use floe_protocol::{Failure, NodeId, Request, Response, TaskId};
use floe_transport::call::{read_frame, write_frame};
use floe_transport::stream::send_body;
use futures::future::BoxFuture;
use futures::stream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::blobs::Blobs;
use crate::config;
use crate::plan::PlanFile;
use crate::stream::chunks_of;
use crate::submit::blocking;
use crate::worker::TaskPlans;
use crate::worker::hosts::Blobs as _;

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

    /// Keeps a plan here and on other nodes until a majority of the voters has it on disk. The others are sent it, too.
    pub async fn keep(&self, file: Bytes, voters: &[NodeId]) -> Result<Blob, Failure> {
        let plan = self.blobs.put(file.clone()).await?;
        let here = self.network.node();
        let majority = voters.len() / 2 + 1;
        let mut kept = usize::from(voters.contains(&here));
        let (told, mut outcomes) = mpsc::channel(voters.len().max(1));
        for node in voters.iter().copied().filter(|node| *node != here) {
            let (plans, file, told) = (self.clone(), file.clone(), told.clone());
            tokio::spawn(async move {
                let outcome = plans.send(node, plan, file).await;
                // Nobody listens any more once there are enough.
                let _ = told.send((node, outcome)).await;
            });
        }
        drop(told);
        let mut why = None;
        while kept < majority {
            match outcomes.recv().await {
                Some((_, Ok(()))) => kept += 1,
                Some((_, Err(busy @ Failure::Busy { .. }))) => why = Some(busy),
                Some((node, Err(failure))) => {
                    tracing::info!(%node, plan = %plan.id, %failure, "a plan was not copied");
                    why.get_or_insert(Failure::Unavailable {
                        message: format!(
                            "the job's plan is to be on {majority} of {} voters before the job is accepted, and \
                             node {node} did not take it: {failure}; try again",
                            voters.len()
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
        let send = async {
            let mut stream = self.network.open(node).await.map_err(Failure::internal)?;
            write_frame(&mut stream, &Request::PutPlan { plan }).await.map_err(Failure::internal)?;
            send_body(&mut stream, stream::iter(chunks_of(file).map(Ok))).await.map_err(Failure::internal)?;
            read_frame(&mut stream).await.map_err(Failure::internal)
        };
        match timeout(config::PROPOSE_PATIENCE, send).await.map_err(Failure::internal)?? {
            Response::Done => Ok(()),
            Response::Failed(failure) => Err(failure),
            other => Err(Failure::internal(format!("node {node} answered a plan with {other:?}"))),
        }
    }

    /// The columns of the result of a plan's job.
    pub async fn schema(&self, plan: Blob) -> Result<Bytes, Failure> {
        self.read(plan, |file| file.schema()).await
    }

    async fn read<T: Send + 'static>(
        &self,
        plan: Blob,
        read: impl FnOnce(&PlanFile) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let path = self.blobs.get(plan).await.map_err(|failure| match failure {
            Failure::Unavailable { .. } => {
                Failure::SubmissionLost { partition: None, node: self.network.node() }
            }
            failure => failure,
        })?;
        blocking(move || read(&PlanFile::open(&path)?)).await?
    }
}

impl TaskPlans for Plans {
    /// A plan comes from another node if it is not here.
    fn task(&self, plan: Blob, task: TaskId) -> BoxFuture<'_, Result<(Bytes, Bytes), Failure>> {
        Box::pin(self.read(plan, move |file| file.task(task.stage, task.partition)))
    }
}

/// Sees to it that a voter has the plans of all jobs.
#[derive(Debug)]
pub struct PlanKeeper {
    plans: Plans,
    /// What the state's jobs were when it was looked last.
    seen: Option<u64>,
    under_way: Arc<AtomicBool>,
    /// Whether some could not be had.
    lacking: Arc<AtomicBool>,
}

impl PlanKeeper {
    /// A keeper of these plans.
    pub fn new(plans: Plans) -> Self {
        Self { plans, seen: None, under_way: Arc::default(), lacking: Arc::default() }
    }

    /// To be called now and then by a voter, with the number of the last change to a job and the plans of all jobs. It does
    /// not wait for disk or network.
    pub fn look(&mut self, changed: u64, plans: impl FnOnce() -> Vec<Blob>) {
        if self.under_way.load(Ordering::Relaxed) {
            return;
        }
        if self.seen.replace(changed) == Some(changed) && !self.lacking.load(Ordering::Relaxed) {
            return;
        }
        let mut missing = plans();
        missing.retain(|plan| !self.plans.blobs.lists(plan.id));
        self.lacking.store(false, Ordering::Relaxed);
        if missing.is_empty() {
            return;
        }
        self.under_way.store(true, Ordering::Relaxed);
        let blobs = self.plans.blobs.clone();
        let (under_way, lacking) = (Arc::clone(&self.under_way), Arc::clone(&self.lacking));
        tokio::spawn(async move {
            for plan in missing {
                if let Err(failure) = blobs.get(plan).await {
                    // Its job may have ended meanwhile, or those that have it may be coming back.
                    tracing::info!(plan = %plan.id, %failure, "the plan of a job could not be had");
                    lacking.store(true, Ordering::Relaxed);
                }
            }
            under_way.store(false, Ordering::Relaxed);
        });
    }
}
