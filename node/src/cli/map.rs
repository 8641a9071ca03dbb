//! `floe map`

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{Cursor, IsTerminal, stdout};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use clap::{Args, ValueEnum};
use floe_client::{Job, JobKind, JobSpec, JobStatus, Mesh, StageGraph};
use floe_protocol::frame;
use floe_protocol::function::{
    Argument, Format as Stdio, Function, FunctionInput, FunctionJob, Host, Limits, Payload, Program,
    ProgramFile,
};
use futures::TryStreamExt;
use polars::prelude::{
    CsvWriter, DataFrame, IpcStreamReader, IpcWriter, JsonFormat, JsonWriter, ParquetWriter, SerReader,
    SerWriter,
};

use super::connect::{ConnectArgs, note_embedded};
use super::drive::drive;
use super::format::{self, Format};
use super::interrupt::Interrupt;
use super::output::{self, Output};
use super::{End, table};
use crate::config;

/// Run a program over files, one at a time, on all nodes
///
/// The program reads one file's rows on standard input and writes rows to standard output, as CSV, as NDJSON or
/// as an Arrow IPC stream; what it writes to standard error is kept (`floe logs`). It travels to the nodes; a name
/// without a slash is each node's own: floe map --program ./clean.py --in 'logs/*.csv' --out cleaned/
#[derive(Args, Debug)]
pub(super) struct MapArgs {
    /// The program: a file, or a command that every node has
    #[arg(long, value_name = "FILE")]
    program: PathBuf,
    /// A file, directory or pattern that the nodes can see; may be given more than once
    #[arg(long = "in", value_name = "PATH", required = true)]
    inputs: Vec<String>,
    /// A directory for the results, one file for each input; without it they come as one
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    out: Option<PathBuf>,
    /// What the program reads; by the ending of --in unless given
    #[arg(long, value_enum, value_name = "FORMAT")]
    stdin: Option<StdioArg>,
    /// What the program writes; what it reads unless given
    #[arg(long, value_enum, value_name = "FORMAT")]
    stdout: Option<StdioArg>,
    /// How results are written: with --out by what the program writes, else a table
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Where the results are written as one, instead of to stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Give the columns of CSV that the program writes types by what is in them; else they are text, as written
    #[arg(long)]
    typed: bool,
    /// Memory that one run may take, for example 512MiB; a slot's share of its node's budget unless given
    #[arg(long, value_name = "SIZE", value_parser = config::parse_size)]
    memory: Option<u64>,
    /// How long one run may take, for example 90s or 5min
    #[arg(long, value_name = "TIME")]
    time: Option<humantime::Duration>,
    #[command(flatten)]
    connect: ConnectArgs,
    /// The program's arguments
    #[arg(last = true, value_name = "ARG")]
    arguments: Vec<String>,
}

/// How a table is written to and read from a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StdioArg {
    /// An Arrow IPC stream
    Arrow,
    /// Comma-separated values with a header
    Csv,
    /// A JSON object a line
    Ndjson,
}

pub(super) async fn run(args: MapArgs) -> anyhow::Result<End> {
    let mut interrupt = Interrupt::listen()?;
    let stdin = args.stdin.map_or_else(|| by_ending(&args.inputs), Stdio::from);
    let stdout_format = args.stdout.map_or(stdin, Stdio::from);
    let found = tokio::select! {
        found = args.connect.mesh_or_embedded() => found?,
        () = interrupt.wait() => return Ok(End::Interrupted),
    };
    note_embedded(&found);
    let end = async {
        let spec = spec(&args, &found.mesh, stdin, stdout_format).await?;
        match &args.out {
            Some(directory) => {
                let format = args.format.unwrap_or(match stdout_format {
                    Stdio::Arrow => Format::Arrow,
                    Stdio::Csv => Format::Csv,
                    Stdio::Ndjson => Format::Json,
                });
                to_directory(&found.mesh, spec, directory, format, &mut interrupt).await
            }
            None => as_one(&args, &found.mesh, spec, &mut interrupt).await,
        }
    };
    let end = end.await;
    found.close().await;
    end
}

