//! Environments on disk: which are whole, who uses them, and which go when there are too many.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// How many environments are kept; beyond it, those go that were not used for the longest time.
const MAX_KEPT: usize = 32;

/// How many logs of failures are kept.
const MAX_KEPT_FAILURES: usize = 64;

/// The length of a key, in hexadecimal digits.
const KEY_LENGTH: usize = 32;

/// What an environment's directory holds once it is whole.
const READY: &str = "ready";

/// Where one environment lies.
#[derive(Clone, Debug)]
pub(super) struct Place {
    dir: PathBuf,
    key: String,
}

/// That an environment is in use: no node of the machine removes it as long as this lives.
#[derive(Clone, Debug)]
pub(super) struct InUse {
    _lock: Arc<File>,
}

/// The right to make an environment, held by this process and those it starts with it as their stdin. So it
/// ends with the last process that writes into the environment, even if this one is killed.
#[derive(Debug)]
pub(super) struct Making(File);

/// What an environment is at the moment.
#[derive(Debug)]
pub(super) enum State {
    /// Whole, and kept so.
    Ready(InUse),
    /// Not there, or half made by who went away: to be made.
    Missing(Making),
    /// Somebody else makes or removes it: to be looked at again.
    Busy,
}

impl Making {
    /// For a process that writes into the environment.
    pub(super) fn share(&self) -> io::Result<File> {
        self.0.try_clone()
    }
}

impl Place {
    pub(super) fn new(dir: &Path, key: String) -> Self {
        Self { dir: dir.to_owned(), key }
    }

    /// What it is called in lines of progress.
    pub(super) fn name(&self) -> &str {
        &self.key[..8]
    }

    /// The environment's directory.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(&self.key)
    }

    /// The environment's interpreter.
    pub(super) fn python(&self) -> PathBuf {
        self.path().join("bin/python")
    }

    /// What the last try to make it printed.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.key))
    }

    fn lock(&self) -> PathBuf {
        self.dir.join(format!("{}.lock", self.key))
    }

    fn ready(&self) -> PathBuf {
        self.path().join(READY)
    }

    /// Looks at it, and takes the lock that goes with what it finds.
    pub(super) fn enter(&self) -> io::Result<State> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let lock = self.open_lock()?;
        if !taken(lock.try_lock_shared())? || !self.is_lock(&lock) {
            return Ok(State::Busy);
        }
        if self.is_ready() {
            self.touch()?;
            return Ok(State::Ready(InUse { _lock: Arc::new(lock) }));
        }
        lock.unlock()?;
        if !taken(lock.try_lock())? || !self.is_lock(&lock) || self.is_ready() {
            return Ok(State::Busy);
        }
        Ok(State::Missing(Making(lock)))
    }

    /// Removes what is there of it, to make it anew: for who holds [`Making`].
    pub(super) fn clear(&self) -> io::Result<()> {
        remove_dir(&self.path())
    }

    /// Says that it is whole; `content` is for people.
    pub(super) fn finish(&self, _: &Making, content: &str) -> io::Result<()> {
        fs::write(self.ready(), content)
    }

    fn open_lock(&self) -> io::Result<File> {
        File::options().create(true).truncate(false).read(true).write(true).open(self.lock())
    }

    /// Whether a lock is that of the file which is there now: it may have been removed before it was taken.
    fn is_lock(&self, lock: &File) -> bool {
        let file = |metadata: io::Result<fs::Metadata>| metadata.map(|file| (file.dev(), file.ino())).ok();
        let there = file(fs::metadata(self.lock()));
        there.is_some() && there == file(lock.metadata())
    }

    /// Not if the interpreter that it was made of is gone.
    fn is_ready(&self) -> bool {
        self.ready().exists() && self.python().exists()
    }

    fn touch(&self) -> io::Result<()> {
        File::options().append(true).open(self.ready())?.set_modified(SystemTime::now())
    }

    /// Removes all of it, if nobody uses or makes it.
    fn remove(&self) -> io::Result<()> {
        let lock = self.open_lock()?;
        if !taken(lock.try_lock())? || !self.is_lock(&lock) {
            return Ok(());
        }
        for file in [self.ready(), self.log()] {
            match fs::remove_file(file) {
                Err(error) if !is_missing(&error) => return Err(error),
                _ => {}
            }
        }
        remove_dir(&self.path())?;
        fs::remove_file(self.lock())
    }
}

/// Removes the environments beyond [`MAX_KEPT`] that were not used for the longest time, and old failures'
/// logs.
pub(super) fn remove_unused(dir: &Path) -> io::Result<()> {
    remove_beyond(dir, MAX_KEPT, MAX_KEPT_FAILURES)
}

