//! A host's pipes, out of the way of what its functions print and read.

use std::fs::File;
use std::io;

/// Takes stdin and stdout for the protocol. From then on what is printed goes to stderr, which the node keeps
/// as the log, and stdin is empty.
#[cfg(unix)]
pub(super) fn take() -> io::Result<(File, File)> {
    use std::os::fd::AsFd;

    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    nix::unistd::dup2_stdout(io::stderr())?;
    Ok((input.into(), output.into()))
}

/// Nodes start hosts on Unix only.
#[cfg(not(unix))]
pub(super) fn take() -> io::Result<(File, File)> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "functions run on Unix only"))
}
