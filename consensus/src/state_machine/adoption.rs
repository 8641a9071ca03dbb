//! Taking over another era's jobs: what becomes of those that both know, and of ends that contradict each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use floe_protocol::job::MAX_OTHER_ENDS;
use floe_protocol::{Claim, Era, Failure, Freed, JobId, JobPhase, WhyFreed};

use super::job::{check_job, ends_bytes};
use super::{Job, MAX_ADOPTED_BYTES, MAX_ENDED_ERAS, StateMachine, Tombstone, refused};
use crate::event::Event;

impl StateMachine {
    /// Takes over another era's jobs. Of a job that both know, whichever says that it ended is right: somebody
    /// may have been told so.
    pub(super) fn adopt(
        &mut self,
        claim: &Claim,
        ended: &[Era],
        jobs: &[(JobId, Job)],
        tombstones: &[(JobId, Tombstone)],
        events: &mut Vec<Event>,
    ) -> Result<(), Failure> {
        // Looked at as a whole first, so that a refusal changes nothing.
        let mut weights = BTreeMap::new();
        for (id, job) in jobs {
            let weight = check_job(job);
            let weight = weight.map_err(|error| refused(format!("job {id} cannot be adopted: {error}")))?;
            weights.insert(*id, weight);
        }
        let new = |(id, job): &&(JobId, Job)| match self.find(*id) {
            Ok(known) => takes_result(known, job),
            Err(Failure::NoSuchJob { .. }) => job.work.is_some(),
            Err(_) => {
                job.has_result() && self.history.tombstone(*id).is_some_and(|known| gives_way(known.freed))
            }
        };
        let more: usize = jobs.iter().filter(new).map(|(id, _)| weights[id]).sum();
        if more > 0 && self.work_bytes + more > MAX_ADOPTED_BYTES {
            let message = "the mesh is full: it can take another's jobs when some of its own have ended";
            return Err(Failure::Unavailable { message: message.to_owned() });
        }
        for era in self.ends_with(claim, ended).into_iter().take(MAX_ENDED_ERAS) {
            if !self.ended_eras.contains(&era) {
                self.ended_eras.push_back(era);
                // Whoever takes over from this era must know of those too.
                self.jobs_changed = self.applied;
            }
        }
        while self.ended_eras.len() > MAX_ENDED_ERAS {
            self.ended_eras.pop_front();
        }
        for (id, tombstone) in tombstones {
            match self.find(*id).map(|job| job.phase.is_terminal()) {
                Err(Failure::NoSuchJob { .. }) => {
                    self.history.bury(*id, *tombstone);
                    self.jobs_changed = self.applied;
                }
                Ok(false) if tombstone.of_the_job => self.end_as_buried(*id, *tombstone, events),
                // What the other part of the mesh lacked says nothing of a job that runs here.
                Ok(_) => {
                    self.note_buried(*id, *tombstone);
                    self.follow_release(*id, Some(tombstone.freed), events);
                }
                // Of two ends of which no more is known the first one stays.
                Err(_) => {}
            }
        }
        for (id, job) in jobs {
            let mut buried = None;
            let known = match self.find(*id) {
                Ok(known) => Some(known.phase.is_terminal()),
                Err(Failure::NoSuchJob { .. }) => None,
                Err(_) => match self.history.tombstone(*id).filter(|known| known.gives_way(*id, job)) {
                    Some(tombstone) => {
                        self.history.unbury(*id);
                        buried = Some(tombstone.phase(*id));
                        None
                    }
                    None => continue,
                },
            };
            let mut job = job.clone();
            job.phase = shortened(job.phase);
            job.other_ends = job.other_ends.into_iter().map(shortened).collect();
            match known {
                None => {
                    let is_news = buried.is_none();
                    let mut weight_bytes = weights[id];
                    // Somebody was told of that end.
                    if let Some(other_ends) = buried.and_then(|end| with_end(&job, end)) {
                        weight_bytes += ends_bytes(&other_ends).saturating_sub(ends_bytes(&job.other_ends));
                        job.other_ends = other_ends;
                    }
                    let (work, phase, owner) = (job.work.clone(), job.phase.clone(), job.owner);
                    self.insert(*id, Job { weight_bytes, ..job });
                    self.jobs_changed = self.applied;
                    match work {
                        Some(work) => {
                            let succeeded = phase.is_terminal();
                            events.push(Event::JobAdopted { job: *id, work, succeeded, owner });
                        }
                        None if is_news => events.push(Event::JobEnded { job: *id, phase }),
                        None => {}
                    }
                }
                // What the other part of the mesh lacked says nothing of a job that runs here.
                Some(false) if matches!(&job.phase, JobPhase::Failed(failure) if !failure.is_of_the_job()) => {
                    self.note_ends(*id, &job);
                }
                Some(false) if job.phase.is_terminal() => {
                    self.remove(*id);
                    self.insert(*id, Job { weight_bytes: weights[id], ..job.clone() });
                    events.push(Event::JobEnded { job: *id, phase: job.phase.clone() });
                    let freed = job.freed.map(|freed| Event::JobsFreed { jobs: vec![*id], freed });
                    let work = job.work.clone();
                    let owner = job.owner;
                    let adopted =
                        work.map(|work| Event::JobAdopted { job: *id, work, succeeded: true, owner });
                    events.extend(adopted.or(freed));
                }
                Some(false) => events.push(Event::JobShared { job: *id }),
                Some(true) => {
                    self.reconcile(*id, &job, weights[id], events);
                    self.follow_release(*id, job.freed, events);
                }
            }
        }
        Ok(())
    }

