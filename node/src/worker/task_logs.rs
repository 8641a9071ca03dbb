//! What functions print: a file for each attempt, bounded, and followers that read on as more comes.
//!
//! ```text
//!   logs/JOB/STAGE-PARTITION-ATTEMPT     made when the first byte is printed
//! ```
//!
//! Logs are for people who watch or look into a job. They do not outlive the node's process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use floe_protocol::{AttemptId, JobId, StageId};
use tokio::sync::watch;

use crate::disk::Disk;
use crate::private;

/// How much of what one attempt prints is kept: the beginning, which says what it did first.
pub const MAX_LOG_BYTES: u64 = 1 << 20;

/// How many attempts of one job have logs. A job has at most half as many tasks.
pub const MAX_LOGS: usize = 20_000;

/// How much all logs of a node take on its disk. Beyond it those that were written longest ago go.
pub const MAX_ALL_BYTES: u64 = 512 << 20;

/// How long a log is kept that nobody frees.
pub const KEPT: Duration = Duration::from_secs(60 * 60);

/// The same of a job that was freed: it has ended, but its user may want to see why, or what it said.
pub const KEPT_FREED: Duration = Duration::from_secs(10 * 60);

/// How often such logs are looked for, at most.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How much is read at once: it travels in one frame.
const MAX_PART_BYTES: usize = 256 << 10;

/// How much a follower hands out at once.
const MAX_READ_BYTES: usize = 1 << 20;

/// A node's logs. Cheap to clone; clones are one.
#[derive(Clone, Debug)]
pub struct TaskLogs(Arc<Inner>);

/// Something that an attempt printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPart {
    /// The attempt.
    pub attempt: AttemptId,
    /// What it printed.
    pub bytes: Bytes,
}

/// An attempt's log, to be written. Cheap to clone; the log is complete when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct TaskLog(Option<Arc<Writer>>);

/// Reads a job's logs and then what is printed after that.
#[derive(Debug)]
pub struct LogFollower {
    logs: TaskLogs,
    job: JobId,
    task: Option<(StageId, u32)>,
    /// How far each attempt's log was read.
    read: BTreeMap<AttemptId, u64>,
    changed: watch::Receiver<u64>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    disk: Disk,
    jobs: Mutex<Jobs>,
    /// How much is on disk.
    bytes: AtomicU64,
    /// Counts what was printed, for followers.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Jobs {
    logs: BTreeMap<JobId, BTreeMap<AttemptId, Arc<Log>>>,
    /// Those of them that were freed.
    freed: BTreeSet<JobId>,
    swept: Instant,
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Open while it is written.
    file: Option<File>,
    bytes: u64,
    lost_bytes: u64,
    touched: Instant,
    writers: usize,
    /// It was freed: nothing is kept any more.
    gone: bool,
}

#[derive(Debug)]
struct Writer {
    logs: Arc<Inner>,
    job: JobId,
    log: Arc<Log>,
}

impl TaskLogs {
    /// Logs in a directory of their own, which loses what was in it before. Where nothing can be written, nothing
    /// is kept.
    pub fn open(dir: PathBuf, disk: Disk) -> Self {
        let made = remove_dir(&dir).and_then(|()| private::create_dir(&dir));
        if let Err(error) = made {
            tracing::warn!(dir = %dir.display(), %error, "what functions print cannot be kept");
        }
        let jobs = Jobs { logs: BTreeMap::new(), freed: BTreeSet::new(), swept: Instant::now() };
        Self(Arc::new(Inner {
            dir,
            disk,
            jobs: Mutex::new(jobs),
            bytes: AtomicU64::new(0),
            changed: watch::Sender::new(0),
        }))
    }

    /// The log of an attempt that begins, or goes on.
    pub fn begin(&self, attempt: AttemptId) -> TaskLog {
        self.0.sweep();
        let job = attempt.task.job;
        let mut jobs = self.0.jobs();
        let logs = jobs.logs.entry(job).or_default();
        if logs.len() >= MAX_LOGS && !logs.contains_key(&attempt) {
            return TaskLog(None);
        }
        let log = logs.entry(attempt).or_insert_with(|| Arc::new(Log::new(self.0.path(attempt))));
        log.state().writers += 1;
        TaskLog(Some(Arc::new(Writer { logs: Arc::clone(&self.0), job, log: Arc::clone(log) })))
    }

    /// What a job's functions printed until now, or those of one task, in order of stage, partition and attempt.
    pub fn read(&self, job: JobId, task: Option<(StageId, u32)>) -> Vec<LogPart> {
        let mut follower = self.follow(job, task);
        let mut all = Vec::new();
        loop {
            let parts = follower.read();
            if parts.is_empty() {
                return all;
            }
            all.extend(parts);
        }
    }

