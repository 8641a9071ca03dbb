//! Which Python interpreters a machine has.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{env, fs};

use floe_protocol::Failure;
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::process;

/// How long an interpreter may take to tell its version; the first start after a boot reads from a cold disk.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long a candidate that is no interpreter is not asked again. It may become one without a change to the
/// file, as a version manager's stand-in does.
const SILENCE_STANDS: Duration = Duration::from_secs(60);

/// How long uv's answer stands.
const UV_STANDS: Duration = Duration::from_secs(60);

/// The most candidates that are looked at for one version.
const MAX_CANDIDATES: usize = 64;

/// The most interpreters that a sentence names.
const MAX_NAMED: usize = 6;

/// Prints implementation, version and path. `sys` is the one module that no file can shadow.
const PROBE: &str = "import sys
w = sys.stdout.buffer.write
w(b'\\0floe\\0' + sys.implementation.name.encode() + b'\\0')
w(('%d.%d.%d' % sys.version_info[:3]).encode() + b'\\0')
w((sys.executable or '').encode(sys.getfilesystemencoding(), 'surrogateescape'))
";

/// What [`PROBE`] prints before its answer, since an interpreter may be set up to print at every start.
pub(super) const MARK: &[u8] = b"\0floe\0";

/// A Python version as functions name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Version {
    major: u16,
    minor: u16,
}

/// An interpreter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Itself, not what stands for it on the path.
    pub(super) python: PathBuf,
    /// All of its version: `3.11.7`.
    pub(super) version: String,
    implementation: String,
}

/// Where to look.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    /// The one that the node was told of.
    pub(super) configured: Option<PathBuf>,
    /// The virtual environment that the node was started in.
    pub(super) virtual_env: Option<PathBuf>,
    /// Directories of programs.
    pub(super) path: OsString,
    /// The user's directory.
    pub(super) home: Option<PathBuf>,
}

/// Finds interpreters, and remembers what each said.
#[derive(Debug)]
pub(super) struct Finder {
    places: Places,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By path and time of change.
    interpreters: HashMap<PathBuf, (SystemTime, Found)>,
    silent: HashMap<PathBuf, (Instant, String)>,
    uv: HashMap<Version, (Instant, Option<PathBuf>)>,
}

impl Version {
    /// Of `3.12`; nothing of `3`, `3.12.1` or `three`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digits = |text: &str| {
            let sound = (1..=3).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
            sound.then(|| text.parse().ok()).flatten()
        };
        let (major, minor) = text.split_once('.')?;
        Some(Self { major: digits(major)?, minor: digits(minor)? })
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Found {
    #[cfg(test)]
    pub(super) fn new(python: PathBuf, version: &str) -> Self {
        Self { python, version: version.to_owned(), implementation: "cpython".to_owned() }
    }

    /// Its version as functions name it.
    #[cfg(test)]
    pub(super) fn minor(&self) -> String {
        self.version.rsplit_once('.').map_or_else(String::new, |(minor, _)| minor.to_owned())
    }

    /// Whether two are one by several names.
    fn is_same_file(&self, other: &Self) -> bool {
        let file = |found: &Self| found.python.canonicalize().ok();
        self == other || file(self).is_some_and(|this| file(other) == Some(this))
    }

    /// Whether it runs what CPython of this version, or any, pickled.
    fn fits(&self, wanted: Option<Version>) -> bool {
        let version = self.version.rsplit_once('.').and_then(|(version, _)| Version::parse(version));
        self.implementation == "cpython" && wanted.is_none_or(|wanted| version == Some(wanted))
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let implementation = match self.implementation.as_str() {
            "cpython" => "Python",
            other => other,
        };
        write!(f, "{implementation} {} ({})", self.version, self.python.display())
    }
}

