//! Two eras with one mesh key meet, and become one.
//!
//! ```text
//!   both of one epoch: say what they have done, each once ──> the one that did less is the loser
//!
//!   loser: sees an era that wins ──> frozen: hands its jobs over ──all adopted──> yields ──applied──> leaves, joins
//!                                      │                                          (every node of the era)
//!                                      └──too slow──> thawed for a while, then again
//!
//!   stranded: no leader, and an era that wins and that this one ended with ──> hands its jobs over ──> leaves, joins
//! ```
//!
//! Everything is said again until it is answered. Adopting a job twice changes nothing; and the era yields only
//! if no job changed since it was handed over, by whichever leader, so freezing merely keeps it from being in
//! vain. Logs are never merged: whoever leaves an era joins the other with an empty log.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use floe_protocol::message::MeshView;
use floe_protocol::{Claim, Era, JobId, NodeId, PeerMessage, RequestId, frame};

use serde::{Deserialize, Serialize};

use super::{MAX_VIEW_MEMBERS, Participant};
use crate::command::{Command, Entry};
use crate::log::MAX_LEFT;
use crate::membership::has_left;
use crate::state_machine::{
    Job, KeyChanges, MAX_ENDED_ERAS, MAX_FORGOTTEN, MAX_ROTATIONS, StateMachine, Tombstone,
};

/// How often a node of another era is told of this one.
const TELL_MS: u64 = 1_000;

/// How many are told in one such interval, unless they ask.
const MAX_TOLD: usize = 16;

/// What a node said of its era counts for this long.
const VIEW_MS: u64 = 4_000;

/// How many nodes of other eras are remembered.
const MAX_SEEN: usize = 64;

/// A node without a leader for this long counts as stranded, if the others have gone on.
const STRANDED_MS: u64 = 3_000;

/// How long an answer to jobs handed over may take before they are handed over again.
const HAND_OVER_MS: u64 = 1_000;

/// Jobs are handed over in messages of at most this size, or one at a time.
const HAND_OVER_BYTES: usize = 1 << 20;

/// A leader that hands over accepts nothing new, for at most this long; then it goes on as before for as long, and
/// tries again.
const FROZEN_MS: u64 = 10_000;

/// How often the time in between is doubled, if the other side takes nothing over: it may be full for a while, and this
/// one had better go on meanwhile.
const MAX_DOUBLINGS: u32 = 5;

/// Adoptions that wait to be agreed on. Beyond it whoever hands over says it again.
const MAX_ADOPTING: usize = 16;

/// What a node knows of other eras.
#[derive(Debug, Default)]
pub(super) struct Healing {
    /// What nodes of other eras said, and when.
    seen: BTreeMap<NodeId, (MeshView, u64)>,
    /// When nodes were last told of this era.
    told_ms: BTreeMap<NodeId, u64>,
    /// When all that should be were.
    rounds_ms: u64,
    /// When the leader was told of the era that wins, or a node of that era was dialled.
    passed_on_ms: u64,
    /// When it was last proposed what this era has done.
    claimed_ms: u64,
    leaderless_since_ms: Option<u64>,
    handing_over: Option<HandingOver>,
    thawed_until_ms: u64,
    /// How often in a row nothing was taken over while this era was frozen.
    in_vain: u32,
    /// On the winning side: proposals to adopt, for whom.
    adopting: BTreeMap<RequestId, Adopting>,
}

/// Where the handing over of this era's jobs stands.
#[derive(Debug)]
struct HandingOver {
    to: Era,
    /// Whether this node leads, and keeps everything else waiting.
    freezes: bool,
    since_ms: u64,
    said_ms: Option<u64>,
    /// What the jobs handed over are those of.
    jobs_changed: u64,
    /// Who is to answer. A late answer of another is of an era that this one was to go to before.
    asked: NodeId,
    adopted: BTreeSet<JobId>,
    /// Whether the other side has answered: it knows that this era ends.
    answered: bool,
}

#[derive(Debug)]
struct Adopting {
    by: NodeId,
    era: Era,
    jobs_changed: u64,
    jobs: Vec<JobId>,
}

/// What travels in [`PeerMessage::Adopt`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct HandedOver {
    /// Some of the era's jobs.
    pub jobs: Vec<(JobId, Job)>,
    /// Jobs of which no more is known than that they have ended.
    pub tombstones: Vec<(JobId, Tombstone)>,
    /// Nodes that must not come back.
    pub forgotten: Vec<NodeId>,
    /// Its changes of the mesh key.
    pub keys: KeyChanges,
}

