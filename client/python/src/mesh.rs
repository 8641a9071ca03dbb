//! `Mesh`: connecting, submitting, putting and getting.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use floe_client::function::{Frame, FunctionInput, FunctionJob, Merge};
use floe_client::{Error, JobKind, JobSpec, MeshKey, Query, Submission, json, local};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::bytes::{blob_of, parsed, taken};
use crate::closing::Closing;
use crate::error::{Parts, raised};
use crate::function::{Function, payload};
use crate::job::Job;
use crate::runtime::{Own, runtime, wait};
use crate::session::Session;

/// What `jobs` shows of a job that came as a plan without a label.
const PLAN_LABEL: &str = "a Polars plan";

/// A mesh, through whichever of its nodes answers.
#[pyclass(frozen, module = "floe._core")]
pub(crate) struct Mesh {
    mesh: Own<floe_client::Mesh>,
    closing: Own<Closing>,
}

#[pymethods]
impl Mesh {
    /// Connects to any of these nodes; without addresses, to the mesh that runs on this machine. The key is the given
    /// one, or that in the given file, or the one of this machine's user.
    #[staticmethod]
    #[pyo3(signature = (addresses, key_file=None, key=None, timeout=None))]
    fn connect(
        py: Python<'_>,
        addresses: Vec<String>,
        key_file: Option<String>,
        key: Option<String>,
        timeout: Option<f64>,
    ) -> PyResult<Self> {
        let timeout = timeout.map(seconds).transpose()?;
        // A key that lies in a file may be another later, when the mesh has changed it.
        let file = match (&key, &key_file) {
            (Some(_), _) => None,
            (None, Some(file)) => Some(PathBuf::from(file)),
            (None, None) => local::home().ok().map(|home| local::user_key_file(&home)),
        };
        let key = match (key, key_file) {
            (Some(key), _) => Some(parse_key(py, &key, "the given key")?),
            (None, Some(file)) => Some(read_key(py, Path::new(&file))?),
            (None, None) => None,
        };
        let here = addresses.is_empty();
        let (key, addresses) = if here { nodes_here(py, key)? } else { (key, addresses) };
        let mut builder = floe_client::Mesh::builder().addresses(addresses);
        if let Some(key) = key {
            builder = builder.key(key);
        }
        if let Some(file) = file {
            builder = builder.key_file(file);
        }
        if let Some(timeout) = timeout {
            builder = builder.connect_timeout(timeout);
        }
        let connected = wait(py, builder.connect())?;
        let mesh = connected.map_err(|error| match error {
            // Those that announced themselves have died since.
            Error::Unreachable { .. } if here => Parts::new("no_mesh", error.to_string()).into_error(py),
            error => raised(py, error),
        })?;
        Ok(Self { mesh: Own::new(mesh), closing: Own::new(Closing::new()) })
    }

    /// The mesh and its nodes, as JSON.
    fn status(&self, py: Python<'_>) -> PyResult<String> {
        let status = self.wait(py, self.mesh.get()?.status())?.map_err(|error| raised(py, error))?;
        Ok(json::mesh(&status).to_string())
    }

    /// Every job that the mesh knows, as JSON.
    fn jobs(&self, py: Python<'_>) -> PyResult<String> {
        let jobs = self.wait(py, self.mesh.get()?.jobs())?.map_err(|error| raised(py, error))?;
        let jobs: Vec<_> = jobs.iter().map(json::job).collect();
        Ok(serde_json::Value::from(jobs).to_string())
    }

    /// Submits a SQL statement.
    #[pyo3(signature = (text, tables, directory, label=None))]
    fn sql(
        &self,
        py: Python<'_>,
        text: String,
        tables: BTreeMap<String, String>,
        directory: String,
        label: Option<String>,
    ) -> PyResult<Job> {
        let spec = self.sql_spec(py, text, tables, &directory, label)?;
        self.submit(py, async { Ok(spec.into()) })
    }

    /// Submits a serialized Polars plan, with the schema that its result should have.
    #[pyo3(signature = (dsl, schema, directory, label=None))]
    fn plan(
        &self,
        py: Python<'_>,
        dsl: &Bound<'_, PyAny>,
        schema: &Bound<'_, PyAny>,
        directory: String,
        label: Option<String>,
    ) -> PyResult<Job> {
        let spec = plan_spec(plan_query(dsl, schema, directory)?, label);
        self.submit(py, async { Ok(spec.into()) })
    }

