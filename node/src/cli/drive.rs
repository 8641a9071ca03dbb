//! One job from its submission to its result, as a command's user sees it: progress on stderr, Ctrl-C cancels.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use floe_client::{Job, JobSpec, Mesh};
use floe_protocol::JobStatus;
use futures::StreamExt;

use super::interrupt::Interrupt;
use super::progress::Progress;
use super::{End, output};

/// How long a submission may take before its user is told that it still goes on.
const SLOW: Duration = Duration::from_secs(3);

/// How long Ctrl-C waits for the mesh to agree that the job is cancelled.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);

/// Runs a job. Once it has ended, `collect` reads its result, or learns why there is none; then the result is
/// freed. `abandoned`: whether nobody reads what is written any more, so that an error is none.
pub(super) async fn drive(
    mesh: &Mesh,
    spec: JobSpec,
    interrupt: &mut Interrupt,
    abandoned: Arc<AtomicBool>,
    collect: impl AsyncFnOnce(&Job, Option<JobStatus>) -> anyhow::Result<()>,
) -> anyhow::Result<End> {
    // The id is chosen before the job is submitted, so that Ctrl-C can cancel it at any moment.
    let id = floe_client::new_job_id()?;
    let work = async {
        let progress = Progress::start();
        let job = said_when_slow(mesh.submit_as(id, spec)).await?;
        let collected = async {
            let last = watch(&job, &progress).await?;
            drop(progress);
            if let Some(contradiction) = last.as_ref().and_then(JobStatus::contradiction) {
                output::note(format_args!("{contradiction}"));
            }
            collect(&job, last).await
        };
        let collected = collected.await;
        // Read or failed, nobody else will ask for this result.
        if let Err(error) = job.release().await {
            tracing::debug!(job = %id, %error, "the job could not be released");
        }
        collected
    };
    tokio::select! {
        done = work => match done {
            Err(error) if !abandoned.load(Ordering::Relaxed) => Err(error),
            _ => Ok(End::Done),
        },
        () = interrupt.wait() => {
            cancel(&mesh.job(id), interrupt).await;
            Ok(End::Interrupted)
        }
    }
}

/// Shows how a job comes along until it has ended; returns its last status.
async fn watch(job: &Job, progress: &Progress) -> anyhow::Result<Option<JobStatus>> {
    let mut statuses = job.watch();
    let mut last: Option<JobStatus> = None;
    while let Some(status) = statuses.next().await {
        let status = status?;
        progress.show(&status);
        let before = last.as_ref().and_then(|status| status.waits_for.as_ref());
        if let Some(waits_for) = &status.waits_for
            && before != Some(waits_for)
        {
            progress.suspended(|| output::note(format_args!("the job {waits_for}")));
        }
        last = Some(status);
    }
    Ok(last)
}

/// Says that the mesh takes its time, since whoever waits may wonder.
async fn said_when_slow<T>(submission: impl Future<Output = T>) -> T {
    tokio::pin!(submission);
    tokio::select! {
        done = &mut submission => done,
        () = tokio::time::sleep(SLOW) => {
            output::note(format_args!("still waiting for the mesh to accept the job: `floe status` shows who is there"));
            submission.await
        }
    }
}

/// Cancels the job, unless a second Ctrl-C shows that its user will not wait.
async fn cancel(job: &Job, interrupt: &mut Interrupt) {
    let agreed = tokio::select! {
        // A job that had ended is not cancelled any more, but its result can go.
        agreed = tokio::time::timeout(CANCEL_PATIENCE, async { job.cancel().await.and(job.release().await) }) => agreed,
        () = interrupt.wait() => return,
    };
    match agreed {
        Ok(Ok(())) => output::note(format_args!("cancelled job {}", job.id())),
        Ok(Err(error)) => output::note(format_args!("job {} could not be cancelled: {error}", job.id())),
        Err(_) => output::note(format_args!(
            "the mesh did not confirm within {} s that job {} is cancelled: check with `floe jobs`",
            CANCEL_PATIENCE.as_secs(),
            job.id(),
        )),
    }
}
