//! `floe sql`

use std::io::{IsTerminal, Read, stdin, stdout};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use floe_client::{Job, Mesh, Sql};
use futures::StreamExt;

use super::connect::{ConnectArgs, note_embedded};
use super::format::{self, Format};
use super::interrupt::Interrupt;
use super::output::{self, Output};
use super::progress::Progress;
use super::{End, timeline};

/// How long a submission may take before its user is told that it still goes on.
const SLOW: Duration = Duration::from_secs(3);

/// How long Ctrl-C waits for the mesh to agree that the job is cancelled.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);

/// The longest statement that is read from stdin.
const MAX_STATEMENT_BYTES: u64 = 1 << 20;

/// Run a Polars SQL query on the mesh
///
/// Where no mesh runs, this process answers by itself. A table is a path in quotes, or a name given with
/// --table: floe sql "SELECT carrier, COUNT(*) FROM 'flights/*.parquet' GROUP BY carrier"
#[derive(Args, Debug)]
pub(super) struct SqlArgs {
    #[command(flatten)]
    statement: Statement,
    /// How the result is written; by the ending of -o, else a table
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Where the result is written, instead of to stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Show on stderr which task ran on which node
    #[arg(long)]
    timeline: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// A statement and its tables.
#[derive(Args, Debug)]
pub(super) struct Statement {
    /// The query, or - to read it from stdin
    query: String,
    /// Name a file, glob or directory as a table; may be given more than once
    #[arg(long = "table", value_name = "NAME=PATH", value_parser = parse_table)]
    tables: Vec<(String, PathBuf)>,
}

impl Statement {
    pub(super) fn text(&self) -> anyhow::Result<String> {
        if self.query != "-" {
            return Ok(self.query.clone());
        }
        let mut text = String::new();
        stdin().take(MAX_STATEMENT_BYTES + 1).read_to_string(&mut text).context("stdin cannot be read")?;
        if text.len() as u64 > MAX_STATEMENT_BYTES {
            bail!("the statement on stdin is longer than {} KiB", MAX_STATEMENT_BYTES >> 10);
        }
        Ok(text)
    }

    pub(super) fn sql(&self, mesh: &Mesh, text: String) -> Sql {
        self.tables.iter().fold(mesh.sql(text), |sql, (name, path)| sql.table(name, path))
    }
}

fn parse_table(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("expected NAME=PATH, for example flights=data/flights.parquet".to_owned()),
    }
}

pub(super) async fn run(args: SqlArgs) -> anyhow::Result<End> {
    let mut interrupt = Interrupt::listen()?;
    let text = args.statement.text()?;
    let named = args.output.as_deref().and_then(Format::of_path);
    let format = match (args.format.or(named), &args.output) {
        (Some(format), _) => format,
        (None, Some(path)) if path.extension().is_some_and(|ending| !ending.eq_ignore_ascii_case("txt")) => {
            bail!(
                "the ending of {} names no format: choose one with --format, or end it in .csv, .json, .parquet or .arrow",
                path.display()
            )
        }
        (None, _) => Format::Table,
    };
    let output = match &args.output {
        Some(path) => Output::file(path)?,
        None if format.is_binary() && stdout().is_terminal() => {
            bail!("a terminal cannot show this format: add -o FILE, or redirect stdout")
        }
        None => Output::stdout(),
    };
    let found = tokio::select! {
        found = args.connect.mesh_or_embedded() => found?,
        () = interrupt.wait() => return Ok(End::Interrupted),
    };
    note_embedded(&found);
    let end = query(&args, &found.mesh, text, format, output, &mut interrupt).await;
    found.close().await;
    end
}

async fn query(
    args: &SqlArgs,
    mesh: &Mesh,
    text: String,
    format: Format,
    output: Output,
    interrupt: &mut Interrupt,
) -> anyhow::Result<End> {
    // The id is chosen before the job is submitted, so that Ctrl-C can cancel it at any moment.
    let spec = args.statement.sql(mesh, text).spec()?;
    let id = floe_client::new_job_id()?;
    let abandoned = output.abandoned();
    let work = async {
        let progress = Progress::start();
        let job = said_when_slow(mesh.submit_as(id, spec)).await?;
        let answer = answer(&job, args.timeline, format, output, progress).await;
        // Read or failed, nobody else will ask for this result.
        if let Err(error) = job.release().await {
            tracing::debug!(job = %id, %error, "the job could not be released");
        }
        answer
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

/// Says that the mesh takes its time, since whoever waits may wonder.
async fn said_when_slow<T>(submission: impl Future<Output = T>) -> T {
    tokio::pin!(submission);
    tokio::select! {
        done = &mut submission => done,
        () = tokio::time::sleep(SLOW) => {
            output::note(format_args!("still waiting for the mesh to accept the query: `floe status` shows who is there"));
            submission.await
        }
    }
}

async fn answer(
    job: &Job,
    show_timeline: bool,
    format: Format,
    mut output: Output,
    progress: Progress,
) -> anyhow::Result<()> {
    let mut statuses = job.watch();
    let mut last = None;
    while let Some(status) = statuses.next().await {
        let status = status?;
        progress.show(&status);
        last = Some(status);
    }
    drop(progress);
    let result = job.frames().await?;
    format::write(result, format, &mut output).await?;
    output.finish()?;
    if show_timeline && let Some(status) = last {
        output::note(format_args!("{}", timeline::draw(&status, &job.mesh().status().await?)));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_name_and_path() {
        assert_eq!(parse_table("t=a=b.csv"), Ok(("t".into(), "a=b.csv".into())));
        for bad in ["t", "=a", "t="] {
            assert!(parse_table(bad).is_err(), "{bad}");
        }
    }
}