    /// Calls a function once for each of these arguments.
    #[pyo3(signature = (label, function, arguments, merge=None, fan_in=2))]
    fn map_arguments(
        &self,
        py: Python<'_>,
        label: String,
        function: &Function,
        arguments: Vec<Bound<'_, PyAny>>,
        merge: Option<&Function>,
        fan_in: u32,
    ) -> PyResult<Job> {
        let arguments =
            arguments.iter().map(|argument| taken(argument).map(payload)).collect::<PyResult<_>>()?;
        self.run(py, label, function, FunctionInput::Arguments(arguments), Vec::new(), merge, fan_in)
    }

    /// Calls a function once for each of these frames, each its rows and an Arrow IPC file.
    #[pyo3(signature = (label, function, frames, merge=None, fan_in=2))]
    fn map_frames(
        &self,
        py: Python<'_>,
        label: String,
        function: &Function,
        frames: Vec<(u64, Bound<'_, PyAny>)>,
        merge: Option<&Function>,
        fan_in: u32,
    ) -> PyResult<Job> {
        let frame = |(rows, file): &(u64, Bound<'_, PyAny>)| {
            let file = taken(file)?;
            Ok((Frame { rows: *rows, bytes: file.len() as u64 }, file))
        };
        let (frames, files) = frames.iter().map(frame).collect::<PyResult<_>>()?;
        self.run(py, label, function, FunctionInput::Frames(frames), files, merge, fan_in)
    }

    /// Calls a function once for each partition of what a serialized Polars plan gives.
    #[pyo3(signature = (label, function, dsl, schema, directory, merge=None, fan_in=2))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn map_plan(
        &self,
        py: Python<'_>,
        label: String,
        function: &Function,
        dsl: &Bound<'_, PyAny>,
        schema: &Bound<'_, PyAny>,
        directory: String,
        merge: Option<&Function>,
        fan_in: u32,
    ) -> PyResult<Job> {
        let input = FunctionInput::Query(plan_query(dsl, schema, directory)?);
        self.run(py, label, function, input, Vec::new(), merge, fan_in)
    }

    /// Calls a function once for each file under these paths or globs.
    #[pyo3(signature = (label, function, paths, directory, merge=None, fan_in=2))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn map_files(
        &self,
        py: Python<'_>,
        label: String,
        function: &Function,
        paths: Vec<String>,
        directory: String,
        merge: Option<&Function>,
        fan_in: u32,
    ) -> PyResult<Job> {
        self.run(py, label, function, FunctionInput::Files { paths, directory }, Vec::new(), merge, fan_in)
    }

    /// Puts bytes into the mesh, unless it has them: their digest and size.
    fn put(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<(String, u64)> {
        let blob = self.wait(py, self.mesh.get()?.put(taken(data)?))?.map_err(|error| raised(py, error))?;
        Ok((blob.id.to_string(), blob.bytes))
    }

    /// Gets bytes that were put into the mesh.
    fn get<'py>(&self, py: Python<'py>, id: &str, bytes: u64) -> PyResult<Bound<'py, PyBytes>> {
        let blob = blob_of((id, bytes))?;
        let bytes = self.wait(py, self.mesh.get()?.get(blob))?.map_err(|error| raised(py, error))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// A job submitted before. Whether it exists shows with the first question.
    fn job(&self, id: &str) -> PyResult<Job> {
        self.handle(self.mesh.get()?.job(parsed(id)?))
    }

    /// Opens a session.
    fn session(&self, py: Python<'_>, label: String) -> PyResult<Session> {
        let session = self.wait(py, self.mesh.get()?.session(label))?.map_err(|error| raised(py, error))?;
        Ok(Session::new(session, self.closing.get()?.clone()))
    }

    /// Ends all that waits for something of this, and says whether the jobs end too.
    fn close(&self, jobs_end: bool) -> PyResult<()> {
        self.closing.get()?.close(jobs_end);
        Ok(())
    }
}

impl Mesh {
    fn wait<T: Send>(&self, py: Python<'_>, future: impl Future<Output = T> + Send) -> PyResult<T> {
        self.closing.get()?.wait(py, future)
    }

