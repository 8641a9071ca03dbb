//! What a child started, wherever it went: who that is, what memory it takes, and ending it.
//!
//! A process that a child starts may leave its group (`setsid`), lose its parent (a daemon), or both. Three things
//! lead to it: its group; its ancestors, which on Linux go up to the child itself whatever ended between them, since
//! the child adopts orphans (`PR_SET_CHILD_SUBREAPER`); and its [mark](super::mark), which also tells of those whose
//! child has ended before, or adopts none any more.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::process::Command;

use super::mark::Mark;

#[cfg(target_os = "linux")]
use self::linux as system;
#[cfg(not(target_os = "linux"))]
use self::portable as system;

/// How often all processes of the machine are looked at, at most, to see which belong to a group.
const CENSUS_INTERVAL: Duration = Duration::from_millis(200);

/// At most this part of the time is spent on it, on one core.
const CENSUS_SHARE: u32 = 50;

/// How often those that are to end are looked for: they may be starting others meanwhile.
const ROUNDS: usize = 50;

/// How long one that was stopped or killed may take for it before it is looked at again.
const PAUSE: Duration = Duration::from_millis(1);

/// A process as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    process: i32,
    parent: i32,
    group: i32,
    doing: Doing,
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Something,
    /// It was stopped, so that it starts no other.
    Stopped,
    /// It has ended, and its parent has yet to notice.
    Ended,
}

