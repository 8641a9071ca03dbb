//! What must hold after every step of a simulated run, whatever happened. Eras are histories of their own: what
//! holds within one need not hold between two, until one of them has ended in the other.

use std::collections::{BTreeMap, BTreeSet};

use floe_consensus::Event;
use floe_consensus::state_machine::Job;
use floe_protocol::{AttemptId, Era, Failure, Fence, Freed, JobId, JobPhase, NodeId, RequestId, WhyFreed};

use super::digest::Digests;
use super::node::{Node, Note};

/// A node from one start to its end.
type Life = (NodeId, u64);

/// What drivers were told of a job in one era, and must stay true there and in the era that follows.
#[derive(Clone, Copy, Debug)]
struct Promise {
    /// In which term it was known.
    known: u64,
    /// In which term it was known to have ended.
    ended: Option<u64>,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(super) struct Checker {
    leaders: BTreeMap<(Era, u64), NodeId>,
    states: BTreeMap<(Era, u64), (u64, NodeId)>,
    applied: BTreeMap<(Life, Era), u64>,
    digests: BTreeMap<NodeId, Digests>,
    promises: BTreeMap<(Era, JobId), Promise>,
    /// Jobs that an era has agreed on, and whether they have ended.
    agreed: BTreeMap<(Era, JobId), bool>,
    accepted: BTreeSet<(Life, Era, JobId)>,
    ended: BTreeSet<(Life, Era, JobId)>,
    /// How jobs have ended, each in some era.
    ends: BTreeMap<JobId, BTreeSet<&'static str>>,
    outcomes: BTreeMap<(Era, RequestId), bool>,
    fences: BTreeMap<Life, Fence>,
    assigned: BTreeMap<(Era, AttemptId), (NodeId, Fence)>,
    left: BTreeSet<(NodeId, Era)>,
    /// Jobs whose results their drivers do not want any more.
    unwanted: BTreeSet<JobId>,
    /// Nodes of an era that died of a job.
    died_of: BTreeMap<(Option<Era>, JobId), Vec<NodeId>>,
}

/// Nodes that one job may take with it in one era, at most: less than a majority of three.
const MAX_DIED: usize = 1;

impl Checker {
    /// A driver was told that a job is known, or that it has ended.
    pub(super) fn promised(&mut self, job: JobId, ended: bool, fence: Fence) {
        let term = fence.term;
        let promise = self.promises.entry((fence.era, job)).or_insert(Promise { known: term, ended: None });
        promise.known = promise.known.min(term);
        if ended {
            promise.ended = Some(promise.ended.map_or(term, |earlier| earlier.min(term)));
        }
    }

    /// A driver is about to say that it does not want a job's result any more.
    pub(super) fn unwanted(&mut self, job: JobId) {
        self.unwanted.insert(job);
    }

    /// The jobs that drivers know to be accepted.
    pub(super) fn promised_jobs(&self) -> BTreeSet<JobId> {
        self.promises.keys().map(|(_, job)| *job).collect()
    }

    /// A node died of a job.
    pub(super) fn died_of(&mut self, era: Option<Era>, job: JobId, node: NodeId) -> Result<(), String> {
        let died = self.died_of.entry((era, job)).or_default();
        died.push(node);
        if died.len() > MAX_DIED {
            return Err(format!("{} nodes died of job {job}: {died:?}", died.len()));
        }
        Ok(())
    }

    /// How many eras there were.
    pub(super) fn eras(&self) -> usize {
        self.leaders.keys().map(|(era, _)| *era).collect::<BTreeSet<_>>().len()
    }