impl Places {
    /// Those of this process.
    pub(super) fn of_process(configured: Option<PathBuf>) -> Self {
        let directory = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            configured,
            virtual_env: directory("VIRTUAL_ENV"),
            path: env::var_os("PATH").unwrap_or_default(),
            home: directory("HOME"),
        }
    }

    /// uv, from the path or where its installers put it.
    pub(super) fn uv(&self) -> Option<PathBuf> {
        let installed = |dir| self.home.as_ref().map(|home| home.join(dir).join("uv"));
        let mut places = self.on_path("uv");
        places.extend([".local/bin", ".cargo/bin"].into_iter().filter_map(installed));
        places.into_iter().find(|file| file.is_file())
    }

    /// What may be an interpreter, the best first.
    fn candidates(&self, wanted: Option<Version>) -> Vec<PathBuf> {
        let mut candidates = Vec::from_iter(self.configured.clone());
        candidates.extend(self.virtual_env.as_ref().map(|dir| dir.join("bin/python")));
        if let Some(wanted) = wanted {
            candidates.extend(self.on_path(&format!("python{wanted}")));
        }
        candidates.extend(self.on_path("python3"));
        candidates.extend(self.on_path("python"));
        candidates.truncate(MAX_CANDIDATES);
        candidates
    }

    /// Every file of this name on the path: the first may be a stand-in that leads nowhere.
    fn on_path(&self, name: &str) -> Vec<PathBuf> {
        // A relative directory means another place for every process.
        let directories = env::split_paths(&self.path).filter(|dir| dir.is_absolute());
        directories.map(|dir| dir.join(name)).filter(|file| file.is_file()).collect()
    }

    /// Those that pyenv has of a version, the newest first.
    fn of_pyenv(&self, wanted: Version) -> Vec<PathBuf> {
        let Some(home) = &self.home else { return Vec::new() };
        let prefix = format!("{wanted}.");
        let patch = |path: &PathBuf| {
            let name = path.file_name().and_then(OsStr::to_str)?;
            name.strip_prefix(&prefix)?.parse::<u16>().ok()
        };
        let mut versions: Vec<_> = fs::read_dir(home.join(".pyenv/versions"))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| patch(path).is_some())
            .collect();
        versions.sort_by_key(|path| std::cmp::Reverse(patch(path)));
        versions.into_iter().map(|path| path.join("bin/python")).collect()
    }
}

impl Finder {
    pub(super) fn new(places: Places) -> Self {
        Self { places, known: Mutex::default() }
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    /// An interpreter of a version, or any; [`Failure::Unfit`] with what there is instead.
    pub(super) async fn find(&self, wanted: Option<Version>) -> Result<Found, Failure> {
        // One asker at a time: the tasks that come together need not start an interpreter each.
        let mut known = self.known.lock().await;
        let mut others = Vec::new();
        let mut configured = None;
        for candidate in self.places.candidates(wanted) {
            match known.ask(&candidate).await {
                Ok(found) if found.fits(wanted) => return Ok(found),
                Ok(found) if others.iter().any(|other: &Found| other.is_same_file(&found)) => {}
                Ok(found) => others.push(found),
                Err(why) if self.places.configured.as_ref() == Some(&candidate) => {
                    configured = Some(format!("{}, which it was told to use, {why}", candidate.display()));
                }
                Err(_) => {}
            }
        }
        if let Some(wanted) = wanted {
            let mut candidates = Vec::from_iter(known.ask_uv(&self.places, wanted).await);
            candidates.extend(self.places.of_pyenv(wanted));
            for candidate in candidates {
                if let Ok(found) = known.ask(&candidate).await
                    && found.fits(Some(wanted))
                {
                    return Ok(found);
                }
            }
        }
        let needs = wanted.map_or_else(|| "Python 3".to_owned(), |wanted| format!("Python {wanted}"));
        Err(Failure::Unfit { needs, why: describe(&others, configured) })
    }
}

/// What there is, for [`Failure::Unfit`].
fn describe(others: &[Found], configured: Option<String>) -> String {
    let mut why = match others {
        [] => "it has no Python".to_owned(),
        [one] => format!("it has {one}"),
        several => {
            let named: Vec<_> = several.iter().take(MAX_NAMED).map(Found::to_string).collect();
            format!("it has {}", named.join(", "))
        }
    };
    if let Some(more) = others.len().checked_sub(MAX_NAMED).filter(|more| *more > 0) {
        let _ = write!(why, " and {more} more");
    }
    if let Some(configured) = configured {
        let _ = write!(why, "; {configured}");
    }
    why
}

impl Known {
    /// What interpreter a file is; else why it is none, to follow its name.
    async fn ask(&mut self, candidate: &Path) -> Result<Found, String> {
        let changed = fs::metadata(candidate)
            .and_then(|metadata| metadata.modified())
            .map_err(|error| format!("cannot be used: {error}"))?;
        if let Some((then, found)) = self.interpreters.get(candidate)
            && *then == changed
            && found.python.exists()
        {
            return Ok(found.clone());
        }
        if let Some((since, why)) = self.silent.get(candidate)
            && since.elapsed() < SILENCE_STANDS
        {
            return Err(why.clone());
        }
        let mut command = Command::new(candidate);
        command.args(["-c", PROBE]);
        let answer = process::answer(command, ANSWER_LIMIT).await;
        match answer.and_then(|answer| read(candidate, &answer)) {
            Ok(found) => {
                self.silent.remove(candidate);
                self.interpreters.insert(candidate.to_owned(), (changed, found.clone()));
                Ok(found)
            }
            Err(why) => {
                self.silent.insert(candidate.to_owned(), (Instant::now(), why.clone()));
                Err(why)
            }
        }
    }