fn remove_beyond(dir: &Path, kept: usize, kept_failures: usize) -> io::Result<()> {
    let mut environments: BTreeMap<String, SystemTime> = BTreeMap::new();
    let mut others: BTreeMap<String, SystemTime> = BTreeMap::new();
    let mut ready = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let (key, extension) = name.split_once('.').unwrap_or((&name, ""));
        if key.len() != KEY_LENGTH || !key.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            continue;
        }
        let place = Place::new(dir, key.to_owned());
        let (known, file) = match extension {
            "" if place.ready().exists() => {
                ready.insert(key.to_owned());
                (&mut environments, place.ready())
            }
            "" | "log" | "lock" => (&mut others, dir.join(&name)),
            _ => continue,
        };
        // Another node may be removing it.
        if let Ok(used) = fs::metadata(file).and_then(|metadata| metadata.modified()) {
            let last = known.entry(key.to_owned()).or_insert(used);
            *last = used.max(*last);
        }
    }
    others.retain(|key, _| !ready.contains(key));
    for (known, kept) in [(environments, kept), (others, kept_failures)] {
        let mut known: Vec<_> = known.into_iter().map(|(key, used)| (used, key)).collect();
        known.sort();
        known.truncate(known.len().saturating_sub(kept));
        for (_, key) in known {
            Place::new(dir, key).remove()?;
        }
    }
    Ok(())
}

fn taken(tried: Result<(), TryLockError>) -> io::Result<bool> {
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if !is_missing(&error) => Err(error),
        _ => Ok(()),
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn place(dir: &Path, n: u32) -> Place {
        Place::new(dir, format!("{n:032x}"))
    }

    fn make(place: &Place) {
        let State::Missing(making) = place.enter().unwrap() else { panic!("not missing") };
        fs::create_dir_all(place.python().parent().unwrap()).unwrap();
        fs::write(place.python(), "").unwrap();
        place.finish(&making, "").unwrap();
    }

    #[test]
    fn one_makes_it_and_all_use_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(&dir.path().join("environments"), 1);
        let State::Missing(making) = place.enter().unwrap() else { panic!("not missing") };
        assert!(matches!(place.enter().unwrap(), State::Busy));
        // A process that was started to make it outlives the one that started it.
        let child = making.share().unwrap();
        drop(making);
        assert!(matches!(place.enter().unwrap(), State::Busy));
        drop(child);
        make(&place);
        let (first, second) = (place.enter().unwrap(), place.enter().unwrap());
        assert!(matches!((first, second), (State::Ready(_), State::Ready(_))));
    }

    #[test]
    fn one_that_is_not_whole_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path(), 1);
        fs::create_dir_all(place.path().join("lib")).unwrap();
        let State::Missing(making) = place.enter().unwrap() else { panic!("not missing") };
        place.clear().unwrap();
        assert!(!place.path().exists());
        place.clear().unwrap();
        drop(making);
        make(&place);
        fs::remove_file(place.python()).unwrap();
        assert!(matches!(place.enter().unwrap(), State::Missing(_)));
    }

    #[test]
    fn the_least_recently_used_go_and_none_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let start = SystemTime::now() - Duration::from_secs(1000);
        for n in 0..6 {
            let place = place(dir.path(), n);
            make(&place);
            let used = start + Duration::from_secs(n.into());
            File::options().append(true).open(place.ready()).unwrap().set_modified(used).unwrap();
        }
        fs::write(place(dir.path(), 7).log(), "failed").unwrap();
        fs::write(place(dir.path(), 8).log(), "failed").unwrap();
        fs::create_dir(dir.path().join("something")).unwrap();
        let used = place(dir.path(), 0).enter().unwrap();
        remove_beyond(dir.path(), 3, 1).unwrap();
        let left: Vec<_> = (0..6).filter(|n| place(dir.path(), *n).path().exists()).collect();
        assert_eq!(left, [0, 4, 5]);
        assert!(!place(dir.path(), 7).log().exists());
        assert!(!place(dir.path(), 1).lock().exists());
        assert!(place(dir.path(), 8).log().exists());
        assert!(dir.path().join("something").exists());
        drop(used);
        remove_beyond(dir.path(), 1, 1).unwrap();
        let left: Vec<_> = (0..6).filter(|n| place(dir.path(), *n).path().exists()).collect();
        // The first was touched when it was used.
        assert_eq!(left, [0]);
    }
}
