//! The `floe` binary as a process: one that runs to its end, and one that is a node.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::log::LogLine;
use super::{DEADLINE, wait_until};

/// The listen address that asks for any free port.
pub(super) const ANY_PORT: &str = "/ip4/127.0.0.1/tcp/0";

/// How long a node may take from its start to its `ready` line.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// How long a killed process may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// How much of a log's end is shown when something fails.
const LOG_TAIL_LINES: usize = 40;

/// A way to call the `floe` binary: with a home of its own, so that it neither sees nor is seen by any mesh
/// of the user's.
#[derive(Clone, Debug)]
pub struct Floe {
    launcher: Vec<OsString>,
    home: PathBuf,
    env: Vec<(String, String)>,
}

/// A `floe` command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// All it wrote to standard output.
    pub stdout: Vec<u8>,
    /// All it wrote to standard error.
    pub stderr: String,
}

impl Floe {
    /// Calls `binary` with `home` as the user's Floe directory.
    pub fn new(binary: impl AsRef<Path>, home: impl Into<PathBuf>) -> Self {
        Self { launcher: vec![binary.as_ref().into()], home: home.into(), env: Vec::new() }
    }

    /// Runs it through another program, as in `ip netns exec NAME floe ..`.
    pub fn through<S: Into<OsString>>(mut self, launcher: impl IntoIterator<Item = S>) -> Self {
        self.launcher.splice(0..0, launcher.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The directory it has for its own.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The command with these arguments, not yet started. It dies with the handle, and on Linux with this
    /// process, however that ends.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.launcher[0]);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FLOE_") {
                command.env_remove(name);
            }
        }
        command
            .args(&self.launcher[1..])
            .args(args)
            .env("FLOE_HOME", &self.home)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        tied(&mut command);
        command
    }

    /// Runs it to its end, whatever its exit status.
    pub async fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Finished> {
        let mut command = self.command(args);
        let output = timeout(DEADLINE, command.output())
            .await
            .map_err(|_| anyhow!("{:?} did not end within {} s", command.as_std(), DEADLINE.as_secs()))??;
        Ok(Finished {
            status: output.status,
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

impl Finished {
    /// Standard output as text, if the command succeeded.
    pub fn success(self) -> Result<String> {
        if !self.status.success() {
            bail!("floe ended with {}: {}", self.status, self.stderr.trim_end());
        }
        String::from_utf8(self.stdout).context("floe's output is not text")
    }

    /// Standard error, if the command failed by itself, neither by a signal nor a panic.
    pub fn failure(self) -> Result<String> {
        match self.status.code() {
            Some(0) => bail!("floe succeeded where it should not: {}", String::from_utf8_lossy(&self.stdout)),
            None => bail!("floe was ended by a signal: {}", self.status),
            Some(_) if self.stderr.contains("panicked at") => bail!("floe panicked: {}", self.stderr),
            Some(_) => Ok(self.stderr),
        }
    }
}

/// One `floe up` as a process. Its standard output and its log lie beside its data as `out` and `log`.
#[derive(Debug)]
pub struct Node {
    floe: Floe,
    dir: PathBuf,
    args: Vec<String>,
    address: String,
    child: Option<Child>,
}

impl Node {
    /// Starts `floe up ARGS` without waiting for it; `dir` is where its output goes.
    pub fn spawn<S: Into<String>>(floe: Floe, dir: &Path, args: impl IntoIterator<Item = S>) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let args = args.into_iter().map(Into::into).collect();
        let mut node = Self { floe, dir: dir.to_owned(), args, address: String::new(), child: None };
        node.launch()?;
        Ok(node)
    }

    fn launch(&mut self) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.dir.join("log"))?;
        let child = self
            .floe
            .command(["up", "-v"].into_iter().chain(self.args.iter().map(String::as_str)))
            .stdout(File::create(self.dir.join("out"))?)
            .stderr(log)
            .spawn()
            .context("cannot start floe")?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits for its `ready` line.
    pub async fn ready(&mut self) -> Result<()> {
        let out = self.dir.join("out");
        let (child, dir) = (&mut self.child, &self.dir);
        let found = wait_until("a node is ready", READY_DEADLINE, async || {
            let text = fs::read_to_string(&out).unwrap_or_default();
            // The last line may still be half written.
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some(line) = whole.lines().find(|line| line.starts_with("ready")) {
                let address = line.split_whitespace().find(|word| word.starts_with('/'));
                return Some(address.map(str::to_owned).ok_or_else(|| anyhow!("no address in `{line}`")));
            }
            match child.as_mut().map(Child::try_wait) {
                Some(Ok(None)) => None,
                other => Some(Err(anyhow!("the node ended before it was ready: {other:?}"))),
            }
        })
        .await
        .and_then(|found| found);
        self.address = found.with_context(|| format!("{}\n{}", dir.display(), self.log_tail()))?;
        Ok(())
    }

    /// The address that its `ready` line named, with its peer id at the end; it outlives the process.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it is called: the name of the directory in which its output lies.
    pub fn name(&self) -> String {
        self.dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// Its libp2p peer id.
    pub fn peer(&self) -> &str {
        self.address.rsplit('/').next().unwrap_or_default()
    }

    /// Its TCP port.
    pub fn port(&self) -> Result<u16> {
        let mut parts = self.address.split('/').skip_while(|part| *part != "tcp");
        let port = parts.nth(1).ok_or_else(|| anyhow!("no TCP port in `{}`", self.address))?;
        Ok(port.parse()?)
    }

    /// Where its output and its log lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Whether it has been started and not been ended; a stopped one counts as running.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// All it has logged, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// What it has logged since then, in milliseconds since the Unix epoch.
    pub fn log_since(&self, unix_ms: f64) -> Vec<LogLine> {
        let log = self.log();
        let lines = log.lines().rev().filter_map(LogLine::parse);
        let mut lines: Vec<_> = lines.take_while(|line| line.unix_ms >= unix_ms).collect();
        lines.reverse();
        lines
    }

    /// The last lines of its log.
    pub(super) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().context("the node does not run")?;
        kill(Pid::from_raw(pid.try_into()?), signal).with_context(|| format!("cannot send {signal} to {pid}"))
    }

    /// Kills it (SIGKILL): no goodbye, nothing flushed.
    pub async fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the node does not run")?;
        child.kill().await?;
        Ok(())
    }

    /// Stops it (SIGSTOP): its connections stay open, and nobody answers on them.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a stopped node go on (SIGCONT).
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Kills it and waits on this thread until it is gone, for use in `drop`.
    pub(super) fn kill_now(mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let end = Instant::now() + KILL_DEADLINE;
        // Nothing can be done about an error here; the kernel kills the child later at the latest.
        let _ = child.start_kill();
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks it to leave (SIGTERM) and waits until it has.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait().await
    }

    /// Whether it has ended by itself; then it no longer counts as running.
    pub fn has_ended(&mut self) -> Result<bool> {
        let Some(child) = &mut self.child else { return Ok(true) };
        let ended = child.try_wait()?.is_some();
        if ended {
            self.child = None;
        }
        Ok(ended)
    }

    /// Waits until it ends by itself.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        let child = self.child.as_mut().context("the node does not run")?;
        let status = timeout(DEADLINE, child.wait())
            .await
            .map_err(|_| anyhow!("the node did not end within {} s", DEADLINE.as_secs()))??;
        self.child = None;
        Ok(status)
    }

    /// Starts it again as before, on the port it had, and waits for its `ready` line.
    pub async fn restart(&mut self) -> Result<()> {
        if self.runs() {
            self.kill().await?;
        }
        let here = self.address.split("/p2p/").next().unwrap_or_default().to_owned();
        for arg in self.args.iter_mut().filter(|arg| *arg == ANY_PORT) {
            arg.clone_from(&here);
        }
        self.launch()?;
        self.ready().await
    }
}

/// A command whose process ends with its handle, and on Linux with this process, however that ends.
pub(super) fn tied(command: &mut Command) -> &mut Command {
    command.kill_on_drop(true);
    die_with_parent(command);
    command
}

/// Asks the kernel to kill the child when the thread that started it ends, so that nothing outlives a test
/// runner that was itself killed.
#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}
