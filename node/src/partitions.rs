//! The partitions that this node holds, as the leader orders: copied, dropped, and told of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use floe_protocol::job::{MAX_TIMELINE, TaskRun};
use floe_protocol::message::Report;
use floe_protocol::{Failure, JobId, NodeId, Summary, TaskId};

use crate::mailbox::{Ask, Mailbox};
use crate::store::Store;
use crate::stream::Streams;
use crate::submit::Submitter;

/// This node's partitions.
#[derive(Debug)]
pub struct Partitions {
    store: Store,
    streams: Arc<Streams>,
    mailbox: Mailbox,
    submitter: Submitter,
    /// When this node made what it holds, for the next leader.
    runs: BTreeMap<TaskId, TaskRun>,
    /// Copies that are on their way to other nodes.
    copying: BTreeSet<(TaskId, NodeId)>,
}

impl Partitions {
    /// What `store` holds, with what a driver is just sending.
    pub fn new(store: Store, streams: Arc<Streams>, mailbox: Mailbox, submitter: Submitter) -> Self {
        let (runs, copying) = Default::default();
        Self { store, streams, mailbox, submitter, runs, copying }
    }

    /// A task has ended here.
    pub fn reported(&mut self, report: &Report) {
        if report.outcome.is_ok() {
            self.runs.insert(report.attempt.task, report.run.clone());
        }
    }

    /// What is here.
    pub fn held(&self) -> Vec<(TaskId, Summary)> {
        self.store.held()
    }

    /// When this node made what is here, as far as an inventory has room for that.
    pub fn runs(&mut self) -> Vec<(TaskId, TaskRun)> {
        let held: BTreeSet<TaskId> = self.store.held().into_iter().map(|(task, _)| task).collect();
        self.runs.retain(|task, _| held.contains(task));
        self.runs.iter().take(MAX_TIMELINE).map(|(task, run)| (*task, run.clone())).collect()
    }

    /// Drops these jobs' partitions, but what a driver is just sending again. Files are removed off the loop.
    pub fn free(&mut self, mut jobs: Vec<JobId>) {
        self.runs.retain(|task, _| !jobs.contains(&task.job));
        jobs.retain(|job| !self.submitter.is_arriving(*job));
        let freed = self.store.free(&jobs);
        if !freed.is_empty() {
            tokio::task::spawn_blocking(move || drop(freed));
        }
    }

    /// Gives another node a copy of a partition, unless that is under way. [`Ask::Copied`] says how it ended.
    pub fn copy(&mut self, partition: TaskId, to: NodeId) {
        if !self.copying.insert((partition, to)) {
            return;
        }
        let (streams, mailbox) = (Arc::clone(&self.streams), self.mailbox.clone());
        let meta = self.store.meta(partition);
        tokio::spawn(async move {
            let copied = match meta {
                Some(meta) => streams.copy_to(to, partition, meta).await,
                None => Err(Failure::InputLost { partition, node: mailbox.network().node() }),
            };
            if let Err(failure) = &copied {
                tracing::warn!(%partition, node = %to, %failure, "a frame was not copied");
            }
            mailbox.tell(Ask::Copied(partition, to, copied.is_ok())).await;
        });
    }

    /// A copy is not under way any more.
    pub fn copied(&mut self, partition: TaskId, to: NodeId) {
        self.copying.remove(&(partition, to));
    }
}
