//! What a path stands for: a file, the files below a directory, or those that match a pattern.
//!
//! **A name that exists is that name.** Only what does not exist may be a pattern. From the root on, a component
//! that names an entry of its directory is that entry, whatever characters are in it; any other is matched with the
//! entries that are there, as Polars does: `*`, `?`, `[a-z]`, `[!a-z]`, and `**` for the directories below, this one
//! included. Names that begin with a dot are names like others. So a pattern can never take the place of a file that
//! was named, and `run [1]/*.csv` reads the directory of that name.
//!
//! Floe expands patterns itself and hands Polars files and directories only: Polars would take any name with a
//! bracket in it for a pattern.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use floe_protocol::Failure;
use floe_protocol::message::FilePath;
use glob::Pattern;
use percent_encoding::percent_decode_str;
use polars::prelude::*;
use polars_plan::dsl::{FileScanDsl, ScanSources};

/// How many files one path may stand for: each is named in the job's specification, which is replicated.
pub(crate) const MAX_FILES: usize = 65_536;

/// How many entries of directories are looked at for one path: a pattern that begins too high up would otherwise go
/// through a whole disk.
const MAX_ENTRIES: usize = 1 << 20;

/// What the paths of a query stand for on this machine.
#[derive(Debug, Default)]
pub(crate) struct Found(BTreeMap<FilePath, Expanded>);

/// What one path stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expanded {
    /// What the path is.
    pub(crate) kind: Kind,
    /// The files, in the order of their names. At least one.
    pub(crate) files: Vec<String>,
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The one file of this name.
    File,
    /// A directory: all files below it.
    Directory,
    /// A pattern.
    Pattern,
}

/// Makes a path absolute as its driver would: against the driver's directory, with a leading `~/` as the home of this
/// node's user. A `file:` URI is the path that it names.
pub(crate) fn absolute(directory: &str, path: &str, glob: bool) -> Result<FilePath, Failure> {
    if let Some(uri) = path.strip_prefix("file:").filter(|rest| rest.starts_with('/')) {
        return file_uri(path, uri, glob);
    }
    if has_scheme(path) {
        return Err(Failure::Refused { message: format!("{path}: only files are read, no object stores") });
    }
    let from_home = path.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let path = if let Some(rest) = from_home {
        let home = std::env::home_dir().and_then(|home| home.into_os_string().into_string().ok());
        let home = home.ok_or_else(|| Failure::Refused {
            message: format!("{path}: this node does not know its home directory; write the path in full"),
        })?;
        format!("{}{rest}", home.trim_end_matches('/'))
    } else if Path::new(path).is_absolute() {
        path.to_owned()
    } else {
        let relative = path.strip_prefix("./").unwrap_or(path);
        format!("{}/{relative}", directory.trim_end_matches('/'))
    };
    Ok(FilePath { path, glob })
}

/// `file:///a%20b`. As Polars has it, what is written with escapes is no pattern.
fn file_uri(whole: &str, rest: &str, glob: bool) -> Result<FilePath, Failure> {
    let refused = |why: &str| Failure::Refused { message: format!("{whole}: {why}") };
    let path = match rest.strip_prefix("//") {
        Some(named) => named.strip_prefix("localhost").unwrap_or(named),
        None => rest,
    };
    if !path.starts_with('/') {
        return Err(refused("a file: URI has three slashes before the path, as in file:///data/a.csv"));
    }
    if !path.contains('%') {
        return Ok(FilePath { path: path.to_owned(), glob });
    }
    let decoded = percent_decode_str(path).decode_utf8().map_err(|_| refused("its escapes are not UTF-8"))?;
    let path = if glob { Pattern::escape(&decoded) } else { decoded.into_owned() };
    Ok(FilePath { path, glob })
}

