//! `floe cancel`

use clap::Args;
use floe_protocol::{JobId, JobPhase};

use super::connect::ConnectArgs;
use super::{End, output};

/// Cancel a job: its tasks stop and its partitions are freed
#[derive(Args, Debug)]
pub(super) struct CancelArgs {
    /// The job's id, as `floe jobs` shows it
    job: JobId,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: CancelArgs) -> anyhow::Result<End> {
    let job = args.connect.mesh().await?.job(args.job);
    // A job that is not known, or that has ended, is not cancelled, and its user should hear so.
    let before = job.status().await?;
    if before.phase.is_terminal() {
        // Its result, if it has one, is still freed, which is what this command is for.
        job.release().await?;
        output::note(format_args!("job {} had ended before: it {}", args.job, ended(&before.phase)));
        return Ok(End::Done);
    }
    job.cancel().await?;
    output::note(format_args!("cancelled job {}", args.job));
    Ok(End::Done)
}

fn ended(phase: &JobPhase) -> &'static str {
    match phase {
        JobPhase::Running => "runs",
        JobPhase::Succeeded => "succeeded",
        JobPhase::Failed(_) => "failed",
        JobPhase::Cancelled => "was cancelled",
    }
}