impl Healing {
    /// Whether this node leads an era that is about to end.
    pub(super) fn is_frozen(&self) -> bool {
        self.handing_over.as_ref().is_some_and(|handing| handing.freezes)
    }

    /// Whether there is another era to come together with.
    pub(super) fn is_under_way(&self) -> bool {
        !self.seen.is_empty() || self.handing_over.is_some() || !self.adopting.is_empty()
    }

    /// A node is not connected any more.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.seen.remove(&node);
        self.told_ms.remove(&node);
    }

    /// This node does not lead any more.
    pub(super) fn deposed(&mut self) {
        self.handing_over = None;
        self.adopting.clear();
    }

    /// What is known of the era that wins over all others, if that is not `own`, nor one that this node has `left`:
    /// from a node that knows its leader, if possible.
    pub(super) fn winner(&self, own: Claim, left: &[Era]) -> Option<&MeshView> {
        // One that this era has ended with wins, also where it is not known here any more what this era had done.
        let wins = |view: &&MeshView| {
            let claim = view.claim().filter(|claim| claim.era != own.era);
            claim.is_some_and(|claim| match claim.wins_over(&own) {
                Some(wins) => wins,
                None => view.ended.contains(&own.era),
            })
        };
        let others = self.seen.values().map(|(view, _)| view).filter(wins);
        let open = others.filter(|view| view.era.is_some_and(|era| !has_left(left, era)));
        open.max_by(|one, other| {
            let rank = |view: &MeshView| (view.work_ms, view.era, view.leader.is_some(), view.node);
            let wins = one
                .claim()
                .zip(other.claim())
                .and_then(|(one, other)| (one.era != other.era).then(|| one.wins_over(&other)).flatten());
            match wins {
                Some(true) => Ordering::Greater,
                Some(false) => Ordering::Less,
                None => rank(one).cmp(&rank(other)),
            }
        })
    }

    /// A node of an era of which it is not known yet whether it wins.
    fn undecided(&self, own: Claim) -> Option<&MeshView> {
        let undecided = |view: &&MeshView| view.claim().is_some_and(|claim| claim.wins_over(&own).is_none());
        self.seen.values().map(|(view, _)| view).find(undecided)
    }
}

impl Participant {
    /// To be called at every tick: brings this era together with others that are seen.
    pub(super) fn heal(&mut self) {
        let now_ms = self.now_ms();
        let (Some(claim), None) = (self.state().claim(), self.leaving_for) else { return };
        let own = claim.era;
        self.healing.seen.retain(|_, (_, at_ms)| now_ms < *at_ms + VIEW_MS);
        self.healing.leaderless_since_ms = match self.leader() {
            Some(_) => None,
            None => self.healing.leaderless_since_ms.or(Some(now_ms)),
        };
        self.tell_strangers();
        self.compare(claim);
        let Some(view) = self.healing.winner(claim, self.replica.log().left()).cloned() else {
            self.healing.handing_over = None;
            return;
        };
        let leaderless_ms = self.healing.leaderless_since_ms.map_or(0, |since_ms| now_ms - since_ms);
        // If an era that went on from this one ended there, so did this one.
        let ended = view.ended.iter().chain(&view.era).any(|era| *era == own || era.supersedes(&own));
        if self.scheduler.is_some() || (ended && leaderless_ms >= STRANDED_MS) {
            self.hand_over(&view);
        } else {
            self.healing.handing_over = None;
            if let Some(leader) = self.leader().filter(|leader| *leader != self.member.id) {
                self.pass_on(leader, view);
            }
        }
    }

    /// Sees to it that what this era has done is agreed on, where that decides.
    fn compare(&mut self, own: Claim) {
        let now_ms = self.now_ms();
        let Some(view) = self.healing.undecided(own).cloned() else { return };
        match &self.scheduler {
            Some(scheduler) if own.work_ms.is_none() && now_ms >= self.healing.claimed_ms + TELL_MS => {
                let work_ms = self.state().done_ms().saturating_add(scheduler.work_under_way_ms());
                self.healing.claimed_ms = now_ms;
                self.decide(Command::Claim { work_ms });
            }
            Some(_) => {}
            None => {
                if let Some(leader) = self.leader().filter(|leader| *leader != self.member.id) {
                    self.pass_on(leader, view);
                }
            }
        }
    }