    /// The same bit by bit, and on from there.
    pub fn follow(&self, job: JobId, task: Option<(StageId, u32)>) -> LogFollower {
        let changed = self.0.changed.subscribe();
        LogFollower { logs: self.clone(), job, task, read: BTreeMap::new(), changed }
    }

    /// Removes the logs of jobs that print nothing any more, those that printed longest ago first, until the disk has
    /// room.
    pub fn free_old(&self) {
        while self.0.disk.look().short && self.0.make_room(None) {}
    }

    /// These jobs have ended, and nothing else is left of them: their logs are the first to go when there is no room,
    /// and go soon if there is.
    pub fn free(&self, jobs: &[JobId]) {
        let mut known = self.0.jobs();
        let known = &mut *known;
        known.freed.extend(jobs.iter().filter(|job| known.logs.contains_key(job)));
    }
}

impl TaskLog {
    /// A log that keeps nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// Adds what was printed.
    pub fn write(&self, bytes: &[u8]) {
        if let Some(writer) = &self.0
            && !bytes.is_empty()
        {
            writer.write(bytes);
        }
    }

    /// Adds a line of the node's own.
    pub fn note(&self, line: &str) {
        self.write(format!("{line}\n").as_bytes());
    }
}

impl LogFollower {
    /// What came since the last read, at most a mebibyte of it; empty if there is nothing (yet).
    pub fn read(&mut self) -> Vec<LogPart> {
        self.changed.mark_unchanged();
        let logs: Vec<(AttemptId, Arc<Log>)> = {
            let jobs = self.logs.0.jobs();
            let Some(logs) = jobs.logs.get(&self.job) else {
                return Vec::new();
            };
            let wanted = |attempt: &AttemptId| {
                self.task.is_none_or(|task| task == (attempt.task.stage, attempt.task.partition))
            };
            let found = logs.iter().filter(|(attempt, _)| wanted(attempt));
            found.map(|(attempt, log)| (*attempt, Arc::clone(log))).collect()
        };
        let mut parts = Vec::new();
        let mut bytes = 0;
        for (attempt, log) in logs {
            let read = self.read.entry(attempt).or_default();
            while bytes < MAX_READ_BYTES {
                let Some(part) = log.read(*read) else {
                    break;
                };
                *read += part.len() as u64;
                bytes += part.len();
                parts.push(LogPart { attempt, bytes: part });
            }
        }
        if bytes >= MAX_READ_BYTES {
            self.changed.mark_changed();
        }
        parts
    }

    /// Waits until there may be more than the last read gave.
    pub async fn changed(&mut self) {
        // The sender lives as long as `self.logs`.
        let _ = self.changed.changed().await;
    }
}

impl Inner {
    fn path(&self, attempt: AttemptId) -> PathBuf {
        let task = attempt.task;
        let name = format!("{}-{}-{:x}", task.stage, task.partition, attempt.attempt);
        self.dir.join(task.job.to_string()).join(name)
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        // Every change of the maps is one step.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_full(&self, more_bytes: u64) -> bool {
        self.bytes.load(Ordering::Relaxed) + more_bytes > MAX_ALL_BYTES || self.disk.take(more_bytes).is_err()
    }