    /// The interpreter that uv has of a version.
    async fn ask_uv(&mut self, places: &Places, wanted: Version) -> Option<PathBuf> {
        if let Some((since, python)) = self.uv.get(&wanted)
            && since.elapsed() < UV_STANDS
        {
            return python.clone();
        }
        let mut command = Command::new(places.uv()?);
        // In a directory of the node's user, a project may pin a version.
        command.args(["python", "find", &wanted.to_string()]).current_dir("/");
        command.env("UV_PYTHON_DOWNLOADS", "never");
        let answer = process::answer(command, ANSWER_LIMIT).await.ok();
        let line = answer.and_then(|answer| answer.split(|byte| *byte == b'\n').next().map(<[u8]>::to_vec));
        let python = line.filter(|line| !line.is_empty()).map(|line| PathBuf::from(OsString::from_vec(line)));
        self.uv.insert(wanted, (Instant::now(), python.clone()));
        python
    }
}

/// Reads the answer to [`PROBE`].
fn read(candidate: &Path, answer: &[u8]) -> Result<Found, String> {
    let fields = after_mark(answer).map(|answer| answer.split(|byte| *byte == 0).collect::<Vec<_>>());
    let Some([implementation, version, python]) = fields.as_deref() else {
        return Err("does not answer as a Python does".to_owned());
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let python = PathBuf::from(OsString::from_vec(python.to_vec()));
    let python = if python.is_absolute() && python.exists() { python } else { candidate.to_owned() };
    Ok(Found { python, version: text(version), implementation: text(implementation) })
}

/// What follows the last [`MARK`].
pub(super) fn after_mark(answer: &[u8]) -> Option<&[u8]> {
    let at = answer.windows(MARK.len()).rposition(|window| window == MARK)?;
    Some(&answer[at + MARK.len()..])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A machine with a path, and programs that answer like interpreters.
    struct Machine(TempDir);

    impl Machine {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn program(&self, path: &str, script: &str) -> PathBuf {
            let file = self.0.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            let script = format!("#!/bin/sh\necho asked >> {}.asked\n{script}\n", file.display());
            super::super::tests::write_program(&file, &script);
            file
        }

        fn python(&self, path: &str, version: &str) -> PathBuf {
            self.program(path, &format!("printf 'hello\\0floe\\0cpython\\000{version}\\0'; printf %s \"$0\""))
        }

        fn asked(&self, path: &str) -> usize {
            fs::read_to_string(self.0.path().join(format!("{path}.asked")))
                .map_or(0, |text| text.lines().count())
        }

        fn places(&self) -> Places {
            let path = env::join_paths([self.0.path().join("bin"), self.0.path().join("more")]).unwrap();
            Places { path, home: Some(self.0.path().join("home")), ..Places::default() }
        }

        async fn find(&self, places: Places, version: &str) -> Result<PathBuf, String> {
            let found = Finder::new(places).find(Version::parse(version)).await;
            found.map(|found| found.python).map_err(|failure| failure.to_string())
        }
    }

    #[test]
    fn versions_are_major_and_minor() {
        assert_eq!(Version::parse("3.12"), Some(Version { major: 3, minor: 12 }));
        for wrong in ["", "3", "3.", ".3", "3.12.1", "3.+1", "3.x", "3.1234", "../x"] {
            assert_eq!(Version::parse(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn the_best_place_that_has_the_version_is_taken() {
        let machine = Machine::new();
        let pyenv = machine.python("home/.pyenv/versions/3.12.4/bin/python", "3.12.4");
        let newest = machine.python("home/.pyenv/versions/3.12.11/bin/python", "3.12.11");
        machine.python("home/.pyenv/versions/3.12-dev/bin/python", "3.12.99");
        assert_eq!(machine.find(machine.places(), "3.12").await, Ok(newest.clone()));
        let uv = machine.program("home/.local/bin/uv", &format!("echo {}", pyenv.display()));
        assert_eq!(machine.find(machine.places(), "3.12").await, Ok(pyenv));
        fs::remove_file(uv).unwrap();
        let python = machine.python("bin/python", "3.12.1");
        assert_eq!(machine.find(machine.places(), "3.12").await, Ok(python));
        let python3 = machine.python("more/python3", "3.12.2");
        assert_eq!(machine.find(machine.places(), "3.12").await, Ok(python3));
        let exact = machine.python("more/python3.12", "3.12.3");
        machine.program("bin/python3.12", "echo 'no such command' >&2; exit 127");
        assert_eq!(machine.find(machine.places(), "3.12").await, Ok(exact));
        let active = machine.python("active/bin/python", "3.12.5");
        let mut places = machine.places();
        places.virtual_env = Some(machine.0.path().join("active"));
        assert_eq!(machine.find(places.clone(), "3.12").await, Ok(active));
        let configured = machine.python("configured", "3.12.6");
        places.configured = Some(configured.clone());
        assert_eq!(machine.find(places.clone(), "3.12").await, Ok(configured.clone()));
        assert_eq!(Finder::new(places).find(None).await.unwrap().python, configured);
    }

    #[tokio::test]
    async fn another_version_is_passed_over_and_named_if_there_is_no_other() {
        let machine = Machine::new();
        let at = machine.0.path().display();
        let mut places = machine.places();
        assert_eq!(
            machine.find(places.clone(), "3.12").await,
            Err("Python 3.12 cannot be had on this node: it has no Python".to_owned())
        );
        machine.python("bin/python3", "3.11.7");
        machine.program("more/python3", "printf '\\0floe\\0pypy\\0003.12.1\\0'; printf %s \"$0\"");
        places.configured = Some(machine.0.path().join("missing"));
        assert_eq!(
            machine.find(places.clone(), "3.12").await,
            Err(format!(
                "Python 3.12 cannot be had on this node: it has Python 3.11.7 ({at}/bin/python3), pypy \
                 3.12.1 ({at}/more/python3); {at}/missing, which it was told to use, cannot be used: No such \
                 file or directory (os error 2)"
            ))
        );
        places.configured = Some(machine.python("configured", "3.9.18"));
        let python = machine.python("bin/python", "3.12.1");
        assert_eq!(machine.find(places, "3.12").await, Ok(python));
    }

    #[tokio::test]
    async fn each_is_asked_once_until_it_changes() {
        let machine = Machine::new();
        machine.python("bin/python3", "3.11.7");
        machine.program("bin/python3.12", "exit 127");
        let finder = Finder::new(machine.places());
        for _ in 0..3 {
            finder.find(Version::parse("3.12")).await.unwrap_err();
            assert_eq!(finder.find(Version::parse("3.11")).await.unwrap().version, "3.11.7");
        }
        assert_eq!((machine.asked("bin/python3"), machine.asked("bin/python3.12")), (1, 1));
        let upgraded = machine.python("bin/python3", "3.12.0");
        let later = SystemTime::now() + Duration::from_secs(5);
        fs::File::options().append(true).open(&upgraded).unwrap().set_modified(later).unwrap();
        assert_eq!(finder.find(Version::parse("3.12")).await.unwrap().python, upgraded);
    }

    #[tokio::test]
    async fn a_real_interpreter_tells_its_version_and_itself() {
        let finder = Finder::new(Places::of_process(None));
        let found = finder.find(None).await.unwrap();
        assert!(found.version.starts_with("3."), "{found}");
        assert!(found.python.is_absolute(), "{found}");
        let (minor, _) = found.version.rsplit_once('.').unwrap();
        assert_eq!(
            finder.find(Version::parse(minor)).await.unwrap().version.rsplit_once('.').unwrap().0,
            minor
        );
    }
}
