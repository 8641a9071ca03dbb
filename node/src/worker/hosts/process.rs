//! A child process: how it is started, what it prints, how it ends.
//!
//! Each child leads a process group of its own, works in a directory of its own, and is looked after by a task of
//! its own that waits for its end. Dropping a [`Process`] kills it, and all that it started.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use floe_protocol::Failure;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use super::family::Family;
use super::limits::Exceeded;
use super::mark::{self, Mark};
use super::processes;
use super::wire::WireError;
use crate::worker::task_logs::TaskLog;

/// How much milder than the node its children are, so that it stays responsive whatever they do.
const NICE: i32 = 5;

/// Which processes the kernel should end first when memory runs out, of 1000: these, not the node.
#[cfg(target_os = "linux")]
const OOM_SCORE: &str = "800";

/// How large a pipe to or from a child is, where the system lets us say: each filling or emptying of it costs a
/// switch between the two.
#[cfg(target_os = "linux")]
const PIPE_BYTES: i32 = 1 << 20;

/// How much of a child's stdout is read ahead.
const READ_BYTES: usize = 64 << 10;

/// How much of what a child printed last is shown when it ends.
const TAIL_BYTES: usize = 2 << 10;

/// How much is read of what a child prints before others get their turn.
const PRINTED_AT_ONCE_BYTES: usize = 1 << 20;

/// How long a child that is no longer needed may take to end by itself.
const PARTING: Duration = Duration::from_secs(2);

/// How long the end of a child that was killed may take to be seen.
const DEATH: Duration = Duration::from_secs(10);

/// Where a child works: a directory within its own that has nothing of the node's.
pub(super) const WORK_DIR: &str = "work";

/// How often a start is tried again while the executable is still open for writing somewhere: by a process that was
/// just forked and has not closed it yet.
const BUSY_TRIES: u32 = 20;

/// What becomes a process.
#[derive(Debug)]
pub(super) struct Start<'a> {
    pub(super) program: &'a Path,
    pub(super) arguments: Vec<&'a OsStr>,
    /// In the order of precedence: later ones win.
    pub(super) env: Vec<(&'a str, String)>,
    /// A directory that is its own and goes when it has ended. It works in [`WORK_DIR`] therein.
    pub(super) scratch: TempDir,
    pub(super) log: TaskLog,
    /// Whether it adopts the orphans among its descendants. Where it does, a file that is no executable is taken for a
    /// script of the shell's.
    pub(super) adopts: bool,
}

/// A child process and its pipes.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: BufReader<ChildStdout>,
    pub(super) printed: Arc<Printed>,
    group: i32,
    exit: Exit,
}

/// When and how a process ends. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Exit(watch::Receiver<Option<ExitStatus>>);

/// What a process prints.
#[derive(Debug)]
pub(super) struct Printed {
    pipe: Receiver,
    sink: Mutex<Sink>,
}

/// What is left of what was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drained {
    /// Nothing, for now.
    Empty,
    /// Perhaps something.
    More,
    /// Nothing, and nothing will come.
    Ended,
}

#[derive(Debug)]
struct Sink {
    log: TaskLog,
    /// The end of what was printed.
    tail: Vec<u8>,
}

/// Why a run did not come to its end.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The process has ended, or closed its pipe.
    Ended,
    /// It does not keep to the protocol.
    Rubbish(String),
    /// It took more than it may.
    Exceeded(Exceeded),
    /// Something else than the process failed.
    Failed(Failure),
}

impl From<WireError> for Trouble {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Closed => Self::Ended,
            WireError::Rubbish(text) => Self::Rubbish(text),
            WireError::TooMuch { bytes, may_bytes } => {
                Self::Exceeded(Exceeded::Output { took_bytes: bytes, may_bytes })
            }
            WireError::Unwritable(message) => Self::Failed(Failure::Refused { message }),
            WireError::File(_) => Self::Failed(Failure::internal(error)),
        }
    }
}