    fn changed(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Removes what is old, now and then.
    fn sweep(&self) {
        let mut jobs = self.jobs();
        if jobs.swept.elapsed() < SWEEP_INTERVAL {
            return;
        }
        jobs.swept = Instant::now();
        let old = |(job, logs): &(&JobId, &BTreeMap<AttemptId, Arc<Log>>)| {
            let kept = if jobs.freed.contains(job) { KEPT_FREED } else { KEPT };
            last_use(logs).is_some_and(|touched| touched.is_none_or(|touched| touched.elapsed() > kept))
        };
        let old: Vec<JobId> = jobs.logs.iter().filter(old).map(|(job, _)| *job).collect();
        let old: Vec<_> = old.into_iter().filter_map(|job| jobs.take(job)).collect();
        drop(jobs);
        for (job, logs) in old {
            self.remove(job, logs.into_values());
        }
    }

    /// Makes room for more by removing the finished logs of the job that printed longest ago, and of a job that was
    /// freed before others, but for this one.
    fn make_room(&self, job: Option<JobId>) -> bool {
        let mut jobs = self.jobs();
        let others = jobs.logs.iter().filter(|(other, _)| Some(**other) != job);
        let idle =
            others.filter_map(|(other, logs)| Some((!jobs.freed.contains(other), last_use(logs)?, *other)));
        let oldest = idle.min();
        let Some(logs) = oldest.and_then(|(.., other)| jobs.take(other)) else {
            return false;
        };
        drop(jobs);
        self.remove(logs.0, logs.1.into_values());
        true
    }

    fn remove(&self, job: JobId, logs: impl Iterator<Item = Arc<Log>>) {
        for log in logs {
            let mut state = log.state();
            state.gone = true;
            state.file = None;
            self.bytes.fetch_sub(state.bytes, Ordering::Relaxed);
        }
        if let Err(error) = remove_dir(&self.dir.join(job.to_string())) {
            tracing::warn!(%job, %error, "what functions printed cannot be removed");
        }
        self.changed();
    }
}

impl Jobs {
    fn take(&mut self, job: JobId) -> Option<(JobId, BTreeMap<AttemptId, Arc<Log>>)> {
        self.freed.remove(&job);
        self.logs.remove_entry(&job)
    }
}

/// When the last of a job's logs was written; nothing while one may still be.
fn last_use(logs: &BTreeMap<AttemptId, Arc<Log>>) -> Option<Option<Instant>> {
    logs.values().try_fold(None, |latest, log| log.last_use().map(|touched| latest.max(Some(touched))))
}

impl Writer {
    fn write(&self, bytes: &[u8]) {
        while self.logs.is_full(bytes.len() as u64) {
            if !self.logs.make_room(Some(self.job)) {
                self.log.state().lost_bytes += bytes.len() as u64;
                return;
            }
        }
        self.log.write(bytes, &self.logs.bytes);
        self.logs.changed();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.log.finish(&self.logs.bytes);
        self.logs.changed();
    }
}

impl Log {
    fn new(path: PathBuf) -> Self {
        let state =
            State { file: None, bytes: 0, lost_bytes: 0, touched: Instant::now(), writers: 0, gone: false };
        Self { path, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A write that failed half-way is in the file, and at worst not counted.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it was last written; nothing while it may still be.
    fn last_use(&self) -> Option<Instant> {
        let state = self.state();
        (state.writers == 0).then_some(state.touched)
    }

    /// Appends as much as may be kept, and adds it to the bytes of all logs.
    fn write(&self, bytes: &[u8], all_bytes: &AtomicU64) {
        let mut state = self.state();
        if state.gone {
            return;
        }
        let room = usize::try_from(MAX_LOG_BYTES.saturating_sub(state.bytes)).unwrap_or(usize::MAX);
        let (kept, lost) = bytes.split_at(bytes.len().min(room));
        state.append(&self.path, kept, all_bytes);
        if !lost.is_empty() {
            if state.lost_bytes == 0 {
                let note =
                    format!("\n[more than {MAX_LOG_BYTES} bytes were printed: the rest is not kept]\n");
                state.append(&self.path, note.as_bytes(), all_bytes);
            }
            state.lost_bytes += lost.len() as u64;
        }
    }

    /// One writer fewer; after the last, the file is closed.
    fn finish(&self, all_bytes: &AtomicU64) {
        let mut state = self.state();
        state.writers = state.writers.saturating_sub(1);
        if state.writers > 0 || state.gone {
            return;
        }
        if state.lost_bytes > 0 && state.bytes > 0 {
            let note = format!("[{} bytes were not kept]\n", state.lost_bytes);
            state.lost_bytes = 0;
            state.append(&self.path, note.as_bytes(), all_bytes);
        }
        state.file = None;
    }

    /// Some bytes from an offset on; nothing at the end.
    fn read(&self, from: u64) -> Option<Bytes> {
        let there = {
            let state = self.state();
            if state.gone { 0 } else { state.bytes.saturating_sub(from) }
        };
        if there == 0 {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(there).unwrap_or(usize::MAX).min(MAX_PART_BYTES)];
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(from))?;
            file.read_exact(&mut bytes)
        });
        // It may have been freed just now.
        read.ok().map(|()| bytes.into())
    }
}

impl State {
    fn append(&mut self, path: &Path, bytes: &[u8], all_bytes: &AtomicU64) {
        self.touched = Instant::now();
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len() as u64;
        match self.open(path).and_then(|file| file.write_all(bytes)) {
            Ok(()) => {
                self.bytes += length;
                // Whoever removes this log takes them off again, and must wait for the lock to do so.
                all_bytes.fetch_add(length, Ordering::Relaxed);
            }
            Err(_) => self.lost_bytes += length,
        }
    }

    fn open(&mut self, path: &Path) -> io::Result<&mut File> {
        if self.file.is_none() {
            if let Some(dir) = path.parent() {
                private::create_dir(dir)?;
            }
            self.file = Some(private::options().create(true).append(true).open(path)?);
        }
        self.file.as_mut().ok_or_else(|| io::Error::other("a file that was opened is not there"))
    }
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use floe_protocol::TaskId;

    use super::*;

    fn attempt(job: u64, stage: u32, partition: u32, attempt: u64) -> AttemptId {
        AttemptId { task: TaskId { job: JobId(job), stage: StageId(stage), partition }, attempt }
    }