    /// The eras that are given up when one with this claim, and with it others before, hands its jobs over.
    fn ends_with(&self, claim: &Claim, ended: &[Era]) -> Vec<Era> {
        let Some(own) = self.era else { return Vec::new() };
        // An era that would win cannot have ended with one that loses. Two of one epoch were compared then.
        let loses = |era: &&Era| {
            let sibling = (era.mesh, era.epoch) == (own.mesh, own.epoch);
            if sibling { **era != own } else { **era < own }
        };
        let first = self.takes_over(claim).then_some(claim.era);
        first.into_iter().chain(ended.iter().filter(loses).copied()).collect()
    }

    /// A job has ended here and in another era, where it may have ended otherwise. Somebody was told of either end, so
    /// both are kept; a result goes before none, since it may yet be collected.
    fn reconcile(&mut self, id: JobId, other: &Job, weight_bytes: usize, events: &mut Vec<Event>) {
        let Some(known) = self.jobs.get(&id) else { return };
        if !takes_result(known, other) {
            return self.note_ends(id, other);
        }
        let other_ends = all_ends(other, known);
        self.jobs.remove(&id);
        self.history.forget(id);
        self.insert(id, Job { weight_bytes, other_ends, ..other.clone() });
        let (work, owner) = (other.work.clone(), other.owner);
        events.extend(work.map(|work| Event::JobAdopted { job: id, work, succeeded: true, owner }));
    }

    /// A result that its driver has released in the other part of the mesh is not wanted here either; and there its
    /// partitions are gone.
    fn follow_release(&mut self, id: JobId, other: Option<Freed>, events: &mut Vec<Event>) {
        let Some(freed) = other.filter(|freed| freed.why == WhyFreed::Released) else { return };
        self.release(&[id], freed, events);
        // Nor is one that a third part of the mesh has.
        if let Some(known) = self.job_mut(id)
            && known.freed.is_some_and(gives_way)
        {
            known.freed = Some(freed);
            self.jobs_changed = self.applied;
        }
    }

    /// Remembers how else a job has ended.
    fn note_ends(&mut self, id: JobId, other: &Job) {
        if let Some(known) = self.job(id) {
            self.set_other_ends(id, all_ends(known, other));
        }
    }

