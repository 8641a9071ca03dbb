//! The demo's nodes: real processes of this very binary, apart from any mesh of the user's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use floe_client::MeshKey;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::data_dir::write_key;

/// How long a node may take to be ready: many times what it needs on a slow machine.
const READY: Duration = Duration::from_secs(60);

/// How many lines of a failed node's log are shown.
const LOG_LINES: usize = 8;

/// The nodes that run. Dropping them kills their processes, whatever the reason.
#[derive(Debug, Default)]
pub(super) struct Processes {
    running: Vec<Process>,
}

/// One node.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) ready_after: Duration,
    child: Child,
    log: PathBuf,
    /// Kept open: a node whose stdout is closed could not write to it.
    stdout: Option<BufReader<ChildStdout>>,
}

impl Processes {
    /// Starts `count` nodes at once and waits until each is ready.
    pub(super) async fn start(&mut self, home: &Path, key: &MeshKey, count: usize) -> anyhow::Result<()> {
        let key_file = home.join("key");
        write_key(&key_file, key)?;
        let start = Instant::now();
        for number in 1..=count {
            self.running.push(Process::spawn(home, &key_file, format!("n{number}"), count)?);
        }
        for process in &mut self.running {
            process.ready(start).await?;
        }
        Ok(())
    }

    /// The nodes that were not killed.
    pub(super) fn all(&self) -> &[Process] {
        &self.running
    }

    /// Kills one node and returns the process id it had.
    pub(super) async fn kill(&mut self, name: &str) -> anyhow::Result<u32> {
        let at = self.running.iter().position(|process| process.name == name);
        let mut process = self.running.remove(at.with_context(|| format!("there is no node {name}"))?);
        let pid = process.child.id().with_context(|| format!("{name} had ended by itself"))?;
        process.child.kill().await.with_context(|| format!("{name} cannot be killed"))?;
        Ok(pid)
    }

    /// Kills all and waits until they are gone.
    pub(super) async fn kill_all(&mut self) {
        for process in &mut self.running {
            if let Err(error) = process.child.kill().await {
                tracing::debug!(node = process.name, %error, "a node had ended before it was killed");
            }
        }
        self.running.clear();
    }
}

impl Process {
    fn spawn(home: &Path, key_file: &Path, name: String, count: usize) -> anyhow::Result<Self> {
        let log = home.join(format!("{name}.log"));
        let binary = std::env::current_exe().context("this program's own file cannot be found")?;
        let stderr = File::create(&log).with_context(|| format!("{} cannot be written", log.display()))?;
        let mut child = Command::new(binary)
            .args(["up", "--slots", "1", "--listen", "/ip4/127.0.0.1/tcp/0", "--name", &name])
            .args(["--expect", &count.to_string()])
            .arg("--data-dir")
            .arg(home.join(&name))
            .arg("--key-file")
            .arg(key_file)
            .env("FLOE_HOME", home)
            .env_remove("FLOE_CONNECT")
            .env_remove("FLOE_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            // Ctrl-C is for the demo, which then kills its nodes.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        let stdout = child.stdout.take().map(BufReader::new);
        Ok(Self { name, address: String::new(), ready_after: Duration::ZERO, child, log, stdout })
    }

    /// Waits for the line that says where the node can be dialled.
    async fn ready(&mut self, start: Instant) -> anyhow::Result<()> {
        let left = READY.saturating_sub(start.elapsed());
        match tokio::time::timeout(left, self.ready_line()).await {
            Ok(address) => self.address = address?,
            Err(_) => bail!("{} was not ready within {} s{}", self.name, READY.as_secs(), self.last_words()),
        }
        self.ready_after = start.elapsed();
        Ok(())
    }

    async fn ready_line(&mut self) -> anyhow::Result<String> {
        let stdout = self.stdout.as_mut().context("a node has no stdout")?;
        let mut line = String::new();
        while stdout.read_line(&mut line).await? > 0 {
            let mut words = line.split_whitespace();
            if words.next() == Some("ready") {
                let address = words.find(|word| word.starts_with('/'));
                return address
                    .map(str::to_owned)
                    .with_context(|| format!("no address in `{}`", line.trim()));
            }
            line.clear();
        }
        let status = self.child.wait().await?;
        Err(anyhow!("{} ended before it was ready, with {status}{}", self.name, self.last_words()))
    }

    /// The end of its log, to be appended to an error.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
        last.iter().map(|line| format!("\n  {line}")).collect()
    }
}