/// Whether a path names a place that is not a file, such as `s3://bucket/key`.
fn has_scheme(path: &str) -> bool {
    let Some((scheme, _)) = path.split_once("://") else { return false };
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// Finds what some absolute paths stand for, or says which of them leads to no file.
pub(crate) fn find(paths: &[FilePath]) -> Result<Found, Failure> {
    let found = paths.iter().map(|path| match expand(path) {
        Ok(expanded) => Ok((path.clone(), expanded)),
        Err(why) => Err(Failure::Unseen { path: path.path.clone(), looked: format!("this node: {why}") }),
    });
    found.collect::<Result<_, _>>().map(Found)
}

impl Found {
    /// What one of the paths stands for.
    pub(crate) fn get(&self, path: &FilePath) -> Option<&Expanded> {
        self.0.get(path)
    }

    /// All files.
    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        self.0.values().flat_map(|expanded| &expanded.files).map(String::as_str)
    }

    /// Lets a scan of these paths read what they stand for.
    pub(crate) fn settle(&self, sources: &mut ScanSources, args: &mut UnifiedScanArgs, scan: &FileScanDsl) {
        let ScanSources::Paths(paths) = &*sources else { return };
        let looked =
            |path: &PlRefPath| self.get(&FilePath { path: path.as_str().to_owned(), glob: args.glob });
        // A directory's hive partitions are columns unless told otherwise. Polars decides that by the path's
        // characters, so that a directory with a bracket in its name would lose them.
        let by_hive = matches!(scan, FileScanDsl::Parquet { .. } | FileScanDsl::Ipc { .. });
        if by_hive
            && args.hive_options.enabled.is_none()
            && let [path] = paths.as_ref()
            && looked(path).is_some_and(|expanded| expanded.kind == Kind::Directory)
        {
            args.hive_options.enabled = Some(true);
        }
        let mut settled = Vec::with_capacity(paths.len());
        for path in paths.iter() {
            match looked(path) {
                // As Polars does, a pattern passes over empty files.
                Some(Expanded { kind: Kind::Pattern, files }) => {
                    let filled = files
                        .iter()
                        .filter(|file| std::fs::metadata(file).map_or(true, |meta| meta.len() > 0));
                    settled.extend(filled.map(PlRefPath::new));
                }
                _ => settled.push(path.clone()),
            }
        }
        *sources = ScanSources::Paths(settled.into_iter().collect());
        args.glob = false;
    }
}

/// The files that an absolute path stands for, in the order in which Polars reads them; or in a few words why there
/// are none.
pub(crate) fn expand(path: &FilePath) -> Result<Expanded, String> {
    let at = Path::new(&path.path);
    let (kind, mut files) = match std::fs::metadata(at) {
        Ok(meta) if meta.is_file() => (Kind::File, vec![path.path.clone()]),
        Ok(meta) if meta.is_dir() => (Kind::Directory, below(at)?),
        Ok(_) => return Err("neither a file nor a directory".to_owned()),
        Err(_) if path.glob && path.path.contains(['*', '?', '[']) => (Kind::Pattern, matching(&path.path)?),
        Err(error) => return Err(reason(&error)),
    };
    files.sort_unstable();
    match files.len() {
        0 => Err("no files are in it".to_owned()),
        n if n > MAX_FILES => Err(format!("more than {MAX_FILES} files match")),
        _ => Ok(Expanded { kind, files }),
    }
}

/// All files below a directory.
fn below(directory: &Path) -> Result<Vec<String>, String> {
    let mut files = Vec::new();
    let mut looking = Looking::default();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for path in looking.entries(&next)? {
            let meta = std::fs::metadata(&path).map_err(|error| named(&path, &reason(&error)))?;
            if meta.is_dir() {
                no_loop(&path)?;
                pending.push(path);
            } else if meta.is_file() {
                files.push(text(path)?);
            }
            if files.len() > MAX_FILES {
                return Ok(files);
            }
        }
    }
    Ok(files)
}