    /// What a node did or saw.
    pub(super) fn note(&mut self, node: &Node, note: &Note) -> Result<(), String> {
        let life = (node.id(), node.start_mark());
        match note {
            Note::Event(fence, event) => match fence {
                Some(fence) => self.event(life, node, *fence, event),
                None => Ok(()),
            },
            Note::Obeyed(fence) => {
                self.is_of(node, *fence)?;
                let highest = self.fences.entry(life).or_insert(*fence);
                if highest.era != fence.era || highest.term < fence.term {
                    *highest = *fence;
                }
                Ok(())
            }
            Note::Accepted { attempt, fence } => {
                self.is_of(node, *fence)?;
                match self.fences.get(&life) {
                    Some(highest) if highest.era == fence.era && highest.term > fence.term => Err(format!(
                        "n{} takes attempt {attempt} from a leader at fence {fence} after orders at fence {highest}",
                        life.0.0
                    )),
                    _ => Ok(()),
                }
            }
            Note::Assigned { attempt, fence, to } => {
                match self.assigned.insert((fence.era, *attempt), (*to, *fence)) {
                    Some(earlier) if earlier != (*to, *fence) => Err(format!(
                        "attempt {attempt} is given to n{} at fence {fence} and was given to n{} at fence {}",
                        to.0, earlier.0.0, earlier.1
                    )),
                    _ => Ok(()),
                }
            }
            Note::Left(era) => {
                self.left.insert((life.0, *era));
                self.fences.remove(&life);
                Ok(())
            }
        }
    }

    /// An order is of the node's own era.
    fn is_of(&self, node: &Node, fence: Fence) -> Result<(), String> {
        let id = node.id();
        if self.left.contains(&(id, fence.era)) {
            return Err(format!("n{} follows an order of {}, which it has left", id.0, fence.era));
        }
        match node.era() {
            Some(era) if era != fence.era => {
                Err(format!("n{} follows an order of {}, being of {era}", id.0, fence.era))
            }
            _ => Ok(()),
        }
    }

    /// What a node is after a step.
    pub(super) fn look(&mut self, node: &Node) -> Result<(), String> {
        let id = node.id();
        let Some(fence) = node.fence() else { return Ok(()) };
        let Fence { era, term } = fence;
        if self.left.contains(&(id, era)) {
            return Err(format!("n{} is back in {era}, which it has left", id.0));
        }
        if node.participant.replica().leads() {
            let leader = *self.leaders.entry((era, term)).or_insert(id);
            if leader != id {
                return Err(format!("n{} and n{} lead in term {term} of {era}", leader.0, id.0));
            }
        }
        let state = node.state();
        let applied = state.applied();
        let before = self.applied.insert(((id, node.start_mark()), era), applied).unwrap_or(0);
        if applied < before {
            return Err(format!("n{} goes back from entry {before} to {applied} of {era}", id.0));
        }
        if applied == before || applied == 0 {
            return Ok(());
        }
        let digest = self.digests.entry(id).or_default().of(state);
        let hash = digest.map_err(|error| format!("n{} has no snapshot: {error}", id.0))?;
        let (known, first) = *self.states.entry((era, applied)).or_insert_with(|| {
            for (job, of) in state.jobs() {
                *self.agreed.entry((era, *job)).or_default() |=
                    of.phase.is_terminal() || !of.other_ends.is_empty();
            }
            (hash, id)
        });
        if known != hash {
            return Err(format!(
                "n{} and n{} differ in their state at entry {applied} of {era}",
                first.0, id.0
            ));
        }
        Ok(())
    }

    fn event(&mut self, life: Life, node: &Node, fence: Fence, event: &Event) -> Result<(), String> {
        let (id, era) = (life.0.0, fence.era);
        match event {
            Event::JobAccepted { job, .. } => {
                if !self.accepted.insert((life, era, *job)) {
                    return Err(format!("n{id} accepts job {job} twice in {era}"));
                }
                self.promised(*job, false, fence);
            }
            // Whoever watches the job hears of it.
            Event::JobEnded { job, phase } => {
                self.ends.entry(*job).or_default().insert(phase.name());
                if !self.ended.insert((life, era, *job)) {
                    return Err(format!("n{id} ends job {job} twice in {era}"));
                }
                self.promised(*job, true, fence);
            }
            Event::JobsFreed { jobs, freed } => {
                return jobs.iter().try_for_each(|job| self.may_be_freed(id, *job, *freed));
            }
            // An era that has ended refuses what it did before.
            Event::Applied { outcome: Err(Failure::Unavailable { .. }), .. } => {}
            Event::Applied { request, outcome } => {
                let ok = *self.outcomes.entry((era, *request)).or_insert(outcome.is_ok());
                if ok != outcome.is_ok() {
                    return Err(format!("request {request} succeeds here and is refused there: {outcome:?}"));
                }
            }
            Event::Elected { term } if node.era() == Some(era) => {
                return self.keeps_promises(node, era, *term);
            }
            Event::Yielded { to, .. } => return self.hands_over(era, *to),
            _ => {}
        }
        Ok(())
    }

