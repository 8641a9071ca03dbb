//! SQL on its way to a mesh.

use std::collections::BTreeMap;
use std::future::{Future, IntoFuture};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use floe_protocol::{JobKind, JobSpec, Query, StageGraph};

use crate::error::{Error, Result};
use crate::job::Job;
use crate::mesh::Mesh;

/// The most characters of a statement that become the job's label.
const MAX_LABEL_CHARS: usize = 200;

/// A statement with its tables, made by [`Mesh::sql`]. Awaiting it submits it.
#[derive(Clone, Debug)]
#[must_use = "a statement is submitted when it is awaited"]
pub struct Sql {
    mesh: Mesh,
    text: String,
    tables: BTreeMap<String, PathBuf>,
    directory: Option<PathBuf>,
    label: Option<String>,
}

impl Sql {
    pub(crate) fn new(mesh: Mesh, text: String) -> Self {
        Self { mesh, text, tables: BTreeMap::new(), directory: None, label: None }
    }

    /// Gives a name to a file, a directory or a pattern. The nodes read it, so it must be a path that they can see.
    /// A name that exists is never taken for a pattern.
    pub fn table(mut self, name: impl Into<String>, path: impl AsRef<Path>) -> Self {
        self.tables.insert(name.into(), path.as_ref().to_owned());
        self
    }

    /// The directory against which relative paths are resolved; this process's own unless set.
    pub fn directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// What `floe jobs` shows; the statement itself unless set.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// The job as it would be submitted.
    pub fn spec(&self) -> Result<JobSpec> {
        let directory = match &self.directory {
            Some(directory) => text_of(directory)?,
            None => working_directory()?,
        };
        let label = self.label.clone().unwrap_or_else(|| shorten(&self.text));
        let tables = self.tables.iter().map(|(name, path)| Ok((name.clone(), text_of(path)?)));
        let query = Query::Sql { text: self.text.clone(), tables: tables.collect::<Result<_>>()?, directory };
        Ok(JobSpec { label, kind: JobKind::Query(query) })
    }

    /// Plans the statement without running it.
    pub async fn explain(self) -> Result<StageGraph> {
        self.mesh.explain(&self.spec()?).await
    }
}

impl IntoFuture for Sql {
    type Output = Result<Job>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Job>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.mesh.submit(self.spec()?).await })
    }
}

/// This process's directory, in text.
pub(crate) fn working_directory() -> Result<String> {
    let directory = std::env::current_dir()
        .map_err(|error| Error::Local(format!("the working directory cannot be told: {error}")))?;
    text_of(&directory)
}

/// A path as the nodes are told it.
fn text_of(path: &Path) -> Result<String> {
    let unnamed = || {
        let shown = path.display();
        Error::Local(format!("the name of {shown} is not UTF-8, which Polars cannot read; rename it"))
    };
    path.to_str().map(str::to_owned).ok_or_else(unnamed)
}

/// A statement on one line, cut to a label's length.
fn shorten(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_LABEL_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn labels_are_one_short_line() {
        assert_eq!(shorten("SELECT *\n  FROM t"), "SELECT * FROM t");
        assert_eq!(shorten(&"ä".repeat(500)).chars().count(), MAX_LABEL_CHARS + 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_is_no_text_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let message =
            text_of(Path::new(std::ffi::OsStr::from_bytes(b"/a/b\xff.csv"))).unwrap_err().to_string();
        assert!(message.starts_with("the name of /a/b"), "{message}");
        assert!(message.contains("is not UTF-8"), "{message}");
        assert_eq!(text_of(Path::new("/a b/[1].csv")).unwrap(), "/a b/[1].csv");
    }
}