    /// A node said which era it is of; or another member of this one says what a node told it.
    pub(super) fn viewed(&mut self, from: NodeId, mut view: MeshView) {
        let Some(own) = self.state().claim() else { return };
        if view.node == self.member.id || (view.node != from && !self.state().members().contains_key(&from)) {
            return;
        }
        let wins = view.claim().map_or(Some(false), |claim| claim.wins_over(&own));
        if wins != Some(true) && view.era.is_some_and(|era| era != own.era) {
            self.tell(from);
        }
        if wins == Some(false) {
            self.healing.seen.remove(&view.node);
            return;
        }
        if self.healing.seen.len() < MAX_SEEN || self.healing.seen.contains_key(&view.node) {
            view.ended.truncate(MAX_ENDED_ERAS + MAX_LEFT);
            view.members.truncate(MAX_VIEW_MEMBERS);
            view.peers.clear();
            let now_ms = self.now_ms();
            self.healing.seen.insert(view.node, (view, now_ms));
        }
    }

    /// Tells a node which era this one is of, now and then.
    pub(super) fn tell(&mut self, node: NodeId) {
        let (now_ms, told_ms) = (self.now_ms(), &mut self.healing.told_ms);
        if self.replica.state().era().is_none()
            || told_ms.get(&node).is_some_and(|at_ms| now_ms < at_ms + TELL_MS)
        {
            return;
        }
        told_ms.insert(node, now_ms);
        let view = self.view(node);
        self.send(node, PeerMessage::View(Box::new(view)));
    }

    /// Tells those who may be of another era: who is no member; and without a leader, anyone.
    fn tell_strangers(&mut self) {
        if self.now_ms() < self.healing.rounds_ms + TELL_MS {
            return;
        }
        self.healing.rounds_ms = self.now_ms();
        let leaderless = self.healing.leaderless_since_ms.is_some();
        let members = self.state().members();
        let mut strangers: Vec<_> =
            self.connected.iter().filter(|node| leaderless || !members.contains_key(node)).copied().collect();
        // Whoever was told longest ago comes first, so that all have their turn.
        strangers.sort_by_key(|node| self.healing.told_ms.get(node).copied());
        for node in strangers.into_iter().take(MAX_TOLD) {
            self.tell(node);
        }
    }

    /// Lets this era's leader know of the one that wins.
    fn pass_on(&mut self, leader: NodeId, view: MeshView) {
        if self.now_ms() >= self.healing.passed_on_ms + TELL_MS {
            self.healing.passed_on_ms = self.now_ms();
            self.send(leader, PeerMessage::View(Box::new(view)));
        }
    }

    /// Gives this era's jobs to the leader of the one that wins, and then ends it; or, where there is no leader to
    /// agree on that, this node's part in it.
    fn hand_over(&mut self, view: &MeshView) {
        let (Some(to), Some(leader)) = (view.era, view.leader) else {
            self.healing.handing_over = None;
            return;
        };
        let now_ms = self.now_ms();
        if now_ms < self.healing.thawed_until_ms {
            return;
        }
        if !self.is_connected(leader) {
            self.healing.handing_over = None;
            if now_ms >= self.healing.passed_on_ms + TELL_MS {
                self.healing.passed_on_ms = now_ms;
                for member in view.members.clone() {
                    self.dial(member);
                }
            }
            return;
        }
        let waits = |handing: &HandingOver| {
            handing.to == to && handing.said_ms.is_some_and(|said_ms| now_ms < said_ms + HAND_OVER_MS)
        };
        // To look at all the jobs at every tick would be dear.
        if self.healing.handing_over.as_ref().is_some_and(waits) {
            return;
        }
        let freezes = self.scheduler.is_some();
        let outlook;
        let state = if freezes {
            self.replica.state()
        } else {
            outlook = self.replica.outlook();
            &outlook
        };
        let jobs_changed = state.jobs_changed();
        let fresh = || HandingOver {
            to,
            freezes,
            since_ms: now_ms,
            said_ms: None,
            jobs_changed,
            asked: leader,
            adopted: BTreeSet::new(),
            answered: false,
        };
        let handing = self.healing.handing_over.get_or_insert_with(fresh);
        if handing.to != to || handing.freezes != freezes {
            *handing = fresh();
        }
        if now_ms >= handing.since_ms + FROZEN_MS {
            self.healing.handing_over = None;
            self.healing.thawed_until_ms = now_ms + (FROZEN_MS << self.healing.in_vain.min(MAX_DOUBLINGS));
            self.healing.in_vain = self.healing.in_vain.saturating_add(1);
            return;
        }
        if handing.jobs_changed != jobs_changed {
            *handing = HandingOver { since_ms: handing.since_ms, ..fresh() };
        }
        (handing.said_ms, handing.asked) = (Some(now_ms), leader);
        match next_batch(state, &handing.adopted) {
            None if handing.answered && freezes => {
                let members = view.members.clone();
                let request = self.next_request();
                let entry = Entry { request, command: Command::Yield { to, members, jobs_changed } };
                // Said again after a while if it is lost.
                let _ = self.replica.propose(&entry);
            }
            None if handing.answered => self.leave_for(to, view.members.clone()),
            batch => {
                // What is only known to have ended goes with the first of them.
                let tombstones = if handing.answered { Vec::new() } else { state.tombstones().collect() };
                let forgotten = state.door().forgotten().iter().copied().collect();
                let keys = state.door().keys().clone();
                let handed = HandedOver { jobs: batch.unwrap_or_default(), tombstones, forgotten, keys };
                let Ok(jobs) = frame::encode(&handed) else { return };
                let Some(claim) = state.claim() else { return };
                let ended = state.ended_eras().collect();
                let jobs = Bytes::from(jobs);
                self.send(leader, PeerMessage::Adopt { claim, ended, jobs_changed, jobs });
            }
        }
    }

