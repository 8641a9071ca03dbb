//! Faults that a node lets happen to itself when a driver asks: `floe chaos`.
//!
//! Only a node whose owner has allowed it takes one (`floe up --allow-chaos`). A fault hits the whole process; in a process
//! that is more than a node it is refused. Each comes to an end by itself, whatever becomes of whoever asked for it.

use std::io;
use std::ops::RangeInclusive;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use floe_protocol::Failure;
use floe_protocol::message::Fault;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a node may stand still: less is no fault, and from the upper bound on it is not told from a dead one.
pub const PAUSE_MS: RangeInclusive<u64> = 50..=15_000;

/// How long a node may be away: its owner should not have to wonder where it went.
pub const DOWN_MS: RangeInclusive<u64> = 50..=30_000;

/// How long the answer has to leave the process before the fault happens.
const PARTING: Duration = Duration::from_millis(50);

/// How many times a paused node is told to go on, a second apart: on a stalled machine the first could come
/// before it stands still.
const WAKE_CALLS: u32 = 5;

/// Whether a node takes faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// Its process is more than a node.
    NotAlone,
    /// Its owner has not allowed it.
    NotAllowed,
    /// Its owner has, and its process is a node and nothing else, with the arguments to start it with again.
    Allowed,
}

/// Lets a fault happen in a moment, so that whoever asked can still be answered.
pub fn inflict(faults: Faults, fault: Fault) -> Result<(), Failure> {
    check(fault)?;
    let refused = match faults {
        Faults::Allowed => None,
        Faults::NotAllowed => Some(
            "this node's owner has not allowed that: only nodes that were started with `floe up --allow-chaos` take faults",
        ),
        Faults::NotAlone => Some(
            "this node is part of another program, which a fault would hit too: only nodes of `floe up` take one",
        ),
    };
    if let Some(message) = refused {
        return Err(Failure::Refused { message: message.to_owned() });
    }
    match fault {
        Fault::Pause { pause_ms } => pause(pause_ms),
        Fault::Crash { down_ms } => crash(down_ms),
    }
    .map_err(|error| Failure::Refused { message: format!("this node cannot do that to itself: {error}") })
}

/// Whether the fault stays within its limits.
fn check(fault: Fault) -> Result<(), Failure> {
    let (what, ms, limits) = match fault {
        Fault::Pause { pause_ms } => ("pause", pause_ms, PAUSE_MS),
        Fault::Crash { down_ms } => ("be away", down_ms, DOWN_MS),
    };
    if limits.contains(&ms) {
        return Ok(());
    }
    let (from, to) = limits.into_inner();
    Err(Failure::Refused { message: format!("a node can {what} for {from} to {to} ms, not for {ms} ms") })
}

/// Stops this process. Who continues it is started first, and in a process group of its own, so that a Ctrl-C
/// that reaches the node does not end it.
fn pause(pause_ms: u64) -> io::Result<()> {
    let own = Pid::this();
    let script = format!(
        "sleep {}; n=0; while [ $n -lt {WAKE_CALLS} ]; do kill -CONT {own} || exit; n=$((n+1)); sleep 1; done",
        seconds(pause_ms + PARTING.as_millis() as u64)
    );
    let mut waker = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    tracing::warn!(
        pause_ms,
        "asked to pause: this node stands still for a while (a shell may take its terminal back: `fg` brings it to the front again)"
    );
    thread::spawn(move || {
        thread::sleep(PARTING);
        if let Err(error) = kill(own, Signal::SIGSTOP) {
            tracing::warn!(%error, "this node cannot be stopped");
        }
        // Perhaps not stopped yet, since another thread may be given the signal: the waker has to end by itself. An
        // error would mean that somebody else has waited for it.
        let _ = waker.wait();
    });
    Ok(())
}

/// Replaces this process by a shell that waits and then starts it again: what it had in memory and its sockets
/// are gone as after SIGKILL, its process id and its terminal stay.
fn crash(down_ms: u64) -> io::Result<()> {
    let program = std::env::current_exe()?;
    if !program.is_file() {
        return Err(io::Error::other(format!("{} is not there any more to start again", program.display())));
    }
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("sleep {}; exec \"$@\"", seconds(down_ms)));
    shell.arg("floe").arg(program).args(std::env::args_os().skip(1));
    tracing::warn!(down_ms, "asked to crash: this node is gone now, and starts again after a while");
    thread::spawn(move || {
        thread::sleep(PARTING);
        // It returns only if it did not work.
        let error = shell.exec();
        tracing::warn!(%error, "this node cannot crash");
    });
    Ok(())
}

/// As `sleep` takes it.
fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_have_limits_and_hit_neither_other_programs_nor_who_did_not_allow_them() {
        let bad = [
            Fault::Pause { pause_ms: 0 },
            Fault::Pause { pause_ms: PAUSE_MS.end() + 1 },
            Fault::Pause { pause_ms: u64::MAX },
            Fault::Crash { down_ms: 0 },
            Fault::Crash { down_ms: u64::MAX },
        ];
        for fault in bad {
            let text = inflict(Faults::Allowed, fault).unwrap_err().to_string();
            assert!(text.contains("ms, not for"), "{text}");
        }
        for (faults, why) in
            [(Faults::NotAlone, "part of another program"), (Faults::NotAllowed, "--allow-chaos")]
        {
            for fault in [Fault::Pause { pause_ms: 1_000 }, Fault::Crash { down_ms: 1_000 }] {
                let text = inflict(faults, fault).unwrap_err().to_string();
                assert!(text.contains(why), "{text}");
            }
        }
    }

    #[test]
    fn sleep_takes_seconds() {
        assert_eq!([seconds(50), seconds(1_500), seconds(30_000)], ["0.050", "1.500", "30.000"]);
    }
}
