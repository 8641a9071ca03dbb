//! Functions: what a driver wants called on the nodes, and what it takes to call it.
//!
//! A function runs in a *host*, a child process of the node: a Python interpreter, the driver's own executable, or
//! any program. The nodes do not look into its code, its arguments or the objects it returns; host and driver do.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::BlobId;
use crate::job::Query;
use crate::message::FileMark;

/// Code and arguments up to this size travel with what names them; larger ones as blobs, once a node.
pub const MAX_INLINE_BYTES: usize = 64 << 10;

/// The most tasks that one function's job may have. More are better put into fewer, larger ones.
pub const MAX_TASKS: usize = 100_000;

/// The largest blob.
pub const MAX_BLOB_BYTES: u64 = 4 << 30;

/// A function and what it takes to call it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// What people call it.
    pub name: String,
    /// Where it runs.
    pub host: Host,
    /// What the host calls, in a form that only host and driver read: a pickled function, a registered name.
    pub code: Payload,
    /// What one call may take.
    #[serde(default)]
    pub limits: Limits,
}

/// The kinds of processes that functions run in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Host {
    /// A Python interpreter.
    Python(Python),
    /// The driver's own executable, with the functions that it registered.
    Native(Native),
    /// A program that reads a task's input on stdin and writes its output to stdout, once a task.
    Program(Program),
}

/// An interpreter and what must be importable in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Python {
    /// Major and minor version, as `3.12`: pickled code runs on the one that pickled it.
    pub version: String,
    /// What pip or uv is to install, one requirement each, as in a requirements file.
    pub requirements: Vec<String>,
    /// Zip archives of Python code, to be searched in this order before anything that is installed.
    pub modules: Vec<Blob>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Installed distributions that the function uses, and the driver's version of each. The node must have the
    /// same.
    pub libraries: BTreeMap<String, String>,
}

/// An executable that serves the functions it was built with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Native {
    /// The file.
    pub executable: Blob,
    /// What it was built for, as [`target`] says.
    pub target: String,
}

/// A program and how it is spoken to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Program {
    /// The file.
    pub file: ProgramFile,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// What it reads.
    pub stdin: Format,
    /// What it writes.
    pub stdout: Format,
    /// Whether columns of text formats get types by what is in them; if not, all are text, letter by letter as
    /// they were written.
    pub typed: bool,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
}

/// Where a program comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProgramFile {
    /// From the driver; it keeps its name.
    Blob {
        /// The file.
        blob: Blob,
        /// Its name, without a directory.
        name: String,
    },
    /// Each node's own, found on its path.
    OnPath(String),
}

/// How a program's stdin and stdout hold a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Format {
    /// An Arrow IPC stream.
    Arrow,
    /// CSV with a header.
    Csv,
    /// A JSON object a line.
    Ndjson,
}

/// What one call may take before it is stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Resident memory of the host and its children; a slot's share of its node's budget unless given.
    pub memory_bytes: Option<u64>,
    /// How long; without a limit unless given.
    pub time_ms: Option<u64>,
}

/// Bytes that every node can get by the digest of what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Blob {
    /// Their digest.
    pub id: BlobId,
    /// How many.
    pub bytes: u64,
}

/// Bytes that travel along or apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    /// Here.
    Inline(Bytes),
    /// As a blob.
    Blob(Blob),
}

/// What one task of a function's job is called with, besides the partitions that it reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Argument {
    /// Nothing.
    None,
    /// Bytes that host and driver understand.
    Payload(Payload),
    /// A file that the node sees.
    File(FileMark),
}

/// A function over data: a task for each part of its input, and perhaps a tree that merges what they return.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionJob {
    /// What is called for each part.
    pub function: Function,
    /// The parts.
    pub input: FunctionInput,
    /// What is called to make one partition of several, until one is left. Without it, the result has as many
    /// partitions as the input.
    pub merge: Option<Merge>,
}

/// How partitions become one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merge {
    /// What is called with some partitions, neighbours and in order.
    pub function: Function,
    /// How many at once; at least 2.
    pub fan_in: u32,
}

/// The parts of a function's input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FunctionInput {
    /// A task for each of these.
    Arguments(Vec<Argument>),
    /// A task for each of these frames.
    Frames(Vec<Frame>),
    /// A task for each file under these paths or globs, in order of their names.
    Files {
        /// As the user wrote them.
        paths: Vec<String>,
        /// The driver's working directory, against which relative paths are resolved.
        directory: String,
    },
    /// A task for each partition of this query's result.
    Query(Query),
}

/// A frame that comes with a submission: its file, one Arrow IPC file, follows the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Its rows.
    pub rows: u64,
    /// How long its file is.
    pub bytes: u64,
}

/// What a stage that calls a function does in each of its tasks: the content of [`crate::Work::Function`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionWork {
    /// The function.
    pub function: Function,
}

impl Function {
    /// What a node must have to run it, besides its arguments.
    pub fn blobs(&self) -> impl Iterator<Item = BlobId> {
        let of_host: Vec<Blob> = match &self.host {
            Host::Python(python) => python.modules.clone(),
            Host::Native(native) => vec![native.executable],
            Host::Program(Program { file: ProgramFile::Blob { blob, .. }, .. }) => vec![*blob],
            Host::Program(Program { file: ProgramFile::OnPath(_), .. }) => Vec::new(),
        };
        of_host.into_iter().chain(self.code.blob()).map(|blob| blob.id)
    }
}

impl Payload {
    /// The blob, if it is one.
    pub fn blob(&self) -> Option<Blob> {
        match self {
            Self::Inline(_) => None,
            Self::Blob(blob) => Some(*blob),
        }
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Blob(blob) => blob.bytes,
        }
    }
}

impl Format {
    /// One word: `arrow`, `csv`, `ndjson`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Arrow => "arrow",
            Self::Csv => "csv",
            Self::Ndjson => "ndjson",
        }
    }
}

/// What executables of this machine are built for: CPU and operating system, as `x86_64-linux`.
pub fn target() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}
