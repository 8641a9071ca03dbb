//! What is installed for an interpreter.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::process::Command;
use tokio::sync::Mutex;

use super::find::{Found, after_mark};
use super::process;

/// How long an interpreter may take to list what is installed for it.
const LIST_LIMIT: Duration = Duration::from_secs(60);

/// Prints directories and distributions. The first entry of the path is the working directory, whose files
/// would shadow modules.
const LIST: &str = "import sys
sys.path[:] = [p for p in sys.path if p]
import os
names = ('site-packages', 'dist-packages')
dirs = [os.path.abspath(p) for p in sys.path if os.path.basename(p) in names and os.path.isdir(p)]
out = [b'd' + os.fsencode(d) for d in dirs]
try:
    import importlib.metadata, importlib.util
    pip = importlib.util.find_spec('pip')
    if pip and pip.origin and os.path.dirname(os.path.dirname(pip.origin)) in dirs:
        out.append(b'pip')
    for d in importlib.metadata.distributions():
        name, version = d.metadata['Name'], d.version
        if name and version:
            out.append(b'=' + name.encode() + b'==' + version.encode())
except ImportError:
    pass
sys.stdout.buffer.write(b'\\0floe\\0' + b'\\0'.join(out))
";

/// What is installed for an interpreter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Packages {
    /// Where, in the order of import.
    pub(super) directories: Vec<PathBuf>,
    /// The distributions and their versions. Names are as [`normal_name`] has them.
    pub(super) distributions: BTreeMap<String, String>,
    /// Whether pip is in one of the directories.
    pub(super) pip: bool,
}

/// Lists packages, and remembers the lists until something is installed or removed.
#[derive(Debug, Default)]
pub(super) struct Lists(Mutex<HashMap<PathBuf, (Changes, Packages)>>);

/// When each directory last changed.
type Changes = Vec<Option<SystemTime>>;

impl Lists {
    /// The packages of an interpreter; else why it does not list them, to follow its name.
    pub(super) async fn of(&self, found: &Found) -> Result<Packages, String> {
        let mut known = self.0.lock().await;
        if let Some((then, packages)) = known.get(&found.python)
            && *then == changes(&packages.directories)
        {
            return Ok(packages.clone());
        }
        let mut command = Command::new(&found.python);
        command.args(["-c", LIST]);
        let answer = process::answer(command, LIST_LIMIT).await?;
        let packages = read(&answer).ok_or("does not list what is installed")?;
        // What changes while it is listed has another time when it is looked at again.
        known.insert(found.python.clone(), (changes(&packages.directories), packages.clone()));
        Ok(packages)
    }
}

fn changes(directories: &[PathBuf]) -> Changes {
    let changed = |dir: &PathBuf| fs::metadata(dir).and_then(|metadata| metadata.modified()).ok();
    directories.iter().map(changed).collect()
}

fn read(answer: &[u8]) -> Option<Packages> {
    let mut packages = Packages::default();
    for field in after_mark(answer)?.split(|byte| *byte == 0) {
        match field.split_first() {
            Some((b'd', dir)) => packages.directories.push(OsString::from_vec(dir.to_vec()).into()),
            Some((b'=', distribution)) => {
                let text = String::from_utf8_lossy(distribution);
                let (name, version) = text.split_once("==")?;
                // The first on the path is the one that is imported.
                packages.distributions.entry(normal_name(name)).or_insert_with(|| version.to_owned());
            }
            Some(_) => packages.pip |= field == b"pip",
            None => {}
        }
    }
    Some(packages)
}

/// A distribution's name as all spellings of it: lower case, with `-` for any run of `-`, `_` and `.`.
pub(super) fn normal_name(name: &str) -> String {
    let mut normal = String::with_capacity(name.len());
    for part in name.split(['-', '_', '.']).filter(|part| !part.is_empty()) {
        if !normal.is_empty() {
            normal.push('-');
        }
        normal.push_str(&part.to_ascii_lowercase());
    }
    normal
}

/// The distribution that a requirement names: `numpy` of `NumPy[extra] >= 2 ; python_version < "4"`.
pub(super) fn required_name(requirement: &str) -> String {
    let end = requirement.find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c));
    normal_name(&requirement[..end.unwrap_or(requirement.len())])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::super::find::{Finder, Places};
    use super::*;

    #[test]
    fn names_have_one_spelling() {
        for (requirement, name) in [
            ("NumPy>=2", "numpy"),
            ("scikit_learn[x] ==1.5 ; python_version < '4'", "scikit-learn"),
            ("zope..interface", "zope-interface"),
            ("a @ file:///b", "a"),
        ] {
            assert_eq!(required_name(requirement), name);
        }
    }

    #[test]
    fn lists_are_read() {
        let packages = read(b"noise\0floe\0d/usr/lib\0pip\0=A_b==1.0\0=a-B==2.0").unwrap();
        assert_eq!(packages.directories, [Path::new("/usr/lib")]);
        assert!(packages.pip);
        assert_eq!(packages.distributions, BTreeMap::from([("a-b".to_owned(), "1.0".to_owned())]));
        assert_eq!(read(b"noise"), None);
    }

    #[tokio::test]
    async fn a_real_interpreter_lists_its_packages() {
        let found = Finder::new(Places::of_process(None)).find(None).await.unwrap();
        let lists = Lists::default();
        let packages = lists.of(&found).await.unwrap();
        assert!(!packages.directories.is_empty(), "{packages:?}");
        assert_eq!(lists.of(&found).await.unwrap(), packages);
    }
}