    /// The other side has agreed to have these jobs.
    pub(super) fn handed_over(&mut self, from: NodeId, era: Era, jobs_changed: u64, jobs: Vec<JobId>) {
        if self.state().era() != Some(era) {
            return;
        }
        let Some(handing) = &mut self.healing.handing_over else { return };
        if handing.jobs_changed == jobs_changed && handing.asked == from {
            handing.answered = true;
            self.healing.in_vain = 0;
            handing.adopted.extend(jobs);
            handing.said_ms = None;
            self.heal();
        }
    }

    /// A node of an era that loses hands its jobs over: the mesh must agree to have them.
    pub(super) fn adopt(
        &mut self,
        from: NodeId,
        claim: Claim,
        ended: Vec<Era>,
        jobs_changed: u64,
        jobs: &[u8],
    ) {
        if !self.state().takes_over(&claim) {
            return;
        }
        let era = claim.era;
        let waits = self.healing.adopting.values().any(|adopting| adopting.by == from);
        if self.scheduler.is_none() || waits || self.healing.adopting.len() >= MAX_ADOPTING {
            return;
        }
        let Ok(HandedOver { jobs, tombstones, mut forgotten, mut keys }) = frame::decode(jobs) else {
            return;
        };
        forgotten.truncate(MAX_FORGOTTEN);
        keys.line.truncate(MAX_ROTATIONS);
        keys.strayed.truncate(MAX_ROTATIONS);
        let request = self.next_request();
        let ids = jobs.iter().map(|(id, _)| *id).collect();
        let entry =
            Entry { request, command: Command::Adopt { claim, ended, jobs, tombstones, forgotten, keys } };
        if self.propose(&entry).is_ok() {
            self.healing.adopting.insert(request, Adopting { by: from, era, jobs_changed, jobs: ids });
        }
    }

    /// A proposal was agreed on: if it was to adopt jobs, whoever handed them over may forget them.
    pub(super) fn adoption_applied(&mut self, request: RequestId, adopted: bool) {
        let Some(Adopting { by, era, jobs_changed, jobs }) = self.healing.adopting.remove(&request) else {
            return;
        };
        if adopted {
            self.send(by, PeerMessage::Adopted { era, jobs_changed, jobs });
        }
    }
}

/// Some of the jobs that the other side does not have yet; `None` if it has all.
fn next_batch(state: &StateMachine, adopted: &BTreeSet<JobId>) -> Option<Vec<(JobId, Job)>> {
    let mut bytes = 0;
    let left = state.jobs().iter().filter(|(id, _)| !adopted.contains(id));
    let fits = |(_, job): &(&JobId, &Arc<Job>)| {
        let first = bytes == 0;
        bytes += job.weight_bytes();
        first || bytes <= HAND_OVER_BYTES
    };
    let batch: Vec<_> = left.take_while(fits).map(|(id, job)| (*id, Job::clone(job))).collect();
    (!batch.is_empty()).then_some(batch)
}
