//! A frame in parts, a function over each of them on the nodes, and the result as one frame again.

use std::future::{Future, IntoFuture};
use std::io::Cursor;
use std::pin::Pin;

use bytes::Bytes;
use floe_protocol::function::{Frame, FunctionInput, FunctionJob, Limits, Merge};
use futures::TryStreamExt;
use polars::prelude::{DataFrame, IpcStreamReader, SerReader};

use super::executable::Registered;
use super::frame_file;
use super::registry::Shape;
use super::shape::FrameOutput;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::mesh::{Mesh, Submission};
use crate::watch::Watch;

/// How many partitions are merged at once, unless said otherwise.
const FAN_IN: u32 = 8;

impl Mesh {
    /// Cuts a frame into `parts` parts of as equal a height as can be, and calls a function with each of them
    /// on the nodes. The function must have been registered with [`functions!`](crate::functions). Awaiting
    /// this submits it and gives the job's handle; [`Parallelize::collect`] does that and waits for the
    /// result.
    ///
    /// A frame of fewer rows than `parts` becomes fewer parts: [`FrameJob::partitions`] says how many.
    ///
    /// ```no_run
    /// # use polars::prelude::*;
    /// # fn area(iris: DataFrame) -> DataFrame { iris }
    /// # async fn example(mesh: floe_client::Mesh, iris: DataFrame) -> floe_client::Result<()> {
    /// let areas = mesh.parallelize(iris.clone(), area, 10).collect().await?;
    ///
    /// let job = mesh.parallelize(iris, area, 10).await?;
    /// println!("{} is on its way", job.job().id());
    /// for partition in job.partitions_in_order().await? {
    ///     println!("{partition}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn parallelize<F, O>(&self, frame: DataFrame, function: F, parts: usize) -> Parallelize
    where
        F: Fn(DataFrame) -> O + 'static,
        O: FrameOutput,
    {
        Parallelize {
            mesh: self.clone(),
            frame,
            parts,
            function: Registered::find(Shape::Frame, &function),
            merge: None,
            fan_in: FAN_IN,
            limits: Limits::default(),
            label: None,
        }
    }
}

/// A function over a frame, made by [`Mesh::parallelize`]. Awaiting it submits it.
#[derive(Debug)]
#[must_use = "a function over a frame is submitted when it is awaited or collected"]
pub struct Parallelize {
    mesh: Mesh,
    frame: DataFrame,
    parts: usize,
    function: Result<Registered>,
    merge: Option<Result<Registered>>,
    fan_in: u32,
    limits: Limits,
    label: Option<String>,
}

impl Parallelize {
    /// Makes one frame of those that the function returned, with a function from several frames, neighbours
    /// and in order, to one. It runs on the nodes, as a tree: first over groups of partitions, then over what
    /// it returned itself, until one frame is left. Without it the result is all partitions, one after the
    /// other.
    pub fn merge<F, O>(mut self, function: F) -> Self
    where
        F: Fn(Vec<DataFrame>) -> O + 'static,
        O: FrameOutput,
    {
        self.merge = Some(Registered::find(Shape::Merge, &function));
        self
    }

    /// How many frames the merging function gets at once: at least 2, and 8 unless set.
    pub fn fan_in(mut self, frames: u32) -> Self {
        self.fan_in = frames;
        self
    }

    super::limit_methods!();

    /// What `floe jobs` shows; the function's name unless set.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Submits it, waits, and collects the result into one frame; the mesh keeps nothing of it.
    pub async fn collect(self) -> Result<DataFrame> {
        let job = self.await?;
        let collected = job.collect().await;
        super::release(job.job()).await;
        collected
    }

    async fn submit(self) -> Result<FrameJob> {
        let function = self.function?;
        let label = self.label.unwrap_or_else(|| function.name().to_owned());
        if self.parts == 0 {
            return Err(Error::Local(format!("{label} over 0 parts of a frame: there must be at least 1")));
        }
        if self.merge.is_some() && self.fan_in < 2 {
            let message = format!("merging {} frames at once leads nowhere: set 2 or more", self.fan_in);
            return Err(Error::Local(message));
        }
        let (frame, parts) = (self.frame, self.parts);
        let (frames, files) = tokio::task::spawn_blocking(move || written(&frame, parts))
            .await
            .map_err(|error| Error::Local(error.to_string()))??;
        let partitions = frames.len();
        if partitions < parts {
            tracing::warn!(
                function = label,
                parts,
                partitions,
                "the frame has too few rows for so many parts"
            );
        }
        let merge = match self.merge {
            Some(merge) => {
                let function = merge?.on(&self.mesh, self.limits).await?;
                Some(Merge { function, fan_in: self.fan_in })
            }
            None => None,
        };
        let function = function.on(&self.mesh, self.limits).await?;
        let job = FunctionJob { function, input: FunctionInput::Frames(frames), merge };
        let spec = self.mesh.function_spec(label, job).await?;
        Ok(FrameJob { job: self.mesh.submit(Submission { spec, files }).await?, partitions })
    }
}

/// The parts of a frame as they travel, and their files.
fn written(frame: &DataFrame, parts: usize) -> Result<(Vec<Frame>, Vec<Bytes>)> {
    let parts = frame_file::cut(frame, parts).into_iter();
    let written = parts.map(|part| {
        let rows = part.height() as u64;
        let file = Bytes::from(frame_file::write(part)?);
        Ok((Frame { rows, bytes: file.len() as u64 }, file))
    });
    written.collect()
}

impl IntoFuture for Parallelize {
    type Output = Result<FrameJob>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<FrameJob>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.submit())
    }
}

/// A function over a frame, under way. Dropping the handle leaves the job alone.
#[derive(Clone, Debug)]
pub struct FrameJob {
    job: Job,
    partitions: usize,
}

impl FrameJob {
    /// The job: its id, its status, cancelling and releasing it.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// In how many parts the frame was cut.
    pub fn partitions(&self) -> usize {
        self.partitions
    }

    /// Its status now and at every change, as [`Job::watch`].
    pub fn watch(&self) -> Watch {
        self.job.watch()
    }

    /// Waits until it succeeded, and collects its result into one frame: what merging left, or all partitions
    /// in order. Their columns must be the same.
    pub async fn collect(&self) -> Result<DataFrame> {
        self.job.collect().await
    }

    /// Waits until it succeeded, and gives the partitions of its result in order: what the function returned
    /// for each part, or the one frame that merging left.
    pub async fn partitions_in_order(&self) -> Result<Vec<DataFrame>> {
        let mut partitions = self.job.partitions();
        let mut frames = Vec::with_capacity(self.partitions);
        while let Some(stream) = partitions.try_next().await? {
            frames.push(IpcStreamReader::new(Cursor::new(stream)).set_rechunk(false).finish()?);
        }
        Ok(frames)
    }
}