/// Makes a child the one that adopts the orphans among its descendants.
pub(super) fn adopt_orphans(command: &mut Command) {
    #[cfg(target_os = "linux")]
    // SAFETY: between fork and exec it makes one call to the system, and has nothing to do with memory.
    unsafe {
        command.pre_exec(|| {
            // A kernel that knows nothing of it leaves the mark to find them by.
            let _ = nix::libc::prctl(nix::libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
            Ok(())
        });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

/// Gives a child, and all that it starts from now on, the part of its mark that is no variable.
pub(super) fn mark(leader: i32, mark: &Mark) {
    #[cfg(target_os = "linux")]
    if let Some(number) = mark.number() {
        let limit = nix::libc::rlimit { rlim_cur: number, rlim_max: number };
        // SAFETY: `limit` is read during the call only, and nothing is written.
        let done =
            unsafe { nix::libc::prlimit(leader, nix::libc::RLIMIT_LOCKS, &limit, std::ptr::null_mut()) };
        if done != 0 {
            // It has the variable still.
            tracing::debug!(error = %nix::errno::Errno::last(), "a child cannot be given its mark");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (leader, mark);
}

/// Stops a child, so that it does nothing more until it is killed.
pub(super) fn stop(leader: i32) {
    if leader > 1 {
        // It may be gone already.
        let _ = kill(Pid::from_raw(leader), Signal::SIGSTOP);
    }
}

/// Kills a child that has not been waited for, its group and its descendants. It is the last to go, since orphans that
/// come of the killing become its own children.
pub(super) fn end(leader: i32) {
    // 0 and 1 would be this process's own group, and everything.
    if leader <= 1 {
        return;
    }
    stop(leader);
    for round in 0..ROUNDS {
        if round > 0 {
            std::thread::sleep(PAUSE);
        }
        let all = system::all();
        let its = descendants(&all, leader);
        for process in &its {
            let _ = kill(Pid::from_raw(*process), Signal::SIGKILL);
        }
        let leads = all.iter().find(|seen| seen.process == leader);
        if its.is_empty() && leads.is_none_or(|seen| seen.doing != Doing::Something) {
            break;
        }
    }
    end_group(leader);
}

/// Kills a process group, also one whose leader is gone.
pub(super) fn end_group(group: i32) {
    if group > 1 {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

/// Kills all that have this mark, whatever became of the child that they come from.
pub(super) fn end_marked(mark: &Mark) {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    for _ in 0..ROUNDS {
        let mut marked = system::marked(mark);
        marked.retain(|process| *process > 1 && *process != own);
        if marked.is_empty() {
            return;
        }
        for process in marked {
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
        std::thread::sleep(PAUSE);
    }
}

/// The descendants of a child, in whatever group, that have not ended.
fn descendants(all: &[Seen], leader: i32) -> Vec<i32> {
    let mut found = vec![leader];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(all.iter().filter(|seen| seen.parent == parent).map(|seen| seen.process));
        at += 1;
        if found.len() > all.len() + 1 {
            break;
        }
    }
    let is_its = |seen: &&Seen| {
        seen.process > 1
            && seen.process != leader
            && seen.doing != Doing::Ended
            && found.contains(&seen.process)
    };
    all.iter().filter(is_its).map(|seen| seen.process).collect()
}

/// Measures the memory of children with all that they started.
#[derive(Debug, Default)]
pub(super) struct Meter(Mutex<Census>);

#[derive(Debug, Default)]
struct Census {
    taken: Option<Instant>,
    pause: Duration,
    all: Vec<Seen>,
    /// What has been asked for of it.
    members: HashMap<i32, Vec<i32>>,
}

impl Meter {
    /// The resident memory of a child's group and descendants in bytes, without files that are mapped: what the machine
    /// gets back only when they end. It reads files of the kernel, and does not wait.
    pub(super) fn resident(&self, group: i32, limit: u64) -> u64 {
        let members = self.members(group);
        let resident: u64 = members.iter().map(|process| system::resident(*process)).sum();
        if resident > limit && members.len() > 1 {
            // Processes that forked share what neither has written to since. To tell how much takes longer.
            return members.iter().map(|process| system::share(*process)).sum();
        }
        resident
    }

    fn members(&self, group: i32) -> Vec<i32> {
        let mut census = self.census();
        if census.taken.is_none_or(|taken| taken.elapsed() >= census.pause) {
            let begun = Instant::now();
            census.members.clear();
            census.all = system::all();
            census.pause = CENSUS_INTERVAL.max(begun.elapsed() * CENSUS_SHARE);
            census.taken = Some(Instant::now());
        }
        let Census { all, members, .. } = &mut *census;
        let found = members.entry(group).or_insert_with(|| {
            let mut found: BTreeSet<i32> = descendants(all, group).into_iter().collect();
            found.extend(all.iter().filter(|seen| seen.group == group).map(|seen| seen.process));
            // One that began after the last census is alone.
            found.insert(group);
            found.into_iter().collect()
        });
        found.clone()
    }

    fn census(&self) -> MutexGuard<'_, Census> {
        // A census that was broken off is taken again.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What Linux tells in `/proc`.
#[cfg(target_os = "linux")]
mod linux {
    use std::fs;

    use super::{Doing, Mark, Seen};

    pub(super) fn all() -> Vec<Seen> {
        numbers().filter_map(see).collect()
    }

    /// Those that have a mark and have not ended, as far as this user may know.
    pub(super) fn marked(mark: &Mark) -> Vec<i32> {
        let variable = mark.variable();
        let is_marked = |process: &i32| {
            limit(*process).is_some_and(|number| mark.has_number(number))
                || was_started_with(*process, variable.as_bytes())
        };
        let runs = |process: &i32| see(*process).is_some_and(|seen| seen.doing != Doing::Ended);
        numbers().filter(is_marked).filter(runs).collect()
    }

    /// Whether a process was started with this beginning of a variable.
    fn was_started_with(process: i32, variable: &[u8]) -> bool {
        let started_with = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        started_with.split(|byte| *byte == 0).any(|one| one.starts_with(variable))
    }

    /// The limit that a mark's number is in.
    fn limit(process: i32) -> Option<u64> {
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).ok()?;
        let values = limits.lines().find_map(|line| line.strip_prefix("Max file locks"))?;
        // What it may raise its limit to by itself comes second.
        values.split_ascii_whitespace().nth(1)?.parse().ok()
    }

    fn numbers() -> impl Iterator<Item = i32> {
        let entries = fs::read_dir("/proc").into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
    }

    fn see(process: i32) -> Option<Seen> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name may hold anything, but the last bracket is its end.
        let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        let threads: u64 = fields.nth(14)?.parse().ok()?;
        let doing = match state {
            "T" | "t" => Doing::Stopped,
            // Otherwise only the first of its threads has.
            "Z" | "X" if threads <= 1 => Doing::Ended,
            _ => Doing::Something,
        };
        Some(Seen { process, parent, group, doing })
    }

    /// Resident memory, but for mapped files.
    pub(super) fn resident(process: i32) -> u64 {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        match (kilobytes(&status, "RssAnon:"), kilobytes(&status, "RssShmem:")) {
            (Some(own), Some(shared)) => own + shared,
            _ => kilobytes(&status, "VmRSS:").unwrap_or(0),
        }
    }

    /// The same, with memory that several processes have divided by their number.
    pub(super) fn share(process: i32) -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
        match (kilobytes(&rollup, "Pss_Anon:"), kilobytes(&rollup, "Pss_Shmem:")) {
            (Some(own), Some(shared)) => own + shared,
            _ => kilobytes(&rollup, "Pss:").unwrap_or_else(|| resident(process)),
        }
    }

    /// A line's value in bytes.
    fn kilobytes(text: &str, key: &str) -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(key))?;
        let kilobytes: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(kilobytes << 10)
    }
}

/// What other systems tell.
#[cfg(any(test, not(target_os = "linux")))]
#[cfg_attr(target_os = "linux", allow(dead_code))]
mod portable {
    use std::os::unix::ffi::OsStrExt;

    use nix::unistd::{Pid, getpgid};
    use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, UpdateKind};

    use super::{Doing, Mark, Seen};

    pub(super) fn all() -> Vec<Seen> {
        let mut system = System::new();
        system.refresh_processes_specifics(ProcessesToUpdate::All, true, ProcessRefreshKind::nothing());
        let see = |(process, seen): (&sysinfo::Pid, &sysinfo::Process)| {
            let process = process.as_u32() as i32;
            let parent = seen.parent().map_or(0, |parent| parent.as_u32() as i32);
            let group = getpgid(Some(Pid::from_raw(process))).ok()?.as_raw();
            let doing = match seen.status() {
                ProcessStatus::Zombie | ProcessStatus::Dead => Doing::Ended,
                // Not every system tells; nothing is waited for there.
                _ => Doing::Stopped,
            };
            Some(Seen { process, parent, group, doing })
        };
        system.processes().iter().filter_map(see).collect()
    }

    pub(super) fn marked(mark: &Mark) -> Vec<i32> {
        let variable = mark.variable();
        let mut system = System::new();
        let with_environment = ProcessRefreshKind::nothing().with_environ(UpdateKind::Always);
        system.refresh_processes_specifics(ProcessesToUpdate::All, true, with_environment);
        let is_marked = |seen: &sysinfo::Process| {
            seen.environ().iter().any(|one| one.as_bytes().starts_with(variable.as_bytes()))
        };
        let marked = system.processes().iter().filter(|(_, seen)| is_marked(seen));
        marked.map(|(process, _)| process.as_u32() as i32).collect()
    }

    pub(super) fn resident(process: i32) -> u64 {
        let mut system = System::new();
        let wanted = sysinfo::Pid::from_u32(process as u32);
        system.refresh_processes_specifics(
            ProcessesToUpdate::Some(&[wanted]),
            true,
            ProcessRefreshKind::nothing().with_memory(),
        );
        system.process(wanted).map_or(0, sysinfo::Process::memory)
    }

    pub(super) fn share(process: i32) -> u64 {
        resident(process)
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    use std::io::{BufRead, BufReader, Write};
    #[cfg(target_os = "linux")]
    use std::process::Stdio;

    use super::super::mark::VARIABLE;
    use super::*;

    #[test]
    fn both_ways_of_looking_see_this_process() {
        let own = std::process::id() as i32;
        for all in [system::all(), portable::all()] {
            let seen = all.iter().find(|seen| seen.process == own).unwrap();
            assert!(seen.parent > 0 && seen.group > 0, "{seen:?}");
        }
        for bytes in [system::resident(own), portable::resident(own), system::share(own)] {
            assert!(bytes > 100 << 10, "{bytes}");
        }
    }

    #[test]
    fn descendants_are_found_in_any_group() {
        let seen = |process, parent, group| Seen { process, parent, group, doing: Doing::Something };
        let all = [
            seen(1, 0, 1),
            seen(10, 1, 10),
            seen(11, 10, 10),
            seen(12, 11, 12),
            seen(13, 12, 12),
            Seen { doing: Doing::Ended, ..seen(15, 12, 12) },
            seen(14, 1, 14),
        ];
        assert_eq!(descendants(&all, 10), [11, 12, 13]);
        assert_eq!(descendants(&all, 14), [0; 0]);
        assert_eq!(descendants(&[], 10), [0; 0]);
    }

    #[test]
    fn what_is_marked_is_found_and_ended() {
        let (node, other_node) = (Mark::of_node(), Mark::of_node());
        let start = |mark: &Mark| {
            let mut command = std::process::Command::new("sleep");
            command.arg("600").env(VARIABLE, mark.text()).spawn().unwrap()
        };
        let (mut its, mut other) = (start(&node.child(1)), start(&other_node.child(1)));
        for marked in [system::marked, portable::marked] {
            // Until it has become what it was started as, it is this process still.
            let id = its.id() as i32;
            while !marked(&node).contains(&id) {
                std::thread::sleep(PAUSE);
            }
            assert!(!marked(&node).contains(&(other.id() as i32)));
        }
        end_marked(&node);
        assert!(!its.wait().unwrap().success());
        assert_eq!(other.try_wait().unwrap(), None);
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_mark_is_handed_on_without_any_environment_and_ends_with_its_process() {
        let node = Mark::of_node();
        // It starts another one when it is told to.
        let script = "read line; env -i sleep 600 & echo $!; read line";
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut first = command.spawn().unwrap();
        let id = first.id() as i32;
        mark(id, &node.child(1));
        let mut stdin = first.stdin.take().unwrap();
        stdin.write_all(b"go\n").unwrap();
        let mut second = String::new();
        BufReader::new(first.stdout.take().unwrap()).read_line(&mut second).unwrap();
        let second = second.trim().parse().unwrap();
        let both = BTreeSet::from([id, second]);
        for mark in [&node, &node.child(1)] {
            assert_eq!(BTreeSet::from_iter(system::marked(mark)), both);
        }
        assert_eq!(system::marked(&node.child(2)), [0; 0]);
        end_marked(&node);
        // The first has ended and was not waited for.
        assert_eq!(system::marked(&node), [0; 0]);
        assert!(!first.wait().unwrap().success());
    }
}
