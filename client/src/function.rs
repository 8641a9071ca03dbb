//! Functions over data: what they consist of, and their way to a mesh.

use bytes::Bytes;
pub use floe_protocol::function::*;
use floe_protocol::{JobKind, JobSpec};
use futures::{StreamExt, TryStreamExt};

use crate::error::{Error, Result};
use crate::job::Job;
use crate::mesh::Mesh;

/// How many bytes of arguments travel within a job: the node that plans it holds them in memory several times. Arguments
/// beyond this go apart, each once to the node that runs its task.
const MAX_INLINE_ARGUMENTS_BYTES: usize = 12 << 20;

/// How many arguments are put into the mesh at once.
const PUTS_AT_ONCE: usize = 8;

impl Mesh {
    /// Submits a function over data: a task for each part of its input, and a tree of merges if there is one.
    /// Code and arguments that are large travel apart, once a node. Frames need their files too: see [`Submission`].
    ///
    /// [`Submission`]: crate::Submission
    ///
    /// ```no_run
    /// # async fn example(mesh: floe_client::Mesh) -> floe_client::Result<()> {
    /// use std::collections::BTreeMap;
    ///
    /// use floe_client::function::{
    ///     Format, Function, FunctionInput, FunctionJob, Host, Limits, Payload, Program, ProgramFile,
    /// };
    /// use futures::TryStreamExt;
    ///
    /// let sort = Function {
    ///     name: "sort".into(),
    ///     host: Host::Program(Program {
    ///         file: ProgramFile::OnPath("sort".into()),
    ///         arguments: vec![],
    ///         stdin: Format::Ndjson,
    ///         stdout: Format::Ndjson,
    ///         typed: true,
    ///         env: BTreeMap::new(),
    ///     }),
    ///     code: Payload::Inline(Default::default()),
    ///     limits: Limits::default(),
    /// };
    /// let input = FunctionInput::Files { paths: vec!["logs/*.ndjson".into()], directory: "/srv".into() };
    /// let job = mesh.run_function("sorted logs", FunctionJob { function: sort, input, merge: None }).await?;
    /// let mut partitions = job.partitions();
    /// while let Some(partition) = partitions.try_next().await? {
    ///     println!("{} bytes of Arrow IPC", partition.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run_function(&self, label: impl Into<String>, job: FunctionJob) -> Result<Job> {
        let spec = self.function_spec(label, job).await?;
        self.submit(spec).await
    }

    /// A function over data as it is submitted, for [`Mesh::submit_as`]. What of it is large is in the mesh
    /// afterwards.
    pub async fn function_spec(&self, label: impl Into<String>, mut job: FunctionJob) -> Result<JobSpec> {
        let tasks = match &job.input {
            FunctionInput::Arguments(arguments) => arguments.len(),
            FunctionInput::Frames(frames) => frames.len(),
            FunctionInput::Files { .. } | FunctionInput::Query(_) => 0,
        };
        if tasks > MAX_TASKS {
            return Err(Error::Local(format!(
                "{tasks} tasks are too many for one job: give it at most {MAX_TASKS}, each with more to do"
            )));
        }
        self.outsource_code(&mut job.function).await?;
        if let Some(merge) = &mut job.merge {
            self.outsource_code(&mut merge.function).await?;
        }
        if let FunctionInput::Arguments(arguments) = &mut job.input {
            self.outsource_arguments(arguments).await?;
        }
        Ok(JobSpec { label: label.into(), kind: JobKind::Function(Box::new(job)) })
    }

    /// Puts a function's code into the mesh if it is large.
    pub(crate) async fn outsource_code(&self, function: &mut Function) -> Result<()> {
        if let Payload::Inline(code) = &function.code
            && code.len() > MAX_INLINE_BYTES
        {
            function.code = Payload::Blob(self.put(code.clone()).await?);
        }
        Ok(())
    }

    async fn outsource_arguments(&self, arguments: &mut [Argument]) -> Result<()> {
        let mut inline_bytes = 0;
        let mut apart = Vec::new();
        for (at, argument) in arguments.iter().enumerate() {
            if let Argument::Payload(Payload::Inline(bytes)) = argument {
                if bytes.len() > MAX_INLINE_BYTES || inline_bytes + bytes.len() > MAX_INLINE_ARGUMENTS_BYTES {
                    apart.push((at, bytes.clone()));
                } else {
                    inline_bytes += bytes.len();
                }
            }
        }
        let puts = apart.into_iter().map(|(at, bytes): (usize, Bytes)| async move {
            let blob = self.put(bytes).await?;
            Ok::<_, Error>((at, blob))
        });
        let blobs: Vec<_> = futures::stream::iter(puts).buffer_unordered(PUTS_AT_ONCE).try_collect().await?;
        for (at, blob) in blobs {
            if let Some(argument) = arguments.get_mut(at) {
                *argument = Argument::Payload(Payload::Blob(blob));
            }
        }
        Ok(())
    }
}
