//! Partitions that come from elsewhere and go to disk as they come, so that no more of them than some pieces is in memory,
//! however large they are and however many come at once.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use floe_protocol::{Failure, OutputMeta, TaskId};
use floe_transport::stream::{Body, BodyError};
use futures::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::files::SegmentError;
use super::{Keep, PartitionWriter, Segment, Store};
use crate::disk::Promise;

/// Pieces that wait for the disk. With it a slow disk slows whoever sends.
const PIECES: usize = 16;

/// A partition whose bytes are all here, perhaps not all on disk.
#[derive(Debug)]
pub struct Arrived(JoinHandle<Result<OutputMeta, Failure>>);

impl Store {
    /// Takes a partition from a body: one Arrow IPC file a bucket of `meta`. With a mark of 0 it gets that of its
    /// content. The body may hold more. Its room was promised.
    pub async fn receive<S>(
        &self,
        task: TaskId,
        meta: OutputMeta,
        body: &mut Body<S>,
        promise: &Arc<Promise>,
    ) -> Result<Arrived, BodyError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let lengths: Vec<u64> = meta.buckets.iter().map(|bucket| bucket.bytes).collect();
        let (pieces, received) = mpsc::channel(PIECES);
        let (store, promise) = (self.clone(), Arc::clone(promise));
        let write = move || store.write_pieces(task, &meta, received, promise);
        let arrived = Arrived(tokio::task::spawn_blocking(write));
        for length in lengths {
            let mut left = length;
            while left > 0 {
                let piece = body.read_some(left).await?.ok_or(BodyError::Short)?;
                left -= piece.len() as u64;
                // If the disk does not take it, whoever waits for its end hears why. It is read to
                // its end all the same, since another one may follow.
                let _ = pieces.send(piece).await;
            }
        }
        Ok(arrived)
    }

    fn write_pieces(
        &self,
        task: TaskId,
        meta: &OutputMeta,
        mut pieces: mpsc::Receiver<Bytes>,
        promise: Arc<Promise>,
    ) -> Result<OutputMeta, Failure> {
        let broken_off = || Failure::internal(format!("partition {task} broke off"));
        let mut writer = PartitionWriter::new(&self.0, task, Keep::OnDisk);
        writer.promise = Some(promise);
        for bucket in &meta.buckets {
            let (file, extents) = writer.file()?;
            let extent = file.segment(|sink| {
                let mut left = bucket.bytes;
                while left > 0 {
                    let piece = pieces.blocking_recv().ok_or_else(broken_off)?;
                    left = left.checked_sub(piece.len() as u64).ok_or_else(broken_off)?;
                    // The segment remembers how the disk failed.
                    sink.write_all(&piece).map_err(Failure::internal)?;
                }
                Ok(())
            });
            let extent = extent.map_err(|error| match error {
                SegmentError::Disk(failure) | SegmentError::Writer(failure) => failure,
            })?;
            extents.push(extent.clone());
            writer.segments.push(Segment::of(&extent, bucket.rows));
        }
        let partition = writer.finish((meta.mark != 0).then_some(meta.mark))?;
        Ok(self.0.insert(task, partition))
    }
}

impl Arrived {
    /// Waits until it is on disk.
    pub async fn stored(self) -> Result<OutputMeta, Failure> {
        self.0.await.map_err(Failure::internal)?
    }
}
