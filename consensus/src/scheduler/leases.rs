//! Results are leases: one that nobody collects nor releases goes when nobody has read it for a while, so that a mesh
//! whose drivers die does not fill up.
//!
//! The time is this leader's own, and counts from when it learnt of the result: a new leader gives every result its
//! whole time again, and time in which this node heard nobody does not pass ([`crate::Clock`]).

use std::collections::{BTreeMap, BTreeSet};

use floe_protocol::{Freed, JobId, WhyFreed};

use super::placement::Standing;
use super::{Effect, PROPOSE_RETRY_MS, Scheduler};
use crate::command::Command;

/// How long a result is kept that nobody reads.
pub const RESULT_LEASE_MS: u64 = 60 * 60 * 1_000;

/// Results that are freed by one entry of the log.
const MAX_EXPIRED: usize = 1_024;

/// Until when results are kept.
#[derive(Debug, Default)]
pub(super) struct Leases {
    until_ms: BTreeMap<JobId, u64>,
    /// The same, the earliest first.
    in_order: BTreeSet<(u64, JobId)>,
}

impl Leases {
    /// A result is kept until then.
    pub(super) fn set(&mut self, id: JobId, until_ms: u64) {
        if let Some(before_ms) = self.until_ms.insert(id, until_ms) {
            self.in_order.remove(&(before_ms, id));
        }
        self.in_order.insert((until_ms, id));
    }

    /// There is no result any more.
    pub(super) fn end(&mut self, id: JobId) {
        if let Some(until_ms) = self.until_ms.remove(&id) {
            self.in_order.remove(&(until_ms, id));
        }
    }

    /// Those that ran out before this.
    fn expired(&self, told_ms: u64) -> Vec<JobId> {
        let due = self.in_order.iter().take_while(|(until_ms, _)| *until_ms < told_ms);
        due.take(MAX_EXPIRED).map(|(_, id)| *id).collect()
    }
}

impl Scheduler {
    /// A job has a result, or somebody reads it.
    pub(super) fn renew_lease(&mut self, id: JobId) {
        self.leases.set(id, self.now_ms + RESULT_LEASE_MS);
    }

    /// Drivers read these results, or did a moment ago.
    pub(super) fn read(&mut self, jobs: &[JobId]) {
        for id in jobs {
            if self.leases.until_ms.contains_key(id) {
                self.renew_lease(*id);
            }
        }
    }

    /// Frees results whose leases had run out when every node last said what is read there. It is proposed until it
    /// applies.
    pub(super) fn expire(&mut self) {
        let there = self.nodes.iter().filter(|(_, node)| node.standing != Standing::Absent);
        let told_ms = there.map(|(_, node)| node.told_ms).min().unwrap_or(0);
        let jobs = self.leases.expired(told_ms);
        if jobs.is_empty() {
            return;
        }
        for id in &jobs {
            self.leases.set(*id, self.now_ms + PROPOSE_RETRY_MS);
        }
        let freed = Freed { why: WhyFreed::Expired, at: self.wall };
        self.effects.push(Effect::Propose(Command::Release { jobs, freed }));
    }
}
