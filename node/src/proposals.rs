//! Who waits for the mesh's agreement on this node: proposals, and reads that must not be older than they are.

use std::collections::BTreeMap;

use floe_consensus::participant::Participant;
use floe_consensus::{Entry, ProposeError};
use floe_protocol::{Failure, NodeId, RequestId};
use tokio::sync::oneshot;

use crate::mailbox::{Mailbox, Proposed};

/// How many proposals may wait for agreement on this node; more are told to try again.
const MAX_PENDING: usize = 4096;

/// How many reads may wait for the leader's word on this node; more are told to try again.
const MAX_READS: usize = 1024;

/// What waits for agreement. An answer that nobody waits for any more is dropped.
#[derive(Debug, Default)]
pub struct Proposals {
    /// Proposals of this node that are not agreed yet.
    pending: BTreeMap<RequestId, Vec<oneshot::Sender<Proposed>>>,
    /// Reads that wait until this node's state is new enough.
    reads: BTreeMap<RequestId, oneshot::Sender<bool>>,
}

impl Proposals {
    /// Proposes an entry, if this node leads. The answer comes when it has applied.
    pub fn propose(
        &mut self,
        participant: &mut Participant,
        entry: &Entry,
        reply: oneshot::Sender<Proposed>,
    ) {
        if self.pending.len() >= MAX_PENDING {
            let message = format!("{MAX_PENDING} proposals wait for agreement already");
            let _ = reply.send(Proposed::NotNow(message));
            return;
        }
        match participant.propose(entry) {
            Ok(()) => self.pending.entry(entry.request).or_default().push(reply),
            Err(ProposeError::NotLeader { leader }) => {
                let _ = reply.send(Proposed::NotLeader(leader));
            }
            Err(error) => {
                let _ = reply.send(Proposed::NotNow(error.to_string()));
            }
        }
    }

    /// An entry has applied. False if nobody here waited for that.
    pub fn applied(&mut self, request: RequestId, outcome: &Result<(), Failure>) -> bool {
        let Some(waiting) = self.pending.remove(&request) else { return false };
        for waiting in waiting {
            let _ = waiting.send(Proposed::Applied(outcome.clone()));
        }
        true
    }

    /// This node can no longer bring its proposals to an end: their submitters turn to the next leader, and the request
    /// id keeps what does come through from applying twice.
    pub fn refuse_all(&mut self, leader: Option<NodeId>) {
        for waiting in std::mem::take(&mut self.pending).into_values().flatten() {
            let _ = waiting.send(Proposed::NotLeader(leader));
        }
    }

    /// Answers true once this node's state is at least as new as the mesh's is now, and false if that cannot be had.
    pub fn read(&mut self, participant: &mut Participant, reply: oneshot::Sender<bool>) {
        let request = Mailbox::request_id().ok().filter(|_| self.reads.len() < MAX_READS);
        match request.filter(|request| participant.read_index(*request)) {
            Some(request) => drop(self.reads.insert(request, reply)),
            None => drop(reply.send(false)),
        }
    }

    /// A read may go on.
    pub fn ready(&mut self, request: RequestId) {
        if let Some(reply) = self.reads.remove(&request) {
            let _ = reply.send(true);
        }
    }

    /// Forgets reads that nobody waits for any more: one may be lost, and whoever waited asks again.
    pub fn tick(&mut self) {
        self.reads.retain(|_, reply| !reply.is_closed());
    }
}
