//! The short-lived processes that find interpreters and make environments: each in a process group of its
//! own, which is killed when nobody waits for it any more. What pip and uv build runs code of others, and for long: the
//! node's [`Guardian`] looks after those.

use std::fmt::Debug;
use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures::future::BoxFuture;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::text;

/// The longest answer that is read; a list of some ten thousand installed packages fits.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// A line that goes on beyond this is taken for several.
const MAX_LINE_BYTES: usize = 4096;

/// What a process wrote to its stdout, if it ended well and in time; else why not, to follow its name.
pub(super) async fn answer(mut command: Command, limit: Duration) -> Result<Vec<u8>, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let asked = async {
        let mut group = Group::spawn(command)?;
        let mut answer = Vec::new();
        if let Some(stdout) = group.child.stdout.take() {
            stdout.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
        }
        Ok::<_, io::Error>((group.wait().await?, answer))
    };
    match timeout(limit, asked).await {
        Ok(Ok((status, answer))) if status.success() => Ok(answer),
        Ok(Ok((status, _))) => Err(format!("ended with {status}")),
        Ok(Err(error)) => Err(format!("does not start: {error}")),
        Err(_) => Err(format!("gave no answer within {} s", limit.as_secs())),
    }
}

/// Who sees to it that what is started does not outlive the node, however that ends.
pub(crate) trait Guardian: Debug + Send + Sync {
    /// Starts a process that leads a group of its own.
    fn start(&self, command: Command) -> io::Result<Box<dyn Guarded>>;
}

/// A process and those it started. Dropped, it ends with all of them, unless it was waited for.
pub(crate) trait Guarded: Send {
    /// Waits for its end, which is not seen before.
    fn wait(&mut self) -> BoxFuture<'_, io::Result<ExitStatus>>;
}

/// Runs a process, with all that it starts, to its end and hands over what it prints, on stdout or stderr, a line at a
/// time.
pub(super) async fn lines(
    guardian: &dyn Guardian,
    mut command: Command,
    stdin: Stdio,
    line: &mut (dyn FnMut(&str) + Send),
) -> io::Result<ExitStatus> {
    // One pipe for both, or their lines would be out of order.
    let (reader, writer) = io::pipe()?;
    command.stdin(stdin).stdout(writer.try_clone()?).stderr(writer);
    let mut process = guardian.start(command)?;
    let mut splitter = Splitter::default();
    let mut reader = receiver(reader)?;
    let mut buffer = [0; 8192];
    loop {
        match reader.read(&mut buffer).await? {
            0 => break,
            read => splitter.feed(&buffer[..read], line),
        }
    }
    splitter.end(line);
    process.wait().await
}

fn receiver(reader: PipeReader) -> io::Result<impl AsyncRead> {
    pipe::Receiver::from_owned_fd(OwnedFd::from(reader))
}

/// A process and those it started. Killed when dropped, unless it was waited for.
struct Group {
    child: Child,
    running: bool,
}

impl Group {
    /// Takes the command, since it holds the writing ends of pipes that are read to their end.
    fn spawn(mut command: Command) -> io::Result<Self> {
        Ok(Self { child: command.process_group(0).kill_on_drop(true).spawn()?, running: true })
    }

    /// To be called when there is nothing more to read: until then the process is not reaped, and so its
    /// number still means this group.
    async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.running = false;
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let group = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(group) = group.filter(|_| self.running) {
            // It fails when all of them are gone, which is as well.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

/// Makes lines of what comes in pieces.
#[derive(Default)]
struct Splitter {
    begun: Vec<u8>,
}

impl Splitter {
    fn feed(&mut self, bytes: &[u8], line: &mut (dyn FnMut(&str) + Send)) {
        for &byte in bytes {
            // A carriage return begins a line anew; what was there before was worth showing, too.
            if byte == b'\n' || byte == b'\r' || self.begun.len() == MAX_LINE_BYTES {
                self.end(line);
            }
            if byte != b'\n' && byte != b'\r' {
                self.begun.push(byte);
            }
        }
    }

    fn end(&mut self, line: &mut (dyn FnMut(&str) + Send)) {
        let clean = text::clean(&String::from_utf8_lossy(&self.begun));
        self.begun.clear();
        if !clean.trim().is_empty() {
            line(&clean);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::tests::Alone;
    use super::*;

    impl Guarded for Group {
        fn wait(&mut self) -> BoxFuture<'_, io::Result<ExitStatus>> {
            Box::pin(Group::wait(self))
        }
    }

    impl Guardian for Alone {
        fn start(&self, command: Command) -> io::Result<Box<dyn Guarded>> {
            Ok(Box::new(Group::spawn(command)?))
        }
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    async fn run(script: &str) -> (ExitStatus, Vec<String>) {
        let mut seen = Vec::new();
        let status = lines(&Alone, shell(script), Stdio::null(), &mut |line| seen.push(line.to_owned()))
            .await
            .unwrap();
        (status, seen)
    }

    #[tokio::test]
    async fn lines_come_in_order_from_both_outputs() {
        let (status, seen) = run("echo one; echo two >&2; printf 'three\\rfour\\n\\nfive'; exit 3").await;
        assert_eq!(seen, ["one", "two", "three", "four", "five"]);
        assert_eq!(status.code(), Some(3));
    }

    #[tokio::test]
    async fn an_endless_line_is_cut() {
        let (_, seen) = run("head -c 10000 /dev/zero | tr '\\0' x").await;
        assert_eq!(seen.iter().map(String::len).collect::<Vec<_>>(), [4096, 4096, 1808]);
    }

    #[tokio::test]
    async fn answers_are_told_from_failures() {
        let limit = Duration::from_secs(20);
        assert_eq!(answer(shell("echo 3"), limit).await, Ok(b"3\n".to_vec()));
        assert_eq!(answer(shell("exit 7"), limit).await, Err("ended with exit status: 7".to_owned()));
        let nothing = Command::new("/nonexistent/python");
        assert!(answer(nothing, limit).await.unwrap_err().starts_with("does not start: "));
        let slow = answer(shell("sleep 600"), Duration::from_millis(10)).await;
        assert_eq!(slow, Err("gave no answer within 0 s".to_owned()));
    }

    #[tokio::test]
    async fn a_process_nobody_waits_for_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let script = format!("sleep 600 & echo $$ $! > {0}.new; mv {0}.new {0}; wait", file.display());
        let mut ignore = |_: &str| {};
        let mut running = Box::pin(lines(&Alone, shell(&script), Stdio::null(), &mut ignore));
        let pids = loop {
            assert!(timeout(Duration::from_millis(10), &mut running).await.is_err());
            if let Ok(pids) = fs::read_to_string(&file) {
                break pids;
            }
        };
        drop(running);
        for pid in pids.split_whitespace() {
            while alive(pid) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Whether a process runs; one that waits to be reaped by whoever is first does not.
    fn alive(pid: &str) -> bool {
        let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }
}
