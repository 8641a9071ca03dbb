//! Process groups: who is in one, what memory it takes, and ending it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

#[cfg(target_os = "linux")]
use self::linux as system;
#[cfg(not(target_os = "linux"))]
use self::portable as system;

/// How often all processes of the machine are looked at, at most, to see which belong to a group.
const CENSUS_INTERVAL: Duration = Duration::from_millis(200);

/// At most this part of the time is spent on it, on one core.
const CENSUS_SHARE: u32 = 50;

/// A process as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    process: i32,
    parent: i32,
    group: i32,
}

/// Kills a process group, and the descendants of its leader that went into groups of their own.
pub(super) fn kill_group(group: i32) {
    // 0 and 1 would be this process's own group, and everything.
    if group <= 1 {
        return;
    }
    let strays = descendants(&system::all(), group);
    // It may be gone already.
    let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    for stray in strays {
        let _ = kill(Pid::from_raw(stray), Signal::SIGKILL);
    }
}

/// The descendants of a group's leader that are not in its group.
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
    let strays = all.iter().filter(|seen| seen.group != leader && found.contains(&seen.process));
    strays.map(|seen| seen.process).filter(|process| *process > 1).collect()
}

/// Measures the memory of process groups.
#[derive(Debug, Default)]
pub(super) struct Meter(Mutex<Census>);

#[derive(Debug, Default)]
struct Census {
    taken: Option<Instant>,
    pause: Duration,
    groups: HashMap<i32, Vec<i32>>,
}

impl Meter {
    /// The resident memory of a group in bytes, without files that are mapped: what the machine gets back only when
    /// the group ends. It reads files of the kernel, and does not wait.
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
            census.groups.clear();
            for seen in system::all() {
                census.groups.entry(seen.group).or_default().push(seen.process);
            }
            census.pause = CENSUS_INTERVAL.max(begun.elapsed() * CENSUS_SHARE);
            census.taken = Some(Instant::now());
        }
        // One that began after the last census is alone in its group.
        census.groups.get(&group).cloned().unwrap_or_else(|| vec![group])
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

    use super::Seen;

    pub(super) fn all() -> Vec<Seen> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries.filter_map(|entry| see(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect()
    }

    fn see(process: i32) -> Option<Seen> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name may hold anything, but the last bracket is its end.
        let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().skip(1);
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        Some(Seen { process, parent, group })
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
    use nix::unistd::{Pid, getpgid};
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

    use super::Seen;

    pub(super) fn all() -> Vec<Seen> {
        let mut system = System::new();
        system.refresh_processes_specifics(ProcessesToUpdate::All, true, ProcessRefreshKind::nothing());
        let see = |(process, seen): (&sysinfo::Pid, &sysinfo::Process)| {
            let process = process.as_u32() as i32;
            let parent = seen.parent().map_or(0, |parent| parent.as_u32() as i32);
            let group = getpgid(Some(Pid::from_raw(process))).ok()?.as_raw();
            Some(Seen { process, parent, group })
        };
        system.processes().iter().filter_map(see).collect()
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
    fn strays_are_descendants_in_other_groups() {
        let seen = |process, parent, group| Seen { process, parent, group };
        let all = [
            seen(1, 0, 1),
            seen(10, 1, 10),
            seen(11, 10, 10),
            seen(12, 11, 12),
            seen(13, 12, 12),
            seen(14, 1, 14),
        ];
        assert_eq!(descendants(&all, 10), [12, 13]);
        assert_eq!(descendants(&all, 14), [0; 0]);
        assert_eq!(descendants(&[], 10), [0; 0]);
    }
}