impl Process {
    /// Starts a process.
    pub(super) async fn start(start: Start<'_>, family: &Family) -> io::Result<Self> {
        let work = start.scratch.path().join(WORK_DIR);
        std::fs::create_dir_all(&work)?;
        let mut command = Command::new(start.program);
        command.args(&start.arguments).current_dir(work).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // What is meant for the node is not meant for what it runs.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"FLOE_") {
                command.env_remove(name);
            }
        }
        command.envs(start.env.iter().map(|(name, value)| (name, value)));
        let mark = family.mark();
        command.env(mark::VARIABLE, mark.text());
        if start.adopts {
            processes::adopt_orphans(&mut command);
        }
        let mut child = spawn(&mut command).await?;
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(group), (Some(stdin), Some(stdout), Some(stderr))) = (id, pipes) else {
            return Err(io::Error::other("it ended before it began"));
        };
        // First of all: what it starts before that has only the variable.
        restrain(group, &mark);
        if !family.enter(group) {
            processes::end(group);
            drop(child.wait().await);
            return Err(io::Error::other("this node is stopping"));
        }
        let (exited, exit) = watch::channel(None);
        let look_after = look_after(child, (group, mark), start.scratch, exited, family.clone());
        tokio::spawn(look_after);
        widen(&stdin);
        widen(&stdout);
        // From here on, dropping it ends the child.
        let sink = Mutex::new(Sink { log: start.log, tail: Vec::new() });
        let printed = stderr.into_owned_fd().and_then(Receiver::from_owned_fd);
        let printed = match printed {
            Ok(pipe) => Arc::new(Printed { pipe, sink }),
            Err(error) => {
                processes::end(group);
                return Err(error);
            }
        };
        tokio::spawn(Arc::clone(&printed).pump());
        let stdout = BufReader::with_capacity(READ_BYTES, stdout);
        Ok(Self { stdin: Some(stdin), stdout, printed, group, exit: Exit(exit) })
    }

    pub(super) fn group(&self) -> i32 {
        self.group
    }

    pub(super) fn exit(&self) -> Exit {
        self.exit.clone()
    }

    /// Kills it and all that it started. It does nothing more from now on, but may be there for a moment.
    pub(super) fn kill(&self) {
        let (group, exit) = (self.group, self.exit.clone());
        if exit.is_over() {
            return;
        }
        processes::stop(group);
        // The number is its own until its end was seen.
        let end = move || {
            if !exit.is_over() {
                processes::end(group);
            }
        };
        match Handle::try_current() {
            // Should the runtime end before that, the guard does it.
            Ok(runtime) => drop(runtime.spawn_blocking(end)),
            Err(_) => end(),
        }
    }

    /// Lets it end by itself if it does so soon.
    pub(super) async fn part(mut self) {
        self.stdin = None;
        drop(timeout(PARTING, self.exit.ended()).await);
    }

    /// Ends it after a run that did not come to its end, and says why.
    pub(super) async fn conclude(&mut self, trouble: Trouble, name: &str) -> Failure {
        if matches!(trouble, Trouble::Ended) {
            // Its pipe may end a moment before it does.
            self.stdin = None;
            drop(timeout(PARTING, self.exit.ended()).await);
        }
        let by_itself = self.exit.is_over();
        self.kill();
        let ended = timeout(DEATH, self.exit.ended()).await;
        self.printed.drain();
        let name = name.to_owned();
        let output = self.printed.last_words();
        match trouble {
            Trouble::Exceeded(exceeded) => exceeded.failure(&name),
            Trouble::Failed(failure) => failure,
            Trouble::Rubbish(text) => {
                Failure::Crashed { name, how: format!("did not keep to the host protocol: {text}"), output }
            }
            Trouble::Ended => {
                let how = match ended {
                    Ok(status) if by_itself => how(status),
                    _ => "closed its pipe to the node without ending".to_owned(),
                };
                Failure::Crashed { name, how, output }
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a child. While its executable is busy, it is tried again.
async fn spawn(command: &mut Command) -> io::Result<Child> {
    for _ in 0..BUSY_TRIES {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            outcome => return outcome,
        }
    }
    command.spawn()
}

/// Waits for a child's end, and cleans up after it.
async fn look_after(
    mut child: Child,
    (group, mark): (i32, Mark),
    scratch: TempDir,
    exited: watch::Sender<Option<ExitStatus>>,
    family: Family,
) {
    let status = child.wait().await.unwrap_or_else(|_| ExitStatus::from_raw(0));
    // What it started itself is not to outlive it.
    processes::end_group(group);
    exited.send_replace(Some(status));
    let clean_up = move || {
        processes::end_marked(&mark);
        scratch.close()
    };
    let removed = tokio::task::spawn_blocking(clean_up).await;
    if let Ok(Err(error)) = removed {
        tracing::debug!(%error, "a function's directory cannot be removed");
    }
    family.leave(group);
}

/// Marks a child, and makes it take second place, behind the node.
fn restrain(group: i32, mark: &Mark) {
    processes::mark(group, mark);
    // SAFETY: it takes and returns plain numbers.
    let done = unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, group as nix::libc::id_t, NICE) };
    if done != 0 {
        tracing::debug!(error = %Errno::last(), "a child's priority cannot be lowered");
    }
    #[cfg(target_os = "linux")]
    {
        // Its end is not worth a core file as large as its memory.
        let none = nix::libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `none` is read during the call only, and nothing is written.
        unsafe { nix::libc::prlimit(group, nix::libc::RLIMIT_CORE, &none, std::ptr::null_mut()) };
        drop(std::fs::write(format!("/proc/{group}/oom_score_adj"), OOM_SCORE));
    }
}