/// The job: the program, put where the nodes find it, over the files.
async fn spec(args: &MapArgs, mesh: &Mesh, stdin: Stdio, stdout: Stdio) -> anyhow::Result<JobSpec> {
    let name =
        args.program.file_name().and_then(OsStr::to_str).context("--program names no file")?.to_owned();
    let is_command = args.program.components().count() == 1 && !args.program.exists();
    let file = if is_command && matches!(args.program.components().next(), Some(Component::Normal(_))) {
        ProgramFile::OnPath(name.clone())
    } else {
        let bytes = fs::read(&args.program)
            .with_context(|| format!("the program {} cannot be read", args.program.display()))?;
        ProgramFile::Blob { blob: mesh.put(bytes).await?, name: name.clone() }
    };
    let program = Program {
        file,
        arguments: args.arguments.clone(),
        stdin,
        stdout,
        typed: args.typed,
        env: Default::default(),
    };
    let time_ms = args.time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let function = Function {
        name: name.clone(),
        host: Host::Program(program),
        code: Payload::Inline(Default::default()),
        limits: Limits { memory_bytes: args.memory, time_ms },
    };
    let directory = std::env::current_dir().context("the working directory cannot be told")?;
    let directory = directory
        .into_os_string()
        .into_string()
        .map_err(|directory| anyhow!("the name of this directory is not UTF-8: {}", directory.display()))?;
    let input = FunctionInput::Files { paths: args.inputs.clone(), directory };
    let label = format!("{name} over {}", args.inputs.join(", "));
    Ok(JobSpec { label, kind: JobKind::Function(Box::new(FunctionJob { function, input, merge: None })) })
}

/// All results one after the other, as `floe sql` shows its own.
async fn as_one(
    args: &MapArgs,
    mesh: &Mesh,
    spec: JobSpec,
    interrupt: &mut Interrupt,
) -> anyhow::Result<End> {
    let named = args.output.as_deref().and_then(Format::of_path);
    let format = args.format.or(named).unwrap_or(Format::Table);
    let mut output = match &args.output {
        Some(path) => Output::file(path)?,
        None if format.is_binary() && stdout().is_terminal() => {
            bail!("a terminal cannot show this format: add -o FILE, or redirect stdout")
        }
        None => Output::stdout(),
    };
    let abandoned = output.abandoned();
    let collect = async |job: &Job, _: Option<JobStatus>| {
        format::write(job.frames().await?, format, &mut output).await?;
        output.finish()
    };
    drive(mesh, spec, interrupt, abandoned, collect).await
}

