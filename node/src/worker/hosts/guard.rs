//! The guard: a small process beside the node that outlives it by a moment, to end what the node started.
//!
//! A node that is asked to stop ends its hosts itself. One that is killed cannot; but then the guard's stdin ends,
//! and the guard kills every group that was not taken off its list, with all that comes of it; then whatever else
//! bears the mark of the node's children.
//!
//! ```text
//!   node ── "+4711" "+4722" "-4711" ──> guard's stdin; at its end: SIGKILL to 4722 and its descendants
//! ```
//!
//! The guard is the node's own executable, started with [`ENV`] set. So there is one only in programs whose `main`
//! begins with [`main_if_asked`].

use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::setsid;

use super::mark::Mark;
use super::processes;

/// What tells this executable to be a guard, of those who have a mark that begins with its value.
pub const ENV: &str = "FLOE_GUARD";

/// Whether this executable knows what to do when it is told to be a guard.
static KNOWN: AtomicBool = AtomicBool::new(false);

/// To be called first by a program whose nodes are to have a guard. In the guard's process it returns, with
/// `true`, when there is nothing left to guard.
pub fn main_if_asked() -> bool {
    let asked = guard_if_asked();
    KNOWN.store(!asked, Ordering::Relaxed);
    asked
}

/// The same, but this executable is none that other guards can be started by.
pub(super) fn guard_if_asked() -> bool {
    let mark = std::env::var_os(ENV);
    if let Some(mark) = &mark {
        guard(io::stdin().lock(), mark.to_string_lossy().into_owned());
    }
    mark.is_some()
}

/// Keeps the list that comes in, and at its end kills what is on it.
fn guard(list: impl BufRead, mark: String) {
    // It must go on when its terminal or its service manager ends the node. Where it cannot be the first of a
    // session it is one already.
    let _ = setsid();
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: to ignore a signal runs no code.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    let mut groups = BTreeSet::new();
    // An error is an end too.
    for line in list.lines().map_while(Result::ok) {
        let (sign, group) = line.split_at(line.len().min(1));
        match (sign, group.parse::<i32>()) {
            ("+", Ok(group)) => groups.insert(group),
            ("-", Ok(group)) => groups.remove(&group),
            _ => false,
        };
    }
    for group in &groups {
        processes::stop(*group);
    }
    for group in groups {
        processes::end(group);
    }
    if !mark.is_empty() {
        processes::end_marked(&Mark::begins(mark));
    }
}

/// A node's side of it. The guard starts when there is a first group to guard.
#[derive(Debug)]
pub(super) struct Guard {
    /// The executable and its arguments; none where the current one knows no guard.
    command: Option<(PathBuf, Vec<String>)>,
    /// The mark of this node's children.
    mark: Mark,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    groups: BTreeSet<i32>,
    running: Option<(Child, ChildStdin)>,
}

impl Guard {
    /// A guard by this process's own executable, if it can be one.
    pub(super) fn new() -> Self {
        let known = KNOWN.load(Ordering::Relaxed);
        let executable = known.then(std::env::current_exe).and_then(Result::ok);
        let command = executable.map(|path| (path, Vec::new()));
        Self { command, mark: Mark::of_node(), state: Mutex::default() }
    }

    /// A guard by another executable.
    #[cfg(test)]
    pub(super) fn with_command(executable: PathBuf, arguments: Vec<String>) -> Self {
        Self { command: Some((executable, arguments)), mark: Mark::of_node(), state: Mutex::default() }
    }

    pub(super) fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Puts a process group on the list.
    pub(super) fn add(&self, group: i32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.groups.insert(group);
        self.tell(&mut state, &format!("+{group}\n"));
    }

    /// Takes a process group off the list: none of it is left.
    pub(super) fn remove(&self, group: i32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.groups.remove(&group) {
            self.tell(&mut state, &format!("-{group}\n"));
        }
    }

    /// The guard's process.
    #[cfg(test)]
    pub(super) fn process(&self) -> Option<i32> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running.as_ref().map(|(child, _)| child.id() as i32)
    }

    /// What happens when this process is killed.
    #[cfg(test)]
    pub(super) fn abandon(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((mut child, list)) = state.running.take() {
            drop(list);
            drop(child.wait());
        }
    }

    fn tell(&self, state: &mut State, line: &str) {
        if let Some((_, list)) = &mut state.running
            && list.write_all(line.as_bytes()).is_ok()
        {
            return;
        }
        let Some((executable, arguments)) = &self.command else {
            return;
        };
        // There is none yet, or somebody killed it.
        if let Some((mut child, list)) = state.running.take() {
            drop(list);
            drop(child.wait());
        }
        if state.groups.is_empty() {
            return;
        }
        let mut command = Command::new(executable);
        command.args(arguments).env(ENV, self.mark.text()).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = command.spawn().and_then(|mut child| {
            let list = child.stdin.take().ok_or_else(|| io::Error::other("it has no stdin"))?;
            state.running = Some((child, list));
            Ok(())
        });
        if let (Ok(()), Some((_, list))) = (&started, &mut state.running) {
            let all: String = state.groups.iter().map(|group| format!("+{group}\n")).collect();
            drop(list.write_all(all.as_bytes()));
        }
        if let Err(error) = started {
            tracing::warn!(%error, "the guard cannot start: functions would go on should this node be killed");
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some((mut child, list)) = state.running.take() {
            drop(list);
            drop(child.wait());
        }
    }
}