/// Gives a pipe more room.
fn widen(pipe: &impl AsFd) {
    #[cfg(target_os = "linux")]
    // Users have a limit on it; a small pipe works too.
    let _ = nix::fcntl::fcntl(pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    #[cfg(not(target_os = "linux"))]
    let _ = pipe;
}

impl Exit {
    pub(super) async fn ended(&mut self) -> ExitStatus {
        match self.0.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or_default(),
            // Nobody waits for it any more: the node is stopping.
            Err(_) => ExitStatus::from_raw(Signal::SIGKILL as i32),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.borrow().is_some()
    }
}

impl Printed {
    /// Whom what comes from now on belongs to.
    pub(super) fn belongs_to(&self, log: TaskLog) {
        self.drain();
        let mut sink = self.sink();
        sink.log = log;
        sink.tail.clear();
    }

    /// Takes in what has been printed, without waiting.
    pub(super) fn drain(&self) {
        // Asked of the system itself: the runtime may not have heard yet that there is something.
        self.take_in(|block| Ok(nix::unistd::read(&self.pipe, block)?));
    }

    /// Takes in what is printed, for as long as somebody can print.
    async fn pump(self: Arc<Self>) {
        while self.pipe.readable().await.is_ok() {
            match self.take_in(|block| self.pipe.try_read(block)) {
                Drained::Empty => {}
                Drained::More => tokio::task::yield_now().await,
                Drained::Ended => return,
            }
        }
    }

    fn take_in(&self, mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> Drained {
        let mut block = [0; 16 << 10];
        let mut sink = self.sink();
        let mut bytes = 0;
        while bytes < PRINTED_AT_ONCE_BYTES {
            match read(&mut block) {
                Ok(0) => return Drained::Ended,
                Ok(read) => {
                    sink.take(&block[..read]);
                    bytes += read;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Drained::Empty,
                Err(_) => return Drained::Ended,
            }
        }
        Drained::More
    }

    /// The last lines, with a word before them.
    pub(super) fn last_words(&self) -> String {
        let sink = self.sink();
        let text = String::from_utf8_lossy(&sink.tail);
        let text = text.trim_end();
        // What was cut into is not shown.
        let text = if sink.tail.len() < TAIL_BYTES {
            text
        } else {
            text.split_once('\n').map_or(text, |(_, rest)| rest)
        };
        if text.is_empty() { String::new() } else { format!("; the last it printed was:\n{text}") }
    }

    fn sink(&self) -> MutexGuard<'_, Sink> {
        // At worst something printed is shown twice or not at all.
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink {
    fn take(&mut self, bytes: &[u8]) {
        self.log.write(bytes);
        self.tail.extend_from_slice(bytes);
        if self.tail.len() > TAIL_BYTES {
            self.tail.drain(..self.tail.len() - TAIL_BYTES);
        }
    }
}

/// How a process ended, as in "the process … was killed by signal 11 (SIGSEGV)".
pub(in crate::worker) fn how(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => {
            let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
            let guess =
                if signal == Signal::SIGKILL as i32 { ", perhaps because memory ran out" } else { "" };
            format!("was killed by signal {signal} ({name}){guess}")
        }
        (None, code) => format!("ended with exit status {}", code.unwrap_or_default()),
    }
}

/// Reads what a process writes to its stdout, to its end.
pub(super) async fn read_all(
    pipe: &mut (impl AsyncRead + Unpin),
    max_bytes: u64,
) -> Result<Vec<u8>, Trouble> {
    let mut all = Vec::new();
    pipe.take(max_bytes.saturating_add(1)).read_to_end(&mut all).await.map_err(|_| Trouble::Ended)?;
    if all.len() as u64 > max_bytes {
        let exceeded = Exceeded::Output { took_bytes: all.len() as u64, may_bytes: max_bytes };
        return Err(Trouble::Exceeded(exceeded));
    }
    Ok(all)
}

/// The variables that tell libraries how many threads a child may use: its share of the machine.
pub(super) fn thread_env(threads: usize) -> impl Iterator<Item = (&'static str, String)> {
    [
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "RAYON_NUM_THREADS",
        "POLARS_MAX_THREADS",
    ]
    .into_iter()
    .map(move |name| (name, threads.to_string()))
}

/// A function's own variables.
pub(super) fn own_env(env: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, String)> {
    // What cannot be a variable would fail the start in the system's own words.
    let valid = |name: &str| !name.is_empty() && !name.contains(['=', '\0']);
    env.iter()
        .filter(move |(name, value)| valid(name) && !value.contains('\0'))
        .map(|(name, value)| (name.as_str(), value.clone()))
}

/// The failure of a process that cannot be started for a reason of this node's: it has too many already.
pub(super) fn no_room(error: &io::Error) -> Option<Failure> {
    let code = Errno::from_raw(error.raw_os_error()?);
    let none_left =
        matches!(code, Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE | Errno::ENOSPC);
    none_left.then(|| Failure::Exhausted {
        what: if code == Errno::ENOSPC { "disk" } else { "memory" }.to_owned(),
        message: format!("no further process can be started: {error}"),
    })
}
