//! `floe sql`

use std::io::{IsTerminal, Read, stdin, stdout};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use floe_client::{Job, JobStatus, Mesh, Sql};

use super::connect::{ConnectArgs, note_embedded};
use super::drive::drive;
use super::format::{self, Format};
use super::interrupt::Interrupt;
use super::output::{self, Output};
use super::{End, timeline};

/// The longest statement that is read from stdin.
const MAX_STATEMENT_BYTES: u64 = 1 << 20;

/// Run a SQL query on the mesh
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
    /// Name a file, directory or pattern as a table; may be given more than once
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
    mut output: Output,
    interrupt: &mut Interrupt,
) -> anyhow::Result<End> {
    let spec = args.statement.sql(mesh, text).spec()?;
    let abandoned = output.abandoned();
    let collect = async |job: &Job, last: Option<JobStatus>| {
        format::write(job.frames().await?, format, &mut output).await?;
        output.finish()?;
        if args.timeline
            && let Some(status) = last
        {
            output::note(format_args!("{}", timeline::draw(&status, &mesh.status().await?)));
        }
        Ok(())
    };
    drive(mesh, spec, interrupt, abandoned, collect).await
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
