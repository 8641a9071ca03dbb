//! Standing jobs ([`Work::Calls`]): nothing of them is assigned. They end when their drivers say so, and here when
//! no node has had anything to do with the driver for a while.

use floe_protocol::{Failure, JobId};

use super::Scheduler;
use super::job::Job;
use crate::state_machine::is_standing;

/// A standing job whose driver no node is connected to for this long is ended. Nodes say which drivers they are
/// connected to with every inventory, that is every [`super::RECONCILE_MS`], and a driver that loses its node comes
/// back through another within seconds.
pub const SESSION_PATIENCE_MS: u64 = 60_000;

impl Job {
    /// Whether it is a driver's calls, and nothing else.
    pub(super) fn is_standing(&self) -> bool {
        is_standing(&self.graph)
    }
}

impl Scheduler {
    /// The drivers of these jobs are connected to a node.
    pub(super) fn attended(&mut self, sessions: &[JobId]) {
        for id in sessions {
            if let Some(attended_ms) = self.jobs.get_mut(id).and_then(|job| job.attended_ms.as_mut()) {
                *attended_ms = self.now_ms;
            }
        }
    }

    /// Ends a standing job whose driver is gone.
    pub(super) fn check_attended(&mut self, id: JobId) {
        let Some(attended_ms) = self.jobs.get(&id).and_then(|job| job.attended_ms) else { return };
        if self.now_ms >= attended_ms + SESSION_PATIENCE_MS {
            let seconds = SESSION_PATIENCE_MS / 1_000;
            let message =
                format!("its driver is gone: it has not been connected to any node for {seconds} seconds");
            self.fail(id, Failure::Refused { message });
        }
    }
}