    /// A result goes when nobody wants it, or when it is lost. No run lasts as long as a lease.
    fn may_be_freed(&self, id: u64, job: JobId, freed: Freed) -> Result<(), String> {
        let wanted = match freed.why {
            WhyFreed::Released => !self.unwanted.contains(&job),
            WhyFreed::Expired => true,
            WhyFreed::Lost | WhyFreed::Failed | WhyFreed::Cancelled | WhyFreed::Closed => false,
        };
        if wanted {
            return Err(format!("n{id} frees the result of job {job} while it is wanted: {freed}"));
        }
        Ok(())
    }

    /// In the end every end that a driver may have been told of is the job's, or shown beside it.
    pub(super) fn shows_ends(&self, id: JobId, job: &Job) -> Result<(), String> {
        let shown: BTreeSet<_> =
            [&job.phase].into_iter().chain(&job.other_ends).map(JobPhase::name).collect();
        let told = self.ends.get(&id).into_iter().flatten();
        match told.copied().find(|end| !shown.contains(end)) {
            Some(end) => Err(format!("job {id} was said to be {end}, and is shown as {shown:?}")),
            None => Ok(()),
        }
    }

    /// What was promised in an era.
    fn promises_of(&self, era: Era) -> impl Iterator<Item = (JobId, Promise)> {
        let range = (era, JobId(0))..=(era, JobId(u64::MAX));
        self.promises.range(range).map(|((_, job), promise)| (*job, *promise))
    }

    /// A leader knows all that earlier ones of its era have confirmed.
    fn keeps_promises(&self, node: &Node, era: Era, term: u64) -> Result<(), String> {
        let id = node.id().0;
        for (job, Promise { known, ended }) in self.promises_of(era) {
            match node.state().job(job) {
                None if known < term => {
                    return Err(format!(
                        "n{id} leads in term {term} of {era} without job {job}, accepted in term {known}"
                    ));
                }
                Some(of)
                    if ended.is_some_and(|ended| ended < term)
                        && !of.phase.is_terminal()
                        && of.other_ends.is_empty() =>
                {
                    return Err(format!(
                        "n{id} leads in term {term} of {era} and runs job {job}, which has ended: {ended:?}"
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// An era ends only when all that it promised is agreed on in one that wins over it, which has to keep it. That
    /// is `to`, or what has become of `to` meanwhile.
    fn hands_over(&mut self, era: Era, to: Era) -> Result<(), String> {
        // Of two eras of one epoch it depends on what they did which of them goes on.
        let sibling = |heir: &Era| (heir.mesh, heir.epoch) == (era.mesh, era.epoch) && *heir != era;
        let heirs = self.leaders.keys().map(|(heir, _)| *heir);
        let heirs: BTreeSet<_> = heirs.filter(|heir| *heir > era || sibling(heir)).collect();
        for (job, promise) in self.promises_of(era).collect::<Vec<_>>() {
            let known = heirs.iter().filter_map(|heir| Some((*heir, *self.agreed.get(&(*heir, job))?)));
            let known: Vec<_> = known.filter(|(_, ended)| *ended || promise.ended.is_none()).collect();
            if known.is_empty() {
                let what = if promise.ended.is_some() { ", which ended in it," } else { "" };
                return Err(format!("{era} has ended, and job {job}{what} is not known in {to}"));
            }
            for (heir, ended) in known {
                let terms = self.leaders.range((heir, 0)..=(heir, u64::MAX));
                let term = terms.last().map_or(0, |((_, term), _)| *term);
                self.promised(job, ended, Fence { era: heir, term });
            }
        }
        Ok(())
    }
}
