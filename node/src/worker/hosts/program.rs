//! Programs: any executable that reads a table on stdin and writes one to stdout, started once for a task.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use floe_protocol::function::{Argument, Payload, Program, ProgramFile};
use floe_protocol::{AttemptId, Failure, Function};
use nix::errno::Errno;
use tempfile::TempDir;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::host::{Surroundings, on_disk};
use super::lent;
use super::limits::{Allowed, Running, within};
use super::process::{self, Process, Start, Trouble};
use super::tables::{self, Source};
use super::{Returned, wire};
use crate::worker::task_logs::TaskLog;

/// One task of a program.
pub(super) struct Task<'a> {
    pub(super) attempt: AttemptId,
    pub(super) function: &'a Function,
    pub(super) program: &'a Program,
    pub(super) argument: Argument,
    /// Arrow IPC files.
    pub(super) inputs: Vec<Bytes>,
}

/// What a program reads.
enum Feed {
    Bytes(Bytes),
    File(PathBuf),
}

/// Runs a program to its end and reads what it wrote.
pub(super) async fn run(
    task: Task<'_>,
    scratch: TempDir,
    log: TaskLog,
    allowed: Allowed,
    around: Surroundings<'_>,
) -> Result<Returned, Failure> {
    let Task { attempt, function, program, argument, inputs } = task;
    let path = match &program.file {
        ProgramFile::Blob { blob, name } => {
            let file = around.blobs.get(*blob).await?;
            check(&file, name, program)?;
            let lent = lent::lend_executable(around.disk, file, &scratch.path().join("bin"), name).await;
            lent.map_err(on_disk)?
        }
        ProgramFile::OnPath(name) => on_path(name, program)?,
    };
    let feed = match argument {
        Argument::Payload(Payload::Inline(bytes)) => Feed::Bytes(bytes),
        Argument::Payload(Payload::Blob(blob)) => Feed::File(around.blobs.get(blob).await?),
        Argument::File(mark) => table(Source::File(mark.path.into()), program).await?,
        Argument::None => table(Source::Partitions(inputs), program).await?,
    };
    let mut env: Vec<_> = process::thread_env(around.threads).collect();
    env.extend(process::own_env(&program.env));
    env.push(("FLOE_JOB", attempt.task.job.to_string()));
    env.push(("FLOE_PARTITION", attempt.task.partition.to_string()));
    let arguments = program.arguments.iter().map(OsStr::new).collect();
    let start = Start { program: &path, arguments, env, scratch, log, adopts: false };
    let mut process = match Process::start(start, around.family).await {
        Ok(process) => process,
        Err(_) if around.family.is_closed() => {
            return Err(Failure::Unavailable { message: "this node is stopping".to_owned() });
        }
        Err(error) => {
            return Err(process::no_room(&error).unwrap_or_else(|| not_started(&error, &path, program)));
        }
    };
    let running = Running::start();
    let (group, exit) = (process.group(), process.exit());
    let stdin = process.stdin.take();
    let stdout = &mut process.stdout;
    let mut end = exit.clone();
    let work = async {
        let (fed, wrote) =
            tokio::join!(feed_to(stdin, feed), process::read_all(stdout, allowed.memory_bytes));
        fed?;
        let wrote = wrote?;
        // The same as what a process says that has ended, but it is the program's own choice to close its stdout.
        if end.ended().await.success() { Ok(wrote) } else { Err(Trouble::Ended) }
    };
    let wrote = match within(work, (around.meter, group), exit, allowed, &running).await {
        Ok(wrote) => wrote,
        Err(trouble) => {
            let failure = process.conclude(trouble, &function.name).await;
            return Err(match failure {
                // That is how a program says that it cannot do what it should, anywhere.
                Failure::Crashed { name, how, output }
                    if end.is_over() && end.ended().await.code().is_some() =>
                {
                    let message = format!("it {how}{output}");
                    Failure::Exception { name, message, traceback: String::new(), exception: Bytes::new() }
                }
                failure => failure,
            });
        }
    };
    process.printed.drain();
    let (format, typed, name) = (program.stdout, program.typed, function.name.clone());
    tables::blocking(move || tables::read_output(wrote.into(), format, typed, &name)).await
}

/// Input in the form that a program wants.
async fn table(source: Source, program: &Program) -> Result<Feed, Failure> {
    let (format, typed, name) = (program.stdin, program.typed, name(program).to_owned());
    tables::blocking(move || match tables::as_it_is(&source, format) {
        Some(path) => Ok(Feed::File(path)),
        None => tables::converted(source, format, typed, &name).map(Feed::Bytes),
    })
    .await
}