    fn text(parts: &[LogPart]) -> String {
        parts.iter().map(|part| String::from_utf8_lossy(&part.bytes)).collect()
    }

    #[test]
    fn what_attempts_print_is_read_in_order_and_by_task() {
        let dir = tempfile::tempdir().unwrap();
        let logs = TaskLogs::open(dir.path().join("logs"), Disk::told(u64::MAX));
        logs.begin(attempt(1, 1, 0, 0)).write(b"third");
        let first = logs.begin(attempt(1, 0, 0, 0));
        first.write(b"fi");
        logs.begin(attempt(1, 0, 0, 7)).write(b"second ");
        first.write(b"rst ");
        logs.begin(attempt(2, 0, 0, 0)).write(b"of another job");
        logs.begin(attempt(1, 3, 0, 0));
        let parts = logs.read(JobId(1), None);
        assert_eq!(text(&parts), "first second third");
        assert_eq!(parts[1].attempt, attempt(1, 0, 0, 7));
        assert_eq!(text(&logs.read(JobId(1), Some((StageId(1), 0)))), "third");
        assert_eq!(logs.read(JobId(3), None), []);
    }

    #[test]
    fn a_chatty_attempt_is_cut_and_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let logs = TaskLogs::open(dir.path().join("logs"), Disk::told(u64::MAX));
        let log = logs.begin(attempt(1, 0, 0, 0));
        let block = vec![b'x'; 100 << 10];
        for _ in 0..20 {
            log.write(&block);
        }
        drop(log);
        let kept = text(&logs.read(JobId(1), None));
        let lost = 20 * block.len() as u64 - MAX_LOG_BYTES;
        assert!(kept.len() < MAX_LOG_BYTES as usize + 200);
        assert!(kept.ends_with(&format!("the rest is not kept]\n[{lost} bytes were not kept]\n")));
    }

    #[test]
    fn a_full_disk_takes_the_logs_of_freed_jobs_first_and_of_those_that_print_none() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::told(100 << 20);
        let logs = TaskLogs::open(dir.path().join("logs"), disk.clone());
        let is_there = |job: u64| dir.path().join("logs").join(JobId(job).to_string()).exists();
        logs.begin(attempt(1, 0, 0, 0)).write(b"the oldest");
        logs.begin(attempt(2, 0, 0, 0)).write(b"of a job that was freed");
        let printing = logs.begin(attempt(3, 0, 0, 0));
        printing.write(b"of one that prints");
        logs.free(&[JobId(2), JobId(9)]);
        assert_eq!(text(&logs.read(JobId(2), None)), "of a job that was freed", "as long as there is room");
        assert!(logs.0.make_room(None));
        assert_eq!([1, 2, 3].map(is_there), [true, false, true]);
        disk.tell(0);
        logs.free_old();
        assert_eq!([1, 2, 3].map(is_there), [false, false, true]);
        printing.write(b", but this is lost");
        disk.tell(100 << 20);
        printing.write(b" and goes on");
        drop(printing);
        let kept = text(&logs.read(JobId(3), None));
        assert_eq!(kept, "of one that prints and goes on[18 bytes were not kept]\n");
        assert_eq!(logs.0.bytes.load(Ordering::Relaxed), kept.len() as u64);
    }

    #[tokio::test]
    async fn a_follower_gets_what_comes_once() {
        let dir = tempfile::tempdir().unwrap();
        let logs = TaskLogs::open(dir.path().join("logs"), Disk::told(u64::MAX));
        let log = logs.begin(attempt(1, 0, 0, 0));
        log.write(b"before ");
        let mut follower = logs.follow(JobId(1), None);
        assert_eq!(text(&follower.read()), "before ");
        assert_eq!(follower.read(), []);
        let writer = tokio::spawn({
            let logs = logs.clone();
            async move {
                log.write(b"after ");
                logs.begin(attempt(1, 0, 1, 0)).write(b"another");
            }
        });
        let mut seen = String::new();
        while seen != "after another" {
            follower.changed().await;
            seen += &text(&follower.read());
        }
        writer.await.unwrap();
    }

    #[test]
    fn a_job_has_so_many_logs_and_what_was_there_before_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs");
        TaskLogs::open(path.clone(), Disk::told(u64::MAX))
            .begin(attempt(1, 0, 0, 0))
            .write(b"of a former process");
        let logs = TaskLogs::open(path, Disk::told(u64::MAX));
        assert_eq!(logs.read(JobId(1), None), []);
        for n in 0..=MAX_LOGS as u64 {
            logs.begin(attempt(1, 0, 0, n));
        }
        logs.begin(attempt(1, 0, 0, MAX_LOGS as u64)).write(b"not kept");
        assert_eq!(logs.read(JobId(1), None), []);
    }
}
