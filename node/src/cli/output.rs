//! Where results go: stdout or a file.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use tempfile::NamedTempFile;

/// Writes to stdout. A reader that went away is not an error: it has seen enough.
pub(super) fn print(text: fmt::Arguments<'_>) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_fmt(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("stdout cannot be written"),
        _ => Ok(()),
    }
}

/// Writes a line to stderr, as far as that is possible.
pub(super) fn note(line: fmt::Arguments<'_>) {
    // Where stderr is gone there is nobody to tell.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Names under which a process knows its own stdout.
const STDOUT_PATHS: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

/// Where a result goes, opened before anything is submitted, so that a path that cannot be written costs no
/// work. A file appears, or replaces the one before, only when the result is whole.
#[derive(Debug)]
pub(super) struct Output {
    sink: Sink,
    /// Whether stdout's reader went away.
    abandoned: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Sink {
    Stdout(BufWriter<io::Stdout>),
    /// A device or a pipe, which cannot be replaced.
    Special(BufWriter<File>),
    File {
        part: BufWriter<NamedTempFile>,
        path: PathBuf,
    },
}

impl Output {
    /// To stdout.
    pub(super) fn stdout() -> Self {
        Self::to(Sink::Stdout(BufWriter::new(io::stdout())))
    }

    /// To a file.
    pub(super) fn file(path: &Path) -> anyhow::Result<Self> {
        let unwritable = || format!("{} cannot be written", path.display());
        // What stdout was redirected to must not be replaced under the shell's hands.
        if STDOUT_PATHS.iter().any(|stdout| path == Path::new(stdout)) {
            return Ok(Self::stdout());
        }
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => anyhow::bail!("{} is a directory: name a file", path.display()),
            Ok(found) => {
                let file = OpenOptions::new().write(true).open(path).with_context(unwritable)?;
                if !found.is_file() {
                    return Ok(Self::to(Sink::Special(BufWriter::new(file))));
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(unwritable),
        }
        // A symbolic link stays one: what it points to is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let part = new_part(directory.unwrap_or(Path::new("."))).with_context(unwritable)?;
        Ok(Self::to(Sink::File { part: BufWriter::new(part), path }))
    }

    fn to(sink: Sink) -> Self {
        Self { sink, abandoned: Arc::default() }
    }

    /// Tells, also while the output is lent to a writer, whether its reader went away.
    pub(super) fn abandoned(&self) -> Arc<AtomicBool> {
        self.abandoned.clone()
    }

    /// Makes what was written final.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        self.flush()?;
        match self.sink {
            Sink::Stdout(_) | Sink::Special(_) => Ok(()),
            Sink::File { part, path } => {
                let unwritable = || format!("{} cannot be written", path.display());
                let part =
                    part.into_inner().map_err(io::IntoInnerError::into_error).with_context(unwritable)?;
                part.persist(&path).with_context(unwritable)?;
                Ok(())
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.sink {
            Sink::Stdout(sink) => sink.write(bytes),
            Sink::Special(sink) => sink.write(bytes),
            Sink::File { part, .. } => part.write(bytes),
        };
        self.observe(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = match &mut self.sink {
            Sink::Stdout(sink) => sink.flush(),
            Sink::Special(sink) => sink.flush(),
            Sink::File { part, .. } => part.flush(),
        };
        self.observe(flushed)
    }
}

impl Output {
    fn observe<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if matches!(&result, Err(error) if error.kind() == ErrorKind::BrokenPipe) {
            self.abandoned.store(true, Ordering::Relaxed);
        }
        result
    }
}

/// An unnamed part of a file beside its place, so that it can be put there in one step, with the access that
/// any new file of this user has.
fn new_part(directory: &Path) -> io::Result<NamedTempFile> {
    // A directory that is not there is told as such, without the part's name.
    fs::metadata(directory)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".floe-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(directory)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.csv");
        fs::write(&path, "old").unwrap();
        let mut output = Output::file(&path).unwrap();
        output.write_all(b"half").unwrap();
        drop(output);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        let mut output = Output::file(&path).unwrap();
        output.write_all(b"whole").unwrap();
        output.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no part is left behind");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_found_at_once_and_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("no/such/out.csv");
        for path in [directory.path(), &missing] {
            let error = Output::file(path).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }
}
