//! One number for a node's whole replicated state, so that any two can be compared after every entry.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Weak};

use floe_consensus::StateMachine;
use floe_consensus::state_machine::Job;
use floe_protocol::{JobId, frame};

/// The digests of one node's jobs: an entry changes one of them, and to encode all of them anew would take half of a run.
#[derive(Debug, Default)]
pub(super) struct Digests(BTreeMap<JobId, (Weak<Job>, u64)>);

impl Digests {
    /// The digest of this node's present state, or why it cannot be encoded.
    pub(super) fn of(&mut self, state: &StateMachine) -> Result<u64, String> {
        let unreadable = |error: floe_protocol::frame::FrameError| error.to_string();
        let mut hasher = DefaultHasher::new();
        state.without_jobs().snapshot().map_err(unreadable)?.hash(&mut hasher);
        self.0.retain(|job, _| state.jobs().contains_key(job));
        for (id, job) in state.jobs() {
            let known = self.0.get(id).filter(|(known, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(job)));
            let digest = match known {
                Some((_, digest)) => *digest,
                None => {
                    let mut hasher = DefaultHasher::new();
                    frame::encode(job.as_ref()).map_err(unreadable)?.hash(&mut hasher);
                    // Weak, so that a change moves the job rather than copying it. It keeps the address from being
                    // another's.
                    let digest = hasher.finish();
                    self.0.insert(*id, (Arc::downgrade(job), digest));
                    digest
                }
            };
            (id, digest).hash(&mut hasher);
        }
        Ok(hasher.finish())
    }
}
