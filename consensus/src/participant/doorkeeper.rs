//! On the leader: when invitations expire, and when a key that was changed counts no more.
//!
//! The time is this leader's own and counts from when it first saw them: a new leader gives them their whole time again,
//! and time in which this node heard nobody does not pass ([`crate::Clock`]). No clock of another machine is asked.

use std::collections::BTreeMap;

use floe_protocol::{InvitationId, KeyName};

use super::Participant;
use crate::command::Command;
use crate::state_machine::{FormerKey, FormerOf};

/// How long drivers may come with the former key whose connections break while the nodes change it.
const FORMER_FOR_DRIVERS_MS: u64 = 60_000;

/// How long members may that were away, with each of the keys that they missed: a laptop that comes back from a holiday.
const FORMER_FOR_MEMBERS_MS: u64 = 14 * 24 * 3_600_000;

/// How often a decision is proposed that does not come about.
const PROPOSE_RETRY_MS: u64 = 1_000;

/// Since when this leader knows of what.
#[derive(Debug, Default)]
pub(super) struct Doorkeeper {
    invitations: BTreeMap<InvitationId, u64>,
    /// By what followed on the former key.
    former: BTreeMap<KeyName, (FormerKey, u64)>,
    said_ms: Option<u64>,
}

impl Participant {
    /// To be called several times a second: proposes what is due.
    pub(super) fn keep_door(&mut self) {
        if self.scheduler.is_none() {
            return;
        }
        let now_ms = self.now_ms();
        let door = self.replica.state().door();
        let keeper = &mut self.doorkeeper;
        let open = door.invitations().iter().filter(|(_, invitation)| invitation.is_open());
        let open: BTreeMap<_, _> = open.map(|(id, invitation)| (*id, invitation.lasts_ms)).collect();
        keeper.invitations.retain(|id, _| open.contains_key(id));
        let mut due = Vec::new();
        for (id, lasts_ms) in open {
            let since_ms = *keeper.invitations.entry(id).or_insert(now_ms);
            if now_ms >= since_ms.saturating_add(lasts_ms) {
                due.push(id);
            }
        }
        let mut commands = Vec::new();
        if !due.is_empty() {
            commands.push(Command::ExpireInvitations { invitations: due });
        }
        let before = std::mem::take(&mut keeper.former);
        for FormerOf { change: to, counts_for: stage, .. } in door.former_keys() {
            let known = before.get(&to).filter(|(known, _)| *known == stage);
            let (_, since_ms) = known.copied().unwrap_or((stage, now_ms));
            keeper.former.insert(to, (stage, since_ms));
            let next = match stage {
                FormerKey::Drivers => Some((FormerKey::Members, FORMER_FOR_DRIVERS_MS)),
                FormerKey::Members => Some((FormerKey::Nobody, FORMER_FOR_MEMBERS_MS)),
                FormerKey::Nobody => None,
            };
            if let Some((former, lasts_ms)) = next
                && now_ms >= since_ms + lasts_ms
            {
                commands.push(Command::RetireKey { to, former });
            }
        }
        if commands.is_empty() || keeper.said_ms.is_some_and(|said_ms| now_ms < said_ms + PROPOSE_RETRY_MS) {
            return;
        }
        keeper.said_ms = Some(now_ms);
        for command in commands {
            self.decide(command);
        }
    }
}
