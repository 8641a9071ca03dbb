//! A disk that can be full: a tmpfs that only the processes on it see.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::Unavailable;
use super::process::{Floe, tied};

/// What is written to fill it, at a time.
const BLOCK_BYTES: usize = 64 << 10;

/// A tmpfs of a fixed size in a mount namespace of its own. It goes with this handle.
#[derive(Debug)]
pub struct SmallDisk {
    /// Keeps the namespace, and with it the files, while no other process does.
    _holder: Child,
    pid: u32,
    dir: PathBuf,
    /// The namespaces to enter, as `nsenter` wants them.
    enter: &'static [&'static str],
}

impl SmallDisk {
    /// A disk of this size at `dir`, an empty directory. It needs Linux, and root or user namespaces;
    /// the error is [`Unavailable`] where there can be none.
    pub async fn new(dir: &Path, size_bytes: u64) -> Result<Self> {
        fs::create_dir_all(dir)?;
        match Self::mount(dir, size_bytes, &["--mount"], &["--mount"]).await {
            Ok(disk) => Ok(disk),
            // Whoever is not root may be it in a namespace of users.
            Err(_) => {
                let enter = &["--user", "--preserve-credentials", "--mount"];
                let mounted = Self::mount(dir, size_bytes, &["--map-root-user", "--mount"], enter).await;
                mounted.context(Unavailable("disk of a size of our choice"))
            }
        }
    }

    async fn mount(
        dir: &Path,
        size_bytes: u64,
        unshare: &[&str],
        enter: &'static [&'static str],
    ) -> Result<Self> {
        let script = r#"mount -t tmpfs -o "size=$2" floe "$1" && echo mounted && exec sleep infinity"#;
        let mut command = Command::new("unshare");
        command.args(unshare).args(["sh", "-c", script, "sh"]).arg(dir).arg(size_bytes.to_string());
        let mut holder = tied(&mut command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run `unshare`")?;
        let stdout = holder.stdout.take().context("`unshare` has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).await?;
        if line.trim_end() != "mounted" {
            let said = holder.wait_with_output().await?.stderr;
            bail!("cannot mount a tmpfs: {}", String::from_utf8_lossy(&said).trim_end());
        }
        let pid = holder.id().context("the small disk's holder has ended")?;
        Ok(Self { _holder: holder, pid, dir: dir.to_owned(), enter })
    }

    /// `floe` where this disk is seen.
    pub fn floe(&self, floe: Floe) -> Floe {
        let target = self.pid.to_string();
        let launcher = ["nsenter", "--target", &target].into_iter().chain(self.enter.iter().copied());
        floe.through(launcher.chain(["--"]).map(str::to_owned))
    }

    /// Fills it, and returns how many bytes that took.
    pub fn fill(&self) -> Result<u64> {
        let path = self.filler();
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let (block, mut filled) = (vec![1; BLOCK_BYTES], 0);
        loop {
            match file.write(&block) {
                Ok(bytes) => filled += bytes as u64,
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(filled),
                Err(error) => return Err(error).with_context(|| format!("cannot write {}", path.display())),
            }
        }
    }

    /// Undoes [`SmallDisk::fill`].
    pub fn free(&self) -> Result<()> {
        let path = self.filler();
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// The file that fills it, by a way that leads into the namespace.
    fn filler(&self) -> PathBuf {
        let inside = self.dir.strip_prefix("/").unwrap_or(&self.dir);
        PathBuf::from(format!("/proc/{}/root", self.pid)).join(inside).join("filler")
    }
}
