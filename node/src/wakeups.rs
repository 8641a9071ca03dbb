//! Whoever waits is told, and nobody else.

use floe_consensus::Event;
use floe_protocol::JobId;
use tokio::sync::watch;

use crate::job_changes::JobChanges;

/// Wakes those who wait for something to change.
#[derive(Debug)]
pub struct Wakeups {
    /// Moves whenever members, voters or the leader do.
    mesh: watch::Sender<u64>,
    jobs: JobChanges,
}

impl Wakeups {
    /// Wakes those who follow `mesh`, and those who subscribed to one of these jobs.
    pub fn new(mesh: watch::Sender<u64>, jobs: JobChanges) -> Self {
        Self { mesh, jobs }
    }

    /// Something happened to a job.
    pub fn job(&self, job: JobId) {
        self.jobs.tell(job);
    }

    /// Nothing may be as it was.
    pub fn all(&self) {
        self.mesh.send_modify(|count| *count += 1);
        self.jobs.tell_all();
    }

    /// Something was agreed on.
    pub fn event(&self, event: &Event) {
        match event {
            Event::JobAccepted { job, .. }
            | Event::JobAdopted { job, .. }
            | Event::StageDone { job, .. }
            | Event::JobEnded { job, .. } => self.job(*job),
            Event::JobsFreed { jobs, .. } => jobs.iter().for_each(|job| self.job(*job)),
            Event::Applied { .. }
            | Event::ReadReady { .. }
            | Event::DoorChanged
            | Event::JobShared { .. } => {}
            Event::MeshFounded { .. }
            | Event::MemberJoined { .. }
            | Event::MemberLeft { .. }
            | Event::Reconfigured => self.mesh.send_modify(|count| *count += 1),
            Event::Restored { .. }
            | Event::CarriedOn { .. }
            | Event::Yielded { .. }
            | Event::Elected { .. }
            | Event::Deposed { .. }
            | Event::LeaderChanged { .. } => self.all(),
        }
    }
}
