//! Whether everything is as it must be in the end: one mesh, all jobs ended, results where the mesh says.

use floe_protocol::{Failure, JobId, JobPhase, NodeId, TaskId};

use super::{Machine, World};
use crate::simulate::jobs::is_standing;

impl World {
    /// The standing job that runs still, if all others have ended.
    pub(super) fn stands(&self) -> Option<String> {
        let mut jobs = self.leader()?.state().jobs().iter();
        let (id, _) = jobs.find(|(id, job)| !job.phase.is_terminal() && !self.waits_for_the_gone(**id))?;
        Some(format!("the standing job {id} runs without its driver"))
    }

    /// What is not yet as it must be in the end, if anything, but for standing jobs.
    pub(super) fn unfinished(&self) -> Option<String> {
        if let Some(order) = self.orders.iter().find(|order| !order.answered) {
            return Some(format!("nobody has answered a driver about job {}", order.job));
        }
        if let Some(job) = self.attended.first() {
            return Some(format!("the driver of job {job} is not done"));
        }
        if let Some(what) = self.divided() {
            return Some(what);
        }
        let state = self.leader()?.state();
        for job in self.checker.promised_jobs() {
            if state.job(job).is_none() {
                return Some(format!("job {job} is not known to the mesh"));
            }
        }
        for (id, job) in state.jobs() {
            // It waits for a machine that may come back for all that the mesh knows.
            if self.waits_for_the_gone(*id) {
                continue;
            }
            let stands = job.work.as_ref().is_some_and(|work| is_standing(&work.graph));
            if !job.phase.is_terminal() && !stands {
                return Some(format!("job {id} runs: {:?}; {}", job.stages, self.frames_of(*id)));
            }
            if job.phase == JobPhase::Succeeded && !self.can_be_collected(*id, job) {
                let frames = self.frames_of(*id);
                return Some(format!("the result of job {id} is not where the mesh says; {frames}"));
            }
        }
        None
    }

    /// Whether something that came with a job is only on machines that are gone for good: it was stored nowhere else, or
    /// another part of the mesh ended the job and dropped its copy.
    fn waits_for_the_gone(&self, id: JobId) -> bool {
        let gone = |node: NodeId| self.machines.get(&node).is_none_or(|machine| machine.gone);
        let job = self.leader().and_then(|leader| leader.state().job(id));
        let ended_elsewhere = job.is_some_and(|job| !job.other_ends.is_empty());
        let frames = self.orders.iter().filter(|order| order.job == id).flat_map(|order| &order.frames);
        frames.into_iter().any(|(task, placed)| {
            let lost = |node: NodeId| {
                let put_back = self.machines.get(&node).is_some_and(|machine| machine.put_back);
                gone(node) || (put_back && !self.holders_of(*task).contains(&node))
            };
            placed.nodes.iter().all(|node| lost(*node))
                || (ended_elsewhere && self.holders_of(*task).into_iter().all(gone))
        })
    }

    /// The machines that have a partition, whether they run or not.
    fn holders_of(&self, task: TaskId) -> Vec<NodeId> {
        let holds = |machine: &&Machine| {
            machine.node.as_ref().map_or(&machine.held, |node| &node.held).contains_key(&task)
        };
        self.machines.values().filter(holds).map(|machine| machine.id).collect()
    }

    /// Where the frames that came with a job were, and where they are.
    fn frames_of(&self, id: JobId) -> String {
        let frames = self.orders.iter().filter(|order| order.job == id).flat_map(|order| &order.frames);
        let frames = frames.map(|(task, placed)| {
            let holders: Vec<_> = self.holders_of(*task).iter().map(|node| node.0).collect();
            let were: Vec<_> = placed.nodes.iter().map(|node| node.0).collect();
            format!("{task} came to {were:?} and is on {holders:?}")
        });
        frames.collect::<Vec<_>>().join(", ")
    }

