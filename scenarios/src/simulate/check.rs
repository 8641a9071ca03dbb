//! What must hold after every step of a simulated run, whatever happened.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use floe_consensus::Event;
use floe_protocol::{AttemptId, Fence, JobId, MeshId, NodeId, RequestId};

use super::node::{Node, Note};

/// A node from one start to its end.
type Life = (NodeId, u64);

/// Something that a driver was told and must stay true.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise {
    pub(super) job: JobId,
    /// Whether it was told that the job has ended.
    pub(super) ended: bool,
    /// The term of whoever said so.
    pub(super) term: u64,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Checker {
    meshes: BTreeSet<MeshId>,
    leaders: BTreeMap<u64, NodeId>,
    states: BTreeMap<u64, (u64, NodeId)>,
    applied: BTreeMap<Life, u64>,
    promises: Vec<Promise>,
    accepted: BTreeSet<(Life, JobId)>,
    ended: BTreeSet<(Life, JobId)>,
    outcomes: BTreeMap<RequestId, bool>,
    fences: BTreeMap<Life, Fence>,
    assigned: BTreeMap<AttemptId, (NodeId, Fence)>,
}

impl Checker {
    /// A driver was told something.
    pub(super) fn promised(&mut self, promise: Promise) {
        self.promises.push(promise);
    }

    /// The jobs that drivers know to be accepted.
    pub(super) fn promises(&self) -> &[Promise] {
        &self.promises
    }

    /// What a node did or saw.
    pub(super) fn note(&mut self, node: &Node, note: &Note) -> Result<(), String> {
        let life = (node.id(), node.member.incarnation);
        match note {
            Note::Event(event) => self.event(life, node, event),
            Note::Obeyed(fence) => {
                let highest = self.fences.entry(life).or_default();
                *highest = (*highest).max(*fence);
                Ok(())
            }
            Note::Accepted { attempt, fence } => match self.fences.get(&life) {
                Some(highest) if highest > fence => Err(format!(
                    "n{} takes attempt {attempt} from a leader at fence {fence} after orders at fence {highest}",
                    life.0.0
                )),
                _ => Ok(()),
            },
            Note::Assigned { attempt, fence, to } => match self.assigned.insert(*attempt, (*to, *fence)) {
                Some(earlier) if earlier != (*to, *fence) => Err(format!(
                    "attempt {attempt} is given to n{} at fence {fence} and was given to n{} at fence {}",
                    to.0, earlier.0.0, earlier.1
                )),
                _ => Ok(()),
            },
        }
    }

    /// What a node is after a step.
    pub(super) fn look(&mut self, node: &Node) -> Result<(), String> {
        let id = node.id();
        if node.replica.leads() {
            let term = node.replica.fence().term;
            let leader = *self.leaders.entry(term).or_insert(id);
            if leader != id {
                return Err(format!("n{} and n{} lead in term {term}", leader.0, id.0));
            }
        }
        let state = node.replica.state();
        let applied = state.applied();
        let before = self.applied.insert((id, node.member.incarnation), applied).unwrap_or(0);
        if applied < before {
            return Err(format!("n{} goes back from entry {before} to {applied}", id.0));
        }
        if applied == before || applied == 0 {
            return Ok(());
        }
        let snapshot = state.snapshot().map_err(|error| format!("n{} has no snapshot: {error}", id.0))?;
        let mut hasher = DefaultHasher::new();
        snapshot.hash(&mut hasher);
        let hash = hasher.finish();
        let (known, first) = *self.states.entry(applied).or_insert((hash, id));
        if known != hash {
            return Err(format!("n{} and n{} differ in their state at entry {applied}", first.0, id.0));
        }
        Ok(())
    }

    fn event(&mut self, life: Life, node: &Node, event: &Event) -> Result<(), String> {
        match event {
            Event::MeshFounded { mesh } => {
                self.meshes.insert(*mesh);
                if self.meshes.len() > 1 {
                    return Err(format!("n{} founds a second mesh", life.0.0));
                }
            }
            Event::JobAccepted { job, .. } if !self.accepted.insert((life, *job)) => {
                return Err(format!("n{} accepts job {job} twice", life.0.0));
            }
            Event::JobEnded { job, .. } if !self.ended.insert((life, *job)) => {
                return Err(format!("n{} ends job {job} twice", life.0.0));
            }
            Event::Applied { request, outcome } => {
                let ok = *self.outcomes.entry(*request).or_insert(outcome.is_ok());
                if ok != outcome.is_ok() {
                    return Err(format!("request {request} succeeds here and is refused there: {outcome:?}"));
                }
            }
            Event::Elected { term } => return self.keeps_promises(node, *term),
            _ => {}
        }
        Ok(())
    }

    /// A leader knows all that earlier ones have confirmed.
    fn keeps_promises(&self, node: &Node, term: u64) -> Result<(), String> {
        for promise in self.promises.iter().filter(|promise| promise.term < term) {
            let Promise { job, ended, term: since } = promise;
            match node.replica.state().job(*job) {
                None => {
                    return Err(format!(
                        "n{} leads in term {term} without job {job}, accepted in term {since}",
                        node.id().0
                    ));
                }
                Some(known) if *ended && !known.phase.is_terminal() => {
                    return Err(format!(
                        "n{} leads in term {term} and runs job {job}, which ended in term {since}",
                        node.id().0
                    ));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}