/// Writes a program's input. That it does not read all of it is its own business.
async fn feed_to(stdin: Option<impl AsyncWrite + Unpin>, feed: Feed) -> Result<(), Trouble> {
    let Some(mut stdin) = stdin else {
        return Ok(());
    };
    let fed = match feed {
        Feed::Bytes(bytes) => stdin.write_all(&bytes).await,
        Feed::File(path) => {
            let opened = tokio::fs::File::open(&path).await;
            let mut file = opened.map_err(|error| {
                Trouble::Failed(Failure::Blind { path: path.display().to_string(), why: error.to_string() })
            })?;
            tokio::io::copy(&mut file, &mut stdin).await.map(drop)
        }
    };
    match fed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Trouble::Failed(Failure::internal(format!("a program's input cannot be written: {error}"))))
        }
        _ => Ok(()),
    }
}

/// What a program is called.
fn name(program: &Program) -> &str {
    match &program.file {
        ProgramFile::Blob { name, .. } | ProgramFile::OnPath(name) => name,
    }
}

/// Whether what came from the driver is a program, and has a name to be put in place by.
fn check(file: &Path, name: &str, program: &Program) -> Result<(), Failure> {
    if Path::new(name).file_name() != Some(OsStr::new(name)) {
        return Err(Failure::Refused {
            message: format!("`{}` is not a name for a program", name.escape_debug()),
        });
    }
    let unreadable =
        |error: io::Error| Failure::internal(format!("the program {name} cannot be read: {error}"));
    let head = tables::head(file).map_err(unreadable)?;
    if let Some(interpreter) = head.strip_prefix(b"#!") {
        check_interpreter(interpreter, name, program)?;
    } else if !is_executable(&head) {
        let message = format!(
            "{name} cannot be run: it is neither an executable nor a script that begins with `#!` and its \
             interpreter (it begins with {})",
            wire::shown(&head)
        );
        return Err(Failure::Refused { message });
    }
    Ok(())
}

/// Whether a file begins like an executable of some system.
fn is_executable(head: &[u8]) -> bool {
    const MAGICS: [&[u8]; 4] = [b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe"];
    MAGICS.iter().any(|magic| head.starts_with(magic))
}

/// Whether what a script wants to be read by is here. What a system says of one that is not is "not found", of the
/// script.
fn check_interpreter(line: &[u8], script: &str, program: &Program) -> Result<(), Failure> {
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    if line.ends_with('\r') {
        let message =
            format!("{script} cannot be run: its first line ends with \\r\\n, as on Windows, instead of \\n");
        return Err(Failure::Refused { message });
    }
    let mut words = line.split_whitespace();
    let interpreter = words.next().unwrap_or_default();
    let unfit = |interpreter: &str, why: &str| {
        let needs = format!("`{}`, the interpreter of {script},", interpreter.escape_debug());
        Err(Failure::Unfit { needs, why: why.to_owned() })
    };
    if !Path::new(interpreter).is_file() {
        return unfit(interpreter, "there is no such file");
    }
    let command = words.find(|word| !word.starts_with('-') && !word.contains('='));
    match command {
        Some(command) if interpreter.ends_with("/env") && find(command, program).is_none() => {
            unfit(command, "it is not on the node's PATH")
        }
        _ => Ok(()),
    }
}

/// The node's own program of this name.
fn on_path(name: &str, program: &Program) -> Result<PathBuf, Failure> {
    find(name, program).ok_or_else(|| {
        let why =
            if name.contains('/') { "there is no such executable" } else { "it is not on the node's PATH" };
        Failure::Unfit { needs: format!("the program `{}`", name.escape_debug()), why: why.to_owned() }
    })
}

fn find(name: &str, program: &Program) -> Option<PathBuf> {
    let executable = |path: &PathBuf| {
        path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(executable);
    }
    let path = program.env.get("PATH").map(Into::into).or_else(|| std::env::var_os("PATH"))?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(executable)
}

/// Why a program does not start.
fn not_started(error: &io::Error, path: &Path, program: &Program) -> Failure {
    let name = name(program);
    let here = floe_protocol::function::target();
    let (needs, why) = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOEXEC) => {
            (format!("a machine that {name} was made for"), format!("this node is {here}, and cannot run it"))
        }
        Some(Errno::ENOENT) => {
            (format!("what {name} needs"), format!("its interpreter or loader is not on this node ({here})"))
        }
        _ => (format!("the program {name}"), format!("{} does not start: {error}", path.display())),
    };
    Failure::Unfit { needs, why }
}