    /// The same of a job of whose end no more is known there than its tombstone says.
    fn note_buried(&mut self, id: JobId, tombstone: Tombstone) {
        let known = self.jobs.get(&id);
        if let Some(other_ends) = known.and_then(|known| with_end(known, tombstone.phase(id))) {
            self.set_other_ends(id, other_ends);
        }
    }

    fn set_other_ends(&mut self, id: JobId, other_ends: Vec<JobPhase>) {
        let Some(known) = self.jobs.get(&id) else { return };
        if other_ends != known.other_ends
            && let Some(mut job) = self.jobs.remove(&id).map(Arc::unwrap_or_clone)
        {
            let more_bytes = ends_bytes(&other_ends).saturating_sub(ends_bytes(&job.other_ends));
            job.other_ends = other_ends;
            job.weight_bytes += more_bytes;
            if job.work.is_some() {
                self.work_bytes += more_bytes;
                self.jobs.insert(id, Arc::new(job));
            } else {
                self.history.forget(id);
                self.insert(id, job);
            }
            self.jobs_changed = self.applied;
        }
    }

    /// A job that runs here has ended elsewhere, so long ago that it is not remembered how.
    fn end_as_buried(&mut self, id: JobId, tombstone: Tombstone, events: &mut Vec<Event>) {
        let (phase, freed) = (tombstone.phase(id), tombstone.freed);
        if let Some(job) = self.job_mut(id) {
            (job.phase, job.ended_at) = (phase.clone(), Some(freed.at));
            self.unfinished -= 1;
            events.push(Event::JobEnded { job: id, phase });
            self.free(vec![id], freed, events);
        }
    }
}

impl Tombstone {
    /// Whether another era's record of the same job is worth more: it has a result, or says that it ended otherwise.
    fn gives_way(self, id: JobId, other: &Job) -> bool {
        match other.has_result() {
            true => gives_way(self.freed),
            false => other.phase.is_terminal() && is_another(&self.phase(id), &other.phase),
        }
    }
}

/// Whether a job that has ended without a result, or has lost it, has one in another era.
fn takes_result(known: &Job, other: &Job) -> bool {
    other.has_result() && !known.has_result() && known.freed.is_none_or(gives_way)
}

/// Whether what was freed for this reason would better be there.
fn gives_way(freed: Freed) -> bool {
    matches!(freed.why, WhyFreed::Failed | WhyFreed::Cancelled | WhyFreed::Lost)
}

/// How else a job has ended that ends as the first one says.
fn all_ends(stays: &Job, goes: &Job) -> Vec<JobPhase> {
    let mut ends = stays.other_ends.clone();
    for phase in goes.other_ends.iter().chain([&goes.phase]) {
        let new = phase.is_terminal() && *phase != stays.phase && !ends.contains(phase);
        if new && ends.len() < MAX_OTHER_ENDS {
            ends.push(phase.clone());
        }
    }
    ends
}

/// Whether two ends contradict each other. Of one there may be no more than a tombstone, which does not say how it failed.
fn is_another(one: &JobPhase, other: &JobPhase) -> bool {
    one.name() != other.name()
}

/// How else a job has ended with this end, of which no more is known, if that is news.
fn with_end(known: &Job, end: JobPhase) -> Option<Vec<JobPhase>> {
    let is_new = known.other_ends.iter().chain([&known.phase]).all(|known| is_another(known, &end));
    let more = is_new && known.other_ends.len() < MAX_OTHER_ENDS;
    more.then(|| known.other_ends.iter().cloned().chain([end]).collect())
}

/// The same, as long as what is remembered of a failure may be.
fn shortened(phase: JobPhase) -> JobPhase {
    match phase {
        JobPhase::Failed(failure) => JobPhase::Failed(failure.shortened()),
        phase => phase,
    }
}