/// Each file's result into a file of its own.
async fn to_directory(
    mesh: &Mesh,
    spec: JobSpec,
    directory: &Path,
    format: Format,
    interrupt: &mut Interrupt,
) -> anyhow::Result<End> {
    if format == Format::Table {
        bail!("a directory takes no tables for people: choose csv, json, parquet or arrow with --format");
    }
    let ending = match format {
        Format::Csv => "csv",
        // Objects, one a line.
        Format::Json => "ndjson",
        Format::Parquet => "parquet",
        Format::Arrow | Format::Table => "arrow",
    };
    fs::create_dir_all(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    // The nodes say which files there are, and in which order their results come.
    let files = files_of(&mesh.explain(&spec).await?)?;
    let names = names_for(&files, ending)?;
    let collect = async |job: &Job, _: Option<JobStatus>| {
        let mut partitions = job.partitions();
        let mut rows = 0;
        for name in &names {
            let Some(partition) = partitions.try_next().await? else {
                bail!("the files under --in changed meanwhile: run it again");
            };
            let frame = IpcStreamReader::new(Cursor::new(partition)).finish()?;
            rows += frame.height() as u64;
            write_file(frame, format, &directory.join(name))?;
        }
        if partitions.try_next().await?.is_some() {
            bail!("the files under --in changed meanwhile: run it again");
        }
        output::note(format_args!(
            "{} of {} files in {}",
            count(rows, "row"),
            names.len(),
            directory.display()
        ));
        Ok(())
    };
    drive(mesh, spec, interrupt, Arc::default(), collect).await
}

fn count(n: u64, what: &str) -> String {
    format!("{} {what}{}", table::count(n), if n == 1 { "" } else { "s" })
}

/// The files that a planned job goes over, in order.
fn files_of(graph: &StageGraph) -> anyhow::Result<Vec<PathBuf>> {
    let tasks = graph.stages.first().map(|stage| stage.tasks.as_slice()).unwrap_or_default();
    tasks
        .iter()
        .map(|task| match frame::decode::<Argument>(&task.split) {
            Ok(Argument::File(file)) => Ok(PathBuf::from(file.path)),
            other => bail!("the mesh planned a task without a file: {other:?}"),
        })
        .collect()
}

/// A name below the output directory for each file: what remains of its path below the directory that all share.
fn names_for(files: &[PathBuf], ending: &str) -> anyhow::Result<Vec<PathBuf>> {
    let parent = |file: &PathBuf| file.parent().map(Path::to_owned).unwrap_or_default();
    let mut shared = files.first().map(parent).unwrap_or_default();
    while !files.iter().all(|file| file.starts_with(&shared)) {
        if !shared.pop() {
            break;
        }
    }
    let mut taken = BTreeSet::new();
    let mut names = Vec::with_capacity(files.len());
    for file in files {
        let name = file.strip_prefix(&shared).unwrap_or(file).with_extension(ending);
        if !taken.insert(name.clone()) {
            bail!(
                "two of the files would both be written to {}: choose another --format, or name them differently",
                name.display()
            );
        }
        names.push(name);
    }
    Ok(names)
}

/// The file appears, or replaces the one before, when it is whole.
fn write_file(mut frame: DataFrame, format: Format, path: &Path) -> anyhow::Result<()> {
    let unwritable = || format!("{} cannot be written", path.display());
    fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).with_context(unwritable)?;
    let mut output = Output::file(path)?;
    match format {
        Format::Csv => CsvWriter::new(&mut output).finish(&mut frame),
        Format::Json | Format::Table => {
            JsonWriter::new(&mut output).with_json_format(JsonFormat::JsonLines).finish(&mut frame)
        }
        Format::Parquet => ParquetWriter::new(&mut output).finish(&mut frame).map(drop),
        Format::Arrow => IpcWriter::new(&mut output).finish(&mut frame),
    }
    .with_context(unwritable)?;
    output.finish()
}

fn by_ending(inputs: &[String]) -> Stdio {
    let is = |endings: &[&str]| {
        inputs.iter().all(|input| endings.iter().any(|ending| input.to_lowercase().ends_with(ending)))
    };
    if is(&[".csv"]) {
        Stdio::Csv
    } else if is(&[".ndjson", ".jsonl"]) {
        Stdio::Ndjson
    } else {
        Stdio::Arrow
    }
}

impl From<StdioArg> for Stdio {
    fn from(format: StdioArg) -> Self {
        match format {
            StdioArg::Arrow => Self::Arrow,
            StdioArg::Csv => Self::Csv,
            StdioArg::Ndjson => Self::Ndjson,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        names_for(&files.iter().map(PathBuf::from).collect::<Vec<_>>(), "csv")
    }

    #[test]
    fn results_are_named_after_their_files() {
        assert_eq!(names(&["/d/a.csv", "/d/b.csv"]).unwrap(), [Path::new("a.csv"), Path::new("b.csv")]);
        assert_eq!(
            names(&["/d/x/a.csv", "/d/y/a.csv"]).unwrap(),
            [Path::new("x/a.csv"), Path::new("y/a.csv")]
        );
        assert_eq!(names(&["/d/a.parquet"]).unwrap(), [Path::new("a.csv")]);
        assert!(names(&["/d/a.csv", "/d/a.parquet"]).is_err());
    }

    #[test]
    fn what_a_program_reads_follows_from_the_files() {
        assert_eq!(by_ending(&["a/*.CSV".to_owned()]), Stdio::Csv);
        assert_eq!(by_ending(&["a.jsonl".to_owned(), "b.ndjson".to_owned()]), Stdio::Ndjson);
        assert_eq!(by_ending(&["a.csv".to_owned(), "b.parquet".to_owned()]), Stdio::Arrow);
    }
}