    fn handle(&self, job: floe_client::Job) -> PyResult<Job> {
        Ok(Job::new(job, self.closing.get()?.clone()))
    }

    fn sql_spec(
        &self,
        py: Python<'_>,
        text: String,
        tables: BTreeMap<String, String>,
        directory: &str,
        label: Option<String>,
    ) -> PyResult<JobSpec> {
        let mut sql = self.mesh.get()?.sql(text).directory(directory);
        for (name, path) in tables {
            sql = sql.table(name, path);
        }
        if let Some(label) = label {
            sql = sql.label(label);
        }
        sql.spec().map_err(|error| raised(py, error))
    }

    #[expect(clippy::too_many_arguments, reason = "two are Python's, and the others are a job")]
    fn run(
        &self,
        py: Python<'_>,
        label: String,
        function: &Function,
        input: FunctionInput,
        files: Vec<Bytes>,
        merge: Option<&Function>,
        fan_in: u32,
    ) -> PyResult<Job> {
        if merge.is_some() && fan_in < 2 {
            return Err(PyValueError::new_err(format!("a merge takes at least 2 partitions, not {fan_in}")));
        }
        let merge = merge.map(|merge| Merge { function: merge.protocol(), fan_in });
        let job = FunctionJob { function: function.protocol(), input, merge };
        let spec = self.mesh.get()?.function_spec(label, job);
        self.submit(py, async { Ok(Submission { spec: spec.await?, files }) })
    }

    /// Submits a job. One that Ctrl-C or closing interrupts on its way is cancelled, whether or not it was accepted:
    /// nobody has its id.
    fn submit(
        &self,
        py: Python<'_>,
        submission: impl Future<Output = floe_client::Result<Submission>> + Send,
    ) -> PyResult<Job> {
        let id = floe_client::new_job_id().map_err(|error| raised(py, error))?;
        let mesh = self.mesh.get()?;
        let submitted = self.wait(py, async { mesh.submit_as(id, submission.await?).await });
        match submitted {
            Ok(job) => self.handle(job.map_err(|error| raised(py, error))?),
            Err(interrupted) => {
                let job = mesh.job(id);
                runtime()?.spawn(async move { job.cancel().await });
                Err(interrupted)
            }
        }
    }
}

fn plan_spec(query: Query, label: Option<String>) -> JobSpec {
    JobSpec { label: label.unwrap_or_else(|| PLAN_LABEL.to_owned()), kind: JobKind::Query(query) }
}

fn plan_query(dsl: &Bound<'_, PyAny>, schema: &Bound<'_, PyAny>, directory: String) -> PyResult<Query> {
    Ok(Query::Plan { dsl: taken(dsl)?, directory, schema: taken(schema)? })
}

/// The nodes of this machine that announced themselves under a key: the given one or that of its user.
fn nodes_here(py: Python<'_>, key: Option<MeshKey>) -> PyResult<(Option<MeshKey>, Vec<String>)> {
    let none =
        || Parts::new("no_mesh", "no mesh runs on this machine: start one with `floe up`").into_error(py);
    let home = local::home().map_err(|error| raised(py, error))?;
    let key = match key {
        Some(key) => key,
        None if local::user_key_file(&home).exists() => local::key().map_err(|error| raised(py, error))?,
        None => return Err(none()),
    };
    let nodes = local::nodes(&home, &key);
    if nodes.is_empty() { Err(none()) } else { Ok((Some(key), nodes)) }
}

fn read_key(py: Python<'_>, file: &Path) -> PyResult<MeshKey> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        let message = format!("the mesh key cannot be read from {}: {error}", file.display());
        Parts::new("local", message).into_error(py)
    })?;
    parse_key(py, &text, &file.display().to_string())
}

fn parse_key(py: Python<'_>, text: &str, from: &str) -> PyResult<MeshKey> {
    text.trim()
        .parse()
        .map_err(|error| Parts::new("local", format!("{from} holds no mesh key: {error}")).into_error(py))
}

/// A time that Python gave in seconds.
pub(crate) fn seconds(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds.max(0.0))
        .map_err(|error| PyValueError::new_err(format!("{seconds} s is no time to wait: {error}")))
}