    /// In what way the nodes that run are not one mesh, if any.
    pub(super) fn divided(&self) -> Option<String> {
        if let Some(machine) = self.machines.values().find(|machine| machine.node.is_none() && !machine.gone)
        {
            return Some(format!("n{} does not run", machine.id.0));
        }
        let Some(leader) = self.leader() else { return Some("nobody leads".to_owned()) };
        for node in self.nodes().filter(|node| !node.is_leaving()) {
            let id = node.id().0;
            if node.era() != leader.era() {
                let eras =
                    [node.era(), leader.era()].map(|era| era.map_or("none".to_owned(), |e| e.to_string()));
                return Some(format!("n{id} is of {}, and n{} leads in {}", eras[0], leader.id().0, eras[1]));
            }
            if node.state().applied() < leader.state().applied() {
                return Some(format!("n{id} has not caught up"));
            }
            if !node.is_listed() {
                return Some(format!("n{id} is not listed as it is"));
            }
            if node.participant.leader() != Some(leader.id()) {
                return Some(format!(
                    "n{id} follows {:?}, not n{}",
                    node.participant.leader(),
                    leader.id().0
                ));
            }
        }
        None
    }

    /// A job may fail for frames that are gone with all their holders, because nodes kept going away when a function of
    /// its began, because it ends whatever runs it, or, standing, because its driver went away, but for nothing else that happens here.
    pub(super) fn check_failures(&self) -> Result<(), String> {
        let Some(leader) = self.leader() else { return Ok(()) };
        for (id, job) in leader.state().jobs() {
            self.checker.shows_ends(*id, job)?;
            let poison = || self.orders.iter().any(|order| order.job == *id && order.is_poison());
            if job.phase == JobPhase::Succeeded && poison() {
                return Err(format!("job {id} succeeded, which nothing survives"));
            }
            let JobPhase::Failed(failure) = &job.phase else { continue };
            let excused = match failure {
                Failure::InputLost { partition, .. }
                | Failure::SubmissionLost { partition: Some(partition), .. } => {
                    self.orders.iter().any(|order| order.frames.iter().any(|(task, _)| task == partition))
                }
                Failure::Refused { message } if message.contains("its driver is gone") => {
                    self.orders.iter().any(|order| order.job == *id && order.stands())
                }
                Failure::Refused { message } if message.contains("went away") => {
                    self.orders.iter().any(|order| order.job == *id && order.calls())
                }
                Failure::Exhausted { .. } => true,
                Failure::Crashed { .. } => poison(),
                _ => false,
            };
            if !excused {
                return Err(format!("job {id} failed: {failure}"));
            }
        }
        Ok(())
    }

    fn can_be_collected(&self, id: JobId, job: &floe_consensus::state_machine::Job) -> bool {
        let Some(work) = &job.work else { return true };
        let (Some(stage), Some(Some(outputs))) = (work.graph.stages.last(), work.outputs.last()) else {
            return false;
        };
        outputs.placed.iter().enumerate().all(|(partition, placed)| {
            let task = TaskId { job: id, stage: stage.id, partition: partition as u32 };
            placed.nodes.iter().any(|holder| {
                let node = self.machines.get(holder).and_then(|machine| machine.node.as_ref());
                node.is_some_and(|node| node.held.contains_key(&task))
            })
        })
    }

    pub(super) fn count_jobs(&mut self) {
        let Some(leader) = self.leader() else { return };
        let jobs = leader.state().jobs().values();
        let (mut all, mut succeeded, mut failed) = (0, 0, 0);
        for job in jobs {
            all += 1;
            succeeded += u64::from(job.phase == JobPhase::Succeeded);
            failed += u64::from(matches!(job.phase, JobPhase::Failed(_)));
        }
        (self.tally.jobs, self.tally.succeeded, self.tally.failed) = (all, succeeded, failed);
        self.tally.eras = self.checker.eras() as u64;
    }

    /// Why jobs failed.
    pub(in crate::simulate) fn failures(&self) -> Vec<String> {
        let Some(leader) = self.leader() else { return Vec::new() };
        let failures = leader.state().jobs().values().filter_map(|job| match &job.phase {
            JobPhase::Failed(failure) => Some(failure.to_string()),
            _ => None,
        });
        failures.collect()
    }
}