/// All files whose path matches a pattern, each once.
fn matching(pattern: &str) -> Result<Vec<String>, String> {
    let steps = steps(pattern)?;
    let mut files = BTreeSet::new();
    let mut only_directories = false;
    let mut looking = Looking::default();
    // Two ways may lead to one place, with `**` on both sides of a name.
    let mut seen = HashSet::new();
    let mut pending = vec![(PathBuf::from("/"), 0)];
    while let Some((path, index)) = pending.pop() {
        if !seen.insert((path.clone(), index)) {
            continue;
        }
        let Some(step) = steps.get(index) else {
            let meta = std::fs::metadata(&path).map_err(|error| named(&path, &reason(&error)))?;
            only_directories |= meta.is_dir();
            if meta.is_file() {
                files.insert(text(path)?);
            }
            if files.len() > MAX_FILES {
                break;
            }
            continue;
        };
        let literal = path.join(step.name);
        if std::fs::symlink_metadata(&literal).is_ok() {
            pending.push((literal, index + 1));
            continue;
        }
        if matches!(step.matcher, Matcher::Name) || !path.is_dir() {
            continue;
        }
        if matches!(step.matcher, Matcher::Below) {
            pending.push((path.clone(), index + 1));
        }
        for entry in looking.entries(&path)? {
            match &step.matcher {
                Matcher::Below if entry.is_dir() => {
                    no_loop(&entry)?;
                    pending.push((entry, index));
                }
                Matcher::Pattern(pattern) if pattern.matches(&lossy(&entry)) => {
                    pending.push((entry, index + 1))
                }
                _ => {}
            }
        }
    }
    if files.is_empty() {
        return Err(match only_directories {
            true => "only directories match; add /* for the files in them".to_owned(),
            false => "nothing matches".to_owned(),
        });
    }
    Ok(files.into_iter().collect())
}

/// One component of a pattern.
struct Step<'a> {
    name: &'a OsStr,
    matcher: Matcher,
}

enum Matcher {
    /// Only the entry of this name.
    Name,
    /// Whatever matches, if none has the name.
    Pattern(Pattern),
    /// `**`: this directory and all below it.
    Below,
}

fn steps(pattern: &str) -> Result<Vec<Step<'_>>, String> {
    if pattern.ends_with('/') {
        return Err(
            "a pattern that ends in / matches directories only; add * for the files in them".to_owned()
        );
    }
    let mut steps = Vec::new();
    for component in Path::new(pattern).components().filter(|component| component.as_os_str() != "/") {
        let name = component.as_os_str();
        let text = name.to_string_lossy();
        let matcher = if text == "**" {
            Matcher::Below
        } else if text.contains(['*', '?', '[']) {
            let pattern = Pattern::new(&text).map_err(|error| {
                format!("no file has this name, and as a pattern it is not valid: {} in {text:?}", error.msg)
            })?;
            Matcher::Pattern(pattern)
        } else {
            Matcher::Name
        };
        steps.push(Step { name, matcher });
    }
    Ok(steps)
}

/// Counts the entries that are looked at.
#[derive(Default)]
struct Looking {
    entries: usize,
}

impl Looking {
    fn entries(&mut self, directory: &Path) -> Result<Vec<PathBuf>, String> {
        let failed = |error: std::io::Error| named(directory, &reason(&error));
        let mut found = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            found.push(entry.map_err(failed)?.path());
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(format!(
                    "more than {MAX_ENTRIES} names would have to be looked at; name the files closer"
                ));
            }
        }
        Ok(found)
    }
}

/// Refuses a link to a directory that it lies in: the files below it would be without end.
fn no_loop(path: &Path) -> Result<(), String> {
    if !path.is_symlink() {
        return Ok(());
    }
    let failed = |error: std::io::Error| named(path, &reason(&error));
    let target = path.canonicalize().map_err(failed)?;
    let own = path.parent().unwrap_or(path).canonicalize().map_err(failed)?;
    match own.starts_with(&target) {
        true => Err(named(path, "a link to a directory that it is in itself")),
        false => Ok(()),
    }
}

/// A path as text: what names it in plans, logs and messages.
fn text(path: PathBuf) -> Result<String, String> {
    path.into_os_string().into_string().map_err(|path| {
        named(Path::new(&path), "the name of this file is not UTF-8, which Polars cannot read; rename it")
    })
}

fn lossy(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn named(path: &Path, why: &str) -> String {
    format!("{}: {why}", path.display())
}

/// A file error in a few words: `not found`, `permission denied`, ...
pub(crate) fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "not found".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}
